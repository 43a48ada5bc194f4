//! Layer norm over the channels of each pixel (Ba, Kiros & Hinton 2016), and its gradients.

use super::chunks::{self, Chunks};
use super::conv2d::Variant;
use super::{Args, Dispatch, Kernel, LINEAR, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        /// Without the padding.
        channels: u32,
        eps: f32,
        /// Whether the moments are wanted.
        keep: u32,
    }
}

params! {
    pub struct GradParams {
        pixels: u32,
        quads: u32,
        /// Without the padding.
        channels: u32,
    }
}

params! {
    pub struct ReduceParams {
        pixels: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
    }
}

/// `z = γ(x − μ)/√(v + ε) + β`, with μ and the biased variance v of each pixel's channels, and for a backward pass μ and
/// 1/√(v + ε).
pub static FORWARD: Kernel = Kernel {
    name: "layer_norm",
    source: shader!("layer_norm", "reduce", "index"),
    entry: "layer_norm",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), read("affine"), write("z"), write("moments")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// `dx = r(g − mean(g) − x̂·mean(g·x̂))` with g = dy·γ, x̂ = (x − μ)r and the means over the channels of a pixel.
pub static GRAD: Kernel = Kernel {
    name: "layer_norm_grad",
    source: shader!("layer_norm_grad", "reduce", "index"),
    entry: "layer_norm_grad",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("dy"), read("x"), read("affine"), read("moments"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// For each chunk of pixels a row of Σ dy·x̂ and one of Σ dy: the shares of γ's and β's gradients.
pub static REDUCE: Kernel = Kernel {
    name: "layer_norm_grad_reduce",
    source: shader!("layer_norm_grad_reduce", "reduce", "index"),
    entry: "layer_norm_grad_reduce",
    workgroup: [LINEAR, 1, 1],
    params: ReduceParams::FIELDS,
    bindings: &[read("dy"), read("x"), read("moments"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: reduce_reference,
};

/// Normalises a tensor of shape `x`.
pub fn forward(variant: Variant, x: Shape, eps: f32, keep: bool) -> Dispatch {
    let (pixels, quads, channels) = (x.pixels() as u32, x.quads() as u32, x.c() as u32);
    chunks::rows(variant, &FORWARD, Params { pixels, quads, channels, eps, keep: keep.into() }, x.pixels())
}

/// The gradient of a tensor of shape `x`.
pub fn grad(variant: Variant, x: Shape) -> Dispatch {
    let params = GradParams { pixels: x.pixels() as u32, quads: x.quads() as u32, channels: x.c() as u32 };
    chunks::rows(variant, &GRAD, params, x.pixels())
}

/// How many partials [`reduce`] leaves, for [`super::sum_partials`] to add up.
pub fn reduce_partials_count(variant: Variant, x: Shape) -> usize {
    Chunks::for_variant(variant, x.pixels(), 1, x.quads()).count
}

/// The gradients of γ and β, two rows for each chunk of a tensor of shape `x`.
pub fn reduce(variant: Variant, x: Shape) -> Dispatch {
    let chunks = Chunks::for_variant(variant, x.pixels(), 1, x.quads());
    let params = ReduceParams {
        pixels: x.pixels() as u32,
        quads: x.quads() as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
    };
    chunks::reduction(variant, &REDUCE, params, chunks.count, x.quads())
}

fn forward_reference(args: Args<'_>) {
    let (p, [x, affine, z, moments]) = args.unpack::<Params, 4>();
    let (stored, channels) = (p.quads as usize * 4, p.channels as usize);
    for pixel in 0..p.pixels as usize {
        let values = &x[pixel * stored..][..channels];
        let mean = values.iter().sum::<f32>() / channels as f32;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / channels as f32;
        let r = 1.0 / (variance + p.eps).sqrt();
        for c in 0..stored {
            let normalised = affine[c] * ((x[pixel * stored + c] - mean) * r) + affine[stored + c];
            z[pixel * stored + c] = if c < channels { normalised } else { 0.0 };
        }
        if p.keep != 0 {
            moments[2 * pixel..][..2].copy_from_slice(&[mean, r]);
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [dy, x, affine, moments, x_grad]) = args.unpack::<GradParams, 5>();
    let (stored, channels) = (p.quads as usize * 4, p.channels as usize);
    for pixel in 0..p.pixels as usize {
        let [mean, r] = [moments[2 * pixel], moments[2 * pixel + 1]];
        let at = |c: usize| pixel * stored + c;
        let g = |c: usize| dy[at(c)] * affine[c];
        let normalised = |c: usize| (x[at(c)] - mean) * r;
        let sum = (0..channels).map(g).sum::<f32>() / channels as f32;
        let products = (0..channels).map(|c| g(c) * normalised(c)).sum::<f32>() / channels as f32;
        for c in 0..stored {
            let gradient = r * (g(c) - sum - normalised(c) * products);
            x_grad[at(c)] = if c < channels { gradient } else { 0.0 };
        }
    }
}

fn reduce_reference(args: Args<'_>) {
    let (p, [dy, x, moments, partials]) = args.unpack::<ReduceParams, 4>();
    let stored = p.quads as usize * 4;
    for chunk in 0..p.chunks as usize {
        for c in 0..stored {
            let (mut products, mut sum) = (0.0, 0.0);
            for pixel in chunks::range(chunk, p.chunk, p.pixels) {
                let at = pixel * stored + c;
                products += dy[at] * ((x[at] - moments[2 * pixel]) * moments[2 * pixel + 1]);
                sum += dy[at];
            }
            partials[2 * chunk * stored + c] = products;
            partials[(2 * chunk + 1) * stored + c] = sum;
        }
    }
}
