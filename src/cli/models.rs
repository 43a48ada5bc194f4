//! `thawline models`: the networks that `--model` knows by name.

use super::{inspect, output};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use thawline::models::{MODELS, Spec};

/// List the networks that --model takes by name.
///
/// Other networks are described by a graph file, or imported from files of Keras, TensorFlow.js or ONNX.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  thawline models\n  thawline models regnet --json")]
pub struct Args {
    /// Only those whose name contains this
    #[arg(value_name = "PART")]
    part: Option<String>,
    /// Print a JSON list of {name, library, parameters, size: {height, width}, classes, preprocessing}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let part = args.part.unwrap_or_default().to_lowercase();
    let wanted = MODELS.iter().filter(|spec| spec.name.contains(&part));
    let wanted: Vec<(&Spec, usize)> = wanted.map(|spec| Ok((spec, parameters(spec)?))).collect::<Result<_>>()?;
    if wanted.is_empty() {
        bail!("no network is called anything with `{part}`; without it, all {} are listed", MODELS.len());
    }
    if args.json {
        let one = |(spec, parameters): (&Spec, usize)| {
            let (height, width) = spec.size();
            json!({
                "name": spec.name,
                "library": spec.library(),
                "parameters": parameters,
                "size": { "height": height, "width": width },
                "classes": spec.default_classes,
                "preprocessing": serde_json::from_str::<Value>(&spec.preprocessing.value.json()).unwrap_or_default(),
            })
        };
        return output::json(&wanted.into_iter().map(one).collect::<Vec<_>>());
    }
    let rows = wanted.into_iter().map(|(spec, parameters)| {
        let library = spec.library().unwrap_or_default();
        vec![spec.name.to_string(), output::count(parameters), spec.default_size.to_string(), library.into()]
    });
    output::table(&["name", ">parameters", ">pixels", "library"], &[], rows)
}

fn parameters(spec: &Spec) -> Result<usize> {
    Ok(inspect::parameters(&spec.build(1, spec.size(), spec.default_classes)?))
}
