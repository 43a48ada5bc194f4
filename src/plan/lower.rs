//! Lowering: each node becomes calls of kernels on values. A value is what later gets a slot.

use super::batch::{Batch, Kind};
use super::layout::{ParamLayout, Place};
use super::{Input, Storage};
use crate::graph::{Act, Graph, Groups, MOMENT_ROWS, Node, NodeId, Op, Phase, domains, keeps_bits, places, takes_mean};
use crate::kernels::{
    Dispatch, StepScalars, accumulate, activation, add, batch_norm_apply, batch_norm_blend, batch_norm_grad,
    batch_norm_renorm, batch_norm_stats, channel_sum, channels, conv2d, depthwise, dropout, fold_batch_norm,
    group_norm, grouped, image_sum, input_normalize, layer_norm, multiply, pad, pool, scale, softmax_cross_entropy,
    sum_partials,
};
use crate::tensor::Shape;

pub(super) struct Value {
    pub words: usize,
    /// Where it lives, if not in scratch memory.
    pub storage: Option<Storage>,
    /// The node that computes it.
    pub node: NodeId,
    /// The part of another value that it is.
    pub within: Option<Within>,
}

/// A place in a value: its first word.
#[derive(Clone, Copy)]
pub(super) struct Within {
    pub value: usize,
    pub at: usize,
}

/// A call before memory is assigned: its bindings are values, `None` where the kernel uses nothing.
pub(super) struct LoweredCall {
    pub dispatch: Dispatch,
    pub bindings: Vec<Option<usize>>,
    pub phase: Phase,
    /// The nodes that it serves, at least one.
    pub shares: Vec<Share>,
}

/// A node that a call serves, and the bytes that the call moves for it.
pub(super) struct Share {
    pub node: NodeId,
    pub bytes: u64,
}

pub(super) struct Lowered {
    pub values: Vec<Value>,
    pub calls: Vec<LoweredCall>,
    /// The words of each [`Storage::Table`].
    pub tables: Vec<Vec<u32>>,
    /// The value of each node.
    of_node: Vec<usize>,
}

impl Lowered {
    pub fn value(&self, id: NodeId) -> usize {
        self.of_node[id.index()]
    }
}

pub(super) fn lower(graph: &Graph, input: Input, variant: conv2d::Variant) -> Lowered {
    let out = Lowered { values: Vec::new(), calls: Vec::new(), tables: Vec::new(), of_node: Vec::new() };
    let mut lowering = Lowering { graph, variant, out, calls_of: Vec::new(), batches: Default::default() };
    lowering.values(input);
    for (id, node) in graph.nodes() {
        lowering.node(id, node, input);
    }
    lowering.flush(Kind::Optimizer);
    lowering.flush(Kind::Moments);
    lowering.out
}

pub(super) struct Lowering<'a> {
    pub graph: &'a Graph,
    variant: conv2d::Variant,
    pub out: Lowered,
    /// The calls that bind each value.
    pub calls_of: Vec<Vec<usize>>,
    /// Of each [`Kind`].
    pub batches: [Batch; 2],
}

