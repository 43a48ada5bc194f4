//! From ONNX to a graph file and its weights. `docs/graph.md` has the table of what becomes what.

use super::names::find_blocks;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto};
use super::reader::{Reader, Value};
use super::{BGR, BLOCKS, CLASSES, MEAN, PRODUCER, STD, bounds};
use crate::graph::GraphError;
use crate::models::{GRAPH, GraphAbout, GraphFile};
use crate::preprocessing::{Interpolation, PREPROCESSING, Preprocessing};
use crate::weights::{StateDict, WeightsError, map_file, printable};
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
    let name = path.file_stem().map_or_else(|| "onnx".into(), |stem| stem.to_string_lossy().into_owned());
    imported(&model, &printable(&name), folder)
        .map_err(|reason| WeightsError::Refused { path: path.into(), reason: printable_line(&reason) })
}

/// Messages quote names of the file.
fn printable_line(reason: &str) -> String {
    const LONGEST: usize = 1000;
    reason
        .chars()
        .take(LONGEST)
        .flat_map(|c| if c.is_control() { c.escape_debug().collect::<Vec<_>>() } else { vec![c] })
        .collect()
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
    let mut reader = Reader::new(graph, &nodes, images, folder, logits.name())?;
    for (index, node) in nodes {
        reader.read(node).map_err(|reason| format!("node {} ({}): {reason}", label(index, node), node.op_type()))?;
    }
    match reader.values.get(logits.name()) {
        Some(Value::Layer(output)) if !output.is_padded() => {}
        _ => return Err(format!("its output `{}` is not what a layer gives", logits.name())),
    }
    let sharing = reader.sharing_note();
    let Reader { mut layers, weights, notes: found, assembly, .. } = reader;
    assembly.finish().map_err(graph_error)?;
    notes.extend(found.into_iter().chain(sharing));
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

pub(super) fn graph_error(error: GraphError) -> String {
    error.to_string()
}

pub(super) fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

fn label(index: usize, node: &NodeProto) -> String {
    if node.name().is_empty() { index.to_string() } else { format!("`{}`", printable(node.name())) }
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
    let [_, one, two, three] = dims else {
        return Err(wrong("has not the four dimensions of images"));
    };
    let size = |dim: &Dimension| match &dim.value {
        Some(dimension::Value::DimValue(size)) => {
            usize::try_from(*size).map(Some).map_err(|_| wrong("has a dimension below zero"))
        }
        Some(dimension::Value::DimParam(_)) | None => Ok(None),
    };
    let (one, two, three) = (size(one)?, size(two)?, size(three)?);
    let (channels, h, w) = if one != Some(3) && three == Some(3) { (three, one, two) } else { (one, two, three) };
    if channels != Some(3) {
        return Err(wrong("is not of images with three channels, [N, 3, H, W]"));
    }
    let side = |size: Option<usize>| size.filter(|&size| size > 0).unwrap_or(DEFAULT_SIZE);
    Ok(Images { name: input.name(), h: side(h), w: side(w), nhwc: one != Some(3) })
}

/// The nodes that `output` follows from, in order, and their places in the file. Constants come first: they read nothing,
/// and whoever reads one may have to know it before.
fn needed<'a>(graph: &'a GraphProto, output: &str) -> Result<Vec<(usize, &'a NodeProto)>, String> {
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
    let nodes = || graph.node.iter().enumerate().filter(|&(index, _)| wanted[index]);
    let is_constant = |node: &NodeProto| node.op_type() == "Constant";
    Ok(nodes().filter(|(_, node)| is_constant(node)).chain(nodes().filter(|(_, node)| !is_constant(node))).collect())
}
