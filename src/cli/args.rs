//! Arguments that several commands share, and what they stand for.

use super::output;
use super::source::{self, SourceArgs};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thawline::compile::{Optimizer, Options};
use thawline::data::decode::MAX_SIDE;
use thawline::data::{Augment, DecodeOptions, Exif, ImageFolder, Sample, Transform};
use thawline::formats::{self, FORMATS, Format, ModelFile, Save};
use thawline::gpu::{Backend, Device, DeviceOptions};
use thawline::graph::{AdamW, Graph, LayerKind, Sgd};
use thawline::kernels::conv2d::Variant;
pub use thawline::model::Size;
use thawline::model::{self, Model};
use thawline::models::Spec;
use thawline::plan::Input;
use thawline::policy::{self, Policy, PolicyError, RECIPES, Resolved};
use thawline::preprocessing::Parts;
use thawline::text::alternatives;
use thawline::weights::{Head, StateDict};

/// For counts of which there must be at least one.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number of at least 1".into())
}

pub fn learning_rate(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|lr: &f64| *lr > 0.0 && lr.is_finite());
    value.ok_or_else(|| "expected a number above 0, such as 0.001".into())
}

/// Pixels a side, as images are transformed to.
pub fn side(pixels: usize) -> Result<u32> {
    u32::try_from(pixels).with_context(|| format!("an image cannot have {pixels} pixels per side"))
}

/// `--model`, `--weights`, `--offline`, `--classes`, `--seed`.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// The network, such as resnet18, efficientnet_b0, tf_efficientnet_b0 or keras_efficientnet_b0 (`thawline models`
    /// lists all), or a graph file as `inspect --graph` prints it; from an ONNX file, only the graph is used [default:
    /// what the weights file holds]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Start from this safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub [default:
    /// random weights]
    #[arg(long, value_name = "FILE|hf:OWNER/NAME")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Number of classes [default: the weights file's; else 1000, or 10 for resnet_tiny]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub classes: Option<usize>,
    /// Whatever is random follows from this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// `--size`.
#[derive(Args, Clone, Copy, Debug)]
pub struct SizeArgs {
    /// Image size in pixels, N or HxW [default: what the weights were trained for, else the model's: 224, or 16 for
    /// resnet_tiny]
    #[arg(long, value_name = "N|HxW")]
    pub size: Option<Size>,
}

/// `--policy` and `--set`.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    #[arg(
        long,
        value_name = "NAME|FILE.toml",
        default_value = "full",
        help = policy_help("What trains and how batch norms behave", "")
    )]
    pub policy: String,
    /// A rule that comes after the policy's own; repeatable. Examples: 'from:layer4 & kind:bn -> stats=batch,
    /// update=ema(0.9)', 'index:efficientnetb0/100.. -> weights=train'
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    pub rules: Vec<String>,
}

/// The help of `--policy`: what it is for, the policies that there are, and a note.
pub fn policy_help(what: &str, note: &str) -> String {
    let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
    format!("{what}: {}, or a TOML file{note}", names.join(", "))
}

/// `--backend`.
#[derive(Args, Clone, Copy, Debug)]
pub struct BackendArgs {
    /// Look at the devices of one interface only, and count only these: vulkan, metal, dx12, webgpu or gl [default: those
    /// that WGPU_BACKEND lists, else all, gl last]
    #[arg(long, value_name = "NAME", value_parser = backend)]
    pub backend: Option<Backend>,
}

fn backend(name: &str) -> Result<Backend, String> {
    Backend::of_name(name).ok_or_else(|| format!("the backends are {}", Backend::names()))
}

/// `--device`, `--backend`, `--device-timeout`, `--variant`.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Index or part of the name of a device that `thawline devices` lists [default: the first that opens]
    #[arg(long, value_name = "NAME|INDEX")]
    pub device: Option<String>,
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Give up when the device finishes no work for this many seconds [default: 120, or 1200 where a driver computes on the
    /// CPU]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub device_timeout: Option<u64>,
    /// How convolutions are computed: direct, workgroup or subgroup. Two runs give the same bits if they use the same
    /// [default: the fastest, which each process finds out by measuring]
    #[arg(long, value_name = "NAME", value_parser = variant)]
    pub variant: Option<Variant>,
}

fn variant(name: &str) -> Result<Variant, String> {
    Variant::of_name(name).ok_or_else(|| format!("the variants are {}", Variant::ALL.map(Variant::name).join(", ")))
}

