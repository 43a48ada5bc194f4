//! Arguments of what trains: `finetune` and `compare`.

use super::args::{DecodeArgs, DeviceArgs, ModelArgs, SizeArgs, positive};
use super::output;
use super::preprocess::PreprocessArgs;
use super::progress::Progress;
use super::source::SourceArgs;
use anyhow::Result;
use clap::ValueEnum;
use std::path::PathBuf;
use std::str::FromStr;
use thawline::data::{Augment, ImageFolder, Sampler};
use thawline::model::Model;
use thawline::study::{ClassWeights, Note, Observer, OptimizerKind, Options, ScheduleKind};
use thawline::train::{HeadStart, Settings, UNEVEN, imbalance};

/// The folder of images of what can be resumed, and then knows it.
#[derive(clap::Args)]
pub struct DataArgs {
    /// A folder with a folder of images for each class, or with train/ and val/ that hold such folders
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    pub data: Option<PathBuf>,
}

/// Where weights come from, how images are shown, and how training goes.
#[derive(clap::Args)]
pub struct TrainingArgs {
    /// The network, such as resnet18, efficientnet_b0, tf_efficientnet_b0 or keras_efficientnet_b0 (`thawline models`
    /// lists all), or a graph file as `inspect --graph` prints it; from an ONNX file, only the graph is used [default:
    /// what the weights file holds]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Start from this safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub; a head for
    /// another number of classes starts anew [default: random weights]
    #[arg(long, value_name = "FILE|hf:OWNER/NAME")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceArgs,
    /// What becomes of the head of --weights where its classes are as many as those of DATA, but have other names: keep it,
    /// the first class for the first and so on, or begin it anew [default: stop with an error]
    #[arg(long, value_enum, value_name = "keep|new", requires = "weights")]
    pub head: Option<HeadName>,
    /// Expected number of classes; an error if DATA has another number of class folders
    #[arg(long, value_name = "N", value_parser = positive)]
    pub classes: Option<usize>,
    #[command(flatten)]
    pub size: SizeArgs,
    #[command(flatten)]
    pub preprocess: PreprocessArgs,
    #[command(flatten)]
    pub device: DeviceArgs,

    /// Passes over the training images [default: 10, enough for most small sets]
    #[arg(long, value_name = "N", value_parser = positive)]
    epochs: Option<usize>,
    /// Images that the device works on at once; batch norms with stats=batch compute their statistics over this many
    /// images. Where a batch norm takes statistics of the batch, images at the end of an epoch that do not fill an
    /// optimiser step are left out, different ones each time; elsewhere they make a smaller step [default: 32]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,
    /// Batches that are added up to one optimiser step, for a larger effective batch in the same memory [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    accumulate: Option<usize>,
    /// Order, augmentation, split and new weights follow from this number [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,

    /// The optimiser [default: sgd, the more robust for batch-norm networks]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// Learning rate. `auto` looks for it: finetune by a range test, as lr-find does; compare for each policy apart, by
    /// short runs on the training images alone. For compare, several rates with commas between are those to choose from
    /// [default: for finetune 0.01 with sgd; with adamw 0.003, or 0.02 where no convolution trains; for compare auto]
    #[arg(long, value_name = "X|auto")]
    pub lr: Option<LrChoice>,
    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_name = "X")]
    momentum: Option<f64>,
    /// Nesterov's momentum, for sgd
    #[arg(long)]
    nesterov: bool,
    /// Weight decay of convolution and linear weights; biases and batch norms have none [default: 0.0001 for sgd, 0.01
    /// for adamw]
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// Share of the target that is spread over all classes; 0.1 helps on noisy labels [default: 0]
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// Weight of each class in the training loss, as PyTorch's CrossEntropyLoss(weight). `balanced`: so that all classes
    /// count the same, whatever their numbers of images; or a TOML or JSON file with a number for each class name.
    /// Validation stays without weights [default: each image counts the same]
    #[arg(long, value_name = "balanced|FILE")]
    class_weights: Option<PathBuf>,
    /// Which images an epoch shows: each once, or of each class equally often, those of rare classes several times
    /// [default: shuffled]
    #[arg(long, value_enum)]
    sampler: Option<SamplerName>,
    /// Stop after this many epochs without better validation accuracy; of equal accuracies the lower loss
    /// is better. The learning rate falls as planned for all epochs [default: never]
    #[arg(long, value_name = "EPOCHS", value_parser = positive)]
    patience: Option<usize>,

    /// How the learning rate falls [default: cosine, which needs no tuning to the number of epochs]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// Optimiser steps over which the learning rate rises; a new head's first gradients are large and mean nothing yet
    /// [default: a twentieth of all steps]
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// Where cosine ends, as a factor on --lr [default: 0]
    #[arg(long, value_name = "X")]
    final_lr: Option<f64>,
    /// Epochs after which step multiplies the learning rate [default: a third of all epochs]
    #[arg(long, value_name = "N", value_parser = positive)]
    step_epochs: Option<usize>,
    /// What step multiplies the learning rate by [default: 0.1]
    #[arg(long, value_name = "X")]
    gamma: Option<f64>,

    /// Random changes to training images; crop-flip suits photographs, none of it digits or letters [default: flip for a
    /// Keras model with RandomFlip("horizontal"), else none, which is right for all images]
    #[arg(long, value_enum)]
    augment: Option<AugmentName>,
    /// Train on only this many images, evenly over the classes and chosen by --seed [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    train_images: Option<usize>,
    /// Share of each class that is set aside for validation, where DATA has no train/ and val/ [default: 0.2]
    #[arg(long, value_name = "X")]
    val_fraction: Option<f64>,
    /// Leave out images that cannot be decoded, and count them, instead of stopping at the first
    #[arg(long)]
    pub skip_broken: bool,
    #[command(flatten)]
    pub decode: DecodeArgs,
}

