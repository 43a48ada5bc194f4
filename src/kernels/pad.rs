//! A border of zeros around images, and its gradient, which is the image without it.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        /// Of z.
        pixels: u32,
        quads: u32,
        in_h: i32,
        in_w: i32,
        out_h: i32,
        out_w: i32,
        top: i32,
        left: i32,
    }
}

/// Pixel (y, x) of z is pixel (y − top, x − left) of x, or 0 where x has none.
pub static FORWARD: Kernel = Kernel {
    name: "pad",
    source: shader!("pad", "index"),
    entry: "pad",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("z")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Shifts images of shape `x` down and to the right by `[top, left]` pixels, or up and to the left by negative ones, into images
/// of shape `z`.
pub fn forward(x: Shape, z: Shape, [top, left]: [i32; 2]) -> Dispatch {
    let params = Params {
        pixels: z.pixels() as u32,
        quads: z.quads() as u32,
        in_h: x.h() as i32,
        in_w: x.w() as i32,
        out_h: z.h() as i32,
        out_w: z.w() as i32,
        top,
        left,
    };
    Dispatch::new(&FORWARD, params, linear_groups(z.pixels() * z.quads()))
}

fn reference(args: Args<'_>) {
    let (p, [x, z]) = args.unpack::<Params, 2>();
    let channels = p.quads as usize * 4;
    for pixel in 0..p.pixels as i32 {
        let (image, row, column) = (pixel / (p.out_h * p.out_w), pixel / p.out_w % p.out_h, pixel % p.out_w);
        let (iy, ix) = (row - p.top, column - p.left);
        let inside = (0..p.in_h).contains(&iy) && (0..p.in_w).contains(&ix);
        for c in 0..channels {
            let from = || x[((image * p.in_h + iy) * p.in_w + ix) as usize * channels + c];
            z[pixel as usize * channels + c] = if inside { from() } else { 0.0 };
        }
    }
}
