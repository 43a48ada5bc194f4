//! One process at a time in a folder.

use super::remove_leftovers;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process;

/// The file whose lock stands for the folder's. It holds the number of the process that has it.
const NAME: &str = ".thawline.lock";

/// Whether a file of that name stands for the lock of its folder. Without a process that holds it, it means nothing.
pub(crate) fn is_lock(name: &OsStr) -> bool {
    name == NAME
}

/// A folder that no other process may work in until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// None where the file system has no locks.
    file: Option<File>,
}

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "{} is in use by another process of thawline{}: wait until it has ended, or stop it",
        folder.display(),
        pid.map(|pid| format!(", number {pid}")).unwrap_or_default()
    )]
    Held {
        folder: PathBuf,
        /// Of the process that holds it, where the file could be read.
        pid: Option<u32>,
    },
    #[error("cannot lock {}: {source}", folder.display())]
    Io { folder: PathBuf, source: io::Error },
}

impl FolderLock {
    /// Locks a folder, which must exist, and removes the temporary files that a killed process left in it.
    ///
    /// # Errors
    /// Another process, or another part of this one, holds the lock; the folder cannot be written.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { folder: folder.into(), source };
        let path = folder.join(NAME);
        loop {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { folder: folder.into(), pid: holder(&mut file) });
                }
                // Some network file systems have none.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    log::warn!("{} cannot be locked: let no other process work in it", folder.display());
                    return Ok(Self { path, file: None });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // Whoever held it before may have removed it between the opening and the locking.
            if !is_still_there(&path, &file) {
                continue;
            }
            let written = file.set_len(0).and_then(|()| write!(file, "{}", process::id()));
            written.map_err(failed)?;
            remove_leftovers(folder);
            return Ok(Self { path, file: Some(file) });
        }
    }
}

impl FolderLock {
    /// Whether a process has locked the folder before, and did not come to unlock it.
    pub fn was_here(folder: &Path) -> bool {
        folder.join(NAME).is_file()
    }

    /// Unlocks the folder and leaves no trace in it, for one that is about to be renamed.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn release(mut self) -> io::Result<()> {
        // Some systems neither rename a folder nor remove a file that is open.
        self.file = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Where whoever has opened it can notice. Elsewhere, and if it fails, the file stays, which does no harm.
        if cfg!(unix) && self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The process that the file names.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether `file` is the one at `path`.
#[cfg(unix)]
fn is_still_there(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |found: &fs::Metadata| (found.dev(), found.ino());
    matches!((fs::metadata(path), file.metadata()), (Ok(there), Ok(here)) if number(&there) == number(&here))
}

/// Nothing removes it.
#[cfg(not(unix))]
fn is_still_there(_: &Path, _: &File) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_lock_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(dir.path()).unwrap();
        let error = FolderLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { pid, .. } if !cfg!(unix) || pid == Some(process::id())), "{error}");
        drop(lock);
        let again = FolderLock::acquire(dir.path()).unwrap();
        drop(again);
        if cfg!(unix) {
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the file is gone");
        }
    }

    #[test]
    fn a_lock_file_without_a_process_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "1").unwrap();
        FolderLock::acquire(dir.path()).unwrap();
        assert!(FolderLock::acquire(&dir.path().join("missing")).is_err());
    }
}
