//! Batch norms: statistics, normalisation, gradients, running statistics, and folding into a convolution's weights.

use super::case::{Case, on_host};
use super::values::{EPS, FORMS, Random, shapes, table_buffer, untouched, when};
use crate::act::Act;
use crate::kernels::batch_norm_update::Layer;
use crate::kernels::conv2d::Variant;
use crate::kernels::{
    TILE, batch_norm_apply, batch_norm_blend, batch_norm_grad, batch_norm_renorm, batch_norm_stats, batch_norm_update,
    fold_batch_norm,
};
use crate::tensor::Shape;

/// Every shape whole, and cut into an image a domain and into halves.
fn cut(shapes: Vec<Shape>) -> impl Iterator<Item = (Shape, usize)> {
    let cuts = |x: Shape| [(1, true), (x.n(), x.n() > 1), (2, x.n() == 4)].into_iter().filter(|(_, apt)| *apt);
    shapes.into_iter().flat_map(move |x| cuts(x).map(move |(domains, _)| (x, domains)))
}

pub(super) fn batch_norm() -> Vec<Case> {
    let rng = &mut Random::new(2);
    let mut cases = vec![];
    // More values a domain than the most chunks hold at their smallest, too.
    let shapes = shapes(rng).into_iter().chain([Shape::nhwc(4, 5, 3, 6), Shape::nhwc(2, 91, 97, 3)]);
    for (x, domains) in cut(shapes.collect()) {
        let what = format!("{x} in {domains}");
        let moments = Shape::rows(2 * domains, x.c());
        let offset = rng.between(-20.0, 20.0);
        let values = rng.tensor_between(x, offset - 1.0, offset + 1.0);
        for variant in FORMS {
            let what = format!("{what}, {variant:?}");
            let partials = batch_norm_stats::partials_len(variant, x, domains);
            let merged = vec![values.clone(), untouched(partials)];
            let dispatch = batch_norm_stats::partial(variant, x, domains);
            cases.push(Case::new(&what, dispatch.clone(), merged.clone(), 1e-5));
            let partials = on_host(&dispatch, merged).swap_remove(1);
            let buffers = vec![partials, untouched(moments.stored_len())];
            let dispatch = batch_norm_stats::merge(variant, x, domains);
            cases.push(Case::new(&what, dispatch, buffers, 1e-5).padded("moments", moments));
        }

        let words = x.pixels().div_ceil(TILE) * x.quads();
        for (act, residual, mask) in [
            (Act::Identity, false, false),
            (Act::Relu, false, true),
            (Act::Relu6, true, true),
            (Act::Silu, false, false),
            (Act::HardSwish, true, false),
        ] {
            let buffers = vec![
                rng.tensor(x),
                rng.domains(x.c(), domains),
                rng.tensor(Shape::rows(2, x.c())),
                when(residual, || rng.tensor(x)),
                untouched(x.stored_len()),
                when(mask, || untouched(words)),
            ];
            let what = format!("{what}, {act:?}, residual {residual}, mask {mask}");
            let dispatch = batch_norm_apply::forward(x, domains, EPS, act, residual, mask);
            cases.push(Case::new(what, dispatch, buffers, if act.is_smooth() { 1e-5 } else { 2e-6 }).padded("z", x));
        }

        for act in Act::ALL {
            let what = format!("{what}, {act:?}");
            let (dz, values, own) = (rng.tensor(x), rng.tensor(x), rng.domains(x.c(), domains));
            let affine = rng.tensor(Shape::rows(2, x.c()));
            let sums = rng.tensor(moments);
            let bits = when(matches!(act, Act::Relu | Act::Relu6), || rng.mask(x));
            let by = |values: &[f32]| when(act.is_smooth(), || values.to_vec());
            let len = batch_norm_grad::reduce_partials_len(x, domains);
            for variant in FORMS {
                let count = batch_norm_grad::reduce_partials_count(variant, x, domains);
                let dispatch = batch_norm_grad::reduce(variant, x, domains, EPS, act);
                let partials = untouched(len * count);
                let buffers = vec![dz.clone(), values.clone(), own.clone(), by(&affine), bits.clone(), partials];
                let rows = Shape::rows(2 * domains * count, x.c());
                let what = format!("{what}, {variant:?}");
                cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("partials", rows));
            }

            let dx = untouched(x.stored_len());
            let dispatch = batch_norm_grad::running(x, EPS, act);
            let buffers = vec![dz.clone(), by(&values), own.clone(), affine.clone(), bits.clone(), dx.clone()];
            cases.push(Case::new(&what, dispatch, buffers, 1e-5).padded("x_grad", x));
            let dispatch = batch_norm_grad::batch(x, domains, EPS, act);
            let buffers = vec![dz, values, own, affine, sums, bits, dx];
            cases.push(Case::new(&what, dispatch, buffers, 1e-5).padded("x_grad", x));
        }

        let c = x.c();
        let (batch, running) = (rng.domains(c, domains), rng.moments(c));
        // Bounds that some channels reach and others do not.
        for (corrected, grad) in [
            (batch_norm_blend::forward(c, domains, 0.3), batch_norm_blend::grad(c, domains, EPS, 0.3)),
            (batch_norm_renorm::forward(c, domains, EPS, 1.5, 0.5), batch_norm_renorm::grad(c, domains, EPS)),
            (batch_norm_renorm::forward(c, domains, EPS, 1.0, 0.0), batch_norm_renorm::grad(c, domains, EPS)),
        ] {
            let what = format!("{c} channels in {domains}");
            let forward = vec![batch.clone(), running.clone(), untouched(moments.stored_len())];
            let used = on_host(&corrected, forward.clone()).swap_remove(2);
            cases.push(Case::new(&what, corrected, forward, 2e-6).padded("moments", moments));
            let buffers = vec![rng.tensor(moments), batch.clone(), used, untouched(moments.stored_len())];
            cases.push(Case::new(&what, grad, buffers, 5e-6).padded("through", moments));
        }

        // Two layers at once, the second with twice the channels.
        for (keep, unbiased, parts) in [(Some(0.9), true, 1), (Some(0.99), false, 3), (None, true, 2), (None, false, 1)]
        {
            let what = format!("{c} and {} channels, keep {keep:?}, unbiased {unbiased}, parts {parts}", 2 * c);
            let layer = |channels, at| Layer { channels, at, keep, unbiased, count: x.pixels(), parts };
            let (batch, running) = (rng.tensor(Shape::rows(2, c)), rng.moments(c));
            let layers = [layer(c, [0, 0]), layer(2 * c, [running.len() + 4, batch.len() + 8])];
            let (dispatch, table) = batch_norm_update::update(&layers);
            let batch = [batch, vec![7.0; 8], rng.tensor(Shape::rows(2, 2 * c))].concat();
            let running = [running, vec![7.0; 4], rng.moments(2 * c)].concat();
            cases.push(Case::new(what, dispatch, vec![batch, table_buffer(&table), running], 2e-6));
        }
    }
    cases.extend(far_from_zero());
    cases.extend(cumulative());
    cases
}

