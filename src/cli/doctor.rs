use super::args::{self, Split};
use super::progress::Progress;
use super::subject::{Subject, SubjectArgs};
use super::{events, output};
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use thawline::report::{FEWEST_IMAGES, Finding, Remedy, diagnose};
use thawline::train::{Checkup, Examination, Inference, SizeCheck, Totals, examine};

/// Say what is wrong with the batch norms of a network, without training
///
/// Compares the statistics in the file with what the batch norms see of your images, in inference and under the statistics
/// of batches of several sizes, and names the fault that explains the difference: statistics of other images, of too few
/// images or of too small batches, reset ones, another epsilon or convention, a domain shift. Each finding comes with its
/// evidence, how sure it is, and what to do; --layers shows what it was found in. Distances are symmetric Kullback-Leibler
/// divergences in nats, averaged over channels: 0 is perfect, 1 is means a standard deviation apart.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline doctor --weights run/last.safetensors --data ./digits
  thawline doctor --weights resnet18.pth --data ./photos --split all \\
    --max-images 128 --batch 1,4,16 --json")]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Which images; those that the statistics were taken over, or ones like them, tell most
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
    /// Use at most this many images, chosen by --seed; more make findings surer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = args::positive)]
    max_images: usize,
    /// Batch sizes to look at under the batches' own statistics; 32 is looked at, too, if all are smaller
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,8,32", value_parser = args::positive)]
    batch: Vec<usize>,
    /// Show the tables, too: the drift of each batch norm, and the accuracy under statistics of batches of each size
    #[arg(long)]
    layers: bool,
    /// Print JSON: one event per line, the last with what was found
    ///
    /// The last has {model, device, labelled, checkup: {images, layers, inference, sizes, trials, …}, findings: [{fault,
    /// confidence, evidence, advice, remedy, command}]}. docs/events.md describes all events; with --quiet, only the last
    /// is printed.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    events::begin(args.json, "doctor")?;
    let progress = Progress::new("reading weights and images");
    let subject = args.subject.open()?;
    if let Some(trained) = subject.trained_size.filter(|&trained| trained != subject.size) {
        let Subject { size, .. } = &subject;
        output::warning(format_args!(
            "the weights were trained at {trained} px: statistics at {size} px differ for that reason alone"
        ));
    }
    let images = subject.loader(subject.samples(args.split, args.max_images)?, 1)?;
    let how = Examination { images: &images, sizes: &args.batch, seed: args.subject.seed };
    let observe = |stage: &str, done, of| progress.at(stage, done, of);
    let checkup = examine(&subject.device, &subject.network, &subject.tensors, subject.input(), &how, observe);
    drop(progress);
    let checkup = checkup?;
    let findings = diagnose(&checkup);
    if args.json {
        let findings = findings.iter().map(|finding| {
            let mut value = serde_json::to_value(finding)?;
            value["command"] = finding.remedy.map(|remedy| command(remedy, &args, subject.labelled)).into();
            Ok(value)
        });
        return events::result(&json!({
            "model": subject.spec.name,
            "device": subject.device.info().name,
            "labelled": subject.labelled,
            "findings": findings.collect::<Result<Vec<_>>>()?,
            "checkup": checkup,
        }));
    }
    explain(&checkup, &findings, &args, subject.labelled)?;
    if !args.layers {
        return output::status("The tables of batch norms and batch sizes are shown by --layers.");
    }
    output::line("")?;
    layers(&checkup)?;
    output::line("")?;
    outcomes(&subject, &checkup)
}

/// A line a batch norm.
fn layers(checkup: &Checkup) -> Result<()> {
    let largest = checkup.sizes.last();
    let rows = checkup.layers.iter().enumerate().map(|(index, layer)| {
        let drift = |drifts: Option<&Vec<f64>>| drifts.map_or_else(|| "–".to_owned(), |drifts| nats(drifts[index]));
        vec![
            layer.name.clone(),
            layer.channels.to_string(),
            drift(checkup.inference.as_ref().map(|inference| &inference.drifts)),
            drift(largest.map(|size| &size.drifts)),
            format!("{} in channel {}", nats(layer.worst_drift), layer.worst_channel),
            output::or_blank(layer.dead as u64, |dead| dead.to_string()),
        ]
    });
    let by_batch = format!(">drift, batches of {}", largest.map_or(0, |size| size.batch));
    let titles = ["batch norm", ">channels", ">drift, inference", &by_batch, ">worst", ">dead channels"];
    output::table(&titles, &["dead channels", "channels", "worst", by_batch.trim_start_matches('>')], rows)
}

