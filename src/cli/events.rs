//! The events of long commands under `--json`, a line each on standard output, and the document of the last one.
//! `docs/events.md` describes them.

use super::output;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
pub use thawline::report::events::{epoch, number};
use thawline::report::{self, ArmRun};
use thawline::train::Event;

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

/// Prints what a run tells of itself, with what says which run it is.
pub fn of_run(run: &Value, event: &Event<'_>) -> Result<()> {
    let (name, fields) = report::events::of_run(event);
    emit_of(run, name, fields)
}

/// Prints that a run of a comparison is complete.
pub fn done(which: &Value, run: &ArmRun) -> Result<()> {
    emit_of(which, "done", report::events::done(run))
}
