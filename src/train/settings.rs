//! Everything that decides what a run computes, in a form that a run's folder keeps and a resumed run is held to.

use super::{Crc32c, Schedule, StepWindow, TrainError};
use crate::compile::{self, Options};
use crate::data::{DecodeOptions, ImageFolder, Sample, Sampler, Transform, threads};
use crate::files::read_text;
use crate::graph::{AdamW, Graph, Sgd, StatsUpdate};
use crate::text::{message, quantity};
use crate::weights::Head;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The settings of a run: all that is needed to repeat it, given the images and the weights that it starts from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// The version of this crate that began the run.
    pub thawline: String,
    /// The network's name.
    pub model: String,
    /// The network as a graph file, if it is none that the name stands for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub graph: Option<String>,
    /// The file that the weights came from; none if they were random.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weights: Option<PathBuf>,
    /// The set of weights in that file, if one was named.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weights_set: Option<String>,
    /// The folder of the images.
    pub data: PathBuf,
    /// Class names in the order of their labels.
    pub classes: Vec<String>,
    /// Images a micro-batch.
    pub batch: usize,
    /// Micro-batches an optimiser step.
    pub accumulate: usize,
    /// Whether the images that do not fill an optimiser step at the end of an epoch sit out. They have to wherever batch
    /// norms take [statistics of the batch](super::takes_batch_statistics); elsewhere they make a smaller step.
    pub drop_last: bool,
    pub epochs: usize,
    /// Decides the order of the images, what augmentation does, the split, and the initial values of new weights.
    pub seed: u64,
    /// In `[0, 1)`; see [`Options::label_smoothing`].
    pub label_smoothing: f64,
    /// Of each class in the loss of a step, by label, with a mean of 1 over the training images of an epoch; all the same
    /// if there are none. See [`Session::set_class_weights`](super::Session::set_class_weights).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class_weights: Option<Vec<f64>>,
    /// Which images an epoch shows.
    #[serde(skip_serializing_if = "is_default", default)]
    pub sampler: Sampler,
    /// The run ends after so many epochs without a [better](super::best) one, counted from the beginning of the policy's
    /// last stage at the earliest; never, if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patience: Option<usize>,
    /// See [`ImageFolder::open`].
    pub val_fraction: f64,
    /// See [`ImageFolder::keep_train`]; all if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_images: Option<usize>,
    /// See [`crate::data::LoaderOptions::skip_broken`].
    pub skip_broken: bool,
    /// What comes after the last epoch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub then: Option<Then>,
    /// What becomes of the weights' head where its classes have other names than the images'; nobody said if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub head: Option<HeadStart>,
    pub images: ImageSet,
    pub policy: PolicySettings,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    /// How image files are read.
    #[serde(default)]
    pub decode: DecodeOptions,
    pub transform: Transform,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a run ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// All running statistics of the last weights are estimated anew ([`Method::Precise`](super::Method::Precise)) over
    /// the training images as validation shows them, and written to [`RECALIBRATED_FILE`](super::RECALIBRATED_FILE).
    Recalibrate,
}

/// What becomes of a head that has as many classes as the images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadStart {
    /// It is kept: its first class is the images' first class, and so on.
    Keep,
    /// It starts anew.
    New,
}

/// The images of a run, so that a changed folder is noticed: another image is another order. The same files in another
/// place are the same set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageSet {
    pub train: usize,
    pub val: usize,
    /// CRC-32C of all paths below the folder, with their labels and splits, in hexadecimal.
    pub checksum: String,
    /// CRC-32C of each file's size, a KiB of its middle and its last KiB (all of a file of 4 KiB), in hexadecimal.
    pub content: String,
}

/// Bytes from the middle of a file, and from its end, that stand for its content.
const PIECE: u64 = 1024;

