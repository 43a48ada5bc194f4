//! Which devices there are, what they allow, and opening one.

use super::error::Needed;
use super::{Device, GpuError};
use crate::kernels::conv2d::Variant;
use crate::kernels::{Access, KERNELS, Kernel, MAX_GROUPS, SUBGROUP};
use crate::plan::UNIFORM_ALIGNMENT;
use serde::Serialize;
use std::time::Duration;

/// The interface through which a device is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    Vulkan,
    Metal,
    Dx12,
    /// A browser's own.
    WebGpu,
    /// OpenGL, or OpenGL ES 3.1.
    Gl,
}

impl Backend {
    pub const ALL: [Self; 5] = [Self::Vulkan, Self::Metal, Self::Dx12, Self::WebGpu, Self::Gl];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::WebGpu => "webgpu",
            Self::Gl => "gl",
        }
    }

    /// The backend of that [name](Self::name), or of one that wgpu takes for it.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name.trim().to_lowercase().as_str() {
            "vulkan" | "vk" => Self::Vulkan,
            "metal" | "mtl" => Self::Metal,
            "dx12" | "d3d12" => Self::Dx12,
            "webgpu" => Self::WebGpu,
            "gl" | "gles" | "opengl" => Self::Gl,
            _ => return None,
        })
    }

    /// The names of all, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    const fn bits(self) -> wgpu::Backends {
        match self {
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
            Self::Dx12 => wgpu::Backends::DX12,
            Self::WebGpu => wgpu::Backends::BROWSER_WEBGPU,
            Self::Gl => wgpu::Backends::GL,
        }
    }
}

/// The interfaces that this build can use.
pub fn backends() -> Vec<Backend> {
    let built = wgpu::Instance::enabled_backend_features();
    Backend::ALL.into_iter().filter(|backend| built.contains(backend.bits())).collect()
}

/// Which limits to ask the adapter for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Limits {
    /// As large buffers as the adapter allows.
    #[default]
    Adapter,
    /// Only what WebGPU guarantees everywhere.
    Default,
    /// As [`Adapter`](Self::Adapter), but nowhere more than these, and subgroups of these sizes: to try out what a lesser
    /// device would do.
    AtMost(DeviceLimits),
}

/// How to open a [`Device`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceOptions {
    /// An index into [`list`] or a part of a device's name, in any case; the fastest kind of device when `None`. What
    /// consists of digits is an index.
    pub select: Option<String>,
    /// Looks at the devices of one interface only, and counts only these; when `None`, at those that the environment
    /// variable `WGPU_BACKEND` lists, or else at all.
    pub backend: Option<Backend>,
    pub limits: Limits,
    /// Compile the shaders with bounds checks and loop guards. Slower; for tests.
    pub checked: bool,
    /// How long the device may finish nothing, while it is waited for, before that is an error: two minutes when `None`,
    /// or twenty where a driver computes on the CPU.
    pub timeout: Option<Duration>,
}

/// What a device allows, of that which decides what runs on it, under WebGPU's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceLimits {
    pub max_storage_buffers_per_shader_stage: u32,
    /// In bytes, as are all sizes but those of workgroups and textures.
    pub max_storage_buffer_binding_size: u64,
    pub max_buffer_size: u64,
    pub max_uniform_buffer_binding_size: u64,
    pub min_uniform_buffer_offset_alignment: u32,
    pub max_compute_workgroup_storage_size: u32,
    pub max_compute_invocations_per_workgroup: u32,
    pub max_compute_workgroup_size_x: u32,
    pub max_compute_workgroup_size_y: u32,
    pub max_compute_workgroup_size_z: u32,
    pub max_compute_workgroups_per_dimension: u32,
    pub max_sampled_textures_per_shader_stage: u32,
    /// Texels.
    pub max_texture_dimension_2d: u32,
    /// The smallest and the largest subgroup that a kernel may run in; zeros where nobody tells.
    pub subgroup_sizes: [u32; 2],
}

