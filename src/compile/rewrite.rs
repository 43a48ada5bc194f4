//! A graph written anew, node by node: what the passes share that replace some nodes by others.

use crate::graph::{Graph, GraphError, Layer, LayerId, Node, NodeId, Op, Param, ParamId, Phase};

/// A graph in the making, and where in it the nodes of the old one are.
pub(super) struct Rewrite<'a> {
    old: &'a Graph,
    new: Graph,
    map: Vec<Option<NodeId>>,
}

impl<'a> Rewrite<'a> {
    /// Begins without nodes. Layers, models, parameters and states are those of `old`.
    pub fn of(old: &'a Graph) -> Self {
        let new = Graph {
            nodes: Vec::new(),
            layers: old.layers.clone(),
            models: old.models.clone(),
            params: old.params.clone(),
            states: old.states.clone(),
            outputs: Vec::new(),
        };
        Self { old, new, map: vec![None; old.nodes.len()] }
    }

    /// Where the old node `id` is now.
    ///
    /// # Panics
    /// It has no place yet: operands come before their readers, and who leaves a node out rewires its readers.
    pub fn at(&self, id: NodeId) -> NodeId {
        self.map[id.index()].expect("operands come first")
    }

    /// The operands of the old node `node`, as they are now.
    pub fn operands(&self, node: &Node) -> Vec<NodeId> {
        node.inputs.iter().map(|&input| self.at(input)).collect()
    }

    /// Appends a node that the old graph does not have.
    ///
    /// # Errors
    /// The operands do not fit the operation.
    pub fn push(
        &mut self,
        op: Op,
        inputs: Vec<NodeId>,
        layer: Option<LayerId>,
        phase: Phase,
    ) -> Result<NodeId, GraphError> {
        self.new.push(op, inputs, layer, phase)
    }

    /// Has the new graph other parameters than the old one, and its layers those.
    pub fn set_params(&mut self, params: Vec<Param>, layers: Vec<Layer>) {
        self.new.params = params;
        self.new.layers = layers;
    }

    /// Appends a node that gives a parameter of the new graph.
    pub fn param(&mut self, param: ParamId) -> NodeId {
        let shape = self.new.param(param).shape;
        self.new.source(Op::Param(param), shape)
    }

    /// Takes over the old node `id` as it is.
    pub fn keep(&mut self, id: NodeId) {
        let node = self.old.node(id);
        let inputs = self.operands(node);
        self.new.nodes.push(Node { inputs, ..node.clone() });
        self.map[id.index()] = Some(NodeId(self.new.nodes.len() as u32 - 1));
    }

    /// Has `by` stand for the old node `id`.
    pub fn replace(&mut self, id: NodeId, by: NodeId) {
        self.map[id.index()] = Some(by);
    }

    /// The new graph, with the outputs of the old one.
    pub fn finish(mut self) -> Graph {
        self.new.outputs = self.old.outputs.iter().map(|&(output, id)| (output, self.at(id))).collect();
        self.new
    }
}
