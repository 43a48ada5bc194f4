//! What a rule can set on a layer, and the words for it.

use crate::graph::{Affine, BatchNormMode, Domain, Layer, LayerKind, Setting, Stats, StatsUpdate, Variance};
use crate::nearest::suggestion;
use std::fmt;

/// One `axis=value` of a rule.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Assignment {
    /// `weights=train|frozen`: weight and bias of a convolution or linear layer.
    Weights(bool),
    /// `lr=<multiplier>`: multiplies the learning rate of whatever trains in the layer.
    Lr(f32),
    /// `stats=running|batch|blend(<alpha>)|renorm(<rmax>,<dmax>)`: what a batch norm normalises by in a training step.
    /// `blend` is `1 − alpha` of the running moments and `alpha` of the batch's. `renorm` is batch renormalisation
    /// (Ioffe 2017): the running moments, but no further from the batch's than a factor `rmax` of its deviation, and
    /// `dmax` deviations of its mean; `renorm(1,0)` is `batch`.
    Stats(Stats),
    /// `update=off|ema(<keep>)|cumulative`: how a batch norm's running moments move.
    Update(StatsUpdate),
    /// `update=ema`: as `ema(<keep>)` with the keep that the network is made for, such as 0.9 in PyTorch and 0.99 in Keras.
    UpdateByDefault,
    /// `affine=none|gamma|beta|both`: what of a batch norm the optimiser may change, as far as the batch norm has it.
    Affine(Affine),
    /// `var=biased|unbiased`: the estimator of the variance that a batch norm stores.
    Var(Variance),
    /// `domain=batch|ghost(<k>)|accumulated`: what the moments of a batch are taken over: all its samples; each k
    /// consecutive ones apart (ghost batches; Hoffer, Hubara & Soudry 2017), where k must divide the batch and the running
    /// moments follow the mean over the ghost batches, once a step; or the samples of all micro-batches of an optimiser
    /// step, which then have to be computed together, in the memory of one batch of that size.
    Domain(Domain),
    /// `dropout=on|off`: whether dropout or stochastic depth acts in training.
    Dropout(bool),
}

/// The axes and what each accepts.
const AXES: [(&str, &str); 8] = [
    ("weights", "train or frozen"),
    ("lr", "a multiplier, a number of at least 0"),
    ("stats", "running, batch, blend(<alpha>) with 0 < alpha < 1, or renorm(<rmax>,<dmax>) with rmax ≥ 1 and dmax ≥ 0"),
    ("update", "off, ema, ema(<keep>) with 0 ≤ keep < 1, or cumulative"),
    ("affine", "none, gamma, beta or both"),
    ("var", "biased or unbiased"),
    ("domain", "batch, ghost(<k>) with k samples, at least 1, or accumulated"),
    ("dropout", "on or off"),
];

/// Where every layer starts: nothing trains and nothing moves.
pub(super) fn frozen(layer: &Layer) -> Setting {
    let batch_norm = BatchNormMode {
        stats: Stats::Running,
        update: StatsUpdate::Off,
        affine: Affine::None,
        var: layer.averaging.var,
        domain: Domain::Batch,
    };
    Setting { weights: false, lr: 1.0, dropout: false, batch_norm: (layer.kind == LayerKind::Bn).then_some(batch_norm) }
}

/// A layer's setting in the words of rules, such as `weights=train`; empty for a layer without axes. `lr=1` and
/// `domain=batch` go without saying.
pub fn describe(layer: &Layer) -> String {
    let mut words = match layer.setting.batch_norm {
        Some(BatchNormMode { stats, update, affine, var, domain }) => {
            let always = [
                Assignment::Stats(stats),
                Assignment::Update(update),
                Assignment::Affine(affine),
                Assignment::Var(var),
            ];
            let cut = (domain != Domain::Batch).then_some(Assignment::Domain(domain));
            always.into_iter().chain(cut).collect()
        }
        None if has_weights(layer) => vec![Assignment::Weights(layer.setting.weights)],
        None if drops(layer) => vec![Assignment::Dropout(layer.setting.dropout)],
        None => return String::new(),
    };
    if layer.setting.lr != 1.0 {
        words.push(Assignment::Lr(layer.setting.lr));
    }
    join(&words)
}

