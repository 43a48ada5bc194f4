//! Files that are not what they should be, names that are not what they seem, and files that are there already.

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::models;
use thawline::policy::{MAX_RULES, MAX_STAGES};
use thawline::weights::{StateDict, initialise, to_state};

/// Files that many tests read and none changes.
fn fixture() -> &'static Path {
    static FIXTURE: OnceLock<TempDir> = OnceLock::new();
    FIXTURE
        .get_or_init(|| {
            let dir = TempDir::new().unwrap();
            let options = SampleOptions { size: 16, per_class: 5, seed: 1 };
            write_sample_data(SampleSet::Shapes, &dir.path().join("shapes"), &options).unwrap();
            weights().save(dir.path().join("weights.safetensors")).unwrap();
            dir
        })
        .path()
}

fn weights() -> StateDict {
    let graph = models::build("resnet_tiny", 1, (16, 16), 10).unwrap();
    let mut state = to_state(&graph, &initialise(&graph, 3));
    state.metadata.insert("size".into(), "16x16".into());
    state
}

fn weights_file() -> String {
    text(&fixture().join("weights.safetensors"))
}

fn shapes() -> PathBuf {
    fixture().join("shapes")
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The names of the fixture's classes, in order.
fn class_names() -> Vec<String> {
    let entries = fs::read_dir(shapes().join("train")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("thawline").unwrap().args(args).env_remove("RUST_LOG").output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), stdout, stderr)
}

#[track_caller]
fn succeeds(args: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = run(args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    (stdout, stderr)
}

/// Standard error, one line that says each of `expected`.
#[track_caller]
fn fails(args: &[&str], expected: &[&str]) -> String {
    let (code, _, stderr) = run(args);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    assert!(expected.iter().all(|expected| stderr.contains(expected)), "{stderr}");
    stderr
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_folders_are_no_small_files() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    type Make = fn(&Path);
    let irregular: [(&str, Make); 3] = [
        ("pipe", |path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success())),
        ("endless", |path| symlink("/dev/zero", path).unwrap()),
        ("folder", |path| fs::create_dir(path).unwrap()),
    ];
    for (kind, make) in irregular {
        let folder = path(kind);
        fs::create_dir(&folder).unwrap();
        let file = |name: &str| {
            let path = folder.join(name);
            make(&path);
            text(&path)
        };
        let regular = |args: &[&str], named: &str| fails(args, &["not a regular file", named]);
        fs::copy(weights_file(), folder.join("w.safetensors")).unwrap();
        let config = file("config.json");
        regular(&["inspect", &text(&folder.join("w.safetensors"))], &config);
        let policy = file("p.toml");
        regular(&["plan", "--model", "resnet_tiny", "--policy", &policy], &policy);
        let benchmark = file("b.json");
        regular(&["bench", "--model", "resnet_tiny", "--against", &benchmark], &benchmark);
        let graph = file("g.json");
        regular(&["plan", "--model", &graph], &graph);
        for (command, name) in [("finetune", "run.toml"), ("compare", "compare.toml")] {
            let run = folder.join(command);
            fs::create_dir(&run).unwrap();
            make(&run.join(name));
            regular(&[command, "--resume", &text(&run)], name);
        }
        let weights = file("x.safetensors");
        fails(&["inspect", &weights], &[&weights]);
    }
}

#[test]
fn small_files_are_small() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, " ".repeat((16 << 20) + 1)).unwrap();
        text(&path)
    };
    for name in ["run.toml", "compare.toml"] {
        file(name);
    }
    fails(&["plan", "--model", "resnet_tiny", "--policy", &file("p.toml")], &["p.toml", "longer than 1 MiB"]);
    fails(&["plan", "--model", &file("g.json")], &["g.json", "longer than 4 MiB"]);
    fails(&["bench", "--model", "resnet_tiny", "--against", &file("b.json")], &["b.json", "longer than 16 MiB"]);
    fails(&["finetune", "--resume", &text(dir.path())], &["run.toml", "longer than 16 MiB"]);
    fails(&["compare", "--resume", &text(dir.path())], &["compare.toml", "longer than 16 MiB"]);
}

