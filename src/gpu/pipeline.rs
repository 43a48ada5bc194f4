//! Compiling kernels.

use super::device::lock;
use super::{Device, GpuError};
use crate::kernels::{Access, Kernel};
use std::sync::Arc;

pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// A kernel's name, and the constants of it that are not its own, as bits.
pub(super) type PipelineKey = (&'static str, Vec<(&'static str, u64)>);

impl Device {
    /// The compiled form of a kernel, with other values of some of its constants; compiled at the first call.
    pub(super) fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: &[(&'static str, f64)],
    ) -> Result<Arc<Pipeline>, GpuError> {
        let bits = constants.iter().map(|&(name, value)| (name, value.to_bits()));
        let key = (kernel.name, bits.collect());
        let mut pipelines = lock(&self.inner.pipelines);
        if let Some(pipeline) = pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.guard(&format!("compiling {}", kernel.name), || self.compile(kernel, constants))?);
        pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    #[expect(unsafe_code, reason = "modules without bounds checks are trusted, not checked, by wgpu")]
    fn compile(&self, kernel: &'static Kernel, constants: &[(&'static str, f64)]) -> Pipeline {
        let own = kernel.overrides.iter().filter(|(name, _)| constants.iter().all(|(other, _)| other != name));
        let constants: Vec<_> = own.chain(constants).copied().collect();
        let device = &self.inner.device;
        let label = Some(kernel.name);
        let source = match device.adapter_info().backend {
            wgpu::Backend::BrowserWebGpu => kernel.source,
            _ => kernel.naga_source(),
        };
        let source = wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(source.into()) };
        let module = if self.inner.checked {
            device.create_shader_module(source)
        } else {
            // SAFETY: the kernels index inside their buffers and their loops end; the test suite runs every one of
            // them checked and unchecked, and compares.
            unsafe { device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let buffer =
            |ty, has_dynamic_offset| wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None };
        let mut entries = vec![wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: buffer(wgpu::BufferBindingType::Uniform, true),
            count: None,
        }];
        entries.extend(kernel.bindings.iter().enumerate().map(|(i, binding)| wgpu::BindGroupLayoutEntry {
            binding: i as u32 + 1,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: match binding.access {
                Access::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }, false),
                Access::Write => buffer(wgpu::BufferBindingType::Storage { read_only: false }, false),
                Access::Texture => wgpu::BindingType::Texture {
                    sample_type: wgpu::TextureSampleType::Float { filterable: false },
                    view_dimension: wgpu::TextureViewDimension::D2,
                    multisampled: false,
                },
            },
            count: None,
        }));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }
}
