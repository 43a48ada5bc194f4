//! The plan: a compiled graph as a list of kernel calls on numbered slots of memory.
//!
//! A [`Plan`] is a value: it can be printed, compared, priced and checked without a device. The GPU executor and the
//! reference executor run the same plan.

mod batch;
mod cost;
mod layout;
mod lower;
mod memory;
mod roofline;

pub use cost::{Cost, LayerCost, PhaseCost};
pub use layout::{ParamLayout, Place};
pub use roofline::Roofline;

use crate::graph::{Graph, LayerId, NodeId, Output, ParamId, Phase, StateId};
use crate::kernels::Kernel;
use crate::kernels::conv2d::Variant;
use crate::preprocessing::Preprocessing;
use std::fmt;

/// Where the images come from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Input {
    /// Normalised `f32` values in the device's layout.
    Values,
    /// RGBX bytes, which the first call normalises: `(byte / 255 − mean) / std` of red, green and blue, which it hands on in
    /// that order or, with `bgr`, in reverse.
    Bytes { mean: [f32; 3], std: [f32; 3], bgr: bool },
}

impl From<Preprocessing> for Input {
    /// Bytes, normalised as `preprocessing` says.
    fn from(Preprocessing { mean, std, bgr, .. }: Preprocessing) -> Self {
        Self::Bytes { mean, std, bgr }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Storage {
    Param(ParamId),
    /// The buffer of that number in the network's [`ParamLayout`].
    Params(usize),
    State(StateId),
    /// State of many parameters.
    States,
    /// What [`Plan::tables`] has at this place.
    Table(usize),
    /// The images as values. Scratch when the plan computes them from bytes.
    Images,
    /// The images as bytes.
    Bytes,
    Labels,
    /// A weight a class.
    ClassWeights,
    /// Values of the batch's images that another plan computed; see [`crate::compile::split`].
    Feature(u32),
    /// [`crate::kernels::StepScalars`].
    Step,
    /// Computed once for given parameters, and kept.
    Constant,
    /// Read by the caller after the run.
    Output,
    /// Shared by values that are never alive at the same time.
    Scratch,
    /// Bound where a call must bind something and uses nothing.
    Dummy,
}

/// A slot of a [`Plan`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub(crate) u32);

impl SlotId {
    /// The slot at a position of [`Plan::slots`].
    pub const fn new(index: usize) -> Self {
        Self(index as u32)
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A piece of device memory: one whole buffer, or a part of one.
#[derive(Clone, PartialEq, Debug)]
pub struct Slot {
    pub storage: Storage,
    /// 32-bit words.
    pub words: usize,
    /// What the largest value in it is, for messages.
    pub name: String,
    /// The slot that it is a part of, and the word at which it begins there.
    pub within: Option<(SlotId, usize)>,
}

impl Slot {
    pub fn bytes(&self) -> u64 {
        self.words as u64 * 4
    }
}

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
pub struct Call {
    pub kernel: &'static Kernel,
    /// Offset of the call's parameters in [`Plan::uniforms`].
    pub uniform: u32,
    /// Values of the kernel's `override` constants that differ from its own.
    pub constants: Vec<(&'static str, f64)>,
    pub workgroups: [u32; 3],
    /// The slots bound to the kernel's storage bindings.
    pub bindings: Vec<SlotId>,
    /// Words that the call reads or writes of each binding; the slot may be larger.
    pub words: Vec<usize>,
    pub phase: Phase,
    /// The layer of all `nodes`.
    pub layer: Option<LayerId>,
    /// The nodes that the call serves, at least one.
    pub nodes: Vec<NodeId>,
    /// What it computes and moves.
    pub cost: PhaseCost,
}

/// A compiled graph, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub graph: Graph,
    pub input: Input,
    pub slots: Vec<Slot>,
    /// What slots with [`Storage::Table`] hold.
    pub tables: Vec<Vec<u32>>,
    /// In execution order, the calls of [`Phase::Once`] first.
    pub calls: Vec<Call>,
    /// The parameters of all calls, each aligned to [`UNIFORM_ALIGNMENT`].
    pub uniforms: Vec<u8>,
    /// The slot of each output.
    pub outputs: Vec<(Output, SlotId)>,
    pub cost: Cost,
}

/// Every adapter allows dynamic uniform offsets at multiples of this many bytes.
pub const UNIFORM_ALIGNMENT: usize = 256;

impl Plan {
    /// Plans a compiled graph, with the variant of the convolutions that suits the device.
    pub fn new(graph: Graph, input: Input, variant: Variant) -> Self {
        let lowered = lower::lower(&graph, input, variant);
        let costs = cost::calls(&graph, &lowered);
        let cost = cost::price(&graph, &lowered, &costs);
        let memory = memory::assign(&graph, &lowered);
        let mut uniforms = Vec::new();
        let mut calls = Vec::with_capacity(lowered.calls.len());
        for ((call, bindings), cost) in lowered.calls.iter().zip(memory.bindings).zip(costs) {
            let uniform = uniforms.len() as u32;
            uniforms.extend_from_slice(&call.dispatch.params);
            uniforms.resize(uniforms.len().next_multiple_of(UNIFORM_ALIGNMENT), 0);
            let nodes: Vec<NodeId> = call.shares.iter().map(|share| share.node).collect();
            let layer = graph.node(nodes[0]).layer;
            calls.push(Call {
                kernel: call.dispatch.kernel,
                uniform,
                constants: call.dispatch.constants.clone(),
                workgroups: call.dispatch.workgroups,
                words: call.bindings.iter().map(|v| v.map_or(0, |v| lowered.values[v].words)).collect(),
                bindings,
                phase: call.phase,
                layer: layer.filter(|_| nodes.iter().all(|&node| graph.node(node).layer == layer)),
                nodes,
                cost,
            });
        }
        // A stable sort: within a phase the order stays.
        calls.sort_by_key(|call| call.phase != Phase::Once);
        let outputs =
            graph.outputs().iter().map(|&(output, id)| (output, memory.slots_of_values[lowered.value(id)])).collect();
        Self { graph, input, slots: memory.slots, tables: lowered.tables, calls, uniforms, outputs, cost }
    }

    /// The slot with this storage, for storage of which there is one.
    pub fn slot(&self, storage: Storage) -> Option<SlotId> {
        self.slots.iter().position(|s| s.storage == storage).map(|i| SlotId(i as u32))
    }

    /// The slot of `output`.
    pub fn output(&self, output: Output) -> Option<SlotId> {
        self.outputs.iter().find(|(other, _)| *other == output).map(|&(_, slot)| slot)
    }

    /// Device memory that the plan needs, parameters and state included, in bytes.
    pub fn bytes(&self) -> u64 {
        let whole = self.slots.iter().filter(|slot| slot.within.is_none());
        whole.map(Slot::bytes).sum::<u64>() + self.uniforms.len() as u64
    }

    /// A call whose grid has more than `limit` workgroups in a dimension, if there is one. Kernels fold their grids so that
    /// none has more than WebGPU guarantees, up to sizes that no buffer has.
    pub fn oversized_grid(&self, limit: u32) -> Option<&Call> {
        self.calls.iter().find(|call| call.workgroups.iter().any(|groups| *groups > limit))
    }

    /// How messages call a call: kernel, layer and node.
    pub fn label(&self, call: &Call) -> String {
        let others = match call.nodes.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        format!("{} of {}{others}", call.kernel.name, self.graph.label(call.nodes[0]))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, slot) in self.slots.iter().enumerate() {
            let within =
                slot.within.map_or_else(String::new, |(whole, at)| format!("  in slot {} from word {at}", whole.0));
            writeln!(f, "slot {i:<4} {:>12} B  {:?}  {}{within}", slot.bytes(), slot.storage, slot.name)?;
        }
        for (i, call) in self.calls.iter().enumerate() {
            let bindings: Vec<String> = call.bindings.iter().map(|s| s.0.to_string()).collect();
            let layer = call.layer.map_or("", |l| &self.graph.layers()[l.index()].name);
            write!(f, "call {i:<4} {:<8} {:<28} ", call.phase.name(), call.kernel.name)?;
            writeln!(f, "[{}] {:?}  # {layer}", bindings.join(", "), call.workgroups)?;
        }
        Ok(())
    }
}
