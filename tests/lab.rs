//! Comparisons of policies: what they find, and that it does not depend on how they came to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tempfile::TempDir;
use thawline::data::sample::{SampleOptions, SampleSet, write_sample_data};
use thawline::data::{Augment, DecodeOptions, ImageFolder, Sampler, Transform};
use thawline::gpu::{Device, DeviceOptions, GpuError};
use thawline::lab::{self, Bench, COMPARISON_FILE, Lab, LabError, LabEvent};
use thawline::models;
use thawline::policy::Policy;
use thawline::preprocessing::Preprocessing;
use thawline::report::Comparison;
use thawline::train::{
    Decay, Event, ImageSet, OptimizerSettings, Outcome, PolicySettings, Schedule, Settings, TrainError,
};
use thawline::weights::StateDict;

const SIZE: usize = 16;
const BATCH: usize = 8;
/// More than everything that is kept here.
const ENOUGH: u64 = 64 << 20;

struct Fixture {
    dir: TempDir,
    images: ImageFolder,
    settings: Settings,
    device: Device,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let data = dir.path().join("digits");
        write_sample_data(SampleSet::DigitsFar, &data, &SampleOptions::default()).expect("images");
        let mut images = ImageFolder::open(&data, 0.0, 0).expect("images");
        images.keep_train(24, 0).expect("enough");
        images.val = images.val.into_iter().step_by(18).collect();
        let settings = Settings {
            thawline: env!("CARGO_PKG_VERSION").into(),
            model: "resnet_tiny".into(),
            graph: None,
            weights: None,
            weights_set: None,
            classes: images.classes.clone(),
            batch: BATCH,
            accumulate: 1,
            drop_last: true,
            epochs: 2,
            seed: 0,
            label_smoothing: 0.0,
            class_weights: None,
            sampler: Sampler::Shuffled,
            patience: None,
            val_fraction: 0.0,
            train_images: Some(24),
            then: None,
            head: None,
            skip_broken: false,
            images: ImageSet::of(&images, &data),
            policy: arm("head").0,
            optimizer: OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            schedule: Schedule { lr: 5e-3, warmup: 0, decay: Decay::Constant },
            decode: DecodeOptions::default(),
            transform: Transform::new(SIZE as u32, SIZE as u32, Augment::None, Preprocessing::default()),
            data,
        };
        let device = Device::open(&DeviceOptions::default()).expect("a device");
        Self { dir, images, settings, device }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bench(&self) -> Bench {
        let spec = models::spec("resnet_tiny").expect("the model");
        let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/resnet_tiny_shapes.safetensors");
        Bench {
            device: self.device.clone(),
            network: spec.build(BATCH, (SIZE, SIZE), 10).expect("the network"),
            input: spec.preprocessing.value.into(),
            images: self.images.clone().into(),
            data: self.settings.data.clone(),
            weights: Some(StateDict::load(asset).expect("weights")),
        }
    }

    fn start(&self, out: &str, arms: &[&str], cache: u64) -> Result<Lab, LabError> {
        let arms = arms.iter().map(|name| arm(name).0).collect();
        Lab::start(self.bench(), &self.out(out), self.settings.clone(), arms, vec![4, 5], Vec::new(), cache)
    }

    fn resume(&self, out: &str) -> Lab {
        let setup = lab::setup_of(&self.out(out)).expect("a setup");
        Lab::resume(self.bench(), &self.out(out), setup).expect("it resumes")
    }
}

fn arm(name: &str) -> (PolicySettings, Policy) {
    let policy = match name {
        // Keeps more an image than `head` does.
        "late" => Policy::recipe("head").and_then(|p| p.with_rules(&["from:layer3 -> weights=train"])),
        recipe => Policy::recipe(recipe),
    };
    let policy = policy.expect("a policy");
    let rules = policy.rules.iter().map(ToString::to_string).collect();
    (PolicySettings { name: name.into(), rules, stages: vec![] }, policy)
}

/// Runs until the end, or until `stop_at` says so of an event.
fn go(lab: &mut Lab, stop_at: impl Fn(&LabEvent<'_>) -> bool) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let ended = lab.run(&stop, |event| {
        if stop_at(&event) {
            stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    });
    ended.expect("a comparison")
}

fn found(folder: &Path) -> String {
    fs::read_to_string(folder.join(COMPARISON_FILE)).expect("results")
}

