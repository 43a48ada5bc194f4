//! MobileNetV2 (Sandler et al. 2018) and MobileNetV3 (Howard et al. 2019) in the variants of torchvision, timm and
//! Keras.

use super::BatchNorms;
use super::inverted::{Expand, Layout, Naming, Padding, Squeeze, Stage, Variant};
use crate::graph::{Act, Averaging};

const fn v2(times: usize, stride: usize, channels: usize, blocks: usize) -> Stage {
    let expand = Expand::Times(times, blocks);
    Stage { expand, fused: false, kernel: 3, stride, channels, squeezed: false, act: Act::Relu6 }
}

const fn v3(kernel: usize, stride: usize, channels: usize, inner: &'static [usize], squeezed: bool, act: Act) -> Stage {
    Stage { expand: Expand::To(inner), fused: false, kernel, stride, channels, squeezed, act }
}

pub(super) const V2: Layout = Layout {
    stem: 32,
    stages: &[
        v2(1, 1, 16, 1),
        v2(6, 2, 24, 2),
        v2(6, 2, 32, 3),
        v2(6, 2, 64, 4),
        v2(6, 1, 96, 3),
        v2(6, 2, 160, 3),
        v2(6, 1, 320, 1),
    ],
    width: 1.0,
    depth: 1.0,
    squeeze: Squeeze::Input,
    act: Act::Relu6,
    head: 1280,
    hidden: None,
    dropout: 0.2,
    stochastic_depth: 0.0,
};

pub(super) const V3_LARGE: Layout = Layout {
    stem: 16,
    stages: &[
        v3(3, 1, 16, &[16], false, Act::Relu),
        v3(3, 2, 24, &[64, 72], false, Act::Relu),
        v3(5, 2, 40, &[72, 120, 120], true, Act::Relu),
        v3(3, 2, 80, &[240, 200, 184, 184], false, Act::HardSwish),
        v3(3, 1, 112, &[480, 672], true, Act::HardSwish),
        v3(5, 2, 160, &[672, 960, 960], true, Act::HardSwish),
    ],
    squeeze: Squeeze::Expanded,
    act: Act::HardSwish,
    head: 960,
    hidden: Some(1280),
    ..V2
};

pub(super) const V3_SMALL: Layout = Layout {
    stages: &[
        v3(3, 2, 16, &[16], true, Act::Relu),
        v3(3, 2, 24, &[72, 88], false, Act::Relu),
        v3(5, 2, 40, &[96, 240, 240], true, Act::HardSwish),
        v3(5, 1, 48, &[120, 144], true, Act::HardSwish),
        v3(5, 2, 96, &[288, 576, 576], true, Act::HardSwish),
    ],
    head: 576,
    hidden: Some(1024),
    ..V3_LARGE
};

pub(super) const TORCHVISION_V2: Variant = Variant {
    naming: Naming::TorchvisionV2,
    padding: Padding::Symmetric,
    batch_norms: BatchNorms { eps: 1e-5, averaging: Averaging::PYTORCH },
    drops: true,
};

pub(super) const TORCHVISION_V3: Variant = Variant {
    naming: Naming::TorchvisionV3,
    batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging { keep: 0.99, ..Averaging::PYTORCH } },
    ..TORCHVISION_V2
};

/// Keras's MobileNetV2 has no dropout.
pub(super) const KERAS_V2: Variant = Variant {
    naming: Naming::KerasMobileNetV2,
    padding: Padding::Same,
    batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging { keep: 0.999, ..Averaging::KERAS } },
    drops: false,
};

/// Keras pads a MobileNetV3 as if every image had an even number of pixels per side unless it is given `input_shape`. This
/// is the network with one; for images of a multiple of 32 pixels there is no difference.
pub(super) const KERAS_V3: Variant = Variant { naming: Naming::KerasMobileNetV3, drops: true, ..KERAS_V2 };
