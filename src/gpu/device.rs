//! An open device: what it supports, its errors, and its loss.

use super::GpuError;
use super::open::{self, DeviceInfo, DeviceOptions};
use super::pipeline::{Pipeline, PipelineKey};
use crate::kernels::Kernel;
use crate::kernels::conv2d::Variant;
#[cfg(not(target_arch = "wasm32"))]
use crate::kernels::{
    Window,
    conv2d::{self, Epilogue},
};
#[cfg(not(target_arch = "wasm32"))]
use crate::tensor::Shape;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How long a device may finish nothing while it is waited for. A submission takes well under a second on a GPU, whose
/// driver gives up by itself long before; a busy CPU may take minutes.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_WITH_CPU: Duration = Duration::from_secs(1200);

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
    pub checked: bool,
    /// How long the device may finish nothing while it is waited for.
    #[cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "nothing waits in a browser"))]
    pub timeout: Duration,
    pub pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    variant: OnceLock<Variant>,
    /// Why the device was lost.
    lost: Arc<OnceLock<String>>,
    /// An error that no scope has caught.
    stray: Arc<Mutex<Option<String>>>,
    /// Submissions that the device has finished.
    pub finished: Arc<AtomicU64>,
    /// Error scopes that have not answered yet, as in a browser none has before the caller returned to it.
    unanswered: Mutex<Vec<Unanswered>>,
}

#[cfg(not(target_arch = "wasm32"))]
type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;
#[cfg(target_arch = "wasm32")]
type Answer = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

struct Unanswered {
    during: String,
    answer: Answer,
}

