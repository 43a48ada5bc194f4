//! What only training takes, and what feeds it: input, sums, loss and optimisers.

use super::case::{Case, same_bits};
use super::values::{FORMS, Random, STEP, shapes, step_buffer, table_buffer, untouched, unused, when};
use crate::kernels::segments::Part;
use crate::kernels::{
    StepScalars, accumulate, adamw, channel_sum, input_normalize, sgd, softmax_cross_entropy, sum_partials,
};
use crate::tensor::Shape;

pub(super) fn input() -> Vec<Case> {
    let rng = &mut Random::new(11);
    let mut cases = vec![];
    for (shape, bgr) in [([1, 1, 1, 3], false), ([2, 5, 7, 3], false), ([2, 5, 7, 3], true), ([3, 16, 16, 3], false)] {
        let shape = Shape(shape);
        let pixels = (0..shape.pixels()).map(|_| f32::from_bits(rng.bits() as u32)).collect();
        let dispatch = input_normalize::forward(shape, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], bgr);
        let buffers = vec![pixels, untouched(shape.stored_len())];
        cases.push(Case::new(shape, dispatch, buffers, 1e-6).padded("x", shape));
    }
    cases
}

pub(super) fn sums() -> Vec<Case> {
    let rng = &mut Random::new(5);
    let mut cases = vec![];
    for x in shapes(rng) {
        for variant in FORMS {
            let (len, count) = (channel_sum::partials_len(x), channel_sum::partials_count(variant, x));
            let buffers = vec![rng.tensor(x), untouched(len * count)];
            let what = format!("{x}, {variant:?}");
            let dispatch = channel_sum::partial(variant, x);
            cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("partials", Shape::rows(count, x.c())));
        }
    }
    for (variant, tolerance) in FORMS.into_iter().zip([0.0, 1e-5]) {
        for (len, count) in [(4, 1), (4, 257), (260, 3), (1028, 12)] {
            let buffers = vec![rng.tensor(Shape::rows(count, len)), untouched(len)];
            let dispatch = sum_partials::forward(variant, len, count);
            cases.push(Case::new(format!("{count} × {len}, {variant:?}"), dispatch, buffers, tolerance));
        }
    }
    cases
}

pub(super) fn loss() -> Vec<Case> {
    let rng = &mut Random::new(8);
    let mut cases = vec![];
    for (samples, classes) in [(1, 1), (3, 2), (5, 10), (2, 63), (7, 64), (4, 65), (2, 1000), (131, 3)] {
        let logits = Shape::nhwc(samples, 1, 1, classes);
        for (smoothing, weighted) in [(0.0, false), (0.1, false), (0.0, true), (0.1, true)] {
            // Halves, so that there are ties; every fourth sample is padding.
            let values: Vec<f32> =
                rng.tensor_between(logits, -8.0, 8.0).iter().map(|v| (v * 2.0).round() / 2.0).collect();
            let label = |i| if i % 4 == 3 { u32::MAX } else { rng.below(classes) as u32 };
            let labels: Vec<f32> = (0..samples).map(label).map(f32::from_bits).collect();
            let what = format!("{logits}, smoothing {smoothing}{}", if weighted { ", weighted" } else { "" });
            // The first class has a weight of 0.
            let weights = when(weighted, || {
                let mut weights = rng.tensor_between(Shape::rows(1, classes), 0.1, 4.0);
                weights[0] = if classes > 1 { 0.0 } else { 1.0 };
                weights
            });
            let buffers = vec![values.clone(), labels.clone(), weights.clone(), untouched(samples * 4)];
            let dispatch = softmax_cross_entropy::forward(logits, smoothing, weighted);
            cases.push(Case::new(&what, dispatch, buffers, 5e-6));
            let buffers = vec![values, labels, weights, step_buffer(STEP), untouched(logits.stored_len())];
            let dispatch = softmax_cross_entropy::grad(logits, smoothing, weighted);
            cases.push(Case::new(&what, dispatch, buffers, 5e-6).padded("dlogits", logits));
        }
    }
    cases.push(poisoned_logits());
    cases.push(known_logits());
    cases
}

