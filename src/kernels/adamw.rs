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

use super::segments::{self, Part, Table};
use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, params, read, shader, write};

/// The options of all parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// In `f64`, because the kernel needs `1 − β` as well: taken in `f32`, that is off by 10⁻⁵.
    pub beta1: f64,
    pub beta2: f64,
    /// Greater than 0.
    pub eps: f32,
}

params! {
    pub struct Params {
        segments: u32,
        beta1: f32,
        beta2: f32,
        one_minus_beta1: f32,
        one_minus_beta2: f32,
        eps: f32,
    }
}

/// One step of parameters and their two moments, in place.
pub static STEP: Kernel = Kernel {
    name: "adamw_step",
    source: shader!("adamw_step", "segments"),
    entry: "adamw_step",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("grad"), read("step"), read("segments"), write("param"), write("first"), write("second")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Changes the `parts`. The table is for the buffer `segments`.
pub fn step(parts: &[Part], options: Options) -> (Dispatch, Table) {
    let table = segments::of_parts(parts);
    let params = Params {
        segments: table.count(),
        beta1: options.beta1 as f32,
        beta2: options.beta2 as f32,
        one_minus_beta1: (1.0 - options.beta1) as f32,
        one_minus_beta2: (1.0 - options.beta2) as f32,
        eps: options.eps,
    };
    (Dispatch::new(&STEP, params, table.workgroups()), table)
}

fn reference(args: Args<'_>) {
    let (p, [grad, step, segments, param, first, second]) = args.unpack::<Params, 6>();
    let step = StepScalars::read(step);
    for (quads, [param_at, grad_at, first_at, second_at, lr, weight_decay]) in segments::entries(segments, p.segments) {
        let (lr, weight_decay) = (step.lr * f32::from_bits(lr), f32::from_bits(weight_decay));
        let [param_at, grad_at, first_at, second_at] =
            [param_at, grad_at, first_at, second_at].map(|at| at as usize * 4);
        for i in 0..quads * 4 {
            let g = grad[grad_at + i];
            let m = p.beta1 * first[first_at + i] + p.one_minus_beta1 * g;
            let v = p.beta2 * second[second_at + i] + p.one_minus_beta2 * g * g;
            first[first_at + i] = m;
            second[second_at + i] = v;
            if lr != 0.0 {
                let size = v.sqrt() / step.correction2.sqrt() + p.eps;
                let value = &mut param[param_at + i];
                *value = *value * (1.0 - lr * weight_decay) - lr / step.correction1 * (m / size);
            }
        }
    }
}
