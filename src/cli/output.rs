//! What commands print: tables for people, JSON for scripts.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
pub use thawline::report::units::{bytes, count, flops, ms, times};

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints a line. Unlike `println!`, it survives a reader that has gone.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints text that ends its last line itself, as [`line`] does.
pub fn text(text: impl std::fmt::Display) -> Result<()> {
    write!(io::stdout().lock(), "{text}")?;
    Ok(())
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
    table.add_rows(rows);
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
    fn kernels_are_counted() {
        assert_eq!(counted(&["a", "b", "a"]), "a ×2, b");
        assert_eq!(counted(&[]), "");
    }
}
