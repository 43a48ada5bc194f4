//! Activations, whether they are one operator or written out.

use super::{Def, Form, Id, Node, Reader, Value};
use crate::formats::onnx::attributes::{attributes, float, near, text};
use crate::graph::{Act, Factor};
use crate::models::LayerOp;
use std::f32::consts::FRAC_1_SQRT_2;

/// What [`Act::GeluTanh`] computes with.
const FRAC_SQRT_2_PI: f32 = 0.797_884_6;
const BEND: f32 = 0.044_715;

/// In how many ways a product is looked at.
const MAX_PRODUCTS: usize = 24;

impl<'a> Reader<'a> {
    /// What an operator that is an activation gives, or a part of one; `None` if it is no such operator.
    pub(super) fn activation_of(&mut self, node: Node<'a>, op: &str) -> Result<Option<Id>, String> {
        let act = match op {
            "Relu" => Act::Relu,
            "Sigmoid" => return self.sigmoid(node).map(Some),
            "HardSigmoid" => {
                attributes(&node, &["alpha", "beta"])?;
                let (alpha, beta) = (float(&node, "alpha", 0.2)?, float(&node, "beta", 0.5)?);
                let stretch = Factor::new(6.0 * alpha).filter(|_| alpha > 0.0);
                let (Some(stretch), true) = (stretch, near(beta, 0.5)) else {
                    return Err(format!(
                        "alpha {alpha} and beta {beta} are not supported; a positive alpha with a beta of 1/2 is"
                    ));
                };
                let mut x = self.operand(node, 0)?;
                // Of another slope, as Paddle's and Keras 2's, it is that of a multiple.
                if !near(alpha, 1.0 / 6.0) {
                    x = self.pointwise(node, LayerOp::Activation { act: Act::ScaleBy(stretch) }, x)?;
                }
                return self.activate(node, Act::HardSigmoid, x).map(Some);
            }
            "HardSwish" => Act::HardSwish,
            "Tanh" => Act::Tanh,
            "Softplus" => Act::Softplus,
            "Mish" => Act::Mish,
            "Elu" | "Celu" => {
                attributes(&node, &["alpha"])?;
                let alpha = float(&node, "alpha", 1.0)?;
                if alpha != 1.0 {
                    return Err(format!("alpha {alpha} is not supported; 1 is"));
                }
                let x = self.operand(node, 0)?;
                return self.activate(node, Act::Elu, x).map(Some);
            }
            "LeakyRelu" => {
                attributes(&node, &["alpha"])?;
                let alpha = float(&node, "alpha", 0.01)?;
                let slope = Factor::new(alpha).map(Act::LeakyRelu).or((alpha == 0.0).then_some(Act::Relu));
                let act = slope.ok_or_else(|| format!("alpha {alpha} is not supported; 0 and above is"))?;
                let x = self.operand(node, 0)?;
                return self.activate(node, act, x).map(Some);
            }
            "Gelu" => {
                attributes(&node, &["approximate"])?;
                let act = match text(&node, "approximate")?.as_deref() {
                    None | Some("none") => Act::Gelu,
                    Some("tanh") => Act::GeluTanh,
                    Some(other) => return Err(format!("the approximation `{other}` is not supported; `tanh` is")),
                };
                let x = self.operand(node, 0)?;
                return self.activate(node, act, x).map(Some);
            }
            "Clip" => return self.clip(node).map(Some),
            "Max" | "Min" => return self.bounded(node, op).map(Some),
            "Erf" | "Exp" | "Sqrt" | "Reciprocal" | "Log" | "Pow" | "Greater" => return self.step(node, op).map(Some),
            "Where" => return self.softplus(node).map(Some),
            _ => return Ok(None),
        };
        attributes(&node, &[])?;
        let x = self.operand(node, 0)?;
        self.activate(node, act, x).map(Some)
    }

    pub(super) fn activate(&mut self, node: Node<'a>, act: Act, x: Id) -> Result<Id, String> {
        if self.image(x).layer.is_none() {
            return self.part(node, Def::Act(act, x), x);
        }
        let id = self.pointwise(node, LayerOp::Activation { act }, x)?;
        self.images[id.0].def = Def::Act(act, x);
        Ok(id)
    }

