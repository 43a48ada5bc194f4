use super::args::{self, ModelArgs, OptimizerArgs, PolicyArgs, SizeArgs};
use super::output;
use anyhow::Result;
use serde::Serialize;
use thawline::preprocessing::Parts;
use thawline::report::{LayerPrice, Phases, Price, Total, price};

/// Show what a policy costs before anything runs: one line per layer, and totals against inference and full fine-tuning.
///
/// Needs no GPU. FLOP are those of products (two a multiply-add), moved bytes are reads and writes of every kernel, kept
/// bytes are results of the forward pass that wait for the backward pass. A batch norm that runs nothing is folded into the
/// convolution before it; activations and additions without a line of their own are part of the layer above.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline plan --model resnet18 --policy head
  thawline plan --weights resnet18.pth --classes 10 \\
    --policy bn-only --set 'from:layer4 -> weights=train'")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = args::positive)]
    batch: usize,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// Name every kernel that a layer runs, in full
    #[arg(long)]
    kernels: bool,
    /// Print the plan itself: every slot of memory and every kernel call
    #[arg(long, conflicts_with_all = ["json", "kernels"])]
    dump: bool,
    /// Print JSON: {model, from, policy, batch, size, classes, layers: [{index, number, name, kind, shape, axes, forward, backward,
    /// update: {flops, moved_bytes}, kept_bytes, kernels}], rest, step, inference, full: {flops, moved_bytes, kept_bytes,
    /// planned_bytes, calls}, stages: the same of the policy's later stages}
    #[arg(long, conflicts_with = "kernels")]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    /// The share of a run's steps before the stage.
    from: f64,
    #[serde(flatten)]
    price: &'a Price,
}

#[derive(Serialize)]
struct Staged<'a> {
    #[serde(flatten)]
    first: Report<'a>,
    /// Those after the first.
    stages: Vec<Report<'a>>,
}

pub fn run(args: Args) -> Result<()> {
    let options = args.optimizer.options(0.9)?;
    let model = args.model.read_for_training(Parts::default(), None)?;
    let network = model.network(args.batch, model.size(args.size.size))?;
    let input = model.input();
    let mut stages = Vec::new();
    for (from, resolved) in args.policy.resolve_stages(&network)? {
        stages.push((from, price(&resolved, &options, input)?));
    }
    if args.json {
        let mut stages = stages.iter().map(|(from, (price, _))| Report { model: &model.spec.name, from: *from, price });
        // The first stage is the policy as it is at the beginning, and most policies have no other.
        let Some(first) = stages.next() else { return Ok(()) };
        return output::json(&Staged { first, stages: stages.collect() });
    }
    for (index, (from, (price, plan))) in stages.iter().enumerate() {
        if index > 0 {
            output::line("")?;
            output::title(format_args!("from {:.0} % of the steps on", 100.0 * from))?;
        }
        if args.dump {
            output::text(plan)?;
            continue;
        }
        let [height, width] = price.size;
        output::title(format_args!(
            "{} under {}, {} of {height}×{width}, {}",
            model.spec.name,
            price.policy,
            output::quantity(price.batch, "image"),
            output::quantity(price.classes, "class")
        ))?;
        layers(price, args.kernels)?;
        output::line("")?;
        totals(price)?;
    }
    Ok(())
}

fn layers(price: &Price, kernels: bool) -> Result<()> {
    let row = |number: String, name: &str, mode: String, runs: String, phases: &Phases| {
        let backward = phases.backward;
        let moved = phases.forward.moved_bytes + backward.moved_bytes + phases.update.moved_bytes;
        vec![
            number,
            name.to_owned(),
            mode,
            runs,
            output::or_blank(phases.forward.flops, output::flops),
            output::or_blank(backward.flops, output::flops),
            output::or_blank(moved, output::bytes),
            output::or_blank(phases.kept_bytes, output::bytes),
        ]
    };
    let layers = price.layers.iter();
    // What has nothing to set and runs nothing is a part of the layer above.
    let shown = layers.filter(|l| !l.axes.is_empty() || !l.phases.kernels.is_empty());
    let runs = |names: &[&str]| if kernels { output::counted(names) } else { roles(names) };
    let rows = shown.map(|l: &LayerPrice| row(l.number.clone(), &l.name, l.mode(), runs(&l.phases.kernels), &l.phases));
    let runs = if kernels { output::counted(&price.rest.kernels) } else { String::new() };
    let rest = row(String::new(), "input and loss", String::new(), runs, &price.rest);
    let titles = [">#", "layer", "axes", "runs", ">forward", ">backward", ">moved", ">kept"];
    let spare = ["runs", "moved", "#", "backward", "kept", "forward"];
    output::table(&titles, &spare, rows.chain([rest]))
}

/// What kernels are for, in a word each: without the layer's kind, and without the second passes of reductions.
fn roles(kernels: &[&str]) -> String {
    let mut roles: Vec<String> = Vec::new();
    for kernel in kernels.iter().filter(|name| **name != "sum_partials" && !name.ends_with("_merge")) {
        let role = kernel.trim_start_matches("conv2d_").trim_start_matches("batch_norm_");
        let role = role.trim_end_matches("_step");
        let role = if role.starts_with("grad") { "grad".into() } else { role.replace('_', " ") };
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    roles.join(", ")
}

fn totals(price: &Price) -> Result<()> {
    let row = |what: &str, total: &Total| {
        vec![
            what.to_owned(),
            output::flops(total.amount.flops),
            output::bytes(total.amount.moved_bytes),
            output::bytes(total.kept_bytes),
            output::bytes(total.planned_bytes),
            total.calls.to_string(),
        ]
    };
    let ratio = |what: &str, other: &Total| {
        let times = |a: u64, b: u64| if b == 0 { "–".into() } else { format!("{:.2}×", a as f64 / b as f64) };
        let step = &price.step;
        vec![
            what.to_owned(),
            times(step.amount.flops, other.amount.flops),
            times(step.amount.moved_bytes, other.amount.moved_bytes),
            times(step.kept_bytes, other.kept_bytes),
            times(step.planned_bytes, other.planned_bytes),
            times(step.calls as u64, other.calls as u64),
        ]
    };
    let mut rows = vec![row("this step", &price.step), row("inference", &price.inference)];
    rows.extend(price.full.as_ref().map(|full| row("full fine-tuning", full)));
    rows.push(ratio("step / inference", &price.inference));
    rows.extend(price.full.as_ref().map(|full| ratio("step / full", full)));
    let titles = ["total", ">arithmetic", ">moved", ">kept", ">memory", ">calls"];
    output::table(&titles, &["calls", "moved", "kept", "arithmetic"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_in_short() {
        let kernels = ["conv2d_forward", "conv2d_weight_grad", "sum_partials", "sgd_step", "sgd_step"];
        assert_eq!(roles(&kernels), "forward, weight grad, sgd");
        let kernels = ["batch_norm_stats", "batch_norm_stats_merge", "batch_norm_grad_reduce", "batch_norm_grad_batch"];
        assert_eq!(roles(&kernels), "stats, grad");
        assert_eq!(roles(&["batch_norm_apply", "batch_norm_grad_batch", "batch_norm_grad_blend"]), "apply, grad");
    }
}
