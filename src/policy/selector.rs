//! Which layers a rule is about.

use crate::graph::{Graph, Layer, LayerId, LayerKind, Model};
use crate::nearest::suggestion;
use globset::{Glob, GlobMatcher};
use std::fmt;

/// Terms joined by ` & `; a layer is selected when all of them hold.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Kind {
        kind: LayerKind,
        /// That there is none is no slip of the pen.
        if_any: bool,
    },
    /// The layer that gives the classes.
    Head,
    /// The last layer of a kind.
    Last(LayerKind),
    Name(GlobMatcher),
    /// The layers of these numbers in the model of that name, or in the outermost one.
    Index(Option<String>, Range),
    Block(Blocks),
    /// The layer of that name, or the first layer of the module or block, and all after it.
    From(String),
    /// The first layer of these blocks, and all after it.
    FromBlock(Blocks),
}

/// Which blocks.
#[derive(Clone, Debug)]
enum Blocks {
    Number(Range),
    Name(GlobMatcher),
}

/// From `start` to before `end`, where there is one. Numbers below zero count from the end: −1 is the last.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: isize,
    end: Option<isize>,
}

const HEAD: &str = "head";

/// Forms, and what follows the colon in each.
const FORMS: [(&str, &str); 6] = [
    ("kind", "a kind of layer, such as kind:bn, or kind:dropout? where there may be none"),
    ("last", "a kind of layer, such as last:linear for the last linear layer"),
    ("name", "a pattern, such as name:layer4.*"),
    (
        "index",
        "a range of layer numbers, such as index:10..20, index:-20.. or index:3, or within a model that is a layer, \
         index:efficientnetb0/100..",
    ),
    ("block", "a range of block numbers or a pattern, such as block:2..5, block:-1 or block:layer3.*"),
    ("from", "a layer's or a block's name, such as from:layer3.0.conv1, from:block5a or from:block:5"),
];

/// Keeps the automaton that a pattern compiles to small.
const MAX_PATTERN_BYTES: usize = 256;

impl Selector {
    /// # Errors
    /// What is wrong, with the offending text and what is accepted.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let terms = text.split('&').map(|term| Term::parse(term.trim())).collect::<Result<_, _>>()?;
        Ok(Self { terms })
    }

    /// Which of the network's layers are selected.
    ///
    /// # Errors
    /// None is, though none of the terms is a `kind:…?` that finds nothing; or a term other than such a one and a negated
    /// `kind:` finds nothing by itself, which is a slip of the pen.
    pub(super) fn select(&self, graph: &Graph) -> Result<Vec<bool>, String> {
        let mut selected = vec![true; graph.layers().len()];
        let mut absent = false;
        for term in &self.terms {
            let found = term.test.find(graph)?;
            if !found.contains(&true) {
                match term.test {
                    Test::Kind { if_any: true, .. } => absent = true,
                    Test::Kind { .. } if term.negated => {}
                    _ => return Err(format!("`{}` matches no layer: {}", term.test, term.test.why_nothing(graph))),
                }
            }
            for (selected, found) in selected.iter_mut().zip(found) {
                *selected &= found != term.negated;
            }
        }
        match absent || selected.contains(&true) {
            true => Ok(selected),
            false => Err(format!("no layer of the network is `{self}`")),
        }
    }
}

impl Term {
    fn parse(text: &str) -> Result<Self, String> {
        let (negated, test) = match text.strip_prefix('!') {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text),
        };
        Ok(Self { negated, test: Test::parse(test)? })
    }
}

