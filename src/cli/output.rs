//! What commands print: tables and prose for people, fitted to the terminal; JSON for scripts.
//!
//! Names from files may hold anything, so whatever is printed is escaped here: nothing but text reaches a terminal. A
//! reader that has gone ends no command: what it does, it does to the end, and its exit code says how that went.

use super::{events, progress};
use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde::Serialize;
use serde_json::Value;
use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use textwrap::core::display_width;
use textwrap::{Options, WordSeparator, WordSplitter};
pub use thawline::report::units::{bytes, count, flops, ms, times};
pub use thawline::text::quantity;
use thawline::text::{escaped, escaped_lines, shortened};

const TITLE: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Whether whoever read standard output, such as `head`, has had enough of it.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether only results, warnings and errors are wanted.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads what is printed any more, so that a command that only prints may end.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Stands for a space at which no line ends; no text of others has it, since it is no character.
const GLUE: &str = "\u{fdd0}";

/// The exit code of a command that ends before its time because nobody reads it: as of one that the signal for that ended.
pub const UNREAD: i32 = 128 + 13;

/// Characters in a line of standard output, if that is a terminal.
pub fn columns() -> Option<usize> {
    width(&io::stdout())
}

/// Columns of the terminal that `stream` is, `COLUMNS` before what the terminal says; none where it is no terminal, and lines
/// may have any length.
fn width(stream: &impl IsTerminal) -> Option<usize> {
    /// Of what can be neither asked nor read.
    const USUAL: usize = 80;
    /// Below this, no table can be read.
    const LEAST: usize = 20;
    if !stream.is_terminal() {
        return None;
    }
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    let asked = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    Some(told.or_else(asked).unwrap_or(USUAL).max(LEAST))
}

