//! The kernels' contracts: for every WGSL entry point its parameters, bindings, workgroups and scalar reference.
//!
//! A kernel is two files with one name, `shaders/x.wgsl` and `src/kernels/x.rs`, and a line in [`KERNELS`]. The
//! Rust side never touches a device: a constructor such as [`add::forward`] turns sizes into a [`Dispatch`], and
//! [`Kernel::reference`] computes on the host what the shader computes on the device, loop by loop and in the same
//! layout, so that a plan can run without a GPU.
//!
//! Conventions: binding 0 is the uniform `Params`, made of `u32`, `i32` and `f32` only; storage buffers follow in
//! the order of [`Kernel::bindings`]. A buffer that a call does not need is bound all the same, to one the call
//! already reads or to a scratch buffer, and a parameter tells the shader to leave it alone.

pub mod accumulate;
pub mod activation;
pub mod adamw;
pub mod add;
pub mod batch_norm_apply;
pub mod batch_norm_blend;
pub mod batch_norm_grad;
pub mod batch_norm_renorm;
pub mod batch_norm_stats;
pub mod batch_norm_update;
pub mod channel_sum;
pub mod channels;
mod chunks;
pub mod conv2d;
pub mod depthwise;
pub mod dropout;
pub mod fold_batch_norm;
pub mod group_norm;
pub mod grouped;
pub mod image_sum;
pub mod input_normalize;
pub mod layer_norm;
mod mask;
pub mod multiply;
pub mod pad;
pub mod pool;
pub mod scale;
pub mod segments;
pub mod sgd;
pub mod softmax_cross_entropy;
pub mod sum_partials;

use crate::act::Act;
pub use crate::window::Window;

/// Invocations of a one-dimensional workgroup.
pub const LINEAR: u32 = 64;

/// The most workgroups that every adapter dispatches in one dimension.
pub(crate) const MAX_GROUPS: u32 = 65_535;

/// Invocations that fill a GPU: a constant, so that a plan always computes the same bits.
pub(crate) const FILLING: usize = 16_384;

/// The subgroup size that the subgroup kernels are written for.
pub const SUBGROUP: u32 = 8;

/// Pixels that one invocation of an elementwise kernel handles: one mask word's worth.
pub const TILE: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    /// Read through a copy in a texture, 4096 texels a row and four values a texel: what CPU drivers load fastest.
    Texture,
    /// Read and written, or written only: WGSL's `read_write`.
    Write,
}

/// A storage buffer of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The variable's name in the shader.
    pub name: &'static str,
    pub access: Access,
}

pub(crate) const fn read(name: &'static str) -> Binding {
    Binding { name, access: Access::Read }
}

pub(crate) const fn texture(name: &'static str) -> Binding {
    Binding { name, access: Access::Texture }
}

pub(crate) const fn write(name: &'static str) -> Binding {
    Binding { name, access: Access::Write }
}

/// What the reference computes on: the uniform's bytes and the storage buffers in binding order, as 32-bit words.
pub struct Args<'a> {
    params: &'a [u8],
    buffers: Vec<&'a mut [f32]>,
}

impl<'a> Args<'a> {
    pub fn new(params: &'a [u8], buffers: Vec<&'a mut [f32]>) -> Self {
        Self { params, buffers }
    }

    /// The uniform, as the kernel's own struct, and the buffers.
    ///
    /// # Panics
    /// If `P` or `N` is not the kernel's: both are fixed where the kernel is declared.
    pub(crate) fn unpack<P: bytemuck::AnyBitPattern, const N: usize>(self) -> (P, [&'a mut [f32]; N]) {
        let params = bytemuck::pod_read_unaligned(self.params);
        let buffers = self.buffers.try_into().expect("as many buffers as the kernel declares");
        (params, buffers)
    }
}

/// A WGSL entry point and all that a host must know to call it.
pub struct Kernel {
    /// The pipeline's label, and the name in plans and benchmarks.
    pub name: &'static str,
    /// The whole WGSL module, as browsers take it; naga takes [`naga_source`](Self::naga_source).
    pub source: &'static str,
    pub entry: &'static str,
    pub workgroup: [u32; 3],
    /// Members of the uniform `Params` with their byte offsets.
    pub params: &'static [(&'static str, usize)],
    /// Storage buffers, from binding 1 on.
    pub bindings: &'static [Binding],
    /// Values of the module's `override` constants, unless a dispatch has others.
    pub overrides: &'static [(&'static str, f64)],
    /// Whether it needs subgroups of exactly [`SUBGROUP`] invocations.
    pub subgroups: bool,
    /// The same computation on the host, written to be read.
    pub reference: fn(Args<'_>),
}

