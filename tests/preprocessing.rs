//! The same pixels as the frameworks: what torchvision, timm and Keras make of images, and of whole folders of them.
//!
//! `tests/golden/generate_pixels.py` and `generate_pictures.py` are the other side.

use assert_cmd::Command;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, Image, Resizer, Transform};
use thawline::formats::keras::{KerasConfig, Prepared, import};
use thawline::models::{self, MODELS, torchvision};
use thawline::preprocessing::{Interpolation, Preprocessing, Resize};
use thawline::rng::Rng;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn load<T: DeserializeOwned>(name: &str) -> T {
    let path = golden(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The stream of 64-bit numbers that a name stands for; see `tests/golden/README.md`.
fn stream(name: &str) -> Rng {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    Rng::new(name.bytes().fold(0xCBF2_9CE4_8422_2325, fold))
}

/// `picture` of generate_pixels.py.
fn picture([height, width]: [u32; 2]) -> Image {
    let mut noise = stream(&format!("picture {height}x{width}"));
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let [down, right] = [y * 127 / (height - 1).max(1), x * 127 / (width - 1).max(1)];
            pixels.extend([right, down, 127 - right].map(|share| share as u8 + (noise.next_u64() >> 57) as u8));
            pixels.push(255);
        }
    }
    Image { width, height, pixels }
}

#[derive(Deserialize)]
struct Pixels {
    mean: [f32; 3],
    std: [f32; 3],
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    by: String,
    image: [u32; 2],
    size: [u32; 2],
    resize: Resize,
    crop: f64,
    interpolation: Interpolation,
    every: usize,
    pixels: usize,
}

#[test]
fn pixels_are_those_of_torchvision_timm_and_keras() {
    let mut resizer = Resizer::new();
    for (name, count) in [("pixels_torch", 297), ("pixels_keras", 144)] {
        let Pixels { mean, std, cases } = load(&format!("{name}.json"));
        let bytes = fs::read(golden(&format!("{name}.bin"))).unwrap();
        assert_eq!(cases.len(), count);
        let (mut rest, mut equal, mut shown) = (&bytes[..], 0, picture([1, 1]));
        for case in cases {
            let Case { by, image, size: [height, width], resize, crop, interpolation, every, pixels } = case;
            let (theirs, others) = rest.split_at(3 * pixels);
            rest = others;
            let preprocessing = Preprocessing { resize, crop, interpolation, mean, std, bgr: false };
            let transform = Transform::new(height, width, Augment::None, preprocessing);
            let mut ours = vec![7; transform.bytes()];
            if [shown.height, shown.width] != image {
                shown = picture(image);
            }
            transform.eval(&shown, &mut resizer, &mut ours);
            let ours: Vec<[u8; 4]> = ours.as_chunks::<4>().0.iter().step_by(every).copied().collect();
            assert_eq!(ours.len(), pixels);
            for (index, (ours, theirs)) in ours.iter().zip(theirs.as_chunks::<3>().0).enumerate() {
                let apart = (0..3).map(|c| ours[c].abs_diff(theirs[c])).max().unwrap();
                let at = (index * every / width as usize, index * every % width as usize);
                assert!(
                    apart <= u8::from(!matches!(interpolation, Interpolation::Nearest | Interpolation::TfNearest)),
                    "{by} {preprocessing:?}, {image:?} to {height}×{width}: {ours:?} at {at:?}, and there {theirs:?}"
                );
                equal += usize::from(apart == 0);
            }
        }
        assert!(rest.is_empty());
        // One level is for rounding; a shift by a small part of a pixel would move most values of this noise.
        let share = equal as f64 / (bytes.len() / 3) as f64;
        assert!(share > 0.9, "{name}: {share}");
    }
}

#[derive(Deserialize)]
struct Network {
    name: String,
    set: Option<String>,
    file: Option<String>,
    size: usize,
    resize: Resize,
    before: Option<u64>,
    crop: Option<f64>,
    interpolation: Interpolation,
    mean: [f32; 3],
    std: [f32; 3],
}

