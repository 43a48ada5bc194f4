//! Training: sessions on a device, schedules, metrics, checkpoints, and the loop that ties them together.
//!
//! A [`Session`] takes one batch after another and knows nothing of files. A [`Run`] is the whole: it feeds a session
//! from an [image folder](crate::data::ImageFolder) for some epochs, validates, and keeps checkpoints in a folder, from
//! which it goes on bit for bit as if it had never stopped.

mod cache;
mod check;
mod checkpoint;
mod class_weights;
mod confusion;
mod crc32c;
mod evaluation;
mod examine;
mod finite;
mod fitting;
mod measure;
mod moments;
pub(crate) mod number;
mod probe;
mod range_test;
mod ranking;
mod recalibrate;
mod run;
mod schedule;
mod session;
mod settings;

pub(crate) use cache::is_worth_keeping;
pub use cache::{FeatureCache, Features};
pub use check::{Divergence, TOLERANCE, check};
pub(crate) use checkpoint::checksum;
pub use class_weights::{balanced_weights, read_weights};
pub use confusion::{ClassFigures, ConfusionMatrix, Means, UNEVEN, imbalance};
pub(crate) use crc32c::Crc32c;
pub use evaluation::{Evaluation, Mistake};
pub use examine::{Assumption, Checkup, DEAD, Examination, Inference, LayerCheck, SizeCheck, Trial, examine};
pub use finite::check_finite;
pub use measure::{KernelTime, Measurement, Quartiles, measure};
pub use moments::Moments;
pub use probe::{Companions, LayerSurvey, Observation, Probe, Survey};
pub use range_test::{LrEnd, LrPoint, LrRange, RangeTest, suggest};
pub use ranking::Ranking;
pub use recalibrate::{Method, Recalibration, drifts, recalibrate};
pub(crate) use run::claim;
pub use run::{
    BEST_FILE, CHECKPOINT_FILE, EpochMetrics, Event, Job, LAST_FILE, Outcome, RECALIBRATED_FILE, Run, SETTINGS_FILE,
    StepMetrics, best, check_apart,
};
pub use schedule::{Decay, Schedule};
pub use session::{Evaluator, Images, OptimizerState, PADDING, Session, StepWindow, Totals, takes_batch_statistics};
pub use settings::{HeadStart, ImageSet, OptimizerSettings, PolicySettings, Settings, StageSettings, Then};

use crate::compile::CompileError;
use crate::data::DataError;
use crate::files::LockError;
use crate::gpu::GpuError;
use crate::graph::GraphError;
use crate::text::quantity;
use crate::weights::WeightsError;
use std::io;
use std::path::PathBuf;

/// What can go wrong in training or evaluation.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(
        "{} lies inside {}: results and images need folders of their own, since every folder among the images is a class; \
         name another folder, or move one of them",
        inner.display(),
        outer.display()
    )]
    Nested { outer: PathBuf, inner: PathBuf },
    #[error("interrupted")]
    Interrupted,
    #[error("the plan has no {what}")]
    Incomplete { what: &'static str },
    #[error("the plan takes images as {expected}, not as {found}")]
    Form { expected: &'static str, found: &'static str },
    #[error("the images are {bytes} bytes, but the plan takes {expected} for {shape}")]
    Images { bytes: usize, expected: usize, shape: String },
    #[error("there are {found} labels for a batch of {expected}")]
    Labels { found: usize, expected: usize },
    #[error("there is no kept image {sample}: there are {count}, numbered from 0")]
    Sample { sample: usize, count: usize },
    #[error("{found} class weights were given to a network of {expected} classes, or to one that takes none")]
    ClassWeightCount { found: usize, expected: usize },
    #[error("{}: {reason}", path.display())]
    ClassWeights { path: PathBuf, reason: String },
    #[error("the label {label} is not one of the network's {classes} classes")]
    Label { label: u32, classes: usize },
    #[error(transparent)]
    Diverges(#[from] Divergence),
    #[error("the network has no batch norm: there are no statistics to look at or to estimate")]
    NoBatchNorm,
    #[error("`{layer}` is no batch norm: it has no statistics to estimate")]
    NotABatchNorm { layer: String },
    #[error(
        "the input of `{layer}` is not finite: its moments cannot be taken; look at the layer before it: its weights or \
         statistics are not finite, a variance is below zero, or it overflows"
    )]
    MomentsNotFinite { layer: String },
    #[error("the optimiser state belongs to another network, policy or optimiser")]
    ForeignState,

    #[error("{setting} is {value}: expected {expected}")]
    Setting { setting: &'static str, value: String, expected: &'static str },
    #[error("the settings cannot be written down: {reason}")]
    Unwritable { reason: String },
    #[error(
        "one optimiser step takes {batch} × {accumulate} images, more than {}: use a smaller batch, \
         accumulate fewer, or add images",
        quantity(*images, "training image")
    )]
    TooFewImages { images: usize, batch: usize, accumulate: usize },
    #[error("the policy has {expected} stages, but networks were given for {found}")]
    Stages { expected: usize, found: usize },
    #[error("the network has {network} classes, but the images have {images}")]
    Classes { network: usize, images: usize },
    #[error(
        "`{tensor}` of the weights holds {value}{}",
        match tensor.rsplit_once('.') {
            Some((_, "running_var" | "running_mean")) => {
                ", which no statistic of finite values is; `recalibrate` estimates running statistics anew"
            }
            _ => "; take weights from before training diverged",
        }
    )]
    NotFinite { tensor: String, value: f32 },
    #[error(
        "{what} is not finite, and no result can be trusted; weights or statistics are far too large for these images"
    )]
    OutputNotFinite { what: String },
    #[error(
        "{} is not empty: name a new folder{}",
        folder.display(),
        if *resumable { ", or go on with what is in it by --resume" } else { "" }
    )]
    Occupied { folder: PathBuf, resumable: bool },
    #[error("{} holds no run that could be resumed", folder.display())]
    NoRun { folder: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "`{setting}` is {here} now, but the run of {} was begun with {there}: resume it with the settings that it has, \
         or begin a new run in another folder",
        path.display()
    )]
    Changed { path: PathBuf, setting: String, here: String, there: String },
    #[error(
        "images in {} have another content than when the run of {} began, though their names are the same: restore them, or \
         begin a new run in another folder",
        data.display(),
        path.display()
    )]
    ContentChanged { path: PathBuf, data: PathBuf },
    #[error(
        "training diverged: {what} in step {step} (epoch {epoch}); the last good checkpoint is {}, of step \
         {checkpoint_step}, with its weights in {LAST_FILE} beside it; try a lower learning rate or a longer warm-up",
        checkpoint.display()
    )]
    Diverged { what: String, epoch: usize, step: u64, checkpoint: PathBuf, checkpoint_step: u64 },
    /// The device failed or was lost in the course of a run, which can go on from its last checkpoint: on another device, or
    /// on this one once it is mended.
    #[error("{source}; the last checkpoint is {}, of step {checkpoint_step}", checkpoint.display())]
    Device { source: Box<GpuError>, checkpoint: PathBuf, checkpoint_step: u64 },
    /// What the caller's observer reports.
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}
