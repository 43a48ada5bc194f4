//! `thawline finetune`: from a weights file and a folder of images to a better weights file.

use super::args::{DeviceArgs, ModelArgs, Size, SizeArgs, positive};
use super::output;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thawline::data::{Augment, ImageFolder, Transform};
use thawline::gpu::Device;
use thawline::graph::{Affine, Graph, Role, StatsUpdate};
use thawline::models::{self, Spec};
use thawline::plan::Input;
use thawline::policy::{self, Policy};
use thawline::report::{METRICS_FILE, RunLog};
use thawline::train::{
    BEST_FILE, Decay, EpochMetrics, Event, ImageSet, Job, LAST_FILE, OptimizerSettings, Outcome, PolicySettings,
    RECALIBRATED_FILE, Run, Schedule, Settings, StepMetrics, Then, Totals, best,
};
use thawline::weights;

/// Fine-tune a network on a folder of images
///
/// Trains on DATA/train and validates on DATA/val, or on a split of DATA, before the first epoch and after each. The
/// folder OUT gets best.safetensors and last.safetensors (torchvision loads them), metrics.csv, TensorBoard events,
/// run.toml with every setting, and a checkpoint. Ctrl-C finishes the step and saves; --resume continues, and gives the
/// same bits as a run that never stopped.
#[derive(clap::Args)]
pub struct Args {
    /// A folder with a folder of images for each class, or with train/ and val/ that hold such folders
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    data: Option<PathBuf>,
    /// Where the results go: a new or empty folder
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Continue the run in DIR (or in --out) where it stopped, with the settings that it began with
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,

    /// The network: resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2 or resnet_tiny [default: what
    /// the weights file holds]
    #[arg(long)]
    model: Option<String>,
    /// Start from this safetensors or PyTorch file; a head for another number of classes starts anew [default: random
    /// weights]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Number of classes, to be sure: the folders of DATA decide
    #[arg(long, value_name = "N", value_parser = positive)]
    classes: Option<usize>,
    /// What trains and how batch norms behave: full, full-frozen-bn, keras-guide, head, bn-only, bn-affine, head-adapt,
    /// or a TOML file [default: full]
    #[arg(long, value_name = "NAME|FILE.toml")]
    policy: Option<String>,
    /// A rule that comes after the policy's own; repeatable. Example: 'from:layer4 & kind:bn -> stats=batch,
    /// update=ema(0.9)'
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    device: DeviceArgs,

    /// Passes over the training images [default: 10, enough for most small sets]
    #[arg(long, value_name = "N", value_parser = positive)]
    epochs: Option<usize>,
    /// Images that the device works on at once; batch norms under stats=batch see so many [default: 32]
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
    /// Learning rate; a tenth of what training from scratch uses, so that pretrained weights survive [default: 0.01 for
    /// sgd, 0.0003 for adamw]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
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

    /// What comes after the last epoch. recalibrate estimates all running statistics anew, over the training images
    /// without augmentation, and writes recalibrated.safetensors
    #[arg(long, value_enum, value_name = "STEP")]
    then: Option<ThenName>,
    /// Random changes to training images; crop-flip suits photographs, none of it digits or letters [default: none,
    /// which is right for all images]
    #[arg(long, value_enum)]
    augment: Option<AugmentName>,
    /// Share of each class that is set aside for validation, where DATA has no train/ and val/ [default: 0.2]
    #[arg(long, value_name = "X")]
    val_fraction: Option<f64>,
    /// Leave out images that cannot be decoded, and count them, instead of stopping at the first
    #[arg(long)]
    skip_broken: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    Sgd,
    Adamw,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    Constant,
    Cosine,
    Step,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ThenName {
    Recalibrate,
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

pub fn run(args: Args) -> Result<()> {
    let stop = stop_on_ctrl_c()?;
    let mut run = match &args.resume {
        None => start(&args)?,
        Some(folder) => {
            let folder = folder.as_ref().or(args.out.as_ref()).context("name the run's folder: --resume DIR")?;
            if args.out.as_ref().is_some_and(|out| out != folder) {
                bail!("--resume and --out name two folders, but a run goes on in its own");
            }
            resume(&args, folder)?
        }
    };
    let mut log = RunLog::open(run.folder(), run.step())?;
    let display = Display::new(run.settings());
    let outcome = run.run(&stop, |event| {
        log.record(&event)?;
        display.show(&event)?;
        Ok(())
    });
    display.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished => summarise(&run),
        Outcome::Stopped => {
            let (done, of, folder) = (run.step(), run.settings().steps(), output::quoted(run.folder()));
            output::line(format_args!("stopped after step {done} of {of}, and saved; continue with:"))?;
            output::line(format_args!("  thawline finetune --resume {folder}"))?;
            // A script must not take a stopped run for a finished one.
            std::process::exit(INTERRUPTED)
        }
    }
}

/// The exit code that shells give to a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A flag that the first Ctrl-C sets; the second one ends the process.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        eprintln!("\nstopping after this step; press Ctrl-C again to quit at once");
    })?;
    Ok(stop)
}

