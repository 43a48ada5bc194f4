//! Safetensors: eight bytes with the length of a JSON header, the header, then the tensors' bytes without a gap.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use ::safetensors::SafeTensors;
use serde::Deserializer;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::dtype::{Conversions, Dtype, decode};
use super::{ModelFile, Opening};
use crate::text::printable;
use crate::weights::{FileTensor, StateDict, TensorData, WeightsError, write_atomically};

/// The longest header accepted, enough for tens of thousands of tensors. Parsing takes a multiple of this in memory.
const MAX_HEADER: usize = 8 << 20;

/// The header's entry that is not a tensor.
const METADATA: &str = "__metadata__";

/// Whether a file begins as one of safetensors does: a length, and a JSON object.
pub(super) fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

pub(super) fn open(opening: &Opening<'_>) -> Result<ModelFile, WeightsError> {
    ModelFile::read(opening, load(opening.path, opening.bytes)?, None)
}

pub(super) fn load(path: &Path, bytes: &[u8]) -> Result<StateDict, WeightsError> {
    let malformed = |reason: String| WeightsError::Malformed { path: path.into(), format: "safetensors", reason };

    let header = header(bytes).map_err(malformed)?;
    refuse_duplicates(header).map_err(malformed)?;
    // Checks offsets, shapes and sizes against each other and the file: no overlap, no gap, no overflow.
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| malformed(printable(&error.to_string())))?;
    let data = &bytes[8 + header.len()..];

    let mut tensors = BTreeMap::new();
    let mut conversions = Conversions::default();
    for (name, info) in metadata.tensors() {
        let broken = |reason| WeightsError::Tensor { path: path.into(), tensor: printable(&name), reason };
        let dtype =
            dtype(info.dtype).ok_or_else(|| broken(format!("the number type {} is not supported", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let values = decode(dtype, &data[start..end]).map_err(broken)?;
        conversions.count(dtype);
        tensors.insert(name, FileTensor { shape: info.shape.clone(), data: values });
    }
    conversions.report(path);
    let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(StateDict { tensors, metadata, ..StateDict::default() })
}

/// The JSON text between the length and the tensors.
fn header(bytes: &[u8]) -> Result<&[u8], String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it ends before the length of its header".to_string())?;
    let length = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .filter(|&length| length <= MAX_HEADER)
        .ok_or_else(|| format!("its header claims to be longer than {} MiB", MAX_HEADER >> 20))?;
    rest.get(..length)
        .ok_or_else(|| format!("its header claims {length} bytes, but only {} follow; the file is cut off", rest.len()))
}

/// A JSON parser keeps the last of two entries with one name, and a file that has two cannot be trusted.
fn refuse_duplicates(header: &[u8]) -> Result<(), String> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(name) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if seen.contains(&name) {
                    return Err(A::Error::custom(format!("`{name}` is there twice")));
                }
                seen.insert(name);
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_slice(header)
        .deserialize_map(Names)
        .map_err(|error| format!("its header: {}", printable(&error.to_string())))
}

fn dtype(dtype: ::safetensors::Dtype) -> Option<Dtype> {
    use ::safetensors::Dtype as File;
    Some(match dtype {
        File::F16 => Dtype::F16,
        File::BF16 => Dtype::BF16,
        File::F32 => Dtype::F32,
        File::F64 => Dtype::F64,
        File::I8 => Dtype::I8,
        File::I16 => Dtype::I16,
        File::I32 => Dtype::I32,
        File::I64 => Dtype::I64,
        File::U8 => Dtype::U8,
        File::U16 => Dtype::U16,
        File::U32 => Dtype::U32,
        File::U64 => Dtype::U64,
        // Booleans, complex numbers, and the 4, 6 and 8 bit floats; the format's list is open.
        _ => return None,
    })
}

pub(super) fn save(state: &StateDict, path: &Path) -> Result<(), WeightsError> {
    let broken =
        |tensor: &str, reason: String| WeightsError::Tensor { path: path.into(), tensor: printable(tensor), reason };
    for (name, tensor) in &state.tensors {
        if name == METADATA {
            return Err(broken(name, "safetensors reserves this name".to_string()));
        }
        let count = tensor.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        if count != Some(tensor.data.len()) {
            let (shape, values) = (&tensor.shape, tensor.data.len());
            return Err(broken(name, format!("{values} values cannot have the shape {shape:?}")));
        }
    }
    write_atomically(path, |file| write(state, file))
        .map_err(|source| WeightsError::Write { path: path.into(), source })
}

fn write(state: &StateDict, file: &mut dyn Write) -> io::Result<()> {
    // The widest values first, so that every tensor is aligned in the file.
    let wide = state.tensors.iter().filter(|(_, tensor)| matches!(tensor.data, TensorData::I64(_)));
    let narrow = state.tensors.iter().filter(|(_, tensor)| matches!(tensor.data, TensorData::F32(_)));
    let ordered: Vec<_> = wide.chain(narrow).collect();

    let mut metadata = state.metadata.clone();
    metadata.insert("format".to_string(), "pt".to_string());
    let mut header = Map::new();
    header.insert(METADATA.to_string(), json!(metadata));
    let mut offset = 0;
    for (name, tensor) in &ordered {
        let dtype = match tensor.data {
            TensorData::F32(_) => "F32",
            TensorData::I64(_) => "I64",
        };
        let end = offset + tensor.data.bytes().len();
        header.insert((*name).clone(), json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, tensor) in &ordered {
        file.write_all(tensor.data.bytes())?;
    }
    Ok(())
}
