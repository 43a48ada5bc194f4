//! Models: a network with its weights, its preprocessing and its classes.

use crate::array::{self, Images};
use crate::device::DeviceArgument;
use crate::error::{Error, detached, lock};
use crate::plan::Plan;
use crate::policy::PolicyArgument;
use crate::training::{OptimizerKeywords, check, options};
use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use thawline::formats;
use thawline::gpu;
use thawline::graph::{Graph, LayerId, Role};
use thawline::model::{self, Options, Size};
use thawline::models::MODELS;
use thawline::plan::Input;
use thawline::preprocessing::{Interpolation, Parts, Preprocessing, Resize};
use thawline::report::trained_values;
use thawline::tensor::HostTensor;
use thawline::train::{Evaluator, PADDING, Totals};
use thawline::weights::{self, Config, Head};

/// Images that are shown to a network at once, where the caller does not say.
const BATCH: usize = 32;

/// A network with its weights, how images are prepared for it, and its classes. It never changes: training gives another.
#[pyclass(frozen, module = "thawline")]
pub struct Model {
    network: Arc<Network>,
    weights: Arc<Vec<HostTensor>>,
    /// Of the images that it is made for, or was trained with.
    size: Size,
    evaluator: Mutex<Option<Kept>>,
}

/// What models with the same network share.
pub struct Network {
    /// Without its weights.
    inner: model::Model,
    /// What keeps the file that it came from, of which a Keras file that is written is a copy.
    _file: Option<Py<PyAny>>,
}

impl Network {
    pub fn build(&self, batch: usize, size: Size) -> Result<Graph, Error> {
        Ok(self.inner.network(batch, size)?)
    }

    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    pub fn preprocessing(&self) -> Preprocessing {
        self.inner.spec.preprocessing.value
    }

    pub fn classes(&self) -> usize {
        self.inner.classes
    }
}

/// The evaluator of the last call, whose kernels are compiled and whose weights are on the device.
struct Kept {
    device: gpu::Device,
    size: Size,
    batch: usize,
    evaluator: Arc<Mutex<Evaluator>>,
}

impl Kept {
    fn serves(&self, device: &gpu::Device, size: Size, batch: usize) -> bool {
        std::ptr::eq(self.device.info(), device.info()) && self.size == size && self.batch == batch
    }
}

/// Height and width, or one number for both.
#[derive(FromPyObject)]
pub enum SizeArgument {
    Square(usize),
    Pair(usize, usize),
}

impl From<SizeArgument> for Size {
    fn from(size: SizeArgument) -> Self {
        match size {
            SizeArgument::Square(side) => (side, side).into(),
            SizeArgument::Pair(height, width) => (height, width).into(),
        }
    }
}

/// The keywords that say of a model what its file does not, or not rightly.
struct Keywords {
    model: Option<String>,
    classes: Option<usize>,
    size: Option<Size>,
    head: Head,
    seed: u64,
    class_names: Option<Vec<String>>,
    preprocessing: Parts,
}

impl Keywords {
    fn options(&self) -> Result<Options, Error> {
        Ok(Options {
            spec: self.model.as_deref().map(model::spec).transpose()?,
            classes: self.classes.or(self.class_names.as_ref().map(Vec::len)),
            preprocessing: self.preprocessing,
            size: self.size,
            head: self.head,
            seed: self.seed,
        })
    }

    /// Takes the weights out of `inner`.
    fn finish(self, mut inner: model::Model, file: Option<Py<PyAny>>) -> Result<Model, Error> {
        if let Some(names) = self.class_names {
            if names.len() != inner.classes {
                let (named, classes) = (names.len(), inner.classes);
                return Err(Error::argument(format!("class_names has {named} names for {classes} classes")));
            }
            inner.class_names = Some(names);
        }
        let size = inner.size(self.size);
        let network = inner.network(1, size)?;
        let weights = Arc::new(inner.tensors(&network)?);
        Ok(Model { network: Arc::new(Network { inner, _file: file }), weights, size, evaluator: Mutex::default() })
    }
}

