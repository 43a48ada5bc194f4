//! The loop: epochs over a folder of images, validation, checkpoints.

use super::checkpoint::{Checkpoint, Position};
use super::{
    ConfusionMatrix, Evaluation, Evaluator, FeatureCache, ImageSet, Images, Method, OptimizerState, PADDING, Probe,
    Recalibration, Session, Settings, StepWindow, Then, Totals, TrainError, UNEVEN, check_finite, imbalance,
    recalibrate, takes_batch_statistics,
};
use crate::compile;
use crate::data::{Batch, DataError, ImageFolder, Loader, LoaderOptions, Mode, Sample, shuffled};
use crate::files::{self, FolderLock, is_leftover, is_lock, write_atomically};
use crate::gpu::{Device, Parameters};
use crate::graph::{Graph, LayerId, LayerKind, Stats};
use crate::plan::Input;
use crate::preprocessing::PREPROCESSING;
use crate::rng::Rng;
use crate::tensor::HostTensor;
use crate::weights::{self, StateDict};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The settings of a run, for people and for [`Settings::of_run`].
pub const SETTINGS_FILE: &str = "run.toml";
/// The state from which a run is resumed.
pub const CHECKPOINT_FILE: &str = "checkpoint.safetensors";
/// The weights as they are.
pub const LAST_FILE: &str = "last.safetensors";
/// The weights that were best in validation. Not there without validation images.
pub const BEST_FILE: &str = "best.safetensors";
/// The last weights with new running statistics, where the settings end a run with [`Then::Recalibrate`].
pub const RECALIBRATED_FILE: &str = "recalibrated.safetensors";

/// The results of an epoch; `epoch` 0 stands for the state before training.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    pub epoch: usize,
    /// Optimiser steps done in all.
    pub step: u64,
    /// The learning rate of the epoch's last step.
    #[serde(with = "super::number")]
    pub lr: f64,
    /// Over the epoch's training images, each as the network saw it in its step. None for epoch 0.
    pub train: Option<Totals>,
    /// Over the validation images, with running statistics, after the epoch. None if there are no such images.
    pub val: Option<Totals>,
    /// Broken images that were skipped, of both kinds.
    pub skipped: u64,
    /// The mean recall of the classes on the validation images, in `[0, 1]`. None without them, and in files of versions
    /// that did not know it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val_balanced: Option<f64>,
}

/// The entry of `history` with the most validation images right; the lowest loss decides between equals, then the
/// earlier epoch. None without validation.
pub fn best(history: &[EpochMetrics]) -> Option<&EpochMetrics> {
    let validated = history.iter().filter_map(|metrics| Some((metrics, metrics.val?)));
    let better = |new: Totals, old: Totals| {
        // A loss that is not a number is worse than every other.
        new.top1 > old.top1 || new.top1 == old.top1 && (new.loss < old.loss || old.loss.is_nan() && !new.loss.is_nan())
    };
    let best = validated.reduce(|best, new| if better(new.1, best.1) { new } else { best });
    best.map(|(metrics, _)| metrics)
}

/// One optimiser step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepMetrics {
    /// Counts from 1.
    pub epoch: usize,
    /// Optimiser steps done in all.
    pub step: u64,
    pub lr: f64,
    /// Of the step's images.
    pub totals: Totals,
    /// Of the epoch so far.
    pub epoch_totals: Totals,
    /// Of the epoch, since it began or was resumed.
    pub images_per_s: f64,
}

/// What an observer of a run is told.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The run begins, or goes on after `step` optimiser steps and the epochs in `history`.
    Started { step: u64, history: &'a [EpochMetrics] },
    /// An optimiser step is done. Comes a few steps late: nobody waits for the device.
    Step(StepMetrics),
    /// A batch of validation is done.
    Validating { batches: usize, of: usize },
    /// The last entry of `history` is complete and saved. `images_per_s` is that of its training, validation not
    /// counted; none for epoch 0.
    Epoch { history: &'a [EpochMetrics], images_per_s: Option<f64> },
    /// After the last epoch, the running statistics were estimated anew and saved. `val` is of the validation images
    /// with the new statistics; none if there are no such images.
    Recalibrated { val: Option<Totals> },
}

/// How [`Run::run`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Finished,
    /// The caller asked to stop; the run is saved and can be resumed.
    Stopped,
}

