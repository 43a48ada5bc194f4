//! A small interpreter: what is computed from constants and from shapes is a constant, too.

use super::constant::{Constant, Kind, MAX_COMPUTED, MAX_RANK, Number, broadcast, product};
use super::{Def, Node, Reader, Value};
use crate::formats::onnx::attributes::{attributes, float, floats, int, ints};
use crate::formats::onnx::proto::tensor_proto::DataType;
use crate::formats::onnx::tensor;

/// Operators that give numbers of what they read, and compute none.
const COPYING: [&str; 8] = ["Cast", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"];

/// Operators on numbers, which are applied to each.
const UNARY: [&str; 7] = ["Abs", "Ceil", "Floor", "Neg", "Not", "Reciprocal", "Sqrt"];

const BINARY: [&str; 15] = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
];

impl<'a> Reader<'a> {
    /// What a node gives, if it reads nothing but constants and shapes.
    pub(super) fn folded(&mut self, node: Node<'a>) -> Result<Option<Vec<Value<'a>>>, String> {
        let op = node.op_type();
        let value = match op {
            "Constant" => constant(node)?,
            "Shape" => self.shape(node)?,
            "CastLike" if self.is_constant(node, 0)? => self.cast_like(node)?,
            "BatchNormalization" if self.is_constant(node, 0)? => self.standardised(node)?,
            _ if node.proto.input.iter().all(String::is_empty) => return Ok(None),
            _ => {
                let mut large = false;
                for index in (0..node.proto.input.len()).filter(|&index| node.has(index)) {
                    match self.any_value(node, index)? {
                        Value::Constant(constant) => large |= constant.held() > MAX_COMPUTED,
                        Value::Uncomputed(_) => large = true,
                        Value::Image(_) | Value::Sequence(_) => return Ok(None),
                    }
                }
                // What nobody needs at last is not missed: moments of weights that are standardised.
                let uncomputed = || Ok(Some(vec![Value::Uncomputed(node); node.proto.output.len()]));
                match op {
                    _ if large && !COPYING.contains(&op) => return uncomputed(),
                    "Split" => return self.split_constant(node).map(Some),
                    _ => match self.computed(node, op)? {
                        Some(constant) => constant,
                        None => return uncomputed(),
                    },
                }
            }
        };
        Ok(Some(vec![Value::Constant(value)]))
    }

    fn is_constant(&self, node: Node<'a>, index: usize) -> Result<bool, String> {
        Ok(matches!(self.any_value(node, index)?, Value::Constant(_)))
    }

    fn computed(&mut self, node: Node<'a>, op: &str) -> Result<Option<Constant<'a>>, String> {
        Ok(Some(match op {
            "Cast" => {
                attributes(&node, &["saturate", "to"])?;
                let constant = self.constant(node, 0)?;
                self.cast(constant, data_type(int(&node, "to", 0)?)?)?
            }
            "Clip" => self.clip_constant(node)?,
            "Concat" => self.concat_constants(node)?,
            "ConstantOfShape" => self.constant_of_shape(node)?,
            "Expand" => {
                attributes(&node, &[])?;
                let (constant, wanted) = (self.constant(node, 0)?, self.sizes(node, 1)?);
                let dims =
                    broadcast(&constant.dims, &wanted).filter(|dims| product(dims).is_some_and(|n| n <= MAX_COMPUTED));
                let wrong = || format!("{:?} cannot be repeated to {wanted:?}", constant.dims);
                dims.and_then(|dims| constant.expanded(&dims)).ok_or_else(wrong)?
            }
            "Gather" => self.gather(node)?,
            "Identity" => self.constant(node, 0)?,
            "Range" => self.range(node)?,
            "ReduceProd" => self.reduce_prod(node)?,
            "Reshape" => self.reshape_constant(node)?,
            "Slice" => self.slice_constant(node)?,
            "Squeeze" => self.squeeze_constant(node)?,
            "Transpose" => self.transpose_constant(node)?,
            "Unsqueeze" => self.unsqueeze_constant(node)?,
            "Where" => self.choose(node)?,
            _ if UNARY.contains(&op) => self.unary(node, op)?,
            _ if BINARY.contains(&op) => self.binary(node, op)?,
            _ => return Ok(None),
        }))
    }

    fn shape(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["end", "start"])?;
        let sizes: Vec<Number> = match self.value(node, 0)? {
            Value::Constant(constant) => constant.dims.iter().map(|&size| Some(size as f64)).collect(),
            Value::Image(id) if matches!(self.image(id).def, Def::Row(_)) => {
                return Err("it reads the values of an image in one row".into());
            }
            Value::Image(id) => {
                let sizes = self.image(id).view.sizes();
                std::iter::once(None).chain(sizes.into_iter().map(|size| Some(size as f64))).collect()
            }
            Value::Sequence(_) | Value::Uncomputed(_) => return Err("it reads a sequence, which has no shape".into()),
        };
        let rank = sizes.len();
        let (start, end) = (bound(int(&node, "start", 0)?, rank), bound(int(&node, "end", i64::MAX)?, rank));
        Ok(Constant::list(sizes.get(start..end).unwrap_or_default().to_vec()))
    }

    /// Weights that are normalised by themselves, a channel at a time, as those of normaliser-free networks are (Brock et al. 2021):
    /// with the moments of the batch, which they are.
    fn standardised(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["epsilon", "momentum", "spatial", "training_mode"])?;
        if int(&node, "training_mode", 0)? == 0 {
            return Err(format!("its input `{}` is constant, which is not supported here", node.proto.input[0]));
        }
        let constant = self.constant(node, 0)?;
        let [first, channels, ref rest @ ..] = constant.dims[..] else {
            return Err("what it normalises has no channels".into());
        };
        let left = self.weights_left.checked_sub(constant.held().saturating_mul(4));
        self.weights_left = left.ok_or("more weights are computed from others than the file has")?;
        let weights = match constant.tensor() {
            Some((tensor, _)) => constant.picked(tensor::floats(tensor, self.folder)?),
            None => return Err("what it normalises is not a tensor of the file".into()),
        };
        let mut row = |index| {
            let row = self.constant(node, index)?;
            let numbers: Option<Vec<f64>> = self.numbers(&row)?.into_iter().collect();
            numbers.filter(|numbers| numbers.len() == channels).ok_or_else(|| format!("it has not {channels} factors"))
        };
        let (gamma, beta) = (row(1)?, row(2)?);
        let (eps, inner) = (f64::from(float(&node, "epsilon", 1e-5)?), rest.iter().product::<usize>());
        let mut standardised = weights.clone();
        for channel in 0..channels {
            let places = || (0..first).flat_map(|n| (0..inner).map(move |i| (n * channels + channel) * inner + i));
            let mean_of = |of: &dyn Fn(f64) -> f64| {
                places().map(|place| of(f64::from(weights[place]))).sum::<f64>() / (first * inner) as f64
            };
            let mean = mean_of(&|x| x);
            let deviation = (mean_of(&|x| (x - mean) * (x - mean)) + eps).sqrt();
            for place in places() {
                let x = (f64::from(weights[place]) - mean) / deviation * gamma[channel] + beta[channel];
                standardised[place] = x as f32;
            }
        }
        Ok(Constant::weights(constant.dims, standardised))
    }

