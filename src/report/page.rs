//! The page that shows a comparison: one file of HTML that needs nothing else, neither network nor scripts.

use super::classes::ClassesView;
use super::conclusion::{Verdict, caveats, findings, verdict};
use super::spread::{Spread, batch_modes, last_accuracy, mean_drift, median, no_rank, ranked};
use super::svg::{self, Choice, Curve, Heat, Scale};
use super::units::{flops, ms};
use super::{
    Arm, ArmLayer, ArmRun, ArmTimings, BatchStatistics, Comparison, LOOKED_AT, Prefix, SMALL_BATCH_IMAGES, State,
    Timings, Trial, WINNER_FILE, template,
};
use crate::train::{EpochMetrics, Totals};
use minijinja::context;
use minijinja::value::{Serde, Value};
use serde::Serialize;
use std::collections::BTreeSet;
use std::iter;
use std::path::Path;

/// Batch norms whose names fit beside each other.
const NAMED_COLUMNS: usize = 60;

/// An arm beside what was computed of its runs.
#[derive(Serialize)]
struct ArmView<'a> {
    #[serde(flatten)]
    arm: &'a Arm,
    timings: ArmTimings,
    last: Option<Spread>,
    best: Option<Spread>,
    val_loss: Option<Spread>,
    train: Option<Spread>,
    /// Billions of floating-point operations a second, in a measured step.
    gflops_per_s: Option<f64>,
    cache: Option<CacheView<'a>>,
    /// Of the search for its learning rate, the shortest first.
    trials: Vec<TrialView>,
    stages: Vec<StageView<'a>>,
    diverged: Vec<DivergedView<'a>>,
    /// Of each run.
    epochs_done: Vec<usize>,
    dots: String,
    panel: String,
}

#[derive(Serialize)]
struct TrialView {
    lr: f64,
    epochs: usize,
    accuracy: Option<f64>,
    diverged: bool,
}

/// What the cache did for an arm. Times are in seconds, over all its epochs.
#[derive(Serialize)]
struct CacheView<'a> {
    until: &'a [String],
    /// The prefix's share of a step's arithmetic.
    share: f64,
    bytes_per_image: u64,
    with_s: f64,
    /// What the steps would have taken without the cache, by their median; none if nothing was measured.
    without_s: Option<f64>,
    saved_s: Option<f64>,
}

/// A run that ended early.
#[derive(Serialize)]
struct DivergedView<'a> {
    seed: u64,
    why: &'a str,
}

/// A part of a run in which a policy stays the same.
#[derive(Serialize)]
struct StageView<'a> {
    /// The share of the run's steps before it.
    from: f64,
    rules: &'a [String],
    settings: Vec<SettingView<'a>>,
}

/// Layers of one kind that follow each other, but for other kinds, and have the same setting.
#[derive(Serialize)]
struct SettingView<'a> {
    kind: &'a str,
    axes: &'a str,
    first: &'a str,
    last: &'a str,
    count: usize,
}

/// The state of a network before training, or after it under an arm; a mean over seeds.
#[derive(Serialize)]
struct StateView<'a> {
    name: &'a str,
    strip: String,
    /// Over the batch norms.
    drift: Option<f64>,
    running: Option<f64>,
    single: Option<f64>,
    running_flips: Option<f64>,
    batch: Vec<BatchStatistics>,
}

/// Renders a comparison, finished or not, as a page.
pub fn page(comparison: &Comparison, timings: &Timings) -> String {
    template::render("page.html", include_str!("page.html"), view(comparison, timings))
}

