//! The network as data: typed ids into arenas, a closed set of operations, and no device in sight.
//!
//! A graph is built for one batch size and image size with [`Builder`]. Nodes are stored in execution order, each
//! after its operands; the [compiler](crate::compile) turns one graph into another and never reorders silently.
//! [`Graph::verify`] holds for every graph that a public function returns, and [`Graph`]'s `Display` is its dump.

mod builder;
mod dump;
mod op;
mod parts;
mod verify;

pub use crate::act::{Act, Factor};
pub use crate::window::Window;
pub use builder::{Builder, Taken};
pub use op::{AdamW, BatchNormApply, Conv2d, Groups, MOMENT_ROWS, Op, Sgd, Update, mask_shape};
pub(crate) use op::{domains, keeps_bits, places, takes_mean};
pub(crate) use parts::MOST_WORDS;
pub use parts::Part;

use crate::tensor::Shape;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The id at a position of its list.
            pub const fn new(index: usize) -> Self {
                Self(index as u32)
            }

            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    /// A node of one [`Graph`].
    NodeId,
    /// A parameter of one [`Graph`].
    ParamId,
    /// A piece of optimiser or accumulation state of one [`Graph`].
    StateId,
    /// A layer of one [`Graph`].
    LayerId
}

/// What kind of layer the user sees, in [`Graph::layers`] and in `kind:` selectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerKind {
    Conv,
    Bn,
    Linear,
    /// Never the identity.
    Activation(Act),
    Add,
    Scale,
    Dropout,
    StochasticDepth,
    MaxPool,
    AvgPool,
    Concat,
    Slice,
    Shuffle,
    Multiply,
    Pad,
    LayerNorm,
    GroupNorm,
    LayerScale,
    Binary,
}

impl LayerKind {
    /// One of each name.
    pub const ALL: [Self; 32] = [
        Self::Conv,
        Self::Bn,
        Self::Linear,
        Self::Activation(Act::ALL[1]),
        Self::Activation(Act::ALL[2]),
        Self::Activation(Act::ALL[3]),
        Self::Activation(Act::ALL[4]),
        Self::Activation(Act::ALL[5]),
        Self::Activation(Act::ALL[6]),
        Self::Activation(Act::ALL[7]),
        Self::Activation(Act::ALL[8]),
        Self::Activation(Act::ALL[9]),
        Self::Activation(Act::ALL[10]),
        Self::Activation(Act::ALL[11]),
        Self::Activation(Act::ALL[12]),
        Self::Activation(Act::ALL[13]),
        Self::Activation(Act::ALL[14]),
        Self::Add,
        Self::Scale,
        Self::Dropout,
        Self::StochasticDepth,
        Self::MaxPool,
        Self::AvgPool,
        Self::Concat,
        Self::Slice,
        Self::Shuffle,
        Self::Multiply,
        Self::Pad,
        Self::LayerNorm,
        Self::GroupNorm,
        Self::LayerScale,
        Self::Binary,
    ];

    /// Whether a layer of this kind is meant by the name of the other's.
    pub fn is(self, other: Self) -> bool {
        self.name() == other.name()
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Bn => "bn",
            Self::Linear => "linear",
            Self::Activation(act) => act.name(),
            Self::Add => "add",
            Self::Scale => "scale",
            Self::Dropout => "dropout",
            Self::StochasticDepth => "stochastic_depth",
            Self::MaxPool => "max_pool",
            Self::AvgPool => "avg_pool",
            Self::Concat => "concat",
            Self::Slice => "slice",
            Self::Shuffle => "shuffle",
            Self::Multiply => "multiply",
            Self::Pad => "pad",
            Self::LayerNorm => "layer_norm",
            Self::GroupNorm => "group_norm",
            Self::LayerScale => "layer_scale",
            Self::Binary => "binary",
        }
    }
}

/// A model in the file that a network was read from: the outermost one, or one that is a layer of another, as Keras nests
/// them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// The names of the models down to it, joined by slashes, which stand before the names of its layers; empty for the
    /// outermost.
    pub name: String,
    /// Its number among the layers of the model around it, after that one's own; empty for the outermost.
    pub position: Vec<usize>,
    /// How many layers the file lists in it, with those that compute nothing here.
    pub layers: usize,
}

