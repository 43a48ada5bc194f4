//! Graph files: what they say of networks that exist, what they build, and what is refused.

use std::path::Path;
use thawline::graph::{Act, Averaging, Builder, Graph, GraphError, LayerId, Window};
use thawline::models::{self, Entry, GraphAbout, GraphFile, LayerOp, MODELS, Padding, Spec};
use thawline::preprocessing::{Interpolation, Preprocessing, Resize};

fn about(size: (usize, usize)) -> GraphAbout {
    let preprocessing = Preprocessing {
        resize: Resize::Pad,
        crop: 0.9,
        interpolation: Interpolation::TfBicubic,
        ..Preprocessing::normalised([0.5, 0.25, 0.0], [0.1, 1.0, 1.5])
    };
    GraphAbout { name: "net".into(), size, preprocessing }
}

/// A network with every operation and every form of it.
fn everything((h, w): (usize, usize)) -> Result<Graph, GraphError> {
    let mut b = Builder::new();
    let uneven = Window { kernel: [3, 2], stride: [2, 1], padding: [1, 0, 2, 1] };
    let mut x = b.input(1, h, w, 3)?;
    x = b.conv2d("uneven", x, 8, uneven, true)?;
    b.averaging(Averaging::KERAS);
    x = b.batch_norm("bn", x, 1.001e-5)?;
    for act in Act::ALL.into_iter().filter(|act| *act != Act::Identity) {
        x = b.activation(act.name(), x, act)?;
    }
    b.block(Some("block \"1\""));
    b.position(&[40]);
    let skip = x;
    x = b.grouped_conv2d("grouped", x, 8, Window::square(1, 1, 0), 2, false)?;
    x = b.grouped_conv2d("depthwise", x, 8, Window::square(5, 1, 2), 8, false)?;
    let gate = b.global_avg_pool("squeeze", x)?;
    let gate = b.activation("gate", gate, Act::Sigmoid)?;
    x = b.scale("scale", x, gate)?;
    x = b.stochastic_depth("depth", x, 0.2)?;
    x = b.add("add", x, skip)?;
    b.block(None);
    b.position(&[]);
    x = b.max_pool("max", x, Window::square(3, 2, 1))?;
    x = b.avg_pool("avg", x, Window { kernel: [2, 1], stride: [1, 2], padding: [0; 4] }, [0; 4])?;
    x = b.global_avg_pool("pool", x)?;
    x = b.dropout("dropout", x, 0.1)?;
    let logits = b.linear("fc", x, 5)?;
    b.finish(logits)
}

fn parse(text: &str) -> Result<GraphFile, String> {
    GraphFile::parse(text, "net.json").map_err(|error| error.to_string())
}

#[test]
fn every_model_comes_back_from_its_file() {
    for spec in MODELS.iter() {
        let file = spec.describe(spec.size(), 10).unwrap();
        let again = parse(&file.json()).unwrap();
        assert_eq!(again, file, "{}", spec.name);
        assert_eq!(again.json(), file.json());
        let custom = Spec::of_file(again);
        assert_eq!((&custom.name, custom.preprocessing.value), (&spec.name, spec.preprocessing.value));
        // Another batch, sizes that are odd at every depth, and other classes.
        let (h, w) = spec.size();
        for (batch, size, classes) in [(1, spec.size(), 10), (3, (h + 1, w + 7), 4), (2, (h - 3, w + 30), 10)] {
            let [ours, expected] = [&custom, spec].map(|spec| spec.build(batch, size, classes).ok());
            assert_eq!(ours, expected, "{} at {size:?}", spec.name);
            // Few take images of one size, or of even sides only.
            assert!(expected.is_some() || size != spec.size(), "{} at {size:?}", spec.name);
        }
    }
}

#[test]
fn every_operation_comes_back_from_its_file() {
    let file = GraphFile::of(about((24, 17)), everything).unwrap();
    let again = parse(&file.json()).unwrap();
    assert_eq!(again, file);
    assert_eq!(again.build(1, (24, 17), 5).unwrap(), everything((24, 17)).unwrap());
    assert_eq!(again.build(1, (33, 40), 5).unwrap(), everything((33, 40)).unwrap());
    assert_eq!((again.classes(), again.head()), (5, Some("fc")));
}

