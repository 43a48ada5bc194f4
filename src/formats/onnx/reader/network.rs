//! The layers that nodes became: which of them the output needs, what they are called, and their weights.

use super::Node;
use super::constant::Constant;
use crate::formats::onnx::names::{clean, parents, plain, scope};
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor;
use crate::graph::GraphError;
use crate::models::{Assembly, Entry, IMAGES, LayerOp, MAX_LAYERS};
use crate::tensor::Shape;
use crate::weights::FileTensor;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How many times the bytes of the file its weights may take: layers may share a tensor, and each gets its own copy.
const MAX_GROWTH: usize = 8;
const MAX_GROWTH_FROM: usize = 16 << 20;

/// A layer, or the images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct LayerId(usize);

impl LayerId {
    pub(super) const IMAGES: Self = Self(0);
}

/// One tensor of a layer.
#[derive(Clone)]
pub(super) struct Weights<'a> {
    /// Its name behind the layer's, if it is not the layer's own.
    part: &'static str,
    values: Constant<'a>,
    /// Their dimensions in a weights file.
    dims: Vec<usize>,
    /// Whether they have the other sign here.
    negative: bool,
}

impl<'a> Weights<'a> {
    pub(super) fn new(part: &'static str, values: Constant<'a>) -> Self {
        Self { part, dims: values.dims.clone(), values, negative: false }
    }

    pub(super) fn shaped(self, dims: Vec<usize>) -> Self {
        Self { dims, ..self }
    }

    /// So many of the first dimension's, from one on, each so far from the other.
    pub(super) fn every(&self, first: usize, count: usize, step: usize) -> Self {
        let values = self.values.sliced(0, first, count, step as isize);
        Self { part: self.part, dims: values.dims.clone(), values, negative: self.negative }
    }

    /// The same as a matrix, if it is one in the file.
    pub(super) fn as_matrix(&self) -> Option<Self> {
        let (tensor, _) = self.values.tensor().filter(|(tensor, _)| tensor.dims.len() == 2)?;
        let [rows, columns] = tensor.dims[..] else { return None };
        let values = self.values.reshaped(&[usize::try_from(rows).ok()?, usize::try_from(columns).ok()?])?;
        (values.dims[0] == self.dims[0]).then(|| Self {
            part: self.part,
            dims: values.dims.clone(),
            values,
            negative: self.negative,
        })
    }

    pub(super) fn called(self, part: &'static str) -> Self {
        Self { part, ..self }
    }

    pub(super) fn negated_if(mut self, negated: bool) -> Self {
        self.negative ^= negated;
        self
    }
}

/// What the user should know of a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Note {
    Training,
    Affine,
    Negated,
    Split,
    PlainNorm,
    Standardised,
}

impl Note {
    /// What is to be said of layers: of the first one by name.
    fn text(self, layers: &[String]) -> String {
        let name = layers.first().map_or("", String::as_str);
        let more = match layers.len() {
            0 | 1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        let what = match self {
            Self::Training => "is in training mode in the file; what it does here is a policy's business",
            Self::Affine => {
                "multiplies by and adds constants in the file; here they are the weights and the bias of a convolution of each \
                 channel, and train as such"
            }
            Self::Negated => "is subtracted in the file; here its weights have the other sign, and it is added",
            Self::Split => {
                "gives several channels for each in the file; here that is as many convolutions of each channel"
            }
            Self::PlainNorm => "lacks γ or β in the file, and gets ones or zeros, which train",
            Self::Standardised => {
                "normalises its weights in the file; here that is done already, and they train as they are"
            }
        };
        format!("`{name}`{more} {what}")
    }
}

#[derive(Clone)]
struct Draft<'a> {
    node: Node<'a>,
    op: LayerOp,
    inputs: Vec<LayerId>,
    weights: Vec<Weights<'a>>,
    shape: [usize; 3],
    note: Option<Note>,
}

impl Draft<'_> {
    /// Whether it is a convolution whose bias a file has, but not as `NAME.bias`.
    fn has_nameless_bias(&self) -> bool {
        let bias = self.weights.iter().find(|weights| weights.part == "bias");
        let tensor = bias.and_then(|bias| bias.values.tensor());
        matches!(self.op, LayerOp::Conv { .. }) && tensor.is_some_and(|(tensor, _)| !tensor.name().ends_with(".bias"))
    }
}

