//! From measurements of a network's batch norms to what is wrong with them.
//!
//! Each fault has a signature, and those that explain the drift of the statistics are asked in turn: the first that
//! fits is the cause, and what it explains is not blamed on another. What tells them apart:
//!
//! | fault | signature |
//! |---|---|
//! | impossible | a stored mean or variance that is not finite, or a variance below 0 |
//! | reset | means 0 and variances 1, exactly |
//! | convention | drift falls to a quarter if the variance is read as its root, its inverse, or both |
//! | epsilon, input | drift in inference falls to a quarter with another ε, or with images normalised otherwise |
//! | small batch | stored moments are half as far from those of small batches as from those of large ones |
//! | keep | stored means are as far off as those of a few images, the first batch norm's no more than the others |
//! | foreign | the first batch norm, whose input no statistics precede, is off; under batch statistics all is well |
//! | domain shift | it is off, and the weights do not do well, or there are no labels to tell |
//! | stale | the first batch norm is right, and the others are off |
//! | tuned | any of these three, but the weights do better with the statistics as they are |

use crate::train::{Assumption, Checkup, Inference, LayerCheck, SizeCheck, Totals, Trial};
use serde::Serialize;

/// What can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Statistics that no values have.
    Impossible,
    /// Statistics of a new layer.
    Reset,
    /// Something else is stored as the variance.
    Convention,
    /// The weights were trained with another ε.
    Epsilon,
    /// The weights were trained on images that were normalised otherwise.
    Input,
    /// Statistics of batches that were too small.
    SmallBatch,
    /// Statistics that keep too little of the past: those of a few images.
    Keep,
    /// Statistics of other images than the weights are good at.
    ForeignStatistics,
    /// Weights and statistics of other images.
    DomainShift,
    /// Statistics that did not follow the weights.
    StaleStatistics,
    /// No fault, but good to know: statistics that are not the images', and that the weights are tuned to all the same.
    TunedStatistics,
    /// Channels through which nothing comes.
    DeadChannels,
}

impl Fault {
    /// A headline.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Impossible => "impossible statistics",
            Self::Reset => "statistics were reset",
            Self::Convention => "another convention for the variance",
            Self::Epsilon => "suspicious epsilon",
            Self::Input => "images are normalised otherwise",
            Self::SmallBatch => "statistics of too small batches",
            Self::Keep => "suspicious keep",
            Self::ForeignStatistics => "statistics of other images",
            Self::DomainShift => "domain shift",
            Self::StaleStatistics => "stale statistics",
            Self::TunedStatistics => "frozen statistics that the weights are tuned to",
            Self::DeadChannels => "dead channels",
        }
    }
}

/// How sure a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Something else may well be the reason.
    Possible,
    /// Hard to explain otherwise.
    Likely,
    /// As good as proved.
    Sure,
}

impl Confidence {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Sure => "sure",
        }
    }
}

/// What helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// New statistics over images like those that the network is for: [`crate::train::recalibrate`].
    Recalibrate,
    /// Fine-tuning under the recipe `bn-only`, with new statistics at the end.
    FineTune,
}

/// A fault with its evidence.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finding {
    pub fault: Fault,
    pub confidence: Confidence,
    /// The numbers that it rests on, in a sentence or two.
    pub evidence: String,
    /// What to do about it.
    pub advice: String,
    /// Where a command does it.
    pub remedy: Option<Remedy>,
}

/// Fewer images say nothing of statistics, except that no values can have them, that they are a new layer's, or that
/// channels are dead.
pub const FEWEST_IMAGES: usize = 16;

/// What is wrong, the surest first; nothing for a healthy network, and next to nothing below [`FEWEST_IMAGES`].
pub fn diagnose(checkup: &Checkup) -> Vec<Finding> {
    let facts = [impossible, reset];
    let estimates =
        if checkup.images < FEWEST_IMAGES { &[][..] } else { &[convention, constants, small_batch, keep, elsewhere] };
    let cause = facts.iter().chain(estimates).find_map(|cause| cause(checkup));
    let mut findings: Vec<Finding> = cause.into_iter().chain(dead(checkup)).collect();
    // Stable: of equally sure ones the cause comes first.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.confidence));
    findings
}

