//! Networks by name, with the parameter names of the framework that their weights come from.

mod efficientnet;
mod file;
mod inverted;
mod look_alikes;
mod mobilenet;
mod resnet;
mod shipped;
pub mod torchvision;

pub(crate) use file::{Assembly, IMAGES, MAX_LAYERS};
pub use file::{Entry, GRAPH, GraphAbout, GraphFile, GraphFileError, LayerOp, Padding};
pub use look_alikes::{LookAlike, look_alikes, of_timm};

use crate::graph::{Averaging, Builder, Graph, GraphError, Param, Role};
use crate::nearest::suggestion;
use crate::preprocessing::{
    IMAGENET_MEAN, IMAGENET_STD, Interpolation, PREPROCESSING, Parts, Preprocessing, Resize, Traced,
};
use crate::text::printable;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// A network: one that [`build`] knows, or one that a [`GraphFile`] describes.
///
/// Where frameworks differ in names, padding, constants or preprocessing, each has a network of its own. torchvision's have
/// torchvision's names; timm's have timm's, with `timm_` before those that torchvision has too; Keras's begin with `keras_`.
#[derive(Clone)]
pub struct Spec {
    pub name: Cow<'static, str>,
    /// Height of the images it is made for, in pixels; [`size`](Self::size) has the width, too. Any other size works.
    pub default_size: usize,
    /// How images become what the network takes; of a network by name, as for the weights that its framework has for it.
    pub preprocessing: Traced,
    /// Of the weights that the framework has for it.
    pub default_classes: usize,
    /// The layers of a Keras model that change its training images at random.
    pub augmentation: Vec<Augmentation>,
    network: Network,
}

/// What a batch norm has beside its parameters.
#[derive(Clone, Copy)]
struct BatchNorms {
    eps: f32,
    averaging: Averaging,
}

