//! Models of TensorFlow.js, which `tests/golden/make_tfjs.py` makes of files that Keras wrote: opened, computed, and written back.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use thawline::formats::{self, Format, FormatError, ModelFile};
use thawline::gpu::{Device, DeviceOptions};
use thawline::model::{Model, OpenError, Options};
use thawline::plan::Input;
use thawline::preprocessing::Preprocessing;
use thawline::rng::Rng;
use thawline::tensor::HostTensor;
use thawline::train::{Evaluator, Images};
use thawline::weights::{FileTensor, Head, StateDict, TensorData, initialise, to_state};

/// The models, each with the file of Keras's that it was made of.
const MODELS: [(&str, &str); 4] =
    [("efficient", "efficient_tf"), ("hard", "hard_tf"), ("flat", "flat_tf"), ("sequential", "sequential_tf")];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn model_json(name: &str) -> PathBuf {
    golden("tfjs").join(name).join("model.json")
}

fn open(path: &Path) -> ModelFile {
    formats::open(path, None).unwrap_or_else(|error| panic!("{error}"))
}

/// A copy of a model in a folder of its own.
fn copied(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(golden("tfjs").join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Changes the `model.json` in a folder.
fn changed(folder: &TempDir, change: impl FnOnce(&mut Value)) -> PathBuf {
    let path = folder.path().join("model.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
    path
}

/// All numbers in lists within lists.
fn numbers(value: &Value) -> Vec<f32> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().unwrap() as f32],
    }
}

#[test]
fn models_are_those_that_keras_has() {
    for (name, keras) in MODELS {
        let (ours, keras) = (open(&model_json(name)), open(&golden("keras").join(format!("{keras}.h5"))));
        assert_eq!(ours.format, Format::Tfjs);
        assert_eq!(ours.tensors.tensors, keras.tensors.tensors, "{name}");
        let [ours, keras] = [ours, keras].map(|file| file.network.unwrap());
        assert_eq!(ours.normalizations, keras.normalizations, "{name}");
        let [ours, keras] = [ours, keras].map(|network| network.import().unwrap().unwrap());
        assert_eq!(ours.graph, keras.graph, "{name}");
    }
}

