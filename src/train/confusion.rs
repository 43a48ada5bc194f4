//! Which class images of each class were taken for, and the figures that follow from it.
//!
//! Definitions and conventions are those of scikit-learn's `precision_recall_fscore_support` and
//! `balanced_accuracy_score`, of which the tests hold results.

use serde::{Deserialize, Serialize};
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// How many images of each true class were predicted to be of each class: `[true class, predicted class]`.
///
/// Only counts above 0 are stored, so memory follows the images and not the square of the classes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Cells", into = "Cells")]
pub struct ConfusionMatrix {
    classes: usize,
    counts: BTreeMap<(u32, u32), u64>,
}

/// As files hold it: counts above 0 as `[true class, predicted class, count]`, by row and column.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cells {
    classes: usize,
    counts: Vec<(u32, u32, u64)>,
}

/// The figures of one class. What would be divided by zero is 0, as in scikit-learn: the precision of a class that is never
/// predicted, and the recall of a class without images.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct ClassFigures {
    /// Its label.
    pub class: u32,
    /// Images of the class.
    pub support: u64,
    /// Images that were taken for it.
    pub predicted: u64,
    /// The share of the images that were taken for it which are of it, in `[0, 1]`.
    pub precision: f64,
    /// The share of its images that were taken for it, in `[0, 1]`.
    pub recall: f64,
    /// The harmonic mean of precision and recall: `2·right / (support + predicted)`.
    pub f1: f64,
}

/// Means over classes.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Means {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

impl ConfusionMatrix {
    /// Of no images yet, and so many classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: BTreeMap::new() }
    }

    /// Classes that the network tells apart.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Counts an image of class `truth` that was taken for class `predicted`.
    pub fn add(&mut self, truth: u32, predicted: u32) {
        *self.counts.entry((truth, predicted)).or_default() += 1;
    }

    /// How many images of class `truth` were taken for class `predicted`.
    pub fn count(&self, truth: u32, predicted: u32) -> u64 {
        self.counts.get(&(truth, predicted)).copied().unwrap_or(0)
    }

    /// The counts above 0, with their true and predicted classes, by row and column.
    pub fn counts(&self) -> impl Iterator<Item = ([u32; 2], u64)> {
        self.counts.iter().map(|(&(truth, predicted), &count)| ([truth, predicted], count))
    }

    /// The counts off the diagonal, the greatest first.
    pub fn mistakes(&self) -> Vec<([u32; 2], u64)> {
        let mut mistakes: Vec<_> = self.counts().filter(|([truth, predicted], _)| truth != predicted).collect();
        // Stable: of equals, the first.
        mistakes.sort_by_key(|&(_, count)| Reverse(count));
        mistakes
    }

    /// Images in all.
    pub fn images(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The share of images whose class was predicted, in `[0, 1]`; NaN without images.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = self.counts().filter(|([t, p], _)| t == p).map(|(_, count)| count).sum();
        right as f64 / self.images() as f64
    }

    /// The mean recall of the classes that have images, in `[0, 1]`: what accuracy would be if each of them had as many as
    /// the others. NaN without images.
    pub fn balanced_accuracy(&self) -> f64 {
        let recalls: Vec<f64> = self.figures().iter().filter(|c| c.support > 0).map(|c| c.recall).collect();
        recalls.iter().sum::<f64>() / recalls.len() as f64
    }

    /// The figures of each class that has images or was predicted, by label.
    pub fn figures(&self) -> Vec<ClassFigures> {
        #[derive(Default)]
        struct Sums {
            support: u64,
            predicted: u64,
            right: u64,
        }
        let mut sums: BTreeMap<u32, Sums> = BTreeMap::new();
        for ([truth, predicted], count) in self.counts() {
            sums.entry(truth).or_default().support += count;
            sums.entry(predicted).or_default().predicted += count;
            if truth == predicted {
                sums.entry(truth).or_default().right += count;
            }
        }
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let figures = sums.into_iter().map(|(class, Sums { support, predicted, right })| ClassFigures {
            class,
            support,
            predicted,
            precision: share(right, predicted),
            recall: share(right, support),
            f1: share(2 * right, support + predicted),
        });
        figures.collect()
    }

    /// [`figures`](Self::figures), the lowest recall first; of equals, the class with more images. Those without images are
    /// last: their recall says nothing.
    pub fn by_recall(&self) -> Vec<ClassFigures> {
        let mut figures = self.figures();
        let key = |f: &ClassFigures| (f.support == 0, f.recall, Reverse(f.support));
        figures.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(Ordering::Equal));
        figures
    }

    /// The means over the classes of [`figures`](Self::figures), each with the same weight (scikit-learn's `macro`). NaN
    /// without images.
    pub fn macro_means(&self) -> Means {
        self.means(|_| 1.0)
    }

    /// The means over the classes of [`figures`](Self::figures), each with the weight of its images (scikit-learn's
    /// `weighted`). NaN without images.
    pub fn weighted_means(&self) -> Means {
        self.means(|class| class.support as f64)
    }

    fn means(&self, weight: impl Fn(&ClassFigures) -> f64) -> Means {
        let figures = self.figures();
        let whole: f64 = figures.iter().map(&weight).sum();
        let mean = |of: fn(&ClassFigures) -> f64| figures.iter().map(|c| weight(c) * of(c)).sum::<f64>() / whole;
        Means { precision: mean(|c| c.precision), recall: mean(|c| c.recall), f1: mean(|c| c.f1) }
    }

    /// Images of each class, by label.
    pub fn support(&self) -> Vec<u64> {
        let mut support = vec![0; self.classes];
        for ([truth, _], count) in self.counts() {
            // Its labels are below `classes`: the evaluator refuses others, and so does `try_from`.
            if let Some(sum) = support.get_mut(truth as usize) {
                *sum += count;
            }
        }
        support
    }
}

