use super::args::{self, DeviceArgs, ForceArgs, ModelArgs, OptimizerArgs, Size};
use super::progress::Progress;
use super::{events, output};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use thawline::gpu::Device;
use thawline::graph::{Graph, Groups, LayerKind, Op};
use thawline::kernels::conv2d::{self, Epilogue};
use thawline::kernels::{Window, depthwise, grouped, sum_partials};
use thawline::lab::{Grid, LabError};
use thawline::plan::Roofline;
use thawline::policy::Policy;
use thawline::preprocessing::Parts;
use thawline::report::{Against, BenchResult, Benchmark, Disagreement, bench_page};
use thawline::tensor::Shape;
use thawline::train::Measurement;
use thawline::weights::write_atomically;

/// Measure inference and a training step under policies, at several thaw depths and batch sizes, on random data
///
/// Each policy is measured at each depth with each batch size, beside what its plan predicts. Times are medians after a
/// warm-up. A combination that is not possible (refused by the policy, or too large for the device) is reported with the
/// reason, and the others still run. Combinations with identical layer settings are measured once. With --kernels, measure
/// instead every kind of convolution that the model has: forward, input gradient and weight gradient.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline bench --model resnet18 --batch 8 --size 64 \\
    --policy full --policy head --policy bn-only
  thawline bench --model resnet18 --batch 1,8,32 --policy head \\
    --thaw none,layer4,layer3 --out here.json --page here.html
  thawline bench --model resnet18 --batch 8 --against there.json
  thawline bench --kernels")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[arg(
        long = "policy",
        value_name = "NAME|FILE.toml",
        help = args::policy_help("A policy to measure", "; repeatable [default: full]")
    )]
    policies: Vec<String>,
    /// Thaw from this layer, block or module on: all weights from there to the end train (from:LAYER -> weights=train,
    /// after the policy's own rules), and batch norms do what the policy says; none is the policy as it is; repeatable, or
    /// a list with commas [default: none]
    #[arg(long, value_name = "LAYER|none", value_delimiter = ',')]
    thaw: Vec<String>,
    /// A rule that comes after each policy's own and after --thaw's; repeatable
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    /// Images per batch; repeatable, or a list with commas [default: 8, with --kernels 4]
    #[arg(long, value_name = "N", value_parser = args::positive, value_delimiter = ',')]
    batch: Vec<usize>,
    /// Image size in pixels, N or HxW [default: the model's: 224, or 16 for resnet_tiny]
    #[arg(long, value_name = "N|HxW")]
    size: Option<Size>,
    /// Runs to take the median of
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = args::positive)]
    repeat: usize,
    /// Skip, and list as skipped, combinations that are not predicted to finish within this many seconds of the start
    #[arg(long, value_name = "SECONDS", value_parser = args::positive)]
    time_limit: Option<usize>,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// Write all numbers, and what they were measured on, to this file: to send around, or to compare with
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Write a page to look at, one file that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,
    #[command(flatten)]
    force: ForceArgs,
    /// Compare with a file that --out, or --json with --quiet, wrote, here or elsewhere: whatever combinations both have;
    /// repeatable
    #[arg(long, value_name = "FILE.json")]
    against: Vec<PathBuf>,
    /// Measure single convolutions, of --model or of resnet18
    #[arg(long, conflicts_with_all = [
        "policies", "thaw", "rules", "time_limit", "out", "page", "against", "optimizer", "momentum", "nesterov", "weight_decay",
        "decoupled_decay", "label_smoothing",
    ])]
    kernels: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: one event per line, the last with all numbers
    ///
    /// The last has {device, driver, backend, kind, host, thawline, build, date, variant, classes, optimizer, rules, roofline:
    /// {flops_per_s, bytes_per_s, call_ms, run_ms}, results: [{model, policy, thaw, batch, size, inference_ms, step_ms,
    /// inference_runs_ms, step_runs_ms: {count, least, lower, upper, most}, first_step_ms, images_per_s, planned_bytes,
    /// kept_bytes, allocated_bytes, kernels, inference_kernels: [{kernel, calls, ms, of_roofline}], predicted: {step, inference: {flops,
    /// moved_bytes, kept_bytes, planned_bytes, calls, ms, kernels}}, same_as, error}], peak_rss_bytes, against: [{file,
    /// disagree: [{what, here, there}], untold, pairs: [{model, policy, thaw, batch, size, inference, step: {here_ms, there_ms,
    /// ratio, clear}, allocated}], only_here, only_there}]}; with --kernels {device, variant, convolutions: [{layers, input,
    /// output, kernel, stride, forward, input_grad, weight_grad: {ms, gflops}}]}. docs/events.md describes all events; with
    /// --quiet, only the last is printed.
    #[arg(long)]
    json: bool,
}

