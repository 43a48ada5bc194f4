//! Every kernel on the device against its scalar reference, over odd shapes and random values.
//!
//! Each case runs on two devices, one with bounds checks and one without, whose results must have the same bits, and
//! again with its workgroups folded into two rows. Every buffer ends in a few NaNs that a kernel must neither read nor
//! write, and a buffer that a flag switches off holds nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use thawline::gpu::{Device, DeviceOptions, Limits};
use thawline::graph::Act;
use thawline::kernels::conv2d::{Epilogue, Variant};
use thawline::kernels::*;
use thawline::tensor::{Shape, pad4};

/// Marks words that nobody wrote: a NaN that no computation makes.
const UNTOUCHED: u32 = 0x7fc0_dead;

/// Words behind every buffer that nobody may touch.
const GUARD: usize = 8;

const EPS: f32 = 1e-5;

fn devices() -> &'static [Device; 2] {
    static DEVICES: OnceLock<[Device; 2]> = OnceLock::new();
    DEVICES.get_or_init(|| {
        [true, false].map(|checked| {
            let options = DeviceOptions { limits: Limits::Default, checked, ..Default::default() };
            Device::open(&options).expect("these tests need a Vulkan, Metal or DX12 driver")
        })
    })
}

/// SplitMix64: the same values everywhere.
struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A tensor with values in −1…1 and zeros in the padding.
    fn tensor(&mut self, shape: Shape) -> Vec<f32> {
        self.tensor_between(shape, -1.0, 1.0)
    }

    fn tensor_between(&mut self, shape: Shape, low: f32, high: f32) -> Vec<f32> {
        let stored = shape.stored_c();
        let value = |i| if i % stored < shape.c() { self.between(low, high) } else { 0.0 };
        (0..shape.stored_len()).map(value).collect()
    }

    /// Mean, variance and count of each channel.
    fn moments(&mut self, c: usize) -> Vec<f32> {
        let mut rows = self.domains(c, 1);
        rows.extend(vec![3.0; pad4(c)]);
        rows
    }

    /// Mean and variance of each channel in each domain.
    fn domains(&mut self, c: usize, domains: usize) -> Vec<f32> {
        let row = Shape::rows(1, c);
        (0..domains).flat_map(|_| [self.tensor(row), self.tensor_between(row, 0.1, 2.0)].concat()).collect()
    }

    /// A mask of `x`, with no bits in the padding.
    fn mask(&mut self, x: Shape) -> Vec<f32> {
        let values = self.tensor(x);
        let words = x.pixels().div_ceil(8) * x.stored_c() / 4;
        let mut mask = vec![0u32; words];
        for (i, value) in values.iter().enumerate() {
            let (pixel, c) = (i / x.stored_c(), i % x.stored_c());
            if *value > 0.0 {
                mask[pixel / 8 * (x.stored_c() / 4) + c / 4] |= 1 << (pixel % 8 * 4 + c % 4);
            }
        }
        mask.into_iter().map(f32::from_bits).collect()
    }
}

/// One channel, one pixel, no multiples of four or eight, several chunks, and more pixels than the most chunks hold at
/// their smallest; then some at random.
fn shapes(rng: &mut Rng) -> Vec<Shape> {
    let mut shapes = vec![
        Shape::nhwc(1, 1, 1, 1),
        Shape::nhwc(1, 1, 1, 130),
        Shape::nhwc(2, 3, 5, 7),
        Shape::nhwc(1, 7, 9, 4),
        Shape::nhwc(3, 5, 11, 10),
        Shape::nhwc(1, 97, 101, 5),
    ];
    let mut side = |n| 1 + rng.below(n);
    shapes.extend((0..4).map(|_| Shape::nhwc(side(4), side(12), side(12), side(40))));
    shapes
}

fn untouched(words: usize) -> Vec<f32> {
    vec![f32::from_bits(UNTOUCHED); words]
}

/// What stands in for a buffer that a flag switches off.
fn unused() -> Vec<f32> {
    untouched(4)
}

/// `buffer` if the flag wants it.
fn when(wanted: bool, buffer: impl FnOnce() -> Vec<f32>) -> Vec<f32> {
    if wanted { buffer() } else { unused() }
}

fn step_buffer(step: StepScalars) -> Vec<f32> {
    bytemuck::cast_slice(&[step]).to_vec()
}

const STEP: StepScalars = StepScalars {
    lr: 0.1,
    correction1: 0.271,
    correction2: 0.003,
    inv_count: 0.125,
    accumulate: 1.0,
    draw: 3,
    seed: [0xffff_ffff, 7],
};

/// One call with its buffers. Buffers that are only written start untouched.
struct Case {
    what: String,
    dispatch: Dispatch,
    buffers: Vec<Vec<f32>>,
    /// How far device and reference may be apart, relative to the larger of the value and the buffer's root mean
    /// square; 0 asks for the same bits.
    tolerance: f32,
    /// The shapes of the written buffers that have channel padding, by name.
    padded: Vec<(&'static str, Shape)>,
}

impl Case {
    fn new(what: impl ToString, dispatch: Dispatch, buffers: Vec<Vec<f32>>, tolerance: f32) -> Self {
        Self { what: what.to_string(), dispatch, buffers, tolerance, padded: vec![] }
    }

    /// Has the padding of a result checked.
    fn padded(mut self, name: &'static str, shape: Shape) -> Self {
        self.padded.push((name, shape));
        self
    }

