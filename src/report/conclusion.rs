//! What the numbers of a comparison say, and what they do not, in plain words.

use super::spread::{
    Difference, NoRank, Spread, batch_modes, last_accuracy, mean_drift, median, no_rank, ranked, standard_error,
};
use super::units::{bytes, flops, nats, percent};
use super::{Arm, ArmRun, Comparison, State};
use crate::train::{EpochMetrics, best};

/// Recipes that differ in whether batch norms follow the data: the one that does, and the one that does not.
const FOLLOWING: [(&str, &str); 3] = [("bn-only", "head"), ("head-adapt", "head"), ("full", "full-frozen-bn")];

/// Drift, in nats a channel, below which a network knows its images, and above which it does not. At equal variances, one
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

pub(super) fn findings(comparison: &Comparison) -> Vec<String> {
    let (without, ranked): (Vec<&Arm>, Vec<&Arm>) =
        ranked(comparison).into_iter().partition(|arm| no_rank(comparison, arm).is_some());
    let first = ranked.first().and_then(|arm| Some((*arm, last_accuracy(arm)?)));
    let Some((best, accuracy)) = first else {
        let why = match comparison.val_images {
            0 => "There are no validation images",
            _ if !without.is_empty() => "No policy has a result that counts",
            _ => "No run is finished yet",
        };
        let nothing = format!("{why}, so nothing says which policy is best; what each costs is known all the same.");
        return [Some(nothing), not_ranked(comparison, &without)].into_iter().flatten().collect();
    };
    // An arm that has no seed in common with the best one cannot be compared with it.
    let leads = ranked[1..].iter().filter_map(|arm| Some((*arm, Difference::between(comparison, best, arm)?)));
    let leads: Vec<(&Arm, Difference)> = leads.collect();
    let tied: Vec<&Arm> = leads.iter().filter(|(_, lead)| !lead.is_clear()).map(|(arm, _)| *arm).collect();
    let paragraphs = [
        Some(lead(comparison, best, accuracy, leads.first(), &tied)),
        not_ranked(comparison, &without),
        following(comparison),
        (!leads.is_empty()).then(|| cheapest(best, &tied)),
        inference(best),
    ];
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
    (!words.is_empty())
        .then(|| format!("Not ranked: {}. A lower learning rate or a longer warm-up may mend that.", words.join("; ")))
}

fn lead(
    comparison: &Comparison,
    best: &Arm,
    accuracy: Spread,
    next: Option<&(&Arm, Difference)>,
    tied: &[&Arm],
) -> String {
    let Spread { mean, least, most, n, .. } = accuracy;
    let seeds = match n {
        1 => "with one seed".to_owned(),
        _ => format!("the mean of {n} seeds, which range from {} to {}", percent(least), percent(most)),
    };
    let verb = if next.is_some() { "is the most accurate policy" } else { "is the only policy with a result" };
    let mut text = format!(
        "`{}` {verb}: after the last epoch it gets {} of the validation images right ({seeds}).",
        best.name,
        percent(mean)
    );
    if let Some((next, lead)) = next {
        let verdict = match (lead.is_clear(), lead.by_seeds) {
            (true, _) if lead.seeds == 1 => {
                "more than the images leave open, but another seed may say otherwise".to_owned()
            }
            (true, _) => "more than chance explains".to_owned(),
            (false, true) => format!("within what seeds differ by, as far as {} of them can tell", lead.seeds),
            (false, false) => format!("no more than {} validation images can resolve", comparison.val_images),
        };
        text += &format!(" Its lead over `{}` is {}: {verdict}.", next.name, points(*lead));
    }
    match tied {
        [] => {}
        [one] => text += &format!(" So `{}` may be as good.", one.name),
        _ => text += &format!(" So these may be as good: {}.", names(tied)),
    }
    text
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
            "{space}Before training, the running moments are {} nats a channel from those of the training images (the \
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

fn cheapest(best: &Arm, tied: &[&Arm]) -> String {
    let price = |arm: &Arm| (arm.step.amount.flops, arm.step.kept_bytes);
    let Some(cheapest) = tied.iter().copied().filter(|arm| price(arm) < price(best)).min_by_key(|arm| price(arm))
    else {
        let among =
            if tied.is_empty() { "No other policy comes within its margin" } else { "None of those is cheaper" };
        let (arithmetic, kept) = price(best);
        return format!(
            "{among}: a step of `{}` takes {} and keeps {} for the backward pass.",
            best.name,
            flops(arithmetic),
            bytes(kept)
        );
    };
    let [theirs, ours] = [cheapest, best].map(|arm| flops(arm.step.amount.flops));
    let than = if theirs == ours { "like that".to_owned() } else { format!("instead of the {ours}") };
    format!(
        "The cheapest of those is `{}`: a step takes {theirs} {than} of `{}`, and keeps {} instead of {} for the backward \
         pass.",
        cheapest.name,
        best.name,
        bytes(cheapest.step.kept_bytes),
        bytes(best.step.kept_bytes)
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
            2 => "Two seeds are too few to tell chance from effect: their interval is 12.7 standard errors wide to \
                  either side. Use three or more."
                .to_owned(),
            n => format!(
                "± is half a 95 % interval: of Student's t over the differences of {n} seeds, or of the binomial \
                 distribution over the images, whichever is wider. It assumes that seeds differ normally, which {n} of \
                 them cannot show."
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
    if arms.len() > 1 {
        caveats.push(format!(
            "All policies have the same learning rate, {}, and the same {} epochs. Each may do better with its own.",
            comparison.schedule.lr, comparison.epochs
        ));
    }
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

fn names(arms: &[&Arm]) -> String {
    arms.iter().map(|arm| format!("`{}`", arm.name)).collect::<Vec<_>>().join(", ")
}

/// Signed.
fn points(difference: Difference) -> String {
    let sign = if difference.mean < 0.0 { "−" } else { "+" };
    format!("{sign}{:.1} ± {:.1} points", 100.0 * difference.mean.abs(), 100.0 * difference.margin)
}
