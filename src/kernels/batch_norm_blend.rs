//! Moments between the running and the batch's, and the gradient through them.
//!
//! `μ = (1 − α)μ_run + α·μ_B`, and v likewise, for each domain of the batch: what test-time adaptation calls blending
//! (Schneider et al., 2020). Normalising by them is plain [batch norm](super::batch_norm_apply). With r = 1/√(v + ε),
//! x̂ = (x − μ)·r, S = Σ g·x̂ and M pixels in a domain, the chain rule through both moments gives
//!
//! ```text
//! dx = γr( g − α·Σg/M − α·r(x − μ_B)·S/M )
//! ```
//!
//! r(x − μ_B) is x̂ − (μ_B − μ)r. So dx is what [`batch`](super::batch_norm_grad::batch) makes of these moments and of
//! αS and α(Σg − (μ_B − μ)r·S) in the place of S and Σg. dγ = S and dβ = Σg, as always.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::pad4;

params! {
    pub struct Params {
        domains: u32,
        quads: u32,
        alpha: f32,
    }
}

params! {
    pub struct GradParams {
        domains: u32,
        quads: u32,
        eps: f32,
        alpha: f32,
    }
}

/// For each domain the blended mean and variance, two rows.
pub static FORWARD: Kernel = Kernel {
    name: "batch_norm_blend",
    source: shader!("batch_norm_blend", "index"),
    entry: "batch_norm_blend",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("batch"), read("running"), write("moments")],
    overrides: &[],
    subgroups: false,
    reference: forward_reference,
};

/// For each domain the sums by which `dx` is computed, two rows.
pub static GRAD: Kernel = Kernel {
    name: "batch_norm_grad_blend",
    source: shader!("batch_norm_grad_blend", "index"),
    entry: "batch_norm_grad_blend",
    workgroup: [LINEAR, 1, 1],
    params: GradParams::FIELDS,
    bindings: &[read("sums"), read("batch"), read("moments"), write("through")],
    overrides: &[],
    subgroups: false,
    reference: grad_reference,
};

/// Blends the moments of `c` channels in each of `domains` domains; `alpha` is the batch's share.
pub fn forward(c: usize, domains: usize, alpha: f32) -> Dispatch {
    let quads = pad4(c) / 4;
    let params = Params { domains: domains as u32, quads: quads as u32, alpha };
    Dispatch::new(&FORWARD, params, linear_groups(domains * quads))
}

/// Adjusts the sums of `c` channels in each of `domains` domains.
pub fn grad(c: usize, domains: usize, eps: f32, alpha: f32) -> Dispatch {
    let quads = pad4(c) / 4;
    let params = GradParams { domains: domains as u32, quads: quads as u32, eps, alpha };
    Dispatch::new(&GRAD, params, linear_groups(domains * quads))
}

fn forward_reference(args: Args<'_>) {
    let (p, [batch, running, moments]) = args.unpack::<Params, 3>();
    let channels = p.quads as usize * 4;
    for domain in 0..p.domains as usize {
        for c in 0..channels {
            let (mean, var) = (domain * 2 * channels + c, (domain * 2 + 1) * channels + c);
            moments[mean] = (1.0 - p.alpha) * running[c] + p.alpha * batch[mean];
            moments[var] = (1.0 - p.alpha) * running[channels + c] + p.alpha * batch[var];
        }
    }
}

fn grad_reference(args: Args<'_>) {
    let (p, [sums, batch, moments, through]) = args.unpack::<GradParams, 4>();
    let channels = p.quads as usize * 4;
    for domain in 0..p.domains as usize {
        for c in 0..channels {
            let (first, second) = (domain * 2 * channels + c, (domain * 2 + 1) * channels + c);
            let shift = (batch[first] - moments[first]) * (1.0 / (moments[second] + p.eps).sqrt());
            through[first] = p.alpha * sums[first];
            through[second] = p.alpha * (sums[second] - shift * sums[first]);
        }
    }
}