    fn check(mut self) {
        let kernel = self.dispatch.kernel;
        // A variant that this device cannot run is never chosen on it.
        if !devices().iter().all(|device| device.supports(kernel)) {
            return;
        }
        let context = |name| format!("{} ({}): {name}", kernel.name, self.what);
        for (buffer, binding) in self.buffers.iter_mut().zip(kernel.bindings) {
            buffer.extend(match binding.access {
                Access::Read | Access::Texture => vec![f32::NAN; GUARD],
                Access::Write => untouched(GUARD),
            });
        }
        let expected = on_host(&self.dispatch, self.buffers.clone());
        let [checked, trusted] = devices().each_ref().map(|device| on(device, &self.dispatch, self.buffers.clone()));
        for ((a, b), binding) in checked.iter().zip(&trusted).zip(kernel.bindings) {
            assert_bits(&context(binding.name), "unchecked", b, a);
        }
        // Only kernels that ask for the number of workgroups can be folded.
        let [groups, 1, 1] = self.dispatch.workgroups else { return };
        if groups > 1 && kernel.source.contains("num_workgroups") {
            let folded = self.dispatch.clone().folded_into([groups.div_ceil(2), 2, 1]);
            for ((a, b), binding) in
                on(&devices()[1], &folded, self.buffers.clone()).iter().zip(&trusted).zip(kernel.bindings)
            {
                assert_bits(&context(binding.name), "folded into rows", a, b);
            }
        }
        for ((found, expected), binding) in trusted.iter().zip(&expected).zip(kernel.bindings) {
            let bits = self.tolerance == 0.0 || ["mask", "argmax"].contains(&binding.name);
            if binding.access != Access::Write || bits {
                assert_bits(&context(binding.name), "on the device", found, expected);
            } else {
                assert_near(&context(binding.name), found, expected, self.tolerance);
            }
        }
        for (name, shape) in &self.padded {
            let at = kernel.bindings.iter().position(|b| b.name == *name).expect("a binding of the kernel");
            for row in trusted[at][..shape.stored_len()].chunks(shape.stored_c()) {
                assert!(row[shape.c()..].iter().all(|v| *v == 0.0), "{}: padding of {shape}", context(name));
            }
        }
    }
}

fn on_host(dispatch: &Dispatch, mut buffers: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let slices = buffers.iter_mut().map(|b| b.as_mut_slice()).collect();
    (dispatch.kernel.reference)(Args::new(&dispatch.params, slices));
    buffers
}

fn on(device: &Device, dispatch: &Dispatch, mut buffers: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    device.run(dispatch, &mut buffers).unwrap_or_else(|e| panic!("{}: {e}", dispatch.kernel.name));
    buffers
}

fn assert_bits(context: &str, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        // NaNs that were computed may differ in payload, and WGSL leaves the sign of a zero open.
        let computed = a.is_nan() && b.is_nan() && ![a.to_bits(), b.to_bits()].contains(&UNTOUCHED);
        let same = a.to_bits() == b.to_bits() || computed || *a == 0.0 && *b == 0.0;
        assert!(
            same,
            "{context}[{i}] of {}: {a} ({:#x}) {what}, not {b} ({:#x})",
            found.len(),
            a.to_bits(),
            b.to_bits()
        );
    }
}

fn assert_near(context: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let finite = expected.iter().filter(|v| v.is_finite());
    let rms = (finite.clone().map(|v| v * v).sum::<f32>() / finite.count().max(1) as f32).sqrt();
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let untouched = [a.to_bits(), b.to_bits()].contains(&UNTOUCHED);
        let near = match untouched {
            true => a.to_bits() == b.to_bits(),
            false => a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * b.abs().max(rms),
        };
        assert!(near, "{context}[{i}] of {}: {a} on the device, not {b} (rms {rms})", found.len());
    }
}

/// Every activation, and with the mask that a backward pass wants of those that keep one.
fn activations() -> impl Iterator<Item = (Act, bool)> {
    let kept = [(Act::Relu, true), (Act::Relu6, true)];
    Act::ALL.into_iter().map(|act| (act, false)).chain(kept)
}

fn elementwise() -> Vec<Case> {
    let rng = &mut Rng(1);
    let mut cases = vec![];
    for x in shapes(rng) {
        for (act, mask) in activations() {
            let what = format!("{x}, {act:?}, mask {mask}");
            let words = x.pixels().div_ceil(TILE) * x.stored_c() / 4;
            // An exponential is allowed to be a few units in the last place off.
            let tolerance = if act.is_smooth() { 1e-5 } else { 0.0 };
            let dispatch = activation::forward(x, act, mask);
            let values = rng.tensor_between(x, -8.0, 8.0);
            let buffers = vec![values, untouched(x.stored_len()), when(mask, || untouched(words))];
            cases.push(Case::new(&what, dispatch, buffers, tolerance).padded("z", x));
            if act == Act::Identity {
                continue;
            }
            let smooth = act.is_smooth();
            let (bits, y) = (when(!smooth, || rng.mask(x)), when(smooth, || rng.tensor_between(x, -8.0, 8.0)));
            let buffers = vec![bits, y, rng.tensor(x)];
            cases.push(Case::new(&what, activation::grad(x, act), buffers, tolerance).padded("dz", x));
            // Their value at 0 is not 0, so they are not fused where that would show in the padding.
            if [Act::Sigmoid, Act::HardSigmoid].contains(&act) {
                continue;
            }
            let dispatch = add::forward(x, act, mask);
            let (a, b) = (rng.tensor_between(x, -4.0, 4.0), rng.tensor_between(x, -4.0, 4.0));
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
            cases.push(Case::new(x, scale::forward(x, mean), buffers, 1e-6).padded("z", x));
        }
        let partials = Shape([image_sum::partials_count(x), 1, x.n(), x.c()]);
        for (dispatch, product) in [(image_sum::mean(x), false), (image_sum::products(x), true)] {
            let buffers = vec![rng.tensor(x), when(product, || rng.tensor(x)), untouched(partials.stored_len())];
            cases.push(Case::new(x, dispatch, buffers, 1e-5).padded("partials", partials));
        }
    }
    cases
}

