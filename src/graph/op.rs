//! The closed set of operations, their operands and their shape rules.

use super::{ParamId, StateId};
use crate::act::Act;
use crate::tensor::Shape;
use crate::window::Window;

/// Which input channels an output channel of a convolution sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Groups {
    /// All.
    #[default]
    One,
    /// Those of its group, of so many consecutive groups; input and output channels of a group are multiples of four.
    Several(usize),
    /// Its own.
    Depthwise,
}

impl Groups {
    /// How many, in a convolution of so many output channels.
    pub fn count(self, channels: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Several(groups) => groups,
            Self::Depthwise => channels,
        }
    }

    /// The third dimension of the weights, for an input `x` and so many output channels.
    fn weight_rows(self, x: Shape, channels: usize) -> Result<usize, String> {
        match self {
            Self::One => Ok(x.stored_c()),
            Self::Depthwise if x.c() == channels => Ok(1),
            Self::Depthwise => Err(format!("a depthwise convolution of {} channels cannot have {channels}", x.c())),
            Self::Several(groups) => {
                let each =
                    |channels: usize| channels.checked_div(groups).filter(|n| n * groups == channels && n % 4 == 0);
                each(channels).and(each(x.c())).ok_or_else(|| {
                    format!("{} and {channels} channels cannot be cut into {groups} groups of multiples of four", x.c())
                })
            }
        }
    }
}

/// What a convolution (or a linear layer, which is a 1×1 convolution of a 1×1 image) does after the product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conv2d {
    pub window: Window,
    pub groups: Groups,
    pub bias: bool,
    pub residual: bool,
    pub act: Act,
    /// Whether a backward pass wants the mask of the activation; see [`Op::SideOutput`].
    pub mask: bool,
}

/// What follows the normalisation in the same pass.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct BatchNormApply {
    pub eps: f32,
    pub residual: bool,
    pub act: Act,
    /// Whether a backward pass wants the mask of the activation; see [`Op::SideOutput`].
    pub mask: bool,
}

/// How an optimiser changes one parameter.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Update {
    /// Multiplies the session's learning rate.
    pub lr: f32,
    /// Whether weight decay applies.
    pub decay: bool,
    /// The rows of the parameter that change: for [`super::Role::Affine`] row 0 is gamma and row 1 beta.
    pub rows: [usize; 2],
}

/// Stochastic gradient descent, as PyTorch defines it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sgd {
    pub momentum: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
    /// Shrink the parameter by `1 − lr·weight_decay` instead of adding `weight_decay·parameter` to the gradient.
    pub decoupled: bool,
}

/// AdamW (Loshchilov & Hutter 2019), with decoupled weight decay.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f32,
    pub weight_decay: f32,
}

