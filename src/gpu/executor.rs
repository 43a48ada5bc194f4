//! Runs plans on a device.

use super::pipeline::Pipeline;
use super::texture::{self, Texture};
use super::wait::ReadBack;
use super::{Device, Fits, GpuError, block};
use crate::graph::{Graph, MOST_WORDS, Param, ParamId, Phase};
use crate::kernels::Access;
use crate::plan::{Call, ParamLayout, Plan, SlotId, Storage};
use crate::tensor::HostTensor;
use std::sync::Arc;

/// Calls a submission: consumer drivers kill what runs for seconds, and a submission of this many stays well below.
const CALLS_PER_SUBMISSION: usize = 64;

/// Results that may be on their way to the host while the device goes on.
const IN_FLIGHT: usize = 4;

/// A network's parameters on a device, shared by the plans that train and evaluate it.
#[derive(Clone)]
pub struct Parameters {
    layout: Arc<ParamLayout>,
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
        let layout = ParamLayout::of(graph);
        let name = |param: &Param| format!("{:?} of {}", param.role, graph.layers()[param.layer.index()].name);
        for param in &graph.params_in_parts(MOST_WORDS) {
            // Of no batch.
            fits(device, &name(param), param.shape.bytes()).map_err(|error| error.with_fits(Fits::Nothing))?;
        }
        let buffers = layout.buffers().iter().map(|&words| create(device, "the parameters", words as u64 * 4));
        let parameters = Self { buffers: buffers.collect::<Result<_, _>>()?, layout: layout.into() };
        for (index, tensor) in tensors.iter().enumerate() {
            parameters.write(device, graph, ParamId::new(index), tensor)?;
        }
        Ok(parameters)
    }

    /// Where the parameters lie.
    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// Reads one parameter back.
    ///
    /// # Errors
    /// The device failed.
    pub fn download(&self, device: &Device, graph: &Graph, param: ParamId) -> Result<HostTensor, GpuError> {
        block("reading a parameter", self.download_async(device, graph, param))
    }

    /// As [`download`](Self::download), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn download_async(&self, device: &Device, graph: &Graph, param: ParamId) -> Result<HostTensor, GpuError> {
        let shape = graph.param(param).shape;
        let mut tensor = HostTensor::zeros(shape);
        for place in self.layout.places(param) {
            let words = shape.pixels() * place.channels;
            let data = device.download_async(&self.buffers[place.buffer], place.at as u64 * 4, words).await?;
            tensor.set_channels(place.part.begin, place.channels, &data);
        }
        Ok(tensor)
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
        for place in self.layout.places(param) {
            let values = tensor.channels(place.part.begin, place.channels);
            upload(device, &self.buffers[place.buffer], place.at as u64 * 4, bytemuck::cast_slice(&values[..]))?;
        }
        Ok(())
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

/// Refuses what no binding of the device can see.
fn fits(device: &Device, tensor: &str, bytes: u64) -> Result<(), GpuError> {
    let (limit, name) = device.info().limits.largest_binding();
    if bytes <= limit {
        return Ok(());
    }
    let (tensor, device, fits) = (tensor.into(), device.info().name.clone(), Fits::Unknown);
    Err(GpuError::TooLarge { tensor, bytes, device, limit, name, fits })
}

struct Bound {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
}

/// A plan with its memory and its pipelines on a device.
pub struct Executor {
    device: Device,
    plan: Plan,
    buffers: Vec<wgpu::Buffer>,
    /// For each position in a kernel's bindings a texture that the calls in need of one share, one after the other.
    textures: Vec<Option<Texture>>,
    bound: Vec<Bound>,
    /// Results on their way to the host.
    fetches: std::collections::VecDeque<ReadBack>,
    staging: Vec<wgpu::Buffer>,
}

impl Executor {
    /// Refuses a plan that is larger than the device's limits allow; that its memory suffices is not sure even so.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] or [`GpuError::Grid`].
    pub fn check(device: &Device, plan: &Plan) -> Result<(), GpuError> {
        for slot in &plan.slots {
            fits(device, &slot.name, slot.bytes())?;
        }
        let limit = device.info().limits.max_compute_workgroups_per_dimension;
        if let Some(call) = plan.oversized_grid(limit) {
            let (workgroups, device) = (call.workgroups, device.info().name.clone());
            return Err(GpuError::Grid { call: plan.label(call), workgroups, device, limit, fits: Fits::Unknown });
        }
        let most = texture::max_words(device);
        for call in &plan.calls {
            for (binding, &words) in call.kernel.bindings.iter().zip(&call.words) {
                if binding.access == Access::Texture && words as u64 > most {
                    return Err(GpuError::TooLarge {
                        tensor: format!("an operand of {}", plan.label(call)),
                        bytes: words as u64 * 4,
                        device: device.info().name.clone(),
                        name: "max_texture_dimension_2d",
                        limit: most * 4,
                        fits: Fits::Unknown,
                    });
                }
            }
        }
        Ok(())
    }

