//! Which layers a rule is about.

use crate::graph::{Graph, Layer, LayerId, LayerKind};
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
    Index(Range),
    Block(Blocks),
    /// The layer or the first layer of the module of that name, and all after it.
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
    ("index", "a range of layer numbers, such as index:10..20, index:10.. or index:3"),
    ("block", "a range of block numbers or a pattern, such as block:2..5, block:-1 or block:layer3.*"),
    ("from", "a layer's or a block's name, such as from:layer3.0.conv1 or from:block:5"),
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
            "index" => match Range::parse(argument).filter(|range| !range.counts_back()) {
                Some(range) if range.is_empty() => Err(format!("`{text}` is an empty range")),
                Some(range) => Ok(Self::Index(range)),
                None => Err(format!("`{argument}` in `{text}` is not {accepted}")),
            },
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
    /// `from:` names no layer.
    fn find(&self, graph: &Graph) -> Result<Vec<bool>, String> {
        let layers = graph.layers();
        let range = match self {
            Self::Kind { kind, .. } => return Ok(layers.iter().map(|l| l.kind == *kind).collect()),
            Self::Name(glob) => return Ok(layers.iter().map(|l| names(l).any(|name| glob.is_match(name))).collect()),
            Self::Index(range) => {
                let numbers = numbers(graph);
                let range = range.of(numbers.iter().max().map_or(0, |last| last + 1));
                return Ok(numbers.iter().map(|number| range.contains(number)).collect());
            }
            Self::Block(blocks) => return Ok(blocks.find(graph)),
            Self::Head => match graph.head() {
                Some(head) => head.index()..head.index() + 1,
                None => 0..0,
            },
            Self::Last(kind) => match layers.iter().rposition(|l| l.kind == *kind) {
                Some(last) => last..last + 1,
                None => 0..0,
            },
            Self::From(wanted) => {
                let inside = |name: &str| name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(['.', '/']));
                let start = layers.iter().position(|l| names(l).any(|name| name == wanted));
                let start = start.or_else(|| layers.iter().position(|l| names(l).any(inside)));
                let near = || suggestion(wanted, layers.iter().flat_map(names));
                start.ok_or_else(|| format!("`{self}`: the network has no layer `{wanted}`{}", near()))?..usize::MAX
            }
            Self::FromBlock(blocks) => match blocks.find(graph).iter().position(|found| *found) {
                Some(first) => first..usize::MAX,
                None => 0..0,
            },
        };
        Ok((0..layers.len()).map(|i| range.contains(&i)).collect())
    }

    /// Why none of the layers pass.
    fn why_nothing(&self, graph: &Graph) -> String {
        match self {
            Self::Head => "the network has neither a linear layer nor a convolution".into(),
            Self::Kind { kind, .. } | Self::Last(kind) => format!("the network has no layer of kind {}", kind.name()),
            Self::Index(_) => {
                let numbers = numbers(graph);
                let (first, last) = (numbers.iter().min().unwrap_or(&0), numbers.iter().max().unwrap_or(&0));
                let gaps = match graph.layers().iter().any(|layer| layer.position.is_some()) {
                    true => ", as in their file, but for those that compute nothing here",
                    false => "",
                };
                format!("the network's layers are numbered {first} to {last}{gaps}")
            }
            Self::Name(glob) => {
                let near = suggestion(glob.glob().glob(), graph.layers().iter().flat_map(names));
                format!("the network has no name like it{near}")
            }
            Self::Block(blocks) | Self::FromBlock(blocks) => blocks.why_nothing(graph),
            Self::From(name) => format!("the network has no layer `{name}`"),
        }
    }
}

/// What a layer is called.
fn names(layer: &Layer) -> impl Iterator<Item = &str> {
    [Some(layer.name.as_str()), layer.alias.as_deref()].into_iter().flatten()
}

fn numbers(graph: &Graph) -> Vec<usize> {
    (0..graph.layers().len()).map(|index| graph.number(LayerId::new(index))).collect()
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
    fn find(&self, graph: &Graph) -> Vec<bool> {
        let blocks = graph.blocks();
        let numbers = match self {
            Self::Number(range) => range.of(blocks.len()),
            Self::Name(_) => 0..0,
        };
        let found = |name: &str| match self {
            Self::Number(_) => blocks.iter().position(|block| *block == name).is_some_and(|n| numbers.contains(&n)),
            Self::Name(glob) => glob.is_match(name),
        };
        graph.layers().iter().map(|layer| layer.block.as_deref().is_some_and(found)).collect()
    }

    fn why_nothing(&self, graph: &Graph) -> String {
        let blocks = graph.blocks();
        let near = match self {
            Self::Number(_) => String::new(),
            Self::Name(glob) => suggestion(glob.glob().glob(), blocks.iter().copied()),
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

    /// Whether any of its numbers counts from the end.
    fn counts_back(self) -> bool {
        self.start < 0 || self.end.is_some_and(|end| end < 0)
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
            Self::Index(range) => write!(f, "index:{range}"),
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
