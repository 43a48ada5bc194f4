//! Writing tensors back into a Keras file: a copy of the one that they came from, in which nothing else changes.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Cursor, Write};
use std::path::Path;

use half::f16;
use hdf5_pure::{
    AttrValue, Dataset, DatasetBuilder, Datatype, File, FileAccessProperties, FileLocking, Filter, Layout,
    make_f32_type, make_f64_type,
};
use memmap2::Mmap;
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::container::{CONFIG, Kind, WEIGHTS};
use super::names::{Part, text};
use super::{Description, HALF, Reader, by_tensor, malformed, to_keras};
use crate::files::create_temporary;
use crate::formats::{self, classes, map_file};
use crate::text::{printable, quantity};
use crate::weights::{FileTensor, StateDict, TensorData, WeightsError, write_atomically};

/// A dataset's new values, as the file stores them.
struct Change {
    dataset: String,
    shape: Vec<usize>,
    datatype: Datatype,
    bytes: Vec<u8>,
}

/// A copy of a Keras file with other tensors, ready to be written.
struct Copied {
    /// The file that is copied.
    original: Mmap,
    kind: Kind,
    /// The HDF5 file, with what could be overwritten in it.
    hdf5: Vec<u8>,
    /// What remains to be written into it.
    changes: Vec<Change>,
    /// What the copy says of its network, if that is not what the original says: the last layer has other classes.
    other: Option<Description>,
    /// The text of the file beside the copy that names its classes.
    classes: Option<String>,
    /// What there is to say of it, a sentence each.
    notes: Vec<String>,
}

/// Writes a copy of the Keras file `source` with the tensors of `state`, which are those of `source` or have their names,
/// and in which only the last layer may have another number of classes. What does not change keeps its every bit.
///
/// Returns what there is to say of it, a sentence each.
///
/// # Errors
/// `source` is no Keras file, `state` lacks a tensor or has one of another shape, values cannot be stored as `source` stores
/// them, or the file cannot be written; what was there stays.
pub fn save(state: &StateDict, source: &Path, out: &Path) -> Result<Vec<String>, WeightsError> {
    let copied = copied(state, source)?;
    copied.write(out)?;
    Ok(copied.notes().to_vec())
}

/// The copy that [`save`] writes.
pub(in crate::formats) fn copied(state: &StateDict, source: &Path) -> Result<Box<dyn formats::Copied>, WeightsError> {
    Ok(Box::new(Copied::of(state, source)?))
}

impl Copied {
    /// A copy of the Keras file `source` with the tensors of `state`.
    fn of(state: &StateDict, source: &Path) -> Result<Self, WeightsError> {
        let bytes = map_file(source)?;
        let reader = Reader::open(source, &bytes)?;
        let refused = |reason: String| WeightsError::NotCopied { path: source.into(), reason };
        reader.supported().map_err(refused)?;
        let mut hdf5 = reader.container.hdf5.to_vec();
        let mut changes = Vec::new();
        let mut resized: Vec<Resized> = Vec::new();
        let mut rounded = 0;
        for (name, variable) in by_tensor(&reader.found.variables) {
            let tensor = |reason| WeightsError::Tensor { path: source.into(), tensor: name.clone(), reason };
            // What no network has a place for, `state` has not either.
            let new = match state.tensors.get(&name) {
                Some(new) => new,
                None if matches!(variable.part, Part::Other(_)) => continue,
                None => {
                    return Err(refused(format!(
                        "the network has no tensor `{}`, which the file has",
                        printable(&name)
                    )));
                }
            };
            let (shape, values) = to_keras(new, &variable.part).map_err(tensor)?;
            let old = reader.tensor(variable).map_err(|reason| malformed(source, &reason))?;
            // Before anything trains, nothing has changed yet, and it should be known whether it may.
            let dataset = reader.file.dataset(&variable.dataset).map_err(|error| malformed(source, &text(error)))?;
            let storage = Storage::of(&dataset).map_err(tensor)?;
            if is_same(&old, &shape, &values) {
                continue;
            }
            let bytes = encoded(&values, &storage.datatype).map_err(tensor)?;
            rounded += usize::from(storage.datatype == HALF);
            if old.shape != shape {
                let layer = variable.layer.clone();
                resized.push(Resized { dataset: variable.dataset.clone(), layer, old: old.shape, new: shape.clone() });
            } else if overwrite(&dataset, &mut hdf5, &bytes).map_err(|reason| malformed(source, &reason))? {
                continue;
            }
            changes.push(Change { dataset: variable.dataset.clone(), shape, datatype: storage.datatype, bytes });
        }
        changes.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        resized.sort_by(|a, b| a.dataset.cmp(&b.dataset));

        let head = head(&resized).map_err(refused)?;
        let mut notes = notes(reader.has_optimizer(), head);
        if rounded > 0 {
            notes.push(format!("{} in float16, to which new values are rounded", quantity(rounded, "tensor")));
        }
        let other = head.map(|(layer, classes)| {
            let mut other = reader.description.clone();
            other.config.as_mut().map(|config| resize(config, layer, classes)).transpose()?;
            Ok(other)
        });
        let (other, kind) = (other.transpose().map_err(refused)?, reader.container.kind);
        Ok(Self { original: bytes, kind, hdf5, changes, other, classes: classes::text(state), notes })
    }

