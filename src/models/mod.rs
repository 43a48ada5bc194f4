//! Networks by name, with the parameter names of the framework that their weights come from.

mod resnet;

use crate::graph::{Builder, Graph, GraphError, NodeId, Role};
use crate::nearest::suggestion;
use std::collections::HashMap;

/// A network that [`build`] knows.
pub struct Spec {
    pub name: &'static str,
    /// Height and width of the images it is made for, in pixels. Any other size works too.
    pub default_size: usize,
    /// What is subtracted from red, green and blue, as values from 0 to 1, before the network sees them.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub std: [f32; 3],
    network: fn(&mut Builder, NodeId, usize) -> Result<NodeId, GraphError>,
}

/// The statistics of ImageNet, which torchvision's weights expect.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// See [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Every network, in the order in which lists show them.
pub static MODELS: &[Spec] = &[
    Spec::imagenet("resnet18", |b, x, classes| resnet::RESNET18.network(b, x, classes)),
    Spec::imagenet("resnet34", |b, x, classes| resnet::RESNET34.network(b, x, classes)),
    Spec::imagenet("resnet50", |b, x, classes| resnet::RESNET50.network(b, x, classes)),
    Spec::imagenet("resnet101", |b, x, classes| resnet::RESNET101.network(b, x, classes)),
    Spec::imagenet("resnet152", |b, x, classes| resnet::RESNET152.network(b, x, classes)),
    Spec::imagenet("wide_resnet50_2", |b, x, classes| resnet::WIDE_RESNET50_2.network(b, x, classes)),
    // Made for drawn images, whose colours use the whole range.
    Spec {
        name: "resnet_tiny",
        default_size: 16,
        mean: [0.5; 3],
        std: [0.5; 3],
        network: |b, x, classes| resnet::RESNET_TINY.network(b, x, classes),
    },
];

/// The most classes that a network can have: the weights of the widest head stay addressable with 32-bit indices.
pub const MAX_CLASSES: usize = 1 << 20;

/// A request for a network that cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "unknown model `{name}`{}; the models are {}",
        suggestion(name, names()),
        names().collect::<Vec<_>>().join(", ")
    )]
    Unknown { name: String },
    #[error("{model} cannot have {classes} classes: it takes 1 to {MAX_CLASSES}")]
    Classes { model: &'static str, classes: usize },
    #[error("{model} cannot take {batch} images of {height}×{width} pixels: {error}", height = size.0, width = size.1)]
    Input { model: &'static str, batch: usize, size: (usize, usize), error: GraphError },
}

fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|spec| spec.name)
}

impl Spec {
    const fn imagenet(
        name: &'static str,
        network: fn(&mut Builder, NodeId, usize) -> Result<NodeId, GraphError>,
    ) -> Self {
        Self { name, default_size: 224, mean: IMAGENET_MEAN, std: IMAGENET_STD, network }
    }

    /// The network for `batch` images of `size` = (height, width) pixels.
    ///
    /// # Errors
    /// No image, no pixel, more than 32-bit indices can address, or a number of classes outside
    /// 1 to [`MAX_CLASSES`].
    pub fn build(&self, batch: usize, size: (usize, usize), classes: usize) -> Result<Graph, ModelError> {
        if !(1..=MAX_CLASSES).contains(&classes) {
            return Err(ModelError::Classes { model: self.name, classes });
        }
        let graph = || {
            let mut b = Builder::new();
            let images = b.input(batch, size.0, size.1, 3)?;
            let logits = (self.network)(&mut b, images, classes)?;
            b.finish(logits)
        };
        graph().map_err(|error| ModelError::Input { model: self.name, batch, size, error })
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

/// Which network a weights file is for, and its number of classes, from the names and shapes of the file's tensors
/// (shapes as PyTorch writes them). A file that lacks a few tensors is still recognised, so that loading it can say
/// which they are.
pub fn recognise<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Option<(&'static str, usize)> {
    // Weights of convolutions and linear layers have two or more dimensions, all other tensors fewer.
    let file: HashMap<&str, &[usize]> = tensors.into_iter().filter(|(_, shape)| shape.len() >= 2).collect();
    let scored = MODELS.iter().filter_map(|spec| {
        let (differences, classes) = compare(spec, &file)?;
        Some((differences, spec.name, classes))
    });
    scored.min_by_key(|&(differences, ..)| differences).map(|(_, name, classes)| (name, classes))
}

/// How many weights the file and the network do not share, unless they are too many; and the file's classes.
fn compare(spec: &Spec, file: &HashMap<&str, &[usize]>) -> Option<(usize, usize)> {
    /// One weight in so many may differ.
    const TOLERANCE: usize = 10;
    let graph = spec.build(1, (spec.default_size, spec.default_size), 1).ok()?;
    let mut classes = None;
    let (mut shared, mut weights) = (0, 0);
    for param in graph.params() {
        let [kh, kw, _, cout] = param.shape.0;
        let layer = &graph.layers()[param.layer.index()].name;
        let in_file = file.get(format!("{layer}.weight").as_str()).copied();
        let same = match param.role {
            Role::ConvWeight | Role::DepthwiseWeight => in_file == Some(&[cout, param.channels, kh, kw]),
            Role::LinearWeight => match in_file {
                Some(&[rows, columns]) if columns == param.channels => {
                    classes = Some(rows);
                    true
                }
                _ => false,
            },
            Role::Bias | Role::Affine | Role::Moments => continue,
        };
        shared += usize::from(same);
        weights += 1;
    }
    let differences = (weights - shared) + (file.len() - shared);
    (differences * TOLERANCE <= weights).then_some((differences, classes?))
}
