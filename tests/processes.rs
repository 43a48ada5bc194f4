//! What becomes of a folder when processes are killed, meet each other, or lose whoever reads what they print.

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::files::FolderLock;
use thawline::models;
use thawline::weights::{initialise, to_state};

/// Files that many tests read and none changes: images of ten classes, one a class for validation, and weights.
fn fixture() -> &'static Path {
    static FIXTURE: OnceLock<TempDir> = OnceLock::new();
    FIXTURE
        .get_or_init(|| {
            let dir = TempDir::new().unwrap();
            let options = SampleOptions { size: 16, per_class: 5, seed: 1 };
            write_sample_data(SampleSet::Shapes, &dir.path().join("shapes"), &options).unwrap();
            let graph = models::build("resnet_tiny", 1, (16, 16), 10).unwrap();
            to_state(&graph, &initialise(&graph, 3)).save(dir.path().join("weights.safetensors")).unwrap();
            dir
        })
        .path()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A short run on the fixture's images: 4 steps an epoch, 10 images each.
fn finetune(data: &Path, out: &Path) -> Vec<String> {
    let weights = fixture().join("weights.safetensors");
    let args =
        ["finetune", "--weights", text(&weights), "--data", text(data), "--out", text(out), "--variant", "direct"];
    let args = args.into_iter().chain(["--policy", "bn-only", "--epochs", "2", "--batch", "10", "--lr", "0.05"]);
    args.map(str::to_owned).collect()
}

fn compare(data: &Path, out: &Path) -> Vec<String> {
    let mut args = finetune(data, out);
    args[0] = "compare".into();
    args.extend(["--policy", "head", "--seeds", "1"].map(str::to_owned));
    args
}

fn shapes() -> PathBuf {
    fixture().join("shapes")
}

fn thawline(args: &[impl AsRef<str>]) -> Command {
    let mut command = Command::cargo_bin("thawline").unwrap();
    command.args(args.iter().map(AsRef::as_ref)).env_remove("RUST_LOG");
    command
}

#[track_caller]
fn succeeds(args: &[impl AsRef<str>]) -> (String, String) {
    let output = thawline(args).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

/// Standard error of a command that must end with exit code 1 and say each of `expected`.
#[track_caller]
fn fails(args: &[impl AsRef<str>], expected: &[&str]) -> String {
    let output = thawline(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{stderr}"));
    assert!(expected.iter().all(|expected| error.contains(expected)), "{error}");
    stderr
}

/// A process with whose output a test does as it likes.
fn spawn(args: &[impl AsRef<str>], stdout: Stdio, stderr: Stdio) -> Child {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("thawline"));
    command.args(args.iter().map(AsRef::as_ref)).env_remove("RUST_LOG").stdin(Stdio::null());
    command.stdout(stdout).stderr(stderr).spawn().unwrap()
}

/// A copy of a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => assert!(fs::copy(&path, &to).is_ok()),
        }
    }
}

/// What must be the same of two runs that did the same.
fn results(run: &Path) -> Vec<Vec<u8>> {
    ["best.safetensors", "last.safetensors", "metrics.csv"].map(|name| fs::read(run.join(name)).unwrap()).into()
}

/// A finished run, which no test changes.
fn finished() -> PathBuf {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let dir = RUN.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        succeeds(&finetune(&shapes(), &dir.path().join("run")));
        dir
    });
    dir.path().join("run")
}

fn first_image(folder: &Path) -> PathBuf {
    let mut images: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    images.sort();
    images.remove(0)
}

#[test]
fn one_process_at_a_time_works_in_a_folder() {
    let dir = TempDir::new().unwrap();
    let (new, begun) = (dir.path().join("new"), dir.path().join("begun"));
    fs::create_dir(&new).unwrap();
    copy(&finished(), &begun);
    let pid = if cfg!(unix) { std::process::id().to_string() } else { String::new() };
    let held = |folder: &Path, args: &[String]| {
        let _lock = FolderLock::acquire(folder).unwrap();
        fails(args, &[text(folder), "in use by another process", &pid]);
    };
    held(&new, &finetune(&shapes(), &new));
    held(&new, &compare(&shapes(), &new));
    held(&begun, &["finetune", "--resume", text(&begun)].map(str::to_owned));
    assert_eq!(fs::read_dir(&new).unwrap().count(), 0, "nothing is left in it");

    let compared = dir.path().join("compared");
    succeeds(&compare(&shapes(), &compared));
    held(&compared, &["compare", "--resume", text(&compared)].map(str::to_owned));
    held(&compared, &finetune(&shapes(), &compared));
    fails(&finetune(&shapes(), &compared), &["is not empty"]);
    let message = fails(&compare(&shapes(), &compared), &["is not empty", "--resume"]);
    assert!(!message.contains("in use"), "{message}");
}

