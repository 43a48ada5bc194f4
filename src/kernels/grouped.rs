//! Grouped convolution (Xie et al. 2017): input and output channels in groups that do not see each other. Forward,
//! gradient of the input, gradient of the weights.
//!
//! Channels of a group are multiples of four; where a group is one channel, [`super::depthwise`] serves.

use super::conv2d::Epilogue;
use super::{Args, Dispatch, Kernel, LINEAR, Window, linear_groups, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

/// Pixels that an invocation computes.
const COLUMNS: usize = 4;

params! {
    pub struct ForwardParams {
        rows: u32,
        in_h: i32,
        in_w: i32,
        in_quads: u32,
        out_h: u32,
        out_w: u32,
        out_quads: u32,
        in_group: u32,
        out_group: u32,
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
    name: "grouped_forward",
    source: shader!("grouped_forward", "act", "index"),
    entry: "grouped_forward",
    workgroup: [LINEAR, 1, 1],
    params: ForwardParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("residual"), write("z")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// Convolves `x` to `out` in so many groups; the weights are `[KH][KW][Cin of a group][Cout]`. It keeps no mask: one
/// word would be of two invocations.
pub fn forward(x: Shape, out: Shape, g: Window, groups: usize, epilogue: Epilogue) -> Dispatch {
    debug_assert!(!epilogue.mask);
    let rows = out.n() * out.h();
    let params = ForwardParams {
        rows: rows as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        in_quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as u32,
        out_quads: out.quads() as u32,
        in_group: x.quads() as u32 / groups as u32,
        out_group: out.quads() as u32 / groups as u32,
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
    let invocations = rows * out.w().div_ceil(COLUMNS) * out.quads();
    Dispatch::new(&FORWARD, params, linear_groups(invocations)).activating(epilogue.act)
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, weight, bias, residual, z]) = args.unpack::<ForwardParams, 5>();
    let (cin, cout, act) = (p.in_quads as usize * 4, p.out_quads as usize * 4, Act::of_code(p.act));
    let (in_group, out_group) = (p.in_group as usize * 4, p.out_group as usize * 4);
    for pixel in 0..(p.rows * p.out_w) as usize {
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
                    let from = ((image as i32 * p.in_h + iy) * p.in_w + ix) as usize * cin + co / out_group * in_group;
                    let tap = (ky * p.kernel_w + kx) as usize * in_group;
                    for ci in 0..in_group {
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
            z[at] = act.apply(sum);
        }
    }
}

params! {
    pub struct InputGradParams {
        rows: u32,
        in_h: u32,
        in_w: i32,
        in_quads: u32,
        out_h: i32,
        out_w: i32,
        out_quads: u32,
        in_group: u32,
        out_group: u32,
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
    name: "grouped_input_grad",
    source: shader!("grouped_input_grad", "index"),
    entry: "grouped_input_grad",
    workgroup: [LINEAR, 1, 1],
    params: InputGradParams::FIELDS,
    bindings: &[read("dy"), read("weight"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: input_grad_reference,
};

/// The gradient of a convolution from `input` to `out`, with respect to its input.
pub fn input_grad(input: Shape, out: Shape, g: Window, groups: usize, accumulate: bool) -> Dispatch {
    let rows = input.n() * input.h();
    let params = InputGradParams {
        rows: rows as u32,
        in_h: input.h() as u32,
        in_w: input.w() as i32,
        in_quads: input.quads() as u32,
        out_h: out.h() as i32,
        out_w: out.w() as i32,
        out_quads: out.quads() as u32,
        in_group: input.quads() as u32 / groups as u32,
        out_group: out.quads() as u32 / groups as u32,
        kernel_h: g.kernel[0] as i32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        accumulate: accumulate.into(),
    };
    let tiles = input.w().div_ceil(COLUMNS * g.stride[1]) * g.stride[1];
    Dispatch::new(&INPUT_GRAD, params, linear_groups(rows * tiles * input.quads()))
}

fn input_grad_reference(args: Args<'_>) {
    let (p, [dy, weight, x_grad]) = args.unpack::<InputGradParams, 3>();
    let (cin, cout) = (p.in_quads as usize * 4, p.out_quads as usize * 4);
    let (in_group, out_group) = (p.in_group as usize * 4, p.out_group as usize * 4);
    for pixel in 0..p.rows as usize * p.in_w as usize {
        let (row, ix) = (pixel / p.in_w as usize, pixel as i32 % p.in_w);
        let (image, iy) = (row / p.in_h as usize, (row % p.in_h as usize) as i32);
        for ci in 0..cin {
            let mut sum = 0.0;
            for ky in 0..p.kernel_h {
                for kx in 0..p.kernel_w {
                    // The output pixel whose window has this input pixel at (ky, kx).
                    let (y, x) = (iy + p.pad_top - ky, ix + p.pad_left - kx);
                    let (oy, ox) = (y / p.stride_h, x / p.stride_w);
                    let hits = y >= 0 && x >= 0 && y % p.stride_h == 0 && x % p.stride_w == 0;
                    if hits && oy < p.out_h && ox < p.out_w {
                        let from = (image as i32 * p.out_h + oy) * p.out_w + ox;
                        let first = ci / in_group * out_group;
                        let tap = (ky * p.kernel_w + kx) as usize * in_group + ci % in_group;
                        for co in first..first + out_group {
                            sum += dy[from as usize * cout + co] * weight[tap * cout + co];
                        }
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
        in_group: u32,
        out_group: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        rows_per_split: u32,
    }
}

/// `dw = x ∗ dy` over one split of the output rows; [`super::sum_partials`] adds the splits.
pub static WEIGHT_GRAD: Kernel = Kernel {
    name: "grouped_weight_grad",
    source: shader!("grouped_weight_grad", "index"),
    entry: "grouped_weight_grad",
    workgroup: [LINEAR, 1, 1],
    params: WeightGradParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: weight_grad_reference,
};

/// Into how many parts the output rows are split, a function of the shapes only.
pub fn weight_grad_splits(x: Shape, out: Shape, g: Window, groups: usize) -> usize {
    splits(out, g.kernel[0] * g.kernel[1] * x.quads() / groups * out.quads())
}

/// Splits of the rows of `out` where each has so many invocations: enough of them to fill a GPU, and no more than the
/// second pass should have to add up.
fn splits(out: Shape, invocations: usize) -> usize {
    let rows = out.n() * out.h();
    let splits = super::FILLING.div_ceil(invocations).clamp(1, rows.min(256));
    rows.div_ceil(rows.div_ceil(splits))
}

/// The gradient of a convolution from `x` to `out`, with respect to its weights: `splits` partial sums, one after the
/// other.
pub fn weight_grad(x: Shape, out: Shape, g: Window, groups: usize) -> Dispatch {
    let splits = weight_grad_splits(x, out, g, groups);
    let rows = out.n() * out.h();
    let params = WeightGradParams {
        rows: rows as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        in_quads: x.quads() as u32,
        out_h: out.h() as u32,
        out_w: out.w() as i32,
        out_quads: out.quads() as u32,
        in_group: x.quads() as u32 / groups as u32,
        out_group: out.quads() as u32 / groups as u32,
        kernel_h: g.kernel[0] as u32,
        kernel_w: g.kernel[1] as u32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        rows_per_split: rows.div_ceil(splits) as u32,
    };
    let invocations = splits * g.kernel[0] * g.kernel[1] * params.in_group as usize * out.quads();
    Dispatch::new(&WEIGHT_GRAD, params, linear_groups(invocations))
}

fn weight_grad_reference(args: Args<'_>) {
    let (p, [x, dy, partials]) = args.unpack::<WeightGradParams, 3>();
    let (cin, cout) = (p.in_quads as usize * 4, p.out_quads as usize * 4);
    let (in_group, out_group) = (p.in_group as usize * 4, p.out_group as usize * 4);
    let taps = (p.kernel_h * p.kernel_w) as usize;
    for (split, start) in (0..p.rows).step_by(p.rows_per_split as usize).enumerate() {
        for at in 0..taps * in_group * cout {
            let (tap, ci, co) = (at / cout / in_group, at / cout % in_group, at % cout);
            let (ky, kx) = (tap as i32 / p.kernel_w as i32, tap as i32 % p.kernel_w as i32);
            let mut sum = 0.0;
            for row in start..(start + p.rows_per_split).min(p.rows) {
                let iy = (row % p.out_h) as i32 * p.stride_h - p.pad_top + ky;
                for ox in 0..p.out_w {
                    let ix = ox * p.stride_w - p.pad_left + kx;
                    if iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w {
                        let from = ((row / p.out_h) as i32 * p.in_h + iy) * p.in_w + ix;
                        let channel = co / out_group * in_group + ci;
                        let pixel = row as usize * p.out_w as usize + ox as usize;
                        sum += x[from as usize * cin + channel] * dy[pixel * cout + co];
                    }
                }
            }
            partials[split * taps * in_group * cout + at] = sum;
        }
    }
}
