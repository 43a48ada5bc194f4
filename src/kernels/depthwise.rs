//! Depthwise convolution: each channel with a window of its own. Forward, gradient of the input, gradient of the weights.
//!
//! Bound by memory, not by arithmetic: so an invocation goes down a strip of the image, a few columns wide, and loads each
//! row of it once. The window's size and step are constants of the pipeline, beside the parameters of those names, for
//! the compiler to keep rows and sums in registers: at most 7×7 pixels, at a stride of at most 2, as the graph sees to.

use super::conv2d::{Epilogue, Variant};
use super::{Args, Dispatch, Kernel, LINEAR, Window, linear_groups, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

/// Channels of an invocation. The window of each stays in registers: so they are fewer where windows are larger, and no driver that
/// `scripts/check-static.sh` asks runs out of registers.
#[derive(Clone, Copy)]
enum Lanes {
    Four,
    Two,
    One,
}

impl Lanes {
    fn of(variant: Variant, g: Window) -> Self {
        match variant {
            Variant::Workgroup if g.kernel[0].max(g.kernel[1]) > 5 => Self::One,
            Variant::Workgroup => Self::Two,
            // CPU drivers load quads, and keep in memory what their registers do not hold.
            Variant::Direct | Variant::Subgroup => Self::Four,
        }
    }

    /// Invocations of so many quads of channels.
    const fn parts(self, quads: usize) -> usize {
        match self {
            Self::Four => quads,
            Self::Two => quads * 2,
            Self::One => quads * 4,
        }
    }

    /// The kernel for these channels, of those for four, two and one.
    const fn of_kernels(self, kernels: [&'static Kernel; 3]) -> &'static Kernel {
        kernels[self as usize]
    }

    /// Columns of a strip of an image of so many.
    fn columns(self, g: Window, width: usize) -> usize {
        let wide = matches!(self, Self::Four | Self::One) || g.kernel[0].max(g.kernel[1]) <= 3;
        if wide && width > 2 { 4 } else { 2 }
    }
}

params! {
    pub struct ForwardParams {
        images: u32,
        /// Images that an invocation goes through.
        images_each: u32,
        in_h: i32,
        in_w: i32,
        quads: u32,
        out_h: u32,
        out_w: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        pad_top: i32,
        pad_left: i32,
        /// Rows of a strip.
        band: u32,
        has_bias: u32,
        has_residual: u32,
        act: u32,
    }
}

/// `z = act(x ∗ weight + bias + residual)`.
pub static FORWARD: Kernel =
    forward_kernel("depthwise_forward", shader!("depthwise_forward", "lanes_four", "depthwise", "index", "act"));

/// [`FORWARD`] with two channels of an invocation.
pub static FORWARD_TWO: Kernel =
    forward_kernel("depthwise_forward_two", shader!("depthwise_forward", "lanes_two", "depthwise", "index", "act"));

/// [`FORWARD`] with one channel of an invocation.
pub static FORWARD_ONE: Kernel =
    forward_kernel("depthwise_forward_one", shader!("depthwise_forward", "lanes_one", "depthwise", "index", "act"));

const fn forward_kernel(name: &'static str, source: &'static str) -> Kernel {
    Kernel {
        name,
        source,
        entry: "depthwise_forward",
        workgroup: [LINEAR, 1, 1],
        params: ForwardParams::FIELDS,
        bindings: const { &[read("x"), read("weight"), read("bias"), read("residual"), write("z")] },
        overrides: &[],
        subgroups: false,
        reference: forward_reference,
    }
}

/// Convolves `x` to `out`; the weights are `[KH][KW][1][C padded]`. It keeps no mask: one word would be of two
/// invocations.
pub fn forward(variant: Variant, x: Shape, out: Shape, g: Window, epilogue: Epilogue) -> Dispatch {
    debug_assert!(!epilogue.mask);
    let lanes = Lanes::of(variant, g);
    let columns = lanes.columns(g, out.w());
    let lines = out.w().div_ceil(columns) * lanes.parts(x.quads());
    let Share { images, band } = Share::of(variant, x.n(), out.h(), lines);
    let params = ForwardParams {
        images: x.n() as u32,
        images_each: images as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as u32,
        stride_w: g.stride[1] as u32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        band: band as u32,
        has_bias: epilogue.bias.into(),
        has_residual: epilogue.residual.into(),
        act: epilogue.act.code(),
    };
    windowed(
        Dispatch::new(
            lanes.of_kernels([&FORWARD, &FORWARD_TWO, &FORWARD_ONE]),
            params,
            linear_groups(lines * x.n().div_ceil(images) * out.h().div_ceil(band)),
        ),
        g,
        columns,
    )
    .activating(epilogue.act)
}

/// What an invocation does: so much that there are only as many as fill the device, since each loads the weights, and
/// begins with rows that the strip above has, too.
struct Share {
    images: usize,
    /// Rows of each.
    band: usize,
}

impl Share {
    /// Of `images` of `height` rows, each of which takes so many invocations if strips are as high as it is.
    fn of(variant: Variant, images: usize, height: usize, invocations: usize) -> Self {
        let filling = filling(variant);
        let each = (invocations * images / filling).clamp(1, images);
        let bands = filling.div_ceil(invocations * images).min(height);
        Self { images: each, band: height.div_ceil(bands) }
    }
}

/// Invocations that keep a device busy: a function of the variant only, so that a plan always computes the same bits.
fn filling(variant: Variant) -> usize {
    match variant {
        Variant::Workgroup => super::FILLING,
        // A CPU has few lanes to fill.
        Variant::Direct | Variant::Subgroup => 512,
    }
}

/// With the constants of `shaders/lib/depthwise.wgsl`.
fn windowed(mut dispatch: Dispatch, g: Window, columns: usize) -> Dispatch {
    let ([kernel_h, kernel_w], [stride_h, stride_w]) = (g.kernel, g.stride);
    let window = [("kernel_h", kernel_h), ("kernel_w", kernel_w), ("stride_h", stride_h), ("stride_w", stride_w)];
    let constants = window.into_iter().chain([("columns", columns)]);
    dispatch.constants.extend(constants.map(|(name, value)| (name, value as f64)));
    dispatch
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, weight, bias, residual, z]) = args.unpack::<ForwardParams, 5>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    for pixel in 0..(p.images * p.out_h * p.out_w) as usize {
        let (row, ox) = (pixel / p.out_w as usize, pixel % p.out_w as usize);
        let (image, oy) = (row / p.out_h as usize, row % p.out_h as usize);
        for c in 0..channels {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h as i32 {
                for kx in 0..p.kernel_w as i32 {
                    let iy = oy as i32 * p.stride_h as i32 - p.pad_top + ky;
                    let ix = ox as i32 * p.stride_w as i32 - p.pad_left + kx;
                    if iy < 0 || iy >= p.in_h || ix < 0 || ix >= p.in_w {
                        continue;
                    }
                    let from = ((image as i32 * p.in_h + iy) * p.in_w + ix) as usize;
                    let tap = (ky * p.kernel_w as i32 + kx) as usize;
                    sum += x[from * channels + c] * weight[tap * channels + c];
                }
            }
            let at = pixel * channels + c;
            if p.has_bias != 0 {
                sum += bias[c];
            }
            if p.has_residual != 0 {
                sum += residual[at];
            }
            z[at] = act.apply(sum);
        }
    }
}

params! {
    pub struct InputGradParams {
        images: u32,
        images_each: u32,
        in_h: i32,
        in_w: i32,
        quads: u32,
        out_h: i32,
        out_w: i32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        pad_top: u32,
        pad_left: u32,
        /// Rows of `dy` that are the last to reach a strip's.
        band: u32,
        accumulate: u32,
    }
}

/// `dx = dy ∗ᵀ weight`, replacing `dx` or added to it.
pub static INPUT_GRAD: Kernel =
    input_grad_kernel("depthwise_input_grad", shader!("depthwise_input_grad", "lanes_four", "depthwise", "index"));

/// [`INPUT_GRAD`] with two channels of an invocation.
pub static INPUT_GRAD_TWO: Kernel =
    input_grad_kernel("depthwise_input_grad_two", shader!("depthwise_input_grad", "lanes_two", "depthwise", "index"));

/// [`INPUT_GRAD`] with one channel of an invocation.
pub static INPUT_GRAD_ONE: Kernel =
    input_grad_kernel("depthwise_input_grad_one", shader!("depthwise_input_grad", "lanes_one", "depthwise", "index"));

const fn input_grad_kernel(name: &'static str, source: &'static str) -> Kernel {
    Kernel {
        name,
        source,
        entry: "depthwise_input_grad",
        workgroup: [LINEAR, 1, 1],
        params: InputGradParams::FIELDS,
        bindings: const { &[read("dy"), read("weight"), write("x_grad")] },
        overrides: &[],
        subgroups: false,
        reference: input_grad_reference,
    }
}

/// The gradient of a convolution from `input` to `out`, with respect to its input.
pub fn input_grad(variant: Variant, input: Shape, out: Shape, g: Window, accumulate: bool) -> Dispatch {
    // Strips begin where a window does.
    let width = input.w() + g.padding[1] % g.stride[1];
    let lanes = Lanes::of(variant, g);
    let columns = lanes.columns(g, width);
    let steps = (input.h() + g.padding[0] % g.stride[0]).div_ceil(g.stride[0]);
    let lines = width.div_ceil(columns) * lanes.parts(input.quads());
    let Share { images, band } = Share::of(variant, input.n(), steps, lines);
    let params = InputGradParams {
        images: input.n() as u32,
        images_each: images as u32,
        in_h: input.h() as i32,
        in_w: input.w() as i32,
        quads: input.quads() as u32,
        out_h: out.h() as i32,
        out_w: out.w() as i32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as u32,
        stride_w: g.stride[1] as u32,
        pad_top: g.padding[0] as u32,
        pad_left: g.padding[1] as u32,
        band: band as u32,
        accumulate: accumulate.into(),
    };
    windowed(
        Dispatch::new(
            lanes.of_kernels([&INPUT_GRAD, &INPUT_GRAD_TWO, &INPUT_GRAD_ONE]),
            params,
            linear_groups(lines * input.n().div_ceil(images) * steps.div_ceil(band)),
        ),
        g,
        columns,
    )
}

fn input_grad_reference(args: Args<'_>) {
    let (p, [dy, weight, x_grad]) = args.unpack::<InputGradParams, 3>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.images as i32 * p.in_h * p.in_w {
        let (row, ix) = (pixel / p.in_w, pixel % p.in_w);
        let (image, iy) = (row / p.in_h, row % p.in_h);
        for c in 0..channels {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h {
                for kx in 0..p.kernel_w {
                    // The output pixel whose window has this input pixel at (ky, kx).
                    let (Some(y), Some(x)) =
                        ((iy as u32 + p.pad_top).checked_sub(ky), (ix as u32 + p.pad_left).checked_sub(kx))
                    else {
                        continue;
                    };
                    let (oy, ox) = ((y / p.stride_h) as i32, (x / p.stride_w) as i32);
                    if y % p.stride_h != 0 || x % p.stride_w != 0 || oy >= p.out_h || ox >= p.out_w {
                        continue;
                    }
                    let from = ((image * p.out_h + oy) * p.out_w + ox) as usize;
                    let tap = (ky * p.kernel_w + kx) as usize;
                    sum += dy[from * channels + c] * weight[tap * channels + c];
                }
            }
            let at = pixel as usize * channels + c;
            x_grad[at] = if p.accumulate != 0 { x_grad[at] + sum } else { sum };
        }
    }
}

params! {
    pub struct WeightGradParams {
        in_h: i32,
        in_w: i32,
        quads: u32,
        out_h: u32,
        out_w: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        pad_top: i32,
        pad_left: i32,
        /// Columns and rows of a strip.
        strip_w: u32,
        band: u32,
        strips: u32,
        strips_per_split: u32,
    }
}

/// `dw = x ∗ dy` over one split of the strips; [`super::sum_partials`] adds the splits.
pub static WEIGHT_GRAD: Kernel =
    weight_grad_kernel("depthwise_weight_grad", shader!("depthwise_weight_grad", "lanes_four", "depthwise", "index"));

/// [`WEIGHT_GRAD`] with two channels of an invocation.
pub static WEIGHT_GRAD_TWO: Kernel = weight_grad_kernel(
    "depthwise_weight_grad_two",
    shader!("depthwise_weight_grad", "lanes_two", "depthwise", "index"),
);

/// [`WEIGHT_GRAD`] with one channel of an invocation.
pub static WEIGHT_GRAD_ONE: Kernel = weight_grad_kernel(
    "depthwise_weight_grad_one",
    shader!("depthwise_weight_grad", "lanes_one", "depthwise", "index"),
);

const fn weight_grad_kernel(name: &'static str, source: &'static str) -> Kernel {
    Kernel {
        name,
        source,
        entry: "depthwise_weight_grad",
        workgroup: [LINEAR, 1, 1],
        params: WeightGradParams::FIELDS,
        bindings: const { &[read("x"), read("dy"), write("partials")] },
        overrides: &[],
        subgroups: false,
        reference: weight_grad_reference,
    }
}

/// How the outputs are split among invocations.
struct Splits {
    /// Columns and rows of a strip.
    columns: usize,
    band: usize,
    strips: usize,
    strips_per_split: usize,
    count: usize,
}

impl Splits {
    /// A function of the shapes only, so that a plan always computes the same bits.
    fn of(variant: Variant, out: Shape, g: Window) -> Self {
        let lanes = Lanes::of(variant, g);
        // At least 64 pixels a split, or the sum of the splits costs more than they do.
        let wanted = filling(variant).div_ceil(lanes.parts(out.quads())).min(out.pixels().div_ceil(64));
        let columns = lanes.columns(g, out.w());
        let lines = out.n() * out.w().div_ceil(columns);
        let band = out.h().div_ceil(wanted.div_ceil(lines).min(out.h()));
        let strips = lines * out.h().div_ceil(band);
        let strips_per_split = strips.div_ceil(wanted);
        Self { columns, band, strips, strips_per_split, count: strips.div_ceil(strips_per_split) }
    }
}

/// How many partial sums [`weight_grad`] leaves, for [`super::sum_partials`] to add up.
pub fn weight_grad_splits(variant: Variant, out: Shape, g: Window) -> usize {
    Splits::of(variant, out, g).count
}

/// The gradient of a convolution from `x` to `out`, with respect to its weights: `splits` partial sums, one after the
/// other.
pub fn weight_grad(variant: Variant, x: Shape, out: Shape, g: Window) -> Dispatch {
    let (lanes, splits) = (Lanes::of(variant, g), Splits::of(variant, out, g));
    let params = WeightGradParams {
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as u32,
        stride_w: g.stride[1] as u32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        strip_w: splits.columns as u32,
        band: splits.band as u32,
        strips: splits.strips as u32,
        strips_per_split: splits.strips_per_split as u32,
    };
    let groups = linear_groups(splits.count * lanes.parts(x.quads()));
    let kernel = lanes.of_kernels([&WEIGHT_GRAD, &WEIGHT_GRAD_TWO, &WEIGHT_GRAD_ONE]);
    windowed(Dispatch::new(kernel, params, groups), g, splits.columns)
}

fn weight_grad_reference(args: Args<'_>) {
    let (p, [x, dy, partials]) = args.unpack::<WeightGradParams, 3>();
    let (channels, taps) = (p.quads as usize * 4, (p.kernel_h * p.kernel_w) as usize);
    let columns = p.strip_w;
    let (tiles, bands) = (p.out_w.div_ceil(columns), p.out_h.div_ceil(p.band));
    partials[..p.strips.div_ceil(p.strips_per_split) as usize * taps * channels].fill(0.0);
    for strip in 0..p.strips {
        let split = (strip / p.strips_per_split) as usize;
        let (first, line) = (strip % tiles * columns, strip / tiles);
        let (image, top) = (line / bands, line % bands * p.band);
        for oy in top..(top + p.band).min(p.out_h) {
            for ox in first..(first + columns).min(p.out_w) {
                for tap in 0..taps {
                    let (ky, kx) = (tap as u32 / p.kernel_w, tap as u32 % p.kernel_w);
                    let iy = (oy * p.stride_h + ky) as i32 - p.pad_top;
                    let ix = (ox * p.stride_w + kx) as i32 - p.pad_left;
                    if iy < 0 || iy >= p.in_h || ix < 0 || ix >= p.in_w {
                        continue;
                    }
                    let from = ((image as i32 * p.in_h + iy) * p.in_w + ix) as usize;
                    let to = ((image * p.out_h + oy) * p.out_w + ox) as usize;
                    for c in 0..channels {
                        partials[(split * taps + tap) * channels + c] += x[from * channels + c] * dy[to * channels + c];
                    }
                }
            }
        }
    }
}
