//! What is made of a comparison: nine policies on digits at half contrast, with accuracies as the experiments behind this
//! crate found them. And of a benchmark, with times that are a little off what is predicted.

use super::spread::{Difference, ranked};
use super::*;
use crate::compile::{Optimizer, Options};
use crate::data::{DecodeOptions, Sample};
use crate::graph::{LayerKind, Sgd};
use crate::kernels::conv2d::Variant;
use crate::models;
use crate::plan::{Input, Roofline};
use crate::policy::{self, Policy, RECIPES};
use crate::rng::Rng;
use crate::train::{
    ConfusionMatrix, Decay, EpochMetrics, Evaluation, KernelTime, Measurement, Mistake, OptimizerSettings, Quartiles,
    Schedule,
};
use std::path::Path;
use std::process::Command;

const EPOCHS: usize = 10;
const IMAGES: u64 = 600;

/// Policies, and the accuracy that each ends with.
const ARMS: [(&str, f64); 9] = [
    ("full", 0.937),
    ("full-frozen-bn", 0.900),
    ("keras-guide", 0.905),
    ("head", 0.545),
    ("bn-only", 0.816),
    ("bn-affine", 0.785),
    ("head-adapt", 0.624),
    ("upper-two-thirds.toml", 0.940),
    ("policies/last-block.toml", 0.862),
];

fn totals(accuracy: f64) -> Totals {
    let top1 = (accuracy.clamp(0.0, 1.0) * IMAGES as f64).round() as u64;
    Totals { loss: IMAGES as f64 * 2.3 * (1.05 - accuracy), top1, top5: IMAGES.min(top1 + 100), samples: IMAGES }
}

/// `follows`: batch norms have moved to the data.
fn state(accuracy: f64, norms: usize, follows: bool, rng: &mut Rng) -> State {
    let fallen = |batch: f64| 0.1 + (accuracy - 0.1) * (1.0 - 1.0 / batch).powi(2) * 0.98;
    let scale = if follows { 0.004 } else { 4.0 };
    State {
        drift: (0..norms).map(|norm| scale * (-(norm as f64) / 5.0).exp() * rng.range(0.5, 2.0)).collect(),
        running: totals(accuracy),
        single: totals(accuracy),
        running_flips: 0.0,
        batch: [1, 4, 16, 64]
            .map(|batch| BatchStatistics {
                batch,
                accuracy: fallen(batch as f64),
                flips: if batch == 1 { 0.0 } else { (1.2 - accuracy) / (batch as f64).sqrt() },
            })
            .to_vec(),
    }
}

fn run(seed: u64, end: f64, norms: usize, follows: bool) -> ArmRun {
    let mut rng = Rng::keyed(seed, &[(end * 1e4) as u64]);
    let history = (0..=EPOCHS).map(|epoch| {
        let rise = 1.0 - (-(epoch as f64) / 2.2).exp();
        let accuracy = 0.1
            + (end - 0.1) * rise / (1.0 - (-(EPOCHS as f64) / 2.2).exp())
            + rng.range(-1.0, 1.0) * (0.008 + 0.06 * (1.0 - end));
        EpochMetrics {
            epoch,
            step: 6 * epoch as u64,
            lr: if epoch == 0 { 0.0 } else { 0.005 },
            train: (epoch > 0).then(|| totals(accuracy + 0.03)),
            val: Some(totals(accuracy)),
            skipped: 0,
            val_balanced: Some(accuracy.clamp(0.0, 1.0)),
        }
    });
    let history: Vec<EpochMetrics> = history.collect();
    let accuracy = history[EPOCHS].val.unwrap().accuracy();
    ArmRun {
        seed,
        history,
        diverged: None,
        confusion: Some(confusion(seed, 10)),
        end: state(accuracy, norms, follows, &mut rng),
    }
}

/// Of five images a class, of which the last is mistaken, and the last class's all are.
fn confusion(seed: u64, classes: u32) -> ConfusionMatrix {
    let mut matrix = ConfusionMatrix::new(classes as usize);
    for class in 0..classes {
        for image in 0..5 {
            let mistaken = image == 4 || class + 1 == classes;
            matrix.add(class, if mistaken { (class + 1 + seed as u32 % 2) % classes } else { class });
        }
    }
    matrix
}

