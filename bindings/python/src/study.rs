//! Whole runs and comparisons, from a folder of images.

use crate::array::from_json;
use crate::device::DeviceArgument;
use crate::error::{Error, detached};
use crate::model::{Model, SizeArgument};
use crate::policy::PolicyArgument;
use log::{info, warn};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use thawline::data::{Augment, Exif, Sampler};
use thawline::formats;
use thawline::identify::identify;
use thawline::lab::{self, LabEvent, of_words};
use thawline::model;
use thawline::policy;
use thawline::report::{self, RunLog, Timings, WINNER_FILE, events};
use thawline::study::{
    self, ClassWeights, Images, Note, Observer, OptimizerKind, Options, Rates, ScheduleKind, StudyError, model_options,
};
use thawline::train::{BEST_FILE, HeadStart, LAST_FILE, LrRange, Outcome, RECALIBRATED_FILE, Settings, Then, best};

/// The weights that a run may leave.
const WEIGHTS_FILES: [&str; 3] = [BEST_FILE, LAST_FILE, RECALIBRATED_FILE];

/// Where training starts.
#[derive(FromPyObject)]
pub enum Start {
    Model(Py<Model>),
    File(PathBuf),
}

/// A learning rate, or several to choose from, or "auto".
#[derive(FromPyObject)]
pub enum Rate {
    One(f64),
    Several(Vec<f64>),
    Word(String),
}

impl Rate {
    /// None is "auto".
    fn values(self) -> Result<Option<Vec<f64>>, Error> {
        let values = match self {
            Self::One(lr) => vec![lr],
            Self::Several(rates) => rates,
            Self::Word(word) if word == "auto" => return Ok(None),
            Self::Word(word) => {
                return Err(Error::argument(format!("lr: expected a number or \"auto\", not {word:?}")));
            }
        };
        match values.iter().all(|lr| lr.is_finite() && *lr > 0.0) && !values.is_empty() {
            true => Ok(Some(values)),
            false => Err(Error::argument("lr: expected numbers above 0")),
        }
    }
}

