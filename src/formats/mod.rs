//! Files that hold networks: what each format is, how it is told from others, opened, and written.
//!
//! [`FORMATS`] says all of it once, a row a format; whoever asks what a file is, or may be, asks the table. A file becomes
//! a [`ModelFile`]: names and tensors as PyTorch's files have them, floats as `f32` and integers as `i64`, and what the
//! file says of its network.
//!
//! Every file is treated as hostile: nothing in it is executed, and no size that it declares is believed before
//! the file has been seen to hold that much.

mod classes;
mod dtype;
mod file;
pub mod keras;
pub mod onnx;
mod pytorch;
mod safetensors;
#[cfg(test)]
mod tests;
mod tfjs;

pub use classes::class_file;
pub use file::{CLASSES, ModelFile};

use crate::export::ExportError;
use crate::graph::Graph;
use crate::models::GraphFileError;
use crate::tensor::HostTensor;
use crate::text::alternatives;
use crate::weights::{StateDict, WeightsError};
use keras::{Description, KerasError};
use memmap2::Mmap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A format of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Safetensors,
    Pytorch,
    /// `.keras`
    Keras,
    /// HDF5 with weights alone, which Keras tells from one with a whole model by its name.
    KerasWeights,
    /// HDF5 with a whole model.
    KerasHdf5,
    /// `model.json` of a layers model of TensorFlow.js, with files of weights beside it.
    Tfjs,
    Onnx,
}

/// What a format is.
pub struct Facts {
    pub format: Format,
    /// For messages.
    pub name: &'static str,
    /// How names of such files end. What is written has the first.
    pub endings: &'static [&'static str],
    /// Whether a Hugging Face repository's one file that ends so is taken for its weights.
    pub alone: bool,
    /// Whether it keeps layouts as Keras does: kernels as height × width × inputs × outputs, and no count of updates.
    pub as_keras: bool,
    /// Whether a file's bytes are of the format; none where only the name tells.
    is: Option<fn(&[u8]) -> bool>,
    open: fn(&Opening<'_>) -> Result<ModelFile, WeightsError>,
    pub save: Save,
}

/// How files of a format are written.
pub enum Save {
    /// Not at all; what to do instead.
    Never(&'static str),
    /// From tensors alone.
    Tensors(fn(&StateDict, &Path) -> Result<(), WeightsError>),
    /// From a network.
    Network(fn(&Path, &Graph, &[HostTensor], &onnx::About<'_>) -> Result<(), ExportError>),
    /// As a copy of a file of the same format, which has more in it than any writer could know of.
    Copy(Copying),
}

/// Every format; of two whose endings a name has, the first counts.
pub static FORMATS: [Facts; 7] = [
    Facts {
        format: Format::Safetensors,
        name: "safetensors",
        endings: &[".safetensors"],
        alone: true,
        as_keras: false,
        is: Some(safetensors::is_safetensors),
        open: safetensors::open,
        save: Save::Tensors(safetensors::save),
    },
    Facts {
        format: Format::Pytorch,
        name: "PyTorch",
        endings: &[".pth", ".pt"],
        alone: true,
        as_keras: false,
        is: Some(pytorch::is_pytorch),
        open: pytorch::open,
        save: Save::Never(
            "PyTorch's own files are read, not written; write .safetensors, which safetensors.torch.load_file reads",
        ),
    },
    Facts {
        format: Format::Keras,
        name: "Keras",
        endings: &[".keras"],
        alone: true,
        as_keras: true,
        is: Some(keras::is_archive),
        open: keras::open,
        save: Save::Copy(keras::copied),
    },
    Facts {
        format: Format::KerasWeights,
        name: "Keras",
        endings: &[".weights.h5"],
        alone: true,
        as_keras: true,
        is: None,
        open: keras::open,
        save: Save::Copy(keras::copied),
    },
    Facts {
        format: Format::KerasHdf5,
        name: "Keras",
        endings: &[".h5", ".hdf5"],
        alone: true,
        as_keras: true,
        is: Some(keras::is_hdf5),
        open: keras::open,
        save: Save::Copy(keras::copied),
    },
    Facts {
        format: Format::Tfjs,
        name: "TensorFlow.js",
        endings: &[".json"],
        alone: false,
        as_keras: true,
        is: Some(tfjs::is_tfjs),
        open: tfjs::open,
        save: Save::Copy(tfjs::copied),
    },
    Facts {
        format: Format::Onnx,
        name: "ONNX",
        endings: &[".onnx"],
        // It lies beside what it was exported from.
        alone: false,
        as_keras: false,
        is: None,
        open: onnx::open,
        save: Save::Network(onnx::save),
    },
];

/// Prepares a copy of a file with other tensors.
type Copying = fn(&StateDict, &Path) -> Result<Box<dyn Copied>, WeightsError>;

/// A copy of a file with other tensors, ready to be written.
pub trait Copied {
    /// What the copy says of its network, if that is not what the original says.
    fn other(&self) -> Option<&Description>;

    /// What there is to say of it, a sentence each.
    fn notes(&self) -> &[String];

    /// Writes the copy, which may take the place of the original.
    ///
    /// # Errors
    /// It cannot be written; what was there stays.
    fn write(&self, out: &Path) -> Result<(), WeightsError>;
}

/// A file that is opened.
struct Opening<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    /// The set of weights that is wanted, where a file has several.
    set: Option<&'a str>,
    format: Format,
}

/// A file that cannot be understood, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Graph(#[from] GraphFileError),
    #[error("{} cannot be read", path.display())]
    Keras { path: PathBuf, source: KerasError },
    #[error("{} cannot be written with other classes", path.display())]
    OtherClasses { path: PathBuf, source: KerasError },
    #[error(
        "cannot write {}: a {form} file can be written only where --weights is one, whose copy it is; give a name that ends in \
         .safetensors",
        path.display()
    )]
    NoTemplate { path: PathBuf, form: &'static str },
}

