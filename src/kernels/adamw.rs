//! AdamW: Adam with decoupled weight decay.
//!
//! With gradient g, step t, first and second moment m and v (Kingma & Ba, 2015; Loshchilov & Hutter, 2019), in the
//! order in which PyTorch does it:
//!
//! ```text
//! p ← p·(1 − lr·λ)
//! m ← β₁·m + (1−β₁)·g
//! v ← β₂·v + (1−β₂)·g²
//! p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)
//! ```

use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, linear_groups, params, read, shader, write};
use std::ops::Range;

/// The options of one parameter.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// Multiplies the step's learning rate.
    pub lr: f32,
    /// In `f64`, because the kernel needs `1 − β` as well: taken in `f32`, that is off by 10⁻⁵.
    pub beta1: f64,
    pub beta2: f64,
    /// Greater than 0.
    pub eps: f32,
    pub weight_decay: f32,
}

params! {
    pub struct Params {
        first: u32,
        quads: u32,
        lr: f32,
        beta1: f32,
        beta2: f32,
        one_minus_beta1: f32,
        one_minus_beta2: f32,
        eps: f32,
        weight_decay: f32,
    }
}

/// One step of a parameter and its two moments, in place.
pub static STEP: Kernel = Kernel {
    name: "adamw_step",
    source: shader!("adamw_step", "index"),
    entry: "adamw_step",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("grad"), read("step"), write("param"), write("first"), write("second")],
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
        beta1: options.beta1 as f32,
        beta2: options.beta2 as f32,
        one_minus_beta1: (1.0 - options.beta1) as f32,
        one_minus_beta2: (1.0 - options.beta2) as f32,
        eps: options.eps,
        weight_decay: options.weight_decay,
    };
    Dispatch::new(&STEP, params, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [grad, step, param, first, second]) = args.unpack::<Params, 5>();
    let step = StepScalars::read(step);
    let lr = step.lr * p.lr;
    let start = p.first as usize * 4;
    for i in start..start + p.quads as usize * 4 {
        let g = grad[i];
        let m = p.beta1 * first[i] + p.one_minus_beta1 * g;
        let v = p.beta2 * second[i] + p.one_minus_beta2 * g * g;
        first[i] = m;
        second[i] = v;
        if lr != 0.0 {
            let size = v.sqrt() / step.correction2.sqrt() + p.eps;
            param[i] = param[i] * (1.0 - lr * p.weight_decay) - lr / step.correction1 * (m / size);
        }
    }
}
