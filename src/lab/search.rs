//! Each policy's own learning rate, found on the training images alone.
//!
//! Successive halving: every candidate trains for a short time, the better half for about twice as long, and so on, on the
//! training images but for a part that judges them. After Jamieson and Talwalkar, "Non-stochastic Best Arm Identification
//! and Hyperparameter Optimization", arXiv:1502.07943, section 3, but each trial begins anew with a whole schedule of its
//! own, since a cosine that is cut off says little of one that is not. All policies have the same candidates and the same
//! budget, and the validation images, by which policies are compared, are never looked at.

use super::{Lab, LabError, LabEvent, read_toml, write};
use crate::data::ImageFolder;
use crate::report::{LrSearch, SearchRound, Trial};
use crate::tensor::HostTensor;
use crate::train::{Decay, FeatureCache, ImageSet, Job, Outcome, PolicySettings, Settings, TrainError};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The part of each class's training images that judges the rates.
const HELD_OUT: f64 = 0.2;

/// Rates of [SGD](crate::train::OptimizerSettings::Sgd) and of AdamW that a search tries if none are named: half decades
/// around what fine-tuning is known to need.
pub const SGD_RATES: [f64; 6] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3];
pub const ADAMW_RATES: [f64; 6] = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1];

/// The rounds of a search: how many candidates each has, and the epochs of each of its trials. The last round has two
/// candidates, or as many as there are, and half of the epochs of a run; each round before has twice as many candidates
/// and half as many epochs. None where there is nothing to choose from.
pub fn search_rounds(candidates: usize, epochs: usize) -> Vec<(usize, usize)> {
    let mut counts = vec![candidates];
    while let Some(&last) = counts.last().filter(|last| **last > 2) {
        counts.push(last.div_ceil(2));
    }
    if candidates < 2 {
        return Vec::new();
    }
    let rounds = counts.len();
    let halved = |times: usize| u32::try_from(times).ok().and_then(|times| epochs.checked_shr(times)).unwrap_or(0);
    let of_round = |(round, count): (usize, usize)| (count, halved(rounds - round).max(1));
    counts.into_iter().enumerate().map(of_round).collect()
}

/// What the trials of one policy work on.
pub(super) struct Trials {
    /// The training images, of which some judge.
    images: ImageFolder,
    set: ImageSet,
}

impl Trials {
    pub fn new(images: &ImageFolder, settings: &Settings) -> Self {
        let images = images.hold_out(HELD_OUT, settings.seed);
        // Their content is the comparison's to check.
        let set = ImageSet::named(&images, &settings.data);
        Self { images, set }
    }

    /// Optimiser steps of an epoch of a trial.
    pub fn steps_per_epoch(&self, run: &Settings) -> usize {
        Settings { images: self.set.clone(), ..run.clone() }.steps_per_epoch()
    }

    /// The settings of a trial, by those of a run: another length, rate and set of images.
    ///
    /// # Errors
    /// They make no sense: the images that train do not fill an optimiser step, say.
    fn settings(&self, run: &Settings, lr: f64, epochs: usize) -> Result<Settings, TrainError> {
        // All trials of a round have the same length.
        let mut trial = Settings { epochs, images: self.set.clone(), then: None, patience: None, ..run.clone() };
        trial.schedule.lr = lr;
        // Both follow the length of the run.
        let shorter = |length: u64, of: u64, by: u64| (length as f64 * of as f64 / by.max(1) as f64).round() as u64;
        trial.schedule.warmup = shorter(run.schedule.warmup, trial.steps(), run.steps());
        if let Decay::Step { epochs: after, .. } = &mut trial.schedule.decay {
            let scaled = shorter(*after as u64, epochs as u64, run.epochs as u64).max(1);
            *after = usize::try_from(scaled).unwrap_or(usize::MAX);
        }
        trial.check()?;
        Ok(trial)
    }
}

/// Whether the training images are enough for a search among `rates`, as a comparison with these settings makes it: the part
/// that is not held out must fill an optimiser step, and each stage of a policy needs one in the shortest trial.
///
/// # Errors
/// [`LabError::Search`], [`LabError::NothingToSearchOn`].
pub fn check_search(
    images: &ImageFolder,
    settings: &Settings,
    arms: &[PolicySettings],
    rates: &[f64],
) -> Result<(), LabError> {
    if rates.len() < 2 {
        return Ok(());
    }
    let trials = Trials::new(images, settings);
    if trials.images.val.is_empty() {
        return Err(LabError::NothingToSearchOn);
    }
    for policy in arms {
        let run = Settings { policy: policy.clone(), ..settings.clone() };
        let fail = |source: TrainError| LabError::Search { policy: policy.name.clone(), source: source.into() };
        for (_, epochs) in search_rounds(rates.len(), run.epochs) {
            trials.settings(&run, rates[0], epochs).map_err(fail)?;
        }
    }
    Ok(())
}

