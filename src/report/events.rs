//! What runs and comparisons tell of themselves, as JSON: the events of the command line under `--json`, and what callbacks of
//! other doors get. `docs/events.md` describes the fields.

use super::{Arm, ArmRun, Comparison, Timings, mean_and_deviation};
use crate::train::{EpochMetrics, Event, StepMetrics, Totals};
use serde_json::{Value, json};

/// A number, or the text of one that is not finite, for which JSON has no word.
pub fn number(value: f64) -> Value {
    if value.is_finite() { value.into() } else { value.to_string().into() }
}

/// What a network made of images.
pub fn totals(totals: Totals) -> Value {
    json!({
        "samples": totals.samples,
        "loss": number(totals.mean_loss()),
        "top1": number(totals.accuracy()),
        "top5": number(totals.top5_accuracy()),
    })
}

/// An epoch of a run.
pub fn epoch(metrics: &EpochMetrics) -> Value {
    let EpochMetrics { epoch, step, lr, train, val, skipped, .. } = *metrics;
    json!({
        "epoch": epoch,
        "step": step,
        "lr": number(lr),
        "train": train.map(totals),
        "val": val.map(totals),
        "skipped": skipped,
    })
}

/// The name and the fields of what a run tells.
pub fn of_run(event: &Event<'_>) -> (&'static str, Value) {
    match *event {
        Event::Started { step, .. } => ("started", json!({"step": step})),
        Event::Step(StepMetrics { epoch, step, lr, totals, images_per_s, .. }) => (
            "step",
            json!({
                "epoch": epoch,
                "step": step,
                "loss": number(totals.mean_loss()),
                "lr": number(lr),
                "images_per_s": number(images_per_s),
            }),
        ),
        Event::Validating { batches, of } => ("validating", json!({"batches": batches, "of": of})),
        Event::Epoch { history, images_per_s } => {
            let mut fields = history.last().map_or(json!({}), epoch);
            fields["images_per_s"] = images_per_s.map_or(Value::Null, number);
            ("epoch", fields)
        }
        Event::Recalibrated { val } => ("recalibrated", json!({"val": val.map(totals)})),
    }
}

/// The fields of a run of a comparison that is complete.
pub fn done(run: &ArmRun) -> Value {
    json!({
        "val_top1": run.last_accuracy().map_or(Value::Null, number),
        "best_val_top1": run.best_accuracy().map_or(Value::Null, number),
        "diverged": run.diverged,
    })
}

/// Each policy of a comparison: means over its runs.
pub fn policies(comparison: &Comparison, timings: &Timings) -> Vec<Value> {
    let row = |(arm, took): (&Arm, &super::ArmTimings)| {
        let (_, mean, deviation) = arm.spread(ArmRun::last_accuracy);
        json!({
            "policy": arm.name,
            "runs": arm.runs.len(),
            "lr": number(arm.lr(comparison)),
            "diverged": arm.diverged().count(),
            "val_top1": number(mean),
            "deviation": number(deviation),
            "best_val_top1": number(arm.spread(ArmRun::best_accuracy).1),
            "step_ms": number(took.step_ms),
            "flops": arm.step.amount.flops,
            "kept_bytes": arm.step.kept_bytes,
            "drift": number(arm.drift()),
        })
    };
    comparison.arms.iter().zip(&timings.arms).map(row).collect()
}

impl Arm {
    /// How many of the runs have a number of some kind, its mean, and its standard deviation over them.
    pub fn spread(&self, of: fn(&ArmRun) -> Option<f64>) -> (usize, f64, f64) {
        let values: Vec<f64> = self.runs.iter().filter_map(of).collect();
        let (mean, deviation) = mean_and_deviation(&values);
        (values.len(), mean, deviation)
    }

    /// The mean drift of the running statistics at the end, over layers and runs.
    pub fn drift(&self) -> f64 {
        let mean = |drift: &[f64]| drift.iter().sum::<f64>() / drift.len() as f64;
        mean_and_deviation(&self.runs.iter().map(|run| mean(&run.end.drift)).collect::<Vec<_>>()).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_word_in_json_are_texts() {
        assert_eq!([1.5, f64::NAN, f64::NEG_INFINITY].map(number), [json!(1.5), json!("NaN"), json!("-inf")]);
    }
}
