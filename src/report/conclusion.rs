//! What the numbers of a comparison say, and what they do not, in plain words.

use super::spread::{
    Difference, NoRank, Spread, batch_modes, is_chance, last_accuracy, mean_drift, median, no_rank, ranked,
    standard_error, start_accuracy,
};
use super::units::{bytes, flops, nats, percent};
use super::{Arm, ArmRun, Comparison, State};
use crate::text::quantity;
use crate::train::{EpochMetrics, best};

/// Recipes that differ in whether batch norms follow the data: the one that does, and the one that does not.
const FOLLOWING: [(&str, &str); 3] = [("bn-only", "head"), ("head-adapt", "head"), ("full", "full-frozen-bn")];

/// Drift, in nats per channel, below which a network knows its images, and above which it does not. At equal variances, one
/// nat is about one standard deviation between the means.
const NEAR: f64 = 0.1;
const FAR: f64 = 1.0;

/// A change of accuracy, or a share of flipped predictions, that matters to whoever uses the network.
const HARM: f64 = 0.01;

/// What follows from a comparison, a paragraph each, and then its caveats. Names of arms and layers stand in backticks.
pub fn conclusion(comparison: &Comparison) -> Vec<String> {
    let mut paragraphs = findings(comparison);
    paragraphs.extend(caveats(comparison));
    paragraphs
}