    fn sigmoid(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &[])?;
        let x = self.operand(node, 0)?;
        if node.output() != self.logits || self.image(x).shape != [1, 1, 1] {
            return self.activate(node, Act::Sigmoid, x);
        }
        self.network.left_out.push(
            "the Sigmoid at the end is left out: a network of two classes ends in the logit of the second, and 0"
                .into(),
        );
        self.layer(node, LayerOp::Binary {}, &[x], Vec::new(), |shape| super::View::of(Form::Flat, shape))
    }

    fn clip(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["max", "min"])?;
        let x = self.operand(node, 0)?;
        let [low, high] = self.clip_bounds(node)?;
        self.clipped(node, x, low, high)
    }

    fn clipped(&mut self, node: Node<'a>, x: Id, low: f32, high: f32) -> Result<Id, String> {
        match (self.image(x).def, low, high) {
            (Def::Act(Act::Relu, x), ..=0.0, 6.0) => self.activate(node, Act::Relu6, x),
            (_, 0.0, 6.0) => self.activate(node, Act::Relu6, x),
            (_, 0.0, f32::INFINITY) => self.activate(node, Act::Relu, x),
            _ => Err(format!("from {low} to {high} is not supported; from 0, or from 0 to 6 is")),
        }
    }

    /// The greatest or the least of an image and a number.
    fn bounded(&mut self, node: Node<'a>, op: &str) -> Result<Id, String> {
        attributes(&node, &[])?;
        let (x, constant) = match (self.value(node, 0)?, self.value(node, 1)?) {
            (Value::Image(x), Value::Constant(constant)) | (Value::Constant(constant), Value::Image(x)) => {
                (x, constant)
            }
            _ => return Err("it is supported for an image and a number only".into()),
        };
        let bound = self.one_number(&constant)?.filter(|_| node.proto.input.len() == 2);
        let bound = bound.ok_or("it is supported for an image and a number only")?;
        match op {
            "Max" => self.clipped(node, x, bound, f32::INFINITY),
            _ => self.clipped(node, x, f32::NEG_INFINITY, bound),
        }
    }

    /// An operator that is a part of activations and norms only.
    fn step(&mut self, node: Node<'a>, op: &str) -> Result<Id, String> {
        attributes(&node, &[])?;
        let x = self.operand(node, 0)?;
        let def = match op {
            "Erf" => Def::Erf(x),
            "Exp" => Def::Exp(x),
            "Sqrt" => Def::Sqrt(x),
            "Reciprocal" => Def::Reciprocal(x),
            "Log" => match self.image(x).def {
                Def::Plus(exp, 1.0) if let Def::Exp(x) = self.image(exp).def => {
                    return self.activate(node, Act::Softplus, x);
                }
                _ => return Err("it is supported as a part of Softplus only, log(exp(x) + 1)".into()),
            },
            "Greater" => Def::Above(x, self.number(node, 1, "what it compares with")?),
            _ => Def::Power(x, self.number(node, 1, "its exponent")?),
        };
        self.part(node, def, x)
    }

    /// A softplus that is the identity where it is no other number: above 20, say.
    fn softplus(&mut self, node: Node<'a>) -> Result<Id, String> {
        /// ln(1 + e⁻ˣ) is less than half of the last digit of x from here on.
        const SAME_FROM: f32 = 17.0;
        attributes(&node, &[])?;
        let [condition, x, below] = [0, 1, 2].map(|index| self.operand(node, index));
        let (condition, x, below) = (condition?, x?, below?);
        match (self.image(condition).def, self.image(below).def) {
            (Def::Above(of, from), Def::Act(Act::Softplus, same)) if of == x && same == x && from >= SAME_FROM => {
                Ok(below)
            }
            _ => Err("it is supported as a part of Softplus only".into()),
        }
    }

    // ---- Activations that are written out: all end in a product.

    /// The activation that a product is, and of what.
    pub(super) fn recognised(&self, product: Def) -> Option<(Act, Id)> {
        self.products(product).into_iter().find_map(|(number, factors)| match factors[..] {
            [x] if near(number, 1.0 / 6.0) => Some((Act::HardSigmoid, self.hard(x)?)),
            [a, b] => self.gated(number, a, b).or_else(|| self.gated(number, b, a)),
            _ => None,
        })
    }

    /// A product as a number and images: as it is, and with images that are products taken apart.
    fn products(&self, product: Def) -> Vec<(f32, Vec<Id>)> {
        let factors = |def: Def| match def {
            Def::Times(x, factor) => Some((factor, vec![x])),
            Def::Product(a, b) => Some((1.0, vec![a, b])),
            _ => None,
        };
        let mut found: Vec<(f32, Vec<Id>)> = factors(product).into_iter().collect();
        let mut at = 0;
        while at < found.len() && found.len() < MAX_PRODUCTS {
            let (number, images) = found[at].clone();
            for (place, image) in images.iter().enumerate() {
                if let Some((factor, inner)) = factors(self.image(*image).def)
                    && images.len() + inner.len() <= 4
                {
                    found.push((number * factor, [&images[..place], &inner[..], &images[place + 1..]].concat()));
                }
            }
            at += 1;
        }
        found
    }

    /// What is clipped after 3 was added to it.
    fn hard(&self, clipped: Id) -> Option<Id> {
        let Def::Act(Act::Relu6, shifted) = self.image(clipped).def else { return None };
        match self.image(shifted).def {
            Def::Plus(x, 3.0) => Some(x),
            _ => None,
        }
    }

    /// The activation that `number`·x·gate is.
    fn gated(&self, number: f32, x: Id, gate: Id) -> Option<(Act, Id)> {
        let def = self.image(gate).def;
        let act = match def {
            Def::Act(Act::Sigmoid, of) if of == x && near(number, 1.0) => Act::Silu,
            Def::Act(Act::HardSigmoid, of) if of == x && near(number, 1.0) => Act::HardSwish,
            Def::Act(Act::Tanh, soft) if near(number, 1.0) && self.image(soft).def == Def::Act(Act::Softplus, x) => {
                Act::Mish
            }
            Def::Act(Act::Relu6, _) if near(number, 1.0 / 6.0) && self.hard(gate) == Some(x) => Act::HardSwish,
            Def::Plus(bent, 1.0) if near(number, 0.5) => self.bent(bent, x)?,
            Def::Plus(half, 0.5) if near(number, 1.0) => match self.image(half).def {
                Def::Times(bent, 0.5) => self.bent(bent, x)?,
                _ => return None,
            },
            _ => return None,
        };
        Some((act, x))
    }

    /// Which GELU a part is of: erf(x/√2), or tanh(√(2/π)·(x + 0.044715·x³)).
    fn bent(&self, bent: Id, x: Id) -> Option<Act> {
        match self.image(bent).def {
            Def::Erf(scaled) => match self.image(scaled).def {
                Def::Times(of, factor) if of == x && near(factor, FRAC_1_SQRT_2) => Some(Act::Gelu),
                _ => None,
            },
            Def::Act(Act::Tanh, scaled) => {
                let products = self.products(self.image(scaled).def);
                let fits =
                    |(number, factors): (f32, Vec<Id>)| near(number, FRAC_SQRT_2_PI) && self.is_bend(&factors, x);
                products.into_iter().any(fits).then_some(Act::GeluTanh)
            }
            _ => None,
        }
    }

    /// Whether a product is x + 0.044715·x³, or x·(1 + 0.044715·x²).
    fn is_bend(&self, factors: &[Id], x: Id) -> bool {
        let is_small_power = |id: Id, power: usize| {
            self.products(self.image(id).def).into_iter().any(|(number, factors)| {
                let powers: usize = factors.iter().map(|&factor| self.power_of(factor, x)).sum();
                near(number, BEND) && powers == power && factors.iter().all(|&factor| self.power_of(factor, x) > 0)
            })
        };
        match *factors {
            [sum] => match self.image(sum).def {
                Def::Sum(a, b) => (a == x && is_small_power(b, 3)) || (b == x && is_small_power(a, 3)),
                _ => false,
            },
            [a, b] => [(a, b), (b, a)].into_iter().any(|(one, other)| match self.image(other).def {
                Def::Plus(square, 1.0) => one == x && is_small_power(square, 2),
                _ => false,
            }),
            _ => false,
        }
    }

    /// Which power of `x` an image is; 0 for something else.
    fn power_of(&self, id: Id, x: Id) -> usize {
        match self.image(id).def {
            _ if id == x => 1,
            Def::Power(of, 2.0) if of == x => 2,
            Def::Power(of, 3.0) if of == x => 3,
            _ => 0,
        }
    }
}
