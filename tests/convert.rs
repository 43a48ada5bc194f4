//! Turning a network's parameters over to another variant of it.

use thawline::compile;
use thawline::convert::{ConvertError, Converted, Remark, Variant, convert};
use thawline::graph::{Act, Affine, Averaging, Builder, Graph, Output, Phase, Role, Window};
use thawline::kernels::conv2d;
use thawline::models;
use thawline::plan::{Input, Plan, Storage};
use thawline::preprocessing::Preprocessing;
use thawline::reference::Executor;
use thawline::rng::Rng;
use thawline::tensor::HostTensor;
use thawline::weights;

/// What may differ between two variants of the small network of [`network`].
#[derive(Clone, Copy)]
struct Style {
    /// Of the convolutions in front of batch norms.
    bias: bool,
    eps: f32,
    /// Whether the shortcut stands before the branch that it is added to.
    shortcut_first: bool,
    /// Of the 3×3 convolution with stride 2.
    padding: [usize; 4],
    act: Act,
    /// Whether the last layer is a convolution.
    conv_head: bool,
    dropout: bool,
    averaging: Averaging,
    names: [&'static str; 8],
}

const TORCH: Style = Style {
    bias: false,
    eps: 1e-5,
    shortcut_first: false,
    padding: [1; 4],
    act: Act::Relu,
    conv_head: false,
    dropout: false,
    averaging: Averaging::PYTORCH,
    names: ["conv1", "bn1", "block.conv1", "block.bn1", "block.conv2", "block.bn2", "block.short", "fc"],
};

const KERAS: Style = Style {
    bias: true,
    eps: 1e-3,
    shortcut_first: true,
    padding: [1; 4],
    act: Act::Relu,
    conv_head: true,
    dropout: true,
    averaging: Averaging::KERAS,
    names: ["stem", "stem_bn", "b_1_conv", "b_1_bn", "b_2_conv", "b_2_bn", "b_0", "predictions"],
};

/// A stem, a residual block whose shortcut and last convolution have one shape, and a head.
fn network(style: Style) -> Graph {
    let [stem, stem_bn, conv1, bn1, conv2, bn2, short, head] = style.names;
    let mut b = Builder::new();
    b.averaging(style.averaging);
    let x = b.input(2, 8, 8, 3).unwrap();
    let x = b.conv2d(stem, x, 8, Window::square(3, 1, 1), style.bias).unwrap();
    let x = b.batch_norm(stem_bn, x, style.eps).unwrap();
    let x = b.activation("act", x, style.act).unwrap();
    let pool = b.max_pool("pool", x, Window::square(2, 2, 0)).unwrap();
    let shortcut = |b: &mut Builder| {
        let y = b.conv2d(short, pool, 8, Window::square(1, 2, 0), style.bias).unwrap();
        b.batch_norm(&format!("{short}_bn"), y, style.eps).unwrap()
    };
    let first = style.shortcut_first.then(|| shortcut(&mut b));
    let window = Window { kernel: [3, 3], stride: [2, 2], padding: style.padding };
    let y = b.conv2d(conv1, pool, 8, window, style.bias).unwrap();
    let y = b.batch_norm(bn1, y, style.eps).unwrap();
    let y = b.activation("block.act", y, style.act).unwrap();
    let y = b.conv2d(conv2, y, 8, Window::square(1, 1, 0), style.bias).unwrap();
    let mut y = b.batch_norm(bn2, y, style.eps).unwrap();
    if style.dropout {
        y = b.stochastic_depth("drop", y, 0.1).unwrap();
    }
    let x = match first {
        Some(shortcut) => b.add("add", shortcut, y).unwrap(),
        None => {
            let shortcut = shortcut(&mut b);
            b.add("add", y, shortcut).unwrap()
        }
    };
    let x = b.global_avg_pool("gap", x).unwrap();
    let logits = match style.conv_head {
        true => b.conv2d(head, x, 5, Window::square(1, 1, 0), true).unwrap(),
        false => b.linear(head, x, 5).unwrap(),
    };
    b.finish(logits).unwrap()
}

/// Random parameters, with statistics and γ as a trained network may have them.
fn parameters(graph: &Graph) -> Vec<HostTensor> {
    let mut tensors = weights::initialise(graph, 7);
    let mut rng = Rng::new(8);
    for (param, tensor) in graph.params().iter().zip(&mut tensors) {
        let (c, out) = (param.shape.stored_c(), param.shape.c());
        if matches!(param.role, Role::Affine | Role::Moments | Role::Bias) {
            tensor.data[..out].fill_with(|| rng.range(-1.0, 1.0) as f32);
        }
        if param.role == Role::Moments {
            // Small enough for ε to count.
            tensor.data[c..c + out].fill_with(|| rng.range(0.001, 0.1) as f32);
        }
    }
    tensors
}

fn logits(graph: &Graph, tensors: &[HostTensor]) -> Vec<f32> {
    let compiled = compile::inference(graph.clone(), false).unwrap();
    let plan = Plan::new(compiled, Input::Values, conv2d::Variant::Direct);
    let mut executor = Executor::new(&plan);
    let mut rng = Rng::new(9);
    for (index, slot) in plan.slots.iter().enumerate() {
        let memory = executor.slot_mut(thawline::plan::SlotId::new(index));
        match slot.storage {
            Storage::Param(id) => memory.copy_from_slice(&tensors[id.index()].data),
            // The fourth channel is padding.
            Storage::Images => {
                for pixel in memory.chunks_mut(4) {
                    pixel[..3].fill_with(|| rng.range(-2.0, 2.0) as f32);
                }
            }
            _ => {}
        }
    }
    executor.run(&[Phase::Once, Phase::Forward]);
    let (_, slot) = plan.outputs.iter().find(|(output, _)| *output == Output::Logits).unwrap();
    executor.slot(*slot).to_vec()
}

fn variant<'a>(name: &'a str, graph: &'a Graph) -> Variant<'a> {
    Variant { name, graph, preprocessing: Preprocessing::normalised([0.5; 3], [0.5; 3]) }
}

fn between(from: Style, to: Style) -> Result<Converted, ConvertError> {
    let (from, to) = (network(from), network(to));
    convert(&variant("ours", &from), &variant("theirs", &to), &parameters(&from))
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().map(|a| a.abs()).fold(0.0, f32::max);
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn a_variant_computes_what_the_other_did() {
    for (from, to) in [(TORCH, KERAS), (KERAS, TORCH), (KERAS, KERAS)] {
        let converted = between(from, to).unwrap();
        let before = logits(&network(from), &parameters(&network(from)));
        let after = logits(&network(to), &converted.tensors);
        assert!(difference(&before, &after) < 1e-5, "{before:?} {after:?}");
        let pairs = from.names.into_iter().zip(to.names).map(|(from, to)| (from.to_owned(), to.to_owned()));
        for pair in pairs {
            assert!(converted.layers.contains(&pair), "{pair:?} in {:?}", converted.layers);
        }
        assert!(!converted.account.iter().any(Remark::changes_logits));
    }
    // What has no reason to change keeps its bits.
    let same = between(KERAS, KERAS).unwrap();
    assert_eq!((same.tensors, same.account), (parameters(&network(KERAS)), vec![]));
}

#[test]
fn the_account_names_every_difference() {
    let (from, to) = (network(KERAS), network(Style { padding: [0, 0, 1, 1], ..TORCH }));
    let old = Variant { preprocessing: Preprocessing::default(), ..variant("keras", &from) };
    let converted = convert(&old, &variant("torch", &to), &parameters(&from)).unwrap();
    let told: Vec<(bool, String)> = converted.account.iter().map(|r| (r.is_converted(), r.to_string())).collect();
    let [linear, absorbed, epsilon, padding, images, variance, keep, dropping] = &told[..] else { panic!("{told:#?}") };
    assert_eq!(*linear, (true, "a linear layer is a 1×1 convolution of one pixel: fc".to_owned()));
    let text = "the biases of conv1, block.conv1 and 2 more are gone into the running means behind them";
    assert_eq!(*absorbed, (true, text.to_owned()));
    let text = "epsilon is 1e-5 and was 1e-3 in bn1, block.bn1 and 2 more: gamma takes it up, by a factor of 0.";
    assert!(epsilon.0 && epsilon.1.starts_with(text), "{epsilon:?}");
    let text = "the padding of block.conv1 is another: the logits differ from those before";
    assert_eq!(*padding, (false, text.to_owned()));
    let (shown, framework) =
        (from.input_shape().unwrap(), "the other network's framework prepares them in another way");
    let described = |variant: &Variant| variant.preprocessing.describe((shown.h(), shown.w()));
    let (before, after) = (described(&old), described(&variant("torch", &to)));
    assert!(
        before.ends_with("values 0 to 1, mean 0, std 1, RGB")
            && after.ends_with("values −1 to 1, mean 0.5, std 0.5, RGB")
    );
    let text = format!("the weights expect images prepared as before ({before}), and {framework} ({after})");
    assert_eq!(*images, (false, text));
    assert!(
        variance.1.starts_with("the running variances are biased, where unbiased ones are meant: "),
        "{variance:?}"
    );
    assert!(
        keep.1.starts_with("running statistics moved with update=ema(0.99), and ema(0.9) is the custom"),
        "{keep:?}"
    );
    let text = "dropout and stochastic depth, in training: none, and one layer with a rate of 0.1 before";
    assert_eq!(*dropping, (false, text.to_owned()));

    let back = between(TORCH, KERAS).unwrap();
    let added = "there were no biases for stem, b_0 and 2 more: they are zero";
    assert!(back.account.iter().any(|remark| remark.to_string() == added), "{:?}", back.account);
}

#[test]
fn colours_in_another_order_meet_the_weights_that_were_theirs() {
    let graph = network(TORCH);
    let tensors = parameters(&graph);
    let rgb = variant("rgb", &graph);
    let bgr = Variant { preprocessing: Preprocessing { bgr: true, ..rgb.preprocessing }, ..rgb };
    let converted = convert(&rgb, &bgr, &tensors).unwrap();
    let text = "red and blue are the other way round: the weights of conv1 have changed places";
    assert_eq!(converted.account.iter().map(Remark::to_string).collect::<Vec<_>>(), [text]);
    // Three rows and one of padding a tap, eight outputs each.
    let (old, new) = (&tensors[0].data, &converted.tensors[0].data);
    for (old, new) in old.chunks(32).zip(new.chunks(32)) {
        assert_eq!([&old[16..24], &old[8..16], &old[..8], &old[24..]].concat(), *new);
    }
    assert_eq!(converted.tensors[1..], tensors[1..]);
    assert_eq!(convert(&bgr, &rgb, &converted.tensors).unwrap().tensors, tensors);
}

#[test]
fn other_networks_are_refused() {
    let error = |from, to| between(from, to).unwrap_err().to_string();
    assert_eq!(
        error(TORCH, Style { act: Act::Silu, ..TORCH }),
        "ours and theirs are not one network: nothing in ours computes what `act` of theirs does"
    );
    // A network that is a part of another.
    let longer = |style| {
        let mut b = Builder::new();
        let x = b.input(1, 4, 4, 3).unwrap();
        let x = b.conv2d("conv", x, 8, Window::square(1, 1, 0), true).unwrap();
        let y = if style { b.conv2d("side", x, 8, Window::square(3, 1, 1), false).unwrap() } else { x };
        let _ = y;
        let x = b.global_avg_pool("gap", x).unwrap();
        b.finish(x).unwrap()
    };
    let (long, short) = (longer(true), longer(false));
    let message =
        convert(&variant("long", &long), &variant("short", &short), &parameters(&long)).unwrap_err().to_string();
    assert_eq!(message, "long and short are not one network: nothing in short computes what `side` of long does");

    let plain = |bias| {
        let mut b = Builder::new();
        let x = b.input(1, 4, 4, 3).unwrap();
        let x = b.conv2d("conv", x, 8, Window::square(1, 1, 0), bias).unwrap();
        let x = b.global_avg_pool("gap", x).unwrap();
        b.finish(x).unwrap()
    };
    let (with, without) = (plain(true), plain(false));
    let message = convert(&variant("a", &with), &variant("b", &without), &parameters(&with)).unwrap_err().to_string();
    assert_eq!(
        message,
        "`conv` has a bias, but its counterpart `conv` has neither one nor a batch norm behind it that could take it up"
    );

    let scaled = |affine| {
        let mut b = Builder::new();
        b.affine(affine);
        let x = b.input(1, 4, 4, 3).unwrap();
        let x = b.batch_norm("bn", x, 1e-3).unwrap();
        let x = b.global_avg_pool("gap", x).unwrap();
        b.finish(x).unwrap()
    };
    let (with, without) = (scaled(Affine::Both), scaled(Affine::Beta));
    let bgr = variant("b", &with);
    let bgr = Variant { preprocessing: Preprocessing { bgr: true, ..bgr.preprocessing }, ..bgr };
    let message = convert(&variant("a", &with), &bgr, &parameters(&with)).unwrap_err().to_string();
    assert!(message.starts_with("`bn` takes the images, whose red and blue change places"), "{message}");
    let there = |tensors: &[HostTensor]| convert(&variant("a", &with), &variant("b", &without), tensors);
    let message = there(&parameters(&with)).unwrap_err().to_string();
    assert!(
        message.starts_with("`bn` has a gamma, or needs one for another epsilon, but its counterpart"),
        "{message}"
    );
    assert!(there(&weights::initialise(&with, 1)).is_ok());

    let (from, to) = (network(TORCH), network(KERAS));
    let mut ruined = parameters(&from);
    let moments = from.params().iter().position(|param| param.role == Role::Moments).unwrap();
    for variance in [-1.0, f32::NAN] {
        ruined[moments].data[8] = variance;
        let message = convert(&variant("a", &from), &variant("b", &to), &ruined).unwrap_err().to_string();
        assert!(message.starts_with("`bn1`: its epsilon cannot be converted"), "{message}");
    }
}

/// Every model of one network, and whether it pads as TensorFlow does.
const FAMILIES: &[&[(&str, bool)]] = &[
    &[
        ("efficientnet_b0", false),
        ("timm_efficientnet_b0", false),
        ("tf_efficientnet_b0", true),
        ("keras_efficientnet_b0", true),
    ],
    &[("efficientnet_v2_s", false), ("tf_efficientnetv2_s", true), ("keras_efficientnet_v2_s", true)],
    &[("mobilenet_v2", false), ("mobilenetv2_100", false), ("keras_mobilenet_v2", true)],
    &[
        ("mobilenet_v3_large", false),
        ("mobilenetv3_large_100", false),
        ("tf_mobilenetv3_large_100", true),
        ("keras_mobilenet_v3_large", true),
    ],
];

#[test]
fn models_of_one_network_convert_into_each_other() {
    let between = |from: &str, to: &str| {
        let [old, new] = [from, to].map(|name| models::build(name, 1, (64, 64), 10).unwrap());
        let zeros: Vec<HostTensor> = old.params().iter().map(|param| HostTensor::zeros(param.shape)).collect();
        let converted = convert(&variant(from, &old), &variant(to, &new), &zeros).unwrap();
        assert_eq!(converted.tensors.len(), new.params().len(), "{from} {to}");
        for (tensor, param) in converted.tensors.iter().zip(new.params()) {
            assert_eq!(tensor.shape, param.shape, "{from} {to}");
        }
        converted
    };
    for family in FAMILIES {
        for (from, pads_so) in *family {
            for (to, pads) in *family {
                let converted = between(from, to);
                let changes = converted.account.iter().any(Remark::changes_logits);
                assert_eq!(changes, pads_so != pads, "{from} {to}: {:?}", converted.account);
                if from == to {
                    assert!(converted.account.is_empty(), "{from}: {:?}", converted.account);
                    assert!(converted.layers.iter().all(|(from, to)| from == to), "{from}");
                }
            }
        }
    }
    let named = |converted: &Converted, from: &str, to: &str| {
        assert!(converted.layers.contains(&(from.to_owned(), to.to_owned())), "{from} {to}");
    };
    let b0 = between("efficientnet_b0", "keras_efficientnet_b0");
    named(&b0, "features.2.0.block.2.fc1", "block2a_se_reduce");
    named(&b0, "features.8.1", "top_bn");

    // Keras's ResNet has its stride in another convolution of a block, biases, and the shortcut first.
    let resnet = between("resnet50", "keras_resnet50");
    named(&resnet, "layer1.0.downsample.0", "conv2_block1_0_conv");
    named(&resnet, "layer1.0.conv3", "conv2_block1_3_conv");
    let has = |of: fn(&Remark) -> bool| resnet.account.iter().any(of);
    assert!(has(|remark| matches!(remark, Remark::Stride { layers } if layers.len() == 6)), "{:?}", resnet.account);
    assert!(has(|remark| matches!(remark, Remark::BiasAdded { layers } if layers.len() == 53)), "{:?}", resnet.account);
}
