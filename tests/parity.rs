//! Training agrees with PyTorch and Keras: no result is further from their f64 than five times their own f32 is, over a
//! floor. So do the logits of networks that are not trained here, and the statistics that forward passes estimate, to 1e-5.
//! `tests/golden/README.md` says how the goldens are made and what is compared.

#[path = "common/golden.rs"]
mod golden;

use golden::{Case, GRAD_FLOOR, Golden, Inference, Inferences, STATE_FLOOR, Statistics};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use thawline::compile::{Optimizer, Options};
use thawline::data::{Augment, Loader, LoaderOptions, Mode, Sample, Transform};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::{AdamW, Graph, LayerKind, Sgd, Variance};
use thawline::plan::Input;
use thawline::policy::{self, Policy, resolve};
use thawline::preprocessing::Preprocessing;
use thawline::tensor::HostTensor;
use thawline::train::{Evaluator, Images, Method, Recalibration, Session, recalibrate};
use thawline::weights::{self, FileTensor, StateDict, TensorData, layout};

/// The first device, or the one that `THAWLINE_TEST_DEVICE` names.
fn device() -> Device {
    let select = std::env::var("THAWLINE_TEST_DEVICE").ok().filter(|name| !name.is_empty());
    Device::open(&DeviceOptions { select, ..Default::default() }).expect("a device")
}

fn check(model: &str) {
    let device = device();
    let mut failures = String::new();
    for case in golden::load::<Golden>(model).cases {
        run(&device, model, &case, &mut failures);
    }
    assert!(failures.is_empty(), "further from f64 than allowed:\n{failures}");
}

fn run(device: &Device, model: &str, case: &Case, failures: &mut String) {
    let micro = case.n / case.accumulate;
    let network = thawline::models::build(model, micro, (case.h, case.w), case.classes).expect("the model");
    let policy = Policy::recipe(&case.policy).expect("the recipe").with_rules(&case.sets).expect("the rules");
    let network = resolve(&policy, network).expect("the policy").graph;
    let start = initial(&network, &case.values);
    let tensors = weights::from_state(&network, start.clone(), 0).expect("every tensor").tensors;
    let images = Batch::new(model, case);
    let labels = golden::labels(case);
    let optimizer = match case.optimizer {
        golden::Optimizer::Sgd { momentum, nesterov, weight_decay, .. } => {
            Optimizer::Sgd(Sgd { momentum, nesterov, weight_decay, decoupled: false })
        }
        golden::Optimizer::AdamW { beta1, beta2, eps, weight_decay, .. } => {
            Optimizer::AdamW(AdamW { beta1, beta2, eps, weight_decay })
        }
    };
    let lr = match case.optimizer {
        golden::Optimizer::Sgd { lr, .. } | golden::Optimizer::AdamW { lr, .. } => lr,
    };
    let options = Options {
        optimizer,
        label_smoothing: case.label_smoothing,
        class_weights: false,
        accumulate: case.accumulate,
        export_gradients: true,
        seed: 0,
    };
    let mut session = Session::new(device, network.clone(), &tensors, images.input(), options).expect("a session");
    let mut worst: (f64, String) = (0.0, String::new());
    let mut compare = |what: &str, distance: f64, allowed: f64| {
        if distance / allowed > worst.0 {
            worst = (distance / allowed, what.to_owned());
        }
        // Not a number must fail, too.
        if !matches!(distance.partial_cmp(&allowed), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            writeln!(failures, "{model}/{}: {what}: {distance:.2e} > {allowed:.2e}", case.name).expect("a string");
        }
    };

    let logits = logits(device, &network, &tensors, &images);
    let (distance, allowed) = case.logits_before.distance(&logits);
    compare("logits before", distance, allowed);

    for step in 0..case.steps {
        let mut loss = 0.0;
        for part in 0..case.accumulate {
            let range = part * micro..(part + 1) * micro;
            let images = images.samples(range.clone());
            loss += session.step(images, &labels[range], f64::from(lr)).expect("a step").mean_loss();
        }
        let (distance, allowed) = case.loss.distance(step, (loss / case.accumulate as f64) as f32);
        compare(&format!("loss of step {step}"), distance, allowed);
    }

    let mut gradients = BTreeMap::new();
    for (param, gradient) in session.gradients().expect("the gradients") {
        gradients.extend(weights::to_file(&network, network.param(param), &gradient));
    }
    for (name, summary) in &case.grads {
        let gradient = gradients.get(name).unwrap_or_else(|| panic!("{}: no gradient of {name}", case.name));
        compare(&format!("gradient of {name}"), summary.distance(values(gradient)), summary.allowed(GRAD_FLOOR));
    }
    let trained = session.parameters().expect("the parameters");
    let state = weights::to_state(&network, &trained);
    for (name, summary) in case.params.iter().chain(&case.stats) {
        compare(name, summary.distance(values(&state.tensors[name])), summary.allowed(STATE_FLOOR));
    }
    for name in &case.frozen {
        assert_eq!(start.tensors[name], state.tensors[name], "{model}/{}: {name} is frozen", case.name);
    }
    for name in case.stats.keys().filter_map(|n| n.strip_suffix(".running_mean")) {
        let count = &state.tensors[&format!("{name}.num_batches_tracked")].data;
        assert_eq!(*count, TensorData::I64(vec![case.steps as i64]), "{model}/{}: {name}", case.name);
    }
    let logits = self::logits(device, &network, &trained, &images);
    let (distance, allowed) = case.logits_after.distance(&logits);
    compare("logits after", distance, allowed);
    println!("{model}/{}: at most {:.2} of what is allowed, {}", case.name, worst.0, worst.1);
}

