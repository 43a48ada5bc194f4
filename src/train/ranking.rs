//! How well scores tell two classes apart, whatever the threshold.
//!
//! Definitions are those of scikit-learn's `roc_auc_score` and `average_precision_score`, of which the tests hold results.

use std::cmp::Ordering;

/// The scores of images of two classes: the higher, the more like the second class.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ranking {
    scores: Vec<(f64, bool)>,
}

impl Ranking {
    /// Counts an image, which is of the second class or not.
    pub fn add(&mut self, score: f64, is_second: bool) {
        self.scores.push((score, is_second));
    }

    /// The area under the receiver operating characteristic, in `[0, 1]`: how often an image of the second class has a higher score
    /// than one of the first, equal ones counting half. `None` without images of both classes, or where a score is no number.
    pub fn auroc(&self) -> Option<f64> {
        let [negatives, positives] = self.counts()?;
        let (mut below, mut pairs) = (0.0, 0.0);
        for [negative, positive] in self.levels().iter().rev() {
            pairs += positive * (below + negative / 2.0);
            below += negative;
        }
        Some(pairs / (negatives * positives))
    }

    /// The average precision, in `[0, 1]`: the sum over falling thresholds of the precision there times what the recall grows by.
    /// `None` as for [`auroc`](Self::auroc).
    pub fn average_precision(&self) -> Option<f64> {
        let [_, positives] = self.counts()?;
        let (mut taken, mut right, mut sum) = (0.0, 0.0, 0.0);
        for [negative, positive] in self.levels() {
            taken += negative + positive;
            right += positive;
            sum += positive / positives * (right / taken);
        }
        Some(sum)
    }

    /// Images of the first and of the second class.
    fn counts(&self) -> Option<[f64; 2]> {
        let positives = self.scores.iter().filter(|(_, is_second)| *is_second).count();
        let both = positives > 0 && positives < self.scores.len();
        let numbers = self.scores.iter().all(|(score, _)| !score.is_nan());
        (both && numbers).then_some([(self.scores.len() - positives) as f64, positives as f64])
    }

    /// For each different score, the highest first, how many images of each class have it.
    fn levels(&self) -> Vec<[f64; 2]> {
        let mut sorted = self.scores.clone();
        sorted.sort_by(|(a, _), (b, _)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        let same = sorted.chunk_by(|(a, _), (b, _)| a == b);
        let count = |images: &[(f64, bool)], second| images.iter().filter(|(_, of)| *of == second).count() as f64;
        same.map(|images| [count(images, false), count(images, true)]).collect()
    }
}
