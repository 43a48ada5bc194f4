use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the names of temporary files begin and end with.
const PREFIX: &str = ".thawline-";
const SUFFIX: &str = ".tmp";

/// Whether a file of that name is a temporary one of [`write_atomically`]; once the process is gone, it is of no use.
pub(crate) fn is_leftover(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Replaces `path` by what `write` writes, or leaves it as it was.
///
/// The bytes go to a temporary file in the same folder, reach the disk, and only then take the name.
///
/// # Errors
/// Those of `write` and of the file system: a full disk, a folder that is missing or may not be written. The
/// temporary file is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // A rename would replace a device as readily as a file.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a folder or a device, not a file"));
    }
    let temporary = temporary_beside(path);

    let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    let written = write_and_sync(file, write).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; a second one could only say that the leftover stays.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(folder(path));
    Ok(())
}

/// A name for a temporary file in the folder of `path`, which no other call has given.
pub(super) fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    folder(path).join(format!("{PREFIX}{}-{number}{SUFFIX}", process::id()))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn write_and_sync(file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Makes the rename itself durable. Only Unix lets a folder be opened for that, and some of its file systems refuse;
/// the file is whole either way.
fn sync_folder(folder: &Path) {
    if cfg!(unix)
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}
