//! How an image becomes a network's input: which part of it the network sees, how that is resized, and what becomes of a
//! pixel's values.
//!
//! A [`Preprocessing`] belongs to a network as its layers do: the same weights give other results for images that are
//! prepared in another way. [`Traced`] also says where each part of it comes from.

mod frame;
mod traced;

pub use frame::Axis;
pub use traced::{Parts, Traced};

use serde::{Deserialize, Serialize};

/// The metadata key of a weights file whose network has a name; the value is the JSON of a [`Preprocessing`].
pub const PREPROCESSING: &str = "preprocessing";

/// The statistics of ImageNet, which torchvision's weights expect.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// See [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How an image is brought to the size of the network's input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The whole image, whatever its shape: Keras's `image_dataset_from_directory`, timm's `crop_mode="squash"`.
    Stretch,
    /// By the shorter side, and the centre is cut out: torchvision, timm's `crop_mode="center"`.
    Crop,
    /// The largest part from the centre that has the input's shape, and it is stretched: Keras's `crop_to_aspect_ratio`.
    CropFirst,
    /// By the longer side, and the rest is filled with the network's mean colour: timm's `crop_mode="border"`.
    Pad,
}

impl Resize {
    pub const ALL: [Self; 4] = [Self::Stretch, Self::Crop, Self::CropFirst, Self::Pad];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Crop => "crop",
            Self::CropFirst => "crop-first",
            Self::Pad => "pad",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How pixels between pixels are computed.
///
/// An antialiased filter is widened when an image shrinks, so that every pixel counts: Pillow, and with it torchvision and
/// timm. Without, only the pixels next to a point count: TensorFlow, and with it Keras.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// The pixel at that place; of two, by Pillow's rounding.
    Nearest,
    /// Pillow's `BILINEAR`, antialiased.
    Bilinear,
    /// Pillow's `BICUBIC`, antialiased.
    Bicubic,
    /// The pixel at that place; of two, by TensorFlow's rounding.
    TfNearest,
    /// TensorFlow's `bilinear`.
    TfBilinear,
    /// TensorFlow's `bicubic`.
    TfBicubic,
}

impl Interpolation {
    pub const ALL: [Self; 6] =
        [Self::Nearest, Self::Bilinear, Self::Bicubic, Self::TfNearest, Self::TfBilinear, Self::TfBicubic];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::TfNearest => "tf-nearest",
            Self::TfBilinear => "tf-bilinear",
            Self::TfBicubic => "tf-bicubic",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|interpolation| interpolation.name() == name)
    }

    /// The form of it that Keras and TensorFlow mean by the same word.
    pub const fn of_tensorflow(self) -> Self {
        match self {
            Self::Nearest | Self::TfNearest => Self::TfNearest,
            Self::Bilinear | Self::TfBilinear => Self::TfBilinear,
            Self::Bicubic | Self::TfBicubic => Self::TfBicubic,
        }
    }
}

/// How an image becomes a network's input.
///
/// The default shows the whole image, stretched, bilinear and antialiased, with values from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    pub resize: Resize,
    /// The share of the resized image, by its side, that the network sees, from 0.01 to 1: an image is resized to the
    /// network's size over this, rounded down, and the centre is cut out. timm's `crop_pct`.
    pub crop: f64,
    pub interpolation: Interpolation,
    /// What is subtracted from red, green and blue, as values from 0 to 1.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub std: [f32; 3],
    /// Whether the network then takes blue first, as Caffe's did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bgr: bool,
}

impl Default for Preprocessing {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// A part of a [`Preprocessing`] with a value that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{part}` is {value}: expected {expected}")]
pub struct PreprocessingError {
    pub part: &'static str,
    pub value: String,
    pub expected: &'static str,
}

impl Preprocessing {
    const WHOLE: Self = Self {
        resize: Resize::Stretch,
        crop: 1.0,
        interpolation: Interpolation::Bilinear,
        mean: [0.0; 3],
        std: [1.0; 3],
        bgr: false,
    };

