//! From the number types of files to `f32` and `i64`.

use crate::text::quantity;
use std::collections::BTreeMap;
use std::path::Path;

use half::f16;

use crate::weights::TensorData;

// Files are little-endian, and so is every machine that a GPU driver runs on.
const _: () = assert!(cfg!(target_endian = "little"), "weights files are read in native byte order");

/// The number types that `f32` or `i64` can stand for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Dtype {
    F16,
    BF16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

impl Dtype {
    /// Bytes of one value in a file.
    pub(super) fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Bytes of one value after [`decode`].
    pub(super) fn decoded_size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 | Self::F32 | Self::F64 => 4,
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => 8,
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => 8,
        }
    }
}

/// Decodes values stored one after the other; `bytes` holds a whole number of them.
///
/// # Errors
/// When a value has no counterpart: an `f64` beyond the range of `f32`, a `u64` beyond that of `i64`.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Result<TensorData, String> {
    fn values<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> impl Iterator<Item = T> {
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }
    fn copied<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
        let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
        values
    }
    fn integers<T: bytemuck::AnyBitPattern + Into<i64>>(bytes: &[u8]) -> TensorData {
        TensorData::I64(values::<T>(bytes).map(Into::into).collect())
    }
    Ok(match dtype {
        Dtype::F16 => TensorData::F32(values(bytes).map(|bits| f16::from_bits(bits).to_f32()).collect()),
        Dtype::BF16 => TensorData::F32(values(bytes).map(|v: u16| f32::from_bits(u32::from(v) << 16)).collect()),
        Dtype::F32 => TensorData::F32(copied(bytes)),
        Dtype::F64 => {
            let narrow = |v: f64| {
                let narrowed = v as f32;
                if narrowed.is_infinite() && v.is_finite() {
                    Err(format!("the float64 value {v:e} does not fit into float32"))
                } else {
                    Ok(narrowed)
                }
            };
            TensorData::F32(values(bytes).map(narrow).collect::<Result<_, _>>()?)
        }
        Dtype::I8 => integers::<i8>(bytes),
        Dtype::I16 => integers::<i16>(bytes),
        Dtype::I32 => integers::<i32>(bytes),
        Dtype::I64 => TensorData::I64(copied(bytes)),
        Dtype::U8 => integers::<u8>(bytes),
        Dtype::U16 => integers::<u16>(bytes),
        Dtype::U32 => integers::<u32>(bytes),
        Dtype::U64 => {
            let narrow = |v: u64| i64::try_from(v).map_err(|_| format!("the uint64 value {v} does not fit into int64"));
            TensorData::I64(values(bytes).map(narrow).collect::<Result<_, _>>()?)
        }
    })
}

/// Counts what is converted, to report it once a file.
#[derive(Default)]
pub(super) struct Conversions(BTreeMap<Dtype, usize>);

impl Conversions {
    pub(super) fn count(&mut self, dtype: Dtype) {
        if !matches!(dtype, Dtype::F32 | Dtype::I64) {
            *self.0.entry(dtype).or_default() += 1;
        }
    }

    pub(super) fn report(&self, path: &Path) {
        for (dtype, count) in &self.0 {
            let to = if dtype.decoded_size() == 4 { "f32" } else { "i64" };
            log::info!("{}: {} converted from {dtype:?} to {to}", path.display(), quantity(*count, "tensor"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_meaning() {
        let floats = |dtype, bytes: &[u8]| match decode(dtype, bytes) {
            Ok(TensorData::F32(values)) => values,
            other => panic!("{other:?}"),
        };
        assert_eq!(floats(Dtype::F16, &0xbe00u16.to_le_bytes()), [-1.5]);
        assert_eq!(floats(Dtype::BF16, &0xbfc0u16.to_le_bytes()), [-1.5]);
        assert_eq!(floats(Dtype::F32, &0.1f32.to_le_bytes()), [0.1]);
        assert_eq!(floats(Dtype::F64, &0.1f64.to_le_bytes()), [0.1]);
        assert_eq!(floats(Dtype::F64, &f64::NEG_INFINITY.to_le_bytes()), [f32::NEG_INFINITY]);
        for (dtype, bytes, value) in [
            (Dtype::I8, &(-2i8).to_le_bytes()[..], -2),
            (Dtype::I16, &(-300i16).to_le_bytes(), -300),
            (Dtype::I32, &(-70_000i32).to_le_bytes(), -70_000),
            (Dtype::I64, &i64::MIN.to_le_bytes(), i64::MIN),
            (Dtype::U8, &[200], 200),
            (Dtype::U16, &60_000u16.to_le_bytes(), 60_000),
            (Dtype::U32, &u32::MAX.to_le_bytes(), 4_294_967_295),
            (Dtype::U64, &77u64.to_le_bytes(), 77),
        ] {
            assert_eq!(decode(dtype, bytes), Ok(TensorData::I64(vec![value])), "{dtype:?}");
        }
    }

    #[test]
    fn values_out_of_range_are_errors() {
        assert!(decode(Dtype::F64, &1e300f64.to_le_bytes()).unwrap_err().contains("1e300"));
        assert!(decode(Dtype::U64, &u64::MAX.to_le_bytes()).unwrap_err().contains("18446744073709551615"));
    }
}
