//! Figures of classification against scikit-learn's, to 1e-12.

use serde::Deserialize;
use thawline::train::{ConfusionMatrix, Means, Ranking};

#[path = "common/golden.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod golden;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    rankings: Vec<Ranked>,
}

#[derive(Deserialize)]
struct Ranked {
    name: String,
    truth: Vec<bool>,
    scores: Vec<f64>,
    auroc: f64,
    average_precision: f64,
}

/// `tests/golden/README.md` says what is what.
#[derive(Deserialize)]
struct Case {
    name: String,
    classes: usize,
    truth: Vec<u32>,
    predicted: Vec<u32>,
    confusion: Option<Vec<Vec<u64>>>,
    labels: Vec<u32>,
    precision: Vec<f64>,
    recall: Vec<f64>,
    f1: Vec<f64>,
    support: Vec<u64>,
    r#macro: [f64; 3],
    weighted: [f64; 3],
    accuracy: f64,
    balanced_accuracy: f64,
}

#[test]
fn figures_are_scikit_learns() {
    for case in golden::load::<Golden>("classification").cases {
        let mut matrix = ConfusionMatrix::new(case.classes);
        for (&truth, &predicted) in case.truth.iter().zip(&case.predicted) {
            matrix.add(truth, predicted);
        }
        let same = |what: &str, ours: f64, theirs: f64| {
            assert!((ours - theirs).abs() <= 1e-12, "{}, {what}: {ours}, not {theirs}", case.name);
        };
        for (truth, row) in case.confusion.iter().flatten().enumerate() {
            for (predicted, &count) in row.iter().enumerate() {
                assert_eq!(matrix.count(truth as u32, predicted as u32), count, "{}", case.name);
            }
        }
        let figures = matrix.figures();
        assert_eq!(figures.iter().map(|f| f.class).collect::<Vec<_>>(), case.labels, "{}", case.name);
        assert_eq!(figures.iter().map(|f| f.support).collect::<Vec<_>>(), case.support, "{}", case.name);
        for (index, class) in figures.iter().enumerate() {
            same("precision", class.precision, case.precision[index]);
            same("recall", class.recall, case.recall[index]);
            same("F1", class.f1, case.f1[index]);
        }
        for (ours, theirs) in [(matrix.macro_means(), case.r#macro), (matrix.weighted_means(), case.weighted)] {
            let Means { precision, recall, f1 } = ours;
            for (ours, theirs) in [precision, recall, f1].into_iter().zip(theirs) {
                same("a mean", ours, theirs);
            }
        }
        same("accuracy", matrix.accuracy(), case.accuracy);
        same("balanced accuracy", matrix.balanced_accuracy(), case.balanced_accuracy);
        assert_eq!(matrix.images(), case.truth.len() as u64);
    }
}

#[test]
fn rankings_are_scikit_learns() {
    for case in golden::load::<Golden>("classification").rankings {
        let mut ranking = Ranking::default();
        case.scores.iter().zip(&case.truth).for_each(|(&score, &truth)| ranking.add(score, truth));
        let same = |what: &str, ours: Option<f64>, theirs: f64| {
            let ours = ours.expect("both classes have images");
            assert!((ours - theirs).abs() <= 1e-12, "{}, {what}: {ours}, not {theirs}", case.name);
        };
        same("AUROC", ranking.auroc(), case.auroc);
        same("average precision", ranking.average_precision(), case.average_precision);
    }
}

#[test]
fn one_class_has_no_ranking() {
    let mut ranking = Ranking::default();
    assert_eq!((ranking.auroc(), ranking.average_precision()), (None, None));
    ranking.add(0.5, true);
    assert_eq!(ranking.auroc(), None);
    ranking.add(f64::NAN, false);
    assert_eq!(ranking.average_precision(), None);
}
