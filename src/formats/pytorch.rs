//! PyTorch's `.pt` and `.pth`: a pickle that describes the tensors, and beside it the bytes of their storages.
//!
//! `pytorch-reader` interprets the pickle and runs nothing in it. What this module adds is a look at the file
//! before that reader sees it, so that the memory which reading takes is bounded by the size of the file, and the
//! choice of the dictionary to load.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;

use pytorch_reader::{DType, PickleValue, PytorchReader, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::dtype::{Conversions, Dtype, decode};
use super::{ModelFile, Opening, keras, leads_out};
use crate::text::printable;
use crate::weights::{FileTensor, StateDict, WeightsError};

/// Where a checkpoint keeps its weights, in order of preference. An average over the steps of training comes before the last
/// values, as in timm's `load_state_dict(use_ema=True)`, in torchvision's reference scripts, where `model_ema` is what is
/// evaluated, in BasicSR (`params_ema`), YOLO (`ema`) and DINO (`teacher`).
const CHECKPOINT_KEYS: [&str; 17] = [
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "model_state_dict_ema",
    "ema_model",
    "params_ema",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "student",
];

/// How many of [`CHECKPOINT_KEYS`] are averages.
const AVERAGES: usize = 9;

/// The most opcodes accepted in a file's pickles. A tensor takes about forty, and every opcode may cost the reader
/// some hundred bytes of memory.
const MAX_PICKLE_OPS: usize = 1 << 20;

/// A tensor may be a view that repeats its storage, so a file's size alone does not bound what it unfolds to.
const MAX_GROWTH: usize = 8;
const MAX_GROWTH_FROM: usize = 64 << 20;

/// Modules with nothing in them that a weights file could need, and much that a hostile one could want.
const CODE_MODULES: [&str; 14] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "pty",
    "sys",
    "shutil",
    "socket",
    "runpy",
    "importlib",
    "ctypes",
    "pickle",
    "webbrowser",
    "multiprocessing",
];
const CODE_BUILTINS: [&str; 5] = ["eval", "exec", "compile", "open", "__import__"];

