//! Files made by PyTorch, files made by hand to do harm, and files written here.

use crate::preprocessing::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, Parts, Resize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::*;
use crate::weights::{Config, FileTensor, TensorData, write_atomically};
use std::collections::BTreeMap;

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/weights")).join(name)
}

/// What the generator of the golden files puts into a tensor.
fn ramp(shape: &[usize]) -> FileTensor {
    let count: usize = shape.iter().product();
    FileTensor::f32(shape, (0..count).map(|index| index as f32 * 0.25 - 1.0).collect())
}

fn expected_tensors() -> BTreeMap<String, FileTensor> {
    BTreeMap::from([
        ("conv1.weight".to_string(), ramp(&[2, 3, 1, 2])),
        ("bn1.num_batches_tracked".to_string(), FileTensor::i64([], vec![7])),
        ("fc.bias".to_string(), ramp(&[5])),
    ])
}

fn refusal(name: &str) -> String {
    StateDict::load(golden(name)).unwrap_err().to_string()
}

/// Loads bytes as a file.
fn load_bytes(bytes: &[u8]) -> Result<StateDict, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, bytes).unwrap();
    StateDict::load(&path)
}

#[test]
fn every_form_of_a_state_dict_loads_alike() {
    for name in ["plain.pth", "legacy.pth", "data_parallel.pth", "checkpoint.pth", "f16.pth", "bf16.pth", "f64.pth"] {
        let state = StateDict::load(golden(name)).unwrap();
        assert_eq!(state.tensors, expected_tensors(), "{name}");
        assert_eq!(state.origin, Some(golden(name)));
    }
}

/// The tensors of an average over the steps: all values are greater by one.
fn average() -> BTreeMap<String, FileTensor> {
    let mut tensors = expected_tensors();
    for tensor in tensors.values_mut() {
        match &mut tensor.data {
            TensorData::F32(values) => values.iter_mut().for_each(|value| *value += 1.0),
            TensorData::I64(values) => values.iter_mut().for_each(|value| *value += 1),
        }
    }
    tensors
}

#[test]
fn of_several_sets_of_weights_the_average_is_taken_and_said() {
    for (name, taken, other) in
        [("timm_ema.pth", "state_dict_ema", "state_dict"), ("teacher.pth", "teacher", "student")]
    {
        let state = StateDict::load(golden(name)).unwrap();
        assert_eq!(state.tensors, average(), "{name}");
        let note = &state.notes[0];
        assert!(note.contains(&format!("`{taken}`, the average")) && note.contains(&format!("`{other}`")), "{note}");
        let chosen = open(&golden(name), Some(other)).unwrap().tensors;
        assert_eq!(chosen.tensors, expected_tensors(), "{name}");
        assert!(!chosen.notes.iter().any(|note| note.contains("sets of weights")), "{:?}", chosen.notes);
        // `DataParallel` was around one of them.
        let module = state.notes.iter().any(|note| note == "`module.` is left off the names of 3 tensors");
        assert_eq!(module, name == "teacher.pth", "{:?}", state.notes);
    }
    // What counts the steps stands beside the module that is averaged.
    let mut state = StateDict::load(golden("torchvision_ema.pth")).unwrap();
    assert!(state.notes[0].contains("`model_ema`") && state.notes[0].contains("`model`"), "{:?}", state.notes);
    assert_eq!(state.keep_prefix("module."), ["n_averaged"]);
    assert_eq!(state.tensors, average());
    // An entry of no known name that is the only one is known by its tensors.
    assert_eq!(StateDict::load(golden("net.pth")).unwrap().tensors, expected_tensors());
    // Of two unknown ones none is taken by its name.
    let both = StateDict::load(golden("two.pth")).unwrap();
    assert!(both.tensors.contains_key("generator.fc.bias") && both.tensors.contains_key("discriminator.fc.bias"));
    assert_eq!(open(&golden("two.pth"), Some("generator")).unwrap().tensors.tensors, average());
}

