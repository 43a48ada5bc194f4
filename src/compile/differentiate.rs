//! Reverse-mode differentiation, only on paths to something trainable.
//!
//! Walking the forward nodes backwards, each node's gradient is complete when the walk reaches it. A node is
//! differentiated only if a trainable parameter stands behind it, so what nobody needs is never created, and what it
//! would have kept alive dies early. An optimiser's step follows as soon as its gradient is complete, so that
//! gradients, too, share memory.
//!
//! ReLU keeps one bit a value, whatever happens to its output; a smooth activation keeps what it saw, which behind a
//! batch norm is computed anew from what that keeps. Formulas: Ioffe & Szegedy 2015 for batch norm; for one
//! folded into its convolution the chain rule through `w·γr` and `β − μγr`, see [`Op::FoldAffineGrad`].

use super::{Optimizer, Options};
use crate::graph::{
    Act, BatchNormApply, Conv2d, Graph, GraphError, LayerId, Node, NodeId, Op, Output, ParamId, Phase, StateKind,
    domains, keeps_bits, places, takes_mean,
};

pub(super) fn differentiate(graph: Graph, options: &Options) -> Result<Graph, GraphError> {
    let forward = graph.nodes.len();
    let mut walk =
        Walk { needs: needs_gradient(&graph), gradients: vec![None; forward], gated: Vec::new(), graph, options };
    for index in (0..forward).rev() {
        let id = NodeId(index as u32);
        if walk.needs[index] {
            walk.visit(id)?;
        }
    }
    Ok(walk.graph)
}

/// For each node, whether a trainable parameter stands behind it.
pub(super) fn needs_gradient(graph: &Graph) -> Vec<bool> {
    let mut needs = vec![false; graph.nodes.len()];
    for (id, node) in graph.nodes() {
        needs[id.index()] = match node.op {
            Op::Param(param) => graph.param(param).update.is_some(),
            _ => node.inputs.iter().any(|input| needs[input.index()]),
        };
    }
    needs
}

struct Walk<'a> {
    graph: Graph,
    options: &'a Options,
    needs: Vec<bool>,
    /// The gradient of each forward node as far as it has been summed.
    gradients: Vec<Option<NodeId>>,
    /// Gates whose operand's gradient waits for that of the mean over the same operand.
    gated: Vec<Gated>,
}

struct Gated {
    x: NodeId,
    gate: NodeId,
    gradient: NodeId,
}

