//! A weights file opened with its network, and written back: what the command line does, in the library.

use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;
use thawline::compile;
use thawline::formats::FormatError;
use thawline::graph::Graph;
use thawline::kernels::conv2d::Variant;
use thawline::model::{self, Model, OpenError, Options, Size};
use thawline::models;
use thawline::plan::{Input, Plan, Storage};
use thawline::reference::Executor;
use thawline::tensor::HostTensor;
use thawline::weights::{StateDict, initialise, to_state};

const SIZE: Size = Size { height: 16, width: 16 };

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The logits of one image of ascending values, by the reference executor.
fn logits(network: &Graph, tensors: &[HostTensor]) -> Vec<f32> {
    let plan = Plan::new(compile::inference(network.clone(), false).unwrap(), Input::Values, Variant::Direct);
    let mut executor = Executor::new(&plan);
    for (index, slot) in plan.slots.iter().enumerate() {
        let memory = executor.slot_mut(thawline::plan::SlotId::new(index));
        match slot.storage {
            Storage::Param(param) => {
                memory[..tensors[param.index()].data.len()].copy_from_slice(&tensors[param.index()].data);
            }
            Storage::Images => {
                let image = (0u16..).map(|i| if i % 4 == 3 { 0.0 } else { f32::from(i % 97) / 50.0 - 1.0 });
                memory.iter_mut().zip(image).for_each(|(value, pixel)| *value = pixel);
            }
            _ => {}
        }
    }
    executor.run(&[thawline::graph::Phase::Once, thawline::graph::Phase::Forward]);
    let slot = plan.output(thawline::graph::Output::Logits).unwrap();
    executor.slot(slot)[..network.logits_shape().unwrap().c()].to_vec()
}

/// A `resnet_tiny` with so many outputs, as a file.
fn saved(folder: &TempDir, outputs: usize) -> std::path::PathBuf {
    let graph = models::build("resnet_tiny", 1, SIZE.pair(), outputs).unwrap();
    let state = to_state(&graph, &initialise(&graph, 3));
    let path = folder.path().join("weights.safetensors");
    state.save(&path).unwrap();
    path
}

#[test]
fn a_head_of_one_output_is_of_two_classes() {
    let folder = TempDir::new().unwrap();
    let path = saved(&folder, 1);
    let mut model = Model::open(&path).unwrap();
    assert_eq!(model.classes, 2);
    assert!(
        model.notes.iter().any(|note| note.contains("the logit of the second of two classes")),
        "{:?}",
        model.notes
    );
    let network = model.network(1, SIZE).unwrap();
    let tensors = model.tensors(&network).unwrap();
    let [zero, logit] = logits(&network, &tensors)[..] else { panic!("two logits") };

    // As the same file's network with one output gives it.
    let one = models::build("resnet_tiny", 1, SIZE.pair(), 1).unwrap();
    let alone = logits(&one, &initialise(&one, 3));
    assert_eq!((zero, logit), (0.0, alone[0]));

    // Written, it says so itself, and keeps its one output.
    let out = folder.path().join("out.safetensors");
    model.class_names = Some(vec!["cat".into(), "dog".into()]);
    model.save(&network, &tensors, &out).unwrap();
    let mut again = Model::open(&out).unwrap();
    assert_eq!((again.classes, again.class_names.as_deref()), (2, Some(&["cat".to_owned(), "dog".to_owned()][..])));
    let network = again.network(1, again.size(None)).unwrap();
    let tensors = again.tensors(&network).unwrap();
    assert_eq!(logits(&network, &tensors), [zero, logit]);
    assert_eq!(StateDict::load(&out).unwrap().tensors["fc.weight"].shape[0], 1);
}

#[test]
fn other_classes_than_two_replace_one_output() {
    let folder = TempDir::new().unwrap();
    let options = Options { classes: Some(5), head: thawline::weights::Head::Optional, ..Options::default() };
    let mut model = Model::open_with(&saved(&folder, 1), options).unwrap();
    let network = model.network(1, SIZE).unwrap();
    model.tensors(&network).unwrap();
    assert_eq!(network.logits_shape().unwrap().c(), 5);
    // One output means two classes only where a file has it.
    let options = Options { classes: Some(1), ..Options::default() };
    let error = Model::open_with(&saved(&folder, 5), options).err().unwrap();
    assert!(matches!(error, OpenError::Model(_)), "{error}");
}