    fn cast_like(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["saturate"])?;
        let kind = match self.value(node, 1)? {
            Value::Constant(like) => like.kind,
            _ => Kind::Float,
        };
        let constant = self.constant(node, 0)?;
        self.cast(constant, kind)
    }

    fn cast(&mut self, constant: Constant<'a>, kind: Kind) -> Result<Constant<'a>, String> {
        if constant.kind == kind {
            return Ok(constant);
        }
        let numbers = self.numbers(&constant)?;
        let rounded = numbers.into_iter().map(|number| number.map(|number| kind.round(number))).collect();
        Ok(Constant::computed(kind, constant.dims, rounded))
    }

    fn unary(&mut self, node: Node<'a>, op: &str) -> Result<Constant<'a>, String> {
        attributes(&node, &[])?;
        let constant = self.constant(node, 0)?;
        let apply = |number: Number| match number {
            None if matches!(op, "Abs" | "Ceil" | "Floor") => Ok(None),
            None => Err(of_images()),
            Some(x) => Ok(Some(constant.kind.round(match op {
                "Abs" => x.abs(),
                "Ceil" => x.ceil(),
                "Floor" => x.floor(),
                "Neg" => -x,
                "Not" => f64::from(u8::from(x == 0.0)),
                "Reciprocal" => 1.0 / x,
                _ => x.sqrt(),
            }))),
        };
        let numbers = self.numbers(&constant)?.into_iter().map(apply).collect::<Result<_, _>>()?;
        Ok(Constant::computed(constant.kind, constant.dims, numbers))
    }

    fn binary(&mut self, node: Node<'a>, op: &str) -> Result<Constant<'a>, String> {
        attributes(&node, &["fmod"])?;
        if int(&node, "fmod", 0)? != 0 {
            return Err("`fmod` is not supported".into());
        }
        let mut all =
            (0..node.proto.input.len()).map(|index| self.constant(node, index)).collect::<Result<Vec<_>, _>>()?;
        // Max and Min take any number of operands, and the others two.
        if all.len() != 2 && (all.is_empty() || !matches!(op, "Max" | "Min")) {
            return Err(format!("it has {} operands", all.len()));
        }
        let mut result = all.remove(0);
        for other in all {
            let dims = broadcast(&result.dims, &other.dims);
            let wrong = || format!("{:?} and {:?} cannot be computed with each other", result.dims, other.dims);
            let dims = dims.ok_or_else(wrong)?;
            let (a, b) = self.spread(&result, &other, &dims)?;
            let kind = result.kind;
            let apply = |(a, b): (&Number, &Number)| two(op, kind, *a, *b);
            let numbers = a.iter().zip(&b).map(apply).collect::<Result<_, _>>()?;
            let of_truth = op.starts_with("Less") || op.starts_with("Greater") || matches!(op, "Equal" | "And" | "Or");
            result = Constant::computed(if of_truth { Kind::Bool } else { kind }, dims, numbers);
        }
        Ok(result)
    }

    /// The numbers of two constants, each repeated to the dimensions of both.
    fn spread(
        &mut self,
        a: &Constant<'a>,
        b: &Constant<'a>,
        dims: &[usize],
    ) -> Result<(Vec<Number>, Vec<Number>), String> {
        let wrong = || format!("{:?} and {:?} cannot be computed with each other", a.dims, b.dims);
        let (a, b) = (a.expanded(dims).ok_or_else(wrong)?, b.expanded(dims).ok_or_else(wrong)?);
        Ok((self.numbers(&a)?, self.numbers(&b)?))
    }

    fn choose(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &[])?;
        let (condition, a, b) = (self.constant(node, 0)?, self.constant(node, 1)?, self.constant(node, 2)?);
        let wrong = || "its operands cannot be computed with each other".to_owned();
        let dims = broadcast(&a.dims, &b.dims).and_then(|dims| broadcast(&dims, &condition.dims)).ok_or_else(wrong)?;
        let condition = self.numbers(&condition.expanded(&dims).ok_or_else(wrong)?)?;
        let kind = a.kind;
        let (a, b) = self.spread(&a, &b, &dims)?;
        let numbers = condition.iter().zip(a.iter().zip(&b)).map(|(&condition, (&a, &b))| match condition {
            Some(condition) => Ok(if condition != 0.0 { a } else { b }),
            None => Err(of_images()),
        });
        let numbers = numbers.collect::<Result<_, _>>()?;
        Ok(Constant::computed(kind, dims, numbers))
    }

    fn clip_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        let constant = self.constant(node, 0)?;
        let [low, high] = self.clip_bounds(node)?.map(f64::from);
        let apply = |number: Number| match number {
            Some(number) => Ok(Some(number.max(low).min(high))),
            // There is an image at least.
            None if low <= 1.0 && high == f64::INFINITY => Ok(None),
            None => Err(of_images()),
        };
        let numbers = self.numbers(&constant)?.into_iter().map(apply).collect::<Result<_, _>>()?;
        Ok(Constant::computed(constant.kind, constant.dims, numbers))
    }

    fn concat_constants(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["axis"])?;
        let all = (0..node.proto.input.len()).map(|index| self.constant(node, index)).collect::<Result<Vec<_>, _>>()?;
        let first = all.first().ok_or("it reads nothing")?;
        let axis = axis(int(&node, "axis", 0)?, first.dims.len())?;
        let mut dims = first.dims.clone();
        let others = |dims: &[usize]| [&dims[..axis], &dims[axis + 1..]].concat();
        if all.iter().any(|other| other.dims.len() != dims.len() || others(&other.dims) != others(&dims)) {
            return Err("its operands have other shapes than that dimension's".into());
        }
        dims[axis] =
            all.iter().try_fold(0usize, |sum, other| sum.checked_add(other.dims[axis])).ok_or("it is too long")?;
        let outer: usize = dims[..axis].iter().product();
        let kind = first.kind;
        let parts = all.iter().map(|part| self.numbers(part)).collect::<Result<Vec<_>, _>>()?;
        let run = |part: &Vec<Number>, index: usize| {
            let length = part.len() / outer.max(1);
            part[index * length..][..length].to_vec()
        };
        let numbers = (0..outer).flat_map(|index| parts.iter().flat_map(move |part| run(part, index))).collect();
        Ok(Constant::computed(kind, dims, numbers))
    }

    fn constant_of_shape(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["value"])?;
        let dims = self.sizes(node, 0)?;
        let value = node.proto.attribute.iter().find(|attribute| attribute.name() == "value");
        let one = match value.and_then(|attribute| attribute.t.as_ref()) {
            Some(tensor) => Constant::stored(tensor)?,
            None => Constant::number(Kind::Float, 0.0),
        };
        let one = one.reshaped(&[]).ok_or("its `value` is not one number")?;
        bounded(&dims)?;
        one.expanded(&dims).ok_or_else(|| format!("no constant has the shape {dims:?}"))
    }

    fn gather(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["axis"])?;
        let (from, indices) = (self.constant(node, 0)?, self.constant(node, 1)?);
        let axis = axis(int(&node, "axis", 0)?, from.dims.len())?;
        let dims = [&from.dims[..axis], &indices.dims, &from.dims[axis + 1..]].concat();
        bounded(&dims)?;
        let size = from.dims[axis];
        let place = |index: Number| {
            let index = index.map(|index| if index < 0.0 { index + size as f64 } else { index });
            let index = index.filter(|&index| index >= 0.0 && index < size as f64);
            index.map(|index| index as usize).ok_or("its indices are out of range")
        };
        let places = self.numbers(&indices)?.into_iter().map(place).collect::<Result<Vec<usize>, _>>()?;
        let numbers = self.numbers(&from)?;
        let inner: usize = from.dims[axis + 1..].iter().product();
        let outer: usize = from.dims[..axis].iter().product();
        let run = |outer: usize, place: usize| numbers[(outer * size + place) * inner..][..inner].iter().copied();
        let gathered = (0..outer).flat_map(|outer| places.iter().flat_map(move |&place| run(outer, place))).collect();
        Ok(Constant::computed(from.kind, dims, gathered))
    }

    fn range(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &[])?;
        let mut number = |index| {
            let constant = self.constant(node, index)?;
            match self.numbers(&constant)?[..] {
                [Some(number)] => Ok((constant.kind, number)),
                _ => Err("its bounds must be numbers".to_owned()),
            }
        };
        let ((kind, start), (_, limit), (_, step)) = (number(0)?, number(1)?, number(2)?);
        let count = ((limit - start) / step).ceil().max(0.0);
        if count.is_nan() || count > MAX_COMPUTED as f64 {
            return Err(format!("from {start} to {limit} by {step} are more than {MAX_COMPUTED} numbers"));
        }
        let numbers: Vec<Number> = (0..count as usize).map(|i| Some(kind.round(start + i as f64 * step))).collect();
        Ok(Constant::computed(kind, vec![numbers.len()], numbers))
    }

    fn reduce_prod(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["axes", "keepdims", "noop_with_empty_axes"])?;
        let constant = self.constant(node, 0)?;
        let rank = constant.dims.len();
        match self.listed(node, "axes", 1)?.as_deref() {
            None | Some([0 | -1]) if rank <= 1 => {}
            _ => return Err("it is supported for lists of sizes only".into()),
        }
        let numbers: Option<Vec<f64>> = self.numbers(&constant)?.into_iter().collect();
        let product = constant.kind.round(numbers.ok_or_else(of_images)?.into_iter().product());
        let dims = if int(&node, "keepdims", 1)? != 0 { vec![1; rank] } else { Vec::new() };
        Ok(Constant::computed(constant.kind, dims, vec![Some(product)]))
    }

    fn reshape_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["allowzero"])?;
        let constant = self.constant(node, 0)?;
        let zero = int(&node, "allowzero", 0)? != 0;
        let shape = self.constant(node, 1)?;
        let shape = self.numbers(&shape)?;
        let wrong = || {
            let sizes: Vec<i64> = shape.iter().map(|size| size.map_or(0, |size| size as i64)).collect();
            format!("{:?} cannot be given the shape {sizes:?}", constant.dims)
        };
        let mut dims = Vec::new();
        let mut open = None;
        for (place, size) in shape.iter().enumerate() {
            dims.push(match size {
                Some(-1.0) if open.is_none() => {
                    open = Some(place);
                    1
                }
                Some(0.0) if !zero => *constant.dims.get(place).ok_or_else(wrong)?,
                Some(size) if *size >= 0.0 => *size as usize,
                _ => return Err(wrong()),
            });
        }
        if let Some(open) = open {
            let given = product(&dims).filter(|&given| given > 0).ok_or_else(wrong)?;
            dims[open] = constant.len() / given;
        }
        self.reshaped(&constant, &dims)?.ok_or_else(wrong)
    }

    /// A constant in other dimensions, whose numbers are copied if they must be; `None` if there are more or fewer.
    fn reshaped(&mut self, constant: &Constant<'a>, dims: &[usize]) -> Result<Option<Constant<'a>>, String> {
        if product(dims) != Some(constant.len()) {
            return Ok(None);
        }
        match constant.reshaped(dims) {
            Some(reshaped) => Ok(Some(reshaped)),
            None => Ok(Some(Constant::computed(constant.kind, dims.to_vec(), self.numbers(constant)?))),
        }
    }

    fn squeeze_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["axes"])?;
        let constant = self.constant(node, 0)?;
        let rank = constant.dims.len();
        let gone = match self.listed(node, "axes", 1)? {
            Some(axes) => axes.into_iter().map(|at| axis(at, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).filter(|&at| constant.dims[at] == 1).collect(),
        };
        let dims: Vec<usize> = (0..rank).filter(|at| !gone.contains(at)).map(|at| constant.dims[at]).collect();
        constant.reshaped(&dims).ok_or_else(|| format!("the dimensions {gone:?} of {:?} are not 1", constant.dims))
    }

    fn unsqueeze_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["axes"])?;
        let constant = self.constant(node, 0)?;
        let axes = self.listed(node, "axes", 1)?.unwrap_or_default();
        let rank = constant.dims.len() + axes.len();
        if rank > MAX_RANK {
            return Err(format!("it gives {rank} dimensions; at most {MAX_RANK} are supported"));
        }
        let new = axes.into_iter().map(|at| axis(at, rank)).collect::<Result<Vec<_>, _>>()?;
        let mut old = constant.dims.iter().copied();
        let dims: Vec<usize> =
            (0..rank).map(|at| if new.contains(&at) { 1 } else { old.next().unwrap_or(1) }).collect();
        constant.reshaped(&dims).ok_or_else(|| "its axes are given twice".into())
    }

    fn transpose_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        attributes(&node, &["perm"])?;
        let constant = self.constant(node, 0)?;
        let order = match ints(&node, "perm")? {
            Some(order) => order.into_iter().map(|at| axis(at, constant.dims.len())).collect::<Result<Vec<_>, _>>()?,
            None => (0..constant.dims.len()).rev().collect(),
        };
        constant.transposed(&order).ok_or_else(|| format!("{order:?} is no order of its dimensions"))
    }

    fn slice_constant(&mut self, node: Node<'a>) -> Result<Constant<'a>, String> {
        let mut constant = self.constant(node, 0)?;
        for (at, begin, end, step) in self.slices(node, constant.dims.len())? {
            let size = constant.dims[at];
            let (begin, len) = span(begin, end, step, size);
            constant = constant.sliced(at, begin, len, isize::try_from(step).map_err(|_| "its step is too large")?);
        }
        Ok(constant)
    }

    fn split_constant(&mut self, node: Node<'a>) -> Result<Vec<Value<'a>>, String> {
        let constant = self.constant(node, 0)?;
        let (axis, sizes) = self.splits(node, &constant.dims)?;
        let mut begin = 0;
        let part = |size| {
            let part = constant.sliced(axis, begin, size, 1);
            begin += size;
            Value::Constant(part)
        };
        Ok(sizes.into_iter().map(part).collect())
    }

    /// What a `Slice` takes of each dimension: begin, end and step, as the file has them.
    pub(super) fn slices(&mut self, node: Node<'a>, rank: usize) -> Result<Vec<(usize, i64, i64, i64)>, String> {
        attributes(&node, &["axes", "ends", "starts"])?;
        let begins = self.listed(node, "starts", 1)?.ok_or("its `starts` are missing")?;
        let ends = self.listed(node, "ends", 2)?.ok_or("its `ends` are missing")?;
        let axes = self.listed(node, "axes", 3)?.unwrap_or_else(|| (0..begins.len() as i64).collect());
        let steps = self.listed(node, "steps", 4)?.unwrap_or_else(|| vec![1; begins.len()]);
        if [ends.len(), axes.len(), steps.len()] != [begins.len(); 3] || steps.contains(&0) {
            return Err("its starts, ends, axes and steps are not as many as each other, or a step is 0".into());
        }
        let all = axes.into_iter().zip(begins).zip(ends.into_iter().zip(steps));
        let mut slices: Vec<(usize, i64, i64, i64)> = Vec::new();
        for ((at, begin), (end, step)) in all {
            let at = axis(at, rank)?;
            if slices.iter().any(|&(other, ..)| other == at) {
                return Err(format!("it names the dimension {at} twice"));
            }
            slices.push((at, begin, end, step));
        }
        Ok(slices)
    }

    /// The dimension that a `Split` cuts, and the sizes of the parts.
    pub(super) fn splits(&mut self, node: Node<'a>, dims: &[usize]) -> Result<(usize, Vec<usize>), String> {
        attributes(&node, &["axis", "num_outputs", "split"])?;
        let axis = axis(int(&node, "axis", 0)?, dims.len())?;
        let (size, parts) = (dims[axis], node.proto.output.len());
        let sizes = match self.listed(node, "split", 1)? {
            Some(sizes) => sizes.into_iter().map(|size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>(),
            None => {
                let each = size.div_ceil(parts.max(1));
                Some((0..parts).map(|part| each.min(size.saturating_sub(part * each))).collect())
            }
        };
        let fits = |sizes: &Vec<usize>| {
            sizes.len() == parts && sizes.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)) == Some(size)
        };
        let sizes =
            sizes.filter(fits).ok_or_else(|| format!("its {parts} parts are not together the {size} it cuts"))?;
        Ok((axis, sizes))
    }
}

