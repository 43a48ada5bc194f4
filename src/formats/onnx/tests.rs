//! ONNX files of our own and of other programs, and files that nobody should have written.

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use super::*;
use crate::export::Folding;
use crate::export::tests::{ABOUT, decoded, difference, networks};
use crate::formats::CLASSES;
use crate::gpu::{Device, DeviceOptions};
use crate::graph::{Act, Averaging, Graph, GraphError, Taken};
use crate::models::{self, Entry, GraphAbout, GraphFile, LayerOp, MODELS, Padding};
use crate::plan::Input;
use crate::preprocessing::{Interpolation, Preprocessing};
use crate::rng::Rng;
use crate::tensor::HostTensor;
use crate::train::{Evaluator, Images};
use crate::weights::{self, ExpectedKind, FileTensor, StateDict, TensorData, layout};
use prost::Message;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx").join(name)
}

const GOLDENS: [&str; 12] = [
    "resnet",
    "resnet_folded",
    "mobile",
    "lenet",
    "old",
    "same",
    "unfolded",
    "shuffle",
    "convnext",
    "dynamo",
    "nhwc",
    "parts",
];

pub(super) fn imported(model: &ModelProto) -> Result<Imported, String> {
    parse(&model.encode_to_vec(), Path::new("net.onnx")).map_err(|error| error.to_string())
}

/// The layers less those that inference does not have.
fn inference(layers: &[Entry]) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    // What stands for what is left out.
    let mut instead: Vec<(String, String)> = Vec::new();
    for layer in layers {
        let mut layer = layer.clone();
        for input in &mut layer.inputs {
            if let Some((_, by)) = instead.iter().find(|(name, _)| name == input) {
                *input = by.clone();
            }
        }
        match layer.op {
            LayerOp::Dropout { .. } | LayerOp::StochasticDepth { .. } => {
                instead.push((layer.name, layer.inputs[0].clone()));
            }
            _ => kept.push(layer),
        }
    }
    kept
}

/// The layers at one size, where all padding is in pixels.
fn described(network: &Graph) -> Vec<Entry> {
    let [_, h, w, _] = network.input_shape().unwrap().0;
    let about = GraphAbout { name: "net".into(), size: (h, w), preprocessing: ABOUT.preprocessing };
    let only = |size| match size == (h, w) {
        true => network.with_batch(1),
        false => Err(GraphError { node: "images".into(), reason: "of another size".into() }),
    };
    let mut layers = GraphFile::of(about, only).unwrap().layers().to_vec();
    for layer in &mut layers {
        // ONNX has no word for either.
        layer.position.clear();
        if let LayerOp::Bn { var, .. } = &mut layer.op {
            *var = Averaging::PYTORCH.var;
        }
    }
    layers
}

/// Numbers for every tensor, none like the one beside it.
pub(super) fn numbers(network: &Graph) -> StateDict {
    let mut state = StateDict::default();
    for tensor in weights::expected(network) {
        let count: usize = tensor.shape.iter().product();
        let seed = state.tensors.len() as u32;
        let value = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / (1 << 24) as f32;
        let tensor_data = match tensor.kind {
            ExpectedKind::Float => TensorData::F32((0..count as u32).map(value).collect()),
            ExpectedKind::Counter => TensorData::I64(vec![0]),
        };
        state.tensors.insert(tensor.name, FileTensor { shape: tensor.shape, data: tensor_data });
    }
    state
}

pub(super) fn assert_comes_back(name: &str, network: &Graph, tensors: &[HostTensor]) {
    let bytes = encode(network, tensors, &ABOUT).unwrap();
    let Imported { file, state, notes } = parse(&bytes, Path::new("net.onnx")).unwrap();
    assert_eq!(file.layers(), inference(&described(network)), "{name}");
    assert_eq!((file.preprocessing(), file.name()), (ABOUT.preprocessing, "net"), "{name}");
    assert!(notes.is_empty(), "{name}: {notes:?}");
    assert_eq!(GraphFile::parse(&state.metadata["graph"], "").unwrap(), file, "{name}");
    let graph = file.build(2, file.size(), file.classes()).unwrap();
    let loaded = weights::from_state(&graph, state, 0).unwrap();
    assert_eq!(loaded.new_head, None);
    assert!(loaded.tensors == tensors, "{name}: the tensors differ");
}

#[test]
fn every_model_comes_back_from_onnx() {
    let mut families = HashSet::new();
    for spec in MODELS.iter() {
        // Some take images of one size only, or none so small.
        let network = spec.build(2, (64, 64), 7).or_else(|_| spec.build(2, spec.size(), 7)).unwrap();
        let values: usize = network.params().iter().map(|param| param.shape.stored_len()).sum();
        // Others of a family differ in numbers of layers and channels, and the largest of all in nothing else.
        let family = spec.name.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default();
        if spec.name != "resnet50" && (values > 13_000_000 || !families.insert(family)) {
            continue;
        }
        let tensors = weights::from_state(&network, numbers(&network), 0).unwrap().tensors;
        assert_comes_back(&spec.name, &network, &tensors);
    }
}

