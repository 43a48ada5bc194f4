//! Which network a weights file is for, and the file's tensors under that network's names.
//!
//! A file says it in its metadata, in the `config.json` beside it, or only by the names and shapes of its tensors. What those
//! leave open is an error where it is a question of numbers, and a note in [`StateDict::notes`] where one answer is by far the
//! likeliest.

mod lukemelas;

use crate::graph::{Graph, LayerId, Role};
use crate::models::{self, LookAlike, ModelError, Recognised, Spec};
use crate::text::{printable, quantity};
use crate::weights::{self, Config, ExpectedKind, Head, StateDict, TensorData, WeightsError};

/// Why a file is of no network.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{file} holds the weights of {found}, not of {named}")]
    Another { file: String, found: String, named: String },
    #[error("{file} holds the weights of {found}, which the file does not tell apart: say which with --model")]
    Ambiguous { file: String, found: String },
    #[error(
        "{file} fits {found}, but {source_of_name} calls the network {told}{}: {advice}",
        if *same_tensors { ", whose tensors have the same names and shapes and which computes something else with them" } else { "" }
    )]
    Contradiction {
        file: String,
        found: String,
        /// Such as `the config.json beside it`.
        source_of_name: &'static str,
        told: String,
        same_tensors: bool,
        advice: &'static str,
    },
    #[error(
        "{file} holds the weights of no network that is known{hint}; --model NAME says how it differs from one, and --model \
         FILE.json describes another"
    )]
    Unknown { file: String, hint: String },
    #[error("{file} holds several sets of weights that fit, with names that begin with {}: choose one with --weights-set", prefixes.join(", "))]
    SeveralSets { file: String, prefixes: Vec<String> },
    #[error(
        "{file}: its head `{module}` has several layers ({}), and no weights file says what lies between them: describe the \
         network in a graph file (`thawline inspect --model {model} --graph` prints one to be edited) with these layers in the place \
         of `{head}`, and name that with --model",
        layers.join(", ")
    )]
    HeadOfSeveral { file: String, model: String, head: String, module: String, layers: Vec<String> },
}

/// What a weights file is for.
#[derive(Clone)]
pub struct Identified {
    pub spec: Spec,
    /// Of the file's head; none if it has none that is a single layer.
    pub classes: Option<usize>,
    /// Whether the file's head has one output for two classes, as [`Spec::with_one_output`] has.
    pub one_output: bool,
}

/// What is known of a file's network from elsewhere.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// The network that the user names.
    pub named: Option<&'a Spec>,
    /// The network that the file describes.
    pub described: Option<&'a Spec>,
    /// What lies beside the file.
    pub config: Option<&'a Config>,
    /// The number of classes that the user asks for, and whether a head may start anew.
    pub classes: Option<usize>,
    pub new_head: bool,
}

/// Finds the network that `state` is for, and gives the tensors that network's names: without what stands before all of them,
/// and a head that is the one linear layer of a `Sequential` under the head's name. Notes on this go to
/// [`StateDict::notes`].
///
/// # Errors
/// No network fits; several do that compute different things; what the file, its folder and the user say contradicts itself; the
/// head has several layers.
pub fn identify(state: &mut StateDict, known: Known<'_>) -> Result<Identified, IdentifyError> {
    rename_dense_layers(state);
    let described = known.named.or(known.described).filter(|spec| spec.file().is_some());
    let spec = match described {
        // Names and shapes would only tell which named network it is like.
        Some(spec) => spec.clone(),
        // From here on the file is one of timm's.
        None => match lukemelas::renamed(state) {
            Some(spec) if known.named.is_none_or(|named| named.name == spec.name) => spec.clone(),
            _ => by_tensors(state, known)?,
        },
    };
    let graph = spec.build(1, spec.size(), spec.default_classes)?;
    take_prefix(state, &graph)?;
    drop_auxiliary(state, &graph);
    take_head(state, &spec, &graph, known)?;
    let head = graph.head().map(|head| format!("{}.weight", graph.layers()[head.index()].name));
    let outputs = head.and_then(|head| state.tensors.get(&head)?.shape.first().copied());
    let one_output = outputs == Some(1);
    if one_output {
        state.notes.push("its head has one output: the logit of the second of two classes".into());
    }
    Ok(Identified { spec, classes: if one_output { Some(2) } else { outputs }, one_output })
}

fn file_of(state: &StateDict) -> String {
    state.origin.as_ref().map_or_else(|| "the weights file".to_owned(), |path| path.display().to_string())
}

