//! Layers that change images at random in training, and leave them as they are otherwise.

use super::config::Layer;
use super::{From, Tensor};
use crate::models::Augmentation;

pub(super) fn of(layer: &Layer<'_>) -> Augmentation {
    Augmentation {
        layer: layer.path.to_owned(),
        class: layer.class.to_owned(),
        // Where a file does not say it, the layer turns images upside down, too.
        mirrors: layer.class == "RandomFlip" && layer.config["mode"] == "horizontal",
        crops: ["RandomCrop", "RandomTranslation", "RandomZoom"].contains(&layer.class),
    }
}

/// Whether a layer that takes `x` acts in training only, on images.
pub(super) fn is_augmentation(layer: &Layer<'_>, x: Tensor) -> bool {
    const OTHERS: [&str; 6] = ["AugMix", "CutMix", "Equalization", "MixUp", "RandAugment", "Solarization"];
    match layer.class {
        // Behind other layers it is a regulariser.
        "GaussianNoise" => matches!(x.from, From::Images(_)),
        class => class.starts_with("Random") || OTHERS.contains(&class),
    }
}
