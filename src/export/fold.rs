//! Batch norms under running statistics become a part of the convolution before them.
//!
//! With the convolution's weights w and bias b (0 if it has none), and the batch norm's γ, β, μ, v and ε:
//!
//! ```text
//! s = γ/√(v + ε)        folded = w·s        folded_bias = β + (b − μ)·s
//! ```
//!
//! Computed in f64 and rounded once.

use super::{ExportError, layer, logits, unsupported};
use crate::graph::{Act, Builder, Conv2d, Graph, LayerKind, NodeId, Op, ParamId, Role, Taken};
use crate::tensor::HostTensor;
use std::collections::HashMap;
use std::fmt;

/// A network without the batch norms that a convolution or linear layer absorbs, and where its parameters come from.
///
/// # Example
/// ```
/// use thawline::export::Folding;
/// use thawline::{models, weights};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = models::build("resnet18", 1, (64, 64), 10)?;
/// let tensors = weights::initialise(&network, 0);
/// let folding = Folding::of(&network)?;
/// assert_eq!((folding.folded.len(), folding.kept.len()), (20, 0));
/// let state = weights::to_state(&folding.graph, &folding.tensors(&tensors)?);
/// assert_eq!(state.tensors["conv1.bias"].shape, [64]);
/// assert!(!state.tensors.contains_key("bn1.weight"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Folding {
    /// The network without them: all other layers as they were, every one frozen, and a bias where a batch norm went.
    pub graph: Graph,
    /// In graph order.
    pub folded: Vec<Folded>,
    /// In graph order.
    pub kept: Vec<Kept>,
    /// One a parameter of `graph`.
    sources: Vec<Source>,
}

/// A batch norm that is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folded {
    pub norm: String,
    /// The layer that does its work now.
    pub into: String,
}

/// A batch norm that stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    pub norm: String,
    pub reason: Reason,
}

/// Why a batch norm stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It normalises something else than the output of a convolution or linear layer.
    NoConvolution,
    /// Another layer, or the caller, reads the same output before it is normalised.
    Shared,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoConvolution => "no convolution stands before it",
            Self::Shared => "something else reads the convolution before it, too",
        })
    }
}

/// Where a parameter comes from, in the parameters of the network that was folded.
#[derive(Clone, Copy, Debug)]
enum Source {
    Same(ParamId),
    Weight(ParamId, Norm),
    Bias(Option<ParamId>, Norm),
}

/// The batch norm that a parameter absorbs.
#[derive(Clone, Copy, Debug)]
struct Norm {
    affine: ParamId,
    moments: ParamId,
    eps: f32,
    /// Its place in [`Folding::folded`].
    index: usize,
}

