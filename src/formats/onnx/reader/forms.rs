//! Operators that change dimensions, or take channels apart and put them together.

use super::constant::{Kind, MAX_RANK, Number, product};
use super::fold::{axis, span};
use super::view::{Form, View};
use super::{Def, Id, Image, Node, Reader, Value};
use crate::formats::onnx::attributes::{attributes, float, int, ints, size, text};
use crate::formats::onnx::proto::tensor_proto::DataType;
use crate::models::LayerOp;
use std::rc::Rc;

/// Zeros at a side of an image.
const MAX_PADDING: usize = 1024;

impl<'a> Reader<'a> {
    /// The same values in other dimensions, and a shuffle of channels where those are a form again.
    fn viewed(&mut self, node: Node<'a>, x: Id, view: View) -> Result<Id, String> {
        // What is a layer only with others can be one in its own dimensions only.
        if !matches!(self.image(x).def, Def::Padded(..) | Def::Normalised(..)) {
            self.layer_of(x)?;
        }
        if let Some((groups, form)) = view.shuffled(self.image(x).shape) {
            return self.layer(node, LayerOp::Shuffle { groups }, &[x], Vec::new(), |shape| View::of(form, shape));
        }
        let image = Image { view, ..self.image(x).clone() };
        Ok(self.given_image(image))
    }

