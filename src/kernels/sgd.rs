//! Stochastic gradient descent with momentum, as PyTorch defines it.
//!
//! With gradient g and velocity u, which is 0 at first (Sutskever et al., 2013):
//!
//! ```text
//! p ← p·(1 − lr·λ)      decoupled decay, or else
//! g ← g + λ·p           L2 decay
//! u ← momentum·u + g
//! p ← p − lr·u          or, with Nesterov, p − lr·(g + momentum·u)
//! ```

use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, linear_groups, params, read, shader, write};
use std::ops::Range;

/// The options of one parameter.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// Multiplies the step's learning rate.
    pub lr: f32,
    /// With 0, the momentum buffer is neither read nor written.
    pub momentum: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
    pub decoupled: bool,
}

params! {
    pub struct Params {
        first: u32,
        quads: u32,
        lr: f32,
        momentum: f32,
        nesterov: u32,
        weight_decay: f32,
        decoupled: u32,
    }
}

/// One step of a parameter and its velocity, in place.
pub static STEP: Kernel = Kernel {
    name: "sgd_step",
    source: shader!("sgd_step", "index"),
    entry: "sgd_step",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("grad"), read("step"), write("param"), write("momentum")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Changes the words of a parameter that `range` names: both ends multiples of four.
pub fn step(range: Range<usize>, options: Options) -> Dispatch {
    let quads = range.len() / 4;
    let params = Params {
        first: (range.start / 4) as u32,
        quads: quads as u32,
        lr: options.lr,
        momentum: options.momentum,
        nesterov: options.nesterov.into(),
        weight_decay: options.weight_decay,
        decoupled: options.decoupled.into(),
    };
    Dispatch::new(&STEP, params, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [grad, step, param, momentum]) = args.unpack::<Params, 4>();
    let lr = StepScalars::read(step).lr * p.lr;
    let start = p.first as usize * 4;
    for i in start..start + p.quads as usize * 4 {
        let mut value = param[i];
        let mut change = grad[i];
        if p.decoupled != 0 {
            value *= 1.0 - lr * p.weight_decay;
        } else {
            change += p.weight_decay * value;
        }
        if p.momentum != 0.0 {
            let velocity = p.momentum * momentum[i] + change;
            momentum[i] = velocity;
            change = if p.nesterov != 0 { change + p.momentum * velocity } else { velocity };
        }
        if lr != 0.0 {
            param[i] = value - lr * change;
        }
    }
}