fn arm(name: &str, end: f64, seeds: &[u64]) -> Arm {
    let policy = match name {
        "upper-two-thirds.toml" => {
            Policy::recipe("full").unwrap().with_rules(&["index:..18 & !kind:bn -> weights=frozen"])
        }
        "policies/last-block.toml" => {
            Policy::recipe("bn-only").unwrap().with_rules(&["from:layer3 & kind:conv -> weights=train"])
        }
        recipe => Policy::recipe(recipe),
    };
    let policy = policy.unwrap();
    let resolved = policy::resolve(&policy, models::build("resnet_tiny", 32, (16, 16), 10).unwrap()).unwrap();
    let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false });
    let options = Options {
        optimizer,
        label_smoothing: 0.0,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };
    let (price, _) = price(&resolved, &options, Input::Values).unwrap();
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name);
    let layers = price.layers.iter().filter(|layer| !layer.axes.is_empty());
    let layers = layers.map(|l| ArmLayer { name: l.name.clone(), kind: l.kind.to_owned(), axes: l.axes.clone() });
    let norms = resolved.graph.layers().iter().filter(|layer| layer.kind == LayerKind::Bn).count();
    let follows = price.layers.iter().any(|layer| layer.axes.contains("update=ema"));
    Arm {
        name: name.to_owned(),
        summary: recipe.map_or(String::new(), |recipe| recipe.summary.to_owned()),
        rules: policy.rules.iter().map(ToString::to_string).collect(),
        warnings: resolved.warnings.iter().map(ToString::to_string).collect(),
        stages: vec![ArmStage { share: 1.0, rules: Vec::new(), layers: layers.collect(), step: price.step }],
        trained_values: match name {
            "full" | "keras-guide" => 174_970,
            "full-frozen-bn" => 173_322,
            "head" | "head-adapt" => 650,
            "bn-only" | "bn-affine" => 2_298,
            _ => 140_000,
        },
        all_values: 174_970,
        step: price.step,
        inference: price.inference,
        prefix: (name == "head").then(|| Prefix {
            until: vec!["avgpool".to_owned()],
            flops_per_image: price.inference.amount.flops / 32,
            bytes_per_image: 256,
        }),
        search: None,
        runs: seeds.iter().map(|&seed| run(seed, end, norms, follows)).collect(),
    }
}

fn comparison(arms: &[(&str, f64)], seeds: &[u64]) -> Comparison {
    let graph = models::build("resnet_tiny", 32, (16, 16), 10).unwrap();
    let norms = graph.layers().iter().filter(|layer| layer.kind == LayerKind::Bn);
    let batch_norms: Vec<String> = norms.map(|layer| layer.name.clone()).collect();
    let start = seeds.iter().map(|&seed| state(0.1, batch_norms.len(), false, &mut Rng::new(seed))).collect();
    Comparison {
        thawline: "0.1.0".to_owned(),
        model: "resnet_tiny".to_owned(),
        weights: Some("assets/resnet_tiny_shapes.safetensors".into()),
        data: "data/digits".into(),
        classes: (0..10).map(|digit| digit.to_string()).collect(),
        train_images: 200,
        val_images: IMAGES as usize,
        chance: 0.1,
        size: [16, 16],
        batch: 32,
        accumulate: 1,
        epochs: EPOCHS,
        patience: None,
        steps: 60,
        augment: "crop-flip".to_owned(),
        optimizer: OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-4 },
        schedule: Schedule { lr: 0.005, warmup: 0, decay: Decay::Cosine { end: 0.0 } },
        seeds: seeds.to_vec(),
        batch_norms,
        start,
        arms: arms.iter().map(|(name, end)| arm(name, *end, seeds)).collect(),
        winner: None,
    }
}

fn timings(comparison: &Comparison) -> Timings {
    let arms = comparison.arms.iter().map(|arm| {
        let step_ms = arm.step.amount.flops as f64 / 2.1e7 + arm.step.amount.moved_bytes as f64 / 8e6;
        let cached = arm.prefix.is_some();
        ArmTimings {
            name: arm.name.clone(),
            step_ms,
            inference_ms: arm.inference.amount.flops as f64 / 2.3e7,
            allocated_bytes: arm.step.planned_bytes * 21 / 20,
            epoch_s: vec![step_ms * if cached { 0.0008 } else { 0.0065 }; EPOCHS * comparison.seeds.len()],
            fill_s: if cached { 0.31 } else { 0.0 },
            cached,
        }
    });
    Timings {
        device: "llvmpipe (LLVM 15.0.6, 256 bits)".to_owned(),
        driver: "Mesa 22.3.6".to_owned(),
        date: "2026-11-25".to_owned(),
        arms: arms.collect(),
        cache_bytes: 204_800,
        cache_budget: 1 << 30,
    }
}

fn whole() -> Comparison {
    comparison(&ARMS, &[0, 1, 2])
}

/// Renders, and reads what was rendered.
fn read(comparison: &Comparison, timings: &Timings) -> (String, impl Fn(&str) -> usize + use<>) {
    read_page(&page(comparison, timings))
}

