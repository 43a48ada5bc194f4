//! Nodes that nobody reads disappear.

use crate::graph::{Graph, Node, NodeId};

pub(super) fn eliminate(graph: Graph) -> Graph {
    let mut needed: Vec<bool> = graph.nodes.iter().map(|n| !n.op.mutates().is_empty()).collect();
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
    Graph { nodes, outputs, layers: graph.layers, params: graph.params, states: graph.states }
}