impl Folding {
    /// Folds every batch norm that is the only reader of a convolution or linear layer. That follows from the structure
    /// alone, so that the network of folded weights can be built again without the weights that they came from.
    ///
    /// # Errors
    /// The graph is no network as a model or the builder gives it: names the first operation that tells.
    pub fn of(network: &Graph) -> Result<Self, ExportError> {
        let products = products(network);
        let absorbed: HashMap<NodeId, NodeId> =
            products.iter().filter_map(|(&norm, product)| Some((product.ok()?, norm))).collect();
        let mut b = Builder::new();
        b.models(network.models().to_vec());
        let mut map: Vec<Option<NodeId>> = vec![None; network.nodes().count()];
        let (mut folded, mut kept, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for (id, node) in network.nodes() {
            let operand = |i: usize| map[node.inputs[i].index()].expect("operands come first");
            let Some(layer) = layer(network, id) else {
                let (Op::Input, [n, h, w, c]) = (node.op, node.shape.0) else { return Err(unsupported(network, id)) };
                map[id.index()] = Some(b.input(n, h, w, c)?);
                continue;
            };
            b.block(layer.block.as_deref());
            b.position(&layer.position);
            b.averaging(layer.averaging);
            b.affine(layer.affine);
            let name = layer.name.as_str();
            let same = || layer.params.iter().copied().map(Source::Same);
            let new = match node.op {
                // The builder adds parameters with their layer.
                Op::Param(_) => continue,
                Op::Conv2d(Conv2d { window, groups, bias, residual: false, act: Act::Identity, mask: false }) => {
                    let norm = absorbed.get(&id);
                    match norm {
                        None => sources.extend(same()),
                        Some(&norm) => {
                            let (norm, absorbed) = Norm::of(network, norm, folded.len());
                            folded.push(Folded { norm: absorbed.to_owned(), into: name.to_owned() });
                            sources.push(Source::Weight(layer.params[0], norm));
                            sources.push(Source::Bias(layer.params.get(1).copied(), norm));
                        }
                    }
                    match layer.kind {
                        LayerKind::Linear => {
                            let taken = Taken::of(window, network.node(node.inputs[0]).shape);
                            b.linear_of(name, operand(0), node.shape.c(), taken, bias || norm.is_some())?
                        }
                        _ => b.grouped_conv2d(
                            name,
                            operand(0),
                            node.shape.c(),
                            window,
                            groups.count(node.shape.c()),
                            bias || norm.is_some(),
                        )?,
                    }
                }
                Op::BatchNorm { eps } => match products[&id] {
                    Ok(_) => operand(0),
                    Err(reason) => {
                        kept.push(Kept { norm: name.to_owned(), reason });
                        sources.extend(same());
                        b.batch_norm(name, operand(0), eps)?
                    }
                },
                Op::Activation { act, mask: false } => b.activation(name, operand(0), act)?,
                Op::Scale { mean: false } if layer.kind == LayerKind::LayerScale => {
                    sources.extend(same());
                    let dims = if network.param(layer.params[0]).role == Role::ImageScale { 3 } else { 1 };
                    b.layer_scale(name, operand(0), dims)?
                }
                Op::Scale { mean: false } => b.scale(name, operand(0), operand(1))?,
                Op::GroupNorm { eps, groups, .. } => {
                    sources.extend(same());
                    b.group_norm(name, operand(0), groups, eps)?
                }
                Op::LayerNorm { eps, .. } => {
                    sources.extend(same());
                    b.layer_norm(name, operand(0), eps)?
                }
                Op::Concat => {
                    let operands: Vec<NodeId> = (0..node.inputs.len()).map(operand).collect();
                    b.concat(name, &operands)?
                }
                Op::Slice { begin, channels, .. } => b.slice(name, operand(0), begin, channels)?,
                Op::Shuffle { groups } => b.shuffle(name, operand(0), groups)?,
                Op::Multiply => b.multiply(name, operand(0), operand(1))?,
                Op::Pad { padding } => b.pad(name, operand(0), padding)?,
                Op::Binary => b.binary(name, operand(0))?,
                Op::Dropout { rate, whole: false, residual: false, .. } => b.dropout(name, operand(0), rate)?,
                Op::Dropout { rate, whole: true, residual: false, .. } => b.stochastic_depth(name, operand(0), rate)?,
                Op::Add { act: Act::Identity, mask: false } => b.add(name, operand(0), operand(1))?,
                Op::MaxPool { window, argmax: false } => b.max_pool(name, operand(0), window)?,
                Op::AvgPool { window, counted } => b.avg_pool(name, operand(0), window, counted)?,
                _ => return Err(unsupported(network, id)),
            };
            // An absorbed batch norm added no layer.
            if let Some(alias) = layer.alias.as_deref().filter(|_| !matches!(products.get(&id), Some(Ok(_)))) {
                b.alias(alias)?;
            }
            map[id.index()] = Some(new);
        }
        let logits = map[logits(network)?.index()].expect("every layer is mapped");
        Ok(Self { graph: b.finish(logits)?, folded, kept, sources })
    }

    /// The parameters of [`graph`](Self::graph), from those of the network that was folded.
    ///
    /// # Errors
    /// A batch norm's folding is not finite: it was trained to ruin, or a file's variance is below zero.
    ///
    /// # Panics
    /// `tensors` are not the network's.
    pub fn tensors(&self, tensors: &[HostTensor]) -> Result<Vec<HostTensor>, ExportError> {
        let of = |param: ParamId| &tensors[param.index()];
        self.sources
            .iter()
            .zip(self.graph.params())
            .map(|(&source, param)| {
                let c = param.shape.stored_c();
                let (data, norm): (Vec<f32>, _) = match source {
                    Source::Same(same) => return Ok(of(same).clone()),
                    Source::Weight(weight, norm) => {
                        let scales: Vec<f64> = (0..c).map(|channel| norm.scale(tensors, channel)).collect();
                        let scaled = |(&w, &scale): (&f32, &f64)| (f64::from(w) * scale) as f32;
                        let rows = of(weight).data.chunks_exact(c);
                        (rows.flat_map(|row| row.iter().zip(&scales).map(scaled)).collect(), norm)
                    }
                    Source::Bias(bias, norm) => {
                        let bias = |channel| bias.map_or(0.0, |bias| f64::from(of(bias).data[channel]));
                        let shifted = |channel| norm.shifted(tensors, channel, bias(channel)) as f32;
                        ((0..c).map(shifted).collect(), norm)
                    }
                };
                assert_eq!(data.len(), param.shape.stored_len(), "the tensors are the network's");
                if data.iter().any(|value| !value.is_finite()) {
                    let Folded { norm, into } = self.folded[norm.index].clone();
                    return Err(ExportError::NotFinite { norm, into });
                }
                Ok(HostTensor { shape: param.shape, data })
            })
            .collect()
    }
}

impl Norm {
    /// The batch norm of the node `id`, and its name.
    fn of(network: &Graph, id: NodeId, index: usize) -> (Self, &str) {
        let Op::BatchNorm { eps } = network.node(id).op else { unreachable!("only batch norms are absorbed") };
        let layer = layer(network, id).expect("a batch norm is a layer");
        (Self { affine: layer.params[0], moments: layer.params[1], eps, index }, &layer.name)
    }

