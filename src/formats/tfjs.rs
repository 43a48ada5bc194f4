//! Layers models of TensorFlow.js: `model.json`, with a Keras configuration and a list of weights, and files beside it with
//! their values one after the other. Teachable Machine and tensorflowjs_converter write them.
//!
//! A weight is named after its layer and what it is there, `conv1/kernel`; layers within a model within the model may have
//! that model's name before their own or not. What is written is a copy of such a file, with new values.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::dtype::{Dtype, decode};
use super::keras::{self, Description, Node, Part, Resized, Variable};
use super::{CLASSES, Copied, ModelFile, Opening, classes, leads_out, map_file};
use crate::files::{read_small, resolved};
use crate::text::{message, printable, quantity};
use crate::weights::{FileTensor, StateDict, TensorData, WeightsError, write_atomically};

/// The longest `model.json` accepted, in bytes. That of MobileNet takes a tenth of a megabyte.
const MAX_TEXT: usize = 32 << 20;

/// The longest `metadata.json` that is read, in bytes.
const MAX_METADATA: u64 = 1 << 20;

/// The keys of `model.json`.
const TOPOLOGY: &str = "modelTopology";
const MANIFEST: &str = "weightsManifest";

/// The version of Keras whose meaning the words of TensorFlow.js have.
const LIKE_KERAS: &str = "2.0";

/// Whether a file is a `model.json`, of a layers model or of another.
pub(super) fn is_tfjs(bytes: &[u8]) -> bool {
    let names = |key: &str| bytes.windows(key.len()).any(|window| window == key.as_bytes());
    bytes.len() <= MAX_TEXT && bytes.trim_ascii_start().starts_with(b"{") && [TOPOLOGY, MANIFEST].into_iter().any(names)
}

pub(super) fn open(opening: &Opening<'_>) -> Result<ModelFile, WeightsError> {
    let path = opening.path;
    let file = File::open(path, opening.bytes)?;
    let malformed = |reason: String| malformed(path, &reason);
    let mut state = keras::state(&file.variables, |variable| file.tensor(variable)).map_err(malformed)?;
    let quantised: HashSet<&str> = file.weights.iter().filter_map(|weight| weight.quantised()).collect();
    if let Some(stored) = quantised.iter().min() {
        state
            .notes
            .push(format!("its weights are stored as {stored}, from which they are taken as they are rounded there"));
    }
    classes::read(path, &mut state)?;
    read_metadata(path, &mut state);
    ModelFile::read(opening, state, Some(file.description))
}

fn malformed(path: &Path, reason: &str) -> WeightsError {
    WeightsError::Malformed { path: path.into(), format: "TensorFlow.js", reason: printable(reason) }
}

fn refused(path: &Path, reason: &str) -> WeightsError {
    WeightsError::Refused { path: path.into(), reason: message(reason) }
}

/// What Teachable Machine says in a file beside its model.
#[derive(Deserialize)]
struct Metadata {
    labels: Vec<String>,
    #[serde(rename = "imageSize")]
    image_size: Option<usize>,
}

/// Takes the names of the classes from the `metadata.json` beside the file, where there is one of Teachable Machine's and
/// nothing else names them. Another program's file of that name says nothing.
fn read_metadata(path: &Path, state: &mut StateDict) {
    let text = read_small(&path.with_file_name("metadata.json"), MAX_METADATA);
    let Some(Metadata { labels, image_size }) = text.ok().and_then(|text| serde_json::from_slice(&text).ok()) else {
        return;
    };
    if let Some(size) = image_size.filter(|&size| size > 0) {
        state.metadata.insert("size".into(), size.to_string());
    }
    let different: HashSet<&String> = labels.iter().collect();
    if different.len() < labels.len() {
        state.notes.push("the metadata.json beside it gives two classes one name: the names are left out".into());
    } else if !state.metadata.contains_key(CLASSES) {
        state.metadata.insert(CLASSES.into(), Value::from(labels).to_string());
    }
}

/// A weight as the manifest lists it.
struct Weight {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    quantization: Option<Quantization>,
    /// The group that it is in, and where its values begin and end in the group's bytes.
    group: usize,
    start: usize,
    end: usize,
    /// Its entry in the manifest.
    entry: Value,
}

#[derive(Clone, Copy)]
enum Quantization {
    Half,
    /// Integers that stand for `scale · q + min`.
    Affine {
        stored: Dtype,
        scale: f64,
        min: f64,
    },
}

impl Weight {
    /// How many bytes the values take.
    fn size(dtype: Dtype, quantization: Option<Quantization>, shape: &[usize]) -> Option<usize> {
        let each = match quantization {
            Some(Quantization::Half) => 2,
            Some(Quantization::Affine { stored, .. }) => stored.size(),
            None => dtype.size(),
        };
        shape.iter().try_fold(each, |bytes, &size| bytes.checked_mul(size))
    }

