//! Training, batch by batch.

use crate::array::{self, Images};
use crate::device::{Device, DeviceArgument};
use crate::error::{Error, detached, lock};
use crate::model::{Model, Network, SizeArgument, evaluate, totals};
use crate::policy::PolicyArgument;
use crate::training::{OptimizerKeywords, check, options};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use thawline::compile;
use thawline::graph::{ParamId, StateKind};
use thawline::model::Size;
use thawline::plan::Input;
use thawline::policy;
use thawline::tensor::HostTensor;
use thawline::train::{self, Evaluator, OptimizerState, PADDING, takes_batch_statistics};
use thawline::weights::{self, FileTensor};

/// A training run on a device: a network compiled for a policy, and nothing else than what that trains.
///
/// Args:
///     model: What is trained. It stays as it is; `Session.model()` gives the trained one.
///     policy: A `Policy`, the name of a recipe, or a policy file's.
///     optimizer: "sgd" or "adamw".
///     lr: The learning rate of steps that name none; `Session.lr` changes it.
///     batch: Images a step.
///     size: Of the images, in pixels: a number, or (height, width).
///     momentum, nesterov: Of sgd; the momentum is 0.9 by default.
///     betas, eps: Of adamw.
///     weight_decay: Shrinks the weights of convolutions and linear layers, never biases or batch norms; 0 for sgd and 0.01
///         for adamw by default.
///     accumulate: Batches that are added up to one optimiser step.
///     label_smoothing: The share of the target that is spread over all classes, from 0 up to 1.
///     class_weights: A weight a class in the loss, as PyTorch's `CrossEntropyLoss(weight)`.
///     stage: Of a policy that changes in the course of a run, which part; the first by default.
///     seed: Of what dropout drops.
///     device: A `Device`, a number of `devices()` or a part of a name; the fastest kind of device by default.
#[pyclass(frozen, module = "thawline")]
pub struct Session {
    state: Mutex<State>,
    network: Arc<Network>,
    policy: String,
    batch: usize,
    size: Size,
    /// Whether a batch may not be filled up, as its statistics are taken.
    whole: bool,
}

struct State {
    session: train::Session,
    /// Of the weights after so many steps.
    evaluator: Option<(Evaluator, u64)>,
    lr: f64,
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (
        model, policy, *, optimizer="sgd", lr=0.01, batch=32, size=None, momentum=None, nesterov=false, betas=None, eps=None,
        weight_decay=None, accumulate=1, label_smoothing=0.0, class_weights=None, stage=0, seed=0, device=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords")]
    fn new(
        py: Python<'_>,
        model: &Bound<'_, Model>,
        policy: PolicyArgument,
        optimizer: &str,
        lr: f64,
        batch: usize,
        size: Option<SizeArgument>,
        momentum: Option<f32>,
        nesterov: bool,
        betas: Option<(f64, f64)>,
        eps: Option<f32>,
        weight_decay: Option<f32>,
        accumulate: usize,
        label_smoothing: f32,
        class_weights: Option<Vec<f64>>,
        stage: usize,
        seed: u64,
        device: Option<DeviceArgument>,
    ) -> PyResult<Self> {
        check_lr(lr)?;
        let share = (0.0..1.0).contains(&label_smoothing);
        let expected = "a number from 0 up to, but not including, 1";
        check(share, "label_smoothing", f64::from(label_smoothing), expected)?;
        let weights = class_weights.as_deref().unwrap_or_default();
        if let Some(&weight) = weights.iter().find(|weight| !(**weight >= 0.0 && weight.is_finite())) {
            check(false, "class_weights", weight, "numbers of at least 0")?;
        }
        let keywords = OptimizerKeywords { optimizer, momentum, nesterov, weight_decay, betas, eps };
        let options = options(keywords.optimizer()?, accumulate)?;
        let class_weighted = class_weights.is_some();
        let options = compile::Options { label_smoothing, class_weights: class_weighted, seed, ..options };
        let policy = policy.load()?;
        let device = DeviceArgument::open(py, device)?;
        let model = model.get();
        let (network, size) = (Arc::clone(model.network()), model.size_or(size));
        detached(py, || {
            let mut stages = policy::resolve_stages(&policy, &network.build(batch, size)?)?;
            if stage >= stages.len() {
                let last = stages.len() - 1;
                return Err(Error::argument(format!("stage is {stage}: {} has stages 0 to {last}", policy.name)));
            }
            let (_, resolved) = stages.swap_remove(stage);
            resolved.check_training(accumulate)?;
            for warning in &resolved.warnings {
                log::warn!("{warning}");
            }
            let whole = takes_batch_statistics(&resolved.graph);
            let mut session = train::Session::new(&device, resolved.graph, model.weights(), Input::Values, options)?;
            if let Some(weights) = &class_weights {
                session.set_class_weights(weights)?;
            }
            let state = Mutex::new(State { session, evaluator: None, lr });
            Ok(Self { state, network, policy: policy.name, batch, size, whole })
        })
    }

    /// The learning rate of steps that name none.
    #[getter]
    fn lr(&self, py: Python<'_>) -> PyResult<f64> {
        detached(py, || Ok(lock(&self.state)?.lr))
    }

    #[setter]
    fn set_lr(&self, py: Python<'_>, lr: f64) -> PyResult<()> {
        check_lr(lr)?;
        detached(py, || {
            lock(&self.state)?.lr = lr;
            Ok(())
        })
    }

    /// Images a step.
    #[getter]
    fn batch(&self) -> usize {
        self.batch
    }

    /// Height and width of the images, in pixels.
    #[getter]
    fn size(&self) -> (usize, usize) {
        self.size.pair()
    }

    /// The policy's name.
    #[getter]
    fn policy(&self) -> &str {
        &self.policy
    }

    /// Optimiser steps done.
    #[getter]
    fn steps(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, || Ok(lock(&self.state)?.session.steps()))
    }

