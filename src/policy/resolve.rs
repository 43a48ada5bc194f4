//! From a policy to a setting for every layer, and what to make of the result.

use super::axes::{frozen, has_weights};
use super::{Policy, PolicyError};
use crate::graph::{Affine, BatchNormMode, Domain, Graph, Layer, LayerId, NodeId, Op, Stats, StatsUpdate};
use std::fmt;

/// A network whose layers have their settings.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub graph: Graph,
    pub warnings: Vec<Warning>,
    /// The policy's name.
    pub policy: String,
}

/// Below so many values per channel, batch statistics draw a warning: the variance of 16 values is off by a third
/// (√(2/15)) one time in three.
pub const FEW_VALUES: usize = 16;

/// Something that a policy may well mean, but more often does not.
#[derive(Clone, PartialEq, Debug)]
pub enum Warning {
    /// Some weights of a residual block train and others do not.
    HalfFrozenBlock { block: String, number: usize, trains: Vec<String>, frozen: Vec<String> },
    /// Some weights of a squeeze-and-excitation train and others do not.
    HalfFrozenGate {
        /// The layer that multiplies by what they give.
        scale: String,
        trains: Vec<String>,
        frozen: Vec<String>,
    },
    /// Batch norms that take the statistics of a batch over fewer than [`FEW_VALUES`] values per channel.
    FewValues {
        layers: Vec<String>,
        /// The fewest: images × height × width; of a ghost batch, its images.
        values: usize,
    },
    /// Batch norms that blend in each batch's statistics, but whose running statistics, by which inference goes, stay.
    StillAnchor { layers: Vec<String> },
    /// Batch norms whose batches are cut into ghost batches, but that take no statistics of them.
    IdleGhosts { layers: Vec<String> },
    /// Batch norms whose running statistics keep so little that `keep` looks like a PyTorch momentum.
    LowKeep { layers: Vec<String>, keep: f32 },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HalfFrozenBlock { block, number, trains, frozen } => {
                let (trains, frozen) = (list(trains), list(frozen));
                write!(
                    f,
                    "half of the residual block {block} is frozen: {trains} train but {frozen} do not; `block:{number}` \
                     selects all of it, and `from:block:{number}` what follows, too"
                )
            }
            Self::HalfFrozenGate { scale, trains, frozen } => {
                let (trains, frozen) = (list(trains), list(frozen));
                write!(
                    f,
                    "half of the squeeze-and-excitation that ends at {scale} is frozen: {trains} train but {frozen} do \
                     not; they are one gate, so let all of them train, or none"
                )
            }
            Self::FewValues { layers, values } => write!(
                f,
                "{}: the statistics of a batch are taken over as few as {values} values per channel (images × height × \
                 width; {FEW_VALUES} or more are advised); a larger batch (k under domain=ghost(k)) or image makes \
                 them less noisy",
                list(layers)
            ),
            Self::StillAnchor { layers } => write!(
                f,
                "{}: stats=blend with update=off trains on statistics that inference, which goes by the running ones \
                 alone, does not see; update=ema(0.9) lets those follow",
                list(layers)
            ),
            Self::IdleGhosts { layers } => write!(
                f,
                "{}: the domain changes nothing under stats=running with update=off, which takes no statistics of a \
                 batch",
                list(layers)
            ),
            Self::LowKeep { layers, keep } => {
                let layers = list(layers);
                write!(f, "{layers}: ema({keep}) keeps only {keep} of the running statistics at each step")?;
                match 1.0 - keep {
                    // No valid keep to advise.
                    1.0 => Ok(()),
                    advised => write!(f, "; if {keep} is a PyTorch momentum, write ema({advised})"),
                }
            }
        }
    }
}

/// The network under each stage of `policy`, with the share of a run's optimiser steps before it: the first begins at 0.
///
/// # Errors
/// As [`resolve`], of any stage.
pub fn resolve_stages(policy: &Policy, graph: &Graph) -> Result<Vec<(f64, Resolved)>, PolicyError> {
    let mut so_far = Policy { stages: Vec::new(), ..policy.clone() };
    let mut stages = vec![(0.0, resolve(&so_far, graph.clone())?)];
    for stage in &policy.stages {
        so_far.rules.extend(stage.rules.iter().cloned());
        let resolved = resolve(&so_far, graph.clone());
        let resolved = resolved.map_err(|error| PolicyError::InStage { from: stage.from, source: Box::new(error) })?;
        stages.push((stage.from, resolved));
    }
    Ok(stages)
}

