//! What can be measured of a network's batch norms with weights and images alone. It is for a diagnosis to go by, and
//! makes none.

use super::{Companions, LayerSurvey, Moments, Probe, Survey, Totals, TrainError, drifts};
use crate::data::Loader;
use crate::gpu::{Device, Parameters, median};
use crate::graph::{Graph, LayerId, Param, Role, Stats, Variance};
use crate::plan::Input;
use crate::rng::Rng;
use crate::tensor::HostTensor;
use serde::Serialize;

/// What [`examine`] has measured. What is called `drifts` has a value a batch norm, in nats: the mean
/// [divergence](Moments::divergence) over its channels. [`Totals`] count no sample where the images have no labels.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Checkup {
    /// Images that were looked at, broken ones not counted.
    pub images: usize,
    pub skipped: usize,
    /// The batch norms, in graph order.
    pub layers: Vec<LayerCheck>,
    /// Under running statistics; none if some layer's input is not finite then.
    pub inference: Option<Inference>,
    /// Under the statistics of the batch, by batch size, rising.
    pub sizes: Vec<SizeCheck>,
    /// The drift that chance alone makes among so few images: a quarter of that between two halves of them, each in
    /// batches of one size under their own statistics.
    pub chance: Vec<f64>,
    /// What would be if the weights meant something else. Each is tried only where the drift asks for an explanation.
    pub trials: Vec<Trial>,
}

/// Under running statistics.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Inference {
    /// In batches of the largest size.
    pub totals: Totals,
    /// Image by image.
    pub single: Totals,
    /// How far the stored moments are from what the batch norm sees.
    pub drifts: Vec<f64>,
}

/// Under the statistics of batches of one size.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SizeCheck {
    /// Images per batch.
    pub batch: usize,
    pub totals: Totals,
    /// See [`Companions::flips`].
    pub flips: f64,
    /// How far the stored moments are from what training on many such batches would store: the mean of their means and
    /// of their unbiased variances.
    pub drifts: Vec<f64>,
}

/// What is tried instead.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assumption {
    /// Another ε in every batch norm.
    Eps(f32),
    /// Other constants to normalise images by: `(value − mean) / std` of values from 0 to 1.
    Input { mean: [f32; 3], std: [f32; 3] },
    /// What is stored as a variance is its square root.
    StandardDeviation,
    /// What is stored as a variance is one over its square root.
    InverseStandardDeviation,
    /// What is stored as a variance is one over it.
    Precision,
}

/// What the drifts would be under an assumption.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Trial {
    pub assumption: Assumption,
    /// In inference for [`Assumption::Eps`] and [`Assumption::Input`]; otherwise under the statistics of the largest
    /// batches.
    pub drifts: Vec<f64>,
    /// Where inference was tried.
    pub totals: Option<Totals>,
}

/// One batch norm.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LayerCheck {
    pub name: String,
    pub channels: usize,
    pub eps: f64,
    /// Updates of the running moments that the file counts.
    pub updates: u64,
    /// Whether the stored moments are those of a new layer: all means 0 and all variances 1, exactly.
    pub reset: bool,
    /// Stored means and variances that are not finite.
    pub not_finite: usize,
    /// Stored variances below 0.
    pub negative: usize,
    /// Channels through which next to nothing comes: the variance of the input, or γ², is below [`DEAD`] times the
    /// layer's median.
    pub dead: usize,
    /// The channel that drifted most, and how far: in inference, or under the largest batches if that is not finite.
    pub worst_channel: usize,
    pub worst_drift: f64,
    /// The squared distance of the stored means from those of the largest batches, in units of the variance, summed
    /// over the channels; and how much of it would be expected if the stored means were those of a single image. Their
    /// ratio tells of how many images the stored means are.
    pub deviation: f64,
    pub deviation_of_one: f64,
}

/// How to look at a network.
#[derive(Clone, Copy, Debug)]
pub struct Examination<'a> {
    pub images: &'a Loader,
    /// Images per batch; above the number of images they count as that. If all are below 32, 32 is looked at, too: to
    /// sound statistics, smaller batches are off by themselves. If none is a quarter of the images or less, that quarter
    /// is looked at, too: batches that differ from each other are needed to know what is chance.
    pub sizes: &'a [usize],
    /// Decides which images are together in a batch.
    pub seed: u64,
}

/// See [`LayerCheck::dead`].
pub const DEAD: f64 = 1e-6;

