//! How long the host takes before a device does anything: compiling and planning a training step, and loading weights.
//!
//!     cargo bench --bench host                             # against the last run
//!     cargo bench --bench host -- --save-baseline before   # and later: -- --baseline before

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::fs;
use thawline::compile::{self, Optimizer, Options};
use thawline::graph::{Graph, Sgd};
use thawline::kernels::conv2d::Variant;
use thawline::models;
use thawline::plan::{Input, Plan};
use thawline::policy::{Policy, resolve};
use thawline::weights::{self, StateDict};

criterion_group!(benches, planning, loading);
criterion_main!(benches);

/// The networks with the most layers.
const LARGEST: [&str; 2] = ["resnet152", "efficientnet_b7"];

fn network(name: &str, policy: &str) -> Graph {
    let network = models::build(name, 8, (224, 224), 1000).expect("a network");
    resolve(&Policy::recipe(policy).expect("a recipe"), network).expect("a policy").graph
}

fn planning(criterion: &mut Criterion) {
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false };
    let options = Options::new(Optimizer::Sgd(sgd));
    for name in LARGEST {
        for policy in ["full", "keras-guide"] {
            let network = network(name, policy);
            let mut group = criterion.benchmark_group(format!("{name}/{policy}"));
            group.sample_size(20);
            group.bench_function("compile", |bencher| {
                bencher.iter(|| compile::training(network.clone(), &options).expect("a step"));
            });
            let step = compile::training(network, &options).expect("a step");
            group.bench_function("plan", |bencher| {
                bencher.iter(|| Plan::new(step.clone(), Input::Values, Variant::Workgroup));
            });
            group.finish();
        }
    }
}

fn loading(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let network = network("resnet50", "full");
    let file = folder.path().join("resnet50.safetensors");
    weights::to_state(&network, &weights::initialise(&network, 0)).save(&file).expect("a file");
    let mut group = criterion.benchmark_group("resnet50");
    group.sample_size(20).throughput(Throughput::Bytes(fs::metadata(&file).expect("a file").len()));
    group.bench_function("load", |bencher| {
        bencher.iter(|| {
            let state = StateDict::load(&file).expect("weights");
            weights::from_state(&network, state, 0).expect("the network's tensors")
        });
    });
    group.finish();
}
