//! The nodes of a graph as layers.
//!
//! They are read in the file's order, which is theirs of execution. Every name stands for a [`Value`] then: an [`Image`] is
//! what a layer gives, or a part of what one will give; a [`Constant`] is what is known without looking at images.
//!
//! | file | what it knows |
//! |---|---|
//! | `constant`, `fold` | constants, and what is computed from them |
//! | `view` | whose dimensions a value's are: channels first or last, flat, shuffled |
//! | `forms` | operators that change dimensions, or take channels apart and together |
//! | `arithmetic`, `activations`, `norms` | operators on values, and what several of them are together |
//! | `layers` | convolutions, batch norms, linear layers, poolings |
//! | `network` | the layers found: which of them are needed, what they are called, their weights |

mod activations;
mod arithmetic;
mod constant;
mod fold;
mod forms;
mod layers;
mod network;
mod norms;
mod view;

use super::attributes::{float, ints};
use super::import::{Images, graph_error, is_onnx};
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tensor;
use crate::graph::Act;
use crate::models::LayerOp;
use crate::text::printable;
use constant::{Constant, Kind, MAX_COMPUTED, Number};
pub(super) use network::Named;
use network::{LayerId, Network, Note, Weights};
use std::collections::HashMap;
use std::ops::Deref;
use std::path::Path;
use std::rc::Rc;
use view::{Form, View};

/// Numbers that constants are computed from, all together.
const MAX_COMPUTED_IN_ALL: usize = 1 << 22;

/// How many operators may be put together until a layer gives what they do. A layer norm takes eight.
const MAX_PARTS: u8 = 16;

/// What operators are understood, for messages.
const SUPPORTED: &str = "Add, AveragePool, BatchNormalization, Cast, Celu, Clip, Concat, Constant, Conv, Div, Dropout, Elu, Erf, \
     Flatten, Gather, Gelu, Gemm, GlobalAveragePool, GlobalMaxPool, GroupNormalization, HardSigmoid, HardSwish, Identity, InstanceNormalization, LayerNormalization, \
     LeakyRelu, LogSoftmax, MatMul, Max, MaxPool, Min, Mish, Mul, Neg, Pad, Pow, ReduceMax, ReduceMean, Relu, Reshape, \
     Sigmoid, Slice, Softmax, Softplus, Split, SplitToSequence, Sqrt, Squeeze, Sub, Sum, Tanh, Transpose, Unsqueeze, and what \
     is computed from constants and shapes";

/// A node, and its place in the file.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) index: usize,
    pub(super) proto: &'a NodeProto,
}

impl Deref for Node<'_> {
    type Target = NodeProto;

    fn deref(&self) -> &NodeProto {
        self.proto
    }
}

impl<'a> Node<'a> {
    fn has(self, index: usize) -> bool {
        self.proto.input.get(index).is_some_and(|name| !name.is_empty())
    }

    /// What it gives, which others may read.
    pub(super) fn output(self) -> &'a str {
        self.proto.output.first().map_or("", String::as_str)
    }

    fn named(self) -> String {
        match self.proto.name() {
            "" => format!("node {}", self.index),
            name => format!("node `{}`", printable(name)),
        }
    }

    /// A sentence on what is wrong with it.
    pub(super) fn refused(self, reason: &str) -> String {
        format!("{} ({}): {reason}", self.named(), self.op_type())
    }
}

/// What a name stands for.
#[derive(Clone)]
enum Value<'a> {
    Image(Id),
    Constant(Constant<'a>),
    Sequence(Rc<[Id]>),
    /// A constant that is not computed, by this node.
    Uncomputed(Node<'a>),
}

/// One of a reader's images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Id(usize);

/// A value a pixel and channel of each image.
#[derive(Clone)]
struct Image<'a> {
    /// What gives it.
    node: Option<Node<'a>>,
    /// Which layer does, if one was made for it.
    layer: Option<LayerId>,
    /// Channels, height and width.
    shape: [usize; 3],
    view: View,
    def: Def,
    /// How many operators are to become a layer with it, one after the other.
    parts: u8,
}