/// Gives every layer of `graph` its setting under `policy`, as it is at the beginning of a run.
///
/// # Errors
/// A rule selects no layer, or sets an axis that none of its layers has; a batch norm would have `stats=batch` or
/// `stats=renorm` with `update=off`, cut its batch into ghost batches that do not fill it, or take the statistics of a
/// batch over a single value.
pub fn resolve(policy: &Policy, mut graph: Graph) -> Result<Resolved, PolicyError> {
    for layer in &mut graph.layers {
        layer.setting = frozen(layer);
    }
    for rule in &policy.rules {
        let selected = rule.select(&graph)?;
        for &assignment in rule.assignments() {
            let fits: usize =
                selected.iter().map(|id| usize::from(assignment.apply(&mut graph.layers[id.index()]))).sum();
            if fits == 0 && !selected.is_empty() {
                let layers: Vec<&str> = selected.iter().map(|id| graph.layers[id.index()].name.as_str()).collect();
                let (layers, meant_for) = (list(&layers), assignment.meant_for());
                return Err(rule.error(format!("`{assignment}` is for {meant_for}, but the rule selects {layers}")));
            }
        }
    }

    check_statistics(&graph)?;
    let mut warnings = half_frozen_blocks(&graph);
    warnings.extend(half_frozen_gates(&graph));
    warnings.extend(few_values(&graph));
    let still = |mode: BatchNormMode| matches!(mode.stats, Stats::Blend { .. }) && mode.update == StatsUpdate::Off;
    let layers = batch_norms(&graph, |_, mode| still(mode));
    if !layers.is_empty() {
        warnings.push(Warning::StillAnchor { layers });
    }
    let layers = batch_norms(&graph, |_, mode| mode.domain != Domain::Batch && !mode.takes_moments());
    if !layers.is_empty() {
        warnings.push(Warning::IdleGhosts { layers });
    }
    warnings.extend(low_keeps(&graph));
    Ok(Resolved { graph, warnings, policy: policy.name.clone() })
}

/// Refuses statistics of a batch that training cannot take, or must not.
fn check_statistics(graph: &Graph) -> Result<(), PolicyError> {
    let first = |holds: &dyn Fn(&Layer, BatchNormMode) -> bool| {
        let mut layers = graph.layers.iter().filter_map(|layer| Some((layer, layer.setting.batch_norm?)));
        layers.find(|(layer, mode)| holds(layer, *mode))
    };
    let stale = |_: &Layer, mode: BatchNormMode| {
        matches!(mode.stats, Stats::Batch | Stats::Renorm { .. }) && mode.update == StatsUpdate::Off
    };
    if let Some((_, BatchNormMode { stats, .. })) = first(&stale) {
        let layers = batch_norms(graph, |layer, mode| stale(layer, mode) && mode.stats == stats);
        return Err(PolicyError::StaleStatistics { layers: list(&layers), stats });
    }
    let uneven = |layer: &Layer, mode: BatchNormMode| mode.takes_moments() && mode.domains(layer.shape.n()).is_none();
    if let Some((layer, BatchNormMode { domain: domain @ Domain::Ghost { samples }, .. })) = first(&uneven) {
        let layers = batch_norms(graph, |layer, mode| uneven(layer, mode) && mode.domain == domain);
        return Err(PolicyError::UnevenGhosts { layers: list(&layers), samples, batch: layer.shape.n() });
    }
    check_values(graph, None)
}

/// Refuses statistics over a single value, in steps of `accumulate` micro-batches if that is known.
fn check_values(graph: &Graph, accumulate: Option<usize>) -> Result<(), PolicyError> {
    let layers = batch_norms(graph, |layer, mode| values(layer, mode, accumulate) == Some(1));
    match layers.is_empty() {
        true => Ok(()),
        false => Err(PolicyError::SingleValue { layers: list(&layers) }),
    }
}

/// The values per channel that a batch norm takes moments over; `None` if it takes none, or if that depends on how many
/// micro-batches are accumulated and `accumulate` does not say.
fn values(layer: &Layer, mode: BatchNormMode, accumulate: Option<usize>) -> Option<usize> {
    let together = match mode.domain {
        Domain::Accumulated => accumulate?,
        Domain::Batch | Domain::Ghost { .. } => 1,
    };
    let domains = mode.domains(layer.shape.n()).filter(|_| mode.takes_moments())?;
    Some((layer.shape.pixels() / domains).saturating_mul(together))
}

fn few_values(graph: &Graph) -> Option<Warning> {
    let few = |layer: &Layer, mode| values(layer, mode, None).filter(|values| *values < FEW_VALUES);
    let fewest = graph.layers.iter().filter_map(|layer| few(layer, layer.setting.batch_norm?)).min()?;
    let layers = batch_norms(graph, |layer, mode| few(layer, mode).is_some());
    Some(Warning::FewValues { layers, values: fewest })
}

impl Resolved {
    /// Whether the optimiser changes anything.
    pub fn trains(&self) -> bool {
        self.graph.layers.iter().any(|layer| {
            layer.setting.weights || layer.setting.batch_norm.is_some_and(|mode| mode.affine != Affine::None)
        })
    }