#[test]
fn every_operation_comes_back_from_onnx() {
    for (name, network, tensors) in networks() {
        // Counters are not a part of ONNX.
        let mut state = weights::to_state(&network, &tensors);
        for tensor in state.tensors.values_mut() {
            if let TensorData::I64(count) = &mut tensor.data {
                count.fill(0);
            }
        }
        let tensors = weights::from_state(&network, state, 0).unwrap().tensors;
        assert_comes_back(name, &network, &tensors);
        let folding = Folding::of(&network).unwrap();
        assert_comes_back(name, &folding.graph, &folding.tensors(&tensors).unwrap());
    }
}

#[test]
fn blocks_are_found_where_the_file_does_not_name_them() {
    let network = models::build("resnet18", 1, (32, 32), 3).unwrap();
    let tensors: Vec<HostTensor> = network.params().iter().map(|param| HostTensor::zeros(param.shape)).collect();
    let mut model = decoded(&network, &tensors, &ABOUT);
    model.metadata_props.retain(|entry| entry.key() != BLOCKS);
    assert_eq!(imported(&model).unwrap().file.layers(), described(&network));
}

#[test]
fn others_files_give_the_logits_of_onnxruntime() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    for name in GOLDENS {
        let Imported { file, state, .. } = load(&golden(&format!("{name}.onnx"))).unwrap();
        let mut expected = StateDict::load(golden(&format!("{name}.safetensors"))).unwrap();
        let mut take = |name: &str| match expected.tensors.remove(name).unwrap() {
            FileTensor { shape, data: TensorData::F32(values) } => (shape, values),
            other => panic!("{other:?}"),
        };
        let ((shape, images), (_, logits)) = (take("images"), take("logits"));
        let [n, c, h, w] = shape[..] else { panic!("{shape:?}") };
        assert_eq!(file.size(), (h, w), "{name}");
        let graph = file.build(n, (h, w), file.classes()).unwrap();
        let tensors = weights::from_state(&graph, state, 0).unwrap().tensors;
        let mut evaluator = Evaluator::new(&device, &graph, &tensors, Input::Values).unwrap();
        let images = layout::images_to_device(&images, [n, c, h, w]);
        let ours = evaluator.logits(Images::Values(&images)).unwrap();
        let apart = difference(&ours, &logits);
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

fn names(name: &str) -> Vec<(String, &'static str, Option<String>)> {
    let file = load(&golden(&format!("{name}.onnx"))).unwrap().file;
    let graph = file.build(1, file.size(), file.classes()).unwrap();
    graph.layers().iter().map(|layer| (layer.name.clone(), layer.kind.name(), layer.block.clone())).collect()
}

#[test]
fn layers_are_called_as_their_weights_or_modules_are() {
    let resnet = names("resnet");
    let list: Vec<(&str, &str)> = resnet.iter().map(|(name, kind, _)| (name.as_str(), *kind)).collect();
    assert_eq!(list[..4], [("conv1", "conv"), ("bn1", "bn"), ("relu", "relu"), ("maxpool", "max_pool")]);
    assert_eq!(
        list[4..11],
        [
            ("layer1.0.conv1", "conv"),
            ("layer1.0.bn1", "bn"),
            ("layer1.0.relu", "relu"),
            ("layer1.0.conv2", "conv"),
            ("layer1.0.bn2", "bn"),
            ("layer1.0.add", "add"),
            ("layer1.0.relu_1", "relu"),
        ]
    );
    assert_eq!(list[list.len() - 2..], [("avgpool", "avg_pool"), ("fc", "linear")]);
    let blocks: Vec<&str> = resnet[4..].iter().filter_map(|(.., block)| block.as_deref()).collect();
    assert_eq!(
        (blocks[0], blocks[6], blocks[7], blocks[blocks.len() - 1]),
        ("layer1.0", "layer1.0", "layer1.1", "layer2.0")
    );

    // Folded weights have no name of their own, and the modules still have.
    let folded: Vec<String> = names("resnet_folded").into_iter().map(|(name, ..)| name).collect();
    let unfolded: Vec<String> =
        resnet.iter().filter(|(_, kind, _)| *kind != "bn").map(|(name, ..)| name.clone()).collect();
    assert_eq!(folded, unfolded);
    let notes = load(&golden("resnet_folded.onnx")).unwrap().notes;
    let note = notes.last().unwrap();
    assert!(note.starts_with("the bias of `conv1` is no module's") && note.contains("optimize=False"), "{note}");
    assert_eq!(load(&golden("resnet.onnx")).unwrap().notes.len(), 1);

    let mobile = names("mobile");
    let first: Vec<(&str, &str)> =
        mobile.iter().skip(3).take(13).map(|(name, kind, _)| (name.as_str(), *kind)).collect();
    assert_eq!(
        first,
        [
            ("blocks.0.conv.0", "conv"),
            ("blocks.0.conv.1", "bn"),
            ("blocks.0.conv.2", "relu6"),
            ("blocks.0.conv.3", "conv"),
            ("blocks.0.conv.4", "bn"),
            ("blocks.0.conv.5", "relu6"),
            ("blocks.0.se.reducemean", "avg_pool"),
            ("blocks.0.se.fc1", "conv"),
            ("blocks.0.se.act", "relu"),
            ("blocks.0.se.fc2", "conv"),
            ("blocks.0.se.gate", "hard_sigmoid"),
            ("blocks.0.se.mul", "scale"),
            ("blocks.0.project", "conv"),
        ]
    );
    assert_eq!(mobile[2], ("stem.2".into(), "silu", None));
    // The second has no shortcut.
    let blocks = |prefix: &str| mobile.iter().find(|(name, ..)| name.starts_with(prefix)).unwrap().2.clone();
    assert_eq!((blocks("blocks.0"), blocks("blocks.1")), (Some("blocks.0".into()), None));

    let old: Vec<(String, &str)> = names("old").into_iter().map(|(name, kind, _)| (name, kind)).collect();
    let kinds: Vec<&str> = old.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, ["conv", "hard_swish", "conv", "hard_swish", "relu6", "avg_pool", "linear"]);
}

