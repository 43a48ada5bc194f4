//! A network as a text file, JSON: what `thawline inspect --graph` prints and `--model FILE.json` reads.
//! `docs/graph.md` describes the format.

use crate::files::read_text;
use crate::graph::{
    Act, Affine, Averaging, Builder, Factor, Graph, GraphError, LayerKind, Model, NodeId, Op, Role, Taken, Variance,
    Window,
};
use crate::nearest::suggestion;
use crate::preprocessing::Preprocessing;
use crate::tensor::{Shape, pad4};
use crate::text::printable;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::ser::Formatter;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// The metadata key of a weights file whose network is none of [`MODELS`](super::MODELS); the value is a graph file.
pub const GRAPH: &str = "graph";

/// The version of the format that this crate writes, and the only one that it reads.
const VERSION: u64 = 1;

/// The key of the version, by which a graph file is known.
const MAGIC: &str = "thawline_graph";

/// What the images are called among the layers' inputs.
pub(crate) const IMAGES: &str = "input";

/// Far above every network. Finding a name that is taken costs as much as there are layers.
pub(crate) const MAX_LAYERS: usize = 10_000;

/// Bytes of text. The largest network takes twice 10⁵, and JSON takes up to ninety times its text in memory.
const MAX_TEXT: usize = 4 << 20;

/// Far above every window, and small enough that no size computed from it overflows.
const MAX_WINDOW: usize = 1024;

/// Values of all parameters together, 4 GiB.
const MAX_VALUES: usize = 1 << 30;

/// A network as data: its layers in order, what it does to images first, and the size of image that it is made for.
///
/// One that exists can be built: at its own size, with its own number of classes.
///
/// # Example
/// ```
/// use thawline::models::{self, GraphFile};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = models::spec("resnet18")?.describe((64, 64), 10)?;
/// let again = GraphFile::parse(&file.json(), "resnet18.json")?;
/// assert_eq!(again.build(8, (64, 64), 10)?, models::build("resnet18", 8, (64, 64), 10)?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct GraphFile {
    about: GraphAbout,
    models: Vec<Model>,
    layers: Vec<Entry>,
    classes: usize,
}

/// What a [`GraphFile`] says beside the layers.
#[derive(Clone, PartialEq, Debug)]
pub struct GraphAbout {
    pub name: String,
    /// Height and width of the images it is made for, in pixels.
    pub size: (usize, usize),
    pub preprocessing: Preprocessing,
}

/// A layer of a [`GraphFile`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Entry {
    pub name: String,
    #[serde(flatten)]
    pub op: LayerOp,
    /// Names of earlier layers, or `input` for the images.
    pub inputs: Vec<String>,
    /// See [`graph::Layer::block`](crate::graph::Layer::block).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
    /// See [`graph::Layer::alias`](crate::graph::Layer::alias).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// See [`graph::Layer::position`](crate::graph::Layer::position).
    #[serde(serialize_with = "position", skip_serializing_if = "Vec::is_empty")]
    pub position: Vec<usize>,
}

/// What a layer does, and with which numbers. Windows are height before width.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum LayerOp {
    Conv {
        channels: usize,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: Padding,
        groups: usize,
        bias: bool,
    },
    /// What it does in training is a policy's business; where that does not say, its moments are averaged so.
    Bn {
        eps: f32,
        /// See [`Averaging::keep`].
        keep: f32,
        /// See [`Averaging::var`].
        #[serde(serialize_with = "var_name")]
        var: Variance,
        /// See [`graph::Layer::affine`](crate::graph::Layer::affine).
        #[serde(serialize_with = "affine_name", skip_serializing_if = "is_both")]
        affine: Affine,
    },
    Linear {
        channels: usize,
        #[serde(skip_serializing_if = "is_true")]
        bias: bool,
        #[serde(flatten, serialize_with = "taken_fields")]
        taken: Taken,
    },
    Activation {
        #[serde(flatten, serialize_with = "act_fields")]
        act: Act,
    },
    Add {},
    Multiply {},
    Scale {},
    /// See [`Builder::layer_scale`].
    LayerScale {
        #[serde(skip_serializing_if = "is_one")]
        dims: usize,
    },
    LayerNorm {
        eps: f32,
    },
    GroupNorm {
        groups: usize,
        eps: f32,
    },
    Concat {},
    Slice {
        begin: usize,
        channels: usize,
    },
    Shuffle {
        groups: usize,
    },
    /// See [`Builder::binary`].
    Binary {},
    Pad {
        /// Top, left, bottom, right.
        padding: [usize; 4],
    },
    Dropout {
        rate: f32,
    },
    StochasticDepth {
        rate: f32,
    },
    MaxPool {
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: Padding,
        #[serde(skip_serializing_if = "is_false")]
        ceil: bool,
    },
    AvgPool {
        kernel: [usize; 2],
        stride: [usize; 2],
        #[serde(skip_serializing_if = "Padding::is_none")]
        padding: Padding,
        #[serde(skip_serializing_if = "is_false")]
        ceil: bool,
        /// Whether the padding counts as zeros; what `ceil` and `same` add never does.
        #[serde(skip_serializing_if = "is_true")]
        count_padding: bool,
    },
    GlobalAvgPool {},
    GlobalMaxPool {},
}

/// What is added around an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// Top, left, bottom, right.
    Pixels([usize; 4]),
    /// TensorFlow's `SAME`: as many pixels as make the output a stride-th of the input, rounded up; an odd one goes to the
    /// bottom and to the right. How many that is depends on the input's size.
    Same,
}

/// A graph file that cannot be read, or that describes no network.
#[derive(Debug, thiserror::Error)]
pub enum GraphFileError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{origin}: {reason}")]
    Invalid { origin: String, reason: String },
}

