//! Runs and comparisons as people ask for them: a folder of images, a model, policies, and a few options over defaults.
//!
//! [`Images::tuning`] leads to a [`Run`], [`Images::comparison`] to a [`Lab`]; both can be stopped and resumed.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use thawline::gpu::{Device, DeviceOptions};
//! use thawline::model::Model;
//! use thawline::policy::Policy;
//! use thawline::study::{Images, Options, model_options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options { epochs: Some(5), ..Options::default() };
//! let images = Images::open("photos".as_ref(), &options, None)?;
//! let model = Model::open_with("resnet18.pth".as_ref(), model_options(&images, &options))?;
//! let policy = Policy::recipe("full-frozen-bn")?;
//! let tuning = images.tuning(model, &policy, &options, Some("run".as_ref()), &())?;
//! let mut run = tuning.start(&Device::open(&DeviceOptions::default())?, "run".as_ref())?;
//! run.run(&AtomicBool::new(false), |_| Ok(()))?;
//! # Ok(())
//! # }
//! ```

mod options;

pub use options::{ClassWeights, OptimizerKind, Options, ScheduleKind};

use crate::data::{DataError, ImageFolder};
use crate::formats::{self, Format, FormatError};
use crate::gpu::{Device, GpuError};
use crate::graph::{Graph, GraphError};
use crate::identify::{IdentifyError, Known, identify};
use crate::lab::{self, Bench, Lab, LabError, Setup, in_words};
use crate::model::{self, Model, OpenError, Size, few};
use crate::models::{self, GraphFile, GraphFileError, ModelError, Spec};
use crate::plan::Input;
use crate::policy::{self, Policy, PolicyError};
use crate::preprocessing::Traced;
use crate::tensor::HostTensor;
use crate::text::quantity;
use crate::train::{
    CHECKPOINT_FILE, FeatureCache, HeadStart, Job, LAST_FILE, LrPoint, LrRange, OptimizerSettings, RangeTest, Run,
    Settings, TrainError, check_apart, takes_batch_statistics,
};
use crate::weights::{self, Head, NewHead, StateDict, WeightsError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What the user should know of how the wishes were understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Something is likely to be other than meant.
    Warning(String),
    /// Something was decided.
    Note(String),
    /// How things stand.
    Status(String),
}

/// Who is told while a run or a comparison is set up. `()` listens to nothing.
pub trait Observer: Sync {
    fn note(&self, _note: Note) {}

    /// A little of each of `of` image files is read, of `done` so far; called from several threads.
    fn reading(&self, _done: usize, _of: usize) {}
}

impl Observer for () {}

/// A run or a comparison that cannot begin. Messages call options as the command line does.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    #[error(transparent)]
    GraphFile(#[from] GraphFileError),
    #[error("cannot find {}: {source}", path.display())]
    Path { path: PathBuf, source: std::io::Error },
    #[error(
        "--classes is {asked}, but {} has folders for {}: leave --classes out, or give another folder",
        data.display(),
        quantity(*found, "class")
    )]
    Classes { asked: usize, data: PathBuf, found: usize },
    #[error("{} is folded, for inference only: start from the weights that it was folded from", file.display())]
    Folded { file: PathBuf },
    #[error(
        "{} has the classes of {} in another order, {found} instead of {asked}: add --head new to start a new head; with --head \
         keep, the old one's first output would become your first class, and so on",
        file.display(),
        data.display()
    )]
    OtherOrder { file: PathBuf, data: PathBuf, found: String, asked: String },
    #[error(
        "{} was trained on {found}, but {} has {asked}: the same number of classes with other names. Add --head new to start a \
         new head, or --head keep to keep the old one (its first output becomes your first class, and so on)",
        file.display(),
        data.display()
    )]
    OtherNames { file: PathBuf, data: PathBuf, found: String, asked: String },
    #[error("--head keep: {why}, so there is no head to keep; leave --head out")]
    NoHead { why: String },
    #[error("{0}")]
    Option(&'static str),
    #[error("--lr auto: no rate that was tried lowers the loss: give one, such as --lr 0.01, and look at the images")]
    NoRate,
    #[error("--seed {seed} is too large for {seeds} seeds")]
    Seeds { seed: u64, seeds: u64 },
    #[error(
        "{} is not written, though {} holds the same weights; resume the run once what is wrong is mended",
        out.display(),
        weights.display()
    )]
    OwnFormat { out: PathBuf, weights: PathBuf, source: Box<FormatError> },
}

