//! Running statistics: what probes see of them, and what recalibration makes of them.

use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, ImageFolder, Loader, LoaderOptions, Mode, Sample, Transform};
use thawline::gpu::{Device, DeviceOptions, Parameters};
use thawline::graph::{Graph, LayerId, LayerKind, Role, Stats, Variance};
use thawline::models::{self, Spec};
use thawline::plan::Input;
use thawline::policy::{self, Policy};
use thawline::preprocessing::Preprocessing;
use thawline::tensor::HostTensor;
use thawline::train::{
    Companions, Evaluator, Images, Method, Moments, PADDING, Probe, Recalibration, Survey, TrainError, drifts,
    recalibrate,
};
use thawline::weights::{self, StateDict};

fn device() -> Device {
    Device::open(&DeviceOptions::default()).expect("a device")
}

fn spec() -> &'static Spec {
    models::spec("resnet_tiny").expect("the model")
}

fn input() -> Input {
    spec().preprocessing.value.into()
}

/// The network that was trained on shapes.
fn shapes(batch: usize) -> (Graph, Vec<HostTensor>) {
    let network = spec().build(batch, (16, 16), 10).expect("the network");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");
    let state = StateDict::load(file).expect("the weights");
    let tensors = weights::from_state(&network, state, 0).expect("every tensor").tensors;
    (network, tensors)
}

/// As many images of `set`, from all classes in turn.
struct Data {
    _dir: TempDir,
    samples: Vec<Sample>,
}

impl Data {
    fn new(set: SampleSet, images: usize) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        let options = SampleOptions { per_class: 2.max(images.div_ceil(8)), seed: 9, ..SampleOptions::default() };
        write_sample_data(set, &data, &options).expect("the images");
        let train = ImageFolder::open(&data, 0.0, 0).expect("the images").train;
        let stride = train.len().div_ceil(images) | 1;
        let samples = (0..images).map(|i| train[i * stride % train.len()].clone()).collect();
        Self { _dir: dir, samples }
    }

    fn loader(&self, batch: usize) -> Loader {
        let transform = Transform::new(16, 16, Augment::None, Preprocessing::default());
        Loader::new(self.samples.clone(), transform, LoaderOptions::new(Mode::Eval, batch, 0)).expect("a loader")
    }
}

fn near(ours: &[f64], theirs: &[f64], allowed: f64) -> bool {
    let distance: f64 = ours.iter().zip(theirs).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = theirs.iter().map(|b| b.powi(2)).sum();
    ours.len() == theirs.len() && (distance / norm).sqrt() <= allowed
}

#[test]
fn under_running_statistics_a_probe_is_the_evaluator_and_companions_do_not_matter() {
    let (network, tensors) = shapes(8);
    let data = Data::new(SampleSet::Shapes, 21);
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Running).expect("a probe");

    let mut evaluator = Evaluator::new(&device, &network, &tensors, input()).expect("an evaluator");
    let batch = data.loader(8).epoch(0, 0).expect("images").next().expect("a batch").expect("images");
    let seen = probe.pass(Images::Bytes(&batch.pixels), &batch.labels).expect("a pass");
    let logits = evaluator.logits(Images::Bytes(&batch.pixels)).expect("logits");
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    assert!(near(&wide(&seen.logits), &wide(&logits), 1e-5));
    assert_eq!(seen.totals.top1, evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels).expect("hits").top1);

    // 21 images are two batches of 8 and one of 5, or one of 21: in inference that makes no difference.
    let parts = probe.survey(&data.loader(8)).expect("a survey");
    let whole = probe.survey(&data.loader(21)).expect("a survey");
    assert_eq!((parts.batches, whole.batches), (3, 1));
    assert_eq!(parts.totals.samples, 21);
    assert_eq!((parts.totals.top1, parts.totals.top5), (whole.totals.top1, whole.totals.top5));
    for (parts, whole) in parts.layers.iter().zip(&whole.layers) {
        assert_eq!(parts.pooled.count, whole.pooled.count);
        assert!(near(&parts.pooled.mean, &whole.pooled.mean, 1e-5));
        assert!(near(&parts.pooled.var, &whole.pooled.var, 1e-5));
    }
    for batch in [1, 4, 8] {
        let companions = probe.companions(&data.loader(8), batch, 3, 7).expect("results");
        assert_eq!(companions.flips, 0.0, "batch {batch}");
        assert_eq!((companions.survey.totals.samples, companions.survey.totals.top1), (63, 3 * whole.totals.top1));
    }
}