impl GraphFile {
    /// # Errors
    /// The layers do not make a network that ends in logits: names the first that does not fit.
    pub fn new(about: GraphAbout, layers: Vec<Entry>) -> Result<Self, GraphError> {
        Self::nested(about, Vec::new(), layers)
    }

    /// As [`new`](Self::new), with the [models](Graph::models) that the layers' positions count in.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), or a layer's position is in none of the models.
    pub fn nested(about: GraphAbout, models: Vec<Model>, layers: Vec<Entry>) -> Result<Self, GraphError> {
        let mut file = Self { about, models, layers, classes: 0 };
        file.check_about()?;
        let graph = file.assemble(1, file.size(), &file.layers)?;
        file.classes = graph.logits_shape().map_or(0, Shape::c);
        // What is written must be read again.
        match file.json().len() > MAX_TEXT {
            false => Ok(file),
            true => Err(GraphError {
                node: "the graph".into(),
                reason: format!("its text is longer than {} MiB; give its layers shorter names", MAX_TEXT >> 20),
            }),
        }
    }

    fn check_about(&self) -> Result<(), GraphError> {
        let GraphAbout { name, preprocessing, .. } = &self.about;
        let wrong = |reason: String| Err(GraphError { node: "the graph".into(), reason });
        if name.is_empty() || name.chars().any(char::is_control) {
            return wrong("`name` must be a line of text".into());
        }
        if self.models.len() > MAX_LAYERS {
            return wrong(format!("there are at most {MAX_LAYERS} models"));
        }
        if let Some(model) = self.models.iter().find(|model| model.name.chars().any(char::is_control)) {
            return wrong(format!("the model's name `{}` must be a line of text", printable(&model.name)));
        }
        preprocessing.check().or_else(|error| wrong(error.to_string()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no graph file; the message names the layer and the field.
    pub fn read(path: &Path) -> Result<Self, GraphFileError> {
        let unreadable = |source| GraphFileError::Read { path: path.into(), source };
        Self::parse(&read_text(path, MAX_TEXT as u64).map_err(unreadable)?, &path.display().to_string())
    }

    /// Reads the text of a file; `origin` says in messages where it came from.
    ///
    /// # Errors
    /// It is no graph file; the message names the layer and the field.
    pub fn parse(text: &str, origin: &str) -> Result<Self, GraphFileError> {
        parse(text).map_err(|reason| GraphFileError::Invalid { origin: origin.into(), reason })
    }

    /// Describes the network that `network` builds for one image of a size. It is asked for other sizes, too, which tells
    /// padding that follows from the size from padding that does not.
    ///
    /// # Errors
    /// Those of `network` for `about.size`; the graph is compiled, or no graph file can describe it.
    pub fn of<E: From<GraphError>>(
        about: GraphAbout,
        network: impl Fn((usize, usize)) -> Result<Graph, E>,
    ) -> Result<Self, E> {
        let graph = network(about.size)?;
        let (h, w) = about.size;
        // What 2ⁱ more pixels are is one more after the i-th halving: somewhere the size of each layer's input is odd,
        // and elsewhere even. A network that takes one size only has no other form.
        let others: Vec<Graph> = (0..=5).filter_map(|i| network((h + (1 << i), w + (1 << i))).ok()).collect();
        Ok(Self::nested(about, graph.models().to_vec(), entries(&graph, &others)?)?)
    }

    /// The same network, made for images of another size, prepared in another way, and for another number of classes.
    ///
    /// # Errors
    /// It does not end in a linear layer or convolution, whose channels are the classes; or it does not take images of
    /// that size.
    pub fn with(&self, size: (usize, usize), classes: usize, preprocessing: Preprocessing) -> Result<Self, GraphError> {
        let layers = if classes == self.classes { self.layers.clone() } else { self.layers_with(classes)? };
        Self::nested(GraphAbout { size, preprocessing, ..self.about.clone() }, self.models.clone(), layers)
    }

    /// The network for `batch` images of `size` = (height, width) pixels, every layer frozen.
    ///
    /// # Errors
    /// Those of [`with`](Self::with), or so many images are more than 32-bit indices can address.
    pub fn build(&self, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, GraphError> {
        match classes == self.classes {
            true => self.assemble(batch, size, &self.layers),
            false => self.assemble(batch, size, &self.layers_with(classes)?),
        }
    }

    /// The layers of the same network with another number of classes. One output for two classes becomes one a class.
    fn layers_with(&self, classes: usize) -> Result<Vec<Entry>, GraphError> {
        let head = self.head_index()?;
        let mut layers = self.layers.clone();
        layers[head].op = layers[head].op.with_channels(classes);
        layers.retain(|layer| layer.op != LayerOp::Binary {});
        Ok(layers)
    }

    /// The same network with one output in place of two: the logit of the second class, which a sigmoid makes its probability.
    ///
    /// # Errors
    /// Its classes are not the outputs of one layer.
    pub fn with_one_output(&self) -> Result<Self, GraphError> {
        if self.layers.iter().any(|layer| layer.op == LayerOp::Binary {}) {
            return Ok(self.clone());
        }
        let mut layers = self.layers_with(1)?;
        let last = layers.last().map(|layer| layer.name.clone()).unwrap_or_default();
        let taken = |name: &str| layers.iter().any(|layer| layer.name == name || layer.alias.as_deref() == Some(name));
        let name = ["binary", "two_classes"].into_iter().find(|name| !taken(name)).unwrap_or("binary.of_two_classes");
        let op = LayerOp::Binary {};
        layers.push(Entry {
            name: name.into(),
            op,
            inputs: vec![last],
            block: None,
            alias: None,
            position: Vec::new(),
        });
        Self::nested(self.about.clone(), self.models.clone(), layers)
    }

    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// Height and width of the images it is made for, in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.about.size
    }

    /// How images become what the network takes.
    pub fn preprocessing(&self) -> Preprocessing {
        self.about.preprocessing
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    pub fn layers(&self) -> &[Entry] {
        &self.layers
    }

    /// The file's text, a line a layer. The same network gives the same bytes.
    pub fn json(&self) -> String {
        let GraphAbout { name, size: (h, w), preprocessing } = &self.about;
        let Preprocessing { resize, crop, interpolation, mean, std, bgr } = preprocessing;
        let layers: Vec<String> = self.layers.iter().map(|layer| format!("    {}", json(layer))).collect();
        let models: Vec<String> =
            self.models.iter().map(|model| format!("    {}", json(&ModelEntry::of(model)))).collect();
        let models = match models.is_empty() {
            true => String::new(),
            false => format!("  \"models\": [\n{}\n  ],\n", models.join(",\n")),
        };
        // Few networks take blue first; the others' files say nothing of it.
        let bgr = if *bgr { "  \"bgr\": true,\n" } else { "" };
        format!(
            "{{\n  \"{MAGIC}\": {VERSION},\n  \"name\": {},\n  \"size\": [{h}, {w}],\n  \"resize\": {},\n  \"crop\": {},\n  \
             \"interpolation\": {},\n  \"mean\": {},\n  \"std\": {},\n{bgr}{models}  \"layers\": [\n{}\n  ]\n}}\n",
            json(name),
            json(resize),
            json(crop),
            json(interpolation),
            json(mean),
            json(std),
            layers.join(",\n"),
        )
    }

    /// The linear layer or convolution whose outputs are the classes; none if the logits come from something else.
    pub fn head(&self) -> Option<&str> {
        self.head_index().ok().map(|head| self.layers[head].name.as_str())
    }

    fn head_index(&self) -> Result<usize, GraphError> {
        let mut at = self.layers.len() - 1;
        loop {
            let Entry { name, op, inputs, .. } = &self.layers[at];
            let before = match op {
                LayerOp::Linear { .. } | LayerOp::Conv { groups: 1, .. } => return Ok(at),
                LayerOp::Activation { .. } | LayerOp::Dropout { .. } | LayerOp::StochasticDepth { .. } => Some(()),
                LayerOp::MaxPool { .. } | LayerOp::AvgPool { .. } => Some(()),
                LayerOp::GlobalAvgPool {} | LayerOp::GlobalMaxPool {} | LayerOp::Binary {} => Some(()),
                _ => None,
            };
            let input = before.and_then(|()| self.layers.iter().position(|layer| layer.name == inputs[0]));
            at = input.ok_or_else(|| {
                let reason = format!(
                    "the logits come from here; only a network that ends in a linear layer or a convolution can have \
                     other than {} classes",
                    self.classes
                );
                GraphError { node: name.clone(), reason }
            })?;
        }
    }

    fn assemble(&self, batch: usize, size: (usize, usize), layers: &[Entry]) -> Result<Graph, GraphError> {
        let mut assembly = Assembly::new(batch, size)?;
        assembly.builder.models(self.models.clone());
        for layer in layers {
            assembly.add(layer)?;
        }
        assembly.finish()
    }
}

fn json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, OneLine);
    value.serialize(&mut writer).expect("numbers, lists and texts are always JSON");
    String::from_utf8(bytes).expect("JSON is text")
}

/// A line of JSON with a space where one reads better.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

/// Turns entries into a graph, one by one.
pub(crate) struct Assembly {
    builder: Builder,
    /// What each name stands for, and whether a layer reads it.
    values: HashMap<String, (NodeId, bool)>,
    last: Option<String>,
    /// Values of the parameters so far.
    held: usize,
}

impl Assembly {
    pub(crate) fn new(batch: usize, (h, w): (usize, usize)) -> Result<Self, GraphError> {
        let mut builder = Builder::new();
        let images = builder.input(batch, h, w, 3)?;
        Ok(Self { builder, values: HashMap::from([(IMAGES.into(), (images, false))]), last: None, held: 0 })
    }

    /// The shape of what the entry gives.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<Shape, GraphError> {
        let Entry { name, op, inputs, block, alias, position } = entry;
        let wrong = |reason: String| GraphError { node: name.clone(), reason };
        if name.chars().any(char::is_control) {
            let reason = "the name must be a line of text".into();
            return Err(GraphError { node: printable(name), reason });
        }
        if self.values.len() > MAX_LAYERS {
            return Err(wrong(format!("a network has at most {MAX_LAYERS} layers")));
        }
        if name == IMAGES {
            return Err(wrong(format!("`{IMAGES}` is what the images are called; give the layer another name")));
        }
        let fits = if let LayerOp::Concat {} = op { inputs.len() >= 2 } else { inputs.len() == op.arity() };
        if !fits {
            let more = if let LayerOp::Concat {} = op { " or more" } else { "" };
            return Err(wrong(format!("`{}` takes {}{more} inputs, not {}", op.name(), op.arity(), inputs.len())));
        }
        let mut x = Vec::new();
        for input in inputs {
            let near = || suggestion(input, self.values.keys().map(String::as_str));
            let missing = || wrong(format!("its input `{input}` is no earlier layer{}, nor `{IMAGES}`", near()));
            x.push(self.values.get(input).ok_or_else(missing)?.0);
        }
        let shape = self.builder.shape(x[0]);
        self.hold(op, shape).map_err(wrong)?;
        let b = &mut self.builder;
        b.block(block.as_deref());
        b.position(position);
        let window =
            |kernel, stride, padding: Padding| Window { kernel, stride, padding: padding.of(kernel, stride, shape) };
        let id = match *op {
            LayerOp::Conv { channels, kernel, stride, padding, groups, bias } => {
                b.grouped_conv2d(name, x[0], channels, window(kernel, stride, padding), groups, bias)
            }
            LayerOp::Bn { eps, keep, var, affine } => {
                if !(0.0..1.0).contains(&keep) {
                    return Err(wrong(format!("`keep` is from 0 up to but not including 1, not {keep}")));
                }
                b.averaging(Averaging { keep, var });
                b.affine(affine);
                b.batch_norm(name, x[0], eps)
            }
            LayerOp::Linear { channels, bias, taken } => b.linear_of(name, x[0], channels, taken, bias),
            LayerOp::Activation { act } => b.activation(name, x[0], act),
            LayerOp::Add {} => b.add(name, x[0], x[1]),
            LayerOp::Multiply {} => b.multiply(name, x[0], x[1]),
            LayerOp::Scale {} => b.scale(name, x[0], x[1]),
            LayerOp::LayerScale { dims } => b.layer_scale(name, x[0], dims),
            LayerOp::GroupNorm { groups, eps } => b.group_norm(name, x[0], groups, eps),
            LayerOp::LayerNorm { eps } => b.layer_norm(name, x[0], eps),
            LayerOp::Concat {} => b.concat(name, &x),
            LayerOp::Slice { begin, channels } => b.slice(name, x[0], begin, channels),
            LayerOp::Shuffle { groups } => b.shuffle(name, x[0], groups),
            LayerOp::Binary {} => b.binary(name, x[0]),
            LayerOp::Pad { padding } => b.pad(name, x[0], padding),
            LayerOp::Dropout { rate } => b.dropout(name, x[0], rate),
            LayerOp::StochasticDepth { rate } => b.stochastic_depth(name, x[0], rate),
            LayerOp::MaxPool { kernel, stride, padding, ceil } => {
                let window = window(kernel, stride, padding);
                b.max_pool(name, x[0], if ceil { window.ceil([shape.h(), shape.w()]) } else { window })
            }
            LayerOp::AvgPool { kernel, stride, padding, ceil, count_padding } => {
                let window = window(kernel, stride, padding);
                let counted = if count_padding && padding != Padding::Same { window.padding } else { [0; 4] };
                b.avg_pool(name, x[0], if ceil { window.ceil([shape.h(), shape.w()]) } else { window }, counted)
            }
            LayerOp::GlobalAvgPool {} => b.global_avg_pool(name, x[0]),
            LayerOp::GlobalMaxPool {} => b.global_max_pool(name, x[0]),
        }?;
        for input in inputs {
            if let Some((_, read)) = self.values.get_mut(input) {
                *read = true;
            }
        }
        if let Some(alias) = alias {
            self.builder.alias(alias)?;
        }
        self.values.insert(name.clone(), (id, false));
        self.last = Some(name.clone());
        Ok(self.builder.shape(id))
    }

    /// Refuses windows and weights of a size with which nothing can be computed.
    fn hold(&mut self, op: &LayerOp, x: Shape) -> Result<(), String> {
        let (kernel, stride, padding) = match *op {
            LayerOp::Pad { padding } => ([1; 2], [1; 2], Padding::Pixels(padding)),
            _ => op.window().unwrap_or(([1; 2], [1; 2], Padding::Same)),
        };
        let padding = if let Padding::Pixels(padding) = padding { padding } else { [0; 4] };
        if kernel.iter().chain(&stride).any(|&side| !(1..=MAX_WINDOW).contains(&side)) {
            return Err(format!("`kernel` and `stride` are from 1 to {MAX_WINDOW}, not {kernel:?} and {stride:?}"));
        }
        if padding.iter().any(|&side| side > MAX_WINDOW) {
            return Err(format!("`padding` is at most {MAX_WINDOW}, not {padding:?}"));
        }
        if let LayerOp::Linear { taken: Taken::Image(image), .. } = op
            && image.iter().any(|side| !(1..=MAX_WINDOW).contains(side))
        {
            return Err(format!("`flatten` is from 1 to {MAX_WINDOW} pixels a side, not {image:?}"));
        }
        let values = match *op {
            LayerOp::Conv { channels, groups, .. } => {
                let rows = pad4(x.c().div_ceil(groups.max(1)));
                (kernel[0] * kernel[1]).checked_mul(rows).and_then(|taps| taps.checked_mul(channels.saturating_add(4)))
            }
            LayerOp::Linear { channels, taken, .. } => {
                let [h, w] = if let Taken::Image(image) = taken { image } else { [1; 2] };
                (h * w).checked_mul(pad4(x.c())).and_then(|values| values.checked_mul(channels.saturating_add(4)))
            }
            // γ, β, mean, variance and the count.
            LayerOp::Bn { .. } => pad4(x.c()).checked_mul(5),
            LayerOp::LayerNorm { .. } | LayerOp::GroupNorm { .. } | LayerOp::LayerScale { .. } => {
                pad4(x.c()).checked_mul(2)
            }
            _ => Some(0),
        };
        match values.and_then(|values| self.held.checked_add(values)).filter(|&held| held <= MAX_VALUES) {
            Some(held) => {
                self.held = held;
                Ok(())
            }
            None => Err(format!("the weights up to here are more than {MAX_VALUES} values")),
        }
    }

    /// The network, which ends with the last layer that was added.
    pub(crate) fn finish(self) -> Result<Graph, GraphError> {
        let empty = || GraphError { node: "the graph".into(), reason: "it has no layers".into() };
        let last = self.last.ok_or_else(empty)?;
        let unread = self.values.iter().filter(|&(name, &(_, read))| !read && *name != last);
        // The first of several, so that messages do not depend on the order of a hash map.
        if let Some((name, _)) = unread.min_by_key(|&(_, &(id, _))| id) {
            let reason = format!("no layer reads it, and the logits are the last one's, `{last}`");
            return Err(GraphError { node: name.clone(), reason });
        }
        let (logits, _) = self.values[&last];
        self.builder.finish(logits)
    }
}

impl LayerOp {
    /// As the file says it.
    fn name(&self) -> &'static str {
        match self {
            Self::Conv { .. } => "conv",
            Self::Bn { .. } => "bn",
            Self::Linear { .. } => "linear",
            Self::Activation { .. } => "activation",
            Self::Add {} => "add",
            Self::Multiply {} => "multiply",
            Self::Scale {} => "scale",
            Self::LayerScale { .. } => "layer_scale",
            Self::LayerNorm { .. } => "layer_norm",
            Self::GroupNorm { .. } => "group_norm",
            Self::Concat {} => "concat",
            Self::Slice { .. } => "slice",
            Self::Shuffle { .. } => "shuffle",
            Self::Pad { .. } => "pad",
            Self::Binary {} => "binary",
            Self::Dropout { .. } => "dropout",
            Self::StochasticDepth { .. } => "stochastic_depth",
            Self::MaxPool { .. } => "max_pool",
            Self::AvgPool { .. } => "avg_pool",
            Self::GlobalAvgPool {} => "global_avg_pool",
            Self::GlobalMaxPool {} => "global_max_pool",
        }
    }