    /// The HDF5 file with what cannot be done by overwriting bytes. It is done in a temporary file beside `out`, since only
    /// files can be edited.
    fn edited(&self, out: &Path) -> io::Result<Vec<u8>> {
        let (temporary, mut file) = create_temporary(out)?;
        // As long as it is open, no other process takes it for a leftover.
        let edited = file.write_all(&self.hdf5).and_then(|()| {
            // Elsewhere nobody could write to a locked file.
            let _open = cfg!(unix).then_some(file);
            self.edit(&temporary).map_err(io::Error::other)
        });
        let edited = edited.and_then(|()| fs::read(&temporary));
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
        edited
    }

    fn edit(&self, path: &Path) -> Result<(), String> {
        // It holds the lock already, by which other processes know that it is in use.
        let unlocked = FileAccessProperties::new().with_locking(FileLocking::Disabled);
        let file = File::open_rw_with_options(path, unlocked).map_err(text)?;
        for Change { dataset, shape, datatype, bytes } in &self.changes {
            let at = |error: hdf5_pure::Error| format!("`{dataset}`: {error}");
            let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
            let old = file.dataset(dataset).map_err(at)?;
            let storage = Storage::of(&old)?;
            let attributes = old.attrs().map_err(at)?;
            let (group, name) = dataset.rsplit_once('/').unwrap_or(("", dataset));
            let group = file.group(group).map_err(at)?;
            group.delete(name).map_err(at)?;
            let build = |builder: &mut DatasetBuilder| {
                builder.with_raw_data(datatype.clone(), bytes.clone(), shape.iter().product()).with_shape(&shape);
                storage.apply(builder, &shape);
                for (name, value) in attributes {
                    builder.set_attr(&name, value);
                }
            };
            group.create_dataset(name, build).map_err(at)?;
        }
        if let Some(Description { config, .. }) = &self.other {
            for optimizer in OPTIMIZERS.iter().filter(|group| file.group(group).is_ok()) {
                file.root().delete(optimizer).map_err(text)?;
            }
            if let (Kind::Hdf5, Some(config)) = (self.kind, config) {
                let root = file.root();
                root.set_attr("model_config", AttrValue::VarLenString(config.to_string())).map_err(text)?;
                if root.attrs().map_err(text)?.contains_key("training_config") {
                    root.remove_attr("training_config").map_err(text)?;
                }
            }
        }
        file.commit().map_err(text)?;
        file.close().map_err(text)
    }
}

