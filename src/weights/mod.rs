//! Weights files: names, layouts and conventions of the formats that trained networks come in.
//!
//! A file becomes a [`StateDict`]: names and tensors as PyTorch's files have them, floats as `f32` and integers as `i64`;
//! what is in a [Keras](keras) file takes that form when it is read. [`bind()`] matches it with what a network expects, and [`layout`] turns each tensor into the device's
//! layout and back. [`StateDict::save`] writes safetensors that `safetensors.torch.load_file` and then
//! `load_state_dict(strict=True)` accept.
//!
//! Every file is treated as hostile: nothing in it is executed, and no size that it declares is believed before
//! the file has been seen to hold that much.

mod bind;
mod config;
mod convert;
mod error;
pub mod keras;
pub mod layout;
mod params;
mod pytorch;
mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::text::{printable, quantity};

pub use crate::files::write_atomically;
pub use bind::{Bound, Expected, ExpectedKind, Head, NewHead, bind};
pub use config::{Config, Pretrained};
pub(crate) use convert::{Dtype, decode};
pub use error::{Mismatch, WeightsError};
pub use params::{Loaded, expected, from_state, from_state_with, initialise, to_file, to_state};

/// The values of a tensor, in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub enum TensorData {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

impl TensorData {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::I64(values) => bytemuck::cast_slice(values),
        }
    }
}

/// A tensor as a file holds it.
#[derive(Clone, PartialEq, Debug)]
pub struct FileTensor {
    /// The file's own dimensions, outermost first (a convolution is OIHW); empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as `shape` says.
    pub data: TensorData,
}

impl FileTensor {
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { shape: shape.into(), data: TensorData::F32(values) }
    }

    pub fn i64(shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self { shape: shape.into(), data: TensorData::I64(values) }
    }
}

/// The contents of a weights file, ordered by name.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct StateDict {
    pub tensors: BTreeMap<String, FileTensor>,
    /// The text entries of a safetensors header; empty for a PyTorch file.
    pub metadata: BTreeMap<String, String>,
    /// The file that this was read from, for error messages.
    pub origin: Option<PathBuf>,
    /// What a Keras file says beside its tensors; none for other files.
    pub keras: Option<Box<keras::Description>>,
    /// What the user should know of how the file was read: which of several sets of weights was taken, what was left out.
    pub notes: Vec<String>,
    /// The checkpoint's entry that the tensors are of, if the file is a checkpoint.
    pub set: Option<String>,
    /// The entries of the checkpoint that hold weights.
    pub sets: Vec<String>,
}