    /// The same with another number of outputs, if it is a product.
    fn with_channels(&self, channels: usize) -> Self {
        match *self {
            Self::Conv { kernel, stride, padding, groups, bias, .. } => {
                Self::Conv { channels, kernel, stride, padding, groups, bias }
            }
            Self::Linear { bias, taken, .. } => Self::Linear { channels, bias, taken },
            _ => self.clone(),
        }
    }

    fn arity(&self) -> usize {
        if matches!(self, Self::Add {} | Self::Multiply {} | Self::Scale {} | Self::Concat {}) { 2 } else { 1 }
    }

    /// Kernel, stride and padding.
    fn window(&self) -> Option<([usize; 2], [usize; 2], Padding)> {
        match *self {
            Self::Conv { kernel, stride, padding, .. }
            | Self::MaxPool { kernel, stride, padding, .. }
            | Self::AvgPool { kernel, stride, padding, .. } => Some((kernel, stride, padding)),
            _ => None,
        }
    }
}

impl Padding {
    fn is_none(&self) -> bool {
        *self == Self::Pixels([0; 4])
    }

    /// Top, left, bottom and right, for an input `x`.
    fn of(self, kernel: [usize; 2], stride: [usize; 2], x: Shape) -> [usize; 4] {
        match self {
            Self::Pixels(pixels) => pixels,
            Self::Same => Window::same(kernel, stride, [x.h(), x.w()]).padding,
        }
    }
}

