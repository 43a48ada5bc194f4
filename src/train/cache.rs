//! What the frozen part of a network gives for each image, computed once and kept on the device.
//!
//! Below the first layer that changes, a network gives the same values for the same image in every epoch, under every
//! policy and seed that leave it alone. A [`FeatureCache`] keeps these values within a budget, for whichever runs ask
//! next. It changes no bits: the kernels that computed a value are those that would compute it again, and none of them
//! looks at the images beside it.

use super::{Crc32c, TrainError};
use crate::compile::Split;
use crate::data::Loader;
use crate::gpu::{Device, Executor, GpuError, Parameters, Rows};
use crate::graph::{Graph, NodeId, Op, Output, Phase};
use crate::kernels::conv2d::Variant;
use crate::plan::{Input, Plan, SlotId, Storage};
use crate::tensor::HostTensor;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// Values of all images of a set, one row an image, for each value that the rest of a network reads.
pub struct Features {
    rows: Vec<Rows>,
    count: usize,
    bytes: u64,
    until: Vec<String>,
    flops: u64,
}

impl Features {
    /// Images whose values there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Device memory, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The layers that they are the results of; what is fused into such a layer is part of it.
    pub fn until(&self) -> &[String] {
        &self.until
    }

    /// Floating-point operations that they save an image.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// Copies the values of `samples` to the slots of a plan of the rest, as those of the `first` image of its batch and
    /// those after it.
    pub(super) fn load(
        &self,
        executor: &Executor,
        slots: &[SlotId],
        first: usize,
        samples: &[usize],
    ) -> Result<(), TrainError> {
        for (rows, slot) in self.rows.iter().zip(slots) {
            rows.load(executor, *slot, first, samples)?;
        }
        Ok(())
    }
}

/// Whether it pays to keep results of `bytes` that take `flops` to compute. Reading them back moves each byte twice; where
/// they take fewer operations than this, a GPU computes them as fast.
pub(crate) fn is_worth_keeping(flops: u64, bytes: u64) -> bool {
    const FLOPS_PER_BYTE: u64 = 64;
    flops >= FLOPS_PER_BYTE * bytes
}

/// A budget of device memory, and what is kept within it.
pub struct FeatureCache {
    budget: u64,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The least recently used first.
    entries: Vec<(Key, Arc<Features>)>,
    peak_bytes: u64,
    fill_s: f64,
}

/// All that values follow from.
#[derive(Clone, PartialEq)]
struct Key {
    /// Of the prefix, complete.
    nodes: String,
    input: Input,
    variant: Variant,
    /// Of the parameters that it reads, of the images, and of how they are shown.
    checksum: u32,
}

impl FeatureCache {
    /// Keeps at most `budget` bytes. Computing values ends early, with [`TrainError::Interrupted`], once `stop` is set.
    pub fn new(budget: u64, stop: Arc<AtomicBool>) -> Self {
        Self { budget, stop, state: Mutex::default() }
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// The most that was kept at once, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.state().peak_bytes
    }

