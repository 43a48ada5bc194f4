//! What layers and residual blocks are called.

use super::proto::NodeProto;
use crate::models::{Entry, LayerOp};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The module that a node's name is of, if PyTorch wrote it: `/layer1/layer1.0/conv1/Conv` is of `layer1.0.conv1`.
pub(super) fn scope(name: &str) -> Option<String> {
    let (path, _) = name.strip_prefix('/')?.rsplit_once('/').unwrap_or_default();
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        // A part of a list is called after the list.
        let inside = |list: &&str| part.strip_prefix(*list).is_some_and(|rest| rest.starts_with('.'));
        if parts.last().is_some_and(inside) {
            parts.pop();
        }
        parts.push(part);
    }
    Some(parts.join("."))
}

/// The scopes that hold a scope.
pub(super) fn parents(scope: &str) -> Vec<String> {
    scope.match_indices('.').map(|(at, _)| scope[..at].to_owned()).collect()
}

/// The name of a node in which no module is to be found.
pub(super) fn plain(node: &NodeProto) -> String {
    let name = [node.name(), node.output.first().map_or("", String::as_str), node.op_type()];
    name.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned()
}

/// A name that selectors can have.
pub(super) fn clean(name: &str) -> String {
    const LONGEST: usize = 200;
    let clean = |c: char| if c.is_alphanumeric() || "._-/:".contains(c) { c } else { '_' };
    name.trim_matches('/').chars().take(LONGEST).map(clean).collect()
}

/// Finds residual blocks: what is between an addition and the place where its operands part. A block is called as the names
/// of its layers begin, or like the addition.
pub(super) fn find_blocks(layers: &mut [Entry]) {
    let index: HashMap<String, usize> = layers.iter().enumerate().map(|(i, layer)| (layer.name.clone(), i)).collect();
    let inputs: Vec<Vec<usize>> =
        layers.iter().map(|layer| layer.inputs.iter().filter_map(|name| index.get(name).copied()).collect()).collect();
    for add in 0..layers.len() {
        if layers[add].op != (LayerOp::Add {}) {
            continue;
        }
        let [a, b] = inputs[add][..] else { continue };
        let branches = apart(&inputs, a, b);
        let names = || branches.iter().copied().chain([add]).map(|i| layers[i].name.as_str());
        let name = common_prefix(names()).unwrap_or(&layers[add].name).to_owned();
        let inside = format!("{name}.");
        for (i, layer) in layers.iter_mut().enumerate() {
            if layer.block.is_none() && (i == add || branches.contains(&i) || layer.name.starts_with(&inside)) {
                layer.block = Some(name.clone());
            }
        }
    }
}

/// The layers that only one of `a` and `b` follows from, those two included.
fn apart(inputs: &[Vec<usize>], a: usize, b: usize) -> HashSet<usize> {
    // Layers stand behind what they read, so whoever reads a layer has been seen before it. Once both follow from all that
    // is left, they follow from all that comes before.
    let mut sides: BTreeMap<usize, u8> = BTreeMap::from([(a, 1)]);
    *sides.entry(b).or_default() |= 2;
    let mut found = HashSet::new();
    while sides.values().any(|&side| side != 3) {
        let Some((layer, side)) = sides.pop_last() else { break };
        if side != 3 {
            found.insert(layer);
        }
        for &input in &inputs[layer] {
            *sides.entry(input).or_default() |= side;
        }
    }
    found
}

/// How all names begin, up to a dot.
fn common_prefix<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut prefix = names.next()?;
    prefix = prefix.rsplit_once('.')?.0;
    for name in names {
        while !name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) {
            prefix = prefix.rsplit_once('.')?.0;
        }
    }
    Some(prefix)
}
