//! `thawline lr-find`: which learning rates suit a policy, by a range test.

use super::args::{ForceArgs, check_output, learning_rate, policy_help};
use super::finetune::{INTERRUPTED, stop_on_ctrl_c};
use super::training::{Told, TrainingArgs};
use super::{events, output, progress};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use thawline::files::write_atomically;
use thawline::gpu::Device;
use thawline::policy::Policy;
use thawline::report::{LrFind, LrFinding, lr_find_page, lr_plot, today};
use thawline::study::{Images, Tuning};
use thawline::text::escaped;
use thawline::train::{FeatureCache, LrRange, RangeTest};

/// Look for the learning rate: a range test of each policy
///
/// Trains for some steps while the learning rate rises by the same factor each time, and draws the loss (Smith's range
/// test). Suggests the rate in the middle of the longest descent of the smoothed loss, as fastai does. Nothing is written
/// but the page, if one is asked for. Of a policy with stages the first is tested. `finetune --lr auto` uses the
/// suggestion; `compare` judges rates by held-out images instead, which takes longer and is more reliable.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline lr-find --weights resnet18.pth --data ./photos --policy bn-only
  thawline lr-find --weights resnet18.pth --data ./photos --policy head \\
    --policy full --page rates.html")]
pub struct Args {
    /// A folder with a folder of images for each class, or with train/ and val/ that hold such folders
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[arg(
        long = "policy",
        value_name = "NAME|FILE.toml",
        help = policy_help("A policy to test; repeatable", " [default: full]")
    )]
    policies: Vec<String>,
    /// A rule that comes after each policy's own; repeatable
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    /// The first learning rate
    #[arg(long, value_name = "X", default_value_t = LrRange::default().from, value_parser = learning_rate)]
    from: f64,
    /// The last learning rate
    #[arg(long, value_name = "X", default_value_t = LrRange::default().to, value_parser = learning_rate)]
    to: f64,
    /// Optimiser steps from the first rate to the last one
    #[arg(long, value_name = "N", default_value_t = LrRange::default().steps)]
    steps: usize,
    /// Write a page with the curves
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,
    /// Print JSON: one event per line
    ///
    /// `step` says how a test goes; the last, `result`, has {model, device, range, steps, findings: [{policy, test: {points,
    /// suggested, end}}], …}. docs/events.md describes all events; with --quiet, only the last is printed.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

pub fn run(args: Args) -> Result<()> {
    events::begin(args.json, "lr-find")?;
    if let Some(option) = args.training.given_of_schedule() {
        bail!("{option}: a range test has a schedule and a length of its own; leave it out");
    }
    if let Some(page) = &args.page {
        check_output(page, args.force)?;
    }
    let range = LrRange { from: args.from, to: args.to, steps: args.steps };
    let (training, options) = (&args.training, args.training.options());
    let images = Images::open(&args.data, &options, None)?;
    let names = if args.policies.is_empty() { vec!["full".to_owned()] } else { args.policies.clone() };
    let policies: Vec<Policy> =
        names.iter().map(|name| Ok(Policy::load(name)?.with_last_rules(&args.rules)?)).collect::<Result<_>>()?;
    let model = training.read_model(images.folder.classes.len())?;
    let told = Told::new();
    let tunings = images.tunings(model, &policies, &options, None, &told)?;
    drop(told);

    let device = training.device.open()?;
    let stop = stop_on_ctrl_c()?;
    let cache = Arc::new(FeatureCache::new(CACHE, Arc::clone(&stop)));
    let mut findings = Vec::new();
    for tuning in &tunings {
        let test = range_test(tuning, &device, &range, Some(Arc::clone(&cache)), &stop)?;
        let Some(test) = test else { std::process::exit(INTERRUPTED) };
        let finding = LrFinding { policy: tuning.settings.policy.name.clone(), test };
        if !args.json {
            show(&finding)?;
        }
        findings.push(finding);
    }
    let settings = tunings.into_iter().next().context("there is no policy")?.settings;
    let found = LrFind {
        thawline: settings.thawline.clone(),
        model: settings.model.clone(),
        weights: settings.weights.as_ref().map(|path| path.display().to_string()),
        data: images.data.display().to_string(),
        device: device.info().name.clone(),
        date: today(),
        images_per_step: settings.batch * settings.accumulate,
        optimizer: settings.optimizer.name().into(),
        range: [range.from, range.to],
        steps: range.steps,
        findings,
    };
    if let Some(path) = &args.page {
        write_atomically(path, |file| file.write_all(lr_find_page(&found).as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        if !args.json {
            output::line(format_args!("page: {}", path.display()))?;
        }
    }
    if args.json { events::result(&found) } else { Ok(()) }
}

/// Device memory for what frozen layers give, in bytes.
const CACHE: u64 = 1 << 30;

/// The range test of a run, followed by a progress bar; none if it was stopped.
pub fn range_test(
    tuning: &Tuning,
    device: &Device,
    range: &LrRange,
    cache: Option<Arc<FeatureCache>>,
    stop: &AtomicBool,
) -> Result<Option<RangeTest>> {
    let bar = progress::bars().add(ProgressBar::new(range.steps as u64));
    bar.set_style(progress::style("{prefix} {bar:24} {pos} of {len} steps · {msg} · {eta} left"));
    let policy = &tuning.settings.policy.name;
    bar.set_prefix(escaped(policy));
    let test = tuning.range_test(device, range, cache, stop, |step, point| {
        bar.set_position(step as u64);
        bar.set_message(format!("learning rate {:.1e}, loss {:.3}", point.lr, point.smoothed));
        let (loss, smoothed) = (events::number(point.loss), events::number(point.smoothed));
        let step = json!({"policy": policy, "step": step, "lr": point.lr, "loss": loss, "smoothed": smoothed});
        // An error shows when the result is printed.
        let _ = events::emit("step", step);
    });
    bar.finish_and_clear();
    Ok(test?)
}

fn show(finding: &LrFinding) -> Result<()> {
    const WIDTH: usize = 72;
    const HEIGHT: usize = 9;
    output::title(format_args!("{}: loss over learning rate", finding.policy))?;
    output::text(lr_plot(&finding.test, output::columns().unwrap_or(WIDTH).min(WIDTH), HEIGHT))?;
    if let Some(lr) = finding.test.suggested {
        output::line(format_args!("suggested: --lr {lr}"))?;
    }
    output::prose(finding.in_words())?;
    output::line("")
}
