//! Timing a single kernel.

use super::{Device, GpuError};
use crate::kernels::Dispatch;
use std::time::Instant;

impl Device {
    /// Runs one kernel once to warm up and `repeat` times to measure, waiting for the device each time, and returns the
    /// median in milliseconds. `words` are the lengths of the buffers in the kernel's binding order, in 32-bit words;
    /// they are filled with small numbers.
    ///
    /// # Errors
    /// The device refuses or failed.
    pub fn time(&self, dispatch: &Dispatch, words: &[usize], repeat: usize) -> Result<f64, GpuError> {
        let during = format!("measuring {}", dispatch.kernel.name);
        let buffers: Vec<Vec<f32>> = words.iter().map(|&len| values(len)).collect();
        let standing = self.stand_alone(dispatch, &buffers)?;
        let mut times = Vec::with_capacity(repeat);
        for run in 0..=repeat {
            let start = Instant::now();
            self.guard(&during, || self.submit_alone(dispatch, &standing))?;
            self.wait()?;
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(median(times))
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