impl AddAssign<&Self> for ConfusionMatrix {
    fn add_assign(&mut self, other: &Self) {
        self.classes = self.classes.max(other.classes);
        for (&cell, count) in &other.counts {
            *self.counts.entry(cell).or_default() += count;
        }
    }
}

impl From<ConfusionMatrix> for Cells {
    fn from(matrix: ConfusionMatrix) -> Self {
        let counts = matrix.counts.into_iter().map(|((truth, predicted), count)| (truth, predicted, count));
        Self { classes: matrix.classes, counts: counts.collect() }
    }
}

impl TryFrom<Cells> for ConfusionMatrix {
    type Error = String;

    fn try_from(Cells { classes, counts }: Cells) -> Result<Self, String> {
        let beyond = |&&(truth, predicted, _): &&(u32, u32, u64)| truth.max(predicted) as usize >= classes;
        match counts.iter().find(beyond) {
            Some((truth, predicted, _)) => {
                Err(format!("a confusion matrix of {classes} classes has a count at {truth}, {predicted}"))
            }
            None => Ok(Self { classes, counts: counts.into_iter().map(|(t, p, count)| ((t, p), count)).collect() }),
        }
    }
}

/// The largest of some counts above 0, as a multiple of the smallest; 1 if there are none.
pub fn imbalance(counts: impl IntoIterator<Item = u64>) -> f64 {
    let present = counts.into_iter().filter(|&count| count > 0);
    let (least, most) = present.fold((u64::MAX, 0), |(least, most), count| (least.min(count), most.max(count)));
    if most == 0 { 1.0 } else { most as f64 / least as f64 }
}

/// From this [`imbalance`] on classes count as uneven: accuracy alone then says less than it seems to.
pub const UNEVEN: f64 = 1.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_give_back_the_same_matrix_and_wrong_ones_are_refused() {
        let mut matrix = ConfusionMatrix::new(3);
        for (truth, predicted) in [(0, 0), (0, 0), (2, 1)] {
            matrix.add(truth, predicted);
        }
        let text = toml::to_string(&matrix).unwrap();
        assert_eq!(toml::from_str::<ConfusionMatrix>(&text).unwrap(), matrix, "{text}");
        let error = toml::from_str::<ConfusionMatrix>(&text.replace("[2, 1, 1]", "[2, 3, 1]")).unwrap_err();
        assert!(error.to_string().contains("has a count at 2, 3"), "{error}");
    }

    #[test]
    fn the_least_recalled_class_comes_first_and_those_without_images_last() {
        let mut matrix = ConfusionMatrix::new(4);
        // Class 3 is predicted, and has no images; 1 and 2 are never right, and 2 has more images.
        for (truth, predicted) in [(0, 0), (1, 3), (2, 0), (2, 3)] {
            matrix.add(truth, predicted);
        }
        assert_eq!(matrix.by_recall().iter().map(|f| f.class).collect::<Vec<_>>(), [2, 1, 0, 3]);
    }

    #[test]
    fn matrices_add_up() {
        let mut sum = ConfusionMatrix::new(2);
        sum.add(0, 1);
        let mut other = ConfusionMatrix::new(2);
        other.add(0, 1);
        other.add(1, 1);
        sum += &other;
        assert_eq!(sum.counts().collect::<Vec<_>>(), [([0, 1], 2), ([1, 1], 1)]);
        assert_eq!((sum.support(), sum.images(), sum.mistakes()), (vec![2, 1], 3, vec![([0, 1], 2)]));
    }

    #[test]
    fn imbalance_is_of_the_classes_that_there_are() {
        assert_eq!(imbalance([3, 0, 6]), 2.0);
        assert_eq!((imbalance([]), imbalance([0])), (1.0, 1.0));
    }
}
