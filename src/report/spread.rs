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
    /// Half the width of its 95 % confidence interval: of the one over seeds or of the one over images, whichever is
    /// wider.
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

    /// Half the width of the 95 % confidence interval of the mean, by Student's t; none of a single value.
    pub fn margin(&self) -> Option<f64> {
        let freedom = self.n.checked_sub(1).filter(|&freedom| freedom > 0)?;
        Some(student(freedom) * self.deviation / (self.n as f64).sqrt())
    }
}

impl Difference {
    /// Of two arms' last accuracies, paired by seed: arms that share a seed saw the same images in the same order. How much
    /// differences vary from seed to seed is taken from all arms with a rank that have these seeds (the residual of a
    /// two-way layout; of two arms it is that of the paired test), since few seeds of two arms alone say little. None if
    /// they have no seed in common.
    pub fn between(comparison: &Comparison, arm: &Arm, other: &Arm) -> Option<Self> {
        let of_seed = |arm: &Arm, seed: u64| {
            let run = arm.runs.iter().find(|run| run.seed == seed)?;
            run.last_accuracy().filter(|accuracy| accuracy.is_finite())
        };
        let shared = |seed: &u64| of_seed(arm, *seed).is_some() && of_seed(other, *seed).is_some();
        let seeds: Vec<u64> = arm.runs.iter().map(|run| run.seed).filter(shared).collect();
        let row = |arm: &Arm| -> Option<Vec<f64>> { seeds.iter().map(|seed| of_seed(arm, *seed)).collect() };
        let others = comparison.arms.iter().filter(|third| third.name != arm.name && third.name != other.name);
        let others = others.filter(|third| no_rank(comparison, third).is_none()).filter_map(row);
        let rows: Vec<Vec<f64>> = [row(arm)?, row(other)?].into_iter().chain(others).collect();
        let seeds = interaction(&rows)
            .map(|(deviation, freedom)| student(freedom) * deviation * (2.0 / rows[0].len() as f64).sqrt());
        Self::of(comparison, [&rows[0], &rows[1]], seeds)
    }

    /// Of an arm's accuracies after the last epoch and before the first.
    pub fn from_start(comparison: &Comparison, arm: &Arm) -> Option<Self> {
        let pairs = arm.runs.iter().filter_map(|run| Some((run.last_accuracy()?, run.first_accuracy()?)));
        let (last, first): (Vec<f64>, Vec<f64>) = pairs.filter(|(l, f)| (l - f).is_finite()).unzip();
        let seeds = Spread::of(last.iter().zip(&first).map(|(l, f)| l - f)).and_then(|spread| spread.margin());
        Self::of(comparison, [&last, &first], seeds)
    }

    /// The images are the same for every seed, so more seeds do not make up for few images. Their part is that of two
    /// independent samples, which is as a rule too wide: both sides see the same images.
    fn of(comparison: &Comparison, sides: [&[f64]; 2], seeds: Option<f64>) -> Option<Self> {
        if sides[0].is_empty() {
            return None;
        }
        let means = sides.map(|side| mean_and_deviation(side).0);
        let errors = means.map(|mean| standard_error(mean, comparison.val_images));
        let (images, by) = (1.96 * errors[0].hypot(errors[1]), seeds.unwrap_or(0.0));
        Some(Self { mean: means[0] - means[1], margin: by.max(images), by_seeds: by > images, seeds: sides[0].len() })
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

/// The standard deviation of what is left of a table, a row an arm and a column a seed, once the means of rows and columns
/// are taken away, and its degrees of freedom. None with a single row or column.
fn interaction(rows: &[Vec<f64>]) -> Option<(f64, usize)> {
    let columns = rows.first()?.len();
    let freedom = (rows.len() - 1) * columns.checked_sub(1)?;
    if freedom == 0 {
        return None;
    }
    let mean = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
    let of_row: Vec<f64> = rows.iter().map(|row| mean(&mut row.iter().copied(), columns)).collect();
    let of_column: Vec<f64> =
        (0..columns).map(|column| mean(&mut rows.iter().map(|row| row[column]), rows.len())).collect();
    let of_all = mean(&mut of_row.iter().copied(), rows.len());
    let residuals = rows.iter().zip(&of_row).flat_map(|(row, of_row)| {
        row.iter().zip(&of_column).map(move |(value, of_column)| value - of_row - of_column + of_all)
    });
    let squares: f64 = residuals.map(|residual| residual * residual).sum();
    Some(((squares / freedom as f64).sqrt(), freedom))
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
        assert_eq!(Spread::of([1.0]).unwrap().margin(), None);
        assert_eq!(Spread::of([f64::NAN]), None);
    }
}
