//! Training and evaluating a network on a device, batch by batch.

use super::finite::{check_finite, not_finite};
use super::fitting::executor;
use super::{FeatureCache, Features, TrainError};
use crate::compile::{self, Optimizer, Options};
use crate::data::Loader;
use crate::gpu::{Device, Executor, Parameters, block};
use crate::graph::{Graph, Output, ParamId, Phase, StateKind, Stats, StatsUpdate};
use crate::kernels::StepScalars;
use crate::plan::{Input, Place, Plan, SlotId, Storage};
use crate::tensor::HostTensor;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// A batch of images, in the form that the plan's [`Input`] says.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// Normalised values, NHWC with the channels padded to four.
    Values(&'a [f32]),
    /// RGBX bytes, NHWC.
    Bytes(&'a [u8]),
    /// By their numbers in the set whose [`Features`] are kept; fewer than a batch if its end is padding.
    Kept(&'a [usize]),
}

impl Images<'_> {
    const fn form(self) -> &'static str {
        match self {
            Self::Values(_) => "values",
            Self::Bytes(_) => "bytes",
            Self::Kept(_) => "numbers of kept features",
        }
    }
}

/// The label of a sample that only fills up a batch: it has no loss, no gradient and no hit.
pub const PADDING: u32 = u32::MAX;

/// What an optimiser step takes together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepWindow {
    /// Micro-batches.
    pub batches: usize,
    /// What the summed loss of all of them is divided by: the number of their samples that count, those labelled
    /// [`PADDING`] do not, or the sum of their labels' [class weights](Session::set_class_weights).
    pub weight: f64,
}

/// Whether a step of the network takes the moments of a batch: a batch norm normalises by them, or moves its running
/// statistics by them. Then no batch may be filled up with padding.
pub fn takes_batch_statistics(network: &Graph) -> bool {
    let mut modes = network.layers().iter().filter_map(|layer| layer.setting.batch_norm);
    modes.any(|mode| mode.stats != Stats::Running || mode.update != StatsUpdate::Off)
}

/// Loss and hits, summed over samples.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    #[serde(with = "super::number")]
    pub loss: f64,
    pub top1: u64,
    pub top5: u64,
    pub samples: u64,
}

impl Totals {
    /// Sums the rows of a batch whose first `samples` rows count.
    pub(super) fn new(rows: &[f32], samples: usize) -> Self {
        let mut totals = Self { samples: samples as u64, ..Self::default() };
        for row in rows.chunks_exact(4).take(samples) {
            totals.loss += f64::from(row[0]);
            totals.top1 += u64::from(row[1] > 0.0);
            totals.top5 += u64::from(row[2] > 0.0);
        }
        totals
    }

    /// The mean loss a sample, in nats.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.samples as f64
    }

    /// The share of samples whose class has the greatest logit, in `[0, 1]`.
    pub fn accuracy(&self) -> f64 {
        self.top1 as f64 / self.samples as f64
    }

    /// The share of samples whose class is among the five greatest logits, in `[0, 1]`.
    pub fn top5_accuracy(&self) -> f64 {
        self.top5 as f64 / self.samples as f64
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.samples += other.samples;
    }
}

/// Optimiser state of one parameter on the host.
#[derive(Clone, PartialEq, Debug)]
pub struct OptimizerState {
    pub kind: StateKind,
    pub param: ParamId,
    pub tensor: HostTensor,
}

/// A training run: one plan for the step, the parameters and the optimiser's state on a device.
pub struct Session {
    device: Device,
    network: Graph,
    options: Options,
    params: Parameters,
    executor: Executor,
    input: Input,
    slots: Slots,
    features: Option<Arc<Features>>,
    /// Optimiser steps done.
    steps: u64,
    /// Micro-batches handed over of the step under way.
    micro: usize,
    /// Those that the plan takes together, before it runs: all of a step's, or one.
    gathered: usize,
    /// By label; empty if each sample counts the same.
    class_weights: Vec<f64>,
    /// Samples that count of each micro-batch that was handed over and has not run.
    counted: Vec<usize>,
    /// Their weights, summed.
    weight: f64,
    /// The same of each run whose rows are still on their way.
    waiting: VecDeque<Vec<usize>>,
    /// Results that have arrived together with others.
    arrived: VecDeque<Totals>,
}

