//! How well each class is told apart, as pages show it.

use crate::train::{ClassFigures, ConfusionMatrix, Means};
use serde::Serialize;

/// Of more classes there is no matrix to be read: the pairs that are confused most are listed.
const MATRIX_CLASSES: usize = 25;
/// Pairs that are listed, at most.
const PAIRS: usize = 40;
/// Classes that stand in the open, those with the lowest recall; the others are folded away.
const OPEN: usize = 40;

/// A confusion matrix and what follows from it.
#[derive(Serialize)]
pub(super) struct ClassesView {
    /// As [`ConfusionMatrix::by_recall`] has them.
    open: Vec<ClassView>,
    folded: Vec<ClassView>,
    /// What the recall of each class is the mean of, and the others'.
    r#macro: Means,
    weighted: Means,
    images: u64,
    /// None of too many classes.
    matrix: Option<MatrixView>,
    /// Where there is no matrix: the pairs that are confused most, the most frequent first.
    pairs: Vec<PairView>,
    /// Pairs that are confused in all.
    all_pairs: usize,
}

#[derive(Serialize)]
struct ClassView {
    name: String,
    #[serde(flatten)]
    figures: ClassFigures,
    /// The class that its images are most often taken for, and how many of them; none if they never are.
    taken_for: Option<(String, u64)>,
}

/// A row and a column a class, by label.
#[derive(Serialize)]
struct MatrixView {
    names: Vec<String>,
    rows: Vec<Vec<CellView>>,
}

#[derive(Serialize)]
struct CellView {
    count: u64,
    /// Of the images of the row's class, in `[0, 1]`; 0 if there are none.
    share: f64,
}

#[derive(Serialize)]
struct PairView {
    truth: String,
    predicted: String,
    count: u64,
    /// Of the images of the true class.
    share: f64,
}

/// The name of a class; its number if it has none.
pub fn class_name(names: &[String], class: u32) -> String {
    names.get(class as usize).cloned().unwrap_or_else(|| format!("class {class}"))
}

impl ClassesView {
    /// `names` are those of the classes by label.
    pub fn new(confusion: &ConfusionMatrix, names: &[String]) -> Self {
        let figures = confusion.figures();
        let support = confusion.support();
        let mistakes = confusion.mistakes();
        let share = |truth: u32, count: u64| match support.get(truth as usize) {
            Some(&images) if images > 0 => count as f64 / images as f64,
            _ => 0.0,
        };
        let matrix = (figures.len() <= MATRIX_CLASSES).then(|| {
            let classes = || figures.iter().map(|figures| figures.class);
            let cell = |truth, predicted| {
                let count = confusion.count(truth, predicted);
                CellView { count, share: share(truth, count) }
            };
            MatrixView {
                names: classes().map(|class| class_name(names, class)).collect(),
                rows: classes().map(|truth| classes().map(|predicted| cell(truth, predicted)).collect()).collect(),
            }
        });
        let pair = |&([truth, predicted], count): &([u32; 2], u64)| PairView {
            truth: class_name(names, truth),
            predicted: class_name(names, predicted),
            count,
            share: share(truth, count),
        };
        let pairs = match matrix {
            Some(_) => Vec::new(),
            None => mistakes.iter().take(PAIRS).map(pair).collect(),
        };
        let figures = confusion.by_recall();
        let view = |figures: &ClassFigures| {
            let first = mistakes.iter().find(|([truth, _], _)| *truth == figures.class);
            let taken_for = first.map(|&([_, predicted], count)| (class_name(names, predicted), count));
            ClassView { name: class_name(names, figures.class), figures: *figures, taken_for }
        };
        let (open, folded) = figures.split_at(if figures.len() > OPEN + 5 { OPEN } else { figures.len() });
        Self {
            open: open.iter().map(view).collect(),
            folded: folded.iter().map(view).collect(),
            r#macro: confusion.macro_means(),
            weighted: confusion.weighted_means(),
            images: confusion.images(),
            matrix,
            pairs,
            all_pairs: mistakes.len(),
        }
    }
}
