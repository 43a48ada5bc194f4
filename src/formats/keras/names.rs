//! Which dataset of a Keras file holds which tensor of which layer.
//!
//! Three structures are in use. Keras 3's, which tf_keras writes into `.keras` too: a group a layer, named after its class
//! and counted (`layers/batch_normalization_3`), where `vars/0`, `vars/1`, … are the variables in the order in which the
//! layer made them; the layer's own name is an attribute of `vars`, which tf_keras leaves out. The groups' names follow
//! from the order of the layers in `config.json` then. And the older one of `.h5`: a group a layer under its own name,
//! with an attribute that lists its variables by name (`stem_bn/gamma:0`); those of a model inside the model lie flat in
//! that model's group.

use std::collections::{HashMap, HashSet};
use std::iter;

use hdf5_pure::Group;
use serde_json::Value;

/// Models within models, far more than there are in practice.
pub(super) const MAX_DEPTH: usize = 16;

/// Slashes in the name of a variable, and layers of one name within a model: far more than there are in practice.
const MAX_SLASHES: usize = 64;
const MAX_NAMESAKES: usize = 64;

/// Bytes of the paths of all layers; EfficientNetB7's take less than 100 kB.
pub(super) const MAX_PATHS: usize = 32 << 20;

/// A layer as a configuration lists it.
#[derive(Clone, Debug)]
pub(in crate::formats) struct Node {
    pub(super) name: String,
    pub(super) class: String,
    /// For a batch norm or a layer norm, whether it has gamma, and beta.
    affine: (bool, bool),
    /// The layers of a model within the model.
    children: Vec<Node>,
}

impl Node {
    /// The layers that a model's configuration lists.
    pub(in crate::formats) fn all(config: &Value) -> Vec<Self> {
        Self::within(config, 0)
    }

    fn within(model: &Value, depth: usize) -> Vec<Self> {
        let config = &model["config"];
        // Keras 2.1 and older had a list where a Sequential's configuration is an object now.
        let layers = config.get("layers").unwrap_or(config).as_array();
        layers.into_iter().flatten().filter(|_| depth < MAX_DEPTH).filter_map(|layer| Self::of(layer, depth)).collect()
    }

    fn of(layer: &Value, depth: usize) -> Option<Self> {
        let config = &layer["config"];
        let name = config["name"].as_str().or_else(|| layer["name"].as_str())?;
        let on = |key: &str| config[key].as_bool().unwrap_or(true);
        // Of a registered class, Keras 2 says by whom.
        let class = layer["class_name"].as_str()?.rsplit('>').next()?;
        Some(Self {
            name: name.to_owned(),
            class: class.to_owned(),
            affine: (on("scale"), on("center")),
            children: Self::within(layer, depth + 1),
        })
    }
}

/// What a dataset holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::formats) enum Part {
    /// `[KH, KW, Cin, Cout]`
    Conv,
    /// `[KH, KW, C, 1]`
    Depthwise,
    /// `[in, out]`
    Dense,
    /// `[in, out]` where an image of so many channels is flattened before the layer; 0 if the file does not say how many.
    Flattened(usize),
    Bias,
    Gamma,
    Beta,
    Mean,
    Variance,
    /// `[C]` of a layer that multiplies each channel, whose tensor has the layer's own name.
    Scale,
    /// Of a normalisation of the images.
    ImageMean,
    ImageVariance,
    /// Something that no network here has a place for, under Keras's name for it or its number.
    Other(String),
}

/// A dataset that holds a tensor.
#[derive(Clone, Debug)]
pub(in crate::formats) struct Variable {
    /// The layer, with the models that it is in before it: `base/stem_bn`. The two halves of a separable convolution are
    /// layers of their own, `name.depthwise` and `name.pointwise`.
    pub(in crate::formats) layer: String,
    pub(in crate::formats) part: Part,
    /// Where it is in the HDF5 file, or what else it is called.
    pub(in crate::formats) dataset: String,
}