/// Where a plan takes its batch and leaves its results.
pub(super) struct Slots {
    /// None if the plan takes features.
    images: Option<SlotId>,
    features: Vec<SlotId>,
    labels: Option<SlotId>,
    class_weights: Option<SlotId>,
    step: Option<SlotId>,
    pub rows: Option<SlotId>,
    pub logits: SlotId,
}

impl Slots {
    pub fn of(plan: &Plan) -> Result<Self, TrainError> {
        let missing = |what| TrainError::Incomplete { what };
        let images = match plan.input {
            Input::Values => Storage::Images,
            Input::Bytes { .. } => Storage::Bytes,
        };
        let features: Vec<SlotId> = (0..).map_while(|i| plan.slot(Storage::Feature(i))).collect();
        let images = plan.slot(images);
        if images.is_none() && features.is_empty() {
            return Err(missing("input"));
        }
        Ok(Self {
            images,
            features,
            labels: plan.slot(Storage::Labels),
            class_weights: plan.slot(Storage::ClassWeights),
            step: plan.slot(Storage::Step),
            rows: plan.output(Output::Rows),
            logits: plan.output(Output::Logits).ok_or(missing("output"))?,
        })
    }

    /// Hands over the `part`-th of the `parts` equal parts of a plan's batch.
    pub fn fill(
        &self,
        executor: &Executor,
        features: Option<&Features>,
        (part, parts): (usize, usize),
        images: Images<'_>,
        labels: &[u32],
    ) -> Result<(), TrainError> {
        check_batch(executor.plan(), parts, features.is_some(), images, labels)?;
        let behind = |bytes: &[u8]| (part * bytes.len()) as u64;
        let write = |slot, bytes| executor.write_at(slot, behind(bytes), bytes);
        match (images, self.images, features) {
            (Images::Values(values), Some(slot), _) => write(slot, bytemuck::cast_slice(values))?,
            (Images::Bytes(bytes), Some(slot), _) => write(slot, bytes)?,
            (Images::Kept(samples), _, Some(features)) => {
                if let Some(&sample) = samples.iter().find(|sample| **sample >= features.count()) {
                    return Err(TrainError::Sample { sample, count: features.count() });
                }
                features.load(executor, &self.features, part * labels.len(), samples)?;
            }
            _ => return Err(TrainError::Incomplete { what: "input" }),
        }
        if let Some(slot) = self.labels {
            write(slot, bytemuck::cast_slice(labels))?;
        }
        Ok(())
    }
}

impl Session {
    /// Compiles `network`, whose layers carry their settings, and uploads one tensor a parameter.
    ///
    /// # Errors
    /// A tensor is not [finite](super::check_finite); the device refuses, or nothing in the network trains or moves.
    pub fn new(
        device: &Device,
        network: Graph,
        tensors: &[HostTensor],
        input: Input,
        options: Options,
    ) -> Result<Self, TrainError> {
        Self::with_cache(device, network, tensors, input, options, None)
    }

    /// As [`new`](Self::new), but where the frozen part of the network can be cut off, and the cache has room for what
    /// it gives for all images of the loader, the session takes [`Images::Kept`] and nothing else.
    ///
    /// # Errors
    /// As [`new`](Self::new); an image is broken; the cache was told to stop.
    pub fn with_cache(
        device: &Device,
        network: Graph,
        tensors: &[HostTensor],
        input: Input,
        options: Options,
        cache: Option<(&FeatureCache, &Loader)>,
    ) -> Result<Self, TrainError> {
        if options.accumulate == 0 {
            return Err(TrainError::Incomplete { what: "micro-batch in an optimiser step" });
        }
        check_finite(&network, tensors)?;
        let params = Parameters::upload(device, &network, tensors)?;
        let graph = compile::training(network.clone(), &options)?;
        let samples = |graph: &Graph| graph.input_shape().map_or(1, crate::tensor::Shape::n);
        let gathered = samples(&graph) / samples(&network).max(1);
        let changing = compile::changing(&graph);
        let (graph, features) = cut(device, graph, &changing, &params, tensors, input, cache)?;
        let is_cut = features.is_some();
        let executor = executor(device, graph, input, &params, samples(&network), |batch| {
            let graph = compile::training(network.with_batch(batch)?, &options)?;
            rest(graph, &changing, is_cut)
        })?;
        let slots = Slots::of(executor.plan())?;
        executor.run(&[Phase::Once])?;
        let classes = network.logits_shape().map_or(0, crate::tensor::Shape::c);
        let mut session = Self {
            device: device.clone(),
            network,
            options,
            params,
            executor,
            input,
            slots,
            features,
            steps: 0,
            micro: 0,
            gathered,
            class_weights: Vec::new(),
            counted: Vec::new(),
            weight: 0.0,
            waiting: VecDeque::new(),
            arrived: VecDeque::new(),
        };
        if session.options.class_weights {
            session.set_class_weights(&vec![1.0; classes])?;
        }
        Ok(session)
    }