/// Whether the names and shapes of the tensors tell what network they may be for.
pub fn is_known(state: &StateDict) -> bool {
    let has_dense_layers = || state.tensors.keys().any(|name| name.contains(".denselayer"));
    lukemelas::has_names(state) || has_dense_layers() || recognise(state).is_some()
}

/// The networks whose weights `state` may hold.
pub fn recognise(state: &StateDict) -> Option<Recognised> {
    models::recognise(state.tensors.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..])))
}

/// The named network that fits the names and shapes of the tensors.
fn by_tensors(state: &mut StateDict, known: Known<'_>) -> Result<Spec, IdentifyError> {
    let file = file_of(state);
    let Some(Recognised { models: found, prefixes, .. }) = recognise(state) else {
        let beside = known.config.and_then(|config| config.architecture.as_deref());
        let told = state.metadata.get("model").and_then(|name| models::spec(name).ok());
        let named = known.named.or(told).or_else(|| beside.and_then(models::of_timm));
        return named.cloned().ok_or_else(|| {
            let mut hint = beside
                .map_or_else(String::new, |name| format!(" (the config.json beside it calls it {})", printable(name)));
            if let Some(prefix) = common_prefix(state) {
                hint += &format!(" (all names in it begin with `{}`)", printable(&prefix));
            }
            IdentifyError::Unknown { file, hint }
        });
    };
    drop_prefix(state, prefixes)?;
    let is_one = |spec: &&Spec| found.contains(&spec.name.as_ref());
    let all = || found.join(" or ");
    let told = told_by(state, known.config, &found);
    if let Some(named) = known.named {
        if !is_one(&named) {
            return Err(IdentifyError::Another { file, found: all(), named: named.name.to_string() });
        }
        if let Some(told) = told.into_iter().find(|told| told.is_other(named)) {
            state.notes.push(format!(
                "it is taken for {} as --model says, though {} calls the network {}",
                named.name,
                told.source,
                printable(&told.name)
            ));
        }
        return Ok(named.clone());
    }
    if let Some(other) = told.iter().find(|told| told.spec.is_none_or(|spec| !is_one(&spec))) {
        let same_tensors = models::look_alikes().any(|look| found.contains(&look.model) && look.name == other.name);
        let advice = match other.spec {
            Some(_) => "one of the two is wrong; say which is right with --model",
            None => {
                "that network is not known here; a graph file or an ONNX file of it can be named with --model, and if it is \
                     the first after all, its name"
            }
        };
        return Err(IdentifyError::Contradiction {
            file,
            found: all(),
            source_of_name: other.source,
            told: printable(&other.name),
            same_tensors,
            advice,
        });
    }
    if let Some(spec) = told.iter().find_map(|told| told.spec) {
        return Ok(spec.clone());
    }
    let [name] = found[..] else {
        return Err(IdentifyError::Ambiguous { file, found: all() });
    };
    let others: Vec<String> = models::look_alikes()
        .filter(|look| look.model == name && !look.same)
        .map(|LookAlike { library, name, .. }| format!("{library}'s {name}"))
        .collect();
    if !others.is_empty() {
        state.notes.push(format!(
            "it is taken for {name}; weights of {} have the same names and shapes, and would compute something else: neither the \
             file nor a config.json beside it says which it is, and --model {name} confirms it",
            others.join(", ")
        ));
    }
    Ok(models::spec(name)?.clone())
}

/// What a file, or one beside it, says of its network.
struct Told {
    source: &'static str,
    name: String,
    /// The network of that name, if it is known here.
    spec: Option<&'static Spec>,
}

impl Told {
    fn is_other(&self, than: &Spec) -> bool {
        self.spec.is_none_or(|spec| spec.name != than.name)
    }
}

/// What is said of the network of `state`, which fits `found`.
fn told_by(state: &StateDict, config: Option<&Config>, found: &[&str]) -> Vec<Told> {
    let mut told = Vec::new();
    if let Some(name) = state.metadata.get("model") {
        let spec = models::spec(name).ok().or_else(|| models::of_timm(name));
        // Others may mean anything by that word.
        let is_network = || models::look_alikes().any(|look| look.name == name);
        if spec.is_some() || is_network() {
            told.push(Told { source: "its metadata", name: name.clone(), spec });
        }
    }
    let in_metadata = state.metadata.get("architecture").map(|name| ("its metadata", name));
    let beside = config.and_then(|config| config.architecture.as_ref()).map(|name| ("the config.json beside it", name));
    for (source, name) in in_metadata.into_iter().chain(beside) {
        let ours = models::spec(name).ok().filter(|spec| found.contains(&spec.name.as_ref()));
        told.push(Told { source, name: name.clone(), spec: ours.or_else(|| models::of_timm(name)) });
    }
    told
}

