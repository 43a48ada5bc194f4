//! Networks as ONNX, for inference by other programs: opset 17, IR version 8.
//!
//! The input `images` is `[batch, 3, H, W]`, normalised values; the output `logits` is `[batch, classes]`. Initialisers
//! have the names and layouts of a weights file. Every value in between is called after the layer that gives it, as
//! `layer1.0.conv1.output`, so it meets neither those names nor an initialiser's.
//!
//! | layer | ONNX |
//! |---|---|
//! | convolution | `Conv` |
//! | batch norm | `BatchNormalization` in inference mode |
//! | ReLU, ReLU6, sigmoid, hard-swish, hard-sigmoid | `Relu`, `Clip`, `Sigmoid`, `HardSwish`, `HardSigmoid` |
//! | SiLU | `Sigmoid` and `Mul` |
//! | addition, gate, max pooling | `Add`, `Mul`, `MaxPool` |
//! | dropout, stochastic depth | nothing |
//! | average pooling | `GlobalAveragePool` over whole images, else `AveragePool` |
//! | linear | `Flatten`, where it reads an image, and `Gemm` |

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use super::{BGR, BLOCKS, CLASSES, MEAN, PRODUCER, STD};
use crate::export::{ExportError, layer, logits, unsupported};
use crate::graph::{Act, Conv2d, Graph, LayerKind, Op, Window};
use crate::preprocessing::{PREPROCESSING, Preprocessing};
use crate::tensor::HostTensor;
use crate::weights::{self, ExpectedKind, TensorData, write_atomically};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;

const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// The bounds of ReLU6, which are inputs of `Clip`. No layer's tensors are called so.
const ZERO: &str = "zero";
const SIX: &str = "six";

/// What protobuf's readers accept at most.
pub const MAX_BYTES: u64 = i32::MAX as u64;

/// What a file says beside the network itself.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The network's name.
    pub model: &'a str,
    /// How images become what the network takes. The file holds it as JSON, and mean, deviation and order of the channels each
    /// by itself, too.
    pub preprocessing: Preprocessing,
    /// Names of the classes in the order of their labels, if they are known.
    pub classes: Option<&'a [String]>,
    /// Images per batch; `None` leaves that to the reader.
    pub batch: Option<usize>,
}

/// Writes `network` with one tensor a parameter as an ONNX file, atomically. The same contents give the same bytes.
///
/// # Errors
/// Those of [`encode`], or the file cannot be written; what was there stays.
///
/// # Panics
/// `tensors` are not the network's.
pub fn save(path: &Path, network: &Graph, tensors: &[HostTensor], about: &About<'_>) -> Result<(), ExportError> {
    let bytes = encode(network, tensors, about)?;
    write_atomically(path, |file| file.write_all(&bytes))
        .map_err(|source| ExportError::Write { path: path.into(), source })
}

/// The bytes of [`save`].
///
/// # Errors
/// The network is compiled, has a convolution or pooling behind a linear layer, or is larger than [`MAX_BYTES`].
///
/// # Panics
/// `tensors` are not the network's.
pub fn encode(network: &Graph, tensors: &[HostTensor], about: &About<'_>) -> Result<Vec<u8>, ExportError> {
    // Before anything of that size is made.
    let expected = weights::expected(network);
    let floats = expected.iter().filter(|tensor| tensor.kind == ExpectedKind::Float);
    fits(floats.map(|tensor| tensor.shape.iter().map(|&size| size as u64).product::<u64>() * 4).sum())?;
    let model = model(network, tensors, about)?;
    fits(model.encoded_len() as u64)?;
    Ok(model.encode_to_vec())
}

fn fits(bytes: u64) -> Result<(), ExportError> {
    if bytes > MAX_BYTES { Err(ExportError::TooLarge { bytes, most: MAX_BYTES }) } else { Ok(()) }
}