    /// The number type that the values are rounded to, if they are.
    fn quantised(&self) -> Option<&'static str> {
        match self.quantization? {
            Quantization::Half => Some("float16"),
            Quantization::Affine { stored: Dtype::U8, .. } => Some("uint8"),
            Quantization::Affine { .. } => Some("uint16"),
        }
    }

    fn values(&self, bytes: &[u8]) -> Result<TensorData, String> {
        let (stored, scale, min) = match self.quantization {
            None => return decode(self.dtype, bytes),
            Some(Quantization::Half) => return decode(Dtype::F16, bytes),
            Some(Quantization::Affine { stored, scale, min }) => (stored, scale, min),
        };
        let TensorData::I64(stored) = decode(stored, bytes)? else { return Err("it holds no integers".into()) };
        let values = stored.into_iter().map(|value| value as f64 * scale + min);
        Ok(match self.dtype {
            Dtype::F32 => TensorData::F32(values.map(|value| value as f32).collect()),
            _ => TensorData::I64(values.map(|value| value.round() as i64).collect()),
        })
    }
}

/// A layers model that is read.
struct File {
    /// The text of `model.json`.
    json: Value,
    description: Description,
    weights: Vec<Weight>,
    /// What each of the weights is, in their order, and where they are by name.
    variables: Vec<Variable>,
    places: HashMap<String, usize>,
    /// The values of each group.
    groups: Vec<Vec<u8>>,
    /// The files that they are in.
    shards: Vec<PathBuf>,
}

impl File {
    fn open(path: &Path, bytes: &[u8]) -> Result<Self, WeightsError> {
        let malformed = |reason: String| malformed(path, &reason);
        let json: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if json["format"] == "graph-model" || json[TOPOLOGY].get("node").is_some() {
            return Err(refused(
                path,
                "it is a graph model, of TensorFlow's operations without the layers that they were: give the Keras or ONNX file that \
                 it was made from, or convert that anew with --output_format tfjs_layers_model",
            ));
        }
        let config = config_of(&json).ok_or_else(|| malformed("it has no configuration of a model's layers".into()))?;
        // TensorFlow.js itself has its own version there.
        let version = json[TOPOLOGY]["keras_version"].as_str().filter(|version| version.starts_with(char::is_numeric));
        let version = Some(version.unwrap_or(LIKE_KERAS).to_owned());
        let mut description = Description { config: Some(config.clone()), version, ..Description::default() };
        let manifest = manifest(&json).map_err(malformed)?;
        let (mut weights, mut groups, mut shards) = (Vec::new(), Vec::new(), Vec::new());
        for (index, group) in manifest.into_iter().enumerate() {
            let size = group.weights.last().map_or(0, |weight| weight.end);
            groups.push(values(path, &group.paths, size)?);
            weights.extend(group.weights.into_iter().map(|weight| Weight { group: index, ..weight }));
            shards.extend(group.paths.iter().map(|shard| path.with_file_name(shard)));
        }
        let names: Vec<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
        let mut variables = keras::listed(&names, &Node::all(config)).map_err(malformed)?;
        keras::find_flattened(&mut variables, config).map_err(malformed)?;
        let places = weights.iter().enumerate().map(|(place, weight)| (weight.name.clone(), place)).collect();
        let mut file = Self { json, description: Description::default(), weights, variables, places, groups, shards };
        description.normalizations =
            keras::normalizations(&file.variables, |variable| file.tensor(variable)).map_err(malformed)?;
        file.description = description;
        Ok(file)
    }

    /// A weight's values in Keras's layout.
    fn tensor(&self, variable: &Variable) -> Result<FileTensor, String> {
        let place = self.places.get(&variable.dataset).ok_or_else(|| format!("`{}` is missing", variable.dataset))?;
        let weight = &self.weights[*place];
        let failed = |reason: String| format!("`{}`: {reason}", weight.name);
        Ok(FileTensor { shape: weight.shape.clone(), data: weight.values(self.bytes(weight)).map_err(failed)? })
    }

    fn bytes(&self, weight: &Weight) -> &[u8] {
        &self.groups[weight.group][weight.start..weight.end]
    }
}

/// The configuration of the layers, which converters put one level deeper than TensorFlow.js itself.
fn config_of(json: &Value) -> Option<&Value> {
    let topology = &json[TOPOLOGY];
    let config = topology.get("model_config").unwrap_or(topology);
    config.get("class_name").map(|_| config)
}

fn config_mut(json: &mut Value) -> Option<&mut Value> {
    let topology = json.get_mut(TOPOLOGY)?;
    match topology.get("model_config").is_some() {
        true => topology.get_mut("model_config"),
        false => Some(topology),
    }
}

