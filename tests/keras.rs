//! Keras's files, small ones of every kind that `tests/golden/generate_keras.py` writes, read and written back.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use thawline::rng::Rng;
use thawline::weights::{self, FileTensor, StateDict, TensorData};
use zip::ZipArchive;

/// The files, each with the name of what is known of it.
const FILES: [(&str, &str); 17] = [
    ("efficient.keras", "efficient"),
    ("efficient.h5", "efficient"),
    ("efficient.weights.h5", "efficient"),
    ("resnet.keras", "resnet"),
    ("mobilenet.keras", "mobilenet"),
    ("mobilenet.h5", "mobilenet"),
    ("transfer.keras", "transfer"),
    ("transfer.h5", "transfer"),
    ("transfer.weights.h5", "transfer"),
    ("sequential.keras", "sequential"),
    ("sequential.h5", "sequential"),
    ("efficient_tf.keras", "efficient_tf"),
    ("efficient_tf.h5", "efficient_tf"),
    ("efficient_tf_weights.h5", "efficient_tf"),
    ("resnet_tf.h5", "resnet_tf"),
    ("transfer_tf.keras", "transfer_tf"),
    ("transfer_tf.h5", "transfer_tf"),
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keras").join(name)
}

/// What Keras says of a model.
fn record(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(&format!("{name}.json"))).unwrap()).unwrap()
}

fn load(name: &str) -> StateDict {
    StateDict::load(golden(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn floats(tensor: &FileTensor) -> &[f32] {
    match &tensor.data {
        TensorData::F32(values) => values,
        TensorData::I64(_) => panic!("floats were expected"),
    }
}

/// A variable of Keras's under the name that its tensor has here, with the shape that it has here.
fn ours(layer: &str, class: &str, label: &str, shape: &[usize]) -> Option<(String, Vec<usize>)> {
    let (layer, part, shape) = match (class, label, shape) {
        ("Normalization", ..) => return None,
        ("SeparableConv2D", "depthwise_kernel", &[h, w, c, 1]) => {
            (format!("{layer}.depthwise"), "weight", vec![c, 1, h, w])
        }
        ("SeparableConv2D", "pointwise_kernel", &[h, w, i, o]) => {
            (format!("{layer}.pointwise"), "weight", vec![o, i, h, w])
        }
        ("SeparableConv2D", "bias", _) => (format!("{layer}.pointwise"), "bias", shape.to_vec()),
        ("DepthwiseConv2D", "kernel" | "depthwise_kernel", &[h, w, c, 1]) => {
            (layer.to_owned(), "weight", vec![c, 1, h, w])
        }
        ("Conv2D", "kernel", &[h, w, i, o]) => (layer.to_owned(), "weight", vec![o, i, h, w]),
        ("Dense", "kernel", &[i, o]) => (layer.to_owned(), "weight", vec![o, i]),
        (_, "bias" | "beta", _) => (layer.to_owned(), "bias", shape.to_vec()),
        (_, "gamma", _) => (layer.to_owned(), "weight", shape.to_vec()),
        (_, "moving_mean", _) => (layer.to_owned(), "running_mean", shape.to_vec()),
        (_, "moving_variance", _) => (layer.to_owned(), "running_var", shape.to_vec()),
        _ => panic!("{class} {label} {shape:?}"),
    };
    Some((format!("{layer}.{part}"), shape))
}

#[test]
fn every_variable_of_keras_is_found_under_its_layer() {
    for (file, known) in FILES {
        let state = load(file);
        let mut expected = BTreeMap::new();
        for layer in record(known)["layers"].as_array().unwrap() {
            for weight in layer["weights"].as_array().unwrap() {
                let shape: Vec<usize> =
                    weight[1].as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
                let [name, class] = ["name", "class"].map(|key| layer[key].as_str().unwrap());
                if let Some((name, shape)) = ours(name, class, weight[0].as_str().unwrap(), &shape) {
                    expected.insert(name, (shape, weight[2].as_f64().unwrap()));
                }
            }
        }
        assert!(!expected.is_empty());
        for (name, (shape, sum)) in &expected {
            let tensor = state.tensors.get(name).unwrap_or_else(|| panic!("{file} has no {name}"));
            assert_eq!(&tensor.shape, shape, "{file}: {name}");
            let found: f64 = floats(tensor).iter().map(|&value| f64::from(value)).sum();
            assert!((found - sum).abs() < 1e-4 * (1.0 + sum.abs()), "{file}: {name} sums up to {found}, not {sum}");
        }
        // Of a batch norm without gamma or beta, they are there as what has no effect.
        for (name, tensor) in state.tensors.iter().filter(|(name, _)| !expected.contains_key(*name)) {
            let neutral = if name.ends_with(".weight") { 1.0 } else { 0.0 };
            assert!(floats(tensor).iter().all(|&value| value == neutral), "{file}: {name}");
        }
    }
}

/// The content of an archive by entry, or of a file.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    if !bytes.starts_with(b"PK") {
        return [(String::new(), bytes)].into();
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut entry = archive.by_index(index).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.name().unwrap().into_owned(), content)
        })
        .collect()
}

