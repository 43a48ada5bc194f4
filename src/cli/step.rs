use super::args::{self, DeviceArgs, ForceArgs, ModelArgs, OptimizerArgs, PolicyArgs, Size};
use super::inputs::{self, Inputs};
use super::progress::Progress;
use super::{events, output};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::PathBuf;
use thawline::formats;
use thawline::graph::Role;
use thawline::plan::Input;
use thawline::preprocessing::Parts;
use thawline::train::{self, Images, Session};
use thawline::weights::{self, StateDict};

/// Do optimiser steps on one batch from a file, for comparing with other tools.
///
/// The inputs file is safetensors with `images` f32 [N, 3, H, W], used as they are, and `labels` i64 [N]. The same batch is
/// used for every step, without augmentation. Dropout and stochastic depth act where the policy says so: add
/// --set 'kind:dropout? -> dropout=off' and --set 'kind:stochastic_depth? -> dropout=off' for steps without chance. Standard
/// output has one JSON object per step.
#[derive(clap::Args)]
#[command(after_help = "Example:
  thawline step --model resnet18 --weights in.safetensors \\
    --inputs batch.safetensors --policy bn-only --optimizer sgd --lr 0.01 \\
    --momentum 0.9 --steps 5 --grads grads.safetensors --out out.safetensors")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Safetensors with `images` f32 [N, 3, H, W] and `labels` i64 [N]
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where the weights go: safetensors with the names and the layout of --weights, or if that is a Keras file and this
    /// name ends as its, a copy of it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
    /// Where the last step's gradients go, under the names of the parameters that train
    #[arg(long, value_name = "FILE")]
    grads: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 0.001, value_parser = args::learning_rate)]
    lr: f64,
    /// How many steps
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = args::positive)]
    steps: usize,
    /// After the first step, run the plan on the device and on the CPU reference, compare after every kernel call, and
    /// fail with the first call that differs. Slow
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args) -> Result<()> {
    args::check_output(&args.out, args.force)?;
    args.grads.as_deref().map(|grads| args::check_output(grads, args.force)).transpose()?;
    if args.grads.as_ref() == Some(&args.out) {
        bail!("--out and --grads are the same file");
    }
    let options = thawline::compile::Options { export_gradients: args.grads.is_some(), ..args.optimizer.options(0.0)? };
    let mut model = args.model.read_for_training(Parts::default(), None)?;
    let mut file = StateDict::load(&args.inputs)
        .context("--inputs takes a safetensors file with `images` (f32 [N, 3, H, W]) and `labels` (i64 [N])")?;
    let Inputs { dims: [n, _, height, width], images } = Inputs::of(&mut file, &args.inputs)?;
    let labels = inputs::labels(&mut file, &args.inputs, n, model.classes)?;
    let network = model.network(n, Size { height, width })?;
    let resolved = args.policy.resolve(network)?;
    resolved.check_training(options.accumulate)?;
    let (metadata, origin) = (model.metadata(Size { height, width })?, model.origin()?);
    let tensors = model.tensors(&resolved.graph)?;
    formats::check(&weights::to_state(&resolved.graph, &tensors), origin.as_deref(), &args.out)?;

    let progress = Progress::new("opening the device");
    let device = args.device.open()?;
    let mut session = Session::new(&device, resolved.graph, &tensors, Input::Values, options)?;
    for step in 1..=args.steps {
        progress.at("steps", step as u64 - 1, args.steps as u64);
        let loss = session.step(Images::Values(&images), &labels, args.lr)?.mean_loss();
        if !loss.is_finite() {
            bail!("the loss of step {step} is {loss}: nothing was written; a lower --lr may help");
        }
        output::json_line(&json!({"schema": events::SCHEMA, "event": "step", "step": step, "loss": loss}))?;
        if args.check && step == 1 {
            train::check(session.executor())?;
            output::note(format_args!("check: all {} calls agree with the reference", session.plan().calls.len()));
        }
    }

    if let Some(path) = &args.grads {
        gradients(&session)?.save(path)?;
    }
    let mut state = weights::to_state(session.network(), &session.parameters()?);
    state.metadata = metadata;
    args::save_weights(&state, origin.as_deref(), &args.out)
}

/// The last step's gradients of what trains, in file form.
fn gradients(session: &Session) -> Result<StateDict> {
    let graph = &session.plan().graph;
    let mut state = StateDict::default();
    for (id, mut gradient) in session.gradients()? {
        let param = graph.param(id);
        // The slot may be larger than the gradient in it.
        gradient.truncate(param.shape.stored_len());
        let parts = weights::to_file(graph, param, &gradient);
        match (param.role, param.update) {
            // Gamma and beta are one parameter, of which a policy may train one row.
            (Role::Affine, Some(update)) => {
                let [from, to] = update.rows;
                state.tensors.extend(parts.into_iter().take(to).skip(from));
            }
            _ => state.tensors.extend(parts),
        }
    }
    Ok(state)
}
