//! Measuring policies × thaw depths × batch sizes on a device.

use super::LabError;
use crate::compile::{Optimizer, Options};
use crate::gpu::Device;
use crate::graph::{Graph, Sgd};
use crate::plan::Roofline;
use crate::policy::{self, Policy, PolicyError, Resolved};
use crate::report::{self, BenchResult, Benchmark, predict};
use crate::tensor::HostTensor;
use crate::train::{self, KernelTime, TrainError};
use std::time::{Duration, Instant};

/// What to measure: every policy at every thaw depth with every batch size.
pub struct Grid {
    pub model: String,
    /// With different names. Of one that has stages the first is measured.
    pub policies: Vec<Policy>,
    /// Layers or modules from which on all weights train, by the rule `from:LAYER -> weights=train` after the policy's
    /// own. Only weights: what batch norms do stays the policy's choice, so that a depth changes one thing. `None` is the
    /// policy as it is.
    pub thaw: Vec<Option<String>>,
    /// Rules that come last.
    pub rules: Vec<String>,
    /// The network for batches of each size, every layer frozen.
    pub networks: Vec<Graph>,
    /// Of a step of one batch: what is predicted is without accumulation.
    pub options: Options,
    /// Runs that each time is the median of.
    pub repeat: usize,
    /// What would not be done by then, by its prediction, is left out.
    pub limit: Option<Duration>,
}

/// A cell of a [`Grid`].
pub struct Combination {
    pub policy: String,
    pub thaw: Option<String>,
    /// Images.
    pub batch: usize,
    /// The network with its settings, or why there are none.
    pub resolved: Result<Resolved, PolicyError>,
    /// An earlier combination in which every layer has the same setting, with the same batch.
    pub same_as: Option<usize>,
}

impl Combination {
    /// `head, thawed from layer4, batch 8`, for messages.
    pub fn label(&self) -> String {
        format!("{}, batch {}", report::label(&self.policy, self.thaw.as_deref()), self.batch)
    }
}

/// How the last combination went, by which the next is judged.
struct Pace {
    deadline: Option<Instant>,
    /// Measured over predicted time.
    slowdown: f64,
    /// What compiling and uploading took, in milliseconds.
    extra_ms: f64,
}

impl Grid {
    /// All combinations: policies outside, then thaw depths, then batch sizes.
    ///
    /// # Errors
    /// A rule is malformed or does not suit the network; two policies have one name; every combination is refused. What
    /// is refused because of its batch, or because nothing would train, is told by the combination.
    pub fn combinations(&self) -> Result<Vec<Combination>, LabError> {
        let mut combinations: Vec<Combination> = Vec::new();
        for (index, policy) in self.policies.iter().enumerate() {
            if self.policies[..index].iter().any(|other| other.name == policy.name) {
                return Err(LabError::SameName { name: policy.name.clone() });
            }
            for thaw in &self.thaw {
                let fail = |source| LabError::Policy { policy: policy.name.clone(), source };
                let from = thaw.iter().map(|layer| format!("from:{layer} -> weights=train"));
                let rules: Vec<String> = from.chain(self.rules.iter().cloned()).collect();
                let ruled = policy.clone().with_rules(&rules).map_err(fail)?;
                for network in &self.networks {
                    let batch = network.input_shape().map_or(0, |shape| shape.n());
                    let resolved = resolve(&ruled, network, self.options.accumulate).map_err(fail)?;
                    let same = |other: &Combination| other.batch == batch && same(&other.resolved, &resolved);
                    let same_as = combinations.iter().position(same);
                    let (policy, thaw) = (policy.name.clone(), thaw.clone());
                    combinations.push(Combination { policy, thaw, batch, resolved, same_as });
                }
            }
        }
        if combinations.iter().any(|combination| combination.resolved.is_ok()) {
            return Ok(combinations);
        }
        let refused = combinations.into_iter().find_map(|c| Some((c.policy, c.resolved.err()?)));
        Err(refused.map_or(LabError::Nothing, |(policy, source)| LabError::Policy { policy, source }))
    }