fn model(network: &Graph, tensors: &[HostTensor], about: &About<'_>) -> Result<ModelProto, ExportError> {
    let batch = match about.batch {
        Some(batch) => dimension::Value::DimValue(batch as i64),
        None => dimension::Value::DimParam("batch".into()),
    };
    let fixed = |size: usize| dimension::Value::DimValue(size as i64);
    let nodes = nodes(network)?;
    let classes = network.node(logits(network)?).shape.c();
    let input = network.input_shape().map(|images| {
        let dims = [batch.clone(), fixed(images.c()), fixed(images.h()), fixed(images.w())];
        let doc = match about.preprocessing.bgr {
            false => "NCHW: red, green and blue from 0 to 1, less `mean`, over `std` of the metadata",
            true => {
                "NCHW: blue, green and red from 0 to 1, less `mean`, over `std` of the metadata, which begin with red"
            }
        };
        value("images", dims, doc)
    });
    let graph = GraphProto {
        node: nodes,
        name: Some(about.model.into()),
        initializer: initialisers(network, tensors),
        input: input.into_iter().collect(),
        output: vec![value("logits", [batch, fixed(classes)], "one a class; their softmax is the probability")],
        ..GraphProto::default()
    };
    // The `Debug` form of an array is JSON, and has the shortest digits that give the same f32.
    let Preprocessing { mean, std, bgr, .. } = about.preprocessing;
    let mut metadata = vec![(MEAN, format!("{mean:?}")), (STD, format!("{std:?}"))];
    metadata.extend(bgr.then(|| (BGR, "true".to_owned())));
    metadata.push((PREPROCESSING, about.preprocessing.json()));
    metadata.extend(about.classes.map(|names| (CLASSES, serde_json::Value::from(names).to_string())));
    let mut blocks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for layer in network.layers() {
        if let Some(block) = &layer.block {
            blocks.entry(block).or_default().push(&layer.name);
        }
    }
    metadata.extend((!blocks.is_empty()).then(|| (BLOCKS, serde_json::json!(blocks).to_string())));
    let metadata =
        metadata.into_iter().map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value) });
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        producer_name: Some(PRODUCER.into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(graph),
        metadata_props: metadata.collect(),
        ..ModelProto::default()
    })
}

fn value<const N: usize>(name: &str, dims: [dimension::Value; N], doc: &str) -> ValueInfoProto {
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).into();
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        doc_string: Some(doc.into()),
        ..ValueInfoProto::default()
    }
}

/// The tensors of a weights file, less the counters, which inference has no use for; and the bounds of ReLU6.
fn initialisers(network: &Graph, tensors: &[HostTensor]) -> Vec<TensorProto> {
    assert_eq!(network.params().len(), tensors.len(), "one tensor a parameter");
    let files = network.params().iter().zip(tensors).flat_map(|(p, tensor)| weights::to_file(network, p, &tensor.data));
    let floats = files.filter_map(|(name, file)| match file.data {
        TensorData::F32(values) => Some(initialiser(name, &file.shape, &values)),
        TensorData::I64(_) => None,
    });
    let clips = network.layers().iter().any(|layer| layer.kind == LayerKind::Activation(Act::Relu6));
    let bounds = [(ZERO, 0.0), (SIX, 6.0)].map(|(name, bound)| initialiser(name.into(), &[], &[bound]));
    floats.chain(bounds.into_iter().filter(|_| clips)).collect()
}

fn initialiser(name: String, shape: &[usize], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name),
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: Some(DataType::Float as i32),
        // ONNX's raw data is little-endian on every machine.
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// The value that a node of the network became.
#[derive(Clone)]
struct Value {
    name: String,
    /// `[N, C]` instead of `[N, C, H, W]`, as linear layers take and give it.
    flat: bool,
}