fn parse_head(head: &str) -> Result<Head, Error> {
    match head {
        "required" => Ok(Head::Required),
        "optional" => Ok(Head::Optional),
        "new" => Ok(Head::New),
        other => Err(Error::argument(format!("head: expected \"required\", \"optional\" or \"new\", not {other:?}"))),
    }
}

/// The parts of a preprocessing that a dict names, as `Model.preprocessing` has them.
fn parse_parts(dict: Option<&Bound<'_, PyDict>>) -> PyResult<Parts> {
    let mut parts = Parts::default();
    for (part, value) in dict.into_iter().flatten() {
        let part: String = part.extract()?;
        match part.as_str() {
            "resize" => parts.resize = Some(named(&part, &value, Resize::of_name)?),
            "interpolation" => parts.interpolation = Some(named(&part, &value, Interpolation::of_name)?),
            "crop" => parts.crop = Some(value.extract()?),
            "mean" => parts.mean = Some(value.extract()?),
            "std" => parts.std = Some(value.extract()?),
            "bgr" => parts.bgr = Some(value.extract()?),
            _ => {
                let known = "resize, crop, interpolation, mean, std and bgr";
                return Err(Error::argument(format!("preprocessing has no part `{part}`; there are {known}")).into());
            }
        }
    }
    let whole = Preprocessing {
        crop: parts.crop.unwrap_or(1.0),
        mean: parts.mean.unwrap_or([0.0; 3]),
        std: parts.std.unwrap_or([1.0; 3]),
        ..Preprocessing::default()
    };
    whole.check().map_err(|error| Error::argument(format!("preprocessing: {error}")))?;
    Ok(parts)
}

fn named<T>(part: &str, value: &Bound<'_, PyAny>, of_name: fn(&str) -> Option<T>) -> PyResult<T> {
    let name: String = value.extract()?;
    let unknown = || Error::argument(format!("preprocessing: there is no {part} `{name}`"));
    Ok(of_name(&name).ok_or_else(unknown)?)
}