fn values(tensor: &FileTensor) -> &[f32] {
    match &tensor.data {
        TensorData::F32(values) => values,
        TensorData::I64(_) => panic!("floats"),
    }
}

fn initial(network: &Graph, values: &golden::Values) -> StateDict {
    let mut state = StateDict::default();
    let batch_norms: HashSet<&str> =
        network.layers().iter().filter(|l| l.kind == LayerKind::Bn).map(|l| l.name.as_str()).collect();
    for expected in weights::expected(network) {
        let tensor = match expected.kind {
            weights::ExpectedKind::Float => {
                let layer = expected.name.rsplit_once('.').expect("a tensor is named layer.role").0;
                let batch_norm = batch_norms.contains(layer);
                let initial = golden::initial(&expected.name, &expected.shape, batch_norm, values);
                FileTensor::f32(expected.shape.clone(), initial)
            }
            weights::ExpectedKind::Counter => FileTensor::i64(vec![], vec![0]),
        };
        state.tensors.insert(expected.name, tensor);
    }
    state
}

/// A case's images, in the device's layout.
enum Batch {
    Values {
        n: usize,
        images: Vec<f32>,
    },
    /// RGBX, and the model's form of it.
    Bytes {
        n: usize,
        images: Vec<u8>,
        input: Input,
    },
}

impl Batch {
    fn new(model: &str, case: &Case) -> Self {
        if !case.bytes {
            return Self::values(&case.images, [case.n, case.h, case.w]);
        }
        let spec = thawline::models::spec(model).expect("the model");
        let planes = golden::pixels(&case.images, [case.n, case.h, case.w]);
        let plane = case.h * case.w;
        let rgbx = |image: &[u8]| {
            (0..plane).flat_map(|p| [image[p], image[plane + p], image[2 * plane + p], 255]).collect::<Vec<u8>>()
        };
        let images = planes.chunks_exact(3 * plane).flat_map(rgbx).collect();
        Self::Bytes { n: case.n, images, input: spec.preprocessing.value.into() }
    }

    fn values(stream: &str, [n, h, w]: [usize; 3]) -> Self {
        Self::Values { n, images: layout::images_to_device(&golden::images(stream, [n, h, w]), [n, 3, h, w]) }
    }

    fn len(&self) -> usize {
        match *self {
            Self::Values { n, .. } | Self::Bytes { n, .. } => n,
        }
    }

    fn input(&self) -> Input {
        match *self {
            Self::Values { .. } => Input::Values,
            Self::Bytes { input, .. } => input,
        }
    }

    fn samples(&self, range: Range<usize>) -> Images<'_> {
        let part = |length: usize| range.start * length / self.len()..range.end * length / self.len();
        match self {
            Self::Values { images, .. } => Images::Values(&images[part(images.len())]),
            Self::Bytes { images, .. } => Images::Bytes(&images[part(images.len())]),
        }
    }
}

fn logits(device: &Device, network: &Graph, tensors: &[HostTensor], images: &Batch) -> Vec<f32> {
    let network = network.with_batch(images.len()).expect("the batch");
    let mut evaluator = Evaluator::new(device, &network, tensors, images.input()).expect("an evaluator");
    evaluator.logits(images.samples(0..images.len())).expect("the logits")
}

/// Compares the logits of `model`, a case of `file`.
fn infer(file: &str, model: &str) {
    let cases = golden::load::<Inferences>(file).cases;
    let case = cases.into_iter().find(|case| case.model == model).expect("a case");
    let Inference { classes, n, h, w, .. } = case;
    let network = thawline::models::build(model, n, (h, w), classes).expect("the model");
    let tensors = weights::from_state(&network, initial(&network, &case.values), 0).expect("every tensor").tensors;
    let device = device();
    let logits = logits(&device, &network, &tensors, &Batch::values(&case.images, [n, h, w]));
    let (distance, allowed) = case.logits.distance(&logits);
    println!("{model}: {distance:.1e} from f64, {allowed:.1e} allowed");
    assert!(distance <= allowed, "{model}: logits: {distance:.2e} > {allowed:.2e}");
}

#[test]
fn resnet_tiny() {
    check("resnet_tiny");
}

#[test]
fn resnet18() {
    check("resnet18");
}

#[test]
fn resnet50() {
    check("resnet50");
}

#[test]
fn wide_resnet50_2() {
    check("wide_resnet50_2");
}

#[test]
fn efficientnet_b0() {
    check("efficientnet_b0");
}