#[derive(Clone)]
enum Network {
    ResNet(&'static resnet::Config),
    Inverted(&'static inverted::Layout, &'static inverted::Variant),
    File(Arc<GraphFile>),
    Shipped(Arc<shipped::Shipped>),
}

use Interpolation::{Bicubic, Bilinear};
use Network::{Inverted, ResNet};

/// Where a preprocessing comes from.
const BY_TIMM: &str = "timm's default for this network";
const BY_KERAS: &str = "Keras's default for this network";

/// Mean and deviation of ImageNet, and what maps values from 0 to 1 to −1 to 1.
const IMAGENET: [[f32; 3]; 2] = [IMAGENET_MEAN, IMAGENET_STD];
const HALF: [[f32; 3]; 2] = [[0.5; 3]; 2];
/// As Caffe's networks took images: less the mean colour of ImageNet, not scaled.
const CAFFE: [[f32; 3]; 2] = [[123.68 / 255.0, 116.779 / 255.0, 103.939 / 255.0], [1.0 / 255.0; 3]];

/// timm's preprocessing for a `crop_mode` of `center`, bicubic.
const fn centre(crop: f64, [mean, std]: [[f32; 3]; 2]) -> Preprocessing {
    Preprocessing { resize: Resize::Crop, crop, interpolation: Bicubic, mean, std, bgr: false }
}

/// timm's preprocessing for a `crop_mode` of `squash` and a `crop_pct` of 1, bicubic.
const fn squash(values: [[f32; 3]; 2]) -> Preprocessing {
    Preprocessing { resize: Resize::Stretch, ..centre(1.0, values) }
}

/// Every network, in the order in which lists show them.
pub static MODELS: LazyLock<Vec<Spec>> = LazyLock::new(|| FAMILIES.iter().cloned().chain(shipped::specs()).collect());

/// Networks that are built by rules.
static FAMILIES: &[Spec] = &[
    // The preprocessing is that of the set IMAGENET1K_V1; `torchvision` knows the others.
    Spec::torchvision("resnet18", 224, 256, Bilinear, ResNet(&resnet::RESNET18)),
    Spec::torchvision("resnet34", 224, 256, Bilinear, ResNet(&resnet::RESNET34)),
    Spec::torchvision("resnet50", 224, 256, Bilinear, ResNet(&resnet::RESNET50)),
    Spec::torchvision("resnet101", 224, 256, Bilinear, ResNet(&resnet::RESNET101)),
    Spec::torchvision("resnet152", 224, 256, Bilinear, ResNet(&resnet::RESNET152)),
    Spec::torchvision("wide_resnet50_2", 224, 256, Bilinear, ResNet(&resnet::WIDE_RESNET50_2)),
    Spec::torchvision("wide_resnet101_2", 224, 256, Bilinear, ResNet(&resnet::WIDE_RESNET101_2)),
    Spec::torchvision("resnext50_32x4d", 224, 256, Bilinear, ResNet(&resnet::RESNEXT50_32X4D)),
    Spec::torchvision("resnext101_32x8d", 224, 256, Bilinear, ResNet(&resnet::RESNEXT101_32X8D)),
    Spec::torchvision("resnext101_64x4d", 224, 232, Bilinear, ResNet(&resnet::RESNEXT101_64X4D)),
    // Made for drawn images, whose colours use the whole range.
    Spec {
        name: Cow::Borrowed("resnet_tiny"),
        default_size: 16,
        preprocessing: Traced::known(Preprocessing::normalised([0.5; 3], [0.5; 3]), "this network's default"),
        default_classes: 10,
        augmentation: Vec::new(),
        network: ResNet(&resnet::RESNET_TINY),
    },
    Spec::torchvision("efficientnet_b0", 224, 256, Bicubic, Inverted(&efficientnet::B0, &efficientnet::TORCHVISION)),
    Spec::torchvision("efficientnet_b1", 240, 256, Bicubic, Inverted(&efficientnet::B1, &efficientnet::TORCHVISION)),
    Spec::torchvision("efficientnet_b2", 288, 288, Bicubic, Inverted(&efficientnet::B2, &efficientnet::TORCHVISION)),
    Spec::torchvision("efficientnet_b3", 300, 320, Bicubic, Inverted(&efficientnet::B3, &efficientnet::TORCHVISION)),
    Spec::torchvision("efficientnet_b4", 380, 384, Bicubic, Inverted(&efficientnet::B4, &efficientnet::TORCHVISION)),
    Spec::torchvision(
        "efficientnet_b5",
        456,
        456,
        Bicubic,
        Inverted(&efficientnet::B5, &efficientnet::TORCHVISION_LARGE),
    ),
    Spec::torchvision(
        "efficientnet_b6",
        528,
        528,
        Bicubic,
        Inverted(&efficientnet::B6, &efficientnet::TORCHVISION_LARGE),
    ),
    Spec::torchvision(
        "efficientnet_b7",
        600,
        600,
        Bicubic,
        Inverted(&efficientnet::B7, &efficientnet::TORCHVISION_LARGE),
    ),
    Spec::torchvision(
        "efficientnet_v2_s",
        384,
        384,
        Bilinear,
        Inverted(&efficientnet::V2_S, &efficientnet::TORCHVISION_V2),
    ),
    Spec::torchvision(
        "efficientnet_v2_m",
        480,
        480,
        Bilinear,
        Inverted(&efficientnet::V2_M, &efficientnet::TORCHVISION_V2),
    ),
    Spec {
        name: Cow::Borrowed("efficientnet_v2_l"),
        default_size: 480,
        preprocessing: Traced::known(centre(1.0, HALF), torchvision::DEFAULT),
        default_classes: 1000,
        augmentation: Vec::new(),
        network: Inverted(&efficientnet::V2_L, &efficientnet::TORCHVISION_V2),
    },
    Spec::torchvision("mobilenet_v2", 224, 256, Bilinear, Inverted(&mobilenet::V2, &mobilenet::TORCHVISION_V2)),
    Spec::torchvision(
        "mobilenet_v3_large",
        224,
        256,
        Bilinear,
        Inverted(&mobilenet::V3_LARGE, &mobilenet::TORCHVISION_V3),
    ),
    Spec::torchvision(
        "mobilenet_v3_small",
        224,
        256,
        Bilinear,
        Inverted(&mobilenet::V3_SMALL, &mobilenet::TORCHVISION_V3),
    ),
    // Size, preprocessing and constants of the weights that timm takes by default.
    Spec::timm("timm_efficientnet_b0", 224, centre(0.875, IMAGENET), Inverted(&efficientnet::B0, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b1", 240, centre(0.9, HALF), Inverted(&efficientnet::B1, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b2", 256, centre(0.875, IMAGENET), Inverted(&efficientnet::B2, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b3", 288, centre(0.875, IMAGENET), Inverted(&efficientnet::B3, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b4", 320, centre(0.875, IMAGENET), Inverted(&efficientnet::B4, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b5", 448, squash(IMAGENET), Inverted(&efficientnet::B5, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b6", 528, centre(0.942, IMAGENET), Inverted(&efficientnet::B6, &efficientnet::TIMM)),
    Spec::timm("timm_efficientnet_b7", 600, centre(0.949, IMAGENET), Inverted(&efficientnet::B7, &efficientnet::TIMM)),
    Spec::timm("tf_efficientnet_b0", 224, centre(0.875, IMAGENET), Inverted(&efficientnet::B0, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b1", 240, centre(0.882, IMAGENET), Inverted(&efficientnet::B1, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b2", 260, centre(0.89, IMAGENET), Inverted(&efficientnet::B2, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b3", 300, centre(0.904, IMAGENET), Inverted(&efficientnet::B3, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b4", 380, centre(0.922, IMAGENET), Inverted(&efficientnet::B4, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b5", 456, centre(0.934, IMAGENET), Inverted(&efficientnet::B5, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b6", 528, centre(0.942, IMAGENET), Inverted(&efficientnet::B6, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnet_b7", 600, centre(0.949, IMAGENET), Inverted(&efficientnet::B7, &efficientnet::TIMM_TF)),
    Spec::timm("tf_efficientnetv2_s", 300, centre(1.0, HALF), Inverted(&efficientnet::V2_S, &efficientnet::TIMM_TF)),
    Spec::timm("mobilenetv2_100", 224, centre(0.875, IMAGENET), Inverted(&mobilenet::V2, &efficientnet::TIMM)),
    Spec::timm(
        "mobilenetv3_large_100",
        224,
        centre(0.875, IMAGENET),
        Inverted(&mobilenet::V3_LARGE, &efficientnet::TIMM),
    ),
    Spec::timm(
        "tf_mobilenetv3_large_100",
        224,
        Preprocessing { interpolation: Bilinear, ..centre(0.875, HALF) },
        Inverted(&mobilenet::V3_LARGE, &efficientnet::TIMM_TF),
    ),
    // Keras's own preprocessing: EfficientNet's `Normalization` as its ImageNet weights have it, V2's and MobileNetV3's
    // `Rescaling`, MobileNetV2's mode `tf`, ResNet's mode `caffe`.
    Spec::keras("keras_efficientnet_b0", 224, IMAGENET, false, Inverted(&efficientnet::B0, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b1", 240, IMAGENET, false, Inverted(&efficientnet::B1, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b2", 260, IMAGENET, false, Inverted(&efficientnet::B2, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b3", 300, IMAGENET, false, Inverted(&efficientnet::B3, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b4", 380, IMAGENET, false, Inverted(&efficientnet::B4, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b5", 456, IMAGENET, false, Inverted(&efficientnet::B5, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b6", 528, IMAGENET, false, Inverted(&efficientnet::B6, &efficientnet::KERAS_V1)),
    Spec::keras("keras_efficientnet_b7", 600, IMAGENET, false, Inverted(&efficientnet::B7, &efficientnet::KERAS_V1)),
    Spec::keras(
        "keras_efficientnet_v2_s",
        384,
        [[128.0 / 255.0; 3]; 2],
        false,
        Inverted(&efficientnet::V2_S, &efficientnet::KERAS_V2),
    ),
    Spec::keras("keras_mobilenet_v2", 224, HALF, false, Inverted(&mobilenet::V2, &mobilenet::KERAS_V2)),
    Spec::keras("keras_mobilenet_v3_large", 224, HALF, false, Inverted(&mobilenet::V3_LARGE, &mobilenet::KERAS_V3)),
    Spec::keras("keras_resnet50", 224, CAFFE, true, ResNet(&resnet::KERAS_RESNET50)),
    Spec::keras("keras_resnet101", 224, CAFFE, true, ResNet(&resnet::KERAS_RESNET101)),
    Spec::keras("keras_resnet152", 224, CAFFE, true, ResNet(&resnet::KERAS_RESNET152)),
];

/// The most classes that a network can have: the weights of the widest head stay addressable with 32-bit indices.
pub const MAX_CLASSES: usize = 1 << 20;

/// A request for a network that cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "unknown model `{}`{}; `thawline models` lists the {} that there are",
        printable(name),
        suggestion(name, names()),
        MODELS.len()
    )]
    Unknown { name: String },
    #[error("{model} cannot have {classes} classes: it takes 1 to {MAX_CLASSES}")]
    Classes { model: String, classes: usize },
    #[error(
        "{model} with one output is not supported, since its softmax is always 1: give it two classes (`finetune` and `compare` \
         start a new head for the folders of their images)"
    )]
    OneOutput { model: String },
    #[error("{model} cannot take {batch} images of {height}×{width} pixels: {error}", height = size.0, width = size.1)]
    Input { model: String, batch: usize, size: (usize, usize), error: GraphError },
}

fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|spec| spec.name.as_ref())
}

impl Spec {
    /// `resize` is what the shorter side of an image is brought to.
    const fn torchvision(
        name: &'static str,
        default_size: usize,
        resize: usize,
        interpolation: Interpolation,
        network: Network,
    ) -> Self {
        let value = Preprocessing::torchvision(default_size, resize, interpolation);
        let preprocessing = Traced::known(value, torchvision::DEFAULT);
        Self {
            name: Cow::Borrowed(name),
            default_size,
            preprocessing,
            default_classes: 1000,
            augmentation: Vec::new(),
            network,
        }
    }

    /// The preprocessing is that of timm's `default_cfg`.
    const fn timm(name: &'static str, default_size: usize, preprocessing: Preprocessing, network: Network) -> Self {
        let preprocessing = Traced::known(preprocessing, BY_TIMM);
        Self {
            name: Cow::Borrowed(name),
            default_size,
            preprocessing,
            default_classes: 1000,
            augmentation: Vec::new(),
            network,
        }
    }

    /// Mean and deviation are those of the `preprocess_input` that belongs to the network.
    const fn keras(
        name: &'static str,
        default_size: usize,
        [mean, std]: [[f32; 3]; 2],
        bgr: bool,
        network: Network,
    ) -> Self {
        let preprocessing = Traced::known(Preprocessing::keras(mean, std, bgr), BY_KERAS);
        Self {
            name: Cow::Borrowed(name),
            default_size,
            preprocessing,
            default_classes: 1000,
            augmentation: Vec::new(),
            network,
        }
    }

    /// The network that `file` describes.
    pub fn of_file(file: GraphFile) -> Self {
        Self {
            name: Cow::Owned(file.name().to_owned()),
            default_size: file.size().0,
            preprocessing: Traced::new(file.preprocessing(), "the graph file"),
            default_classes: file.classes(),
            augmentation: Vec::new(),
            network: Network::File(Arc::new(file)),
        }
    }

    /// The same network for images that are prepared in another way.
    #[must_use]
    pub fn with_preprocessing(self, preprocessing: Traced) -> Self {
        Self { preprocessing, ..self }
    }

    /// The same network, of a Keras model with these layers.
    #[must_use]
    pub fn with_augmentation(self, augmentation: Vec<Augmentation>) -> Self {
        Self { augmentation, ..self }
    }

    /// The framework that has the network, and calls it so but for a prefix: `torchvision`, `timm` or `Keras`. None of others.
    pub fn library(&self) -> Option<&'static str> {
        match self.preprocessing.origins().next() {
            Some((_, torchvision::DEFAULT)) => Some("torchvision"),
            Some((_, BY_TIMM)) => Some("timm"),
            Some((_, BY_KERAS)) => Some("Keras"),
            _ => None,
        }
    }

    /// The file that describes the network, if it is none of [`MODELS`].
    pub fn file(&self) -> Option<&GraphFile> {
        match &self.network {
            Network::File(file) => Some(file),
            ResNet(_) | Inverted(..) | Network::Shipped(_) => None,
        }
    }

    /// Height and width of the images it is made for, in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.file().map_or((self.default_size, self.default_size), GraphFile::size)
    }

    /// The network as a graph file, made for images of `size` = (height, width) pixels, which are prepared as
    /// [`preprocessing`](Self::preprocessing) says.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn describe(&self, size: (usize, usize), classes: usize) -> Result<GraphFile, ModelError> {
        let wrong = |error| ModelError::Input { model: self.name.to_string(), batch: 1, size, error };
        let preprocessing = self.preprocessing.value;
        match &self.network {
            Network::File(file) => file.with(size, classes, preprocessing).map_err(wrong),
            Network::Shipped(network) => network.file().with(size, classes, preprocessing).map_err(wrong),
            network => {
                let about = GraphAbout { name: self.name.to_string(), size, preprocessing };
                GraphFile::of(about, |size| network.build(1, size, classes)).map_err(wrong)
            }
        }
    }

    /// The same network with [one output](GraphFile::with_one_output) for two classes: a graph file's.
    ///
    /// # Errors
    /// Its classes are not the outputs of one layer.
    pub fn with_one_output(&self) -> Result<Self, ModelError> {
        let size = self.size();
        let file = self.describe(size, 2)?.with_one_output();
        let wrong = |error| ModelError::Input { model: self.name.to_string(), batch: 1, size, error };
        Ok(Self { network: Network::File(Arc::new(file.map_err(wrong)?)), default_classes: 2, ..self.clone() })
    }

    /// The network for `batch` images of `size` = (height, width) pixels.
    ///
    /// # Errors
    /// No image, no pixel, more than 32-bit indices can address, or a number of classes outside
    /// 1 to [`MAX_CLASSES`].
    pub fn build(&self, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, ModelError> {
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(ModelError::Classes { model: self.name.to_string(), classes });
        }
        let graph = self.network.build(batch, size, classes);
        graph.map_err(|error| ModelError::Input { model: self.name.to_string(), batch, size, error })
    }
}

impl Network {
    /// The network for `batch` images of `size` = (height, width) pixels.
    fn build(&self, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, GraphError> {
        let mut b = Builder::new();
        let mut images = || b.input(batch, size.0, size.1, 3);
        let logits = match self {
            Self::File(file) => return file.build(batch, size, classes),
            Self::Shipped(shipped) => return shipped.build(batch, size, classes),
            ResNet(config) => {
                let images = images()?;
                config.network(&mut b, images, classes)?
            }
            Inverted(layout, variant) => {
                let images = images()?;
                layout.network(variant, &mut b, images, classes)?
            }
        };
        b.finish(logits)
    }
}

/// A layer of a Keras model that changes images at random in training.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Augmentation {
    /// The layer's name, behind those of the models that it lies in.
    pub layer: String,
    /// Such as `RandomFlip`.
    pub class: String,
    /// Whether all that it does is to mirror every other image left to right.
    pub mirrors: bool,
    /// Whether it shows a part of the image, or the image in another place.
    pub crops: bool,
}

/// What is known of the images that weights were trained on, beside the network.
#[derive(Clone, Copy, Default, Debug)]
pub struct Told<'a> {
    /// The name of the weights file.
    pub file_name: &'a str,
    /// What the config.json beside the file says.
    pub config: Parts,
    /// Mean and deviation that the file has, as values from 0 to 1.
    pub statistics: Option<[[f32; 3]; 2]>,
    /// The file's metadata under [`PREPROCESSING`].
    pub metadata: Option<&'a str>,
    /// What the caller asks for.
    pub asked: Parts,
}

impl Spec {
    /// How images are prepared for given weights: as is the custom for the network, unless something that is nearer to the weights
    /// says otherwise, and at last the caller. A graph file says it for all of its weights.
    ///
    /// # Errors
    /// The metadata cannot be read; the text says why.
    pub fn prepared(&self, told: &Told<'_>) -> Result<Traced, String> {
        let mut found = self.preprocessing.clone();
        if self.file().is_none() {
            if let Some(set) = torchvision::set_of_file(self, told.file_name) {
                found = set;
            }
            found = found.with(&told.config, "config.json");
            if let Some([mean, std]) = told.statistics {
                found = found.with(&Parts { mean: Some(mean), std: Some(std), ..Parts::default() }, "the file");
            }
            if let Some(text) = told.metadata {
                let whole = Preprocessing::parse(text)
                    .map_err(|reason| format!("its metadata `{PREPROCESSING}` cannot be read: {reason}"))?;
                found = found.with(&whole.into(), "the file");
            }
        }
        Ok(found.with(&told.asked, "the command line"))
    }
}

/// The network called `name`.
///
/// # Errors
/// There is none; the message lists those that there are.
pub fn spec(name: &str) -> Result<&'static Spec, ModelError> {
    MODELS.iter().find(|spec| spec.name == name).ok_or_else(|| ModelError::Unknown { name: name.into() })
}