impl DeviceLimits {
    /// No limit at all, and subgroups of one size that no device has: to say with `..` what is limited.
    pub const NONE: Self = Self {
        max_storage_buffers_per_shader_stage: u32::MAX,
        max_storage_buffer_binding_size: u64::MAX,
        max_buffer_size: u64::MAX,
        max_uniform_buffer_binding_size: u64::MAX,
        min_uniform_buffer_offset_alignment: 1,
        max_compute_workgroup_storage_size: u32::MAX,
        max_compute_invocations_per_workgroup: u32::MAX,
        max_compute_workgroup_size_x: u32::MAX,
        max_compute_workgroup_size_y: u32::MAX,
        max_compute_workgroup_size_z: u32::MAX,
        max_compute_workgroups_per_dimension: u32::MAX,
        max_sampled_textures_per_shader_stage: u32::MAX,
        max_texture_dimension_2d: u32::MAX,
        subgroup_sizes: [0, 0],
    };

    fn of(limits: &wgpu::Limits, info: &wgpu::AdapterInfo) -> Self {
        Self {
            max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
            max_buffer_size: limits.max_buffer_size,
            max_uniform_buffer_binding_size: limits.max_uniform_buffer_binding_size,
            min_uniform_buffer_offset_alignment: limits.min_uniform_buffer_offset_alignment,
            max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
            max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_compute_workgroup_size_x: limits.max_compute_workgroup_size_x,
            max_compute_workgroup_size_y: limits.max_compute_workgroup_size_y,
            max_compute_workgroup_size_z: limits.max_compute_workgroup_size_z,
            max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_sampled_textures_per_shader_stage: limits.max_sampled_textures_per_shader_stage,
            max_texture_dimension_2d: limits.max_texture_dimension_2d,
            subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
        }
    }

    /// Lowers `limits` to these.
    fn lower(&self, limits: &mut wgpu::Limits) {
        macro_rules! lower {
            ($($limit:ident),*) => {$( limits.$limit = limits.$limit.min(self.$limit); )*};
        }
        lower!(
            max_storage_buffers_per_shader_stage,
            max_storage_buffer_binding_size,
            max_buffer_size,
            max_uniform_buffer_binding_size,
            max_compute_workgroup_storage_size,
            max_compute_invocations_per_workgroup,
            max_compute_workgroup_size_x,
            max_compute_workgroup_size_y,
            max_compute_workgroup_size_z,
            max_compute_workgroups_per_dimension,
            max_sampled_textures_per_shader_stage,
            max_texture_dimension_2d
        );
        let alignment = &mut limits.min_uniform_buffer_offset_alignment;
        *alignment = (*alignment).max(self.min_uniform_buffer_offset_alignment);
    }

    /// The largest buffer that a kernel can see, in bytes, and the name of the limit.
    pub(super) fn largest_binding(&self) -> (u64, &'static str) {
        let binding = self.max_storage_buffer_binding_size;
        if binding <= self.max_buffer_size {
            (binding, "max_storage_buffer_binding_size")
        } else {
            (self.max_buffer_size, "max_buffer_size")
        }
    }

    /// The first limit that does not allow what a kernel needs: its name, its value, and what is needed.
    pub(crate) fn lacks(&self, kernel: &Kernel) -> Option<(&'static str, u64, Needed)> {
        /// The most workgroup memory that a kernel uses; `tests/shaders.rs` holds them to it.
        const WORKGROUP_MEMORY: u64 = 16 << 10;
        let textures = kernel.bindings.iter().filter(|b| b.access == Access::Texture).count();
        let storage = kernel.bindings.len() - textures;
        let uniform = kernel.params_size().next_multiple_of(16) as u64;
        let [x, y, z] = kernel.workgroup.map(u64::from);
        // A texture's rows are of a fixed length, and there should be some of them.
        let texels = if textures > 0 { u64::from(super::texture::WIDTH) } else { 0 };
        let at_least = [
            ("max_storage_buffers_per_shader_stage", self.max_storage_buffers_per_shader_stage.into(), storage as u64),
            ("max_uniform_buffer_binding_size", self.max_uniform_buffer_binding_size, uniform),
            ("max_compute_workgroup_storage_size", self.max_compute_workgroup_storage_size.into(), WORKGROUP_MEMORY),
            ("max_compute_invocations_per_workgroup", self.max_compute_invocations_per_workgroup.into(), x * y * z),
            ("max_compute_workgroup_size_x", self.max_compute_workgroup_size_x.into(), x),
            ("max_compute_workgroup_size_y", self.max_compute_workgroup_size_y.into(), y),
            ("max_compute_workgroup_size_z", self.max_compute_workgroup_size_z.into(), z),
            (
                "max_compute_workgroups_per_dimension",
                self.max_compute_workgroups_per_dimension.into(),
                u64::from(MAX_GROUPS),
            ),
            (
                "max_sampled_textures_per_shader_stage",
                self.max_sampled_textures_per_shader_stage.into(),
                textures as u64,
            ),
            ("max_texture_dimension_2d", self.max_texture_dimension_2d.into(), texels),
        ];
        let lacking = at_least.into_iter().find(|(_, found, needed)| found < needed);
        if let Some((limit, found, needed)) = lacking {
            return Some((limit, found, Needed::AtLeast(needed)));
        }
        // Plans place the parameters of their calls at multiples of this.
        let alignment = u64::from(self.min_uniform_buffer_offset_alignment);
        let is_multiple = (UNIFORM_ALIGNMENT as u64).is_multiple_of(alignment);
        (!is_multiple).then_some((
            "min_uniform_buffer_offset_alignment",
            alignment,
            Needed::AtMost(UNIFORM_ALIGNMENT as u64),
        ))
    }
}

