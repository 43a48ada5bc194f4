//! Fine-tunes a Keras file on a folder of images, and writes a Keras file:
//! `cargo run --release --example keras -- in.keras photos out.keras`.

use std::error::Error;
use std::path::PathBuf;
use thawline::compile;
use thawline::data::{ImageFolder, Loader, LoaderOptions, Mode};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::Sgd;
use thawline::model::{Model, Options};
use thawline::policy::{self, Policy};
use thawline::train::{Images, Session};
use thawline::weights::Head;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [file, photos, out] = &args[..] else {
        return Err("give a Keras file, a folder of images, and the file to write".into());
    };
    let images = ImageFolder::open(photos, 0.0, 0)?;
    // Where the file's classes are others, the head starts anew.
    let options = Options { classes: Some(images.classes.len()), head: Head::Optional, ..Options::default() };
    let mut model = Model::open_with(file, options)?;
    model.class_names = Some(images.classes.clone());
    let size = model.size(None);
    let loader = Loader::new(images.train, model.transform(size), LoaderOptions::new(Mode::Train, 8, 0))?;
    let network = policy::resolve(&Policy::recipe("keras-guide")?, model.network(8, size)?)?.graph;
    let tensors = model.tensors(&network)?;
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false };
    let options = compile::Options::new(compile::Optimizer::Sgd(sgd));
    let mut session =
        Session::new(&Device::open(&DeviceOptions::default())?, network, &tensors, model.input(), options)?;
    for batch in loader.epoch(0, 0)? {
        let batch = batch?;
        println!("loss {:.4}", session.step(Images::Bytes(&batch.pixels), &batch.labels, 0.01)?.mean_loss());
    }
    model.save(session.network(), &session.parameters()?, out)?.iter().for_each(|note| println!("note: {note}"));
    Ok(())
}
