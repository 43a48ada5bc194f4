//! A trained network for use elsewhere: its batch norms folded into the convolutions.
//!
//! [`Folding`] is the post-training freeze. The network that comes out is an ordinary one, of convolutions with a bias
//! and fewer layers, which an [`Evaluator`](crate::train::Evaluator) runs and [`to_state`](crate::weights::to_state)
//! writes; [`onnx`](crate::formats::onnx) writes it for other programs.
//!
//! It starts from a network as [`models`](crate::models) and [`Builder`](crate::graph::Builder) give it, and never from
//! a plan: what training does with a batch norm has no say in what is exported.

mod fold;
#[cfg(test)]
pub(crate) mod tests;

pub use fold::{Folded, Folding, Kept, Reason};

use crate::graph::{Graph, GraphError, Layer, NodeId, Output};
use crate::weights::StateDict;
use std::io;
use std::path::PathBuf;

/// The metadata key of a weights file whose tensors are those of a [`Folding`]; the value is `true`.
pub const FOLDED: &str = "folded";

/// Whether the file says that its network is folded.
pub fn is_folded(state: &StateDict) -> bool {
    state.metadata.get(FOLDED).is_some_and(|value| value == "true")
}

/// A network that cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(
        "{node}: `{op}` cannot be exported; export a network as a model or the builder gives it, not one that was \
         compiled"
    )]
    Unsupported { node: String, op: &'static str },
    #[error("{node}: ONNX takes images here, but what a linear layer gives is a vector")]
    NoImage { node: String },
    #[error(
        "`{norm}` cannot be folded into `{into}`: the result would not be finite; look for values that are not finite, \
         or a running variance below zero, in the weights"
    )]
    NotFinite { norm: String, into: String },
    #[error("the network is {bytes} bytes as ONNX, which holds at most {most}; write it as safetensors instead")]
    TooLarge { bytes: u64, most: u64 },
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("cannot write {}: {source}; a file that was there before is unchanged", path.display())]
    Write { path: PathBuf, source: io::Error },
}

pub(crate) fn unsupported(network: &Graph, node: NodeId) -> ExportError {
    ExportError::Unsupported { node: network.label(node), op: network.node(node).op.name() }
}

/// The layer that a node serves.
pub(crate) fn layer(network: &Graph, node: NodeId) -> Option<&Layer> {
    network.node(node).layer.map(|id| &network.layers()[id.index()])
}

pub(crate) fn logits(network: &Graph) -> Result<NodeId, ExportError> {
    let missing = || GraphError { node: "output".into(), reason: "the network has no logits".into() };
    Ok(network.output(Output::Logits).ok_or_else(missing)?)
}