/// One operation. Operands are listed in the order of the node's inputs; `?` marks one that a flag adds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Op {
    // Sources.
    /// The images, already normalised: `[N, H, W, C]`.
    Input,
    /// One class index (`u32`) a sample; `u32::MAX` marks a padded sample that counts for nothing.
    Labels,
    /// `[1, 1, 1, classes]`: a weight a class, given from outside.
    ClassWeights,
    Param(ParamId),
    /// Optimiser or accumulation state, zero at the start of a session.
    State(StateId),
    /// Values for the batch's images that were computed earlier, by the frozen part of a network that was cut in two.
    Feature(u32),

    // Forward.
    /// `[x, weight, bias?, residual?]`
    Conv2d(Conv2d),
    /// `[x, affine, moments]`: a batch norm whose policy is not resolved yet.
    BatchNorm {
        eps: f32,
    },
    /// `[x]` → mean and biased variance, two rows for each of so many equal runs of samples.
    BatchNormStats {
        domains: usize,
    },
    /// `[batch moments, running moments]` → `(1−alpha)·running + alpha·batch`, two rows a domain.
    BatchNormBlend {
        alpha: f32,
    },
    /// `[batch moments, running moments]` → the moments of batch renormalisation, two rows a domain.
    BatchNormRenorm {
        eps: f32,
        r_max: f32,
        d_max: f32,
    },
    /// `[x, moments, affine, residual?]` → `act(γ(x−μ)/√(v+ε) + β + residual)`
    BatchNormApply(BatchNormApply),
    /// `[weight, moments, affine, bias?]` → the weights of the convolution with its batch norm folded in; the
    /// side output is the folded bias.
    FoldBatchNorm {
        eps: f32,
        bias: bool,
    },
    /// `[x]`
    Activation {
        act: Act,
        mask: bool,
    },
    /// `[a, b]` → `act(a + b)`
    Add {
        act: Act,
        mask: bool,
    },
    /// `[x, gate, mean?]` → `x·gate + mean/HW`, the gate and the mean being `[N, 1, 1, C]`; a gate of one row is of all images
    Scale {
        mean: bool,
    },
    /// `[x, residual?]` → `x·kept/(1 − rate) + residual`; values are dropped each by itself, or each image as a whole.
    Dropout {
        rate: f32,
        whole: bool,
        /// Tells the layers' random numbers apart.
        stream: u32,
        residual: bool,
    },
    /// `[x]`; with `argmax` the side output holds, for each four channels, the position in the window as four bytes.
    MaxPool {
        window: Window,
        argmax: bool,
    },
    /// `[x]`; each sum is divided by the pixels of its window that lie in the image or, of its top, left, bottom and right
    /// border, in the `counted` pixels next to it.
    AvgPool {
        window: Window,
        counted: [usize; 4],
    },
    /// `[x, …]` → the channels of all, side by side.
    Concat,
    /// `[x, accumulator?]` → `channels` channels from `begin` on, added in place to the accumulator.
    Slice {
        begin: usize,
        channels: usize,
        accumulate: bool,
    },
    /// `[x]` → channel `j·groups + i` is channel `i·(C/groups) + j` of x (Zhang et al. 2018).
    Shuffle {
        groups: usize,
    },
    /// `[a, b]` → their product.
    Multiply,
    /// `[x]` of one channel → 0 and x: as logits of two classes, they have the softmax 1 − σ(x) and σ(x).
    Binary,
    /// `[x]` → with zeros at the top, left, bottom and right.
    Pad {
        padding: [usize; 4],
    },
    /// `[x, affine]` → γ(x−μ)/√(v + ε) + β, the moments being those of each pixel's channels (Ba, Kiros & Hinton 2016). With
    /// `moments` the side output holds μ and 1/√(v + ε) of each pixel.
    LayerNorm {
        eps: f32,
        moments: bool,
    },
    /// `[x, affine]` → the same with the moments of each image's pixels and a group's channels (Wu & He 2018). With `moments` the
    /// side output holds mean and biased variance, two rows an image.
    GroupNorm {
        eps: f32,
        groups: usize,
        moments: bool,
    },
    /// `[logits, labels, class weights?]` → a row a sample: loss, 1 if top-1, 1 if top-5, 0.
    SoftmaxCrossEntropy {
        smoothing: f32,
        weighted: bool,
    },
    /// `[producer]` → the producer's second result: one bit a value that says where the gradient passes the activation,
    /// argmax or folded bias.
    SideOutput,

    // Backward.
    /// `[dy, weight, accumulator?]` → gradient of the convolution's input, added in place to the accumulator.
    Conv2dInputGrad {
        window: Window,
        groups: Groups,
        input: Shape,
        accumulate: bool,
    },
    /// `[x, dy]`
    Conv2dWeightGrad {
        window: Window,
        groups: Groups,
    },
    /// `[dy]` → sum over pixels: the gradient of a bias.
    ChannelSum,
    /// `[dz, mask]`, or `[dz, y]` where the activation of `y` is smooth → `dz·act'(y)`, in place.
    ActivationGrad {
        act: Act,
    },
    /// `[dz, x]` → the sum of their product over the pixels of each image, `[N, 1, 1, C]`.
    ScaleGateGrad,
    /// `[rows]`, two a domain → their sum over the domains, two rows.
    DomainSum,
    /// `[dz, x, moments, mask?]`, the last `affine` where the activation is smooth → gradients of gamma (row 0) and beta
    /// (row 1), the share of each domain.
    BatchNormGradReduce {
        eps: f32,
        act: Act,
    },
    /// `[sums, batch moments, blended moments]` → sums for `BatchNormGradBatch`, by which the gradient passes through
    /// the blending.
    BatchNormGradBlend {
        eps: f32,
        alpha: f32,
    },
    /// `[sums, batch moments, renormalised moments]` → sums for `BatchNormGradBatch`, by which the gradient passes
    /// through the renormalisation.
    BatchNormGradRenorm {
        eps: f32,
    },
    /// `[dz, x, moments, affine, sums, mask?]` → `dx` under batch statistics; the mask where the activation is not
    /// smooth.
    BatchNormGradBatch {
        eps: f32,
        act: Act,
    },
    /// `[dz, moments, affine, mask?]`, the last `x` where the activation is smooth → `dx` under running statistics.
    BatchNormGradRunning {
        eps: f32,
        act: Act,
    },
    /// `[d_folded, moments, affine]` → gradient of the unfolded weights.
    FoldWeightGrad {
        eps: f32,
    },
    /// `[weight, d_folded, d_folded_bias, moments]` → gradients of gamma and beta of a folded batch norm.
    FoldAffineGrad {
        eps: f32,
    },
    /// `[dy, argmax]`
    MaxPoolGrad {
        window: Window,
        input: Shape,
    },
    /// `[dy]`
    AvgPoolGrad {
        window: Window,
        counted: [usize; 4],
        input: Shape,
    },
    /// `[dy, accumulator?]` → the gradient of what was sliced, zero in the other channels, or added in place to the
    /// accumulator.
    SliceGrad {
        begin: usize,
        input: Shape,
        accumulate: bool,
    },
    /// `[dy]` → without the border.
    PadGrad {
        padding: [usize; 4],
    },
    /// `[dy, x, side output]` → gradients of gamma (row 0) and beta (row 1).
    LayerNormGradReduce,
    /// `[dy, x, affine, side output]` → `dx`
    LayerNormGrad,
    /// `[dy, x, moments, affine, sums]` → `dx`, the sums being those of `BatchNormGradReduce` for each image
    GroupNormGrad {
        eps: f32,
        groups: usize,
    },
    /// `[logits, labels, class weights?]` → gradient of the mean loss.
    SoftmaxCrossEntropyGrad {
        smoothing: f32,
        weighted: bool,
    },

    // State changes. The first operand is changed in place.
    /// `[state, value]`: replaces the state on the first micro-batch of a window, adds on the others.
    Accumulate,
    /// `[param, grad, momentum?]`, the last unless the momentum is 0
    SgdStep(Update, Sgd),
    /// `[param, grad, first moment, second moment]`
    AdamwStep(Update, AdamW),
    /// `[moments, batch moments]`
    BatchNormUpdate {
        update: super::StatsUpdate,
        var: super::Variance,
        /// Values a channel's moments were taken over, for the unbiased estimator.
        count: usize,
        /// Sets of moments that were added up: those of each micro-batch, and of each domain of it.
        parts: usize,
    },
}

