//! The laboratory: several policies on the same images, from the same weights, with the same budget.
//!
//! A [`Lab`] makes one [`Run`] for each policy and seed, one after the other, in a folder of its own.
//! A run that is complete leaves its results behind, and one that was cut off goes on from its checkpoint: so a
//! comparison can be interrupted at any moment, and its [`Comparison`] is the same in the end.
//!
//! A [`Grid`] trains nothing: it measures what inference and a training step take under policies, at several thaw depths
//! and batch sizes, beside what is predicted.

mod grid;
mod search;

pub use crate::report::WINNER_FILE;
pub use grid::{Combination, Grid};
pub use search::{ADAMW_RATES, SGD_RATES, check_search, search_rounds};

use crate::compile;
use crate::data::{DataError, ImageFolder, Loader, LoaderOptions, Mode, Sample, Transform};
use crate::files::{FolderLock, read_text};
use crate::gpu::{Device, Parameters};
use crate::graph::{Graph, LayerKind, Stats};
use crate::kernels::conv2d::Variant;
use crate::plan::{Input, Plan};
use crate::policy::{self, Policy, PolicyError, RECIPES, Rule};
use crate::report::{
    self, Arm, ArmLayer, ArmRun, ArmStage, ArmTimings, BatchStatistics, Comparison, LOOKED_AT, LrSearch, Prefix,
    SMALL_BATCH_IMAGES, State, Timings, Total, Verdict, Winner, price, trained_values,
};
use crate::tensor::HostTensor;
use crate::text::message;
use crate::train::{
    self, BEST_FILE, CHECKPOINT_FILE, Event, FeatureCache, Images, Job, LAST_FILE, Outcome, PADDING, PolicySettings,
    Probe, Run, Settings, StageSettings, Totals, TrainError,
};
use crate::weights::{self, StateDict, WeightsError, write_atomically};
use search::Trials;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a comparison was begun with.
pub const SETUP_FILE: &str = "compare.toml";
/// The [`Comparison`], as far as it has come.
pub const COMPARISON_FILE: &str = "compare.json";
/// Its training curves as a table.
pub const TABLE_FILE: &str = "compare.csv";
/// The [`Timings`].
pub const TIMINGS_FILE: &str = "timings.json";
/// The page to look at.
pub const PAGE_FILE: &str = "report.html";
/// The results of one run, in its folder.
const RESULT_FILE: &str = "result.toml";

/// The longest of these files that is read, in bytes: `compare.toml` may hold a graph file and thousands of class names.
const MAX_FILE: u64 = 16 << 20;

/// The recipes that answer what to thaw, and what batch norms should do meanwhile; the others are for small batches.
pub const POLICIES: [&str; 9] = [
    "head",
    "head-adapt",
    "bn-only",
    "bn-affine",
    "full-frozen-bn",
    "keras-guide",
    "full",
    "full-then-frozen-bn",
    "head-then-full",
];

/// Runs of a step and of inference that their time is the median of.
const REPEAT: usize = 5;

/// Everything that decides what a comparison finds, in a form that its folder keeps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Setup {
    /// Each run's order of images, augmentation and new weights follow from its seed.
    pub seeds: Vec<u64>,
    /// Device memory for what the frozen parts of networks give, in bytes; it changes no result.
    pub cache: u64,
    /// Of the convolutions, since another one rounds differently.
    pub variant: String,
    /// CRC-32C of the weights to start from, in hexadecimal; empty if they are random.
    pub weights: String,
    /// Learning rates of which each policy finds its own before its runs; where there are fewer than two, all have that of
    /// the settings.
    #[serde(default)]
    pub rates: Vec<f64>,
    /// The policies, with different names.
    pub arms: Vec<PolicySettings>,
    /// Of every run but for its policy and its seed. The seed here chose the images.
    pub settings: Settings,
}