#[test]
fn under_batch_statistics_results_depend_on_companions() {
    let (network, tensors) = shapes(8);
    let data = Data::new(SampleSet::Shapes, 42);
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Batch).expect("a probe");
    let mut look = |batch, seed| probe.companions(&data.loader(8), batch, 3, seed).expect("results");
    let accuracy = |companions: &Companions| companions.survey.totals.accuracy();

    let (one, four, all) = (look(1, 0), look(4, 0), look(64, 0));
    assert_eq!((one.batch, four.batch, all.batch), (1, 4, 42));
    // Alone, an image has no companions to depend on, and is hardly recognised; all together they are as in inference.
    assert_eq!(one.flips, 0.0);
    assert!(four.flips > 0.0);
    assert!(accuracy(&one) < 0.7 && accuracy(&four) < accuracy(&all) && accuracy(&all) > 0.9);
    assert_eq!(look(4, 0), four, "seeded");
    assert_ne!(look(4, 1).survey.layers, four.survey.layers);
    // A batch of all is the population: nothing is left between batches.
    for layer in &all.survey.layers {
        assert!(layer.between().iter().zip(&layer.pooled.var).all(|(between, var)| between <= &(1e-6 * var + 1e-12)));
    }
}

#[test]
fn probes_may_mix_both_and_change_nothing() {
    let (network, tensors) = shapes(6);
    let data = Data::new(SampleSet::DigitsFar, 12);
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let index = |name: &str| network.layers().iter().position(|layer| layer.name == name).expect("a layer");
    let (first, second) = (index("bn1"), index("layer1.0.bn1"));
    let survey = |batch: &[usize]| {
        let stats = |layer: LayerId| match batch.contains(&layer.index()) {
            true => Stats::Batch,
            false => Stats::Running,
        };
        let mut probe = Probe::new(&device, &network, &params, input(), stats).expect("a probe");
        assert!(probe.layers().iter().all(|layer| network.layers()[layer.index()].kind == LayerKind::Bn));
        probe.survey(&data.loader(6)).expect("a survey").layers
    };
    let (running, mixed, other) = (survey(&[]), survey(&[first]), survey(&[second]));
    // What comes before a layer's normalisation does not depend on it, what comes behind does.
    assert_eq!(running[0], mixed[0]);
    assert_ne!(running[1], mixed[1]);
    assert_eq!(running[1], other[1]);
    assert_ne!(running[2], other[2]);
    for (index, before) in tensors.iter().enumerate() {
        let id = network.layers().iter().flat_map(|layer| &layer.params).find(|id| id.index() == index);
        let after = params.download(&device, &network, *id.expect("a parameter")).expect("a tensor");
        assert_eq!(&after, before);
    }
}

