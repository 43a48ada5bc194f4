use super::args::{self, DeviceArgs, ForceArgs, ModelArgs, SizeArgs};
use super::output;
use super::progress::Progress;
use super::source::SourceArgs;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use thawline::export::{FOLDED, Folded, Folding, Kept};
use thawline::formats::Save;
use thawline::formats::onnx::About;
use thawline::gpu::{Device, Parameters};
use thawline::graph::{Graph, Stats};
use thawline::plan::Input;
use thawline::rng::Rng;
use thawline::tensor::HostTensor;
use thawline::train::{self, Evaluator, Images, PADDING, Probe};
use thawline::weights::{self, layout};

/// Fold the batch norms of a trained network into its convolutions, and write it as safetensors or ONNX.
///
/// Inference normalises by running statistics, which do not change any more: a batch norm is then a factor and a shift for
/// each channel, which the convolution before it takes over. Every layer that stays keeps its name. What was folded gives
/// the logits that the network gave before, or nothing is written. It cannot be unfolded: keep the weights that it came
/// from for further training.
///
/// A folded safetensors file is for `eval`, `predict`, `inspect`, and policies that do not speak of batch norms. An ONNX
/// file takes `images`, [batch, 3, height, width], normalised as its metadata says, and gives `logits`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline fold --weights run/best.safetensors --out folded.safetensors
  thawline fold --weights resnet18.pth --out resnet18.onnx --batch 1")]
pub struct Args {
    /// The trained network: a safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub
    #[arg(long, value_name = "FILE|hf:OWNER/NAME")]
    weights: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    /// The network, if the file does not tell
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Where the result goes: FILE.safetensors or FILE.onnx
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
    /// Write the network as it is, with its batch norms in inference mode; for ONNX
    #[arg(long)]
    no_fold: bool,
    #[command(flatten)]
    size: SizeArgs,
    /// Fix the number of images in a batch, for ONNX [default: any]
    #[arg(long, value_name = "N", value_parser = args::positive)]
    batch: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: {model, size, out, bytes, folded: [{batch_norm, into}], kept: [{batch_norm, reason}], difference}
    #[arg(long)]
    json: bool,
}

/// How far folding may move the logits, as a share of the largest of them. Rounding moves them by about 1e-6; a thousand
/// times that is a broken file.
pub(super) const TOLERANCE: f32 = 1e-3;

/// Images that are compared.
const IMAGES: usize = 4;

pub fn run(args: Args) -> Result<()> {
    let (file, out) = (args.weights.display(), args.out.display());
    // A copy has the layers of its original.
    let save = &args::check_format(&args.out, |save| !matches!(save, Save::Copy(_)))?.facts().save;
    let as_tensors = matches!(save, Save::Tensors(_));
    if as_tensors && args.no_fold {
        bail!("--no-fold is for ONNX: as safetensors, {file} is the unfolded network already");
    }
    if as_tensors && args.batch.is_some() {
        bail!("--batch is for ONNX: a safetensors file has no batch");
    }
    args::check_distinct(("--out", &args.out), ("--weights", &args.weights))?;
    args::check_output(&args.out, args.force)?;
    let progress = Progress::new("reading the weights");
    let model = ModelArgs {
        model: args.model,
        weights: Some(args.weights.clone()),
        source: args.source,
        classes: None,
        seed: 0,
    };
    let mut model = model.read()?;
    if model.folded && (args.no_fold || as_tensors) {
        bail!("{file} is folded already");
    }
    let size = model.size(args.size.size);
    let mut metadata = model.metadata(size)?;
    let network = model.network(IMAGES, size)?;
    let tensors = model.tensors(&network)?;
    train::check_finite(&network, &tensors).with_context(|| file.to_string())?;

    progress.at("folding, and comparing the logits", 0, 0);
    let result = match args.no_fold || model.folded {
        true => Outcome { network, tensors, folded: Vec::new(), kept: Vec::new(), difference: None },
        false => folded(&args.device.open()?, network, &tensors).with_context(|| file.to_string())?,
    };

    match save {
        Save::Tensors(save) => {
            let mut state = weights::to_state(&result.network, &result.tensors);
            metadata
                .extend([("model", &*model.spec.name), (FOLDED, "true")].map(|(k, v)| (k.to_owned(), v.to_owned())));
            state.metadata = metadata;
            save(&state, &args.out)?;
        }
        Save::Network(save) => {
            let about = About {
                model: &model.spec.name,
                preprocessing: model.spec.preprocessing.value,
                classes: model.class_names.as_deref(),
                batch: args.batch,
            };
            save(&args.out, &result.network, &result.tensors, &about)?;
        }
        Save::Copy(_) | Save::Never(_) => unreachable!("refused before anything was read"),
    }
    drop(progress);
    let bytes = fs::metadata(&args.out).with_context(|| format!("cannot read {out}"))?.len();
    if args.json {
        let folded = result.folded.iter().map(|f| json!({"batch_norm": f.norm, "into": f.into}));
        let kept = result.kept.iter().map(|k| json!({"batch_norm": k.norm, "reason": k.reason.to_string()}));
        return output::json(&json!({
            "model": model.spec.name,
            "size": [size.height, size.width],
            "out": out.to_string(),
            "bytes": bytes,
            "folded": folded.collect::<Vec<_>>(),
            "kept": kept.collect::<Vec<_>>(),
            "difference": result.difference,
        }));
    }
    if let Some(difference) = result.difference {
        let folded = result.folded.iter().map(|f| vec![f.norm.clone(), f.into.clone()]);
        let kept = result.kept.iter().map(|k| vec![k.norm.clone(), format!("stays: {}", k.reason)]);
        output::table(&["batch norm", "folded into"], &[], folded.chain(kept))?;
        output::prose(format_args!(
            "{} folded, {} kept; the logits of {IMAGES} random images differ by {difference:.1e} of the largest at most",
            result.folded.len(),
            result.kept.len()
        ))?;
    }
    output::line(format_args!("{out}: {}, {}", model.spec.name, output::bytes(bytes)))
}

