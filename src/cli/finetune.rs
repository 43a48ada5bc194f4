//! `thawline finetune`: from a weights file and a folder of images to a better weights file.

use super::args::{self, Size, policy_help};
use super::output;
use super::training::{self, Images, TrainingArgs};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thawline::data::Transform;
use thawline::gpu::Device;
use thawline::graph::Graph;
use thawline::lab::{in_words, of_words};
use thawline::models::Spec;
use thawline::policy::{self, Policy, Rule};
use thawline::report::{METRICS_FILE, RunLog, Trained, trained_values};
use thawline::train::{
    BEST_FILE, EpochMetrics, Event, LAST_FILE, Outcome, RECALIBRATED_FILE, Run, Settings, StepMetrics, Then, Totals,
    TrainError, best,
};
use thawline::weights::{self, StateDict};

/// Fine-tune a network on a folder of images
///
/// Trains on DATA/train and validates on DATA/val, or on a split of DATA, before the first epoch and after each. The
/// folder OUT gets best.safetensors and last.safetensors, with the names of the framework that the weights came from, and
/// copies of the Keras file if they came from one; metrics.csv, TensorBoard events, run.toml with every setting, and a
/// checkpoint. Ctrl-C finishes the step and saves; --resume continues, and gives the same bits as a run that never stopped.
#[derive(clap::Args)]
pub struct Args {
    /// Where the results go: a new or empty folder
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Continue the run in DIR (or in --out) where it stopped, with the settings that it began with
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,

    #[arg(
        long,
        value_name = "NAME|FILE.toml",
        help = policy_help("What trains and how batch norms behave", " [default: full]")
    )]
    policy: Option<String>,
    /// A rule that comes after the policy's own; repeatable. Example: 'from:layer4 & kind:bn -> stats=batch,
    /// update=ema(0.9)'
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    #[command(flatten)]
    training: TrainingArgs,
    /// What comes after the last epoch. recalibrate estimates all running statistics anew, over the training images without
    /// augmentation, and writes recalibrated.safetensors
    #[arg(long, value_enum, value_name = "STEP")]
    then: Option<ThenName>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ThenName {
    Recalibrate,
}

