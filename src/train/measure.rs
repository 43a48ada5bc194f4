//! Measuring what inference and a training step of a network take on a device.

use super::{Evaluator, Images, Session, TrainError};
use crate::compile::Options;
use crate::gpu::{Device, Executor, median};
use crate::graph::{Graph, Phase};
use crate::plan::Input;
use crate::rng::Rng;
use crate::tensor::HostTensor;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What a network takes on a device under its policy. Times are medians in milliseconds, on random data, and include
/// handing the batch over and waiting for the results.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// Inference of one batch.
    pub inference_ms: f64,
    /// Forward, backward and update of one batch; of several that are accumulated, their share in a step.
    pub step_ms: f64,
    /// How far the runs are apart that the medians are of; files of older versions do not tell.
    #[serde(default)]
    pub inference_runs_ms: Option<Quartiles>,
    #[serde(default)]
    pub step_runs_ms: Option<Quartiles>,
    /// Compiling the plan and its kernels, uploading, and the first step. Kernels that the device has compiled before
    /// are not compiled again.
    pub first_step_ms: f64,
    /// Images that training steps take in a second.
    pub images_per_s: f64,
    /// Device memory that the plan of the step needs.
    pub planned_bytes: u64,
    /// Results of the forward pass that wait for the backward pass.
    pub kept_bytes: u64,
    /// Device memory that the step allocated.
    pub allocated_bytes: u64,
    /// The step's kernels, the most expensive first.
    pub kernels: Vec<KernelTime>,
    /// The same of inference.
    pub inference_kernels: Vec<KernelTime>,
}

/// What a time is the median of, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Quartiles {
    /// How often it was measured.
    pub count: usize,
    pub least: f64,
    /// A quarter is no more than this.
    pub lower: f64,
    /// A quarter is no less than this.
    pub upper: f64,
    pub most: f64,
}

/// All calls of one kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KernelTime {
    pub kernel: String,
    pub calls: usize,
    /// Milliseconds on the device, by its timestamps; `None` where it has none.
    pub ms: Option<f64>,
    /// Of a measured time the part that is predicted, the device's roofline: 1 is as fast as a large convolution and a plain
    /// addition are there. None of a prediction, and where nothing is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_roofline: Option<f64>,
}

impl KernelTime {
    /// Sets measured times beside predicted ones.
    pub(crate) fn compare(measured: &mut [Self], predicted: &[Self]) {
        for kernel in measured {
            let predicted = predicted.iter().find(|other| other.kernel == kernel.kernel).and_then(|other| other.ms);
            kernel.of_roofline =
                predicted.zip(kernel.ms).filter(|(_, ms)| *ms > 0.0).map(|(predicted, ms)| predicted / ms);
        }
    }
}

