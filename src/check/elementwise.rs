//! Activations, additions, dropout, scaling, and sums over images.

use super::case::Case;
use super::values::{FORMS, Random, STEP, shapes, step_buffer, untouched, unused, when};
use crate::act::Act;
use crate::kernels::{TILE, activation, add, dropout, image_sum, multiply, scale};
use crate::tensor::Shape;

/// Every activation, and with the mask that a backward pass wants of those that keep one.
fn activations() -> impl Iterator<Item = (Act, bool)> {
    let kept = [(Act::Relu, true), (Act::Relu6, true)];
    Act::ALL.into_iter().map(|act| (act, false)).chain(kept)
}

pub(super) fn elementwise() -> Vec<Case> {
    let rng = &mut Random::new(1);
    let mut cases = vec![];
    for x in shapes(rng) {
        for (act, mask) in activations() {
            let what = format!("{x}, {act:?}, mask {mask}");
            let words = x.pixels().div_ceil(TILE) * x.quads();
            // An exponential is allowed to be a few units in the last place off.
            // Far below zero the normal distribution is a small difference of large numbers, here as in PyTorch.
            let (tolerance, low) = match act {
                _ if act.is_rare() => (1e-4, -3.0),
                _ if act.is_smooth() => (1e-5, -8.0),
                _ => (0.0, -8.0),
            };
            let dispatch = activation::forward(x, act, mask);
            let values = rng.tensor_between(x, low, 8.0);
            let buffers = vec![values, untouched(x.stored_len()), when(mask, || untouched(words))];
            cases.push(Case::new(&what, dispatch, buffers, tolerance).padded("z", x));
            if act == Act::Identity {
                continue;
            }
            let smooth = act.is_smooth();
            let (bits, y) = (when(!smooth, || rng.mask(x)), when(smooth, || rng.tensor_between(x, low, 8.0)));
            let buffers = vec![bits, y, rng.tensor(x)];
            cases.push(Case::new(&what, activation::grad(x, act), buffers, tolerance).padded("dz", x));
            // Their value at 0 is not 0, so they are not fused where that would show in the padding.
            if act.apply(0.0) != 0.0 {
                continue;
            }
            let dispatch = add::forward(x, act, mask);
            let (a, b) = (rng.tensor_between(x, low / 2.0, 4.0), rng.tensor_between(x, low / 2.0, 4.0));
            let buffers = vec![a, b, untouched(x.stored_len()), when(mask, || untouched(words))];
            cases.push(Case::new(&what, dispatch, buffers, tolerance).padded("z", x));
        }
        for residual in [false, true] {
            for (rate, whole) in [(0.0, false), (0.3, false), (0.5, true)] {
                let dispatch = dropout::forward(x, rate, whole, 11, residual);
                let buffers =
                    vec![rng.tensor(x), step_buffer(STEP), when(residual, || rng.tensor(x)), untouched(x.stored_len())];
                let what = format!("{x}, rate {rate}, whole {whole}, residual {residual}");
                // A fused multiplication and addition rounds once.
                let tolerance = if residual { 1e-6 } else { 0.0 };
                cases.push(Case::new(what, dispatch, buffers, tolerance).padded("z", x));
            }
        }
        let rows = Shape::nhwc(x.n(), 1, 1, x.c());
        for mean in [false, true] {
            let buffers =
                vec![rng.tensor(x), rng.tensor(rows), when(mean, || rng.tensor(rows)), untouched(x.stored_len())];
            cases.push(Case::new(x, scale::forward(x, rows, mean), buffers, 1e-6).padded("z", x));
        }
        let (row, mean) = (Shape::rows(1, x.c()), false);
        let buffers = vec![rng.tensor(x), rng.tensor(row), unused(), untouched(x.stored_len())];
        let what = format!("{x} by one row");
        cases.push(Case::new(what, scale::forward(x, row, mean), buffers, 1e-6).padded("z", x));
        let buffers = vec![rng.tensor(x), rng.tensor(x), untouched(x.stored_len())];
        cases.push(Case::new(x, multiply::forward(x), buffers, 0.0).padded("z", x));
        for variant in FORMS {
            let partials = Shape([image_sum::partials_count(variant, x), 1, x.n(), x.c()]);
            for (dispatch, product) in [(image_sum::mean(variant, x), false), (image_sum::products(variant, x), true)] {
                let buffers = vec![rng.tensor(x), when(product, || rng.tensor(x)), untouched(partials.stored_len())];
                cases
                    .push(Case::new(format!("{x}, {variant:?}"), dispatch, buffers, 1e-5).padded("partials", partials));
            }
        }
    }
    cases.extend(special_values());
    cases
}

/// A NaN is handed on by every activation, though a comparison with it is false.
fn special_values() -> impl Iterator<Item = Case> {
    let x = Shape::nhwc(1, 1, 1, 4);
    Act::ALL.into_iter().map(move |act| {
        let mask = matches!(act, Act::Relu | Act::Relu6);
        // −∞ times 0 is no number on the host; on a device the exponential is bounded.
        let times = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Mish].contains(&act);
        let low = if times { -1.0 } else { f32::NEG_INFINITY };
        let buffers = vec![vec![f32::NAN, f32::INFINITY, low, -0.0], untouched(4), when(mask, || untouched(1))];
        let case = Case::new(format!("NaN, {act:?}"), activation::forward(x, act, mask), buffers, 1e-6);
        case.claims(|found| match found[1][0].is_nan() {
            true => Ok(()),
            false => Err(format!("of a NaN comes {}", found[1][0])),
        })
    })
}
