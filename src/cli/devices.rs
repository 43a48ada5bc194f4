use super::check;
use super::output;
use anyhow::Result;
use clap::builder::PossibleValuesParser;
use serde_json::json;
use thawline::gpu::{self, DeviceOptions, GpuError};
use thawline::kernels::KERNELS;

/// List the devices that can compute, the default first; with --check, say which kernels are right on one
///
/// Real GPUs come before drivers that compute on the CPU. --device takes an index or a part of a name. With --check every
/// kernel runs on the device over odd shapes and is compared with a reference on the host, with bounds checks and without,
/// which takes about a minute. The exit code is 1 if a kernel is wrong.
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
    /// Print JSON: a list of {index, name, backend, driver, kind, largest_buffer, default}; with --check {thawline, device:
    /// {name, backend, driver, kind}, seconds, right, wrong, unsupported, kernels: [{kernel, cases, passed, skipped,
    /// worst_error, worst_of_allowed, failure, unsupported}]}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.check {
        let options = DeviceOptions { select: args.device, ..DeviceOptions::default() };
        return check::run(&options, &args.kernels, args.json);
    }
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
    output::line(output::table(&[">#", "device", "kind", "backend", "driver", ">largest buffer"], rows))
}
