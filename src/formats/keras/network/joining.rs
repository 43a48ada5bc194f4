//! What layers that join tensors become, and arithmetic.

use super::config::{Layer, operation};
use super::rescaling::reversed;
use super::shapes::Axes;
use super::{Form, From, Importer, KerasError, SUPPORTED, Tensor};
use crate::graph::Act;
use crate::models::LayerOp;
use serde_json::Value;

impl Importer<'_> {
    /// What comes of a layer with several inputs.
    pub(super) fn of_several(&mut self, layer: &Layer<'_>, inputs: &[Tensor]) -> Result<Tensor, KerasError> {
        let mut plain = Vec::with_capacity(inputs.len());
        for &x in inputs {
            plain.push(self.plain(layer, x)?);
        }
        match (operation(layer), &plain[..]) {
            ("Concatenate", xs) => {
                for &x in xs {
                    self.unflattened(layer, x)?;
                    self.channel_axis(layer, x, layer.axis())?;
                }
                self.push(layer, layer.path, LayerOp::Concat {}, xs)
            }
            ("Add", xs) => self.joined(layer, &LayerOp::Add {}, xs),
            ("Multiply", &[a, b]) => self.product(layer, a, b),
            ("Multiply", xs) => self.joined(layer, &LayerOp::Multiply {}, xs),
            ("CustomScaleLayer", &[x, branch]) if !layer.config["scale"].is_null() => {
                self.taken_by_name(layer);
                let scale = layer.float("scale", 1.0)?;
                self.scaled_sum(layer, x, branch, scale)
            }
            ("Lambda", &[x, branch]) if is_scaled_sum(layer) => {
                let scale = layer.config["arguments"]["scale"].as_f64().unwrap_or(1.0);
                let note = "the functions of Lambda layers are not read: those that are named as in InceptionResNetV2 of \
                            keras.applications are taken for its x + scale·y";
                if !self.notes.iter().any(|known| known == note) {
                    self.notes.push(note.to_owned());
                }
                self.scaled_sum(layer, x, branch, scale)
            }
            (class, _) => Err(layer.error(format!("`{class}` is not supported; {SUPPORTED} are"))),
        }
    }

    /// Two or more tensors of one shape, joined one after the other.
    fn joined(&mut self, layer: &Layer<'_>, op: &LayerOp, xs: &[Tensor]) -> Result<Tensor, KerasError> {
        let (&first, others) = xs.split_first().ok_or_else(|| layer.error("it has no inputs"))?;
        let mut sum = first;
        for (index, &x) in others.iter().enumerate() {
            self.same_shape(layer, first, x)?;
            let number = index + 1;
            let name = if number == others.len() { layer.path.to_owned() } else { format!("{}.{number}", layer.path) };
            sum = self.push(layer, &name, op.clone(), &[sum, x])?;
        }
        Ok(sum)
    }

    fn same_shape(&self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<(), KerasError> {
        match self.is_same_shape(a, b) {
            true => Ok(()),
            false => {
                let [a, b] = [a, b].map(|x| {
                    let [_, h, w, c] = self.shape(x).0;
                    if self.is_flat(x) { format!("[{}]", h * w * c) } else { format!("[{h}, {w}, {c}]") }
                });
                Err(layer.error(format!("its inputs are {a} and {b}; those of one shape are supported")))
            }
        }
    }

    fn is_same_shape(&self, a: Tensor, b: Tensor) -> bool {
        self.shape(a) == self.shape(b) && self.is_flat(a) == self.is_flat(b)
    }

    /// A product of two: by a gate of one pixel, by a gate that makes it an activation, or value by value.
    fn product(&mut self, layer: &Layer<'_>, a: Tensor, b: Tensor) -> Result<Tensor, KerasError> {
        let is_pixel = |x: Tensor| self.shape(x).pixels() == 1;
        let is_gate = |gate: Tensor, x: Tensor| {
            let is_one = gate.axes == Axes::Features || is_pixel(gate) && !is_pixel(x);
            x.axes == Axes::Image && is_one && self.channels(gate) == self.channels(x)
        };
        match (is_gate(b, a), is_gate(a, b)) {
            (true, false) => self.push(layer, layer.path, LayerOp::Scale {}, &[a, b]),
            (false, true) => self.push(layer, layer.path, LayerOp::Scale {}, &[b, a]),
            _ => {
                if let Some((x, act)) = self.gated(a, b).or_else(|| self.gated(b, a)) {
                    return self.push(layer, layer.path, LayerOp::Activation { act }, &[x]);
                }
                self.joined(layer, &LayerOp::Multiply {}, &[a, b])
            }
        }
    }

    /// What `x·σ(x)` and `x·hard_sigmoid(x)` are as one activation of x.
    fn gated(&self, x: Tensor, gate: Tensor) -> Option<(Tensor, Act)> {
        let From::Entry(index) = gate.from else { return None };
        let act = match self.entries[index].op {
            LayerOp::Activation { act: Act::Sigmoid } => Act::Silu,
            LayerOp::Activation { act: Act::HardSigmoid } => Act::HardSwish,
            _ => return None,
        };
        (x.axes == gate.axes && self.entries[index].inputs == [self.name_of(x)]).then_some((x, act))
    }

    /// x plus a multiple of a branch.
    fn scaled_sum(&mut self, layer: &Layer<'_>, x: Tensor, branch: Tensor, scale: f64) -> Result<Tensor, KerasError> {
        let name = format!("{}.scale_by", layer.path);
        let scaled = self.scaled_by(layer, &name, branch, scale)?;
        self.joined(layer, &LayerOp::Add {}, &[x, scaled])
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
            ("Multiply", From::Entry(_), Form::Plain) if value.is_number() => {
                self.scaled_by(layer, layer.path, x, value.as_f64().unwrap_or(1.0))
            }
            ("TrueDivide", From::Entry(_), Form::Plain) if value.is_number() => {
                self.scaled_by(layer, layer.path, x, 1.0 / value.as_f64().unwrap_or(1.0))
            }
            (operation, ..) => Err(layer.error(format!(
                "`{operation}` with {value} is supported on images only; anything else can be multiplied and divided by a \
                 positive number"
            ))),
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

    pub(super) fn hard_sigmoid(&mut self, layer: &Layer<'_>, x: Tensor) -> Result<usize, KerasError> {
        let x = self.plain(layer, Tensor { form: Form::Plain, ..x })?;
        self.push(layer, layer.path, LayerOp::Activation { act: Act::HardSigmoid }, &[x])?;
        Ok(self.entries.len() - 1)
    }
}

/// Whether a function that cannot be read is the scaled addition of InceptionResNetV2, by its name and its arguments.
fn is_scaled_sum(layer: &Layer<'_>) -> bool {
    let name = layer.path.rsplit('/').next().unwrap_or_default();
    let number = ["block35_", "block17_", "block8_"].iter().find_map(|block| name.strip_prefix(block));
    let is_number = number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    let arguments = layer.config["arguments"].as_object();
    is_number && arguments.is_some_and(|all| all.len() == 1 && all.get("scale").is_some_and(Value::is_number))
}
