//! How the learning rate changes over a run.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// What becomes of the learning rate after the warm-up.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    Constant,
    /// Half a cosine from the full rate down to `end` times it.
    Cosine {
        end: f64,
    },
    /// Multiplied by `gamma` after every `epochs` epochs, counted from the start of the run.
    Step {
        epochs: usize,
        gamma: f64,
    },
}

/// The learning rate as a function of the optimiser step alone, so that a resumed run continues it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Schedule {
    /// The full learning rate.
    pub lr: f64,
    /// Optimiser steps over which the rate rises in equal parts to the full one.
    pub warmup: u64,
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of optimiser step `step`, which counts from 0, in a run of `epochs` epochs of
    /// `steps_per_epoch` steps.
    pub fn at(&self, step: u64, steps_per_epoch: u64, epochs: u64) -> f64 {
        let warmup = ((step + 1) as f64 / (self.warmup + 1) as f64).min(1.0);
        let decay = match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine { end } => {
                let length = (steps_per_epoch * epochs).saturating_sub(self.warmup).max(1);
                let done = (step.saturating_sub(self.warmup) as f64 / length as f64).min(1.0);
                end + (1.0 - end) * 0.5 * (1.0 + (PI * done).cos())
            }
            Decay::Step { epochs, gamma } => {
                let times = step / (steps_per_epoch * epochs as u64).max(1);
                gamma.powi(i32::try_from(times).unwrap_or(i32::MAX))
            }
        };
        self.lr * warmup * decay
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn rates(schedule: Schedule, steps: &[u64]) -> Vec<f64> {
        steps.iter().map(|&step| schedule.at(step, 10, 4)).collect()
    }

    #[test]
    fn warm_up_is_linear_and_ends_at_the_full_rate() {
        let schedule = Schedule { lr: 0.4, warmup: 3, decay: Decay::Constant };
        for (rate, expected) in rates(schedule, &[0, 1, 2, 3, 4, 39]).into_iter().zip([0.1, 0.2, 0.3, 0.4, 0.4, 0.4]) {
            assert_relative_eq!(rate, expected, max_relative = 1e-12);
        }
    }

    #[test]
    fn a_cosine_falls_from_the_end_of_the_warm_up_to_its_end() {
        let schedule = Schedule { lr: 2.0, warmup: 8, decay: Decay::Cosine { end: 0.1 } };
        // 32 steps of decay: a quarter is step 16, a half step 24; the run would reach the end at step 40.
        let quarter = 2.0 * (0.1 + 0.9 * 0.5 * (1.0 + 0.5_f64.sqrt()));
        for (rate, expected) in rates(schedule, &[8, 16, 24, 40, 99]).into_iter().zip([2.0, quarter, 1.1, 0.2, 0.2]) {
            assert_relative_eq!(rate, expected, max_relative = 1e-12);
        }
    }

    #[test]
    fn steps_multiply_by_gamma_every_so_many_epochs() {
        let schedule = Schedule { lr: 1.0, warmup: 0, decay: Decay::Step { epochs: 2, gamma: 0.5 } };
        assert_eq!(rates(schedule, &[0, 19, 20, 39, 40]), [1.0, 1.0, 0.5, 0.5, 0.25]);
    }

    #[test]
    fn nothing_divides_by_zero() {
        for decay in [Decay::Cosine { end: 0.0 }, Decay::Step { epochs: 0, gamma: 0.1 }] {
            let schedule = Schedule { lr: 1.0, warmup: u64::MAX - 1, decay };
            assert!(schedule.at(0, 0, 0).is_finite());
        }
    }
}