/// What a run works on.
pub struct Job<'a> {
    pub device: &'a Device,
    /// The network for batches of [`Settings::batch`] in each stage of the policy, its layers' settings resolved.
    pub stages: Vec<Graph>,
    /// The form of the images; it must be [`Input::Bytes`].
    pub input: Input,
    pub images: &'a ImageFolder,
    pub settings: Settings,
    /// Where to keep what the frozen part of the network gives. It is used where every epoch shows the same of every
    /// image.
    pub cache: Option<Arc<FeatureCache>>,
}

impl Job<'_> {
    /// Begins a run that starts from `tensors`, one a parameter, and keeps its files in `folder`.
    ///
    /// All files are written once before anything is trained, so that a folder that cannot be written, or a disk that
    /// is full, is found out now. If that fails, no file is left. A folder that holds nothing but the settings of a run
    /// that was cut off before its first checkpoint counts as empty.
    ///
    /// # Errors
    /// Settings that make no sense; a folder that is not empty, cannot be written, is in use, or lies inside that of the
    /// images; images that do not suit the settings; a device that refuses the batch.
    pub fn start(self, tensors: &[HostTensor], folder: &Path) -> Result<Run, TrainError> {
        self.settings.check()?;
        self.stages.first().map_or(Ok(()), |network| check_finite(network, tensors))?;
        check_apart(&self.settings.data, folder)?;
        let lock = claim(folder, CHECKPOINT_FILE)?;
        let mut run = self.set_up(tensors, folder, lock, 0)?;
        // Once the checkpoint is there, the run can be resumed; before, nothing but settings is lost, which are known.
        let saved = run.write_settings().and_then(|()| {
            run.write_checkpoint(run.session.parameters()?, run.session.optimizer_state()?)?;
            run.write_weights(&run.session.parameters()?)
        });
        if let Err(error) = saved {
            for file in [CHECKPOINT_FILE, LAST_FILE, SETTINGS_FILE] {
                // Written by this call, into a folder that was empty; the first error is the one to report.
                let _ = fs::remove_file(folder.join(file));
            }
            return Err(error);
        }
        Ok(run)
    }

    /// Continues the run in `folder` from its checkpoint, bit for bit as if it had not stopped: with the variant of the
    /// convolutions that it was begun with, where the device has it.
    ///
    /// # Errors
    /// There is no run; another process works on it; its checkpoint is damaged; the images have changed, or a setting that
    /// is neither where images and first weights lie nor that broken images are skipped from now on; a device that refuses
    /// the batch.
    pub fn resume(self, folder: &Path) -> Result<Run, TrainError> {
        self.settings.check()?;
        check_apart(&self.settings.data, folder)?;
        let path = folder.join(CHECKPOINT_FILE);
        if !path.exists() {
            return Err(TrainError::NoRun { folder: folder.into() });
        }
        let lock = FolderLock::acquire(folder)?;
        let network = self.stages.first().ok_or(TrainError::Stages { expected: 1, found: 0 })?;
        let kept = Checkpoint::load(network, &self.settings, &path)?;
        let device = self.device.with_variant(kept.variant);
        if device.is_none() {
            let (device, variant) = (&self.device.info().name, kept.variant.name());
            log::warn!("the run was begun with {variant} convolutions, which {device} lacks: others round differently");
        }
        let device = device.unwrap_or_else(|| self.device.clone());
        let step = kept.position.step(&self.settings);
        // The stage of the last step that was done: the next one may be another's first.
        let stage = self.settings.stage_starts().filter(|start| *start < step).count();
        let mut run = Job { device: &device, ..self }.set_up(&kept.tensors, folder, lock, stage)?;
        run.position = kept.position;
        run.saved_step = step;
        run.session.restore(step - run.stage_start(stage), &kept.optimizer)?;
        if run.settings.skip_broken && !kept.skip_broken {
            // For whoever resumes it without a word of that.
            run.write_settings()?;
        }
        Ok(run)
    }

    fn set_up(self, tensors: &[HostTensor], folder: &Path, lock: FolderLock, stage: usize) -> Result<Run, TrainError> {
        let Self { device, stages, input, images, settings, cache } = self;
        let expected = 1 + settings.policy.stages.len();
        let (Some(network), true) = (stages.get(stage), stages.len() == expected) else {
            return Err(TrainError::Stages { expected, found: stages.len() });
        };
        let classes = network.logits_shape().map_or(0, crate::tensor::Shape::c);
        if classes != images.classes.len() {
            return Err(TrainError::Classes { network: classes, images: images.classes.len() });
        }
        // Whether their content is the same is a matter of resuming: it takes a look at every file.
        let found = ImageSet { content: settings.images.content.clone(), ..ImageSet::named(images, &settings.data) };
        if found != settings.images {
            let value = format!("{:?}", settings.images);
            return Err(TrainError::Setting { setting: "images", value, expected: "what the folder holds" });
        }
        if !settings.drop_last && stages.iter().any(takes_batch_statistics) {
            let expected = "true where batch norms take statistics of the batch: padding would be part of them";
            return Err(TrainError::Setting { setting: "drop-last", value: "false".into(), expected });
        }
        let train = loader(&settings, &images.train, Mode::Train)?;
        let recalibration = match settings.then {
            Some(Then::Recalibrate) => {
                Some(loader(&settings, &shuffled(images.train.clone(), settings.seed), Mode::Eval)?)
            }
            None => None,
        };
        let val = if images.val.is_empty() { None } else { Some(loader(&settings, &images.val, Mode::Eval)?) };
        let source = Source { device: device.clone(), stages, input, train, val, cache };
        let (session, evaluator) = source.stage(stage, tensors, &settings)?;
        let (folder, position) = (folder.to_owned(), Position::default());
        Ok(Run {
            folder,
            _lock: lock,
            settings,
            source,
            recalibration,
            stage,
            session,
            evaluator,
            position,
            saved_step: 0,
        })
    }
}

