//! `thawline finetune`: from a weights file and a folder of images to a better weights file.

use super::args::{self, Size, policy_help};
use super::lr_find::range_test;
use super::progress;
use super::source;
use super::training::{DataArgs, LrChoice, Told, TrainingArgs, announce_classes};
use super::{events, output};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thawline::data::DataError;
use thawline::formats::{Format, class_file};
use thawline::gpu::Device;
use thawline::graph::Graph;
use thawline::identify::identify;
use thawline::lab::of_words;
use thawline::policy::{Policy, Rule};
use thawline::report::{LrFinding, METRICS_FILE, RunLog, Trained, trained_values};
use thawline::study::{self, Images, Options, Tuning};
use thawline::train::{
    BEST_FILE, EpochMetrics, Event, LAST_FILE, LrRange, Outcome, RECALIBRATED_FILE, Run, Settings, StepMetrics, Then,
    Totals, TrainError, best, check_apart,
};

/// Fine-tune a network on a folder of images
///
/// Trains on DATA/train and validates on DATA/val, or on a split of DATA, before the first epoch and after each. The
/// folder OUT gets best.safetensors and last.safetensors, with the names of the framework that the weights came from, and
/// copies of the Keras file if they came from one; metrics.csv, TensorBoard events, run.toml with every setting, and a
/// checkpoint. Ctrl-C finishes the step and saves; --resume continues, and gives the same bits as a run that never stopped.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline finetune --weights resnet18.pth --data photos --out run
  thawline finetune --weights hf:timm/resnet18.a1_in1k --data photos \\
    --out run --policy head --set 'from:layer4 -> weights=train' --lr 0.005
  thawline finetune --weights resnet18.pth --data photos --out run \\
    --policy bn-only --augment crop-flip --then recalibrate
  thawline finetune --resume run")]
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
    /// A rule that comes after the policy's own; repeatable. Examples: 'from:layer4 & kind:bn -> stats=batch,
    /// update=ema(0.9)', 'index:efficientnetb0/100.. -> weights=train'
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    training: TrainingArgs,
    /// What comes after the last epoch. recalibrate estimates all running statistics anew, over the training images without
    /// augmentation, and writes recalibrated.safetensors
    #[arg(long, value_enum, value_name = "STEP")]
    then: Option<ThenName>,
    /// Print JSON: one event per line
    ///
    /// `run` says what runs, `step`, `validating`, `epoch` and `recalibrated` how it goes; the last, `result`, has {folder,
    /// first, best, last: epochs, weights, metrics: files}. docs/events.md describes all events; with --quiet, only the
    /// last is printed.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ThenName {
    Recalibrate,
}

impl Args {
    fn options(&self) -> Options {
        let then = self.then.map(|ThenName::Recalibrate| Then::Recalibrate);
        Options { then, ..self.training.options() }
    }
}

pub fn run(args: Args) -> Result<()> {
    events::begin(args.json, "finetune")?;
    let told = Told::new();
    let mut run = match &args.resume {
        None => start(&args, &told)?,
        Some(folder) => {
            let folder = folder.as_ref().or(args.out.as_ref()).context("name the run's folder: --resume DIR")?;
            if args.out.as_ref().is_some_and(|out| out != folder) {
                bail!("--resume and --out name two folders, but a run goes on in its own");
            }
            resume(&args, folder, &told)?
        }
    };
    drop(told);
    // Not before: until there is a run to save, as while weights are downloaded, Ctrl-C ends the process at once.
    let stop = stop_on_ctrl_c()?;
    let mut log = RunLog::open(run.folder(), run.step())?;
    let display = Display::new(run.settings(), run.is_uneven());
    let outcome = run.run(&stop, |event| {
        log.record(&event)?;
        display.show(&event);
        events::of_run(&json!({}), &event)?;
        Ok(())
    });
    display.bar.finish_and_clear();
    match outcome {
        Ok(Outcome::Finished) => summarise(&run),
        Ok(Outcome::Stopped) => {
            let (done, of, folder) = (run.step(), run.settings().steps(), output::quoted(run.folder()));
            // With it goes the lock on its folder.
            drop((run, log));
            let command = format!("thawline finetune --resume {folder}");
            let told = match events::are_on() {
                true => events::stopped(&command),
                false => output::prose(format_args!("stopped after step {done} of {of}, and saved; continue with:"))
                    .and_then(|()| output::line(format_args!("  {command}"))),
            };
            if let Err(error) = told {
                output::error(error);
            }
            // A script must not take a stopped run for a finished one.
            std::process::exit(INTERRUPTED)
        }
        Err(error @ TrainError::Device { .. }) => {
            Err(anyhow!("{error}; go on with: thawline finetune --resume {}", output::quoted(run.folder())))
        }
        Err(TrainError::Data(error)) => Err(broken(error, "finetune", run.folder())),
        Err(error) => Err(error.into()),
    }
}

