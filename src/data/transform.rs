//! What a network is shown of an image: a part of it, resized, perhaps mirrored.

use super::{DataError, Image};
use crate::rng::Rng;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

/// What training varies at random. Mirroring is wrong for digits and letters, cropping for what fills the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Nothing: training sees what evaluation sees.
    #[default]
    None,
    /// Mirrored left to right, every other time.
    Flip,
    /// A random part of the image.
    Crop,
    CropFlip,
}

impl Augment {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Flip => "flip",
            Self::Crop => "crop",
            Self::CropFlip => "crop-flip",
        }
    }
}

/// Which part of an image evaluation sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvalCrop {
    /// torchvision's: scaled to 256/224 of the network's size (by the short side, if that is square), centre cut out.
    Centre,
    /// All of it, stretched to the network's size.
    Whole,
}

/// How images become network input: all of it, so that a run's record can be replayed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// The network's input, in pixels.
    pub height: u32,
    pub width: u32,
    pub augment: Augment,
    /// The least share of the image's area that a random crop takes, in `(0, 1]`.
    pub min_crop: f64,
    pub eval_crop: EvalCrop,
}

/// The largest network input, in pixels a side.
const MAX_SIZE: u32 = 8192;
/// Aspect ratios of random crops, relative to the network's own: torchvision's.
const RATIOS: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

impl Transform {
    /// torchvision's settings from 64 pixels on. Below, a crop of 8 % would leave a few pixels and a centre crop cut what
    /// fills a small frame, so crops take at least half of the area and evaluation sees the whole image.
    pub fn new(height: u32, width: u32, augment: Augment) -> Self {
        let (min_crop, eval_crop) =
            if height.min(width) < 64 { (0.5, EvalCrop::Whole) } else { (0.08, EvalCrop::Centre) };
        Self { height, width, augment, min_crop, eval_crop }
    }

    /// Bytes of one transformed image: `height · width · 4`.
    pub fn bytes(&self) -> usize {
        self.height as usize * self.width as usize * 4
    }

    /// # Errors
    /// A size of 0 or above 8192, or `min_crop` outside `(0, 1]`.
    pub fn check(&self) -> Result<(), DataError> {
        let sizes = 1..=MAX_SIZE;
        if !sizes.contains(&self.height) || !sizes.contains(&self.width) {
            let value = format!("{}x{}", self.height, self.width);
            return Err(DataError::Option { option: "image size", value, expected: "1 to 8192 pixels a side" });
        }
        if !(self.min_crop > 0.0 && self.min_crop <= 1.0) {
            let expected = "more than 0 and at most 1";
            return Err(DataError::Option { option: "minimum crop", value: self.min_crop.to_string(), expected });
        }
        Ok(())
    }

    /// Writes the training view of `image`, chosen by `rng`, to `out`: `[height, width, 4]`, the fourth byte 0. `self`
    /// must pass [`Transform::check`], and `out` hold [`Transform::bytes`].
    pub fn train(&self, image: &Image, rng: &mut Rng, resizer: &mut Resizer, out: &mut [u8]) {
        let flip = matches!(self.augment, Augment::Flip | Augment::CropFlip) && rng.coin();
        if matches!(self.augment, Augment::Crop | Augment::CropFlip) {
            self.resize_cut(image, self.random_crop(image.width, image.height, rng), resizer, out);
        } else {
            self.resize_eval(image, resizer, out);
        }
        self.finish(flip, out);
    }

    /// Writes what evaluation sees of `image` to `out`, as [`Transform::train`] does.
    pub fn eval(&self, image: &Image, resizer: &mut Resizer, out: &mut [u8]) {
        self.resize_eval(image, resizer, out);
        self.finish(false, out);
    }

    /// torchvision's `RandomResizedCrop.get_params`, for any aspect ratio of the network's input.
    fn random_crop(&self, width: u32, height: u32, rng: &mut Rng) -> Cut {
        let area = f64::from(width) * f64::from(height);
        let network = f64::from(self.width) / f64::from(self.height);
        let (low, high) = (RATIOS.0 * network, RATIOS.1 * network);
        for _ in 0..10 {
            let target = area * rng.range(self.min_crop, 1.0);
            let ratio = rng.range(low.ln(), high.ln()).exp();
            let (w, h) = ((target * ratio).sqrt().round() as u32, (target / ratio).sqrt().round() as u32);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.below((height - h + 1) as usize) as u32;
                let left = rng.below((width - w + 1) as usize) as u32;
                return Cut { left, top, width: w, height: h };
            }
        }
        // Too long or too tall an image for the ratios: the largest centre part that comes near them.
        let ratio = (f64::from(width) / f64::from(height)).clamp(low, high);
        let w = ((f64::from(height) * ratio).round() as u32).clamp(1, width);
        let h = ((f64::from(width) / ratio).round() as u32).clamp(1, height);
        Cut { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }

