//! Grids of convolutions with more workgroups than every device dispatches in a dimension.

use std::sync::LazyLock;
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::Act;
use thawline::kernels::conv2d::{self, Epilogue, Tiling};
use thawline::kernels::{Access, Args, Dispatch, Window};
use thawline::rng::Rng;
use thawline::tensor::Shape;

/// The most workgroups that every device dispatches in a dimension.
const LIMIT: u32 = 65_535;

const POINT: Window = Window { kernel: [1, 1], stride: [1, 1], padding: [0; 4] };

static DEVICE: LazyLock<Device> = LazyLock::new(|| Device::open(&DeviceOptions::default()).expect("a device"));

fn tilings() -> impl Iterator<Item = Tiling> {
    Tiling::all().filter(|tiling| DEVICE.supports(tiling.variant().representative()))
}

fn random(rng: &mut Rng, words: usize) -> Vec<f32> {
    (0..words).map(|_| rng.range(-1.0, 1.0) as f32).collect()
}

/// Buffers of such lengths in words, random where they are read; what is written begins as `fill`.
fn buffers(dispatch: &Dispatch, words: &[usize], fill: f32) -> Vec<Vec<f32>> {
    let mut rng = Rng::new(7);
    let bindings = dispatch.kernel.bindings.iter().zip(words);
    bindings.map(|(b, &n)| if b.access == Access::Write { vec![fill; n] } else { random(&mut rng, n) }).collect()
}

/// Runs a kernel on the device and on the host, and compares what they write.
fn check(dispatch: &Dispatch, words: &[usize], what: &str) {
    let mut found = buffers(dispatch, words, 0.5);
    let mut expected = found.clone();
    DEVICE.run(dispatch, &mut found).unwrap_or_else(|error| panic!("{what}: {error}"));
    let slices = expected.iter_mut().map(Vec::as_mut_slice).collect();
    (dispatch.kernel.reference)(Args::new(&dispatch.params, slices));
    for ((binding, found), expected) in dispatch.kernel.bindings.iter().zip(&found).zip(&expected) {
        if binding.name == "mask" {
            // A sum that is almost zero may round to either side of it.
            let pairs = found.iter().zip(expected);
            let flipped: u32 = pairs.map(|(a, b)| (a.to_bits() ^ b.to_bits()).count_ones()).sum();
            assert!(flipped <= 8, "{what}: {flipped} bits of `mask` differ");
            continue;
        }
        let first = found.iter().zip(expected).position(|(a, b)| (a - b).abs() > 1e-4 * (1.0 + b.abs()));
        assert!(first.is_none(), "{what}: `{}` differs first in word {}", binding.name, first.unwrap());
    }
}

/// The words of a forward pass's buffers, a mask's included.
fn forward_words(x: Shape, out: Shape, g: Window) -> [usize; 6] {
    let weight = g.kernel[0] * g.kernel[1] * x.stored_c() * out.stored_c();
    let mask = out.pixels().div_ceil(8) * out.stored_c() / 4;
    [x.stored_len(), weight, out.stored_c(), out.stored_len(), out.stored_len(), mask]
}

const EPILOGUE: Epilogue = Epilogue { bias: true, residual: true, act: Act::Relu, mask: true };

#[test]
fn any_folding_of_a_grid_computes_the_same() {
    // Several workgroups in each dimension, and a stride with classes that differ in size.
    let (x, out) = (Shape::nhwc(7, 13, 11, 72), Shape::nhwc(7, 7, 6, 132));
    let g = Window { kernel: [3, 3], stride: [2, 2], padding: [1; 4] };
    let weight = 9 * x.stored_c() * out.stored_c();
    for tiling in tilings() {
        let splits = conv2d::weight_grad_splits_by(tiling, x, out, g);
        let cases = [
            ("forward", conv2d::forward_by(tiling, x, out, g, EPILOGUE), forward_words(x, out, g).to_vec()),
            (
                "input gradient",
                conv2d::input_grad_by(tiling, x, out, g, true),
                vec![out.stored_len(), weight, x.stored_len()],
            ),
            (
                "weight gradient",
                conv2d::weight_grad_by(tiling, x, out, g),
                vec![x.stored_len(), out.stored_len(), splits * weight],
            ),
        ];
        for (name, plain, words) in cases {
            let all: u32 = plain.workgroups.iter().product();
            assert!(all > 3 && !plain.constants.contains(&("folded", 1.0)), "{name}: {:?}", plain.workgroups);
            // Without a rest, with one, and with layers of which some are nothing but rest.
            for workgroups in [[all, 1, 1], [1, all, 1], [all.div_ceil(2), 2, 1], [3, all.div_ceil(15), 5], [2, 2, all]]
            {
                let folded = plain.clone().folded_into(workgroups);
                check(&folded, &words, &format!("{name}, {tiling:?}, {workgroups:?}"));
            }
        }
    }
}

#[test]
fn what_is_too_large_for_a_dimension_is_folded_and_right() {
    for tiling in tilings() {
        // The fewest rows that a workgroup has: one workgroup too many.
        let [rows, _] = tiling.size();
        if rows > 32 {
            continue;
        }
        let pixels = LIMIT as usize * rows + 1;
        let x = Shape::nhwc(1, 1, pixels, 4);
        let forward = conv2d::forward_by(tiling, x, x, POINT, EPILOGUE);
        let input_grad = conv2d::input_grad_by(tiling, x, x, POINT, true);
        // A linear layer of so many inputs.
        let (flat, out) = (Shape::nhwc(1, 1, 1, pixels), Shape::nhwc(1, 1, 1, 4));
        let weight_grad = conv2d::weight_grad_by(tiling, flat, out, POINT);
        assert_eq!(conv2d::weight_grad_splits_by(tiling, flat, out, POINT), 1);
        for (name, dispatch, words) in [
            ("forward", forward, forward_words(x, x, POINT).to_vec()),
            ("input gradient", input_grad, vec![x.stored_len(), 16, x.stored_len()]),
            ("weight gradient", weight_grad, vec![flat.stored_len(), 4, flat.stored_len() * 4]),
        ] {
            let what = format!("{name}, {tiling:?}, {:?}", dispatch.workgroups);
            let all: u64 = dispatch.workgroups.iter().map(|n| u64::from(*n)).product();
            assert!(all > u64::from(LIMIT) && dispatch.workgroups.iter().all(|n| *n <= LIMIT), "{what}");
            check(&dispatch, &words, &what);
        }
    }
}