#[test]
fn padding_that_follows_the_size_stays_so() {
    let Imported { file, notes, .. } = load(&golden("same.onnx")).unwrap();
    let padding = |name: &str| file.layers().iter().find(|layer| layer.name == name).map(|layer| layer.op.clone());
    assert!(matches!(padding("net/stem/Conv2D"), Some(LayerOp::Conv { padding: Padding::Same, .. })));
    assert!(matches!(padding("net/pool/MaxPool"), Some(LayerOp::MaxPool { padding: Padding::Same, .. })));
    assert!(file.build(1, (64, 47), 9).is_ok());
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains("ImageNet's mean") && notes[1].contains("Softmax at the end is left out"), "{notes:?}");
    assert!(notes[2].contains("it has no batch norms, but convolutions with biases"), "{notes:?}");
    // What is flattened with its pixels has one size.
    let lenet = load(&golden("lenet.onnx")).unwrap().file;
    assert!(lenet.layers().iter().any(|layer| matches!(layer.op, LayerOp::Linear { taken: Taken::Image([2, 2]), .. })));
    assert!(lenet.build(1, lenet.size(), 9).is_ok());
    assert!(lenet.build(1, (32, 32), 5).is_err());
}

fn node<'a>(model: &'a mut ModelProto, op: &str) -> &'a mut NodeProto {
    model.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type() == op).unwrap()
}

pub(super) fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

fn set_ints(node: &mut NodeProto, name: &str, values: &[i64]) {
    let attribute = node.attribute.iter_mut().find(|attribute| attribute.name() == name).unwrap();
    attribute.ints = values.to_vec();
}

fn small() -> ModelProto {
    let (_, network, tensors) = networks().swap_remove(0);
    decoded(&network, &tensors, &ABOUT)
}

pub(super) fn node_of(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> NodeProto {
    let attribute = |&(name, values): &(&str, &[i64])| match values {
        [value] => int(name, *value),
        _ => AttributeProto { r#type: Some(AttributeType::Ints as i32), ints: values.to_vec(), ..int(name, 0) },
    };
    NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        attribute: attributes.iter().map(attribute).collect(),
        ..NodeProto::default()
    }
}

/// Values from a file's name on, none like the one beside it.
pub(super) fn tensor_of(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    let value = |i: usize| ((i + name.len()) % 97) as f32 / 97.0;
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some((0..count).flat_map(|i| value(i).to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

pub(super) fn number(name: &str, value: f32) -> TensorProto {
    TensorProto { dims: vec![], raw_data: Some(value.to_le_bytes().into()), ..tensor_of(name, &[]) }
}

/// A network of other nodes, from `images` of 16×16 pixels to the last one's output.
pub(super) fn network_of(nodes: Vec<NodeProto>, tensors: &[TensorProto]) -> ModelProto {
    let mut model = small();
    let graph = graph(&mut model);
    graph.output[0].name = nodes.last().map(|node| node.output[0].clone());
    (graph.node, graph.initializer) = (nodes, tensors.to_vec());
    model
}

/// The same, with a pooling behind it, for nodes that give images.
pub(super) fn pooled(mut nodes: Vec<NodeProto>, tensors: &[TensorProto]) -> ModelProto {
    let last = nodes.last().unwrap().output[0].clone();
    nodes.push(node_of("GlobalAveragePool", &[&last], "logits", &[]));
    network_of(nodes, tensors)
}

pub(super) fn floats<'a>(imported: &'a Imported, name: &str) -> &'a [f32] {
    match &imported.state.tensors[name].data {
        TensorData::F32(values) => values,
        TensorData::I64(_) => panic!("{name} holds integers"),
    }
}

#[test]
fn metadata_of_other_programs_is_not_read() {
    let mut model = small();
    assert_eq!(imported(&model).unwrap().file.preprocessing(), ABOUT.preprocessing);
    let mut strange = |key: &str, value: &str| {
        model.metadata_props.retain(|entry| entry.key() != key);
        model.metadata_props.push(StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) });
    };
    strange(MEAN, "[123.675, 116.28, 103.53]");
    strange(STD, "58.4 57.1 57.4");
    strange(BGR, "yes");
    strange(CLASSES, "cat,dog");
    strange(BLOCKS, "3");
    for producer in [None, Some("pytorch".to_owned())] {
        model.producer_name = producer;
        let Imported { file, state, notes } = imported(&model).unwrap();
        assert_eq!(file.preprocessing(), Preprocessing::torchvision(224, 256, Interpolation::Bilinear));
        assert!(notes.len() == 1 && notes[0].contains("ImageNet's mean"), "{notes:?}");
        assert!(!state.metadata.contains_key(CLASSES));
        assert!(file.layers().iter().any(|layer| layer.block.is_some()), "blocks are found without");
    }
    model.producer_name = Some("thawline".into());
    assert!(imported(&model).unwrap_err().contains("its metadata `std` cannot be read"));
}

