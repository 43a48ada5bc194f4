//! Residual networks as torchvision and Keras build and name them, and a small one for small images.

use super::BatchNorms;
use crate::graph::{Averaging, Builder, GraphError, NodeId, Window};

/// What tells one residual network from another.
pub(super) struct Config {
    stem: Stem,
    block: Block,
    /// Blocks in each stage. Every stage after the first halves the image and doubles the channels.
    blocks: &'static [usize],
    /// Channels of the stem and of the first stage (of its 3×3 convolutions, where blocks are bottlenecks).
    channels: usize,
    variant: Variant,
}

enum Stem {
    /// A 7×7 convolution and a max pooling: a quarter of the image.
    Quarter,
    /// A 3×3 convolution that keeps the image's size.
    Whole,
}

enum Block {
    Basic,
    /// 1×1, 3×3, 1×1 to four times the channels; the first two have `width` times the stage's, and the middle one cuts
    /// them into `groups`.
    Bottleneck {
        width: usize,
        groups: usize,
    },
}

/// What a framework does its own way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Torchvision,
    /// Convolutions have biases, and the stride is on the first one of a bottleneck.
    Keras,
}

pub(super) const RESNET18: Config = basic(&[2, 2, 2, 2]);
pub(super) const RESNET34: Config = basic(&[3, 4, 6, 3]);
pub(super) const RESNET50: Config = bottleneck(&[3, 4, 6, 3], 1, 1);
pub(super) const RESNET101: Config = bottleneck(&[3, 4, 23, 3], 1, 1);
pub(super) const RESNET152: Config = bottleneck(&[3, 8, 36, 3], 1, 1);
pub(super) const WIDE_RESNET50_2: Config = bottleneck(&[3, 4, 6, 3], 2, 1);
pub(super) const WIDE_RESNET101_2: Config = bottleneck(&[3, 4, 23, 3], 2, 1);
/// Xie et al. 2017.
pub(super) const RESNEXT50_32X4D: Config = bottleneck(&[3, 4, 6, 3], 2, 32);
pub(super) const RESNEXT101_32X8D: Config = bottleneck(&[3, 4, 23, 3], 4, 32);
pub(super) const RESNEXT101_64X4D: Config = bottleneck(&[3, 4, 23, 3], 4, 64);
pub(super) const RESNET_TINY: Config =
    Config { stem: Stem::Whole, block: Block::Basic, channels: 16, ..basic(&[2, 2, 2]) };
pub(super) const KERAS_RESNET50: Config = Config { variant: Variant::Keras, ..RESNET50 };
pub(super) const KERAS_RESNET101: Config = Config { variant: Variant::Keras, ..RESNET101 };
pub(super) const KERAS_RESNET152: Config = Config { variant: Variant::Keras, ..RESNET152 };

const fn basic(blocks: &'static [usize]) -> Config {
    Config { stem: Stem::Quarter, block: Block::Basic, blocks, channels: 64, variant: Variant::Torchvision }
}

const fn bottleneck(blocks: &'static [usize], width: usize, groups: usize) -> Config {
    Config { block: Block::Bottleneck { width, groups }, ..basic(blocks) }
}

impl Config {
    /// From images `[N, H, W, 3]` to logits `[N, 1, 1, classes]`.
    pub(super) fn network(&self, b: &mut Builder, images: NodeId, classes: usize) -> Result<NodeId, GraphError> {
        let window = match self.stem {
            Stem::Quarter => Window::square(7, 2, 3),
            Stem::Whole => Window::square(3, 1, 1),
        };
        let variant = self.variant;
        b.averaging(variant.batch_norms().averaging);
        let [conv, bn, relu, max_pool] = variant.stem();
        let mut x = b.conv2d(conv, images, self.channels, window, variant.bias())?;
        x = b.batch_norm(bn, x, variant.batch_norms().eps)?;
        x = b.relu(relu, x)?;
        if let Stem::Quarter = self.stem {
            // Keras pads with zeros, which is the same behind a ReLU.
            x = b.max_pool(max_pool, x, Window::square(3, 2, 1))?;
        }
        for (stage, &blocks) in self.blocks.iter().enumerate() {
            for block in 0..blocks {
                let name = variant.block(stage, block);
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                b.block(Some(&name));
                x = self.block.add_to(b, variant, &name, x, self.channels << stage, stride)?;
            }
        }
        b.block(None);
        let [avg_pool, classifier] = variant.tail();
        x = b.global_avg_pool(avg_pool, x)?;
        b.linear(classifier, x, classes)
    }
}

