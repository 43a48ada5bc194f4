//! Residual networks as torchvision builds and names them, and a small one for small images.

use crate::graph::{Builder, GraphError, NodeId, Window};

/// PyTorch's default, which torchvision's files rely on.
const EPS: f32 = 1e-5;

/// What tells one residual network from another.
pub(super) struct Config {
    stem: Stem,
    block: Block,
    /// Blocks in each stage. Every stage after the first halves the image and doubles the channels.
    blocks: &'static [usize],
    /// Channels of the stem and of the first stage (of its 3×3 convolutions, where blocks are bottlenecks).
    channels: usize,
}

enum Stem {
    /// A 7×7 convolution and a max pooling: a quarter of the image.
    Quarter,
    /// A 3×3 convolution that keeps the image's size.
    Whole,
}

enum Block {
    Basic,
    /// 1×1, 3×3, 1×1 to four times the channels; the first two have `width` times the stage's.
    Bottleneck {
        width: usize,
    },
}

pub(super) static RESNET18: Config = basic(&[2, 2, 2, 2]);
pub(super) static RESNET34: Config = basic(&[3, 4, 6, 3]);
pub(super) static RESNET50: Config = bottleneck(&[3, 4, 6, 3], 1);
pub(super) static RESNET101: Config = bottleneck(&[3, 4, 23, 3], 1);
pub(super) static RESNET152: Config = bottleneck(&[3, 8, 36, 3], 1);
pub(super) static WIDE_RESNET50_2: Config = bottleneck(&[3, 4, 6, 3], 2);
pub(super) static RESNET_TINY: Config =
    Config { stem: Stem::Whole, block: Block::Basic, blocks: &[2, 2, 2], channels: 16 };

const fn basic(blocks: &'static [usize]) -> Config {
    Config { stem: Stem::Quarter, block: Block::Basic, blocks, channels: 64 }
}

const fn bottleneck(blocks: &'static [usize], width: usize) -> Config {
    Config { stem: Stem::Quarter, block: Block::Bottleneck { width }, blocks, channels: 64 }
}

impl Config {
    /// From images `[N, H, W, 3]` to logits `[N, 1, 1, classes]`.
    pub(super) fn network(&self, b: &mut Builder, images: NodeId, classes: usize) -> Result<NodeId, GraphError> {
        let window = match self.stem {
            Stem::Quarter => Window::square(7, 2, 3),
            Stem::Whole => Window::square(3, 1, 1),
        };
        let mut x = b.conv2d("conv1", images, self.channels, window, false)?;
        x = b.batch_norm("bn1", x, EPS)?;
        x = b.relu("relu", x)?;
        if let Stem::Quarter = self.stem {
            x = b.max_pool("maxpool", x, Window::square(3, 2, 1))?;
        }
        for (stage, &blocks) in self.blocks.iter().enumerate() {
            for block in 0..blocks {
                let name = format!("layer{}.{block}", stage + 1);
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                b.block(Some(&name));
                x = self.block.add_to(b, &name, x, self.channels << stage, stride)?;
            }
        }
        b.block(None);
        x = b.global_avg_pool("avgpool", x)?;
        b.linear("fc", x, classes)
    }
}

impl Block {
    /// torchvision uses one `relu` module several times in a block; here each use is a layer with a name of its own,
    /// `relu1` after `bn1` and so on, the last one after the addition.
    fn add_to(
        &self,
        b: &mut Builder,
        name: &str,
        x: NodeId,
        channels: usize,
        stride: usize,
    ) -> Result<NodeId, GraphError> {
        let basic = [(channels, Window::square(3, stride, 1)), (channels, Window::square(3, 1, 1))];
        let bottleneck;
        let convs: &[(usize, Window)] = match self {
            Self::Basic => &basic,
            Self::Bottleneck { width } => {
                let inner = channels * width;
                bottleneck = [
                    (inner, Window::square(1, 1, 0)),
                    (inner, Window::square(3, stride, 1)),
                    (channels * 4, Window::square(1, 1, 0)),
                ];
                &bottleneck
            }
        };

        let mut y = x;
        for (i, &(channels, window)) in (1..).zip(convs) {
            y = b.conv2d(&format!("{name}.conv{i}"), y, channels, window, false)?;
            y = b.batch_norm(&format!("{name}.bn{i}"), y, EPS)?;
            if i < convs.len() {
                y = b.relu(&format!("{name}.relu{i}"), y)?;
            }
        }

        let mut shortcut = x;
        let channels = b.shape(y).c();
        if stride != 1 || b.shape(x).c() != channels {
            let window = Window::square(1, stride, 0);
            shortcut = b.conv2d(&format!("{name}.downsample.0"), x, channels, window, false)?;
            shortcut = b.batch_norm(&format!("{name}.downsample.1"), shortcut, EPS)?;
        }
        y = b.add(&format!("{name}.add"), y, shortcut)?;
        b.relu(&format!("{name}.relu{}", convs.len()), y)
    }
}
