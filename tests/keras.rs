//! Keras's files, small ones of every kind that `tests/golden/generate_keras.py` writes, read and written back.

use hdf5_pure::{AttrValue, DatasetBuilder, Datatype, DatatypeByteOrder, File};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::formats::keras::{self, Imported, KerasConfig, KerasError, import};
use thawline::formats::{self, ModelFile};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::{Affine, Graph, LayerId, LayerKind, Variance};
use thawline::models::{Augmentation, GraphFile};
use thawline::plan::Input;
use thawline::policy::{self, Policy, PolicyError, Rule};
use thawline::preprocessing::Preprocessing;
use thawline::rng::Rng;
use thawline::train::{Evaluator, Images};
use thawline::weights::{self, FileTensor, StateDict, TensorData};
use zip::ZipArchive;

/// The files, each with the name of what is known of it.
const FILES: [(&str, &str); 37] = [
    ("efficient.keras", "efficient"),
    ("efficient.h5", "efficient"),
    ("efficient.weights.h5", "efficient"),
    ("resnet.keras", "resnet"),
    ("mobilenet.keras", "mobilenet"),
    ("mobilenet.h5", "mobilenet"),
    ("hard.keras", "hard"),
    ("transfer.keras", "transfer"),
    ("transfer.h5", "transfer"),
    ("transfer.weights.h5", "transfer"),
    ("sequential.keras", "sequential"),
    ("sequential.h5", "sequential"),
    ("efficient_tf.keras", "efficient_tf"),
    ("efficient_tf.h5", "efficient_tf"),
    ("efficient_tf_weights.h5", "efficient_tf"),
    ("resnet_tf.h5", "resnet_tf"),
    ("hard_tf.h5", "hard_tf"),
    ("transfer_tf.keras", "transfer_tf"),
    ("transfer_tf.h5", "transfer_tf"),
    ("sequential_tf.keras", "sequential_tf"),
    ("sequential_tf.h5", "sequential_tf"),
    ("mobilenet_1.keras", "mobilenet_1"),
    ("mobilenet_1_tf.h5", "mobilenet_1_tf"),
    ("slashes_tf.h5", "slashes_tf"),
    ("slashes_tf_weights.h5", "slashes_tf"),
    ("separable.keras", "separable"),
    ("compressed.h5", "sequential"),
    ("flat.keras", "flat"),
    ("flat.h5", "flat"),
    ("flat_tf.h5", "flat_tf"),
    ("joined.keras", "joined"),
    ("joined_tf.h5", "joined_tf"),
    ("convnext.keras", "convnext"),
    ("convnext.h5", "convnext"),
    ("convnext.weights.h5", "convnext"),
    ("convnext_tf.keras", "convnext_tf"),
    ("convnext_tf.h5", "convnext_tf"),
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keras").join(name)
}

/// What Keras says of a model.
fn record(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(&format!("{name}.json"))).unwrap()).unwrap()
}

fn open(name: &str) -> ModelFile {
    formats::open(&golden(name), None).unwrap_or_else(|error| panic!("{error}"))
}

fn load(name: &str) -> StateDict {
    open(name).tensors
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
        ("LayerScale", ..) => return Some((layer.to_owned(), shape.to_vec())),
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

/// The network of a file that describes one.
fn imported(file: &ModelFile) -> Result<Imported, KerasError> {
    let network = file.network.as_ref().expect("a Keras file");
    Ok(network.import()?.expect("a whole model"))
}

/// All numbers in lists within lists.
fn numbers(value: &Value) -> Vec<f32> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().unwrap() as f32],
    }
}

#[test]
fn networks_compute_what_keras_computes() {
    const PIXELS: usize = 12 * 12;
    let device = Device::open(&DeviceOptions::default()).unwrap();
    for (file, known) in FILES {
        let opened = open(file);
        if !opened.describes() {
            continue;
        }
        let graph = imported(&opened).unwrap_or_else(|error| panic!("{file}: {error}")).graph;
        assert_eq!((graph.size(), graph.classes()), ((12, 12), 5), "{file}");
        let Preprocessing { mean, std, bgr, .. } = graph.preprocessing();
        let network = graph.build(3, (12, 12), 5).unwrap();
        let tensors =
            weights::from_state(&network, opened.tensors, 0).unwrap_or_else(|error| panic!("{file}: {error}"));
        let tensors = tensors.tensors;
        let known = record(known);
        let mut images = Vec::with_capacity(3 * PIXELS * 4);
        for pixel in numbers(&known["images"]).chunks_exact(3) {
            let mut values = [0, 1, 2].map(|channel| (pixel[channel] / 255.0 - mean[channel]) / std[channel]);
            if bgr {
                values.reverse();
            }
            images.extend(values);
            images.push(0.0);
        }
        let mut evaluator = Evaluator::new(&device, &network, &tensors, Input::Values).unwrap();
        let ours = evaluator.logits(Images::Values(&images)).unwrap();
        let theirs = numbers(&known["logits"]);
        let largest = theirs.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        assert_eq!(ours.len(), theirs.len(), "{file}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= 1e-5 * largest, "{file}: {ours} where Keras has {theirs}");
        }
    }
}

fn network(file: &str) -> Graph {
    imported(&open(file)).unwrap().graph.build(2, (12, 12), 5).unwrap()
}

/// The layers of which something trains, by the names that Keras has for them, each once.
fn trainable(graph: &Graph) -> Vec<&str> {
    let trains = |layer: &&thawline::graph::Layer| {
        layer.setting.weights || layer.setting.batch_norm.is_some_and(|mode| mode.affine != Affine::None)
    };
    graph.layers().iter().filter(trains).map(|layer| layer.name.as_str()).collect()
}