/// The operators that compute with two numbers.
fn two(op: &str, kind: Kind, a: Number, b: Number) -> Result<Number, String> {
    let (Some(a), Some(b)) = (a, b) else { return with_images(op, a, b) };
    let truth = |truth: bool| f64::from(u8::from(truth));
    let value = match op {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" | "Mod" if kind == Kind::Int && b == 0.0 => return Err("it divides by zero".into()),
        "Div" => a / b,
        "Mod" => a - b * (a / b).floor(),
        "Max" => a.max(b),
        "Min" => a.min(b),
        "Pow" => a.powf(b),
        "Equal" => truth(a == b),
        "Greater" => truth(a > b),
        "GreaterOrEqual" => truth(a >= b),
        "Less" => truth(a < b),
        "LessOrEqual" => truth(a <= b),
        "And" => truth(a != 0.0 && b != 0.0),
        _ => truth(a != 0.0 || b != 0.0),
    };
    Ok(Some(kind.round(value)))
}

/// The same where one is the number of images, which is not known, and is 1 at least.
fn with_images(op: &str, a: Number, b: Number) -> Result<Number, String> {
    match (op, a, b) {
        ("Add", None, Some(0.0)) | ("Add", Some(0.0), None) | ("Sub", None, Some(0.0)) => Ok(None),
        ("Mul", None, Some(1.0)) | ("Mul", Some(1.0), None) | ("Div", None, Some(1.0)) => Ok(None),
        ("Max", None, Some(..=1.0)) | ("Max", Some(..=1.0), None) | ("Max" | "Min", None, None) => Ok(None),
        ("Equal", None, None) | ("Greater", None, Some(..=0.0)) | ("Less", Some(..=0.0), None) => Ok(Some(1.0)),
        ("GreaterOrEqual", None, Some(..=1.0)) | ("LessOrEqual", Some(..=1.0), None) => Ok(Some(1.0)),
        ("Equal", None, Some(..=0.0)) | ("Equal", Some(..=0.0), None) => Ok(Some(0.0)),
        _ => Err(of_images()),
    }
}

