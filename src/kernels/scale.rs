//! The gate of squeeze-and-excitation (Hu, Shen & Sun 2018): each channel of each image times a value of its own.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        /// Pixels of an image, or of all images where one row is of all.
        image: u32,
        mean: u32,
    }
}

/// `z = x·gate + mean/HW`. With the gradient of the gated output for `x` it gives the gradient of what was gated and
/// averaged: `mean` is then the gradient of the average.
pub static FORWARD: Kernel = Kernel {
    name: "scale",
    source: shader!("scale", "index"),
    entry: "scale",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), read("gate"), read("mean"), write("z")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Gates a tensor of shape `x`; the gate and the mean are `[N, 1, 1, C]`, or the gate is one row for all images.
pub fn forward(x: Shape, gate: Shape, mean: bool) -> Dispatch {
    let quads = x.quads();
    let image = (x.pixels() / gate.n()) as u32;
    let params = Params { pixels: x.pixels() as u32, quads: quads as u32, image, mean: mean.into() };
    Dispatch::new(&FORWARD, params, linear_groups(x.pixels().div_ceil(TILE) * quads))
}

fn reference(args: Args<'_>) {
    let (p, [x, gate, mean, z]) = args.unpack::<Params, 4>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let (at, row) = (pixel * channels + c, pixel / p.image as usize * channels + c);
            let share = if p.mean != 0 { mean[row] / p.image as f32 } else { 0.0 };
            z[at] = x[at] * gate[row] + share;
        }
    }
}
