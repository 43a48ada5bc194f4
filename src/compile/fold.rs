//! Batch norms become what their axes ask for.
//!
//! | statistics | convolution before it | what runs |
//! |---|---|---|
//! | running, not moving | frozen, batch norm frozen too | the convolution with the batch norm folded in, once |
//! | running, not moving | trains | the same, anew each step, where that moves fewer bytes; γ's gradient comes from the weights' |
//! | running, not moving | otherwise | convolution, then the normalisation |
//! | batch, or running and moving | any | convolution, moments, normalisation |
//! | blended or renormalised | any | convolution, moments, those from them and the running ones, normalisation |
//!
//! Moments are those of each domain: of the whole batch, or of each ghost batch.

use super::rewrite::Rewrite;
use crate::graph::{
    Act, Affine, BatchNormApply, Conv2d, Graph, GraphError, Node, NodeId, Op, Phase, Stats, StatsUpdate,
};

pub(super) fn fold(graph: Graph) -> Result<Graph, GraphError> {
    let readers = graph.readers();
    let mut rewrite = Rewrite::of(&graph);
    for (id, node) in graph.nodes() {
        // A convolution that its batch norm absorbs appears when the batch norm does.
        if let [reader] = readers[id.index()][..]
            && absorbs(&graph, &readers, reader, id)
        {
            continue;
        }
        match node.op {
            Op::BatchNorm { eps } => {
                let out = match absorbs(&graph, &readers, id, node.inputs[0]) {
                    true => folded(&mut rewrite, &graph, node, eps)?,
                    false => normalised(&mut rewrite, &graph, id, eps)?,
                };
                rewrite.replace(id, out);
            }
            _ => rewrite.keep(id),
        }
    }
    Ok(rewrite.finish())
}

/// The convolution before the batch norm `node`, with weights and a bias into which that is folded.
fn folded(rewrite: &mut Rewrite<'_>, graph: &Graph, node: &Node, eps: f32) -> Result<NodeId, GraphError> {
    let &[x, affine, moments] = &node.inputs[..] else { unreachable!("a batch norm has three operands") };
    let product = graph.node(x);
    let Op::Conv2d(conv) = product.op else { unreachable!("only convolutions are absorbed") };
    let inputs = rewrite.operands(product);
    let mut fold = vec![inputs[1], rewrite.at(moments), rewrite.at(affine)];
    fold.extend(inputs.get(2));
    let weight = rewrite.push(Op::FoldBatchNorm { eps, bias: conv.bias }, fold, node.layer, Phase::Forward)?;
    let bias = rewrite.push(Op::SideOutput, vec![weight], node.layer, Phase::Forward)?;
    let op = Op::Conv2d(Conv2d { bias: true, ..conv });
    rewrite.push(op, vec![inputs[0], weight, bias], product.layer, Phase::Forward)
}

/// The batch norm `id` as a pass of its own, after the moments that it asks for.
fn normalised(rewrite: &mut Rewrite<'_>, graph: &Graph, id: NodeId, eps: f32) -> Result<NodeId, GraphError> {
    let node = graph.node(id);
    let operands = rewrite.operands(node);
    let &[x, affine, running] = &operands[..] else { unreachable!("a batch norm has three operands") };
    let mode = node.layer.and_then(|l| graph.layers[l.index()].setting.batch_norm);
    let mut moments = running;
    if let Some(mode) = mode.filter(|m| m.takes_moments()) {
        let domains = mode.domains(node.shape.n()).ok_or_else(|| GraphError {
            node: graph.label(id),
            reason: format!("a batch of {} cannot be cut by {:?}", node.shape.n(), mode.domain),
        })?;
        let batch = rewrite.push(Op::BatchNormStats { domains }, vec![x], node.layer, Phase::Forward)?;
        let mut corrected = |op| rewrite.push(op, vec![batch, running], node.layer, Phase::Forward);
        moments = match mode.stats {
            Stats::Running => running,
            Stats::Batch => batch,
            Stats::Blend { alpha } => corrected(Op::BatchNormBlend { alpha })?,
            Stats::Renorm { r_max, d_max } => corrected(Op::BatchNormRenorm { eps, r_max, d_max })?,
        };
    }
    let apply = BatchNormApply { eps, ..Default::default() };
    rewrite.push(Op::BatchNormApply(apply), vec![x, moments, affine], node.layer, Phase::Forward)
}

/// Whether the batch norm `norm` is folded into `conv`.
fn absorbs(graph: &Graph, readers: &[Vec<NodeId>], norm: NodeId, conv: NodeId) -> bool {
    let (norm_node, conv_node) = (graph.node(norm), graph.node(conv));
    let (Op::BatchNorm { .. }, Op::Conv2d(op)) = (norm_node.op, conv_node.op) else { return false };
    let Some(mode) = norm_node.layer.and_then(|l| graph.layers[l.index()].setting.batch_norm) else { return false };
    let is_output = graph.outputs.iter().any(|(_, id)| *id == conv);
    let conv_trains = conv_node.layer.is_some_and(|l| graph.layers[l.index()].setting.weights);
    let affine_trains = mode.affine != Affine::None;
    mode.stats == Stats::Running
        && mode.update == StatsUpdate::Off
        && !is_output
        && readers[conv.index()].len() == 1
        && norm_node.inputs[0] == conv
        // With the convolution frozen, the identity that spares x would cost a whole weight gradient.
        && (conv_trains || !affine_trains)
        // A biased convolution under a batch norm is rare; it trains unfolded.
        && !(op.bias && (conv_trains || affine_trains))
        && (!conv_trains || folding_pays(graph, readers, norm, conv, affine_trains))
}

/// Whether folding anew each step moves fewer words, forward and backward, than a normalisation. Counted are the reads and
/// writes that only one of the two has; `docs/performance.md` has them as a table.
fn folding_pays(graph: &Graph, readers: &[Vec<NodeId>], norm: NodeId, conv: NodeId, affine_trains: bool) -> bool {
    let weight = graph.node(graph.node(conv).inputs[1]).shape.stored_len();
    // Folded weights are written from the weights, and the gradient of the weights from theirs. Both are read for gamma's.
    let folding = weight * if affine_trains { 6 } else { 4 };
    let act = match readers[norm.index()][..] {
        [reader] => match graph.node(reader).op {
            Op::Activation { act, .. } => act,
            _ => Act::Identity,
        },
        _ => Act::Identity,
    };
    // A normalisation reads x and writes y, unless a smooth activation makes the same pass. Backward it reads the gradient and
    // writes that of x; an activation does so in both forms. For gamma and beta it reads the gradient and x, not only the
    // gradient for the bias.
    let passes = match act {
        Act::Identity => 4,
        act if act.is_smooth() => 0,
        _ => 2,
    };
    folding < graph.node(norm).shape.stored_len() * (passes + usize::from(affine_trains))
}