/// The question that started this project: `for layer in model.layers[:idx]: layer.trainable = False`, and then
/// `for layer in model.layers: if isinstance(layer, BatchNormalization): layer.trainable = True`.
#[test]
fn the_two_loops_over_the_layers_of_keras_are_two_rules() {
    for (file, known) in [
        ("efficient.keras", "efficient"),
        ("efficient_tf.h5", "efficient_tf"),
        ("resnet.keras", "resnet"),
        ("resnet_tf.h5", "resnet_tf"),
        ("hard.keras", "hard"),
        ("hard_tf.h5", "hard_tf"),
    ] {
        let record = record(known);
        let layers = record["layers"].as_array().unwrap();
        // A rule that matches nothing is an error, as it should be; Keras's loop says nothing then.
        let last = layers.iter().rposition(|layer| !layer["weights"].as_array().unwrap().is_empty()).unwrap();
        for index in 0..=last {
            let trains = |(number, layer): &(usize, &Value)| {
                let has_weights = !layer["weights"].as_array().unwrap().is_empty() && layer["class"] != "Normalization";
                has_weights && (*number >= index || layer["class"] == "BatchNormalization")
            };
            let expected: Vec<&str> =
                layers.iter().enumerate().filter(trains).map(|(_, layer)| layer["name"].as_str().unwrap()).collect();
            let rules = [
                format!("index:{index}.. & !kind:bn -> weights=train"),
                "kind:bn -> stats=batch, update=ema(0.99), affine=both".to_owned(),
            ];
            let policy = Policy::recipe("head").unwrap().with_rules(&["head -> weights=frozen"]).unwrap();
            let Ok(with_both) = policy.with_rules(&rules).map(|policy| policy::resolve(&policy, network(file))) else {
                panic!("{rules:?}")
            };
            let resolved = with_both.unwrap_or_else(|error| panic!("{file} {index}: {error}"));
            assert_eq!(trainable(&resolved.graph), expected, "{file} from {index}");
        }
    }
}

/// The network of one of the models in `layers.json`, and what Keras says of it.
fn nested(name: &str) -> (Graph, Value) {
    let text = fs::read_to_string(golden("layers.json")).unwrap();
    let known = serde_json::from_str::<Value>(&text).unwrap()["models"][name].clone();
    let model = KerasConfig {
        config: &known["config"],
        keras_2: false,
        normalization: &|_| Some([vec![0.5; 3], vec![1.0; 3]]),
    };
    let graph = import(model).unwrap_or_else(|error| panic!("{name}: {error}")).graph;
    // Models are in the graph's file, too.
    let graph = GraphFile::parse(&graph.json(), name).unwrap();
    (graph.build(2, (64, 64), 5).unwrap(), known)
}

/// The layers that a selector selects.
fn selected<'a>(selector: &str, graph: &'a Graph) -> Result<Vec<&'a str>, String> {
    let rule: Rule = format!("{selector} -> lr=2").parse().map_err(|error: PolicyError| error.to_string())?;
    let layers = rule.select(graph).map_err(|error| error.to_string())?;
    Ok(layers.iter().map(|id| graph.layers()[id.index()].name.as_str()).collect())
}

#[test]
fn slices_of_layers_take_what_they_take_in_keras() {
    for name in ["deep", "efficientnet", "mobilenet"] {
        let (graph, known) = nested(name);
        let weighted: Vec<&str> =
            known["weighted"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let counts: BTreeMap<&str, usize> =
            graph.models().iter().map(|model| (model.name.as_str(), model.layers)).collect();
        for (path, count) in known["models"].as_object().unwrap() {
            assert_eq!(Some(&(count.as_u64().unwrap() as usize)), counts.get(path.as_str()), "{name}: {path}");
        }
        let slices = known["slices"].as_object().unwrap();
        assert!(slices.len() > 100);
        for (slice, runs) in slices {
            let runs = runs.as_array().unwrap();
            let run = |run: &Value| run[0].as_u64().unwrap() as usize..run[1].as_u64().unwrap() as usize;
            let mut expected: Vec<&str> = runs.iter().flat_map(|of| weighted[run(of)].iter().copied()).collect();
            let with_weights =
                |name: &&str| graph.layers().iter().any(|layer| layer.name == **name && !layer.params.is_empty());
            // A slice without layers that have weights may have others, or none, which is an error.
            let mut ours = selected(&format!("index:{slice}"), &graph).unwrap_or_default();
            ours.retain(with_weights);
            expected.sort_unstable();
            ours.sort_unstable();
            assert_eq!(ours, expected, "{name}: index:{slice}");
        }
    }
}

#[test]
fn a_model_within_the_model_is_found_by_name_and_by_number() {
    let (graph, _) = nested("deep");
    let inner = selected("index:outer/inner/0..", &graph).unwrap();
    assert_eq!(
        inner,
        ["block1_conv", "block1_bn", "block1_relu", "block2_conv"].map(|name| format!("outer/inner/{name}"))
    );
    for same in ["index:inner/0..", "index:3/2/0..", "index:outer/inner/-5..", "name:outer/inner/*"] {
        assert_eq!(selected(same, &graph).unwrap(), inner, "{same}");
    }
    // Arithmetic counts with the layer before it.
    assert_eq!(selected("index:outer/2", &graph).unwrap(), [&inner[..], &["outer/add"]].concat());
    let all = selected("index:0..", &graph).unwrap();
    assert_eq!(selected("index:3", &graph).unwrap(), all[..all.len() - 3], "a model is one layer of another");
    for (selector, parts) in [
        (
            "index:oter/1..",
            &[
                "`index:oter/1..`: there is no model `oter` (did you mean `outer`?)",
                "`outer` (6 layers)",
                "`outer/inner` (5 layers)",
            ][..],
        ),
        (
            "index:200..",
            &["`index:200..` matches no layer", "numbered 3 to 6", "`outer` (6 layers)", "index:NAME/100.."],
        ),
        ("index:inner/200..", &["`outer/inner` has 5 layers, numbered 0 to 4"]),
        ("index:augmentation/0..", &["`augmentation` has 4 layers, none of which computes anything here"]),
        ("index:inner/3", &["`outer/inner` has 5 layers", "in 0 to 4"]),
        ("index:outer/x", &["`outer/x`", "is not a range of layer numbers", "index:efficientnetb0/100.."]),
        ("index:/3", &["`/3`", "is not a range"]),
        ("index:outer/5..2", &["`index:outer/5..2` is an empty range"]),
    ] {
        let message = selected(selector, &graph).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{selector}: {message}");
        }
    }
    let flat = network("efficient.keras");
    let message = selected("index:base/1..", &flat).unwrap_err();
    assert!(message.contains("there is no model `base`; the network has no models within it"), "{message}");
    // As Python does.
    let last = flat.layers().len();
    assert_eq!(selected("index:-1..", &flat).unwrap(), ["predictions"]);
    assert_eq!(selected("index:-900..", &flat).unwrap().len(), last);
}