/// The word for the policy as it is.
const NO_THAW: &str = "none";

/// Of so many combinations the kernels are printed; of more, the page and the JSON tell.
const KERNEL_TABLES: usize = 8;

pub fn run(args: Args) -> Result<()> {
    if args.kernels { convolutions(args) } else { policies(args) }
}

fn policies(args: Args) -> Result<()> {
    let out = args.out.as_deref().map(|file| ("--out", file));
    let page = args.page.as_deref().map(|file| ("--page", file));
    let weights = args.model.weights.as_deref().map(|file| ("--weights", file));
    let against = args.against.iter().map(|file| ("--against", file.as_path()));
    if let Some(page) = page {
        against.chain(out).chain(weights).try_for_each(|other| args::check_distinct(page, other))?;
    }
    if let Some((out, weights)) = out.zip(weights) {
        args::check_distinct(out, weights)?;
    }
    for file in args.out.iter().chain(&args.page) {
        args::check_output(file, args.force)?;
    }
    events::begin(args.json, "bench")?;
    let progress = Progress::new("reading the network");
    let others: Vec<Benchmark> = args.against.iter().map(|file| Benchmark::read(file)).collect::<Result<_, _>>()?;
    let options = args.optimizer.options(0.9)?;
    let mut model = args.model.read_for_training(Parts::default(), None)?;
    let size = model.size(args.size);
    let batches = unique(args.batch, 8);
    let policies = unique(args.policies, "full".to_owned());
    let thaw = unique(args.thaw, NO_THAW.to_owned());
    let grid = Grid {
        model: model.spec.name.to_string(),
        policies: policies.iter().map(|policy| Policy::load(policy)).collect::<Result<_, _>>()?,
        thaw: thaw.into_iter().map(|layer| (layer != NO_THAW).then_some(layer)).collect(),
        rules: args.rules,
        networks: batches.iter().map(|&batch| Ok(model.network(batch, size)?)).collect::<Result<_>>()?,
        options,
        repeat: args.repeat,
        limit: args.time_limit.map(|seconds| Duration::from_secs(seconds as u64)),
    };
    // All combinations are looked at before the first is measured.
    let combinations = grid.combinations().map_err(|error| match error {
        LabError::Policy { .. } => args::explained(error, &grid.networks[0]),
        _ => error.into(),
    })?;
    for policy in grid.policies.iter().filter(|policy| !policy.stages.is_empty()) {
        output::warning(format_args!("{} changes in the course of a run; this is its first stage", policy.name));
    }
    for combination in combinations.iter().filter(|combination| combination.same_as.is_none()) {
        for warning in combination.resolved.iter().flat_map(|resolved| &resolved.warnings) {
            output::warning(format_args!("{}: {warning}", combination.label()));
        }
    }
    let tensors = model.tensors(&grid.networks[0])?;
    let device = args.device.open()?;
    let (mut done, of) = (0, combinations.len() as u64);
    progress.at("combinations", done, of);
    let measured = grid.measure(&device, &tensors, &combinations, |_| {
        done += 1;
        progress.at("combinations", done, of);
    });
    drop(progress);
    let benchmark = Benchmark { peak_rss_bytes: peak_rss(), ..measured? };

    let files = args.against.iter().map(|file| file.display().to_string());
    let against: Vec<Against> = files.zip(&others).map(|(file, other)| benchmark.against(&file, other)).collect();
    // What took so long to measure is shown even if a file cannot be written, and one file even if the other cannot.
    let printed = match args.json {
        true => events::result(&Report { benchmark: &benchmark, against: &against }),
        false => print(&benchmark, &against),
    };
    let out = args.out.map_or(Ok(()), |out| Ok(benchmark.write(&out)?));
    let page = args.page.map_or(Ok(()), |page| {
        let html = bench_page(&benchmark, &against);
        write_atomically(&page, |file| file.write_all(html.as_bytes()))
            .with_context(|| format!("cannot write {}", page.display()))
    });
    out.and(page).and(printed)
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    benchmark: &'a Benchmark,
    against: &'a [Against],
}

