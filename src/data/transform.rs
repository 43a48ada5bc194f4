//! What a network is shown of an image: a part of it, resized, perhaps mirrored.

use super::sampling::{self, Tap};
use super::{DataError, Image};
use crate::preprocessing::{Axis, Interpolation, Preprocessing};
use crate::rng::Rng;
use fast_image_resize::images::{TypedCroppedImage, TypedCroppedImageMut, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions};
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

/// Memory for resizing, kept from image to image.
#[derive(Debug, Default)]
pub struct Resizer {
    inner: fast_image_resize::Resizer,
    /// Rows of the source, resized to the width that they will have.
    rows: Vec<u8>,
}

impl Resizer {
    pub fn new() -> Self {
        Self::default()
    }
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
    /// What evaluation sees of an image; training does, too, unless it crops at random, and then resizes in the same way.
    pub preprocessing: Preprocessing,
}

/// The largest network input, in pixels per side.
const MAX_SIZE: u32 = 8192;
/// Aspect ratios of random crops, relative to the network's own: torchvision's.
const RATIOS: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

impl Transform {
    /// Random crops take at least 8 % of the area, as torchvision's do; below 64 pixels that would leave a few of them, and it
    /// is half.
    pub fn new(height: u32, width: u32, augment: Augment, preprocessing: Preprocessing) -> Self {
        let min_crop = if height.min(width) < 64 { 0.5 } else { 0.08 };
        Self { height, width, augment, min_crop, preprocessing }
    }

    /// Bytes of one transformed image: `height · width · 4`.
    pub fn bytes(&self) -> usize {
        self.height as usize * self.width as usize * 4
    }

    /// # Errors
    /// A size of 0 or above 8192, `min_crop` outside `(0, 1]`, or those of [`Preprocessing::check`].
    pub fn check(&self) -> Result<(), DataError> {
        let sizes = 1..=MAX_SIZE;
        if !sizes.contains(&self.height) || !sizes.contains(&self.width) {
            let value = format!("{}x{}", self.height, self.width);
            return Err(DataError::Option { option: "image size", value, expected: "1 to 8192 pixels per side" });
        }
        if !(self.min_crop > 0.0 && self.min_crop <= 1.0) {
            let expected = "more than 0 and at most 1";
            return Err(DataError::Option { option: "minimum crop", value: self.min_crop.to_string(), expected });
        }
        Ok(self.preprocessing.check()?)
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
        self.resize(image, cut, [self.height, self.width].map(Axis::whole), resizer, out);
    }

    fn resize_eval(&self, image: &Image, resizer: &mut Resizer, out: &mut [u8]) {
        let size = [self.height, self.width];
        let [(top, height), (left, width)] = self.preprocessing.cut([image.height, image.width], size);
        let cut = Cut { left, top, width, height };
        let frame = self.preprocessing.frame([height, width], size);
        if frame[0].len < self.height || frame[1].len < self.width {
            let [red, green, blue] = self.preprocessing.fill();
            out.as_chunks_mut().0.fill([red, green, blue, 0]);
        }
        self.resize(image, cut, frame, resizer, out);
    }

    /// Writes the part `cut` of the image to where `frame` says.
    fn resize(&self, image: &Image, cut: Cut, frame: [Axis; 2], resizer: &mut Resizer, out: &mut [u8]) {
        let (filter, support) = match self.preprocessing.interpolation {
            Interpolation::Bilinear => (FilterType::Bilinear, 1.0),
            Interpolation::Bicubic => (FilterType::CatmullRom, 2.0),
            Interpolation::Nearest => return self.sample(image, cut, frame, sampling::nearest, out),
            Interpolation::TfNearest => return self.sample(image, cut, frame, sampling::tf_nearest, out),
            Interpolation::TfBilinear => return self.sample(image, cut, frame, sampling::bilinear, out),
            Interpolation::TfBicubic => return self.sample(image, cut, frame, sampling::bicubic, out),
        };
        let [vertical, horizontal] = frame;
        // What of the source, resized to the pixels that are taken over, gives what resizing all of it would give there.
        let region = |axis: Axis, source: u32| {
            let scale = f64::from(source) / axis.resized as f64;
            let start = axis.first as f64 * scale;
            (start, (f64::from(axis.len) * scale).min(f64::from(source) - start))
        };
        let ((left, width), (top, height)) = (region(horizontal, cut.width), region(vertical, cut.height));
        // The rows that count for any of them.
        let reach = support * (f64::from(cut.height) / vertical.resized as f64).max(1.0);
        let first = ((top - reach).floor().max(0.0) as u32).min(cut.height - 1);
        let last = ((top + height + reach).ceil() as u32).clamp(first + 1, cut.height);

        // Pillow's order, with bytes between the two: the other one differs by more than rounding where a cubic overshoots.
        let source = TypedImageRef::<U8x4>::from_buffer(image.width, image.height, &image.pixels);
        let source = source.expect("an image has its pixels");
        let part = TypedCroppedImage::from_ref(&source, cut.left, cut.top + first, cut.width, last - first);
        let part = part.expect("a cut lies inside its image");
        let Resizer { inner, rows } = resizer;
        rows.resize(horizontal.len as usize * (last - first) as usize * 4, 0);
        let narrow = TypedImage::<U8x4>::from_buffer(horizontal.len, last - first, rows);
        let mut narrow = narrow.expect("the buffer has that many bytes");
        // The fourth byte is no alpha.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        let resized = inner.resize_typed(&part, &mut narrow, &options.crop(left, 0.0, width, f64::from(last - first)));
        resized.expect("the region lies inside its image");

        let target = TypedImage::<U8x4>::from_buffer(self.width, self.height, out).expect("`out` holds one image");
        let target = TypedCroppedImageMut::new(target, horizontal.at, vertical.at, horizontal.len, vertical.len);
        let mut target = target.expect("what is taken over lies inside the input");
        let top = top - f64::from(first);
        let height = height.min(f64::from(last - first) - top);
        let options = options.crop(0.0, top, f64::from(horizontal.len), height);
        inner.resize_typed(&narrow, &mut target, &options).expect("the rows lie inside what was resized");
    }

