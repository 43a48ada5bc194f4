//! Residual additions and activations move into the pass that computes their operand.
//!
//! A smooth activation that has a gradient stays apart, or what it saw would be lost; only a batch norm without residual
//! takes it all the same, since there that is computed anew from what the batch norm keeps.

use super::differentiate::needs_gradient;
use super::rewrite::Rewrite;
use crate::graph::{Act, BatchNormApply, Conv2d, Graph, GraphError, Groups, LayerId, NodeId, Op};

/// An operation that waits for the one reader that absorbs it.
struct Pending {
    op: Op,
    inputs: Vec<NodeId>,
    layer: Option<LayerId>,
}

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let readers = graph.readers();
    let differentiated = needs_gradient(&graph);
    let sole_reader = |id: NodeId| match readers[id.index()][..] {
        [reader] if !graph.outputs.iter().any(|(_, output)| *output == id) => Some(reader),
        _ => None,
    };
    let mut rewrite = Rewrite::of(&graph);
    let mut pending: Vec<Option<Pending>> = graph.nodes.iter().map(|_| None).collect();
    for (id, node) in graph.nodes() {
        let waiting = node.inputs.iter().position(|i| pending[i.index()].is_some());
        let merged = match waiting {
            None => Pending { op: node.op, inputs: rewrite.operands(node), layer: node.layer },
            Some(position) => {
                let producer = pending[node.inputs[position].index()].take().expect("found above");
                match node.op {
                    Op::Activation { act, .. } => Pending { op: with_act(producer.op, act), ..producer },
                    Op::Add { .. } => {
                        let mut inputs = producer.inputs;
                        inputs.push(rewrite.at(node.inputs[1 - position]));
                        Pending { op: with_residual(producer.op), inputs, layer: producer.layer }
                    }
                    _ => unreachable!("only activations and additions absorb"),
                }
            }
        };
        let absorbed = sole_reader(id).is_some_and(|reader| match graph.node(reader).op {
            Op::Activation { act, .. } => {
                let keeps_padding = act.apply(0.0) == 0.0 || node.shape.c().is_multiple_of(4);
                let forgets = differentiated[id.index()] && !remembers(merged.op, act);
                takes_act(merged.op) && keeps_padding && !forgets
            }
            Op::Add { .. } => {
                // Of two candidates the one that is computed first is absorbed: the sum needs the other.
                let &[a, b] = &graph.node(reader).inputs[..] else { return false };
                takes_residual(merged.op) && pending[a.index()].is_none() && pending[b.index()].is_none()
            }
            _ => false,
        });
        if absorbed {
            pending[id.index()] = Some(merged);
            continue;
        }
        match merged.op.is_source() {
            true => rewrite.keep(id),
            false => {
                let by = rewrite.push(merged.op, merged.inputs, merged.layer, node.phase)?;
                rewrite.replace(id, by);
            }
        }
    }
    Ok(rewrite.finish())
}

fn takes_act(op: Op) -> bool {
    match op {
        Op::Conv2d(conv) => conv.act == Act::Identity,
        Op::BatchNormApply(apply) => apply.act == Act::Identity,
        Op::Add { act, .. } => act == Act::Identity,
        _ => false,
    }
}

/// Whether what the gradient of `act` asks for is still known when `op` takes it along: by a mask, or because it is
/// computed anew.
fn remembers(op: Op, act: Act) -> bool {
    match op {
        Op::BatchNormApply(BatchNormApply { residual: false, .. }) => true,
        // Their kernels keep no mask.
        Op::Conv2d(Conv2d { groups: Groups::Several(_) | Groups::Depthwise, .. }) => false,
        _ => !act.is_smooth(),
    }
}

fn takes_residual(op: Op) -> bool {
    match op {
        Op::Dropout { residual, .. } => !residual,
        Op::Conv2d(conv) => !conv.residual && conv.act == Act::Identity,
        Op::BatchNormApply(apply) => !apply.residual && apply.act == Act::Identity,
        _ => false,
    }
}

fn with_act(op: Op, act: Act) -> Op {
    match op {
        Op::Conv2d(conv) => Op::Conv2d(Conv2d { act, ..conv }),
        Op::BatchNormApply(apply) => Op::BatchNormApply(BatchNormApply { act, ..apply }),
        Op::Add { mask, .. } => Op::Add { act, mask },
        op => op,
    }
}

fn with_residual(op: Op) -> Op {
    match op {
        Op::Dropout { rate, whole, stream, .. } => Op::Dropout { rate, whole, stream, residual: true },
        Op::Conv2d(conv) => Op::Conv2d(Conv2d { residual: true, ..conv }),
        Op::BatchNormApply(apply) => Op::BatchNormApply(BatchNormApply { residual: true, ..apply }),
        op => op,
    }
}
