//! How images are prepared, where the command line says so.

use super::output;
use std::path::Path;
use thawline::formats::Format;
use thawline::preprocessing::{Interpolation, Parts, Resize};

/// `--resize`, `--crop`, `--interpolation`, `--mean`, `--std`.
#[derive(clap::Args, Clone, Debug)]
pub struct PreprocessArgs {
    /// How an image is brought to the network's size: stretch (all of it), crop (by the shorter side, then the centre),
    /// crop-first (the centre in the network's shape, then stretched) or pad (by the longer side, then filled up) [default:
    /// the weights' own, which `inspect` prints; likewise for the options below]
    #[arg(long, value_name = "MODE", value_parser = resize)]
    pub resize: Option<Resize>,
    /// The share of the resized image, by its side, that is kept, from 0.01 to 1: timm's crop_pct; 0.875 is 224 of 256
    #[arg(long, value_name = "SHARE", value_parser = crop)]
    pub crop: Option<f64>,
    /// nearest, bilinear or bicubic (antialiased, as Pillow, torchvision and timm do it), or tf-nearest, tf-bilinear or
    /// tf-bicubic (as TensorFlow and Keras do it)
    #[arg(long, value_name = "NAME", value_parser = interpolation)]
    pub interpolation: Option<Interpolation>,
    /// What is subtracted from red, green and blue, as values from 0 to 1: three numbers, or one for all
    #[arg(long, value_name = "R,G,B", allow_hyphen_values = true, value_parser = mean)]
    pub mean: Option<Channels>,
    /// Divisor of red, green and blue, after --mean is subtracted
    #[arg(long, value_name = "R,G,B", value_parser = std)]
    pub std: Option<Channels>,
}

/// A number for each channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Channels([f32; 3]);

impl PreprocessArgs {
    pub fn parts(&self) -> Parts {
        let Self { resize, crop, interpolation, mean, std } = *self;
        let [mean, std] = [mean, std].map(|channels| channels.map(|Channels(values)| values));
        Parts { resize, crop, interpolation, mean, std, bgr: None }
    }

    /// Warns where a copy of a file is to be written, in which what was asked for has no place.
    pub fn warn_of_copy(&self, out: &Path) {
        let given: Vec<String> =
            self.given().into_iter().filter_map(|(name, value)| Some(format!("--{name} {}", value?))).collect();
        if !given.is_empty() && Format::of_name(out).is_some_and(Format::is_copied) {
            output::warning(format_args!(
                "{} has no place for {}: give that to whatever reads the file, too",
                out.display(),
                given.join(" ")
            ));
        }
    }

    /// The options as they were given, name and value.
    pub fn given(&self) -> [(&'static str, Option<String>); 5] {
        let list = |Channels(values): Channels| values.map(|value| value.to_string()).join(",");
        [
            ("resize", self.resize.map(|mode| mode.name().to_owned())),
            ("crop", self.crop.map(|share| share.to_string())),
            ("interpolation", self.interpolation.map(|interpolation| interpolation.name().to_owned())),
            ("mean", self.mean.map(list)),
            ("std", self.std.map(list)),
        ]
    }
}

fn resize(name: &str) -> Result<Resize, String> {
    Resize::of_name(name).ok_or_else(|| format!("the modes are {}", Resize::ALL.map(Resize::name).join(", ")))
}

fn interpolation(name: &str) -> Result<Interpolation, String> {
    Interpolation::of_name(name)
        .ok_or_else(|| format!("the interpolations are {}", Interpolation::ALL.map(Interpolation::name).join(", ")))
}

fn crop(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.01..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0.01 to 1".into())
}

fn mean(text: &str) -> Result<Channels, String> {
    channels(text, f32::is_finite).ok_or_else(|| "expected three numbers such as 0.485,0.456,0.406, or one".into())
}

fn std(text: &str) -> Result<Channels, String> {
    let is_sound = |value: f32| value > 0.0 && value.is_finite();
    channels(text, is_sound).ok_or_else(|| "expected three numbers above 0 such as 0.229,0.224,0.225, or one".into())
}

fn channels(text: &str, is_sound: impl Fn(f32) -> bool) -> Option<Channels> {
    let values: Vec<f32> = text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    let values = match values[..] {
        [one] => [one; 3],
        [red, green, blue] => [red, green, blue],
        _ => return None,
    };
    values.iter().all(|&value| is_sound(value)).then_some(Channels(values))
}
