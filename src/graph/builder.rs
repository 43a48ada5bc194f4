//! Building a network layer by layer.

use super::{
    Act, Affine, Averaging, Conv2d, Graph, GraphError, Groups, Layer, LayerId, LayerKind, MOMENT_ROWS, Model, Node,
    NodeId, Op, Output, Param, ParamId, Phase, Role, Setting, Window,
};
use crate::tensor::{Shape, pad4};

/// Far above every network, and small enough that no size computed from it overflows.
const MAX_CHANNELS: usize = 1 << 24;

/// What a linear layer takes of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Its only pixel.
    Pixel,
    /// Each pixel by itself.
    EachPixel,
    /// All, flattened, of an image of so many rows and columns.
    Image([usize; 2]),
}

impl Taken {
    /// What a linear layer takes whose product has a window over an input of shape `x`.
    pub(crate) fn of(window: Window, x: Shape) -> Self {
        match window.kernel {
            [1, 1] if [x.h(), x.w()] == [1, 1] => Self::Pixel,
            [1, 1] => Self::EachPixel,
            image => Self::Image(image),
        }
    }
}

/// Builds a [`Graph`]. Every method that adds a layer takes the layer's name, and returns the layer's output.
///
/// # Example
/// ```
/// use thawline::graph::{Builder, Window, Output};
/// # fn main() -> Result<(), thawline::graph::GraphError> {
/// let mut b = Builder::new();
/// let x = b.input(8, 32, 32, 3)?;
/// let x = b.conv2d("conv", x, 16, Window::square(3, 1, 1), false)?;
/// let x = b.batch_norm("bn", x, 1e-5)?;
/// let x = b.relu("relu", x)?;
/// let x = b.global_avg_pool("pool", x)?;
/// let logits = b.linear("fc", x, 10)?;
/// let graph = b.finish(logits)?;
/// assert_eq!(graph.layers().len(), 5);
/// # Ok(())
/// # }
/// ```
pub struct Builder {
    graph: Graph,
    block: Option<String>,
    position: Vec<usize>,
    averaging: Averaging,
    affine: Affine,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    pub fn new() -> Self {
        Self {
            graph: Graph::default(),
            block: None,
            position: Vec::new(),
            averaging: Averaging::PYTORCH,
            affine: Affine::Both,
        }
    }

    /// The images: `n` of `h` × `w` pixels with `c` channels.
    ///
    /// # Errors
    /// A second input, or a dimension of zero.
    pub fn input(&mut self, n: usize, h: usize, w: usize, c: usize) -> Result<NodeId, GraphError> {
        if self.graph.input_shape().is_some() {
            return Err(GraphError { node: "input".into(), reason: "a graph has one input".into() });
        }
        check_input(n, h, w, c)?;
        self.graph.nodes.push(Node {
            op: Op::Input,
            inputs: Vec::new(),
            shape: Shape::nhwc(n, h, w, c),
            layer: None,
            phase: Phase::Forward,
        });
        Ok(NodeId(self.graph.nodes.len() as u32 - 1))
    }

    /// Names the residual block that the layers added from now on belong to; `None` ends it.
    pub fn block(&mut self, name: Option<&str>) {
        self.block = name.map(str::to_owned);
    }

    /// Says what numbers the layers added from now on have in the lists of the file that they are read from; none where
    /// that list is the graph's own. See [`Layer::position`].
    pub fn position(&mut self, numbers: &[usize]) {
        self.position = numbers.to_vec();
    }

    /// Says which models the file has that the layers are read from. See [`Graph::models`].
    pub fn models(&mut self, mut models: Vec<Model>) {
        models.sort_by(|a, b| a.position.cmp(&b.position));
        self.graph.models = models;
    }

    /// Says how the running moments of the batch norms added from now on follow the batches', where the policy does not
    /// say; [`Averaging::PYTORCH`] until then.
    pub fn averaging(&mut self, averaging: Averaging) {
        self.averaging = averaging;
    }

    /// Gives the layer that was added last a second name that selectors know it by.
    ///
    /// # Errors
    /// The name is empty, or another layer has it.
    pub fn alias(&mut self, alias: &str) -> Result<(), GraphError> {
        match self.graph.layers.len().checked_sub(1) {
            Some(last) => self.graph.set_alias(LayerId::new(last), alias),
            None => Err(GraphError { node: alias.into(), reason: "there is no layer that could be called so".into() }),
        }
    }

