//! EfficientNet (Tan & Le 2019) and EfficientNetV2 (Tan & Le 2021) in the variants of torchvision, timm and Keras.

use super::BatchNorms;
use super::inverted::{Expand, Layout, Naming, Padding, Squeeze, Stage, Variant};
use crate::graph::{Act, Averaging};

const fn stage(times: usize, kernel: usize, stride: usize, channels: usize, blocks: usize) -> Stage {
    let expand = Expand::Times(times, blocks);
    Stage { expand, fused: false, kernel, stride, channels, squeezed: true, act: Act::Silu }
}

const fn fused(times: usize, stride: usize, channels: usize, blocks: usize) -> Stage {
    Stage { fused: true, squeezed: false, ..stage(times, 3, stride, channels, blocks) }
}

const STAGES: &[Stage] = &[
    stage(1, 3, 1, 16, 1),
    stage(6, 3, 2, 24, 2),
    stage(6, 5, 2, 40, 2),
    stage(6, 3, 2, 80, 3),
    stage(6, 5, 1, 112, 3),
    stage(6, 5, 2, 192, 4),
    stage(6, 3, 1, 320, 1),
];

const STAGES_V2_S: &[Stage] = &[
    fused(1, 1, 24, 2),
    fused(4, 2, 48, 4),
    fused(4, 2, 64, 4),
    stage(4, 3, 2, 128, 6),
    stage(6, 3, 1, 160, 9),
    stage(6, 3, 2, 256, 15),
];

const STAGES_V2_M: &[Stage] = &[
    fused(1, 1, 24, 3),
    fused(4, 2, 48, 5),
    fused(4, 2, 80, 5),
    stage(4, 3, 2, 160, 7),
    stage(6, 3, 1, 176, 14),
    stage(6, 3, 2, 304, 18),
    stage(6, 3, 1, 512, 5),
];

const STAGES_V2_L: &[Stage] = &[
    fused(1, 1, 32, 4),
    fused(4, 2, 64, 7),
    fused(4, 2, 96, 7),
    stage(4, 3, 2, 192, 10),
    stage(6, 3, 1, 224, 19),
    stage(6, 3, 2, 384, 25),
    stage(6, 3, 1, 640, 7),
];

const fn layout(width: f64, depth: f64, dropout: f32) -> Layout {
    Layout {
        stem: 32,
        stages: STAGES,
        width,
        depth,
        squeeze: Squeeze::Input,
        act: Act::Silu,
        head: 1280,
        hidden: None,
        dropout,
        stochastic_depth: 0.2,
    }
}

pub(super) const B0: Layout = layout(1.0, 1.0, 0.2);
pub(super) const B1: Layout = layout(1.0, 1.1, 0.2);
pub(super) const B2: Layout = layout(1.1, 1.2, 0.3);
pub(super) const B3: Layout = layout(1.2, 1.4, 0.3);
pub(super) const B4: Layout = layout(1.4, 1.8, 0.4);
pub(super) const B5: Layout = layout(1.6, 2.2, 0.4);
pub(super) const B6: Layout = layout(1.8, 2.6, 0.5);
pub(super) const B7: Layout = layout(2.0, 3.1, 0.5);
pub(super) const V2_S: Layout = Layout { stem: 24, stages: STAGES_V2_S, ..layout(1.0, 1.0, 0.2) };

pub(super) const V2_M: Layout = Layout { stem: 24, stages: STAGES_V2_M, ..layout(1.0, 1.0, 0.3) };
pub(super) const V2_L: Layout = Layout { stem: 32, stages: STAGES_V2_L, ..layout(1.0, 1.0, 0.4) };

pub(super) const TORCHVISION: Variant = Variant {
    naming: Naming::TorchvisionStages,
    padding: Padding::Symmetric,
    batch_norms: BatchNorms { eps: 1e-5, averaging: Averaging::PYTORCH },
    drops: true,
};

/// From B5 on.
pub(super) const TORCHVISION_LARGE: Variant = Variant {
    batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging { keep: 0.99, ..Averaging::PYTORCH } },
    ..TORCHVISION_V2
};

pub(super) const TORCHVISION_V2: Variant =
    Variant { batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging::PYTORCH }, ..TORCHVISION };

/// Its models drop nothing unless one asks for it.
pub(super) const TIMM: Variant = Variant { naming: Naming::Timm, drops: false, ..TORCHVISION };

/// timm's `tf_` models: TensorFlow's padding and ε.
pub(super) const TIMM_TF: Variant =
    Variant { padding: Padding::Same, batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging::PYTORCH }, ..TIMM };

pub(super) const KERAS_V1: Variant = Variant {
    naming: Naming::KerasEfficientNet("dwconv"),
    padding: Padding::Same,
    batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging::KERAS },
    drops: true,
};

pub(super) const KERAS_V2: Variant = Variant {
    naming: Naming::KerasEfficientNet("dwconv2"),
    batch_norms: BatchNorms { eps: 1e-3, averaging: Averaging { keep: 0.9, ..Averaging::KERAS } },
    ..KERAS_V1
};
