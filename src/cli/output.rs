//! What commands print: tables for people, JSON for scripts.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints a line. Unlike `println!`, it survives a reader that has gone.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
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

/// `1.82 G`, `11.7 M`, `512 `: three digits and the decimal prefix.
fn scaled(value: f64) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = value;
    let mut prefix = 0;
    // 999.5 would be shown as 1000.
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = match value {
        _ if prefix == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", PREFIXES[prefix])
}

pub fn bytes(bytes: u64) -> String {
    format!("{}B", scaled(bytes as f64))
}

pub fn flops(flops: u64) -> String {
    format!("{}FLOP", scaled(flops as f64))
}

pub fn count(count: usize) -> String {
    scaled(count as f64).trim_end().to_owned()
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

pub fn ms(ms: f64) -> String {
    match ms {
        v if v < 9.995 => format!("{v:.2} ms"),
        v if v < 99.95 => format!("{v:.1} ms"),
        v if v < 9_999.5 => format!("{v:.0} ms"),
        v => format!("{:.1} s", v / 1e3),
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
    fn units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(44_650_000), "44.6 MB");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(flops(1_819_000_000), "1.82 GFLOP");
        assert_eq!(flops(181_900_000_000), "182 GFLOP");
        assert_eq!(count(11_689_512), "11.7 M");
        assert_eq!(count(512), "512");
        assert_eq!([ms(1.234), ms(12.34), ms(1234.0), ms(12340.0)], ["1.23 ms", "12.3 ms", "1234 ms", "12.3 s"]);
    }

    #[test]
    fn kernels_are_counted() {
        assert_eq!(counted(&["a", "b", "a"]), "a ×2, b");
        assert_eq!(counted(&[]), "");
    }
}
