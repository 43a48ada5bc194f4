//! Arguments of what trains: `finetune` and `compare`.

use super::args::{self, DecodeArgs, DeviceArgs, ModelArgs, Size, SizeArgs, positive};
use super::output;
use super::preprocess::PreprocessArgs;
use super::progress::Progress;
use super::source::SourceArgs;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thawline::data::{Augment, ImageFolder, Sampler, Transform};
use thawline::gpu::Device;
use thawline::graph::Graph;
use thawline::model::{Model, few};
use thawline::models::keras::Augmentation;
use thawline::models::{self, GraphFile, Spec};
use thawline::preprocessing::Traced;
use thawline::train::{
    Decay, HeadStart, ImageSet, Job, OptimizerSettings, PolicySettings, Schedule, Settings, UNEVEN, balanced_weights,
    imbalance, read_weights,
};

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
    /// Start from this safetensors, PyTorch, Keras or ONNX file, or one of a Hugging Face hub; a head for another number of
    /// classes starts anew [default: random weights]
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
    /// Learning rate. `auto` looks for it: finetune by a range test, as lr-find does; compare for each policy apart, by short
    /// runs on the training images alone. For compare, several rates with commas between are those to choose from [default:
    /// for finetune 0.01 with sgd; with adamw 0.003, or 0.02 where no convolution trains; for compare auto]
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    Constant,
    Cosine,
    Step,
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

/// The run's images, by a little of each file.
fn image_set(folder: &ImageFolder, data: &Path) -> ImageSet {
    const STAGE: &str = "reading a little of each image";
    let progress = Progress::new(STAGE);
    ImageSet::of_with(folder, data, |done, of| progress.at(STAGE, done as u64, of as u64))
}

