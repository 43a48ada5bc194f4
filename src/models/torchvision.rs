//! The sets of weights that torchvision has for a network, which take images prepared in different ways.

use super::Spec;
use crate::preprocessing::{Interpolation, Preprocessing, Traced};

/// Where the preprocessing of a network comes from, if nothing tells the set of weights.
pub(super) const DEFAULT: &str = "torchvision's IMAGENET1K_V1, the default";

/// The names of the sets.
const SETS: [&str; 2] = ["IMAGENET1K_V1", "IMAGENET1K_V2"];

/// What the second set of a network differs in from the first: the shorter side that images are resized to, and the
/// interpolation. Source: `torchvision.models`, version 0.26, each set's `transforms()`.
const SECOND: [(&str, usize, Interpolation); 22] = [
    ("resnet50", 232, Interpolation::Bilinear),
    ("resnet101", 232, Interpolation::Bilinear),
    ("resnet152", 232, Interpolation::Bilinear),
    ("wide_resnet50_2", 232, Interpolation::Bilinear),
    ("resnext50_32x4d", 232, Interpolation::Bilinear),
    ("efficientnet_b1", 255, Interpolation::Bilinear),
    ("mobilenet_v2", 232, Interpolation::Bilinear),
    ("mobilenet_v3_large", 232, Interpolation::Bilinear),
    ("wide_resnet101_2", 232, Interpolation::Bilinear),
    ("resnext101_32x8d", 232, Interpolation::Bilinear),
    ("regnet_x_400mf", 232, Interpolation::Bilinear),
    ("regnet_x_800mf", 232, Interpolation::Bilinear),
    ("regnet_x_1_6gf", 232, Interpolation::Bilinear),
    ("regnet_x_3_2gf", 232, Interpolation::Bilinear),
    ("regnet_x_8gf", 232, Interpolation::Bilinear),
    ("regnet_x_16gf", 232, Interpolation::Bilinear),
    ("regnet_x_32gf", 232, Interpolation::Bilinear),
    ("regnet_y_400mf", 232, Interpolation::Bilinear),
    ("regnet_y_800mf", 232, Interpolation::Bilinear),
    ("regnet_y_1_6gf", 232, Interpolation::Bilinear),
    ("regnet_y_3_2gf", 232, Interpolation::Bilinear),
    ("regnet_y_8gf", 232, Interpolation::Bilinear),
];

/// The ends of the names of torchvision's files, which are the beginnings of their SHA-256 hashes: the network's name, and
/// those of its first and second set.
const FILES: [(&str, [&str; 2]); 22] = [
    ("resnet50", ["0676ba61", "11ad3fa6"]),
    ("resnet101", ["63fe2227", "cd907fc2"]),
    ("resnet152", ["394f9c45", "f82ba261"]),
    ("wide_resnet50_2", ["95faca4d", "9ba9bcbe"]),
    ("resnext50_32x4d", ["7cdf4587", "1a0047aa"]),
    ("efficientnet_b1", ["bac287d4", "c27df63c"]),
    ("mobilenet_v2", ["b0353104", "7ebf99e0"]),
    ("mobilenet_v3_large", ["8738ca79", "5c1a4163"]),
    ("wide_resnet101_2", ["32ee1156", "d733dc28"]),
    ("resnext101_32x8d", ["8ba56ff5", "110c445d"]),
    ("regnet_x_400mf", ["adf1edd5", "62229a5f"]),
    ("regnet_x_800mf", ["ad17e45c", "94a99ebd"]),
    ("regnet_x_1_6gf", ["e3633e7f", "a12f2b72"]),
    ("regnet_x_3_2gf", ["f342aeae", "7071aa85"]),
    ("regnet_x_8gf", ["03ceed89", "2b70d774"]),
    ("regnet_x_16gf", ["2007eb11", "ba3796d7"]),
    ("regnet_x_32gf", ["9d47f8d0", "6eb8fdc6"]),
    ("regnet_y_400mf", ["c65dace8", "e6988f5f"]),
    ("regnet_y_800mf", ["1b27b58c", "58fc7688"]),
    ("regnet_y_1_6gf", ["b11a554e", "0d7bc02a"]),
    ("regnet_y_3_2gf", ["b5a9779c", "9180c971"]),
    ("regnet_y_8gf", ["d0d0e4a8", "dc2b1b54"]),
];

/// The preprocessing of the set of weights that a file's name tells. None if it tells no set, or torchvision has no other set
/// for the network.
pub fn set_of_file(spec: &Spec, name: &str) -> Option<Traced> {
    if !spec.preprocessing.origins().all(|(_, origin)| origin == DEFAULT) {
        return None;
    }
    let (_, hashes) = FILES.iter().find(|(network, _)| *network == spec.name)?;
    let upper = name.to_ascii_uppercase();
    let says = |set: usize| upper.contains(SETS[set]) || name.contains(&format!("-{}", hashes[set]));
    let set = [1, 0].into_iter().find(|&set| says(set))?;
    let value = match SECOND.iter().find(|(network, ..)| *network == spec.name) {
        Some(&(_, resize, interpolation)) if set == 1 => {
            Preprocessing::torchvision(spec.default_size, resize, interpolation)
        }
        _ => spec.preprocessing.value,
    };
    Some(Traced::new(value, format!("torchvision's {}, by the file's name", SETS[set])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    #[test]
    fn file_names_tell_the_set() {
        let told = |model: &str, file: &str| {
            let found = set_of_file(models::spec(model).unwrap(), file);
            found.map(|found| found.describe((224, 224)))
        };
        for file in ["resnet50-11ad3fa6.pth", "resnet50_imagenet1k_v2.safetensors", "ResNet50_Weights.IMAGENET1K_V2.pt"]
        {
            let text = told("resnet50", file).unwrap();
            assert!(
                text.contains("shorter side to 232") && text.contains("IMAGENET1K_V2, by the file's name"),
                "{text}"
            );
        }
        let text = told("resnet50", "resnet50-0676ba61.pth").unwrap();
        assert!(text.contains("shorter side to 256") && text.contains("IMAGENET1K_V1, by the file's name"), "{text}");
        let text = set_of_file(models::spec("efficientnet_b1").unwrap(), "efficientnet_b1-c27df63c.pth").unwrap();
        assert!(
            text.describe((240, 240)).starts_with("shorter side to 255, centre 240×240 kept (crop 0.9412); bilinear,")
        );
        for (model, file) in [
            ("resnet50", "resnet50.pth"),
            ("resnet18", "resnet18-f37072fd.pth"),
            // The hash is another network's.
            ("resnet50", "resnet101-cd907fc2.pth"),
            ("timm_efficientnet_b1", "efficientnet_b1-c27df63c.pth"),
        ] {
            assert_eq!(told(model, file), None, "{model} {file}");
        }
    }
}