#[pymethods]
impl Model {
    /// Opens a weights file: safetensors, PyTorch's, Keras's or ONNX.
    ///
    /// Args:
    ///     path: The file.
    ///     model: The network, by a name of `models()` or a graph file, where the file does not tell.
    ///     classes: The number of classes; where the file's head has others, it starts anew.
    ///     size: Of the images, in pixels: a number, or (height, width).
    ///     head: "required"; "optional" starts a missing head anew; "new" starts it anew in any case.
    ///     seed: Of weights that start anew.
    ///     class_names: In the order of the labels.
    ///     preprocessing: Parts of `Model.preprocessing` that replace the file's.
    ///     weights_set: Of a checkpoint that holds several sets of weights, the name of one.
    #[staticmethod]
    #[pyo3(signature = (
        path, model=None, classes=None, *, size=None, head="required", seed=0, class_names=None, preprocessing=None,
        weights_set=None, _file=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords")]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        model: Option<String>,
        classes: Option<usize>,
        size: Option<SizeArgument>,
        head: &str,
        seed: u64,
        class_names: Option<Vec<String>>,
        preprocessing: Option<&Bound<'_, PyDict>>,
        weights_set: Option<&str>,
        _file: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let (head, preprocessing) = (parse_head(head)?, parse_parts(preprocessing)?);
        let size = size.map(Size::from);
        let keywords = Keywords { model, classes, size, head, seed, class_names, preprocessing };
        detached(py, || {
            let inner = model::Model::of(formats::open(&path, weights_set)?, keywords.options()?)?;
            keywords.finish(inner, _file)
        })
    }

    /// A network by name, or of a graph file, with random weights.
    ///
    /// Args:
    ///     name: A name of `models()`, or the path of a graph file.
    ///     classes: The number of classes; without it, the network's own.
    ///     seed: What the weights follow from.
    ///     size: Of the images, in pixels: a number, or (height, width).
    ///     class_names: In the order of the labels.
    ///     preprocessing: Parts of `Model.preprocessing` that replace the network's.
    #[staticmethod]
    #[pyo3(signature = (name, classes=None, seed=0, *, size=None, class_names=None, preprocessing=None))]
    fn new(
        py: Python<'_>,
        name: String,
        classes: Option<usize>,
        seed: u64,
        size: Option<SizeArgument>,
        class_names: Option<Vec<String>>,
        preprocessing: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let (model, preprocessing) = (Some(name), parse_parts(preprocessing)?);
        let size = size.map(Size::from);
        let keywords = Keywords { model, classes, size, head: Head::Required, seed, class_names, preprocessing };
        detached(py, || {
            let inner = model::Model::anew(keywords.options()?)?;
            keywords.finish(inner, None)
        })
    }

    /// The model of tensors by PyTorch's names: what `state_dict()` gives, as arrays. The network is found by names and
    /// shapes, unless `model` says it.
    ///
    /// Args:
    ///     state: Arrays by name, in PyTorch's layouts: a convolution [out, in of a group, height, width].
    ///     config: What timm's config.json would say, as its text.
    ///     model, classes, size, head, seed, class_names, preprocessing: As in `open`.
    #[staticmethod]
    #[pyo3(signature = (
        state, model=None, classes=None, *, size=None, head="required", seed=0, class_names=None, preprocessing=None,
        config=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords")]
    fn from_state_dict(
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        model: Option<String>,
        classes: Option<usize>,
        size: Option<SizeArgument>,
        head: &str,
        seed: u64,
        class_names: Option<Vec<String>>,
        preprocessing: Option<&Bound<'_, PyDict>>,
        config: Option<&str>,
    ) -> PyResult<Self> {
        let (head, preprocessing) = (parse_head(head)?, parse_parts(preprocessing)?);
        let size = size.map(Size::from);
        let keywords = Keywords { model, classes, size, head, seed, class_names, preprocessing };
        let state = array::state_dict(state)?;
        detached(py, || {
            let config = match config.map(|text| Config::parse(text.as_bytes())) {
                Some(None) => return Err(Error::argument("config is not the text of a config.json of timm")),
                config => config.flatten().unwrap_or_default(),
            };
            let inner = model::Model::of_configured(state, keywords.options()?, config)?;
            keywords.finish(inner, None)
        })
    }

    /// The network's name.
    #[getter]
    fn name(&self) -> &str {
        self.network.name()
    }

    /// The framework whose network it is, with the preprocessing that it has there: "torchvision", "timm" or "Keras"; None of
    /// others.
    #[getter]
    fn library(&self) -> Option<&'static str> {
        self.network.inner.spec.library()
    }

    /// The number of classes.
    #[getter]
    fn classes(&self) -> usize {
        self.network.classes()
    }

    /// The names of the classes in the order of their labels; None if nobody says.
    #[getter]
    fn class_names(&self) -> Option<Vec<String>> {
        self.network.inner.class_names.clone()
    }

    /// Height and width of the images that the model is made for, or was trained with, in pixels.
    #[getter]
    fn size(&self) -> (usize, usize) {
        self.size.pair()
    }

    /// How an image becomes the network's input: `resize`, `crop`, `interpolation`, and `mean`, `std` and `bgr` of values
    /// from 0 to 1.
    #[getter]
    fn preprocessing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Preprocessing { resize, crop, interpolation, mean, std, bgr } = self.network.preprocessing();
        let dict = PyDict::new(py);
        dict.set_item("resize", resize.name())?;
        dict.set_item("crop", crop)?;
        dict.set_item("interpolation", interpolation.name())?;
        dict.set_item("mean", mean)?;
        dict.set_item("std", std)?;
        dict.set_item("bgr", bgr)?;
        Ok(dict)
    }

    /// What there is to know of how the file was understood, a sentence each.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.network.inner.notes.clone()
    }

    /// The number of values that training may change.
    #[getter]
    fn parameters(&self) -> Result<usize, Error> {
        Ok(trained_values(&self.network.build(1, self.size)?).all)
    }

    /// The layers in the order in which they run, a dict each.
    ///
    /// `number` (as `index:` selectors write it), `name`, `kind`, `block` (or None), `output` (height, width, channels) and
    /// `parameters` (how many values training may change).
    fn layers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let network = detached(py, || self.network.build(1, self.size))?;
        let found = PyList::empty(py);
        for (index, layer) in network.layers().iter().enumerate() {
            let [_, height, width, channels] = layer.shape.0;
            let dict = PyDict::new(py);
            dict.set_item("number", network.number(LayerId::new(index)))?;
            dict.set_item("name", &layer.name)?;
            dict.set_item("kind", layer.kind.name())?;
            dict.set_item("block", layer.block.as_deref())?;
            dict.set_item("output", (height, width, channels))?;
            dict.set_item("parameters", parameters(&network, &layer.params))?;
            found.append(dict)?;
        }
        Ok(found)
    }

    /// The weights as NumPy arrays by PyTorch's names and in PyTorch's layouts, copied: float32, and int64 where batches
    /// are counted.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = detached(py, || Ok(weights::to_state(&self.network.build(1, self.size)?, &self.weights)))?;
        array::dict(py, state)
    }

    /// The weights as torch tensors on the CPU, for a module's `load_state_dict`.
    fn to_torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("thawline.bridges")?.call_method1("to_torch", (slf,))
    }

    /// Puts the weights into a torch module of the same network, or into a Keras model.
    fn load_into(slf: &Bound<'_, Self>, target: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.py().import("thawline.bridges")?.call_method1("load_into", (slf, target)).map(drop)
    }

    /// Writes the model: as ONNX where `path` ends in .onnx, as a copy of the Keras file that it came from where it is
    /// named as one, else as safetensors. Whatever was at `path` is replaced at once, or not at all.
    ///
    /// Returns:
    ///     What there is to know of the file, a sentence each.
    pub fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
        detached(py, || {
            let network = self.network.build(1, self.size)?;
            Ok(self.network.inner.save(&network, &self.weights, &path)?)
        })
    }

    /// Writes the weights into a copy of the Keras file `template`.
    fn _save_copy(&self, py: Python<'_>, template: PathBuf, path: PathBuf) -> PyResult<Vec<String>> {
        detached(py, || {
            let state = weights::to_state(&self.network.build(1, self.size)?, &self.weights);
            Ok(formats::save(&state, Some(&template), &path)?)
        })
    }

    /// The logits of images under the running statistics: float32 [N, classes].
    ///
    /// Args:
    ///     images: float32 [N, 3, height, width], normalised as the network takes them; or uint8 [N, height, width, 3],
    ///         RGB pixels of the network's size, which are normalised by the model's mean and std. As many as you like.
    ///     batch: How many are shown to the network at once.
    ///     device: A `Device`, a number of `devices()` or a part of a name; the fastest kind of device by default.
    #[pyo3(signature = (images, *, batch=None, device=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        batch: Option<usize>,
        device: Option<DeviceArgument>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        array::rows(py, self.run(py, images, batch, device)?, self.network.classes())
    }

    /// The probabilities of the classes, softmax of the `logits`: float32 [N, classes]. Takes what `logits` takes.
    #[pyo3(signature = (images, *, batch=None, device=None))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        batch: Option<usize>,
        device: Option<DeviceArgument>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let classes = self.network.classes();
        let mut values = self.run(py, images, batch, device)?;
        for row in values.chunks_exact_mut(classes) {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f64> = row.iter().map(|&logit| f64::from(logit - greatest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            row.iter_mut().zip(powers).for_each(|(to, power)| *to = (power / sum) as f32);
        }
        array::rows(py, values, classes)
    }

    /// Loss and accuracy on labelled images under the running statistics.
    ///
    /// Args:
    ///     images, batch, device: As in `logits`.
    ///     labels: Integers [N], the classes from 0.
    ///
    /// Returns:
    ///     A dict: `loss`, the mean cross-entropy in nats; `top1` and `top5`, shares from 0 to 1; `samples`.
    #[pyo3(signature = (images, labels, *, batch=None, device=None))]
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        labels: &Bound<'py, PyAny>,
        batch: Option<usize>,
        device: Option<DeviceArgument>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let images = Images::new(images, self.network.preprocessing())?;
        let labels = array::labels(labels, images.count, self.network.classes())?;
        let (evaluator, batch) = self.evaluator(py, &images, batch, device)?;
        totals(
            py,
            evaluate(py, &images, &labels, batch, |values, labels| {
                let images = thawline::train::Images::Values(values);
                Ok(lock(&evaluator)?.evaluate(images, labels)?)
            })?,
        )
    }

    /// What a training step under a policy costs, before anything runs. Needs no device.
    ///
    /// Args:
    ///     policy: A `Policy`, the name of a recipe, or a policy file's.
    ///     batch: Images a step.
    ///     size: Of the images, in pixels: a number, or (height, width).
    ///     optimizer: "sgd" or "adamw".
    ///     momentum: Of sgd, 0.9 by default; without momentum there is no state to keep.
    ///     accumulate: Batches an optimiser step.
    #[pyo3(signature = (policy, *, batch=BATCH, size=None, optimizer="sgd", momentum=None, accumulate=1))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords")]
    fn plan(
        &self,
        py: Python<'_>,
        policy: PolicyArgument,
        batch: usize,
        size: Option<SizeArgument>,
        optimizer: &str,
        momentum: Option<f32>,
        accumulate: usize,
    ) -> PyResult<Plan> {
        let keywords =
            OptimizerKeywords { optimizer, momentum, nesterov: false, weight_decay: None, betas: None, eps: None };
        let options = options(keywords.optimizer()?, accumulate)?;
        let (policy, size) = (policy.load()?, size.map_or(self.size, Size::from));
        detached(py, || {
            let network = self.network.build(batch, size)?;
            Plan::new(self.name(), &policy, &network, &options, self.network.inner.input())
        })
    }

    fn __repr__(&self) -> String {
        let (classes, size) = (self.network.classes(), self.size);
        format!("<thawline.Model {}, {classes} classes, {size} px>", self.name())
    }
}

