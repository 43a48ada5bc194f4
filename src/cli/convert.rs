use super::args::{self, DeviceArgs, ForceArgs, ModelArgs, SizeArgs};
use super::progress::Progress;
use super::source::{self, SourceArgs};
use super::{fold, output};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use thawline::convert::{Converted, Remark, Variant, convert};
use thawline::formats::{Format, Save};
use thawline::gpu::Device;
use thawline::graph::Graph;
use thawline::model::Model;
use thawline::models::{GRAPH, GraphFile, Spec};
use thawline::plan::Input;
use thawline::preprocessing::{PREPROCESSING, Preprocessing};
use thawline::tensor::HostTensor;
use thawline::train::{Evaluator, Images};
use thawline::weights;

/// Convert weights to another framework's variant of the same network, and report what changes.
///
/// Layers correspond by what they compute, whatever their names and order. Names, layouts, epsilon and biases are
/// converted, so that the same values before the first layer give the same logits; what no file can say, such as another
/// padding or other preprocessing, is listed.
///
/// Safetensors can be of any model. A file of Keras or TensorFlow.js is written as a copy of one that they wrote, with these
/// weights in it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline convert resnet18.pth --out resnet18.safetensors
  thawline convert efficientnet_b0.pth \\
    --to timm_efficientnet_b0 --out timm.safetensors
  thawline convert tf_efficientnet_b0.safetensors \\
    --to EfficientNetB0.keras --out tuned.keras")]
