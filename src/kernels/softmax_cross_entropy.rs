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
//! With class weights w, W = Σw_c, and an `inv_count` that is one over the sum of the labels' weights, as with `weight` and
//! `reduction="mean"` there:
//!
//! ```text
//! loss = (1−s)·w_y·(log Σexp(x−m) − (x_y−m)) + s/C·(W·log Σexp(x−m) − Σ w_c·(x_c−m))
//! dx_c = ((1−s)·w_y·(softmax_c − [c = y]) + s/C·(W·softmax_c − w_c))·inv_count
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
        /// 1 if classes have weights; the binding is left alone otherwise.
        weighted: u32,
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
    bindings: &[read("logits"), read("labels"), read("weights"), write("rows")],
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
    bindings: &[read("logits"), read("labels"), read("weights"), read("step"), write("dlogits")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// The losses of `logits`: `[N, 1, 1, classes]`; `weighted` if classes have weights.
pub fn forward(logits: Shape, smoothing: f32, weighted: bool) -> Dispatch {
    Dispatch::new(&FORWARD, params(logits, smoothing, weighted), groups(logits))
}

/// The gradient of `logits`: `[N, 1, 1, classes]`; `weighted` if classes have weights.
pub fn grad(logits: Shape, smoothing: f32, weighted: bool) -> Dispatch {
    Dispatch::new(&GRAD, params(logits, smoothing, weighted), groups(logits))
}

fn params(logits: Shape, smoothing: f32, weighted: bool) -> Params {
    Params {
        samples: logits.pixels() as u32,
        classes: logits.c() as u32,
        stride: logits.stored_c() as u32,
        smoothing,
        weighted: weighted.into(),
    }
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
    let (p, [logits, labels, weights, rows]) = args.unpack::<Params, 4>();
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
        let weight = |c: usize| if p.weighted == 1 { weights[c] } else { 1.0 };
        row[0] = weight(label) * (sum.ln() - (own - greatest));
        if p.smoothing > 0.0 {
            let below = (0..classes).map(|c| weight(c) * (logits[c] - greatest)).sum::<f32>();
            let spread = match p.weighted {
                1 => ((0..classes).map(weight).sum::<f32>() * sum.ln() - below) / classes as f32,
                _ => sum.ln() - below / classes as f32,
            };
            row[0] = (1.0 - p.smoothing) * row[0] + p.smoothing * spread;
        }
        let before = (0..classes).filter(|&c| logits[c] > own || (logits[c] == own && c < label)).count();
        row[1] = if before < 1 { 1.0 } else { 0.0 };
        row[2] = if before < 5 { 1.0 } else { 0.0 };
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [logits, labels, weights, step, dlogits]) = args.unpack::<Params, 5>();
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
        let rest = p.smoothing / p.classes as f32;
        for c in 0..classes {
            let softmax = (logits[c] - greatest).exp() / sum;
            let hit = if c == label { 1.0 } else { 0.0 };
            let gradient = match p.weighted {
                1 => {
                    let all: f32 = weights[..classes].iter().sum();
                    (1.0 - p.smoothing) * weights[label] * (softmax - hit) + rest * (all * softmax - weights[c])
                }
                _ => softmax - (rest + (1.0 - p.smoothing) * hit),
            };
            row[c] = gradient * step.inv_count;
        }
    }
}
