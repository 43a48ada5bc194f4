//! Training as a whole: what a step computes, what it leaves alone, and what a run's folder holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use tempfile::TempDir;
use thawline::compile::{Optimizer, Options};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, DecodeOptions, ImageFolder, Sampler, Transform};
use thawline::gpu::{Device, DeviceOptions, GpuError};
use thawline::graph::{Act, AdamW, Affine, Builder, Graph, Output, Phase, Role, Sgd, StatsUpdate, Window};
use thawline::kernels::StepScalars;
use thawline::kernels::conv2d::Variant;
use thawline::models::{self, Spec};
use thawline::plan::{Input, Storage};
use thawline::policy::{Policy, RECIPES, Rule, resolve, resolve_stages};
use thawline::preprocessing::Preprocessing;
use thawline::reference;
use thawline::report::{METRICS_FILE, RunLog};
use thawline::rng::Rng;
use thawline::tensor::HostTensor;
use thawline::train::{
    BEST_FILE, CHECKPOINT_FILE, Decay, EpochMetrics, Evaluator, Event, FeatureCache, ImageSet, Images, Job, LAST_FILE,
    OptimizerSettings, Outcome, PADDING, PolicySettings, RECALIBRATED_FILE, Run, Schedule, Session, Settings,
    StageSettings, StepWindow, Then, TrainError, best, takes_batch_statistics,
};
use thawline::weights::{self, StateDict, TensorData};

/// Images per batch, and pixels per side.
const BATCH: usize = 4;
const SIZE: usize = 16;
const CLASSES: usize = 10;

const PLAIN: Sgd = Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0, decoupled: false };
const MOMENTUM: Sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-3, decoupled: false };
const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

fn device() -> Device {
    static DEVICE: LazyLock<Mutex<Device>> =
        LazyLock::new(|| Mutex::new(Device::open(&DeviceOptions::default()).expect("a device")));
    DEVICE.lock().expect("a device").clone()
}

fn spec() -> &'static Spec {
    models::spec("resnet_tiny").expect("the model")
}

fn input() -> Input {
    spec().preprocessing.value.into()
}

fn policy(name: &str, sets: &[&str]) -> Policy {
    // Ghost batches that a small batch has several of.
    let ghosts: &[&str] = if name == "full-ghost" { &["kind:bn -> domain=ghost(2)"] } else { &[] };
    Policy::recipe(name).and_then(|policy| policy.with_rules(&[ghosts, sets].concat())).expect("the policy")
}

fn network(policy: &Policy, batch: usize) -> Graph {
    let graph = spec().build(batch, (SIZE, SIZE), CLASSES).expect("the network");
    resolve(policy, graph).expect("the policy suits").graph
}

fn options(optimizer: Optimizer, accumulate: usize) -> Options {
    Options { optimizer, label_smoothing: 0.0, class_weights: false, accumulate, export_gradients: false, seed: 0 }
}

/// Random RGBX pixels and labels.
fn batch(seed: u64, images: usize) -> (Vec<u8>, Vec<u32>) {
    let mut rng = Rng::new(seed);
    let pixels = (0..images * SIZE * SIZE * 4).map(|i| if i % 4 == 3 { 0 } else { rng.below(256) as u8 }).collect();
    (pixels, (0..images).map(|_| rng.below(CLASSES) as u32).collect())
}

/// Weights whose batch norms are not the identity, so that every axis has something to show.
fn tensors(network: &Graph) -> Vec<HostTensor> {
    let mut tensors = weights::initialise(network, 5);
    let mut rng = Rng::new(11);
    for (param, tensor) in network.params().iter().zip(&mut tensors) {
        let c = param.shape.stored_c();
        if matches!(param.role, Role::Affine | Role::Moments) {
            for channel in 0..param.channels {
                let (first, second) = (rng.range(0.0, 0.4), rng.range(0.0, 0.4));
                tensor.data[channel] += first as f32;
                tensor.data[c + channel] += second as f32;
            }
        }
    }
    tensors
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (apart / norm.max(f64::MIN_POSITIVE)).sqrt()
}

#[test]
fn a_step_computes_what_the_oracle_computes() {
    // With a small eps the first step of AdamW keeps only the sign of a gradient, and rounding decides those near zero.
    let adamw = AdamW { eps: 1e-2, ..ADAMW };
    for (recipe, optimizer) in RECIPES.iter().flat_map(|recipe| {
        [Optimizer::Sgd(MOMENTUM), Optimizer::AdamW(adamw)].map(|optimizer| (recipe.name, optimizer))
    }) {
        let network = network(&policy(recipe, &[]), BATCH);
        let start = tensors(&network);
        let (pixels, labels) = batch(1, BATCH);
        let lr = 0.05;

        let mut session = Session::new(&device(), network, &start, input(), options(optimizer, 1)).expect("a session");
        let totals = session.step(Images::Bytes(&pixels), &labels, lr).expect("a step");
        let ours = session.parameters().expect("the parameters");

        let plan = session.plan();
        let mut oracle = reference::Executor::new(plan);
        let fill = |slot: &mut [f32], words: &[f32]| slot[..words.len()].copy_from_slice(words);
        let slot = |storage| plan.slot(storage).expect("the plan has it");
        let params: Vec<_> = (0..plan.slots.len())
            .filter_map(|i| match plan.slots[i].storage {
                Storage::Param(id) => Some((id, slot(plan.slots[i].storage))),
                _ => None,
            })
            .collect();
        for &(id, slot) in &params {
            fill(oracle.slot_mut(slot), &start[id.index()].data);
        }
        oracle.run(&[Phase::Once]);
        fill(oracle.slot_mut(slot(Storage::Bytes)), bytemuck::cast_slice(&pixels));
        fill(oracle.slot_mut(slot(Storage::Labels)), bytemuck::cast_slice(&labels));
        let scalars = StepScalars {
            lr: lr as f32,
            correction1: (1.0 - ADAMW.beta1) as f32,
            correction2: (1.0 - ADAMW.beta2) as f32,
            inv_count: 1.0 / BATCH as f32,
            accumulate: 0.0,
            ..Default::default()
        };
        fill(oracle.slot_mut(slot(Storage::Step)), bytemuck::cast_slice(bytemuck::bytes_of(&scalars)));
        oracle.run(&[Phase::Forward, Phase::Backward, Phase::Update]);

        let rows = oracle.slot(plan.output(Output::Rows).expect("losses"));
        let loss: f64 = rows.chunks(4).take(BATCH).map(|row| f64::from(row[0])).sum();
        assert!((totals.loss - loss).abs() < 1e-5 * loss, "{recipe}: loss {} and {loss}", totals.loss);
        for (id, slot) in params {
            let (ours, before) = (&ours[id.index()].data, &start[id.index()].data);
            let oracle = &oracle.slot(slot)[..ours.len()];
            let change = |after: &[f32]| -> Vec<f32> { after.iter().zip(before).map(|(a, b)| a - b).collect() };
            let far = distance(&change(ours), &change(oracle));
            let network = session.network();
            let layer = &network.layers()[network.param(id).layer.index()].name;
            let role = network.param(id).role;
            assert!(far < 1e-4, "{recipe}, {layer} {role:?}: its change is {far:.1e} from the oracle's");
            assert_eq!(ours == before, oracle == before, "{recipe}, {layer} {role:?}: only one of them moved");
        }
    }
}

