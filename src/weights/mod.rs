//! Weights, as files have them and as networks do.
//!
//! A file of any [format](crate::formats) becomes a [`StateDict`]: names and tensors as PyTorch's files have them, floats as `f32`
//! and integers as `i64`. [`bind()`] matches it with what a network expects, and [`layout`] turns each tensor into the device's
//! layout and back. [`StateDict::save`] writes safetensors that `safetensors.torch.load_file` and then
//! `load_state_dict(strict=True)` accept.

mod bind;
mod config;
mod error;
pub mod layout;
mod params;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::text::{printable, quantity};

pub use crate::files::write_atomically;
pub use bind::{Bound, Expected, ExpectedKind, Head, NewHead, bind};
pub use config::{Config, Pretrained};
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

    pub(crate) fn bytes(&self) -> &[u8] {
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
    /// What the user should know of how the file was read: which of several sets of weights was taken, what was left out.
    pub notes: Vec<String>,
    /// The checkpoint's entry that the tensors are of, if the file is a checkpoint.
    pub set: Option<String>,
    /// The entries of the checkpoint that hold weights.
    pub sets: Vec<String>,
}

impl StateDict {
    /// What was read from `path`, with the names that its model has without wrappers.
    pub(crate) fn without_wrappers(mut self, path: &Path) -> Result<Self, WeightsError> {
        if self.tensors.is_empty() {
            return Err(WeightsError::Empty { path: path.into() });
        }
        self.strip_wrappers();
        Ok(self)
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
