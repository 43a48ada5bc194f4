//! Weights by name on the command line, from a server of the test's own.
#![cfg(feature = "hub")]

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};
use server::{Reply, Server};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;
use std::{fs, process};
use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::formats;
use thawline::models;
use thawline::train::Settings;
use thawline::weights::{FileTensor, StateDict, initialise, to_state};

#[path = "../src/hub/tests/server.rs"]
mod server;

const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// The bytes of a file with random weights of resnet_tiny.
fn weights() -> Vec<u8> {
    let graph = models::build("resnet_tiny", 1, (16, 16), 10).unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("w.safetensors");
    to_state(&graph, &initialise(&graph, 3)).save(&path).unwrap();
    fs::read(path).unwrap()
}

/// A hub with one repository, `me/tiny`.
fn hub() -> Server {
    let config = br#"{"architecture": "resnet_tiny", "pretrained_cfg":
        {"input_size": [3, 24, 20], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
    hub_of(vec![("config.json", config.to_vec()), ("model.safetensors", weights())], Duration::ZERO)
}

/// A hub whose one repository has these files, and which stops for so long in the middle of each.
fn hub_of(files: Vec<(&'static str, Vec<u8>)>, stall: Duration) -> Server {
    let list: Vec<Value> = files.iter().map(|(name, _)| json!({"rfilename": name})).collect();
    Server::start(move |request| {
        let asked = request.path.rsplit('/').next().unwrap_or_default();
        match files.iter().find(|(name, _)| *name == asked) {
            Some((_, body)) => {
                let etag: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
                Reply { stall, ..Reply::new(200, body.clone()).with("ETag", format!("\"{etag}\"")) }
            }
            None if ["main", COMMIT].contains(&asked) => {
                Reply::new(200, json!({"sha": COMMIT, "siblings": list}).to_string())
            }
            None => Reply::new(404, ""),
        }
    })
}

fn command(server: &Server, home: &Path, args: &[&str]) -> process::Command {
    let mut command = process::Command::new(cargo_bin("thawline"));
    for name in [
        "RUST_LOG",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.address).env("HF_HOME", home).env("HF_TOKEN", "hf_mine").args(args);
    command
}

fn thawline(server: &Server, home: &Path, args: &[&str]) -> process::Output {
    command(server, home, args).output().unwrap()
}

#[track_caller]
fn stdout(output: process::Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn stderr(output: process::Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn weights_are_fetched_once_and_found_offline() {
    let (server, home) = (hub(), TempDir::new().unwrap());
    let inspect = |more: &[&str]| {
        let args = [&["inspect", "hf:me/tiny", "--json"], more].concat();
        thawline(&server, home.path(), &args)
    };
    let report: Value = serde_json::from_str(&stdout(inspect(&[]))).unwrap();
    assert_eq!(report["model"], "resnet_tiny");
    assert_eq!(report["size"], json!([24, 20]), "config.json tells");
    let graph = stdout(thawline(&server, home.path(), &["inspect", "hf:me/tiny", "--graph"]));
    assert_eq!(serde_json::from_str::<Value>(&graph).unwrap()["std"], json!([0.25, 0.25, 0.25]), "config.json tells");
    // What is written from them says so itself, whatever it is called by.
    let out = home.path().join("out.safetensors");
    let out = out.to_str().unwrap();
    stdout(thawline(&server, home.path(), &["convert", "hf:me/tiny", "--out", out, "--size", "16"]));
    for model in [&[][..], &["--model", "resnet_tiny"]] {
        let graph = stdout(thawline(&server, home.path(), &[&["inspect", out, "--graph"], model].concat()));
        assert_eq!(serde_json::from_str::<Value>(&graph).unwrap()["std"], json!([0.25, 0.25, 0.25]));
    }
    let snapshot = home.path().join("hub/models--me--tiny/snapshots").join(COMMIT);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), weights());

    let asked = server.requests();
    assert!(!asked.is_empty() && asked.iter().all(|request| request.header("authorization") == Some("Bearer hf_mine")));
    let again: Value = serde_json::from_str(&stdout(inspect(&["--offline"]))).unwrap();
    assert_eq!(again, report);
    assert!(server.requests().is_empty());
}

#[test]
fn what_is_wrong_with_a_name_is_said_in_a_line() {
    let (server, home) = (hub(), TempDir::new().unwrap());
    let message = |name: &str, more: &[&str]| {
        stderr(thawline(&server, home.path(), &[&["plan", "--weights", name], more].concat()))
    };
    assert!(message("hf:../tiny", &[]).contains("is not a reference of the form"));
    assert!(message("hf:me/tiny", &["--offline"]).contains("hf:me/tiny is not in the cache"));
    assert!(message("hf:me/tiny:other.h5", &[]).contains("it has config.json, model.safetensors"));
    assert!(message("hf:me/tiny@nowhere", &[]).contains("has no me/tiny at nowhere"));
    assert!(message("./hf:me/tiny", &[]).contains("cannot read ./hf:me/tiny"));
    assert!(!home.path().join("hub").exists(), "nothing half-fetched");
}

/// The branch may move on, and the run's settings must say where it began.
#[test]
fn a_run_remembers_the_commit() {
    let (server, home) = (hub(), TempDir::new().unwrap());
    let (data, out) = (home.path().join("data"), home.path().join("run"));
    write_sample_data(SampleSet::Shapes, &data, &SampleOptions { size: 16, per_class: 5, seed: 1 }).unwrap();
    let (data, to) = (data.to_str().unwrap(), out.to_str().unwrap());
    let args = ["finetune", "--weights", "hf:me/tiny", "--policy", "head", "--epochs", "1", "--batch", "8"];
    stdout(thawline(&server, home.path(), &[&args[..], &["--size", "16", "--data", data, "--out", to]].concat()));
    let file = home.path().join("hub/models--me--tiny/snapshots").join(COMMIT).join("model.safetensors");
    assert_eq!(Settings::of_run(&out).unwrap().weights, Some(file));
}

/// A reference need not name the file, so what its form is becomes known when it was fetched.
#[test]
fn a_keras_file_of_a_hub_is_written_in_its_own_form() {
    let keras = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keras/efficient.keras");
    let (server, home) =
        (hub_of(vec![("model.keras", fs::read(keras).unwrap())], Duration::ZERO), TempDir::new().unwrap());
    let convert =
        |out: &Path| thawline(&server, home.path(), &["convert", "hf:me/tiny", "--out", out.to_str().unwrap()]);
    let out = home.path().join("out.keras");
    stdout(convert(&out));
    assert!(formats::open(&out, None).unwrap().network.is_some());
    assert!(stderr(convert(&home.path().join("out.h5"))).contains("with the same ending"));

    let mut batch = StateDict::default();
    batch.tensors.insert("images".into(), FileTensor::f32([1, 3, 12, 12], vec![0.5; 3 * 12 * 12]));
    batch.tensors.insert("labels".into(), FileTensor::i64([1], vec![2]));
    batch.save(home.path().join("batch.safetensors")).unwrap();
    let step = |out: &Path| {
        let batch = home.path().join("batch.safetensors");
        let [batch, out] = [&batch, out].map(|path| path.to_str().unwrap().to_owned());
        let args = ["step", "--weights", "hf:me/tiny", "--policy", "head", "--inputs", &batch, "--out", &out];
        thawline(&server, home.path(), &args)
    };
    let out = home.path().join("trained.keras");
    stdout(step(&out));
    assert!(formats::open(&out, None).unwrap().network.is_some());
    assert!(stderr(step(&home.path().join("trained.h5"))).contains("a .h5 file can be written only where"));
}

/// There is nothing to save yet.
#[cfg(unix)]
#[test]
fn one_ctrl_c_ends_a_run_that_still_downloads() {
    use std::os::unix::process::ExitStatusExt;
    use std::{iter, thread};

    const INTERRUPT: i32 = 2;
    let server = hub_of(vec![("model.safetensors", weights())], Duration::from_secs(100));
    let home = TempDir::new().unwrap();
    let (data, out) = (home.path().join("data"), home.path().join("run"));
    write_sample_data(SampleSet::Shapes, &data, &SampleOptions { size: 16, per_class: 5, seed: 1 }).unwrap();
    let args =
        ["finetune", "--weights", "hf:me/tiny", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let mut child = command(&server, home.path(), &args).stderr(process::Stdio::null()).spawn().unwrap();
    let mut asked = iter::repeat_with(|| {
        thread::sleep(Duration::from_millis(50));
        server.requests().iter().any(|request| request.method == "GET" && request.path.ends_with("model.safetensors"))
    });
    assert!(asked.by_ref().take(1200).any(|asked| asked), "it never asks for the weights");
    let id = child.id().to_string();
    assert!(process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let mut ended = iter::repeat_with(|| {
        thread::sleep(Duration::from_millis(50));
        child.try_wait().unwrap()
    });
    let status = ended.by_ref().take(200).flatten().next();
    if status.is_none() {
        child.kill().unwrap();
    }
    assert_eq!(status.and_then(|status| status.signal()), Some(INTERRUPT));
    assert!(!out.exists());
}