#[test]
fn byte_order_marks_are_passed_over() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("\u{feff}{content}")).unwrap();
        text(&path)
    };
    let (graph, _) = succeeds(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let (graph, policy) = (file("g.json", &graph), file("p.toml", "base = \"head\"\n"));
    succeeds(&["plan", "--model", &graph, "--policy", &policy]);
    fs::write(&policy, b"\xff\xfeb\0").unwrap();
    fails(&["plan", "--model", &graph, "--policy", &policy], &["p.toml", "UTF-16"]);
}

#[test]
fn fields_that_are_there_twice_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("g.json");
    let (graph, _) = succeeds(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let twice = |from: &str, to: &str, named: &str| {
        assert!(graph.contains(from));
        fs::write(&path, graph.replacen(from, to, 1)).unwrap();
        fails(&["plan", "--model", &text(&path)], &["g.json", &format!("`{named}` is there twice")]);
    };
    twice("\"mean\":", "\"mean\": [0, 0, 0], \"mean\":", "mean");
    twice("\"channels\":", "\"channels\": 3, \"channels\":", "channels");
}

#[test]
fn policies_are_bounded() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("p.toml");
    let refused = |content: String, expected: &str| {
        fs::write(&path, content).unwrap();
        fails(&["plan", "--model", "resnet_tiny", "--policy", &text(&path)], &["p.toml", expected]);
    };
    let stages = (1..=MAX_STAGES + 1).map(|index| {
        let from = index as f64 / (MAX_STAGES + 2) as f64;
        format!("[[stages]]\nfrom = {from}\nrules = [\"head -> lr=2\"]\n")
    });
    refused(format!("base = \"head\"\n{}", stages.collect::<String>()), &format!("at most {MAX_STAGES} stages"));
    let rules = "\"head -> weights=train\", ".repeat(MAX_RULES + 1);
    refused(format!("rules = [{rules}]"), &format!("at most {MAX_RULES} rules"));
    refused(format!("base = \"head\"\n[[stages]]\nfrom = 0.5\nrules = [{rules}]"), &format!("at most {MAX_RULES}"));
}

#[test]
fn what_the_user_typed_is_quoted_in_short() {
    let long = "x".repeat(100_000);
    let spaced = "x ".repeat(50_000);
    let (rule, selector) = (format!("name:{long} -> weights=train"), format!("kind:{long}"));
    let weights = weights_file();
    let recalibrate = ["recalibrate", "--weights", &weights, "--data", "d", "--out", "o.safetensors"];
    for args in [
        &["plan", "--model", "resnet_tiny", "--set", &rule][..],
        &["plan", "--model", "resnet_tiny", "--set", &long],
        &["plan", "--model", "resnet_tiny", "--set", &spaced],
        &["plan", "--model", "resnet_tiny", "--set", &format!("head -> {spaced}")],
        &["plan", "--model", "resnet_tiny", "--policy", &long],
        &["plan", "--model", &long],
        &["plan", "--model", "resnet_tiny", "--batch", &long],
        &["plan", "--model", "resnet_tiny", &long],
        &["inspect", &long],
        &["inspect", &spaced],
        &["step", "--model", "resnet_tiny", "--inputs", &long, "--out", "o"],
        &[&recalibrate[..], &["--layers", &selector]].concat(),
        &["predict", "--weights", &format!("hf:{long}"), "x.png"],
        &["eval", "--weights", &weights, "--data", &text(&shapes()), "--device", &long],
    ] {
        let (code, _, stderr) = run(args);
        assert!(matches!(code, Some(1 | 2)), "{code:?}: {stderr:.300}");
        assert!(stderr.len() < 10_000, "{} bytes: {stderr:.300}", stderr.len());
        assert!(!stderr.is_empty() && !stderr.contains("panicked"), "{stderr:.300}");
    }
}