impl Walk<'_> {
    fn visit(&mut self, id: NodeId) -> Result<(), GraphError> {
        let node = self.graph.node(id).clone();
        let (layer, inputs) = (node.layer, &node.inputs);
        if let Op::SoftmaxCrossEntropy { smoothing, weighted } = node.op {
            let op = Op::SoftmaxCrossEntropyGrad { smoothing, weighted };
            let gradient = self.push(op, inputs.clone(), layer)?;
            return self.contribute(inputs[0], gradient);
        }
        // The moments of a batch are differentiated together with the normalisation that they serve.
        let Some(gradient) = self.gradients[id.index()].take() else { return Ok(()) };
        match node.op {
            Op::Param(param) => self.update(param, id, gradient, layer),
            Op::Conv2d(conv) => self.convolution(id, &node, conv, gradient),
            Op::FoldBatchNorm { eps, .. } => self.folded(id, &node, eps, gradient),
            // Stays until the fold that it belongs to is visited.
            Op::SideOutput => {
                self.gradients[id.index()] = Some(gradient);
                Ok(())
            }
            Op::BatchNormApply(apply) => self.normalisation(id, &node, apply, gradient),
            Op::Activation { act, .. } => {
                let g = self.through_act(id, gradient, act)?;
                self.contribute(inputs[0], g)
            }
            Op::Add { act, .. } => {
                let g = self.through_act(id, gradient, act)?;
                self.contribute(inputs[0], g)?;
                self.contribute(inputs[1], g)
            }
            Op::Dropout { residual, .. } => {
                if residual {
                    self.contribute(inputs[1], gradient)?;
                }
                if self.needs(inputs[0]) {
                    let dx = self.push(without_residual(node.op), vec![gradient], layer)?;
                    self.contribute(inputs[0], dx)?;
                }
                Ok(())
            }
            Op::Scale { .. } => self.gate(id, &node, gradient),
            Op::MaxPool { window, .. } => {
                let argmax = self.side_output(id)?;
                let input = self.graph.node(inputs[0]).shape;
                let dx = self.push(Op::MaxPoolGrad { window, input }, vec![gradient, argmax], layer)?;
                self.contribute(inputs[0], dx)
            }
            Op::AvgPool { window, counted } => {
                let x = inputs[0];
                if let Some(waiting) = self.gated.iter().position(|gated| gated.x == x)
                    && takes_mean(&self.graph, id)
                {
                    let Gated { gate, gradient: gated, .. } = self.gated.swap_remove(waiting);
                    let dx = self.push(Op::Scale { mean: true }, vec![gated, gate, gradient], layer)?;
                    return self.contribute(x, dx);
                }
                let input = self.graph.node(x).shape;
                let dx = self.push(Op::AvgPoolGrad { window, counted, input }, vec![gradient], layer)?;
                self.contribute(x, dx)
            }
            Op::Concat => self.concatenation(inputs, gradient, layer),
            Op::Slice { begin, .. } => {
                let input = self.graph.node(inputs[0]).shape;
                self.contribute_part(inputs[0], gradient, layer, |accumulate| Op::SliceGrad {
                    begin,
                    input,
                    accumulate,
                })
            }
            Op::Shuffle { groups } => {
                let groups = node.shape.c() / groups;
                let dx = self.push(Op::Shuffle { groups }, vec![gradient], layer)?;
                self.contribute(inputs[0], dx)
            }
            Op::Multiply => {
                for (operand, other) in [(inputs[0], inputs[1]), (inputs[1], inputs[0])] {
                    if self.needs(operand) {
                        let dx = self.push(Op::Multiply, vec![gradient, other], layer)?;
                        self.contribute(operand, dx)?;
                    }
                }
                Ok(())
            }
            Op::Binary => {
                let op = Op::Slice { begin: 1, channels: 1, accumulate: false };
                let dx = self.push(op, vec![gradient], layer)?;
                self.contribute(inputs[0], dx)
            }
            Op::Pad { padding } => {
                let dx = self.push(Op::PadGrad { padding }, vec![gradient], layer)?;
                self.contribute(inputs[0], dx)
            }
            Op::GroupNorm { eps, groups, .. } => self.group_norm(id, &node, eps, groups, gradient),
            Op::LayerNorm { .. } => {
                let [x, affine] = [inputs[0], inputs[1]];
                let moments = self.side_output(id)?;
                if self.needs(affine) {
                    let sums = self.push(Op::LayerNormGradReduce, vec![gradient, x, moments], layer)?;
                    self.contribute(affine, sums)?;
                }
                if self.needs(x) {
                    let dx = self.push(Op::LayerNormGrad, vec![gradient, x, affine, moments], layer)?;
                    self.contribute(x, dx)?;
                }
                Ok(())
            }
            op => Err(GraphError { node: self.graph.label(id), reason: format!("{} has no gradient", op.name()) }),
        }
    }

    /// What the gradient of a convolution's result gives its operands.
    fn convolution(&mut self, id: NodeId, node: &Node, conv: Conv2d, gradient: NodeId) -> Result<(), GraphError> {
        let (layer, inputs) = (node.layer, &node.inputs);
        let g = self.through_act(id, gradient, conv.act)?;
        if conv.residual {
            self.contribute(inputs[inputs.len() - 1], g)?;
        }
        if self.needs(inputs[1]) {
            let op = Op::Conv2dWeightGrad { window: conv.window, groups: conv.groups };
            let dw = self.push(op, vec![inputs[0], g], layer)?;
            self.contribute(inputs[1], dw)?;
        }
        if conv.bias && self.needs(inputs[2]) {
            let db = self.push(Op::ChannelSum, vec![g], layer)?;
            self.contribute(inputs[2], db)?;
        }
        if self.needs(inputs[0]) {
            self.input_gradient(inputs[0], inputs[1], g, conv, layer)?;
        }
        Ok(())
    }

    /// What the gradient of a group norm gives its operands.
    fn group_norm(
        &mut self,
        id: NodeId,
        node: &Node,
        eps: f32,
        groups: usize,
        gradient: NodeId,
    ) -> Result<(), GraphError> {
        let (layer, [x, affine]) = (node.layer, [node.inputs[0], node.inputs[1]]);
        let moments = self.side_output(id)?;
        let reduce = Op::BatchNormGradReduce { eps, act: Act::Identity };
        let sums = self.push(reduce, vec![gradient, x, moments], layer)?;
        if self.needs(affine) {
            let total = if node.shape.n() == 1 { sums } else { self.push(Op::DomainSum, vec![sums], layer)? };
            self.contribute(affine, total)?;
        }
        if self.needs(x) {
            let op = Op::GroupNormGrad { eps, groups };
            let dx = self.push(op, vec![gradient, x, moments, affine, sums], layer)?;
            self.contribute(x, dx)?;
        }
        Ok(())
    }

    /// What the gradient of a concatenation gives its operands: each its own channels.
    fn concatenation(&mut self, inputs: &[NodeId], gradient: NodeId, layer: Option<LayerId>) -> Result<(), GraphError> {
        let channels: Vec<usize> = inputs.iter().map(|&input| self.graph.node(input).shape.c()).collect();
        for ((begin, &channels), &x) in places(channels.iter().copied()).zip(&channels).zip(inputs) {
            self.contribute_part(x, gradient, layer, |accumulate| Op::Slice { begin, channels, accumulate })?;
        }
        Ok(())
    }

    /// Adds to the gradient of `x` what `op` makes of `gradient`, in its own kernel where possible.
    fn contribute_part(
        &mut self,
        x: NodeId,
        gradient: NodeId,
        layer: Option<LayerId>,
        op: impl Fn(bool) -> Op,
    ) -> Result<(), GraphError> {
        if !self.needs(x) {
            return Ok(());
        }
        let (sum, into) = self.accumulator(x, gradient);
        let dx = self.push(op(into.is_some()), [gradient].into_iter().chain(into).collect(), layer)?;
        self.gradients[x.index()] = if into.is_some() { None } else { sum };
        self.contribute(x, dx)
    }

    /// Takes the gradient of `x` so far, and says whether a kernel that reads `gradient` may add to it in place: nobody else
    /// may wait for it, nor may it be what the kernel reads.
    fn accumulator(&mut self, x: NodeId, gradient: NodeId) -> (Option<NodeId>, Option<NodeId>) {
        let sum = self.gradients[x.index()].take();
        (sum, sum.filter(|&sum| !self.waited_for(sum) && sum != gradient))
    }

    /// What the gradient of folded weights gives the weights, gamma and beta.
    fn folded(&mut self, id: NodeId, node: &Node, eps: f32, gradient: NodeId) -> Result<(), GraphError> {
        let (layer, inputs) = (node.layer, &node.inputs);
        let [weight, moments, affine] = [inputs[0], inputs[1], inputs[2]];
        if self.needs(affine) {
            let db = self.gradients.iter().enumerate().find_map(|(i, g)| {
                let side = self.graph.nodes[i].op == Op::SideOutput && self.graph.nodes[i].inputs == [id];
                if side { *g } else { None }
            });
            let db = db.ok_or_else(|| GraphError {
                node: self.graph.label(id),
                reason: "the folded bias has no gradient".into(),
            })?;
            let op = Op::FoldAffineGrad { eps };
            let sums = self.push(op, vec![weight, gradient, db, moments], layer)?;
            self.contribute(affine, sums)?;
        }
        if self.needs(weight) {
            let dw = self.push(Op::FoldWeightGrad { eps }, vec![gradient, moments, affine], layer)?;
            self.contribute(weight, dw)?;
        }
        Ok(())
    }

    /// What the gradient of a normalised value gives its operands, through the moments if they are the batch's.
    fn normalisation(
        &mut self,
        id: NodeId,
        node: &Node,
        apply: BatchNormApply,
        gradient: NodeId,
    ) -> Result<(), GraphError> {
        let (layer, inputs) = (node.layer, &node.inputs);
        let [x, moments, affine] = [inputs[0], inputs[1], inputs[2]];
        let (mut g, mut act) = (gradient, apply.act);
        let mut mask = None;
        if apply.residual {
            g = self.through_act(id, g, act)?;
            act = Act::Identity;
            self.contribute(inputs[3], g)?;
        } else if keeps_bits(act) {
            mask = Some(self.side_output(id)?);
        }
        let smooth = |operand| act.is_smooth().then_some(operand);
        let source = self.graph.node(moments).clone();
        // Running moments are a parameter; all others depend on x.
        let batch = !matches!(source.op, Op::Param(_));
        let eps = apply.eps;
        let mut sums = None;
        if self.needs(affine) || (batch && self.needs(x)) {
            let op = Op::BatchNormGradReduce { eps, act };
            let operands = [g, x, moments].into_iter().chain(mask).chain(smooth(affine)).collect();
            sums = Some(self.push(op, operands, layer)?);
        }
        if self.needs(affine)
            && let Some(sums) = sums
        {
            let total = match domains(self.graph.node(sums).shape) {
                1 => sums,
                _ => self.push(Op::DomainSum, vec![sums], layer)?,
            };
            self.contribute(affine, total)?;
        }
        if self.needs(x) {
            let dx = match (batch, sums) {
                (true, Some(mut sums)) => {
                    let through = match source.op {
                        Op::BatchNormBlend { alpha } => Some(Op::BatchNormGradBlend { eps, alpha }),
                        Op::BatchNormRenorm { .. } => Some(Op::BatchNormGradRenorm { eps }),
                        _ => None,
                    };
                    if let Some(op) = through {
                        sums = self.push(op, vec![sums, source.inputs[0], moments], layer)?;
                    }
                    let op = Op::BatchNormGradBatch { eps, act };
                    let operands = [g, x, moments, affine, sums].into_iter().chain(mask).collect();
                    self.push(op, operands, layer)?
                }
                _ => {
                    let op = Op::BatchNormGradRunning { eps, act };
                    let operands = [g, moments, affine].into_iter().chain(mask).chain(smooth(x)).collect();
                    self.push(op, operands, layer)?
                }
            };
            self.contribute(x, dx)?;
        }
        Ok(())
    }

    /// What the gradient of a gated value gives the value and the gate.
    fn gate(&mut self, id: NodeId, node: &Node, gradient: NodeId) -> Result<(), GraphError> {
        let (layer, inputs) = (node.layer, &node.inputs);
        let [x, gate] = [inputs[0], inputs[1]];
        if self.needs(gate) {
            let mut d_gate = self.push(Op::ScaleGateGrad, vec![gradient, x], layer)?;
            if self.graph.node(gate).shape != self.graph.node(d_gate).shape {
                d_gate = self.push(Op::ChannelSum, vec![d_gate], layer)?;
            }
            self.contribute(gate, d_gate)?;
        }
        // Squeeze-and-excitation gates what it takes the mean of: one pass gives the gradients of both. The mean waits
        // for one gate; what a second one gives is added.
        let waiting = self.gated.iter().any(|gated| gated.x == x);
        if self.needs(gate) && self.needs(x) && !waiting && self.mean_of(x, id) {
            self.gated.push(Gated { x, gate, gradient });
        } else if self.needs(x) {
            let dx = self.push(Op::Scale { mean: false }, vec![gradient, gate], layer)?;
            self.contribute(x, dx)?;
        }
        Ok(())
    }

    fn needs(&self, id: NodeId) -> bool {
        self.needs[id.index()]
    }

    fn push(&mut self, op: Op, inputs: Vec<NodeId>, layer: Option<LayerId>) -> Result<NodeId, GraphError> {
        self.graph.push(op, inputs, layer, Phase::Backward)
    }

    /// Asks the forward node `id` for its sign bits or argmax.
    fn side_output(&mut self, id: NodeId) -> Result<NodeId, GraphError> {
        match &mut self.graph.nodes[id.index()].op {
            Op::Conv2d(conv) => conv.mask = true,
            Op::BatchNormApply(apply) => apply.mask = true,
            Op::Activation { mask, .. } | Op::Add { mask, .. } => *mask = true,
            Op::MaxPool { argmax, .. } => *argmax = true,
            Op::LayerNorm { moments, .. } | Op::GroupNorm { moments, .. } => *moments = true,
            _ => {}
        }
        let layer = self.graph.node(id).layer;
        self.graph.push(Op::SideOutput, vec![id], layer, Phase::Forward)
    }

    /// The gradient before the activation that ends the forward node `id`.
    fn through_act(&mut self, id: NodeId, gradient: NodeId, act: Act) -> Result<NodeId, GraphError> {
        let layer = self.graph.node(id).layer;
        match act {
            Act::Identity => Ok(gradient),
            act => {
                let by = match act.is_smooth() {
                    false => self.side_output(id)?,
                    true => self.before_act(id)?,
                };
                // In place, unless another node still waits for the same gradient.
                let own = match self.waited_for(gradient) {
                    false => gradient,
                    true => self.push(Op::Activation { act: Act::Identity, mask: false }, vec![gradient], layer)?,
                };
                self.push(Op::ActivationGrad { act }, vec![own, by], layer)
            }
        }
    }

    /// What the smooth activation of the forward node `id` saw.
    fn before_act(&self, id: NodeId) -> Result<NodeId, GraphError> {
        match self.graph.node(id) {
            Node { op: Op::Activation { .. }, inputs, .. } => Ok(inputs[0]),
            // The pass `fuse` leaves it apart where it has a gradient.
            _ => Err(GraphError { node: self.graph.label(id), reason: "what its activation saw is lost".into() }),
        }
    }

    /// Whether a mean over the images of `x` still awaits its visit, having come before the node `gate` in the graph.
    fn mean_of(&self, x: NodeId, gate: NodeId) -> bool {
        let before = (x.index() + 1..gate.index()).map(|index| NodeId(index as u32));
        before.into_iter().any(|id| {
            // It must get a gradient: the gate follows from it.
            self.graph.node(id).inputs == [x]
                && takes_mean(&self.graph, id)
                && self.leads_to(id, self.graph.node(gate).inputs[1])
        })
    }

    /// Whether the forward node `to` follows from `from`.
    fn leads_to(&self, from: NodeId, to: NodeId) -> bool {
        if to < from {
            return false;
        }
        let mut follows = vec![false; to.index() + 1];
        follows[from.index()] = true;
        for index in from.index() + 1..=to.index() {
            follows[index] = self.graph.nodes[index].inputs.iter().any(|input| follows[input.index()]);
        }
        follows[to.index()]
    }

    /// Whether some forward node's gradient is still `gradient`.
    fn waited_for(&self, gradient: NodeId) -> bool {
        self.gradients.contains(&Some(gradient)) || self.gated.iter().any(|gated| gated.gradient == gradient)
    }

    /// Adds `gradient` to that of the forward node `to`, if anything trainable stands behind it.
    fn contribute(&mut self, to: NodeId, gradient: NodeId) -> Result<(), GraphError> {
        if !self.needs(to) {
            return Ok(());
        }
        let sum = match self.gradients[to.index()] {
            None => gradient,
            Some(other) => {
                let layer = self.graph.node(to).layer;
                self.push(Op::Add { act: Act::Identity, mask: false }, vec![other, gradient], layer)?
            }
        };
        self.gradients[to.index()] = Some(sum);
        Ok(())
    }

    /// Adds the gradient of a convolution's input to that of `x`, in the convolution's own kernel where possible.
    fn input_gradient(
        &mut self,
        x: NodeId,
        weight: NodeId,
        g: NodeId,
        Conv2d { window, groups, .. }: Conv2d,
        layer: Option<LayerId>,
    ) -> Result<(), GraphError> {
        let input = self.graph.node(x).shape;
        let (sum, into) = self.accumulator(x, g);
        let op = Op::Conv2dInputGrad { window, groups, input, accumulate: into.is_some() };
        let dx = self.push(op, [g, weight].into_iter().chain(into).collect(), layer)?;
        self.gradients[x.index()] = if into.is_some() { None } else { sum };
        self.contribute(x, dx)
    }

    /// The optimiser's step for a parameter whose gradient is complete.
    fn update(
        &mut self,
        param: ParamId,
        node: NodeId,
        gradient: NodeId,
        layer: Option<LayerId>,
    ) -> Result<(), GraphError> {
        let Some(update) = self.graph.param(param).update else { return Ok(()) };
        let shape = self.graph.param(param).shape;
        let mut gradient = gradient;
        if self.options.accumulate > 1 {
            gradient = self.graph.accumulate(StateKind::Gradient, param, gradient)?;
        }
        if self.options.export_gradients {
            self.graph.outputs.push((Output::Gradient(param), gradient));
        }
        let mut inputs = vec![node, gradient];
        let op = match self.options.optimizer {
            Optimizer::Sgd(sgd) => {
                if sgd.momentum != 0.0 {
                    inputs.push(self.graph.state(StateKind::FirstMoment, param, shape));
                }
                Op::SgdStep(update, sgd)
            }
            Optimizer::AdamW(adamw) => {
                inputs.push(self.graph.state(StateKind::FirstMoment, param, shape));
                inputs.push(self.graph.state(StateKind::SecondMoment, param, shape));
                Op::AdamwStep(update, adamw)
            }
        };
        self.graph.push(op, inputs, layer, Phase::Update).map(|_| ())
    }
}

/// The gradient of a dropout is the same dropout.
fn without_residual(op: Op) -> Op {
    match op {
        Op::Dropout { rate, whole, stream, .. } => Op::Dropout { rate, whole, stream, residual: false },
        op => op,
    }
}
