//! A network from the configuration of a Keras model: `config.json` of a `.keras` file, `model_config` of an `.h5`.
//!
//! Layers keep Keras's names, and their numbers in the `layers` of their models. Those of a model inside the model have its
//! name before their own, as in `efficientnetb0/stem_bn`. An activation that is part of a layer is a layer of its own here
//! (`block1_se_reduce.silu`), and so are the halves of a separable convolution (`name.depthwise`, `name.pointwise`). What stands at the beginning and
//! only rescales the images is no layer but the network's mean and deviation.

mod activation;
mod augmentation;
mod blocks;
mod config;
mod joining;
mod layers;
mod rescaling;
mod shapes;

pub use rescaling::image_statistics;

use crate::graph::{Act, GraphError, Model};
use crate::models::{Assembly, Augmentation, Entry, GraphAbout, GraphFile, IMAGES, LayerOp, MAX_LAYERS};
use crate::preprocessing::{Interpolation, Parts, Preprocessing, Resize, Traced};
use crate::tensor::Shape;
use crate::text::{message, printable};
use blocks::block_of;
use config::{Argument, Layer, arguments, name_of, operation, own_class, references};
use rescaling::{APPLICATIONS, Rescaling};
use serde_json::Value;
use shapes::{Axes, Border, BorderLayer};
use std::collections::{HashMap, HashSet};

/// What a Keras file says of its network.
#[derive(Clone, Copy)]
pub struct KerasConfig<'a> {
    /// The model's configuration.
    pub config: &'a Value,
    /// Whether it is Keras 2's, where some words have another meaning.
    pub keras_2: bool,
    /// Mean and variance of the `Normalization` layer of that name, if the file has them as variables.
    pub normalization: &'a dyn Fn(&str) -> Option<[Vec<f32>; 2]>,
}

/// A network that was a Keras model.
#[derive(Clone, PartialEq, Debug)]
pub struct Imported {
    pub graph: GraphFile,
    /// In what it differs from the model, a sentence each.
    pub notes: Vec<String>,
    /// The layers that change images at random in training, which the graph has not.
    pub augmentation: Vec<Augmentation>,
    pub images: Prepared,
    /// The graph's, and where each part of it comes from.
    pub preprocessing: Traced,
}

/// Who says what becomes of a pixel's values from 0 to 255.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// The model, which has layers for it.
    ByModel,
    /// `preprocess_input` of this module of `keras.applications`, by the names of layers: the file does not tell whether it
    /// was used.
    AsApplication(&'static str),
    /// Nothing: the network gets them as they are, and if it was trained on others the file does not tell.
    Unknown,
}