pub(super) struct Network<'a> {
    drafts: Vec<Draft<'a>>,
    assembly: Assembly,
    images: [usize; 3],
    /// Scopes that hold others, of node names as PyTorch writes them.
    containers: HashSet<String>,
    folder: Option<&'a Path>,
    /// Bytes of tensors that are there: in the file, and in others that were read.
    stored: usize,
    /// What was left out of the file.
    pub(super) left_out: Vec<String>,
}

/// The layers that the output needs, and all about them.
pub(in crate::formats::onnx) struct Named {
    pub(in crate::formats::onnx) layers: Vec<Entry>,
    pub(in crate::formats::onnx) weights: BTreeMap<String, FileTensor>,
    pub(in crate::formats::onnx) notes: Vec<String>,
    /// A convolution whose bias is called after no module, as if it were what is left of a batch norm.
    pub(in crate::formats::onnx) nameless: Option<String>,
}

impl<'a> Network<'a> {
    pub(super) fn new(
        graph: &'a GraphProto,
        size: (usize, usize),
        folder: Option<&'a Path>,
        stored: usize,
    ) -> Result<Self, GraphError> {
        let scopes = graph.node.iter().filter_map(|node| scope(node.name()));
        Ok(Self {
            drafts: Vec::new(),
            assembly: Assembly::new(1, size)?,
            images: [3, size.0, size.1],
            containers: scopes.flat_map(|scope| parents(&scope)).collect(),
            folder,
            stored,
            left_out: Vec::new(),
        })
    }

    pub(super) fn shape(&self, layer: LayerId) -> [usize; 3] {
        self.draft(layer).map_or(self.images, |draft| draft.shape)
    }

