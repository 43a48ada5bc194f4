//! From a network and a resolved policy to the graph of one training step, or of inference.
//!
//! [`training`], [`inference`] and [`observation`] run named passes, each a function from graph to graph; after every
//! one the graph is [verified](Graph::verify), and an error names the pass. The graph that comes out is what the plan
//! lowers call by call: nothing later looks at a policy again.

mod concat;
mod cut;
mod differentiate;
mod eliminate;
mod fold;
mod fuse;
mod rewrite;
mod split;

pub use split::{Split, changing, split};

use crate::graph::{
    AdamW, Affine, BatchNormMode, Domain, Graph, GraphError, Layer, LayerId, LayerKind, MOST_WORDS, NodeId, Op, Output,
    Phase, Role, Setting, Sgd, StateKind, Stats, StatsUpdate, Update, Variance,
};
use crate::tensor::Shape;

/// The optimiser and its constants.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Optimizer {
    Sgd(Sgd),
    AdamW(AdamW),
}

/// What a training step is made of, beside the network and its policy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    pub optimizer: Optimizer,
    /// In `[0, 1)`: the share of the target that is spread over all classes.
    pub label_smoothing: f32,
    /// Whether classes have weights in the loss: the step takes them from outside.
    pub class_weights: bool,
    /// Micro-batches an optimiser step; the statistics, too, are committed once a step.
    pub accumulate: usize,
    /// Keep the gradients of all trainable parameters readable after the step, as [`Output::Gradient`].
    pub export_gradients: bool,
    /// Of the random numbers by which dropout and stochastic depth drop.
    pub seed: u64,
}

impl Options {
    /// An optimiser, and nothing else out of the ordinary: plain cross-entropy, one micro-batch, seed 0.
    pub const fn new(optimizer: Optimizer) -> Self {
        Self { optimizer, label_smoothing: 0.0, class_weights: false, accumulate: 1, export_gradients: false, seed: 0 }
    }
}

/// A pass left a graph that does not hold together.
#[derive(Debug, thiserror::Error)]
#[error("the pass `{pass}` failed at {source}")]
pub struct CompileError {
    pub pass: &'static str,
    source: GraphError,
}

impl From<GraphError> for CompileError {
    fn from(source: GraphError) -> Self {
        Self { pass: "input", source }
    }
}

/// A function from graph to graph.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Cut,
    Resolve,
    Drop,
    Loss,
    Fold,
    Fuse,
    Nest,
    Differentiate,
    Recover,
    Update,
    Observe,
    Eliminate,
    Hoist,
}

impl Pass {
    /// Those of a training step, in order.
    const TRAINING: [Self; 12] = [
        Self::Cut,
        Self::Resolve,
        Self::Drop,
        Self::Loss,
        Self::Fold,
        Self::Fuse,
        Self::Nest,
        Self::Differentiate,
        Self::Recover,
        Self::Update,
        Self::Eliminate,
        Self::Hoist,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Resolve => "resolve",
            Self::Drop => "drop",
            Self::Loss => "loss",
            Self::Fold => "fold",
            Self::Fuse => "fuse",
            Self::Nest => "nest",
            Self::Differentiate => "differentiate",
            Self::Recover => "recover",
            Self::Update => "update",
            Self::Observe => "observe",
            Self::Eliminate => "eliminate",
            Self::Hoist => "hoist",
        }
    }

    fn run(self, graph: Graph, options: &Options) -> Result<Graph, GraphError> {
        match self {
            Self::Cut => cut::cut(graph, MOST_WORDS),
            Self::Resolve => Ok(resolve(graph)),
            Self::Drop => Ok(drop_nothing(graph)),
            Self::Loss => loss(graph, options),
            Self::Fold => fold::fold(graph),
            Self::Fuse => fuse::fuse(graph),
            Self::Nest => concat::nest(graph),
            Self::Differentiate => differentiate::differentiate(graph, options),
            Self::Recover => concat::recover(graph),
            Self::Update => update(graph, options),
            Self::Observe => Ok(observe(graph)),
            Self::Eliminate => Ok(eliminate::eliminate(graph)),
            Self::Hoist => Ok(hoist(graph)),
        }
    }
}

/// Compiles one training step of a network whose layers carry their settings.
///
/// Its outputs are [`Output::Logits`] and [`Output::Rows`]. Where a batch norm takes its moments over all micro-batches of an
/// optimiser step ([`Domain::Accumulated`]), the step takes them as one batch: a layer can normalise only when every
/// micro-batch has reached it.
///
/// # Errors
/// A pass broke the graph; a bug, unless the graph was built by hand.
pub fn training(graph: Graph, options: &Options) -> Result<Graph, CompileError> {
    let fail = |source| CompileError { pass: "gather", source };
    match options.accumulate > 1 && graph.layers.iter().any(|l| l.setting.batch_norm.is_some_and(accumulates)) {
        true => {
            let graph = gather(graph, options.accumulate).map_err(fail)?;
            run(graph, Pass::TRAINING, &Options { accumulate: 1, ..*options })
        }
        false => run(graph, Pass::TRAINING, options),
    }
}

