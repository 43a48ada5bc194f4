//! What a training step costs under a policy, layer by layer, against inference and full fine-tuning.

use crate::compile::{self, CompileError, Options};
use crate::graph::{Affine, Graph, LayerId, Role, StatsUpdate};
use crate::kernels::conv2d::Variant;
use crate::plan::{Cost, Input, LayerCost, PhaseCost, Plan};
use crate::policy::{self, Policy, Resolved};
use crate::tensor::Shape;
use serde::{Deserialize, Serialize};

/// A plan's price, computed without a device.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Price {
    pub policy: String,
    /// Images of the step: a batch, or all batches of a step whose batch norms take their moments over them together.
    pub batch: usize,
    /// Height and width, in pixels.
    pub size: [usize; 2],
    pub classes: usize,
    /// In graph order.
    pub layers: Vec<LayerPrice>,
    /// What belongs to no layer: input and loss.
    pub rest: Phases,
    /// One training step.
    pub step: Total,
    /// Inference of the same batch.
    pub inference: Total,
    /// One step of the policy `full`; absent where the batch is too small for its batch statistics.
    pub full: Option<Total>,
}

/// What one layer costs in a step.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LayerPrice {
    /// Its number among the layers of its file's outermost model.
    pub index: usize,
    /// How `index:` selectors write it, such as `2/17` for number 17 within number 2.
    pub number: String,
    pub name: String,
    pub kind: &'static str,
    /// Its output: images, height, width, channels.
    pub shape: [usize; 4],
    /// Its setting in the policy's words, such as `weights=train`; empty for a layer without axes.
    pub axes: String,
    #[serde(flatten)]
    pub phases: Phases,
}

impl LayerPrice {
    /// The axes that are not at their frozen values, or `frozen`; in short what the policy does with the layer.
    pub fn mode(&self) -> String {
        const FROZEN: [&str; 5] = ["weights=frozen", "stats=running", "update=off", "affine=none", "var=unbiased"];
        let words: Vec<&str> = self.axes.split(", ").filter(|word| !FROZEN.contains(word)).collect();
        if words.is_empty() { "frozen".into() } else { words.join(", ") }
    }
}

/// The phases of a step.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Phases {
    pub forward: Amount,
    pub backward: Amount,
    pub update: Amount,
    /// Bytes of forward results that wait for the backward pass.
    pub kept_bytes: u64,
    /// The kernels that run, in order; none if the layer is fused into another.
    pub kernels: Vec<&'static str>,
}

/// Arithmetic and memory traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Floating-point operations of products, two a multiply-add.
    pub flops: u64,
    /// Bytes read and written.
    pub moved_bytes: u64,
}

impl From<PhaseCost> for Amount {
    fn from(cost: PhaseCost) -> Self {
        Self { flops: cost.flops, moved_bytes: cost.bytes }
    }
}

/// A whole plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Total {
    #[serde(flatten)]
    pub amount: Amount,
    pub kept_bytes: u64,
    /// Device memory, parameters and optimiser state included.
    pub planned_bytes: u64,
    /// Kernel calls.
    pub calls: usize,
}

impl Total {
    /// Of steps that make up the given shares of a run: the mean of what they do, the most of what they need at once.
    pub fn mean(parts: &[(f64, Self)]) -> Self {
        let mean =
            |of: fn(&Self) -> u64| parts.iter().map(|(share, total)| share * of(total) as f64).sum::<f64>().round();
        let most = |of: fn(&Self) -> u64| parts.iter().map(|(_, total)| of(total)).max().unwrap_or(0);
        Self {
            amount: Amount {
                flops: mean(|t| t.amount.flops) as u64,
                moved_bytes: mean(|t| t.amount.moved_bytes) as u64,
            },
            kept_bytes: most(|t| t.kept_bytes),
            planned_bytes: most(|t| t.planned_bytes),
            calls: mean(|t| t.calls as u64) as usize,
        }
    }

    pub(super) fn of(plan: &Plan) -> Self {
        let once = plan.calls.iter().filter(|c| c.phase == crate::graph::Phase::Once).count();
        Self {
            amount: plan.cost.step().into(),
            kept_bytes: plan.cost.kept(),
            planned_bytes: plan.bytes(),
            calls: plan.calls.len() - once,
        }
    }
}

impl Phases {
    fn of(cost: &LayerCost) -> Self {
        Self {
            forward: cost.forward.into(),
            backward: cost.backward.into(),
            update: cost.update.into(),
            kept_bytes: cost.kept,
            kernels: cost.kernels.clone(),
        }
    }
}

