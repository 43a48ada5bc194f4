//! What every graph must satisfy.

use super::{Graph, GraphError, LayerId, Model, NodeId, Op};
use crate::tensor::Shape;

impl Graph {
    /// The shape that `op` gives on `inputs`.
    pub(super) fn infer(&self, op: &Op, inputs: &[NodeId], layer: Option<LayerId>) -> Result<Shape, GraphError> {
        let fail = |reason| {
            let node = match layer {
                Some(layer) => format!("{} ({})", self.layers[layer.index()].name, op.name()),
                None => op.name().to_owned(),
            };
            GraphError { node, reason }
        };
        match *op {
            Op::Param(param) => Ok(self.params[param.index()].shape),
            Op::State(state) => Ok(self.states[state.index()].shape),
            Op::SideOutput => {
                let [producer] = inputs else { return Err(fail("takes one operand".into())) };
                let producer = self.node(*producer);
                let shape = producer.op.side_shape(producer.shape);
                shape.ok_or_else(|| fail(format!("{} has no side output", producer.op.name())))
            }
            _ => {
                let shapes: Vec<Shape> = inputs.iter().map(|&id| self.node(id).shape).collect();
                op.infer(&shapes).map_err(fail)
            }
        }
    }

    /// Checks that each model, and each layer that has a position, is one of the layers of a model.
    pub(super) fn check_models(&self) -> Result<(), GraphError> {
        let fail = |node: &str, reason: String| Err(GraphError { node: node.to_owned(), reason });
        if let Some(pair) = self.models.windows(2).find(|pair| pair[0].position == pair[1].position) {
            return fail(&pair[1].name, format!("its position {:?} is another model's", pair[1].position));
        }
        let models = self.models.iter().map(|model| (&model.name, &model.position));
        for (name, position) in models.chain(self.layers.iter().map(|layer| (&layer.name, &layer.position))) {
            let Some((&number, around)) = position.split_last() else { continue };
            match self.model_at(around) {
                Some(model) if number < model.layers => {}
                Some(Model { name: model, layers, .. }) => {
                    let model = if model.is_empty() { "the outermost model" } else { model };
                    return fail(name, format!("its position {position:?} is behind the {layers} layers of {model}"));
                }
                // A list without models has no end.
                None if self.models.is_empty() && around.is_empty() => {}
                None => return fail(name, format!("its position {position:?} is in none of the models")),
            }
        }
        Ok(())
    }

    /// Checks that operands come before their readers, that shapes agree, and that nothing is read after it was
    /// overwritten.
    ///
    /// # Errors
    /// The first node that breaks a rule, by name, with the shapes.
    pub fn verify(&self) -> Result<(), GraphError> {
        let mut overwritten = vec![None; self.nodes.len()];
        for (id, node) in self.nodes() {
            let fail = |reason| GraphError { node: self.label(id), reason };
            for &input in &node.inputs {
                if input >= id {
                    return Err(fail(format!("reads {}, which comes later", self.label(input))));
                }
                if let Some(by) = overwritten[input.index()] {
                    return Err(fail(format!("reads {}, which {} overwrote", self.label(input), self.label(by))));
                }
            }
            if !matches!(node.op, Op::Input | Op::Labels | Op::ClassWeights | Op::Feature(_)) {
                let shape = self.infer(&node.op, &node.inputs, node.layer)?;
                if shape != node.shape {
                    return Err(fail(format!("is recorded as {} but computes {shape}", node.shape)));
                }
            }
            for &operand in node.op.in_place().iter().chain(node.op.mutates()) {
                let input = node.inputs[operand];
                let state = matches!(self.node(input).op, Op::State(_) | Op::Param(_));
                if state == node.op.mutates().is_empty() {
                    return Err(fail(format!("would overwrite {}", self.label(input))));
                }
                overwritten[input.index()] = Some(id);
            }
        }
        match self.outputs.iter().find(|(_, id)| overwritten[id.index()].is_some()) {
            Some((output, id)) => Err(GraphError {
                node: self.label(*id),
                reason: format!("is the output `{output}` but is overwritten"),
            }),
            None => Ok(()),
        }
    }
}
