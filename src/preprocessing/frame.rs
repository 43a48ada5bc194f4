//! Where the pixels of the network's input lie in an image. Sizes are those that torchvision and timm compute, rounding
//! included.

use super::{Preprocessing, Resize};

/// One direction of an image on its way to the network's input: it is resized, and a stretch of the result is taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Axis {
    /// Pixels of the resized image; it is never computed as a whole.
    pub resized: u64,
    /// The first of them that is taken over.
    pub first: u64,
    /// How many are.
    pub len: u32,
    /// Where the first of them goes in the network's input; what is before and behind is filled.
    pub at: u32,
}

impl Axis {
    /// All of the input, from all of the image.
    pub const fn whole(size: u32) -> Self {
        Self { resized: size as u64, first: 0, len: size, at: 0 }
    }

    /// The middle of `resized` pixels in `size`, by torchvision's `center_crop`.
    fn centred(resized: u64, size: u32) -> Self {
        let apart = resized.abs_diff(size.into());
        match resized < u64::from(size) {
            true => Self { resized, first: 0, len: resized as u32, at: (apart / 2) as u32 },
            false => Self { resized, first: (apart as f64 / 2.0).round_ties_even() as u64, len: size, at: 0 },
        }
    }
}

/// The side that is resized to, so that a share of `crop` is `size`: timm's `floor(size / crop_pct)`. A share that was computed
/// as a quotient of two sizes gives the other one back.
pub(super) fn before_crop(size: u32, crop: f64) -> u64 {
    let exact = f64::from(size) / crop;
    (exact * (1.0 + 4.0 * f64::EPSILON)).floor() as u64
}

impl Preprocessing {
    /// The part of an image of `image` = \[height, width\] pixels that is resized for an input of `size`: the first pixel and
    /// their number, in each direction.
    pub fn cut(&self, image: [u32; 2], size: [u32; 2]) -> [(u32, u32); 2] {
        if self.resize != Resize::CropFirst {
            return image.map(|side| (0, side));
        }
        // Keras's `smart_resize`.
        [0, 1].map(|axis| {
            let shaped = u64::from(image[1 - axis]) * u64::from(size[axis]) / u64::from(size[1 - axis]);
            let side = shaped.clamp(1, image[axis].into()) as u32;
            ((image[axis] - side) / 2, side)
        })
    }

    /// What becomes of the [`cut`](Self::cut) of an image, `image` = \[height, width\] pixels, for an input of `size`, in each direction. Both must be at
    /// least one pixel, and `self` pass [`check`](Self::check).
    pub fn frame(&self, image: [u32; 2], size: [u32; 2]) -> [Axis; 2] {
        let target = size.map(|side| before_crop(side, self.crop));
        let ratios = [0, 1].map(|axis| f64::from(image[axis]) / target[axis] as f64);
        // timm's `ResizeKeepRatio`.
        let divided = |ratio: f64| image.map(|side| (f64::from(side) / ratio).round_ties_even().max(1.0) as u64);
        let resized = match self.resize {
            Resize::Stretch | Resize::CropFirst => target,
            Resize::Crop if target[0] == target[1] => {
                // torchvision's `Resize`.
                let shorter = u64::from(image[0].min(image[1]));
                image.map(|side| target[0] * u64::from(side) / shorter)
            }
            // Never a pixel too few to be cut from.
            Resize::Crop => {
                let resized = divided(ratios[0].min(ratios[1]));
                [0, 1].map(|axis| resized[axis].max(size[axis].into()))
            }
            Resize::Pad => divided(ratios[0].max(ratios[1])),
        };
        [0, 1].map(|axis| Axis::centred(resized[axis], size[axis]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocessing::Interpolation;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    #[test]
    fn quotients_of_sizes_give_the_sizes_back() {
        for size in 1_u32..700 {
            for resize in size..900 {
                assert_eq!(
                    before_crop(size, f64::from(size) / f64::from(resize)),
                    u64::from(resize),
                    "{size}/{resize}"
                );
            }
        }
        // Python's math.floor(224 / 0.95) and so on.
        for (size, crop, resized) in
            [(224, 0.95, 235), (224, 0.9, 248), (240, 0.882, 272), (288, 0.9, 320), (224, 0.7, 320)]
        {
            assert_eq!(before_crop(size, crop), resized);
        }
    }

    #[test]
    fn sizes_are_torchvisions() {
        let crop = Preprocessing::torchvision(224, 256, Interpolation::Bilinear);
        // Resize(256) makes 500×375 into 341×256; CenterCrop(224) starts at (58, 16), round(58.5) being even.
        let [vertical, horizontal] = crop.frame([375, 500], [224, 224]);
        assert_eq!(vertical, Axis { resized: 256, first: 16, len: 224, at: 0 });
        assert_eq!(horizontal, Axis { resized: 341, first: 58, len: 224, at: 0 });
        let stretch = Preprocessing { resize: Resize::Stretch, ..crop };
        assert_eq!(stretch.frame([375, 500], [224, 112])[1], Axis { resized: 128, first: 8, len: 112, at: 0 });
        let first = Preprocessing { resize: Resize::CropFirst, ..crop };
        assert_eq!(first.cut([375, 500], [224, 224]), [(0, 375), (62, 375)]);
        assert_eq!(first.cut([375, 500], [224, 112]), [(0, 375), (156, 187)]);
        assert_eq!(crop.cut([375, 500], [224, 224]), [(0, 375), (0, 500)]);
        let pad = Preprocessing { resize: Resize::Pad, crop: 1.0, ..crop };
        let [vertical, horizontal] = pad.frame([375, 500], [224, 224]);
        assert_eq!(vertical, Axis { resized: 168, first: 0, len: 168, at: 28 });
        assert_eq!(horizontal, Axis::whole(224));
    }

    proptest! {
        #[test]
        fn what_is_taken_over_lies_within(
            image in [1_u32..32_768, 1_u32..32_768], size in [1_u32..8192, 1_u32..8192], crop in 0.01..1.0_f64,
        ) {
            for resize in Resize::ALL {
                let preprocessing = Preprocessing { resize, crop, ..Preprocessing::default() };
                for (axis, size) in preprocessing.frame(image, size).into_iter().zip(size) {
                    prop_assert!(axis.len >= 1 && axis.first + u64::from(axis.len) <= axis.resized);
                    prop_assert!(axis.at + axis.len <= size);
                    if resize != Resize::Pad {
                        prop_assert_eq!(axis.len, size);
                    }
                }
            }
        }
    }
}