impl Block {
    fn add_to(
        &self,
        b: &mut Builder,
        variant: Variant,
        name: &str,
        x: NodeId,
        channels: usize,
        stride: usize,
    ) -> Result<NodeId, GraphError> {
        let basic = [(channels, Window::square(3, stride, 1), 1), (channels, Window::square(3, 1, 1), 1)];
        let bottleneck;
        let convs: &[(usize, Window, usize)] = match self {
            Self::Basic => &basic,
            Self::Bottleneck { width, groups } => {
                let inner = channels * width;
                let (first, second) = if variant == Variant::Keras { (stride, 1) } else { (1, stride) };
                bottleneck = [
                    (inner, Window::square(1, first, 0), 1),
                    (inner, Window::square(3, second, 1), *groups),
                    (channels * 4, Window::square(1, 1, 0), 1),
                ];
                &bottleneck
            }
        };

        let (bias, eps) = (variant.bias(), variant.batch_norms().eps);
        let mut y = x;
        for (i, &(channels, window, groups)) in (1..).zip(convs) {
            let [conv, bn, relu] = variant.part(name, i);
            y = b.grouped_conv2d(&conv, y, channels, window, groups, bias)?;
            y = b.batch_norm(&bn, y, eps)?;
            if i < convs.len() {
                y = b.relu(&relu, y)?;
            }
        }

        let mut shortcut = x;
        let channels = b.shape(y).c();
        let [conv, bn, add, relu] = variant.end(name, convs.len());
        if stride != 1 || b.shape(x).c() != channels {
            shortcut = b.conv2d(&conv, x, channels, Window::square(1, stride, 0), bias)?;
            shortcut = b.batch_norm(&bn, shortcut, eps)?;
        }
        y = b.add(&add, y, shortcut)?;
        b.relu(&relu, y)
    }
}

impl Variant {
    const fn bias(self) -> bool {
        matches!(self, Self::Keras)
    }

    const fn batch_norms(self) -> BatchNorms {
        match self {
            Self::Torchvision => BatchNorms { eps: 1e-5, averaging: Averaging::PYTORCH },
            Self::Keras => BatchNorms { eps: 1.001e-5, averaging: Averaging::KERAS },
        }
    }

    /// The first convolution, its batch norm, its activation and the pooling.
    const fn stem(self) -> [&'static str; 4] {
        match self {
            Self::Torchvision => ["conv1", "bn1", "relu", "maxpool"],
            Self::Keras => ["conv1_conv", "conv1_bn", "conv1_relu", "pool1_pool"],
        }
    }

    fn block(self, stage: usize, block: usize) -> String {
        match self {
            Self::Torchvision => format!("layer{}.{block}", stage + 1),
            Self::Keras => format!("conv{}_block{}", stage + 2, block + 1),
        }
    }

    /// Convolution `i`, counted from 1, its batch norm and its activation. torchvision uses one `relu` module several times
    /// in a block; here each use is a layer with a name of its own, `relu1` after `bn1` and so on, the last one after the
    /// addition.
    fn part(self, block: &str, i: usize) -> [String; 3] {
        match self {
            Self::Torchvision => ["conv", "bn", "relu"].map(|name| format!("{block}.{name}{i}")),
            Self::Keras => ["conv", "bn", "relu"].map(|name| format!("{block}_{i}_{name}")),
        }
    }

    /// The shortcut's convolution and batch norm, the addition and the activation after it, in a block of so many
    /// convolutions.
    fn end(self, block: &str, convs: usize) -> [String; 4] {
        match self {
            Self::Torchvision => {
                ["downsample.0", "downsample.1", "add", &format!("relu{convs}")].map(|name| format!("{block}.{name}"))
            }
            Self::Keras => ["0_conv", "0_bn", "add", "out"].map(|name| format!("{block}_{name}")),
        }
    }

    /// The pooling and the classifier.
    const fn tail(self) -> [&'static str; 2] {
        match self {
            Self::Torchvision => ["avgpool", "fc"],
            Self::Keras => ["avg_pool", "predictions"],
        }
    }
}