/// Fine-tunes a network on a folder of images: `thawline finetune`.
///
/// Trains on DATA/train and validates on DATA/val, or on a split of DATA, and writes the weights, a checkpoint, metrics.csv and
/// TensorBoard's events to `out`.
///
/// Args:
///     weights: A weights file, or a `Model`; None for random weights of `model`.
///     data: A folder with a folder of images for each class, or with train/ and val/ that hold such folders.
///     out: A new or empty folder.
///     policy: A `Policy`, the name of a recipe, or a policy file's.
///     model: The network, where the file does not tell.
///     lr: A learning rate; "auto" finds it by a range test; the default is for the optimiser and the policy.
///     device: A `Device`, a number of `devices()` or a part of a name.
///     callback: Called with a dict for each event; docs/events.md describes them. Where it returns False, the run stops
///         after the step, and is saved.
///     resume: Goes on with the run in `out`, with the settings that it was begun with.
///     options: epochs, batch, accumulate, seed, optimizer ("sgd", "adamw"), momentum, nesterov, weight_decay,
///         label_smoothing, class_weights ("balanced" or a file), sampler ("shuffled", "balanced"), patience, schedule
///         ("constant", "cosine", "step"), warmup, final_lr, step_epochs, gamma, augment ("none", "flip", "crop",
///         "crop-flip"), train_images, val_fraction, skip_broken, exif ("apply", "ignore"), max_pixels, head ("keep",
///         "new"), then ("recalibrate"), classes, size. The defaults are those of the command line.
///
/// Returns:
///     A dict: `folder`, `finished`, `ended_early`, `history` (a dict an epoch), `best`, `weights` (files) and `metrics` (a
///     file).
#[pyfunction]
#[pyo3(signature = (
    weights, data, out, policy=None, *, model=None, lr=None, device=None, callback=None, resume=false, **options
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords")]
pub fn finetune<'py>(
    py: Python<'py>,
    weights: Option<Start>,
    data: PathBuf,
    out: PathBuf,
    policy: Option<PolicyArgument>,
    model: Option<String>,
    lr: Option<Rate>,
    device: Option<DeviceArgument>,
    callback: Option<Py<PyAny>>,
    resume: bool,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut options = parse(options)?;
    let (is_auto, rates) = match lr.map(Rate::values).transpose()? {
        Some(None) => (true, None),
        rates => (false, rates.flatten()),
    };
    match rates.as_deref() {
        Some([lr]) => options.lr = Some(*lr),
        Some(_) => return Err(Error::argument("lr: several rates are for compare; give one, or \"auto\"").into()),
        None => {}
    }
    let policy = policy.as_ref().map(PolicyArgument::load).transpose()?;
    let device = DeviceArgument::open(py, device)?;
    let calls = Calls::new(callback);
    let told = Told;
    let done = detached(py, || {
        let mut tuning = match resume {
            true => {
                let saved = Settings::of_run(&out)?;
                let images = Images::open(&data, &options, Some(&saved))?;
                let spec = study::spec_of(&saved)?;
                let policy = policy.map_or_else(|| of_words(&saved.policy), Ok)?;
                let mut state = match study::is_begun(&out) {
                    true => None,
                    false => state_of(weights.as_ref(), saved.weights.as_deref(), saved.weights_set.as_deref())?,
                };
                if let Some(state) = &mut state {
                    identify(state, study::known(&spec, &saved)).map_err(StudyError::from)?;
                }
                images.resumed(&saved, &out, &spec, &policy, state, &options, &told)?
            }
            false => {
                let images = Images::open(&data, &options, None)?;
                let model = opened(weights.as_ref(), model.as_deref(), &images, &options)?;
                let policy = policy.map_or_else(|| policy::Policy::recipe("full"), Ok)?;
                images.tuning(model, &policy, &options, Some(&out), &told)?
            }
        };
        if is_auto && !tuning.is_begun() {
            let test = tuning.range_test(&device, &LrRange::default(), None, &calls.stop, |_, _| calls.check())?;
            match test {
                Some(test) => tuning.take_rate(&test)?,
                None => return Ok(Value::Null),
            }
        }
        let mut run = tuning.start(&device, &out)?;
        let mut log = RunLog::open(run.folder(), run.step())?;
        let outcome = run.run(&calls.stop, |event| {
            log.record(&event)?;
            let (name, fields) = events::of_run(&event);
            calls.tell(name, &Value::Null, fields);
            Ok(())
        })?;
        let mut files: Vec<PathBuf> = WEIGHTS_FILES.iter().map(|name| out.join(name)).filter(|f| f.exists()).collect();
        if outcome == Outcome::Finished {
            files.extend(study::write_own_format(run.settings(), run.folder(), &WEIGHTS_FILES, &told)?);
        }
        Ok(serde_json::json!({
            "folder": out,
            "finished": outcome == Outcome::Finished,
            "ended_early": run.ended_early(),
            "history": run.history().iter().map(events::epoch).collect::<Vec<_>>(),
            "best": best(run.history()).map(events::epoch),
            "weights": files,
            "metrics": out.join(report::METRICS_FILE),
        }))
    })?;
    calls.raise()?;
    from_json(py, &done)
}

