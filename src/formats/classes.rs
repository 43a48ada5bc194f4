//! The names of classes of files that have no place for them: a list in a file beside.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::CLASSES;
use crate::files::read_text;
use crate::text::printable;
use crate::weights::{StateDict, WeightsError, write_atomically};

/// Bytes of text: far above every list of names.
const MAX_TEXT: u64 = 4 << 20;

/// The file with the names of the classes of a `file` that has no place for them: `best.keras.classes.json` for
/// `best.keras`. It holds a list of texts in JSON, in the order of the outputs.
pub fn class_file(file: &Path) -> PathBuf {
    let mut name = file.file_name().map(OsString::from).unwrap_or_default();
    name.push(".classes.json");
    file.with_file_name(name)
}

/// Puts the names from the file beside `file` into the metadata, if there is one.
pub(super) fn read(file: &Path, state: &mut StateDict) -> Result<(), WeightsError> {
    let path = class_file(file);
    let text = match read_text(&path, MAX_TEXT) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(WeightsError::Read { path, source }),
    };
    match names(&text) {
        Ok(names) => state.metadata.insert(CLASSES.to_owned(), serde_json::Value::from(names).to_string()),
        Err(reason) => return Err(WeightsError::Refused { path, reason }),
    };
    Ok(())
}

fn names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = serde_json::from_str(text)
        .map_err(|error| format!("it is no list of class names, such as [\"cat\", \"dog\"]: {error}"))?;
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => Err(format!("it names the class `{}` twice", printable(twice))),
        None => Ok(names),
    }
}

/// The text of the file for the names in the metadata, a line each.
pub(super) fn text(state: &StateDict) -> Option<String> {
    let names: Vec<String> = serde_json::from_str(state.metadata.get(CLASSES)?).ok()?;
    serde_json::to_string_pretty(&names).ok().map(|text| text + "\n")
}

/// Writes a file by `write`, and the names of its classes beside it. At no moment another file's names stand beside it.
pub(super) fn write_beside(
    file: &Path,
    text: Option<&str>,
    write: impl FnOnce() -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let path = class_file(file);
    let failed = |source: io::Error| WeightsError::Write { path: path.clone(), source };
    if text.is_some() && read_text(&path, MAX_TEXT).ok().as_deref() == text {
        return write();
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    write()?;
    match text {
        Some(text) => write_atomically(&path, |file| file.write_all(text.as_bytes())).map_err(failed),
        None => Ok(()),
    }
}