/// The tensors of a network's file form that `network`'s axes let change.
fn movable(network: &Graph) -> BTreeMap<String, bool> {
    let mut names = BTreeMap::new();
    for layer in network.layers() {
        let Some(mode) = layer.setting.batch_norm else {
            if !layer.params.is_empty() {
                names.insert(format!("{}.weight", layer.name), layer.setting.weights);
            }
            if layer.params.len() == 2 {
                names.insert(format!("{}.bias", layer.name), layer.setting.weights);
            }
            continue;
        };
        names.insert(format!("{}.weight", layer.name), matches!(mode.affine, Affine::Gamma | Affine::Both));
        names.insert(format!("{}.bias", layer.name), matches!(mode.affine, Affine::Beta | Affine::Both));
        for part in ["running_mean", "running_var", "num_batches_tracked"] {
            names.insert(format!("{}.{part}", layer.name), mode.update != StatsUpdate::Off);
        }
    }
    names
}

#[test]
fn frozen_is_frozen() {
    let mixed: &[&[&str]] = &[
        &["from:layer3 -> weights=train"],
        &["kind:bn & from:layer2 -> affine=gamma", "name:layer1.0.conv1 -> weights=train"],
        &["kind:bn -> stats=blend(0.3), domain=ghost(2)", "name:layer2.* & kind:bn -> affine=gamma"],
        &[
            "kind:bn -> stats=batch, update=cumulative, affine=beta",
            "name:bn1 -> stats=running, update=off, affine=none",
        ],
    ];
    let policies = RECIPES.iter().map(|recipe| policy(recipe.name, &[]));
    for policy in policies.chain(mixed.iter().map(|sets| policy("head", sets))) {
        let network = network(&policy, BATCH);
        let start = tensors(&network);
        for optimizer in [Optimizer::Sgd(MOMENTUM), Optimizer::AdamW(ADAMW)] {
            let mut session =
                Session::new(&device(), network.clone(), &start, input(), options(optimizer, 1)).expect("a session");
            for step in 0..3 {
                let (pixels, labels) = batch(step, BATCH);
                session.step(Images::Bytes(&pixels), &labels, 0.01).expect("a step");
            }
            let before = weights::to_state(&network, &start);
            let after = weights::to_state(&network, &session.parameters().expect("the parameters"));
            let movable = movable(&network);
            assert_eq!(movable.len(), after.tensors.len());
            for (name, may_move) in movable {
                let moved = bits(&before.tensors[&name].data) != bits(&after.tensors[&name].data);
                let rules: Vec<String> = policy.rules.iter().map(ToString::to_string).collect();
                assert_eq!(moved, may_move, "{name} under {rules:?} moved: {moved}");
            }
        }
    }
}

fn bits(data: &TensorData) -> Vec<u64> {
    match data {
        TensorData::F32(values) => values.iter().map(|v| u64::from(v.to_bits())).collect(),
        TensorData::I64(values) => values.iter().map(|&v| v as u64).collect(),
    }
}

#[test]
fn every_recipe_gives_the_same_bits_twice() {
    for recipe in RECIPES {
        let network = network(&policy(recipe.name, &[]), BATCH);
        let start = tensors(&network);
        let trained = || {
            let options = options(Optimizer::Sgd(MOMENTUM), 1);
            let mut session = Session::new(&device(), network.clone(), &start, input(), options).expect("a session");
            for step in 0..2 {
                let (pixels, labels) = batch(step, BATCH);
                session.step(Images::Bytes(&pixels), &labels, 0.01).expect("a step");
            }
            weights::to_state(&network, &session.parameters().expect("the parameters")).tensors
        };
        for ((name, first), (_, second)) in trained().iter().zip(&trained()) {
            assert_eq!(bits(&first.data), bits(&second.data), "{}: {name}", recipe.name);
        }
    }
}

#[test]
fn accumulated_statistics_are_those_of_one_batch() {
    const PARTS: usize = 3;
    let (pixels, labels) = batch(7, PARTS * BATCH);
    let start = tensors(&network(&policy("full", &[]), BATCH));
    // Two steps, so that the running moments and the optimiser's state count, too.
    let train = |policy: &Policy, batch: usize, accumulate: usize| {
        let options = options(Optimizer::AdamW(ADAMW), accumulate);
        let mut session = Session::new(&device(), network(policy, batch), &start, input(), options).expect("a session");
        let (mut losses, bytes) = (Vec::new(), batch * SIZE * SIZE * 4);
        for _ in 0..2 {
            for (pixels, labels) in pixels.chunks_exact(bytes).zip(labels.chunks_exact(batch)) {
                session.submit(Images::Bytes(pixels), labels, 1e-3).expect("a batch");
            }
        }
        let steps = 2 * labels.len() / batch / accumulate;
        assert_eq!(session.steps(), steps as u64);
        while let Some(totals) = session.completed(true).expect("results") {
            assert_eq!(totals.samples, batch as u64);
            losses.push(totals.loss);
        }
        (losses, session.parameters().expect("parameters"))
    };
    // The whole network; then some layers over the step, others over each micro-batch or a half of it.
    let ghosts = format!("from:layer2 & kind:bn -> domain=ghost({BATCH})");
    for (apart, together) in [
        (&["kind:bn -> domain=accumulated"][..], &[][..]),
        (&["kind:bn -> domain=accumulated", "from:layer2 & kind:bn -> domain=batch"], &[ghosts.as_str()]),
        (
            &["kind:bn -> domain=accumulated", "from:layer2 & kind:bn -> domain=ghost(2)"],
            &["from:layer2 & kind:bn -> domain=ghost(2)"],
        ),
    ] {
        let (losses, params) = train(&policy("full", apart), BATCH, PARTS);
        let (whole_losses, whole_params) = train(&policy("full", together), PARTS * BATCH, 1);
        assert!(params == whole_params, "{apart:?} is one batch under {together:?}, to the bit");
        assert_eq!((losses.len(), whole_losses.len()), (2 * PARTS, 2));
        for (parts, whole) in losses.chunks(PARTS).zip(whole_losses) {
            assert!((parts.iter().sum::<f64>() - whole).abs() < 1e-9 * whole, "{apart:?}");
        }
        // And it is something else than each micro-batch by itself.
        let (_, apart_params) = train(&policy("full", &[]), BATCH, PARTS);
        assert!(params != apart_params);
    }
    // With a single micro-batch a step there is nothing to gather.
    let (_, single) = train(&policy("full", &["kind:bn -> domain=accumulated"]), BATCH, 1);
    let (_, plain) = train(&policy("full", &[]), BATCH, 1);
    assert!(single == plain);
}

#[test]
fn a_smaller_step_is_that_of_a_plan_of_its_size() {
    for (recipe, takes) in [("full-frozen-bn", false), ("keras-guide", false), ("head", false), ("bn-only", true)] {
        assert_eq!(takes_batch_statistics(&network(&policy(recipe, &[]), BATCH)), takes, "{recipe}");
    }
    let moving = policy("head", &["kind:bn -> update=ema(0.9)"]);
    assert!(takes_batch_statistics(&network(&moving, BATCH)), "they would follow the padding");

    // Six images in one batch; in one of eight; and in micro-batches of four and two.
    let policy = policy("keras-guide", &[]);
    let (pixels, labels) = batch(3, 6);
    let padded = |from: usize, count: usize, size: usize| {
        let image = SIZE * SIZE * 4;
        let mut pixels = pixels[from * image..(from + count) * image].to_vec();
        let mut labels = labels[from..from + count].to_vec();
        pixels.resize(size * image, 0);
        labels.resize(size, PADDING);
        (pixels, labels)
    };
    for optimizer in [Optimizer::Sgd(MOMENTUM), Optimizer::AdamW(AdamW { eps: 1e-2, ..ADAMW })] {
        let after = |size: usize, accumulate: usize, parts: &[(usize, usize)]| {
            let network = network(&policy, size);
            let options = options(optimizer, accumulate);
            let start = tensors(&network);
            let mut session = Session::new(&device(), network, &start, input(), options).expect("a session");
            let window = StepWindow { batches: parts.len(), weight: 6.0 };
            for &(from, count) in parts {
                let (pixels, labels) = padded(from, count, size);
                session.submit_in(Images::Bytes(&pixels), &labels, 0.05, Some(window)).expect("a part");
            }
            let mut seen = 0;
            while let Some(totals) = session.completed(true).expect("results") {
                seen += totals.samples;
            }
            assert_eq!((seen, session.steps()), (6, 1));
            session.parameters().expect("the parameters")
        };
        let whole = after(6, 1, &[(0, 6)]);
        for (size, accumulate, parts) in [(8, 1, &[(0, 6)][..]), (4, 2, &[(0, 4), (4, 2)]), (4, 3, &[(0, 4), (4, 2)])] {
            for (ours, expected) in after(size, accumulate, parts).iter().zip(&whole) {
                let apart = distance(&ours.data, &expected.data);
                assert!(apart < 1e-5, "{apart} in batches of {size}, {accumulate} a step");
            }
        }
    }
}

