//! What there is to read about a run: its price beforehand, and afterwards `metrics.csv`, TensorBoard's events, and what is
//! wrong with its batch norms; about an evaluation its page; about a comparison of policies: its table, its conclusion, and
//! a page with both; and about a device: what it should take and took, in a file and on a page.

mod bench_page;
mod benchmark;
mod classes;
mod comparison;
mod conclusion;
mod doctor;
mod evaluation;
pub mod events;
mod lr_find;
mod metrics;
mod page;
mod predict;
mod price;
mod spread;
mod svg;
mod template;
mod tensorboard;
#[cfg(test)]
mod tests;
pub mod units;

pub use bench_page::bench_page;
pub(crate) use benchmark::label;
pub use benchmark::{Against, BenchResult, Benchmark, Change, Disagreement, Pair};
pub use classes::class_name;
pub use comparison::{
    Arm, ArmLayer, ArmRun, ArmStage, ArmTimings, BatchStatistics, Comparison, LOOKED_AT, LrSearch, Prefix,
    SMALL_BATCH_IMAGES, SearchRound, State, Timings, Trial, Winner, mean_and_deviation,
};
pub use conclusion::{Verdict, conclusion, verdict};
pub use doctor::{Confidence, FEWEST_IMAGES, Fault, Finding, Remedy, diagnose};
pub use evaluation::{Evaluated, evaluation_page};
pub use lr_find::{LrFind, LrFinding, lr_find_page, lr_plot};
pub use metrics::csv;
pub use page::page;
pub use predict::{Prediction, Predictions, predict};
pub use price::{Amount, LayerPrice, Phases, Price, Total, Trained, price, trained_values};
pub use tensorboard::Events;

use crate::train::{Event, Totals, best};
use crate::weights::write_atomically;
use std::io;
use std::path::{Path, PathBuf};

/// The date in UTC, `YYYY-MM-DD`.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%F").to_string()
}

/// In a comparison's folder, the weights of its [`Winner`].
pub const WINNER_FILE: &str = "winner.safetensors";

/// The table of all epochs in a run's folder.
pub const METRICS_FILE: &str = "metrics.csv";

/// A file of a report cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
}

/// Writes down in a folder what the observer of a [`Run`](crate::train::Run) is told.
///
/// `metrics.csv` follows from the run's history alone and is written anew after each epoch, so it is the same for a run
/// that was resumed as for one that never stopped. Speeds, which are not, go to TensorBoard only.
pub struct RunLog {
    metrics: PathBuf,
    events: Events,
}

impl RunLog {
    /// Starts a file of events in `folder`, for a run that has done `step` optimiser steps.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(folder: &Path, step: u64) -> Result<Self, ReportError> {
        let events =
            Events::create(folder, step).map_err(|source| ReportError::Write { path: folder.into(), source })?;
        Ok(Self { metrics: folder.join(METRICS_FILE), events })
    }

    /// Writes down one event.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn record(&mut self, event: &Event<'_>) -> Result<(), ReportError> {
        match event {
            Event::Started { history, .. } => self.write_metrics(history),
            Event::Step(step) => {
                let scalars = [("step/loss", step.totals.mean_loss()), ("step/lr", step.lr)];
                self.scalars(step.step, &scalars)
            }
            Event::Validating { .. } | Event::Recalibrated { .. } => Ok(()),
            Event::Epoch { history, images_per_s } => {
                let Some(last) = history.last() else { return Ok(()) };
                let mut scalars = Vec::new();
                if let Some(train) = last.train {
                    scalars.extend(named(["train/loss", "train/top1", "train/top5"], train));
                }
                if let Some(val) = last.val {
                    scalars.extend(named(["val/loss", "val/top1", "val/top5"], val));
                }
                if let Some(balanced) = last.val_balanced {
                    scalars.push(("val/balanced", balanced));
                }
                if let Some(best) = best(history).and_then(|best| best.val) {
                    scalars.push(("val/best_top1", best.accuracy()));
                }
                if let Some(speed) = images_per_s {
                    scalars.push(("train/images_per_s", *speed));
                }
                self.scalars(last.step, &scalars)?;
                self.write_metrics(history)
            }
        }
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), ReportError> {
        let written = self.events.scalars(step, scalars);
        written.map_err(|source| ReportError::Write { path: self.events.path().into(), source })
    }

    fn write_metrics(&self, history: &[crate::train::EpochMetrics]) -> Result<(), ReportError> {
        write_atomically(&self.metrics, |file| file.write_all(csv(history).as_bytes()))
            .map_err(|source| ReportError::Write { path: self.metrics.clone(), source })
    }
}

fn named(names: [&'static str; 3], totals: Totals) -> impl Iterator<Item = (&'static str, f64)> {
    names.into_iter().zip([totals.mean_loss(), totals.accuracy(), totals.top5_accuracy()])
}
