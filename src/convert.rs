//! From one variant of a network to another: the parameters that one framework's file has, as another's means them.
//!
//! Layers correspond by what they compute, not by their names or their order: a convolution's counterpart is the one of
//! the same shape whose input is computed in the same way, all the way down to the images. [`convert`] turns parameters
//! over, and gives an account of what was converted and of what no parameter can express.

use crate::graph::{Act, Affine, Averaging, Graph, Groups, Layer, LayerKind, NodeId, Op, ParamId, Variance, Window};
use crate::preprocessing::Preprocessing;
use crate::tensor::HostTensor;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

/// A variant of a network, and what is said of it beside its graph.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    pub name: &'a str,
    /// As built, for images of a size that both variants are built for: padding may depend on it.
    pub graph: &'a Graph,
    /// How images become what the network takes.
    pub preprocessing: Preprocessing,
}

/// A network's parameters as another variant has them.
#[derive(Clone, PartialEq, Debug)]
pub struct Converted {
    /// In the order of the other variant's parameters.
    pub tensors: Vec<HostTensor>,
    /// The layers with parameters and their counterparts, in the other variant's order.
    pub layers: Vec<(String, String)>,
    /// In what the variants differ, what was converted first.
    pub account: Vec<Remark>,
}

/// A difference between two variants. Layers are the other variant's, at least one.
#[derive(Clone, PartialEq, Debug)]
pub enum Remark {
    /// Linear layers that are convolutions in the other variant, or the other way round.
    Linear { layers: Vec<String> },
    /// Convolutions whose bias the other variant has not; the running means of the batch norms behind them take it up.
    BiasAbsorbed { layers: Vec<String> },
    /// Convolutions that had no bias: it is zero.
    BiasAdded { layers: Vec<String> },
    /// Convolutions of images whose colours come in another order; so do their weights now.
    Colours { layers: Vec<String> },
    /// Batch norms with another ε. Their γ takes up the difference, so that inference stays the same.
    Epsilon {
        from: f32,
        to: f32,
        layers: Vec<String>,
        /// The factor on a channel's γ that is furthest from 1.
        factor: f64,
    },
    /// Windows of another stride.
    Stride { layers: Vec<String> },
    /// Windows of other padding.
    Padding { layers: Vec<String> },
    /// Images that are prepared otherwise, before and after; the order of the channels is converted.
    Images { from: Preprocessing, to: Preprocessing, size: (usize, usize) },
    /// Another estimator of the stored variance. To convert it takes the number of values that it was estimated over.
    Variance { from: Variance, to: Variance },
    /// Another speed of the running statistics, which is no parameter.
    Keep { from: f32, to: f32 },
    /// Dropout and stochastic depth: how many layers, and the largest rate of any, before and after.
    Dropping { from: (usize, f32), to: (usize, f32) },
}

/// Why the parameters of one variant cannot become another's.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("{from} and {to} are not one network: nothing in {from} computes what `{layer}` of {to} does")]
    Missing { from: String, to: String, layer: String },
    #[error("{from} and {to} are not one network: nothing in {to} computes what `{layer}` of {from} does")]
    Leftover { from: String, to: String, layer: String },
    #[error(
        "`{layer}` has a bias, but its counterpart `{counterpart}` has neither one nor a batch norm behind it that could \
         take it up"
    )]
    Bias { layer: String, counterpart: String },
    #[error(
        "`{layer}` takes the images, whose red and blue change places, but it is no convolution whose weights could"
    )]
    Colours { layer: String },
    #[error("`{layer}` has a {part}, or needs one for another epsilon, but its counterpart `{counterpart}` has none")]
    Affine { layer: String, counterpart: String, part: &'static str },
    #[error(
        "`{layer}`: its epsilon cannot be converted, for it has a running variance below 0 or one that is not a number; \
         convert weights from before training diverged"
    )]
    Variance { layer: String },
}