#[test]
fn micro_batches_make_the_weighted_mean_of_one_batch() {
    let policy = policy("keras-guide", &[]);
    let (pixels, _) = batch(3, 6);
    let labels = [0, 0, 0, 1, 0, 2];
    let class_weights: Vec<f64> = (0..CLASSES).map(|class| [0.5, 4.0, 0.0][class.min(2)]).collect();
    let weight = |labels: &[u32]| labels.iter().map(|&label| class_weights[label as usize]).sum::<f64>();
    let after = |size: usize, accumulate: usize, weighted: bool| {
        let network = network(&policy, size);
        let options =
            Options { label_smoothing: 0.1, class_weights: weighted, ..options(Optimizer::Sgd(MOMENTUM), accumulate) };
        let start = tensors(&network);
        let mut session = Session::new(&device(), network, &start, input(), options).expect("a session");
        if weighted {
            session.set_class_weights(&class_weights).expect("a weight a class");
        }
        let window = StepWindow { batches: accumulate, weight: if weighted { weight(&labels) } else { 6.0 } };
        for (pixels, labels) in pixels.chunks(size * SIZE * SIZE * 4).zip(labels.chunks(size)) {
            session.submit_in(Images::Bytes(pixels), labels, 0.05, Some(window)).expect("a part");
        }
        let mut loss = 0.0;
        while let Some(totals) = session.completed(true).expect("results") {
            loss += totals.loss;
        }
        (session.parameters().expect("the parameters"), loss)
    };
    let (whole, loss) = after(6, 1, true);
    for (size, accumulate) in [(3, 2), (2, 3), (1, 6)] {
        let (parts, sum) = after(size, accumulate, true);
        assert!((sum - loss).abs() < 1e-5 * loss, "{sum} {loss}");
        for (ours, expected) in parts.iter().zip(&whole) {
            let apart = distance(&ours.data, &expected.data);
            assert!(apart < 1e-5, "{apart} in batches of {size}");
        }
    }
    let (plain, _) = after(6, 1, false);
    assert!(plain.iter().zip(&whole).any(|(a, b)| distance(&a.data, &b.data) > 1e-4), "weights change the step");

    // Where nothing is said of the window, a batch is one.
    let options = Options { class_weights: true, label_smoothing: 0.1, ..options(Optimizer::Sgd(MOMENTUM), 1) };
    let network = network(&policy, 6);
    let mut session =
        Session::new(&device(), network.clone(), &tensors(&network), input(), options).expect("a session");
    session.set_class_weights(&class_weights).expect("a weight a class");
    session.step(Images::Bytes(&pixels), &labels, 0.05).expect("a step");
    assert_eq!(session.parameters().expect("the parameters"), whole);

    // A number too few; and a plan that takes none.
    assert!(matches!(session.set_class_weights(&[1.0]), Err(TrainError::ClassWeightCount { found: 1, .. })));
    let options = Options { class_weights: false, ..options };
    let mut session =
        Session::new(&device(), network.clone(), &tensors(&network), input(), options).expect("a session");
    assert!(matches!(session.set_class_weights(&class_weights), Err(TrainError::ClassWeightCount { .. })));
}

#[test]
fn a_few_images_are_learnt_by_heart() {
    for (recipe, lr) in [
        ("full", 0.05),
        ("full-frozen-bn", 0.004),
        ("keras-guide", 0.004),
        ("bn-only", 0.2),
        ("full-renorm", 0.05),
        ("full-ghost", 0.05),
        ("bn-blend", 0.2),
    ] {
        let network = network(&policy(recipe, &[]), 8);
        let start = weights::initialise(&network, 1);
        let sgd = Optimizer::Sgd(Sgd { momentum: 0.9, ..PLAIN });
        let mut session = Session::new(&device(), network, &start, input(), options(sgd, 1)).expect("a session");
        let (pixels, labels) = batch(3, 8);
        let mut losses = Vec::new();
        for _ in 0..60 {
            losses.push(session.step(Images::Bytes(&pixels), &labels, lr).expect("a step").mean_loss());
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < first / 10.0, "{recipe}: the loss went from {first} to {last} only");
    }
}

#[test]
fn statistics_are_committed_once_an_optimiser_step() {
    let network = network(&policy("full", &[]), BATCH);
    let start = tensors(&network);
    let (pixels, labels) = batch(9, BATCH);
    let after = |window: usize, micro_batches: usize| {
        let options = options(Optimizer::Sgd(PLAIN), window);
        let mut session = Session::new(&device(), network.clone(), &start, input(), options).expect("a session");
        for _ in 0..micro_batches {
            session.step(Images::Bytes(&pixels), &labels, 0.01).expect("a step");
        }
        weights::to_state(&network, &session.parameters().expect("the parameters"))
    };
    // The mean over equal micro-batches is the moments of one: a window of three is one step.
    let (one, three) = (after(1, 1), after(3, 3));
    for (name, tensor) in &one.tensors {
        match (&tensor.data, &three.tensors[name].data) {
            (TensorData::I64(one), TensorData::I64(three)) => assert_eq!((&one[..], &three[..]), (&[1][..], &[1][..])),
            (TensorData::F32(one), TensorData::F32(three)) => {
                assert!(distance(three, one) < 1e-5, "{name}: {:.1e}", distance(three, one));
            }
            _ => panic!("{name} changed its kind"),
        }
    }
    // An open window commits nothing.
    let before = weights::to_state(&network, &start);
    assert_eq!(after(3, 2).tensors, before.tensors);
}

#[test]
fn a_ghost_batch_is_a_micro_batch() {
    let (pixels, labels) = batch(9, 4);
    let after = |recipe: &str, images: usize, window: usize| {
        let network = network(&policy(recipe, &[]), images);
        let start = tensors(&network);
        let options = options(Optimizer::Sgd(MOMENTUM), window);
        let mut session = Session::new(&device(), network.clone(), &start, input(), options).expect("a session");
        for (pixels, labels) in pixels.chunks(images * SIZE * SIZE * 4).zip(labels.chunks(images)) {
            session.step(Images::Bytes(pixels), labels, 0.05).expect("a step");
        }
        (weights::to_state(&network, &start), weights::to_state(&network, &session.parameters().expect("them")))
    };
    let (start, ghosts) = after("full-ghost", 4, 1);
    let (_, micro_batches) = after("full", 2, 2);
    for (name, tensor) in &ghosts.tensors {
        let before = &start.tensors[name].data;
        match (&tensor.data, &micro_batches.tensors[name].data, before) {
            (TensorData::I64(a), TensorData::I64(b), _) => assert_eq!((&a[..], &b[..]), (&[1][..], &[1][..])),
            (TensorData::F32(a), TensorData::F32(b), TensorData::F32(before)) => {
                let change = |after: &[f32]| -> Vec<f32> { after.iter().zip(before).map(|(a, b)| a - b).collect() };
                let apart = distance(&change(a), &change(b));
                assert!(apart < 1e-4, "{name}: {apart:.1e}");
            }
            _ => panic!("{name} changed its kind"),
        }
    }
}