#[test]
fn layers_within_models_are_known_by_their_own_names() {
    let (graph, _) = nested("deep");
    for name in ["middle_relu", "outer/middle_relu"] {
        assert_eq!(selected(&format!("name:{name}"), &graph).unwrap(), ["outer/middle_relu"]);
        assert_eq!(selected(&format!("from:{name}"), &graph).unwrap()[0], "outer/middle_relu");
    }
    // Two are called so.
    for selector in ["name:block1_conv", "from:block1_conv", "from:block1", "block:block1"] {
        let message = selected(selector, &graph).unwrap_err();
        let full = selector.split_once(':').unwrap().1;
        let [first, second] = ["inner", "second"].map(|model| format!("outer/{model}/{full}"));
        assert!(message.contains(&first) && message.contains(&second), "{message}");
    }
    assert_eq!(selected("name:second/block1_conv", &graph).unwrap(), ["outer/second/block1_conv"]);
    assert_eq!(selected("from:second/block2", &graph).unwrap()[0], "outer/second/block2_conv");
    assert_eq!(selected("block:inner/block1", &graph).unwrap().len(), 3);
    assert_eq!(selected("name:block1_*", &graph).unwrap().len(), 6, "a pattern is for several");

    // The outer model's own goes before one within it.
    let graph = network("transfer.keras");
    assert_eq!(selected("name:top_bn", &graph).unwrap(), ["top_bn"]);
    assert_eq!(selected("from:top_bn", &graph).unwrap()[0], "top_bn");
    assert_eq!(selected("name:base/top_bn", &graph).unwrap(), ["base/top_bn"]);
    let number = |name: &str| {
        let at = graph.layers().iter().position(|layer| layer.name == name).unwrap();
        graph.number(LayerId::new(at))
    };
    assert_eq!([number("base/stem_conv"), number("predictions")], ["2/4", "7"]);
}

