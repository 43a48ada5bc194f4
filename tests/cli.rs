//! The command line as scripts and people use it: what each command prints, and what each mistake gets.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::weights::{FileTensor, StateDict, TensorData, initialise, to_state};
use thawline::{models, rng::Rng};

/// Files that many tests read and none changes.
struct Fixture {
    dir: TempDir,
}

/// Images in the inputs file.
const IMAGES: usize = 5;

impl Fixture {
    fn get() -> &'static Self {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| {
            let dir = TempDir::new().unwrap();
            let options = SampleOptions { size: 16, per_class: 5, seed: 1 };
            write_sample_data(SampleSet::Shapes, &dir.path().join("shapes"), &options).unwrap();
            weights().save(dir.path().join("weights.safetensors")).unwrap();
            inputs(IMAGES, 10).save(dir.path().join("inputs.safetensors")).unwrap();
            Self { dir }
        })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

fn data() -> String {
    Fixture::get().path("shapes")
}

fn weights_file() -> String {
    Fixture::get().path("weights.safetensors")
}

fn inputs_file() -> String {
    Fixture::get().path("inputs.safetensors")
}

/// Class names as the sample data has them.
fn class_names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(Path::new(&data()).join("train"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Random weights of resnet_tiny, with metadata of its own.
fn weights() -> StateDict {
    let graph = models::build("resnet_tiny", 1, (16, 16), 10).unwrap();
    let mut state = to_state(&graph, &initialise(&graph, 3));
    state.metadata.insert("comment".into(), "kept".into());
    state
}

fn inputs(images: usize, classes: usize) -> StateDict {
    let mut rng = Rng::new(7);
    let mut state = StateDict::default();
    let values = (0..images * 3 * 16 * 16).map(|_| rng.range(-2.0, 2.0) as f32).collect();
    state.tensors.insert("images".into(), FileTensor::f32([images, 3, 16, 16], values));
    let labels = (0..images).map(|_| rng.below(classes) as i64).collect();
    state.tensors.insert("labels".into(), FileTensor::i64([images], labels));
    state
}

fn thawline(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("thawline").unwrap();
    command.args(args).env_remove("RUST_LOG");
    command
}

/// Standard output of a run that must succeed.
fn stdout(args: &[&str]) -> String {
    let output = thawline(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The document that a command prints, or that the last of its events holds, without what every document has.
fn json(args: &[&str]) -> Value {
    let text = stdout(args);
    let whole = serde_json::from_str(&text).ok();
    let mut document: Value = whole.unwrap_or_else(|| events(args, &text).pop().unwrap());
    let one = std::slice::from_mut(&mut document);
    let parts = if one[0].is_array() { one[0].as_array_mut().unwrap() } else { one };
    for fields in parts.iter_mut().map(|part| part.as_object_mut().unwrap()) {
        assert_eq!(fields.remove("schema"), Some(1.into()), "{args:?}");
        fields.remove("event");
    }
    document
}

/// The events of a stream.
fn events(args: &[&str], text: &str) -> Vec<Value> {
    let events =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{args:?}: {e}: {line}")));
    let events: Vec<Value> = events.collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(events.iter().all(|event| event["schema"] == 1), "{text}");
    assert_eq!(names.last(), Some(&"result"), "{text}");
    assert_eq!((names.len() > 1).then(|| names[0]), (names.len() > 1).then_some("begin"), "{text}");
    events
}

/// What the file did not say of its images is said in a copy; the rest of its metadata is kept.
#[track_caller]
fn assert_only_preprocessing_is_new(before: &StateDict, after: &StateDict) {
    let mut metadata = after.metadata.clone();
    assert!(metadata.remove("preprocessing").is_some(), "{metadata:?}");
    assert_eq!(metadata, before.metadata);
}

/// The keys of a JSON object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Standard error of a run that must fail with exit code 1, without its mark: one line that holds `expected`.
#[track_caller]
fn fails(args: &[&str], expected: &str) -> String {
    let message = fails_at_length(args, expected);
    assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    message
}

#[track_caller]
fn fails_at_length(args: &[&str], expected: &str) -> String {
    let output = thawline(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    let message = stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("{args:?}: {stderr}"));
    assert!(message.contains(expected), "{args:?}: {message}");
    message.to_owned()
}

/// As [`fails`], for mistakes in the arguments themselves.
#[track_caller]
fn refused(args: &[&str], expected: &str) {
    let output = thawline(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{args:?}: {stderr}");
}

fn floats(state: &StateDict, name: &str) -> Vec<f32> {
    match &state.tensors[name].data {
        TensorData::F32(values) => values.clone(),
        TensorData::I64(_) => panic!("{name} is of integers"),
    }
}

#[test]
fn every_command_explains_itself() {
    let commands = [
        "devices",
        "models",
        "inspect",
        "plan",
        "finetune",
        "compare",
        "eval",
        "predict",
        "fold",
        "doctor",
        "recalibrate",
        "sample-data",
        "step",
        "bench",
        "version",
        "completions",
        "man",
    ];
    let overview = stdout(&["--help"]);
    for command in commands {
        assert!(overview.contains(command), "{overview}");
        assert!(stdout(&[command, "--help"]).contains("Usage: thawline"));
    }
    for command in ["plan", "finetune", "bench"] {
        let help = stdout(&[command, "--help"]);
        assert!(thawline::policy::RECIPES.iter().all(|recipe| help.contains(recipe.name)), "{help}");
    }
    refused(&["plann"], "plan");
    refused(&["plan", "--batch", "0"], "at least 1");
    refused(&["plan", "--model", "resnet18", "--size", "12x"], "192x256");
}

#[test]
fn version_and_devices() {
    let version = json(&["version", "--json"]);
    assert_eq!(keys(&version), ["backends", "features", "naga", "target", "version", "wgpu"]);
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(stdout(&["version"]).starts_with(&format!("thawline {}\n", env!("CARGO_PKG_VERSION"))));

    let devices = json(&["devices", "--json"]);
    let first = &devices[0];
    assert_eq!(
        keys(first),
        [
            "backend",
            "default",
            "driver",
            "features",
            "index",
            "kind",
            "largest_buffer",
            "limits",
            "name",
            "same_gpu_as"
        ]
    );
    assert!(first["limits"]["max_storage_buffers_per_shader_stage"].as_u64().unwrap() >= 7, "{first}");
    assert_eq!(first["limits"]["subgroup_sizes"].as_array().unwrap().len(), 2);
    assert_eq!((&first["index"], &first["default"]), (&0.into(), &true.into()));
    assert!(stdout(&["devices"]).contains(first["name"].as_str().unwrap()));
}

#[test]
fn devices_are_checked_by_kernel() {
    let args = ["devices", "--check", "--kernel", "sgd_step", "--kernel", "conv2d_forward_subgroup"];
    let check = json(&[&args[..], &["--json"]].concat());
    assert_eq!(keys(&check), ["device", "kernels", "right", "seconds", "thawline", "unsupported", "wrong"]);
    assert_eq!(check["device"]["name"], json(&["devices", "--json"])[0]["name"]);
    let kernels = check["kernels"].as_array().unwrap();
    // In the order of the library's list.
    assert_eq!(kernels.iter().map(|k| &k["kernel"]).collect::<Vec<_>>(), ["conv2d_forward_subgroup", "sgd_step"]);
    let expected =
        ["cases", "failure", "kernel", "passed", "skipped", "unsupported", "worst_error", "worst_of_allowed"];
    assert_eq!(keys(&kernels[1]), expected);
    assert!(kernels[1]["cases"].as_u64() > Some(20) && kernels[1]["cases"] == kernels[1]["passed"], "{check}");
    assert!(kernels[1]["worst_of_allowed"].as_f64() <= Some(1.0) && kernels[1]["failure"].is_null(), "{check}");
    // Not every device supports it.
    let supported = u64::from(kernels[0]["unsupported"].is_null());
    assert_eq!((check["right"].as_u64(), check["wrong"].as_u64()), (Some(1 + supported), Some(0)));

    let table = stdout(&args);
    assert!(table.contains("sgd_step") && table.contains("0 wrong"), "{table}");
    assert!(table.contains("not supported here: needs subgroups") != (supported == 1), "{table}");

    fails(&["devices", "--check", "--device", "no such device"], "no device matches `no such device`");
    refused(&["devices", "--check", "--kernel", "sgd_stepp"], "'sgd_step'");
    refused(&["devices", "--device", "0"], "--check");
}

#[test]
fn models_lists_networks_by_a_part_of_their_names() {
    let list = json(&["models", "REGNET_Y", "--json"]);
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"regnet_y_400mf") && names.iter().all(|name| name.starts_with("regnet_y_")), "{names:?}");
    assert_eq!((&list[0]["library"], &list[0]["size"]["width"]), (&"torchvision".into(), &224.into()));
    // As torchvision's documentation says.
    assert_eq!(list[0]["parameters"], 4_344_144);
    assert!(stdout(&["models"]).contains("keras_resnet50"));
    fails(&["models", "swin"], "`swin`");
}

#[test]
fn inspect_lists_the_layers_of_a_model_and_of_a_file() {
    let model = json(&["inspect", "--model", "resnet_tiny", "--json"]);
    assert_eq!(keys(&model), ["blocks", "classes", "layers", "model", "models", "parameters", "preprocessing", "size"]);
    let layers = model["layers"].as_array().unwrap();
    assert_eq!(
        keys(&layers[0]),
        ["alias", "block", "index", "kind", "name", "number", "parameters", "shape", "tensors"]
    );
    assert_eq!(model["blocks"][5], "layer3.1");
    assert!(stdout(&["inspect", "--model", "resnet_tiny"]).contains("5 layer3.1"));
    let sum: u64 = layers.iter().map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!(model["parameters"], sum);
    // 3 input channels, not the four of the device; the moments do not count.
    assert_eq!(layers[0]["parameters"], 16 * 3 * 3 * 3);
    assert_eq!(layers[1]["parameters"], 2 * 16);
    assert_eq!(layers.iter().filter(|layer| layer["kind"] == "bn").count(), 15);

    let file = json(&["inspect", &weights_file(), "--json"]);
    assert_eq!(file["model"], "resnet_tiny");
    assert_eq!(file["layers"], model["layers"]);
    assert_eq!(keys(&file["file"]), ["batches_tracked", "metadata", "path", "tensors", "values"]);
    assert_eq!(file["file"]["tensors"], weights().tensors.len());
    assert_eq!(file["file"]["metadata"]["comment"], "kept");
    assert!(stdout(&["inspect", &weights_file()]).contains("layer3.0.downsample.1"));

    let other = json(&["inspect", &inputs_file(), "--json"]);
    assert_eq!(other["model"], Value::Null);
    assert_eq!(other["tensors"]["images"], serde_json::json!([IMAGES, 3, 16, 16]));
    refused(&["inspect"], "<FILE>");
}

#[test]
fn plan_prices_every_layer() {
    let plan = |policy: &str| json(&["plan", "--model", "resnet_tiny", "--batch", "8", "--policy", policy, "--json"]);
    let (head, full) = (plan("head"), plan("full"));
    let expected = [
        "batch",
        "classes",
        "from",
        "full",
        "inference",
        "layers",
        "model",
        "policy",
        "rest",
        "size",
        "stages",
        "step",
    ];
    assert_eq!(keys(&head), expected);
    assert_eq!(head["stages"], serde_json::json!([]));
    let staged = plan("head-then-full");
    assert_eq!((&staged["step"], &staged["stages"][0]["step"]), (&head["step"], &full["step"]));
    assert_eq!((&staged["from"], &staged["stages"][0]["from"]), (&serde_json::json!(0.0), &serde_json::json!(0.3)));
    let layers = head["layers"].as_array().unwrap();
    let expected =
        ["axes", "backward", "forward", "index", "kept_bytes", "kernels", "kind", "name", "number", "shape", "update"];
    assert_eq!(keys(&layers[0]), expected);
    assert_eq!(keys(&head["step"]), ["calls", "flops", "kept_bytes", "moved_bytes", "planned_bytes"]);
    assert_eq!(head["full"], full["step"]);

    // Nothing is kept, and nothing runs backwards, below the head.
    for layer in layers.iter().filter(|layer| layer["name"] != "fc") {
        assert_eq!((&layer["kept_bytes"], &layer["backward"]["flops"]), (&0.into(), &0.into()), "{layer}");
    }
    // The sums are those of the layers.
    for price in [&head, &full] {
        let phases = ["forward", "backward", "update"];
        let of = |layer: &Value| phases.iter().map(|phase| layer[phase]["flops"].as_u64().unwrap()).sum::<u64>();
        let sum = price["layers"].as_array().unwrap().iter().map(of).sum::<u64>() + of(&price["rest"]);
        assert_eq!(price["step"]["flops"], sum);
    }
    assert!(full["step"]["flops"].as_u64() > head["step"]["flops"].as_u64());

    let table = stdout(&["plan", "--model", "resnet_tiny", "--policy", "bn-only"]);
    assert!(table.contains("stats=batch, update=ema(0.9), affine=both") && table.contains("step / full"), "{table}");
    let table =
        stdout(&["plan", "--model", "resnet_tiny", "--policy", "full-ghost", "--set", "kind:bn -> stats=renorm(3,5)"]);
    assert!(table.contains("stats=renorm(3,5), update=ema(0.9), affine=both, domain=ghost(8)"), "{table}");
    assert!(stdout(&["plan", "--model", "resnet_tiny", "--kernels"]).contains("batch_norm_grad_reduce"));
    assert!(stdout(&["plan", "--model", "resnet_tiny", "--dump"]).contains("call 0"));
}

#[test]
fn plan_takes_policies_from_files_and_warns() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, "base = \"head\"\nrules = [\"from:layer3 & kind:bn -> affine=both\"]\n").unwrap();
    let plan = json(&["plan", "--model", "resnet_tiny", "--policy", file.to_str().unwrap(), "--json"]);
    assert_eq!(plan["policy"], "mine");
    let axes =
        |name: &str| plan["layers"].as_array().unwrap().iter().find(|l| l["name"] == name).unwrap()["axes"].clone();
    assert!(axes("layer3.0.bn1").as_str().unwrap().contains("affine=both"));
    assert!(axes("layer2.0.bn1").as_str().unwrap().contains("affine=none"));

    let half = thawline(&[
        "plan",
        "--model",
        "resnet_tiny",
        "--policy",
        "head",
        "--set",
        "name:layer1.0.conv1 -> weights=train",
    ]);
    let stderr = String::from_utf8({ half }.output().unwrap().stderr).unwrap();
    assert!(stderr.starts_with("warning: ") && stderr.contains("layer1.0"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    use std::process::{Command, Stdio};
    let binary = assert_cmd::cargo::cargo_bin("thawline");
    let mut child = Command::new(binary)
        .args(["plan", "--model", "resnet152", "--dump"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Where what a test writes goes.
struct Outputs {
    dir: TempDir,
}

impl Outputs {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn step_trains_what_the_policy_says_and_keeps_the_rest() {
    let outputs = Outputs::new();
    let step = |out: &str, more: &[&str]| {
        let (weights, inputs, out, grads) = (weights_file(), inputs_file(), outputs.text(out), outputs.text("grads"));
        let mut args =
            vec!["step", "--weights", &weights, "--inputs", &inputs, "--out", &out, "--grads", &grads, "--force"];
        args.extend(more);
        let output = stdout(&args);
        let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| keys(line) == ["event", "loss", "schema", "step"]), "{output}");
        let losses: Vec<f64> = lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect();
        (losses, StateDict::load(&out).unwrap(), StateDict::load(&grads).unwrap())
    };
    let before = StateDict::load(weights_file()).unwrap();

    let policy = ["--policy", "head", "--set", "name:layer3.1.bn2 -> affine=gamma", "--lr", "0.1", "--steps", "3"];
    let (losses, after, grads) = step("a", &policy);
    assert_eq!(losses.len(), 3);
    assert!(losses[2] < losses[0], "{losses:?}");
    assert_only_preprocessing_is_new(&before, &after);
    assert_eq!(after.tensors.keys().collect::<Vec<_>>(), before.tensors.keys().collect::<Vec<_>>());
    let trained = ["fc.bias", "fc.weight", "layer3.1.bn2.weight"];
    for (name, tensor) in &after.tensors {
        assert_eq!(*tensor != before.tensors[name], trained.contains(&name.as_str()), "{name}");
    }
    assert_eq!(grads.tensors.keys().collect::<Vec<_>>(), trained);

    // The gradient is the one that a plain step follows.
    let (_, after, grads) = step("b", &["--policy", "head", "--lr", "0.5"]);
    for name in ["fc.bias", "fc.weight"] {
        let (old, new, gradient) = (floats(&before, name), floats(&after, name), floats(&grads, name));
        for ((old, new), gradient) in old.iter().zip(new).zip(gradient) {
            assert!((old - 0.5 * gradient - new).abs() < 1e-6, "{name}");
        }
    }

    // The same bits twice, with every optimiser setting; moving statistics are counted.
    let adamw = [
        "--variant",
        "direct",
        "--optimizer",
        "adamw",
        "--weight-decay",
        "0.1",
        "--label-smoothing",
        "0.1",
        "--steps",
        "2",
    ];
    let (first, second) = (step("c", &adamw), step("c", &adamw));
    assert_eq!(first, second);
    assert_eq!(first.1.tensors["bn1.num_batches_tracked"].data, TensorData::I64(vec![2]));
    let sgd = ["--variant", "direct", "--momentum", "0.9", "--nesterov", "--weight-decay", "0.1", "--decoupled-decay"];
    assert_ne!(step("d", &sgd).1, step("d", &sgd[..5]).1);
}

#[test]
fn step_checks_the_device_against_the_reference() {
    let outputs = Outputs::new();
    let files = [weights_file(), inputs_file(), outputs.text("out")];
    let files =
        ["step", "--force", "--variant", "direct", "--weights", &files[0], "--inputs", &files[1], "--out", &files[2]];
    for policy in [
        &["--policy", "bn-only"][..],
        &["--policy", "bn-blend"],
        &["--policy", "full-renorm"],
        &["--policy", "full-ghost", "--set", "kind:bn -> domain=ghost(1)"],
    ] {
        let output = thawline(&[&files[..], policy, &["--check"]].concat()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.contains("calls agree with the reference"), "{stderr}");

        // Checking leaves no trace.
        let checked = fs::read(outputs.path("out")).unwrap();
        stdout(&[&files[..], policy].concat());
        assert_eq!(checked, fs::read(outputs.path("out")).unwrap());
    }
}

#[test]
fn predict_and_eval_agree() {
    let outputs = Outputs::new();
    let mut named = weights();
    named.metadata.insert("classes".into(), serde_json::to_string(&class_names()).unwrap());
    named.metadata.insert("size".into(), "16x16".into());
    named.save(outputs.path("named.safetensors")).unwrap();
    let named = outputs.text("named.safetensors");

    let eval = json(&["eval", "--weights", &named, "--data", &data(), "--split", "val", "--batch", "4", "--json"]);
    assert_eq!(
        keys(&eval),
        [
            "auroc",
            "average_precision",
            "balanced_accuracy",
            "classes",
            "confusion",
            "device",
            "images_per_s",
            "loss",
            "macro",
            "model",
            "samples",
            "skipped",
            "top1",
            "top5",
            "weighted"
        ]
    );
    let val = Path::new(&data()).join("val").to_str().unwrap().to_owned();
    let predictions = json(&["predict", "--weights", &named, &val, "--top", "10", "--batch", "3", "--json"]);
    let predictions = predictions["predictions"].as_array().unwrap();
    assert_eq!(eval["samples"], predictions.len());

    let (mut top1, mut top5, mut loss) = (0, 0, 0.0);
    for prediction in predictions {
        let class = Path::new(prediction["path"].as_str().unwrap()).parent().unwrap().file_name().unwrap();
        let top = prediction["top"].as_array().unwrap();
        assert_eq!(keys(&top[0]), ["class", "index", "probability"]);
        let rank = top.iter().position(|candidate| candidate["class"].as_str() == class.to_str()).unwrap();
        top1 += u32::from(rank < 1);
        top5 += u32::from(rank < 5);
        loss -= top[rank]["probability"].as_f64().unwrap().ln();
    }
    let mean = |sum: f64| sum / predictions.len() as f64;
    assert_eq!(eval["top1"], mean(f64::from(top1)));
    assert_eq!(eval["top5"], mean(f64::from(top5)));
    assert!((mean(loss) - eval["loss"].as_f64().unwrap()).abs() < 1e-4);

    // Class by class: in JSON, as a table, and on a page, which replaces no file unasked.
    let classes = eval["classes"].as_array().unwrap();
    let counts = eval["confusion"].as_array().unwrap();
    let sum =
        |of: &dyn Fn(&Value) -> bool| counts.iter().filter(|c| of(c)).map(|c| c[2].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(&|_| true), predictions.len() as u64);
    assert_eq!(sum(&|count| count[0] == count[1]), u64::from(top1));
    for class in classes {
        assert_eq!(class["support"].as_u64(), Some(sum(&|count| count[0] == class["class"])));
        assert_eq!(class["predicted"].as_u64(), Some(sum(&|count| count[1] == class["class"])));
        assert!(class_names().iter().any(|name| class["name"] == *name));
    }
    let page = outputs.text("page.html");
    let shown = ["eval", "--weights", &named, "--data", &data(), "--per-class", "--report", &page];
    let text = stdout(&shown);
    assert!(text.contains("recall") && text.contains("mean by images") && text.contains("report: "), "{text}");
    fails(&shown, "exists: give another name, or replace it with --force");
    stdout(&[&shown[..], &["--force"]].concat());
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("data:image/jpeg;base64,") && html.contains("The surest mistakes"));
    fails(&["eval", "--weights", &named, "--data", &data(), "--report", &named, "--force"], "are the same file");

    // Classes go by name: a folder with two of them will do.
    let two = outputs.path("two");
    for class in &class_names()[3..5] {
        let from = Path::new(&val).join(class);
        fs::create_dir_all(two.join(class)).unwrap();
        for image in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(image.path(), two.join(class).join(image.file_name())).unwrap();
        }
    }
    let two = two.to_str().unwrap();
    let found = json(&["eval", "--weights", &named, "--data", two, "--split", "all", "--json"]);
    assert_eq!(found["samples"], 2);
    fails(&["eval", "--weights", &weights_file(), "--data", two, "--split", "all"], "does not name them");
    let text = stdout(&["predict", "--weights", &weights_file(), "--top", "1", &val]);
    assert!(text.lines().all(|line| line.contains(".png: class ")), "{text}");
}

#[test]
fn predict_of_a_batch_depends_on_no_companion() {
    let outputs = Outputs::new();
    let logits = |name: &str, batch: &str| {
        let (weights, inputs, out) = (weights_file(), inputs_file(), outputs.text(name));
        stdout(&["predict", "--weights", &weights, "--inputs", &inputs, "--out", &out, "--batch", batch]);
        let state = StateDict::load(&out).unwrap();
        assert_eq!(state.tensors["logits"].shape, [IMAGES, 10]);
        floats(&state, "logits")
    };
    let (whole, pairs) = (logits("whole", "32"), logits("pairs", "2"));
    assert_eq!(whole, pairs);
    assert_ne!(whole[..10], whole[10..20]);
    refused(&["predict", "--weights", &weights_file(), "--inputs", &inputs_file()], "--out");
}

/// The sample network as it was trained.
fn trained_file() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/resnet_tiny_shapes.safetensors").to_str().unwrap().to_owned()
}

#[test]
fn a_folded_file_does_what_the_file_did() {
    let outputs = Outputs::new();
    let (weights, folded, onnx) = (trained_file(), outputs.text("folded.safetensors"), outputs.text("net.onnx"));
    let report = json(&["fold", "--weights", &weights, "--out", &folded, "--json"]);
    assert_eq!(keys(&report), ["bytes", "difference", "folded", "kept", "model", "out", "size"]);
    assert_eq!(report["folded"].as_array().unwrap().len(), 15);
    assert_eq!(report["folded"][0], serde_json::json!({"batch_norm": "bn1", "into": "conv1"}));
    assert_eq!((&report["kept"], &report["model"]), (&serde_json::json!([]), &"resnet_tiny".into()));
    assert_eq!(report["bytes"], fs::metadata(&folded).unwrap().len());
    assert!(report["difference"].as_f64().unwrap() < 1e-4, "{report}");

    let (before, after) = (StateDict::load(&weights).unwrap(), StateDict::load(&folded).unwrap());
    assert_eq!(after.metadata["folded"], "true");
    assert!(before.metadata.iter().all(|(key, value)| after.metadata[key] == *value));
    assert!(!after.tensors.contains_key("bn1.weight") && after.tensors["conv1.bias"].shape == [16]);
    let logits = |weights: &str, name: &str| {
        let out = outputs.text(name);
        stdout(&["predict", "--weights", weights, "--inputs", &inputs_file(), "--out", &out]);
        floats(&StateDict::load(&out).unwrap(), "logits")
    };
    let (ours, theirs) = (logits(&weights, "before"), logits(&folded, "after"));
    let largest = ours.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4 * largest), "{ours:?} {theirs:?}");

    let eval = |weights: &str| json(&["eval", "--weights", weights, "--data", &data(), "--json"]);
    assert_eq!(eval(&weights)["top1"], eval(&folded)["top1"]);
    let inspected = json(&["inspect", &folded, "--json"]);
    assert_eq!(inspected["model"], "resnet_tiny");
    let layers = inspected["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["kind"] != "bn"));
    assert_eq!(layers[0]["tensors"], serde_json::json!(["conv1.weight", "conv1.bias"]));

    // A head trains on top of it; a policy on its batch norms, or a whole run, does not.
    let out = outputs.text("stepped.safetensors");
    let step = ["step", "--weights", &folded, "--inputs", &inputs_file(), "--out", &out, "--force", "--policy"];
    stdout(&[&step[..], &["head"]].concat());
    assert_eq!(StateDict::load(&out).unwrap().metadata["folded"], "true");
    fails(&[&step[..], &["bn-only"]].concat(), "the network has no batch norms");
    fails(&["plan", "--weights", &folded, "--policy", "bn-affine"], "such as `full`");
    fails(&["finetune", "--weights", &folded, "--data", &data(), "--out", &outputs.text("run")], "inference only");
    fails(&["eval", "--weights", &folded, "--data", &data(), "--policy", "heed"], "did you mean `head`");

    // ONNX from either, and as it is. Folding is deterministic, so both are the same file.
    let onnx_of = |weights: &str, more: &[&str]| {
        let args = ["fold", "--weights", weights, "--out", &onnx, "--force"];
        assert!(stdout(&[&args[..], more].concat()).contains("net.onnx"));
        fs::read(&onnx).unwrap()
    };
    assert_eq!(onnx_of(&weights, &[]), onnx_of(&folded, &[]));
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!has(&onnx_of(&weights, &["--batch", "2"]), "BatchNormalization"));
    let plain = json(&["fold", "--weights", &weights, "--out", &onnx, "--force", "--no-fold", "--json"]);
    assert_eq!(plain["difference"], Value::Null);
    assert!(has(&fs::read(&onnx).unwrap(), "BatchNormalization"));
}

