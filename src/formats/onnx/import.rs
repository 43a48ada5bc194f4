//! From ONNX to a graph file and its weights. `docs/graph.md` has the table of what becomes what.

use super::names::find_blocks;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto, type_proto};
use super::reader::{Named, Node, Reader};
use super::{BGR, BLOCKS, MEAN, PRODUCER, STD, bounds};
use crate::formats::{CLASSES, ModelFile, Opening, map_file};
use crate::graph::GraphError;
use crate::models::{Entry, GRAPH, GraphAbout, GraphFile, LayerOp};
use crate::preprocessing::{Interpolation, PREPROCESSING, Preprocessing};
use crate::text::{message, printable};
use crate::weights::{StateDict, WeightsError};
use prost::Message;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Height and width of the images, where the file leaves them open.
const DEFAULT_SIZE: usize = 224;

/// The first set of operators that broadcasts as later ones do.
const OLDEST_OPSET: i64 = 7;

/// A network from an ONNX file.
#[derive(Clone, PartialEq, Debug)]
pub struct Imported {
    pub file: GraphFile,
    /// The weights under the names of the file's layers, with the graph in the metadata.
    pub state: StateDict,
    /// What the user should know of how the file was understood.
    pub notes: Vec<String>,
}

/// Reads an ONNX file.
///
/// # Errors
/// It cannot be read, is damaged, or holds what is not supported: names the node and its operator.
pub fn load(path: &Path) -> Result<Imported, WeightsError> {
    let bytes = map_file(path)?;
    let folder = path.parent();
    // `Path::parent` of a bare name is empty, and joins to the same.
    let mut imported = read(&bytes, path, folder)?;
    imported.state.origin = Some(path.into());
    Ok(imported)
}

/// As [`load`]. The graph is in the metadata, as it is in what is saved from it.
pub(in crate::formats) fn open(opening: &Opening<'_>) -> Result<ModelFile, WeightsError> {
    let Opening { path, bytes, set, format } = *opening;
    if set.is_some() {
        return Err(WeightsError::OneSet { path: path.into(), format: format.facts().name });
    }
    let Imported { mut state, notes, .. } = read(bytes, path, path.parent())?;
    state.origin = Some(path.into());
    state.notes = notes;
    Ok(ModelFile { format, tensors: state, network: None })
}

/// Reads the bytes of an ONNX file; `path` says in messages where they came from, and is not looked at.
///
/// # Errors
/// Those of [`load`], or tensors are in another file.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Imported, WeightsError> {
    read(bytes, path, None)
}

fn read(bytes: &[u8], path: &Path, folder: Option<&Path>) -> Result<Imported, WeightsError> {
    let malformed = |reason: String| WeightsError::Malformed { path: path.into(), format: "ONNX", reason };
    bounds::check(bytes).map_err(malformed)?;
    let model = ModelProto::decode(bytes).map_err(|error| malformed(printable(&error.to_string())))?;
    if let Some(node) =
        model.graph.as_ref().and_then(|graph| graph.node.iter().find(|node| is_of_integers(node.op_type())))
    {
        return Err(WeightsError::Quantised { path: path.into(), how: printable(node.op_type()) });
    }
    let name = path.file_stem().map_or_else(|| "onnx".into(), |stem| stem.to_string_lossy().into_owned());
    imported(&model, &printable(&name), folder)
        .map_err(|reason| WeightsError::Refused { path: path.into(), reason: message(&reason) })
}

