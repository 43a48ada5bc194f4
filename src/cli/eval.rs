use super::args::{self, DataArgs, DeviceArgs, ForceArgs, ModelArgs, PolicyArgs, SizeArgs, Split};
use super::finetune::percent;
use super::preprocess::PreprocessArgs;
use super::progress::Progress;
use super::{events, output};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;
use thawline::data::{ImageFolder, Loader, LoaderOptions, Mode, Sample};
use thawline::report::{Evaluated, class_name, evaluation_page};
use thawline::train::{self, ClassFigures, Evaluation, Evaluator, Ranking, UNEVEN, imbalance};
use thawline::weights::write_atomically;

/// Measure loss and accuracy of a network on a folder of images, and recall, precision and F1 of each class.
///
/// Inference normalises by running statistics, whatever a policy says of training, so no image's result depends on the
/// others in its batch.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline eval --weights run/best.safetensors --data ./digits
  thawline eval --weights run/best.safetensors --data ./photos \\
    --report mistakes.html
  thawline eval --weights resnet18.pth --data ./imagenet-val \\
    --split all --batch 64")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Which images
    #[arg(long, value_enum, default_value_t = Split::Val)]
    split: Split,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = args::positive)]
    batch: usize,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Compare every kernel call of the first batch with the CPU reference, and fail with the first that differs. Slow
    #[arg(long)]
    check: bool,
    /// Print recall, precision and F1 of each class, too, the class with the lowest recall first
    #[arg(long)]
    per_class: bool,
    /// Write a page to look at, one file that needs nothing else: figures by class, which classes are confused, and the
    /// mistakes that the network is surest of as pictures
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    force: ForceArgs,
    /// Print JSON: one event per line, the last with the result
    ///
    /// The last has {model, device, samples, skipped, loss, top1, top5, balanced_accuracy, macro: {precision, recall, f1},
    /// weighted: {…}, classes: [{class, name, support, predicted, precision, recall, f1}], confusion: [[true, predicted,
    /// count]], images_per_s}. docs/events.md describes all events; with --quiet, only the last is printed.
    #[arg(long, conflicts_with = "per_class")]
    json: bool,
}

/// Pictures on the page.
const MISTAKES: usize = 24;

pub fn run(args: Args) -> Result<()> {
    if let Some(report) = &args.report {
        args::check_output(report, args.force)?;
        if let Some(weights) = &args.model.weights {
            args::check_distinct(("--report", report), ("--weights", weights))?;
        }
    }
    events::begin(args.json, "eval")?;
    let progress = Progress::new("reading weights and images");
    let mut model = args.model.read_for(args.preprocess.parts(), args.size.size)?;
    let folder = match args.split {
        // With nothing set aside, a folder without train/ and val/ is all in one.
        Split::All => ImageFolder::open_for_inference(&args.data.data, 0.0, model.options.seed)?,
        _ => args.data.open(model.options.seed)?,
    };
    let labels = model.labels(&folder, &args.data.data)?;
    let samples = args.split.of(&folder);
    if samples.is_empty() {
        bail!("{}: no images are set aside for validation; use --split all", args.data.data.display());
    }
    let samples: Vec<Sample> = samples.into_iter().map(|s| Sample { label: labels[s.label as usize], ..s }).collect();

    let size = model.size(args.size.size);
    let batch = args.batch.min(samples.len());
    let graph = args.policy.resolve_for_inference(model.network(batch, size)?)?;
    let origin = model.origin()?;
    let tensors = model.tensors(&graph)?;
    let transform = args::transform(&model.spec, size)?;
    let options = LoaderOptions {
        skip_broken: args.data.skip_broken,
        decode: args.data.decode.options(None),
        ..LoaderOptions::new(Mode::Eval, batch, model.options.seed)
    };
    let loader = Loader::new(samples, transform, options)?;
    let device = args.device.open()?;
    let input = model.input();
    let mut evaluator = Evaluator::new(&device, &graph, &tensors, input)?;

    let of = loader.samples().len() as u64;
    let start = Instant::now();
    let mut evaluation = Evaluation::new(model.classes, if args.report.is_some() { MISTAKES } else { 0 });
    for (index, batch) in loader.epoch(0, 0)?.enumerate() {
        evaluation.add(&mut evaluator, &batch?)?;
        progress.at("images", evaluation.totals.samples + evaluation.skipped, of);
        if args.check && index == 0 {
            train::check(evaluator.executor())?;
            output::note(format_args!(
                "check: all {} calls agree with the reference",
                evaluator.executor().plan().calls.len()
            ));
        }
    }
    drop(progress);
    let images_per_s = evaluation.totals.samples as f64 / start.elapsed().as_secs_f64();
    // Without names in the weights file, labels are the folders' order.
    let names = model.class_names.as_ref().unwrap_or(&folder.classes);
    if let Some(report) = &args.report {
        let page = evaluation_page(&Evaluated {
            model: &model.spec.name,
            weights: origin.as_deref(),
            data: &args.data.data,
            split: args.split.to_possible_value().as_ref().map_or("", |value| value.get_name()),
            size: [size.height, size.width],
            device: &device.info().name,
            classes: names,
            evaluation: &evaluation,
            samples: loader.samples(),
            decode: &args.data.decode.options(None),
        });
        write_atomically(report, |file| file.write_all(page.as_bytes()))
            .with_context(|| format!("cannot write {}", report.display()))?;
    }
    if args.json {
        return events::result(&as_json(&evaluation, names, &model.spec.name, &device.info().name, images_per_s));
    }
    print(&evaluation, names, images_per_s)?;
    if args.per_class {
        class_table(&evaluation, names)?;
    }
    if let Some(report) = &args.report {
        output::line(format_args!("report: {}", report.display()))?;
    }
    Ok(())
}

