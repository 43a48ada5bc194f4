//! Networks of inverted residual blocks: EfficientNet, MobileNetV2 and MobileNetV3, as each framework builds and names
//! them.

use super::BatchNorms;
use crate::graph::{Act, Builder, GraphError, NodeId, Window};

/// The shape of a network, which all frameworks agree on.
pub(super) struct Layout {
    /// Channels of the first convolution, before [`width`](Self::width).
    pub(super) stem: usize,
    pub(super) stages: &'static [Stage],
    /// Multiplies all channels but [`hidden`](Self::hidden).
    pub(super) width: f64,
    /// Multiplies the blocks of each stage.
    pub(super) depth: f64,
    pub(super) squeeze: Squeeze,
    /// After the first and the last convolution.
    pub(super) act: Act,
    /// Channels of the last convolution, before [`width`](Self::width).
    pub(super) head: usize,
    /// Features of a layer between the pooled image and the classes.
    pub(super) hidden: Option<usize>,
    pub(super) dropout: f32,
    /// Of the block that would follow the last; it rises linearly from 0.
    pub(super) stochastic_depth: f64,
}

/// Blocks of one kind. The first has the stride and may change the channels.
pub(super) struct Stage {
    pub(super) expand: Expand,
    /// Whether one convolution stands for the expansion and the depthwise one.
    pub(super) fused: bool,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Before [`Layout::width`].
    pub(super) channels: usize,
    pub(super) squeezed: bool,
    pub(super) act: Act,
}