macro_rules! via {
    ($through:ident: $($error:ty),*) => {$(
        impl From<$error> for StudyError {
            fn from(error: $error) -> Self {
                Self::$through(error.into())
            }
        }
    )*};
}
via!(Train: DataError, GpuError);
via!(Open: ModelError, GraphError, WeightsError, FormatError);

/// A folder of images, divided into those for training and those for validation.
#[derive(Clone)]
pub struct Images {
    /// Absolute.
    pub data: PathBuf,
    pub folder: Arc<ImageFolder>,
}

impl Images {
    /// Finds the images below `data`, which a run that is resumed, `saved`, may have had in another place.
    ///
    /// # Errors
    /// The folder cannot be read, has fewer than two classes, or not the number of classes that is asked for.
    pub fn open(data: &Path, options: &Options, saved: Option<&Settings>) -> Result<Self, StudyError> {
        let data = std::path::absolute(data).map_err(|source| StudyError::Path { path: data.into(), source })?;
        let seed = options.seed(saved);
        let mut folder = ImageFolder::open(&data, options.val_fraction(saved), seed)?;
        if let Some(count) = options.train_images(saved) {
            folder.keep_train(count, seed)?;
        }
        let found = folder.classes.len();
        match options.classes {
            Some(asked) if asked != found => Err(StudyError::Classes { asked, data, found }),
            _ => Ok(Self { data, folder: folder.into() }),
        }
    }

    /// A run of a model under a policy. `out` is the folder that it will have, to find out now whether its results can be
    /// written in the format that the weights came in.
    ///
    /// # Errors
    /// What is asked for contradicts itself, the images or the model.
    pub fn tuning(
        &self,
        model: Model,
        policy: &Policy,
        options: &Options,
        out: Option<&Path>,
        observer: &dyn Observer,
    ) -> Result<Tuning, StudyError> {
        self.tunings(model, std::slice::from_ref(policy), options, out, observer)?
            .pop()
            .ok_or(StudyError::Lab(LabError::Nothing))
    }

    /// As [`tuning`](Self::tuning), a run for each policy.
    ///
    /// # Errors
    /// Those of [`tuning`](Self::tuning).
    pub fn tunings(
        &self,
        mut model: Model,
        policies: &[Policy],
        options: &Options,
        out: Option<&Path>,
        observer: &dyn Observer,
    ) -> Result<Vec<Tuning>, StudyError> {
        out.map_or(Ok(()), |out| check_apart(&self.data, out))?;
        self.check_start(&model, options, observer)?;
        let (size, origin) = (model.size(options.size), model_origin(&model)?);
        let mut tunings: Vec<Tuning> = Vec::with_capacity(policies.len());
        for policy in policies {
            let stages = self.stages(&model.spec, policy, options, None, size, observer)?;
            let drop_last = stages.iter().any(takes_batch_statistics);
            let policy = in_words(policy);
            // They differ by their policies alone.
            let (mut settings, tensors) = match tunings.first() {
                Some(first) => (Settings { policy, drop_last, ..first.settings.clone() }, Arc::clone(&first.tensors)),
                None => {
                    let (weights, spec) = (origin.clone(), &model.spec);
                    let settings = options.settings(None, weights, self, spec, size, policy, drop_last, observer)?;
                    let tensors = self.first_tensors(&stages[0], model.state.take(), &settings, observer)?;
                    out.map_or(Ok(()), |out| check_own_format(&settings, &stages[0], &tensors, out))?;
                    (settings, tensors.into())
                }
            };
            if options.lr.is_none() {
                settings.schedule.lr = settings.optimizer.default_lr(stages.iter().any(Graph::trains_convolutions));
            }
            let input = model.input();
            tunings.push(Tuning { images: self.clone(), settings, stages, input, tensors, is_begun: false });
        }
        Ok(tunings)
    }

    /// Goes on with the run in `folder`, which was begun with `saved`; with `state`, if it was cut off before it could save
    /// anything.
    ///
    /// # Errors
    /// What is asked for contradicts the run, itself, the images or the model.
    #[expect(clippy::too_many_arguments, reason = "what a run was begun with, and what is asked for now")]
    pub fn resumed(
        &self,
        saved: &Settings,
        folder: &Path,
        spec: &Spec,
        policy: &Policy,
        state: Option<StateDict>,
        options: &Options,
        observer: &dyn Observer,
    ) -> Result<Tuning, StudyError> {
        check_apart(&self.data, folder)?;
        let trained = (saved.transform.height as usize, saved.transform.width as usize);
        let size = options.size.unwrap_or(trained.into());
        let stages = self.stages(spec, policy, options, Some(saved), size, observer)?;
        let is_begun = is_begun(folder);
        // What the run was begun with; if it is another policy now, that is what is refused.
        let drop_last = if is_begun { saved.drop_last } else { stages.iter().any(takes_batch_statistics) };
        let (policy, weights) = (in_words(policy), saved.weights.clone());
        let mut settings = options.settings(Some(saved), weights, self, spec, size, policy, drop_last, observer)?;
        let mut tensors = Vec::new();
        if !is_begun {
            settings.weights = state.as_ref().and_then(|state| state.origin.clone()).map(absolute).transpose()?;
            tensors = self.first_tensors(&stages[0], state, &settings, observer)?;
            check_own_format(&settings, &stages[0], &tensors, folder)?;
        }
        let input = spec.preprocessing.value.into();
        Ok(Tuning { images: self.clone(), settings, stages, input, tensors: tensors.into(), is_begun })
    }

