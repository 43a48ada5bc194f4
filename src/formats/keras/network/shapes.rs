//! The shapes of tensors: what Keras has beside the batch, zeros around an image, and images in one row.

use super::config::{Layer, flatten};
use super::{Form, From, Importer, KerasError, Tensor};
use crate::models::{LayerOp, Padding};
use crate::tensor::Shape;
use serde_json::Value;

/// What Keras has a tensor as, beside the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Axes {
    /// Height, width and channels.
    Image,
    /// Channels, which a pooling over all pixels gives as `[1, 1, C]`, too.
    Features,
    /// All values of an image in one row, pixel by pixel.
    Flat,
}

/// Zeros around a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Border {
    /// Top, left, bottom, right.
    pub(super) sides: [usize; 4],
    /// The layer that adds them, among the importer's.
    layer: usize,
}

/// A layer that adds zeros, which becomes one of the graph only where the next cannot add them.
pub(super) struct BorderLayer {
    name: String,
    position: Vec<usize>,
    /// The layer of the graph, if it is one.
    entry: Option<usize>,
}

impl Importer<'_> {
    /// Height and width of the images.
    pub(super) fn image_size(&self) -> (usize, usize) {
        self.size.unwrap_or((super::DEFAULT_SIZE, super::DEFAULT_SIZE))
    }

    /// Takes the size of the images from a layer that brings them to it.
    pub(super) fn resized(&mut self, layer: &Layer<'_>) -> Result<(), KerasError> {
        if self.assembly.is_some() {
            return Err(layer.error("another layer takes the images before they are resized"));
        }
        self.size = Some((layer.count("height")?, layer.count("width")?));
        Ok(())
    }

    /// Of one image, without the zeros around it.
    pub(super) fn shape(&self, x: Tensor) -> Shape {
        match x.from {
            From::Images(_) => {
                let (height, width) = self.image_size();
                Shape([1, height, width, 3])
            }
            From::Entry(index) => self.shapes[index],
        }
    }

    pub(super) fn channels(&self, x: Tensor) -> usize {
        self.shape(x).c()
    }

    /// Whether it is several pixels in one row.
    pub(super) fn is_flat(&self, x: Tensor) -> bool {
        x.axes == Axes::Flat && self.shape(x).pixels() != 1
    }

    /// Refuses a flattened image, of which the layer would have each value as a channel.
    pub(super) fn unflattened(&self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match self.is_flat(x) {
            false => Ok(x),
            true => Err(layer.error(
                "it takes a flattened image, which Dense, Dropout, activations, Add and Multiply can; put it before the \
                 Flatten, or a GlobalAveragePooling2D in the Flatten's place",
            )),
        }
    }

    /// Refuses an axis that is not the channels'.
    pub(super) fn channel_axis(&self, layer: &Layer<'_>, x: Tensor, axis: &Value) -> Result<(), KerasError> {
        let mut axes = Vec::new();
        flatten(axis, &mut axes);
        let last = if x.axes == Axes::Image { [-1.0, 3.0, 3.0] } else { [-1.0, 3.0, 1.0] };
        match axes.len() <= 1 && axes.iter().all(|axis| last.contains(axis)) {
            true => Ok(()),
            false => Err(layer.error(format!("axis={axis} is not the channels'"))),
        }
    }

    /// Adds zeros around what the next layer gets.
    pub(super) fn zero_padding(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        /// Far above every network, and small enough that no size computed from it overflows.
        const MOST: f64 = 1024.0;
        let x = self.unflattened(layer, x)?;
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
        let x = Tensor { axes: Axes::Image, ..x };
        if sides == [0.0; 4] {
            return Ok(x);
        }
        let mut sum = x.border.map_or([0; 4], |border| border.sides);
        for (sum, side) in sum.iter_mut().zip(sides) {
            *sum += side as usize;
        }
        let position = self.position.clone();
        self.borders.push(BorderLayer { name: layer.path.to_owned(), position, entry: None });
        Ok(Tensor { border: Some(Border { sides: sum, layer: self.borders.len() - 1 }), ..x })
    }

    /// The tensor with the zeros around it, by a layer of the graph if there are some.
    pub(super) fn bordered(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let Some(Border { sides, layer: number }) = x.border else { return Ok(x) };
        let BorderLayer { name, position, entry } = &self.borders[number];
        let x = Tensor { border: None, ..x };
        if let Some(entry) = *entry {
            return Ok(Tensor { from: From::Entry(entry), ..x });
        }
        let name = name.clone();
        let here = std::mem::replace(&mut self.position, position.clone());
        let out = self.push(layer, &name, LayerOp::Pad { padding: sides }, &[x])?;
        self.position = here;
        self.borders[number].entry = Some(self.entries.len() - 1);
        Ok(out)
    }

    /// What a window moves over, and its padding: the zeros around the tensor, where it can have them.
    pub(super) fn windowed(
        &mut self,
        layer: &Layer<'_>,
        x: Tensor,
        kernel: [usize; 2],
        stride: [usize; 2],
    ) -> Result<(Tensor, Padding), KerasError> {
        let word = layer.config["padding"].as_str().unwrap_or("valid");
        match word.to_ascii_lowercase().as_str() {
            "valid" => {
                let sides = x.border.map_or([0; 4], |border| border.sides);
                Ok((Tensor { border: None, ..x }, Padding::Pixels(sides)))
            }
            // Does not depend on the image's size.
            "same" if stride == [1; 2] => {
                let [h, w] = kernel.map(|side| side.saturating_sub(1));
                Ok((self.bordered(layer, x)?, Padding::Pixels([h / 2, w / 2, h - h / 2, w - w / 2])))
            }
            "same" => Ok((self.bordered(layer, x)?, Padding::Same)),
            _ => Err(layer.error(format!("padding=`{word}` is not supported, only valid and same"))),
        }
    }

    /// An image in one row.
    pub(super) fn flattened(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        match x.axes {
            Axes::Features | Axes::Flat => Ok(x),
            Axes::Image => Ok(Tensor { axes: Axes::Flat, ..self.plain(layer, x)? }),
        }
    }

    pub(super) fn reshaped(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<Tensor, KerasError> {
        let mut sizes = Vec::new();
        flatten(&layer.config["target_shape"], &mut sizes);
        let channels = self.channels(x) as f64;
        if x.axes == Axes::Features {
            return match sizes.split_last() {
                Some((last, rest)) if rest.iter().all(|&size| size == 1.0) && [channels, -1.0].contains(last) => Ok(x),
                _ => Err(layer.error("only features can be reshaped, to [1, 1, C] and back")),
            };
        }
        // A softmax is of features.
        let x = if x.form == Form::Softmax { x } else { self.plain(layer, x)? };
        let [_, height, width, _] = self.shape(x).0.map(|size| size as f64);
        match sizes[..] {
            [all] if [height * width * channels, -1.0].contains(&all) => self.flattened(layer, x),
            [h, w, c] if [h, w, c] == [height, width, channels] => Ok(Tensor { axes: Axes::Image, ..x }),
            _ => {
                let shape = &layer.config["target_shape"];
                Err(layer.error(format!("an image can be reshaped to one row of all its values, not to {shape}")))
            }
        }
    }
}
