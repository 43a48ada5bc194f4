//! The doctor names the fault that was planted, and finds none where there is none.

use std::sync::LazyLock;
use tempfile::TempDir;
use thawline::compile::{Optimizer, Options};
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Loader, LoaderOptions, Mode, Sample, Transform, shuffled};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::{Graph, LayerKind, Role, Sgd, Variance};
use thawline::models;
use thawline::plan::Input;
use thawline::policy::{self, Policy};
use thawline::preprocessing::{self, Preprocessing};
use thawline::report::{Confidence, Fault, Finding, Remedy, diagnose};
use thawline::tensor::HostTensor;
use thawline::train::{Checkup, Examination, Images, Method, PADDING, Recalibration, Session, examine, recalibrate};
use thawline::weights::{self, StateDict};

/// Images that a network is looked at with.
const IMAGES: usize = 96;

const INPUT: Input = Input::Bytes { mean: [0.5; 3], std: [0.5; 3], bgr: false };

/// Drawn shapes to look at, others to train on, and digits far from both. `_dirs` holds the files.
struct Data {
    _dirs: Vec<TempDir>,
    look: Vec<Sample>,
    train: Vec<Sample>,
    far: Vec<Sample>,
}

static DATA: LazyLock<Data> = LazyLock::new(|| {
    let mut dirs = Vec::new();
    let mut set = |set, seed, count| {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        let options = SampleOptions { per_class: 30, seed, ..SampleOptions::default() };
        write_sample_data(set, &data, &options).expect("the images");
        let mut images = shuffled(ImageFolder::open(&data, 0.0, 0).expect("the images").train, 1);
        images.truncate(count);
        dirs.push(dir);
        images
    };
    let look = set(SampleSet::Shapes, 9, usize::MAX);
    let train = set(SampleSet::Shapes, 10, usize::MAX);
    let far = set(SampleSet::DigitsFar, 9, IMAGES);
    Data { _dirs: dirs, look, train, far }
});

/// Enough of them for most faults.
fn look() -> &'static [Sample] {
    &DATA.look[..IMAGES]
}

fn loader(samples: &[Sample], mode: Mode, batch: usize) -> Loader {
    let transform = Transform::new(16, 16, Augment::None, Preprocessing::default());
    Loader::new(samples.to_vec(), transform, LoaderOptions::new(mode, batch, 0)).expect("a loader")
}

fn device() -> Device {
    Device::open(&DeviceOptions::default()).expect("a device")
}

/// The network that was trained on shapes.
fn shapes() -> (Graph, Vec<HostTensor>) {
    let network = models::build("resnet_tiny", 1, (16, 16), 10).expect("the network");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");
    let state = StateDict::load(file).expect("the weights");
    let tensors = weights::from_state(&network, state, 0).expect("every tensor").tensors;
    (network, tensors)
}

/// Applies `edit` to every parameter of a role: the index of its layer, its tensor's words, and the length of a row.
fn edit(tensors: &mut [HostTensor], role: Role, mut edit: impl FnMut(&str, &mut [f32], usize)) {
    let (network, _) = shapes();
    for (param, tensor) in network.params().iter().zip(tensors) {
        if param.role == role {
            edit(&network.layers()[param.layer.index()].name, &mut tensor.data, param.shape.stored_c());
        }
    }
}

/// The shapes' network after training steps on shapes.
fn trained(recipe: &str, rules: &[&str], batch: usize, steps: usize, lr: f64) -> Vec<HostTensor> {
    let policy = Policy::recipe(recipe).and_then(|policy| policy.with_rules(rules)).expect("a policy");
    let network = models::build("resnet_tiny", batch, (16, 16), 10).expect("the network");
    let network = policy::resolve(&policy, network).expect("a policy that suits").graph;
    let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false });
    let options = Options {
        optimizer,
        label_smoothing: 0.0,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };
    let mut session = Session::new(&device(), network, &shapes().1, INPUT, options).expect("a session");
    let images = loader(&DATA.train, Mode::Train, batch);
    let epochs = (0..).flat_map(|epoch| images.epoch(epoch, 0).expect("images"));
    for batch in epochs.take(steps) {
        let batch = batch.expect("images");
        session.step(Images::Bytes(&batch.pixels), &batch.labels, lr).expect("a step");
    }
    session.parameters().expect("the parameters")
}

