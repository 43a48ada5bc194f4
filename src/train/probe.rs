//! Forward passes that look: what every batch norm sees, under running statistics or under those of the batch.

use super::finite::not_finite;
use super::fitting::executor;
use super::session::{Slots, unpad};
use super::{Images, Moments, PADDING, Totals, TrainError};
use crate::compile;
use crate::data::Loader;
use crate::gpu::{Device, Executor, Parameters, block};
use crate::graph::{Graph, LayerId, LayerKind, Output, Phase, Stats};
use crate::plan::{Input, SlotId};
use crate::rng::Rng;

/// Looks at a network without changing it. Unlike [`Evaluator`](super::Evaluator), it can normalise by the moments of
/// the batch, as a training step does, and it reads out the moments of every batch norm's input. It sees the parameters
/// as they are at each pass, and takes batches of any size.
pub struct Probe {
    device: Device,
    network: Graph,
    params: Parameters,
    input: Input,
    /// What each of the network's layers normalises by.
    stats: Vec<Stats>,
    layers: Vec<LayerId>,
    plans: Vec<Planned>,
}

/// The plan for batches of one size.
struct Planned {
    batch: usize,
    executor: Executor,
    slots: Slots,
    rows: SlotId,
    /// In the order of [`Probe::layers`].
    moments: Vec<SlotId>,
}

/// What one pass has shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Observation {
    /// As many values a sample as there are classes.
    pub logits: Vec<f32>,
    /// Of the samples with a label.
    pub totals: Totals,
    /// Of the input of each batch norm, in the order of [`Probe::layers`]; all samples count, with or without a label.
    pub moments: Vec<Moments>,
}

/// What many passes have shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Survey {
    /// Passes.
    pub batches: u64,
    /// Of the samples with a label.
    pub totals: Totals,
    /// In the order of [`Probe::layers`].
    pub layers: Vec<LayerSurvey>,
    /// Broken images that were skipped.
    pub skipped: u64,
}

/// What many passes have shown of the input of one batch norm. All vectors have a value a channel.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LayerSurvey {
    /// The moments of all values together, those of the population: what PreciseBN estimates (Wu & Johnson 2021).
    pub pooled: Moments,
    /// The plain mean of the batches' means, each batch with the same weight, and the same of their biased and of their
    /// unbiased variances: what cumulative updates arrive at.
    pub mean: Vec<f64>,
    pub biased: Vec<f64>,
    pub unbiased: Vec<f64>,
}

impl LayerSurvey {
    /// The variance of the batches' means: by the law of total variance what the pooled one has over the mean of the
    /// batches' own, if the batches are of one size.
    pub fn between(&self) -> Vec<f64> {
        self.pooled.var.iter().zip(&self.biased).map(|(pooled, within)| (pooled - within).max(0.0)).collect()
    }

    /// Takes in the moments of the `number`-th batch, which counts from 1.
    fn add(&mut self, batch: &Moments, number: u64) {
        let channels = batch.mean.len();
        let unbiased = batch.unbiased();
        for (average, values) in
            [(&mut self.mean, &batch.mean), (&mut self.biased, &batch.var), (&mut self.unbiased, &unbiased)]
        {
            average.resize(channels, 0.0);
            for (average, value) in average.iter_mut().zip(values) {
                *average += (value - *average) / number as f64;
            }
        }
        self.pooled.merge(batch);
    }
}

/// What the other images of a batch do to an image's result.
#[derive(Clone, PartialEq, Debug)]
pub struct Companions {
    /// Images per batch.
    pub batch: usize,
    /// Images that were looked at, broken ones not counted.
    pub images: usize,
    /// The share of images, in `[0, 1]`, whose likeliest class is another one when their companions are other ones: the
    /// mean over all pairs of shuffles. 0 for a single shuffle.
    pub flips: f64,
    /// Over all shuffles. Where batches had to be filled up, some images are in its moments once more than others.
    pub survey: Survey,
}

impl Probe {
    /// A probe of `network` with the given parameters, which any other plan may share. Each batch norm normalises by
    /// what `stats` says of its layer.
    ///
    /// # Errors
    /// The network has no batch norm.
    pub fn new(
        device: &Device,
        network: &Graph,
        params: &Parameters,
        input: Input,
        stats: impl Fn(LayerId) -> Stats,
    ) -> Result<Self, TrainError> {
        let all = || (0..).map(LayerId).zip(network.layers());
        let layers: Vec<LayerId> = all().filter(|(_, l)| l.kind == LayerKind::Bn).map(|(id, _)| id).collect();
        if layers.is_empty() {
            return Err(TrainError::NoBatchNorm);
        }
        Ok(Self {
            device: device.clone(),
            params: params.clone(),
            input,
            stats: all().map(|(id, _)| stats(id)).collect(),
            network: network.clone(),
            layers,
            plans: Vec::new(),
        })
    }

