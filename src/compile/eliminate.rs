//! Nodes that nobody reads disappear.

use super::rewrite::Rewrite;
use crate::graph::{Graph, Node};

/// Keeps outputs, state changes, and what they are computed from.
pub(super) fn eliminate(graph: Graph) -> Graph {
    keep(graph, |node| !node.op.mutates().is_empty())
}

/// Keeps outputs, the nodes that are `wanted`, and what they are computed from.
pub(super) fn keep(graph: Graph, wanted: impl Fn(&Node) -> bool) -> Graph {
    let mut needed: Vec<bool> = graph.nodes.iter().map(wanted).collect();
    for (_, output) in &graph.outputs {
        needed[output.index()] = true;
    }
    for index in (0..graph.nodes.len()).rev() {
        if needed[index] {
            for input in &graph.nodes[index].inputs {
                needed[input.index()] = true;
            }
        }
    }
    let mut rewrite = Rewrite::of(&graph);
    for (id, _) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
        rewrite.keep(id);
    }
    rewrite.finish()
}
