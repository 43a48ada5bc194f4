//! A batch norm under running moments, folded into the convolution before it, and the gradients through the folding.
//!
//! With weights w, r = 1/√(v + ε) and the output channel's γ, β and μ:
//!
//! ```text
//! folded = w·γr        folded_bias = β + (bias − μ)·γr
//! dw = d_folded·γr     dβ = d_folded_bias     dγ = r(Σ w·d_folded − μ·d_folded_bias)
//! ```
//!
//! The last is Σ g·x̂ over the pixels without a look at them: the convolution's output is x = Σ w·input and
//! d_folded = Σ g·input, so Σ g·x over the pixels equals Σ w·d_folded over the weights. It holds for a convolution
//! without a bias of its own.

use super::chunks::{self, Chunks};
use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        rows: u32,
        quads: u32,
        eps: f32,
        bias: u32,
    }
}

params! {
    pub struct WeightGradParams {
        rows: u32,
        quads: u32,
        eps: f32,
    }
}

params! {
    pub struct AffineGradParams {
        rows: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
    }
}

params! {
    pub struct AffineGradMergeParams {
        quads: u32,
        chunks: u32,
        eps: f32,
    }
}

/// The folded weights and bias.
pub static FORWARD: Kernel = Kernel {
    name: "fold_batch_norm",
    source: shader!("fold_batch_norm", "index"),
    entry: "fold_batch_norm",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("weight"), read("moments"), read("affine"), read("bias"), write("folded"), write("folded_bias")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// The gradient of the weights from that of the folded ones.
pub static WEIGHT_GRAD: Kernel = Kernel {
    name: "fold_weight_grad",
    source: shader!("fold_weight_grad", "index"),
    entry: "fold_weight_grad",
    workgroup: [LINEAR, 1, 1],
    params: WeightGradParams::FIELDS,
    bindings: &[read("d_folded"), read("moments"), read("affine"), write("dw")],
    overrides: &[],
    subgroups: false,
    reference: weight_grad_reference,
};

/// For each chunk of weight rows a row of Σ w·d_folded.
pub static AFFINE_GRAD: Kernel = Kernel {
    name: "fold_affine_grad",
    source: shader!("fold_affine_grad", "index"),
    entry: "fold_affine_grad",
    workgroup: [LINEAR, 1, 1],
    params: AffineGradParams::FIELDS,
    bindings: &[read("weight"), read("d_folded"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: affine_grad_reference,
};

/// The gradients of gamma and beta, two rows.
pub static AFFINE_GRAD_MERGE: Kernel = Kernel {
    name: "fold_affine_grad_merge",
    source: shader!("fold_affine_grad_merge", "index"),
    entry: "fold_affine_grad_merge",
    workgroup: [LINEAR, 1, 1],
    params: AffineGradMergeParams::FIELDS,
    bindings: &[read("partials"), read("d_folded_bias"), read("moments"), write("sums")],
    overrides: &[],
    subgroups: false,
    reference: affine_grad_merge_reference,
};

/// Folds into weights of shape `weight`: `[KH, KW, Cin, Cout]`, Cin padded to four.
pub fn forward(weight: Shape, eps: f32, bias: bool) -> Dispatch {
    let (rows, quads) = (weight.pixels(), weight.quads());
    let params = Params { rows: rows as u32, quads: quads as u32, eps, bias: bias.into() };
    Dispatch::new(&FORWARD, params, linear_groups(rows.div_ceil(TILE) * quads))
}

/// The gradient of weights of shape `weight`.
pub fn weight_grad(weight: Shape, eps: f32) -> Dispatch {
    let (rows, quads) = (weight.pixels(), weight.quads());
    let params = WeightGradParams { rows: rows as u32, quads: quads as u32, eps };
    Dispatch::new(&WEIGHT_GRAD, params, linear_groups(rows.div_ceil(TILE) * quads))
}

/// Words of the buffer between [`affine_grad`] and [`affine_grad_merge`].
pub fn affine_partials_len(weight: Shape) -> usize {
    Chunks::of(weight.pixels()).count * weight.stored_c()
}

/// Reduces the chunks of weights of shape `weight` and of their folded gradient.
pub fn affine_grad(weight: Shape) -> Dispatch {
    let chunks = Chunks::of(weight.pixels());
    let quads = weight.quads();
    let params = AffineGradParams {
        rows: weight.pixels() as u32,
        quads: quads as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
    };
    Dispatch::new(&AFFINE_GRAD, params, linear_groups(chunks.count * quads))
}

/// Merges the chunks of weights of shape `weight`.
pub fn affine_grad_merge(weight: Shape, eps: f32) -> Dispatch {
    let quads = weight.quads();
    let chunks = Chunks::of(weight.pixels()).count as u32;
    let params = AffineGradMergeParams { quads: quads as u32, chunks, eps };
    Dispatch::new(&AFFINE_GRAD_MERGE, params, linear_groups(quads))
}

fn forward_reference(args: Args<'_>) {
    let (p, [weight, moments, affine, bias, folded, folded_bias]) = args.unpack::<Params, 6>();
    let channels = p.quads as usize * 4;
    let (mean, var) = moments.split_at(channels);
    let (gamma, beta) = affine.split_at(channels);
    for c in 0..channels {
        let scale = gamma[c] * (1.0 / (var[c] + p.eps).sqrt());
        for row in 0..p.rows as usize {
            folded[row * channels + c] = weight[row * channels + c] * scale;
        }
        let bias = if p.bias != 0 { bias[c] } else { 0.0 };
        folded_bias[c] = beta[c] + (bias - mean[c]) * scale;
    }
}

fn weight_grad_reference(args: Args<'_>) {
    let (p, [d_folded, moments, affine, dw]) = args.unpack::<WeightGradParams, 4>();
    let channels = p.quads as usize * 4;
    for c in 0..channels {
        let scale = affine[c] * (1.0 / (moments[channels + c] + p.eps).sqrt());
        for row in 0..p.rows as usize {
            dw[row * channels + c] = d_folded[row * channels + c] * scale;
        }
    }
}

fn affine_grad_reference(args: Args<'_>) {
    let (p, [weight, d_folded, partials]) = args.unpack::<AffineGradParams, 3>();
    let channels = p.quads as usize * 4;
    for chunk in 0..p.chunks as usize {
        for c in 0..channels {
            partials[chunk * channels + c] = chunks::range(chunk, p.chunk, p.rows)
                .fold(0.0, |sum, row| sum + weight[row * channels + c] * d_folded[row * channels + c]);
        }
    }
}

fn affine_grad_merge_reference(args: Args<'_>) {
    let (p, [partials, d_folded_bias, moments, sums]) = args.unpack::<AffineGradMergeParams, 4>();
    let channels = p.quads as usize * 4;
    let (mean, var) = moments.split_at(channels);
    for c in 0..channels {
        let sum = (0..p.chunks as usize).fold(0.0, |sum, chunk| sum + partials[chunk * channels + c]);
        let r = 1.0 / (var[c] + p.eps).sqrt();
        sums[c] = r * (sum - mean[c] * d_folded_bias[c]);
        sums[channels + c] = d_folded_bias[c];
    }
}
