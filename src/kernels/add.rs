//! Residual addition, with the activation that follows it.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, params, read, relu, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        relu: u32,
        mask: u32,
    }
}

/// `z = act(a + b)`, and the sign bits of the sum when a backward pass wants them.
pub static FORWARD: Kernel = Kernel {
    name: "add",
    source: shader!("add", "index", "mask", "relu"),
    entry: "add",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("a"), read("b"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Adds two tensors of `shape`.
pub fn forward(shape: Shape, relu: bool, mask: bool) -> Dispatch {
    let quads = shape.stored_c() / 4;
    let params = Params { pixels: shape.pixels() as u32, quads: quads as u32, relu: relu.into(), mask: mask.into() };
    Dispatch::new(&FORWARD, params, linear_groups(shape.pixels().div_ceil(TILE) * quads))
}

fn reference(args: Args<'_>) {
    let (p, [a, b, z, mask]) = args.unpack::<Params, 4>();
    let channels = p.quads as usize * 4;
    if p.mask != 0 {
        super::mask::clear(mask, p.pixels as usize, channels);
    }
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            let y = a[at] + b[at];
            if p.mask != 0 {
                super::mask::set(mask, channels, pixel, c, y > 0.0);
            }
            z[at] = if p.relu != 0 { relu(y) } else { y };
        }
    }
}
