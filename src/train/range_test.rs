//! The learning-rate range test: a network trains for a few steps while the learning rate rises, and its loss says which
//! rates are too low, useful, and too high. After Smith, "Cyclical Learning Rates for Training Neural Networks",
//! arXiv:1506.01186, section 3.3.

use super::run::{batches_of, images, loader, next_batches};
use super::{Job, Session, Totals, TrainError};
use crate::data::Mode;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

/// The rates that a range test goes through: each step multiplies the rate by the same factor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LrRange {
    pub from: f64,
    pub to: f64,
    /// Optimiser steps.
    pub steps: usize,
}

impl LrRange {
    /// Steps below which a curve says nothing.
    pub const FEWEST: usize = 20;

    /// The rate of a step, which counts from 0.
    pub fn at(&self, step: usize) -> f64 {
        let done = step as f64 / self.steps.saturating_sub(1).max(1) as f64;
        self.from * (self.to / self.from).powf(done)
    }

    fn check(&self) -> Result<(), TrainError> {
        let Self { from, to, steps } = *self;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let checks = [
            ("from", positive(from), from.to_string(), "a rate above 0"),
            ("to", positive(to) && to > from, to.to_string(), "a rate above the first"),
            ("steps", (Self::FEWEST..=100_000).contains(&steps), steps.to_string(), "20 to 100000"),
        ];
        match checks.into_iter().find(|(_, sound, ..)| !sound) {
            Some((setting, _, value, expected)) => Err(TrainError::Setting { setting, value, expected }),
            None => Ok(()),
        }
    }
}

/// Seven decades in a hundred steps, as fastai's `lr_find` takes by default.
impl Default for LrRange {
    fn default() -> Self {
        Self { from: 1e-6, to: 10.0, steps: 100 }
    }
}

/// One step of a range test.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct LrPoint {
    pub lr: f64,
    /// The mean of the step's images, in nats.
    #[serde(with = "super::number")]
    pub loss: f64,
    /// An exponential average of the losses so far, by which the rate is chosen.
    #[serde(with = "super::number")]
    pub smoothed: f64,
}

/// How a range test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrEnd {
    /// At the last rate.
    Complete,
    /// Before, since the smoothed loss rose above four times its least.
    Rose,
    /// Before, since the loss was no longer finite.
    NotFinite,
}

/// What a range test found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RangeTest {
    pub points: Vec<LrPoint>,
    /// By the [rule](suggest); none where the loss does not fall.
    pub suggested: Option<f64>,
    pub end: LrEnd,
}

/// What the smoothed loss keeps of its past in each step.
const KEEP: f64 = 0.98;

/// The smoothed loss over its least at which a test ends.
const ROSE: f64 = 4.0;

/// The rate in the middle of the longest descent of the smoothed losses, on a logarithmic scale: the longest subsequence
/// of ever lower losses, of which the first tenth of the points and the last five are no part. It is the rule that fastai
/// calls `valley`. Rounded to two digits. None where no loss is below an earlier one.
pub fn suggest(points: &[LrPoint]) -> Option<f64> {
    let inner = points.get(points.len() / 10..points.len().saturating_sub(5))?;
    // Of the longest descent that ends at each point: its length, and where it begins.
    let mut descents: Vec<(usize, usize)> = Vec::with_capacity(inner.len());
    for (at, point) in inner.iter().enumerate() {
        let before = (0..at).filter(|&earlier| inner[earlier].smoothed > point.smoothed);
        let longest = before.map(|earlier| descents[earlier]).max_by_key(|&(length, begin)| (length, begin));
        descents.push(longest.map_or((1, at), |(length, begin)| (length + 1, begin)));
    }
    let (end, &(length, begin)) =
        descents.iter().enumerate().max_by_key(|&(end, &(length, _))| (length, std::cmp::Reverse(end)))?;
    // To two digits: no more is known, and it has to be typed.
    let rounded = |lr: f64| format!("{lr:.1e}").parse().unwrap_or(lr);
    (length > 1).then(|| rounded(inner[begin + (end - begin) / 2].lr))
}