/// Assignments as a rule lists them.
pub(super) fn join(assignments: &[Assignment]) -> String {
    assignments.iter().map(Assignment::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn has_weights(layer: &Layer) -> bool {
    matches!(
        layer.kind,
        LayerKind::Conv | LayerKind::Linear | LayerKind::LayerNorm | LayerKind::GroupNorm | LayerKind::LayerScale
    )
}

fn drops(layer: &Layer) -> bool {
    matches!(layer.kind, LayerKind::Dropout | LayerKind::StochasticDepth)
}

impl Assignment {
    pub const fn axis(self) -> &'static str {
        AXES[self.index()].0
    }

    const fn index(self) -> usize {
        match self {
            Self::Weights(_) => 0,
            Self::Lr(_) => 1,
            Self::Stats(_) => 2,
            Self::Update(_) | Self::UpdateByDefault => 3,
            Self::Affine(_) => 4,
            Self::Var(_) => 5,
            Self::Domain(_) => 6,
            Self::Dropout(_) => 7,
        }
    }

    /// The layers that have this axis, for messages.
    pub(super) const fn meant_for(self) -> &'static str {
        match self {
            Self::Weights(_) => "conv and linear layers",
            Self::Lr(_) => "layers with parameters",
            Self::Stats(_)
            | Self::Update(_)
            | Self::UpdateByDefault
            | Self::Affine(_)
            | Self::Var(_)
            | Self::Domain(_) => "batch norms",
            Self::Dropout(_) => "dropout and stochastic_depth layers",
        }
    }

    /// Sets the axis where the layer has it, and says whether it does.
    pub(super) fn apply(self, layer: &mut Layer) -> bool {
        let (weights, drops) = (has_weights(layer), drops(layer));
        let setting = &mut layer.setting;
        match (self, &mut setting.batch_norm) {
            (Self::Weights(train), _) if weights => setting.weights = train,
            (Self::Lr(lr), _) if !layer.params.is_empty() => setting.lr = lr,
            (Self::Stats(stats), Some(mode)) => mode.stats = stats,
            (Self::Update(update), Some(mode)) => mode.update = update,
            (Self::UpdateByDefault, Some(mode)) => mode.update = StatsUpdate::Ema { keep: layer.averaging.keep },
            (Self::Affine(affine), Some(mode)) => mode.affine = affine.and(layer.affine),
            (Self::Var(var), Some(mode)) => mode.var = var,
            (Self::Domain(domain), Some(mode)) => mode.domain = domain,
            (Self::Dropout(on), _) if drops => setting.dropout = on,
            _ => return false,
        }
        true
    }

    /// # Errors
    /// What is wrong, with the offending text and what is accepted.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some((axis, value)) = text.split_once('=').map(|(a, v)| (a.trim(), v.trim())) else {
            let what = if text.is_empty() { "an axis is missing".into() } else { format!("`{text}` has no `=`") };
            return Err(format!("{what}; write axis=value, where the axes are {}", axes()));
        };
        let Some((_, accepted)) = AXES.iter().find(|(name, _)| *name == axis) else {
            let near = suggestion(axis, AXES.iter().map(|(name, _)| *name));
            return Err(format!("unknown axis `{axis}` in `{text}`{near}; the axes are {}", axes()));
        };
        let parsed = match axis {
            "weights" => match value {
                "train" => Some(Self::Weights(true)),
                "frozen" => Some(Self::Weights(false)),
                _ => None,
            },
            "lr" => value.parse().ok().filter(|lr: &f32| lr.is_finite() && *lr >= 0.0).map(Self::Lr),
            "stats" => stats(value).map(Self::Stats),
            "update" if value == "ema" => Some(Self::UpdateByDefault),
            "update" => update(value).map(Self::Update),
            "affine" => match value {
                "none" => Some(Self::Affine(Affine::None)),
                "gamma" => Some(Self::Affine(Affine::Gamma)),
                "beta" => Some(Self::Affine(Affine::Beta)),
                "both" => Some(Self::Affine(Affine::Both)),
                _ => None,
            },
            "var" => match value {
                "biased" => Some(Self::Var(Variance::Biased)),
                "unbiased" => Some(Self::Var(Variance::Unbiased)),
                _ => None,
            },
            "domain" => domain(value).map(Self::Domain),
            "dropout" => match value {
                "on" => Some(Self::Dropout(true)),
                "off" => Some(Self::Dropout(false)),
                _ => None,
            },
            _ => None,
        };
        parsed.ok_or_else(|| format!("`{text}`: {axis} is {accepted}, not `{value}`"))
    }
}

