//! The second pass of every reduction that is a plain sum.

use super::conv2d::Variant;
use super::{Args, Dispatch, FILLING, Kernel, LINEAR, chunks, linear_groups, params, read, shader, write};

params! {
    pub struct Params {
        quads: u32,
        count: u32,
    }
}

/// `out[i] = Σₖ partials[k·len + i]`.
pub static FORWARD: Kernel = Kernel {
    name: "sum_partials",
    source: shader!("sum_partials", "reduce", "index"),
    entry: "sum_partials",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("partials"), write("out")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Adds up `count` partials of `len` words, a multiple of four.
pub fn forward(variant: Variant, len: usize, count: usize) -> Dispatch {
    let quads = len / 4;
    let params = Params { quads: quads as u32, count: count as u32 };
    // Where there are sums enough to fill the device, lanes that share one have nothing to win.
    if count < 8 || quads >= FILLING {
        return Dispatch::new(&FORWARD, params, linear_groups(quads));
    }
    chunks::reduction(variant, &FORWARD, params, 1, quads)
}

fn reference(args: Args<'_>) {
    let (p, [partials, out]) = args.unpack::<Params, 2>();
    let len = p.quads as usize * 4;
    for i in 0..len {
        out[i] = (0..p.count as usize).fold(0.0, |sum, k| sum + partials[k * len + i]);
    }
}