/// The text of a page, and the number of its elements by name and class.
fn read_page(page: &str) -> (String, impl Fn(&str) -> usize + use<>) {
    let mut reader = quick_xml::Reader::from_str(page.trim_start().strip_prefix("<!doctype html>").unwrap());
    let mut elements = Vec::new();
    let mut text = String::new();
    loop {
        use quick_xml::events::Event;
        match reader.read_event().expect("tags are balanced") {
            Event::Eof => break,
            Event::Start(tag) | Event::Empty(tag) => {
                let mut element = tag.name().as_ref().to_owned();
                for attribute in tag.attributes() {
                    let attribute = attribute.expect("attributes are quoted, and none comes twice");
                    let value = attribute.value;
                    let is_number = !value.starts_with("data:");
                    assert!(!is_number || !value.contains("NaN") && !value.contains("inf"), "{element} has {value:?}");
                    match attribute.key.as_ref() {
                        "class" => element += &format!(".{value}"),
                        "src" if value.starts_with("data:image/jpeg;base64,") => {}
                        "src" | "href" | "srcset" => panic!("{element} needs {value:?}"),
                        _ => {}
                    }
                }
                elements.push(element);
            }
            Event::Text(part) => {
                assert!(!["none", "NaN", "inf"].contains(&part.trim()), "something unknown is printed");
                text += &part;
            }
            Event::GeneralRef(name) => text += &quick_xml::escape::unescape(&format!("&{};", &*name)).unwrap(),
            _ => {}
        }
    }
    (text, move |element: &str| elements.iter().filter(|known| *known == element).count())
}

#[test]
fn a_page_shows_every_policy_in_every_section() {
    let comparison = whole();
    let (text, count) = read(&comparison, &timings(&comparison));
    for heading in [
        "Conclusion",
        "Accuracy against cost",
        "Accuracy by policy",
        "Learning curves",
        "What a step costs",
        "What the cache saved",
        "Drift of the batch norms",
        "Batch statistics at inference",
        "The policies, exactly",
        "Setting",
    ] {
        assert!(text.contains(heading), "{heading} is missing");
    }
    assert_eq!((count("svg.dots"), count("circle.dot"), count("rect.band")), (9, 27, 9));
    assert_eq!((count("svg.panel"), count("polyline.line"), count("polyline.other")), (9, 9, 81));
    // One policy is advised.
    assert_eq!((count("circle.choice"), count("circle.choice advised"), count("polyline.front")), (8, 1, 1));
    assert!(text.contains("over the time of an epoch on this device"));
    // A row more, before training; the legend has cells, too.
    assert_eq!((count("svg.strip"), count("details")), (10, 9));
    assert!(count("rect.heat") >= 10 * comparison.batch_norms.len());
    assert!(text.contains("llvmpipe") && text.contains("kind:bn -> stats=batch") && text.contains("data/digits"));
}

#[test]
fn a_page_shows_the_classes_of_the_most_accurate_policy() {
    let mut comparison = whole();
    let (text, count) = read(&comparison, &timings(&comparison));
    assert!(text.contains("Class by class") && text.contains("under 3 seeds, counted together"));
    assert_eq!((count("table.matrix"), count("td.right"), count("td.wrong")), (1, 10, 90));
    assert!(text.contains("10 ×"), "the last class's images, under two seeds, were all taken for the first");

    // A run that was ended early.
    assert!(!text.contains("epochs done"));
    comparison.patience = Some(3);
    comparison.arms[0].runs[0].history.truncate(7);
    let (text, _) = read(&comparison, &timings(&comparison));
    assert!(text.contains("epochs done") && text.contains("6, 10, 10") && text.contains("after 3 epochs without"));

    // As in folders of versions that kept no confusion matrix.
    comparison.arms.iter_mut().flat_map(|arm| &mut arm.runs).for_each(|run| run.confusion = None);
    let (text, count) = read(&comparison, &timings(&comparison));
    assert!(!text.contains("Class by class") && count("table.matrix") == 0);
}

/// The page of an evaluation of so many classes, one of whose names is `first`, with as many pictures as fit.
fn evaluated(classes: u32, first: &str, folder: &Path) -> (String, impl Fn(&str) -> usize + use<>) {
    let mut names: Vec<String> = (0..classes).map(|class| format!("class-{class:04}")).collect();
    names[0] = first.to_owned();
    let picture = folder.join("picture.png");
    image::save_buffer(&picture, &[90; 4 * 300 * 200], 300, 200, image::ColorType::Rgba8).unwrap();
    let samples = [picture, folder.join("gone.png")].map(|path| Sample { path, label: 0 });
    let mut evaluation = Evaluation::new(classes as usize, 2);
    evaluation.confusion = confusion(0, classes);
    let mistake = |sample| Mistake { sample, truth: 0, predicted: 1, confidence: 0.987 };
    evaluation.mistakes = vec![mistake(0), mistake(1)];
    let images = u64::from(classes) * 5;
    evaluation.totals = Totals { loss: 1.0, top1: images / 2, top5: images, samples: images };
    let page = evaluation_page(&Evaluated {
        model: first,
        weights: Some(Path::new(first)),
        data: folder,
        split: "val",
        size: [224, 224],
        device: "llvmpipe",
        classes: &names,
        evaluation: &evaluation,
        samples: &samples,
        decode: &DecodeOptions::default(),
    });
    read_page(&page)
}