/// Whether a file is a sequence of pickles, as PyTorch wrote before 1.6.
fn is_legacy(bytes: &[u8]) -> bool {
    // The magic number 0x1950a86a20f9469cfc6c, as a little-endian pickled integer.
    const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let start = &bytes[..bytes.len().min(64)];
    start.windows(MAGIC.len()).any(|window| window == MAGIC)
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Whether a file is a sequence of pickles, or a zip that Keras did not write.
pub(super) fn is_pytorch(bytes: &[u8]) -> bool {
    is_legacy(bytes) || is_zip(bytes) && !keras::is_archive(bytes)
}

pub(super) fn open(opening: &Opening<'_>) -> Result<ModelFile, WeightsError> {
    let Opening { path, bytes, set, .. } = *opening;
    let load = if is_zip(bytes) { load_zip } else { load_legacy };
    ModelFile::read(opening, load(path, bytes, set)?, None)
}

fn load_zip(path: &Path, bytes: &[u8], set: Option<&str>) -> Result<StateDict, WeightsError> {
    let pickle = zip_pickle(path, bytes)?;
    let mut operations = MAX_PICKLE_OPS;
    skim(pickle, &mut operations).map_err(|reason| malformed(path, reason))?;
    load(path, bytes.len(), pickle, set)
}

fn load_legacy(path: &Path, bytes: &[u8], set: Option<&str>) -> Result<StateDict, WeightsError> {
    // Magic number, protocol, machine, the object itself, and the list of its storages.
    const PICKLES: usize = 5;
    const OBJECT: usize = 3;
    let mut operations = MAX_PICKLE_OPS;
    let mut rest = bytes;
    let mut object = rest;
    for index in 0..PICKLES {
        let length = skim(rest, &mut operations).map_err(|reason| malformed(path, reason))?;
        if index == OBJECT {
            object = &rest[..length];
        }
        rest = &rest[length..];
    }
    load(path, bytes.len(), object, set)
}

fn malformed(path: &Path, reason: String) -> WeightsError {
    WeightsError::Malformed { path: path.into(), format: "PyTorch", reason: printable(&reason) }
}

/// Checks the archive, and returns the pickle that describes its tensors.
fn zip_pickle<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], WeightsError> {
    let malformed = |reason: String| malformed(path, reason);
    let refused = |reason: &str| WeightsError::Refused { path: path.into(), reason: reason.to_string() };

    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| WeightsError::Malformed {
        path: path.into(),
        format: "PyTorch or Keras",
        reason: printable(&error.to_string()),
    })?;
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.map(|name| name.into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    // Nothing is unpacked here, but whoever unpacks such an archive is harmed.
    if let Some(name) = names.iter().find(|name| leads_out(name)) {
        return Err(refused(&format!("its entry `{}` has a path that leads out of it", printable(name))));
    }
    let is_pickle = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
    if names.iter().any(|name| name.ends_with("/constants.pkl")) {
        return Err(refused("it is a TorchScript program; in Python, torch.save(torch.jit.load(…).state_dict(), …)"));
    }
    if !names.iter().any(|name| is_pickle(name)) {
        return Err(refused(
            "it is a zip archive, but not one that torch.save or Keras wrote: it has neither data.pkl nor config.json",
        ));
    }

    let mut pickle: &[u8] = &[];
    let mut pickles = 0;
    for (index, name) in names.iter().enumerate() {
        let entry = archive.by_index_raw(index).map_err(|error| malformed(error.to_string()))?;
        // PyTorch compresses nothing, and a compressed entry may unfold to any size.
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(malformed(format!("entry {name} is compressed, which PyTorch never does")));
        }
        if is_pickle(name) {
            let range = entry.data_start().and_then(|start| {
                let start = usize::try_from(start).ok()?;
                Some(start..start.checked_add(usize::try_from(entry.size()).ok()?)?)
            });
            pickle = range
                .and_then(|range| bytes.get(range))
                .ok_or_else(|| malformed(format!("entry {name} reaches past the end of the file")))?;
            pickles += 1;
        }
    }
    if pickles > 1 {
        return Err(malformed("it has several data.pkl entries".to_string()));
    }
    Ok(pickle)
}

/// Loads a file that was looked at before; `pickle` is the part that describes its tensors, `set` the entry that is wanted.
fn load(path: &Path, file_len: usize, pickle: &[u8], set: Option<&str>) -> Result<StateDict, WeightsError> {
    refuse_quantised(path, pickle)?;
    let unreadable = |error: pytorch_reader::PytorchError| malformed(path, error.to_string());
    let contents = PytorchReader::read_pickle_data(path, None).map_err(unreadable)?;
    refuse_code(path, &contents)?;
    let PickleValue::Dict(contents) = contents else {
        return Err(WeightsError::Empty { path: path.into() });
    };
    let sets = sets(&contents, pickle);
    let chosen = match set {
        Some(set) => sets.iter().find(|key| *key == set),
        // Entries of other names are told by whose tensors fit a network.
        None => sets.first().filter(|first| CHECKPOINT_KEYS.contains(&first.as_str())),
    };
    let reader = match chosen {
        Some(key) => {
            log::info!("{}: the weights are those under `{}`", path.display(), printable(key));
            PytorchReader::with_top_level_key(path, key)
        }
        None => PytorchReader::new(path),
    };
    let mut state = read_tensors(path, file_len, reader.map_err(unreadable)?.into_tensors())?;
    if let (Some(chosen), [_, _, ..], None) = (chosen, &sets[..], set) {
        let others: Vec<String> =
            sets.iter().filter(|key| *key != chosen).map(|key| format!("`{}`", printable(key))).collect();
        let why = match CHECKPOINT_KEYS[..AVERAGES].contains(&chosen.as_str()) {
            true => ", the average over the steps of training,",
            false => "",
        };
        state.notes.push(format!(
            "of its sets of weights `{}`{why} is taken; --weights-set chooses another: {}",
            printable(chosen),
            others.join(", ")
        ));
    }
    state.set = chosen.cloned();
    state.sets = sets;
    Ok(state)
}