#[test]
fn layers_that_share_a_tensor_are_named() {
    let shared = |others: usize| {
        let name = |i: usize| if i == 0 { "images".to_owned() } else { format!("c{i}") };
        let conv = |i: usize| node_of("Conv", &[&name(i), "w"], &name(i + 1), &[]);
        let nodes = (0..=others).map(conv).collect();
        imported(&pooled(nodes, &[tensor_of("w", &[3, 3, 1, 1])])).unwrap().notes
    };
    assert_eq!(shared(0), [""; 0]);
    let note = "`c2` shares a tensor with `c1` in the file; here each has its own, and trains it apart";
    assert_eq!(shared(1), [note]);
    assert!(shared(3)[0].contains("with `c1` in the file, and so do 2 more with others; here"), "{:?}", shared(3));
}

#[test]
fn zeros_around_an_image_are_padding_where_they_can_be() {
    let pads: &[i64] = &[0, 0, 1, 0, 0, 0, 1, 1];
    let pad = |x: &str| node_of("Pad", &[x], "padded", &[("pads", pads)]);
    let tensors = [tensor_of("w", &[4, 3, 3, 3]), number("three", 3.0), number("zero", 0.0), number("six", 6.0)];
    let conv = || node_of("Conv", &["images", "w"], "c", &[]);
    let read = |nodes: Vec<NodeProto>| imported(&pooled(nodes, &tensors));
    let pool = |kernel: i64| node_of("MaxPool", &["padded"], "pool", &[("kernel_shape", &[kernel, kernel])]);
    let own =
        |pads: &'static [i64]| node_of("MaxPool", &["padded"], "pool", &[("kernel_shape", &[3, 3]), ("pads", pads)]);

    let (zero_to_six, no_bounds): (&[&str], &[&str]) = (&["c", "zero", "six"], &["c"]);
    for (act, inputs) in [("Relu", no_bounds), ("Sigmoid", no_bounds), ("Clip", zero_to_six)] {
        for (pool, expected) in [(pool(3), [1, 0, 1, 1]), (own(&[0, 1, 1, 0]), [1, 1, 2, 1])] {
            let file = read(vec![conv(), node_of(act, inputs, "act", &[]), pad("act"), pool]).unwrap().file;
            match file.layers()[2].op {
                LayerOp::MaxPool { padding: Padding::Pixels(pixels), .. } => assert_eq!(pixels, expected, "{act}"),
                ref other => panic!("{other:?}"),
            }
        }
    }
    // The first would be negative without the zeros; and windows of zeros alone would be minus infinity.
    let padded = LayerOp::Pad { padding: [1, 0, 1, 1] };
    assert_eq!(read(vec![conv(), pad("c"), pool(3)]).unwrap().file.layers()[1].op, padded);
    let hard_swish = node_of("HardSwish", &["c"], "act", &[]);
    assert_eq!(read(vec![conv(), hard_swish, pad("act"), pool(3)]).unwrap().file.layers()[2].op, padded);
    let small = vec![conv(), node_of("Relu", &["c"], "act", &[]), pad("act"), pool(1)];
    assert_eq!(read(small).unwrap().file.layers()[2].op, padded);
    // An activation that is written out takes the zeros, too.
    let hard_swish = vec![
        conv(),
        pad("c"),
        node_of("Add", &["padded", "three"], "shifted", &[]),
        node_of("Clip", &["shifted", "zero", "six"], "clipped", &[]),
        node_of("Mul", &["padded", "clipped"], "product", &[]),
        node_of("Div", &["product", "six"], "act", &[]),
    ];
    let layers = read(hard_swish).unwrap().file.layers()[..3].to_vec();
    assert_eq!((&layers[1].op, &layers[2].op), (&padded, &LayerOp::Activation { act: Act::HardSwish }));
    // Twice is once with both, and nothing around is nothing.
    let twice = vec![
        node_of("Pad", &["images"], "first", &[("pads", &[0, 0, 1, 1, 0, 0, 0, 0])]),
        pad("first"),
        node_of("Pad", &["padded"], "same", &[("pads", &[0; 8])]),
        node_of("Conv", &["same", "w"], "c", &[]),
    ];
    match read(twice).unwrap().file.layers()[0].op {
        LayerOp::Conv { padding: Padding::Pixels(pixels), .. } => assert_eq!(pixels, [2, 1, 1, 1]),
        ref other => panic!("{other:?}"),
    }
    for (pads, expected) in [
        (&[0, 1, 0, 0, 0, 0, 0, 0][..], "are not those of images"),
        (&[0, 0, -1, 0, 0, 0, 0, 0], "-1 is no size"),
        (&[0, 0, 1], "are not two for each dimension"),
    ] {
        let error = read(vec![node_of("Pad", &["images"], "padded", &[("pads", pads)]), pool(3)]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn casts_to_what_cannot_hold_the_values_are_refused() {
    let cast = |to: DataType| {
        let nodes = vec![
            node_of("Conv", &["images", "w"], "c", &[]),
            node_of("Cast", &["c"], "cast", &[("to", &[to as i64])]),
            node_of("Relu", &["cast"], "r", &[]),
        ];
        imported(&pooled(nodes, &[tensor_of("w", &[4, 3, 3, 3])]))
    };
    for to in [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double] {
        assert_eq!(cast(to).unwrap().file.layers().len(), 3);
    }
    for to in [DataType::Int32, DataType::Int64, DataType::Uint8, DataType::Bool, DataType::Float8e4m3fn] {
        let error = cast(to).unwrap_err();
        assert!(error.contains(&format!("(Cast): to {} is not supported; to floats is", to.as_str_name())), "{error}");
    }
}

#[test]
fn linear_layers_are_read_in_every_form() {
    let (rows, columns) = (tensor_of("rows", &[5, 3]), tensor_of("columns", &[3, 5]));
    let bias = tensor_of("bias", &[5]);
    let read = |product: Vec<NodeProto>| {
        let mut nodes =
            vec![node_of("GlobalAveragePool", &["images"], "pool", &[]), node_of("Flatten", &["pool"], "flat", &[])];
        nodes.extend(product);
        imported(&network_of(nodes, &[rows.clone(), columns.clone()])).unwrap()
    };
    let stored = |tensor: &TensorProto| bytemuck::pod_collect_to_vec::<u8, f32>(tensor.raw_data());
    let turned: Vec<f32> = (0..15).map(|i| stored(&columns)[i % 3 * 5 + i / 3]).collect();
    let name = |imported: &Imported| imported.file.layers().last().unwrap().name.clone();
    let weight = |imported: &Imported| floats(imported, &format!("{}.weight", name(imported))).to_vec();

    let transpose = |x: &str| node_of("Transpose", &[x], "turned", &[("perm", &[1, 0])]);
    assert_eq!(weight(&read(vec![node_of("MatMul", &["flat", "columns"], "y", &[])])), turned);
    let unfolded = read(vec![transpose("rows"), node_of("MatMul", &["flat", "turned"], "y", &[])]);
    assert_eq!(weight(&unfolded), stored(&rows));
    let bias_of = |imported: &Imported| match imported.file.layers().last().unwrap().op {
        LayerOp::Linear { bias, taken: Taken::Pixel, .. } => bias,
        ref other => panic!("{other:?}"),
    };
    assert!(!bias_of(&unfolded) && unfolded.state.tensors.len() == 1);
    assert_eq!(weight(&read(vec![node_of("Gemm", &["flat", "rows"], "y", &[("transB", &[1])])])), stored(&rows));
    assert_eq!(weight(&read(vec![transpose("rows"), node_of("Gemm", &["flat", "turned"], "y", &[])])), stored(&rows));
    let turned_twice = vec![transpose("columns"), node_of("Gemm", &["flat", "turned"], "y", &[("transB", &[1])])];
    assert_eq!(weight(&read(turned_twice)), turned);

    // A bias that is a constant, before its product and behind it.
    let mut constant = node_of("Constant", &[], "bias", &[("value", &[0])]);
    (constant.attribute[0].r#type, constant.attribute[0].t) = (Some(AttributeType::Tensor as i32), Some(bias.clone()));
    let product = node_of("MatMul", &["flat", "columns"], "product", &[]);
    let add = node_of("Add", &["product", "bias"], "y", &[]);
    for nodes in [[constant.clone(), product.clone(), add.clone()], [product, constant, add]] {
        let biased = read(nodes.into());
        assert!(bias_of(&biased));
        assert_eq!(floats(&biased, &format!("{}.bias", name(&biased))), stored(&bias));
    }
    // What is flat already stays so.
    let twice = |axis: i64| {
        vec![
            node_of("Flatten", &["flat"], "again", &[("axis", &[axis])]),
            node_of("MatMul", &["again", "columns"], "y", &[]),
        ]
    };
    for axis in [1, -1] {
        assert_eq!(weight(&read(twice(axis))), turned);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    type Change = fn(&mut ModelProto);
    let cases: [(&str, Change); 32] = [
        ("it holds no graph", |m| m.graph = None),
        ("it uses operator set 1; export it again with 7 or later", |m| m.opset_import.clear()),
        ("node `conv1` (Sin): the operator is not supported; supported are Add, AveragePool", |m| {
            node(m, "Conv").op_type = Some("Sin".into());
        }),
        ("node `conv1` (Resize): layers that enlarge images are not supported", |m| {
            node(m, "Conv").op_type = Some("Resize".into());
        }),
        ("node `conv1` (PRelu): a slope that trains is not supported; LeakyRelu is", |m| {
            node(m, "Conv").op_type = Some("PRelu".into());
        }),
        ("node `conv1` (Conv): operators of `com.microsoft` are not supported", |m| {
            node(m, "Conv").domain = Some("com.microsoft".into());
        }),
        ("node `conv1` (Conv): its attribute `beak` is not supported", |m| {
            node(m, "Conv").attribute.push(int("beak", 1));
        }),
        ("node `conv1` (Conv): dilation is not supported", |m| {
            let mut dilations = int("dilations", 0);
            (dilations.r#type, dilations.ints) = (Some(AttributeType::Ints as i32), vec![2, 2]);
            node(m, "Conv").attribute.push(dilations);
        }),
        ("node `conv1` (Conv): its `strides` is not of the kind INTS", |m| {
            node(m, "Conv").attribute[1].r#type = Some(AttributeType::Float as i32);
        }),
        ("-1 is no size; sizes are from 0 to", |m| set_ints(node(m, "Conv"), "pads", &[-1, 0, 0, 0])),
        ("9223372036854775807 is no size", |m| set_ints(node(m, "Conv"), "strides", &[i64::MAX, 1])),
        ("`padding` is at most 1024", |m| set_ints(node(m, "Conv"), "pads", &[1 << 20, 0, 0, 0])),
        ("`kernel` and `stride` are from 1", |m| set_ints(node(m, "Conv"), "strides", &[0, 1])),
        ("its `kernel_shape` is not the [3, 3] of its weights", |m| set_ints(node(m, "Conv"), "kernel_shape", &[5, 5])),
        ("in 3 groups do not take the 3 channels that it gets", |m| {
            node(m, "Conv").attribute.last_mut().unwrap().i = Some(3);
        }),
        ("it reads `nothing`, which nothing before it gives", |m| node(m, "Conv").input[0] = "nothing".into()),
        ("it reads `bn1.output`, which nothing before it gives", |m| node(m, "Conv").input[0] = "bn1.output".into()),
        ("`conv1.output` is given by two nodes", |m| node(m, "Relu").output[0] = "conv1.output".into()),
        ("its input `images` is not constant, as weights are", |m| node(m, "Conv").input[1] = "images".into()),
        ("its input 1 is missing", |m| node(m, "Conv").input.truncate(1)),
        ("tensor `conv1.weight` cannot have the shape [-16,", |m| graph(m).initializer[0].dims[0] = -16),
        ("tensor `conv1.weight` cannot have the shape", |m| graph(m).initializer[0].dims = vec![i64::MAX; 4]),
        ("tensor `conv1.weight` has the shape [16, 3, 3, 3], but", |m| {
            graph(m).initializer[0].raw_data.as_mut().unwrap().pop();
        }),
        ("tensor `conv1.weight` has the unknown number type 99", |m| graph(m).initializer[0].data_type = Some(99)),
        ("tensor `conv1.weight` holds BOOL where floats are wanted", |m| {
            graph(m).initializer[0].data_type = Some(DataType::Bool as i32);
        }),
        ("`conv1.weight` is there twice", |m| {
            let twice = graph(m).initializer[0].clone();
            graph(m).initializer.push(twice);
        }),
        ("(BatchNormalization): its `momentum` of 1 is not supported; from 0 up to but not including 1", |m| {
            node(m, "BatchNormalization").attribute[1].f = Some(1.0);
        }),
        ("it has 0 outputs; a network has one, its logits", |m| graph(m).output.clear()),
        ("it has 0 inputs; a network has one, its images", |m| graph(m).input.clear()),
        ("its metadata `mean` cannot be read", |m| m.metadata_props[0].value = Some("[1, 2]".into())),
        ("its metadata `preprocessing` cannot be read", |m| {
            m.metadata_props.iter_mut().find(|entry| entry.key() == "preprocessing").unwrap().value = Some("{}".into());
        }),
        ("`std` is [1.0, 0.0, 1.0]: expected numbers above 0", |m| {
            m.metadata_props.retain(|entry| entry.key() != "preprocessing");
            m.metadata_props[1].value = Some("[1, 0, 1]".into());
        }),
    ];
    let model = small();
    assert!(imported(&model).is_ok());
    for (expected, change) in cases {
        let mut changed = model.clone();
        change(&mut changed);
        let error = imported(&changed).unwrap_err();
        assert!(error.starts_with("net.onnx is refused: ") && error.contains(expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// Gives the images other sizes; 0 leaves one open.
pub(super) fn set_images(model: &mut ModelProto, dims: [i64; 4]) {
    use super::proto::tensor_shape_proto::dimension::Value;
    let Some(super::proto::type_proto::Value::TensorType(kind)) =
        graph(model).input[0].r#type.as_mut().unwrap().value.as_mut()
    else {
        panic!("the input is a tensor")
    };
    for (dim, size) in kind.shape.as_mut().unwrap().dim.iter_mut().zip(dims) {
        dim.value = Some(Value::DimValue(size));
    }
}

#[test]
fn images_that_are_none_are_refused() {
    let changed = |dims: [i64; 4]| {
        let mut model = small();
        set_images(&mut model, dims);
        imported(&model)
    };
    assert_eq!(changed([1, 3, 32, 16]).unwrap().file.size(), (32, 16));
    assert_eq!(changed([1, 3, 0, 0]).unwrap().file.size(), (224, 224), "open");
    assert_eq!(changed([-1, 3, -1, -1]).unwrap().file.size(), (224, 224), "open, as Paddle has it");
    for (dims, expected) in [
        ([1, 1, 28, 28], "is not of images with three channels"),
        ([1, 3, 1 << 40, 1 << 40], "is too large"),
        ([1, 3, i64::MAX, i64::MAX], "is too large"),
    ] {
        let error = changed(dims).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn dropout_is_read_with_its_rate() {
    let mut model = small();
    let pool = graph(&mut model).node.iter().position(|node| node.op_type() == "GlobalAveragePool").unwrap();
    let name = graph(&mut model).node[pool].output[0].clone();
    let dropout = NodeProto {
        op_type: Some("Dropout".into()),
        name: Some("/drop/Dropout".into()),
        input: vec!["before".into(), "ratio".into()],
        output: vec![name],
        ..NodeProto::default()
    };
    graph(&mut model).node[pool].output[0] = "before".into();
    graph(&mut model).node.insert(pool + 1, dropout);
    graph(&mut model).initializer.push(TensorProto {
        name: Some("ratio".into()),
        data_type: Some(DataType::Float as i32),
        float_data: vec![0.25],
        ..TensorProto::default()
    });
    let file = imported(&model).unwrap().file;
    let dropout = file.layers().iter().find(|layer| layer.name == "drop").unwrap();
    assert_eq!(dropout.op, LayerOp::Dropout { rate: 0.25 });
}

#[test]
fn tensors_in_another_file_are_read_from_beside_it_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = small();
    let expected = imported(&model).unwrap();
    let tensor = &mut graph(&mut model).initializer[0];
    let bytes = tensor.raw_data.take().unwrap();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data =
        vec![entry("location", "net.data"), entry("offset", "8"), entry("length", &bytes.len().to_string())];
    std::fs::write(folder.path().join("net.data"), [&[0; 8][..], &bytes, &[0; 8]].concat()).unwrap();
    let path = folder.path().join("net.onnx");
    let load_with = |change: &dyn Fn(&mut TensorProto)| {
        let mut model = model.clone();
        change(&mut graph(&mut model).initializer[0]);
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        load(&path).map_err(|error| error.to_string())
    };
    assert_eq!(load_with(&|_| {}).unwrap().state.tensors, expected.state.tensors);
    let here = load_with(&|t| t.external_data[0].value = Some("./net.data".into()));
    assert_eq!(here.unwrap().state.tensors, expected.state.tensors);
    for location in ["../net.data", "/etc/hostname", "", "./../x", "a\\..\\b"] {
        let error = load_with(&|t| t.external_data[0].value = Some(location.into())).unwrap_err();
        assert!(error.contains("which is not beside this one"), "{error}");
    }
    let error = load_with(&|t| t.external_data[1].value = Some("99999999".into())).unwrap_err();
    assert!(error.contains("is not in `net.data`, which is too short"), "{error}");
    let error = load_with(&|t| t.external_data[2].value = Some("-1".into())).unwrap_err();
    assert!(error.contains("has no number as its length"), "{error}");
    let error = load_with(&|t| t.external_data[0].value = Some("gone.data".into())).unwrap_err();
    assert!(error.contains("cannot read"), "{error}");
    assert!(imported(&model).unwrap_err().contains("is in another file"));
}

#[test]
fn memory_is_bounded() {
    // A message of two bytes takes hundreds in memory.
    let many = |key: &[u8], count: usize| {
        let nodes: Vec<u8> = key.iter().copied().cycle().take(key.len() * count).collect();
        let mut bytes = vec![0x3a];
        let mut length = nodes.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(nodes);
        parse(&bytes, Path::new("net.onnx")).unwrap_err().to_string()
    };
    // Nodes, initialisers, descriptions of values; functions and subgraphs are in other fields.
    for key in [&[0x0a, 0][..], &[0x2a, 0], &[0x6a, 0]] {
        let error = many(key, 1_000_000);
        assert!(error.contains("more than 200000 parts"), "{error}");
    }
    let error = many(&[0x7a, 0x10, 0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 0], 150_000);
    assert!(error.contains("bytes of functions, subgraphs or the like"), "{error}");
    // Subgraphs within subgraphs.
    let mut deep = Vec::new();
    for _ in 0..2000 {
        let attribute = [vec![0x32], varint(deep.len()), deep].concat();
        let node = [vec![0x2a], varint(attribute.len()), attribute].concat();
        deep = [vec![0x0a], varint(node.len()), node].concat();
    }
    let deep = [vec![0x3a], varint(deep.len()), deep].concat();
    let error = parse(&deep, Path::new("net.onnx")).unwrap_err().to_string();
    assert!(error.contains("failed to decode Protobuf message") && error.len() < 400, "{error}");
    // One tensor for many layers.
    let mut model = small();
    let shared = &mut graph(&mut model).initializer[0];
    shared.dims = vec![512, 512, 3, 3];
    shared.raw_data = Some(vec![0; 512 * 512 * 9 * 4]);
    let name = shared.name.clone();
    let conv = |i: usize| NodeProto {
        op_type: Some("Conv".into()),
        input: vec![if i == 0 { "first".into() } else { format!("c{}", i - 1) }, name.clone().unwrap()],
        output: vec![format!("c{i}")],
        attribute: vec![],
        ..NodeProto::default()
    };
    let first = TensorProto {
        name: Some("w".into()),
        dims: vec![512, 3, 1, 1],
        data_type: Some(DataType::Float as i32),
        raw_data: Some(vec![0; 512 * 3 * 4]),
        ..TensorProto::default()
    };
    let mut pads = int("pads", 0);
    (pads.r#type, pads.ints) = (Some(AttributeType::Ints as i32), vec![1; 4]);
    let shared = graph(&mut model);
    shared.initializer.push(first);
    shared.node = vec![NodeProto {
        op_type: Some("Conv".into()),
        input: vec!["images".into(), "w".into()],
        output: vec!["first".into()],
        ..NodeProto::default()
    }];
    shared.node.extend((0..60).map(conv).map(|node| NodeProto { attribute: vec![pads.clone()], ..node }));
    shared.output[0].name = Some("c59".into());
    // What is claimed to be in another file makes no room.
    for claimed in [None, Some(1 << 40)] {
        let mut model = model.clone();
        graph(&mut model).initializer.extend(claimed.map(|values| TensorProto {
            dims: vec![values],
            raw_data: None,
            data_location: Some(DataLocation::External as i32),
            ..tensor_of("unused", &[0])
        }));
        let error = imported(&model).unwrap_err();
        assert!(error.contains("layers share tensors until their weights take more than 8 times"), "{error}");
    }
}

/// More than may be copied of tensors that layers share.
#[test]
fn weights_are_counted_wherever_they_are() {
    let (first, a, b) =
        (tensor_of("first", &[512, 3, 1, 1]), tensor_of("a", &[512, 512, 3, 3]), tensor_of("b", &[512, 512, 3, 3]));
    let nodes = vec![
        node_of("Conv", &["images", "first"], "x", &[]),
        node_of("Conv", &["x", "a"], "y", &[]),
        node_of("Conv", &["y", "b"], "z", &[]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    let read = |nodes: Vec<NodeProto>, tensors: &[TensorProto]| {
        std::fs::write(&path, pooled(nodes, tensors).encode_to_vec()).unwrap();
        load(&path).unwrap().state.tensors
    };
    let expected = read(nodes.clone(), &[first.clone(), a.clone(), b.clone()]);
    let constant = |tensor: &TensorProto| {
        let mut node = node_of("Constant", &[], tensor.name(), &[("value", &[0])]);
        (node.attribute[0].r#type, node.attribute[0].t) = (Some(AttributeType::Tensor as i32), Some(tensor.clone()));
        node
    };
    let with_constants = [&[constant(&a), constant(&b)], &nodes[..]].concat();
    assert!(read(with_constants, std::slice::from_ref(&first)) == expected);
    let outside = |tensor: &TensorProto| {
        let file = format!("{}.data", tensor.name());
        std::fs::write(folder.path().join(&file), tensor.raw_data()).unwrap();
        let location = StringStringEntryProto { key: Some("location".into()), value: Some(file) };
        let data_location = Some(DataLocation::External as i32);
        TensorProto { raw_data: None, data_location, external_data: vec![location], ..tensor.clone() }
    };
    assert!(read(nodes, &[first, outside(&a), outside(&b)]) == expected);
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[test]
fn cut_files_are_refused() {
    for name in GOLDENS {
        let bytes = std::fs::read(golden(&format!("{name}.onnx"))).unwrap();
        for end in (0..bytes.len()).step_by(bytes.len() / 150 + 1) {
            let error = parse(&bytes[..end], Path::new("net.onnx")).unwrap_err().to_string();
            assert!(error.starts_with("net.onnx is ") && error.len() < 2000, "{error}");
        }
    }
}

/// Whatever a file holds, reading it ends without a panic, and what is read can be built.
#[test]
fn changed_files_do_no_harm() {
    let mut rng = Rng::new(17);
    for name in GOLDENS {
        let original = std::fs::read(golden(&format!("{name}.onnx"))).unwrap();
        // The structure is at the beginning and the end, and tensors in between.
        for _ in 0..250 {
            let mut bytes = original.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len());
                match rng.below(5) {
                    0 => bytes[at] ^= 1 << rng.below(8),
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
                    2 => {
                        bytes.remove(at);
                    }
                    3 => bytes.insert(at, rng.below(256) as u8),
                    _ => {
                        let from = rng.below(bytes.len());
                        let length = rng.below(64).min(bytes.len() - at.max(from));
                        bytes.copy_within(from..from + length, at);
                    }
                }
            }
            if let Ok(Imported { file, state, .. }) = parse(&bytes, Path::new("net.onnx")) {
                let graph = file.build(1, file.size(), file.classes()).unwrap();
                weights::from_state(&graph, state, 0).unwrap();
            }
        }
    }
}