fn view(comparison: &Comparison, timings: &Timings) -> Value {
    let (arms, axis, from_0) = arms(comparison, timings);
    let (states, legend) = states(comparison);
    let sizes: BTreeSet<usize> = states.iter().flat_map(|state| &state.batch).map(|mode| mode.batch).collect();
    let cached = || arms.iter().filter(|arm| arm.timings.cached).filter_map(|arm| arm.cache.as_ref());
    let every = comparison.batch_norms.len().div_ceil(NAMED_COLUMNS).max(1);
    let path = |path: &Path| path.display().to_string();
    let folder = comparison.data.file_name().map(|name| path(name.as_ref()));
    context! {
        thawline => comparison.thawline.as_str(),
        model => comparison.model.as_str(),
        weights => comparison.weights.as_deref().map(path),
        folder => folder.unwrap_or_else(|| path(&comparison.data)),
        data => path(&comparison.data),
        classes => Serde(&comparison.classes),
        train_images => comparison.train_images,
        val_images => comparison.val_images,
        looked_at => comparison.val_images.min(LOOKED_AT),
        in_small_batches => comparison.val_images.min(SMALL_BATCH_IMAGES),
        size => Serde(comparison.size),
        batch => comparison.batch,
        accumulate => comparison.accumulate,
        epochs => comparison.epochs,
        patience => comparison.patience,
        steps => comparison.steps,
        augment => comparison.augment.as_str(),
        optimizer => Serde(comparison.optimizer),
        schedule => Serde(comparison.schedule),
        seeds => Serde(&comparison.seeds),
        start => Serde(Spread::of(comparison.start.iter().map(|state| state.running.accuracy()))),
        findings => findings(comparison),
        action => comparison.winner.as_ref().map(|_| format!("thawline predict --weights {WINNER_FILE} IMAGES")),
        searched => comparison.arms.iter().any(|arm| arm.search.is_some()),
        rates => comparison.arms.iter().find_map(|arm| Some(arm.search.as_ref()?.rates())).unwrap_or_default(),
        caveats => caveats(comparison),
        saved_s => cached().filter_map(|cache| cache.saved_s).sum::<f64>(),
        without_s => cached().filter_map(|cache| cache.without_s).sum::<f64>(),
        arms => Serde(&arms),
        axis,
        choices => choices(comparison, timings),
        from_0,
        states => Serde(&states),
        legend => Serde(legend),
        sizes => Serde(sizes),
        columns => Serde(comparison.batch_norms.iter().step_by(every).collect::<Vec<_>>()),
        timings => Serde(timings),
        winner => Serde(winner(comparison)),
    }
}

/// The policy to use, or, where none is advised, the most accurate one, class by class.
#[derive(Serialize)]
struct WinnerView<'a> {
    name: &'a str,
    advised: bool,
    seeds: usize,
    classes: ClassesView,
}

/// None until a run has kept what its images were taken for.
fn winner(comparison: &Comparison) -> Option<WinnerView<'_>> {
    let (arm, advised) = match verdict(comparison) {
        Verdict::Use { arm, .. } => (arm, true),
        _ => (*ranked(comparison).first()?, false),
    };
    let mut kept = arm.runs.iter().filter_map(|run| run.confusion.as_ref());
    let mut sum = kept.next()?.clone();
    let mut seeds = 1;
    for confusion in kept {
        sum += confusion;
        seeds += 1;
    }
    let classes = ClassesView::new(&sum, &comparison.classes);
    (sum.images() > 0).then_some(WinnerView { name: &arm.name, advised, seeds, classes })
}

