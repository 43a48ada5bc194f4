//! What each class of layers becomes.

use super::augmentation::{self, Augmentation};
use super::config::{Layer, flatten, operation};
use super::rescaling::{Rescaling, reversed};
use super::{Form, From, Importer, KerasError, SUPPORTED, Tensor};
use crate::graph::{Act, Affine, Averaging, Taken, Variance};
use crate::models::file::{LayerOp, Padding};
use crate::preprocessing::{Interpolation, Resize};
use serde_json::Value;

/// What an activation's word stands for.
enum Activation {
    Act(Act),
    Softmax,
}

impl Importer<'_> {
    /// What comes of a layer with one input.
    pub(super) fn of_one(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match layer.class {
            "Rescaling" => {
                let scale = layer.channels(&layer.config["scale"])?;
                let offset = match &layer.config["offset"] {
                    Value::Null => [0.0; 3],
                    offset => layer.channels(offset)?,
                };
                self.rescaled(layer, x, scale, offset)
            }
            "Normalization" => self.normalization(layer, x),
            "Resizing" => {
                self.images_only(layer, x)?;
                self.size = Some((layer.count("height")?, layer.count("width")?));
                self.resizing = Some(resizing(layer)?);
                self.notes.push(format!("images are resized as `{}` does, but once only, from the file", layer.path));
                Ok(x)
            }
            _ if augmentation::is_augmentation(layer, x) => {
                self.images_only(layer, x)?;
                if layer.class == "RandomCrop" && self.model.keras_2 {
                    // In inference it resizes.
                    self.size = Some((layer.count("height")?, layer.count("width")?));
                }
                self.augmentation.push(Augmentation::of(layer));
                Ok(x)
            }
            "ZeroPadding2D" => zero_padding(layer, x),
            "Conv2D" => self.conv(layer, x),
            "DepthwiseConv2D" => self.depthwise(layer, x),
            "SeparableConv2D" => self.separable(layer, x),
            "Dense" => self.dense(layer, x),
            "BatchNormalization" => self.batch_norm(layer, x),
            "Activation" => {
                let activation = self.activation(layer, layer.activation())?;
                self.activated(layer, layer.path, x, activation)
            }
            "ReLU" => {
                layer.only("negative_slope", &[0.0.into(), 0.into()])?;
                layer.only("threshold", &[0.0.into(), 0.into()])?;
                layer.only("max_value", &[6.0.into(), 6.into()])?;
                let act = if layer.config["max_value"].is_null() { Act::Relu } else { Act::Relu6 };
                if act == Act::Relu6 && x.form == Form::Plus3 {
                    let entry = self.hard_sigmoid(layer, x)?;
                    return Ok(Tensor { form: Form::Clipped { entry }, ..x });
                }
                self.activated(layer, layer.path, x, Activation::Act(act))
            }
            "Softmax" => self.activated(layer, layer.path, x, Activation::Softmax),
            "GlobalAveragePooling2D" => {
                let x = self.plain(layer, x)?;
                let out = self.push(layer, layer.path, LayerOp::GlobalAvgPool {}, &[x])?;
                Ok(Tensor { pooled: true, ..out })
            }
            "MaxPooling2D" => self.max_pool(layer, x),
            "AveragePooling2D" => {
                let x = self.plain(layer, x)?;
                layer.only("padding", &["valid".into()])?;
                let (kernel, stride) = pool(layer)?;
                self.push(
                    layer,
                    layer.path,
                    LayerOp::AvgPool {
                        kernel,
                        stride,
                        padding: Padding::Pixels([0; 4]),
                        ceil: false,
                        count_padding: true,
                    },
                    &[x],
                )
            }
            "Flatten" if x.pooled => Ok(x),
            "Reshape" if x.pooled => {
                let mut sizes = Vec::new();
                flatten(&layer.config["target_shape"], &mut sizes);
                match sizes.split_last() {
                    Some((&last, rest))
                        if rest.iter().all(|&size| size == 1.0) && [x.channels as f64, -1.0].contains(&last) =>
                    {
                        Ok(x)
                    }
                    _ => Err(layer.error("only features can be reshaped, to [1, 1, C] and back")),
                }
            }
            "Flatten" | "Reshape" => {
                Err(layer.error("an image cannot be flattened; put a GlobalAveragePooling2D before the classifier"))
            }
            "Dropout" => self.dropout(layer, x),
            // What does nothing in inference, or at all.
            "ActivityRegularization" | "Identity" => Ok(x),
            class => Err(layer.error(format!("`{class}` is not supported; {SUPPORTED} are"))),
        }
    }

    /// What comes of a layer with two inputs.
    pub(super) fn of_two(&mut self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<Tensor, KerasError> {
        let [a, b] = [self.plain(layer, a)?, self.plain(layer, b)?];
        if a.channels != b.channels {
            // Nothing that joins two images makes one of other channels, but what lays them side by side.
            return Err(layer.error(match layer.class {
                "Concatenate" => format!("`Concatenate` is not supported; {SUPPORTED} are"),
                _ => format!("its inputs have {} and {} channels", a.channels, b.channels),
            }));
        }
        match operation(layer) {
            "Add" if a.pooled == b.pooled => self.push(layer, layer.path, LayerOp::Add {}, &[a, b]),
            "Multiply" => match (a.pooled, b.pooled) {
                (false, true) => self.push(layer, layer.path, LayerOp::Scale {}, &[a, b]),
                (true, false) => self.push(layer, layer.path, LayerOp::Scale {}, &[b, a]),
                _ => self.smooth(layer, a, b),
            },
            _ => Err(layer.error(format!("it has two inputs; {SUPPORTED} are supported"))),
        }
    }

    /// `x·σ(x)` and `x·hard_sigmoid(x)`, which are one activation.
    fn smooth(&mut self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<Tensor, KerasError> {
        let gated = |x: Tensor, gate: Tensor| {
            let From::Entry(index) = gate.from else { return None };
            let LayerOp::Activation { act } = self.entries[index].op else { return None };
            let act = match act {
                Act::Sigmoid => Act::Silu,
                Act::HardSigmoid => Act::HardSwish,
                _ => return None,
            };
            (self.entries[index].inputs == [self.name_of(x)]).then_some((x, act))
        };
        let Some((x, act)) = gated(a, b).or_else(|| gated(b, a)) else {
            return Err(
                layer.error("only a gate [N, 1, 1, C], or a sigmoid of the same tensor, can be multiplied with it")
            );
        };
        self.push(layer, layer.path, LayerOp::Activation { act }, &[x])
    }

    /// What comes of arithmetic with a constant.
    pub(super) fn with_constant(&mut self, layer: &Layer<'_>, x: Tensor, value: &Value) -> Result<Tensor, KerasError> {
        let is = |number: f64| value.as_f64().is_some_and(|value| (value - number).abs() < 1e-6);
        match (operation(layer), x.from, x.form) {
            (operation, From::Images(_), Form::Plain) => {
                let numbers = layer.channels(value)?;
                match operation {
                    "TrueDivide" => self.rescaled(layer, x, numbers.map(|number| 1.0 / number), [0.0; 3]),
                    "Multiply" => self.rescaled(layer, x, numbers, [0.0; 3]),
                    "Add" => self.rescaled(layer, x, [1.0; 3], numbers),
                    "Subtract" => self.rescaled(layer, x, [1.0; 3], numbers.map(|number| -number)),
                    _ => Err(layer.error(format!("`{operation}` of images and {value} is not supported"))),
                }
            }
            // A hard sigmoid, as the MobileNetV3 of Keras spells it.
            ("Add", From::Entry(_), Form::Plain) if is(3.0) => Ok(Tensor { form: Form::Plus3, ..x }),
            ("Multiply", _, Form::Clipped { entry }) if is(1.0 / 6.0) => {
                Ok(Tensor { from: From::Entry(entry), form: Form::Plain, ..x })
            }
            _ => Err(layer.error("arithmetic with a number is supported on images only")),
        }
    }

    /// `images[..., ::-1]`, or `images[..., c]` on the way to a [`stack`](Self::stack).
    pub(super) fn subscript(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let rescaling = self.images_only(layer, x)?;
        let of_keras_2 = &layer.call[3]["slice_spec"];
        let items = layer.call["args"].get(1).unwrap_or(of_keras_2);
        let [first, channel] = [&items[0], &items[1]];
        // Keras 3 has a slice's parts in a `config`.
        let slice = channel.get("config").unwrap_or(channel);
        let is_reversed = slice["step"] == -1 && slice["start"].is_null() && slice["stop"].is_null();
        match channel.as_u64() {
            _ if first["class_name"] != "__ellipsis__" || !items[2].is_null() => {}
            Some(c @ 0..3) => return Ok(Tensor { form: Form::Channel(c as usize), ..x }),
            None if is_reversed => return Ok(reversed(x, rescaling)),
            _ => {}
        }
        Err(layer.error("of images only the order of the channels can be reversed: images[..., ::-1]"))
    }

    /// Channels put together again, as in the `preprocess_input` of `keras.applications.resnet50`.
    pub(super) fn stack(&mut self, layer: &Layer<'_>, parts: [Tensor; 3]) -> Result<Tensor, KerasError> {
        layer.only("axis", &[(-1).into(), 3.into()])?;
        let x = parts[0];
        let same = parts.iter().all(|part| part.from == x.from);
        match (parts.map(|part| part.form), x.from) {
            ([Form::Channel(0), Form::Channel(1), Form::Channel(2)], _) if same => {
                Ok(Tensor { form: Form::Plain, ..x })
            }
            ([Form::Channel(2), Form::Channel(1), Form::Channel(0)], From::Images(rescaling)) if same => {
                Ok(reversed(x, rescaling))
            }
            _ => Err(layer.error("only the three channels of images can be stacked, in their order or in reverse")),
        }
    }

    fn hard_sigmoid(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<usize, KerasError> {
        let x = Tensor { form: Form::Plain, ..x };
        self.push(layer, layer.path, LayerOp::Activation { act: Act::HardSigmoid }, &[x])?;
        Ok(self.entries.len() - 1)
    }

    fn rescaled(&self, layer: &Layer<'_>, x: Tensor, scale: [f64; 3], offset: [f64; 3]) -> Result<Tensor, KerasError> {
        let rescaling = self.images_only(layer, x)?;
        if scale.iter().any(|&scale| scale <= 0.0 || !scale.is_finite()) || offset.iter().any(|o| !o.is_finite()) {
            return Err(layer.error(format!("images cannot be scaled by {scale:?} and moved by {offset:?}")));
        }
        Ok(Tensor { from: From::Images(rescaling.then(scale, offset)), ..x })
    }

    fn images_only(&self, layer: &Layer<'_>, x: Tensor) -> Result<Rescaling, KerasError> {
        match x.from {
            From::Images(rescaling) if x.padding == [0; 4] && x.form == Form::Plain => Ok(rescaling),
            _ => Err(layer.error("it is supported at the beginning only, before the first layer that has weights")),
        }
    }

    fn normalization(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        /// Keras divides by no less.
        const SMALLEST: f64 = 1e-7;
        layer.only("invert", &[false.into()])?;
        let [mean, variance] = match (&layer.config["mean"], &layer.config["variance"]) {
            (Value::Null, _) | (_, Value::Null) => {
                let [mean, variance] = (self.model.normalization)(layer.path)
                    .ok_or_else(|| layer.error("the file has neither its mean and variance nor variables for them"))?;
                [mean, variance].map(Value::from)
            }
            (mean, variance) => [mean.clone(), variance.clone()],
        };
        let deviation = layer.channels(&variance)?.map(|variance| variance.sqrt().max(SMALLEST));
        let mean = layer.channels(&mean)?;
        let offset = [0, 1, 2].map(|channel| -mean[channel] / deviation[channel]);
        self.rescaled(layer, x, deviation.map(|deviation| 1.0 / deviation), offset)
    }

    fn conv(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let channels = layer.count("filters")?;
        let groups = match &layer.config["groups"] {
            Value::Null => 1,
            _ => layer.count("groups")?,
        };
        let op = conv_op(layer, x, channels, groups, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { channels, padding: [0; 4], ..out }, activation)
    }

    fn depthwise(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        layer.only("depth_multiplier", &[1.into()])?;
        let op = conv_op(layer, x, x.channels, x.channels, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { padding: [0; 4], ..out }, activation)
    }

    fn separable(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        layer.only("depth_multiplier", &[1.into()])?;
        let op = conv_op(layer, x, x.channels, x.channels, false)?;
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, &format!("{}.depthwise", layer.path), op, &[x])?;
        let channels = layer.count("filters")?;
        let pointwise = LayerOp::Conv {
            channels,
            kernel: [1; 2],
            stride: [1; 2],
            padding: Padding::Pixels([0; 4]),
            groups: 1,
            bias: layer.is_on("use_bias", true),
        };
        let out = Tensor { padding: [0; 4], ..out };
        let out = self.push(layer, &format!("{}.pointwise", layer.path), pointwise, &[out])?;
        self.activated(layer, "", Tensor { channels, ..out }, activation)
    }

    fn dense(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        if !x.pooled {
            return Err(layer.error("its input is an image; put a GlobalAveragePooling2D before it"));
        }
        let channels = layer.count("units")?;
        let op = match layer.is_on("use_bias", true) {
            true => LayerOp::Linear { channels, bias: true, taken: Taken::Pixel },
            // A linear layer has a bias here.
            false => LayerOp::Conv {
                channels,
                kernel: [1; 2],
                stride: [1; 2],
                padding: Padding::Pixels([0; 4]),
                groups: 1,
                bias: false,
            },
        };
        let activation = self.activation(layer, layer.activation())?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { channels, ..out }, activation)
    }

    fn batch_norm(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let mut axis = Vec::new();
        flatten(&layer.config["axis"], &mut axis);
        let last = if x.pooled { [-1.0, 3.0, 1.0] } else { [-1.0, 3.0, 3.0] };
        if axis.len() > 1 || axis.iter().any(|axis| !last.contains(axis)) {
            return Err(layer.error(format!("axis={} is not the channels'", layer.config["axis"])));
        }
        layer.only("renorm", &[false.into()])?;
        let eps = layer.float("epsilon", 1e-3)? as f32;
        let affine = match (layer.is_on("scale", true), layer.is_on("center", true)) {
            (true, true) => Affine::Both,
            (true, false) => Affine::Gamma,
            (false, true) => Affine::Beta,
            (false, false) => Affine::None,
        };
        let keep = layer.float("momentum", f64::from(Averaging::KERAS.keep))? as f32;
        if !(0.0..1.0).contains(&keep) {
            return Err(layer.error(format!("momentum={keep} is not supported, only from 0 to below 1")));
        }
        // Keras 2 normalises images, not features, by one fused operation, which stores the unbiased variance.
        let var = if self.model.keras_2 && !x.pooled { Variance::Unbiased } else { Averaging::KERAS.var };
        self.push(layer, layer.path, LayerOp::Bn { eps, keep, var, affine }, &[x])
    }

    fn max_pool(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let (kernel, stride) = pool(layer)?;
        // Here padding is −∞, in a ZeroPadding2D it is 0: the same below values that are never negative.
        let never_negative = match x.from {
            From::Images(_) => false,
            From::Entry(index) => match self.entries[index].op {
                LayerOp::Activation { act } => act.is_never_negative(),
                _ => false,
            },
        };
        if x.padding != [0; 4] && !never_negative {
            return Err(layer.error("the zeros around its input could be the maximum, since no ReLU comes before them"));
        }
        let padding = padding(layer, x, kernel, stride)?;
        let out = self.push(layer, layer.path, LayerOp::MaxPool { kernel, stride, padding, ceil: false }, &[x])?;
        Ok(Tensor { padding: [0; 4], ..out })
    }

    fn dropout(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let rate = layer.float("rate", 0.0)? as f32;
        let shape = layer.config["noise_shape"].as_array().map_or(&[][..], Vec::as_slice);
        let op = match shape {
            [] => LayerOp::Dropout { rate },
            // One decision an image.
            [_, rest @ ..] if rest.len() == 3 && rest.iter().all(|size| size.as_u64() == Some(1)) => {
                LayerOp::StochasticDepth { rate }
            }
            _ => {
                let shape = &layer.config["noise_shape"];
                return Err(layer.error(format!("noise_shape={shape} is not supported, only none or [null, 1, 1, 1]")));
            }
        };
        self.push(layer, layer.path, op, &[x])
    }

    /// What a word for an activation stands for.
    fn activation(&self, layer: &Layer<'_>, word: &str) -> Result<Activation, KerasError> {
        Ok(Activation::Act(match word {
            "linear" => Act::Identity,
            "relu" => Act::Relu,
            "relu6" => Act::Relu6,
            "swish" | "silu" => Act::Silu,
            "hard_swish" | "hard_silu" => Act::HardSwish,
            "hard_sigmoid" if self.model.keras_2 => {
                return Err(
                    layer.error("the hard_sigmoid of Keras 2, 0.2·x + 0.5, is not supported; that of Keras 3 is")
                );
            }
            "hard_sigmoid" => Act::HardSigmoid,
            "sigmoid" => Act::Sigmoid,
            "softmax" => return Ok(Activation::Softmax),
            _ => {
                return Err(layer.error(format!(
                    "the activation `{word}` is not supported; linear, relu, relu6, silu, hard_swish, hard_sigmoid, \
                     sigmoid and, at the end, softmax are"
                )));
            }
        }))
    }

    /// Adds an activation as a layer called `name`; one that is part of `layer` has none.
    fn activated(
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
}

/// How a `Resizing` layer brings images to its size.
fn resizing(layer: &Layer<'_>) -> Result<(String, Resize, Interpolation), KerasError> {
    layer.only("pad_to_aspect_ratio", &[false.into()])?;
    let word = layer.config["interpolation"].as_str().unwrap_or("bilinear");
    let antialiased = match word {
        "nearest" => Interpolation::Nearest,
        "bilinear" => Interpolation::Bilinear,
        "bicubic" => Interpolation::Bicubic,
        _ => {
            let reason = format!("interpolation=`{word}` is not supported, only nearest, bilinear and bicubic");
            return Err(layer.error(reason));
        }
    };
    let resize = if layer.is_on("crop_to_aspect_ratio", false) { Resize::CropFirst } else { Resize::Stretch };
    let antialias = layer.is_on("antialias", false);
    let interpolation = if antialias { antialiased } else { antialiased.of_tensorflow() };
    Ok((layer.path.to_owned(), resize, interpolation))
}

fn zero_padding(layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
    /// Far above every network, and small enough that no size computed from it overflows.
    const MOST: f64 = 1024.0;
    let value = &layer.config["padding"];
    let mut numbers = Vec::new();
    flatten(value, &mut numbers);
    let [top, bottom, left, right] = match numbers[..] {
        [all] => [all; 4],
        [vertical, horizontal] => [vertical, vertical, horizontal, horizontal],
        [top, bottom, left, right] => [top, bottom, left, right],
        _ => [-1.0; 4],
    };
    let sides = [top, left, bottom, right];
    if sides.iter().any(|side| !(0.0..=MOST).contains(side) || side.fract() != 0.0) {
        return Err(layer.error(format!("padding={value} is no number of pixels for each side")));
    }
    let mut padding = x.padding;
    for (sum, side) in padding.iter_mut().zip(sides) {
        *sum += side as usize;
    }
    Ok(Tensor { padding, pooled: false, ..x })
}

fn conv_op(layer: &Layer<'_>, x: Tensor, channels: usize, groups: usize, bias: bool) -> Result<LayerOp, KerasError> {
    if layer.pair("dilation_rate").unwrap_or([1; 2]) != [1; 2] {
        let dilation = &layer.config["dilation_rate"];
        return Err(layer.error(format!("dilation_rate={dilation} is not supported, only 1")));
    }
    let (kernel, stride) = (layer.pair("kernel_size")?, layer.pair("strides")?);
    let padding = padding(layer, x, kernel, stride)?;
    Ok(LayerOp::Conv { channels, kernel, stride, padding, groups, bias })
}

fn pool(layer: &Layer<'_>) -> Result<([usize; 2], [usize; 2]), KerasError> {
    let kernel = layer.pair("pool_size")?;
    let stride = match layer.config["strides"] {
        Value::Null => kernel,
        _ => layer.pair("strides")?,
    };
    Ok((kernel, stride))
}

/// A window's padding, with the zeros that a layer before it adds.
fn padding(layer: &Layer<'_>, x: Tensor, kernel: [usize; 2], stride: [usize; 2]) -> Result<Padding, KerasError> {
    let word = layer.config["padding"].as_str().unwrap_or("valid");
    match word.to_ascii_lowercase().as_str() {
        "valid" => Ok(Padding::Pixels(x.padding)),
        "same" if x.padding != [0; 4] => Err(layer.error("it adds zeros around zeros that a layer before it adds")),
        // Does not depend on the image's size.
        "same" if stride == [1; 2] => {
            let [h, w] = kernel.map(|side| side.saturating_sub(1));
            Ok(Padding::Pixels([h / 2, w / 2, h - h / 2, w - w / 2]))
        }
        "same" => Ok(Padding::Same),
        _ => Err(layer.error(format!("padding=`{word}` is not supported, only valid and same"))),
    }
}