/// Images of a batch whose own statistics are like those of many.
const LARGE: usize = 32;

/// A mean drift in nats above which other explanations are tried.
const UNEXPLAINED: f64 = 0.02;

/// Values of ε that networks are trained with: PyTorch's and TensorFlow's.
const OTHER_EPS: [f32; 2] = [1e-5, 1e-3];

/// What images are normalised by: torchvision's constants, from −1 to 1, from 0 to 1, and from 0 to 255.
const OTHER_INPUTS: [([f32; 3], [f32; 3]); 4] = [
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([0.5; 3], [0.5; 3]),
    ([0.0; 3], [1.0; 3]),
    ([0.0; 3], [1.0 / 255.0; 3]),
];

/// Looks at `network` with `tensors`, one a parameter: under running statistics, and in batches of each size under the
/// batches' own, in seeded orders. `observe` is told what is looked at, how many images were shown so far, and how many will
/// be, each as often as it is shown. Changes nothing, trains nothing.
///
/// # Errors
/// The network has no batch norm; an image is broken; under batch statistics, some layer's input is not finite; the
/// device refuses a batch.
pub fn examine(
    device: &Device,
    network: &Graph,
    tensors: &[HostTensor],
    input: Input,
    how: &Examination<'_>,
    mut observe: impl FnMut(&str, u64, u64),
) -> Result<Checkup, TrainError> {
    /// Orders in which each batch size is looked at.
    const SHUFFLES: usize = 3;
    const HALVES_STREAM: u64 = 0x6861_6c66;
    let params = Parameters::upload(device, network, tensors)?;
    let probe = |network: &Graph, input, stats| Probe::new(device, network, &params, input, move |_| stats);
    let &Examination { images, seed, .. } = how;
    let count = images.samples().len();
    let mut sizes: Vec<usize> = how.sizes.iter().map(|&size| size.clamp(1, count)).collect();
    if sizes.iter().all(|&size| size < LARGE) {
        sizes.push(count.clamp(1, LARGE));
    }
    if sizes.iter().all(|size| size * 4 > count) {
        sizes.push((count / 4).max(1));
    }
    sizes.sort_unstable();
    sizes.dedup();

    // Alone, an image has no companions that could be others.
    let shuffles = |size: usize| if size == 1 { 1 } else { SHUFFLES };
    let by_size: usize = sizes.iter().map(|&size| shuffles(size) * count.next_multiple_of(size)).sum();
    let mut shown = Shown { observe: &mut observe, stage: String::new(), done: 0, of: (by_size + 3 * count) as u64 };
    let mut sound = 0;
    let mut checks = Vec::new();
    let mut surveys = Vec::new();
    for &size in &sizes {
        shown.begin(&format!("batch statistics, batches of {size}"));
        let mut probe = probe(network, input, Stats::Batch)?;
        let companions = probe.companions_with(images, size, shuffles(size), seed, |images| shown.add(images))?;
        let Companions { batch, images, flips, survey } = companions;
        sound = images;
        checks.push(SizeCheck { batch, totals: survey.totals, flips, drifts: Vec::new() });
        surveys.push(survey);
    }
    let largest = surveys.last().ok_or(TrainError::Incomplete { what: "batch size" })?;

    let in_batches = images.rearranged(&(0..count).collect::<Vec<_>>(), sizes[sizes.len() - 1])?;
    shown.begin("running statistics");
    let mut running = probe(network, input, Stats::Running)?;
    let layers = running.layers().to_vec();
    let seen = finite(running.survey_with(&in_batches, |images| shown.add(images)))?;
    let inference = match &seen {
        Some(seen) => {
            shown.begin("running statistics, image by image");
            let single = running.companions_with(images, 1, 1, seed, |images| shown.add(images))?.survey.totals;
            Some(Inference { totals: seen.totals, single, drifts: drifts(network, tensors, seen) })
        }
        None => None,
    };

    let stored = stored(network, tensors);
    let subject = Subject { network, tensors, layers: &layers, stored: &stored, count };
    for (check, survey) in checks.iter_mut().zip(&surveys) {
        check.drifts = subject.drifts_from(survey, |moments| moments.clone());
    }
    let chance = match count {
        0 | 1 => vec![f64::INFINITY; layers.len()],
        _ => {
            shown.begin("batch statistics, halves of the images");
            let mut order: Vec<usize> = (0..count).collect();
            Rng::keyed(seed, &[HALVES_STREAM]).shuffle(&mut order);
            let half = count / 2;
            // As large as the largest that was asked for, and all alike.
            let batch = half.div_ceil(half.div_ceil(sizes[sizes.len() - 1]));
            let mut probe = probe(network, input, Stats::Batch)?;
            let mut half =
                |places: &[usize]| probe.survey_with(&images.rearranged(places, batch)?, |images| shown.add(images));
            let (one, other) = (half(&order[..count / 2])?, half(&order[count / 2..count / 2 * 2])?);
            let halves = one.layers.iter().zip(&other.layers).enumerate();
            let drift = |(i, (one, other))| {
                subject.would_store(i, one).drift(&subject.would_store(i, other), subject.eps(i)) / 4.0
            };
            halves.map(drift).collect()
        }
    };
    let several = sizes.iter().rposition(|size| size * 4 <= count).unwrap_or(0);
    let spread = (sizes[several], &surveys[several]);
    let seen_most = seen.as_ref().unwrap_or(largest);
    let checked = (0..layers.len()).map(|i| subject.layer(i, &seen_most.layers[i], &largest.layers[i], spread));
    let checked = checked.collect();

    let mut trials = Vec::new();
    if let Some(inference) = &inference
        && mean(&inference.drifts) > UNEXPLAINED
    {
        let others = others(network, &layers, input);
        shown.of += (others.len() * count) as u64;
        for (assumption, network, input) in others {
            shown.begin("running statistics, other constants");
            let mut probe = probe(&network, input, Stats::Running)?;
            if let Some(seen) = finite(probe.survey_with(&in_batches, |images| shown.add(images)))? {
                let drifts = drifts(&network, tensors, &seen);
                trials.push(Trial { assumption, drifts, totals: Some(seen.totals) });
            }
        }
    }
    if checks.last().is_some_and(|check| mean(&check.drifts) > UNEXPLAINED) {
        for assumption in [Assumption::StandardDeviation, Assumption::InverseStandardDeviation, Assumption::Precision] {
            let meant = |stored: &Moments| {
                let var = stored.var.iter().map(|&var| assumption.variance(var)).collect();
                Moments { var, ..stored.clone() }
            };
            trials.push(Trial { assumption, drifts: subject.drifts_from(largest, meant), totals: None });
        }
    }
    Ok(Checkup { images: sound, skipped: count - sound, layers: checked, inference, sizes: checks, chance, trials })
}