/// Forty training and ten validation images of ten classes.
struct Fixture {
    dir: TempDir,
    settings: Settings,
    images: ImageFolder,
    /// For a batch of so many images.
    network: fn(usize) -> Graph,
}

/// A block with stochastic depth and a head with dropout.
fn dropping(batch: usize) -> Graph {
    let mut b = Builder::new();
    let x = b.input(batch, SIZE, SIZE, 3).expect("images");
    let x = b.conv2d("stem", x, 8, Window::square(3, 2, 1), false).expect("a convolution");
    let x = b.batch_norm("stem.bn", x, 1e-3).expect("a batch norm");
    let x = b.activation("stem.act", x, Act::Silu).expect("an activation");
    let y = b.grouped_conv2d("block.conv", x, 8, Window::square(3, 1, 1), 8, false).expect("a convolution");
    let y = b.batch_norm("block.bn", y, 1e-3).expect("a batch norm");
    let y = b.stochastic_depth("block.drop", y, 0.5).expect("stochastic depth");
    let x = b.add("block.add", x, y).expect("a sum");
    let x = b.global_avg_pool("pool", x).expect("a pool");
    let x = b.dropout("dropout", x, 0.2).expect("dropout");
    let logits = b.linear("fc", x, CLASSES).expect("a head");
    b.finish(logits).expect("a network")
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        let options = SampleOptions { per_class: 5, size: SIZE as u32, ..SampleOptions::default() };
        write_sample_data(SampleSet::Shapes, &data, &options).expect("the images");
        let images = ImageFolder::open(&data, 0.0, 0).expect("the images");
        let settings = Settings {
            thawline: "test".into(),
            model: "resnet_tiny".into(),
            graph: None,
            weights: None,
            weights_set: None,
            classes: images.classes.clone(),
            batch: BATCH,
            accumulate: 1,
            drop_last: true,
            epochs: 2,
            seed: 3,
            label_smoothing: 0.1,
            class_weights: None,
            sampler: Sampler::Shuffled,
            patience: None,
            val_fraction: 0.0,
            train_images: None,
            skip_broken: false,
            then: None,
            head: None,
            images: ImageSet::of(&images, &data),
            policy: PolicySettings { name: "full".into(), rules: vec![], stages: vec![] },
            optimizer: OptimizerSettings::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 },
            schedule: Schedule { lr: 0.02, warmup: 3, decay: Decay::Cosine { end: 0.1 } },
            decode: DecodeOptions::default(),
            transform: Transform::new(SIZE as u32, SIZE as u32, Augment::CropFlip, Preprocessing::default()),
            data,
        };
        let network = |batch| spec().build(batch, (SIZE, SIZE), CLASSES).expect("the network");
        Self { dir, settings, images, network }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job<'a>(&'a self, device: &'a Device, settings: &Settings) -> Job<'a> {
        let graph = (self.network)(settings.batch);
        let stages = resolve_stages(&policy(&settings.policy.name, &[]), &graph).expect("the policy suits");
        let stages = stages.into_iter().map(|(_, stage)| stage.graph).collect();
        Job { device, stages, input: input(), images: &self.images, settings: settings.clone(), cache: None }
    }

    fn start(&self, settings: &Settings, out: &str) -> Result<Run, TrainError> {
        let tensors = weights::initialise(&(self.network)(settings.batch), settings.seed);
        self.job(&device(), settings).start(&tensors, &self.out(out))
    }

    fn resume(&self, settings: &Settings, out: &str) -> Result<Run, TrainError> {
        self.job(&device(), settings).resume(&self.out(out))
    }
}