impl Test {
    fn parse(text: &str) -> Result<Self, String> {
        let (form, argument) = match text.split_once(':') {
            None if text == HEAD => return Ok(Self::Head),
            Some((form, argument)) => (form.trim_end(), argument.trim()),
            None if text.is_empty() => return Err(format!("a selector is missing; {}", forms())),
            None => return Err(format!("`{text}` is not a selector; {}", forms())),
        };
        let Some((_, accepted)) = FORMS.iter().find(|(name, _)| *name == form) else {
            let near = suggestion(form, FORMS.iter().map(|(name, _)| *name));
            return Err(format!("unknown selector `{form}:` in `{text}`{near}; {}", forms()));
        };
        if argument.is_empty() {
            return Err(format!("`{text}` is incomplete: after `{form}:` comes {accepted}"));
        }
        match form {
            "kind" => {
                let (name, if_any) = match argument.strip_suffix('?') {
                    Some(name) => (name.trim_end(), true),
                    None => (argument, false),
                };
                Ok(Self::Kind { kind: kind(name)?, if_any })
            }
            "last" => kind(argument).map(Self::Last),
            "name" => pattern(argument).map(Self::Name),
            "index" => {
                let (model, range) = match argument.rsplit_once('/') {
                    Some((model, range)) => (Some(model.trim()), range),
                    None => (None, argument),
                };
                match Range::parse(range).filter(|_| model.is_none_or(|model| !model.is_empty())) {
                    Some(range) if range.is_empty() => Err(format!("`{text}` is an empty range")),
                    Some(range) => Ok(Self::Index(model.map(str::to_owned), range)),
                    None => Err(format!("`{argument}` in `{text}` is not {accepted}")),
                }
            }
            "block" => Blocks::parse(argument).map(Self::Block),
            _ => match argument.split_once(':').filter(|(form, _)| form.trim_end() == "block") {
                Some((_, blocks)) => Blocks::parse(blocks.trim_start()).map(Self::FromBlock),
                None => Ok(Self::From(argument.into())),
            },
        }
    }

    /// Which of the layers pass.
    ///
    /// # Errors
    /// `from:` names no layer, `index:` no model; or several are called so.
    fn find(&self, graph: &Graph) -> Result<Vec<bool>, String> {
        let layers = graph.layers();
        let range = match self {
            Self::Kind { kind, .. } => return Ok(layers.iter().map(|l| l.kind.is(*kind)).collect()),
            Self::Name(glob) => return matching(graph, glob, names).map_err(|reason| format!("`{self}`: {reason}")),
            Self::Index(model, range) => {
                let scope = Scope::of(graph, model.as_deref()).map_err(|reason| format!("`{self}`: {reason}"))?;
                let range = range.of(scope.layers);
                let inside = |number: &Option<usize>| number.is_some_and(|number| range.contains(&number));
                return Ok(scope.numbers.iter().map(inside).collect());
            }
            Self::Block(blocks) => return blocks.find(graph).map_err(|reason| format!("`{self}`: {reason}")),
            Self::Head => match graph.head() {
                Some(head) => head.index()..head.index() + 1,
                None => 0..0,
            },
            Self::Last(kind) => match layers.iter().rposition(|l| l.kind.is(*kind)) {
                Some(last) => last..last + 1,
                None => 0..0,
            },
            Self::From(wanted) => {
                first_called(graph, wanted).map_err(|reason| format!("`{self}`: {reason}"))?..usize::MAX
            }
            Self::FromBlock(blocks) => {
                let found = blocks.find(graph).map_err(|reason| format!("`{self}`: {reason}"))?;
                match found.iter().position(|found| *found) {
                    Some(first) => first..usize::MAX,
                    None => 0..0,
                }
            }
        };
        Ok((0..layers.len()).map(|i| range.contains(&i)).collect())
    }

    /// Why none of the layers pass.
    fn why_nothing(&self, graph: &Graph) -> String {
        match self {
            Self::Head => "the network has neither a linear layer nor a convolution".into(),
            Self::Kind { kind, .. } | Self::Last(kind) => format!("the network has no layer of kind {}", kind.name()),
            Self::Index(model, _) => match Scope::of(graph, model.as_deref()) {
                Ok(scope) => scope.why_nothing(graph),
                Err(reason) => reason,
            },
            Self::Name(glob) => {
                let pattern = glob.glob().glob();
                let is_block = graph.layers().iter().any(|layer| block_names(graph, layer).any(|name| name == pattern));
                match is_block {
                    true => format!("that is a block; block:{pattern} selects its layers"),
                    false => format!("the network has no name like it{}", near(graph, pattern)),
                }
            }
            Self::Block(blocks) | Self::FromBlock(blocks) => blocks.why_nothing(graph),
            Self::From(name) => format!("the network has no layer `{name}`"),
        }
    }
}

/// The layers of one model of the network's file, or of the network where its file has no models.
struct Scope<'a> {
    model: Option<&'a Model>,
    /// Of each layer of the network; none if it lies elsewhere.
    numbers: Vec<Option<usize>>,
    /// How many layers there are, with those that compute nothing here.
    layers: usize,
}

