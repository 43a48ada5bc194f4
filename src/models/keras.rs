//! A network from the configuration of a Keras model: `config.json` of a `.keras` file, `model_config` of an `.h5`.
//!
//! Layers keep Keras's names. Those of a model inside the model have its name before their own, as in
//! `efficientnetb0/stem_bn`. An activation that is part of a layer is a layer of its own here (`block1_se_reduce.silu`),
//! and so are the halves of a separable convolution (`name.depthwise`, `name.pointwise`). What stands at the beginning and
//! only rescales the images is no layer but the network's mean and deviation.

use super::Spec;
use super::file::{Entry, GraphAbout, GraphFile, IMAGES, LayerOp, MAX_LAYERS, Padding};
use crate::graph::{Act, Affine, Averaging, GraphError, Variance};
use crate::preprocessing::{Interpolation, Parts, Preprocessing, Resize, Traced};
use serde_json::Value;
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

/// What `preprocess_input` does for the models of `keras.applications` that do not prepare their images themselves: the
/// module that has it, and layers at the beginning that no other of these models has together. The names of models would
/// not do: a model that is built on such a one's layers has another name than the one within a model. The first that
/// fits counts. Source: `mode` in each of its modules, and `imagenet_utils.py` for what a mode is.
const APPLICATIONS: [(&str, &[&str], Rescaling); 8] = [
    ("resnet_v2", &["conv1_conv", "conv2_block1_preact_bn", "conv2_block1_1_conv"], Rescaling::TF),
    ("resnet", &["conv1_conv", "conv1_bn", "conv2_block1_1_conv", "conv2_block1_0_conv"], Rescaling::CAFFE),
    // As Keras called its layers before 2.2.5.
    ("resnet", &["conv1", "bn_conv1", "res2a_branch2a", "res2a_branch1"], Rescaling::CAFFE),
    ("xception", &["block1_conv1", "block1_conv2", "block2_sepconv1"], Rescaling::TF),
    ("vgg19", &["block1_conv1", "block1_conv2", "block2_conv1", "block3_conv4"], Rescaling::CAFFE),
    ("vgg16", &["block1_conv1", "block1_conv2", "block2_conv1"], Rescaling::CAFFE),
    ("mobilenet", &["conv1", "conv1_bn", "conv_dw_1", "conv_pw_1"], Rescaling::TF),
    ("mobilenet_v2", &["Conv1", "bn_Conv1", "expanded_conv_depthwise"], Rescaling::TF),
];

/// A Keras model that has no counterpart here.
#[derive(Debug, thiserror::Error)]
pub enum KerasError {
    #[error("layer `{}` ({}): {}", line(layer), line(class), line(reason))]
    Layer { layer: String, class: String, reason: String },
    #[error("{}", line(.0))]
    Model(String),
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Messages quote the file: made fit for one line, which is long enough for every list of what is supported.
fn line(text: &str) -> String {
    const LIMIT: usize = 1000;
    let escaped = |c: char| if c.is_control() { c.escape_debug().collect() } else { vec![c] };
    text.chars().take(LIMIT).flat_map(escaped).collect()
}

/// The classes of layers that become part of a network.
const SUPPORTED: &str = "Conv2D, DepthwiseConv2D, SeparableConv2D, Dense, BatchNormalization, Activation, ReLU, Softmax, \
                         ZeroPadding2D, MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D, Add, Multiply, Dropout, \
                         Flatten and Reshape of pooled features, and at the beginning Rescaling, Normalization, Resizing, \
                         random augmentation and preprocess_input";

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
        position: 0,
    };
    let images =
        Tensor { from: From::Images(Rescaling::NONE), channels: 3, pooled: false, padding: [0; 4], form: Form::Plain };
    let output = importer.model(model.config, "", &[images], 0)?;
    if output.padding != [0; 4] || matches!(output.form, Form::Plus3 | Form::Clipped { .. }) {
        return Err(KerasError::Model("the model does not end in logits".into()));
    }
    if let From::Entry(index) = output.from
        && matches!(importer.entries[index].op, LayerOp::Activation { .. })
    {
        let reason = format!(
            "the model ends in `{}`; logits and softmax are supported. Two classes are two outputs here: in Keras, give the \
             model Dense(2, activation=\"softmax\") as its last layer",
            importer.entries[index].name
        );
        return Err(KerasError::Model(reason));
    }
    importer.forget_gates(output.from);
    let Some(images) = importer.images else {
        return Err(KerasError::Model("the model has no layer that computes anything".into()));
    };
    let name = model.config["config"]["name"].as_str().unwrap_or("keras").chars().filter(|c| !c.is_control()).collect();
    let size = importer.size.unwrap_or((DEFAULT_SIZE, DEFAULT_SIZE));
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
    let mut layers = importer.entries;
    alias(&mut layers);
    let graph = GraphFile::new(GraphAbout { name, size, preprocessing: preprocessing.value }, layers)?;
    Ok(Imported { graph, notes: importer.notes, images: prepared, preprocessing })
}

/// Mean and deviation of the images, as values from 0 to 1, that a `Normalization` layer's variables mean in the network
/// `spec`, where a file has no configuration beside them.
///
/// The EfficientNets of `keras.applications` keep the deviation itself as the variance if they have ImageNet's weights, and
/// divide by its root once more; then there is nothing to tell. None, too, if there is not one number a channel.
pub fn image_statistics(spec: &Spec, [mean, variance]: &[Vec<f32>; 2]) -> Option<[[f32; 3]; 2]> {
    let [mean, variance]: [[f32; 3]; 2] = [mean.as_slice().try_into().ok()?, variance.as_slice().try_into().ok()?];
    let is_deviation =
        variance.iter().zip(spec.preprocessing.value.std).all(|(variance, std)| (variance - std).abs() < 1e-3);
    let std = variance.map(f32::sqrt);
    let is_sound = mean.iter().all(|mean| mean.is_finite()) && std.iter().all(|&std| std > 0.0 && std.is_finite());
    (is_sound && !is_deviation).then_some([mean, std])
}