/// Runs, with a report, until the end or until `stop_at` says so of an event.
fn go(run: &mut Run, stop_at: impl Fn(&Event<'_>) -> bool) -> Result<Outcome, TrainError> {
    let stop = AtomicBool::new(false);
    let mut log = RunLog::open(run.folder(), run.step()).expect("a log");
    run.run(&stop, |event| {
        if stop_at(&event) {
            stop.store(true, Ordering::Relaxed);
        }
        Ok(log.record(&event)?)
    })
}

fn finish(run: &mut Run) -> Vec<EpochMetrics> {
    assert_eq!(go(run, |_| false).expect("a run"), Outcome::Finished);
    run.history().to_vec()
}

/// A device of its own, that a test may lose.
fn own_device() -> Device {
    let device = Device::open(&DeviceOptions::default()).expect("a device");
    // The same bits as on the shared one.
    device.with_variant(self::device().variant().expect("a variant")).expect("the device has it")
}

#[test]
fn a_run_that_loses_its_device_names_its_checkpoint_and_goes_on_with_the_same_bits() {
    let fixture = Fixture::new();
    let settings = Settings { epochs: 3, ..fixture.settings.clone() };
    let mut whole = fixture.start(&settings, "whole").expect("a run");
    let expected = finish(&mut whole);
    let weights = |name: &str| fs::read(fixture.out(name).join(LAST_FILE)).expect("weights");

    // In a step, in validation, and between the two, where the first thing is to read the weights back.
    type When = fn(&Event<'_>) -> bool;
    let places: [(&str, When); 3] = [
        ("step", |event| matches!(event, Event::Step(step) if step.epoch == 2)),
        ("validation", |event| matches!(event, Event::Validating { batches: 1, .. })),
        ("epoch", |event| matches!(event, Event::Epoch { history, .. } if history.len() == 2)),
    ];
    for (name, is_here) in places {
        let device = own_device();
        let tensors = weights::initialise(&(fixture.network)(settings.batch), settings.seed);
        let mut run = fixture.job(&device, &settings).start(&tensors, &fixture.out(name)).expect("a run");
        let ended = run.run(&AtomicBool::new(false), |event| {
            if is_here(&event) {
                device.destroy();
            }
            Ok(())
        });
        let error = ended.expect_err("the device is lost");
        let TrainError::Device { source, checkpoint, checkpoint_step } = &error else { panic!("{name}: {error:?}") };
        assert!(matches!(**source, GpuError::Lost { .. }), "{name}: {error:?}");
        assert_eq!(*checkpoint, fixture.out(name).join(CHECKPOINT_FILE));
        assert!(error.to_string().contains("was lost while") && error.to_string().contains(CHECKPOINT_FILE), "{error}");
        drop(run);
        let mut run = fixture.resume(&settings, name).expect("it resumes");
        assert_eq!(run.step(), *checkpoint_step, "{name}");
        assert_eq!(finish(&mut run), expected, "{name}");
        assert_eq!(weights(name), weights("whole"), "{name}");
    }

    // Where there is no run yet, there is no checkpoint to name.
    let device = own_device();
    device.destroy();
    let tensors = weights::initialise(&(fixture.network)(settings.batch), settings.seed);
    let started = fixture.job(&device, &settings).start(&tensors, &fixture.out("never"));
    assert!(matches!(started, Err(TrainError::Gpu(GpuError::Lost { .. }))), "{:?}", started.err());
    let resumed = fixture.job(&device, &settings).resume(&fixture.out("step"));
    assert!(matches!(resumed, Err(TrainError::Gpu(GpuError::Lost { .. }))), "{:?}", resumed.err());
}

fn assert_same_files(a: &Path, b: &Path) {
    for file in [CHECKPOINT_FILE, LAST_FILE, BEST_FILE, METRICS_FILE] {
        let same = fs::read(a.join(file)).expect(file) == fs::read(b.join(file)).expect(file);
        assert!(same, "{file} differs between {} and {}", a.display(), b.display());
    }
}

/// The settings under a recipe with stages.
fn staged(base: &Settings, recipe: &str, optimizer: OptimizerSettings) -> Settings {
    let stages = Policy::recipe(recipe).expect("a recipe").stages;
    let words = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    let stages = stages.iter().map(|stage| StageSettings { from: stage.from, rules: words(&stage.rules) }).collect();
    let schedule = Schedule { lr: 1e-3, ..base.schedule };
    let policy = PolicySettings { name: recipe.into(), rules: vec![], stages };
    Settings { policy, optimizer, schedule, ..base.clone() }
}

#[test]
fn a_stage_changes_what_trains() {
    let fixture = Fixture::new();
    let sgd = OptimizerSettings::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    for (recipe, layer, early, late) in
        [("head-then-full", "conv1.weight", false, true), ("full-then-frozen-bn", "bn1.running_mean", true, false)]
    {
        let settings = staged(&fixture.settings, recipe, sgd);
        let start = settings.stage_starts().next().expect("a second stage");
        assert!(start > 1 && start + 1 < settings.steps(), "{recipe} begins its second stage at step {start}");
        let mut run = fixture.start(&settings, recipe).expect("a run");
        let value = |run: &Run| {
            let tensors = run.session().parameters().expect("parameters");
            let tensor = weights::to_state(run.session().network(), &tensors).tensors.remove(layer);
            tensor.expect(layer).data
        };
        let until = |run: &mut Run, step: u64| {
            go(run, |event| matches!(event, Event::Step(metrics) if metrics.step == step)).expect("a run");
            value(run)
        };
        let first = value(&run);
        // A stage ends with all its results taken in, and a run that is stopped there has not entered the next.
        let at_end = until(&mut run, start);
        assert_eq!(run.step(), start);
        assert_eq!(at_end != first, early, "{recipe}: {layer} in the first stage");
        finish(&mut run);
        assert_eq!(value(&run) != at_end, late, "{recipe}: {layer} in the second stage");
    }
}

#[test]
fn a_stage_without_a_step_is_refused() {
    let fixture = Fixture::new();
    let sgd = OptimizerSettings::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut settings = staged(&fixture.settings, "head-then-full", sgd);
    settings.policy.stages[0].from = 1e-6;
    refused(fixture.start(&settings, "run"), &["stage is 0.000001", "more epochs"]);
}

#[test]
fn a_resumed_run_gives_the_bits_of_one_that_never_stopped() {
    let fixture = Fixture::new();
    let base = &fixture.settings;
    let adamw = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let schedule = Schedule { lr: 1e-3, ..base.schedule };
    let accumulated = PolicySettings { name: "full-accumulated".into(), rules: vec![], stages: vec![] };
    let frozen = PolicySettings { name: "full-frozen-bn".into(), rules: vec![], stages: vec![] };
    for (name, settings) in [
        ("sgd", base.clone()),
        ("adamw", Settings { optimizer: adamw, schedule, ..base.clone() }),
        ("accumulate", Settings { accumulate: 2, ..base.clone() }),
        // Its second stage begins in the first epoch, or at the end of that.
        ("stages", staged(base, "head-then-full", adamw)),
        ("accumulated", Settings { accumulate: 2, batch: BATCH / 2, policy: accumulated.clone(), ..base.clone() }),
        // The last step of an epoch is of three images and one.
        ("partial", Settings { drop_last: false, batch: 3, accumulate: 2, policy: frozen, ..base.clone() }),
        ("weights", Settings { class_weights: class_weights(base), accumulate: 2, ..base.clone() }),
        ("sampler", Settings { sampler: Sampler::Balanced, class_weights: class_weights(base), ..base.clone() }),
        (
            "weights-accumulated",
            Settings {
                class_weights: class_weights(base),
                accumulate: 2,
                batch: BATCH / 2,
                policy: accumulated.clone(),
                ..base.clone()
            },
        ),
        ("stage-at-epoch", Settings { epochs: 5, ..staged(base, "full-then-frozen-bn", adamw) }),
    ] {
        resumes_to_the_same_bits(&fixture, name, &settings);
    }
}

/// A weight a class that differs from the others'.
fn class_weights(settings: &Settings) -> Option<Vec<f64>> {
    Some((0..settings.classes.len()).map(|class| 0.5 + class as f64).collect())
}

#[test]
fn a_run_ends_when_its_patience_does() {
    let fixture = Fixture::new();
    // Nothing moves, so nothing becomes better than the first validation.
    let schedule = Schedule { lr: 0.0, warmup: 0, decay: Decay::Constant };
    let policy = PolicySettings { name: "full-frozen-bn".into(), rules: vec![], stages: vec![] };
    let settings = Settings { epochs: 6, patience: Some(2), schedule, policy, ..fixture.settings.clone() };
    let mut run = fixture.start(&settings, "early").expect("a run");
    assert_eq!(finish(&mut run).len(), 3, "two epochs, and the state before them");
    assert!(run.ended_early() && run.confusion().is_some_and(|c| c.images() == run.settings().images.val as u64));
    let epoch = &run.history()[2];
    assert_eq!(epoch.val_balanced, run.confusion().map(|confusion| confusion.balanced_accuracy()));
    drop(run);

    // Stopped on the way, and once more when it has ended.
    let mut run = fixture.start(&settings, "parts").expect("a run");
    let in_second = |event: &Event<'_>| matches!(event, Event::Step(step) if step.epoch == 2);
    assert_eq!(go(&mut run, in_second).expect("a run"), Outcome::Stopped);
    for _ in 0..2 {
        drop(run);
        run = fixture.resume(&settings, "parts").expect("it resumes");
        assert_eq!(finish(&mut run).len(), 3);
    }
    drop(run);
    assert_same_files(&fixture.out("early"), &fixture.out("parts"));

    // Not before the last stage had its epochs, of which the first begins after half of the steps.
    let sgd = OptimizerSettings::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let base = staged(&settings, "head-then-full", sgd);
    let begun = base.stage_starts().next().expect("a stage").div_ceil(base.steps_per_epoch() as u64) as usize;
    let settings = Settings { schedule, patience: Some(1), ..base };
    let mut run = fixture.start(&settings, "stages").expect("a run");
    let best = best(&finish(&mut run)).expect("validation").epoch;
    assert_eq!(run.history().len(), 1 + begun.max(best) + 1);
    assert!(begun >= 1 && run.history().len() <= settings.epochs);
}

#[test]
fn a_resumed_run_drops_what_one_that_never_stopped_drops() {
    let fixture = Fixture { network: dropping, ..Fixture::new() };
    resumes_to_the_same_bits(&fixture, "dropout", &fixture.settings);
    resumes_to_the_same_bits(&fixture, "accumulate", &Settings { accumulate: 2, ..fixture.settings.clone() });
    // Another seed orders the images otherwise and drops other values.
    let checkpoint = |name: &str| fs::read(fixture.out(name).join(CHECKPOINT_FILE)).expect("a checkpoint");
    finish(&mut fixture.start(&Settings { seed: 4, ..fixture.settings.clone() }, "seed").expect("a run"));
    assert!(checkpoint("seed") != checkpoint("dropout-whole"));
}

fn resumes_to_the_same_bits(fixture: &Fixture, name: &str, settings: &Settings) {
    let whole = format!("{name}-whole");
    finish(&mut fixture.start(settings, &whole).expect("a run"));
    // Twice the same bits, to begin with.
    let again = format!("{name}-again");
    finish(&mut fixture.start(settings, &again).expect("a run"));
    assert_same_files(&fixture.out(&whole), &fixture.out(&again));

    let parts = format!("{name}-parts");
    let mut run = fixture.start(settings, &parts).expect("a run");
    let per_epoch = settings.steps_per_epoch() as u64;
    let is_step = |event: &Event<'_>, number: u64| matches!(event, Event::Step(step) if step.step == number);
    type StopAt<'a> = (&'a str, Box<dyn Fn(&Event<'_>) -> bool + 'a>);
    let stops: [StopAt<'_>; 5] = [
        ("before everything", Box::new(|event| matches!(event, Event::Started { .. }))),
        ("in an epoch", Box::new(|event| is_step(event, 1))),
        ("in validation", Box::new(|event| matches!(event, Event::Validating { .. }))),
        ("between epochs", Box::new(|event| matches!(event, Event::Epoch { history, .. } if history.len() == 2))),
        ("in another epoch", Box::new(|event| is_step(event, per_epoch + 2))),
    ];
    let mut within_epochs = 0;
    for (place, stop_at) in stops {
        assert_eq!(go(&mut run, stop_at).expect("a run"), Outcome::Stopped, "{name}, {place}");
        within_epochs += u32::from(!run.step().is_multiple_of(per_epoch));
        let step = run.step();
        drop(run);
        run = fixture.resume(settings, &parts).expect("it resumes");
        assert_eq!(run.step(), step, "{name}, {place}");
    }
    assert!(within_epochs >= 2, "{name}: stopped within epochs only {within_epochs} times");
    finish(&mut run);
    assert_same_files(&fixture.out(&whole), &fixture.out(&parts));
}

#[test]
fn kept_features_change_no_bits() {
    let fixture = Fixture::new();
    let base = Settings {
        transform: Transform::new(SIZE as u32, SIZE as u32, Augment::None, Preprocessing::default()),
        ..fixture.settings.clone()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let cache = Arc::new(FeatureCache::new(64 << 20, Arc::clone(&stop)));
    let tiny = Arc::new(FeatureCache::new(1000, stop));
    // What there is to keep, from the most to nothing.
    for (recipe, sets, kept) in [
        ("head", &[][..], Some("avgpool")),
        (
            "head",
            &["from:layer3 -> weights=train", "from:layer3 & kind:bn -> stats=batch, update=ema(0.9)"],
            Some("layer2.1.conv2"),
        ),
        // The first convolution is computed as fast as it is read.
        ("bn-affine", &[], None),
        ("full-frozen-bn", &[], None),
    ] {
        let policy = policy(recipe, sets);
        let rules = policy.rules.iter().map(ToString::to_string).collect();
        let settings =
            Settings { policy: PolicySettings { name: recipe.into(), rules, stages: vec![] }, ..base.clone() };
        let run = |cache: Option<&Arc<FeatureCache>>, out: &str| {
            let network = network(&policy, settings.batch);
            let tensors = weights::initialise(&network, 1);
            let device = device();
            let job = Job { cache: cache.cloned(), stages: vec![network], ..fixture.job(&device, &settings) };
            let mut run = job.start(&tensors, &fixture.out(out)).expect("a run");
            finish(&mut run);
            run.session().features().map(|features| features.until().to_vec())
        };
        let name = |kind: &str| format!("{recipe}-{}-{kind}", sets.len());
        assert_eq!(run(None, &name("plain")), None);
        let until = run(Some(&cache), &name("kept"));
        assert_eq!(until, kept.map(|layer| vec![layer.to_owned()]), "{recipe}");
        assert_same_files(&fixture.out(&name("plain")), &fixture.out(&name("kept")));
        // A second run finds them; one with too small a budget does without.
        let filled = cache.fill_s();
        assert_eq!(run(Some(&cache), &name("again")), until);
        assert_eq!(cache.fill_s(), filled, "{recipe}: computed twice");
        assert_same_files(&fixture.out(&name("plain")), &fixture.out(&name("again")));
        if recipe != "head" || !sets.is_empty() {
            assert_eq!(run(Some(&tiny), &name("tiny")), None);
            assert_same_files(&fixture.out(&name("plain")), &fixture.out(&name("tiny")));
        }
    }
    assert!(cache.peak_bytes() > 0 && cache.peak_bytes() <= cache.budget());
}

#[test]
fn a_resumed_run_keeps_its_convolutions() {
    let fixture = Fixture::new();
    for variant in Variant::ALL.into_iter().filter(|v| device().supports(v.representative())) {
        let chosen = device().with_variant(variant).expect("it is supported");
        let network = network(&policy(&fixture.settings.policy.name, &[]), fixture.settings.batch);
        let tensors = weights::initialise(&network, 0);
        let job = fixture.job(&chosen, &fixture.settings);
        drop(job.start(&tensors, &fixture.out(variant.name())).expect("a run"));
        // On a device that would choose by measuring.
        let run = fixture.resume(&fixture.settings, variant.name()).expect("it resumes");
        assert_eq!(run.session().device().variant().expect("a variant"), variant);
    }
}

#[test]
fn a_run_leaves_what_it_says() {
    let fixture = Fixture::new();
    let settings = Settings { epochs: 3, ..fixture.settings.clone() };
    let mut run = fixture.start(&settings, "run").expect("a run");
    let history = finish(&mut run);
    let out = fixture.out("run");

    assert_eq!(Settings::of_run(&out).expect("run.toml"), settings);
    assert_eq!(history.iter().map(|m| (m.epoch, m.step)).collect::<Vec<_>>(), [(0, 0), (1, 10), (2, 20), (3, 30)]);
    assert!(history.iter().all(|m| m.val.is_some_and(|val| val.samples == 10)), "10 images in batches of 4");
    assert!(history[1..].iter().all(|m| m.train.is_some_and(|train| train.samples == 40)));
    assert_eq!(history[3].lr, settings.lr(29));
    assert_eq!(fs::read_to_string(out.join(METRICS_FILE)).expect("metrics").lines().count(), 5);

    // The files hold the network that the history speaks of, under names that it is loaded back with.
    for (file, metrics) in [(LAST_FILE, &history[3]), (BEST_FILE, best(&history).expect("validated"))] {
        let state = StateDict::load(out.join(file)).expect(file);
        assert_eq!(state.metadata["model"], "resnet_tiny");
        assert_eq!(state.metadata["size"], "16x16");
        let classes: Vec<String> = serde_json::from_str(&state.metadata["classes"]).expect("class names");
        assert_eq!(classes, fixture.images.classes);
        let network = network(&policy("head", &[]), 10);
        let loaded = weights::from_state(&network, state, 0).expect("every tensor");
        assert_eq!(loaded.new_head, None);
        let mut evaluator = Evaluator::new(&device(), &network, &loaded.tensors, input()).expect("an evaluator");
        let (pixels, labels) = validation_batch(&fixture);
        let totals = evaluator.evaluate(Images::Bytes(&pixels), &labels).expect("a result");
        let expected = metrics.val.expect("validated");
        assert_eq!(totals.top1, expected.top1, "{file}");
        assert!((totals.loss - expected.loss).abs() < 1e-4 * expected.loss, "{file}");
    }

    // A finished run is resumed to the same end.
    drop(run);
    let mut again = fixture.resume(&settings, "run").expect("it resumes");
    assert_eq!(format!("{:?}", finish(&mut again)), format!("{history:?}"));
}

/// All validation images in one batch.
fn validation_batch(fixture: &Fixture) -> (Vec<u8>, Vec<u32>) {
    use thawline::data::{Loader, LoaderOptions, Mode};
    let options = LoaderOptions::new(Mode::Eval, 10, 0);
    let loader =
        Loader::new(fixture.images.val.clone(), fixture.settings.transform.clone(), options).expect("a loader");
    let batch = loader.epoch(0, 0).expect("an epoch").next().expect("a batch").expect("images");
    (batch.pixels, batch.labels)
}

#[test]
fn a_run_that_ends_with_recalibration_keeps_its_weights_and_adds_new_ones() {
    let fixture = Fixture::new();
    let plain = Settings { epochs: 1, ..fixture.settings.clone() };
    let settings = Settings { then: Some(Then::Recalibrate), ..plain.clone() };
    finish(&mut fixture.start(&plain, "plain").expect("a run"));
    let mut val = None;
    let mut run = fixture.start(&settings, "whole").expect("a run");
    let observe = |event: Event<'_>| {
        if let Event::Recalibrated { val: found } = event {
            val = found;
        }
        Ok(())
    };
    assert_eq!(run.run(&AtomicBool::new(false), observe).expect("a run"), Outcome::Finished);
    for file in [LAST_FILE, BEST_FILE] {
        let [a, b] = ["plain", "whole"].map(|run| fs::read(fixture.out(run).join(file)).expect(file));
        assert!(a == b, "{file} is another");
    }
    assert!(!fixture.out("plain").join(RECALIBRATED_FILE).exists());

    let [last, new] =
        [LAST_FILE, RECALIBRATED_FILE].map(|file| StateDict::load(fixture.out("whole").join(file)).expect(file));
    assert_eq!(new.metadata, last.metadata);
    for (name, tensor) in &new.tensors {
        let estimated = name.ends_with("running_mean") || name.ends_with("running_var");
        assert_eq!(*tensor != last.tensors[name], estimated, "{name}");
    }
    let network = network(&policy("head", &[]), 10);
    let loaded = weights::from_state(&network, new, 0).expect("every tensor").tensors;
    let mut evaluator = Evaluator::new(&device(), &network, &loaded, input()).expect("an evaluator");
    let (pixels, labels) = validation_batch(&fixture);
    let totals = evaluator.evaluate(Images::Bytes(&pixels), &labels).expect("a result");
    let val = val.expect("validated");
    assert_eq!((totals.top1, totals.samples), (val.top1, val.samples));

    // A run that was stopped does it, too; one that is begun without it cannot take it up.
    let mut run = fixture.start(&settings, "parts").expect("a run");
    let last_epoch = |event: &Event<'_>| matches!(event, Event::Epoch { history, .. } if history.len() == 2);
    assert_eq!(go(&mut run, last_epoch).expect("a run"), Outcome::Stopped);
    drop(run);
    assert!(!fixture.out("parts").join(RECALIBRATED_FILE).exists());
    let saved = Settings::of_run(&fixture.out("parts")).expect("run.toml");
    assert_eq!(saved.then, Some(Then::Recalibrate));
    finish(&mut fixture.resume(&saved, "parts").expect("it resumes"));
    let [a, b] = ["whole", "parts"].map(|run| fs::read(fixture.out(run).join(RECALIBRATED_FILE)).expect("weights"));
    assert!(a == b, "a resumed run recalibrates to other bits");
    let error = fixture.resume(&settings, "plain").err().expect("it is refused").to_string();
    assert!(error.contains("`then` is \"recalibrate\"") && error.contains("not set"), "{error}");
}

#[test]
fn a_run_without_validation_keeps_the_last_weights_only() {
    let mut fixture = Fixture::new();
    fixture.images.val.clear();
    let images = ImageSet::of(&fixture.images, &fixture.settings.data);
    let settings = Settings { images, epochs: 1, ..fixture.settings.clone() };
    let mut run = fixture.start(&settings, "run").expect("a run");
    let history = finish(&mut run);
    assert!(history.iter().all(|metrics| metrics.val.is_none()));
    assert!(fixture.out("run").join(LAST_FILE).exists() && !fixture.out("run").join(BEST_FILE).exists());
}

#[test]
fn divergence_names_the_step_and_the_last_good_checkpoint() {
    let fixture = Fixture::new();
    let schedule = Schedule { lr: 1e38, warmup: 0, decay: Decay::Constant };
    let settings = Settings { schedule, ..fixture.settings.clone() };
    let mut run = fixture.start(&settings, "run").expect("a run");
    let error = go(&mut run, |_| false).expect_err("it diverges");
    let TrainError::Diverged { epoch: 1, step: 1..=4, checkpoint_step: 0, ref checkpoint, .. } = error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains(&checkpoint.display().to_string()), "{error}");
    // The checkpoint is good, and so are the weights beside it.
    drop(run);
    assert_eq!(fixture.resume(&settings, "run").expect("it resumes").step(), 0);
    let last = StateDict::load(fixture.out("run").join(LAST_FILE)).expect("weights");
    let finite = |data: &TensorData| match data {
        TensorData::F32(values) => values.iter().all(|v| v.is_finite()),
        TensorData::I64(_) => true,
    };
    assert!(last.tensors.values().all(|tensor| finite(&tensor.data)));
}

#[test]
fn divergence_between_epochs_keeps_the_last_good_weights() {
    let fixture = Fixture::new();
    let finite = |path: PathBuf| {
        let state = StateDict::load(path).expect("weights");
        state.tensors.values().all(|tensor| match &tensor.data {
            TensorData::F32(values) => values.iter().all(|v| v.is_finite()),
            TensorData::I64(_) => true,
        })
    };
    // The first epoch trains, and the second begins with a step far too long.
    let rules = vec!["head -> lr=1e38".to_owned()];
    let policy = policy("full", &[]).with_stage(1.0 / 3.0, &rules).expect("a policy");
    let stages = vec![StageSettings { from: 1.0 / 3.0, rules }];
    let policy_settings = PolicySettings { name: "full".into(), rules: vec![], stages };
    let schedule = Schedule { lr: 0.02, warmup: 0, decay: Decay::Constant };
    let settings = Settings { schedule, epochs: 3, policy: policy_settings, ..fixture.settings.clone() };
    let network = (fixture.network)(settings.batch);
    let stages = resolve_stages(&policy, &network).expect("it suits");
    let stages: Vec<_> = stages.into_iter().map(|(_, stage)| stage.graph).collect();
    let device = device();
    let job = || Job { stages: stages.clone(), ..fixture.job(&device, &settings) };
    let mut run = job().start(&weights::initialise(&network, 1), &fixture.out("run")).expect("a run");
    let error = go(&mut run, |_| false).expect_err("it diverges");
    let TrainError::Diverged { checkpoint_step, step, .. } = error else { panic!("{error}") };
    let steps = settings.steps_per_epoch() as u64;
    assert!(checkpoint_step == steps && step > steps, "{checkpoint_step} {step}");
    assert!(error.to_string().contains("the last good checkpoint is"), "{error}");
    for file in [LAST_FILE, BEST_FILE, CHECKPOINT_FILE] {
        assert!(finite(fixture.out("run").join(file)), "{file}");
    }
    drop(run);
    assert_eq!(job().resume(&fixture.out("run")).expect("it resumes").step(), steps);
}

#[test]
fn broken_images_stop_the_run_or_are_counted() {
    let mut fixture = Fixture::new();
    let broken = fixture.images.train[7].path.clone();
    fs::write(&broken, "no image").expect("a file");
    let error = go(&mut fixture.start(&fixture.settings, "run").expect("a run"), |_| false).expect_err("it stops");
    assert!(error.to_string().contains(&broken.display().to_string()), "{error}");

    fs::write(&fixture.images.val[2].path, "no image").expect("a file");
    fixture.settings.skip_broken = true;
    let history = finish(&mut fixture.start(&fixture.settings, "skipping").expect("a run"));
    assert_eq!(history.iter().map(|m| m.skipped).collect::<Vec<_>>(), [1, 2, 2]);
    assert_eq!(history[2].val.map(|val| val.samples), Some(9));
    assert_eq!(history[2].train.map(|train| train.samples), Some(40));
}

fn refused(result: Result<Run, TrainError>, words: &[&str]) {
    let message = result.err().expect("it is refused").to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn folders_and_checkpoints_that_do_not_fit_are_refused() {
    let fixture = Fixture::new();
    let settings = &fixture.settings;
    refused(fixture.resume(settings, "nothing"), &["nothing", "no run"]);
    fs::write(fixture.out("file"), "").expect("a file");
    refused(fixture.start(settings, "file/run"), &["cannot write", "file"]);
    fs::create_dir(fixture.out("full")).expect("a folder");
    fs::write(fixture.out("full/thesis.tex"), "").expect("a file");
    refused(fixture.start(settings, "full"), &["full is not empty"]);

    let held = fixture.start(settings, "run").expect("a run");
    refused(fixture.start(settings, "run"), &["run is in use by another process"]);
    refused(fixture.resume(settings, "run"), &["run is in use by another process"]);
    drop(held);
    refused(fixture.start(settings, "run"), &["not empty", "resume"]);
    refused(fixture.start(settings, "data/run"), &["data/run lies inside"]);
    assert!(!fixture.out("data/run").exists());
    let partial = Settings { drop_last: false, ..settings.clone() };
    refused(fixture.start(&partial, "partial"), &["drop-last is false", "statistics of the batch"]);
    let changed = Settings { epochs: 9, ..settings.clone() };
    refused(fixture.resume(&changed, "run"), &["`epochs` is 9", "with 2"]);
    let schedule = Schedule { lr: 0.5, ..settings.schedule };
    refused(fixture.resume(&Settings { schedule, ..settings.clone() }, "run"), &["`schedule.lr` is 0.5", "with 0.02"]);

    let checkpoint = fixture.out("run").join(CHECKPOINT_FILE);
    let bytes = fs::read(&checkpoint).expect("a checkpoint");
    fs::write(&checkpoint, &bytes[..bytes.len() - 4]).expect("a file");
    refused(fixture.resume(settings, "run"), &[CHECKPOINT_FILE, "damaged"]);
    let mut flipped = bytes;
    let place = flipped.len() / 2;
    flipped[place] ^= 4;
    fs::write(&checkpoint, &flipped).expect("a file");
    refused(fixture.resume(settings, "run"), &[CHECKPOINT_FILE, "damaged"]);
}

#[test]
fn weights_that_are_not_finite_are_refused_and_leave_no_file() {
    let fixture = Fixture::new();
    let network = network(&policy("full", &[]), BATCH);
    let mut tensors = weights::initialise(&network, 0);
    tensors[3].data[0] = f32::NAN;
    let error = fixture.job(&device(), &fixture.settings).start(&tensors, &fixture.out("run")).err();
    let message = error.expect("it is refused").to_string();
    assert!(message.contains("`layer1.0.conv1.weight` of the weights holds NaN"), "{message}");
    assert!(!fixture.out("run").exists());
}

/// What an event file says: step, then tag and value of each scalar, or nothing for other events.
fn read_events(bytes: &[u8]) -> Vec<(u64, Vec<(String, f32)>)> {
    let mut events = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("a length")) as usize;
        let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("a checksum"));
        assert_eq!(crc(8), masked_crc32c(&rest[..8]), "of a length");
        assert_eq!(crc(12 + length), masked_crc32c(&rest[12..12 + length]), "of an event");
        let (mut step, mut scalars) = (0, Vec::new());
        for (field, value) in message(&rest[12..12 + length]) {
            match (field, value) {
                (2, Field::Number(number)) => step = number,
                (5, Field::Bytes(summary)) => scalars.extend(message(summary).into_iter().map(|(_, value)| {
                    let Field::Bytes(value) = value else { panic!("a summary holds values") };
                    match &message(value)[..] {
                        [(1, Field::Bytes(tag)), (2, Field::Float(value))] => {
                            (String::from_utf8(tag.to_vec()).expect("a tag"), *value)
                        }
                        other => panic!("{other:?}"),
                    }
                })),
                _ => {}
            }
        }
        events.push((step, scalars));
        rest = &rest[16 + length..];
    }
    events
}

