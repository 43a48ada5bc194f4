//! Running a single kernel, without a plan.

use super::pipeline::Pipeline;
use super::texture::{self, Texture};
use super::{Device, GpuError};
use crate::kernels::{Access, Dispatch};
use std::sync::Arc;

/// One kernel with buffers of its own.
pub(super) struct StandAlone {
    pipeline: Arc<Pipeline>,
    storage: Vec<wgpu::Buffer>,
    textures: Vec<Option<Texture>>,
    group: wgpu::BindGroup,
}

impl Device {
    /// Runs one kernel: uploads `buffers`, in the kernel's binding order, and reads the written ones back.
    ///
    /// # Errors
    /// The device reports an error.
    pub fn run(&self, dispatch: &Dispatch, buffers: &mut [Vec<f32>]) -> Result<(), GpuError> {
        let standing = self.stand_alone(dispatch, buffers)?;
        self.guard(&format!("running {}", dispatch.kernel.name), || self.submit_alone(dispatch, &standing, 1))?;
        for ((data, buffer), binding) in buffers.iter_mut().zip(&standing.storage).zip(dispatch.kernel.bindings) {
            if binding.access == Access::Write {
                *data = self.download(buffer, 0, data.len())?;
            }
        }
        Ok(())
    }

    /// Uploads and binds what one kernel needs, without a plan.
    pub(super) fn stand_alone(&self, dispatch: &Dispatch, buffers: &[Vec<f32>]) -> Result<StandAlone, GpuError> {
        let pipeline = self.pipeline(dispatch.kernel, &dispatch.constants)?;
        let device = &self.inner.device;
        self.guard(&format!("preparing {}", dispatch.kernel.name), || {
            // Not mapped at creation: that of a lost device panics.
            let init = |contents: &[u8], usage| {
                let (label, size) = (None, contents.len() as u64);
                let usage = usage | wgpu::BufferUsages::COPY_DST;
                let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false };
                let buffer = device.create_buffer(&descriptor);
                self.inner.queue.write_buffer(&buffer, 0, contents);
                buffer
            };
            let uniform = init(&dispatch.params, wgpu::BufferUsages::UNIFORM);
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
            let storage: Vec<_> = buffers.iter().map(|data| init(bytemuck::cast_slice(data), usage)).collect();
            let textures: Vec<Option<Texture>> = dispatch
                .kernel
                .bindings
                .iter()
                .zip(buffers)
                .map(|(b, data)| (b.access == Access::Texture).then(|| texture::create(device, data.len())))
                .collect();
            let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            entries.extend(storage.iter().zip(&textures).enumerate().map(|(i, (buffer, texture))| {
                let resource = match texture {
                    Some(texture) => wgpu::BindingResource::TextureView(&texture.view),
                    None => buffer.as_entire_binding(),
                };
                wgpu::BindGroupEntry { binding: i as u32 + 1, resource }
            }));
            let layout = &pipeline.layout;
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
            StandAlone { pipeline: pipeline.clone(), storage, textures, group }
        })
    }

    /// Submits one kernel `times` in a row, with its copies into textures before the first.
    pub(super) fn submit_alone(&self, dispatch: &Dispatch, standing: &StandAlone, times: usize) {
        let mut encoder = self.inner.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (buffer, texture) in standing.storage.iter().zip(&standing.textures) {
            if let Some(texture) = texture {
                texture::fill(&mut encoder, texture, (buffer, 0), buffer.size() as usize / 4);
            }
        }
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&standing.pipeline.pipeline);
            pass.set_bind_group(0, &standing.group, &[0]);
            let [x, y, z] = dispatch.workgroups;
            for _ in 0..times {
                pass.dispatch_workgroups(x, y, z);
            }
        }
        self.submit(encoder);
    }
}