/// What stands for a file's content: its size, a KiB from its middle, and its last KiB, or all of a file of 4 KiB. The end
/// of a PNG or JPEG file depends on all of it, and so little is soon read of a hundred thousand files. Times do not count: a
/// copy has others. What cannot be read is nothing, for the loader to stumble over.
fn sampled(path: &Path) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut bytes = size.to_le_bytes().to_vec();
        let mut take = |from: u64, count: u64| {
            file.seek(SeekFrom::Start(from))?;
            (&mut file).take(count).read_to_end(&mut bytes)
        };
        match size <= 4 * PIECE {
            true => take(0, size)?,
            false => take(size / 2, PIECE)? + take(size - PIECE, PIECE)?,
        };
        Ok(bytes)
    };
    read().unwrap_or_default()
}

impl ImageSet {
    /// The images of `images`, which were found below `folder`. Reads a little of each file.
    pub fn of(images: &ImageFolder, folder: &Path) -> Self {
        Self::of_with(images, folder, |_, _| {})
    }

    /// As [`of`](Self::of); `observe` is told, now and then and by any thread, how many files are read, and of how many.
    pub fn of_with(images: &ImageFolder, folder: &Path, observe: impl Fn(usize, usize) + Sync) -> Self {
        /// Files between two tellings.
        const STRIDE: usize = 256;
        let samples: Vec<&Sample> = images.train.iter().chain(&images.val).collect();
        let read = AtomicUsize::new(0);
        let part = |sample: &&Sample| {
            let part = Crc32c::new().update(&sampled(&sample.path)).finish();
            let done = read.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(STRIDE) {
                observe(done, samples.len());
            }
            part
        };
        let parts: Vec<u32> = match threads() {
            Ok(threads) => threads.install(|| samples.par_iter().map(part).collect()),
            // Whoever reads the images says why.
            Err(_) => samples.iter().map(part).collect(),
        };
        let content = Crc32c::new().update(bytemuck::cast_slice(&parts)).finish();
        Self { content: format!("{content:08x}"), ..Self::named(images, folder) }
    }

    /// As [`of`](Self::of), without the files' content: nothing is read.
    pub(crate) fn named(images: &ImageFolder, folder: &Path) -> Self {
        let mut crc = Crc32c::new();
        for split in [&images.train, &images.val] {
            crc = crc.update(&(split.len() as u64).to_le_bytes());
            for sample in split {
                let path = sample.path.strip_prefix(folder).unwrap_or(&sample.path);
                for part in path.iter() {
                    crc = crc.update(part.as_encoded_bytes()).update(&[0]);
                }
                crc = crc.update(&sample.label.to_le_bytes());
            }
        }
        Self {
            train: images.train.len(),
            val: images.val.len(),
            checksum: format!("{:08x}", crc.finish()),
            content: String::new(),
        }
    }
}

/// A policy in words.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicySettings {
    pub name: String,
    /// All rules, in order.
    pub rules: Vec<String>,
    /// What changes in the course of the run, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stages: Vec<StageSettings>,
}

/// Rules that are added to a policy's in the course of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StageSettings {
    /// The share of the run's optimiser steps before it.
    pub from: f64,
    pub rules: Vec<String>,
}

/// The optimiser and its constants, as they were given: decimal numbers, not yet rounded to `f32`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerSettings {
    #[serde(rename_all = "kebab-case")]
    Sgd { momentum: f64, nesterov: bool, weight_decay: f64 },
    #[serde(rename_all = "kebab-case")]
    AdamW { beta1: f64, beta2: f64, eps: f64, weight_decay: f64 },
}

impl OptimizerSettings {
    /// `sgd` or `adamw`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// The learning rate of a run that is given none: one that is good on several networks and sets of images, as
    /// `scripts/defaults.sh` measures it. AdamW's is larger where convolutions hold still, since heads and batch norms bear it.
    pub const fn default_lr(&self, trains_convolutions: bool) -> f64 {
        match self {
            Self::Sgd { .. } => 0.01,
            Self::AdamW { .. } if trains_convolutions => 0.003,
            Self::AdamW { .. } => 0.02,
        }
    }
}

/// The longest `run.toml`, in bytes: it may hold a graph file and thousands of class names.
const MAX_FILE: u64 = 16 << 20;

/// Where they came from may differ when a run is resumed: what they hold is compared instead.
const PROVENANCE: [&str; 4] = ["thawline", "weights", "weights-set", "data"];

