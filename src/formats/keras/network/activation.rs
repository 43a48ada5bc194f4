//! Activations: words, layers and functions.

use super::config::{Layer, operation};
use super::{Form, Importer, KerasError, Tensor};
use crate::graph::{Act, Factor};
use crate::models::LayerOp;
use serde_json::Value;

/// What an activation stands for.
#[derive(Clone, Copy)]
pub(super) enum Activation {
    Act(Act),
    Softmax,
}

/// The slope of Keras's function `leaky_relu`, and of its layer `LeakyReLU`.
const SLOPE_OF_FUNCTION: f64 = 0.2;
const SLOPE_OF_LAYER: f64 = 0.3;

impl Importer<'_> {
    /// The activation that is part of a layer, or what the layer `Activation` stands for.
    pub(super) fn activation(&self, layer: &Layer<'_>) -> Result<Activation, KerasError> {
        if let Some(inner) = layer.activation_layer() {
            let class = inner.class;
            return activation_of(&inner)?
                .ok_or_else(|| layer.error(format!("`{class}` is not supported as an activation; {WORDS} are")));
        }
        let word = layer.activation();
        Ok(Activation::Act(match word {
            "linear" => Act::Identity,
            "relu" => Act::Relu,
            "relu6" => Act::Relu6,
            "leaky_relu" => leaky(layer, SLOPE_OF_FUNCTION)?,
            "elu" => Act::Elu,
            "swish" | "silu" => Act::Silu,
            "gelu" => Act::Gelu,
            "mish" => Act::Mish,
            "tanh" => Act::Tanh,
            "softplus" => Act::Softplus,
            "hard_swish" | "hard_silu" => Act::HardSwish,
            "hard_sigmoid" if self.model.keras_2 => {
                return Err(
                    layer.error("the hard_sigmoid of Keras 2, 0.2·x + 0.5, is not supported; that of Keras 3 is")
                );
            }
            "hard_sigmoid" => Act::HardSigmoid,
            "sigmoid" => Act::Sigmoid,
            "softmax" => return Ok(Activation::Softmax),
            _ => return Err(layer.error(format!("the activation `{word}` is not supported; {WORDS} are"))),
        }))
    }

    /// Adds an activation as a layer called `name`; one that is part of `layer` has none.
    pub(super) fn activated(
        &mut self,
        layer: &Layer<'_>,
        name: &str,
        x: Tensor,
        activation: Activation,
    ) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        match activation {
            Activation::Softmax => {
                self.notes.push(format!("the softmax of `{}` is left out: the network gives logits", layer.path));
                Ok(Tensor { form: Form::Softmax, ..x })
            }
            Activation::Act(Act::Identity) => Ok(x),
            Activation::Act(act) => {
                let own = format!("{}.{}", layer.path, act.name());
                let name = if name.is_empty() { &own } else { name };
                self.push(layer, name, LayerOp::Activation { act }, &[x])
            }
        }
    }

    /// Adds a multiplication by a number as a layer called `name`.
    pub(super) fn scaled_by(
        &mut self,
        layer: &Layer<'_>,
        name: &str,
        x: Tensor,
        factor: f64,
    ) -> Result<Tensor, KerasError> {
        let act = match Factor::new(factor as f32) {
            _ if factor == 1.0 => Act::Identity,
            Some(factor) => Act::ScaleBy(factor),
            None => return Err(layer.error(format!("it multiplies by {factor}; only positive numbers are supported"))),
        };
        self.activated(layer, name, x, Activation::Act(act))
    }
}

/// The activations that there are, for messages.
const WORDS: &str = "linear, relu, relu6, leaky_relu, elu, silu, gelu, mish, tanh, softplus, hard_swish, hard_sigmoid, sigmoid \
                     and, at the end, softmax";

/// What a layer, or one of Keras 3's functions that became one, computes of each value by itself, if it does.
pub(super) fn activation_of(layer: &Layer<'_>) -> Result<Option<Activation>, KerasError> {
    Ok(Some(Activation::Act(match operation(layer) {
        "Softmax" => return Ok(Some(Activation::Softmax)),
        "ReLU" => relu(layer)?,
        "LeakyReLU" => {
            // Keras 2 calls it alpha.
            let default = layer.float("alpha", SLOPE_OF_LAYER)?;
            leaky(layer, layer.float("negative_slope", default)?)?
        }
        "LeakyRelu" => leaky(layer, layer.float("negative_slope", SLOPE_OF_FUNCTION)?)?,
        "ELU" | "Elu" => {
            layer.only("alpha", &[1.0.into(), 1.into()])?;
            Act::Elu
        }
        // The function's default is the approximation, unlike the activation's.
        "Gelu" if layer.is_on("approximate", true) => Act::GeluTanh,
        "Gelu" => Act::Gelu,
        "Relu" => Act::Relu,
        "Relu6" => Act::Relu6,
        "Silu" => Act::Silu,
        "Mish" => Act::Mish,
        "Tanh" => Act::Tanh,
        "Softplus" => Act::Softplus,
        "HardSilu" => Act::HardSwish,
        "HardSigmoid" => Act::HardSigmoid,
        "Sigmoid" => Act::Sigmoid,
        _ => return Ok(None),
    })))
}

fn relu(layer: &Layer<'_>) -> Result<Act, KerasError> {
    let zero: [Value; 2] = [0.0.into(), 0.into()];
    layer.only("threshold", &zero)?;
    layer.only("max_value", &[6.0.into(), 6.into()])?;
    if layer.config["max_value"].is_null() {
        return leaky(layer, layer.float("negative_slope", 0.0)?);
    }
    layer.only("negative_slope", &zero)?;
    Ok(Act::Relu6)
}

/// A ReLU with this slope below zero.
fn leaky(layer: &Layer<'_>, slope: f64) -> Result<Act, KerasError> {
    match Factor::new(slope as f32) {
        _ if slope == 0.0 => Ok(Act::Relu),
        Some(slope) => Ok(Act::LeakyRelu(slope)),
        None => Err(layer.error(format!("a slope of {slope} below zero is not supported, only from 0 on"))),
    }
}
