//! Keras's files: `.keras`, and `.h5` with a whole model or its weights alone, of Keras 2 and 3.
//!
//! A file's tensors take the names and layouts that every other file's have here: `stem_conv.weight` OIHW,
//! `stem_bn.running_var`; a layer of a model within the model has that model's name before its own, as in
//! `efficientnetb0/stem_bn`. What the file says of the network beside its tensors is in a [`Description`]. [`save`] puts
//! tensors back into a copy of the file that they came from. Names of classes are in a file beside it,
//! [`class_file`](super::class_file).

mod container;
mod flattened;
mod names;
mod network;
mod save;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use hdf5_pure::{DType, Dataset, Datatype, DatatypeByteOrder, File, FloatingPointLayout, Layout};
use serde_json::Value;

pub(super) use container::is_archive;
pub(super) use names::{Node, Part, Variable, listed};
pub use network::{Imported, KerasConfig, KerasError, Prepared, image_statistics, import};
pub use save::save;
pub(super) use save::{Resized, copied, head, is_same, resize};

use super::dtype::{Dtype, decode};
use super::{ModelFile, Opening, classes};
use crate::models::Spec;
use crate::text::printable;
use crate::weights::{FileTensor, StateDict, TensorData, WeightsError};
use container::{Container, Kind};
use names::{Found, text};

/// What a Keras file says of a network beside its tensors.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Description {
    /// The model's configuration, as `config.json` has it; none in a file of weights alone.
    pub config: Option<Value>,
    /// The version of Keras that wrote the file, such as `3.15.1`; tf_keras is a 2.
    pub version: Option<String>,
    /// Mean and variance of each `Normalization` layer that keeps them as variables.
    pub normalizations: BTreeMap<String, [Vec<f32>; 2]>,
}

impl Description {
    /// Whether Keras 2 or tf_keras wrote the file. Its fused batch norm stores the unbiased variance, and its
    /// `hard_sigmoid` is another function.
    pub fn is_keras_2(&self) -> bool {
        self.version.as_deref().is_some_and(|version| version.starts_with("2."))
    }

    /// Mean and deviation of the images in the network `spec`, if one `Normalization` layer has them; see
    /// [`image_statistics`].
    pub fn image_statistics(&self, spec: &Spec) -> Option<[[f32; 3]; 2]> {
        let mut all = self.normalizations.values();
        let one = all.next().filter(|_| all.next().is_none())?;
        image_statistics(spec, one)
    }

    /// The network, if there is a configuration.
    ///
    /// # Errors
    /// Those of [`import`].
    pub fn import(&self) -> Result<Option<Imported>, KerasError> {
        let normalization = |layer: &str| self.normalizations.get(layer).cloned();
        let config = self.config.as_ref();
        let model =
            config.map(|config| KerasConfig { config, keras_2: self.is_keras_2(), normalization: &normalization });
        model.map(import).transpose()
    }
}

/// What is more than a Keras file is cut off at: the dimensions of a tensor.
pub(super) const MAX_RANK: usize = 8;

/// A dataset may be compressed, so a file's size alone does not bound what it unfolds to.
const MAX_GROWTH: u64 = 8;
const MAX_GROWTH_FROM: u64 = 64 << 20;

/// A file that is open for reading.
struct Reader {
    container: Container,
    file: File,
    description: Description,
    found: Found,
}

pub(super) fn is_hdf5(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89HDF")
}

pub(super) fn open(opening: &Opening<'_>) -> Result<ModelFile, WeightsError> {
    let path = opening.path;
    let reader = Reader::open(path, opening.bytes)?;
    if let Some(how) = reader.description.config.as_ref().and_then(quantised) {
        return Err(WeightsError::Quantised { path: path.into(), how: printable(&how) });
    }
    reader.supported().map_err(|reason| WeightsError::Refused { path: path.into(), reason: printable(&reason) })?;
    let (mut state, description) = reader.state().map_err(|reason| malformed(path, &reason))?;
    classes::read(path, &mut state)?;
    ModelFile::read(opening, state, Some(description))
}