#[test]
fn convert_renames_and_accounts() {
    let outputs = Outputs::new();
    let (weights, out, graph) = (trained_file(), outputs.text("out.safetensors"), outputs.path("mine.json"));
    // A variant of other names and another epsilon.
    let described = stdout(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let described = ["1.", "2.", "3."].iter().fold(described, |text, n| {
        text.replace(&format!("\"layer{n}"), &format!("\"stage{n}")) // Names of layers and of blocks.
    });
    let described = described.replace("1e-5", "1e-3").replace("0.00001", "0.001");
    fs::write(&graph, described).unwrap();
    let graph = graph.to_str().unwrap();

    let report = json(&["convert", &weights, "--to", graph, "--out", &out, "--json"]);
    assert_eq!(keys(&report), ["classes", "converted", "difference", "from", "layers", "left", "out", "to"]);
    assert_eq!(report["layers"][2], serde_json::json!({"from": "layer1.0.conv1", "to": "stage1.0.conv1"}));
    let converted = report["converted"].as_array().unwrap();
    assert!(converted[0].as_str().unwrap().starts_with("names: layer1.0.conv1 is stage1.0.conv1 now"), "{report}");
    assert!(converted[1].as_str().unwrap().starts_with("epsilon is 1e-3 and was 1e-5 in bn1, "), "{report}");
    assert!(report["difference"].as_f64().unwrap() < 1e-4, "{report}");
    let (before, after) = (StateDict::load(&weights).unwrap(), StateDict::load(&out).unwrap());
    assert_eq!(floats(&before, "layer1.0.conv1.weight"), floats(&after, "stage1.0.conv1.weight"));
    assert!(floats(&before, "bn1.weight") != floats(&after, "bn1.weight"));
    assert_eq!(before.metadata["classes"], after.metadata["classes"]);

    // And back.
    let back = outputs.text("back.safetensors");
    let text = stdout(&["convert", &out, "--to", "resnet_tiny", "--out", &back]);
    assert!(text.contains("converted:\n  names: stage1.0.conv1 is layer1.0.conv1 now"), "{text}");
    let after = StateDict::load(&back).unwrap();
    assert!(before.tensors.keys().eq(after.tensors.keys()) && !after.metadata.contains_key("graph"));
    for (name, tensor) in &before.tensors {
        let TensorData::F32(old) = &tensor.data else { continue };
        let new = floats(&after, name);
        assert!(old.iter().zip(&new).all(|(old, new)| (old - new).abs() <= 1e-6 * old.abs()), "{name}");
    }

    // The same network, in another file.
    let text = stdout(&["convert", &weights, "--out", &back, "--force"]);
    assert!(text.starts_with("resnet_tiny → resnet_tiny, "), "{text}");
    assert_eq!(StateDict::load(&back).unwrap().tensors, before.tensors);
}

#[test]
fn convert_writes_copies_of_keras_files() {
    let outputs = Outputs::new();
    let keras = |name: &str| format!("{}/tests/golden/keras/{name}", env!("CARGO_MANIFEST_DIR"));
    let tensors = |file: &str| StateDict::load(file).unwrap().tensors;
    let (plain, old, new) = (outputs.text("a.safetensors"), outputs.text("b.h5"), outputs.text("c.keras"));
    // Keras 3's, safetensors, tf_keras's, and back.
    let report = json(&["convert", &keras("efficient.keras"), "--out", &plain, "--json"]);
    assert_eq!(report["converted"][0], "the layout of weights: OIHW, and was HWIO");
    let told = report["left"].as_array().unwrap();
    assert_eq!(told.last().unwrap(), "how often running statistics were updated, which Keras does not count");
    stdout(&["convert", &plain, "--to", &keras("efficient_tf.h5"), "--out", &old]);
    stdout(&["convert", &old, "--to", &keras("efficient.keras"), "--out", &new]);
    assert_eq!(tensors(&new), tensors(&keras("efficient.keras")));
    assert!(tensors(&old) != tensors(&keras("efficient_tf.h5")));

    let other = ["convert", &plain, "--to", &keras("mobilenet.keras"), "--out", &outputs.text("d.keras")];
    fails(&other, "are not one network");
    assert!(!outputs.path("d.keras").exists());
}

#[test]
fn convert_writes_nothing_that_is_wrong() {
    let outputs = Outputs::new();
    let weights = trained_file();
    let out = outputs.path("out.safetensors");
    fs::write(&out, "precious").unwrap();
    let to = out.to_str().unwrap();
    let convert = |args: &[&str], expected: &str| fails(&[&["convert", &weights, "--force"], args].concat(), expected);
    convert(&["--out", &outputs.text("out.pth")], "PyTorch's own files are read, not written; write .safetensors");
    convert(&["--out", &outputs.text("out.bin")], "must end in .safetensors, .keras, .weights.h5, .h5 or .json");
    convert(&["--out", &weights], "are the same file");
    convert(&["--out", &outputs.text("out.keras")], "a copy of another; name one with the same ending as --to");
    convert(&["--out", &outputs.text("out.keras"), "--to", "other.h5"], "with the same ending as --to");
    convert(&["--out", to, "--to", "other.keras"], "only one with the same ending can be written");
    convert(&["--out", to, "--to", "resnet19"], "did you mean `resnet18`?");
    convert(
        &["--out", to, "--to", "resnet18"],
        "resnet_tiny and resnet18 are not one network: nothing in resnet_tiny computes what `conv1` of resnet18 does",
    );
    convert(&["--out", to, "--model", "resnet18"], "holds the weights of resnet_tiny");
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
}

#[test]
fn fold_writes_nothing_that_is_wrong() {
    let outputs = Outputs::new();
    let weights = trained_file();
    let (out, onnx) = (outputs.path("out.safetensors"), outputs.text("out.onnx"));
    let fold = |weights: &str, out: &str, more: &[&str], expected: &str| {
        fails(&[&["fold", "--weights", weights, "--out", out, "--force"], more].concat(), expected);
    };
    fs::write(&out, "precious").unwrap();
    let out = out.to_str().unwrap();
    fold(&weights, &outputs.text("out.pth"), &[], "PyTorch's own files are read, not written; write .safetensors");
    fold(&weights, &outputs.text("out"), &[], ".safetensors or .onnx");
    fold(&weights, out, &["--no-fold"], "--no-fold is for ONNX");
    fold(&weights, out, &["--batch", "2"], "--batch is for ONNX");
    fold(&weights, &outputs.text("nowhere/out.onnx"), &[], "does not exist");
    fold(&weights, out, &["--model", "resnet18"], "holds the weights of resnet_tiny");
    fold(&weights, out, &["--device", "no such device"], "no device matches");

    let edited = |name: &str, edit: &dyn Fn(&mut StateDict)| {
        let mut state = StateDict::load(&weights).unwrap();
        edit(&mut state);
        state.save(outputs.path(name)).unwrap();
        outputs.text(name)
    };
    let set = |tensor: &str, value: f32| {
        let tensor = tensor.to_owned();
        move |state: &mut StateDict| match &mut state.tensors.get_mut(&tensor).unwrap().data {
            TensorData::F32(values) => values[3] = value,
            TensorData::I64(_) => panic!("{tensor} is of integers"),
        }
    };
    let broken = edited("variance.safetensors", &set("layer2.0.bn2.running_var", -1.0));
    fold(&broken, out, &[], "`layer2.0.bn2.running_var` of the weights holds -1");
    fold(&broken, &onnx, &["--no-fold"], "`recalibrate` estimates running statistics anew");
    let broken = edited("nan.safetensors", &set("fc.bias", f32::NAN));
    fold(&broken, out, &[], "`fc.bias` of the weights holds NaN");
    fold(&broken, &onnx, &["--no-fold"], "`fc.bias` of the weights holds NaN");
    // Subtracting 10⁷ and adding it again loses a value that folding, which knows the sum, does not.
    let broken = edited("vast.safetensors", &|state| {
        for (tensor, value) in [("weight", 1.0), ("bias", 1e7), ("running_mean", 1e7), ("running_var", 1.0)] {
            set(&format!("layer2.0.bn2.{tensor}"), value)(state);
        }
    });
    fold(&broken, &onnx, &[], "the logits would change");
    let same = edited("same.safetensors", &|_| ());
    fold(&same, &same, &[], "the same file");

    let folded = outputs.text("folded.safetensors");
    stdout(&["fold", "--weights", &weights, "--out", &folded]);
    fold(&folded, out, &[], "is folded already");
    fold(&folded, &onnx, &["--no-fold"], "is folded already");
    let mut state = StateDict::load(&folded).unwrap();
    set("fc.bias", f32::INFINITY)(&mut state);
    state.save(&folded).unwrap();
    fold(&folded, &onnx, &[], "`fc.bias` of the weights holds inf");
    assert_eq!(fs::read(out).unwrap(), b"precious");
    assert!(!Path::new(&onnx).exists());
}

#[test]
fn a_graph_file_stands_for_a_network() {
    let outputs = Outputs::new();
    let text = stdout(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let (file, changed) = (outputs.text("same.json"), outputs.text("mine.json"));
    fs::write(&file, &text).unwrap();
    let layers = |args: &[&str]| json(&[&["inspect", "--json"], args].concat())["layers"].clone();
    assert_eq!(layers(&["--model", &file]), layers(&["--model", "resnet_tiny"]));
    assert_eq!(stdout(&["inspect", "--model", &file, "--graph"]), text);
    assert_eq!(
        layers(&["--model", &file, "--size", "24x20", "--classes", "3"]),
        layers(&["--model", "resnet_tiny", "--size", "24x20", "--classes", "3"])
    );
    assert_eq!(stdout(&["inspect", &weights_file(), "--graph"]), text);

    // A network that no name stands for: other activations, names and normalisation.
    let mine = text.replace("\"act\": \"relu\"", "\"act\": \"relu6\"").replace("\"fc\"", "\"head\"");
    let mine = mine.replace("\"resnet_tiny\"", "\"mine\"").replace("\"mean\": [0.5, ", "\"mean\": [0.4, ");
    assert_ne!(mine, text);
    fs::write(&changed, &mine).unwrap();
    let (run, data) = (outputs.text("run"), data());
    let train = ["finetune", "--model", &changed, "--data", &data, "--out", &run, "--epochs", "1", "--batch", "8"];
    assert!(stdout(&train).starts_with("mine at 16 pixels"));
    let best = outputs.path("run").join("best.safetensors");
    let best = best.to_str().unwrap();
    // Its weights need no file beside them.
    let inspected = json(&["inspect", best, "--json"]);
    assert_eq!(inspected["model"], "mine");
    let kinds: Vec<&str> =
        inspected["layers"].as_array().unwrap().iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"relu6") && !kinds.contains(&"relu"), "{kinds:?}");
    assert!(stdout(&["inspect", best]).contains("graph: the network's own; --graph prints it"));
    assert_eq!(stdout(&["inspect", best, "--graph"]), mine);
    let eval = |more: &[&str]| json(&[&["eval", "--weights", best, "--data", &data, "--json"], more].concat());
    assert_eq!(eval(&[])["loss"], eval(&["--model", &changed])["loss"]);
    assert_ne!(eval(&[])["loss"], json(&["eval", "--weights", &weights_file(), "--data", &data, "--json"])["loss"]);
    fails_at_length(&["eval", "--weights", best, "--data", &data, "--model", "resnet_tiny"], "does not fit the model");
    assert!(stdout(&["finetune", "--resume", &run, "--epochs", "1"]).contains("mine at 16 pixels"));

    // Every other command that writes weights keeps the graph.
    let (stepped, again) = (outputs.text("stepped.safetensors"), outputs.text("again.safetensors"));
    stdout(&["step", "--model", &changed, "--inputs", &inputs_file(), "--out", &stepped]);
    assert_eq!(json(&["inspect", &stepped, "--json"])["model"], "mine");
    stdout(&["step", "--weights", &stepped, "--inputs", &inputs_file(), "--out", &again, "--policy", "bn-only"]);
    assert_eq!(json(&["inspect", &again, "--json"])["layers"], inspected["layers"]);
    stdout(&["recalibrate", "--weights", best, "--data", &data, "--out", &again, "--batch", "5", "--force"]);
    assert_eq!(json(&["inspect", &again, "--json"])["model"], "mine");
    stdout(&["fold", "--weights", best, "--out", &again, "--force"]);
    let folded = json(&["inspect", &again, "--json"]);
    assert!(folded["layers"].as_array().unwrap().iter().all(|layer| layer["kind"] != "bn"));
    assert_eq!(json(&["eval", "--weights", &again, "--data", &data, "--json"])["top1"], eval(&[])["top1"]);

    fails(&["inspect", "--model", &outputs.text("none.json")], "cannot read");
    fs::write(&file, text.replace("\"layer1.0.conv1\", \"op\"", "\"layer1.0.conv1\", \"po\"")).unwrap();
    fails(&["plan", "--model", &file], "same.json: layer `layer1.0.conv1`: `op` is missing");
    fails(&["inspect", "--model", "mine", "--graph"], "unknown model `mine`");
}