/// What can go wrong in a comparison.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("policy `{policy}`: {source}")]
    Policy { policy: String, source: PolicyError },
    #[error("two policies are called `{name}`: give one of the files another name")]
    SameName { name: String },
    #[error("a comparison needs images for validation; set some aside with a val fraction above 0, or in val/")]
    NoValidation,
    #[error("a comparison needs at least one policy and one seed")]
    Nothing,
    #[error(
        "no search for the learning rate of policy `{policy}`, which trains on four fifths of the images: {source}; or \
             give one rate, such as --lr 0.01"
    )]
    Search { policy: String, source: Box<TrainError> },
    #[error(
        "no class has two training images, of which one could judge learning rates: give one rate, such as --lr 0.01"
    )]
    NothingToSearchOn,
    #[error("{} holds no comparison that could be resumed", folder.display())]
    NoComparison { folder: PathBuf },
    #[error("{what} changed since the comparison in {} began: begin a new one in another folder", folder.display())]
    Changed { folder: PathBuf, what: &'static str },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    /// What the caller's observer reports.
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

macro_rules! via_train {
    ($($error:ty),*) => {$(
        impl From<$error> for LabError {
            fn from(error: $error) -> Self {
                Self::Train(error.into())
            }
        }
    )*};
}
via_train!(crate::gpu::GpuError, crate::compile::CompileError, crate::graph::GraphError, DataError, WeightsError);

/// What an observer of a comparison is told.
#[derive(Clone, Copy, Debug)]
pub enum LabEvent<'a> {
    /// The `seed`-th run of the `arm`-th policy tells of itself; both count from 0.
    Run { arm: usize, seed: usize, event: Event<'a> },
    /// A trial of a search for the learning rate of the `arm`-th policy tells of itself: it has this rate and length.
    Trial { arm: usize, lr: f64, epochs: usize, event: Event<'a> },
    /// The search is complete, now or in an earlier process.
    Searched { arm: usize, search: &'a LrSearch },
    /// That run is complete, now or in an earlier process.
    Done { arm: usize, seed: usize, run: &'a ArmRun },
}

/// What a comparison works on.
pub struct Bench {
    pub device: Device,
    /// The network for batches of [`Settings::batch`], every layer frozen.
    pub network: Graph,
    /// The form of the images; it must be [`Input::Bytes`].
    pub input: Input,
    pub images: Arc<ImageFolder>,
    /// The folder that the images were found below.
    pub data: PathBuf,
    /// The weights to start from; random ones if there are none.
    pub weights: Option<StateDict>,
}

/// A comparison with a folder.
pub struct Lab {
    bench: Bench,
    device: Device,
    folder: PathBuf,
    /// Held from the beginning on of whatever writes.
    _lock: Option<FolderLock>,
    setup: Setup,
    /// The network in each stage of each policy.
    networks: Vec<Vec<Graph>>,
    comparison: Comparison,
    timings: Timings,
}

impl Lab {
    /// Begins a comparison that keeps its files in `folder`.
    ///
    /// # Errors
    /// A policy that does not suit the network; a folder that is not empty or cannot be written; settings that make no
    /// sense.
    pub fn start(
        bench: Bench,
        folder: &Path,
        settings: Settings,
        arms: Vec<PolicySettings>,
        seeds: Vec<u64>,
        rates: Vec<f64>,
        cache: u64,
    ) -> Result<Self, LabError> {
        settings.check()?;
        let weights = bench.weights.as_ref().map(train::checksum).unwrap_or_default();
        let variant = bench.device.variant()?.name().into();
        let lab = Self::new(bench, folder, Setup { seeds, cache, variant, weights, rates, arms, settings })?;
        train::check_apart(&lab.bench.data, folder)?;
        let lab = Self { _lock: Some(train::claim(folder, SETUP_FILE)?), ..lab };
        lab.write_setup()?;
        lab.write_results()?;
        Ok(lab)
    }

    fn write_setup(&self) -> Result<(), LabError> {
        let text = toml::to_string(&self.setup).map_err(|e| TrainError::Unwritable { reason: e.to_string() })?;
        write(&self.folder.join(SETUP_FILE), &text)
    }

    /// Continues the comparison in `folder`, which was begun with `setup`, but for its memory for features and whether it
    /// skips broken images, which may begin at any time.
    ///
    /// # Errors
    /// The weights or the images are not those that it was begun with; another process works on it.
    pub fn resume(bench: Bench, folder: &Path, setup: Setup) -> Result<Self, LabError> {
        let changed = |what| LabError::Changed { folder: folder.into(), what };
        if bench.weights.as_ref().map(train::checksum).unwrap_or_default() != setup.weights {
            return Err(changed("the weights file"));
        }
        if train::ImageSet::of(&bench.images, &bench.data) != setup.settings.images {
            return Err(changed("the folder of images"));
        }
        train::check_apart(&bench.data, folder)?;
        let lock = FolderLock::acquire(folder).map_err(TrainError::from)?;
        let mut lab = Self { _lock: Some(lock), ..Self::new(bench, folder, setup)? };
        // It may differ from what is there in the memory for features, and in skipping broken images from now on.
        lab.write_setup()?;
        if let Ok(text) = read_text(&folder.join(TIMINGS_FILE), MAX_FILE)
            && let Ok(known) = serde_json::from_str::<Timings>(&text)
            && known.arms.len() == lab.timings.arms.len()
        {
            // Of another device they would not belong together.
            if known.device == lab.timings.device {
                lab.timings = known;
            }
        }
        Ok(lab)
    }

    fn new(bench: Bench, folder: &Path, setup: Setup) -> Result<Self, LabError> {
        if setup.arms.is_empty() || setup.seeds.is_empty() {
            return Err(LabError::Nothing);
        }
        if bench.images.val.is_empty() {
            return Err(LabError::NoValidation);
        }
        let variant = Variant::of_name(&setup.variant).and_then(|variant| bench.device.with_variant(variant));
        if variant.is_none() {
            let (variant, device) = (&setup.variant, &bench.device.info().name);
            log::warn!(
                "the comparison was begun with {variant} convolutions, which {device} lacks: others round differently"
            );
        }
        let device = variant.unwrap_or_else(|| bench.device.clone());
        let (mut arms, mut networks) = (Vec::new(), Vec::new());
        for (index, arm) in setup.arms.iter().enumerate() {
            if setup.arms[..index].iter().any(|other| other.name == arm.name) {
                return Err(LabError::SameName { name: arm.name.clone() });
            }
            let (arm, network) = described(arm, &bench, &setup.settings)?;
            arms.push(arm);
            networks.push(network);
        }
        let names = arms.iter().map(|arm| ArmTimings { name: arm.name.clone(), ..ArmTimings::default() });
        let timings = Timings {
            device: device.info().name.clone(),
            driver: device.info().driver.clone(),
            date: report::today(),
            arms: names.collect(),
            cache_bytes: 0,
            cache_budget: setup.cache,
        };
        check_search(&bench.images, &setup.settings, &setup.arms, &setup.rates)?;
        let comparison = comparison(&bench, &setup, arms);
        Ok(Self { bench, device, folder: folder.into(), _lock: None, setup, networks, comparison, timings })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Optimiser steps of the search for one policy's learning rate; 0 if there is none.
    pub fn search_steps(&self) -> u64 {
        let Setup { rates, settings, .. } = &self.setup;
        let of_epoch = Trials::new(&self.bench.images, settings).steps_per_epoch(settings);
        search_rounds(rates.len(), settings.epochs)
            .into_iter()
            .map(|(count, epochs)| (count * epochs * of_epoch) as u64)
            .sum()
    }

    /// Makes the runs that are missing, seed by seed, until all are complete or `stop` is set.
    ///
    /// # Errors
    /// An image is broken; the disk or the device fails; `observe` does. A run that diverges ends at its last good
    /// checkpoint, and the comparison goes on.
    pub fn run(
        &mut self,
        stop: &Arc<AtomicBool>,
        mut observe: impl FnMut(LabEvent<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Outcome, LabError> {
        let cache = Arc::new(FeatureCache::new(self.setup.cache, Arc::clone(stop)));
        self.comparison.start.clear();
        self.comparison.arms.iter_mut().for_each(|arm| arm.runs.clear());
        if self.setup.rates.len() > 1 {
            let tensors = self.tensors(0)?;
            if !self.search(&tensors, &cache, stop, &mut observe)? {
                return Ok(Outcome::Stopped);
            }
            self.write_results()?;
        }
        for seed in 0..self.setup.seeds.len() {
            let tensors = self.tensors(seed)?;
            self.look_at_start(seed, &tensors)?;
            for arm in 0..self.setup.arms.len() {
                let known = read_toml(&self.run_folder(arm, seed).join(RESULT_FILE))?;
                let is_new = known.is_none();
                let run = match known {
                    Some(run) => Some(run),
                    None => self.run_arm(arm, seed, &tensors, &cache, stop, &mut observe)?,
                };
                let Some(run) = run else { return Ok(Outcome::Stopped) };
                observe(LabEvent::Done { arm, seed, run: &run }).map_err(LabError::Observer)?;
                self.comparison.arms[arm].runs.push(run);
                self.timings.cache_bytes = self.timings.cache_bytes.max(cache.peak_bytes());
                // What an earlier process found is written already, perhaps with more behind it.
                if is_new {
                    self.write_results()?;
                }
            }
        }
        self.leave_winner()?;
        self.write_results()?;
        Ok(Outcome::Finished)
    }

    /// Leaves the weights of the policy that is advised, if one is.
    fn leave_winner(&mut self) -> Result<(), LabError> {
        self.comparison.winner = None;
        let Verdict::Use { arm, .. } = report::verdict(&self.comparison) else { return Ok(()) };
        let bests = arm.runs.iter().filter_map(|run| {
            let best = train::best(&run.history)?;
            Some((run.seed, best.epoch, best.val?))
        });
        let winner = bests.reduce(|best, new| {
            let better = new.2.top1 > best.2.top1 || new.2.top1 == best.2.top1 && new.2.loss < best.2.loss;
            if better { new } else { best }
        });
        let Some((seed, epoch, val)) = winner else { return Ok(()) };
        let winner = Winner { policy: arm.name.clone(), seed, epoch, accuracy: val.accuracy() };
        let path = self.folder.join("runs").join(format!("{}-seed{seed}", arm.name)).join(BEST_FILE);
        let weights = fs::read(&path).map_err(|error| LabError::Read { path, reason: error.to_string() })?;
        let path = self.folder.join(WINNER_FILE);
        write_atomically(&path, |file| file.write_all(&weights)).map_err(|source| LabError::Write { path, source })?;
        self.comparison.winner = Some(winner);
        Ok(())
    }

    /// The weights that all runs of a seed start from.
    fn tensors(&self, seed: usize) -> Result<Vec<HostTensor>, LabError> {
        let (network, seed) = (&self.bench.network, self.setup.seeds[seed]);
        let tensors = match &self.bench.weights {
            Some(state) => {
                let head = self.setup.settings.first_head();
                weights::from_state_with(network, state.clone(), seed, head)?.tensors
            }
            None => weights::initialise(network, seed),
        };
        train::check_finite(network, &tensors)?;
        Ok(tensors)
    }

    fn run_folder(&self, arm: usize, seed: usize) -> PathBuf {
        let name = format!("{}-seed{}", self.setup.arms[arm].name, self.setup.seeds[seed]);
        self.folder.join("runs").join(name)
    }

    /// One run, from wherever it is; `None` if it was stopped.
    fn run_arm(
        &mut self,
        arm: usize,
        seed: usize,
        tensors: &[HostTensor],
        cache: &Arc<FeatureCache>,
        stop: &AtomicBool,
        observe: &mut impl FnMut(LabEvent<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Option<ArmRun>, LabError> {
        let folder = self.run_folder(arm, seed);
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if self.timings.arms[arm].step_ms == 0.0 {
            self.measure(arm, tensors)?;
        }
        let filled = cache.fill_s();
        let mut run = match self.begin(arm, seed, tensors, Some(Arc::clone(cache)), &folder) {
            Err(LabError::Train(TrainError::Interrupted)) => return Ok(None),
            begun => begun?,
        };
        let timings = &mut self.timings.arms[arm];
        timings.cached = run.session().features().is_some();
        // An epoch of which this process has not seen the beginning is not timed, nor is what fills the cache within one.
        let whole = run.step().is_multiple_of(run.settings().steps_per_epoch() as u64);
        let now = || (Instant::now(), cache.fill_s());
        let mut began = whole.then(now);
        let mut last = began;
        let ended = run.run(stop, |event| {
            match event {
                Event::Step(_) => last = Some(now()),
                Event::Epoch { images_per_s, .. } => {
                    if let (Some((began, filled)), Some((last, filled_since)), Some(_)) = (began, last, images_per_s) {
                        timings.epoch_s.push((last - began).as_secs_f64() - (filled_since - filled));
                    }
                    began = Some(now());
                    last = began;
                }
                Event::Started { .. } | Event::Validating { .. } | Event::Recalibrated { .. } => {}
            }
            observe(LabEvent::Run { arm, seed, event })
        });
        timings.fill_s += cache.fill_s() - filled;
        timings.cached |= run.session().features().is_some();
        let diverged = match ended {
            // A stage's values may have been under way to the cache.
            Ok(Outcome::Stopped) | Err(TrainError::Interrupted) => return Ok(None),
            Ok(Outcome::Finished) => None,
            Err(TrainError::Observer(error)) => return Err(LabError::Observer(error)),
            Err(error @ TrainError::Diverged { .. }) => {
                // What it had learnt before. Not both sessions at once: the device may hold only one.
                drop(run);
                run = self.begin(arm, seed, tensors, None, &folder)?;
                Some(error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        let look = self.look(run.session().device_parameters(), &run.session().parameters()?);
        let (end, diverged) = match look {
            // Training may have kept to the statistics of batches, and left running ones that lead nowhere.
            Err(LabError::Train(
                error @ (TrainError::MomentsNotFinite { .. } | TrainError::OutputNotFinite { .. }),
            )) => {
                let unknown = State::unknown(self.comparison.batch_norms.len());
                (unknown, diverged.or_else(|| Some(error.to_string())))
            }
            seen => (seen?, diverged),
        };
        let (history, confusion) = (run.history().to_vec(), run.confusion().cloned());
        let result = ArmRun { seed: self.setup.seeds[seed], history, diverged, confusion, end };
        let text = toml::to_string(&result).map_err(|e| TrainError::Unwritable { reason: e.to_string() })?;
        write(&folder.join(RESULT_FILE), &text)?;
        for file in [CHECKPOINT_FILE, LAST_FILE] {
            // Not needed any more; what cannot be removed does no harm.
            let _ = fs::remove_file(folder.join(file));
        }
        Ok(Some(result))
    }

    fn begin(
        &self,
        arm: usize,
        seed: usize,
        tensors: &[HostTensor],
        cache: Option<Arc<FeatureCache>>,
        folder: &Path,
    ) -> Result<Run, LabError> {
        let Bench { input, images, .. } = &self.bench;
        let settings = self.arm_settings(arm, seed);
        let stages = self.networks[arm].clone();
        let job = Job { device: &self.device, stages, input: *input, images, settings, cache };
        if folder.join(CHECKPOINT_FILE).exists() {
            return Ok(job.resume(folder)?);
        }
        // What was cut off before its first checkpoint begins anew.
        Ok(job.start(tensors, folder)?)
    }

    /// The settings of a run.
    fn arm_settings(&self, arm: usize, seed: usize) -> Settings {
        let (seed, policy, data) = (self.setup.seeds[seed], self.setup.arms[arm].clone(), self.bench.data.clone());
        let mut settings = Settings { seed, policy, data, ..self.setup.settings.clone() };
        if let Some(search) = &self.comparison.arms[arm].search {
            settings.schedule.lr = search.lr;
        }
        settings
    }

    fn measure(&mut self, arm: usize, tensors: &[HostTensor]) -> Result<(), LabError> {
        let settings = Settings { policy: self.setup.arms[arm].clone(), ..self.setup.settings.clone() };
        let timings = &mut self.timings.arms[arm];
        for (share, network) in shares(&settings).into_iter().zip(&self.networks[arm]) {
            let measured = train::measure(&self.device, network.clone(), tensors, settings.options(), REPEAT)?;
            timings.step_ms += share * measured.step_ms;
            timings.inference_ms = measured.inference_ms;
            timings.allocated_bytes = timings.allocated_bytes.max(measured.allocated_bytes);
        }
        Ok(())
    }

    fn look_at_start(&mut self, seed: usize, tensors: &[HostTensor]) -> Result<(), LabError> {
        let path = self.folder.join("runs").join(format!("start-seed{}.toml", self.setup.seeds[seed]));
        let state = match read_toml(&path)? {
            Some(state) => state,
            None => {
                let params = Parameters::upload(&self.device, &self.bench.network, tensors)?;
                let state = self.look(&params, tensors)?;
                let text = toml::to_string(&state).map_err(|e| TrainError::Unwritable { reason: e.to_string() })?;
                write(&path, &text)?;
                state
            }
        };
        self.comparison.start.push(state);
        Ok(())
    }

    /// Looks at a network whose parameters are `params` on the device and `tensors` on the host.
    fn look(&self, params: &Parameters, tensors: &[HostTensor]) -> Result<State, LabError> {
        let Bench { network, input, images, .. } = &self.bench;
        let Settings { batch, transform, seed, skip_broken, decode, .. } = &self.setup.settings;
        let loader = |samples: &[Sample], most, batch: usize| -> Result<Loader, DataError> {
            let options = LoaderOptions::new(Mode::Eval, batch, *seed);
            let options = LoaderOptions { skip_broken: *skip_broken, decode: *decode, ..options };
            Loader::new(spread(samples, most), transform.clone(), options)
        };
        let probe = |stats| Probe::new(&self.device, network, params, *input, |_| stats);

        let mut running = probe(Stats::Running)?;
        let survey = running.survey(&loader(&images.train, LOOKED_AT, *batch)?)?;
        let drift = train::drifts(network, tensors, &survey);

        let val = loader(&images.val, LOOKED_AT, *batch)?;
        let running_flips = running.companions(&val, *batch, 2, *seed)?.flips;
        let mut by_batch = probe(Stats::Batch)?;
        let mut sizes = vec![1, 2, 8, *batch];
        sizes.retain(|&size| size <= *batch && size <= images.val.len());
        sizes.sort_unstable();
        sizes.dedup();
        let statistics = sizes.into_iter().map(|size| {
            // A single image has no companions.
            let shuffles = if size == 1 { 1 } else { 2 };
            let most = if size <= 2 { SMALL_BATCH_IMAGES } else { LOOKED_AT };
            let seen = by_batch.companions(&loader(&images.val, most, size)?, size, shuffles, *seed)?;
            Ok(BatchStatistics { batch: seen.batch, accuracy: seen.survey.totals.accuracy(), flips: seen.flips })
        });
        let batch_statistics = statistics.collect::<Result<_, TrainError>>()?;
        Ok(State {
            drift,
            running: self.evaluate(params, *batch, &val)?,
            single: self.evaluate(params, 1, &loader(&images.val, LOOKED_AT, 1)?)?,
            running_flips,
            batch: batch_statistics,
        })
    }

    /// Plain inference of all of a loader's images, in batches of `batch`.
    fn evaluate(&self, params: &Parameters, batch: usize, images: &Loader) -> Result<Totals, TrainError> {
        let network = self.bench.network.with_batch(batch)?;
        let mut evaluator = train::Evaluator::of_parameters(&self.device, &network, params, self.bench.input)?;
        let mut totals = Totals::default();
        for batch in images.epoch(0, 0)? {
            let mut batch = batch?;
            let valid = batch.valid();
            batch.labels[valid..].fill(PADDING);
            totals += evaluator.evaluate(Images::Bytes(&batch.pixels), &batch.labels)?;
        }
        Ok(totals)
    }

    fn write_results(&self) -> Result<(), LabError> {
        let json = |value: Result<String, serde_json::Error>| {
            value.map_err(|error| TrainError::Unwritable { reason: error.to_string() })
        };
        let Self { folder, comparison, timings, .. } = self;
        write(&folder.join(COMPARISON_FILE), &json(serde_json::to_string_pretty(comparison))?)?;
        write(&folder.join(TIMINGS_FILE), &json(serde_json::to_string_pretty(timings))?)?;
        write(&folder.join(TABLE_FILE), &comparison.csv())?;
        write(&folder.join(PAGE_FILE), &report::page(comparison, timings))
    }
}

/// The setup of the comparison in `folder`.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn setup_of(folder: &Path) -> Result<Setup, LabError> {
    read_toml(&folder.join(SETUP_FILE))?.ok_or_else(|| LabError::NoComparison { folder: folder.into() })
}

/// Whether the images that do not fill an optimiser step have to sit out: one of the policies takes statistics of whole
/// batches, and all shall train on the same images.
///
/// # Errors
/// A policy is malformed, or does not suit the network.
pub fn drop_last(arms: &[PolicySettings], network: &Graph) -> Result<bool, LabError> {
    for arm in arms {
        let fail = |source| LabError::Policy { policy: arm.name.clone(), source };
        let stages = policy::resolve_stages(&of_words(arm).map_err(fail)?, network).map_err(fail)?;
        if stages.iter().any(|(_, resolved)| train::takes_batch_statistics(&resolved.graph)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A policy as settings keep it.
pub fn in_words(policy: &Policy) -> PolicySettings {
    let words = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    let stages = policy.stages.iter().map(|stage| StageSettings { from: stage.from, rules: words(&stage.rules) });
    PolicySettings { name: policy.name.clone(), rules: words(&policy.rules), stages: stages.collect() }
}

/// The policy that settings keep.
///
/// # Errors
/// It is malformed.
pub fn of_words(settings: &PolicySettings) -> Result<Policy, PolicyError> {
    let policy = Policy::new(&settings.name).with_rules(&settings.rules)?;
    settings.stages.iter().try_fold(policy, |policy, stage| policy.with_stage(stage.from, &stage.rules))
}

/// The share of a run's optimiser steps in each stage of its policy.
fn shares(settings: &Settings) -> Vec<f64> {
    let starts: Vec<u64> = [0].into_iter().chain(settings.stage_starts()).chain([settings.steps()]).collect();
    starts.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / settings.steps() as f64).collect()
}

/// What there is to say of an arm before it runs, and the network in each stage of its policy.
fn described(arm: &PolicySettings, bench: &Bench, settings: &Settings) -> Result<(Arm, Vec<Graph>), LabError> {
    let fail = |source| LabError::Policy { policy: arm.name.clone(), source };
    let settings = Settings { policy: arm.clone(), ..settings.clone() };
    settings.check()?;
    let policy = of_words(arm).map_err(fail)?;
    let stages = policy::resolve_stages(&policy, &bench.network).map_err(fail)?;
    let mut described = Arm {
        name: arm.name.clone(),
        summary: RECIPES.iter().find(|recipe| recipe.name == arm.name).map_or("", |recipe| recipe.summary).into(),
        rules: arm.rules.clone(),
        stages: Vec::new(),
        warnings: Vec::new(),
        trained_values: 0,
        all_values: 0,
        step: Total::default(),
        inference: Total::default(),
        prefix: None,
        search: None,
        runs: Vec::new(),
    };
    let mut steps = Vec::new();
    for (index, (share, (_, resolved))) in shares(&settings).into_iter().zip(&stages).enumerate() {
        resolved.check_training(settings.accumulate).map_err(fail)?;
        let (price, plan) = price(resolved, &settings.options(), bench.input)?;
        if index == 0 {
            described.prefix = prefix(&plan, &settings)?;
        }
        let layers = resolved.graph.layers().iter().filter_map(|layer| {
            let axes = policy::describe(layer);
            (!axes.is_empty()).then(|| ArmLayer { name: layer.name.clone(), kind: layer.kind.name().into(), axes })
        });
        let trained = trained_values(&resolved.graph);
        described.trained_values = described.trained_values.max(trained.values);
        described.all_values = trained.all;
        described.warnings.extend(resolved.warnings.iter().map(ToString::to_string));
        // Of a step that takes micro-batches together, a micro-batch's share.
        let parts = price.batch as f64 / settings.batch as f64;
        steps.push((share / parts, price.step));
        described.inference = Total::mean(&[(1.0 / parts, price.inference)]);
        described.stages.push(ArmStage {
            share,
            rules: index.checked_sub(1).map(|later| arm.stages[later].rules.clone()).unwrap_or_default(),
            layers: layers.collect(),
            step: price.step,
        });
    }
    described.step = Total::mean(&steps);
    let networks: Vec<Graph> = stages.into_iter().map(|(_, resolved)| resolved.graph).collect();
    described.warnings.extend(settings.lag_in_words(&networks));
    described.warnings.dedup();
    Ok((described, networks))
}

/// What of a step could be kept from epoch to epoch, and pays.
fn prefix(plan: &Plan, settings: &Settings) -> Result<Option<Prefix>, LabError> {
    if settings.transform.augment != crate::data::Augment::None || settings.skip_broken {
        return Ok(None);
    }
    let Some(split) = compile::split(&plan.graph, &compile::changing(&plan.graph))? else { return Ok(None) };
    let graph = split.prefix;
    let images = graph.input_shape().map_or(1, |shape| shape.n() as u64);
    let ends: Vec<_> = graph.outputs().iter().map(|(_, id)| graph.node(*id)).collect();
    let until = ends.iter().filter_map(|node| node.layer).map(|layer| graph.layers()[layer.index()].name.clone());
    let prefix = Prefix {
        until: until.collect(),
        bytes_per_image: ends.iter().map(|node| node.shape.bytes()).sum::<u64>() / images,
        flops_per_image: Plan::new(graph.clone(), plan.input, Variant::default()).cost.step().flops / images,
    };
    Ok(train::is_worth_keeping(prefix.flops_per_image, prefix.bytes_per_image).then_some(prefix))
}

fn comparison(bench: &Bench, setup: &Setup, arms: Vec<Arm>) -> Comparison {
    let settings = &setup.settings;
    let Transform { height, width, augment, .. } = settings.transform;
    let norms = bench.network.layers().iter().filter(|layer| layer.kind == LayerKind::Bn);
    Comparison {
        thawline: settings.thawline.clone(),
        model: settings.model.clone(),
        weights: settings.weights.clone(),
        data: settings.data.clone(),
        classes: settings.classes.clone(),
        train_images: settings.images.train,
        val_images: settings.images.val,
        chance: most_frequent(&bench.images.val),
        size: [height as usize, width as usize],
        batch: settings.batch,
        accumulate: settings.accumulate,
        epochs: settings.epochs,
        patience: settings.patience,
        steps: settings.steps(),
        augment: augment.name().into(),
        optimizer: settings.optimizer,
        schedule: settings.schedule,
        seeds: setup.seeds.clone(),
        batch_norms: norms.map(|layer| layer.name.clone()).collect(),
        start: Vec::new(),
        arms,
        winner: None,
    }
}

/// The share of samples that are of the most frequent class.
fn most_frequent(samples: &[Sample]) -> f64 {
    let mut counts = HashMap::new();
    for sample in samples {
        *counts.entry(sample.label).or_insert(0usize) += 1;
    }
    counts.values().max().map_or(0.0, |most| *most as f64 / samples.len() as f64)
}

/// At most `most` of the samples, evenly spread: they are sorted by class.
fn spread(samples: &[Sample], most: usize) -> Vec<Sample> {
    let count = samples.len().min(most);
    (0..count).map(|i| samples[i * samples.len() / count].clone()).collect()
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    let fail = |source| LabError::Write { path: path.into(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    write_atomically(path, |file| file.write_all(text.as_bytes())).map_err(fail)
}

/// What a file holds; `None` if there is none.
fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, LabError> {
    let fail = |reason: String| LabError::Read { path: path.into(), reason };
    match read_text(path, MAX_FILE) {
        Ok(text) => {
            toml::from_str(&text).map(Some).map_err(|error| fail(message(&error.to_string().replace('\n', " "))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error.to_string())),
    }
}