    /// Weighs each sample's loss by its label's class: the loss of a step is a weighted mean, as PyTorch's
    /// `CrossEntropyLoss(weight)`. Takes [`Options::class_weights`], and all are 1 before. Totals sum weighted losses.
    ///
    /// # Errors
    /// There is not one weight a class, or the plan takes none; the device failed.
    pub fn set_class_weights(&mut self, weights: &[f64]) -> Result<(), TrainError> {
        let expected = self.network.logits_shape().map_or(0, crate::tensor::Shape::c);
        let Some(slot) = self.slots.class_weights.filter(|_| weights.len() == expected) else {
            return Err(TrainError::ClassWeightCount { found: weights.len(), expected });
        };
        let mut values: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
        values.resize(crate::tensor::pad4(expected), 0.0);
        self.executor.write(slot, bytemuck::cast_slice(&values))?;
        self.class_weights = weights.to_vec();
        Ok(())
    }

    /// The class weights of the labels that count, summed.
    pub(super) fn weight_of(&self, labels: &[u32]) -> f64 {
        let weight = |&label: &u32| match &self.class_weights[..] {
            _ if label == PADDING => 0.0,
            [] => 1.0,
            weights => weights.get(label as usize).copied().unwrap_or(0.0),
        };
        labels.iter().map(weight).sum()
    }

    /// The network with its settings.
    pub fn network(&self) -> &Graph {
        &self.network
    }

