//! What can go wrong on the device's side.

use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    #[error(
        "no GPU driver was found{}. On Debian or Ubuntu install one with `apt-get install mesa-vulkan-drivers libvulkan1` (a \
         CPU driver; for a real GPU its vendor's Vulkan driver); macOS and Windows bring theirs",
        match backend { Some(backend) => format!(" for {backend}"), None => String::new() }
    )]
    NoAdapter {
        /// The only backend that was looked at, if it was one.
        backend: Option<String>,
    },
    #[error("no device matches `{wanted}`; there are: {found}")]
    NoSuchDevice { wanted: String, found: String },
    #[error("{origin} names no backend with `{wanted}`: expected one of {known}, or several with commas between them")]
    NoSuchBackend { origin: &'static str, wanted: String, known: String },
    #[error("this build has no {backend}: it was made with {built}")]
    NotBuilt { backend: String, built: String },
    #[error("{device} cannot be opened: {reason}")]
    Open { device: String, reason: String },
    /// The device has less of something than every kernel needs.
    #[error("{device} cannot run the kernels: its {limit} is {found}, and they need {needed}")]
    Limit { device: String, limit: &'static str, found: u64, needed: Needed },
    #[error("{device} cannot run the kernels: it has no compute shaders")]
    NoCompute { device: String },
    #[error("{tensor} needs {bytes} bytes, but {device} allows {limit} ({name}); {fits}")]
    TooLarge { tensor: String, bytes: u64, device: String, name: &'static str, limit: u64, fits: Fits },
    #[error(
        "{call} needs a grid of {} workgroups, but {device} allows {limit} a dimension \
         (max_compute_workgroups_per_dimension); {fits}",
        workgroups.map(|n| n.to_string()).join(" × ")
    )]
    Grid { call: String, workgroups: [u32; 3], device: String, limit: u32, fits: Fits },
    #[error("{device} ran out of memory while {during}: use a smaller batch or image size")]
    OutOfMemory { device: String, during: String },
    /// The driver gave the device up, or it was [destroyed](super::Device::destroy): nothing more can be done with it.
    #[error("{device} was lost while {during}: {reason}")]
    Lost { device: String, during: String, reason: String },
    #[error(
        "{device} has finished nothing for {} seconds while {during}: it hangs, or is slower than the limit allows; if it is \
         only slow, raise the limit with --device-timeout SECONDS (DeviceOptions::timeout)",
        limit.as_secs()
    )]
    TimedOut { device: String, during: String, limit: Duration },
    #[error("{device} failed while {during}: {reason}")]
    Failed { device: String, during: String, reason: String },
    /// In a browser, which answers only after the caller has returned to it.
    #[error(
        "{during} would wait for the device, which a browser does not allow: use the async function of the same name"
    )]
    Blocking { during: String },
}

impl GpuError {
    /// The same, where the device's limits refused a plan, with the batch that they allow.
    #[must_use]
    pub fn with_fits(mut self, found: Fits) -> Self {
        if let Self::TooLarge { fits, .. } | Self::Grid { fits, .. } = &mut self {
            *fits = found;
        }
        self
    }

    /// Whether the device's limits refused a plan: a smaller batch may fit.
    pub fn is_limit_of_plan(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Grid { .. })
    }
}

/// What a device's limits allow where they refuse a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fits {
    /// Nobody has looked for it.
    Unknown,
    /// Not even a batch of one.
    Nothing,
    /// The largest batch that the limits allow. Memory may be short all the same.
    Batch(usize),
}

impl fmt::Display for Fits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("use a smaller batch or smaller images"),
            Self::Nothing => f.write_str("no batch fits"),
            Self::Batch(n) => write!(f, "a batch of {n} fits"),
        }
    }
}

/// The bound of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needed {
    AtLeast(u64),
    AtMost(u64),
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(n) => write!(f, "at least {n}"),
            Self::AtMost(n) => write!(f, "at most {n}"),
        }
    }
}