    /// Measures the [`combinations`](Self::combinations) one after the other, starting from `tensors`, and tells
    /// `observe` of each. One that the device cannot hold, or that does not fit into the limit, is told by its result.
    ///
    /// # Errors
    /// The device fails before the first combination, or on every one.
    pub fn measure(
        &self,
        device: &Device,
        tensors: &[HostTensor],
        combinations: &[Combination],
        mut observe: impl FnMut(&BenchResult),
    ) -> Result<Benchmark, LabError> {
        let deadline = self.limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut pace = Pace { deadline, slowdown: 1.0, extra_ms: 0.0 };
        let roofline = device.roofline()?;
        let mut results: Vec<BenchResult> = Vec::new();
        let mut failure = None;
        for combination in combinations {
            let mut result = self.result(combination);
            match (&combination.resolved, combination.same_as) {
                (Err(refusal), _) => result.error = Some(refusal.to_string()),
                (Ok(_), Some(earlier)) => {
                    let earlier = &results[earlier];
                    result.same_as = Some(earlier.label());
                    result.measured = earlier.measured.clone();
                    result.predicted = earlier.predicted.clone();
                    result.error = earlier.error.clone();
                }
                (Ok(resolved), None) => {
                    let measured = self.measure_one(device, &roofline, tensors, resolved, &mut pace, &mut result);
                    if let Err(error) = measured {
                        result.error = Some(error.to_string());
                        failure.get_or_insert(error);
                    }
                }
            }
            observe(&result);
            results.push(result);
        }
        match failure {
            Some(failure) if results.iter().all(|result| result.measured.is_none()) => Err(failure.into()),
            _ => self.benchmark(device, roofline, results),
        }
    }

    fn measure_one(
        &self,
        device: &Device,
        roofline: &Roofline,
        tensors: &[HostTensor],
        resolved: &Resolved,
        pace: &mut Pace,
        result: &mut BenchResult,
    ) -> Result<(), TrainError> {
        let network = &resolved.graph;
        let predicted = result.predicted.insert(predict(network, &self.options, device.variant()?, roofline)?);
        let runs = (self.repeat + 1) as f64;
        let run_ms = |step: f64, inference: f64| step * self.options.accumulate as f64 + inference;
        let predicted_ms = run_ms(predicted.step.ms, predicted.inference.ms);
        if let Some(deadline) = pace.deadline {
            let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
            let needed = (pace.extra_ms + runs * predicted_ms * pace.slowdown) / 1e3;
            if left == 0.0 || needed > left {
                result.error =
                    Some(format!("left out: would take {needed:.1} s, and {left:.1} s are left of the limit"));
                return Ok(());
            }
        }
        let start = Instant::now();
        let mut measured = train::measure(device, network.clone(), tensors, self.options, self.repeat)?;
        let measured_ms = run_ms(measured.step_ms, measured.inference_ms);
        pace.slowdown = (measured_ms / predicted_ms).max(1.0);
        pace.extra_ms = (start.elapsed().as_secs_f64() * 1e3 - runs * measured_ms).max(0.0);
        KernelTime::compare(&mut measured.kernels, &predicted.step.kernels);
        KernelTime::compare(&mut measured.inference_kernels, &predicted.inference.kernels);
        result.measured = Some(measured);
        Ok(())
    }

    fn result(&self, combination: &Combination) -> BenchResult {
        let shape = self.networks.first().and_then(Graph::input_shape);
        let [_, height, width, _] = shape.map_or([0; 4], |shape| shape.0);
        BenchResult {
            model: self.model.clone(),
            policy: combination.policy.clone(),
            thaw: combination.thaw.clone(),
            batch: combination.batch,
            size: [height, width],
            measured: None,
            predicted: None,
            same_as: None,
            error: None,
        }
    }

    fn benchmark(&self, device: &Device, roofline: Roofline, results: Vec<BenchResult>) -> Result<Benchmark, LabError> {
        let info = device.info();
        let optimizer = match self.options.optimizer {
            Optimizer::Sgd(Sgd { momentum: 0.0, .. }) => "sgd without momentum",
            Optimizer::Sgd(_) => "sgd with momentum",
            Optimizer::AdamW(_) => "adamw",
        };
        Ok(Benchmark {
            device: info.name.clone(),
            driver: info.driver.clone(),
            backend: info.backend.clone(),
            kind: info.kind.into(),
            host: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            thawline: env!("CARGO_PKG_VERSION").into(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            date: report::today(),
            variant: device.variant()?.name().into(),
            classes: self.networks.first().and_then(Graph::logits_shape).map(|shape| shape.c()),
            optimizer: optimizer.into(),
            rules: self.rules.clone(),
            roofline: Some(roofline),
            results,
            peak_rss_bytes: None,
        })
    }
}

/// The network under the policy; inside, why the policy refuses it for what it is and not for how it is written.
fn resolve(policy: &Policy, network: &Graph, accumulate: usize) -> Result<Result<Resolved, PolicyError>, PolicyError> {
    let resolved = policy::resolve(policy, network.clone());
    match resolved.and_then(|resolved| resolved.check_training(accumulate).map(|()| resolved)) {
        Err(
            refusal @ (PolicyError::SingleValue { .. }
            | PolicyError::UnevenGhosts { .. }
            | PolicyError::StaleStatistics { .. }
            | PolicyError::AllFrozen { .. }),
        ) => Ok(Err(refusal)),
        resolved => resolved.map(Ok),
    }
}

/// Whether every layer has the same setting.
fn same(one: &Result<Resolved, PolicyError>, other: &Result<Resolved, PolicyError>) -> bool {
    let (Ok(one), Ok(other)) = (one, other) else { return false };
    let settings = |resolved: &Resolved| resolved.graph.layers().iter().map(|l| l.setting).collect::<Vec<_>>();
    settings(one) == settings(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{models, weights};

    fn grid(policies: &[&str], thaw: &[Option<&str>], batches: &[usize], side: usize) -> Grid {
        let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false });
        Grid {
            model: "resnet_tiny".into(),
            policies: policies.iter().map(|name| Policy::recipe(name).unwrap()).collect(),
            thaw: thaw.iter().map(|layer| layer.map(str::to_owned)).collect(),
            rules: Vec::new(),
            networks: batches.iter().map(|&n| models::build("resnet_tiny", n, (side, side), 10).unwrap()).collect(),
            options: Options {
                optimizer,
                label_smoothing: 0.0,
                class_weights: false,
                accumulate: 1,
                export_gradients: false,
                seed: 0,
            },
            repeat: 1,
            limit: None,
        }
    }

