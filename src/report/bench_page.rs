//! The page that shows a benchmark.

use super::{Against, BenchResult, Benchmark, Predictions, template};
use crate::train::{KernelTime, Measurement};
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
        roles => ROLES.map(|(role, _)| role).to_vec(),
        timestamps => done.any(|done| done.shares.is_some()),
        against => Serde(against),
    }
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
        inference: Beside::of(measured.inference_ms, predicted.map(|p| p.inference.ms)),
        step: Beside::of(measured.step_ms, predicted.map(|p| p.step.ms)),
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
    fn of(measured: f64, predicted: Option<f64>) -> Self {
        Self { measured, predicted, ratio: predicted.map(|predicted| measured / predicted) }
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
