//! Tensors of an ONNX file as values.

use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use crate::formats::dtype::{Dtype, decode};
use crate::formats::map_file;
use crate::text::printable;
use crate::weights::TensorData;
use std::path::{Component, Path, PathBuf};

/// A tensor's dimensions.
///
/// # Errors
/// One is below zero, or they are more than can be.
pub(super) fn dims(tensor: &TensorProto) -> Result<Vec<usize>, String> {
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&size| usize::try_from(size).ok()).collect();
    let values = |dims: &[usize]| dims.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
    dims.filter(|dims| values(dims).is_some())
        .ok_or_else(|| format!("tensor `{}` cannot have the shape {:?}", printable(tensor.name()), tensor.dims))
}

/// What the file itself holds of a tensor, in bytes of four-byte floats.
pub(super) fn bytes(tensor: &TensorProto) -> usize {
    let values = tensor.float_data.len() + tensor.int32_data.len() + tensor.double_data.len();
    2 * tensor.raw_data().len() + 4 * values
}

/// The other file that a tensor is in, if it may be read: one in `folder`.
///
/// # Errors
/// It is elsewhere.
pub(super) fn file(tensor: &TensorProto, folder: Option<&Path>) -> Result<Option<PathBuf>, String> {
    if tensor.data_location() != DataLocation::External {
        return Ok(None);
    }
    let location = external(tensor, "location").unwrap_or_default();
    let inside = Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    match folder.filter(|_| inside && !location.is_empty() && !location.contains('\\')) {
        Some(folder) => Ok(Some(folder.join(location))),
        None => Err(format!("is in another file, `{}`, which is not beside this one", printable(location))),
    }
}

fn external<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value())
}

/// The values of a tensor of floats, as many as its dimensions say.
///
/// # Errors
/// It holds no floats, or more or fewer values; or they are in another file that cannot be read.
pub(super) fn floats(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<f32>, String> {
    let wrong = |reason: String| format!("tensor `{}` {reason}", printable(tensor.name()));
    let count: usize = dims(tensor)?.iter().product();
    let values = match DataType::try_from(tensor.data_type()) {
        Ok(DataType::Float) if !tensor.float_data.is_empty() => tensor.float_data.clone(),
        Ok(DataType::Double) if !tensor.double_data.is_empty() => {
            decoded(Dtype::F64, bytemuck::cast_slice(&tensor.double_data)).map_err(wrong)?
        }
        // Two-byte floats are stored as the integers that their bits are.
        Ok(kind @ (DataType::Float16 | DataType::Bfloat16)) if !tensor.int32_data.is_empty() => {
            let bits: Vec<u16> = tensor.int32_data.iter().map(|&bits| bits as u16).collect();
            decoded(dtype(kind).map_err(wrong)?, bytemuck::cast_slice(&bits)).map_err(wrong)?
        }
        Ok(kind) => {
            let dtype = dtype(kind).map_err(wrong)?;
            let size = match dtype {
                Dtype::F64 => 8,
                Dtype::F32 => 4,
                _ => 2,
            };
            let fits = |bytes: &[u8]| match count.checked_mul(size) == Some(bytes.len()) {
                true => decoded(dtype, bytes),
                false => Err(format!("has the shape {:?}, but {} bytes", tensor.dims, bytes.len())),
            };
            raw(tensor, folder, fits).map_err(wrong)?
        }
        Err(_) => return Err(wrong(format!("has the unknown number type {}", tensor.data_type()))),
    };
    match values.len() == count {
        true => Ok(values),
        false => Err(wrong(format!("has the shape {:?}, but {} values", tensor.dims, values.len()))),
    }
}

/// The values of a tensor of whole numbers or truth values, as many as its dimensions say.
///
/// # Errors
/// It holds others, or more or fewer values.
pub(super) fn integers(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<i64>, String> {
    let wrong = |reason: String| format!("tensor `{}` {reason}", printable(tensor.name()));
    let count: usize = dims(tensor)?.iter().product();
    let (dtype, size) = match DataType::try_from(tensor.data_type()) {
        Ok(DataType::Int64) => (Dtype::I64, 8),
        Ok(DataType::Int32) => (Dtype::I32, 4),
        Ok(DataType::Int16) => (Dtype::I16, 2),
        Ok(DataType::Int8) => (Dtype::I8, 1),
        Ok(DataType::Uint64) => (Dtype::U64, 8),
        Ok(DataType::Uint32) => (Dtype::U32, 4),
        Ok(DataType::Uint16) => (Dtype::U16, 2),
        Ok(DataType::Uint8 | DataType::Bool) => (Dtype::U8, 1),
        _ => return Err(wrong("holds no whole numbers".into())),
    };
    let values = if !tensor.int64_data.is_empty() {
        tensor.int64_data.clone()
    } else if !tensor.uint64_data.is_empty() {
        tensor.uint64_data.iter().map(|&value| value as i64).collect()
    } else if !tensor.int32_data.is_empty() {
        tensor.int32_data.iter().map(|&value| i64::from(value)).collect()
    } else {
        let fits = |bytes: &[u8]| match count.checked_mul(size) == Some(bytes.len()) {
            true => match decode(dtype, bytes)? {
                TensorData::I64(values) => Ok(values),
                TensorData::F32(_) => Err("holds no whole numbers".into()),
            },
            false => Err(format!("has the shape {:?}, but {} bytes", tensor.dims, bytes.len())),
        };
        raw(tensor, folder, fits).map_err(wrong)?
    };
    match values.len() == count {
        true => Ok(values),
        false => Err(wrong(format!("has the shape {:?}, but {} values", tensor.dims, values.len()))),
    }
}

fn dtype(kind: DataType) -> Result<Dtype, String> {
    match kind {
        DataType::Float => Ok(Dtype::F32),
        DataType::Double => Ok(Dtype::F64),
        DataType::Float16 => Ok(Dtype::F16),
        DataType::Bfloat16 => Ok(Dtype::BF16),
        other => Err(format!("holds {} where floats are wanted", other.as_str_name())),
    }
}

fn decoded(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, String> {
    match decode(dtype, bytes)? {
        TensorData::F32(values) => Ok(values),
        TensorData::I64(_) => Err("holds no floats".into()),
    }
}

/// What `read` makes of a tensor's bytes, which are in the file or in another beside it, in `folder`.
fn raw<T>(
    tensor: &TensorProto,
    folder: Option<&Path>,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, String> {
    let Some(path) = file(tensor, folder)? else { return read(tensor.raw_data()) };
    let number = |key: &str| match external(tensor, key) {
        Some(text) => text.parse::<usize>().map(Some).map_err(|_| format!("has no number as its {key}")),
        None => Ok(None),
    };
    let bytes = map_file(&path).map_err(|error| error.to_string())?;
    let start = number("offset")?.unwrap_or(0);
    let end = number("length")?.map_or(Some(bytes.len()), |length| start.checked_add(length));
    let content = end.and_then(|end| bytes.get(start..end));
    let short = || {
        let location = external(tensor, "location").unwrap_or_default();
        format!("is not in `{}`, which is too short", printable(location))
    };
    read(content.ok_or_else(short)?)
}