fn of_images() -> String {
    "what it gives would depend on the number of images".into()
}

fn constant<'a>(node: Node<'a>) -> Result<Constant<'a>, String> {
    let [attribute] = &node.proto.attribute[..] else { return Err("it has not one value".into()) };
    let list = |kind, numbers: Vec<Number>| {
        bounded(&[numbers.len()])?;
        Ok(Constant::computed(kind, vec![numbers.len()], numbers))
    };
    match (attribute.name(), &attribute.t) {
        ("value", Some(tensor)) => Constant::stored(tensor),
        ("value_float", _) => Ok(Constant::number(Kind::Float, f64::from(float(&node, "value_float", 0.0)?))),
        ("value_int", _) => Ok(Constant::number(Kind::Int, int(&node, "value_int", 0)? as f64)),
        ("value_floats", _) => {
            let values = floats(&node, "value_floats")?.unwrap_or_default();
            list(Kind::Float, values.into_iter().map(|value| Some(f64::from(value))).collect())
        }
        ("value_ints", _) => {
            let values = ints(&node, "value_ints")?.unwrap_or_default();
            list(Kind::Int, values.into_iter().map(|value| Some(value as f64)).collect())
        }
        (other, _) => Err(format!("`{other}` is not supported")),
    }
}

fn data_type(to: i64) -> Result<Kind, String> {
    let to = i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok()).unwrap_or(DataType::Undefined);
    Kind::of(to).ok_or_else(|| format!("to {} is not supported; to numbers is", to.as_str_name()))
}

