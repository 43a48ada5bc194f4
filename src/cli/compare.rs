//! `thawline compare`: several policies on the same images, from the same weights, with the same budget.

use super::args::policy_help;
use super::finetune::{INTERRUPTED, broken, percent, stop_on_ctrl_c};
use super::progress;
use super::source;
use super::training::{DataArgs, LrChoice, Told, TrainingArgs, announce_classes};
use super::{events, output};
use anyhow::{Context, Result, anyhow};
use indicatif::{HumanDuration, ProgressBar};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thawline::formats::Format;
use thawline::lab::{self, Lab, LabError, LabEvent, PAGE_FILE, WINNER_FILE};
use thawline::policy::Policy;
use thawline::report::{self, Arm, ArmRun, Comparison, LrSearch, Verdict, Winner, mean_and_deviation};
use thawline::study::{self, Images, Rates};
use thawline::text::escaped;
use thawline::train::{Event, Outcome, StepMetrics, TrainError, check_apart};

/// Compare policies on your images: accuracy over several seeds, time, memory, and what each does to the batch norms
///
/// Every policy starts from the same weights and sees the same images in the same order. The folder OUT gets report.html to
/// look at, compare.json and compare.csv with every number, timings.json, the best weights of each run below runs/, and
/// those of the policy to use as winner.safetensors, and as a copy of the Keras file if they came from one. Ctrl-C finishes
/// the step and saves; --resume continues, and compare.json is the same as if it had never stopped. What the frozen part of
/// a network gives for each image is computed once and kept, within --cache; that changes no result.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline compare --weights resnet18.pth --data ./photos --out cmp --epochs 5
  thawline compare --weights resnet18.pth --data ./photos --out cmp \\
    --lr 0.001,0.003,0.01
  thawline compare --weights resnet18.pth --data ./photos --out cmp \\
    --policy head --policy bn-only --policy late.toml --seeds 3 --batch 16
  thawline compare --resume cmp")]
pub struct Args {
    /// Where the results go: a new or empty folder
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Continue the comparison in DIR where it stopped, with the settings that it began with; beside it, only --data and
    /// --weights, if they have moved, --skip-broken, --cache and --device have a meaning
    #[arg(long, value_name = "DIR", conflicts_with_all = SETTLED)]
    resume: Option<PathBuf>,
    #[arg(
        long = "policy",
        value_name = "NAME|FILE.toml",
        help = policy_help("A policy to try; repeatable", &format!(" [default: {}]", lab::POLICIES.join(", ")))
    )]
    policies: Vec<String>,
    /// A rule that comes after each policy's own; repeatable
    #[arg(long = "set", value_name = "SELECTOR -> AXIS=VALUE")]
    rules: Vec<String>,
    /// How many runs of each policy, with the seeds from --seed on: each has its own order of images and new weights
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Device memory for what the frozen parts of networks give for each image, in MiB; 0 computes it each time.
    /// May be changed on resume [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(..1 << 40))]
    cache: Option<u64>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    training: TrainingArgs,
    /// Print JSON: one event per line
    ///
    /// `runs` says what runs, `started`, `step`, `validating` and `epoch` how each run goes, which `policy` and `seed` name,
    /// `done` that it is complete; the last, `result`, has {folder, report, policies: [{policy, val_top1, deviation, …}],
    /// conclusion}. docs/events.md describes all events; with --quiet, only the last is printed.
    #[arg(long)]
    json: bool,
}

/// What a comparison that was begun has settled.
const SETTLED: [&str; 36] = [
    "variant",
    "head",
    "out",
    "policies",
    "rules",
    "seeds",
    "model",
    "classes",
    "size",
    "resize",
    "crop",
    "interpolation",
    "mean",
    "std",
    "epochs",
    "batch",
    "accumulate",
    "seed",
    "optimizer",
    "lr",
    "momentum",
    "nesterov",
    "weight_decay",
    "label_smoothing",
    "class_weights",
    "sampler",
    "patience",
    "schedule",
    "warmup",
    "final_lr",
    "step_epochs",
    "gamma",
    "augment",
    "train_images",
    "val_fraction",
    "exif",
];