#[test]
fn networks_compute_what_keras_computes() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    for (name, keras) in MODELS {
        let mut model = Model::open(&model_json(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let network = model.network(3, model.size(None)).unwrap();
        let tensors = model.tensors(&network).unwrap();
        let Preprocessing { mean, std, .. } = model.spec.preprocessing.value;
        let known: Value = serde_json::from_slice(&fs::read(golden(&format!("keras/{keras}.json"))).unwrap()).unwrap();
        let pixels = numbers(&known["images"]);
        let images: Vec<f32> = pixels
            .chunks_exact(3)
            .flat_map(|pixel| {
                let value = |channel: usize| (pixel[channel] / 255.0 - mean[channel]) / std[channel];
                [value(0), value(1), value(2), 0.0]
            })
            .collect();
        let mut evaluator = Evaluator::new(&device, &network, &tensors, Input::Values).unwrap();
        let logits = evaluator.logits(Images::Values(&images)).unwrap();
        for (ours, keras) in logits.iter().zip(numbers(&known["logits"])) {
            assert!((ours - keras).abs() < 1e-3 * (1.0 + keras.abs()), "{name}: {ours} is not {keras}");
        }
    }
}

#[test]
fn quantised_weights_are_near_those_that_they_were_made_of() {
    let whole = open(&model_json("efficient")).tensors;
    // Halves have eleven bits; the others a share of the range.
    for (stored, share) in [("float16", 1.0 / 2048.0), ("uint16", 1.0 / 65535.0), ("uint8", 1.0 / 255.0)] {
        let rounded = open(&model_json(&format!("efficient_{stored}"))).tensors;
        assert!(rounded.notes.iter().any(|note| note.contains(stored)), "{:?}", rounded.notes);
        assert!(whole.tensors.keys().eq(rounded.tensors.keys()));
        let mut differ = false;
        for (name, tensor) in &whole.tensors {
            let [whole, rounded] = [tensor, &rounded.tensors[name]].map(|tensor| match &tensor.data {
                TensorData::F32(values) => values,
                TensorData::I64(_) => panic!("{name} has floats"),
            });
            let bounds = whole.iter().fold([0.0f32; 2], |[low, high], &value| [low.min(value), high.max(value)]);
            let step = (bounds[1] - bounds[0]) * share;
            for (whole, rounded) in whole.iter().zip(rounded) {
                assert!((whole - rounded).abs() <= step, "{stored} {name}: {rounded} for {whole}");
                differ |= whole != rounded;
            }
        }
        assert!(differ, "{stored}");
    }
}

/// The parameters, each a little different.
fn moved(tensors: &[HostTensor]) -> Vec<HostTensor> {
    let mut tensors = tensors.to_vec();
    tensors.iter_mut().flat_map(|tensor| &mut tensor.data).for_each(|value| *value *= 1.5);
    tensors
}

#[test]
fn a_model_comes_back_as_one() {
    let folder = TempDir::new().unwrap();
    for name in ["efficient", "flat", "sequential", "efficient_uint8"] {
        let source = model_json(name);
        let mut model = Model::open(&source).unwrap();
        let network = model.network(1, model.size(None)).unwrap();
        let tensors = moved(&model.tensors(&network).unwrap());
        let out = folder.path().join(format!("{name}.json"));
        // What the file lacks, gamma of a batch norm for one, has no place in it.
        let notes = model.save(&network, &tensors, &out).unwrap();
        assert_eq!(notes.iter().any(|note| note.contains("float32 now")), name.contains("uint8"), "{notes:?}");
        assert!(folder.path().join(format!("{name}.weights.bin")).exists());
        let (before, after) = (open(&source), open(&out));
        assert_eq!(before.network, after.network, "{name}");
        assert_eq!(before.classes(), after.classes(), "{name}");
        let written = to_state(&network, &tensors).tensors;
        let neutral = |tensor: &FileTensor| match &tensor.data {
            TensorData::F32(values) => values.iter().all(|&value| [0.0, 1.0].contains(&value)),
            TensorData::I64(_) => true,
        };
        for (name, tensor) in after.tensors.tensors.iter().filter(|(_, tensor)| !neutral(tensor)) {
            assert_eq!(*tensor, written[name], "{name}");
        }
    }
}

#[test]
fn what_does_not_change_keeps_its_bytes() {
    let folder = TempDir::new().unwrap();
    for name in ["hard", "efficient_float16", "efficient_uint16"] {
        let source = model_json(name);
        let out = folder.path().join(format!("{name}.json"));
        let notes = formats::save(&open(&source).tensors, Some(&source), &out).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let shards =
            ["group1-shard1of2.bin", "group1-shard2of2.bin"].map(|shard| fs::read(source.with_file_name(shard)));
        let shards: Vec<u8> = shards.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(fs::read(out.with_extension("weights.bin")).unwrap(), shards, "{name}");
        let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let (mut before, mut after) = (json(&source), json(&out));
        assert_eq!(before["weightsManifest"][0]["weights"], after["weightsManifest"][0]["weights"]);
        before["weightsManifest"].take();
        after["weightsManifest"].take();
        assert_eq!(before, after, "{name}");
    }
}

/// At every moment the `model.json` that is there has its own weights.
#[test]
fn new_weights_never_take_the_place_of_those_in_use() {
    let folder = copied("sequential");
    let path = folder.path().join("model.json");
    let state = open(&path).tensors;
    let weights = |path: &Path| {
        let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        json["weightsManifest"][0]["paths"][0].as_str().unwrap().to_owned()
    };
    let mut names = vec![weights(&path)];
    for _ in 0..3 {
        formats::save(&state, Some(&path), &path).unwrap();
        assert_eq!(open(&path).tensors.tensors, state.tensors);
        names.push(weights(&path));
    }
    assert_eq!(names, ["weights.bin", "model.weights.bin", "model.weights.2.bin", "model.weights.bin"]);
    // Nor those of the file that is copied.
    let other = folder.path().join("other.json");
    fs::rename(folder.path().join("model.weights.bin"), folder.path().join("other.weights.bin")).unwrap();
    changed(&folder, |json| json["weightsManifest"][0]["paths"] = json!(["other.weights.bin"]));
    formats::save(&state, Some(&path), &other).unwrap();
    assert_eq!(weights(&other), "other.weights.2.bin");
    assert_eq!(open(&path).tensors.tensors, open(&other).tensors.tensors);

    // Where model.json cannot be written, the old one stays whole.
    let blocked = folder.path().join("blocked.json");
    fs::create_dir(&blocked).unwrap();
    let error = formats::save(&state, Some(&path), &blocked).unwrap_err().to_string();
    assert!(error.contains("blocked.json"), "{error}");
}

#[test]
fn a_head_for_other_classes_is_written() {
    let folder = TempDir::new().unwrap();
    for name in ["efficient", "sequential"] {
        let options = Options { classes: Some(3), head: Head::Optional, ..Options::default() };
        let mut model = Model::open_with(&model_json(name), options).unwrap();
        let network = model.network(1, model.size(None)).unwrap();
        let tensors = model.tensors(&network).unwrap();
        model.class_names = Some(["x", "y", "z"].map(String::from).into());
        let out = folder.path().join(format!("{name}.json"));
        let notes = model.save(&network, &tensors, &out).unwrap();
        assert!(notes[0].contains("has 3 outputs now"), "{notes:?}");
        let again = Model::open(&out).unwrap();
        assert_eq!((again.classes, again.class_names), (3, model.class_names));
    }
}

#[test]
fn a_model_is_a_copy_of_one() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.json");
    let model = Model::open(&golden("keras/hard_tf.h5")).unwrap();
    let network = model.network(1, model.size(None)).unwrap();
    let error = model.save(&network, &initialise(&network, 0), &out).unwrap_err();
    assert!(matches!(error, OpenError::Format(FormatError::NoTemplate { form: ".json", .. })), "{error}");
    let other = open(&model_json("flat")).tensors;
    let error = formats::save(&other, Some(&model_json("hard")), &out).unwrap_err().to_string();
    assert!(error.contains("the network has no tensor"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn teachable_machine_names_the_classes() {
    let model = Model::open(&model_json("sequential")).unwrap();
    let names = ["ant", "bee", "cat", "dog", "elk"].map(String::from);
    assert_eq!(model.class_names.as_deref(), Some(&names[..]));
    assert!(Model::open(&model_json("hard")).unwrap().class_names.is_none());

    let folder = copied("sequential");
    let path = folder.path().join("model.json");
    let metadata = |text: &str| {
        fs::write(folder.path().join("metadata.json"), text).unwrap();
        open(&path)
    };
    // Other programs have files of that name, too.
    for text in ["", "[]", "{\"labels\": 5}", "{\"version\": \"1\"}"] {
        let file = metadata(text);
        assert!(file.classes().is_none() && file.tensors.notes.is_empty(), "{text}");
    }
    let twice = metadata("{\"labels\": [\"a\", \"a\"]}");
    assert!(twice.classes().is_none() && twice.tensors.notes[0].contains("one name"));
    fs::write(formats::class_file(&path), "[\"v\", \"w\", \"x\", \"y\", \"z\"]").unwrap();
    let ours = metadata("{\"labels\": [\"a\", \"b\", \"c\", \"d\", \"e\"]}");
    assert_eq!(ours.classes().unwrap()[0], "v");
}

#[test]
fn what_cannot_be_opened_says_why() {
    let refusal = |change: &dyn Fn(&mut Value)| {
        let folder = copied("hard");
        formats::open(&changed(&folder, change), None).unwrap_err().to_string()
    };
    for (error, parts) in [
        (refusal(&|json| json["format"] = "graph-model".into()), ["graph model", "Keras or ONNX"]),
        (
            refusal(&|json| json["weightsManifest"][0]["paths"][0] = "lost.bin".into()),
            ["`lost.bin`, which is not there", "all files that it names"],
        ),
        (refusal(&|json| json["weightsManifest"][0]["paths"][0] = "../x.bin".into()), ["`../x.bin`", "not beside it"]),
        (
            refusal(&|json| drop(json["weightsManifest"][0]["weights"].as_array_mut().unwrap().pop())),
            ["take", "there are"],
        ),
        (refusal(&|json| json["modelTopology"] = json!({})), ["no configuration", "model.json"]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    // JSON that is something else.
    let folder = TempDir::new().unwrap();
    let graph = folder.path().join("graph.json");
    fs::write(&graph, "{\"thawline\": 1}").unwrap();
    let error = formats::open(&graph, None).unwrap_err().to_string();
    assert!(error.contains("no model.json") && error.contains("--model"), "{error}");
}

#[test]
fn the_command_line_takes_it_like_any_file() {
    let folder = copied("sequential");
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |args: &[&str]| {
        let out = Command::new(assert_cmd::cargo::cargo_bin("thawline")).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(out.stderr));
        text(out.stdout)
    };
    let shown = run(&["inspect", &at("model.json")]);
    assert!(shown.contains("5 classes, 12 px") && shown.contains("ant, bee"), "{shown}");
    let mut rng = Rng::new(1);
    let mut batch = StateDict::default();
    let images = (0..2 * 3 * 12 * 12).map(|_| rng.range(-1.0, 1.0) as f32).collect();
    batch.tensors.insert("images".into(), FileTensor::f32([2, 3, 12, 12], images));
    batch.tensors.insert("labels".into(), FileTensor::i64([2], vec![0, 3]));
    batch.save(at("batch.safetensors")).unwrap();
    let args = ["step", "--weights", &at("model.json"), "--inputs", &at("batch.safetensors"), "--policy", "head"];
    run(&[&args[..], &["--out", &at("tuned.json")]].concat());
    let [before, after] = ["model.json", "tuned.json"].map(|name| open(&folder.path().join(name)).tensors.tensors);
    let changed: Vec<&String> = before.keys().filter(|name| before[*name] != after[*name]).collect();
    assert_eq!(changed, ["dense.bias", "dense.weight"]);
    run(&["convert", &at("tuned.json"), "--out", &at("tuned.safetensors")]);
    run(&["convert", &at("tuned.safetensors"), "--to", &at("model.json"), "--out", &at("back.json")]);
    assert_eq!(open(Path::new(&at("back.json"))).tensors.tensors, after);
}
