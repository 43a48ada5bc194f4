//! Compares three policies from code, each with its own learning rate: `cargo run --release --example compare`.
//! The results are those of `thawline compare`: a folder with a page, tables, and the weights to use.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::gpu::{Device, DeviceOptions};
use thawline::lab::{self, LabEvent};
use thawline::model::Model;
use thawline::policy::Policy;
use thawline::report;
use thawline::study::{Images, OptimizerKind, Options, Rates, model_options};
use thawline::train::HeadStart;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = root.join("target/digits-far");
    if !data.exists() {
        write_sample_data(SampleSet::DigitsFar, &data, &SampleOptions::default())?;
    }
    let options = Options {
        epochs: Some(5),
        optimizer: Some(OptimizerKind::AdamW),
        train_images: Some(200),
        // Digits have other classes than shapes.
        head: Some(HeadStart::New),
        ..Options::default()
    };
    let images = Images::open(&data, &options, None)?;
    let weights = root.join("assets/resnet_tiny_shapes.safetensors");
    let model = Model::open_with(&weights, model_options(&images, &options))?;
    let policies = ["head", "bn-only", "full"].map(Policy::recipe).into_iter().collect::<Result<Vec<_>, _>>()?;
    let device = Device::open(&DeviceOptions::default())?;

    let out = tempfile::tempdir_in(root.join("target"))?.keep();
    let (rates, seeds, cache) = (Rates::Given(vec![0.001, 0.003, 0.01]), 2, 256 << 20);
    let mut lab = images.comparison(&device, model, &policies, rates, seeds, cache, &options, &out, &())?;
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