impl Assumption {
    /// The variance that `stored` stands for.
    fn variance(self, stored: f64) -> f64 {
        match self {
            Self::Eps(_) | Self::Input { .. } => stored,
            Self::StandardDeviation => stored * stored,
            Self::InverseStandardDeviation => 1.0 / (stored * stored).max(f64::MIN_POSITIVE),
            Self::Precision => 1.0 / stored.max(f64::MIN_POSITIVE),
        }
    }
}

/// How many images were shown.
struct Shown<'a> {
    observe: &'a mut dyn FnMut(&str, u64, u64),
    stage: String,
    done: u64,
    of: u64,
}

impl Shown<'_> {
    fn begin(&mut self, stage: &str) {
        stage.clone_into(&mut self.stage);
        self.add(0);
    }

    fn add(&mut self, images: usize) {
        self.done += images as u64;
        (self.observe)(&self.stage, self.done, self.of);
    }
}

/// None where a layer's input is not finite.
fn finite(survey: Result<Survey, TrainError>) -> Result<Option<Survey>, TrainError> {
    match survey {
        Ok(survey) => Ok(Some(survey)),
        Err(TrainError::MomentsNotFinite { .. } | TrainError::OutputNotFinite { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The network and its input under constants other than its own.
fn others(network: &Graph, layers: &[LayerId], input: Input) -> Vec<(Assumption, Graph, Input)> {
    let mut others = Vec::new();
    for eps in OTHER_EPS {
        // Some frameworks write 1.001e-5.
        let same = |layer: &LayerId| network.eps(*layer).is_some_and(|own| (own / eps).ln().abs() < 0.5);
        if !layers.iter().all(same) {
            others.push((Assumption::Eps(eps), network.with_eps(eps), input));
        }
    }
    if let Input::Bytes { mean: own_mean, std: own_std, bgr } = input {
        for (mean, std) in OTHER_INPUTS {
            if (mean, std) != (own_mean, own_std) {
                let input = Input::Bytes { mean, std, bgr };
                others.push((Assumption::Input { mean, std }, network.clone(), input));
            }
        }
    }
    others
}

/// The running moments of every batch norm, in graph order.
fn stored(network: &Graph, tensors: &[HostTensor]) -> Vec<Moments> {
    let moments = network.params().iter().zip(tensors).filter(|(param, _)| param.role == Role::Moments);
    moments.map(|(_, tensor)| Moments::stored(tensor)).collect()
}

/// What is looked at.
struct Subject<'a> {
    network: &'a Graph,
    tensors: &'a [HostTensor],
    layers: &'a [LayerId],
    /// In the order of `layers`.
    stored: &'a [Moments],
    /// Images.
    count: usize,
}

impl Subject<'_> {
    fn eps(&self, index: usize) -> f64 {
        f64::from(self.network.eps(self.layers[index]).unwrap_or_default())
    }

    /// The moments that training on batches like these would store.
    fn would_store(&self, index: usize, seen: &LayerSurvey) -> Moments {
        would_store(seen, self.network.layers()[self.layers[index].index()].stored_var())
    }

    /// How far the stored moments, as `meant`, are from what training on batches like those of `survey` would store.
    fn drifts_from(&self, survey: &Survey, meant: impl Fn(&Moments) -> Moments) -> Vec<f64> {
        let layers = self.stored.iter().zip(&survey.layers).enumerate();
        layers
            .map(|(index, (stored, seen))| meant(stored).drift(&self.would_store(index, seen), self.eps(index)))
            .collect()
    }

    /// `seen` is what inference shows, `batch` what the largest batches show; `spread` are batches of some size, of
    /// which there are several, and what they show.
    fn layer(&self, index: usize, seen: &LayerSurvey, batch: &LayerSurvey, spread: (usize, &Survey)) -> LayerCheck {
        let (stored, eps) = (&self.stored[index], self.eps(index));
        let layer = &self.network.layers()[self.layers[index].index()];
        let tensor = |role: Role| {
            let wanted = |(_, param): &(usize, &Param)| param.layer == self.layers[index] && param.role == role;
            let found = self.network.params().iter().enumerate().find(wanted);
            found.map_or(&[][..], |(index, _)| &self.tensors[index].data)
        };
        let squares: Vec<f64> =
            tensor(Role::Affine).iter().take(layer.shape.c()).map(|&g| f64::from(g).powi(2)).collect();
        let below = |values: &[f64]| {
            let least = DEAD * median(values.to_vec());
            values.iter().map(|value| *value < least).collect::<Vec<_>>()
        };
        let dead =
            below(&seen.pooled.var).into_iter().zip(below(&squares)).filter(|&(input, gamma)| input || gamma).count();

        let (size, spread) = (spread.0 as f64, &spread.1.layers[index]);
        // Batches that share out a finite number of images differ less than independent ones would.
        let images = self.count as f64;
        let finite = if images > size { (images - 1.0) / (images - size) } else { 1.0 };
        let scale = |c: usize| 1.0 / (batch.pooled.var[c] + eps);
        let apart = |c: usize| (stored.mean[c] - batch.mean[c]).powi(2) * scale(c);
        let between = spread.between();
        let channels = || 0..stored.mean.len();

        let divergence = stored.divergence(&seen.pooled, eps);
        let worst = channels().max_by(|&a, &b| divergence[a].total_cmp(&divergence[b])).unwrap_or(0);
        LayerCheck {
            name: layer.name.clone(),
            channels: layer.shape.c(),
            eps,
            updates: tensor(Role::Moments).get(2 * layer.shape.stored_c()).map_or(0, |&count| count as u64),
            reset: stored.mean.iter().all(|&mean| mean == 0.0) && stored.var.iter().all(|&var| var == 1.0),
            not_finite: stored.mean.iter().chain(&stored.var).filter(|value| !value.is_finite()).count(),
            negative: stored.var.iter().filter(|var| **var < 0.0).count(),
            dead,
            worst_channel: worst,
            worst_drift: divergence.get(worst).copied().unwrap_or(0.0),
            deviation: channels().map(apart).sum(),
            deviation_of_one: channels().map(|c| between[c] * size * finite * scale(c)).sum(),
        }
    }
}

/// The moments that training on batches like these would store.
fn would_store(seen: &LayerSurvey, var: Variance) -> Moments {
    let var = match var {
        Variance::Biased => &seen.biased,
        Variance::Unbiased => &seen.unbiased,
    };
    Moments { count: 0, mean: seen.mean.clone(), var: var.clone() }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