/// What `--lr` asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum LrChoice {
    Auto,
    /// At least one; several are above 0, rise, and differ.
    Rates(Vec<f64>),
}

impl FromStr for LrChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: usize = 32;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let rate = |word: &str| word.trim().parse().map_err(|_| format!("`{word}` is neither a number nor `auto`"));
        let mut rates: Vec<f64> = text.split(',').map(rate).collect::<Result<_, _>>()?;
        if let [_, _, ..] = rates[..] {
            rates.sort_by(f64::total_cmp);
            if let Some(rate) = rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
                return Err(format!("{rate} cannot be compared with other rates: give finite ones above 0"));
            }
            if let Some(pair) = rates.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("{} is there twice", pair[0]));
            }
            if rates.len() > MOST {
                return Err(format!("{} rates are too many: give at most {MOST}", rates.len()));
            }
        }
        Ok(Self::Rates(rates))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    Sgd,
    Adamw,
}

impl From<OptimizerName> for OptimizerKind {
    fn from(name: OptimizerName) -> Self {
        match name {
            OptimizerName::Sgd => Self::Sgd,
            OptimizerName::Adamw => Self::AdamW,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HeadName {
    Keep,
    New,
}

impl From<HeadName> for HeadStart {
    fn from(name: HeadName) -> Self {
        match name {
            HeadName::Keep => Self::Keep,
            HeadName::New => Self::New,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SamplerName {
    Shuffled,
    Balanced,
}

impl From<SamplerName> for Sampler {
    fn from(name: SamplerName) -> Self {
        match name {
            SamplerName::Shuffled => Self::Shuffled,
            SamplerName::Balanced => Self::Balanced,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    Constant,
    Cosine,
    Step,
}

impl From<ScheduleName> for ScheduleKind {
    fn from(name: ScheduleName) -> Self {
        match name {
            ScheduleName::Constant => Self::Constant,
            ScheduleName::Cosine => Self::Cosine,
            ScheduleName::Step => Self::Step,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AugmentName {
    None,
    Flip,
    Crop,
    CropFlip,
}

impl From<AugmentName> for Augment {
    fn from(name: AugmentName) -> Self {
        match name {
            AugmentName::None => Self::None,
            AugmentName::Flip => Self::Flip,
            AugmentName::Crop => Self::Crop,
            AugmentName::CropFlip => Self::CropFlip,
        }
    }
}

/// Tells on standard error what happens while a run is set up.
pub struct Told {
    progress: Option<Progress>,
}

impl Told {
    const READING: &str = "reading a little of each image";

    pub fn new() -> Self {
        Self { progress: Some(Progress::new("reading weights and images")) }
    }

    /// Where nothing is read.
    pub fn quiet() -> Self {
        Self { progress: None }
    }
}

impl Observer for Told {
    fn note(&self, note: Note) {
        match note {
            Note::Warning(text) => output::warning(text),
            Note::Note(text) => output::note(format_args!("note: {text}")),
            // An error shows when the run is summed up.
            Note::Status(text) => drop(output::status(text)),
        }
    }

    fn reading(&self, done: usize, of: usize) {
        if let Some(progress) = &self.progress {
            progress.at(Self::READING, done as u64, of as u64);
        }
    }
}

/// Classes whose numbers of images are listed; of more, those of the smallest and the largest.
const LISTED: usize = 20;
/// From this imbalance on, the options against it are named.
const HINTED: f64 = 5.0;

/// Says how many training images each class has, if that is uneven, and what of it is made up for.
pub fn announce_classes(folder: &ImageFolder, settings: &Settings) -> Result<()> {
    let counts = folder.train_counts();
    let ratio = imbalance(counts.iter().copied());
    if ratio >= UNEVEN {
        let mut classes: Vec<(&String, u64)> = folder.classes.iter().zip(counts).collect();
        classes.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let words = |of: &[(&String, u64)]| {
            of.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let listed = match classes.len() {
            0..=LISTED => words(&classes),
            all => format!(
                "{}, …, {} ({} in between)",
                words(&classes[..LISTED / 4]),
                words(&classes[all - LISTED / 4..]),
                output::quantity(all - LISTED / 4 * 2, "class")
            ),
        };
        output::status(format_args!("training images by class: {listed}"))?;
    }
    let made_up = match (&settings.class_weights, settings.sampler) {
        (Some(_), Sampler::Balanced) => "classes have weights in the loss, and are shown equally often",
        (Some(_), Sampler::Shuffled) => "classes have weights in the loss; validation is without",
        (None, Sampler::Balanced) => "classes are shown equally often; validation shows each image once",
        (None, Sampler::Shuffled) if ratio >= HINTED => {
            output::note(format_args!(
                "note: the largest class has {ratio:.0} times the images of the smallest: the rare ones may never be \
                 predicted; --class-weights balanced or --sampler balanced helps, and eval --per-class tells"
            ));
            return Ok(());
        }
        _ => return Ok(()),
    };
    output::status(made_up)
}

impl TrainingArgs {
    /// The network for images of so many classes, and the weights file if one is named.
    pub fn read_model(&self, classes: usize) -> Result<Model> {
        let Self { model, weights, source, .. } = self;
        let (model, file, seed) = (model.clone(), weights.clone(), self.seed.unwrap_or(0));
        let args = ModelArgs { model, weights: file, source: source.clone(), classes: Some(classes), seed };
        args.read_for_training(self.preprocess.parts(), self.size.size)
    }

    /// The option of those given that shapes the course of the learning rate, or the length of the run.
    pub fn given_of_schedule(&self) -> Option<&'static str> {
        let given = [
            ("--lr", self.lr.is_some()),
            ("--epochs", self.epochs.is_some()),
            ("--schedule", self.schedule.is_some()),
            ("--warmup", self.warmup.is_some()),
            ("--final-lr", self.final_lr.is_some()),
            ("--step-epochs", self.step_epochs.is_some()),
            ("--gamma", self.gamma.is_some()),
        ];
        given.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    /// Where weights come from, and which of a file's sets is meant.
    pub fn source(&self, saved: &Settings) -> SourceArgs {
        let set = self.source.weights_set.as_ref().or(saved.weights_set.as_ref());
        SourceArgs { weights_set: set.cloned(), ..self.source.clone() }
    }

    /// What is asked for, in the library's words.
    pub fn options(&self) -> Options {
        Options {
            classes: self.classes,
            size: self.size.size,
            preprocessing: self.preprocess.parts(),
            epochs: self.epochs,
            batch: self.batch,
            accumulate: self.accumulate,
            seed: self.seed,
            optimizer: self.optimizer.map(OptimizerKind::from),
            lr: match &self.lr {
                Some(LrChoice::Rates(rates)) => rates.first().copied(),
                Some(LrChoice::Auto) | None => None,
            },
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
            label_smoothing: self.label_smoothing,
            class_weights: self.class_weights.clone().map(|name| match name.as_os_str() == "balanced" {
                true => ClassWeights::Balanced,
                false => ClassWeights::File(name),
            }),
            sampler: self.sampler.map(Sampler::from),
            patience: self.patience,
            schedule: self.schedule.map(ScheduleKind::from),
            warmup: self.warmup,
            final_lr: self.final_lr,
            step_epochs: self.step_epochs,
            gamma: self.gamma,
            augment: self.augment.map(Augment::from),
            train_images: self.train_images,
            val_fraction: self.val_fraction,
            skip_broken: self.skip_broken,
            exif: self.decode.exif(),
            max_pixels: self.decode.max_pixels,
            head: self.head.map(HeadStart::from),
            then: None,
            weights_set: self.source.weights_set.clone(),
        }
    }
}