/// What rescaling makes of a pixel's values from 0 to 255, of red, green and blue: `scale · x + offset`.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rescaling {
    scale: [f64; 3],
    offset: [f64; 3],
    /// Whether blue comes first then.
    bgr: bool,
}

impl Rescaling {
    const NONE: Self = Self { scale: [1.0; 3], offset: [0.0; 3], bgr: false };
    /// From −1 to 1.
    const TF: Self = Self { scale: [1.0 / 127.5; 3], offset: [-1.0; 3], bgr: false };
    /// Less the mean colour of ImageNet.
    const CAFFE: Self = Self { scale: [1.0; 3], offset: [-123.68, -116.779, -103.939], bgr: true };

    /// With numbers for the channels in the order in which they are by now.
    fn then(self, scale: [f64; 3], offset: [f64; 3]) -> Self {
        let channels = [0, 1, 2];
        let at = |c: usize| if self.bgr { 2 - c } else { c };
        Self {
            scale: channels.map(|c| self.scale[c] * scale[at(c)]),
            offset: channels.map(|c| self.offset[c] * scale[at(c)] + offset[at(c)]),
            bgr: self.bgr,
        }
    }

    /// With u = x/255: scale·255·u + offset = (u − mean)/std.
    fn mean_and_deviation(self) -> ([f32; 3], [f32; 3]) {
        let channels = [0, 1, 2];
        let std = self.scale.map(|scale| 1.0 / (255.0 * scale));
        (channels.map(|c| (0.0 - self.offset[c] * std[c]) as f32), std.map(|std| std as f32))
    }
}

/// What a layer takes or gives.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    from: From,
    channels: usize,
    /// Whether it is `[N, 1, 1, C]`, which Keras has as `[N, C]` too.
    pooled: bool,
    /// Zeros around it that the next layer adds: top, left, bottom, right.
    padding: [usize; 4],
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

/// The layer that is being read.
struct Layer<'a> {
    path: &'a str,
    class: &'a str,
    config: &'a Value,
    /// How it is called: what is in its `inbound_nodes`.
    call: &'a Value,
}

impl Layer<'_> {
    fn error(&self, reason: impl Into<String>) -> KerasError {
        KerasError::Layer { layer: self.path.into(), class: self.class.into(), reason: reason.into() }
    }

    /// One number for both directions, or one for each.
    fn pair(&self, key: &str) -> Result<[usize; 2], KerasError> {
        let number = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
        let value = &self.config[key];
        let pair = match value.as_array().map(Vec::as_slice) {
            Some([h, w]) => number(h).zip(number(w)),
            Some([one]) => number(one).map(|one| (one, one)),
            Some(_) => None,
            None => number(value).map(|both| (both, both)),
        };
        pair.map(|(h, w)| [h, w]).ok_or_else(|| self.error(format!("`{key}` is {value}, not two whole numbers")))
    }

    fn count(&self, key: &str) -> Result<usize, KerasError> {
        let value = &self.config[key];
        let count = value.as_u64().and_then(|value| usize::try_from(value).ok());
        count.ok_or_else(|| self.error(format!("`{key}` is {value}, not a whole number")))
    }

    fn float(&self, key: &str, default: f64) -> Result<f64, KerasError> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.error(format!("`{key}` is {value}, not a number"))),
        }
    }

    /// Whether an option that defaults to `default` is on.
    fn is_on(&self, key: &str, default: bool) -> bool {
        self.config[key].as_bool().unwrap_or(default)
    }

    /// Refuses an option that is set to what is not supported.
    fn only(&self, key: &str, supported: &[Value]) -> Result<(), KerasError> {
        match &self.config[key] {
            Value::Null => Ok(()),
            value if supported.contains(value) => Ok(()),
            value => Err(self.error(format!("{key}={value} is not supported, only {}", supported[0]))),
        }
    }

    /// A number for each of the three channels of an image.
    fn channels(&self, value: &Value) -> Result<[f64; 3], KerasError> {
        let mut numbers = Vec::new();
        flatten(value, &mut numbers);
        match numbers[..] {
            [one] => Ok([one; 3]),
            [red, green, blue] => Ok([red, green, blue]),
            _ => Err(self.error(format!("{} numbers are not one for each channel of an image", numbers.len()))),
        }
    }

    /// The word for an activation, which newer files have as an object.
    fn activation(&self) -> &str {
        let value = &self.config["activation"];
        value.as_str().or_else(|| value["config"].as_str()).or_else(|| value["class_name"].as_str()).unwrap_or("linear")
    }
}

/// All numbers in lists within lists.
fn flatten(value: &Value, out: &mut Vec<f64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| flatten(value, out)),
        value => out.extend(value.as_f64()),
    }
}

/// What an activation's word stands for.
enum Activation {
    Act(Act),
    Softmax,
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
    /// The number of the layer in the outermost model's `layers`.
    position: usize,
}