#[test]
fn blocks_have_the_names_that_keras_gives_them() {
    let (efficient, _) = nested("efficientnet");
    let (mobile, _) = nested("mobilenet");
    for (graph, name, first) in [
        (&efficient, "from:block5a", "block5a_expand_conv"),
        (&efficient, "from:efficientnetb0/block5a", "block5a_expand_conv"),
        // The stage: all its blocks.
        (&efficient, "from:block6", "block6a_expand_conv"),
        (&efficient, "block:block5a", "block5a_expand_conv"),
        (&efficient, "from:block:block7a", "block7a_expand_conv"),
        (&efficient, "from:top", "top_conv"),
        (&efficient, "from:efficientnetb0", "stem_conv"),
        (&mobile, "from:block_1", "block_1_expand"),
        (&mobile, "from:block_13", "block_13_expand"),
        (&mobile, "block:block_13", "block_13_expand"),
        (&mobile, "from:expanded_conv", "expanded_conv_depthwise"),
    ] {
        let found = selected(name, graph).unwrap_or_else(|error| panic!("{error}"))[0];
        assert!(found.ends_with(&format!("/{first}")), "{name}: {found}");
    }
    assert!(selected("block:block5a", &efficient).unwrap().iter().all(|name| name.contains("/block5a_")));
    for (name, part) in [
        ("from:block5z", "did you mean `block5a`?"),
        ("name:block5a", "block:block5a selects its layers"),
        ("block:blok5a", "did you mean `block5a`?"),
        ("from:block", "no layer `block`"),
    ] {
        let message = selected(name, &efficient).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}

/// `augment` of `sequential.keras` with another layer in the place of the one that flips.
fn augmented(class: &str, config: Value) -> Result<Imported, KerasError> {
    imported(&reconfigured("transfer.keras", |model| {
        let layers = model["config"]["layers"].as_array_mut().unwrap();
        let layer = layers.iter_mut().find(|layer| layer["class_name"] == "RandomFlip").unwrap();
        layer["class_name"] = class.into();
        for (key, value) in config.as_object().unwrap() {
            layer["config"][key] = value.clone();
        }
    }))
}

#[test]
fn augmentation_is_left_out_and_told() {
    for (class, config, mirrors, crops) in [
        ("RandomFlip", json!({"mode": "horizontal"}), true, false),
        ("RandomFlip", json!({"mode": "vertical"}), false, false),
        ("RandomFlip", json!({"mode": "horizontal_and_vertical"}), false, false),
        ("RandomRotation", json!({}), false, false),
        ("RandomZoom", json!({}), false, true),
        ("RandomTranslation", json!({}), false, true),
        ("RandomCrop", json!({"height": 12, "width": 12}), false, true),
        ("RandomContrast", json!({}), false, false),
        ("RandomBrightness", json!({}), false, false),
        ("RandAugment", json!({}), false, false),
        ("GaussianNoise", json!({"stddev": 0.1}), false, false),
    ] {
        let found = augmented(class, config).unwrap_or_else(|error| panic!("{class}: {error}")).augmentation;
        assert_eq!(found, [Augmentation { layer: "flip".into(), class: class.into(), mirrors, crops }]);
    }
    // In the order of the file, and of models within the model, too.
    let found = imported(&open("sequential.keras")).unwrap().augmentation;
    let classes: Vec<&str> = found.iter().map(|layer| layer.class.as_str()).collect();
    assert_eq!(classes, ["RandomFlip", "RandomRotation"]);
    assert!(found.iter().all(|layer| layer.layer.starts_with("augment/")), "{found:?}");
    assert!(imported(&open("efficient.keras")).unwrap().augmentation.is_empty());
}

#[test]
fn what_a_batch_norm_lacks_never_trains() {
    for file in ["sequential.keras", "sequential_tf.h5"] {
        let resolved = policy::resolve(&Policy::recipe("full").unwrap(), network(file)).unwrap();
        let affine = |layer: &thawline::graph::Layer| layer.setting.batch_norm.map(|mode| mode.affine);
        let found: Vec<Affine> = resolved.graph.layers().iter().filter_map(affine).collect();
        assert_eq!(found, [Affine::Beta, Affine::Gamma, Affine::None], "{file}");
    }
}

#[test]
fn batch_norms_follow_at_the_pace_of_their_file() {
    // Keras 2 stores the unbiased variance.
    for (file, var) in [("mobilenet.keras", Variance::Biased), ("efficient_tf.keras", Variance::Unbiased)] {
        let graph = network(file);
        let norms = graph.layers().iter().filter(|layer| layer.kind == LayerKind::Bn);
        let keeps: Vec<f32> = norms.clone().map(|layer| layer.averaging.keep).collect();
        match file {
            "mobilenet.keras" => assert_eq!(keeps, [0.999; 5]),
            _ => assert_eq!(keeps, [0.99, 0.99, 0.99, 0.9]),
        }
        assert!(norms.map(|layer| layer.averaging.var).all(|found| found == var), "{file}");
    }
    // Of images, but not of features.
    let graph = network("transfer_tf.h5");
    let var = |name: &str| graph.layers().iter().find(|layer| layer.name == name).map(|layer| layer.averaging.var);
    assert_eq!((var("base/top_bn"), var("top_bn")), (Some(Variance::Unbiased), Some(Variance::Biased)));
}

/// The file with another configuration.
fn reconfigured(file: &str, change: impl Fn(&mut Value)) -> ModelFile {
    let mut opened = open(file);
    change(opened.network.as_mut().unwrap().config.as_mut().unwrap());
    opened
}

/// Why the file is refused with another value in the configuration of one layer.
fn refusal(file: &str, name: &str, key: &str, value: &Value) -> String {
    let state = reconfigured(file, |config| {
        let layers = config["config"]["layers"].as_array_mut().unwrap();
        let layer = layers.iter_mut().find(|layer| layer["config"]["name"] == name).unwrap();
        if key == "class_name" { layer[key] = value.clone() } else { layer["config"][key] = value.clone() }
    });
    let message = imported(&state).err().unwrap_or_else(|| panic!("{file}: {name} {key}={value}")).to_string();
    assert!(message.lines().count() == 1, "{message}");
    message
}

#[test]
fn one_sigmoid_is_of_two_classes() {
    for activation in ["sigmoid", "linear"] {
        let mut state = reconfigured("resnet.keras", |config| {
            let layers = config["config"]["layers"].as_array_mut().unwrap();
            let head = layers.iter_mut().find(|layer| layer["config"]["name"] == "predictions").unwrap();
            head["config"]["units"] = 1.into();
            head["config"]["activation"] = activation.into();
        });
        let imported = imported(&state).unwrap();
        assert_eq!(imported.graph.classes(), 1);
        let left_out = imported.notes.iter().any(|note| note.contains("the sigmoid `predictions.sigmoid` is left out"));
        assert_eq!(left_out, activation == "sigmoid", "{:?}", imported.notes);
        // The file's head as it would be.
        for (name, shape) in [("predictions.weight", vec![1, 16]), ("predictions.bias", vec![1])] {
            let tensor = state.tensors.tensors.get_mut(name).unwrap_or_else(|| panic!("{name}"));
            let TensorData::F32(values) = &tensor.data else { panic!("{name}") };
            let inputs = tensor.shape.get(1).copied().unwrap_or(1);
            let shape = if shape.len() == 2 { vec![1, inputs] } else { shape };
            *tensor = FileTensor::f32(shape, values[..inputs].to_vec());
        }
        let mut model = thawline::model::Model::of(state, thawline::model::Options::default()).unwrap();
        let network = model.network(1, model.size(None)).unwrap();
        assert_eq!((model.classes, network.logits_shape().unwrap().c()), (2, 2));
        model.tensors(&network).unwrap();
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (name, key, value, parts) in [
        ("block1_1_conv", "dilation_rate", json!([2, 2]), &["`block1_1_conv` (Conv2D)", "dilation_rate"][..]),
        ("block1_1_conv", "activation", json!("selu"), &["`block1_1_conv`", "`selu` is not supported; linear, relu"]),
        ("block1_1_conv", "padding", json!("causal"), &["`causal`"]),
        ("block1_1_conv", "data_format", json!("channels_first"), &["channels_first", "only \"channels_last\""]),
        ("block1_1_conv", "filters", json!(-3), &["`filters` is -3"]),
        ("block1_1_conv", "filters", json!(4), &["`block1_add` (Add)", "its inputs are [3, 3, 8] and [3, 3, 4]"]),
        ("block1_1_conv", "filters", json!(u64::MAX), &["`block1_1_conv` (Conv2D)", "more than 1073741824 values"]),
        ("block1_1_conv", "kernel_size", json!([0, 3]), &["block1_1_conv"]),
        ("block1_1_conv", "kernel_size", json!([3, 3, 3]), &["`kernel_size` is [3,3,3]"]),
        ("block1_1_bn", "axis", json!(1), &["`block1_1_bn` (BatchNormalization)", "axis=1"]),
        ("block1_1_bn", "epsilon", json!(0), &["block1_1_bn", "eps"]),
        ("block1_out", "class_name", json!("PReLU"), &["`block1_out`", "`PReLU` is not supported", "Conv2D"]),
        ("conv1_pad", "padding", json!([[1, -1], [0, 0]]), &["`conv1_pad`", "number of pixels"]),
        ("predictions", "activation", json!("sigmoid"), &["ends in `predictions.sigmoid`"]),
        ("block1_add", "class_name", json!("Average"), &["`block1_add` (Average): `Average` is not supported", "Add"]),
        ("block1_add", "class_name", json!("Maximum"), &["`block1_add` (Maximum): `Maximum` is not supported"]),
        ("block1_add", "class_name", json!("Subtract"), &["`block1_add` (Subtract): `Subtract` is not supported"]),
        ("input_1", "batch_shape", json!([null, 12, 12, 1]), &["[null,12,12,1]", "[N, height, width, 3]"]),
    ] {
        let message = refusal("resnet.keras", name, key, &value);
        for part in parts {
            assert!(message.contains(part), "{name} {key}={value}: {message}");
        }
    }
    for (change, part) in [
        (json!({}), "the class ``"),
        (json!({"class_name": "Custom", "config": {}}), "only Functional and Sequential"),
        (json!({"class_name": "Sequential", "config": {"layers": []}}), "no layer"),
        (json!({"class_name": "Functional", "config": {"layers": []}}), "0 inputs"),
        (json!([1, 2]), "the class ``"),
    ] {
        let message =
            imported(&reconfigured("resnet.keras", |config| *config = change.clone())).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for (file, name, key, value, part) in [
        (
            "flat.keras",
            "dropout",
            "class_name",
            json!("BatchNormalization"),
            "(BatchNormalization): it takes a flattened",
        ),
        ("flat.keras", "dropout", "class_name", json!("LayerNormalization"), "before the Flatten"),
        (
            "flat.keras",
            "fc1",
            "class_name",
            json!("Activation"),
            "`norm` (LayerNormalization): it takes a flattened image",
        ),
        ("flat.keras", "norm", "scale", json!(false), "scale=false is not supported, only true"),
        ("flat.keras", "norm", "center", json!(false), "center=false"),
        ("flat.keras", "norm", "rms_scaling", json!(true), "rms_scaling=true"),
        ("flat.keras", "norm", "axis", json!([0]), "axis=[0] is not the channels'"),
        (
            "flat.keras",
            "norm",
            "class_name",
            json!("UnitNormalization"),
            "`UnitNormalization` is not supported; Conv2D",
        ),
        (
            "flat.keras",
            "fc2",
            "activation",
            json!({"class_name": "PReLU", "config": {}}),
            "`PReLU` is not supported as an",
        ),
        ("joined.keras", "mixed", "axis", json!(1), "axis=1 is not the channels'"),
        ("joined.keras", "b_conv", "strides", json!([2, 2]), "`mixed` (Concatenate)"),
        ("joined.keras", "b_elu", "alpha", json!(0.5), "alpha=0.5 is not supported, only 1.0"),
        ("joined.keras", "c_leaky", "negative_slope", json!(-0.5), "a slope of -0.5 below zero"),
        ("joined.keras", "a_relu", "max_value", json!(6.0), "negative_slope=0.25"),
        ("joined.keras", "scaled", "scale", json!(-1.0), "`scaled` (CustomScaleLayer): it multiplies by -1"),
        ("joined.keras", "gmp", "class_name", json!("Flatten"), "`features` (Concatenate): it takes a flattened image"),
        ("joined.keras", "gap", "class_name", json!("Cropping2D"), "`Cropping2D` is not supported"),
        (
            "convnext.keras",
            "stage_0_block_0_layer_scale",
            "projection_dim",
            json!(4),
            "it has 4 factors for 6 channels",
        ),
        ("convnext.keras", "stage_0_block_0_stochastic_depth", "drop_path_rate", json!(1.0), "rate must be in [0, 1)"),
    ] {
        let message = refusal(file, name, key, &value);
        assert!(message.contains(part), "{file}: {name} {key}={value}: {message}");
    }
}

/// The layers of a file's network, each as its name, its operation, and what it takes.
fn operations(file: &ModelFile) -> Vec<String> {
    let text = imported(file).unwrap().graph.json();
    let graph: Value = serde_json::from_str(&text).unwrap();
    let line = |layer: &Value| {
        let fields = layer.as_object().unwrap().iter();
        let kept = fields.filter(|(key, _)| !["name", "op", "inputs", "position", "block"].contains(&key.as_str()));
        let more: Vec<String> = kept.map(|(key, value)| format!(" {key}={value}")).collect();
        let [name, op] = ["name", "op"].map(|key| layer[key].as_str().unwrap());
        let inputs: Vec<&str> = layer["inputs"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        format!("{name} = {op}{}({})", more.concat(), inputs.join(", "))
    };
    graph["layers"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn layers_become_operations() {
    let flat = operations(&open("flat_tf.h5"));
    assert!(flat.contains(&"fc1 = linear channels=8 bias=false flatten=[3,3](dropout)".to_owned()), "{flat:#?}");
    let expected = [
        // Its maximum may be a zero of the border, which the mean counts.
        "pool_pad = pad padding=[1,1,1,1](stem_conv)",
        "pool = max_pool kernel=[3,3] stride=[2,2] padding=[0,0,0,0](pool_pad)",
        "c_mean = avg_pool kernel=[3,3] stride=[1,1] padding=[1,1,1,1](pool)",
        "b_mean = avg_pool kernel=[3,3] stride=[1,1] padding=[1,1,1,1] count_padding=false(pool)",
        "mean = avg_pool kernel=[3,3] stride=[2,2] padding=\"same\" count_padding=false(mixed_relu)",
        "a_relu = activation act=\"leaky_relu\" slope=0.25(a_bn)",
        "c_leaky = activation act=\"leaky_relu\" slope=0.3(c_conv.softplus)",
        "mixed = concat(a_relu, b_elu, c_leaky)",
        "scaled.scale_by = activation act=\"scale_by\" factor=0.17(up_conv)",
        "scaled = add(mean, scaled.scale_by)",
        "product = multiply(gated_conv, gate_conv.sigmoid)",
        "sum.1 = add(scaled, product)",
        "features = concat(gap, gmp)",
        "predictions = linear channels=5 bias=false(features)",
    ];
    for file in ["joined.keras", "joined_tf.h5"] {
        let found = operations(&open(file));
        for expected in expected {
            assert!(found.contains(&expected.to_owned()), "{file}: {expected} in {found:#?}");
        }
    }
    let expected = [
        "stage_0_block_0_layernorm = layer_norm eps=1e-6(stage_0_block_0_depthwise_conv)",
        "stage_0_block_0_pointwise_conv_1 = linear channels=10 each_pixel=true(stage_0_block_0_layernorm)",
        "stage_0_block_0_layer_scale = layer_scale(stage_0_block_0_pointwise_conv_2)",
        "stage_0_block_0_stochastic_depth = stochastic_depth rate=0.1(stage_0_block_0_layer_scale)",
        "head_dense = linear channels=5(head_layernorm)",
    ];
    for file in ["convnext.keras", "convnext.h5", "convnext_tf.h5"] {
        let found = operations(&open(file));
        for expected in expected {
            assert!(found.contains(&expected.to_owned()), "{file}: {expected} in {found:#?}");
        }
    }
}

#[test]
fn what_is_taken_by_its_name_is_told() {
    let notes = |file: &ModelFile| imported(file).unwrap().notes.join("; ");
    assert!(!notes(&open("convnext.keras")).contains("taken for"));
    // Without the module that a class is in.
    let told = notes(&open("convnext_tf.h5"));
    assert!(told.contains("the layers of the class LayerScale are taken for those of keras.applications"), "{told}");
    assert!(told.contains("class StochasticDepth"), "{told}");
    // As older versions of InceptionResNetV2 have it: a function, whose code is not read.
    let older = |name: &str, arguments: &Value| {
        reconfigured("joined_tf.h5", |config| {
            *config = serde_json::from_str(&config.to_string().replace("\"scaled\"", &format!("\"{name}\""))).unwrap();
            let layers = config["config"]["layers"].as_array_mut().unwrap();
            let layer = layers.iter_mut().find(|layer| layer["config"]["name"] == name).unwrap();
            layer["class_name"] = "Lambda".into();
            layer["config"] = json!({"name": name, "function": ["4wE=", null, null], "arguments": arguments});
        })
    };
    let state = older("block35_1", &json!({"scale": 0.25}));
    let told = notes(&state);
    assert!(told.contains("the functions of Lambda layers are not read"), "{told}");
    let found = operations(&state);
    assert!(found.contains(&"block35_1.scale_by = activation act=\"scale_by\" factor=0.25(up_conv)".to_owned()));
    for state in [older("block35_x", &json!({"scale": 0.25})), older("block35_1", &json!({"scale": 0.25, "more": 1}))] {
        let message = imported(&state).unwrap_err().to_string();
        assert!(message.contains("(Lambda): `Lambda` is not supported"), "{message}");
    }
}

#[test]
fn weights_alone_do_not_tell_how_an_image_was_flattened() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (golden("flat.weights.h5"), folder.path().join("out.weights.h5"));
    let message = StateDict::load(&path).unwrap_err().to_string();
    assert!(message.contains("layer `fc1` may take a flattened image") && message.contains("model.save"), "{message}");
    let message = keras::save(&load("flat.keras"), &path, &out).unwrap_err().to_string();
    assert!(message.contains("layer `fc1` may take a flattened image") && !out.exists(), "{message}");
}

#[test]
fn weights_of_another_network_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.keras");
    let other = keras::save(&load("resnet.keras"), &golden("efficient.keras"), &out).unwrap_err().to_string();
    assert!(other.contains("the network has no tensor `"), "{other}");
    let mut state = load("resnet.keras");
    state.tensors.insert("block1_1_conv.weight".into(), FileTensor::f32([8, 8, 1, 1], vec![0.0; 64]));
    state.tensors.insert("block1_0_conv.bias".into(), FileTensor::f32([4], vec![0.0; 4]));
    let shapes = keras::save(&state, &golden("resnet.keras"), &out).unwrap_err().to_string();
    assert!(shapes.contains("and the network's is"), "{shapes}");
    let mut wider = load("resnet.keras");
    wider.tensors.insert("predictions.weight".into(), FileTensor::f32([5, 9], vec![0.0; 45]));
    let inputs = keras::save(&wider, &golden("resnet.keras"), &out).unwrap_err().to_string();
    assert!(inputs.contains("is [8, 5], and the network's is [9, 5]"), "{inputs}");
    let torch = golden("resnet.json");
    assert!(keras::save(&state, &torch, &out).is_err());
    let mut state = load("half.keras");
    state.tensors.insert("conv_preds.bias".into(), FileTensor::f32([5], vec![1e6; 5]));
    let huge = keras::save(&state, &golden("half.keras"), &out).unwrap_err().to_string();
    assert!(huge.contains("1e6 does not fit into float16"), "{huge}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is half written");
}

#[test]
fn a_head_for_other_classes_changes_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for (file, head) in [
        ("transfer.keras", "predictions"),
        ("resnet.keras", "predictions"),
        ("resnet_tf.h5", "predictions"),
        ("sequential.h5", "dense"),
        ("compressed.h5", "dense"),
        ("slashes_tf.h5", "head/logits"),
        // A Reshape and a softmax come behind these.
        ("mobilenet_1.keras", "conv_preds"),
        ("mobilenet_1_tf.h5", "conv_preds"),
        ("separable.keras", "separable.pointwise"),
        ("half.keras", "conv_preds"),
        ("flat.keras", "predictions"),
        ("flat_tf.h5", "predictions"),
    ] {
        let out = folder.path().join(file);
        let mut state = load(file);
        let mut shape = state.tensors[&format!("{head}.weight")].shape.clone();
        shape[0] = 3;
        state.tensors.insert(format!("{head}.weight"), FileTensor::f32(shape, (0..24).map(|v| v as f32).collect()));
        state.tensors.insert(format!("{head}.bias"), FileTensor::f32([3], vec![1.0, 2.0, 3.0]));
        let notes = keras::save(&state, &golden(file), &out).unwrap();
        assert!(notes[0].contains("has 3 outputs"), "{notes:?}");
        // Only what was compiled and trained has an optimizer.
        let expected = file.starts_with("resnet") || file == "half.keras";
        assert_eq!(notes.len() == 2, expected, "{notes:?}");
        let read = formats::open(&out, None).unwrap();
        assert_eq!(read.tensors.tensors, state.tensors, "{file}");
        assert_eq!(imported(&read).unwrap_or_else(|error| panic!("{file}: {error}")).graph.classes(), 3, "{file}");
        if file.starts_with("mobilenet") {
            let config = read.network.as_ref().unwrap().config.as_ref().unwrap();
            let layers = config["config"]["layers"].as_array().unwrap();
            let reshape = layers.iter().find(|layer| layer["class_name"] == "Reshape").unwrap();
            assert_eq!(reshape["config"]["target_shape"], json!([3]));
            if file.ends_with(".keras") {
                let input = &reshape["inbound_nodes"][0]["args"][0]["config"];
                assert_eq!(input["shape"], json!([null, 1, 1, 3]));
            }
        }
        let again = folder.path().join(format!("again-{file}"));
        let notes = keras::save(&read.tensors, &out, &again).unwrap();
        assert!(notes.is_empty(), "{file}: {notes:?}");
    }
    let leftovers = fs::read_dir(folder.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(leftovers.count(), 0);
}

/// A file with every value that it has itself moved a little.
fn moved(before: &StateDict) -> StateDict {
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
    after
}

#[test]
fn compressed_tensors_are_written_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.h5");
    let (before, source) = (load("compressed.h5"), golden("compressed.h5"));
    let after = moved(&before);
    keras::save(&after, &source, &out).unwrap();
    assert_eq!(StateDict::load(&out).unwrap().tensors, after.tensors);
    let [old, new] = [&source, &out].map(|path| File::open(path).unwrap());
    let dataset = "model_weights/dense/sequential/dense/kernel";
    let [old, new] = [&old, &new].map(|file| file.dataset(dataset).unwrap());
    // Shuffled, and packed by gzip at level 7.
    let filters = new.filter_pipeline().into_iter().map(|filter| (filter.id, filter.client_data));
    assert_eq!(filters.collect::<Vec<_>>(), [(2, vec![4]), (1, vec![7])]);
    assert_eq!(new.chunk_shape().unwrap(), old.chunk_shape().unwrap());
    assert_eq!(new.attrs().unwrap()["note"].as_str(), Some("kept"));
}

#[test]
fn halves_stay_halves() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.keras");
    let after = moved(&load("half.keras"));
    let notes = keras::save(&after, &golden("half.keras"), &out).unwrap();
    assert!(notes[0].contains("float16"), "{notes:?}");
    let read = StateDict::load(&out).unwrap();
    for (name, tensor) in &after.tensors {
        for (ours, theirs) in floats(tensor).iter().zip(floats(&read.tensors[name])) {
            // Half a unit in the last of eleven places.
            assert!((ours - theirs).abs() <= ours.abs() / 2048.0, "{name}: {ours} is {theirs}");
        }
    }
    // What was rounded is written as it is.
    let again = folder.path().join("again.keras");
    assert!(keras::save(&read, &out, &again).unwrap().is_empty());
    assert!(contents(&out) == contents(&again));
}

#[test]
fn a_layer_that_is_listed_twice_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("twice.h5");
    fs::copy(golden("slashes_tf.h5"), &path).unwrap();
    let file = File::open_rw(&path).unwrap();
    let names = ["base", "head/logits", "base"].map(str::to_owned).to_vec();
    file.group("model_weights").unwrap().set_attr("layer_names", AttrValue::StringArray(names)).unwrap();
    file.commit().unwrap();
    file.close().unwrap();
    let message = StateDict::load(&path).unwrap_err().to_string();
    assert!(message.contains("lists the layer `base` twice"), "{message}");
}

#[test]
fn several_channels_of_each_are_refused_by_the_name_of_their_layer() {
    let message = StateDict::load(golden("multiplied.keras")).unwrap_err().to_string();
    assert!(message.contains("layer `depthwise`: depth_multiplier=2 is not supported"), "{message}");
    assert!(!message.contains("damaged"), "{message}");
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
        keras::save(&load(file), &golden(file), &out).unwrap();
        assert!(contents(&out) == contents(&golden(file)), "{file}");
    }
}

