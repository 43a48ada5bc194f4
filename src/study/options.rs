//! What people say of a run, and the settings that follow.

use super::{Images, Note, Observer, StudyError};
use crate::data::{Augment, DecodeOptions, Exif, Sampler, Transform};
use crate::model::Size;
use crate::models::Augmentation;
use crate::models::Spec;
use crate::preprocessing::Parts;
use crate::text::quantity;
use crate::train::{
    Decay, HeadStart, ImageSet, OptimizerSettings, PolicySettings, Schedule, Settings, Then, balanced_weights,
    read_weights,
};
use std::path::PathBuf;

/// What is asked of a run or a comparison. What is absent is as the run that is resumed has it, else a default, which stands
/// behind each field.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// How many classes the images should have: an error if they have others.
    pub classes: Option<usize>,
    /// Of the images: the weights file's, else the network's.
    pub size: Option<Size>,
    /// How images are prepared: as the weights file says, else the network.
    pub preprocessing: Parts,
    /// 10.
    pub epochs: Option<usize>,
    /// Images a micro-batch: 32.
    pub batch: Option<usize>,
    /// Micro-batches an optimiser step: 1.
    pub accumulate: Option<usize>,
    /// 0.
    pub seed: Option<u64>,
    /// SGD.
    pub optimizer: Option<OptimizerKind>,
    /// [`OptimizerSettings::default_lr`].
    pub lr: Option<f64>,
    /// Of SGD: 0.9.
    pub momentum: Option<f64>,
    /// Of SGD.
    pub nesterov: bool,
    /// 0.0001 for SGD, 0.01 for AdamW.
    pub weight_decay: Option<f64>,
    /// 0.
    pub label_smoothing: Option<f64>,
    /// None.
    pub class_weights: Option<ClassWeights>,
    /// Each image once.
    pub sampler: Option<Sampler>,
    /// Epochs without a better one before the run ends: it never does.
    pub patience: Option<usize>,
    /// Cosine.
    pub schedule: Option<ScheduleKind>,
    /// Optimiser steps over which the learning rate rises: a twentieth of all.
    pub warmup: Option<u64>,
    /// Where cosine ends, as a factor: 0.
    pub final_lr: Option<f64>,
    /// Epochs after which step multiplies the rate: a third of all.
    pub step_epochs: Option<usize>,
    /// What step multiplies the rate by: 0.1.
    pub gamma: Option<f64>,
    /// None, or what the layers of a Keras file do.
    pub augment: Option<Augment>,
    /// How many training images: all.
    pub train_images: Option<usize>,
    /// Of each class, where the images are not divided: 0.2.
    pub val_fraction: Option<f64>,
    /// Leaves out broken images instead of stopping at the first.
    pub skip_broken: bool,
    /// Applied.
    pub exif: Option<Exif>,
    /// See [`DecodeOptions::max_pixels`].
    pub max_pixels: Option<u64>,
    /// What becomes of a head whose classes have other names: an error.
    pub head: Option<HeadStart>,
    /// What comes after the last epoch: nothing.
    pub then: Option<Then>,
    /// Which of the weights file's sets was read.
    pub weights_set: Option<String>,
}

/// An optimiser without its constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptimizerKind {
    Sgd,
    AdamW,
}

/// A course of the learning rate without its constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScheduleKind {
    Constant,
    Cosine,
    Step,
}

/// The weight of each class in the training loss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClassWeights {
    /// All classes count the same, whatever their numbers of images.
    Balanced,
    /// As a TOML or JSON file says; see [`read_weights`].
    File(PathBuf),
}

impl Options {
    pub(super) fn val_fraction(&self, saved: Option<&Settings>) -> f64 {
        self.val_fraction.or(saved.map(|s| s.val_fraction)).unwrap_or(0.2)
    }

    pub(super) fn train_images(&self, saved: Option<&Settings>) -> Option<usize> {
        self.train_images.or(saved.and_then(|s| s.train_images))
    }

    /// Images a micro-batch.
    pub fn batch(&self, saved: Option<&Settings>) -> usize {
        self.batch.or(saved.map(|s| s.batch)).unwrap_or(32)
    }

    pub(super) fn accumulate(&self, saved: Option<&Settings>) -> usize {
        self.accumulate.or(saved.map(|s| s.accumulate)).unwrap_or(1)
    }

    /// Whatever is random follows from it.
    pub fn seed(&self, saved: Option<&Settings>) -> u64 {
        self.seed.or(saved.map(|s| s.seed)).unwrap_or(0)
    }