#[test]
fn interrupted_or_not_and_kept_or_not_a_comparison_finds_the_same() {
    let fixture = Fixture::new();
    let arms = ["head", "late"];
    let mut whole = fixture.start("whole", &arms, ENOUGH).expect("a comparison");
    assert_eq!(go(&mut whole, |_| false), Outcome::Finished);
    assert!(whole.timings().cache_bytes > 0 && whole.timings().arms.iter().all(|arm| arm.cached));
    drop(whole);
    let whole = found(&fixture.out("whole"));

    // Two budgets: one for nothing, and one that holds what `head` keeps, but not what `late` does.
    for (name, budget, kept) in [("without", 0, [false, false]), ("little", 40_000, [true, false])] {
        let mut lab = fixture.start(name, &arms, budget).expect("a comparison");
        assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
        assert_eq!([lab.timings().arms[0].cached, lab.timings().arms[1].cached], kept, "{name}");
        assert!(lab.timings().cache_bytes <= budget);
        assert_eq!(found(&fixture.out(name)), whole, "{name}");
    }

    drop(fixture.start("parts", &arms, ENOUGH).expect("a comparison"));
    let mut stops = 0;
    loop {
        let mut lab = fixture.resume("parts");
        // The n-th event of a process ends it, another one each time.
        let (seen, nth) = (AtomicU64::new(0), 1 + stops % 7);
        let outcome = go(&mut lab, |event| {
            let counts = !matches!(event, LabEvent::Run { event: Event::Started { .. }, .. });
            counts && seen.fetch_add(1, Ordering::Relaxed) + 1 == nth
        });
        if outcome == Outcome::Finished {
            break;
        }
        stops += 1;
        assert!(stops < 100, "it does not come to an end");
    }
    assert!(stops > 5, "interrupted only {stops} times");
    assert_eq!(found(&fixture.out("parts")), whole);
    // And a complete one has nothing left to do.
    assert_eq!(go(&mut fixture.resume("parts"), |_| false), Outcome::Finished);
    assert_eq!(found(&fixture.out("parts")), whole);
}

#[test]
fn a_comparison_tells_what_it_compared() {
    let fixture = Fixture::new();
    let mut lab = fixture.start("out", &["head", "head-adapt", "full"], ENOUGH).expect("a comparison");
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    let read: Comparison = serde_json::from_str(&found(&fixture.out("out"))).expect("a comparison");
    assert!(&read == lab.comparison(), "what was written down is what was found");
    assert_eq!(read.seeds, [4, 5]);
    assert_eq!(read.batch_norms.len(), 15);
    let [head, adapt, full] = &read.arms[..] else { panic!("three arms") };

    for arm in &read.arms {
        assert_eq!(arm.runs.iter().map(|run| run.seed).collect::<Vec<_>>(), read.seeds);
        for (run, start) in arm.runs.iter().zip(&read.start) {
            assert_eq!(run.history.len(), 3, "{}", arm.name);
            let (before, after) = (run.history[0].val.expect("validated"), run.history[2].val.expect("validated"));
            // The same weights and images, looked at in another way.
            assert_eq!(before, start.running);
            assert_eq!(after, run.end.running);
            assert_eq!(run.end.single.top1, run.end.running.top1, "a single image gets what it gets in a batch");
            assert_eq!(run.end.running_flips, 0.0);
            assert_eq!(run.end.batch.iter().map(|b| b.batch).collect::<Vec<_>>(), [1, 2, BATCH]);
        }
        assert_ne!(arm.runs[0].history, arm.runs[1].history, "{}: each seed is a run of its own", arm.name);
    }
    // Frozen statistics stay where they were; those that follow the images come closer.
    let sum = |drift: &[f64]| drift.iter().sum::<f64>();
    for (seed, start) in read.start.iter().enumerate() {
        assert_eq!(head.runs[seed].end.drift, start.drift);
        assert!(sum(&adapt.runs[seed].end.drift) < 0.5 * sum(&start.drift));
    }
    let prefix = head.prefix.as_ref().expect("all but the head");
    assert_eq!(prefix.until, ["avgpool"]);
    assert_eq!(prefix.bytes_per_image, 64 * 4);
    assert_eq!(prefix.flops_per_image * BATCH as u64, head.inference.amount.flops - 2 * 8 * 64 * 10);
    assert_eq!(full.prefix, None);
    assert_eq!(adapt.prefix, None, "the first convolution is computed as fast as it is read");
    assert!(head.trained_values < full.trained_values && full.trained_values == full.all_values);
    assert!(full.stages[0].layers.iter().any(|layer| layer.axes.contains("stats=batch")));
}

/// A comparison in which each policy finds its own learning rate.
fn searching(fixture: &Fixture, out: &str) -> Lab {
    let settings = Settings { epochs: 4, ..fixture.settings.clone() };
    let arms = ["head", "full"].map(|name| arm(name).0).to_vec();
    let rates = vec![1e-4, 1e-3, 1e-2, 3e38];
    Lab::start(fixture.bench(), &fixture.out(out), settings, arms, vec![4], rates, ENOUGH).expect("a comparison")
}