impl Settings {
    /// What a run needs of the head of the weights that it starts from.
    pub fn first_head(&self) -> Head {
        match self.head {
            Some(HeadStart::New) => Head::New,
            Some(HeadStart::Keep) | None => Head::Optional,
        }
    }

    /// Optimiser steps an epoch. With [`drop_last`](Self::drop_last) only whole windows of
    /// [`accumulate`](Self::accumulate) whole batches count: the images that are left over sit out, others in each epoch,
    /// since each has its own order.
    pub fn steps_per_epoch(&self) -> usize {
        let window = self.accumulate.max(1);
        match self.drop_last {
            true => self.images.train / self.batch.max(1) / window,
            false => self.batches_per_epoch().div_ceil(window),
        }
    }

    /// Micro-batches an epoch; without [`drop_last`](Self::drop_last), the last one may be partial.
    pub fn batches_per_epoch(&self) -> usize {
        match self.drop_last {
            true => self.steps_per_epoch() * self.accumulate,
            false => self.images.train.div_ceil(self.batch.max(1)),
        }
    }

    /// The step that micro-batch `batch` of an epoch is part of, as its micro-batches and all their images, each with a
    /// weight of 1.
    pub(super) fn window(&self, batch: usize) -> StepWindow {
        let first = batch - batch % self.accumulate.max(1);
        let batches = self.accumulate.min(self.batches_per_epoch().saturating_sub(first));
        let images = self.images.train.saturating_sub(first * self.batch);
        StepWindow { batches, weight: images.min(batches * self.batch) as f64 }
    }

    /// Training images that do not fill an optimiser step: those that sit out each epoch, or make its last step.
    pub fn left_over(&self) -> usize {
        self.images.train % (self.batch * self.accumulate).max(1)
    }

    /// Optimiser steps of the whole run.
    pub fn steps(&self) -> u64 {
        (self.steps_per_epoch() as u64).saturating_mul(self.epochs as u64)
    }

    /// That running statistics follow too slowly for so short a run, in a line; none where they follow, or are estimated anew
    /// after it. `stages` are the network in each stage of the policy.
    pub fn lag_in_words(&self, stages: &[Graph]) -> Option<String> {
        const MUCH: f64 = 0.1;
        if self.then == Some(Then::Recalibrate) {
            return None;
        }
        let ends = self.stage_starts().chain([self.steps()]);
        let starts = [0].into_iter().chain(self.stage_starts());
        let lengths: Vec<u64> = starts.zip(ends).map(|(start, end)| end.saturating_sub(start)).collect();
        // What is left after the run of the statistics before it, of a layer whose statistics move.
        let left = |index: usize| {
            let keeps = stages.iter().map(|stage| match stage.layers()[index].setting.batch_norm?.update {
                StatsUpdate::Ema { keep } => Some(f64::from(keep)),
                StatsUpdate::Off | StatsUpdate::Cumulative => None,
            });
            let moved: Vec<f64> =
                keeps.zip(&lengths).filter_map(|(keep, steps)| Some(keep?.powf(*steps as f64))).collect();
            (!moved.is_empty()).then(|| moved.iter().product::<f64>())
        };
        let layers = 0..stages.first()?.layers().len();
        let lagging: Vec<f64> = layers.filter_map(left).filter(|left| *left > MUCH).collect();
        let most = lagging.iter().copied().reduce(f64::max)?;
        let faster = match 0.9_f64.powf(self.steps() as f64) < MUCH {
            true => "let them follow faster (--set 'kind:bn? -> update=ema(0.9)'), ",
            false => "",
        };
        Some(format!(
            "after {}, {}{:.0} % of the running statistics of {} will still come from before training, and validation goes by \
             them: train longer, {faster}or estimate them anew with `recalibrate`",
            quantity(self.steps(), "step"),
            if lagging.iter().all(|left| *left == most) { "" } else { "up to " },
            100.0 * most,
            quantity(lagging.len() as u64, "batch norm"),
        ))
    }

