//! Max and average pooling with their gradients.
//!
//! Gradients are gathered: each input sums over the windows that cover it, so overlapping windows need no atomics.

use super::{Args, Dispatch, Kernel, LINEAR, Window, linear_groups, params, read, shader, write};
use crate::tensor::Shape;
use std::ops::Range;

params! {
    /// `pixels` counts what the kernel writes: outputs forward, inputs backward. Only [`MAX_FORWARD`] asks for `argmax`.
    pub struct Params {
        pixels: u32,
        quads: u32,
        in_h: i32,
        in_w: i32,
        out_h: i32,
        out_w: i32,
        kernel_h: i32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        argmax: u32,
    }
}

params! {
    /// As [`Params`], with the pixels of the border on each side that count.
    pub struct AvgParams {
        pixels: u32,
        quads: u32,
        in_h: i32,
        in_w: i32,
        out_h: i32,
        out_w: i32,
        kernel_h: i32,
        kernel_w: i32,
        stride_h: i32,
        stride_w: i32,
        pad_top: i32,
        pad_left: i32,
        counted_top: i32,
        counted_left: i32,
        counted_bottom: i32,
        counted_right: i32,
    }
}

/// The greatest value in each window; padding never wins. Of equal values the first in row-major order wins, and a NaN
/// wins over all numbers, as in PyTorch. When a backward pass wants it, word `pixel · quads + quad` of `argmax` gets
/// the winners' places in the window, kh·KW + kw, a byte a channel.
pub static MAX_FORWARD: Kernel = Kernel {
    name: "max_pool",
    source: shader!("max_pool", "index", "nan", "window"),
    entry: "max_pool",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("z"), write("argmax")],
    overrides: &[],
    subgroups: false,
    reference: max_forward_reference,
};

