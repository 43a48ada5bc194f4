//! What numbers that were measured once a seed allow to say.

use super::{Arm, ArmRun, BatchStatistics, Comparison, State, mean_and_deviation};
use serde::Serialize;

/// A number measured several times, once a seed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Spread {
    pub mean: f64,
    /// The sample standard deviation; 0 of a single value.
    pub deviation: f64,
    pub least: f64,
    pub most: f64,
    pub n: usize,
}

/// How far one arm is above another, as a difference of accuracies.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Difference {
    pub mean: f64,
    /// Half the width of its confidence interval: of the [one over seeds](Spread::margin) or of the 95 % interval over
    /// images, whichever is wider.
    pub margin: f64,
    /// Whether the margin is that of the seeds.
    pub by_seeds: bool,
    /// Seeds that both arms have.
    pub seeds: usize,
}

impl Spread {
    /// None if no value is finite.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        let least = values.iter().copied().reduce(f64::min)?;
        let most = values.iter().copied().reduce(f64::max)?;
        let (mean, deviation) = mean_and_deviation(&values);
        Some(Self { mean, deviation, least, most, n: values.len() })
    }

    /// Half the width of the 95 % confidence interval of the mean, by Student's t, but of two values of the 80 % interval:
    /// their 95 % interval is over six times as wide as they are apart, and would say nothing. None of a single value.
    pub fn margin(&self) -> Option<f64> {
        const TWO: f64 = 3.078;
        let freedom = self.n.checked_sub(1).filter(|&freedom| freedom > 0)?;
        let quantile = if freedom == 1 { TWO } else { student(freedom) };
        Some(quantile * self.deviation / (self.n as f64).sqrt())
    }
}

impl Difference {
    /// Of two arms' last accuracies by the paired t-test: arms that share a seed saw the same images in the same order. Only
    /// their own seeds say how much the difference varies. A variance that all arms share would be known better, but arms
    /// vary by very different amounts, such as 0.4 and 20 points: an interval by the mean of these is far too narrow for some
    /// arms, and far too wide for others. None if the arms have no seed in common.
    pub fn between(comparison: &Comparison, arm: &Arm, other: &Arm) -> Option<Self> {
        let last = |run: &ArmRun| run.last_accuracy().filter(|accuracy| accuracy.is_finite());
        let pairs = arm.runs.iter().filter_map(|run| {
            let twin = other.runs.iter().find(|twin| twin.seed == run.seed)?;
            Some((last(run)?, last(twin)?))
        });
        Self::of(comparison, pairs)
    }

    /// Of an arm's accuracies after the last epoch and before the first.
    pub fn from_start(comparison: &Comparison, arm: &Arm) -> Option<Self> {
        let pairs = arm.runs.iter().filter_map(|run| Some((run.last_accuracy()?, run.first_accuracy()?)));
        Self::of(comparison, pairs.filter(|(last, first)| (last - first).is_finite()))
    }

    /// The images are the same for every seed, so more seeds do not make up for few images. Their part is that of two
    /// independent samples, which is as a rule too wide: both sides see the same images.
    fn of(comparison: &Comparison, pairs: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let (left, right): (Vec<f64>, Vec<f64>) = pairs.unzip();
        let spread = Spread::of(left.iter().zip(&right).map(|(left, right)| left - right))?;
        let errors = [left, right].map(|side| standard_error(mean_and_deviation(&side).0, comparison.val_images));
        let (images, by) = (1.96 * errors[0].hypot(errors[1]), spread.margin().unwrap_or(0.0));
        Some(Self { mean: spread.mean, margin: by.max(images), by_seeds: by > images, seeds: spread.n })
    }

    /// Whether chance alone hardly explains it.
    pub fn is_clear(&self) -> bool {
        self.mean.abs() > self.margin
    }
}

/// An arm's accuracy after the last epoch; none without validation, or before the first run is done.
pub(super) fn last_accuracy(arm: &Arm) -> Option<Spread> {
    Spread::of(arm.runs.iter().filter_map(ArmRun::last_accuracy))
}

/// An arm's accuracy before training, a mean over its seeds; none without validation, or before the first run is done.
pub(super) fn start_accuracy(arm: &Arm) -> Option<f64> {
    Spread::of(arm.runs.iter().filter_map(ArmRun::first_accuracy)).map(|start| start.mean)
}