/// Prices one training step of `resolved`, and returns the plan with it.
///
/// # Errors
/// A pass broke the graph; a bug, unless the graph was built by hand.
pub fn price(resolved: &Resolved, options: &Options, input: Input) -> Result<(Price, Plan), CompileError> {
    let graph = &resolved.graph;
    let training = |graph: Graph, options: &Options| -> Result<Plan, CompileError> {
        Ok(Plan::new(compile::training(graph, options)?, input, Variant::default()))
    };
    let plan = training(graph.clone(), options)?;
    // More than the network's, if the step takes micro-batches together.
    let images = plan.graph.input_shape().map_or(1, Shape::n);
    let whole = graph.with_batch(images)?;
    let inference = Plan::new(compile::inference(whole.clone(), true)?, input, Variant::default());
    let full = Policy::recipe("full").and_then(|full| policy::resolve(&full, whole)).ok();
    let gathered = graph.input_shape().is_some_and(|shape| shape.n() != images);
    let options = Options { accumulate: if gathered { 1 } else { options.accumulate }, ..*options };
    let full = full.map(|full| training(full.graph, &options)).transpose()?;
    let full = full.as_ref().map(Total::of);
    let [_, height, width, _] = graph.input_shape().map_or([0; 4], |shape| shape.0);
    let price = Price {
        policy: resolved.policy.clone(),
        batch: images,
        size: [height, width],
        classes: graph.logits_shape().map_or(0, |shape| shape.c()),
        layers: layers(graph, &plan.cost),
        rest: Phases::of(&plan.cost.rest),
        step: Total::of(&plan),
        inference: Total::of(&inference),
        full,
    };
    Ok((price, plan))
}

/// What a policy trains and moves, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trained {
    /// Values that the optimiser changes.
    pub values: usize,
    /// Values that it could change.
    pub all: usize,
    /// Layers in which it changes some.
    pub layers: usize,
    /// Batch norms whose running statistics move.
    pub moving: usize,
}

/// Counts what trains and moves in a network whose layers carry their settings.
pub fn trained_values(network: &Graph) -> Trained {
    let mut trained = Trained::default();
    for layer in network.layers() {
        let batch_norm = layer.setting.batch_norm;
        let vectors = match batch_norm.map_or(Affine::None, |mode| mode.affine) {
            Affine::None => 0,
            Affine::Gamma | Affine::Beta => 1,
            Affine::Both => 2,
        };
        let mut here = 0;
        for param in layer.params.iter().map(|&param| network.param(param)) {
            let [kh, kw, _, out] = param.shape.0;
            let (all, train) = match param.role {
                Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight => {
                    (kh * kw * param.channels * out, layer.setting.weights)
                }
                Role::Bias | Role::Scale | Role::ImageScale => (out, layer.setting.weights),
                Role::Affine if batch_norm.is_none() => (2 * out, layer.setting.weights),
                Role::Affine => {
                    here += vectors * out;
                    (2 * out, false)
                }
                Role::Moments => (0, false),
            };
            trained.all += all;
            here += if train { all } else { 0 };
        }
        trained.values += here;
        trained.layers += usize::from(here > 0);
        trained.moving += usize::from(batch_norm.is_some_and(|mode| mode.update != StatsUpdate::Off));
    }
    trained
}

fn layers(graph: &Graph, cost: &Cost) -> Vec<LayerPrice> {
    let layers = (0..).map(LayerId::new).zip(graph.layers()).zip(&cost.layers);
    layers
        .map(|((id, layer), cost)| LayerPrice {
            index: graph.position(id)[0],
            number: graph.number(id),
            name: layer.name.clone(),
            kind: layer.kind.name(),
            shape: layer.shape.0,
            axes: policy::describe(layer),
            phases: Phases::of(cost),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_what_is_not_frozen() {
        let nothing = || Phases {
            forward: Amount::default(),
            backward: Amount::default(),
            update: Amount::default(),
            kept_bytes: 0,
            kernels: Vec::new(),
        };
        let mode = |axes: &str| {
            let (number, name) = ("0".to_owned(), "bn1".to_owned());
            LayerPrice { index: 0, number, name, kind: "bn", shape: [1; 4], axes: axes.into(), phases: nothing() }
                .mode()
        };
        assert_eq!(mode("weights=frozen"), "frozen");
        assert_eq!(mode("stats=running, update=off, affine=gamma, var=unbiased"), "affine=gamma");
        assert_eq!(mode(""), "");
    }
}