/// How a model's layers are quantised, if some are: by `Model.quantize`, whose layers then have such a policy for the type
/// of their values, or by layers of tfmot around them.
fn quantised(config: &Value) -> Option<String> {
    match config {
        Value::Object(entries) => {
            let class = entries.get("class_name").and_then(Value::as_str).unwrap_or_default();
            let is_quantised = class.starts_with("Quantize") || class.starts_with("GPTQ") || class.starts_with("AWQ");
            let mode = || entries.get("config").and_then(|config| config.get("mode")).and_then(Value::as_str);
            match is_quantised {
                true => Some(mode().unwrap_or(class).to_owned()),
                false => entries.values().find_map(quantised),
            }
        }
        Value::Array(items) => items.iter().find_map(quantised),
        _ => None,
    }
}

fn malformed(path: &Path, reason: &str) -> WeightsError {
    WeightsError::Malformed { path: path.into(), format: "Keras", reason: printable(reason) }
}

impl Reader {
    fn open(path: &Path, bytes: &[u8]) -> Result<Self, WeightsError> {
        Self::read(bytes).map_err(|reason| malformed(path, &reason))
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let container = Container::read(bytes)?;
        let file = container.open()?;
        let root = file.root();
        let mut description = Description {
            config: container.config.clone(),
            version: container.version.clone(),
            normalizations: BTreeMap::new(),
        };
        let attributes = root.attrs().map_err(text)?;
        let attribute = |name: &str| attributes.get(name).and_then(|value| value.as_str());
        if container.kind == Kind::Hdf5 {
            description.config =
                attribute("model_config").map(|text| container::json_attribute("model_config", text)).transpose()?;
            description.version = attribute("keras_version").map(str::to_owned);
        }
        let tree = description.config.as_ref().map(Node::all);
        let mut found = names::variables(&root, tree.as_deref())?;
        let mut limit = MAX_GROWTH_FROM.max(MAX_GROWTH * bytes.len() as u64);
        for variable in &mut found.variables {
            let dataset = file.dataset(&variable.dataset).map_err(text)?;
            let rank = dataset.shape().map_err(text)?.len();
            // Files without a configuration call the weights of both kinds `kernel`.
            if variable.part == Part::Conv && rank == 2 {
                variable.part = Part::Dense;
            }
            let size = size_in_memory(&dataset, bytes.len() as u64)
                .map_err(|reason| format!("`{}`: {reason}", variable.dataset))?;
            limit = limit
                .checked_sub(size)
                .ok_or_else(|| format!("its tensors unfold to more than {} times the file", MAX_GROWTH))?;
        }
        if let Some(config) = &description.config {
            find_flattened(&mut found.variables, config)?;
        }
        let mut reader = Self { container, file, description, found };
        reader.description.normalizations =
            normalizations(&reader.found.variables, |variable| reader.tensor(variable))?;
        Ok(reader)
    }

    /// A variable's values in the file's own layout.
    fn tensor(&self, variable: &Variable) -> Result<FileTensor, String> {
        let failed = |reason: String| format!("`{}`: {reason}", variable.dataset);
        let dataset = self.file.dataset(&variable.dataset).map_err(text).map_err(failed)?;
        let shape = shape(&dataset).map_err(failed)?;
        let data = values(&dataset).map_err(failed)?;
        if data.len() != shape.iter().product::<usize>() {
            return Err(failed(format!("it is {shape:?}, but holds {} values", data.len())));
        }
        Ok(FileTensor { shape, data })
    }

    /// Refuses what is a real file, but of a network that there is none of here.
    fn supported(&self) -> Result<(), String> {
        for Variable { layer, dataset, .. } in self.found.variables.iter().filter(|v| v.part == Part::Depthwise) {
            let shape = self.file.dataset(dataset).and_then(|dataset| dataset.shape()).map_err(text)?;
            if let &[_, _, _, multiplier] = &shape[..]
                && multiplier != 1
            {
                let layer = layer.strip_suffix(".depthwise").unwrap_or(layer);
                return Err(format!("layer `{layer}`: depth_multiplier={multiplier} is not supported, only 1"));
            }
        }
        match self.unknown_order()? {
            Some(layer) if self.found.may_flatten => Err(format!(
                "layer `{layer}` may take a flattened image, and weights alone do not tell of how many channels: give the \
                 whole model's file, written by model.save"
            )),
            _ => Ok(()),
        }
    }