#[test]
fn an_evaluation_is_shown_with_its_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let (text, count) = evaluated(10, "</title><script>alert('1')</script>\"`&", folder.path());
    assert_eq!((count("script"), count("img"), count("div.missing")), (0, 1, 1));
    assert_eq!((count("table.matrix"), count("td.right"), count("td.wrong")), (1, 10, 90));
    assert!(text.contains("picture.png") && text.contains("98.7") && text.contains("</title><script>"));
    // The class that is never right stands above all others.
    let place = |name: &str| text.find(name).unwrap();
    assert!(place("class-0009") < place("class-0001"));

    for (classes, folded, pairs) in [(2, 0, 0), (25, 0, 0), (26, 0, 26), (1000, 960, 40)] {
        let (text, count) = evaluated(classes, "first", folder.path());
        assert_eq!(count("table.matrix"), usize::from(classes <= 25), "{classes}");
        assert_eq!(text.contains("A matrix of so many classes could not be read"), pairs > 0);
        assert_eq!(text.contains(&format!("The other {folded} classes")), folded > 0, "{classes}");
        assert_eq!(text.contains("the 40 pairs that are confused most often, of 1000"), classes == 1000);
    }
}

#[test]
fn names_are_escaped() {
    let mut comparison = comparison(&ARMS[..2], &[0, 1, 2]);
    let hostile = "</title><script>alert('1')</script>\"`&";
    comparison.arms[0].name = hostile.to_owned();
    comparison.arms[0].warnings.push(hostile.to_owned());
    comparison.model = hostile.to_owned();
    comparison.data = format!("data/{hostile}").into();
    comparison.classes[0] = hostile.to_owned();
    comparison.batch_norms[0] = hostile.to_owned();
    let (text, count) = read(&comparison, &timings(&comparison));
    assert_eq!((count("script"), count("title")), (0, count("title")));
    assert!(text.contains("</title><script>"));
}

#[test]
fn a_page_shows_what_there_is() {
    let nothing = Timings::default();
    let mut comparison = whole();

    // Under way: an arm with one run, one with none, and no times.
    comparison.arms[0].runs.truncate(1);
    comparison.arms[1].runs.clear();
    let (text, count) = read(&comparison, &nothing);
    assert_eq!((count("circle.dot"), count("rect.band")), (22, 7));
    assert!(text.contains("Only 22 of 27 runs are finished.") && text.contains("No policy trained from the cache"));

    assert!(text.contains("over the arithmetic of a step"), "nothing was timed");
    assert_eq!(count("circle.choice") + count("circle.choice advised"), 8);

    // Nothing but prices and policies.
    comparison.arms.iter_mut().for_each(|arm| arm.runs.clear());
    comparison.start.clear();
    let (text, count) = read(&comparison, &nothing);
    assert_eq!((count("circle.dot"), count("svg.strip"), count("details")), (0, 0, 9));
    assert!(text.contains("No run is finished yet"));
    comparison.arms.clear();
    let (text, _) = read(&comparison, &nothing);
    assert!(text.contains("0 policies"));
}

#[test]
fn a_page_without_validation_shows_training() {
    let mut comparison = comparison(&ARMS[..1], &[7]);
    comparison.val_images = 0;
    let run = &mut comparison.arms[0].runs[0];
    run.history.iter_mut().for_each(|epoch| epoch.val = None);
    for state in comparison.start.iter_mut().chain([&mut run.end]) {
        (state.running, state.single) = (Totals::default(), Totals::default());
        state.batch.clear();
    }
    let (text, count) = read(&comparison, &timings(&comparison));
    assert!(text.contains("There are no validation images") && text.contains("Training accuracy by epoch"));
    assert!(!text.contains("Accuracy by policy") && !text.contains("Batch statistics at inference"));
    assert_eq!(count("polyline.line"), 1);
}

#[test]
fn losses_and_drift_that_are_no_numbers() {
    let mut comparison = comparison(&ARMS[..1], &[0]);
    let run = &mut comparison.arms[0].runs[0];
    run.history[EPOCHS].val.as_mut().unwrap().loss = f64::NAN;
    run.end.drift[3] = f64::INFINITY;
    run.end.drift[4] = 0.0;
    let (text, count) = read(&comparison, &timings(&comparison));
    assert_eq!(count("rect.unknown"), 1);
    assert!(text.contains("Losses stopped being numbers"));
    assert!(text.contains("No policy has a result that counts") && text.contains("diverged in its one run"));
}

#[test]
fn csv_has_a_line_an_arm_a_seed_and_an_epoch() {
    let mut comparison = comparison(&ARMS[..2], &[4, 5]);
    comparison.arms[1].name = "a, \"b\"".to_owned();
    let table = comparison.csv();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 2 * (EPOCHS + 1));
    assert!(lines[0].starts_with("arm,seed,epoch,step,lr,train_loss"));
    assert!(lines[1].starts_with("full,4,0,0,0,,,,"), "{}", lines[1]);
    assert!(lines[4 * (EPOCHS + 1)].starts_with("\"a, \"\"b\"\"\",5,10,60,0.005,"));
}

