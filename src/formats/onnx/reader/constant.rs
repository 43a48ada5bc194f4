//! What a file knows without looking at images: weights, shapes, and what is computed from those.

use crate::formats::onnx::proto::TensorProto;
use crate::formats::onnx::proto::tensor_proto::DataType;
use crate::formats::onnx::tensor;
use crate::text::printable;
use std::rc::Rc;

/// Far above every tensor.
pub(super) const MAX_RANK: usize = 8;

/// Values of a constant that something is computed from.
pub(super) const MAX_COMPUTED: usize = 1 << 16;

/// What numbers a constant has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Int,
    Float,
    Bool,
}

/// A number of a constant; `None` is the number of images, which a file may leave open.
pub(super) type Number = Option<f64>;

/// A constant, or a part of one, with its dimensions in any order.
#[derive(Clone, Debug)]
pub(super) struct Constant<'a> {
    pub(super) dims: Vec<usize>,
    strides: Vec<isize>,
    offset: usize,
    pub(super) kind: Kind,
    values: Values<'a>,
}

#[derive(Clone, Debug)]
enum Values<'a> {
    Stored(&'a TensorProto),
    Computed(Rc<[Number]>),
    /// Weights, which are many.
    Weights(Rc<[f32]>),
}

impl Kind {
    pub(super) fn of(kind: DataType) -> Option<Self> {
        match kind {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => Some(Self::Float),
            DataType::Bool => Some(Self::Bool),
            DataType::Int64 | DataType::Int32 | DataType::Int16 | DataType::Int8 => Some(Self::Int),
            DataType::Uint64 | DataType::Uint32 | DataType::Uint16 | DataType::Uint8 => Some(Self::Int),
            _ => None,
        }
    }

    /// The number of this kind that is nearest, towards zero: floats have 32 bits here.
    pub(super) fn round(self, value: f64) -> f64 {
        match self {
            Self::Int => value.trunc(),
            Self::Float => f64::from(value as f32),
            Self::Bool => f64::from(u8::from(value != 0.0)),
        }
    }
}

impl<'a> Constant<'a> {
    /// A tensor of the file.
    ///
    /// # Errors
    /// It has a shape that no tensor can have.
    pub(super) fn stored(tensor: &'a TensorProto) -> Result<Self, String> {
        let dims = tensor::dims(tensor)?;
        if dims.len() > MAX_RANK {
            return Err(format!(
                "tensor `{}` has {} dimensions, more than the {MAX_RANK} of any network",
                printable(tensor.name()),
                dims.len()
            ));
        }
        // Who asks for its numbers learns what is wrong with the type.
        let kind = DataType::try_from(tensor.data_type()).ok().and_then(Kind::of).unwrap_or(Kind::Float);
        Ok(Self { strides: contiguous(&dims), dims, offset: 0, kind, values: Values::Stored(tensor) })
    }

    /// Numbers in order; as many as the dimensions say.
    pub(super) fn computed(kind: Kind, dims: Vec<usize>, numbers: Vec<Number>) -> Self {
        debug_assert_eq!(dims.iter().product::<usize>(), numbers.len(), "dimensions of all numbers");
        Self { strides: contiguous(&dims), dims, offset: 0, kind, values: Values::Computed(numbers.into()) }
    }

    /// Weights in order; as many as the dimensions say.
    pub(super) fn weights(dims: Vec<usize>, weights: Vec<f32>) -> Self {
        debug_assert_eq!(dims.iter().product::<usize>(), weights.len(), "dimensions of all weights");
        let values = Values::Weights(weights.into());
        Self { strides: contiguous(&dims), dims, offset: 0, kind: Kind::Float, values }
    }

    /// One number, of no dimensions.
    pub(super) fn number(kind: Kind, number: f64) -> Self {
        Self::computed(kind, Vec::new(), vec![Some(number)])
    }