#[test]
fn a_set_of_weights_is_an_entry_or_what_names_begin_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sets.safetensors");
    let names = ["encoder_q.a", "encoder_k.a", "encoder_k.module.b", "queue"];
    let tensors = names.iter().map(|name| (name.to_string(), ramp(&[1]))).collect();
    StateDict { tensors, ..Default::default() }.save(&path).unwrap();
    let names_of = |set| open(&path, Some(set)).unwrap().tensors.tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names_of("encoder_q"), ["a"]);
    assert_eq!(names_of("encoder_k."), ["a", "module.b"]);
    let refused = |path: &Path, set| open(path, Some(set)).unwrap_err().to_string();
    let message = refused(&path, "ema");
    assert!(message.contains("no set of weights called `ema`; there are: encoder_k, encoder_q"), "{message}");
    let message = refused(&golden("timm_ema.pth"), "model_ema");
    assert!(message.contains("there are: state_dict_ema, state_dict"), "{message}");
    assert!(refused(&golden("plain.pth"), "x\u{1b}[2J").contains("called `x\\u{1b}[2J`"));
}

#[test]
fn views_are_gathered_from_their_storage() {
    let state = StateDict::load(golden("views.pth")).unwrap();
    let base = ramp(&[3, 4]);
    let TensorData::F32(values) = &base.data else { unreachable!("ramp makes floats") };
    let at = |row: usize, column: usize| values[row * 4 + column];
    let transposed = (0..4).flat_map(|column| (0..3).map(move |row| (row, column)));
    let transposed = transposed.map(|(row, column)| at(row, column)).collect();
    assert_eq!(state.tensors["base"], base);
    assert_eq!(state.tensors["transposed"], FileTensor::f32([4, 3], transposed));
    assert_eq!(state.tensors["corner"], FileTensor::f32([2, 2], vec![at(1, 0), at(1, 2), at(2, 0), at(2, 2)]));
}

#[test]
fn a_whole_module_is_read_as_its_state_dict() {
    let state = StateDict::load(golden("module.pth")).unwrap();
    // One of its parts is called `model`, which is also where a checkpoint would keep the whole state dict.
    let expected = [("fc.weight", ramp(&[1, 3])), ("model.bias", ramp(&[3])), ("model.weight", ramp(&[3, 2]))];
    assert_eq!(state.tensors, BTreeMap::from(expected.map(|(name, tensor)| (name.to_string(), tensor))));
}

#[test]
fn a_wrapper_prefix_goes_if_every_name_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrapped");
    let names_of = |names: &[&str]| -> Vec<String> {
        let tensors = names.iter().map(|name| (name.to_string(), ramp(&[1]))).collect();
        StateDict { tensors, ..Default::default() }.save(&path).unwrap();
        StateDict::load(&path).unwrap().tensors.into_keys().collect()
    };
    assert_eq!(names_of(&["module._orig_mod.a", "module._orig_mod.b"]), ["a", "b"]);
    assert_eq!(names_of(&["_orig_mod.a"]), ["a"]);
    assert_eq!(names_of(&["module.a", "n_averaged"]), ["module.a", "n_averaged"]);
    assert_eq!(names_of(&["module."]), ["module."]);
}