impl Model {
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    pub fn weights(&self) -> &Arc<Vec<HostTensor>> {
        &self.weights
    }

    /// The library's model with these weights, for a run to start from.
    pub fn to_start(&self) -> Result<model::Model, Error> {
        let inner = &self.network.inner;
        let network = self.network.build(1, self.size)?;
        let mut start = inner.without_weights();
        start.state = Some(weights::to_state(&network, &self.weights));
        start.class_names.clone_from(&inner.class_names);
        Ok(start)
    }

    /// The size asked for, or the model's own.
    pub fn size_or(&self, asked: Option<SizeArgument>) -> Size {
        asked.map_or(self.size, Size::from)
    }

    /// The same network with other weights.
    pub fn trained(network: &Arc<Network>, weights: Vec<HostTensor>, size: Size) -> Self {
        Self { network: Arc::clone(network), weights: Arc::new(weights), size, evaluator: Mutex::default() }
    }

    /// The logits of images, batch by batch.
    fn run(
        &self,
        py: Python<'_>,
        images: &Bound<'_, PyAny>,
        batch: Option<usize>,
        device: Option<DeviceArgument>,
    ) -> PyResult<Vec<f32>> {
        let images = Images::new(images, self.network.preprocessing())?;
        let (evaluator, batch) = self.evaluator(py, &images, batch, device)?;
        let mut logits = Vec::with_capacity(images.count * self.network.classes());
        for first in (0..images.count).step_by(batch) {
            let (values, valid) = images.batch(first, batch)?;
            let found = detached(py, || Ok(lock(&evaluator)?.logits(thawline::train::Images::Values(&values))?))?;
            logits.extend_from_slice(&found[..valid * self.network.classes()]);
            py.check_signals()?;
        }
        Ok(logits)
    }

