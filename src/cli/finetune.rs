//! `thawline finetune`: from a weights file and a folder of images to a better weights file.

use super::args::{self, Size, policy_help};
use super::lr_find::range_test;
use super::progress::{self, Progress};
use super::source;
use super::training::{self, DataArgs, Images, LrChoice, TrainingArgs};
use super::{events, output};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thawline::data::{DataError, Transform};
use thawline::gpu::Device;
use thawline::graph::Graph;
use thawline::identify::{Known, identify};
use thawline::lab::{in_words, of_words};
use thawline::model;
use thawline::models::Spec;
use thawline::policy::{self, Policy, Rule};
use thawline::report::{LrFinding, METRICS_FILE, RunLog, Trained, trained_values};
use thawline::tensor::HostTensor;
use thawline::train::{
    BEST_FILE, CHECKPOINT_FILE, EpochMetrics, Event, HeadStart, LAST_FILE, LrRange, Outcome, RECALIBRATED_FILE, Run,
    Settings, StepMetrics, Then, Totals, TrainError, best, check_apart, takes_batch_statistics,
};
use thawline::weights::keras::class_file;
use thawline::weights::{self, NewHead, StateDict};

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

pub fn run(args: Args) -> Result<()> {
    events::begin(args.json, "finetune")?;
    let progress = Progress::new("reading weights and images");
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
    drop(progress);
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
fn start(args: &Args) -> Result<Run> {
    let training = &args.training;
    let (data, out) =
        (args.data.data.as_ref().context("--data is missing")?, args.out.as_ref().context("--out is missing")?);
    check_apart(data, out)?;
    let images = Images::open(training, None, data)?;
    let model = training.read_model(images.folder.classes.len())?;
    training.check_start(&model, &images.folder.classes, data)?;
    let policy = match &args.policy {
        Some(name) => Policy::load(name)?,
        None => Policy::recipe("full")?,
    };
    let policy = policy.with_last_rules(&args.rules)?;
    let size = model.size(training.size.size);
    let stages = stages(&model.spec, &policy, training.batches(None), size, images.folder.classes.len())?;
    let drop_last = stages.iter().any(takes_batch_statistics);
    let policy = in_words(&policy);
    let mut settings = training.settings(None, model.origin()?, &images, &model.spec, size, policy, drop_last)?;
    settings.then = args.then.map(|ThenName::Recalibrate| Then::Recalibrate);
    if training.lr.is_none() {
        settings.schedule.lr = settings.optimizer.default_lr(stages.iter().any(Graph::trains_convolutions));
    }
    let network = &stages[0];
    let device = args.training.device.open()?;
    let file = training.weights.as_deref().unwrap_or(Path::new("the weights file"));
    let tensors = first_tensors(network, model.state, file, data, &settings)?;
    check_keras(training, &settings, network, &tensors, out)?;
    find_rate(training, &images, &model.spec, &stages, &device, &tensors, &mut settings)?;
    announce(&settings, &stages, &device)?;
    training::announce_classes(&images.folder, &settings)?;
    Ok(images.job(&device, stages, &model.spec, settings).start(&tensors, out)?)
}

/// Under `--lr auto`, puts the rate that a range test suggests into the settings of a run that begins.
fn find_rate(
    training: &TrainingArgs,
    images: &Images,
    spec: &Spec,
    stages: &[Graph],
    device: &Device,
    tensors: &[HostTensor],
    settings: &mut Settings,
) -> Result<()> {
    match &training.lr {
        Some(LrChoice::Rates(rates)) if rates.len() > 1 => {
            bail!("--lr: several rates are for compare; give one, or auto")
        }
        Some(LrChoice::Auto) => {}
        _ => return Ok(()),
    }
    let job = images.job(device, stages.to_vec(), spec, settings.clone());
    // Until there is a run to save, Ctrl-C ends the process at once.
    let test = range_test(job, tensors, &LrRange::default(), &AtomicBool::new(false))?;
    let Some((test, lr)) = test.and_then(|test| Some((test.clone(), test.suggested?))) else {
        bail!("--lr auto: no rate that was tried lowers the loss: give one, such as --lr 0.01, and look at the images")
    };
    let policy = settings.policy.name.clone();
    output::status(format_args!("learning rate {}", LrFinding { policy, test }.in_words()))?;
    settings.schedule.lr = lr;
    Ok(())
}

/// The parameters that a run starts from: those of the weights file, or random ones. Says what becomes of a head that is not
/// for the run's classes.
pub fn first_tensors(
    network: &Graph,
    state: Option<StateDict>,
    file: &Path,
    data: &Path,
    settings: &Settings,
) -> Result<Vec<HostTensor>> {
    let Some(state) = state else { return Ok(weights::initialise(network, settings.seed)) };
    let loaded = weights::from_state_with(network, state, settings.seed, settings.first_head())?;
    let why = match loaded.new_head {
        Some(NewHead::OtherClasses { found, asked }) => {
            format!("{} has {} and {} has {asked}", file.display(), output::quantity(found, "class"), data.display())
        }
        Some(NewHead::Absent) => {
            format!("{} has no head for {}", file.display(), output::quantity(settings.classes.len(), "class"))
        }
        Some(NewHead::Asked) => "--head new".to_owned(),
        None => return Ok(loaded.tensors),
    };
    if settings.head == Some(HeadStart::Keep) {
        bail!("--head keep: {why}, so there is no head to keep; leave --head out");
    }
    output::status(format_args!("{why}: the head starts anew"))?;
    Ok(loaded.tensors)
}

/// Refuses to begin a run whose results could not be written as the Keras file that its weights come from.
fn check_keras(
    training: &TrainingArgs,
    settings: &Settings,
    network: &Graph,
    tensors: &[HostTensor],
    out: &Path,
) -> Result<()> {
    let Some((source, form)) = keras_source(settings) else { return Ok(()) };
    let file = with_form(&out.join(LAST_FILE), form);
    model::check(&weights::to_state(network, tensors), Some(source), &file)?;
    training.preprocess.warn_of_keras(&file);
    Ok(())
}

/// Goes on with the run in `folder`, or begins it, if it was cut off before it could save anything.
fn resume(args: &Args, folder: &Path) -> Result<Run> {
    let saved = Settings::of_run(folder)?;
    let training = &args.training;
    let data = args.data.data.as_ref().unwrap_or(&saved.data);
    // Before the images: the folder of the run may be among them.
    check_apart(data, folder)?;
    let images = Images::open(training, Some(&saved), data)?;
    let begun = folder.join(CHECKPOINT_FILE).exists();
    if begun && training.device.variant.is_some() {
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
    let stages = stages(&spec, &policy, training.batches(Some(&saved)), size, images.folder.classes.len())?;
    // What the run was begun with; if it is another policy now, that is what is refused.
    let drop_last = if begun { saved.drop_last } else { stages.iter().any(takes_batch_statistics) };
    let policy = in_words(&policy);
    let weights = saved.weights.clone();
    let mut settings = training.settings(Some(&saved), weights, &images, &spec, size, policy, drop_last)?;
    settings.then = args.then.map(|ThenName::Recalibrate| Then::Recalibrate).or(saved.then);
    let device = args.training.device.open()?;
    if !begun {
        let file = training.weights.as_ref().or(saved.weights.as_ref());
        let mut state = file.map(|file| source::load(file, &training.source(&saved))).transpose()?;
        if let Some(state) = &mut state {
            let classes = Some(settings.classes.len());
            identify(state, Known { named: Some(&spec), classes, new_head: true, ..Known::default() })?;
            args::print_notes(state.origin.as_deref(), &state.notes);
        }
        settings.weights =
            state.as_ref().and_then(|state| state.origin.clone()).map(std::path::absolute).transpose()?;
        let file = file.map_or(Path::new(""), PathBuf::as_path);
        let tensors = first_tensors(&stages[0], state, file, data, &settings)?;
        check_keras(training, &settings, &stages[0], &tensors, folder)?;
        find_rate(training, &images, &spec, &stages, &device, &tensors, &mut settings)?;
        announce(&settings, &stages, &device)?;
        training::announce_classes(&images.folder, &settings)?;
        return Ok(images.job(&device, stages, &spec, settings).start(&tensors, folder)?);
    }
    let run = images.job(&device, stages.clone(), &spec, settings).resume(folder)?;
    announce(run.settings(), &stages, &device)?;
    output::status(format_args!("resumed after step {} of {}", run.step(), run.settings().steps()))?;
    Ok(run)
}

/// The network for batches of `batch` images, of which `accumulate` make a step, in each stage of its policy. The policy's
/// warnings go to standard error.
pub fn stages(
    spec: &Spec,
    policy: &Policy,
    (batch, accumulate): (usize, usize),
    size: Size,
    classes: usize,
) -> Result<Vec<Graph>> {
    let network = spec.build(batch, size.pair(), classes)?;
    let stages = policy::resolve_stages(policy, &network)?;
    stages
        .into_iter()
        .map(|(_, resolved)| {
            for warning in &resolved.warnings {
                output::warning(warning);
            }
            resolved.check_training(accumulate)?;
            Ok(resolved.graph)
        })
        .collect()
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

/// The Keras file that a run's weights came from, if they came from one, and its form.
fn keras_source(settings: &Settings) -> Option<(&Path, &'static str)> {
    let source = settings.weights.as_deref()?;
    Some((source, model::keras_form(source)?))
}

/// A file's name with the ending of one of Keras's.
fn with_form(file: &Path, form: &str) -> PathBuf {
    file.with_extension(form.trim_start_matches('.'))
}

/// Beside each of the weights files in `folder` that is there, a copy of the Keras file that it came from, if it did, with
/// the new weights.
pub fn write_keras(settings: &Settings, folder: &Path, files: &[&str]) -> Result<Vec<PathBuf>> {
    let Some((source, form)) = keras_source(settings) else { return Ok(Vec::new()) };
    files
        .iter()
        .map(|name| folder.join(name))
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
    if events::are_on() {
        let files = [BEST_FILE, LAST_FILE, RECALIBRATED_FILE].map(|name| run.folder().join(name));
        let mut weights: Vec<PathBuf> = files.into_iter().filter(|file| file.exists()).collect();
        weights.extend(write_keras(run.settings(), run.folder(), &[BEST_FILE, LAST_FILE, RECALIBRATED_FILE])?);
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
    for file in write_keras(run.settings(), run.folder(), &[BEST_FILE, LAST_FILE, RECALIBRATED_FILE])? {
        let (names, file) = (class_file(&file), file.display());
        output::line(format_args!("for Keras:    {file} (class names beside it: {})", names.display()))?;
    }
    Ok(())
}
