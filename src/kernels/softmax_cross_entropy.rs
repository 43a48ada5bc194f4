//! Softmax cross-entropy with label smoothing, accuracy, and the gradient.
//!
//! With smoothing s, C classes and the label's class y, as PyTorch's `CrossEntropyLoss` (Szegedy et al., 2016):
//!
//! ```text
//! t_c  = s/C + (1−s)·[c = y]
//! loss = −Σ t_c·log softmax_c = (1−s)·(log Σexp(x−m) − (x_y−m)) + s·(log Σexp(x−m) − Σ(x−m)/C),   m = max x
//! dx_c = (softmax_c − t_c)·inv_count
//! ```
//!
//! A sample whose label is no class (`u32::MAX` marks padding) counts for nothing: zeros everywhere.

use super::{Args, Dispatch, Kernel, LINEAR, StepScalars, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        samples: u32,
        classes: u32,
        stride: u32,
        smoothing: f32,
    }
}

/// A row a sample: loss, 1 if the label is the greatest logit, 1 if it is among the five greatest, 0. Of equal logits
/// the lower class counts as greater. A NaN logit makes the loss NaN.
pub static FORWARD: Kernel = Kernel {
    name: "softmax_cross_entropy",
    source: shader!("softmax_cross_entropy", "softmax", "nan"),
    entry: "softmax_cross_entropy",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("logits"), read("labels"), write("rows")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// The logits' gradient.
pub static GRAD: Kernel = Kernel {
    name: "softmax_cross_entropy_grad",
    source: shader!("softmax_cross_entropy_grad", "softmax", "nan"),
    entry: "softmax_cross_entropy_grad",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("logits"), read("labels"), read("step"), write("dlogits")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// The losses of `logits`: `[N, 1, 1, classes]`.
pub fn forward(logits: Shape, smoothing: f32) -> Dispatch {
    Dispatch::new(&FORWARD, params(logits, smoothing), groups(logits))
}

/// The gradient of `logits`: `[N, 1, 1, classes]`.
pub fn grad(logits: Shape, smoothing: f32) -> Dispatch {
    Dispatch::new(&GRAD, params(logits, smoothing), groups(logits))
}

fn params(logits: Shape, smoothing: f32) -> Params {
    let stride = logits.stored_c() as u32;
    Params { samples: logits.pixels() as u32, classes: logits.c() as u32, stride, smoothing }
}

/// A workgroup a sample.
fn groups(logits: Shape) -> [u32; 3] {
    linear_groups(logits.pixels() * LINEAR as usize)
}

/// The greatest logit, and the sum of the exponentials of the differences from it.
fn greatest_and_sum(logits: &[f32]) -> (f32, f32) {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (greatest, logits.iter().map(|x| (x - greatest).exp()).sum())
}

fn forward_reference(args: Args<'_>) {
    let (p, [logits, labels, rows]) = args.unpack::<Params, 3>();
    let classes = p.classes as usize;
    for sample in 0..p.samples as usize {
        let logits = &logits[sample * p.stride as usize..][..classes];
        let label = labels[sample].to_bits() as usize;
        let row = &mut rows[sample * 4..][..4];
        row.fill(0.0);
        if label >= classes {
            continue;
        }
        let (greatest, sum) = greatest_and_sum(logits);
        if sum.is_nan() {
            row[0] = f32::NAN;
            continue;
        }
        let own = logits[label];
        row[0] = sum.ln() - (own - greatest);
        if p.smoothing > 0.0 {
            let below = logits.iter().map(|x| x - greatest).sum::<f32>();
            row[0] = (1.0 - p.smoothing) * row[0] + p.smoothing * (sum.ln() - below / classes as f32);
        }
        let before = (0..classes).filter(|&c| logits[c] > own || (logits[c] == own && c < label)).count();
        row[1] = if before < 1 { 1.0 } else { 0.0 };
        row[2] = if before < 5 { 1.0 } else { 0.0 };
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [logits, labels, step, dlogits]) = args.unpack::<Params, 4>();
    let classes = p.classes as usize;
    let step = StepScalars::read(step);
    for sample in 0..p.samples as usize {
        let logits = &logits[sample * p.stride as usize..][..classes];
        let label = labels[sample].to_bits() as usize;
        let row = &mut dlogits[sample * p.stride as usize..][..p.stride as usize];
        row.fill(0.0);
        if label >= classes {
            continue;
        }
        let (greatest, sum) = greatest_and_sum(logits);
        for c in 0..classes {
            let wanted = p.smoothing / p.classes as f32 + if c == label { 1.0 - p.smoothing } else { 0.0 };
            row[c] = ((logits[c] - greatest).exp() / sum - wanted) * step.inv_count;
        }
    }
}
