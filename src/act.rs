//! Activation functions: what they compute, on the host, and the codes by which shaders know them.

/// A number that an [`Act`] multiplies by: positive, finite and not subnormal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor(u32);

impl Factor {
    /// `None` for a number that cannot be one.
    pub const fn new(value: f32) -> Option<Self> {
        match value > 0.0 && value.is_normal() {
            true => Some(Self(value.to_bits())),
            false => None,
        }
    }

    pub const fn value(self) -> f32 {
        f32::from_bits(self.0)
    }
}

impl std::fmt::Debug for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value().fmt(f)
    }
}

/// An activation function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Act {
    #[default]
    Identity,
    /// max(y, 0)
    Relu,
    /// min(max(y, 0), 6)
    Relu6,
    /// y·σ(y), also called Swish (Elfwing, Uchibe & Doya 2018)
    Silu,
    /// y·min(max(y + 3, 0), 6)/6 (Howard et al. 2019)
    HardSwish,
    /// min(max(y + 3, 0), 6)/6
    HardSigmoid,
    /// σ(y) = 1/(1 + e⁻ʸ)
    Sigmoid,
    /// y above 0, eʸ − 1 below (Clevert, Unterthiner & Hochreiter 2016), with α = 1.
    Elu,
    /// y·Φ(y), Φ being the normal distribution function (Hendrycks & Gimpel 2016).
    Gelu,
    /// y·(1 + tanh(√(2/π)·(y + 0.044715·y³)))/2, the approximation of the same paper.
    GeluTanh,
    /// y·tanh(ln(1 + eʸ)) (Misra 2020)
    Mish,
    Tanh,
    /// ln(1 + eʸ)
    Softplus,
    /// y above 0, a small multiple of it below (Maas, Hannun & Ng 2013).
    LeakyRelu(Factor),
    /// A multiple of y.
    ScaleBy(Factor),
}

/// One half, for [`Act::ALL`].
const HALF: Factor = Factor(0.5f32.to_bits());

/// The slope of PyTorch's leaky ReLU, where nothing else is said.
const SLOPE: Factor = Factor(0.01f32.to_bits());

impl Act {
    /// One of each name.
    pub const ALL: [Self; 15] = [
        Self::Identity,
        Self::Relu,
        Self::Relu6,
        Self::Silu,
        Self::HardSwish,
        Self::HardSigmoid,
        Self::Sigmoid,
        Self::Elu,
        Self::Gelu,
        Self::GeluTanh,
        Self::Mish,
        Self::Tanh,
        Self::Softplus,
        Self::LeakyRelu(SLOPE),
        Self::ScaleBy(HALF),
    ];