impl Variable {
    /// The name that its tensor has in a [`StateDict`](crate::weights::StateDict), if it is one of the network's.
    pub(in crate::formats) fn tensor(&self) -> Option<String> {
        let part = match &self.part {
            Part::Conv | Part::Depthwise | Part::Dense | Part::Flattened(_) | Part::Gamma => "weight",
            Part::Bias | Part::Beta => "bias",
            Part::Mean => "running_mean",
            Part::Variance => "running_var",
            Part::Scale => return Some(self.layer.clone()),
            Part::ImageMean | Part::ImageVariance => return None,
            Part::Other(name) => name,
        };
        Some(format!("{}.{part}", self.layer))
    }
}

/// The layers that are no models by their own names, each with its path.
type Leaves<'a> = HashMap<&'a str, Vec<(String, &'a Node)>>;

/// Adds the layers below `nodes`, whose paths may take `left` bytes.
fn leaves<'a>(nodes: &'a [Node], prefix: &str, left: &mut usize, out: &mut Leaves<'a>) -> Result<(), String> {
    for node in nodes {
        let path = format!("{prefix}{}", node.name);
        charge(left, &path)?;
        match node.children.is_empty() {
            true => out.entry(&node.name).or_default().push((path, node)),
            false => leaves(&node.children, &format!("{path}/"), left, out)?,
        }
    }
    Ok(())
}

pub(super) fn charge(left: &mut usize, path: &str) -> Result<(), String> {
    *left = left.checked_sub(path.len()).ok_or("the names of its layers are too long")?;
    Ok(())
}

/// The layers of a model by name; the first of those that have one name.
fn by_name(nodes: &[Node]) -> HashMap<&str, &Node> {
    nodes.iter().rev().map(|node| (node.name.as_str(), node)).collect()
}

/// What the layers of a file have.
#[derive(Default)]
pub(super) struct Found {
    /// In the order of the file.
    pub(super) variables: Vec<Variable>,
    /// Whether a layer flattens something, by its class or its name.
    pub(super) flattens: bool,
    /// Whether one may, for all that is known of their classes.
    pub(super) may_flatten: bool,
}

/// All variables of the layers.
pub(super) fn variables(root: &Group, tree: Option<&[Node]>) -> Result<Found, String> {
    let mut found = Found::default();
    let groups: HashMap<String, Group> = root.iter_groups().map_err(text)?.collect();
    if groups.contains_key("layers") {
        counted(root, "", "", tree, 0, &mut found)?;
    } else if let Some(weights) = groups.get("model_weights") {
        named(weights, "model_weights/", tree, &mut found)?;
    } else if root.attrs().map_err(text)?.keys().any(|key| key.starts_with("layer_names")) {
        named(root, "", tree, &mut found)?;
    } else {
        return Err("it has neither `layers` nor `model_weights`, so Keras did not write it".to_owned());
    }
    Ok(found)
}

pub(super) fn text(error: hdf5_pure::Error) -> String {
    error.to_string()
}

