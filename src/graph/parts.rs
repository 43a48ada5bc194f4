//! Parameters in parts: a compiled graph has those as several that not every device could bind at once.
//!
//! Only a kernel's view of a parameter is limited, so files, policies and reports know whole parameters only.

use super::{Graph, Groups, LayerId, Op, Param, ParamId, Role};
use crate::tensor::Shape;

/// Words that every device binds at once: 128 MiB, WebGPU's own limit.
pub(crate) const MOST_WORDS: usize = 1 << 25;

/// A part of a network's parameter: its output channels from `begin` on, a multiple of four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    pub whole: ParamId,
    pub begin: usize,
}

impl Graph {
    /// The parameters, each as few parts of at most `most_words` words: the weights and the bias of a linear layer or of a
    /// convolution by their output channels, in as equal parts as whole quads make them. A first part has the place of the whole;
    /// the others come behind all parameters. Of parts, they are themselves.
    pub(crate) fn params_in_parts(&self, most_words: usize) -> Vec<Param> {
        let mut params = self.params.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let most_channels = most_channels(self, LayerId::new(index), most_words);
            for &id in &layer.params {
                let whole = &self.params[id.index()];
                if !matches!(whole.role, Role::ConvWeight | Role::LinearWeight | Role::Bias) || whole.part.is_some() {
                    continue;
                }
                let [kh, kw, rows, channels] = whole.shape.0;
                let count = channels.div_ceil(most_channels);
                if count < 2 {
                    continue;
                }
                let step = whole.shape.quads().div_ceil(count) * 4;
                for begin in (0..channels).step_by(step) {
                    let own = step.min(channels - begin);
                    let part = Param {
                        shape: Shape([kh, kw, rows, own]),
                        channels: if whole.role == Role::Bias { own } else { whole.channels },
                        part: Some(Part { whole: id, begin }),
                        ..whole.clone()
                    };
                    match begin {
                        0 => params[id.index()] = part,
                        _ => params.push(part),
                    }
                }
            }
        }
        params
    }
}

/// The output channels of a layer, a multiple of four, whose weights are at most `most_words` words.
fn most_channels(graph: &Graph, layer: LayerId, most_words: usize) -> usize {
    let is_product = |op: &Op| matches!(op, Op::Conv2d(conv) if conv.groups == Groups::One);
    let weight = graph.layers[layer.index()].params.first().map(|&id| graph.param(id));
    let weight = weight.filter(|weight| weight.shape.stored_len() > most_words);
    // Only what has many weights is looked up in the nodes.
    match weight.filter(|_| graph.nodes().any(|(_, node)| node.layer == Some(layer) && is_product(&node.op))) {
        Some(weight) => (most_words / weight.shape.pixels() / 4 * 4).max(4),
        None => usize::MAX,
    }
}
