//! Runs plans on a device.

use super::device::Pipeline;
use super::texture::{self, Texture};
use super::{Device, GpuError};
use crate::graph::{Graph, ParamId, Phase};
use crate::kernels::Access;
use crate::plan::{Call, Plan, SlotId, Storage};
use crate::tensor::HostTensor;
use std::sync::Arc;

/// Calls a submission: consumer drivers kill what runs for seconds, and a submission of this many stays well below.
const CALLS_PER_SUBMISSION: usize = 64;

/// Results that may be on their way to the host while the device goes on.
const IN_FLIGHT: usize = 4;

/// A network's parameters on a device, shared by the plans that train and evaluate it.
#[derive(Clone)]
pub struct Parameters {
    buffers: Arc<[wgpu::Buffer]>,
}

impl Parameters {
    /// Uploads one tensor a parameter of `graph`.
    ///
    /// # Errors
    /// A tensor is larger than the device allows, or memory is short.
    ///
    /// # Panics
    /// `tensors` are not the graph's.
    pub fn upload(device: &Device, graph: &Graph, tensors: &[HostTensor]) -> Result<Self, GpuError> {
        assert_eq!(graph.params().len(), tensors.len(), "one tensor a parameter");
        let mut buffers = Vec::with_capacity(tensors.len());
        for (param, tensor) in graph.params().iter().zip(tensors) {
            assert_eq!(param.shape, tensor.shape, "the tensor of a parameter has its shape");
            let name = || format!("{:?} of {}", param.role, graph.layers()[param.layer.index()].name);
            let bytes = tensor.shape.bytes().max(16);
            fits(device, &name(), bytes, None)?;
            let buffer = create(device, &name(), bytes)?;
            upload(device, &buffer, 0, bytemuck::cast_slice(&tensor.data))?;
            buffers.push(buffer);
        }
        Ok(Self { buffers: buffers.into() })
    }

    /// Reads one parameter back.
    ///
    /// # Errors
    /// The device failed.
    pub fn download(&self, device: &Device, graph: &Graph, param: ParamId) -> Result<HostTensor, GpuError> {
        let shape = graph.param(param).shape;
        let data = device.download(&self.buffers[param.index()], 0, shape.stored_len())?;
        Ok(HostTensor { shape, data })
    }

    /// Overwrites one parameter, for every plan that shares it. What a plan has computed [once](Phase::Once) from it
    /// stays as it is until the plan runs that phase again.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// The tensor is not the parameter's.
    pub fn write(&self, device: &Device, graph: &Graph, param: ParamId, tensor: &HostTensor) -> Result<(), GpuError> {
        assert_eq!(graph.param(param).shape, tensor.shape, "the tensor of a parameter has its shape");
        upload(device, &self.buffers[param.index()], 0, bytemuck::cast_slice(&tensor.data))
    }
}

fn create(device: &Device, label: &str, size: u64) -> Result<wgpu::Buffer, GpuError> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
    device.guard(&format!("allocating {size} bytes for {label}"), || device.inner.device.create_buffer(&descriptor))
}

/// Writes in pieces, so that staging memory stays small.
fn upload(device: &Device, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<(), GpuError> {
    const CHUNK: usize = 16 << 20;
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        device.guard("uploading", || {
            device.inner.queue.write_buffer(buffer, offset + (i * CHUNK) as u64, chunk);
            if bytes.len() > CHUNK {
                device.inner.queue.submit([]);
            }
        })?;
    }
    Ok(())
}

/// Refuses what no binding of the device can see; `batch` is the batch that the size is proportional to.
fn fits(device: &Device, tensor: &str, bytes: u64, batch: Option<usize>) -> Result<(), GpuError> {
    let (limit, name) = device.largest_binding();
    if bytes <= limit {
        return Ok(());
    }
    let fits = batch.map(|n| (u128::from(limit) * n as u128 / u128::from(bytes)) as usize).filter(|&n| n > 0);
    Err(GpuError::TooLarge { tensor: tensor.into(), bytes, device: device.info().name.clone(), limit, name, fits })
}

struct Bound {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
}

/// A result on its way to the host.
struct Fetch {
    staging: wgpu::Buffer,
    mapped: std::sync::mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
}