/// The network called `name` for `batch` images of `size` = (height, width) pixels, every layer frozen.
///
/// # Errors
/// Those of [`spec`] and of [`Spec::build`].
pub fn build(name: &str, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, ModelError> {
    spec(name)?.build(batch, size, classes)
}

/// Refuses one class: its softmax is 1 whatever the image shows. A file with one output is of two classes.
///
/// # Errors
/// [`ModelError::OneOutput`].
pub fn check_classes(model: &str, classes: usize) -> Result<(), ModelError> {
    match classes {
        1 => Err(ModelError::OneOutput { model: model.into() }),
        _ => Ok(()),
    }
}

/// What [`recognise`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recognised {
    /// One network, or several that differ in nothing that a file tells: timm's with and without `tf_`, which have other
    /// paddings and constants.
    pub models: Vec<&'static str>,
    /// None if the file has no head with classes, or one that is not a single layer.
    pub classes: Option<usize>,
    /// What the names of the network's tensors begin with in the file, as a rule nothing; several if the file holds several
    /// sets of such tensors.
    pub prefixes: Vec<String>,
}

/// Whether a tensor is of a classifier beside the last one, which GoogLeNet and Inception v3 have in training only.
pub fn is_auxiliary(name: &str) -> bool {
    name.split('.').any(|part| ["AuxLogits", "aux1", "aux2"].contains(&part))
}