#[test]
fn elementwise_kernels_match_their_references() {
    elementwise().into_iter().for_each(Case::check);
}

#[test]
fn activations_hand_nan_on() {
    let x = Shape::nhwc(1, 1, 1, 4);
    let values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    for act in Act::ALL {
        let mask = matches!(act, Act::Relu | Act::Relu6);
        let buffers = vec![values.clone(), untouched(4), when(mask, || untouched(1))];
        // −∞·σ(−∞) is no number on the host; on a device the exponential is bounded.
        if act != Act::Silu {
            Case::new("NaN", activation::forward(x, act, mask), buffers.clone(), 1e-6).check();
        }
        let found = on(&devices()[1], &activation::forward(x, act, mask), buffers);
        assert!(found[1][0].is_nan(), "{act:?} drops a NaN");
    }
}

/// Every shape whole, and cut into an image a domain and into halves.
fn cut(shapes: Vec<Shape>) -> impl Iterator<Item = (Shape, usize)> {
    let cuts = |x: Shape| [(1, true), (x.n(), x.n() > 1), (2, x.n() == 4)].into_iter().filter(|(_, apt)| *apt);
    shapes.into_iter().flat_map(move |x| cuts(x).map(move |(domains, _)| (x, domains)))
}

fn batch_norm() -> Vec<Case> {
    let rng = &mut Rng(2);
    let mut cases = vec![];
    // More values a domain than the most chunks hold at their smallest, too.
    let shapes = shapes(rng).into_iter().chain([Shape::nhwc(4, 5, 3, 6), Shape::nhwc(2, 91, 97, 3)]);
    for (x, domains) in cut(shapes.collect()) {
        let what = format!("{x} in {domains}");
        let moments = Shape::rows(2 * domains, x.c());
        let offset = rng.between(-20.0, 20.0);
        let values = rng.tensor_between(x, offset - 1.0, offset + 1.0);
        let partials = batch_norm_stats::partials_len(x, domains);
        let merged = vec![values.clone(), untouched(partials)];
        let dispatch = batch_norm_stats::partial(x, domains);
        cases.push(Case::new(&what, dispatch.clone(), merged.clone(), 1e-5));
        let partials = on_host(&dispatch, merged).swap_remove(1);
        let buffers = vec![partials, untouched(moments.stored_len())];
        cases.push(Case::new(&what, batch_norm_stats::merge(x, domains), buffers, 1e-5).padded("moments", moments));

        let words = x.pixels().div_ceil(TILE) * x.stored_c() / 4;
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
            let count = batch_norm_grad::reduce_partials_count(x, domains);
            let dispatch = batch_norm_grad::reduce(x, domains, EPS, act);
            let partials = untouched(len * count);
            let buffers = vec![dz.clone(), values.clone(), own.clone(), by(&affine), bits.clone(), partials];
            let rows = Shape::rows(2 * domains * count, x.c());
            cases.push(Case::new(&what, dispatch, buffers, 1e-5).padded("partials", rows));

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

        for (keep, unbiased, parts) in [(Some(0.9), true, 1), (Some(0.99), false, 3), (None, true, 2), (None, false, 1)]
        {
            let what = format!("{} channels, keep {keep:?}, unbiased {unbiased}, parts {parts}", x.c());
            let dispatch = batch_norm_update::update(x.c(), keep, unbiased, x.pixels(), parts);
            let running = Shape::rows(2, x.c());
            let buffers = vec![rng.tensor(running), rng.moments(x.c())];
            cases.push(Case::new(what, dispatch, buffers, 2e-6).padded("running", running));
        }
    }
    cases
}

#[test]
fn batch_norm_kernels_match_their_references() {
    batch_norm().into_iter().for_each(Case::check);
}

#[test]
fn batch_statistics_keep_their_digits_far_from_zero() {
    // The variance is 10⁻⁸ of the squared mean: E[x²] − E[x]² would have no digit right.
    let x = Shape::nhwc(2, 97, 101, 3);
    let rng = &mut Rng(3);
    let values = rng.tensor_between(x, 999.9, 1000.1);
    let device = &devices()[1];
    let partials = vec![values.clone(), untouched(batch_norm_stats::partials_len(x, 1))];
    let partials = on(device, &batch_norm_stats::partial(x, 1), partials).swap_remove(1);
    let moments = on(device, &batch_norm_stats::merge(x, 1), vec![partials, untouched(8)]).swap_remove(1);
    for c in 0..3 {
        let channel: Vec<f64> = values.iter().skip(c).step_by(4).map(|v| f64::from(*v)).collect();
        let count = channel.len() as f64;
        let mean = channel.iter().sum::<f64>() / count;
        let var = channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        assert!((f64::from(moments[c]) - mean).abs() <= 1e-7 * mean, "mean {} is not {mean}", moments[c]);
        assert!((f64::from(moments[4 + c]) - var).abs() <= 1e-5 * var, "variance {} is not {var}", moments[4 + c]);
    }
}