/// Weights whose values lie in the same files, and these.
struct Group {
    paths: Vec<String>,
    weights: Vec<Weight>,
}

/// What the manifest lists.
fn manifest(json: &Value) -> Result<Vec<Group>, String> {
    fn list<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], String> {
        value.as_array().map(Vec::as_slice).ok_or_else(|| format!("it has no list of {what}"))
    }
    let (mut names, mut files) = (HashSet::new(), HashSet::new());
    let mut groups = Vec::new();
    for group in list(&json[MANIFEST], "weights")? {
        let mut paths = Vec::new();
        for path in list(&group["paths"], "the files that weights are in")? {
            let path = path.as_str().ok_or("a name of a file with weights is no text")?;
            let beside =
                Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if path.is_empty() || !beside || path.contains('\\') || leads_out(path) {
                return Err(format!("its weights are in `{path}`, which is not beside it"));
            }
            if !files.insert(path.to_owned()) {
                return Err(format!("it lists the file `{path}` twice"));
            }
            paths.push(path.to_owned());
        }
        let mut weights: Vec<Weight> = Vec::new();
        for entry in list(&group["weights"], "the weights in a file")? {
            let start = weights.last().map_or(0, |weight| weight.end);
            let weight = weight(entry, start)?;
            if !names.insert(weight.name.clone()) {
                return Err(format!("it has two weights called `{}`", weight.name));
            }
            weights.push(weight);
        }
        groups.push(Group { paths, weights });
    }
    Ok(groups)
}

fn weight(entry: &Value, start: usize) -> Result<Weight, String> {
    let name = entry["name"].as_str().ok_or("a weight has no name")?.to_owned();
    let failed = |reason: &str| format!("`{name}`: {reason}");
    let size = |size: &Value| size.as_u64().and_then(|size| usize::try_from(size).ok());
    let shape = entry["shape"].as_array().and_then(|sizes| sizes.iter().map(size).collect::<Option<Vec<usize>>>());
    let shape = shape
        .filter(|shape| shape.len() <= keras::MAX_RANK)
        .ok_or_else(|| failed("it has no shape of a few dimensions"))?;
    let dtype = match entry["dtype"].as_str() {
        Some("float32") => Dtype::F32,
        Some("int32") => Dtype::I32,
        Some("uint8" | "bool") => Dtype::U8,
        other => return Err(failed(&format!("the number type {} is not supported", other.unwrap_or("of none")))),
    };
    let quantization = match &entry["quantization"] {
        Value::Null => None,
        quantization => {
            let number = |key: &str| quantization[key].as_f64().filter(|number| number.is_finite());
            let affine = |stored| Some(Quantization::Affine { stored, scale: number("scale")?, min: number("min")? });
            let found = match quantization["dtype"].as_str() {
                Some("float16") if dtype == Dtype::F32 => Some(Quantization::Half),
                Some("uint8") => affine(Dtype::U8),
                Some("uint16") => affine(Dtype::U16),
                _ => None,
            };
            Some(found.ok_or_else(|| failed("it is quantised in a way that is not known"))?)
        }
    };
    let end = Weight::size(dtype, quantization, &shape).and_then(|size| start.checked_add(size));
    let end = end.ok_or_else(|| failed(&format!("it claims to be {shape:?}")))?;
    Ok(Weight { name, shape, dtype, quantization, group: 0, start, end, entry: entry.clone() })
}

/// The bytes of a group, which has so many of them in the files `paths` beside `model`.
fn values(model: &Path, paths: &[String], size: usize) -> Result<Vec<u8>, WeightsError> {
    let mut maps = Vec::new();
    let mut found = 0;
    for path in paths {
        let map = map_file(&model.with_file_name(path)).map_err(|error| match error {
            WeightsError::Read { source, .. } if source.kind() == ErrorKind::NotFound => refused(
                model,
                &format!("its weights are in `{path}`, which is not there: move a model.json and all files that it names together"),
            ),
            error => error,
        })?;
        found += map.len();
        maps.push(map);
    }
    if found != size {
        let paths = paths.join("`, `");
        return Err(malformed(model, &format!("its weights take {size} bytes, and there are {found} in `{paths}`")));
    }
    // Not before: only what is there is believed.
    Ok(maps.iter().flat_map(|map| map.iter().copied()).collect())
}

/// A copy of a layers model with other tensors.
struct Copy {
    /// The text of `model.json`, but for where the weights are.
    json: Value,
    /// The entries of the manifest.
    entries: Vec<Value>,
    values: Vec<u8>,
    /// The files with the original's weights.
    shards: Vec<PathBuf>,
    other: Option<Description>,
    classes: Option<String>,
    notes: Vec<String>,
}