/// The network of a run that was begun.
pub fn spec(settings: &Settings) -> Result<Spec> {
    let spec = match &settings.graph {
        Some(graph) => Spec::of_file(GraphFile::parse(graph, "the graph in the run's settings")?),
        None => models::spec(&settings.model)?.clone(),
    };
    Ok(spec.with_preprocessing(Traced::new(settings.transform.preprocessing, "the run's settings")))
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

/// The images, and where they are.
pub struct Images {
    pub data: PathBuf,
    pub folder: ImageFolder,
}

impl Images {
    pub fn open(args: &TrainingArgs, saved: Option<&Settings>, data: &Path) -> Result<Self> {
        // A run may be resumed from another folder than it was begun in.
        let data = std::path::absolute(data).with_context(|| format!("cannot find {}", data.display()))?;
        let seed = args.seed(saved);
        let mut folder = ImageFolder::open(&data, args.val_fraction(saved), seed)?;
        if let Some(count) = args.train_images(saved) {
            folder.keep_train(count, seed)?;
        }
        let found = folder.classes.len();
        match args.classes {
            Some(asked) if asked != found => bail!(
                "--classes is {asked}, but {} has folders for {}: leave --classes out, or give another \
                 folder",
                data.display(),
                output::quantity(found, "class")
            ),
            _ => Ok(Self { data, folder }),
        }
    }

    /// What a run of these images works on.
    pub fn job<'a>(&'a self, device: &'a Device, stages: Vec<Graph>, spec: &Spec, settings: Settings) -> Job<'a> {
        let input = args::input(spec);
        Job { device, stages, input, images: &self.folder, settings, cache: None }
    }
}

impl TrainingArgs {
    /// The network for images of so many classes, and the weights file if one is named.
    pub fn read_model(&self, classes: usize) -> Result<Model> {
        let Self { model, weights, source, .. } = self;
        let (model, file, seed) = (model.clone(), weights.clone(), self.seed(None));
        let args = ModelArgs { model, weights: file, source: source.clone(), classes: Some(classes), seed };
        let model = args.read_for_training(self.preprocess.parts(), self.size.size)?;
        if let (true, Some(weights)) = (model.folded, weights) {
            // What came out could neither be resumed nor have its batch norms back.
            bail!(
                "{} is folded, for inference only: start from the weights that it was folded from",
                weights.display()
            );
        }
        Ok(model)
    }

    /// Refuses a head whose classes have other names than those of the images in `data`, unless --head says what becomes of
    /// it. Says what training without weights means.
    pub fn check_start(&self, model: &Model, classes: &[String], data: &Path) -> Result<()> {
        let Some(file) = &self.weights else {
            output::note(
                "note: without --weights, training starts from random weights: frozen layers stay random, and the others need \
                 far more images and epochs than fine-tuning does; --weights takes a file, or hf:OWNER/NAME",
            );
            return Ok(());
        };
        let other = |names: &&Vec<String>| names[..] != *classes;
        let Some(names) = model.class_names.as_ref().filter(other).filter(|_| self.head.is_none()) else {
            return Ok(());
        };
        let (file, data) = (file.display(), data.display());
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        if sorted(names) == sorted(classes) {
            bail!(
                "{file} has the classes of {data} in another order, {} instead of {}: add --head new to start a new head; with \
                 --head keep, the old one's first output would become your first class, and so on",
                few(names),
                few(classes)
            );
        }
        bail!(
            "{file} was trained on {}, but {data} has {}: the same number of classes with other names. Add --head new to start a \
             new head, or --head keep to keep the old one (its first output becomes your first class, and so on)",
            few(names),
            few(classes)
        )
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

    fn val_fraction(&self, saved: Option<&Settings>) -> f64 {
        self.val_fraction.or(saved.map(|s| s.val_fraction)).unwrap_or(0.2)
    }

    fn train_images(&self, saved: Option<&Settings>) -> Option<usize> {
        self.train_images.or(saved.and_then(|s| s.train_images))
    }

    pub fn batch(&self, saved: Option<&Settings>) -> usize {
        self.batch.or(saved.map(|s| s.batch)).unwrap_or(32)
    }

    /// Images per batch, and batches a step.
    pub fn batches(&self, saved: Option<&Settings>) -> (usize, usize) {
        (self.batch(saved), self.accumulate.or(saved.map(|s| s.accumulate)).unwrap_or(1))
    }

    /// Where weights come from, and which of a file's sets is meant.
    pub fn source(&self, saved: &Settings) -> SourceArgs {
        let set = self.source.weights_set.as_ref().or(saved.weights_set.as_ref());
        SourceArgs { weights_set: set.cloned(), ..self.source.clone() }
    }

    pub fn seed(&self, saved: Option<&Settings>) -> u64 {
        self.seed.or(saved.map(|s| s.seed)).unwrap_or(0)
    }

    /// What was asked for, over what the resumed run was begun with, over the defaults; `weights` is where those come
    /// from, and `drop_last` is what the policy asks for.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the settings that comes from elsewhere")]
    pub fn settings(
        &self,
        saved: Option<&Settings>,
        weights: Option<PathBuf>,
        images: &Images,
        spec: &Spec,
        size: Size,
        policy: PolicySettings,
        drop_last: bool,
    ) -> Result<Settings> {
        let optimizer = self.optimizer(saved.map(|s| s.optimizer))?;
        // A search puts what it finds in its place, and `finetune` the default for its policy.
        let lr = match &self.lr {
            Some(LrChoice::Rates(rates)) if !rates.is_empty() => rates[0],
            _ => saved.map_or(optimizer.default_lr(true), |s| s.schedule.lr),
        };
        let epochs = self.epochs.or(saved.map(|s| s.epochs)).unwrap_or(10);
        let decay = self.decay(saved.map(|s| s.schedule.decay), epochs)?;
        let augment = self.augment(saved, spec);
        let classes = images.folder.classes.clone();
        let (batch, accumulate) = self.batches(saved);
        let pixels = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let (class_weights, sampler) = self.balance(saved, images)?;
        let mut settings = Settings {
            thawline: env!("CARGO_PKG_VERSION").into(),
            model: spec.name.to_string(),
            graph: spec.file().map(|_| spec.describe(size.pair(), classes.len())).transpose()?.map(|file| file.json()),
            weights_set: saved.map_or_else(|| self.source.clone(), |saved| self.source(saved)).weights_set,
            weights,
            data: images.data.clone(),
            classes,
            batch,
            accumulate,
            drop_last,
            epochs,
            seed: self.seed(saved),
            label_smoothing: self.label_smoothing.or(saved.map(|s| s.label_smoothing)).unwrap_or(0.0),
            class_weights,
            sampler,
            patience: self.patience.or(saved.and_then(|s| s.patience)),
            val_fraction: self.val_fraction(saved),
            train_images: self.train_images(saved),
            skip_broken: self.skip_broken || saved.is_some_and(|s| s.skip_broken),
            then: None,
            head: self.head.map(HeadStart::from).or(saved.and_then(|s| s.head)),
            images: image_set(&images.folder, &images.data),
            policy,
            optimizer,
            schedule: Schedule { lr, warmup: 0, decay },
            decode: self.decode.options(saved.map(|s| s.decode)),
            transform: Transform::new(pixels(size.height), pixels(size.width), augment, spec.preprocessing.value),
        };
        let warmup = self.warmup.or(saved.map(|s| s.schedule.warmup));
        settings.schedule.warmup = warmup.unwrap_or(settings.steps() / 20);
        settings.check()?;
        if settings.schedule.warmup > settings.steps() {
            output::warning(format_args!(
                "--warmup {} is longer than the whole run of {}: the learning rate will not reach --lr",
                settings.schedule.warmup,
                output::quantity(settings.steps(), "step")
            ));
        }
        Ok(settings)
    }

    /// The class weights and the sampler.
    fn balance(&self, saved: Option<&Settings>, images: &Images) -> Result<(Option<Vec<f64>>, Sampler)> {
        let sampler = match self.sampler {
            Some(SamplerName::Shuffled) => Sampler::Shuffled,
            Some(SamplerName::Balanced) => Sampler::Balanced,
            None => saved.map(|s| s.sampler).unwrap_or_default(),
        };
        let counts = images.folder.train_counts();
        let weights = match &self.class_weights {
            Some(name) if name.as_os_str() == "balanced" => {
                if sampler == Sampler::Balanced {
                    output::warning(
                        "--class-weights balanced and --sampler balanced each make all classes count the same: together, \
                         rare classes count for more than the others",
                    );
                }
                Some(balanced_weights(&counts, sampler))
            }
            Some(file) => Some(read_weights(file, &images.folder.classes, &counts, sampler)?),
            None => saved.and_then(|s| s.class_weights.clone()),
        };
        Ok((weights, sampler))
    }

    /// What training varies: `--augment`, else as the run does, or as the layers of a Keras file do. Says what becomes of
    /// those.
    fn augment(&self, saved: Option<&Settings>, spec: &Spec) -> Augment {
        let asked = self.augment.map(Augment::from).or(saved.map(|saved| saved.transform.augment));
        let layers = |layers: &[&Augmentation]| {
            let names = layers.iter().map(|Augmentation { layer, class, .. }| format!("`{layer}` ({class})"));
            format!("the Keras model's {}", names.collect::<Vec<_>>().join(", "))
        };
        let all: Vec<&Augmentation> = spec.augmentation.iter().collect();
        let (done, left_out): (Vec<&Augmentation>, Vec<&Augmentation>) = all.iter().partition(|layer| layer.mirrors);
        if let Some(augment) = asked {
            if !all.is_empty() {
                let name = augment.name();
                output::note(format_args!("note: {}: left out, since --augment {name} is done instead", layers(&all)));
            }
            return augment;
        }
        if !left_out.is_empty() {
            let crops = left_out.iter().any(|layer| layer.crops);
            let nearest = match (crops, done.is_empty()) {
                (false, _) => "; there is no --augment like it",
                (true, true) => "; --augment crop comes nearest",
                (true, false) => "; --augment crop-flip comes nearest",
            };
            output::warning(format_args!("{}: left out{nearest}", layers(&left_out)));
        }
        match done.is_empty() {
            true => Augment::None,
            false => {
                output::note(format_args!(
                    "note: {}: images are mirrored as it does, which is --augment flip; --augment none leaves it out",
                    layers(&done)
                ));
                Augment::Flip
            }
        }
    }

    fn optimizer(&self, saved: Option<OptimizerSettings>) -> Result<OptimizerSettings> {
        let sgd = OptimizerSettings::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
        let adamw = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let base = match (self.optimizer, saved) {
            (Some(OptimizerName::Sgd), Some(saved @ OptimizerSettings::Sgd { .. })) => saved,
            (Some(OptimizerName::Adamw), Some(saved @ OptimizerSettings::AdamW { .. })) => saved,
            (Some(OptimizerName::Sgd), _) => sgd,
            (Some(OptimizerName::Adamw), _) => adamw,
            (None, saved) => saved.unwrap_or(sgd),
        };
        Ok(match base {
            OptimizerSettings::Sgd { momentum, nesterov, weight_decay } => OptimizerSettings::Sgd {
                momentum: self.momentum.unwrap_or(momentum),
                nesterov: nesterov || self.nesterov,
                weight_decay: self.weight_decay.unwrap_or(weight_decay),
            },
            OptimizerSettings::AdamW { .. } if self.momentum.is_some() || self.nesterov => {
                bail!("--momentum and --nesterov are for --optimizer sgd")
            }
            OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay } => {
                let weight_decay = self.weight_decay.unwrap_or(weight_decay);
                OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay }
            }
        })
    }

    fn decay(&self, saved: Option<Decay>, epochs: usize) -> Result<Decay> {
        let step = Decay::Step { epochs: epochs.div_ceil(3), gamma: 0.1 };
        let base = match (self.schedule, saved) {
            (Some(ScheduleName::Constant), _) => Decay::Constant,
            (Some(ScheduleName::Cosine), Some(saved @ Decay::Cosine { .. })) => saved,
            (Some(ScheduleName::Step), Some(saved @ Decay::Step { .. })) => saved,
            (Some(ScheduleName::Step), _) => step,
            (None, Some(saved)) => saved,
            (Some(ScheduleName::Cosine) | None, _) => Decay::Cosine { end: 0.0 },
        };
        let is_step = matches!(base, Decay::Step { .. });
        if self.final_lr.is_some() && !matches!(base, Decay::Cosine { .. }) {
            bail!("--final-lr is for --schedule cosine");
        }
        if (self.step_epochs.is_some() || self.gamma.is_some()) && !is_step {
            bail!("--step-epochs and --gamma are for --schedule step");
        }
        Ok(match base {
            Decay::Constant => Decay::Constant,
            Decay::Cosine { end } => Decay::Cosine { end: self.final_lr.unwrap_or(end) },
            Decay::Step { epochs, gamma } => {
                Decay::Step { epochs: self.step_epochs.unwrap_or(epochs), gamma: self.gamma.unwrap_or(gamma) }
            }
        })
    }
}
