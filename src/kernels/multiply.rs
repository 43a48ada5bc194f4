//! The product of two tensors, value by value.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        /// Of four values.
        quads: u32,
    }
}

/// `z = a·b`
pub static FORWARD: Kernel = Kernel {
    name: "multiply",
    source: shader!("multiply", "index"),
    entry: "multiply",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("a"), read("b"), write("z")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Multiplies two tensors of `shape`.
pub fn forward(shape: Shape) -> Dispatch {
    let quads = shape.stored_len() / 4;
    Dispatch::new(&FORWARD, Params { quads: quads as u32 }, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [a, b, z]) = args.unpack::<Params, 3>();
    for at in 0..p.quads as usize * 4 {
        z[at] = a[at] * b[at];
    }
}