    pub fn plan(&self) -> &Plan {
        self.executor.plan()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The executor of the step, for measuring.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The form of the images.
    pub fn input(&self) -> Input {
        self.input
    }

    /// The parameters where they are, for other plans over them, such as a [`Probe`](super::Probe).
    pub fn device_parameters(&self) -> &Parameters {
        &self.params
    }

    /// Optimiser steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Submits one micro-batch, and the optimiser's step if it completes a window. `labels` has one entry an image.
    /// Does not wait for the device: results come out of [`completed`](Self::completed).
    ///
    /// # Errors
    /// The batch has another size than the plan, a label is not a class, or the device failed.
    pub fn submit(&mut self, images: Images<'_>, labels: &[u32], lr: f64) -> Result<(), TrainError> {
        self.submit_in(images, labels, lr, None)
    }

    /// As [`submit`](Self::submit), of a step that may have fewer micro-batches than others, or partial ones: each sample
    /// of the step has the same weight, or its class's. All of its micro-batches are handed over with the same `window`.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); the window has no micro-batch, or more than others have, or the plan takes all those of
    /// a step together and the window has fewer.
    pub fn submit_in(
        &mut self,
        images: Images<'_>,
        labels: &[u32],
        lr: f64,
        window: Option<StepWindow>,
    ) -> Result<(), TrainError> {
        let batches = window.map_or(self.options.accumulate, |window| window.batches);
        let fits = batches > self.micro && batches <= self.options.accumulate;
        if !fits || (self.gathered > 1 && batches != self.options.accumulate) {
            return Err(TrainError::Incomplete { what: "step of so many micro-batches" });
        }
        let part = (self.micro % self.gathered, self.gathered);
        self.slots.fill(&self.executor, self.features.as_deref(), part, images, labels)?;
        self.counted.push(labels.iter().filter(|l| **l != PADDING).count());
        self.weight += self.weight_of(labels);
        let last = self.micro + 1 == batches;
        if self.counted.len() == self.gathered {
            self.run(last, lr, window.map(|window| window.weight))?;
        }
        self.micro = if last { 0 } else { self.micro + 1 };
        self.steps += u64::from(last);
        Ok(())
    }

    /// Submits the micro-batches that were handed over, and, after the `last` of a step, the optimiser. `weight` is that of
    /// the whole step, if it is known.
    fn run(&mut self, last: bool, lr: f64, weight: Option<f64>) -> Result<(), TrainError> {
        let window = self.options.accumulate;
        let counted = std::mem::take(&mut self.counted);
        let (beta1, beta2) = match self.options.optimizer {
            Optimizer::Sgd(_) => (0.0, 0.0),
            Optimizer::AdamW(adamw) => (adamw.beta1, adamw.beta2),
        };
        let t = i32::try_from(self.steps + 1).unwrap_or(i32::MAX);
        // Where nothing else is known, micro-batches that run apart have the same weight.
        let apart = window / self.gathered;
        let handed_over = std::mem::take(&mut self.weight);
        let weight = weight.unwrap_or(handed_over * apart as f64);
        let scalars = StepScalars {
            lr: lr as f32,
            correction1: (1.0 - beta1.powi(t)) as f32,
            correction2: (1.0 - beta2.powi(t)) as f32,
            // Where nothing counts there is no gradient.
            inv_count: if weight > 0.0 { (1.0 / weight) as f32 } else { 0.0 },
            accumulate: if self.micro < self.gathered { 0.0 } else { 1.0 },
            // A step may have more micro-batches than there are runs; none of them draws as another does.
            draw: (self.steps as u32).wrapping_mul(window as u32).wrapping_add(self.micro as u32),
            seed: [self.options.seed as u32, (self.options.seed >> 32) as u32],
        };
        if let Some(slot) = self.slots.step {
            self.executor.write(slot, bytemuck::bytes_of(&scalars))?;
        }
        match (apart, last) {
            (1, _) => self.executor.run(&[Phase::Forward, Phase::Backward, Phase::Update])?,
            (_, false) => self.executor.run(&[Phase::Forward, Phase::Backward])?,
            (_, true) => {
                self.executor.run(&[Phase::Forward, Phase::Backward])?;
                self.executor.run(&[Phase::Update])?;
            }
        }
        if let Some(rows) = self.slots.rows {
            self.executor.fetch(rows)?;
            self.waiting.push_back(counted);
        }
        Ok(())
    }

    /// The results of the oldest micro-batch that is done; with `drain`, waits for it. `None` when there is none.
    ///
    /// # Errors
    /// The device failed.
    pub fn completed(&mut self, drain: bool) -> Result<Option<Totals>, TrainError> {
        block("waiting for a step", self.completed_async(drain))
    }

    /// As [`completed`](Self::completed), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn completed_async(&mut self, drain: bool) -> Result<Option<Totals>, TrainError> {
        if self.arrived.is_empty()
            && let Some(rows) = self.executor.fetched_async(drain).await?
        {
            let counted = self.waiting.pop_front().unwrap_or_default();
            let each = rows.len() / counted.len().max(1);
            let parts = rows.chunks_exact(each.max(1)).zip(counted);
            self.arrived.extend(parts.map(|(rows, samples)| Totals::new(rows, samples)));
        }
        Ok(self.arrived.pop_front())
    }

    /// Submits one batch and waits for its results. There are none yet, and the totals are zero, where the plan waits for
    /// further micro-batches.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) and [`completed`](Self::completed).
    pub fn step(&mut self, images: Images<'_>, labels: &[u32], lr: f64) -> Result<Totals, TrainError> {
        block("a step", self.step_async(images, labels, lr))
    }

    /// As [`step`](Self::step), without blocking a browser.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) and [`completed`](Self::completed).
    pub async fn step_async(&mut self, images: Images<'_>, labels: &[u32], lr: f64) -> Result<Totals, TrainError> {
        self.submit(images, labels, lr)?;
        let mut last = Totals::default();
        while let Some(totals) = self.completed_async(true).await? {
            last = totals;
        }
        Ok(last)
    }