fn imported(model: &ModelProto, name: &str, folder: Option<&Path>) -> Result<Imported, String> {
    let graph = model.graph.as_ref().ok_or("it holds no graph")?;
    let opset = model.opset_import.iter().find(|set| is_onnx(set.domain())).map_or(1, |set| set.version());
    if opset < OLDEST_OPSET {
        return Err(format!("it uses operator set {opset}; export it again with {OLDEST_OPSET} or later"));
    }
    if !graph.sparse_initializer.is_empty() {
        return Err("it holds sparse tensors, which are not supported".into());
    }
    let images = images(graph)?;
    let [logits] = &graph.output[..] else {
        return Err(format!("it has {} outputs; a network has one, its logits", graph.output.len()));
    };
    let metadata = Metadata::of(model);
    let mut notes = Vec::new();
    let mean = metadata.json::<[f32; 3]>(MEAN)?;
    let std = metadata.json::<[f32; 3]>(STD)?;
    if mean.is_none() || std.is_none() {
        notes.push(
            "the file does not say how images are prepared, and what torchvision does for ImageNet is assumed: the shorter side \
             to 256/224 of the network's size, the centre cut out, ImageNet's mean and deviation; say otherwise by \
             --resize, --crop, --interpolation, --mean and --std"
                .to_owned(),
        );
    }

    let nodes = needed(graph, logits.name())?;
    // Paddle ends with one.
    let logits = nodes.iter().rev().fold(logits.name(), |name, node| match &node.proto.input[..] {
        [from] if node.op_type() == "Identity" && node.output() == name => from.as_str(),
        _ => name,
    });
    let mut reader = Reader::new(graph, &nodes, images, folder, logits)?;
    for node in nodes {
        reader.read(node)?;
    }
    let Named { mut layers, weights, notes: found, nameless } = reader.finish()?;
    notes.extend(found);
    notes.extend(nameless.and_then(|layer| folded(&layer, model, &layers)));
    match metadata.json::<BTreeMap<String, Vec<String>>>(BLOCKS)? {
        Some(blocks) => {
            let of: HashMap<&str, &String> = blocks
                .iter()
                .flat_map(|(block, layers)| layers.iter().map(move |layer| (layer.as_str(), block)))
                .collect();
            for layer in &mut layers {
                layer.block = of.get(layer.name.as_str()).map(|block| (*block).clone());
            }
        }
        None => find_blocks(&mut layers),
    }
    let imagenet = Preprocessing::torchvision(224, 256, Interpolation::Bilinear);
    let preprocessing = match metadata.json::<Preprocessing>(PREPROCESSING)? {
        Some(whole) => whole,
        None => Preprocessing {
            mean: mean.unwrap_or(imagenet.mean),
            std: std.unwrap_or(imagenet.std),
            bgr: metadata.json(BGR)?.unwrap_or(false),
            ..imagenet
        },
    };
    let about = GraphAbout { name: name.into(), size: (images.h, images.w), preprocessing };
    let file = GraphFile::new(about, layers).map_err(graph_error)?;
    let mut state = StateDict { tensors: weights, ..StateDict::default() };
    state.metadata.insert(GRAPH.into(), file.json());
    if let Some(classes) = metadata.json::<Vec<String>>(CLASSES)? {
        state.metadata.insert(CLASSES.into(), serde_json::Value::from(classes).to_string());
    }
    Ok(Imported { file, state, notes })
}

/// What to say of a convolution whose bias seems to be what is left of a batch norm.
fn folded(layer: &str, model: &ModelProto, layers: &[Entry]) -> Option<String> {
    let is_norm =
        |op: &LayerOp| matches!(op, LayerOp::Bn { .. } | LayerOp::LayerNorm { .. } | LayerOp::GroupNorm { .. });
    match model.producer_name() {
        PRODUCER => None,
        "pytorch" => Some(format!(
            "the bias of `{layer}` is no module's: batch norms seem to be folded into convolutions in the file, and cannot be \
             trained then; torch.onnx.export keeps them with optimize=False, or with dynamo=False, \
             training=torch.onnx.TrainingMode.PRESERVE and do_constant_folding=False, of a model in eval()"
        )),
        // What other programs call a bias is not known.
        _ if layers.iter().any(|layer| is_norm(&layer.op)) => None,
        _ => Some(
            "it has no batch norms, but convolutions with biases: if the network had some, the file has them folded, and they \
             cannot be trained; export it again so that they stay"
                .into(),
        ),
    }
}

pub(super) fn graph_error(error: GraphError) -> String {
    error.to_string()
}