/// The network with statistics of `samples`.
fn recalibrated(tensors: &mut [HostTensor], samples: &[Sample]) {
    let (network, _) = shapes();
    let layers = policy::select("kind:bn", LayerKind::Bn, &network).expect("batch norms");
    let what = Recalibration { layers: &layers, method: Method::Precise, var: Some(Variance::Unbiased) };
    recalibrate(&device(), &network, tensors, INPUT, &loader(samples, Mode::Eval, 32), &what, |_, _| {})
        .expect("statistics");
}

fn look_at(tensors: &[HostTensor], input: Input, samples: &[Sample]) -> (Checkup, Vec<Finding>) {
    let how = Examination { images: &loader(samples, Mode::Eval, 32), sizes: &[1, 2, 8, 32], seed: 0 };
    let checkup = examine(&device(), &shapes().0, tensors, input, &how, |_, _, _| {}).expect("a checkup");
    let findings = diagnose(&checkup);
    for Finding { fault, confidence, evidence, advice, .. } in &findings {
        println!("{fault:?}, {confidence:?}: {evidence}. {advice}");
    }
    (checkup, findings)
}

/// The first finding, through images of the domain that the network is for.
#[track_caller]
fn first(tensors: &[HostTensor]) -> Finding {
    first_through(tensors, look())
}

#[track_caller]
fn first_through(tensors: &[HostTensor], images: &[Sample]) -> Finding {
    let (checkup, findings) = look_at(tensors, INPUT, images);
    findings.into_iter().next().unwrap_or_else(|| panic!("nothing was found: {checkup:?}"))
}

#[test]
fn a_healthy_network_has_nothing() {
    let (checkup, findings) = look_at(&shapes().1, INPUT, look());
    assert_eq!(findings, []);
    assert_eq!((checkup.images, checkup.skipped, checkup.layers.len()), (IMAGES, 0, 15));
    let inference = checkup.inference.expect("all is finite");
    assert_eq!((inference.totals.samples, inference.single.samples), (96, 96));
    assert_eq!(inference.totals.top1, inference.single.top1, "companions make no difference in inference");
    let sizes: Vec<usize> = checkup.sizes.iter().map(|size| size.batch).collect();
    assert_eq!(sizes, [1, 2, 8, 32]);
    let accuracies: Vec<f64> = checkup.sizes.iter().map(|size| size.totals.accuracy()).collect();
    assert!(accuracies.is_sorted() && accuracies[0] < 0.5, "{accuracies:?}");
    assert!(checkup.sizes[1].flips > checkup.sizes[3].flips);
}

#[test]
fn a_healthy_network_has_nothing_either_where_only_small_batches_are_asked_for() {
    let (network, tensors) = shapes();
    let how = Examination { images: &loader(look(), Mode::Eval, 32), sizes: &[1], seed: 0 };
    let checkup = examine(&device(), &network, &tensors, INPUT, &how, |_, _, _| {}).expect("a checkup");
    assert_eq!(checkup.sizes.iter().map(|size| size.batch).collect::<Vec<_>>(), [1, 32]);
    assert_eq!(diagnose(&checkup), []);
}

#[test]
fn what_few_images_leave_to_chance_is_no_fault() {
    for (from, count) in [(0, 16), (16, 24), (40, 40)] {
        let (checkup, findings) = look_at(&shapes().1, INPUT, &DATA.look[from..from + count]);
        assert_eq!(findings, [], "{count} images");
        // They are off by about as much as chance has it, and chance is taken to be about that.
        let mean = |drifts: &[f64]| drifts.iter().sum::<f64>() / drifts.len() as f64;
        let share = mean(&checkup.sizes.last().expect("a size").drifts) / mean(&checkup.chance);
        assert!((0.2..4.0).contains(&share), "{share}");
    }
}

