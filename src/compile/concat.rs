//! Concatenations of concatenations, as densely connected networks have them (Huang et al. 2017).
//!
//! Each layer of a dense block reads what all layers before it gave, side by side. Written out, that is one copy of everything
//! for each layer, and all copies are kept for the backward pass: memory by the square of the layers. But each is the beginning
//! of the next. So [`nest`] has a concatenation begin with the longest earlier one that it contains, and [`recover`] has the
//! backward pass take out of the last one that it keeps what it wants of the others (after Pleiss et al. 2017, who compute
//! them anew).

use super::rewrite::Rewrite;
use crate::graph::{Graph, GraphError, NodeId, Op, Phase};
use std::collections::HashMap;

/// Has each concatenation begin with the longest earlier one whose operands its own begin with.
pub(super) fn nest(graph: Graph) -> Result<Graph, GraphError> {
    let mut rewrite = Rewrite::of(&graph);
    let mut earlier: HashMap<&[NodeId], NodeId> = HashMap::new();
    for (id, node) in graph.nodes() {
        if node.op != Op::Concat {
            rewrite.keep(id);
            continue;
        }
        let operands = &node.inputs[..];
        let within = (2..=operands.len()).rev().find_map(|count| Some((count, *earlier.get(&operands[..count])?)));
        match within {
            Some((count, same)) if count == operands.len() => rewrite.replace(id, rewrite.at(same)),
            Some((count, first)) => {
                let inputs = [first].iter().chain(&operands[count..]).map(|&input| rewrite.at(input)).collect();
                let nested = rewrite.push(Op::Concat, inputs, node.layer, node.phase)?;
                rewrite.replace(id, nested);
            }
            None => rewrite.keep(id),
        }
        earlier.entry(operands).or_insert(id);
    }
    Ok(rewrite.finish())
}

/// Has the backward pass read a concatenation that another begins with as a part of that one, if it reads that one, too.
pub(super) fn recover(graph: Graph) -> Result<Graph, GraphError> {
    let reads = |node: &crate::graph::Node| node.phase == Phase::Backward;
    let mut is_read = vec![false; graph.nodes.len()];
    for input in graph.nodes.iter().filter(|node| reads(node)).flat_map(|node| &node.inputs) {
        is_read[input.index()] = true;
    }
    // The last one that is read and that each begins; operands come first, so from the back.
    let mut whole: Vec<Option<NodeId>> = vec![None; graph.nodes.len()];
    for (id, node) in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let is_concat = |id: NodeId| graph.node(id).op == Op::Concat;
        if node.op == Op::Concat && is_concat(node.inputs[0]) {
            let last = whole[id.index()].or_else(|| is_read[id.index()].then_some(id));
            let of_first = &mut whole[node.inputs[0].index()];
            *of_first = of_first.or(last);
        }
    }
    let mut rewrite = Rewrite::of(&graph);
    let mut taken: HashMap<NodeId, NodeId> = HashMap::new();
    for (id, node) in graph.nodes() {
        let wanted = |input: &NodeId| whole[input.index()].is_some();
        if !reads(node) || !node.inputs.iter().any(wanted) {
            rewrite.keep(id);
            continue;
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for &input in &node.inputs {
            inputs.push(match (whole[input.index()], taken.get(&input)) {
                (None, _) => rewrite.at(input),
                (_, Some(&part)) => part,
                (Some(whole), None) => {
                    let of = graph.node(input);
                    let op = Op::Slice { begin: 0, channels: of.shape.c(), accumulate: false };
                    let part = rewrite.push(op, vec![rewrite.at(whole)], of.layer, Phase::Backward)?;
                    taken.insert(input, part);
                    part
                }
            });
        }
        let by = rewrite.push(node.op, inputs, node.layer, node.phase)?;
        rewrite.replace(id, by);
    }
    Ok(rewrite.finish())
}
