//! Convolutions: every variant of the plain ones, depthwise ones, and grouped ones.

use super::case::Case;
use super::values::{Random, untouched, when, windows};
use crate::act::Act;
use crate::kernels::conv2d::{self, Epilogue, Tiling, Variant};
use crate::kernels::{Dispatch, TILE, Window, depthwise, grouped};
use crate::tensor::Shape;

pub(super) fn convolution() -> Vec<Case> {
    let rng = &mut Random::new(12);
    let mut cases = vec![];
    let mut shapes = vec![];
    for tiling in Tiling::all() {
        shapes.extend(windows(rng).into_iter().map(|shape| (tiling, shape)));
    }
    for (tiling, (x, out, g)) in shapes {
        let out = Shape::nhwc(out.n(), out.h(), out.w(), 1 + rng.below(if x.c() > 37 { 200 } else { 37 }));
        let weight = Shape([g.kernel[0], g.kernel[1], x.stored_c(), out.c()]);
        let mut values = rng.tensor(weight);
        let row = weight.stored_c();
        for (i, value) in values.iter_mut().enumerate() {
            if i / row % x.stored_c() >= x.c() {
                *value = 0.0;
            }
        }
        let what = format!("{tiling:?}: {x} → {out}, {g:?}");
        let words = out.pixels().div_ceil(TILE) * out.quads();
        for (bias, residual, act, mask) in [
            (false, false, Act::Identity, false),
            (true, false, Act::Relu, true),
            (true, true, Act::Relu6, true),
            (true, true, Act::Silu, false),
        ] {
            let epilogue = Epilogue { bias, residual, act, mask };
            let buffers = vec![
                rng.tensor(x),
                values.clone(),
                when(bias, || rng.tensor(Shape::rows(1, out.c()))),
                when(residual, || rng.tensor(out)),
                untouched(out.stored_len()),
                when(mask, || untouched(words)),
            ];
            let dispatch = conv2d::forward_by(tiling, x, out, g, epilogue);
            cases.push(Case::new(format!("{what}, {epilogue:?}"), dispatch, buffers, 1e-5).padded("z", out));
        }
        for accumulate in [false, true] {
            let dx = if accumulate { rng.tensor(x) } else { untouched(x.stored_len()) };
            let buffers = vec![rng.tensor(out), values.clone(), dx];
            let dispatch = conv2d::input_grad_by(tiling, x, out, g, accumulate);
            cases.push(
                Case::new(format!("{what}, accumulate {accumulate}"), dispatch, buffers, 1e-5).padded("x_grad", x),
            );
        }
        let splits = conv2d::weight_grad_splits_by(tiling, x, out, g);
        let partials = Shape([splits * g.kernel[0], g.kernel[1], x.stored_c(), out.c()]);
        let buffers = vec![rng.tensor(x), rng.tensor(out), untouched(partials.stored_len())];
        let dispatch = conv2d::weight_grad_by(tiling, x, out, g);
        cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("partials", partials));
    }
    cases
}

/// Windows of depthwise and grouped convolutions: those of mobile networks, and some at odds with themselves.
const GEOMETRIES: [Window; 10] = [
    square(3, 1, [1; 4]),
    square(3, 2, [1; 4]),
    square(3, 2, [0, 0, 1, 1]),
    square(5, 1, [2; 4]),
    square(5, 2, [1, 2, 2, 1]),
    square(7, 1, [3, 2, 3, 4]),
    square(7, 2, [3; 4]),
    square(1, 2, [0; 4]),
    Window { kernel: [2, 4], stride: [1, 2], padding: [0, 3, 2, 0] },
    Window { kernel: [6, 1], stride: [2, 1], padding: [5, 0, 1, 0] },
];

const fn square(kernel: usize, stride: usize, padding: [usize; 4]) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], padding }
}

/// Strips of one row, of several and of several images, splits of one strip and of several, and images of several splits a
/// column; with the channels of depthwise convolutions.
const IMAGES: [Shape; 7] = [
    Shape::nhwc(3, 11, 9, 98),
    Shape::nhwc(1, 8, 14, 13),
    Shape::nhwc(3, 1, 1, 1),
    Shape::nhwc(1, 2, 5, 8),
    Shape::nhwc(9, 7, 10, 130),
    Shape::nhwc(1, 37, 5, 10),
    Shape::nhwc(7, 3, 2, 1000),
];

/// The output of a window over `x`, if it fits into it.
fn output(x: Shape, g: Window, channels: usize) -> Option<Shape> {
    let side = |size: usize, axis: usize| {
        let padded = size + g.padding[axis] + g.padding[axis + 2];
        Some(padded.checked_sub(g.kernel[axis])? / g.stride[axis] + 1)
    };
    Some(Shape::nhwc(x.n(), side(x.h(), 0)?, side(x.w(), 1)?, channels))
}