/// A layer as the user names it: one entry of the list that `thawline inspect` prints.
#[derive(Clone, PartialEq, Debug)]
pub struct Layer {
    /// The framework's own module name, such as `layer1.0.conv1`.
    pub name: String,
    /// Another name that selectors know it by, which no other layer has.
    pub alias: Option<String>,
    /// Its number in the list of the file that it was read from, where that list has layers that this graph has not, such
    /// as Keras's `InputLayer`; of a layer of a [model](Model) within the model that one's number, then its own within it, and
    /// so on. Empty where the list is the graph's own. What is one layer there may be several here.
    pub position: Vec<usize>,
    pub kind: LayerKind,
    /// The residual block that the layer belongs to, such as `layer1.0`.
    pub block: Option<String>,
    /// What its network does by default, if it is a batch norm.
    pub averaging: Averaging,
    /// What a batch norm has of gamma and beta. What it lacks is there all the same, as one and zero, and never trains.
    pub affine: Affine,
    /// Shape of the layer's output.
    pub shape: Shape,
    /// The layer's parameters, in file order.
    pub params: Vec<ParamId>,
    /// What the policy says of it; every policy axis at its frozen value until it is resolved.
    pub setting: Setting,
}

impl Layer {
    /// The estimator of the variance that a batch norm stores: its setting's, or its network's where it has none.
    pub fn stored_var(&self) -> Variance {
        self.setting.batch_norm.map_or(self.averaging.var, |mode| mode.var)
    }
}

/// What normalises the activations in a training step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stats {
    Running,
    Batch,
    /// `(1−alpha)·running + alpha·batch`, mean and variance alike.
    Blend {
        alpha: f32,
    },
    /// Batch renormalisation (Ioffe 2017): the running moments, held within a factor `r_max` of the batch's deviation
    /// and within `d_max` deviations of its mean.
    Renorm {
        r_max: f32,
        d_max: f32,
    },
}

/// Whether and how the running moments move, once an optimiser step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum StatsUpdate {
    Off,
    /// `running = keep·running + (1−keep)·batch`; PyTorch's `momentum` is `1 − keep`.
    Ema {
        keep: f32,
    },
    /// The plain average over all updates so far.
    Cumulative,
}

/// Which of gamma and beta the optimiser may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affine {
    None,
    Gamma,
    Beta,
    Both,
}

impl Affine {
    /// What both have.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Both, other) => other,
            (one, Self::Both) => one,
            (one, other) if one == other => one,
            _ => Self::None,
        }
    }
}

/// The estimator of the variance that is stored; normalising always uses the biased one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variance {
    Biased,
    Unbiased,
}

/// How a batch norm's running moments follow the batches' where nobody says otherwise.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Averaging {
    /// The factor on the old value, as in [`StatsUpdate::Ema`].
    pub keep: f32,
    pub var: Variance,
}

impl Averaging {
    pub const PYTORCH: Self = Self { keep: 0.9, var: Variance::Unbiased };
    /// Keras 3's; Keras 2 mostly stores the unbiased variance.
    pub const KERAS: Self = Self { keep: 0.99, var: Variance::Biased };
}

/// What a batch's moments are taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Domain {
    /// All its samples.
    Batch,
    /// Each run of so many consecutive samples apart: ghost batches (Hoffer, Hubara & Soudry 2017).
    Ghost { samples: usize },
    /// The samples of all micro-batches of an optimiser step together.
    Accumulated,
}

/// The batch-norm axes of one layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BatchNormMode {
    pub stats: Stats,
    pub update: StatsUpdate,
    pub affine: Affine,
    pub var: Variance,
    pub domain: Domain,
}

impl BatchNormMode {
    /// Whether a training step takes the moments of its batch.
    pub fn takes_moments(self) -> bool {
        self.stats != Stats::Running || self.update != StatsUpdate::Off
    }