#[test]
fn cumulative_moments_are_the_mean_of_all_batches() {
    let rng = &mut Rng(4);
    let mut running = vec![0.0; 12];
    let mut sums = [0.0f64; 8];
    for _ in 0..5 {
        let batch = rng.tensor(Shape::rows(2, 4));
        sums.iter_mut().zip(&batch).for_each(|(sum, value)| *sum += f64::from(*value));
        running =
            on(&devices()[1], &batch_norm_update::update(4, None, false, 10, 1), vec![batch, running]).swap_remove(1);
    }
    assert_eq!(running[8..], [5.0; 4]);
    for (found, sum) in running.iter().zip(sums) {
        assert!((f64::from(*found) - sum / 5.0).abs() < 1e-6, "{found} is not {}", sum / 5.0);
    }
}

fn sums() -> Vec<Case> {
    let rng = &mut Rng(5);
    let mut cases = vec![];
    for x in shapes(rng) {
        let (len, count) = (channel_sum::partials_len(x), channel_sum::partials_count(x));
        let buffers = vec![rng.tensor(x), untouched(len * count)];
        let dispatch = channel_sum::partial(x);
        cases.push(Case::new(x, dispatch, buffers, 1e-5).padded("partials", Shape::rows(count, x.c())));
    }
    for (len, count) in [(4, 1), (4, 257), (260, 3), (1028, 12)] {
        let buffers = vec![rng.tensor(Shape::rows(count, len)), untouched(len)];
        cases.push(Case::new(format!("{count} × {len}"), sum_partials::forward(len, count), buffers, 0.0));
    }
    cases
}

#[test]
fn sums_match_their_references() {
    sums().into_iter().for_each(Case::check);
}

fn folding() -> Vec<Case> {
    let rng = &mut Rng(6);
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

#[test]
fn folding_kernels_match_their_references() {
    folding().into_iter().for_each(Case::check);
}

/// Windows of every parity: overlapping, apart, padded on all sides or some, and over the whole image.
fn windows(rng: &mut Rng) -> Vec<(Shape, Shape, Geometry)> {
    let mut all = vec![];
    let mut push = |x: Shape, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 4]| {
        let [top, left, bottom, right] = padding;
        let side = |size: usize, kernel: usize, stride: usize| (size - kernel) / stride + 1;
        let oh = side(x.h() + top + bottom, kernel[0], stride[0]);
        let ow = side(x.w() + left + right, kernel[1], stride[1]);
        all.push((x, Shape::nhwc(x.n(), oh, ow, x.c()), Geometry { kernel, stride, padding }));
    };
    push(Shape::nhwc(1, 1, 1, 1), [1, 1], [1, 1], [0; 4]);
    push(Shape::nhwc(2, 7, 5, 3), [7, 5], [1, 1], [0; 4]);
    push(Shape::nhwc(2, 9, 12, 5), [3, 3], [2, 2], [1, 1, 1, 1]);
    push(Shape::nhwc(1, 8, 7, 6), [3, 3], [1, 1], [1, 1, 1, 1]);
    push(Shape::nhwc(1, 11, 13, 9), [2, 3], [3, 2], [0, 1, 1, 2]);
    push(Shape::nhwc(1, 10, 10, 4), [2, 2], [4, 5], [0; 4]);
    push(Shape::nhwc(1, 17, 18, 2), [16, 16], [1, 1], [0; 4]);
    for _ in 0..6 {
        let mut one = |low, high| low + rng.below(high - low + 1);
        let kernel = [one(1, 5), one(1, 5)];
        let padding = [one(0, kernel[0] - 1), one(0, kernel[1] - 1), one(0, kernel[0] - 1), one(0, kernel[1] - 1)];
        let x = Shape::nhwc(one(1, 3), one(5, 14), one(5, 14), one(1, 20));
        push(x, kernel, [one(1, 4), one(1, 4)], padding);
    }
    all
}

fn pooling() -> Vec<Case> {
    let rng = &mut Rng(7);
    let mut cases = vec![];
    for (x, out, g) in windows(rng) {
        let what = format!("{x} → {out}, {g:?}");
        // Few different values, so that there are ties.
        let values: Vec<f32> = rng.tensor(x).iter().map(|v| (v * 4.0).round()).collect();
        let quads = out.pixels() * out.stored_c() / 4;
        for argmax in [false, true] {
            let buffers = vec![values.clone(), untouched(out.stored_len()), when(argmax, || untouched(quads))];
            let dispatch = pool::max_forward(x, out, g, argmax);
            if argmax {
                let argmax = on_host(&dispatch, buffers.clone()).swap_remove(2);
                let buffers = vec![rng.tensor(out), argmax, untouched(x.stored_len())];
                cases.push(Case::new(&what, pool::max_grad(x, out, g), buffers, 0.0).padded("x_grad", x));
            }
            cases.push(Case::new(&what, dispatch, buffers, 0.0).padded("z", out));
        }
        let buffers = vec![rng.tensor(x), untouched(out.stored_len())];
        cases.push(Case::new(&what, pool::avg_forward(x, out, g), buffers, 1e-5).padded("z", out));
        let buffers = vec![rng.tensor(out), untouched(x.stored_len())];
        cases.push(Case::new(&what, pool::avg_grad(x, out, g), buffers, 1e-5).padded("x_grad", x));
    }
    cases
}

#[test]
fn pooling_kernels_match_their_references() {
    pooling().into_iter().for_each(Case::check);
}