#[test]
fn a_keras_file_comes_back_as_one() {
    let folder = TempDir::new().unwrap();
    for name in ["resnet.keras", "mobilenet.keras", "mobilenet.h5"] {
        let path = golden("keras").join(name);
        let mut model = Model::open(&path).unwrap();
        let network = model.network(1, model.size(None)).unwrap();
        let mut tensors = model.tensors(&network).unwrap();
        tensors.iter_mut().flat_map(|tensor| &mut tensor.data).for_each(|value| *value *= 1.5);
        let out = folder.path().join(name);
        model.save(&network, &tensors, &out).unwrap();
        let mut again = Model::open(&out).unwrap();
        assert_eq!(again.spec.preprocessing.value, model.spec.preprocessing.value, "{name}");
        let found = again.tensors(&again.network(1, again.size(None)).unwrap()).unwrap();
        // The count of updates has no place in a Keras file.
        let values = |tensors: &[HostTensor]| to_state(&network, tensors).tensors;
        let counted = |(name, _): &(&String, _)| !name.ends_with("num_batches_tracked");
        let [ours, theirs] = [&tensors, &found].map(|tensors| values(tensors));
        let ours: BTreeMap<_, _> = ours.iter().filter(counted).collect();
        assert_eq!(ours, theirs.iter().filter(counted).collect(), "{name}");
    }
    // A Keras file is a copy of one.
    let model = Model::open(&saved(&folder, 10)).unwrap();
    let network = model.network(1, SIZE).unwrap();
    let error = model.save(&network, &initialise(&network, 0), &folder.path().join("new.keras")).unwrap_err();
    assert!(matches!(error, OpenError::Format(FormatError::NoTemplate { form: ".keras", .. })), "{error}");
    assert!(!folder.path().join("new.keras").exists());
}

#[test]
fn an_onnx_file_comes_back_as_one() {
    let folder = TempDir::new().unwrap();
    let mut model = Model::open(&golden("onnx/resnet.onnx")).unwrap();
    let network = model.network(1, model.size(None)).unwrap();
    let tensors = model.tensors(&network).unwrap();
    let out = folder.path().join("out.onnx");
    model.save(&network, &tensors, &out).unwrap();
    let mut again = Model::open(&out).unwrap();
    let network_again = again.network(1, again.size(None)).unwrap();
    let tensors_again = again.tensors(&network_again).unwrap();
    assert_eq!(logits(&network_again, &tensors_again), logits(&network, &tensors));
}

#[test]
fn the_names_of_efficientnet_pytorch_are_timms() {
    let timm = models::build("tf_efficientnet_b0", 1, (32, 32), 1000).unwrap();
    let tensors = initialise(&timm, 4);
    // The names of that package for the first tensors of three kinds of blocks, and for what is outside.
    let names = [
        ("conv_stem.weight", "_conv_stem.weight"),
        ("bn1.running_var", "_bn0.running_var"),
        ("blocks.0.0.conv_pw.weight", "_blocks.0._project_conv.weight"),
        ("blocks.1.1.conv_pw.weight", "_blocks.2._expand_conv.weight"),
        ("blocks.6.0.se.conv_expand.bias", "_blocks.15._se_expand.bias"),
        ("bn2.weight", "_bn1.weight"),
        ("classifier.bias", "_fc.bias"),
    ];
    let modules: BTreeMap<&str, &str> = [
        ("conv_stem", "_conv_stem"),
        ("bn1", "_bn0"),
        ("conv_head", "_conv_head"),
        ("bn2", "_bn1"),
        ("classifier", "_fc"),
    ]
    .into();
    let mut blocks: Vec<String> = Vec::new();
    let mut state = StateDict::default();
    for (name, tensor) in to_state(&timm, &tensors).tensors {
        let parts: Vec<&str> = name.split('.').collect();
        let (module, part) = name.rsplit_once('.').unwrap();
        let renamed = match parts[..] {
            ["blocks", stage, block, ..] => {
                let prefix = format!("blocks.{stage}.{block}.");
                if !blocks.contains(&prefix) {
                    blocks.push(prefix.clone());
                }
                let number = blocks.iter().position(|known| *known == prefix).unwrap();
                let own = match (&module[prefix.len()..], stage) {
                    ("conv_dw", _) => "_depthwise_conv",
                    ("se.conv_reduce", _) => "_se_reduce",
                    ("se.conv_expand", _) => "_se_expand",
                    ("conv_pw", "0") | ("conv_pwl", _) => "_project_conv",
                    ("conv_pw", _) => "_expand_conv",
                    ("bn1", "0") => "_bn1",
                    ("bn1", _) => "_bn0",
                    ("bn2", "0") | ("bn3", _) => "_bn2",
                    ("bn2", _) => "_bn1",
                    (other, _) => panic!("{other}"),
                };
                format!("_blocks.{number}.{own}.{part}")
            }
            _ => format!("{}.{part}", modules[module]),
        };
        if let Some((_, wanted)) = names.iter().find(|(timm, _)| *timm == name) {
            assert_eq!(renamed, *wanted);
        }
        state.tensors.insert(renamed, tensor);
    }
    let mut model = Model::of(state, Options::default()).unwrap();
    assert_eq!((&*model.spec.name, model.classes), ("tf_efficientnet_b0", 1000));
    assert!(model.notes.iter().any(|note| note.contains("efficientnet_pytorch")), "{:?}", model.notes);
    assert_eq!(model.tensors(&timm).unwrap(), tensors);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let error = Model::open(Path::new("no/such/file.pth")).err().unwrap();
    assert!(error.to_string().contains("no/such/file.pth"), "{error}");
    assert!(matches!(Model::anew(Options::default()), Err(OpenError::Nothing)));
    assert!(model::spec("resnet999").is_err());
}
