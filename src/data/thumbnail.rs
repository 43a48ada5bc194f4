//! Small copies of images, to be looked at.

use super::Image;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};

/// Of 100; high, since small images are enlarged to be looked at.
const QUALITY: u8 = 88;

/// A copy of `image` of at most `side` pixels per side, as a JPEG file. Smaller images keep their size. None if the encoder
/// refuses it.
pub fn thumbnail(image: &Image, side: u32) -> Option<Vec<u8>> {
    let scale = (f64::from(side) / f64::from(image.width.max(image.height))).min(1.0);
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let (width, height) = (scaled(image.width), scaled(image.height));
    let source = TypedImageRef::<U8x4>::from_buffer(image.width, image.height, &image.pixels).ok()?;
    let mut pixels = vec![0; width as usize * height as usize * 4];
    let mut target = TypedImage::<U8x4>::from_buffer(width, height, &mut pixels).ok()?;
    // The fourth byte is no alpha.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    Resizer::new().resize_typed(&source, &mut target, &options).ok()?;
    compress(&pixels, width as usize, height as usize, PixelFormat::Rgbx, QUALITY, Subsampling::S444).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DecodeOptions, decode::decode};
    use std::path::Path;

    #[test]
    fn a_thumbnail_shows_the_image_in_small() {
        for (width, height, expected) in
            [(400, 200, (100, 50)), (3, 900, (1, 100)), (1, 1, (1, 1)), (16, 9, (16, 9)), (9000, 1, (100, 1))]
        {
            // Red on the left, blue on the right.
            let pixel = |x| if 2 * x < width { [200, 0, 0, 9] } else { [0, 0, 200, 9] };
            let pixels = (0..height).flat_map(|_| (0..width).flat_map(pixel)).collect();
            let jpeg = thumbnail(&Image { width, height, pixels }, 100).unwrap();
            let small = decode(&jpeg, Path::new("thumbnail"), &DecodeOptions::default()).unwrap();
            assert_eq!((small.width, small.height), expected);
            let last = &small.pixels[small.pixels.len() - 4..][..3];
            assert!(width == 1 || width == 3 || last[2] > 150 && last[0] < 50, "{width}×{height}: {last:?}");
            assert!(width == 3 || width == 1 || small.pixels[0] > 150 && small.pixels[2] < 50);
        }
    }
}