/// What all names of tensors begin with, up to a dot.
pub fn common_prefix(state: &StateDict) -> Option<String> {
    let first = state.tensors.keys().next()?;
    let prefix = &first[..=first.find('.')?];
    state.tensors.keys().all(|name| name.starts_with(prefix)).then(|| prefix.to_owned())
}

/// Leaves what stands before the names of a graph's tensors off, where most of them have it.
fn take_prefix(state: &mut StateDict, graph: &Graph) -> Result<(), IdentifyError> {
    let wanted: Vec<String> = weights::expected(graph)
        .into_iter()
        // Counters may be missing from a good file, so they prove nothing.
        .filter(|wanted| wanted.kind == ExpectedKind::Float)
        .map(|wanted| wanted.name)
        .collect();
    let in_file =
        |prefix: &str| wanted.iter().filter(|name| state.tensors.contains_key(&format!("{prefix}{name}"))).count();
    let Some(first) = wanted.first() else { return Ok(()) };
    if in_file("") * 2 >= wanted.len() {
        return Ok(());
    }
    let prefixes = state.tensors.keys().filter_map(|name| name.strip_suffix(first.as_str()));
    let prefixes =
        prefixes.filter(|prefix| prefix.ends_with('.')).take(16).map(|prefix| (in_file(prefix), prefix.to_owned()));
    let prefixes: Vec<(usize, String)> = prefixes.filter(|(count, _)| count * 2 > wanted.len()).collect();
    let Some(&(most, _)) = prefixes.iter().max_by_key(|(count, _)| *count) else { return Ok(()) };
    let best = prefixes.into_iter().filter(|(count, _)| *count == most).map(|(_, prefix)| prefix);
    drop_prefix(state, best.collect())
}

/// Gives the layers of a DenseNet the names that torchvision has had for them since 0.3: `norm1` in place of `norm.1`, which
/// its downloads still have.
fn rename_dense_layers(state: &mut StateDict) {
    let renamed = |name: &str| {
        let (before, numbered) = ["norm", "conv"].iter().find_map(|part| {
            name.split_once(&format!(".{part}.")).map(|(before, after)| (before, format!("{part}{after}")))
        })?;
        let is_numbered = numbered[4..].starts_with(['1', '2']);
        let layer = before.rsplit('.').next()?;
        (is_numbered && layer.starts_with("denselayer")).then(|| format!("{before}.{numbered}"))
    };
    let names: Vec<(String, String)> =
        state.tensors.keys().filter_map(|name| Some((name.clone(), renamed(name)?))).collect();
    for (old, new) in names {
        if let Some(tensor) = state.tensors.remove(&old) {
            state.tensors.insert(new, tensor);
        }
    }
}

/// Leaves out classifiers beside the last one, which the network has not.
fn drop_auxiliary(state: &mut StateDict, graph: &Graph) {
    let expected = weights::expected(graph);
    let known = |name: &str| expected.iter().any(|wanted| wanted.name == name);
    let before = state.tensors.len();
    state.tensors.retain(|name, _| !models::is_auxiliary(name) || known(name));
    let dropped = before - state.tensors.len();
    if dropped > 0 {
        state.notes.push(format!(
            "{} of its auxiliary classifiers are left out: training has one loss here, that of the last classifier, and what is \
             saved does not hold them",
            quantity(dropped, "tensor")
        ));
    }
}

/// Keeps the tensors whose names begin with the one of the `prefixes` that is meant, without it.
fn drop_prefix(state: &mut StateDict, prefixes: Vec<String>) -> Result<(), IdentifyError> {
    /// Names that a note shows.
    const SHOWN: usize = 4;
    // Momentum contrast trains the query encoder, which its authors' own evaluation takes.
    let is_query = |prefix: &&String| prefix.split('.').any(|part| part == "encoder_q");
    let prefix = match (&prefixes[..], prefixes.iter().find(is_query)) {
        ([], _) => return Ok(()),
        ([one], _) | (_, Some(one)) => one.clone(),
        // What has no prefix is the network itself; the others are copies beside it.
        (several, None) if several.iter().any(String::is_empty) => {
            let copies: Vec<&str> = several.iter().map(String::as_str).filter(|prefix| !prefix.is_empty()).collect();
            state.tensors.retain(|name, _| !copies.iter().any(|prefix| name.starts_with(prefix)));
            let copies: Vec<String> = copies.into_iter().map(|prefix| format!("`{}`", printable(prefix))).collect();
            state.notes.push(format!(
                "the tensors without a prefix are taken; --weights-set chooses those whose names begin with {}",
                copies.join(", ")
            ));
            return Ok(());
        }
        (several, None) => {
            let prefixes = several.iter().map(|prefix| format!("`{}`", printable(prefix))).collect();
            return Err(IdentifyError::SeveralSets { file: file_of(state), prefixes });
        }
    };
    if prefix.is_empty() {
        return Ok(());
    }
    let others = state.keep_prefix(&prefix);
    let tensors = quantity(state.tensors.len(), "tensor");
    let mut note = format!("`{}` is left off the names of {tensors}", printable(&prefix));
    if !others.is_empty() {
        let shown: Vec<String> = others.iter().take(SHOWN).map(|name| printable(name)).collect();
        let more = others.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        note += &format!("; not part of the network, and left out: {}{more}", shown.join(", "));
    }
    state.notes.push(note);
    Ok(())
}

