//! Timing a single kernel.

use super::{Device, GpuError};
use crate::kernels::Dispatch;
use std::time::Instant;
use wgpu::util::DeviceExt;

impl Device {
    /// Runs one kernel once to warm up and `repeat` times to measure, waiting for the device each time, and returns the
    /// median in milliseconds. `words` are the lengths of the buffers in the kernel's binding order, in 32-bit words;
    /// they are filled with small numbers.
    ///
    /// # Errors
    /// The device refuses or failed.
    pub fn time(&self, dispatch: &Dispatch, words: &[usize], repeat: usize) -> Result<f64, GpuError> {
        let pipeline = self.pipeline(dispatch.kernel)?;
        let device = &self.inner.device;
        let during = format!("measuring {}", dispatch.kernel.name);
        let group = self.guard(&during, || {
            let init = |contents: &[u8], usage| {
                device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents, usage })
            };
            let uniform = init(&dispatch.params, wgpu::BufferUsages::UNIFORM);
            let storage: Vec<_> = words
                .iter()
                .map(|&len| init(bytemuck::cast_slice(&values(len)), wgpu::BufferUsages::STORAGE))
                .collect();
            let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            entries.extend(storage.iter().enumerate().map(|(i, buffer)| wgpu::BindGroupEntry {
                binding: i as u32 + 1,
                resource: buffer.as_entire_binding(),
            }));
            let layout = &pipeline.layout;
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
        })?;
        let mut times = Vec::with_capacity(repeat);
        for run in 0..=repeat {
            let start = Instant::now();
            self.guard(&during, || {
                let mut encoder = device.create_command_encoder(&Default::default());
                {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, &group, &[0]);
                    let [x, y, z] = dispatch.workgroups;
                    pass.dispatch_workgroups(x, y, z);
                }
                self.inner.queue.submit([encoder.finish()]);
            })?;
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