/// Begins a run in `--out`.
fn start(args: &Args) -> Result<Run> {
    let (data, out) =
        (args.data.as_ref().context("--data is missing")?, args.out.as_ref().context("--out is missing")?);
    let images = Images::open(args, None, data)?;
    let model = ModelArgs {
        model: args.model.clone(),
        weights: args.weights.clone(),
        classes: Some(images.folder.classes.len()),
        seed: args.seed(None),
    };
    let model = model.read()?;
    let policy = match &args.policy {
        Some(name) => Policy::load(name)?,
        None => Policy::recipe("full")?,
    };
    let policy = policy.with_rules(&args.rules)?;
    let settings = args.settings(None, &images, model.spec, model.size(args.size.size), &policy)?;
    let network = network(&settings, model.spec, &policy)?;
    let device = args.device.open()?;

    let tensors = match (model.state, &args.weights) {
        (Some(state), Some(file)) => {
            let loaded = weights::from_state(&network, state, settings.seed)?;
            match (loaded.head_reinitialised, model.class_names) {
                (Some((from, to)), _) => output::line(format_args!(
                    "{} has {from} classes and {} has {to}: the head starts anew",
                    file.display(),
                    data.display()
                ))?,
                (None, Some(names)) if names != settings.classes => eprintln!(
                    "warning: {} was trained on {}, and {} has {}: the head is kept, since their number is the same",
                    file.display(),
                    few(&names),
                    data.display(),
                    few(&settings.classes)
                ),
                (None, _) => {}
            }
            loaded.tensors
        }
        _ => weights::initialise(&network, settings.seed),
    };
    announce(&settings, &network, &device)?;
    Ok(images.job(&device, network, model.spec, settings).start(&tensors, out)?)
}

/// Goes on with the run in `folder`.
fn resume(args: &Args, folder: &Path) -> Result<Run> {
    let saved = Settings::of_run(folder)?;
    let images = Images::open(args, Some(&saved), args.data.as_ref().unwrap_or(&saved.data))?;
    let spec = models::spec(args.model.as_ref().unwrap_or(&saved.model))?;
    let Transform { height, width, .. } = saved.transform;
    let size = args.size.size.unwrap_or(Size { height: height as usize, width: width as usize });
    let policy = match (&args.policy, &args.rules[..]) {
        (None, []) => {
            let PolicySettings { name, rules } = &saved.policy;
            Policy { name: name.clone(), rules: Vec::new() }.with_rules(rules)?
        }
        (name, rules) => Policy::load(name.as_ref().unwrap_or(&saved.policy.name))?.with_rules(rules)?,
    };
    let settings = args.settings(Some(&saved), &images, spec, size, &policy)?;
    let network = network(&settings, spec, &policy)?;
    let device = args.device.open()?;
    let run = images.job(&device, network, spec, settings).resume(folder)?;
    announce(run.settings(), run.session().network(), &device)?;
    output::line(format_args!("resumed after step {} of {}", run.step(), run.settings().steps()))?;
    Ok(run)
}

/// The network with its policy. The policy's warnings go to standard error.
fn network(settings: &Settings, spec: &Spec, policy: &Policy) -> Result<Graph> {
    let Transform { height, width, .. } = settings.transform;
    let network = spec.build(settings.batch, (height as usize, width as usize), settings.classes.len())?;
    let resolved = policy::resolve(policy, network)?;
    for warning in &resolved.warnings {
        eprintln!("warning: {warning}");
    }
    resolved.check_training()?;
    Ok(resolved.graph)
}

/// The images, and where they are.
struct Images {
    data: PathBuf,
    folder: ImageFolder,
}

impl Images {
    fn open(args: &Args, saved: Option<&Settings>, data: &Path) -> Result<Self> {
        // A run may be resumed from another folder than it was begun in.
        let data = std::path::absolute(data).with_context(|| format!("cannot find {}", data.display()))?;
        let folder = ImageFolder::open(&data, args.val_fraction(saved), args.seed(saved))?;
        let found = folder.classes.len();
        match args.classes {
            Some(asked) if asked != found => bail!(
                "--classes is {asked}, but {} has folders for {found} classes: leave --classes out, or give another \
                 folder",
                data.display()
            ),
            _ => Ok(Self { data, folder }),
        }
    }

