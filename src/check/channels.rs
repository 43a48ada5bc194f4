//! What moves channels and pixels, and layer norms.

use super::case::{Case, on_host};
use super::values::{EPS, FORMS, Random, shapes, untouched, when};
use crate::kernels::{channels, group_norm, layer_norm, pad};
use crate::tensor::Shape;

/// Concatenations, slices, shuffles and their gradients, at places that are and that are not multiples of four.
pub(super) fn channels() -> Vec<Case> {
    let rng = &mut Random::new(17);
    let mut cases = vec![];
    for part in shapes(rng) {
        let c = part.c();
        for (before, after) in [(0, 5), (4, 0), (3, 2), (58, 7)] {
            let whole = Shape::nhwc(part.n(), part.h(), part.w(), before + c + after);
            let what = format!("{part} at {before} of {whole}");
            // Where an operand is placed, others stand before it.
            let case =
                Case::new(&what, channels::place(part, whole, before), vec![rng.tensor(part), rng.tensor(whole)], 0.0);
            cases.push(if after == 0 { case.padded("z", whole) } else { case });
            for accumulate in [false, true] {
                let dispatch = channels::slice(whole, part, before, accumulate);
                let z = if accumulate { rng.tensor(part) } else { untouched(part.stored_len()) };
                cases.push(Case::new(&what, dispatch, vec![rng.tensor(whole), z], 0.0).padded("z", part));
            }
            let buffers = vec![rng.tensor(part), untouched(whole.stored_len())];
            cases.push(Case::new(&what, channels::embed(part, whole, before), buffers, 0.0).padded("z", whole));
            let buffers = vec![rng.tensor(part), rng.tensor(whole)];
            cases.push(Case::new(&what, channels::add(part, whole, before), buffers, 0.0).padded("z", whole));
        }
        for groups in (1..=c).filter(|groups| c.is_multiple_of(*groups)) {
            let buffers = vec![rng.tensor(part), untouched(part.stored_len())];
            let what = format!("{part} in {groups} groups");
            cases.push(Case::new(what, channels::shuffle(part, groups), buffers, 0.0).padded("z", part));
        }
    }
    cases
}

pub(super) fn padding() -> Vec<Case> {
    let rng = &mut Random::new(19);
    let mut cases = vec![];
    for x in shapes(rng) {
        for [top, left, bottom, right] in [[0, 0, 1, 1], [1, 2, 3, 0]] {
            let padded = Shape::nhwc(x.n(), x.h() + top + bottom, x.w() + left + right, x.c());
            let shift = [top as i32, left as i32];
            let buffers = vec![rng.tensor(x), untouched(padded.stored_len())];
            let what = format!("{x} in {padded}");
            cases.push(Case::new(&what, pad::forward(x, padded, shift), buffers, 0.0).padded("z", padded));
            let buffers = vec![rng.tensor(padded), untouched(x.stored_len())];
            let back = pad::forward(padded, x, shift.map(|by| -by));
            cases.push(Case::new(&what, back, buffers, 0.0).padded("z", x));
        }
    }
    cases
}

pub(super) fn group_norm() -> Vec<Case> {
    let rng = &mut Random::new(29);
    let mut cases = vec![];
    for x in shapes(rng) {
        let rows = Shape::rows(2 * x.n(), x.c());
        let affine = rng.tensor(Shape::rows(2, x.c()));
        for groups in (1..=x.c()).filter(|groups| x.c().is_multiple_of(*groups)) {
            let what = format!("{x} in {groups} groups");
            let buffers = vec![rng.domains(x.c(), x.n()), untouched(rows.stored_len())];
            cases.push(Case::new(&what, group_norm::moments(x, groups), buffers, 1e-5).padded("z", rows));
            let buffers = vec![rng.tensor(rows), affine.clone(), untouched(rows.stored_len())];
            cases.push(Case::new(&what, group_norm::sums(x, groups), buffers, 1e-5).padded("z", rows));
        }
        let sums = rng.tensor(rows);
        let inputs = vec![rng.tensor(x), rng.tensor(x), rng.domains(x.c(), x.n()), affine, sums];
        let buffers = [inputs, vec![untouched(x.stored_len())]].concat();
        cases.push(Case::new(x, group_norm::grad(x, EPS), buffers, 1e-5).padded("x_grad", x));
    }
    cases
}

pub(super) fn layer_norm() -> Vec<Case> {
    let rng = &mut Random::new(23);
    let mut cases = vec![];
    for x in shapes(rng) {
        for variant in FORMS {
            let what = format!("{x}, {variant:?}");
            let pixels = 2 * x.pixels();
            let (values, affine) = (rng.tensor(x), rng.tensor(Shape::rows(2, x.c())));
            for keep in [false, true] {
                let dispatch = layer_norm::forward(variant, x, EPS, keep);
                let moments = when(keep, || untouched(pixels.next_multiple_of(4)));
                let buffers = vec![values.clone(), affine.clone(), untouched(x.stored_len()), moments];
                if keep {
                    // The gradient's kernels take what this one gives; what nobody wrote is no number.
                    let mut moments = on_host(&dispatch, buffers.clone()).swap_remove(3);
                    moments[pixels..].fill(0.0);
                    let dy = rng.tensor(x);
                    let buffers =
                        vec![dy.clone(), values.clone(), affine.clone(), moments.clone(), untouched(x.stored_len())];
                    cases.push(Case::new(&what, layer_norm::grad(variant, x), buffers, 1e-4).padded("x_grad", x));
                    let rows = Shape::rows(2 * layer_norm::reduce_partials_count(variant, x), x.c());
                    let buffers = vec![dy, values.clone(), moments, untouched(rows.stored_len())];
                    cases
                        .push(Case::new(&what, layer_norm::reduce(variant, x), buffers, 1e-4).padded("partials", rows));
                }
                cases.push(Case::new(&what, dispatch, buffers, 1e-4).padded("z", x));
            }
        }
    }
    cases
}
