//! Operators that are layers: convolutions, batch norms, linear layers, poolings.

use super::constant::Constant;
use super::fold::axis;
use super::network::{Note, Weights};
use super::view::{Form, View};
use super::{Def, Id, Image, Node, Reader};
use crate::formats::onnx::attributes::{Pool, attributes, float, int, pool, size, window};
use crate::graph::{Affine, Averaging, Taken, Window};
use crate::models::{LayerOp, Padding};

/// How many channels a convolution of each channel may give for each.
const MAX_MULTIPLE: usize = 16;

impl<'a> Reader<'a> {
    pub(super) fn conv(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])?;
        let weight = self.constant(node, 1)?;
        let [out, rows, kh, kw] = weight.dims[..] else {
            return Err(format!(
                "its weights have the shape {:?}; only those of images, [O, I, H, W], are supported",
                weight.dims
            ));
        };
        let x = self.operand_of_images(node, 0)?;
        let [c, h, w] = self.image(x).shape;
        let groups = size(int(&node, "group", 1)?)?;
        if rows.checked_mul(groups) != Some(c) {
            return Err(format!(
                "its weights {:?} in {groups} groups do not take the {c} channels that it gets",
                weight.dims
            ));
        }
        let (stride, padding) = window(&node, [kh, kw], [h, w])?;
        let (x, padding) = self.padded_by(x, padding);
        let bias = match node.has(2) {
            true => self.but_zeros(self.constant(node, 2)?)?.map(|bias| vector("bias", bias, out)).transpose()?,
            false => None,
        };
        let standardised = weight.is_computed_weights();
        let weights: Vec<Weights<'a>> = std::iter::once(Weights::new("weight", weight)).chain(bias).collect();
        let op = LayerOp::Conv { channels: out, kernel: [kh, kw], stride, padding, groups, bias: weights.len() > 1 };
        match out.checked_div(c) {
            Some(multiple @ 2..) if groups == c && c > 1 && out % c == 0 => {
                self.several(node, x, &op, &weights, multiple)
            }
            _ => {
                let (op, weights) = as_linear(op, weights);
                let id = self.layer(node, op, &[x], weights, |shape| View::of(Form::Nchw, shape))?;
                self.note(id, standardised.then_some(Note::Standardised));
                Ok(id)
            }
        }
    }

    /// A constant that is not a zero repeated, which the new exporter of PyTorch writes where there is none.
    fn but_zeros(&mut self, constant: Constant<'a>) -> Result<Option<Constant<'a>>, String> {
        match constant.repeated() {
            Some(one) if self.one_number(&one)? == Some(0.0) => Ok(None),
            _ => Ok(Some(constant)),
        }
    }

    /// A convolution that gives several channels for each: as many convolutions of each channel, and their channels one by one
    /// from each.
    fn several(
        &mut self,
        node: Node<'a>,
        x: Id,
        op: &LayerOp,
        weights: &[Weights<'a>],
        multiple: usize,
    ) -> Result<Id, String> {
        let channels = self.image(x).shape[0];
        let LayerOp::Conv { kernel, stride, padding, bias, .. } = *op else {
            return Err("it is no convolution".into());
        };
        if multiple > MAX_MULTIPLE {
            return Err(format!("it gives {multiple} channels for each; at most {MAX_MULTIPLE} are supported"));
        }
        let op = LayerOp::Conv { channels, kernel, stride, padding, groups: channels, bias };
        let mut parts = Vec::new();
        for first in 0..multiple {
            let weights = weights.iter().map(|weights| weights.every(first, channels, multiple)).collect();
            parts.push(self.layer(node, op.clone(), &[x], weights, |shape| View::of(Form::Nchw, shape))?);
        }
        self.note(parts[0], Some(Note::Split));
        let beside = self.layer(node, LayerOp::Concat {}, &parts, Vec::new(), |shape| View::of(Form::Nchw, shape))?;
        let op = LayerOp::Shuffle { groups: multiple };
        self.layer(node, op, &[beside], Vec::new(), |shape| View::of(Form::Nchw, shape))
    }

    /// The image without zeros around it that a window can pad by itself, and the padding of the window then.
    fn padded_by(&self, x: Id, padding: Padding) -> (Id, Padding) {
        match (self.without_padding(x), padding) {
            ((from, around), Padding::Pixels(own)) => {
                (from, Padding::Pixels(std::array::from_fn(|side| own[side] + around[side])))
            }
            (_, Padding::Same) => (x, padding),
        }
    }

    pub(super) fn batch_norm(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["epsilon", "momentum", "spatial", "training_mode"])?;
        if int(&node, "spatial", 1)? != 1 {
            return Err("it normalises each pixel apart, which is not supported".into());
        }
        let x = self.operand(node, 0)?;
        let Image { shape, view, .. } = self.image(x).clone();
        if view.channels(shape) != Some(0) {
            return Err(format!("the second dimension of {} is not that of the channels", self.described(x)));
        }
        let (eps, keep) = (float(&node, "epsilon", 1e-5)?, float(&node, "momentum", 0.9)?);
        if !(0.0..1.0).contains(&keep) {
            return Err(format!(
                "its `momentum` of {keep} is not supported; from 0 up to but not including 1 is, which in PyTorch is 1 \
                 less its own"
            ));
        }
        let mut weights = Vec::new();
        for (index, part) in [(1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var")] {
            weights.push(vector(part, self.constant(node, index)?, shape[0])?);
        }
        // ONNX has no word for the variance that is stored; most files are PyTorch's.
        let op = LayerOp::Bn { eps, keep, var: Averaging::PYTORCH.var, affine: Affine::Both };
        let id = self.layer(node, op, &[x], weights, |_| view)?;
        self.note(id, (int(&node, "training_mode", 0)? != 0).then_some(Note::Training));
        Ok(id)
    }

    // ---- Poolings.

    pub(super) fn max_pool(&mut self, node: Node<'a>) -> Result<Id, String> {
        let x = self.operand_of_images(node, 0)?;
        let [_, h, w] = self.image(x).shape;
        let Pool { kernel, stride, padding, ceil } = pool(&node, &["storage_order"], [h, w])?;
        if kernel == [h, w] && stride == [1, 1] && padding == Padding::Pixels([0; 4]) {
            return self.global_pool(node, LayerOp::GlobalMaxPool {});
        }
        // A layer's own padding is narrower than its window, so each window has a pixel of the image. Where that is not below
        // zero, zeros around it change the greatest as little as the layer's minus infinity does.
        let (from, around) = self.padded_by(x, padding);
        let narrow = match around {
            Padding::Pixels([top, left, bottom, right]) => top.max(bottom) < kernel[0] && left.max(right) < kernel[1],
            Padding::Same => true,
        };
        let (x, padding) = match self.is_never_negative(from) && narrow && !ceil {
            true => (from, around),
            false => (x, padding),
        };
        let op = LayerOp::MaxPool { kernel, stride, padding, ceil };
        self.layer(node, op, &[x], Vec::new(), |shape| View::of(Form::Nchw, shape))
    }

    fn is_never_negative(&self, id: Id) -> bool {
        matches!(self.image(id).def, Def::Act(act, _) if act.is_never_negative())
    }

    pub(super) fn avg_pool(&mut self, node: Node<'a>) -> Result<Id, String> {
        let x = self.operand_of_images(node, 0)?;
        let [_, h, w] = self.image(x).shape;
        let Pool { kernel, stride, padding, ceil } = pool(&node, &["count_include_pad"], [h, w])?;
        let counted = int(&node, "count_include_pad", 0)? != 0;
        let none = padding == Padding::Pixels([0; 4]);
        if none && stride == [1, 1] {
            if kernel == [h, w] {
                return self.global_pool(node, LayerOp::GlobalAvgPool {});
            }
            if kernel == [1, 1] {
                return Ok(x);
            }
        }
        // Zeros that stand around the image count.
        let (x, padding) = if (none || counted) && !ceil { self.padded_by(x, padding) } else { (x, padding) };
        let padding = match padding {
            Padding::Same if counted => Padding::Pixels(Window::same(kernel, stride, [h, w]).padding),
            padding => padding,
        };
        let count_padding = counted || none || padding == Padding::Same;
        let op = LayerOp::AvgPool { kernel, stride, padding, ceil, count_padding };
        self.layer(node, op, &[x], Vec::new(), |shape| View::of(Form::Nchw, shape))
    }

    pub(super) fn global_pool(&mut self, node: Node<'a>, op: LayerOp) -> Result<Id, String> {
        let x = self.operand_of_images(node, 0)?;
        self.layer(node, op, &[x], Vec::new(), |shape| View::of(Form::Nchw, shape))
    }

    /// A mean or maximum over dimensions: those of the pixels, or a mean over that of the channels.
    pub(super) fn reduce(&mut self, node: Node<'a>, op: LayerOp) -> Result<Id, String> {
        attributes(&node, &["axes", "keepdims", "noop_with_empty_axes"])?;
        let x = self.operand(node, 0)?;
        let Image { shape, view, .. } = self.image(x).clone();
        let named = self.listed(node, "axes", 1)?.unwrap_or_default();
        let axes = named.iter().map(|&at| axis(at, view.rank() + 1)?.checked_sub(1).ok_or_else(String::new));
        let keep = int(&node, "keepdims", 1)? != 0;
        let wrong = |_| format!("over the dimensions {named:?} it is not supported; over height and width it is");
        let axes = axes.collect::<Result<Vec<_>, String>>().map_err(wrong)?;
        let reduced = view.reduced(&axes, keep);
        if axes.len() > 1 && view.are_pixels(&axes, shape) || shape[1..] != [1, 1] && view.are_pixels(&axes, shape) {
            return self.layer(node, op, &[x], Vec::new(), |_| reduced);
        }
        if op == (LayerOp::GlobalAvgPool {}) && keep && view.channels(shape).map(|at| vec![at]).as_ref() == Some(&axes)
        {
            let id = self.part(node, Def::ChannelMean(x), x)?;
            (self.images[id.0].shape, self.images[id.0].view) = ([1, shape[1], shape[2]], reduced);
            return Ok(id);
        }
        Err(wrong(String::new()))
    }

    // ---- Linear layers.

    pub(super) fn gemm(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["alpha", "beta", "transA", "transB"])?;
        if float(&node, "alpha", 1.0)? != 1.0 || float(&node, "beta", 1.0)? != 1.0 || int(&node, "transA", 0)? != 0 {
            return Err("alpha and beta other than 1, and transA, are not supported".into());
        }
        let x = self.operand(node, 0)?;
        if self.image(x).view.rank() != 1 {
            return Err(format!(
                "it takes a flat input, [N, C], and reads {}; a Flatten is missing",
                self.described(x)
            ));
        }
        let weight = self.constant(node, 1)?;
        let by_output = int(&node, "transB", 0)? != 0;
        let bias = if node.has(2) { Some(self.constant(node, 2)?) } else { None };
        self.linear(node, x, weight, by_output, bias)
    }

    pub(super) fn mat_mul(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &[])?;
        let x = self.operand(node, 0)?;
        let weight = self.constant(node, 1)?;
        self.linear(node, x, weight, false, None)
    }

    /// A linear layer of the last dimension. Weights are `[O, I]` where they are `by_output`, else `[I, O]`.
    fn linear(
        &mut self,
        node: Node<'a>,
        x: Id,
        weight: Constant<'a>,
        by_output: bool,
        bias: Option<Constant<'a>>,
    ) -> Result<Id, String> {
        let dims = weight.dims.clone();
        let wrong = || format!("its weights have the shape {dims:?}; a matrix is wanted");
        let weight = if by_output { weight } else { weight.transposed(&[1, 0]).ok_or_else(wrong)? };
        let [out, inputs] = weight.dims[..] else { return Err(wrong()) };
        let Image { shape: shape @ [_, h, w], view, .. } = self.image(x).clone();
        let last = view.rank() - 1;
        let gets = view.sizes()[last];
        if inputs != gets {
            return Err(format!("its weights {dims:?} do not take the {gets} values that it gets"));
        }
        let (taken, weight) = if view.channels(shape) == Some(last) {
            (if [h, w] == [1, 1] { Taken::Pixel } else { Taken::EachPixel }, Weights::new("weight", weight))
        } else {
            let order = view.flat_order().ok_or_else(|| {
                format!(
                    "it takes the channels of each pixel or all values of each image, and reads {}",
                    self.described(x)
                )
            })?;
            (Taken::Image([h, w]), in_order(weight, &order).ok_or_else(wrong)?)
        };
        let bias = bias.map(|bias| vector("bias", bias, out)).transpose()?;
        let op = LayerOp::Linear { channels: out, bias: bias.is_some(), taken };
        let weights = std::iter::once(weight).chain(bias).collect();
        let view = match taken {
            Taken::Image(_) => View::of(Form::Flat, [out, 1, 1]),
            _ => view.with_channels(last, out),
        };
        self.layer(node, op, &[x], weights, |_| view)
    }

    pub(super) fn dropout(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["ratio", "seed"])?;
        let x = self.operand(node, 0)?;
        let rate = if node.has(1) { self.number(node, 1, "its ratio")? } else { float(&node, "ratio", 0.5)? };
        self.pointwise(node, LayerOp::Dropout { rate }, x)
    }

    pub(super) fn softmax(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axis"])?;
        if node.output() != self.logits {
            return Err("it is supported at the end only".into());
        }
        let x = self.operand(node, 0)?;
        let note = format!("the {} at the end is left out: a network ends in its logits", node.op_type());
        self.network.left_out.push(note);
        Ok(x)
    }
}