#[test]
fn onnx_is_read_like_any_weights_file() {
    let outputs = Outputs::new();
    let (weights, onnx, data) = (trained_file(), outputs.text("net.onnx"), data());
    stdout(&["fold", "--weights", &weights, "--out", &onnx, "--no-fold"]);
    let eval = |weights: &str| json(&["eval", "--weights", weights, "--data", &data, "--json"]);
    let (of_file, of_onnx) = (eval(&weights), eval(&onnx));
    assert_eq!((&of_onnx["model"], &of_onnx["top1"]), (&Value::from("net"), &of_file["top1"]));
    assert_eq!(of_onnx["loss"], of_file["loss"], "the weights are the same, and so is what is done to images");
    let layers = |file: &str| json(&["inspect", file, "--json"])["layers"].clone();
    assert_eq!(layers(&onnx), layers(&weights));

    // Trained, it is a file of its own.
    let run = outputs.text("run");
    let train = ["finetune", "--weights", &onnx, "--data", &data, "--out", &run, "--epochs", "1", "--batch", "8"];
    stdout(&[&train[..], &["--policy", "keras-guide"]].concat());
    let last = outputs.path("run").join("last.safetensors");
    let last = last.to_str().unwrap();
    assert_eq!(json(&["inspect", last, "--json"])["layers"], layers(&onnx));
    assert_eq!(eval(last)["model"], "net");
    let back = outputs.text("back.onnx");
    stdout(&["fold", "--weights", last, "--out", &back, "--no-fold"]);
    assert_eq!(eval(&back)["loss"], eval(last)["loss"]);

    // Others' files; one has no batch norms, and both have five classes.
    let golden = |name: &str| format!("{}/tests/golden/onnx/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let resnet = golden("resnet");
    let output = thawline(&["inspect", &resnet, "--json"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("note: ") && stderr.contains("ImageNet's mean"), "{stderr}");
    let stepped = outputs.text("stepped.safetensors");
    let step = |file: &str, more: &[&str]| {
        let args = ["step", "--weights", file, "--inputs", &inputs_file(), "--out", &stepped, "--force"];
        stdout(&[&args[..], more].concat())
    };
    for policy in ["full", "bn-only", "head", "full-frozen-bn"] {
        let loss = step(&resnet, &["--classes", "10", "--policy", policy, "--check"]);
        assert!(loss.contains("\"step\":1"), "{loss}");
    }
    assert_eq!(json(&["inspect", &stepped, "--json"])["classes"], 10);
    step(&golden("resnet_folded"), &["--classes", "10", "--policy", "head"]);
    step(&golden("mobile"), &["--classes", "10", "--policy", "full"]);
    // Its graph alone.
    let seeded = json(&["inspect", "--model", &golden("lenet"), "--json"]);
    assert_eq!((&seeded["size"], &seeded["classes"]), (&serde_json::json!([18, 18]), &Value::from(5)));
    fails(&["inspect", "--model", &golden("lenet"), "--size", "32"], "cannot take 1 images of 32×32 pixels");

    fs::write(outputs.path("cut.onnx"), &fs::read(&onnx).unwrap()[..5000]).unwrap();
    fails(&["eval", "--weights", &outputs.text("cut.onnx"), "--data", &data], "damaged or not a real ONNX file");
    fails(&["inspect", &outputs.text("none.onnx")], "cannot read");
}

#[test]
fn finetune_then_eval() {
    let outputs = Outputs::new();
    let (weights, data, out) = (weights_file(), data(), outputs.text("run"));
    let train =
        ["finetune", "--weights", &weights, "--data", &data, "--out", &out, "--policy", "head", "--epochs", "1"];
    stdout(&[&train[..], &["--batch", "8", "--seed", "1"]].concat());
    let best = outputs.path("run").join("best.safetensors");
    let best = best.to_str().unwrap();
    let metadata = &json(&["inspect", best, "--json"])["file"]["metadata"];
    assert_eq!(metadata["model"], "resnet_tiny");
    let eval = json(&["eval", "--weights", best, "--data", &data, "--json"]);
    assert_eq!(eval["samples"], 10);
    assert!(stdout(&["predict", "--weights", best, "--top", "1", &data]).contains(&class_names()[0]));
}

#[test]
fn finetune_on_uneven_classes() {
    let outputs = Outputs::new();
    // Of the first class eight images, of all others one.
    let uneven = outputs.path("uneven");
    let names = class_names();
    for split in ["train", "val"] {
        for (class, name) in names.iter().enumerate() {
            let (from, to) = (Path::new(&data()).join(split).join(name), uneven.join(split).join(name));
            fs::create_dir_all(&to).unwrap();
            let image = fs::read_dir(from).unwrap().next().unwrap().unwrap();
            for copy in 0..if class == 0 { 8 } else { 1 } {
                fs::copy(image.path(), to.join(format!("{copy}.png"))).unwrap();
            }
        }
    }
    let (weights, data) = (weights_file(), uneven.to_str().unwrap().to_owned());
    let train = |out: &str, more: &[&str]| {
        let args = ["finetune", "--weights", &weights, "--data", &data, "--policy", "head", "--batch", "8"];
        let out = ["--out", &outputs.text(out)].map(String::from);
        let all: Vec<String> = args.iter().chain(more).map(|arg| (*arg).to_owned()).chain(out).collect();
        thawline(&all.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    };
    let text = |output: &std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let [out, err] = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned());
        (out, err)
    };

    let (out, err) = text(&train("plain", &["--epochs", "1"]));
    assert!(out.contains(&format!("training images by class: {} 8, {} 1", names[0], names[1])), "{out}");
    assert!(err.contains("8 times the images") && err.contains("--class-weights balanced"), "{err}");
    assert!(out.contains(" balanced "), "{out}");
    let table = fs::read_to_string(outputs.path("plain").join("metrics.csv")).unwrap();
    assert!(table.lines().next().unwrap().ends_with(",val_balanced"), "{table}");

    // Nothing learns, so the first epoch is no better than none.
    let (out, err) = text(&train("early", &["--epochs", "5", "--patience", "1", "--lr", "0", "--sampler", "balanced"]));
    assert!(out.contains("ended after epoch 1 of 5: 1 epoch without a better one"), "{out}");
    assert!(out.contains("classes are shown equally often") && !err.contains("times the images"), "{out}{err}");

    let file = outputs.text("weights.toml");
    let lines: Vec<String> = names.iter().map(|name| format!("{name:?} = 2")).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let (out, _) = text(&train("file", &["--epochs", "1", "--class-weights", &file]));
    assert!(out.contains("classes have weights in the loss"), "{out}");
    let (out, err) = text(&train("both", &["--epochs", "1", "--class-weights", "balanced", "--sampler", "balanced"]));
    assert!(err.contains("warning: --class-weights balanced and --sampler balanced"), "{out}{err}");

    // A weight of 2 for all is none.
    let weights_of = |run: &str| fs::read(outputs.path(run).join("last.safetensors")).unwrap();
    assert!(weights_of("file") == weights_of("plain") && weights_of("both") != weights_of("plain"));

    // The settings go on with a run; others are refused.
    let run = outputs.text("early");
    let resumed = stdout(&["finetune", "--resume", &run]);
    assert!(resumed.contains("ended after epoch 1 of 5"), "{resumed}");
    fails(&["finetune", "--resume", &run, "--patience", "3"], "`patience` is 3 now");
    fails(&["finetune", "--resume", &run, "--sampler", "shuffled"], "`sampler` is not set now");

    fs::write(&file, lines[1..].join("\n")).unwrap();
    let refused = train("no", &["--class-weights", &file]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains(&format!("it has no weight for `{}`", names[0])), "{message}");
    assert!(!outputs.path("no").exists());
}

#[test]
fn compare_writes_what_it_found_however_it_ends() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (whole, killed) = (path("whole"), path("killed"));
    let (data, weights) = (data(), weights_file());
    let args = |out| {
        let mut args = vec!["compare", "--weights", &weights, "--data", &data, "--out", out, "--batch", "8"];
        args.extend(["--policy", "head", "--policy", "full-then-frozen-bn", "--seeds", "2", "--epochs", "2"]);
        args
    };
    let shown = stdout(&args(&whole));
    for expected in [
        "2 policies × 2 seeds",
        "head",
        "full-then-frozen-bn",
        "val top-1",
        "the best of 6 learning rates",
        "report.html",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let read = |folder: &str, file: &str| fs::read_to_string(Path::new(folder).join(file)).unwrap();
    assert!(read(&whole, "report.html").to_lowercase().starts_with("<!doctype html>"));
    assert_eq!(read(&whole, "compare.csv").lines().count(), 1 + 2 * 2 * 3);
    let timings: Value = serde_json::from_str(&read(&whole, "timings.json")).unwrap();
    assert_eq!(timings["arms"][0]["cached"], true);

    // Killed again and again, each time a little later, until it gets to the end.
    let mut kills = 0;
    loop {
        let resumed = ["compare", "--resume", &killed];
        let begun = Path::new(&killed).join("compare.toml").exists();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_thawline"));
        command.args(if begun { &resumed[..] } else { &[] });
        if !begun {
            command.args(args(&killed));
        }
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(400 + 200 * kills));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "after {kills} kills");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0, "it was never killed");
    assert_eq!(read(&killed, "compare.json"), read(&whole, "compare.json"));
    assert_eq!(read(&killed, "compare.csv"), read(&whole, "compare.csv"));

    fails(&args(&whole), "not empty");
    fails(&["compare", "--resume", &path("nothing")], "no comparison");
    refused(&["compare", "--resume", &whole, "--policy", "head"], "cannot be used with");
    refused(&["compare", "--resume", &whole, "--epochs", "3"], "cannot be used with");
    let other = path("other");
    let mut twice = args(&other);
    twice.extend(["--policy", "head"]);
    fails(&twice, "two policies are called `head`");
    let mut ghosts = args(&other);
    ghosts.extend(["--policy", "full-ghost", "--set", "kind:bn -> domain=ghost(3)"]);
    fails(&ghosts, "ghost(3)");
    let mut none = args(&other);
    none.extend(["--train-images", "9"]);
    fails(&none, "number of training images");
    assert!(!Path::new(&other).exists(), "nothing was written");
}