/// What a kernel, or a measurement, may use where a device has it. Nothing of this changes what a plan computes.
const FEATURES: [(wgpu::Features, &str); 3] = [
    // The subgroup variant of the convolutions, which hands operands from invocation to invocation.
    (wgpu::Features::SUBGROUP, "subgroup"),
    // `bench` and `Executor::profile` tell the time that each call takes.
    (wgpu::Features::TIMESTAMP_QUERY, "timestamp-query"),
    // The same between the calls of one pass, so that measuring does not need a pass for each.
    (wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES, "timestamp-query-inside-passes"),
];

/// Those of [`FEATURES`] that are in `features`.
fn wanted(features: wgpu::Features) -> impl Iterator<Item = (wgpu::Features, &'static str)> {
    FEATURES.into_iter().filter(move |(feature, _)| features.contains(*feature))
}

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// Vulkan, Metal, DX12, WebGPU or GL.
    pub backend: String,
    /// Discrete, integrated or virtual GPU, or a driver that computes on the CPU.
    pub kind: &'static str,
    pub limits: DeviceLimits,
    /// What the kernels, or measurements, use of that which not every device has, under WebGPU's names.
    pub features: Vec<&'static str>,
    /// Vendor and device, as PCI numbers them; zeros where the driver does not tell.
    ids: [u32; 2],
    /// The place on the PCI bus; empty where the driver does not tell.
    bus: String,
}

impl DeviceInfo {
    fn new(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, features: wgpu::Features) -> Self {
        Self {
            name: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            backend: match info.backend {
                wgpu::Backend::BrowserWebGpu => "WebGPU".into(),
                other => format!("{other:?}"),
            },
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete GPU",
                wgpu::DeviceType::IntegratedGpu => "integrated GPU",
                wgpu::DeviceType::VirtualGpu => "virtual GPU",
                wgpu::DeviceType::Cpu => "CPU",
                wgpu::DeviceType::Other => "unknown",
            },
            limits: DeviceLimits::of(limits, info),
            features: wanted(features).map(|(_, name)| name).collect(),
            ids: [info.vendor, info.device],
            bus: info.device_pci_bus_id.clone(),
        }
    }

    fn of_adapter(adapter: &wgpu::Adapter) -> Self {
        Self::new(&adapter.get_info(), &adapter.limits(), adapter.features())
    }

    /// The largest buffer that a kernel can see, in bytes.
    pub fn largest_buffer(&self) -> u64 {
        self.limits.largest_binding().0
    }

    /// Whether two entries of different interfaces are, as far as one can tell, of one piece of hardware.
    fn is_hardware_of(&self, other: &Self) -> bool {
        if self.backend == other.backend {
            return false;
        }
        if !self.bus.is_empty() && !other.bus.is_empty() {
            return self.bus == other.bus;
        }
        if !self.ids.contains(&0) && !other.ids.contains(&0) {
            return self.ids == other.ids;
        }
        // OpenGL tells no numbers, and names of which the beginning is the product.
        let product = |name: &str| name.split(['(', '/']).next().unwrap_or(name).trim().to_lowercase();
        product(&self.name) == product(&other.name)
    }
}