impl Importer<'_> {
    /// Reads a model, or one within it, whose layers' names begin with `prefix`. `inputs` are the tensors that it takes.
    fn model(&mut self, model: &Value, prefix: &str, inputs: &[Tensor], depth: usize) -> Result<Tensor, KerasError> {
        let class = model["class_name"].as_str().unwrap_or_default();
        if depth == MAX_DEPTH {
            return Err(KerasError::Model(format!("models lie within models more than {MAX_DEPTH} deep")));
        }
        match class {
            "Functional" | "Model" => self.functional(model, prefix, inputs, depth),
            "Sequential" => self.sequential(model, prefix, inputs, depth),
            _ => Err(KerasError::Model(format!(
                "the model is of the class `{class}`: only Functional and Sequential models say what layers they have"
            ))),
        }
    }

    fn sequential(
        &mut self,
        model: &Value,
        prefix: &str,
        inputs: &[Tensor],
        depth: usize,
    ) -> Result<Tensor, KerasError> {
        let config = &model["config"];
        let layers = config.get("layers").unwrap_or(config).as_array();
        let &[mut x] = inputs else {
            return Err(KerasError::Model(format!("the Sequential model `{prefix}` takes one input")));
        };
        if depth == 0 {
            self.input_shape(&config["build_input_shape"])?;
        }
        for layer in layers.into_iter().flatten() {
            if depth == 0 {
                self.input(&layer["config"])?;
            }
            // Nor is it in the `layers` of a Sequential.
            if layer["class_name"] == "InputLayer" {
                continue;
            }
            x = self.layer(layer, prefix, &[Arg::Tensor(x)], depth)?;
            if depth == 0 {
                self.position += 1;
            }
        }
        Ok(x)
    }

    fn functional(
        &mut self,
        model: &Value,
        prefix: &str,
        inputs: &[Tensor],
        depth: usize,
    ) -> Result<Tensor, KerasError> {
        let config = &model["config"];
        let failed = |reason: String| KerasError::Model(format!("model `{}`: {reason}", name_of(model)));
        let names = references(&config["input_layers"]);
        if names.len() != inputs.len() {
            return Err(failed(format!("it has {} inputs; one, the images, is supported", names.len())));
        }
        let mut tensors: HashMap<&str, Tensor> = names.into_iter().zip(inputs.iter().copied()).collect();
        // Keras 3 has arithmetic in this list, too, but not in the model's `layers`.
        let is_layer = |layer: &Value| !layer["module"].as_str().is_some_and(|module| module.contains(".ops."));
        let mut position = 0;
        for layer in config["layers"].as_array().into_iter().flatten() {
            let name = name_of(layer);
            if depth == 0 {
                self.position = position;
                position += usize::from(is_layer(layer));
            }
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
            [output] => tensors.get(output).copied().ok_or_else(|| failed(format!("its output `{output}` is missing"))),
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
        let class = layer["class_name"].as_str().unwrap_or_default();
        let path = format!("{prefix}{}", name_of(layer));
        self.names.insert(name_of(layer).to_owned());
        if self.entries.len() >= MAX_LAYERS {
            return Err(KerasError::Model(format!("it has more than {MAX_LAYERS} layers")));
        }
        if layer["config"].get("layers").is_some() {
            let tensors = args.iter().filter_map(|arg| match arg {
                Arg::Tensor(tensor) => Some(*tensor),
                Arg::Constant(_) => None,
            });
            return self.model(layer, &format!("{path}/"), &tensors.collect::<Vec<_>>(), depth + 1);
        }
        let layer = Layer { path: &path, class, config: &layer["config"], call: &layer["inbound_nodes"][0] };
        layer.only("data_format", &["channels_last".into()])?;
        for key in ["kernel_regularizer", "depthwise_regularizer", "pointwise_regularizer", "kernel_constraint"] {
            let note = format!("the {key} of the model's layers is left out: weight decay is --weight-decay here");
            if !layer.config[key].is_null() && !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        match (operation(&layer), args) {
            ("GetItem", &[Arg::Tensor(x), ..]) => self.subscript(&layer, x),
            ("Stack", &[Arg::Tensor(a), Arg::Tensor(b), Arg::Tensor(c)]) => self.stack(&layer, [a, b, c]),
            (_, &[Arg::Tensor(x)]) => self.of_one(&layer, x),
            (_, &[Arg::Tensor(a), Arg::Tensor(b)]) => self.of_two(&layer, a, b),
            (_, &[Arg::Tensor(x), Arg::Constant(value)]) => self.with_constant(&layer, x, value),
            ("Add" | "Multiply", &[Arg::Constant(value), Arg::Tensor(x)]) => self.with_constant(&layer, x, value),
            (operation, &[Arg::Constant(value), Arg::Tensor(_)]) => {
                Err(layer.error(format!("`{operation}` with {value} on its left is not supported")))
            }
            _ => Err(layer.error(format!("it has {} inputs; {SUPPORTED} are supported", args.len()))),
        }
    }

    /// What comes of a layer with one input.
    fn of_one(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match layer.class {
            "Rescaling" => {
                let scale = layer.channels(&layer.config["scale"])?;
                let offset = match &layer.config["offset"] {
                    Value::Null => [0.0; 3],
                    offset => layer.channels(offset)?,
                };
                self.rescaled(layer, x, scale, offset)
            }
            "Normalization" => self.normalization(layer, x),
            "Resizing" => {
                self.images_only(layer, x)?;
                self.size = Some((layer.count("height")?, layer.count("width")?));
                self.resizing = Some(resizing(layer)?);
                self.notes.push(format!("images are resized as `{}` does, but once only, from the file", layer.path));
                Ok(x)
            }
            class if class.starts_with("Random") => {
                self.images_only(layer, x)?;
                if class == "RandomCrop" && self.model.keras_2 {
                    // In inference it resizes.
                    self.size = Some((layer.count("height")?, layer.count("width")?));
                }
                self.notes.push(format!("`{}` ({class}) is left out: augmentation is --augment here", layer.path));
                Ok(x)
            }
            "ZeroPadding2D" => zero_padding(layer, x),
            "Conv2D" => self.conv(layer, x),
            "DepthwiseConv2D" => self.depthwise(layer, x),
            "SeparableConv2D" => self.separable(layer, x),
            "Dense" => self.dense(layer, x),
            "BatchNormalization" => self.batch_norm(layer, x),
            "Activation" => {
                let activation = self.activation(layer, layer.activation())?;
                self.activated(layer, layer.path, x, activation)
            }
            "ReLU" => {
                layer.only("negative_slope", &[0.0.into(), 0.into()])?;
                layer.only("threshold", &[0.0.into(), 0.into()])?;
                layer.only("max_value", &[6.0.into(), 6.into()])?;
                let act = if layer.config["max_value"].is_null() { Act::Relu } else { Act::Relu6 };
                if act == Act::Relu6 && x.form == Form::Plus3 {
                    let entry = self.hard_sigmoid(layer, x)?;
                    return Ok(Tensor { form: Form::Clipped { entry }, ..x });
                }
                self.activated(layer, layer.path, x, Activation::Act(act))
            }
            "Softmax" => self.activated(layer, layer.path, x, Activation::Softmax),
            "GlobalAveragePooling2D" => {
                let x = self.plain(layer, x)?;
                let out = self.push(layer, layer.path, LayerOp::GlobalAvgPool {}, &[x])?;
                Ok(Tensor { pooled: true, ..out })
            }
            "MaxPooling2D" => self.max_pool(layer, x),
            "AveragePooling2D" => {
                let x = self.plain(layer, x)?;
                layer.only("padding", &["valid".into()])?;
                let (kernel, stride) = pool(layer)?;
                self.push(layer, layer.path, LayerOp::AvgPool { kernel, stride }, &[x])
            }
            "Flatten" if x.pooled => Ok(x),
            "Reshape" if x.pooled => {
                let mut sizes = Vec::new();
                flatten(&layer.config["target_shape"], &mut sizes);
                match sizes.split_last() {
                    Some((&last, rest))
                        if rest.iter().all(|&size| size == 1.0) && [x.channels as f64, -1.0].contains(&last) =>
                    {
                        Ok(x)
                    }
                    _ => Err(layer.error("only features can be reshaped, to [1, 1, C] and back")),
                }
            }
            "Flatten" | "Reshape" => {
                Err(layer.error("an image cannot be flattened; put a GlobalAveragePooling2D before the classifier"))
            }
            "Dropout" => self.dropout(layer, x),
            // What does nothing in inference, or at all.
            "ActivityRegularization" | "Identity" => Ok(x),
            class => Err(layer.error(format!("`{class}` is not supported; {SUPPORTED} are"))),
        }
    }

    /// What comes of a layer with two inputs.
    fn of_two(&mut self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<Tensor, KerasError> {
        let [a, b] = [self.plain(layer, a)?, self.plain(layer, b)?];
        if a.channels != b.channels {
            return Err(layer.error(format!("its inputs have {} and {} channels", a.channels, b.channels)));
        }
        match operation(layer) {
            "Add" if a.pooled == b.pooled => self.push(layer, layer.path, LayerOp::Add {}, &[a, b]),
            "Multiply" => match (a.pooled, b.pooled) {
                (false, true) => self.push(layer, layer.path, LayerOp::Scale {}, &[a, b]),
                (true, false) => self.push(layer, layer.path, LayerOp::Scale {}, &[b, a]),
                _ => self.smooth(layer, a, b),
            },
            _ => Err(layer.error(format!("it has two inputs; {SUPPORTED} are supported"))),
        }
    }

    /// `x·σ(x)` and `x·hard_sigmoid(x)`, which are one activation.
    fn smooth(&mut self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<Tensor, KerasError> {
        let gated = |x: Tensor, gate: Tensor| {
            let From::Entry(index) = gate.from else { return None };
            let LayerOp::Activation { act } = self.entries[index].op else { return None };
            let act = match act {
                Act::Sigmoid => Act::Silu,
                Act::HardSigmoid => Act::HardSwish,
                _ => return None,
            };
            (self.entries[index].inputs == [self.name_of(x)]).then_some((x, act))
        };
        let Some((x, act)) = gated(a, b).or_else(|| gated(b, a)) else {
            return Err(
                layer.error("only a gate [N, 1, 1, C], or a sigmoid of the same tensor, can be multiplied with it")
            );
        };
        self.push(layer, layer.path, LayerOp::Activation { act }, &[x])
    }

    /// What comes of arithmetic with a constant.
    fn with_constant(&mut self, layer: &Layer<'_>, x: Tensor, value: &Value) -> Result<Tensor, KerasError> {
        let is = |number: f64| value.as_f64().is_some_and(|value| (value - number).abs() < 1e-6);
        match (operation(layer), x.from, x.form) {
            (operation, From::Images(_), Form::Plain) => {
                let numbers = layer.channels(value)?;
                match operation {
                    "TrueDivide" => self.rescaled(layer, x, numbers.map(|number| 1.0 / number), [0.0; 3]),
                    "Multiply" => self.rescaled(layer, x, numbers, [0.0; 3]),
                    "Add" => self.rescaled(layer, x, [1.0; 3], numbers),
                    "Subtract" => self.rescaled(layer, x, [1.0; 3], numbers.map(|number| -number)),
                    _ => Err(layer.error(format!("`{operation}` of images and {value} is not supported"))),
                }
            }
            // A hard sigmoid, as the MobileNetV3 of Keras spells it.
            ("Add", From::Entry(_), Form::Plain) if is(3.0) => Ok(Tensor { form: Form::Plus3, ..x }),
            ("Multiply", _, Form::Clipped { entry }) if is(1.0 / 6.0) => {
                Ok(Tensor { from: From::Entry(entry), form: Form::Plain, ..x })
            }
            _ => Err(layer.error("arithmetic with a number is supported on images only")),
        }
    }

    /// `images[..., ::-1]`, or `images[..., c]` on the way to a [`stack`](Self::stack).
    fn subscript(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let rescaling = self.images_only(layer, x)?;
        let of_keras_2 = &layer.call[3]["slice_spec"];
        let items = layer.call["args"].get(1).unwrap_or(of_keras_2);
        let [first, channel] = [&items[0], &items[1]];
        // Keras 3 has a slice's parts in a `config`.
        let slice = channel.get("config").unwrap_or(channel);
        let is_reversed = slice["step"] == -1 && slice["start"].is_null() && slice["stop"].is_null();
        match channel.as_u64() {
            _ if first["class_name"] != "__ellipsis__" || !items[2].is_null() => {}
            Some(c @ 0..3) => return Ok(Tensor { form: Form::Channel(c as usize), ..x }),
            None if is_reversed => return Ok(reversed(x, rescaling)),
            _ => {}
        }
        Err(layer.error("of images only the order of the channels can be reversed: images[..., ::-1]"))
    }

    /// Channels put together again, as in the `preprocess_input` of `keras.applications.resnet50`.
    fn stack(&mut self, layer: &Layer<'_>, parts: [Tensor; 3]) -> Result<Tensor, KerasError> {
        layer.only("axis", &[(-1).into(), 3.into()])?;
        let x = parts[0];
        let same = parts.iter().all(|part| part.from == x.from);
        match (parts.map(|part| part.form), x.from) {
            ([Form::Channel(0), Form::Channel(1), Form::Channel(2)], _) if same => {
                Ok(Tensor { form: Form::Plain, ..x })
            }
            ([Form::Channel(2), Form::Channel(1), Form::Channel(0)], From::Images(rescaling)) if same => {
                Ok(reversed(x, rescaling))
            }
            _ => Err(layer.error("only the three channels of images can be stacked, in their order or in reverse")),
        }
    }

    fn hard_sigmoid(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<usize, KerasError> {
        let x = Tensor { form: Form::Plain, ..x };
        self.push(layer, layer.path, LayerOp::Activation { act: Act::HardSigmoid }, &[x])?;
        Ok(self.entries.len() - 1)
    }

    fn rescaled(&self, layer: &Layer<'_>, x: Tensor, scale: [f64; 3], offset: [f64; 3]) -> Result<Tensor, KerasError> {
        let rescaling = self.images_only(layer, x)?;
        if scale.iter().any(|&scale| scale <= 0.0 || !scale.is_finite()) || offset.iter().any(|o| !o.is_finite()) {
            return Err(layer.error(format!("images cannot be scaled by {scale:?} and moved by {offset:?}")));
        }
        Ok(Tensor { from: From::Images(rescaling.then(scale, offset)), ..x })
    }

    fn images_only(&self, layer: &Layer<'_>, x: Tensor) -> Result<Rescaling, KerasError> {
        match x.from {
            From::Images(rescaling) if x.padding == [0; 4] && x.form == Form::Plain => Ok(rescaling),
            _ => Err(layer.error("it is supported at the beginning only, before the first layer that has weights")),
        }
    }

    fn normalization(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        /// Keras divides by no less.
        const SMALLEST: f64 = 1e-7;
        layer.only("invert", &[false.into()])?;
        let [mean, variance] = match (&layer.config["mean"], &layer.config["variance"]) {
            (Value::Null, _) | (_, Value::Null) => {
                let [mean, variance] = (self.model.normalization)(layer.path)
                    .ok_or_else(|| layer.error("the file has neither its mean and variance nor variables for them"))?;
                [mean, variance].map(Value::from)
            }
            (mean, variance) => [mean.clone(), variance.clone()],
        };
        let deviation = layer.channels(&variance)?.map(|variance| variance.sqrt().max(SMALLEST));
        let mean = layer.channels(&mean)?;
        let offset = [0, 1, 2].map(|channel| -mean[channel] / deviation[channel]);
        self.rescaled(layer, x, deviation.map(|deviation| 1.0 / deviation), offset)
    }

    fn conv(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let channels = layer.count("filters")?;
        let groups = match &layer.config["groups"] {
            Value::Null => 1,
            _ => layer.count("groups")?,
        };
        let op = conv_op(layer, x, channels, groups, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { channels, padding: [0; 4], ..out }, activation)
    }

    fn depthwise(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        layer.only("depth_multiplier", &[1.into()])?;
        let op = conv_op(layer, x, x.channels, x.channels, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { padding: [0; 4], ..out }, activation)
    }

    fn separable(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        layer.only("depth_multiplier", &[1.into()])?;
        let op = conv_op(layer, x, x.channels, x.channels, false)?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, &format!("{}.depthwise", layer.path), op, &[x])?;
        let channels = layer.count("filters")?;
        let pointwise = LayerOp::Conv {
            channels,
            kernel: [1; 2],
            stride: [1; 2],
            padding: Padding::Pixels([0; 4]),
            groups: 1,
            bias: layer.is_on("use_bias", true),
        };
        let out = Tensor { padding: [0; 4], ..out };
        let out = self.push(layer, &format!("{}.pointwise", layer.path), pointwise, &[out])?;
        self.activated(layer, "", Tensor { channels, ..out }, activation)
    }

    fn dense(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        if !x.pooled {
            return Err(layer.error("its input is an image; put a GlobalAveragePooling2D before it"));
        }
        let channels = layer.count("units")?;
        let op = match layer.is_on("use_bias", true) {
            true => LayerOp::Linear { channels },
            // A linear layer has a bias here.
            false => LayerOp::Conv {
                channels,
                kernel: [1; 2],
                stride: [1; 2],
                padding: Padding::Pixels([0; 4]),
                groups: 1,
                bias: false,
            },
        };
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { channels, ..out }, activation)
    }

    fn batch_norm(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let mut axis = Vec::new();
        flatten(&layer.config["axis"], &mut axis);
        let last = if x.pooled { [-1.0, 3.0, 1.0] } else { [-1.0, 3.0, 3.0] };
        if axis.len() > 1 || axis.iter().any(|axis| !last.contains(axis)) {
            return Err(layer.error(format!("axis={} is not the channels'", layer.config["axis"])));
        }
        layer.only("renorm", &[false.into()])?;
        let eps = layer.float("epsilon", 1e-3)? as f32;
        let affine = match (layer.is_on("scale", true), layer.is_on("center", true)) {
            (true, true) => Affine::Both,
            (true, false) => Affine::Gamma,
            (false, true) => Affine::Beta,
            (false, false) => Affine::None,
        };
        let keep = layer.float("momentum", f64::from(Averaging::KERAS.keep))? as f32;
        if !(0.0..1.0).contains(&keep) {
            return Err(layer.error(format!("momentum={keep} is not supported, only from 0 to below 1")));
        }
        // Keras 2 normalises images, not features, by one fused operation, which stores the unbiased variance.
        let var = if self.model.keras_2 && !x.pooled { Variance::Unbiased } else { Averaging::KERAS.var };
        self.push(layer, layer.path, LayerOp::Bn { eps, keep, var, affine }, &[x])
    }

    fn max_pool(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let (kernel, stride) = pool(layer)?;
        // Here padding is −∞, in a ZeroPadding2D it is 0: the same below values that are never negative.
        let never_negative = match x.from {
            From::Images(_) => false,
            From::Entry(index) => match self.entries[index].op {
                LayerOp::Activation { act } => act.is_never_negative(),
                _ => false,
            },
        };
        if x.padding != [0; 4] && !never_negative {
            return Err(layer.error("the zeros around its input could be the maximum, since no ReLU comes before them"));
        }
        let padding = padding(layer, x, kernel, stride)?;
        let out = self.push(layer, layer.path, LayerOp::MaxPool { kernel, stride, padding }, &[x])?;
        Ok(Tensor { padding: [0; 4], ..out })
    }

    fn dropout(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let rate = layer.float("rate", 0.0)? as f32;
        let shape = layer.config["noise_shape"].as_array().map_or(&[][..], Vec::as_slice);
        let op = match shape {
            [] => LayerOp::Dropout { rate },
            // One decision an image.
            [_, rest @ ..] if rest.len() == 3 && rest.iter().all(|size| size.as_u64() == Some(1)) => {
                LayerOp::StochasticDepth { rate }
            }
            _ => {
                let shape = &layer.config["noise_shape"];
                return Err(layer.error(format!("noise_shape={shape} is not supported, only none or [null, 1, 1, 1]")));
            }
        };
        self.push(layer, layer.path, op, &[x])
    }

    /// What a word for an activation stands for.
    fn activation(&self, layer: &Layer<'_>, word: &str) -> Result<Activation, KerasError> {
        Ok(Activation::Act(match word {
            "linear" => Act::Identity,
            "relu" => Act::Relu,
            "relu6" => Act::Relu6,
            "swish" | "silu" => Act::Silu,
            "hard_swish" | "hard_silu" => Act::HardSwish,
            "hard_sigmoid" if self.model.keras_2 => {
                return Err(
                    layer.error("the hard_sigmoid of Keras 2, 0.2·x + 0.5, is not supported; that of Keras 3 is")
                );
            }
            "hard_sigmoid" => Act::HardSigmoid,
            "sigmoid" => Act::Sigmoid,
            "softmax" => return Ok(Activation::Softmax),
            _ => {
                return Err(layer.error(format!(
                    "the activation `{word}` is not supported; linear, relu, relu6, silu, hard_swish, hard_sigmoid, \
                     sigmoid and, at the end, softmax are"
                )));
            }
        }))
    }

    /// Adds an activation as a layer called `name`; one that is part of `layer` has none.
    fn activated(
        &mut self,
        layer: &Layer<'_>,
        name: &str,
        x: Tensor,
        activation: Activation,
    ) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        match activation {
            Activation::Softmax => {
                self.notes.push(format!("the softmax of `{}` is left out: the network gives logits", layer.path));
                Ok(Tensor { form: Form::Softmax, ..x })
            }
            Activation::Act(Act::Identity) => Ok(x),
            Activation::Act(act) => {
                let own = format!("{}.{}", layer.path, act.name());
                let name = if name.is_empty() { &own } else { name };
                self.push(layer, name, LayerOp::Activation { act }, &[x])
            }
        }
    }

    /// Refuses a tensor that something is still to be done with.
    fn unformed(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match x.form {
            Form::Plain => Ok(x),
            Form::Softmax => Err(layer.error("it comes after a softmax, which is supported at the end only")),
            Form::Channel(_) => Err(layer.error("it takes one channel of the images; all three are supported")),
            Form::Plus3 | Form::Clipped { .. } => {
                Err(layer.error("arithmetic with a number is supported on images, and as part of a hard sigmoid"))
            }
        }
    }

    /// As [`unformed`](Self::unformed), and refuses padding.
    fn plain(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match x.padding {
            [0, 0, 0, 0] => self.unformed(layer, x),
            _ => Err(layer.error("zeros can be added before a convolution or a max pooling only")),
        }
    }

    /// Adds a layer of the graph, whose output has as many channels as its first input.
    fn push(&mut self, layer: &Layer<'_>, name: &str, op: LayerOp, inputs: &[Tensor]) -> Result<Tensor, KerasError> {
        for input in inputs {
            let From::Images(rescaling) = input.from else { continue };
            if *self.images.get_or_insert(rescaling) != rescaling {
                return Err(layer.error("it takes images that are rescaled otherwise than those of another layer"));
            }
        }
        let block = block_of(name);
        let inputs_by_name = inputs.iter().map(|&input| self.name_of(input).to_owned()).collect();
        let (alias, position) = (None, Some(self.position));
        self.entries.push(Entry { name: name.to_owned(), op, inputs: inputs_by_name, block, alias, position });
        Ok(Tensor { from: From::Entry(self.entries.len() - 1), ..inputs[0] })
    }

    /// Takes out the gates of [`smooth`](Self::smooth) that nothing else reads.
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

/// The channels of images in reverse order.
fn reversed(x: Tensor, rescaling: Rescaling) -> Tensor {
    let rescaling = Rescaling { bgr: !rescaling.bgr, ..rescaling };
    Tensor { from: From::Images(rescaling), form: Form::Plain, ..x }
}

/// Lets the layers of models within the model be known by their own names, too, where only one layer is called so.
fn alias(layers: &mut [Entry]) {
    let own = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for layer in &*layers {
        *counts.entry(own(&layer.name)).or_default() += 1;
    }
    for layer in layers.iter_mut().filter(|layer| layer.name.contains('/')) {
        let name = own(&layer.name);
        layer.alias = (counts[&name] == 1).then_some(name);
    }
}

/// A layer's own name.
fn name_of(layer: &Value) -> &str {
    layer["config"]["name"].as_str().or_else(|| layer["name"].as_str()).unwrap_or_default()
}

/// What arithmetic a layer does, whether it is a layer or an operation that Keras made one.
fn operation<'a>(layer: &Layer<'a>) -> &'a str {
    match (layer.class, layer.config["function"].as_str()) {
        ("TFOpLambda", Some("math.truediv")) => "TrueDivide",
        ("TFOpLambda", Some("math.subtract")) => "Subtract",
        ("TFOpLambda", Some("math.multiply")) => "Multiply",
        ("TFOpLambda", Some("math.add" | "__operators__.add" | "nn.bias_add")) => "Add",
        ("SlicingOpLambda", Some("__operators__.getitem")) => "GetItem",
        ("Divide", _) => "TrueDivide",
        (class, _) => class,
    }
}