/// The entries of a checkpoint that hold weights, those first that are preferred; none when the file holds a state dict or a
/// module itself.
fn sets(contents: &HashMap<String, PickleValue>, pickle: &[u8]) -> Vec<String> {
    fn is_tensor(value: &PickleValue) -> bool {
        matches!(value, PickleValue::Unsupported(kind) if kind == "torch.Tensor")
    }
    fn holds_tensor(value: &PickleValue) -> bool {
        match value {
            PickleValue::Dict(entries) => entries.values().any(holds_tensor),
            value => is_tensor(value),
        }
    }
    // A pickled module opens with its class, and may well have a part that is called `model`.
    let after_protocol = pickle.get(2..).unwrap_or_default();
    let is_module = after_protocol.starts_with(b"c") && !after_protocol.starts_with(b"ccollections\n");
    if is_module || contents.values().any(is_tensor) {
        return Vec::new();
    }
    let place = |key: &str| CHECKPOINT_KEYS.iter().position(|known| *known == key);
    // Of other names only what holds tensors itself: the state of an optimiser holds them deeper.
    let holds = |key: &str, value: &PickleValue| match value {
        PickleValue::Dict(entries) => match place(key) {
            Some(_) => holds_tensor(value),
            None => !key.contains("optim") && entries.values().any(is_tensor),
        },
        _ => false,
    };
    let mut sets: Vec<String> =
        contents.iter().filter(|(key, value)| holds(key, value)).map(|(key, _)| key.clone()).collect();
    sets.sort_by_key(|key| (place(key).unwrap_or(usize::MAX), key.clone()));
    sets
}

/// Refuses tensors of 8-bit integers with a scale: the reader does not know them, and would call the file damaged.
fn refuse_quantised(path: &Path, pickle: &[u8]) -> Result<(), WeightsError> {
    // The names of functions and classes stand in a pickle as they are.
    const MARKS: [(&[u8], &str); 6] = [
        (b"_rebuild_qtensor", "torch.quantize_per_tensor or quantize_per_channel"),
        (b"QInt8Storage", "qint8"),
        (b"QUInt8Storage", "quint8"),
        (b"torch.ao.nn.quantized", "torch.ao.quantization"),
        (b"torch.nn.quantized", "torch.quantization"),
        (b"torchao.", "torchao"),
    ];
    let holds = |mark: &[u8]| pickle.windows(mark.len()).any(|window| window == mark);
    match MARKS.into_iter().find(|(mark, _)| holds(mark)) {
        Some((_, how)) => Err(WeightsError::Quantised { path: path.into(), how: how.into() }),
        None => Ok(()),
    }
}

/// The reader keeps a call that it does not know as the name of what would have been called, and calls nothing.
/// A file that wants to run a program is refused all the same, with a warning for whoever opens it in Python.
fn refuse_code(path: &Path, contents: &PickleValue) -> Result<(), WeightsError> {
    fn find(value: &PickleValue) -> ControlFlow<String> {
        match value {
            PickleValue::List(items) => items.iter().try_for_each(find),
            PickleValue::Dict(entries) => entries.values().try_for_each(find),
            PickleValue::Unsupported(name) => {
                let (module, function) = name.rsplit_once('.').unwrap_or(("", name));
                let package = module.split('.').next().unwrap_or_default();
                let builtin = matches!(package, "builtins" | "__builtin__") && CODE_BUILTINS.contains(&function);
                if builtin || CODE_MODULES.contains(&package) {
                    ControlFlow::Break(name.clone())
                } else {
                    ControlFlow::Continue(())
                }
            }
            PickleValue::None | PickleValue::Bool(_) | PickleValue::Int(_) => ControlFlow::Continue(()),
            PickleValue::Float(_) | PickleValue::String(_) | PickleValue::Bytes(_) => ControlFlow::Continue(()),
        }
    }
    match find(contents) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(name) => Err(WeightsError::Refused {
            path: path.into(),
            reason: format!(
                "it asks Python to call `{}`, which no weights file needs; nothing was run, and it should not be \
                 opened in Python either",
                printable(&name)
            ),
        }),
    }
}