pub fn run(args: Args) -> Result<()> {
    events::begin(args.json, "compare")?;
    let told = Told::new();
    let (images, mut lab) = match &args.resume {
        Some(folder) => resume(&args, folder)?,
        None => start(&args, &told)?,
    };
    drop(told);
    let resumed = args.resume.is_some();
    announce(&lab, resumed)?;
    announce_classes(&images.folder, &lab.setup().settings)?;
    if let Some(what) = lab.setup().settings.left_over_in_words() {
        output::status(what)?;
    }
    // Not before: as in `finetune`, Ctrl-C ends the process at once until there is something to save.
    let stop = stop_on_ctrl_c()?;
    let mut display = Display::new(&lab);
    let (names, seeds) = (display.names.clone(), display.seeds.clone());
    let outcome = lab.run(&stop, |event| {
        display.show(&event);
        Ok(tell(&names, &seeds, &event)?)
    });
    display.finish();
    match outcome {
        Ok(Outcome::Finished) => summarise(&lab),
        Ok(Outcome::Stopped) => {
            let folder = output::quoted(lab.folder());
            // With it goes the lock on its folder.
            drop(lab);
            let command = format!("thawline compare --resume {folder}");
            let told = match events::are_on() {
                true => events::stopped(&command),
                false => output::prose("stopped, and saved; continue with:")
                    .and_then(|()| output::line(format_args!("  {command}"))),
            };
            if let Err(error) = told {
                output::error(error);
            }
            // A script must not take a stopped comparison for a finished one.
            std::process::exit(INTERRUPTED)
        }
        Err(error @ LabError::Train(TrainError::Device { .. } | TrainError::Gpu(_))) => {
            Err(anyhow!("{error}; go on with: thawline compare --resume {}", output::quoted(lab.folder())))
        }
        Err(LabError::Train(TrainError::Data(error))) => Err(broken(error, "compare", lab.folder())),
        Err(error) => Err(error.into()),
    }
}

fn start(args: &Args, told: &Told) -> Result<(Images, Lab)> {
    let data = args.data.data.as_ref().context("--data is missing")?;
    let out = args.out.as_ref().context("--out is missing")?;
    check_apart(data, out)?;
    let options = args.training.options();
    let images = Images::open(data, &options, None)?;
    let device = args.training.device.open()?;
    let names: Vec<String> = match &args.policies[..] {
        [] => lab::POLICIES.map(str::to_owned).to_vec(),
        named => named.to_vec(),
    };
    let policies = names.iter().map(|name| Ok(Policy::load(name)?.with_last_rules(&args.rules)?));
    let policies: Vec<Policy> = policies.collect::<Result<_>>()?;
    let model = args.training.read_model(images.folder.classes.len())?;
    let rates = match &args.training.lr {
        Some(LrChoice::Rates(rates)) => Rates::Given(rates.clone()),
        Some(LrChoice::Auto) => Rates::Search,
        // Not asked for, so it need not be possible.
        None => Rates::SearchIfPossible,
    };
    let cache = args.cache.unwrap_or(1024) << 20;
    let lab = images.comparison(&device, model, &policies, rates, args.seeds, cache, &options, out, told)?;
    Ok((images, lab))
}

fn resume(args: &Args, folder: &Path) -> Result<(Images, Lab)> {
    let mut setup = lab::setup_of(folder)?;
    let (saved, options) = (&setup.settings, args.training.options());
    let data = args.data.data.as_ref().unwrap_or(&saved.data);
    // Before the images: the folder of the comparison may be among them.
    check_apart(data, folder)?;
    let weights = args.training.weights.as_ref().or(saved.weights.as_ref());
    let weights = weights.map(|name| source::load(name, &args.training.source(saved))).transpose()?;
    let images = Images::open(data, &options, Some(saved))?;
    let device = args.training.device.open()?;
    setup.cache = args.cache.map_or(setup.cache, |mib| mib << 20);
    setup.settings.skip_broken |= options.skip_broken;
    // Never less than before: images that were shown would be refused.
    let most = options.decode(Some(&setup.settings)).max_pixels;
    setup.settings.decode.max_pixels = most.max(setup.settings.decode.max_pixels);
    let lab = images.resumed_comparison(&device, setup, weights, folder)?;
    Ok((images, lab))
}