/// An argument of a layer by the name of the layer that gives it, or a number or several in lists.
enum Argument<'a> {
    Layer(&'a str),
    Constant(&'a Value),
}

/// The arguments of a layer's call: `[["name", 0, 0, {}], …]` in Keras 2, `{"args": […], "kwargs": {…}}` in Keras 3.
fn arguments(node: &Value) -> Vec<Argument<'_>> {
    fn keras_2<'a>(value: &'a Value, out: &mut Vec<Argument<'a>>) {
        if let Some((name, options)) = reference(value) {
            out.push(Argument::Layer(name));
            // The second operand of arithmetic.
            match options.and_then(|options| options.get("y").or_else(|| options.get("bias"))) {
                None | Some(Value::Null) => {}
                Some(value) => out.push(match reference(value) {
                    Some((name, _)) => Argument::Layer(name),
                    None => Argument::Constant(value),
                }),
            }
        } else if let Some(values) = value.as_array() {
            values.iter().for_each(|value| keras_2(value, out));
        }
    }
    fn keras_3<'a>(value: &'a Value, out: &mut Vec<Argument<'a>>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| keras_3(value, out)),
            Value::Number(_) => out.push(Argument::Constant(value)),
            value if value["class_name"] == "__tensor__" => out.push(Argument::Constant(&value["config"]["value"])),
            value => {
                out.extend(reference(&value["config"]["keras_history"]).map(|(name, _)| Argument::Layer(name)));
            }
        }
    }
    let mut out = Vec::new();
    let Some(args) = node.get("args") else {
        keras_2(node, &mut out);
        return out;
    };
    keras_3(args, &mut out);
    // Numbers among the options are none of the operands.
    for option in node["kwargs"].as_object().into_iter().flat_map(|options| options.values()) {
        out.extend(reference(&option["config"]["keras_history"]).map(|(name, _)| Argument::Layer(name)));
    }
    out
}

