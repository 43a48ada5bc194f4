use super::args::{self, DeviceArgs, ModelArgs, OptimizerArgs, Size};
use super::output;
use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use thawline::gpu::Device;
use thawline::graph::{Graph, LayerKind, Op};
use thawline::kernels::conv2d::{self, Epilogue};
use thawline::kernels::{Geometry, sum_partials};
use thawline::tensor::Shape;
use thawline::train::{self, Measurement};

/// Measure inference and a training step under each policy asked for, on random data.
///
/// Times are medians after a warm-up. With --kernels, measure instead every kind of convolution that the model has:
/// forward, input gradient and weight gradient.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline bench --model resnet18 --batch 8 --size 64 --policy full --policy head --policy bn-only
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
    /// A rule that comes after each policy's own; repeatable
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    /// Images a batch [default: 8, with --kernels 4]
    #[arg(long, value_name = "N", value_parser = args::positive)]
    batch: Option<usize>,
    /// Image size in pixels, N or HxW [default: the model's: 224, or 16 for resnet_tiny]
    #[arg(long, value_name = "N|HxW")]
    size: Option<Size>,
    /// Runs to take the median of
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = args::positive)]
    repeat: usize,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// Measure single convolutions, of --model or of resnet18
    #[arg(long, conflicts_with_all = ["policies", "rules"])]
    kernels: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: {device, results: [{model, policy, batch, size, inference_ms, step_ms, first_step_ms, images_per_s,
    /// planned_bytes, kept_bytes, allocated_bytes, kernels, inference_kernels: [{kernel, calls, ms}]}], peak_rss_bytes};
    /// with --kernels {device, variant, convolutions: [{layers, input, output, kernel, stride, forward, input_grad, weight_grad:
    /// {ms, gflops}}]}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.kernels { convolutions(args) } else { policies(args) }
}

#[derive(Serialize)]
struct PolicyResult {
    model: &'static str,
    policy: String,
    batch: usize,
    /// Height and width, in pixels.
    size: [usize; 2],
    #[serde(flatten)]
    measured: Measurement,
}

fn policies(args: Args) -> Result<()> {
    let options = args.optimizer.options(0.9)?;
    let mut model = args.model.read()?;
    let (batch, size) = (args.batch.unwrap_or(8), model.size(args.size));
    let network = model.network(batch, size)?;
    let policies = if args.policies.is_empty() { vec!["full".into()] } else { args.policies };
    // All policies are looked at before the first is measured.
    let mut resolved = Vec::new();
    for policy in &policies {
        let policy = args::resolve(policy, &args.rules, network.clone())?;
        policy.check_training()?;
        resolved.push(policy);
    }
    let tensors = model.tensors(&network)?;
    let device = args.device.open()?;
    let mut results = Vec::new();
    for resolved in resolved {
        results.push(PolicyResult {
            model: model.spec.name,
            policy: resolved.policy,
            batch,
            size: [size.height, size.width],
            measured: train::measure(&device, resolved.graph, &tensors, options, args.repeat)?,
        });
    }
    let (device, memory) = (device.info().name.clone(), peak_rss());
    if args.json {
        return output::json(&json!({"device": device, "results": results, "peak_rss_bytes": memory}));
    }
    output::line(format_args!("{}, {batch} images of {size} px, on {device}", model.spec.name))?;
    let rows = results.iter().map(|PolicyResult { policy, measured: m, .. }| {
        vec![
            policy.clone(),
            output::ms(m.inference_ms),
            output::ms(m.step_ms),
            format!("{:.2}×", m.step_ms / m.inference_ms),
            format!("{:.1}", m.images_per_s),
            output::ms(m.first_step_ms),
            output::bytes(m.kept_bytes),
            output::bytes(m.planned_bytes),
            output::bytes(m.allocated_bytes),
        ]
    });
    let titles = [
        "policy",
        ">inference",
        ">step",
        ">step/inference",
        ">images/s",
        ">first step",
        ">kept",
        ">planned",
        ">allocated",
    ];
    output::line(output::table(&titles, rows))?;
    for result in &results {
        output::line(format_args!("\nkernels of a step under {}", result.policy))?;
        output::line(kernels(&result.measured))?;
    }
    if let Some(bytes) = memory {
        output::line(format_args!("\npeak memory of the process: {}", output::bytes(bytes)))?;
    }
    Ok(())
}

fn kernels(measured: &Measurement) -> String {
    let total: f64 = measured.kernels.iter().filter_map(|k| k.ms).sum();
    let rows = measured.kernels.iter().map(|k| {
        let (ms, share) = match k.ms {
            Some(ms) => (output::ms(ms), format!("{:.0} %", 100.0 * ms / total)),
            None => Default::default(),
        };
        vec![k.kernel.into(), k.calls.to_string(), ms, share]
    });
    output::table(&["kernel", ">calls", ">time", ">share"], rows)
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
}

fn convolutions(mut args: Args) -> Result<()> {
    if args.model.weights.is_none() {
        args.model.model.get_or_insert_with(|| "resnet18".into());
    }
    let model = args.model.read()?;
    let network = model.network(args.batch.unwrap_or(4), model.size(args.size))?;
    let device = args.device.open()?;
    let mut results = Vec::new();
    for (layers, x, out, geometry) in distinct_convolutions(&network) {
        results.push(measure_convolution(&device, layers, [x, out], geometry, args.repeat)?);
    }
    let (variant, device) = (device.variant()?.name(), device.info().name.clone());
    if args.json {
        return output::json(&json!({"device": device, "variant": variant, "convolutions": results}));
    }
    output::line(format_args!("convolutions of {}, {variant} kernels, on {device}", model.spec.name))?;
    let rows = results.iter().map(|r| {
        let [n, h, w, cin] = r.input;
        let speed = |s: &Speed| format!("{:.1} GFLOP/s", s.gflops);
        vec![
            format!("{}×{} {cin}→{} stride {}", r.kernel[0], r.kernel[1], r.output[3], r.stride[0]),
            format!("{n}×{h}×{w}"),
            speed(&r.forward),
            speed(&r.input_grad),
            speed(&r.weight_grad),
            match r.layers.len() {
                1 => r.layers[0].clone(),
                more => format!("{} and {} more", r.layers[0], more - 1),
            },
        ]
    });
    output::line(output::table(&["convolution", ">input", ">forward", ">input grad", ">weight grad", "layers"], rows))
}

/// Layers, input, output and window of each kind of convolution in the network; the 3×3 ones first.
fn distinct_convolutions(network: &Graph) -> Vec<(Vec<String>, Shape, Shape, Geometry)> {
    let mut found: Vec<(Vec<String>, Shape, Shape, Geometry)> = Vec::new();
    for (_, node) in network.nodes() {
        let (Op::Conv2d(conv), Some(layer)) = (node.op, node.layer) else { continue };
        let layer = &network.layers()[layer.index()];
        if layer.kind != LayerKind::Conv {
            continue;
        }
        let (x, out) = (network.node(node.inputs[0]).shape, node.shape);
        let window = conv.window;
        let geometry = Geometry { kernel: window.kernel, stride: window.stride, padding: window.padding };
        match found.iter_mut().find(|(_, a, b, g)| (*a, *b, *g) == (x, out, geometry)) {
            Some((layers, ..)) => layers.push(layer.name.clone()),
            None => found.push((vec![layer.name.clone()], x, out, geometry)),
        }
    }
    found.sort_by_key(|(.., geometry)| geometry.kernel != [3, 3]);
    found
}

fn measure_convolution(
    device: &Device,
    layers: Vec<String>,
    [x, out]: [Shape; 2],
    geometry: Geometry,
    repeat: usize,
) -> Result<ConvResult> {
    let variant = device.variant()?;
    let [kh, kw] = geometry.kernel;
    let flops = 2.0 * (out.pixels() * out.c() * x.c() * kh * kw) as f64;
    let speed = |ms: f64| Speed { ms, gflops: flops / ms / 1e6 };
    let weights = kh * kw * x.stored_c() * out.stored_c();
    let (input, output) = (x.stored_len(), out.stored_len());
    // Bias, residual and mask are bound, but not used.
    let words = [input, weights, 4, 4, output, 4];
    let forward = device.time(&conv2d::forward(variant, x, out, geometry, Epilogue::default()), &words, repeat)?;
    let input_grad =
        device.time(&conv2d::input_grad(variant, x, out, geometry, false), &[output, weights, input], repeat)?;
    let splits = conv2d::weight_grad_splits(variant, x, out, geometry);
    let mut weight_grad =
        device.time(&conv2d::weight_grad(variant, x, out, geometry), &[input, output, weights * splits], repeat)?;
    if splits > 1 {
        weight_grad += device.time(&sum_partials::forward(weights, splits), &[weights * splits, weights], repeat)?;
    }
    Ok(ConvResult {
        layers,
        input: x.0,
        output: out.0,
        kernel: geometry.kernel,
        stride: geometry.stride,
        forward: speed(forward),
        input_grad: speed(input_grad),
        weight_grad: speed(weight_grad),
    })
}
