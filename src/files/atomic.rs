use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the names of temporary files begin and end with.
const PREFIX: &str = ".thawline-";
const SUFFIX: &str = ".tmp";

/// Whether a file of that name is a temporary one of [`write_atomically`]; once the process is gone, it is of no use.
pub(crate) fn is_leftover(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Removes the temporary files of processes that are gone. Nothing tells of a failure: they are hidden, and do no harm.
///
/// Whoever writes a temporary file holds its lock, so one that can be locked is nobody's.
pub(crate) fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_leftover(&entry.file_name())) {
        let path = entry.path();
        // Not a pipe or a device, which somebody else may have called so.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        if let Ok(file) = OpenOptions::new().write(true).open(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// [`remove_leftovers`], once in each folder: it may hold many files.
fn remove_leftovers_once(folder: &Path) {
    static SEEN: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if seen.get_or_insert_default().insert(folder.to_owned()) {
        remove_leftovers(folder);
    }
}

/// Replaces `path` by what `write` writes, or leaves it as it was.
///
/// The bytes go to a temporary file in the same folder, reach the disk, and only then take the name. What a process that
/// was killed meanwhile left in the folder is removed.
///
/// # Errors
/// Those of `write` and of the file system: a full disk, a folder that is missing or may not be written. The
/// temporary file is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // A rename would replace a device as readily as a file.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a folder or a device, not a file"));
    }
    remove_leftovers_once(folder(path));
    let (temporary, file) = create_temporary(path)?;
    let written = write_and_sync(file, write).and_then(|file| {
        let renamed = fs::rename(&temporary, path);
        // With it goes the lock, by which others know that the file is in use.
        drop(file);
        renamed
    });
    if written.is_err() {
        // The first error is the one to report; a second one could only say that the leftover stays.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(folder(path));
    Ok(())
}

/// A new temporary file beside `path`, which is locked where there are locks.
///
/// # Errors
/// It cannot be created.
pub(crate) fn create_temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let temporary = temporary_beside(path);
        let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            // Of a killed process that had the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        match file.try_lock() {
            // Another process takes it for a leftover, and is about to remove it.
            Err(TryLockError::WouldBlock) => continue,
            _ => return Ok((temporary, file)),
        }
    }
}

/// A name for a temporary file in the folder of `path`, which no other call has given.
fn temporary_beside(path: &Path) -> PathBuf {
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

fn write_and_sync(file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_go_once_nobody_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::write(place(".thawline-1-0.tmp"), "half").unwrap();
        fs::write(place(".thawline-notes"), "kept").unwrap();
        fs::create_dir(place(".thawline-2-0.tmp")).unwrap();
        let (busy, file) = create_temporary(&place("x")).unwrap();
        remove_leftovers(dir.path());
        assert!(!place(".thawline-1-0.tmp").exists());
        assert!(place(".thawline-notes").exists() && place(".thawline-2-0.tmp").exists() && busy.exists());
        drop(file);
        write_atomically(&place("x"), |out| out.write_all(b"whole")).unwrap();
        assert!(!busy.exists(), "the first write in a folder removes what it finds");
        assert_eq!(fs::read(place("x")).unwrap(), b"whole");
    }
}