    /// What becomes of the [left-over](Self::left_over) images, in a line; none if there are none.
    pub fn left_over_in_words(&self) -> Option<String> {
        let Self { batch, accumulate, .. } = self;
        let step = if *accumulate == 1 { batch.to_string() } else { format!("{batch} × {accumulate}") };
        match (self.left_over(), self.drop_last) {
            (0, _) => None,
            // An epoch shows some images several times, and others not at all, in any case.
            (_, true) if self.sampler == Sampler::Balanced => None,
            (left, false) => {
                let left = quantity(left, "image");
                Some(format!("the last step of each epoch has {left}, for which there are no more than that"))
            }
            (left, true) => Some(format!(
                "each epoch leaves out {left} of the {} training images, different ones each time: they do not fill a batch of \
                 {step}, and batch statistics need full batches",
                self.images.train
            )),
        }
    }

    /// The optimiser step, counted from 0, with which each of the policy's later stages begins.
    pub fn stage_starts(&self) -> impl Iterator<Item = u64> {
        self.policy.stages.iter().map(|stage| (stage.from * self.steps() as f64).round() as u64)
    }

    /// The learning rate of optimiser step `step`, which counts from 0.
    pub fn lr(&self, step: u64) -> f64 {
        self.schedule.at(step, self.steps_per_epoch() as u64, self.epochs as u64)
    }