/// Refuses a folder of results inside the folder of images, where it would be taken for a class, and the other way round.
///
/// # Errors
/// [`TrainError::Nested`].
pub fn check_apart(data: &Path, out: &Path) -> Result<(), TrainError> {
    let nested = |outer: &Path, inner: &Path| TrainError::Nested { outer: outer.into(), inner: inner.into() };
    match (files::contains(data, out), files::contains(out, data)) {
        (true, _) => Err(nested(data, out)),
        (_, true) => Err(nested(out, data)),
        _ => Ok(()),
    }
}

/// Makes sure that `folder` is there and empty, and keeps other processes out of it. `resumable` is the file by which one
/// knows what could be resumed instead.
pub(crate) fn claim(folder: &Path, resumable: &str) -> Result<FolderLock, TrainError> {
    let write = |source| TrainError::Write { path: folder.into(), source };
    fs::create_dir_all(folder).map_err(write)?;
    let lock = FolderLock::acquire(folder)?;
    let mut begun = false;
    for entry in fs::read_dir(folder).map_err(write)? {
        let name = entry.map_err(write)?.file_name();
        match name == SETTINGS_FILE && resumable == CHECKPOINT_FILE {
            true => begun = true,
            false if is_lock(&name) || is_leftover(&name) => {}
            false => {
                let resumable = folder.join(resumable).exists();
                return Err(TrainError::Occupied { folder: folder.into(), resumable });
            }
        }
    }
    if begun {
        log::warn!("the run in {} was cut off before its first checkpoint: it begins anew", folder.display());
    }
    Ok(lock)
}

/// A training run with a folder.
pub struct Run {
    folder: PathBuf,
    _lock: FolderLock,
    settings: Settings,
    source: Source,
    /// Of the policy, under way.
    stage: usize,
    session: Session,
    /// None without validation images.
    evaluator: Option<Evaluator>,
    /// The training images as validation shows them, in another order; there for [`Then::Recalibrate`] only.
    recalibration: Option<Loader>,
    position: Position,
    /// The optimiser step of the checkpoint in the folder.
    saved_step: u64,
}

