//! Writing tensors back into a Keras file: a copy of the one that they came from, in which nothing else changes.

use std::fs;
use std::io::{self, Cursor, Write};
use std::path::Path;

use hdf5_pure::{AttrValue, DType, File, Layout};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::container::{CONFIG, Kind, WEIGHTS};
use super::names::{Part, text};
use super::{Reader, by_tensor, malformed, to_keras};
use crate::weights::atomic::temporary_beside;
use crate::weights::{FileTensor, StateDict, TensorData, WeightsError, map_file, write_atomically};

/// A dataset's new values.
struct Change<'a> {
    dataset: &'a str,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Writes a copy of the Keras file `source` with the tensors of `state`, which are those of `source` or have their names,
/// and in which only the last layer may have another number of classes. What does not change keeps its every bit;
/// `source` and `out` may be one file.
///
/// Returns what there is to say of it, a sentence each.
///
/// # Errors
/// `source` is no Keras file, `state` lacks a tensor or has one of another shape, or the file cannot be written; what was
/// there stays.
pub fn save(state: &StateDict, source: &Path, out: &Path) -> Result<Vec<String>, WeightsError> {
    let bytes = map_file(source)?;
    let reader = Reader::open(source, &bytes)?;
    let refused = |reason: String| WeightsError::Refused { path: out.into(), reason };
    let mut changes = Vec::new();
    for (name, variable) in by_tensor(&reader.variables) {
        let broken = |reason| WeightsError::Tensor { path: source.into(), tensor: name.clone(), reason };
        // What no network has a place for, `state` has not either.
        let new = match state.tensors.get(&name) {
            Some(new) => new,
            None if matches!(variable.part, Part::Other(_)) => continue,
            None => return Err(refused(format!("the network has no tensor `{name}`, which {} has", source.display()))),
        };
        let (shape, values) = to_keras(new, &variable.part).map_err(broken)?;
        let old = reader.tensor(variable).map_err(|reason| malformed(source, &reason))?;
        if !is_same(&old, &shape, &values) {
            changes.push((Change { dataset: &variable.dataset, shape, values }, old, &variable.layer));
        }
    }
    changes.sort_by_key(|(change, ..)| change.dataset);
    let (same, resized): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(change, old, _)| change.shape == old.shape);

    let head = match &resized[..] {
        [] => None,
        [(change, _, layer), rest @ ..] if rest.iter().all(|(_, _, other)| other == layer) => {
            Some((layer.as_str(), change.shape.last().copied().unwrap_or(0)))
        }
        [(change, old, _), ..] => {
            let reason = format!("`{}` is {:?}, and the network's is {:?}", change.dataset, old.shape, change.shape);
            return Err(refused(reason));
        }
    };
    let mut config = None;
    if let Some((layer, classes)) = head
        && let Some(old) = &reader.description.config
    {
        let mut new = old.clone();
        resize(&mut new, layer, classes).map_err(refused)?;
        config = Some(new);
    }

    let mut hdf5 = reader.container.hdf5.to_vec();
    let mut rewritten: Vec<Change> = resized.into_iter().map(|(change, ..)| change).collect();
    for (change, old, _) in same {
        if !overwrite(&reader.file, &mut hdf5, &change, &old).map_err(|error| malformed(source, &error))? {
            rewritten.push(change);
        }
    }
    let trained = reader.has_optimizer();
    if !rewritten.is_empty() || head.is_some() {
        let edits = Edits {
            changes: &rewritten,
            resized: head.is_some(),
            config: config.as_ref(),
            kind: reader.container.kind,
        };
        hdf5 = edits.apply(&hdf5, out)?;
    }
    let whole = match reader.container.kind {
        Kind::Hdf5 => hdf5,
        Kind::Archive => archive(&bytes, &hdf5, config.as_ref())
            .map_err(|source| WeightsError::Write { path: out.into(), source })?,
    };
    write_atomically(out, |file| file.write_all(&whole))
        .map_err(|source| WeightsError::Write { path: out.into(), source })?;
    Ok(notes(trained, head))
}