#[test]
fn recalibrate_gives_a_file_other_statistics() {
    let outputs = Outputs::new();
    let (weights, data, out) = (weights_file(), data(), outputs.text("new.safetensors"));
    let args = ["recalibrate", "--weights", &weights, "--data", &data, "--out", &out, "--batch", "8"];
    let report = json(&[&args[..], &["--layers", "from:layer3", "--max-images", "20", "--json"]].concat());
    let expected = ["batches", "device", "images", "layers", "method", "model", "out", "skipped", "validation", "var"];
    assert_eq!(keys(&report), expected);
    assert_eq!((&report["images"], &report["batches"], &report["method"]), (&20.into(), &3.into(), &"precise".into()));
    assert_eq!(keys(&report["validation"]), ["after", "before", "samples"]);
    let drift = |layer: &str, when: &str| {
        let layers = report["layers"].as_array().unwrap();
        layers.iter().find(|l| l["name"] == layer).unwrap()[when].as_f64().unwrap()
    };
    assert!(drift("layer3.0.bn1", "drift_after") < 0.1 * drift("layer3.0.bn1", "drift_before"));
    assert_eq!(drift("layer1.0.bn1", "drift_after"), drift("layer1.0.bn1", "drift_before"));
    let (before, after) = (StateDict::load(&weights).unwrap(), StateDict::load(&out).unwrap());
    assert_only_preprocessing_is_new(&before, &after);
    for (name, tensor) in &after.tensors {
        let estimated = name.starts_with("layer3")
            && ["running_mean", "running_var", "num_batches_tracked"].iter().any(|part| name.ends_with(part));
        assert_eq!(*tensor != before.tensors[name], estimated, "{name}");
    }

    // The same as what a run ends with, given its order of the images.
    let run = outputs.text("run");
    let train = ["finetune", "--weights", &weights, "--data", &data, "--out", &run, "--epochs", "1", "--batch", "8"];
    let text = stdout(&[&train[..], &["--seed", "3", "--then", "recalibrate"]].concat());
    assert!(text.lines().any(|line| line.starts_with("recalibrated  ") && line.contains("val loss")), "{text}");
    let (last, by_run) = (format!("{run}/last.safetensors"), format!("{run}/recalibrated.safetensors"));
    let args =
        ["recalibrate", "--weights", &last, "--data", &data, "--out", &out, "--batch", "8", "--seed", "3", "--force"];
    let text = stdout(&args);
    assert!(text.contains("validation top-1") && text.contains("drift before"), "{text}");
    assert_eq!(fs::read(&out).unwrap(), fs::read(by_run).unwrap());

    // Other methods give other statistics.
    let of = |method: &[&str]| {
        stdout(&[&args[..], method].concat());
        floats(&StateDict::load(&out).unwrap(), "layer3.1.bn2.running_var")
    };
    let all = [&[][..], &["--method", "update-bn"], &["--method", "adabn"], &["--var", "biased"]].map(of);
    assert!((0..4).all(|i| (i + 1..4).all(|j| all[i] != all[j])));

    // Labels are not needed.
    let classes = class_names();
    let two = outputs.path("two");
    for class in &classes[..2] {
        fs::create_dir_all(two.join(class)).unwrap();
        let image = fs::read_dir(Path::new(&data).join("val").join(class)).unwrap().next().unwrap().unwrap();
        fs::copy(image.path(), two.join(class).join("1.png")).unwrap();
    }
    let two = two.to_str().unwrap();
    let output =
        thawline(&["recalibrate", "--weights", &weights, "--data", two, "--out", &out, "--split", "all", "--force"]);
    let output = { output }.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("accuracy is not measured"), "{stderr}");

    fs::write(&out, "precious").unwrap();
    let args = ["recalibrate", "--weights", &weights, "--data", &data, "--out", &out, "--force"];
    fails(&[&args[..], &["--layers", "kind:conv"]].concat(), "of kind bn");
    fails(&[&args[..], &["--layers", "from:layer7"]].concat(), "no layer `layer7`");
    fails(
        &["recalibrate", "--weights", &weights, "--data", &data, "--out", &outputs.text("no/where.safetensors")],
        "does not exist",
    );
    refused(&[&args[..], &["--method", "magic"]].concat(), "adabn");
    let other = |weights: &str, out: &str, expected: &str| {
        fails(&["recalibrate", "--weights", weights, "--data", &data, "--out", out, "--force"], expected);
    };
    other(&weights, &outputs.text("new.pth"), "read, not written; write .safetensors");
    other(&weights, &outputs.text("new.bin"), "must end in .safetensors");
    other(&weights, &weights, "the same file");
    let folded = outputs.text("folded.safetensors");
    stdout(&["fold", "--weights", &trained_file(), "--out", &folded]);
    other(&folded, &out, "the network has no batch norms");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
}