    /// Allocates the plan's memory, zeroed, and compiles its kernels.
    ///
    /// # Errors
    /// A tensor or a dispatch is larger than the device allows, or memory is short.
    ///
    /// # Panics
    /// `params` are not those of the plan's network.
    pub fn new(device: &Device, plan: Plan, params: &Parameters) -> Result<Self, GpuError> {
        assert_eq!(ParamLayout::of(&plan.graph), *params.layout, "the parameters are of the plan's network");
        Self::check(device, &plan)?;
        let textures = textures(device, &plan)?;
        let mut buffers = Vec::with_capacity(plan.slots.len());
        for slot in &plan.slots {
            buffers.push(match (slot.within, slot.storage) {
                // The whole comes before its parts.
                (Some((whole, _)), _) => wgpu::Buffer::clone(&buffers[whole.index()]),
                (None, Storage::Params(buffer)) => params.buffers[buffer].clone(),
                (None, _) => create(device, &slot.name, slot.bytes())?,
            });
            if let Storage::Table(table) = slot.storage {
                upload(device, &buffers[buffers.len() - 1], 0, bytemuck::cast_slice(&plan.tables[table]))?;
            }
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
            .map(|call| bind(device, &plan, call, &buffers, &textures, &uniforms))
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

    /// Where a slot is: its buffer, and the byte at which it begins.
    pub(super) fn place(&self, slot: SlotId) -> (&wgpu::Buffer, u64) {
        (&self.buffers[slot.index()], begin(&self.plan, slot))
    }

    /// Bytes that this executor allocated, the shared parameters included.
    pub fn allocated_bytes(&self) -> u64 {
        let whole = self.buffers.iter().zip(&self.plan.slots).filter(|(_, slot)| slot.within.is_none());
        let buffers: u64 = whole.map(|(buffer, _)| buffer).chain(&self.staging).map(wgpu::Buffer::size).sum();
        buffers + self.textures.iter().flatten().map(texture::bytes).sum::<u64>()
    }

    /// Fills a slot, or its beginning.
    ///
    /// # Errors
    /// There are more bytes than the slot has, or the device failed.
    pub fn write(&self, slot: SlotId, bytes: &[u8]) -> Result<(), GpuError> {
        self.write_at(slot, 0, bytes)
    }

    /// Fills a part of a slot that begins `offset` bytes from its beginning.
    ///
    /// # Errors
    /// There are more bytes than the slot has from there, or the device failed.
    pub fn write_at(&self, slot: SlotId, offset: u64, bytes: &[u8]) -> Result<(), GpuError> {
        let (buffer, begin) = self.place(slot);
        let room = self.plan.slots[slot.index()].bytes();
        if offset + bytes.len() as u64 > room {
            let reason = format!("{} bytes from byte {offset} on do not fit into its {room}", bytes.len());
            return Err(self.device.failed(&format!("writing {}", self.plan.slots[slot.index()].name), reason));
        }
        upload(&self.device, buffer, begin + offset, bytes)
    }

    /// Reads a slot, after all that was submitted before.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(&self, slot: SlotId) -> Result<Vec<f32>, GpuError> {
        block("reading a result", self.read_async(slot))
    }

    /// As [`read`](Self::read), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn read_async(&self, slot: SlotId) -> Result<Vec<f32>, GpuError> {
        let (buffer, offset) = self.place(slot);
        self.device.download_async(buffer, offset, self.plan.slots[slot.index()].words).await
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
            self.device.submit(encoder);
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
                    texture::fill(encoder, texture, self.place(call.bindings[i]), call.words[i]);
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
        let size = self.plan.slots[slot.index()].bytes();
        let reuse = self.staging.iter().position(|s| s.size() == size).map(|i| self.staging.swap_remove(i));
        let (source, offset) = self.place(slot);
        self.fetches.push_back(self.device.read_back(source, offset, size, reuse)?);
        Ok(())
    }

    /// The oldest result on its way, once enough others are behind it that waiting does not idle the device; with
    /// `drain`, in any case. `None` if there is none.
    ///
    /// # Errors
    /// The device failed.
    pub fn fetched(&mut self, drain: bool) -> Result<Option<Vec<f32>>, GpuError> {
        block("waiting for a result", self.fetched_async(drain))
    }

    /// As [`fetched`](Self::fetched), without blocking a browser.
    ///
    /// # Errors
    /// The device failed.
    pub async fn fetched_async(&mut self, drain: bool) -> Result<Option<Vec<f32>>, GpuError> {
        if self.fetches.len() < IN_FLIGHT && !drain {
            return Ok(None);
        }
        let Some(fetch) = self.fetches.pop_front() else { return Ok(None) };
        let mut words = Vec::new();
        let staging = self.device.arrive(fetch, |bytes| words = bytemuck::pod_collect_to_vec(bytes)).await?;
        self.staging.push(staging);
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
                self.device.submit(encoder);
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
fn textures(device: &Device, plan: &Plan) -> Result<Vec<Option<Texture>>, GpuError> {
    let mut words: Vec<usize> = Vec::new();
    for call in &plan.calls {
        for (i, binding) in call.kernel.bindings.iter().enumerate() {
            if words.len() <= i {
                words.push(0);
            }
            if binding.access == Access::Texture {
                words[i] = words[i].max(call.words[i]);
            }
        }
    }
    let create = |words| (words > 0).then(|| texture::create(&device.inner.device, words));
    device.guard("allocating textures", || words.into_iter().map(create).collect())
}

/// The byte of its buffer at which a slot begins.
fn begin(plan: &Plan, slot: SlotId) -> u64 {
    plan.slots[slot.index()].within.map_or(0, |(_, word)| word as u64 * 4)
}

fn bind(
    device: &Device,
    plan: &Plan,
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
            _ => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &buffers[slot.index()],
                offset: begin(plan, *slot),
                size: wgpu::BufferSize::new(plan.slots[slot.index()].bytes()),
            }),
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