impl<'a> Scope<'a> {
    /// That of the model called `name`, or of the outermost one.
    fn of(graph: &'a Graph, name: Option<&str>) -> Result<Self, String> {
        let model = match name {
            Some(name) => Some(model_called(graph, name)?),
            None => graph.model_at(&[]),
        };
        let around = model.map_or(&[][..], |model| &model.position);
        let number = |index: usize| graph.position(LayerId::new(index)).strip_prefix(around)?.first().copied();
        let numbers: Vec<Option<usize>> = (0..graph.layers().len()).map(number).collect();
        let listed = numbers.iter().flatten().max().map_or(0, |last| last + 1);
        Ok(Self { model, numbers, layers: model.map_or(listed, |model| model.layers) })
    }

    /// Why none of its layers are in a range.
    fn why_nothing(&self, graph: &Graph) -> String {
        let numbers = || self.numbers.iter().flatten();
        let (first, last) = (numbers().min(), numbers().max());
        if let Some(Model { name, layers, .. }) = self.model.filter(|model| !model.position.is_empty()) {
            return match first.zip(last) {
                None => format!("`{name}` has {layers} layers, none of which computes anything here"),
                Some((first, last)) => format!(
                    "`{name}` has {layers} layers, numbered 0 to {}, and those that compute something here are in {first} to \
                     {last}",
                    layers.saturating_sub(1)
                ),
            };
        }
        let (first, last) = (first.unwrap_or(&0), last.unwrap_or(&0));
        let gaps = match graph.layers().iter().any(|layer| !layer.position.is_empty()) {
            true => ", as in their file, but for those that compute nothing here",
            false => "",
        };
        let within = match graph.models().len() > 1 {
            true => {
                format!("; a model within it is one layer, whose own are index:NAME/100..; {}", listed_models(graph))
            }
            false => String::new(),
        };
        format!("the network's layers are numbered {first} to {last}{gaps}{within}")
    }
}

/// The model within the network's model that is called `name`: by the names of all models down to it, by the end of those,
/// or by number.
fn model_called<'a>(graph: &'a Graph, name: &str) -> Result<&'a Model, String> {
    let nested = || graph.models().iter().filter(|model| !model.position.is_empty());
    let number = |model: &Model| model.position.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
    let ends_so =
        |model: &&Model| model.name.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    if let Some(model) = nested().find(|model| model.name == name || number(model) == name) {
        return Ok(model);
    }
    match nested().filter(ends_so).collect::<Vec<_>>()[..] {
        [model] => Ok(model),
        [] => {
            let names = nested().flat_map(|model| [&model.name[..], own(&model.name)]);
            let near = suggestion(name, names);
            Err(format!("there is no model `{name}`{near}; {}", listed_models(graph)))
        }
        ref several => {
            let names = several.iter().map(|model| model.name.as_str());
            Err(format!("several models are called `{name}`: {}", listed(names)))
        }
    }
}

/// The models within the network's model, in words.
fn listed_models(graph: &Graph) -> String {
    let nested = graph.models().iter().filter(|model| !model.position.is_empty());
    let nested: Vec<String> = nested.map(|model| format!("`{}` ({} layers)", model.name, model.layers)).collect();
    match nested.is_empty() {
        true => "the network has no models within it".to_owned(),
        false => format!("the models within it are {}", listed(nested.iter().map(String::as_str))),
    }
}

/// Several names, or the first of many.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    /// Names that a message shows.
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.take(SHOWN).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// What stands behind the last slash.
fn own(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a layer is called: by its whole name and by what remains of it within each model that the layer lies in, as Keras
/// names a model's layers without the model; and by its alias.
fn names<'a>(graph: &'a Graph, layer: &'a Layer) -> impl Iterator<Item = &'a str> {
    within_models(graph, layer, &layer.name).chain(layer.alias.as_deref())
}

/// As [`names`], of the layer's block.
fn block_names<'a>(graph: &'a Graph, layer: &'a Layer) -> impl Iterator<Item = &'a str> {
    layer.block.as_deref().into_iter().flat_map(move |block| within_models(graph, layer, block))
}

/// A name of `layer` and its ends that lack the names of the models around the layer, from the outermost on.
fn within_models<'a>(graph: &'a Graph, layer: &'a Layer, name: &'a str) -> impl Iterator<Item = &'a str> {
    let models = (1..layer.position.len()).filter_map(|depth| graph.model_at(&layer.position[..depth]));
    let within = models.filter_map(move |model| name.strip_prefix(model.name.as_str())?.strip_prefix('/'));
    std::iter::once(name).chain(within)
}

