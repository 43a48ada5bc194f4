//! Batch norms become what their axes ask for.
//!
//! | statistics | convolution before it | what runs |
//! |---|---|---|
//! | running, not moving | frozen, batch norm frozen too | the convolution with the batch norm folded in, once |
//! | running, not moving | trains | the same, folded anew each step; γ's gradient comes from the weights' |
//! | running, not moving | frozen, γ or β trains | convolution, then the normalisation |
//! | batch, or running and moving | any | convolution, moments, normalisation |
//! | blended or renormalised | any | convolution, moments, those from them and the running ones, normalisation |
//!
//! Moments are those of each domain: of the whole batch, or of each ghost batch.

use crate::graph::{Affine, Conv2d, Graph, GraphError, Node, NodeId, Op, Phase, Stats, StatsUpdate};

pub(super) fn fold(graph: Graph) -> Result<Graph, GraphError> {
    let readers = graph.readers();
    let mut new = Graph {
        nodes: Vec::new(),
        layers: graph.layers.clone(),
        models: graph.models.clone(),
        params: graph.params.clone(),
        states: graph.states.clone(),
        outputs: Vec::new(),
    };
    let mut map: Vec<Option<NodeId>> = vec![None; graph.nodes.len()];
    for (id, node) in graph.nodes() {
        // A convolution that its batch norm absorbs appears when the batch norm does.
        if let [reader] = readers[id.index()][..]
            && absorbs(&graph, reader, id)
        {
            continue;
        }
        let mapped = |id: NodeId| map[id.index()].expect("operands come first");
        let (Op::BatchNorm { eps }, &[x, affine, moments]) = (node.op, &node.inputs[..]) else {
            let inputs = node.inputs.iter().map(|&i| mapped(i)).collect();
            new.nodes.push(Node { inputs, ..node.clone() });
            map[id.index()] = Some(NodeId(new.nodes.len() as u32 - 1));
            continue;
        };
        let (affine, moments) = (mapped(affine), mapped(moments));
        let out = if absorbs(&graph, id, x) {
            let product = graph.node(x);
            let Op::Conv2d(conv) = product.op else { unreachable!("only convolutions are absorbed") };
            let mut inputs: Vec<NodeId> = product.inputs.iter().map(|&i| mapped(i)).collect();
            let mut fold = vec![inputs[1], moments, affine];
            fold.extend(inputs.get(2));
            let weight = new.push(Op::FoldBatchNorm { eps, bias: conv.bias }, fold, node.layer, Phase::Forward)?;
            let bias = new.push(Op::SideOutput, vec![weight], node.layer, Phase::Forward)?;
            inputs = vec![inputs[0], weight, bias];
            new.push(Op::Conv2d(Conv2d { bias: true, ..conv }), inputs, product.layer, Phase::Forward)?
        } else {
            let x = mapped(x);
            let mode = node.layer.and_then(|l| graph.layers[l.index()].setting.batch_norm);
            let mut used = moments;
            if let Some(mode) = mode.filter(|m| m.takes_moments()) {
                let domains = mode.domains(node.shape.n()).ok_or_else(|| GraphError {
                    node: graph.label(id),
                    reason: format!("a batch of {} cannot be cut by {:?}", node.shape.n(), mode.domain),
                })?;
                let stats = new.push(Op::BatchNormStats { domains }, vec![x], node.layer, Phase::Forward)?;
                let mut corrected = |op| new.push(op, vec![stats, moments], node.layer, Phase::Forward);
                used = match mode.stats {
                    Stats::Running => moments,
                    Stats::Batch => stats,
                    Stats::Blend { alpha } => corrected(Op::BatchNormBlend { alpha })?,
                    Stats::Renorm { r_max, d_max } => corrected(Op::BatchNormRenorm { eps, r_max, d_max })?,
                };
            }
            let apply = crate::graph::BatchNormApply { eps, ..Default::default() };
            new.push(Op::BatchNormApply(apply), vec![x, used, affine], node.layer, Phase::Forward)?
        };
        map[id.index()] = Some(out);
    }
    let mapped = |id: NodeId| map[id.index()].expect("an output is not absorbed");
    new.outputs = graph.outputs.iter().map(|(name, id)| (name.clone(), mapped(*id))).collect();
    Ok(new)
}

/// Whether the batch norm `norm` is folded into `conv`.
fn absorbs(graph: &Graph, norm: NodeId, conv: NodeId) -> bool {
    let (norm_node, conv_node) = (graph.node(norm), graph.node(conv));
    let (Op::BatchNorm { .. }, Op::Conv2d(op)) = (norm_node.op, conv_node.op) else { return false };
    let Some(mode) = norm_node.layer.and_then(|l| graph.layers[l.index()].setting.batch_norm) else { return false };
    let is_output = graph.outputs.iter().any(|(_, id)| *id == conv);
    let conv_trains = conv_node.layer.is_some_and(|l| graph.layers[l.index()].setting.weights);
    let affine_trains = mode.affine != Affine::None;
    let shared = graph.nodes.iter().filter(|n| n.inputs.contains(&conv)).count() > 1;
    mode.stats == Stats::Running
        && mode.update == StatsUpdate::Off
        && !is_output
        && !shared
        && norm_node.inputs[0] == conv
        // With the convolution frozen, the identity that spares x would cost a whole weight gradient.
        && (conv_trains || !affine_trains)
        // A biased convolution under a batch norm is rare; it trains unfolded.
        && !(op.bias && (conv_trains || affine_trains))
}
