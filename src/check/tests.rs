//! The cases cover every kernel, the checker sees what is wrong, and the references' gradients are slopes.

use super::case::{Case, on_host};
use super::values::{EPS, Random, STEP, step_buffer, untouched, unused, when, windows};
use super::{Checker, FAMILIES, Family, KernelResult};
use crate::act::Act;
use crate::gpu::{DeviceLimits, DeviceOptions, Limits};
use crate::kernels::conv2d::Variant;
use crate::kernels::{
    Dispatch, KERNELS, Kernel, StepScalars, add, batch_norm_apply, batch_norm_blend, batch_norm_grad,
    batch_norm_renorm, batch_norm_stats, fold_batch_norm, pool, softmax_cross_entropy, sum_partials,
};
use crate::tensor::Shape;
use std::collections::BTreeSet;

/// A host runs either form of a reduction by the same reference.
const VARIANT: Variant = Variant::Direct;

#[test]
fn every_kernel_has_cases() {
    let mut covered = BTreeSet::new();
    for family in FAMILIES {
        covered.extend((family.cases)().iter().map(|case| case.kernel().name));
    }
    let all: BTreeSet<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    assert_eq!(covered, all);
}

#[test]
fn large_workgroups_are_left_out_where_a_device_has_none() {
    let mut limits = DeviceLimits::NONE;
    limits.max_compute_invocations_per_workgroup = 128;
    let options = DeviceOptions { limits: Limits::AtMost(limits), ..Default::default() };
    let checker = Checker::open(&options).expect("these tests need a Vulkan, Metal or DX12 driver");
    let wanted = ["channel_sum", "conv2d_weight_grad_workgroup"];
    let results = checker.run(|kernel| wanted.contains(&kernel.name), |_| ());
    let [sums, tiles] = &results[..] else { panic!("{results:?}") };
    assert!(!sums.is_wrong() && sums.unsupported.is_none(), "{sums:?}");
    assert!(sums.passed > 0 && sums.skipped > 0 && sums.passed + sums.skipped == sums.cases, "{sums:?}");
    assert!(!tiles.is_wrong() && tiles.skipped == tiles.cases, "{tiles:?}");
    let reason = tiles.unsupported.as_deref().unwrap_or_default();
    assert_eq!(reason, "needs a max_compute_invocations_per_workgroup of at least 256; this device allows 128");
}

#[test]
fn a_nan_in_every_input_reaches_a_result_of_the_reference() {
    let (mut poisoned, mut reached) = (BTreeSet::new(), BTreeSet::new());
    for case in super::nan::nan() {
        let (input, reaches) = case.reaches();
        let input = (case.kernel().name, input.expect("a case of this family has an input with NaNs"));
        poisoned.insert(input);
        if reaches {
            reached.insert(input);
        }
    }
    assert_eq!(reached, poisoned);
}

/// The kernel with another name, since the device keeps compiled kernels by name, and another shader.
fn altered(kernel: &'static Kernel, name: &'static str, from: &str, to: &str) -> &'static Kernel {
    assert!(kernel.source.contains(from), "{from} is not in the shader");
    let source = kernel.source.replace(from, to).leak();
    Box::leak(Box::new(Kernel { name, source, ..*kernel }))
}

