use super::args::{self, ForceArgs, Split};
use super::progress::Progress;
use super::subject::{Subject, SubjectArgs};
use super::{events, output};
use anyhow::{Result, bail};
use serde_json::json;
use std::path::PathBuf;
use thawline::data::Loader;
use thawline::formats::{self, Save};
use thawline::graph::{LayerKind, Variance};
use thawline::policy;
use thawline::tensor::HostTensor;
use thawline::train::{self, Method, Recalibration, Totals, TrainError, drifts};
use thawline::weights;

/// Estimate running statistics anew, by forward passes over images, and change nothing else
///
/// For weights whose statistics belong to other images, or were left behind by training; `doctor` says whether they
/// are. No label is needed and nothing is trained. Prints how far the statistics were from what each batch norm sees in
/// inference (divergence in nats, 0 is perfect), and how far they are now.
#[derive(clap::Args)]
#[command(
    override_usage = "thawline recalibrate [OPTIONS] --weights <FILE|hf:OWNER/NAME> \\\n    --data <DIR> --out <FILE>"
)]
#[command(after_help = "Examples:
  thawline recalibrate --weights run/last.safetensors --data ./digits \\
    --out recalibrated.safetensors
  thawline recalibrate --weights resnet18.pth --data ./photos \\
    --out new.safetensors --method adabn --layers from:layer3")]
pub struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Where the weights go: safetensors with the names and the metadata of --weights, or if that is a Keras file and this
    /// name ends as its, a copy of it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
    /// Which batch norms, in the words of policies, such as 'from:layer3' [default: all]
    #[arg(long, value_name = "SELECTOR", default_value = "kind:bn", hide_default_value = true)]
    layers: String,
    /// How: precise takes the moments of all values together, each batch normalised by its own (PreciseBN); update-bn
    /// the mean over the batches (PyTorch's update_bn); adabn goes layer by layer, as inference sees them, a pass each
    #[arg(long, value_enum, value_name = "NAME", default_value_t = MethodName::Precise)]
    method: MethodName,
    /// The estimator of the variance that is stored; normalising always uses the biased one [default: of each layer what
    /// its network stores: biased for Keras 3, unbiased for others]
    #[arg(long, value_enum, value_name = "NAME")]
    var: Option<VarianceName>,
    /// Which images
    #[arg(long, value_enum, default_value_t = Split::Train)]
    split: Split,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = args::positive)]
    batch: usize,
    /// Use at most this many images, chosen by --seed [default: all]
    #[arg(long, value_name = "N", value_parser = args::positive)]
    max_images: Option<usize>,
    /// Print JSON: one event per line, the last with the result
    ///
    /// The last has {model, device, method, var, images, batches, skipped, layers: [{name, drift_before, drift_after}],
    /// validation: {samples, before: {loss, top1}, after: {loss, top1}}, out}. docs/events.md describes all events; with
    /// --quiet, only the last is printed.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum MethodName {
    Precise,
    UpdateBn,
    Adabn,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum VarianceName {
    Biased,
    Unbiased,
}

/// What inference with some statistics gives.
#[derive(Default)]
struct State {
    /// Of each batch norm; none if what some layer gives is not finite.
    drifts: Option<Vec<f64>>,
    validation: Option<Totals>,
    batches: u64,
    images: u64,
    skipped: u64,
}

pub fn run(args: Args) -> Result<()> {
    args::check_format(&args.out, |save| !matches!(save, Save::Network(_)))?;
    args::check_distinct(("--out", &args.out), ("--weights", &args.subject.weights))?;
    train::check_apart(&args.subject.data.data, &args.out)?;
    args::check_output(&args.out, args.force)?;
    events::begin(args.json, "recalibrate")?;
    let progress = Progress::new("reading weights and images");
    let mut subject = args.subject.open()?;
    formats::check(&subject.file, subject.file.origin.as_deref(), &args.out)?;
    args.subject.preprocess.warn_of_copy(&args.out);
    if !args::has_batch_norms(&subject.network) {
        bail!(
            "{}: the network has no batch norms; if its weights were folded, give the file that they were folded from",
            args.subject.weights.display()
        );
    }
    let layers = policy::select(&args.layers, LayerKind::Bn, &subject.network)?;
    let images = subject.samples(args.split, args.max_images.unwrap_or(usize::MAX))?;
    let batch = args.batch.min(images.len());
    let images = subject.loader(images, batch)?;
    let validation = subject.validation().map(|samples| subject.loader(samples, batch)).transpose()?;

    // Broken statistics are what this command is for.
    let before =
        match look(&subject, &subject.tensors, &images, validation.as_ref(), &progress, "the statistics before") {
            Err(TrainError::MomentsNotFinite { .. } | TrainError::OutputNotFinite { .. }) => State::default(),
            seen => seen?,
        };
    let method = match args.method {
        MethodName::Precise => Method::Precise,
        MethodName::UpdateBn => Method::UpdateBn,
        MethodName::Adabn => Method::AdaBn,
    };
    let var = args.var.map(|name| match name {
        VarianceName::Biased => Variance::Biased,
        VarianceName::Unbiased => Variance::Unbiased,
    });
    let what = Recalibration { layers: &layers, method, var };
    let mut tensors = subject.tensors.clone();
    train::recalibrate(
        &subject.device,
        &subject.network,
        &mut tensors,
        subject.input(),
        &images,
        &what,
        |done, of| {
            progress.at("the new statistics", done, of);
        },
    )?;
    let after = look(&subject, &tensors, &images, validation.as_ref(), &progress, "the statistics after")?;
    drop(progress);

    // Into the file as it was: what is not estimated keeps its every bit, whatever form it had.
    for (param, tensor) in subject.network.params().iter().zip(&tensors) {
        if layers.contains(&param.layer) && param.role == thawline::graph::Role::Moments {
            subject.file.tensors.extend(weights::to_file(&subject.network, param, &tensor.data));
        }
    }
    args::save_weights(&subject.file, subject.file.origin.as_deref(), &args.out)?;
    let stored = layers.iter().map(|layer| var.unwrap_or(subject.network.layers()[layer.index()].stored_var()));
    let mut stored: Vec<String> = stored.map(|var| var.to_string()).collect();
    stored.sort_unstable();
    stored.dedup();
    report(&args, &subject, &stored.join(" and "), &before, &after)
}