    /// A comparison of policies, which keeps its files in `out`: `seeds` runs of each, with the seeds from that of the options
    /// on. `cache` bytes of device memory hold what frozen layers give.
    ///
    /// # Errors
    /// What is asked for contradicts itself, the images or the model; a folder that is not empty or cannot be written.
    #[expect(clippy::too_many_arguments, reason = "each is something else that a comparison is of")]
    pub fn comparison(
        &self,
        device: &Device,
        model: Model,
        policies: &[Policy],
        rates: Rates,
        seeds: u64,
        cache: u64,
        options: &Options,
        out: &Path,
        observer: &dyn Observer,
    ) -> Result<Lab, StudyError> {
        check_apart(&self.data, out)?;
        self.check_start(&model, options, observer)?;
        let arms: Vec<_> = policies.iter().map(in_words).collect();
        let first = arms.first().cloned().ok_or(LabError::Nothing)?;
        let size = model.size(options.size);
        let network = model.spec.build(options.batch(None), size.pair(), self.folder.classes.len())?;
        let drop_last = lab::drop_last(&arms, &network)?;
        let (weights, spec) = (model_origin(&model)?, &model.spec);
        let settings = options.settings(None, weights, self, spec, size, first, drop_last, observer)?;
        let all = match settings.optimizer {
            OptimizerSettings::Sgd { .. } => lab::SGD_RATES,
            OptimizerSettings::AdamW { .. } => lab::ADAMW_RATES,
        };
        let rates = match rates {
            Rates::Given(rates) => rates,
            Rates::Search => all.to_vec(),
            Rates::SearchIfPossible => match lab::check_search(&self.folder, &settings, &arms, &all) {
                Ok(()) => all.to_vec(),
                Err(error) => {
                    let rate = settings.schedule.lr;
                    observer.note(Note::Warning(format!("{error}; all policies have the rate {rate} now")));
                    Vec::new()
                }
            },
        };
        let first = settings.seed;
        let last = first.checked_add(seeds).filter(|last| i64::try_from(*last).is_ok());
        let last = last.ok_or(StudyError::Seeds { seed: first, seeds })?;
        let (device, input) = (device.clone(), model.input());
        let (images, data) = (Arc::clone(&self.folder), self.data.clone());
        let bench = Bench { device, network, input, images, data, weights: model.state };
        Ok(Lab::start(bench, out, settings, arms, (first..last).collect(), rates, cache)?)
    }

    /// Goes on with the comparison in `folder`, which was begun with `setup`, from the same `weights`.
    ///
    /// # Errors
    /// The weights or the images are not those that it was begun with; another process works on it.
    pub fn resumed_comparison(
        &self,
        device: &Device,
        setup: Setup,
        mut weights: Option<StateDict>,
        folder: &Path,
    ) -> Result<Lab, StudyError> {
        let settings = &setup.settings;
        let spec = spec_of(settings)?;
        if let Some(state) = &mut weights {
            identify(state, known(&spec, settings))?;
        }
        let size = (settings.transform.height as usize, settings.transform.width as usize);
        let network = spec.build(settings.batch, size, settings.classes.len())?;
        let (device, input) = (device.clone(), spec.preprocessing.value.into());
        let (images, data) = (Arc::clone(&self.folder), self.data.clone());
        Ok(Lab::resume(Bench { device, network, input, images, data, weights }, folder, setup)?)
    }