/// Whether an operator computes with 8-bit integers, or makes them of floats and back, as quantised networks do.
fn is_of_integers(operator: &str) -> bool {
    // QLinearConv, QLinearMatMul, and onnxruntime's QLinearAdd, QLinearGlobalAveragePool, QGemm, …
    operator.starts_with("QLinear")
        || matches!(
            operator,
            "QuantizeLinear"
                | "DequantizeLinear"
                | "DynamicQuantizeLinear"
                | "ConvInteger"
                | "MatMulInteger"
                | "QGemm"
                | "DynamicQuantizeMatMul"
                | "MatMulIntegerToFloat"
        )
}

pub(super) fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// What a model of ours says of itself; nothing if another program wrote it, whose keys may mean something else.
struct Metadata<'a>(HashMap<&'a str, &'a str>);

impl<'a> Metadata<'a> {
    fn of(model: &'a ModelProto) -> Self {
        let ours = model.metadata_props.iter().filter(|_| model.producer_name() == PRODUCER);
        Self(ours.map(|entry| (entry.key(), entry.value())).collect())
    }

    fn json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let wrong = |error| format!("its metadata `{key}` cannot be read: {error}");
        self.0.get(key).map(|text| serde_json::from_str(text).map_err(wrong)).transpose()
    }
}

/// The images that a network takes.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) name: &'a str,
    pub(super) h: usize,
    pub(super) w: usize,
    /// Whether channels come last.
    pub(super) nhwc: bool,
    /// How many images there are, if the file says that.
    pub(super) batch: Option<usize>,
}

fn images(graph: &GraphProto) -> Result<Images<'_>, String> {
    let initialisers: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let inputs: Vec<&ValueInfoProto> =
        graph.input.iter().filter(|input| !initialisers.contains(input.name())).collect();
    let [input] = inputs[..] else {
        return Err(format!("it has {} inputs; a network has one, its images", inputs.len()));
    };
    let wrong = |what: &str| format!("its input `{}` {what}", input.name());
    let Some(type_proto::Value::TensorType(kind)) = input.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
        return Err(wrong("is no tensor"));
    };
    if !matches!(DataType::try_from(kind.elem_type()), Ok(DataType::Float | DataType::Float16 | DataType::Bfloat16)) {
        return Err(wrong("is not of floats; only normalised images are supported"));
    }
    let dims = kind.shape.as_ref().map_or(&[][..], |shape| &shape.dim[..]);
    let [batch, one, two, three] = dims else {
        return Err(wrong("has not the four dimensions of images"));
    };
    let size = |dim: &Dimension| match &dim.value {
        // Paddle has −1 where a dimension is open.
        Some(dimension::Value::DimValue(size)) => usize::try_from(*size).ok(),
        Some(dimension::Value::DimParam(_)) | None => None,
    };
    let (one, two, three) = (size(one), size(two), size(three));
    let (channels, h, w) = if one != Some(3) && three == Some(3) { (three, one, two) } else { (one, two, three) };
    if channels != Some(3) {
        return Err(wrong("is not of images with three channels, [N, 3, H, W]"));
    }
    let side = |size: Option<usize>| size.filter(|&size| size > 0).unwrap_or(DEFAULT_SIZE);
    let batch = size(batch).filter(|&batch| batch > 0);
    Ok(Images { name: input.name(), h: side(h), w: side(w), nhwc: one != Some(3), batch })
}

/// The nodes that `output` follows from, in order.
fn needed<'a>(graph: &'a GraphProto, output: &str) -> Result<Vec<Node<'a>>, String> {
    let mut from: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if from.insert(name, index).is_some() {
                return Err(format!("`{name}` is given by two nodes"));
            }
        }
    }
    let mut wanted = vec![false; graph.node.len()];
    let mut names = vec![output];
    while let Some(name) = names.pop() {
        if let Some(&index) = from.get(name)
            && !wanted[index]
        {
            wanted[index] = true;
            names.extend(graph.node[index].input.iter().map(String::as_str));
        }
    }
    let nodes = graph.node.iter().enumerate().map(|(index, proto)| Node { index, proto });
    Ok(nodes.filter(|node| wanted[node.index]).collect())
}