    /// γ/√(v + ε)
    fn scale(&self, tensors: &[HostTensor], channel: usize) -> f64 {
        let [gamma, _] = rows(&tensors[self.affine.index()], channel);
        let [_, variance] = rows(&tensors[self.moments.index()], channel);
        gamma / (variance + f64::from(self.eps)).sqrt()
    }

    /// β + (b − μ)·γ/√(v + ε)
    fn shifted(&self, tensors: &[HostTensor], channel: usize, bias: f64) -> f64 {
        let [_, beta] = rows(&tensors[self.affine.index()], channel);
        let [mean, _] = rows(&tensors[self.moments.index()], channel);
        beta + (bias - mean) * self.scale(tensors, channel)
    }
}

/// A channel of the first two rows.
fn rows(tensor: &HostTensor, channel: usize) -> [f64; 2] {
    [0, 1].map(|row| f64::from(tensor.data[row * tensor.shape.stored_c() + channel]))
}

/// For each batch norm the convolution or linear layer that absorbs it, or why none does.
fn products(network: &Graph) -> HashMap<NodeId, Result<NodeId, Reason>> {
    let readers = network.readers();
    let is_output = |id: NodeId| network.outputs().iter().any(|(_, output)| *output == id);
    let norms = network.nodes().filter(|(_, node)| matches!(node.op, Op::BatchNorm { .. }));
    let product = |x: NodeId| match network.node(x).op {
        Op::Conv2d(_) if readers[x.index()].len() > 1 || is_output(x) => Err(Reason::Shared),
        Op::Conv2d(_) => Ok(x),
        _ => Err(Reason::NoConvolution),
    };
    norms.map(|(id, node)| (id, product(node.inputs[0]))).collect()
}