    /// What the compiler needs to know.
    pub fn options(&self) -> Options {
        let optimizer = match self.optimizer {
            OptimizerSettings::Sgd { momentum, nesterov, weight_decay } => compile::Optimizer::Sgd(Sgd {
                momentum: momentum as f32,
                nesterov,
                weight_decay: weight_decay as f32,
                decoupled: false,
            }),
            OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay } => {
                compile::Optimizer::AdamW(AdamW { beta1, beta2, eps: eps as f32, weight_decay: weight_decay as f32 })
            }
        };
        Options {
            optimizer,
            label_smoothing: self.label_smoothing as f32,
            class_weights: self.class_weights.is_some(),
            accumulate: self.accumulate,
            export_gradients: false,
            seed: self.seed,
        }
    }

    /// # Errors
    /// [`TrainError::Setting`] for the first value that makes no sense.
    pub fn check(&self) -> Result<(), TrainError> {
        use super::Decay;
        let positive = |value: usize| (value > 0, value.to_string(), "at least 1");
        let not_negative = |value: f64| (value >= 0.0 && value.is_finite(), value.to_string(), "0 or more");
        let fraction =
            |value: f64| ((0.0..1.0).contains(&value), value.to_string(), "from 0 up to, but not including, 1");
        let mut checks = vec![
            ("batch", positive(self.batch)),
            ("accumulate", positive(self.accumulate)),
            ("epochs", (self.epochs > 0 && self.steps() < 1 << 40, self.epochs.to_string(), "1 or more, and fewer")),
            ("lr", not_negative(self.schedule.lr)),
            ("label-smoothing", fraction(self.label_smoothing)),
            (
                "max-pixels",
                (i64::try_from(self.decode.max_pixels).is_ok(), self.decode.max_pixels.to_string(), "less than 2⁶³"),
            ),
            ("val-fraction", fraction(self.val_fraction)),
            // What TOML can hold.
            ("seed", (i64::try_from(self.seed).is_ok(), self.seed.to_string(), "less than 2⁶³")),
            (
                "warmup",
                (i64::try_from(self.schedule.warmup).is_ok(), self.schedule.warmup.to_string(), "less than 2⁶³"),
            ),
        ];
        if let Some(weights) = &self.class_weights {
            let sound = weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite());
            let any = weights.iter().any(|weight| *weight > 0.0);
            let value = format!("{weights:?}");
            let expected = "a number of 0 or more for each class, and one above 0";
            checks.push(("class-weights", (sound && any && weights.len() == self.classes.len(), value, expected)));
        }
        if let Some(patience) = self.patience {
            checks.push(("patience", positive(patience)));
            let value = patience.to_string();
            checks.push(("patience", (self.images.val > 0, value, "none, since there are no validation images")));
        }
        match self.optimizer {
            OptimizerSettings::Sgd { momentum, nesterov, weight_decay } => {
                checks.push(("momentum", fraction(momentum)));
                checks.push(("weight-decay", not_negative(weight_decay)));
                let without = nesterov && momentum == 0.0;
                checks.push(("momentum", (!without, momentum.to_string(), "more than 0, since nesterov is on")));
            }
            OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay } => {
                checks.push(("beta1", fraction(beta1)));
                checks.push(("beta2", fraction(beta2)));
                checks.push(("eps", (eps > 0.0 && eps.is_finite(), eps.to_string(), "more than 0")));
                checks.push(("weight-decay", not_negative(weight_decay)));
            }
        }
        match self.schedule.decay {
            Decay::Constant => {}
            Decay::Cosine { end } => {
                checks.push(("final-lr", ((0.0..=1.0).contains(&end), end.to_string(), "a factor from 0 to 1")));
            }
            Decay::Step { epochs, gamma } => {
                checks.push(("step-epochs", positive(epochs)));
                let sound = gamma > 0.0 && gamma <= 1.0;
                checks.push(("gamma", (sound, gamma.to_string(), "more than 0 and at most 1")));
            }
        }
        for (setting, (sound, value, expected)) in checks {
            if !sound {
                return Err(TrainError::Setting { setting, value, expected });
            }
        }
        if self.images.train == 0 || self.steps_per_epoch() == 0 {
            let Self { batch, accumulate, .. } = *self;
            return Err(TrainError::TooFewImages { images: self.images.train, batch, accumulate });
        }
        let mut after = 0;
        for (start, stage) in self.stage_starts().zip(&self.policy.stages) {
            if start <= after || start >= self.steps() {
                let expected = "stages with at least one optimiser step each; train for more epochs";
                return Err(TrainError::Setting { setting: "stage", value: stage.from.to_string(), expected });
            }
            after = start;
        }
        Ok(())
    }

    /// The settings that the run in `folder` was begun with.
    ///
    /// # Errors
    /// There is no run, or its `run.toml` cannot be read.
    pub fn of_run(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(super::SETTINGS_FILE);
        let text = match read_text(&path, MAX_FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TrainError::NoRun { folder: folder.into() });
            }
            Err(source) => return Err(TrainError::Read { path, source }),
        };
        Self::from_toml(&text).map_err(|reason| TrainError::Damaged { path, reason })
    }

    pub(super) fn to_toml(&self) -> Result<String, TrainError> {
        // Only a path that is no text, or a number that `check` refuses, has no form in TOML.
        toml::to_string(self).map_err(|error| TrainError::Unwritable { reason: error.to_string() })
    }

    pub(super) fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| message(&error.to_string().trim_end().replace('\n', " ")))
    }

    /// The first setting in which `self` differs from `other`, with both values. A run may begin to skip broken images, or to
    /// allow larger ones, at any time: until then it stops at the first.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let flat = |settings: &Self| {
            let mut values = Vec::new();
            flatten("", &toml::Value::try_from(settings).ok()?, &mut values);
            Some(values)
        };
        let (ours, theirs) = (flat(self)?, flat(other)?);
        let value = |values: &[(String, String)], key: &str| {
            values.iter().find(|(k, _)| k == key).map_or_else(|| "not set".to_owned(), |(_, v)| v.clone())
        };
        // How images are prepared is in the graph, too, and is the better thing to name.
        let (graph, others): (Vec<_>, Vec<_>) =
            ours.iter().chain(&theirs).map(|(key, _)| key).partition(|key| *key == "graph");
        let keys = others.into_iter().chain(graph);
        let mut differing = keys.filter(|key| value(&ours, key) != value(&theirs, key));
        // What was shown before the first image that could not be read is the same.
        let from_now_on = |key: &str| match key {
            "skip-broken" => self.skip_broken,
            "decode.max-pixels" => self.decode.max_pixels > other.decode.max_pixels,
            _ => false,
        };
        let key = differing.find(|key| !PROVENANCE.contains(&key.as_str()) && !from_now_on(key))?;
        if key == "graph" {
            // Whole files, of which a message has no need.
            return Some((key.clone(), "another network".into(), "the one in its run.toml".into()));
        }
        Some((key.clone(), value(&ours, key), value(&theirs, key)))
    }
}

