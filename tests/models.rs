//! Networks against torchvision's: names, shapes, sizes and parameter counts.

use thawline::graph::{Graph, LayerKind, Role};
use thawline::models::{self, MODELS};

/// Every tensor of a PyTorch state dict of this network, with its shape, in PyTorch's order.
fn state_dict(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for param in graph.params() {
        let layer = &graph.layers()[param.layer.index()].name;
        let [kh, kw, _, cout] = param.shape.0;
        let c = param.channels;
        let mut push = |tensor: &str, shape: &[usize]| tensors.push((format!("{layer}.{tensor}"), shape.to_vec()));
        match param.role {
            Role::ConvWeight | Role::DepthwiseWeight => push("weight", &[cout, c, kh, kw]),
            Role::LinearWeight => push("weight", &[cout, c]),
            Role::Bias => push("bias", &[cout]),
            Role::Affine => ["weight", "bias"].iter().for_each(|tensor| push(tensor, &[c])),
            Role::Moments => {
                ["running_mean", "running_var"].iter().for_each(|tensor| push(tensor, &[c]));
                push("num_batches_tracked", &[]);
            }
        }
    }
    tensors
}

fn recognise(tensors: &[(String, Vec<usize>)]) -> Option<(&'static str, usize)> {
    models::recognise(tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
}

#[test]
fn resnet18_has_torchvisions_tensors() {
    let graph = models::build("resnet18", 1, (224, 224), 1000).unwrap();
    let ours: Vec<String> = state_dict(&graph).iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
    let theirs: Vec<&str> = include_str!("golden/resnet18_state_dict.txt").lines().collect();
    assert_eq!(ours, theirs);
}

#[test]
fn parameter_counts() {
    // Weights, biases, gamma and beta; tensors in a state dict; batch norms.
    let expected = [
        ("resnet18", 11_689_512, 122, 20),
        ("resnet34", 21_797_672, 218, 36),
        ("resnet50", 25_557_032, 320, 53),
        ("resnet101", 44_549_160, 626, 104),
        ("resnet152", 60_192_808, 932, 155),
        ("wide_resnet50_2", 68_883_240, 320, 53),
        ("resnet_tiny", 239_608, 92, 15),
    ];
    assert_eq!(MODELS.iter().map(|m| m.name.as_ref()).collect::<Vec<_>>(), expected.map(|(name, ..)| name));
    for (name, parameters, tensors, batch_norms) in expected {
        let graph = models::build(name, 1, (64, 64), 1000).unwrap();
        let dict = state_dict(&graph);
        let trainable = dict.iter().filter(|(tensor, _)| tensor.ends_with("weight") || tensor.ends_with("bias"));
        assert_eq!(trainable.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), parameters, "{name}");
        assert_eq!(dict.len(), tensors, "{name}");
        assert_eq!(graph.layers().iter().filter(|l| l.kind == LayerKind::Bn).count(), batch_norms, "{name}");
    }
}

#[test]
fn layers_of_a_basic_block() {
    let graph = models::build("resnet18", 2, (224, 224), 10).unwrap();
    let block: Vec<&str> =
        graph.layers().iter().filter(|l| l.block.as_deref() == Some("layer2.0")).map(|l| l.name.as_str()).collect();
    let names = ["conv1", "bn1", "relu1", "conv2", "bn2", "downsample.0", "downsample.1", "add", "relu2"];
    assert_eq!(block, names.map(|name| format!("layer2.0.{name}")));
    let outside: Vec<&str> = graph.layers().iter().filter(|l| l.block.is_none()).map(|l| l.name.as_str()).collect();
    assert_eq!(outside, ["conv1", "bn1", "relu", "maxpool", "avgpool", "fc"]);
}