    /// Device memory of the step, in bytes, parameters and optimiser state included.
    #[getter]
    fn memory(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, || Ok(lock(&self.state)?.session.plan().bytes()))
    }

    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<Device> {
        Ok(Device { inner: detached(py, || Ok(lock(&self.state)?.session.device().clone()))? })
    }

    /// Trains on one batch, and waits for the result.
    ///
    /// Args:
    ///     images: float32 [batch, 3, height, width], normalised as the network takes them; or uint8 [batch, height, width,
    ///         3], RGB pixels of the session's size, which are normalised by the model's mean and std. Fewer than a batch
    ///         only where the policy takes no statistics of a batch.
    ///     labels: Integers [batch], the classes from 0.
    ///     lr: The learning rate of this step.
    ///
    /// Returns:
    ///     A dict, of the weights before the step: `loss`, the mean cross-entropy in nats; `top1` and `top5`, shares from 0
    ///     to 1; `samples`. All means are None where the policy takes several batches together and waits for more.
    #[pyo3(signature = (images, labels, lr=None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        labels: &Bound<'py, PyAny>,
        lr: Option<f64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        lr.map_or(Ok(()), check_lr)?;
        let images = self.images(images)?;
        let mut labels = array::labels(labels, images.count, self.network.classes())?;
        let (count, batch) = (images.count, self.batch);
        if count > batch || (count < batch && self.whole) {
            let only = if count > batch { "" } else { ", and the statistics of a batch are taken of whole ones" };
            return Err(Error::image(format!("there are {count} images, but a step takes {batch}{only}")).into());
        }
        labels.resize(batch, PADDING);
        let (values, _) = images.batch(0, batch)?;
        let done = detached(py, || {
            let mut state = lock(&self.state)?;
            let lr = lr.unwrap_or(state.lr);
            Ok(state.session.step(train::Images::Values(&values), &labels, lr)?)
        })?;
        totals(py, done)
    }

    /// Loss and accuracy on labelled images under the running statistics, with the weights as they are now.
    ///
    /// Takes any number of images, in the forms of `step`; returns a dict of the same form.
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        labels: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let images = self.images(images)?;
        let labels = array::labels(labels, images.count, self.network.classes())?;
        let found = evaluate(py, &images, &labels, self.batch, |values, labels| {
            let mut state = lock(&self.state)?;
            let State { session, evaluator, .. } = &mut *state;
            let steps = session.steps();
            let (evaluator, _) = match evaluator {
                Some(known) => {
                    if known.1 != steps {
                        known.0.refresh()?;
                        known.1 = steps;
                    }
                    known
                }
                None => evaluator.insert((session.evaluator(self.batch)?, steps)),
            };
            Ok(evaluator.evaluate(train::Images::Values(values), labels)?)
        })?;
        totals(py, found)
    }

    /// The model with the weights as they are now.
    fn model(&self, py: Python<'_>) -> PyResult<Model> {
        let weights = detached(py, || Ok(lock(&self.state)?.session.parameters()?))?;
        Ok(Model::trained(&self.network, weights, self.size))
    }

    /// Writes the model with the weights as they are now, as `Model.save` does.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
        self.model(py)?.save(py, path)
    }

    /// The optimiser's state, to go on later: a dict of `steps`, and of `first_moment` (sgd's momentum) and `second_moment`
    /// as arrays by the names of the tensors that they belong to.
    fn optimizer_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (steps, moments) = detached(py, || {
            let state = lock(&self.state)?;
            let network = state.session.network();
            let file = |OptimizerState { kind, param, tensor }: OptimizerState| {
                weights::to_file(network, network.param(param), &tensor.data).into_iter().map(move |file| (kind, file))
            };
            let moments: Vec<_> = state.session.optimizer_state()?.into_iter().flat_map(file).collect();
            Ok((state.session.steps(), moments))
        })?;
        let dict = PyDict::new(py);
        dict.set_item("steps", steps)?;
        for (kind, key) in MOMENTS {
            let of_kind = PyDict::new(py);
            for (_, (name, tensor)) in moments.iter().filter(|(of, _)| *of == kind) {
                of_kind.set_item(name, array::array(py, tensor.clone())?)?;
            }
            dict.set_item(key, of_kind)?;
        }
        Ok(dict)
    }

    /// Goes on where another session of the same model, policy and optimiser was when its `optimizer_state` was taken.
    fn load_optimizer_state(&self, py: Python<'_>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        let missing = |key| Error::argument(format!("the optimiser's state has no `{key}`"));
        let steps: u64 = state.get_item("steps")?.ok_or_else(|| missing("steps"))?.extract()?;
        let mut given = Vec::new();
        for (kind, key) in MOMENTS {
            let of_kind = state.get_item(key)?.ok_or_else(|| missing(key))?;
            let of_kind = of_kind.cast_into::<PyDict>()?;
            if !of_kind.is_empty() {
                given.push((kind, array::state_dict(&of_kind)?.tensors));
            }
        }
        detached(py, || {
            let mut state = lock(&self.state)?;
            let network = state.session.network();
            let mut states = Vec::new();
            for (kind, tensors) in given {
                let is_given = |param: &&ParamId| {
                    let parts = weights::to_file(network, network.param(**param), &zeros(network, **param).data);
                    parts.iter().all(|(name, _)| tensors.contains_key(name))
                };
                let all: Vec<ParamId> = (0..network.params().len()).map(ParamId::new).collect();
                let params: Vec<ParamId> = all.iter().filter(is_given).copied().collect();
                // The library takes whole networks: what is not given is zero, and left out again.
                let nothing: Vec<HostTensor> = all.iter().map(|&param| zeros(network, param)).collect();
                let mut whole = weights::to_state(network, &nothing);
                whole.tensors.extend::<Vec<(String, FileTensor)>>(tensors.into_iter().collect());
                let tensors = weights::from_state(network, whole, 0).map_err(train::TrainError::from)?.tensors;
                let state = |param: ParamId| OptimizerState { kind, param, tensor: tensors[param.index()].clone() };
                states.extend(params.into_iter().map(state));
            }
            Ok(state.session.restore(steps, &states)?)
        })
    }

    fn __repr__(&self) -> String {
        format!("<thawline.Session of {} under {}, batches of {}>", self.network.name(), self.policy, self.batch)
    }
}

/// The optimiser's state and its names in Python.
const MOMENTS: [(StateKind, &str); 2] =
    [(StateKind::FirstMoment, "first_moment"), (StateKind::SecondMoment, "second_moment")];

fn zeros(network: &thawline::graph::Graph, param: ParamId) -> HostTensor {
    HostTensor::zeros(network.param(param).shape)
}

fn check_lr(lr: f64) -> Result<(), Error> {
    check(lr >= 0.0 && lr.is_finite(), "lr", lr, "a number of at least 0")
}

impl Session {
    /// Images of the session's size.
    fn images<'py>(&self, images: &Bound<'py, PyAny>) -> PyResult<Images<'py>> {
        let images = Images::new(images, self.network.preprocessing())?;
        if images.size != self.size {
            let (found, expected) = (images.size, self.size);
            return Err(Error::image(format!(
                "the images are of {found} px, but the session is for {expected} px: resize them, or make a session with \
                 size={:?}",
                found.pair()
            ))
            .into());
        }
        Ok(images)
    }
}