/// The most prefixes that are tried.
const MAX_PREFIXES: usize = 16;

/// Which network a weights file is for, and its number of classes, from the names and shapes of the file's tensors
/// (shapes as PyTorch writes them). A file that lacks a few tensors is still recognised, so that loading it can say
/// which they are; so is one that lacks the head, and one in which all names begin with the same words, such as `model.`.
pub fn recognise<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Option<Recognised> {
    // Weights of convolutions and linear layers have two or more dimensions, nearly all other tensors fewer.
    let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| !is_auxiliary(name)).collect();
    let statistics: Vec<&str> =
        tensors.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".running_mean")).collect();
    let file: HashMap<&str, &[usize]> = tensors.into_iter().filter(|(_, shape)| shape.len() >= 2).collect();
    static NETWORKS: LazyLock<Vec<Candidate>> = LazyLock::new(|| MODELS.iter().filter_map(Candidate::of).collect());
    let networks = &*NETWORKS;
    let mut names: Vec<&str> = file.keys().copied().collect();
    names.sort_unstable();
    let below = |prefix: &str| {
        let from = names.partition_point(|name| *name < prefix);
        from..from + names[from..].partition_point(|name| name.starts_with(prefix))
    };

    let mut scored: Vec<(usize, &str, Option<usize>, &str)> = Vec::new();
    for prefix in prefixes(&names, networks, &below) {
        // What belongs to another set of weights is no part of this one.
        let is_other = |name: &str| scored.iter().any(|&(.., other)| other != prefix && name.starts_with(other));
        let part = names[below(prefix)].iter().filter(|name| !is_other(name));
        let part: HashMap<&str, &[usize]> = part.map(|name| (&name[prefix.len()..], file[name])).collect();
        let fitting = networks.iter().filter_map(|Candidate { name, weights, .. }| {
            let (differences, classes) = compare(weights, &part)?;
            Some((differences, *name, classes, prefix))
        });
        let fitting: Vec<_> = fitting.collect();
        scored.extend(fitting);
    }
    let &(fewest, .., classes, first) =
        scored.iter().min_by_key(|&&(differences, .., prefix)| (differences, prefix))?;
    let best = || scored.iter().filter(|&&(differences, ..)| differences == fewest);
    let mut models: Vec<&str> = best().filter(|&&(.., prefix)| prefix == first).map(|&(_, name, ..)| name).collect();
    // Some have the same convolutions and differ in their batch norms, or have none.
    let statistics: HashSet<&str> = statistics.into_iter().filter_map(|name| name.strip_prefix(first)).collect();
    let differences = |name: &str| {
        let of = networks.iter().find(|network| network.name == name).map(|network| &network.statistics)?;
        let shared = of.iter().filter(|name| statistics.contains(name.as_str())).count();
        Some(of.len() + statistics.len() - 2 * shared)
    };
    let fewest = models.iter().filter_map(|name| differences(name)).min();
    models.retain(|name| differences(name) == fewest);
    let mut prefixes: Vec<String> = best().map(|&(.., prefix)| prefix.to_owned()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    Some(Recognised { models, classes, prefixes })
}