/// Refuses constants that are too large to be computed with.
fn bounded(dims: &[usize]) -> Result<(), String> {
    match product(dims).is_some_and(|count| count <= MAX_COMPUTED) {
        true => Ok(()),
        false => Err(format!("it gives a constant of more than {MAX_COMPUTED} values")),
    }
}

/// A dimension, which may be counted from the last one.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let found = usize::try_from(counted).ok().filter(|&axis| axis < rank);
    found.ok_or_else(|| format!("there is no dimension {axis} where there are {rank}"))
}

/// A bound that may be counted from the end, within a dimension of that size.
fn bound(bound: i64, size: usize) -> usize {
    let counted = if bound < 0 { bound.saturating_add(size as i64) } else { bound };
    usize::try_from(counted).unwrap_or(0).min(size)
}

/// The first place of a slice, and how many it has.
pub(super) fn span(begin: i64, end: i64, step: i64, size: usize) -> (usize, usize) {
    let count =
        |from: usize, to: usize| to.saturating_sub(from).div_ceil(step.unsigned_abs().try_into().unwrap_or(usize::MAX));
    if step > 0 {
        let begin = bound(begin, size);
        return (begin, count(begin, bound(end, size)));
    }
    // Backwards, from the begin to behind the end.
    let last = |at: i64| {
        let counted = if at < 0 { at.saturating_add(size as i64) } else { at };
        counted.clamp(-1, size as i64 - 1)
    };
    let (begin, end) = (last(begin), last(end));
    (begin.max(0) as usize, count((end + 1) as usize, (begin + 1) as usize))
}