fn look(
    subject: &Subject,
    tensors: &[HostTensor],
    images: &Loader,
    validation: Option<&Loader>,
    progress: &Progress,
    stage: &str,
) -> Result<State, TrainError> {
    let count = |loader: &Loader| loader.samples().len() as u64;
    let (mut done, of) = (0, count(images) + validation.map_or(0, count));
    let mut shown = |images: usize| {
        done += images as u64;
        progress.at(stage, done, of);
    };
    let mut probe = subject.probe(tensors)?;
    let survey = probe.survey_with(images, &mut shown)?;
    Ok(State {
        drifts: Some(drifts(&subject.network, tensors, &survey)),
        validation: validation
            .map(|images| probe.survey_with(images, &mut shown))
            .transpose()?
            .map(|survey| survey.totals),
        batches: survey.batches,
        images: images.samples().len() as u64 - survey.skipped,
        skipped: survey.skipped,
    })
}

fn report(args: &Args, subject: &Subject, var: &str, before: &State, after: &State) -> Result<()> {
    let norms = subject.network.layers().iter().filter(|layer| layer.kind == LayerKind::Bn);
    let of = |state: &State, index: usize| state.drifts.as_ref().map(|drifts| drifts[index]);
    let rows: Vec<(&str, Option<f64>, Option<f64>)> =
        norms.enumerate().map(|(index, layer)| (layer.name.as_str(), of(before, index), of(after, index))).collect();
    let method = args::name(args.method);
    if args.json {
        let result = |totals: Totals| json!({"loss": events::number(totals.mean_loss()), "top1": events::number(totals.accuracy())});
        let validation = after.validation.map(|totals| {
            json!({"samples": totals.samples, "before": before.validation.map(result), "after": result(totals)})
        });
        let layers = rows.iter().map(|(name, before, after)| {
            let drift = |drift: &Option<f64>| drift.map(events::number);
            json!({"name": name, "drift_before": drift(before), "drift_after": drift(after)})
        });
        return events::result(&json!({
            "model": subject.spec.name,
            "device": subject.device.info().name,
            "method": method,
            "var": var,
            "images": after.images,
            "batches": after.batches,
            "skipped": after.skipped,
            "layers": layers.collect::<Vec<_>>(),
            "validation": validation,
            "out": args.out,
        }));
    }
    /// Layers that the table shows.
    const SHOWN: usize = 8;
    let mut largest = rows;
    largest.sort_by(|a, b| b.1.unwrap_or(f64::INFINITY).total_cmp(&a.1.unwrap_or(f64::INFINITY)));
    let nats = |drift: Option<f64>| drift.map_or_else(|| "not finite".to_owned(), |drift| format!("{drift:.4}"));
    let shown =
        largest.iter().take(SHOWN).map(|(name, before, after)| vec![(*name).to_owned(), nats(*before), nats(*after)]);
    output::table(&["layer", ">drift before", ">drift after"], &[], shown)?;
    if largest.len() > SHOWN {
        output::line(format_args!("and {} that drifted less", output::quantity(largest.len() - SHOWN, "layer")))?;
    }
    output::line(format_args!(
        "method {method} over {} in {}",
        output::quantity(after.images, "image"),
        output::quantity(after.batches, "batch")
    ))?;
    if after.skipped > 0 {
        output::line(format_args!("skipped: {}", output::quantity(after.skipped, "broken image")))?;
    }
    if let Some(validation) = after.validation {
        let top1 = |totals: Totals| format!("{:.2} %", 100.0 * totals.accuracy());
        let before = before.validation.map_or_else(|| "nothing finite".to_owned(), top1);
        output::line(format_args!("validation top-1: {before} before, {} after", top1(validation)))?;
    }
    output::line(format_args!("written: {}", args.out.display()))
}
