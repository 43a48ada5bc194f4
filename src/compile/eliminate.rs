//! Nodes that nobody reads disappear.

use crate::graph::{Graph, Node, NodeId};

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
    let mut map = vec![None; graph.nodes.len()];
    let mut nodes = Vec::new();
    for (index, node) in graph.nodes.into_iter().enumerate() {
        if needed[index] {
            let inputs = node.inputs.iter().map(|i| map[i.index()].expect("operands are needed too")).collect();
            map[index] = Some(NodeId(nodes.len() as u32));
            nodes.push(Node { inputs, ..node });
        }
    }
    let outputs = graph.outputs.into_iter().map(|(name, id)| (name, map[id.index()].expect("needed"))).collect();
    Graph { nodes, outputs, ..graph }
}