    /// The parameters as they are now, in the graph's order.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters(&self) -> Result<Vec<HostTensor>, TrainError> {
        block("reading the parameters", self.parameters_async())
    }

    /// As [`parameters`](Self::parameters), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn parameters_async(&self) -> Result<Vec<HostTensor>, TrainError> {
        let mut tensors = Vec::with_capacity(self.network.params().len());
        for i in 0..self.network.params().len() {
            tensors.push(self.params.download_async(&self.device, &self.network, ParamId(i as u32)).await?);
        }
        Ok(tensors)
    }

    /// The gradients of the last step of all trainable parameters, if the options export them.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradients(&self) -> Result<Vec<(ParamId, Vec<f32>)>, TrainError> {
        let mut gradients = Vec::new();
        for &(output, slot) in &self.plan().outputs {
            if let Output::Gradient(param) = output {
                self.join(&mut gradients, (), param, &self.executor.read(slot)?);
            }
        }
        Ok(gradients.into_iter().map(|((), param, tensor)| (param, tensor.data)).collect())
    }

    /// Adds values of a parameter of the plan's graph to those of the network's parameter that it is or is a part of.
    fn join<K: PartialEq>(&self, joined: &mut Vec<(K, ParamId, HostTensor)>, kind: K, param: ParamId, values: &[f32]) {
        let Place { part, channels, .. } = self.place(param);
        let known = joined.iter().position(|(other, whole, _)| *other == kind && *whole == part.whole);
        let at = known.unwrap_or_else(|| {
            joined.push((kind, part.whole, HostTensor::zeros(self.network.param(part.whole).shape)));
            joined.len() - 1
        });
        joined[at].2.set_channels(part.begin, channels, values);
    }

    fn place(&self, param: ParamId) -> Place {
        self.params.layout().place(param)
    }

    /// The optimiser's state.
    ///
    /// # Errors
    /// The device failed.
    pub fn optimizer_state(&self) -> Result<Vec<OptimizerState>, TrainError> {
        block("reading the optimiser's state", self.optimizer_state_async())
    }

    /// As [`optimizer_state`](Self::optimizer_state), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn optimizer_state_async(&self) -> Result<Vec<OptimizerState>, TrainError> {
        let mut states = Vec::new();
        for (slot, kind, param) in self.state_slots() {
            let data = self.executor.read_async(slot).await?;
            self.join(&mut states, kind, param, &data);
        }
        Ok(states.into_iter().map(|(kind, param, tensor)| OptimizerState { kind, param, tensor }).collect())
    }

    fn state_slots(&self) -> Vec<(SlotId, StateKind, ParamId)> {
        let plan = self.plan();
        let slots = plan.slots.iter().enumerate();
        slots
            .filter_map(|(i, slot)| match slot.storage {
                Storage::State(id) => {
                    let state = &plan.graph.states()[id.index()];
                    let kept = matches!(state.kind, StateKind::FirstMoment | StateKind::SecondMoment);
                    kept.then_some((SlotId(i as u32), state.kind, state.param))
                }
                _ => None,
            })
            .collect()
    }

    /// Continues where another session of the same plan stopped.
    ///
    /// # Errors
    /// The state is not this plan's, or the device failed.
    pub fn restore(&mut self, steps: u64, states: &[OptimizerState]) -> Result<(), TrainError> {
        let slots = self.state_slots();
        let fits = |s: &OptimizerState| s.tensor.shape == self.network.param(s.param).shape;
        let found = |kind, place: Place| {
            states
                .iter()
                .find(|s| s.kind == kind && s.param == place.part.whole && fits(s))
                .ok_or(TrainError::ForeignState)
        };
        // A first part stands for the whole.
        let wholes = slots.iter().filter(|&&(.., param)| self.place(param).part.begin == 0).count();
        if wholes != states.len() {
            return Err(TrainError::ForeignState);
        }
        let places = slots.into_iter().map(|(slot, kind, param)| (slot, kind, self.place(param)));
        let found = places.map(|(slot, kind, place)| Ok((slot, place, found(kind, place)?)));
        for (slot, place, state) in found.collect::<Result<Vec<_>, TrainError>>()? {
            let values = state.tensor.channels(place.part.begin, place.channels);
            self.executor.write(slot, bytemuck::cast_slice(&values[..]))?;
        }
        self.steps = steps;
        Ok(())
    }

    /// What the session takes of its images, if it takes [`Images::Kept`].
    pub fn features(&self) -> Option<&Features> {
        self.features.as_deref()
    }

    /// An evaluator of the same parameters for batches of `batch`.
    ///
    /// # Errors
    /// The device refuses the batch.
    pub fn evaluator(&self, batch: usize) -> Result<Evaluator, TrainError> {
        self.evaluator_with_cache(batch, &[], None)
    }

    /// As [`evaluator`](Self::evaluator), but where the part of the network that this session leaves alone can be cut
    /// off, and the cache has room for what it gives for all images of the loader, the evaluator takes [`Images::Kept`]
    /// and nothing else. `tensors` are those that the session began with.
    ///
    /// # Errors
    /// The device refuses the batch; an image is broken; the cache was told to stop.
    pub fn evaluator_with_cache(
        &self,
        batch: usize,
        tensors: &[HostTensor],
        cache: Option<(&FeatureCache, &Loader)>,
    ) -> Result<Evaluator, TrainError> {
        let changing = compile::changing(&self.plan().graph);
        let graph = compile::inference(self.network.with_batch(batch)?, true)?;
        let (graph, features) = cut(&self.device, graph, &changing, &self.params, tensors, self.input, cache)?;
        let is_cut = features.is_some();
        let with_batch = |batch| rest(compile::inference(self.network.with_batch(batch)?, true)?, &changing, is_cut);
        Evaluator::of(&self.device, graph, features, &self.params, self.input, with_batch)
    }
}