#[test]
fn the_first_maximum_and_every_nan_win() {
    let (x, out) = (Shape::nhwc(1, 2, 2, 4), Shape::nhwc(1, 1, 1, 4));
    let g = Geometry { kernel: [2, 2], stride: [1, 1], padding: [0; 4] };
    // By channel: a tie of the second and the last; all −∞; a NaN between numbers; a maximum at the end.
    let low = f32::NEG_INFINITY;
    let values = vec![0.0, low, 5.0, 1.0, 3.0, low, f32::NAN, 2.0, 1.0, low, 6.0, 3.0, 3.0, low, 7.0, 4.0];
    let buffers = vec![values, untouched(4), untouched(1)];
    let found = on(&devices()[1], &pool::max_forward(x, out, g, true), buffers);
    assert_eq!((found[1][0], found[1][1], found[1][3]), (3.0, low, 4.0));
    assert!(found[1][2].is_nan());
    assert_eq!(found[2][0].to_bits().to_le_bytes(), [1, 0, 1, 3]);
}

fn loss() -> Vec<Case> {
    let rng = &mut Rng(8);
    let mut cases = vec![];
    for (samples, classes) in [(1, 1), (3, 2), (5, 10), (2, 63), (7, 64), (4, 65), (2, 1000), (131, 3)] {
        let logits = Shape::nhwc(samples, 1, 1, classes);
        for smoothing in [0.0, 0.1] {
            // Halves, so that there are ties; every fourth sample is padding.
            let values: Vec<f32> =
                rng.tensor_between(logits, -8.0, 8.0).iter().map(|v| (v * 2.0).round() / 2.0).collect();
            let label = |i| if i % 4 == 3 { u32::MAX } else { rng.below(classes) as u32 };
            let labels: Vec<f32> = (0..samples).map(label).map(f32::from_bits).collect();
            let what = format!("{logits}, smoothing {smoothing}");
            let buffers = vec![values.clone(), labels.clone(), untouched(samples * 4)];
            let dispatch = softmax_cross_entropy::forward(logits, smoothing);
            cases.push(Case::new(&what, dispatch, buffers, 5e-6));
            let buffers = vec![values, labels, step_buffer(STEP), untouched(logits.stored_len())];
            let dispatch = softmax_cross_entropy::grad(logits, smoothing);
            cases.push(Case::new(&what, dispatch, buffers, 5e-6).padded("dlogits", logits));
        }
    }
    cases
}

#[test]
fn loss_kernels_match_their_references() {
    loss().into_iter().for_each(Case::check);
}

#[test]
fn a_nan_or_infinite_logit_makes_the_loss_nan() {
    let logits = Shape::nhwc(3, 1, 1, 70);
    let mut values = Rng(9).tensor(logits);
    values[69] = f32::NAN;
    values[72 + 3] = f32::INFINITY;
    let labels = vec![f32::from_bits(5); 3];
    for device in devices() {
        let buffers = vec![values.clone(), labels.clone(), untouched(12)];
        let rows = on(device, &softmax_cross_entropy::forward(logits, 0.1), buffers).swap_remove(2);
        assert!(rows[0].is_nan() && rows[4].is_nan() && rows[8].is_finite(), "{rows:?}");
        assert_eq!((rows[1], rows[2], rows[5], rows[6]), (0.0, 0.0, 0.0, 0.0));
    }
}

#[test]
fn loss_and_accuracy_of_known_logits() {
    // Two classes ln 3 apart: softmax ¾ and ¼.
    let logits = Shape::nhwc(4, 1, 1, 2);
    let ln3 = 3.0f32.ln();
    let values =
        [[ln3, 0.0], [ln3, 0.0], [1.0, 1.0], [1.0, 1.0]].iter().flat_map(|[a, b]| [*a, *b, 0.0, 0.0]).collect();
    let labels = [0, 1, 0, 1].map(f32::from_bits).to_vec();
    let buffers = vec![values, labels, untouched(16)];
    let rows = on(&devices()[1], &softmax_cross_entropy::forward(logits, 0.2), buffers).swap_remove(2);
    let (likely, unlikely) = (-(0.75f32.ln()), -(0.25f32.ln()));
    let expected = [0.9 * likely + 0.1 * unlikely, 0.1 * likely + 0.9 * unlikely, 2.0f32.ln(), 2.0f32.ln()];
    for (row, (loss, hit)) in rows.chunks(4).zip(expected.into_iter().zip([1.0, 0.0, 1.0, 0.0])) {
        assert!((row[0] - loss).abs() < 1e-6, "{} is not {loss}", row[0]);
        assert_eq!(row[1..], [hit, 1.0, 0.0]);
    }
}

