//! Commands in a terminal of some width: what they print fits, no word of a table is broken, and colours, quiet and progress
//! are as asked for.
#![cfg(unix)]

use nix::pty::{Winsize, openpty};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");

fn thawline(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawline"));
    command.args(args).current_dir(folder).env("TERM", "xterm-256color");
    // A machine for CI counts as a terminal with colours, even a dumb one.
    for name in ["CI", "COLUMNS", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// What is on standard output without a terminal.
fn piped(folder: &Path, args: &[&str]) -> String {
    let output = thawline(folder, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Which stream is a terminal; the other leads nowhere.
#[derive(Clone, Copy, PartialEq)]
enum Stream {
    Output,
    Errors,
}

/// What a terminal of so many columns gets.
fn shown(mut command: Command, columns: u16, stream: Stream) -> String {
    let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let (out, err) = match stream {
        Stream::Output => (Stdio::from(pty.slave), Stdio::null()),
        Stream::Errors => (Stdio::null(), Stdio::from(pty.slave)),
    };
    let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
    // It holds the other side, whose closing is the end of what there is to read.
    drop(command);
    let (mut bytes, mut buffer, mut master) = (Vec::new(), [0; 4096], File::from(pty.master));
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        bytes.extend(&buffer[..count]);
    }
    child.wait().unwrap();
    String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
}

/// The text without its colours.
fn plain(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or(part, |(_, rest)| rest))
}

/// The words, in which any number stands for every other: times differ.
fn words(text: &str) -> BTreeSet<String> {
    let shape = |word: &str| {
        let mut shape = String::new();
        for c in word.chars() {
            match c.is_ascii_digit() || c == '.' {
                true if shape.ends_with('0') => {}
                true => shape.push('0'),
                false => shape.push(c),
            }
        }
        shape
    };
    text.split_whitespace().filter(|word| !word.starts_with('─')).map(shape).collect()
}

/// A folder with images, and with weights beside them.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    piped(dir.path(), &["sample-data", "shapes", "shapes", "--size", "16", "--per-class", "5"]);
    std::fs::copy(WEIGHTS, dir.path().join("w.safetensors")).unwrap();
    dir
}

/// Commands that change nothing, so that they can be run in a pipe and in terminals.
const COMMANDS: [&[&str]; 14] = [
    &["plan", "--model", "resnet18", "--classes", "2", "--policy", "bn-only"],
    &["plan", "--model", "resnet_tiny", "--policy", "head-then-full", "--kernels"],
    &["inspect", "--model", "mobilenet_v3_large"],
    &["inspect", "w.safetensors"],
    &["devices"],
    &["devices", "--check", "--kernel", "sgd_step", "--kernel", "conv2d_forward_subgroup"],
    &["doctor", "--weights", "w.safetensors", "--data", "shapes", "--batch", "1,8", "--max-images", "20", "--layers"],
    // Which variant a device gets is measured by each process, and named.
    &[
        "bench",
        "--variant",
        "direct",
        "--model",
        "resnet_tiny",
        "--batch",
        "1",
        "--repeat",
        "1",
        "--policy",
        "full-then-frozen-bn",
    ],
    &["bench", "--variant", "direct", "--model", "resnet_tiny", "--batch", "1", "--repeat", "1", "--kernels"],
    &["eval", "--weights", "w.safetensors", "--data", "shapes"],
    &["predict", "--weights", "w.safetensors", "shapes/val"],
    &["recalibrate", "--weights", "w.safetensors", "--data", "shapes", "--out", "new.safetensors", "--force"],
    &["fold", "--weights", "w.safetensors", "--out", "folded.safetensors", "--force"],
    &["convert", "w.safetensors", "--out", "converted.safetensors", "--force"],
];

#[track_caller]
fn assert_fits(args: &[&str], columns: u16, text: &str) {
    for line in text.lines() {
        // A command to be copied is whole.
        let is_command = line.trim_start().starts_with("thawline ");
        assert!(is_command || line.chars().count() <= columns.into(), "{args:?} at {columns}: {line}\n{text}");
    }
}

#[test]
fn what_commands_print_fits_and_no_word_is_broken() {
    let dir = folder();
    for args in COMMANDS {
        let known = words(&piped(dir.path(), args));
        for columns in [80, 60] {
            let text = plain(&shown(thawline(dir.path(), args), columns, Stream::Output));
            assert!(!text.is_empty(), "{args:?}");
            assert_fits(args, columns, &text);
            // That columns are left out is said in words of its own, in lines that go on indented.
            let text = text.replace("\n  ", " ");
            let said = text.split("hidden columns: ").enumerate();
            let rest =
                said.map(|(index, part)| if index == 0 { part } else { part.split_once("to see them").unwrap().1 });
            let broken: Vec<String> = words(&rest.collect::<String>()).difference(&known).cloned().collect();
            assert!(broken.is_empty(), "{args:?} at {columns}: {broken:?}\n{text}");
        }
    }
}

#[test]
fn what_runs_print_fits() {
    let dir = folder();
    for (run, columns) in [("a", 80), ("b", 60)] {
        for command in ["finetune", "compare"] {
            let out = format!("{command}-{run}");
            let mut args =
                vec![command, "--weights", "w.safetensors", "--data", "shapes", "--out", &out, "--epochs", "1"];
            args.extend(["--batch", "8", "--policy", "head"]);
            if command == "compare" {
                args.extend(["--policy", "bn-only", "--seeds", "2"]);
            }
            let text = plain(&shown(thawline(dir.path(), &args), columns, Stream::Output));
            assert!(text.contains("top-1"), "{text}");
            assert_fits(&args, columns, &text);
        }
    }
    // Errors, too, with the command that goes on in a line of its own.
    let args = ["finetune", "--weights", "resnet18", "--data", "shapes", "--out", "c"];
    let text = plain(&shown(thawline(dir.path(), &args), 60, Stream::Errors));
    let error = text.find("error: ").unwrap_or_else(|| panic!("{text}"));
    assert_fits(&args, 60, &text[error..]);
    assert!(text[error..].lines().count() > 1, "{text}");
}

#[test]
fn colours_are_for_terminals_unless_asked_for() {
    let dir = TempDir::new().unwrap();
    let plan = ["plan", "--model", "resnet_tiny"];
    let is_coloured = |text: &str| text.contains('\u{1b}');
    let terminal = |args: &[&str], variable: (&str, &str)| {
        let mut command = thawline(dir.path(), args);
        command.env(variable.0, variable.1);
        shown(command, 80, Stream::Output)
    };
    let nothing = ("THAWLINE_TEST", "1");
    let coloured = terminal(&plan, nothing);
    assert!(is_coloured(&coloured));
    // They say nothing that the text does not.
    let never = terminal(&[&plan[..], &["--color", "never"]].concat(), nothing);
    assert_eq!(plain(&coloured), never);
    assert!(!is_coloured(&terminal(&plan, ("NO_COLOR", "1"))));
    assert!(!is_coloured(&terminal(&plan, ("TERM", "dumb"))));
    assert!(!is_coloured(&piped(dir.path(), &plan)));
    assert!(is_coloured(&piped(dir.path(), &[&plan[..], &["--color=always"]].concat())));
    let forced = thawline(dir.path(), &plan).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(is_coloured(&String::from_utf8(forced.stdout).unwrap()));

    // Of an error of the arguments, too.
    let wrong = |args: &[&str]| String::from_utf8(thawline(dir.path(), args).output().unwrap().stderr).unwrap();
    assert!(!is_coloured(&wrong(&["plann"])));
    assert!(is_coloured(&wrong(&["--color", "always", "plann"])));
}

#[test]
fn columns_are_those_that_the_environment_says() {
    let dir = TempDir::new().unwrap();
    let args = ["plan", "--model", "resnet18"];
    let mut command = thawline(dir.path(), &args);
    command.env("COLUMNS", "60");
    let text = plain(&shown(command, 120, Stream::Output));
    assert_fits(&args, 60, &text);
    assert!(text.contains("hidden columns:"), "{text}");
    // A pipe has no columns.
    let piped = thawline(dir.path(), &args).env("COLUMNS", "60").output().unwrap();
    let piped = String::from_utf8(piped.stdout).unwrap();
    assert!(piped.lines().any(|line| line.chars().count() > 80) && !piped.contains("hidden columns:"), "{piped}");
}

#[test]
fn progress_is_for_terminals_and_knows_how_much_there_is() {
    let dir = folder();
    let args = ["doctor", "--weights", "w.safetensors", "--data", "shapes", "--batch", "1,8"];
    let text = shown(thawline(dir.path(), &args), 80, Stream::Errors);
    assert!(text.contains(" left") && text.contains("batch statistics, batches of 8"), "{text}");
    assert!(!text.contains("0/0"), "{text}");
    let quiet = shown(thawline(dir.path(), &[&args[..], &["--quiet"]].concat()), 80, Stream::Errors);
    assert_eq!(quiet, "");
    let output = thawline(dir.path(), &args).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn quiet_leaves_results_and_warnings() {
    let dir = folder();
    let args = |out: &'static str| {
        let mut args = vec!["finetune", "--model", "resnet_tiny", "--data", "shapes", "--out", out, "--epochs", "1"];
        // A longer run would have no warning under any policy.
        args.extend(["--policy", "head", "--batch", "8", "--quiet"]);
        args
    };
    let output = thawline(dir.path(), &args("run")).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stdout.starts_with("validation top-1: ") && stdout.contains("best weights: "), "{stdout}");
    assert_eq!(stderr, "");
    let loud = &args("other")[..args("other").len() - 1];
    let output = thawline(dir.path(), loud).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stdout.starts_with("resnet_tiny at 16 pixels"), "{stdout}");
    assert!(stderr.contains("training starts from random weights"), "{stderr}");
}

#[test]
fn completions_and_man_pages_are_written() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = piped(dir.path(), &["completions", shell]);
        assert!(script.contains("recalibrate") && script.contains("weight-decay"), "{shell}");
    }
    piped(dir.path(), &["man", "share/man1"]);
    let page = |name: &str| std::fs::read_to_string(dir.path().join("share/man1").join(name)).unwrap();
    assert!(page("thawline.1").contains(".TH thawline 1") && page("thawline.1").contains("recalibrate"));
    let finetune = page("thawline-finetune.1");
    assert!(finetune.contains("weight\\-decay") && finetune.contains("Examples:"), "{finetune}");
    let again = thawline(dir.path(), &["man", "share/man1"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("--force"));
    piped(dir.path(), &["man", "share/man1", "--force"]);
}