/// What may stand before the names of a network's tensors: what stands before the name of some network's first weight, the
/// longest first.
fn prefixes<'a>(names: &[&'a str], networks: &[Candidate], below: &impl Fn(&str) -> Range<usize>) -> Vec<&'a str> {
    let firsts: BTreeSet<&str> =
        networks.iter().filter_map(|network| Some(network.weights.first()?.name.as_str())).collect();
    let prefixes: BTreeSet<&str> = names
        .iter()
        .flat_map(|name| firsts.iter().filter_map(|first| name.strip_suffix(first)))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    let mut prefixes: Vec<&str> = prefixes.into_iter().collect();
    // Blocks have first weights of the same names, but few others.
    prefixes.sort_by_key(|prefix| std::cmp::Reverse(below(prefix).len()));
    prefixes.truncate(MAX_PREFIXES);
    prefixes.sort_by_key(|prefix| (std::cmp::Reverse(prefix.len()), *prefix));
    prefixes
}

/// A weight of two dimensions or more: of a convolution or a linear layer, or factors in the form of an image.
struct Weight {
    name: String,
    /// As PyTorch has it: outputs first.
    shape: Vec<usize>,
    /// The layer, if it gives the classes.
    head: Option<String>,
}

/// What files of a network hold.
struct Candidate {
    name: &'static str,
    weights: Vec<Weight>,
    /// The names of its batch norms' means.
    statistics: Vec<String>,
}