/// The channels inside of a stage's blocks, and with that how many blocks it has.
pub(super) enum Expand {
    /// So many times those that a block takes, in so many blocks before [`Layout::depth`].
    Times(usize, usize),
    /// Those of each block.
    To(&'static [usize]),
}

/// Squeeze-and-excitation: the channels in the middle, and the two activations.
pub(super) enum Squeeze {
    /// A quarter of what the block takes; SiLU and sigmoid.
    Input,
    /// A quarter of what the depthwise convolution gives, as a multiple of eight; ReLU and hard sigmoid.
    Expanded,
}

/// What a framework does its own way.
pub(super) struct Variant {
    pub(super) naming: Naming,
    pub(super) padding: Padding,
    pub(super) batch_norms: BatchNorms,
    /// Whether it drops anything unless it is told to.
    pub(super) drops: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Padding {
    /// The same on all sides, half a window.
    Symmetric,
    /// TensorFlow's: as little as keeps `⌈size/stride⌉` pixels, the odd one at the bottom and right.
    Same,
}

/// Whose names the layers have. A layer that a framework has no name for takes one that fits in.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    /// torchvision's EfficientNet: blocks counted in each stage.
    TorchvisionStages,
    /// torchvision's MobileNetV2: blocks counted throughout, the last convolution of a block bare.
    TorchvisionV2,
    /// torchvision's MobileNetV3: blocks counted throughout.
    TorchvisionV3,
    Timm,
    /// With the name of the depthwise convolution.
    KerasEfficientNet(&'static str),
    KerasMobileNetV2,
    KerasMobileNetV3,
}

/// A convolution with its batch norm and its activation, by its place in a block.
#[derive(Clone, Copy)]
enum Part {
    Expand,
    Depthwise,
    Project,
    /// What projects where nothing expanded.
    Pointwise,
    /// Expands in place of [`Expand`](Part::Expand) and [`Depthwise`](Part::Depthwise).
    Fused,
    /// All that a fused block without expansion has.
    Whole,
}

/// The layers of squeeze-and-excitation: pooling, squeeze, its activation, excitation, its activation, scale.
type SqueezeNames = [&'static str; 6];

/// A block being built.
struct Block<'a> {
    name: String,
    layout: &'a Layout,
    variant: &'a Variant,
    act: Act,
    /// Parts so far, squeeze-and-excitation included.
    parts: usize,
    /// Convolutions with a batch norm so far.
    convs: usize,
}

/// The multiple of eight that is nearest, but no less than nine tenths.
fn by_eight(channels: f64) -> usize {
    let nearest = ((channels + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * channels { nearest + 8 } else { nearest }
}

impl Layout {
    fn widened(&self, channels: usize) -> usize {
        by_eight(channels as f64 * self.width)
    }

    fn blocks(&self, stage: &Stage) -> usize {
        match stage.expand {
            Expand::Times(_, blocks) => (blocks as f64 * self.depth).ceil() as usize,
            Expand::To(channels) => channels.len(),
        }
    }

    /// From images `[N, H, W, 3]` to logits `[N, 1, 1, classes]`.
    pub(super) fn network(
        &self,
        variant: &Variant,
        b: &mut Builder,
        images: NodeId,
        classes: usize,
    ) -> Result<NodeId, GraphError> {
        let naming = variant.naming;
        b.averaging(variant.batch_norms.averaging);
        let window = variant.padding.window(b, images, 3, 2);
        let stem = b.conv2d(naming.stem()[0], images, self.widened(self.stem), window, false)?;
        let mut x = b.batch_norm(naming.stem()[1], stem, variant.batch_norms.eps)?;
        x = b.activation(naming.stem()[2], x, self.act)?;

        let total: usize = self.stages.iter().map(|stage| self.blocks(stage)).sum();
        let mut number = 0;
        for (index, stage) in self.stages.iter().enumerate() {
            for within in 0..self.blocks(stage) {
                let name = naming.block(index, within, number);
                b.block(Some(&name));
                let block = Block { name, layout: self, variant, act: stage.act, parts: 0, convs: 0 };
                let drop = self.stochastic_depth * number as f64 / total as f64;
                x = block.add_to(b, x, stage, within, drop as f32)?;
                number += 1;
            }
        }
        b.block(None);

        let [conv, bn, act] = naming.head(self.stages.len(), number, self.hidden.is_some());
        x = b.conv2d(&conv, x, self.widened(self.head), Window::square(1, 1, 0), false)?;
        x = b.batch_norm(&bn, x, variant.batch_norms.eps)?;
        x = b.activation(&act, x, self.act)?;
        let tail = naming.tail();
        x = b.global_avg_pool(tail.pool, x)?;
        if let Some(features) = self.hidden {
            x = match naming {
                Naming::TorchvisionV3 => b.linear(tail.hidden[0], x, features)?,
                _ => b.conv2d(tail.hidden[0], x, features, Window::square(1, 1, 0), true)?,
            };
            x = b.activation(tail.hidden[1], x, self.act)?;
        }
        if variant.drops {
            x = b.dropout(tail.dropout, x, self.dropout)?;
        }
        match naming {
            Naming::KerasMobileNetV3 => b.conv2d(tail.classes, x, classes, Window::square(1, 1, 0), true),
            _ => b.linear(tail.classes, x, classes),
        }
    }
}

impl Padding {
    fn window(self, b: &Builder, x: NodeId, kernel: usize, stride: usize) -> Window {
        match self {
            Self::Symmetric => Window::square(kernel, stride, kernel / 2),
            Self::Same => Window::same([kernel; 2], [stride; 2], [b.shape(x).h(), b.shape(x).w()]),
        }
    }
}

impl Block<'_> {
    fn add_to(
        mut self,
        b: &mut Builder,
        input: NodeId,
        stage: &Stage,
        within: usize,
        drop: f32,
    ) -> Result<NodeId, GraphError> {
        let taken = b.shape(input).c();
        let given = self.layout.widened(stage.channels);
        let inner = match stage.expand {
            Expand::Times(ratio, _) => taken * ratio,
            Expand::To(channels) => self.layout.widened(channels[within]),
        };
        let stride = if within == 0 { stage.stride } else { 1 };
        let expands = inner != taken;
        let act = Some(self.act);

        let mut x = input;
        match (stage.fused, expands) {
            (true, false) => x = self.conv(b, Part::Whole, x, given, (stage.kernel, stride, 1), act)?,
            (true, true) => {
                x = self.conv(b, Part::Fused, x, inner, (stage.kernel, stride, 1), act)?;
                x = self.conv(b, Part::Project, x, given, (1, 1, 1), None)?;
            }
            (false, _) => {
                if expands {
                    x = self.conv(b, Part::Expand, x, inner, (1, 1, 1), act)?;
                }
                x = self.conv(b, Part::Depthwise, x, inner, (stage.kernel, stride, inner), act)?;
                if stage.squeezed {
                    x = self.squeeze(b, x, taken)?;
                }
                let part = if expands { Part::Project } else { Part::Pointwise };
                x = self.conv(b, part, x, given, (1, 1, 1), None)?;
            }
        }
        if stride != 1 || taken != given {
            return Ok(x);
        }
        let [stochastic_depth, add] = self.variant.naming.end(&self.name);
        if self.variant.drops && drop > 0.0 {
            x = b.stochastic_depth(&stochastic_depth, x, drop)?;
        }
        b.add(&add, x, input)
    }

    /// `shape` is the window's side, its stride and the groups.
    fn conv(
        &mut self,
        b: &mut Builder,
        part: Part,
        x: NodeId,
        channels: usize,
        shape: (usize, usize, usize),
        act: Option<Act>,
    ) -> Result<NodeId, GraphError> {
        let (kernel, stride, groups) = shape;
        let window = self.variant.padding.window(b, x, kernel, stride);
        let [conv, bn, activation] = self.variant.naming.part(&self.name, part, self.parts, self.convs);
        (self.parts, self.convs) = (self.parts + 1, self.convs + 1);
        let mut x = b.grouped_conv2d(&conv, x, channels, window, groups, false)?;
        x = b.batch_norm(&bn, x, self.variant.batch_norms.eps)?;
        match act {
            Some(act) => b.activation(&activation, x, act),
            None => Ok(x),
        }
    }

    /// Hu et al. 2018; `taken` are the channels that the block takes.
    fn squeeze(&mut self, b: &mut Builder, x: NodeId, taken: usize) -> Result<NodeId, GraphError> {
        let inner = b.shape(x).c();
        let (middle, acts) = match self.layout.squeeze {
            Squeeze::Input => (taken / 4, [Act::Silu, Act::Sigmoid]),
            Squeeze::Expanded => (by_eight((inner / 4) as f64), [Act::Relu, Act::HardSigmoid]),
        };
        let (prefix, names) = self.variant.naming.squeeze(&self.name, self.parts);
        let [pool, squeeze, squeezed, excite, excited, scale] = names.map(|name| format!("{prefix}{name}"));
        self.parts += 1;
        let point = Window::square(1, 1, 0);
        let mut gate = b.global_avg_pool(&pool, x)?;
        gate = b.conv2d(&squeeze, gate, middle, point, true)?;
        gate = b.activation(&squeezed, gate, acts[0])?;
        gate = b.conv2d(&excite, gate, inner, point, true)?;
        gate = b.activation(&excited, gate, acts[1])?;
        b.scale(&scale, x, gate)
    }
}

/// What follows the last convolution.
struct Tail {
    pool: &'static str,
    /// A layer and its activation, where networks have them.
    hidden: [&'static str; 2],
    dropout: &'static str,
    classes: &'static str,
}

impl Naming {
    fn stem(self) -> [&'static str; 3] {
        match self {
            Self::TorchvisionStages | Self::TorchvisionV2 | Self::TorchvisionV3 => {
                ["features.0.0", "features.0.1", "features.0.2"]
            }
            Self::Timm => ["conv_stem", "bn1", "bn1.act"],
            Self::KerasEfficientNet(_) => ["stem_conv", "stem_bn", "stem_activation"],
            Self::KerasMobileNetV2 => ["Conv1", "bn_Conv1", "Conv1_relu"],
            Self::KerasMobileNetV3 => ["conv", "conv_bn", "conv_activation"],
        }
    }

    /// The name of the block which is number `within` in its stage, and `number` in the network.
    fn block(self, stage: usize, within: usize, number: usize) -> String {
        match self {
            Self::TorchvisionStages => format!("features.{}.{within}", stage + 1),
            Self::TorchvisionV2 | Self::TorchvisionV3 => format!("features.{}", number + 1),
            Self::Timm => format!("blocks.{stage}.{within}"),
            Self::KerasEfficientNet(_) => {
                format!("block{}{}", stage + 1, char::from(b'a' + within as u8))
            }
            Self::KerasMobileNetV2 | Self::KerasMobileNetV3 if number == 0 => "expanded_conv".into(),
            Self::KerasMobileNetV2 => format!("block_{number}"),
            Self::KerasMobileNetV3 => format!("expanded_conv_{number}"),
        }
    }

    /// The names of a convolution, its batch norm and its activation, after so many parts and convolutions of the block.
    fn part(self, block: &str, part: Part, parts: usize, convs: usize) -> [String; 3] {
        let joined = |names: [&str; 3]| names.map(|name| format!("{block}_{name}"));
        match self {
            Self::TorchvisionStages | Self::TorchvisionV3 => [0, 1, 2].map(|i| format!("{block}.block.{parts}.{i}")),
            Self::TorchvisionV2 => match part {
                Part::Project | Part::Pointwise => [0, 1, 2].map(|i| format!("{block}.conv.{}", parts + i)),
                _ => [0, 1, 2].map(|i| format!("{block}.conv.{parts}.{i}")),
            },
            Self::Timm => {
                let conv = match part {
                    Part::Expand | Part::Pointwise => "conv_pw",
                    Part::Depthwise => "conv_dw",
                    Part::Project => "conv_pwl",
                    Part::Fused => "conv_exp",
                    Part::Whole => "conv",
                };
                let bn = format!("{block}.bn{}", convs + 1);
                [format!("{block}.{conv}"), bn.clone(), format!("{bn}.act")]
            }
            Self::KerasEfficientNet(depthwise) => joined(match part {
                Part::Expand | Part::Fused => ["expand_conv", "expand_bn", "expand_activation"],
                Part::Depthwise => [depthwise, "bn", "activation"],
                Part::Project | Part::Pointwise | Part::Whole => ["project_conv", "project_bn", "project_activation"],
            }),
            Self::KerasMobileNetV2 => joined(match part {
                Part::Depthwise => ["depthwise", "depthwise_BN", "depthwise_relu"],
                Part::Project | Part::Pointwise => ["project", "project_BN", "project_relu"],
                Part::Expand | Part::Fused | Part::Whole => ["expand", "expand_BN", "expand_relu"],
            }),
            Self::KerasMobileNetV3 => joined(match part {
                Part::Depthwise => ["depthwise", "depthwise_bn", "depthwise_activation"],
                Part::Project | Part::Pointwise => ["project", "project_bn", "project_activation"],
                Part::Expand | Part::Fused | Part::Whole => ["expand", "expand_bn", "expand_activation"],
            }),
        }
    }

    /// What the names of the layers begin with, and how they go on.
    fn squeeze(self, block: &str, parts: usize) -> (String, SqueezeNames) {
        match self {
            Self::TorchvisionStages | Self::TorchvisionV2 | Self::TorchvisionV3 => (
                format!("{block}.block.{parts}."),
                ["avgpool", "fc1", "activation", "fc2", "scale_activation", "scale"],
            ),
            Self::Timm => (format!("{block}.se."), ["avgpool", "conv_reduce", "act1", "conv_expand", "gate", "scale"]),
            Self::KerasEfficientNet(_) | Self::KerasMobileNetV2 => (
                format!("{block}_se_"),
                ["squeeze", "reduce", "reduce_activation", "expand", "expand_activation", "excite"],
            ),
            Self::KerasMobileNetV3 => {
                (format!("{block}_squeeze_excite_"), ["avg_pool", "conv", "relu", "conv_1", "hard_sigmoid", "mul"])
            }
        }
    }

    /// Stochastic depth and the addition at the end of a block.
    fn end(self, block: &str) -> [String; 2] {
        match self {
            Self::TorchvisionStages | Self::TorchvisionV2 | Self::TorchvisionV3 => {
                [format!("{block}.stochastic_depth"), format!("{block}.add")]
            }
            Self::Timm => [format!("{block}.drop_path"), format!("{block}.add")],
            Self::KerasEfficientNet(_) | Self::KerasMobileNetV2 | Self::KerasMobileNetV3 => {
                [format!("{block}_drop"), format!("{block}_add")]
            }
        }
    }

    /// The last convolution of a network of so many stages and blocks, its batch norm and its activation.
    fn head(self, stages: usize, blocks: usize, hidden: bool) -> [String; 3] {
        let owned = |names: [&str; 3]| names.map(str::to_owned);
        match self {
            Self::TorchvisionStages => [0, 1, 2].map(|i| format!("features.{}.{i}", stages + 1)),
            Self::TorchvisionV2 | Self::TorchvisionV3 => [0, 1, 2].map(|i| format!("features.{}.{i}", blocks + 1)),
            Self::Timm if hidden => ["conv", "bn1", "bn1.act"].map(|name| format!("blocks.{stages}.0.{name}")),
            Self::Timm => owned(["conv_head", "bn2", "bn2.act"]),
            Self::KerasEfficientNet(_) => owned(["top_conv", "top_bn", "top_activation"]),
            Self::KerasMobileNetV2 => owned(["Conv_1", "Conv_1_bn", "out_relu"]),
            Self::KerasMobileNetV3 => owned(["conv_1", "conv_1_bn", "conv_1_activation"]),
        }
    }

    fn tail(self) -> Tail {
        let (pool, hidden, dropout, classes) = match self {
            Self::TorchvisionStages | Self::TorchvisionV2 => ("avgpool", ["", ""], "classifier.0", "classifier.1"),
            Self::TorchvisionV3 => ("avgpool", ["classifier.0", "classifier.1"], "classifier.2", "classifier.3"),
            Self::Timm => ("global_pool", ["conv_head", "act2"], "drop", "classifier"),
            Self::KerasEfficientNet(_) => ("avg_pool", ["", ""], "top_dropout", "predictions"),
            Self::KerasMobileNetV2 => ("global_average_pooling2d", ["", ""], "dropout", "predictions"),
            Self::KerasMobileNetV3 => {
                ("global_average_pooling2d", ["conv_2", "conv_2_activation"], "dropout", "logits")
            }
        };
        Tail { pool, hidden, dropout, classes }
    }
}