impl Lowering<'_> {
    /// Gives every node a value; one that works in place shares its operand's. Parameters are parts of larger ones.
    fn values(&mut self, input: Input) {
        let layout = ParamLayout::of(self.graph);
        let mut buffers: Vec<Option<usize>> = vec![None; layout.buffers().len()];
        for (id, node) in self.graph.nodes() {
            let value = match node.op.in_place() {
                Some(operand) => self.out.value(node.inputs[operand]),
                None => {
                    let output = self.graph.outputs().iter().any(|(_, output)| *output == id);
                    let storage = match node.op {
                        Op::Param(param) => Some(Storage::Param(param)),
                        Op::State(state) => Some(Storage::State(state)),
                        Op::Labels => Some(Storage::Labels),
                        Op::ClassWeights => Some(Storage::ClassWeights),
                        Op::Feature(index) => Some(Storage::Feature(index)),
                        Op::Input if input == Input::Values => Some(Storage::Images),
                        _ if node.phase == Phase::Once => Some(Storage::Constant),
                        _ if output => Some(Storage::Output),
                        _ => None,
                    };
                    self.value(node.shape.stored_len(), storage, id)
                }
            };
            if let Op::Param(param) = node.op {
                let Place { buffer, at, .. } = layout.place(param);
                let whole = buffers[buffer]
                    .unwrap_or_else(|| self.value(layout.buffers()[buffer], Some(Storage::Params(buffer)), id));
                buffers[buffer] = Some(whole);
                self.out.values[value].within = Some(Within { value: whole, at });
            }
            self.out.of_node.push(value);
            // An output computed in place lives in its operand's memory.
            if node.op.in_place().is_some() && self.graph.outputs().iter().any(|(_, output)| *output == id) {
                self.out.values[value].storage.get_or_insert(Storage::Output);
            }
        }
    }

    pub fn value(&mut self, words: usize, storage: Option<Storage>, node: NodeId) -> usize {
        self.calls_of.push(Vec::new());
        self.out.values.push(Value { words, storage, node, within: None });
        self.out.values.len() - 1
    }

    /// The side output of `producer`, if some node reads it.
    fn side(&self, producer: NodeId) -> Option<usize> {
        let wanted = |(_, n): &(NodeId, &Node)| n.op == Op::SideOutput && n.inputs == [producer];
        self.graph.nodes().find(wanted).map(|(id, _)| self.out.value(id))
    }

    pub fn step(&mut self, id: NodeId) -> usize {
        let existing = self.out.values.iter().position(|v| v.storage == Some(Storage::Step));
        existing.unwrap_or_else(|| self.value(size_of::<StepScalars>() / 4, Some(Storage::Step), id))
    }

    fn call(&mut self, id: NodeId, dispatch: Dispatch, bindings: Vec<Option<usize>>) {
        let words: usize = bindings.iter().flatten().map(|&value| self.out.values[value].words).sum();
        self.shared_call(vec![Share { node: id, bytes: words as u64 * 4 }], dispatch, bindings);
    }

    /// A call for the nodes of `shares`, which are of one phase.
    pub fn shared_call(&mut self, shares: Vec<Share>, dispatch: Dispatch, bindings: Vec<Option<usize>>) {
        let phase = self.graph.node(shares[0].node).phase;
        bindings.iter().flatten().for_each(|&value| self.calls_of[value].push(self.out.calls.len()));
        self.out.calls.push(LoweredCall { dispatch, bindings, phase, shares });
    }

    fn node(&mut self, id: NodeId, node: &Node, input: Input) {
        let shape = |operand: usize| self.graph.node(node.inputs[operand]).shape;
        let value = |operand: usize| Some(self.out.value(node.inputs[operand]));
        let optional = |present: bool, operand: usize| if present { value(operand) } else { None };
        let out = Some(self.out.value(id));
        match node.op {
            Op::Labels | Op::ClassWeights | Op::Param(_) | Op::State(_) | Op::Feature(_) | Op::SideOutput => {}
            Op::Input => {
                if let Input::Bytes { mean, std, bgr } = input {
                    let bytes = self.value(node.shape.pixels(), Some(Storage::Bytes), id);
                    self.call(id, input_normalize::forward(node.shape, mean, std, bgr), vec![Some(bytes), out]);
                }
            }
            Op::Conv2d(conv) => {
                let epilogue =
                    conv2d::Epilogue { bias: conv.bias, residual: conv.residual, act: conv.act, mask: conv.mask };
                let residual = optional(conv.residual, node.inputs.len() - 1);
                let mut bindings = vec![value(0), value(1), optional(conv.bias, 2), residual, out];
                let (x, g) = (shape(0), conv.window);
                let dispatch = match conv.groups {
                    Groups::One => {
                        bindings.push(self.side(id));
                        conv2d::forward(self.variant, x, node.shape, g, epilogue)
                    }
                    Groups::Several(groups) => grouped::forward(x, node.shape, g, groups, epilogue),
                    Groups::Depthwise => depthwise::forward(self.variant, x, node.shape, g, epilogue),
                };
                self.call(id, dispatch, bindings);
            }
            // Of a graph that was not compiled: inference, unfused.
            Op::BatchNorm { eps } => {
                let dispatch = batch_norm_apply::forward(shape(0), 1, eps, Act::Identity, false, false);
                self.call(id, dispatch, vec![value(0), value(2), value(1), None, out, None]);
            }
            Op::BatchNormStats { domains } => {
                let x = shape(0);
                let bindings = vec![value(0)];
                let partials = self.value(batch_norm_stats::partials_len(self.variant, x, domains), None, id);
                self.call(
                    id,
                    batch_norm_stats::partial(self.variant, x, domains),
                    [bindings, vec![Some(partials)]].concat(),
                );
                self.call(id, batch_norm_stats::merge(self.variant, x, domains), vec![Some(partials), out]);
            }
            Op::BatchNormBlend { alpha } => {
                let dispatch = batch_norm_blend::forward(node.shape.c(), domains(node.shape), alpha);
                self.call(id, dispatch, vec![value(0), value(1), out]);
            }
            Op::BatchNormRenorm { eps, r_max, d_max } => {
                let dispatch = batch_norm_renorm::forward(node.shape.c(), domains(node.shape), eps, r_max, d_max);
                self.call(id, dispatch, vec![value(0), value(1), out]);
            }
            Op::BatchNormApply(apply) => {
                let (x, domains) = (shape(0), domains(shape(1)));
                let dispatch = batch_norm_apply::forward(x, domains, apply.eps, apply.act, apply.residual, apply.mask);
                let residual = optional(apply.residual, 3);
                self.call(id, dispatch, vec![value(0), value(1), value(2), residual, out, self.side(id)]);
            }
            Op::FoldBatchNorm { eps, bias } => {
                let bindings = vec![value(0), value(1), value(2), optional(bias, 3), out, self.side(id)];
                self.call(id, fold_batch_norm::forward(shape(0), eps, bias), bindings);
            }
            Op::Activation { act, mask } => {
                let dispatch = activation::forward(shape(0), act, mask);
                self.call(id, dispatch, vec![value(0), out, self.side(id)]);
            }
            Op::Add { act, mask } => {
                let dispatch = add::forward(shape(0), act, mask);
                self.call(id, dispatch, vec![value(0), value(1), out, self.side(id)]);
            }
            Op::Scale { mean } => {
                let bindings = vec![value(0), value(1), optional(mean, 2), out];
                self.call(id, scale::forward(shape(0), shape(1), mean), bindings);
            }
            Op::Dropout { rate, whole, stream, residual } => {
                let operands = [value(0), optional(residual, 1)];
                let step = Some(self.step(id));
                let dispatch = dropout::forward(node.shape, rate, whole, stream, residual);
                self.call(id, dispatch, vec![operands[0], step, operands[1], out]);
            }
            Op::MaxPool { window, argmax } => {
                let dispatch = pool::max_forward(shape(0), node.shape, window, argmax);
                self.call(id, dispatch, vec![value(0), out, self.side(id)]);
            }
            Op::AvgPool { .. } if takes_mean(self.graph, id) => {
                let x = shape(0);
                self.reduce(
                    id,
                    node.shape,
                    image_sum::partials_count(self.variant, x),
                    image_sum::mean(self.variant, x),
                    vec![value(0), None],
                );
            }
            Op::AvgPool { window, counted } => {
                self.call(id, pool::avg_forward(shape(0), node.shape, window, counted), vec![value(0), out]);
            }
            Op::Concat => {
                let channels: Vec<usize> = (0..node.inputs.len()).map(|operand| shape(operand).c()).collect();
                for (operand, begin) in places(channels).enumerate() {
                    let dispatch = channels::place(shape(operand), node.shape, begin);
                    let operand = Some(self.out.value(node.inputs[operand]));
                    self.call(id, dispatch, vec![operand, out]);
                }
            }
            Op::Slice { begin, accumulate, .. } => {
                self.call(id, channels::slice(shape(0), node.shape, begin, accumulate), vec![value(0), out]);
            }
            Op::Shuffle { groups } => self.call(id, channels::shuffle(node.shape, groups), vec![value(0), out]),
            Op::Binary => self.call(id, channels::embed(shape(0), node.shape, 1), vec![value(0), out]),
            Op::Multiply => self.call(id, multiply::forward(node.shape), vec![value(0), value(1), out]),
            Op::Pad { padding: [top, left, ..] } => {
                self.call(id, pad::forward(shape(0), node.shape, [top as i32, left as i32]), vec![value(0), out]);
            }
            Op::GroupNorm { eps, groups, moments } => self.group_norm(id, node, eps, groups, moments),
            Op::LayerNorm { eps, moments } => {
                let dispatch = layer_norm::forward(self.variant, node.shape, eps, moments);
                self.call(id, dispatch, vec![value(0), value(1), out, self.side(id)]);
            }
            Op::SoftmaxCrossEntropy { smoothing, weighted } => {
                let bindings = vec![value(0), value(1), optional(weighted, 2), out];
                self.call(id, softmax_cross_entropy::forward(shape(0), smoothing, weighted), bindings);
            }
            Op::Conv2dInputGrad { window, groups, input, accumulate } => {
                let (dy, g) = (shape(0), window);
                let dispatch = match groups {
                    Groups::One => conv2d::input_grad(self.variant, input, dy, g, accumulate),
                    Groups::Several(groups) => grouped::input_grad(input, dy, g, groups, accumulate),
                    Groups::Depthwise => depthwise::input_grad(self.variant, input, dy, g, accumulate),
                };
                self.call(id, dispatch, vec![value(0), value(1), out]);
            }
            Op::Conv2dWeightGrad { window, groups } => {
                let (x, dy, g) = (shape(0), shape(1), window);
                let (splits, dispatch) = match groups {
                    Groups::One => (
                        conv2d::weight_grad_splits(self.variant, x, dy, g),
                        conv2d::weight_grad(self.variant, x, dy, g),
                    ),
                    Groups::Several(groups) => {
                        (grouped::weight_grad_splits(x, dy, g, groups), grouped::weight_grad(x, dy, g, groups))
                    }
                    Groups::Depthwise => (
                        depthwise::weight_grad_splits(self.variant, dy, g),
                        depthwise::weight_grad(self.variant, x, dy, g),
                    ),
                };
                self.reduce(id, node.shape, splits, dispatch, vec![value(0), value(1)]);
            }
            Op::ChannelSum => {
                let dispatch = channel_sum::partial(self.variant, shape(0));
                self.reduce(
                    id,
                    node.shape,
                    channel_sum::partials_count(self.variant, shape(0)),
                    dispatch,
                    vec![value(0)],
                );
            }
            Op::DomainSum => {
                let dispatch = sum_partials::forward(self.variant, node.shape.stored_len(), domains(shape(0)));
                self.call(id, dispatch, vec![value(0), out]);
            }
            Op::ActivationGrad { act } => {
                let (mask, y) = (optional(!act.is_smooth(), 1), optional(act.is_smooth(), 1));
                self.call(id, activation::grad(node.shape, act), vec![mask, y, out]);
            }
            Op::ScaleGateGrad => {
                let (dy, operands) = (shape(0), vec![value(0), value(1)]);
                self.reduce(
                    id,
                    node.shape,
                    image_sum::partials_count(self.variant, dy),
                    image_sum::products(self.variant, dy),
                    operands,
                );
            }
            Op::BatchNormGradReduce { eps, act } => {
                let (x, domains) = (shape(1), domains(node.shape));
                let (affine, mask) = (optional(act.is_smooth(), 3), optional(keeps_bits(act), 3));
                let operands = vec![value(0), value(1), value(2), affine, mask];
                let count = batch_norm_grad::reduce_partials_count(self.variant, x, domains);
                self.reduce(
                    id,
                    node.shape,
                    count,
                    batch_norm_grad::reduce(self.variant, x, domains, eps, act),
                    operands,
                );
            }
            Op::BatchNormGradBlend { eps, alpha } => {
                let dispatch = batch_norm_blend::grad(node.shape.c(), domains(node.shape), eps, alpha);
                self.call(id, dispatch, vec![value(0), value(1), value(2), out]);
            }
            Op::BatchNormGradRenorm { eps } => {
                let dispatch = batch_norm_renorm::grad(node.shape.c(), domains(node.shape), eps);
                self.call(id, dispatch, vec![value(0), value(1), value(2), out]);
            }
            Op::BatchNormGradBatch { eps, act } => {
                let mask = optional(keeps_bits(act), 5);
                let bindings = vec![value(0), value(1), value(2), value(3), value(4), mask, out];
                self.call(id, batch_norm_grad::batch(node.shape, domains(shape(2)), eps, act), bindings);
            }
            Op::BatchNormGradRunning { eps, act } => {
                let (x, mask) = (optional(act.is_smooth(), 3), optional(keeps_bits(act), 3));
                let bindings = vec![value(0), x, value(1), value(2), mask, out];
                self.call(id, batch_norm_grad::running(node.shape, eps, act), bindings);
            }
            Op::FoldWeightGrad { eps } => {
                let bindings = vec![value(0), value(1), value(2), out];
                self.call(id, fold_batch_norm::weight_grad(node.shape, eps), bindings);
            }
            Op::FoldAffineGrad { eps } => {
                let weight = shape(0);
                let (first, last) = (vec![value(0), value(1)], vec![value(2), value(3), out]);
                let partials = Some(self.value(fold_batch_norm::affine_partials_len(weight), None, id));
                self.call(id, fold_batch_norm::affine_grad(weight), [first, vec![partials]].concat());
                let merge = fold_batch_norm::affine_grad_merge(weight, eps);
                self.call(id, merge, [vec![partials], last].concat());
            }
            Op::MaxPoolGrad { window, input } => {
                let dispatch = pool::max_grad(input, shape(0), window);
                self.call(id, dispatch, vec![value(0), value(1), out]);
            }
            Op::AvgPoolGrad { window, counted, input } => {
                self.call(id, pool::avg_grad(input, shape(0), window, counted), vec![value(0), out]);
            }
            Op::SliceGrad { begin, input, accumulate } => {
                let dispatch = match accumulate {
                    true => channels::add(shape(0), input, begin),
                    false => channels::embed(shape(0), input, begin),
                };
                self.call(id, dispatch, vec![value(0), out]);
            }
            Op::PadGrad { padding: [top, left, ..] } => {
                self.call(id, pad::forward(shape(0), node.shape, [-(top as i32), -(left as i32)]), vec![value(0), out]);
            }
            Op::LayerNormGradReduce => {
                let x = shape(1);
                let count = layer_norm::reduce_partials_count(self.variant, x);
                let operands = vec![value(0), value(1), value(2)];
                self.reduce(id, node.shape, count, layer_norm::reduce(self.variant, x), operands);
            }
            Op::GroupNormGrad { eps, groups } => {
                let bindings = [value(0), value(1), value(2), value(3)];
                let (affine, sums) = (value(3), value(4));
                let joined = Some(self.value(shape(4).stored_len(), None, id));
                self.call(id, group_norm::sums(node.shape, groups), vec![sums, affine, joined]);
                self.call(id, group_norm::grad(node.shape, eps), [&bindings[..], &[joined, out]].concat());
            }
            Op::LayerNormGrad => {
                let dispatch = layer_norm::grad(self.variant, node.shape);
                self.call(id, dispatch, vec![value(0), value(1), value(2), value(3), out]);
            }
            Op::SoftmaxCrossEntropyGrad { smoothing, weighted } => {
                let operands = [value(0), value(1), optional(weighted, 2)];
                let step = Some(self.step(id));
                let bindings = [&operands[..], &[step, out]].concat();
                self.call(id, softmax_cross_entropy::grad(node.shape, smoothing, weighted), bindings);
            }
            Op::Accumulate => {
                let operand = value(1);
                let step = Some(self.step(id));
                self.call(id, accumulate::forward(node.shape.stored_len()), vec![operand, step, out]);
            }
            Op::SgdStep(..) | Op::AdamwStep(..) => self.gather(Kind::Optimizer, id, self.operands(node)),
            Op::BatchNormUpdate { .. } => {
                debug_assert_eq!(node.shape.0[2], MOMENT_ROWS);
                self.gather(Kind::Moments, id, self.operands(node));
            }
        }
    }

    /// Moments of each image's channels, those of their groups, and the normalisation by these, as of batch norms whose domains
    /// are images.
    fn group_norm(&mut self, id: NodeId, node: &Node, eps: f32, groups: usize, moments: bool) {
        let (x, domains) = (node.shape, node.shape.n());
        let [images, affine] = [0, 1].map(|operand| Some(self.out.value(node.inputs[operand])));
        let out = Some(self.out.value(id));
        let rows = Shape::rows(2 * domains, x.c()).stored_len();
        let partials = Some(self.value(batch_norm_stats::partials_len(self.variant, x, domains), None, id));
        let of_channels = Some(self.value(rows, None, id));
        let of_groups = self.side(id).filter(|_| moments).or_else(|| Some(self.value(rows, None, id)));
        self.call(id, batch_norm_stats::partial(self.variant, x, domains), vec![images, partials]);
        self.call(id, batch_norm_stats::merge(self.variant, x, domains), vec![partials, of_channels]);
        self.call(id, group_norm::moments(x, groups), vec![of_channels, of_groups]);
        let dispatch = batch_norm_apply::forward(x, domains, eps, Act::Identity, false, false);
        self.call(id, dispatch, vec![images, of_groups, affine, None, out, None]);
    }

    fn operands(&self, node: &Node) -> Vec<usize> {
        node.inputs.iter().map(|&input| self.out.value(input)).collect()
    }

    /// A reduction in two passes, or in one where there is one part.
    fn reduce(&mut self, id: NodeId, sum: Shape, parts: usize, first: Dispatch, operands: Vec<Option<usize>>) {
        let out = self.out.value(id);
        if parts == 1 {
            return self.call(id, first, [operands, vec![Some(out)]].concat());
        }
        let partials = self.value(parts * sum.stored_len(), None, id);
        self.call(id, first, [operands, vec![Some(partials)]].concat());
        self.call(id, sum_partials::forward(self.variant, sum.stored_len(), parts), vec![Some(partials), Some(out)]);
    }
}