    /// Seconds spent on computing values so far.
    pub fn fill_s(&self) -> f64 {
        self.state().fill_s
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The values of all images of `loader` at the end of `split.prefix`; `None` if they are not worth keeping, not
    /// the same in every epoch, or too large for the budget or the device.
    /// They are computed unless they are there. What was not used for longest makes room, unless somebody holds it.
    pub(super) fn features(
        &self,
        device: &Device,
        split: &Split,
        params: &Parameters,
        tensors: &[HostTensor],
        input: Input,
        loader: &Loader,
    ) -> Result<Option<Arc<Features>>, TrainError> {
        let graph = &split.prefix;
        let count = loader.samples().len();
        let values: Vec<NodeId> = graph.outputs().iter().map(|(_, id)| *id).collect();
        let words = |id: NodeId| graph.node(id).shape.stored_len() / graph.node(id).shape.n();
        let bytes = values.iter().map(|&id| Rows::bytes(count, words(id))).sum::<u64>();
        let plan = Plan::new(graph.clone(), input, device.variant()?);
        let images = graph.input_shape().map_or(1, |shape| shape.n() as u64);
        let flops = plan.cost.step().flops / images;
        if !loader.is_steady() || !is_worth_keeping(flops, bytes / count as u64) {
            return Ok(None);
        }
        let key = Key {
            nodes: format!("{:?} {values:?}", graph.nodes().map(|(_, node)| node).collect::<Vec<_>>()),
            input,
            variant: device.variant()?,
            checksum: checksum(graph, tensors, loader),
        };
        {
            let mut state = self.state();
            if let Some(at) = state.entries.iter().position(|(known, _)| *known == key) {
                let entry = state.entries.remove(at);
                let features = Arc::clone(&entry.1);
                state.entries.push(entry);
                return Ok(Some(features));
            }
            if !state.make_room(bytes, self.budget) {
                return Ok(None);
            }
        }
        let began = Instant::now();
        let made = || -> Result<_, GpuError> {
            let rows = values.iter().map(|&id| Rows::new(device, count, words(id))).collect::<Result<_, _>>()?;
            Ok((rows, Executor::new(device, plan, params)?))
        };
        let (rows, executor) = match made() {
            Err(error) if error.is_limit_of_plan() || matches!(error, GpuError::OutOfMemory { .. }) => {
                log::warn!("what frozen layers give is not kept: {error}");
                return Ok(None);
            }
            made => made?,
        };
        let until =
            values.iter().filter_map(|&id| graph.node(id).layer).map(|l| graph.layers()[l.index()].name.clone());
        let features = Features { rows, count, bytes, until: until.collect(), flops };
        self.fill(&features, executor, loader)?;
        let features = Arc::new(features);
        let mut state = self.state();
        state.entries.push((key, Arc::clone(&features)));
        state.peak_bytes = state.peak_bytes.max(state.bytes());
        state.fill_s += began.elapsed().as_secs_f64();
        Ok(Some(features))
    }

    fn fill(&self, features: &Features, executor: Executor, loader: &Loader) -> Result<(), TrainError> {
        let missing = |what| TrainError::Incomplete { what };
        let images = executor.plan().slot(Storage::Bytes).ok_or(missing("input"))?;
        let outputs: Vec<SlotId> =
            (0..features.rows.len() as u32).map_while(|i| executor.plan().output(Output::Feature(i))).collect();
        executor.run(&[Phase::Once])?;
        let order: Vec<usize> = (0..loader.samples().len()).collect();
        let batch = executor.plan().graph.input_shape().map_or(1, crate::tensor::Shape::n);
        for batch in loader.rearranged(&order, batch)?.epoch(0, 0)? {
            if self.stop.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
            let batch = batch?;
            executor.write(images, &batch.pixels)?;
            executor.run(&[Phase::Forward])?;
            for (rows, &slot) in features.rows.iter().zip(&outputs) {
                rows.store(&executor, slot, &batch.samples)?;
            }
            // Uploads of many batches would pile up otherwise.
            executor.wait()?;
        }
        Ok(())
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.entries.iter().map(|(_, features)| features.bytes).sum()
    }

    /// Drops what nobody holds, the least recently used first, until `bytes` more fit; says whether they do.
    fn make_room(&mut self, bytes: u64, budget: u64) -> bool {
        let held = |features: &Arc<Features>| Arc::strong_count(features) > 1;
        let needed: u64 = self.entries.iter().filter(|(_, f)| held(f)).map(|(_, f)| f.bytes).sum();
        if needed.saturating_add(bytes) > budget {
            return false;
        }
        while self.bytes() + bytes > budget {
            let Some(at) = self.entries.iter().position(|(_, features)| !held(features)) else { break };
            self.entries.remove(at);
        }
        true
    }
}

/// Of what the values follow from beside the nodes.
fn checksum(graph: &Graph, tensors: &[HostTensor], loader: &Loader) -> u32 {
    let mut crc = Crc32c::new();
    for (_, node) in graph.nodes() {
        if let Op::Param(param) = node.op {
            crc = crc.update(bytemuck::cast_slice(&tensors[param.index()].data));
        }
    }
    for sample in loader.samples() {
        crc = crc.update(sample.path.as_os_str().as_encoded_bytes()).update(&[0]);
    }
    crc.update(format!("{:?}", loader.transform()).as_bytes()).finish()
}