#[test]
fn what_cannot_be_loaded_says_why() {
    for (name, parts) in [
        ("bool.pth", &["tensor `mask`", "Bool"][..]),
        ("f64_too_large.pth", &["tensor `conv1.weight`", "1e300", "float32"]),
        ("expanded.pth", &["tensor `conv1.weight`", "268435456 bytes", ".contiguous()"]),
        ("no_tensors.pth", &["holds no tensor", "state_dict()"]),
        ("os_system.pth", &["refused", "`posix.system`", "nothing was run"]),
        ("plain_pickle.pth", &["plain pickle", "state_dict()"]),
        ("quantised.pth", &["is quantised", "the file of floats"]),
    ] {
        let message = refusal(name);
        assert!(message.contains(golden(name).to_str().unwrap()), "{message}");
        for part in parts {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
}

#[test]
fn other_files_are_recognised() {
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, part) in [
        (&b""[..], "it is empty"),
        (b"not weights at all", "its content is none of safetensors, PyTorch, Keras, TensorFlow.js or ONNX"),
        (&tar, "tar archive"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "download it again"),
        (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "neither data.pkl nor config.json"),
        (b"PK\x03\x04 and then nothing", "damaged"),
    ] {
        let message = load_bytes(bytes).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let missing = StateDict::load(golden("nowhere.pth")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read ") && missing.contains("nowhere.pth"), "{missing}");
    let folder = StateDict::load(golden("")).unwrap_err().to_string();
    assert!(folder.contains("it is a folder"), "{folder}");
}

/// A safetensors file with this header and so many bytes of values.
fn safetensors_bytes(header: &str, values: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..values).map(|index| index as u8));
    bytes
}

#[test]
fn hostile_safetensors_headers_are_errors() {
    for (header, values, part) in [
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 3, "not fully covered"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 5, "not fully covered"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "invalid shape"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4, "invalid"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "invalid offset"),
        (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#, 4, "overflow"),
        (r#"{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}"#, 4, "not fully covered"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "`a` is there twice",
        ),
        (r#"{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}"#, 4, "tensor `a`"),
        (r#"{"a":{"dtype":"F77","shape":[4],"data_offsets":[0,4]}}"#, 4, "F77"),
        (r#"{"a":7}"#, 0, "header"),
        (r#"{"a":"#, 0, "header"),
        ("{}", 0, "holds no tensor"),
    ] {
        let message = load_bytes(&safetensors_bytes(header, values)).unwrap_err().to_string();
        assert!(message.contains(part), "{header}: {message}");
    }
    for (length, part) in [(u64::MAX, "claims to be longer"), (9 << 20, "claims to be longer"), (99, "cut off")] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{\"a\":");
        let message = load_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn safetensors_numbers_are_converted_and_metadata_is_kept() {
    let header = r#"{"__metadata__":{"made by":"hand"},
        "half":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"byte":{"dtype":"U8","shape":[1,1],"data_offsets":[4,5]}}"#;
    let state = load_bytes(&safetensors_bytes(header, 5)).unwrap();
    let half = [0x0100u32, 0x0302].map(|bits| f32::from_bits(bits << 16));
    assert_eq!(state.tensors["half"], FileTensor::f32([2], half.to_vec()));
    assert_eq!(state.tensors["byte"], FileTensor::i64([1, 1], vec![4]));
    assert_eq!(state.metadata, BTreeMap::from([("made by".to_string(), "hand".to_string())]));
}

#[test]
fn what_is_saved_loads_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let mut state = StateDict { tensors: expected_tensors(), ..Default::default() };
    state.tensors.insert("empty".into(), FileTensor::f32([0, 3], vec![]));
    state.tensors.insert("odd.weight".into(), FileTensor::f32([2], vec![f32::NAN, -0.0]));
    state.metadata.insert("note".into(), "ünïcode \"quoted\"".into());
    state.save(&path).unwrap();

    let again = StateDict::load(&path).unwrap();
    assert_eq!(again.tensors.keys().collect::<Vec<_>>(), state.tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &state.tensors {
        assert_eq!(again.tensors[name].shape, tensor.shape, "{name}");
        assert_eq!(again.tensors[name].data.bytes(), tensor.data.bytes(), "{name}");
    }
    assert_eq!(again.metadata["format"], "pt");
    assert_eq!(again.metadata["note"], state.metadata["note"]);

    // Reading and writing once more changes no byte, and nothing else is left in the folder.
    let bytes = fs::read(&path).unwrap();
    again.save(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_saved_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    fs::write(&path, "the old one").unwrap();

    let mut state = StateDict { tensors: expected_tensors(), ..Default::default() };
    state.tensors.insert("fc.weight".into(), FileTensor::f32([2, 2], vec![1.0; 3]));
    let message = state.save(&path).unwrap_err().to_string();
    assert!(message.contains("`fc.weight`") && message.contains("[2, 2]"), "{message}");
    state.tensors.remove("fc.weight");
    state.tensors.insert("__metadata__".into(), ramp(&[1]));
    assert!(state.save(&path).unwrap_err().to_string().contains("reserves"));
    state.tensors.remove("__metadata__");

    // A disk that fills up after the first bytes.
    let full = write_atomically(&path, |file| {
        file.write_all(&[0; 100_000])?;
        Err(io::ErrorKind::StorageFull.into())
    });
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);

    assert_eq!(fs::read_to_string(&path).unwrap(), "the old one");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    for unwritable in [folder.path().join("no/such/folder/out"), path.join("out"), folder.path().to_path_buf()] {
        let message = state.save(&unwritable).unwrap_err().to_string();
        assert!(message.starts_with("cannot write ") && message.contains("unchanged"), "{message}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_is_beside_the_weights_describes_them() {
    let folder = tempfile::tempdir().unwrap();
    let beside = |json: &str| {
        fs::write(folder.path().join("config.json"), json).unwrap();
        Config::beside(&folder.path().join("model.safetensors")).unwrap()
    };
    let timm = r#"{"architecture": "resnet18", "num_classes": 1000, "num_features": 512, "pretrained_cfg": {"tag": "a1",
        "input_size": [3, 224, 288], "test_input_size": [3, 288, 288], "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode":
        "squash", "interpolation": "bilinear", "fixed_input_size": false, "mean": [0.485, 0.456, 0.406], "std":
        [0.5, 0.5, 0.25], "pool_size": [7, 7], "first_conv": null}}"#;
    let timm = beside(timm).unwrap();
    assert_eq!(timm.architecture.as_deref(), Some("resnet18"));
    assert_eq!((timm.size, timm.test_size), (Some((224, 288)), Some((288, 288))));
    let parts = Parts {
        resize: Some(Resize::Stretch),
        crop: Some(0.95),
        interpolation: Some(Interpolation::Bilinear),
        mean: Some([0.485, 0.456, 0.406]),
        std: Some([0.5, 0.5, 0.25]),
        bgr: None,
    };
    assert_eq!(timm.parts((224, 288), &Parts::default()), Ok(parts));
    assert_eq!(timm.parts((96, 96), &Parts::default()), Ok(parts));
    assert_eq!(timm.parts((288, 288), &Parts::default()), Ok(Parts { crop: Some(1.0), ..parts }), "as timm tests it");

    assert_eq!(beside("{}"), Some(Config::default()));
    assert_eq!(Config::default().parts((224, 224), &Parts::default()), Ok(Parts::default()));
    // timm's own defaults.
    let empty = beside(r#"{"pretrained_cfg": {"input_size": [3, 0, 9], "crop_mode": null}}"#).unwrap();
    assert_eq!(empty.size, None);
    let defaults = Parts {
        resize: Some(Resize::Crop),
        crop: Some(0.875),
        interpolation: Some(Interpolation::Bicubic),
        mean: Some(IMAGENET_MEAN),
        std: Some(IMAGENET_STD),
        bgr: None,
    };
    assert_eq!(empty.parts((224, 224), &Parts::default()), Ok(defaults));

    for (field, value, known, reason) in [
        ("crop_mode", "\"fill\"", Parts { resize: Some(Resize::Pad), ..Parts::default() }, "crop_mode `fill`; say how"),
        (
            "interpolation",
            "\"lanczos\"",
            Parts { interpolation: Some(Interpolation::Bicubic), ..Parts::default() },
            "interpolation `lanczos`, which is not supported; choose one by --interpolation",
        ),
        ("crop_pct", "3", Parts { crop: Some(1.0), ..Parts::default() }, "`crop` is 3: expected a share"),
        ("std", "[1, 0, 1]", Parts { std: Some([1.0; 3]), ..Parts::default() }, "`std` is [1.0, 0.0, 1.0]"),
    ] {
        let config = beside(&format!(r#"{{"pretrained_cfg": {{"{field}": {value}}}}}"#)).unwrap();
        let message = config.parts((224, 224), &Parts::default()).unwrap_err();
        assert!(message.contains(reason), "{message}");
        assert!(config.parts((224, 224), &known).is_ok(), "the caller knows better");
    }
    for other in ["", "[[[[", "[]", r#"{"architecture": 3}"#, r#"{"pretrained_cfg": {"mean": [1]}}"#] {
        assert_eq!(beside(other), None, "{other}");
    }
}

/// A PyTorch zip with one storage of 8 bytes and this pickle. Checksums are zero, which stands for "none".
fn zip_bytes(pickle: &[u8]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    let entries: [(&[u8], &[u8]); 2] = [(b"a/data.pkl", pickle), (b"a/data/0", &[0; 8])];
    for (name, content) in entries {
        // Version, flags, method (stored), time, date, checksum; then sizes and the lengths of name and extra field.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for _ in 0..2 {
            common.extend((content.len() as u32).to_le_bytes());
        }
        common.extend([name.len() as u8, 0, 0, 0]);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        // Comment length, disk, attributes.
        directory.extend([0; 10]);
        directory.extend((bytes.len() as u32).to_le_bytes());
        directory.extend(name);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name);
        bytes.extend(content);
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// The pickle of `{"w": tensor}`, two floats in storage 0, seen with this shape, stride and declared storage size.
fn tensor_pickle(shape: &str, stride: &str, storage: u32) -> Vec<u8> {
    let tuple = |text: &str| {
        let mut bytes = b"(".to_vec();
        for number in text.split(' ') {
            bytes.extend(format!("I{number}\n").into_bytes());
        }
        bytes.push(b't');
        bytes
    };
    let mut pickle = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n".to_vec();
    pickle.extend(b"U\x010U\x03cpuJ");
    pickle.extend(storage.to_le_bytes());
    pickle.extend(b"tQK\0");
    pickle.extend(tuple(shape));
    pickle.extend(tuple(stride));
    pickle.extend(b"\x89NtRs.");
    pickle
}

#[test]
fn a_zip_made_by_hand_loads() {
    let state = load_bytes(&zip_bytes(&tensor_pickle("2", "1", 2))).unwrap();
    assert_eq!(state.tensors["w"], FileTensor::f32([2], vec![0.0, 0.0]));
}

#[test]
fn hostile_pickles_are_errors() {
    let overflowing = tensor_pickle("4294967296 4294967296 4294967296", "1 1 1", 2);
    let mut endless = b"\x80\x02".to_vec();
    endless.resize(2 << 20, b'N');
    endless.push(b'.');
    let mut crowded = b"\x80\x02".to_vec();
    crowded.resize(1_000_000, b'N');
    crowded.push(b'.');
    let mut deep = b"\x80\x02".to_vec();
    deep.resize(100_000, b']');
    deep.resize(199_000, b'a');
    deep.push(b'.');
    for (pickle, part) in [
        (tensor_pickle("3", "1", 2), "declares 2"),
        (tensor_pickle("1000", "1", 1000), "2 are available"),
        (tensor_pickle("1000000000", "0", 2), "honestly"),
        (overflowing, "overflows"),
        (tensor_pickle("2", "-1", 2), "stride"),
        (tensor_pickle("2 1", "1", 2), "rank"),
        (b"\x80\x02}U\x01wcposix\nsystem\nU\x02ls\x85Rs.".to_vec(), "`posix.system`"),
        (b"\x80\x04}\x8c\x01w\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85Rs.".to_vec(), "`builtins.eval`"),
        (b"\x80\x02cposix\nsystem\nU\x02ls\x85R.".to_vec(), "`posix.system`"),
        // A list that holds itself.
        (b"\x80\x02]q\0h\0a.".to_vec(), "holds no tensor"),
        (b"\x80\x02}q\0U\x01wh\0s.".to_vec(), "holds no tensor"),
        (endless, "larger than any network"),
        (crowded, "holds no tensor"),
        (deep, "nesting"),
        (b"\x80\x02}".to_vec(), "cut off"),
        (b"\x80\x02X\xff\xff\xff\xffabc.".to_vec(), "cut off"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(), "cut off"),
        (b"\x80\x02\xfe.".to_vec(), "opcode 0xfe"),
        (b".".to_vec(), "underflow"),
        (Vec::new(), "cut off"),
    ] {
        let message = load_bytes(&zip_bytes(&pickle)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_archive_that_pytorch_would_not_write_is_refused() {
    let good = zip_bytes(&tensor_pickle("2", "1", 2));
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = good.clone();
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
        load_bytes(&bytes).unwrap_err().to_string()
    };
    assert!(renamed(b"a/data.pkl", b"a/text.pkl").contains("neither data.pkl nor config.json"));
    assert!(renamed(b"a/data/0", b"data.pkl").contains("several data.pkl"));
    // The method of the directory's second entry becomes deflate.
    let mut compressed = good.clone();
    let at = compressed.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    compressed[at + 10] = 8;
    assert!(load_bytes(&compressed).unwrap_err().to_string().contains("compressed"));
}

#[test]
fn every_format_has_its_row_and_endings_of_its_own() {
    for facts in &FORMATS {
        assert_eq!(facts.format.facts().format, facts.format);
        for ending in facts.endings {
            let name = format!("some.file{ending}");
            assert_eq!(Format::of_name(Path::new(&name.to_uppercase())), Some(facts.format), "{name}");
        }
    }
    assert_eq!(Format::of_name(Path::new("weights.bin")), None);
}