fn accumulates(mode: BatchNormMode) -> bool {
    mode.domain == Domain::Accumulated && mode.takes_moments()
}

/// One batch of all micro-batches of a step. What takes the moments of a micro-batch takes them over as many samples still.
fn gather(graph: Graph, micro_batches: usize) -> Result<Graph, GraphError> {
    let samples = graph.input_shape().map_or(1, Shape::n);
    let mut graph = graph.with_batch(samples.saturating_mul(micro_batches))?;
    for mode in graph.layers.iter_mut().filter_map(|layer| layer.setting.batch_norm.as_mut()) {
        mode.domain = match mode.domain {
            Domain::Accumulated => Domain::Batch,
            Domain::Batch => Domain::Ghost { samples },
            domain @ Domain::Ghost { .. } => domain,
        };
    }
    Ok(graph)
}

/// Compiles inference: running statistics, every batch norm behind a convolution folded into it, nothing kept.
///
/// Its outputs are [`Output::Logits`], and with `loss` also [`Output::Rows`].
///
/// # Errors
/// A pass broke the graph; a bug, unless the graph was built by hand.
pub fn inference(mut graph: Graph, with_loss: bool) -> Result<Graph, CompileError> {
    for layer in &mut graph.layers {
        // Also of a network that no policy was applied to.
        let batch_norm = (layer.kind == LayerKind::Bn).then_some(BatchNormMode {
            stats: Stats::Running,
            update: StatsUpdate::Off,
            affine: Affine::None,
            var: Variance::Unbiased,
            domain: Domain::Batch,
        });
        layer.setting = Setting { weights: false, dropout: false, batch_norm, ..layer.setting };
    }
    let passes = Pass::TRAINING.into_iter().filter(|pass| match pass {
        Pass::Differentiate | Pass::Update => false,
        Pass::Loss => with_loss,
        _ => true,
    });
    run(graph, passes, &FORWARD_ONLY)
}

/// Compiles a forward pass that observes: each batch norm normalises by what `stats` says of its layer, the moments of
/// its input over the batch are read out, nothing moves, and nothing is differentiated. For looking at a network and
/// for estimating statistics; what [`inference`] computes never depends on a sample's companions.
///
/// Its outputs are [`Output::Logits`], [`Output::Rows`], and [`Output::Moments`] of each batch norm.
///
/// # Errors
/// A pass broke the graph; a bug, unless the graph was built by hand.
pub fn observation(mut graph: Graph, stats: impl Fn(LayerId) -> Stats) -> Result<Graph, CompileError> {
    for (id, layer) in (0..).map(LayerId).zip(&mut graph.layers) {
        let observed = BatchNormMode {
            stats: stats(id),
            // What has batch norms take moments. Nothing moves by them: the pass `update` is left out.
            update: StatsUpdate::Cumulative,
            affine: Affine::None,
            var: Variance::Biased,
            domain: Domain::Batch,
        };
        let batch_norm = (layer.kind == LayerKind::Bn).then_some(observed);
        layer.setting = Setting { weights: false, dropout: false, batch_norm, ..layer.setting };
    }
    let passes = Pass::TRAINING.into_iter().filter(|pass| *pass != Pass::Differentiate);
    let passes = passes.map(|pass| if pass == Pass::Update { Pass::Observe } else { pass });
    run(graph, passes, &FORWARD_ONLY)
}

/// Options of passes that change nothing.
const FORWARD_ONLY: Options =
    Options::new(Optimizer::Sgd(Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, decoupled: false }));

fn run(mut graph: Graph, passes: impl IntoIterator<Item = Pass>, options: &Options) -> Result<Graph, CompileError> {
    graph.verify()?;
    for pass in passes {
        let fail = |source| CompileError { pass: pass.name(), source };
        graph = pass.run(graph, options).map_err(fail)?;
        graph.verify().map_err(fail)?;
    }
    Ok(graph)
}