/// Appends all values in `value` with their dotted names.
fn flatten(name: &str, value: &toml::Value, values: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, values);
            }
        }
        _ => values.push((name.to_owned(), value.to_string())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::{Augment, Exif};
    use crate::models;
    use crate::policy::{Policy, resolve, resolve_stages};
    use crate::preprocessing::Preprocessing;
    use crate::train::Decay;

    pub fn settings() -> Settings {
        Settings {
            thawline: "0.1.0".into(),
            model: "resnet_tiny".into(),
            graph: None,
            weights: None,
            weights_set: None,
            data: "images".into(),
            classes: vec!["a".into(), "b \"quoted\"".into()],
            batch: 4,
            accumulate: 2,
            drop_last: true,
            epochs: 3,
            seed: 7,
            label_smoothing: 0.1,
            class_weights: None,
            sampler: Sampler::Shuffled,
            patience: None,
            val_fraction: 0.2,
            train_images: None,
            skip_broken: false,
            then: None,
            head: Some(HeadStart::Keep),
            images: ImageSet { train: 30, val: 5, checksum: "0".into(), content: "1".into() },
            policy: PolicySettings {
                name: "head".into(),
                rules: vec!["last:linear -> weights=train".into()],
                stages: vec![],
            },
            optimizer: OptimizerSettings::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 },
            schedule: Schedule { lr: 0.1, warmup: 2, decay: Decay::Cosine { end: 0.0 } },
            decode: DecodeOptions { exif: Exif::Ignore, max_pixels: 12_345 },
            transform: Transform::new(16, 24, Augment::CropFlip, Preprocessing::normalised([0.485; 3], [0.229; 3])),
        }
    }

    #[test]
    fn default_rates_follow_what_trains() {
        let adamw = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let sgd = OptimizerSettings::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        // Of the last one, the head is a convolution.
        for (model, policy, rate) in [
            ("resnet_tiny", "head", 0.02),
            ("resnet_tiny", "bn-only", 0.02),
            ("resnet_tiny", "keras-guide", 0.003),
            ("resnet_tiny", "full", 0.003),
            ("keras_mobilenet_v3_large", "head", 0.02),
        ] {
            let graph = models::build(model, 8, (32, 32), 10).unwrap();
            let stages = resolve_stages(&Policy::recipe(policy).unwrap(), &graph).unwrap();
            let trains = stages.iter().any(|(_, stage)| stage.graph.trains_convolutions());
            assert_eq!((adamw.default_lr(trains), sgd.default_lr(trains)), (rate, 0.01), "{model}, {policy}");
        }
    }

    #[test]
    fn toml_gives_back_the_same_settings() {
        let adamw = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let schedule = Schedule { lr: 1e-3 / 3.0, warmup: 0, decay: Decay::Step { epochs: 2, gamma: 0.1 } };
        for settings in [
            settings(),
            Settings { optimizer: adamw, schedule, weights: Some("w.pth".into()), ..settings() },
            Settings { schedule: Schedule { decay: Decay::Constant, ..schedule }, ..settings() },
            Settings { then: Some(Then::Recalibrate), ..settings() },
            Settings {
                class_weights: Some(vec![2.0 / 3.0, 5.0]),
                sampler: Sampler::Balanced,
                patience: Some(3),
                ..settings()
            },
        ] {
            let text = settings.to_toml().unwrap();
            assert_eq!(Settings::from_toml(&text).unwrap(), settings, "{text}");
        }
    }

    #[test]
    fn statistics_that_lag_behind_a_short_run_are_told() {
        let stage = |rules: &[&str]| {
            let network = models::build("resnet_tiny", 4, (16, 16), 2).unwrap();
            let policy = Policy::recipe("head").unwrap().with_rules(rules).unwrap();
            resolve(&policy, network).unwrap().graph
        };
        let moving = |keep: &str| stage(&[&format!("kind:bn -> stats=batch, update=ema({keep})")]);
        // Three steps an epoch.
        let run = |epochs| Settings { epochs, ..settings() };
        let lag = run(10).lag_in_words(&[moving("0.99")]).unwrap();
        assert!(
            lag.starts_with("after 30 steps, 74 % of the running statistics of 15 batch norms will still "),
            "{lag}"
        );
        assert!(lag.contains("update=ema(0.9)"), "{lag}");
        // Too short for any pace that is advised.
        assert!(!run(3).lag_in_words(&[moving("0.99")]).unwrap().contains("ema(0.9)"));
        for (settings, network) in [
            (run(10), moving("0.9")),
            (run(100), moving("0.99")),
            (run(1), stage(&[])),
            (run(1), stage(&["kind:bn -> stats=batch, update=cumulative"])),
            (Settings { then: Some(Then::Recalibrate), ..run(1) }, moving("0.99")),
        ] {
            assert_eq!(settings.lag_in_words(&[network]), None);
        }
        // A later stage that holds them still leaves what the first one left.
        let policy = PolicySettings { stages: vec![StageSettings { from: 0.5, rules: vec![] }], ..settings().policy };
        let cut = Settings { policy, ..run(20) };
        let lag = cut.lag_in_words(&[moving("0.99"), stage(&[])]).unwrap();
        assert!(lag.starts_with("after 60 steps, 74 %"), "{lag}");
    }

    #[test]
    fn left_over_images_and_batches_sit_out() {
        // 30 images are 7 whole batches of 4, and those are 3 whole windows of 2.
        assert_eq!(settings().steps_per_epoch(), 3);
        assert_eq!(settings().steps(), 9);
        assert_eq!((settings().batches_per_epoch(), settings().left_over()), (6, 6));
        assert_eq!(settings().window(5), StepWindow { batches: 2, weight: 8.0 });
    }

    #[test]
    fn left_over_images_make_a_smaller_step() {
        // 7 whole batches and one of 2 images: four windows, the last of them of 4 + 2 images.
        let all = Settings { drop_last: false, ..settings() };
        assert_eq!((all.steps_per_epoch(), all.batches_per_epoch(), all.left_over()), (4, 8, 6));
        assert_eq!(all.window(0), StepWindow { batches: 2, weight: 8.0 });
        assert_eq!([all.window(6), all.window(7)], [StepWindow { batches: 2, weight: 6.0 }; 2]);
        let shorter = Settings { accumulate: 3, ..all };
        assert_eq!((shorter.steps_per_epoch(), shorter.window(6)), (3, StepWindow { batches: 2, weight: 6.0 }));
        let few = Settings { batch: 64, accumulate: 1, drop_last: false, ..settings() };
        few.check().unwrap();
        assert_eq!(few.window(0), StepWindow { batches: 1, weight: 30.0 });
    }

    #[test]
    fn a_difference_is_named_with_both_values() {
        let ours = settings();
        assert_eq!(ours.difference(&settings()), None);
        let skipping = Settings { skip_broken: true, ..settings() };
        assert_eq!(skipping.difference(&settings()), None, "from now on");
        assert_eq!(ours.difference(&skipping).map(|(setting, ..)| setting), Some("skip-broken".into()));
        let moved = Settings { data: "elsewhere".into(), weights: Some("w".into()), ..settings() };
        assert_eq!(ours.difference(&moved), None);
        let schedule = Schedule { lr: 0.2, ..settings().schedule };
        let theirs = Settings { schedule, ..settings() };
        assert_eq!(ours.difference(&theirs), Some(("schedule.lr".into(), "0.1".into(), "0.2".into())));
        let theirs = Settings { schedule: Schedule { decay: Decay::Constant, ..settings().schedule }, ..settings() };
        assert_eq!(ours.difference(&theirs), Some(("schedule.decay.end".into(), "0.0".into(), "not set".into())));
    }

    #[test]
    fn senseless_values_are_named() {
        let base = settings;
        let sgd = |momentum, nesterov| OptimizerSettings::Sgd { momentum, nesterov, weight_decay: 0.0 };
        let schedule = |lr, decay| Schedule { lr, warmup: 0, decay };
        base().check().unwrap();
        for (wrong, named) in [
            (Settings { epochs: 0, ..base() }, "epochs"),
            (Settings { batch: 0, ..base() }, "batch"),
            (Settings { accumulate: 0, ..base() }, "accumulate"),
            (Settings { label_smoothing: 1.0, ..base() }, "label-smoothing"),
            (Settings { class_weights: Some(vec![1.0]), ..base() }, "class-weights"),
            (Settings { class_weights: Some(vec![0.0; 2]), ..base() }, "class-weights"),
            (Settings { class_weights: Some(vec![1.0, -1.0]), ..base() }, "class-weights"),
            (Settings { patience: Some(0), ..base() }, "patience"),
            (Settings { patience: Some(1), images: ImageSet { val: 0, ..base().images }, ..base() }, "patience"),
            (Settings { seed: u64::MAX, ..base() }, "seed"),
            (Settings { optimizer: sgd(1.0, false), ..base() }, "momentum"),
            (Settings { optimizer: sgd(0.0, true), ..base() }, "momentum"),
            (Settings { schedule: schedule(f64::NAN, Decay::Constant), ..base() }, "lr"),
            (Settings { schedule: schedule(-1.0, Decay::Constant), ..base() }, "lr"),
            (Settings { schedule: schedule(1.0, Decay::Cosine { end: 2.0 }), ..base() }, "final-lr"),
            (Settings { schedule: schedule(1.0, Decay::Step { epochs: 0, gamma: 0.1 }), ..base() }, "step-epochs"),
        ] {
            match wrong.check() {
                Err(TrainError::Setting { setting, .. }) => assert_eq!(setting, named),
                other => panic!("{named}: {other:?}"),
            }
        }
        let few = Settings { accumulate: 8, ..base() };
        let message = few.check().unwrap_err().to_string();
        assert!(message.contains("30 training images") && message.contains("4") && message.contains("8"), "{message}");
    }

    #[test]
    fn another_image_is_another_set_and_another_folder_is_not() {
        let folder = |root: &str, names: &[&str]| {
            let sample = |name: &&str| Sample { path: Path::new(root).join(name), label: 0 };
            let images = ImageFolder { classes: vec![], train: names.iter().map(sample).collect(), val: vec![] };
            ImageSet::of(&images, Path::new(root))
        };
        assert_eq!(folder("x", &["a/1.png", "a/2.png"]), folder("y/z", &["a/1.png", "a/2.png"]));
        assert_ne!(folder("x", &["a/1.png", "a/2.png"]), folder("x", &["a/1.png", "a/3.png"]));
    }

    #[test]
    fn other_content_is_another_set_and_a_copy_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let set = |root: &str, contents: [&[u8]; 2]| {
            let root = dir.path().join(root);
            std::fs::create_dir_all(&root).unwrap();
            let sample = |(name, content): (&str, &[u8])| {
                std::fs::write(root.join(name), content).unwrap();
                Sample { path: root.join(name), label: 0 }
            };
            let train = ["1.png", "2.png"].into_iter().zip(contents).map(sample).collect();
            ImageSet::of(&ImageFolder { classes: vec![], train, val: vec![] }, &root)
        };
        let long = |middle: u8, end: u8| [vec![0; 50_000], vec![middle; 1], vec![0; 49_998], vec![end; 1]].concat();
        let (a, b) = (long(1, 1), long(1, 2));
        let one = set("x", [&a, &b]);
        assert_eq!(one, set("y", [&a, &b]), "a copy, with other times");
        assert_ne!(one, set("z", [&b, &a]), "swapped, with the same sizes");
        assert_ne!(one, set("z", [&long(2, 1), &b]), "another middle");
        assert_ne!(set("z", [b"1", b"2"]), set("z", [b"2", b"1"]));
        assert_ne!(set("z", [b"1", b"2"]), set("z", [b"1", b"2 "]));
    }
}