/// The layer in `["name", node, tensor]`, and what may stand behind it.
fn reference(value: &Value) -> Option<(&str, Option<&Value>)> {
    match value.as_array()?.as_slice() {
        [Value::String(name), Value::Number(_), Value::Number(_)] => Some((name, None)),
        [Value::String(name), Value::Number(_), Value::Number(_), options] => Some((name, Some(options))),
        _ => None,
    }
}

/// The layers in a list of references, or in one.
fn references(value: &Value) -> Vec<&str> {
    match reference(value) {
        Some((name, _)) => vec![name],
        None => value.as_array().into_iter().flatten().filter_map(|value| Some(reference(value)?.0)).collect(),
    }
}

/// How a `Resizing` layer brings images to its size.
fn resizing(layer: &Layer<'_>) -> Result<(String, Resize, Interpolation), KerasError> {
    layer.only("pad_to_aspect_ratio", &[false.into()])?;
    let word = layer.config["interpolation"].as_str().unwrap_or("bilinear");
    let antialiased = match word {
        "nearest" => Interpolation::Nearest,
        "bilinear" => Interpolation::Bilinear,
        "bicubic" => Interpolation::Bicubic,
        _ => {
            let reason = format!("interpolation=`{word}` is not supported, only nearest, bilinear and bicubic");
            return Err(layer.error(reason));
        }
    };
    let resize = if layer.is_on("crop_to_aspect_ratio", false) { Resize::CropFirst } else { Resize::Stretch };
    let antialias = layer.is_on("antialias", false);
    let interpolation = if antialias { antialiased } else { antialiased.of_tensorflow() };
    Ok((layer.path.to_owned(), resize, interpolation))
}