/// For each of `devices` the indices of the others that are the same hardware, seen through another interface. Of several
/// alike GPUs the first of one interface is taken to be the first of the other, if the driver does not tell.
pub fn same_gpu(devices: &[DeviceInfo]) -> Vec<Vec<usize>> {
    // The hardware's number and the entries that are of it.
    let mut gpus: Vec<Vec<usize>> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let is_new_to = |gpu: &&mut Vec<usize>| gpu.iter().all(|&other| device.is_hardware_of(&devices[other]));
        match gpus.iter_mut().find(is_new_to) {
            Some(gpu) => gpu.push(index),
            None => gpus.push(vec![index]),
        }
    }
    let others = |index: usize| {
        let gpu = gpus.iter().find(|gpu| gpu.contains(&index));
        gpu.into_iter().flatten().copied().filter(|&other| other != index).collect()
    };
    (0..devices.len()).map(others).collect()
}

/// Every device that can be opened, in the order of their indices: the first is the default.
///
/// # Errors
/// The build lacks `backend`, or `WGPU_BACKEND` names something else than backends.
pub fn list(backend: Option<Backend>) -> Result<Vec<DeviceInfo>, GpuError> {
    super::block("listing the devices", async {
        let backends = allowed(backend)?;
        let mut adapters = adapters(backends.difference(wgpu::Backends::GL)).await;
        adapters.extend(self::adapters(backends.intersection(wgpu::Backends::GL)).await);
        Ok(adapters.iter().map(DeviceInfo::of_adapter).collect())
    })
}

/// The backends to look at.
fn allowed(asked: Option<Backend>) -> Result<wgpu::Backends, GpuError> {
    let built = wgpu::Instance::enabled_backend_features();
    let checked = |backend: Backend| match built.contains(backend.bits()) {
        true => Ok(backend.bits()),
        false => Err(GpuError::NotBuilt {
            backend: backend.name().into(),
            built: backends().into_iter().map(Backend::name).collect::<Vec<_>>().join(", "),
        }),
    };
    if let Some(backend) = asked {
        return checked(backend);
    }
    let Some(variable) = std::env::var_os("WGPU_BACKEND").filter(|value| !value.is_empty()) else {
        return Ok(Backend::ALL.into_iter().fold(wgpu::Backends::empty(), |all, one| all | one.bits()));
    };
    let mut backends = wgpu::Backends::empty();
    for name in variable.to_string_lossy().split(',') {
        let known = Backend::of_name(name).ok_or_else(|| GpuError::NoSuchBackend {
            origin: "WGPU_BACKEND",
            wanted: name.trim().into(),
            known: Backend::names(),
        })?;
        backends |= checked(known)?;
    }
    Ok(backends)
}

/// The adapters of some backends, real GPUs first, in the order in which the drivers list them.
async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    if backends.is_empty() {
        return Vec::new();
    }
    // Of the environment: WGPU_VALIDATION, WGPU_DEBUG, WGPU_GPU_BASED_VALIDATION, what chooses a shader compiler, and others.
    // What WGPU_BACKEND says is in `backends` already.
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.flags = descriptor.flags.with_env();
    descriptor.backend_options = descriptor.backend_options.with_env();
    descriptor.backends = backends;
    let mut adapters = wgpu::Instance::new(descriptor).enumerate_adapters(backends).await;
    adapters.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// The index of the device that `wanted` names.
fn select(devices: &[DeviceInfo], wanted: &str) -> Result<usize, GpuError> {
    let wanted = wanted.trim();
    let is_index = !wanted.is_empty() && wanted.bytes().all(|b| b.is_ascii_digit());
    let fits = |device: &DeviceInfo| device.name.to_lowercase().contains(&wanted.to_lowercase());
    let found: Vec<usize> = match is_index {
        true => wanted.parse().ok().filter(|&index| index < devices.len()).into_iter().collect(),
        false => (0..devices.len()).filter(|&index| fits(&devices[index])).collect(),
    };
    let Some(&first) = found.first() else {
        let list = devices.iter().enumerate().map(|(i, device)| format!("{i}: {} ({})", device.name, device.backend));
        return Err(GpuError::NoSuchDevice { wanted: wanted.into(), found: list.collect::<Vec<_>>().join(", ") });
    };
    let same = &same_gpu(devices)[first];
    if let Some(other) = found.iter().find(|index| **index != first && !same.contains(index)) {
        let (name, other_name) = (&devices[first].name, &devices[*other].name);
        log::warn!("`{wanted}` fits several devices; taking {first}: {name}, not {other}: {other_name}");
    }
    Ok(first)
}