/// The parameters `tensors` of `from`, as `to` has them.
///
/// # Errors
/// The variants are not of one network, a bias, gamma or beta has no place, or a variance is impossible.
///
/// # Panics
/// `tensors` are not those of `from`.
pub fn convert(from: &Variant, to: &Variant, tensors: &[HostTensor]) -> Result<Converted, ConvertError> {
    let readers = to.graph.readers();
    let into_batch_norms = |id: NodeId| {
        let is_output = to.graph.outputs().iter().any(|(_, output)| *output == id);
        !is_output && readers[id.index()].iter().all(|&id| matches!(to.graph.node(id).op, Op::BatchNorm { .. }))
    };
    let mut account = Account::default();
    let mut layers = Vec::new();
    let mut converted: BTreeMap<ParamId, HostTensor> = BTreeMap::new();
    // Biases that the convolutions of `to` have no place for.
    let mut homeless: HashMap<NodeId, ParamId> = HashMap::new();
    for (source, target) in correspond(from, to)? {
        // The images belong to no layer.
        let (Some(old), Some(new)) = (Place::of(from.graph, source), Place::of(to.graph, target)) else { continue };
        let swaps = from.preprocessing.bgr != to.preprocessing.bgr && to.graph.node(new.input).op == Op::Input;
        if swaps && !matches!(new.op, Op::Conv2d(conv) if conv.groups == Groups::One) {
            return Err(ConvertError::Colours { layer: old.layer.name.clone() });
        }
        account.windows(old, new);
        if new.layer.params.is_empty() {
            continue;
        }
        layers.push((old.layer.name.clone(), new.layer.name.clone()));
        let same = |id: ParamId| tensors[id.index()].clone();
        if let (&Op::BatchNorm { eps: old_eps }, &Op::BatchNorm { eps: new_eps }) = (old.op, new.op) {
            let [mut affine, mut moments] = [same(old.layer.params[0]), same(old.layer.params[1])];
            let (channels, c) = (affine.shape.c(), affine.shape.stored_c());
            if let Some(bias) = homeless.get(&new.input) {
                for (mean, bias) in moments.data.iter_mut().zip(&tensors[bias.index()].data) {
                    *mean -= bias;
                }
            }
            if old_eps != new_eps {
                let factor = rescale(&mut affine.data[..channels], &moments.data[c..], old_eps, new_eps);
                let factor = factor.ok_or_else(|| ConvertError::Variance { layer: old.layer.name.clone() })?;
                account.epsilon(old_eps, new_eps, factor, new);
            }
            let rows = [("gamma", Affine::Gamma, 0, 1.0), ("beta", Affine::Beta, c, 0.0)];
            for (part, kept, row, neutral) in rows {
                let absent = new.layer.affine.and(kept) == Affine::None;
                if absent && affine.data[row..row + channels].iter().any(|value| *value != neutral) {
                    let [layer, counterpart] = [old, new].map(|place| place.layer.name.clone());
                    return Err(ConvertError::Affine { layer, counterpart, part });
                }
            }
            converted.extend([(new.layer.params[0], affine), (new.layer.params[1], moments)]);
            continue;
        }
        let [old_weight, new_weight] = [old, new].map(|place| place.layer.params[0]);
        let mut weight = same(old_weight);
        if swaps {
            swap_red_and_blue(&mut weight);
            account.colours.push(new.layer.name.clone());
        }
        converted.insert(new_weight, weight);
        if old.layer.kind != new.layer.kind {
            account.linear.push(new.layer.name.clone());
        }
        match [old, new].map(|place| place.layer.params.get(1).copied()) {
            [Some(old_bias), Some(new_bias)] => _ = converted.insert(new_bias, same(old_bias)),
            [None, Some(new_bias)] => {
                converted.insert(new_bias, HostTensor::zeros(to.graph.param(new_bias).shape));
                account.added.push(new.layer.name.clone());
            }
            [Some(old_bias), None] if into_batch_norms(target) => {
                homeless.insert(target, old_bias);
                account.absorbed.push(new.layer.name.clone());
            }
            [Some(_), None] => {
                let [layer, counterpart] = [old, new].map(|place| place.layer.name.clone());
                return Err(ConvertError::Bias { layer, counterpart });
            }
            [None, None] => {}
        }
    }
    Ok(Converted { tensors: converted.into_values().collect(), layers, account: account.remarks(from, to) })
}

