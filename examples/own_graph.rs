//! A network of one's own, layer by layer, trained from random weights on drawn shapes, and saved with its graph so that
//! the command line opens it: `cargo run --release --example own_graph`.

use std::error::Error;
use std::path::Path;
use thawline::compile::{Optimizer, Options};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Loader, LoaderOptions, Mode, Transform};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::{AdamW, Builder, Graph, GraphError, Window};
use thawline::models::{GraphAbout, GraphFile};
use thawline::policy::{self, Policy};
use thawline::preprocessing::Preprocessing;
use thawline::train::{Images, Session};
use thawline::weights;

const BATCH: usize = 32;
const CLASSES: usize = 10;

/// Two residual blocks; names are those that policies select and that weights files hold.
fn network(batch: usize, (height, width): (usize, usize)) -> Result<Graph, GraphError> {
    let mut b = Builder::new();
    let image = b.input(batch, height, width, 3)?;
    let mut x = b.conv2d("stem.conv", image, 16, Window::square(3, 1, 1), false)?;
    x = b.batch_norm("stem.bn", x, 1e-5)?;
    x = b.relu("stem.relu", x)?;
    for (index, channels) in [16, 32].into_iter().enumerate() {
        let stride = if index == 0 { 1 } else { 2 };
        let name = |layer: &str| format!("block{index}.{layer}");
        b.block(Some(&format!("block{index}")));
        let shortcut = match stride {
            1 => x,
            _ => b.conv2d(&name("shortcut"), x, channels, Window::square(1, stride, 0), false)?,
        };
        let mut y = b.conv2d(&name("conv1"), x, channels, Window::square(3, stride, 1), false)?;
        y = b.batch_norm(&name("bn1"), y, 1e-5)?;
        y = b.relu(&name("relu1"), y)?;
        y = b.conv2d(&name("conv2"), y, channels, Window::square(3, 1, 1), false)?;
        y = b.batch_norm(&name("bn2"), y, 1e-5)?;
        y = b.add(&name("add"), y, shortcut)?;
        x = b.relu(&name("relu2"), y)?;
    }
    b.block(None);
    let pooled = b.global_avg_pool("pool", x)?;
    let logits = b.linear("fc", pooled, CLASSES)?;
    b.finish(logits)
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shapes = root.join("target/shapes");
    if !shapes.exists() {
        write_sample_data(SampleSet::Shapes, &shapes, &SampleOptions::default())?;
    }
    let images = ImageFolder::open(&shapes, 0.2, 0)?;
    let preprocessing = Preprocessing::default();
    let transform = Transform::new(16, 16, Augment::None, preprocessing);
    let train = Loader::new(images.train, transform, LoaderOptions::new(Mode::Train, BATCH, 0))?;

    let graph = network(BATCH, (16, 16))?;
    let tensors = weights::initialise(&graph, 0);
    let graph = policy::resolve(&Policy::recipe("full")?, graph)?.graph;
    let adamw = Optimizer::AdamW(AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 });
    let options = Options {
        optimizer: adamw,
        label_smoothing: 0.0,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };
    let device = Device::open(&DeviceOptions::default())?;
    let mut session = Session::new(&device, graph, &tensors, preprocessing.into(), options)?;
    for epoch in 0..3 {
        let (mut loss, mut batches) = (0.0, 0.0);
        for batch in train.epoch(epoch, 0)? {
            let batch = batch?;
            loss += session.step(Images::Bytes(&batch.pixels), &batch.labels, 0.003)?.mean_loss();
            batches += 1.0;
        }
        println!("epoch {}: training loss {:.3}", epoch + 1, loss / batches);
    }

    let about = GraphAbout { name: "two_blocks".into(), size: (16, 16), preprocessing };
    let file = GraphFile::of(about, |size| network(BATCH, size))?;
    let mut state = weights::to_state(session.network(), &session.parameters()?);
    state.metadata.insert("graph".into(), file.json());
    state.metadata.insert("classes".into(), format!("{:?}", images.classes));
    let path = root.join("target/two_blocks.safetensors");
    state.save(&path)?;
    println!("saved; try: thawline eval --weights {} --data {}", path.display(), shapes.display());
    Ok(())
}
