//! What the fuzzers feed: each takes bytes of which nothing is known, and reads them as what they pretend to be.
//!
//! A target may fail, but not panic, nor take memory or time without measure. `tests/hostile.rs` runs them on the
//! stable compiler, over the corpus and changed copies of it.

use std::fs;
use std::path::Path;
use thawline::data::DecodeOptions;
use thawline::data::decode::decode;
use thawline::formats::onnx::{self, Imported};
use thawline::formats::{self, ModelFile};
use thawline::models::{GraphFile, Spec};
use thawline::weights::WeightsError;

pub type Target = fn(&[u8]) -> Result<(), String>;

/// Every target, by the name of its fuzzer and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("graph", graph),
    ("hdf5", keras),
    ("image", image),
    ("keras", keras),
    ("onnx", onnx),
    ("pickle", pickle),
    ("safetensors", weights),
    ("tfjs", tfjs),
    ("zip", weights),
];

/// An image of any format, and at most a megapixel.
pub fn image(bytes: &[u8]) -> Result<(), String> {
    let options = DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() };
    let image = decode(bytes, Path::new("file"), &options).map_err(|error| error.to_string())?;
    assert_eq!(
        image.pixels.len(),
        image.width as usize * image.height as usize * 4,
        "{}×{}",
        image.width,
        image.height
    );
    Ok(())
}

/// A weights file of any format.
pub fn weights(bytes: &[u8]) -> Result<(), String> {
    let state = loaded(bytes).map_err(|error| error.to_string())?.tensors;
    for (name, tensor) in &state.tensors {
        let values: usize = tensor.shape.iter().product();
        assert_eq!(values, tensor.data.len(), "the values of {name} do not fill its shape {:?}", tensor.shape);
    }
    Ok(())
}

/// The pickle in a PyTorch file. The archive around it is whole and has no checksum, so that the pickle is reached.
pub fn pickle(bytes: &[u8]) -> Result<(), String> {
    weights(&archive(bytes))
}

/// A Keras file, and the network that it describes, if it does.
pub fn keras(bytes: &[u8]) -> Result<(), String> {
    described(loaded(bytes).map_err(|error| error.to_string())?)
}

/// The network that a Keras configuration describes, if the file has one.
fn described(file: ModelFile) -> Result<(), String> {
    let Some(network) = file.network else { return Ok(()) };
    match network.import().map_err(|error| error.to_string())? {
        Some(imported) => built(imported.graph),
        None => Ok(()),
    }
}

/// A TensorFlow.js model, and its network: up to the first zero byte `model.json`, in which none can be, and then `weights.bin`
/// beside it.
pub fn tfjs(bytes: &[u8]) -> Result<(), String> {
    let (json, weights) = bytes.split_at(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.json");
    fs::write(&path, json).expect("a temporary file");
    fs::write(path.with_file_name("weights.bin"), weights.get(1..).unwrap_or_default()).expect("a temporary file");
    described(formats::open(&path, None).map_err(|error| error.to_string())?)
}

/// A graph file, as far as its network.
pub fn graph(bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    built(GraphFile::parse(text, "file.json").map_err(|error| error.to_string())?)
}

/// An ONNX file, as far as the network for the images that it was made for.
pub fn onnx(bytes: &[u8]) -> Result<(), String> {
    let Imported { file, .. } = onnx::parse(bytes, Path::new("file.onnx")).map_err(|error| error.to_string())?;
    built(file)
}

/// A network for the images and the classes that it was made for can be built, if it is one.
fn built(file: GraphFile) -> Result<(), String> {
    let classes = file.classes();
    let spec = Spec::of_file(file);
    spec.build(1, spec.size(), classes).map(drop).map_err(|error| error.to_string())
}

fn loaded(bytes: &[u8]) -> Result<ModelFile, WeightsError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file");
    fs::write(&path, bytes).expect("a temporary file");
    formats::open(&path, None)
}

/// A PyTorch zip with this pickle and one storage of 8 bytes. Checksums are zero, which stands for "none".
fn archive(pickle: &[u8]) -> Vec<u8> {
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