/// Prints text, without its colours where they are not wanted.
fn print(text: &str) -> Result<()> {
    if is_closed() {
        return Ok(());
    }
    let printed = progress::bars().suspend(|| {
        let mut out = AutoStream::auto(io::stdout().lock());
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    match printed {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => return Err(anyhow::Error::new(error).context("cannot write to standard output")),
        Ok(()) => {}
    }
    Ok(())
}

/// Prints a document as indented JSON, with the number of its schema: its own, or of a list each entry's.
pub fn json(value: &impl Serialize) -> Result<()> {
    let numbered = |mut value: Value| {
        if let Value::Object(fields) = &mut value {
            fields.shift_insert(0, "schema".into(), events::SCHEMA.into());
        }
        value
    };
    let value = match serde_json::to_value(value)? {
        Value::Array(entries) => entries.into_iter().map(numbered).collect(),
        value => numbered(value),
    };
    print_json(&serde_json::to_string_pretty(&value)?)
}

/// Prints a JSON object in one line.
pub fn json_line(value: &Value) -> Result<()> {
    print_json(&value.to_string())
}

fn print_json(text: &str) -> Result<()> {
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

/// Prints a line as it is: a path or a command, which can be copied, or the row of a list.
pub fn line(text: impl Display) -> Result<()> {
    print(&format!("{}\n", escaped(&text.to_string())))
}

/// Prints a script of which nothing comes from outside.
pub fn script(text: &str) -> Result<()> {
    print(text)
}

/// Prints text of several lines, the last of which it ends if it does not do so itself.
pub fn text(text: impl Display) -> Result<()> {
    let text = escaped_lines(&text.to_string());
    print(&if text.ends_with('\n') { text } else { text + "\n" })
}

/// Prints a sentence or more, wrapped to the terminal.
pub fn prose(text: impl Display) -> Result<()> {
    styled(text, Style::new())
}

/// Prints what stands above something.
pub fn title(text: impl Display) -> Result<()> {
    styled(text, TITLE)
}

/// Prints that all is well.
pub fn good(text: impl Display) -> Result<()> {
    styled(text, GOOD)
}

fn styled(text: impl Display, style: Style) -> Result<()> {
    let text = wrapped(&escaped(&text.to_string()), width(&io::stdout()), "");
    print(&format!("{style}{text}{style:#}\n"))
}

/// Prints what a command is about to do or is doing, which is no result.
pub fn status(text: impl Display) -> Result<()> {
    if has_status() { prose(text) } else { Ok(()) }
}

/// Whether what is no result is printed.
pub fn has_status() -> bool {
    !is_quiet() && !events::are_on()
}

/// Prints values in a line, of which none is broken where the line is: they go on in the next, indented.
pub fn joined(values: &[String], separator: &str) -> Result<()> {
    let glued: Vec<String> = values.iter().map(|value| escaped(value).replace(' ', GLUE)).collect();
    print(&format!("{}\n", wrapped(&glued.join(separator), width(&io::stdout()), "  ")))
}

/// Says something on standard error, whether anybody listens or not.
pub fn note(text: impl Display) {
    if !is_quiet() {
        say("", Style::new(), text);
    }
}

/// Says on standard error what the user should know before relying on the result.
pub fn warning(text: impl Display) {
    say("warning: ", WARNING, text);
}

/// Says on standard error why a command ends.
pub fn error(text: impl Display) {
    say("error: ", ERROR, text);
}

fn say(label: &str, style: Style, text: impl Display) {
    let text = format!("{label}{}", message(&text.to_string()));
    let text = wrapped(&text, width(&io::stderr()), "  ");
    let rest = text.strip_prefix(label).unwrap_or(&text);
    let _ =
        progress::bars().suspend(|| writeln!(AutoStream::auto(io::stderr().lock()), "{style}{label}{style:#}{rest}"));
}

/// Says on standard error lines that are messages already.
pub fn lines(lines: &[String]) {
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
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

/// How text is wrapped: at spaces, never inside a word, however long.
fn at_spaces(width: usize) -> Options<'static> {
    Options::new(width)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
}

/// The text in lines of at most `width` columns, where words allow; lines that go on are indented by `hanging` more. What
/// people copy stays whole: a command at the end gets its own line, and neither text between backticks nor what the user
/// typed is broken.
fn wrapped(text: &str, width: Option<usize>, hanging: &str) -> String {
    const COMMAND: &str = ": thawline ";
    let Some(width) = width else { return text.replace(GLUE, " ") };
    let typed: Vec<String> = std::env::args_os()
        .skip(1)
        .filter_map(|word| word.into_string().ok())
        .filter(|word| word.contains(' '))
        .collect();
    let fitted = |line: &str| {
        let begin = &line[..line.len() - line.trim_start_matches(' ').len()];
        if display_width(line) <= width || line.trim_start().starts_with("thawline ") {
            return line.replace(GLUE, " ");
        }
        let (sentence, command) = match line.find(COMMAND) {
            Some(colon) => (&line[..=colon], Some(&line[colon + 2..])),
            None => (line, None),
        };
        let mut glued = String::new();
        let quotes = sentence.matches('`').count();
        for (index, part) in sentence.split('`').enumerate() {
            if index > 0 {
                glued.push('`');
            }
            match index % 2 == 1 && index < quotes {
                true => glued.push_str(&part.replace(' ', GLUE)),
                false => glued.push_str(part),
            }
        }
        for word in &typed {
            glued = glued.replace(word, &word.replace(' ', GLUE));
        }
        let next = format!("{begin}{hanging}");
        let mut lines = textwrap::fill(&glued, at_spaces(width).subsequent_indent(&next)).replace(GLUE, " ");
        if let Some(command) = command {
            lines.push_str(&format!("\n{begin}  {command}"));
        }
        lines
    };
    text.split('\n').map(fitted).collect::<Vec<_>>().join("\n")
}

/// Prints a table whose columns are marked with `>` before their title if they are aligned to the right. In a terminal,
/// cells wrap at spaces; columns for which that does not make room are left out, and a line says which: those of the
/// titles `spare`, the first first. In a pipe the table has all columns, however wide.
pub fn table(titles: &[&str], spare: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    // A row is a line, whatever the names in it hold.
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| escaped(cell)).collect()).collect();
    let width = width(&io::stdout());
    let (shown, left_out) = fitted(titles, spare, &rows, width);
    // The ruler, of a character of its own, ends the titles.
    let is_ruler = |line: &&str| line.starts_with('─');
    let titles = shown.lines().take_while(|line| !is_ruler(line)).count();
    let mut text = String::new();
    for (index, line) in shown.lines().enumerate() {
        match index < titles {
            true => writeln!(text, "{TITLE}{line}{TITLE:#}")?,
            false => writeln!(text, "{line}")?,
        }
    }
    if !left_out.is_empty() {
        let left_out = left_out.join(", ");
        let note = format!("hidden columns: {left_out}; use a wider terminal, a pipe or --json to see them");
        writeln!(text, "{}", wrapped(&note, width, "  "))?;
    }
    print(&text)
}

/// The table for so many columns of a terminal, and the titles that it has no room for.
fn fitted(titles: &[&str], spare: &[&str], rows: &[Vec<String>], width: Option<usize>) -> (String, Vec<String>) {
    /// Between two columns, and beside the first and the last.
    const GAP: usize = 3;
    let name = |column: usize| titles[column].trim_start_matches('>');
    let cells = |column: usize| rows.iter().map(move |row| row[column].as_str());
    let widest = |words: &mut dyn Iterator<Item = &str>| words.map(display_width).max().unwrap_or(0);
    let natural = |column: usize| widest(&mut cells(column).chain([name(column)]));
    // A number stays beside its unit.
    let least = |column: usize| match titles[column].starts_with('>') {
        true => widest(&mut cells(column).chain(name(column).split(' '))),
        false => widest(&mut cells(column).chain([name(column)]).flat_map(|cell| cell.split(' '))),
    };
    let mut shown: Vec<usize> = (0..titles.len()).collect();
    let mut left_out = Vec::new();
    let mut widths: Vec<usize> = shown.iter().map(|&column| natural(column)).collect();
    if let Some(width) = width {
        let room = |columns: usize| (width + 1).saturating_sub(GAP * columns);
        let total = |shown: &[usize]| shown.iter().map(|&column| least(column)).sum::<usize>();
        for spared in spare {
            if total(&shown) <= room(shown.len()) {
                break;
            }
            if !shown.iter().any(|&column| name(column) == *spared) {
                continue;
            }
            shown.retain(|&column| name(column) != *spared);
            left_out.push((*spared).to_owned());
        }
        widths = shown.iter().map(|&column| natural(column)).collect();
        let least: Vec<usize> = shown.iter().map(|&column| least(column)).collect();
        // The widest give way first.
        while widths.iter().sum::<usize>() > room(shown.len()) {
            let wide = (0..widths.len()).filter(|&column| widths[column] > least[column]);
            let Some(widest) = wide.max_by_key(|&column| widths[column]) else { break };
            widths[widest] -= 1;
        }
    }
    let wrap = |cell: &str, width: usize| textwrap::wrap(cell, at_spaces(width)).join("\n");
    let header = shown.iter().zip(&widths).map(|(&column, &width)| wrap(name(column), width));
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
    let cell = |row: &[String], column: usize, width: usize| wrap(&row[column], width);
    table
        .add_rows(rows.iter().map(|row| {
            shown.iter().zip(&widths).map(|(&column, &width)| cell(row, column, width)).collect::<Vec<_>>()
        }));
    for (column, &shown) in table.column_iter_mut().zip(&shown) {
        if titles[shown].starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    (table.trim_fmt(), left_out)
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
    fn messages_are_bounded_and_keep_their_own_lines() {
        let long = "x".repeat(100_000);
        assert_eq!(message(&format!("rule {long} is wrong")).chars().count(), "rule … is wrong".chars().count() + 1000);
        assert!(message(&"x ".repeat(100_000)).chars().count() <= 4001);
        assert_eq!(message("a\n  missing: b\nerror: c\u{1b}"), "a\n  missing: b\\nerror: c\\u{1b}");
    }

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect()
    }

    #[test]
    fn tables_fit_and_break_no_word() {
        let titles = ["name", ">how much", "what it does", ">extra"];
        let all = rows(&[
            &["layer1.0.conv1", "225 GFLOP", "stats=batch, update=ema(0.9), affine=both", "1"],
            &["fc", "1 FLOP", "frozen", "2"],
        ]);
        let natural = fitted(&titles, &["extra"], &all, None).0;
        assert!(natural.contains("225 GFLOP   stats=batch, update=ema(0.9), affine=both"), "{natural}");
        for width in 55..120 {
            let (text, left_out) = fitted(&titles, &["extra", "how much"], &all, Some(width));
            assert!(text.lines().all(|line| display_width(line) <= width), "{width}:\n{text}");
            assert!(left_out.is_empty(), "{width}: {left_out:?}");
            for word in all.iter().flatten().flat_map(|cell| cell.split(' ')).chain(["225 GFLOP"]) {
                assert!(text.contains(word), "{width}: {word} is broken in\n{text}");
            }
        }
        let (text, left_out) = fitted(&titles, &["extra", "how much"], &all, Some(48));
        assert_eq!(left_out, ["extra"]);
        assert!(text.lines().all(|line| display_width(line) <= 48), "{text}");
        let (text, left_out) = fitted(&titles, &["extra", "how much"], &all, Some(36));
        assert_eq!(left_out, ["extra", "how much"]);
        assert!(text.lines().all(|line| display_width(line) <= 36), "{text}");
        // Nothing more can be spared, and words are whole all the same.
        assert!(fitted(&titles, &["extra"], &all, Some(20)).0.contains("update=ema(0.9),"));
    }

    #[test]
    fn prose_is_wrapped_around_what_is_copied() {
        let text = "error: the device was lost in step 3; go on with: thawline finetune --resume 'my run of today'";
        let lines = wrapped(text, Some(40), "  ");
        let expected =
            "error: the device was lost in step 3; go\n  on with:\n  thawline finetune --resume 'my run of today'";
        assert_eq!(lines, expected);
        assert_eq!(wrapped(text, None, "  "), text);
        assert_eq!(wrapped("a `b c d e f` g", Some(6), ""), "a\n`b c d e f`\ng");
        assert_eq!(wrapped("  ab cd ef", Some(6), ""), "  ab\n  cd\n  ef");
        assert_eq!(wrapped("unmatched ` a b", Some(11), ""), "unmatched `\na b");
    }

    #[test]
    fn kernels_are_counted() {
        assert_eq!(counted(&["a", "b", "a"]), "a ×2, b");
        assert_eq!(counted(&[]), "");
    }
}
