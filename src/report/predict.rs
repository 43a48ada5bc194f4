//! What inference and a training step should take on a device, before they run.

use super::Total;
use crate::compile::{self, CompileError, Options};
use crate::graph::{Graph, Phase};
use crate::kernels::conv2d::Variant;
use crate::plan::{Input, Plan, Roofline};
use crate::train::KernelTime;
use serde::{Deserialize, Serialize};

/// Of one network under its policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Predictions {
    pub step: Prediction,
    pub inference: Prediction,
}

/// Of one plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// What it computes, moves and needs.
    #[serde(flatten)]
    pub total: Total,
    /// What it should take, in milliseconds; [`Roofline`] says how that is computed.
    pub ms: f64,
    /// That of its kernels, in the order in which they first run.
    pub kernels: Vec<KernelTime>,
}

/// Predicts what `network`, whose layers carry their settings, takes on the device that `roofline` was measured on, with
/// the variant of the convolutions that it uses.
///
/// # Errors
/// A pass broke the graph; a bug, unless the graph was built by hand.
pub fn predict(
    network: &Graph,
    options: &Options,
    variant: Variant,
    roofline: &Roofline,
) -> Result<Predictions, CompileError> {
    let of = |graph| Prediction::of(&Plan::new(graph, Input::Values, variant), roofline);
    Ok(Predictions {
        step: of(compile::training(network.clone(), options)?),
        inference: of(compile::inference(network.clone(), true)?),
    })
}

impl Prediction {
    fn of(plan: &Plan, roofline: &Roofline) -> Self {
        let mut kernels: Vec<KernelTime> = Vec::new();
        for call in plan.calls.iter().filter(|call| call.phase != Phase::Once) {
            let ms = roofline.call(call.cost);
            match kernels.iter_mut().find(|known| known.kernel == call.kernel.name) {
                Some(known) => {
                    known.calls += 1;
                    known.ms = known.ms.map(|sum| sum + ms);
                }
                None => {
                    let kernel = call.kernel.name.into();
                    kernels.push(KernelTime { kernel, calls: 1, ms: Some(ms), of_roofline: None });
                }
            }
        }
        Self { total: Total::of(plan), ms: roofline.plan(plan), kernels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Optimizer;
    use crate::graph::Sgd;
    use crate::models;
    use crate::policy::{self, Policy};
    use approx::assert_relative_eq;

    #[test]
    fn predictions_are_sums_of_their_kernels() {
        let roofline = Roofline { flops_per_s: 2e10, bytes_per_s: 2e9, call_ms: 0.01, run_ms: 0.05 };
        let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false });
        let options = Options {
            optimizer,
            label_smoothing: 0.0,
            class_weights: false,
            accumulate: 1,
            export_gradients: false,
            seed: 0,
        };
        let of = |name, batch| {
            let network = models::build("resnet_tiny", batch, (16, 16), 10).unwrap();
            let network = policy::resolve(&Policy::recipe(name).unwrap(), network).unwrap().graph;
            predict(&network, &options, Variant::default(), &roofline).unwrap()
        };
        let (head, full, large) = (of("head", 8), of("full", 8), of("full", 16));
        for prediction in [&head.step, &head.inference, &full.step, &full.inference, &large.step] {
            let kernels = || prediction.kernels.iter();
            assert!(kernels().all(|kernel| kernel.ms > Some(0.0)));
            assert_eq!(kernels().map(|kernel| kernel.calls).sum::<usize>(), prediction.total.calls);
            let sum: f64 = kernels().filter_map(|kernel| kernel.ms).sum();
            assert_relative_eq!(prediction.ms, 0.05 + sum, max_relative = 1e-12);
        }
        // Inference depends on no policy; what trains more takes longer.
        assert_eq!(head.inference, full.inference);
        assert!(head.inference.ms < head.step.ms && head.step.ms < full.step.ms && full.step.ms < large.step.ms);
    }
}
