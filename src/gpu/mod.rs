//! The device: pipelines, buffers and the executor of plans. The only module that names wgpu.

mod device;
mod executor;
mod measure;
mod rows;
mod texture;

pub use device::{Device, DeviceInfo, DeviceOptions, Limits, list};
pub use executor::{Executor, Parameters};
pub(crate) use measure::median;
pub use rows::Rows;
/// The wgpu that [`Device::from_wgpu`] takes devices of.
pub use wgpu;

/// The major version of wgpu that this build is made of.
pub const WGPU_VERSION: &str = "30";

/// The graphics interfaces that this build can use.
pub fn backends() -> Vec<String> {
    let names = wgpu::Instance::enabled_backend_features().iter_names().map(|(name, _)| name.to_lowercase());
    names.filter(|name| name != "noop").collect()
}

/// What can go wrong on the device's side.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error(
        "no GPU driver was found. On Debian or Ubuntu install one with `apt-get install mesa-vulkan-drivers libvulkan1` (a CPU \
         driver; for a real GPU its vendor's Vulkan driver); macOS and Windows bring theirs"
    )]
    NoAdapter,
    #[error("no device matches `{wanted}`; there are: {found}")]
    NoSuchDevice { wanted: String, found: String },
    #[error("{device} cannot be opened: {reason}")]
    Open { device: String, reason: String },
    #[error(
        "{tensor} needs {bytes} bytes, but {device} allows {limit} ({name}); {}",
        match fits { Some(n) => format!("a batch of {n} fits"), None => "no batch fits".into() }
    )]
    TooLarge { tensor: String, bytes: u64, device: String, name: &'static str, limit: u64, fits: Option<usize> },
    #[error("{device} ran out of memory while {during}: use a smaller batch or image size")]
    OutOfMemory { device: String, during: String },
    #[error("{device} failed while {during}: {reason}")]
    Failed { device: String, during: String, reason: String },
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_wgpu_version_is_that_of_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("wgpu = {{ version = \"{}\"", super::WGPU_VERSION)));
    }
}
