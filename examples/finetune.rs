//! Fine-tunes a small network from drawn shapes to handwritten digits: `cargo run --release --example finetune`.
//! The last stage and the head train, every batch norm follows the new images; the convolutions below are frozen.

use std::path::Path;
use thawline::compile::{Optimizer, Options};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Loader, LoaderOptions, Mode, Transform};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::Sgd;
use thawline::policy::{self, Policy};
use thawline::train::{Evaluator, Images, PADDING, Session, Totals};
use thawline::{models, weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const BATCH: usize = 32;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let digits = root.join("target/digits");
    if !digits.exists() {
        write_sample_data(SampleSet::Digits, &digits, &SampleOptions::default())?;
    }
    let images = ImageFolder::open(&digits, 0.0, 0)?;
    let spec = models::spec("resnet_tiny")?;
    let transform = Transform::new(16, 16, Augment::None, spec.preprocessing.value);
    let train = Loader::new(images.train, transform.clone(), LoaderOptions::new(Mode::Train, BATCH, 0))?;
    let val = Loader::new(images.val, transform, LoaderOptions::new(Mode::Eval, BATCH, 0))?;

    let policy = Policy::recipe("bn-only")?.with_rules(&["from:layer3 -> weights=train"])?;
    let network = policy::resolve(&policy, spec.build(BATCH, (16, 16), images.classes.len())?)?.graph;
    let state = weights::StateDict::load(root.join("assets/resnet_tiny_shapes.safetensors"))?;
    let tensors = weights::from_state(&network, state, 0)?.tensors;

    let sgd = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false });
    let options = Options {
        optimizer: sgd,
        label_smoothing: 0.0,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };
    let (device, input) = (Device::open(&DeviceOptions::default())?, spec.preprocessing.value.into());
    let mut session = Session::new(&device, network, &tensors, input, options)?;
    let mut evaluator = session.evaluator(BATCH)?;
    println!("before: {:.1} %", evaluate(&mut evaluator, &val)?);
    for epoch in 0..2 {
        for batch in train.epoch(epoch, 0)? {
            let batch = batch?;
            session.step(Images::Bytes(&batch.pixels), &batch.labels, 0.02)?;
        }
    }
    evaluator.refresh()?;
    println!("after: {:.1} %", evaluate(&mut evaluator, &val)?);
    Ok(())
}

fn evaluate(evaluator: &mut Evaluator, images: &Loader) -> Result<f64, Box<dyn std::error::Error>> {
    let mut totals = Totals::default();
    for batch in images.epoch(0, 0)? {
        let mut batch = batch?;
        let valid = batch.valid();
        batch.labels[valid..].fill(PADDING);
        totals += evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels)?;
    }
    Ok(100.0 * totals.accuracy())
}
