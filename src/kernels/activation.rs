//! An activation by itself, where no other kernel could take it along, and the gradient of every activation.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, mask, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        /// Without the padding.
        channels: u32,
        act: u32,
        mask: u32,
    }
}

params! {
    pub struct GradParams {
        pixels: u32,
        quads: u32,
        act: u32,
    }
}

/// `z = act(x)`, and the mask of `x` when a backward pass wants it.
pub static FORWARD: Kernel = Kernel {
    name: "activation",
    source: shader!("activation", "act", "index"),
    entry: "activation",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// `dz ← dz·act'(y)`, in place, by the mask or for a smooth activation by `y`.
pub static GRAD: Kernel = Kernel {
    name: "activation_grad",
    source: shader!("activation_grad", "act", "index", "mask"),
    entry: "activation_grad",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("mask"), read("y"), write("dz")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// Activates a tensor of shape `x`.
pub fn forward(x: Shape, act: Act, mask: bool) -> Dispatch {
    let quads = x.quads();
    let params = Params {
        pixels: x.pixels() as u32,
        quads: quads as u32,
        channels: x.c() as u32,
        act: act.code(),
        mask: mask.into(),
    };
    Dispatch::new(&FORWARD, params, linear_groups(x.pixels().div_ceil(TILE) * quads)).activating(act)
}

/// Turns the gradient of an activation's output, of shape `x`, into that of its input.
pub fn grad(x: Shape, act: Act) -> Dispatch {
    let quads = x.quads();
    let params = GradParams { pixels: x.pixels() as u32, quads: quads as u32, act: act.code() };
    Dispatch::new(&GRAD, params, linear_groups(x.pixels().div_ceil(TILE) * quads)).activating(act)
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, z, mask]) = args.unpack::<Params, 3>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    if p.mask != 0 {
        mask::clear(mask, p.pixels as usize, channels);
    }
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            if p.mask != 0 {
                mask::set(mask, channels, pixel, c, act.passes(x[at]));
            }
            z[at] = if c < p.channels as usize { act.apply(x[at]) } else { 0.0 };
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [mask, y, dz]) = args.unpack::<GradParams, 3>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            if act.is_smooth() {
                dz[at] *= act.derivative(y[at]);
            } else if !mask::get(mask, channels, pixel, c) {
                dz[at] = 0.0;
            }
        }
    }
}
