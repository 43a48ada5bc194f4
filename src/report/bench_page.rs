//! The page that shows a benchmark.

use super::spread::{Spread, median};
use super::svg::{self, Line};
use super::units::{ms, times};
use super::{Against, BenchResult, Benchmark, Predictions, template};
use crate::train::{KernelTime, Measurement, Quartiles};
use minijinja::context;
use minijinja::value::{Serde, Value};
use serde::Serialize;

/// What kernels are for, by the beginning of their names; all others are the last.
const ROLES: [(&str, &[&str]); 6] = [
    ("convolution", &["conv2d_forward"]),
    ("input grad", &["conv2d_input_grad"]),
    ("weight grad", &["conv2d_weight_grad", "sum_partials"]),
    ("batch norm", &["batch_norm_", "fold_"]),
    ("optimiser", &["sgd_", "adamw_"]),
    ("rest", &[]),
];

/// A result beside what is computed of it.
#[derive(Serialize)]
struct ResultView<'a> {
    label: String,
    #[serde(flatten)]
    result: &'a BenchResult,
    /// None if it was not measured.
    done: Option<DoneView<'a>>,
    most: Most,
}

#[derive(Serialize)]
struct DepthView {
    batch: usize,
    plot: String,
}

#[derive(Serialize)]
struct DoneView<'a> {
    inference: Beside,
    step: Beside,
    images_per_s: f64,
    /// Billions of floating-point operations a second, in a measured step.
    gflops_per_s: Option<f64>,
    /// Billions of bytes moved a second, in a measured step.
    gbytes_per_s: Option<f64>,
    kept_bytes: u64,
    planned_bytes: u64,
    allocated_bytes: u64,
    /// Allocated over planned.
    memory_ratio: f64,
    /// The part of each of [`ROLES`] in the time of a step's kernels; none without timestamps.
    shares: Option<Vec<f64>>,
    /// Of a step, the most expensive first.
    kernels: Vec<KernelView<'a>>,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Serialize)]
struct Beside {
    measured: f64,
    predicted: Option<f64>,
    /// Measured over predicted.
    ratio: Option<f64>,
    /// Of the runs, the lower and the upper quartile; none in older files.
    quartiles: Option<[f64; 2]>,
    /// The longest run, if it is out of line with the others.
    outlier: Option<f64>,
}

#[derive(Serialize)]
struct KernelView<'a> {
    kernel: &'a str,
    calls: usize,
    share: Option<f64>,
    ms: Option<f64>,
    predicted: Option<f64>,
    ratio: Option<f64>,
}

/// What bars are shares of: the greatest of the same batch size.
#[derive(Clone, Default, Serialize)]
struct Most {
    inference: f64,
    step: f64,
    images_per_s: f64,
    kept: f64,
    memory: f64,
}

/// Renders a benchmark, and what it is compared with, as a page.
pub fn bench_page(benchmark: &Benchmark, against: &[Against]) -> String {
    template::render("bench.html", include_str!("bench.html"), view(benchmark, against))
}

fn view(benchmark: &Benchmark, against: &[Against]) -> Value {
    let mut results: Vec<ResultView> = benchmark.results.iter().map(view_of).collect();
    let mosts: Vec<Most> = results.iter().map(|result| most(&results, result.result.batch)).collect();
    results.iter_mut().zip(mosts).for_each(|(result, most)| result.most = most);
    let mut done = results.iter().filter_map(|result| result.done.as_ref());
    let first = benchmark.results.first();
    context! {
        benchmark => Serde(benchmark),
        model => first.map_or("", |result| result.model.as_str()),
        size => Serde(first.map_or([0; 2], |result| result.size)),
        runs => repeated(benchmark),
        results => Serde(&results),
        conclusion => conclusion(benchmark),
        depths => Serde(depths(benchmark)),
        roles => ROLES.map(|(role, _)| role).to_vec(),
        timestamps => done.any(|done| done.shares.is_some()),
        against => Serde(against),
    }
}

