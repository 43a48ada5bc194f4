//! What a comparison of policies found, as `compare.json` holds it.
//!
//! A [`Comparison`] follows from the data, the weights and the settings alone: a comparison that was interrupted and
//! resumed gives the same one. What differs from run to run, times and memory, is in [`Timings`]. Measured numbers that are
//! not finite are the texts `NaN`, `inf` and `-inf`, since JSON has none for them.

use super::Total;
use super::metrics::{HEADER, csv};
use crate::train::{ConfusionMatrix, EpochMetrics, OptimizerSettings, Schedule, Totals, best};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt::Write;
use std::path::PathBuf;

/// Images that a [`State`] is about, at most, of the training images and of the validation images; spread evenly over the
/// set.
pub const LOOKED_AT: usize = 256;
/// Of these, the images that are shown one or two at a time under batch statistics, at most.
pub const SMALL_BATCH_IMAGES: usize = 64;

/// Several policies, tried from the same weights, on the same images in the same order, with the same budget.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The version of this crate.
    pub thawline: String,
    pub model: String,
    /// The file that all arms start from; none if they start from random weights.
    pub weights: Option<PathBuf>,
    pub data: PathBuf,
    /// Class names in the order of their labels.
    pub classes: Vec<String>,
    pub train_images: usize,
    pub val_images: usize,
    /// The share of validation images that are of the most frequent class: what always naming that class gets right.
    #[serde(default)]
    pub chance: f64,
    /// Height and width, in pixels.
    pub size: [usize; 2],
    pub batch: usize,
    pub accumulate: usize,
    pub epochs: usize,
    /// A run ended after so many epochs without a better one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patience: Option<usize>,
    /// Optimiser steps of one run, if it was not ended early.
    pub steps: u64,
    /// Random changes to training images, in the words of `--augment`.
    pub augment: String,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub seeds: Vec<u64>,
    /// The names of the batch norms in graph order: what every `drift` counts by.
    pub batch_norms: Vec<String>,
    /// Before training, one a seed: the head may start from random values.
    pub start: Vec<State>,
    /// In the order in which they were asked for.
    pub arms: Vec<Arm>,
    /// The run whose weights the comparison leaves, once it is finished; none where nothing is worth using.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub winner: Option<Winner>,
}

/// Of the runs of the policy that a comparison advises, the one that was best in validation, at its best epoch. That it was
/// chosen by the images that judge it flatters its accuracy a little.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Winner {
    pub policy: String,
    pub seed: u64,
    pub epoch: usize,
    /// The share of validation images with the right class.
    pub accuracy: f64,
}

/// One policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arm {
    pub name: String,
    /// What it does, in a line; empty for a policy file.
    pub summary: String,
    /// All rules, in order, in the policy's words.
    pub rules: Vec<String>,
    /// What was said about the policy when it was resolved.
    pub warnings: Vec<String>,
    /// The policy from the beginning on, and what follows in the course of a run.
    pub stages: Vec<ArmStage>,
    /// Values that the optimiser changes, in the stage in which it changes most, and those of the whole network.
    pub trained_values: usize,
    pub all_values: usize,
    /// The price of one training step, known before the run; the mean over the stages.
    pub step: Total,
    /// The price of inference of the same batch.
    pub inference: Total,
    /// The frozen layers whose results do not change between epochs, in the first stage; none where nothing could be
    /// cached.
    pub prefix: Option<Prefix>,
    /// How it came to its learning rate; none where all arms have that of the comparison.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub search: Option<LrSearch>,
    /// One a seed, in the order of [`Comparison::seeds`]; fewer while the comparison is under way.
    pub runs: Vec<ArmRun>,
}

/// A part of a run in which a policy stays the same.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArmStage {
    /// Of the run's optimiser steps.
    pub share: f64,
    /// What is added to the rules of the stages before; empty for the first.
    pub rules: Vec<String>,
    /// The exact setting of every layer that has one, in graph order.
    pub layers: Vec<ArmLayer>,
    /// The price of one training step.
    pub step: Total,
}

/// A layer's setting under a policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArmLayer {
    pub name: String,
    pub kind: String,
    /// Such as `stats=batch, update=ema(0.9), affine=both, var=unbiased`.
    pub axes: String,
}

/// The part of a network that a policy leaves alone from the images on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prefix {
    /// The last layers of it.
    pub until: Vec<String>,
    /// Floating-point operations that it takes an image.
    pub flops_per_image: u64,
    /// Size of its results an image, in bytes.
    pub bytes_per_image: u64,
}

/// A search for an arm's learning rate, on the training images alone: see [`crate::lab`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LrSearch {
    /// The rate that was found; not a number while the search is under way.
    #[serde(with = "crate::train::number")]
    pub lr: f64,
    /// Of the training images, those that trials train on, and those that judge them.
    pub train_images: usize,
    pub held_out: usize,
    pub rounds: Vec<SearchRound>,
}

/// Trials of the same length.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SearchRound {
    pub epochs: usize,
    pub trials: Vec<Trial>,
}

/// A short run with one learning rate.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub lr: f64,
    /// The share of the held-out images with the right class after the last epoch; not a number if it diverged.
    #[serde(with = "crate::train::number")]
    pub accuracy: f64,
    /// The mean loss of the held-out images, in nats.
    #[serde(with = "crate::train::number")]
    pub loss: f64,
    pub diverged: bool,
}

