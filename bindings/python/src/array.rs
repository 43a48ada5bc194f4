//! Between Python's arrays and the library's host values. Whatever NumPy takes is taken: arrays, `__array__`, DLPack on the
//! host, lists.

use crate::error::Error;
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use thawline::model::Size;
use thawline::preprocessing::Preprocessing;
use thawline::weights::{FileTensor, StateDict, TensorData};

/// Channels of an image.
const CHANNELS: usize = 3;
/// Values of a pixel on the device.
const STORED: usize = 4;

fn as_array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let numpy = object.py().import("numpy")?;
    let by_dlpack = !object.hasattr("__array__")? && object.hasattr("__dlpack__")?;
    let array = numpy.call_method1(if by_dlpack { "from_dlpack" } else { "asarray" }, (object,))?;
    Ok(array.cast_into::<PyUntypedArray>()?)
}

/// The same values as `T`, one after the other.
fn contiguous<'py, T: numpy::Element>(array: &Bound<'py, PyUntypedArray>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let py = array.py();
    let keywords = PyDict::new(py);
    keywords.set_item("dtype", T::get_dtype(py))?;
    keywords.set_item("order", "C")?;
    let array = py.import("numpy")?.call_method("asarray", (array,), Some(&keywords))?;
    Ok(array.cast_into::<PyArrayDyn<T>>()?.try_readonly()?)
}

/// Images of one size: normalised values or pixels.
pub struct Images<'py> {
    values: Values<'py>,
    preprocessing: Preprocessing,
    pub count: usize,
    pub size: Size,
}

