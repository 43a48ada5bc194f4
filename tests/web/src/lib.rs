//! Three training steps of `resnet_tiny` in a browser, from the files that `thawline step` takes: `scripts/check-backends.sh`
//! compares losses and weights with those of a native run.

use std::collections::HashMap;
use thawline::compile::{Optimizer, Options};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::Sgd;
use thawline::kernels::conv2d::Variant;
use thawline::models;
use thawline::plan::Input;
use thawline::policy::{self, Policy};
use thawline::train::{Images, Session};
use thawline::weights::{self, StateDict, TensorData, layout};
use wasm_bindgen::prelude::*;

// As in the script.
const MODEL: &str = "resnet_tiny";
const POLICY: &str = "full";
const STEPS: usize = 3;
const LR: f64 = 0.01;
const MOMENTUM: f32 = 0.9;

/// What the steps gave.
#[wasm_bindgen(getter_with_clone)]
pub struct Trained {
    /// The device that ran them.
    pub device: String,
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// A safetensors file of all tensors.
    pub weights: Vec<u8>,
}

#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
    // Fails only where a logger is there already.
    let _ = console_log::init_with_level(log::Level::Warn);
}

/// Trains with the given variant of the convolutions.
///
/// # Errors
/// A file is none of the expected ones, there is no device, or it fails.
#[wasm_bindgen]
pub async fn train(weights: Vec<u8>, batch: Vec<u8>, variant: String) -> Result<Trained, String> {
    run(&weights, &batch, &variant).await.map_err(|e| e.to_string())
}

async fn run(weights: &[u8], batch: &[u8], variant: &str) -> Result<Trained, Box<dyn std::error::Error>> {
    let variant = Variant::ALL.into_iter().find(|v| v.name() == variant).ok_or("no such variant")?;
    let device = Device::open_async(&DeviceOptions::default()).await?;
    let device = device.with_variant(variant).ok_or("the device does not support the variant")?;
    let info = device.info();
    let name = format!("{} {} {}", info.backend, info.name, info.driver).trim().to_owned();

    let batch = StateDict::from_bytes("batch.safetensors", batch)?;
    let (images, labels) = (tensor(&batch, "images")?, tensor(&batch, "labels")?);
    let (TensorData::F32(values), TensorData::I64(labels)) = (&images.data, &labels.data) else {
        return Err("the batch needs images in f32 and labels in i64".into());
    };
    let dims: [usize; 4] = images.shape.clone().try_into().map_err(|_| "images are [N, 3, H, W]")?;
    let [n, _, h, w] = dims;
    let labels = labels.iter().map(|&label| u32::try_from(label)).collect::<Result<Vec<u32>, _>>()?;

    let state = StateDict::from_bytes("weights.safetensors", weights)?;
    let classes = tensor(&state, "fc.weight")?.shape[0];
    let network = models::build(MODEL, n, (h, w), classes)?;
    let network = policy::resolve(&Policy::recipe(POLICY)?, network)?.graph;
    let tensors = weights::from_state(&network, state, 0)?.tensors;
    let sgd = Sgd { momentum: MOMENTUM, nesterov: false, weight_decay: 0.0, decoupled: false };
    let options = Options::new(Optimizer::Sgd(sgd));
    let mut session = Session::new(&device, network, &tensors, Input::Values, options)?;
    let values = layout::images_to_device(values, dims);
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        losses.push(session.step_async(Images::Values(&values), &labels, LR).await?.mean_loss());
    }
    let trained = weights::to_state(session.network(), &session.parameters_async().await?);
    Ok(Trained { device: name, losses, weights: file(&trained)? })
}

fn tensor<'a>(state: &'a StateDict, name: &str) -> Result<&'a weights::FileTensor, String> {
    state.tensors.get(name).ok_or_else(|| format!("the file holds no tensor {name}"))
}

fn file(state: &StateDict) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    let bytes: Vec<(Dtype, Vec<u8>)> = state
        .tensors
        .values()
        .map(|tensor| match &tensor.data {
            TensorData::F32(values) => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            TensorData::I64(values) => (Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        })
        .collect();
    let views = state.tensors.iter().zip(&bytes).map(|((name, tensor), (dtype, bytes))| {
        Ok((name.clone(), TensorView::new(*dtype, tensor.shape.clone(), bytes)?))
    });
    let views: HashMap<String, TensorView<'_>> = views.collect::<Result<_, safetensors::SafeTensorError>>()?;
    Ok(safetensors::serialize(views, None)?)
}