/// Says of each parameter how the optimiser changes it. Weight decay is for weights: not for biases, not for batch
/// norms.
fn resolve(mut graph: Graph) -> Graph {
    for param in &mut graph.params {
        let Layer { kind, setting, .. } = graph.layers[param.layer.index()];
        let rows = match param.role {
            Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight => {
                setting.weights.then_some([0, param.shape.pixels()])
            }
            Role::Bias | Role::Scale | Role::ImageScale => setting.weights.then_some([0, 1]),
            Role::Affine if kind != LayerKind::Bn => setting.weights.then_some([0, 2]),
            Role::Affine => match setting.batch_norm.map_or(Affine::None, |mode| mode.affine) {
                Affine::None => None,
                Affine::Gamma => Some([0, 1]),
                Affine::Beta => Some([1, 2]),
                Affine::Both => Some([0, 2]),
            },
            Role::Moments => None,
        };
        let decay = matches!(param.role, Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight);
        param.update = rows.map(|rows| Update { lr: setting.lr, decay, rows });
    }
    graph
}

/// Takes away dropout and stochastic depth where the policy has them not act, or where their rate is 0.
fn drop_nothing(mut graph: Graph) -> Graph {
    let mut map: Vec<NodeId> = (0..graph.nodes.len() as u32).map(NodeId).collect();
    for index in 0..graph.nodes.len() {
        let node = &mut graph.nodes[index];
        for input in &mut node.inputs {
            *input = map[input.index()];
        }
        if let Op::Dropout { rate, .. } = node.op
            && (rate == 0.0 || !node.layer.is_some_and(|layer| graph.layers[layer.index()].setting.dropout))
        {
            map[index] = node.inputs[0];
        }
    }
    for (_, output) in &mut graph.outputs {
        *output = map[output.index()];
    }
    eliminate::eliminate(graph)
}

/// Ends the network with the loss.
fn loss(mut graph: Graph, options: &Options) -> Result<Graph, GraphError> {
    let logits = graph
        .output(Output::Logits)
        .ok_or_else(|| GraphError { node: "output".into(), reason: "the network has no logits".into() })?;
    let shape = graph.node(logits).shape;
    let mut operands = vec![logits, graph.source(Op::Labels, Shape::rows(1, shape.n()))];
    if options.class_weights {
        operands.push(graph.source(Op::ClassWeights, Shape::rows(1, shape.c())));
    }
    let op = Op::SoftmaxCrossEntropy { smoothing: options.label_smoothing, weighted: options.class_weights };
    let rows = graph.push(op, operands, None, Phase::Forward)?;
    graph.outputs.push((Output::Rows, rows));
    Ok(graph)
}

/// Moves the running moments where the policy says so, at the end: a batch norm may normalise by them in this step.
fn update(mut graph: Graph, options: &Options) -> Result<Graph, GraphError> {
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Op::BatchNormStats { domains }, Some(layer)) = (node.op, node.layer) else { continue };
        let Some(mode) = graph.layers[layer.index()].setting.batch_norm else { continue };
        if mode.update == StatsUpdate::Off {
            continue;
        }
        let count = graph.node(node.inputs[0]).shape.pixels() / domains;
        let moments = graph.layers[layer.index()].params.iter().copied();
        let Some(param) = moments.into_iter().find(|p| graph.param(*p).role == Role::Moments) else { continue };
        let Some(running) = graph.param_node(param) else { continue };
        let mut batch = NodeId(index as u32);
        if domains > 1 {
            batch = graph.push(Op::DomainSum, vec![batch], Some(layer), Phase::Forward)?;
        }
        if options.accumulate > 1 {
            batch = graph.accumulate(StateKind::Moments, param, batch)?;
        }
        let parts = domains * options.accumulate;
        let op = Op::BatchNormUpdate { update: mode.update, var: mode.var, count, parts };
        graph.push(op, vec![running, batch], Some(layer), Phase::Update)?;
    }
    Ok(graph)
}

/// Makes the moments that batch norms take readable.
fn observe(mut graph: Graph) -> Graph {
    let moments = graph.nodes().filter(|(_, node)| matches!(node.op, Op::BatchNormStats { .. }));
    let outputs: Vec<_> = moments.filter_map(|(id, n)| Some((Output::Moments(n.layer?), id))).collect();
    graph.outputs.extend(outputs);
    graph
}

/// Marks what depends on nothing that changes during training: it runs once.
fn hoist(mut graph: Graph) -> Graph {
    let mut constant: Vec<bool> = graph.nodes.iter().map(|n| matches!(n.op, Op::Param(_))).collect();
    for node in &graph.nodes {
        for &operand in node.op.mutates() {
            constant[node.inputs[operand].index()] = false;
        }
    }
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let pure = !node.op.is_source() && node.op.mutates().is_empty() && node.op.in_place().is_none();
        if pure && node.inputs.iter().all(|input| constant[input.index()]) {
            constant[index] = true;
            graph.nodes[index].phase = Phase::Once;
        }
    }
    graph
}
