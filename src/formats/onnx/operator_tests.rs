//! Operators one by one, from tiny networks: what layers they become, with which numbers, and what is refused.

use super::Imported;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use super::tests::{
    assert_comes_back, floats, graph, imported, network_of, node_of, number, numbers, pooled, set_images, tensor_of,
};
use crate::export::tests::ABOUT;
use crate::graph::{Act, Factor, Taken};
use crate::models::{Entry, GraphAbout, GraphFile, LayerOp, Padding};
use crate::weights;

fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(DataType::Int64 as i32),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: vec![], ..integers(name, &[value]) }
}

fn values(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data = Some(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    TensorProto { raw_data, ..tensor_of(name, dims) }
}

fn with_float(mut node: NodeProto, name: &str, value: f32) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Float as i32),
        f: Some(value),
        ..AttributeProto::default()
    });
    node
}

fn with_text(mut node: NodeProto, name: &str, value: &str) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.into()),
        ..AttributeProto::default()
    });
    node
}

/// `(operator, inputs, output, attributes)`
type Step<'a> = (&'a str, &'a [&'a str], &'a str, &'a [(&'a str, &'a [i64])]);

fn nodes(steps: &[Step<'_>]) -> Vec<NodeProto> {
    steps.iter().map(|(op, inputs, output, attributes)| node_of(op, inputs, output, attributes)).collect()
}

fn ops(imported: &Imported) -> Vec<LayerOp> {
    imported.file.layers().iter().map(|layer| layer.op.clone()).collect()
}

/// The layers that steps from `x`, a convolution of 8 channels and 32×32 pixels, become.
fn layers_of(steps: &[Step<'_>], tensors: &[TensorProto]) -> Result<Imported, String> {
    imported(&behind_conv(nodes(steps), tensors))
}

fn behind_conv(steps: Vec<NodeProto>, tensors: &[TensorProto]) -> ModelProto {
    let conv = node_of("Conv", &["images", "conv.weight"], "x", &[]);
    let tensors = [&[tensor_of("conv.weight", &[8, 3, 1, 1])], tensors].concat();
    of_32_pixels(pooled([vec![conv], steps].concat(), &tensors))
}

fn of_32_pixels(mut model: ModelProto) -> ModelProto {
    set_images(&mut model, [0, 3, 32, 32]);
    model
}

fn only(act: Act) -> Vec<LayerOp> {
    vec![LayerOp::Activation { act }]
}

/// What is between the convolution and the pooling.
fn between(imported: &Imported) -> Vec<LayerOp> {
    let ops = ops(imported);
    ops[1..ops.len() - 1].to_vec()
}

fn factor(value: f32) -> Factor {
    Factor::new(value).unwrap()
}

#[test]
fn an_identity_behind_the_softmax_is_nothing() {
    let mut model = behind_conv(vec![node_of("Relu", &["x"], "y", &[])], &[]);
    let graph = model.graph.as_mut().unwrap();
    let end = graph.output[0].name().to_owned();
    graph.node.push(node_of("Softmax", &[&end], "probabilities", &[]));
    graph.node.push(node_of("Identity", &["probabilities"], "result", &[]));
    graph.output[0].name = Some("result".into());
    let imported = imported(&model).unwrap();
    assert_eq!(between(&imported), only(Act::Relu));
    assert!(
        imported.notes.iter().any(|note| note.contains("the Softmax at the end is left out")),
        "{:?}",
        imported.notes
    );
}

#[test]
fn every_layer_comes_back() {
    let pixels = Padding::Pixels;
    let conv = |channels| LayerOp::Conv {
        channels,
        kernel: [3, 3],
        stride: [1, 1],
        padding: pixels([1; 4]),
        groups: 1,
        bias: true,
    };
    let pool = |padding, count_padding| LayerOp::AvgPool {
        kernel: [3, 3],
        stride: [1, 1],
        padding,
        ceil: false,
        count_padding,
    };
    let linear = |channels, bias, taken| LayerOp::Linear { channels, bias, taken };
    let mut layers: Vec<Entry> = Vec::new();
    let mut add = |op: LayerOp, inputs: &[&str]| {
        let name = format!("layer{}", layers.len());
        let last = layers.last().map_or("input".to_owned(), |layer| layer.name.clone());
        let inputs = if inputs.is_empty() { vec![last] } else { inputs.iter().map(|&name| name.into()).collect() };
        // Of one block, which the file names.
        let block = Some("block".to_owned());
        layers.push(Entry { name: name.clone(), op, inputs, block, alias: None, position: Vec::new() });
        name
    };
    let stem = add(conv(8), &[]);
    // A ReLU before a ReLU6 would come back as one.
    for act in Act::ALL.into_iter().rev().filter(|&act| act != Act::Identity) {
        add(LayerOp::Activation { act }, &[]);
    }
    add(LayerOp::Activation { act: Act::LeakyRelu(factor(0.2)) }, &[]);
    add(LayerOp::LayerNorm { eps: 1e-6 }, &[]);
    for groups in [1, 4, 8] {
        add(LayerOp::GroupNorm { groups, eps: 1e-4 }, &[]);
    }
    add(LayerOp::LayerScale { dims: 1 }, &[]);
    add(LayerOp::LayerScale { dims: 3 }, &[]);
    let mixed = add(linear(12, true, Taken::EachPixel), &[]);
    add(linear(8, false, Taken::EachPixel), &[]);
    let shuffled = add(LayerOp::Shuffle { groups: 2 }, &[]);
    let slice = add(LayerOp::Slice { begin: 3, channels: 4 }, &[&shuffled]);
    let beside = add(LayerOp::Concat {}, &[&stem, &slice, &mixed]);
    let narrow = add(conv(8), &[&beside]);
    let product = add(LayerOp::Multiply {}, &[&narrow, &stem]);
    add(LayerOp::Add {}, &[&product, &narrow]);
    add(pool(pixels([1, 0, 1, 1]), true), &[]);
    add(pool(pixels([1, 0, 1, 1]), false), &[]);
    let (kernel, stride) = ([2, 2], [2, 2]);
    add(LayerOp::MaxPool { kernel, stride, padding: pixels([0, 0, 1, 1]), ceil: false }, &[]);
    let padded = add(LayerOp::Pad { padding: [0, 1, 2, 0] }, &[]);
    let greatest = add(LayerOp::GlobalMaxPool {}, &[&padded]);
    let mean = add(LayerOp::GlobalAvgPool {}, &[&padded]);
    let both = add(LayerOp::Concat {}, &[&greatest, &mean]);
    add(LayerOp::Shuffle { groups: 4 }, &[&both]);
    add(linear(8, true, Taken::Pixel), &[]);
    let gate = add(LayerOp::Activation { act: Act::Sigmoid }, &[]);
    add(LayerOp::Scale {}, &[&padded, &gate]);
    let hidden = add(linear(6, false, Taken::Image([8, 5])), &[]);
    add(LayerOp::LayerScale { dims: 1 }, &[]);
    add(LayerOp::GroupNorm { groups: 2, eps: 1e-4 }, &[]);
    let normed = add(LayerOp::LayerNorm { eps: 1e-3 }, &[]);
    let product = add(LayerOp::Multiply {}, &[&normed, &hidden]);
    add(LayerOp::Slice { begin: 1, channels: 4 }, &[&product]);
    add(linear(1, true, Taken::Pixel), &[]);
    add(LayerOp::Binary {}, &[]);
    let about = GraphAbout { name: "net".into(), size: (11, 9), preprocessing: ABOUT.preprocessing };
    let network = GraphFile::new(about, layers).unwrap().build(2, (11, 9), 2).unwrap();
    let tensors = weights::from_state(&network, numbers(&network), 0).unwrap().tensors;
    assert_comes_back("every layer", &network, &tensors);
}

#[test]
fn activations_are_operators() {
    let one = |op: &str| layers_of(&[(op, &["x"], "y", &[])], &[]);
    for (op, act) in [
        ("Relu", Act::Relu),
        ("Sigmoid", Act::Sigmoid),
        ("HardSwish", Act::HardSwish),
        ("Tanh", Act::Tanh),
        ("Softplus", Act::Softplus),
        ("Mish", Act::Mish),
        ("Elu", Act::Elu),
        ("Celu", Act::Elu),
        ("Gelu", Act::Gelu),
        ("LeakyRelu", Act::LeakyRelu(factor(0.01))),
    ] {
        assert_eq!(between(&one(op).unwrap()), only(act), "{op}");
    }
    let node = |op: &str| node_of(op, &["x"], "y", &[]);
    let read = |node: NodeProto| imported(&behind_conv(vec![node], &[]));
    let sloped = read(with_float(node("LeakyRelu"), "alpha", 0.3)).unwrap();
    assert_eq!(between(&sloped), only(Act::LeakyRelu(factor(0.3))));
    assert_eq!(between(&read(with_float(node("LeakyRelu"), "alpha", 0.0)).unwrap()), only(Act::Relu));
    assert_eq!(between(&read(with_text(node("Gelu"), "approximate", "tanh")).unwrap()), only(Act::GeluTanh));
    let steep = read(node("HardSigmoid")).unwrap();
    let acts = [Act::ScaleBy(factor(1.2)), Act::HardSigmoid].map(|act| LayerOp::Activation { act });
    assert_eq!(between(&steep), acts);
    for (node, expected) in [
        (with_float(node("LeakyRelu"), "alpha", -0.3), "alpha -0.3 is not supported"),
        (with_float(node("Elu"), "alpha", 0.5), "alpha 0.5 is not supported; 1 is"),
        (with_float(node("HardSigmoid"), "beta", 0.4), "alpha 0.2 and beta 0.4 are not supported; a positive alpha"),
        (with_text(node("Gelu"), "approximate", "fast"), "the approximation `fast` is not supported"),
        (node("Selu"), "(Selu): the operator is not supported"),
    ] {
        let error = read(node).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn activations_that_are_written_out_are_known() {
    let root = std::f32::consts::FRAC_1_SQRT_2;
    let tensors = [
        number("half", 0.5),
        number("one", 1.0),
        number("three", 3.0),
        number("six", 6.0),
        number("zero", 0.0),
        number("sixth", 1.0 / 6.0),
        number("root", root),
        number("two", 2.0),
        number("bend", 0.044_715),
        number("scale", 0.797_884_6),
        number("above", 20.0),
    ];
    let cases: [(Act, &[Step<'_>]); 11] = [
        (Act::Silu, &[("Sigmoid", &["x"], "s", &[]), ("Mul", &["s", "x"], "y", &[])]),
        (Act::Relu6, &[("Max", &["zero", "x"], "r", &[]), ("Min", &["r", "six"], "y", &[])]),
        (
            Act::HardSigmoid,
            &[
                ("Add", &["three", "x"], "s", &[]),
                ("Relu", &["s"], "r", &[]),
                ("Clip", &["r", "", "six"], "c", &[]),
                ("Div", &["c", "six"], "y", &[]),
            ],
        ),
        (
            Act::HardSwish,
            &[
                ("Add", &["x", "three"], "s", &[]),
                ("Clip", &["s", "zero", "six"], "c", &[]),
                ("Mul", &["c", "sixth"], "h", &[]),
                ("Mul", &["x", "h"], "y", &[]),
            ],
        ),
        (
            Act::HardSwish,
            &[
                ("Add", &["x", "three"], "s", &[]),
                ("Clip", &["s", "zero", "six"], "c", &[]),
                ("Mul", &["x", "sixth"], "h", &[]),
                ("Mul", &["h", "c"], "y", &[]),
            ],
        ),
        (Act::Mish, &[("Softplus", &["x"], "s", &[]), ("Tanh", &["s"], "t", &[]), ("Mul", &["x", "t"], "y", &[])]),
        (Act::Softplus, &[("Exp", &["x"], "e", &[]), ("Add", &["one", "e"], "s", &[]), ("Log", &["s"], "y", &[])]),
        (
            Act::Softplus,
            &[
                ("Softplus", &["x"], "s", &[]),
                ("Greater", &["x", "above"], "g", &[]),
                ("Where", &["g", "x", "s"], "y", &[]),
            ],
        ),
        (
            Act::Gelu,
            &[
                ("Mul", &["root", "x"], "u", &[]),
                ("Erf", &["u"], "e", &[]),
                ("Add", &["e", "one"], "s", &[]),
                ("Mul", &["x", "s"], "p", &[]),
                ("Mul", &["p", "half"], "y", &[]),
            ],
        ),
        (
            Act::Gelu,
            &[
                ("Mul", &["root", "x"], "u", &[]),
                ("Erf", &["u"], "e", &[]),
                ("Add", &["e", "one"], "s", &[]),
                ("Mul", &["s", "half"], "h", &[]),
                ("Mul", &["h", "x"], "y", &[]),
            ],
        ),
        (
            Act::GeluTanh,
            &[
                ("Pow", &["x", "three"], "cube", &[]),
                ("Mul", &["cube", "bend"], "b", &[]),
                ("Add", &["b", "x"], "s", &[]),
                ("Mul", &["s", "scale"], "u", &[]),
                ("Tanh", &["u"], "t", &[]),
                ("Add", &["t", "one"], "g", &[]),
                ("Mul", &["half", "x"], "h", &[]),
                ("Mul", &["h", "g"], "y", &[]),
            ],
        ),
    ];
    for (act, steps) in cases {
        assert_eq!(between(&layers_of(steps, &tensors).unwrap()), only(act), "{steps:?}");
    }
    // What is nearly one, or a part of one, is not taken for it.
    let near_gelu: &[Step<'_>] = &[
        ("Erf", &["x"], "e", &[]),
        ("Add", &["e", "one"], "s", &[]),
        ("Mul", &["x", "s"], "p", &[]),
        ("Mul", &["p", "half"], "y", &[]),
    ];
    let error = layers_of(near_gelu, &tensors).unwrap_err();
    assert!(error.contains("no layer gives `e` (Erf), which is part of something that is not known"), "{error}");
    let early: &[Step<'_>] = &[
        ("Softplus", &["x"], "s", &[]),
        ("Greater", &["x", "three"], "g", &[]),
        ("Where", &["g", "x", "s"], "y", &[]),
    ];
    assert!(layers_of(early, &tensors).unwrap_err().contains("(Where): it is supported as a part of Softplus only"));
    // A product of others is one, however alike it looks; and so is what is read in the middle.
    let quick: &[Step<'_>] =
        &[("Mul", &["x", "two"], "u", &[]), ("Sigmoid", &["u"], "s", &[]), ("Mul", &["x", "s"], "y", &[])];
    let composed = between(&layers_of(quick, &tensors).unwrap());
    let acts = [Act::ScaleBy(factor(2.0)), Act::Sigmoid].map(|act| LayerOp::Activation { act });
    assert_eq!(composed, [&acts[..], &[LayerOp::Multiply {}]].concat());
    let read_twice: &[Step<'_>] =
        &[("Sigmoid", &["x"], "s", &[]), ("Mul", &["s", "x"], "m", &[]), ("Add", &["s", "m"], "y", &[])];
    let both = [Act::Sigmoid, Act::Silu].map(|act| LayerOp::Activation { act });
    assert_eq!(between(&layers_of(read_twice, &tensors).unwrap()), [&both[..], &[LayerOp::Add {}]].concat());
}

/// What a list computes to that is the padding of an image: top, left, bottom, right.
fn padding_of(steps: &[Step<'_>], tensors: &[TensorProto]) -> Result<[usize; 4], String> {
    let pad = node_of("Pad", &["x", "pads"], "padded", &[]);
    let found = imported(&behind_conv([nodes(steps), vec![pad]].concat(), tensors))?;
    match between(&found)[..] {
        [LayerOp::Pad { padding }] => Ok(padding),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn constants_are_computed() {
    let tensors = [
        integers("list", &[0, 0, 3, 1, 0, 0, 2, 4]),
        integers("pairs", &[2, 4]),
        integers("turned", &[4, 2]),
        integers("one_list", &[1]),
        integers("eight", &[8]),
        integers("six_up", &[6, 7]),
        integers("zero_list", &[0]),
        integers("minus", &[-1]),
        integers("all", &[i64::MIN + 1]),
        scalar("zero", 0),
        scalar("one", 1),
        scalar("two", 2),
        scalar("limit", 8),
        integers("padding", &[1, 0, 1, 2]),
        integers("between", &[0, 0, 1, 1, 0, 0, 1, 1]),
        integers("numbers", &[5, 4, 7, 8, 6, 3, 8, 2]),
    ];
    let cases: [(&[Step<'_>], [usize; 4]); 10] = [
        (&[("Identity", &["list"], "pads", &[])], [3, 1, 2, 4]),
        // As PyTorch turns its own order round: backwards in pairs.
        (
            &[
                ("Shape", &["padding"], "count", &[]),
                ("Gather", &["count", "zero_list"], "many", &[]),
                ("Sub", &["limit", "many"], "missing", &[]),
                ("ConstantOfShape", &["missing"], "zeros", &[]),
                ("Cast", &["zeros"], "whole", &[("to", &[7])]),
                ("Concat", &["padding", "whole"], "joined", &[("axis", &[0])]),
                ("Reshape", &["joined", "minus_two"], "paired", &[]),
                ("Slice", &["paired", "minus", "all", "zero_list", "minus"], "reversed", &[]),
                ("Transpose", &["reversed"], "turned_over", &[("perm", &[1, 0])]),
                ("Reshape", &["turned_over", "minus"], "pads", &[]),
            ],
            [1, 1, 2, 0],
        ),
        (
            &[
                ("Range", &["zero", "limit", "one"], "range", &[]),
                ("Mod", &["range", "two"], "odd", &[]),
                ("Mul", &["odd", "between"], "pads", &[]),
            ],
            [0, 1, 0, 1],
        ),
        (
            &[
                ("Equal", &["list", "zero"], "none", &[]),
                ("Not", &["none"], "some", &[]),
                ("Where", &["some", "two", "zero"], "pads", &[]),
            ],
            [2, 2, 2, 2],
        ),
        (
            &[
                ("Cast", &["numbers"], "floats", &[("to", &[1])]),
                ("Cast", &["two"], "divisor", &[("to", &[1])]),
                ("Div", &["floats", "divisor"], "halves", &[]),
                ("Ceil", &["halves"], "up", &[]),
                ("Floor", &["halves"], "down", &[]),
                ("Sub", &["up", "down"], "apart", &[]),
                ("CastLike", &["apart", "list"], "rest", &[]),
                ("Mul", &["rest", "between"], "pads", &[]),
            ],
            [1, 0, 0, 0],
        ),
        (
            &[
                ("Div", &["numbers", "two"], "halves", &[]),
                ("Min", &["halves", "list"], "least", &[]),
                ("Max", &["least", "zero"], "pads", &[]),
            ],
            [3, 1, 2, 1],
        ),
        (
            &[
                ("Neg", &["numbers"], "negative", &[]),
                ("Add", &["negative", "limit"], "sum", &[]),
                ("Mul", &["sum", "between"], "pads", &[]),
            ],
            [1, 0, 0, 6],
        ),
        (
            &[
                ("Expand", &["one", "eight"], "ones", &[]),
                ("Mul", &["ones", "between"], "product", &[]),
                ("Unsqueeze", &["product"], "wide", &[("axes", &[0, -1])]),
                ("Squeeze", &["wide"], "pads", &[]),
            ],
            [1, 1, 1, 1],
        ),
        (
            &[
                ("Split", &["list", "eight"], "a", &[("axis", &[0])]),
                ("Reshape", &["a", "pairs"], "rows", &[]),
                ("Gather", &["rows", "one"], "second", &[("axis", &[0])]),
                ("Concat", &["second", "second"], "pads", &[("axis", &[-1])]),
            ],
            [2, 4, 2, 4],
        ),
        (
            &[
                ("ReduceProd", &["pairs"], "product", &[("keepdims", &[0])]),
                ("Range", &["zero", "product", "one"], "range", &[]),
                ("Clip", &["range", "", "one"], "most", &[]),
                ("Mul", &["most", "between"], "pads", &[]),
            ],
            [1, 1, 1, 1],
        ),
    ];
    let tensors = [&tensors[..], &[TensorProto { dims: vec![2], ..integers("minus_two", &[-1, 2]) }]].concat();
    for (steps, expected) in cases {
        assert_eq!(padding_of(steps, &tensors).unwrap(), expected, "{steps:?}");
    }
}

#[test]
fn constants_that_cannot_be_computed_are_refused() {
    let tensors = [
        integers("list", &[0, 0, 3, 1, 0, 0, 2, 4]),
        integers("huge", &[1 << 20, 1 << 20]),
        integers("many", &[70_000]),
        integers("below", &[-3]),
        scalar("zero", 0),
        scalar("one", 1),
        scalar("much", 1 << 40),
        integers("nine", &[9]),
        integers("three", &[3]),
        tensor_of("large", &[300, 300]),
    ];
    let cases: [(&[Step<'_>], &str); 14] = [
        (&[("ConstantOfShape", &["huge"], "pads", &[])], "gives a constant of more than 65536 values"),
        (&[("Expand", &["one", "many"], "pads", &[])], "cannot be repeated to [70000]"),
        (&[("Range", &["zero", "much", "one"], "pads", &[])], "are more than 65536 numbers"),
        (&[("Range", &["zero", "one", "zero"], "pads", &[])], "are more than 65536 numbers"),
        (&[("ConstantOfShape", &["below"], "pads", &[])], "-3 is no size"),
        (&[("Div", &["list", "zero"], "pads", &[])], "it divides by zero"),
        (&[("Mod", &["list", "list"], "pads", &[])], "it divides by zero"),
        (&[("Gather", &["list", "nine"], "pads", &[])], "its indices are out of range"),
        (&[("Reshape", &["list", "three"], "pads", &[])], "[8] cannot be given the shape [3]"),
        (&[("Add", &["list", "huge"], "pads", &[])], "cannot be computed with each other"),
        (&[("Concat", &["list", "zero"], "pads", &[("axis", &[0])])], "have other shapes"),
        (&[("Slice", &["list", "zero"], "pads", &[])], "its `ends` are missing"),
        (&[("Add", &["large", "one"], "pads", &[])], "is computed from constants by"),
        (&[("TopK", &["list", "one"], "pads", &[])], "is computed from constants by"),
    ];
    for (steps, expected) in cases {
        let error = padding_of(steps, &tensors).unwrap_err();
        assert!(error.contains(expected), "{steps:?}: {error}");
    }
    // Constants of more numbers than any network computes with, one after the other.
    let list = integers("l0", &vec![0; 60_000]);
    let steps: Vec<NodeProto> =
        (0..100).map(|i| node_of("Abs", &[&format!("l{i}")], &format!("l{}", i + 1), &[])).collect();
    let pad = node_of("Pad", &["x", "l100"], "padded", &[]);
    let error = imported(&behind_conv([steps, vec![pad]].concat(), &[list])).unwrap_err();
    assert!(error.contains("constants are computed from more than 4194304 numbers"), "{error}");
}

#[test]
fn the_number_of_images_stays_open() {
    let tensors = [
        scalar("zero", 0),
        scalar("one", 1),
        integers("one_list", &[1]),
        integers("zero_list", &[0]),
        integers("minus", &[-1]),
        integers("two", &[2]),
        integers("ones", &[1; 4]),
        number("quarter", 0.25),
    ];
    // A flattened image, whose first size is that of the shape, computed in this way.
    let flattened = |steps: &[Step<'_>]| {
        let rest: &[Step<'_>] = &[
            ("Concat", &["n", "minus"], "shape", &[("axis", &[0])]),
            ("Reshape", &["x", "shape"], "flat", &[]),
            ("Gemm", &["flat", "fc"], "y", &[]),
        ];
        let steps = [&[("Shape", &["x"] as &[&str], "sizes", &[] as &[_])], steps, rest].concat();
        let conv = node_of("Conv", &["images", "conv.weight"], "x", &[("strides", &[16, 16])]);
        let weights = [tensor_of("conv.weight", &[2, 3, 1, 1]), tensor_of("fc", &[8, 5])];
        let tensors = [&weights[..], &tensors[..]].concat();
        imported(&of_32_pixels(network_of([vec![conv], nodes(&steps)].concat(), &tensors)))
    };
    let first: Step<'_> = ("Gather", &["sizes", "zero_list"], "first", &[]);
    let cases: [&[Step<'_>]; 4] = [
        &[("Slice", &["sizes", "zero_list", "one_list"], "n", &[])],
        &[first, ("Mul", &["first", "one"], "p", &[]), ("Add", &["zero", "p"], "n", &[])],
        &[("Gather", &["sizes", "zero"], "s", &[]), ("Unsqueeze", &["s", "zero_list"], "n", &[])],
        // As `expand` is written: where it says −1, as many as there are.
        &[
            ("Equal", &["sizes", "minus"], "open", &[]),
            ("Where", &["open", "ones", "sizes"], "chosen", &[]),
            ("Slice", &["chosen", "zero_list", "one_list"], "n", &[]),
        ],
    ];
    for steps in cases {
        let found = flattened(steps).unwrap();
        let linear = LayerOp::Linear { channels: 5, bias: false, taken: Taken::Image([2, 2]) };
        assert_eq!(ops(&found)[1..], [linear], "{steps:?}");
    }
    for last in ["two", "quarter"] {
        let error = flattened(&[first, ("Mul", &["first", last], "n", &[])]).unwrap_err();
        assert!(error.contains("(Mul): what it gives would depend on the number of images"), "{error}");
    }
    let error = flattened(&[first, ("Mul", &["two", "one"], "n", &[])]).unwrap_err();
    assert!(error.contains("to [2, -1] is not supported; to [N, 8] is"), "{error}");
}

#[test]
fn channels_are_taken_apart_and_put_together() {
    let tensors = [
        integers("one", &[1]),
        integers("two", &[2]),
        integers("five", &[5]),
        integers("end", &[i64::MAX]),
        integers("minus", &[-3]),
        integers("sizes", &[3, 5]),
        integers("last", &[-1]),
        scalar("place", 6),
        scalar("first", 0),
        scalar("four", 4),
        integers("height", &[2]),
    ];
    let slice = |begin, channels| LayerOp::Slice { begin, channels };
    let cases: [(&[Step<'_>], Vec<LayerOp>); 9] = [
        (&[("Slice", &["x", "two", "five", "one"], "y", &[])], vec![slice(2, 3)]),
        (&[("Slice", &["x", "minus", "end", "one"], "y", &[])], vec![slice(5, 3)]),
        (&[("Slice", &["x", "last", "end", "one"], "y", &[])], vec![slice(7, 1)]),
        (&[("Slice", &["x"], "y", &[("starts", &[0, 0]), ("ends", &[99, 99]), ("axes", &[1, 2])])], vec![]),
        (
            &[("Gather", &["x", "place"], "g", &[("axis", &[1])]), ("Unsqueeze", &["g", "one"], "y", &[])],
            vec![slice(6, 1)],
        ),
        (&[("Concat", &["x", "x", "x"], "y", &[("axis", &[-3])])], vec![LayerOp::Concat {}]),
        (&[("Concat", &["x"], "y", &[("axis", &[1])])], vec![]),
        (
            &[("SplitToSequence", &["x", "four"], "s", &[("axis", &[1])]), ("SequenceAt", &["s", "first"], "y", &[])],
            vec![slice(0, 4)],
        ),
        (
            // The second half, of two dimensions.
            &[
                ("Reshape", &["x", "halves"], "cut", &[]),
                ("Slice", &["cut", "one", "two", "one"], "half", &[]),
                ("Squeeze", &["half", "one"], "y", &[]),
            ],
            vec![slice(4, 4)],
        ),
    ];
    let tensors = [&tensors[..], &[integers("halves", &[0, 2, 4, 32, 32])]].concat();
    for (steps, expected) in cases {
        assert_eq!(between(&layers_of(steps, &tensors).unwrap()), expected, "{steps:?}");
    }
    let mut split = node_of("Split", &["x", "sizes"], "a", &[("axis", &[1])]);
    split.output.push("b".into());
    let found = imported(&behind_conv(vec![split, node_of("Concat", &["b", "a"], "y", &[("axis", &[1])])], &tensors));
    assert_eq!(between(&found.unwrap()), [slice(0, 3), slice(3, 5), LayerOp::Concat {}]);

    let errors: [(&[Step<'_>], &str); 7] = [
        (&[("Slice", &["x", "two", "five", "height"], "y", &[])], "it takes pixels out of images"),
        (
            &[("Slice", &["x"], "y", &[("starts", &[1, 0]), ("ends", &[2, 9]), ("axes", &[0, 1])])],
            "it takes some of the images",
        ),
        (&[("Slice", &["x", "five", "two", "one"], "y", &[])], "it takes nothing"),
        (&[("Slice", &["x", "one", "end", "one", "two"], "y", &[])], "a step of 2 is not supported"),
        (&[("Concat", &["x", "x"], "y", &[("axis", &[2])])], "cannot be put together here"),
        (&[("Split", &["x", "sizes"], "y", &[("axis", &[1])])], "its 1 parts are not together the 8 it cuts"),
        (&[("Gather", &["x", "sizes"], "y", &[("axis", &[1])])], "it takes places one by one"),
    ];
    for (steps, expected) in errors {
        let error = layers_of(steps, &tensors).unwrap_err();
        assert!(error.contains(expected), "{steps:?}: {error}");
    }
}

#[test]
fn dimensions_are_followed() {
    let first: &[(&str, &[i64])] = &[("perm", &[0, 3, 1, 2])];
    let last: &[(&str, &[i64])] = &[("perm", &[0, 2, 3, 1])];
    let tensors = [
        tensor_of("mixed", &[8, 4]),
        tensor_of("gamma", &[8]),
        tensor_of("beta", &[8]),
        tensor_of("pointwise", &[4, 8, 1, 1]),
        integers("groups", &[0, 2, 4, 1024]),
        integers("back", &[0, 8, 32, 32]),
        integers("list", &[0, 1024, 8]),
    ];
    let mixed = LayerOp::Linear { channels: 4, bias: false, taken: Taken::EachPixel };
    let cases: [(&[Step<'_>], Vec<LayerOp>); 6] = [
        (&[("Transpose", &["x"], "l", last), ("Transpose", &["l"], "y", first)], vec![]),
        (
            &[
                ("Transpose", &["x"], "l", last),
                ("MatMul", &["l", "mixed"], "m", &[]),
                ("Transpose", &["m"], "y", first),
            ],
            vec![mixed.clone()],
        ),
        (
            &[
                ("Transpose", &["x"], "l", last),
                ("LayerNormalization", &["l", "gamma", "beta"], "n", &[("axis", &[-1])]),
                ("Relu", &["n"], "r", &[]),
                ("Transpose", &["r"], "y", first),
            ],
            vec![LayerOp::LayerNorm { eps: 1e-5 }, LayerOp::Activation { act: Act::Relu }],
        ),
        (
            &[
                ("Reshape", &["x", "groups"], "cut", &[]),
                ("Transpose", &["cut"], "turned", &[("perm", &[0, 2, 1, 3])]),
                ("Reshape", &["turned", "back"], "y", &[]),
            ],
            vec![LayerOp::Shuffle { groups: 2 }],
        ),
        (
            // Pixels in a row, as transformers have them.
            &[
                ("Transpose", &["x"], "l", last),
                ("Reshape", &["l", "list"], "rows", &[]),
                ("MatMul", &["rows", "mixed"], "m", &[]),
                ("Transpose", &["m"], "t", &[("perm", &[0, 2, 1])]),
                ("Reshape", &["t", "image"], "y", &[]),
            ],
            vec![mixed],
        ),
        (
            &[
                ("Transpose", &["x"], "l", last),
                ("Pad", &["l"], "p", &[("pads", &[0, 1, 0, 0, 0, 0, 2, 0])]),
                ("Transpose", &["p"], "t", first),
                ("Conv", &["t", "pointwise"], "y", &[]),
            ],
            vec![LayerOp::Conv {
                channels: 4,
                kernel: [1, 1],
                stride: [1, 1],
                padding: Padding::Pixels([1, 0, 0, 2]),
                groups: 1,
                bias: false,
            }],
        ),
    ];
    let tensors = [&tensors[..], &[integers("image", &[0, 4, 32, 32])]].concat();
    for (steps, expected) in cases {
        assert_eq!(between(&layers_of(steps, &tensors).unwrap()), expected, "{steps:?}");
    }
    let errors: [(&[Step<'_>], &str); 6] = [
        (&[("Transpose", &["x"], "y", &[("perm", &[1, 0, 2, 3])])], "an order that leaves the images first is"),
        (&[("Transpose", &["x"], "y", &[("perm", &[0, 1, 2])])], "an order that leaves the images first is"),
        (
            &[("Transpose", &["x"], "l", last), ("Relu", &["l"], "r", &[]), ("Conv", &["r", "pointwise"], "y", &[])],
            "it takes images, [N, C, H, W], and what it reads is [N, 32, 32, 8] of 8 channels and 32×32 pixels",
        ),
        (
            &[("Transpose", &["x"], "l", last), ("Add", &["l", "x"], "y", &[])],
            "plus [N, 8, 32, 32] of 8 channels and 32×32 pixels is not supported",
        ),
        (
            &[("Reshape", &["x", "list"], "r", &[]), ("MatMul", &["r", "mixed"], "y", &[])],
            "it takes the channels of each",
        ),
        (&[("Flatten", &["x"], "y", &[("axis", &[2])])], "axis 2 is not supported; 1 is"),
    ];
    for (steps, expected) in errors {
        let error = layers_of(steps, &tensors).unwrap_err();
        assert!(error.contains(expected), "{steps:?}: {error}");
    }
}

/// An image that is flattened with its channels last has other weights than one whose channels come first.
#[test]
fn flattened_images_have_weights_in_one_order() {
    let conv = node_of("Conv", &["images", "conv.weight"], "x", &[("strides", &[16, 11])]);
    let weights: Vec<f32> = (0..2 * 3 * 2).map(|i| i as f32).collect();
    let tensors = [tensor_of("conv.weight", &[2, 3, 1, 1]), values("fc", &[12, 1], &weights)];
    let read = |steps: &[Step<'_>]| {
        let model = of_32_pixels(network_of([vec![conv.clone()], nodes(steps)].concat(), &tensors));
        let found = imported(&model).unwrap();
        let linear = found.file.layers().last().unwrap().clone();
        assert_eq!(linear.op, LayerOp::Linear { channels: 1, bias: false, taken: Taken::Image([2, 3]) });
        floats(&found, &format!("{}.weight", linear.name)).to_vec()
    };
    assert_eq!(read(&[("Flatten", &["x"], "f", &[]), ("MatMul", &["f", "fc"], "y", &[])]), weights);
    let last = read(&[
        ("Transpose", &["x"], "l", &[("perm", &[0, 2, 3, 1])]),
        ("Flatten", &["l"], "f", &[]),
        ("MatMul", &["f", "fc"], "y", &[]),
    ]);
    assert_eq!(last, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
}

#[test]
fn constants_are_multiplied_and_added() {
    let tensors = [
        number("two", 2.0),
        number("minus", -1.0),
        number("zero", 0.0),
        number("one", 1.0),
        tensor_of("factors", &[8, 1, 1]),
        tensor_of("gamma", &[8]),
        tensor_of("row", &[1, 8, 1, 1]),
        tensor_of("column", &[32]),
        integers("shape", &[1, 8, 1, 1]),
    ];
    let read = |steps: &[Step<'_>]| layers_of(steps, &tensors);
    let scale = |dims| vec![LayerOp::LayerScale { dims }];
    let depthwise = |bias| LayerOp::Conv {
        channels: 8,
        kernel: [1, 1],
        stride: [1, 1],
        padding: Padding::Pixels([0; 4]),
        groups: 8,
        bias,
    };
    assert_eq!(between(&read(&[("Mul", &["two", "x"], "y", &[])]).unwrap()), only(Act::ScaleBy(factor(2.0))));
    assert_eq!(between(&read(&[("Div", &["x", "two"], "y", &[])]).unwrap()), only(Act::ScaleBy(factor(0.5))));
    let nothing: &[Step<'_>] = &[("Mul", &["x", "one"], "a", &[]), ("Add", &["zero", "a"], "y", &[])];
    assert_eq!(between(&read(nothing).unwrap()), []);
    // A factor a channel is called as in the file.
    let found = read(&[("Mul", &["x", "factors"], "y", &[])]).unwrap();
    assert_eq!((between(&found), floats(&found, "factors").len()), (scale(3), 8));
    assert_eq!(found.state.tensors["factors"].shape, [8, 1, 1]);
    let steps: &[Step<'_>] = &[("Reshape", &["gamma", "shape"], "g", &[]), ("Mul", &["g", "x"], "y", &[])];
    let found = read(steps).unwrap();
    assert_eq!((between(&found), found.state.tensors["gamma"].shape.clone()), (scale(1), vec![8]));
    // A sum behind a convolution without a bias is one.
    let found = read(&[("Add", &["x", "row"], "y", &[])]).unwrap();
    assert!(matches!(ops(&found)[0], LayerOp::Conv { bias: true, .. }) && between(&found).is_empty());
    assert_eq!(floats(&found, "conv.bias"), floats(&read(&[("Mul", &["x", "row"], "y", &[])]).unwrap(), "row"));
    // Elsewhere it is a convolution of each channel, with the factors before it.
    let relu: Step<'_> = ("Relu", &["x"], "r", &[]);
    for (product, expected) in [
        (("Mul", &["r", "two"] as &[&str], "p", &[] as &[_]), vec![2.0; 8]),
        (
            ("Mul", &["r", "factors"], "p", &[]),
            floats(&read(&[("Mul", &["x", "factors"], "y", &[])]).unwrap(), "factors").into(),
        ),
        (("Identity", &["r"], "p", &[]), vec![1.0; 8]),
    ] {
        let found = read(&[relu, product, ("Add", &["p", "two"], "s", &[]), ("Tanh", &["s"], "y", &[])]).unwrap();
        let acts = [Act::Relu, Act::Tanh].map(|act| LayerOp::Activation { act });
        assert_eq!(between(&found), [acts[0].clone(), depthwise(true), acts[1].clone()]);
        assert_eq!((floats(&found, "s.weight"), floats(&found, "s.bias")), (&expected[..], &[2.0; 8][..]));
        assert!(
            found.notes.iter().any(|note| note.starts_with("`s` multiplies by and adds constants")),
            "{:?}",
            found.notes
        );
    }
    let found = read(&[relu, ("Sub", &["r", "row"], "y", &[])]).unwrap();
    assert!(floats(&found, "y.bias").iter().zip(floats(&found, "y.weight")).all(|(b, w)| *b <= 0.0 && *w == 1.0));

    let errors: [(&[Step<'_>], &str); 5] = [
        (&[("Mul", &["x", "column"], "y", &[])], "a constant of the shape [32] is not supported with [N, 8, 32, 32]"),
        (&[("Mul", &["images", "two"], "y", &[])], "it prepares the images, which the network is to get prepared"),
        (&[("Sub", &["images", "two"], "y", &[])], "say by --mean and --std what it does"),
        (&[("Div", &["x", "row"], "y", &[])], "it is supported for images over a number"),
        (&[("Mul", &["x", "zero"], "y", &[])], "a product with such a number is not supported"),
    ];
    for (steps, expected) in errors {
        let error = read(steps).unwrap_err();
        assert!(error.contains(expected), "{steps:?}: {error}");
    }
}

#[test]
fn what_is_subtracted_has_the_other_sign() {
    let tensors =
        [tensor_of("a.weight", &[4, 8, 1, 1]), tensor_of("b.weight", &[4, 8, 1, 1]), tensor_of("b.bias", &[4])];
    let convs: [Step<'_>; 2] =
        [("Conv", &["x", "a.weight"], "a", &[]), ("Conv", &["x", "b.weight", "b.bias"], "b", &[])];
    let read = |last: Step<'_>| layers_of(&[convs[0], convs[1], last], &tensors);
    let (sum, difference) =
        (read(("Add", &["a", "b"], "y", &[])).unwrap(), read(("Sub", &["a", "b"], "y", &[])).unwrap());
    assert_eq!(ops(&sum), ops(&difference));
    for (name, sign) in [("a.weight", 1.0), ("b.weight", -1.0), ("b.bias", -1.0)] {
        let with_sign: Vec<f32> = floats(&sum, name).iter().map(|value| value * sign).collect();
        assert_eq!(floats(&difference, name), with_sign, "{name}");
    }
    assert_eq!(
        difference.notes,
        ["`b` is subtracted in the file; here its weights have the other sign, and it is added"]
    );
    // What others read stays what it was.
    let both: &[Step<'_>] = &[convs[0], convs[1], ("Sub", &["a", "b"], "d", &[]), ("Add", &["d", "b"], "y", &[])];
    let both = layers_of(both, &tensors).unwrap();
    assert_eq!(both.file.layers().iter().filter(|layer| matches!(layer.op, LayerOp::Conv { .. })).count(), 4);
    assert!(both.notes.iter().any(|note| note.contains("shares a tensor with `b`")), "{:?}", both.notes);
    let steps: &[Step<'_>] = &[("Relu", &["x"], "r", &[]), ("Sub", &["x", "r"], "y", &[])];
    assert!(layers_of(steps, &[]).unwrap_err().contains("what is subtracted must be what a convolution,"));
}

#[test]
fn several_channels_for_each_are_several_convolutions() {
    let weights: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let bias: Vec<f32> = (0..24).map(|i| -(i as f32)).collect();
    let tensors = [values("dw.weight", &[24, 1, 1, 1], &weights), values("dw.bias", &[24], &bias)];
    let found = layers_of(&[("Conv", &["x", "dw.weight", "dw.bias"], "y", &[("group", &[8])])], &tensors).unwrap();
    let names: Vec<String> = found.file.layers()[1..4].iter().map(|layer| layer.name.clone()).collect();
    for (first, name) in names.iter().enumerate() {
        let own: Vec<f32> = (0..8).map(|i| (3 * i + first) as f32).collect();
        assert_eq!(floats(&found, &format!("{name}.weight")), own);
        let own: Vec<f32> = own.iter().map(|value| -value).collect();
        assert_eq!(floats(&found, &format!("{name}.bias")), own);
    }
    assert_eq!(between(&found)[3..], [LayerOp::Concat {}, LayerOp::Shuffle { groups: 3 }]);
    assert_eq!(names[0], "dw");
    assert!(found.notes[0].starts_with("`dw` gives several channels for each in the file"), "{:?}", found.notes);
}

#[test]
fn norms_are_read_in_every_form() {
    let tensors = [
        tensor_of("gamma", &[8, 1, 1]),
        tensor_of("beta", &[8, 1, 1]),
        number("eps", 1e-3),
        number("two", 2.0),
        number("one", 1.0),
        integers("axis", &[1]),
        values("ones", &[4], &[1.0; 4]),
        values("zeros", &[4], &[0.0; 4]),
        tensor_of("instance.weight", &[8]),
        tensor_of("instance.bias", &[8]),
        tensor_of("group.weight", &[4]),
        integers("groups", &[0, 4, -1]),
        integers("back", &[0, 8, 32, 32]),
    ];
    let mean = |x: &'static [&'static str], y: &'static str| ("ReduceMean", x, y, &[] as &[_]);
    let written: &[Step<'_>] = &[
        mean(&["x", "axis"], "m"),
        ("Sub", &["x", "m"], "d", &[]),
        ("Mul", &["d", "d"], "sq", &[]),
        mean(&["sq", "axis"], "v"),
        ("Add", &["v", "eps"], "ve", &[]),
        ("Sqrt", &["ve"], "s", &[]),
    ];
    let divided: &[Step<'_>] = &[("Div", &["d", "s"], "n", &[])];
    let inverse: &[Step<'_>] = &[("Reciprocal", &["s"], "i", &[]), ("Mul", &["i", "d"], "n", &[])];
    let affine: &[Step<'_>] = &[("Mul", &["gamma", "n"], "g", &[]), ("Add", &["g", "beta"], "y", &[])];
    let read = |steps: &[&[Step<'_>]]| layers_of(&steps.concat(), &tensors);
    let layer_norm = vec![LayerOp::LayerNorm { eps: 1e-3 }];
    for end in [divided, inverse] {
        let found = read(&[written, end, affine]).unwrap();
        let name = found.file.layers()[1].name.clone();
        let gamma = tensor_of("gamma", &[8]);
        assert_eq!(between(&found), layer_norm);
        let weight = bytemuck::pod_collect_to_vec::<u8, f32>(gamma.raw_data());
        assert_eq!(floats(&found, &format!("{name}.weight")), weight);
        assert_eq!(found.notes, [""; 0]);
    }
    let bare = read(&[written, divided, &[("Relu", &["n"], "y", &[])]]).unwrap();
    assert_eq!(between(&bare), [&layer_norm[..], &only(Act::Relu)].concat());
    assert!(bare.notes[0].contains("lacks γ or β in the file"), "{:?}", bare.notes);

    let grouped: &[Step<'_>] = &[
        ("Reshape", &["x", "groups"], "c", &[]),
        ("InstanceNormalization", &["c", "ones", "zeros"], "i", &[]),
        ("Reshape", &["i", "back"], "n", &[]),
    ];
    let group_norm = |groups| vec![LayerOp::GroupNorm { groups, eps: 1e-5 }];
    assert_eq!(between(&read(&[grouped, affine]).unwrap()), group_norm(4));
    let instance: Step<'_> = ("InstanceNormalization", &["x", "instance.weight", "instance.bias"], "y", &[]);
    assert_eq!(between(&read(&[&[instance]]).unwrap()), group_norm(8));
    let operator: Step<'_> =
        ("GroupNormalization", &["x", "instance.weight", "instance.bias"], "y", &[("num_groups", &[2])]);
    let found = read(&[&[operator]]).unwrap();
    assert_eq!((between(&found), found.file.layers()[1].name.as_str()), (group_norm(2), "instance"));

    let of_groups: &[Step<'_>] = &[
        ("Reshape", &["x", "groups"], "c", &[]),
        ("InstanceNormalization", &["c", "group.weight", "zeros"], "y", &[]),
    ];
    for (steps, expected) in [
        (of_groups, "a factor or a sum for each group is not supported"),
        (&[("LayerNormalization", &["x", "instance.weight"], "y", &[])], "over the channels of each pixel it is"),
        (&[("LayerNormalization", &["x", "gamma"], "y", &[("axis", &[1])])], "over the channels of each pixel it is"),
        (&[mean(&["x", "axis"], "y")], "no layer gives `y` (ReduceMean)"),
        (&[("ReduceMean", &["x"], "y", &[("axes", &[0, 1])])], "over height and width it is"),
    ] {
        let error = layers_of(steps, &tensors).unwrap_err();
        assert!(error.contains(expected), "{steps:?}: {error}");
    }
}

#[test]
fn poolings_keep_what_they_count() {
    let window: (&str, &[i64]) = ("kernel_shape", &[3, 3]);
    let (strides, pads): (&[i64], &[i64]) = (&[2, 2], &[1, 0, 1, 1]);
    let (stride, pads) = (("strides", strides), ("pads", pads));
    let average = |padding, ceil, count_padding| LayerOp::AvgPool {
        kernel: [3, 3],
        stride: [2, 2],
        padding,
        ceil,
        count_padding,
    };
    let own = Padding::Pixels([1, 0, 1, 1]);
    let none = Padding::Pixels([0; 4]);
    let read = |node: NodeProto| between(&imported(&behind_conv(vec![node], &[])).unwrap());
    let node = |op: &str, more: &[(&str, &[i64])]| node_of(op, &["x"], "y", &[&[window, stride], more].concat());
    assert_eq!(read(node("AveragePool", &[pads])), [average(own, false, false)]);
    let counted: (&str, &[i64]) = ("count_include_pad", &[1]);
    assert_eq!(read(node("AveragePool", &[pads, counted])), [average(own, false, true)]);
    assert_eq!(read(node("AveragePool", &[("ceil_mode", &[1])])), [average(none, true, true)]);
    let same = with_text(node("AveragePool", &[]), "auto_pad", "SAME_UPPER");
    assert_eq!(read(same.clone()), [average(Padding::Same, false, true)]);
    let counting =
        NodeProto { attribute: [same.attribute, node("", &[counted]).attribute[2..].to_vec()].concat(), ..same };
    assert_eq!(read(counting), [average(Padding::Pixels([0, 0, 1, 1]), false, true)]);
    let lower = with_text(node("AveragePool", &[]), "auto_pad", "SAME_LOWER");
    assert_eq!(read(lower), [average(Padding::Pixels([1, 1, 0, 0]), false, false)]);
    let max = |padding, ceil| vec![LayerOp::MaxPool { kernel: [3, 3], stride: [2, 2], padding, ceil }];
    assert_eq!(read(node("MaxPool", &[pads, ("ceil_mode", &[1])])), max(own, true));

    let whole: (&str, &[i64]) = ("kernel_shape", &[32, 32]);
    assert_eq!(read(node_of("AveragePool", &["x"], "y", &[whole])), [LayerOp::GlobalAvgPool {}]);
    assert_eq!(read(node_of("AveragePool", &["x"], "y", &[("kernel_shape", &[1, 1])])), []);
    let reduced: (&str, &[i64]) = ("axes", &[-1, -2]);
    assert_eq!(read(node_of("ReduceMean", &["x"], "y", &[reduced])), [LayerOp::GlobalAvgPool {}]);

    // Zeros around an image that a mean counts are its own if it counts those, too.
    let padded = |more: &[(&str, &[i64])]| {
        let pad = node_of("Pad", &["x"], "p", &[("pads", &[0, 0, 0, 1, 0, 0, 1, 0])]);
        let pool = NodeProto { input: vec!["p".into()], ..node("AveragePool", more) };
        between(&imported(&behind_conv(vec![pad, pool], &[])).unwrap())
    };
    assert_eq!(padded(&[]), [average(Padding::Pixels([0, 1, 1, 0]), false, true)]);
    assert_eq!(padded(&[pads, counted]), [average(Padding::Pixels([1, 1, 2, 1]), false, true)]);
    let pad = LayerOp::Pad { padding: [0, 1, 1, 0] };
    assert_eq!(padded(&[pads]), [pad.clone(), average(own, false, false)]);
    assert_eq!(padded(&[("ceil_mode", &[1])]), [pad, average(none, true, true)]);
}

#[test]
fn gates_are_told_from_images() {
    let tensors = [tensor_of("fc", &[8, 8, 1, 1]), tensor_of("one", &[1, 8, 1, 1])];
    let gate: [Step<'_>; 3] =
        [("GlobalAveragePool", &["x"], "p", &[]), ("Conv", &["p", "fc"], "c", &[]), ("Sigmoid", &["c"], "g", &[])];
    let ops = |last: &[Step<'_>]| between(&layers_of(&[&gate, last].concat(), &tensors).unwrap());
    for inputs in [["x", "g"], ["g", "x"]] {
        assert_eq!(ops(&[("Mul", &inputs, "y", &[])])[3..], [LayerOp::Scale {}]);
    }
    // Of one pixel both, and both pooled: a product of images.
    assert_eq!(ops(&[("Mul", &["p", "g"], "y", &[])])[3..], [LayerOp::Multiply {}]);
    let wide: Step<'_> = ("Mul", &["x", "narrow"], "y", &[]);
    let error = layers_of(&[("Conv", &["x", "one"], "narrow", &[]), wide], &tensors).unwrap_err();
    assert!(error.contains("times [N, 1, 32, 32] of 1 channels and 32×32 pixels is not supported"), "{error}");
}

#[test]
fn one_output_is_two_classes() {
    let tensors = [tensor_of("fc.weight", &[1, 3]), tensor_of("many.weight", &[4, 3])];
    let read = |weight: &str, last: Step<'_>| {
        let steps: &[Step<'_>] = &[
            ("GlobalAveragePool", &["images"], "p", &[]),
            ("Flatten", &["p"], "f", &[]),
            ("Gemm", &["f", weight], "g", &[("transB", &[1])]),
            last,
        ];
        imported(&network_of(nodes(steps), &tensors)).unwrap()
    };
    let sigmoid: Step<'_> = ("Sigmoid", &["g"], "y", &[]);
    let found = read("fc.weight", sigmoid);
    assert_eq!((ops(&found)[2..].to_vec(), found.file.classes()), (vec![LayerOp::Binary {}], 2));
    assert!(found.notes[0].contains("the Sigmoid at the end is left out"), "{:?}", found.notes);
    assert_eq!(ops(&read("many.weight", sigmoid))[2..], only(Act::Sigmoid));
    let pad: Step<'_> = ("Pad", &["g"], "y", &[("pads", &[0, 1, 0, 0])]);
    assert_eq!(ops(&read("fc.weight", pad))[2..], [LayerOp::Binary {}]);
}

/// PyTorch's new exporter writes `as_strided` of one image as an index for each value.
#[test]
fn values_in_a_row_are_images_again_in_their_order() {
    let read = |places: Vec<i64>, batch: i64| {
        let index = TensorProto { dims: vec![1, 8, 1, 1], ..integers("index", &places) };
        let steps: &[Step<'_>] = &[
            ("GlobalAveragePool", &["x"], "p", &[]),
            ("Reshape", &["p", "minus"], "row", &[]),
            ("Gather", &["row", "index"], "y", &[]),
        ];
        let mut model = behind_conv(nodes(steps), &[index, integers("minus", &[-1])]);
        set_images(&mut model, [batch, 3, 32, 32]);
        imported(&model)
    };
    assert_eq!(between(&read((0..8).collect(), 1).unwrap()), [LayerOp::GlobalAvgPool {}]);
    assert!(read((0..8).rev().collect(), 1).unwrap_err().contains("it takes values in another order"));
    assert!(read((0..8).collect(), 2).unwrap_err().contains("to [-1] is not supported; to [N, 8] is"));
    assert!(read((0..8).collect(), 0).unwrap_err().contains("to [-1] is not supported; to [N, 8] is"));
}

/// Weights that the file normalises are normalised once.
#[test]
fn weights_that_are_standardised_are_read_so() {
    let weights: Vec<f32> = (0..8 * 3).map(|i| ((i * i) % 7) as f32).collect();
    let gains: Vec<f32> = (0..8).map(|i| i as f32 / 4.0).collect();
    let tensors = [
        values("w", &[8, 3, 1, 1], &weights),
        values("gain", &[8], &gains),
        values("zeros", &[8], &[0.0; 8]),
        integers("rows", &[1, 8, -1]),
        integers("back", &[8, 3, 1, 1]),
    ];
    let mut norm =
        node_of("BatchNormalization", &["flat", "gain", "zeros", "zeros", "zeros"], "n", &[("training_mode", &[1])]);
    norm = with_float(norm, "epsilon", 1e-4);
    let all = [
        nodes(&[("Reshape", &["w", "rows"], "flat", &[])]),
        vec![norm],
        nodes(&[("Reshape", &["n", "back"], "kernel", &[]), ("Conv", &["images", "kernel"], "c", &[])]),
    ];
    let found = imported(&pooled(all.concat(), &tensors)).unwrap();
    let standardised = floats(&found, "c.weight");
    for channel in 0..8 {
        let row = weights[3 * channel..][..3].iter().map(|&x| f64::from(x));
        let mean = row.clone().sum::<f64>() / 3.0;
        let deviation = (row.clone().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 3.0 + 1e-4).sqrt();
        for (x, found) in row.zip(&standardised[3 * channel..]) {
            let expected = (x - mean) / deviation * f64::from(gains[channel]);
            assert!((expected - f64::from(*found)).abs() < 1e-6, "{expected} is not {found}");
        }
    }
    assert!(
        found.notes.iter().any(|note| note.starts_with("`c` normalises its weights in the file")),
        "{:?}",
        found.notes
    );
}

/// Zeros that a file computes where a bias would be are no bias.
#[test]
fn biases_of_computed_zeros_are_none() {
    let steps: &[Step<'_>] = &[
        ("Shape", &["conv.weight"], "many", &[("start", &[0]), ("end", &[1])]),
        ("CastLike", &["zero", "images"], "float", &[]),
        ("Expand", &["float", "many"], "zeros", &[]),
        ("Conv", &["images", "conv.weight", "zeros"], "y", &[]),
    ];
    let tensors = [tensor_of("conv.weight", &[4, 3, 1, 1]), number("zero", 0.0)];
    let found = imported(&pooled(nodes(steps), &tensors)).unwrap();
    assert!(matches!(ops(&found)[0], LayerOp::Conv { bias: false, .. }));
}

#[test]
fn long_chains_end_in_an_error() {
    // Each is a part of what comes next, and none is known.
    for op in ["Erf", "Sqrt"] {
        let steps: Vec<NodeProto> = (0..5000)
            .map(|i| {
                node_of(op, &[&if i == 0 { "x".to_owned() } else { format!("s{i}") }], &format!("s{}", i + 1), &[])
            })
            .collect();
        let error = imported(&behind_conv(steps, &[])).unwrap_err();
        assert!(error.contains("it is part of an activation that is not known"), "{error}");
    }
    // Products of themselves, of which there are 2ⁿ forms.
    let steps: Vec<NodeProto> = (0..200)
        .map(|i| {
            let x = if i == 0 { "x".to_owned() } else { format!("s{i}") };
            node_of("Mul", &[&x, &x], &format!("s{}", i + 1), &[])
        })
        .collect();
    let found = imported(&behind_conv(steps, &[])).unwrap();
    assert!(between(&found).iter().all(|op| *op == LayerOp::Multiply {}) && between(&found).len() == 200);
    // More dimensions, and wider zeros, than any image has.
    let tensors = [integers("axes", &vec![1; 60_000]), integers("sizes", &vec![1; 60_000]), integers("one", &[1])];
    let errors: [(&[Step<'_>], &str); 5] = [
        (&[("Unsqueeze", &["x", "axes"], "y", &[])], "it gives 60004 dimensions; at most 8 are supported"),
        (&[("Unsqueeze", &["one", "axes"], "o", &[]), ("Reshape", &["x", "o"], "y", &[])], "it gives 60001 dimensions"),
        (&[("Reshape", &["x", "sizes"], "y", &[])], "node 1 (Reshape)"),
        (&[("Pad", &["x"], "y", &[("pads", &[0, 0, 1 << 20, 0, 0, 0, 0, 0])])], "at most 1024 are supported"),
        (&[("Slice", &["axes", "one", "one", "one"], "s", &[]), ("Reshape", &["x", "s"], "y", &[])], "no dimension 1"),
    ];
    for (steps, expected) in errors {
        let error = layers_of(steps, &tensors).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let mut nothing = behind_conv(nodes(&[("Concat", &[], "y", &[("axis", &[1])])]), &[]);
    assert!(imported(&nothing).unwrap_err().contains("it reads nothing"));
    graph(&mut nothing).node[1].op_type = Some("Sum".into());
    assert!(imported(&nothing).is_err());
}