#[test]
fn same_padding_follows_the_size() {
    // TensorFlow's: ceil(size/stride) outputs, the odd pixel at the bottom and on the right.
    let network = |(h, w): (usize, usize)| {
        let mut b = Builder::new();
        let same = |size: usize, kernel: usize| (size.div_ceil(2) * 2 - 2 + kernel).saturating_sub(size);
        let mut x = b.input(1, h, w, 3)?;
        for (i, kernel) in [3, 5, 3, 3, 1].into_iter().enumerate() {
            let [h, w] = [b.shape(x).h(), b.shape(x).w()].map(|size| same(size, kernel));
            let padding = [h / 2, w / 2, h - h / 2, w - w / 2];
            let window = Window { kernel: [kernel; 2], stride: [2; 2], padding };
            x = b.conv2d(&format!("c{i}"), x, 8, window, false)?;
        }
        x = b.global_avg_pool("pool", x)?;
        let logits = b.linear("fc", x, 3)?;
        b.finish(logits)
    };
    // At 300 the fourth convolution has an odd input, and so one that 301 has, too.
    let file = GraphFile::of::<GraphError>(about((300, 300)), network).unwrap();
    let paddings: Vec<Padding> = file
        .layers()
        .iter()
        .filter_map(|layer| match layer.op {
            LayerOp::Conv { padding, .. } => Some(padding),
            _ => None,
        })
        .collect();
    // A 1×1 window with stride 2 takes no padding at any size.
    assert_eq!(paddings, [Padding::Same, Padding::Same, Padding::Same, Padding::Same, Padding::Pixels([0; 4])]);
    for size in [(300, 300), (224, 225), (33, 31)] {
        assert_eq!(file.build(1, size, 3).unwrap(), network(size).unwrap(), "{size:?}");
    }
}

#[test]
fn the_documented_example_is_a_network() {
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/graph.md")).unwrap();
    let (_, rest) = document.split_once("```json\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let file = parse(text).unwrap();
    assert_eq!((file.name(), file.size(), file.classes(), file.layers().len()), ("tiny", (32, 32), 10, 19));
    let graph = file.build(4, (33, 32), 7).unwrap();
    assert_eq!(graph.logits_shape().unwrap().0, [4, 1, 1, 7]);
    let shape = |name: &str| graph.layers().iter().find(|layer| layer.name == name).unwrap().shape.0;
    assert_eq!((shape("stem"), shape("b.squeeze")), ([4, 17, 16, 16], [4, 1, 1, 16]));
}

const SMALL: &str = r#"{"thawline_graph": 1, "name": "n", "size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "layers": [
    {"name": "conv", "op": "conv", "channels": 4, "kernel": [3, 3], "inputs": ["input"]},
    {"name": "act", "op": "activation", "act": "relu", "inputs": ["conv"]},
    {"name": "pool", "op": "global_avg_pool", "inputs": ["act"]},
    {"name": "fc", "op": "linear", "channels": 2, "inputs": ["pool"]}]}"#;

