use super::args::BackendArgs;
use super::output;
use anyhow::Result;
use serde_json::json;
use thawline::gpu::{self, GpuError};

/// List the devices that can compute, the default first.
///
/// Real GPUs come before drivers that compute on the CPU, and OpenGL comes last. --device takes an index or a part of a
/// name.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  thawline devices --json")]
pub struct Args {
    /// Print JSON: a list of {index, name, backend, driver, kind, largest_buffer, limits, features, same_gpu_as, default}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

pub fn run(args: Args) -> Result<()> {
    let backend = args.backend.backend;
    let devices = gpu::list(backend)?;
    if devices.is_empty() {
        return Err(GpuError::NoAdapter { backend: backend.map(|backend| backend.name().into()) }.into());
    }
    let same = gpu::same_gpu(&devices);
    if args.json {
        let list: Vec<_> = devices
            .iter()
            .zip(&same)
            .enumerate()
            .map(|(index, (device, same))| {
                json!({
                    "index": index,
                    "name": device.name,
                    "backend": device.backend,
                    "driver": device.driver,
                    "kind": device.kind,
                    "largest_buffer": device.largest_buffer(),
                    "limits": device.limits,
                    "features": device.features,
                    "same_gpu_as": same,
                    "default": index == 0,
                })
            })
            .collect();
        return output::json(&list);
    }
    let rows = devices.iter().zip(&same).enumerate().map(|(index, (device, same))| {
        let mut name = device.name.clone();
        if index == 0 {
            name += " (default)";
        }
        // Once, at the entry that comes first.
        if let Some(first) = same.first().filter(|first| **first < index) {
            name += &format!(" (the same as {first})");
        }
        vec![
            index.to_string(),
            name,
            device.kind.into(),
            device.backend.clone(),
            device.driver.clone(),
            output::bytes(device.largest_buffer()),
        ]
    });
    output::text(output::table(&[">#", "device", "kind", "backend", "driver", ">largest buffer"], rows))
}
