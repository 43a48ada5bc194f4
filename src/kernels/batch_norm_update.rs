//! The running moments' update, once an optimiser step, in place.
//!
//! `running = keep·running + (1 − keep)·batch` with a fixed keep (PyTorch's momentum is 1 − keep), or with
//! keep = n/(n + 1) on the update after the n-th, which makes the mean of all batches.
//!
//! `batch` is the plain mean of the moments of the step's micro-batches, and of the ghost batches of each. So a step is
//! one update however it is cut, and what is stored is the variance that the layer normalised by, without what lies
//! between the parts' means. Hoffer, Hubara & Soudry (2017) instead update once for each ghost batch, in their order.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::pad4;

params! {
    pub struct Params {
        quads: u32,
        keep: f32,
        cumulative: u32,
        mean_factor: f32,
        var_factor: f32,
    }
}

/// Moves the rows mean and variance, and adds 1 to the row of counts.
pub static UPDATE: Kernel = Kernel {
    name: "batch_norm_update",
    source: shader!("batch_norm_update", "index"),
    entry: "batch_norm_update",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("batch"), write("running")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Updates the moments of `c` channels from the sum of `parts` sets of moments, those of a step's micro-batches and
/// their domains, that each were taken over `count` values per channel. A `keep` of `None` weighs all updates alike;
/// `unbiased` stores the variance times count/(count − 1).
pub fn update(c: usize, keep: Option<f32>, unbiased: bool, count: usize, parts: usize) -> Dispatch {
    let quads = pad4(c) / 4;
    // One value has no unbiased variance; its biased one, 0, stays.
    let correction = if unbiased { count as f64 / (count.max(2) - 1) as f64 } else { 1.0 };
    let params = Params {
        quads: quads as u32,
        keep: keep.unwrap_or(0.0),
        cumulative: keep.is_none().into(),
        mean_factor: (1.0 / parts as f64) as f32,
        var_factor: (correction / parts as f64) as f32,
    };
    Dispatch::new(&UPDATE, params, linear_groups(quads))
}

fn reference(args: Args<'_>) {
    let (p, [batch, running]) = args.unpack::<Params, 2>();
    let channels = p.quads as usize * 4;
    for c in 0..channels {
        let (mean, var, updates) = (c, channels + c, 2 * channels + c);
        let count = running[updates] + 1.0;
        let keep = if p.cumulative != 0 { 1.0 - 1.0 / count } else { p.keep };
        running[mean] = keep * running[mean] + (1.0 - keep) * (batch[mean] * p.mean_factor);
        running[var] = keep * running[var] + (1.0 - keep) * (batch[var] * p.var_factor);
        running[updates] = count;
    }
}