/// The error of an image, with the command that goes on past it.
pub fn broken(error: DataError, command: &str, folder: &Path) -> anyhow::Error {
    match error.is_of_an_image() {
        true => anyhow!(
            "{error}; to leave such images out, go on with: thawline {command} --resume {} --skip-broken",
            output::quoted(folder)
        ),
        false => error.into(),
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
        output::note("");
        output::note("stopping after this step; press Ctrl-C again to quit at once");
    })?;
    Ok(stop)
}

/// Begins a run in `--out`.
fn start(args: &Args, told: &Told) -> Result<Run> {
    let training = &args.training;
    let (data, out) =
        (args.data.data.as_ref().context("--data is missing")?, args.out.as_ref().context("--out is missing")?);
    check_apart(data, out)?;
    let options = args.options();
    let images = Images::open(data, &options, None)?;
    let model = training.read_model(images.folder.classes.len())?;
    let policy = match &args.policy {
        Some(name) => Policy::load(name)?,
        None => Policy::recipe("full")?,
    };
    let policy = policy.with_last_rules(&args.rules)?;
    let tuning = images.tuning(model, &policy, &options, Some(out), told)?;
    begin(args, tuning, out)
}

/// Begins a run in `folder` with the learning rate that is asked for, or that is looked for.
fn begin(args: &Args, mut tuning: Tuning, folder: &Path) -> Result<Run> {
    let training = &args.training;
    let device = training.device.open()?;
    if let Some(file) = study::own_file(&tuning.settings, &folder.join(LAST_FILE)) {
        training.preprocess.warn_of_copy(&file);
    }
    match &training.lr {
        Some(LrChoice::Rates(rates)) if rates.len() > 1 => {
            bail!("--lr: several rates are for compare; give one, or auto")
        }
        Some(LrChoice::Auto) => {
            // Until there is a run to save, Ctrl-C ends the process at once.
            let test = range_test(&tuning, &device, &LrRange::default(), None, &AtomicBool::new(false))?;
            if let Some(test) = test {
                tuning.take_rate(&test)?;
                let policy = tuning.settings.policy.name.clone();
                output::status(format_args!("learning rate {}", LrFinding { policy, test }.in_words()))?;
            }
        }
        Some(LrChoice::Rates(_)) | None => {}
    }
    announce(&tuning.settings, &tuning.stages, &device)?;
    announce_classes(&tuning.images().folder, &tuning.settings)?;
    Ok(tuning.start(&device, folder)?)
}

/// Goes on with the run in `folder`, or begins it, if it was cut off before it could save anything.
fn resume(args: &Args, folder: &Path, told: &Told) -> Result<Run> {
    let saved = Settings::of_run(folder)?;
    let (training, options) = (&args.training, args.options());
    let data = args.data.data.as_ref().unwrap_or(&saved.data);
    // Before the images: the folder of the run may be among them.
    check_apart(data, folder)?;
    let images = Images::open(data, &options, Some(&saved))?;
    let is_begun = study::is_begun(folder);
    if is_begun && training.device.variant.is_some() {
        bail!("--variant: a run goes on with the one that it was begun with; leave it out");
    }
    let mut spec = match &training.model {
        Some(model) if *model != saved.model => args::spec(model)?,
        _ => study::spec_of(&saved)?,
    };
    // Others than the run's own are refused, by name.
    spec.preprocessing = spec.preprocessing.with(&training.preprocess.parts(), "the command line");
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
    let file = training.weights.as_ref().or(saved.weights.as_ref()).filter(|_| !is_begun);
    let mut state = file.map(|file| source::load(file, &training.source(&saved))).transpose()?;
    if let Some(state) = &mut state {
        identify(state, study::known(&spec, &saved))?;
        args::print_notes(state.origin.as_deref(), &state.notes);
    }
    let tuning = images.resumed(&saved, folder, &spec, &policy, state, &options, told)?;
    if !is_begun {
        return begin(args, tuning, folder);
    }
    let device = training.device.open()?;
    let stages = tuning.stages.clone();
    let run = tuning.start(&device, folder)?;
    announce(run.settings(), &stages, &device)?;
    output::status(format_args!("resumed after step {} of {}", run.step(), run.settings().steps()))?;
    Ok(run)
}