/// Whether a node takes the mean over all pixels of each image.
pub(crate) fn takes_mean(graph: &super::Graph, id: super::NodeId) -> bool {
    let node = graph.node(id);
    matches!(node.op, Op::AvgPool { window, .. } if {
        let x = graph.node(node.inputs[0]).shape;
        window.kernel == [x.h(), x.w()] && window.padding == [0; 4]
    })
}

/// Whether the gradient of `act` is by one bit a value.
pub(crate) fn keeps_bits(act: Act) -> bool {
    act != Act::Identity && !act.is_smooth()
}

/// How many values [`super::Role::Moments`] stores a channel: mean, variance and the number of updates.
pub const MOMENT_ROWS: usize = 3;

/// How many domains moments, or the sums of a gradient, are of: two rows each. Running moments are of one.
pub(crate) fn domains(moments: Shape) -> usize {
    moments.pixels() / 2
}

/// Words that hold one sign bit a value: one for each four channels of each eight consecutive pixels.
pub fn mask_shape(x: Shape) -> Shape {
    Shape([1, 1, x.pixels().div_ceil(8), x.quads()])
}

/// A mean and the inverse of a deviation for each pixel.
pub(crate) fn pixel_moments(x: Shape) -> Shape {
    Shape([1, 1, 1, 2 * x.pixels()])
}

