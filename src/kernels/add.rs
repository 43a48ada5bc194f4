//! Residual addition, with the activation that follows it.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        act: u32,
        mask: u32,
    }
}

/// `z = act(a + b)`, and the mask of the sum when a backward pass wants them.
pub static FORWARD: Kernel = Kernel {
    name: "add",
    source: shader!("add", "act", "index"),
    entry: "add",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("a"), read("b"), write("z"), write("mask")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Adds two tensors of `shape`.
pub fn forward(shape: Shape, act: Act, mask: bool) -> Dispatch {
    let quads = shape.quads();
    let params = Params { pixels: shape.pixels() as u32, quads: quads as u32, act: act.code(), mask: mask.into() };
    Dispatch::new(&FORWARD, params, linear_groups(shape.pixels().div_ceil(TILE) * quads)).activating(act)
}

fn reference(args: Args<'_>) {
    let (p, [a, b, z, mask]) = args.unpack::<Params, 4>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    if p.mask != 0 {
        super::mask::clear(mask, p.pixels as usize, channels);
    }
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            let y = a[at] + b[at];
            if p.mask != 0 {
                super::mask::set(mask, channels, pixel, c, act.passes(y));
            }
            z[at] = act.apply(y);
        }
    }
}