    /// The evaluator for so many images, and its batch.
    fn evaluator(
        &self,
        py: Python<'_>,
        images: &Images<'_>,
        batch: Option<usize>,
        device: Option<DeviceArgument>,
    ) -> PyResult<(Arc<Mutex<Evaluator>>, usize)> {
        // Few different ones, so that kernels are not compiled for each number of images.
        let batch = batch.unwrap_or_else(|| images.count.next_power_of_two().min(BATCH));
        check(batch > 0, "batch", batch as f64, "at least 1")?;
        let (device, size) = (DeviceArgument::open(py, device)?, images.size);
        let evaluator = detached(py, || {
            let mut kept = lock(&self.evaluator)?;
            if let Some(kept) = kept.as_ref().filter(|kept| kept.serves(&device, size, batch)) {
                return Ok(Arc::clone(&kept.evaluator));
            }
            // Two networks of a size need not fit on a device together.
            *kept = None;
            let network = self.network.build(batch, size)?;
            let evaluator = Evaluator::new(&device, &network, &self.weights, Input::Values)?;
            let evaluator = Arc::new(Mutex::new(evaluator));
            *kept = Some(Kept { device, size, batch, evaluator: Arc::clone(&evaluator) });
            Ok(evaluator)
        })?;
        Ok((evaluator, batch))
    }
}