#[test]
fn what_does_not_change_keeps_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    for (file, _) in FILES {
        let out = folder.path().join(file);
        weights::keras::save(&load(file), &golden(file), &out).unwrap();
        assert!(contents(&out) == contents(&golden(file)), "{file}");
    }
}

#[test]
fn what_changes_is_all_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    for (file, _) in FILES {
        let before = load(file);
        let out = folder.path().join(file);
        let mut after = before.clone();
        // What the file lacks cannot be written.
        let lacking = |name: &str, tensor: &FileTensor| {
            let neutral = if name.ends_with(".weight") { 1.0 } else { 0.0 };
            floats(tensor).iter().all(|&value| value == neutral)
        };
        for (name, tensor) in after.tensors.iter_mut().filter(|(name, tensor)| !lacking(name, tensor)) {
            let TensorData::F32(values) = &mut tensor.data else { panic!("{name}") };
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        weights::keras::save(&after, &golden(file), &out).unwrap();
        let read = StateDict::load(&out).unwrap();
        assert_eq!(read.tensors, after.tensors, "{file}");
        assert_eq!(read.keras, before.keras, "{file}");
        let (old, new) = (contents(&golden(file)), contents(&out));
        for (entry, content) in &old {
            let differing = content.iter().zip(&new[entry]).filter(|(a, b)| a != b).count();
            let values: usize = after.tensors.values().map(|tensor| tensor.data.len()).sum();
            assert_eq!(content.len(), new[entry].len(), "{file}: {entry}");
            assert!(differing <= 4 * values, "{file}: {entry}");
            assert!(entry.is_empty() || entry.ends_with(".h5") || differing == 0, "{file}: {entry}");
        }
    }
}

/// Damages a file: a run of bytes, a number that becomes huge, or the end cut off.
fn damaged(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match rng.below(4) {
        0 => bytes.truncate(rng.below(bytes.len())),
        1 => {
            for _ in 0..8 {
                let at = rng.below(bytes.len());
                bytes[at] = rng.below(256) as u8;
            }
        }
        2 => {
            let at = rng.below(bytes.len() - 8);
            let huge = [u64::MAX, u64::MAX / 2, 1 << 40, bytes.len() as u64, 0][rng.below(5)];
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
        }
        // A reference to another part, which makes cycles.
        _ => {
            let [to, from] = [(); 2].map(|()| 8 * rng.below(bytes.len() / 8 - 1));
            bytes.copy_within(from..from + 8, to);
        }
    }
    bytes
}

#[test]
fn damaged_files_are_read_or_refused() {
    const MUTATIONS: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let mut refused = 0;
    for (index, (file, _)) in FILES.iter().enumerate() {
        let bytes = fs::read(golden(file)).unwrap();
        let mut rng = Rng::keyed(5, &[index as u64]);
        for _ in 0..MUTATIONS {
            fs::write(&path, damaged(&bytes, &mut rng)).unwrap();
            if let Err(error) = StateDict::load(&path) {
                let message = error.to_string();
                assert!(message.contains(path.to_str().unwrap()) && message.lines().count() == 1, "{message}");
                refused += 1;
            }
        }
    }
    assert!(refused > FILES.len() * MUTATIONS / 4, "{refused}");
}