fn zero_padding(layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
    /// Far above every network, and small enough that no size computed from it overflows.
    const MOST: f64 = 1024.0;
    let value = &layer.config["padding"];
    let mut numbers = Vec::new();
    flatten(value, &mut numbers);
    let [top, bottom, left, right] = match numbers[..] {
        [all] => [all; 4],
        [vertical, horizontal] => [vertical, vertical, horizontal, horizontal],
        [top, bottom, left, right] => [top, bottom, left, right],
        _ => [-1.0; 4],
    };
    let sides = [top, left, bottom, right];
    if sides.iter().any(|side| !(0.0..=MOST).contains(side) || side.fract() != 0.0) {
        return Err(layer.error(format!("padding={value} is no number of pixels for each side")));
    }
    let mut padding = x.padding;
    for (sum, side) in padding.iter_mut().zip(sides) {
        *sum += side as usize;
    }
    Ok(Tensor { padding, pooled: false, ..x })
}

fn conv_op(layer: &Layer<'_>, x: Tensor, channels: usize, groups: usize, bias: bool) -> Result<LayerOp, KerasError> {
    if layer.pair("dilation_rate").unwrap_or([1; 2]) != [1; 2] {
        let dilation = &layer.config["dilation_rate"];
        return Err(layer.error(format!("dilation_rate={dilation} is not supported, only 1")));
    }
    let (kernel, stride) = (layer.pair("kernel_size")?, layer.pair("strides")?);
    let padding = padding(layer, x, kernel, stride)?;
    Ok(LayerOp::Conv { channels, kernel, stride, padding, groups, bias })
}