    /// Whether any running statistics move.
    pub fn moves(&self) -> bool {
        !batch_norms(&self.graph, |_, mode| mode.update != StatsUpdate::Off).is_empty()
    }

    /// Before training in steps of `accumulate` micro-batches: refuses a policy under which a training step changes nothing,
    /// or takes statistics over a single value.
    ///
    /// # Errors
    /// Nothing [trains](Self::trains) and nothing [moves](Self::moves); a batch norm under `domain=accumulated` has one value a
    /// channel in all micro-batches together.
    pub fn check_training(&self, accumulate: usize) -> Result<(), PolicyError> {
        check_values(&self.graph, Some(accumulate))?;
        match self.trains() || self.moves() {
            true => Ok(()),
            false => Err(PolicyError::AllFrozen { policy: self.policy.clone() }),
        }
    }
}

/// The names of the batch norms for which `holds`.
fn batch_norms(graph: &Graph, holds: impl Fn(&Layer, BatchNormMode) -> bool) -> Vec<String> {
    let layers = graph.layers.iter().filter(|l| l.setting.batch_norm.is_some_and(|mode| holds(l, mode)));
    layers.map(|l| l.name.clone()).collect()
}

fn half_frozen_blocks(graph: &Graph) -> Vec<Warning> {
    let parts = graph.blocks().into_iter().map(|block| {
        let layers = graph.layers.iter().filter(|layer| layer.block.as_deref() == Some(block));
        halves(layers)
    });
    let cut = cut(parts.collect());
    let blocks = (0..).zip(graph.blocks()).zip(cut);
    let warning = |((number, block), halves): ((usize, &str), Option<Halves>)| {
        let [trains, frozen] = halves?;
        Some(Warning::HalfFrozenBlock { block: block.to_owned(), number, trains, frozen })
    };
    blocks.filter_map(warning).collect()
}

fn half_frozen_gates(graph: &Graph) -> Vec<Warning> {
    let gates: Vec<(LayerId, NodeId)> = graph
        .nodes()
        .filter_map(|(_, node)| match node.op {
            Op::Scale { .. } => Some((node.layer?, node.inputs[1])),
            _ => None,
        })
        .collect();
    let cut = cut(gates.iter().map(|&(_, gate)| halves(excitation(graph, gate).into_iter())).collect());
    let warning = |(&(scale, _), halves): (&(LayerId, NodeId), Option<Halves>)| {
        let [trains, frozen] = halves?;
        Some(Warning::HalfFrozenGate { scale: graph.layers[scale.index()].name.clone(), trains, frozen })
    };
    gates.iter().zip(cut).filter_map(warning).collect()
}

/// The layers between a pooled image and the gate that is made of it; none where it is made of something else.
fn excitation(graph: &Graph, gate: NodeId) -> Vec<&Layer> {
    let mut layers = Vec::new();
    let mut node = graph.node(gate);
    while let Op::Conv2d(_) | Op::BatchNorm { .. } | Op::Activation { .. } = node.op {
        layers.extend(node.layer.map(|layer| &graph.layers[layer.index()]));
        node = graph.node(node.inputs[0]);
    }
    match node.op {
        Op::AvgPool { .. } => layers.into_iter().rev().collect(),
        _ => Vec::new(),
    }
}

/// The names of a part's layers whose weights train, and of those whose weights do not.
type Halves = [Vec<String>; 2];

fn halves<'a>(layers: impl Iterator<Item = &'a Layer>) -> Halves {
    let (trains, frozen): (Vec<&Layer>, _) = layers.filter(|l| has_weights(l)).partition(|l| l.setting.weights);
    [trains, frozen].map(|half| half.iter().map(|l| l.name.clone()).collect())
}

/// The parts that a policy cuts in two. A range of layers has two ends, so it cuts two parts at most: a policy that cuts more
/// means it, since it goes by what layers are, not where.
fn cut(parts: Vec<Halves>) -> Vec<Option<Halves>> {
    let is_cut = |[trains, frozen]: &Halves| !trains.is_empty() && !frozen.is_empty();
    let meant = parts.iter().filter(|part| is_cut(part)).count() > 2;
    parts.into_iter().map(|part| (is_cut(&part) && !meant).then_some(part)).collect()
}

/// One warning for each `keep` below a half, in graph order.
fn low_keeps(graph: &Graph) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for layer in &graph.layers {
        let Some(BatchNormMode { update: StatsUpdate::Ema { keep }, .. }) = layer.setting.batch_norm else { continue };
        let seen = warnings.iter().any(|w| matches!(w, Warning::LowKeep { keep: k, .. } if *k == keep));
        if keep < 0.5 && !seen {
            let layers = batch_norms(graph, |_, mode| mode.update == StatsUpdate::Ema { keep });
            warnings.push(Warning::LowKeep { layers, keep });
        }
    }
    warnings
}

/// The first few names, and how many more there are.
fn list(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
