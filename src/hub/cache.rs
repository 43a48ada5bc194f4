//! The cache that the libraries of Hugging Face share: what one of them fetched, all find.
//!
//! ```text
//! models--owner--name/refs/main                      the commit that the branch stood at
//! models--owner--name/snapshots/<commit>/path/file → ../../../blobs/<etag>
//! models--owner--name/blobs/<etag>                   a file's content, under the hash that the hub names it by
//! .locks/models--owner--name/<etag>.lock             held while the blob is written
//! ```
//!
//! Layout: <https://huggingface.co/docs/hub/local-cache>.

use super::reference::{is_commit, is_relative};
use super::{HubError, Reference};
use crate::files::read_text;
use crate::weights::write_atomically;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Between two looks at whether a lock is free.
const POLL: Duration = Duration::from_millis(100);

/// The longest file that holds a commit or a token, in bytes.
pub(super) const MAX_TEXT: u64 = 64 << 10;

/// The part of the cache that belongs to one repository.
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub fn of(cache: &Path, Reference { owner, name, .. }: &Reference) -> Self {
        let folder = format!("models--{owner}--{name}");
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    /// The commit that `revision` stood at when it was last looked up.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = read_text(&self.folder.join("refs").join(revision), MAX_TEXT).ok()?;
        Some(text.trim()).filter(|text| is_commit(text)).map(str::to_owned)
    }

    pub fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        write_atomically(&path, |file| file.write_all(commit.as_bytes())).map_err(unusable(&path))
    }

    /// Where `file` is, or is to be, as it was at `commit`.
    pub fn path(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The files of a commit that are there, sorted.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        // A folder that cannot be read has nothing to offer.
        let _ = list(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }

    /// Where the content of the given hash is, or is to be.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Keeps every other process from writing the blob until the lock is dropped; waits for those that write it until that is
    /// `over`, and gives nothing then.
    pub fn lock(&self, etag: &str, what: &str, over: impl Fn() -> bool) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::create(&path).map_err(unusable(&path))?;
        let mut waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                // Some network file systems have no locks. What two processes then write at once fails its checksum.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(Some(file)),
                Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
                Err(TryLockError::WouldBlock) if over() => return Ok(None),
                Err(TryLockError::WouldBlock) => {}
            }
            if !waited {
                log::warn!("another process is downloading {what}: waiting for it");
                waited = true;
            }
            thread::sleep(POLL);
        }
    }

    /// Makes `file` of `commit` show the blob: by a link, or by a copy where links are not to be had.
    pub fn point(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.path(commit, file);
        make_parent(&path)?;
        let blob = self.blob(etag);
        // From the folder of the commit, and from that of the file below it.
        let up = "../".repeat(2 + file.matches('/').count());
        if fs::symlink_metadata(&path).is_ok() {
            // It leads nowhere, or the caller would have taken it.
            fs::remove_file(&path).map_err(unusable(&path))?;
        }
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &path) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => write_atomically(&path, |out| io::copy(&mut File::open(&blob)?, out).map(drop)),
            Ok(()) => Ok(()),
        }
        .map_err(unusable(&path))
    }
}

/// The paths, below `prefix`, of the files in `folder`. Links to folders are not followed: the cache has none.
fn list(folder: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{path}/"), files)?;
        } else if is_relative(&path) && entry.path().is_file() {
            files.push(path);
        }
    }
    Ok(())
}

pub(super) fn make_parent(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(unusable(folder))
}

pub(super) fn unusable(path: &Path) -> impl Fn(io::Error) -> HubError {
    move |source| HubError::Cache { path: path.into(), source }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Needs a privilege that most users lack.
#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.to_string_lossy().replace('/', "\\"), link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