/// What comes out, by what normalises.
fn outcomes(subject: &Subject, checkup: &Checkup) -> Result<()> {
    let accuracy = |totals: &Totals| match subject.labelled {
        true => format!("{:.2} %", 100.0 * totals.accuracy()),
        false => String::new(),
    };
    let mut rows = Vec::new();
    match &checkup.inference {
        Some(Inference { totals, single, .. }) => {
            rows.push(vec!["running statistics".to_owned(), accuracy(totals), String::new()]);
            rows.push(vec!["running statistics, one image at a time".to_owned(), accuracy(single), String::new()]);
        }
        None => rows.push(vec!["running statistics".to_owned(), "nothing finite".to_owned(), String::new()]),
    }
    rows.extend(checkup.sizes.iter().map(|SizeCheck { batch, totals, flips, .. }| {
        vec![format!("those of batches of {batch}"), accuracy(totals), format!("{:.1} %", 100.0 * flips)]
    }));
    output::table(&["normalised by", ">top-1", ">flips with other companions"], &[], rows)
}

fn explain(checkup: &Checkup, findings: &[Finding], args: &Args, labelled: bool) -> Result<()> {
    if checkup.skipped > 0 {
        output::line(format_args!("skipped: {}", output::quantity(checkup.skipped, "broken image")))?;
    }
    if findings.is_empty() {
        let images = match checkup.images {
            1 => "1 image is".to_owned(),
            images if images < FEWEST_IMAGES => format!("{images} images are"),
            images => return output::good(format_args!("nothing is wrong that {images} images could show")),
        };
        return output::prose(format_args!(
            "{images} too few to judge statistics: {FEWEST_IMAGES} or more are needed; no reset, impossible or dead values \
             were found"
        ));
    }
    for Finding { fault, confidence, evidence, advice, remedy } in findings {
        output::title(format_args!("{} ({})", fault.title(), confidence.name()))?;
        output::prose(format_args!("  {evidence}"))?;
        output::prose(format_args!("  → {advice}"))?;
        if let Some(remedy) = remedy {
            output::line(format_args!("    {}", command(*remedy, args, labelled)))?;
        }
    }
    Ok(())
}

/// The command that applies a remedy to what was looked at, and writes where nothing is yet. Images that are not `labelled`
/// have classes that the network's head does not know.
fn command(remedy: Remedy, args: &Args, labelled: bool) -> String {
    let SubjectArgs { weights, source, model, data, size, preprocess, seed, device } = &args.subject;
    let (command, split, rest) = match remedy {
        Remedy::Recalibrate => {
            let split = (args.split != Split::Train).then(|| args::name(args.split));
            ("recalibrate", split, format!("--out {}", unused("recalibrated", ".safetensors")))
        }
        Remedy::FineTune => {
            let head = if labelled { "" } else { " --head new" };
            ("finetune", None, format!("--out {} --policy bn-only --then recalibrate{head}", unused("run", "")))
        }
    };
    let options = [
        ("weights", Some(weights.display().to_string())),
        ("model", model.clone()),
        ("data", Some(data.data.display().to_string())),
        ("split", split),
        ("val-fraction", (data.val_fraction != args::VAL_FRACTION).then(|| data.val_fraction.to_string())),
        ("size", size.size.map(|size| size.to_string())),
        ("exif", data.decode.exif.map(args::name)),
        ("max-pixels", data.decode.max_pixels.map(|pixels| (pixels as f64 / 1e6).to_string())),
        ("seed", (*seed != 0).then(|| seed.to_string())),
        ("device", device.device.clone()),
    ];
    let mut words = vec![format!("thawline {command}")];
    for (name, value) in options.into_iter().chain(preprocess.given()) {
        words.extend(value.map(|value| format!("--{name} {}", output::quoted(Path::new(&value)))));
    }
    words.extend(data.skip_broken.then(|| "--skip-broken".to_owned()));
    words.extend(source.offline.then(|| "--offline".to_owned()));
    if let Some(set) = &source.weights_set {
        words.extend(["--weights-set".to_owned(), output::quoted(Path::new(set))]);
    }
    words.push(rest);
    words.join(" ")
}

/// `stem`, or `stem-2` and so on, with `ending`: the first that is no file or folder here.
fn unused(stem: &str, ending: &str) -> String {
    let numbered = (2..).map(|number: u64| format!("{stem}-{number}{ending}"));
    let mut names = std::iter::once(format!("{stem}{ending}")).chain(numbered);
    names.find(|name| !Path::new(name).exists()).unwrap_or_default()
}

/// Three digits.
fn nats(drift: f64) -> String {
    match drift {
        drift if drift < 9.9995 => format!("{drift:.3}"),
        drift if drift < 1e6 => format!("{drift:.0}"),
        drift => format!("{drift:.0e}"),
    }
}
