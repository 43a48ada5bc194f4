//! Networks against those of torchvision, timm and Keras: names, shapes, strides, constants and rates.

use std::collections::{BTreeMap, HashMap};
use thawline::graph::{Graph, LayerId, LayerKind, Op, Role};
use thawline::models::{self, MODELS, Recognised, Spec};

/// Every tensor of a PyTorch state dict of this network, with its shape, in PyTorch's order.
fn state_dict(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for param in graph.params() {
        let layer = &graph.layers()[param.layer.index()].name;
        let [kh, kw, _, cout] = param.shape.0;
        let c = param.channels;
        let full = |tensor: &str| format!("{layer}.{tensor}");
        let mut push = |tensor: &str, shape: &[usize]| tensors.push((full(tensor), shape.to_vec()));
        match param.role {
            Role::ConvWeight | Role::DepthwiseWeight => push("weight", &[cout, c, kh, kw]),
            Role::LinearWeight => push("weight", &[cout, c * kh * kw]),
            Role::Scale => tensors.push((layer.clone(), vec![c])),
            Role::ImageScale => tensors.push((layer.clone(), vec![c, 1, 1])),
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

fn recognise(tensors: &[(String, Vec<usize>)]) -> Option<Recognised> {
    models::recognise(tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
}

/// The strides of the convolutions.
fn strides(graph: &Graph) -> HashMap<&str, usize> {
    let convolutions = graph.nodes().filter_map(|(_, node)| match (&node.op, node.layer) {
        (Op::Conv2d(conv), Some(layer)) => Some((graph.layers()[layer.index()].name.as_str(), conv.window.stride[0])),
        _ => None,
    });
    convolutions.collect()
}

/// A layer a line, as `golden/state_dicts.py` writes them.
fn lines(tensors: Vec<(String, String, Vec<usize>)>, strides: &HashMap<&str, usize>) -> Vec<String> {
    let mut layers: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (layer, tensor, shape) in tensors {
        let shape = format!("{shape:?}").replace(", ", ",");
        layers.entry(layer).or_default().insert(tensor, shape);
    }
    let line = |(layer, tensors): (String, BTreeMap<String, String>)| {
        let four = tensors.values().any(|shape| shape.matches(',').count() == 3);
        let stride = if four { format!(" /{}", strides[layer.as_str()]) } else { String::new() };
        let tensors: Vec<String> = tensors.into_iter().map(|(tensor, shape)| tensor + &shape).collect();
        format!("{layer} {}{stride}", tensors.join(" "))
    };
    let mut lines: Vec<String> = layers.into_iter().map(line).collect();
    lines.sort();
    lines
}

fn pytorch_lines(graph: &Graph) -> Vec<String> {
    let tensors = state_dict(graph).into_iter().map(|(name, shape)| {
        let (layer, tensor) = name.rsplit_once('.').expect("a layer's tensor");
        (layer.to_owned(), tensor.to_owned(), shape)
    });
    lines(tensors.collect(), &strides(graph))
}

/// With Keras's names and layouts.
fn keras_lines(graph: &Graph) -> Vec<String> {
    let mut tensors = Vec::new();
    for param in graph.params() {
        let layer = &graph.layers()[param.layer.index()].name;
        let [kh, kw, _, cout] = param.shape.0;
        let c = param.channels;
        let mut push = |tensor: &str, shape: &[usize]| tensors.push((layer.clone(), tensor.to_owned(), shape.to_vec()));
        match param.role {
            Role::ConvWeight => push("kernel", &[kh, kw, c, cout]),
            Role::DepthwiseWeight => push("kernel", &[kh, kw, cout, 1]),
            // MobileNetV3's classifier is a convolution.
            Role::LinearWeight if layer == "logits" => push("kernel", &[1, 1, c, cout]),
            Role::LinearWeight => push("kernel", &[kh * kw * c, cout]),
            Role::Scale | Role::ImageScale => push("gamma", &[c]),
            Role::Bias => push("bias", &[cout]),
            Role::Affine => ["gamma", "beta"].iter().for_each(|tensor| push(tensor, &[c])),
            Role::Moments => ["moving_mean", "moving_variance"].iter().for_each(|tensor| push(tensor, &[c])),
        }
    }
    lines(tensors, &strides(graph))
}

/// FNV-1a of the lines.
fn digest(lines: &[String]) -> String {
    let bytes = lines.iter().flat_map(|line| line.bytes().chain([b'\n']));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// The different values, in order.
fn distinct(values: impl Iterator<Item = f32>) -> String {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values.dedup();
    values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
}

/// Checks a framework's networks against its list; says of each name which network here it is.
fn check(golden: &str, name_here: impl Fn(&str) -> String, lines: impl Fn(&Graph) -> Vec<String>) {
    let mut golden = golden.lines().peekable();
    let mut networks = 0;
    while let Some(head) = golden.next() {
        let facts: Vec<&str> = head.strip_prefix("# ").expect("a network").split(" | ").map(str::trim).collect();
        let &[name, parameters, size, eps, keep, dropout, depth, hash] = &facts[..] else { panic!("{head}") };
        let name = name_here(name);
        let spec = models::spec(&name).unwrap();
        assert_eq!(spec.default_size.to_string(), size, "{name}");
        let graph = spec.build(1, (spec.default_size, spec.default_size), 1000).unwrap();

        let listed = std::iter::from_fn(|| golden.next_if(|line| !line.starts_with('#'))).collect::<Vec<_>>();
        let ours = lines(&graph);
        if !listed.is_empty() {
            assert_eq!(ours, listed, "{name}");
        }
        assert_eq!(digest(&ours), hash, "{name}");

        let trains = |role| !matches!(role, Role::Moments);
        let values = graph.params().iter().filter(|param| trains(param.role)).map(|param| match param.role {
            Role::Affine => 2 * param.channels,
            Role::Bias | Role::Scale | Role::ImageScale => param.shape.0[3],
            _ => param.shape.0[0] * param.shape.0[1] * param.channels * param.shape.0[3],
        });
        assert_eq!(values.sum::<usize>().to_string(), parameters, "{name}");

        let norms = || graph.layers().iter().zip(0..).filter(|(layer, _)| layer.kind == LayerKind::Bn);
        let own_eps = norms().filter_map(|(_, index)| graph.eps(LayerId::new(index)));
        assert_eq!(distinct(own_eps), distinct(eps.split_whitespace().map(|eps| eps.parse().unwrap())), "{name}");
        assert_eq!(distinct(norms().map(|(layer, _)| layer.averaging.keep)), keep, "{name}");

        let rates = |whole: bool| {
            graph.nodes().filter_map(move |(_, node)| match node.op {
                Op::Dropout { rate, whole: this, .. } if this == whole => Some(rate),
                _ => None,
            })
        };
        assert_eq!(distinct(rates(false)), dropout, "{name}");
        assert_eq!(rates(true).map(|rate| format!("{rate:.6}")).collect::<Vec<_>>().join(" "), depth, "{name}");
        networks += 1;
    }
    assert!(networks >= 10, "{networks}");
}

#[test]
fn networks_are_torchvisions() {
    check(include_str!("golden/state_dicts/torchvision.txt"), str::to_owned, pytorch_lines);
}

#[test]
fn networks_are_timms() {
    let here = |name: &str| models::of_timm(name).unwrap().name.to_string();
    check(include_str!("golden/state_dicts/timm.txt"), here, pytorch_lines);
}

#[test]
fn networks_are_kerass() {
    check(include_str!("golden/state_dicts/keras.txt"), |name| format!("keras_{name}"), keras_lines);
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

/// The padding of each convolution that has a stride, at the top, left, bottom and right, in graph order.
fn padding_of_strided(model: &str, size: (usize, usize)) -> Vec<[usize; 4]> {
    let graph = models::build(model, 1, size, 10).unwrap();
    let windows = graph.nodes().filter_map(|(_, node)| match node.op {
        Op::Conv2d(conv) if conv.window.stride[0] == 2 => Some(conv.window.padding),
        _ => None,
    });
    windows.collect()
}

#[test]
fn tensorflows_padding_follows_from_the_images_size() {
    // 3×3, 3×3, 5×5, 3×3, 5×5; images of 224, 112, 56, 28 and 14 pixels.
    let even = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1], [1, 1, 2, 2]];
    for model in ["tf_efficientnet_b0", "keras_efficientnet_b0"] {
        assert_eq!(padding_of_strided(model, (224, 224)), even, "{model}");
        // 45 × 46 pixels, then 23 × 23, 12 × 12, 6 × 6 and 3 × 3.
        let odd = [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1], [2, 2, 2, 2]];
        assert_eq!(padding_of_strided(model, (45, 46)), odd, "{model}");
    }
    let symmetric = [1, 1, 2, 1, 2].map(|pixels| [pixels; 4]);
    assert_eq!(padding_of_strided("efficientnet_b0", (45, 46)), symmetric);
    assert_eq!(padding_of_strided("timm_efficientnet_b0", (224, 224)), symmetric);
}

#[test]
fn blocks_hold_their_squeeze_and_excitation() {
    for (model, block, layers) in [
        ("efficientnet_b0", "features.2.1", 16),
        ("tf_efficientnet_b0", "blocks.1.1", 15),
        ("keras_efficientnet_b0", "block2b", 16),
    ] {
        let graph = models::build(model, 1, (64, 64), 10).unwrap();
        let kinds: Vec<_> =
            graph.layers().iter().filter(|l| l.block.as_deref() == Some(block)).map(|l| l.kind).collect();
        assert!(kinds.contains(&LayerKind::Scale) && kinds.last() == Some(&LayerKind::Add), "{model}: {kinds:?}");
        assert_eq!(kinds.len(), layers, "{model}: {kinds:?}");
    }
}

#[test]
fn recognises_every_model_by_its_own_tensors() {
    let built = |spec: &Spec| spec.build(1, (spec.default_size, spec.default_size), 37).unwrap();
    let states: Vec<_> = MODELS.iter().map(|spec| (spec.name.as_ref(), state_dict(&built(spec)))).collect();
    for spec in MODELS.iter() {
        let graph = built(spec);
        // timm's networks with and without `tf_` have the same tensors.
        let own = state_dict(&graph);
        let alike: Vec<&str> = states.iter().filter(|(_, state)| *state == own).map(|(name, _)| *name).collect();
        let found =
            |classes, prefix: &str| Some(Recognised { models: alike.clone(), classes, prefixes: vec![prefix.into()] });
        let expected = found(Some(37), "");
        let mut tensors = state_dict(&graph);
        assert_eq!(recognise(&tensors), expected, "{}", spec.name);
        // One tensor lost is for the loader to complain about.
        let weights = tensors.iter().filter(|(_, shape)| shape.len() == 4);
        let some = weights.map(|(name, _)| name.clone()).nth(3).unwrap();
        tensors.retain(|(name, _)| *name != some);
        assert_eq!(recognise(&tensors), expected, "{}", spec.name);
        let prefixed: Vec<_> =
            tensors.iter().map(|(name, shape)| (format!("net.module.{name}"), shape.clone())).collect();
        assert_eq!(recognise(&prefixed), found(Some(37), "net.module."), "{}", spec.name);
        // A file without its head has no number of classes.
        let head = format!("{}.weight", graph.layers()[graph.head().unwrap().index()].name);
        tensors.retain(|(name, _)| *name != head);
        assert_eq!(recognise(&tensors), found(None, ""), "{}", spec.name);
    }
}

#[test]
fn look_alikes_are_of_networks_that_there_are() {
    // The table is whole.
    let has_table = |name: &str| models::look_alikes().any(|look| look.model == name && look.same);
    let of_others = |name: &str| name != "resnet_tiny" && !name.starts_with("keras_");
    for spec in MODELS.iter().filter(|spec| of_others(&spec.name)) {
        assert!(has_table(&spec.name), "{}", spec.name);
    }
    let mut of_resnet50 = Vec::new();
    for look in models::look_alikes() {
        assert!(MODELS.iter().any(|spec| spec.name == look.model), "{look:?}");
        assert!(["timm", "torchvision"].contains(&look.library), "{look:?}");
        if look.model == "resnet50" && !look.same {
            of_resnet50.push(look.name);
        }
    }
    assert_eq!(of_resnet50, ["resnetaa50", "resnetblur50"]);
}

#[test]
fn timms_names() {
    let of = |name| models::of_timm(name).map(|spec| spec.name.as_ref());
    assert_eq!(of("efficientnet_b0"), Some("timm_efficientnet_b0"));
    assert_eq!(of("tf_efficientnet_b0"), Some("tf_efficientnet_b0"));
    assert_eq!(of("resnext50_32x4d"), Some("resnext50_32x4d"));
    assert_eq!(of("vit_base_patch16_224"), None);
}

#[test]
fn recognises_nothing_in_strange_files() {
    assert_eq!(recognise(&[]), None);
    let graph = models::build("resnet18", 1, (32, 32), 10).unwrap();
    let original = state_dict(&graph);
    let renamed = |prefix: &str| -> Vec<_> {
        original.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.clone())).collect()
    };
    assert_eq!(recognise(&renamed("encoder/")), None);
    // Several sets of weights.
    let prefixes = |tensors: &[_]| recognise(tensors).unwrap().prefixes;
    assert_eq!(prefixes(&[renamed("online."), renamed("target.")].concat()), ["online.", "target."]);
    assert_eq!(prefixes(&[renamed(""), renamed("ema.")].concat()), ["", "ema."]);
    let transposed: Vec<_> =
        original.iter().map(|(name, shape)| (name.clone(), shape.iter().rev().copied().collect())).collect();
    assert_eq!(recognise(&transposed), None);
}

#[test]
fn errors_say_what_to_do() {
    let error = |name, batch, size, classes| models::build(name, batch, size, classes).unwrap_err().to_string();
    assert_eq!(
        error("resnet19", 1, (64, 64), 10),
        format!(
            "unknown model `resnet19` (did you mean `resnet18`?); `thawline models` lists the {} that there are",
            MODELS.len()
        )
    );
    assert!(error("transformer", 1, (64, 64), 10).starts_with("unknown model `transformer`; `thawline models` lists "));
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
