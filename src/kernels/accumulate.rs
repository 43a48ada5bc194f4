//! Accumulation over the micro-batches of an optimiser step, in place.

use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, linear_groups, params, read, shader, write};

params! {
    pub struct Params {
        quads: u32,
    }
}

/// `state = value` on the first micro-batch of a window, `state + value` on the others.
pub static FORWARD: Kernel = Kernel {
    name: "accumulate",
    source: shader!("accumulate", "index"),
    entry: "accumulate",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("value"), read("step"), write("state")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Accumulates `words` values, a multiple of four.
pub fn forward(words: usize) -> Dispatch {
    let quads = words / 4;
    Dispatch::new(&FORWARD, Params { quads: quads as u32 }, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [value, step, state]) = args.unpack::<Params, 3>();
    let step = StepScalars::read(step);
    for i in 0..p.quads as usize * 4 {
        state[i] = if step.accumulate == 0.0 { value[i] } else { state[i] + value[i] };
    }
}
