//! The events of long commands under `--json`, a line each on standard output, and the document of the last one.
//! `docs/events.md` describes them.

use super::output;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use thawline::report::ArmRun;
use thawline::train::{EpochMetrics, Event, StepMetrics, Totals};

/// The number of the form of all JSON that commands print. It rises when a field goes or changes its meaning; new fields
/// and new events leave it as it is.
pub const SCHEMA: u64 = 1;

/// Whether standard output is a stream of events.
static ON: AtomicBool = AtomicBool::new(false);

pub fn are_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Begins the stream of `command`, if `--json` asks for it.
pub fn begin(json: bool, command: &str) -> Result<()> {
    ON.store(json, Ordering::Relaxed);
    emit("begin", json!({"command": command, "thawline": env!("CARGO_PKG_VERSION")}))
}

/// Prints an event with the fields of an object, if there is a stream. With --quiet there is none but the last.
pub fn emit(event: &str, fields: Value) -> Result<()> {
    if output::is_quiet() {
        return Ok(());
    }
    last(event, fields)
}

/// Prints an event of a run, with the fields that say which run it is.
fn emit_of(run: &Value, event: &str, mut fields: Value) -> Result<()> {
    if let (Value::Object(fields), Value::Object(run)) = (&mut fields, run) {
        fields.extend(run.clone());
    }
    emit(event, fields)
}

/// Prints the event that the stream ends with.
fn last(event: &str, fields: Value) -> Result<()> {
    if !are_on() {
        return Ok(());
    }
    let mut all = Map::from_iter([("schema".to_owned(), SCHEMA.into()), ("event".to_owned(), event.into())]);
    if let Value::Object(fields) = fields {
        all.extend(fields);
    }
    output::json_line(&Value::Object(all))
}

/// Ends the stream with what the command found.
pub fn result(document: &impl serde::Serialize) -> Result<()> {
    last("result", serde_json::to_value(document)?)
}

/// Ends the stream of a run that Ctrl-C stopped and that can go on.
pub fn stopped(command: &str) -> Result<()> {
    last("stopped", json!({"resume": command}))
}

/// Ends the stream of a command that failed.
pub fn error(message: &str) -> Result<()> {
    last("error", json!({"message": message}))
}

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

/// Prints what a run tells of itself, with what says which run it is.
pub fn of_run(run: &Value, event: &Event<'_>) -> Result<()> {
    let (name, fields) = match *event {
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
    };
    emit_of(run, name, fields)
}

/// Prints that a run of a comparison is complete.
pub fn done(which: &Value, run: &ArmRun) -> Result<()> {
    let fields = json!({
        "val_top1": run.last_accuracy().map_or(Value::Null, number),
        "best_val_top1": run.best_accuracy().map_or(Value::Null, number),
        "diverged": run.diverged,
    });
    emit_of(which, "done", fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_word_in_json_are_texts() {
        assert_eq!([1.5, f64::NAN, f64::NEG_INFINITY].map(number), [json!(1.5), json!("NaN"), json!("-inf")]);
    }
}
