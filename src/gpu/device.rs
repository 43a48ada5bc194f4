//! Opening a device, compiling kernels for it, and running a single one.

use super::GpuError;
use super::texture::{self, Texture};
use crate::kernels::conv2d::{self, Epilogue, Variant};
use crate::kernels::{Access, Dispatch, Geometry, Kernel, SUBGROUP};
use crate::tensor::Shape;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use wgpu::util::DeviceExt;

/// Which limits to ask the adapter for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Limits {
    /// As large buffers as the adapter allows.
    #[default]
    Adapter,
    /// Only what WebGPU guarantees everywhere.
    Default,
}

/// How to open a [`Device`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceOptions {
    /// An index into [`list`] or a part of a device's name, in any case; the fastest kind of device when `None`.
    pub select: Option<String>,
    pub limits: Limits,
    /// Compile the shaders with bounds checks and loop guards. Slower; for tests.
    pub checked: bool,
}

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// Vulkan, Metal, DX12 or WebGPU.
    pub backend: String,
    /// Discrete, integrated or virtual GPU, or a driver that computes on the CPU.
    pub kind: &'static str,
    /// The smallest and the largest subgroup that a kernel may run in.
    pub subgroups: [u32; 2],
    /// The largest buffer that a kernel can see, in bytes.
    pub largest_buffer: u64,
}

impl DeviceInfo {
    fn new(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Self {
        Self {
            name: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            backend: format!("{:?}", info.backend),
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete GPU",
                wgpu::DeviceType::IntegratedGpu => "integrated GPU",
                wgpu::DeviceType::VirtualGpu => "virtual GPU",
                wgpu::DeviceType::Cpu => "CPU",
                wgpu::DeviceType::Other => "unknown",
            },
            subgroups: [info.subgroup_min_size, info.subgroup_max_size],
            largest_buffer: largest_binding(limits).0,
        }
    }
}

/// The largest buffer that a kernel can see, in bytes, and the name of the limit.
fn largest_binding(limits: &wgpu::Limits) -> (u64, &'static str) {
    let binding = limits.max_storage_buffer_binding_size;
    if binding <= limits.max_buffer_size {
        (binding, "max_storage_buffer_binding_size")
    } else {
        (limits.max_buffer_size, "max_buffer_size")
    }
}

fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    // Real GPUs first, in the order in which the drivers list them.
    adapters.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// Every device that can be opened, in the order of their indices: the first is the default.
pub fn list() -> Vec<DeviceInfo> {
    adapters().iter().map(|a| DeviceInfo::new(&a.get_info(), &a.limits())).collect()
}

/// One kernel with buffers of its own.
pub(super) struct StandAlone {
    pipeline: Arc<Pipeline>,
    storage: Vec<wgpu::Buffer>,
    textures: Vec<Option<Texture>>,
    group: wgpu::BindGroup,
}

pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// A kernel's name, and the constants of it that are not its own, as bits.
type PipelineKey = (&'static str, Vec<(&'static str, u64)>);

/// An open device with its compiled kernels. Cheap to clone; clones share everything but what
/// [`with_variant`](Self::with_variant) decides.
#[derive(Clone)]
pub struct Device {
    pub(super) inner: Arc<Inner>,
    /// Used instead of the one that is measured to be the fastest.
    pinned: Option<Variant>,
}

pub(super) struct Inner {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: DeviceInfo,
    checked: bool,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    variant: OnceLock<Variant>,
}