#[test]
fn a_single_value_a_channel_has_no_variance_and_no_crash() {
    let network = spec().build(1, (4, 4), 10).expect("the network");
    let tensors = weights::initialise(&network, 0);
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Batch).expect("a probe");
    let pixels: Vec<u8> = (0..64u32).map(|i| if i % 4 == 3 { 0 } else { (i * 37 % 251) as u8 }).collect();
    let seen = probe.pass(Images::Bytes(&pixels), &[PADDING]).expect("a pass");
    let last = seen.moments.last().expect("batch norms");
    assert_eq!((last.count, last.var.iter().copied().fold(0.0, f64::max)), (1, 0.0));
    assert_eq!(seen.totals.samples, 0);
    assert!(seen.logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn stored_moments_are_near_those_of_the_data_that_they_were_taken_over() {
    let (network, tensors) = shapes(16);
    let (shapes, digits) = (Data::new(SampleSet::Shapes, 64), Data::new(SampleSet::DigitsFar, 64));
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Running).expect("a probe");
    let stored: Vec<Moments> = network
        .params()
        .iter()
        .zip(&tensors)
        .filter(|(p, _)| p.role == Role::Moments)
        .map(|(_, t)| Moments::stored(t))
        .collect();
    let mut drift = |data: &Data| {
        let survey = probe.survey(&data.loader(16)).expect("a survey");
        let drifts = stored.iter().zip(&survey.layers).map(|(stored, layer)| stored.drift(&layer.pooled, 1e-5));
        drifts.collect::<Vec<_>>()
    };
    let (own, far) = (drift(&shapes), drift(&digits));
    assert!(own.iter().zip(&far).all(|(own, far)| own * 4.0 < *far), "{own:.3?} {far:.3?}");
}

/// The batch norms of resnet_tiny that `selector` selects.
fn layers(selector: &str) -> Vec<LayerId> {
    policy::select(selector, LayerKind::Bn, &shapes(1).0).expect("batch norms")
}

/// The shapes' network with statistics of `data`.
fn recalibrated(data: &Loader, selector: &str, method: Method, var: Variance) -> Vec<HostTensor> {
    let (network, mut tensors) = shapes(1);
    let what = Recalibration { layers: &layers(selector), method, var: Some(var) };
    recalibrate(&device(), &network, &mut tensors, input(), data, &what, |_, _| {}).expect("statistics");
    tensors
}

fn precise(layers: &[LayerId]) -> Recalibration<'_> {
    Recalibration { layers, method: Method::Precise, var: Some(Variance::Unbiased) }
}

/// What inference with `tensors` sees of `data`.
fn inference(tensors: &[HostTensor], data: &Loader) -> Survey {
    let (device, (network, _)) = (device(), shapes(1));
    let params = Parameters::upload(&device, &network, tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Running).expect("a probe");
    probe.survey(data).expect("a survey")
}

#[test]
fn recalibration_changes_the_moments_that_are_asked_for_and_nothing_else() {
    let (network, before) = shapes(1);
    let data = Data::new(SampleSet::DigitsFar, 20);
    for (selector, method) in [
        ("kind:bn", Method::Precise),
        ("from:layer3", Method::UpdateBn),
        ("name:layer2.*", Method::AdaBn),
        ("last:bn", Method::Precise),
    ] {
        let chosen = layers(selector);
        let after = recalibrated(&data.loader(8), selector, method, Variance::Unbiased);
        assert_eq!(after, recalibrated(&data.loader(8), selector, method, Variance::Unbiased), "the same bits twice");
        for ((param, before), after) in network.params().iter().zip(&before).zip(&after) {
            let may_change = param.role == Role::Moments && chosen.contains(&param.layer);
            let name = &network.layers()[param.layer.index()].name;
            assert_eq!(before != after, may_change, "{selector}: {name} {:?}", param.role);
            if may_change {
                assert_eq!(after.data[2 * param.shape.stored_c()], 3.0, "batches of 8, 8 and 4");
            }
        }
    }
}