/// Measures inference and a training step of `network`, whose layers carry their settings: one run of each to warm up,
/// then `repeat`.
///
/// # Errors
/// The device refuses the plan or failed.
pub fn measure(
    device: &Device,
    network: Graph,
    tensors: &[HostTensor],
    options: Options,
    repeat: usize,
) -> Result<Measurement, TrainError> {
    // The device is asked first: a batch that it refuses may be too much for the host, too.
    let start = Instant::now();
    let mut session = Session::new(device, network.clone(), tensors, Input::Values, options)?;
    let compile_ms = ms(start);

    let mut rng = Rng::keyed(0, &[]);
    let shape = network.input_shape().ok_or(TrainError::Incomplete { what: "input" })?;
    let classes = network.logits_shape().map_or(1, crate::tensor::Shape::c);
    let mut images = HostTensor::zeros(shape);
    for pixel in images.data.chunks_exact_mut(shape.stored_c()) {
        pixel[..shape.c()].fill_with(|| rng.range(-2.0, 2.0) as f32);
    }
    let images = Images::Values(&images.data);
    let labels: Vec<u32> = (0..shape.n()).map(|_| rng.below(classes) as u32).collect();
    // Small enough for the weights to stay what they are.
    const LR: f64 = 1e-6;

    let start = Instant::now();
    session.step(images, &labels, LR)?;
    let first_step_ms = compile_ms + ms(start);
    // Whole windows: the last micro-batch of one has more to do, or all.
    let window = options.accumulate;
    let rest = (1..window).try_for_each(|_| session.step(images, &labels, LR).map(|_| ()));
    rest?;
    let whole = || (0..window).try_for_each(|_| session.step(images, &labels, LR).map(|_| ()));
    let (step_ms, step_runs_ms) = time(repeat, window, whole)?;
    let kernels = kernel_times(session.executor(), &[Phase::Forward, Phase::Backward, Phase::Update])?;
    let (planned_bytes, kept_bytes) = (session.plan().bytes(), session.plan().cost.kept());
    let allocated_bytes = session.executor().allocated_bytes();
    drop(session);

    let mut evaluator = Evaluator::new(device, &network, tensors, Input::Values)?;
    evaluator.logits(images)?;
    let (inference_ms, inference_runs_ms) = time(repeat, 1, || evaluator.logits(images).map(|_| ()))?;
    Ok(Measurement {
        inference_ms,
        step_ms,
        inference_runs_ms,
        step_runs_ms,
        first_step_ms,
        images_per_s: shape.n() as f64 / (step_ms / 1e3),
        planned_bytes,
        kept_bytes,
        allocated_bytes,
        kernels,
        inference_kernels: kernel_times(evaluator.executor(), &[Phase::Forward])?,
    })
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// The median of `repeat` runs of so many parts each, and how far they are apart; of a part.
fn time(
    repeat: usize,
    parts: usize,
    mut run: impl FnMut() -> Result<(), TrainError>,
) -> Result<(f64, Option<Quartiles>), TrainError> {
    let mut times = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let start = Instant::now();
        run()?;
        times.push(ms(start) / parts as f64);
    }
    Ok((median(times.clone()), Quartiles::of(times)))
}

impl Quartiles {
    /// None of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (count, quarter) = (values.len(), values.len() / 4);
        let at = |index: Option<usize>| values.get(index?).copied();
        Some(Self {
            count,
            least: at(Some(0))?,
            lower: at(Some(quarter))?,
            upper: at((count - quarter).checked_sub(1))?,
            most: at(count.checked_sub(1))?,
        })
    }
}

/// The calls of the given phases, by kernel.
fn kernel_times(executor: &Executor, phases: &[Phase]) -> Result<Vec<KernelTime>, TrainError> {
    let calls = &executor.plan().calls;
    let timed = executor.profile(phases)?;
    let entries: Vec<(usize, Option<f64>)> = match timed {
        Some(times) => times.into_iter().map(|(call, ms)| (call, Some(ms))).collect(),
        None => (0..calls.len()).filter(|&i| phases.contains(&calls[i].phase)).map(|i| (i, None)).collect(),
    };
    let mut kernels: Vec<KernelTime> = Vec::new();
    for (call, ms) in entries {
        let kernel = calls[call].kernel.name;
        match kernels.iter_mut().find(|k| k.kernel == kernel) {
            Some(known) => {
                known.calls += 1;
                known.ms = known.ms.zip(ms).map(|(a, b)| a + b);
            }
            None => kernels.push(KernelTime { kernel: kernel.into(), calls: 1, ms, of_roofline: None }),
        }
    }
    kernels.sort_by(|a, b| b.ms.unwrap_or(0.0).total_cmp(&a.ms.unwrap_or(0.0)));
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_few_and_of_many() {
        let of = |values: &[f64]| {
            let q = Quartiles::of(values.to_vec()).unwrap();
            (q.count, [q.least, q.lower, q.upper, q.most])
        };
        assert_eq!(Quartiles::of(vec![]), None);
        assert_eq!(of(&[7.0]), (1, [7.0; 4]));
        assert_eq!(of(&[5.0, 1.0, 4.0, 2.0, 3.0]), (5, [1.0, 2.0, 4.0, 5.0]));
        assert_eq!(of(&[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), (8, [1.0, 3.0, 6.0, 8.0]));
    }
}