impl Format {
    /// The format that a file of that name is in, or would be.
    pub fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let named = |facts: &&Facts| facts.endings.iter().any(|ending| name.ends_with(ending));
        FORMATS.iter().find(named).map(|facts| facts.format)
    }

    /// What the format is.
    pub fn facts(self) -> &'static Facts {
        // Every format has its row, which a test holds.
        FORMATS.iter().find(|facts| facts.format == self).unwrap_or(&FORMATS[0])
    }

    /// How the names of such files end when they are written.
    pub fn ending(self) -> &'static str {
        self.facts().endings[0]
    }

    /// Whether such a file is written as a copy of another.
    pub fn is_copied(self) -> bool {
        matches!(self.facts().save, Save::Copy(_))
    }
}

/// The format that a file is in: by its name where only that tells, else by its content. Or why it is in none that can be
/// read.
///
/// # Errors
/// Its content is of no format that is known; the text says what it seems to be.
pub fn recognise(path: &Path, bytes: &[u8]) -> Result<Format, String> {
    let named = Format::of_name(path);
    if let Some(refused) = refused(bytes) {
        return Err(refused.into());
    }
    let by_content = FORMATS.iter().find(|facts| facts.is.is_some_and(|is| is(bytes))).map(|facts| facts.format);
    match (named, by_content) {
        (Some(Format::KerasWeights), Some(Format::KerasHdf5)) => Ok(Format::KerasWeights),
        (Some(Format::Onnx), _) => Ok(Format::Onnx),
        (_, Some(format)) => Ok(format),
        _ => Err(unknown(bytes)),
    }
}

/// What a file is that looks like one of another format.
fn refused(bytes: &[u8]) -> Option<&'static str> {
    const TAR_MAGIC: usize = 257;
    if bytes.is_empty() {
        Some("it is empty")
    } else if bytes[TAR_MAGIC.min(bytes.len())..].starts_with(b"ustar") {
        Some(
            "it is a tar archive, as PyTorch wrote before 0.1.10; load it with a newer PyTorch and torch.save it again",
        )
    } else {
        None
    }
}

/// What a file seems to be that is of no format.
fn unknown(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(64)];
    if start.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into()
    } else if start.trim_ascii_start().starts_with(b"<") {
        "it is an HTML or XML page, perhaps an error message saved by a download; download it again".into()
    } else if start.trim_ascii_start().starts_with(b"{") {
        "it is JSON, but no model.json of TensorFlow.js; a graph file, which holds no weights, is named with --model"
            .into()
    } else if start.starts_with(b"\x80") {
        "it is a plain pickle without tensors; write it with torch.save(model.state_dict(), …)".into()
    } else {
        format!("its content is none of {}", names())
    }
}

