//! Batch norm under given moments, with the residual addition and the activation that follow it.
//!
//! `z = act(γ(x − μ)/√(v + ε) + β + residual)` (Ioffe & Szegedy, 2015). The moments are the batch's or the running
//! ones, or something between, one pair for each domain of the batch; ε must be greater than 0, or the padding
//! channels, whose variance is 0, would not stay 0.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, mask, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        /// Consecutive pixels that share their moments.
        domain: u32,
        quads: u32,
        eps: f32,
        act: u32,
        residual: u32,
        mask: u32,
    }
}

/// The normalised tensor, and the mask of what the activation sees when a backward pass wants it.
pub static FORWARD: Kernel = Kernel {
    name: "batch_norm_apply",
    source: shader!("batch_norm_apply", "act", "index"),
    entry: "batch_norm_apply",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), read("moments"), read("affine"), read("residual"), write("z"), write("mask")],
    overrides: &[("cut", 0.0)],
    subgroups: false,
    reference,
};

/// Normalises a tensor of shape `x`, each of `domains` equal parts of its images by moments of its own.
pub fn forward(x: Shape, domains: usize, eps: f32, act: Act, residual: bool, mask: bool) -> Dispatch {
    let quads = x.quads();
    let params = Params {
        pixels: x.pixels() as u32,
        domain: (x.pixels() / domains) as u32,
        quads: quads as u32,
        eps,
        act: act.code(),
        residual: residual.into(),
        mask: mask.into(),
    };
    let dispatch = Dispatch::new(&FORWARD, params, linear_groups(x.pixels().div_ceil(TILE) * quads));
    // To find a pixel's domain costs a tenth of the pass on a CPU driver.
    dispatch.activating(act).with(domains > 1, "cut")
}

fn reference(args: Args<'_>) {
    let (p, [x, moments, affine, residual, z, mask]) = args.unpack::<Params, 6>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    let (gamma, beta) = affine.split_at(channels);
    if p.mask != 0 {
        mask::clear(mask, p.pixels as usize, channels);
    }
    for pixel in 0..p.pixels as usize {
        let (mean, var) = moments[pixel / p.domain as usize * 2 * channels..].split_at(channels);
        for c in 0..channels {
            let at = pixel * channels + c;
            let scale = gamma[c] * (1.0 / (var[c] + p.eps).sqrt());
            let mut y = (x[at] - mean[c]) * scale + beta[c];
            if p.residual != 0 {
                y += residual[at];
            }
            if p.mask != 0 {
                mask::set(mask, channels, pixel, c, act.passes(y));
            }
            z[at] = act.apply(y);
        }
    }
}