/// Each value once, in the order of its first coming; the default if there are none.
fn unique<T: PartialEq>(values: Vec<T>, default: T) -> Vec<T> {
    let mut unique = Vec::new();
    for value in values {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    if unique.is_empty() { vec![default] } else { unique }
}

fn print(benchmark: &Benchmark, against: &[Against]) -> Result<()> {
    let Benchmark { device, variant, results, .. } = benchmark;
    let measured = || results.iter().filter_map(|result| Some((result, result.measured.as_ref()?)));
    if let Some(BenchResult { model, size: [height, width], .. }) = results.first() {
        let size = Size { height: *height, width: *width };
        output::title(format_args!("{model}, images of {size} px, {variant} convolutions, on {device}"))?;
    }
    let rows = measured().map(|(result, m)| {
        let mut row = cells(&result.policy, result.thaw.as_deref(), result.batch);
        row.extend([
            output::ms(m.inference_ms),
            output::ms(m.step_ms),
            output::times(m.step_ms / m.inference_ms),
            format!("{:.1}", m.images_per_s),
            output::ms(m.first_step_ms),
            output::bytes(m.kept_bytes),
            output::bytes(m.planned_bytes),
            output::bytes(m.allocated_bytes),
        ]);
        row
    });
    let titles =
        [">inference", ">step", ">step/inference", ">images/s", ">first step", ">kept", ">planned", ">allocated"];
    let spare = ["first step", "planned", "kept", "allocated", "step/inference", "images/s", "thaw"];
    output::table(&[&KEY[..], &titles].concat(), &spare, rows)?;
    for result in results.iter().filter(|result| result.error.is_some() || result.same_as.is_some()) {
        let label = format!("{}, batch {}", result.label(), result.batch);
        match (&result.error, &result.same_as) {
            (Some(error), _) => output::prose(format_args!("{label}: {error}"))?,
            (None, same) => {
                output::prose(format_args!("{label}: the same as {}", same.as_deref().unwrap_or_default()))?;
            }
        }
    }
    predictions(benchmark)?;
    for against in against {
        compared(against)?;
    }
    let own = || measured().filter(|(result, _)| result.same_as.is_none());
    if own().count() <= KERNEL_TABLES {
        for (result, measured) in own() {
            output::line("")?;
            output::title(format_args!("kernels of a step under {}, batch {}", result.label(), result.batch))?;
            kernels(measured)?;
        }
    }
    if let Some(bytes) = benchmark.peak_rss_bytes {
        output::line("")?;
        output::line(format_args!("peak memory of the process: {}", output::bytes(bytes)))?;
    }
    Ok(())
}

/// What tells the rows of a table apart.
const KEY: [&str; 3] = ["policy", "thaw", ">batch"];

fn cells(policy: &str, thaw: Option<&str>, batch: usize) -> Vec<String> {
    vec![policy.into(), thaw.unwrap_or(NO_THAW).into(), batch.to_string()]
}

fn predictions(benchmark: &Benchmark) -> Result<()> {
    let Some(Roofline { flops_per_s, bytes_per_s, call_ms, run_ms }) = benchmark.roofline else { return Ok(()) };
    let rows = benchmark.results.iter().filter_map(|result| {
        let predicted = result.predicted.as_ref()?;
        let ratios = result.ratios().map(|ratios| ratios.map(output::times)).unwrap_or_default();
        let mut row = cells(&result.policy, result.thaw.as_deref(), result.batch);
        let [inference, step, memory] = ratios;
        let planned = predicted.step.total.planned_bytes;
        let times = [output::ms(predicted.inference.ms), inference, output::ms(predicted.step.ms), step];
        row.extend(times.into_iter().chain([output::bytes(planned), memory]));
        Some(row)
    });
    let titles = [">inference", ">inference ratio", ">step", ">step ratio", ">memory", ">memory ratio"];
    let spare = ["memory", "memory ratio", "inference", "inference ratio", "step", "thaw"];
    output::line("")?;
    output::title("predicted, and measured over predicted")?;
    output::table(&[&KEY[..], &titles].concat(), &spare, rows)?;
    output::prose(format_args!(
        "by {:.1} GFLOP/s, {:.1} GB/s, {:.1} µs a call and {:.0} µs a run, as measured on the device",
        flops_per_s / 1e9,
        bytes_per_s / 1e9,
        call_ms * 1e3,
        run_ms * 1e3
    ))
}

fn compared(against: &Against) -> Result<()> {
    output::line("")?;
    output::title(format_args!("against {}", against.file))?;
    for Disagreement { what, here, there } in &against.disagree {
        output::prose(format_args!("{what}: {here} here, {there} there"))?;
    }
    if !against.untold.is_empty() {
        output::prose(format_args!("told by one of them only: {}", against.untold.join(", ")))?;
    }
    if against.pairs.is_empty() {
        return output::prose("no combination of model, policy, thaw depth, batch and size is in both");
    }
    let rows = against.pairs.iter().map(|pair| {
        let mut row = cells(&pair.policy, pair.thaw.as_deref(), pair.batch);
        for change in [pair.inference, pair.step] {
            let noise = match change.clear {
                Some(true) => "",
                Some(false) => "within the noise",
                None => "noise unknown",
            };
            row.extend([output::ms(change.there_ms), output::ms(change.here_ms), output::times(change.ratio)]);
            row.push(noise.into());
        }
        row.push(pair.allocated.map(output::times).unwrap_or_default());
        row
    });
    let titles = [
        ">inference there",
        ">inference here",
        ">inference ratio",
        "inference noise",
        ">step there",
        ">step here",
        ">step ratio",
        "step noise",
        ">memory ratio",
    ];
    // Of a pair of times the ratio says most.
    let spare = [
        "inference there",
        "inference here",
        "step there",
        "step here",
        "memory ratio",
        "inference noise",
        "inference ratio",
        "thaw",
    ];
    output::table(&[&KEY[..], &titles].concat(), &spare, rows)?;
    if against.only_here + against.only_there > 0 {
        let Against { only_here, only_there, .. } = against;
        output::line(format_args!("without a counterpart: {only_here} here, {only_there} there"))?;
    }
    Ok(())
}

fn kernels(measured: &Measurement) -> Result<()> {
    let total: f64 = measured.kernels.iter().filter_map(|k| k.ms).sum();
    let rows = measured.kernels.iter().map(|k| {
        let (ms, share) = match k.ms {
            Some(ms) if total > 0.0 => (output::ms(ms), format!("{:.0} %", 100.0 * ms / total)),
            _ => Default::default(),
        };
        let of_roofline = k.of_roofline.map(|part| format!("{:.0} %", 100.0 * part)).unwrap_or_default();
        vec![k.kernel.clone(), k.calls.to_string(), ms, share, of_roofline]
    });
    let titles = ["kernel", ">calls", ">time", ">share", ">of the roofline"];
    output::table(&titles, &["of the roofline", "calls"], rows)
}

/// The most memory that the process ever had, in bytes, where the system tells.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[derive(Serialize)]
struct ConvResult {
    /// The layers that are such a convolution.
    layers: Vec<String>,
    /// Images, height, width, channels.
    input: [usize; 4],
    output: [usize; 4],
    kernel: [usize; 2],
    stride: [usize; 2],
    groups: usize,
    #[serde(flatten)]
    speeds: Speeds,
    /// Of a depthwise convolution the same by the grouped kernels, in groups of four channels.
    by_groups: Option<Speeds>,
}

#[derive(Serialize)]
struct Speeds {
    forward: Speed,
    input_grad: Speed,
    /// With the sum over its parts.
    weight_grad: Speed,
}

#[derive(Serialize)]
struct Speed {
    ms: f64,
    /// 10⁹ floating-point operations a second; padding is not counted as work.
    gflops: f64,
    /// 10⁹ bytes of input, output and weights a second, each counted once.
    gbytes: f64,
}

/// A convolution of a network as its kernels see it.
#[derive(Clone, Copy, PartialEq)]
struct Convolution {
    x: Shape,
    out: Shape,
    window: Window,
    groups: Groups,
}

fn convolutions(mut args: Args) -> Result<()> {
    if args.model.weights.is_none() {
        args.model.model.get_or_insert_with(|| "resnet18".into());
    }
    let batch = match args.batch[..] {
        [] => 4,
        [batch] => batch,
        _ => bail!("--kernels measures with one --batch"),
    };
    events::begin(args.json, "bench --kernels")?;
    let progress = Progress::new("reading the network");
    let model = args.model.read_for_training(Parts::default(), None)?;
    let network = model.network(batch, model.size(args.size))?;
    let device = args.device.open()?;
    let mut results = Vec::new();
    let convolutions = distinct_convolutions(&network);
    let of = convolutions.len() as u64;
    for (layers, convolution) in convolutions {
        progress.at("convolutions", results.len() as u64, of);
        results.push(measure_convolution(&device, layers, convolution, args.repeat)?);
    }
    drop(progress);
    let (variant, device) = (device.variant()?.name(), device.info().name.clone());
    if args.json {
        return events::result(&json!({"device": device, "variant": variant, "convolutions": results}));
    }
    output::title(format_args!("convolutions of {}, {variant} kernels, on {device}", model.spec.name))?;
    let rows = results.iter().map(|r| {
        let [n, h, w, cin] = r.input;
        // What a depthwise convolution takes is the way to memory, not the arithmetic.
        let speed = |speed: fn(&Speeds) -> &Speed| match &r.by_groups {
            None => format!("{:.1} GFLOP/s", speed(&r.speeds).gflops),
            Some(grouped) => format!(
                "{:.1} GB/s, {:.1} times grouped",
                speed(&r.speeds).gbytes,
                speed(grouped).ms / speed(&r.speeds).ms
            ),
        };
        let groups = if r.groups > 1 { format!(" in {}", r.groups) } else { String::new() };
        vec![
            format!("{}×{} {cin}→{}{groups} stride {}", r.kernel[0], r.kernel[1], r.output[3], r.stride[0]),
            format!("{n}×{h}×{w}"),
            speed(|s| &s.forward),
            speed(|s| &s.input_grad),
            speed(|s| &s.weight_grad),
            match r.layers.len() {
                1 => r.layers[0].clone(),
                more => format!("{} and {} more", r.layers[0], more - 1),
            },
        ]
    });
    let mut titles = ["convolution", ">input", ">forward", ">input grad", ">weight grad", "layers"];
    if results.iter().any(|result| result.by_groups.is_some()) {
        // What is more than a number may wrap.
        titles[2..5].copy_from_slice(&["forward", "input grad", "weight grad"]);
    }
    output::table(&titles, &["layers", "input"], rows)
}

/// Each kind of convolution in the network and the layers that are one; the 3×3 ones first.
fn distinct_convolutions(network: &Graph) -> Vec<(Vec<String>, Convolution)> {
    let mut found: Vec<(Vec<String>, Convolution)> = Vec::new();
    for (_, node) in network.nodes() {
        let (Op::Conv2d(conv), Some(layer)) = (node.op, node.layer) else { continue };
        let layer = &network.layers()[layer.index()];
        if layer.kind != LayerKind::Conv {
            continue;
        }
        let x = network.node(node.inputs[0]).shape;
        let convolution = Convolution { x, out: node.shape, window: conv.window, groups: conv.groups };
        match found.iter_mut().find(|(_, known)| *known == convolution) {
            Some((layers, _)) => layers.push(layer.name.clone()),
            None => found.push((vec![layer.name.clone()], convolution)),
        }
    }
    found.sort_by_key(|(_, convolution)| convolution.window.kernel != [3, 3]);
    found
}

fn measure_convolution(
    device: &Device,
    layers: Vec<String>,
    convolution: Convolution,
    repeat: usize,
) -> Result<ConvResult> {
    let Convolution { x, out, window, groups } = convolution;
    // The same tensors in groups of four channels: weights that are zero off each group's diagonal make it the same.
    let whole = |shape: Shape| Shape::nhwc(shape.n(), shape.h(), shape.w(), shape.stored_c());
    let by_groups = match groups {
        Groups::Depthwise => {
            let groups = Groups::Several(x.quads());
            Some(measure_kernels(device, Convolution { x: whole(x), out: whole(out), groups, ..convolution }, repeat)?)
        }
        Groups::One | Groups::Several(_) => None,
    };
    Ok(ConvResult {
        layers,
        input: x.0,
        output: out.0,
        kernel: window.kernel,
        stride: window.stride,
        groups: groups.count(out.c()),
        speeds: measure_kernels(device, convolution, repeat)?,
        by_groups,
    })
}

fn measure_kernels(device: &Device, convolution: Convolution, repeat: usize) -> Result<Speeds> {
    let Convolution { x, out, window: g, groups } = convolution;
    let (variant, epilogue) = (device.variant()?, Epilogue::default());
    let [kh, kw] = g.kernel;
    let (rows, channels) = match groups {
        Groups::One => (x.stored_c(), x.c()),
        Groups::Several(groups) => (x.c() / groups, x.c() / groups),
        Groups::Depthwise => (1, 1),
    };
    let weights = kh * kw * rows * out.stored_c();
    let (input, output) = (x.stored_len(), out.stored_len());
    let flops = 2.0 * (out.pixels() * out.c() * channels * kh * kw) as f64;
    let bytes = 4.0 * (input + output + weights) as f64;
    let speed = |ms: f64| Speed { ms, gflops: flops / ms / 1e6, gbytes: bytes / ms / 1e6 };
    let (forward, input_grad, splits, weight_grad) = match groups {
        Groups::One => (
            conv2d::forward(variant, x, out, g, epilogue),
            conv2d::input_grad(variant, x, out, g, false),
            conv2d::weight_grad_splits(variant, x, out, g),
            conv2d::weight_grad(variant, x, out, g),
        ),
        Groups::Several(groups) => (
            grouped::forward(x, out, g, groups, epilogue),
            grouped::input_grad(x, out, g, groups, false),
            grouped::weight_grad_splits(x, out, g, groups),
            grouped::weight_grad(x, out, g, groups),
        ),
        Groups::Depthwise => (
            depthwise::forward(variant, x, out, g, epilogue),
            depthwise::input_grad(variant, x, out, g, false),
            depthwise::weight_grad_splits(variant, out, g),
            depthwise::weight_grad(variant, x, out, g),
        ),
    };
    // Bias, residual and mask are bound, but not used.
    let words = [input, weights, 4, 4, output, 4];
    let forward_ms = device.time(&forward, &words[..forward.kernel.bindings.len()], repeat)?;
    let input_grad_ms = device.time(&input_grad, &[output, weights, input], repeat)?;
    let mut weight_grad_ms = device.time(&weight_grad, &[input, output, weights * splits], repeat)?;
    if splits > 1 {
        weight_grad_ms +=
            device.time(&sum_partials::forward(variant, weights, splits), &[weights * splits, weights], repeat)?;
    }
    Ok(Speeds { forward: speed(forward_ms), input_grad: speed(input_grad_ms), weight_grad: speed(weight_grad_ms) })
}