/// A Keras model that has no counterpart here.
#[derive(Debug, thiserror::Error)]
pub enum KerasError {
    #[error("layer `{}` ({}): {}", printable(layer), printable(class), message(reason))]
    Layer { layer: String, class: String, reason: String },
    #[error("{}", message(.0))]
    Model(String),
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The classes of layers that become part of a network.
const SUPPORTED: &str = "Conv2D, DepthwiseConv2D, SeparableConv2D, Dense, BatchNormalization, LayerNormalization, Activation, \
                         ReLU, LeakyReLU, ELU, Softmax, ZeroPadding2D, MaxPooling2D, AveragePooling2D, \
                         GlobalAveragePooling2D, GlobalMaxPooling2D, Add, Multiply, Concatenate, Dropout, Flatten, Reshape to \
                         one row and of pooled features, and at the beginning Rescaling, Normalization, Resizing, random \
                         augmentation and preprocess_input";

/// Models within models, far more than there are in practice.
const MAX_DEPTH: usize = 16;

/// The side of images where the model takes any.
const DEFAULT_SIZE: usize = 224;

/// Reads a model's configuration.
///
/// # Errors
/// It is no Functional or Sequential model from images of three channels to the logits of classes, or has a layer that is
/// not supported: names the layer, its class, and what is.
pub fn import(model: KerasConfig<'_>) -> Result<Imported, KerasError> {
    let mut importer = Importer {
        model,
        entries: Vec::new(),
        images: None,
        names: HashSet::new(),
        size: None,
        resizing: None,
        notes: Vec::new(),
        augmentation: Vec::new(),
        models: Vec::new(),
        position: Vec::new(),
        assembly: None,
        shapes: Vec::new(),
        borders: Vec::new(),
    };
    let images = Tensor { from: From::Images(Rescaling::NONE), axes: Axes::Image, border: None, form: Form::Plain };
    let output = importer.model(model.config, "", &[images], 0)?;
    let unfinished = output.border.is_some() || matches!(output.form, Form::Plus3 | Form::Clipped { .. });
    if unfinished || importer.is_flat(output) {
        return Err(KerasError::Model("the model does not end in logits".into()));
    }
    let output = importer.logits(output)?;
    importer.forget_gates(output.from);
    let Some(images) = importer.images else {
        return Err(KerasError::Model("the model has no layer that computes anything".into()));
    };
    let name = model.config["config"]["name"].as_str().unwrap_or("keras").chars().filter(|c| !c.is_control()).collect();
    let size = importer.image_size();
    let application =
        || APPLICATIONS.into_iter().find(|(_, layers, _)| layers.iter().all(|layer| importer.names.contains(*layer)));
    let (images, prepared) = match (images == Rescaling::NONE).then(application) {
        None => (images, Prepared::ByModel),
        Some(Some((module, _, rescaling))) => (rescaling, Prepared::AsApplication(module)),
        Some(None) => (images, Prepared::Unknown),
    };
    let (mean, std) = images.mean_and_deviation();
    let values = Parts { mean: Some(mean), std: Some(std), bgr: Some(images.bgr), ..Parts::default() };
    let keras = Preprocessing::keras(mean, std, images.bgr);
    let preprocessing = Traced::new(keras, "Keras's image_dataset_from_directory");
    let mut preprocessing = match prepared {
        Prepared::ByModel => preprocessing.with(&values, "the model's own layers"),
        Prepared::AsApplication(module) => {
            preprocessing.with(&values, format!("preprocess_input of keras.applications.{module}"))
        }
        Prepared::Unknown => preprocessing.with(&values, "nothing in the file: the values as they are"),
    };
    if let Some((layer, resize, interpolation)) = importer.resizing {
        let parts = Parts { resize: Some(resize), interpolation: Some(interpolation), ..Parts::default() };
        preprocessing = preprocessing.with(&parts, format!("the model's layer `{layer}`"));
    }
    let about = GraphAbout { name, size, preprocessing: preprocessing.value };
    let graph = GraphFile::nested(about, importer.models, importer.entries)?;
    let Importer { notes, augmentation, .. } = importer;
    Ok(Imported { graph, notes, augmentation, images: prepared, preprocessing })
}

/// What a layer takes or gives.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    from: From,
    axes: Axes,
    /// Zeros around it that the next layer adds.
    border: Option<Border>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum From {
    Images(Rescaling),
    Entry(usize),
}

/// What is still to be done with a tensor, because it is done with the next layer or not at all.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Form {
    Plain,
    /// The softmax of it, which only the model's output may be.
    Softmax,
    /// It plus 3, the first part of a hard sigmoid.
    Plus3,
    /// ReLU6 of it plus 3, the second part; the hard sigmoid is an entry already.
    Clipped {
        entry: usize,
    },
    /// One of its three channels, which are put together in another order.
    Channel(usize),
}

/// An argument of a layer.
#[derive(Clone, Copy, Debug)]
enum Arg<'a> {
    Tensor(Tensor),
    Constant(&'a Value),
}

impl Arg<'_> {
    fn tensor(&self) -> Option<Tensor> {
        match self {
            Self::Tensor(tensor) => Some(*tensor),
            Self::Constant(_) => None,
        }
    }
}