/// Accuracy against what an epoch took, or, where that is not known of every policy, against the arithmetic of a step; and
/// which it is. None where fewer than two policies have a rank.
fn choices(comparison: &Comparison, timings: &Timings) -> Option<Value> {
    let advised = match verdict(comparison) {
        Verdict::Use { arm, .. } => Some(arm.name.as_str()),
        _ => None,
    };
    let arms = ranked(comparison).into_iter().filter(|arm| no_rank(comparison, arm).is_none());
    let arms: Vec<(&Arm, Spread)> = arms.filter_map(|arm| Some((arm, last_accuracy(arm)?))).collect();
    let epoch_s = |arm: &Arm| {
        let took = timings.arms.iter().find(|took| took.name == arm.name)?;
        Spread::of(took.epoch_s.iter().copied()).map(|epoch| epoch.mean)
    };
    let measured: Option<Vec<f64>> = arms.iter().map(|(arm, _)| epoch_s(arm)).collect();
    let costs = measured.clone().unwrap_or_else(|| arms.iter().map(|(arm, _)| arm.step.amount.flops as f64).collect());
    let choices = arms.iter().zip(costs).map(|((arm, accuracy), cost)| Choice {
        name: &arm.name,
        cost,
        accuracy: *accuracy,
        is_advised: advised == Some(arm.name.as_str()),
    });
    let choices: Vec<Choice> = choices.collect();
    let plot = match measured.is_some() {
        true => svg::choices(&choices, |seconds| ms(1e3 * seconds)),
        false => svg::choices(&choices, |operations| flops(operations as u64)),
    };
    (choices.len() > 1).then(|| context! { plot, measured => measured.is_some(), advised })
}

/// The most accurate first; the axis of their dots, and whether it begins at 0.
fn arms<'a>(comparison: &'a Comparison, timings: &Timings) -> (Vec<ArmView<'a>>, String, bool) {
    let ranked = ranked(comparison);
    let scale = Scale::around(ranked.iter().flat_map(|arm| arm.runs.iter().filter_map(ArmRun::last_accuracy)));
    // Without validation, training accuracy is all there is to draw.
    let accuracy = |epoch: &EpochMetrics| if comparison.val_images > 0 { epoch.val } else { epoch.train };
    let curves: Vec<Curve> = ranked.iter().map(|arm| curve(arm, comparison.epochs, accuracy)).collect();
    let points = curves.iter().flatten().flatten();
    let curve_scale = Scale::around(points.flat_map(|point| [point.least, point.most]));
    let views = ranked.into_iter().zip(&curves).map(|(arm, curve)| {
        let last = |value: fn(&EpochMetrics) -> Option<f64>| {
            Spread::of(arm.runs.iter().filter_map(|run| value(run.history.last()?)))
        };
        let ends = arm.runs.iter().filter_map(|run| Some((format!("seed {}", run.seed), run.last_accuracy()?)));
        let timings = timings.arms.iter().find(|timings| timings.name == arm.name).cloned().unwrap_or_default();
        ArmView {
            arm,
            last: last_accuracy(arm),
            best: Spread::of(arm.runs.iter().filter_map(ArmRun::best_accuracy)),
            val_loss: last(|epoch| epoch.val.map(|val| val.mean_loss())),
            train: last(|epoch| epoch.train.map(|train| train.accuracy())),
            gflops_per_s: (timings.step_ms > 0.0).then(|| arm.step.amount.flops as f64 / timings.step_ms / 1e6),
            cache: arm.prefix.as_ref().map(|prefix| cache(comparison, arm, prefix, &timings)),
            trials: trials(arm),
            stages: stages(arm),
            diverged: diverged(arm),
            epochs_done: arm.runs.iter().map(|run| run.history.len().saturating_sub(1)).collect(),
            dots: svg::dots(&scale, &ends.collect::<Vec<_>>()),
            panel: svg::panel(&curve_scale, curve, &curves),
            timings,
        }
    });
    (views.collect(), svg::axis(&scale), scale.begins_at_0())
}