    /// Whole numbers, of one dimension.
    pub(super) fn list(numbers: Vec<Number>) -> Self {
        Self::computed(Kind::Int, vec![numbers.len()], numbers)
    }

    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The tensor of the file that it is, or is a part of, and where in it.
    pub(super) fn tensor(&self) -> Option<(&'a TensorProto, usize)> {
        match self.values {
            Values::Stored(tensor) => Some((tensor, self.offset)),
            Values::Computed(_) | Values::Weights(_) => None,
        }
    }

    /// Whether it is weights that were computed.
    pub(super) fn is_computed_weights(&self) -> bool {
        matches!(self.values, Values::Weights(_))
    }

    /// How many values have to be held for its own.
    pub(super) fn held(&self) -> usize {
        match &self.values {
            Values::Stored(tensor) => tensor.dims.iter().map(|&size| size as usize).product::<usize>().max(self.len()),
            Values::Computed(_) => self.len(),
            Values::Weights(weights) => weights.len().max(self.len()),
        }
    }

    /// Its values in order, of those of its [tensor](Self::tensor).
    pub(super) fn pick<T: Copy>(&self, from: &[T]) -> Vec<T> {
        self.places().filter_map(|place| from.get(place).copied()).collect()
    }

    /// The same, without a copy if it is the whole tensor.
    pub(super) fn picked<T: Copy>(&self, from: Vec<T>) -> Vec<T> {
        let whole = self.offset == 0 && self.len() == from.len() && self.strides == contiguous(&self.dims);
        if whole { from } else { self.pick(&from) }
    }

    /// The number that it repeats, if it does.
    pub(super) fn repeated(&self) -> Option<Self> {
        let repeats = self.len() > 0 && self.strides.iter().all(|&stride| stride == 0);
        repeats.then(|| Self { dims: Vec::new(), strides: Vec::new(), ..self.clone() })
    }

    /// The numbers of one that is not stored, in order.
    pub(super) fn numbers(&self) -> Option<Vec<Number>> {
        match &self.values {
            Values::Stored(_) => None,
            Values::Computed(numbers) => Some(self.pick(numbers)),
            Values::Weights(weights) => Some(self.pick(weights).into_iter().map(|x| Some(f64::from(x))).collect()),
        }
    }

    /// The same as floats; `None` for one that is stored, or that depends on the number of images.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        match &self.values {
            Values::Weights(weights) => Some(self.pick(weights)),
            _ => self.numbers()?.into_iter().map(|number| Some(number? as f32)).collect(),
        }
    }

    /// Where its values are, in order.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).map(|index| {
            let mut rest = index;
            let mut place = self.offset as isize;
            for (&size, &stride) in self.dims.iter().zip(&self.strides).rev() {
                place += (rest % size) as isize * stride;
                rest /= size;
            }
            place as usize
        })
    }

    pub(super) fn transposed(&self, order: &[usize]) -> Option<Self> {
        let each_once = order.len() == self.dims.len() && (0..order.len()).all(|axis| order.contains(&axis));
        let by = |axis: usize| (self.dims[axis], self.strides[axis]);
        each_once.then(|| {
            let (dims, strides) = order.iter().map(|&axis| by(axis)).unzip();
            Self { dims, strides, ..self.clone() }
        })
    }

    /// So many of a dimension's places, of which the first one is `begin`.
    pub(super) fn sliced(&self, axis: usize, begin: usize, len: usize, step: isize) -> Self {
        let mut slice = self.clone();
        if len > 0 {
            slice.offset = (slice.offset as isize + begin as isize * slice.strides[axis]) as usize;
        }
        slice.dims[axis] = len;
        if len > 1 {
            slice.strides[axis] *= step;
        }
        slice
    }

    /// The same values in other dimensions; `None` if that would need them in another order in memory.
    pub(super) fn reshaped(&self, dims: &[usize]) -> Option<Self> {
        if dims.len() > MAX_RANK || product(dims)? != self.len() {
            return None;
        }
        if self.len() == 0 {
            return Some(Self { dims: dims.to_vec(), strides: vec![0; dims.len()], ..self.clone() });
        }
        // Dimensions of which the second goes on where the first ends are one.
        let mut runs: Vec<(usize, isize)> = Vec::new();
        for (&size, &stride) in self.dims.iter().zip(&self.strides).filter(|&(&size, _)| size != 1) {
            match runs.last_mut() {
                Some(last) if last.1 == stride * size as isize => *last = (last.0 * size, stride),
                _ => runs.push((size, stride)),
            }
        }
        let (mut left, mut stride) = (1, 0);
        let mut strides = vec![0; dims.len()];
        for (place, &size) in dims.iter().enumerate().rev().filter(|&(_, &size)| size != 1) {
            if left == 1 {
                (left, stride) = runs.pop()?;
            }
            if !left.is_multiple_of(size) {
                return None;
            }
            strides[place] = stride;
            left /= size;
            stride *= size as isize;
        }
        (left == 1).then(|| Self { dims: dims.to_vec(), strides, ..self.clone() })
    }

    /// Repeated along the dimensions that have one value here.
    pub(super) fn expanded(&self, dims: &[usize]) -> Option<Self> {
        let missing = dims.len().checked_sub(self.dims.len()).filter(|_| dims.len() <= MAX_RANK)?;
        let mut strides = vec![0; dims.len()];
        for (axis, &size) in self.dims.iter().enumerate() {
            match (size, dims[missing + axis]) {
                (1, _) => {}
                (own, wanted) if own == wanted => strides[missing + axis] = self.strides[axis],
                _ => return None,
            }
        }
        product(dims)?;
        Some(Self { dims: dims.to_vec(), strides, ..self.clone() })
    }
}