    /// Of a file of weights alone, the first Dense layer that takes as many values as no other layer gives.
    fn unknown_order(&self) -> Result<Option<&str>, String> {
        if self.description.config.is_some() {
            return Ok(None);
        }
        let mut given: HashMap<u64, HashSet<&str>> = HashMap::new();
        let mut taken = Vec::new();
        // Without a convolution there is no image to flatten.
        let mut has_images = false;
        for Variable { layer, part, dataset } in &self.found.variables {
            let shape = self.file.dataset(dataset).and_then(|dataset| dataset.shape()).map_err(text)?;
            if let Some(&channels) = shape.last() {
                given.entry(channels).or_default().insert(layer);
            }
            if let (Part::Dense, &[inputs, _]) = (part, &shape[..]) {
                taken.push((layer, inputs));
            }
            has_images |= shape.len() == 4;
        }
        if !has_images {
            return Ok(None);
        }
        let is_given = |layer: &str, inputs: u64| {
            given.get(&inputs).is_some_and(|layers| layers.iter().any(|other| *other != layer))
        };
        Ok(taken.into_iter().find(|&(layer, inputs)| !is_given(layer, inputs)).map(|(layer, _)| layer.as_str()))
    }

    fn state(self) -> Result<(StateDict, Description), String> {
        let mut state = state(&self.found.variables, |variable| self.tensor(variable))?;
        let is_dense = |variable: &Variable| variable.part == Part::Dense;
        if self.description.config.is_none() && self.found.flattens && self.found.variables.iter().any(is_dense) {
            state.notes.push(
                "a layer flattens something: features are assumed, since weights alone do not tell; if it is an image, give the \
                 whole model's file, written by model.save"
                    .to_owned(),
            );
        }
        Ok((state, self.description))
    }
}

/// The tensors of variables that have the values `tensor`, in the layouts that tensors have here.
pub(super) fn state(
    variables: &[Variable],
    tensor: impl Fn(&Variable) -> Result<FileTensor, String>,
) -> Result<StateDict, String> {
    let mut state = StateDict::default();
    for variable in variables {
        let Some(name) = variable.tensor() else { continue };
        // Counts and seeds are of no use to a network.
        if matches!(&variable.part, Part::Other(label) if label == "count" || label.contains("seed")) {
            continue;
        }
        let tensor =
            to_ours(tensor(variable)?, &variable.part).map_err(|reason| format!("`{}`: {reason}", variable.dataset))?;
        if state.tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("it has two tensors for `{name}`"));
        }
    }
    // What a batch norm lacks has no effect: gamma is one then, and beta zero.
    for Variable { layer, .. } in variables.iter().filter(|variable| variable.part == Part::Mean) {
        let Some(mean) = state.tensors.get(&format!("{layer}.running_mean")) else { continue };
        let shape = mean.shape.clone();
        let count = mean.data.len();
        for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
            let absent = FileTensor::f32(shape.clone(), vec![value; count]);
            state.tensors.entry(format!("{layer}.{part}")).or_insert(absent);
        }
    }
    Ok(state)
}

/// Mean and variance of each layer that normalises images and keeps them as variables, which have the values `tensor`.
pub(super) fn normalizations(
    variables: &[Variable],
    tensor: impl Fn(&Variable) -> Result<FileTensor, String>,
) -> Result<BTreeMap<String, [Vec<f32>; 2]>, String> {
    let mut found: BTreeMap<String, [Vec<f32>; 2]> = BTreeMap::new();
    for variable in variables {
        let index = match variable.part {
            Part::ImageMean => 0,
            Part::ImageVariance => 1,
            _ => continue,
        };
        let TensorData::F32(values) = tensor(variable)?.data else {
            return Err(format!("`{}` holds integers", variable.dataset));
        };
        found.entry(variable.layer.clone()).or_default()[index] = values;
    }
    Ok(found)
}

/// Says of the Dense layers that take a flattened image how many channels it has.
pub(super) fn find_flattened(variables: &mut [Variable], config: &Value) -> Result<(), String> {
    let flattened = flattened::channels(config)?;
    for variable in variables.iter_mut().filter(|variable| variable.part == Part::Dense) {
        if let Some(&channels) = flattened.get(&variable.layer) {
            variable.part = Part::Flattened(channels);
        }
    }
    Ok(())
}

fn shape(dataset: &Dataset) -> Result<Vec<usize>, String> {
    let shape = dataset.shape().map_err(text)?;
    if shape.len() > MAX_RANK {
        return Err(format!("it has {} dimensions", shape.len()));
    }
    shape.iter().map(|&size| usize::try_from(size).map_err(|_| format!("it is {shape:?}"))).collect()
}