impl Kernel {
    /// The source for naga, which knows subgroups and yet refuses the directive that browsers demand for them.
    pub fn naga_source(&self) -> &'static str {
        self.source.strip_prefix("enable subgroups;").unwrap_or(self.source)
    }

    /// Bytes of the uniform: every member is a 32-bit word.
    pub fn params_size(&self) -> usize {
        self.params.len() * 4
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// One use of a kernel, without its buffers.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub kernel: &'static Kernel,
    /// The uniform's bytes.
    pub params: Vec<u8>,
    /// Values of `override` constants that are not the kernel's: the dispatch has a pipeline of its own.
    pub constants: Vec<(&'static str, f64)>,
    /// The size of a workgroup, which the constants may have changed.
    pub workgroup: [u32; 3],
    pub workgroups: [u32; 3],
}

impl Dispatch {
    pub(crate) fn new<P: bytemuck::NoUninit>(kernel: &'static Kernel, params: P, workgroups: [u32; 3]) -> Self {
        let params = bytemuck::bytes_of(&params).to_vec();
        Self { kernel, params, constants: Vec::new(), workgroup: kernel.workgroup, workgroups }
    }

    /// With a grid that every adapter dispatches: one that is too large in a dimension is folded.
    pub(crate) fn folded(self) -> Self {
        if self.workgroups.iter().all(|groups| *groups <= MAX_GROUPS) {
            return self;
        }
        let most = u64::from(MAX_GROUPS);
        let all: u64 = self.workgroups.iter().map(|groups| u64::from(*groups)).product();
        let layers = all.div_ceil(most * most);
        let rows = all.div_ceil(most * layers);
        self.folded_into([all.div_ceil(rows * layers), rows, layers].map(|groups| groups as u32))
    }

    /// With a grid of another form and at least as many workgroups, of which the kernel makes what it should have: for kernels
    /// that ask for the number of workgroups.
    pub fn folded_into(mut self, workgroups: [u32; 3]) -> Self {
        // One-dimensional kernels always count.
        let folds = self.kernel.source.contains("override folded");
        self.workgroups = workgroups;
        self.with(folds, "folded")
    }

    /// With what `shaders/lib/act.wgsl` needs for `act`.
    pub(crate) fn activating(self, act: Act) -> Self {
        self.with(act.is_smooth(), "is_smooth").with(act.is_rare(), "is_rare")
    }

    /// With an `override` constant that is on, if it is `wanted`.
    pub(crate) fn with(mut self, wanted: bool, constant: &'static str) -> Self {
        if wanted {
            self.constants.push((constant, 1.0));
        }
        self
    }
}

/// Workgroups for `invocations` of a one-dimensional kernel, folded into rows where one row is not enough; the
/// shader's `linear_index` unfolds them.
pub(crate) fn linear_groups(invocations: usize) -> [u32; 3] {
    rows_of_groups(invocations.div_ceil(LINEAR as usize))
}

/// So many workgroups of a one-dimensional kernel, or a few more, folded into rows where one row is not enough.
pub(crate) fn rows_of_groups(groups: usize) -> [u32; 3] {
    let groups = groups.max(1) as u32;
    let rows = groups.div_ceil(MAX_GROUPS);
    [groups.div_ceil(rows), rows, 1]
}

/// Declares a kernel's uniform struct, and the names and offsets that the contract test compares with the shader.
macro_rules! params {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        impl $name {
            pub const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}
pub(crate) use params;

/// Reads a shader together with the shared functions it uses; the library comes last so that line numbers hold.
macro_rules! shader {
    ($name:literal $(, $lib:literal)*) => {
        concat!(
            include_str!(concat!("../../shaders/", $name, ".wgsl"))
            $(, include_str!(concat!("../../shaders/lib/", $lib, ".wgsl")))*
        )
    };
}
pub(crate) use shader;

/// The values that change every step, as every optimiser and loss kernel reads them from its `step` buffer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepScalars {
    /// Learning rate before the layer's multiplier.
    pub lr: f32,
    /// `1 − β₁ᵗ` of AdamW.
    pub correction1: f32,
    /// `1 − β₂ᵗ` of AdamW.
    pub correction2: f32,
    /// What each sample's loss gradient is multiplied with: one over the samples of the optimiser step.
    pub inv_count: f32,
    /// 0 on the first micro-batch of a window, which replaces what was accumulated; 1 on the others.
    pub accumulate: f32,
    /// Numbers the forward passes of a training run; with the seed it gives the random numbers of this one.
    pub draw: u32,
    /// The low and the high word of the run's seed.
    pub seed: [u32; 2],
}

impl StepScalars {
    /// From the words of the `step` buffer.
    pub(crate) fn read(words: &[f32]) -> Self {
        let mut scalars = Self::default();
        let bytes = bytemuck::bytes_of_mut(&mut scalars);
        bytes.copy_from_slice(&bytemuck::cast_slice(words)[..bytes.len()]);
        scalars
    }
}

/// Every kernel: shader, contract, property and bench suites run over this list.
pub static KERNELS: &[&Kernel] = &[
    &accumulate::FORWARD,
    &activation::FORWARD,
    &activation::GRAD,
    &adamw::STEP,
    &add::FORWARD,
    &batch_norm_apply::FORWARD,
    &batch_norm_blend::FORWARD,
    &batch_norm_blend::GRAD,
    &batch_norm_grad::BATCH,
    &batch_norm_grad::REDUCE,
    &batch_norm_grad::RUNNING,
    &batch_norm_renorm::FORWARD,
    &batch_norm_renorm::GRAD,
    &batch_norm_stats::MERGE,
    &batch_norm_stats::PARTIAL,
    &batch_norm_update::UPDATE,
    &channel_sum::PARTIAL,
    &channels::COPY,
    &conv2d::FORWARD,
    &conv2d::FORWARD_WORKGROUP,
    &conv2d::FORWARD_SUBGROUP,
    &conv2d::INPUT_GRAD,
    &conv2d::INPUT_GRAD_WORKGROUP,
    &conv2d::INPUT_GRAD_SUBGROUP,
    &conv2d::WEIGHT_GRAD,
    &conv2d::WEIGHT_GRAD_WORKGROUP,
    &conv2d::WEIGHT_GRAD_SUBGROUP,
    &depthwise::FORWARD,
    &depthwise::FORWARD_TWO,
    &depthwise::FORWARD_ONE,
    &depthwise::INPUT_GRAD,
    &depthwise::INPUT_GRAD_TWO,
    &depthwise::INPUT_GRAD_ONE,
    &depthwise::WEIGHT_GRAD,
    &depthwise::WEIGHT_GRAD_TWO,
    &depthwise::WEIGHT_GRAD_ONE,
    &dropout::FORWARD,
    &fold_batch_norm::AFFINE_GRAD,
    &fold_batch_norm::AFFINE_GRAD_MERGE,
    &fold_batch_norm::FORWARD,
    &fold_batch_norm::WEIGHT_GRAD,
    &group_norm::GRAD,
    &group_norm::MOMENTS,
    &group_norm::SUMS,
    &grouped::FORWARD,
    &grouped::INPUT_GRAD,
    &grouped::WEIGHT_GRAD,
    &image_sum::PARTIAL,
    &input_normalize::FORWARD,
    &layer_norm::FORWARD,
    &layer_norm::GRAD,
    &layer_norm::REDUCE,
    &multiply::FORWARD,
    &pad::FORWARD,
    &pool::AVG_FORWARD,
    &pool::AVG_GRAD,
    &pool::MAX_FORWARD,
    &pool::MAX_GRAD,
    &scale::FORWARD,
    &sgd::STEP,
    &softmax_cross_entropy::FORWARD,
    &softmax_cross_entropy::GRAD,
    &sum_partials::FORWARD,
];