/// One run of an arm.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArmRun {
    pub seed: u64,
    /// Epoch 0 is the state before training.
    pub history: Vec<EpochMetrics>,
    /// Why the run ended early, at its last good checkpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub diverged: Option<String>,
    /// What the validation images were taken for after the last epoch; none in files of versions that did not keep it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confusion: Option<ConfusionMatrix>,
    /// After the last epoch.
    pub end: State,
}

/// What a network does with its batch norms, looked at without training, on at most [`LOOKED_AT`] images of each kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct State {
    /// For each batch norm the symmetric Kullback-Leibler divergence between the running moments and the actual ones of
    /// the training images, in nats per channel.
    #[serde(with = "crate::train::number::list")]
    pub drift: Vec<f64>,
    /// Of the validation images under running statistics, in batches.
    pub running: Totals,
    /// The same, one image at a time.
    pub single: Totals,
    /// The share of validation images whose predicted class changes, under running statistics, when other images share
    /// their batch; always 0.
    #[serde(with = "crate::train::number")]
    pub running_flips: f64,
    /// Under the statistics of the batch, for several batch sizes.
    pub batch: Vec<BatchStatistics>,
}

/// Inference as a batch norm left in training mode does it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct BatchStatistics {
    /// Images per batch.
    pub batch: usize,
    /// The share of validation images with the right class.
    #[serde(with = "crate::train::number")]
    pub accuracy: f64,
    /// The share of validation images whose predicted class changes when other images share their batch.
    #[serde(with = "crate::train::number")]
    pub flips: f64,
}

/// What a comparison took on one device. Times are wall-clock time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Timings {
    pub device: String,
    pub driver: String,
    /// `YYYY-MM-DD`, in UTC.
    pub date: String,
    /// In the order of [`Comparison::arms`].
    pub arms: Vec<ArmTimings>,
    /// The most memory that the cache held, in bytes, and what it was allowed.
    pub cache_bytes: u64,
    pub cache_budget: u64,
}

/// What one arm took.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ArmTimings {
    pub name: String,
    /// A whole step without the cache, a median in milliseconds.
    pub step_ms: f64,
    /// Inference of the same batch, a median in milliseconds.
    pub inference_ms: f64,
    /// Device memory that a step allocated, in bytes.
    pub allocated_bytes: u64,
    /// Seconds of each epoch's training, in the order in which they ran, over all seeds; an epoch that was resumed is
    /// not among them.
    pub epoch_s: Vec<f64>,
    /// Seconds spent on computing the prefix for the cache; 0 if another arm had already done it.
    pub fill_s: f64,
    /// Whether training steps took the prefix from the cache.
    pub cached: bool,
}

impl State {
    /// Of a network that gives no finite numbers, with so many batch norms.
    pub fn unknown(batch_norms: usize) -> Self {
        let (running, single) = Default::default();
        Self { drift: vec![f64::NAN; batch_norms], running, single, running_flips: f64::NAN, batch: Vec::new() }
    }
}

impl Comparison {
    /// A table of all epochs of all runs, one a line: the arm, the seed, and the columns of [`csv`].
    pub fn csv(&self) -> String {
        let mut table = format!("arm,seed,{HEADER}");
        for arm in &self.arms {
            // A policy file may be called anything.
            let name = match arm.name.contains([',', '"', '\n', '\r']) {
                true => format!("\"{}\"", arm.name.replace('"', "\"\"")),
                false => arm.name.clone(),
            };
            for run in &arm.runs {
                for line in csv(&run.history).lines().skip(1) {
                    // Writing to a string cannot fail.
                    let _ = writeln!(table, "{name},{},{line}", run.seed);
                }
            }
        }
        table
    }
}

impl LrSearch {
    /// The rates that were tried, in rising order.
    pub fn rates(&self) -> Vec<f64> {
        let mut rates: Vec<f64> = self.rounds.iter().flat_map(|round| &round.trials).map(|trial| trial.lr).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        rates
    }
}

impl Trial {
    /// Orders trials of the same length: the most accurate first, between equals the one with the lower loss, and last
    /// what diverged.
    pub fn better_first(&self, other: &Self) -> Ordering {
        let key = |value: f64| if value.is_finite() { value } else { f64::INFINITY };
        key(-self.accuracy).total_cmp(&key(-other.accuracy)).then(key(self.loss).total_cmp(&key(other.loss)))
    }
}

impl Arm {
    /// The learning rate of its runs.
    pub fn lr(&self, comparison: &Comparison) -> f64 {
        self.search.as_ref().map_or(comparison.schedule.lr, |search| search.lr)
    }

    /// The runs that ended early, at their last good checkpoints.
    pub fn diverged(&self) -> impl Iterator<Item = &ArmRun> {
        self.runs.iter().filter(|run| run.diverged.is_some())
    }
}

impl ArmRun {
    /// The share of validation images with the right class before training; none without validation.
    pub fn first_accuracy(&self) -> Option<f64> {
        self.history.first().filter(|metrics| metrics.epoch == 0)?.val.map(|val| val.accuracy())
    }

    /// The share of validation images with the right class after the last epoch; none without validation.
    pub fn last_accuracy(&self) -> Option<f64> {
        self.history.last()?.val.map(|val| val.accuracy())
    }

    /// The same after the best epoch.
    pub fn best_accuracy(&self) -> Option<f64> {
        best(&self.history)?.val.map(|val| val.accuracy())
    }
}

/// Mean and sample standard deviation (0 of fewer than two values).
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if values.len() < 2 { 0.0 } else { (squares / (n - 1.0)).sqrt() })
}