#[test]
fn the_methods_agree_where_they_must_and_differ_where_they_should() {
    let data = Data::new(SampleSet::DigitsFar, 24);
    let (network, before) = shapes(1);
    let moments = |tensors: &[HostTensor], layer: usize| {
        let moments = network.params().iter().zip(tensors).filter(|(param, _)| param.role == Role::Moments);
        Moments::stored(moments.map(|(_, tensor)| tensor).nth(layer).expect("a batch norm"))
    };
    let same = |a: &Moments, b: &Moments| near(&a.mean, &b.mean, 1e-5) && near(&a.var, &b.var, 1e-5);
    let of = |batch, method, var| recalibrated(&data.loader(batch), "kind:bn", method, var);

    // Over a single batch there is one answer, where what is stored is also what a batch is normalised by.
    let whole = of(24, Method::Precise, Variance::Biased);
    for method in [Method::UpdateBn, Method::AdaBn] {
        let other = of(24, method, Variance::Biased);
        assert!((0..15).all(|layer| same(&moments(&whole, layer), &moments(&other, layer))), "{method:?}");
    }
    // The first batch norm's input depends on no statistics: there, only what is averaged matters.
    let (precise, update) = (of(4, Method::Precise, Variance::Biased), of(4, Method::UpdateBn, Variance::Biased));
    assert!(same(&moments(&whole, 0), &moments(&precise, 0)));
    assert!(near(&moments(&whole, 0).mean, &moments(&update, 0).mean, 1e-5));
    assert!(!same(&moments(&whole, 0), &moments(&update, 0)));
    // The last one sees 4 × 4 pixels: 24 images are 384 values.
    let unbiased = moments(&of(24, Method::Precise, Variance::Unbiased), 14);
    let corrected: Vec<f64> = moments(&whole, 14).var.iter().map(|var| var * 384.0 / 383.0).collect();
    assert!(near(&corrected, &unbiased.var, 1e-6) && !near(&moments(&whole, 14).var, &unbiased.var, 1e-3));

    // AdaBN's are what inference sees, whatever the batch; the others' are near.
    let worst = |tensors: &[HostTensor]| {
        let drifts = drifts(&network, tensors, &inference(tensors, &data.loader(24)));
        drifts.into_iter().fold(0.0, f64::max)
    };
    let adabn = of(4, Method::AdaBn, Variance::Biased);
    assert!(worst(&adabn) < 1e-6, "{}", worst(&adabn));
    assert!(worst(&precise) > 1e-4 && worst(&precise) * 20.0 < worst(&before), "{}", worst(&precise));
}

#[test]
fn recalibration_recovers_what_foreign_statistics_cost() {
    let (near, far) = (Data::new(SampleSet::Shapes, 96), Data::new(SampleSet::DigitsFar, 64));
    let (network, mut tensors) = shapes(1);
    let all = layers("kind:bn");
    let accuracy = |tensors: &[HostTensor]| inference(tensors, &near.loader(32)).totals.accuracy();
    let before = accuracy(&tensors);
    let mut on = |data: &Data| {
        recalibrate(&device(), &network, &mut tensors, input(), &data.loader(32), &precise(&all), |_, _| {})
            .expect("statistics");
        accuracy(&tensors)
    };
    let (foreign, own) = (on(&far), on(&near));
    assert!(before > 0.9 && foreign < 0.6 && own > 0.9, "{before} {foreign} {own}");
}

#[test]
fn each_layer_stores_the_variance_that_its_setting_names() {
    let (network, tensors) = shapes(1);
    let rules = ["name:layer2.* & kind:bn -> var=biased"];
    let policy = Policy::recipe("full").and_then(|policy| policy.with_rules(&rules)).expect("a policy");
    // One image: the last batch norms see 16 pixels, of which 1/16 shows.
    let network = policy::resolve(&policy, network).expect("it suits").graph;
    let (data, all) = (Data::new(SampleSet::Shapes, 1), layers("kind:bn"));
    let estimated = |var| {
        let (mut tensors, what) = (tensors.clone(), Recalibration { layers: &all, method: Method::Precise, var });
        recalibrate(&device(), &network, &mut tensors, input(), &data.loader(4), &what, |_, _| {}).expect("statistics");
        tensors
    };
    let own = estimated(None);
    let [biased, unbiased] = [Variance::Biased, Variance::Unbiased].map(|var| estimated(Some(var)));
    let mut seen = [0, 0];
    for (index, param) in network.params().iter().enumerate().filter(|(_, param)| param.role == Role::Moments) {
        let is_biased = network.layers()[param.layer.index()].name.starts_with("layer2.");
        seen[usize::from(is_biased)] += 1;
        assert_ne!(biased[index], unbiased[index]);
        assert_eq!(own[index], if is_biased { &biased } else { &unbiased }[index]);
    }
    assert!(seen.iter().all(|count| *count > 2), "{seen:?}");
}

