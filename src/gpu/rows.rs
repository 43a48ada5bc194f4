//! Results kept an image: rows of values in device memory, which plans fill and read.

use super::{Device, Executor, GpuError};
use crate::plan::SlotId;

/// One row a sample, all of one length, in as many buffers as the device's limits ask for.
pub struct Rows {
    buffers: Vec<wgpu::Buffer>,
    /// Bytes of a row.
    row: u64,
    rows_per_buffer: usize,
}

/// Small enough for any allocator, large enough for few of them.
const BUFFER_BYTES: u64 = 64 << 20;

impl Rows {
    /// `count` rows of `words` 32-bit words.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(device: &Device, count: usize, words: usize) -> Result<Self, GpuError> {
        let row = words as u64 * 4;
        let largest = BUFFER_BYTES.min(device.info().limits.max_buffer_size);
        let rows_per_buffer = ((largest / row).max(1) as usize).min(count.max(1));
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let create = |first: usize| {
            let size = rows_per_buffer.min(count - first) as u64 * row;
            let label = Some("kept results");
            device.inner.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let buffers = device
            .guard(&format!("allocating {} bytes for kept results", Self::bytes(count, words)), || {
                (0..count).step_by(rows_per_buffer).map(create).collect()
            })?;
        Ok(Self { buffers, row, rows_per_buffer })
    }

    /// The memory that `count` rows of `words` 32-bit words take.
    pub const fn bytes(count: usize, words: usize) -> u64 {
        count as u64 * words as u64 * 4
    }

    /// Copies the first rows of a slot to the rows that `samples` name, in order.
    ///
    /// # Errors
    /// The device failed.
    pub fn store(&self, executor: &Executor, slot: SlotId, samples: &[usize]) -> Result<(), GpuError> {
        self.copy(executor, slot, 0, samples, |encoder, (slot, from), (rows, to)| {
            encoder.copy_buffer_to_buffer(slot, from, rows, to, self.row);
        })
    }

    /// Copies the rows that `samples` name to a slot, in order, as its `first` row and those after it.
    ///
    /// # Errors
    /// The device failed.
    pub fn load(&self, executor: &Executor, slot: SlotId, first: usize, samples: &[usize]) -> Result<(), GpuError> {
        self.copy(executor, slot, first, samples, |encoder, (slot, to), (rows, from)| {
            encoder.copy_buffer_to_buffer(rows, from, slot, to, self.row);
        })
    }

    fn copy(
        &self,
        executor: &Executor,
        slot: SlotId,
        first: usize,
        samples: &[usize],
        copy: impl Fn(&mut wgpu::CommandEncoder, (&wgpu::Buffer, u64), (&wgpu::Buffer, u64)),
    ) -> Result<(), GpuError> {
        let device = executor.device();
        let (buffer, begin) = executor.place(slot);
        device.guard("copying kept results", || {
            let mut encoder = device.inner.device.create_command_encoder(&Default::default());
            for (position, &sample) in samples.iter().enumerate() {
                let at = (sample % self.rows_per_buffer) as u64 * self.row;
                let rows = &self.buffers[sample / self.rows_per_buffer];
                copy(&mut encoder, (buffer, begin + (first + position) as u64 * self.row), (rows, at));
            }
            device.submit(encoder);
        })
    }
}