impl Serialize for Padding {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Pixels(pixels) => pixels.serialize(to),
            Self::Same => to.serialize_str("same"),
        }
    }
}

/// A number where there is one, else a list of them.
fn position<S: Serializer>(position: &[usize], to: S) -> Result<S::Ok, S::Error> {
    match position {
        [number] => number.serialize(to),
        numbers => numbers.serialize(to),
    }
}

/// A position as a file may have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Position {
    Number(usize),
    Numbers(Vec<usize>),
}

impl From<Position> for Vec<usize> {
    fn from(position: Position) -> Self {
        match position {
            Position::Number(number) => vec![number],
            Position::Numbers(numbers) => numbers,
        }
    }
}

/// A [`Model`] as a file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelEntry {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "position", deserialize_with = "numbers")]
    position: Vec<usize>,
    layers: usize,
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<usize>, D::Error> {
    Position::deserialize(from).map(Vec::from)
}

impl ModelEntry {
    fn of(Model { name, position, layers }: &Model) -> Self {
        Self { name: name.clone(), position: position.clone(), layers: *layers }
    }
}

impl From<ModelEntry> for Model {
    fn from(ModelEntry { name, position, layers }: ModelEntry) -> Self {
        Self { name, position, layers }
    }
}

fn var_name<S: Serializer>(var: &Variance, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(self::var(*var))
}