/// Weights are `[KH][KW][Cin][Cout]`.
fn swap_red_and_blue(weight: &mut HostTensor) {
    let (rows, c) = (weight.shape.0[2], weight.shape.stored_c());
    for tap in weight.data.chunks_exact_mut(rows * c) {
        let (red, rest) = tap.split_at_mut(2 * c);
        red[..c].swap_with_slice(&mut rest[..c]);
    }
}

/// γ·√((v + ε′)/(v + ε)) under ε′ is what γ is under ε: γ/√(v + ε). Returns the factor that is furthest from 1, if all are
/// finite.
fn rescale(gamma: &mut [f32], variances: &[f32], old_eps: f32, new_eps: f32) -> Option<f64> {
    let mut furthest = 1.0f64;
    for (gamma, &variance) in gamma.iter_mut().zip(variances) {
        let [old, new] = [old_eps, new_eps].map(|eps| f64::from(variance) + f64::from(eps));
        let factor = Some((new / old).sqrt()).filter(|factor| variance >= 0.0 && factor.is_finite())?;
        *gamma = (f64::from(*gamma) * factor) as f32;
        if factor.ln().abs() > furthest.ln().abs() {
            furthest = factor;
        }
    }
    Some(furthest)
}

/// A node of a layer.
#[derive(Clone, Copy)]
struct Place<'a> {
    op: &'a Op,
    layer: &'a Layer,
    input: NodeId,
}

impl<'a> Place<'a> {
    fn of(graph: &'a Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        Some(Self { op: &node.op, layer: &graph.layers()[node.layer?.index()], input: *node.inputs.first()? })
    }
}

/// What a node computes, beside what its operands are: all that two variants must agree in.
#[derive(PartialEq, Eq, Hash)]
enum Signature {
    Images(usize),
    Product {
        kernel: [usize; 2],
        groups: usize,
        channels: [usize; 2],
    },
    MaxPool([usize; 2]),
    AvgPool([usize; 2]),
    GlobalAvgPool,
    Activation(Act),
    /// An operation and its numbers.
    Exact(String),
    Other(&'static str),
}

impl Signature {
    fn of(graph: &Graph, id: NodeId) -> Self {
        let node = graph.node(id);
        match node.op {
            Op::Input => Self::Images(node.shape.c()),
            Op::Conv2d(conv) => {
                let channels = [graph.node(node.inputs[0]).shape.c(), node.shape.c()];
                Self::Product { kernel: conv.window.kernel, groups: conv.groups.count(channels[1]), channels }
            }
            Op::MaxPool { window, .. } => Self::MaxPool(window.kernel),
            Op::AvgPool { window, .. } => match graph.node(node.inputs[0]).shape.0 {
                [_, h, w, _] if window.kernel == [h, w] => Self::GlobalAvgPool,
                _ => Self::AvgPool(window.kernel),
            },
            Op::Activation { act, .. } => Self::Activation(act),
            op @ (Op::Slice { .. } | Op::GroupNorm { .. } | Op::Shuffle { .. } | Op::Pad { .. }) => {
                Self::Exact(format!("{op:?}"))
            }
            op => Self::Other(op.name()),
        }
    }
}

/// A number for everything that is computed; two nodes of one number compute the same, but for their parameters, strides
/// and padding.
type Numbers = HashMap<(Signature, Vec<usize>), usize>;

/// The number of each node, in node order; `None` for parameters, and for what drops values, which inference does not do.
fn numbered(graph: &Graph, numbers: &mut Numbers) -> Vec<Option<usize>> {
    // What stands for each node as an operand.
    let mut operands: Vec<Option<usize>> = Vec::new();
    let mut own = Vec::new();
    for (id, node) in graph.nodes() {
        let mut inputs: Vec<usize> = node.inputs.iter().filter_map(|input| operands[input.index()]).collect();
        let number = match node.op {
            Op::Param(_) => None,
            Op::Dropout { .. } => {
                operands.push(inputs.first().copied());
                own.push(None);
                continue;
            }
            _ => {
                if matches!(node.op, Op::Add { .. }) {
                    inputs.sort_unstable();
                }
                let next = numbers.len();
                Some(*numbers.entry((Signature::of(graph, id), inputs)).or_insert(next))
            }
        };
        operands.push(number);
        own.push(number);
    }
    own
}

/// The nodes of both variants that compute the same, in the order of `to`.
fn correspond(from: &Variant, to: &Variant) -> Result<Vec<(NodeId, NodeId)>, ConvertError> {
    let mut numbers = Numbers::new();
    let [old, new] = [from, to].map(|variant| numbered(variant.graph, &mut numbers));
    let with_number = |own: Vec<Option<usize>>| (0..).map(NodeId::new).zip(own).filter_map(|(id, n)| Some((id, n?)));
    let mut sources: HashMap<usize, VecDeque<NodeId>> = HashMap::new();
    for (id, number) in with_number(old) {
        sources.entry(number).or_default().push_back(id);
    }
    let called = |variant: &Variant, id: NodeId| {
        Place::of(variant.graph, id).map_or_else(|| variant.graph.label(id), |place| place.layer.name.clone())
    };
    let names = || (from.name.to_owned(), to.name.to_owned());
    let mut pairs = Vec::new();
    for (target, number) in with_number(new) {
        let source = sources.get_mut(&number).and_then(VecDeque::pop_front);
        let source = source.ok_or_else(|| {
            let ((from, to), layer) = (names(), called(to, target));
            ConvertError::Missing { from, to, layer }
        })?;
        pairs.push((source, target));
    }
    match sources.into_values().flatten().min() {
        None => Ok(pairs),
        Some(left) => {
            let ((from_name, to), layer) = (names(), called(from, left));
            Err(ConvertError::Leftover { from: from_name, to, layer })
        }
    }
}

/// The differences so far, each with the layers that have it.
#[derive(Default)]
struct Account {
    linear: Vec<String>,
    absorbed: Vec<String>,
    added: Vec<String>,
    colours: Vec<String>,
    epsilon: Vec<(f32, f32, f64, Vec<String>)>,
    stride: Vec<String>,
    padding: Vec<String>,
}

impl Account {
    fn windows(&mut self, old: Place, new: Place) {
        let window = |place: Place| match *place.op {
            Op::Conv2d(conv) => Some(conv.window),
            Op::MaxPool { window, .. } | Op::AvgPool { window, .. } => Some(window),
            _ => None,
        };
        let (Some(old), Some(Window { stride, padding, .. })) = (window(old), window(new)) else { return };
        if old.stride != stride {
            self.stride.push(new.layer.name.clone());
        }
        if old.padding != padding {
            self.padding.push(new.layer.name.clone());
        }
    }

