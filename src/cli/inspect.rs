use super::args::{self, ModelArgs, Size};
use super::output;
use super::preprocess::PreprocessArgs;
use super::source::{self, SourceArgs};
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use thawline::formats::CLASSES;
use thawline::graph::{Graph, LayerId, Model};
use thawline::identify;
use thawline::models::GRAPH;
use thawline::preprocessing::{PREPROCESSING, Traced};
use thawline::text::printable;
use thawline::weights::{self, Head, StateDict, TensorData};

/// List the layers of a network: the numbers, names and blocks that policies select by.
///
/// Give a weights file, whose network is recognised and whose tensors are checked, or a model's name.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline inspect resnet18.pth
  thawline inspect hf:timm/resnet18.a1_in1k
  thawline inspect --model resnet50 --size 192x256 --json
  thawline inspect --model resnet18 --classes 10 --graph > mine.json")]
pub struct Args {
    /// A safetensors, PyTorch, Keras, TensorFlow.js or ONNX file, or one of a Hugging Face hub: hf:OWNER/NAME
    #[arg(required_unless_present = "model")]
    file: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// A model's name, or a graph file, instead of a file, or beside one that does not tell
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Number of classes of --model [default: 1000, or 10 for resnet_tiny]
    #[arg(long, value_name = "N", value_parser = args::positive, conflicts_with = "file")]
    classes: Option<usize>,
    /// Image size that shapes are shown for, N or HxW [default: the file's or the model's own]
    #[arg(long, value_name = "N|HxW")]
    size: Option<Size>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Print JSON: {model, classes, size, preprocessing: {resize, crop, interpolation, mean, std, bgr, from: where each comes
    /// from}, parameters, layers: [{index, number, name, alias, kind, block, shape,
    /// parameters, tensors}], blocks: their names in order, models: [{name, index, layers}], those that are layers of a Keras model},
    /// and for a file {file: {path, tensors, values, batches_tracked, metadata}}
    #[arg(long)]
    json: bool,
    /// Print the network as a graph file, JSON that every --model takes: to be edited, or to see every number in it
    #[arg(long, conflicts_with = "json")]
    graph: bool,
}

#[derive(Serialize)]
struct LayerRow {
    /// Its number among the layers of its file's outermost model.
    index: usize,
    /// How `index:` selectors write it, such as `2/17` for number 17 within number 2.
    number: String,
    name: String,
    /// Another name that selectors know it by.
    alias: Option<String>,
    kind: &'static str,
    /// The residual block.
    block: Option<String>,
    /// Of one image: images, height, width, channels.
    shape: [usize; 4],
    /// Values that can train; running statistics are not counted.
    parameters: usize,
    /// Names in a weights file.
    tensors: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    let opened = args.file.as_ref().map(|name| source::open(name, &args.source)).transpose()?;
    let file = opened.as_ref().map(|opened| FileFacts::of(&opened.tensors));
    // A file of an unknown network is still worth showing.
    if let (Some(opened), Some(file), None) = (&opened, &file, &args.model)
        && !identify::is_known(&opened.tensors)
        && !opened.describes()
    {
        let state = &opened.tensors;
        if args.graph {
            bail!("{}: no network that is known has these weights", file.path);
        }
        args::print_notes(state.origin.as_deref(), &state.notes);
        return unknown(state, file, args.json);
    }
    let model =
        ModelArgs { model: args.model, weights: args.file, source: args.source, classes: args.classes, seed: 0 };
    let model = model.of(opened, Head::Optional, args.preprocess.parts(), args.size)?;
    let size = model.size(args.size);
    let graph = model.network(1, size)?;
    if args.graph {
        return output::text(model.describe(size)?.json());
    }
    let (name, classes, preprocessing) = (model.spec.name, model.classes, model.spec.preprocessing);
    // Says what does not fit, before showing a network that the file is not of.
    if let Some(state) = model.state {
        weights::from_state_with(&graph, state, 0, Head::Optional)?;
    }
    let layers = layers(&graph);
    let parameters = parameters(&graph);
    if args.json {
        let mut report = json!({
            "model": name,
            "classes": classes,
            "size": [size.height, size.width],
            "preprocessing": as_json(&preprocessing)?,
            "parameters": parameters,
            "layers": layers,
            "blocks": graph.blocks(),
            "models": nested(&graph).map(|model| json!({
                "name": model.name,
                "index": number(model),
                "layers": model.layers,
            })).collect::<Vec<_>>(),
        });
        if let Some(file) = file {
            report["file"] = serde_json::to_value(file)?;
        }
        return output::json(&report);
    }
    if let Some(file) = &file {
        file.print()?;
    }
    // A second name is rare.
    let aliased = layers.iter().any(|l| l.alias.is_some());
    let blocks = graph.blocks();
    let numbered = |name: &str| blocks.iter().position(|block| *block == name).map(|number| format!("{number} {name}"));
    let rows = layers.iter().map(|l| {
        let parameters = output::or_blank(l.parameters as u64, |n| n.to_string());
        let [_, h, w, c] = l.shape;
        let block = l.block.as_deref().and_then(numbered).unwrap_or_default();
        let mut row = vec![l.number.clone(), l.name.clone(), l.kind.into(), format!("{h}×{w}×{c}"), parameters, block];
        if aliased {
            row.insert(2, l.alias.clone().unwrap_or_default());
        }
        row
    });
    let mut titles = vec![">index", "name", "kind", ">output", ">parameters", "block"];
    if aliased {
        titles.insert(2, "alias");
    }
    output::table(&titles, &["block", "alias", "parameters", "output", "index"], rows)?;
    output::prose(format_args!(
        "{name}, {}, {size} px: {}, {} parameters",
        output::quantity(classes, "class"),
        output::quantity(layers.len(), "layer"),
        output::count(parameters)
    ))?;
    for model in nested(&graph) {
        let (name, layers) = (&model.name, output::quantity(model.layers, "layer"));
        output::line(format_args!("layer {} is the model {name} of {layers}: index:{name}/0..", number(model)))?;
    }
    output::prose(format_args!("images: {}", preprocessing.describe(size.pair())))?;
    if let Some(test) = model.test_size.filter(|test| *test != size) {
        output::prose(format_args!("timm tests these weights at {test} px, too: --size {test}"))?;
    }
    Ok(())
}

/// The models that are layers of the network's model.
fn nested(graph: &Graph) -> impl Iterator<Item = &Model> {
    graph.models().iter().filter(|model| !model.position.is_empty())
}

/// As layers are numbered.
fn number(model: &Model) -> String {
    model.position.iter().map(usize::to_string).collect::<Vec<_>>().join("/")
}

/// The parts, and where each comes from.
fn as_json(preprocessing: &Traced) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(preprocessing.value)?;
    // Left out elsewhere where it is the rule.
    value["bgr"] = preprocessing.value.bgr.into();
    value["from"] = preprocessing.origins().collect::<BTreeMap<_, _>>().into_iter().collect();
    Ok(value)
}

/// How many values of a network training may change.
pub fn parameters(graph: &Graph) -> usize {
    layers(graph).iter().map(|layer| layer.parameters).sum()
}

fn layers(graph: &Graph) -> Vec<LayerRow> {
    let in_file = weights::expected(graph);
    let layers = (0..).map(LayerId::new).zip(graph.layers());
    layers
        .map(|(id, layer)| {
            let tensors = || in_file.iter().filter(|t| t.name.rsplit_once('.').is_some_and(|(of, _)| of == layer.name));
            let trains = |name: &str| name.ends_with(".weight") || name.ends_with(".bias");
            LayerRow {
                index: graph.position(id)[0],
                number: graph.number(id),
                name: layer.name.clone(),
                alias: layer.alias.clone(),
                kind: layer.kind.name(),
                block: layer.block.clone(),
                shape: layer.shape.0,
                parameters: tensors().filter(|t| trains(&t.name)).map(|t| t.shape.iter().product::<usize>()).sum(),
                tensors: tensors().map(|t| t.name.clone()).collect(),
            }
        })
        .collect()
}

#[derive(Serialize)]
struct FileFacts {
    path: String,
    /// How many there are.
    tensors: usize,
    /// Numbers in all of them.
    values: usize,
    /// Updates of the running statistics so far, the most of any batch norm.
    batches_tracked: Option<i64>,
    /// The text entries of a safetensors header.
    metadata: BTreeMap<String, String>,
}

impl FileFacts {
    fn of(state: &StateDict) -> Self {
        let tracked = state.tensors.iter().filter(|(name, _)| name.ends_with(".num_batches_tracked"));
        let counts = tracked.filter_map(|(_, tensor)| match &tensor.data {
            TensorData::I64(count) => count.first().copied(),
            TensorData::F32(_) => None,
        });
        Self {
            path: state.origin.as_ref().map_or(String::new(), |path| path.display().to_string()),
            tensors: state.tensors.len(),
            values: state.tensors.values().map(|t| t.data.len()).sum(),
            batches_tracked: counts.max(),
            metadata: state.metadata.clone(),
        }
    }

