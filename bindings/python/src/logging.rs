//! The library's warnings and notes in Python's `logging`, under `thawline`.

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

struct PythonLog;

impl Log for PythonLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Not what the graphics stack says: its warnings are of drivers, and many.
        metadata.target().starts_with("thawline") && metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let method = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info | Level::Debug | Level::Trace => "info",
        };
        // Nothing is logged while the interpreter ends, and a handler that fails must not stop what is under way.
        let _ = Python::try_attach(|py| -> PyResult<()> {
            let logger = py.import("logging")?.call_method1("getLogger", ("thawline",))?;
            logger.call_method1(method, ("%s", record.args().to_string())).map(drop)
        });
    }

    fn flush(&self) {}
}

pub fn install() {
    // Fails where the module is loaded a second time, into a subinterpreter: the first one's stays.
    if log::set_logger(&PythonLog).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