/// The bytes that a dataset's values take, checked against the file where they lie in it as they are.
fn size_in_memory(dataset: &Dataset, file: u64) -> Result<u64, String> {
    let shape = shape(dataset)?;
    let count = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    let bytes = count.and_then(|count| count.checked_mul(dataset.element_size().ok()?.max(4)));
    let bytes = bytes.ok_or_else(|| format!("it claims to be {shape:?}"))?;
    match dataset.layout().map_err(text)? {
        Layout::Chunked { .. } => Ok(bytes),
        Layout::Virtual => Err("its values are in another file".to_owned()),
        // Integers of one byte take four in memory.
        _ if bytes > file.saturating_mul(4) => {
            Err(format!("it claims to be {shape:?}, which is more than the file holds"))
        }
        _ => Ok(bytes),
    }
}

/// As numpy's float16 is stored; the reader itself makes no values of it.
const HALF: Datatype = Datatype::FloatingPoint {
    size: 2,
    byte_order: DatatypeByteOrder::LittleEndian,
    layout: FloatingPointLayout {
        bit_offset: 0,
        bit_precision: 16,
        exponent_location: 10,
        exponent_size: 5,
        mantissa_location: 0,
        mantissa_size: 10,
        exponent_bias: 15,
    },
};

fn values(dataset: &Dataset) -> Result<TensorData, String> {
    match dataset.dtype().map_err(text)? {
        DType::F32 => dataset.read_f32().map(TensorData::F32).map_err(text),
        DType::F64 => narrow(dataset),
        DType::Other(kind) if *kind == HALF => decode(Dtype::F16, &dataset.read_raw().map_err(text)?),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => {
            dataset.read_i64().map(TensorData::I64).map_err(text)
        }
        other => Err(format!("the number type {other} is not supported")),
    }
}

/// Floats of another width as `f32`.
fn narrow(dataset: &Dataset) -> Result<TensorData, String> {
    let wide = dataset.read_f64().map_err(text)?;
    let narrowed = wide.into_iter().map(|value| match value as f32 {
        narrow if narrow.is_infinite() && value.is_finite() => {
            Err(format!("the float64 value {value:e} does not fit into float32"))
        }
        narrow => Ok(narrow),
    });
    Ok(TensorData::F32(narrowed.collect::<Result<_, _>>()?))
}

/// From Keras's layout to the one that tensors have here.
fn to_ours(tensor: FileTensor, part: &Part) -> Result<FileTensor, String> {
    let FileTensor { shape, data } = tensor;
    let TensorData::F32(values) = data else { return Ok(FileTensor { shape, data }) };
    Ok(match (part, &shape[..]) {
        (Part::Conv, &[kh, kw, cin, cout]) => {
            FileTensor::f32([cout, cin, kh, kw], permuted(&values, [kh, kw, cin, cout], [3, 2, 0, 1]))
        }
        (Part::Depthwise, &[kh, kw, c, 1]) => {
            FileTensor::f32([c, 1, kh, kw], permuted(&values, [kh, kw, c, 1], [2, 3, 0, 1]))
        }
        (Part::Dense, &[cin, cout]) => FileTensor::f32([cout, cin], permuted(&values, [cin, cout, 1, 1], [1, 0, 2, 3])),
        (&Part::Flattened(channels), &[cin, cout]) => {
            let pixels = pixels(cin, channels)?;
            FileTensor::f32([cout, cin], permuted(&values, [pixels, channels, cout, 1], [2, 1, 0, 3]))
        }
        (Part::Depthwise, &[_, _, _, multiplier]) => {
            return Err(format!("depth_multiplier={multiplier} is not supported, only 1"));
        }
        (Part::Conv | Part::Depthwise | Part::Dense | Part::Flattened(_), _) => {
            return Err(format!("it is {shape:?}, which no kernel is"));
        }
        _ => FileTensor::f32(shape, values),
    })
}