/// Compares policies on the same images, from the same weights, with the same budget: `thawline compare`.
///
/// Args:
///     weights: A weights file, or a `Model`; None for random weights of `model`.
///     data: A folder of images, as in `finetune`.
///     out: A new or empty folder, which gets report.html, compare.json and the weights.
///     policies: Policies, names of recipes or policy files; by default those of the command line.
///     model: The network, where the file does not tell.
///     seeds: Runs of each policy.
///     lr: A learning rate for all; several of which each policy finds its own; "auto", the default, for those of the command
///         line.
///     cache_mib: Device memory for what frozen layers give, in MiB; it changes no result.
///     device, callback: As in `finetune`.
///     resume: Goes on with the comparison in `out`.
///     options: As in `finetune`.
#[pyfunction]
#[pyo3(signature = (
    weights, data, out, policies=None, *, model=None, seeds=3, lr=None, cache_mib=1024, device=None, callback=None,
    resume=false, **options
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords")]
pub fn compare(
    py: Python<'_>,
    weights: Option<Start>,
    data: PathBuf,
    out: PathBuf,
    policies: Option<Vec<PolicyArgument>>,
    model: Option<String>,
    seeds: u64,
    lr: Option<Rate>,
    cache_mib: u64,
    device: Option<DeviceArgument>,
    callback: Option<Py<PyAny>>,
    resume: bool,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Comparison> {
    let mut options = parse(options)?;
    let rates = match lr.map(Rate::values).transpose()? {
        None => Rates::SearchIfPossible,
        Some(None) => Rates::Search,
        Some(Some(rates)) => {
            options.lr = rates.first().copied();
            Rates::Given(rates)
        }
    };
    let policies = match policies {
        Some(policies) => policies.iter().map(PolicyArgument::load).collect::<Result<Vec<_>, _>>()?,
        None => lab::POLICIES.into_iter().map(policy::Policy::recipe).collect::<Result<_, _>>().map_err(Error::from)?,
    };
    let cache = cache_mib.checked_shl(20).unwrap_or(u64::MAX);
    let device = DeviceArgument::open(py, device)?;
    let calls = Calls::new(callback);
    let told = Told;
    let (comparison, finished) = detached(py, || {
        let mut lab = match resume {
            true => {
                let mut setup = lab::setup_of(&out)?;
                let images = Images::open(&data, &options, Some(&setup.settings))?;
                let (saved, set) = (&setup.settings.weights, setup.settings.weights_set.as_deref());
                let state = state_of(weights.as_ref(), saved.as_deref(), set)?;
                setup.cache = cache;
                setup.settings.skip_broken |= options.skip_broken;
                images.resumed_comparison(&device, setup, state, &out)?
            }
            false => {
                let images = Images::open(&data, &options, None)?;
                let model = opened(weights.as_ref(), model.as_deref(), &images, &options)?;
                images.comparison(&device, model, &policies, rates, seeds, cache, &options, &out, &told)?
            }
        };
        let comparison = lab.comparison();
        let names: Vec<String> = comparison.arms.iter().map(|arm| arm.name.clone()).collect();
        let seeds = comparison.seeds.clone();
        let which = |arm: usize, seed: usize| serde_json::json!({"policy": names[arm], "seed": seeds[seed]});
        let outcome = lab.run(&calls.stop, |event| {
            match event {
                LabEvent::Run { arm, seed, event } => {
                    let (name, fields) = events::of_run(&event);
                    calls.tell(name, &which(arm, seed), fields);
                }
                LabEvent::Done { arm, seed, run } => calls.tell("done", &which(arm, seed), events::done(run)),
                LabEvent::Searched { arm, search } => {
                    let fields = serde_json::json!({"lr": events::number(search.lr), "rates": search.rates()});
                    calls.tell("searched", &serde_json::json!({"policy": names[arm]}), fields);
                }
                LabEvent::Trial { .. } => calls.check(),
            }
            Ok(())
        })?;
        let finished = outcome == Outcome::Finished;
        let mut files = Vec::new();
        if lab.comparison().winner.is_some() {
            files.push(out.join(WINNER_FILE));
            files.extend(study::write_own_format(&lab.setup().settings, lab.folder(), &[WINNER_FILE], &told)?);
        }
        let (comparison, timings) = (lab.comparison().clone(), lab.timings().clone());
        Ok((Comparison { comparison, timings, folder: out.clone(), finished, files }, finished))
    })?;
    if !finished {
        calls.raise()?;
    }
    Ok(comparison)
}

/// What a comparison of policies found.
#[pyclass(frozen, module = "thawline")]
pub struct Comparison {
    comparison: report::Comparison,
    timings: Timings,
    folder: PathBuf,
    finished: bool,
    files: Vec<PathBuf>,
}

#[pymethods]
impl Comparison {
    /// Its folder.
    #[getter]
    fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether all runs are complete; False where the callback stopped it.
    #[getter]
    fn finished(&self) -> bool {
        self.finished
    }

    /// The page to look at.
    #[getter]
    fn report(&self) -> PathBuf {
        self.folder.join(lab::PAGE_FILE)
    }

    /// The weights files of the policy to use; none if it advises not to train.
    #[getter]
    fn weights(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    /// A dict a policy, of means over its runs: `policy`, `runs`, `lr`, `diverged`, `val_top1`, `deviation`,
    /// `best_val_top1`, `step_ms`, `flops`, `kept_bytes`, `drift`. `pandas.DataFrame(comparison.rows)` is a table of them.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        from_json(py, &Value::Array(events::policies(&self.comparison, &self.timings)))
    }

    /// What may be concluded, a text a paragraph; the first is the advice.
    #[getter]
    fn conclusion(&self) -> Vec<String> {
        report::conclusion(&self.comparison)
    }

    /// All numbers, as in compare.json.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let value = serde_json::to_value(&self.comparison);
        from_json(py, &value.map_err(|error| Error::argument(error.to_string()))?)
    }

    /// The advice and the page, in a frame.
    fn _repr_html_(&self) -> String {
        let page = report::page(&self.comparison, &self.timings);
        let page = page.replace('&', "&amp;").replace('"', "&quot;");
        format!("<iframe srcdoc=\"{page}\" style=\"width: 100%; height: 40em; border: 0\"></iframe>")
    }

    fn __str__(&self) -> String {
        self.conclusion().join("\n\n")
    }

    fn __repr__(&self) -> String {
        let report::Comparison { model, arms, seeds, .. } = &self.comparison;
        format!("<thawline.Comparison of {} policies × {} seeds of {model}>", arms.len(), seeds.len())
    }
}

