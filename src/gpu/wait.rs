//! Waiting for the device, and reading back.

use super::{Device, GpuError};
use futures_channel::oneshot;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::{AtomicU64, Ordering};

/// What an async function gives, in a place that may block. Where nothing may, it has to be there at once.
pub(crate) fn block<T, E: From<GpuError>>(during: &str, future: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = during;
        pollster::block_on(future)
    }
    #[cfg(target_arch = "wasm32")]
    {
        use std::task::{Context, Poll, Waker};
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(GpuError::Blocking { during: during.into() }.into()),
        }
    }
}

/// A copy of device memory on its way to the host.
pub(super) struct ReadBack {
    staging: wgpu::Buffer,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "a browser calls back by itself"))]
    submission: wgpu::SubmissionIndex,
}

impl Device {
    /// Reads `words` 32-bit words of a buffer, after all that was submitted before.
    pub(super) fn download(&self, buffer: &wgpu::Buffer, offset: u64, words: usize) -> Result<Vec<f32>, GpuError> {
        block("reading back", self.download_async(buffer, offset, words))
    }

    /// As [`download`](Self::download). Outside of a browser it occupies its thread until the device is done.
    pub(super) async fn download_async(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        words: usize,
    ) -> Result<Vec<f32>, GpuError> {
        /// Enough for good bandwidth, small enough not to double a large model's memory.
        const CHUNK: usize = 4 << 20;
        let mut data = Vec::with_capacity(words);
        let mut staging = None;
        while data.len() < words {
            let len = CHUNK.min(words - data.len());
            let read_back = self.read_back(buffer, offset + data.len() as u64 * 4, len as u64 * 4, staging.take())?;
            let arrived = self.arrive(read_back, |bytes| data.extend_from_slice(bytemuck::cast_slice(bytes))).await?;
            staging = Some(arrived);
        }
        Ok(data)
    }

    /// Starts to copy a part of `source` to the host, through `staging` if it is of the right size.
    pub(super) fn read_back(
        &self,
        source: &wgpu::Buffer,
        offset: u64,
        size: u64,
        staging: Option<wgpu::Buffer>,
    ) -> Result<ReadBack, GpuError> {
        let device = &self.inner.device;
        self.guard("reading back", || {
            let staging = staging.filter(|staging| staging.size() == size).unwrap_or_else(|| {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let label = Some("staging");
                device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
            });
            let mut encoder = device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(source, offset, &staging, 0, size);
            let submission = self.submit(encoder);
            let (sender, mapped) = oneshot::channel();
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is gone only if nobody wants to know any more.
                let _ = sender.send(result);
            });
            ReadBack { staging, mapped, submission }
        })
    }

    /// Waits for a copy and shows its bytes. Returns the staging buffer, for the next one.
    pub(super) async fn arrive(&self, read_back: ReadBack, read: impl FnOnce(&[u8])) -> Result<wgpu::Buffer, GpuError> {
        const DURING: &str = "reading back";
        let fail = |reason: &dyn std::fmt::Display| self.failed(DURING, reason);
        #[cfg(not(target_arch = "wasm32"))]
        let mapped = {
            self.wait_for(Some(&read_back.submission), DURING)?;
            let mut mapped = read_back.mapped;
            let begin = std::time::Instant::now();
            loop {
                match mapped.try_recv() {
                    // Waiting makes the callbacks; another thread that waits has taken this one, and is about to make it.
                    Ok(None) if begin.elapsed() < self.inner.timeout => {
                        std::thread::yield_now();
                        self.wait_for(Some(&read_back.submission), DURING)?;
                    }
                    arrived => break arrived.map(|arrived| arrived.unwrap_or(Err(wgpu::BufferAsyncError))),
                }
            }
        };
        #[cfg(target_arch = "wasm32")]
        let mapped = read_back.mapped.await;
        // A cause that is known by now says more than that the mapping failed.
        self.settle().await?;
        mapped.map_err(|e| fail(&e))?.map_err(|e| fail(&e))?;
        self.check_alive(DURING)?;
        read(&read_back.staging.get_mapped_range(..).map_err(|e| fail(&e))?);
        read_back.staging.unmap();
        Ok(read_back.staging)
    }

    /// Waits until the device has done all that was submitted.
    ///
    /// # Errors
    /// The device failed, or the caller is in a browser, where nothing waits.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        self.wait_for(None, "waiting for the device")
    }

    #[cfg(target_arch = "wasm32")]
    fn wait_for(&self, _submission: Option<&wgpu::SubmissionIndex>, during: &str) -> Result<(), GpuError> {
        Err(GpuError::Blocking { during: during.into() })
    }

    /// Waits until a submission is done, or all are.
    #[cfg(not(target_arch = "wasm32"))]
    fn wait_for(&self, submission: Option<&wgpu::SubmissionIndex>, during: &str) -> Result<(), GpuError> {
        let limit = self.inner.timeout;
        let done = until_done(&self.inner.finished, || {
            self.check_alive(during)?;
            let poll = wgpu::PollType::Wait { submission_index: submission.cloned(), timeout: Some(limit) };
            match caught(|| self.inner.device.poll(poll)) {
                Ok(Ok(_)) => Ok(true),
                Ok(Err(wgpu::PollError::Timeout)) => Ok(false),
                Ok(Err(error)) => Err(self.failed(during, error)),
                Err(reason) => {
                    self.lose(reason);
                    self.check_alive(during).map(|()| false)
                }
            }
        })?;
        if !done {
            let device = self.inner.info.name.clone();
            return Err(GpuError::TimedOut { device, during: during.into(), limit });
        }
        self.check_alive(during)
    }
}

