//! Activation functions: what they compute, on the host, and the codes by which shaders know them.

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
}

impl Act {
    pub const ALL: [Self; 7] =
        [Self::Identity, Self::Relu, Self::Relu6, Self::Silu, Self::HardSwish, Self::HardSigmoid, Self::Sigmoid];

    /// Whether it gives nothing below zero.
    pub const fn is_never_negative(self) -> bool {
        matches!(self, Self::Relu | Self::Relu6 | Self::Sigmoid | Self::HardSigmoid)
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
        }
    }

    /// Whether its gradient is by the value before it. Of the others one bit a value says it: the gradient passes, or
    /// it does not.
    pub const fn is_smooth(self) -> bool {
        match self {
            Self::Identity | Self::Relu | Self::Relu6 => false,
            Self::Silu | Self::HardSwish | Self::HardSigmoid | Self::Sigmoid => true,
        }
    }

    /// As `shaders/lib/act.wgsl` knows it.
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }

    /// The function of that [code](Self::code).
    pub(crate) fn of_code(code: u32) -> Self {
        Self::ALL[code as usize]
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
        }
    }

    /// Whether the gradient passes at `y`, for one that is not [smooth](Self::is_smooth).
    pub(crate) fn passes(self, y: f32) -> bool {
        self == Self::Identity || y > 0.0 && (self != Self::Relu6 || y < 6.0)
    }
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