/// Calls of the caller's function, and its wish to stop.
struct Calls {
    callback: Option<Py<PyAny>>,
    stop: Arc<AtomicBool>,
    /// What the function, or Ctrl-C, raised.
    raised: Mutex<Option<PyErr>>,
}

impl Calls {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        Self { callback, stop: Arc::default(), raised: Mutex::default() }
    }

    /// Tells an event, of a run of a comparison with what says which.
    fn tell(&self, event: &str, which: &Value, fields: Value) {
        self.with(|py| {
            let Some(callback) = &self.callback else { return Ok(true) };
            let mut all = serde_json::Map::from_iter([("event".to_owned(), event.into())]);
            for part in [which.clone(), fields] {
                if let Value::Object(part) = part {
                    all.extend(part);
                }
            }
            let answer = callback.bind(py).call1((from_json(py, &Value::Object(all))?,))?;
            Ok(!answer.is_exact_instance_of::<PyBool>() || answer.is_truthy()?)
        });
    }

    /// Gives Ctrl-C a chance.
    fn check(&self) {
        self.with(|_| Ok(true));
    }

    fn with(&self, call: impl FnOnce(Python<'_>) -> PyResult<bool>) {
        let goes_on = Python::attach(|py| {
            let goes_on = call(py)?;
            py.check_signals()?;
            Ok::<_, PyErr>(goes_on)
        });
        match goes_on {
            Ok(true) => {}
            Ok(false) => self.stop.store(true, Ordering::Relaxed),
            Err(error) => {
                self.stop.store(true, Ordering::Relaxed);
                self.raised.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    /// Raises what was raised meanwhile, now that the run is saved.
    fn raise(&self) -> PyResult<()> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// Tells Python's `logging`.
struct Told;

impl Observer for Told {
    fn note(&self, note: Note) {
        match note {
            Note::Warning(text) => warn!("{text}"),
            Note::Note(text) | Note::Status(text) => info!("{text}"),
        }
    }
}

/// The model to start from, for these images.
fn opened(
    weights: Option<&Start>,
    name: Option<&str>,
    images: &Images,
    options: &Options,
) -> Result<model::Model, Error> {
    let named = name.map(model::spec).transpose()?;
    let model_options = model::Options { spec: named, ..model_options(images, options) };
    match weights {
        Some(Start::File(path)) => {
            let file = formats::open(path, options.weights_set.as_deref())?;
            let model = model::Model::of(file, model_options)?;
            model.notes.iter().for_each(|note| info!("{}: {note}", path.display()));
            Ok(model)
        }
        Some(Start::Model(_)) if name.is_some() => {
            Err(Error::argument("model is for files and random weights: a Model has its network"))
        }
        Some(Start::Model(model)) => Ok(model.get().to_start()?),
        None => Ok(model::Model::anew(model_options)?),
    }
}

/// The weights that a run which is resumed started from.
fn state_of(
    weights: Option<&Start>,
    saved: Option<&Path>,
    set: Option<&str>,
) -> Result<Option<thawline::weights::StateDict>, Error> {
    match (weights, saved) {
        (Some(Start::Model(model)), _) => Ok(model.get().to_start()?.state),
        (Some(Start::File(path)), _) => Ok(Some(formats::open(path, set)?.tensors)),
        (None, Some(path)) => Ok(Some(formats::open(path, set)?.tensors)),
        (None, None) => Ok(None),
    }
}

/// The options of a call, by their names on the command line.
fn parse(given: Option<&Bound<'_, PyDict>>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in given.into_iter().flatten() {
        let name: String = name.extract()?;
        if value.is_none() {
            continue;
        }
        match name.as_str() {
            "classes" => options.classes = value.extract()?,
            "size" => options.size = Some(value.extract::<SizeArgument>()?.into()),
            "epochs" => options.epochs = value.extract()?,
            "batch" => options.batch = value.extract()?,
            "accumulate" => options.accumulate = value.extract()?,
            "seed" => options.seed = value.extract()?,
            "optimizer" => {
                let kinds = [("sgd", OptimizerKind::Sgd), ("adamw", OptimizerKind::AdamW)];
                options.optimizer = Some(chosen(&name, &value, &kinds)?);
            }
            "momentum" => options.momentum = value.extract()?,
            "nesterov" => options.nesterov = value.extract()?,
            "weight_decay" => options.weight_decay = value.extract()?,
            "label_smoothing" => options.label_smoothing = value.extract()?,
            "class_weights" => {
                let path: PathBuf = value.extract()?;
                let balanced = path.as_os_str() == "balanced";
                options.class_weights = Some(if balanced { ClassWeights::Balanced } else { ClassWeights::File(path) });
            }
            "sampler" => {
                let kinds = [("shuffled", Sampler::Shuffled), ("balanced", Sampler::Balanced)];
                options.sampler = Some(chosen(&name, &value, &kinds)?);
            }
            "patience" => options.patience = value.extract()?,
            "schedule" => {
                let kinds = [
                    ("constant", ScheduleKind::Constant),
                    ("cosine", ScheduleKind::Cosine),
                    ("step", ScheduleKind::Step),
                ];
                options.schedule = Some(chosen(&name, &value, &kinds)?);
            }
            "warmup" => options.warmup = value.extract()?,
            "final_lr" => options.final_lr = value.extract()?,
            "step_epochs" => options.step_epochs = value.extract()?,
            "gamma" => options.gamma = value.extract()?,
            "augment" => {
                let kinds = [Augment::None, Augment::Flip, Augment::Crop, Augment::CropFlip];
                options.augment = Some(chosen(&name, &value, &kinds.map(|kind| (kind.name(), kind)))?);
            }
            "train_images" => options.train_images = value.extract()?,
            "val_fraction" => options.val_fraction = value.extract()?,
            "skip_broken" => options.skip_broken = value.extract()?,
            "exif" => {
                options.exif = Some(chosen(&name, &value, &[("apply", Exif::Apply), ("ignore", Exif::Ignore)])?);
            }
            "max_pixels" => options.max_pixels = value.extract()?,
            "head" => {
                options.head = Some(chosen(&name, &value, &[("keep", HeadStart::Keep), ("new", HeadStart::New)])?);
            }
            "then" => options.then = Some(chosen(&name, &value, &[("recalibrate", Then::Recalibrate)])?),
            "weights_set" => options.weights_set = value.extract()?,
            _ => {
                let message = format!("there is no option `{name}`; help(thawline.finetune) lists them");
                return Err(pyo3::exceptions::PyTypeError::new_err(message));
            }
        }
    }
    positive("epochs", options.epochs)?;
    positive("batch", options.batch)?;
    positive("accumulate", options.accumulate)?;
    positive("patience", options.patience)?;
    positive("step_epochs", options.step_epochs)?;
    Ok(options)
}

fn positive(name: &str, value: Option<usize>) -> Result<(), Error> {
    match value {
        Some(0) => Err(Error::argument(format!("{name}: expected at least 1"))),
        _ => Ok(()),
    }
}

/// One of several words.
fn chosen<T: Copy>(option: &str, value: &Bound<'_, PyAny>, words: &[(&str, T)]) -> PyResult<T> {
    let word: String = value.extract()?;
    let known = || words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|(known, _)| *known == word).map(|&(_, value)| value);
    Ok(found.ok_or_else(|| Error::argument(format!("{option}: expected one of {}, not {word:?}", known())))?)
}
