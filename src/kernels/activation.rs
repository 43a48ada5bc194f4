//! An activation by itself, where no other kernel could take it along, and the gradient of every activation.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, mask, params, read, relu, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        relu: u32,
        mask: u32,
    }
}

params! {
    pub struct GradParams {
        pixels: u32,
        quads: u32,
    }
}

/// `z = act(x)`, and the sign bits of `x` when a backward pass wants them.
pub static FORWARD: Kernel = Kernel {
    name: "activation",
    source: shader!("activation", "index", "mask", "relu"),
    entry: "activation",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// `dz = 0` where the forward output was not positive, in place.
pub static GRAD: Kernel = Kernel {
    name: "activation_grad",
    source: shader!("activation_grad", "index", "mask"),
    entry: "activation_grad",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("mask"), write("dz")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// Activates a tensor of shape `x`.
pub fn forward(x: Shape, relu: bool, mask: bool) -> Dispatch {
    let quads = x.stored_c() / 4;
    let params = Params { pixels: x.pixels() as u32, quads: quads as u32, relu: relu.into(), mask: mask.into() };
    Dispatch::new(&FORWARD, params, linear_groups(x.pixels().div_ceil(TILE) * quads))
}

/// Turns the gradient of an activation's output, of shape `x`, into that of its input.
pub fn grad(x: Shape) -> Dispatch {
    let quads = x.stored_c() / 4;
    let params = GradParams { pixels: x.pixels() as u32, quads: quads as u32 };
    Dispatch::new(&GRAD, params, linear_groups(x.pixels().div_ceil(TILE) * quads))
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, z, mask]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    if p.mask != 0 {
        mask::clear(mask, p.pixels as usize, channels);
    }
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            if p.mask != 0 {
                mask::set(mask, channels, pixel, c, x[at] > 0.0);
            }
            z[at] = if p.relu != 0 { relu(x[at]) } else { x[at] };
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [mask, dz]) = args.unpack::<GradParams, 2>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            if !mask::get(mask, channels, pixel, c) {
                dz[pixel * channels + c] = 0.0;
            }
        }
    }
}
