//! Folded networks and ONNX files against the networks that they came from. The ONNX side is computed in f64 by an
//! interpreter of the operators' own definitions, which shares no code with the kernels.

use super::*;
use crate::compile;
use crate::formats::onnx::proto::tensor_shape_proto::dimension;
use crate::formats::onnx::proto::{ModelProto, NodeProto, ValueInfoProto};
use crate::formats::onnx::{self, About, proto};
use crate::gpu::{Device, DeviceOptions};
use crate::graph::{Act, Affine, Averaging, Builder, LayerKind, Role, Variance, Window};
use crate::models;
use crate::plan::Input;
use crate::preprocessing::Preprocessing;
use crate::rng::Rng;
use crate::tensor::{HostTensor, Shape};
use crate::train::{Evaluator, Images};
use crate::weights::{self, layout};
use prost::Message;
use std::collections::HashMap;
use std::path::Path;

pub(crate) const ABOUT: About<'_> = About { model: "net", preprocessing: HALF, classes: None, batch: None };
const HALF: Preprocessing = Preprocessing::normalised([0.5; 3], [0.5; 3]);

/// A network of everything: batch norms that fold into convolutions with and without a bias and into a linear layer, and
/// some that do not fold.
pub(crate) fn zoo() -> Result<Graph, GraphError> {
    let mut b = Builder::new();
    let uneven = Window { kernel: [3, 2], stride: [2, 1], padding: [1, 0, 2, 1] };
    let x = b.input(3, 11, 9, 3)?;
    let x = b.batch_norm("on_images", x, 1e-3)?;
    let x = b.conv2d("biased", x, 6, uneven, true)?;
    let x = b.batch_norm("biased_bn", x, 1e-2)?;
    let x = b.relu("relu", x)?;
    b.block(Some("block"));
    let shared = b.conv2d("block.shared", x, 6, Window::square(3, 1, 1), false)?;
    let normed = b.batch_norm("block.shared_bn", shared, 1e-5)?;
    let plain = b.conv2d("block.plain", normed, 6, Window::square(1, 1, 0), false)?;
    let plain = b.batch_norm("block.plain_bn", plain, 1e-5)?;
    let twice = b.batch_norm("block.twice_bn", plain, 1e-5)?;
    let x = b.stochastic_depth("block.depth", twice, 0.25)?;
    let x = b.add("block.add", x, shared)?;
    b.block(None);
    let x = b.conv2d("wide", x, 16, Window::square(1, 1, 0), false)?;
    let x = b.activation("silu", x, Act::Silu)?;
    let x = b.grouped_conv2d("grouped", x, 8, Window::square(3, 1, 1), 2, false)?;
    let x = b.batch_norm("grouped_bn", x, 1e-4)?;
    let x = b.activation("relu6", x, Act::Relu6)?;
    let x =
        b.grouped_conv2d("depthwise", x, 8, Window { padding: [0, 0, 1, 1], ..Window::square(3, 1, 0) }, 8, true)?;
    let x = b.batch_norm("depthwise_bn", x, 1e-3)?;
    let x = b.activation("hard_swish", x, Act::HardSwish)?;
    let gate = b.global_avg_pool("squeeze", x)?;
    let gate = b.conv2d("reduce", gate, 3, Window::square(1, 1, 0), true)?;
    let gate = b.activation("sigmoid", gate, Act::Sigmoid)?;
    let gate = b.conv2d("expand", gate, 8, Window::square(1, 1, 0), true)?;
    let gate = b.activation("hard_sigmoid", gate, Act::HardSigmoid)?;
    let x = b.scale("scale", x, gate)?;
    let x = b.conv2d("narrow", x, 6, Window::square(1, 1, 0), false)?;
    let x = b.max_pool("max", x, Window::square(3, 2, 1))?;
    let x = b.avg_pool("avg", x, Window { kernel: [2, 2], stride: [1, 2], padding: [0; 4] }, [0; 4])?;
    let pooled = b.global_avg_pool("pool", x)?;
    let x = b.linear("hidden", pooled, 6)?;
    let x = b.batch_norm("hidden_bn", x, 1e-5)?;
    let x = b.relu("hidden_relu", x)?;
    let x = b.add("flat_add", pooled, x)?;
    let x = b.batch_norm("flat_bn", x, 1e-5)?;
    let x = b.dropout("dropout", x, 0.5)?;
    let logits = b.linear("fc", x, 5)?;
    b.finish(logits)
}