/// A copy of the `model.json` at `source` with the tensors of `state`, which are those of `source` or have their names, and
/// in which only the last layer may have another number of classes. What does not change keeps its every bit.
pub(super) fn copied(state: &StateDict, source: &Path) -> Result<Box<dyn Copied>, WeightsError> {
    let bytes = map_file(source)?;
    let file = File::open(source, &bytes)?;
    let refused = |reason: String| WeightsError::NotCopied { path: source.into(), reason };
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    let mut resized = Vec::new();
    let mut unrounded = 0;
    for (weight, variable) in file.weights.iter().zip(&file.variables) {
        let new = variable.tensor().and_then(|name| Some((name.clone(), state.tensors.get(&name)?)));
        let Some((name, new)) = new else {
            match variable.tensor() {
                Some(name) if !matches!(variable.part, Part::Other(_)) => {
                    let name = printable(&name);
                    return Err(refused(format!("the network has no tensor `{name}`, which the file has")));
                }
                // What no network has a place for stays.
                _ => {
                    entries.push(weight.entry.clone());
                    values.extend_from_slice(file.bytes(weight));
                    continue;
                }
            }
        };
        let tensor = |reason| WeightsError::Tensor { path: source.into(), tensor: name.clone(), reason };
        let (shape, new) = keras::to_keras(new, &variable.part).map_err(tensor)?;
        let old = file.tensor(variable).map_err(|reason| malformed(source, &reason))?;
        if keras::is_same(&old, &shape, &new) {
            entries.push(weight.entry.clone());
            values.extend_from_slice(file.bytes(weight));
            continue;
        }
        unrounded += usize::from(weight.quantization.is_some());
        entries.push(json!({"name": weight.name, "shape": shape, "dtype": "float32"}));
        values.extend_from_slice(bytemuck::cast_slice(&new));
        if old.shape != shape {
            resized.push(Resized {
                dataset: weight.name.clone(),
                layer: variable.layer.clone(),
                old: old.shape,
                new: shape,
            });
        }
    }
    let head = keras::head(&resized).map_err(refused)?;
    let mut json = file.json.clone();
    let mut notes = Vec::new();
    let mut other = None;
    if let Some((layer, outputs)) = head {
        let config = config_mut(&mut json).ok_or_else(|| malformed(source, "it has no configuration"))?;
        keras::resize(config, layer, outputs).map_err(refused)?;
        other = Some(Description { config: Some(config.clone()), ..file.description.clone() });
        notes.push(format!("`{layer}` has {} outputs now", outputs[1]));
    }
    if unrounded > 0 {
        let tensors = quantity(unrounded, "tensor");
        notes.push(format!("{tensors} were stored rounded, and are float32 now: the file is larger"));
    }
    let classes = classes::text(state);
    Ok(Box::new(Copy { json, entries, values, shards: file.shards, other, classes, notes }))
}

/// The files with weights that the `model.json` at `path` names, if there is one.
fn shards_of(path: &Path) -> Vec<PathBuf> {
    let json = read_small(path, MAX_TEXT as u64).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let groups = json.as_ref().and_then(|json| json[MANIFEST].as_array());
    let paths = groups.into_iter().flatten().filter_map(|group| group["paths"].as_array());
    paths.flatten().filter_map(|shard| Some(path.with_file_name(shard.as_str()?))).collect()
}

impl Copied for Copy {
    fn other(&self) -> Option<&Description> {
        self.other.as_ref()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The weights are written first, under a name that no `model.json` which is there has for its own, so that at every
    /// moment each is whole.
    fn write(&self, out: &Path) -> Result<(), WeightsError> {
        let stem = out.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // Whatever way leads to it.
        let place = |path: &Path| resolved(path).unwrap_or_else(|_| path.to_owned());
        let taken: HashSet<PathBuf> = shards_of(out).iter().chain(&self.shards).map(|shard| place(shard)).collect();
        let name = |number: usize| match number {
            1 => format!("{stem}.weights.bin"),
            _ => format!("{stem}.weights.{number}.bin"),
        };
        let mut number = 1;
        while taken.contains(&place(&out.with_file_name(name(number)))) {
            number += 1;
        }
        let (name, weights) = (name(number), out.with_file_name(name(number)));
        let mut json = self.json.clone();
        json[MANIFEST] = json!([{"paths": [name], "weights": self.entries}]);
        let text = json.to_string();
        let write = |path: &Path, bytes: &[u8]| {
            write_atomically(path, |file| file.write_all(bytes))
                .map_err(|source| WeightsError::Write { path: path.into(), source })
        };
        classes::write_beside(out, self.classes.as_deref(), || {
            write(&weights, &self.values)?;
            write(out, text.as_bytes())
        })
    }
}