    fn epsilon(&mut self, from: f32, to: f32, factor: f64, new: Place) {
        let known = self.epsilon.iter().position(|&(old, new, ..)| (old, new) == (from, to));
        let index = known.unwrap_or_else(|| {
            self.epsilon.push((from, to, 1.0, Vec::new()));
            self.epsilon.len() - 1
        });
        let (_, _, furthest, layers) = &mut self.epsilon[index];
        if factor.ln().abs() > furthest.ln().abs() {
            *furthest = factor;
        }
        layers.push(new.layer.name.clone());
    }

    fn remarks(self, from: &Variant, to: &Variant) -> Vec<Remark> {
        let some = |layers: Vec<String>| (!layers.is_empty()).then_some(layers);
        let epsilon = |(from, to, factor, layers)| Remark::Epsilon { from, to, layers, factor };
        let mut remarks = Vec::new();
        remarks.extend(some(self.linear).map(|layers| Remark::Linear { layers }));
        remarks.extend(some(self.absorbed).map(|layers| Remark::BiasAbsorbed { layers }));
        remarks.extend(some(self.added).map(|layers| Remark::BiasAdded { layers }));
        remarks.extend(some(self.colours).map(|layers| Remark::Colours { layers }));
        remarks.extend(self.epsilon.into_iter().map(epsilon));
        remarks.extend(some(self.stride).map(|layers| Remark::Stride { layers }));
        remarks.extend(some(self.padding).map(|layers| Remark::Padding { layers }));
        let [old, new] = [from, to].map(|variant| Preprocessing { bgr: to.preprocessing.bgr, ..variant.preprocessing });
        if old != new {
            let size = to.graph.input_shape().map_or((1, 1), |images| (images.h(), images.w()));
            remarks.push(Remark::Images { from: old, to: new, size });
        }
        let norms = || averagings(from.graph).zip(averagings(to.graph));
        if let Some((old, new)) = norms().find(|(old, new)| old.var != new.var) {
            remarks.push(Remark::Variance { from: old.var, to: new.var });
        }
        if let Some((old, new)) = norms().find(|(old, new)| old.keep != new.keep) {
            remarks.push(Remark::Keep { from: old.keep, to: new.keep });
        }
        let (old, new) = (dropping(from.graph), dropping(to.graph));
        if old != new {
            remarks.push(Remark::Dropping { from: old, to: new });
        }
        remarks
    }
}

/// How the running statistics of each batch norm move by default.
fn averagings(graph: &Graph) -> impl Iterator<Item = Averaging> {
    graph.layers().iter().filter(|layer| layer.kind == LayerKind::Bn).map(|layer| layer.averaging)
}

/// How many layers drop values in training, and their largest rate.
fn dropping(graph: &Graph) -> (usize, f32) {
    let rates = graph.nodes().filter_map(|(_, node)| match node.op {
        Op::Dropout { rate, .. } => Some(rate),
        _ => None,
    });
    rates.filter(|rate| *rate > 0.0).fold((0, 0.0), |(count, largest), rate| (count + 1, rate.max(largest)))
}

impl Remark {
    /// Whether the parameters now say what the other variant means by them; otherwise it is for the reader to act.
    pub fn is_converted(&self) -> bool {
        match self {
            Self::Linear { .. }
            | Self::BiasAbsorbed { .. }
            | Self::BiasAdded { .. }
            | Self::Colours { .. }
            | Self::Epsilon { .. } => true,
            Self::Stride { .. }
            | Self::Padding { .. }
            | Self::Images { .. }
            | Self::Variance { .. }
            | Self::Keep { .. }
            | Self::Dropping { .. } => false,
        }
    }