/// What two constants that are computed with each other have together.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |place| dims[place]);
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (a, b) if a == b || b == 1 => Some(a),
            (1, b) => Some(b),
            _ => None,
        })
        .collect()
}

pub(super) fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |all, &size| all.checked_mul(size))
}

fn contiguous(dims: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; dims.len()];
    let mut stride = 1;
    for (place, &size) in strides.iter_mut().zip(dims).rev() {
        *place = stride;
        stride *= size.max(1) as isize;
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(dims: &[usize]) -> Constant<'static> {
        let count = dims.iter().product::<usize>();
        Constant::computed(Kind::Int, dims.to_vec(), (0..count).map(|i| Some(i as f64)).collect())
    }

    fn values(constant: &Constant<'_>) -> Vec<f64> {
        constant.numbers().unwrap().into_iter().map(Option::unwrap).collect()
    }

    #[test]
    fn parts_and_orders_need_no_copy() {
        let matrix = counting(&[2, 3]);
        assert_eq!(values(&matrix.transposed(&[1, 0]).unwrap()), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(values(&matrix.sliced(1, 2, 3, -1)), [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        assert_eq!(values(&matrix.sliced(1, 1, 1, 1).expanded(&[2, 2, 2]).unwrap()), [1., 1., 4., 4., 1., 1., 4., 4.]);
        assert!(matrix.transposed(&[0, 0]).is_none() && matrix.expanded(&[2, 4]).is_none());
    }

    #[test]
    fn reshaping_is_in_order_or_not_at_all() {
        let cube = counting(&[2, 3, 4]);
        for dims in [&[24][..], &[6, 4], &[2, 12], &[1, 2, 1, 3, 4, 1], &[4, 3, 2]] {
            assert_eq!(values(&cube.reshaped(dims).unwrap()), values(&cube), "{dims:?}");
        }
        let turned = cube.transposed(&[2, 0, 1]).unwrap();
        assert_eq!(values(&turned.reshaped(&[4, 6]).unwrap()), values(&turned));
        assert_eq!(values(&turned.reshaped(&[2, 2, 6]).unwrap()), values(&turned));
        assert!(turned.reshaped(&[8, 3]).is_none() && turned.reshaped(&[24]).is_none());
        assert!(cube.reshaped(&[5, 5]).is_none() && cube.reshaped(&[usize::MAX, 2]).is_none());
        assert!(counting(&[0, 3]).reshaped(&[3, 0, 7]).is_some());
    }
}