impl Device {
    /// Opens the device that `options` select.
    ///
    /// # Errors
    /// There is no driver, no device matches, or the device refuses.
    pub fn open(options: &DeviceOptions) -> Result<Self, GpuError> {
        let adapter = select(adapters(), options.select.as_deref())?;
        let mut limits = wgpu::Limits::default();
        if options.limits == Limits::Adapter {
            let most = adapter.limits();
            limits.max_buffer_size = most.max_buffer_size;
            limits.max_storage_buffer_binding_size = most.max_storage_buffer_binding_size;
        }
        let info = DeviceInfo::new(&adapter.get_info(), &limits);
        // None of these changes what a plan computes: they measure, or make it faster.
        let wanted =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES | wgpu::Features::SUBGROUP;
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("thawline"),
            required_features: adapter.features() & wanted,
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }))
        .map_err(|e| GpuError::Open { device: info.name.clone(), reason: e.to_string() })?;
        Ok(Self::build(device, queue, info, options.checked))
    }

    /// Uses a device and queue that the caller already has, for embedding. `info` is what [`DeviceInfo`] tells of
    /// the adapter they came from.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, adapter: &wgpu::AdapterInfo) -> Self {
        let info = DeviceInfo::new(adapter, &device.limits());
        Self::build(device, queue, info, false)
    }

    fn build(device: wgpu::Device, queue: wgpu::Queue, info: DeviceInfo, checked: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                device,
                queue,
                info,
                checked,
                pipelines: Mutex::default(),
                variant: OnceLock::new(),
            }),
            pinned: None,
        }
    }

    /// The same device, with the variant of the convolutions decided: what goes on where an earlier process stopped
    /// needs that one's to get the same bits. `None` if the device does not support it.
    pub fn with_variant(&self, variant: Variant) -> Option<Self> {
        self.supports(variant.representative()).then(|| Self { inner: Arc::clone(&self.inner), pinned: Some(variant) })
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Whether the device can run a kernel at all.
    pub fn supports(&self, kernel: &Kernel) -> bool {
        !kernel.subgroups
            || self.inner.info.subgroups == [SUBGROUP; 2]
                && self.inner.device.features().contains(wgpu::Features::SUBGROUP)
    }

    /// The variant of the convolutions to use: the one that was [decided](Self::with_variant), else the fastest on this
    /// device, measured once, on a small one.
    ///
    /// # Errors
    /// The device failed.
    pub fn variant(&self) -> Result<Variant, GpuError> {
        if let Some(&variant) = self.pinned.as_ref().or(self.inner.variant.get()) {
            return Ok(variant);
        }
        let candidates: Vec<Variant> = Variant::ALL.into_iter().filter(|v| self.supports(v.representative())).collect();
        let shape = Shape::nhwc(1, 28, 28, 64);
        let g = Geometry { kernel: [3, 3], stride: [1, 1], padding: [1; 4] };
        let words = [shape.stored_len(), 9 * 64 * 64, 64, 4, shape.stored_len(), 4];
        let mut fastest = (f64::INFINITY, Variant::default());
        for &variant in candidates.iter().filter(|_| candidates.len() > 1) {
            let dispatch = conv2d::forward(variant, shape, shape, g, Epilogue::default());
            let ms = self.time(&dispatch, &words, 3)?;
            log::debug!("{}: {} takes {ms:.2} ms", self.inner.info.name, dispatch.kernel.name);
            if ms < fastest.0 {
                fastest = (ms, variant);
            }
        }
        Ok(*self.inner.variant.get_or_init(|| fastest.1))
    }

    /// The largest buffer that a kernel can see, in bytes, and the name of the limit.
    pub(super) fn largest_binding(&self) -> (u64, &'static str) {
        largest_binding(&self.inner.device.limits())
    }

    /// Runs `work` and turns what wgpu reports meanwhile into an error.
    pub(super) fn guard<T>(&self, during: &str, work: impl FnOnce() -> T) -> Result<T, GpuError> {
        let device = &self.inner.device;
        let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
            .map(|filter| device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            first = first.or(pollster::block_on(scope.pop()));
        }
        let name = || self.inner.info.name.clone();
        match first {
            None => Ok(result),
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(GpuError::OutOfMemory { device: name(), during: during.into() })
            }
            Some(e) => Err(GpuError::Failed { device: name(), during: during.into(), reason: e.to_string() }),
        }
    }

    /// The compiled form of a kernel, with other values of some of its constants; compiled at the first call.
    pub(super) fn pipeline(
        &self,
        kernel: &'static Kernel,
        constants: &[(&'static str, f64)],
    ) -> Result<Arc<Pipeline>, GpuError> {
        let bits = constants.iter().map(|&(name, value)| (name, value.to_bits()));
        let key = (kernel.name, bits.collect());
        let mut pipelines = self.inner.pipelines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
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
            let init = |contents: &[u8], usage| {
                device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents, usage })
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
                texture::fill(&mut encoder, texture, buffer, buffer.size() as usize / 4);
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
        self.inner.queue.submit([encoder.finish()]);
    }

    /// Reads `words` 32-bit words of a buffer, after all that was submitted before.
    pub(super) fn download(&self, buffer: &wgpu::Buffer, offset: u64, words: usize) -> Result<Vec<f32>, GpuError> {
        /// Enough for good bandwidth, small enough not to double a large model's memory.
        const CHUNK: usize = 4 << 20;
        let mut data = Vec::with_capacity(words);
        while data.len() < words {
            let len = CHUNK.min(words - data.len());
            let bytes = len as u64 * 4;
            let staging = self.guard("reading back", || {
                let staging = self.inner.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("staging"),
                    size: bytes,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                let mut encoder = self.inner.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(buffer, offset + data.len() as u64 * 4, &staging, 0, bytes);
                self.inner.queue.submit([encoder.finish()]);
                staging
            })?;
            self.read_mapped(&staging, |bytes| data.extend_from_slice(bytemuck::cast_slice(bytes)))?;
        }
        Ok(data)
    }

    /// Waits for a `MAP_READ` buffer and shows its bytes.
    pub(super) fn read_mapped(&self, staging: &wgpu::Buffer, read: impl FnOnce(&[u8])) -> Result<(), GpuError> {
        let fail = |reason: String| GpuError::Failed {
            device: self.inner.info.name.clone(),
            during: "reading back".into(),
            reason,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if this function already failed.
            let _ = sender.send(result);
        });
        self.wait()?;
        receiver.recv().map_err(|e| fail(e.to_string()))?.map_err(|e| fail(e.to_string()))?;
        read(&staging.get_mapped_range(..).map_err(|e| fail(e.to_string()))?);
        staging.unmap();
        Ok(())
    }

    /// Waits until the device has done all that was submitted.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        self.inner.device.poll(wgpu::PollType::wait_indefinitely()).map(|_| ()).map_err(|e| GpuError::Failed {
            device: self.inner.info.name.clone(),
            during: "waiting for the device".into(),
            reason: e.to_string(),
        })
    }
}

fn select(adapters: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter, GpuError> {
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let index = match wanted {
        None => 0,
        Some(wanted) => {
            let by_name = || names.iter().position(|n| n.to_lowercase().contains(&wanted.to_lowercase()));
            let by_index = wanted.parse().ok().filter(|&i: &usize| i < names.len());
            by_index.or_else(by_name).ok_or_else(|| {
                let found = names.iter().enumerate().map(|(i, n)| format!("{i}: {n}")).collect::<Vec<_>>().join(", ");
                match found.is_empty() {
                    true => GpuError::NoAdapter,
                    false => GpuError::NoSuchDevice { wanted: wanted.into(), found },
                }
            })?
        }
    };
    adapters.into_iter().nth(index).ok_or(GpuError::NoAdapter)
}