    fn job<'a>(&'a self, device: &'a Device, network: Graph, spec: &Spec, settings: Settings) -> Job<'a> {
        let input = Input::Bytes { mean: spec.mean, std: spec.std };
        Job { device, network, input, images: &self.folder, settings }
    }
}

impl Args {
    fn val_fraction(&self, saved: Option<&Settings>) -> f64 {
        self.val_fraction.or(saved.map(|s| s.val_fraction)).unwrap_or(0.2)
    }

    fn seed(&self, saved: Option<&Settings>) -> u64 {
        self.seed.or(saved.map(|s| s.seed)).unwrap_or(0)
    }

    /// What was asked for, over what the resumed run was begun with, over the defaults.
    fn settings(
        &self,
        saved: Option<&Settings>,
        images: &Images,
        spec: &Spec,
        size: Size,
        policy: &Policy,
    ) -> Result<Settings> {
        let optimizer = self.optimizer(saved.map(|s| s.optimizer))?;
        let lr = match optimizer {
            OptimizerSettings::Sgd { .. } => 0.01,
            OptimizerSettings::AdamW { .. } => 3e-4,
        };
        let lr = self.lr.or(saved.map(|s| s.schedule.lr)).unwrap_or(lr);
        let epochs = self.epochs.or(saved.map(|s| s.epochs)).unwrap_or(10);
        let decay = self.decay(saved.map(|s| s.schedule.decay), epochs)?;
        let augment = self.augment.map(Augment::from).or(saved.map(|s| s.transform.augment)).unwrap_or_default();
        let pixels = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let mut settings = Settings {
            thawline: env!("CARGO_PKG_VERSION").into(),
            model: spec.name.into(),
            weights: self.weights.as_ref().map(std::path::absolute).transpose()?,
            data: images.data.clone(),
            classes: images.folder.classes.clone(),
            batch: self.batch.or(saved.map(|s| s.batch)).unwrap_or(32),
            accumulate: self.accumulate.or(saved.map(|s| s.accumulate)).unwrap_or(1),
            epochs,
            seed: self.seed(saved),
            label_smoothing: self.label_smoothing.or(saved.map(|s| s.label_smoothing)).unwrap_or(0.0),
            val_fraction: self.val_fraction(saved),
            skip_broken: self.skip_broken || saved.is_some_and(|s| s.skip_broken),
            then: self.then.map(|ThenName::Recalibrate| Then::Recalibrate).or(saved.and_then(|s| s.then)),
            images: ImageSet::of(&images.folder, &images.data),
            policy: PolicySettings {
                name: policy.name.clone(),
                rules: policy.rules.iter().map(ToString::to_string).collect(),
            },
            optimizer,
            schedule: Schedule { lr, warmup: 0, decay },
            transform: Transform::new(pixels(size.height), pixels(size.width), augment),
        };
        let warmup = self.warmup.or(saved.map(|s| s.schedule.warmup));
        settings.schedule.warmup = warmup.unwrap_or(settings.steps() / 20);
        settings.check()?;
        Ok(settings)
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

/// Says in three lines what will run.
fn announce(settings: &Settings, network: &Graph, device: &Device) -> Result<()> {
    let Settings { model, policy, classes, images, batch, accumulate, transform, .. } = settings;
    let (height, width) = (transform.height as usize, transform.width as usize);
    output::line(format_args!("{model} at {} pixels on {}", Size { height, width }, device.info().name))?;
    output::line(format_args!("policy {}: {}", policy.name, what_trains(network)))?;
    let per_step = match accumulate {
        1 => format!("{batch}"),
        _ => format!("{batch} × {accumulate}"),
    };
    output::line(format_args!(
        "{} training and {} validation images of {} classes; {} epochs of {} steps of {per_step} images",
        images.train,
        images.val,
        classes.len(),
        settings.epochs,
        settings.steps_per_epoch(),
    ))
}

/// What trains and what moves, in a line.
fn what_trains(network: &Graph) -> String {
    let (mut trained, mut all, mut layers, mut moving) = (0, 0, 0, 0);
    for layer in network.layers() {
        let batch_norm = layer.setting.batch_norm;
        let vectors = match batch_norm.map_or(Affine::None, |mode| mode.affine) {
            Affine::None => 0,
            Affine::Gamma | Affine::Beta => 1,
            Affine::Both => 2,
        };
        let mut trained_here = 0;
        for param in layer.params.iter().map(|&param| network.param(param)) {
            let [kh, kw, _, out] = param.shape.0;
            let (values, trains) = match param.role {
                Role::ConvWeight | Role::LinearWeight => (kh * kw * param.channels * out, layer.setting.weights),
                Role::Bias => (out, layer.setting.weights),
                Role::Affine => {
                    trained_here += vectors * out;
                    (2 * out, false)
                }
                Role::Moments => (0, false),
            };
            all += values;
            trained_here += if trains { values } else { 0 };
        }
        trained += trained_here;
        layers += usize::from(trained_here > 0);
        moving += usize::from(batch_norm.is_some_and(|mode| mode.update != StatsUpdate::Off));
    }
    let statistics = match moving {
        0 => "no running statistics move".to_owned(),
        1 => "the running statistics of 1 batch norm move".to_owned(),
        _ => format!("the running statistics of {moving} batch norms move"),
    };
    let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
    format!("{} of {} weights train, in {layers}; {statistics}", output::count(trained), output::count(all))
}

/// `a, b, c, …`
fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, …") } else { shown }
}

/// A line an epoch, and on a terminal a bar below them.
struct Display {
    bar: ProgressBar,
    epochs: usize,
}

impl Display {
    fn new(settings: &Settings) -> Self {
        let bar = ProgressBar::with_draw_target(Some(settings.steps()), ProgressDrawTarget::stderr());
        // A template that is known to be sound; the default one would do too.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} · {eta} left") {
            bar.set_style(style);
        }
        Self { bar, epochs: settings.epochs }
    }