/// Asks `poll`, which waits for a while, until it is true. False if nothing was finished while it waited: each submission has as
/// long, since nobody knows how many there are before the one that is waited for.
#[cfg(not(target_arch = "wasm32"))]
fn until_done<E>(finished: &AtomicU64, mut poll: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let mut before = finished.load(Ordering::Relaxed);
    while !poll()? {
        let now = finished.load(Ordering::Relaxed);
        if now == before {
            return Ok(false);
        }
        before = now;
    }
    Ok(true)
}

impl Device {
    /// Frees the device at once, with all that lies on it, for every clone: whatever is asked of it from now on fails with
    /// [`GpuError::Lost`].
    pub fn destroy(&self) {
        self.lose("it was destroyed".into());
        self.inner.device.destroy();
        // wgpu frees when it is asked how far the device is. That may be lost itself by now.
        #[cfg(not(target_arch = "wasm32"))]
        let _ = caught(|| self.inner.device.poll(wgpu::PollType::Poll));
    }
}

#[cfg(not(target_arch = "wasm32"))]
thread_local! {
    static CATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this thread is in a call of wgpu whose panic becomes an error: a panic hook can then keep quiet.
#[cfg(not(target_arch = "wasm32"))]
pub fn catches_panics() -> bool {
    CATCHING.get()
}

/// What `call` gives, or the message of its panic: wgpu has no other way to tell of a device that is lost while it is waited
/// for.
#[cfg(not(target_arch = "wasm32"))]
fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    CATCHING.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    CATCHING.set(false);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("wgpu gives no reason");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 1), Ok(1));
        assert!(!catches_panics());
        let lost = caught(|| -> u32 {
            assert!(catches_panics());
            std::panic::resume_unwind(Box::new("Error in Device::poll:\n  Parent device is lost".to_owned()))
        });
        assert_eq!(lost.unwrap_err(), "Error in Device::poll: Parent device is lost");
        assert!(!catches_panics());
    }

    #[test]
    fn a_device_may_take_long_as_long_as_it_finishes_something() {
        let finished = AtomicU64::new(3);
        // How many submissions are finished in each wait, and whether the last one is then.
        let waits = |steps: &[(u64, bool)]| {
            let mut steps = steps.iter();
            until_done(&finished, || {
                let &(more, done) = steps.next().ok_or("one wait too many")?;
                finished.fetch_add(more, Ordering::Relaxed);
                Ok::<_, &str>(done)
            })
        };
        assert_eq!(waits(&[(0, true)]), Ok(true));
        assert_eq!(waits(&[(1, false), (2, false), (1, true)]), Ok(true));
        assert_eq!(waits(&[(0, false)]), Ok(false));
        assert_eq!(waits(&[(1, false), (0, false)]), Ok(false));
        assert_eq!(waits(&[(1, false)]), Err("one wait too many"));
    }
}