/// Cuts the frozen part off a compiled graph, if there is one and the cache takes its results.
fn cut(
    device: &Device,
    graph: Graph,
    changing: &[ParamId],
    params: &Parameters,
    tensors: &[HostTensor],
    input: Input,
    cache: Option<(&FeatureCache, &Loader)>,
) -> Result<(Graph, Option<Arc<Features>>), TrainError> {
    let Some((cache, loader)) = cache else { return Ok((graph, None)) };
    let Some(split) = compile::split(&graph, changing)? else { return Ok((graph, None)) };
    Ok(match cache.features(device, &split, params, tensors, input, loader)? {
        Some(features) => (split.rest, Some(features)),
        None => (graph, None),
    })
}

/// What [`cut`] leaves of a compiled graph, if it does cut it.
fn rest(graph: Graph, changing: &[ParamId], is_cut: bool) -> Result<Graph, TrainError> {
    let split = if is_cut { compile::split(&graph, changing)? } else { None };
    Ok(split.map_or(graph, |split| split.rest))
}

/// Inference with a network's running statistics.
pub struct Evaluator {
    executor: Executor,
    slots: Slots,
    features: Option<Arc<Features>>,
    batch: usize,
    classes: usize,
}

impl Evaluator {
    /// Compiles inference of `network` for batches of its own size, and uploads one tensor a parameter.
    ///
    /// # Errors
    /// A tensor is not [finite](super::check_finite); the device refuses.
    pub fn new(device: &Device, network: &Graph, tensors: &[HostTensor], input: Input) -> Result<Self, TrainError> {
        check_finite(network, tensors)?;
        Self::of_parameters(device, network, &Parameters::upload(device, network, tensors)?, input)
    }

    /// As [`new`](Self::new), of parameters that other plans may share.
    ///
    /// # Errors
    /// The device refuses.
    pub fn of_parameters(
        device: &Device,
        network: &Graph,
        params: &Parameters,
        input: Input,
    ) -> Result<Self, TrainError> {
        let with_batch = |batch| Ok(compile::inference(network.with_batch(batch)?, true)?);
        Self::of(device, compile::inference(network.clone(), true)?, None, params, input, with_batch)
    }

    fn of(
        device: &Device,
        graph: Graph,
        features: Option<Arc<Features>>,
        params: &Parameters,
        input: Input,
        with_batch: impl Fn(usize) -> Result<Graph, TrainError>,
    ) -> Result<Self, TrainError> {
        let logits = graph.logits_shape().ok_or(TrainError::Incomplete { what: "output" })?;
        let executor = executor(device, graph, input, params, logits.n(), with_batch)?;
        let slots = Slots::of(executor.plan())?;
        executor.run(&[Phase::Once])?;
        Ok(Self { executor, slots, features, batch: logits.n(), classes: logits.c() })
    }

    /// What the evaluator takes of its images, if it takes [`Images::Kept`].
    pub fn features(&self) -> Option<&Features> {
        self.features.as_deref()
    }

    /// The executor of the pass, for measuring.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Samples a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Takes over what training changed since: folds the batch norms anew.
    ///
    /// # Errors
    /// The device failed.
    pub fn refresh(&self) -> Result<(), TrainError> {
        Ok(self.executor.run(&[Phase::Once])?)
    }

    /// Loss and hits of one batch; samples labelled [`PADDING`] do not count.
    ///
    /// # Errors
    /// The batch has another size than the plan, a label is not a class, the loss is not finite, or the device failed.
    pub fn evaluate(&mut self, images: Images<'_>, labels: &[u32]) -> Result<Totals, TrainError> {
        block("evaluating a batch", self.evaluate_async(images, labels))
    }