fn impossible(checkup: &Checkup) -> Option<Finding> {
    let wrong: Vec<&LayerCheck> = checkup.layers.iter().filter(|l| l.not_finite + l.negative > 0).collect();
    let first = wrong.first()?;
    let (not_finite, negative) = wrong.iter().fold((0, 0), |(a, b), layer| (a + layer.not_finite, b + layer.negative));
    Some(Finding {
        fault: Fault::Impossible,
        confidence: Confidence::Sure,
        evidence: format!(
            "{not_finite} stored means and variances are not finite and {negative} variances are below 0, in {} of {} \
             batch norms, `{}` first",
            wrong.len(),
            checkup.layers.len(),
            first.name
        ),
        advice: "the file is damaged, or training diverged; statistics can be estimated anew if the weights are sound"
            .into(),
        remedy: Some(Remedy::Recalibrate),
    })
}

fn reset(checkup: &Checkup) -> Option<Finding> {
    let reset: Vec<&LayerCheck> = checkup.layers.iter().filter(|layer| layer.reset).collect();
    let first = reset.first()?;
    let uncounted = reset.iter().filter(|layer| layer.updates == 0).count();
    Some(Finding {
        fault: Fault::Reset,
        confidence: Confidence::Sure,
        evidence: format!(
            "the means are 0 and the variances 1, exactly, in {} of {} batch norms, `{}` first; {uncounted} of them count \
             no update{}",
            reset.len(),
            checkup.layers.len(),
            first.name,
            accuracies(checkup).map_or_else(String::new, |text| format!("; {text}")),
        ),
        advice:
            "estimate them; and look for what set them back, such as a model that was built anew and was given its \
                 parameters only"
                .into(),
        remedy: Some(Remedy::Recalibrate),
    })
}

fn convention(checkup: &Checkup) -> Option<Finding> {
    let drift = mean(&largest(checkup)?.drifts);
    let read = |trial: &&Trial| !matches!(trial.assumption, Assumption::Eps(_) | Assumption::Input { .. });
    let (trial, confidence) = explained(checkup.trials.iter().filter(read), drift)?;
    let (name, remedy) = match trial.assumption {
        Assumption::StandardDeviation => ("the standard deviation", "square it"),
        Assumption::InverseStandardDeviation => ("one over the standard deviation", "square it and invert it"),
        Assumption::Precision => ("one over the variance", "invert it"),
        Assumption::Eps(_) | Assumption::Input { .. } => return None,
    };
    Some(Finding {
        fault: Fault::Convention,
        confidence,
        evidence: format!(
            "what is stored as the variance is {} nats from what the batch norms see, but read as {name} only {}",
            nats(drift),
            nats(mean(&trial.drifts))
        ),
        advice: format!("the file follows another convention: {remedy} where it is converted, or estimate it anew"),
        remedy: Some(Remedy::Recalibrate),
    })
}

/// ε, and what images are normalised by.
fn constants(checkup: &Checkup) -> Option<Finding> {
    let inference = checkup.inference.as_ref()?;
    let drift = mean(&inference.drifts);
    let tried = |trial: &&Trial| matches!(trial.assumption, Assumption::Eps(_) | Assumption::Input { .. });
    let (trial, confidence) = explained(checkup.trials.iter().filter(tried), drift)?;
    let (fault, constants, advice) = match trial.assumption {
        Assumption::Eps(eps) => {
            // Layers that have that ε already are not at fault.
            let other = checkup.layers.iter().map(|layer| layer.eps as f32).find(|own| *own != eps);
            let own = other.unwrap_or_default();
            (
                Fault::Epsilon,
                format!("ε = {eps:e} instead of {own:e}"),
                format!(
                    "the weights were trained with ε = {eps:e}: for inference with {own:e}, multiply each γ by \
                     √((variance + {own:e}) / (variance + {eps:e})) where the file is converted"
                ),
            )
        }
        Assumption::Input { mean, std } => (
            Fault::Input,
            format!("images normalised by means {mean:?} and deviations {std:?}"),
            "the weights were trained on images that were normalised like that: new statistics make up for it in part, \
             fine-tuning for the rest"
                .into(),
        ),
        _ => return None,
    };
    let mut evidence = format!(
        "in inference, the stored statistics are {} nats from what the batch norms see; with {constants} they would be {}",
        nats(drift),
        nats(mean(&trial.drifts)),
    );
    if let Some((before, after)) = accuracy(inference.totals).zip(trial.totals.and_then(accuracy)) {
        evidence += &format!(", and accuracy {} instead of {}", percent(after), percent(before));
    }
    let remedy = (fault == Fault::Input).then_some(Remedy::FineTune);
    Some(Finding { fault, confidence, evidence, advice, remedy })
}

