//! Text of others made fit to be shown: names from files, and what a user typed.

use std::fmt::Display;

/// Characters of a quotation, and of a message that quotes.
const QUOTATION: usize = 200;
const MESSAGE: usize = 1000;

/// Whether a terminal may take the character for a command, or show what follows it in another place.
fn is_unsafe(c: char) -> bool {
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || reorders || matches!(c, '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// The text with every character escaped that a terminal does not just show: control characters, line ends among them,
/// and those that change the direction of text. Quotes and backslashes stay as they are.
pub fn escaped(text: &str) -> String {
    escaped_except(text, |_| false)
}

/// As [`escaped`], for text of several lines: line ends stay.
pub fn escaped_lines(text: &str) -> String {
    escaped_except(text, |c| c == '\n')
}

fn escaped_except(text: &str, kept: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unsafe(c) && !kept(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// [`escaped`] text that is cut after 200 characters: how a message quotes what may be of any length.
pub fn printable(text: &str) -> String {
    shortened(&escaped(text), QUOTATION)
}

/// The same for a message that quotes texts of others in places that it does not tell: cut after 1000 characters.
pub fn message(text: &str) -> String {
    shortened(&escaped(text), MESSAGE)
}

/// The text, cut after so many characters.
pub fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
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

/// `a, b or c`.
pub fn alternatives<'a>(of: impl IntoIterator<Item = &'a str>) -> String {
    let of: Vec<&str> = of.into_iter().collect();
    match of.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
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
    fn the_last_alternative_is_behind_an_or() {
        assert_eq!(alternatives(["a", "b", "c"]), "a, b or c");
        assert_eq!(alternatives(["a"]), "a");
    }

    #[test]
    fn only_what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(escaped("\u{1b}[31mred\u{9b}2J\r\n\t\u{7f}"), r"\u{1b}[31mred\u{9b}2J\r\n\t\u{7f}");
        assert_eq!(escaped("abc\u{202e}gnp.exe"), r"abc\u{202e}gnp.exe");
        for plain in ["", "a 'b' \"c\" \\d", "é e\u{301} 日本 👩\u{200d}🚀 می\u{200c}خواهم"] {
            assert_eq!(escaped(plain), plain);
        }
        assert_eq!(escaped_lines("a\n\u{1b}b"), "a\n\\u{1b}b");
    }

    #[test]
    fn quotations_are_short() {
        assert_eq!(printable("short"), "short");
        let long = printable(&"é".repeat(100_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (201, true));
        assert_eq!(printable(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(message(&"x".repeat(2000)).chars().count(), 1001);
    }
}