impl DeviceArgs {
    pub fn open(&self) -> Result<Device> {
        let device = Device::open(&DeviceOptions {
            select: self.device.clone(),
            backend: self.backend.backend,
            timeout: self.device_timeout.map(Duration::from_secs),
            ..DeviceOptions::default()
        })?;
        match self.variant {
            None => Ok(device),
            Some(variant) => device.with_variant(variant).with_context(|| {
                format!("--variant {}: {} lacks what it takes; try another", variant.name(), device.info().name)
            }),
        }
    }
}

impl PolicyArgs {
    /// The policy with its `--set` rules, applied to `graph`. Warnings go to standard error.
    pub fn resolve(&self, graph: Graph) -> Result<Resolved> {
        resolve(&self.policy, &self.rules, graph)
    }

    /// The network in each stage of the policy, with the share of a run's steps before it. Warnings go to standard error.
    pub fn resolve_stages(&self, graph: &Graph) -> Result<Vec<(f64, Resolved)>> {
        let policy = Policy::load(&self.policy)?.with_last_rules(&self.rules)?;
        let stages = policy::resolve_stages(&policy, graph).map_err(|error| explained(error, graph))?;
        for warning in stages.iter().flat_map(|(_, resolved)| &resolved.warnings) {
            output::warning(format_args!("{warning}"));
        }
        Ok(stages)
    }

    /// For inference, on which no policy has a say: refuses what is wrong with it, and does not warn.
    pub fn resolve_for_inference(&self, graph: Graph) -> Result<Graph> {
        let policy = Policy::load(&self.policy)?.with_last_rules(&self.rules)?;
        match policy::resolve(&policy, graph.clone()) {
            // What a batch is too small for in training does not matter.
            Ok(_) | Err(PolicyError::SingleValue { .. } | PolicyError::UnevenGhosts { .. }) => Ok(graph),
            // Most policies speak of batch norms, which folded weights lack.
            Err(_) if !has_batch_norms(&graph) => Ok(graph),
            Err(error) => Err(error.into()),
        }
    }
}

/// Applies a policy and further rules to `graph`, as they are at the beginning of a run. Warnings go to standard error.
fn resolve(name_or_file: &str, rules: &[String], graph: Graph) -> Result<Resolved> {
    let policy = Policy::load(name_or_file)?.with_last_rules(rules)?;
    if !policy.stages.is_empty() {
        output::warning(format_args!("{} changes in the course of a run; this is its first stage", policy.name));
    }
    let resolved = policy::resolve(&policy, graph.clone()).map_err(|error| explained(error, &graph))?;
    for warning in &resolved.warnings {
        output::warning(format_args!("{warning}"));
    }
    Ok(resolved)
}

/// The error of a policy, with the reason that it most likely has where the network has no batch norms.
pub fn explained(error: impl Into<anyhow::Error>, graph: &Graph) -> anyhow::Error {
    let error = error.into();
    match has_batch_norms(graph) || !error.to_string().contains("kind bn") {
        true => error,
        false => error.context(
            "the network has no batch norms, as if its weights were folded: take a policy that needs none, such as `full` \
             or `head`",
        ),
    }
}

/// Whether a policy can speak of batch norms. Networks that have some lose them when their weights are folded.
pub fn has_batch_norms(graph: &Graph) -> bool {
    graph.layers().iter().any(|layer| layer.kind == LayerKind::Bn)
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptimizerName {
    Sgd,
    Adamw,
}

/// `--optimizer` and what belongs to it. Defaults are PyTorch's, except where a command has its own.
#[derive(Args, Clone, Copy, Debug)]
pub struct OptimizerArgs {
    /// How gradients become steps
    #[arg(long, value_enum, value_name = "NAME", default_value_t = OptimizerName::Sgd)]
    pub optimizer: OptimizerName,
    /// SGD's momentum, from 0 up to but not including 1 [default: 0.9; step: 0]
    #[arg(long, value_name = "X", value_parser = share)]
    pub momentum: Option<f32>,
    /// SGD with Nesterov's momentum
    #[arg(long)]
    pub nesterov: bool,
    /// Shrinks the weights of convolutions and linear layers; never biases or batch norms [default: 0; AdamW: 0.01]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    pub weight_decay: Option<f32>,
    /// SGD: shrink by lr × decay itself, as AdamW does, instead of adding to the gradient
    #[arg(long)]
    pub decoupled_decay: bool,
    /// Share of the target that is spread over all classes, from 0 up to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = share)]
    pub label_smoothing: f32,
}

fn share(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|x| (0.0..1.0).contains(x));
    value.ok_or_else(|| "expected a number from 0 up to, but not including, 1".into())
}

fn not_negative(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|x: &f32| *x >= 0.0 && x.is_finite());
    value.ok_or_else(|| "expected a number of at least 0".into())
}