fn optimisers() -> Vec<Case> {
    let rng = &mut Rng(10);
    let mut cases = vec![];
    for (range, words) in [(0..4, 4), (0..1000, 1000), (8..16, 16), (500..1024, 2000)] {
        let values = |rng: &mut Rng, low| rng.tensor_between(Shape::rows(1, words), low, 1.0);
        for lr in [1.0, 0.0, 0.3] {
            for (momentum, nesterov, decoupled) in [(0.0, false, false), (0.9, false, true), (0.9, true, false)] {
                let options = sgd::Options { lr, momentum, nesterov, weight_decay: 0.05, decoupled };
                let velocity = when(momentum != 0.0, || values(rng, -1.0));
                let buffers = vec![values(rng, -1.0), step_buffer(STEP), values(rng, -1.0), velocity];
                cases.push(Case::new(
                    format!("{range:?}, {options:?}"),
                    sgd::step(range.clone(), options),
                    buffers,
                    1e-6,
                ));
            }
            let options = adamw::Options { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 };
            let buffers =
                vec![values(rng, -1.0), step_buffer(STEP), values(rng, -1.0), values(rng, -1.0), values(rng, 0.0)];
            cases.push(Case::new(
                format!("{range:?}, {options:?}"),
                adamw::step(range.clone(), options),
                buffers,
                2e-6,
            ));
        }
        for accumulate in [0.0, 1.0] {
            let step = StepScalars { accumulate, ..STEP };
            let state = if accumulate == 0.0 { untouched(words) } else { values(rng, -1.0) };
            let buffers = vec![values(rng, -1.0), step_buffer(step), state];
            cases.push(Case::new(format!("{words} words"), accumulate::forward(words), buffers, 0.0));
        }
    }
    cases
}

#[test]
fn optimisers_match_their_references() {
    optimisers().into_iter().for_each(Case::check);
}

#[test]
fn a_learning_rate_of_zero_changes_no_bit() {
    let param = vec![-0.0, 0.0, 1.5, -1e-40];
    let grad = vec![0.0, -0.0, f32::INFINITY, 1.0];
    for lr in [0.0, 1.0] {
        let step = step_buffer(StepScalars { lr: 1.0 - lr, ..STEP });
        for device in devices() {
            let options = sgd::Options { lr, momentum: 0.9, nesterov: true, weight_decay: 0.1, decoupled: false };
            let buffers = vec![grad.clone(), step.clone(), param.clone(), vec![1.0; 4]];
            let found = on(device, &sgd::step(0..4, options), buffers);
            assert_bits("param", "after SGD", &found[2], &param);
            let options = adamw::Options { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
            let buffers = vec![grad.clone(), step.clone(), param.clone(), vec![1.0; 4], vec![1.0; 4]];
            let found = on(device, &adamw::step(0..4, options), buffers);
            assert_bits("param", "after AdamW", &found[2], &param);
        }
    }
}

#[test]
fn the_first_adamw_step_is_the_learning_rate() {
    // m/√v is the gradient's sign then, whatever its size, if 1 − β is as exact as the correction.
    let options = adamw::Options { lr: 1.0, beta1: 0.9, beta2: 0.999, eps: 1e-12, weight_decay: 0.0 };
    let step = step_buffer(StepScalars { lr: 0.5, correction1: 0.1, correction2: 0.001, ..STEP });
    let buffers = vec![vec![3.0, -0.01, 1e3, -7.0], step, vec![0.0; 4], vec![0.0; 4], vec![0.0; 4]];
    let found = on(&devices()[1], &adamw::step(0..4, options), buffers).swap_remove(2);
    for (value, expected) in found.iter().zip([-0.5, 0.5, -0.5, 0.5]) {
        assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
    }
}

fn input() -> Vec<Case> {
    let rng = &mut Rng(11);
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

#[test]
fn input_normalisation_matches_its_reference() {
    input().into_iter().for_each(Case::check);
}

fn convolution() -> Vec<Case> {
    let rng = &mut Rng(12);
    let mut cases = vec![];
    let mut shapes = vec![];
    for variant in Variant::ALL {
        shapes.extend(windows(rng).into_iter().map(|shape| (variant, shape)));
    }
    for (variant, (x, out, g)) in shapes {
        let out = Shape::nhwc(out.n(), out.h(), out.w(), 1 + rng.below(37));
        let weight = Shape([g.kernel[0], g.kernel[1], x.stored_c(), out.c()]);
        let mut values = rng.tensor(weight);
        let row = weight.stored_c();
        for (i, value) in values.iter_mut().enumerate() {
            if i / row % x.stored_c() >= x.c() {
                *value = 0.0;
            }
        }
        let what = format!("{}: {x} → {out}, {g:?}", variant.name());
        let words = out.pixels().div_ceil(TILE) * out.stored_c() / 4;
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
            let dispatch = conv2d::forward(variant, x, out, g, epilogue);
            cases.push(Case::new(format!("{what}, {epilogue:?}"), dispatch, buffers, 1e-5).padded("z", out));
        }
        for accumulate in [false, true] {
            let dx = if accumulate { rng.tensor(x) } else { untouched(x.stored_len()) };
            let buffers = vec![rng.tensor(out), values.clone(), dx];
            let dispatch = conv2d::input_grad(variant, x, out, g, accumulate);
            let what = format!("{what}, accumulate {accumulate}");
            cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("x_grad", x));
        }
        let splits = conv2d::weight_grad_splits(variant, x, out, g);
        let partials = Shape([splits * g.kernel[0], g.kernel[1], x.stored_c(), out.c()]);
        let buffers = vec![rng.tensor(x), rng.tensor(out), untouched(partials.stored_len())];
        let dispatch = conv2d::weight_grad(variant, x, out, g);
        cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("partials", partials));
    }
    cases
}