    /// How many domains a batch of `batch` samples has; `None` where it is no multiple of one.
    pub fn domains(self, batch: usize) -> Option<usize> {
        match self.domain {
            // The compiler has made one batch of the micro-batches.
            Domain::Batch | Domain::Accumulated => Some(1),
            Domain::Ghost { samples } => batch.checked_div(samples).filter(|domains| domains * samples == batch),
        }
    }
}

/// A layer's setting under a policy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setting {
    /// Whether the convolution's or linear layer's weight and bias train. False for every other kind.
    pub weights: bool,
    /// Multiplies the learning rate of whatever trains in this layer.
    pub lr: f32,
    /// Whether dropout or stochastic depth acts in training. False for every other kind.
    pub dropout: bool,
    /// Present for batch norms only.
    pub batch_norm: Option<BatchNormMode>,
}

/// What a parameter is to its layer. Each role has one shape and one set of tensors in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// `[KH][KW][Cin of a group, padded][Cout]`, in a PyTorch file `[Cout, Cin of a group, KH, KW]`.
    ConvWeight,
    /// `[KH][KW][1][C]`, in a PyTorch file `[C, 1, KH, KW]`.
    DepthwiseWeight,
    /// `[H][W][Cin padded][Cout]` for images of so many pixels, in a PyTorch file `[Cout, Cin·H·W]`.
    LinearWeight,
    /// One row.
    Bias,
    /// Gamma and beta, two rows.
    Affine,
    /// One row of factors, in a file `[C]` under the layer's own name.
    Scale,
    /// The same, in a file `[C, 1, 1]`.
    ImageScale,
    /// Running mean, running variance, and the number of updates so far, [`MOMENT_ROWS`] rows.
    Moments,
}

/// A parameter: memory that outlives a step.
#[derive(Clone, PartialEq, Debug)]
pub struct Param {
    pub layer: LayerId,
    pub role: Role,
    pub shape: Shape,
    /// Input channels of a group before padding, for weights; for the other roles the channels.
    pub channels: usize,
    /// How the optimiser changes it; `None` when it is frozen.
    pub update: Option<Update>,
    /// What it is of a network's parameter, if not all of it: in compiled graphs only.
    pub part: Option<Part>,
}

/// What a [`StateId`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateKind {
    /// SGD's momentum buffer, or AdamW's first moment.
    FirstMoment,
    /// AdamW's second moment.
    SecondMoment,
    /// The sum of the gradients of a window of micro-batches.
    Gradient,
    /// The sum of the batch moments of a window of micro-batches.
    Moments,
}

/// State that belongs to a parameter and outlives a step.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub kind: StateKind,
    pub param: ParamId,
    pub shape: Shape,
}

/// When a node runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Once for given parameters: nothing that it reads changes during training.
    Once,
    Forward,
    Backward,
    /// Once an optimiser step.
    Update,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}

/// One operation on earlier nodes.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<NodeId>,
    pub shape: Shape,
    /// The layer that the node serves.
    pub layer: Option<LayerId>,
    pub phase: Phase,
}

/// A network, or a network's training step.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) layers: Vec<Layer>,
    /// By their positions, in order.
    pub(crate) models: Vec<Model>,
    pub(crate) params: Vec<Param>,
    pub(crate) states: Vec<State>,
    /// Nodes that the caller reads after a run.
    pub(crate) outputs: Vec<(Output, NodeId)>,
}

/// A value that the caller reads after a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// `[N, 1, 1, classes]`.
    Logits,
    /// A row per sample: loss, 1 if top-1, 1 if top-5, 0.
    Rows,
    /// The moments of a batch norm's batch: a row of means and a row of biased variances.
    Moments(LayerId),
    /// Of the shape of its parameter.
    Gradient(ParamId),
    /// What the rest of a network that was cut reads; see [`crate::compile::split`].
    Feature(u32),
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Logits => f.write_str("logits"),
            Self::Rows => f.write_str("rows"),
            Self::Moments(layer) => write!(f, "moments:{}", layer.0),
            Self::Gradient(param) => write!(f, "grad:{}", param.0),
            Self::Feature(index) => write!(f, "feature:{index}"),
        }
    }
}