/// The trial that explains `drift` best, if one does: next to nothing is left of it then.
fn explained<'a>(trials: impl Iterator<Item = &'a Trial>, drift: f64) -> Option<(&'a Trial, Confidence)> {
    const LEFT: f64 = 0.05;
    let best = trials.min_by(|a, b| mean(&a.drifts).total_cmp(&mean(&b.drifts)))?;
    match mean(&best.drifts) / drift {
        _ if mean(&best.drifts) > LEFT => None,
        rest if rest < 0.1 => Some((best, Confidence::Sure)),
        rest if rest < 0.25 => Some((best, Confidence::Likely)),
        _ => None,
    }
}

fn small_batch(checkup: &Checkup) -> Option<Finding> {
    let large = largest(checkup)?;
    let nearest = checkup.sizes.iter().min_by(|a, b| mean(&a.drifts).total_cmp(&mean(&b.drifts)))?;
    let (drift, near) = (mean(&large.drifts), mean(&nearest.drifts));
    if drift < floor(checkup) || near > 0.5 * drift {
        return None;
    }
    let images = if nearest.batch == 1 { "a single image".to_owned() } else { format!("{} images", nearest.batch) };
    Some(Finding {
        fault: Fault::SmallBatch,
        confidence: if near < 0.25 * drift { Confidence::Sure } else { Confidence::Likely },
        evidence: format!(
            "the stored statistics are {} nats from what training on batches of {images} gives, but {} from what batches \
             of {} give{}",
            nats(near),
            nats(drift),
            large.batch,
            accuracies(checkup).map_or_else(String::new, |text| format!("; {text}")),
        ),
        advice: "estimate them anew; and train with larger batches (accumulating gradients does not help), or with \
                 stats=running, as the recipes keras-guide and full-frozen-bn do"
            .into(),
        remedy: Some(Remedy::Recalibrate),
    })
}

fn keep(checkup: &Checkup) -> Option<Finding> {
    /// Fewer are no batch, and so large a deviation is no noise.
    const FEWEST: f64 = 6.0;
    /// More may be a sound average: 76 are that of batches of 4 with a keep of 0.9.
    const MOST: f64 = 80.0;
    let drift = mean(&largest(checkup)?.drifts);
    let images = averaged(checkup)?;
    if drift < LEAST || !(FEWEST..=MOST.min(checkup.images as f64 / 2.0)).contains(&images) || shifted(checkup) {
        return None;
    }
    Some(Finding {
        fault: Fault::Keep,
        confidence: if images < 0.6 * MOST { Confidence::Likely } else { Confidence::Possible },
        evidence: format!(
            "the stored means differ from those of your images at random, in all layers alike, as if they had been averaged \
             over only {images:.0} images: about one batch. With batches of 32, a KEEP of 0.9 averages over about 600 \
             images, and one of 0.99 over 6,400{}",
            accuracies(checkup).map_or_else(String::new, |text| format!("; {text}")),
        ),
        advice: "if you set KEEP yourself, check that it is not PyTorch's momentum, which is 1 − KEEP. Otherwise recalibrate. \
                 Very short training, tiny batches, and images with other noise than the training images look the same"
            .into(),
        remedy: Some(Remedy::Recalibrate),
    })
}

