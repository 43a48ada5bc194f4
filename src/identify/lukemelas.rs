//! The names of `efficientnet_pytorch` (github.com/lukemelas/EfficientNet-PyTorch), under which many EfficientNets were published
//! before timm had them: TensorFlow's networks, which timm has as `tf_efficientnet_*`.

use crate::graph::Graph;
use crate::models::{MODELS, Spec};
use crate::weights::{self, StateDict};

/// A tensor by which such a file is known.
const STEM: &str = "_conv_stem.weight";

/// Whether a file has such names.
pub(super) fn has_names(state: &StateDict) -> bool {
    state.tensors.keys().any(|name| name.ends_with(STEM))
}

/// The network of `state`, if its tensors have such names, which become timm's.
pub(super) fn renamed(state: &mut StateDict) -> Option<&'static Spec> {
    let prefix = state.tensors.keys().find_map(|name| name.strip_suffix(STEM))?.to_owned();
    let candidates = || MODELS.iter().filter(|spec| spec.name.starts_with("tf_efficientnet_"));
    let (spec, names) = candidates().find_map(|spec| {
        let graph = spec.build(1, spec.size(), spec.default_classes).ok()?;
        let names = names(&graph);
        let fits = weights::expected(&graph).iter().zip(&names).all(|(wanted, old)| {
            let found = state.tensors.get(&format!("{prefix}{old}"));
            let is_head = old.starts_with("_fc.");
            // Old files may lack counters.
            found.map_or(wanted.shape.is_empty(), |found| match is_head {
                true => found.shape.get(1..) == wanted.shape.get(1..),
                false => found.shape == wanted.shape,
            })
        });
        let count = state.tensors.keys().filter(|name| name.starts_with(&prefix)).count();
        (fits && count <= names.len()).then(|| (spec, weights::expected(&graph).into_iter().zip(names)))
    })?;
    for (wanted, old) in names {
        if let Some(tensor) = state.tensors.remove(&format!("{prefix}{old}")) {
            state.tensors.insert(wanted.name, tensor);
        }
    }
    state.notes.push(format!(
        "its tensors have the names of the package efficientnet_pytorch (`{prefix}{STEM}`): they are taken for timm's {}, and what is \
         saved has timm's names",
        spec.name
    ));
    Some(spec)
}

/// That package's name of each tensor of one of timm's EfficientNets, in the order of [`weights::expected`].
fn names(graph: &Graph) -> Vec<String> {
    let expected = weights::expected(graph);
    let block_of = |name: &str| {
        let mut parts = name.split('.');
        (parts.next() == Some("blocks"))
            .then(|| format!("blocks.{}.{}.", parts.next().unwrap_or(""), parts.next().unwrap_or("")))
    };
    let mut blocks: Vec<String> = Vec::new();
    for block in expected.iter().filter_map(|wanted| block_of(&wanted.name)) {
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    let expands = |block: &str| expected.iter().any(|wanted| wanted.name == format!("{block}conv_pwl.weight"));
    let name =
        |name: &str| match block_of(name).and_then(|block| Some((blocks.iter().position(|b| *b == block)?, block))) {
            Some((number, block)) => {
                let (module, part) = split(&name[block.len()..]);
                format!("_blocks.{number}.{}.{part}", in_block(module, expands(&block)))
            }
            None => {
                let (module, part) = split(name);
                format!("{}.{part}", outside(module))
            }
        };
    expected.iter().map(|wanted| name(&wanted.name)).collect()
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

/// Of a module of a block, which begins with an expansion or, as the first ones, does not.
fn in_block(module: &str, expands: bool) -> &str {
    match (module, expands) {
        ("conv_pw", true) => "_expand_conv",
        ("bn1", true) => "_bn0",
        ("bn1", false) | ("bn2", true) => "_bn1",
        ("conv_pwl", true) | ("conv_pw", false) => "_project_conv",
        ("bn2", false) | ("bn3", true) => "_bn2",
        ("conv_dw", _) => "_depthwise_conv",
        ("se.conv_reduce", _) => "_se_reduce",
        ("se.conv_expand", _) => "_se_expand",
        (other, _) => other,
    }
}

fn outside(module: &str) -> &str {
    match module {
        "conv_stem" => "_conv_stem",
        "bn1" => "_bn0",
        "conv_head" => "_conv_head",
        "bn2" => "_bn1",
        "classifier" => "_fc",
        other => other,
    }
}