    fn error(grid: &Grid) -> String {
        grid.combinations().err().unwrap().to_string()
    }

    #[test]
    fn every_combination_comes_once() {
        let grid = grid(&["head", "full"], &[None, Some("layer3")], &[2, 4], 16);
        let combinations = grid.combinations().unwrap();
        let labels: Vec<String> = combinations.iter().map(Combination::label).collect();
        assert_eq!(labels[..3], ["head, batch 2", "head, batch 4", "head, thawed from layer3, batch 2"]);
        let same: Vec<Option<usize>> = combinations.iter().map(|combination| combination.same_as).collect();
        // Under `full` there is nothing left to thaw, but each batch size is another network.
        assert_eq!(same, [None, None, None, None, None, None, Some(4), Some(5)]);

        // Only weights thaw, from there on.
        let resolved = combinations[2].resolved.as_ref().unwrap();
        let layers = resolved.graph.layers();
        let from = layers.iter().position(|layer| layer.name.starts_with("layer3.")).unwrap();
        let trains = |layer: &crate::graph::Layer| layer.setting.weights;
        assert!(!layers[..from].iter().any(trains));
        assert!(layers[from..].iter().filter(|layer| layer.name.contains("conv")).all(trains));
        let before = combinations[0].resolved.as_ref().unwrap();
        let batch_norms = |resolved: &Resolved| -> Vec<_> {
            resolved.graph.layers().iter().map(|layer| layer.setting.batch_norm).collect()
        };
        assert_eq!(batch_norms(resolved), batch_norms(before));
    }

    #[test]
    fn added_rules_come_last() {
        let mut grid = grid(&["head"], &[Some("layer3")], &[2], 16);
        grid.rules = vec!["name:layer3.* & kind:conv -> weights=frozen".into()];
        let combinations = grid.combinations().unwrap();
        let layers = combinations[0].resolved.as_ref().unwrap().graph.layers();
        assert_eq!(layers.iter().filter(|layer| layer.setting.weights).count(), 1, "the head");
    }

    #[test]
    fn a_batch_that_a_policy_refuses_does_not_stop_the_rest() {
        // Four pixels per side are one at the end.
        let small = grid(&["full", "head"], &[None], &[1, 2], 4);
        let refused: Vec<bool> = small.combinations().unwrap().iter().map(|c| c.resolved.is_err()).collect();
        assert_eq!(refused, [true, false, false, false]);
        let uneven = grid(&["full-ghost"], &[None], &[8, 12], 16);
        let refused: Vec<bool> = uneven.combinations().unwrap().iter().map(|c| c.resolved.is_err()).collect();
        assert_eq!(refused, [false, true]);
        assert!(error(&grid(&["full"], &[None], &[1], 4)).contains("a single value"));
    }

    #[test]
    fn what_does_not_fit_into_the_limit_is_left_out() {
        let mut grid = grid(&["head"], &[None], &[1, 2], 16);
        let tensors = weights::initialise(&grid.networks[0], 0);
        let device = Device::open(&Default::default()).expect("a device");
        let mut measure = |limit| {
            grid.limit = limit;
            grid.measure(&device, &tensors, &grid.combinations().unwrap(), |_| ()).unwrap().results
        };
        for result in measure(Some(Duration::ZERO)) {
            assert!(result.measured.is_none() && result.predicted.is_some());
            assert!(result.error.unwrap().contains("0.0 s are left of the limit"));
        }
        assert!(measure(Some(Duration::MAX)).iter().all(|result| result.measured.is_some()));
    }

    #[test]
    fn what_is_written_wrongly_is_an_error() {
        let message = error(&grid(&["head"], &[None, Some("layer33")], &[2], 16));
        assert!(message.contains("layer33") && message.contains("layer3"), "{message}");
        assert!(error(&grid(&["head", "head"], &[None], &[2], 16)).contains("two policies are called `head`"));
        assert!(error(&grid(&[], &[None], &[2], 16)).contains("at least one policy"));
    }
}