pub(super) fn folding() -> Vec<Case> {
    let rng = &mut Random::new(6);
    let mut cases = vec![];
    for weight in [[1, 1, 4, 1], [3, 3, 4, 7], [1, 1, 68, 130], [7, 7, 4, 10], [3, 3, 32, 33]].map(Shape) {
        let (values, d_folded) = (rng.tensor(weight), rng.tensor(weight));
        let (moments, affine) = (rng.moments(weight.c()), rng.tensor(Shape::rows(2, weight.c())));
        let (row, rows) = (Shape::rows(1, weight.c()), Shape::rows(2, weight.c()));
        for bias in [false, true] {
            let buffers = vec![
                values.clone(),
                moments.clone(),
                affine.clone(),
                when(bias, || rng.tensor(row)),
                untouched(weight.stored_len()),
                untouched(row.stored_len()),
            ];
            let case =
                Case::new(format!("{weight}, bias {bias}"), fold_batch_norm::forward(weight, EPS, bias), buffers, 2e-6);
            cases.push(case.padded("folded", weight).padded("folded_bias", row));
        }
        let buffers = vec![d_folded.clone(), moments.clone(), affine, untouched(weight.stored_len())];
        cases.push(Case::new(weight, fold_batch_norm::weight_grad(weight, EPS), buffers, 2e-6).padded("dw", weight));

        let len = fold_batch_norm::affine_partials_len(weight);
        let partial = vec![values, d_folded, untouched(len)];
        let dispatch = fold_batch_norm::affine_grad(weight);
        let partials = on_host(&dispatch, partial.clone()).swap_remove(2);
        cases.push(Case::new(weight, dispatch, partial, 1e-5));
        let buffers = vec![partials, rng.tensor(row), moments, untouched(rows.stored_len())];
        let dispatch = fold_batch_norm::affine_grad_merge(weight, EPS);
        cases.push(Case::new(weight, dispatch, buffers, 1e-5).padded("sums", rows));
    }
    cases
}

