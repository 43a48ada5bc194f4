use super::args::BackendArgs;
use super::check;
use super::output;
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use serde_json::json;
use thawline::gpu::{self, DeviceOptions, GpuError};
use thawline::kernels::KERNELS;

/// List the devices that can compute, the default first; with --check, say which kernels are right on one
///
/// Real GPUs come before drivers that compute on the CPU, and OpenGL comes last. --device takes an index or a part of a name.
/// With --check every kernel runs on the device over odd shapes and is compared with a reference on the host, with bounds
/// checks and without; a slow driver's compiler may take minutes for that. The exit code is 1 if a kernel is wrong.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline devices --json
  thawline devices --check
  thawline devices --check --device 1 --json > check.json")]
pub struct Args {
    /// Compare every kernel on the device with its reference: the first thing to run, and to attach, when results are wrong
    #[arg(long)]
    check: bool,
    /// Index or part of the name of the device to check [default: the first]
    #[arg(long, value_name = "NAME|INDEX", requires = "check")]
    device: Option<String>,
    /// Check this kernel only; repeatable
    #[arg(long = "kernel", value_name = "NAME", requires = "check", hide_possible_values = true)]
    #[arg(value_parser = PossibleValuesParser::new(KERNELS.iter().map(|kernel| kernel.name)))]
    kernels: Vec<String>,
    /// Print JSON: a list of {index, name, backend, driver, kind, largest_buffer, limits, features, same_gpu_as,
    /// default}; with --check {thawline, device:
    /// {name, backend, driver, kind}, seconds, right, wrong, unsupported, kernels: [{kernel, cases, passed, skipped,
    /// worst_error, worst_of_allowed, failure, unsupported}]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

pub fn run(args: Args) -> Result<()> {
    let backend = args.backend.backend;
    if args.check {
        let options = DeviceOptions { select: args.device, backend, ..DeviceOptions::default() };
        return check::run(&options, &args.kernels, args.json);
    }
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
    let titles = [">#", "device", "kind", "backend", "driver", ">largest buffer"];
    output::table(&titles, &["largest buffer", "driver", "kind"], rows)
}