/// Statistics that are not of these images and these weights, for whatever reason.
fn elsewhere(checkup: &Checkup) -> Option<Finding> {
    let large = largest(checkup)?;
    let drift = mean(&large.drifts);
    if drift < floor(checkup) {
        return None;
    }
    let first = large.drifts.first().copied().unwrap_or(0.0);
    let at_input = first > 0.25 * drift;
    let mut evidence = format!(
        "the stored statistics are {} nats on average from those of batches of {}, and {} in the first batch norm, \
         whose input depends on images and weights alone",
        nats(drift),
        large.batch,
        nats(first)
    );
    let shown = accuracy(large.totals).zip(running(checkup));
    if let Some(text) = accuracies(checkup) {
        evidence += &format!("; {text}");
    }
    let source = if at_input { Fault::ForeignStatistics } else { Fault::StaleStatistics };
    let (fault, confidence) = match shown {
        // Without labels, nothing tells whether the weights suit the images.
        None if at_input => (Fault::DomainShift, Confidence::Likely),
        None => (source, Confidence::Likely),
        Some((batch, running)) => {
            let margin = margin(batch, running, checkup.images);
            let well = batch > 0.5;
            match batch - running {
                loss if loss < -margin => (Fault::TunedStatistics, Confidence::Likely),
                gain if gain > margin && well => (source, Confidence::Sure),
                _ if !well && at_input => (Fault::DomainShift, Confidence::Likely),
                _ if drift > 10.0 * floor(checkup) => (source, Confidence::Likely),
                _ => (source, Confidence::Possible),
            }
        }
    };
    let (advice, remedy) = match fault {
        Fault::TunedStatistics => (
            "leave them: the weights were trained with stats=running and rely on these very numbers; new statistics \
             would cost accuracy",
            None,
        ),
        Fault::DomainShift => (
            "statistics and weights are of other images: new statistics are a beginning, fine-tuning does the rest",
            Some(Remedy::FineTune),
        ),
        Fault::StaleStatistics => (
            "the weights moved on and the statistics did not: estimate them anew; and train with update=ema(0.9) where \
             stats=batch",
            Some(Remedy::Recalibrate),
        ),
        _ => ("estimate them anew, over images like those that the network is for", Some(Remedy::Recalibrate)),
    };
    Some(Finding { fault, confidence, evidence, advice: advice.into(), remedy })
}

fn dead(checkup: &Checkup) -> Option<Finding> {
    let layers: Vec<&LayerCheck> = checkup.layers.iter().filter(|layer| layer.dead > 0).collect();
    let most = layers.iter().max_by_key(|layer| layer.dead)?;
    let (dead, all) = (
        layers.iter().map(|layer| layer.dead).sum::<usize>(),
        checkup.layers.iter().map(|layer| layer.channels).sum::<usize>(),
    );
    Some(Finding {
        fault: Fault::DeadChannels,
        // That they are dead is a fact; that it matters is not.
        confidence: Confidence::Possible,
        evidence: format!(
            "{dead} of {all} channels let next to nothing through, {} of the {} in `{}`",
            most.dead, most.channels, most.name
        ),
        advice: "they do no harm, and cost what the others cost; if they are many, the learning rate or the weight \
                 decay was too high"
            .into(),
        remedy: None,
    })
}

/// A mean drift in nats that is not worth a word: means off by a twentieth of a standard deviation.
const LEAST: f64 = 0.004;

/// The mean drift that is more than what so few images leave uncertain.
fn floor(checkup: &Checkup) -> f64 {
    LEAST.max(4.0 * mean(&checkup.chance))
}

/// Of how many images the stored means are, going by how far off they are; none if of too many to tell.
fn averaged(checkup: &Checkup) -> Option<f64> {
    let sum = |of: fn(&LayerCheck) -> f64| checkup.layers.iter().map(of).sum::<f64>();
    let ratio = sum(|layer| layer.deviation) / sum(|layer| layer.deviation_of_one);
    // The images that were looked at are a sample, too.
    let share = ratio - 1.0 / checkup.images.max(1) as f64;
    (share > 0.0).then(|| 1.0 / share)
}