impl Lab {
    /// Finds the rate of every policy that has none yet. False if it was stopped.
    ///
    /// # Errors
    /// As [`Lab::run`].
    pub(super) fn search(
        &mut self,
        tensors: &[HostTensor],
        cache: &Arc<FeatureCache>,
        stop: &AtomicBool,
        observe: &mut impl FnMut(LabEvent<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<bool, LabError> {
        let trials = Trials::new(&self.bench.images, &self.setup.settings);
        for arm in 0..self.setup.arms.len() {
            let path = self.folder.join("runs").join(format!("{}-search.toml", self.setup.arms[arm].name));
            let mut search = read_toml::<LrSearch>(&path)?.unwrap_or_else(|| LrSearch {
                lr: f64::NAN,
                train_images: trials.images.train.len(),
                held_out: trials.images.val.len(),
                rounds: Vec::new(),
            });
            let mut candidates = self.setup.rates.clone();
            let rounds = search_rounds(candidates.len(), self.setup.settings.epochs);
            for (round, &(count, epochs)) in rounds.iter().enumerate() {
                candidates.truncate(count);
                candidates.sort_by(f64::total_cmp);
                if search.rounds.len() == round {
                    search.rounds.push(SearchRound { epochs, trials: Vec::new() });
                }
                for &lr in &candidates {
                    let known = search.rounds[round].trials.iter().any(|trial| trial.lr == lr);
                    if known {
                        continue;
                    }
                    let Some(trial) = self.trial(arm, &trials, (lr, epochs), tensors, cache, stop, observe)? else {
                        return Ok(false);
                    };
                    search.rounds[round].trials.push(trial);
                    write(&path, &toml::to_string(&search).map_err(unwritable)?)?;
                }
                // The best first.
                let mut ended = search.rounds[round].trials.clone();
                ended.sort_by(|a, b| a.better_first(b));
                candidates = ended.iter().map(|trial| trial.lr).collect();
            }
            search.lr = candidates.first().copied().unwrap_or(self.setup.settings.schedule.lr);
            write(&path, &toml::to_string(&search).map_err(unwritable)?)?;
            observe(LabEvent::Searched { arm, search: &search }).map_err(LabError::Observer)?;
            self.comparison.arms[arm].search = Some(search);
        }
        Ok(true)
    }

    /// One trial from its beginning; `None` if it was stopped, and then nothing of it is left.
    #[expect(clippy::too_many_arguments, reason = "what it is about, and what all runs have in common")]
    fn trial(
        &self,
        arm: usize,
        trials: &Trials,
        (lr, epochs): (f64, usize),
        tensors: &[HostTensor],
        cache: &Arc<FeatureCache>,
        stop: &AtomicBool,
        observe: &mut impl FnMut(LabEvent<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Option<Trial>, LabError> {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let folder = self.folder.join("runs").join(format!("{}-search", self.setup.arms[arm].name));
        remove(&folder)?;
        let settings = trials.settings(&self.arm_settings(arm, 0), lr, epochs)?;
        let (device, stages, input) = (&self.device, self.networks[arm].clone(), self.bench.input);
        let job = Job { device, stages, input, images: &trials.images, settings, cache: Some(Arc::clone(cache)) };
        let mut run = match job.start(tensors, &folder) {
            Err(TrainError::Interrupted) => return remove(&folder).map(|()| None),
            begun => begun?,
        };
        let ended = run.run(stop, |event| observe(LabEvent::Trial { arm, lr, epochs, event }));
        let last = run.history().last().and_then(|metrics| metrics.val);
        drop(run);
        remove(&folder)?;
        let diverged = match ended {
            Ok(Outcome::Stopped) | Err(TrainError::Interrupted) => return Ok(None),
            Ok(Outcome::Finished) => false,
            Err(TrainError::Diverged { .. }) => true,
            Err(TrainError::Observer(error)) => return Err(LabError::Observer(error)),
            Err(error) => return Err(error.into()),
        };
        let of = |value: Option<f64>| value.filter(|_| !diverged).unwrap_or(f64::NAN);
        let (accuracy, loss) = (of(last.map(|val| val.accuracy())), of(last.map(|val| val.mean_loss())));
        Ok(Some(Trial { lr, accuracy, loss, diverged }))
    }
}

fn unwritable(error: toml::ser::Error) -> LabError {
    TrainError::Unwritable { reason: error.to_string() }.into()
}

/// Removes the folder of a trial, if it is there.
fn remove(folder: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::Write { path: folder.into(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_halve_the_candidates_and_double_the_epochs() {
        assert_eq!(search_rounds(6, 10), [(6, 1), (3, 2), (2, 5)]);
        assert_eq!(search_rounds(6, 50), [(6, 6), (3, 12), (2, 25)]);
        assert_eq!(search_rounds(3, 10), [(3, 2), (2, 5)]);
        assert_eq!(search_rounds(2, 1), [(2, 1)]);
        assert_eq!(search_rounds(1, 10), []);
        assert_eq!(search_rounds(0, 10), []);
    }
}