fn nodes(network: &Graph) -> Result<Vec<NodeProto>, ExportError> {
    let mut nodes: Vec<NodeProto> = Vec::new();
    let mut values: Vec<Option<Value>> = vec![None; network.nodes().count()];
    for (id, node) in network.nodes() {
        let Some(layer) = layer(network, id) else {
            let Op::Input = node.op else { return Err(unsupported(network, id)) };
            values[id.index()] = Some(Value { name: "images".into(), flat: false });
            continue;
        };
        let operand = |i: usize| values[node.inputs[i].index()].clone().expect("operands come first");
        let image = || match operand(0) {
            Value { flat: true, .. } => Err(ExportError::NoImage { node: network.label(id) }),
            Value { name, .. } => Ok(name),
        };
        let param = |tensor: &str| format!("{}.{tensor}", layer.name);
        let (op, inputs, attributes, flat) = match node.op {
            // An initialiser.
            Op::Param(_) => continue,
            Op::Conv2d(Conv2d { window, groups, bias, residual: false, act: Act::Identity, mask: false }) => {
                let linear = layer.kind == LayerKind::Linear;
                let x = if linear { flatten(&mut nodes, operand(0)) } else { image()? };
                let mut inputs = vec![x, param("weight")];
                inputs.extend(bias.then(|| param("bias")));
                match linear {
                    true => ("Gemm", inputs, vec![int("transB", 1)], true),
                    false => {
                        let group = int("group", groups.count(node.shape.c()) as i64);
                        ("Conv", inputs, window_attributes(window).into_iter().chain([group]).collect(), false)
                    }
                }
            }
            Op::BatchNorm { eps } => {
                let keep = float("momentum", layer.averaging.keep);
                let Value { name, flat } = operand(0);
                let tensors = ["weight", "bias", "running_mean", "running_var"].map(param);
                ("BatchNormalization", [&[name], &tensors[..]].concat(), vec![float("epsilon", eps), keep], flat)
            }
            Op::Activation { act, mask: false } => {
                let Value { name, flat } = operand(0);
                let (op, inputs, attributes) = match act {
                    Act::Identity => return Err(unsupported(network, id)),
                    Act::Relu => ("Relu", vec![name], vec![]),
                    Act::Relu6 => ("Clip", vec![name, ZERO.into(), SIX.into()], vec![]),
                    Act::Sigmoid => ("Sigmoid", vec![name], vec![]),
                    Act::HardSwish => ("HardSwish", vec![name], vec![]),
                    Act::HardSigmoid => {
                        ("HardSigmoid", vec![name], vec![float("alpha", 1.0 / 6.0), float("beta", 0.5)])
                    }
                    Act::Silu => {
                        let gate = format!("{}.sigmoid", layer.name);
                        nodes.push(operation("Sigmoid", &gate, vec![name.clone()], &gate, vec![]));
                        ("Mul", vec![name, gate], vec![])
                    }
                };
                (op, inputs, attributes, flat)
            }
            Op::Add { act: Act::Identity, mask: false } | Op::Scale { mean: false } => {
                let (a, b) = (operand(0), operand(1));
                // [N, C] and [N, C, 1, 1] would be broadcast against each other.
                let flat = a.flat || b.flat;
                let terms = [a, b].map(|x| if flat { flatten(&mut nodes, x) } else { x.name });
                let op = if let Op::Add { .. } = node.op { "Add" } else { "Mul" };
                (op, terms.into(), vec![], flat)
            }
            Op::Dropout { residual: false, .. } => {
                values[id.index()] = Some(operand(0));
                continue;
            }
            Op::MaxPool { window, argmax: false } => {
                ("MaxPool", vec![image()?], window_attributes(window).into(), false)
            }
            Op::AvgPool { window } => {
                let x = network.node(node.inputs[0]).shape;
                match window.kernel == [x.h(), x.w()] {
                    true => ("GlobalAveragePool", vec![image()?], vec![], false),
                    false => ("AveragePool", vec![image()?], window_attributes(window).into(), false),
                }
            }
            _ => return Err(unsupported(network, id)),
        };
        let name = format!("{}.output", layer.name);
        nodes.push(operation(op, &layer.name, inputs, &name, attributes));
        values[id.index()] = Some(Value { name, flat });
    }
    let logits = values[logits(network)?.index()].clone().expect("every layer has a value");
    let logits = flatten(&mut nodes, logits);
    for name in nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if *name == logits {
            *name = "logits".into();
        }
    }
    Ok(nodes)
}

/// The name of `value` as `[N, C]`.
fn flatten(nodes: &mut Vec<NodeProto>, value: Value) -> String {
    if value.flat {
        return value.name;
    }
    let name = format!("{}.flatten", value.name);
    if nodes.iter().all(|node| node.name() != name) {
        nodes.push(operation("Flatten", &name, vec![value.name], &name, vec![]));
    }
    name
}

fn operation(op: &str, name: &str, input: Vec<String>, output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some(name.into()),
        input,
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

/// The order of [`Window`] is ONNX's: height before width, the paddings before those after.
fn window_attributes(window: Window) -> [AttributeProto; 3] {
    [ints("kernel_shape", &window.kernel), ints("strides", &window.stride), ints("pads", &window.padding)]
}

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&value| value as i64).collect();
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind as i32), ..AttributeProto::default() }
}
