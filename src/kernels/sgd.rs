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

use super::segments::{self, Part, Table};
use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, params, read, shader, write};

/// The options of all parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// With 0, the momentum buffer is neither read nor written.
    pub momentum: f32,
    pub nesterov: bool,
    pub decoupled: bool,
}

params! {
    pub struct Params {
        segments: u32,
        momentum: f32,
        nesterov: u32,
        decoupled: u32,
    }
}

/// One step of parameters and their velocities, in place.
pub static STEP: Kernel = Kernel {
    name: "sgd_step",
    source: shader!("sgd_step", "segments"),
    entry: "sgd_step",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("grad"), read("step"), read("segments"), write("param"), write("momentum")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Changes the `parts`, whose first moments are the velocities. The table is for the buffer `segments`.
pub fn step(parts: &[Part], options: Options) -> (Dispatch, Table) {
    let table = segments::of_parts(parts);
    let params = Params {
        segments: table.count(),
        momentum: options.momentum,
        nesterov: options.nesterov.into(),
        decoupled: options.decoupled.into(),
    };
    (Dispatch::new(&STEP, params, table.workgroups()), table)
}

fn reference(args: Args<'_>) {
    let (p, [grad, step, segments, param, momentum]) = args.unpack::<Params, 5>();
    for (quads, [param_at, grad_at, momentum_at, _, lr, weight_decay]) in segments::entries(segments, p.segments) {
        let (lr, weight_decay) = (StepScalars::read(step).lr * f32::from_bits(lr), f32::from_bits(weight_decay));
        let [param_at, grad_at, momentum_at] = [param_at, grad_at, momentum_at].map(|at| at as usize * 4);
        for i in 0..quads * 4 {
            let mut value = param[param_at + i];
            let mut change = grad[grad_at + i];
            if p.decoupled != 0 {
                value *= 1.0 - lr * weight_decay;
            } else {
                change += weight_decay * value;
            }
            if p.momentum != 0.0 {
                let velocity = p.momentum * momentum[momentum_at + i] + change;
                momentum[momentum_at + i] = velocity;
                change = if p.nesterov != 0 { change + p.momentum * velocity } else { velocity };
            }
            if lr != 0.0 {
                param[param_at + i] = value - lr * change;
            }
        }
    }
}