impl formats::Copied for Copied {
    fn other(&self) -> Option<&Description> {
        self.other.as_ref()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn write(&self, out: &Path) -> Result<(), WeightsError> {
        let failed = |source| WeightsError::Write { path: out.into(), source };
        let edited = if self.changes.is_empty() { None } else { Some(self.edited(out).map_err(failed)?) };
        let hdf5 = edited.as_ref().unwrap_or(&self.hdf5);
        let config = self.other.as_ref().and_then(|other| other.config.as_ref());
        let archive = match self.kind {
            Kind::Hdf5 => None,
            Kind::Archive => Some(archive(&self.original, hdf5, config).map_err(failed)?),
        };
        let write = || write_atomically(out, |file| file.write_all(archive.as_ref().unwrap_or(hdf5))).map_err(failed);
        classes::write_beside(out, self.classes.as_deref(), write)
    }
}

/// A tensor whose shape changes.
pub(in crate::formats) struct Resized {
    pub(in crate::formats) dataset: String,
    pub(in crate::formats) layer: String,
    pub(in crate::formats) old: Vec<usize>,
    pub(in crate::formats) new: Vec<usize>,
}

impl Resized {
    /// Whether only the last dimension changes, the number of outputs.
    fn keeps_inputs(&self) -> bool {
        let [old, new] = [&self.old, &self.new].map(|shape| shape.split_last().map(|(_, inputs)| inputs));
        old == new
    }
}

/// The layer that has another number of outputs, and the numbers, old and new; none if no tensor changes its shape.
///
/// # Errors
/// Another shape changes.
pub(in crate::formats) fn head(resized: &[Resized]) -> Result<Option<(&str, [usize; 2])>, String> {
    match resized {
        [] => Ok(None),
        [Resized { layer, old, new, .. }, ..]
            if resized.iter().all(|other| other.layer == *layer && other.keeps_inputs()) =>
        {
            Ok(Some((layer, [old, new].map(|shape| shape.last().copied().unwrap_or(0)))))
        }
        [Resized { dataset, old, new, .. }, ..] => {
            let dataset = printable(dataset);
            Err(format!("`{dataset}` is {old:?}, and the network's is {new:?}"))
        }
    }
}

/// How a dataset keeps its values.
struct Storage {
    datatype: Datatype,
    /// The shape of the chunks that it is cut into, if it is.
    chunks: Option<Vec<u64>>,
    /// What is done to each chunk, by the numbers that HDF5 has registered.
    filters: Vec<Filter>,
}

impl Storage {
    const DEFLATE: u16 = 1;
    const SHUFFLE: u16 = 2;
    const FLETCHER32: u16 = 3;
    const LZF: u16 = 32000;

    /// Refuses what can be read but not written.
    fn of(dataset: &Dataset) -> Result<Self, String> {
        let instead = "load the model in Keras and save it again, or write .safetensors";
        let (datatype, filters) = (dataset.datatype().map_err(text)?, dataset.filter_pipeline());
        if ![make_f32_type(), make_f64_type(), HALF].contains(&datatype) {
            return Err(format!("it is stored as {datatype}, which cannot be written; {instead}"));
        }
        let known = [Self::DEFLATE, Self::SHUFFLE, Self::FLETCHER32, Self::LZF];
        if let Some(Filter { id, .. }) = filters.iter().find(|filter| !known.contains(&filter.id)) {
            return Err(format!("it went through HDF5's filter {id}, which cannot be written; {instead}"));
        }
        let chunks = match dataset.layout().map_err(text)? {
            Layout::Chunked { chunk_shape, .. } => Some(chunk_shape),
            _ => None,
        };
        Ok(Self { datatype, chunks, filters })
    }