#[test]
fn what_is_wrong_is_named() {
    assert!(parse(SMALL).is_ok());
    for (from, to, expected) in [
        (SMALL, "{", "net.json: it is not JSON"),
        (SMALL, "[]", "the graph must be a JSON object"),
        (SMALL, "{}", "`thawline_graph`, the version of its format, is missing"),
        ("graph\": 1", "graph\": 2", "its version is 2; this thawline reads version 1"),
        ("\"name\": \"n\"", "\"name\": \"\"", "`name` must be a line of text"),
        ("\"size\": [8, 8]", "\"size\": 8", "the graph: `size` must be [height, width] in pixels"),
        ("\"size\": [8, 8]", "\"size\": [2, 8]", "conv (conv2d): a 3×3 window"),
        ("\"size\": [8, 8]", "\"size\": [0, 8]", "is empty"),
        ("\"size\": [8, 8]", "\"size\": [18446744073709551615, 8]", "is too large"),
        ("\"std\": [1, 1, 1]", "\"std\": [1, 0, 1]", "`std` is [1.0, 0.0, 1.0]: expected numbers above 0"),
        ("\"std\": [1, 1, 1], ", "", "`std` is missing: three numbers"),
        ("\"std\"", "\"stdd\": 1, \"std\"", "it has no field `stdd` (did you mean `std`?)"),
        ("\"op\": \"conv\", ", "", "layer `conv`: `op` is missing"),
        (
            "\"op\": \"conv\"",
            "\"op\": \"cnv\"",
            "layer `conv`: `op` is `cnv` (did you mean `conv`?); the operations are",
        ),
        ("\"channels\": 4, ", "", "layer `conv`: `channels` is missing: a number"),
        ("\"channels\": 4", "\"channels\": -4", "layer `conv`: `channels` must be a number: invalid value"),
        ("\"channels\": 4", "\"channels\": 0", "conv: needs 1 to"),
        ("\"channels\": 4", "\"channels\": 18446744073709551615", "conv: the weights up to here are more than"),
        ("\"kernel\": [3, 3]", "\"kernel\": [3, 0]", "conv: `kernel` and `stride` are from 1 to 1024"),
        (
            "\"kernel\": [3, 3]",
            "\"kernel\": [3, 3], \"strides\": [1, 1]",
            "no field `strides` (did you mean `stride`?)",
        ),
        (
            "\"kernel\": [3, 3]",
            "\"kernel\": [3, 3], \"padding\": \"valid\"",
            "`padding` must be \"same\" or [top, left",
        ),
        ("\"kernel\": [3, 3]", "\"kernel\": [3, 3], \"padding\": [9999, 0, 0, 0]", "`padding` is at most 1024"),
        ("\"kernel\": [3, 3]", "\"kernel\": [3, 3], \"groups\": 0", "cannot be cut into 0 groups"),
        ("\"kernel\": [3, 3]", "\"kernel\": [3, 3], \"bias\": 1", "`bias` must be true or false"),
        (
            "\"relu\"",
            "\"rleu\"",
            "layer `act`: `act` is `rleu` (did you mean `relu`?); the activations are relu, relu6",
        ),
        ("[\"act\"]", "[\"atc\"]", "pool: its input `atc` is no earlier layer (did you mean `act`?), nor `input`"),
        ("[\"conv\"]", "[\"fc\"]", "act: its input `fc` is no earlier layer"),
        ("[\"conv\"]", "[\"conv\", \"conv\"]", "act: `activation` takes 1 inputs, not 2"),
        ("[\"act\"]", "[\"conv\"]", "act: no layer reads it, and the logits are the last one's, `fc`"),
        ("\"name\": \"act\"", "\"name\": \"conv\"", "conv: the name is taken"),
        ("\"name\": \"act\"", "\"name\": \"input\"", "input: `input` is what the images are called"),
        ("\"name\": \"act\"", "\"name\": \"a\\nb\"", "a\\nb: the name must be a line of text"),
        ("\"op\": \"linear\", \"channels\": 2", "\"op\": \"bn\", \"eps\": 1, \"var\": 1", "`var` must be a text"),
        (
            "\"op\": \"linear\", \"channels\": 2",
            "\"op\": \"bn\", \"eps\": 1, \"var\": \"b\"",
            "`var` is `b`; it can be",
        ),
        ("\"op\": \"linear\", \"channels\": 2", "\"op\": \"bn\", \"eps\": 1, \"keep\": 2", "fc: `keep` is from 0"),
        ("\"op\": \"linear\", \"channels\": 2", "\"op\": \"bn\", \"eps\": 0", "fc: eps must be positive"),
        ("[\"pool\"]", "[\"act\"]", "fc: a linear layer takes [N, 1, 1, C]"),
    ] {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "{from}");
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with("net.json: ") && error.contains(expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(&deep).unwrap_err().contains("recursion limit"));
}