/// What an image is computed from by operators of which several may be one layer.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Def {
    /// A layer of its own.
    Layer,
    /// With zeros around it: top, left, bottom, right.
    Padded(Id, [usize; 4]),
    /// All values of the only image in one row, without the dimension of the images.
    Row(Id),
    Act(Act, Id),
    Erf(Id),
    Exp(Id),
    Sqrt(Id),
    Reciprocal(Id),
    Power(Id, f32),
    Plus(Id, f32),
    Times(Id, f32),
    /// Whether a value is above a number.
    Above(Id, f32),
    /// With a number for each channel, one of [`Reader::channels`].
    PlusChannels(Id, usize),
    TimesChannels(Id, usize),
    Sum(Id, Id),
    Difference(Id, Id),
    Product(Id, Id),
    /// The mean over the channels of each pixel.
    ChannelMean(Id),
    /// (x − μ)/√(v + ε)
    Normalised(Id, Over, f32),
}

/// What moments of a norm are of.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Over {
    /// The channels of each pixel.
    Channels,
    /// The pixels of each image and the channels of each of so many groups.
    Groups(usize),
}

pub(super) struct Reader<'a> {
    values: HashMap<&'a str, Value<'a>>,
    initialisers: HashMap<&'a str, &'a TensorProto>,
    images: Vec<Image<'a>>,
    /// Constants of a value a channel, and whether they have the other sign.
    channels: Vec<(Constant<'a>, bool)>,
    /// Numbers of tensors that something was computed from.
    loaded: HashMap<*const TensorProto, Rc<[Number]>>,
    /// How many numbers constants were computed from so far.
    computed: usize,
    /// Bytes that weights may take that are computed from others.
    weights_left: usize,
    /// How many images the file takes, if it says that.
    batch: Option<usize>,
    /// The output of the graph.
    logits: &'a str,
    folder: Option<&'a Path>,
    network: Network<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        graph: &'a GraphProto,
        nodes: &[Node<'a>],
        images: Images<'a>,
        folder: Option<&'a Path>,
        logits: &'a str,
    ) -> Result<Self, String> {
        let mut initialisers = HashMap::new();
        for tensor in &graph.initializer {
            if initialisers.insert(tensor.name(), tensor).is_some() || tensor.name() == images.name {
                return Err(format!("`{}` is there twice", tensor.name()));
            }
        }
        let constants = nodes.iter().filter(|node| node.op_type() == "Constant");
        let constants = constants.flat_map(|node| &node.proto.attribute).filter_map(|attribute| attribute.t.as_ref());
        let stored: usize = graph.initializer.iter().chain(constants).map(tensor::bytes).sum();
        let shape = [3, images.h, images.w];
        let form = if images.nhwc { Form::Nhwc } else { Form::Nchw };
        let input = Image {
            node: None,
            layer: Some(LayerId::IMAGES),
            shape,
            view: View::of(form, shape),
            def: Def::Layer,
            parts: 0,
        };
        Ok(Self {
            values: HashMap::from([(images.name, Value::Image(Id(0)))]),
            initialisers,
            images: vec![input],
            channels: Vec::new(),
            loaded: HashMap::new(),
            computed: 0,
            weights_left: stored,
            batch: images.batch,
            logits,
            folder,
            network: Network::new(graph, (images.h, images.w), folder, stored).map_err(graph_error)?,
        })
    }

    pub(super) fn read(&mut self, node: Node<'a>) -> Result<(), String> {
        let given = self.given(node).map_err(|reason| node.refused(&reason))?;
        let names = node.proto.output.iter().zip(given).filter(|(name, _)| !name.is_empty());
        for (name, value) in names {
            if self.values.insert(name, value).is_some() || self.initialisers.contains_key(name.as_str()) {
                return Err(node.refused(&format!("its output `{name}` is given by something else, too")));
            }
        }
        Ok(())
    }

    /// The layers of the network, which end in the output of the graph.
    pub(super) fn finish(mut self) -> Result<Named, String> {
        let name = self.logits;
        let none = || format!("its output `{name}` is not what a layer gives");
        let Some(Value::Image(id)) = self.values.get(name).cloned() else { return Err(none()) };
        let layer = self.layer_of(id).map_err(|reason| format!("its output `{name}`: {reason}"))?;
        if layer == LayerId::IMAGES {
            return Err(none());
        }
        self.network.named(layer)
    }

    fn given(&mut self, node: Node<'a>) -> Result<Vec<Value<'a>>, String> {
        if !is_onnx(node.domain()) {
            return Err(format!("operators of `{}` are not supported; those of ONNX are {SUPPORTED}", node.domain()));
        }
        if node.proto.output.iter().all(String::is_empty) {
            return Err("it gives nothing".into());
        }
        if let Some(constants) = self.folded(node)? {
            return Ok(constants);
        }
        let id = match node.op_type() {
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "LayerNormalization" => self.layer_normalization(node)?,
            "GroupNormalization" => self.group_normalization(node)?,
            "InstanceNormalization" => self.instance_normalization(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.mat_mul(node)?,
            "MaxPool" => self.max_pool(node)?,
            "AveragePool" => self.avg_pool(node)?,
            "GlobalAveragePool" => self.global_pool(node, LayerOp::GlobalAvgPool {})?,
            "GlobalMaxPool" => self.global_pool(node, LayerOp::GlobalMaxPool {})?,
            "ReduceMean" => self.reduce(node, LayerOp::GlobalAvgPool {})?,
            "ReduceMax" => self.reduce(node, LayerOp::GlobalMaxPool {})?,
            "Dropout" => self.dropout(node)?,
            "Softmax" | "LogSoftmax" => self.softmax(node)?,
            "Add" | "Sum" => self.add(node)?,
            "Sub" => self.sub(node)?,
            "Mul" => self.mul(node)?,
            "Div" => self.div(node)?,
            "Neg" => {
                let x = self.operand(node, 0)?;
                self.times(node, x, -1.0)?
            }
            "Pad" => self.pad(node)?,
            "Transpose" => self.transpose(node)?,
            "Flatten" => self.flatten(node)?,
            "Reshape" => self.reshape(node)?,
            "Squeeze" => self.squeeze(node)?,
            "Unsqueeze" => self.unsqueeze(node)?,
            "Expand" => self.expand(node)?,
            "Identity" => return Ok(vec![self.value(node, 0)?]),
            "Cast" | "CastLike" => self.cast_image(node)?,
            "Concat" => self.concat(node)?,
            "Slice" => self.slice(node)?,
            "Gather" => self.gather_image(node)?,
            "Split" => return self.split(node),
            "SplitToSequence" => return self.split_to_sequence(node),
            "SequenceAt" => self.sequence_at(node)?,
            op => match self.activation_of(node, op)? {
                Some(id) => id,
                None => return Err(unknown(op)),
            },
        };
        Ok(vec![Value::Image(id)])
    }

    // ---- Operands.

    fn value(&self, node: Node<'a>, index: usize) -> Result<Value<'a>, String> {
        match self.any_value(node, index)? {
            Value::Uncomputed(by) => Err(format!(
                "its input `{}` is computed from constants by {} ({}), which is not supported; export with constants folded",
                node.proto.input[index],
                by.named(),
                by.proto.op_type()
            )),
            value => Ok(value),
        }
    }

    fn any_value(&self, node: Node<'a>, index: usize) -> Result<Value<'a>, String> {
        let name = node.proto.input.get(index).ok_or_else(|| format!("its input {index} is missing"))?;
        match (self.values.get(name.as_str()), self.initialisers.get(name.as_str())) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(tensor)) => Constant::stored(tensor).map(Value::Constant),
            (None, None) => Err(format!("it reads `{name}`, which nothing before it gives")),
        }
    }

    fn image(&self, id: Id) -> &Image<'a> {
        &self.images[id.0]
    }

    /// An operand that is an image, whether a layer gives it or not.
    fn operand(&self, node: Node<'a>, index: usize) -> Result<Id, String> {
        match self.value(node, index)? {
            Value::Image(id) => Ok(id),
            Value::Constant(_) => {
                Err(format!("its input `{}` is constant, which is not supported here", node.proto.input[index]))
            }
            Value::Sequence(_) | Value::Uncomputed(_) => {
                Err(format!("its input `{}` is a sequence; only a SequenceAt can read one", node.proto.input[index]))
            }
        }
    }

    /// An operand that is `[N, C, H, W]`.
    fn operand_of_images(&self, node: Node<'a>, index: usize) -> Result<Id, String> {
        let id = self.operand(node, index)?;
        match self.is(id, Form::Nchw) {
            true => Ok(id),
            false => Err(format!("it takes images, [N, C, H, W], and what it reads is {}", self.described(id))),
        }
    }

    fn is(&self, id: Id, form: Form) -> bool {
        let image = self.image(id);
        image.view == View::of(form, image.shape)
    }

    /// Whether it is of one pixel, `[N, C]` with ones or without.
    fn is_pixel(&self, id: Id) -> bool {
        self.image(id).shape[1..] == [1, 1]
    }

    /// The dimensions of an image, for messages.
    fn described(&self, id: Id) -> String {
        let Image { shape: [c, h, w], view, .. } = self.image(id);
        let sizes: Vec<String> = view.sizes().iter().map(usize::to_string).collect();
        format!("[N, {}] of {c} channels and {h}×{w} pixels", sizes.join(", "))
    }

    /// A constant operand, such as weights.
    fn constant(&self, node: Node<'a>, index: usize) -> Result<Constant<'a>, String> {
        match self.value(node, index)? {
            Value::Constant(constant) => Ok(constant),
            _ => Err(format!("its input `{}` is not constant, as weights are", node.proto.input[index])),
        }
    }

    /// The numbers of a constant, in order.
    fn numbers(&mut self, constant: &Constant<'a>) -> Result<Vec<Number>, String> {
        let large =
            || format!("it computes with a constant of more than {MAX_COMPUTED} values; export with constants folded");
        if constant.held() > MAX_COMPUTED {
            return Err(large());
        }
        self.computed += constant.len();
        if self.computed > MAX_COMPUTED_IN_ALL {
            return Err(format!(
                "constants are computed from more than {MAX_COMPUTED_IN_ALL} numbers, which no network needs"
            ));
        }
        let Some((tensor, _)) = constant.tensor() else { return Ok(constant.numbers().unwrap_or_default()) };
        if !self.loaded.contains_key(&std::ptr::from_ref(tensor)) {
            self.computed += constant.held();
            let numbers: Rc<[Number]> = match constant.kind {
                Kind::Float => tensor::floats(tensor, self.folder)?.into_iter().map(|x| Some(f64::from(x))).collect(),
                _ => tensor::integers(tensor, self.folder)?.into_iter().map(|x| Some(x as f64)).collect(),
            };
            self.loaded.insert(tensor, numbers);
        }
        Ok(self.loaded.get(&std::ptr::from_ref(tensor)).map(|numbers| constant.pick(numbers)).unwrap_or_default())
    }

    /// A constant that is one number.
    fn one_number(&mut self, constant: &Constant<'a>) -> Result<Option<f32>, String> {
        match constant.len() {
            1 => Ok(self.numbers(constant)?[0].map(|number| number as f32)),
            _ => Ok(None),
        }
    }

    fn number(&mut self, node: Node<'a>, index: usize, what: &str) -> Result<f32, String> {
        let constant = self.constant(node, index)?;
        self.one_number(&constant)?.ok_or_else(|| format!("{what} must be a constant number"))
    }

    /// Whole numbers that do not depend on the number of images.
    fn whole(&mut self, node: Node<'a>, index: usize) -> Result<Vec<i64>, String> {
        let constant = self.constant(node, index)?;
        if constant.kind != Kind::Int {
            return Err(format!("its input `{}` holds no whole numbers", node.proto.input[index]));
        }
        let numbers: Option<Vec<f64>> = self.numbers(&constant)?.into_iter().collect();
        let open = || format!("its input `{}` must not depend on the number of images", node.proto.input[index]);
        Ok(numbers.ok_or_else(open)?.into_iter().map(|number| number as i64).collect())
    }

    fn sizes(&mut self, node: Node<'a>, index: usize) -> Result<Vec<usize>, String> {
        let size = |size: i64| usize::try_from(size).map_err(|_| format!("{size} is no size"));
        self.whole(node, index)?.into_iter().map(size).collect()
    }

    /// The attribute `name`, or since some operator set the input `index`: axes, or paddings.
    fn listed(&mut self, node: Node<'a>, name: &str, index: usize) -> Result<Option<Vec<i64>>, String> {
        match ints(&node, name)? {
            Some(values) => Ok(Some(values)),
            None if node.has(index) => self.whole(node, index).map(Some),
            None => Ok(None),
        }
    }

    /// Lower and upper bound of a `Clip`.
    fn clip_bounds(&mut self, node: Node<'a>) -> Result<[f32; 2], String> {
        let mut bounds = [float(&node, "min", f32::NEG_INFINITY)?, float(&node, "max", f32::INFINITY)?];
        for (index, bound) in bounds.iter_mut().enumerate() {
            if node.has(index + 1) {
                *bound = self.number(node, index + 1, "each of its bounds")?;
            }
        }
        Ok(bounds)
    }

    // ---- Results.

    fn given_image(&mut self, image: Image<'a>) -> Id {
        self.images.push(image);
        Id(self.images.len() - 1)
    }

    /// What a new layer gives, in a view that its shape tells.
    fn layer(
        &mut self,
        node: Node<'a>,
        op: LayerOp,
        inputs: &[Id],
        weights: Vec<Weights<'a>>,
        view: impl FnOnce([usize; 3]) -> View,
    ) -> Result<Id, String> {
        let inputs = inputs.iter().map(|&id| self.layer_of(id)).collect::<Result<_, _>>()?;
        let layer = self.network.push(node, op, inputs, weights)?;
        let shape = self.network.shape(layer);
        let view = view(shape);
        Ok(self.given_image(Image { node: Some(node), layer: Some(layer), shape, view, def: Def::Layer, parts: 0 }))
    }

    /// Has the user told of the layer that gives an image.
    fn note(&mut self, id: Id, note: Option<Note>) {
        if let (Some(layer), Some(note)) = (self.image(id).layer, note) {
            self.network.note(layer, note);
        }
    }

    /// A layer that leaves the dimensions as they are.
    fn pointwise(&mut self, node: Node<'a>, op: LayerOp, x: Id) -> Result<Id, String> {
        let view = self.image(x).view.clone();
        self.layer(node, op, &[x], Vec::new(), |_| view)
    }

    /// A value of the dimensions of `x` that no layer gives, or not yet.
    fn part(&mut self, node: Node<'a>, def: Def, x: Id) -> Result<Id, String> {
        let image =
            Image { node: Some(node), layer: None, def, parts: self.image(x).parts + 1, ..self.image(x).clone() };
        if image.parts > MAX_PARTS {
            return Err("it is part of an activation that is not known".into());
        }
        Ok(self.given_image(image))
    }

    /// The layer that gives an image. What others would give together with it is made layers of their own.
    fn layer_of(&mut self, id: Id) -> Result<LayerId, String> {
        if let Some(layer) = self.image(id).layer {
            return Ok(layer);
        }
        let made = self.made(id)?;
        let layer = self.image(made).layer;
        self.images[id.0].layer = layer;
        layer.ok_or_else(|| self.unknown_part(id))
    }

    fn unknown_part(&self, id: Id) -> String {
        let op = self.image(id).node.map_or("", |node| node.proto.op_type());
        format!(
            "no layer gives `{}` ({op}), which is part of something that is not known; known are HardSwish, HardSigmoid, GELU, \
             Mish, Softplus and norms",
            printable(self.image(id).node.map_or("", Node::output))
        )
    }
}

fn unknown(op: &str) -> String {
    let why = match op {
        "PRelu" => "a slope that trains is not supported; LeakyRelu is",
        "Resize" | "Upsample" | "ConvTranspose" => "layers that enlarge images are not supported",
        _ => return format!("the operator is not supported; supported are {SUPPORTED}"),
    };
    why.into()
}