pub(super) fn optimisers() -> Vec<Case> {
    let rng = &mut Random::new(10);
    let mut cases = vec![];
    for tensors in [
        vec![(0..4, 4)],
        vec![(0..1000, 1000)],
        vec![(500..1024, 2000)],
        vec![(8..16, 16), (0..5000, 5000), (0..4, 4), (128..4224, 4224), (0..2048, 2048)],
    ] {
        // Side by side in buffers, with different gaps in each.
        let parts = |lr: f32| {
            let mut at = [0, 8, 4, 12];
            let mut parts: Vec<Part> = Vec::new();
            for (index, (range, words)) in tensors.iter().enumerate() {
                let weight_decay = if index % 2 == 0 { 0.05 } else { 0.0 };
                parts.push(Part { words: range.clone(), at, lr: lr / (index + 1) as f32, weight_decay });
                at = std::array::from_fn(|i| at[i] + words + 4 * i);
            }
            (parts, at[3])
        };
        let (_, words) = parts(1.0);
        let values = |rng: &mut Random, low| rng.tensor_between(Shape::rows(1, words), low, 1.0);
        for lr in [1.0, 0.0, 0.3] {
            let (parts, _) = parts(lr);
            for (momentum, nesterov, decoupled) in [(0.0, false, false), (0.9, false, true), (0.9, true, false)] {
                let options = sgd::Options { momentum, nesterov, decoupled };
                let velocity = when(momentum != 0.0, || values(rng, -1.0));
                let (dispatch, table) = sgd::step(&parts, options);
                let buffers =
                    vec![values(rng, -1.0), step_buffer(STEP), table_buffer(&table), values(rng, -1.0), velocity];
                cases.push(Case::new(format!("{tensors:?}, {lr}, {options:?}"), dispatch, buffers, 1e-6));
            }
            let options = adamw::Options { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
            let (dispatch, table) = adamw::step(&parts, options);
            let (first, second) = (values(rng, -1.0), values(rng, 0.0));
            let buffers =
                vec![values(rng, -1.0), step_buffer(STEP), table_buffer(&table), values(rng, -1.0), first, second];
            cases.push(Case::new(format!("{tensors:?}, {lr}, {options:?}"), dispatch, buffers, 2e-6));
        }
    }
    for words in [4, 1000, 16, 2000] {
        let values = |rng: &mut Random, low| rng.tensor_between(Shape::rows(1, words), low, 1.0);
        for accumulate in [0.0, 1.0] {
            let step = StepScalars { accumulate, ..STEP };
            let state = if accumulate == 0.0 { untouched(words) } else { values(rng, -1.0) };
            let buffers = vec![values(rng, -1.0), step_buffer(step), state];
            cases.push(Case::new(format!("{words} words"), accumulate::forward(words), buffers, 0.0));
        }
    }
    cases.extend(learning_rate_zero());
    cases.push(first_adamw_step());
    cases
}

/// A NaN or an infinite logit makes the loss NaN, and no hit.
fn poisoned_logits() -> Case {
    let logits = Shape::nhwc(3, 1, 1, 70);
    let mut values = Random::new(9).tensor(logits);
    values[69] = f32::NAN;
    values[72 + 3] = f32::INFINITY;
    let buffers = vec![values, vec![f32::from_bits(5); 3], unused(), untouched(12)];
    Case::new("NaN and ∞", softmax_cross_entropy::forward(logits, 0.1, false), buffers, 5e-6).claims(|found| {
        let rows = &found[3];
        let nan = rows[0].is_nan() && rows[4].is_nan() && rows[8].is_finite();
        match nan && [rows[1], rows[2], rows[5], rows[6]] == [0.0; 4] {
            true => Ok(()),
            false => Err(format!("rows of loss, hit and count are {:?}", &rows[..12])),
        }
    })
}

/// Two classes ln 3 apart: softmax ¾ and ¼.
fn known_logits() -> Case {
    let logits = Shape::nhwc(4, 1, 1, 2);
    let ln3 = 3.0f32.ln();
    let values =
        [[ln3, 0.0], [ln3, 0.0], [1.0, 1.0], [1.0, 1.0]].iter().flat_map(|[a, b]| [*a, *b, 0.0, 0.0]).collect();
    let buffers = vec![values, [0, 1, 0, 1].map(f32::from_bits).to_vec(), unused(), untouched(16)];
    let (likely, unlikely) = (-(0.75f32.ln()), -(0.25f32.ln()));
    let losses = [0.9 * likely + 0.1 * unlikely, 0.1 * likely + 0.9 * unlikely, 2.0f32.ln(), 2.0f32.ln()];
    let known = softmax_cross_entropy::forward(logits, 0.2, false);
    Case::new("known logits", known, buffers, 5e-6).claims(move |found| {
        for (row, (loss, hit)) in found[3].chunks(4).zip(losses.into_iter().zip([1.0, 0.0, 1.0, 0.0])) {
            if (row[0] - loss).abs() >= 1e-6 || row[1..] != [hit, 1.0, 0.0] {
                return Err(format!("a row is {row:?}, not {:?}", [loss, hit, 1.0, 0.0]));
            }
        }
        Ok(())
    })
}

/// One tensor of four values.
fn one_part(lr: f32, weight_decay: f32) -> [Part; 1] {
    [Part { words: 0..4, at: [0; 4], lr, weight_decay }]
}

/// A learning rate of 0 changes no bit of a parameter.
fn learning_rate_zero() -> Vec<Case> {
    let param = vec![-0.0, 0.0, 1.5, -1e-40];
    let grad = vec![0.0, -0.0, f32::INFINITY, 1.0];
    let mut cases = vec![];
    for lr in [0.0, 1.0] {
        let step = step_buffer(StepScalars { lr: 1.0 - lr, ..STEP });
        let parts = one_part(lr, 0.1);
        let (by_sgd, table) = sgd::step(&parts, sgd::Options { momentum: 0.9, nesterov: true, decoupled: false });
        let (by_adamw, _) = adamw::step(&parts, adamw::Options { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
        let buffers = vec![grad.clone(), step, table_buffer(&table), param.clone(), vec![1.0; 4], vec![1.0; 4]];
        for (dispatch, buffers) in [(by_sgd, buffers[..5].to_vec()), (by_adamw, buffers)] {
            let param = param.clone();
            cases.push(Case::new("a learning rate of 0", dispatch, buffers, 2e-6).claims(move |found| {
                same_bits(&found[3][..4], &param).map_err(|at| format!("param{at} before the step"))
            }));
        }
    }
    cases
}

/// m/√v of the first step is the gradient's sign, whatever its size, if 1 − β is as exact as the correction.
fn first_adamw_step() -> Case {
    let (dispatch, table) = adamw::step(&one_part(1.0, 0.0), adamw::Options { beta1: 0.9, beta2: 0.999, eps: 1e-12 });
    let step = step_buffer(StepScalars { lr: 0.5, correction1: 0.1, correction2: 0.001, ..STEP });
    let grad = vec![3.0, -0.01, 1e3, -7.0];
    let buffers = vec![grad, step, table_buffer(&table), vec![0.0; 4], vec![0.0; 4], vec![0.0; 4]];
    Case::new("the first step", dispatch, buffers, 2e-6).claims(|found| {
        let param = &found[3][..4];
        match param
            .iter()
            .zip([-0.5, 0.5, -0.5, 0.5])
            .all(|(value, expected): (&f32, f32)| (value - expected).abs() < 1e-6)
        {
            true => Ok(()),
            false => Err(format!("the step is {param:?}, not half a unit against the gradient")),
        }
    })
}