#[test]
fn shapes_are_torchvisions() {
    let shape = |model: &str, size, layer: &str| {
        let graph = models::build(model, 2, size, 10).unwrap();
        graph.layers().iter().find(|l| l.name == layer).unwrap().shape.0
    };
    assert_eq!(shape("resnet18", (224, 224), "maxpool"), [2, 56, 56, 64]);
    assert_eq!(shape("resnet18", (224, 224), "layer4.1.add"), [2, 7, 7, 512]);
    assert_eq!(shape("resnet18", (33, 35), "conv1"), [2, 17, 18, 64]);
    assert_eq!(shape("resnet18", (33, 35), "layer4.0.conv1"), [2, 2, 2, 512]);
    assert_eq!(shape("resnet18", (1, 1), "fc"), [2, 1, 1, 10]);
    // The stride sits on the 3×3 convolution.
    assert_eq!(shape("resnet50", (224, 224), "layer2.0.conv1"), [2, 56, 56, 128]);
    assert_eq!(shape("resnet50", (224, 224), "layer2.0.conv2"), [2, 28, 28, 128]);
    assert_eq!(shape("resnet50", (224, 224), "layer2.0.downsample.0"), [2, 28, 28, 512]);
    assert_eq!(shape("wide_resnet50_2", (224, 224), "layer1.0.conv2"), [2, 56, 56, 128]);
    assert_eq!(shape("resnet_tiny", (16, 16), "layer1.1.add"), [2, 16, 16, 16]);
    assert_eq!(shape("resnet_tiny", (13, 11), "layer3.1.add"), [2, 4, 3, 64]);
    assert_eq!(shape("resnet_tiny", (16, 16), "avgpool"), [2, 1, 1, 64]);
}

#[test]
fn recognises_every_model_by_its_own_tensors() {
    for spec in MODELS {
        let mut tensors = state_dict(&spec.build(1, (32, 32), 37).unwrap());
        assert_eq!(recognise(&tensors), Some((spec.name.as_ref(), 37)));
        // One tensor lost is for the loader to complain about.
        tensors.retain(|(name, _)| name != "layer2.0.conv1.weight");
        assert_eq!(recognise(&tensors), Some((spec.name.as_ref(), 37)));
        // A file without its head has no number of classes.
        tensors.retain(|(name, _)| name != "fc.weight");
        assert_eq!(recognise(&tensors), None);
    }
}

#[test]
fn recognises_nothing_in_strange_files() {
    assert_eq!(recognise(&[]), None);
    let graph = models::build("resnet18", 1, (32, 32), 10).unwrap();
    let original = state_dict(&graph);
    let renamed: Vec<_> = original.iter().map(|(name, shape)| (format!("encoder.{name}"), shape.clone())).collect();
    assert_eq!(recognise(&renamed), None);
    let mut grown = original.clone();
    grown.extend(original.iter().map(|(name, shape)| (format!("momentum.{name}"), shape.clone())));
    assert_eq!(recognise(&grown), None);
    let transposed: Vec<_> =
        original.iter().map(|(name, shape)| (name.clone(), shape.iter().rev().copied().collect())).collect();
    assert_eq!(recognise(&transposed), None);
}

#[test]
fn errors_say_what_to_do() {
    let error = |name, batch, size, classes| models::build(name, batch, size, classes).unwrap_err().to_string();
    assert_eq!(
        error("resnet19", 1, (64, 64), 10),
        "unknown model `resnet19` (did you mean `resnet18`?); the models are resnet18, resnet34, resnet50, resnet101, \
         resnet152, wide_resnet50_2, resnet_tiny"
    );
    assert!(error("vgg", 1, (64, 64), 10).starts_with("unknown model `vgg`; the models are resnet18, "));
    assert_eq!(error("resnet18", 1, (64, 64), 0), "resnet18 cannot have 0 classes: it takes 1 to 1048576");
    assert_eq!(
        error("resnet18", 1, (64, 64), usize::MAX),
        format!("resnet18 cannot have {} classes: it takes 1 to 1048576", usize::MAX)
    );
    for (batch, size) in [(0, (64, 64)), (1, (0, 64)), (1, (64, 0)), (usize::MAX, (64, 64)), (1, (1 << 20, 1 << 20))] {
        let (height, width) = size;
        let start = format!("resnet18 cannot take {batch} images of {height}×{width} pixels: input: ");
        let text = error("resnet18", batch, size, 10);
        assert!(text.starts_with(&start), "{text}");
    }
}
