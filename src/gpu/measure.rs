//! Timing single kernels, and with them the device.

use super::{Device, GpuError};
use crate::graph::Act;
use crate::kernels::conv2d::{self, Epilogue};
use crate::kernels::{Dispatch, Window, add};
use crate::plan::Roofline;
use crate::tensor::Shape;
use std::time::Instant;

/// Runs that a number of a [`Roofline`] is the median of.
const REPEAT: usize = 5;

/// Long against the way to the device and back, and short enough for drivers that kill what takes long.
const LONG_MS: f64 = 20.0;

impl Device {
    /// Runs one kernel once to warm up and `repeat` times to measure, waiting for the device each time, and returns the
    /// median in milliseconds. `words` are the lengths of the buffers in the kernel's binding order, in 32-bit words;
    /// they are filled with small numbers.
    ///
    /// # Errors
    /// The device refuses or failed.
    pub fn time(&self, dispatch: &Dispatch, words: &[usize], repeat: usize) -> Result<f64, GpuError> {
        self.time_row(dispatch, words, 1, repeat)
    }

    /// Measures what [`Roofline`] needs to know of the device, which takes about a second.
    ///
    /// # Errors
    /// The device refuses or failed.
    pub fn roofline(&self) -> Result<Roofline, GpuError> {
        const CALLS: usize = 64;
        let nothing = Shape::nhwc(1, 1, 1, 4);
        let (call, words) = (add::forward(nothing, Act::Identity, false), [4; 4]);
        let one = self.time_row(&call, &words, 1, 4 * REPEAT)?;
        let many = self.time_row(&call, &words, CALLS, 4 * REPEAT)?;
        let call_ms = (many - one).max(0.0) / (CALLS - 1) as f64;

        // ResNet's own: the convolution of its first blocks, and a tensor of the size that its first one gives.
        let shape = Shape::nhwc(8, 56, 56, 64);
        let g = Window { kernel: [3, 3], stride: [1, 1], padding: [1; 4] };
        let dispatch = conv2d::forward(self.variant()?, shape, shape, g, Epilogue::default());
        let words = [shape.stored_len(), 9 * 64 * 64, 64, 4, shape.stored_len(), 4];
        let arithmetic_ms = self.time_long(&dispatch, &words)?;
        let flops = 2 * 9 * 64 * shape.stored_len();

        let shape = Shape::nhwc(4, 112, 112, 64);
        let len = shape.stored_len();
        let memory_ms = self.time_long(&add::forward(shape, Act::Identity, false), &[len, len, len, 4])?;
        Ok(Roofline {
            flops_per_s: flops as f64 / arithmetic_ms * 1e3,
            bytes_per_s: (3 * len * 4) as f64 / memory_ms * 1e3,
            call_ms,
            run_ms: (one - call_ms).max(0.0),
        })
    }

    /// Milliseconds that a kernel takes as one of a row that is long enough for the way to the device not to count.
    fn time_long(&self, dispatch: &Dispatch, words: &[usize]) -> Result<f64, GpuError> {
        let once = self.time(dispatch, words, 1)?;
        let times = (LONG_MS / once).clamp(1.0, 256.0) as usize;
        Ok(self.time_row(dispatch, words, times, REPEAT)? / times as f64)
    }

    /// As [`time`](Self::time), of the kernel `times` in a row.
    fn time_row(&self, dispatch: &Dispatch, words: &[usize], times: usize, repeat: usize) -> Result<f64, GpuError> {
        let during = format!("measuring {}", dispatch.kernel.name);
        if cfg!(target_arch = "wasm32") {
            // Nor is there a clock.
            return Err(GpuError::Blocking { during });
        }
        let buffers: Vec<Vec<f32>> = words.iter().map(|&len| values(len)).collect();
        let standing = self.stand_alone(dispatch, &buffers)?;
        let mut took = Vec::with_capacity(repeat);
        for run in 0..=repeat {
            let start = Instant::now();
            self.guard(&during, || self.submit_alone(dispatch, &standing, times))?;
            self.wait()?;
            if run > 0 {
                took.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(median(took))
    }
}

/// Numbers within ±0.5, all different from zero.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 0.001 - 0.4995).collect()
}

/// The middle value, 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