/// resnet_tiny as it was trained.
pub(crate) fn trained() -> (Graph, Vec<HostTensor>) {
    let network = models::build("resnet_tiny", 3, (16, 16), 10).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/resnet_tiny_shapes.safetensors");
    let tensors = weights::from_state(&network, StateDict::load(file).unwrap(), 0).unwrap().tensors;
    (network, tensors)
}

/// Parameters whose batch norms are far from the identity.
pub(crate) fn random(network: &Graph) -> Vec<HostTensor> {
    let mut tensors = weights::initialise(network, 5);
    let mut rng = Rng::new(11);
    for (param, tensor) in network.params().iter().zip(&mut tensors) {
        let (c, channels) = (param.shape.stored_c(), param.channels);
        let mut fill = |row: usize, low: f64, high: f64| {
            tensor.data[row * c..][..channels].fill_with(|| rng.range(low, high) as f32);
        };
        match param.role {
            Role::Affine => {
                fill(0, -1.5, 1.5);
                fill(1, -0.5, 0.5);
            }
            Role::Moments => {
                fill(0, -1.0, 1.0);
                fill(1, 0.2, 2.0);
            }
            _ => {}
        }
    }
    tensors
}

/// The networks that tests run over, with their parameters.
pub(crate) fn networks() -> Vec<(&'static str, Graph, Vec<HostTensor>)> {
    let (network, tensors) = trained();
    let (zoo, shaken) = (zoo().unwrap(), random(&network));
    let zoo_tensors = random(&zoo);
    vec![("trained", network.clone(), tensors), ("random", network, shaken), ("zoo", zoo, zoo_tensors)]
}

/// Random images in a file's layout, NCHW.
pub(crate) fn images(network: &Graph) -> Vec<f32> {
    let [n, h, w, c] = network.input_shape().unwrap().0;
    let mut rng = Rng::new(3);
    (0..n * c * h * w).map(|_| rng.range(-2.0, 2.0) as f32).collect()
}

pub(crate) fn logits_of(network: &Graph, tensors: &[HostTensor]) -> Vec<f32> {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let [n, h, w, c] = network.input_shape().unwrap().0;
    let images = layout::images_to_device(&images(network), [n, c, h, w]);
    Evaluator::new(&device, network, tensors, Input::Values).unwrap().logits(Images::Values(&images)).unwrap()
}

/// The largest difference over the largest value.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).fold(0.0, f32::max);
    largest(&mut a.iter().zip(b).map(|(a, b)| a - b)) / largest(&mut b.iter().copied())
}

pub(crate) fn decoded(network: &Graph, tensors: &[HostTensor], about: &About<'_>) -> ModelProto {
    ModelProto::decode(&onnx::encode(network, tensors, about).unwrap()[..]).unwrap()
}