/// Comparisons of arms whose last accuracies are given by seed, over images.
fn ended(arms: &[(&str, &[f64])], images: usize) -> Comparison {
    let seeds: Vec<u64> = (0..arms[0].1.len() as u64).collect();
    let names: Vec<(&str, f64)> = arms.iter().map(|(name, ends)| (*name, ends[0])).collect();
    let mut comparison = comparison(&names, &seeds);
    comparison.val_images = images;
    for (arm, (_, ends)) in comparison.arms.iter_mut().zip(arms) {
        for (run, end) in arm.runs.iter_mut().zip(*ends) {
            run.history[EPOCHS].val = Some(totals(*end));
        }
    }
    comparison
}

#[test]
fn a_lead_is_clear_if_neither_seeds_nor_images_explain_it() {
    let difference = |comparison: &Comparison| {
        let arms = &comparison.arms;
        Difference::between(comparison, &arms[0], &arms[1]).unwrap()
    };
    let (wide, narrow) = ([0.90, 0.85, 0.80], [0.84, 0.80, 0.75]);
    // Paired, the seeds agree that it is 5 or 6 points.
    let many = difference(&ended(&[("full", &wide), ("head", &narrow)], 100_000));
    approx::assert_abs_diff_eq!(many.mean, 0.16 / 3.0, epsilon = 1e-9);
    approx::assert_abs_diff_eq!(many.margin, 4.303 * 0.0057735 / 3_f64.sqrt(), epsilon = 1e-5);
    assert!(many.is_clear() && many.by_seeds);
    // So few images leave it open all the same.
    let few = difference(&ended(&[("full", &wide), ("head", &narrow)], 100));
    assert!(!few.is_clear() && !few.by_seeds);
    // A third policy says nothing of these two, however much it varies.
    let wild = ended(&[("full", &wide), ("head", &narrow), ("bn-only", &[0.2, 0.9, 0.5])], 100_000);
    assert_eq!(difference(&wild), many);
    // The seeds do not agree.
    let mixed = difference(&ended(&[("full", &[0.9, 0.8, 0.9]), ("head", &[0.85, 0.85, 0.7])], 100_000));
    assert!(mixed.mean > 0.05 && !mixed.is_clear() && mixed.by_seeds);
}

#[test]
fn a_conclusion_begins_with_what_to_use() {
    let comparison = whole();
    let [advice, following, price, inference] = &conclusion::findings(&comparison)[..] else { panic!("four findings") };
    assert_eq!(ranked(&comparison)[0].name, "upper-two-thirds.toml");
    assert!(advice.starts_with("Use `upper-two-thirds.toml`, the most accurate policy: it gets 9"), "{advice}");
    assert!(advice.contains("These runs cannot tell the lead of `upper-two-thirds.toml` over `full` (+"), "{advice}");
    assert!(advice.contains("Before training it was 1"), "{advice}");
    assert!(following.starts_with("Letting batch norms follow the data helps here: `bn-only` against `head` +2"));
    assert!(following.contains("far from") && following.contains("most at `bn1`"), "{following}");
    assert!(price.starts_with("A step of `upper-two-thirds.toml` takes"), "{price}");
    assert!(inference.contains("must not be left in training mode"), "{inference}");
    assert!(
        inference.contains("batches of 1 gives 10.0 %") && inference.contains("no prediction changes"),
        "{inference}"
    );
    let caveats = conclusion::caveats(&comparison).join("\n");
    assert!(
        caveats.contains("600 validation images")
            && caveats.contains("3 seeds")
            && caveats.contains("best of 9 policies")
    );

    // The cheaper arm is about as good, so it is the one to use.
    let tied = ended(&[("full", &[0.90, 0.91, 0.92]), ("head", &[0.91, 0.90, 0.90])], 600);
    let findings = conclusion::findings(&tied);
    assert!(
        findings[0].starts_with("Use `head`, which is cheaper than `full` and about as accurate (91.0 %"),
        "{findings:?}"
    );
    assert!(findings.iter().any(|finding| finding.contains("instead of the") && finding.contains("of `full`")));
    assert!(matches!(verdict(&tied), Verdict::Use { arm, best, .. } if arm.name == "head" && best.name == "full"));

    // A lead that images cannot resolve is not given up for a price.
    let open = ended(&[("full", &[0.90, 0.91, 0.92]), ("head", &[0.86, 0.87, 0.86])], 100);
    let advice = &conclusion::findings(&open)[0];
    assert!(advice.starts_with("Use `full`, the most accurate policy") && advice.contains("over `head`"), "{advice}");

    let clear = ended(&[("full", &[0.95, 0.96, 0.97]), ("head", &[0.70, 0.71, 0.70])], 600);
    let advice = &conclusion::findings(&clear)[0];
    assert!(advice.starts_with("Use `full`: it gets 96.0 %") && advice.contains("25.7 ± "), "{advice}");
}

