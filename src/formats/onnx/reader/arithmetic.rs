//! Sums and products: of two images, and of an image and a constant.

use super::constant::{Constant, Kind};
use super::network::{LayerId, Note, Weights};
use super::{Def, Id, Node, Over, Reader, Value};
use crate::formats::onnx::attributes::attributes;
use crate::graph::{Act, Factor};
use crate::models::{LayerOp, Padding};

/// What is done to an image with a constant.
enum Operands<'a> {
    Images(Id, Id),
    /// And whether the constant comes first.
    Constant(Id, Constant<'a>, bool),
}

impl<'a> Reader<'a> {
    fn operands(&mut self, node: Node<'a>) -> Result<Operands<'a>, String> {
        attributes(&node, &[])?;
        match (self.value(node, 0)?, self.value(node, 1)?) {
            (Value::Image(a), Value::Image(b)) => Ok(Operands::Images(a, b)),
            (Value::Image(x), Value::Constant(constant)) => Ok(Operands::Constant(x, constant, false)),
            (Value::Constant(constant), Value::Image(x)) => Ok(Operands::Constant(x, constant, true)),
            _ => Err("it reads a sequence".into()),
        }
    }

    pub(super) fn add(&mut self, node: Node<'a>) -> Result<Id, String> {
        if node.proto.input.len() != 2 {
            let all =
                (0..node.proto.input.len()).map(|index| self.operand(node, index)).collect::<Result<Vec<_>, _>>()?;
            let (&first, others) = all.split_first().ok_or("it reads nothing")?;
            return others.iter().try_fold(first, |sum, &other| self.sum(node, sum, other));
        }
        match self.operands(node)? {
            Operands::Images(a, b) => self.sum(node, a, b),
            Operands::Constant(x, constant, _) => self.plus_constant(node, x, constant, false),
        }
    }

    pub(super) fn sub(&mut self, node: Node<'a>) -> Result<Id, String> {
        match self.operands(node)? {
            Operands::Images(a, b) if self.image(b).def == Def::ChannelMean(a) => {
                self.part(node, Def::Difference(a, b), a)
            }
            Operands::Images(a, b) => {
                self.of_one_form(a, b, "less")?;
                self.part(node, Def::Difference(a, b), self.longer(a, b))
            }
            Operands::Constant(x, constant, false) => self.plus_constant(node, x, constant, true),
            Operands::Constant(x, constant, true) => {
                let negative = self.times(node, x, -1.0)?;
                self.plus_constant(node, negative, constant, false)
            }
        }
    }

    pub(super) fn mul(&mut self, node: Node<'a>) -> Result<Id, String> {
        match self.operands(node)? {
            Operands::Images(a, b) => self.product(node, a, b),
            Operands::Constant(x, constant, _) => match self.one_number(&constant)? {
                Some(factor) => self.times(node, x, factor),
                None => self.times_channels(node, x, constant),
            },
        }
    }

    pub(super) fn div(&mut self, node: Node<'a>) -> Result<Id, String> {
        match self.operands(node)? {
            Operands::Images(a, b) => match self.normalised(a, b) {
                Some((x, eps)) => self.part(node, Def::Normalised(x, Over::Channels, eps), a),
                None => Err("one image over another is supported as a part of layer norms only".into()),
            },
            Operands::Constant(x, constant, backwards) => match (self.one_number(&constant)?, backwards) {
                (Some(divisor), false) if divisor != 0.0 => self.times(node, x, 1.0 / divisor),
                (Some(1.0), true) => self.part(node, Def::Reciprocal(x), x),
                _ => Err("it is supported for images over a number, and as a part of layer norms".into()),
            },
        }
    }

    // ---- Two images.

    fn of_one_form(&self, a: Id, b: Id, what: &str) -> Result<(), String> {
        match self.image(a).view == self.image(b).view {
            true => Ok(()),
            false => Err(format!(
                "{} {what} {} is not supported; the dimensions must be equal",
                self.described(a),
                self.described(b)
            )),
        }
    }

    /// The one of two that more operators are to become a layer with.
    fn longer(&self, a: Id, b: Id) -> Id {
        if self.image(a).parts < self.image(b).parts { b } else { a }
    }

    fn are_layers(&self, a: Id, b: Id) -> bool {
        self.image(a).layer.is_some() && self.image(b).layer.is_some()
    }

    fn sum(&mut self, node: Node<'a>, a: Id, b: Id) -> Result<Id, String> {
        self.of_one_form(a, b, "plus")?;
        match self.are_layers(a, b) {
            true => self.two(node, LayerOp::Add {}, a, b, Def::Sum(a, b)),
            false => self.part(node, Def::Sum(a, b), self.longer(a, b)),
        }
    }

    pub(super) fn product(&mut self, node: Node<'a>, a: Id, b: Id) -> Result<Id, String> {
        for (x, scale) in [(a, b), (b, a)] {
            if let Def::Reciprocal(deviation) = self.image(scale).def
                && let Some((from, eps)) = self.normalised(x, deviation)
            {
                return self.part(node, Def::Normalised(from, Over::Channels, eps), x);
            }
        }
        for (x, gate) in [(a, b), (b, a)] {
            if self.is_gate_of(gate, x)? {
                return self.two(node, LayerOp::Scale {}, x, gate, Def::Layer);
            }
        }
        if self.image(a).view != self.image(b).view {
            return Err(format!(
                "{} times {} is not supported; images times images, or times one value a channel, [N, C, 1, 1], are",
                self.described(a),
                self.described(b)
            ));
        }
        let def = Def::Product(a, b);
        if let Some((act, x)) = self.recognised(def) {
            return self.activate(node, act, x);
        }
        match self.are_layers(a, b) {
            true => self.two(node, LayerOp::Multiply {}, a, b, def),
            false => self.part(node, def, self.longer(a, b)),
        }
    }

    /// Whether a value a channel is what an image is multiplied with, rather than another image of its size.
    fn is_gate_of(&mut self, gate: Id, x: Id) -> Result<bool, String> {
        let (wide, narrow) = (self.image(x), self.image(gate));
        if !self.is_pixel(gate) || narrow.shape[0] != wide.shape[0] || !narrow.view.repeats_along(&wide.view) {
            return Ok(false);
        }
        if !self.is_pixel(x) {
            return Ok(true);
        }
        // Images of one pixel: the gate is what has been pooled. A part is none of a gate.
        match (wide.layer, narrow.layer) {
            (Some(wide), Some(narrow)) => Ok(self.network.is_pooled(narrow) && !self.network.is_pooled(wide)),
            _ => Ok(false),
        }
    }

    /// A layer of two images, in the dimensions of the first.
    fn two(&mut self, node: Node<'a>, op: LayerOp, a: Id, b: Id, def: Def) -> Result<Id, String> {
        let view = self.image(a).view.clone();
        let id = self.layer(node, op, &[a, b], Vec::new(), |_| view)?;
        self.images[id.0].def = def;
        Ok(id)
    }

    // ---- An image and a constant.

    fn plus_constant(&mut self, node: Node<'a>, x: Id, constant: Constant<'a>, negative: bool) -> Result<Id, String> {
        match self.one_number(&constant)? {
            Some(0.0) => return Ok(x),
            Some(number) => {
                self.check_prepared(x)?;
                return self.part(node, Def::Plus(x, if negative { -number } else { number }), x);
            }
            None => {}
        }
        let channels = self.of_channels(x, constant)?;
        if !negative && let Some(norm) = self.norm_with_beta(node, x, &channels)? {
            return Ok(norm);
        }
        let bias = Weights::new("bias", channels.clone()).negated_if(negative);
        if let (Some(layer), Def::Layer) = (self.image(x).layer, self.image(x).def)
            && let Some(layer) = self.network.with_bias(layer, &bias)?
        {
            let image = super::Image { layer: Some(layer), ..self.image(x).clone() };
            return Ok(self.given_image(image));
        }
        self.check_prepared(x)?;
        self.channels.push((channels, negative));
        self.part(node, Def::PlusChannels(x, self.channels.len() - 1), x)
    }

    pub(super) fn times(&mut self, node: Node<'a>, x: Id, factor: f32) -> Result<Id, String> {
        if factor == 1.0 {
            return Ok(x);
        }
        self.check_prepared(x)?;
        let def = Def::Times(x, factor);
        if let Some((act, x)) = self.recognised(def) {
            return self.activate(node, act, x);
        }
        match (self.image(x).layer, Factor::new(factor)) {
            (Some(_), Some(factor)) => {
                let id = self.pointwise(node, LayerOp::Activation { act: Act::ScaleBy(factor) }, x)?;
                self.images[id.0].def = def;
                Ok(id)
            }
            _ => self.part(node, def, x),
        }
    }

    fn times_channels(&mut self, node: Node<'a>, x: Id, constant: Constant<'a>) -> Result<Id, String> {
        self.check_prepared(x)?;
        let dims = if constant.tensor().is_some_and(|(tensor, _)| tensor.dims.len() == 1) { 1 } else { 3 };
        let channels = self.of_channels(x, constant)?;
        self.channels.push((channels, false));
        let def = Def::TimesChannels(x, self.channels.len() - 1);
        match self.image(x).def {
            Def::Normalised(..) => self.part(node, def, x),
            _ => {
                let id = self.layer_scale(node, x, self.channels.len() - 1, dims)?;
                self.images[id.0].def = def;
                Ok(id)
            }
        }
    }

    fn layer_scale(&mut self, node: Node<'a>, x: Id, channels: usize, dims: usize) -> Result<Id, String> {
        let view = self.image(x).view.clone();
        let factors = self.per_channel(channels, &[&[self.image(x).shape[0]][..], &[1, 1][..dims - 1]].concat())?;
        self.layer(node, LayerOp::LayerScale { dims }, &[x], vec![factors], |_| view)
    }

    /// A constant that has a value for each channel of `x`, as `[C]`.
    fn of_channels(&self, x: Id, constant: Constant<'a>) -> Result<Constant<'a>, String> {
        let super::Image { shape, view, .. } = self.image(x);
        let place = view.channels(*shape).map(|at| at + 1);
        // Dimensions are counted from the last one.
        let at = place.and_then(|at| (at + constant.dims.len()).checked_sub(view.rank() + 1));
        let others_are_one = |at| constant.dims.iter().enumerate().all(|(other, &size)| other == at || size == 1);
        let fits = at.is_some_and(|at| constant.dims.get(at) == Some(&shape[0]) && others_are_one(at));
        let channels = if fits { constant.reshaped(&[shape[0]]) } else { None };
        channels.ok_or_else(|| {
            format!(
                "a constant of the shape {:?} is not supported with {}; one number, and one a channel are",
                constant.dims,
                self.described(x)
            )
        })
    }

    /// One of the constants of a value a channel, as a layer's weights.
    fn per_channel(&self, index: usize, dims: &[usize]) -> Result<Weights<'a>, String> {
        let (channels, negative) = &self.channels[index];
        let channels = channels.reshaped(dims).ok_or("its constant cannot be one value a channel")?;
        Ok(Weights::new("", channels).negated_if(*negative))
    }

    /// Refuses what prepares the images, which is no layer.
    fn check_prepared(&self, x: Id) -> Result<(), String> {
        match self.image(x).layer {
            Some(LayerId::IMAGES) => Err(
                "it prepares the images, which the network is to get prepared: take this out of the file, and say by --mean and \
                 --std what it does"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    // ---- Layers for what no other operator became a part of.

    /// What gives an image that no layer gives yet.
    pub(super) fn made(&mut self, id: Id) -> Result<Id, String> {
        let image = self.image(id);
        let (def, Some(node)) = (image.def, image.node) else { return Err(self.unknown_part(id)) };
        match def {
            Def::Padded(x, padding) => {
                let view = image.view.clone();
                self.layer(node, LayerOp::Pad { padding }, &[x], Vec::new(), |_| view)
            }
            Def::Act(act, x) => self.pointwise(node, LayerOp::Activation { act }, x),
            Def::Plus(..) | Def::PlusChannels(..) => self.affine(node, def),
            Def::Times(x, factor) => {
                let positive = Factor::new(factor.abs()).ok_or("a product with such a number is not supported")?;
                let x = if factor < 0.0 { self.negative(x)? } else { x };
                match factor.abs() == 1.0 {
                    true => Ok(x),
                    false => self.pointwise(node, LayerOp::Activation { act: Act::ScaleBy(positive) }, x),
                }
            }
            Def::Sum(a, b) => self.two(node, LayerOp::Add {}, a, b, Def::Layer),
            Def::Product(a, b) => self.two(node, LayerOp::Multiply {}, a, b, Def::Layer),
            Def::Power(x, 2.0) => self.two(node, LayerOp::Multiply {}, x, x, Def::Layer),
            Def::Difference(a, b) => {
                let negative = self.negative(b)?;
                self.two(node, LayerOp::Add {}, a, negative, Def::Layer)
            }
            Def::Normalised(..) | Def::TimesChannels(..) => match self.norm_without_beta(node, id)? {
                Some(id) => Ok(id),
                None => Err(self.unknown_part(id)),
            },
            _ => Err(self.unknown_part(id)),
        }
    }

    /// The same with the other sign.
    fn negative(&mut self, x: Id) -> Result<Id, String> {
        let layer = self.layer_of(x)?;
        let wrong = "what is subtracted must be what a convolution, a linear layer or a norm gives";
        let layer = self.network.negated(layer)?.ok_or(wrong)?;
        let image = super::Image { layer: Some(layer), def: Def::Layer, ..self.image(x).clone() };
        Ok(self.given_image(image))
    }

    /// Constants that are multiplied by and added: a convolution of each channel.
    fn affine(&mut self, node: Node<'a>, sum: Def) -> Result<Id, String> {
        let (Def::Plus(scaled, _) | Def::PlusChannels(scaled, _)) = sum else { return Err("it is no sum".into()) };
        let (x, product) = match self.image(scaled).def {
            product @ (Def::Times(x, _) | Def::TimesChannels(x, _)) => (x, Some(product)),
            _ => (scaled, None),
        };
        let channels = self.image(x).shape[0];
        let same = |number: f32, dims: &[usize]| {
            let number = Constant::number(Kind::Float, f64::from(number)).expanded(dims);
            number.ok_or_else(|| format!("no layer has {dims:?} weights"))
        };
        let dims = [channels, 1, 1, 1];
        let weight = match product {
            Some(Def::TimesChannels(_, index)) => self.per_channel(index, &dims)?,
            Some(Def::Times(_, factor)) => Weights::new("", same(factor, &dims)?),
            _ => Weights::new("", same(1.0, &dims)?),
        };
        let bias = match sum {
            Def::PlusChannels(_, index) => self.per_channel(index, &[channels])?,
            Def::Plus(_, number) => Weights::new("", same(number, &[channels])?),
            _ => return Err("it is no sum".into()),
        };
        let padding = Padding::Pixels([0; 4]);
        let op = LayerOp::Conv { channels, kernel: [1; 2], stride: [1; 2], padding, groups: channels, bias: true };
        let view = self.image(x).view.clone();
        let id = self.layer(node, op, &[x], vec![weight.called("weight"), bias.called("bias")], |_| view)?;
        self.note(id, Some(Note::Affine));
        Ok(id)
    }
}
