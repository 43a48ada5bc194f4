//! The moments of batch renormalisation, and the gradient through them.
//!
//! Batch renormalisation (Ioffe, 2017) corrects batch norm towards the running moments, within bounds. With
//! σ = √(v + ε):
//!
//! ```text
//! y = γ·((x − μ_B)/σ_B·r + d) + β
//! r = clip(σ_B/σ_run, 1/r_max, r_max)        d = clip((μ_B − μ_run)/σ_run, −d_max, d_max)
//! ```
//!
//! That is plain [batch norm](super::batch_norm_apply) under the moments σ = σ_B/r and μ = μ_B − dσ: the running ones,
//! with the deviation held within a factor r_max of the batch's, and the mean within d_max deviations.
//!
//! r and d count as constants in the gradient. With x̂ = (x − μ)/σ, S = Σ g·x̂ and M pixels in a domain, dγ = S and
//! dβ = Σg, and the batch formula with γr in the place of γ is
//!
//! ```text
//! dx = γ/σ·( g − Σg/M − (x̂ − d)·S′/M )    S′ = (S − dΣg)/r²
//! ```
//!
//! So dx is what [`batch`](super::batch_norm_grad::batch) makes of these moments and of S′ and Σg − dS′ in the place of
//! S and Σg.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::pad4;

params! {
    pub struct Params {
        domains: u32,
        quads: u32,
        eps: f32,
        r_max: f32,
        d_max: f32,
    }
}

params! {
    pub struct GradParams {
        domains: u32,
        quads: u32,
        eps: f32,
    }
}

/// For each domain the mean and variance that renormalise, two rows.
pub static FORWARD: Kernel = Kernel {
    name: "batch_norm_renorm",
    source: shader!("batch_norm_renorm", "index", "nan"),
    entry: "batch_norm_renorm",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("batch"), read("running"), write("moments")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// For each domain the sums by which `dx` is computed, two rows.
pub static GRAD: Kernel = Kernel {
    name: "batch_norm_grad_renorm",
    source: shader!("batch_norm_grad_renorm", "index"),
    entry: "batch_norm_grad_renorm",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("sums"), read("batch"), read("moments"), write("through")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// The moments of `c` channels in each of `domains` domains. `r_max` is at least 1 and `d_max` at least 0.
pub fn forward(c: usize, domains: usize, eps: f32, r_max: f32, d_max: f32) -> Dispatch {
    let quads = pad4(c) / 4;
    let params = Params { domains: domains as u32, quads: quads as u32, eps, r_max, d_max };
    Dispatch::new(&FORWARD, params, linear_groups(domains * quads))
}

/// Adjusts the sums of `c` channels in each of `domains` domains.
pub fn grad(c: usize, domains: usize, eps: f32) -> Dispatch {
    let quads = pad4(c) / 4;
    let params = GradParams { domains: domains as u32, quads: quads as u32, eps };
    Dispatch::new(&GRAD, params, linear_groups(domains * quads))
}

/// `x` within `low`…`high`; NaN if one of them is.
fn held(x: f32, low: f32, high: f32) -> f32 {
    match x {
        x if x.is_nan() || low.is_nan() || high.is_nan() => f32::NAN,
        x => x.max(low).min(high),
    }
}

fn forward_reference(args: Args<'_>) {
    let (p, [batch, running, moments]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    for domain in 0..p.domains as usize {
        for c in 0..channels {
            let (mean, var) = (domain * 2 * channels + c, (domain * 2 + 1) * channels + c);
            let (square, limit) = (batch[var] + p.eps, p.r_max * p.r_max);
            // With r unclipped, σ_B/r is σ_run to the last bit.
            let v = held(running[channels + c], square / limit - p.eps, square * limit - p.eps);
            let d = (batch[mean] - running[c]) / (running[channels + c] + p.eps).sqrt();
            moments[mean] = batch[mean] - held(d, -p.d_max, p.d_max) * (v + p.eps).sqrt();
            moments[var] = v;
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [sums, batch, moments, through]) = args.unpack::<GradParams, 4>();
    let channels = p.quads as usize * 4;
    for domain in 0..p.domains as usize {
        for c in 0..channels {
            let (first, second) = (domain * 2 * channels + c, (domain * 2 + 1) * channels + c);
            let square = moments[second] + p.eps;
            let d = (batch[first] - moments[first]) * (1.0 / square.sqrt());
            let product = (sums[first] - d * sums[second]) * (square / (batch[second] + p.eps));
            through[first] = product;
            through[second] = sums[second] - d * product;
        }
    }
}