enum Values<'py> {
    /// `[N, 3, H, W]`
    Normalised(PyReadonlyArrayDyn<'py, f32>),
    /// `[N, H, W, 3]`, red, green, blue.
    Pixels(PyReadonlyArrayDyn<'py, u8>),
}

impl<'py> Images<'py> {
    pub fn new(object: &Bound<'py, PyAny>, preprocessing: Preprocessing) -> PyResult<Self> {
        let array = as_array(object)?;
        let shape = array.shape().to_vec();
        let wrong = |expected: &str| {
            let found: Vec<String> = shape.iter().map(usize::to_string).collect();
            let dtype = array.dtype();
            Error::image(format!("the images are {dtype} of the shape [{}]: expected {expected}", found.join(", ")))
        };
        let is_empty = shape.contains(&0);
        let is_bytes = array.dtype().kind() == b'u' && array.dtype().itemsize() == 1;
        let (values, [count, height, width]) = match (array.dtype().kind(), &shape[..]) {
            (b'f', &[count, CHANNELS, height, width]) if !is_empty => {
                (Values::Normalised(contiguous(&array)?), [count, height, width])
            }
            (b'u', &[count, height, width, CHANNELS]) if is_bytes && !is_empty => {
                (Values::Pixels(contiguous(&array)?), [count, height, width])
            }
            (b'f', _) => return Err(wrong("normalised values of the shape [N, 3, height, width]").into()),
            _ if is_bytes => return Err(wrong("pixels of the shape [N, height, width, 3]").into()),
            _ => {
                return Err(
                    wrong("float32 [N, 3, height, width], normalised, or uint8 [N, height, width, 3], pixels").into()
                );
            }
        };
        Ok(Self { values, preprocessing, count, size: Size { height, width } })
    }

    /// Those from `first` on in the device's layout, filled up with zeros to a batch of `batch`; and how many there are.
    pub fn batch(&self, first: usize, batch: usize) -> PyResult<(Vec<f32>, usize)> {
        let pixels = self.size.height * self.size.width;
        let valid = (self.count - first).min(batch);
        let mut stored = vec![0.0; batch * pixels * STORED];
        let images = stored.chunks_exact_mut(pixels * STORED).take(valid);
        let of = CHANNELS * pixels;
        match &self.values {
            Values::Normalised(values) => {
                for (image, values) in images.zip(values.as_slice()?[first * of..].chunks_exact(of)) {
                    for (channel, values) in values.chunks_exact(pixels).enumerate() {
                        image.iter_mut().skip(channel).step_by(STORED).zip(values).for_each(|(to, from)| *to = *from);
                    }
                }
            }
            Values::Pixels(values) => {
                let Preprocessing { mean, std, bgr, .. } = self.preprocessing;
                // As the device does it.
                let normalised = |byte: u8, c: usize| (f32::from(byte) / 255.0 - mean[c]) / std[c];
                let tables: [Vec<f32>; CHANNELS] =
                    [0, 1, 2].map(|c| (0..=255).map(|byte| normalised(byte, c)).collect());
                let place = if bgr { [2, 1, 0] } else { [0, 1, 2] };
                for (image, bytes) in images.zip(values.as_slice()?[first * of..].chunks_exact(of)) {
                    for (pixel, bytes) in image.chunks_exact_mut(STORED).zip(bytes.chunks_exact(CHANNELS)) {
                        for (c, &byte) in bytes.iter().enumerate() {
                            pixel[place[c]] = tables[c][usize::from(byte)];
                        }
                    }
                }
            }
        }
        Ok((stored, valid))
    }
}

/// One class a image, from 0.
pub fn labels(object: &Bound<'_, PyAny>, count: usize, classes: usize) -> PyResult<Vec<u32>> {
    let array = as_array(object)?;
    if !matches!(array.dtype().kind(), b'i' | b'u') || array.ndim() != 1 {
        let (dtype, dimensions) = (array.dtype(), array.ndim());
        return Err(Error::image(format!(
            "the labels are {dtype} of {dimensions} dimensions: expected integers, one class from 0 to {} an image",
            classes - 1
        ))
        .into());
    }
    if array.shape() != [count] {
        return Err(Error::image(format!("there are {} labels for {count} images", array.shape()[0])).into());
    }
    let array = contiguous::<i64>(&array)?;
    let label = |&label: &i64| match usize::try_from(label) {
        Ok(class) if class < classes => Ok(class as u32),
        _ => Err(Error::image(format!("the label {label} is none of the classes 0 to {}", classes - 1))),
    };
    Ok(array.as_slice()?.iter().map(label).collect::<Result<_, _>>()?)
}

/// Rows of `columns` values.
pub fn rows(py: Python<'_>, values: Vec<f32>, columns: usize) -> PyResult<Bound<'_, PyArray2<f32>>> {
    let count = values.len() / columns.max(1);
    values.into_pyarray(py).reshape([count, columns])
}

/// Tensors by name, as PyTorch's `state_dict()` has them.
pub fn state_dict(dict: &Bound<'_, PyDict>) -> PyResult<StateDict> {
    let mut state = StateDict::default();
    for (name, value) in dict {
        let name: String = name.extract()?;
        state.tensors.insert(name.clone(), tensor(&name, &value)?);
    }
    if state.tensors.is_empty() {
        return Err(Error::weights("the state dict is empty").into());
    }
    Ok(state)
}

pub fn tensor(name: &str, value: &Bound<'_, PyAny>) -> PyResult<FileTensor> {
    let array = as_array(value)?;
    let shape = array.shape().to_vec();
    let data = match array.dtype().kind() {
        b'f' => TensorData::F32(contiguous::<f32>(&array)?.as_slice()?.to_vec()),
        b'i' | b'u' | b'b' => TensorData::I64(contiguous::<i64>(&array)?.as_slice()?.to_vec()),
        _ => {
            let dtype = array.dtype();
            return Err(Error::weights(format!("`{name}` is {dtype}: expected floats, or integers that count")).into());
        }
    };
    Ok(FileTensor { shape, data })
}

/// The array of a tensor.
pub fn array<'py>(py: Python<'py>, FileTensor { shape, data }: FileTensor) -> PyResult<Bound<'py, PyAny>> {
    fn shaped<'py, T: numpy::Element>(
        values: Bound<'py, PyArray1<T>>,
        shape: Vec<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(values.reshape(shape)?.into_any())
    }
    match data {
        TensorData::F32(values) => shaped(values.into_pyarray(py), shape),
        TensorData::I64(values) => shaped(values.into_pyarray(py), shape),
    }
}

/// The inverse of [`state_dict`].
pub fn dict(py: Python<'_>, state: StateDict) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, tensor) in state.tensors {
        dict.set_item(name, array(py, tensor)?)?;
    }
    Ok(dict)
}

/// The value that JSON says.
pub fn from_json<'py>(py: Python<'py>, json: &serde_json::Value) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json.to_string(),))
}