/// The place of each of several operands that are concatenated: its first channel.
pub(crate) fn places(channels: impl IntoIterator<Item = usize>) -> impl Iterator<Item = usize> {
    channels.into_iter().scan(0, |begin, channels| {
        let place = *begin;
        *begin += channels;
        Some(place)
    })
}

impl Op {
    /// The name in dumps, plans and benchmarks.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Labels => "labels",
            Self::ClassWeights => "class_weights",
            Self::Param(_) => "param",
            Self::State(_) => "state",
            Self::Feature(_) => "feature",
            Self::Conv2d(_) => "conv2d",
            Self::BatchNorm { .. } => "batch_norm",
            Self::BatchNormStats { .. } => "batch_norm_stats",
            Self::BatchNormBlend { .. } => "batch_norm_blend",
            Self::BatchNormRenorm { .. } => "batch_norm_renorm",
            Self::BatchNormApply(_) => "batch_norm_apply",
            Self::FoldBatchNorm { .. } => "fold_batch_norm",
            Self::Activation { .. } => "activation",
            Self::Scale { .. } => "scale",
            Self::Dropout { .. } => "dropout",
            Self::Add { .. } => "add",
            Self::MaxPool { .. } => "max_pool",
            Self::AvgPool { .. } => "avg_pool",
            Self::Concat => "concat",
            Self::Slice { .. } => "slice",
            Self::Shuffle { .. } => "shuffle",
            Self::Multiply => "multiply",
            Self::Binary => "binary",
            Self::Pad { .. } => "pad",
            Self::LayerNorm { .. } => "layer_norm",
            Self::GroupNorm { .. } => "group_norm",
            Self::SoftmaxCrossEntropy { .. } => "softmax_cross_entropy",
            Self::SideOutput => "side_output",
            Self::Conv2dInputGrad { .. } => "conv2d_input_grad",
            Self::Conv2dWeightGrad { .. } => "conv2d_weight_grad",
            Self::ChannelSum => "channel_sum",
            Self::DomainSum => "domain_sum",
            Self::ActivationGrad { .. } => "activation_grad",
            Self::ScaleGateGrad => "scale_gate_grad",
            Self::BatchNormGradReduce { .. } => "batch_norm_grad_reduce",
            Self::BatchNormGradBatch { .. } => "batch_norm_grad_batch",
            Self::BatchNormGradBlend { .. } => "batch_norm_grad_blend",
            Self::BatchNormGradRenorm { .. } => "batch_norm_grad_renorm",
            Self::BatchNormGradRunning { .. } => "batch_norm_grad_running",
            Self::FoldWeightGrad { .. } => "fold_weight_grad",
            Self::FoldAffineGrad { .. } => "fold_affine_grad",
            Self::MaxPoolGrad { .. } => "max_pool_grad",
            Self::AvgPoolGrad { .. } => "avg_pool_grad",
            Self::SliceGrad { .. } => "slice_grad",
            Self::PadGrad { .. } => "pad_grad",
            Self::LayerNormGradReduce => "layer_norm_grad_reduce",
            Self::LayerNormGrad => "layer_norm_grad",
            Self::GroupNormGrad { .. } => "group_norm_grad",
            Self::SoftmaxCrossEntropyGrad { .. } => "softmax_cross_entropy_grad",
            Self::Accumulate => "accumulate",
            Self::SgdStep(..) => "sgd_step",
            Self::AdamwStep(..) => "adamw_step",
            Self::BatchNormUpdate { .. } => "batch_norm_update",
        }
    }

    /// The operand whose memory the result takes over.
    pub fn in_place(&self) -> Option<usize> {
        match self {
            Self::Conv2dInputGrad { accumulate: true, .. } => Some(2),
            Self::Slice { accumulate: true, .. } | Self::SliceGrad { accumulate: true, .. } => Some(1),
            Self::ActivationGrad { .. } | Self::Accumulate => Some(0),
            _ => None,
        }
    }

    /// The operands that are state and change.
    pub fn mutates(&self) -> &'static [usize] {
        match self {
            Self::Accumulate | Self::BatchNormUpdate { .. } => &[0],
            Self::SgdStep(_, sgd) if sgd.momentum == 0.0 => &[0],
            Self::SgdStep(..) => &[0, 2],
            Self::AdamwStep(..) => &[0, 2, 3],
            _ => &[],
        }
    }

    /// Whether the operation reads nothing that the graph computes.
    pub fn is_source(&self) -> bool {
        matches!(
            self,
            Self::Input | Self::Labels | Self::ClassWeights | Self::Param(_) | Self::State(_) | Self::Feature(_)
        )
    }

    /// The shape of the side output, for an operation that has one and whose main output has shape `out`.
    pub fn side_shape(&self, out: Shape) -> Option<Shape> {
        match self {
            Self::Conv2d(Conv2d { mask: true, .. })
            | Self::BatchNormApply(BatchNormApply { mask: true, .. })
            | Self::Activation { mask: true, .. }
            | Self::Add { mask: true, .. } => Some(mask_shape(out)),
            Self::MaxPool { argmax: true, .. } => Some(Shape([out.n(), out.h(), out.w(), out.quads()])),
            Self::FoldBatchNorm { .. } => Some(Shape::rows(1, out.c())),
            Self::LayerNorm { moments: true, .. } => Some(pixel_moments(out)),
            Self::GroupNorm { moments: true, .. } => Some(Shape::rows(2 * out.n(), out.c())),
            _ => None,
        }
    }

    /// The output's shape, from the operands'. For sources the graph knows it; they are not asked.
    ///
    /// # Errors
    /// What is wrong with the operands, without the node's name, which the caller adds.
    pub(super) fn infer(&self, x: &[Shape]) -> Result<Shape, String> {
        let arity = |n: usize| match x.len() == n {
            true => Ok(()),
            false => Err(format!("takes {n} operands, not {}", x.len())),
        };
        let same = |a: usize, b: usize| match x[a] == x[b] {
            true => Ok(()),
            false => Err(format!("operand {a} is {} and operand {b} is {}: they must be equal", x[a], x[b])),
        };
        let is = |i: usize, want: Shape, what: &str| match x[i] == want {
            true => Ok(()),
            false => Err(format!("the {what} must be {want}, not {}", x[i])),
        };
        match *self {
            Self::Input
            | Self::Labels
            | Self::ClassWeights
            | Self::Param(_)
            | Self::State(_)
            | Self::Feature(_)
            | Self::SideOutput => arity(0).map(|()| x[0]),
            Self::Conv2d(conv) => {
                arity(2 + usize::from(conv.bias) + usize::from(conv.residual))?;
                let [kh, kw, cin, cout] = x[1].0;
                if [kh, kw] != conv.window.kernel {
                    return Err(format!("the window is {:?} but the weights are {}", conv.window.kernel, x[1]));
                }
                if cin != conv.groups.weight_rows(x[0], cout)? {
                    return Err(format!(
                        "the weights take {cin} channels a group (padded to four) but the input {} has {} for {:?}",
                        x[0],
                        x[0].c(),
                        conv.groups
                    ));
                }
                let Window { kernel, stride, .. } = conv.window;
                if conv.groups == Groups::Depthwise && (kernel.iter().any(|k| *k > 7) || stride.iter().any(|s| *s > 2))
                {
                    return Err(format!(
                        "a depthwise convolution takes windows of at most 7×7 at a stride of at most 2, not {}×{} at {}×{}",
                        kernel[0], kernel[1], stride[0], stride[1]
                    ));
                }
                let [oh, ow] = conv.window.output(x[0].h(), x[0].w())?;
                let out = Shape::nhwc(x[0].n(), oh, ow, cout);
                if conv.bias {
                    is(2, Shape::rows(1, cout), "bias")?;
                }
                if conv.residual {
                    is(x.len() - 1, out, "residual")?;
                }
                Ok(out)
            }
            Self::BatchNorm { .. } => {
                arity(3)?;
                is(1, Shape::rows(2, x[0].c()), "gamma and beta")?;
                is(2, Shape::rows(MOMENT_ROWS, x[0].c()), "running moments")?;
                Ok(x[0])
            }
            Self::BatchNormStats { domains } => {
                arity(1)?;
                match x[0].n().is_multiple_of(domains) {
                    true => Ok(Shape::rows(2 * domains, x[0].c())),
                    false => Err(format!("{} samples cannot be cut into {domains} equal domains", x[0].n())),
                }
            }
            Self::BatchNormBlend { .. } | Self::BatchNormRenorm { .. } => {
                arity(2)?;
                is(1, Shape::rows(MOMENT_ROWS, x[0].c()), "running moments")?;
                Ok(x[0])
            }
            Self::DomainSum => arity(1).map(|()| Shape::rows(2, x[0].c())),
            Self::BatchNormApply(apply) => {
                arity(3 + usize::from(apply.residual))?;
                is(2, Shape::rows(2, x[0].c()), "gamma and beta")?;
                if apply.residual {
                    same(0, 3)?;
                }
                Ok(x[0])
            }
            Self::FoldBatchNorm { bias, .. } => {
                arity(3 + usize::from(bias))?;
                is(2, Shape::rows(2, x[0].c()), "gamma and beta")?;
                Ok(x[0])
            }
            Self::Activation { .. } => arity(1).map(|()| x[0]),
            Self::Scale { mean } => {
                arity(2 + usize::from(mean))?;
                let rows = Shape::nhwc(x[0].n(), 1, 1, x[0].c());
                if x[1] != Shape::rows(1, x[0].c()) || mean {
                    is(1, rows, "gate")?;
                }
                if mean {
                    is(2, rows, "mean")?;
                }
                Ok(x[0])
            }
            Self::Dropout { residual, .. } => {
                arity(1 + usize::from(residual))?;
                if residual {
                    same(0, 1)?;
                }
                Ok(x[0])
            }
            Self::Add { .. } => {
                arity(2)?;
                same(0, 1)?;
                Ok(x[0])
            }
            Self::MaxPool { window, .. } => {
                arity(1)?;
                let [kh, kw] = window.kernel;
                let [top, left, bottom, right] = window.padding;
                if top.max(bottom) >= kh || left.max(right) >= kw {
                    return Err(format!("padding {:?} must be smaller than the window", window.padding));
                }
                if kh * kw > 256 {
                    return Err("a max pooling window holds at most 256 pixels".into());
                }
                let [oh, ow] = window.output(x[0].h(), x[0].w())?;
                Ok(Shape::nhwc(x[0].n(), oh, ow, x[0].c()))
            }
            Self::AvgPool { window, counted } => {
                arity(1)?;
                let [oh, ow] = window.output(x[0].h(), x[0].w())?;
                window.divides(counted, [x[0].h(), x[0].w()])?;
                Ok(Shape::nhwc(x[0].n(), oh, ow, x[0].c()))
            }
            Self::Concat => {
                let [n, h, w] = [x[0].n(), x[0].h(), x[0].w()];
                if let Some(other) = x.iter().find(|other| [other.n(), other.h(), other.w()] != [n, h, w]) {
                    return Err(format!("operands of {} and {other} cannot stand side by side", x[0]));
                }
                Ok(Shape::nhwc(n, h, w, x.iter().map(|x| x.c()).sum()))
            }
            Self::Slice { begin, channels, accumulate } => {
                arity(1 + usize::from(accumulate))?;
                if channels == 0 || begin.checked_add(channels).is_none_or(|end| end > x[0].c()) {
                    return Err(format!("there are no {channels} channels from {begin} on in {}", x[0]));
                }
                let out = Shape::nhwc(x[0].n(), x[0].h(), x[0].w(), channels);
                if accumulate {
                    is(1, out, "accumulator")?;
                }
                Ok(out)
            }
            Self::Shuffle { groups } => {
                arity(1)?;
                match groups > 0 && x[0].c().is_multiple_of(groups) {
                    true => Ok(x[0]),
                    false => Err(format!("{} channels cannot be cut into {groups} groups", x[0].c())),
                }
            }
            Self::Multiply => {
                arity(2)?;
                same(0, 1)?;
                Ok(x[0])
            }
            Self::Binary => {
                arity(1)?;
                match x[0].c() {
                    1 => Ok(Shape::nhwc(x[0].n(), x[0].h(), x[0].w(), 2)),
                    channels => Err(format!("two classes follow from one channel, not from {channels}")),
                }
            }
            Self::Pad { padding: [top, left, bottom, right] } => {
                arity(1)?;
                Ok(Shape::nhwc(x[0].n(), x[0].h() + top + bottom, x[0].w() + left + right, x[0].c()))
            }
            Self::LayerNorm { .. } | Self::GroupNorm { .. } => {
                arity(2)?;
                is(1, Shape::rows(2, x[0].c()), "gamma and beta")?;
                match self {
                    Self::GroupNorm { groups, .. } if *groups == 0 || !x[0].c().is_multiple_of(*groups) => {
                        Err(format!("{} channels cannot be cut into {groups} groups", x[0].c()))
                    }
                    _ => Ok(x[0]),
                }
            }
            Self::SoftmaxCrossEntropy { weighted, .. } | Self::SoftmaxCrossEntropyGrad { weighted, .. } => {
                arity(2 + usize::from(weighted))?;
                if x[0].h() != 1 || x[0].w() != 1 {
                    return Err(format!("the logits must be [N, 1, 1, classes], not {}", x[0]));
                }
                is(1, Shape::rows(1, x[0].n()), "labels")?;
                if weighted {
                    is(2, Shape::rows(1, x[0].c()), "class weights")?;
                }
                match self {
                    Self::SoftmaxCrossEntropy { .. } => Ok(Shape::rows(x[0].n(), 4)),
                    _ => Ok(x[0]),
                }
            }
            Self::Conv2dInputGrad { window, input, accumulate, .. } => {
                arity(2 + usize::from(accumulate))?;
                let [oh, ow] = window.output(input.h(), input.w())?;
                is(0, Shape::nhwc(input.n(), oh, ow, x[1].c()), "output gradient")?;
                if accumulate {
                    is(2, input, "accumulator")?;
                }
                Ok(input)
            }
            Self::Conv2dWeightGrad { window, groups } => {
                arity(2)?;
                let [oh, ow] = window.output(x[0].h(), x[0].w())?;
                is(1, Shape::nhwc(x[0].n(), oh, ow, x[1].c()), "output gradient")?;
                Ok(Shape([window.kernel[0], window.kernel[1], groups.weight_rows(x[0], x[1].c())?, x[1].c()]))
            }
            Self::ChannelSum => arity(1).map(|()| Shape::rows(1, x[0].c())),
            Self::ActivationGrad { act } => {
                arity(2)?;
                match act.is_smooth() {
                    true => same(0, 1)?,
                    false => is(1, mask_shape(x[0]), "mask")?,
                }
                Ok(x[0])
            }
            Self::ScaleGateGrad => {
                arity(2)?;
                same(0, 1)?;
                Ok(Shape::nhwc(x[0].n(), 1, 1, x[0].c()))
            }
            Self::BatchNormGradReduce { act, .. } => {
                arity(3 + usize::from(act != Act::Identity))?;
                same(0, 1)?;
                Ok(Shape::rows(2 * domains(x[2]), x[0].c()))
            }
            Self::BatchNormGradBlend { .. } | Self::BatchNormGradRenorm { .. } => {
                arity(3)?;
                same(0, 1)?;
                same(0, 2)?;
                Ok(x[0])
            }
            Self::BatchNormGradBatch { act, .. } => {
                arity(5 + usize::from(keeps_bits(act)))?;
                same(0, 1)?;
                same(2, 4)?;
                Ok(x[0])
            }
            Self::BatchNormGradRunning { act, .. } => arity(3 + usize::from(act != Act::Identity)).map(|()| x[0]),
            Self::FoldWeightGrad { .. } => arity(3).map(|()| x[0]),
            Self::FoldAffineGrad { .. } => {
                arity(4)?;
                same(0, 1)?;
                Ok(Shape::rows(2, x[0].c()))
            }
            Self::MaxPoolGrad { input, .. } => arity(2).map(|()| input),
            Self::AvgPoolGrad { input, .. } => arity(1).map(|()| input),
            Self::SliceGrad { input, accumulate, .. } => {
                arity(1 + usize::from(accumulate))?;
                if accumulate {
                    is(1, input, "accumulator")?;
                }
                Ok(input)
            }
            Self::PadGrad { padding: [top, left, bottom, right] } => {
                arity(1)?;
                match (x[0].h().checked_sub(top + bottom), x[0].w().checked_sub(left + right)) {
                    (Some(h), Some(w)) if h > 0 && w > 0 => Ok(Shape::nhwc(x[0].n(), h, w, x[0].c())),
                    _ => Err(format!("{} is no larger than its border", x[0])),
                }
            }
            Self::LayerNormGradReduce => {
                arity(3)?;
                same(0, 1)?;
                is(2, pixel_moments(x[0]), "moments")?;
                Ok(Shape::rows(2, x[0].c()))
            }
            Self::GroupNormGrad { .. } => {
                arity(5)?;
                same(0, 1)?;
                same(2, 4)?;
                Ok(x[0])
            }
            Self::LayerNormGrad => {
                arity(4)?;
                same(0, 1)?;
                is(2, Shape::rows(2, x[0].c()), "gamma and beta")?;
                is(3, pixel_moments(x[0]), "moments")?;
                Ok(x[0])
            }
            Self::Accumulate => {
                arity(2)?;
                same(0, 1)?;
                Ok(x[0])
            }
            Self::SgdStep(_, sgd) => {
                let momentum = sgd.momentum != 0.0;
                arity(2 + usize::from(momentum))?;
                same(0, 1)?;
                same(0, if momentum { 2 } else { 1 })?;
                Ok(x[0])
            }
            Self::AdamwStep(..) => {
                arity(4)?;
                same(0, 1)?;
                same(0, 2)?;
                same(0, 3)?;
                Ok(x[0])
            }
            Self::BatchNormUpdate { .. } => {
                arity(2)?;
                is(0, Shape::rows(MOMENT_ROWS, x[1].c()), "running moments")?;
                Ok(x[0])
            }
        }
    }
}
