//! Gradients of batch norm and of the activation behind it.
//!
//! With g = dz where the forward output was positive (dz everywhere without a mask), r = 1/√(v + ε), x̂ = (x − μ)·r
//! and M pixels (Ioffe & Szegedy, 2015):
//!
//! ```text
//! dγ = Σ g·x̂        dβ = Σ g
//! batch moments:     dx = γr(g − dβ/M − x̂·dγ/M)
//! running moments:   dx = γr·g
//! ```

use super::chunks::{self, Chunks};
use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, mask, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct ReduceParams {
        pixels: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
        eps: f32,
        mask: u32,
    }
}

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        eps: f32,
        mask: u32,
    }
}

/// For each chunk of pixels a row of Σ g·x̂ and a row of Σ g.
pub static REDUCE: Kernel = Kernel {
    name: "batch_norm_grad_reduce",
    source: shader!("batch_norm_grad_reduce", "index", "mask"),
    entry: "batch_norm_grad_reduce",
    workgroup: [LINEAR, 1, 1],
    params: ReduceParams::FIELDS,
    bindings: &[read("dz"), read("x"), read("moments"), read("mask"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: reduce_reference,
};

/// `dx` where the moments were taken over `x`.
pub static BATCH: Kernel = Kernel {
    name: "batch_norm_grad_batch",
    source: shader!("batch_norm_grad_batch", "index", "mask"),
    entry: "batch_norm_grad_batch",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("dz"), read("x"), read("moments"), read("affine"), read("sums"), read("mask"), write("dx")],
    overrides: &[],
    subgroups: false,
    reference: batch_reference,
};

/// `dx` where the moments do not depend on `x`.
pub static RUNNING: Kernel = Kernel {
    name: "batch_norm_grad_running",
    source: shader!("batch_norm_grad_running", "index", "mask"),
    entry: "batch_norm_grad_running",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("dz"), read("moments"), read("affine"), read("mask"), write("dx")],
    overrides: &[],
    subgroups: false,
    reference: running_reference,
};

/// Words of one of [`reduce`]'s partials: two rows.
pub fn reduce_partials_len(x: Shape) -> usize {
    2 * x.stored_c()
}

/// How many partials [`reduce`] leaves, for [`super::sum_partials`] to add up.
pub fn reduce_partials_count(x: Shape) -> usize {
    Chunks::of(x.pixels()).count
}

/// Reduces the chunks of a tensor of shape `x`.
pub fn reduce(x: Shape, eps: f32, mask: bool) -> Dispatch {
    let chunks = Chunks::of(x.pixels());
    let quads = x.stored_c() / 4;
    let params = ReduceParams {
        pixels: x.pixels() as u32,
        quads: quads as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
        eps,
        mask: mask.into(),
    };
    Dispatch::new(&REDUCE, params, linear_groups(chunks.count * quads))
}

/// The gradient of a tensor of shape `x` under its own moments. `sums` are the gradients of gamma and beta.
pub fn batch(x: Shape, eps: f32, mask: bool) -> Dispatch {
    apply(&BATCH, x, eps, mask)
}

/// The gradient of a tensor of shape `x` under given moments.
pub fn running(x: Shape, eps: f32, mask: bool) -> Dispatch {
    apply(&RUNNING, x, eps, mask)
}

fn apply(kernel: &'static Kernel, x: Shape, eps: f32, mask: bool) -> Dispatch {
    let quads = x.stored_c() / 4;
    let params = Params { pixels: x.pixels() as u32, quads: quads as u32, eps, mask: mask.into() };
    Dispatch::new(kernel, params, linear_groups(x.pixels().div_ceil(TILE) * quads))
}

fn reduce_reference(args: Args<'_>) {
    let (p, [dz, x, moments, mask, partials]) = args.unpack::<ReduceParams, 5>();
    let channels = p.quads as usize * 4;
    let (mean, var) = moments.split_at(channels);
    for chunk in 0..p.chunks as usize {
        for c in 0..channels {
            let (mut products, mut sum) = (0.0, 0.0);
            for pixel in chunks::range(chunk, p.chunk, p.pixels) {
                let at = pixel * channels + c;
                if p.mask == 0 || mask::get(mask, channels, pixel, c) {
                    products += dz[at] * (x[at] - mean[c]);
                    sum += dz[at];
                }
            }
            partials[chunk * 2 * channels + c] = products * (1.0 / (var[c] + p.eps).sqrt());
            partials[(chunk * 2 + 1) * channels + c] = sum;
        }
    }
}

fn batch_reference(args: Args<'_>) {
    let (p, [dz, x, moments, affine, sums, mask, dx]) = args.unpack::<Params, 7>();
    let channels = p.quads as usize * 4;
    let (mean, var) = moments.split_at(channels);
    let (d_gamma, d_beta) = sums.split_at(channels);
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            let r = 1.0 / (var[c] + p.eps).sqrt();
            let g = if p.mask == 0 || mask::get(mask, channels, pixel, c) { dz[at] } else { 0.0 };
            let (slope, offset) = (r * d_gamma[c] / p.pixels as f32, d_beta[c] / p.pixels as f32);
            dx[at] = affine[c] * r * (g - offset - (x[at] - mean[c]) * slope);
        }
    }
}

fn running_reference(args: Args<'_>) {
    let (p, [dz, moments, affine, mask, dx]) = args.unpack::<Params, 5>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels as usize {
        for c in 0..channels {
            let at = pixel * channels + c;
            let g = if p.mask == 0 || mask::get(mask, channels, pixel, c) { dz[at] } else { 0.0 };
            dx[at] = affine[c] * (1.0 / (moments[channels + c] + p.eps).sqrt()) * g;
        }
    }
}