    /// Lets a new dataset keep its values in the same way.
    fn apply(&self, builder: &mut DatasetBuilder, shape: &[u64]) {
        if let Some(chunks) = &self.chunks {
            let chunks: Vec<u64> = chunks.iter().zip(shape).map(|(&chunk, &size)| chunk.min(size)).collect();
            builder.with_chunks(&chunks);
        }
        for filter in &self.filters {
            match filter.id {
                // Its level, from 0 to 9; 6 is zlib's own default.
                Self::DEFLATE => builder.with_deflate(filter.client_data.first().map_or(6, |&level| level.min(9))),
                Self::SHUFFLE => builder.with_shuffle(),
                Self::LZF => builder.with_lzf(),
                _ => builder.with_fletcher32(),
            };
        }
    }
}

/// Values as a dataset of that type has them.
fn encoded(values: &[f32], datatype: &Datatype) -> Result<Vec<u8>, String> {
    if *datatype == make_f64_type() {
        return Ok(values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect());
    }
    if *datatype != HALF {
        return Ok(bytemuck::cast_slice(values).to_vec());
    }
    let mut bytes = Vec::with_capacity(2 * values.len());
    for &value in values {
        let half = f16::from_f32(value);
        if half.is_infinite() && value.is_finite() {
            return Err(format!("{value:e} does not fit into float16, as which it is stored; write .safetensors"));
        }
        bytes.extend(half.to_le_bytes());
    }
    Ok(bytes)
}

fn notes(trained: bool, head: Option<(&str, [usize; 2])>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some((layer, [_, classes])) = head {
        notes.push(format!("`{layer}` has {classes} outputs now"));
    }
    match (trained, head) {
        (true, Some(_)) => notes.push(
            "the optimizer's state and settings are left out, since they belong to the old head: compile the model anew"
                .to_owned(),
        ),
        (true, None) => notes.push("the optimizer's state is what it was before: it has not followed the weights".to_owned()),
        (false, _) => {}
    }
    notes
}

/// Whether the values are those that the file has, bit by bit.
pub(in crate::formats) fn is_same(old: &FileTensor, shape: &[usize], values: &[f32]) -> bool {
    let same = |old: &[f32]| old.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits());
    old.shape == shape && matches!(&old.data, TensorData::F32(old) if old.len() == values.len() && same(old))
}

/// Puts values in the place of the old ones, if those lie in the file one after the other.
fn overwrite(dataset: &Dataset, hdf5: &mut [u8], bytes: &[u8]) -> Result<bool, String> {
    let Layout::Contiguous { address: Some(address), .. } = dataset.layout().map_err(text)? else { return Ok(false) };
    let place = usize::try_from(address).ok().and_then(|start| hdf5.get_mut(start..start.checked_add(bytes.len())?));
    let place = place.ok_or("its values lie behind the end of the file")?;
    place.copy_from_slice(bytes);
    Ok(true)
}

impl Reader {
    /// Whether the file has the state of an optimizer.
    fn has_optimizer(&self) -> bool {
        OPTIMIZERS.iter().any(|group| self.file.group(group).is_ok())
    }
}

/// Where the state of an optimizer is, by the structure of the file.
const OPTIMIZERS: [&str; 2] = ["optimizer", "optimizer_weights"];

/// Gives the layer `path` another number of outputs in a configuration, and those behind it that many inputs.
pub(in crate::formats) fn resize(config: &mut Value, path: &str, outputs: [usize; 2]) -> Result<(), String> {
    let unknown = || {
        let layer = printable(path);
        format!("its configuration has no layer `{layer}`, whose number of outputs would have to change")
    };
    // The halves of a separable convolution are one layer.
    let whole = path.strip_suffix(".pointwise").unwrap_or(path);
    let way = way_to(config, path).or_else(|| way_to(config, whole)).ok_or_else(unknown)?;
    let mut model = &mut *config;
    for index in way {
        let in_row = model["class_name"] == "Sequential";
        let layers = layers_mut(model).ok_or_else(unknown)?;
        pass_on(layers, index, in_row, outputs);
        model = &mut layers[index];
    }
    let settings = model.get_mut("config").and_then(Value::as_object_mut).ok_or_else(unknown)?;
    let key = ["units", "filters"].into_iter().find(|key| settings.contains_key(*key)).ok_or_else(unknown)?;
    settings.insert(key.to_owned(), json!(outputs[1]));
    // It would make Keras look for the state of an optimizer.
    if let Some(model) = config.as_object_mut() {
        model.shift_remove("compile_config");
    }
    Ok(())
}

