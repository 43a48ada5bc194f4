//! Cuts a compiled graph where its frozen prefix ends.
//!
//! What stands between the images and the first thing that training changes gives the same values for the same image in
//! every epoch, whatever shares its batch. So it can be computed once an image and kept.

use super::eliminate;
use crate::graph::{Graph, GraphError, Node, NodeId, Op, Output, ParamId, Phase};

/// A compiled graph in two parts.
#[derive(Clone, PartialEq, Debug)]
pub struct Split {
    /// From the images to the values that the rest reads: its outputs are [`Output::Feature`]
    pub prefix: Graph,
    /// The rest, which reads them as [`Op::Feature`] and does not read the images.
    pub rest: Graph,
}

/// The parameters that a compiled graph changes.
pub fn changing(graph: &Graph) -> Vec<ParamId> {
    let mutated = |node: &Node| node.op.mutates().iter().map(|&operand| node.inputs[operand]).collect::<Vec<_>>();
    let mut changing: Vec<ParamId> = graph
        .nodes
        .iter()
        .flat_map(mutated)
        .filter_map(|id| match graph.node(id).op {
            Op::Param(param) => Some(param),
            _ => None,
        })
        .collect();
    changing.sort_unstable();
    changing
}

/// Cuts a compiled graph behind everything that follows from each image alone while only the `changing` parameters
/// change. `None` if that is nothing.
///
/// # Errors
/// A part does not hold together; a bug, unless the graph was built by hand.
pub fn split(graph: &Graph, changing: &[ParamId]) -> Result<Option<Split>, GraphError> {
    let classes = classify(graph, changing);
    let class = |id: NodeId| classes[id.index()];
    let is_input = |id: NodeId| graph.node(id).op == Op::Input;
    let of_rest = || graph.nodes().filter(|(id, _)| class(*id) == Class::Rest);
    let read = of_rest().flat_map(|(_, node)| &node.inputs).chain(graph.outputs.iter().map(|(_, id)| id)).copied();
    let mut frontier: Vec<NodeId> = read.filter(|&id| class(id) == Class::Prefix).collect();
    frontier.sort_unstable();
    frontier.dedup();
    // Where the rest needs the images as well, nothing is saved.
    if frontier.is_empty() || frontier.iter().any(|&id| is_input(id)) {
        return Ok(None);
    }

    let mut prefix = graph.clone();
    prefix.outputs = (0..).map(Output::Feature).zip(frontier.iter().copied()).collect();
    let prefix = eliminate::keep(prefix, |_| false);
    let mut rest = graph.clone();
    for (index, &id) in (0..).zip(&frontier) {
        let node = &mut rest.nodes[id.index()];
        *node = Node { op: Op::Feature(index), inputs: Vec::new(), phase: Phase::Forward, ..node.clone() };
    }
    let rest = eliminate::eliminate(rest);
    prefix.verify()?;
    rest.verify()?;
    Ok(Some(Split { prefix, rest }))
}

/// What a node's value follows from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// From parameters that do not change.
    Constant,
    /// From these and, image by image, from the images.
    Prefix,
    Rest,
}

fn classify(graph: &Graph, changing: &[ParamId]) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let all = |allowed: &[Class]| node.inputs.iter().all(|input| allowed.contains(&classes[input.index()]));
        classes.push(match node.op {
            Op::Input => Class::Prefix,
            Op::Param(param) if !changing.contains(&param) => Class::Constant,
            op if op.is_source() || !op.mutates().is_empty() || op.in_place().is_some() => Class::Rest,
            _ if all(&[Class::Constant]) => Class::Constant,
            op if all(&[Class::Constant, Class::Prefix]) && is_imagewise(&op) => Class::Prefix,
            _ => Class::Rest,
        });
    }
    classes
}

/// Whether the result for an image does not depend on the images beside it, and lies apart from theirs.
fn is_imagewise(op: &Op) -> bool {
    matches!(
        op,
        Op::Conv2d(_)
            | Op::BatchNorm { .. }
            | Op::BatchNormApply(_)
            | Op::Activation { .. }
            | Op::Add { .. }
            | Op::Scale { mean: false }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::Concat
            | Op::Slice { .. }
            | Op::Shuffle { .. }
            | Op::Multiply
            | Op::Binary
            | Op::Pad { .. }
            | Op::LayerNorm { moments: false, .. }
            | Op::GroupNorm { moments: false, .. }
    )
}
