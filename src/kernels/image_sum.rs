//! Sums over the pixels of each image: the squeeze of squeeze-and-excitation, and the gradient of its gate.

use super::chunks::{self, Chunks};
use super::conv2d::Variant;
use super::{Args, Dispatch, Kernel, LINEAR, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        images: u32,
        /// Of an image.
        pixels: u32,
        quads: u32,
        chunk: u32,
        chunks: u32,
        product: u32,
        factor: f32,
    }
}

/// For each chunk of pixels a row an image of Σ x or Σ x·y, times a factor: the first chunk of every image, then the
/// second of every image, and so on.
pub static PARTIAL: Kernel = Kernel {
    name: "image_sum",
    source: shader!("image_sum", "reduce", "index"),
    entry: "image_sum",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), read("y"), write("partials")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Words of one partial: a row an image.
pub fn partials_len(x: Shape) -> usize {
    x.n() * x.stored_c()
}

/// How many partials [`mean`] and [`products`] leave, for [`super::sum_partials`] to add up.
pub fn partials_count(variant: Variant, x: Shape) -> usize {
    Chunks::for_variant(variant, x.pixels() / x.n(), x.n(), x.quads()).count
}

/// The mean over the pixels of each image of a tensor of shape `x`.
pub fn mean(variant: Variant, x: Shape) -> Dispatch {
    partial(variant, x, false, 1.0 / (x.pixels() / x.n()) as f32)
}

/// Σ x·y over the pixels of each image, for two tensors of shape `x`.
pub fn products(variant: Variant, x: Shape) -> Dispatch {
    partial(variant, x, true, 1.0)
}

fn partial(variant: Variant, x: Shape, product: bool, factor: f32) -> Dispatch {
    let pixels = x.pixels() / x.n();
    let chunks = Chunks::for_variant(variant, pixels, x.n(), x.quads());
    let quads = x.quads();
    let params = Params {
        images: x.n() as u32,
        pixels: pixels as u32,
        quads: quads as u32,
        chunk: chunks.rows as u32,
        chunks: chunks.count as u32,
        product: product.into(),
        factor,
    };
    chunks::reduction(variant, &PARTIAL, params, x.n() * chunks.count, quads)
}

fn reference(args: Args<'_>) {
    let (p, [x, y, partials]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    for partial in 0..(p.chunks * p.images) as usize {
        for c in 0..channels {
            let mut sum = 0.0;
            for pixel in chunks::of_domain(partial, p.chunk, p.pixels, p.images) {
                let at = pixel * channels + c;
                sum += if p.product != 0 { x[at] * y[at] } else { x[at] };
            }
            partials[partial * channels + c] = sum * p.factor;
        }
    }
}