/// A plan with its memory and its pipelines on a device.
pub struct Executor {
    device: Device,
    plan: Plan,
    buffers: Vec<wgpu::Buffer>,
    /// For each position in a kernel's bindings a texture that the calls in need of one share, one after the other.
    textures: Vec<Option<Texture>>,
    bound: Vec<Bound>,
    fetches: std::collections::VecDeque<Fetch>,
    staging: Vec<wgpu::Buffer>,
}

impl Executor {
    /// Allocates the plan's memory, zeroed, and compiles its kernels.
    ///
    /// # Errors
    /// A tensor or a dispatch is larger than the device allows, or memory is short.
    pub fn new(device: &Device, plan: Plan, params: &Parameters) -> Result<Self, GpuError> {
        let images = plan.graph.input_shape().or_else(|| plan.graph.logits_shape());
        let batch = images.map_or(1, crate::tensor::Shape::n);
        for slot in &plan.slots {
            let fixed = matches!(slot.storage, Storage::Param(_) | Storage::State(_) | Storage::Constant);
            fits(device, &slot.name, slot.bytes(), (!fixed).then_some(batch))?;
        }
        if let Some((call, groups)) = plan.oversized_grid() {
            const LIMIT: u64 = 65_535;
            return Err(GpuError::TooLarge {
                tensor: format!("the grid of {}", plan.label(call)),
                bytes: u64::from(groups),
                device: device.info().name.clone(),
                name: "max_compute_workgroups_per_dimension",
                limit: LIMIT,
                fits: Some((LIMIT as usize * batch) / groups as usize).filter(|&n| n > 0),
            });
        }
        let textures = textures(device, &plan, batch)?;
        let mut buffers = Vec::with_capacity(plan.slots.len());
        for slot in &plan.slots {
            buffers.push(match slot.storage {
                Storage::Param(param) => params.buffers[param.index()].clone(),
                _ => create(device, &slot.name, slot.bytes())?,
            });
        }
        let uniforms = device.guard("allocating parameters", || {
            let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
            let size = plan.uniforms.len().max(256) as u64;
            let descriptor = wgpu::BufferDescriptor { label: Some("uniforms"), size, usage, mapped_at_creation: false };
            let buffer = device.inner.device.create_buffer(&descriptor);
            device.inner.queue.write_buffer(&buffer, 0, &plan.uniforms);
            buffer
        })?;
        let bound = plan
            .calls
            .iter()
            .map(|call| bind(device, call, &buffers, &textures, &uniforms))
            .collect::<Result<_, _>>()?;
        let (fetches, staging) = Default::default();
        Ok(Self { device: device.clone(), plan, buffers, textures, bound, fetches, staging })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn buffer(&self, slot: SlotId) -> &wgpu::Buffer {
        &self.buffers[slot.index()]
    }

    /// Bytes that this executor allocated, the shared parameters included.
    pub fn allocated_bytes(&self) -> u64 {
        let buffers: u64 = self.buffers.iter().chain(&self.staging).map(wgpu::Buffer::size).sum();
        buffers + self.textures.iter().flatten().map(texture::bytes).sum::<u64>()
    }

    /// Fills a slot, or its beginning.
    ///
    /// # Errors
    /// The device failed.
    pub fn write(&self, slot: SlotId, bytes: &[u8]) -> Result<(), GpuError> {
        self.write_at(slot, 0, bytes)
    }

    /// Fills a part of a slot that begins `offset` bytes from its beginning.
    ///
    /// # Errors
    /// The device failed.
    pub fn write_at(&self, slot: SlotId, offset: u64, bytes: &[u8]) -> Result<(), GpuError> {
        upload(&self.device, &self.buffers[slot.index()], offset, bytes)
    }

    /// Reads a slot, after all that was submitted before.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self, slot: SlotId) -> Result<Vec<f32>, GpuError> {
        self.device.download(&self.buffers[slot.index()], 0, self.plan.slots[slot.index()].words)
    }

    /// Submits the calls of the given phases, in order, without waiting for them.
    ///
    /// # Errors
    /// The device failed.
    pub fn run(&self, phases: &[Phase]) -> Result<(), GpuError> {
        let calls: Vec<usize> =
            (0..self.plan.calls.len()).filter(|&i| phases.contains(&self.plan.calls[i].phase)).collect();
        for calls in calls.chunks(CALLS_PER_SUBMISSION) {
            self.submit(calls)?;
        }
        Ok(())
    }