    /// Cuts first and resizes then, so that no pixel from outside the cut bleeds in.
    fn resize_cut(&self, image: &Image, cut: Cut, resizer: &mut Resizer, out: &mut [u8]) {
        let source = source_view(image);
        let part = TypedCroppedImage::from_ref(&source, cut.left, cut.top, cut.width, cut.height);
        let part = part.expect("a cut lies inside its image");
        resizer.resize_typed(&part, &mut self.target_view(out), &options()).expect("views without a crop box");
    }

    fn resize_eval(&self, image: &Image, resizer: &mut Resizer, out: &mut [u8]) {
        let [left, top, width, height] = match self.eval_crop {
            EvalCrop::Whole => [0.0, 0.0, f64::from(image.width), f64::from(image.height)],
            EvalCrop::Centre => self.centre_box(image.width, image.height),
        };
        let options = options().crop(left, top, width, height);
        let resized = resizer.resize_typed(&source_view(image), &mut self.target_view(out), &options);
        resized.expect("the centre box lies inside its image");
    }

    /// The source region `[left, top, width, height]` which, resized to the network's size, gives what torchvision's
    /// resize and centre crop give, to the pixel, without computing what the crop throws away.
    fn centre_box(&self, width: u32, height: u32) -> [f64; 4] {
        let enlarge = |size: u32| (f64::from(size) * 256.0 / 224.0).round() as u64;
        let (cover_w, cover_h) = (enlarge(self.width), enlarge(self.height));
        let (w, h) = (u64::from(width), u64::from(height));
        let (resized_w, resized_h) =
            if cover_w * h >= cover_h * w { (cover_w, cover_w * h / w) } else { (cover_h * w / h, cover_h) };
        let side = |source: u32, resized: u64, kept: u32| {
            let scale = f64::from(source) / resized as f64;
            let start = ((resized as f64 - f64::from(kept)) / 2.0).round_ties_even() * scale;
            (start, (f64::from(kept) * scale).min(f64::from(source) - start))
        };
        let (left, width) = side(width, resized_w, self.width);
        let (top, height) = side(height, resized_h, self.height);
        [left, top, width, height]
    }

    fn target_view<'a>(&self, out: &'a mut [u8]) -> TypedImage<'a, U8x4> {
        TypedImage::from_buffer(self.width, self.height, out).expect("`out` holds one image")
    }

    /// Mirrors if asked, and clears the fourth byte: the network's padding channel.
    fn finish(&self, flip: bool, out: &mut [u8]) {
        let (pixels, _) = out.as_chunks_mut::<4>();
        for pixel in pixels.iter_mut() {
            pixel[3] = 0;
        }
        if flip {
            pixels.chunks_exact_mut(self.width as usize).for_each(<[_]>::reverse);
        }
    }
}

/// A part of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// Bilinear, widened when shrinking (antialiased), as Pillow does it; the fourth byte is no alpha.
fn options() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false)
}