/// The calls of a convolution in groups, for [`grouped_cases`].
struct Calls<'a> {
    forward: &'a dyn Fn(Epilogue) -> Dispatch,
    input_grad: &'a dyn Fn(bool) -> Dispatch,
    weight_grad: Dispatch,
    splits: usize,
}

/// Channels by channels, but for the largest windows.
pub(super) fn depthwise() -> Vec<Case> {
    depthwise_cases(31, |g| g.kernel != [7, 7])
}

/// Windows of 7×7, which drivers take long to compile.
pub(super) fn large_depthwise() -> Vec<Case> {
    depthwise_cases(33, |g| g.kernel == [7, 7])
}

fn depthwise_cases(seed: u64, wanted: impl Fn(&Window) -> bool) -> Vec<Case> {
    let rng = &mut Random::new(seed);
    let mut cases = vec![];
    for g in GEOMETRIES.into_iter().filter(wanted) {
        // Of the variants, one for CPU drivers and one for GPUs, which has no windows at odds: drivers take long to compile each.
        let variants =
            [Variant::Direct, Variant::Workgroup].into_iter().take(if g.kernel[0] == g.kernel[1] { 2 } else { 1 });
        for (variant, x) in variants.flat_map(|variant| IMAGES.map(|x| (variant, x))) {
            let Some(out) = output(x, g, x.c()) else { continue };
            let calls = Calls {
                forward: &|epilogue| depthwise::forward(variant, x, out, g, epilogue),
                input_grad: &|accumulate| depthwise::input_grad(variant, x, out, g, accumulate),
                weight_grad: depthwise::weight_grad(variant, x, out, g),
                splits: depthwise::weight_grad_splits(variant, out, g),
            };
            let weight = Shape([g.kernel[0], g.kernel[1], 1, out.c()]);
            grouped_cases(&mut cases, rng, format!("{variant:?}: {x} → {out}, {g:?}"), (x, out, weight), calls);
        }
    }
    cases
}

/// Several channels a group.
pub(super) fn grouped() -> Vec<Case> {
    let rng = &mut Random::new(32);
    let mut cases = vec![];
    for g in GEOMETRIES {
        for (image, (groups, cin, cout)) in IMAGES.into_iter().flat_map(|x| [(x, (3, 12, 24)), (x, (2, 16, 8))]) {
            let x = Shape::nhwc(image.n(), image.h(), image.w(), cin);
            let Some(out) = output(x, g, cout) else { continue };
            let calls = Calls {
                forward: &|epilogue| grouped::forward(x, out, g, groups, epilogue),
                input_grad: &|accumulate| grouped::input_grad(x, out, g, groups, accumulate),
                weight_grad: grouped::weight_grad(x, out, g, groups),
                splits: grouped::weight_grad_splits(x, out, g, groups),
            };
            let weight = Shape([g.kernel[0], g.kernel[1], cin / groups, cout]);
            grouped_cases(&mut cases, rng, format!("{x} → {out} in {groups}, {g:?}"), (x, out, weight), calls);
        }
    }
    cases
}

fn grouped_cases(
    cases: &mut Vec<Case>,
    rng: &mut Random,
    what: String,
    (x, out, weight): (Shape, Shape, Shape),
    calls: Calls<'_>,
) {
    let values = rng.tensor(weight);
    // A smooth activation has a pipeline of its own, which drivers take long to compile: one window has it.
    let smooth = if weight.0[..2] == [3, 3] { Act::Silu } else { Act::Relu };
    for (bias, residual, act) in [(false, false, Act::Identity), (true, false, Act::Relu6), (true, true, smooth)] {
        let epilogue = Epilogue { bias, residual, act, mask: false };
        let buffers = vec![
            rng.tensor(x),
            values.clone(),
            when(bias, || rng.tensor(Shape::rows(1, out.c()))),
            when(residual, || rng.tensor(out)),
            untouched(out.stored_len()),
        ];
        let dispatch = (calls.forward)(epilogue);
        cases.push(Case::new(format!("{what}, {epilogue:?}"), dispatch, buffers, 1e-5).padded("z", out));
    }
    for accumulate in [false, true] {
        let dx = if accumulate { rng.tensor(x) } else { untouched(x.stored_len()) };
        let buffers = vec![rng.tensor(out), values.clone(), dx];
        let dispatch = (calls.input_grad)(accumulate);
        cases.push(Case::new(format!("{what}, accumulate {accumulate}"), dispatch, buffers, 1e-5).padded("x_grad", x));
    }
    let [kh, kw, rows, c] = weight.0;
    let partials = Shape([calls.splits * kh, kw, rows, c]);
    let buffers = vec![rng.tensor(x), rng.tensor(out), untouched(partials.stored_len())];
    cases.push(Case::new(what, calls.weight_grad, buffers, 1e-5).padded("partials", partials));
}
