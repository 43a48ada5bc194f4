//! The nodes of a graph as layers.
//!
//! They are read in the file's order, which is theirs of execution. Every name stands for a [`Value`] then: what a layer
//! gives, or what is needed of the file to know what a layer is.

use super::attributes::{attributes, float, int, ints, near, pool_window, size, text, window};
use super::import::{Images, graph_error, is_onnx};
use super::names::{clean, parents, plain, scope};
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tensor;
use crate::graph::{Act, Affine, Averaging, Taken};
use crate::models::{Assembly, Entry, IMAGES, LayerOp, MAX_LAYERS, Padding};
use crate::tensor::Shape;
use crate::weights::FileTensor;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How many times the bytes of the file its weights may take: layers may share a tensor, and each gets its own copy.
const MAX_GROWTH: usize = 8;
const MAX_GROWTH_FROM: usize = 16 << 20;

/// Paddings of images are eight sizes.
const MAX_SIZES: usize = 16;

/// What operators are understood, for messages.
const SUPPORTED: &str = "Add, AveragePool, BatchNormalization, Cast, Clip, Concat, Constant, Conv, Div, Dropout, Flatten, \
     Gather, Gemm, GlobalAveragePool, HardSigmoid, HardSwish, Identity, LogSoftmax, MatMul, MaxPool, Mul, Pad, ReduceMean, \
     Relu, Reshape, Shape, Sigmoid, Softmax, Squeeze, Transpose, Unsqueeze";

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Value<'a> {
    Layer(Output),
    /// Images with their channels last, which only a transposition reads.
    Nhwc,
    /// Half of an activation: `Sigmoid` or `HardSigmoid` of what is given, which a `Mul` with the same completes.
    Half(Output, Act),
    /// Part of a hard activation that is written out.
    Part(Output, Part),
    /// A product without its bias.
    Product(Output, Matrix<'a>),
    /// Sizes, as shapes are computed from; `None` is the number of images.
    Sizes(Vec<Option<i64>>),
    Tensor(&'a TensorProto),
    /// A matrix with its rows and columns exchanged.
    Transposed(&'a TensorProto),
    Number(f32),
}

/// The weights of a product.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    tensor: &'a TensorProto,
    /// Whether its rows are what the product gives, `[O, I]`, and not what it takes.
    by_output: bool,
}

/// How far activations that are written out have come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// max(x, 0), which a `Clip` makes a ReLU6 of.
    Rectified,
    /// x + 3, the first step of x·min(max(x + 3, 0), 6)/6 and of the same without the first factor.
    Shifted,
    ShiftedRectified,
    Clipped,
    Scaled,
}

/// What a layer gives.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Output {
    layer: String,
    /// Channels, height and width.
    shape: [usize; 3],
    /// `[N, C·H·W]` instead of `[N, C, H, W]`.
    flat: bool,
    /// Zeros around it: top, left, bottom, right.
    pad: [usize; 4],
}

impl Output {
    fn is_pixel(&self) -> bool {
        self.shape[1] == 1 && self.shape[2] == 1
    }

    pub(super) fn is_padded(&self) -> bool {
        self.pad != [0; 4]
    }
}