/// Whether the first batch norm is off by far more than the others, as it is where the images are others: every
/// normalisation after it takes some of the difference away. Chance, on the other hand, is the same everywhere, though
/// a first batch norm sees so few kinds of things that chance alone may make a factor of three.
fn shifted(checkup: &Checkup) -> bool {
    let images = checkup.layers.iter().map(|layer| layer.deviation_of_one / layer.deviation.max(f64::MIN_POSITIVE));
    let mut images: Vec<f64> = images.collect();
    let first = images.first().copied().unwrap_or(0.0);
    images.sort_by(f64::total_cmp);
    first * 4.0 < images.get(images.len() / 2).copied().unwrap_or(0.0)
}

fn largest(checkup: &Checkup) -> Option<&SizeCheck> {
    checkup.sizes.last()
}

/// Accuracy in inference; 0 if nothing finite comes out, none without labels.
fn running(checkup: &Checkup) -> Option<f64> {
    match &checkup.inference {
        Some(Inference { totals, .. }) => accuracy(*totals),
        None => accuracy(largest(checkup)?.totals).map(|_| 0.0),
    }
}

/// None without labels.
fn accuracy(totals: Totals) -> Option<f64> {
    (totals.samples > 0).then(|| totals.accuracy())
}

/// Three standard errors of the difference of two accuracies on so many images.
fn margin(a: f64, b: f64, images: usize) -> f64 {
    let both = (a + b) / 2.0;
    3.0 * (2.0 * both * (1.0 - both) / images.max(1) as f64).sqrt()
}