    /// What was asked for, over what the resumed run was begun with, over the defaults.
    pub fn decode(&self, saved: Option<&Settings>) -> DecodeOptions {
        let base = saved.map(|s| s.decode).unwrap_or_default();
        DecodeOptions { exif: self.exif.unwrap_or(base.exif), max_pixels: self.max_pixels.unwrap_or(base.max_pixels) }
    }

    /// The settings of a run of these images; `weights` is the file that those come from, and `drop_last` what the policy asks
    /// for.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the settings that comes from elsewhere")]
    pub(super) fn settings(
        &self,
        saved: Option<&Settings>,
        weights: Option<PathBuf>,
        images: &Images,
        spec: &Spec,
        size: Size,
        policy: PolicySettings,
        drop_last: bool,
        observer: &dyn Observer,
    ) -> Result<Settings, StudyError> {
        let optimizer = self.optimizer(saved.map(|s| s.optimizer))?;
        // A search puts its finding in its place, and a run of one policy the default for that policy.
        let lr = self.lr.unwrap_or_else(|| saved.map_or(optimizer.default_lr(true), |s| s.schedule.lr));
        let epochs = self.epochs.or(saved.map(|s| s.epochs)).unwrap_or(10);
        let decay = self.decay(saved.map(|s| s.schedule.decay), epochs)?;
        let augment = self.augment(saved, spec, observer);
        let classes = images.folder.classes.clone();
        let pixels = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let (class_weights, sampler) = self.balance(saved, images, observer)?;
        let graph = spec.file().map(|_| spec.describe(size.pair(), classes.len())).transpose()?;
        let mut settings = Settings {
            thawline: env!("CARGO_PKG_VERSION").into(),
            model: spec.name.to_string(),
            graph: graph.map(|file| file.json()),
            weights_set: self.weights_set.clone().or_else(|| saved.and_then(|s| s.weights_set.clone())),
            weights,
            data: images.data.clone(),
            classes,
            batch: self.batch(saved),
            accumulate: self.accumulate(saved),
            drop_last,
            epochs,
            seed: self.seed(saved),
            label_smoothing: self.label_smoothing.or(saved.map(|s| s.label_smoothing)).unwrap_or(0.0),
            class_weights,
            sampler,
            patience: self.patience.or(saved.and_then(|s| s.patience)),
            val_fraction: self.val_fraction(saved),
            train_images: self.train_images(saved),
            skip_broken: self.skip_broken || saved.is_some_and(|s| s.skip_broken),
            then: self.then.or(saved.and_then(|s| s.then)),
            head: self.head.or(saved.and_then(|s| s.head)),
            images: ImageSet::of_with(&images.folder, &images.data, |done, of| observer.reading(done, of)),
            policy,
            optimizer,
            schedule: Schedule { lr, warmup: 0, decay },
            decode: self.decode(saved),
            transform: Transform::new(pixels(size.height), pixels(size.width), augment, spec.preprocessing.value),
        };
        let warmup = self.warmup.or(saved.map(|s| s.schedule.warmup));
        settings.schedule.warmup = warmup.unwrap_or(settings.steps() / 20);
        settings.check()?;
        if settings.schedule.warmup > settings.steps() {
            observer.note(Note::Warning(format!(
                "--warmup {} is longer than the whole run of {}: the learning rate will not reach --lr",
                settings.schedule.warmup,
                quantity(settings.steps(), "step")
            )));
        }
        Ok(settings)
    }

    /// The class weights and the sampler.
    fn balance(
        &self,
        saved: Option<&Settings>,
        images: &Images,
        observer: &dyn Observer,
    ) -> Result<(Option<Vec<f64>>, Sampler), StudyError> {
        let sampler = self.sampler.or(saved.map(|s| s.sampler)).unwrap_or_default();
        let counts = images.folder.train_counts();
        let weights = match &self.class_weights {
            Some(ClassWeights::Balanced) => {
                if sampler == Sampler::Balanced {
                    observer.note(Note::Warning(
                        "--class-weights balanced and --sampler balanced each make all classes count the same: together, rare \
                         classes count for more than the others"
                            .into(),
                    ));
                }
                Some(balanced_weights(&counts, sampler))
            }
            Some(ClassWeights::File(file)) => Some(read_weights(file, &images.folder.classes, &counts, sampler)?),
            None => saved.and_then(|s| s.class_weights.clone()),
        };
        Ok((weights, sampler))
    }