#[test]
fn each_policy_finds_its_own_rate_without_a_look_at_the_validation_images() {
    let mut fixture = Fixture::new();
    fixture.images.keep_train(20, 0).expect("enough");
    fixture.settings.images = ImageSet::of(&fixture.images, &fixture.settings.data);
    let mut whole = searching(&fixture, "whole");
    // Two rounds of one step an epoch: four rates with one epoch, and two with two.
    let steps = 4 + 2 * 2;
    assert_eq!(whole.search_steps(), steps, "of each policy");
    let (trained, outside) = (AtomicU64::new(0), fixture.images.val.len());
    let outcome = go(&mut whole, |event| {
        if let LabEvent::Trial { event: Event::Step(_), .. } = event {
            trained.fetch_add(1, Ordering::Relaxed);
        }
        false
    });
    assert_eq!(outcome, Outcome::Finished);
    // One trial of each policy diverges, before or after its step is told.
    let trained = trained.load(Ordering::Relaxed);
    assert!((2 * steps - 2..=2 * steps).contains(&trained), "{trained}");
    let comparison = whole.comparison().clone();
    for arm in &comparison.arms {
        let search = arm.search.as_ref().expect("a search");
        assert_eq!((search.train_images, search.held_out), (10, 10), "two images a class, one of which judges");
        assert_ne!(search.held_out, outside, "not the validation images");
        let rounds: Vec<(usize, usize)> = search.rounds.iter().map(|r| (r.epochs, r.trials.len())).collect();
        assert_eq!(rounds, [(1, 4), (2, 2)]);
        let lost: Vec<f64> = search.rounds[0].trials.iter().filter(|trial| trial.diverged).map(|t| t.lr).collect();
        assert_eq!(lost, [3e38], "{}", arm.name);
        let mut last = search.rounds[1].trials.clone();
        last.sort_by(thawline::report::Trial::better_first);
        assert_eq!(search.lr, last[0].lr);
        let settings = Settings::of_run(&fixture.out("whole").join(format!("runs/{}-seed4", arm.name))).expect("a run");
        assert_eq!(settings.schedule.lr, search.lr, "{}", arm.name);
        assert!(!fixture.out("whole").join(format!("runs/{}-search", arm.name)).exists(), "no trial is left");
    }

    // Cut off in the middle of a trial, it finds the same.
    drop(whole);
    let mut parts = searching(&fixture, "parts");
    let mut stops = 0;
    loop {
        let seen = AtomicU64::new(0);
        let outcome = go(&mut parts, |event| {
            matches!(event, LabEvent::Trial { .. }) && seen.fetch_add(1, Ordering::Relaxed) + 1 == 5 + 2 * stops
        });
        drop(parts);
        if outcome == Outcome::Finished {
            break;
        }
        stops += 1;
        assert!(stops < 100, "it does not come to an end");
        parts = fixture.resume("parts");
    }
    assert!(stops > 2, "interrupted only {stops} times");
    assert_eq!(found(&fixture.out("parts")), found(&fixture.out("whole")));
}

#[test]
fn a_search_without_enough_images_says_what_to_do() {
    let mut fixture = Fixture::new();
    fixture.images.keep_train(10, 0).expect("enough");
    fixture.settings.images = ImageSet::of(&fixture.images, &fixture.settings.data);
    let start = |out: &str, images: Vec<f64>| {
        let arms = vec![arm("head").0];
        let started =
            Lab::start(fixture.bench(), &fixture.out(out), fixture.settings.clone(), arms, vec![4], images, 0);
        started.err().map(|error| error.to_string())
    };
    let error = start("out", vec![0.1, 0.01]).expect("an error");
    assert!(error.contains("no class has two training images") && error.contains("--lr"), "{error}");
    assert!(!fixture.out("out").exists(), "nothing was written");
    assert_eq!(start("out", vec![0.1]), None, "one rate needs no search");
}

#[test]
fn a_comparison_leaves_the_weights_to_use() {
    let fixture = Fixture::new();
    let mut lab = fixture.start("out", &["head", "full"], ENOUGH).expect("a comparison");
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    let file = fixture.out("out").join(lab::WINNER_FILE);
    let comparison = lab.comparison();
    match (&comparison.winner, thawline::report::verdict(comparison)) {
        (Some(winner), thawline::report::Verdict::Use { arm, .. }) => {
            assert_eq!(winner.policy, arm.name);
            let best = fixture.out("out").join(format!("runs/{}-seed{}/best.safetensors", arm.name, winner.seed));
            assert_eq!(fs::read(file).expect("weights"), fs::read(best).expect("weights"));
            let accuracies = arm.runs.iter().filter_map(|run| run.best_accuracy());
            assert_eq!(winner.accuracy, accuracies.fold(0.0, f64::max));
        }
        (None, thawline::report::Verdict::Use { .. }) => panic!("no weights are left"),
        (winner, verdict) => {
            assert!(winner.is_none() && !file.exists(), "{verdict:?}");
        }
    }
}