    fn show(&self, event: &Event<'_>) -> Result<(), io::Error> {
        match *event {
            Event::Started { step, .. } => {
                // Time left is reckoned from here.
                self.bar.set_position(step);
                self.bar.reset_eta();
            }
            Event::Step(StepMetrics { epoch, step, epoch_totals, images_per_s, .. }) => {
                self.bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
                self.bar.set_message(format!("loss {:.4} · {images_per_s:.0} images/s", epoch_totals.mean_loss()));
                self.bar.set_position(step);
            }
            Event::Validating { batches, of } => self.bar.set_message(format!("validating {batches}/{of}")),
            Event::Epoch { history, images_per_s } => {
                if let Some(metrics) = history.last() {
                    let line = self.epoch_line(metrics, images_per_s);
                    return self.bar.suspend(|| writeln!(io::stdout().lock(), "{line}"));
                }
            }
            Event::Recalibrated { val } => {
                let mut line = "recalibrated   ".to_owned();
                if let Some(val) = val {
                    line += &totals("val", val);
                }
                return self.bar.suspend(|| writeln!(io::stdout().lock(), "{}", line.trim_end()));
            }
        }
        Ok(())
    }

    fn epoch_line(&self, metrics: &EpochMetrics, images_per_s: Option<f64>) -> String {
        let EpochMetrics { epoch, train, val, skipped, .. } = *metrics;
        let mut line = match epoch {
            0 => "before training".to_owned(),
            _ => format!("epoch {epoch:>2}/{}    ", self.epochs),
        };
        for (name, of) in [("train", train), ("val", val)] {
            if let Some(of) = of {
                line += &totals(name, of);
            }
        }
        if let Some(speed) = images_per_s {
            line += &format!("  {speed:.0} images/s");
        }
        if skipped > 0 {
            line += &format!("  {skipped} broken images skipped");
        }
        line
    }
}

/// A line's part on the images of one kind.
fn totals(name: &str, totals: Totals) -> String {
    let (loss, top1, top5) = (totals.mean_loss(), percent(totals.accuracy()), percent(totals.top5_accuracy()));
    format!("  {name} loss {loss:.4} top-1 {top1} top-5 {top5}")
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Accuracy before and after, and where the files are.
fn summarise(run: &Run) -> Result<()> {
    let history = run.history();
    let file = |name: &str| run.folder().join(name).display().to_string();
    let accuracy = |metrics: &EpochMetrics| metrics.val.map(|val| percent(val.accuracy()));
    let before = history.first().and_then(accuracy);
    let (last, best) = (history.last(), best(history));
    if let (Some(before), Some(last), Some(best)) = (before, last, best) {
        let when = match best.epoch {
            0 => "before training".to_owned(),
            epoch => format!("after epoch {epoch}"),
        };
        let [after, at_best] = [last, best].map(|metrics| accuracy(metrics).unwrap_or_default());
        output::line(format_args!("validation top-1: {before} before, {after} after; best {at_best} {when}"))?;
        output::line(format_args!("best weights: {}", file(BEST_FILE)))?;
    }
    output::line(format_args!("last weights: {}", file(LAST_FILE)))?;
    if run.settings().then == Some(Then::Recalibrate) {
        output::line(format_args!("recalibrated: {}", file(RECALIBRATED_FILE)))?;
    }
    output::line(format_args!("metrics:      {} (and TensorBoard events beside it)", file(METRICS_FILE)))
}
