//! Images from bytes to normalised values.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        mean_r: f32,
        mean_g: f32,
        mean_b: f32,
        std_r: f32,
        std_g: f32,
        std_b: f32,
        bgr: u32,
    }
}

/// `x = (byte/255 − mean)/std` from words of red, green, blue (red lowest) and an unused byte, in that order or
/// blue first; the fourth channel is 0.
pub static FORWARD: Kernel = Kernel {
    name: "input_normalize",
    source: shader!("input_normalize", "index"),
    entry: "input_normalize",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("pixels"), write("x")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Normalises images of `shape`, which has three channels. `mean` and `std` are of red, green and blue.
pub fn forward(shape: Shape, mean: [f32; 3], std: [f32; 3], bgr: bool) -> Dispatch {
    let params = Params {
        pixels: shape.pixels() as u32,
        mean_r: mean[0],
        mean_g: mean[1],
        mean_b: mean[2],
        std_r: std[0],
        std_g: std[1],
        std_b: std[2],
        bgr: u32::from(bgr),
    };
    Dispatch::new(&FORWARD, params, linear_groups(shape.pixels()))
}

fn reference(args: Args<'_>) {
    let (p, [pixels, x]) = args.unpack::<Params, 2>();
    let channels = [(p.mean_r, p.std_r), (p.mean_g, p.std_g), (p.mean_b, p.std_b)];
    for (pixel, x) in x.chunks_exact_mut(4).take(p.pixels as usize).enumerate() {
        let bytes = pixels[pixel].to_bits().to_le_bytes();
        for (c, (mean, std)) in channels.into_iter().enumerate() {
            let channel = if p.bgr == 0 { c } else { 2 - c };
            x[channel] = (f32::from(bytes[c]) / 255.0 - mean) / std;
        }
        x[3] = 0.0;
    }
}