/// Depthwise and grouped convolutions: the shapes of [`windows`] where channels allow it, and those of mobile networks.
fn grouped_convolution() -> Vec<Case> {
    let (rng, variant) = (&mut Rng(31), Variant::default());
    let mut cases = vec![];
    let square = |kernel: usize, stride: usize, padding: [usize; 4]| Geometry {
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding,
    };
    let geometries = [
        square(3, 1, [1; 4]),
        square(3, 2, [1; 4]),
        square(3, 2, [0, 0, 1, 1]),
        square(5, 1, [2; 4]),
        square(5, 2, [1, 2, 2, 1]),
        square(7, 1, [3, 2, 3, 4]),
        square(7, 2, [3; 4]),
        square(1, 2, [0; 4]),
        Geometry { kernel: [2, 4], stride: [1, 2], padding: [0, 3, 2, 0] },
        Geometry { kernel: [6, 1], stride: [2, 1], padding: [5, 0, 1, 0] },
    ];
    for g in geometries {
        // Strips of one row, of several and of several images, splits of one strip and of several, and images of several
        // splits a column.
        let images = [
            (3, 11, 9, 98),
            (1, 8, 14, 13),
            (3, 1, 1, 1),
            (1, 2, 5, 8),
            (9, 7, 10, 130),
            (1, 37, 5, 10),
            (7, 3, 2, 1000),
        ];
        for (n, h, w, depthwise) in images {
            let side = |size: usize, axis: usize| {
                let padded = size + g.padding[axis] + g.padding[axis + 2];
                (padded >= g.kernel[axis]).then(|| (padded - g.kernel[axis]) / g.stride[axis] + 1)
            };
            let (Some(oh), Some(ow)) = (side(h, 0), side(w, 1)) else { continue };
            // One channel a group, and several: groups, channels in and out.
            for (groups, cin, cout) in [(depthwise, depthwise, depthwise), (3, 12, 24), (2, 16, 8)] {
                let (x, out) = (Shape::nhwc(n, h, w, cin), Shape::nhwc(n, oh, ow, cout));
                let own = groups == cin;
                let rows = if own { 1 } else { cin / groups };
                let values = rng.tensor(Shape([g.kernel[0], g.kernel[1], rows, cout]));
                let what = format!("{x} → {out} in {groups}, {g:?}");
                for (bias, residual, act) in
                    [(false, false, Act::Identity), (true, false, Act::Relu6), (true, true, Act::Silu)]
                {
                    let epilogue = Epilogue { bias, residual, act, mask: false };
                    let buffers = vec![
                        rng.tensor(x),
                        values.clone(),
                        when(bias, || rng.tensor(Shape::rows(1, cout))),
                        when(residual, || rng.tensor(out)),
                        untouched(out.stored_len()),
                    ];
                    let dispatch = match own {
                        true => depthwise::forward(variant, x, out, g, epilogue),
                        false => grouped::forward(x, out, g, groups, epilogue),
                    };
                    cases.push(Case::new(format!("{what}, {epilogue:?}"), dispatch, buffers, 1e-5).padded("z", out));
                }
                for accumulate in [false, true] {
                    let dx = if accumulate { rng.tensor(x) } else { untouched(x.stored_len()) };
                    let buffers = vec![rng.tensor(out), values.clone(), dx];
                    let dispatch = match own {
                        true => depthwise::input_grad(variant, x, out, g, accumulate),
                        false => grouped::input_grad(x, out, g, groups, accumulate),
                    };
                    let what = format!("{what}, accumulate {accumulate}");
                    cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("x_grad", x));
                }
                let (splits, dispatch) = match own {
                    true => (depthwise::weight_grad_splits(variant, out), depthwise::weight_grad(variant, x, out, g)),
                    false => (grouped::weight_grad_splits(x, out, g, groups), grouped::weight_grad(x, out, g, groups)),
                };
                let partials = Shape([splits * g.kernel[0], g.kernel[1], rows, cout]);
                let buffers = vec![rng.tensor(x), rng.tensor(out), untouched(partials.stored_len())];
                cases.push(Case::new(what, dispatch, buffers, 1e-5).padded("partials", partials));
            }
        }
    }
    cases
}

#[test]
fn grouped_convolution_kernels_match_their_references() {
    grouped_convolution().into_iter().for_each(Case::check);
}

#[test]
fn convolution_kernels_match_their_references() {
    convolution().into_iter().for_each(Case::check);
}

fn all_cases() -> impl Iterator<Item = Case> {
    let families = [
        elementwise(),
        batch_norm(),
        sums(),
        folding(),
        pooling(),
        loss(),
        optimisers(),
        input(),
        convolution(),
        grouped_convolution(),
    ];
    families.into_iter().flatten()
}

/// The bindings that hold numbers, which may be NaN.
fn holds_numbers(name: &str) -> bool {
    !["mask", "argmax", "labels", "pixels", "step"].contains(&name)
}