    /// Refuses a head whose classes have other names than those of the images, unless the options say what becomes of it. Says
    /// what training without weights means.
    fn check_start(&self, model: &Model, options: &Options, observer: &dyn Observer) -> Result<(), StudyError> {
        let Some(state) = &model.state else {
            observer.note(Note::Note(
                "without --weights, training starts from random weights: frozen layers stay random, and the others need far more \
                 images and epochs than fine-tuning does; --weights takes a file, or hf:OWNER/NAME"
                    .into(),
            ));
            return Ok(());
        };
        let file = name_of(state);
        if model.folded {
            // What came out could neither be resumed nor have its batch norms back.
            return Err(StudyError::Folded { file });
        }
        let classes = &self.folder.classes;
        let other = |names: &&Vec<String>| names.len() == classes.len() && *names != classes;
        let Some(names) = model.class_names.as_ref().filter(other).filter(|_| options.head.is_none()) else {
            return Ok(());
        };
        let (data, found, asked) = (self.data.clone(), few(names), few(classes));
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        Err(match sorted(names) == sorted(classes) {
            true => StudyError::OtherOrder { file, data, found, asked },
            false => StudyError::OtherNames { file, data, found, asked },
        })
    }

    /// The network for batches of the options in each stage of its policy.
    fn stages(
        &self,
        spec: &Spec,
        policy: &Policy,
        options: &Options,
        saved: Option<&Settings>,
        size: Size,
        observer: &dyn Observer,
    ) -> Result<Vec<Graph>, StudyError> {
        let network = spec.build(options.batch(saved), size.pair(), self.folder.classes.len())?;
        let stages = policy::resolve_stages(policy, &network)?;
        stages
            .into_iter()
            .map(|(_, resolved)| {
                resolved.warnings.iter().for_each(|warning| observer.note(Note::Warning(warning.to_string())));
                resolved.check_training(options.accumulate(saved))?;
                Ok(resolved.graph)
            })
            .collect()
    }

    /// The parameters that a run starts from: those of the weights file, or random ones. Says what becomes of a head that is not
    /// for the run's classes.
    fn first_tensors(
        &self,
        network: &Graph,
        state: Option<StateDict>,
        settings: &Settings,
        observer: &dyn Observer,
    ) -> Result<Vec<HostTensor>, StudyError> {
        let Some(state) = state else { return Ok(weights::initialise(network, settings.seed)) };
        let file = name_of(&state);
        let loaded = weights::from_state_with(network, state, settings.seed, settings.first_head())?;
        let why = match loaded.new_head {
            Some(NewHead::OtherClasses { found, asked }) => {
                let (file, data) = (file.display(), self.data.display());
                format!("{file} has {} and {data} has {asked}", quantity(found, "class"))
            }
            Some(NewHead::Absent) => {
                format!("{} has no head for {}", file.display(), quantity(settings.classes.len(), "class"))
            }
            Some(NewHead::Asked) => "--head new".to_owned(),
            None => return Ok(loaded.tensors),
        };
        if settings.head == Some(HeadStart::Keep) {
            return Err(StudyError::NoHead { why });
        }
        observer.note(Note::Status(format!("{why}: the head starts anew")));
        Ok(loaded.tensors)
    }
}

/// Where the learning rates of a comparison come from.
#[derive(Clone, PartialEq, Debug)]
pub enum Rates {
    /// Of several, each policy finds its own.
    Given(Vec<f64>),
    /// Each policy finds its own of [`lab::SGD_RATES`] or [`lab::ADAMW_RATES`].
    Search,
    /// The same, but where the images do not allow a search, all policies have one rate, of which a warning tells.
    SearchIfPossible,
}

/// A run that can begin, or go on.
pub struct Tuning {
    images: Images,
    pub settings: Settings,
    /// The network in each stage of the policy.
    pub stages: Vec<Graph>,
    input: Input,
    /// None of a run that goes on from its checkpoint.
    tensors: Arc<Vec<HostTensor>>,
    is_begun: bool,
}

impl Tuning {
    /// Whether it goes on from a checkpoint.
    pub fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// The folder of images that it trains on.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Begins the run in `folder`, or goes on with it.
    ///
    /// # Errors
    /// Those of [`Job::start`] and [`Job::resume`].
    pub fn start(self, device: &Device, folder: &Path) -> Result<Run, StudyError> {
        let tensors = Arc::clone(&self.tensors);
        let is_begun = self.is_begun;
        let job = self.job(device, None);
        Ok(if is_begun { job.resume(folder)? } else { job.start(&tensors, folder)? })
    }

    /// A range test of the run's policy, without changing anything; none if `stop` was set.
    ///
    /// # Errors
    /// Those of [`Job::range_test`].
    pub fn range_test(
        &self,
        device: &Device,
        range: &LrRange,
        cache: Option<Arc<FeatureCache>>,
        stop: &AtomicBool,
        observe: impl FnMut(usize, &LrPoint),
    ) -> Result<Option<RangeTest>, StudyError> {
        Ok(self.job(device, cache).range_test(&self.tensors, range, stop, observe)?)
    }