/// What the times say, in sentences.
fn conclusion(benchmark: &Benchmark) -> Vec<String> {
    let own = || benchmark.results.iter().filter(|result| result.same_as.is_none());
    let step = |result: &BenchResult| result.measured.as_ref().map(|measured| measured.step_ms);
    let mut batches: Vec<usize> = own().filter(|result| result.measured.is_some()).map(|result| result.batch).collect();
    batches.sort_unstable();
    batches.dedup();
    let mut sentences = Vec::new();
    // Of the largest batch: there a device is busiest.
    if let Some(&batch) = batches.last() {
        let of_batch = || own().filter(|result| result.batch == batch).filter_map(|r| Some((r, step(r)?)));
        let fastest = of_batch().min_by(|a, b| a.1.total_cmp(&b.1));
        let slowest = of_batch().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some((fast, least)), Some((slow, most))) = (fastest, slowest) {
            let label = |result: &BenchResult| format!("`{}`", result.label());
            sentences.push(match most > least {
                true => format!(
                    "In batches of {batch}, a step of {} takes {}, and one of {} {}: {} as long.",
                    label(fast),
                    ms(least),
                    label(slow),
                    ms(most),
                    times(most / least)
                ),
                false => format!("In batches of {batch}, a step of {} takes {}.", label(fast), ms(least)),
            });
        }
        let fraction = own().filter(|result| result.batch == batch).filter_map(|result| {
            let measured = result.measured.as_ref()?;
            Some(measured.step_ms / measured.inference_ms)
        });
        if let Some(spread) = Spread::of(fraction) {
            let range = match spread.most - spread.least < 0.01 {
                true => times(spread.least),
                false => format!("{} to {}", times(spread.least), times(spread.most)),
            };
            sentences.push(format!("A step takes {range} as long as inference of the same images."));
        }
    }
    let ratios = own().filter_map(|result| {
        let (measured, predicted) = (result.measured.as_ref()?, result.predicted.as_ref()?);
        Some((result, measured.step_ms / predicted.step.ms))
    });
    let ratios: Vec<(&BenchResult, f64)> = ratios.filter(|(_, ratio)| ratio.is_finite() && *ratio > 0.0).collect();
    let distance = |ratio: f64| ratio.ln().abs();
    let worst = ratios.iter().max_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
    if let (Some((result, ratio)), Some(middle)) = (worst, median(&ratios.iter().map(|r| r.1).collect::<Vec<_>>())) {
        sentences.push(format!(
            "Steps take {} the predicted time in the median. The prediction is furthest off for `{}` in batches of {}: {}.",
            times(middle),
            result.label(),
            result.batch,
            times(*ratio)
        ));
    }
    let outliers = own().filter(|result| result.measured.as_ref().and_then(|m| outlier(m.step_runs_ms)).is_some());
    let (outliers, all) = (outliers.count(), own().filter(|result| result.measured.is_some()).count());
    if outliers > 0 {
        sentences.push(format!(
            "{outliers} of {all} measurements have a run that took far longer than the others, marked in the table: something \
             else ran on the device or the host. Medians are hardly touched by that."
        ));
    }
    let missing = own().filter(|result| result.measured.is_none()).count();
    if missing > 0 {
        sentences.push(format!("{missing} of {} combinations were not measured; the table says why.", all + missing));
    }
    sentences
}

/// The longest of several runs, in milliseconds, if it is out of line with them: more than three times the distance between
/// the quartiles above the upper one (Tukey's outer fence), and a tenth above it at least.
fn outlier(runs: Option<Quartiles>) -> Option<f64> {
    let Quartiles { lower, upper, most, .. } = runs?;
    (most > upper + 3.0 * (upper - lower) && most > 1.1 * upper).then_some(most)
}

/// Step time against thaw depth, for each batch size: a line a policy. None where there is one depth only.
fn depths(benchmark: &Benchmark) -> Vec<DepthView> {
    let mut depths: Vec<Option<&str>> = Vec::new();
    let (mut policies, mut batches): (Vec<&str>, Vec<usize>) = (Vec::new(), Vec::new());
    for result in &benchmark.results {
        let depth = result.thaw.as_deref();
        if !depths.contains(&depth) {
            depths.push(depth);
        }
        if !policies.contains(&result.policy.as_str()) {
            policies.push(&result.policy);
        }
        if !batches.contains(&result.batch) {
            batches.push(result.batch);
        }
    }
    if depths.len() < 2 {
        return Vec::new();
    }
    let places: Vec<String> =
        depths.iter().map(|depth| depth.map_or("as it is".to_owned(), |layer| format!("from {layer}"))).collect();
    let view = |batch: usize| {
        let lines: Vec<Line> = policies
            .iter()
            .map(|&name| {
                let at = |depth: &Option<&str>| {
                    let mut results = benchmark.results.iter();
                    let found = results.find(|r| {
                        r.policy == name && r.batch == batch && r.thaw.as_deref() == *depth && r.measured.is_some()
                    });
                    found?.measured.as_ref().map(|measured| measured.step_ms)
                };
                Line { name, values: depths.iter().map(at).collect() }
            })
            .collect();
        DepthView { batch, plot: svg::lines(&places, &lines, ms) }
    };
    batches.into_iter().map(view).collect()
}

