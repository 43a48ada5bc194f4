//! Depthwise convolution: each channel with a window of its own. Forward, gradient of the input, gradient of the weights.
//!
//! Bound by memory, not by arithmetic: so an invocation computes four pixels of a row and loads what their windows
//! share once. The window's width and step along a row are constants of the pipeline, beside the parameters of that
//! name, for the compiler to keep the row in registers.

use super::conv2d::Epilogue;
use super::{Args, Dispatch, Geometry, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

/// The widest window that the kernels hold in registers.
pub const MAX_WIDTH: usize = 7;

/// The largest step along a row.
pub const MAX_STRIDE: usize = 2;

/// Pixels of a row that an invocation computes.
const COLUMNS: usize = 4;

params! {
    pub struct ForwardParams {
        rows: u32,
        in_h: i32,
        in_w: i32,
        quads: u32,
        out_h: u32,
        out_w: u32,
        kernel_h: i32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        has_bias: u32,
        has_residual: u32,
        act: u32,
    }
}

/// `z = act(x ∗ weight + bias + residual)`.
pub static FORWARD: Kernel = Kernel {
    name: "depthwise_forward",
    source: shader!("depthwise_forward", "act", "index"),
    entry: "depthwise_forward",
    workgroup: [LINEAR, 1, 1],
    params: ForwardParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("residual"), write("z")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// Convolves `x` to `out`; the weights are `[KH][KW][1][C padded]`. It keeps no mask: one word would be of two
/// invocations.
pub fn forward(x: Shape, out: Shape, g: Geometry, epilogue: Epilogue) -> Dispatch {
    debug_assert!(!epilogue.mask);
    let rows = out.n() * out.h();
    let params = ForwardParams {
        rows: rows as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        quads: quads(x),
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        kernel_h: g.kernel[0] as i32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        has_bias: epilogue.bias.into(),
        has_residual: epilogue.residual.into(),
        act: epilogue.act.code(),
    };
    let invocations = rows * out.w().div_ceil(COLUMNS) * x.stored_c() / 4;
    along_rows(Dispatch::new(&FORWARD, params, linear_groups(invocations)), g).activating(epilogue.act)
}

fn quads(x: Shape) -> u32 {
    (x.stored_c() / 4) as u32
}

/// With the constants that say how windows lie along a row.
fn along_rows(mut dispatch: Dispatch, g: Geometry) -> Dispatch {
    dispatch.constants.extend([("kernel_w", g.kernel[1] as f64), ("stride_w", g.stride[1] as f64)]);
    dispatch
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, weight, bias, residual, z]) = args.unpack::<ForwardParams, 5>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    for pixel in 0..(p.rows * p.out_w) as usize {
        let (row, ox) = (pixel / p.out_w as usize, pixel % p.out_w as usize);
        let (image, oy) = (row / p.out_h as usize, row % p.out_h as usize);
        for c in 0..channels {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h {
                for kx in 0..p.kernel_w {
                    let iy = oy as i32 * p.stride_h - p.pad_top + ky;
                    let ix = ox as i32 * p.stride_w - p.pad_left + kx;
                    if iy < 0 || iy >= p.in_h || ix < 0 || ix >= p.in_w {
                        continue;
                    }
                    let from = ((image as i32 * p.in_h + iy) * p.in_w + ix) as usize;
                    sum += x[from * channels + c] * weight[(ky * p.kernel_w + kx) as usize * channels + c];
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
        rows: u32,
        in_h: u32,
        in_w: i32,
        quads: u32,
        out_h: i32,
        out_w: i32,
        kernel_h: i32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        accumulate: u32,
    }
}

/// `dx = dy ∗ᵀ weight`, replacing `dx` or added to it.
pub static INPUT_GRAD: Kernel = Kernel {
    name: "depthwise_input_grad",
    source: shader!("depthwise_input_grad", "index"),
    entry: "depthwise_input_grad",
    workgroup: [LINEAR, 1, 1],
    params: InputGradParams::FIELDS,
    bindings: &[read("dy"), read("weight"), write("dx")],
    overrides: &[],
    subgroups: false,
    reference: input_grad_reference,
};

/// The gradient of a convolution from `input` to `out`, with respect to its input.
pub fn input_grad(input: Shape, out: Shape, g: Geometry, accumulate: bool) -> Dispatch {
    let rows = input.n() * input.h();
    let params = InputGradParams {
        rows: rows as u32,
        in_h: input.h() as u32,
        in_w: input.w() as i32,
        quads: quads(input),
        out_h: out.h() as i32,
        out_w: out.w() as i32,
        kernel_h: g.kernel[0] as i32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        accumulate: accumulate.into(),
    };
    // Tiles begin where a window does.
    let tiles = (input.w() + g.padding[1] % g.stride[1]).div_ceil(COLUMNS);
    along_rows(Dispatch::new(&INPUT_GRAD, params, linear_groups(rows * tiles * input.stored_c() / 4)), g)
}

fn input_grad_reference(args: Args<'_>) {
    let (p, [dy, weight, dx]) = args.unpack::<InputGradParams, 3>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.rows as usize * p.in_w as usize {
        let (row, ix) = (pixel / p.in_w as usize, pixel as i32 % p.in_w);
        let (image, iy) = (row / p.in_h as usize, (row % p.in_h as usize) as i32);
        for c in 0..channels {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h {
                for kx in 0..p.kernel_w {
                    // The output pixel whose window has this input pixel at (ky, kx).
                    let (y, x) = (iy + p.pad_top - ky, ix + p.pad_left - kx);
                    let (oy, ox) = (y / p.stride_h, x / p.stride_w);
                    let hits = y >= 0 && x >= 0 && y % p.stride_h == 0 && x % p.stride_w == 0;
                    if hits && oy < p.out_h && ox < p.out_w {
                        let from = (image as i32 * p.out_h + oy) * p.out_w + ox;
                        sum +=
                            dy[from as usize * channels + c] * weight[(ky * p.kernel_w + kx) as usize * channels + c];
                    }
                }
            }
            let at = pixel * channels + c;
            dx[at] = if p.accumulate != 0 { dx[at] + sum } else { sum };
        }
    }
}

params! {
    pub struct WeightGradParams {
        rows: u32,
        in_h: i32,
        in_w: i32,
        quads: u32,
        out_h: u32,
        out_w: u32,
        kernel_h: u32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        rows_per_split: u32,
    }
}

/// `dw = x ∗ dy` over one split of the output rows; [`super::sum_partials`] adds the splits.
pub static WEIGHT_GRAD: Kernel = Kernel {
    name: "depthwise_weight_grad",
    source: shader!("depthwise_weight_grad", "index"),
    entry: "depthwise_weight_grad",
    workgroup: [LINEAR, 1, 1],
    params: WeightGradParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: weight_grad_reference,
};

/// Into how many parts the output rows are split, a function of the shapes only.
pub fn weight_grad_splits(x: Shape, out: Shape, g: Geometry) -> usize {
    super::grouped::splits(out, g.kernel[0] * x.stored_c() / 4)
}

/// The gradient of a convolution from `x` to `out`, with respect to its weights: `splits` partial sums, one after the
/// other.
pub fn weight_grad(x: Shape, out: Shape, g: Geometry) -> Dispatch {
    let splits = weight_grad_splits(x, out, g);
    let rows = out.n() * out.h();
    let params = WeightGradParams {
        rows: rows as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        quads: quads(x),
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        rows_per_split: rows.div_ceil(splits) as u32,
    };
    let invocations = splits * g.kernel[0] * x.stored_c() / 4;
    along_rows(Dispatch::new(&WEIGHT_GRAD, params, linear_groups(invocations)), g)
}

fn weight_grad_reference(args: Args<'_>) {
    let (p, [x, dy, partials]) = args.unpack::<WeightGradParams, 3>();
    let channels = p.quads as usize * 4;
    for (split, start) in (0..p.rows).step_by(p.rows_per_split as usize).enumerate() {
        for tap in 0..p.kernel_h as i32 * p.kernel_w {
            let (ky, kx) = (tap / p.kernel_w, tap % p.kernel_w);
            for c in 0..channels {
                let mut sum = 0.0;
                for row in start..(start + p.rows_per_split).min(p.rows) {
                    let iy = (row % p.out_h) as i32 * p.stride_h - p.pad_top + ky;
                    for ox in 0..p.out_w {
                        let ix = ox as i32 * p.stride_w - p.pad_left + kx;
                        if iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w {
                            let from = ((row / p.out_h) as i32 * p.in_h + iy) * p.in_w + ix;
                            sum += x[from as usize * channels + c] * dy[(row * p.out_w + ox) as usize * channels + c];
                        }
                    }
                }
                partials[(split * p.kernel_h as usize * p.kernel_w as usize + tap as usize) * channels + c] = sum;
            }
        }
    }
}