fn pool(layer: &Layer<'_>) -> Result<([usize; 2], [usize; 2]), KerasError> {
    let kernel = layer.pair("pool_size")?;
    let stride = match layer.config["strides"] {
        Value::Null => kernel,
        _ => layer.pair("strides")?,
    };
    Ok((kernel, stride))
}

/// A window's padding, with the zeros that a layer before it adds.
fn padding(layer: &Layer<'_>, x: Tensor, kernel: [usize; 2], stride: [usize; 2]) -> Result<Padding, KerasError> {
    let word = layer.config["padding"].as_str().unwrap_or("valid");
    match word.to_ascii_lowercase().as_str() {
        "valid" => Ok(Padding::Pixels(x.padding)),
        "same" if x.padding != [0; 4] => Err(layer.error("it adds zeros around zeros that a layer before it adds")),
        // Does not depend on the image's size.
        "same" if stride == [1; 2] => {
            let [h, w] = kernel.map(|side| side.saturating_sub(1));
            Ok(Padding::Pixels([h / 2, w / 2, h - h / 2, w - w / 2]))
        }
        "same" => Ok(Padding::Same),
        _ => Err(layer.error(format!("padding=`{word}` is not supported, only valid and same"))),
    }
}

/// The residual block that a layer belongs to, by the names that `keras.applications` gives: `block1a_dwconv` is in
/// `block1a`, `conv2_block1_1_conv` in `conv2_block1`, `block_1_expand` in `block_1`, `expanded_conv_project` in
/// `expanded_conv`, and so is `expanded_conv/project/BatchNorm`, as Keras 2 has it.
fn block_of(path: &str) -> Option<String> {
    let is_block = |part: &str| {
        let is_number = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        let rest = part.strip_prefix("expanded_conv");
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(is_number))
    };
    let mut ends = path.match_indices('/').map(|(slash, _)| slash);
    if let Some(end) = ends.find(|&end| is_block(path[..end].rsplit('/').next().unwrap_or_default())) {
        return Some(path[..end].to_owned());
    }
    let (model, name) = path.rsplit_once('/').map_or(("", path), |(model, name)| (&path[..=model.len()], name));
    if let Some(rest) = name.strip_prefix("expanded_conv_") {
        let number = rest.split_once('_').map_or("", |(number, _)| number);
        let block = match number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            true => "expanded_conv".to_owned(),
            false => format!("expanded_conv_{number}"),
        };
        return Some(format!("{model}{block}"));
    }
    let start = name.find("block")? + "block".len();
    let rest = &name[start..];
    let digits = rest.strip_prefix('_').unwrap_or(rest);
    let end = digits.find('_')?;
    let numbered = digits.starts_with(|c: char| c.is_ascii_digit());
    numbered.then(|| format!("{model}{}", &name[..start + (rest.len() - digits.len()) + end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_the_names_of_keras_applications() {
        for (name, block) in [
            ("block1a_dwconv", Some("block1a")),
            ("conv2_block1_1_conv", Some("conv2_block1")),
            ("block_1_expand", Some("block_1")),
            ("expanded_conv_project", Some("expanded_conv")),
            ("expanded_conv_3_depthwise", Some("expanded_conv_3")),
            ("expanded_conv/project", Some("expanded_conv")),
            ("base/expanded_conv_3/expand/BatchNorm", Some("base/expanded_conv_3")),
            ("expanded_convolutions/1", None),
            ("base/block2b_se_reduce.silu", Some("base/block2b")),
            ("stem_conv", None),
            ("blocks", None),
        ] {
            assert_eq!(block_of(name).as_deref(), block, "{name}");
        }
    }

    #[test]
    fn a_normalization_without_its_configuration() {
        let spec = crate::models::spec("keras_efficientnet_b0").unwrap();
        let own = [vec![0.4, 0.5, 0.6], vec![0.04, 0.09, 0.25]];
        let [mean, std] = image_statistics(spec, &own).unwrap();
        assert_eq!(mean, [0.4, 0.5, 0.6]);
        assert!(std.iter().zip([0.2, 0.3, 0.5]).all(|(std, expected)| (std - expected).abs() < 1e-6), "{std:?}");
        assert_eq!(image_statistics(spec, &[vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]]), None);
        assert_eq!(image_statistics(spec, &[vec![0.5], vec![0.25]]), None);
        assert_eq!(image_statistics(spec, &[vec![0.5; 3], vec![-1.0; 3]]), None);
    }

    #[test]
    fn chains_of_rescaling_become_one_mean_and_deviation() {
        let images = Rescaling::NONE;
        assert_eq!(images.then([1.0 / 127.5; 3], [-1.0; 3]).mean_and_deviation(), ([0.5; 3], [0.5; 3]));
        let normalized = images.then([1.0 / 255.0; 3], [0.0; 3]).then([4.0; 3], [-2.0; 3]);
        assert_eq!(normalized.mean_and_deviation(), ([0.5; 3], [0.25; 3]));
    }
}
