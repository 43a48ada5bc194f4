//! Which layers a rule is about.

use crate::graph::{Layer, LayerKind};
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
    Kind(LayerKind),
    /// The last layer of a kind.
    Last(LayerKind),
    Name(GlobMatcher),
    /// From the first to before the second, where there is one.
    Index(usize, Option<usize>),
    /// The layer or the first layer of the module of that name, and all after it.
    From(String),
}

/// Forms, and what follows the colon in each.
const FORMS: [(&str, &str); 5] = [
    ("kind", "a kind of layer, such as kind:bn"),
    ("last", "a kind of layer, such as last:linear for the last linear layer"),
    ("name", "a pattern, such as name:layer4.*"),
    ("index", "a range of layer numbers, such as index:10..20, index:10.. or index:3"),
    ("from", "a layer's name, such as from:layer3.0.conv1"),
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

    /// Which of the layers are selected.
    ///
    /// # Errors
    /// None is; or a term other than a negated `kind:` finds nothing by itself, which is a slip of the pen.
    pub(super) fn select(&self, layers: &[Layer]) -> Result<Vec<bool>, String> {
        let mut selected = vec![true; layers.len()];
        for term in &self.terms {
            let found = term.test.find(layers)?;
            let may_be_absent = term.negated && matches!(term.test, Test::Kind(_));
            if !may_be_absent && !found.contains(&true) {
                return Err(format!("`{}` matches no layer: {}", term.test, term.test.why_nothing(layers)));
            }
            for (selected, found) in selected.iter_mut().zip(found) {
                *selected &= found != term.negated;
            }
        }
        match selected.contains(&true) {
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
            "kind" => kind(argument).map(Self::Kind),
            "last" => kind(argument).map(Self::Last),
            "name" => pattern(argument).map(Self::Name),
            "index" => match range(argument) {
                Some((start, Some(end))) if end <= start => Err(format!("`{text}` is an empty range")),
                Some((start, end)) => Ok(Self::Index(start, end)),
                None => Err(format!("`{argument}` in `{text}` is not {accepted}")),
            },
            _ => Ok(Self::From(argument.into())),
        }
    }

    /// Which of the layers pass.
    ///
    /// # Errors
    /// `from:` names no layer.
    fn find(&self, layers: &[Layer]) -> Result<Vec<bool>, String> {
        let range = match self {
            Self::Kind(kind) => return Ok(layers.iter().map(|l| l.kind == *kind).collect()),
            Self::Name(glob) => return Ok(layers.iter().map(|l| glob.is_match(&l.name)).collect()),
            Self::Last(kind) => match layers.iter().rposition(|l| l.kind == *kind) {
                Some(last) => last..last + 1,
                None => 0..0,
            },
            Self::Index(start, end) => *start..end.unwrap_or(usize::MAX),
            Self::From(name) => {
                let start = layers.iter().position(|l| l.name == *name);
                let start = start.or_else(|| {
                    layers.iter().position(|l| l.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
                });
                let near = || suggestion(name, layers.iter().map(|l| l.name.as_str()));
                start.ok_or_else(|| format!("`{self}`: the network has no layer `{name}`{}", near()))?..usize::MAX
            }
        };
        Ok((0..layers.len()).map(|i| range.contains(&i)).collect())
    }

    /// Why none of the layers pass.
    fn why_nothing(&self, layers: &[Layer]) -> String {
        match self {
            Self::Kind(kind) | Self::Last(kind) => format!("the network has no layer of kind {}", kind.name()),
            Self::Index(..) => format!("the network's layers are numbered 0 to {}", layers.len().saturating_sub(1)),
            Self::Name(glob) => {
                let near = suggestion(glob.glob().glob(), layers.iter().map(|l| l.name.as_str()));
                format!("the network has no name like it{near}")
            }
            Self::From(name) => format!("the network has no layer `{name}`"),
        }
    }
}

fn forms() -> String {
    format!("write {}", FORMS.map(|(name, _)| format!("{name}:…")).join(", "))
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

/// `a..b`, `a..=b`, `a..`, `..b`, `..=b` or `a`, as start and end.
fn range(text: &str) -> Option<(usize, Option<usize>)> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let Some((start, end)) = text.split_once("..") else {
        let index = number(text)?;
        return Some((index, Some(index.checked_add(1)?)));
    };
    let end = match (end.trim(), end.trim().strip_prefix('=')) {
        ("", _) => None,
        (_, Some(last)) => Some(number(last)?.checked_add(1)?),
        (end, None) => Some(number(end)?),
    };
    match start.trim() {
        "" if end.is_none() => None,
        "" => Some((0, end)),
        start => Some((number(start)?, end)),
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
            Self::Kind(kind) => write!(f, "kind:{}", kind.name()),
            Self::Last(kind) => write!(f, "last:{}", kind.name()),
            Self::Name(glob) => write!(f, "name:{}", glob.glob()),
            Self::Index(start, None) => write!(f, "index:{start}.."),
            Self::Index(start, Some(end)) if start + 1 == *end => write!(f, "index:{start}"),
            Self::Index(start, Some(end)) => write!(f, "index:{start}..{end}"),
            Self::From(name) => write!(f, "from:{name}"),
        }
    }
}