/// `dx`: for each input the gradients of the windows that it won.
pub static MAX_GRAD: Kernel = Kernel {
    name: "max_pool_grad",
    source: shader!("max_pool_grad", "index", "window"),
    entry: "max_pool_grad",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("dy"), read("argmax"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: max_grad_reference,
};

/// The sum of each window over the pixels of it that count: those of the image, and of the border as many as are said to.
pub static AVG_FORWARD: Kernel = Kernel {
    name: "avg_pool",
    source: shader!("avg_pool", "index", "window"),
    entry: "avg_pool",
    workgroup: [LINEAR, 1, 1],
    params: AvgParams::FIELDS,
    bindings: &[read("x"), write("z")],
    overrides: &[],
    subgroups: false,
    reference: avg_forward_reference,
};

/// `dx`: for each input its share of the gradients of the windows that cover it.
pub static AVG_GRAD: Kernel = Kernel {
    name: "avg_pool_grad",
    source: shader!("avg_pool_grad", "index", "window"),
    entry: "avg_pool_grad",
    workgroup: [LINEAR, 1, 1],
    params: AvgParams::FIELDS,
    bindings: &[read("dy"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: avg_grad_reference,
};

/// Pools a tensor of shape `x` to one of shape `out`. The padding is smaller than the window, which holds at most 256
/// pixels.
pub fn max_forward(x: Shape, out: Shape, g: Window, argmax: bool) -> Dispatch {
    let params = Params { argmax: argmax.into(), ..params(x, out, out, g) };
    Dispatch::new(&MAX_FORWARD, params, groups(out))
}

/// The gradient of an input of shape `input` whose pooled shape is `out`.
pub fn max_grad(input: Shape, out: Shape, g: Window) -> Dispatch {
    Dispatch::new(&MAX_GRAD, params(input, out, input, g), groups(input))
}

/// Pools a tensor of shape `x` to one of shape `out`; `counted` says how much of the border at the top, left, bottom and right
/// counts as zeros. Every window covers something that counts.
pub fn avg_forward(x: Shape, out: Shape, g: Window, counted: [usize; 4]) -> Dispatch {
    Dispatch::new(&AVG_FORWARD, avg_params(x, out, out, g, counted), groups(out))
}

/// The gradient of an input of shape `input` whose pooled shape is `out`.
pub fn avg_grad(input: Shape, out: Shape, g: Window, counted: [usize; 4]) -> Dispatch {
    Dispatch::new(&AVG_GRAD, avg_params(input, out, input, g, counted), groups(input))
}

fn avg_params(input: Shape, out: Shape, written: Shape, g: Window, counted: [usize; 4]) -> AvgParams {
    let [counted_top, counted_left, counted_bottom, counted_right] = counted.map(|side| side as i32);
    let Params {
        pixels,
        quads,
        in_h,
        in_w,
        out_h,
        out_w,
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        pad_top,
        pad_left,
        ..
    } = params(input, out, written, g);
    AvgParams {
        pixels,
        quads,
        in_h,
        in_w,
        out_h,
        out_w,
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        pad_top,
        pad_left,
        counted_top,
        counted_left,
        counted_bottom,
        counted_right,
    }
}

fn params(input: Shape, out: Shape, written: Shape, g: Window) -> Params {
    Params {
        pixels: written.pixels() as u32,
        quads: (written.quads()) as u32,
        in_h: input.h() as i32,
        in_w: input.w() as i32,
        out_h: out.h() as i32,
        out_w: out.w() as i32,
        kernel_h: g.kernel[0] as i32,
        kernel_w: g.kernel[1] as i32,
        stride_h: g.stride[0] as i32,
        stride_w: g.stride[1] as i32,
        pad_top: g.padding[0] as i32,
        pad_left: g.padding[1] as i32,
        argmax: 0,
    }
}

fn groups(written: Shape) -> [u32; 3] {
    linear_groups(written.pixels() * written.quads())
}

/// The inputs that the window of output `o` covers along one axis, padding apart.
fn covered(o: i32, kernel: i32, stride: i32, padding: i32, inputs: i32) -> Range<i32> {
    let first = o * stride - padding;
    first.max(0)..(first + kernel).min(inputs)
}

/// The outputs whose windows cover input `i` along one axis.
fn covering(i: i32, kernel: i32, stride: i32, padding: i32, outputs: i32) -> impl Iterator<Item = i32> {
    (0..outputs).filter(move |o| (0..kernel).contains(&(i + padding - o * stride)))
}

/// Image, row and column of a pixel.
fn locate(pixel: u32, h: i32, w: i32) -> [i32; 3] {
    let pixel = pixel as i32;
    [pixel / (h * w), pixel / w % h, pixel % w]
}

impl AvgParams {
    /// How many pixels of the window of an output count.
    fn counted(&self, oy: i32, ox: i32) -> f32 {
        let side = |o: i32, kernel: i32, stride: i32, padding: i32, before: i32, end: i32| {
            let first = o * stride - padding;
            (first + kernel).min(end) - first.max(-before)
        };
        let (bottom, right) = (self.in_h + self.counted_bottom, self.in_w + self.counted_right);
        let rows = side(oy, self.kernel_h, self.stride_h, self.pad_top, self.counted_top, bottom);
        let columns = side(ox, self.kernel_w, self.stride_w, self.pad_left, self.counted_left, right);
        (rows * columns) as f32
    }
}

fn max_forward_reference(args: Args<'_>) {
    let (p, [x, z, argmax]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels {
        let [image, oy, ox] = locate(pixel, p.out_h, p.out_w);
        for c in 0..channels {
            let mut best: Option<(f32, u8)> = None;
            for y in covered(oy, p.kernel_h, p.stride_h, p.pad_top, p.in_h) {
                for x_ in covered(ox, p.kernel_w, p.stride_w, p.pad_left, p.in_w) {
                    let value = x[((image * p.in_h + y) * p.in_w + x_) as usize * channels + c];
                    if best.is_none_or(|(best, _)| value > best || value.is_nan()) {
                        let ky = y + p.pad_top - oy * p.stride_h;
                        let kx = x_ + p.pad_left - ox * p.stride_w;
                        best = Some((value, (ky * p.kernel_w + kx) as u8));
                    }
                }
            }
            let (value, place) = best.expect("padding is smaller than the window");
            z[pixel as usize * channels + c] = value;
            if p.argmax != 0 {
                let word = &mut argmax[(pixel as usize * channels + c) / 4];
                let mut bytes = word.to_bits().to_le_bytes();
                bytes[c % 4] = place;
                *word = f32::from_bits(u32::from_le_bytes(bytes));
            }
        }
    }
}

fn max_grad_reference(args: Args<'_>) {
    let (p, [dy, argmax, x_grad]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels {
        let [image, y, x] = locate(pixel, p.in_h, p.in_w);
        for c in 0..channels {
            let mut sum = 0.0;
            for oy in covering(y, p.kernel_h, p.stride_h, p.pad_top, p.out_h) {
                for ox in covering(x, p.kernel_w, p.stride_w, p.pad_left, p.out_w) {
                    let at = ((image * p.out_h + oy) * p.out_w + ox) as usize * channels + c;
                    let ky = y + p.pad_top - oy * p.stride_h;
                    let kx = x + p.pad_left - ox * p.stride_w;
                    let place = argmax[at / 4].to_bits().to_le_bytes()[c % 4];
                    if i32::from(place) == ky * p.kernel_w + kx {
                        sum += dy[at];
                    }
                }
            }
            x_grad[pixel as usize * channels + c] = sum;
        }
    }
}

fn avg_forward_reference(args: Args<'_>) {
    let (p, [x, z]) = args.unpack::<AvgParams, 2>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels {
        let [image, oy, ox] = locate(pixel, p.out_h, p.out_w);
        for c in 0..channels {
            let mut sum = 0.0;
            for y in covered(oy, p.kernel_h, p.stride_h, p.pad_top, p.in_h) {
                for x_ in covered(ox, p.kernel_w, p.stride_w, p.pad_left, p.in_w) {
                    sum += x[((image * p.in_h + y) * p.in_w + x_) as usize * channels + c];
                }
            }
            z[pixel as usize * channels + c] = sum / p.counted(oy, ox);
        }
    }
}

fn avg_grad_reference(args: Args<'_>) {
    let (p, [dy, x_grad]) = args.unpack::<AvgParams, 2>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels {
        let [image, y, x] = locate(pixel, p.in_h, p.in_w);
        for c in 0..channels {
            let mut sum = 0.0;
            for oy in covering(y, p.kernel_h, p.stride_h, p.pad_top, p.out_h) {
                for ox in covering(x, p.kernel_w, p.stride_w, p.pad_left, p.out_w) {
                    sum += dy[((image * p.out_h + oy) * p.out_w + ox) as usize * channels + c] / p.counted(oy, ox);
                }
            }
            x_grad[pixel as usize * channels + c] = sum;
        }
    }
}