/// What is to be written, and how it came about.
struct Outcome {
    network: Graph,
    tensors: Vec<HostTensor>,
    folded: Vec<Folded>,
    kept: Vec<Kept>,
    /// How far the logits are from those of the network before, in the largest of them; none if nothing was folded.
    difference: Option<f32>,
}

/// Folds `network`, and compares.
fn folded(device: &Device, network: Graph, tensors: &[HostTensor]) -> Result<Outcome> {
    let folding = Folding::of(&network)?;
    let folded = folding.tensors(tensors)?;
    // Inference would fold by itself: a probe normalises apart.
    let before = logits(&network, |images, labels| {
        let params = Parameters::upload(device, &network, tensors)?;
        let mut probe = Probe::new(device, &network, &params, Input::Values, |_| Stats::Running)?;
        Ok(probe.pass(images, labels)?.logits)
    })?;
    let after = logits(&folding.graph, |images, _| {
        Ok(Evaluator::new(device, &folding.graph, &folded, Input::Values)?.logits(images)?)
    })?;
    let difference = apart(&before, &after);
    if difference > TOLERANCE {
        bail!(
            "the logits would change by {difference:.1e} of the largest, more than {TOLERANCE:e}; running variances \
             next to zero, or weights that are vast, may be the reason"
        );
    }
    let Folding { graph: network, folded: gone, kept, .. } = folding;
    Ok(Outcome { network, tensors: folded, folded: gone, kept, difference: Some(difference) })
}

/// How far logits are from those of before, as a share of the largest.
pub(super) fn apart(before: &[f32], after: &[f32]) -> f32 {
    let largest = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).fold(0.0, f32::max);
    let apart = largest(&mut before.iter().zip(after).map(|(before, after)| before - after));
    apart / largest(&mut before.iter().copied()).max(f32::MIN_POSITIVE)
}

/// What `run` makes of random images, the same at every call; they have no labels.
pub(super) fn logits(network: &Graph, run: impl FnOnce(Images<'_>, &[u32]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let [n, h, w, c] = network.input_shape().context("the network has no input")?.0;
    let mut rng = Rng::new(0);
    let images: Vec<f32> = (0..n * c * h * w).map(|_| rng.range(-2.0, 2.0) as f32).collect();
    let images = layout::images_to_device(&images, [n, c, h, w]);
    let logits = run(Images::Values(&images), &vec![PADDING; n])?;
    if logits.iter().any(|logit| !logit.is_finite()) {
        bail!("the logits are not finite");
    }
    Ok(logits)
}