/// With this accuracy before training under every seed.
fn begun(mut comparison: Comparison, start: f64) -> Comparison {
    for run in comparison.arms.iter_mut().flat_map(|arm| &mut arm.runs) {
        run.history[0].val = Some(totals(start));
    }
    comparison
}

#[test]
fn where_training_does_not_help_the_advice_is_not_to_train() {
    let near = begun(ended(&[("full", &[0.96, 0.97, 0.96]), ("head", &[0.97, 0.96, 0.97])], 600), 0.965);
    assert!(matches!(verdict(&near), Verdict::DoNotTrain { .. }));
    let advice = &conclusion::findings(&near)[0];
    assert!(advice.starts_with("Do not train: the weights as they are get 96.5 %"), "{advice}");
    assert!(advice.contains("that 600 validation images cannot resolve"), "{advice}");
    let harm = begun(ended(&[("full", &[0.70, 0.71, 0.70])], 600), 0.965);
    assert!(conclusion::findings(&harm)[0].contains("fewer than before"), "{:?}", conclusion::findings(&harm));

    // Weights that are at chance are not to be used, either.
    let lost = begun(ended(&[("full", &[0.16, 0.15, 0.16])], 200), 0.12);
    assert!(matches!(verdict(&lost), Verdict::NothingLearnt { .. }), "{:?}", conclusion::findings(&lost));
    assert!(conclusion::findings(&lost)[0].starts_with("There is no winner"));
}

#[test]
fn nothing_is_beyond_chance_beside_a_doubt_about_chance() {
    for seeds in [&[0.9][..], &[0.9, 0.91], &[0.9, 0.91, 0.92]] {
        let lower: Vec<f64> = seeds.iter().map(|end| end - 0.3).collect();
        let text = conclusion(&ended(&[("full", seeds), ("head", &lower)], 600)).join("\n");
        assert!(!text.contains("more than chance") && !text.contains("cannot tell chance"), "{text}");
    }
}

#[test]
fn a_search_for_rates_is_part_of_the_caveats() {
    let mut comparison = ended(&[("full", &[0.95, 0.96, 0.97]), ("head", &[0.80, 0.81, 0.82])], 600);
    let trial = |lr| Trial { lr, accuracy: 0.5, loss: 1.0, diverged: false };
    for (arm, lr) in comparison.arms.iter_mut().zip([0.003, 0.03]) {
        let rounds = vec![SearchRound { epochs: 5, trials: [0.003, 0.01, 0.03].map(trial).to_vec() }];
        arm.search = Some(LrSearch { lr, train_images: 160, held_out: 40, rounds });
    }
    let caveats = conclusion::caveats(&comparison).join("\n");
    assert!(caveats.contains("the best of 3 learning rates by short runs on 160 of the training images"), "{caveats}");
    assert!(caveats.contains("`full` 0.003, `head` 0.03") && !caveats.contains("same learning rate"), "{caveats}");
    assert!(
        caveats.contains("lowest rate was best for `full`") && caveats.contains("highest rate was best for `head`")
    );
    assert_eq!(comparison.arms[1].lr(&comparison), 0.03);

    let mut trials = [trial(0.1), Trial { accuracy: f64::NAN, diverged: true, ..trial(0.2) }, trial(0.3), trial(0.4)];
    trials[2].loss = 0.9;
    trials[3].accuracy = 0.6;
    trials.sort_by(Trial::better_first);
    assert_eq!(trials.map(|trial| trial.lr), [0.4, 0.3, 0.1, 0.2]);
}

#[test]
fn what_diverged_or_ended_at_chance_has_no_rank() {
    let mut comparison =
        ended(&[("full", &[0.95, 0.96, 0.97]), ("head", &[0.80, 0.81, 0.82]), ("bn-only", &[0.10, 0.11, 0.10])], 600);
    comparison.arms[0].runs[1].diverged = Some("training diverged".to_owned());
    let findings = conclusion::findings(&comparison);
    assert!(findings[0].starts_with("Use `head`, the only policy with a result"), "{}", findings[0]);
    assert!(
        findings[1].starts_with(
            "Not ranked: `full` diverged in 1 of its 3 runs; `bn-only` ended at chance: 10.3 % of 600 images"
        ),
        "{}",
        findings[1]
    );
    assert!(!findings.iter().any(|finding| finding.contains("against `head`")), "{findings:?}");
    let order: Vec<&str> = ranked(&comparison).iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(order, ["head", "full", "bn-only"]);

    // Where nothing is left, nothing is best.
    for run in comparison.arms.iter_mut().flat_map(|arm| &mut arm.runs) {
        run.diverged = Some("training diverged".to_owned());
    }
    let findings = conclusion::findings(&comparison);
    assert!(findings[0].starts_with("No policy has a result that counts"), "{}", findings[0]);
    assert!(findings[1].contains("`head` diverged in all of its 3 runs"), "{}", findings[1]);
    // Among ten images, two and a half are no more than chance; among 600, they are.
    let few = |images| conclusion::findings(&ended(&[("full", &[0.25, 0.25, 0.25])], images));
    assert!(few(10)[1].contains("`full` ended at chance"), "{:?}", few(10));
    assert!(!few(600).iter().any(|finding| finding.contains("at chance")), "{:?}", few(600));
}