    fn print(&self) -> Result<()> {
        let values = output::count(self.values);
        output::line(format_args!("{}: {}, {values} values", self.path, output::quantity(self.tensors, "tensor")))?;
        if let Some(batches) = self.batches_tracked {
            output::line(format_args!("  batches tracked: {batches}"))?;
        }
        for (key, value) in &self.metadata {
            match key.as_str() {
                GRAPH => output::line("  graph: the network's own; --graph prints it")?,
                // In words below.
                PREPROCESSING => {}
                CLASSES => match serde_json::from_str::<Vec<String>>(value).as_deref() {
                    Ok([first, rest @ ..]) => {
                        let names = [&[format!("  classes: {first}")], rest].concat();
                        output::joined(&names, ", ")?;
                    }
                    _ => output::prose(format_args!("  {key}: {value}"))?,
                },
                _ => output::prose(format_args!("  {key}: {value}"))?,
            }
        }
        Ok(())
    }
}

/// Lists the tensors of a file whose network is not known.
fn unknown(state: &StateDict, file: &FileFacts, as_json: bool) -> Result<()> {
    if as_json {
        let tensors: BTreeMap<&str, &[usize]> =
            state.tensors.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..])).collect();
        return output::json(&json!({"model": null, "file": file, "tensors": tensors}));
    }
    file.print()?;
    let rows = state.tensors.iter().map(|(name, tensor)| {
        let kind = match tensor.data {
            TensorData::F32(_) => "float",
            TensorData::I64(_) => "integer",
        };
        vec![name.clone(), kind.into(), format!("{:?}", tensor.shape)]
    });
    output::table(&["tensor", "kind", "shape"], &["kind"], rows)?;
    let prefix = identify::common_prefix(state);
    let hint = prefix.map(|prefix| format!("; all names begin with `{}`", printable(&prefix))).unwrap_or_default();
    output::prose(format_args!("no network that is known has these weights{hint}"))
}
