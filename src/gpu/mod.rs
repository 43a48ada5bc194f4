//! The device: pipelines, buffers and the executor of plans. The only module that names wgpu.
//!
//! What waits for the device is async at heart, since a browser answers only when its caller has returned to it. Each such
//! function has a twin that blocks, for everywhere else.

mod alone;
mod device;
mod error;
mod executor;
mod measure;
mod open;
mod pipeline;
mod rows;
mod texture;
mod wait;

pub use device::Device;
pub use error::{Fits, GpuError, Needed};
pub use executor::{Executor, Parameters};
pub(crate) use measure::median;
pub use open::{Backend, DeviceInfo, DeviceLimits, DeviceOptions, Limits, backends, list, same_gpu};
pub use rows::Rows;
pub(crate) use wait::block;
#[cfg(not(target_arch = "wasm32"))]
pub use wait::catches_panics;
/// The wgpu that [`Device::from_wgpu`] takes devices of.
pub use wgpu;

/// The version of wgpu that this build was locked to.
pub const WGPU_VERSION: &str = "30.0.1";

/// The version of naga, wgpu's compiler of shaders, that this build was locked to.
pub const NAGA_VERSION: &str = "30.0.1";

#[cfg(test)]
mod tests {
    #[test]
    fn the_versions_are_those_of_the_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        for (name, version) in [("wgpu", super::WGPU_VERSION), ("naga", super::NAGA_VERSION)] {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            assert!(lock.replace("\r\n", "\n").contains(&entry), "{name} is not {version} in Cargo.lock");
        }
    }
}