fn var(var: Variance) -> &'static str {
    match var {
        Variance::Biased => "biased",
        Variance::Unbiased => "unbiased",
    }
}

fn act_fields<S: Serializer>(act: &Act, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(None)?;
    map.serialize_entry("act", act.name())?;
    if let Some((name, factor)) = act.factor() {
        map.serialize_entry(name, &factor.value())?;
    }
    map.end()
}

fn taken_fields<S: Serializer>(taken: &Taken, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(None)?;
    match taken {
        Taken::Pixel => {}
        Taken::EachPixel => map.serialize_entry("each_pixel", &true)?,
        Taken::Image(image) => map.serialize_entry("flatten", image)?,
    }
    map.end()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_true(flag: &bool) -> bool {
    *flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_one(dims: &usize) -> bool {
    *dims == 1
}

fn affine_name<S: Serializer>(affine: &Affine, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(affine)
}

fn is_both(affine: &Affine) -> bool {
    *affine == Affine::Both
}

fn window_of(op: &Op) -> Option<Window> {
    match op {
        Op::Conv2d(conv) => Some(conv.window),
        Op::MaxPool { window, .. } | Op::AvgPool { window, .. } => Some(*window),
        _ => None,
    }
}

/// The layers of `graph`, which `others` are for images of other sizes.
fn entries(graph: &Graph, others: &[Graph]) -> Result<Vec<Entry>, GraphError> {
    let mut entries = Vec::new();
    for (id, node) in graph.nodes() {
        let wrong = |reason: &str| GraphError { node: graph.label(id), reason: reason.into() };
        let Some(layer) = node.layer.map(|layer| &graph.layers()[layer.index()]) else {
            match node.op {
                Op::Input => continue,
                _ => return Err(wrong("the graph is compiled; describe a network as a model or the builder gives it")),
            }
        };
        // The same node for each size, and the shape of what it reads.
        let forms = || {
            std::iter::once(graph).chain(others).map(|graph| {
                let node = graph.node(id);
                (&node.op, graph.node(node.inputs[0]).shape)
            })
        };
        let padding = |window: Window| {
            let windows = || forms().filter_map(|(op, x)| Some((window_of(op)?, x)));
            let same = |(w, x): (Window, Shape)| w.padding == Padding::Same.of(w.kernel, w.stride, x);
            if windows().all(|(other, _)| other.padding == window.padding) {
                Ok(Padding::Pixels(window.padding))
            } else if windows().all(same) {
                Ok(Padding::Same)
            } else {
                Err(wrong("its padding follows from the image's size in a way that a graph file cannot tell"))
            }
        };
        // Of a pooling, and whether it has `ceil`: then the least padding of all sizes is what is said.
        let pool_padding = || {
            let window = |(op, x)| Some((window_of(op)?, x));
            let windows = || forms().filter_map(window);
            let least = [0, 1, 2, 3].map(|side| windows().map(|(w, _)| w.padding[side]).min().unwrap_or(0));
            let by_ceil = |(w, x): (Window, Shape)| Window { padding: least, ..w }.ceil([x.h(), x.w()]) == w;
            match window_of(&node.op).map(padding) {
                Some(Ok(padding)) => Ok((padding, false)),
                _ if windows().all(by_ceil) => Ok((Padding::Pixels(least), true)),
                Some(Err(error)) => Err(error),
                None => Err(wrong("it has no window")),
            }
        };
        let whole = |window: Window| {
            let whole = |(op, x): (&Op, Shape)| window_of(op).is_some_and(|w| w.kernel == [x.h(), x.w()]);
            window.stride == [1; 2] && window.padding == [0; 4] && forms().all(whole)
        };
        let op = match node.op {
            Op::Param(_) => continue,
            Op::Conv2d(conv) if layer.kind == LayerKind::Linear => {
                let taken = Taken::of(conv.window, graph.node(node.inputs[0]).shape);
                LayerOp::Linear { channels: node.shape.c(), bias: conv.bias, taken }
            }
            Op::Conv2d(conv) => LayerOp::Conv {
                channels: node.shape.c(),
                kernel: conv.window.kernel,
                stride: conv.window.stride,
                padding: padding(conv.window)?,
                groups: conv.groups.count(node.shape.c()),
                bias: conv.bias,
            },
            Op::BatchNorm { eps } => {
                let Averaging { keep, var } = layer.averaging;
                LayerOp::Bn { eps, keep, var, affine: layer.affine }
            }
            Op::Activation { act, .. } => LayerOp::Activation { act },
            Op::Add { .. } => LayerOp::Add {},
            Op::Multiply => LayerOp::Multiply {},
            Op::Scale { .. } if layer.kind == LayerKind::LayerScale => {
                let of_image = layer.params.iter().any(|&param| graph.param(param).role == Role::ImageScale);
                LayerOp::LayerScale { dims: if of_image { 3 } else { 1 } }
            }
            Op::Scale { .. } => LayerOp::Scale {},
            Op::LayerNorm { eps, .. } => LayerOp::LayerNorm { eps },
            Op::GroupNorm { eps, groups, .. } => LayerOp::GroupNorm { groups, eps },
            Op::Concat => LayerOp::Concat {},
            Op::Slice { begin, channels, .. } => LayerOp::Slice { begin, channels },
            Op::Shuffle { groups } => LayerOp::Shuffle { groups },
            Op::Pad { padding } => LayerOp::Pad { padding },
            Op::Binary => LayerOp::Binary {},
            Op::Dropout { rate, whole: false, .. } => LayerOp::Dropout { rate },
            Op::Dropout { rate, whole: true, .. } => LayerOp::StochasticDepth { rate },
            Op::MaxPool { window, .. } if whole(window) => LayerOp::GlobalMaxPool {},
            Op::MaxPool { window: Window { kernel, stride, .. }, .. } => {
                let (padding, ceil) = pool_padding()?;
                LayerOp::MaxPool { kernel, stride, padding, ceil }
            }
            Op::AvgPool { window, .. } if whole(window) => LayerOp::GlobalAvgPool {},
            Op::AvgPool { window: Window { kernel, stride, .. }, counted } => {
                let (padding, ceil) = pool_padding()?;
                let count_padding = counted != [0; 4] || padding == Padding::Pixels([0; 4]);
                if count_padding && padding != Padding::Pixels(counted) {
                    return Err(wrong("a graph file counts all of its padding or nothing of it"));
                }
                LayerOp::AvgPool { kernel, stride, padding, ceil, count_padding }
            }
            _ => return Err(wrong("the graph is compiled; describe a network as a model or the builder gives it")),
        };
        let name = |input: &NodeId| {
            let layer = graph.node(*input).layer;
            layer.map_or_else(|| IMAGES.to_owned(), |layer| graph.layers()[layer.index()].name.clone())
        };
        let inputs = node.inputs.iter().filter(|input| !matches!(graph.node(**input).op, Op::Param(_)));
        entries.push(Entry {
            name: layer.name.clone(),
            op,
            inputs: inputs.map(name).collect(),
            block: layer.block.clone(),
            alias: layer.alias.clone(),
            position: layer.position.clone(),
        });
    }
    Ok(entries)
}

fn parse(text: &str) -> Result<GraphFile, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("it is longer than {} MiB", MAX_TEXT >> 20));
    }
    let Unique(value) = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let mut fields = Fields::of(value, "the graph".into())?;
    match fields.map.shift_remove(MAGIC) {
        Some(version) if version == VERSION => {}
        Some(version) => return Err(format!("its version is {version}; this thawline reads version {VERSION}")),
        None => return Err(format!("it is no graph file: `{MAGIC}`, the version of its format, is missing")),
    }
    let name = fields.take("name", "a text")?;
    let size = fields.take("size", "[height, width] in pixels")?;
    let default = Preprocessing::default();
    let preprocessing = Preprocessing {
        resize: fields.take_or("resize", "stretch, crop, crop-first or pad", || default.resize)?,
        crop: fields.take_or("crop", "a share from 0.01 to 1", || default.crop)?,
        interpolation: fields.take_or("interpolation", INTERPOLATIONS, || default.interpolation)?,
        mean: fields.take("mean", "three numbers")?,
        std: fields.take("std", "three numbers")?,
        bgr: fields.take_or("bgr", "true or false", || false)?,
    };
    let about = GraphAbout { name, size, preprocessing };
    let models: Vec<ModelEntry> = fields.take_or("models", "a list of {name, position, layers}", Vec::new)?;
    let entries: Vec<Value> = fields.take("layers", "a list of layers")?;
    fields.finish()?;
    if entries.len() > MAX_LAYERS {
        return Err(format!("a network has at most {MAX_LAYERS} layers, not {}", entries.len()));
    }
    let layers = entries.into_iter().enumerate().map(|(index, value)| entry(index, value)).collect::<Result<_, _>>()?;
    let models = models.into_iter().map(Model::from).collect();
    GraphFile::nested(about, models, layers).map_err(|error| error.to_string())
}