#[test]
fn doctor_of_images_of_other_classes_names_a_command_that_runs() {
    let outputs = Outputs::new();
    let data = outputs.text("far");
    write_sample_data(SampleSet::DigitsFar, Path::new(&data), &SampleOptions::default()).unwrap();
    let trained = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");
    let args = ["doctor", "--weights", trained, "--data", &data, "--max-images", "64", "--batch", "16", "--quiet"];
    let shown = stdout(&args);
    let command = shown
        .lines()
        .find(|line| line.trim_start().starts_with("thawline finetune"))
        .unwrap_or_else(|| panic!("{shown}"));
    assert!(command.ends_with("--then recalibrate --head new"), "{shown}");
}

#[test]
fn a_warm_up_beyond_the_run_is_warned_of() {
    let outputs = Outputs::new();
    let (weights, data, out) = (weights_file(), data(), outputs.text("run"));
    let args = [
        "finetune",
        "--weights",
        &weights,
        "--data",
        &data,
        "--out",
        &out,
        "--epochs",
        "1",
        "--batch",
        "8",
        "--policy",
        "head",
    ];
    let warned = |warmup: &str| {
        let output = thawline(&[&args[..], &["--warmup", warmup]].concat()).output().unwrap();
        fs::remove_dir_all(&out).unwrap();
        String::from_utf8(output.stderr).unwrap().contains("is longer than the whole run of 5 steps")
    };
    assert_eq!(["5", "6"].map(warned), [false, true]);
}