fn announce(lab: &Lab, resumed: bool) -> Result<()> {
    let comparison = lab.comparison();
    let Comparison { model, size: [height, width], arms, seeds, train_images, val_images, classes, .. } = comparison;
    let how = if resumed { "goes on with" } else { "compares" };
    let (policies, seeds) = (output::quantity(arms.len(), "policy"), output::quantity(seeds.len(), "seed"));
    output::status(format_args!("{how} {policies} × {seeds} of {model} at {height}×{width}"))?;
    output::status(format_args!(
        "{train_images} training and {} of {}; {} of batch {}, {} a run",
        output::quantity(*val_images, "validation image"),
        output::quantity(classes.len(), "class"),
        output::quantity(comparison.epochs, "epoch"),
        comparison.batch,
        output::quantity(comparison.steps, "step"),
    ))?;
    let rates = &lab.setup().rates;
    if let [least, .., most] = rates[..] {
        let of_runs = comparison.steps * comparison.seeds.len() as u64;
        let share = 100.0 * lab.search_steps() as f64 / of_runs.max(1) as f64;
        output::status(format_args!(
            "each policy finds its own of {} learning rates from {least} to {most} first, on the training images alone, in {} \
             ({share:.0} % of its runs')",
            rates.len(),
            output::quantity(lab.search_steps(), "step"),
        ))?;
    }
    for arm in arms {
        for warning in &arm.warnings {
            output::warning(format_args!("{}: {warning}", arm.name));
        }
    }
    events::emit(
        "runs",
        json!({
            "model": model,
            "size": [height, width],
            "policies": arms.iter().map(|arm| &arm.name).collect::<Vec<_>>(),
            "seeds": comparison.seeds,
            "classes": classes,
            "train_images": train_images,
            "val_images": val_images,
            "batch": comparison.batch,
            "epochs": comparison.epochs,
            "steps": comparison.steps,
        }),
    )
}

/// Prints what happened as an event.
fn tell(names: &[String], seeds: &[u64], event: &LabEvent<'_>) -> Result<()> {
    let which = |arm: usize, seed: usize| -> Value { json!({"policy": names[arm], "seed": seeds[seed]}) };
    match *event {
        LabEvent::Trial { arm, lr, epochs, event: Event::Started { .. } } => {
            events::emit("trial", json!({"policy": names[arm], "lr": lr, "epochs": epochs}))
        }
        LabEvent::Trial { .. } => Ok(()),
        LabEvent::Searched { arm, search } => events::emit(
            "searched",
            json!({"policy": names[arm], "lr": events::number(search.lr), "rates": search.rates()}),
        ),
        LabEvent::Run { arm, seed, event } => events::of_run(&which(arm, seed), &event),
        LabEvent::Done { arm, seed, run } => events::done(&which(arm, seed), run),
    }
}

/// A line a policy that follows its runs; without a terminal, a line a finished run.
struct Display {
    lines: Vec<ProgressBar>,
    total: ProgressBar,
    seeds: Vec<u64>,
    names: Vec<String>,
    epochs: usize,
    /// Accuracies after the last epoch, of each policy's runs that are complete.
    accuracies: Vec<Vec<f64>>,
    began: Instant,
    /// Optimiser steps of one run.
    steps: u64,
    /// Optimiser steps that each run under way has done.
    done: HashMap<(usize, usize), u64>,
    /// Optimiser steps that are left of all runs, and those that this process did.
    left: u64,
    own: u64,
    /// Optimiser steps that the trial under way has done.
    trial: u64,
}