/// Accuracy with the running statistics and with the batches' own, in words.
fn accuracies(checkup: &Checkup) -> Option<String> {
    let large = largest(checkup)?;
    let (own, running) = accuracy(large.totals).zip(running(checkup))?;
    Some(format!(
        "accuracy is {} with them and {} with the statistics of batches of {}",
        percent(running),
        percent(own),
        large.batch
    ))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Three digits, without an exponent for what is not tiny.
fn nats(drift: f64) -> String {
    match drift {
        drift if drift < 1e-4 => "less than 0.0001".into(),
        drift if drift < 0.1 => format!("{drift:.4}"),
        drift if drift < 100.0 => format!("{drift:.2}"),
        drift if drift < 1e6 => format!("{drift:.0}"),
        _ => "millions of".into(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four batch norms whose statistics are right, seen through 100 images.
    fn healthy() -> Checkup {
        let layer = LayerCheck {
            name: "bn".into(),
            channels: 8,
            eps: 1e-5,
            updates: 100,
            reset: false,
            not_finite: 0,
            negative: 0,
            dead: 0,
            worst_channel: 0,
            worst_drift: 0.01,
            deviation: 0.004,
            deviation_of_one: 0.4,
        };
        let size = |batch, top1| SizeCheck { batch, totals: totals(top1), flips: 0.0, drifts: vec![0.002; 4] };
        Checkup {
            images: 100,
            skipped: 0,
            layers: vec![layer; 4],
            inference: Some(Inference { totals: totals(90), single: totals(90), drifts: vec![0.002; 4] }),
            sizes: vec![size(2, 30), size(32, 90)],
            chance: vec![0.001; 4],
            trials: vec![],
        }
    }

    fn totals(top1: u64) -> Totals {
        Totals { loss: 0.0, top1, top5: 100, samples: 100 }
    }

    /// With statistics that are off by `drifts` under large batches, and so many images right in inference and under
    /// large batches.
    fn off(drifts: [f64; 4], right: [u64; 2]) -> Checkup {
        let mut checkup = healthy();
        for (layer, drift) in checkup.layers.iter_mut().zip(drifts) {
            layer.deviation = drift * 8.0;
        }
        checkup.sizes[0].drifts = drifts.map(|drift| drift * 1.5).to_vec();
        checkup.sizes[1].drifts = drifts.to_vec();
        checkup.sizes[1].totals = totals(right[1]);
        checkup.inference =
            Some(Inference { totals: totals(right[0]), single: totals(right[0]), drifts: drifts.to_vec() });
        checkup
    }

    fn found(checkup: &Checkup) -> Option<(Fault, Confidence)> {
        diagnose(checkup).first().map(|finding| (finding.fault, finding.confidence))
    }

    #[test]
    fn accuracy_tells_what_other_statistics_mean() {
        use Confidence::{Likely, Possible, Sure};
        let (foreign, stale) = ([4.0, 1.0, 1.0, 1.0], [0.004, 1.0, 1.0, 1.0]);
        assert_eq!(found(&healthy()), None);
        assert_eq!(found(&off(foreign, [40, 90])), Some((Fault::ForeignStatistics, Sure)));
        assert_eq!(found(&off(stale, [40, 90])), Some((Fault::StaleStatistics, Sure)));
        // Chance may be behind a difference of a few images.
        assert_eq!(found(&off(foreign, [86, 90])), Some((Fault::ForeignStatistics, Likely)));
        assert_eq!(found(&off([0.06, 0.02, 0.02, 0.02], [86, 90])), Some((Fault::ForeignStatistics, Possible)));
        assert_eq!(found(&off(foreign, [10, 20])), Some((Fault::DomainShift, Likely)));
        let tuned = off(foreign, [90, 60]);
        assert_eq!(found(&tuned), Some((Fault::TunedStatistics, Likely)));
        assert_eq!(diagnose(&tuned)[0].remedy, None, "new statistics would do harm");
        // Where nothing finite comes out of inference, nothing is right.
        let overflow = Checkup { inference: None, ..off(stale, [0, 90]) };
        assert_eq!(found(&overflow), Some((Fault::StaleStatistics, Sure)));
        assert!(diagnose(&overflow)[0].evidence.contains("accuracy is 0.0 % with them and 90.0 %"));
    }

    #[test]
    fn few_images_prove_nothing_but_facts() {
        let mut few = Checkup { images: 15, ..off([4.0, 1.0, 1.0, 1.0], [40, 90]) };
        assert_eq!(found(&few), None);
        few.layers[2].reset = true;
        assert_eq!(found(&few), Some((Fault::Reset, Confidence::Sure)));
    }

    #[test]
    fn chance_is_the_same_everywhere_and_a_shift_is_not() {
        // As far off as the means of 25 images, all through the network.
        let mut chance = off([0.006; 4], [88, 90]);
        for layer in &mut chance.layers {
            layer.deviation = layer.deviation_of_one / 25.0;
        }
        assert_eq!(found(&chance), Some((Fault::Keep, Confidence::Likely)));
        assert!(diagnose(&chance)[0].evidence.contains("over only 33 images"), "100 more were looked at");
        let mut shift = chance.clone();
        shift.layers[0].deviation *= 5.0;
        assert_ne!(found(&shift).map(|found| found.0), Some(Fault::Keep));
        // Those of two or three are no batch's.
        for layer in &mut chance.layers {
            layer.deviation = layer.deviation_of_one / 2.5;
        }
        assert_ne!(found(&chance).map(|found| found.0), Some(Fault::Keep));
    }

    #[test]
    fn an_explanation_must_leave_next_to_nothing() {
        let mut checkup = off([1.0; 4], [40, 90]);
        let trial = |assumption, left| Trial { assumption, drifts: vec![left; 4], totals: Some(totals(88)) };
        checkup.trials = vec![trial(Assumption::Eps(1e-3), 0.2), trial(Assumption::Precision, 0.3)];
        assert_eq!(found(&checkup), Some((Fault::ForeignStatistics, Confidence::Sure)));
        checkup.trials.push(trial(Assumption::Eps(1e-4), 0.04));
        assert_eq!(found(&checkup), Some((Fault::Epsilon, Confidence::Sure)));
        checkup.trials.push(trial(Assumption::StandardDeviation, 0.04));
        assert_eq!(found(&checkup), Some((Fault::Convention, Confidence::Sure)));
    }
}