#[test]
fn broken_statistics_are_estimated_anew_where_nothing_needs_them() {
    let (network, tensors) = shapes(1);
    let data = Data::new(SampleSet::Shapes, 4);
    let broken = network.params().iter().rposition(|param| param.role == Role::Moments).expect("a batch norm");
    let name = network.layers()[network.params()[broken].layer.index()].name.clone();
    let row = network.params()[broken].shape.stored_c();
    let estimated = |selector: &str, method| {
        let mut tensors = tensors.clone();
        tensors[broken].data[row] = -1.0;
        let what = Recalibration { layers: &layers(selector), method, var: None };
        let done = recalibrate(&device(), &network, &mut tensors, input(), &data.loader(4), &what, |_, _| {});
        done.map(|()| tensors)
    };
    for method in [Method::Precise, Method::UpdateBn] {
        assert!(estimated("kind:bn", method).expect("new ones")[broken].data[row] > 0.0);
    }
    // AdaBN looks at every layer with the statistics that it has; and others stay.
    for (selector, method) in [("kind:bn", Method::AdaBn), ("name:layer1.*", Method::Precise)] {
        let message = estimated(selector, method).expect_err("a variance of -1").to_string();
        assert!(message.contains(&format!("`{name}.running_var` of the weights holds -1")), "{message}");
    }
}

#[test]
fn what_cannot_be_recalibrated_is_named_and_left_alone() {
    let (network, mut tensors) = shapes(1);
    let data = Data::new(SampleSet::Shapes, 4);
    let refused = recalibrate(
        &device(),
        &network,
        &mut tensors,
        input(),
        &data.loader(4),
        &precise(&[LayerId::new(0)]),
        |_, _| {},
    );
    let message = refused.expect_err("a convolution").to_string();
    assert!(message.contains("`conv1` is no batch norm"), "{message}");

    let gamma = network.params().iter().position(|param| param.role == Role::Affine).expect("a batch norm");
    tensors[gamma].data[0] = f32::NAN;
    let before = tensors.clone();
    let refused = recalibrate(
        &device(),
        &network,
        &mut tensors,
        input(),
        &data.loader(4),
        &precise(&layers("kind:bn")),
        |_, _| {},
    );
    let message = refused.expect_err("it is not a number").to_string();
    assert!(message.contains("`bn1.weight` of the weights holds NaN"), "{message}");
    let bits = |tensors: &[HostTensor]| tensors.iter().flat_map(|t| &t.data).map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&tensors), bits(&before));

    for (selector, expected) in [
        ("kind:conv", "none of the layers that it selects is of kind bn"),
        ("name:layer9.*", "matches no layer"),
        ("bn", "is not a selector"),
    ] {
        let message = policy::select(selector, LayerKind::Bn, &network).expect_err("a mistake").to_string();
        assert!(message.starts_with(&format!("selector `{selector}`: ")) && message.contains(expected), "{message}");
    }
}

#[test]
fn what_a_probe_cannot_look_at_is_named() {
    let mut b = thawline::graph::Builder::new();
    let x = b.input(1, 1, 1, 4).expect("an input");
    let logits = b.linear("fc", x, 3).expect("a head");
    let network = b.finish(logits).expect("a network");
    let tensors = weights::initialise(&network, 0);
    let device = device();
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let refused = Probe::new(&device, &network, &params, Input::Values, |_| Stats::Batch).err();
    assert!(matches!(refused, Some(TrainError::NoBatchNorm)));

    let (network, mut tensors) = shapes(2);
    let bn1 = network.params().iter().position(|p| p.role == Role::Affine).expect("a batch norm");
    tensors[bn1].data[3] = f32::INFINITY;
    let params = Parameters::upload(&device, &network, &tensors).expect("room");
    let mut probe = Probe::new(&device, &network, &params, input(), |_| Stats::Running).expect("a probe");
    let data = Data::new(SampleSet::Shapes, 2);
    let message = probe.survey(&data.loader(2)).expect_err("it overflows").to_string();
    assert!(message.contains("layer1.0.bn1") && message.contains("not finite"), "{message}");
}