#[test]
fn of_two_that_start_at_once_one_succeeds() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    let args = finetune(&shapes(), &out);
    let children: Vec<Child> = (0..2).map(|_| spawn(&args, Stdio::null(), Stdio::piped())).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let succeeded = outputs.iter().filter(|output| output.status.success()).count();
    assert_eq!(succeeded, 1, "{outputs:?}");
    let other = outputs.iter().find(|output| !output.status.success()).unwrap();
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert!(stderr.contains(text(&out)) && (stderr.contains("in use") || stderr.contains("is not empty")), "{stderr}");
    assert_eq!(results(&out), results(&finished()));
}

#[test]
fn a_run_that_was_killed_at_any_moment_can_be_had_again() {
    let dir = TempDir::new().unwrap();
    // As soon as each of these is there; the last one is never there before the process ends.
    for (index, file) in ["run.toml", "checkpoint.safetensors", "last.safetensors", "metrics.csv"].iter().enumerate() {
        let out = dir.path().join(index.to_string());
        let mut child = spawn(&finetune(&shapes(), &out), Stdio::null(), Stdio::null());
        while !out.join(file).exists() {
            assert!(
                child.try_wait().unwrap().is_none_or(|status| status.success()),
                "it ended before {file} was there"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(out.join(".thawline-1-0.tmp"), "half of a file").unwrap();
        match out.join("checkpoint.safetensors").exists() {
            true => succeeds(&["finetune", "--resume", text(&out)]),
            false => succeeds(&finetune(&shapes(), &out)),
        };
        assert_eq!(results(&out), results(&finished()), "killed once {file} was there");
        assert!(!out.join(".thawline-1-0.tmp").exists());
        let hidden = |name: std::ffi::OsString| name.to_str().unwrap().starts_with('.');
        let left = fs::read_dir(&out).unwrap().filter(|entry| hidden(entry.as_ref().unwrap().file_name())).count();
        assert!(left == 0 || cfg!(not(unix)), "{left} hidden files");
    }
}

#[test]
fn a_folder_with_nothing_but_settings_is_begun_anew() {
    let dir = TempDir::new().unwrap();
    for again in [false, true] {
        let out = dir.path().join(again.to_string());
        fs::create_dir(&out).unwrap();
        fs::copy(finished().join("run.toml"), out.join("run.toml")).unwrap();
        let (_, stderr) = match again {
            true => succeeds(&finetune(&shapes(), &out)),
            false => succeeds(&["finetune", "--resume", text(&out), "--variant", "direct"]),
        };
        assert!(stderr.contains("cut off before its first checkpoint"), "{stderr}");
        assert_eq!(results(&out), results(&finished()));
    }
    // With anything else in it, it is somebody's.
    let out = dir.path().join("other");
    fs::create_dir(&out).unwrap();
    fs::copy(finished().join("run.toml"), out.join("run.toml")).unwrap();
    fs::copy(finished().join("last.safetensors"), out.join("last.safetensors")).unwrap();
    fails(&finetune(&shapes(), &out), &["is not empty"]);
}

#[test]
fn other_commands_clear_away_what_was_left_too() {
    let dir = TempDir::new().unwrap();
    let (left, busy) = (dir.path().join(".thawline-1-0.tmp"), dir.path().join(".thawline-2-0.tmp"));
    fs::write(&left, "half of a file").unwrap();
    fs::write(&busy, "another process writes it").unwrap();
    let writer = fs::File::open(&busy).unwrap();
    writer.lock().unwrap();
    let (weights, out) = (fixture().join("weights.safetensors"), dir.path().join("folded.safetensors"));
    succeeds(&["fold", "--weights", text(&weights), "--out", text(&out)]);
    assert!(!left.exists() && busy.exists() && out.exists());
}

#[test]
fn a_reader_that_leaves_ends_no_run() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run");
    for (out, close_stderr) in [(&out, false), (&dir.path().join("both"), true)] {
        let mut child = spawn(&finetune(&shapes(), out), Stdio::piped(), Stdio::piped());
        drop(child.stdout.take());
        if close_stderr {
            drop(child.stderr.take());
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(results(out), results(&finished()));
    }

    let compared = dir.path().join("compared");
    let mut child = spawn(&compare(&shapes(), &compared), Stdio::piped(), Stdio::piped());
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(compared.join("report.html").exists());

    // What fails says so by its exit code, even to nobody.
    for args in [finetune(&shapes(), &out), vec!["inspect".into(), text(&dir.path().join("missing")).into()]] {
        let mut child = spawn(&args, Stdio::piped(), Stdio::piped());
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(1), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn commands_that_only_print_end_quietly_and_truly() {
    let weights = fixture().join("weights.safetensors");
    let (weights, shapes) = (text(&weights).to_owned(), text(&shapes()).to_owned());
    let val = format!("{shapes}/val");
    let unread = |args: &[&str]| {
        let mut child = spawn(args, Stdio::piped(), Stdio::piped());
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        output.status.code().unwrap()
    };
    assert_eq!(unread(&["inspect", &weights]), 0);
    assert_eq!(unread(&["eval", "--weights", &weights, "--data", &shapes]), 0);
    // It would go on for nobody.
    assert_eq!(unread(&["predict", "--weights", &weights, &val, "--batch", "1"]), 141);
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error_once_the_work_is_done() {
    let weights = fixture().join("weights.safetensors");
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let output = spawn(&["inspect", text(&weights)], full(), Stdio::piped()).wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
}

#[test]
fn a_broken_image_stops_a_run_with_the_command_that_goes_on() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    copy(&shapes(), &data);
    let broken = |folder: &str| {
        let class = first_image(&data.join(folder));
        fs::write(first_image(&class), "no image").unwrap();
    };
    broken("train");
    let (stopped, skipped) = (dir.path().join("stopped"), dir.path().join("skipped"));
    let skipping = |mut args: Vec<String>| {
        args.push("--skip-broken".into());
        args
    };
    let go_on = format!("thawline finetune --resume {} --skip-broken", text(&stopped));
    fails(&finetune(&data, &stopped), &["cannot decode", &go_on]);
    fails(&["finetune", "--resume", text(&stopped)], &["cannot decode", &go_on]);
    succeeds(&["finetune", "--resume", text(&stopped), "--skip-broken"]);
    // From now on it does so by itself.
    succeeds(&["finetune", "--resume", text(&stopped)]);
    let (stdout, _) = succeeds(&skipping(finetune(&data, &skipped)));
    assert!(stdout.contains("1 broken image skipped"), "{stdout}");
    assert_eq!(results(&stopped), results(&skipped));

    let (stopped, skipped) = (dir.path().join("compare stopped"), dir.path().join("compare skipped"));
    let go_on = format!("thawline compare --resume '{}' --skip-broken", text(&stopped));
    fails(&compare(&data, &stopped), &["cannot decode", &go_on]);
    succeeds(&["compare", "--resume", text(&stopped), "--skip-broken"]);
    succeeds(&skipping(compare(&data, &skipped)));
    let comparison = |folder: &Path| fs::read_to_string(folder.join("compare.json")).unwrap();
    assert_eq!(comparison(&stopped), comparison(&skipped));
}

#[test]
fn other_content_under_the_same_names_is_noticed_and_a_copy_is_not() {
    let dir = TempDir::new().unwrap();
    let (data, copied, run) = (dir.path().join("data"), dir.path().join("copied"), dir.path().join("run"));
    copy(&shapes(), &data);
    let compared = dir.path().join("compared");
    succeeds(&finetune(&data, &run));
    succeeds(&compare(&data, &compared));
    copy(&data, &copied);
    succeeds(&["finetune", "--resume", text(&run), "--data", text(&copied)]);
    succeeds(&["compare", "--resume", text(&compared), "--data", text(&copied)]);

    let mut classes: Vec<PathBuf> =
        fs::read_dir(data.join("train")).unwrap().map(|entry| entry.unwrap().path()).collect();
    classes.sort();
    let (one, other) = (first_image(&classes[0]), first_image(&classes[1]));
    let content = fs::read(&one).unwrap();
    fs::copy(&other, &one).unwrap();
    fs::write(&other, content).unwrap();
    fails(&["finetune", "--resume", text(&run)], &["another content", text(&data), text(&run)]);
    fails(&["compare", "--resume", text(&compared)], &["images changed", text(&compared)]);
}

#[test]
fn results_among_the_images_are_refused() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    copy(&shapes().join("train"), &data);
    let inside = data.join("run");
    let says = ["lies inside", text(&data)];
    fails(&finetune(&data, &inside), &says);
    fails(&compare(&data, &inside), &says);
    assert!(!inside.exists());
    let weights = fixture().join("weights.safetensors");
    let better = data.join("better.safetensors");
    fails(&["recalibrate", "--weights", text(&weights), "--data", text(&data), "--out", text(&better)], &says);
    // The other way round, and by other names.
    fails(&finetune(&data, dir.path()), &says);
    let mut relative = thawline(&finetune(Path::new("."), Path::new("run")));
    let output = relative.current_dir(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        fails(&finetune(&data, &dir.path().join("link/run")), &["lies inside"]);
    }
    // One that is there from before is told to be moved, not to be removed.
    copy(&finished(), &inside);
    fails(&["finetune", "--resume", text(&inside), "--data", text(&data)], &says);
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let dir = TempDir::new().unwrap();
    let binary = assert_cmd::cargo::cargo_bin("thawline");
    // Stacks so large that memory for other things is left where the next one does not fit any more.
    let script = r#"ulimit -v 4000000 && exec "$0" sample-data shapes "$1""#;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).arg(binary).arg(dir.path().join("data"));
    command.env("RAYON_NUM_THREADS", "1000").env("RUST_MIN_STACK", "67108864").env("MALLOC_ARENA_MAX", "1");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: the threads that work on images cannot be started"), "{stderr}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
}