#[test]
fn a_folded_network_gives_the_same_logits() {
    for (name, network, tensors) in networks() {
        let folding = Folding::of(&network).unwrap();
        let folded = folding.tensors(&tensors).unwrap();
        let apart = difference(&logits_of(&folding.graph, &folded), &logits_of(&network, &tensors));
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

#[test]
fn what_folds_and_what_stays() {
    let folding = Folding::of(&zoo().unwrap()).unwrap();
    let folded: Vec<_> = folding.folded.iter().map(|f| (f.norm.as_str(), f.into.as_str())).collect();
    let expected = ["biased", "block.plain", "grouped", "depthwise", "hidden"].map(|into| (format!("{into}_bn"), into));
    assert_eq!(folded, expected.each_ref().map(|(norm, into)| (norm.as_str(), *into)));
    let kept: Vec<_> = folding.kept.iter().map(|k| (k.norm.as_str(), k.reason)).collect();
    let expected = [("on_images", Reason::NoConvolution), ("block.shared_bn", Reason::Shared)];
    assert_eq!(kept[..2], expected);
    assert_eq!(kept[2..], [("block.twice_bn", Reason::NoConvolution), ("flat_bn", Reason::NoConvolution)]);

    // All other layers are what they were, in the same order.
    let gone = |name: &str| folding.folded.iter().any(|f| f.norm == name);
    let facts = |graph: &Graph| -> Vec<_> {
        let layers = graph.layers().iter().filter(|layer| !gone(&layer.name));
        layers.map(|l| (l.name.clone(), l.kind, l.block.clone(), l.shape)).collect()
    };
    assert_eq!(facts(&folding.graph), facts(&zoo().unwrap()));

    // What is folded has nothing left to fold, and these families fold whole: their batch norms stand behind convolutions.
    const WHOLE: [&str; 5] = ["resnet", "mobilenet", "efficientnet", "regnet", "vgg"];
    for spec in models::MODELS.iter() {
        // Some take images of one size only, or none so small.
        let network = spec.build(1, (32, 32), 10).or_else(|_| spec.build(1, spec.size(), 10)).unwrap();
        let norms = network.layers().iter().filter(|layer| layer.kind == LayerKind::Bn).count();
        let folding = Folding::of(&network).unwrap();
        let whole = WHOLE.iter().any(|family| spec.name.starts_with(family)) && !spec.name.starts_with("resnetv2_");
        assert_eq!(folding.folded.len() + folding.kept.len(), norms, "{}", spec.name);
        assert!(folding.kept.is_empty() || !whole, "{}", spec.name);
        assert_eq!(Folding::of(&folding.graph).unwrap().graph, folding.graph);
    }
}

#[test]
fn layers_that_stay_keep_what_is_said_of_them() {
    let mut b = Builder::new();
    let averaging = Averaging { keep: 0.99, var: Variance::Biased };
    b.averaging(averaging);
    b.affine(Affine::Beta);
    let x = b.input(1, 4, 4, 3).unwrap();
    b.position(&[3]);
    let x = b.batch_norm("base/first", x, 1e-3).unwrap();
    b.alias("first").unwrap();
    b.position(&[7]);
    let x = b.conv2d("base/conv", x, 4, Window::square(3, 1, 1), false).unwrap();
    b.alias("conv").unwrap();
    let x = b.batch_norm("base/second", x, 1e-3).unwrap();
    b.alias("second").unwrap();
    let x = b.global_avg_pool("pool", x).unwrap();
    let network = b.finish(x).unwrap();
    let folded = Folding::of(&network).unwrap().graph;
    let kept = network.layers().iter().filter(|layer| layer.name != "base/second");
    assert_eq!(folded.layers().len(), 3);
    for (after, before) in folded.layers().iter().zip(kept) {
        assert_eq!((&after.name, &after.alias), (&before.name, &before.alias));
        assert_eq!(after.position, before.position);
        assert_eq!((after.averaging, after.affine), (before.averaging, before.affine));
    }
    assert_eq!((folded.layers()[0].averaging, folded.layers()[0].affine), (averaging, Affine::Beta));
}

#[test]
fn a_folded_network_is_rebuilt_from_its_file() {
    let (network, tensors) = trained();
    let folding = Folding::of(&network).unwrap();
    let tensors = folding.tensors(&tensors).unwrap();
    let mut state = weights::to_state(&folding.graph, &tensors);
    assert!(!is_folded(&state));
    state.metadata.insert(FOLDED.into(), "true".into());
    let file = tempfile::NamedTempFile::new().unwrap();
    state.save(file.path()).unwrap();

    let state = StateDict::load(file.path()).unwrap();
    assert!(is_folded(&state));
    assert_eq!(state.tensors["layer1.0.conv1.weight"].shape, [16, 16, 3, 3]);
    assert_eq!(state.tensors["layer1.0.conv1.bias"].shape, [16]);
    let rebuilt = Folding::of(&models::build("resnet_tiny", 3, (16, 16), 10).unwrap()).unwrap().graph;
    assert_eq!(rebuilt, folding.graph);
    assert_eq!(weights::from_state(&rebuilt, state, 0).unwrap().tensors, tensors);
}

#[test]
fn a_variance_below_zero_is_named() {
    let (network, mut tensors) = trained();
    let moments = network
        .params()
        .iter()
        .position(|param| param.role == Role::Moments && network.layers()[param.layer.index()].name == "layer2.0.bn2");
    let moments = &mut tensors[moments.unwrap()];
    let c = moments.shape.stored_c();
    moments.data[c + 3] = -1.0;
    let error = Folding::of(&network).unwrap().tensors(&tensors).unwrap_err().to_string();
    assert!(error.starts_with("`layer2.0.bn2` cannot be folded into `layer2.0.conv2`"), "{error}");
}

#[test]
fn a_plan_is_not_exported() {
    let (network, tensors) = trained();
    let step = compile::inference(network, true).unwrap();
    for error in [Folding::of(&step).unwrap_err(), onnx::encode(&step, &tensors, &ABOUT).unwrap_err()] {
        let message = error.to_string();
        assert!(message.starts_with("bn1 (") && message.contains("compiled"), "{message}");
    }
}

#[test]
fn onnx_gives_the_same_logits() {
    for (name, network, tensors) in networks() {
        let folding = Folding::of(&network).unwrap();
        let folded = folding.tensors(&tensors).unwrap();
        let ours = logits_of(&network, &tensors);
        for (form, network, tensors) in [("plain", &network, &tensors), ("folded", &folding.graph, &folded)] {
            let [n, h, w, c] = network.input_shape().unwrap().0;
            let theirs = run(&decoded(network, tensors, &ABOUT), Tensor::new(&[n, c, h, w], &images(network)));
            assert_eq!(theirs.shape, [n, network.logits_shape().unwrap().c()]);
            let theirs: Vec<f32> = theirs.data.iter().map(|&value| value as f32).collect();
            let apart = difference(&ours, &theirs);
            assert!(apart < 1e-5, "{name}, {form}: {apart}");
        }
    }
}

#[test]
fn onnx_says_what_it_is() {
    let (network, tensors) = trained();
    let classes: Vec<String> = (0..10).map(|class| format!("\"{class}\"")).collect();
    let preprocessing = Preprocessing { mean: [0.485, 0.25, 1.0], ..HALF };
    let model = decoded(&network, &tensors, &About { preprocessing, classes: Some(&classes), ..ABOUT });
    assert_eq!((model.ir_version(), model.opset_import[0].version(), model.opset_import.len()), (8, 17, 1));
    assert_eq!((model.producer_name(), model.producer_version()), ("thawline", env!("CARGO_PKG_VERSION")));
    let metadata: HashMap<&str, &str> = model.metadata_props.iter().map(|entry| (entry.key(), entry.value())).collect();
    assert_eq!(metadata["mean"], "[0.485, 0.25, 1.0]");
    assert_eq!(Preprocessing::parse(metadata["preprocessing"]), Ok(preprocessing));
    assert_eq!(serde_json::from_str::<Vec<String>>(metadata["classes"]).unwrap(), classes);

    let graph = model.graph.unwrap();
    assert_eq!(dims(&graph.input[0]), ["batch", "3", "16", "16"]);
    assert_eq!(dims(&graph.output[0]), ["batch", "10"]);
    assert_eq!((graph.input[0].name(), graph.output[0].name()), ("images", "logits"));
    let count = |op: &str| graph.node.iter().filter(|node| node.op_type() == op).count();
    let ops = ["Conv", "BatchNormalization", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"].map(count);
    assert_eq!(ops, [15, 15, 13, 6, 1, 1, 1]);
    assert_eq!(ops.iter().sum::<usize>(), graph.node.len());

    // The initialisers are the floats of a weights file, bit for bit.
    let file = weights::to_state(&network, &tensors);
    let floats = file.tensors.iter().filter_map(|(name, tensor)| match &tensor.data {
        weights::TensorData::F32(values) => Some((name.as_str(), (&tensor.shape[..], &values[..]))),
        weights::TensorData::I64(_) => None,
    });
    let floats: HashMap<_, _> = floats.collect();
    assert_eq!(graph.initializer.len(), floats.len());
    for tensor in &graph.initializer {
        let (shape, values) = floats[tensor.name()];
        assert!(tensor.dims.iter().map(|&size| size as usize).eq(shape.iter().copied()), "{}", tensor.name());
        let bits = values.iter().flat_map(|value| value.to_le_bytes());
        assert!(bits.eq(tensor.raw_data().iter().copied()), "{}", tensor.name());
    }

    // Folded, no batch norm is left, and a batch can be fixed.
    let folding = Folding::of(&network).unwrap();
    let about = About { batch: Some(4), ..ABOUT };
    let graph = decoded(&folding.graph, &folding.tensors(&tensors).unwrap(), &about).graph.unwrap();
    assert_eq!((dims(&graph.input[0])[0].as_str(), dims(&graph.output[0])[0].as_str()), ("4", "4"));
    assert!(graph.node.iter().all(|node| node.op_type() != "BatchNormalization"));
    assert!(graph.node.iter().filter(|node| node.op_type() == "Conv").all(|node| node.input.len() == 3));
}

fn dims(value: &ValueInfoProto) -> Vec<String> {
    let Some(proto::type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        panic!("{} is no tensor", value.name());
    };
    let dims = tensor.shape.as_ref().unwrap().dim.iter();
    dims.map(|dim| match dim.value.as_ref().unwrap() {
        dimension::Value::DimValue(size) => size.to_string(),
        dimension::Value::DimParam(name) => name.clone(),
    })
    .collect()
}

#[test]
fn onnx_refuses_what_it_cannot_hold() {
    let network = |last: &dyn Fn(&mut Builder, crate::graph::NodeId) -> Result<crate::graph::NodeId, GraphError>| {
        let mut b = Builder::new();
        let x = b.input(1, 1, 1, 3).unwrap();
        let x = b.linear("hidden", x, 1 << 10).unwrap();
        let x = last(&mut b, x).unwrap();
        b.finish(x).unwrap()
    };
    let behind = network(&|b, x| b.conv2d("conv", x, 4, Window::square(1, 1, 0), false));
    let error = onnx::encode(&behind, &weights::initialise(&behind, 0), &ABOUT).unwrap_err();
    assert!(error.to_string().starts_with("conv (conv2d %"), "{error}");

    // Refused by its size, before a tensor is looked at.
    let vast = network(&|b, x| b.linear("vast", x, 1 << 20));
    let empty = HostTensor { shape: Shape([0; 4]), data: Vec::new() };
    let error = onnx::encode(&vast, &vec![empty; vast.params().len()], &ABOUT).unwrap_err();
    assert!(matches!(error, ExportError::TooLarge { bytes, .. } if bytes > 1 << 32), "{error}");
}

/// Row-major.
#[derive(Clone)]
struct Tensor {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Tensor {
    fn new(shape: &[usize], data: &[f32]) -> Self {
        Self { shape: shape.to_vec(), data: data.iter().map(|&value| f64::from(value)).collect() }
    }

    /// The dimensions of images.
    fn nchw(&self) -> [usize; 4] {
        self.shape[..].try_into().expect("four dimensions")
    }
}

/// The result of an ONNX model whose operators are among those that we write.
fn run(model: &ModelProto, images: Tensor) -> Tensor {
    let graph = model.graph.as_ref().unwrap();
    let mut values: HashMap<&str, Tensor> = HashMap::from([(graph.input[0].name(), images)]);
    for tensor in &graph.initializer {
        let shape: Vec<usize> = tensor.dims.iter().map(|&size| size as usize).collect();
        let words = tensor.raw_data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
        values.insert(tensor.name(), Tensor::new(&shape, &words.collect::<Vec<_>>()));
    }
    for node in &graph.node {
        let inputs: Vec<&Tensor> = node.input.iter().map(|name| &values[name.as_str()]).collect();
        let output = operator(node, &inputs);
        assert!(values.insert(&node.output[0], output).is_none(), "{} is given twice", node.output[0]);
    }
    values.remove(graph.output[0].name()).unwrap()
}

fn each(x: &Tensor, of: impl Fn(f64) -> f64) -> Tensor {
    Tensor { data: x.data.iter().map(|&value| of(value)).collect(), ..x.clone() }
}

fn operator(node: &NodeProto, inputs: &[&Tensor]) -> Tensor {
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name() == name).unwrap();
    let x = inputs[0];
    match node.op_type() {
        "Relu" => each(x, |value| value.max(0.0)),
        "Clip" => each(x, |value| value.clamp(inputs[1].data[0], inputs[2].data[0])),
        "Sigmoid" => each(x, |value| 1.0 / (1.0 + (-value).exp())),
        "HardSigmoid" => {
            let (alpha, beta) = (f64::from(attribute("alpha").f()), f64::from(attribute("beta").f()));
            each(x, |value| (alpha * value + beta).clamp(0.0, 1.0))
        }
        "HardSwish" => each(x, |value| value * (value / 6.0 + 0.5).clamp(0.0, 1.0)),
        "Add" => {
            assert_eq!(x.shape, inputs[1].shape);
            Tensor { data: x.data.iter().zip(&inputs[1].data).map(|(a, b)| a + b).collect(), ..x.clone() }
        }
        "Mul" => {
            // Of one shape, or one value a channel.
            let each = x.data.len() / inputs[1].data.len();
            assert!(each == 1 || inputs[1].shape[2..] == [1, 1] && inputs[1].shape[..2] == x.shape[..2]);
            Tensor { data: x.data.iter().enumerate().map(|(i, a)| a * inputs[1].data[i / each]).collect(), ..x.clone() }
        }
        "Flatten" => Tensor { shape: vec![x.shape[0], x.shape[1..].iter().product()], data: x.data.clone() },
        "BatchNormalization" => {
            let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|input| &inputs[input].data);
            let eps = f64::from(attribute("epsilon").f());
            let (channels, pixels) = (x.shape[1], x.shape[2..].iter().product::<usize>());
            let normed = x.data.iter().enumerate().map(|(i, value)| {
                let c = i / pixels % channels;
                scale[c] * (value - mean[c]) / (variance[c] + eps).sqrt() + bias[c]
            });
            Tensor { data: normed.collect(), ..x.clone() }
        }
        "Gemm" => {
            assert_eq!(attribute("transB").i(), 1);
            let (weight, bias) = (inputs[1], &inputs[2].data);
            let dot = |row: &[f64], of: &[f64]| row.iter().zip(of).map(|(a, b)| a * b).sum::<f64>();
            let outputs = |row| weight.data.chunks_exact(weight.shape[1]).zip(bias).map(move |(w, b)| dot(row, w) + b);
            let data = x.data.chunks_exact(x.shape[1]).flat_map(outputs).collect();
            Tensor { shape: vec![x.shape[0], weight.shape[0]], data }
        }
        "Conv" => {
            let weight = inputs[1];
            // Input channels of a group.
            let [o, i, kh, kw] = weight.nchw();
            let groups = attribute("group").i() as usize;
            let channels = x.shape[1];
            assert_eq!(i * groups, channels);
            let bias = |c: usize| inputs.get(2).map_or(0.0, |bias| bias.data[c]);
            windows(node, x, o, |n, c, taps| {
                let first = c / (o / groups) * i;
                let terms = taps.iter().flat_map(|&([ky, kx], [y, x])| (0..i).map(move |input| (input, ky, kx, y, x)));
                let at = |input, y, x_| x.data[((n * channels + first + input) * x.shape[2] + y) * x.shape[3] + x_];
                let of = |(input, ky, kx, y, x)| weight.data[((c * i + input) * kh + ky) * kw + kx] * at(input, y, x);
                bias(c) + terms.map(of).sum::<f64>()
            })
        }
        "MaxPool" => pool(node, x, |values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        "AveragePool" => pool(node, x, |values| values.iter().sum::<f64>() / values.len() as f64),
        "GlobalAveragePool" => {
            let [n, c, h, w] = x.nchw();
            let means = x.data.chunks_exact(h * w).map(|pixels| pixels.iter().sum::<f64>() / pixels.len() as f64);
            Tensor { shape: vec![n, c, 1, 1], data: means.collect() }
        }
        other => panic!("{other} is not known"),
    }
}

fn pool(node: &NodeProto, x: &Tensor, of: impl Fn(&[f64]) -> f64) -> Tensor {
    let [_, c, h, w] = x.nchw();
    windows(node, x, c, |n, channel, taps| {
        let values = taps.iter().map(|&(_, [y, column])| x.data[((n * c + channel) * h + y) * w + column]);
        of(&values.collect::<Vec<_>>())
    })
}

/// A place in a window and the pixel below it: row and column.
type Tap = ([usize; 2], [usize; 2]);

/// For each image, output channel and window what `of` makes of the taps that lie inside the image.
fn windows(node: &NodeProto, x: &Tensor, channels: usize, of: impl Fn(usize, usize, &[Tap]) -> f64) -> Tensor {
    let ints = |name: &str| -> Vec<usize> {
        let attribute = node.attribute.iter().find(|attribute| attribute.name() == name).unwrap();
        attribute.ints.iter().map(|&value| value as usize).collect()
    };
    let (kernel, strides, pads) = (ints("kernel_shape"), ints("strides"), ints("pads"));
    let [n, _, h, w] = x.nchw();
    let size = [h, w];
    let out = [0, 1].map(|axis| (size[axis] + pads[axis] + pads[axis + 2] - kernel[axis]) / strides[axis] + 1);
    // The pixel below tap `k` of window `o`.
    let pixel = |axis: usize, o: usize, k: usize| {
        (o * strides[axis] + k).checked_sub(pads[axis]).filter(|&pixel| pixel < size[axis])
    };
    let mut data = Vec::new();
    for (image, channel) in (0..n).flat_map(|image| (0..channels).map(move |channel| (image, channel))) {
        for (oy, ox) in (0..out[0]).flat_map(|oy| (0..out[1]).map(move |ox| (oy, ox))) {
            let taps = (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx)));
            let inside = taps.filter_map(|(ky, kx)| Some(([ky, kx], [pixel(0, oy, ky)?, pixel(1, ox, kx)?])));
            data.push(of(image, channel, &inside.collect::<Vec<Tap>>()));
        }
    }
    Tensor { shape: vec![n, channels, out[0], out[1]], data }
}