/// Says in a few lines what will run.
fn announce(settings: &Settings, stages: &[Graph], device: &Device) -> Result<()> {
    let Settings { model, policy, classes, images, batch, accumulate, transform, .. } = settings;
    let (height, width) = (transform.height as usize, transform.width as usize);
    if let Some(lag) = settings.lag_in_words(stages) {
        output::warning(lag);
    }
    output::status(format_args!("{model} at {} pixels on {}", Size { height, width }, device.info().name))?;
    output::status(format_args!("images: {}", transform.preprocessing.describe((height, width))))?;
    for (index, (start, network)) in [0].into_iter().chain(settings.stage_starts()).zip(stages).enumerate() {
        let what = what_trains(network);
        match index {
            0 => output::status(format_args!("policy {}: {what}", policy.name))?,
            _ => {
                output::status(format_args!(
                    "after {start} of {}: {what}",
                    output::quantity(settings.steps(), "step")
                ))?;
            }
        }
    }
    let per_step = match accumulate {
        1 => output::quantity(*batch, "image"),
        _ => format!("{batch} × {accumulate} images"),
    };
    output::status(format_args!(
        "{} training and {} of {}; {} of {} of {per_step}",
        images.train,
        output::quantity(images.val, "validation image"),
        output::quantity(classes.len(), "class"),
        output::quantity(settings.epochs, "epoch"),
        output::quantity(settings.steps_per_epoch(), "step"),
    ))?;
    if let Some(what) = settings.left_over_in_words() {
        output::status(what)?;
    }
    let words: Vec<String> = stages.iter().map(what_trains).collect();
    events::emit(
        "run",
        json!({
            "model": model,
            "size": [height, width],
            "device": device.info().name,
            "policy": policy.name,
            "stages": words,
            "classes": classes,
            "train_images": images.train,
            "val_images": images.val,
            "batch": batch,
            "accumulate": accumulate,
            "epochs": settings.epochs,
            "steps": settings.steps(),
        }),
    )
}

/// What trains and what moves, in a line.
fn what_trains(network: &Graph) -> String {
    let Trained { values, all, layers, moving } = trained_values(network);
    let statistics = match moving {
        0 => "no running statistics move".to_owned(),
        _ => format!("the running statistics of {} move", output::quantity(moving, "batch norm")),
    };
    let layers = output::quantity(layers, "layer");
    format!("{} of {} weights train, in {layers}; {statistics}", output::count(values), output::count(all))
}

/// A line an epoch, and on a terminal a bar below them.
struct Display {
    bar: ProgressBar,
    epochs: usize,
    /// Whether accuracy needs the balanced one beside it.
    uneven: bool,
}

impl Display {
    fn new(settings: &Settings, uneven: bool) -> Self {
        let bar = progress::bars().add(ProgressBar::new(settings.steps()));
        bar.set_style(progress::style("{prefix} {wide_bar} {pos}/{len} {msg} · {eta} left"));
        Self { bar, epochs: settings.epochs, uneven }
    }