    fn draft(&self, layer: LayerId) -> Option<&Draft<'a>> {
        self.drafts.get(layer.0.checked_sub(1)?)
    }

    pub(super) fn push(
        &mut self,
        node: Node<'a>,
        op: LayerOp,
        inputs: Vec<LayerId>,
        weights: Vec<Weights<'a>>,
    ) -> Result<LayerId, String> {
        self.push_draft(Draft { node, op, inputs, weights, shape: [0; 3], note: None })
    }

    fn push_draft(&mut self, mut draft: Draft<'a>) -> Result<LayerId, String> {
        if self.drafts.len() == MAX_LAYERS {
            return Err(format!("a network has at most {MAX_LAYERS} layers"));
        }
        let id = LayerId(self.drafts.len() + 1);
        let inputs = draft.inputs.iter().map(|input| number(*input)).collect();
        let Shape([_, h, w, c]) =
            self.assembly.add(&entry(number(id), draft.op.clone(), inputs)).map_err(|error| error.reason)?;
        draft.shape = [c, h, w];
        self.drafts.push(draft);
        Ok(id)
    }

    pub(super) fn note(&mut self, layer: LayerId, note: Note) {
        if let Some(draft) = layer.0.checked_sub(1).and_then(|index| self.drafts.get_mut(index)) {
            draft.note = Some(note);
        }
    }

    /// The same convolution or linear layer with a bias, if it has none.
    pub(super) fn with_bias(&mut self, layer: LayerId, bias: &Weights<'a>) -> Result<Option<LayerId>, String> {
        let Some(mut draft) = self.draft(layer).cloned() else { return Ok(None) };
        match &mut draft.op {
            LayerOp::Conv { bias, .. } | LayerOp::Linear { bias, .. } if !*bias => *bias = true,
            _ => return Ok(None),
        }
        draft.weights.push(Weights { part: "bias", ..bias.clone() });
        self.push_draft(draft).map(Some)
    }

    /// The same layer with the other sign, if it ends in a product or a sum with weights.
    pub(super) fn negated(&mut self, layer: LayerId) -> Result<Option<LayerId>, String> {
        let Some(mut draft) = self.draft(layer).cloned() else { return Ok(None) };
        match draft.op {
            LayerOp::Conv { .. } | LayerOp::Linear { .. } | LayerOp::Bn { .. } => {}
            LayerOp::LayerNorm { .. } | LayerOp::LayerScale { .. } => {}
            _ => return Ok(None),
        }
        for weights in &mut draft.weights {
            weights.negative ^= !weights.part.starts_with("running");
        }
        draft.note = Some(Note::Negated);
        self.push_draft(draft).map(Some)
    }

    /// Whether a layer follows from the mean or the greatest of all pixels, and from nothing else.
    pub(super) fn is_pooled(&self, mut layer: LayerId) -> bool {
        // Far more than a gate takes.
        for _ in 0..16 {
            match self.draft(layer) {
                Some(draft) if matches!(draft.op, LayerOp::GlobalAvgPool {} | LayerOp::GlobalMaxPool {}) => {
                    return true;
                }
                Some(Draft { inputs, .. }) if inputs.len() == 1 => layer = inputs[0],
                _ => return false,
            }
        }
        false
    }

    /// The layers that `output` follows from, under their names, which end in it.
    pub(super) fn named(mut self, output: LayerId) -> Result<Named, String> {
        let mut names = Names::new(std::mem::take(&mut self.containers));
        let mut named = HashMap::from([(LayerId::IMAGES, IMAGES.to_owned())]);
        let needed = self.needed(output);
        for &id in &needed {
            named.extend(self.draft(id).map(|draft| (id, names.of(draft))));
        }
        let name = |id: LayerId| named.get(&id).cloned().unwrap_or_default();
        let mut store = Store { folder: self.folder, stored: self.stored, copied: 0, files: HashSet::new() };
        let mut owners: HashMap<(*const TensorProto, usize), LayerId> = HashMap::new();
        let mut sharing = Vec::new();
        let mut noted: BTreeMap<Note, Vec<String>> = BTreeMap::new();
        let notes = std::mem::take(&mut self.left_out);
        let mut all = Named { layers: Vec::new(), weights: BTreeMap::new(), notes, nameless: None };
        for &id in &needed {
            let Some(draft) = self.draft(id) else { continue };
            let inputs = draft.inputs.iter().map(|&input| name(input)).collect();
            all.layers.push(entry(name(id), draft.op.clone(), inputs));
            if let Some(note) = draft.note {
                noted.entry(note).or_default().push(name(id));
            } else if draft.has_nameless_bias() && all.nameless.is_none() {
                all.nameless = Some(name(id));
            }
            for weights in &draft.weights {
                let values = store.load(weights).map_err(|reason| draft.node.refused(&reason))?;
                let part = if weights.part.is_empty() { name(id) } else { format!("{}.{}", name(id), weights.part) };
                all.weights.insert(part, FileTensor::f32(weights.dims.clone(), values));
                if let Some((tensor, offset)) = weights.values.tensor() {
                    let owner = *owners.entry((tensor, offset)).or_insert(id);
                    sharing.extend((owner != id).then(|| (name(id), name(owner))));
                }
            }
        }
        all.notes.extend(noted.iter().map(|(note, layers)| note.text(layers)));
        all.notes.extend(sharing_note(&sharing));
        Ok(all)
    }

    /// In their order.
    fn needed(&self, output: LayerId) -> Vec<LayerId> {
        let mut wanted = vec![false; self.drafts.len() + 1];
        let mut layers = vec![output];
        while let Some(layer) = layers.pop() {
            if let Some(draft) = self.draft(layer)
                && !std::mem::replace(&mut wanted[layer.0], true)
            {
                layers.extend(&draft.inputs);
            }
        }
        (1..wanted.len()).filter(|&index| wanted[index]).map(LayerId).collect()
    }
}

/// Names layers, each by another one.
struct Names {
    /// Names that are taken, each with the number that tells the next one of that name apart.
    taken: HashMap<String, usize>,
    containers: HashSet<String>,
}

impl Names {
    fn new(containers: HashSet<String>) -> Self {
        Self { taken: HashMap::from([(IMAGES.into(), 2)]), containers }
    }

    fn of(&mut self, draft: &Draft<'_>) -> String {
        let name = match (&draft.op, &draft.weights[..]) {
            (_, []) => self.weightless(&draft.node),
            (LayerOp::LayerScale { .. }, [factors, ..]) => {
                let own = factors.values.tensor().map(|(tensor, _)| tensor.name());
                let own = own.filter(|name| !name.is_empty() && !name.starts_with('/') && !name.contains("::"));
                let free = own.filter(|name| !self.taken.contains_key(&clean(name)));
                free.map_or_else(|| self.weightless(&draft.node), str::to_owned)
            }
            (_, weights) => self.weighted(&draft.node, weights),
        };
        self.unique(&name)
    }

