//! Mean and biased variance of a batch, or of each part of it, channel by channel.
//!
//! A domain is what moments are taken over: all pixels, or those of some consecutive samples. Chunks of a domain's
//! pixels are reduced apart and then merged (Chan, Golub & LeVeque, 1979). A chunk takes two passes, and what its
//! differences from the rounded mean fail to cancel corrects both moments (the same, 1983):
//!
//! ```text
//! μₖ  = Σx/nₖ,         then μₖ += Σ(x−μₖ)/nₖ
//! M2ₖ = Σ(x−μₖ)² − (Σ(x−μₖ))²/nₖ
//! μ   = Σ nₖμₖ/M        v = (Σ M2ₖ + Σ nₖ(μₖ−μ)²)/M
//! ```
//!
//! Never E\[x²\] − E\[x\]², which cancels where the mean is large.

use super::chunks::{self, Chunks};
use super::conv2d::Variant;
use super::{Args, Dispatch, Kernel, LINEAR, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        /// Pixels of a domain.
        domain: u32,
        domains: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
    }
}

/// For each chunk a row of means and a row of sums of squared differences: the first chunk of every domain, then the
/// second of every domain, and so on.
pub static PARTIAL: Kernel = Kernel {
    name: "batch_norm_stats",
    source: shader!("batch_norm_stats", "reduce", "moments", "index", "nan"),
    entry: "batch_norm_stats",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference: partial_reference,
};

/// The chunks' moments merged: for each domain a row of means and a row of biased variances.
pub static MERGE: Kernel = Kernel {
    name: "batch_norm_stats_merge",
    source: shader!("batch_norm_stats_merge", "reduce", "moments", "index"),
    entry: "batch_norm_stats_merge",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("partials"), write("moments")],
    overrides: &[],
    subgroups: false,
    reference: merge_reference,
};

/// Words of the buffer between [`partial`] and [`merge`].
pub fn partials_len(variant: Variant, x: Shape, domains: usize) -> usize {
    params(variant, x, domains).chunks as usize * domains * 2 * x.stored_c()
}

/// Reduces the chunks of a tensor of shape `x`, whose images are `domains` equal parts.
pub fn partial(variant: Variant, x: Shape, domains: usize) -> Dispatch {
    let params = params(variant, x, domains);
    chunks::reduction(variant, &PARTIAL, params, params.chunks as usize * domains, x.quads())
}

/// Merges the chunks of a tensor of shape `x`.
pub fn merge(variant: Variant, x: Shape, domains: usize) -> Dispatch {
    chunks::reduction(variant, &MERGE, params(variant, x, domains), domains, x.quads())
}

fn params(variant: Variant, x: Shape, domains: usize) -> Params {
    let domain = x.pixels() / domains;
    let chunks = Chunks::for_variant(variant, domain, domains, x.quads());
    Params {
        domain: domain as u32,
        domains: domains as u32,
        quads: (x.quads()) as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
    }
}

fn partial_reference(args: Args<'_>) {
    let (p, [x, partials]) = args.unpack::<Params, 2>();
    let channels = p.quads as usize * 4;
    for partial in 0..(p.chunks * p.domains) as usize {
        let pixels = chunks::of_domain(partial, p.chunk, p.domain, p.domains);
        let count = pixels.len() as f32;
        for c in 0..channels {
            let offset = x[pixels.start * channels + c];
            let mut sum = 0.0;
            for pixel in pixels.clone() {
                sum += x[pixel * channels + c] - offset;
            }
            let mean = offset + sum / count;
            let (mut rest, mut squares) = (0.0, 0.0);
            for pixel in pixels.clone() {
                let difference = x[pixel * channels + c] - mean;
                rest += difference;
                squares += difference * difference;
            }
            partials[partial * 2 * channels + c] = mean + rest / count;
            let corrected: f32 = squares - rest * rest / count;
            // `max` would drop a NaN.
            partials[(partial * 2 + 1) * channels + c] = if corrected < 0.0 { 0.0 } else { corrected };
        }
    }
}

fn merge_reference(args: Args<'_>) {
    let (p, [partials, moments]) = args.unpack::<Params, 2>();
    let channels = p.quads as usize * 4;
    let pixels_of = |chunk| chunks::range(chunk, p.chunk, p.domain).len() as f32;
    for domain in 0..p.domains as usize {
        for c in 0..channels {
            let row = |chunk| (chunk * p.domains as usize + domain) * 2;
            let offset = partials[row(0) * channels + c];
            let mut sum = 0.0;
            for chunk in 0..p.chunks as usize {
                sum += (partials[row(chunk) * channels + c] - offset) * pixels_of(chunk);
            }
            let mean = offset + sum / p.domain as f32;
            let mut squares = 0.0;
            for chunk in 0..p.chunks as usize {
                let difference = partials[row(chunk) * channels + c] - mean;
                squares += partials[(row(chunk) + 1) * channels + c] + difference * difference * pixels_of(chunk);
            }
            moments[domain * 2 * channels + c] = mean;
            moments[(domain * 2 + 1) * channels + c] = squares / p.domain as f32;
        }
    }
}