    /// As [`evaluate`](Self::evaluate), without blocking a browser.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub async fn evaluate_async(&mut self, images: Images<'_>, labels: &[u32]) -> Result<Totals, TrainError> {
        self.forward(images, labels)?;
        self.totals(labels).await
    }

    /// As [`evaluate`](Self::evaluate), with the logits: `classes` values a sample, those that fill up a batch included.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_with_logits(
        &mut self,
        images: Images<'_>,
        labels: &[u32],
    ) -> Result<(Totals, Vec<f32>), TrainError> {
        block("evaluating a batch", async {
            self.forward(images, labels)?;
            let totals = self.totals(labels).await?;
            Ok((totals, self.read_logits().await?))
        })
    }

    /// Of the batch that was shown last.
    async fn totals(&mut self, labels: &[u32]) -> Result<Totals, TrainError> {
        let samples = labels.iter().filter(|l| **l != PADDING).count();
        let rows = match self.slots.rows {
            Some(rows) => self.executor.read_async(rows).await?,
            None => Vec::new(),
        };
        let totals = Totals::new(&rows, samples);
        if !totals.loss.is_finite() {
            return Err(not_finite(&self.executor).await?);
        }
        Ok(totals)
    }

    /// The logits of one batch: `classes` values a sample.
    ///
    /// # Errors
    /// The batch has another size than the plan, a logit is not finite, or the device failed.
    pub fn logits(&mut self, images: Images<'_>) -> Result<Vec<f32>, TrainError> {
        block("reading the logits", self.logits_async(images))
    }

    /// As [`logits`](Self::logits), without blocking a browser.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub async fn logits_async(&mut self, images: Images<'_>) -> Result<Vec<f32>, TrainError> {
        self.forward(images, &vec![PADDING; self.batch])?;
        let logits = self.read_logits().await?;
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(not_finite(&self.executor).await?);
        }
        Ok(logits)
    }

    /// Of the batch that was shown last.
    async fn read_logits(&mut self) -> Result<Vec<f32>, TrainError> {
        Ok(unpad(&self.executor.read_async(self.slots.logits).await?, self.classes, self.batch))
    }

    fn forward(&self, images: Images<'_>, labels: &[u32]) -> Result<(), TrainError> {
        self.slots.fill(&self.executor, self.features.as_deref(), (0, 1), images, labels)?;
        Ok(self.executor.run(&[Phase::Forward])?)
    }
}

/// The logits of the first `samples` samples without the padding of their channels.
pub(super) fn unpad(stored: &[f32], classes: usize, samples: usize) -> Vec<f32> {
    let rows = stored.chunks_exact(crate::tensor::pad4(classes)).take(samples);
    rows.flat_map(|row| &row[..classes]).copied().collect()
}

/// Refuses what is not one of the `parts` equal parts of the plan's batch.
fn check_batch(plan: &Plan, parts: usize, kept: bool, images: Images<'_>, labels: &[u32]) -> Result<(), TrainError> {
    let part = |shape: Option<crate::tensor::Shape>| {
        let [n, h, w, c] = shape.map_or([0; 4], |shape| shape.0);
        crate::tensor::Shape([n / parts, h, w, c])
    };
    let (shape, logits) = (part(plan.graph.input_shape()), part(plan.graph.logits_shape()));
    let sized = |bytes: usize, expected: usize| match bytes == expected {
        true => Ok(()),
        false => Err(TrainError::Images { bytes, expected, shape: shape.to_string() }),
    };
    match (images, plan.input) {
        (Images::Kept(samples), _) if kept => {
            if samples.len() > logits.n() {
                return Err(TrainError::Labels { found: samples.len(), expected: logits.n() });
            }
        }
        (Images::Values(values), Input::Values) if !kept => sized(values.len() * 4, shape.stored_len() * 4)?,
        (Images::Bytes(bytes), Input::Bytes { .. }) if !kept => sized(bytes.len(), shape.pixels() * 4)?,
        (images, input) => {
            let expected = match input {
                _ if kept => Images::Kept(&[]),
                Input::Values => Images::Values(&[]),
                Input::Bytes { .. } => Images::Bytes(&[]),
            };
            return Err(TrainError::Form { expected: expected.form(), found: images.form() });
        }
    }
    if labels.len() != logits.n() {
        return Err(TrainError::Labels { found: labels.len(), expected: logits.n() });
    }
    match labels.iter().find(|l| **l != PADDING && **l as usize >= logits.c()) {
        Some(&label) => Err(TrainError::Label { label, classes: logits.c() }),
        None => Ok(()),
    }
}