/// What a file may call an interpolation.
const INTERPOLATIONS: &str = "nearest, bilinear, bicubic, tf-nearest, tf-bilinear or tf-bicubic";

/// A JSON value in which no object has two fields of one name. `Value` itself would keep the last of them.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Unique(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(values.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    if fields.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("`{}` is there twice", printable(&name))));
                    }
                    let Unique(value) = map.next_value()?;
                    fields.insert(name, value);
                }
                Ok(fields.into())
            }
        }

        deserializer.deserialize_any(Any).map(Self)
    }
}

fn entry(index: usize, value: Value) -> Result<Entry, String> {
    /// What the file may call a layer's operation.
    const OPS: [&str; 21] = [
        "conv",
        "bn",
        "linear",
        "activation",
        "add",
        "multiply",
        "scale",
        "layer_scale",
        "layer_norm",
        "group_norm",
        "concat",
        "slice",
        "shuffle",
        "pad",
        "binary",
        "dropout",
        "stochastic_depth",
        "max_pool",
        "avg_pool",
        "global_avg_pool",
        "global_max_pool",
    ];
    let mut fields = Fields::of(value, format!("layer {index}"))?;
    let name: String = fields.take("name", "a text")?;
    fields.of = format!("layer `{}`", printable(&name));
    let op: String = fields.take("op", "a text")?;
    let (kernel, stride) = ("[height, width]", || [1, 1]);
    let op = match op.as_str() {
        "conv" => LayerOp::Conv {
            channels: fields.take("channels", "a number")?,
            kernel: fields.take("kernel", kernel)?,
            stride: fields.take_or("stride", kernel, stride)?,
            padding: fields.padding()?,
            groups: fields.take_or("groups", "a number", || 1)?,
            bias: fields.take_or("bias", "true or false", || false)?,
        },
        "bn" => LayerOp::Bn {
            eps: fields.take("eps", "a number")?,
            keep: fields.take_or("keep", "a number", || Averaging::PYTORCH.keep)?,
            var: fields.var()?,
            affine: fields.affine()?,
        },
        "linear" => LayerOp::Linear {
            channels: fields.take("channels", "a number")?,
            bias: fields.take_or("bias", "true or false", || true)?,
            taken: fields.taken()?,
        },
        "activation" => LayerOp::Activation { act: fields.act()? },
        "add" => LayerOp::Add {},
        "multiply" => LayerOp::Multiply {},
        "scale" => LayerOp::Scale {},
        "layer_scale" => LayerOp::LayerScale { dims: fields.take_or("dims", "1 or 3", || 1)? },
        "group_norm" => {
            LayerOp::GroupNorm { groups: fields.take("groups", "a number")?, eps: fields.take("eps", "a number")? }
        }
        "layer_norm" => LayerOp::LayerNorm { eps: fields.take("eps", "a number")? },
        "concat" => LayerOp::Concat {},
        "slice" => {
            LayerOp::Slice { begin: fields.take("begin", "a number")?, channels: fields.take("channels", "a number")? }
        }
        "shuffle" => LayerOp::Shuffle { groups: fields.take("groups", "a number")? },
        "binary" => LayerOp::Binary {},
        "pad" => LayerOp::Pad { padding: fields.take("padding", "[top, left, bottom, right] in pixels")? },
        "dropout" => LayerOp::Dropout { rate: fields.take("rate", "a number")? },
        "stochastic_depth" => LayerOp::StochasticDepth { rate: fields.take("rate", "a number")? },
        "max_pool" => LayerOp::MaxPool {
            kernel: fields.take("kernel", kernel)?,
            stride: fields.take_or("stride", kernel, stride)?,
            padding: fields.padding()?,
            ceil: fields.take_or("ceil", "true or false", || false)?,
        },
        "avg_pool" => LayerOp::AvgPool {
            kernel: fields.take("kernel", kernel)?,
            stride: fields.take_or("stride", kernel, stride)?,
            padding: fields.padding()?,
            ceil: fields.take_or("ceil", "true or false", || false)?,
            count_padding: fields.take_or("count_padding", "true or false", || true)?,
        },
        "global_avg_pool" => LayerOp::GlobalAvgPool {},
        "global_max_pool" => LayerOp::GlobalMaxPool {},
        other => {
            let (of, near, ops) = (&fields.of, suggestion(other, OPS), OPS.join(", "));
            return Err(format!("{of}: `op` is `{}`{near}; the operations are {ops}", printable(other)));
        }
    };
    let inputs = fields.take("inputs", "a list of names")?;
    let block = fields.optional("block", "a text")?;
    let alias = fields.optional("alias", "a text")?;
    let position: Option<Position> = fields.optional("position", "a number, or a list of numbers")?;
    let position = position.map(Vec::from).unwrap_or_default();
    fields.finish()?;
    Ok(Entry { name, op, inputs, block, alias, position })
}