#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Double,
}

/// The fields of a protobuf message.
fn message(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                bytes = &bytes[8..];
                Field::Double
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (content, after) = bytes.split_at(length);
                bytes = after;
                Field::Bytes(content)
            }
            5 => {
                let (value, after) = bytes.split_at(4);
                bytes = after;
                Field::Float(f32::from_le_bytes(value.try_into().expect("four bytes")))
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (digits, rest) = bytes.split_at(1 + bytes.iter().take_while(|byte| **byte >= 0x80).count());
    *bytes = rest;
    digits.iter().rev().fold(0, |value, digit| (value << 7) | u64::from(digit & 0x7f))
}

/// Bit by bit, unlike the crate's own.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for bit in bytes.iter().flat_map(|byte| (0..8).map(move |bit| u32::from((byte >> bit) & 1))) {
        let feedback = (crc ^ bit) & 1;
        crc = (crc >> 1) ^ (feedback * 0x82f6_3b78);
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[test]
fn tensorboard_reads_the_events() {
    let check_value = 0xe306_9283_u32;
    assert_eq!(masked_crc32c(b"123456789"), check_value.rotate_right(15).wrapping_add(0xa282_ead8));
    let fixture = Fixture::new();
    let mut run = fixture.start(&fixture.settings, "run").expect("a run");
    go(&mut run, |event| matches!(event, Event::Step(step) if step.step == 12)).expect("a run");
    let stopped_at = run.step();
    drop(run);
    let mut run = fixture.resume(&fixture.settings, "run").expect("it resumes");
    let history = finish(&mut run);

    let mut files: Vec<PathBuf> = fs::read_dir(fixture.out("run"))
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.display().to_string().contains("events.out.tfevents."))
        .collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let parts: Vec<_> = files.iter().map(|path| read_events(&fs::read(path).expect("events"))).collect();
    // The second file begins where the checkpoint is: version, then the start of a session.
    assert_eq!(parts[1][1], (stopped_at + 1, vec![]));

    let mut values: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for (step, scalars) in parts.concat() {
        for (tag, value) in scalars {
            values.entry(tag).or_default().push((step, value));
        }
    }
    assert_eq!(values["step/loss"].iter().map(|v| v.0).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    let rates: Vec<(u64, f32)> = (1..=20).map(|step| (step, fixture.settings.lr(step - 1) as f32)).collect();
    assert_eq!(values["step/lr"], rates);
    let of_history = |value: fn(&EpochMetrics) -> Option<f64>| -> Vec<(u64, f32)> {
        history.iter().filter_map(|m| Some((m.step, value(m)? as f32))).collect()
    };
    assert_eq!(values["val/top1"], of_history(|m| Some(m.val?.accuracy())));
    assert_eq!(values["val/loss"], of_history(|m| Some(m.val?.mean_loss())));
    assert_eq!(values["train/loss"], of_history(|m| Some(m.train?.mean_loss())));
    assert_eq!(values["train/images_per_s"].len(), 2);
}