    /// Whether the same values before the first layer give other logits than before.
    pub fn changes_logits(&self) -> bool {
        matches!(self, Self::Stride { .. } | Self::Padding { .. })
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear { layers } => {
                write!(f, "a linear layer is a 1×1 convolution of one pixel: {}", some(layers))
            }
            Self::BiasAbsorbed { layers } => {
                write!(f, "the biases of {} are gone into the running means behind them", some(layers))
            }
            Self::BiasAdded { layers } => write!(f, "there were no biases for {}: they are zero", some(layers)),
            Self::Colours { layers } => {
                write!(f, "red and blue are the other way round: the weights of {} have changed places", some(layers))
            }
            Self::Epsilon { from, to, layers, factor } => write!(
                f,
                "epsilon is {to:e} and was {from:e} in {}: gamma takes it up, by a factor of {factor:.4} at the most, so \
                 that inference stays the same",
                some(layers)
            ),
            Self::Stride { layers } => write!(
                f,
                "the stride of {} is another: the logits differ from those before, and only training mends that",
                some(layers)
            ),
            Self::Padding { layers } => {
                write!(f, "the padding of {} is another: the logits differ from those before", some(layers))
            }
            Self::Images { from, to, size } => write!(
                f,
                "the weights expect images prepared as before ({}), and the other network's framework prepares them in \
                 another way ({})",
                from.describe(*size),
                to.describe(*size)
            ),
            Self::Variance { from, to } => write!(
                f,
                "the running variances are {from}, where {to} ones are meant: the factor between them takes the number \
                 of values of a batch that they were estimated over, which the file does not tell; it is next to 1 for all \
                 but the smallest"
            ),
            Self::Keep { from, to } => write!(
                f,
                "running statistics moved with update=ema({from}), and ema({to}) is the custom now: that is for a policy \
                 to say"
            ),
            Self::Dropping { from, to } => {
                let layers = |&(count, rate): &(usize, f32)| match count {
                    0 => "none".to_owned(),
                    1 => format!("one layer with a rate of {rate}"),
                    n => format!("{n} layers with rates up to {rate}"),
                };
                write!(f, "dropout and stochastic depth, in training: {}, and {} before", layers(to), layers(from))
            }
        }
    }
}

/// The first of some layers, and how many more there are.
fn some(layers: &[String]) -> String {
    match layers {
        [first, second, rest @ ..] if !rest.is_empty() => format!("{first}, {second} and {} more", rest.len()),
        layers => layers.join(" and "),
    }
}