impl Device {
    /// Opens the device that `options` select. If they select none and the default cannot be opened, the next one is
    /// opened, with a warning.
    ///
    /// # Errors
    /// There is no driver, no device matches, or the device refuses or allows less than the kernels need.
    pub fn open(options: &DeviceOptions) -> Result<Self, GpuError> {
        super::block("opening a device", Self::open_async(options))
    }

    /// As [`open`](Self::open), without blocking: the only way in a browser.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_async(options: &DeviceOptions) -> Result<Self, GpuError> {
        let backends = allowed(options.backend)?;
        let mut adapters = Vec::new();
        let mut refused: Option<(String, GpuError)> = None;
        // OpenGL is asked only where nothing else will do: it is slow to start, and drivers talk while they do.
        for stage in [backends.difference(wgpu::Backends::GL), backends.intersection(wgpu::Backends::GL)] {
            let before = adapters.len();
            adapters.extend(self::adapters(stage).await);
            if let Some(wanted) = &options.select {
                let infos: Vec<_> = adapters.iter().map(DeviceInfo::of_adapter).collect();
                match select(&infos, wanted) {
                    Ok(index) => return Self::of_adapter(&adapters[index], options).await,
                    Err(_) if adapters.is_empty() => {}
                    Err(error) => refused = Some((wanted.clone(), error)),
                }
                continue;
            }
            for adapter in &adapters[before..] {
                match Self::of_adapter(adapter, options).await {
                    Ok(device) => {
                        if let Some((name, error)) = refused {
                            log::warn!("{error}; instead of {name}, {} is used", device.info().name);
                        }
                        return Ok(device);
                    }
                    // The first is what the user expected.
                    Err(error) if refused.is_none() => refused = Some((adapter.get_info().name, error)),
                    Err(_) => {}
                }
            }
        }
        let backend = options.backend.map(|backend| backend.name().to_owned());
        Err(refused.map_or(GpuError::NoAdapter { backend }, |(_, error)| error))
    }

    async fn of_adapter(adapter: &wgpu::Adapter, options: &DeviceOptions) -> Result<Self, GpuError> {
        let about = adapter.get_info();
        if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
            return Err(GpuError::NoCompute { device: about.name });
        }
        let most = adapter.limits();
        // No more than WebGPU guarantees everywhere, where an adapter has it: what is less and needed is found below.
        let mut limits = wgpu::Limits::default().or_worse_values_from(&most);
        if options.limits != Limits::Default {
            limits.max_buffer_size = most.max_buffer_size;
            limits.max_storage_buffer_binding_size = most.max_storage_buffer_binding_size;
        }
        if let Limits::AtMost(given) = options.limits {
            given.lower(&mut limits);
        }
        let features = wanted(adapter.features()).fold(wgpu::Features::empty(), |all, (one, _)| all | one);
        let mut info = DeviceInfo::new(&about, &limits, features);
        if let Limits::AtMost(given) = options.limits {
            info.limits.subgroup_sizes = given.subgroup_sizes;
        }
        check(&info)?;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("thawline"),
                required_features: features,
                required_limits: limits,
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..Default::default()
            })
            .await
            .map_err(|e| GpuError::Open { device: info.name.clone(), reason: e.to_string() })?;
        Ok(Self::build(device, queue, info, options).catching_strays())
    }

    /// Uses a device and queue that the caller already has, for embedding. `adapter` is what wgpu tells of the adapter they
    /// came from. From now on the device's lost callback is this library's.
    ///
    /// # Errors
    /// The device was opened with lower limits than the kernels need.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, adapter: &wgpu::AdapterInfo) -> Result<Self, GpuError> {
        let info = DeviceInfo::new(adapter, &device.limits(), device.features());
        check(&info)?;
        Ok(Self::build(device, queue, info, &DeviceOptions::default()))
    }
}