/// The fields of an object that are still to be read.
struct Fields {
    /// What has them, for messages.
    of: String,
    map: Map<String, Value>,
    /// Names of those that were asked for.
    known: Vec<&'static str>,
}

impl Fields {
    fn of(value: Value, of: String) -> Result<Self, String> {
        match value {
            Value::Object(map) => Ok(Self { of, map, known: Vec::new() }),
            _ => Err(format!("{of} must be a JSON object")),
        }
    }

    fn take<T: DeserializeOwned>(&mut self, field: &'static str, what: &str) -> Result<T, String> {
        let missing = format!("{}: `{field}` is missing: {what}", self.of);
        self.optional(field, what)?.ok_or(missing)
    }

    fn take_or<T: DeserializeOwned>(
        &mut self,
        field: &'static str,
        what: &str,
        default: impl FnOnce() -> T,
    ) -> Result<T, String> {
        Ok(self.optional(field, what)?.unwrap_or_else(default))
    }

    fn optional<T: DeserializeOwned>(&mut self, field: &'static str, what: &str) -> Result<Option<T>, String> {
        self.known.push(field);
        let value = self.map.shift_remove(field);
        let wrong = |error| format!("{}: `{field}` must be {what}: {error}", self.of);
        value.map(|value| serde_json::from_value(value).map_err(wrong)).transpose()
    }