impl StateDict {
    /// Reads a safetensors, PyTorch or Keras file, recognised by its content.
    ///
    /// A PyTorch file may hold a state dict, a checkpoint with one or several, or a whole pickled module. Of several sets
    /// of weights, an average over the steps of training (EMA) is taken before the last values, as timm takes it, and a
    /// [note](Self::notes) says so. The prefix that `DataParallel` or `torch.compile` put before every name is removed.
    ///
    /// # Errors
    /// When the file cannot be read, is of another format, is damaged, holds no tensor, or holds a tensor whose
    /// values are of a kind that neither `f32` nor `i64` can stand for. Each error names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Self::load_set(path, None)
    }

    /// As [`load`](Self::load), of the set of weights called `set`: an entry of a checkpoint, such as `state_dict`, or what
    /// the names of tensors begin with, such as `encoder_k`.
    ///
    /// # Errors
    /// Those of [`load`](Self::load); [`WeightsError::NoSet`].
    pub fn load_set(path: impl AsRef<Path>, set: Option<&str>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let bytes = map_file(path)?;
        let state = match recognise(&bytes) {
            Ok(Format::Safetensors) => safetensors::load(path, &bytes)?,
            Ok(Format::PytorchZip) => pytorch::load_zip(path, &bytes, set)?,
            Ok(Format::Keras) => keras::load(path, &bytes)?,
            Ok(Format::PytorchLegacy) => pytorch::load_legacy(path, &bytes, set)?,
            Err(reason) => {
                return Err(WeightsError::UnknownFormat { path: path.into(), reason });
            }
        };
        let mut state = state.finished(path)?;
        state.origin = Some(path.into());
        if let Some(set) = set.filter(|set| !state.is_set(set)) {
            state.choose(set)?;
        }
        Ok(state)
    }

    /// Reads the bytes of a safetensors file, for where there are no files; `name` is what errors call them.
    ///
    /// # Errors
    /// When they are of another format, are damaged, or hold no tensor.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, WeightsError> {
        let path = Path::new(name);
        if !matches!(recognise(bytes), Ok(Format::Safetensors)) {
            let reason = "it is not safetensors, the only format that is read without a file".into();
            return Err(WeightsError::UnknownFormat { path: path.into(), reason });
        }
        let state = safetensors::load(path, bytes)?;
        state.finished(path)
    }

    /// What was read, with the names that its model has without wrappers.
    fn finished(mut self, path: &Path) -> Result<Self, WeightsError> {
        if self.tensors.is_empty() {
            return Err(WeightsError::Empty { path: path.into() });
        }
        self.strip_wrappers();
        Ok(self)
    }

    /// Whether the tensors are those of the checkpoint's entry `set`.
    fn is_set(&self, set: &str) -> bool {
        self.set.as_deref() == Some(set)
    }

    /// Keeps the tensors whose names begin with `set` and a dot, without both.
    ///
    /// # Errors
    /// There is none.
    pub fn choose(&mut self, set: &str) -> Result<(), WeightsError> {
        let prefix = format!("{}.", set.trim_end_matches('.'));
        if !self.tensors.keys().any(|name| name.starts_with(&prefix)) {
            /// More are the parts of a network.
            const SETS: usize = 4;
            let first: BTreeSet<&str> = self.tensors.keys().filter_map(|name| Some(name.split_once('.')?.0)).collect();
            let found = match self.sets.is_empty() {
                true if first.len() > SETS => Vec::new(),
                true => first.into_iter().map(printable).collect(),
                false => self.sets.iter().map(|set| printable(set)).collect(),
            };
            let path = self.origin.clone().unwrap_or_default();
            return Err(WeightsError::NoSet { path, set: printable(set), found });
        }
        self.keep_prefix(&prefix);
        self.strip_wrappers();
        Ok(())
    }

    /// Keeps the tensors whose names begin with `prefix`, without it, and returns the names of the others.
    pub fn keep_prefix(&mut self, prefix: &str) -> Vec<String> {
        let (kept, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.tensors).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.tensors = kept.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect();
        others.into_keys().collect()
    }

    /// Takes off what `DataParallel` and `torch.compile` put before every name.
    fn strip_wrappers(&mut self) {
        for wrapper in ["module.", "_orig_mod."] {
            self.strip_prefix(wrapper);
        }
    }

    /// Writes safetensors, atomically: at any moment `path` is either what it was before or the whole new file.
    ///
    /// `metadata` is written too, with `format` set to `pt`. The same contents give the same bytes.
    ///
    /// # Errors
    /// When a tensor's shape and values disagree, or the file cannot be written; what was there stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        safetensors::save(self, path.as_ref())
    }

    /// Takes `prefix` off every name, if every name has it; a note says so.
    fn strip_prefix(&mut self, prefix: &str) {
        if self.tensors.keys().all(|name| name.len() > prefix.len() && name.starts_with(prefix)) {
            self.tensors = std::mem::take(&mut self.tensors)
                .into_iter()
                .map(|(name, tensor)| (name[prefix.len()..].to_string(), tensor))
                .collect();
            let tensors = quantity(self.tensors.len(), "tensor");
            self.notes.push(format!("`{prefix}` is left off the names of {tensors}"));
        }
    }
}

#[expect(unsafe_code, reason = "a mapped file may change under us, which no API can rule out")]
pub(crate) fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
    let unreadable = |source| WeightsError::Read { path: path.into(), source };
    // Looked at before opening: opening a named pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(WeightsError::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the map is read-only and lives only while the file is loaded. As with every mapped file, nobody may
    // shorten it meanwhile; a file that this crate replaces is renamed over, which leaves the mapped one whole.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}

enum Format {
    Safetensors,
    PytorchZip,
    PytorchLegacy,
    Keras,
}

/// The format that `bytes` are in, or why they are not in one that can be read.
fn recognise(bytes: &[u8]) -> Result<Format, String> {
    const TAR_MAGIC: usize = 257;
    let refused = |reason: &str| Err(reason.to_string());
    let start = &bytes[..bytes.len().min(64)];
    if bytes.is_empty() {
        refused("it is empty")
    } else if keras::is_keras(bytes) {
        Ok(Format::Keras)
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        Ok(Format::PytorchZip)
    } else if bytes[TAR_MAGIC.min(bytes.len())..].starts_with(b"ustar") {
        refused(
            "it is a tar archive, as PyTorch wrote before 0.1.10; load it with a newer PyTorch and torch.save it again",
        )
    } else if pytorch::is_legacy(start) {
        Ok(Format::PytorchLegacy)
    } else if start.get(8) == Some(&b'{') {
        Ok(Format::Safetensors)
    } else if start.starts_with(b"version https://git-lfs") {
        refused("it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    } else if start.trim_ascii_start().starts_with(b"<") {
        refused("it is an HTML or XML page, perhaps an error message saved by a download; download it again")
    } else if start.starts_with(b"\x80") {
        refused("it is a plain pickle without tensors; write it with torch.save(model.state_dict(), …)")
    } else {
        refused("its content is none of safetensors, PyTorch, Keras or ONNX")
    }
}

/// Whether an archive's entry of that name would be unpacked to a place outside of the archive's own folder.
fn leads_out(name: &str) -> bool {
    let drive = matches!(name.as_bytes(), [_, b':', b'/' | b'\\', ..]);
    drive || name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..")
}