#[test]
fn a_conclusion_says_what_batch_norms_did() {
    let hurt = ended(&[("full", &[0.50, 0.52, 0.51]), ("full-frozen-bn", &[0.90, 0.91, 0.92])], 600);
    assert!(conclusion(&hurt)[1].starts_with("Letting batch norms follow the data hurts here"));

    let mut near = ended(&[("bn-only", &[0.90, 0.91, 0.92]), ("head", &[0.91, 0.91, 0.91])], 600);
    near.start.iter_mut().for_each(|state| state.drift.fill(0.01));
    let following = &conclusion(&near)[1];
    assert!(following.starts_with("Whether batch norms follow the data makes no difference"), "{following}");
    assert!(following.ends_with("close to what the file describes: there is little to follow."), "{following}");

    let mut far = ended(&[("bn-only", &[0.80, 0.81, 0.82]), ("head", &[0.31, 0.31, 0.31])], 600);
    far.start.iter_mut().for_each(|state| state.drift.fill(3.0));
    assert!(conclusion(&far)[1].ends_with("far from what the file describes: moments that stay do not fit them."));
}

#[test]
fn caveats_follow_from_the_numbers() {
    let caveats = |comparison: &Comparison| conclusion::caveats(comparison).join("\n");
    let one = ended(&[("full", &[0.99]), ("head", &[0.15])], 600);
    assert!(caveats(&one).contains("One seed shows nothing of what chance does"));
    assert!(caveats(&one).contains(
        "Still at their best in the last epoch under every seed, so more epochs may change the order: `full`."
    ));
    assert!(caveats(&one).contains("Ended below their best epoch, in points: `head` by"));
    let two = ended(&[("full", &[0.9, 0.9])], 600);
    assert!(caveats(&two).contains("Two seeds are too few for 95 %") && !caveats(&two).contains("same learning rate"));
}

/// Policies, thaw depths and batch sizes of a network on a device, in what is predicted and a little off it.
fn benchmark() -> Benchmark {
    let roofline = Roofline { flops_per_s: 2.1e10, bytes_per_s: 8e9, call_ms: 0.015, run_ms: 0.04 };
    let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false });
    let options = Options {
        optimizer,
        label_smoothing: 0.0,
        class_weights: false,
        accumulate: 1,
        export_gradients: false,
        seed: 0,
    };
    let mut rng = Rng::new(5);
    let mut results = Vec::new();
    for name in ["full", "keras-guide", "head", "bn-only"] {
        for thaw in [None, Some("layer3")] {
            for batch in [1, 8, 64] {
                let from = thaw.map(|layer| format!("from:{layer} -> weights=train"));
                let policy = Policy::recipe(name).unwrap().with_rules(&from.iter().collect::<Vec<_>>()).unwrap();
                let network = models::build("resnet_tiny", batch, (16, 16), 10).unwrap();
                let network = policy::resolve(&policy, network).unwrap().graph;
                let predicted = predict(&network, &options, Variant::default(), &roofline).unwrap();
                let mut off = |ms: f64| ms * rng.range(0.7, 1.6);
                let (inference_ms, step_ms) = (off(predicted.inference.ms), off(predicted.step.ms));
                let mut took = |kernels: &[KernelTime]| -> Vec<KernelTime> {
                    kernels.iter().map(|k| KernelTime { ms: k.ms.map(&mut off), ..k.clone() }).collect()
                };
                let runs = |ms: f64| Quartiles {
                    count: 10,
                    least: 0.9 * ms,
                    lower: 0.95 * ms,
                    upper: 1.05 * ms,
                    most: 2.0 * ms,
                };
                let total = predicted.step.total;
                let measured = Measurement {
                    inference_ms,
                    step_ms,
                    inference_runs_ms: Some(runs(inference_ms)),
                    step_runs_ms: Some(runs(step_ms)),
                    first_step_ms: 5.0 * step_ms,
                    images_per_s: batch as f64 / step_ms * 1e3,
                    planned_bytes: total.planned_bytes,
                    kept_bytes: total.kept_bytes,
                    allocated_bytes: total.planned_bytes * 11 / 10,
                    kernels: took(&predicted.step.kernels),
                    inference_kernels: took(&predicted.inference.kernels),
                };
                results.push(BenchResult {
                    model: "resnet_tiny".into(),
                    policy: name.into(),
                    thaw: thaw.map(str::to_owned),
                    batch,
                    size: [16, 16],
                    measured: Some(measured),
                    predicted: Some(predicted),
                    same_as: (name == "full" && thaw.is_some()).then(|| "full".into()),
                    error: None,
                });
            }
        }
    }
    results[0].measured = None;
    results[0].error = Some("the statistics of a batch would be taken over a single value a channel".into());
    Benchmark {
        device: "llvmpipe (LLVM 15.0.6, 256 bits)".into(),
        driver: "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)".into(),
        backend: "Vulkan".into(),
        kind: "CPU".into(),
        host: "x86_64-linux".into(),
        thawline: "0.1.0".into(),
        build: "release".into(),
        date: "2026-11-25".into(),
        variant: "subgroup".into(),
        classes: Some(10),
        optimizer: "sgd with momentum".into(),
        rules: Vec::new(),
        roofline: Some(roofline),
        results,
        peak_rss_bytes: Some(350_000_000),
    }
}