#[test]
fn one_that_was_trained_further_as_usual_has_nothing_either() {
    let (_, findings) = look_at(&trained("full", &[], 32, 40, 0.01), INPUT, look());
    assert_eq!(findings, []);
    let (_, findings) = look_at(&trained("full", &["kind:bn -> update=ema(0.95)"], 8, 60, 0.001), INPUT, look());
    assert_eq!(findings, []);
}

#[test]
fn statistics_of_another_domain() {
    let (_, mut tensors) = shapes();
    recalibrated(&mut tensors, &DATA.far);
    let finding = first(&tensors);
    assert_eq!((finding.fault, finding.confidence), (Fault::ForeignStatistics, Confidence::Sure));
    assert_eq!(finding.remedy, Some(Remedy::Recalibrate));
    recalibrated(&mut tensors, &DATA.train);
    assert_eq!(look_at(&tensors, INPUT, look()).1, [], "the remedy helps");
}

#[test]
fn an_epsilon_of_1e_5_where_1e_3_belongs() {
    // With weights of convolutions this small, ε decides; with 1e-3, this is the very function that the network was.
    let (_, mut tensors) = shapes();
    const SCALE: f32 = 0.05;
    let mut variances = Vec::new();
    edit(&mut tensors, Role::Moments, |_, moments, row| variances.push(moments[row..2 * row].to_vec()));
    let mut variances = variances.into_iter();
    edit(&mut tensors, Role::ConvWeight, |_, weights, _| weights.iter_mut().for_each(|w| *w *= SCALE));
    edit(&mut tensors, Role::Affine, |_, affine, _| {
        for (gamma, var) in affine.iter_mut().zip(variances.next().expect("a batch norm")) {
            *gamma *= (SCALE * SCALE * var + 1e-3).sqrt() / (SCALE * (var + 1e-5).sqrt());
        }
    });
    edit(&mut tensors, Role::Moments, |_, moments, row| {
        moments[..row].iter_mut().for_each(|mean| *mean *= SCALE);
        moments[row..2 * row].iter_mut().for_each(|var| *var *= SCALE * SCALE);
    });
    let finding = first(&tensors);
    assert_eq!((finding.fault, finding.confidence), (Fault::Epsilon, Confidence::Sure));
    assert!(finding.evidence.contains("ε = 1e-3 instead of 1e-5"), "{}", finding.evidence);
}

#[test]
fn a_keep_of_0_01_for_0_99() {
    // One batch in ten or so happens to be so like all images that nobody could tell; these are not.
    for (batch, steps) in [(32, 10), (16, 6)] {
        let tensors = trained("head", &["kind:bn -> stats=batch, update=ema(0.01)"], batch, steps, 0.0);
        let finding = first_through(&tensors, &DATA.look);
        assert_eq!(finding.fault, Fault::Keep, "batch {batch}, {steps} steps");
        assert!(finding.confidence >= Confidence::Likely);
    }
}

#[test]
fn reset_statistics() {
    let (_, mut tensors) = shapes();
    edit(&mut tensors, Role::Moments, |_, moments, row| {
        moments.fill(0.0);
        moments[row..2 * row].fill(1.0);
    });
    let finding = first(&tensors);
    assert_eq!((finding.fault, finding.confidence), (Fault::Reset, Confidence::Sure));
    assert!(finding.evidence.contains("15 of 15 batch norms"), "{}", finding.evidence);
    recalibrated(&mut tensors, &DATA.train);
    assert_eq!(look_at(&tensors, INPUT, look()).1, [], "the remedy helps");
}

#[test]
fn a_checkpoint_of_training_with_batch_size_1() {
    let finding = first(&trained("full", &[], 1, 100, 0.001));
    assert_eq!((finding.fault, finding.confidence), (Fault::SmallBatch, Confidence::Sure));
    assert!(finding.evidence.contains("batches of a single image"), "{}", finding.evidence);
    let finding = first(&trained("full", &[], 2, 100, 0.001));
    assert_eq!(finding.fault, Fault::SmallBatch);
    assert!(finding.evidence.contains("batches of 2 images"), "{}", finding.evidence);
}