    /// Runs one call and waits.
    ///
    /// # Errors
    /// The device failed.
    pub fn run_call(&self, index: usize) -> Result<(), GpuError> {
        self.submit(&[index])?;
        self.device.wait()
    }

    fn submit(&self, calls: &[usize]) -> Result<(), GpuError> {
        self.device.guard("running a plan", || {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            self.encode(&mut encoder, calls, |_, _| {});
            self.device.inner.queue.submit([encoder.finish()]);
        })
    }

    /// Encodes calls into as few passes as their copies into textures allow; `after` is told of each call, by its
    /// position, while its pass is open.
    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        calls: &[usize],
        mut after: impl FnMut(&mut wgpu::ComputePass<'_>, usize),
    ) {
        let mut open: Option<wgpu::ComputePass<'static>> = None;
        for (position, &index) in calls.iter().enumerate() {
            let (call, bound) = (&self.plan.calls[index], &self.bound[index]);
            for (i, binding) in call.kernel.bindings.iter().enumerate() {
                if let (Access::Texture, Some(texture)) = (binding.access, &self.textures[i]) {
                    // Copies are not part of a pass.
                    open = None;
                    texture::fill(encoder, texture, &self.buffers[call.bindings[i].index()], call.words[i]);
                }
            }
            let begin = || encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
            let pass = open.get_or_insert_with(begin);
            pass.set_pipeline(&bound.pipeline.pipeline);
            pass.set_bind_group(0, &bound.group, &[call.uniform]);
            let [x, y, z] = call.workgroups;
            pass.dispatch_workgroups(x, y, z);
            after(pass, position);
        }
    }

    /// Waits until the device has done all that was submitted.
    ///
    /// # Errors
    /// The device failed.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.device.wait()
    }

    /// Starts to copy a slot to the host. The results come out of [`fetched`](Self::fetched) in order.
    ///
    /// # Errors
    /// The device failed.
    pub fn fetch(&mut self, slot: SlotId) -> Result<(), GpuError> {
        let source = &self.buffers[slot.index()];
        let size = source.size();
        let reuse = self.staging.iter().position(|s| s.size() == size).map(|i| self.staging.swap_remove(i));
        let device = &self.device.inner.device;
        let (staging, submission) = self.device.guard("reading back", || {
            let staging = reuse.unwrap_or_else(|| {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let label = Some("staging");
                device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
            });
            let mut encoder = device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(source, 0, &staging, 0, size);
            let submission = self.device.inner.queue.submit([encoder.finish()]);
            (staging, submission)
        })?;
        let (sender, mapped) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if the executor is.
            let _ = sender.send(result);
        });
        self.fetches.push_back(Fetch { staging, mapped, submission });
        Ok(())
    }

    /// The oldest result on its way, once enough others are behind it that waiting does not idle the device; with
    /// `drain`, in any case. `None` if there is none.
    ///
    /// # Errors
    /// The device failed.
    pub fn fetched(&mut self, drain: bool) -> Result<Option<Vec<f32>>, GpuError> {
        if self.fetches.len() < IN_FLIGHT && !drain {
            return Ok(None);
        }
        let Some(fetch) = self.fetches.pop_front() else { return Ok(None) };
        let fail = |reason: String| GpuError::Failed {
            device: self.device.info().name.clone(),
            during: "reading back".into(),
            reason,
        };
        let poll = wgpu::PollType::Wait { submission_index: Some(fetch.submission), timeout: None };
        self.device.inner.device.poll(poll).map_err(|e| fail(e.to_string()))?;
        fetch.mapped.recv().map_err(|e| fail(e.to_string()))?.map_err(|e| fail(e.to_string()))?;
        let words = {
            let view = fetch.staging.get_mapped_range(..).map_err(|e| fail(e.to_string()))?;
            bytemuck::pod_collect_to_vec(&view[..])
        };
        fetch.staging.unmap();
        self.staging.push(fetch.staging);
        Ok(Some(words))
    }

    /// Runs the calls of the given phases and measures each on the device, in milliseconds, with the index of its
    /// call; `None` where the device has no timestamps.
    ///
    /// # Errors
    /// The device failed.
    pub fn profile(&self, phases: &[Phase]) -> Result<Option<Vec<(usize, f64)>>, GpuError> {
        let device = &self.device.inner.device;
        let needed = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        if !device.features().contains(needed) {
            return Ok(None);
        }
        let calls: Vec<usize> =
            (0..self.plan.calls.len()).filter(|&i| phases.contains(&self.plan.calls[i].phase)).collect();
        let period = f64::from(self.device.inner.queue.get_timestamp_period()) / 1e6;
        let mut times = Vec::with_capacity(calls.len());
        for calls in calls.chunks(CALLS_PER_SUBMISSION) {
            let count = calls.len() as u32 + 1;
            let resolved = self.device.guard("measuring a plan", || {
                let label = Some("timestamps");
                let ty = wgpu::QueryType::Timestamp;
                let queries = device.create_query_set(&wgpu::QuerySetDescriptor { label, ty, count });
                let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
                let size = u64::from(count) * 8;
                let resolved =
                    device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false });
                let mut encoder = device.create_command_encoder(&Default::default());
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).write_timestamp(&queries, 0);
                self.encode(&mut encoder, calls, |pass, i| pass.write_timestamp(&queries, i as u32 + 1));
                encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
                self.device.inner.queue.submit([encoder.finish()]);
                resolved
            })?;
            let words = self.device.download(&resolved, 0, count as usize * 2)?;
            let ticks: &[u64] = &bytemuck::pod_collect_to_vec::<f32, u64>(&words);
            for (pair, &index) in ticks.windows(2).zip(calls) {
                times.push((index, pair[1].saturating_sub(pair[0]) as f64 * period));
            }
        }
        Ok(Some(times))
    }
}

