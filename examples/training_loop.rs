//! A training loop of one's own: the head alone first, then everything with frozen statistics, with a schedule of its own,
//! until the validation loss rises: `cargo run --release --example training_loop`.

use std::error::Error;
use std::path::Path;
use thawline::compile::{Optimizer, Options};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Loader, LoaderOptions, Mode, Transform};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::Sgd;
use thawline::policy::{self, Policy};
use thawline::train::{Evaluator, Images, PADDING, Session, Totals};
use thawline::{models, weights};

fn main() -> Result<(), Box<dyn Error>> {
    const BATCH: usize = 32;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let digits = root.join("target/digits");
    if !digits.exists() {
        write_sample_data(SampleSet::Digits, &digits, &SampleOptions::default())?;
    }
    let images = ImageFolder::open(&digits, 0.2, 0)?;
    let spec = models::spec("resnet_tiny")?;
    let transform = Transform::new(16, 16, Augment::None, spec.preprocessing.value);
    let train = Loader::new(images.train, transform.clone(), LoaderOptions::new(Mode::Train, BATCH, 0))?;
    let val = Loader::new(images.val, transform, LoaderOptions::new(Mode::Eval, BATCH, 0))?;

    let network = spec.build(BATCH, (16, 16), images.classes.len())?;
    let state = weights::StateDict::load(root.join("assets/resnet_tiny_shapes.safetensors"))?;
    let mut tensors = weights::from_state(&network, state, 0)?.tensors;
    let device = Device::open(&DeviceOptions::default())?;
    let sgd = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4, decoupled: false });
    let options = Options {
        optimizer: sgd,
        label_smoothing: 0.1,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };

    // Each phase is a plan of its own, compiled for what trains in it.
    for (recipe, rate, epochs) in [("head", 0.1, 3), ("full-frozen-bn", 0.02, 20)] {
        let graph = policy::resolve(&Policy::recipe(recipe)?, network.clone())?.graph;
        let input = spec.preprocessing.value.into();
        let mut session = Session::new(&device, graph, &tensors, input, options)?;
        let mut evaluator = session.evaluator(BATCH)?;
        let steps = (epochs * train.batches() as u64) as f64;
        let mut best = f64::INFINITY;
        for epoch in 0..epochs {
            for batch in train.epoch(epoch, 0)? {
                let batch = batch?;
                let left = 1.0 - session.steps() as f64 / steps;
                session.step(Images::Bytes(&batch.pixels), &batch.labels, rate * left * left)?;
            }
            evaluator.refresh()?;
            let totals = evaluate(&mut evaluator, &val)?;
            let (loss, accuracy) = (totals.mean_loss(), 100.0 * totals.accuracy());
            println!("{recipe}, epoch {}: validation loss {loss:.3}, {accuracy:.1} %", epoch + 1);
            if loss > best {
                break;
            }
            best = loss;
            tensors = session.parameters()?;
        }
    }
    let file = root.join("target/tuned.safetensors");
    weights::to_state(&network, &tensors).save(&file)?;
    println!("saved {}", file.display());
    Ok(())
}

fn evaluate(evaluator: &mut Evaluator, images: &Loader) -> Result<Totals, Box<dyn Error>> {
    let mut totals = Totals::default();
    for batch in images.epoch(0, 0)? {
        let mut batch = batch?;
        let valid = batch.valid();
        batch.labels[valid..].fill(PADDING);
        totals += evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels)?;
    }
    Ok(totals)
}
