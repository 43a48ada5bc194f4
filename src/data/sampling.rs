//! Resizing without antialiasing: which pixels of an image count for a pixel of the result, and how much.

use crate::preprocessing::Axis;

/// A pixel of the source, in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub at: u32,
    pub weight: f32,
}

/// Pillow's `NEAREST`: positions are added up, rounding and all, so that ties fall as they do there.
pub(super) fn nearest(axis: Axis, source: u32) -> Vec<[Tap; 1]> {
    let scale = f64::from(source) / axis.resized as f64;
    let mut position = scale * 0.5;
    (0..axis.first).for_each(|_| position += scale);
    (0..axis.len)
        .map(|_| {
            let at = (position as u32).min(source - 1);
            position += scale;
            [Tap { at, weight: 1.0 }]
        })
        .collect()
}

/// TensorFlow's `resize` with `method="nearest"`.
pub(super) fn tf_nearest(axis: Axis, source: u32) -> Vec<[Tap; 1]> {
    let scale = source as f32 / axis.resized as f32;
    let at = |index: u64| (((axis.first + index) as f32 + 0.5) * scale) as u32;
    (0..axis.len.into()).map(|index| [Tap { at: at(index).min(source - 1), weight: 1.0 }]).collect()
}

/// TensorFlow's `resize` with `method="bilinear"`: between the centres of two pixels; the outermost go on beyond the border.
pub(super) fn bilinear(axis: Axis, source: u32) -> Vec<[Tap; 2]> {
    let taps = |position: f32| {
        let (before, share) = (position.floor(), position - position.floor());
        let at = |step: f32| (before + step).clamp(0.0, (source - 1) as f32) as u32;
        [Tap { at: at(0.0), weight: 1.0 - share }, Tap { at: at(1.0), weight: share }]
    };
    positions(axis, source).map(taps).collect()
}

/// TensorFlow's `resize` with `method="bicubic"`: Keys' cubic with a = −1/2; pixels beyond the border do not count.
pub(super) fn bicubic(axis: Axis, source: u32) -> Vec<[Tap; 4]> {
    let cubic = |distance: f32| {
        let d = distance.abs();
        if d < 1.0 {
            (1.5 * d - 2.5) * d * d + 1.0
        } else if d < 2.0 {
            ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
        } else {
            0.0
        }
    };
    let taps = |position: f32| {
        let before = position.floor();
        let mut taps = [-1.0, 0.0, 1.0, 2.0].map(|step| {
            let at = before + step;
            let is_inside = at >= 0.0 && at < source as f32;
            Tap {
                at: if is_inside { at as u32 } else { 0 },
                weight: if is_inside { cubic(position - at) } else { 0.0 },
            }
        });
        let sum: f32 = taps.iter().map(|tap| tap.weight).sum();
        taps.iter_mut().for_each(|tap| tap.weight /= sum);
        taps
    };
    positions(axis, source).map(taps).collect()
}

/// The centres of the resized pixels among those of the source, in `f32` as TensorFlow computes them.
fn positions(axis: Axis, source: u32) -> impl Iterator<Item = f32> {
    let scale = source as f32 / axis.resized as f32;
    let first = axis.first;
    (0..u64::from(axis.len)).map(move |index| ((first + index) as f32 + 0.5) * scale - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_up_to_one_and_lie_inside() {
        for source in [1, 2, 3, 7, 100] {
            for size in [1, 2, 5, 64, 300] {
                let axis = Axis::whole(size);
                let all = nearest(axis, source).into_iter().map(Vec::from);
                let all = all.chain(tf_nearest(axis, source).into_iter().map(Vec::from));
                let all = all.chain(bilinear(axis, source).into_iter().map(Vec::from));
                let all: Vec<Vec<Tap>> = all.chain(bicubic(axis, source).into_iter().map(Vec::from)).collect();
                assert_eq!(all.len(), 4 * size as usize);
                for taps in all {
                    let sum: f32 = taps.iter().map(|tap| tap.weight).sum();
                    assert!((sum - 1.0).abs() < 1e-5 && taps.iter().all(|tap| tap.at < source), "{taps:?}");
                }
            }
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        for index in 0..9 {
            let axis = Axis::whole(9);
            let is_copy = |taps: &[Tap]| taps.iter().all(|tap| tap.weight == f32::from(u8::from(tap.at == index)));
            assert!(is_copy(&nearest(axis, 9)[index as usize]) && is_copy(&bilinear(axis, 9)[index as usize][..1]));
            assert!(is_copy(&bicubic(axis, 9)[index as usize][1..2]));
        }
    }
}