fn axes() -> String {
    AXES.map(|(name, _)| name).join(", ")
}

fn stats(value: &str) -> Option<Stats> {
    match value {
        "running" => return Some(Stats::Running),
        "batch" => return Some(Stats::Batch),
        _ => {}
    }
    if let Some(alpha) = argument(value, "blend") {
        let alpha = alpha.parse().ok().filter(|alpha| *alpha > 0.0 && *alpha < 1.0)?;
        return Some(Stats::Blend { alpha });
    }
    let (r_max, d_max) = argument(value, "renorm")?.split_once(',')?;
    let at_least = |text: &str, least: f32| text.trim().parse().ok().filter(|x: &f32| *x >= least && x.is_finite());
    Some(Stats::Renorm { r_max: at_least(r_max, 1.0)?, d_max: at_least(d_max, 0.0)? })
}

fn update(value: &str) -> Option<StatsUpdate> {
    match value {
        "off" => return Some(StatsUpdate::Off),
        "cumulative" => return Some(StatsUpdate::Cumulative),
        _ => {}
    }
    let keep = argument(value, "ema")?.parse().ok().filter(|keep| (0.0..1.0).contains(keep))?;
    Some(StatsUpdate::Ema { keep })
}

fn domain(value: &str) -> Option<Domain> {
    match value {
        "batch" => return Some(Domain::Batch),
        "accumulated" => return Some(Domain::Accumulated),
        _ => {}
    }
    let samples = argument(value, "ghost")?.parse().ok().filter(|samples| *samples > 0)?;
    Some(Domain::Ghost { samples })
}

/// What stands in the parentheses of `name(…)`.
fn argument<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    Some(value.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')?.trim())
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.axis())?;
        match self {
            Self::Weights(true) => f.write_str("train"),
            Self::Weights(false) => f.write_str("frozen"),
            Self::Lr(lr) => write!(f, "{lr}"),
            Self::Stats(stats) => stats.fmt(f),
            Self::Update(update) => update.fmt(f),
            Self::UpdateByDefault => f.write_str("ema"),
            Self::Affine(affine) => affine.fmt(f),
            Self::Var(var) => var.fmt(f),
            Self::Domain(domain) => domain.fmt(f),
            Self::Dropout(on) => f.write_str(if *on { "on" } else { "off" }),
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Batch => f.write_str("batch"),
            Self::Blend { alpha } => write!(f, "blend({alpha})"),
            // Without a space: ", " separates assignments.
            Self::Renorm { r_max, d_max } => write!(f, "renorm({r_max},{d_max})"),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch => f.write_str("batch"),
            Self::Ghost { samples } => write!(f, "ghost({samples})"),
            Self::Accumulated => f.write_str("accumulated"),
        }
    }
}

impl fmt::Display for StatsUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Ema { keep } => write!(f, "ema({keep})"),
            Self::Cumulative => f.write_str("cumulative"),
        }
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gamma => "gamma",
            Self::Beta => "beta",
            Self::Both => "both",
        })
    }
}

impl fmt::Display for Variance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Biased => "biased",
            Self::Unbiased => "unbiased",
        })
    }
}