fn as_json(evaluation: &Evaluation, names: &[String], model: &str, device: &str, images_per_s: f64) -> Value {
    let Evaluation { totals, confusion, ranking, skipped, .. } = evaluation;
    let class = |figures: &ClassFigures| {
        let ClassFigures { class, support, predicted, precision, recall, f1 } = *figures;
        let name = names.get(class as usize);
        json!({
            "class": class,
            "name": name,
            "support": support,
            "predicted": predicted,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        })
    };
    let counts = confusion.counts().map(|([truth, predicted], count)| json!([truth, predicted, count]));
    json!({
        "model": model,
        "device": device,
        "samples": totals.samples,
        "skipped": skipped,
        "loss": events::number(totals.mean_loss()),
        "top1": totals.accuracy(),
        "top5": totals.top5_accuracy(),
        "balanced_accuracy": confusion.balanced_accuracy(),
        "auroc": ranking.as_ref().and_then(Ranking::auroc),
        "average_precision": ranking.as_ref().and_then(Ranking::average_precision),
        "macro": confusion.macro_means(),
        "weighted": confusion.weighted_means(),
        "classes": confusion.figures().iter().map(class).collect::<Vec<_>>(),
        "confusion": counts.collect::<Vec<_>>(),
        "images_per_s": images_per_s,
    })
}

/// The figures of all images in a line, and how many images are missing from it.
fn print(evaluation: &Evaluation, names: &[String], images_per_s: f64) -> Result<()> {
    let Evaluation { totals, confusion, skipped, .. } = evaluation;
    let balanced = match imbalance(confusion.support()) >= UNEVEN {
        true => format!(", balanced accuracy {}", percent(confusion.balanced_accuracy())),
        false => String::new(),
    };
    output::prose(format_args!(
        "{}: loss {:.4}, top-1 {}{balanced}, top-5 {}, {images_per_s:.0} images/s",
        output::quantity(totals.samples, "image"),
        totals.mean_loss(),
        percent(totals.accuracy()),
        percent(totals.top5_accuracy())
    ))?;
    let ranked = evaluation.ranking.as_ref().and_then(|ranking| Some([ranking.auroc()?, ranking.average_precision()?]));
    if let Some([auroc, precision]) = ranked {
        let class = class_name(names, 1);
        output::prose(format_args!("ranked by {class}: AUROC {auroc:.4}, average precision {precision:.4}"))?;
    }
    if *skipped > 0 {
        output::line(format_args!("skipped: {}", output::quantity(*skipped, "broken image")))?;
    }
    Ok(())
}

/// One row per class, the lowest recall first, and the means.
fn class_table(evaluation: &Evaluation, names: &[String]) -> Result<()> {
    let confusion = &evaluation.confusion;
    let known = |count: u64, share: f64| if count > 0 { percent(share) } else { "–".into() };
    let classes = confusion.by_recall().into_iter().map(|c| {
        let (recall, precision) = (known(c.support, c.recall), known(c.predicted, c.precision));
        vec![
            class_name(names, c.class),
            c.support.to_string(),
            recall,
            precision,
            percent(c.f1),
            c.predicted.to_string(),
        ]
    });
    let means = [("mean", confusion.macro_means()), ("mean by images", confusion.weighted_means())].map(|(what, m)| {
        vec![what.into(), String::new(), percent(m.recall), percent(m.precision), percent(m.f1), String::new()]
    });
    let titles = ["class", ">images", ">recall", ">precision", ">F1", ">predicted"];
    output::table(&titles, &["predicted", "F1", "images"], classes.chain(means))
}