/// The numbers of the models on the way to the layer `path`, and its own, each in the list that it is in.
fn way_to(model: &Value, path: &str) -> Option<Vec<usize>> {
    let layers = model["config"]["layers"].as_array()?;
    // A layer's name may have slashes, too.
    layers.iter().enumerate().find_map(|(index, layer)| {
        let rest = path.strip_prefix(layer["config"]["name"].as_str()?)?;
        let way = if rest.is_empty() { Vec::new() } else { way_to(layer, rest.strip_prefix('/')?)? };
        Some([vec![index], way].concat())
    })
}

fn layers_mut(model: &mut Value) -> Option<&mut Vec<Value>> {
    model.get_mut("config")?.get_mut("layers")?.as_array_mut()
}

/// Tells the layers of a model that are behind the one at `index` how many outputs that has: `[old, new]`. They stand below
/// it in the list, all of them where a model is layers `in_row`.
fn pass_on(layers: &mut [Value], index: usize, in_row: bool, outputs: [usize; 2]) {
    let name = |layer: &Value| layer["config"]["name"].as_str().unwrap_or_default().to_owned();
    let mut behind = HashSet::from([name(&layers[index])]);
    for layer in &mut layers[index + 1..] {
        if !in_row && !mentions(&layer["inbound_nodes"], &behind) {
            continue;
        }
        behind.insert(name(layer));
        for key in ["inbound_nodes", "build_config"] {
            if let Some(value) = layer.get_mut(key) {
                reshape(value, outputs);
            }
        }
        // What a Reshape makes of them.
        if let Some(shape) = layer.get_mut("config").and_then(|config| config.get_mut("target_shape")) {
            replace_last(shape, outputs);
        }
    }
}

/// Whether one of the names is somewhere in a call.
fn mentions(call: &Value, names: &HashSet<String>) -> bool {
    match call {
        Value::String(text) => names.contains(text),
        Value::Array(values) => values.iter().any(|value| mentions(value, names)),
        Value::Object(entries) => entries.values().any(|value| mentions(value, names)),
        _ => false,
    }
}

/// Replaces the number of channels in all shapes that a call or a `build_config` has.
fn reshape(value: &mut Value, outputs: [usize; 2]) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| reshape(value, outputs)),
        Value::Object(entries) => {
            for (key, value) in entries {
                if key.ends_with("shape") { replace_last(value, outputs) } else { reshape(value, outputs) }
            }
        }
        _ => {}
    }
}

fn replace_last(shape: &mut Value, [old, new]: [usize; 2]) {
    if let Some(size) = shape.as_array_mut().and_then(|sizes| sizes.last_mut()).filter(|size| **size == json!(old)) {
        *size = json!(new);
    }
}

/// The archive `old` with other weights, and with another configuration if there is one.
fn archive(old: &[u8], hdf5: &[u8], config: Option<&Value>) -> io::Result<Vec<u8>> {
    let mut old = ZipArchive::new(Cursor::new(old))?;
    let mut new = ZipWriter::new(Cursor::new(Vec::with_capacity(hdf5.len())));
    for index in 0..old.len() {
        let entry = old.by_index_raw(index)?;
        let name = entry.name()?.into_owned();
        let replaced = match name.as_str() {
            WEIGHTS => Some(hdf5.to_vec()),
            CONFIG => config.map(|config| config.to_string().into_bytes()),
            _ => None,
        };
        let Some(content) = replaced else {
            new.raw_copy_file(entry)?;
            continue;
        };
        // As Keras does.
        let mut options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(u32::try_from(content.len()).is_err());
        if let Some(time) = entry.last_modified() {
            options = options.last_modified_time(time);
        }
        new.start_file(name, options)?;
        new.write_all(&content)?;
    }
    Ok(new.finish()?.into_inner())
}