/// A lock that outlives a panic of whoever held it: nothing that is guarded here is left half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Device {
    pub(super) fn build(device: wgpu::Device, queue: wgpu::Queue, info: DeviceInfo, options: &DeviceOptions) -> Self {
        let lost: Arc<OnceLock<String>> = Arc::default();
        device.set_device_lost_callback({
            let lost = Arc::clone(&lost);
            move |reason, message| {
                let reason = match (message.trim(), reason) {
                    ("", wgpu::DeviceLostReason::Destroyed) => "it was destroyed",
                    ("", _) => "the driver gives no reason",
                    (message, _) => message,
                };
                // The first reason is the cause of the others.
                let _ = lost.set(reason.to_owned());
            }
        });
        let patience = if info.kind == "CPU" { PATIENCE_WITH_CPU } else { PATIENCE };
        Self {
            inner: Arc::new(Inner {
                device,
                queue,
                info,
                checked: options.checked,
                timeout: options.timeout.unwrap_or(patience),
                pipelines: Mutex::default(),
                variant: OnceLock::new(),
                lost,
                stray: Arc::default(),
                finished: Arc::default(),
                unanswered: Mutex::default(),
            }),
            pinned: None,
        }
    }

    /// Makes an error that no scope catches one of the next read-back, instead of a panic.
    pub(super) fn catching_strays(self) -> Self {
        let stray = Arc::clone(&self.inner.stray);
        self.inner.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&stray).get_or_insert(error.to_string());
        }));
        self
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Whether the device can run a kernel at all.
    pub fn supports(&self, kernel: &Kernel) -> bool {
        open::supports(&self.inner.info, kernel)
    }

    /// The same device, with the variant of the convolutions decided: what goes on where an earlier process stopped
    /// needs that one's to get the same bits. `None` if the device does not support it.
    pub fn with_variant(&self, variant: Variant) -> Option<Self> {
        self.supports(variant.representative()).then(|| Self { inner: Arc::clone(&self.inner), pinned: Some(variant) })
    }

    /// The variant of the convolutions to use: the one that was [decided](Self::with_variant), else the one that is made for such
    /// devices, unless another is clearly faster on a small one, which is measured once. Measuring waits for the device, which a browser does not allow; there it is
    /// the one through workgroup memory, for the GPU that a browser mostly has.
    ///
    /// # Errors
    /// The device failed.
    pub fn variant(&self) -> Result<Variant, GpuError> {
        if let Some(&variant) = self.pinned.as_ref().or(self.inner.variant.get()) {
            return Ok(variant);
        }
        let variant = self.fastest()?;
        Ok(*self.inner.variant.get_or_init(|| variant))
    }

    #[cfg(target_arch = "wasm32")]
    fn fastest(&self) -> Result<Variant, GpuError> {
        Ok(self.usual_variant())
    }

    /// A busy machine disturbs measurements, and two processes should decide alike: so the usual variant stays unless another
    /// is clearly faster at its best.
    #[cfg(not(target_arch = "wasm32"))]
    fn fastest(&self) -> Result<Variant, GpuError> {
        const ROUNDS: usize = 3;
        const CLEARLY: f64 = 1.5;
        let usual = self.usual_variant();
        let candidates: Vec<Variant> = Variant::ALL.into_iter().filter(|v| self.supports(v.representative())).collect();
        if candidates.len() == 1 {
            return Ok(usual);
        }
        let shape = Shape::nhwc(1, 28, 28, 64);
        let g = Window { kernel: [3, 3], stride: [1, 1], padding: [1; 4] };
        let words = [shape.stored_len(), 9 * 64 * 64, 64, 4, shape.stored_len(), 4];
        let mut best = vec![f64::INFINITY; candidates.len()];
        for _ in 0..ROUNDS {
            for (best, &variant) in best.iter_mut().zip(&candidates) {
                let dispatch = conv2d::forward(variant, shape, shape, g, Epilogue::default());
                *best = best.min(self.time(&dispatch, &words, 1)?);
            }
        }
        let mut fastest = (usual, f64::INFINITY);
        for (&variant, &ms) in candidates.iter().zip(&best) {
            log::debug!("{}: {} takes {ms:.2} ms", self.inner.info.name, variant.representative().name);
            let handicap = if variant == usual { 1.0 } else { CLEARLY };
            if ms * handicap < fastest.1 {
                fastest = (variant, ms * handicap);
            }
        }
        Ok(fastest.0)
    }

    /// The variant that is made for devices of this kind.
    fn usual_variant(&self) -> Variant {
        let made_for = match self.inner.info.kind {
            "CPU" => [Variant::Subgroup, Variant::Direct],
            _ => [Variant::Workgroup, Variant::Direct],
        };
        let supported = |variant: &Variant| self.supports(variant.representative());
        made_for.into_iter().find(supported).unwrap_or_default()
    }

    /// Fails if the device is lost.
    pub(super) fn check_alive(&self, during: &str) -> Result<(), GpuError> {
        let Some(reason) = self.inner.lost.get() else { return Ok(()) };
        Err(GpuError::Lost { device: self.inner.info.name.clone(), during: during.into(), reason: reason.clone() })
    }

    /// Notes that the device is lost.
    pub(super) fn lose(&self, reason: String) {
        let _ = self.inner.lost.set(reason);
    }

    pub(super) fn failed(&self, during: &str, reason: impl ToString) -> GpuError {
        // What fails on a lost device fails because of that.
        self.check_alive(during).err().unwrap_or_else(|| GpuError::Failed {
            device: self.inner.info.name.clone(),
            during: during.into(),
            reason: reason.to_string(),
        })
    }

    /// Runs `work` and turns what wgpu reports meanwhile into an error: at once, or in a browser at the next
    /// [`settle`](Self::settle).
    pub(super) fn guard<T>(&self, during: &str, work: impl FnOnce() -> T) -> Result<T, GpuError> {
        self.check_alive(during)?;
        let device = &self.inner.device;
        let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
            .map(|filter| device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            let mut answer: Answer = Box::pin(scope.pop());
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(error) => first = first.or(error),
                Poll::Pending => lock(&self.inner.unanswered).push(Unanswered { during: during.into(), answer }),
            }
        }
        match first {
            Some(error) => Err(self.reported(during, &error)),
            None => self.check_alive(during).map(|()| result),
        }
    }

    /// Waits for the answers of error scopes that are still out, and fails with the first error.
    pub(super) async fn settle(&self) -> Result<(), GpuError> {
        let unanswered = std::mem::take(&mut *lock(&self.inner.unanswered));
        let mut first = None;
        for Unanswered { during, answer } in unanswered {
            if let Some(error) = answer.await {
                first = first.or(Some(self.reported(&during, &error)));
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        match lock(&self.inner.stray).take() {
            Some(reason) => Err(self.failed("working outside of what was asked of it", reason)),
            None => Ok(()),
        }
    }

    fn reported(&self, during: &str, error: &wgpu::Error) -> GpuError {
        match error {
            wgpu::Error::OutOfMemory { .. } => {
                GpuError::OutOfMemory { device: self.inner.info.name.clone(), during: during.into() }
            }
            error => self.failed(during, error),
        }
    }

    /// Submits what was encoded, and counts it when it is done.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder) -> wgpu::SubmissionIndex {
        let submission = self.inner.queue.submit([encoder.finish()]);
        if cfg!(not(target_arch = "wasm32")) {
            let finished = Arc::clone(&self.inner.finished);
            self.inner.queue.on_submitted_work_done(move || {
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        submission
    }
}
