//! The running moments' update, once an optimiser step, in place.
//!
//! `running = keep·running + (1 − keep)·batch` with a fixed keep (PyTorch's momentum is 1 − keep), or with
//! keep = n/(n + 1) on the update after the n-th, which makes the mean of all batches.
//!
//! `batch` is the plain mean of the moments of the step's micro-batches, and of the ghost batches of each. So a step is
//! one update however it is cut, and what is stored is the variance that the layer normalised by, without what lies
//! between the parts' means. Hoffer, Hubara & Soudry (2017) instead update once for each ghost batch, in their order.

use super::segments::{self, Table};
use super::{Args, Dispatch, Kernel, LINEAR, params, read, shader, write};
use crate::tensor::pad4;

params! {
    pub struct Params {
        segments: u32,
    }
}

/// Moves the rows mean and variance, and adds 1 to the row of counts, of many layers.
pub static UPDATE: Kernel = Kernel {
    name: "batch_norm_update",
    source: shader!("batch_norm_update", "segments"),
    entry: "batch_norm_update",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("batch"), read("segments"), write("running")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// The update of one layer.
#[derive(Clone, PartialEq, Debug)]
pub struct Layer {
    pub channels: usize,
    /// The words of the buffers at which the running and the batch moments begin: multiples of four.
    pub at: [usize; 2],
    /// `None` weighs all updates alike.
    pub keep: Option<f32>,
    /// Whether the variance is stored times count/(count − 1).
    pub unbiased: bool,
    /// Values per channel that each set of moments was taken over.
    pub count: usize,
    /// Sets of moments that were added up: those of a step's micro-batches and their domains.
    pub parts: usize,
}

/// Updates the `layers`. The table is for the buffer `segments`.
pub fn update(layers: &[Layer]) -> (Dispatch, Table) {
    let mut table = Table::default();
    for layer in layers {
        // One value has no unbiased variance; its biased one, 0, stays.
        let correction = if layer.unbiased { layer.count as f64 / (layer.count.max(2) - 1) as f64 } else { 1.0 };
        let [running, batch] = layer.at.map(|at| (at / 4) as u32);
        let mean_factor = (1.0 / layer.parts as f64) as f32;
        let var_factor = (correction / layer.parts as f64) as f32;
        let [keep, mean_factor, var_factor] = [layer.keep.unwrap_or(0.0), mean_factor, var_factor].map(f32::to_bits);
        let cumulative = layer.keep.is_none().into();
        table.push(pad4(layer.channels) / 4, [running, batch, cumulative, keep, mean_factor, var_factor]);
    }
    (Dispatch::new(&UPDATE, Params { segments: table.count() }, table.workgroups()), table)
}

fn reference(args: Args<'_>) {
    let (p, [batch, segments, running]) = args.unpack::<Params, 3>();
    for (quads, [running_at, batch_at, cumulative, keep, mean_factor, var_factor]) in
        segments::entries(segments, p.segments)
    {
        let [keep, mean_factor, var_factor] = [keep, mean_factor, var_factor].map(f32::from_bits);
        let channels = quads * 4;
        let running = &mut running[running_at as usize * 4..];
        let batch = &batch[batch_at as usize * 4..];
        for c in 0..channels {
            let (mean, var, updates) = (c, channels + c, 2 * channels + c);
            let count = running[updates] + 1.0;
            let keep = if cumulative != 0 { 1.0 - 1.0 / count } else { keep };
            running[mean] = keep * running[mean] + (1.0 - keep) * (batch[mean] * mean_factor);
            running[var] = keep * running[var] + (1.0 - keep) * (batch[var] * var_factor);
            running[updates] = count;
        }
    }
}