#[test]
fn networks_are_shown_what_their_framework_shows_them() {
    let Value::Array(networks) = load::<Value>("preprocessing.json")["networks"].take() else { panic!("a list") };
    let mut seen: Vec<String> = Vec::new();
    for network in networks {
        let Network { name, set, file, size, resize, before, crop, interpolation, mean, std } =
            serde_json::from_value(network).unwrap();
        let spec = models::spec(&name).unwrap();
        let found = match set.as_deref() {
            // Only the file's name tells the second set.
            Some("IMAGENET1K_V2") => torchvision::set_of_file(spec, &file.unwrap()).unwrap(),
            _ => spec.preprocessing.clone(),
        };
        let value = found.value;
        let expected = Preprocessing { resize, crop: value.crop, interpolation, mean, std, bgr: false };
        assert_eq!((spec.default_size, value), (size, expected), "{name} {set:?}");
        match before {
            // An image of one pixel shows what is resized to.
            Some(before) => {
                assert_eq!(value.frame([1, 1], [size as u32; 2])[0].resized, before, "{name} {set:?}");
            }
            None => assert_eq!(value.crop, crop.unwrap(), "{name}"),
        }
        if let Some(set) = set {
            let mut origins = found.origins();
            assert!(origins.all(|(_, origin)| origin.starts_with(&format!("torchvision's {set}"))), "{name}");
        }
        seen.push(name);
    }
    for spec in MODELS.iter().filter(|spec| !spec.name.starts_with("keras_") && spec.name != "resnet_tiny") {
        assert!(seen.iter().any(|name| *name == spec.name), "{} is not in the list", spec.name);
    }
}

#[test]
fn a_nested_keras_network_is_shown_what_the_flat_one_is() {
    let models: Value = load("keras/nested.json");
    let none = |_: &str| None;
    let [nested, flat] = ["nested", "flat"].map(|name| {
        let found = import(KerasConfig { config: &models[name], keras_2: false, normalization: &none });
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.images, Prepared::AsApplication("resnet"), "{name}");
        assert_eq!(found.graph.preprocessing(), found.preprocessing.value);
        found.preprocessing
    });
    assert_eq!(nested, flat);
    assert_eq!(nested.value, models::spec("keras_resnet50").unwrap().preprocessing.value);
    assert!(nested.describe((64, 64)).contains("mean, std, bgr from preprocess_input of keras.applications.resnet"));

    // Layers of another beginning, which do not rescale their images: nothing is known.
    let mut other = models["flat"].clone();
    let text = other.to_string().replace("conv2_block1_0_conv", "shortcut");
    other = serde_json::from_str(&text).unwrap();
    let found = import(KerasConfig { config: &other, keras_2: false, normalization: &none }).unwrap();
    assert_eq!((found.images, found.preprocessing.value.mean), (Prepared::Unknown, [0.0; 3]));
}

#[test]
fn a_resizing_layer_says_how_images_are_resized() {
    let models: Value = load("keras/nested.json");
    let none = |_: &str| None;
    let with = |config: Value| {
        let mut model = models["nested"].clone();
        let layers = model["config"]["layers"].as_array_mut().unwrap();
        layers.insert(1, json!({"class_name": "Resizing", "config": config}));
        import(KerasConfig { config: &model, keras_2: false, normalization: &none })
    };
    let resizing = json!({"name": "resizing", "height": 40, "width": 48, "interpolation": "bicubic",
        "crop_to_aspect_ratio": true, "antialias": true});
    let found = with(resizing.clone()).unwrap();
    assert_eq!(found.graph.size(), (40, 48));
    let value = found.preprocessing.value;
    assert_eq!((value.resize, value.interpolation), (Resize::CropFirst, Interpolation::Bicubic));
    let text = found.preprocessing.describe((40, 48));
    assert!(text.contains("resize, interpolation from the model's layer `resizing`"), "{text}");
    for (key, value, reason) in [
        ("interpolation", json!("lanczos3"), "interpolation=`lanczos3` is not supported, only nearest, bilinear"),
        ("pad_to_aspect_ratio", json!(true), "pad_to_aspect_ratio=true is not supported"),
    ] {
        let mut config = resizing.clone();
        config[key] = value;
        let message = with(config).unwrap_err().to_string();
        assert!(message.contains("layer `resizing` (Resizing)") && message.contains(reason), "{message}");
    }
}

/// `folder` of generate_pictures.py: the images for validation, in the order in which Keras takes them.
fn pictures(dir: &Path) -> Vec<PathBuf> {
    const HALF_STRIPES: [i64; 4] = [16, 17, 18, 19];
    let mut paths = Vec::new();
    for (label, stripes) in HALF_STRIPES.into_iter().enumerate() {
        let class = dir.join(format!("class{label}"));
        fs::create_dir_all(&class).unwrap();
        for index in (label..96).step_by(HALF_STRIPES.len()) {
            let mut head = stream(&format!("photo {index}"));
            let [height, width] = [(); 2].map(|()| (head.next_u64() % 81 + 50) as i64);
            let phase = (head.next_u64() % 128) as i64;
            let mut noise = stream(&format!("noise {index}"));
            let mut pixels = Vec::new();
            for _ in 0..height {
                for x in 0..width {
                    let stripe = ((x * stripes * 64 / width + phase) % 128 - 64).abs() / 2;
                    pixels.extend([(); 3].map(|()| (stripe + (noise.next_u64() >> 56) as i64 * 7 / 8) as u8));
                }
            }
            let path = class.join(format!("{index:03}.png"));
            image::save_buffer(&path, &pixels, width as u32, height as u32, image::ColorType::Rgb8).unwrap();
            paths.push(path);
        }
    }
    paths
}