/// Whether it holds what a terminal would act on.
fn is_safe(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n' || matches!(c, '\u{202e}' | '\u{2066}'))
}

#[cfg(unix)]
#[test]
fn names_reach_a_terminal_escaped() {
    const EVIL: &str = "e\u{1b}[31m\u{9b}2J\u{202e}\r\nqv";
    let dir = TempDir::new().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let evil = path(EVIL);

    // Classes and metadata.
    let mut state = weights();
    let mut names = class_names();
    names[0] = EVIL.into();
    state.metadata.insert("classes".into(), serde_json::to_string(&names).unwrap());
    state.metadata.insert(EVIL.into(), EVIL.into());
    state.save(path("named.safetensors")).unwrap();
    // Tensors.
    let mut unknown = weights();
    let tensor = unknown.tensors.remove("fc.bias").unwrap();
    unknown.tensors.insert(EVIL.into(), tensor);
    unknown.save(path("unknown.safetensors")).unwrap();
    // Folders, images, and a policy.
    let image = fs::read_dir(shapes().join("val").join(&class_names()[1])).unwrap().next().unwrap().unwrap().path();
    fs::create_dir_all(dir.path().join("data").join(EVIL)).unwrap();
    fs::create_dir_all(dir.path().join("data/b")).unwrap();
    for place in [dir.path().join("data").join(EVIL).join("1.png"), dir.path().join("data/b/1.png")] {
        fs::copy(&image, place).unwrap();
    }
    fs::create_dir(&evil).unwrap();
    fs::write(dir.path().join(EVIL).join("broken.png"), "no image").unwrap();
    let policy = format!("{evil}.toml");
    fs::write(&policy, "base = \"head\"").unwrap();
    // A layer.
    let (graph, _) = succeeds(&["inspect", "--model", "resnet_tiny", "--graph"]);
    let layer = serde_json::to_string(EVIL).unwrap();
    fs::write(path("graph.json"), graph.replace("\"fc\"", &layer)).unwrap();

    let (named, unknown, data) = (path("named.safetensors"), path("unknown.safetensors"), path("data"));
    let all = text(&shapes());
    let commands: [&[&str]; 13] = [
        &["predict", "--weights", &named, &text(&image), "--top", "10"],
        &["predict", "--weights", &named, &data],
        &["predict", "--weights", &named, &evil],
        &["inspect", &named],
        &["inspect", &unknown],
        &["inspect", &evil],
        &["eval", "--weights", &named, "--data", &data, "--split", "all"],
        &["eval", "--weights", &named, "--data", &all],
        &["eval", "--weights", &weights_file(), "--data", &data],
        &["plan", "--model", "resnet_tiny", "--policy", &policy],
        &["plan", "--model", &path("graph.json")],
        &["finetune", "--weights", &named, "--data", &data, "--out", &path("run"), "--policy", &policy, "--batch", "2"],
        &["finetune", "--weights", &named, "--data", &data, "--out", &evil],
    ];
    for args in commands {
        let (_, stdout, stderr) = run(args);
        assert!(is_safe(&stdout) && is_safe(&stderr), "{args:?}: {stdout:?} {stderr:?}");
        // Not as a line of its own either.
        assert!(!stdout.lines().chain(stderr.lines()).any(|line| line.starts_with("qv")), "{stdout} {stderr}");
    }
    let (stdout, _) = succeeds(&["predict", "--weights", &named, &text(&image), "--top", "10"]);
    assert!(stdout.contains(r"e\u{1b}[31m\u{9b}2J\u{202e}\r\nqv"), "{stdout}");
    // In JSON they are what they are.
    let (stdout, _) = succeeds(&["predict", "--weights", &named, &text(&image), "--top", "10", "--json", "--quiet"]);
    assert!(is_safe(&stdout.replace('\u{202e}', "")), "{stdout:?}");
    let predictions: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let top = predictions["predictions"][0]["top"].as_array().unwrap();
    assert!(top.iter().any(|candidate| candidate["class"] == EVIL));
}

