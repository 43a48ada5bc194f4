//! Convolution: forward, gradient of the input, gradient of the weights.
//!
//! A linear layer is a 1×1 convolution of a 1×1 image and uses the same kernels.

use super::{Args, Dispatch, Kernel, Window, mask, params, read, shader, texture, write};
use crate::act::Act;
use crate::tensor::Shape;

/// How the product is computed. All variants of a kernel have the same parameters, bindings and reference; which one is
/// fast depends on the device, so it is chosen by measuring.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Variant {
    /// 8 × 8 values an invocation, operands straight from memory: runs everywhere.
    #[default]
    Direct,
    /// 8 × 4 or 8 × 8 values an invocation, operands through workgroup memory, in a [`Tile`] that suits the shape: for GPUs.
    Workgroup,
    /// 4 × 32 values an invocation, operands from textures and broadcast within subgroups of [`super::SUBGROUP`]: for
    /// drivers that compute on the CPU.
    Subgroup,
}

impl Variant {
    pub const ALL: [Self; 3] = [Self::Direct, Self::Workgroup, Self::Subgroup];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Workgroup => "workgroup",
            Self::Subgroup => "subgroup",
        }
    }

    /// The variant of that [name](Self::name).
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }

    const fn forward(self) -> &'static Kernel {
        match self {
            Self::Direct => &FORWARD,
            Self::Workgroup => &FORWARD_WORKGROUP,
            Self::Subgroup => &FORWARD_SUBGROUP,
        }
    }

    const fn input_grad(self) -> &'static Kernel {
        match self {
            Self::Direct => &INPUT_GRAD,
            Self::Workgroup => &INPUT_GRAD_WORKGROUP,
            Self::Subgroup => &INPUT_GRAD_SUBGROUP,
        }
    }

    const fn weight_grad(self) -> &'static Kernel {
        match self {
            Self::Direct => &WEIGHT_GRAD,
            Self::Workgroup => &WEIGHT_GRAD_WORKGROUP,
            Self::Subgroup => &WEIGHT_GRAD_SUBGROUP,
        }
    }

    /// Whether a kernel is of a variant that a device may lack.
    pub(crate) fn is_optional(kernel: &Kernel) -> bool {
        [Self::Workgroup, Self::Subgroup].into_iter().any(|variant| {
            [variant.forward(), variant.input_grad(), variant.weight_grad()]
                .into_iter()
                .any(|k| std::ptr::eq(k, kernel))
        })
    }

    /// The kernel whose speed stands for the variant's.
    pub const fn representative(self) -> &'static Kernel {
        self.forward()
    }

    /// How this variant computes a product of `rows` × `channels`, `layers` times: pixels or rows of the weights, and classes or
    /// splits.
    fn tiling(self, tiles: &[Tile], rows: usize, channels: usize, layers: usize) -> Tiling {
        match self {
            Self::Direct => Tiling::Direct,
            Self::Workgroup => Tiling::Workgroup(Tile::cheapest(tiles, rows, channels, layers)),
            Self::Subgroup => Tiling::Subgroup,
        }
    }
}

/// A variant, with the tile of one product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tiling {
    Direct,
    Workgroup(Tile),
    Subgroup,
}

impl Tiling {
    /// Every variant, with every tile.
    pub fn all() -> impl Iterator<Item = Self> {
        let tiles = Tile::ALL.into_iter().map(Self::Workgroup);
        [Self::Direct, Self::Subgroup].into_iter().chain(tiles)
    }

    pub const fn variant(self) -> Variant {
        match self {
            Self::Direct => Variant::Direct,
            Self::Workgroup(_) => Variant::Workgroup,
            Self::Subgroup => Variant::Subgroup,
        }
    }

    /// Rows and channels of the product that one workgroup computes.
    pub const fn size(self) -> [usize; 2] {
        match self {
            Self::Direct => [32, 64],
            Self::Workgroup(tile) => tile.size(),
            Self::Subgroup => [32, 32],
        }
    }

