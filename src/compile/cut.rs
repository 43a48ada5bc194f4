//! Layers with more weights than every device binds at once.

use super::rewrite::Rewrite;
use crate::graph::{Conv2d, Graph, GraphError, NodeId, Op, ParamId, Phase};

/// Computes the output channels of such a layer in groups, each from a [part](crate::graph::Part) of its weights.
pub(super) fn cut(graph: Graph, most_words: usize) -> Result<Graph, GraphError> {
    let params = graph.params_in_parts(most_words);
    if params.len() == graph.params.len() {
        return Ok(graph);
    }
    let mut rewrite = Rewrite::of(&graph);
    let mut layers = graph.layers.clone();
    for (index, param) in params.iter().enumerate().skip(graph.params.len()) {
        layers[param.layer.index()].params.push(ParamId::new(index));
    }
    let parts_of = |whole: ParamId| {
        let is_part = |index: &usize| params[*index].part.is_some_and(|part| part.whole == whole);
        (0..params.len()).filter(is_part).map(ParamId::new).collect::<Vec<_>>()
    };
    rewrite.set_params(params.clone(), layers);
    for (id, node) in graph.nodes() {
        let parts = |operand: NodeId| match graph.node(operand).op {
            Op::Param(param) => parts_of(param),
            _ => Vec::new(),
        };
        match node.op {
            // Where they are read.
            Op::Param(param) if !parts_of(param).is_empty() => {}
            Op::Conv2d(conv @ Conv2d { bias, .. }) if !parts(node.inputs[1]).is_empty() => {
                let weights = parts(node.inputs[1]);
                let biases = if bias { parts(node.inputs[2]) } else { Vec::new() };
                let mut outputs = Vec::with_capacity(weights.len());
                for (index, &weight) in weights.iter().enumerate() {
                    let mut inputs = vec![rewrite.at(node.inputs[0]), rewrite.param(weight)];
                    inputs.extend(biases.get(index).map(|&bias| rewrite.param(bias)));
                    outputs.push(rewrite.push(Op::Conv2d(conv), inputs, node.layer, node.phase)?);
                }
                let joined = rewrite.push(Op::Concat, outputs, node.layer, Phase::Forward)?;
                rewrite.replace(id, joined);
            }
            _ => rewrite.keep(id),
        }
    }
    Ok(rewrite.finish())
}