fn thawline(args: &[&str]) -> Value {
    let output = Command::cargo_bin("thawline").unwrap().args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[derive(Deserialize)]
struct Pictures {
    accuracy: f64,
    logits: Vec<Vec<f64>>,
}

/// Of images of all shapes, at a size from which on they used to be enlarged and cut.
#[test]
fn a_keras_network_is_as_good_on_files_as_in_keras() {
    let Pictures { accuracy, logits } = load("keras/pictures.json");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let paths = pictures(&data);
    let (weights, data) = (golden("keras/pictures.keras"), data.to_str().unwrap().to_owned());
    let weights = weights.to_str().unwrap();
    let eval = |options: &[&str]| {
        let common = ["eval", "--weights", weights, "--data", &data, "--split", "all", "--json", "--quiet"];
        thawline(&[&common, options].concat())["top1"].as_f64().unwrap()
    };
    assert_eq!(eval(&[]), accuracy);
    let zoomed = eval(&["--resize", "crop", "--crop", "0.875", "--interpolation", "bilinear"]);
    assert!(zoomed < accuracy - 0.2, "{zoomed}: the geometry makes a difference");

    // To the image, and the probabilities, too.
    let predictions =
        thawline(&["predict", "--weights", weights, &data, "--top", "4", "--json", "--quiet"])["predictions"].take();
    assert_eq!(predictions.as_array().unwrap().len(), logits.len());
    for (path, logits) in paths.iter().zip(&logits) {
        let is_same = |prediction: &&Value| prediction["path"] == path.to_str().unwrap();
        let ours = predictions.as_array().unwrap().iter().find(is_same).unwrap()["top"].as_array().unwrap();
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let mut theirs: Vec<(usize, f64)> =
            logits.iter().map(|logit| (logit - largest).exp() / sum).enumerate().collect();
        theirs.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(ours[0]["index"], theirs[0].0, "{}", path.display());
        for candidate in ours {
            let index = candidate["index"].as_u64().unwrap() as usize;
            let (_, expected) = theirs.iter().find(|(class, _)| *class == index).unwrap();
            let probability = candidate["probability"].as_f64().unwrap();
            // A pixel's value is rounded to one of 256.
            assert!((probability - expected).abs() < 0.01, "{}: {probability}, not {expected}", path.display());
        }
    }
}

/// Options that differ from what `resnet_tiny` has in every part.
const OTHER: [&str; 10] =
    ["--resize", "pad", "--crop", "0.9", "--interpolation", "bicubic", "--mean", "0.25", "--std", "0.5,0.25,0.125"];

fn other() -> Preprocessing {
    let normalised = Preprocessing::normalised([0.25; 3], [0.5, 0.25, 0.125]);
    Preprocessing { resize: Resize::Pad, crop: 0.9, interpolation: Interpolation::Bicubic, ..normalised }
}

/// What `inspect --json` says of a file, and where the parts come from.
fn inspected(args: &[&str]) -> (Preprocessing, Vec<String>) {
    let mut found = thawline(&[&["inspect", "--json"], args].concat())["preprocessing"].take();
    let Value::Object(from) = found.as_object_mut().unwrap().remove("from").unwrap() else { panic!("{found}") };
    let mut origins: Vec<String> = from.values().map(|origin| origin.as_str().unwrap().to_owned()).collect();
    origins.sort();
    origins.dedup();
    (serde_json::from_value(found).unwrap(), origins)
}

fn refused(args: &[&str]) -> String {
    let output = Command::cargo_bin("thawline").unwrap().args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_a_run_was_shown_stays_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (data, run) = (at("data"), at("run"));
    write_sample_data(SampleSet::Shapes, Path::new(&data), &SampleOptions { size: 24, per_class: 4, seed: 1 }).unwrap();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/resnet_tiny_shapes.safetensors");
    let weights = weights.to_str().unwrap();
    let (own, origins) = inspected(&[weights]);
    assert_eq!(own, models::spec("resnet_tiny").unwrap().preprocessing.value);
    assert_eq!(origins, ["this network's default"]);
    let (asked, origins) = inspected(&[&[weights], &OTHER[..]].concat());
    assert_eq!((asked, origins), (other(), vec!["the command line".into(), "this network's default".into()]));

    let train = ["finetune", "--weights", weights, "--data", &data, "--out", &run, "--epochs", "1", "--batch", "8"];
    let train = [&train[..], &["--policy", "head"], &OTHER].concat();
    let output = Command::cargo_bin("thawline").unwrap().args(&train).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("images: fitted into 17×17 and padded, centre 16×16 kept (crop 0.9); bicubic,"), "{said}");
    let best = at("run/best.safetensors");
    assert_eq!(inspected(&[&best]), (other(), vec!["the file".into()]));
    let eval = |file: &str, more: &[&str]| {
        let common = ["eval", "--weights", file, "--data", &data, "--split", "all", "--json", "--quiet"];
        thawline(&[&common, more].concat())["loss"].as_f64().unwrap()
    };
    let loss = eval(&best, &[]);
    assert_eq!(loss, eval(&best, &OTHER));
    // Square images are brought to a square in one way.
    for option in [["--crop", "0.5"], ["--interpolation", "nearest"], ["--std", "0.3"]] {
        assert_ne!(loss, eval(&best, &option), "{option:?}");
    }

    let settings = fs::read_to_string(dir.path().join("run/run.toml")).unwrap();
    for line in ["[transform.preprocessing]", "resize = \"pad\"", "crop = 0.9", "interpolation = \"bicubic\""] {
        assert!(settings.contains(line), "{settings}");
    }
    let message = refused(&["finetune", "--resume", &run, "--resize", "crop"]);
    assert!(message.contains("transform.preprocessing.resize"), "{message}");
    let again = Command::cargo_bin("thawline").unwrap().args(["finetune", "--resume", &run]).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));

    // What other commands write, and a graph, which says it itself.
    let (made, onnx, graph) = (at("made.safetensors"), at("made.onnx"), at("graph.json"));
    for args in [
        &["recalibrate", "--weights", &best, "--data", &data, "--out", &made, "--json", "--quiet"][..],
        &["convert", &best, "--out", &made, "--force", "--json"],
        &["fold", "--weights", &best, "--out", &made, "--force", "--json"],
        &["fold", "--weights", &best, "--out", &onnx, "--json"],
    ] {
        thawline(args);
        let file = if args.contains(&onnx.as_str()) { &onnx } else { &made };
        assert_eq!(inspected(&[file]), (other(), vec!["the file".into()]), "{args:?}");
    }
    let output = Command::cargo_bin("thawline").unwrap().args(["inspect", &best, "--graph"]).output().unwrap();
    fs::write(&graph, output.stdout).unwrap();
    assert_eq!(inspected(&["--model", &graph]), (other(), vec!["the graph file".into()]));
    assert_eq!(eval(weights, &["--model", &graph]), eval(weights, &OTHER));

    let inputs = ["predict", "--weights", weights, "--inputs", "x.safetensors", "--out", "y.safetensors"];
    assert!(refused(&[&inputs[..], &["--crop", "1"]].concat()).contains("cannot be used with"));
    for (option, value, reason) in [
        ("--resize", "squash", "the modes are stretch, crop, crop-first, pad"),
        ("--crop", "1.2", "expected a share from 0.01 to 1"),
        (
            "--interpolation",
            "lanczos",
            "the interpolations are nearest, bilinear, bicubic, tf-nearest, tf-bilinear, tf-bicubic",
        ),
        ("--mean", "1,2", "expected three numbers such as"),
        ("--std", "0", "expected three numbers above 0"),
    ] {
        let message = refused(&["inspect", weights, option, value]);
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_config_beside_the_file_says_how_images_are_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/resnet_tiny_shapes.safetensors"), &file).unwrap();
    let file = file.to_str().unwrap();
    let config = |images: Value| {
        let text = json!({"architecture": "resnet_tiny", "pretrained_cfg": images}).to_string();
        fs::write(dir.path().join("config.json"), text).unwrap();
    };
    config(json!({"input_size": [3, 20, 20], "test_input_size": [3, 24, 24], "crop_pct": 0.9, "test_crop_pct": 1.0,
        "crop_mode": "border", "interpolation": "bicubic", "mean": [0.25, 0.25, 0.25], "std": [0.5, 0.25, 0.125]}));
    let origins = ["config.json", "this network's default"].map(str::to_owned).to_vec();
    assert_eq!(inspected(&[file]), (other(), origins.clone()));
    assert_eq!(inspected(&[file, "--size", "24"]), (Preprocessing { crop: 1.0, ..other() }, origins));
    let output = Command::cargo_bin("thawline").unwrap().args(["inspect", file]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // At the size that the file's own metadata tells.
    let line = "images: fitted into 17×17 and padded, centre 16×16 kept (crop 0.9); bicubic, antialiased; mean 0.25, std 0.5 \
                0.25 0.125, RGB (bgr from this network's default; resize, crop, interpolation, mean, std from config.json)";
    assert!(text.contains(line), "{text}");
    assert!(text.ends_with("timm tests these weights at 24 px, too: --size 24\n"), "{text}");

    config(json!({"interpolation": "lanczos"}));
    let message = refused(&["inspect", file]);
    assert!(message.contains("config.json: it has interpolation `lanczos`"), "{message}");
    assert_eq!(inspected(&[file, "--interpolation", "bilinear"]).0.interpolation, Interpolation::Bilinear);
}