impl Display {
    fn new(lab: &Lab) -> Self {
        let comparison = lab.comparison();
        let all = progress::bars();
        let width = comparison.arms.iter().map(|arm| arm.name.chars().count()).max().unwrap_or(0);
        let line = |arm: &Arm| {
            let line = all.add(ProgressBar::new(comparison.steps * comparison.seeds.len() as u64));
            line.set_style(progress::style("  {prefix} {bar:12} {msg}"));
            line.set_prefix(format!("{:width$}", escaped(&arm.name)));
            line
        };
        let lines: Vec<ProgressBar> = comparison.arms.iter().map(line).collect();
        let runs = (comparison.arms.len() * comparison.seeds.len()) as u64;
        let total = all.add(ProgressBar::new(runs));
        total.set_style(progress::style("  {pos} of {len} runs {msg}"));
        for line in lines.iter().chain([&total]) {
            line.tick();
        }
        Self {
            lines,
            total,
            seeds: comparison.seeds.clone(),
            names: comparison.arms.iter().map(|arm| arm.name.clone()).collect(),
            epochs: comparison.epochs,
            accuracies: vec![Vec::new(); comparison.arms.len()],
            done: HashMap::new(),
            began: Instant::now(),
            steps: comparison.steps,
            left: comparison.steps * runs + lab.search_steps() * comparison.arms.len() as u64,
            trial: 0,
            own: 0,
        }
    }

    /// Shows what happened, if anybody looks: the comparison goes on in any case.
    fn show(&mut self, event: &LabEvent<'_>) {
        match *event {
            LabEvent::Trial { arm, lr, epochs, event } => self.follow_trial(arm, lr, epochs, &event),
            LabEvent::Searched { arm, search } => self.searched(arm, search),
            LabEvent::Run { arm, seed, event } => self.follow(arm, seed, &event),
            LabEvent::Done { arm, seed, run } => self.finished(arm, seed, run),
        }
    }

    fn follow_trial(&mut self, arm: usize, lr: f64, epochs: usize, event: &Event<'_>) {
        match *event {
            Event::Started { .. } => self.trial = 0,
            Event::Step(StepMetrics { epoch, step, .. }) => {
                let done = step.saturating_sub(self.trial);
                (self.trial, self.left, self.own) = (step, self.left.saturating_sub(done), self.own + done);
                self.lines[arm].set_message(format!("learning rate {lr} · epoch {epoch}/{epochs}"));
                self.total.set_message(self.time_left());
            }
            _ => {}
        }
    }

    fn searched(&mut self, arm: usize, search: &LrSearch) {
        let found = format!("learning rate {} of {} tried", search.lr, search.rates().len());
        self.lines[arm].set_message(found.clone());
        if progress::bars().is_hidden() {
            let _ = output::status(format_args!("{:<16} {found}", self.names[arm]));
        }
    }

    fn follow(&mut self, arm: usize, seed: usize, event: &Event<'_>) {
        match *event {
            // What earlier processes did says nothing of how fast this one is.
            Event::Started { step, .. } => {
                self.done.insert((arm, seed), step);
                self.left = self.left.saturating_sub(step);
            }
            Event::Step(StepMetrics { epoch, step, .. }) => {
                let before = self.done.insert((arm, seed), step).unwrap_or(step);
                self.left = self.left.saturating_sub(step.saturating_sub(before));
                self.own += step.saturating_sub(before);
                self.lines[arm].set_position(self.steps * self.accuracies[arm].len() as u64 + step);
                let what = format!("seed {} · epoch {epoch}/{}", self.seeds[seed], self.epochs);
                self.lines[arm].set_message(format!("{what}{}", self.so_far(arm)));
                self.total.set_message(self.time_left());
            }
            Event::Epoch { history, .. } => {
                if let Some(val) = history.last().and_then(|metrics| metrics.val) {
                    let what = format!("seed {} · val {}", self.seeds[seed], percent(val.accuracy()));
                    self.lines[arm].set_message(format!("{what}{}", self.so_far(arm)));
                }
            }
            Event::Validating { .. } | Event::Recalibrated { .. } => {}
        }
    }

    /// The mean of the runs that are complete.
    fn so_far(&self, arm: usize) -> String {
        match &self.accuracies[arm][..] {
            [] => String::new(),
            done => format!(" · mean of {} so far {}", done.len(), percent(mean_and_deviation(done).0)),
        }
    }

    /// By the steps that this process has done.
    fn time_left(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64() / self.own.max(1) as f64 * self.left as f64;
        format!("· {} left", HumanDuration(Duration::from_secs_f64(seconds.min(1e9))))
    }