pub struct Args {
    /// The weights: a safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub: hf:OWNER/NAME
    file: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    /// The network's name, if the file does not tell
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What to convert to: a model's name, or a file of Keras or TensorFlow.js to be copied [default: what the file holds]
    #[arg(long, value_name = "NAME|FILE")]
    to: Option<String>,
    /// Where the result goes: FILE.safetensors, FILE.keras, FILE.h5, or FILE.json for TensorFlow.js
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: {from, to, classes, layers: [{from, to}], converted: what was, left: what could not be, difference: of
    /// the logits, out}
    #[arg(long)]
    json: bool,
}

/// Images that are compared.
const IMAGES: usize = 2;

pub fn run(args: Args) -> Result<()> {
    let (file, out) = (args.file.display(), args.out.display());
    let format = args::check_format(&args.out, is_taken)?;
    args::check_distinct(("--out", &args.out), ("the file to convert", &args.file))?;
    // A graph file is a network, though some weights are in files that end like it.
    let is_file = |to: &str| {
        let path = Path::new(to);
        Format::of_name(path).is_some_and(|format| is_taken(&format.facts().save)) && GraphFile::read(path).is_err()
    };
    let template = match format.is_copied() {
        false if args.to.as_deref().is_some_and(is_file) => {
            bail!("--out {out}: --to names a file, of which only one with the same ending can be written")
        }
        false => None,
        true => Some(template(&args)?),
    };
    args::check_output(&args.out, args.force)?;

    let progress = Progress::new("reading the weights");
    let source = |weights_set: Option<&String>| SourceArgs { weights_set: weights_set.cloned(), ..args.source.clone() };
    let read = |model, weights, classes, source| ModelArgs { model, weights, source, classes, seed: 0 }.read();
    let set = args.source.weights_set.as_ref();
    let mut from = read(args.model.clone(), Some(args.file.clone()), None, source(set))?;
    let to = match (&args.to, &template) {
        (_, Some(template)) => {
            let to = read(None, Some(template.clone()), None, source(None))?;
            check_template(to.origin()?.as_deref(), &args.out)?;
            to
        }
        (Some(name), None) => read(Some(name.clone()), None, Some(from.classes), source(None))?,
        (None, None) => from.without_weights(),
    };
    if to.classes != from.classes {
        let (name, classes) = (&to.spec.name, to.classes);
        bail!(
            "{file} tells {} apart, and {name} {classes}: take one with as many",
            output::quantity(from.classes, "class")
        );
    }
    let mut to = to;
    to.folded = from.folded;
    let size = from.size(args.size.size);
    let [before, after] = [from.network(IMAGES, size)?, to.network(IMAGES, size)?];
    let metadata = from.state.as_ref().map(|state| state.metadata.clone()).unwrap_or_default();
    let tensors = from.tensors(&before)?;
    let converted =
        convert(&variant(&from, &before), &variant(&to, &after), &tensors).with_context(|| file.to_string())?;
    progress.at("comparing the logits", 0, 0);
    let difference = {
        let device = args.device.open()?;
        let old = logits(&device, &before, &tensors, from.spec.preprocessing.value.bgr)?;
        fold::apart(&old, &logits(&device, &after, &converted.tensors, to.spec.preprocessing.value.bgr)?)
    };
    let moved = converted.account.iter().any(Remark::changes_logits);
    if !moved && difference > fold::TOLERANCE {
        bail!("{file}: the logits would change by {difference:.1e} of the largest, though nothing says why");
    }

    // The weights still expect the images that they were trained on; only the order of the channels is converted.
    let Preprocessing { bgr, .. } = to.spec.preprocessing.value;
    to.spec.preprocessing.value = Preprocessing { bgr, ..from.spec.preprocessing.value };
    let mut state = weights::to_state(&after, &converted.tensors);
    state.metadata = metadata
        .into_iter()
        .filter(|(key, _)| ![GRAPH, PREPROCESSING].contains(&key.as_str()))
        .chain(to.metadata(size)?)
        .collect();
    state.metadata.insert("model".into(), to.spec.name.to_string());
    let origin = to.origin()?.filter(|_| template.is_some());
    args::save_weights(&state, origin.as_deref(), &args.out)?;
    drop(progress);
    let written = if template.is_some() { to.format } else { None };
    let as_keras = [from.format, written].map(|format| format.is_some_and(|format| format.facts().as_keras));
    let [from_name, to_name] = [&from, &to].map(|model| model.spec.name.to_string());
    let found = Found { from: from_name, to: to_name, classes: from.classes, converted, difference, as_keras };
    report(&args, &found)
}

/// Whether files that are written so can be converted to.
fn is_taken(save: &Save) -> bool {
    matches!(save, Save::Tensors(_) | Save::Copy(_))
}

/// The file that the output is a copy of, or its name in a hub.
fn template(args: &Args) -> Result<PathBuf> {
    let template = args.to.as_ref().map_or_else(|| args.file.clone(), PathBuf::from);
    if !source::is_reference(&template) {
        check_template(Some(&template), &args.out)?;
    }
    args::check_distinct(("--out", &args.out), ("--to", &template))?;
    Ok(template)
}

fn check_template(template: Option<&Path>, out: &Path) -> Result<()> {
    if template.and_then(Format::of_name) != Format::of_name(out) {
        bail!(
            "--out {}: such a file is written as a copy of another; name one with the same ending as --to",
            out.display()
        );
    }
    Ok(())
}

fn variant<'a>(model: &'a Model, graph: &'a Graph) -> Variant<'a> {
    let Spec { name, preprocessing, .. } = &model.spec;
    Variant { name, graph, preprocessing: preprocessing.value }
}

/// The logits of random images, the same at every call, for a network that takes red first or blue.
fn logits(device: &Device, network: &Graph, tensors: &[HostTensor], bgr: bool) -> Result<Vec<f32>> {
    fold::logits(network, |images, _| {
        let mut evaluator = Evaluator::new(device, network, tensors, Input::Values)?;
        let Images::Values(values) = images else { return Ok(evaluator.logits(images)?) };
        let mut values = values.to_vec();
        if bgr {
            // Three colours and one of padding.
            values.chunks_exact_mut(4).for_each(|pixel| pixel.swap(0, 2));
        }
        Ok(evaluator.logits(Images::Values(&values))?)
    })
}

/// Says what became of names and layouts, and of what the variants differ in.
fn report(args: &Args, found: &Found) -> Result<()> {
    let Found { from, to, classes, converted, difference, as_keras } = found;
    let layers = &converted.layers;
    let mut done = Vec::new();
    let mut left = Vec::new();
    if let Some((old, new)) = layers.iter().find(|(old, new)| old != new) {
        let renamed = layers.iter().filter(|(old, new)| old != new).count();
        done.push(format!("names: {old} is {new} now, and so on for {renamed} of {} layers", layers.len()));
    }
    if as_keras[0] != as_keras[1] {
        let [old, new] = as_keras.map(|as_keras| if as_keras { "HWIO" } else { "OIHW" });
        done.push(format!("the layout of weights: {new}, and was {old}"));
        left.push("how often running statistics were updated, which Keras does not count".to_owned());
    }
    for remark in &converted.account {
        if remark.is_converted() { done.push(remark.to_string()) } else { left.push(remark.to_string()) }
    }
    let out = args.out.display();
    if args.json {
        return output::json(&json!({
            "from": from,
            "to": to,
            "classes": classes,
            "layers": layers.iter().map(|(from, to)| json!({"from": from, "to": to})).collect::<Vec<_>>(),
            "converted": done,
            "left": left,
            "difference": difference,
            "out": out.to_string(),
        }));
    }
    for (title, lines) in [("converted", &done), ("not converted", &left)] {
        if !lines.is_empty() {
            output::title(format_args!("{title}:"))?;
        }
        for line in lines {
            output::prose(format_args!("  {line}"))?;
        }
    }
    output::prose(format_args!(
        "{from} → {to}, {}: the logits of {IMAGES} random images differ by {difference:.1e} of the largest",
        output::quantity(*classes, "class")
    ))?;
    output::line(out)
}

/// What there is to report.
struct Found {
    from: String,
    to: String,
    classes: usize,
    converted: Converted,
    difference: f32,
    /// Whether the file that was read keeps layouts as Keras does, and the one that was written.
    as_keras: [bool; 2],
}
