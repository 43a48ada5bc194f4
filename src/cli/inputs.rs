//! The inputs files of `step` and `predict`: images that go into the network as they are.

use anyhow::{Context, Result, bail};
use std::path::Path;
use thawline::weights::{StateDict, TensorData, layout};

/// A file's `images`, and its `labels` if asked for.
pub struct Inputs {
    /// `[N, 3, H, W]`
    pub dims: [usize; 4],
    /// In the device's layout.
    pub images: Vec<f32>,
}

impl Inputs {
    /// Takes `images` f32 [N, 3, H, W] out of a file.
    pub fn of(file: &mut StateDict, path: &Path) -> Result<Self> {
        let at = path.display();
        let images = file.tensors.remove("images").with_context(|| format!("{at} has no tensor `images`"))?;
        let (TensorData::F32(values), &[n, c, h, w]) = (images.data, &images.shape[..]) else {
            bail!("`images` in {at} is {:?}: expected floats of [N, 3, height, width]", images.shape);
        };
        if c != 3 || n == 0 || h == 0 || w == 0 {
            bail!("`images` in {at} is [{n}, {c}, {h}, {w}]: expected [N, 3, height, width], none of them 0");
        }
        let dims = [n, c, h, w];
        Ok(Self { dims, images: layout::images_to_device(&values, dims) })
    }
}

/// Takes `labels` i64 [count] out of a file.
pub fn labels(file: &mut StateDict, path: &Path, count: usize, classes: usize) -> Result<Vec<u32>> {
    let at = path.display();
    let labels = file.tensors.remove("labels").with_context(|| format!("{at} has no tensor `labels`"))?;
    let (TensorData::I64(values), true) = (labels.data, labels.shape == [count]) else {
        bail!("`labels` in {at} is {:?}: expected integers of [{count}], one an image", labels.shape);
    };
    let label = |&value: &i64| u32::try_from(value).ok().filter(|&label| (label as usize) < classes);
    match values.iter().find(|value| label(value).is_none()) {
        Some(value) => {
            bail!("`labels` in {at} has {value}, but the network has {classes} classes: 0 to {}", classes - 1)
        }
        None => Ok(values.iter().filter_map(label).collect()),
    }
}
