//! `devices --check`.

use super::progress::Progress;
use super::{events, output};
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Instant;
use thawline::check::{Checker, KernelResult};
use thawline::gpu::{DeviceInfo, DeviceOptions};

/// Checks all kernels, or those of the names given.
pub fn run(options: &DeviceOptions, kernels: &[String], json: bool) -> Result<()> {
    events::begin(json, "devices --check")?;
    let progress = Progress::new("opening the device");
    let start = Instant::now();
    let checker = Checker::open(options)?;
    let wanted = |name: &str| kernels.is_empty() || kernels.iter().any(|kernel| kernel == name);
    let results = checker.run(
        |kernel| wanted(kernel.name),
        |at| {
            let [done, cases] = at.cases;
            let [family, families] = at.families;
            let stage = format!("{} ({} of {families})", at.family, family + 1);
            progress.at(&stage, done as u64, cases as u64);
        },
    );
    drop(progress);

    let info = checker.info();
    let count = |is: fn(&KernelResult) -> bool| results.iter().filter(|result| is(result)).count();
    let (wrong, unsupported) = (count(KernelResult::is_wrong), count(|result| result.unsupported.is_some()));
    let right = results.len() - wrong - unsupported;
    let seconds = start.elapsed().as_secs_f64();
    if json {
        let DeviceInfo { name, driver, backend, kind, .. } = info;
        events::result(&json!({
            "thawline": env!("CARGO_PKG_VERSION"),
            "device": {"name": name, "backend": backend, "driver": driver, "kind": kind},
            "seconds": seconds,
            "right": right,
            "wrong": wrong,
            "unsupported": unsupported,
            "kernels": results,
        }))?;
    } else {
        print(info, &results)?;
        let skipped = match unsupported {
            0 => String::new(),
            count => format!(", {count} not supported here"),
        };
        let of = results.len();
        output::line("")?;
        let of = output::quantity(of, "kernel");
        let verdict = format!("of {of}, {right} right{skipped}, {wrong} wrong; {seconds:.0} s");
        if wrong == 0 { output::good(verdict) } else { output::prose(verdict) }?;
    }
    if wrong > 0 {
        let names: Vec<&str> = results.iter().filter(|result| result.is_wrong()).map(|result| result.kernel).collect();
        bail!(
            "of {}, {wrong} wrong on {} ({}): {}; please report it with what `thawline devices --check --json` prints",
            output::quantity(results.len(), "kernel"),
            info.name,
            info.driver,
            names.join(", ")
        );
    }
    Ok(())
}

fn print(info: &DeviceInfo, results: &[KernelResult]) -> Result<()> {
    output::title(format_args!("kernels on {}, {} {}", info.name, info.backend, info.driver))?;
    let rows = results.iter().map(|result| {
        let tried = result.cases > result.skipped;
        let verdict = match (&result.failure, &result.unsupported) {
            (Some(failure), _) => {
                // A driver's message may have many lines.
                format!("WRONG: {}", failure.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            (None, Some(reason)) => format!("not supported here: {reason}"),
            (None, None) => "right".into(),
        };
        vec![
            result.kernel.into(),
            result.cases.to_string(),
            result.passed.to_string(),
            if tried { format!("{:.1e}", result.worst_error) } else { String::new() },
            if tried { format!("{:.0} %", 100.0 * result.worst_of_allowed) } else { String::new() },
            verdict,
        ]
    });
    let titles = ["kernel", ">cases", ">passed", ">worst relative error", ">of allowed", "result"];
    output::table(&titles, &["passed", "worst relative error", "of allowed", "cases"], rows)
}