/// Refuses a device that allows less than the kernels need that every plan may use.
fn check(info: &DeviceInfo) -> Result<(), GpuError> {
    let mut needed = KERNELS.iter().filter(|kernel| !Variant::is_optional(kernel));
    let lacking = needed.find_map(|kernel| info.limits.lacks(kernel));
    match lacking {
        Some((limit, found, needed)) => Err(GpuError::Limit { device: info.name.clone(), limit, found, needed }),
        None => Ok(()),
    }
}

/// Whether a device can run a kernel that not all can.
pub(super) fn supports(info: &DeviceInfo, kernel: &Kernel) -> bool {
    let has_subgroups = info.limits.subgroup_sizes == [SUBGROUP; 2] && info.features.contains(&"subgroup");
    (!kernel.subgroups || has_subgroups) && info.limits.lacks(kernel).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, backend: &str, ids: [u32; 2], bus: &str) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            driver: String::new(),
            backend: backend.into(),
            kind: "discrete GPU",
            limits: DeviceLimits::NONE,
            features: Vec::new(),
            ids,
            bus: bus.into(),
        }
    }

    #[test]
    fn digits_are_an_index_and_nothing_else() {
        let devices = [device("RTX 3080", "Vulkan", [1, 2], ""), device("llvmpipe 256 bits", "Vulkan", [3, 0], "")];
        assert_eq!(select(&devices, "1").unwrap(), 1);
        assert_eq!(select(&devices, "LLVM").unwrap(), 1);
        assert_eq!(select(&devices, "rtx 3080").unwrap(), 0);
        for wanted in ["2", "256", "3080", "99999999999999999999999"] {
            let error = select(&devices, wanted).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wanted}`")) && error.contains("1: llvmpipe"), "{error}");
        }
        select(&devices, "radeon").unwrap_err();
        assert_eq!(select(&devices, "").unwrap(), 0);
    }

    #[test]
    fn one_gpu_is_recognised_through_several_interfaces() {
        let devices = [
            device("NVIDIA GeForce RTX 3080", "Vulkan", [0x10de, 0x2206], "0000:01:00.0"),
            device("NVIDIA GeForce RTX 3080", "Vulkan", [0x10de, 0x2206], "0000:02:00.0"),
            device("NVIDIA GeForce RTX 3080", "Dx12", [0x10de, 0x2206], ""),
            device("NVIDIA GeForce RTX 3080", "Dx12", [0x10de, 0x2206], ""),
            device("llvmpipe (LLVM 15.0.6, 256 bits)", "Vulkan", [0x10005, 0], ""),
            device("NVIDIA GeForce RTX 3080/PCIe/SSE2", "Gl", [0x10de, 0], ""),
            device("llvmpipe (LLVM 15.0.6, 256 bits)", "Gl", [0x10005, 0], ""),
        ];
        let same = same_gpu(&devices);
        assert_eq!(same[0], [2, 5]);
        assert_eq!(same[1], [3]);
        assert_eq!(same[4], [6]);
        assert_eq!(same[6], [4]);
        let apart = [device("A", "Vulkan", [1, 2], "a"), device("A", "Dx12", [1, 2], "b")];
        assert_eq!(same_gpu(&apart), vec![Vec::<usize>::new(); 2]);
    }

    #[test]
    fn every_backend_is_found_by_its_name() {
        for backend in Backend::ALL {
            assert_eq!(Backend::of_name(backend.name()), Some(backend));
        }
        assert_eq!(Backend::of_name(" VK"), Some(Backend::Vulkan));
        assert_eq!(Backend::of_name("cuda"), None);
    }

    #[test]
    fn what_webgpu_guarantees_is_enough() {
        let limits = wgpu::Limits::default();
        let info = wgpu::AdapterInfo::new(wgpu::DeviceType::Other, wgpu::Backend::Noop);
        let limits = DeviceLimits::of(&limits, &info);
        for kernel in KERNELS {
            assert!(limits.lacks(kernel).is_none(), "{}: {:?}", kernel.name, limits.lacks(kernel));
        }
    }
}