    /// A call for a product of `rows` × `channels`, `layers` times.
    fn dispatch<P: bytemuck::NoUninit>(
        self,
        kernel: &'static Kernel,
        [rows, channels, layers]: [usize; 3],
        params: impl FnOnce([u32; 3]) -> P,
    ) -> Dispatch {
        let [tile_rows, tile_channels] = self.size();
        let grid = [channels.div_ceil(tile_channels) as u32, rows.div_ceil(tile_rows) as u32, layers as u32];
        let mut dispatch = Dispatch::new(kernel, params(grid), grid).folded();
        if let Self::Workgroup(Tile { rows, columns, width }) = self {
            dispatch.workgroup = [columns, rows, 1];
            let constants = [("rows", rows), ("columns", columns), ("width", width)];
            dispatch.constants.extend(constants.map(|(name, value)| (name, f64::from(value))));
        }
        dispatch
    }
}

/// What a workgroup computes of a product through workgroup memory: the constants of `shaders/lib/tile.wgsl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Invocations along the rows of the product, each of which computes eight.
    rows: u32,
    /// Invocations along the channels, each of which computes `width` quads.
    columns: u32,
    width: u32,
}

impl Tile {
    /// From 128 × 128 to 32 × 32 values. More than one quad an invocation only where it has two loads of each operand: with more,
    /// compilers run out of registers.
    pub const ALL: [Self; 7] = [
        Self { rows: 16, columns: 16, width: 2 },
        Self { rows: 16, columns: 16, width: 1 },
        Self { rows: 16, columns: 8, width: 1 },
        Self { rows: 8, columns: 16, width: 1 },
        Self { rows: 8, columns: 8, width: 1 },
        Self { rows: 4, columns: 16, width: 1 },
        Self { rows: 4, columns: 8, width: 1 },
    ];

    /// Those of gradients of the input, which keep four rows of the weights in registers: two quads an invocation spill.
    pub const NARROW: &[Self] = Self::ALL.split_at(1).1;

    const fn size(self) -> [usize; 2] {
        [self.rows as usize * 8, (self.columns * self.width) as usize * 4]
    }

    const fn invocations(self) -> usize {
        (self.rows * self.columns) as usize
    }

    /// The tile that should take the least time: a function of shape alone, so that a plan always computes the same bits.
    fn cheapest(tiles: &[Self], rows: usize, channels: usize, layers: usize) -> Self {
        let cost = |tile: &&Self| {
            let [tile_rows, tile_channels] = tile.size();
            let workgroups = rows.div_ceil(tile_rows) as f64 * channels.div_ceil(tile_channels) as f64 * layers as f64;
            let busy = workgroups * tile.invocations() as f64 / super::FILLING as f64;
            workgroups * (tile_rows * tile_channels) as f64 * tile.cost_of_slab() / busy.min(1.0)
        };
        *tiles.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("there are tiles")
    }

    /// What a slab of 16 values costs an invocation for each quad that it computes, in multiply-adds: these, reads of workgroup
    /// memory at 8 for a quad, loads at 24.
    fn cost_of_slab(self) -> f64 {
        let [rows, columns, width] = [self.rows, self.columns, self.width].map(f64::from);
        let reads = 4.0 * (8.0 + 4.0 * width);
        let loads = 32.0 / columns + 16.0 * width / rows;
        (512.0 * width + 2.0 * reads + 24.0 * loads) / width
    }
}

/// Invocations of a direct workgroup: along channel octets, so that neighbours read the same pixels, and along tiles.
const WORKGROUP: [u32; 3] = [8, 4, 1];

params! {
    pub struct ForwardParams {
        pixels: u32,
        in_h: i32,
        in_w: i32,
        in_quads: u32,
        out_h: u32,
        out_w: u32,
        out_quads: u32,
        kernel_h: i32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        has_bias: u32,
        has_residual: u32,
        act: u32,
        has_mask: u32,
        grid_columns: u32,
        grid_rows: u32,
    }
}

