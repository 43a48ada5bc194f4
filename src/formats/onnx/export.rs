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
use super::{BGR, BLOCKS, MEAN, PRODUCER, STD};
use crate::export::{ExportError, layer, logits, unsupported};
use crate::formats::CLASSES;
use crate::graph::{Act, Conv2d, Graph, LayerKind, Op, Taken, Window};
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
                let taken = Taken::of(window, network.node(node.inputs[0]).shape);
                let linear = layer.kind == LayerKind::Linear && taken != Taken::EachPixel;
                let x = if linear { flatten(&mut nodes, operand(0)) } else { image()? };
                let mut inputs = vec![x, param("weight")];
                if layer.kind == LayerKind::Linear && !linear {
                    // The matrix, as the weights of a convolution.
                    let [_, _, _, out] = network.param(layer.params[0]).shape.0;
                    let shape = format!("{}.shape", layer.name);
                    inputs[1] = format!("{}.kernel", layer.name);
                    nodes.push(constant(
                        &shape,
                        ints("value_ints", &[out, network.param(layer.params[0]).channels, 1, 1]),
                    ));
                    nodes.push(operation("Reshape", &inputs[1], vec![param("weight"), shape], &inputs[1], vec![]));
                }
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
                    Act::Elu => ("Elu", vec![name], vec![]),
                    Act::Tanh => ("Tanh", vec![name], vec![]),
                    Act::Softplus => ("Softplus", vec![name], vec![]),
                    Act::LeakyRelu(slope) => ("LeakyRelu", vec![name], vec![float("alpha", slope.value())]),
                    Act::ScaleBy(factor) => {
                        let by = format!("{}.factor", layer.name);
                        nodes.push(constant(&by, float("value_float", factor.value())));
                        ("Mul", vec![name, by], vec![])
                    }
                    Act::Mish => {
                        let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                        let softplus = parts.of("Softplus", &[&name]);
                        let gate = parts.of("Tanh", &[&softplus]);
                        ("Mul", vec![name, gate], vec![])
                    }
                    // Operator set 17 has no GELU.
                    Act::Gelu | Act::GeluTanh => {
                        let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                        let bent = match act {
                            Act::Gelu => {
                                let scaled = parts.times(&name, std::f32::consts::FRAC_1_SQRT_2);
                                parts.of("Erf", &[&scaled])
                            }
                            _ => {
                                let square = parts.of("Mul", &[&name, &name]);
                                let cube = parts.of("Mul", &[&square, &name]);
                                let bend = parts.times(&cube, 0.044_715);
                                let sum = parts.of("Add", &[&name, &bend]);
                                let scaled = parts.times(&sum, 0.797_884_6);
                                parts.of("Tanh", &[&scaled])
                            }
                        };
                        let one = parts.number(1.0);
                        let gate = parts.of("Add", &[&bent, &one]);
                        let half = parts.times(&name, 0.5);
                        ("Mul", vec![half, gate], vec![])
                    }
                };
                (op, inputs, attributes, flat)
            }
            Op::Scale { mean: false } if layer.kind == LayerKind::LayerScale => {
                let Value { name, flat } = operand(0);
                let by = format!("{}.factors", layer.name);
                let shape = format!("{}.shape", layer.name);
                let sizes = [1, node.shape.c(), 1, 1];
                nodes.push(constant(&shape, ints("value_ints", if flat { &sizes[..2] } else { &sizes })));
                nodes.push(operation("Reshape", &by, vec![layer.name.clone(), shape], &by, vec![]));
                ("Mul", vec![name, by], vec![], flat)
            }
            Op::Concat => {
                let operands: Vec<Value> = (0..node.inputs.len()).map(operand).collect();
                let flat = operands.iter().any(|value| value.flat);
                let names = operands.into_iter().map(|x| if flat { flatten(&mut nodes, x) } else { x.name }).collect();
                ("Concat", names, vec![int("axis", 1)], flat)
            }
            Op::Slice { begin, channels, accumulate: false } => {
                let Value { name, flat } = operand(0);
                let bounds = [("begin", begin), ("end", begin + channels), ("axis", 1)].map(|(part, number)| {
                    let bound = format!("{}.{part}", layer.name);
                    nodes.push(constant(&bound, ints("value_ints", &[number])));
                    bound
                });
                ("Slice", [&[name], &bounds[..]].concat(), vec![], flat)
            }
            Op::Shuffle { groups } => {
                let Value { name, flat } = operand(0);
                let c = node.shape.c();
                let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                let cut = parts.reshaped(&name, &[0, groups, c / groups, node.shape.h() * node.shape.w()]);
                let turned = parts.with("Transpose", &[&cut], vec![ints("perm", &[0, 2, 1, 3])]);
                let sizes = [0, c, node.shape.h(), node.shape.w()];
                let shape = parts.shape(if flat { &sizes[..2] } else { &sizes });
                ("Reshape", vec![turned, shape], vec![], flat)
            }
            Op::Binary => {
                let x = flatten(&mut nodes, operand(0));
                let pads = format!("{}.pads", layer.name);
                nodes.push(constant(&pads, ints("value_ints", &[0, 1, 0, 0])));
                ("Pad", vec![x, pads], vec![], true)
            }
            Op::Pad { padding: [top, left, bottom, right] } => {
                let pads = format!("{}.pads", layer.name);
                nodes.push(constant(&pads, ints("value_ints", &[0, 0, top, left, 0, 0, bottom, right])));
                ("Pad", vec![image()?, pads], vec![], false)
            }
            Op::LayerNorm { eps, moments: false } => {
                let Value { name, flat } = operand(0);
                let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                let last =
                    if flat { name } else { parts.with("Transpose", &[&name], vec![ints("perm", &[0, 2, 3, 1])]) };
                let attributes = vec![int("axis", -1), float("epsilon", eps)];
                match flat {
                    true => ("LayerNormalization", vec![last, param("weight"), param("bias")], attributes, true),
                    false => {
                        let (gamma, beta) = (param("weight"), param("bias"));
                        let inputs = [last.as_str(), &gamma, &beta];
                        let normalised = parts.with("LayerNormalization", &inputs, attributes);
                        ("Transpose", vec![normalised], vec![ints("perm", &[0, 3, 1, 2])], false)
                    }
                }
            }
            // Operator set 17 has norms over the pixels of a channel, of which each group becomes one.
            Op::GroupNorm { eps, groups, moments: false } => {
                let Value { name, flat } = operand(0);
                let [_, h, w, c] = node.shape.0;
                let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                let cut = parts.reshaped(&name, &[0, groups, c / groups * h * w]);
                let [ones, zeros] = [1.0, 0.0].map(|value| parts.row(&vec![value; groups]));
                let attributes = vec![float("epsilon", eps)];
                let normalised = parts.with("InstanceNormalization", &[&cut, &ones, &zeros], attributes);
                let sizes = if flat { vec![0, c] } else { vec![0, c, h, w] };
                let whole = parts.reshaped(&normalised, &sizes);
                let row = if flat { vec![c] } else { vec![c, 1, 1] };
                let [gamma, beta] = ["weight", "bias"].map(|tensor| parts.reshaped(&param(tensor), &row));
                ("Add", vec![parts.of("Mul", &[&whole, &gamma]), beta], vec![], flat)
            }
            Op::Add { act: Act::Identity, mask: false } | Op::Scale { mean: false } | Op::Multiply => {
                let (a, mut b) = (operand(0), operand(1));
                if let (Op::Scale { .. }, false, true) = (&node.op, a.flat, b.flat) {
                    // A gate that a linear layer gives.
                    let mut parts = Parts { nodes: &mut nodes, layer: &layer.name };
                    b = Value { name: parts.reshaped(&b.name, &[0, node.shape.c(), 1, 1]), flat: false };
                }
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
            Op::AvgPool { window, counted } => {
                let x = network.node(node.inputs[0]).shape;
                let of_counted = Window { padding: counted, ..window };
                let mut attributes = Vec::from(window_attributes(window));
                if counted == window.padding {
                    attributes.extend((counted != [0; 4]).then(|| int("count_include_pad", 1)));
                } else if counted != [0; 4] && of_counted.ceil([x.h(), x.w()]) == window {
                    attributes = window_attributes(of_counted).into();
                    attributes.extend([int("count_include_pad", 1), int("ceil_mode", 1)]);
                } else if counted != [0; 4] {
                    return Err(unsupported(network, id));
                }
                match window.kernel == [x.h(), x.w()] && window.padding == [0; 4] {
                    true => ("GlobalAveragePool", vec![image()?], vec![], false),
                    false => ("AveragePool", vec![image()?], attributes, false),
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

/// Nodes that a layer is put together of, besides its last.
struct Parts<'a> {
    nodes: &'a mut Vec<NodeProto>,
    layer: &'a str,
}

impl Parts<'_> {
    fn name(&self, op: &str) -> String {
        format!("{}.{}{}", self.layer, op.to_lowercase(), self.nodes.len())
    }

    fn with(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = self.name(op);
        let inputs = inputs.iter().map(|&input| input.to_owned()).collect();
        self.nodes.push(operation(op, &name, inputs, &name, attributes));
        name
    }

    fn of(&mut self, op: &str, inputs: &[&str]) -> String {
        self.with(op, inputs, Vec::new())
    }

    fn number(&mut self, value: f32) -> String {
        let name = self.name("Constant");
        self.nodes.push(constant(&name, float("value_float", value)));
        name
    }

    fn row(&mut self, values: &[f32]) -> String {
        let name = self.name("Constant");
        let floats = AttributeProto { floats: values.to_vec(), ..attribute("value_floats", AttributeType::Floats) };
        self.nodes.push(constant(&name, floats));
        name
    }

    fn times(&mut self, x: &str, factor: f32) -> String {
        let factor = self.number(factor);
        self.of("Mul", &[x, &factor])
    }

    fn shape(&mut self, sizes: &[usize]) -> String {
        let name = self.name("Constant");
        self.nodes.push(constant(&name, ints("value_ints", sizes)));
        name
    }

    fn reshaped(&mut self, x: &str, sizes: &[usize]) -> String {
        let shape = self.shape(sizes);
        self.of("Reshape", &[x, &shape])
    }
}

fn constant(name: &str, value: AttributeProto) -> NodeProto {
    operation("Constant", name, Vec::new(), name, vec![value])
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