    /// What an image is normalised by, and otherwise the default.
    pub const fn normalised(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self { mean, std, ..Self::WHOLE }
    }

    /// torchvision's: the shorter side to `resize` pixels, then the centre `size` × `size`; ImageNet's mean and deviation.
    pub const fn torchvision(size: usize, resize: usize, interpolation: Interpolation) -> Self {
        let normalised = Self::normalised(IMAGENET_MEAN, IMAGENET_STD);
        Self { resize: Resize::Crop, crop: size as f64 / resize as f64, interpolation, ..normalised }
    }

    /// As Keras's `image_dataset_from_directory` does it by default: the whole image, not antialiased.
    pub const fn keras(mean: [f32; 3], std: [f32; 3], bgr: bool) -> Self {
        let normalised = Self::normalised(mean, std);
        Self { interpolation: Interpolation::TfBilinear, bgr, ..normalised }
    }

    /// # Errors
    /// A crop outside 0.01 to 1, a mean that is not finite, or a deviation that is not above 0.
    pub fn check(&self) -> Result<(), PreprocessingError> {
        let Self { crop, mean, std, .. } = self;
        let wrong = |part, value: String, expected| Err(PreprocessingError { part, value, expected });
        if !(0.01..=1.0).contains(crop) {
            return wrong("crop", crop.to_string(), "a share from 0.01 to 1");
        }
        if mean.iter().any(|mean| !mean.is_finite()) {
            return wrong("mean", format!("{mean:?}"), "finite numbers, for values from 0 to 1");
        }
        if std.iter().any(|&std| !(std > 0.0 && std.is_finite())) {
            return wrong("std", format!("{std:?}"), "numbers above 0, for values from 0 to 1");
        }
        Ok(())
    }

    /// The text that a weights file keeps under [`PREPROCESSING`].
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and words are always JSON")
    }

    /// Reads [`json`](Self::json).
    ///
    /// # Errors
    /// Another text, or a value that makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        parsed.check().map_err(|error| error.to_string())?;
        Ok(parsed)
    }

    /// The colour that the network sees as zeros, with which [`Resize::Pad`] fills: 0 to 255.
    pub fn fill(&self) -> [u8; 3] {
        self.mean.map(|mean| (255.0 * f64::from(mean)).round_ties_even().clamp(0.0, 255.0) as u8)
    }

    /// In words, for a network of `size` = (height, width) pixels.
    pub fn describe(&self, size: (usize, usize)) -> String {
        let Self { resize, crop, interpolation, mean, std, bgr } = self;
        let (height, width) = size;
        let [tall, wide] =
            [height, width].map(|side| frame::before_crop(u32::try_from(side).unwrap_or(u32::MAX), *crop));
        let kept = match (tall, wide) == (height as u64, width as u64) {
            true => String::new(),
            false => format!(", centre {height}×{width} kept (crop {})", short(*crop)),
        };
        let brought = match resize {
            Resize::Stretch => format!("stretched to {tall}×{wide}{kept}"),
            Resize::Crop if tall == wide => {
                let kept = if kept.is_empty() { format!(", centre {height}×{width} kept (crop 1)") } else { kept };
                format!("shorter side to {tall}{kept}")
            }
            Resize::Crop => {
                format!("resized to cover {tall}×{wide}, centre {height}×{width} kept (crop {})", short(*crop))
            }
            Resize::CropFirst => format!("cut to the shape of {height}×{width}, stretched to {tall}×{wide}{kept}"),
            Resize::Pad => format!("fitted into {tall}×{wide} and padded{kept}"),
        };
        let interpolation = match interpolation {
            Interpolation::Nearest => "nearest",
            Interpolation::TfNearest => "nearest, as in TensorFlow",
            Interpolation::Bilinear => "bilinear, antialiased",
            Interpolation::Bicubic => "bicubic, antialiased",
            Interpolation::TfBilinear => "bilinear, not antialiased",
            Interpolation::TfBicubic => "bicubic, not antialiased",
        };
        let order = if *bgr { "BGR" } else { "RGB" };
        let numbers = |values: &[f32; 3]| match values {
            [a, b, c] if a == b && b == c => short(f64::from(*a)),
            values => values.map(|value| short(f64::from(value))).join(" "),
        };
        let range = |at: f32| short(f64::from((at - mean[0]) / std[0]));
        let is_even = mean.iter().all(|value| *value == mean[0]) && std.iter().all(|value| *value == std[0]);
        let range = if is_even { format!("values {} to {}, ", range(0.0), range(1.0)) } else { String::new() };
        format!("{brought}; {interpolation}; {range}mean {}, std {}, {order}", numbers(mean), numbers(std))
    }
}