impl Job<'_> {
    /// Trains the first stage from `tensors` while the learning rate rises through `range`, by the settings of the job but
    /// for its schedule. Nothing is written, and nothing of the training remains. `observe` is told of each step as it is
    /// done. None if `stop` was set.
    ///
    /// # Errors
    /// Settings that make no sense; an image is broken; the device fails.
    pub fn range_test(
        self,
        tensors: &[crate::tensor::HostTensor],
        range: &LrRange,
        stop: &AtomicBool,
        mut observe: impl FnMut(usize, &LrPoint),
    ) -> Result<Option<RangeTest>, TrainError> {
        range.check()?;
        self.settings.check()?;
        let Self { device, stages, input, images: folder, settings, cache } = self;
        let network = stages.into_iter().next().ok_or(TrainError::Stages { expected: 1, found: 0 })?;
        let train = loader(&settings, &folder.train, Mode::Train)?;
        let of_train = cache.as_deref().map(|cache| (cache, &train));
        let mut session = Session::with_cache(device, network, tensors, input, settings.options(), of_train)?;
        if let Some(weights) = &settings.class_weights {
            session.set_class_weights(weights)?;
        }
        let kept = session.features().is_some();
        let mut test = Test::default();
        for epoch in 0.. {
            let mut batches = batches_of(&train, kept, epoch, 0)?.take(settings.batches_per_epoch());
            let mut number = 0;
            while let Some((read, window)) = next_batches(&mut batches, &settings, &session, number)? {
                let lr = range.at(test.points.len());
                for batch in read {
                    session.submit_in(images(&batch, kept), &batch.labels, lr, Some(window))?;
                    number += 1;
                    while let Some(totals) = session.completed(true)? {
                        test.window += totals;
                        test.micro += 1;
                    }
                }
                if test.micro < window.batches {
                    continue;
                }
                let end = test.step(lr);
                let done = test.points.len();
                if let Some(point) = test.points.last() {
                    observe(done, point);
                }
                if let Some(end) = end.or((done == range.steps).then_some(LrEnd::Complete)) {
                    return Ok(Some(test.end(end)));
                }
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

/// A range test under way.
#[derive(Default)]
struct Test {
    points: Vec<LrPoint>,
    /// Of the step under way, and its micro-batches that are done.
    window: Totals,
    micro: usize,
    /// The exponential average before it is corrected for having begun at 0.
    average: f64,
    least: f64,
}

impl Test {
    /// Closes a step; says how the test ends if it does.
    fn step(&mut self, lr: f64) -> Option<LrEnd> {
        let loss = std::mem::take(&mut self.window).mean_loss();
        self.micro = 0;
        self.average = KEEP * self.average + (1.0 - KEEP) * loss;
        let steps = i32::try_from(self.points.len() + 1).unwrap_or(i32::MAX);
        let smoothed = self.average / (1.0 - KEEP.powi(steps));
        self.points.push(LrPoint { lr, loss, smoothed });
        if !loss.is_finite() {
            return Some(LrEnd::NotFinite);
        }
        self.least = if steps == 1 { smoothed } else { self.least.min(smoothed) };
        (smoothed > ROSE * self.least).then_some(LrEnd::Rose)
    }

    fn end(mut self, end: LrEnd) -> RangeTest {
        if end == LrEnd::NotFinite {
            // It has no place in a curve.
            self.points.pop();
        }
        RangeTest { suggested: suggest(&self.points), points: self.points, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(loss: impl Fn(usize) -> f64) -> Vec<LrPoint> {
        let range = LrRange::default();
        (0..range.steps).map(|i| LrPoint { lr: range.at(i), loss: loss(i), smoothed: loss(i) }).collect()
    }

    #[test]
    fn rates_rise_by_the_same_factor() {
        let range = LrRange { from: 1e-4, to: 1.0, steps: 5 };
        for (step, expected) in [1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            approx::assert_relative_eq!(range.at(step), expected, max_relative = 1e-12);
        }
    }

    #[test]
    fn the_suggestion_lies_in_the_middle_of_the_descent() {
        // Level until 40, down until 80, and up.
        let valley = points(|i| match i {
            0..40 => 2.3 + 1e-6 * i as f64,
            40..80 => 2.3 - 0.04 * (i - 40) as f64,
            _ => 0.8 + 0.5 * (i - 80) as f64,
        });
        let suggested = suggest(&valley).unwrap();
        let at = valley.iter().position(|point| point.lr > suggested).unwrap();
        assert!((45..=65).contains(&at), "{at}");
        assert_eq!(suggest(&points(|i| i as f64)), None, "no rate lowers the loss");
        assert_eq!(suggest(&[]), None);
        assert_eq!(suggest(&points(|_| 1.0)[..6]), None);
    }

    #[test]
    fn a_test_ends_where_the_loss_rises_or_is_lost() {
        let run = |losses: &[f64]| {
            let mut test = Test::default();
            let end = losses.iter().find_map(|&loss| {
                test.window = Totals { loss: 8.0 * loss, samples: 8, ..Totals::default() };
                test.step(0.1)
            });
            (end, test)
        };
        // The average of equal losses is that loss from the first step on.
        let (end, test) = run(&[2.0; 10]);
        assert_eq!(end, None);
        assert!(test.points.iter().all(|point| (point.smoothed - 2.0).abs() < 1e-12));
        assert_eq!(run(&[2.0, 1.0, 300.0]).0, Some(LrEnd::Rose));
        let (end, test) = run(&[2.0, f64::NAN, 1.0]);
        assert_eq!(end, Some(LrEnd::NotFinite));
        assert_eq!(test.end(LrEnd::NotFinite).points.len(), 1);
    }
}