    /// The batch norms, in graph order.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// One pass over as many images as there are labels. Samples labelled [`PADDING`] have no loss and no hit, and come
    /// behind all others unless no sample has a label.
    ///
    /// The moments of a batch that is a single value a channel have variance 0: under `stats=batch` such a batch norm
    /// lets nothing of its input through.
    ///
    /// # Errors
    /// The images are not as many, a label is not a class, or the device refuses the batch or failed.
    pub fn pass(&mut self, images: Images<'_>, labels: &[u32]) -> Result<Observation, TrainError> {
        let batch = labels.len();
        let index = self.plan_for(batch)?;
        let Planned { executor, slots, rows, moments, .. } = &mut self.plans[index];
        slots.fill(executor, None, (0, 1), images, labels)?;
        executor.run(&[Phase::Once, Phase::Forward])?;
        for &slot in [&slots.logits, rows].into_iter().chain(&*moments) {
            executor.fetch(slot)?;
        }
        let mut results = Vec::with_capacity(2 + moments.len());
        while let Some(words) = executor.fetched(true)? {
            results.push(words);
        }
        let [logits, rows, moments @ ..] = &results[..] else {
            return Err(TrainError::Incomplete { what: "result" });
        };
        let graph = &executor.plan().graph;
        let classes = graph.logits_shape().map_or(0, crate::tensor::Shape::c);
        let of_layer = |(&layer, words): (&LayerId, &Vec<f32>)| {
            let shape = graph.layers()[layer.index()].shape;
            let (mean, var) = words.split_at(shape.stored_c());
            let wide = |row: &[f32]| row[..shape.c()].iter().map(|&v| f64::from(v)).collect();
            Moments { count: shape.pixels() as u64, mean: wide(mean), var: wide(var) }
        };
        Ok(Observation {
            logits: unpad(logits, classes, batch),
            totals: Totals::new(rows, labels.iter().filter(|label| **label != PADDING).count()),
            moments: self.layers.iter().zip(moments).map(of_layer).collect(),
        })
    }

    /// The position in `plans` of the plan for batches of `batch`.
    fn plan_for(&mut self, batch: usize) -> Result<usize, TrainError> {
        if let Some(known) = self.plans.iter().position(|planned| planned.batch == batch) {
            return Ok(known);
        }
        // One for whole batches and one for the rest: broken images can make a rest of any size.
        const KEPT: usize = 2;
        self.plans.truncate(KEPT - 1);
        let with_batch = |batch| {
            let network = self.network.with_batch(batch)?;
            Ok(compile::observation(network, |layer| self.stats[layer.index()])?)
        };
        let executor = executor(&self.device, with_batch(batch)?, self.input, &self.params, batch, with_batch)?;
        let plan = executor.plan();
        let missing = |what| TrainError::Incomplete { what };
        let slots = Slots::of(plan)?;
        let rows = slots.rows.ok_or(missing("loss"))?;
        let moments = self.layers.iter().map(|layer| plan.output(Output::Moments(*layer)));
        let moments = moments.collect::<Option<_>>().ok_or(missing("moments of a batch norm"))?;
        self.plans.push(Planned { batch, executor, slots, rows, moments });
        Ok(self.plans.len() - 1)
    }

    /// Passes over all of `images`, in the loader's batches and order. Every image counts: a last batch that is not
    /// full is a smaller batch, also in what it normalises by under `stats=batch`.
    ///
    /// # Errors
    /// As [`pass`](Self::pass); an image is broken; a moment is not finite.
    pub fn survey(&mut self, images: &Loader) -> Result<Survey, TrainError> {
        self.survey_with(images, |_| {})
    }

    /// As [`survey`](Self::survey); `observe` is told of each batch how many images it took.
    ///
    /// # Errors
    /// As [`survey`](Self::survey).
    pub fn survey_with(&mut self, images: &Loader, observe: impl FnMut(usize)) -> Result<Survey, TrainError> {
        let mut survey = Survey::over(self.layers.len());
        self.passes(images, &mut survey, |_| true, |_, _| {}, observe)?;
        Ok(survey)
    }

