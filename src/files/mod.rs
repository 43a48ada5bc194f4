//! Files and folders as such: small ones are read within bounds, whole ones replaced at once, and a folder is locked
//! while a process works in it.

mod atomic;
mod lock;
mod small;

pub use atomic::write_atomically;
pub(crate) use atomic::{create_temporary, is_leftover, remove_leftovers};
pub(crate) use lock::is_lock;
pub use lock::{FolderLock, LockError};
pub use small::{read_small, read_text};

use std::io;
use std::path::{Component, Path, PathBuf};

/// The path of a file or folder that need not exist: absolute, without links as far as it exists.
///
/// # Errors
/// The current folder is unknown, or a part of the path cannot be looked at.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut missing = Vec::new();
    let mut there = absolute.as_path();
    loop {
        match there.canonicalize() {
            Ok(mut found) => {
                // Of what does not exist, `..` can only be taken at its word.
                for part in missing.iter().rev() {
                    match part {
                        Component::ParentDir => drop(found.pop()),
                        part => found.push(part),
                    }
                }
                return Ok(found);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(last)) = (there.parent(), there.components().next_back()) else {
                    return Err(error);
                };
                missing.push(last);
                there = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether `inner` is `outer`, or lies somewhere below it, whatever links lead to either. A path that cannot be looked at
/// lies nowhere.
pub fn contains(outer: &Path, inner: &Path) -> bool {
    matches!((resolved(outer), resolved(inner)), (Ok(outer), Ok(inner)) if inner.starts_with(&outer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_path_lies_below_another_by_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (data, beside) = (dir.path().join("data"), dir.path().join("database"));
        fs::create_dir(&data).unwrap();
        assert!(contains(&data, &data) && contains(&data, &data.join("new/er")));
        assert!(contains(&data, &beside.join("../data/new")));
        assert!(!contains(&data, &beside) && !contains(&data, &data.join("../new")));
        assert!(!contains(&data.join("a"), &data));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
            assert!(contains(&data, &dir.path().join("link/new")));
            assert!(contains(&dir.path().join("link"), &data.join("new")));
        }
    }
}
