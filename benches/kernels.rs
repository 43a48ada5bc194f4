//! What each kernel of a training step makes of the device: GFLOP/s, GB/s, and the share of the roofline, which is as fast as a
//! large convolution and a plain addition are there. Each call is measured by the device's own clock.
//!
//!     cargo bench --bench kernels                            # on the default device
//!     cargo bench --bench kernels -- --save-baseline before
//!     cargo bench --bench kernels -- --baseline before       # with what has changed since
//!
//! Baselines are in target/kernels.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use thawline::compile::{self, Optimizer, Options};
use thawline::gpu::{Device, DeviceOptions, Executor, Parameters};
use thawline::graph::{Phase, Sgd};
use thawline::kernels::StepScalars;
use thawline::plan::{Input, Plan, Roofline, Storage};
use thawline::policy::{Policy, resolve};
use thawline::{models, weights};

const NETWORKS: [&str; 3] = ["resnet50", "efficientnet_b0", "mobilenet_v3_large"];
const SIZE: usize = 64;
const BATCH: usize = 8;
const RUNS: usize = 5;

/// All calls of one kernel in a step.
#[derive(Default)]
struct Total {
    calls: usize,
    ms: f64,
    roofline_ms: f64,
    flops: u64,
    bytes: u64,
}

/// Milliseconds by `NETWORK KERNEL`.
type Baseline = BTreeMap<String, f64>;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let file = |option: &str| {
        let name = args.iter().position(|arg| arg == option).and_then(|at| args.get(at + 1))?;
        Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/kernels").join(format!("{name}.json")))
    };
    let before: Baseline = match file("--baseline") {
        Some(path) => {
            serde_json::from_slice(&fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?)?
        }
        None => Baseline::new(),
    };
    let device = Device::open(&DeviceOptions::default())?;
    let roofline = device.roofline()?;
    println!(
        "{}, {} convolutions, {:.1} GFLOP/s, {:.1} GB/s, {:.1} µs a call",
        device.info().name,
        device.variant()?.name(),
        roofline.flops_per_s / 1e9,
        roofline.bytes_per_s / 1e9,
        roofline.call_ms * 1e3
    );
    let mut now = Baseline::new();
    for name in NETWORKS {
        println!("\n{name}, a step of {BATCH} images of {SIZE} × {SIZE}, medians of {RUNS}");
        println!(
            "{:<30} {:>5} {:>9} {:>9} {:>8} {:>9} {:>8}",
            "kernel", "calls", "ms", "GFLOP/s", "GB/s", "roofline", "before"
        );
        for (kernel, total) in measure(&device, name, &roofline)? {
            let key = format!("{name} {kernel}");
            let rate = |amount: u64| amount as f64 / total.ms / 1e6;
            let change =
                before.get(&key).map_or_else(String::new, |ms| format!("{:+.0} %", 100.0 * (total.ms / ms - 1.0)));
            println!(
                "{kernel:<30} {:>5} {:>9.3} {:>9.1} {:>8.1} {:>7.0} % {change:>8}",
                total.calls,
                total.ms,
                rate(total.flops),
                rate(total.bytes),
                100.0 * total.roofline_ms / total.ms
            );
            now.insert(key, total.ms);
        }
    }
    if let Some(path) = file("--save-baseline") {
        fs::create_dir_all(path.parent().ok_or("a folder")?)?;
        fs::write(&path, serde_json::to_vec_pretty(&now)?)?;
    }
    Ok(())
}

/// The kernels of a step under `full`, the most expensive first.
fn measure(device: &Device, name: &str, roofline: &Roofline) -> Result<Vec<(&'static str, Total)>, Box<dyn Error>> {
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false };
    let options = Options::new(Optimizer::Sgd(sgd));
    let network = resolve(&Policy::recipe("full")?, models::build(name, BATCH, (SIZE, SIZE), 1000)?)?.graph;
    let parameters = Parameters::upload(device, &network, &weights::initialise(&network, 0))?;
    let plan = Plan::new(compile::training(network, &options)?, Input::Values, device.variant()?);
    let executor = Executor::new(device, plan, &parameters)?;
    let slot = |storage| executor.plan().slot(storage).ok_or("a step has images and scalars");
    let images: Vec<f32> = (0..executor.plan().slots[slot(Storage::Images)?.index()].words)
        .map(|i| (i * 7919 % 1000) as f32 * 0.002 - 1.0)
        .collect();
    executor.write(slot(Storage::Images)?, bytemuck::cast_slice(&images))?;
    // A rate of 0 would write no parameter.
    let scalars = StepScalars { lr: 1e-3, inv_count: 1.0 / BATCH as f32, ..Default::default() };
    executor.write(slot(Storage::Step)?, bytemuck::bytes_of(&scalars))?;
    let step = [Phase::Forward, Phase::Backward, Phase::Update];
    executor.run(&[Phase::Once])?;
    executor.run(&step)?;
    executor.wait()?;
    let mut times: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for _ in 0..RUNS {
        let calls = executor.profile(&step)?.ok_or("the device has no timestamps")?;
        calls.into_iter().for_each(|(call, ms)| times.entry(call).or_default().push(ms));
    }
    let mut totals: BTreeMap<&'static str, Total> = BTreeMap::new();
    for (index, mut times) in times {
        let call = &executor.plan().calls[index];
        times.sort_by(f64::total_cmp);
        let total = totals.entry(call.kernel.name).or_default();
        total.calls += 1;
        total.ms += times[times.len() / 2];
        total.roofline_ms += roofline.call(call.cost);
        total.flops += call.cost.flops;
        total.bytes += call.cost.bytes;
    }
    let mut totals: Vec<(&'static str, Total)> = totals.into_iter().collect();
    totals.sort_by(|(_, a), (_, b)| b.ms.total_cmp(&a.ms));
    Ok(totals)
}