pub fn run(args: Args) -> Result<()> {
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
    // Not before: until there is a run to save, as while weights are downloaded, Ctrl-C ends the process at once.
    let stop = stop_on_ctrl_c()?;
    let mut log = RunLog::open(run.folder(), run.step())?;
    let display = Display::new(run.settings());
    let outcome = run.run(&stop, |event| {
        log.record(&event)?;
        display.show(&event)?;
        Ok(())
    });
    display.bar.finish_and_clear();
    let outcome = outcome.map_err(|error| match error {
        TrainError::Device { .. } => {
            anyhow!("{error}; go on with: thawline finetune --resume {}", output::quoted(run.folder()))
        }
        other => other.into(),
    })?;
    match outcome {
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
pub const INTERRUPTED: i32 = 130;

/// A flag that the first Ctrl-C sets; the second one ends the process.
pub fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
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
    let training = &args.training;
    let (data, out) =
        (training.data.as_ref().context("--data is missing")?, args.out.as_ref().context("--out is missing")?);
    let images = Images::open(training, None, data)?;
    let model = training.read_model(images.folder.classes.len())?;
    let policy = match &args.policy {
        Some(name) => Policy::load(name)?,
        None => Policy::recipe("full")?,
    };
    let policy = policy.with_last_rules(&args.rules)?;
    let size = model.size(training.size.size);
    let mut settings = training.settings(None, model.origin()?, &images, &model.spec, size, in_words(&policy))?;
    settings.then = args.then.map(|ThenName::Recalibrate| Then::Recalibrate);
    let stages = stages(&settings, &model.spec, &policy)?;
    let network = &stages[0];
    let device = args.training.device.open()?;

    let tensors = match (model.state, &training.weights) {
        (Some(state), Some(file)) => {
            let loaded = weights::from_state(network, state, settings.seed)?;
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
        _ => weights::initialise(network, settings.seed),
    };
    if let Some((source, form)) = keras_source(&settings) {
        let file = with_form(&out.join(LAST_FILE), form);
        args::check_weights(&weights::to_state(network, &tensors), Some(source), &file)?;
        training.preprocess.warn_of_keras(&file);
    }
    announce(&settings, &stages, &device)?;
    Ok(images.job(&device, stages, &model.spec, settings).start(&tensors, out)?)
}

/// Goes on with the run in `folder`.
fn resume(args: &Args, folder: &Path) -> Result<Run> {
    let saved = Settings::of_run(folder)?;
    let training = &args.training;
    let images = Images::open(training, Some(&saved), training.data.as_ref().unwrap_or(&saved.data))?;
    if training.device.variant.is_some() {
        bail!("--variant: a run goes on with the one that it was begun with; leave it out");
    }
    let mut spec = match &training.model {
        Some(model) if *model != saved.model => args::spec(model)?,
        _ => training::spec(&saved)?,
    };
    // Others than the run's own are refused below, by name.
    spec.preprocessing = spec.preprocessing.with(&training.preprocess.parts(), "the command line");
    let Transform { height, width, .. } = saved.transform;
    let size = training.size.size.unwrap_or(Size { height: height as usize, width: width as usize });
    let policy = match &args.policy {
        Some(name) => Policy::load(name)?.with_last_rules(&args.rules)?,
        // Given once more, its own last rules are not added a second time.
        None => {
            let given: Vec<String> =
                args.rules.iter().map(|rule| Ok(rule.parse::<Rule>()?.to_string())).collect::<Result<_>>()?;
            let policy = of_words(&saved.policy)?;
            if saved.policy.rules.ends_with(&given) { policy } else { policy.with_last_rules(&given)? }
        }
    };
    let mut settings =
        training.settings(Some(&saved), saved.weights.clone(), &images, &spec, size, in_words(&policy))?;
    settings.then = args.then.map(|ThenName::Recalibrate| Then::Recalibrate).or(saved.then);
    let stages = stages(&settings, &spec, &policy)?;
    let device = args.training.device.open()?;
    let run = images.job(&device, stages.clone(), &spec, settings).resume(folder)?;
    announce(run.settings(), &stages, &device)?;
    output::line(format_args!("resumed after step {} of {}", run.step(), run.settings().steps()))?;
    Ok(run)
}

/// The network in each stage of its policy. The policy's warnings go to standard error.
fn stages(settings: &Settings, spec: &Spec, policy: &Policy) -> Result<Vec<Graph>> {
    let Transform { height, width, .. } = settings.transform;
    let network = spec.build(settings.batch, (height as usize, width as usize), settings.classes.len())?;
    let stages = policy::resolve_stages(policy, &network)?;
    stages
        .into_iter()
        .map(|(_, resolved)| {
            for warning in &resolved.warnings {
                eprintln!("warning: {warning}");
            }
            resolved.check_training()?;
            Ok(resolved.graph)
        })
        .collect()
}

/// Says in a few lines what will run.
fn announce(settings: &Settings, stages: &[Graph], device: &Device) -> Result<()> {
    let Settings { model, policy, classes, images, batch, accumulate, transform, .. } = settings;
    let (height, width) = (transform.height as usize, transform.width as usize);
    output::line(format_args!("{model} at {} pixels on {}", Size { height, width }, device.info().name))?;
    output::line(format_args!("images: {}", transform.preprocessing.describe((height, width))))?;
    for (index, (start, network)) in [0].into_iter().chain(settings.stage_starts()).zip(stages).enumerate() {
        let what = what_trains(network);
        match index {
            0 => output::line(format_args!("policy {}: {what}", policy.name))?,
            _ => output::line(format_args!("after {start} of {} steps: {what}", settings.steps()))?,
        }
    }
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
    let Trained { values, all, layers, moving } = trained_values(network);
    let statistics = match moving {
        0 => "no running statistics move".to_owned(),
        1 => "the running statistics of 1 batch norm move".to_owned(),
        _ => format!("the running statistics of {moving} batch norms move"),
    };
    let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
    format!("{} of {} weights train, in {layers}; {statistics}", output::count(values), output::count(all))
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

pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The Keras file that a run's weights came from, if they came from one, and its form.
fn keras_source(settings: &Settings) -> Option<(&Path, &'static str)> {
    let source = settings.weights.as_deref()?;
    Some((source, args::keras_form(source)?))
}

/// A file's name with the ending of one of Keras's.
fn with_form(file: &Path, form: &str) -> PathBuf {
    file.with_extension(form.trim_start_matches('.'))
}

/// Beside each weights file of the run a copy of the Keras file that it came from, if it did, with the new weights.
fn write_keras(run: &Run) -> Result<Vec<PathBuf>> {
    let Some((source, form)) = keras_source(run.settings()) else { return Ok(Vec::new()) };
    let files = [BEST_FILE, LAST_FILE, RECALIBRATED_FILE].map(|name| run.folder().join(name));
    files
        .into_iter()
        .filter(|file| file.exists())
        .map(|file| {
            let out = with_form(&file, form);
            args::save_weights(&StateDict::load(&file)?, Some(source), &out).with_context(|| {
                format!(
                    "{} is not written, though {} holds the same weights; resume the run once what is wrong is mended",
                    out.display(),
                    file.display()
                )
            })?;
            Ok(out)
        })
        .collect()
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
    output::line(format_args!("metrics:      {} (and TensorBoard events beside it)", file(METRICS_FILE)))?;
    // Last, since it can fail: the Keras file may be gone by now.
    for file in write_keras(run)? {
        output::line(format_args!("for Keras:    {}", file.display()))?;
    }
    Ok(())
}