#[test]
fn files_that_are_there_are_not_replaced_unasked() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let (weights, data) = (weights_file(), text(&shapes()));
    let mut inputs = StateDict::default();
    let pixels = vec![0.5; 2 * 3 * 16 * 16];
    inputs.tensors.insert("images".into(), thawline::weights::FileTensor::f32([2, 3, 16, 16], pixels));
    inputs.tensors.insert("labels".into(), thawline::weights::FileTensor::i64([2], vec![0, 1]));
    inputs.save(path("in")).unwrap();
    let (inputs, out) = (path("in"), path("there.safetensors"));
    let (json, page, other) = (path("there.json"), path("there.html"), path("other.safetensors"));
    let commands: [(&[&str], &str); 9] = [
        (&["fold", "--weights", &weights, "--out", &out], &out),
        (&["convert", &weights, "--out", &out], &out),
        (&["recalibrate", "--weights", &weights, "--data", &data, "--out", &out], &out),
        (&["predict", "--weights", &weights, "--inputs", &inputs, "--out", &out], &out),
        (&["step", "--weights", &weights, "--inputs", &inputs, "--policy", "head", "--out", &out], &out),
        (
            &["step", "--weights", &weights, "--inputs", &inputs, "--policy", "head", "--out", &other, "--grads", &out],
            &out,
        ),
        (&["bench", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1", "--out", &json], &json),
        (&["bench", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1", "--page", &page], &page),
        // The folder is the one of the data.
        (&["sample-data", "shapes", &data], &data),
    ];
    for (args, file) in commands {
        if file == data {
            fails(args, &[file, "not an empty folder"]);
            continue;
        }
        fs::write(file, "kept").unwrap();
        fails(args, &[file, "exists", "--force"]);
        assert_eq!(fs::read(file).unwrap(), b"kept", "{args:?}");
        succeeds(&[args, &["--force"]].concat());
        assert_ne!(fs::read(file).unwrap(), b"kept", "{args:?}");
        let _ = fs::remove_file(&other);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", dir.path().join("link.safetensors")).unwrap();
        fails(&["fold", "--weights", &weights, "--out", &path("link.safetensors")], &["exists"]);
    }
}

#[test]
fn evaluation_takes_one_class_and_empty_folders() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let names = class_names();
    let class = data.join(&names[3]);
    fs::create_dir_all(&class).unwrap();
    for image in fs::read_dir(shapes().join("train").join(&names[3])).unwrap().map(Result::unwrap) {
        fs::copy(image.path(), class.join(image.file_name())).unwrap();
    }
    let mut state = weights();
    state.metadata.insert("classes".into(), serde_json::to_string(&names).unwrap());
    let named = text(&dir.path().join("named.safetensors"));
    state.save(&named).unwrap();
    let data = text(&data);
    let eval = |weights: &str| {
        ["eval", "--weights", weights, "--data", &data, "--split", "all", "--json", "--quiet"].map(str::to_owned)
    };
    let samples = |args: &[String]| {
        let (stdout, stderr) = succeeds(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        (report["samples"].as_u64().unwrap(), report["loss"].as_f64().unwrap(), stderr)
    };
    let (count, loss, _) = samples(&eval(&named));
    assert_eq!(count, 4);

    // Whatever an empty folder is called.
    fs::create_dir(Path::new(&data).join("notes")).unwrap();
    let (count, same, stderr) = samples(&eval(&named));
    assert_eq!((count, same), (4, loss));
    assert!(stderr.contains("warning: class folder") && stderr.contains("notes"), "{stderr}");

    // Weights that do not name their classes go by the order of all of them.
    fs::remove_dir(Path::new(&data).join("notes")).unwrap();
    let unnamed = weights_file();
    let args = eval(&unnamed);
    fails(&args.each_ref().map(String::as_str), &["folders for 1 class,", "tells 10 apart", "it may be empty"]);
    for name in &names {
        fs::create_dir_all(Path::new(&data).join(name)).unwrap();
    }
    assert_eq!(samples(&args).1, loss);

    let recalibrated = text(&dir.path().join("r.safetensors"));
    succeeds(&["recalibrate", "--weights", &named, "--data", &data, "--out", &recalibrated]);
    // Training needs images of two classes.
    let out = text(&dir.path().join("run"));
    let (code, _, stderr) = run(&["finetune", "--weights", &named, "--data", &data, "--out", &out]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("holds no"), "{stderr}");
}

#[test]
fn negative_numbers_are_values() {
    let (weights, data) = (weights_file(), text(&shapes()));
    let finetune = ["finetune", "--weights", &weights, "--data", &data, "--out", "never-made"];
    for (option, value, expected) in [
        ("--lr", "-1", "lr is -1"),
        ("--momentum", "-0.5", "momentum is -0.5"),
        ("--weight-decay", "-1e-4", "weight-decay is -0.0001"),
        ("--label-smoothing", "-1", "label-smoothing is -1"),
        ("--final-lr", "-1", "final-lr is -1"),
        ("--val-fraction", "-1", "val-fraction is -1"),
        ("--lr", "-inf", "lr is -inf"),
    ] {
        fails(&[&finetune[..], &[option, value]].concat(), &[expected]);
    }
    for (option, value) in [("--epochs", "-1"), ("--batch", "-1"), ("--warmup", "-2"), ("--seed", "-3")] {
        let (code, _, stderr) = run(&[&finetune[..], &[option, value]].concat());
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(&format!("invalid value '{value}' for '{option}")), "{stderr}");
    }
    assert!(!Path::new("never-made").exists());
}

#[test]
fn images_that_sit_out_are_announced() {
    let dir = TempDir::new().unwrap();
    let (weights, data) = (weights_file(), text(&shapes()));
    // 40 training images.
    let started = |name: &str, policy: &str, more: &[&str]| {
        let out = text(&dir.path().join(name));
        let args = ["finetune", "--weights", &weights, "--data", &data, "--out", &out, "--epochs", "1"];
        let (stdout, _) = succeeds(&[&args[..], &["--policy", policy], more].concat());
        (stdout, fs::read_to_string(dir.path().join(name).join("metrics.csv")).unwrap())
    };
    let (stdout, _) = started("batch", "bn-only", &["--batch", "12", "--accumulate", "2"]);
    assert!(
        stdout.contains("1 epoch of 1 step of") && stdout.contains("leaves out 16 of the 40 training images"),
        "{stdout}"
    );
    let (stdout, metrics) = started("running", "keras-guide", &["--batch", "12", "--accumulate", "2"]);
    assert!(stdout.contains("1 epoch of 2 steps") && stdout.contains("last step of each epoch has 16"), "{stdout}");
    assert!(metrics.lines().nth(2).unwrap().starts_with("1,2,"), "{metrics}");
    let (stdout, _) = started("whole", "bn-only", &["--batch", "10"]);
    assert!(!stdout.contains("leaves out") && !stdout.contains("last step"), "{stdout}");
}

#[test]
fn weights_that_were_removed_are_not_announced_as_there() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    let (weights, data, folder) = (weights_file(), text(&shapes()), text(&out));
    let args =
        ["finetune", "--weights", &weights, "--data", &data, "--out", &folder, "--policy", "head", "--epochs", "1"];
    let (stdout, _) = succeeds(&args);
    let best = out.join("best.safetensors");
    assert!(stdout.contains(&format!("best weights: {}\n", best.display())), "{stdout}");
    fs::remove_file(&best).unwrap();
    let (stdout, _) = succeeds(&["finetune", "--resume", &folder]);
    assert!(stdout.contains("best.safetensors is not there any more"), "{stdout}");
}