struct Importer<'a> {
    model: KerasConfig<'a>,
    entries: Vec<Entry>,
    /// What is done to the images before the first layer.
    images: Option<Rescaling>,
    /// The own names of all layers.
    names: HashSet<String>,
    size: Option<(usize, usize)>,
    /// The layer that resizes images, and how.
    resizing: Option<(String, Resize, Interpolation)>,
    notes: Vec<String>,
    augmentation: Vec<Augmentation>,
    /// The models so far, each before those within it.
    models: Vec<Model>,
    /// The number of the layer in its model's `layers`, behind those of the models around it.
    position: Vec<usize>,
    /// What tells the shapes of the entries, which follow from the size of the images; none before the first entry.
    assembly: Option<Assembly>,
    /// What each entry gives.
    shapes: Vec<Shape>,
    /// The layers that add zeros around images.
    borders: Vec<BorderLayer>,
}

impl Importer<'_> {
    /// Reads a model, or one within it, whose layers' names begin with `prefix`. `inputs` are the tensors that it takes.
    fn model(&mut self, model: &Value, prefix: &str, inputs: &[Tensor], depth: usize) -> Result<Tensor, KerasError> {
        let class = model["class_name"].as_str().unwrap_or_default();
        if depth == MAX_DEPTH {
            return Err(KerasError::Model(format!("models lie within models more than {MAX_DEPTH} deep")));
        }
        if self.models.len() == MAX_LAYERS {
            return Err(KerasError::Model(format!("more than {MAX_LAYERS} models lie within it")));
        }
        let index = self.models.len();
        let name = prefix.strip_suffix('/').unwrap_or(prefix).to_owned();
        self.models.push(Model { name, position: self.position.clone(), layers: 0 });
        self.position.push(0);
        let (output, layers) = match class {
            "Functional" | "Model" => self.functional(model, prefix, inputs, depth)?,
            "Sequential" | "Pipeline" => self.sequential(model, prefix, inputs, depth)?,
            _ => {
                return Err(KerasError::Model(format!(
                    "the model is of the class `{class}`: only Functional and Sequential models say what layers they have"
                )));
            }
        };
        self.position.pop();
        self.models[index].layers = layers;
        Ok(output)
    }

    /// Says which of its model's `layers` is read next.
    fn at(&mut self, number: usize) {
        if let Some(last) = self.position.last_mut() {
            *last = number;
        }
    }

    /// What the model gives, and how many `layers` it has.
    fn sequential(
        &mut self,
        model: &Value,
        prefix: &str,
        inputs: &[Tensor],
        depth: usize,
    ) -> Result<(Tensor, usize), KerasError> {
        let config = &model["config"];
        let layers = config.get("layers").unwrap_or(config).as_array();
        let &[mut x] = inputs else {
            return Err(KerasError::Model(format!("the Sequential model `{prefix}` takes one input")));
        };
        if depth == 0 {
            self.input_shape(&config["build_input_shape"])?;
        }
        let mut number = 0;
        for layer in layers.into_iter().flatten() {
            if depth == 0 {
                self.input(&layer["config"])?;
            }
            // Nor is it in the `layers` of a Sequential.
            if layer["class_name"] == "InputLayer" {
                continue;
            }
            self.at(number);
            x = self.layer(layer, prefix, &[Arg::Tensor(x)], depth)?;
            number += 1;
        }
        Ok((x, number))
    }

    /// What the model gives, and how many `layers` it has.
    fn functional(
        &mut self,
        model: &Value,
        prefix: &str,
        inputs: &[Tensor],
        depth: usize,
    ) -> Result<(Tensor, usize), KerasError> {
        let config = &model["config"];
        let failed = |reason: String| KerasError::Model(format!("model `{}`: {reason}", name_of(model)));
        let names = references(&config["input_layers"]);
        if names.len() != inputs.len() {
            return Err(failed(format!("it has {} inputs; one, the images, is supported", names.len())));
        }
        let mut tensors: HashMap<&str, Tensor> = names.into_iter().zip(inputs.iter().copied()).collect();
        // Keras 3 has arithmetic and functions in this list, too, but not in the model's `layers`.
        let is_layer = |layer: &Value| {
            let module = layer["module"].as_str().unwrap_or_default();
            !module.contains(".ops.") && !module.contains(".activations.")
        };
        let mut number = 0;
        for layer in config["layers"].as_array().into_iter().flatten() {
            let name = name_of(layer);
            number += usize::from(is_layer(layer));
            // Arithmetic counts with the layer before it.
            self.at(number.saturating_sub(1));
            if layer["class_name"] == "InputLayer" {
                if depth == 0 {
                    self.input(&layer["config"])?;
                }
                continue;
            }
            let nodes = layer["inbound_nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let node = match nodes {
                [node] => node,
                // A layer that the output does not need.
                [] => continue,
                _ => {
                    let reason = format!("it is used {} times, and a layer can be used once only", nodes.len());
                    return Err(failed(format!("layer `{name}`: {reason}")));
                }
            };
            let mut args = Vec::new();
            for argument in arguments(node) {
                args.push(match argument {
                    Argument::Constant(value) => Arg::Constant(value),
                    Argument::Layer(input) => Arg::Tensor(
                        *tensors
                            .get(input)
                            .ok_or_else(|| failed(format!("layer `{name}` takes `{input}`, which is not above it")))?,
                    ),
                });
            }
            let output = self.layer(layer, prefix, &args, depth)?;
            tensors.insert(name, output);
        }
        match references(&config["output_layers"])[..] {
            [output] => match tensors.get(output) {
                Some(&output) => Ok((output, number)),
                None => Err(failed(format!("its output `{output}` is missing"))),
            },
            ref outputs => Err(failed(format!("it has {} outputs; one, the classes, is supported", outputs.len()))),
        }
    }

    /// Takes the size of the images from the layer that stands for them.
    fn input(&mut self, config: &Value) -> Result<(), KerasError> {
        self.input_shape(config.get("batch_shape").unwrap_or(&config["batch_input_shape"]))
    }

    fn input_shape(&mut self, shape: &Value) -> Result<(), KerasError> {
        let Some(shape) = shape.as_array() else { return Ok(()) };
        let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
        match &shape[..] {
            [_, height, width, channels] if channels.as_u64() == Some(3) => {
                self.size = self.size.or(side(height).zip(side(width)));
                Ok(())
            }
            _ => {
                let shape = Value::from(shape.as_slice());
                Err(KerasError::Model(format!("the model takes {shape}, not images [N, height, width, 3]")))
            }
        }
    }

    fn layer(&mut self, layer: &Value, prefix: &str, args: &[Arg<'_>], depth: usize) -> Result<Tensor, KerasError> {
        let class = own_class(layer["class_name"].as_str().unwrap_or_default());
        let path = format!("{prefix}{}", name_of(layer));
        self.names.insert(name_of(layer).to_owned());
        if self.entries.len() >= MAX_LAYERS {
            return Err(KerasError::Model(format!("it has more than {MAX_LAYERS} layers")));
        }
        if layer["config"].get("layers").is_some() {
            let tensors: Vec<Tensor> = args.iter().filter_map(Arg::tensor).collect();
            return self.model(layer, &format!("{path}/"), &tensors, depth + 1);
        }
        let layer = Layer {
            path: &path,
            class,
            module: layer["module"].as_str().unwrap_or_default(),
            config: &layer["config"],
            call: &layer["inbound_nodes"][0],
        };
        layer.only("data_format", &["channels_last".into()])?;
        for key in ["kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer", "kernel_constraint"] {
            let note = format!("the {key} of the model's layers is left out: weight decay is --weight-decay here");
            if !layer.config[key].is_null() && !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let tensors: Vec<Tensor> = args.iter().filter_map(Arg::tensor).collect();
        match (operation(&layer), args) {
            ("GetItem", &[Arg::Tensor(x), ..]) => self.subscript(&layer, x),
            ("Stack", &[Arg::Tensor(a), Arg::Tensor(b), Arg::Tensor(c)]) => self.stack(&layer, [a, b, c]),
            (_, &[Arg::Tensor(x)]) => self.of_one(&layer, x),
            (_, &[Arg::Tensor(x), Arg::Constant(value)]) => self.with_constant(&layer, x, value),
            ("Add" | "Multiply", &[Arg::Constant(value), Arg::Tensor(x)]) => self.with_constant(&layer, x, value),
            (operation, &[Arg::Constant(value), Arg::Tensor(_)]) => {
                Err(layer.error(format!("`{operation}` with {value} on its left is not supported")))
            }
            (_, [_, _, ..]) if tensors.len() == args.len() => self.of_several(&layer, &tensors),
            _ => Err(layer.error(format!("it has {} inputs; {SUPPORTED} are supported", args.len()))),
        }
    }

    /// Refuses a tensor that something is still to be done with.
    fn unformed(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match x.form {
            Form::Plain => Ok(x),
            Form::Softmax => Err(layer.error("it comes after a softmax, which is supported at the end only")),
            Form::Channel(_) => Err(layer.error("it takes one channel of the images; all three are supported")),
            Form::Plus3 | Form::Clipped { .. } => {
                Err(layer.error("a number can be added to images only, or as part of a hard sigmoid, relu6(x + 3)/6"))
            }
        }
    }

    /// As [`unformed`](Self::unformed), with the zeros around it.
    fn plain(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        self.bordered(layer, x)
    }

    /// Adds a layer of the graph. Keras has its output as it has its first input.
    fn push(&mut self, layer: &Layer<'_>, name: &str, op: LayerOp, inputs: &[Tensor]) -> Result<Tensor, KerasError> {
        for input in inputs {
            let From::Images(rescaling) = input.from else { continue };
            if *self.images.get_or_insert(rescaling) != rescaling {
                return Err(layer.error("it takes images that are rescaled otherwise than those of another layer"));
            }
        }
        let block = block_of(name);
        let inputs_by_name = inputs.iter().map(|&input| self.name_of(input).to_owned()).collect();
        let position = self.position.clone();
        let entry = Entry { name: name.to_owned(), op, inputs: inputs_by_name, block, alias: None, position };
        let size = self.image_size();
        let assembly = match &mut self.assembly {
            Some(assembly) => assembly,
            none => none.insert(Assembly::new(1, size)?),
        };
        let shape = assembly.add(&entry).map_err(|GraphError { reason, .. }| layer.error(reason))?;
        self.entries.push(entry);
        self.shapes.push(shape);
        let axes = inputs.first().map_or(Axes::Image, |input| input.axes);
        Ok(Tensor { from: From::Entry(self.entries.len() - 1), axes, border: None, form: Form::Plain })
    }

    /// The logits behind the model's output, which is them, or the sigmoid of one.
    fn logits(&mut self, output: Tensor) -> Result<Tensor, KerasError> {
        let From::Entry(index) = output.from else { return Ok(output) };
        let Entry { name, op: LayerOp::Activation { act }, inputs, .. } = &self.entries[index] else {
            return Ok(output);
        };
        let logit = self.entries.iter().position(|entry| entry.name == inputs[0]);
        match (act, self.channels(output), logit) {
            (Act::Sigmoid, 1, Some(logit)) => {
                self.notes
                    .push(format!("the sigmoid `{name}` is left out: the network gives the logit of the second class"));
                Ok(Tensor { from: From::Entry(logit), ..output })
            }
            _ => Err(KerasError::Model(format!(
                "the model ends in `{name}`; logits, softmax, and for two classes one sigmoid are supported: in Keras, give the \
                 model Dense(CLASSES, activation=\"softmax\") as its last layer"
            ))),
        }
    }

    /// Takes out the gates of [`product`](Self::product), and the sigmoid at the end, that nothing reads.
    fn forget_gates(&mut self, output: From) {
        let read: HashSet<String> = self.entries.iter().flat_map(|entry| entry.inputs.iter().cloned()).collect();
        let mut index = 0;
        self.entries.retain(|entry| {
            let is_output = output == From::Entry(index);
            index += 1;
            is_output || read.contains(&entry.name) || !matches!(entry.op, LayerOp::Activation { .. })
        });
    }

    fn name_of(&self, tensor: Tensor) -> &str {
        match tensor.from {
            From::Images(_) => IMAGES,
            From::Entry(index) => &self.entries[index].name,
        }
    }
}