    /// Whether it gives nothing below zero.
    pub const fn is_never_negative(self) -> bool {
        matches!(self, Self::Relu | Self::Relu6 | Self::Sigmoid | Self::HardSigmoid | Self::Softplus)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::Silu => "silu",
            Self::HardSwish => "hard_swish",
            Self::HardSigmoid => "hard_sigmoid",
            Self::Sigmoid => "sigmoid",
            Self::Elu => "elu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Mish => "mish",
            Self::Tanh => "tanh",
            Self::Softplus => "softplus",
            Self::LeakyRelu(_) => "leaky_relu",
            Self::ScaleBy(_) => "scale_by",
        }
    }

    /// What files call the number that it multiplies by, and that number, if it has one.
    pub const fn factor(self) -> Option<(&'static str, Factor)> {
        match self {
            Self::LeakyRelu(slope) => Some(("slope", slope)),
            Self::ScaleBy(factor) => Some(("factor", factor)),
            _ => None,
        }
    }

    /// The same with another number to multiply by, if it has one.
    pub const fn with_factor(self, factor: Factor) -> Self {
        match self {
            Self::LeakyRelu(_) => Self::LeakyRelu(factor),
            Self::ScaleBy(_) => Self::ScaleBy(factor),
            other => other,
        }
    }

    /// Whether its gradient is by the value before it. Of the others one bit a value says it: the gradient passes, or
    /// it does not.
    pub const fn is_smooth(self) -> bool {
        !matches!(self, Self::Identity | Self::Relu | Self::Relu6)
    }

    /// Whether it is one of those that few networks have, which `shaders/lib/act.wgsl` leaves out otherwise.
    pub(crate) const fn is_rare(self) -> bool {
        self.is_smooth() && !matches!(self, Self::Silu | Self::HardSwish | Self::HardSigmoid | Self::Sigmoid)
    }

    /// As `shaders/lib/act.wgsl` knows it: a small number, or the bits of a factor, whose sign tells whose it is.
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Relu => 1,
            Self::Relu6 => 2,
            Self::Silu => 3,
            Self::HardSwish => 4,
            Self::HardSigmoid => 5,
            Self::Sigmoid => 6,
            Self::Elu => 7,
            Self::Gelu => 8,
            Self::GeluTanh => 9,
            Self::Mish => 10,
            Self::Tanh => 11,
            Self::Softplus => 12,
            Self::LeakyRelu(slope) => slope.0,
            Self::ScaleBy(factor) => factor.0 | SIGN,
        }
    }

    /// The function of that [code](Self::code).
    pub(crate) fn of_code(code: u32) -> Self {
        let named = Self::ALL.into_iter().find(|act| act.code() == code);
        named.unwrap_or(match code & SIGN {
            0 => Self::LeakyRelu(Factor(code)),
            _ => Self::ScaleBy(Factor(code & !SIGN)),
        })
    }

    /// Its value at `y`; a NaN stays one, as in the shaders.
    pub fn apply(self, y: f32) -> f32 {
        match self {
            Self::Identity => y,
            Self::Relu => clip(y, f32::INFINITY),
            Self::Relu6 => clip(y, 6.0),
            Self::Silu => y * sigmoid(y),
            Self::HardSwish => y * clip(y + 3.0, 6.0) / 6.0,
            Self::HardSigmoid => clip(y + 3.0, 6.0) / 6.0,
            Self::Sigmoid => sigmoid(y),
            Self::Elu if y > 0.0 => y,
            Self::Elu => y.exp_m1(),
            Self::Gelu => y * normal(y),
            Self::GeluTanh => y * (1.0 + bend(y).tanh()) / 2.0,
            Self::Mish => y * softplus(y).tanh(),
            Self::Tanh => y.tanh(),
            Self::Softplus => softplus(y),
            Self::LeakyRelu(slope) => {
                if y > 0.0 {
                    y
                } else {
                    y * slope.value()
                }
            }
            Self::ScaleBy(factor) => y * factor.value(),
        }
    }

    /// Its derivative at `y`; where it has a kink, PyTorch's.
    pub fn derivative(self, y: f32) -> f32 {
        match self {
            Self::Identity => 1.0,
            Self::Relu | Self::Relu6 => f32::from(self.passes(y)),
            Self::Silu => sigmoid(y) * (1.0 + y * (1.0 - sigmoid(y))),
            Self::HardSwish if y <= -3.0 => 0.0,
            Self::HardSwish if y > 3.0 => 1.0,
            Self::HardSwish => y / 3.0 + 0.5,
            Self::HardSigmoid => f32::from(y > -3.0 && y < 3.0) / 6.0,
            Self::Sigmoid => sigmoid(y) * (1.0 - sigmoid(y)),
            Self::Elu => y.min(0.0).exp(),
            Self::Gelu => normal(y) + y * (-y * y / 2.0).exp() / std::f32::consts::TAU.sqrt(),
            Self::GeluTanh => {
                let t = bend(y).tanh();
                let bend_slope = FRAC_SQRT_2_PI * (1.0 + 3.0 * BEND * y * y);
                (1.0 + t + y * (1.0 - t * t) * bend_slope) / 2.0
            }
            Self::Mish => {
                let t = softplus(y).tanh();
                t + y * (1.0 - t * t) * sigmoid(y)
            }
            Self::Tanh => 1.0 / (y.cosh() * y.cosh()),
            Self::Softplus => sigmoid(y),
            Self::LeakyRelu(slope) => {
                if y > 0.0 {
                    1.0
                } else {
                    slope.value()
                }
            }
            Self::ScaleBy(factor) => factor.value(),
        }
    }

    /// Whether the gradient passes at `y`, for one that is not [smooth](Self::is_smooth).
    pub(crate) fn passes(self, y: f32) -> bool {
        self == Self::Identity || y > 0.0 && (self != Self::Relu6 || y < 6.0)
    }
}

/// The sign bit of a float.
const SIGN: u32 = 1 << 31;

/// √(2/π) and the factor of the cube in [`Act::GeluTanh`].
const FRAC_SQRT_2_PI: f32 = 0.797_884_6;
const BEND: f32 = 0.044_715;

/// What [`Act::GeluTanh`] takes the hyperbolic tangent of.
fn bend(y: f32) -> f32 {
    FRAC_SQRT_2_PI * (y + BEND * y * y * y)
}

/// The distribution function of the normal distribution.
fn normal(y: f32) -> f32 {
    libm::erfcf(-y * std::f32::consts::FRAC_1_SQRT_2) / 2.0
}

fn softplus(y: f32) -> f32 {
    y.max(0.0) + (-y.abs()).exp().ln_1p()
}

/// `y` within 0…`limit`.
fn clip(y: f32, limit: f32) -> f32 {
    match y {
        y if y <= 0.0 => 0.0,
        y if y >= limit => limit,
        y => y,
    }
}

fn sigmoid(y: f32) -> f32 {
    1.0 / (1.0 + (-y).exp())
}