/// A graph that does not hold together.
#[derive(Debug, thiserror::Error)]
#[error("{node}: {reason}")]
pub struct GraphError {
    /// The node's or layer's name.
    pub node: String,
    pub reason: String,
}

impl Graph {
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i as u32), node))
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The layers in graph order.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The models of the file that the network was read from, each before those within it; none where the file has no such
    /// list of its own.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model at a position.
    pub fn model_at(&self, position: &[usize]) -> Option<&Model> {
        let found = self.models.binary_search_by(|model| model.position[..].cmp(position));
        found.ok().map(|index| &self.models[index])
    }

    /// How `index:` selectors write a layer's [`position`](Self::position): `12`, or `2/17` for number 17 within number 2.
    pub fn number(&self, layer: LayerId) -> String {
        let numbers: Vec<String> = self.position(layer).iter().map(usize::to_string).collect();
        numbers.join("/")
    }

    /// The numbers that `index:` selectors know a layer by: its [position](Layer::position) in its file where it has one, or
    /// else its place in [`layers`](Self::layers).
    pub fn position(&self, layer: LayerId) -> Vec<usize> {
        match &self.layers[layer.index()].position[..] {
            [] => vec![layer.index()],
            position => position.to_vec(),
        }
    }

    /// The layer whose outputs are the classes: the last linear layer or convolution.
    pub fn head(&self) -> Option<LayerId> {
        let is_product = |layer: &Layer| matches!(layer.kind, LayerKind::Linear | LayerKind::Conv);
        self.layers.iter().rposition(is_product).map(LayerId::new)
    }

    /// Whether weights of a convolution train that is not the [head](Self::head).
    pub fn trains_convolutions(&self) -> bool {
        let body = self.layers.iter().enumerate().filter(|(index, _)| self.head() != Some(LayerId::new(*index)));
        body.map(|(_, layer)| layer).any(|layer| layer.kind == LayerKind::Conv && layer.setting.weights)
    }

    /// The names of the blocks, in the order of their first layers: the list that `block:` selectors count in.
    pub fn blocks(&self) -> Vec<&str> {
        let mut blocks = Vec::new();
        for block in self.layers.iter().filter_map(|layer| layer.block.as_deref()) {
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
        blocks
    }

    /// Gives a layer a second name that selectors know it by.
    ///
    /// # Errors
    /// The name is empty, or another layer has it.
    pub fn set_alias(&mut self, layer: LayerId, alias: &str) -> Result<(), GraphError> {
        let has_it = |other: &Layer| other.name == alias || other.alias.as_deref() == Some(alias);
        let taken = (0..).map(LayerId).zip(&self.layers).any(|(id, other)| id != layer && has_it(other));
        let layer = &mut self.layers[layer.index()];
        if taken || alias.is_empty() {
            let reason = if taken { "another layer has that name" } else { "an alias needs a name" };
            return Err(GraphError { node: layer.name.clone(), reason: format!("alias `{alias}`: {reason}") });
        }
        layer.alias = Some(alias.to_owned());
        Ok(())
    }

    pub fn params(&self) -> &[Param] {
        &self.params
    }

    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.index()]
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    pub fn outputs(&self) -> &[(Output, NodeId)] {
        &self.outputs
    }

    /// The node that gives `output`.
    pub fn output(&self, output: Output) -> Option<NodeId> {
        self.outputs.iter().find(|(other, _)| *other == output).map(|&(_, id)| id)
    }

    /// The shape of the images.
    pub fn input_shape(&self) -> Option<Shape> {
        self.nodes.iter().find(|n| n.op == Op::Input).map(|n| n.shape)
    }

    /// The shape of the logits, `[N, 1, 1, classes]`.
    pub fn logits_shape(&self) -> Option<Shape> {
        self.output(Output::Logits).map(|id| self.node(id).shape)
    }

    /// The node that holds `param`, if the graph reads it.
    pub fn param_node(&self, param: ParamId) -> Option<NodeId> {
        self.nodes().find(|(_, n)| n.op == Op::Param(param)).map(|(id, _)| id)
    }

    /// The ε of a batch norm; none for other layers, and for networks that are compiled already.
    pub fn eps(&self, layer: LayerId) -> Option<f32> {
        self.nodes.iter().find_map(|node| match node.op {
            Op::BatchNorm { eps } if node.layer == Some(layer) => Some(eps),
            _ => None,
        })
    }

    /// Into how many groups a convolution cuts its channels; 1 for other layers.
    pub fn groups(&self, layer: LayerId) -> usize {
        let of_layer = self.nodes.iter().filter(|node| node.layer == Some(layer));
        let groups = of_layer.filter_map(|node| match node.op {
            Op::Conv2d(conv) => Some(conv.groups.count(node.shape.c())),
            _ => None,
        });
        groups.max().unwrap_or(1)
    }

    /// How messages call a node: its layer and its operation.
    pub fn label(&self, id: NodeId) -> String {
        let node = self.node(id);
        match node.layer {
            Some(layer) => format!("{} ({} %{})", self.layers[layer.index()].name, node.op.name(), id.0),
            None => format!("{} %{}", node.op.name(), id.0),
        }
    }

    /// The same network for another batch size.
    ///
    /// # Errors
    /// The batch is 0 or too large, or the graph is compiled already.
    pub fn with_batch(&self, batch: usize) -> Result<Self, GraphError> {
        let mut graph = self.clone();
        let Some(input) = graph.nodes.iter().position(|n| n.op == Op::Input) else { return Ok(graph) };
        let [_, h, w, c] = graph.nodes[input].shape.0;
        builder::check_input(batch, h, w, c)?;
        graph.nodes[input].shape = Shape::nhwc(batch, h, w, c);
        for index in input + 1..graph.nodes.len() {
            let node = &graph.nodes[index];
            let shape = graph.infer(&node.op, &node.inputs, node.layer)?;
            graph.nodes[index].shape = shape;
            if let Some(layer) = graph.nodes[index].layer {
                graph.layers[layer.index()].shape = shape;
            }
        }
        Ok(graph)
    }

    /// The same network, where every batch norm has another ε, a positive number.
    pub fn with_eps(&self, eps: f32) -> Self {
        let mut graph = self.clone();
        for node in &mut graph.nodes {
            if let Op::BatchNorm { eps: old } = &mut node.op {
                *old = eps;
            }
        }
        graph
    }

    /// Which nodes read each node.
    pub(crate) fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes() {
            for input in &node.inputs {
                readers[input.index()].push(id);
            }
        }
        readers
    }

    /// Appends a source whose shape the caller knows.
    pub(crate) fn source(&mut self, op: Op, shape: Shape) -> NodeId {
        self.nodes.push(Node { op, inputs: Vec::new(), shape, layer: None, phase: Phase::Forward });
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Appends state that belongs to `param`.
    pub(crate) fn state(&mut self, kind: StateKind, param: ParamId, shape: Shape) -> NodeId {
        let id = StateId(self.states.len() as u32);
        self.states.push(State { kind, param, shape });
        let state = self.source(Op::State(id), shape);
        self.nodes[state.index()].layer = Some(self.param(param).layer);
        state
    }

    /// Appends state that adds up `value` over a window of micro-batches; returns a fresh view of the sum.
    pub(crate) fn accumulate(&mut self, kind: StateKind, param: ParamId, value: NodeId) -> Result<NodeId, GraphError> {
        let state = self.state(kind, param, self.node(value).shape);
        let layer = self.node(state).layer;
        self.push(Op::Accumulate, vec![state, value], layer, Phase::Backward)
    }

    /// Appends a node after inferring its shape.
    ///
    /// # Errors
    /// The operands' shapes do not suit the operation.
    pub(crate) fn push(
        &mut self,
        op: Op,
        inputs: Vec<NodeId>,
        layer: Option<LayerId>,
        phase: Phase,
    ) -> Result<NodeId, GraphError> {
        let shape = self.infer(&op, &inputs, layer)?;
        self.nodes.push(Node { op, inputs, shape, layer, phase });
        Ok(NodeId(self.nodes.len() as u32 - 1))
    }
}