    pub(super) fn reshape(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["allowzero"])?;
        let x = self.operand(node, 0)?;
        let target = self.constant(node, 1)?;
        let target = self.numbers(&target)?;
        let zero_copies = int(&node, "allowzero", 0)? == 0;
        let own = self.image(x).view.sizes();
        if self.batch == Some(1) && target == [Some(-1.0)] {
            return self.part(node, Def::Row(x), x);
        }
        let view = self.of_each_image(&own, &target, zero_copies).and_then(|sizes| self.image(x).view.reshaped(&sizes));
        let wrong = || {
            let sizes: Vec<String> =
                target.iter().map(|size| size.map_or_else(|| "N".into(), |size| size.to_string())).collect();
            let all = self.image(x).shape.iter().product::<usize>();
            format!("{} to [{}] is not supported; to [N, {all}] is", self.described(x), sizes.join(", "))
        };
        let view = view.ok_or_else(wrong)?;
        self.viewed(node, x, view)
    }

    /// What a shape says of each image, if the first dimension is that of the images and stays so.
    fn of_each_image(&self, own: &[usize], target: &[Number], zero_copies: bool) -> Option<Vec<usize>> {
        let (images, target) = target.split_first().filter(|(_, target)| target.len() < MAX_RANK)?;
        let all = product(own)?;
        let mut sizes = Vec::new();
        let mut open = None;
        for (place, size) in target.iter().enumerate() {
            sizes.push(match (*size)? {
                -1.0 if open.is_none() => {
                    open = Some(place);
                    1
                }
                0.0 if zero_copies => *own.get(place)?,
                size if size >= 1.0 => size as usize,
                _ => return None,
            });
        }
        let given = product(&sizes)?;
        let all_are_given = given == all && open.is_none();
        match *images {
            None => {}
            Some(0.0) if zero_copies => {}
            Some(-1.0) if all_are_given => {}
            Some(images) if images >= 1.0 && images as usize == self.batch.unwrap_or(1) => {}
            // However many they were when the file was written, they are as many as before.
            Some(images) if images >= 1.0 && all_are_given => {}
            Some(_) => return None,
        }
        match open {
            Some(place) if given > 0 && all.is_multiple_of(given) => sizes[place] = all / given,
            Some(_) => return None,
            None => {}
        }
        Some(sizes)
    }

    pub(super) fn flatten(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axis"])?;
        let x = self.operand(node, 0)?;
        let view = self.image(x).view.clone();
        match axis(int(&node, "axis", 1)?, view.rank() + 1)? {
            1 => {
                let all = self.image(x).shape.iter().product();
                let flat = view.reshaped(&[all]).ok_or("its values cannot stand in one row")?;
                self.viewed(node, x, flat)
            }
            axis => Err(format!("axis {axis} is not supported; 1 is")),
        }
    }

    pub(super) fn transpose(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["perm"])?;
        let x = self.operand(node, 0)?;
        let order = ints(&node, "perm")?.unwrap_or_default();
        let wrong = || format!("{order:?} is not supported; an order that leaves the images first is");
        let places = match order.split_first() {
            Some((0, places)) => {
                places.iter().map(|&place| usize::try_from(place - 1).ok()).collect::<Option<Vec<_>>>()
            }
            _ => None,
        };
        let view = places.and_then(|places| self.image(x).view.transposed(&places)).ok_or_else(wrong)?;
        self.viewed(node, x, view)
    }

    /// Dimensions of each image by number, of so many and that of the images.
    pub(super) fn axes_of_each(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
        let of_each = |&at: &i64| match axis(at, rank + 1)? {
            0 => Err("the dimension of the images cannot be taken".to_owned()),
            at => Ok(at - 1),
        };
        axes.iter().map(of_each).collect()
    }

    pub(super) fn squeeze(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axes"])?;
        let x = self.operand(node, 0)?;
        let sizes = self.image(x).view.sizes();
        let axes = match self.listed(node, "axes", 1)? {
            Some(axes) => self.axes_of_each(&axes, sizes.len())?,
            None => (0..sizes.len()).filter(|&at| sizes[at] == 1).collect(),
        };
        if axes.iter().any(|&at| sizes[at] != 1) {
            return Err(format!("the dimensions that it takes of {} are not 1", self.described(x)));
        }
        let view = self.image(x).view.reduced(&axes, false);
        self.viewed(node, x, view)
    }

    pub(super) fn unsqueeze(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axes"])?;
        let x = self.operand(node, 0)?;
        let axes = self.listed(node, "axes", 1)?.unwrap_or_default();
        let rank = self.image(x).view.rank() + axes.len();
        if rank >= MAX_RANK {
            return Err(format!("it gives {} dimensions; at most {MAX_RANK} are supported", rank + 1));
        }
        let places = self.axes_of_each(&axes, rank)?;
        let view = self.image(x).view.with_ones(&places).ok_or("its axes are given twice")?;
        self.viewed(node, x, view)
    }

    pub(super) fn expand(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &[])?;
        let x = self.operand(node, 0)?;
        let target = self.constant(node, 1)?;
        let target = self.numbers(&target)?;
        let sizes = self.image(x).view.sizes();
        let same = |(own, size): (&usize, &Number)| *size == Some(1.0) || *size == Some(*own as f64);
        let rest = target.get(1..).unwrap_or_default();
        let images_stay = matches!(target.first(), Some(None | Some(1.0)));
        match images_stay && target.len() == sizes.len() + 1 && sizes.iter().zip(rest).all(same) {
            true => Ok(x),
            false => Err(format!("{} cannot be repeated here", self.described(x))),
        }
    }

    /// Another type of number, which must be able to hold what it is given: here everything is computed in `f32`.
    pub(super) fn cast_image(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["saturate", "to"])?;
        let x = self.operand(node, 0)?;
        let to = match self.value(node, 1) {
            Ok(Value::Constant(like)) if node.op_type() == "CastLike" => {
                if like.kind == Kind::Float {
                    DataType::Float
                } else {
                    DataType::Int64
                }
            }
            _ if node.op_type() == "CastLike" => DataType::Float,
            _ => {
                let to = i32::try_from(int(&node, "to", 0)?).ok();
                to.and_then(|to| DataType::try_from(to).ok()).unwrap_or(DataType::Undefined)
            }
        };
        match to {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => Ok(x),
            _ => Err(format!("to {} is not supported; to floats is", to.as_str_name())),
        }
    }

    // ---- Channels.

    pub(super) fn concat(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axis"])?;
        let all = (0..node.proto.input.len()).map(|index| self.operand(node, index)).collect::<Result<Vec<_>, _>>()?;
        let &first = all.first().ok_or("it reads nothing")?;
        let at = self.axes_of_each(&[int(&node, "axis", 1)?], self.image(first).view.rank())?[0];
        let beside = |id: Id| {
            let Image { view, shape, .. } = self.image(id);
            (view.channels(*shape) == Some(at)).then(|| view.with_channels(at, 1))
        };
        let form = beside(first);
        if form.is_none() || all.iter().any(|&id| beside(id) != form) {
            let described: Vec<String> = all.iter().take(4).map(|&id| self.described(id)).collect();
            return Err(format!(
                "{} cannot be put together here; channels of one size of image can",
                described.join(" and ")
            ));
        }
        let view = self.image(first).view.clone();
        match all.len() {
            1 => Ok(first),
            _ => self.layer(node, LayerOp::Concat {}, &all, Vec::new(), |shape| view.with_channels(at, shape[0])),
        }
    }

    /// So many of a dimension's places from `begin` on.
    fn taken(&mut self, node: Node<'a>, x: Id, at: usize, begin: usize, len: usize) -> Result<Id, String> {
        let Image { view, shape, .. } = self.image(x);
        if len == view.sizes()[at] {
            return Ok(x);
        }
        let run = match view.run_of_channels(at, *shape) {
            Some(run) if len > 0 => run,
            Some(_) => return Err("it takes nothing".into()),
            None => return Err("it takes pixels out of images; only channels can be taken".into()),
        };
        let view = view.with_run(at, len);
        let op = LayerOp::Slice { begin: begin * run, channels: len * run };
        self.layer(node, op, &[x], Vec::new(), |_| view)
    }

    pub(super) fn slice(&mut self, node: Node<'a>) -> Result<Id, String> {
        let mut x = self.operand(node, 0)?;
        for (at, begin, end, step) in self.slices(node, self.image(x).view.rank() + 1)? {
            if at == 0 {
                match begin == 0 && end >= i64::from(i32::MAX) && step == 1 {
                    true => continue,
                    false => return Err("it takes some of the images".into()),
                }
            }
            let size = self.image(x).view.sizes()[at - 1];
            let (begin, len) = span(begin, end, step, size);
            if step != 1 && len > 1 {
                return Err(format!("a step of {step} is not supported; 1 is"));
            }
            x = self.taken(node, x, at - 1, begin, len)?;
        }
        Ok(x)
    }

    /// One place of a dimension, which vanishes.
    pub(super) fn gather_image(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["axis"])?;
        let x = self.operand(node, 0)?;
        if let Def::Row(image) = self.image(x).def {
            return self.row_as_images(node, image);
        }
        let at = self.axes_of_each(&[int(&node, "axis", 0)?], self.image(x).view.rank())?[0];
        let scalar = self.constant(node, 1)?.dims.is_empty();
        let size = self.image(x).view.sizes()[at];
        let place = match self.whole(node, 1)?[..] {
            [place] => axis(place, size)?,
            _ => return Err("it takes places one by one, which is not supported; a Slice is".into()),
        };
        let x = self.taken(node, x, at, place, 1)?;
        if !scalar {
            return Ok(x);
        }
        let view = self.image(x).view.reduced(&[at], false);
        self.viewed(node, x, view)
    }

    /// All values in their order in other dimensions, as PyTorch's new exporter writes `as_strided`.
    fn row_as_images(&mut self, node: Node<'a>, x: Id) -> Result<Id, String> {
        let dims = self.constant(node, 1)?.dims;
        let places = self.whole(node, 1)?;
        let in_order = places.iter().enumerate().all(|(index, &place)| place == index as i64);
        let view = match dims.split_first() {
            Some((1, sizes)) if in_order => self.image(x).view.reshaped(sizes),
            _ => None,
        };
        self.viewed(node, x, view.ok_or("it takes values in another order than that of the image")?)
    }

    pub(super) fn split(&mut self, node: Node<'a>) -> Result<Vec<Value<'a>>, String> {
        let x = self.operand(node, 0)?;
        let dims = self.with_batch(x);
        let (at, sizes) = self.splits(node, &dims)?;
        Ok(self.parts(node, x, at, &sizes)?.into_iter().map(Value::Image).collect())
    }

    pub(super) fn split_to_sequence(&mut self, node: Node<'a>) -> Result<Vec<Value<'a>>, String> {
        attributes(&node, &["axis", "keepdims"])?;
        let x = self.operand(node, 0)?;
        let dims = self.with_batch(x);
        let at = axis(int(&node, "axis", 0)?, dims.len())?;
        let wrong = || format!("its parts are not together the {} it cuts", dims[at]);
        let sizes = match node.has(1) {
            true => self.sizes(node, 1)?,
            false if int(&node, "keepdims", 1)? == 0 => return Err("`keepdims` of 0 is not supported".into()),
            false => vec![1],
        };
        let sizes = match sizes[..] {
            [each] if each > 0 && dims[at].div_ceil(each) <= crate::models::MAX_LAYERS => {
                (0..dims[at]).step_by(each).map(|begin| each.min(dims[at] - begin)).collect()
            }
            _ => sizes,
        };
        let all = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if all != Some(dims[at]) {
            return Err(wrong());
        }
        let parts: Rc<[Id]> = self.parts(node, x, at, &sizes)?.into();
        Ok(vec![Value::Sequence(parts)])
    }

    pub(super) fn sequence_at(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &[])?;
        let Value::Sequence(parts) = self.value(node, 0)? else { return Err("it reads no sequence".into()) };
        match self.whole(node, 1)?[..] {
            [place] => Ok(parts[axis(place, parts.len())?]),
            _ => Err("its place is not one number".into()),
        }
    }

    fn with_batch(&self, x: Id) -> Vec<usize> {
        // Nobody cuts between images: whatever stands there is refused.
        [&[1], &self.image(x).view.sizes()[..]].concat()
    }

    fn parts(&mut self, node: Node<'a>, x: Id, at: usize, sizes: &[usize]) -> Result<Vec<Id>, String> {
        let at = at.checked_sub(1).ok_or("it takes some of the images")?;
        let mut begin = 0;
        let mut part = |&size: &usize| {
            let part = self.taken(node, x, at, begin, size);
            begin += size;
            part
        };
        sizes.iter().map(&mut part).collect()
    }

    // ---- Zeros around images.

    pub(super) fn pad(&mut self, node: Node<'a>) -> Result<Id, String> {
        attributes(&node, &["mode", "pads", "value"])?;
        let value = if node.has(2) { self.number(node, 2, "its value")? } else { float(&node, "value", 0.0)? };
        if text(&node, "mode")?.is_some_and(|mode| mode != "constant") || value != 0.0 {
            return Err("it is supported with zeros around images only".into());
        }
        let x = self.operand(node, 0)?;
        let rank = self.image(x).view.rank() + 1;
        let given = self.listed(node, "pads", 1)?.unwrap_or_default();
        let axes = match node.has(3) {
            true => self.whole(node, 3)?.into_iter().map(|at| axis(at, rank)).collect::<Result<Vec<_>, _>>()?,
            false => (0..rank).collect(),
        };
        if given.len() != 2 * axes.len() {
            return Err(format!("the paddings {given:?} are not two for each dimension"));
        }
        // Before all dimensions, then behind them.
        let mut pads = vec![[0, 0]; rank];
        for (place, at) in axes.iter().enumerate() {
            pads[*at] = [size(given[place])?, size(given[place + axes.len()])?];
        }
        let is = |form| self.is(x, form);
        let (form, [top, bottom], [left, right]) = match pads[..] {
            _ if pads.iter().all(|pads| *pads == [0, 0]) => return Ok(x),
            [[0, 0], [0, 0], rows, columns] if is(Form::Nchw) => (Form::Nchw, rows, columns),
            [[0, 0], rows, columns, [0, 0]] if is(Form::Nhwc) => (Form::Nhwc, rows, columns),
            // The logit of the second of two classes gets one of the first.
            [[0, 0], [1, 0]] if is(Form::Flat) && self.image(x).shape == [1, 1, 1] => {
                return self.layer(node, LayerOp::Binary {}, &[x], Vec::new(), |shape| View::of(Form::Flat, shape));
            }
            _ => return Err(format!("the paddings {given:?} are not those of images")),
        };
        let (from, old) = match self.image(x).def {
            Def::Padded(from, old) => (from, old),
            _ => (x, [0; 4]),
        };
        let padding: [usize; 4] = std::array::from_fn(|side| old[side] + [top, left, bottom, right][side]);
        if padding.iter().any(|&side| side > MAX_PADDING) {
            return Err(format!("it pads by {padding:?} pixels; at most {MAX_PADDING} are supported"));
        }
        let [c, h, w] = self.image(from).shape;
        let shape = [c, h + padding[0] + padding[2], w + padding[1] + padding[3]];
        let id = self.part(node, Def::Padded(from, padding), x)?;
        (self.images[id.0].shape, self.images[id.0].view) = (shape, View::of(form, shape));
        Ok(id)
    }

    /// An image without the zeros around it, and those.
    pub(super) fn without_padding(&self, id: Id) -> (Id, [usize; 4]) {
        match self.image(id).def {
            Def::Padded(from, padding) => (from, padding),
            _ => (id, [0; 4]),
        }
    }
}