#[test]
fn every_kernel_hands_nan_on() {
    /// Of each kernel, with different constants; a pipeline takes longer to compile than to run.
    const PIPELINES: usize = 4;
    const CASES: usize = 3;
    let rng = &mut Rng(11);
    let device = &devices()[1];
    let mut smallest_first: Vec<_> = all_cases().filter(|case| device.supports(case.dispatch.kernel)).collect();
    smallest_first.sort_by_key(|case| case.buffers.iter().map(Vec::len).sum::<usize>());
    let mut cases: BTreeMap<&str, BTreeMap<String, Vec<Case>>> = BTreeMap::new();
    for case in smallest_first {
        let pipelines = cases.entry(case.dispatch.kernel.name).or_default();
        let constants = format!("{:?}", case.dispatch.constants);
        if pipelines.len() < PIPELINES || pipelines.contains_key(&constants) {
            let taken = pipelines.entry(constants).or_default();
            if taken.len() < CASES {
                taken.push(case);
            }
        }
    }
    let (mut poisoned, mut reached) = (BTreeSet::new(), BTreeSet::new());
    for case in cases.into_values().flat_map(BTreeMap::into_values).flatten() {
        let kernel = case.dispatch.kernel;
        for (i, binding) in kernel.bindings.iter().enumerate() {
            // What is switched off, or is written only.
            if !holds_numbers(binding.name) || case.buffers[i].iter().all(|v| v.to_bits() == UNTOUCHED) {
                continue;
            }
            poisoned.insert((kernel.name, binding.name));
            for everywhere in [true, false] {
                let mut buffers = case.buffers.clone();
                match everywhere {
                    true => buffers[i].fill(f32::NAN),
                    false => {
                        let at = rng.below(buffers[i].len());
                        buffers[i][at] = f32::NAN;
                    }
                }
                let expected = on_host(&case.dispatch, buffers.clone());
                let found = on(device, &case.dispatch, buffers);
                for ((found, expected), output) in found.iter().zip(&expected).zip(kernel.bindings) {
                    if output.access != Access::Write || !holds_numbers(output.name) {
                        continue;
                    }
                    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
                        if b.is_nan() && b.to_bits() != UNTOUCHED {
                            reached.insert((kernel.name, binding.name));
                            let (name, what, input) = (kernel.name, &case.what, binding.name);
                            assert!(a.is_nan(), "{name} ({what}): a NaN in {input}, but {}[{at}] is {a}", output.name);
                        }
                    }
                }
            }
        }
    }
    assert_eq!(reached, poisoned, "a NaN in an input reaches no output of the reference");
}

#[test]
fn every_kernel_has_cases() {
    let covered: BTreeSet<_> = all_cases().map(|case| case.dispatch.kernel.name).collect();
    let all: BTreeSet<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
    assert_eq!(covered, all);
}

#[test]
fn long_dispatches_fold_into_rows_that_every_adapter_takes() {
    for groups in [1, 65_535, 65_536, 200_001usize] {
        let [x, y, z] = accumulate::forward(groups * LINEAR as usize * 4).workgroups;
        assert!(x <= 65_535 && y <= 65_535 && z == 1, "{groups} → {x} × {y}");
        assert!((x * y) as usize >= groups && ((x * (y - 1)) as usize) < groups, "{groups} → {x} × {y}");
    }
}

/// Checks `gradient` along random directions from `at` against the change of `loss`, in f64, over a small step.
fn assert_gradient(rng: &mut Rng, shape: Shape, at: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
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
    let partials = vec![0.0; batch_norm_stats::partials_len(x, domains)];
    let partials = host(batch_norm_stats::partial(x, domains), vec![values.to_vec(), partials], 1);
    host(batch_norm_stats::merge(x, domains), vec![partials, vec![0.0; domains * 2 * x.stored_c()]], 1)
}

fn normalised(x: Shape, act: Act, values: &[f32], moments: &[f32], affine: &[f32]) -> Vec<f32> {
    let (values, domains) = (values.to_vec(), moments.len() / x.stored_c() / 2);
    let buffers = vec![values, moments.to_vec(), affine.to_vec(), unused(), vec![0.0; x.stored_len()], unused()];
    host(batch_norm_apply::forward(x, domains, EPS, act, false, false), buffers, 4)
}

/// What normalises, for [`batch_norm_gradients_are_slopes`].
#[derive(Clone, Copy, PartialEq, Debug)]
enum Moments {
    Running,
    Batch,
    Blend,
    Renorm,
}

#[test]
fn batch_norm_gradients_are_slopes() {
    let rng = &mut Rng(13);
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
        let count = batch_norm_grad::reduce_partials_count(x, domains);
        let buffers = vec![dz.clone(), values.clone(), own.clone(), by(&affine), unused(), vec![0.0; len * count]];
        let partials = host(batch_norm_grad::reduce(x, domains, EPS, act), buffers, 5);
        let sums = host(sum_partials::forward(len, count), vec![partials, vec![0.0; len]], 1);
        let total = host(sum_partials::forward(len / domains, domains), vec![sums.clone(), vec![0.0; len]], 1);
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
    let rng = &mut Rng(14);
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
    let rng = &mut Rng(15);
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

        let dx = host(pool::avg_grad(x, out, g), vec![dy.clone(), vec![0.0; x.stored_len()]], 1);
        assert_gradient(rng, x, &values, &dx, |values| {
            dot(&dy, &host(pool::avg_forward(x, out, g), vec![values.to_vec(), vec![0.0; out.stored_len()]], 1))
        });
    }
}

#[test]
fn the_loss_gradient_is_a_slope() {
    let rng = &mut Rng(16);
    let logits = Shape::nhwc(5, 1, 1, 11);
    let values = rng.tensor_between(logits, -3.0, 3.0);
    let labels = [3, 0, u32::MAX, 10, 7].map(f32::from_bits).to_vec();
    for smoothing in [0.0, 0.1] {
        let buffers = vec![values.clone(), labels.clone(), step_buffer(STEP), vec![0.0; logits.stored_len()]];
        let gradient = host(softmax_cross_entropy::grad(logits, smoothing), buffers, 3);
        assert_gradient(rng, logits, &values, &gradient, |values| {
            let buffers = vec![values.to_vec(), labels.clone(), vec![0.0; 20]];
            let rows = host(softmax_cross_entropy::forward(logits, smoothing), buffers, 2);
            rows.chunks(4).map(|row| f64::from(row[0])).sum::<f64>() * f64::from(STEP.inv_count)
        });
    }
}