/// Values whose variance is 10⁻⁸ of the squared mean: E[x²] − E[x]² would have no digit right.
fn far_from_zero() -> Vec<Case> {
    FORMS.into_iter().flat_map(far_from_zero_by).collect()
}

fn far_from_zero_by(variant: Variant) -> Vec<Case> {
    let x = Shape::nhwc(2, 97, 101, 3);
    let values = Random::new(3).tensor_between(x, 999.9, 1000.1);
    let partials = untouched(batch_norm_stats::partials_len(variant, x, 1));
    let (partial, merge) = (batch_norm_stats::partial(variant, x, 1), batch_norm_stats::merge(variant, x, 1));
    let buffers = vec![values.clone(), partials];
    let merged = vec![on_host(&partial, buffers.clone()).swap_remove(1), untouched(8)];
    let exact: [[f64; 2]; 3] = [0, 1, 2].map(|c| {
        let channel: Vec<f64> = values.iter().skip(c).step_by(4).map(|v| f64::from(*v)).collect();
        let count = channel.len() as f64;
        let mean = channel.iter().sum::<f64>() / count;
        [mean, channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count]
    });
    let right = move |moments: &[f32]| {
        for (c, [mean, var]) in exact.into_iter().enumerate() {
            let found = [moments[c], moments[4 + c]].map(f64::from);
            if (found[0] - mean).abs() > 1e-7 * mean || (found[1] - var).abs() > 1e-5 * var {
                return Err(format!("mean and variance are {found:?}, not {:?}", [mean, var]));
            }
        }
        Ok(())
    };
    let what = format!("values far from zero, {variant:?}");
    let of_partials = {
        let merge = merge.clone();
        move |found: &[Vec<f32>]| {
            let partials = found[1][..batch_norm_stats::partials_len(variant, x, 1)].to_vec();
            right(&on_host(&merge, vec![partials, untouched(8)])[1])
        }
    };
    vec![
        Case::new(&what, partial, buffers, 1e-5).claims(of_partials),
        Case::new(what, merge, merged, 1e-5).claims(move |found| right(&found[1])),
    ]
}

/// Cumulative running statistics are the mean of all batches.
fn cumulative() -> Vec<Case> {
    let rng = &mut Random::new(4);
    let mut running = vec![0.0; 12];
    let mut sums = [0.0f64; 8];
    let mut cases = vec![];
    for count in 1..=5u8 {
        let batch = rng.tensor(Shape::rows(2, 4));
        sums.iter_mut().zip(&batch).for_each(|(sum, value)| *sum += f64::from(*value));
        let layer = Layer { channels: 4, at: [0; 2], keep: None, unbiased: false, count: 10, parts: 1 };
        let (dispatch, table) = batch_norm_update::update(&[layer]);
        let buffers = vec![batch, table_buffer(&table), running];
        running = on_host(&dispatch, buffers.clone()).swap_remove(2);
        cases.push(Case::new(format!("batch {count}, cumulative"), dispatch, buffers, 2e-6).claims(move |found| {
            let means = sums.map(|sum| sum / f64::from(count));
            let near = found[2].iter().zip(means).all(|(found, mean)| (f64::from(*found) - mean).abs() < 1e-6);
            match near && found[2][8..12] == [f32::from(count); 4] {
                true => Ok(()),
                false => Err(format!("running statistics are {:?}, not {means:?} of {count} batches", &found[2][..12])),
            }
        }));
    }
    cases
}