/// What a comparison advises.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict<'a> {
    /// No policy has a result that counts.
    Nothing,
    /// No policy is clearly better than the weights before training, which are no better than chance themselves.
    NothingLearnt { best: &'a Arm },
    /// No policy is clearly better than the weights before training, which are better than chance.
    DoNotTrain { best: &'a Arm },
    /// `arm` is the most accurate one, or a cheaper one that gets less than a hundredth of the images fewer right; `unclear`
    /// are those that may be as good as `best`, the most accurate one, as far as the runs can tell.
    Use { arm: &'a Arm, best: &'a Arm, unclear: Vec<&'a Arm> },
}

/// The advice that follows from a comparison.
pub fn verdict(comparison: &Comparison) -> Verdict<'_> {
    let ranked: Vec<&Arm> = ranked(comparison).into_iter().filter(|arm| no_rank(comparison, arm).is_none()).collect();
    let Some(best) = ranked.first().copied().filter(|arm| last_accuracy(arm).is_some()) else {
        return Verdict::Nothing;
    };
    let gain = Difference::from_start(comparison, best);
    if gain.is_some_and(|gain| !gain.is_clear() || gain.mean <= 0.0) {
        return match start_accuracy(best).is_some_and(|start| is_chance(comparison, start)) {
            true => Verdict::NothingLearnt { best },
            false => Verdict::DoNotTrain { best },
        };
    }
    // An arm that has no seed in common with the best one cannot be compared with it.
    let leads = ranked[1..].iter().filter_map(|arm| Some((*arm, Difference::between(comparison, best, arm)?)));
    let unclear: Vec<(&Arm, f64)> =
        leads.filter(|(_, lead)| !lead.is_clear()).map(|(arm, lead)| (arm, lead.mean)).collect();
    // That runs show no difference does not make two policies equal: only a small lead is given up for a lower price.
    let near = unclear.iter().filter(|(_, lead)| *lead < HARM).map(|(arm, _)| *arm);
    let arm = near.chain([best]).min_by_key(|arm| step_price(arm)).unwrap_or(best);
    Verdict::Use { arm, best, unclear: unclear.into_iter().map(|(arm, _)| arm).collect() }
}

/// Arithmetic of a step, and bytes that it keeps.
fn step_price(arm: &Arm) -> (u64, u64) {
    (arm.step.amount.flops, arm.step.kept_bytes)
}

pub(super) fn findings(comparison: &Comparison) -> Vec<String> {
    let without = ranked(comparison).into_iter().filter(|arm| no_rank(comparison, arm).is_some()).collect::<Vec<_>>();
    let not_ranked = not_ranked(comparison, &without);
    let paragraphs = match verdict(comparison) {
        Verdict::Nothing => {
            let why = match comparison.val_images {
                0 => "There are no validation images",
                _ if !without.is_empty() => "No policy has a result that counts",
                _ => "No run is finished yet",
            };
            let nothing =
                format!("{why}, so nothing says which policy is best; what each costs is known all the same.");
            return [Some(nothing), not_ranked].into_iter().flatten().collect();
        }
        Verdict::NothingLearnt { best } => [Some(nothing_learnt(best)), not_ranked, following(comparison), None, None],
        Verdict::DoNotTrain { best } => {
            [Some(do_not_train(comparison, best)), not_ranked, following(comparison), None, None]
        }
        Verdict::Use { arm, best, unclear } => [
            Some(use_it(comparison, arm, best, &unclear)),
            not_ranked,
            following(comparison),
            Some(price(arm, best)),
            inference(arm),
        ],
    };
    paragraphs.into_iter().flatten().collect()
}

/// Names the policies that have results and no rank, and why.
fn not_ranked(comparison: &Comparison, arms: &[&Arm]) -> Option<String> {
    let why = |arm: &&Arm| match no_rank(comparison, arm)? {
        NoRank::Diverged { seeds } => {
            let runs = match (seeds.len(), arm.runs.len()) {
                (_, 1) => "its one run".to_owned(),
                (lost, all) if lost == all => format!("all of its {all} runs"),
                (lost, all) => format!("{lost} of its {all} runs"),
            };
            Some(format!("`{}` diverged in {runs}", arm.name))
        }
        NoRank::Chance { accuracy } => Some(format!(
            "`{}` ended at chance: {} of {} images, and naming the most frequent class gets {}",
            arm.name,
            percent(accuracy),
            comparison.val_images,
            percent(comparison.chance)
        )),
    };
    let words: Vec<String> = arms.iter().filter_map(why).collect();
    let advice = match arms.iter().all(|arm| arm.search.is_some()) {
        true => "None of the learning rates tried suits them; a longer warm-up or more epochs may mend that.",
        false => "A lower learning rate or a longer warm-up may mend that.",
    };
    (!words.is_empty()).then(|| format!("Not ranked: {}. {advice}", words.join("; ")))
}

/// `81.6 % of the validation images right after the last epoch (the mean of 3 seeds, from 80.0 % to 82.3 %)`.
fn gets(arm: &Arm) -> String {
    let Some(Spread { mean, least, most, n, .. }) = last_accuracy(arm) else { return "nothing".to_owned() };
    let seeds = match n {
        1 => "with one seed".to_owned(),
        _ => format!("the mean of {n} seeds, from {} to {}", percent(least), percent(most)),
    };
    format!("{} of the validation images right after the last epoch ({seeds})", percent(mean))
}

fn before(arm: &Arm) -> String {
    start_accuracy(arm).map_or_else(String::new, |start| format!(" Before training it was {}.", percent(start)))
}

fn use_it(comparison: &Comparison, arm: &Arm, best: &Arm, unclear: &[&Arm]) -> String {
    let lead_over = |other: &Arm| Difference::between(comparison, best, other);
    let next = ranked(comparison).into_iter().filter(|other| other.name != best.name);
    let next = next.filter(|other| no_rank(comparison, other).is_none());
    let Some((next, lead)) = next.filter_map(|other| Some((other, lead_over(other)?))).next() else {
        return format!("Use `{}`, the only policy with a result: it gets {}.{}", arm.name, gets(arm), before(arm));
    };
    if unclear.is_empty() {
        let doubt = if lead.seeds == 1 { " Another seed may say otherwise." } else { "" };
        let than = format!("{} more than `{}`, the next", unsigned(lead), next.name);
        return format!("Use `{}`: it gets {}, {than}.{doubt}{}", arm.name, gets(arm), before(arm));
    }
    let why = match arm.name == best.name {
        true => "the most accurate policy".to_owned(),
        false => {
            let mean = last_accuracy(best).map_or(f64::NAN, |accuracy| accuracy.mean);
            let lead = lead_over(arm).map_or_else(String::new, unsigned);
            format!("which is cheaper than `{}` and about as accurate ({}, a lead of {lead})", best.name, percent(mean))
        }
    };
    let doubtful = unclear.iter().filter(|other| other.name != arm.name);
    let doubtful: Vec<(&Arm, Difference)> = doubtful.filter_map(|other| Some((*other, lead_over(other)?))).collect();
    let doubts: Vec<String> =
        doubtful.iter().map(|(other, lead)| format!("`{}` ({})", other.name, points(*lead))).collect();
    let limits = [false, true].map(|by_seeds| doubtful.iter().find(|(_, lead)| lead.by_seeds == by_seeds));
    let images = limits[0].map(|_| quantity(comparison.val_images, "validation image"));
    let seeds = limits[1].map(|(_, lead)| quantity(lead.seeds, "seed"));
    let too_few = images.into_iter().chain(seeds).collect::<Vec<_>>().join(" and ");
    let doubts = match doubts.is_empty() {
        true => String::new(),
        false => format!(
            " These runs cannot tell the lead of `{}` over {}: {too_few} are too few for that.",
            best.name,
            doubts.join(", ")
        ),
    };
    format!("Use `{}`, {why}: it gets {}.{}{doubts}", arm.name, gets(arm), before(arm))
}

/// Why a difference is not clear.
fn limit(comparison: &Comparison, difference: Difference) -> String {
    match difference.by_seeds {
        true => format!("is within the spread of {} seeds", difference.seeds),
        false => format!("{} validation images cannot resolve", comparison.val_images),
    }
}

fn do_not_train(comparison: &Comparison, best: &Arm) -> String {
    let start = start_accuracy(best).map_or_else(String::new, percent);
    let Some(gain) = Difference::from_start(comparison, best) else { return String::new() };
    let verdict = match gain.is_clear() {
        true => format!("{} fewer than before", unsigned(gain)),
        false => format!("a change of {} that {}", points(gain), limit(comparison, gain)),
    };
    format!(
        "Do not train: the weights as they are get {start} of the validation images right, and no policy is clearly better. \
         The best one, `{}`, gets {}: {verdict}.",
        best.name,
        gets(best)
    )
}

fn nothing_learnt(best: &Arm) -> String {
    format!(
        "There is no winner: no policy is clearly better than the weights before training, which are at chance. The best one, \
         `{}`, gets {}.{} More images, or more epochs, may show a difference.",
        best.name,
        gets(best),
        before(best)
    )
}

fn following(comparison: &Comparison) -> Option<String> {
    let counts = |arm: &&Arm| no_rank(comparison, arm).is_none();
    let find = |name| comparison.arms.iter().find(|arm| arm.name == name).filter(counts);
    let pairs = FOLLOWING.into_iter().filter_map(|(with, without)| {
        let difference = Difference::between(comparison, find(with)?, find(without)?)?;
        Some((format!("`{with}` against `{without}` {}", points(difference)), difference))
    });
    let (words, differences): (Vec<String>, Vec<Difference>) = pairs.unzip();
    let clear = |sign: f64| differences.iter().any(|d| d.is_clear() && d.mean * sign > 0.0);
    let effect = (clear(1.0), clear(-1.0));
    let verdict = match effect {
        (true, false) => "Letting batch norms follow the data helps here",
        (false, true) => "Letting batch norms follow the data hurts here",
        (true, true) => "Whether batch norms should follow the data depends on what else trains",
        (false, false) => "Whether batch norms follow the data makes no difference that these runs can show",
    };
    let mut text = match words.is_empty() {
        true => String::new(),
        false => format!("{verdict}: {}.", words.join("; ")),
    };
    if let Some((drift, most)) = start_drift(comparison) {
        let distance = match drift {
            d if d < NEAR => "close to",
            d if d < FAR => "some way from",
            _ => "far from",
        };
        let fits = match effect {
            _ if words.is_empty() => "",
            (true, false) if drift >= FAR => ": moments that stay do not fit them",
            (false, false) if drift < NEAR => ": there is little to follow",
            (true, false) if drift < NEAR => "; drift alone did not foretell that gain",
            (false, _) if drift >= FAR => "; drift foretold a gain that these runs do not show",
            _ => "",
        };
        let space = if text.is_empty() { "" } else { " " };
        text += &format!(
            "{space}Before training, the running moments are {} nats per channel from those of the training images (the \
             median; most at {most}), so the data are {distance} what the file describes{fits}.",
            nats(drift),
        );
    }
    (!text.is_empty()).then_some(text)
}

/// The median over the batch norms before training, and the greatest in words.
fn start_drift(comparison: &Comparison) -> Option<(f64, String)> {
    let drift = mean_drift(&comparison.start.iter().collect::<Vec<_>>(), comparison.batch_norms.len());
    let named = drift.iter().zip(&comparison.batch_norms).filter(|(drift, _)| drift.is_finite());
    let (most, name) = named.max_by(|a, b| a.0.total_cmp(b.0))?;
    Some((median(&drift)?, format!("`{name}`, {}", nats(*most))))
}

/// What the advised arm costs, beside the most accurate one if that is another.
fn price(arm: &Arm, best: &Arm) -> String {
    let words = |arm: &Arm| (flops(arm.step.amount.flops), bytes(arm.step.kept_bytes));
    let ((ours, kept), (theirs, theirs_kept)) = (words(arm), words(best));
    if arm.name == best.name {
        return format!("A step of `{}` takes {ours} and keeps {kept} for the backward pass.", arm.name);
    }
    let than = if ours == theirs { "like that".to_owned() } else { format!("instead of the {theirs}") };
    format!(
        "A step of `{}` takes {ours} {than} of `{}`, and keeps {kept} instead of {theirs_kept} for the backward pass.",
        arm.name, best.name
    )
}

/// Whether the best arm could be left in training mode at inference.
fn inference(best: &Arm) -> Option<String> {
    let ends: Vec<&State> = best.runs.iter().map(|run| &run.end).collect();
    let running = Spread::of(ends.iter().map(|end| end.running.accuracy()))?.mean;
    let single = Spread::of(ends.iter().map(|end| end.single.accuracy()))?.mean;
    let flips = Spread::of(ends.iter().map(|end| end.running_flips))?.mean;
    let mut modes = batch_modes(&ends);
    modes.retain(|mode| mode.accuracy.is_finite() && mode.flips.is_finite());
    let worst = modes.iter().min_by(|a, b| a.accuracy.total_cmp(&b.accuracy))?;
    let most = modes.iter().max_by(|a, b| a.flips.total_cmp(&b.flips))?;
    let harm = match running - worst.accuracy > HARM || most.flips > HARM {
        true => "must not be left in training mode at inference",
        false => "would do about as well in training mode at inference",
    };
    let company = if flips == 0.0 { "no prediction changes".to_owned() } else { format!("{} change", percent(flips)) };
    Some(format!(
        "The batch norms of `{}` {harm}: normalising by batches of {} gives {} instead of {}, and in batches of \
         {}, {} of the predictions change when other images share the batch. Under running statistics {company}, and \
         single images give {}.",
        best.name,
        worst.batch,
        percent(worst.accuracy),
        percent(running),
        most.batch,
        percent(most.flips),
        percent(single)
    ))
}

pub(super) fn caveats(comparison: &Comparison) -> Vec<String> {
    let arms = ranked(comparison);
    let having = |holds: &dyn Fn(&Arm) -> bool| -> Vec<&Arm> { arms.iter().copied().filter(|a| holds(a)).collect() };
    let mut caveats = Vec::new();

    let seeds = comparison.seeds.len();
    let done: usize = arms.iter().map(|arm| arm.runs.len()).sum();
    if done < seeds * arms.len() {
        caveats.push(format!("Only {done} of {} runs are finished.", seeds * arms.len()));
    }
    let first = arms.first().filter(|arm| no_rank(comparison, arm).is_none());
    if let Some(accuracy) = first.and_then(|arm| last_accuracy(arm)) {
        caveats.push(match seeds {
            0 | 1 => {
                "One seed shows nothing of what chance does; ± is here what the number of images alone leaves open. \
                      Use three seeds or more."
                    .to_owned()
            }
            n => format!(
                "± is half a confidence interval: the wider one of {} % by Student's t over the differences under each of \
                 {n} seeds, and 95 % by the binomial distribution over the images.{}",
                if n == 2 { 80 } else { 95 },
                if n == 2 { " Two seeds are too few for 95 %: use three or more." } else { "" }
            ),
        });
        caveats.push(format!(
            "{} validation images give an accuracy of {} a standard error of {:.1} points, whatever the number of seeds: \
             all of them look at the same images.",
            comparison.val_images,
            percent(accuracy.mean),
            100.0 * standard_error(accuracy.mean, comparison.val_images)
        ));
        if arms.len() > 2 {
            caveats.push(format!(
                "The best of {} policies is partly the luckiest, and nothing here corrects for having looked at all of \
                 them.",
                arms.len()
            ));
        }
    }
    caveats.extend(rates(comparison, &arms));
    let diverged = having(&|arm| {
        let totals = |epoch: &EpochMetrics| [epoch.train, epoch.val];
        let losses = arm.runs.iter().flat_map(|run| &run.history).flat_map(totals).flatten();
        losses.into_iter().any(|totals| !totals.mean_loss().is_finite())
    });
    if !diverged.is_empty() {
        caveats.push(format!(
            "Losses stopped being numbers, most likely for too high a learning rate: {}.",
            names(&diverged)
        ));
    }
    let improving = having(&|arm| {
        let last_is_best = |run: &ArmRun| best(&run.history).is_some_and(|best| best.epoch == comparison.epochs);
        !arm.runs.is_empty() && arm.runs.iter().all(last_is_best)
    });
    if !improving.is_empty() {
        caveats.push(format!(
            "Still at their best in the last epoch under every seed, so more epochs may change the order: {}.",
            names(&improving)
        ));
    }
    let fell = arms.iter().filter_map(|arm| {
        let gap = Spread::of(arm.runs.iter().filter_map(|run| Some(run.best_accuracy()? - run.last_accuracy()?)))?;
        (gap.mean > HARM).then(|| format!("`{}` by {:.1}", arm.name, 100.0 * gap.mean))
    });
    let fell: Vec<String> = fell.collect();
    if !fell.is_empty() {
        caveats.push(format!(
            "Ended below their best epoch, in points: {}. The best epoch is chosen on the very images that judge it, so \
             the last one is what is compared.",
            fell.join(", ")
        ));
    }
    caveats
}

/// How the learning rates came about.
fn rates(comparison: &Comparison, arms: &[&Arm]) -> Option<String> {
    let searches: Vec<_> = arms.iter().filter_map(|arm| Some((*arm, arm.search.as_ref()?))).collect();
    let Some((_, first)) = searches.first() else {
        return (arms.len() > 1).then(|| {
            format!(
                "All policies have the same learning rate, {}, which suits some better than others; with --lr auto each finds \
                 its own.",
                comparison.schedule.lr
            )
        });
    };
    let rates = first.rates();
    let found = searches.iter().map(|(arm, search)| format!("`{}` {}", arm.name, search.lr)).collect::<Vec<_>>();
    let mut text = format!(
        "Each policy has the best of {} learning rates by short runs on {} of the training images, judged by the other {}: \
         {}. So few images, and shorter runs, may choose a neighbour of the best rate.",
        rates.len(),
        first.train_images,
        first.held_out,
        found.join(", ")
    );
    let at_end = |end: Option<&f64>| -> Vec<&Arm> {
        searches.iter().filter(|(_, search)| Some(&search.lr) == end).map(|(arm, _)| *arm).collect()
    };
    for (end, which, beyond) in [(rates.first(), "lowest", "lower"), (rates.last(), "highest", "higher")] {
        let arms = at_end(end);
        if !arms.is_empty() {
            text += &format!(" The {which} rate was best for {}: a {beyond} one may be better.", names(&arms));
        }
    }
    Some(text)
}

fn names(arms: &[&Arm]) -> String {
    arms.iter().map(|arm| format!("`{}`", arm.name)).collect::<Vec<_>>().join(", ")
}

/// Without its sign.
fn unsigned(difference: Difference) -> String {
    format!("{:.1} ± {:.1} points", 100.0 * difference.mean.abs(), 100.0 * difference.margin)
}

/// Signed.
fn points(difference: Difference) -> String {
    let sign = if difference.mean < 0.0 { "−" } else { "+" };
    format!("{sign}{:.1} ± {:.1} points", 100.0 * difference.mean.abs(), 100.0 * difference.margin)
}