    /// Says what the batch norms added from now on have of gamma and beta; both until then. See [`Layer::affine`].
    pub fn affine(&mut self, affine: Affine) {
        self.affine = affine;
    }

    /// A convolution to `channels` outputs.
    ///
    /// # Errors
    /// The window does not fit the image, or the name is taken.
    pub fn conv2d(
        &mut self,
        name: &str,
        x: NodeId,
        channels: usize,
        window: Window,
        bias: bool,
    ) -> Result<NodeId, GraphError> {
        self.product(name, LayerKind::Conv, x, channels, window, Groups::One, bias)
    }

    /// A convolution whose input and output channels are cut into `groups`, each group seeing its own inputs only. As
    /// many groups as channels make it depthwise; otherwise the channels of a group are multiples of four.
    ///
    /// # Errors
    /// The window does not fit the image, the channels cannot be cut so, or the name is taken.
    pub fn grouped_conv2d(
        &mut self,
        name: &str,
        x: NodeId,
        channels: usize,
        window: Window,
        groups: usize,
        bias: bool,
    ) -> Result<NodeId, GraphError> {
        let groups = match groups {
            1 => Groups::One,
            n if n == channels && n == self.graph.node(x).shape.c() => Groups::Depthwise,
            n => Groups::Several(n),
        };
        self.product(name, LayerKind::Conv, x, channels, window, groups, bias)
    }

    /// A linear layer with bias on `[N, 1, 1, C]` features.
    ///
    /// # Errors
    /// The input still has pixels, or the name is taken.
    pub fn linear(&mut self, name: &str, x: NodeId, features: usize) -> Result<NodeId, GraphError> {
        self.linear_of(name, x, features, Taken::Pixel, true)
    }

    /// A linear layer on what `taken` says, with or without a bias.
    ///
    /// # Errors
    /// The input has another size, or the name is taken.
    pub fn linear_of(
        &mut self,
        name: &str,
        x: NodeId,
        features: usize,
        taken: Taken,
        bias: bool,
    ) -> Result<NodeId, GraphError> {
        let shape = self.graph.node(x).shape;
        let wrong = |reason: String| Err(GraphError { node: name.into(), reason });
        let kernel = match taken {
            Taken::Pixel if [shape.h(), shape.w()] != [1, 1] => {
                return wrong(format!("a linear layer takes [N, 1, 1, C]; pool the input {shape} first"));
            }
            Taken::Image([h, w]) if [shape.h(), shape.w()] != [h, w] => {
                return wrong(format!(
                    "the linear layer takes a flattened image of {h}×{w} pixels, but gets {}×{}: the network is for one size \
                     of image only",
                    shape.h(),
                    shape.w()
                ));
            }
            Taken::Pixel | Taken::EachPixel => [1; 2],
            Taken::Image(kernel) => kernel,
        };
        let window = Window { kernel, stride: [1; 2], padding: [0; 4] };
        self.product(name, LayerKind::Linear, x, features, window, Groups::One, bias)
    }