    fn finished(&mut self, arm: usize, seed: usize, run: &ArmRun) {
        // A run may have ended early.
        let done = self.done.remove(&(arm, seed)).unwrap_or(0);
        self.left = self.left.saturating_sub(self.steps.saturating_sub(done));
        let accuracy = run.last_accuracy().unwrap_or(f64::NAN);
        self.accuracies[arm].push(accuracy);
        let (mean, deviation) = mean_and_deviation(&self.accuracies[arm]);
        let spread =
            if self.accuracies[arm].len() > 1 { format!(" ± {:.2}", 100.0 * deviation) } else { String::new() };
        self.lines[arm].set_position(self.steps * self.accuracies[arm].len() as u64);
        self.lines[arm].set_message(format!("{}{spread}", percent(mean)));
        self.total.inc(1);
        if progress::bars().is_hidden() {
            let diverged = if run.diverged.is_some() { "  (diverged)" } else { "" };
            let (name, seed) = (&self.names[arm], self.seeds[seed]);
            let accuracy = percent(accuracy);
            // An error shows when the comparison is summed up.
            let _ = output::status(format_args!("{name:<16} seed {seed:<3} val top-1 {accuracy}{diverged}"));
        }
    }

    fn finish(&self) {
        for line in self.lines.iter().chain([&self.total]) {
            line.finish_and_clear();
        }
    }
}

fn summarise(lab: &Lab) -> Result<()> {
    let (comparison, timings) = (lab.comparison(), lab.timings());
    if events::are_on() {
        let mut weights = study::write_own_format(&lab.setup().settings, lab.folder(), &[WINNER_FILE], &Told::quiet())?;
        if comparison.winner.is_some() {
            weights.insert(0, lab.folder().join(WINNER_FILE));
        }
        return events::result(&json!({
            "winner": comparison.winner,
            "weights": weights,
            "folder": lab.folder(),
            "report": lab.folder().join(PAGE_FILE),
            "policies": report::events::policies(comparison, timings),
            "conclusion": report::conclusion(comparison),
        }));
    }
    let rows = comparison.arms.iter().zip(&timings.arms).map(|(arm, took)| {
        let (runs, mean, deviation) = arm.spread(ArmRun::last_accuracy);
        vec![
            arm.name.clone(),
            arm.lr(comparison).to_string(),
            if arm.diverged().next().is_some() { "diverged".to_owned() } else { percent(mean) },
            if runs > 1 { format!("± {:.2}", 100.0 * deviation) } else { String::new() },
            percent(arm.spread(ArmRun::best_accuracy).1),
            output::ms(took.step_ms),
            output::flops(arm.step.amount.flops),
            output::bytes(arm.step.kept_bytes),
            format!("{:.3}", arm.drift()),
        ]
    });
    let titles = ["policy", ">lr", ">val top-1", ">spread", ">best epoch", ">step", ">arithmetic", ">kept", ">drift"];
    output::table(&titles, &["drift", "kept", "arithmetic", "best epoch", "step"], rows)?;
    for paragraph in report::conclusion(comparison) {
        output::line("")?;
        output::prose(format_args!("{}", paragraph.replace('`', "")))?;
    }
    output::line("")?;
    output::line(format_args!("report:  {}", lab.folder().join(PAGE_FILE).display()))?;
    let predict = |weights: &Path| format!("thawline predict --weights {} IMAGES", output::quoted(weights));
    let weights = match &comparison.winner {
        Some(Winner { policy, seed, epoch, accuracy }) => {
            let file = lab.folder().join(WINNER_FILE);
            output::line(format_args!(
                "weights: {} ({policy}, seed {seed}, epoch {epoch}: {} of the validation images)",
                file.display(),
                percent(*accuracy)
            ))?;
            Some(file)
        }
        None if matches!(report::verdict(comparison), Verdict::DoNotTrain { .. }) => comparison.weights.clone(),
        None => None,
    };
    if let Some(weights) = weights {
        output::line("use it:")?;
        output::line(format_args!("  {}", predict(&weights)))?;
    }
    // Last, since it can fail: the Keras file may be gone by now.
    for file in study::write_own_format(&lab.setup().settings, lab.folder(), &[WINNER_FILE], &Told::quiet())? {
        let whom = Format::of_name(&file).map_or("", |format| format.facts().name);
        output::line(format_args!("for {whom}: {}", file.display()))?;
    }
    Ok(())
}