    /// As [`resize`](Self::resize), from the `N` pixels next to each point in each direction.
    fn sample<const N: usize>(
        &self,
        image: &Image,
        cut: Cut,
        [vertical, horizontal]: [Axis; 2],
        taps: impl Fn(Axis, u32) -> Vec<[Tap; N]>,
        out: &mut [u8],
    ) {
        let (rows, columns) = (taps(vertical, cut.height), taps(horizontal, cut.width));
        let source = image.pixels.as_chunks::<4>().0;
        let lines = out.as_chunks_mut::<4>().0.chunks_exact_mut(self.width as usize).skip(vertical.at as usize);
        for (line, row) in lines.zip(&rows) {
            for (pixel, column) in line[horizontal.at as usize..].iter_mut().zip(&columns) {
                let mut sum = [0.0; 3];
                for Tap { at: y, weight: vertical } in row {
                    let start = (cut.top + y) as usize * image.width as usize + cut.left as usize;
                    for Tap { at: x, weight } in column {
                        let from = source[start + *x as usize];
                        let weight = vertical * weight;
                        (0..3).for_each(|c| sum[c] += weight * f32::from(from[c]));
                    }
                }
                // Casting clamps: a cubic overshoots.
                (0..3).for_each(|c| pixel[c] = sum[c].round_ties_even() as u8);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocessing::Resize;
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    const WHOLE: Preprocessing = Preprocessing::normalised([0.0; 3], [1.0; 3]);

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
        assert_eq!(run(&Transform::new(16, 16, Augment::None, WHOLE), &image, None), expected);
        assert_eq!(run(&Transform::new(16, 16, Augment::None, WHOLE), &image, Some(&mut Rng::new(0))), expected);
    }

    #[test]
    fn flip_mirrors_half_of_the_time() {
        let image = ramp(8, 8);
        let transform = Transform::new(8, 8, Augment::Flip, WHOLE);
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
            let seen = run(&Transform::new(16, 16, Augment::Crop, WHOLE), &image, Some(&mut Rng::new(seed)));
            assert!(seen.chunks(16).all(|row| row.is_sorted_by_key(|pixel| pixel[0])));
        }
    }

    #[test]
    fn crop_statistics() {
        let transform = Transform { min_crop: 0.08, ..Transform::new(224, 224, Augment::Crop, WHOLE) };
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
    fn survives_its_serialised_form() {
        let transform = Transform::new(64, 96, Augment::CropFlip, WHOLE);
        let text = serde_json::to_string(&transform).unwrap();
        assert!(text.contains(r#""augment":"crop-flip""#), "{text}");
        assert_eq!(serde_json::from_str::<Transform>(&text).unwrap(), transform);
    }

    #[test]
    fn bad_settings_are_named() {
        let transform = Transform::new(32, 32, Augment::Crop, WHOLE);
        for (bad, word) in [
            (Transform { height: 0, ..transform.clone() }, "0x32"),
            (Transform { width: 9000, ..transform.clone() }, "32x9000"),
            (Transform { min_crop: 0.0, ..transform.clone() }, "minimum crop is 0"),
            (Transform { min_crop: 1.5, ..transform.clone() }, "1.5"),
            (Transform { min_crop: f64::NAN, ..transform.clone() }, "NaN"),
            (
                Transform { preprocessing: Preprocessing { crop: 2.0, ..WHOLE }, ..transform.clone() },
                "`crop` is 2: expected a share from 0.01 to 1",
            ),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    proptest! {
        // Each goes through all modes and interpolations.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_size_of_image_and_network(
            (width, height) in (1_u32..90, 1_u32..90), (w, h) in (1_u32..70, 1_u32..70), seed: u64, crop in 0.3..1.0_f64,
        ) {
            let image = ramp(width, height);
            for (resize, interpolation) in
                Resize::ALL.into_iter().flat_map(|mode| Interpolation::ALL.map(|interpolation| (mode, interpolation)))
            {
                // Padded with as much blue as the image has.
                let mean = [0.0, 0.0, 77.0 / 255.0];
                let preprocessing = Preprocessing { resize, crop, interpolation, mean, ..WHOLE };
                let transform = Transform { min_crop: 0.08, ..Transform::new(h, w, Augment::CropFlip, preprocessing) };
                for pixels in [run(&transform, &image, None), run(&transform, &image, Some(&mut Rng::new(seed)))] {
                    prop_assert!(pixels.iter().all(|p| p[2] == 77 && p[3] == 0), "{preprocessing:?}");
                }
            }
        }
    }
}