/// Checks additions with the shaders of `kernels`, three cases each.
fn check(kernels: &[&'static Kernel]) -> Vec<KernelResult> {
    let options = DeviceOptions { limits: Limits::Default, ..Default::default() };
    let checker = Checker::open(&options).expect("these tests need a Vulkan, Metal or DX12 driver");
    let mut cases = vec![];
    for kernel in kernels {
        for channels in [1, 2, 3] {
            // Two workgroups, and two pixels less than a whole number of tiles: as many words as the guard has.
            let x = Shape::nhwc(2, 37, 7, channels);
            let dispatch = Dispatch { kernel, ..add::forward(x, Act::Identity, false) };
            let rng = &mut Random::new(1);
            let buffers = vec![rng.tensor(x), rng.tensor(x), untouched(x.stored_len()), unused()];
            cases.push(Case::new(x, dispatch, buffers, 1e-6).padded("z", x));
        }
    }
    let mut results = Vec::new();
    checker.add(&mut results, &Family { name: "additions", cases: Vec::new }, cases, |_| ());
    results
}

#[test]
fn a_broken_kernel_is_told_and_does_not_stop_the_others() {
    let altered = |name, from, to| altered(&add::FORWARD, name, from, to);
    let results = check(&[
        altered("wrong", "a[at] + b[at]", "a[at] - b[at]"),
        altered("refused", "a[at] + b[at]", "unknown"),
        altered("beyond", "min(8u, p.pixels - first)", "8u"),
        altered("first_row_only", "group.y * groups.x + group.x", "group.x"),
        altered("padding", "activate(y, p.act)", "activate(y, p.act) + vec4<f32>(0.0, 0.0, 0.0, 1e-9)"),
        &add::FORWARD,
    ]);
    let [wrong, refused, beyond, first_row_only, padding, right] = &results[..] else { panic!("{results:?}") };
    let failure = |result: &KernelResult| result.failure.clone().unwrap_or_default();

    assert_eq!((wrong.cases, wrong.passed, wrong.skipped), (3, 0, 0), "{wrong:?}");
    assert!(wrong.is_wrong() && wrong.worst_error > 0.1 && wrong.worst_of_allowed > 1e5, "{wrong:?}");
    assert!(failure(wrong).starts_with("[2, 37, 7, 1]: z[0] of 2080 is "), "{wrong:?}");
    assert!(failure(beyond).contains("z[2072] of 2080 is ") && beyond.passed == 0, "{beyond:?}");
    assert!(failure(first_row_only).ends_with("not in two rows of workgroups"), "{first_row_only:?}");
    assert!(failure(padding).ends_with("the padding of [2, 37, 7, 1] is not 0"), "{padding:?}");

    // What the device refuses once is not tried again.
    assert_eq!((refused.cases, refused.passed, refused.skipped), (3, 0, 2), "{refused:?}");
    assert!(refused.is_wrong() && failure(refused).contains("compiling refused"), "{refused:?}");

    assert_eq!((right.cases, right.passed, right.skipped, right.is_wrong()), (3, 3, 0, false), "{right:?}");
    assert!(right.worst_of_allowed <= 1.0);
}

/// Checks `gradient` along random directions from `at` against the change of `loss`, in f64, over a small step.
fn assert_gradient(rng: &mut Random, shape: Shape, at: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    let step = 1.0 / 128.0;
    for _ in 0..3 {
        let direction = rng.tensor(shape);
        let moved = |by: f32| -> Vec<f32> { at.iter().zip(&direction).map(|(x, d)| x + by * d).collect() };
        let slope = (loss(&moved(step)) - loss(&moved(-step))) / f64::from(2.0 * step);
        let expected = dot(gradient, &direction);
        let size = dot(gradient, gradient).sqrt() * dot(&direction, &direction).sqrt();
        assert!((slope - expected).abs() <= 2e-3 * size, "slope {slope}, gradient {expected}, of at most {size}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn host(dispatch: Dispatch, buffers: Vec<Vec<f32>>, result: usize) -> Vec<f32> {
    on_host(&dispatch, buffers).swap_remove(result)
}

fn batch_moments(x: Shape, domains: usize, values: &[f32]) -> Vec<f32> {
    let partials = vec![0.0; batch_norm_stats::partials_len(VARIANT, x, domains)];
    let partials = host(batch_norm_stats::partial(VARIANT, x, domains), vec![values.to_vec(), partials], 1);
    host(batch_norm_stats::merge(VARIANT, x, domains), vec![partials, vec![0.0; domains * 2 * x.stored_c()]], 1)
}

fn normalised(x: Shape, act: Act, values: &[f32], moments: &[f32], affine: &[f32]) -> Vec<f32> {
    let (values, domains) = (values.to_vec(), moments.len() / x.stored_c() / 2);
    let buffers = vec![values, moments.to_vec(), affine.to_vec(), unused(), vec![0.0; x.stored_len()], unused()];
    host(batch_norm_apply::forward(x, domains, EPS, act, false, false), buffers, 4)
}

#[test]
fn batch_norm_gradients_are_slopes() {
    let rng = &mut Random::new(13);
    let x = Shape::nhwc(3, 5, 7, 6);
    let values = rng.tensor(x);
    // Neither Σg nor Σ g·x̂ is small, or what passes through the moments would drown.
    let dz: Vec<f32> = rng.tensor_between(x, -0.5, 1.5).iter().zip(&values).map(|(g, x)| g + x).collect();
    let affine = rng.tensor(Shape::rows(2, x.c()));
    for (kind, domains, act) in [
        (Moments::Running, 1, Act::Identity),
        (Moments::Running, 1, Act::Silu),
        (Moments::Batch, 1, Act::Identity),
        (Moments::Batch, 1, Act::Silu),
        (Moments::Batch, 3, Act::Identity),
        (Moments::Batch, 3, Act::Sigmoid),
        (Moments::Blend, 1, Act::Identity),
        (Moments::Blend, 3, Act::Silu),
        (Moments::Renorm, 1, Act::Silu),
        (Moments::Renorm, 3, Act::Identity),
    ] {
        let by = |values: &[f32]| when(act.is_smooth(), || values.to_vec());
        let c = x.c();
        let rows = Shape::rows(2 * domains, c);
        let given = rng.moments(c);
        let batch = batch_moments(x, domains, &values);
        let corrected = |dispatch, batch: Vec<f32>| {
            let buffers = vec![batch, given.clone(), vec![0.0; rows.stored_len()]];
            host(dispatch, buffers, 2)
        };
        let renormalised = corrected(batch_norm_renorm::forward(c, domains, EPS, 1.2, 0.1), batch.clone());
        let moments = |values: &[f32]| match kind {
            Moments::Running => given.clone(),
            Moments::Batch => batch_moments(x, domains, values),
            Moments::Blend => corrected(batch_norm_blend::forward(c, domains, 0.6), batch_moments(x, domains, values)),
            // r and d stay what they are at the unmoved values: μ = μ_B − dσ and σ = σ_B/r.
            Moments::Renorm => {
                let mut moved = batch_moments(x, domains, values);
                let (stored, sigma) = (x.stored_c(), |v: f32| (v + EPS).sqrt());
                for domain in 0..domains {
                    for c in 0..stored {
                        let (mean, var) = (domain * 2 * stored + c, (domain * 2 + 1) * stored + c);
                        let inverse_r = sigma(renormalised[var]) / sigma(batch[var]);
                        let d = (batch[mean] - renormalised[mean]) / sigma(renormalised[var]);
                        let s = sigma(moved[var]) * inverse_r;
                        (moved[mean], moved[var]) = (moved[mean] - d * s, s * s - EPS);
                    }
                }
                moved
            }
        };
        let own = moments(&values);
        let len = batch_norm_grad::reduce_partials_len(x, domains);
        let count = batch_norm_grad::reduce_partials_count(VARIANT, x, domains);
        let buffers = vec![dz.clone(), values.clone(), own.clone(), by(&affine), unused(), vec![0.0; len * count]];
        let partials = host(batch_norm_grad::reduce(VARIANT, x, domains, EPS, act), buffers, 5);
        let sums = host(sum_partials::forward(VARIANT, len, count), vec![partials, vec![0.0; len]], 1);
        let total = host(sum_partials::forward(VARIANT, len / domains, domains), vec![sums.clone(), vec![0.0; len]], 1);
        assert_gradient(rng, Shape::rows(2, c), &affine, &total, |affine| {
            dot(&dz, &normalised(x, act, &values, &own[..rows.stored_len()], affine))
        });

        let through = |dispatch| host(dispatch, vec![sums.clone(), batch.clone(), own.clone(), vec![0.0; len]], 3);
        let dx = vec![0.0; x.stored_len()];
        let dx = match kind {
            Moments::Running => {
                let buffers = vec![dz.clone(), by(&values), own, affine.clone(), unused(), dx];
                host(batch_norm_grad::running(x, EPS, act), buffers, 5)
            }
            Moments::Batch | Moments::Blend | Moments::Renorm => {
                let sums = match kind {
                    Moments::Blend => through(batch_norm_blend::grad(c, domains, EPS, 0.6)),
                    Moments::Renorm => through(batch_norm_renorm::grad(c, domains, EPS)),
                    Moments::Batch | Moments::Running => sums,
                };
                let buffers = vec![dz.clone(), values.clone(), own, affine.clone(), sums, unused(), dx];
                host(batch_norm_grad::batch(x, domains, EPS, act), buffers, 6)
            }
        };
        assert_gradient(rng, x, &values, &dx, |values| {
            dot(&dz, &normalised(x, act, values, &moments(values)[..rows.stored_len()], &affine))
        });
    }
}

#[test]
fn folding_gradients_are_slopes() {
    let rng = &mut Random::new(14);
    let (weight, rows) = (Shape([3, 2, 8, 6]), Shape::rows(2, 6));
    let (values, moments, affine) = (rng.tensor(weight), rng.moments(6), rng.tensor(rows));
    let (d_folded, db) = (rng.tensor(weight), rng.tensor(Shape::rows(1, 6)));
    let loss = |values: &[f32], affine: &[f32]| {
        let folded = (vec![0.0; weight.stored_len()], vec![0.0; 8]);
        let buffers = vec![values.to_vec(), moments.clone(), affine.to_vec(), unused(), folded.0, folded.1];
        let found = on_host(&fold_batch_norm::forward(weight, EPS, false), buffers);
        dot(&d_folded, &found[4]) + dot(&db, &found[5])
    };
    let buffers = vec![d_folded.clone(), moments.clone(), affine.clone(), vec![0.0; weight.stored_len()]];
    let dw = host(fold_batch_norm::weight_grad(weight, EPS), buffers, 3);
    assert_gradient(rng, weight, &values, &dw, |values| loss(values, &affine));

    let partials = vec![0.0; fold_batch_norm::affine_partials_len(weight)];
    let partials = host(fold_batch_norm::affine_grad(weight), vec![values.clone(), d_folded.clone(), partials], 2);
    let buffers = vec![partials, db.clone(), moments.clone(), vec![0.0; rows.stored_len()]];
    let sums = host(fold_batch_norm::affine_grad_merge(weight, EPS), buffers, 3);
    assert_gradient(rng, rows, &affine, &sums, |affine| loss(&values, affine));
}

#[test]
fn pooling_gradients_are_slopes() {
    let rng = &mut Random::new(15);
    for (x, out, g) in windows(rng) {
        // The small step changes no maximum: values of a channel are far apart.
        let mut order: Vec<usize> = (0..x.pixels()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        let value = |i: usize| if i % x.stored_c() < x.c() { order[i / x.stored_c()] as f32 / 16.0 } else { 0.0 };
        let values: Vec<f32> = (0..x.stored_len()).map(value).collect();
        let dy = rng.tensor(out);
        let pooled = |values: &[f32]| {
            let buffers = vec![values.to_vec(), vec![0.0; out.stored_len()], vec![0.0; out.stored_len() / 4]];
            on_host(&pool::max_forward(x, out, g, true), buffers)
        };
        let dx = vec![dy.clone(), pooled(&values).swap_remove(2), vec![0.0; x.stored_len()]];
        let dx = host(pool::max_grad(x, out, g), dx, 2);
        assert_gradient(rng, x, &values, &dx, |values| dot(&dy, &pooled(values)[1]));

        let dx = host(pool::avg_grad(x, out, g, g.padding), vec![dy.clone(), vec![0.0; x.stored_len()]], 1);
        assert_gradient(rng, x, &values, &dx, |values| {
            dot(
                &dy,
                &host(pool::avg_forward(x, out, g, g.padding), vec![values.to_vec(), vec![0.0; out.stored_len()]], 1),
            )
        });
    }
}

#[test]
fn the_loss_gradient_is_a_slope() {
    let rng = &mut Random::new(16);
    let logits = Shape::nhwc(5, 1, 1, 11);
    let values = rng.tensor_between(logits, -3.0, 3.0);
    let labels = [3, 0, u32::MAX, 10, 7].map(f32::from_bits).to_vec();
    let mut weights = rng.tensor_between(Shape::rows(1, 11), 0.2, 3.0);
    weights[5] = 0.0;
    for (smoothing, weighted) in [(0.0, false), (0.1, false), (0.0, true), (0.1, true)] {
        let (zeros, step) = (vec![0.0; logits.stored_len()], step_buffer(STEP));
        let buffers = vec![values.clone(), labels.clone(), weights.clone(), step, zeros];
        let gradient = host(softmax_cross_entropy::grad(logits, smoothing, weighted), buffers, 4);
        assert_gradient(rng, logits, &values, &gradient, |values| {
            let buffers = vec![values.to_vec(), labels.clone(), weights.clone(), vec![0.0; 20]];
            let rows = host(softmax_cross_entropy::forward(logits, smoothing, weighted), buffers, 3);
            rows.chunks(4).map(|row| f64::from(row[0])).sum::<f64>() * f64::from(STEP.inv_count)
        });
    }
}

#[test]
fn the_weighted_loss_is_pytorchs() {
    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Loss>,
    }
    /// `tests/golden/README.md` says what is what.
    #[derive(serde::Deserialize)]
    struct Loss {
        name: String,
        classes: usize,
        smoothing: f32,
        logits: Vec<f32>,
        labels: Vec<u32>,
        weights: Vec<f32>,
        loss: f64,
        gradient: Vec<f64>,
    }
    let golden: Golden = serde_json::from_str(include_str!("../../tests/golden/weighted_loss.json")).unwrap();
    for Loss { name, classes, smoothing, logits, labels, weights, loss, gradient } in golden.cases {
        let shape = Shape::nhwc(labels.len(), 1, 1, classes);
        let padded = |values: &[f32]| {
            let rows = values.chunks(classes);
            rows.flat_map(|row| [row, &vec![0.0; shape.stored_c() - classes]].concat()).collect::<Vec<f32>>()
        };
        let weight: f64 = labels.iter().map(|&label| f64::from(weights[label as usize])).sum();
        let bits: Vec<f32> = labels.iter().copied().map(f32::from_bits).collect();
        let (logits, weights) = (padded(&logits), padded(&weights));

        let buffers = vec![logits.clone(), bits.clone(), weights.clone(), vec![0.0; labels.len() * 4]];
        let rows = host(softmax_cross_entropy::forward(shape, smoothing, true), buffers, 3);
        let ours = rows.chunks(4).map(|row| f64::from(row[0])).sum::<f64>() / weight;
        assert!((ours - loss).abs() <= 1e-6 * loss, "{name}: the loss is {ours}, not {loss}");

        let step = step_buffer(StepScalars { inv_count: (1.0 / weight) as f32, ..STEP });
        let buffers = vec![logits, bits, weights, step, vec![0.0; shape.stored_len()]];
        let ours = host(softmax_cross_entropy::grad(shape, smoothing, true), buffers, 4);
        let ours = ours.chunks(shape.stored_c()).flat_map(|row| &row[..classes]);
        for (ours, theirs) in ours.zip(gradient) {
            assert!((f64::from(*ours) - theirs).abs() <= 1e-6, "{name}: a gradient is {ours}, not {theirs}");
        }
    }
}

/// What normalises, for [`batch_norm_gradients_are_slopes`].
#[derive(Clone, Copy, PartialEq, Debug)]
enum Moments {
    Running,
    Batch,
    Blend,
    Renorm,
}