    #[expect(clippy::too_many_arguments, reason = "all that tells one product from another")]
    fn product(
        &mut self,
        name: &str,
        kind: LayerKind,
        x: NodeId,
        channels: usize,
        window: Window,
        groups: Groups,
        bias: bool,
    ) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, kind)?;
        let cin = self.graph.node(x).shape.c();
        if channels == 0 || channels > MAX_CHANNELS {
            let reason = format!("needs 1 to {MAX_CHANNELS} output channels, not {channels}");
            return Err(GraphError { node: name.into(), reason });
        }
        let (role, cin) = match groups {
            Groups::Depthwise => (Role::DepthwiseWeight, 1),
            _ if kind == LayerKind::Linear => (Role::LinearWeight, cin),
            Groups::One => (Role::ConvWeight, cin),
            Groups::Several(groups) => (Role::ConvWeight, cin.checked_div(groups).unwrap_or(0)),
        };
        let rows = if role == Role::DepthwiseWeight { 1 } else { pad4(cin) };
        let weight = Shape([window.kernel[0], window.kernel[1], rows, channels]);
        let mut inputs = vec![x, self.param(layer, role, weight, cin)?];
        if bias {
            inputs.push(self.param(layer, Role::Bias, Shape::rows(1, channels), channels)?);
        }
        let conv = Conv2d { window, groups, bias, residual: false, act: Act::Identity, mask: false };
        self.node(Op::Conv2d(conv), inputs, layer)
    }

    /// A batch norm. What it does in training is the policy's business, not the graph's.
    ///
    /// # Errors
    /// `eps` is not a positive number, or the name is taken.
    pub fn batch_norm(&mut self, name: &str, x: NodeId, eps: f32) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Bn)?;
        check_eps(name, eps)?;
        let c = self.graph.node(x).shape.c();
        let affine = self.param(layer, Role::Affine, Shape::rows(2, c), c)?;
        let moments = self.param(layer, Role::Moments, Shape::rows(MOMENT_ROWS, c), c)?;
        self.node(Op::BatchNorm { eps }, vec![x, affine, moments], layer)
    }

    /// # Errors
    /// The name is taken.
    pub fn relu(&mut self, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        self.activation(name, x, Act::Relu)
    }

    /// # Errors
    /// The activation is the identity, or the name is taken.
    pub fn activation(&mut self, name: &str, x: NodeId, act: Act) -> Result<NodeId, GraphError> {
        if act == Act::Identity {
            return Err(GraphError { node: name.into(), reason: "an activation layer does something".into() });
        }
        let layer = self.layer(name, LayerKind::Activation(act))?;
        self.node(Op::Activation { act, mask: false }, vec![x], layer)
    }

    /// Each channel of each image of `x` times the gate's value for it: the end of squeeze-and-excitation.
    ///
    /// # Errors
    /// The gate is not `[N, 1, 1, C]`, or the name is taken.
    pub fn scale(&mut self, name: &str, x: NodeId, gate: NodeId) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Scale)?;
        self.node(Op::Scale { mean: false }, vec![x, gate], layer)
    }

    /// Each channel times a factor that trains (Touvron et al. 2021): the parameter that a file has under the layer's own name,
    /// as `[C]` or with `dims` 3 as `[C, 1, 1]`.
    ///
    /// # Errors
    /// `dims` is neither 1 nor 3, or the name is taken.
    pub fn layer_scale(&mut self, name: &str, x: NodeId, dims: usize) -> Result<NodeId, GraphError> {
        let role = match dims {
            1 => Role::Scale,
            3 => Role::ImageScale,
            _ => return Err(GraphError { node: name.into(), reason: format!("`dims` is 1 or 3, not {dims}") }),
        };
        let layer = self.layer(name, LayerKind::LayerScale)?;
        let c = self.graph.node(x).shape.c();
        let factors = self.param(layer, role, Shape::rows(1, c), c)?;
        self.node(Op::Scale { mean: false }, vec![x, factors], layer)
    }

    /// A layer norm over the channels of each pixel.
    ///
    /// # Errors
    /// `eps` is not a positive number, or the name is taken.
    pub fn layer_norm(&mut self, name: &str, x: NodeId, eps: f32) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::LayerNorm)?;
        check_eps(name, eps)?;
        let c = self.graph.node(x).shape.c();
        let affine = self.param(layer, Role::Affine, Shape::rows(2, c), c)?;
        self.node(Op::LayerNorm { eps, moments: false }, vec![x, affine], layer)
    }

    /// A group norm: over the pixels of each image and the channels of each of `groups` runs.
    ///
    /// # Errors
    /// `eps` is not a positive number, the channels cannot be cut so, or the name is taken.
    pub fn group_norm(&mut self, name: &str, x: NodeId, groups: usize, eps: f32) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::GroupNorm)?;
        check_eps(name, eps)?;
        let c = self.graph.node(x).shape.c();
        let affine = self.param(layer, Role::Affine, Shape::rows(2, c), c)?;
        self.node(Op::GroupNorm { eps, groups, moments: false }, vec![x, affine], layer)
    }

    /// The channels of several images of one size, side by side.
    ///
    /// # Errors
    /// There are fewer than two, their sizes differ, or the name is taken.
    pub fn concat(&mut self, name: &str, x: &[NodeId]) -> Result<NodeId, GraphError> {
        if x.len() < 2 {
            return Err(GraphError { node: name.into(), reason: "a concatenation takes two inputs or more".into() });
        }
        let layer = self.layer(name, LayerKind::Concat)?;
        self.node(Op::Concat, x.to_vec(), layer)
    }

    /// `channels` channels from `begin` on.
    ///
    /// # Errors
    /// There are not so many, or the name is taken.
    pub fn slice(&mut self, name: &str, x: NodeId, begin: usize, channels: usize) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Slice)?;
        self.node(Op::Slice { begin, channels, accumulate: false }, vec![x], layer)
    }

    /// The channel shuffle (Zhang et al. 2018): channel `j·groups + i` is channel `i·(C/groups) + j` of x.
    ///
    /// # Errors
    /// The channels cannot be cut so, or the name is taken.
    pub fn shuffle(&mut self, name: &str, x: NodeId, groups: usize) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Shuffle)?;
        self.node(Op::Shuffle { groups }, vec![x], layer)
    }

    /// The product of two tensors of one shape, value by value.
    ///
    /// # Errors
    /// The shapes differ, or the name is taken.
    pub fn multiply(&mut self, name: &str, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Multiply)?;
        self.node(Op::Multiply, vec![a, b], layer)
    }

    /// The logits of two classes from one channel, the logit of the second: binary classification by one sigmoid output.
    ///
    /// # Errors
    /// There is more than one channel, or the name is taken.
    pub fn binary(&mut self, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Binary)?;
        self.node(Op::Binary, vec![x], layer)
    }

    /// Zeros around each image: at the top, left, bottom and right.
    ///
    /// # Errors
    /// The name is taken.
    pub fn pad(&mut self, name: &str, x: NodeId, padding: [usize; 4]) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Pad)?;
        self.node(Op::Pad { padding }, vec![x], layer)
    }

    /// Drops a share `rate` of the values in training, where the policy lets it, and scales the others up.
    ///
    /// # Errors
    /// The rate is not in `[0, 1)`, or the name is taken.
    pub fn dropout(&mut self, name: &str, x: NodeId, rate: f32) -> Result<NodeId, GraphError> {
        self.dropping(name, LayerKind::Dropout, x, rate)
    }

    /// Drops a share `rate` of the images in training, where the policy lets it, and scales the others up: what a
    /// residual block adds, so that those images skip it.
    ///
    /// # Errors
    /// The rate is not in `[0, 1)`, or the name is taken.
    pub fn stochastic_depth(&mut self, name: &str, x: NodeId, rate: f32) -> Result<NodeId, GraphError> {
        self.dropping(name, LayerKind::StochasticDepth, x, rate)
    }

    fn dropping(&mut self, name: &str, kind: LayerKind, x: NodeId, rate: f32) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, kind)?;
        if !(0.0..1.0).contains(&rate) {
            return Err(GraphError { node: name.into(), reason: format!("the rate must be in [0, 1), not {rate}") });
        }
        let whole = kind == LayerKind::StochasticDepth;
        self.node(Op::Dropout { rate, whole, stream: layer.0, residual: false }, vec![x], layer)
    }

    /// The sum of two tensors of one shape.
    ///
    /// # Errors
    /// The shapes differ, or the name is taken.
    pub fn add(&mut self, name: &str, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::Add)?;
        self.node(Op::Add { act: Act::Identity, mask: false }, vec![a, b], layer)
    }

    /// Max pooling; padding counts as −∞.
    ///
    /// # Errors
    /// The window does not fit the image, or the name is taken.
    pub fn max_pool(&mut self, name: &str, x: NodeId, window: Window) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::MaxPool)?;
        self.node(Op::MaxPool { window, argmax: false }, vec![x], layer)
    }

    /// Average pooling. Of the padding at the top, left, bottom and right the `counted` pixels next to the image count as zeros,
    /// and the others not at all.
    ///
    /// # Errors
    /// The window does not fit the image, or somewhere covers nothing that counts; or the name is taken.
    pub fn avg_pool(
        &mut self,
        name: &str,
        x: NodeId,
        window: Window,
        counted: [usize; 4],
    ) -> Result<NodeId, GraphError> {
        let layer = self.layer(name, LayerKind::AvgPool)?;
        self.node(Op::AvgPool { window, counted }, vec![x], layer)
    }

    /// The mean over all pixels, `[N, 1, 1, C]`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn global_avg_pool(&mut self, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        let shape = self.graph.node(x).shape;
        let window = Window { kernel: [shape.h(), shape.w()], stride: [1, 1], padding: [0; 4] };
        self.avg_pool(name, x, window, [0; 4])
    }

    /// The maximum over all pixels, `[N, 1, 1, C]`.
    ///
    /// # Errors
    /// There are more than 256 pixels, or the name is taken.
    pub fn global_max_pool(&mut self, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
        let shape = self.graph.node(x).shape;
        self.max_pool(name, x, Window { kernel: [shape.h(), shape.w()], stride: [1, 1], padding: [0; 4] })
    }

    /// The shape of a node built so far.
    pub fn shape(&self, x: NodeId) -> Shape {
        self.graph.node(x).shape
    }

    /// Ends the network at its logits.
    ///
    /// # Errors
    /// The logits are not `[N, 1, 1, classes]`, or a layer's position is in none of the models.
    pub fn finish(mut self, logits: NodeId) -> Result<Graph, GraphError> {
        let shape = self.graph.node(logits).shape;
        if shape.h() != 1 || shape.w() != 1 {
            return Err(GraphError {
                node: self.graph.label(logits),
                reason: format!("the logits must be [N, 1, 1, classes], not {shape}"),
            });
        }
        self.graph.outputs.push((Output::Logits, logits));
        self.graph.verify()?;
        self.graph.check_models()?;
        Ok(self.graph)
    }

    fn layer(&mut self, name: &str, kind: LayerKind) -> Result<LayerId, GraphError> {
        let taken = self.graph.layers.iter().any(|l| l.name == name || l.alias.as_deref() == Some(name));
        if taken || name.is_empty() {
            let reason = if taken { "the name is taken" } else { "a layer needs a name" };
            return Err(GraphError { node: name.into(), reason: reason.into() });
        }
        self.graph.layers.push(Layer {
            name: name.into(),
            alias: None,
            position: self.position.clone(),
            kind,
            block: self.block.clone(),
            averaging: if kind == LayerKind::Bn { self.averaging } else { Averaging::PYTORCH },
            affine: if kind == LayerKind::Bn { self.affine } else { Affine::Both },
            shape: Shape([0; 4]),
            params: Vec::new(),
            setting: Setting { weights: false, lr: 1.0, dropout: false, batch_norm: None },
        });
        Ok(LayerId(self.graph.layers.len() as u32 - 1))
    }

    fn param(&mut self, layer: LayerId, role: Role, shape: Shape, channels: usize) -> Result<NodeId, GraphError> {
        let id = ParamId(self.graph.params.len() as u32);
        self.graph.params.push(Param { layer, role, shape, channels, update: None, part: None });
        self.graph.layers[layer.index()].params.push(id);
        self.graph.push(Op::Param(id), Vec::new(), Some(layer), Phase::Forward)
    }

    fn node(&mut self, op: Op, inputs: Vec<NodeId>, layer: LayerId) -> Result<NodeId, GraphError> {
        let id = self.graph.push(op, inputs, Some(layer), Phase::Forward)?;
        let shape = self.graph.node(id).shape;
        if shape.stored_len() > u32::MAX as usize {
            return Err(GraphError {
                node: self.graph.layers[layer.index()].name.clone(),
                reason: format!("its output {shape} is too large: 32-bit indices cannot address it"),
            });
        }
        self.graph.layers[layer.index()].shape = shape;
        Ok(id)
    }
}

fn check_eps(name: &str, eps: f32) -> Result<(), GraphError> {
    match eps > 0.0 && eps.is_finite() {
        true => Ok(()),
        false => Err(GraphError { node: name.into(), reason: format!("eps must be positive, not {eps}") }),
    }
}

/// Refuses images that are empty or that 32-bit indices cannot address.
pub(super) fn check_input(n: usize, h: usize, w: usize, c: usize) -> Result<(), GraphError> {
    let words = [n, h, w, c.saturating_add(3)].iter().try_fold(1usize, |a, &b| a.checked_mul(b));
    let reason = match words {
        _ if [n, h, w, c].contains(&0) => "is empty",
        Some(words) if words <= u32::MAX as usize => return Ok(()),
        _ => "is too large: 32-bit indices cannot address it; use fewer or smaller images",
    };
    Err(GraphError { node: "input".into(), reason: format!("[{n}, {h}, {w}, {c}] {reason}") })
}