/// The weights of a linear layer whose inputs are digits of so many values each, with those of the image in PyTorch's order.
fn in_order<'a>(weight: Constant<'a>, (sizes, order): &(Vec<usize>, Vec<usize>)) -> Option<Weights<'a>> {
    let [out, inputs] = weight.dims[..] else { return None };
    let digits = weight.reshaped(&[&[out], &sizes[..]].concat())?;
    let order: Vec<usize> = std::iter::once(0).chain(order.iter().map(|place| place + 1)).collect();
    Some(Weights::new("weight", digits.transposed(&order)?).shaped(vec![out, inputs]))
}

/// A convolution of each pixel whose weights are a matrix in the file is a linear layer, as our own files have it.
fn as_linear<'a>(op: LayerOp, weights: Vec<Weights<'a>>) -> (LayerOp, Vec<Weights<'a>>) {
    let LayerOp::Conv { channels, kernel: [1, 1], stride: [1, 1], padding, groups: 1, bias } = op else {
        return (op, weights);
    };
    let matrix = weights.first().and_then(Weights::as_matrix).filter(|_| padding == Padding::Pixels([0; 4]));
    match matrix {
        Some(matrix) => {
            let op = LayerOp::Linear { channels, bias, taken: Taken::EachPixel };
            (op, std::iter::once(matrix).chain(weights.into_iter().skip(1)).collect())
        }
        None => (op, weights),
    }
}

/// Weights of so many values in one dimension.
fn vector<'a>(part: &'static str, constant: Constant<'a>, length: usize) -> Result<Weights<'a>, String> {
    let others_are_one = constant.dims.iter().filter(|&&size| size != 1).count() <= 1;
    let row = if others_are_one { constant.reshaped(&[length]) } else { None };
    let name = constant.tensor().map_or("", |(tensor, _)| tensor.name());
    let wrong = || {
        let name = crate::text::printable(name);
        format!("tensor `{name}` has the shape {:?}, and {length} values are wanted", constant.dims)
    };
    Ok(Weights::new(part, row.ok_or_else(wrong)?))
}