/// The layers of which one of the names matches. A pattern without wildcards is a name: what is called so in full goes before
/// what is called so within a model.
///
/// # Errors
/// Several are called so in different models.
fn matching<'a, N: Iterator<Item = &'a str>>(
    graph: &'a Graph,
    glob: &GlobMatcher,
    names: impl Fn(&'a Graph, &'a Layer) -> N,
) -> Result<Vec<bool>, String> {
    let pattern = glob.glob().glob();
    let layers = || graph.layers().iter();
    let found =
        |test: &dyn Fn(&str) -> bool| layers().map(|layer| names(graph, layer).any(test)).collect::<Vec<bool>>();
    if pattern.contains(['*', '?', '[', '{', '\\']) {
        return Ok(found(&|name| glob.is_match(name)));
    }
    let mut full: Vec<&str> = Vec::new();
    for layer in layers().filter(|layer| names(graph, layer).any(|name| name == pattern)) {
        full.extend(names(graph, layer).next().filter(|name| !full.contains(name)));
    }
    match full.contains(&pattern) {
        true => Ok(layers().map(|layer| names(graph, layer).next() == Some(pattern)).collect()),
        false if full.len() > 1 => Err(several(pattern, &full)),
        false => Ok(found(&|name| name == pattern)),
    }
}

fn several(name: &str, full: &[&str]) -> String {
    format!("several are called `{name}`: {}; write the one that is meant", listed(full.iter().copied()))
}

/// How a name can begin with another, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Beginning {
    Whole,
    /// The module of that name: a dot or a slash follows.
    Module,
    /// The block or stage of that name: a word ends there, as in `block5a_expand_conv`, or a number does, as in `block5a`.
    Word,
}

impl Beginning {
    fn of(name: &str, wanted: &str) -> Option<Self> {
        match name.strip_prefix(wanted)?.chars().next() {
            None => Some(Self::Whole),
            Some('.' | '/') => Some(Self::Module),
            Some(next) if !next.is_alphanumeric() => Some(Self::Word),
            Some(next) if next.is_alphabetic() && wanted.ends_with(|last: char| last.is_ascii_digit()) => {
                Some(Self::Word)
            }
            Some(_) => None,
        }
    }
}

/// The first layer of what is called `wanted`.
///
/// # Errors
/// Nothing is called so, or what is lies in different models.
fn first_called(graph: &Graph, wanted: &str) -> Result<usize, String> {
    let mut best: Option<Beginning> = None;
    // What is called so, in full, and its first layer.
    let mut found: Vec<(&str, usize)> = Vec::new();
    for (index, layer) in graph.layers().iter().enumerate() {
        for name in names(graph, layer) {
            let Some(beginning) = Beginning::of(name, wanted) else { continue };
            if best.is_none_or(|best| beginning < best) {
                best = Some(beginning);
                found.clear();
            }
            let full = if layer.name.ends_with(name) { layer.name.as_str() } else { name };
            let called = &full[..full.len() - name.len() + wanted.len()];
            if best == Some(beginning) && !found.iter().any(|(other, _)| *other == called) {
                found.push((called, index));
            }
        }
    }
    match found[..] {
        [] => Err(format!("the network has no layer `{wanted}`{}", near(graph, wanted))),
        [(_, first)] => Ok(first),
        ref several_found => match several_found.iter().find(|(called, _)| *called == wanted) {
            Some((_, first)) => Ok(*first),
            None => Err(several(wanted, &several_found.iter().map(|(called, _)| *called).collect::<Vec<_>>())),
        },
    }
}

/// The name of a layer or block that may have been meant.
fn near(graph: &Graph, wanted: &str) -> String {
    let layers = graph.layers().iter();
    suggestion(wanted, layers.flat_map(|layer| block_names(graph, layer).chain(names(graph, layer))))
}

impl Blocks {
    fn parse(text: &str) -> Result<Self, String> {
        match Range::parse(text) {
            Some(range) if range.is_empty() => Err(format!("`block:{text}` is an empty range")),
            Some(range) => Ok(Self::Number(range)),
            None => pattern(text).map(Self::Name),
        }
    }

