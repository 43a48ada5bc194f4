//! Gradients of batch norm and of the activation behind it.
//!
//! With g = dz·act'(y), by a mask or for a smooth activation by y = γx̂ + β computed anew, r = 1/√(v + ε), x̂ = (x − μ)·r
//! and M pixels in a domain (Ioffe & Szegedy, 2015):
//!
//! ```text
//! dγ = Σ g·x̂        dβ = Σ g
//! batch moments:     dx = γr(g − dβ/M − x̂·dγ/M)
//! running moments:   dx = γr·g
//! ```
//!
//! Sums are taken for each domain, what moments were taken over: dx is by the domain's own, and dγ and dβ are their
//! sums.

use super::chunks::{self, Chunks};
use super::conv2d::Variant;
use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, mask, params, read, shader, write};
use crate::act::Act;
use crate::tensor::Shape;

params! {
    pub struct ReduceParams {
        /// Pixels of a domain.
        domain: u32,
        domains: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
        eps: f32,
        act: u32,
    }
}

params! {
    pub struct BatchParams {
        pixels: u32,
        /// Pixels of a domain.
        domain: u32,
        quads: u32,
        eps: f32,
        act: u32,
    }
}

params! {
    pub struct RunningParams {
        pixels: u32,
        quads: u32,
        eps: f32,
        act: u32,
    }
}