/// The variables below a model's group, in Keras 3's structure. `at` is the group's path and `prefix` what the names of
/// its layers begin with; both are empty or end in a slash.
fn counted(
    model: &Group,
    at: &str,
    prefix: &str,
    tree: Option<&[Node]>,
    depth: usize,
    found: &mut Found,
) -> Result<(), String> {
    if depth == MAX_DEPTH {
        return Err(format!("models lie within models more than {MAX_DEPTH} deep"));
    }
    let by_group: Option<HashMap<String, &Node>> = tree.map(counted_names);
    let by_name = tree.map(by_name);
    let layers = model.group("layers").map_err(text)?;
    for (group, layer) in layers.iter_groups().map_err(text)? {
        found.flattens |= uncounted(&group) == "flatten";
        found.may_flatten |= ["flatten", "reshape"].contains(&uncounted(&group));
        let path = format!("{at}layers/{group}/");
        let parts: HashMap<String, Group> = layer.iter_groups().map_err(text)?.collect();
        let vars = parts.get("vars");
        let told = match vars {
            Some(vars) => vars.attrs().map_err(text)?.get("name").and_then(|name| name.as_str().map(str::to_owned)),
            None => None,
        };
        let node = match (&told, &by_name, &by_group) {
            (Some(name), Some(by_name), _) => by_name.get(name.as_str()).copied(),
            (None, _, Some(by_group)) => by_group.get(&group).copied(),
            _ => None,
        };
        if parts.contains_key("layers") {
            let name = told.as_deref().or(node.map(|node| node.name.as_str())).unwrap_or(&group);
            let children = node.map(|node| &node.children[..]).filter(|children| !children.is_empty());
            counted(&layer, &path, &format!("{prefix}{name}/"), children, depth + 1, found)?;
            continue;
        }
        let Some(vars) = vars else { continue };
        let mut numbers: Vec<String> = vars.iter_datasets().map_err(text)?.map(|(name, _)| name).collect();
        if numbers.is_empty() {
            continue;
        }
        numbers.sort_by_key(|number| number.parse().unwrap_or(usize::MAX));
        let Some(name) = told.as_deref().or(node.map(|node| node.name.as_str())) else {
            return Err(match tree {
                Some(_) => format!("{path} has weights, but config.json has no layer that it could belong to"),
                None => format!(
                    "{path} does not say the layer's name, and no config.json does: give the whole model's file, written \
                     by model.save"
                ),
            });
        };
        let class = node.map_or_else(|| uncounted(&group).to_owned(), |node| snake_case(&node.class));
        let affine = node.map(|node| node.affine);
        for (number, (inner, part)) in numbers.iter().zip(parts_in_order(&class, affine, numbers.len())?) {
            let (layer, dataset) = (format!("{prefix}{name}{inner}"), format!("{path}vars/{number}"));
            found.variables.push(Variable { layer, part, dataset });
        }
    }
    Ok(())
}

/// The groups that Keras keeps layers in, by the order of the configuration: the class in snake case, and from the
/// second of a class on a number.
fn counted_names(tree: &[Node]) -> HashMap<String, &Node> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    tree.iter()
        .map(|node| {
            let class = snake_case(&node.class);
            let count = seen.entry(class.clone()).or_default();
            let name = if *count == 0 { class } else { format!("{class}_{count}") };
            *count += 1;
            (name, node)
        })
        .collect()
}