    /// Which layers belong to them.
    ///
    /// # Errors
    /// Several blocks in different models are called so.
    fn find(&self, graph: &Graph) -> Result<Vec<bool>, String> {
        let range = match self {
            Self::Number(range) => range,
            Self::Name(glob) => return matching(graph, glob, block_names),
        };
        let blocks = graph.blocks();
        let numbers = range.of(blocks.len());
        let found = |name: &str| blocks.iter().position(|block| *block == name).is_some_and(|n| numbers.contains(&n));
        Ok(graph.layers().iter().map(|layer| layer.block.as_deref().is_some_and(found)).collect())
    }

    fn why_nothing(&self, graph: &Graph) -> String {
        let blocks = graph.blocks();
        let near = match self {
            Self::Number(_) => String::new(),
            Self::Name(glob) => {
                let names = graph.layers().iter().flat_map(|layer| block_names(graph, layer));
                suggestion(glob.glob().glob(), names)
            }
        };
        match blocks.len() {
            0 => "the network has no blocks that are named".into(),
            1 => format!("the network has one block, {}{near}", blocks[0]),
            n => format!("the network has {n} blocks, numbered 0 to {}{near}: {}", n - 1, blocks.join(", ")),
        }
    }
}

fn forms() -> String {
    format!("write {HEAD}, {}", FORMS.map(|(name, _)| format!("{name}:…")).join(", "))
}

fn kind(text: &str) -> Result<LayerKind, String> {
    LayerKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        let names = LayerKind::ALL.map(LayerKind::name);
        format!("unknown kind `{text}`{}; the kinds are {}", suggestion(text, names), names.join(", "))
    })
}

/// `*` and `?` match across dots.
fn pattern(text: &str) -> Result<GlobMatcher, String> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!("a pattern has at most {MAX_PATTERN_BYTES} bytes; this one has {}", text.len()));
    }
    let glob = Glob::new(text).map_err(|error| format!("bad pattern `{text}`: {}", error.kind()))?;
    Ok(glob.compile_matcher())
}

impl Range {
    /// `a..b`, `a..=b`, `a..`, `..b`, `..=b` or `a`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.trim().parse::<isize>().ok();
        // What ends behind the last of all has no end.
        let behind = |last: isize| last.checked_add(1).map(|end| (last != -1).then_some(end));
        let Some((start, end)) = text.split_once("..") else {
            let start = number(text)?;
            return Some(Self { start, end: behind(start)? });
        };
        let end = match (end.trim(), end.trim().strip_prefix('=')) {
            ("", _) if start.trim().is_empty() => return None,
            ("", _) => None,
            (_, Some(last)) => behind(number(last)?)?,
            (end, None) => Some(number(end)?),
        };
        let start = if start.trim().is_empty() { 0 } else { number(start)? };
        Some(Self { start, end })
    }

    /// Whether it holds nothing, however many there are.
    fn is_empty(self) -> bool {
        self.end.is_some_and(|end| end == 0 || (end <= self.start && (end < 0) == (self.start < 0)))
    }

    /// The range among `count` things.
    fn of(self, count: usize) -> std::ops::Range<usize> {
        let place = |n: isize| if n < 0 { count.saturating_sub(n.unsigned_abs()) } else { n.unsigned_abs() };
        place(self.start)..self.end.map_or(usize::MAX, place)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            write!(f, "{}{}{}", if i > 0 { " & " } else { "" }, if term.negated { "!" } else { "" }, term.test)?;
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind { kind, if_any } => write!(f, "kind:{}{}", kind.name(), if *if_any { "?" } else { "" }),
            Self::Head => write!(f, "{HEAD}"),
            Self::Last(kind) => write!(f, "last:{}", kind.name()),
            Self::Name(glob) => write!(f, "name:{}", glob.glob()),
            Self::Index(None, range) => write!(f, "index:{range}"),
            Self::Index(Some(model), range) => write!(f, "index:{model}/{range}"),
            Self::Block(blocks) => write!(f, "block:{blocks}"),
            Self::From(name) => write!(f, "from:{name}"),
            Self::FromBlock(blocks) => write!(f, "from:block:{blocks}"),
        }
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(range) => range.fmt(f),
            Self::Name(glob) => f.write_str(glob.glob().glob()),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            None => write!(f, "{}..", self.start),
            Some(end) if self.start.checked_add(1) == Some(end) => write!(f, "{}", self.start),
            Some(end) => write!(f, "{}..{end}", self.start),
        }
    }
}
