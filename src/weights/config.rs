use super::WeightsError;
use crate::files::read_small;
use serde::Deserialize;
use std::io;
use std::path::Path;

/// What timm's config.json says of the weights beside it, as on the Hugging Face hub.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Config {
    /// The network, by timm's name.
    pub architecture: Option<String>,
    /// What is subtracted from red, green and blue, as values from 0 to 1.
    pub mean: Option<[f32; 3]>,
    /// What they are divided by then.
    pub std: Option<[f32; 3]>,
    /// Height and width of the images that the network was trained on, in pixels.
    pub size: Option<(usize, usize)>,
}

/// The longest config.json that is read, in bytes.
const MAX_LENGTH: u64 = 1 << 20;

#[derive(Deserialize)]
struct Json {
    architecture: Option<String>,
    pretrained_cfg: Option<Pretrained>,
}

#[derive(Deserialize)]
struct Pretrained {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    /// Channels, height, width.
    input_size: Option<[usize; 3]>,
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

    fn parse(text: &[u8]) -> Option<Self> {
        let Json { architecture, pretrained_cfg } = serde_json::from_slice(text).ok()?;
        let cfg = pretrained_cfg.as_ref();
        let size = cfg.and_then(|cfg| cfg.input_size).map(|[_, height, width]| (height, width));
        Some(Self {
            architecture,
            mean: cfg.and_then(|cfg| cfg.mean).filter(|mean| mean.iter().all(|mean| mean.is_finite())),
            std: cfg.and_then(|cfg| cfg.std).filter(|std| std.iter().all(|&std| std > 0.0 && std.is_finite())),
            size: size.filter(|&(height, width)| height > 0 && width > 0),
        })
    }
}