impl OptimizerArgs {
    /// Options of a step without accumulation.
    pub fn options(&self, default_momentum: f32) -> Result<Options> {
        let optimizer = match self.optimizer {
            OptimizerName::Sgd => {
                let momentum = self.momentum.unwrap_or(default_momentum);
                if self.nesterov && momentum == 0.0 {
                    bail!("--nesterov needs a --momentum above 0");
                }
                let weight_decay = self.weight_decay.unwrap_or(0.0);
                Optimizer::Sgd(Sgd { momentum, nesterov: self.nesterov, weight_decay, decoupled: self.decoupled_decay })
            }
            OptimizerName::Adamw => {
                if self.momentum.is_some() || self.nesterov || self.decoupled_decay {
                    bail!("--momentum, --nesterov and --decoupled-decay are for --optimizer sgd");
                }
                let weight_decay = self.weight_decay.unwrap_or(0.01);
                Optimizer::AdamW(AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay })
            }
        };
        Ok(Options {
            optimizer,
            label_smoothing: self.label_smoothing,
            class_weights: false,
            accumulate: 1,
            export_gradients: false,
            seed: 0,
        })
    }
}

/// How image files are read.
#[derive(Args, Clone, Copy, Debug)]
pub struct DecodeArgs {
    /// Turn images upright by their EXIF orientation, or leave them as they are stored, as torchvision and Keras do
    /// [default: apply]
    #[arg(long, value_enum)]
    pub exif: Option<ExifName>,
    /// The most pixels that an image may have: a number of megapixels, or of pixels from 10000 on [default: 200]
    #[arg(long, value_name = "N", value_parser = max_pixels)]
    pub max_pixels: Option<u64>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExifName {
    Apply,
    Ignore,
}

impl DecodeArgs {
    /// What was asked for, over what the resumed run was begun with, over the defaults.
    pub fn options(&self, saved: Option<DecodeOptions>) -> DecodeOptions {
        let base = saved.unwrap_or_default();
        let (exif, max_pixels) = (self.exif().unwrap_or(base.exif), self.max_pixels.unwrap_or(base.max_pixels));
        DecodeOptions { exif, max_pixels }
    }

    pub fn exif(&self) -> Option<Exif> {
        self.exif.map(|exif| match exif {
            ExifName::Apply => Exif::Apply,
            ExifName::Ignore => Exif::Ignore,
        })
    }
}

/// Below this, `--max-pixels` counts megapixels: no photograph has fewer pixels than that.
const LEAST_PIXELS: f64 = 10_000.0;

fn max_pixels(text: &str) -> Result<u64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0);
    let pixels = number.map(|number| if number < LEAST_PIXELS { number * 1e6 } else { number });
    // The largest image of any format that is read.
    let most = f64::from(MAX_SIDE) * f64::from(MAX_SIDE);
    let pixels = pixels.map(f64::round).filter(|pixels| (1.0..=most).contains(pixels));
    pixels.map(|pixels| pixels as u64).ok_or_else(|| {
        format!("expected a number of megapixels, or of pixels from {LEAST_PIXELS} on, of at most {most} pixels")
    })
}

/// The default of `--val-fraction`.
pub const VAL_FRACTION: f64 = 0.2;

/// `--data` and how it is split.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Folder with train/ and val/, each with a folder of images a class; or with the class folders themselves
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Share of each class that is set aside for validation, chosen by --seed, where there are no train/ and val/
    #[arg(long, value_name = "X", default_value_t = VAL_FRACTION)]
    pub val_fraction: f64,
    /// Go on past images that cannot be decoded, and count them
    #[arg(long)]
    pub skip_broken: bool,
    #[command(flatten)]
    pub decode: DecodeArgs,
}

impl DataArgs {
    /// For images that nothing learns from.
    pub fn open(&self, seed: u64) -> Result<ImageFolder> {
        Ok(ImageFolder::open_for_inference(&self.data, self.val_fraction, seed)?)
    }
}

/// Which of a folder's images.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    Train,
    Val,
    All,
}

impl Split {
    pub fn of(self, folder: &ImageFolder) -> Vec<Sample> {
        match self {
            Self::Train => folder.train.clone(),
            Self::Val => folder.val.clone(),
            Self::All => [&folder.train[..], &folder.val[..]].concat(),
        }
    }
}

impl ModelArgs {
    /// Reads the weights file, if there is one, and recognises the model by it, if none is named.
    pub fn read(&self) -> Result<Model> {
        self.read_for(Parts::default(), None)
    }

    /// As [`read`](Self::read), for images that are prepared as `asked`, and are of `size`; otherwise as the file says.
    pub fn read_for(&self, asked: Parts, size: Option<Size>) -> Result<Model> {
        self.of(self.file()?, Head::Required, asked, size)
    }