/// Before training, and after it under each arm that has a run; and what depth of colour means what drift.
fn states(comparison: &Comparison) -> (Vec<StateView<'_>>, Vec<(String, f64)>) {
    let before = ("before training", comparison.start.iter().collect());
    let after =
        ranked(comparison).into_iter().map(|arm| (arm.name.as_str(), arm.runs.iter().map(|run| &run.end).collect()));
    let states = iter::once(before).chain(after).filter(|(_, states): &(_, Vec<&State>)| !states.is_empty());
    let norms = &comparison.batch_norms;
    let states: Vec<_> = states.map(|(name, states)| (name, mean_drift(&states, norms.len()), states)).collect();
    let heat = Heat::around(states.iter().flat_map(|(_, drift, _)| drift).copied());
    let views = states.iter().map(|(name, drift, states)| {
        let mean = |value: fn(&State) -> f64| Spread::of(states.iter().map(|state| value(state))).map(|s| s.mean);
        StateView {
            name,
            strip: heat.strip(norms.iter().zip(drift)),
            drift: median(drift),
            running: mean(|state| state.running.accuracy()),
            single: mean(|state| state.single.accuracy()),
            running_flips: mean(|state| state.running_flips),
            batch: batch_modes(states),
        }
    });
    (views.collect(), heat.legend())
}

/// The mean of all runs by epoch, and how far they are apart.
fn curve(arm: &Arm, epochs: usize, accuracy: impl Fn(&EpochMetrics) -> Option<Totals>) -> Curve {
    let at = |epoch| {
        let entries = arm.runs.iter().filter_map(move |run| run.history.iter().find(|entry| entry.epoch == epoch));
        Spread::of(entries.filter_map(&accuracy).map(|totals| totals.accuracy()))
    };
    (0..=epochs).map(at).collect()
}

fn cache<'a>(comparison: &Comparison, arm: &Arm, prefix: &'a Prefix, timings: &ArmTimings) -> CacheView<'a> {
    let batches = comparison.steps as f64 * comparison.accumulate as f64;
    let runs = timings.epoch_s.len() as f64 / comparison.epochs.max(1) as f64;
    let without_s = timings.step_ms / 1e3 * batches * runs;
    let without_s = (without_s > 0.0).then_some(without_s);
    let with_s = timings.epoch_s.iter().sum::<f64>() + timings.fill_s;
    CacheView {
        until: &prefix.until,
        share: (prefix.flops_per_image * comparison.batch as u64) as f64 / arm.step.amount.flops as f64,
        bytes_per_image: prefix.bytes_per_image,
        with_s,
        without_s,
        saved_s: without_s.map(|without_s| without_s - with_s),
    }
}

fn trials(arm: &Arm) -> Vec<TrialView> {
    let rounds = arm.search.iter().flat_map(|search| &search.rounds);
    let trials = rounds.flat_map(|round| round.trials.iter().map(|trial| (round.epochs, trial)));
    let view = |(epochs, trial): (usize, &Trial)| TrialView {
        lr: trial.lr,
        epochs,
        accuracy: Some(trial.accuracy).filter(|accuracy| accuracy.is_finite()),
        diverged: trial.diverged,
    };
    trials.map(view).collect()
}

fn diverged(arm: &Arm) -> Vec<DivergedView<'_>> {
    let diverged = arm.runs.iter().filter_map(|run| Some((run.seed, run.diverged.as_deref()?)));
    diverged.map(|(seed, why)| DivergedView { seed, why }).collect()
}

fn stages(arm: &Arm) -> Vec<StageView<'_>> {
    let mut end = 0.0;
    let stages = arm.stages.iter().map(|stage| {
        let from = end;
        end += stage.share;
        StageView { from, rules: &stage.rules, settings: settings(&stage.layers) }
    });
    stages.collect()
}

fn settings(layers: &[ArmLayer]) -> Vec<SettingView<'_>> {
    let mut settings: Vec<SettingView> = Vec::new();
    for layer in layers {
        match settings.iter_mut().rfind(|setting| setting.kind == layer.kind) {
            Some(setting) if setting.axes == layer.axes => {
                setting.last = &layer.name;
                setting.count += 1;
            }
            _ => settings.push(SettingView {
                kind: &layer.kind,
                axes: &layer.axes,
                first: &layer.name,
                last: &layer.name,
                count: 1,
            }),
        }
    }
    settings
}