#[test]
fn weights_of_another_domain() {
    let (_, findings) = look_at(&shapes().1, INPUT, &DATA.far);
    assert_eq!((findings[0].fault, findings[0].remedy), (Fault::DomainShift, Some(Remedy::FineTune)));
    // Whether or not there are labels.
    let unlabelled: Vec<Sample> = DATA.far.iter().map(|s| Sample { label: PADDING, ..s.clone() }).collect();
    let (checkup, findings) = look_at(&shapes().1, INPUT, &unlabelled);
    assert_eq!(checkup.inference.expect("all is finite").totals.samples, 0);
    assert_eq!(findings[0].fault, Fault::DomainShift);
    assert!(!findings[0].evidence.contains("accuracy"), "{}", findings[0].evidence);
}

#[test]
fn statistics_that_did_not_follow_the_weights() {
    // To a batch norm under its batch's statistics, the scale of the weights before it makes no difference.
    let (_, mut tensors) = shapes();
    edit(&mut tensors, Role::ConvWeight, |layer, weights, _| {
        if !layer.starts_with("conv1") && !layer.starts_with("layer1") {
            weights.iter_mut().for_each(|w| *w *= 2.5);
        }
    });
    let finding = first(&tensors);
    assert_eq!((finding.fault, finding.confidence), (Fault::StaleStatistics, Confidence::Sure));
}

#[test]
fn other_conventions() {
    type Convention = fn(f32) -> f32;
    let conventions: [(Convention, &str); 3] = [
        (|var| (var + 1e-5).sqrt(), "read as the standard deviation"),
        (|var| 1.0 / (var + 1e-5).sqrt(), "read as one over the standard deviation"),
        (|var| 1.0 / (var + 1e-5), "read as one over the variance"),
    ];
    for (stored, expected) in conventions {
        let (_, mut tensors) = shapes();
        edit(&mut tensors, Role::Moments, |_, moments, row| {
            moments[row..2 * row].iter_mut().for_each(|var| *var = stored(*var));
        });
        let finding = first(&tensors);
        assert_eq!(finding.fault, Fault::Convention, "{expected}");
        assert!(finding.evidence.contains(expected), "{}", finding.evidence);
    }
}

#[test]
fn images_that_are_normalised_otherwise() {
    let input = Input::Bytes { mean: preprocessing::IMAGENET_MEAN, std: preprocessing::IMAGENET_STD, bgr: false };
    let (_, findings) = look_at(&shapes().1, input, look());
    assert_eq!(findings[0].fault, Fault::Input);
    assert!(findings[0].evidence.contains("means [0.5, 0.5, 0.5]"), "{}", findings[0].evidence);
}

#[test]
fn statistics_that_no_values_have() {
    for value in [f32::NAN, -0.5] {
        let (_, mut tensors) = shapes();
        edit(&mut tensors, Role::Moments, |layer, moments, row| {
            if layer == "layer2.0.bn1" {
                moments[row + 3] = value;
            }
        });
        let finding = first(&tensors);
        assert_eq!((finding.fault, finding.confidence), (Fault::Impossible, Confidence::Sure));
        assert!(finding.evidence.contains("1 of 15 batch norms, `layer2.0.bn1`"), "{}", finding.evidence);
    }
}

#[test]
fn dead_channels_are_counted_and_blamed_for_nothing() {
    let (_, mut tensors) = shapes();
    edit(&mut tensors, Role::Affine, |layer, affine, _| {
        if layer == "layer3.0.bn1" {
            affine[..7].fill(0.0);
        }
    });
    recalibrated(&mut tensors, &DATA.train);
    let (_, findings) = look_at(&tensors, INPUT, look());
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].fault, findings[0].remedy), (Fault::DeadChannels, None));
    assert!(findings[0].evidence.contains("7 of 560 channels"), "{}", findings[0].evidence);
}