    /// Takes the learning rate that a range test suggests.
    ///
    /// # Errors
    /// It suggests none.
    pub fn take_rate(&mut self, test: &RangeTest) -> Result<(), StudyError> {
        self.settings.schedule.lr = test.suggested.ok_or(StudyError::NoRate)?;
        Ok(())
    }

    fn job<'a>(&'a self, device: &'a Device, cache: Option<Arc<FeatureCache>>) -> Job<'a> {
        let (stages, settings) = (self.stages.clone(), self.settings.clone());
        Job { device, stages, input: self.input, images: &self.images.folder, settings, cache }
    }
}

/// The options by which a model for these images is opened: it may lack a head for them.
pub fn model_options(images: &Images, options: &Options) -> model::Options {
    model::Options {
        spec: None,
        classes: Some(images.folder.classes.len()),
        preprocessing: options.preprocessing,
        size: options.size,
        head: Head::Optional,
        seed: options.seed(None),
    }
}

/// The network of a run that was begun.
///
/// # Errors
/// There is no network of that name, or the graph in the settings is malformed.
pub fn spec_of(settings: &Settings) -> Result<Spec, StudyError> {
    let spec = match &settings.graph {
        Some(graph) => Spec::of_file(GraphFile::parse(graph, "the graph in the run's settings")?),
        None => models::spec(&settings.model)?.clone(),
    };
    Ok(spec.with_preprocessing(Traced::new(settings.transform.preprocessing, "the run's settings")))
}

/// What is known of the weights file of a run that was begun.
pub fn known<'a>(spec: &'a Spec, settings: &Settings) -> Known<'a> {
    Known { named: Some(spec), classes: Some(settings.classes.len()), new_head: true, ..Known::default() }
}

/// Whether the run in `folder` has saved anything that it could go on from.
pub fn is_begun(folder: &Path) -> bool {
    folder.join(CHECKPOINT_FILE).exists()
}

/// Writes each of the weights files in `folder` that is there once more, in the format of the file that a run's weights came
/// from, if that has a network of its own which the copy needs. Returns the files.
///
/// # Errors
/// One cannot be written.
pub fn write_own_format(
    settings: &Settings,
    folder: &Path,
    files: &[&str],
    observer: &dyn Observer,
) -> Result<Vec<PathBuf>, StudyError> {
    let Some((source, form)) = own_format(settings) else { return Ok(Vec::new()) };
    let files = files.iter().map(|name| folder.join(name)).filter(|file| file.exists());
    files
        .map(|file| {
            let out = with_form(&file, form);
            let saved =
                || -> Result<Vec<String>, FormatError> { formats::save(&StateDict::load(&file)?, Some(source), &out) };
            match saved() {
                Ok(notes) => {
                    notes.iter().for_each(|note| observer.note(Note::Note(format!("{}: {note}", out.display()))));
                    Ok(out)
                }
                Err(source) => Err(StudyError::OwnFormat { out, weights: file, source: source.into() }),
            }
        })
        .collect()
}

/// The file that [`write_own_format`] would write for a weights file of a run.
pub fn own_file(settings: &Settings, file: &Path) -> Option<PathBuf> {
    own_format(settings).map(|(_, form)| with_form(file, form))
}

/// Refuses to begin a run whose results could not be written in the format that its weights came in.
fn check_own_format(
    settings: &Settings,
    network: &Graph,
    tensors: &[HostTensor],
    out: &Path,
) -> Result<(), StudyError> {
    let Some((source, form)) = own_format(settings) else { return Ok(()) };
    let file = with_form(&out.join(LAST_FILE), form);
    Ok(formats::check(&weights::to_state(network, tensors), Some(source), &file)?)
}

/// The file that a run's weights came from, if a copy of it has its network, too; and the ending of its format.
fn own_format(settings: &Settings) -> Option<(&Path, &'static str)> {
    let source = settings.weights.as_deref()?;
    let format = Format::of_name(source).filter(|format| format.is_copied())?;
    Some((source, format.ending()))
}

fn with_form(file: &Path, form: &str) -> PathBuf {
    file.with_extension(form.trim_start_matches('.'))
}

fn name_of(state: &StateDict) -> PathBuf {
    state.origin.clone().unwrap_or_else(|| "the weights file".into())
}

fn model_origin(model: &Model) -> Result<Option<PathBuf>, StudyError> {
    model.state.as_ref().and_then(|state| state.origin.clone()).map(absolute).transpose()
}

fn absolute(path: PathBuf) -> Result<PathBuf, StudyError> {
    std::path::absolute(&path).map_err(|source| StudyError::Path { path, source })
}