/// The names of all formats, as `a, b or c`.
fn names() -> String {
    let mut names: Vec<&str> = Vec::new();
    for facts in &FORMATS {
        if !names.contains(&facts.name) {
            names.push(facts.name);
        }
    }
    alternatives(names)
}

/// Opens a file of any format; of several sets of weights the one called `set`: an entry of a checkpoint, such as
/// `state_dict`, or what the names of tensors begin with, such as `encoder_k`.
///
/// A PyTorch file may hold a state dict, a checkpoint with one or several, or a whole pickled module. Of several sets
/// of weights, an average over the steps of training (EMA) is taken before the last values, as timm takes it, and a
/// [note](StateDict::notes) says so. The prefix that `DataParallel` or `torch.compile` put before every name is removed.
///
/// # Errors
/// When the file cannot be read, is of another format, is damaged, holds no tensor, holds a tensor whose values are of a
/// kind that neither `f32` nor `i64` can stand for, or has no such set. Each error names the file.
pub fn open(path: &Path, set: Option<&str>) -> Result<ModelFile, WeightsError> {
    let bytes = map_file(path)?;
    let format = recognise(path, &bytes).map_err(|reason| WeightsError::UnknownFormat { path: path.into(), reason })?;
    (format.facts().open)(&Opening { path, bytes: &bytes, set, format })
}

impl StateDict {
    /// The tensors of a file of any format; see [`open`].
    ///
    /// # Errors
    /// Those of [`open`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        Ok(open(path.as_ref(), None)?.tensors)
    }

    /// Reads the bytes of a safetensors file, for where there are no files; `name` is what errors call them.
    ///
    /// # Errors
    /// When they are of another format, are damaged, or hold no tensor.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, WeightsError> {
        let path = Path::new(name);
        if !matches!(recognise(path, bytes), Ok(Format::Safetensors)) {
            let reason = "it is not safetensors, the only format that is read without a file".into();
            return Err(WeightsError::UnknownFormat { path: path.into(), reason });
        }
        safetensors::load(path, bytes)?.without_wrappers(path)
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
}

/// Refuses to save weights as a copy of a file that they do not come from or do not fit, before there is anything to save;
/// `state` has the network's names and shapes.
///
/// # Errors
/// Those of [`save`], of a file that is such a copy.
pub fn check(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<(), FormatError> {
    copy(state, source, out).map(drop)
}

/// Writes weights that come from the file `source`: into a copy of that file where files of the name `out` are written so,
/// else as safetensors. Returns what the user should know of the file, a sentence each.
///
/// # Errors
/// It cannot be written; what was there stays.
pub fn save(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<Vec<String>, FormatError> {
    match copy(state, source, out)? {
        Some(copied) => {
            copied.write(out)?;
            Ok(copied.notes().to_vec())
        }
        None => {
            state.save(out)?;
            Ok(Vec::new())
        }
    }
}

/// The copy of the file `source` that is to be called `out`, which has these weights and can be read again; none if files
/// of that name are no copies.
fn copy(state: &StateDict, source: Option<&Path>, out: &Path) -> Result<Option<Box<dyn Copied>>, FormatError> {
    let Some((format, Save::Copy(of))) = Format::of_name(out).map(|format| (format, &format.facts().save)) else {
        return Ok(None);
    };
    let Some(source) = source.filter(|source| Format::of_name(source) == Some(format)) else {
        return Err(FormatError::NoTemplate { path: out.into(), form: format.ending() });
    };
    let copied = of(state, source)?;
    if let Some(other) = copied.other() {
        other.import().map_err(|error| FormatError::OtherClasses { path: source.into(), source: error })?;
    }
    Ok(Some(copied))
}

#[expect(unsafe_code, reason = "a mapped file may change under us, which no API can rule out")]
fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
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

/// Whether an archive's entry of that name would be unpacked to a place outside of the archive's own folder.
fn leads_out(name: &str) -> bool {
    let drive = matches!(name.as_bytes(), [_, b':', b'/' | b'\\', ..]);
    drive || name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..")
}