pub(super) struct Reader<'a> {
    pub(super) values: HashMap<&'a str, Value<'a>>,
    /// Who reads each name.
    readers: HashMap<&'a str, Vec<&'a NodeProto>>,
    /// The output of the graph.
    logits: &'a str,
    folder: Option<&'a Path>,
    /// Scopes that hold others, of node names as PyTorch writes them.
    containers: HashSet<String>,
    /// Names that are taken, each with the number that tells the next one of that name apart.
    names: HashMap<String, usize>,
    images: [usize; 3],
    pub(super) layers: Vec<Entry>,
    pub(super) assembly: Assembly,
    pub(super) weights: BTreeMap<String, FileTensor>,
    /// Bytes of tensors that are there: in the file, and in `files`.
    stored: usize,
    /// Other files that tensors were read from.
    files: HashSet<PathBuf>,
    /// Bytes of `weights`.
    copied: usize,
    /// The layer that took each tensor first.
    owners: HashMap<*const TensorProto, String>,
    /// Layers that took another's tensor, each with that other one.
    sharing: Vec<(String, String)>,
    pub(super) notes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        graph: &'a GraphProto,
        nodes: &[(usize, &'a NodeProto)],
        images: Images<'a>,
        folder: Option<&'a Path>,
        logits: &'a str,
    ) -> Result<Self, String> {
        let mut values: HashMap<&str, Value<'_>> = HashMap::new();
        let input = Output { layer: IMAGES.into(), shape: [3, images.h, images.w], flat: false, pad: [0; 4] };
        values.insert(images.name, if images.nhwc { Value::Nhwc } else { Value::Layer(input) });
        for tensor in &graph.initializer {
            if values.insert(tensor.name(), Value::Tensor(tensor)).is_some() {
                return Err(format!("`{}` is there twice", tensor.name()));
            }
        }
        let mut readers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
        for &(_, node) in nodes {
            for input in &node.input {
                readers.entry(input).or_default().push(node);
            }
        }
        let constants = nodes.iter().filter(|(_, node)| node.op_type() == "Constant");
        let constants = constants.flat_map(|(_, node)| &node.attribute).filter_map(|attribute| attribute.t.as_ref());
        let stored = graph.initializer.iter().chain(constants).map(tensor::bytes).sum();
        let scopes = graph.node.iter().filter_map(|node| scope(node.name()));
        let containers = scopes.flat_map(|scope| parents(&scope)).collect();
        Ok(Self {
            values,
            readers,
            logits,
            folder,
            containers,
            names: HashMap::from([(IMAGES.into(), 2)]),
            images: [3, images.h, images.w],
            layers: Vec::new(),
            assembly: Assembly::new(1, (images.h, images.w)).map_err(graph_error)?,
            weights: BTreeMap::new(),
            stored,
            files: HashSet::new(),
            copied: 0,
            owners: HashMap::new(),
            sharing: Vec::new(),
            notes: Vec::new(),
        })
    }

    pub(super) fn read(&mut self, node: &'a NodeProto) -> Result<(), String> {
        if !is_onnx(node.domain()) {
            return Err(format!("operators of `{}` are not supported; those of ONNX are {SUPPORTED}", node.domain()));
        }
        let value = match node.op_type() {
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "Relu" => self.relu(node)?,
            "Clip" => self.clip(node)?,
            "HardSwish" => self.activation(node, Act::HardSwish)?,
            "Sigmoid" => self.sigmoid(node, Act::Sigmoid)?,
            "HardSigmoid" => {
                attributes(node, &["alpha", "beta"])?;
                let (alpha, beta) = (float(node, "alpha", 0.2)?, float(node, "beta", 0.5)?);
                if !near(alpha, 1.0 / 6.0) || !near(beta, 0.5) {
                    return Err(format!("alpha {alpha} and beta {beta} are not supported; 1/6 and 1/2 are"));
                }
                self.sigmoid(node, Act::HardSigmoid)?
            }
            "Mul" => self.mul(node)?,
            "Div" => self.div(node)?,
            "Add" => self.add(node)?,
            "MaxPool" => self.max_pool(node)?,
            "AveragePool" => self.avg_pool(node)?,
            "GlobalAveragePool" => self.global_avg_pool(node, false)?,
            "ReduceMean" => self.reduce_mean(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.mat_mul(node)?,
            "Dropout" => self.dropout(node)?,
            "Softmax" | "LogSoftmax" => self.softmax(node)?,
            "Pad" => self.pad(node)?,
            "Transpose" => self.transpose(node)?,
            "Flatten" => {
                attributes(node, &["axis"])?;
                match (int(node, "axis", 1)?, self.output(node, 0)?.flat) {
                    (1, _) | (-3, false) | (-1, true) => self.flat(node, true)?,
                    (axis, _) => return Err(format!("axis {axis} is not supported; 1 is")),
                }
            }
            "Reshape" => self.reshape(node)?,
            "Squeeze" => self.squeeze(node)?,
            "Unsqueeze" => self.unsqueeze(node)?,
            "Identity" => self.value(node, 0)?.clone(),
            "Cast" => self.cast(node)?,
            "Constant" => constant(node)?,
            "Shape" => self.shape(node)?,
            "Gather" => self.gather(node)?,
            "Concat" => self.concat(node)?,
            _ => return Err(format!("the operator is not supported; supported are {SUPPORTED}")),
        };
        let output = node.output.first().filter(|name| !name.is_empty()).ok_or("it gives nothing")?;
        if matches!(&value, Value::Sizes(sizes) if sizes.len() > MAX_SIZES) {
            return Err(format!("it gives more than {MAX_SIZES} sizes, which no shape has"));
        }
        if self.values.insert(output, value).is_some() {
            return Err(format!("its output `{output}` is given by something else, too"));
        }
        Ok(())
    }

    // ---- Operands.

    fn value(&self, node: &'a NodeProto, index: usize) -> Result<&Value<'a>, String> {
        let name = node.input.get(index).ok_or_else(|| format!("its input {index} is missing"))?;
        let missing = || format!("it reads `{name}`, which nothing before it gives");
        self.values.get(name.as_str()).ok_or_else(missing)
    }

    fn has(node: &NodeProto, index: usize) -> bool {
        node.input.get(index).is_some_and(|name| !name.is_empty())
    }

    /// What a layer gives, in any form.
    fn output(&self, node: &'a NodeProto, index: usize) -> Result<Output, String> {
        let output = self.padded(node, index)?;
        if output.is_padded() {
            return Err("it reads what a Pad gives; only a Conv can, and a MaxPool where nothing is below zero".into());
        }
        Ok(output)
    }

    fn padded(&self, node: &'a NodeProto, index: usize) -> Result<Output, String> {
        let name = || &node.input[index];
        match self.value(node, index)? {
            Value::Layer(output) => Ok(output.clone()),
            Value::Nhwc => Err("it reads images with their channels last; only a Transpose to [N, C, H, W] can".into()),
            Value::Part(..) => Err(format!("`{}` is part of an activation that is not known", name())),
            Value::Half(..) | Value::Product(..) => Err(format!("`{}` is read by others, too", name())),
            Value::Sizes(_) | Value::Tensor(_) | Value::Transposed(_) | Value::Number(_) => {
                Err(format!("its input `{}` is constant, which is not supported here", name()))
            }
        }
    }

    /// What a layer gives as `[N, C, H, W]`.
    fn image(&self, node: &'a NodeProto, index: usize) -> Result<Output, String> {
        match self.output(node, index)? {
            Output { flat: true, .. } => Err("it takes images, and what it reads is flat".into()),
            image => Ok(image),
        }
    }

    fn tensor(&self, node: &'a NodeProto, index: usize) -> Result<&'a TensorProto, String> {
        match self.value(node, index)? {
            Value::Tensor(tensor) => Ok(tensor),
            _ => Err(format!("its input `{}` is not constant, as weights are", node.input[index])),
        }
    }

    fn matrix(&self, node: &'a NodeProto, index: usize, by_output: bool) -> Result<Matrix<'a>, String> {
        match self.value(node, index)? {
            Value::Transposed(tensor) => Ok(Matrix { tensor, by_output: !by_output }),
            _ => Ok(Matrix { tensor: self.tensor(node, index)?, by_output }),
        }
    }

    /// A constant that is one number.
    fn number(&self, node: &'a NodeProto, index: usize) -> Result<Option<f32>, String> {
        match self.value(node, index)? {
            Value::Number(number) => Ok(Some(*number)),
            Value::Tensor(tensor) if tensor::dims(tensor)?.iter().product::<usize>() == 1 => {
                Ok(tensor::floats(tensor, self.folder)?.first().copied())
            }
            _ => Ok(None),
        }
    }

    fn sizes(&self, node: &'a NodeProto, index: usize) -> Result<Vec<Option<i64>>, String> {
        match self.value(node, index)? {
            Value::Sizes(sizes) => Ok(sizes.clone()),
            Value::Tensor(tensor) if tensor::dims(tensor)?.iter().product::<usize>() <= MAX_SIZES => {
                Ok(tensor::integers(tensor)?.into_iter().map(Some).collect())
            }
            _ => Err(format!("its input `{}` is no list of sizes", node.input[index])),
        }
    }

    /// The attribute `name`, or since some operator set the input `index`: axes, or paddings.
    fn listed(&self, node: &'a NodeProto, name: &str, index: usize) -> Result<Option<Vec<i64>>, String> {
        if let Some(values) = ints(node, name)? {
            return Ok(Some(values));
        }
        if !Self::has(node, index) {
            return Ok(None);
        }
        let sizes: Option<Vec<i64>> = self.sizes(node, index)?.into_iter().collect();
        Ok(Some(sizes.ok_or_else(|| format!("its `{name}` must not depend on the number of images"))?))
    }

    fn readers(&self, name: &str) -> &[&'a NodeProto] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }

    // ---- Layers.

    /// Adds a layer that reads `inputs`, and returns what it gives.
    fn push(&mut self, name: String, op: LayerOp, inputs: &[&Output]) -> Result<Output, String> {
        if self.layers.len() == MAX_LAYERS {
            return Err(format!("a network has at most {MAX_LAYERS} layers"));
        }
        let inputs = inputs.iter().map(|input| input.layer.clone()).collect();
        let entry = Entry { name, op, inputs, block: None, alias: None, position: Vec::new() };
        let Shape([_, h, w, c]) = self.assembly.add(&entry).map_err(|error| error.reason)?;
        let output = Output { layer: entry.name.clone(), shape: [c, h, w], flat: false, pad: [0; 4] };
        self.layers.push(entry);
        Ok(output)
    }

    fn keep(&mut self, name: String, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<(), String> {
        self.copied += values.len() * 4;
        if self.copied > self.stored.saturating_mul(MAX_GROWTH).max(MAX_GROWTH_FROM) {
            return Err(format!(
                "layers share tensors until their weights take more than {MAX_GROWTH} times what the file does"
            ));
        }
        self.weights.insert(name, FileTensor::f32(shape, values));
        Ok(())
    }

    /// The values of a tensor that is `layer`'s now.
    fn floats(&mut self, layer: &str, tensor: &'a TensorProto) -> Result<Vec<f32>, String> {
        let values = tensor::floats(tensor, self.folder)?;
        // Another file counts once it has been read, and once only: tensors may claim any size, and the same bytes.
        if let Some(file) = tensor::file(tensor, self.folder)?
            && !self.files.contains(&file)
        {
            let bytes = fs::metadata(&file).map_or(0, |facts| usize::try_from(facts.len()).unwrap_or(usize::MAX));
            self.stored = self.stored.saturating_add(bytes.saturating_mul(2));
            self.files.insert(file);
        }
        let owner = self.owners.entry(tensor).or_insert_with(|| layer.to_owned());
        if owner != layer {
            self.sharing.push((layer.to_owned(), owner.clone()));
        }
        Ok(values)
    }

    /// What to say of layers that share tensors.
    pub(super) fn sharing_note(&self) -> Option<String> {
        let (layer, owner) = self.sharing.first()?;
        let layers: HashSet<&str> = self.sharing.iter().map(|(layer, _)| layer.as_str()).collect();
        let others = match layers.len() {
            1 => String::new(),
            count => format!(", and so do {} more with others", count - 1),
        };
        Some(format!(
            "`{layer}` shares a tensor with `{owner}` in the file{others}; here each has its own, and trains it apart"
        ))
    }

    /// Names a layer that has weights.
    fn weighted(&mut self, node: &NodeProto, tensors: &[&TensorProto]) -> String {
        let scope = scope(node.name()).filter(|scope| !scope.is_empty() && !self.containers.contains(scope));
        let of_tensor = |tensor: &&TensorProto| {
            let (layer, part) = tensor.name().rsplit_once('.')?;
            ["weight", "bias", "running_mean", "running_var"].contains(&part).then(|| layer.to_owned())
        };
        // PyTorch's exporter stores equal tensors once, so a name may be another layer's.
        let free = |name: &String| !self.names.contains_key(&clean(name));
        let name = scope.into_iter().chain(tensors.iter().filter_map(of_tensor)).find(free);
        self.unique(name.unwrap_or_else(|| plain(node)))
    }

    /// Names a layer that has none.
    fn weightless(&mut self, node: &NodeProto) -> String {
        let name = match scope(node.name()) {
            Some(scope) if scope.is_empty() => node.op_type().to_lowercase(),
            Some(scope) if self.containers.contains(&scope) => format!("{scope}.{}", node.op_type().to_lowercase()),
            Some(scope) => scope,
            None => plain(node),
        };
        self.unique(name)
    }

    fn unique(&mut self, name: String) -> String {
        let wanted = clean(&name);
        let mut name = wanted.clone();
        while self.names.contains_key(&name) {
            let number = self.names.entry(wanted.clone()).or_insert(2);
            name = format!("{wanted}_{number}");
            *number += 1;
        }
        self.names.insert(name.clone(), 2);
        name
    }

    // ---- Operators, by what they become.

    fn conv(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])?;
        let x = self.padded(node, 0)?;
        if x.flat {
            return Err("it takes images, and what it reads is flat".into());
        }
        let weight = self.tensor(node, 1)?;
        let dims = tensor::dims(weight)?;
        let [out, rows, kh, kw] = dims[..] else {
            return Err(format!(
                "its weights have the shape {dims:?}; only those of images, [O, I, H, W], are supported"
            ));
        };
        let groups = size(int(node, "group", 1)?)?;
        if rows.checked_mul(groups) != Some(x.shape[0]) {
            return Err(format!(
                "its weights {dims:?} in {groups} groups do not take the {} channels that it gets",
                x.shape[0]
            ));
        }
        let (stride, padding) = window(node, [kh, kw])?;
        let padding = around(padding, &x)?;
        let bias = if Self::has(node, 2) { Some(self.tensor(node, 2)?) } else { None };
        let weights: Vec<&TensorProto> = std::iter::once(weight).chain(bias).collect();
        let name = self.weighted(node, &weights);
        let op = LayerOp::Conv { channels: out, kernel: [kh, kw], stride, padding, groups, bias: bias.is_some() };
        let output = self.push(name.clone(), op, &[&x])?;
        let values = self.floats(&name, weight)?;
        self.keep(format!("{name}.weight"), dims, values)?;
        if let Some(bias) = bias {
            let values = self.vector(&name, bias, out)?;
            self.keep(format!("{name}.bias"), [out], values)?;
        }
        Ok(Value::Layer(output))
    }

    /// A tensor with so many values in one dimension, which is `layer`'s now.
    fn vector(&mut self, layer: &str, tensor: &'a TensorProto, length: usize) -> Result<Vec<f32>, String> {
        let dims = tensor::dims(tensor)?;
        match dims.iter().product::<usize>() == length && dims.iter().filter(|&&size| size != 1).count() <= 1 {
            true => self.floats(layer, tensor),
            false => Err(format!("tensor `{}` has the shape {dims:?}, and {length} values are wanted", tensor.name())),
        }
    }

    fn batch_norm(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["epsilon", "momentum", "spatial", "training_mode"])?;
        if int(node, "spatial", 1)? != 1 {
            return Err("it normalises each pixel apart, which is not supported".into());
        }
        if int(node, "training_mode", 0)? != 0 {
            self.notes.push(format!("`{}` is in training mode; what it does here is a policy's business", node.name()));
        }
        let x = self.output(node, 0)?;
        if x.flat && !x.is_pixel() {
            return Err("it reads a flattened image that has pixels, which is not supported".into());
        }
        let tensors = [1, 2, 3, 4].map(|index| self.tensor(node, index));
        let [scale, bias, mean, var] = tensors;
        let tensors = [scale?, bias?, mean?, var?];
        let name = self.weighted(node, &[tensors[2], tensors[3], tensors[0], tensors[1]]);
        let (eps, keep) = (float(node, "epsilon", 1e-5)?, float(node, "momentum", 0.9)?);
        if !(0.0..1.0).contains(&keep) {
            return Err(format!(
                "its `momentum` of {keep} is not supported; from 0 up to but not including 1 is, which in PyTorch is 1 \
                 less its own"
            ));
        }
        // ONNX has no word for the variance that is stored; most files are PyTorch's.
        let bn = LayerOp::Bn { eps, keep, var: Averaging::PYTORCH.var, affine: Affine::Both };
        let output = self.push(name.clone(), bn, &[&x])?;
        for (part, tensor) in ["weight", "bias", "running_mean", "running_var"].into_iter().zip(tensors) {
            let values = self.vector(&name, tensor, x.shape[0])?;
            self.keep(format!("{name}.{part}"), [x.shape[0]], values)?;
        }
        Ok(Value::Layer(Output { flat: x.flat, ..output }))
    }

    /// A layer whose output has the form of its input.
    fn pointwise(&mut self, node: &NodeProto, op: LayerOp, x: &Output) -> Result<Value<'a>, String> {
        let name = self.weightless(node);
        let output = self.push(name, op, &[x])?;
        Ok(Value::Layer(Output { flat: x.flat, ..output }))
    }

    fn activation(&mut self, node: &'a NodeProto, act: Act) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        let x = self.output(node, 0)?;
        self.pointwise(node, LayerOp::Activation { act }, &x)
    }

    fn relu(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        let name = node.output.first().ok_or("it gives nothing")?;
        let readers = self.readers(name);
        let clipped = *name != self.logits && !readers.is_empty() && readers.iter().all(|r| r.op_type() == "Clip");
        match self.value(node, 0)?.clone() {
            Value::Part(x, Part::Shifted) => Ok(Value::Part(x, Part::ShiftedRectified)),
            Value::Layer(_) if clipped => Ok(Value::Part(self.output(node, 0)?, Part::Rectified)),
            _ => self.activation(node, Act::Relu),
        }
    }

    fn clip(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["min", "max"])?;
        let mut bounds = [float(node, "min", f32::NEG_INFINITY)?, float(node, "max", f32::INFINITY)?];
        for (index, bound) in bounds.iter_mut().enumerate() {
            if Self::has(node, index + 1) {
                *bound = self.number(node, index + 1)?.ok_or("its bounds must be constant numbers")?;
            }
        }
        let [low, high] = bounds;
        let act = match (self.value(node, 0)?.clone(), low, high) {
            (Value::Part(x, Part::Shifted), 0.0, 6.0) => return Ok(Value::Part(x, Part::Clipped)),
            (Value::Part(x, Part::ShiftedRectified), ..=0.0, 6.0) => return Ok(Value::Part(x, Part::Clipped)),
            (Value::Part(x, Part::Rectified), ..=0.0, 6.0) => {
                return self.pointwise(node, LayerOp::Activation { act: Act::Relu6 }, &x);
            }
            (_, 0.0, 6.0) => Act::Relu6,
            (_, 0.0, f32::INFINITY) => Act::Relu,
            _ => return Err(format!("from {low} to {high} is not supported; from 0 to 6 is")),
        };
        let x = self.output(node, 0)?;
        self.pointwise(node, LayerOp::Activation { act }, &x)
    }

    fn sigmoid(&mut self, node: &'a NodeProto, act: Act) -> Result<Value<'a>, String> {
        let x = self.output(node, 0)?;
        self.whole_or_half(node, x, act)
    }

    /// σ(x), which is half of x·σ(x) if all that read it multiply it with x.
    fn whole_or_half(&mut self, node: &'a NodeProto, x: Output, act: Act) -> Result<Value<'a>, String> {
        let name = node.output.first().ok_or("it gives nothing")?;
        let completes =
            |reader: &&NodeProto| {
                reader.op_type() == "Mul"
                    && reader.input.iter().filter(|input| *input != name).any(
                        |input| matches!(self.values.get(input.as_str()), Some(Value::Layer(other)) if *other == x),
                    )
            };
        let readers = self.readers(name);
        match name != self.logits && !readers.is_empty() && readers.iter().all(completes) {
            true => Ok(Value::Half(x, act)),
            false => self.pointwise(node, LayerOp::Activation { act }, &x),
        }
    }

    fn mul(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        for (one, other) in [(0, 1), (1, 0)] {
            match (self.value(node, one)?.clone(), self.value(node, other)?) {
                (Value::Half(x, half), Value::Layer(same)) if x == *same => {
                    let act = if half == Act::Sigmoid { Act::Silu } else { Act::HardSwish };
                    return self.pointwise(node, LayerOp::Activation { act }, &x);
                }
                (Value::Part(x, Part::Clipped), Value::Layer(same)) if x == *same => {
                    return Ok(Value::Part(x, Part::Scaled));
                }
                (Value::Part(x, part), _) => {
                    return match self.number(node, other)? {
                        Some(factor) if near(factor, 1.0 / 6.0) => self.sixth(node, x, part),
                        _ => Err("it is part of an activation that is not known".into()),
                    };
                }
                _ => {}
            }
        }
        let (a, b) = (self.output(node, 0)?, self.output(node, 1)?);
        let (x, gate) = if b.is_pixel() { (a, b) } else { (b, a) };
        if !gate.is_pixel() || gate.shape[0] != x.shape[0] || x.flat != gate.flat {
            return Err(format!(
                "{:?} times {:?} is not supported; images times one value a channel, [N, C, 1, 1], are",
                x.shape, gate.shape
            ));
        }
        let name = self.weightless(node);
        let output = self.push(name, LayerOp::Scale {}, &[&x, &gate])?;
        Ok(Value::Layer(Output { flat: x.flat, ..output }))
    }

    fn div(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        match (self.value(node, 0)?.clone(), self.number(node, 1)?) {
            (Value::Part(x, part), Some(divisor)) if near(divisor, 6.0) => self.sixth(node, x, part),
            _ => Err("it is supported as a part of hard_swish and hard_sigmoid only".into()),
        }
    }

    /// The end of a hard activation that is written out.
    fn sixth(&mut self, node: &'a NodeProto, x: Output, part: Part) -> Result<Value<'a>, String> {
        match part {
            Part::Rectified | Part::Shifted | Part::ShiftedRectified => {
                Err("it is part of an activation that is not known".into())
            }
            Part::Clipped => self.whole_or_half(node, x, Act::HardSigmoid),
            Part::Scaled => self.pointwise(node, LayerOp::Activation { act: Act::HardSwish }, &x),
        }
    }

    fn add(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        for (one, other) in [(0, 1), (1, 0)] {
            match (self.value(node, one)?.clone(), self.value(node, other)?.clone()) {
                (Value::Product(x, weight), Value::Tensor(bias)) => return self.linear(node, &x, weight, Some(bias)),
                (Value::Layer(_), _) if self.number(node, other)? == Some(3.0) => {
                    return Ok(Value::Part(self.output(node, one)?, Part::Shifted));
                }
                _ => {}
            }
        }
        let (a, b) = (self.output(node, 0)?, self.output(node, 1)?);
        if a.shape != b.shape || a.flat != b.flat {
            return Err(format!("{:?} plus {:?} is not supported; the shapes must be equal", a.shape, b.shape));
        }
        let name = self.weightless(node);
        let output = self.push(name, LayerOp::Add {}, &[&a, &b])?;
        Ok(Value::Layer(Output { flat: a.flat, ..output }))
    }

    fn max_pool(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        let (kernel, stride, padding) = pool_window(node, &["storage_order"])?;
        let x = self.padded(node, 0)?;
        // A layer's own padding is narrower than its window, so each window has a pixel of the image. Where that is not below
        // zero, zeros around it change the greatest as little as the layer's minus infinity does.
        let (x, padding) = match x.is_padded() && !x.flat && self.is_never_negative(&x) {
            true => (Output { pad: [0; 4], ..x.clone() }, around(padding, &x)?),
            false => (self.image(node, 0)?, padding),
        };
        self.pointwise(node, LayerOp::MaxPool { kernel, stride, padding, ceil: false }, &x)
    }

    /// Whether `x` comes from a layer that gives nothing below zero.
    fn is_never_negative(&self, x: &Output) -> bool {
        let from = self.layers.iter().rfind(|layer| layer.name == x.layer);
        from.is_some_and(|layer| match layer.op {
            LayerOp::Activation { act } => act.is_never_negative(),
            _ => false,
        })
    }

    fn avg_pool(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        let x = self.image(node, 0)?;
        let (kernel, stride, padding) = pool_window(node, &["count_include_pad"])?;
        if padding != Padding::Pixels([0; 4]) {
            return Err("padding is not supported here".into());
        }
        let whole = kernel == x.shape[1..] && stride == [1, 1];
        let op = if whole {
            LayerOp::GlobalAvgPool {}
        } else {
            LayerOp::AvgPool { kernel, stride, padding: Padding::Pixels([0; 4]), ceil: false, count_padding: true }
        };
        self.pointwise(node, op, &x)
    }

    fn global_avg_pool(&mut self, node: &'a NodeProto, flat: bool) -> Result<Value<'a>, String> {
        let x = self.image(node, 0)?;
        let name = self.weightless(node);
        let output = self.push(name, LayerOp::GlobalAvgPool {}, &[&x])?;
        Ok(Value::Layer(Output { flat, ..output }))
    }

    fn reduce_mean(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axes", "keepdims", "noop_with_empty_axes"])?;
        let mut axes = self.listed(node, "axes", 1)?.unwrap_or_default();
        for axis in &mut axes {
            *axis = if *axis < 0 { axis.saturating_add(4) } else { *axis };
        }
        axes.sort_unstable();
        match axes == [2, 3] {
            true => self.global_avg_pool(node, int(node, "keepdims", 1)? == 0),
            false => Err(format!("the axes {axes:?} are not supported; height and width, 2 and 3, are")),
        }
    }

    fn gemm(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["alpha", "beta", "transA", "transB"])?;
        if float(node, "alpha", 1.0)? != 1.0 || float(node, "beta", 1.0)? != 1.0 || int(node, "transA", 0)? != 0 {
            return Err("alpha and beta other than 1, and transA, are not supported".into());
        }
        let x = self.output(node, 0)?;
        let weight = self.matrix(node, 1, int(node, "transB", 0)? != 0)?;
        let bias = if Self::has(node, 2) { Some(self.tensor(node, 2)?) } else { None };
        self.linear(node, &x, weight, bias)
    }

    fn mat_mul(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        let x = self.output(node, 0)?;
        let weight = self.matrix(node, 1, false)?;
        let name = node.output.first().ok_or("it gives nothing")?;
        let biased = match self.readers(name) {
            [reader] if reader.op_type() == "Add" && name != self.logits => {
                let other = reader.input.iter().find(|input| *input != name);
                other.is_some_and(|other| matches!(self.values.get(other.as_str()), Some(Value::Tensor(_))))
            }
            _ => false,
        };
        match biased {
            true => Ok(Value::Product(x, weight)),
            false => self.linear(node, &x, weight, None),
        }
    }

    /// A linear layer. Behind a flattened image that has pixels it is a convolution as large as the image.
    fn linear(
        &mut self,
        node: &'a NodeProto,
        x: &Output,
        Matrix { tensor: weight, by_output }: Matrix<'a>,
        bias: Option<&'a TensorProto>,
    ) -> Result<Value<'a>, String> {
        if !x.flat {
            return Err("it takes a flat input, [N, C], and reads images; a Flatten is missing".into());
        }
        let dims = tensor::dims(weight)?;
        let [rows, columns] = dims[..] else {
            return Err(format!("its weights have the shape {dims:?}; a matrix is wanted"));
        };
        let (out, inputs) = if by_output { (rows, columns) } else { (columns, rows) };
        let [c, h, w] = x.shape;
        if inputs != c * h * w {
            return Err(format!("its weights {dims:?} do not take the {} values that it gets", c * h * w));
        }
        let weights: Vec<&TensorProto> = std::iter::once(weight).chain(bias).collect();
        let name = self.weighted(node, &weights);
        let (op, shape) = match x.is_pixel() {
            true => (LayerOp::Linear { channels: out, bias: true, taken: Taken::Pixel }, vec![out, c]),
            false => {
                let padding = Padding::Pixels([0; 4]);
                let op =
                    LayerOp::Conv { channels: out, kernel: [h, w], stride: [1; 2], padding, groups: 1, bias: true };
                (op, vec![out, c, h, w])
            }
        };
        let output = self.push(name.clone(), op, &[x])?;
        let mut values = self.floats(&name, weight)?;
        if !by_output {
            values = (0..out).flat_map(|o| (0..inputs).map(move |i| i * out + o)).map(|at| values[at]).collect();
        }
        self.keep(format!("{name}.weight"), shape, values)?;
        let bias = match bias {
            Some(bias) => self.vector(&name, bias, out)?,
            None => {
                self.notes.push(format!("`{name}` has no bias in the file, and gets one of zeros"));
                vec![0.0; out]
            }
        };
        self.keep(format!("{name}.bias"), [out], bias)?;
        Ok(Value::Layer(Output { flat: true, ..output }))
    }

    fn dropout(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["ratio", "seed"])?;
        let x = self.output(node, 0)?;
        let mut rate = float(node, "ratio", 0.5)?;
        if Self::has(node, 1) {
            rate = self.number(node, 1)?.ok_or("its ratio must be a constant number")?;
        }
        self.pointwise(node, LayerOp::Dropout { rate }, &x)
    }

    fn softmax(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axis"])?;
        if node.output.first().is_none_or(|name| name != self.logits) {
            return Err("it is supported at the end only".into());
        }
        self.notes.push(format!("the {} at the end is left out: a network ends in its logits", node.op_type()));
        Ok(Value::Layer(self.output(node, 0)?))
    }

    // ---- Operators that become nothing.

    fn pad(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["mode", "pads", "value"])?;
        let value = if Self::has(node, 2) { self.number(node, 2)? } else { Some(float(node, "value", 0.0)?) };
        if text(node, "mode")?.is_some_and(|mode| mode != "constant") || value != Some(0.0) || Self::has(node, 3) {
            return Err("it is supported with zeros around images only".into());
        }
        let x = self.padded(node, 0)?;
        let pads = self.listed(node, "pads", 1)?.unwrap_or_default();
        // Before all dimensions, then behind them.
        let [0, 0, top, left, 0, 0, bottom, right] = pads[..] else {
            return Err(format!("the paddings {pads:?} are not those of images"));
        };
        let mut pad = x.pad;
        for (pad, more) in pad.iter_mut().zip([top, left, bottom, right]) {
            *pad += size(more)?;
        }
        Ok(Value::Layer(Output { pad, ..x }))
    }

    fn transpose(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["perm"])?;
        let perm = ints(node, "perm")?;
        match (self.value(node, 0)?, perm.as_deref()) {
            (Value::Nhwc, Some([0, 3, 1, 2])) => {
                Ok(Value::Layer(Output { layer: IMAGES.into(), shape: self.images, flat: false, pad: [0; 4] }))
            }
            (Value::Tensor(matrix), Some([1, 0]) | None) if matrix.dims.len() == 2 => Ok(Value::Transposed(matrix)),
            _ => Err(format!(
                "{:?} is not supported; [0, 3, 1, 2] of the images, and [1, 0] of weights are",
                perm.unwrap_or_default()
            )),
        }
    }

    /// Another type of number, which must be able to hold what it is given: here everything is computed in `f32`.
    fn cast(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["saturate", "to"])?;
        let to = int(node, "to", 0)?;
        let to = i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok()).unwrap_or(DataType::Undefined);
        let float = matches!(to, DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double);
        match self.value(node, 0)?.clone() {
            value @ (Value::Layer(_) | Value::Number(_)) if float => Ok(value),
            value @ Value::Sizes(_) if float || matches!(to, DataType::Int32 | DataType::Int64) => Ok(value),
            Value::Layer(_) | Value::Number(_) | Value::Sizes(_) => {
                Err(format!("to {} is not supported; to floats is", to.as_str_name()))
            }
            _ => Err("it casts what is no size and no layer's output".into()),
        }
    }

    fn flat(&self, node: &'a NodeProto, flat: bool) -> Result<Value<'a>, String> {
        Ok(Value::Layer(Output { flat, ..self.output(node, 0)? }))
    }

    fn reshape(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["allowzero"])?;
        let x = self.output(node, 0)?;
        let shape = self.sizes(node, 1)?;
        let [c, h, w] = x.shape.map(|size| size as i64);
        // The number of images is kept by 0, or by -1 where the rest is given; a file may have it fixed, too.
        let flat = match shape[..] {
            [images, Some(-1)] if images != Some(-1) => true,
            [_, Some(values)] if values == c * h * w => true,
            [_, Some(channels), Some(1), Some(1)] if (channels == c || channels == -1) && x.is_pixel() => false,
            _ => {
                let sizes: Vec<String> =
                    shape.iter().map(|size| size.map_or_else(|| "N".into(), |size| size.to_string())).collect();
                let sizes = sizes.join(", ");
                return Err(format!("[N, {c}, {h}, {w}] to [{sizes}] is not supported; to [N, {}] is", c * h * w));
            }
        };
        self.flat(node, flat)
    }

    fn squeeze(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axes"])?;
        if let Value::Sizes(_) | Value::Tensor(_) = self.value(node, 0)? {
            return Ok(Value::Sizes(self.sizes(node, 0)?));
        }
        let axes = self.listed(node, "axes", 1)?;
        let mut axes = axes.unwrap_or_else(|| vec![2, 3]);
        for axis in &mut axes {
            *axis = if *axis < 0 { axis.saturating_add(4) } else { *axis };
        }
        axes.sort_unstable();
        match self.image(node, 0)?.is_pixel() && axes == [2, 3] {
            true => self.flat(node, true),
            false => Err(format!("the axes {axes:?} are not supported; height and width of one pixel are")),
        }
    }

    fn unsqueeze(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axes"])?;
        if let Value::Sizes(_) | Value::Tensor(_) = self.value(node, 0)? {
            return Ok(Value::Sizes(self.sizes(node, 0)?));
        }
        let axes = self.listed(node, "axes", 1)?.unwrap_or_default();
        match self.output(node, 0)? {
            x if x.flat && x.is_pixel() && (axes == [2, 3] || axes == [-2, -1] || axes == [-1, -2]) => {
                self.flat(node, false)
            }
            _ => Err(format!("the axes {axes:?} are not supported; height and width, 2 and 3, are")),
        }
    }

    fn shape(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &[])?;
        let Output { shape, flat, .. } = self.output(node, 0)?;
        let [c, h, w] = shape.map(|size| Some(size as i64));
        Ok(Value::Sizes(match flat {
            false => vec![None, c, h, w],
            true => vec![None, Some(shape.iter().product::<usize>() as i64)],
        }))
    }

    fn gather(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axis"])?;
        let Value::Sizes(from) = self.value(node, 0)?.clone() else {
            return Err("it is supported for sizes only".into());
        };
        let of = |index: Option<i64>| {
            let index = index.map(|index| if index < 0 { index.saturating_add(from.len() as i64) } else { index });
            let found = index.and_then(|index| from.get(usize::try_from(index).ok()?));
            found.copied().ok_or_else(|| "its indices are out of range".to_owned())
        };
        Ok(Value::Sizes(self.sizes(node, 1)?.into_iter().map(of).collect::<Result<_, _>>()?))
    }

    fn concat(&mut self, node: &'a NodeProto) -> Result<Value<'a>, String> {
        attributes(node, &["axis"])?;
        let mut sizes = Vec::new();
        for index in 0..node.input.len() {
            let constant = !matches!(self.value(node, index)?, Value::Layer(_));
            if !constant {
                return Err("it is supported for sizes only, not for images".into());
            }
            sizes.extend(self.sizes(node, index)?);
            if sizes.len() > MAX_SIZES {
                break;
            }
        }
        Ok(Value::Sizes(sizes))
    }
}

/// The padding of a window over `x`, with that of `x` itself.
fn around(padding: Padding, x: &Output) -> Result<Padding, String> {
    match padding {
        Padding::Pixels(pixels) => Ok(Padding::Pixels(std::array::from_fn(|side| pixels[side] + x.pad[side]))),
        Padding::Same if !x.is_padded() => Ok(Padding::Same),
        Padding::Same => Err("it reads what a Pad gives, and pads by itself".into()),
    }
}

fn constant(node: &NodeProto) -> Result<Value<'_>, String> {
    let [attribute] = &node.attribute[..] else { return Err("it has not one value".into()) };
    match (attribute.name(), &attribute.t) {
        ("value", Some(tensor)) => Ok(Value::Tensor(tensor)),
        ("value_float", _) => Ok(Value::Number(attribute.f())),
        ("value_int", _) => Ok(Value::Sizes(vec![Some(attribute.i())])),
        ("value_ints", _) => Ok(Value::Sizes(attribute.ints.iter().copied().map(Some).collect())),
        (other, _) => Err(format!("`{other}` is not supported")),
    }
}