    fn weighted(&self, node: &NodeProto, weights: &[Weights<'_>]) -> String {
        let scope = scope(node.name()).filter(|scope| !scope.is_empty() && !self.containers.contains(scope));
        let of_tensor = |weights: &Weights<'_>| {
            let (tensor, _) = weights.values.tensor()?;
            let (layer, part) = tensor.name().rsplit_once('.')?;
            ["weight", "bias", "running_mean", "running_var"].contains(&part).then(|| layer.to_owned())
        };
        // PyTorch's exporter stores equal tensors once, so a name may be another layer's. Those of moments are seldom equal.
        let (moments, others): (Vec<_>, Vec<_>) =
            weights.iter().partition(|weights| weights.part.starts_with("running"));
        let free = |name: &String| !self.taken.contains_key(&clean(name));
        let tensors = moments.into_iter().chain(others).filter_map(of_tensor);
        scope.into_iter().chain(tensors).find(free).unwrap_or_else(|| plain(node))
    }

    fn weightless(&self, node: &NodeProto) -> String {
        match scope(node.name()) {
            Some(scope) if scope.is_empty() => node.op_type().to_lowercase(),
            Some(scope) if self.containers.contains(&scope) => format!("{scope}.{}", node.op_type().to_lowercase()),
            Some(scope) => scope,
            None => plain(node),
        }
    }

    fn unique(&mut self, name: &str) -> String {
        let wanted = clean(name);
        let mut name = wanted.clone();
        while self.taken.contains_key(&name) {
            let number = self.taken.entry(wanted.clone()).or_insert(2);
            name = format!("{wanted}_{number}");
            *number += 1;
        }
        self.taken.insert(name.clone(), 2);
        name
    }
}

/// Reads weights, and counts them.
struct Store<'a> {
    folder: Option<&'a Path>,
    stored: usize,
    /// Bytes of weights that were read so far.
    copied: usize,
    files: HashSet<PathBuf>,
}

impl Store<'_> {
    fn load(&mut self, Weights { values, negative, .. }: &Weights<'_>) -> Result<Vec<f32>, String> {
        let tensor = values.tensor().map(|(tensor, _)| tensor);
        // Another file counts once it is read, and once only: tensors may claim any size, and the same bytes.
        if let Some(tensor) = tensor
            && let Some(file) = tensor::file(tensor, self.folder)?
            && !self.files.contains(&file)
        {
            let bytes = fs::metadata(&file).map_or(0, |facts| usize::try_from(facts.len()).unwrap_or(usize::MAX));
            self.stored = self.stored.saturating_add(bytes.saturating_mul(2));
            self.files.insert(file);
        }
        self.copied = self.copied.saturating_add(values.held().saturating_mul(4));
        if self.copied > self.stored.saturating_mul(MAX_GROWTH).max(MAX_GROWTH_FROM) {
            return Err(format!(
                "layers share tensors until their weights take more than {MAX_GROWTH} times what the file does"
            ));
        }
        let mut loaded = match tensor {
            Some(tensor) => values.picked(tensor::floats(tensor, self.folder)?),
            None => {
                let known = values.floats();
                known.ok_or("its weights depend on the number of images")?
            }
        };
        if *negative {
            loaded.iter_mut().for_each(|value| *value = -*value);
        }
        Ok(loaded)
    }
}

/// What to say of layers that share tensors, each with its first owner.
fn sharing_note(sharing: &[(String, String)]) -> Option<String> {
    let (layer, owner) = sharing.first()?;
    let layers: HashSet<&str> = sharing.iter().map(|(layer, _)| layer.as_str()).collect();
    let others = match layers.len() {
        1 => String::new(),
        count => format!(", and so do {} more with others", count - 1),
    };
    Some(format!(
        "`{layer}` shares a tensor with `{owner}` in the file{others}; here each has its own, and trains it apart"
    ))
}

fn entry(name: String, op: LayerOp, inputs: Vec<String>) -> Entry {
    Entry { name, op, inputs, block: None, alias: None, position: Vec::new() }
}

/// What a layer is called until it has a name.
fn number(layer: LayerId) -> String {
    if layer == LayerId::IMAGES { IMAGES.into() } else { layer.0.to_string() }
}
