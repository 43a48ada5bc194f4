//! The price of a plan, known before it runs: floating-point operations, bytes moved, bytes kept for backward.

use super::lower::{Lowered, Value};
use crate::graph::{Graph, Groups, NodeId, Op, Phase};
use crate::kernels::Access;

/// What a call, one phase of a layer, or the plan costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhaseCost {
    /// Two for a multiply-add; padding not counted. Only products count; the rest is bound by memory.
    pub flops: u64,
    /// Read from and written to memory, each operand once a call.
    pub bytes: u64,
}

impl std::ops::AddAssign for PhaseCost {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// What a layer costs in one step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LayerCost {
    pub forward: PhaseCost,
    pub backward: PhaseCost,
    pub update: PhaseCost,
    /// Bytes of activations, masks and statistics that wait for this layer's backward pass.
    pub kept: u64,
    /// The kernels that run for it each step, in order.
    pub kernels: Vec<&'static str>,
}

/// What a plan costs: one step, without what runs once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// One entry a layer, in the graph's order.
    pub layers: Vec<LayerCost>,
    /// What belongs to no layer: input and loss.
    pub rest: LayerCost,
}

impl Cost {
    /// All layers and the rest.
    fn all(&self) -> impl Iterator<Item = &LayerCost> {
        self.layers.iter().chain([&self.rest])
    }

    /// Forward, backward and update together.
    pub fn step(&self) -> PhaseCost {
        let mut total = PhaseCost::default();
        for layer in self.all() {
            total += layer.forward;
            total += layer.backward;
            total += layer.update;
        }
        total
    }

    /// Bytes of activations, masks and statistics that some backward pass reads.
    pub fn kept(&self) -> u64 {
        self.all().map(|l| l.kept).sum()
    }
}

/// What each call costs, in order. The products of a node are its first call's: the others add up what that one left.
pub(super) fn calls(graph: &Graph, lowered: &Lowered) -> Vec<PhaseCost> {
    let mut last = None;
    let costs = lowered.calls.iter().map(|call| {
        let node = call.shares[0].node;
        let first = last.replace(node) != Some(node);
        let bytes = call.shares.iter().map(|share| share.bytes).sum();
        PhaseCost { flops: if first { flops(graph, node) } else { 0 }, bytes }
    });
    costs.collect()
}

/// Adds up what calls cost, as [`calls`] tells.
pub(super) fn price(graph: &Graph, lowered: &Lowered, calls: &[PhaseCost]) -> Cost {
    let mut cost = Cost { layers: vec![LayerCost::default(); graph.layers().len()], rest: LayerCost::default() };
    for (call, &spent) in lowered.calls.iter().zip(calls).filter(|(call, _)| call.phase != Phase::Once) {
        for (index, share) in call.shares.iter().enumerate() {
            let layer = layer(&mut cost, graph, share.node);
            layer.kernels.push(call.dispatch.kernel.name);
            // Calls that several nodes share have no products.
            let flops = if index == 0 { spent.flops } else { 0 };
            *phase(layer, call.phase) += PhaseCost { flops, bytes: share.bytes };
        }
    }
    // A value is kept by the layer whose backward pass reads it first. Folded weights do not count: they are a copy of
    // parameters, as large at any batch.
    let mut produced = vec![Phase::Once; lowered.values.len()];
    let mut kept = vec![false; lowered.values.len()];
    for call in &lowered.calls {
        for (binding, value) in call.dispatch.kernel.bindings.iter().zip(&call.bindings) {
            let Some(value) = *value else { continue };
            let Value { storage, node, .. } = lowered.values[value];
            let folded = matches!(graph.node(node).op, Op::FoldBatchNorm { .. });
            if folded || storage.is_some_and(|s| s != super::Storage::Output) {
                continue;
            }
            if binding.access == Access::Write {
                produced[value] = call.phase;
            } else if call.phase == Phase::Backward && produced[value] == Phase::Forward && !kept[value] {
                kept[value] = true;
                layer(&mut cost, graph, call.shares[0].node).kept += lowered.values[value].words as u64 * 4;
            }
        }
    }
    cost
}

fn layer<'a>(cost: &'a mut Cost, graph: &Graph, id: NodeId) -> &'a mut LayerCost {
    match graph.node(id).layer {
        Some(layer) => &mut cost.layers[layer.index()],
        None => &mut cost.rest,
    }
}

fn phase(layer: &mut LayerCost, phase: Phase) -> &mut PhaseCost {
    match phase {
        Phase::Once | Phase::Forward => &mut layer.forward,
        Phase::Backward => &mut layer.backward,
        Phase::Update => &mut layer.update,
    }
}

fn flops(graph: &Graph, id: NodeId) -> u64 {
    let node = graph.node(id);
    let shape = |operand: usize| graph.node(node.inputs[operand]).shape;
    let (window, groups, cin, out) = match node.op {
        Op::Conv2d(conv) => (conv.window, conv.groups, shape(0).c(), node.shape),
        Op::Conv2dInputGrad { window, groups, input, .. } => (window, groups, input.c(), shape(0)),
        Op::Conv2dWeightGrad { window, groups } => (window, groups, shape(0).c(), shape(1)),
        _ => return 0,
    };
    let cin = match groups {
        Groups::One => cin,
        Groups::Several(groups) => cin / groups,
        Groups::Depthwise => 1,
    };
    2 * (out.pixels() * out.c() * cin * window.kernel[0] * window.kernel[1]) as u64
}
