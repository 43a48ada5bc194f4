//! What a network makes of labelled images, image by image.

use super::probe::greatest;
use super::{ConfusionMatrix, Evaluator, Images, PADDING, Ranking, Totals, TrainError};
use crate::data::Batch;
use std::cmp::Ordering;

/// The results of an evaluation so far.
#[derive(Clone, PartialEq, Debug)]
pub struct Evaluation {
    pub totals: Totals,
    pub confusion: ConfusionMatrix,
    /// Of two classes, how the network ranks the images.
    pub ranking: Option<Ranking>,
    /// Broken images that were skipped.
    pub skipped: u64,
    /// The mistakes that the network was surest of, the surest first.
    pub mistakes: Vec<Mistake>,
    /// How many of them are kept.
    kept: usize,
}

/// An image that was taken for one of another class.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mistake {
    /// Which of the loader's samples.
    pub sample: usize,
    /// Labels.
    pub truth: u32,
    pub predicted: u32,
    /// The softmax probability of `predicted`, in `[0, 1]`.
    pub confidence: f64,
}

impl Evaluation {
    /// Of no image yet, for so many classes; keeps the `mistakes` mistakes that the network is surest of.
    pub fn new(classes: usize, mistakes: usize) -> Self {
        let confusion = ConfusionMatrix::new(classes);
        let ranking = (classes == 2).then(Ranking::default);
        Self { totals: Totals::default(), confusion, ranking, skipped: 0, mistakes: Vec::new(), kept: mistakes }
    }

    /// Shows the evaluator a batch, whose images past its valid ones do not count. Of a batch without pixels, those
    /// that the evaluator keeps are taken.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    pub fn add(&mut self, evaluator: &mut Evaluator, batch: &Batch) -> Result<(), TrainError> {
        let valid = batch.valid();
        let mut labels = batch.labels.clone();
        labels[valid..].fill(PADDING);
        let images = match evaluator.features() {
            Some(_) => Images::Kept(&batch.samples),
            None => Images::Bytes(&batch.pixels),
        };
        let (totals, logits) = evaluator.evaluate_with_logits(images, &labels)?;
        self.totals += totals;
        self.skipped += batch.skipped as u64;
        let rows = logits.chunks_exact(self.confusion.classes().max(1)).zip(&labels);
        for (&sample, (logits, &truth)) in batch.samples.iter().zip(rows) {
            // Of equals the lowest, as the loss counts hits.
            let predicted = greatest(logits) as u32;
            self.confusion.add(truth, predicted);
            if let (Some(ranking), &[first, second]) = (&mut self.ranking, logits) {
                ranking.add(f64::from(second) - f64::from(first), truth == 1);
            }
            if predicted != truth && self.kept > 0 {
                let confidence = probability(logits, predicted);
                self.mistakes.push(Mistake { sample, truth, predicted, confidence });
            }
        }
        // Stable: of equals, the first.
        self.mistakes.sort_by(|a, b| b.confidence.partial_cmp(&a.confidence).unwrap_or(Ordering::Equal));
        self.mistakes.truncate(self.kept);
        Ok(())
    }
}

/// The softmax probability of a class, in f64.
fn probability(logits: &[f32], class: u32) -> f64 {
    let own = f64::from(logits[class as usize]);
    1.0 / logits.iter().map(|&logit| (f64::from(logit) - own).exp()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_logits_the_lowest_class_is_predicted() {
        assert_eq!(greatest(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(greatest(&[-1.0]), 0);
    }

    #[test]
    fn a_probability_is_that_of_softmax() {
        let logits = [0.0, 0.0, 2f32.ln()];
        assert!((probability(&logits, 2) - 0.5).abs() < 1e-7 && (probability(&logits, 0) - 0.25).abs() < 1e-7);
    }
}
