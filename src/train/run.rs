//! The loop: epochs over a folder of images, validation, checkpoints.

use super::checkpoint::{Checkpoint, Position};
use super::{
    Evaluator, ImageSet, Images, Method, PADDING, Probe, Recalibration, Session, Settings, Then, Totals, TrainError,
    recalibrate,
};
use crate::data::{ImageFolder, Loader, LoaderOptions, Mode, shuffled};
use crate::gpu::{Device, Parameters};
use crate::graph::{Graph, LayerId, LayerKind, Stats, Variance};
use crate::plan::Input;
use crate::tensor::HostTensor;
use crate::weights::{self, StateDict, write_atomically};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
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
    pub lr: f64,
    /// Over the epoch's training images, each as the network saw it in its step. None for epoch 0.
    pub train: Option<Totals>,
    /// Over the validation images, with running statistics, after the epoch. None if there are no such images.
    pub val: Option<Totals>,
    /// Broken images that were skipped, of both kinds.
    pub skipped: u64,
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
    /// The network for batches of [`Settings::batch`], its layers' settings resolved from the policy.
    pub network: Graph,
    /// The form of the images; it must be [`Input::Bytes`].
    pub input: Input,
    pub images: &'a ImageFolder,
    pub settings: Settings,
}

impl Job<'_> {
    /// Begins a run that starts from `tensors`, one a parameter, and keeps its files in `folder`.
    ///
    /// All files are written once before anything is trained, so that a folder that cannot be written, or a disk that
    /// is full, is found out now. If that fails, no file is left.
    ///
    /// # Errors
    /// Settings that make no sense; a folder that is not empty or cannot be written; images that do not suit the
    /// settings; a device that refuses the batch.
    pub fn start(self, tensors: &[HostTensor], folder: &Path) -> Result<Run, TrainError> {
        self.settings.check()?;
        if let Some(layer) = not_finite(&self.network, tensors) {
            return Err(TrainError::NotFinite { layer: layer.to_owned() });
        }
        claim(folder)?;
        let mut run = self.set_up(tensors, folder)?;
        let saved = run.save().and_then(|()| {
            let path = folder.join(SETTINGS_FILE);
            let text = run.settings.to_toml()?;
            write_atomically(&path, |file| file.write_all(text.as_bytes()))
                .map_err(|source| TrainError::Write { path, source })
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

    /// Continues the run in `folder` from its checkpoint, bit for bit as if it had not stopped.
    ///
    /// # Errors
    /// There is no run; its checkpoint is damaged; a setting, other than where images and first weights lie, is not
    /// what the run was begun with; a device that refuses the batch.
    pub fn resume(self, folder: &Path) -> Result<Run, TrainError> {
        self.settings.check()?;
        let path = folder.join(CHECKPOINT_FILE);
        if !path.exists() {
            return Err(TrainError::NoRun { folder: folder.into() });
        }
        let kept = Checkpoint::load(&self.network, &self.settings, &path)?;
        let mut run = self.set_up(&kept.tensors, folder)?;
        run.position = kept.position;
        run.saved_step = run.step();
        run.session.restore(run.step(), &kept.optimizer)?;
        Ok(run)
    }

    fn set_up(self, tensors: &[HostTensor], folder: &Path) -> Result<Run, TrainError> {
        let Self { device, network, input, images, settings } = self;
        let classes = network.logits_shape().map_or(0, crate::tensor::Shape::c);
        if classes != images.classes.len() {
            return Err(TrainError::Classes { network: classes, images: images.classes.len() });
        }
        if ImageSet::of(images, &settings.data) != settings.images {
            let value = format!("{:?}", settings.images);
            return Err(TrainError::Setting { setting: "images", value, expected: "what the folder holds" });
        }
        let loader = |samples: &Vec<_>, mode| {
            let options = LoaderOptions {
                skip_broken: settings.skip_broken,
                ..LoaderOptions::new(mode, settings.batch, settings.seed)
            };
            Loader::new(samples.clone(), settings.transform.clone(), options)
        };
        let train = loader(&images.train, Mode::Train)?;
        let recalibration = match settings.then {
            Some(Then::Recalibrate) => Some(loader(&shuffled(images.train.clone(), settings.seed), Mode::Eval)?),
            None => None,
        };
        let val = if images.val.is_empty() { None } else { Some(loader(&images.val, Mode::Eval)?) };
        let session = Session::new(device, network, tensors, input, settings.options())?;
        let evaluator = val.as_ref().map(|_| session.evaluator(settings.batch)).transpose()?;
        let validation = val.zip(evaluator).map(|(loader, evaluator)| Validation { loader, evaluator });
        let (folder, position) = (folder.to_owned(), Position::default());
        Ok(Run { folder, settings, session, train, recalibration, validation, position, saved_step: 0 })
    }
}

/// Makes sure that `folder` is there and empty.
fn claim(folder: &Path) -> Result<(), TrainError> {
    let write = |source| TrainError::Write { path: folder.into(), source };
    fs::create_dir_all(folder).map_err(write)?;
    if fs::read_dir(folder).map_err(write)?.next().is_some() {
        let resumable = folder.join(CHECKPOINT_FILE).exists();
        return Err(TrainError::Occupied { folder: folder.into(), resumable });
    }
    Ok(())
}

/// The layer of the first parameter with a value that is not finite.
fn not_finite<'a>(network: &'a Graph, tensors: &[HostTensor]) -> Option<&'a str> {
    let index = tensors.iter().position(|tensor| tensor.data.iter().any(|value| !value.is_finite()))?;
    Some(&network.layers()[network.params()[index].layer.index()].name)
}