/// All arms, the most accurate first, and those last that have no [rank](no_rank) or no accuracy.
pub(super) fn ranked(comparison: &Comparison) -> Vec<&Arm> {
    let mut arms: Vec<&Arm> = comparison.arms.iter().collect();
    let mean = |arm: &Arm| last_accuracy(arm).map_or(f64::NEG_INFINITY, |accuracy| accuracy.mean);
    arms.sort_by(|a, b| {
        let last = |arm: &Arm| no_rank(comparison, arm).is_some();
        last(a).cmp(&last(b)).then(mean(b).total_cmp(&mean(a)))
    });
    arms
}

/// Why an arm has results and no rank.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum NoRank {
    /// Training diverged under these seeds; what is left is from before.
    Diverged { seeds: Vec<u64> },
    /// It names the right class no more often than [chance](Comparison::chance), as far as the images can tell.
    Chance { accuracy: f64 },
}

/// Why `arm` cannot be ranked; none if it can, or has no results yet.
pub(super) fn no_rank(comparison: &Comparison, arm: &Arm) -> Option<NoRank> {
    let is_lost = |run: &&ArmRun| {
        let last = run.history.last().and_then(|epoch| epoch.val);
        run.diverged.is_some() || last.is_some_and(|val| !val.mean_loss().is_finite())
    };
    let seeds: Vec<u64> = arm.runs.iter().filter(is_lost).map(|run| run.seed).collect();
    if !seeds.is_empty() {
        return Some(NoRank::Diverged { seeds });
    }
    let accuracy = last_accuracy(arm)?.mean;
    is_chance(comparison, accuracy).then_some(NoRank::Chance { accuracy })
}

/// Whether naming the most frequent class could be as accurate, as far as the validation images can tell.
pub(super) fn is_chance(comparison: &Comparison, accuracy: f64) -> bool {
    let (chance, images) = (comparison.chance, comparison.val_images);
    chance > 0.0 && accuracy <= chance + 1.645 * standard_error(chance, images)
}

/// The drift of each of `count` batch norms, a mean over `states`; not a number where none of them has one.
pub(super) fn mean_drift(states: &[&State], count: usize) -> Vec<f64> {
    let of = |norm| states.iter().filter_map(move |state| state.drift.get(norm).copied());
    (0..count).map(|norm| mean_and_deviation(&of(norm).collect::<Vec<_>>()).0).collect()
}

/// Of the finite values; none if there are none.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => Some((values.get(middle.checked_sub(1)?)? + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

/// Inference under batch statistics for each batch size, a mean over `states`.
pub(super) fn batch_modes(states: &[&State]) -> Vec<BatchStatistics> {
    let mut sizes: Vec<usize> = states.iter().flat_map(|state| &state.batch).map(|mode| mode.batch).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mean = |size, value: fn(&BatchStatistics) -> f64| {
        let modes = states.iter().flat_map(|state| &state.batch).filter(|mode| mode.batch == size);
        Spread::of(modes.map(value)).map_or(f64::NAN, |spread| spread.mean)
    };
    let modes = sizes.into_iter().map(|batch| BatchStatistics {
        batch,
        accuracy: mean(batch, |mode| mode.accuracy),
        flips: mean(batch, |mode| mode.flips),
    });
    modes.collect()
}

/// The standard error of a share that was counted over `images`.
pub(super) fn standard_error(share: f64, images: usize) -> f64 {
    (share * (1.0 - share) / images as f64).sqrt()
}

/// The 97.5 % quantile of Student's t.
fn student(freedom: usize) -> f64 {
    // Abramowitz and Stegun, table 26.10; beyond it the first terms of the expansion 26.7.5.
    const QUANTILES: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    let n = freedom as f64;
    QUANTILES.get(freedom - 1).copied().unwrap_or(1.960 + 2.372 / n + 2.823 / n.powi(2) + 2.556 / n.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn quantiles_of_students_t() {
        let known = [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (20, 2.0860), (100, 1.9840)];
        for (freedom, quantile) in known {
            assert_abs_diff_eq!(student(freedom), quantile, epsilon = 1e-3);
        }
    }

    #[test]
    fn spreads() {
        let spread = Spread::of([1.0, f64::NAN, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { mean: 2.0, deviation: 1.0, least: 1.0, most: 3.0, n: 3 });
        // 4.303 / √3.
        assert_abs_diff_eq!(spread.margin().unwrap(), 2.484, epsilon = 1e-3);
        // 3.078 / √2 times the deviation of √2.
        assert_abs_diff_eq!(Spread::of([1.0, 3.0]).unwrap().margin().unwrap(), 3.078, epsilon = 1e-9);
        assert_eq!(Spread::of([1.0]).unwrap().margin(), None);
        assert_eq!(Spread::of([f64::NAN]), None);
    }
}
