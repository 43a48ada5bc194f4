//! Shapes and random values.

use crate::kernels::conv2d::Variant;
use crate::kernels::segments::Table;
use crate::kernels::{StepScalars, Window};
use crate::rng::Rng;
use crate::tensor::{Shape, pad4};

/// Marks words that nobody wrote: a NaN that no computation makes.
pub(super) const UNTOUCHED: u32 = 0x7fc0_dead;

pub(super) const EPS: f32 = 1e-5;

pub(super) const STEP: StepScalars = StepScalars {
    lr: 0.1,
    correction1: 0.271,
    correction2: 0.003,
    inv_count: 0.125,
    accumulate: 1.0,
    draw: 3,
    seed: [0xffff_ffff, 7],
};

pub(super) fn step_buffer(step: StepScalars) -> Vec<f32> {
    bytemuck::cast_slice(&[step]).to_vec()
}

pub(super) fn table_buffer(table: &Table) -> Vec<f32> {
    table.words().iter().map(|word| f32::from_bits(*word)).collect()
}

pub(super) fn untouched(words: usize) -> Vec<f32> {
    vec![f32::from_bits(UNTOUCHED); words]
}

/// What stands in for a buffer that a flag switches off.
pub(super) fn unused() -> Vec<f32> {
    untouched(4)
}

/// `buffer` if the flag wants it.
pub(super) fn when(wanted: bool, buffer: impl FnOnce() -> Vec<f32>) -> Vec<f32> {
    if wanted { buffer() } else { unused() }
}

/// The same values everywhere.
pub(super) struct Random(Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed))
    }

    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n)
    }

    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        self.0.range(low.into(), high.into()) as f32
    }

    /// A tensor with values in −1…1 and zeros in the padding.
    pub fn tensor(&mut self, shape: Shape) -> Vec<f32> {
        self.tensor_between(shape, -1.0, 1.0)
    }

    pub fn tensor_between(&mut self, shape: Shape, low: f32, high: f32) -> Vec<f32> {
        let stored = shape.stored_c();
        let value = |i| if i % stored < shape.c() { self.between(low, high) } else { 0.0 };
        (0..shape.stored_len()).map(value).collect()
    }

    /// Mean, variance and count of each channel.
    pub fn moments(&mut self, c: usize) -> Vec<f32> {
        let mut rows = self.domains(c, 1);
        rows.extend(vec![3.0; pad4(c)]);
        rows
    }

    /// Mean and variance of each channel in each domain.
    pub fn domains(&mut self, c: usize, domains: usize) -> Vec<f32> {
        let row = Shape::rows(1, c);
        (0..domains).flat_map(|_| [self.tensor(row), self.tensor_between(row, 0.1, 2.0)].concat()).collect()
    }

    /// A mask of `x`, with no bits in the padding.
    pub fn mask(&mut self, x: Shape) -> Vec<f32> {
        let values = self.tensor(x);
        let words = x.pixels().div_ceil(8) * x.quads();
        let mut mask = vec![0u32; words];
        for (i, value) in values.iter().enumerate() {
            let (pixel, c) = (i / x.stored_c(), i % x.stored_c());
            if *value > 0.0 {
                mask[pixel / 8 * (x.quads()) + c / 4] |= 1 << (pixel % 8 * 4 + c % 4);
            }
        }
        mask.into_iter().map(f32::from_bits).collect()
    }
}

/// The two forms of a reduction: by an invocation for each part, and by a workgroup.
pub(super) const FORMS: [Variant; 2] = [Variant::Direct, Variant::Workgroup];

/// One channel, one pixel, no multiples of four or eight, several chunks, and more pixels than the most chunks hold at
/// their smallest; then some at random.
pub(super) fn shapes(rng: &mut Random) -> Vec<Shape> {
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

/// Windows of every parity: overlapping, apart, padded on all sides or some, and over the whole image.
pub(super) fn windows(rng: &mut Random) -> Vec<(Shape, Shape, Window)> {
    let mut all = vec![];
    let mut push = |x: Shape, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 4]| {
        let [top, left, bottom, right] = padding;
        let side = |size: usize, kernel: usize, stride: usize| (size - kernel) / stride + 1;
        let oh = side(x.h() + top + bottom, kernel[0], stride[0]);
        let ow = side(x.w() + left + right, kernel[1], stride[1]);
        all.push((x, Shape::nhwc(x.n(), oh, ow, x.c()), Window { kernel, stride, padding }));
    };
    push(Shape::nhwc(1, 1, 1, 1), [1, 1], [1, 1], [0; 4]);
    push(Shape::nhwc(2, 7, 5, 3), [7, 5], [1, 1], [0; 4]);
    push(Shape::nhwc(2, 9, 12, 5), [3, 3], [2, 2], [1, 1, 1, 1]);
    push(Shape::nhwc(1, 8, 7, 6), [3, 3], [1, 1], [1, 1, 1, 1]);
    push(Shape::nhwc(1, 11, 13, 9), [2, 3], [3, 2], [0, 1, 1, 2]);
    push(Shape::nhwc(1, 10, 10, 4), [2, 2], [4, 5], [0; 4]);
    push(Shape::nhwc(1, 17, 18, 2), [16, 16], [1, 1], [0; 4]);
    // More channels than a workgroup computes.
    push(Shape::nhwc(1, 6, 5, 150), [2, 3], [2, 1], [0, 1, 1, 1]);
    for _ in 0..6 {
        let mut one = |low, high| low + rng.below(high - low + 1);
        let kernel = [one(1, 5), one(1, 5)];
        let padding = [one(0, kernel[0] - 1), one(0, kernel[1] - 1), one(0, kernel[0] - 1), one(0, kernel[1] - 1)];
        let x = Shape::nhwc(one(1, 3), one(5, 14), one(5, 14), one(1, 20));
        push(x, kernel, [one(1, 4), one(1, 4)], padding);
    }
    all
}