impl Candidate {
    fn of(spec: &'static Spec) -> Option<Self> {
        let graph = spec.build(1, (spec.default_size, spec.default_size), 1).ok()?;
        let weights = graph.params().iter().filter_map(|param| {
            let [kh, kw, _, cout] = param.shape.0;
            let layer = &graph.layers()[param.layer.index()].name;
            let shape = match param.role {
                Role::ConvWeight | Role::DepthwiseWeight => vec![cout, param.channels, kh, kw],
                Role::LinearWeight => vec![cout, param.channels * kh * kw],
                Role::ImageScale => return Some(Weight { name: layer.clone(), shape: vec![cout, 1, 1], head: None }),
                Role::Bias | Role::Affine | Role::Scale | Role::Moments => return None,
            };
            let head = (graph.head() == Some(param.layer)).then(|| layer.clone());
            Some(Weight { name: format!("{layer}.weight"), shape, head })
        });
        let moments = graph.params().iter().filter(|param| param.role == Role::Moments);
        let mean = |param: &Param| format!("{}.running_mean", graph.layers()[param.layer.index()].name);
        Some(Self { name: spec.name.as_ref(), weights: weights.collect(), statistics: moments.map(mean).collect() })
    }
}

/// The module that a head lies in: of `classifier.1` the Sequential `classifier`, of `fc` itself, since a file's may be one.
pub fn head_module(head: &str) -> &str {
    match head.rsplit_once('.') {
        Some((module, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => module,
        _ => head,
    }
}

/// How many weights the file and the network do not share, unless they are too many; and the file's classes.
fn compare(network: &[Weight], file: &HashMap<&str, &[usize]>) -> Option<(usize, Option<usize>)> {
    /// One weight in so many may differ, and one in any case.
    const TOLERANCE: usize = 10;
    let mut classes = None;
    let (mut shared, mut weights, mut of_head) = (0, 0, 0);
    for Weight { name, shape, head } in network {
        let in_file = file.get(name.as_str()).copied();
        let same = match (in_file.and_then(<[usize]>::split_first), head) {
            (Some((&rows, rest)), Some(_)) if *rest == shape[1..] => {
                classes = Some(rows);
                true
            }
            // Another head, or none.
            (None, Some(head)) => {
                let module = head_module(head);
                let is_inside = |name: &&&str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
                let known = |name: &&&str| network.iter().any(|weight| weight.name == ***name);
                of_head = file.keys().filter(is_inside).filter(|name| !known(name)).count();
                continue;
            }
            _ => in_file == Some(shape.as_slice()),
        };
        shared += usize::from(same);
        weights += 1;
    }
    let differences = (weights - shared) + (file.len() - shared - of_head);
    (differences <= (weights / TOLERANCE).max(1)).then_some((differences, classes))
}