/// Gives a head that is the one linear layer of a `Sequential` the name of the network's; leaves one of several layers out where
/// another starts anyway.
fn take_head(state: &mut StateDict, spec: &Spec, graph: &Graph, known: Known<'_>) -> Result<(), IdentifyError> {
    let Some(head) = graph.head() else { return Ok(()) };
    let name = &graph.layers()[head.index()].name;
    let Some(features) = features_of(graph, head).filter(|_| !state.tensors.contains_key(&format!("{name}.weight")))
    else {
        return Ok(());
    };
    let module = models::head_module(name).to_owned();
    let expected: Vec<String> = weights::expected(graph).into_iter().map(|wanted| wanted.name).collect();
    let inside = |tensor: &str| {
        let rest = tensor.strip_prefix(&module)?.strip_prefix('.')?;
        (!expected.iter().any(|wanted| wanted == tensor))
            .then(|| rest.rsplit_once('.').map_or("", |(layer, _)| layer).to_owned())
    };
    let layers: Vec<(String, String)> =
        state.tensors.keys().filter_map(|tensor| Some((tensor.clone(), inside(tensor)?))).collect();
    if layers.is_empty() {
        return Ok(());
    }
    let full = |layer: &str| if layer.is_empty() { module.clone() } else { format!("{module}.{layer}") };
    let weight = |layer: &str| state.tensors.get(&format!("{}.weight", full(layer)));
    let is_linear = |layer: &str| {
        weight(layer).is_some_and(|weight| weight.shape.len() == 2 && matches!(weight.data, TensorData::F32(_)))
    };
    let first = layers[0].1.clone();
    let takes_features = weight(&first).is_some_and(|weight| weight.shape.get(1) == Some(&features));
    if layers.iter().all(|(_, layer)| *layer == first) && is_linear(&first) && takes_features {
        for part in ["weight", "bias"] {
            if let Some(tensor) = state.tensors.remove(&format!("{}.{part}", full(&first))) {
                state.tensors.insert(format!("{name}.{part}"), tensor);
            }
        }
        state.notes.push(format!(
            "`{}` is taken for the head `{name}`: the only layer with weights in `{module}`; what else may be there, such as \
             dropout, is not in the file",
            full(&first)
        ));
        return Ok(());
    }
    // By number: `10` stands before `2` in the order of names.
    let last =
        layers.iter().filter(|(_, layer)| weight(layer).is_some()).max_by_key(|(_, layer)| layer.parse::<usize>().ok());
    let rows = last.and_then(|(_, layer)| weight(layer)?.shape.first().copied());
    let of_weights = layers.iter().filter(|(tensor, _)| tensor.ends_with(".weight"));
    let listed: Vec<String> = of_weights
        .filter_map(|(_, layer)| Some(format!("{} {:?}", printable(&full(layer)), weight(layer)?.shape)))
        .collect();
    if known.new_head && known.classes.is_some() && rows != known.classes {
        for (tensor, _) in &layers {
            state.tensors.remove(tensor);
        }
        state.notes.push(format!("its head `{module}` of several layers ({}) is left out", listed.join(", ")));
        return Ok(());
    }
    Err(IdentifyError::HeadOfSeveral {
        file: file_of(state),
        model: spec.name.to_string(),
        head: name.clone(),
        module,
        layers: listed,
    })
}

/// The inputs of a linear head.
fn features_of(graph: &Graph, head: LayerId) -> Option<usize> {
    let weight = graph.params().iter().find(|param| param.layer == head && param.role == Role::LinearWeight)?;
    Some(weight.channels)
}

impl Known<'_> {
    /// Whether the file needs a head.
    pub fn head(&self) -> Head {
        if self.new_head { Head::Optional } else { Head::Required }
    }
}