/// What sessions are made from.
struct Source {
    device: Device,
    stages: Vec<Graph>,
    input: Input,
    train: Loader,
    val: Option<Loader>,
    cache: Option<Arc<FeatureCache>>,
}

impl Source {
    /// The session of a stage that begins with `tensors`, and the evaluator if there are images for it.
    fn stage(
        &self,
        stage: usize,
        tensors: &[HostTensor],
        settings: &Settings,
    ) -> Result<(Session, Option<Evaluator>), TrainError> {
        let Self { device, stages, input, train, val, cache } = self;
        let cache = cache.as_deref();
        let of_train = cache.map(|cache| (cache, train));
        let network = stages[stage].clone();
        // Each stage counts its steps anew, and should not drop what the one before it dropped.
        let seed = Rng::keyed(settings.seed, &[stage as u64]).next_u64();
        let options = compile::Options { seed, ..settings.options() };
        let mut session = Session::with_cache(device, network, tensors, *input, options, of_train)?;
        if let Some(weights) = &settings.class_weights {
            session.set_class_weights(weights)?;
        }
        let evaluator = |val| session.evaluator_with_cache(settings.batch, tensors, cache.map(|cache| (cache, val)));
        let evaluator = val.as_ref().map(evaluator).transpose()?;
        Ok((session, evaluator))
    }
}

/// What has arrived since an epoch began or was resumed.
struct Arrivals {
    began: Instant,
    /// Of the epoch, done before.
    first: usize,
    batches: usize,
    images: u64,
    /// Of the window under way.
    window: Totals,
    /// Optimiser steps before.
    step: u64,
}