/// How many runs each median is of, if the file tells.
fn repeated(benchmark: &Benchmark) -> Option<usize> {
    benchmark.results.iter().find_map(|result| Some(result.measured.as_ref()?.step_runs_ms?.count))
}

fn view_of(result: &BenchResult) -> ResultView<'_> {
    let done = result.measured.as_ref().map(|measured| done(measured, result.predicted.as_ref()));
    ResultView { label: result.label(), result, done, most: Most::default() }
}

fn most(results: &[ResultView<'_>], batch: usize) -> Most {
    let done =
        || results.iter().filter(|result| result.result.batch == batch).filter_map(|result| result.done.as_ref());
    let most = |value: fn(&DoneView) -> f64| done().map(value).fold(0.0, f64::max);
    Most {
        inference: most(|done| done.inference.most()),
        step: most(|done| done.step.most()),
        images_per_s: most(|done| done.images_per_s),
        kept: most(|done| done.kept_bytes as f64),
        memory: most(|done| done.allocated_bytes.max(done.planned_bytes) as f64),
    }
}

fn done<'a>(measured: &'a Measurement, predicted: Option<&'a Predictions>) -> DoneView<'a> {
    let per_s = |amount: u64| amount as f64 / measured.step_ms / 1e6;
    let step = predicted.map(|predicted| predicted.step.total.amount);
    DoneView {
        inference: Beside::of(measured.inference_ms, predicted.map(|p| p.inference.ms), measured.inference_runs_ms),
        step: Beside::of(measured.step_ms, predicted.map(|p| p.step.ms), measured.step_runs_ms),
        images_per_s: measured.images_per_s,
        gflops_per_s: step.map(|step| per_s(step.flops)),
        gbytes_per_s: step.map(|step| per_s(step.moved_bytes)),
        kept_bytes: measured.kept_bytes,
        planned_bytes: measured.planned_bytes,
        allocated_bytes: measured.allocated_bytes,
        memory_ratio: measured.allocated_bytes as f64 / measured.planned_bytes as f64,
        shares: shares(&measured.kernels),
        kernels: kernels(&measured.kernels, predicted.map_or(&[], |predicted| &predicted.step.kernels)),
    }
}

impl Beside {
    fn of(measured: f64, predicted: Option<f64>, runs: Option<Quartiles>) -> Self {
        Self {
            measured,
            predicted,
            ratio: predicted.map(|predicted| measured / predicted),
            quartiles: runs.map(|runs| [runs.lower, runs.upper]),
            outlier: outlier(runs),
        }
    }

    fn most(&self) -> f64 {
        self.measured.max(self.predicted.unwrap_or(0.0))
    }
}

/// All kernels together, in milliseconds.
fn total(kernels: &[KernelTime]) -> Option<f64> {
    let total: f64 = kernels.iter().filter_map(|kernel| kernel.ms).sum();
    (total > 0.0).then_some(total)
}

fn shares(kernels: &[KernelTime]) -> Option<Vec<f64>> {
    let total = total(kernels)?;
    let mut shares = vec![0.0; ROLES.len()];
    for KernelTime { kernel, ms, .. } in kernels {
        let is = |(_, beginnings): &(_, &[&str])| beginnings.iter().any(|beginning| kernel.starts_with(beginning));
        shares[ROLES.iter().position(is).unwrap_or(ROLES.len() - 1)] += ms.unwrap_or(0.0) / total;
    }
    Some(shares)
}

fn kernels<'a>(measured: &'a [KernelTime], predicted: &[KernelTime]) -> Vec<KernelView<'a>> {
    let total = total(measured);
    let views = measured.iter().map(|KernelTime { kernel, calls, ms, .. }| {
        let predicted = predicted.iter().find(|known| known.kernel == *kernel).and_then(|known| known.ms);
        let ms = total.and(*ms);
        KernelView {
            kernel,
            calls: *calls,
            share: ms.zip(total).map(|(ms, total)| ms / total),
            ms,
            predicted,
            ratio: ms.zip(predicted).map(|(ms, predicted)| ms / predicted),
        }
    });
    views.collect()
}