fn notes(trained: bool, head: Option<(&str, usize)>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some((layer, classes)) = head {
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
fn is_same(old: &FileTensor, shape: &[usize], values: &[f32]) -> bool {
    let same = |old: &[f32]| old.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits());
    old.shape == shape && matches!(&old.data, TensorData::F32(old) if old.len() == values.len() && same(old))
}

/// Puts values in the place of the old ones, if those lie in the file one after the other.
fn overwrite(file: &File, hdf5: &mut [u8], change: &Change, old: &FileTensor) -> Result<bool, String> {
    let Layout::Contiguous { address: Some(address), .. } =
        file.dataset(change.dataset).and_then(|dataset| dataset.layout()).map_err(text)?
    else {
        return Ok(false);
    };
    let TensorData::F32(old) = &old.data else { return Ok(false) };
    let old: &[u8] = bytemuck::cast_slice(old);
    let place = usize::try_from(address).ok().and_then(|start| hdf5.get_mut(start..start.checked_add(old.len())?));
    // Other widths and byte orders look otherwise.
    match place.filter(|place| **place == *old) {
        Some(place) => {
            place.copy_from_slice(bytemuck::cast_slice(&change.values));
            Ok(true)
        }
        None => Ok(false),
    }
}

impl Reader {
    /// Whether the file has the state of an optimizer.
    fn has_optimizer(&self) -> bool {
        OPTIMIZERS.iter().any(|group| self.file.group(group).is_ok())
    }
}

/// Where the state of an optimizer is, by the structure of the file.
const OPTIMIZERS: [&str; 2] = ["optimizer", "optimizer_weights"];

/// Gives the layer `path` another number of outputs in a configuration.
fn resize(config: &mut Value, path: &str, outputs: usize) -> Result<(), String> {
    let unknown = || format!("its configuration has no layer `{path}`, whose number of outputs would have to change");
    let mut model = &mut *config;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        let layers = model["config"]["layers"].as_array_mut().ok_or_else(unknown)?;
        model = layers.iter_mut().find(|layer| layer["config"]["name"] == name).ok_or_else(unknown)?;
        if names.peek().is_none() {
            let settings = model["config"].as_object_mut().ok_or_else(unknown)?;
            let key = ["units", "filters"].into_iter().find(|key| settings.contains_key(*key)).ok_or_else(unknown)?;
            settings.insert(key.to_owned(), json!(outputs));
        }
    }
    // It would make Keras look for the state of an optimizer.
    if let Some(model) = config.as_object_mut() {
        model.shift_remove("compile_config");
    }
    Ok(())
}

/// What cannot be done by overwriting bytes.
struct Edits<'a> {
    changes: &'a [Change<'a>],
    /// Whether the changes are of other shapes than what is there.
    resized: bool,
    config: Option<&'a Value>,
    kind: Kind,
}

impl Edits<'_> {
    /// Edits the HDF5 file in a temporary one beside `out`, since only files can be edited.
    fn apply(&self, hdf5: &[u8], out: &Path) -> Result<Vec<u8>, WeightsError> {
        let written = |source| WeightsError::Write { path: out.into(), source };
        let temporary = temporary_beside(out);
        let edited = fs::write(&temporary, hdf5)
            .and_then(|()| self.edit(&temporary).map_err(io::Error::other))
            .and_then(|()| fs::read(&temporary));
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
        edited.map_err(written)
    }

    fn edit(&self, path: &Path) -> Result<(), String> {
        let file = File::open_rw(path).map_err(text)?;
        for Change { dataset, shape, values } in self.changes {
            let dimensions: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
            let (group, name) = dataset.rsplit_once('/').unwrap_or(("", dataset));
            let at = |error: hdf5_pure::Error| format!("`{dataset}`: {error}");
            let mut old = file.dataset(dataset).map_err(at)?;
            let kind = old.dtype().map_err(at)?;
            let build = |builder: &mut hdf5_pure::DatasetBuilder| {
                match kind {
                    DType::F64 => builder.with_f64_data(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
                    _ => builder.with_f32_data(values),
                };
                builder.with_shape(&dimensions);
            };
            if !matches!(kind, DType::F32 | DType::F64) {
                return Err(format!("`{dataset}` is stored as {kind}, which cannot be written"));
            }
            if self.resized && old.shape().map_err(at)? != dimensions {
                let group = file.group(group).map_err(at)?;
                group.delete(name).map_err(at)?;
                group.create_dataset(name, build).map_err(at)?;
            } else {
                old.write_staged(build).map_err(at)?;
            }
        }
        if self.resized {
            for optimizer in OPTIMIZERS.iter().filter(|group| file.group(group).is_ok()) {
                file.root().delete(optimizer).map_err(text)?;
            }
            if self.kind == Kind::Hdf5
                && let Some(config) = self.config
            {
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