    fn padding(&mut self) -> Result<Padding, String> {
        const WHAT: &str = "\"same\" or [top, left, bottom, right] in pixels";
        if self.map.get("padding").is_some_and(|value| value == "same") {
            self.optional::<String>("padding", WHAT)?;
            return Ok(Padding::Same);
        }
        Ok(Padding::Pixels(self.take_or("padding", WHAT, || [0; 4])?))
    }

    fn var(&mut self) -> Result<Variance, String> {
        let name: String = self.take_or("var", "a text", || var(Averaging::PYTORCH.var).to_owned())?;
        let vars = [Variance::Biased, Variance::Unbiased];
        vars.into_iter()
            .find(|&known| var(known) == name)
            .ok_or_else(|| format!("{}: `var` is `{}`; it can be biased or unbiased", self.of, printable(&name)))
    }

    fn act(&mut self) -> Result<Act, String> {
        let name: String = self.take("act", "a text")?;
        let acts = || Act::ALL.into_iter().filter(|act| *act != Act::Identity);
        let act = acts().find(|act| act.name() == name).ok_or_else(|| {
            let names: Vec<&str> = acts().map(Act::name).collect();
            let near = suggestion(&name, names.iter().copied());
            format!("{}: `act` is `{}`{near}; the activations are {}", self.of, printable(&name), names.join(", "))
        })?;
        let Some((field, _)) = act.factor() else { return Ok(act) };
        let value: f32 = self.take(field, "a positive number")?;
        match Factor::new(value) {
            Some(factor) => Ok(act.with_factor(factor)),
            None => Err(format!("{}: `{field}` must be a positive number, not {value}", self.of)),
        }
    }

    fn taken(&mut self) -> Result<Taken, String> {
        let each_pixel = self.take_or("each_pixel", "true or false", || false)?;
        match self.optional("flatten", "[height, width] in pixels")? {
            Some(_) if each_pixel => Err(format!("{}: it takes `each_pixel`, or is to `flatten`, not both", self.of)),
            Some(image) => Ok(Taken::Image(image)),
            None if each_pixel => Ok(Taken::EachPixel),
            None => Ok(Taken::Pixel),
        }
    }

    fn affine(&mut self) -> Result<Affine, String> {
        let words = [Affine::Both, Affine::Gamma, Affine::Beta, Affine::None];
        let word: Option<String> = self.optional("affine", "a text")?;
        let Some(word) = word else { return Ok(Affine::Both) };
        words
            .into_iter()
            .find(|affine| affine.to_string() == word)
            .ok_or_else(|| format!("{}: `affine` is `{}`; it is both, gamma, beta or none", self.of, printable(&word)))
    }

    /// Refuses what nobody asked for.
    fn finish(self) -> Result<(), String> {
        let Some((field, _)) = self.map.into_iter().next() else { return Ok(()) };
        let near = suggestion(&field, self.known.iter().copied());
        let (of, known) = (self.of, self.known.join(", "));
        Err(format!("{of}: it has no field `{}`{near}; the fields are {known}", printable(&field)))
    }
}
