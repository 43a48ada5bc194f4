//! The rules of ARCHITECTURE.md that the compiler does not hold: which module may use which, and what may be named where.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the library and what it may use; a module may use only what stands above it, so there are no cycles.
const LAYERS: &[(&str, &[&str])] = &[
    ("act", &[]),
    ("files", &[]),
    ("nearest", &[]),
    ("preprocessing", &[]),
    ("rng", &[]),
    ("tensor", &[]),
    ("text", &[]),
    ("window", &[]),
    ("graph", &["act", "tensor", "window"]),
    ("policy", &["files", "graph", "nearest", "text"]),
    ("models", &["files", "graph", "nearest", "preprocessing", "tensor", "text"]),
    ("convert", &["graph", "preprocessing", "tensor"]),
    // Not the policy: it has left its settings in the graph.
    ("compile", &["graph", "tensor"]),
    ("kernels", &["act", "rng", "tensor", "window"]),
    ("plan", &["graph", "kernels", "preprocessing", "tensor"]),
    ("reference", &["graph", "kernels", "plan"]),
    ("gpu", &["graph", "kernels", "plan", "tensor"]),
    ("check", &["act", "gpu", "kernels", "rng", "tensor"]),
    ("weights", &["files", "graph", "preprocessing", "rng", "tensor", "text"]),
    // Not the compiler: what is exported is the network, never a plan.
    ("export", &["graph", "tensor", "weights"]),
    // What files are, from tensors to networks; nothing below it knows a format.
    ("formats", &["export", "files", "graph", "models", "preprocessing", "tensor", "text", "weights"]),
    ("hub", &["files", "formats", "text", "weights"]),
    // Between files and networks: neither of the two knows the other.
    ("identify", &["graph", "models", "text", "weights"]),
    ("data", &["files", "preprocessing", "rng", "tensor", "text"]),
    // Not the policy: a session takes a graph that has its settings. Not the models: it takes any graph. Of the formats it has the
    // methods of `StateDict`, for checkpoints.
    (
        "train",
        &[
            "compile",
            "data",
            "files",
            "formats",
            "gpu",
            "graph",
            "kernels",
            "plan",
            "preprocessing",
            "reference",
            "rng",
            "tensor",
            "text",
            "weights",
        ],
    ),
    // What a file of any format and its network are together; see `Model`.
    (
        "model",
        &[
            "data",
            "export",
            "formats",
            "graph",
            "identify",
            "models",
            "plan",
            "preprocessing",
            "tensor",
            "text",
            "train",
            "weights",
        ],
    ),
    (
        "report",
        &["compile", "data", "files", "graph", "kernels", "plan", "policy", "tensor", "text", "train", "weights"],
    ),
    (
        "lab",
        &[
            "compile", "data", "files", "gpu", "graph", "kernels", "plan", "policy", "report", "tensor", "text",
            "train", "weights",
        ],
    ),
    // What people ask for becomes runs and comparisons here, whichever door they come by.
    (
        "study",
        &[
            "data",
            "formats",
            "gpu",
            "graph",
            "identify",
            "lab",
            "model",
            "models",
            "plan",
            "policy",
            "preprocessing",
            "tensor",
            "text",
            "train",
            "weights",
        ],
    ),
];

/// Crates of the command line, which users of the library do not pay for.
const CLI_CRATES: [&str; 12] = [
    "anstream",
    "anstyle",
    "anyhow",
    "clap",
    "clap_complete",
    "clap_mangen",
    "comfy_table",
    "ctrlc",
    "env_logger",
    "indicatif",
    "terminal_size",
    "textwrap",
];

struct Source {
    /// Relative to the repository, with slashes.
    path: String,
    /// The file without its comments, strings and unit tests.
    code: String,
}