/// The inverse of [`to_ours`], for a tensor of the network's.
pub(super) fn to_keras(tensor: &FileTensor, part: &Part) -> Result<(Vec<usize>, Vec<f32>), String> {
    let TensorData::F32(values) = &tensor.data else { return Err("it holds integers".to_owned()) };
    let shape = &tensor.shape[..];
    Ok(match (part, shape) {
        (Part::Conv, &[cout, cin, kh, kw]) => {
            (vec![kh, kw, cin, cout], permuted(values, [cout, cin, kh, kw], [2, 3, 1, 0]))
        }
        (Part::Depthwise, &[c, 1, kh, kw]) => (vec![kh, kw, c, 1], permuted(values, [c, 1, kh, kw], [2, 3, 0, 1])),
        (Part::Dense, &[cout, cin]) => (vec![cin, cout], permuted(values, [cout, cin, 1, 1], [1, 0, 2, 3])),
        (&Part::Flattened(channels), &[cout, cin]) => {
            let pixels = pixels(cin, channels)?;
            (vec![cin, cout], permuted(values, [cout, channels, pixels, 1], [2, 1, 0, 3]))
        }
        (Part::Conv | Part::Depthwise | Part::Dense | Part::Flattened(_), _) => {
            return Err(format!("it is {shape:?}, which is no weight of that kind"));
        }
        _ => (shape.to_vec(), values.clone()),
    })
}

/// How many pixels an image of so many values and channels has.
fn pixels(values: usize, channels: usize) -> Result<usize, String> {
    let pixels = values.checked_div(channels).filter(|pixels| pixels * channels == values);
    pixels.ok_or_else(|| format!("its {values} inputs are no flattened image of {channels} channels"))
}

/// `values` of the dimensions `from`, with the dimensions in the given order.
fn permuted(values: &[f32], from: [usize; 4], order: [usize; 4]) -> Vec<f32> {
    let strides = [from[1] * from[2] * from[3], from[2] * from[3], from[3], 1];
    let [a, b, c, d] = order.map(|dimension| (from[dimension], strides[dimension]));
    let mut out = Vec::with_capacity(values.len());
    for i in 0..a.0 {
        for j in 0..b.0 {
            for k in 0..c.0 {
                let start = i * a.1 + j * b.1 + k * c.1;
                out.extend((0..d.0).map(|l| values[start + l * d.1]));
            }
        }
    }
    out
}

/// The variables of the network by the names that their tensors have here.
fn by_tensor(variables: &[Variable]) -> HashMap<String, &Variable> {
    variables.iter().filter_map(|variable| Some((variable.tensor()?, variable))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layouts_round_trip(dims in [1usize..4, 1usize..4, 1usize..6, 1usize..6]) {
            let [kh, kw, cin, cout] = dims;
            for (part, shape) in [
                (Part::Conv, vec![kh, kw, cin, cout]),
                (Part::Depthwise, vec![kh, kw, cin, 1]),
                (Part::Dense, vec![cin, cout]),
                (Part::Flattened(cin), vec![kh * kw * cin, cout]),
                (Part::Scale, vec![cin]),
                (Part::Gamma, vec![cin]),
            ] {
                let values: Vec<f32> = (0..shape.iter().product()).map(|value: usize| value as f32).collect();
                let ours = to_ours(FileTensor::f32(shape.clone(), values.clone()), &part).unwrap();
                prop_assert_eq!(to_keras(&ours, &part), Ok((shape, values)));
            }
        }
    }

    #[test]
    fn a_kernel_has_its_outputs_first() {
        // [KH, KW, Cin, Cout] = [1, 2, 2, 3]
        let values: Vec<f32> = (0u8..12).map(f32::from).collect();
        let ours = to_ours(FileTensor::f32([1, 2, 2, 3], values), &Part::Conv).unwrap();
        assert_eq!(ours.shape, [3, 2, 1, 2]);
        assert_eq!(ours.data, TensorData::F32(vec![0.0, 6.0, 3.0, 9.0, 1.0, 7.0, 4.0, 10.0, 2.0, 8.0, 5.0, 11.0]));
    }

    #[test]
    fn a_flattened_image_has_its_channels_first() {
        // Two pixels of three channels, one output.
        let values: Vec<f32> = (0u8..6).map(f32::from).collect();
        let ours = to_ours(FileTensor::f32([6, 1], values), &Part::Flattened(3)).unwrap();
        assert_eq!(ours.shape, [1, 6]);
        assert_eq!(ours.data, TensorData::F32(vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
        let odd = FileTensor::f32([5, 1], vec![0.0; 5]);
        for channels in [0, 3] {
            assert!(to_ours(odd.clone(), &Part::Flattened(channels)).unwrap_err().contains("no flattened image"));
        }
    }
}