/// Loss and hits of all images, batch by batch, where `show` evaluates one.
pub fn evaluate(
    py: Python<'_>,
    images: &Images<'_>,
    labels: &[u32],
    batch: usize,
    show: impl Fn(&[f32], &[u32]) -> Result<Totals, Error> + Sync,
) -> PyResult<Totals> {
    let mut totals = Totals::default();
    for (first, labels) in (0..images.count).step_by(batch).zip(labels.chunks(batch)) {
        let (values, _) = images.batch(first, batch)?;
        let mut labels = labels.to_vec();
        labels.resize(batch, PADDING);
        totals += detached(py, || show(&values, &labels))?;
        py.check_signals()?;
    }
    Ok(totals)
}

/// As a dict; of no sample, the means are None.
pub fn totals(py: Python<'_>, totals: Totals) -> PyResult<Bound<'_, PyDict>> {
    let of = |mean: f64| (totals.samples > 0).then_some(mean);
    let dict = PyDict::new(py);
    dict.set_item("loss", of(totals.mean_loss()))?;
    dict.set_item("top1", of(totals.accuracy()))?;
    dict.set_item("top5", of(totals.top5_accuracy()))?;
    dict.set_item("samples", totals.samples)?;
    Ok(dict)
}

/// How many values of a layer's parameters training may change.
fn parameters(network: &Graph, params: &[thawline::graph::ParamId]) -> usize {
    let values = |&param: &thawline::graph::ParamId| {
        let param = network.param(param);
        let [height, width, _, out] = param.shape.0;
        match param.role {
            Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight => height * width * param.channels * out,
            Role::Bias | Role::Scale | Role::ImageScale => out,
            Role::Affine => 2 * out,
            Role::Moments => 0,
        }
    };
    params.iter().map(values).sum()
}

/// The networks that have a name, a dict each: `name`, `library`, `size` (height, width) and `classes`.
#[pyfunction]
pub fn models(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let found = PyList::empty(py);
    for spec in MODELS.iter() {
        let dict = PyDict::new(py);
        dict.set_item("name", spec.name.as_ref())?;
        dict.set_item("library", spec.library())?;
        dict.set_item("size", spec.size())?;
        dict.set_item("classes", spec.default_classes)?;
        found.append(dict)?;
    }
    Ok(found)
}
