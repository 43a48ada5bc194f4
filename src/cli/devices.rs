use super::output;
use anyhow::Result;
use serde_json::json;
use thawline::gpu::{self, GpuError};

/// List the devices that can compute, the default first.
///
/// Real GPUs come before drivers that compute on the CPU. --device takes an index or a part of a name.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  thawline devices --json")]
pub struct Args {
    /// Print JSON: a list of {index, name, backend, driver, kind, largest_buffer, default}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let devices = gpu::list();
    if devices.is_empty() {
        return Err(GpuError::NoAdapter.into());
    }
    if args.json {
        let list: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(index, device)| {
                json!({
                    "index": index,
                    "name": device.name,
                    "backend": device.backend,
                    "driver": device.driver,
                    "kind": device.kind,
                    "largest_buffer": device.largest_buffer,
                    "default": index == 0,
                })
            })
            .collect();
        return output::json(&list);
    }
    let rows = devices.iter().enumerate().map(|(index, device)| {
        let mark = if index == 0 { " (default)" } else { "" };
        vec![
            index.to_string(),
            format!("{}{mark}", device.name),
            device.kind.into(),
            device.backend.clone(),
            device.driver.clone(),
            output::bytes(device.largest_buffer),
        ]
    });
    output::text(output::table(&[">#", "device", "kind", "backend", "driver", ">largest buffer"], rows))
}