    /// Shows what happened, if anybody looks: training goes on in any case.
    fn show(&self, event: &Event<'_>) {
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
                    tell(&self.epoch_values(metrics, images_per_s));
                }
            }
            Event::Recalibrated { val } => {
                let mut values = vec!["recalibrated   ".to_owned()];
                values.extend(val.map(|val| totals("val", val)));
                tell(&values);
            }
        }
    }

    fn epoch_values(&self, metrics: &EpochMetrics, images_per_s: Option<f64>) -> Vec<String> {
        let EpochMetrics { epoch, train, val, skipped, val_balanced, .. } = *metrics;
        let mut values = vec![match epoch {
            0 => "before training".to_owned(),
            _ => format!("epoch {epoch:>2}/{}    ", self.epochs),
        }];
        for (name, of) in [("train", train), ("val", val)] {
            values.extend(of.map(|of| totals(name, of)));
        }
        values.extend(val_balanced.filter(|_| self.uneven).map(|balanced| format!("balanced {}", percent(balanced))));
        values.extend(images_per_s.map(|speed| format!("{speed:.0} images/s")));
        if skipped > 0 {
            values.push(format!("{} skipped", output::quantity(skipped, "broken image")));
        }
        values
    }
}

/// Prints a line of an epoch.
fn tell(values: &[String]) {
    if output::has_status() {
        // An error shows when the run is summed up.
        let _ = output::joined(values, "  ");
    }
}

/// A line's values on the images of one kind.
fn totals(name: &str, totals: Totals) -> String {
    let (loss, top1, top5) = (totals.mean_loss(), percent(totals.accuracy()), percent(totals.top5_accuracy()));
    format!("{name} loss {loss:.4} top-1 {top1} top-5 {top5}")
}

pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The weights that a run may leave.
const WEIGHTS_FILES: [&str; 3] = [BEST_FILE, LAST_FILE, RECALIBRATED_FILE];

/// Accuracy before and after, and where the files are.
fn summarise(run: &Run) -> Result<()> {
    let history = run.history();
    if events::are_on() {
        let files = WEIGHTS_FILES.map(|name| run.folder().join(name));
        let mut weights: Vec<PathBuf> = files.into_iter().filter(|file| file.exists()).collect();
        weights.extend(study::write_own_format(run.settings(), run.folder(), &WEIGHTS_FILES, &Told::quiet())?);
        return events::result(&json!({
            "folder": run.folder(),
            "first": history.first().map(events::epoch),
            "best": best(history).map(events::epoch),
            "last": history.last().map(events::epoch),
            "ended_early": run.ended_early(),
            "weights": weights,
            "metrics": run.folder().join(METRICS_FILE),
        }));
    }
    if run.ended_early() {
        output::line(format_args!(
            "ended after epoch {} of {}: {} without a better one (--patience)",
            history.len().saturating_sub(1),
            run.settings().epochs,
            output::quantity(run.settings().patience.unwrap_or(0), "epoch")
        ))?;
    }
    let file = |name: &str| {
        let path = run.folder().join(name);
        let gone = if path.exists() { "" } else { " is not there any more: somebody removed it" };
        format!("{}{gone}", path.display())
    };
    let accuracy = |metrics: &EpochMetrics| metrics.val.map(|val| percent(val.accuracy()));
    let before = history.first().and_then(accuracy);
    let (last, best) = (history.last(), best(history));
    if let (Some(before), Some(last), Some(best)) = (before, last, best) {
        let when = match best.epoch {
            0 => "before training".to_owned(),
            epoch => format!("after epoch {epoch}"),
        };
        let [after, at_best] = [last, best].map(|metrics| accuracy(metrics).unwrap_or_default());
        output::prose(format_args!("validation top-1: {before} before, {after} after; best {at_best} {when}"))?;
        output::line(format_args!("best weights: {}", file(BEST_FILE)))?;
    }
    output::line(format_args!("last weights: {}", file(LAST_FILE)))?;
    if run.settings().then == Some(Then::Recalibrate) {
        output::line(format_args!("recalibrated: {}", file(RECALIBRATED_FILE)))?;
    }
    let metrics = format!("metrics:      {}", file(METRICS_FILE));
    output::joined(&[metrics, "(and TensorBoard events beside it)".to_owned()], " ")?;
    // Last, since it can fail: the Keras file may be gone by now.
    for file in study::write_own_format(run.settings(), run.folder(), &WEIGHTS_FILES, &Told::quiet())? {
        let whom = format!("for {}:", Format::of_name(&file).map_or("", |format| format.facts().name));
        let (names, file) = (class_file(&file), file.display());
        output::line(format_args!("{whom:<13} {file} (class names beside it: {})", names.display()))?;
    }
    Ok(())
}