fn source_view(image: &Image) -> TypedImageRef<'_, U8x4> {
    TypedImageRef::from_buffer(image.width, image.height, &image.pixels).expect("an image has its pixels")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prop_assert, proptest};

    /// Red grows to the right, green downwards; the fourth byte is junk on purpose.
    fn ramp(width: u32, height: u32) -> Image {
        let share = |i: u32, n: u32| (255 * i / n.max(2).saturating_sub(1)).min(255) as u8;
        let pixel = |i: u32| [share(i % width, width), share(i / width, height), 77, 200];
        Image { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
    }

    fn run(transform: &Transform, image: &Image, rng: Option<&mut Rng>) -> Vec<[u8; 4]> {
        transform.check().unwrap();
        let mut out = vec![9; transform.bytes()];
        match rng {
            Some(rng) => transform.train(image, rng, &mut Resizer::new(), &mut out),
            None => transform.eval(image, &mut Resizer::new(), &mut out),
        }
        out.as_chunks::<4>().0.to_vec()
    }

    #[test]
    fn same_size_is_a_copy_with_a_clear_fourth_byte() {
        let image = ramp(16, 16);
        let expected: Vec<_> = image.pixels.as_chunks::<4>().0.iter().map(|p| [p[0], p[1], p[2], 0]).collect();
        assert_eq!(run(&Transform::new(16, 16, Augment::None), &image, None), expected);
        assert_eq!(run(&Transform::new(16, 16, Augment::None), &image, Some(&mut Rng::new(0))), expected);
    }

    #[test]
    fn flip_mirrors_half_of_the_time() {
        let image = ramp(8, 8);
        let transform = Transform::new(8, 8, Augment::Flip);
        let plain = run(&transform, &image, None);
        let mirrored: Vec<_> = plain.chunks(8).flat_map(|row| row.iter().rev().copied()).collect();
        let mut flips = 0;
        for seed in 0..1000 {
            let seen = run(&transform, &image, Some(&mut Rng::keyed(1, &[seed])));
            assert!(seen == plain || seen == mirrored);
            flips += usize::from(seen == mirrored);
        }
        assert!((440..560).contains(&flips), "{flips}");
    }

    #[test]
    fn crops_never_flip_unless_asked() {
        let image = ramp(40, 40);
        for seed in 0..200 {
            let seen = run(&Transform::new(16, 16, Augment::Crop), &image, Some(&mut Rng::new(seed)));
            assert!(seen.chunks(16).all(|row| row.is_sorted_by_key(|pixel| pixel[0])));
        }
    }

    #[test]
    fn crop_statistics() {
        let transform = Transform { min_crop: 0.08, ..Transform::new(224, 224, Augment::Crop) };
        let (width, height) = (500_u32, 375_u32);
        let cuts: Vec<Cut> =
            (0..20_000).map(|i| transform.random_crop(width, height, &mut Rng::keyed(4, &[i]))).collect();
        let mean = |f: &dyn Fn(&Cut) -> f64| cuts.iter().map(f).sum::<f64>() / cuts.len() as f64;
        let area = |c: &Cut| f64::from(c.width * c.height) / f64::from(width * height);
        let centre = |c: &Cut| (f64::from(c.left) + f64::from(c.width) / 2.0) / f64::from(width);
        let log_ratio = |c: &Cut| (f64::from(c.width) / f64::from(c.height)).ln();
        assert!((mean(&centre) - 0.5).abs() < 0.005);
        // Large and flat ratios do not fit and are drawn again, which pulls the mean below 0.54, as in torchvision.
        assert!((0.425..0.443).contains(&mean(&area)), "{}", mean(&area));
        for cut in &cuts {
            assert!((0.078..=1.0).contains(&area(cut)), "{cut:?}");
            assert!(log_ratio(cut).abs() < (4.0_f64 / 3.0).ln() + 0.02, "{cut:?}");
        }
        let largest = cuts.iter().map(area).fold(0.0, f64::max);
        let smallest = cuts.iter().map(area).fold(1.0, f64::min);
        assert!(largest > 0.97 && smallest < 0.085, "{smallest} {largest}");
    }

    #[test]
    fn centre_box_is_torchvisions() {
        let transform = Transform::new(224, 224, Augment::None);
        // Resize(256) makes 500×375 into 341×256; CenterCrop(224) starts at (58, 16), round(58.5) being even.
        let [left, top, width, height] = transform.centre_box(500, 375);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(left, 58.0 * 500.0 / 341.0) && close(width, 224.0 * 500.0 / 341.0));
        assert!(close(top, 16.0 * 375.0 / 256.0) && close(height, 224.0 * 375.0 / 256.0));
        assert_eq!(transform.centre_box(256, 256), [16.0, 16.0, 224.0, 224.0]);
    }

    #[test]
    fn survives_its_serialised_form() {
        let transform = Transform::new(64, 96, Augment::CropFlip);
        let text = serde_json::to_string(&transform).unwrap();
        assert!(text.contains(r#""augment":"crop-flip""#), "{text}");
        assert_eq!(serde_json::from_str::<Transform>(&text).unwrap(), transform);
    }

    #[test]
    fn bad_settings_are_named() {
        let transform = Transform::new(32, 32, Augment::Crop);
        for (bad, word) in [
            (Transform { height: 0, ..transform.clone() }, "0x32"),
            (Transform { width: 9000, ..transform.clone() }, "32x9000"),
            (Transform { min_crop: 0.0, ..transform.clone() }, "minimum crop is 0"),
            (Transform { min_crop: 1.5, ..transform.clone() }, "1.5"),
            (Transform { min_crop: f64::NAN, ..transform.clone() }, "NaN"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_size_of_image_and_network(
            (width, height) in (1_u32..90, 1_u32..90), (w, h) in (1_u32..70, 1_u32..70), seed: u64, whole: bool,
        ) {
            let image = ramp(width, height);
            let mut transform = Transform::new(h, w, Augment::CropFlip);
            transform.eval_crop = if whole { EvalCrop::Whole } else { EvalCrop::Centre };
            transform.min_crop = 0.08;
            for pixels in [run(&transform, &image, None), run(&transform, &image, Some(&mut Rng::new(seed)))] {
                prop_assert!(pixels.iter().all(|p| p[2] == 77 && p[3] == 0));
            }
        }

        #[test]
        fn centre_box_lies_inside(width in 1_u32..32_768, height in 1_u32..32_768, w in 1_u32..8192, h in 1_u32..8192) {
            let [left, top, box_w, box_h] = Transform::new(h, w, Augment::None).centre_box(width, height);
            prop_assert!(left >= 0.0 && box_w > 0.0 && left + box_w <= f64::from(width));
            prop_assert!(top >= 0.0 && box_h > 0.0 && top + box_h <= f64::from(height));
        }
    }
}
