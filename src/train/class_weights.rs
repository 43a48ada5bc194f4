//! A weight for each class in the loss.
//!
//! Only the weights' ratios matter, since the loss of an optimiser step is a weighted mean over its images: they are scaled
//! so that their mean over the images of an epoch is 1. The training loss, which is the sum over an epoch's images divided by
//! their number, is then that weighted mean, too.

use super::TrainError;
use crate::data::Sampler;
use crate::files::read_text;
use crate::text::{message, printable};
use std::collections::BTreeMap;
use std::path::Path;

/// The longest file of weights, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Names that a message lists.
const NAMED: usize = 5;

/// Weights by which all classes count the same, whatever `counts` of images they have: `n / (classes · count)`, as
/// scikit-learn's `class_weight="balanced"`. A class without images has a weight of 0. `sampler` says how often images are
/// shown.
pub fn balanced_weights(counts: &[u64], sampler: Sampler) -> Vec<f64> {
    let weights = counts.iter().map(|&count| if count == 0 { 0.0 } else { 1.0 / count as f64 });
    scaled(weights.collect(), counts, sampler)
}

/// The weights that a file names: JSON if it ends in `.json`, else TOML, with a number for each of `classes`.
///
/// # Errors
/// The file cannot be read; a class is missing or unknown; a weight is below 0 or not finite; no class with images has one
/// above 0.
pub fn read_weights(path: &Path, classes: &[String], counts: &[u64], sampler: Sampler) -> Result<Vec<f64>, TrainError> {
    let text = read_text(path, MAX_FILE).map_err(|source| TrainError::Read { path: path.into(), source })?;
    let wrong = |reason: String| TrainError::ClassWeights { path: path.into(), reason };
    let given: BTreeMap<String, f64> = match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        true => serde_json::from_str(&text).map_err(|error| wrong(message(&error.to_string())))?,
        false => toml::from_str(&text).map_err(|error| wrong(message(error.message())))?,
    };
    let missing: Vec<&String> = classes.iter().filter(|class| !given.contains_key(*class)).collect();
    if !missing.is_empty() {
        return Err(wrong(format!("it has no weight for {}; give one for each class", listed(&missing))));
    }
    let unknown: Vec<&String> = given.keys().filter(|name| !classes.contains(name)).collect();
    if !unknown.is_empty() {
        let known: Vec<&String> = classes.iter().collect();
        return Err(wrong(format!("no class is called {}; the classes are {}", listed(&unknown), listed(&known))));
    }
    if let Some((name, weight)) = given.iter().find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
        return Err(wrong(format!("the weight of `{}` is {weight}: expected 0 or more", printable(name))));
    }
    let weights: Vec<f64> = classes.iter().filter_map(|class| given.get(class).copied()).collect();
    if !weights.iter().zip(counts).any(|(weight, count)| *weight > 0.0 && *count > 0) {
        return Err(wrong("no class with training images has a weight above 0, so nothing would train".into()));
    }
    Ok(scaled(weights, counts, sampler))
}

/// The first few names in backticks.
fn listed(names: &[&String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{}`", printable(name))).collect();
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    shown.join(", ") + &more
}

/// With a mean of 1 over the images that an epoch shows.
fn scaled(weights: Vec<f64>, counts: &[u64], sampler: Sampler) -> Vec<f64> {
    let shown = |count: u64| match sampler {
        Sampler::Shuffled => count as f64,
        Sampler::Balanced => f64::from(u8::from(count > 0)),
    };
    let images: f64 = counts.iter().map(|&count| shown(count)).sum();
    let sum: f64 = weights.iter().zip(counts).map(|(weight, &count)| weight * shown(count)).sum();
    weights.into_iter().map(|weight| weight * images / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn balanced_weights_are_scikit_learns() {
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0]*6 + [1]*3 + [2]).
        let expected = [10.0 / 18.0, 10.0 / 9.0, 10.0 / 3.0];
        for (ours, expected) in balanced_weights(&[6, 3, 1], Sampler::Shuffled).iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-15, "{ours} {expected}");
        }
        let sparse = balanced_weights(&[6, 0, 2], Sampler::Shuffled);
        assert_eq!(sparse[1], 0.0);
        assert!((sparse[0] * 6.0 + sparse[2] * 2.0 - 8.0).abs() < 1e-12);
    }

    #[test]
    fn a_file_gives_ratios() {
        let dir = tempfile::tempdir().unwrap();
        let classes = names(&["cat", "a \"dog\""]);
        let read = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_weights(&path, &classes, &[6, 2], Sampler::Shuffled)
        };
        let expected = vec![2.0 / 3.0, 2.0];
        assert_eq!(read("w.toml", "cat = 1\n\"a \\\"dog\\\"\" = 3.0\n").unwrap(), expected);
        assert_eq!(read("w.JSON", r#"{"cat": 10, "a \"dog\"": 30}"#).unwrap(), expected);
        for (text, expected) in [
            ("cat = 1", "w.toml: it has no weight for `a \"dog\"`"),
            ("cat = 1\n'a \"dog\"' = 1\ncow = 2", "no class is called `cow`; the classes are `cat`, `a \"dog\"`"),
            ("cat = -1\n'a \"dog\"' = 1", "the weight of `cat` is -1"),
            ("cat = nan\n'a \"dog\"' = 1", "the weight of `cat` is NaN"),
            ("cat = 0\n'a \"dog\"' = 0", "nothing would train"),
            ("cat = ", "w.toml"),
            ("cat = 'x'", "w.toml"),
        ] {
            let error = read("w.toml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(read_weights(&dir.path().join("none"), &classes, &[1, 1], Sampler::Shuffled).is_err());
    }

    #[test]
    fn weights_have_a_mean_of_one_over_what_is_shown() {
        let weights = balanced_weights(&[8, 2], Sampler::Balanced);
        assert!((weights[0] + weights[1] - 2.0).abs() < 1e-12 && (weights[1] / weights[0] - 4.0).abs() < 1e-12);
    }
}