    /// What training varies: the augmentation asked for, else as the run does, or as the layers of a Keras file do. Says what
    /// becomes of those.
    fn augment(&self, saved: Option<&Settings>, spec: &Spec, observer: &dyn Observer) -> Augment {
        let asked = self.augment.or(saved.map(|saved| saved.transform.augment));
        let layers = |layers: &[&Augmentation]| {
            let names = layers.iter().map(|Augmentation { layer, class, .. }| format!("`{layer}` ({class})"));
            format!("the Keras model's {}", names.collect::<Vec<_>>().join(", "))
        };
        let all: Vec<&Augmentation> = spec.augmentation.iter().collect();
        let (done, left_out): (Vec<&Augmentation>, Vec<&Augmentation>) = all.iter().partition(|layer| layer.mirrors);
        if let Some(augment) = asked {
            if !all.is_empty() {
                let name = augment.name();
                let note = format!("{}: left out, since --augment {name} is done instead", layers(&all));
                observer.note(Note::Note(note));
            }
            return augment;
        }
        if !left_out.is_empty() {
            let crops = left_out.iter().any(|layer| layer.crops);
            let nearest = match (crops, done.is_empty()) {
                (false, _) => "; there is no --augment like it",
                (true, true) => "; --augment crop comes nearest",
                (true, false) => "; --augment crop-flip comes nearest",
            };
            observer.note(Note::Warning(format!("{}: left out{nearest}", layers(&left_out))));
        }
        match done.is_empty() {
            true => Augment::None,
            false => {
                observer.note(Note::Note(format!(
                    "{}: images are mirrored as it does, which is --augment flip; --augment none leaves it out",
                    layers(&done)
                )));
                Augment::Flip
            }
        }
    }

    fn optimizer(&self, saved: Option<OptimizerSettings>) -> Result<OptimizerSettings, StudyError> {
        let sgd = OptimizerSettings::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
        let adamw = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let base = match (self.optimizer, saved) {
            (Some(OptimizerKind::Sgd), Some(saved @ OptimizerSettings::Sgd { .. })) => saved,
            (Some(OptimizerKind::AdamW), Some(saved @ OptimizerSettings::AdamW { .. })) => saved,
            (Some(OptimizerKind::Sgd), _) => sgd,
            (Some(OptimizerKind::AdamW), _) => adamw,
            (None, saved) => saved.unwrap_or(sgd),
        };
        Ok(match base {
            OptimizerSettings::Sgd { momentum, nesterov, weight_decay } => OptimizerSettings::Sgd {
                momentum: self.momentum.unwrap_or(momentum),
                nesterov: nesterov || self.nesterov,
                weight_decay: self.weight_decay.unwrap_or(weight_decay),
            },
            OptimizerSettings::AdamW { .. } if self.momentum.is_some() || self.nesterov => {
                return Err(StudyError::Option("--momentum and --nesterov are for --optimizer sgd"));
            }
            OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay } => {
                let weight_decay = self.weight_decay.unwrap_or(weight_decay);
                OptimizerSettings::AdamW { beta1, beta2, eps, weight_decay }
            }
        })
    }

    fn decay(&self, saved: Option<Decay>, epochs: usize) -> Result<Decay, StudyError> {
        let step = Decay::Step { epochs: epochs.div_ceil(3), gamma: 0.1 };
        let base = match (self.schedule, saved) {
            (Some(ScheduleKind::Constant), _) => Decay::Constant,
            (Some(ScheduleKind::Cosine), Some(saved @ Decay::Cosine { .. })) => saved,
            (Some(ScheduleKind::Step), Some(saved @ Decay::Step { .. })) => saved,
            (Some(ScheduleKind::Step), _) => step,
            (None, Some(saved)) => saved,
            (Some(ScheduleKind::Cosine) | None, _) => Decay::Cosine { end: 0.0 },
        };
        let is_step = matches!(base, Decay::Step { .. });
        if self.final_lr.is_some() && !matches!(base, Decay::Cosine { .. }) {
            return Err(StudyError::Option("--final-lr is for --schedule cosine"));
        }
        if (self.step_epochs.is_some() || self.gamma.is_some()) && !is_step {
            return Err(StudyError::Option("--step-epochs and --gamma are for --schedule step"));
        }
        Ok(match base {
            Decay::Constant => Decay::Constant,
            Decay::Cosine { end } => Decay::Cosine { end: self.final_lr.unwrap_or(end) },
            Decay::Step { epochs, gamma } => {
                Decay::Step { epochs: self.step_epochs.unwrap_or(epochs), gamma: self.gamma.unwrap_or(gamma) }
            }
        })
    }
}