#[test]
fn what_changes_is_all_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    // Compressed anew, values take another number of bytes.
    for (file, _) in FILES.into_iter().filter(|(file, _)| *file != "compressed.h5") {
        let before = open(file);
        let out = folder.path().join(file);
        let after = moved(&before.tensors);
        keras::save(&after, &golden(file), &out).unwrap();
        let read = formats::open(&out, None).unwrap();
        assert_eq!(read.tensors.tensors, after.tensors, "{file}");
        assert_eq!(read.network, before.network, "{file}");
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

/// What the command line says: standard output, and standard error.
fn thawline(args: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_thawline")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_file_is_trained_and_written_in_its_own_form() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut batch = StateDict::default();
    let images = (0..2 * 3 * 12 * 12).map(|index| (index % 17) as f32 / 8.0 - 1.0).collect();
    batch.tensors.insert("images".into(), FileTensor::f32([2, 3, 12, 12], images));
    batch.tensors.insert("labels".into(), FileTensor::i64([2], vec![1, 4]));
    batch.save(at("batch.safetensors")).unwrap();
    let base = ["base/stem_bn.running_mean", "predictions.weight"];
    let names = ["stage_0_block_0_layer_scale", "stage_0_block_0_layernorm.bias", "head_dense.weight"];
    for (file, policy, moved, frozen) in [
        ("transfer.keras", "bn-only", &base[..], Some("conv")),
        ("transfer_tf.h5", "bn-only", &base, Some("conv")),
        ("flat.keras", "full", &["fc1.weight", "norm.weight", "predictions.bias"], None),
        ("flat_tf.h5", "full", &["fc1.weight", "norm.weight", "predictions.bias"], None),
        ("convnext.keras", "full", &names, None),
        ("convnext.h5", "full", &names, None),
    ] {
        let weights = golden(file).to_str().unwrap().to_owned();
        let step = |out: &str| {
            let inputs = at("batch.safetensors");
            thawline(&["step", "--weights", &weights, "--inputs", &inputs, "--policy", policy, "--out", &at(out)])
        };
        step(file).unwrap();
        let (before, after) = (open(file), formats::open(Path::new(&at(file)), None).unwrap());
        assert_eq!(before.network, after.network);
        let (before, after) = (before.tensors, after.tensors);
        let changed: Vec<&str> = after
            .tensors
            .iter()
            .filter(|(name, new)| before.tensors[*name] != **new)
            .map(|(name, _)| &name[..])
            .collect();
        assert!(moved.iter().all(|name| changed.contains(name)), "{changed:?}");
        let is_frozen = |name: &&str| frozen.is_some_and(|part| name.contains(part));
        assert!(!changed.iter().any(is_frozen), "what is frozen stays: {changed:?}");

        let other = if file.ends_with("h5") { "other.keras" } else { "other.h5" };
        let message = step(other).unwrap_err();
        assert!(message.contains(other) && message.contains(".safetensors"), "{message}");
        assert!(!Path::new(&at(other)).exists());

        let listing = thawline(&["inspect", &at(file)]).unwrap();
        assert!(listing.contains("conv") && listing.contains("5 classes"), "{listing}");
    }
}

/// Images in folders, and their path.
fn photos(folder: &Path) -> String {
    let data = folder.join("data");
    write_sample_data(SampleSet::Shapes, &data, &SampleOptions { size: 12, per_class: 5, seed: 1 }).unwrap();
    data.to_str().unwrap().to_owned()
}

#[test]
fn a_run_writes_files_under_names_that_keras_takes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = photos(folder.path());
    let graph = thawline(&["inspect", golden("efficient.keras").to_str().unwrap(), "--graph"]).unwrap();
    fs::write(at("graph.json"), graph).unwrap();
    let train = |weights: &str, out: &str, more: &[&str]| {
        let args =
            ["finetune", "--data", &data, "--policy", "head", "--epochs", "1", "--batch", "8", "--weights", weights];
        thawline(&[&args[..], &["--out", &at(out)], more].concat())
    };
    // By its name, Keras takes a file for a whole model or for weights alone.
    let weights = at("mine.weights.h5");
    fs::copy(golden("efficient.weights.h5"), &weights).unwrap();
    let report = train(&weights, "run", &["--model", &at("graph.json")]).unwrap();
    for name in ["best", "last"] {
        let [ours, keras] = ["safetensors", "weights.h5"].map(|ending| at(&format!("run/{name}.{ending}")));
        assert!(report.contains(&keras), "{report}");
        let [ours, keras] = [ours, keras].map(|file| StateDict::load(file).unwrap().tensors);
        assert!(keras.iter().all(|(name, tensor)| ours[name] == *tensor));
    }
    assert!(!Path::new(&at("run/best.h5")).exists());

    // What was learned is told, whatever has become of the file.
    fs::remove_file(&weights).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_thawline")).args(["finetune", "--resume", &at("run")]).output();
    let output = output.unwrap();
    let [told, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(told.contains("last weights:") && !told.contains("for Keras:"), "{told}");
    assert!(!output.status.success() && error.contains("mine.weights.h5"), "{error}");
}

#[test]
fn a_run_keeps_the_names_of_its_classes_and_does_as_the_files_augmentation() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = photos(folder.path());
    let run = |weights: &str, args: &[&str]| {
        let weights = golden(weights).to_str().unwrap().to_owned();
        let all =
            ["finetune", "--data", &data, "--policy", "head", "--epochs", "1", "--batch", "8", "--weights", &weights];
        let output = Command::new(env!("CARGO_BIN_EXE_thawline")).args([&all[..], args].concat()).output().unwrap();
        let [told, noted] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{noted}");
        (told, noted)
    };
    let (told, noted) = run("sequential.keras", &["--out", &at("run")]);
    assert!(noted.contains("warning: the Keras model's `augment/random_rotation"), "{noted}");
    assert!(noted.contains("left out; there is no --augment like it"), "{noted}");
    assert!(noted.contains("images are mirrored as it does, which is --augment flip"), "{noted}");
    let settings = fs::read_to_string(at("run/run.toml")).unwrap();
    assert!(settings.contains("augment = \"flip\""), "{settings}");
    let (_, noted) = run("sequential_tf.h5", &["--out", &at("plain"), "--augment", "none"]);
    assert!(
        noted.contains("left out, since --augment none is done instead") && !noted.contains("warning: the K"),
        "{noted}"
    );
    assert!(fs::read_to_string(at("plain/run.toml")).unwrap().contains("augment = \"none\""));

    let train = &Path::new(&data).join("train");
    let mut classes: Vec<String> =
        fs::read_dir(train).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    classes.sort_unstable();
    assert!(told.contains("best.keras.classes.json"), "{told}");
    let image = fs::read_dir(train.join(&classes[0])).unwrap().next().unwrap().unwrap().path();
    let names = |weights: &str| {
        let report =
            thawline(&["predict", "--weights", weights, image.to_str().unwrap(), "--json", "--top", "10", "--quiet"]);
        let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
        let top = report["predictions"][0]["top"].as_array().unwrap().clone();
        top.iter().map(|class| class["class"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    for weights in ["run/best.keras", "run/last.keras", "plain/best.h5"] {
        let text = fs::read_to_string(at(&format!("{weights}.classes.json"))).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), classes);
        assert_eq!(StateDict::load(at(weights)).unwrap().metadata["classes"], json!(classes).to_string());
        let mut named: Vec<String> = names(&at(weights)).into_iter().map(Option::unwrap).collect();
        named.sort_unstable();
        assert_eq!(named, classes, "{weights}");
    }
    // By name, whatever the order of the folders.
    let part = folder.path().join("part");
    fs::create_dir(&part).unwrap();
    fs::rename(train.join(&classes[3]), part.join(&classes[3])).unwrap();
    let evaluated =
        thawline(&["eval", "--weights", &at("run/best.keras"), "--data", part.to_str().unwrap(), "--split", "all"]);
    assert!(evaluated.unwrap().contains("images: loss"));

    // Copies keep them, and so does what replaces a file.
    let [source, copy] = [at("run/best.keras"), at("copy.safetensors")];
    thawline(&["convert", &source, "--out", &copy]).unwrap();
    assert_eq!(StateDict::load(&copy).unwrap().metadata["classes"], json!(classes).to_string());
    let [tuned, golden] = [at("tuned.keras"), golden("sequential.keras").to_str().unwrap().to_owned()];
    thawline(&["convert", &copy, "--to", &source, "--out", &tuned]).unwrap();
    assert_eq!(StateDict::load(&tuned).unwrap().metadata["classes"], json!(classes).to_string());
    thawline(&["convert", &golden, "--to", &golden, "--out", &tuned, "--force"]).unwrap();
    assert!(!StateDict::load(&tuned).unwrap().metadata.contains_key("classes"), "names of another file are none");

    // What somebody wrote by hand.
    for (text, part) in [
        ("{\"a\": 1}", "it is no list of class names, such as [\"cat\", \"dog\"]"),
        ("[\"a\", \"b\", \"a\"]", "it names the class `a` twice"),
    ] {
        fs::write(at("tuned.keras.classes.json"), text).unwrap();
        let message = thawline(&["predict", "--weights", &tuned, image.to_str().unwrap()]).unwrap_err();
        assert!(message.contains("tuned.keras.classes.json") && message.contains(part), "{message}");
    }
    fs::write(at("tuned.keras.classes.json"), "[\"a\", \"b\"]").unwrap();
    assert_eq!(names(&tuned)[0], None);
    fs::write(at("tuned.keras.classes.json"), "[\"a\", \"b\", \"c\", \"d\", \"e\"]").unwrap();
    assert!(names(&tuned)[0].is_some());
}

#[test]
fn what_cannot_be_written_is_said_before_anything_trains() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = photos(folder.path());
    // Numbers in another byte order are read only.
    fs::copy(golden("sequential.h5"), at("foreign.h5")).unwrap();
    let file = File::open_rw(at("foreign.h5")).unwrap();
    let group = file.group("model_weights/dense/sequential/dense").unwrap();
    let Datatype::FloatingPoint { size, layout, .. } = group.dataset("bias").unwrap().datatype().unwrap() else {
        panic!()
    };
    let foreign = Datatype::FloatingPoint { size, layout, byte_order: DatatypeByteOrder::BigEndian };
    let bytes = [0.1f32, 0.2, 0.3, 0.4, 0.5].iter().flat_map(|value| value.to_be_bytes()).collect();
    group.delete("bias").unwrap();
    let build = |builder: &mut DatasetBuilder| {
        builder.with_raw_data(foreign, bytes, 5);
    };
    group.create_dataset("bias", build).unwrap();
    file.commit().unwrap();
    file.close().unwrap();
    let read = StateDict::load(at("foreign.h5")).unwrap();
    assert_eq!(floats(&read.tensors["dense.bias"]), [0.1, 0.2, 0.3, 0.4, 0.5]);
    let args = ["finetune", "--data", &data, "--policy", "full", "--weights", &at("foreign.h5"), "--out", &at("run")];
    let message = thawline(&args).unwrap_err();
    assert!(message.contains("`dense.bias`") && message.contains("write .safetensors"), "{message}");
    assert!(!Path::new(&at("run")).exists());
}

#[test]
fn the_ending_of_a_name_says_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let keras = |name: &str| golden(name).to_str().unwrap().to_owned();
    let convert =
        |from: &str, to: &str, out: &str| thawline(&["convert", &keras(from), "--to", &keras(to), "--out", &at(out)]);
    convert("efficient.keras", "efficient.h5", "loud.H5").unwrap();
    assert!(fs::read(at("loud.H5")).unwrap().starts_with(b"\x89HDF"));
    for (to, out) in [("efficient.h5", "out.weights.h5"), ("efficient.weights.h5", "out.h5")] {
        let message = convert("efficient.keras", to, out).unwrap_err();
        assert!(message.contains("with the same ending"), "{message}");
        assert!(!Path::new(&at(out)).exists());
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
