use super::args::{self, DecodeArgs, DeviceArgs, ForceArgs, ModelArgs, PolicyArgs, Size, SizeArgs};
use super::inputs::Inputs;
use super::preprocess::PreprocessArgs;
use super::progress::Progress;
use super::{events, output};
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use thawline::data::{self, Loader, LoaderOptions, Mode, Sample};
use thawline::plan::Input;
use thawline::tensor::pad4;
use thawline::train::{Evaluator, Images};
use thawline::weights::{FileTensor, StateDict};

/// Classify images, or compute the logits of a batch from a file.
///
/// Class names come from the weights file, if `finetune` wrote it; else classes are numbers.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline predict --weights run/best.safetensors cat.jpg photos/ --top 3
  thawline predict --weights resnet18.pth --inputs batch.safetensors \\
    --out logits.safetensors")]
pub struct Args {
    /// Images, or folders of images
    #[arg(value_name = "PATHS", required_unless_present = "inputs", conflicts_with = "inputs")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Safetensors with `images` f32 [N, 3, H, W], used as they are, instead of images
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = UNUSED_BY_INPUTS)]
    inputs: Option<PathBuf>,
    /// Where the `logits` f32 [N, classes] of --inputs go: safetensors
    #[arg(long, value_name = "FILE", requires = "inputs")]
    out: Option<PathBuf>,
    #[command(flatten)]
    force: ForceArgs,
    /// How many classes to show for an image
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = args::positive)]
    top: usize,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = args::positive)]
    batch: usize,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Go on past images that cannot be decoded, and say how many there were
    #[arg(long)]
    skip_broken: bool,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: one event per line
    ///
    /// Of each image a `prediction` event: {path, top: [{index, class, probability}]}; the last, `result`, has {images,
    /// skipped, predictions: a list of all}. docs/events.md describes all events; with --quiet, only the last is printed.
    #[arg(long)]
    json: bool,
}

/// Options that have no meaning for values that are used as they are.
const UNUSED_BY_INPUTS: [&str; 11] =
    ["json", "size", "top", "skip_broken", "exif", "max_pixels", "resize", "crop", "interpolation", "mean", "std"];

#[derive(Serialize)]
struct Prediction {
    path: String,
    /// The likeliest first.
    top: Vec<Candidate>,
}

#[derive(Serialize)]
struct Candidate {
    index: usize,
    /// Its name, if the weights file tells.
    class: Option<String>,
    probability: f64,
}

pub fn run(args: Args) -> Result<()> {
    match (&args.inputs, &args.out) {
        (Some(inputs), Some(out)) => logits(&args, inputs, out),
        _ => classify(args),
    }
}

fn logits(args: &Args, path: &PathBuf, out: &PathBuf) -> Result<()> {
    args::check_output(out, args.force)?;
    let mut model = args.model.read()?;
    let Inputs { dims: [n, _, height, width], images } = Inputs::of(&mut StateDict::load(path)?, path)?;
    let batch = args.batch.min(n);
    let graph = args.policy.resolve_for_inference(model.network(batch, Size { height, width })?)?;
    let tensors = model.tensors(&graph)?;
    let device = args.device.open()?;
    let mut evaluator = Evaluator::new(&device, &graph, &tensors, Input::Values)?;
    let mut logits = Vec::with_capacity(n * model.classes);
    for images in images.chunks(batch * height * width * pad4(3)) {
        let mut images = images.to_vec();
        images.resize(batch * height * width * pad4(3), 0.0);
        logits.extend(evaluator.logits(Images::Values(&images))?);
    }
    // The last batch may have been filled up.
    logits.truncate(n * model.classes);
    let mut state = StateDict::default();
    state.tensors.insert("logits".into(), FileTensor::f32([n, model.classes], logits));
    Ok(state.save(out)?)
}