#[test]
fn sizes_are_bounded() {
    let many = |n: usize| {
        let layer = |i: usize| {
            format!(
                r#"{{"name": "a{i}", "op": "activation", "act": "relu", "inputs": ["{}"]}}"#,
                match i {
                    0 => "input".to_owned(),
                    _ => format!("a{}", i - 1),
                }
            )
        };
        let layers: Vec<String> = (0..n).map(layer).collect();
        let head =
            r#"{"thawline_graph": 1, "name": "n", "size": [1, 1], "mean": [0, 0, 0], "std": [1, 1, 1], "layers": ["#;
        format!("{head}{}]}}", layers.join(", "))
    };
    assert!(parse(&many(100)).is_ok());
    assert!(parse(&many(10_001)).unwrap_err().contains("at most 10000 layers, not 10001"));
    // No layer is too large, and all together are.
    let wide = |i: usize| {
        let input = if i == 0 { "input".to_owned() } else { format!("w{}", i - 1) };
        format!(r#"{{"name": "w{i}", "op": "conv", "channels": 16384, "kernel": [1, 1], "inputs": ["{input}"]}}"#)
    };
    let text = SMALL.replace("[8, 8]", "[1, 1]");
    let (head, _) = text.split_once("\"layers\"").unwrap();
    let layers: Vec<String> = (0..6).map(wide).collect();
    let error = parse(&format!("{head}\"layers\": [{}]}}", layers.join(", "))).unwrap_err();
    assert!(error.contains("w4: the weights up to here are more than"), "{error}");
    // A batch norm of a million channels has five million values.
    let norm = |i: usize| {
        let input = if i == 0 { "w".to_owned() } else { format!("b{}", i - 1) };
        format!(r#"{{"name": "b{i}", "op": "bn", "eps": 1, "inputs": ["{input}"]}}"#)
    };
    let first = wide(0).replace("16384", "1048576").replace("w0", "w");
    let layers: Vec<String> = [first].into_iter().chain((0..250).map(norm)).collect();
    let error = parse(&format!("{head}\"layers\": [{}]}}", layers.join(", "))).unwrap_err();
    assert!(error.contains("b203: the weights up to here are more than"), "{error}");
}

/// What JSON is read into takes many times its text.
#[test]
fn texts_are_bounded() {
    let network = |layers: usize, name: &dyn Fn(usize) -> String| {
        let conv = |i: usize| Entry {
            name: name(i),
            op: LayerOp::Conv {
                channels: 8,
                kernel: [3, 3],
                stride: [1, 1],
                padding: Padding::Pixels([1; 4]),
                groups: 1,
                bias: false,
            },
            inputs: vec![if i == 0 { "input".to_owned() } else { name(i - 1) }],
            block: Some(format!("features.{}", i / 3)),
            alias: None,
            position: Vec::new(),
        };
        GraphFile::new(about((1, 1)), (0..layers).map(conv).collect()).map_err(|error| error.to_string())
    };
    let most = network(10_000, &|i| format!("features.{}.block.conv_{i}", i / 3)).unwrap();
    let text = most.json();
    assert_eq!(parse(&text).unwrap(), most);
    let error = parse(&format!("{text}{}", " ".repeat(4 << 20))).unwrap_err();
    assert!(error.contains("it is longer than 4 MiB"), "{error}");
    // What could not be read again cannot be made.
    let error = network(10_000, &|i| format!("{i}{}", "n".repeat(200))).unwrap_err();
    assert!(error.contains("its text is longer than 4 MiB; give its layers shorter names"), "{error}");
}

#[test]
fn a_head_takes_other_classes() {
    let file = parse(SMALL).unwrap();
    assert_eq!(file.build(1, (8, 8), 9).unwrap().logits_shape().unwrap().c(), 9);
    assert_eq!(file.with((16, 8), 9, file.preprocessing()).unwrap().classes(), 9);
    // A convolution behind a pooling, and before one.
    let conv = SMALL.replace(r#""op": "linear", "channels": 2"#, r#""op": "conv", "channels": 2, "kernel": [1, 1]"#);
    let file = parse(&conv).unwrap();
    assert_eq!((file.head(), file.build(1, (8, 8), 3).unwrap().logits_shape().unwrap().c()), (Some("fc"), 3));
    let (fc, _) = SMALL.split_once(",\n    {\"name\": \"fc\"").unwrap();
    let file = parse(&format!("{fc}]}}")).unwrap();
    assert_eq!((file.head(), file.build(1, (8, 8), 3).unwrap().logits_shape().unwrap().c()), (Some("conv"), 3));
    let bn = SMALL.replace(r#""op": "linear", "channels": 2"#, r#""op": "bn", "eps": 1e-5"#);
    let file = parse(&bn).unwrap();
    assert_eq!(file.head(), None);
    assert!(file.build(1, (8, 8), 4).is_ok());
    let error = file.build(1, (8, 8), 3).unwrap_err().to_string();
    assert!(
        error.starts_with("fc: the logits come from here; only a network that ends in a linear layer or"),
        "{error}"
    );
    let error = Spec::of_file(file).build(1, (2, 2), 4).unwrap_err().to_string();
    assert!(error.starts_with("n cannot take 1 images of 2×2 pixels: conv (conv2d): a 3×3 window"), "{error}");
}

#[test]
fn a_compiled_graph_is_refused() {
    let network = models::build("resnet_tiny", 1, (16, 16), 10).unwrap();
    let step = thawline::compile::inference(network, false).unwrap();
    let error = GraphFile::of::<GraphError>(about((16, 16)), |_| Ok(step.clone())).unwrap_err().to_string();
    assert!(error.contains("the graph is compiled"), "{error}");
}

#[test]
fn a_file_that_is_none_is_named() {
    let missing = GraphFile::read(Path::new("nowhere.json")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read nowhere.json: "), "{missing}");
    let folder = GraphFile::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_err().to_string();
    assert!(folder.contains("it is not a regular file"), "{folder}");
}

#[test]
fn a_file_tells_the_models_that_its_positions_count_in() {
    let models = r#"{"layers": 3}, {"name": "base", "position": 1, "layers": 7}, {"name": "base/in", "position": [1, 4], "layers": 2}"#;
    let file = |models: &str, conv: &str, fc: &str| {
        parse(&format!(
            r#"{{"thawline_graph": 1, "name": "net", "size": [4, 4], "mean": [0, 0, 0], "std": [1, 1, 1],
                "models": [{models}], "layers": [
                {{"name": "conv", "op": "conv", "channels": 4, "kernel": [1, 1], "inputs": ["input"], "position": {conv}}},
                {{"name": "pool", "op": "global_avg_pool", "inputs": ["conv"], "position": [1, 6]}},
                {{"name": "fc", "op": "linear", "channels": 2, "inputs": ["pool"], "position": {fc}}}]}}"#
        ))
    };
    let read = file(models, "[1, 4, 1]", "2").unwrap();
    assert_eq!(parse(&read.json()).unwrap(), read);
    let graph = read.build(1, (4, 4), 2).unwrap();
    let numbers: Vec<String> = (0..3).map(|index| graph.number(LayerId::new(index))).collect();
    assert_eq!(numbers, ["1/4/1", "1/6", "2"]);
    let names: Vec<&str> = graph.models().iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["", "base", "base/in"]);
    assert_eq!(
        GraphFile::of(about((4, 4)), |_| Ok::<_, GraphError>(graph.clone())).unwrap().build(1, (4, 4), 2).unwrap(),
        graph
    );
    for (models, conv, fc, message) in [
        (models, "[1, 4, 2]", "2", "conv: its position [1, 4, 2] is behind the 2 layers of base/in"),
        (models, "[1, 5, 0]", "2", "conv: its position [1, 5, 0] is in none of the models"),
        (models, "[1, 4, 1]", "3", "fc: its position [3] is behind the 3 layers of the outermost model"),
        (models, "\"x\"", "2", "layer `conv`: `position` must be a number, or a list of numbers"),
        (
            r#"{"name": "base", "position": 1, "layers": 7}"#,
            "[1, 4]",
            "2",
            "base: its position [1] is in none of the models",
        ),
        (&format!("{models}, {{\"name\": \"b\", \"position\": 1, \"layers\": 7}}"), "2", "2", "another model's"),
        ("", "[1, 4]", "2", "conv: its position [1, 4] is in none of the models"),
        (
            r#"{"layers": 3, "size": 2}"#,
            "2",
            "2",
            "`models` must be a list of {name, position, layers}: unknown field `size`",
        ),
        (r#"{"name": "a\u0007", "layers": 3}"#, "2", "2", "must be a line of text"),
    ] {
        let error = file(models, conv, fc).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}