impl Arrivals {
    fn images_per_s(&self) -> f64 {
        self.images as f64 / self.began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

type Observed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Run {
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Metrics before training, then of every finished epoch.
    pub fn history(&self) -> &[EpochMetrics] {
        &self.position.history
    }

    /// What the validation images were taken for after the last finished epoch; none without them.
    pub fn confusion(&self) -> Option<&ConfusionMatrix> {
        self.position.confusion.as_ref()
    }

    /// Whether the classes' numbers of validation images are [uneven](UNEVEN).
    pub fn is_uneven(&self) -> bool {
        let mut counts = vec![0; self.settings.classes.len()];
        for sample in self.source.val.iter().flat_map(Loader::samples) {
            counts[sample.label as usize] += 1;
        }
        imbalance(counts) >= UNEVEN
    }

    /// Optimiser steps done.
    pub fn step(&self) -> u64 {
        self.position.step(&self.settings)
    }

    /// Whether as many epochs as [`Settings::patience`] has were done since the best one, or since the policy's last stage
    /// began.
    pub fn ended_early(&self) -> bool {
        let Some(patience) = self.settings.patience else { return false };
        let last_stage = self.settings.stage_starts().last().unwrap_or(0);
        let begun = last_stage.div_ceil(self.settings.steps_per_epoch() as u64) as usize;
        let best = best(&self.position.history).map_or(0, |best| best.epoch);
        self.epochs_done() < self.settings.epochs && self.epochs_done() >= best.max(begun) + patience
    }

    fn epochs_done(&self) -> usize {
        self.position.epochs_done()
    }

    /// The optimiser step with which a stage begins.
    fn stage_start(&self, stage: usize) -> u64 {
        match stage.checked_sub(1) {
            None => 0,
            Some(later) => self.settings.stage_starts().nth(later).unwrap_or(u64::MAX),
        }
    }

    /// Trains until the last epoch is done, or until `stop` is set: then it finishes the optimiser step under way and
    /// saves. Validates before the first epoch and after each.
    ///
    /// `observe` is told of everything that happens; an error from it ends the run like any other.
    ///
    /// # Errors
    /// A loss or a weight is no longer finite ([`TrainError::Diverged`]); an image is broken; the disk fails, or the device
    /// ([`TrainError::Device`]). The folder then holds the last good checkpoint, from which the run can be resumed.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        mut observe: impl FnMut(Event<'_>) -> Observed,
    ) -> Result<Outcome, TrainError> {
        let ended = self.go_on(stop, &mut |event: Event<'_>| observe(event).map_err(TrainError::Observer));
        ended.map_err(|error| match error {
            TrainError::Gpu(source) => TrainError::Device {
                source: Box::new(source),
                checkpoint: self.folder.join(CHECKPOINT_FILE),
                checkpoint_step: self.saved_step,
            },
            other => other,
        })
    }

    fn go_on(
        &mut self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> Result<Outcome, TrainError> {
        observe(Event::Started { step: self.step(), history: &self.position.history })?;
        while self.position.history.len() <= self.settings.epochs && !self.ended_early() {
            let mut images_per_s = None;
            if !self.position.history.is_empty() {
                images_per_s = self.train_epoch(stop, observe)?;
            }
            // Asked again: the flag may have been set in the epoch's last step, or in validation.
            let validated = match stop.load(Ordering::Relaxed) {
                true => None,
                false => self.validate(stop, observe).map_err(|error| match error {
                    // Before training the weights were not those of this run.
                    TrainError::OutputNotFinite { what } if self.step() > 0 => {
                        self.diverged(format!("{what} is not finite in validation"), self.step())
                    }
                    error => error,
                })?,
            };
            let Some(validated) = validated else {
                self.save()?;
                return Ok(Outcome::Stopped);
            };
            self.finish_epoch(validated)?;
            observe(Event::Epoch { history: &self.position.history, images_per_s })?;
        }
        if self.recalibration.is_some() {
            if stop.load(Ordering::Relaxed) {
                return Ok(Outcome::Stopped);
            }
            let val = self.recalibrate()?;
            observe(Event::Recalibrated { val })?;
        }
        Ok(Outcome::Finished)
    }

    /// Saves the weights with new running statistics, and validates them. A run that is resumed after its last epoch
    /// does it again, to the same bits.
    fn recalibrate(&self) -> Result<Option<Totals>, TrainError> {
        let Some(images) = &self.recalibration else { return Ok(None) };
        let (device, network, input) = (self.session.device(), self.session.network(), self.session.input());
        let mut tensors = self.session.parameters()?;
        let layers = (0..).map(LayerId).zip(network.layers());
        let layers: Vec<LayerId> = layers.filter(|(_, l)| l.kind == LayerKind::Bn).map(|(id, _)| id).collect();
        let what = Recalibration { layers: &layers, method: Method::Precise, var: None };
        recalibrate(device, network, &mut tensors, input, images, &what, |_, _| {})?;
        self.weights(&tensors).save(self.folder.join(RECALIBRATED_FILE))?;
        let Some(loader) = &self.source.val else { return Ok(None) };
        let params = Parameters::upload(device, network, &tensors)?;
        let mut probe = Probe::new(device, network, &params, input, |_| Stats::Running)?;
        Ok(Some(probe.survey(loader)?.totals))
    }

    /// Trains the rest of the epoch under way, or until `stop`. Returns images/s.
    fn train_epoch(
        &mut self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> Result<Option<f64>, TrainError> {
        let window = self.settings.accumulate;
        let batches = self.settings.batches_per_epoch();
        let left = |run: &Self| batches - run.position.batches.min(batches);
        if left(self) == 0 {
            return Ok(None);
        }
        let mut arrivals = Arrivals {
            began: Instant::now(),
            first: self.position.batches,
            batches: 0,
            images: 0,
            window: Totals::default(),
            step: self.step(),
        };
        while left(self) > 0 && !stop.load(Ordering::Relaxed) {
            if self.step() == self.stage_start(self.stage + 1) {
                match self.enter_stage(self.stage + 1) {
                    // Told to stop while it filled the cache; the stage before still stands.
                    Err(TrainError::Interrupted) => break,
                    entered => entered?,
                }
            }
            let in_stage = self.stage_start(self.stage + 1).saturating_sub(self.step());
            let in_stage = usize::try_from(in_stage).unwrap_or(usize::MAX).saturating_mul(window);
            let kept = self.session.features().is_some();
            let loader = batches_of(&self.source.train, kept, self.epochs_done() as u64, self.position.batches)?;
            let mut batches = loader.take(left(self).min(in_stage));
            while !(self.position.batches.is_multiple_of(window) && stop.load(Ordering::Relaxed)) {
                let (settings, session) = (&self.settings, &self.session);
                let (read, of_step) = match next_batches(&mut batches, settings, session, self.position.batches) {
                    Ok(Some(read)) => read,
                    Ok(None) => break,
                    Err(error) => return Err(self.keep_steps(error, &mut arrivals, observe)),
                };
                for batch in read {
                    let lr = self.settings.lr(self.step());
                    self.session.submit_in(images(&batch, kept), &batch.labels, lr, Some(of_step))?;
                    self.position.batches += 1;
                    self.position.skipped += batch.skipped as u64;
                    self.collect(false, &mut arrivals, observe)?;
                }
            }
            self.collect(true, &mut arrivals, observe)?;
        }
        Ok(Some(arrivals.images_per_s()))
    }

    /// Saves the steps that are done when an image is broken, where no step is half done. Returns the first error.
    fn keep_steps(
        &mut self,
        error: DataError,
        arrivals: &mut Arrivals,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> TrainError {
        if !self.position.batches.is_multiple_of(self.settings.accumulate) {
            return error.into();
        }
        match self.collect(true, arrivals, observe).and_then(|()| self.save()) {
            // That training diverged before is the worse news.
            Err(diverged @ TrainError::Diverged { .. }) => diverged,
            _ => error.into(),
        }
    }

    /// Goes on under the policy's next stage: a new plan on the weights as they are, and an optimiser without a past.
    fn enter_stage(&mut self, stage: usize) -> Result<(), TrainError> {
        let tensors = self.finite_parameters()?;
        (self.session, self.evaluator) = self.source.stage(stage, &tensors, &self.settings)?;
        self.stage = stage;
        Ok(())
    }

    /// Takes in the results that have arrived; with `all`, waits for those on their way.
    fn collect(
        &mut self,
        all: bool,
        arrivals: &mut Arrivals,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let window = self.settings.accumulate;
        while let Some(totals) = self.session.completed(all)? {
            let step = arrivals.step + (arrivals.batches / window) as u64 + 1;
            if !totals.loss.is_finite() {
                // Steps behind it have carried that into what trains.
                let first = match check_finite(self.session.network(), &self.session.parameters()?) {
                    Err(TrainError::NotFinite { tensor, .. }) => {
                        format!("; the first tensor that is not finite is `{tensor}`")
                    }
                    _ => String::new(),
                };
                return Err(self.diverged(format!("the loss is {}{first}", totals.mean_loss()), step));
            }
            arrivals.batches += 1;
            arrivals.images += totals.samples;
            arrivals.window += totals;
            self.position.totals += totals;
            let done = arrivals.first + arrivals.batches;
            if done.is_multiple_of(window) || done == self.settings.batches_per_epoch() {
                observe(Event::Step(StepMetrics {
                    epoch: self.epochs_done() + 1,
                    step,
                    lr: self.settings.lr(step - 1),
                    totals: std::mem::take(&mut arrivals.window),
                    epoch_totals: self.position.totals,
                    images_per_s: arrivals.images_per_s(),
                }))?;
            }
        }
        Ok(())
    }

    /// The validation images' results, none without such images; nothing at all if `stop` was set meanwhile.
    fn validate(
        &mut self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> Result<Option<Option<Evaluation>>, TrainError> {
        let (Some(loader), Some(evaluator)) = (&self.source.val, &mut self.evaluator) else {
            return Ok(Some(None));
        };
        evaluator.refresh()?;
        let mut evaluation = Evaluation::new(self.settings.classes.len(), 0);
        let kept = evaluator.features().is_some();
        for (number, batch) in batches_of(loader, kept, 0, 0)?.enumerate() {
            evaluation.add(evaluator, &batch?)?;
            observe(Event::Validating { batches: number + 1, of: loader.batches() })?;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        Ok(Some(Some(evaluation)))
    }

    /// Closes the epoch under way, or the time before the first, and saves.
    fn finish_epoch(&mut self, validated: Option<Evaluation>) -> Result<(), TrainError> {
        let (epoch, step) = (self.position.history.len(), self.step());
        let trained = std::mem::take(&mut self.position.totals);
        let skipped = validated.as_ref().map_or(0, |evaluation| evaluation.skipped);
        self.position.history.push(EpochMetrics {
            epoch,
            step,
            lr: if epoch == 0 { 0.0 } else { self.settings.lr(step.saturating_sub(1)) },
            train: (epoch > 0).then_some(trained),
            val: validated.as_ref().map(|evaluation| evaluation.totals),
            skipped: skipped + self.position.skipped,
            // Not a number where every image is broken, and no number is what files have for that.
            val_balanced: validated.as_ref().map(|e| e.confusion.balanced_accuracy()).filter(|value| value.is_finite()),
        });
        self.position.confusion = validated.map(|evaluation| evaluation.confusion);
        self.position.skipped = 0;
        self.position.batches = 0;
        self.save()
    }

    /// Writes the weights and then the checkpoint: if it ends between them, the run goes on from the checkpoint before
    /// and writes the same weights again.
    fn save(&mut self) -> Result<(), TrainError> {
        let tensors = self.finite_parameters()?;
        let network = self.session.network();
        let optimizer = self.session.optimizer_state()?;
        let lost = |state: &&OptimizerState| state.tensor.data.iter().any(|value| !value.is_finite());
        if let Some(OptimizerState { param, .. }) = optimizer.iter().find(lost) {
            let layer = &network.layers()[network.param(*param).layer.index()].name;
            return Err(self.diverged(format!("the optimiser's state of `{layer}` is no longer finite"), self.step()));
        }
        self.write_weights(&tensors)?;
        self.write_checkpoint(tensors, optimizer)
    }

    fn write_settings(&self) -> Result<(), TrainError> {
        let text = self.settings.to_toml()?;
        let path = self.folder.join(SETTINGS_FILE);
        write_atomically(&path, |file| file.write_all(text.as_bytes()))
            .map_err(|source| TrainError::Write { path, source })
    }

    fn write_weights(&self, tensors: &[HostTensor]) -> Result<(), TrainError> {
        let weights = self.weights(tensors);
        let history = &self.position.history;
        let last = history.last().map(|metrics| metrics.epoch);
        if self.position.batches == 0 && best(history).is_some_and(|best| Some(best.epoch) == last) {
            weights.save(self.folder.join(BEST_FILE))?;
        }
        Ok(weights.save(self.folder.join(LAST_FILE))?)
    }

    fn write_checkpoint(&mut self, tensors: Vec<HostTensor>, optimizer: Vec<OptimizerState>) -> Result<(), TrainError> {
        let checkpoint = Checkpoint {
            position: self.position.clone(),
            variant: self.session.device().variant()?,
            skip_broken: self.settings.skip_broken,
            tensors,
            optimizer,
        };
        checkpoint.save(self.session.network(), &self.settings, &self.folder.join(CHECKPOINT_FILE))?;
        self.saved_step = self.step();
        Ok(())
    }

    /// The file form of `tensors`, with what the network was trained for.
    fn weights(&self, tensors: &[HostTensor]) -> StateDict {
        let mut weights = weights::to_state(self.session.network(), tensors);
        let Settings { model, graph, classes, transform, .. } = &self.settings;
        let size = format!("{}x{}", transform.height, transform.width);
        let classes = serde_json::Value::from(classes.as_slice()).to_string();
        let about = [("model", model.clone()), ("size", size), ("classes", classes)];
        // A graph says how images are prepared, too.
        let network = match graph {
            Some(graph) => ("graph", graph.clone()),
            None => (PREPROCESSING, transform.preprocessing.json()),
        };
        weights.metadata.extend(about.into_iter().chain([network]).map(|(key, value)| (key.to_owned(), value)));
        weights
    }

    /// The parameters, or the error that training diverged.
    fn finite_parameters(&self) -> Result<Vec<HostTensor>, TrainError> {
        let tensors = self.session.parameters()?;
        match check_finite(self.session.network(), &tensors) {
            Err(TrainError::NotFinite { tensor, value }) => {
                Err(self.diverged(format!("`{tensor}` holds {value}"), self.step()))
            }
            checked => checked.map(|()| tensors),
        }
    }

    fn diverged(&self, what: String, step: u64) -> TrainError {
        TrainError::Diverged {
            what,
            epoch: 1 + step.saturating_sub(1) as usize / self.settings.steps_per_epoch(),
            step,
            checkpoint: self.folder.join(CHECKPOINT_FILE),
            checkpoint_step: self.saved_step,
        }
    }
}

/// What shows `samples` as a run does.
pub(super) fn loader(settings: &Settings, samples: &[Sample], mode: Mode) -> Result<Loader, DataError> {
    let options = LoaderOptions {
        skip_broken: settings.skip_broken,
        decode: settings.decode,
        drop_last: mode == Mode::Train && settings.drop_last,
        sampler: settings.sampler,
        ..LoaderOptions::new(mode, settings.batch, settings.seed)
    };
    Loader::new(samples.to_vec(), settings.transform.clone(), options)
}

/// The batches of an epoch; without pixels where what they give is kept.
pub(super) fn batches_of(
    loader: &Loader,
    kept: bool,
    epoch: u64,
    start_batch: usize,
) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>>>, DataError> {
    Ok(match kept {
        true => Box::new(loader.without_pixels(epoch, start_batch).map(Ok)),
        false => Box::new(loader.epoch(epoch, start_batch)?),
    })
}

/// The next micro-batches of a training epoch, whose padding is labelled as such, and the step that they are part of: the
/// first of them is the `first` of the epoch. The weight of a step is that of the labels in all of its batches, so under class
/// weights those are read together; otherwise it is one. None at the end.
pub(super) fn next_batches(
    batches: &mut dyn Iterator<Item = Result<Batch, DataError>>,
    settings: &Settings,
    session: &Session,
    first: usize,
) -> Result<Option<(Vec<Batch>, StepWindow)>, DataError> {
    let weighted = settings.class_weights.is_some();
    let mut window = settings.window(first);
    let together = if weighted { window.batches } else { 1 };
    let mut read = batches.take(together).collect::<Result<Vec<_>, _>>()?;
    for batch in &mut read {
        let valid = batch.valid();
        batch.labels[valid..].fill(PADDING);
    }
    if weighted {
        window.weight = read.iter().map(|batch| session.weight_of(&batch.labels)).sum();
    }
    Ok((!read.is_empty()).then_some((read, window)))
}

pub(super) fn images(batch: &Batch, kept: bool) -> Images<'_> {
    if kept { Images::Kept(&batch.samples) } else { Images::Bytes(&batch.pixels) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_has_most_right_then_the_lowest_loss() {
        let metrics = |epoch, top1, loss| {
            let val = Some(Totals { loss, top1, top5: top1, samples: 10 });
            EpochMetrics { epoch, step: 0, lr: 0.0, train: None, val, skipped: 0, val_balanced: None }
        };
        let best_epoch = |history: &[EpochMetrics]| best(history).map(|m| m.epoch);
        assert_eq!(best_epoch(&[]), None);
        assert_eq!(best_epoch(&[EpochMetrics { val: None, ..metrics(0, 1, 1.0) }]), None);
        assert_eq!(best_epoch(&[metrics(0, 5, 1.0), metrics(1, 7, 3.0), metrics(2, 6, 0.5)]), Some(1));
        assert_eq!(best_epoch(&[metrics(0, 5, 1.0), metrics(1, 5, 0.9), metrics(2, 5, 0.9)]), Some(1));
        assert_eq!(best_epoch(&[metrics(0, 5, f64::NAN), metrics(1, 5, 9.0), metrics(2, 5, f64::NAN)]), Some(1));
    }
}