#[test]
fn mobilenet_v2() {
    check("mobilenet_v2");
}

#[test]
fn mobilenet_v3_large() {
    check("mobilenet_v3_large");
}

#[test]
fn mobilenet_v3_small() {
    check("mobilenet_v3_small");
}

#[test]
fn densenet121() {
    check("densenet121");
}

#[test]
fn regnet_y_400mf() {
    check("regnet_y_400mf");
}

#[test]
fn shufflenet_v2_x1_0() {
    check("shufflenet_v2_x1_0");
}

#[test]
fn inception_v3() {
    check("inception_v3");
}

#[test]
fn convnext_tiny() {
    check("convnext_tiny");
}

#[test]
fn keras_efficientnet_b0() {
    check("keras_efficientnet_b0");
}

#[test]
fn efficientnet_b1() {
    infer("inference", "efficientnet_b1");
}

#[test]
fn efficientnet_b2() {
    infer("inference", "efficientnet_b2");
}

#[test]
fn efficientnet_b3() {
    infer("inference", "efficientnet_b3");
}

#[test]
fn efficientnet_b4() {
    infer("inference", "efficientnet_b4");
}

#[test]
fn efficientnet_b5() {
    infer("inference", "efficientnet_b5");
}

#[test]
fn efficientnet_b6() {
    infer("inference", "efficientnet_b6");
}

#[test]
fn efficientnet_b7() {
    infer("inference", "efficientnet_b7");
}

#[test]
fn efficientnet_v2_s() {
    infer("inference", "efficientnet_v2_s");
}

#[test]
fn resnext50_32x4d() {
    infer("inference", "resnext50_32x4d");
}

#[test]
fn keras_mobilenet_v2() {
    infer("keras_inference", "keras_mobilenet_v2");
}

#[test]
fn keras_resnet50() {
    infer("keras_inference", "keras_resnet50");
}

#[test]
fn recalibrated_statistics() {
    let golden: Statistics = golden::load("statistics");
    let network = thawline::models::build(&golden.model, golden.batches[0], (golden.h, golden.w), golden.classes);
    let network = network.expect("the model");
    let dir = tempfile::tempdir().expect("a folder");
    let loader = images(dir.path(), &golden);
    let input = Input::Bytes { mean: [0.5; 3], std: [0.5; 3], bgr: false };
    let layers = policy::select("kind:bn", LayerKind::Bn, &network).expect("batch norms");
    let device = device();
    for (name, method) in [("precise", Method::Precise), ("update-bn", Method::UpdateBn), ("adabn", Method::AdaBn)] {
        let mut tensors = weights::from_state(&network, initial(&network, &vec![]), 0).expect("every tensor").tensors;
        let what = Recalibration { layers: &layers, method, var: Some(Variance::Unbiased) };
        recalibrate(&device, &network, &mut tensors, input, &loader, &what, |_, _| {}).expect("statistics");
        let state = weights::to_state(&network, &tensors);
        assert_eq!(golden.methods[name].len(), layers.len());
        let mut worst: f64 = 0.0;
        for (layer, estimate) in &golden.methods[name] {
            for (part, truth) in [("running_mean", &estimate.mean), ("running_var", &estimate.var)] {
                let ours = values(&state.tensors[&format!("{layer}.{part}")]);
                assert_eq!(ours.len(), truth.len());
                let apart: f64 = ours.iter().zip(truth).map(|(&o, t)| (f64::from(o) - t).powi(2)).sum();
                let norm: f64 = truth.iter().map(|t| t * t).sum();
                let distance = (apart / norm).sqrt();
                assert!(distance <= 1e-5, "{name}: {layer}.{part} is {distance:.1e} from PyTorch's");
                worst = worst.max(distance);
            }
            let counter = &state.tensors[&format!("{layer}.num_batches_tracked")].data;
            assert_eq!(*counter, TensorData::I64(vec![golden.batches.len() as i64]));
        }
        println!("{name}: at most {worst:.1e} from PyTorch's");
    }
}

/// The images of the statistics' golden as files in `dir`.
fn images(dir: &Path, golden: &Statistics) -> Loader {
    let (count, plane): (usize, _) = (golden.batches.iter().sum(), golden.h * golden.w);
    let planes = golden::pixels("pixels", [count, golden.h, golden.w]);
    let sample = |(i, image): (usize, &[u8])| {
        let path = dir.join(format!("{i:03}.png"));
        let interleaved: Vec<u8> =
            (0..plane).flat_map(|p| [image[p], image[plane + p], image[2 * plane + p]]).collect();
        let (width, height) = (golden.w as u32, golden.h as u32);
        image::save_buffer(&path, &interleaved, width, height, image::ColorType::Rgb8).expect("an image");
        Sample { path, label: 0 }
    };
    let samples = planes.chunks_exact(3 * plane).enumerate().map(sample).collect();
    let transform = Transform::new(golden.h as u32, golden.w as u32, Augment::None, Preprocessing::default());
    Loader::new(samples, transform, LoaderOptions::new(Mode::Eval, golden.batches[0], 0)).expect("a loader")
}