impl Source {
    /// The top-level module that the file belongs to, such as `plan` for `src/plan/cost.rs`.
    fn module(&self) -> &str {
        let path = self.path.strip_prefix("src/").expect("below src/");
        path.split_once('/').map_or_else(|| path.trim_end_matches(".rs"), |(module, _)| module)
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = files_below(&root.join("src")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    // A file of unit tests alone.
    let files = files.filter(|path| !path.ends_with("tests.rs"));
    let sources: Vec<Source> = files
        .map(|path| {
            let code = bare(&fs::read_to_string(&path).unwrap());
            let code = without_tests(&code).to_owned();
            Source { path: path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/"), code }
        })
        .collect();
    assert!(sources.len() > LAYERS.len(), "the sources were not found");
    sources
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Rust code with comments, and what is between quotes, replaced by spaces.
fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            'r' if !after_word => raw(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.push(' ');
            rest = &rest[length..];
        }
    }
    out
}

/// The length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let (step, change) = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        depth += change;
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string literal, or 0 if the text begins with another word.
fn raw(text: &str) -> usize {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    let start = 1 + hashes + 1;
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// The length of a character literal, or 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => chars.find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// The code before the unit tests: they end a file, and may use what they like.
fn without_tests(code: &str) -> &str {
    code.split_once("mod tests {").map_or(code, |(code, _)| code)
}

/// Every place where `name` stands as a whole word, as what follows it.
fn after_each<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).filter_map(move |(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        (!before.ends_with(in_word) && !after.starts_with(in_word)).then_some(after)
    })
}

/// Whether the code names the crate, rather than something else that is called like it.
fn names_crate(code: &str, name: &str) -> bool {
    let used = |keyword| after_each(code, keyword).any(|rest| first_word(rest.trim_start()) == name);
    after_each(code, name).any(|rest| rest.trim_start().starts_with("::")) || used("use") || used("extern crate")
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")
}

/// The top-level modules that the code names by `crate::…` or `use crate::{…}`.
fn uses(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for path in after_each(code, "crate").filter_map(|rest| rest.strip_prefix("::")) {
        match path.strip_prefix('{') {
            None => {
                found.insert(first_word(path));
            }
            Some(group) => found.extend(group_items(group)),
        }
    }
    found
}

/// The first words of what a `{…}` lists; `group` begins behind the brace.
fn group_items(group: &str) -> Vec<&str> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                items.push(first_word(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

#[test]
fn the_scanner_sees_paths_and_nothing_else() {
    let code = bare(
        r##"//! [x](crate::no1)
        use crate::{graph::{self, Op}, plan::Plan, tensor};
        /* crate::no2 /* nested */ crate::no3 */
        pub(crate) fn f<'a>(x: &'a str) -> crate::kernels::K { g('"', '\'', "crate::no4 \" crate::no5", r#"crate::no6"#) }
        my_crate::no7(); crate::
        "##,
    );
    let found: Vec<&str> = uses(&code).into_iter().filter(|name| !name.is_empty()).collect();
    assert_eq!(found, ["graph", "kernels", "plan", "tensor"]);
    assert!(names_crate("use clap::Parser;", "clap") && names_crate("#[derive(clap::Args)]", "clap"));
    assert!(names_crate("use wgpu as gpu;", "wgpu"));
    assert!(!names_crate("let (wgpu, clap) = (WGPU, claps::x);", "wgpu"));
    assert!(!names_crate("claps::x", "clap") && !names_crate("pytorch_clap::x", "clap"));
    assert_eq!(without_tests("a\nmod tests {\nb }"), "a\n");
}

#[test]
fn the_table_has_no_cycles() {
    for (index, (module, allowed)) in LAYERS.iter().enumerate() {
        for used in *allowed {
            assert!(LAYERS[..index].iter().any(|(above, _)| above == used), "{used} does not stand above {module}");
        }
    }
}

#[test]
fn modules_use_only_what_is_below_them() {
    let mut modules = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        if ["lib", "main", "cli"].contains(&module) {
            continue;
        }
        let allowed = LAYERS.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        let Some(allowed) = allowed else {
            wrong.push(format!("{}: the module `{module}` has no line in LAYERS", source.path));
            continue;
        };
        modules.insert(module.to_owned());
        for used in uses(&source.code) {
            let of_the_library = LAYERS.iter().any(|(name, _)| *name == used);
            if of_the_library && used != module && !allowed.contains(&used) {
                wrong.push(format!("{} uses `{used}`, which `{module}` may not", source.path));
            }
        }
        // Up two levels is another module, and `crate::` says which.
        if source.code.contains("super::super") {
            wrong.push(format!("{} says `super::super`; write the path from `crate`", source.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(modules.len(), LAYERS.len(), "LAYERS has a module that is gone; there are {modules:?}");
}

#[test]
fn only_gpu_names_wgpu() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|source| source.module() != "gpu" && names_crate(&source.code, "wgpu"))
        .map(|source| source.path)
        .collect();
    assert!(wrong.is_empty(), "these name wgpu: {wrong:?}");
}

#[test]
fn only_the_command_line_names_its_crates() {
    for source in sources().iter().filter(|source| !["cli", "main"].contains(&source.module())) {
        for name in CLI_CRATES {
            assert!(!names_crate(&source.code, name), "{} names {name}", source.path);
        }
        assert!(!names_crate(&source.code, "cli"), "{} uses the command line", source.path);
    }
}

#[test]
fn shaders_are_files_in_shaders() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests", "examples", "benches", "assets"].map(|name| root.join(name)) {
        let files = if folder.is_dir() { files_below(&folder) } else { Vec::new() };
        let stray = files.iter().find(|path| path.extension().is_some_and(|extension| extension == "wgsl"));
        assert_eq!(stray, None, "shaders belong into shaders/");
        for path in files.iter().filter(|path| path.starts_with(root.join("src"))) {
            // Entry points cannot be written without it.
            let text = fs::read(path).unwrap();
            let shader = text.windows(8).any(|bytes| bytes == b"@compute");
            assert!(!shader, "{} holds shader text; shaders belong into shaders/", path.display());
        }
    }
}