    /// As [`read_for`](Self::read_for), of a file whose head may be missing, or have several layers: it starts anew then.
    pub fn read_for_training(&self, asked: Parts, size: Option<Size>) -> Result<Model> {
        self.of(self.file()?, Head::Optional, asked, size)
    }

    fn file(&self) -> Result<Option<ModelFile>> {
        self.weights.as_ref().map(|name| source::open(name, &self.source)).transpose()
    }

    /// As [`read_for`](Self::read_for), with the weights file's content, which may lack a head if `head` says so. Prints what
    /// the user should know of the file.
    pub fn of(&self, file: Option<ModelFile>, head: Head, asked: Parts, size: Option<Size>) -> Result<Model> {
        let options = model::Options {
            spec: self.model.as_deref().map(spec).transpose()?,
            classes: self.classes,
            preprocessing: asked,
            size,
            head,
            seed: self.seed,
        };
        let Some(file) = file else {
            if let Some(set) = &self.source.weights_set {
                bail!("--weights-set {set}: there is no weights file to choose from");
            }
            if options.spec.is_none() {
                bail!("name a model with --model, or a file with --weights");
            }
            return Ok(Model::anew(options)?);
        };
        let origin = file.tensors.origin.clone();
        let model = Model::of(file, options)?;
        print_notes(origin.as_deref(), &model.notes);
        Ok(model)
    }
}

/// The network that `--model` asks for.
pub fn spec(name: &str) -> Result<Spec> {
    Ok(model::spec(name)?)
}

/// Tells on standard error what the user should know of how a weights file was read.
pub fn print_notes(file: Option<&Path>, notes: &[String]) {
    let file = file.unwrap_or(Path::new("the weights file")).display();
    for note in notes {
        output::note(format_args!("note: {file}: {note}"));
    }
}

/// How images become what the network takes.
pub fn input(spec: &Spec) -> Input {
    spec.preprocessing.value.into()
}

/// What inference shows of images to a network of `size`.
pub fn transform(spec: &Spec, size: Size) -> Result<Transform> {
    let (height, width) = (side(size.height)?, side(size.width)?);
    Ok(Transform::new(height, width, Augment::None, spec.preprocessing.value))
}

/// `--force`.
#[derive(Args, Clone, Copy, Debug)]
pub struct ForceArgs {
    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,
}

/// Refuses where the work would be for nothing, or do harm: a file that is there stays, unless the user says otherwise, and
/// files are replaced by renaming, which would replace a device, too.
pub fn check_output(path: &Path, ForceArgs { force }: ForceArgs) -> Result<()> {
    let folder = folder(path);
    if path.exists() && !path.is_file() {
        bail!("cannot write {}: it is a folder or a device; give a file", path.display());
    }
    if !force && path.symlink_metadata().is_ok() {
        bail!("{} exists: give another name, or replace it with --force", path.display());
    }
    if !folder.is_dir() {
        bail!("cannot write {}: the folder {} does not exist", path.display(), folder.display());
    }
    Ok(())
}

/// Refuses a name for a file that is to be written which is no format's, or one's whose files are not written in a way that is
/// `taken`.
pub fn check_format(out: &Path, taken: impl Fn(&Save) -> bool) -> Result<Format> {
    let format = Format::of_name(out);
    if let Some(Save::Never(instead)) = format.map(|format| &format.facts().save) {
        bail!("--out {}: {instead}", out.display());
    }
    let written = |save: &Save| !matches!(save, Save::Never(_)) && taken(save);
    if let Some(format) = format.filter(|format| written(&format.facts().save)) {
        return Ok(format);
    }
    let endings = FORMATS.iter().filter(|facts| written(&facts.save)).map(|facts| facts.format.ending());
    bail!("--out {}: the name must end in {}", out.display(), alternatives(endings))
}

/// Writes weights that come from the file `source`: see [`formats::save`].
pub fn save_weights(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<()> {
    for note in formats::save(state, source, out)? {
        output::note(format_args!("note: {}: {note}", out.display()));
    }
    Ok(())
}

/// Refuses two options, each with its file, that name the same one. Neither file need exist.
pub fn check_distinct((one, file): (&str, &Path), (other, other_file): (&str, &Path)) -> Result<()> {
    let place = |path: &Path| {
        path.canonicalize().ok().or_else(|| Some(folder(path).canonicalize().ok()?.join(path.file_name()?)))
    };
    if place(file).zip(place(other_file)).is_some_and(|(file, other)| file == other) {
        bail!("{one} and {other} are the same file, {}: give another {one}", file.display());
    }
    Ok(())
}

/// The folder that a file is in.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The word for a value on the command line.
pub fn name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