/// For each chunk of pixels a row of Σ g·x̂ and a row of Σ g: the first chunk of every domain, then the second of every
/// domain, and so on.
pub static REDUCE: Kernel = Kernel {
    name: "batch_norm_grad_reduce",
    source: shader!("batch_norm_grad_reduce", "reduce", "act", "index", "mask"),
    entry: "batch_norm_grad_reduce",
    workgroup: [LINEAR, 1, 1],
    params: ReduceParams::FIELDS,
    bindings: &[read("dz"), read("x"), read("moments"), read("affine"), read("mask"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: reduce_reference,
};

/// `dx` where the moments were taken over `x`.
pub static BATCH: Kernel = Kernel {
    name: "batch_norm_grad_batch",
    source: shader!("batch_norm_grad_batch", "act", "index", "mask"),
    entry: "batch_norm_grad_batch",
    workgroup: [LINEAR, 1, 1],
    params: BatchParams::FIELDS,
    bindings: &[read("dz"), read("x"), read("moments"), read("affine"), read("sums"), read("mask"), write("x_grad")],
    overrides: &[("cut", 0.0)],
    subgroups: false,
    reference: batch_reference,
};

/// `dx` where the moments do not depend on `x`.
pub static RUNNING: Kernel = Kernel {
    name: "batch_norm_grad_running",
    source: shader!("batch_norm_grad_running", "act", "index", "mask"),
    entry: "batch_norm_grad_running",
    workgroup: [LINEAR, 1, 1],
    params: RunningParams::FIELDS,
    bindings: &[read("dz"), read("x"), read("moments"), read("affine"), read("mask"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: running_reference,
};

/// Words of one of [`reduce`]'s partials: two rows a domain.
pub fn reduce_partials_len(x: Shape, domains: usize) -> usize {
    domains * 2 * x.stored_c()
}

/// How many partials [`reduce`] leaves, for [`super::sum_partials`] to add up.
pub fn reduce_partials_count(variant: Variant, x: Shape, domains: usize) -> usize {
    Chunks::for_variant(variant, x.pixels() / domains, domains, x.quads()).count
}

/// Reduces the chunks of a tensor of shape `x`, whose images are `domains` equal parts.
pub fn reduce(variant: Variant, x: Shape, domains: usize, eps: f32, act: Act) -> Dispatch {
    let domain = x.pixels() / domains;
    let chunks = Chunks::for_variant(variant, domain, domains, x.quads());
    let quads = x.quads();
    let params = ReduceParams {
        domain: domain as u32,
        domains: domains as u32,
        quads: quads as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
        eps,
        act: act.code(),
    };
    chunks::reduction(variant, &REDUCE, params, domains * chunks.count, quads).activating(act)
}

/// The gradient of a tensor of shape `x`, with `act` behind its batch norm, under its domains' own moments. `sums` are what [`reduce`] gives.
pub fn batch(x: Shape, domains: usize, eps: f32, act: Act) -> Dispatch {
    let quads = x.quads();
    let params = BatchParams {
        pixels: x.pixels() as u32,
        domain: (x.pixels() / domains) as u32,
        quads: quads as u32,
        eps,
        act: act.code(),
    };
    let dispatch = Dispatch::new(&BATCH, params, linear_groups(x.pixels().div_ceil(TILE) * quads));
    dispatch.activating(act).with(domains > 1, "cut")
}

/// The gradient of a tensor of shape `x` under given moments.
pub fn running(x: Shape, eps: f32, act: Act) -> Dispatch {
    let quads = x.quads();
    let params = RunningParams { pixels: x.pixels() as u32, quads: quads as u32, eps, act: act.code() };
    Dispatch::new(&RUNNING, params, linear_groups(x.pixels().div_ceil(TILE) * quads)).activating(act)
}

fn reduce_reference(args: Args<'_>) {
    let (p, [dz, x, moments, affine, mask, partials]) = args.unpack::<ReduceParams, 6>();
    let act = Act::of_code(p.act);
    let channels = p.quads as usize * 4;
    for partial in 0..(p.chunks * p.domains) as usize {
        let domain = partial % p.domains as usize;
        let (mean, var) = moments[domain * 2 * channels..].split_at(channels);
        for c in 0..channels {
            let (mut products, mut sum) = (0.0, 0.0);
            for pixel in chunks::of_domain(partial, p.chunk, p.domain, p.domains) {
                let at = pixel * channels + c;
                let r = 1.0 / (var[c] + p.eps).sqrt();
                let y = || (x[at] - mean[c]) * (affine[c] * r) + affine[channels + c];
                let g = behind(act, dz[at], y, || mask::get(mask, channels, pixel, c));
                products += g * (x[at] - mean[c]);
                sum += g;
            }
            partials[partial * 2 * channels + c] = products * (1.0 / (var[c] + p.eps).sqrt());
            partials[(partial * 2 + 1) * channels + c] = sum;
        }
    }
}

fn batch_reference(args: Args<'_>) {
    let (p, [dz, x, moments, affine, sums, mask, x_grad]) = args.unpack::<BatchParams, 7>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    for pixel in 0..p.pixels as usize {
        let first = pixel / p.domain as usize * 2 * channels;
        let (mean, var) = moments[first..].split_at(channels);
        let (d_gamma, d_beta) = sums[first..].split_at(channels);
        for c in 0..channels {
            let at = pixel * channels + c;
            let r = 1.0 / (var[c] + p.eps).sqrt();
            let y = || (x[at] - mean[c]) * (affine[c] * r) + affine[channels + c];
            let g = behind(act, dz[at], y, || mask::get(mask, channels, pixel, c));
            let (slope, offset) = (r * d_gamma[c] / p.domain as f32, d_beta[c] / p.domain as f32);
            x_grad[at] = affine[c] * r * (g - offset - (x[at] - mean[c]) * slope);
        }
    }
}

fn running_reference(args: Args<'_>) {
    let (p, [dz, x, moments, affine, mask, x_grad]) = args.unpack::<RunningParams, 6>();
    let (channels, act) = (p.quads as usize * 4, Act::of_code(p.act));
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            let scale = affine[c] * (1.0 / (moments[channels + c] + p.eps).sqrt());
            let y = || (x[at] - moments[c]) * scale + affine[channels + c];
            x_grad[at] = scale * behind(act, dz[at], y, || mask::get(mask, channels, pixel, c));
        }
    }
}

/// The gradient in front of the activation: by the value `y` that it saw, or by its bit of the mask.
fn behind(act: Act, dz: f32, y: impl Fn() -> f32, bit: impl Fn() -> bool) -> f32 {
    match act {
        Act::Identity => dz,
        act if act.is_smooth() => dz * act.derivative(y()),
        _ if bit() => dz,
        _ => 0.0,
    }
}