/// A texture for each position in a kernel's bindings that some call reads through one, as large as the largest needs.
fn textures(device: &Device, plan: &Plan, batch: usize) -> Result<Vec<Option<Texture>>, GpuError> {
    let mut words: Vec<usize> = Vec::new();
    for call in &plan.calls {
        for (i, binding) in call.kernel.bindings.iter().enumerate() {
            if words.len() <= i {
                words.push(0);
            }
            if binding.access == Access::Texture {
                let wanted = call.words[i] as u64;
                if wanted > texture::MAX_WORDS {
                    return Err(GpuError::TooLarge {
                        tensor: format!("an operand of {}", plan.label(call)),
                        bytes: wanted * 4,
                        device: device.info().name.clone(),
                        name: "max_texture_dimension_2d",
                        limit: texture::MAX_WORDS * 4,
                        fits: Some((texture::MAX_WORDS * batch as u64 / wanted) as usize).filter(|&n| n > 0),
                    });
                }
                words[i] = words[i].max(call.words[i]);
            }
        }
    }
    let create = |words| (words > 0).then(|| texture::create(&device.inner.device, words));
    device.guard("allocating textures", || words.into_iter().map(create).collect())
}

fn bind(
    device: &Device,
    call: &Call,
    buffers: &[wgpu::Buffer],
    textures: &[Option<Texture>],
    uniforms: &wgpu::Buffer,
) -> Result<Bound, GpuError> {
    let pipeline = device.pipeline(call.kernel, &call.constants)?;
    let size = wgpu::BufferSize::new(call.kernel.params_size().next_multiple_of(16) as u64);
    let uniform = wgpu::BufferBinding { buffer: uniforms, offset: 0, size };
    let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(uniform) }];
    entries.extend(call.bindings.iter().enumerate().map(|(i, slot)| {
        let resource = match (call.kernel.bindings[i].access, &textures[i]) {
            (Access::Texture, Some(texture)) => wgpu::BindingResource::TextureView(&texture.view),
            _ => buffers[slot.index()].as_entire_binding(),
        };
        wgpu::BindGroupEntry { binding: i as u32 + 1, resource }
    }));
    let group = device.guard(&format!("binding {}", call.kernel.name), || {
        device.inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(call.kernel.name),
            layout: &pipeline.layout,
            entries: &entries,
        })
    })?;
    Ok(Bound { pipeline, group })
}
