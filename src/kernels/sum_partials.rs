//! The second pass of every reduction that is a plain sum.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};

params! {
    pub struct Params {
        quads: u32,
        count: u32,
    }
}

/// `out[i] = Σₖ partials[k·len + i]`, in the order of k.
pub static FORWARD: Kernel = Kernel {
    name: "sum_partials",
    source: shader!("sum_partials", "index"),
    entry: "sum_partials",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("partials"), write("out")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Adds up `count` partials of `len` words, a multiple of four.
pub fn forward(len: usize, count: usize) -> Dispatch {
    let quads = len / 4;
    Dispatch::new(&FORWARD, Params { quads: quads as u32, count: count as u32 }, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [partials, out]) = args.unpack::<Params, 2>();
    let len = p.quads as usize * 4;
    for i in 0..len {
        out[i] = (0..p.count as usize).fold(0.0, |sum, k| sum + partials[k * len + i]);
    }
}
