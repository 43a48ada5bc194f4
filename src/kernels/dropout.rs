//! Dropout (Srivastava et al. 2014) and stochastic depth (Huang et al. 2016), with the residual addition that follows.
//!
//! What is dropped is a function of the run's seed, the forward pass, the layer and the place: the same on every device,
//! and never stored. The gradient is the same operation.

use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, TILE, linear_groups, params, read, shader, write};
use crate::rng::philox;
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        /// Pixels of an image.
        image: u32,
        /// Tells the layers' random numbers apart.
        stream: u32,
        /// Of 2³² equally likely numbers those below it drop a value.
        threshold: u32,
        scale: f32,
        whole: u32,
        residual: u32,
    }
}

/// `z = x·kept/(1 − rate) + residual`.
pub static FORWARD: Kernel = Kernel {
    name: "dropout",
    source: shader!("dropout", "index", "philox"),
    entry: "dropout",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), read("step"), read("residual"), write("z")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Drops a share `rate`, in `[0, 1)`, of the values of a tensor of shape `x`, or of its images as a whole. The words
/// are numbered as they are stored, so what is dropped depends on the shape.
pub fn forward(x: Shape, rate: f32, whole: bool, stream: u32, residual: bool) -> Dispatch {
    let quads = x.quads();
    let params = Params {
        pixels: x.pixels() as u32,
        quads: quads as u32,
        image: (x.pixels() / x.n()) as u32,
        stream,
        threshold: (f64::from(rate) * 2f64.powi(32)) as u32,
        scale: 1.0 / (1.0 - rate),
        whole: whole.into(),
        residual: residual.into(),
    };
    Dispatch::new(&FORWARD, params, linear_groups(x.pixels().div_ceil(TILE) * quads))
}

fn reference(args: Args<'_>) {
    let (p, [x, step, residual, z]) = args.unpack::<Params, 4>();
    let StepScalars { draw, seed, .. } = StepScalars::read(step);
    for at in 0..(p.pixels * p.quads) as usize {
        let pixel = at as u32 / p.quads;
        let bits = match p.whole {
            0 => philox([at as u32, draw, p.stream, 0], seed),
            _ => [philox([pixel / p.image, draw, p.stream, 0], seed)[0]; 4],
        };
        for (lane, bits) in bits.into_iter().enumerate() {
            let i = at * 4 + lane;
            let y = if bits < p.threshold { 0.0 } else { x[i] * p.scale };
            z[i] = if p.residual != 0 { y + residual[i] } else { y };
        }
    }
}