/// `z = act(x ∗ weight + bias + residual)`, and the mask of the sum when a backward pass wants it.
pub static FORWARD: Kernel = Kernel {
    name: "conv2d_forward",
    source: shader!("conv2d_forward", "conv2d_forward", "grid", "act"),
    entry: "conv2d_forward",
    workgroup: WORKGROUP,
    params: ForwardParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("residual"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// [`FORWARD`] through workgroup memory.
pub static FORWARD_WORKGROUP: Kernel = Kernel {
    name: "conv2d_forward_workgroup",
    source: shader!("conv2d_forward_workgroup", "conv2d_forward", "grid", "tile", "act"),
    entry: "conv2d_forward",
    workgroup: [16, 16, 1],
    params: ForwardParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("residual"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// [`FORWARD`] for subgroups.
pub static FORWARD_SUBGROUP: Kernel = Kernel {
    name: "conv2d_forward_subgroup",
    source: shader!("conv2d_forward_subgroup", "conv2d_forward", "grid", "act"),
    entry: "conv2d_forward",
    workgroup: [super::SUBGROUP, 1, 1],
    params: ForwardParams::FIELDS,
    bindings: &[texture("x"), texture("weight"), read("bias"), read("residual"), write("z"), write("mask")],
    overrides: &[],
    subgroups: true,
    reference: forward_reference,
};

/// What the forward kernel does after the product.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Epilogue {
    pub bias: bool,
    pub residual: bool,
    pub act: Act,
    pub mask: bool,
}

/// Convolves `x` to `out`; the weights are `[KH][KW][Cin padded][Cout padded]`.
pub fn forward(variant: Variant, x: Shape, out: Shape, g: Window, epilogue: Epilogue) -> Dispatch {
    forward_by(variant.tiling(&Tile::ALL, out.pixels(), out.stored_c(), 1), x, out, g, epilogue)
}

/// [`forward`] by a tiling of the caller's choice.
pub fn forward_by(tiling: Tiling, x: Shape, out: Shape, g: Window, epilogue: Epilogue) -> Dispatch {
    let params = |grid: [u32; 3]| ForwardParams {
        pixels: out.pixels() as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        in_quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        out_quads: out.quads() as u32,
        kernel_h: g.kernel[0] as i32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        has_bias: epilogue.bias.into(),
        has_residual: epilogue.residual.into(),
        act: epilogue.act.code(),
        has_mask: epilogue.mask.into(),
        grid_columns: grid[0],
        grid_rows: grid[1],
    };
    let size = [out.pixels(), out.stored_c(), 1];
    tiling.dispatch(tiling.variant().forward(), size, params).activating(epilogue.act)
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, weight, bias, residual, z, mask]) = args.unpack::<ForwardParams, 6>();
    let (cin, cout, act) = (p.in_quads as usize * 4, p.out_quads as usize * 4, Act::of_code(p.act));
    if p.has_mask != 0 {
        mask::clear(mask, p.pixels as usize, cout);
    }
    for pixel in 0..p.pixels as usize {
        let (row, ox) = (pixel / p.out_w as usize, pixel % p.out_w as usize);
        let (image, oy) = (row / p.out_h as usize, row % p.out_h as usize);
        for co in 0..cout {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h {
                for kx in 0..p.kernel_w {
                    let iy = oy as i32 * p.stride_h - p.pad_top + ky;
                    let ix = ox as i32 * p.stride_w - p.pad_left + kx;
                    if iy < 0 || iy >= p.in_h || ix < 0 || ix >= p.in_w {
                        continue;
                    }
                    let from = (((image as i32 * p.in_h + iy) * p.in_w + ix) as usize) * cin;
                    let tap = (ky * p.kernel_w + kx) as usize * cin;
                    for ci in 0..cin {
                        sum += x[from + ci] * weight[(tap + ci) * cout + co];
                    }
                }
            }
            let at = pixel * cout + co;
            if p.has_bias != 0 {
                sum += bias[co];
            }
            if p.has_residual != 0 {
                sum += residual[at];
            }
            if p.has_mask != 0 {
                mask::set(mask, cout, pixel, co, act.passes(sum));
            }
            z[at] = act.apply(sum);
        }
    }
}

params! {
    pub struct InputGradParams {
        images: u32,
        in_h: u32,
        in_w: u32,
        in_quads: u32,
        out_h: i32,
        out_w: i32,
        out_quads: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        pad_top: u32,
        pad_left: u32,
        accumulate: u32,
        grid_columns: u32,
        grid_rows: u32,
    }
}

/// `dx = dy ∗ᵀ weight`, replacing `dx` or added to it.
pub static INPUT_GRAD: Kernel = Kernel {
    name: "conv2d_input_grad",
    source: shader!("conv2d_input_grad", "conv2d_input_grad", "grid"),
    entry: "conv2d_input_grad",
    workgroup: WORKGROUP,
    params: InputGradParams::FIELDS,
    bindings: &[read("dy"), read("weight"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: input_grad_reference,
};

/// [`INPUT_GRAD`] through workgroup memory.
pub static INPUT_GRAD_WORKGROUP: Kernel = Kernel {
    name: "conv2d_input_grad_workgroup",
    source: shader!("conv2d_input_grad_workgroup", "conv2d_input_grad", "grid", "tile"),
    entry: "conv2d_input_grad",
    workgroup: [16, 16, 1],
    params: InputGradParams::FIELDS,
    bindings: &[read("dy"), read("weight"), write("x_grad")],
    overrides: &[("width", 1.0)],
    subgroups: false,
    reference: input_grad_reference,
};

/// [`INPUT_GRAD`] for subgroups.
pub static INPUT_GRAD_SUBGROUP: Kernel = Kernel {
    name: "conv2d_input_grad_subgroup",
    source: shader!("conv2d_input_grad_subgroup", "conv2d_input_grad", "grid"),
    entry: "conv2d_input_grad",
    workgroup: [super::SUBGROUP, 1, 1],
    params: InputGradParams::FIELDS,
    bindings: &[texture("dy"), texture("weight"), write("x_grad")],
    overrides: &[],
    subgroups: true,
    reference: input_grad_reference,
};

/// The gradient of a convolution from `input` to `out`, with respect to its input.
pub fn input_grad(variant: Variant, input: Shape, out: Shape, g: Window, accumulate: bool) -> Dispatch {
    let [rows, channels, classes] = input_grad_size(input, g);
    input_grad_by(variant.tiling(Tile::NARROW, rows, channels, classes), input, out, g, accumulate)
}

/// [`input_grad`] by a tiling of the caller's choice.
pub fn input_grad_by(tiling: Tiling, input: Shape, out: Shape, g: Window, accumulate: bool) -> Dispatch {
    let params = |grid: [u32; 3]| InputGradParams {
        images: input.n() as u32,
        in_h: input.h() as u32,
        in_w: input.w() as u32,
        in_quads: input.quads() as u32,
        out_h: out.h() as i32,
        out_w: out.w() as i32,
        out_quads: out.quads() as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as u32,
        stride_w: g.stride[1] as u32,
        pad_top: g.padding[0] as u32,
        pad_left: g.padding[1] as u32,
        accumulate: accumulate.into(),
        grid_columns: grid[0],
        grid_rows: grid[1],
    };
    tiling.dispatch(tiling.variant().input_grad(), input_grad_size(input, g), params)
}

/// Pixels of a class, input channels, classes.
fn input_grad_size(input: Shape, g: Window) -> [usize; 3] {
    // The largest class decides; a class without pixels, as of a 1×1 image at stride 2, stores nothing.
    let class = input.n() * input.h().div_ceil(g.stride[0]) * input.w().div_ceil(g.stride[1]);
    [class, input.stored_c(), g.stride[0] * g.stride[1]]
}

fn input_grad_reference(args: Args<'_>) {
    let (p, [dy, weight, x_grad]) = args.unpack::<InputGradParams, 3>();
    let (cin, cout) = (p.in_quads as usize * 4, p.out_quads as usize * 4);
    for pixel in 0..(p.images * p.in_h * p.in_w) as usize {
        let (row, ix) = (pixel / p.in_w as usize, pixel % p.in_w as usize);
        let (image, iy) = (row / p.in_h as usize, row % p.in_h as usize);
        for ci in 0..cin {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h as usize {
                for kx in 0..p.kernel_w as usize {
                    // The output pixel whose window has this input pixel at (ky, kx).
                    let (Some(y), Some(x)) =
                        ((iy + p.pad_top as usize).checked_sub(ky), (ix + p.pad_left as usize).checked_sub(kx))
                    else {
                        continue;
                    };
                    let (oy, ox) = (y / p.stride_h as usize, x / p.stride_w as usize);
                    if y % p.stride_h as usize != 0
                        || x % p.stride_w as usize != 0
                        || oy >= p.out_h as usize
                        || ox >= p.out_w as usize
                    {
                        continue;
                    }
                    let from = ((image * p.out_h as usize + oy) * p.out_w as usize + ox) * cout;
                    let tap = (ky * p.kernel_w as usize + kx) * cin + ci;
                    for co in 0..cout {
                        sum += dy[from + co] * weight[tap * cout + co];
                    }
                }
            }
            let at = pixel * cin + ci;
            x_grad[at] = if p.accumulate != 0 { x_grad[at] + sum } else { sum };
        }
    }
}

params! {
    pub struct WeightGradParams {
        rows: u32,
        in_h: i32,
        in_w: i32,
        in_quads: u32,
        out_h: u32,
        out_w: i32,
        out_quads: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        rows_per_split: u32,
        grid_columns: u32,
        grid_rows: u32,
    }
}

/// `dw = x ∗ dy` over one split of the output rows; [`super::sum_partials`] adds the splits.
pub static WEIGHT_GRAD: Kernel = Kernel {
    name: "conv2d_weight_grad",
    source: shader!("conv2d_weight_grad", "conv2d_weight_grad", "grid"),
    entry: "conv2d_weight_grad",
    workgroup: WORKGROUP,
    params: WeightGradParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: weight_grad_reference,
};

/// [`WEIGHT_GRAD`] through workgroup memory.
pub static WEIGHT_GRAD_WORKGROUP: Kernel = Kernel {
    name: "conv2d_weight_grad_workgroup",
    source: shader!("conv2d_weight_grad_workgroup", "conv2d_weight_grad", "grid", "tile"),
    entry: "conv2d_weight_grad",
    workgroup: [16, 16, 1],
    params: WeightGradParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: weight_grad_reference,
};

/// [`WEIGHT_GRAD`] for subgroups.
pub static WEIGHT_GRAD_SUBGROUP: Kernel = Kernel {
    name: "conv2d_weight_grad_subgroup",
    source: shader!("conv2d_weight_grad_subgroup", "conv2d_weight_grad", "grid"),
    entry: "conv2d_weight_grad",
    workgroup: [super::SUBGROUP, 1, 1],
    params: WeightGradParams::FIELDS,
    bindings: &[texture("x"), texture("dy"), write("partials")],
    overrides: &[],
    subgroups: true,
    reference: weight_grad_reference,
};

/// Into how many parts the output rows are split: enough invocations to fill the device where the weights alone do not
/// give them, and a function of the shapes only, so that a plan always computes the same bits.
pub fn weight_grad_splits(variant: Variant, x: Shape, out: Shape, g: Window) -> usize {
    weight_grad_splits_by(weight_grad_tiling(variant, x, out, g), x, out, g)
}

/// [`weight_grad_splits`] of a tiling of the caller's choice.
pub fn weight_grad_splits_by(tiling: Tiling, x: Shape, out: Shape, g: Window) -> usize {
    let taps = g.kernel[0] * g.kernel[1];
    let (invocations, tiles) = match tiling {
        Tiling::Workgroup(tile) => {
            let [rows, channels] = tile.size();
            let workgroups = (taps * x.stored_c()).div_ceil(rows) * out.stored_c().div_ceil(channels);
            (super::FILLING, workgroups * tile.invocations())
        }
        // A CPU has few lanes to fill, and pays for every sum of splits.
        Tiling::Direct | Tiling::Subgroup => (1024, taps * x.stored_c().div_ceil(8) * out.stored_c().div_ceil(8)),
    };
    let rows = out.n() * out.h();
    // At least 64 pixels a split, or the sum of the splits costs more than they do.
    let most = (rows * out.w()).div_ceil(64).min(rows);
    let splits = invocations.div_ceil(tiles).clamp(1, most);
    rows.div_ceil(rows.div_ceil(splits))
}

/// The tile fits the weights; splits fill the device.
fn weight_grad_tiling(variant: Variant, x: Shape, out: Shape, g: Window) -> Tiling {
    variant.tiling(&Tile::ALL, g.kernel[0] * g.kernel[1] * x.stored_c(), out.stored_c(), super::FILLING)
}

/// The gradient of a convolution from `x` to `out`, with respect to its weights: `splits` partial sums, one after the
/// other.
pub fn weight_grad(variant: Variant, x: Shape, out: Shape, g: Window) -> Dispatch {
    weight_grad_by(weight_grad_tiling(variant, x, out, g), x, out, g)
}

/// [`weight_grad`] by a tiling of the caller's choice.
pub fn weight_grad_by(tiling: Tiling, x: Shape, out: Shape, g: Window) -> Dispatch {
    let rows = (out.n() * out.h()) as u32;
    let splits = weight_grad_splits_by(tiling, x, out, g) as u32;
    let weight_rows = match tiling {
        // Eight channels of one tap an invocation.
        Tiling::Direct => g.kernel[0] * g.kernel[1] * x.stored_c().div_ceil(8) * 8,
        Tiling::Workgroup(_) => g.kernel[0] * g.kernel[1] * x.stored_c(),
        // Whole tiles for each row of the window.
        Tiling::Subgroup => g.kernel[0] * (g.kernel[1] * x.stored_c()).next_multiple_of(tiling.size()[0]),
    };
    let params = |grid: [u32; 3]| WeightGradParams {
        rows,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        in_quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as i32,
        out_quads: out.quads() as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        rows_per_split: rows.div_ceil(splits),
        grid_columns: grid[0],
        grid_rows: grid[1],
    };
    tiling.dispatch(tiling.variant().weight_grad(), [weight_rows, out.stored_c(), splits as usize], params)
}

fn weight_grad_reference(args: Args<'_>) {
    let (p, [x, dy, partials]) = args.unpack::<WeightGradParams, 3>();
    let (cin, cout) = (p.in_quads as usize * 4, p.out_quads as usize * 4);
    let len = (p.kernel_h * p.kernel_w) as usize * cin * cout;
    for split in 0..p.rows.div_ceil(p.rows_per_split) {
        let partial = &mut partials[split as usize * len..][..len];
        partial.fill(0.0);
        for row in split * p.rows_per_split..((split + 1) * p.rows_per_split).min(p.rows) {
            let (image, oy) = (row / p.out_h, row % p.out_h);
            for ox in 0..p.out_w {
                let to = (row as i32 * p.out_w + ox) as usize * cout;
                for ky in 0..p.kernel_h as i32 {
                    for kx in 0..p.kernel_w as i32 {
                        let iy = oy as i32 * p.stride_h - p.pad_top + ky;
                        let ix = ox * p.stride_w - p.pad_left + kx;
                        if iy < 0 || iy >= p.in_h || ix < 0 || ix >= p.in_w {
                            continue;
                        }
                        let from = ((image as i32 * p.in_h + iy) * p.in_w + ix) as usize * cin;
                        let tap = (ky * p.kernel_w as i32 + kx) as usize * cin;
                        for ci in 0..cin {
                            for co in 0..cout {
                                partial[(tap + ci) * cout + co] += x[from + ci] * dy[to + co];
                            }
                        }
                    }
                }
            }
        }
    }
}
