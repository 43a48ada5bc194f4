//! `--json` of long commands: every line is an event that `docs/events.md` describes.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");

fn thawline(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thawline")).args(args).current_dir(folder).env_remove("RUST_LOG").output().unwrap()
}

/// The names between backticks.
fn names(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The events of the page, each with its fields: rows of tables, `| event | when | fields |`. Of `result` those of all
/// commands, each of which has a row of its own, `| command | fields |`, behind the heading for them.
fn described() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.md")).unwrap();
    let events = page.split_once("## Events").unwrap().1;
    let (events, results) = events.split_once("## What `result` holds").unwrap();
    let rows = |text: &str| -> Vec<Vec<String>> {
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split('|').map(str::to_owned).collect()).collect()
    };
    let mut described: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(events) {
        for event in names(&row[0]) {
            described.entry(event).or_default().extend(names(&row[2]));
        }
    }
    for row in rows(results) {
        described.insert(format!("result of {}", row[0].trim().trim_matches('`')), names(&row[1]));
    }
    described
}

/// The events of a command that succeeds, all of which the page describes, with no field that it does not name.
fn events(folder: &Path, args: &[&str]) -> Vec<Value> {
    let output = thawline(folder, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let events = checked(&output, args);
    assert_eq!(events.last().unwrap()["event"], "result", "{args:?}");
    events
}

fn checked(output: &Output, args: &[&str]) -> Vec<Value> {
    let described = described();
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "begin", "{args:?}");
    let command = events[0]["command"].as_str().unwrap();
    for event in &events {
        assert_eq!(event["schema"], 1, "{event}");
        let name = match event["event"].as_str().unwrap() {
            "result" => format!("result of {command}"),
            name => name.to_owned(),
        };
        let known = described.get(&name).unwrap_or_else(|| panic!("docs/events.md does not describe {name}"));
        for field in event.as_object().unwrap().keys().filter(|field| !["schema", "event"].contains(&field.as_str())) {
            assert!(known.contains(field), "docs/events.md does not name the field {field} of {name}");
        }
    }
    events
}

fn of<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    let made = thawline(dir.path(), &["sample-data", "shapes", "shapes", "--size", "16", "--per-class", "5"]);
    assert!(made.status.success());
    std::fs::copy(WEIGHTS, dir.path().join("w.safetensors")).unwrap();
    dir
}

#[test]
fn runs_tell_of_every_step_and_epoch() {
    let dir = folder();
    let common = ["--weights", "w.safetensors", "--data", "shapes", "--epochs", "2", "--batch", "8"];
    let run = [&["finetune", "--out", "run", "--policy", "head", "--then", "recalibrate"][..], &common].concat();
    let found = events(dir.path(), &run);
    let about = of(&found, "run")[0];
    assert_eq!((&about["epochs"], &about["train_images"], &about["val_images"]), (&2.into(), &40.into(), &10.into()));
    let steps = of(&found, "step");
    assert_eq!(about["steps"], steps.len());
    assert!(steps.iter().zip(1..).all(|(step, number)| step["step"] == number && step["loss"].is_number()));
    let epochs: Vec<&Value> = of(&found, "epoch").iter().map(|event| &event["epoch"]).collect();
    assert_eq!(epochs, [0, 1, 2]);
    assert_eq!(of(&found, "recalibrated").len(), 1);
    let result = found.last().unwrap();
    assert_eq!(result["last"]["val"], of(&found, "epoch")[2]["val"]);
    let weights = result["weights"].as_array().unwrap();
    assert!(
        weights.len() == 3 && weights.iter().all(|file| dir.path().join(file.as_str().unwrap()).exists()),
        "{result}"
    );

    let compare = ["compare", "--out", "cmp", "--policy", "head", "--policy", "bn-only", "--seeds", "2"];
    let found = events(dir.path(), &[&compare[..], &common].concat());
    let done: Vec<_> = of(&found, "done").iter().map(|event| (&event["policy"], &event["seed"])).collect();
    assert_eq!(done.len(), 4);
    let which = |event: &&Value| !event["policy"].is_null() && event["seed"].is_number();
    assert!(of(&found, "step").iter().all(which) && of(&found, "epoch").iter().all(which));
    let result = found.last().unwrap();
    let policies = result["policies"].as_array().unwrap();
    let columns = ["val_top1", "deviation", "best_val_top1", "step_ms", "flops", "kept_bytes", "drift"];
    assert!(
        policies.len() == 2 && policies.iter().all(|of| columns.iter().all(|name| of[name].is_number())),
        "{result}"
    );
    assert!(result["conclusion"].as_array().unwrap().iter().all(Value::is_string), "{result}");
}

#[test]
fn long_commands_tell_how_far_they_are() {
    let dir = folder();
    let subject = ["--weights", "w.safetensors", "--data", "shapes"];
    let commands: [&[&str]; 7] = [
        &["doctor", "--batch", "1,8"],
        &["recalibrate", "--out", "new.safetensors"],
        &["eval"],
        &["predict", "--weights", "w.safetensors", "shapes/val"],
        &["bench", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1"],
        &["bench", "--kernels", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1"],
        &["devices", "--check", "--kernel", "sgd_step"],
    ];
    for (index, command) in commands.into_iter().enumerate() {
        let args = if index < 3 { [command, &subject].concat() } else { command.to_vec() };
        let found = events(dir.path(), &args);
        let counted =
            |event: &&&Value| event["of"].as_u64() > Some(0) && event["done"].as_u64() <= event["of"].as_u64();
        assert!(of(&found, "progress").iter().any(|event| counted(&event)), "{args:?}: {found:?}");

        // With --quiet there is one document.
        if index == 3 {
            assert_eq!(of(&found, "prediction").len(), 10);
            let output = thawline(dir.path(), &[&args[..], &["--json", "--quiet"]].concat());
            let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(whole["predictions"], found.last().unwrap()["predictions"]);
        }
    }
}

#[test]
fn failures_are_events_too() {
    let dir = folder();
    let args = ["eval", "--weights", "w.safetensors", "--data", "nowhere", "--json"];
    let output = thawline(dir.path(), &args);
    assert_eq!(output.status.code(), Some(1));
    let found = checked(&output, &args);
    let last = found.last().unwrap();
    assert!(last["event"] == "error" && last["message"].as_str().unwrap().contains("nowhere"), "{last}");
}
