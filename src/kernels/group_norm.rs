//! Group norm (Wu & He 2018): moments over the pixels and the channels of a group, image by image. Batch norm's kernels do the
//! sums over pixels, each image being a domain; these join the channels of a group.

use super::{Args, Dispatch, Kernel, LINEAR, TILE, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct JoinParams {
        images: u32,
        quads: u32,
        /// Without the padding.
        channels: u32,
        groups: u32,
    }
}

params! {
    pub struct GradParams {
        pixels: u32,
        /// Pixels of an image.
        image: u32,
        quads: u32,
        eps: f32,
    }
}

/// Mean and biased variance of each group, in two rows an image, from those of each channel: the mean of the means, and the mean of
/// v + (μ − mean)².
pub static MOMENTS: Kernel = Kernel {
    name: "group_moments",
    source: shader!("group_moments", "index"),
    entry: "group_moments",
    workgroup: [LINEAR, 1, 1],
    params: JoinParams::FIELDS,
    bindings: &[read("x"), write("z")],
    overrides: &[],
    subgroups: false,
    reference: moments_reference,
};

/// For each channel of each row, of which there are two an image, the mean of γ·x over the channels of its group.
pub static SUMS: Kernel = Kernel {
    name: "group_sums",
    source: shader!("group_sums", "index"),
    entry: "group_sums",
    workgroup: [LINEAR, 1, 1],
    params: JoinParams::FIELDS,
    bindings: &[read("x"), read("affine"), write("z")],
    overrides: &[],
    subgroups: false,
    reference: sums_reference,
};

/// `dx = r(γ·dy − S₁/n − x̂·S₀/n)`, n being the pixels of an image and S what [`SUMS`] makes of Σ dy·x̂ and Σ dy.
pub static GRAD: Kernel = Kernel {
    name: "group_norm_grad",
    source: shader!("group_norm_grad", "index"),
    entry: "group_norm_grad",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("dy"), read("x"), read("moments"), read("affine"), read("sums"), write("x_grad")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// Joins the moments of the channels of a tensor of shape `x`.
pub fn moments(x: Shape, groups: usize) -> Dispatch {
    Dispatch::new(&MOMENTS, join_params(x, groups), linear_groups(x.n() * x.quads()))
}

/// Joins the sums of the channels of a tensor of shape `x`.
pub fn sums(x: Shape, groups: usize) -> Dispatch {
    Dispatch::new(&SUMS, join_params(x, groups), linear_groups(2 * x.n() * x.quads()))
}

fn join_params(x: Shape, groups: usize) -> JoinParams {
    JoinParams { images: x.n() as u32, quads: x.quads() as u32, channels: x.c() as u32, groups: groups as u32 }
}

/// The gradient of a tensor of shape `x`.
pub fn grad(x: Shape, eps: f32) -> Dispatch {
    let (pixels, image) = (x.pixels() as u32, (x.pixels() / x.n()) as u32);
    let params = GradParams { pixels, image, quads: x.quads() as u32, eps };
    Dispatch::new(&GRAD, params, linear_groups(x.pixels().div_ceil(TILE) * x.quads()))
}

impl JoinParams {
    /// The channels of the group of a channel.
    fn group(&self, channel: usize) -> std::ops::Range<usize> {
        let each = (self.channels / self.groups) as usize;
        channel / each * each..(channel / each + 1) * each
    }
}

fn moments_reference(args: Args<'_>) {
    let (p, [x, z]) = args.unpack::<JoinParams, 2>();
    let stored = p.quads as usize * 4;
    for image in 0..p.images as usize {
        let (means, variances) = x[image * 2 * stored..][..2 * stored].split_at(stored);
        for c in 0..stored {
            let (mut mean, mut variance) = (0.0, 0.0);
            if c < p.channels as usize {
                let group = p.group(c);
                let each = group.len() as f32;
                mean = group.clone().map(|c| means[c]).sum::<f32>() / each;
                variance = group.map(|c| variances[c] + (means[c] - mean).powi(2)).sum::<f32>() / each;
            }
            z[image * 2 * stored + c] = mean;
            z[(image * 2 + 1) * stored + c] = variance;
        }
    }
}

fn sums_reference(args: Args<'_>) {
    let (p, [x, affine, z]) = args.unpack::<JoinParams, 3>();
    let stored = p.quads as usize * 4;
    for row in 0..2 * p.images as usize {
        for c in 0..stored {
            let of_group = || {
                let group = p.group(c);
                group.clone().map(|c| affine[c] * x[row * stored + c]).sum::<f32>() / group.len() as f32
            };
            z[row * stored + c] = if c < p.channels as usize { of_group() } else { 0.0 };
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [dy, x, moments, affine, sums, x_grad]) = args.unpack::<GradParams, 6>();
    let stored = p.quads as usize * 4;
    for pixel in 0..p.pixels as usize {
        let first = pixel / p.image as usize * 2 * stored;
        for c in 0..stored {
            let (at, n) = (pixel * stored + c, p.image as f32);
            let r = 1.0 / (moments[first + stored + c] + p.eps).sqrt();
            let normalised = (x[at] - moments[first + c]) * r;
            x_grad[at] = r * (affine[c] * dy[at] - sums[first + stored + c] / n - normalised * sums[first + c] / n);
        }
    }
}
