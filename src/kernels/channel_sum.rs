//! Sums over pixels: the gradient of a bias.

use super::chunks::{self, Chunks};
use super::conv2d::Variant;
use super::{Args, Dispatch, Kernel, LINEAR, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
    }
}

/// For each chunk of pixels a row of Σ dy.
pub static PARTIAL: Kernel = Kernel {
    name: "channel_sum",
    source: shader!("channel_sum", "reduce", "index"),
    entry: "channel_sum",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("dy"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Words of one partial: a row.
pub fn partials_len(dy: Shape) -> usize {
    dy.stored_c()
}

/// How many partials [`partial`] leaves, for [`super::sum_partials`] to add up.
pub fn partials_count(variant: Variant, dy: Shape) -> usize {
    Chunks::for_variant(variant, dy.pixels(), 1, dy.quads()).count
}

/// Reduces the chunks of a tensor of shape `dy`.
pub fn partial(variant: Variant, dy: Shape) -> Dispatch {
    let chunks = Chunks::for_variant(variant, dy.pixels(), 1, dy.quads());
    let quads = dy.quads();
    let params = Params {
        pixels: dy.pixels() as u32,
        quads: quads as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
    };
    chunks::reduction(variant, &PARTIAL, params, chunks.count, quads)
}

fn reference(args: Args<'_>) {
    let (p, [dy, partials]) = args.unpack::<Params, 2>();
    let channels = p.quads as usize * 4;
    for chunk in 0..p.chunks as usize {
        for c in 0..channels {
            partials[chunk * channels + c] =
                chunks::range(chunk, p.chunk, p.pixels).fold(0.0, |sum, pixel| sum + dy[pixel * channels + c]);
        }
    }
}
