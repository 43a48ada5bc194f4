use super::WeightsError;
use crate::files::read_small;
use crate::preprocessing::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, Parts, Preprocessing, Resize, Traced};
use crate::text::printable;
use serde::Deserialize;
use std::io;
use std::path::Path;

/// What timm's config.json says of the weights beside it, as on the Hugging Face hub.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Config {
    /// The network, by timm's name.
    pub architecture: Option<String>,
    /// Height and width of the images that the network was trained on, in pixels.
    pub size: Option<(usize, usize)>,
    /// Height and width of larger images that the network is tested with, too.
    pub test_size: Option<(usize, usize)>,
    /// How images are prepared; none if the file has no `pretrained_cfg`.
    pub images: Option<Pretrained>,
}

/// timm's `pretrained_cfg`, as far as it says how images are prepared.
#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct Pretrained {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    /// Channels, height, width.
    input_size: Option<[usize; 3]>,
    test_input_size: Option<[usize; 3]>,
    crop_pct: Option<f64>,
    test_crop_pct: Option<f64>,
    crop_mode: Option<String>,
    interpolation: Option<String>,
}

/// The longest config.json that is read, in bytes.
const MAX_LENGTH: u64 = 1 << 20;

#[derive(Deserialize)]
struct Json {
    architecture: Option<String>,
    pretrained_cfg: Option<Pretrained>,
}

impl Config {
    /// What the config.json beside `file` says; nothing if there is none, or it is not one of timm's.
    ///
    /// # Errors
    /// There is one that cannot be read, or is no regular file.
    pub fn beside(file: &Path) -> Result<Option<Self>, WeightsError> {
        let path = file.with_file_name("config.json");
        match read_small(&path, MAX_LENGTH) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                log::warn!("{} is not used: {error}", path.display());
                Ok(None)
            }
            Err(source) => Err(WeightsError::Read { path, source }),
        }
    }

    /// What the text of a config.json says; nothing if it is not one of timm's.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let Json { architecture, pretrained_cfg } = serde_json::from_slice(text).ok()?;
        let size = |of: fn(&Pretrained) -> Option<[usize; 3]>| {
            let [_, height, width] = pretrained_cfg.as_ref().and_then(of)?;
            (height > 0 && width > 0).then_some((height, width))
        };
        let (size, test_size) = (size(|cfg| cfg.input_size), size(|cfg| cfg.test_input_size));
        Some(Self { architecture, size, test_size, images: pretrained_cfg })
    }

    /// What it says of preparing images of `size` = (height, width) pixels, as timm's `resolve_data_config` understands it, with
    /// timm's defaults for what is missing. Nothing if it does not speak of images.
    ///
    /// # Errors
    /// A word or a number that means nothing here; the text says which. What is in `known` is not looked at.
    pub fn parts(&self, size: (usize, usize), known: &Parts) -> Result<Parts, String> {
        let Some(images) = &self.images else { return Ok(Parts::default()) };
        // What timm's `use_test_size` takes.
        let is_test = self.test_size == Some(size) && self.size != Some(size);
        let test_crop = images.test_crop_pct.filter(|_| is_test);
        let resize = match images.crop_mode.as_deref().unwrap_or("center") {
            "center" => Resize::Crop,
            "squash" => Resize::Stretch,
            "border" => Resize::Pad,
            _ if known.resize.is_some() => Resize::Crop,
            word => {
                return Err(format!("it has crop_mode `{}`; say how images are resized by --resize", printable(word)));
            }
        };
        let interpolation = match images.interpolation.as_deref().unwrap_or("bicubic") {
            "nearest" => Interpolation::Nearest,
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            _ if known.interpolation.is_some() => Interpolation::Bicubic,
            word => {
                return Err(format!(
                    "it has interpolation `{}`, which is not supported; choose one by --interpolation",
                    printable(word)
                ));
            }
        };
        let parts = Parts {
            resize: Some(resize),
            crop: Some(test_crop.or(images.crop_pct).unwrap_or(0.875)),
            interpolation: Some(interpolation),
            mean: Some(images.mean.unwrap_or(IMAGENET_MEAN)),
            std: Some(images.std.unwrap_or(IMAGENET_STD)),
            bgr: None,
        };
        let whole = Traced::new(Preprocessing::default(), "").with(&parts, "").with(known, "");
        whole.value.check().map_err(|error| error.to_string())?;
        Ok(parts)
    }
}