fn read_tensors(path: &Path, file_len: usize, tensors: HashMap<String, Tensor>) -> Result<StateDict, WeightsError> {
    // Sorted, so that of several problems the same one is always reported.
    let tensors: BTreeMap<_, _> = tensors.into_iter().collect();
    let limit = file_len.saturating_mul(MAX_GROWTH).saturating_add(MAX_GROWTH_FROM);
    let mut total = 0usize;
    let mut state = StateDict::default();
    let mut conversions = Conversions::default();
    for (name, tensor) in tensors {
        let broken = |reason| WeightsError::Tensor { path: path.into(), tensor: printable(&name), reason };
        let dtype = dtype(tensor.dtype())
            .ok_or_else(|| broken(format!("the number type {:?} is not supported", tensor.dtype())))?;
        total = total.saturating_add(tensor.num_elements().saturating_mul(dtype.decoded_size()));
        if total > limit {
            return Err(broken(format!(
                "it brings the values to {total} bytes, which a file of {file_len} bytes cannot honestly hold; \
                 save tensors that were expanded with .contiguous()"
            )));
        }
        let bytes = tensor.read().map_err(|error| broken(printable(&error.to_string())))?;
        let data = decode(dtype, &bytes).map_err(broken)?;
        conversions.count(dtype);
        let shape = tensor.shape().to_vec();
        state.tensors.insert(name, FileTensor { shape, data });
    }
    conversions.report(path);
    Ok(state)
}

fn dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::U16 => Dtype::U16,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::Bool => return None,
    })
}

/// Walks over one pickle without building anything, and returns its length in bytes.
///
/// # Errors
/// When it does not end, has an unknown opcode, or more opcodes than `operations`, which they are taken from.
fn skim(pickle: &[u8], operations: &mut usize) -> Result<usize, String> {
    const CUT: &str = "its pickle is cut off";
    let mut at = 0usize;
    loop {
        let opcode = *pickle.get(at).ok_or(CUT)?;
        *operations = operations
            .checked_sub(1)
            .ok_or("its pickle is far larger than any network's; save only model.state_dict()")?;
        let rest = &pickle[at + 1..];
        let line = |from: usize| {
            let length = rest.get(from..)?.iter().position(|&byte| byte == b'\n')?;
            Some(from + length + 1)
        };
        let counted = |size: usize| {
            let mut length = [0; 8];
            length[..size].copy_from_slice(rest.get(..size)?);
            usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(size)
        };
        // The length of what follows each opcode; see Python's pickletools.
        let argument = match opcode {
            b'(' | b'.' | b'0' | b'1' | b'2' | b'N' | b'R' | b'Q' | b'b' | b'd' | b'}' | b'l' | b']' | b')' | b't'
            | b's' | b'a' | b'u' | b'e' => Some(0),
            0x81 | 0x85..=0x89 | 0x8f..=0x94 => Some(0),
            b'I' | b'L' | b'F' | b'V' | b'S' | b'p' | b'g' | b'P' => line(0),
            b'c' | b'i' => line(0).and_then(line),
            b'K' | b'h' | b'q' | 0x80 => Some(1),
            b'M' => Some(2),
            b'J' | b'j' | b'r' => Some(4),
            b'G' | 0x95 => Some(8),
            b'U' | b'C' | 0x8a | 0x8c => counted(1),
            b'T' | b'X' | b'B' | 0x8b => counted(4),
            0x8d | 0x8e | 0x96 => counted(8),
            other => return Err(format!("its pickle has the unknown opcode {other:#04x}")),
        };
        let argument = argument.filter(|&length| length <= rest.len()).ok_or(CUT)?;
        at += 1 + argument;
        if opcode == b'.' {
            return Ok(at);
        }
    }
}
