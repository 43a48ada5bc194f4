//! README and docs against the program: console blocks are run and compared, and links lead somewhere. The unit tests of
//! `cli` parse every command that the pages show.

use assert_cmd::Command;
use std::path::{Path, PathBuf};

/// README and the pages of docs/, with their texts.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = root.join("docs").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let all = pages.chain(["README.md", "ARCHITECTURE.md", "ROADMAP.md"].map(|name| root.join(name)));
    all.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Whether `found` is `shown`, where a line `...` of the latter stands for any number of lines.
fn agrees(shown: &[&str], found: &[&str]) -> bool {
    match shown.split_first() {
        None => found.is_empty(),
        Some((&"...", rest)) => (0..=found.len()).any(|skipped| agrees(rest, &found[skipped..])),
        Some((line, rest)) => found.first() == Some(line) && agrees(rest, &found[1..]),
    }
}

#[test]
fn console_blocks_show_the_output_of_their_commands() {
    let mut blocks = 0;
    for (page, text) in pages() {
        for block in text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let mut lines = block.lines();
            let command = lines.next().and_then(|line| line.strip_prefix("$ ")).expect("a block begins with `$ `");
            let words = shlex::split(command).expect("quotes are closed");
            assert_eq!(words[0], "thawline", "{}: {command}", page.display());
            let output = Command::cargo_bin("thawline").unwrap().args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            let found = String::from_utf8(output.stdout).unwrap();
            // Tables are padded to the right; pages are not.
            let (shown, found): (Vec<_>, Vec<_>) =
                (lines.map(str::trim_end).collect(), found.lines().map(str::trim_end).collect());
            assert!(agrees(&shown, &found), "{}: `{command}` prints\n{}", page.display(), found.join("\n"));
            blocks += 1;
        }
    }
    assert!(blocks > 2, "only {blocks} blocks were found");
}

#[test]
fn links_lead_to_files() {
    for (page, text) in pages() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{}: a link leads to {target}, which does not exist", page.display());
        }
    }
}

#[test]
fn the_first_page_is_short() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let words = readme.split_whitespace().count();
    assert!(words <= 900, "README.md has {words} words; move something to docs/");
}
