//! Images on disk → batches of pixels in memory.
//!
//! [`ImageFolder`] finds the samples, [`decode`](mod@decode) reads one, [`Transform`] says what a network is shown of it,
//! and [`Loader`] does all that on threads ahead of its consumer. Order and augmentation are functions of (seed, epoch,
//! sample), so a run that resumes in the middle of an epoch sees the pixels that an uninterrupted one would have seen.
//! [`sample`] writes small data sets to try things on.

pub mod decode;
mod folder;
mod loader;
pub mod sample;
mod sampling;
mod thumbnail;
mod transform;

pub use decode::{DecodeOptions, Exif, Image};
pub use folder::{ImageFolder, Sample, Unread, list_images, shuffled};
pub use loader::{Batch, Batches, Loader, LoaderOptions, Mode, Sampler};
pub use thumbnail::thumbnail;
pub use transform::{Augment, Resizer, Transform};

use crate::files::LockError;
use crate::preprocessing::PreprocessingError;
use crate::text::quantity;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The threads that work on images, one a core, or as many as `RAYON_NUM_THREADS` says.
///
/// # Errors
/// They could not be started. Rayon's own pool would panic then.
pub(crate) fn threads() -> Result<&'static ThreadPool, DataError> {
    static POOL: OnceLock<Result<ThreadPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let builder = ThreadPoolBuilder::new().thread_name(|number| format!("images {number}"));
        builder.build().map_err(|error| error.to_string())
    });
    pool.as_ref().map_err(|reason| DataError::Threads(reason.clone()))
}

/// What can go wrong between a folder and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the name of {} is not UTF-8, and class names must be: rename it", path.display())]
    NotUtf8 { path: PathBuf },

    #[error("{} has no class folders: expected a folder for each class with its images inside, \
             or train/ and val/ that hold such folders", dir.display())]
    NoClasses { dir: PathBuf },
    #[error("{} has one class only, `{class}`: a classifier needs at least two class folders", dir.display())]
    OneClass { dir: PathBuf, class: String },
    #[error("{} has only {found}, which look like splits and not like classes: name the splits `train` and `val`, \
             or give the folder that holds the class folders", dir.display())]
    SplitsNotClasses { dir: PathBuf, found: String },
    #[error("class folder {} holds no {} images{unread}: add some, or remove the folder", dir.display(), decode::FORMATS)]
    EmptyClass { dir: PathBuf, unread: Unread },
    #[error("{} has a class `{class}` that train/ does not have: the classes are those of train/", dir.display())]
    UnknownClass { dir: PathBuf, class: String },
    #[error("no {} images in {}{unread}", decode::FORMATS, dir.display())]
    NoImages { dir: PathBuf, unread: Unread },

    #[error("cannot decode {}: {reason}", path.display())]
    Decode { path: PathBuf, reason: String },
    #[error("{} declares {width}×{height} pixels; the limit is {} a side and {} megapixels in all, which --max-pixels raises",
            path.display(), decode::MAX_SIDE, *max_pixels as f64 / 1e6)]
    TooLarge { path: PathBuf, width: u64, height: u64, max_pixels: u64 },

    #[error("how images are prepared: {0}")]
    Preprocessing(#[from] PreprocessingError),
    #[error("{option} is {value}: expected {expected}")]
    Option { option: &'static str, value: String, expected: &'static str },
    #[error(
        "one batch of {batch} is more than {}, and partial batches are dropped: \
             use a batch of at most {samples}, or add images",
        quantity(*samples, "training image")
    )]
    SmallerThanBatch { samples: usize, batch: usize },
    #[error("of {}, none can be decoded: nothing is left to work on", quantity(*samples, "image"))]
    AllBroken { samples: usize },
    #[error("the loader's thread failed: {0}")]
    Thread(String),
    #[error("the threads that work on images cannot be started: {0}; set RAYON_NUM_THREADS to a smaller number")]
    Threads(String),

    #[error("{} exists and is not an empty folder: name a new one", dir.display())]
    Occupied { dir: PathBuf },
    #[error("{} is in the way, and nothing says that it is left over from here: remove it, or name another folder", partial.display())]
    NotOurs { partial: PathBuf },
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl DataError {
    /// Whether it is one image that is broken, past which [`LoaderOptions::skip_broken`] goes.
    pub const fn is_of_an_image(&self) -> bool {
        matches!(self, Self::Decode { .. } | Self::TooLarge { .. } | Self::Read { .. })
    }

    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.into(), source }
    }

    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path: path.into(), source }
    }
}
