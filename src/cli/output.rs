//! What commands print: tables for people, JSON for scripts.
//!
//! Names from files may hold anything, so whatever is printed is escaped here: nothing but text reaches a terminal. A
//! reader that has gone ends no command: what it does, it does to the end, and its exit code says how that went.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;
use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
pub use thawline::report::units::{bytes, count, flops, ms, times};
use thawline::text::{escaped, escaped_lines, shortened};

/// Whether whoever read standard output, such as `head`, has had enough of it.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads what is printed any more, so that a command that only prints may end.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// The exit code of a command that ends before its time because nobody reads it: as of one that the signal for that ended.
pub const UNREAD: i32 = 128 + 13;

fn print(text: &str) -> Result<()> {
    if is_closed() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => return Err(anyhow::Error::new(error).context("cannot write to standard output")),
        Ok(()) => {}
    }
    Ok(())
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    // JSON itself escapes those below the space only. They stand in strings alone, where this form is JSON, too.
    let mut shown = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => write!(shown, "\\u{:04x}", u32::from(c))?,
            false => shown.push(c),
        }
    }
    shown.push('\n');
    print(&shown)
}

/// Prints a line.
pub fn line(text: impl Display) -> Result<()> {
    print(&format!("{}\n", escaped(&text.to_string())))
}

/// Prints text of several lines, the last of which it ends if it does not do so itself.
pub fn text(text: impl Display) -> Result<()> {
    let text = escaped_lines(&text.to_string());
    print(&if text.ends_with('\n') { text } else { text + "\n" })
}

/// Says something on standard error, whether anybody listens or not.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", message(&text.to_string()));
}

/// As [`note`], of lines that are messages already.
pub fn lines(lines: &[String]) {
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// Says on standard error what the user should know before relying on the result.
pub fn warning(text: impl Display) {
    note(format_args!("warning: {text}"));
}

/// A message as it may be shown, which quotes names from files and what the user typed, of whatever length. Its own line
/// ends are followed by two spaces; others are a name's.
pub fn message(text: &str) -> String {
    const WORD: usize = 1000;
    const LINE: usize = 4000;
    const NEXT: &str = "\n  ";
    let line = |line: &str| {
        let words: Vec<String> = line.split(' ').map(|word| shortened(word, WORD)).collect();
        escaped(&shortened(&words.join(" "), LINE))
    };
    text.split(NEXT).map(line).collect::<Vec<_>>().join(NEXT)
}

/// A table whose columns are marked with `>` before their title if they are aligned to the right. Wraps what is too
/// wide for the terminal; in a pipe nothing is wrapped.
pub fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(titles.iter().map(|t| t.trim_start_matches('>')));
    table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    // A row is a line, whatever the names in it hold.
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| escaped(cell)).collect::<Vec<_>>()));
    for (column, title) in table.column_iter_mut().zip(titles) {
        if title.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// The path as a POSIX shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Nothing for zero, which lets a table's other numbers stand out.
pub fn or_blank(value: u64, show: impl Fn(u64) -> String) -> String {
    if value == 0 { String::new() } else { show(value) }
}

/// `1 class`, `3 classes`, `1 policy`, `2 policies`.
pub fn quantity<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    match (count == N::from(1), noun.strip_suffix('y')) {
        (true, _) => format!("{count} {noun}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        _ if noun.ends_with('s') || noun.ends_with("tch") => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// `sgd_step`, `conv2d_input_grad ×2`: names with how often each comes, in the order of their first coming.
pub fn counted(names: &[&str]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counted.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counted.push((name, 1)),
        }
    }
    let words = counted.iter().map(|(name, count)| match count {
        1 => (*name).to_owned(),
        _ => format!("{name} ×{count}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular() {
        let of = |noun: &str| [1_u64, 2].map(|count| quantity(count, noun)).join(", ");
        assert_eq!(of("epoch"), "1 epoch, 2 epochs");
        assert_eq!(of("batch"), "1 batch, 2 batches");
        assert_eq!(of("class"), "1 class, 2 classes");
        assert_eq!(of("policy"), "1 policy, 2 policies");
    }

    #[test]
    fn messages_are_bounded_and_keep_their_own_lines() {
        let long = "x".repeat(100_000);
        assert_eq!(message(&format!("rule {long} is wrong")).chars().count(), "rule … is wrong".chars().count() + 1000);
        assert!(message(&"x ".repeat(100_000)).chars().count() <= 4001);
        assert_eq!(message("a\n  missing: b\nerror: c\u{1b}"), "a\n  missing: b\\nerror: c\\u{1b}");
    }

    #[test]
    fn rows_are_lines() {
        assert_eq!(table(&["a"], [vec!["b\nc\u{1b}[2J".to_owned()]]).lines().count(), 3);
    }

    #[test]
    fn kernels_are_counted() {
        assert_eq!(counted(&["a", "b", "a"]), "a ×2, b");
        assert_eq!(counted(&[]), "");
    }
}
