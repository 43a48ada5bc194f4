//! Compares three policies from code, each with its own learning rate: `cargo run --release --example compare`.
//! The results are those of `thawline compare`: a folder with a page, tables, and the weights to use.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Transform};
use thawline::gpu::{Device, DeviceOptions};
use thawline::lab::{self, Bench, Lab, LabEvent, in_words};
use thawline::policy::Policy;
use thawline::train::{Decay, HeadStart, ImageSet, OptimizerSettings, Schedule, Settings};
use thawline::{models, report, weights};

fn main() -> Result<(), Box<dyn Error>> {
    const BATCH: usize = 32;
    const SEED: u64 = 0;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = root.join("target/digits-far");
    if !data.exists() {
        write_sample_data(SampleSet::DigitsFar, &data, &SampleOptions::default())?;
    }
    let mut images = ImageFolder::open(&data, 0.2, SEED)?;
    images.keep_train(200, SEED)?;

    let spec = models::spec("resnet_tiny")?;
    let network = spec.build(BATCH, (16, 16), images.classes.len())?;
    let arms: Vec<_> = ["head", "bn-only", "full"]
        .into_iter()
        .map(|name| Policy::recipe(name).map(|policy| in_words(&policy)))
        .collect::<Result<_, _>>()?;
    let settings = Settings {
        thawline: env!("CARGO_PKG_VERSION").into(),
        model: spec.name.to_string(),
        graph: None,
        weights: None,
        weights_set: None,
        // Digits have other classes than shapes.
        head: Some(HeadStart::New),
        classes: images.classes.clone(),
        batch: BATCH,
        accumulate: 1,
        drop_last: lab::drop_last(&arms, &network)?,
        epochs: 5,
        seed: SEED,
        label_smoothing: 0.0,
        class_weights: None,
        sampler: Default::default(),
        patience: None,
        val_fraction: 0.2,
        train_images: Some(200),
        skip_broken: false,
        then: None,
        images: ImageSet::of(&images, &data),
        policy: arms[0].clone(),
        optimizer: OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        schedule: Schedule { lr: 0.003, warmup: 2, decay: Decay::Cosine { end: 0.0 } },
        decode: Default::default(),
        transform: Transform::new(16, 16, Augment::None, spec.preprocessing.value),
        data: data.clone(),
    };
    let device = Device::open(&DeviceOptions::default())?;
    let state = weights::StateDict::load(root.join("assets/resnet_tiny_shapes.safetensors"))?;
    let input = spec.preprocessing.value.into();
    let bench = Bench { device: &device, network, input, images: &images, data, weights: Some(state) };

    let out = tempfile::tempdir_in(root.join("target"))?.keep();
    let (seeds, rates, cache) = (vec![0, 1], vec![0.001, 0.003, 0.01], 256 << 20);
    let mut lab = Lab::start(bench, &out, settings, arms, seeds, rates, cache)?;
    lab.run(&Arc::new(AtomicBool::new(false)), |event| {
        match event {
            LabEvent::Searched { arm, search } => println!("policy {arm}: learning rate {}", search.lr),
            LabEvent::Done { arm, run, .. } => {
                println!("policy {arm}, seed {}: {:.1} %", run.seed, 100.0 * run.last_accuracy().unwrap_or(f64::NAN));
            }
            LabEvent::Trial { .. } | LabEvent::Run { .. } => {}
        }
        Ok(())
    })?;
    for paragraph in report::conclusion(lab.comparison()) {
        println!("\n{paragraph}");
    }
    println!("\nsee {}", out.join(lab::PAGE_FILE).display());
    Ok(())
}