/// One that was made elsewhere, and measured less.
fn elsewhere() -> Benchmark {
    let mut other = Benchmark { device: "another device".into(), thawline: "0.0.9".into(), ..benchmark() };
    other.results.truncate(9);
    for (index, result) in other.results.iter_mut().enumerate() {
        let Some(measured) = &mut result.measured else { continue };
        measured.step_ms *= 0.8 + 0.05 * index as f64;
        measured.inference_runs_ms = None;
    }
    other
}

#[test]
fn a_benchmark_has_a_page() {
    let benchmark = benchmark();
    let against = benchmark.against("there.json", &elsewhere());
    let (text, count) = read_page(&bench_page(&benchmark, &[against]));
    for heading in ["Time", "Memory", "Where the time goes", "Against there.json", "The prediction", "Setting"] {
        assert!(text.contains(heading), "{heading} is missing");
    }
    // One could not be measured, and three were not measured anew.
    assert_eq!(count("details"), 20);
    assert!(text.contains("over a single value a channel") && text.contains("(the same as full)"));
    assert!(text.contains("another device") && text.contains("0.0.9"));
    assert!(text.contains("within the noise") && text.contains("faster") && text.contains("slower"));
    assert!(text.contains("noise unknown") && text.contains("Without a counterpart: 15 here, 0 there."));
    assert!(text.contains("In batches of 64, a step of head takes") && text.contains("as long as inference"), "{text}");
    assert!(text.contains("the predicted time in the median") && text.contains("were not measured"));
    // Every run's longest is twice the median, beyond the fence.
    assert!(text.contains("have a run that took far longer") && count("span.warning") > 10);
    // Three batch sizes, and a line for each of four policies.
    assert_eq!(count("svg.wide"), 3);
    assert_eq!((0..4).map(|series| count(&format!("polyline.series s{series}"))).sum::<usize>(), 12);
    assert!(text.contains("21.0 GFLOP/s") && text.contains("8.0 GB/s"));
    assert!(!text.contains("no timestamps"));
}

#[test]
fn a_page_of_a_benchmark_shows_what_there_is() {
    let mut benchmark = benchmark();
    let hostile = "</title><script>alert('1')</script>\"`&";
    benchmark.device = hostile.into();
    benchmark.results[0].error = Some(hostile.into());
    for result in &mut benchmark.results {
        (result.policy, result.thaw) = (hostile.into(), Some(hostile.into()));
        for kernel in result.measured.iter_mut().flat_map(|measured| &mut measured.kernels) {
            kernel.ms = None;
        }
    }
    let against = benchmark.against(hostile, &self::benchmark());
    let (text, count) = read_page(&bench_page(&benchmark, &[against]));
    assert_eq!(count("script"), 0);
    assert!(text.contains("</title><script>") && text.contains("no timestamps") && text.contains("in common"));

    // Of an older version.
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/2026-11-23-llvmpipe.json");
    let old = Benchmark::read(&file).unwrap();
    let (text, _) = read_page(&bench_page(&old, &[old.against("itself", &old)]));
    assert!(text.contains("There is none.") && text.contains("1.00×"));

    let nothing = Benchmark { results: Vec::new(), ..old };
    assert!(read_page(&bench_page(&nothing, &[])).0.contains("0 combinations"));
}

/// Skipped where there is no browser. Leaves the pages and their pictures in `target/page`, to be looked at.
#[cfg(unix)]
#[test]
fn a_browser_shows_the_pages_without_an_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (comparison, benchmark) = (whole(), benchmark());
    let bench = bench_page(&benchmark, &[benchmark.against("there.json", &elsewhere())]);
    for (name, html) in [("compare", page(&comparison, &timings(&comparison))), ("bench", bench)] {
        let folder = root.join("target/page").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("page.html"), html).unwrap();
        let mut check = Command::new(root.join("scripts/check-page.sh"));
        let output = check.arg(folder.join("page.html")).arg(&folder).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(3) => println!("skipped: {message}"),
            code => assert_eq!(code, Some(0), "{message}"),
        }
    }
}