/// A training run with a folder.
pub struct Run {
    folder: PathBuf,
    settings: Settings,
    session: Session,
    train: Loader,
    /// The training images as validation shows them, in another order; there for [`Then::Recalibrate`] only.
    recalibration: Option<Loader>,
    validation: Option<Validation>,
    position: Position,
    /// The optimiser step of the checkpoint in the folder.
    saved_step: u64,
}

struct Validation {
    loader: Loader,
    evaluator: Evaluator,
}

/// What has arrived since an epoch began or was resumed.
struct Arrivals {
    began: Instant,
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

    /// Optimiser steps done.
    pub fn step(&self) -> u64 {
        let per_epoch = self.settings.steps_per_epoch();
        let under_way = self.position.batches / self.settings.accumulate;
        (self.epochs_done() * per_epoch + under_way) as u64
    }

    fn epochs_done(&self) -> usize {
        // The first entry is the state before training.
        self.position.history.len().saturating_sub(1)
    }

    /// Trains until the last epoch is done, or until `stop` is set: then it finishes the optimiser step under way and
    /// saves. Validates before the first epoch and after each.
    ///
    /// `observe` is told of everything that happens; an error from it ends the run like any other.
    ///
    /// # Errors
    /// A loss or a weight is no longer finite ([`TrainError::Diverged`]); an image is broken; the disk or the device
    /// fails. The folder then holds the last good checkpoint, from which the run can be resumed.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        mut observe: impl FnMut(Event<'_>) -> Observed,
    ) -> Result<Outcome, TrainError> {
        let observe = &mut |event: Event<'_>| observe(event).map_err(TrainError::Observer);
        observe(Event::Started { step: self.step(), history: &self.position.history })?;
        while self.position.history.len() <= self.settings.epochs {
            let mut images_per_s = None;
            if !self.position.history.is_empty() {
                images_per_s = self.train_epoch(stop, observe)?;
            }
            // Asked again: the flag may have been set in the epoch's last step, or in validation.
            let validated = if stop.load(Ordering::Relaxed) { None } else { self.validate(stop, observe)? };
            let Some((val, skipped)) = validated else {
                self.save()?;
                return Ok(Outcome::Stopped);
            };
            self.finish_epoch(val, skipped)?;
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
        let what = Recalibration { layers: &layers, method: Method::Precise, var: Variance::Unbiased };
        recalibrate(device, network, &mut tensors, input, images, &what)?;
        self.weights(&tensors).save(self.folder.join(RECALIBRATED_FILE))?;
        let Some(Validation { loader, .. }) = &self.validation else { return Ok(None) };
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
        let batches = self.settings.steps_per_epoch() * window;
        let left = batches - self.position.batches.min(batches);
        if left == 0 {
            return Ok(None);
        }
        let loader = self.train.epoch(self.epochs_done() as u64, self.position.batches)?;
        let mut arrivals =
            Arrivals { began: Instant::now(), batches: 0, images: 0, window: Totals::default(), step: self.step() };
        for batch in loader.take(left) {
            if self.position.batches.is_multiple_of(window) && stop.load(Ordering::Relaxed) {
                break;
            }
            let batch = batch?;
            let lr = self.settings.lr(self.step());
            self.session.submit(Images::Bytes(&batch.pixels), &batch.labels, lr)?;
            self.position.batches += 1;
            self.position.skipped += batch.skipped as u64;
            self.collect(false, &mut arrivals, observe)?;
        }
        self.collect(true, &mut arrivals, observe)?;
        Ok(Some(arrivals.images_per_s()))
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
                return Err(self.diverged(format!("the loss is {}", totals.mean_loss()), step));
            }
            arrivals.batches += 1;
            arrivals.images += totals.samples;
            arrivals.window += totals;
            self.position.totals += totals;
            if arrivals.batches.is_multiple_of(window) {
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

    /// The validation images' results and how many were skipped; none if `stop` was set meanwhile.
    fn validate(
        &mut self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), TrainError>,
    ) -> Result<Option<(Option<Totals>, u64)>, TrainError> {
        let Some(Validation { loader, evaluator }) = &mut self.validation else { return Ok(Some((None, 0))) };
        evaluator.refresh()?;
        let (mut totals, mut skipped) = (Totals::default(), 0);
        for (number, batch) in loader.epoch(0, 0)?.enumerate() {
            let mut batch = batch?;
            let valid = batch.valid();
            batch.labels[valid..].fill(PADDING);
            totals += evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels)?;
            skipped += batch.skipped as u64;
            observe(Event::Validating { batches: number + 1, of: loader.batches() })?;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        Ok(Some((Some(totals), skipped)))
    }

    /// Closes the epoch under way, or the time before the first, and saves.
    fn finish_epoch(&mut self, val: Option<Totals>, skipped: u64) -> Result<(), TrainError> {
        let (epoch, step) = (self.position.history.len(), self.step());
        let trained = std::mem::take(&mut self.position.totals);
        self.position.history.push(EpochMetrics {
            epoch,
            step,
            lr: if epoch == 0 { 0.0 } else { self.settings.lr(step.saturating_sub(1)) },
            train: (epoch > 0).then_some(trained),
            val,
            skipped: skipped + self.position.skipped,
        });
        self.position.skipped = 0;
        self.position.batches = 0;
        self.save()
    }

    /// Writes the weights and then the checkpoint: if it ends between them, the run goes on from the checkpoint before
    /// and writes the same weights again.
    fn save(&mut self) -> Result<(), TrainError> {
        let tensors = self.session.parameters()?;
        let network = self.session.network();
        if let Some(layer) = not_finite(network, &tensors) {
            return Err(self.diverged(format!("`{layer}` is no longer finite"), self.step()));
        }
        let weights = self.weights(&tensors);
        let history = &self.position.history;
        let last = history.last().map(|metrics| metrics.epoch);
        if self.position.batches == 0 && best(history).is_some_and(|best| Some(best.epoch) == last) {
            weights.save(self.folder.join(BEST_FILE))?;
        }
        weights.save(self.folder.join(LAST_FILE))?;
        let checkpoint =
            Checkpoint { position: self.position.clone(), tensors, optimizer: self.session.optimizer_state()? };
        checkpoint.save(network, &self.settings, &self.folder.join(CHECKPOINT_FILE))?;
        self.saved_step = self.step();
        Ok(())
    }

    /// The file form of `tensors`, with what the network was trained for.
    fn weights(&self, tensors: &[HostTensor]) -> StateDict {
        let mut weights = weights::to_state(self.session.network(), tensors);
        let Settings { model, classes, transform, .. } = &self.settings;
        let size = format!("{}x{}", transform.height, transform.width);
        let classes = serde_json::Value::from(classes.as_slice()).to_string();
        for (key, value) in [("model", model.clone()), ("size", size), ("classes", classes)] {
            weights.metadata.insert(key.into(), value);
        }
        weights
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_has_most_right_then_the_lowest_loss() {
        let metrics = |epoch, top1, loss| {
            let val = Some(Totals { loss, top1, top5: top1, samples: 10 });
            EpochMetrics { epoch, step: 0, lr: 0.0, train: None, val, skipped: 0 }
        };
        let best_epoch = |history: &[EpochMetrics]| best(history).map(|m| m.epoch);
        assert_eq!(best_epoch(&[]), None);
        assert_eq!(best_epoch(&[EpochMetrics { val: None, ..metrics(0, 1, 1.0) }]), None);
        assert_eq!(best_epoch(&[metrics(0, 5, 1.0), metrics(1, 7, 3.0), metrics(2, 6, 0.5)]), Some(1));
        assert_eq!(best_epoch(&[metrics(0, 5, 1.0), metrics(1, 5, 0.9), metrics(2, 5, 0.9)]), Some(1));
        assert_eq!(best_epoch(&[metrics(0, 5, f64::NAN), metrics(1, 5, 9.0), metrics(2, 5, f64::NAN)]), Some(1));
    }
}