fn classify(args: Args) -> Result<()> {
    events::begin(args.json, "predict")?;
    let progress = Progress::new("reading weights and images");
    let mut paths = Vec::new();
    for path in &args.paths {
        paths.extend(data::list_images(path)?);
    }
    let mut model = args.model.read_for(args.preprocess.parts(), args.size.size)?;
    let size = model.size(args.size.size);
    let batch = args.batch.min(paths.len());
    let graph = args.policy.resolve_for_inference(model.network(batch, size)?)?;
    let tensors = model.tensors(&graph)?;
    let transform = args::transform(&model.spec, size)?;
    let options = LoaderOptions {
        skip_broken: args.skip_broken,
        decode: args.decode.options(None),
        ..LoaderOptions::new(Mode::Eval, batch, 0)
    };
    let samples = paths.into_iter().map(|path| Sample { path, label: 0 }).collect();
    let loader = Loader::new(samples, transform, options)?;
    let device = args.device.open()?;
    let input = model.input();
    let mut evaluator = Evaluator::new(&device, &graph, &tensors, input)?;

    let names = model.class_names.unwrap_or_default();
    let mut predictions = Vec::with_capacity(loader.samples().len());
    let (mut done, mut skipped, of) = (0, 0, loader.samples().len() as u64);
    for batch in loader.epoch(0, 0)? {
        if output::is_closed() {
            // What is left would be for nobody.
            std::process::exit(output::UNREAD);
        }
        let batch = batch?;
        skipped += batch.skipped;
        let logits = evaluator.logits(Images::Bytes(&batch.pixels))?;
        for (&sample, logits) in batch.samples.iter().zip(logits.chunks_exact(model.classes)) {
            let path = &loader.samples()[sample].path;
            let top = candidates(logits, &names, args.top);
            let Some(top) = top else { bail!("the logits of {} are not finite", path.display()) };
            let prediction = Prediction { path: path.display().to_string(), top };
            match args.json {
                true => {
                    events::emit("prediction", json!(prediction))?;
                    predictions.push(prediction);
                }
                false => output::joined(&describe(&prediction), " ")?,
            }
        }
        done += batch.samples.len();
        progress.at("images", ((done + skipped) as u64).min(of), of);
    }
    drop(progress);
    let images = done;
    events::result(&json!({"images": images, "skipped": skipped, "predictions": predictions}))?;
    if skipped > 0 {
        output::note(format_args!("skipped: {}", output::quantity(skipped, "broken image")));
    }
    Ok(())
}

/// The `top` likeliest classes with their softmax probabilities; `None` if there are none because a logit is not finite.
fn candidates(logits: &[f32], names: &[String], top: usize) -> Option<Vec<Candidate>> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let most = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable: of equals, the first.
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let candidate =
        |index: usize| Candidate { index, class: names.get(index).cloned(), probability: weights[index] / sum };
    Some(order.into_iter().take(top).map(candidate).collect())
}

/// The image, and its likeliest classes.
fn describe(prediction: &Prediction) -> Vec<String> {
    let classes = prediction.top.iter().map(|candidate| {
        let name = candidate.class.clone().unwrap_or_else(|| format!("class {}", candidate.index));
        format!("{name} {:.1} %,", candidate.probability * 100.0)
    });
    let mut words: Vec<String> = [format!("{}:", prediction.path)].into_iter().chain(classes).collect();
    if let Some(last) = words.last_mut() {
        last.pop();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_ranked_and_named() {
        let names = ["ant", "bee", "cat"].map(String::from);
        let top = candidates(&[1000.0, 1000.0, 1000.0 + 3f32.ln()], &names, 2).unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!((top[0].index, top[0].class.as_deref()), (2, Some("cat")));
        assert!((top[0].probability - 0.6).abs() < 1e-4);
        assert_eq!(top[1].index, 0, "of equals, the first");
        assert!(candidates(&[0.0, f32::NAN], &names, 2).is_none());
    }
}
