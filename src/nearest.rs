//! "Did you mean …?"

/// The candidate most like `word`, if one is close enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nothing is called like a text of any length, and comparing takes its length times those of the candidates.
    if word.len() > 256 {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(2);
    let scored = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    scored.filter(|&(edits, _)| edits <= allowed).min_by_key(|&(edits, _)| edits).map(|(_, candidate)| candidate)
}

/// ` (did you mean …?)`, or nothing when no candidate is close.
pub(crate) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|candidate| format!(" (did you mean `{candidate}`?)")).unwrap_or_default()
}

/// Levenshtein's: how many characters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in [("", "abc", 3), ("kitten", "sitting", 3), ("head", "head", 0), ("bn1", "bn2", 1)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn suggests_only_what_is_close() {
        assert_eq!(nearest("resnet19", ["resnet18", "resnet152"]), Some("resnet18"));
        assert_eq!(nearest("vgg", ["resnet18", "resnet152"]), None);
        assert_eq!(suggestion("haed", ["head"]), " (did you mean `head`?)");
        assert_eq!(suggestion("vgg", ["head"]), "");
    }
}