/// A group's name without its number.
fn uncounted(group: &str) -> &str {
    match group.rsplit_once('_') {
        Some((class, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => class,
        _ => group,
    }
}

/// `BatchNormalization` to `batch_normalization`, `Conv2D` to `conv2d`: an underscore before a capital that follows a
/// small letter or begins a word.
fn snake_case(class: &str) -> String {
    let letters: Vec<char> = class.chars().collect();
    let mut name = String::with_capacity(class.len() + 4);
    for (index, &letter) in letters.iter().enumerate() {
        let small = |index: usize| letters.get(index).is_some_and(char::is_ascii_lowercase);
        if index > 0 && letter.is_ascii_uppercase() && (small(index - 1) || small(index + 1)) {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// What the variables of a layer are, in the order in which a layer of that class makes them, each with what it adds to
/// the layer's name. `affine` says of a norm whether it has gamma, and beta, where that is known.
fn parts_in_order(
    class: &str,
    affine: Option<(bool, bool)>,
    count: usize,
) -> Result<Vec<(&'static str, Part)>, String> {
    let plain = |parts: Vec<Part>| parts.into_iter().map(|part| ("", part)).collect();
    let parts: Vec<(&str, Part)> = match class {
        "conv2d" => plain(vec![Part::Conv, Part::Bias]),
        "depthwise_conv2d" => plain(vec![Part::Depthwise, Part::Bias]),
        "separable_conv2d" => {
            vec![(".depthwise", Part::Depthwise), (".pointwise", Part::Conv), (".pointwise", Part::Bias)]
        }
        "dense" => plain(vec![Part::Dense, Part::Bias]),
        "layer_scale" => plain(vec![Part::Scale]),
        "layer_normalization" => {
            let (gamma, beta) = affine.unwrap_or((count > 1, count > 1));
            let kept = [(Part::Gamma, gamma), (Part::Beta, beta)];
            plain(kept.into_iter().filter_map(|(part, kept)| kept.then_some(part)).collect())
        }
        "batch_normalization" => {
            let (gamma, beta) = match (affine, count) {
                (Some(affine), _) => affine,
                (None, 3) => {
                    return Err(
                        "a batch norm has three variables, so it lacks gamma or beta, and only the whole model's \
                                file, written by model.save, says which"
                            .to_owned(),
                    );
                }
                (None, count) => (count > 2, count > 2),
            };
            let kept = [(Part::Gamma, gamma), (Part::Beta, beta), (Part::Mean, true), (Part::Variance, true)];
            plain(kept.into_iter().filter_map(|(part, kept)| kept.then_some(part)).collect())
        }
        "normalization" => plain(vec![Part::ImageMean, Part::ImageVariance, Part::Other("count".to_owned())]),
        _ => Vec::new(),
    };
    let unknown = (parts.len()..count).map(|number| ("", Part::Other(format!("vars/{number}"))));
    Ok(parts.into_iter().take(count).chain(unknown).collect())
}

/// The variables below the group of a model, in the older structure. `at` is empty or ends in a slash.
fn named(model: &Group, at: &str, tree: Option<&[Node]>, found: &mut Found) -> Result<(), String> {
    // The names of layers are anybody's choice.
    found.may_flatten = true;
    let by_name = tree.map(by_name);
    let mut listed = HashSet::new();
    let mut left = MAX_PATHS;
    for name in list(model, "layer_names")? {
        if !listed.insert(name.clone()) {
            return Err(format!("it lists the layer `{name}` twice"));
        }
        found.flattens |= name.to_ascii_lowercase().contains("flatten");
        let group = model.group(&name).map_err(text)?;
        let weights = list(&group, "weight_names")?;
        let node = match &by_name {
            Some(by_name) if !weights.is_empty() => {
                let node = by_name.get(name.as_str()).copied();
                Some(node.ok_or_else(|| format!("`{name}` has weights, but model_config has no such layer"))?)
            }
            _ => None,
        };
        // Without a configuration, a layer that is named otherwise than the group lies in a model within the model.
        let nested = match node {
            Some(node) => !node.children.is_empty(),
            None => weights.iter().filter_map(|weight| owner(weight)).any(|owner| !ends_in(owner, &name)),
        };
        let owner = |weight| owner(weight).filter(|_| nested);
        let mut leaves_within = Leaves::new();
        leaves(node.map_or(&[], |node| &node.children), "", &mut left, &mut leaves_within)?;
        // Of one layer, so that what a kernel is can be told from what is beside it.
        let mut labels: HashMap<Option<&str>, HashSet<&str>> = HashMap::new();
        for weight in &weights {
            labels.entry(owner(weight)).or_default().insert(label(weight));
        }
        for weight in &weights {
            let inner = owner(weight);
            let (layer, node) = match (inner, node) {
                (None, node) => (name.clone(), node),
                (Some(inner), None) => {
                    let inner = inner.strip_prefix(&name).and_then(|inner| inner.strip_prefix('/')).unwrap_or(inner);
                    (format!("{name}/{inner}"), None)
                }
                (Some(inner), Some(_)) => {
                    let (path, node) = descendant(&leaves_within, inner)
                        .map_err(|reason| format!("`{name}` has a variable `{weight}`, but {reason}"))?;
                    (format!("{name}/{path}"), Some(node))
                }
            };
            charge(&mut left, &layer)?;
            let has = |label: &str| labels.get(&inner).is_some_and(|labels| labels.contains(label));
            let (half, part) = part_of(weight, node, has);
            let (layer, dataset) = (format!("{layer}{half}"), format!("{at}{name}/{weight}"));
            found.variables.push(Variable { layer, part, dataset });
        }
    }
    Ok(())
}

/// The variables of a list of names, `stem_bn/gamma`. Those of a model within the model may have its name before their own.
pub(in crate::formats) fn listed(names: &[&str], tree: &[Node]) -> Result<Vec<Variable>, String> {
    let mut left = MAX_PATHS;
    let mut within = Leaves::new();
    leaves(tree, "", &mut left, &mut within)?;
    let mut labels: HashMap<Option<&str>, HashSet<&str>> = HashMap::new();
    for name in names {
        labels.entry(owner(name)).or_default().insert(label(name));
    }
    let mut variables = Vec::new();
    for name in names {
        let of = owner(name);
        let (layer, node) = descendant(&within, of.unwrap_or_default())
            .map_err(|reason| format!("it has a weight `{name}`, but {reason}"))?;
        charge(&mut left, &layer)?;
        let (half, part) =
            part_of(name, Some(node), |label| labels.get(&of).is_some_and(|labels| labels.contains(label)));
        variables.push(Variable { layer: format!("{layer}{half}"), part, dataset: (*name).to_owned() });
    }
    Ok(variables)
}

/// The strings of an attribute, which Keras cuts into `name0`, `name1`, … where it is too long.
fn list(group: &Group, name: &str) -> Result<Vec<String>, String> {
    let attributes = group.attrs().map_err(text)?;
    let strings = |key: &str| attributes.get(key).map(|value| value.as_strings().unwrap_or_default().to_vec());
    if let Some(whole) = strings(name) {
        return Ok(whole);
    }
    let pieces: Vec<Vec<String>> = (0..).map_while(|piece| strings(&format!("{name}{piece}"))).collect();
    if pieces.is_empty() { Err(format!("a group has no attribute `{name}`")) } else { Ok(pieces.concat()) }
}

/// A variable's own name: what is behind the last slash, without TensorFlow's `:0`.
fn label(weight: &str) -> &str {
    let last = weight.rsplit('/').next().unwrap_or(weight);
    last.split_once(':').map_or(last, |(label, _)| label)
}

/// What is before a variable's own name.
fn owner(weight: &str) -> Option<&str> {
    weight.rsplit_once('/').map(|(owner, _)| owner)
}

/// Whether the last parts of a path, between slashes, are those of another.
fn ends_in(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

/// The layer that the variables of `owner` belong to, and its path in the model that has `leaves`.
fn descendant<'a>(leaves: &Leaves<'a>, owner: &str) -> Result<(String, &'a Node), String> {
    // A layer's own name may have slashes, as in `Conv/BatchNorm`, and the models that it is in may come before it.
    let starts = iter::once(0).chain(owner.match_indices('/').map(|(slash, _)| slash + 1));
    let namesakes = starts.take(MAX_SLASHES).find_map(|start| leaves.get(&owner[start..]));
    let namesakes = namesakes.ok_or("no layer that it could belong to")?;
    // Of several layers of one name, the one that the variable's name gives the way to.
    let is_meant = |path: &str| ends_in(owner, path) || ends_in(path, owner);
    let meant: Vec<_> = match &namesakes[..] {
        [one] => vec![one],
        several if several.len() > MAX_NAMESAKES => Vec::new(),
        several => several.iter().filter(|(path, _)| is_meant(path)).collect(),
    };
    match meant[..] {
        [(path, node)] => Ok((path.clone(), node)),
        _ => Err(format!("several layers are called `{}`: save the model as .keras", namesakes[0].1.name)),
    }
}

/// What a variable is by its name, and what it adds to the layer's name.
fn part_of(weight: &str, node: Option<&Node>, has: impl Fn(&str) -> bool) -> (&'static str, Part) {
    let class = node.map(|node| snake_case(&node.class));
    let separable = class.as_deref() == Some("separable_conv2d") || has("pointwise_kernel");
    let half = |half| if separable { half } else { "" };
    match (label(weight), class.as_deref()) {
        ("depthwise_kernel", _) | ("kernel", Some("depthwise_conv2d")) => (half(".depthwise"), Part::Depthwise),
        ("pointwise_kernel", _) => (".pointwise", Part::Conv),
        // Keras 3 calls it `variable`.
        (_, Some("layer_scale")) | ("variable", None) => ("", Part::Scale),
        ("gamma", None) if !has("beta") && !has("moving_mean") => ("", Part::Scale),
        ("kernel", Some("dense")) => ("", Part::Dense),
        // Which of the two, the dataset's shape tells where no configuration does.
        ("kernel", _) => ("", Part::Conv),
        ("bias", _) => (half(".pointwise"), Part::Bias),
        ("gamma", _) => ("", Part::Gamma),
        ("beta", _) => ("", Part::Beta),
        ("moving_mean", _) => ("", Part::Mean),
        ("moving_variance", _) => ("", Part::Variance),
        ("mean", _) => ("", Part::ImageMean),
        ("variance", _) => ("", Part::ImageVariance),
        (other, _) => ("", Part::Other(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_belong_to_the_layer_whose_name_is_longest() {
        let layer = |name: &str| json!({"class_name": "Conv2D", "config": {"name": name}});
        let model =
            |name: &str, layers: Value| json!({"class_name": "Functional", "config": {"name": name, "layers": layers}});
        let config = model(
            "m",
            json!([
                layer("Conv"),
                layer("BatchNorm"),
                layer("Conv/BatchNorm"),
                model("a", json!([layer("stem"), layer("twice")])),
                model("b", json!([layer("twice")])),
            ]),
        );
        let nodes = Node::all(&config);
        let mut found = Leaves::new();
        leaves(&nodes, "", &mut MAX_PATHS.clone(), &mut found).unwrap();
        let path = |owner: &str| descendant(&found, owner).map(|(path, _)| path);
        for (owner, expected) in [
            ("Conv", "Conv"),
            ("Conv/BatchNorm", "Conv/BatchNorm"),
            ("m/Conv/BatchNorm", "Conv/BatchNorm"),
            ("other/BatchNorm", "BatchNorm"),
            ("stem", "a/stem"),
            ("a/stem", "a/stem"),
            ("b/twice", "b/twice"),
            ("m_1/a/twice", "a/twice"),
        ] {
            assert_eq!(path(owner).as_deref(), Ok(expected), "{owner}");
        }
        assert!(path("nowhere").unwrap_err().contains("no layer that it could belong to"));
        assert!(path(&"/".repeat(1000)).unwrap_err().contains("no layer that it could belong to"));
        assert!(path("twice").unwrap_err().contains("several layers are called `twice`"));
        assert!(leaves(&nodes, "", &mut 20, &mut Leaves::new()).unwrap_err().contains("too long"));
    }

    #[test]
    fn classes_are_written_as_keras_writes_them() {
        for (class, snake) in [
            ("Conv2D", "conv2d"),
            ("DepthwiseConv2D", "depthwise_conv2d"),
            ("BatchNormalization", "batch_normalization"),
            ("ReLU", "re_lu"),
            ("GlobalAveragePooling2D", "global_average_pooling2d"),
            ("InputLayer", "input_layer"),
            ("TFOpLambda", "tf_op_lambda"),
        ] {
            assert_eq!(snake_case(class), snake);
        }
        assert_eq!(uncounted("batch_normalization_12"), "batch_normalization");
        assert_eq!(uncounted("conv2d"), "conv2d");
    }
}