#[test]
fn doctor_names_what_is_wrong_and_the_command_that_helps() {
    let outputs = Outputs::new();
    let data = data();
    let trained = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");
    let doctor = |weights: &str, more: &[&str]| {
        let args = ["doctor", "--weights", weights, "--data", &data, "--split", "all", "--batch", "1,2,16"];
        [&args[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let text = |args: Vec<String>| stdout(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let healthy = text(doctor(trained, &[]));
    assert!(healthy.starts_with("nothing is wrong that 50 images") && !healthy.contains("layer3.1.bn2"), "{healthy}");
    let healthy = text(doctor(trained, &["--layers"]));
    for expected in ["layer3.1.bn2", "those of batches of 16", "one image at a time", "nothing is wrong that 50 images"]
    {
        assert!(healthy.contains(expected), "{healthy}");
    }

    let mut state = StateDict::load(trained).unwrap();
    for (name, tensor) in &mut state.tensors {
        if let TensorData::F32(values) = &mut tensor.data {
            let value = if name.ends_with("running_mean") { 0.0 } else { 1.0 };
            if name.contains("running_") {
                values.fill(value);
            }
        }
    }
    let reset = outputs.text("it's reset.safetensors");
    state.save(&reset).unwrap();
    let args = doctor(&reset, &["--json"]);
    let report = json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(keys(&report), ["checkup", "device", "findings", "labelled", "model"]);
    let finding = &report["findings"][0];
    assert_eq!(keys(finding), ["advice", "command", "confidence", "evidence", "fault", "remedy"]);
    assert_eq!((&finding["fault"], &finding["confidence"]), (&"reset".into(), &"sure".into()));
    assert_eq!(report["checkup"]["layers"].as_array().unwrap().len(), 15);
    let shown = text(doctor(&reset, &[]));
    assert!(shown.contains("statistics were reset (sure)"), "{shown}");
    let command = finding["command"].as_str().unwrap();
    assert!(shown.contains(command), "{shown}");
    assert!(command.starts_with("thawline recalibrate --weights '") && command.contains(r"it'\''s reset"), "{command}");

    // With the options that it ran with, and to a new file.
    fs::write(outputs.path("recalibrated.safetensors"), "precious").unwrap();
    let options = ["--size", "20", "--seed", "3", "--val-fraction", "0.3", "--model", "resnet_tiny", "--skip-broken"];
    let here = doctor(&reset, &options);
    let mut here = thawline(&here.iter().map(String::as_str).collect::<Vec<_>>());
    let here = here.current_dir(outputs.dir.path()).output().unwrap();
    let (shown, warning) = (String::from_utf8(here.stdout).unwrap(), String::from_utf8(here.stderr).unwrap());
    assert!(warning.contains("trained at 16 px: statistics at 20 px differ"), "{warning}");
    let command = shown.lines().find(|line| line.contains("thawline recalibrate")).unwrap();
    for option in ["--split all", "--size 20", "--seed 3", "--val-fraction 0.3", "--model resnet_tiny", "--skip-broken"]
    {
        assert!(command.contains(option), "{command}");
    }
    assert!(command.contains("--out recalibrated-2.safetensors"), "{command}");

    // One image says nothing of statistics.
    let few = text(doctor(trained, &["--max-images", "1"]));
    assert!(few.contains("1 image is too few to judge statistics: 16 or more are needed"), "{few}");

    // What it says helps.
    let out = outputs.text("recalibrated.safetensors");
    stdout(&["recalibrate", "--weights", &reset, "--data", &data, "--split", "all", "--out", &out, "--force"]);
    assert!(text(doctor(&out, &[])).contains("nothing is wrong"));
    refused(&["doctor", "--weights", trained, "--data", &data, "--batch", "1,0"], "at least 1");
    fails(&["doctor", "--weights", &outputs.text("none"), "--data", &data], "cannot read");
}

#[test]
fn sample_data_is_written_once() {
    let outputs = Outputs::new();
    let dir = outputs.text("shapes");
    let args = ["sample-data", "shapes", &dir, "--size", "8", "--per-class", "5", "--seed", "3"];
    assert!(stdout(&args).contains("40 images to train on, 10 to validate"));
    fails(&args, "not an empty folder");
    refused(&["sample-data", "cats", &dir], "digits-far");
    fails(&["sample-data", "shapes", &outputs.text("new"), "--size", "4"], "4");
}

#[test]
fn bench_prints_what_scripts_read() {
    let args = ["bench", "--model", "resnet_tiny", "--batch", "2", "--repeat", "2"];
    let bench = json(&[&args[..], &["--policy", "head", "--policy", "full", "--json"]].concat());
    let results = bench["results"].as_array().unwrap();
    assert!(bench["device"].is_string());
    let policies: Vec<&Value> = results.iter().map(|result| &result["policy"]).collect();
    assert_eq!(policies, ["head", "full"]);
    for key in [
        "model",
        "policy",
        "batch",
        "size",
        "inference_ms",
        "step_ms",
        "first_step_ms",
        "images_per_s",
        "planned_bytes",
        "kept_bytes",
        "allocated_bytes",
        "kernels",
        "inference_kernels",
    ] {
        assert!(results.iter().all(|result| !result[key].is_null()), "{key}: {bench}");
    }
    // Calls of a kernel, in all its variants.
    let calls = |result: &Value, name: &str| -> u64 {
        let kernels = result["kernels"].as_array().unwrap().iter();
        kernels.filter(|k| k["kernel"].as_str().unwrap().starts_with(name)).map(|k| k["calls"].as_u64().unwrap()).sum()
    };
    assert_eq!(calls(&results[0], "conv2d_weight_grad"), 1, "only the head's");
    assert_eq!(calls(&results[0], "conv2d_input_grad"), 0);
    assert!(calls(&results[1], "conv2d_weight_grad") > 10);
    assert!(results[0]["kept_bytes"].as_u64() < results[1]["kept_bytes"].as_u64());
    let table = stdout(&args);
    assert!(table.contains("full") && table.contains("conv2d_forward"), "{table}");

    let kernels = json(&["bench", "--kernels", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1", "--json"]);
    let convolutions = kernels["convolutions"].as_array().unwrap();
    let measured = |k: &Value| k["of_roofline"].as_f64().is_some_and(|part| part > 0.0) || k["ms"].is_null();
    let all = results.iter().flat_map(|result| result["kernels"].as_array().unwrap());
    assert!(all.clone().all(measured) && all.count() > 10, "{bench}");
    let expected = [
        "by_groups",
        "forward",
        "groups",
        "input",
        "input_grad",
        "kernel",
        "layers",
        "output",
        "stride",
        "weight_grad",
    ];
    assert_eq!(keys(&convolutions[0]), expected);
    assert!(convolutions.iter().all(|c| c["weight_grad"]["gflops"].as_f64() > Some(0.0)));
    fails(&["bench", "--kernels", "--model", "resnet_tiny", "--batch", "1,2"], "one --batch");
}

#[test]
fn bench_measures_a_grid_and_compares_it() {
    let outputs = Outputs::new();
    let (out, page) = (outputs.text("here.json"), outputs.text("here.html"));
    // Four pixels per side are one at the end, over which a batch of one has no statistics.
    let args =
        ["bench", "--model", "resnet_tiny", "--size", "4", "--repeat", "3", "--policy", "full", "--policy", "head"];
    let grid = ["--batch", "1,2", "--thaw", "none", "--thaw", "layer3"];
    let bench = json(&[&args[..], &grid, &["--out", &out, "--page", &page, "--json"]].concat());
    let results = bench["results"].as_array().unwrap();
    let labels: Vec<String> =
        results.iter().map(|r| format!("{} {} {}", r["policy"], r["thaw"], r["batch"]).replace('"', "")).collect();
    let expected = [
        "full null 1",
        "full null 2",
        "full layer3 1",
        "full layer3 2",
        "head null 1",
        "head null 2",
        "head layer3 1",
        "head layer3 2",
    ];
    assert_eq!(labels, expected);
    for refused in [&results[0], &results[2]] {
        assert!(refused["error"].as_str().unwrap().contains("a single value"), "{refused}");
        assert!(refused["step_ms"].is_null());
    }
    assert_eq!(results[3]["same_as"], "full");
    assert_eq!(results[3]["step_ms"], results[1]["step_ms"]);
    for result in results.iter().filter(|result| result["error"].is_null()) {
        assert_eq!(keys(&result["step_runs_ms"]), ["count", "least", "lower", "most", "upper"]);
        assert_eq!(result["step_runs_ms"]["count"], 3);
        let step = &result["predicted"]["step"];
        let expected = ["calls", "flops", "kept_bytes", "kernels", "moved_bytes", "ms", "planned_bytes"];
        assert_eq!(keys(step), expected);
        assert!(step["ms"].as_f64() > result["predicted"]["inference"]["ms"].as_f64());
        assert_eq!(step["planned_bytes"], result["planned_bytes"]);
        let calls =
            |kernels: &Value| kernels.as_array().unwrap().iter().map(|k| k["calls"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(calls(&step["kernels"]), calls(&result["kernels"]), "the plan that is priced is the one that runs");
    }
    let flops = |result: &Value| result["predicted"]["step"]["flops"].as_u64().unwrap();
    assert!(flops(&results[5]) < flops(&results[7]) && flops(&results[7]) < flops(&results[1]));
    for key in ["flops_per_s", "bytes_per_s"] {
        assert!(bench["roofline"][key].as_f64() > Some(0.0), "{key}");
    }

    // What --out wrote is what --json printed, but for comparisons.
    let mut printed = bench.clone();
    assert_eq!(printed.as_object_mut().unwrap().remove("against"), Some(serde_json::json!([])));
    let written: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(written, printed);
    let version = (&written["thawline"], &written["build"].is_string());
    assert_eq!(version, (&env!("CARGO_PKG_VERSION").into(), &true));
    assert!(fs::read_to_string(&page).unwrap().contains("resnet_tiny on"));

    // Against itself in part, and against a file of an older version, which has nothing in common.
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/2026-11-23-llvmpipe.json");
    let again =
        [&args[..], &["--force", "--batch", "2", "--against", &out, "--against", old.to_str().unwrap()]].concat();
    let compared = json(&[&again[..], &["--json"]].concat());
    let [itself, older] = &compared["against"].as_array().unwrap()[..] else { panic!("two files") };
    let pairs = itself["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 2);
    assert_eq!((&pairs[0]["policy"], &pairs[1]["policy"]), (&"full".into(), &"head".into()));
    // Memory depends on the variant of the convolutions, which each process chooses by measuring.
    assert!(pairs.iter().all(|pair| pair["step"]["clear"].is_boolean() && pair["allocated"].as_f64() > Some(0.0)));
    assert_eq!(pairs[1]["step"]["there_ms"], results[5]["step_ms"]);
    assert_eq!((&itself["only_here"], &itself["only_there"]), (&0.into(), &4.into()));
    assert!(older["pairs"].as_array().unwrap().is_empty());
    assert!(older["untold"].as_array().unwrap().contains(&"driver".into()));

    let table = stdout(&again);
    assert!(table.contains("measured over predicted") && table.contains(&format!("against {out}")), "{table}");
}

#[test]
fn bench_refuses_before_it_measures() {
    let outputs = Outputs::new();
    let bench = |args: &[&str], expected: &str| {
        fails(&[&["bench", "--model", "resnet_tiny", "--policy", "head"][..], args].concat(), expected)
    };
    bench(&["--thaw", "layer33"], "layer33");
    bench(&["--size", "4", "--batch", "1", "--set", "kind:bn -> stats=batch, update=ema(0.9)"], "a single value");
    bench(&["--out", &outputs.text("nowhere/out.json")], "does not exist");
    let same = outputs.text("same");
    bench(&["--out", &same, "--page", &same], "the same file");
    bench(&["--against", &outputs.text("missing.json")], "cannot read");
    bench(&["--against", &inputs_file()], "bench --out");
    let empty = outputs.text("empty.json");
    bench(&["--page", &outputs.text("./empty.json"), "--against", &empty], "the same file");
    let weights = weights_file();
    bench(&["--out", &weights, "--weights", &weights], "the same file");
    bench(&["--page", &weights, "--weights", &weights], "the same file");
    fs::write(outputs.path("empty.json"), "{}").unwrap();
    bench(&["--against", &outputs.text("empty.json")], "bench --out");
    assert!(!outputs.path("same").exists());
    refused(&["bench", "--batch", "1,0"], "at least 1");
    refused(&["bench", "--time-limit", "0"], "at least 1");
    for option in [&["--thaw", "layer3"][..], &["--optimizer", "sgd"], &["--nesterov"], &["--label-smoothing", "0.1"]] {
        refused(&[&["bench", "--kernels"], option].concat(), "cannot be used with");
    }
}

#[test]
fn bad_weights_are_named_and_nothing_is_overwritten() {
    let outputs = Outputs::new();
    let precious = outputs.path("out.safetensors");
    fs::write(&precious, "precious").unwrap();
    let bytes = fs::read(weights_file()).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(outputs.path(name), bytes).unwrap();
    write("truncated", &bytes[..bytes.len() - 100]);
    write("text", b"these are no weights");
    write("hostile", &[&u64::MAX.to_le_bytes()[..], b"{"].concat());
    write("empty", b"");
    let edited = |name: &str, edit: &dyn Fn(&mut StateDict)| {
        let mut state = weights();
        edit(&mut state);
        state.save(outputs.path(name)).unwrap();
    };
    edited("renamed", &|state| {
        let tensor = state.tensors.remove("layer2.0.conv1.weight").unwrap();
        state.tensors.insert("layer2.0.convolution.weight".into(), tensor);
    });
    edited("misshapen", &|state| {
        state.tensors.insert("layer2.0.bn1.bias".into(), FileTensor::f32([31], vec![0.0; 31]));
    });

    let step = |weights: &str| {
        let (inputs, out) = (inputs_file(), precious.to_str().unwrap().to_owned());
        let weights = outputs.text(weights);
        ["step", "--force", "--weights", &weights, "--model", "resnet_tiny", "--inputs", &inputs, "--out", &out]
            .map(String::from)
    };
    for (file, expected) in [
        ("truncated", "truncated"),
        ("text", "its content is none of safetensors, PyTorch, Keras, TensorFlow.js or ONNX"),
        ("hostile", "hostile"),
        ("empty", "it is empty"),
        ("missing", "cannot read"),
        (".", "cannot read"),
    ] {
        fails(&step(file).each_ref().map(String::as_str), expected);
    }
    // These list every tensor that does not fit, one a line.
    let message = fails_at_length(&step("renamed").each_ref().map(String::as_str), "layer2.0.conv1.weight");
    assert!(message.contains("layer2.0.convolution.weight"), "{message}");
    fails_at_length(&step("misshapen").each_ref().map(String::as_str), "layer2.0.bn1.bias");
    fails(
        &["eval", "--model", "resnet18", "--weights", &weights_file(), "--data", &data()],
        "holds the weights of resnet_tiny",
    );
    fails(&["plan", "--weights", &inputs_file()], "no network that is known");
    fails(&["plan"], "--model");
    fails(&["plan", "--model", "resnet19"], "resnet18");
    assert_eq!(fs::read(precious).unwrap(), b"precious");
}

#[test]
fn bad_data_is_named() {
    let outputs = Outputs::new();
    let eval = |dir: &str| {
        let (weights, dir) = (weights_file(), outputs.text(dir));
        ["eval", "--weights", &weights, "--data", &dir].map(String::from)
    };
    let image = |from: &str, name: &str| {
        let path = outputs.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let class = class_names()[0].clone();
        let found = fs::read_dir(Path::new(&data()).join("val").join(class)).unwrap().next().unwrap().unwrap();
        let bytes = fs::read(found.path()).unwrap();
        fs::write(path, if from == "broken" { &bytes[..bytes.len() / 2] } else { &bytes[..] }).unwrap();
    };
    fs::create_dir(outputs.path("empty")).unwrap();
    fails(&eval("empty").each_ref().map(String::as_str), "no class folders");
    fails(&eval("missing").each_ref().map(String::as_str), "cannot read");
    image("whole", "one/only/1.png");
    image("whole", "one/only/2.png");
    fails(&eval("one").each_ref().map(String::as_str), "has folders for 1 class,");

    for class in 0..10 {
        image("whole", &format!("ten/{class}/1.png"));
    }
    image("broken", "ten/3/2.png");
    let all = eval("ten");
    let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
    all.extend(["--split", "all"]);
    fails(&all, "2.png");
    all.extend(["--skip-broken", "--json", "--quiet"]);
    let output = thawline(&all).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("2.png"), "the broken image is named");
    let eval: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&eval["samples"], &eval["skipped"]), (&10.into(), &1.into()));
    fails(&["predict", "--weights", &weights_file(), &outputs.text("ten/3/2.png")], "2.png");
    fails(&["predict", "--weights", &weights_file(), &outputs.text("ten/3/9.png")], "9.png");
}

#[test]
fn bad_policies_are_explained() {
    let outputs = Outputs::new();
    let plan = |more: &[&str], expected: &str| {
        fails(&[&["plan", "--model", "resnet_tiny"], more].concat(), expected);
    };
    plan(&["--policy", "heed"], "did you mean `head`");
    plan(&["--set", "name:layer9.* -> weights=train"], "layer9");
    plan(&["--set", "kind:bn -> weights=train"], "weights=train");
    plan(&["--set", "kind:bn -> stats=batch, update=off"], "update=off");
    plan(&["--policy", "full-ghost", "--batch", "12"], "domain=ghost(8)");
    plan(&["--set", "kind:bn"], "->");
    plan(&["--batch", "1", "--size", "2"], "single value");
    let file = outputs.path("broken.toml");
    fs::write(&file, "base = \"head\"\nrules = 3\n").unwrap();
    plan(&["--policy", file.to_str().unwrap()], "line 2");
    let frozen = outputs.path("frozen.toml");
    fs::write(&frozen, "rules = [\"kind:conv -> weights=frozen\"]\n").unwrap();
    fails(&["bench", "--model", "resnet_tiny", "--policy", frozen.to_str().unwrap()], "freezes the whole network");
}

#[test]
fn bad_inputs_and_outputs_of_step() {
    let outputs = Outputs::new();
    let weights = weights_file();
    let step = |inputs: &str, out: &str, more: &[&str], expected: &str| {
        fails(
            &[&["step", "--force", "--weights", &weights, "--inputs", inputs, "--out", out], more].concat(),
            expected,
        );
    };
    let out = outputs.text("out.safetensors");
    fs::write(&out, "precious").unwrap();
    let edited = |name: &str, edit: &dyn Fn(&mut StateDict)| {
        let mut state = inputs(IMAGES, 10);
        edit(&mut state);
        state.save(outputs.path(name)).unwrap();
        outputs.text(name)
    };
    let file = edited("no-labels", &|state| drop(state.tensors.remove("labels")));
    step(&file, &out, &[], "no tensor `labels`");
    let file =
        edited("few-labels", &|state| drop(state.tensors.insert("labels".into(), FileTensor::i64([1], vec![0]))));
    step(&file, &out, &[], "integers of [5]");
    let file = edited("label-10", &|state| {
        state.tensors.insert("labels".into(), FileTensor::i64([IMAGES], vec![0, 1, 2, 10, 3]));
    });
    step(&file, &out, &[], "has 10, but the network has 10 classes");
    let file = edited("flat", &|state| drop(state.tensors.insert("images".into(), FileTensor::f32([4], vec![0.0; 4]))));
    step(&file, &out, &[], "[N, 3, height, width]");

    let inputs = inputs_file();
    step(&inputs, &out, &["--lr", "1e30", "--steps", "3"], "nothing was written");
    step(&inputs, &out, &["--grads", &out], "the same file");
    step(&inputs, &out, &["--nesterov"], "--momentum");
    step(&inputs, &out, &["--device", "no such device"], "no device matches");
    step(&inputs, &outputs.text("nowhere/out"), &[], "does not exist");
    step(&inputs, &outputs.text("out.safetensors/out"), &[], "cannot write");
    step(&inputs, outputs.dir.path().to_str().unwrap(), &[], "it is a folder");
    if cfg!(unix) {
        step(&inputs, "/dev/null", &[], "device");
    }
    assert_eq!(fs::read(&out).unwrap(), b"precious");
}

#[test]
fn a_batch_too_large_says_which_fits() {
    let largest = json(&["devices", "--json"])[0]["largest_buffer"].as_u64().unwrap();
    // The first convolution gives 16 channels of f32 a pixel.
    let fits = largest / (64 * 64 * 16 * 4);
    let batch = (fits + 1).to_string();
    let args = ["bench", "--model", "resnet_tiny", "--size", "64", "--policy", "head", "--batch", &batch];
    let message = fails(&args, "a batch of ");
    assert!(message.contains("needs") && message.contains("allows"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_driver_the_message_says_what_to_install() {
    for args in
        [&["devices"][..], &["bench", "--model", "resnet_tiny"], &["bench", "--model", "resnet_tiny", "--device", "0"]]
    {
        let mut command = thawline(args);
        // OpenGL has drivers of its own.
        command.env("WGPU_BACKEND", "vulkan");
        let output =
            command.env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: no GPU driver") && stderr.contains("mesa-vulkan-drivers"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn what_a_file_does_not_tell_apart_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let graph = models::build("mobilenetv3_large_100", 1, (32, 32), 10).unwrap();
    to_state(&graph, &initialise(&graph, 0)).save(&file).unwrap();
    let file = file.to_str().unwrap();
    fails(
        &["inspect", file],
        "holds the weights of mobilenetv3_large_100 or tf_mobilenetv3_large_100, which the file does not tell apart: say \
         which with --model",
    );
    let model = |args: &[&str]| json(&[&["inspect", file, "--json"], args].concat())["model"].clone();
    assert_eq!(model(&["--model", "tf_mobilenetv3_large_100"]), "tf_mobilenetv3_large_100");
    fails(
        &["inspect", file, "--model", "mobilenet_v3_large"],
        "holds the weights of mobilenetv3_large_100 or tf_mobilenetv3_large_100, not of mobilenet_v3_large",
    );
    // As in a folder of the Hugging Face hub.
    fs::write(folder.path().join("config.json"), r#"{"architecture": "tf_mobilenetv3_large_100"}"#).unwrap();
    assert_eq!(model(&[]), "tf_mobilenetv3_large_100");
    // A hostile one tells nothing.
    fs::write(folder.path().join("config.json"), "[".repeat(100_000)).unwrap();
    fails(&["inspect", file], "which the file does not tell apart");
}

/// The weights of [`weights_file`] with other names or values.
fn rewritten(outputs: &Outputs, name: &str, change: impl FnOnce(&mut StateDict)) -> String {
    let mut state = StateDict::load(weights_file()).unwrap();
    change(&mut state);
    state.save(outputs.path(name)).unwrap();
    outputs.text(name)
}

fn rename(state: &mut StateDict, new: impl Fn(&str) -> String) {
    state.tensors = std::mem::take(&mut state.tensors).into_iter().map(|(name, tensor)| (new(&name), tensor)).collect();
}

/// Standard error of a run that must succeed.
fn notes(args: &[&str]) -> String {
    let output = thawline(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {stderr}");
    stderr
}

#[test]
fn what_stands_before_all_names_is_left_off_with_a_note() {
    let outputs = Outputs::new();
    let logits = |weights: &str, more: &[&str]| {
        let out = outputs.text("logits.safetensors");
        let args = ["predict", "--weights", weights, "--inputs", &inputs_file(), "--out", &out, "--force"];
        let notes = notes(&[&args, more].concat());
        (StateDict::load(out).unwrap().tensors, notes)
    };
    let (plain, none) = logits(&weights_file(), &[]);
    assert_eq!(none, "");
    for prefix in ["model.", "net.module.", "backbone.", "encoder.", "model.backbone."] {
        let file = rewritten(&outputs, "prefixed.safetensors", |state| rename(state, |name| format!("{prefix}{name}")));
        for more in [&[][..], &["--model", "resnet_tiny"]] {
            let (prefixed, note) = logits(&file, more);
            assert_eq!(prefixed, plain, "{prefix}");
            assert!(note.contains(&format!("`{prefix}` is left off the names of 92 tensors\n")), "{note}");
        }
    }

    // What is no part of the network is named.
    let file = rewritten(&outputs, "more.safetensors", |state| {
        rename(state, |name| format!("encoder.{name}"));
        state.tensors.insert("projector.weight".into(), FileTensor::f32([2, 2], vec![0.0; 4]));
    });
    let (prefixed, note) = logits(&file, &[]);
    assert_eq!(prefixed, plain);
    assert!(note.contains("left out: projector.weight"), "{note}");

    // Several sets that fit: one is chosen, or it is momentum contrast.
    let doubled = |names: [&str; 2]| {
        let name = format!("{}.safetensors", names[0]);
        rewritten(&outputs, &name, |state| {
            let other = state.tensors.iter().map(|(name, tensor)| {
                let mut tensor = tensor.clone();
                if let TensorData::F32(values) = &mut tensor.data {
                    values.iter_mut().for_each(|value| *value *= 1.5);
                }
                (format!("{}.{name}", names[1]), tensor)
            });
            let other: Vec<_> = other.collect();
            rename(state, |name| format!("{}.{name}", names[0]));
            state.tensors.extend(other);
        })
    };
    let file = doubled(["online", "target"]);
    fails(&["inspect", &file], "begin with `online.`, `target.`: choose one with --weights-set");
    fails(&["inspect", &file, "--model", "resnet_tiny"], "choose one with --weights-set");
    assert_eq!(logits(&file, &["--weights-set", "online"]).0, plain);
    assert_ne!(logits(&file, &["--weights-set", "target"]).0, plain);
    fails(&["inspect", &file, "--weights-set", "ema"], "no set of weights called `ema`; there are: online, target");
    fails(&["inspect", "--model", "resnet_tiny", "--weights-set", "ema"], "there is no weights file to choose from");
    let (moco, note) = logits(&doubled(["encoder_q", "encoder_k"]), &[]);
    assert_eq!(moco, plain);
    assert!(note.contains("`encoder_q.` is left off") && note.contains("encoder_k.bn1.bias"), "{note}");
}

#[test]
fn a_file_without_a_head_can_be_trained_and_nothing_else() {
    let outputs = Outputs::new();
    let file = rewritten(&outputs, "backbone.safetensors", |state| {
        rename(state, |name| format!("backbone.{name}"));
        state.tensors.retain(|name, _| !name.starts_with("backbone.fc."));
    });
    let (data, run) = (data(), outputs.text("run"));
    for command in [
        &["eval", "--weights", &file, "--data", &data][..],
        &["predict", "--weights", &file, &data],
        &["fold", "--weights", &file, "--out", &outputs.text("f.safetensors")],
        &["convert", &file, "--out", &outputs.text("c.safetensors")],
    ] {
        let output = thawline(command).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
        assert!(stderr.contains("it has no head `fc`") && stderr.contains("`finetune` and `compare` start one anew"));
    }
    assert!(notes(&["inspect", &file]).contains("`backbone.` is left off"));
    let train = ["finetune", "--weights", &file, "--data", &data, "--out", &run, "--epochs", "1", "--batch", "8"];
    assert!(stdout(&train).contains("has no head for 10 classes: the head starts anew"));
    let trained = StateDict::load(Path::new(&run).join("last.safetensors")).unwrap();
    assert_eq!(trained.tensors["fc.weight"].shape, [10, 64]);
    let compare = outputs.text("compare");
    stdout(&[
        "compare",
        "--weights",
        &file,
        "--data",
        &data,
        "--out",
        &compare,
        "--epochs",
        "1",
        "--batch",
        "8",
        "--policy",
        "head",
        "--seeds",
        "1",
    ]);
}

#[test]
fn a_head_in_a_sequential_opens_if_it_is_one_layer() {
    let outputs = Outputs::new();
    let args = |file: &str| -> Vec<String> {
        let out = outputs.text("logits.safetensors");
        ["predict", "--weights", file, "--inputs", &inputs_file(), "--out", &out, "--force"].map(str::to_owned).to_vec()
    };
    let logits = |file: &str| {
        let args = args(file);
        let note = notes(&args.iter().map(String::as_str).collect::<Vec<_>>());
        (StateDict::load(outputs.path("logits.safetensors")).unwrap().tensors, note)
    };
    let plain = logits(&weights_file()).0;
    let one = rewritten(&outputs, "one.safetensors", |state| rename(state, |name| name.replace("fc.", "fc.1.")));
    let (found, note) = logits(&one);
    assert_eq!(found, plain);
    assert!(note.contains("`fc.1` is taken for the head `fc`"), "{note}");

    let hidden = |classes: usize| {
        move |state: &mut StateDict| {
            state.tensors.retain(|name, _| !name.starts_with("fc."));
            for (layer, shape) in [("0", [32, 64]), ("3", [classes, 32])] {
                let values = (0..shape[0] * shape[1]).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
                state.tensors.insert(format!("fc.{layer}.weight"), FileTensor::f32(shape, values));
                state.tensors.insert(format!("fc.{layer}.bias"), FileTensor::f32([shape[0]], vec![0.1; shape[0]]));
            }
        }
    };
    let several = rewritten(&outputs, "several.safetensors", hidden(10));
    let message = fails(
        &["inspect", &several],
        "its head `fc` has several layers (fc.0 [32, 64], fc.3 [10, 32]), and no weights file says what lies between",
    );
    assert!(message.contains("`thawline inspect --model resnet_tiny --graph`"), "{message}");
    // As the message says.
    let graph = stdout(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let mut graph: Value = serde_json::from_str(&graph).unwrap();
    let layers = graph["layers"].as_array_mut().unwrap();
    let mut last = layers.pop().unwrap();
    assert_eq!(last["name"], "fc");
    let pooled = last["inputs"].take();
    layers.push(serde_json::json!({"name": "fc.0", "op": "linear", "channels": 32, "inputs": pooled}));
    layers.push(serde_json::json!({"name": "fc.1", "op": "activation", "act": "relu", "inputs": ["fc.0"]}));
    layers.push(serde_json::json!({"name": "fc.3", "op": "linear", "channels": 10, "inputs": ["fc.1"]}));
    fs::write(outputs.path("mine.json"), graph.to_string()).unwrap();
    assert!(stdout(&["inspect", &several, "--model", &outputs.text("mine.json")]).contains("fc.3"));
    // Where another head starts anyway, that one is left out.
    let other = rewritten(&outputs, "other.safetensors", hidden(4));
    let run = outputs.text("run");
    let note =
        notes(&["finetune", "--weights", &other, "--data", &data(), "--out", &run, "--epochs", "1", "--batch", "8"]);
    assert!(note.contains("its head `fc` of several layers") && note.contains("is left out"), "{note}");
}

#[test]
fn one_output_is_of_two_classes() {
    let outputs = Outputs::new();
    let file = rewritten(&outputs, "one.safetensors", |state| {
        state.tensors.insert("fc.weight".into(), FileTensor::f32([1, 64], vec![0.1; 64]));
        state.tensors.insert("fc.bias".into(), FileTensor::f32([1], vec![0.1]));
        state.metadata.remove("classes");
    });
    let facts = json(&["inspect", &file, "--json"]);
    assert_eq!(facts["classes"], 2);
    assert!(notes(&["inspect", &file]).contains("the logit of the second of two classes"));
    fails(&["plan", "--model", "resnet_tiny", "--classes", "1"], "resnet_tiny with one output is not supported");
    let output = thawline(&["eval", "--weights", &file, "--data", &data()]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("the network tells 2 apart"), "{stderr}");

    // Two classes are trained with the one output that there is, and ranked.
    let two = outputs.path("two");
    for class in ["disk", "ring"] {
        for part in ["train", "val"] {
            let from = Path::new(&data()).join(part).join(class);
            let to = two.join(part).join(class);
            fs::create_dir_all(&to).unwrap();
            for image in fs::read_dir(from).unwrap().map(Result::unwrap) {
                fs::copy(image.path(), to.join(image.file_name())).unwrap();
            }
        }
    }
    let (two, run) = (two.to_str().unwrap().to_owned(), outputs.text("run"));
    stdout(&["finetune", "--weights", &file, "--data", &two, "--out", &run, "--epochs", "1", "--batch", "4"]);
    let last = Path::new(&run).join("last.safetensors");
    let last = last.to_str().unwrap();
    assert_eq!(StateDict::load(last).unwrap().tensors["fc.weight"].shape, [1, 64]);
    let eval = json(&["eval", "--weights", last, "--data", &two, "--json"]);
    assert!(eval["auroc"].as_f64().is_some_and(|area| (0.0..=1.0).contains(&area)), "{eval}");
    assert!(stdout(&["eval", "--weights", last, "--data", &two]).contains("ranked by ring: AUROC "));
    // Of other classes there is one output each.
    let run = outputs.text("all");
    let train = ["finetune", "--weights", &file, "--data", &data(), "--out", &run, "--epochs", "1", "--batch", "8"];
    assert!(stdout(&train).contains("has 1 class and") && Path::new(&run).join("last.safetensors").exists());
}

#[test]
fn a_config_that_names_another_network_is_an_error() {
    let outputs = Outputs::new();
    let graph = models::build("resnet50", 1, (32, 32), 3).unwrap();
    let file = outputs.text("model.safetensors");
    to_state(&graph, &initialise(&graph, 1)).save(&file).unwrap();
    let inspect = ["inspect", &file, "--json"];
    // Nothing beside it: by far the likeliest, and a note of what else it may be.
    let note = notes(&inspect);
    assert!(note.contains("it is taken for resnet50") && note.contains("timm's resnetaa50"), "{note}");
    assert!(note.contains("timm's resnetblur50"), "{note}");
    assert_eq!(notes(&["inspect", &file, "--model", "resnet50"]), "");

    let config = |architecture: &str| {
        fs::write(outputs.path("config.json"), format!(r#"{{"architecture": "{architecture}"}}"#)).unwrap();
    };
    for same in ["resnet50", "gluon_resnet50_v1b", "resnet50.a1_in1k"] {
        config(same);
        assert_eq!(notes(&inspect), "", "{same}");
    }
    for other in ["resnetaa50", "resnetblur50"] {
        config(other);
        let message = fails(&inspect, "fits resnet50, but the config.json beside it calls the network");
        assert!(message.contains(other) && message.contains("computes something else"), "{message}");
        let note = notes(&["inspect", &file, "--model", "resnet50"]);
        assert!(note.contains("as --model says, though") && note.contains(other), "{note}");
    }
    for other in ["resnet101", "seresnet50", "my\\u001b[2Jnet"] {
        config(other);
        fails(&inspect, "fits resnet50, but the config.json beside it calls the network");
    }
    fs::remove_file(outputs.path("config.json")).unwrap();
    let mut state = StateDict::load(&file).unwrap();
    state.metadata.insert("model".into(), "resnetaa50".into());
    state.save(&file).unwrap();
    fails(&inspect, "but its metadata calls the network resnetaa50");
    state.metadata.insert("model".into(), "a good one".into());
    state.save(&file).unwrap();
    assert!(notes(&inspect).contains("it is taken for resnet50"));
}

#[test]
fn values_that_are_no_numbers_end_every_command() {
    let outputs = Outputs::new();
    let set = |tensor: &'static str, value: f32| {
        let name = format!("{tensor}.{value}.safetensors");
        rewritten(&outputs, &name, |state| match &mut state.tensors.get_mut(tensor).unwrap().data {
            TensorData::F32(values) => values[1] = value,
            TensorData::I64(_) => panic!("{tensor} is of integers"),
        })
    };
    let (data, out) = (data(), outputs.text("out"));
    let files = [
        (set("layer2.0.conv1.weight", f32::NAN), "`layer2.0.conv1.weight` of the weights holds NaN"),
        (set("fc.bias", f32::INFINITY), "`fc.bias` of the weights holds inf"),
        (set("layer1.1.bn2.running_var", -1.0), "`layer1.1.bn2.running_var` of the weights holds -1"),
        (set("layer1.1.bn2.running_mean", f32::NAN), "`layer1.1.bn2.running_mean` of the weights holds NaN"),
    ];
    for (file, expected) in &files {
        fails(&["eval", "--weights", file, "--data", &data], expected);
        fails(&["predict", "--weights", file, "--inputs", &inputs_file(), "--out", &out], expected);
        fails(&["predict", "--weights", file, &data], expected);
        let run = outputs.text("run");
        fails(&["finetune", "--weights", file, "--data", &data, "--out", &run, "--policy", "head"], expected);
        let compare = ["compare", "--weights", file, "--data", &data, "--policy", "full", "--out"];
        let folder = outputs.text(&format!("compare{}", expected.len()));
        let output = thawline(&[&compare[..], &[&folder]].concat()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
        let step = ["step", "--weights", file, "--inputs", &inputs_file(), "--lr", "0.1", "--out", &out];
        fails(&step, expected);
        let recalibrate = ["recalibrate", "--weights", file, "--data", &data, "--force", "--out"];
        let mended = outputs.text("mended.safetensors");
        match expected.contains("running") {
            // Which is what it is for.
            true => {
                stdout(&[&recalibrate[..], &[&mended]].concat());
                stdout(&["eval", "--weights", &mended, "--data", &data]);
                let no = outputs.text("no.safetensors");
                fails(&[&recalibrate[..], &[&no, "--layers", "from:layer3"]].concat(), expected);
                fails(&[&recalibrate[..], &[&no, "--method", "adabn"]].concat(), expected);
            }
            false => {
                fails(&[&recalibrate[..], &[&outputs.text("no.safetensors")]].concat(), expected);
            }
        }
    }

    // Finite weights that overflow, and images that are no numbers.
    let vast = rewritten(&outputs, "vast.safetensors", |state| {
        match &mut state.tensors.get_mut("layer2.0.conv1.weight").unwrap().data {
            TensorData::F32(values) => values.fill(3e38),
            TensorData::I64(_) => panic!("integers"),
        }
    });
    for command in [
        &["eval", "--weights", &vast, "--data", &data][..],
        &["predict", "--weights", &vast, "--inputs", &inputs_file(), "--out", &out],
        &["finetune", "--weights", &vast, "--data", &data, "--out", &outputs.text("vast")],
    ] {
        let output = thawline(command).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains("layer2.0"), "{command:?}: {stderr}");
    }
    let mut images = inputs(IMAGES, 10);
    match &mut images.tensors.get_mut("images").unwrap().data {
        TensorData::F32(values) => values[7] = f32::NAN,
        TensorData::I64(_) => panic!("integers"),
    }
    images.save(outputs.path("nan_images.safetensors")).unwrap();
    let nan = outputs.text("nan_images.safetensors");
    fails(&["predict", "--weights", &weights_file(), "--inputs", &nan, "--out", &out], "the images");
    assert!(!Path::new(&out).exists());
}

#[test]
fn quantised_files_are_called_so() {
    let outputs = Outputs::new();
    let golden = |name: &str| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    fails(&["inspect", &golden("weights/quantised.pth")], "is quantised");
    let file = rewritten(&outputs, "int8.safetensors", |state| {
        state.tensors.insert("fc.weight".into(), FileTensor::i64([10, 64], vec![1; 640]));
    });
    let message = fails_at_length(&["predict", "--weights", &file, &data()], "the file seems to be quantised");
    assert!(message.contains("`fc.weight` holds integers"), "{message}");
}

#[test]
fn a_head_for_classes_of_other_names_asks() {
    let outputs = Outputs::new();
    let data = data();
    let named = |file: &str, names: &[String]| {
        rewritten(&outputs, file, |state| {
            state.metadata.insert("classes".into(), serde_json::to_string(names).unwrap());
        })
    };
    let others: Vec<String> = (0..10).map(|class| format!("bird {class}")).collect();
    let file = named("birds.safetensors", &others);
    let args = |command: &'static str, weights: &str, out: &str, more: &[&str]| {
        let args = [command, "--weights", weights, "--data", &data, "--out", out, "--epochs", "1", "--batch", "8"];
        args.iter().chain(more).map(|&word| word.to_owned()).collect::<Vec<_>>()
    };
    let words = |args: &[String]| args.iter().map(|word| word.clone().leak() as &str).collect::<Vec<_>>();
    for command in ["finetune", "compare"] {
        let out = outputs.text(command);
        let asked = fails(&words(&args(command, &file, &out, &[])), "trained on bird 0, bird 1, bird 2, …, but");
        assert!(asked.contains("--head new") && asked.contains("--head keep"), "{asked}");
        assert!(!Path::new(&out).exists(), "nothing is begun");
    }
    // The same names in another order are told apart from others.
    let mut turned = class_names();
    turned.rotate_left(1);
    let turned = named("turned.safetensors", &turned);
    fails(&words(&args("finetune", &turned, &outputs.text("turned"), &[])), "in another order");
    refused(
        &["finetune", "--data", &data, "--out", &outputs.text("none"), "--model", "resnet_tiny", "--head", "new"],
        "--weights",
    );

    // All but the head moves by next to nothing.
    let slow = ["--lr", "1e-12", "--policy", "head"];
    let before = floats(&StateDict::load(&file).unwrap(), "fc.weight");
    let moved = |out: &str| {
        let after = floats(&StateDict::load(outputs.path(out).join("last.safetensors")).unwrap(), "fc.weight");
        before.iter().zip(after).map(|(before, after)| (before - after).abs()).fold(0.0, f32::max)
    };
    for (head, is_kept) in [("keep", true), ("new", false)] {
        let shown =
            stdout(&words(&args("finetune", &file, &outputs.text(head), &[&slow[..], &["--head", head]].concat())));
        assert_eq!(moved(head) < 1e-6, is_kept, "{head}: {}", moved(head));
        assert_eq!(shown.contains("--head new: the head starts anew"), !is_kept, "{shown}");
        let settings = fs::read_to_string(outputs.path(head).join("run.toml")).unwrap();
        assert!(settings.contains(&format!("head = \"{head}\"")), "{settings}");
    }
    let resumed = ["finetune", "--resume", &outputs.text("keep"), "--head", "new", "--weights", &file];
    fails(&resumed, "`head` is \"new\" now, but the run");
    // Where the names are the same, nothing is asked; where the number differs, nothing can be kept.
    let same = named("same.safetensors", &class_names());
    stdout(&words(&args("finetune", &same, &outputs.text("same"), &slow)));
    assert!(moved("same") < 1e-6);
    let more = rewritten(&outputs, "more.safetensors", |state| {
        let graph = models::build("resnet_tiny", 1, (16, 16), 12).unwrap();
        *state = to_state(&graph, &initialise(&graph, 3));
    });
    let kept = args("finetune", &more, &outputs.text("more"), &["--head", "keep"]);
    let output = thawline(&words(&kept)).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("--head keep: "), "{stderr}");
}

#[test]
fn names_that_are_no_files_are_hints() {
    let dir = TempDir::new().unwrap();
    let of = |args: &[&str], expected: &str| {
        let output = thawline(args).current_dir(dir.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{args:?}: {stderr}");
        assert_eq!(
            stderr.contains("hf:"),
            expected.contains("hf:") || expected.contains("--model"),
            "{args:?}: {stderr}"
        );
    };
    let data = data();
    for name in ["resnet18", "keras_efficientnet_b0"] {
        of(
            &["inspect", name],
            &format!("cannot read {name}: there is no such file; {name} is the name of a model, which --model"),
        );
        of(&["eval", "--weights", name, "--data", &data], "hf:OWNER/NAME");
    }
    of(&["inspect", "timm/resnet18.a1_in1k"], "hf:timm/resnet18.a1_in1k");
    of(&["finetune", "--weights", "timm/resnet18", "--data", &data, "--out", "run"], "hf:timm/resnet18");
    // Those that look like files are.
    fs::create_dir(dir.path().join("runs")).unwrap();
    for name in ["runs/best", "weights.pth", "other/best.safetensors", "./resnet", "a/b/c"] {
        of(&["inspect", name], "cannot read");
    }
}