/// At most four digits behind the point, and a minus that is one.
fn short(value: f64) -> String {
    // Without a trace of rounding, and never `-0`.
    let rounded = (value * 1e4).round() / 1e4 + 0.0;
    rounded.to_string().replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        for mode in Resize::ALL {
            assert_eq!(Resize::of_name(mode.name()), Some(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
        for interpolation in Interpolation::ALL {
            assert_eq!(Interpolation::of_name(interpolation.name()), Some(interpolation));
            assert_eq!(serde_json::to_value(interpolation).unwrap(), interpolation.name());
        }
        let caffe = Preprocessing::keras([123.68 / 255.0, 0.1, 0.0], [1.0 / 255.0; 3], true);
        for one in [caffe, Preprocessing::torchvision(224, 232, Interpolation::Bicubic), Preprocessing::default()] {
            assert_eq!(Preprocessing::parse(&one.json()), Ok(one));
        }
        assert!(Preprocessing::parse(r#"{"resize": "crop"}"#).unwrap_err().contains("missing field"));
        let bad = Preprocessing { crop: 1.5, ..Preprocessing::default() };
        assert_eq!(Preprocessing::parse(&bad.json()).unwrap_err(), "`crop` is 1.5: expected a share from 0.01 to 1");
        let bad = Preprocessing { std: [0.0, 1.0, 1.0], ..Preprocessing::default() };
        assert!(bad.check().unwrap_err().to_string().starts_with("`std` is [0.0, 1.0, 1.0]"));
        let bad = Preprocessing { mean: [0.0, f32::NAN, 1.0], ..Preprocessing::default() };
        assert_eq!(bad.check().unwrap_err().part, "mean");
    }

    #[test]
    fn descriptions_say_every_part() {
        for (preprocessing, size, text) in [
            (
                Preprocessing::torchvision(224, 232, Interpolation::Bilinear),
                (224, 224),
                "shorter side to 232, centre 224×224 kept (crop 0.9655); bilinear, antialiased; mean 0.485 0.456 0.406, \
                 std 0.229 0.224 0.225, RGB",
            ),
            (
                Preprocessing::keras([0.0; 3], [1.0 / 255.0; 3], true),
                (64, 48),
                "stretched to 64×48; bilinear, not antialiased; values 0 to 255, mean 0, std 0.0039, BGR",
            ),
            (
                Preprocessing {
                    resize: Resize::Pad,
                    crop: 0.9,
                    interpolation: Interpolation::Nearest,
                    ..Preprocessing::normalised([0.5; 3], [0.5; 3])
                },
                (90, 90),
                "fitted into 100×100 and padded, centre 90×90 kept (crop 0.9); nearest; values −1 to 1, mean 0.5, std \
                 0.5, RGB",
            ),
            (
                Preprocessing { resize: Resize::Crop, ..Preprocessing::default() },
                (64, 48),
                "resized to cover 64×48, centre 64×48 kept (crop 1); bilinear, antialiased; values 0 to 1, mean 0, std 1, \
                 RGB",
            ),
        ] {
            assert_eq!(preprocessing.describe(size), text);
        }
    }
}
