use super::args::{self, DataArgs, DeviceArgs, ModelArgs, PolicyArgs, SizeArgs, Split};
use super::output;
use super::preprocess::PreprocessArgs;
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Instant;
use thawline::data::{ImageFolder, Loader, LoaderOptions, Mode, Sample};
use thawline::train::{self, Evaluator, Images, PADDING, Totals};

/// Measure loss and accuracy of a network on a folder of images.
///
/// Inference normalises by running statistics, whatever a policy says of training, so no image's result depends on the
/// others in its batch.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline eval --weights run/best.safetensors --data ./digits
  thawline eval --weights resnet18.pth --data ./imagenet-val --split all --batch 64")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Which images
    #[arg(long, value_enum, default_value_t = Split::Val)]
    split: Split,
    /// Images a batch
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
    /// Print JSON: {model, device, samples, skipped, loss, top1, top5, images_per_s}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let mut model = args.model.read_for(args.preprocess.parts(), args.size.size)?;
    let folder = match args.split {
        // With nothing set aside, a folder without train/ and val/ is all in one.
        Split::All => ImageFolder::open_for_inference(&args.data.data, 0.0, model.seed)?,
        _ => args.data.open(model.seed)?,
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
    let tensors = model.tensors(&graph)?;
    let transform = args::transform(&model.spec, size)?;
    let options = LoaderOptions {
        skip_broken: args.data.skip_broken,
        decode: args.data.decode.options(None),
        ..LoaderOptions::new(Mode::Eval, batch, model.seed)
    };
    let loader = Loader::new(samples, transform, options)?;
    let device = args.device.open()?;
    let input = args::input(&model.spec);
    let mut evaluator = Evaluator::new(&device, &graph, &tensors, input)?;

    let start = Instant::now();
    let (mut totals, mut skipped) = (Totals::default(), 0);
    for (index, batch) in loader.epoch(0, 0)?.enumerate() {
        let mut batch = batch?;
        let valid = batch.valid();
        batch.labels[valid..].fill(PADDING);
        totals += evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels)?;
        skipped += batch.skipped;
        if args.check && index == 0 {
            train::check(evaluator.executor())?;
            output::note(format_args!(
                "check: all {} calls agree with the reference",
                evaluator.executor().plan().calls.len()
            ));
        }
    }
    let images_per_s = totals.samples as f64 / start.elapsed().as_secs_f64();
    if args.json {
        return output::json(&json!({
            "model": model.spec.name,
            "device": device.info().name,
            "samples": totals.samples,
            "skipped": skipped,
            "loss": totals.mean_loss(),
            "top1": totals.accuracy(),
            "top5": totals.top5_accuracy(),
            "images_per_s": images_per_s,
        }));
    }
    let per_cent = |share: f64| share * 100.0;
    output::line(format_args!(
        "{}: loss {:.4}, top-1 {:.2} %, top-5 {:.2} %, {images_per_s:.0} images/s",
        output::quantity(totals.samples, "image"),
        totals.mean_loss(),
        per_cent(totals.accuracy()),
        per_cent(totals.top5_accuracy())
    ))?;
    if skipped > 0 {
        output::line(format_args!("skipped: {}", output::quantity(skipped, "broken image")))?;
    }
    Ok(())
}