#[test]
fn a_comparison_goes_on_where_its_images_have_moved() {
    let mut fixture = Fixture::new();
    let mut lab = fixture.start("out", &["head"], ENOUGH).expect("a comparison");
    let first = |event: &LabEvent<'_>| matches!(event, LabEvent::Run { event: Event::Epoch { .. }, .. });
    assert_eq!(go(&mut lab, first), Outcome::Stopped);
    drop(lab);
    let moved = fixture.out("moved");
    fs::rename(&fixture.settings.data, &moved).expect("a move");
    for sample in fixture.images.train.iter_mut().chain(&mut fixture.images.val) {
        let below = sample.path.strip_prefix(&fixture.settings.data).expect("below the folder");
        sample.path = moved.join(below);
    }
    let setup = lab::setup_of(&fixture.out("out")).expect("a setup");
    let bench = Bench { data: moved, ..fixture.bench() };
    let mut lab = Lab::resume(bench, &fixture.out("out"), setup).expect("it resumes");
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    // And what was found is found twice the same, in the same laboratory.
    let before = lab.comparison().clone();
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    assert!(lab.comparison() == &before);
}

#[test]
fn a_run_that_diverges_does_not_end_the_comparison() {
    let mut fixture = Fixture::new();
    fixture.settings.schedule.lr = 1e30;
    let mut lab = fixture.start("out", &["full", "head"], 0).expect("a comparison");
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    for arm in &lab.comparison().arms {
        for run in &arm.runs {
            assert!(run.diverged.as_ref().is_some_and(|why| why.contains("diverged")), "{}", arm.name);
            assert_eq!(run.history.len(), 1, "before the first epoch");
        }
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let mut fixture = Fixture::new();
    let error = |result: Result<Lab, LabError>| result.err().expect("an error").to_string();
    assert!(error(fixture.start("out", &[], 0)).contains("at least one policy"));
    assert!(error(fixture.start("out", &["head", "head"], 0)).contains("two policies are called `head`"));
    assert!(!fixture.out("out").exists(), "nothing was written");
    drop(fixture.start("out", &["head"], 0).expect("a comparison"));
    assert!(error(fixture.start("out", &["head"], 0)).contains("not empty"));
    assert!(lab::setup_of(&fixture.out("nothing")).expect_err("none").to_string().contains("no comparison"));

    let setup = lab::setup_of(&fixture.out("out")).expect("a setup");
    let mut other = fixture.bench();
    other.weights = None;
    assert!(error(Lab::resume(other, &fixture.out("out"), setup.clone())).contains("the weights file changed"));
    fixture.images.train.pop();
    assert!(error(Lab::resume(fixture.bench(), &fixture.out("out"), setup)).contains("the folder of images changed"));
    fixture.images.val.clear();
    assert!(error(fixture.start("other", &["head"], 0)).contains("validation"));
}

#[test]
fn a_comparison_that_loses_its_device_goes_on_to_the_same_results() {
    let fixture = Fixture::new();
    let arms = ["head", "late"];
    let mut whole = fixture.start("whole", &arms, 0).expect("a comparison");
    assert_eq!(go(&mut whole, |_| false), Outcome::Finished);
    drop(whole);

    let device = Device::open(&DeviceOptions::default()).expect("a device");
    let device = device.with_variant(fixture.device.variant().expect("a variant")).expect("the device has it");
    let bench = Bench { device: device.clone(), ..fixture.bench() };
    let policies = arms.map(|name| arm(name).0).to_vec();
    let begun = Lab::start(bench, &fixture.out("lost"), fixture.settings.clone(), policies, vec![4, 5], Vec::new(), 0);
    let mut lab = begun.expect("a comparison");
    let ended = lab.run(&Arc::new(AtomicBool::new(false)), |event| {
        if let LabEvent::Run { arm: 1, seed: 0, event: Event::Step(step) } = event
            && step.epoch == 2
        {
            device.destroy();
        }
        Ok(())
    });
    let error = ended.expect_err("the device is lost");
    let LabError::Train(TrainError::Device { source, checkpoint, .. }) = &error else { panic!("{error:?}") };
    assert!(matches!(**source, GpuError::Lost { .. }), "{error:?}");
    assert!(checkpoint.starts_with(fixture.out("lost").join("runs/late-seed4")), "{error}");
    drop(lab);
    let mut lab = fixture.resume("lost");
    assert_eq!(go(&mut lab, |_| false), Outcome::Finished);
    assert_eq!(found(&fixture.out("lost")), found(&fixture.out("whole")));
}