    /// Passes over all of `images` in batches of `batch`, or of all if they are fewer, once for each of `shuffles`
    /// seeded orders. A last batch that is not full is filled up with images from the order's beginning, which do not
    /// count a second time, so every image is judged among as many others.
    ///
    /// # Errors
    /// As [`survey`](Self::survey).
    pub fn companions(
        &mut self,
        images: &Loader,
        batch: usize,
        shuffles: usize,
        seed: u64,
    ) -> Result<Companions, TrainError> {
        self.companions_with(images, batch, shuffles, seed, |_| {})
    }

    /// As [`companions`](Self::companions); `observe` is told of each batch how many images it took.
    pub(super) fn companions_with(
        &mut self,
        images: &Loader,
        batch: usize,
        shuffles: usize,
        seed: u64,
        mut observe: impl FnMut(usize),
    ) -> Result<Companions, TrainError> {
        const COMPANIONS_STREAM: u64 = 0x636f_6d70;
        let count = images.samples().len();
        let batch = batch.min(count);
        let mut survey = Survey::over(self.layers.len());
        // Of each shuffle, the likeliest class of each image that is not broken.
        let mut likeliest = vec![vec![None; count]; shuffles];
        for (shuffle, likeliest) in likeliest.iter_mut().enumerate() {
            let mut order: Vec<usize> = (0..count).collect();
            Rng::keyed(seed, &[COMPANIONS_STREAM, shuffle as u64]).shuffle(&mut order);
            order.extend_from_within(..count.next_multiple_of(batch) - count);
            let shuffled = images.rearranged(&order, batch)?;
            let note = |place: usize, logits: &[f32]| likeliest[order[place]] = Some(greatest(logits));
            self.passes(&shuffled, &mut survey, |place| place < count, note, &mut observe)?;
        }
        let pairs = (0..shuffles).flat_map(|a| (a + 1..shuffles).map(move |b| (a, b)));
        let (mut flipped, mut compared) = (0, 0);
        for (a, b) in pairs {
            for classes in likeliest[a].iter().zip(&likeliest[b]) {
                if let (Some(a), Some(b)) = classes {
                    flipped += u64::from(a != b);
                    compared += 1;
                }
            }
        }
        let flips = if compared == 0 { 0.0 } else { flipped as f64 / compared as f64 };
        let images = likeliest.first().map_or(0, |images| images.iter().flatten().count());
        Ok(Companions { batch, images, flips, survey })
    }

    /// Adds what passes over all of `images` show to `survey`; `counts` says of a place in the loader's order whether
    /// its image counts, `note` is told the logits of those that do, and `observe` of each batch how many images it took.
    fn passes(
        &mut self,
        images: &Loader,
        survey: &mut Survey,
        counts: impl Fn(usize) -> bool,
        mut note: impl FnMut(usize, &[f32]),
        mut observe: impl FnMut(usize),
    ) -> Result<(), TrainError> {
        for batch in images.epoch(0, 0)? {
            let mut batch = batch?;
            survey.skipped += batch.skipped as u64;
            let valid = batch.valid();
            observe(valid + batch.skipped);
            if valid == 0 {
                continue;
            }
            let counted = batch.samples.iter().take_while(|&&place| counts(place)).count();
            batch.labels[counted..].fill(PADDING);
            let bytes = batch.pixels.len() / batch.labels.len() * valid;
            let seen = self.pass(Images::Bytes(&batch.pixels[..bytes]), &batch.labels[..valid])?;
            survey.batches += 1;
            survey.totals += seen.totals;
            for ((layer, survey_of), moments) in self.layers.iter().zip(&mut survey.layers).zip(&seen.moments) {
                if moments.mean.iter().chain(&moments.var).any(|value| !value.is_finite()) {
                    let layer = self.network.layers()[layer.index()].name.clone();
                    return Err(TrainError::MomentsNotFinite { layer });
                }
                survey_of.add(moments, survey.batches);
            }
            if !seen.totals.loss.is_finite() {
                let planned = self.plans.iter().find(|planned| planned.batch == valid);
                let planned = planned.ok_or(TrainError::Incomplete { what: "loss" })?;
                return Err(block("looking for the layer at fault", not_finite(&planned.executor))?);
            }
            let classes = seen.logits.len() / valid;
            for (&place, logits) in batch.samples[..counted].iter().zip(seen.logits.chunks_exact(classes)) {
                note(place, logits);
            }
        }
        Ok(())
    }
}

impl Survey {
    fn over(layers: usize) -> Self {
        Self { batches: 0, totals: Totals::default(), layers: vec![LayerSurvey::default(); layers], skipped: 0 }
    }
}

/// The position of the greatest value; of equals, the first.
pub(super) fn greatest(values: &[f32]) -> usize {
    let mut greatest = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[greatest] {
            greatest = index;
        }
    }
    greatest
}
