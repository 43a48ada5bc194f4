//! What each class of layers becomes.

use super::activation::{Activation, activation_of};
use super::augmentation;
use super::config::Layer;
use super::rescaling::Rescaling;
use super::shapes::Axes;
use super::{Form, From, Importer, KerasError, SUPPORTED, Tensor};
use crate::graph::{Act, Affine, Averaging, Taken, Variance};
use crate::models::{LayerOp, Padding};
use crate::preprocessing::{Interpolation, Resize};
use serde_json::Value;

impl Importer<'_> {
    /// What comes of a layer with one input.
    pub(super) fn of_one(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match layer.class {
            "Rescaling" => self.rescaling(layer, x),
            "Normalization" => self.normalization(layer, x),
            "Resizing" => {
                self.images_only(layer, x)?;
                self.resized(layer)?;
                self.resizing = Some(resizing(layer)?);
                self.notes.push(format!("images are resized as `{}` does, but once only, from the file", layer.path));
                Ok(x)
            }
            _ if augmentation::is_augmentation(layer, x) => {
                self.images_only(layer, x)?;
                if layer.class == "RandomCrop" && self.model.keras_2 {
                    // In inference it resizes.
                    self.resized(layer)?;
                }
                self.augmentation.push(augmentation::of(layer));
                Ok(x)
            }
            "ZeroPadding2D" => self.zero_padding(layer, x),
            "Conv2D" => self.conv(layer, x),
            "DepthwiseConv2D" => self.depthwise(layer, x),
            "SeparableConv2D" => self.separable(layer, x),
            "Dense" => self.dense(layer, x),
            "BatchNormalization" => self.batch_norm(layer, x),
            "LayerNormalization" => self.layer_norm(layer, x),
            "LayerScale" => self.layer_scale(layer, x),
            "Activation" => {
                let activation = self.activation(layer)?;
                self.activated(layer, layer.path, x, activation)
            }
            "MaxPooling2D" => self.max_pool(layer, x),
            "AveragePooling2D" => self.average_pool(layer, x),
            "GlobalAveragePooling2D" => self.pool_all(layer, LayerOp::GlobalAvgPool {}, x),
            "GlobalMaxPooling2D" => self.pool_all(layer, LayerOp::GlobalMaxPool {}, x),
            "Flatten" => self.flattened(layer, x),
            "Reshape" => self.reshaped(layer, x),
            "Dropout" => self.dropout(layer, x),
            "StochasticDepth" if !layer.config["drop_path_rate"].is_null() => {
                self.taken_by_name(layer);
                let x = self.plain(layer, x)?;
                let rate = layer.float("drop_path_rate", 0.0)? as f32;
                self.push(layer, layer.path, LayerOp::StochasticDepth { rate }, &[x])
            }
            // What does nothing in inference, or at all.
            "ActivityRegularization" | "Identity" | "Add" | "Multiply" | "Concatenate" => Ok(x),
            class => match activation_of(layer)? {
                Some(Activation::Act(Act::Relu6)) if x.form == Form::Plus3 => {
                    let entry = self.hard_sigmoid(layer, x)?;
                    Ok(Tensor { form: Form::Clipped { entry }, ..x })
                }
                Some(activation) => self.activated(layer, layer.path, x, activation),
                None => Err(layer.error(format!("`{class}` is not supported; {SUPPORTED} are"))),
            },
        }
    }

    /// Says that a class which may be anybody's is taken for the one of Keras that has its name.
    pub(super) fn taken_by_name(&mut self, layer: &Layer<'_>) {
        if ["keras.", "tf_keras."].iter().any(|keras| layer.module.starts_with(keras)) {
            return;
        }
        let note = format!("the layers of the class {} are taken for those of keras.applications", layer.class);
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn rescaling(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let scale = layer.channels(&layer.config["scale"])?;
        let offset = match &layer.config["offset"] {
            Value::Null => [0.0; 3],
            offset => layer.channels(offset)?,
        };
        match (x.from, layer.config["scale"].as_f64()) {
            (From::Entry(_), Some(factor)) if offset == [0.0; 3] => self.scaled_by(layer, layer.path, x, factor),
            _ => self.rescaled(layer, x, scale, offset),
        }
    }

    pub(super) fn rescaled(
        &self,
        layer: &Layer<'_>,
        x: Tensor,
        scale: [f64; 3],
        offset: [f64; 3],
    ) -> Result<Tensor, KerasError> {
        let rescaling = self.images_only(layer, x)?;
        if scale.iter().any(|&scale| scale <= 0.0 || !scale.is_finite()) || offset.iter().any(|o| !o.is_finite()) {
            return Err(layer.error(format!("images cannot be scaled by {scale:?} and moved by {offset:?}")));
        }
        Ok(Tensor { from: From::Images(rescaling.then(scale, offset)), ..x })
    }

    pub(super) fn images_only(&self, layer: &Layer<'_>, x: Tensor) -> Result<Rescaling, KerasError> {
        match x.from {
            From::Images(rescaling) if x.border.is_none() && x.axes == Axes::Image && x.form == Form::Plain => {
                Ok(rescaling)
            }
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
        let channels = layer.count("filters")?;
        let groups = match &layer.config["groups"] {
            Value::Null => 1,
            _ => layer.count("groups")?,
        };
        let (x, op) = self.conv_op(layer, x, channels, groups, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer)?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", out, activation)
    }

    fn depthwise(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        layer.only("depth_multiplier", &[1.into()])?;
        let channels = self.channels(x);
        let (x, op) = self.conv_op(layer, x, channels, channels, layer.is_on("use_bias", true))?;
        let activation = self.activation(layer)?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", out, activation)
    }

    fn separable(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        layer.only("depth_multiplier", &[1.into()])?;
        let channels = self.channels(x);
        let (x, op) = self.conv_op(layer, x, channels, channels, false)?;
        let activation = self.activation(layer)?;
        let out = self.push(layer, &format!("{}.depthwise", layer.path), op, &[x])?;
        let pointwise = LayerOp::Conv {
            channels: layer.count("filters")?,
            kernel: [1; 2],
            stride: [1; 2],
            padding: Padding::Pixels([0; 4]),
            groups: 1,
            bias: layer.is_on("use_bias", true),
        };
        let out = self.push(layer, &format!("{}.pointwise", layer.path), pointwise, &[out])?;
        self.activated(layer, "", out, activation)
    }

    /// What a convolution takes, and what it does.
    fn conv_op(
        &mut self,
        layer: &Layer<'_>,
        x: Tensor,
        channels: usize,
        groups: usize,
        bias: bool,
    ) -> Result<(Tensor, LayerOp), KerasError> {
        let x = self.unformed(layer, x)?;
        let x = self.unflattened(layer, x)?;
        if layer.pair("dilation_rate").unwrap_or([1; 2]) != [1; 2] {
            let dilation = &layer.config["dilation_rate"];
            return Err(layer.error(format!("dilation_rate={dilation} is not supported, only 1")));
        }
        let (kernel, stride) = (layer.pair("kernel_size")?, layer.pair("strides")?);
        let (x, padding) = self.windowed(layer, x, kernel, stride)?;
        Ok((x, LayerOp::Conv { channels, kernel, stride, padding, groups, bias }))
    }

    fn dense(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let [_, height, width, _] = self.shape(x).0;
        let (taken, axes) = match x.axes {
            Axes::Features => (Taken::Pixel, Axes::Features),
            Axes::Image => (Taken::EachPixel, Axes::Image),
            Axes::Flat => (Taken::Image([height, width]), Axes::Features),
        };
        let op = LayerOp::Linear { channels: layer.count("units")?, bias: layer.is_on("use_bias", true), taken };
        let activation = self.activation(layer)?;
        let out = self.push(layer, layer.path, op, &[x])?;
        self.activated(layer, "", Tensor { axes, ..out }, activation)
    }

    fn batch_norm(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let x = self.unflattened(layer, x)?;
        self.channel_axis(layer, x, &layer.config["axis"])?;
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
        let is_fused = self.model.keras_2 && x.axes == Axes::Image;
        let var = if is_fused { Variance::Unbiased } else { Averaging::KERAS.var };
        self.push(layer, layer.path, LayerOp::Bn { eps, keep, var, affine }, &[x])
    }

    fn layer_norm(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let x = self.unflattened(layer, x)?;
        self.channel_axis(layer, x, &layer.config["axis"])?;
        layer.only("rms_scaling", &[false.into()])?;
        layer.only("scale", &[true.into()])?;
        layer.only("center", &[true.into()])?;
        let eps = layer.float("epsilon", 1e-3)? as f32;
        self.push(layer, layer.path, LayerOp::LayerNorm { eps }, &[x])
    }

    /// The layer of ConvNeXt: a factor that trains for each channel.
    fn layer_scale(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let x = self.unflattened(layer, x)?;
        let (channels, factors) = (self.channels(x), layer.count("projection_dim")?);
        if channels != factors {
            return Err(layer.error(format!("it has {factors} factors for {channels} channels")));
        }
        self.taken_by_name(layer);
        self.push(layer, layer.path, LayerOp::LayerScale { dims: 1 }, &[x])
    }

    fn max_pool(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let x = self.unflattened(layer, x)?;
        let (kernel, stride) = pool(layer)?;
        // Here padding is −∞, in a ZeroPadding2D it is 0: the same below values that are never negative.
        let never_negative = match x.from {
            From::Images(_) => false,
            From::Entry(index) => match self.entries[index].op {
                LayerOp::Activation { act } => act.is_never_negative(),
                _ => false,
            },
        };
        let x = if never_negative { x } else { self.bordered(layer, x)? };
        let (x, padding) = self.windowed(layer, x, kernel, stride)?;
        self.push(layer, layer.path, LayerOp::MaxPool { kernel, stride, padding, ceil: false }, &[x])
    }

    fn average_pool(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.unformed(layer, x)?;
        let x = self.unflattened(layer, x)?;
        let (kernel, stride) = pool(layer)?;
        // The zeros of a layer before it count, those of `same` do not.
        let is_valid = layer.config["padding"].as_str().is_none_or(|word| word.eq_ignore_ascii_case("valid"));
        let (x, padding) = self.windowed(layer, x, kernel, stride)?;
        let op = LayerOp::AvgPool { kernel, stride, padding, ceil: false, count_padding: is_valid };
        self.push(layer, layer.path, op, &[x])
    }

    /// A pooling over all pixels.
    fn pool_all(&mut self, layer: &Layer<'_>, op: LayerOp, x: Tensor) -> Result<Tensor, KerasError> {
        let x = self.plain(layer, x)?;
        let x = self.unflattened(layer, x)?;
        let out = self.push(layer, layer.path, op, &[x])?;
        Ok(Tensor { axes: Axes::Features, ..out })
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

fn pool(layer: &Layer<'_>) -> Result<([usize; 2], [usize; 2]), KerasError> {
    let kernel = layer.pair("pool_size")?;
    let stride = match layer.config["strides"] {
        Value::Null => kernel,
        _ => layer.pair("strides")?,
    };
    Ok((kernel, stride))
}
