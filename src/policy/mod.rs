//! What trains, what moves and what stays: ordered rules that give every layer of a network its setting.
//!
//! Everything starts frozen (`weights=frozen, lr=1`; batch norms `stats=running, update=off, affine=none, var=unbiased,
//! domain=batch`; `dropout=off`). Rules apply in order, and the last one that speaks of an axis of a layer wins. A rule reads
//! `SELECTOR -> axis=value, axis=value`:
//!
//! | selector | layers |
//! |---|---|
//! | `kind:bn` | of a [kind](LayerKind::ALL) |
//! | `kind:dropout?` | the same, where that there is none is no error |
//! | `head` | the one that gives the classes: the last linear layer or convolution |
//! | `last:linear` | the last one of a kind |
//! | `name:layer4.*` | whose name or alias matches a glob; `*` matches dots and slashes too |
//! | `index:10..20` | by [number](Graph::number); also `10..`, `..20`, `10..=19`, `10`, and as in Python `-20..` |
//! | `index:base/100..` | the same within the [model](Graph::models) `base`, which itself is one layer of the outermost |
//! | `block:2..5` | of the [blocks](Graph::blocks) of these numbers; `-1` is the last, and so on |
//! | `block:layer3.*` | of the blocks whose name matches a glob |
//! | `from:layer3` | the layer, or the first layer of the module or block, of that name or alias, and all after it in graph order |
//! | `from:block:5` | the first layer of what `block:5` selects, and all after it |
//! | `!kind:bn` | those that are not |
//! | `kind:bn & from:layer3` | that are both |
//!
//! A layer of a model within the model is called as the model calls it, or with the names of the models before its own:
//! `stem_bn`, `base/stem_bn`. What is called so in full goes first; a name that several have within models is an error.
//!
//! The axes are the variants of [`Assignment`]. A [`Policy`] is a [recipe](RECIPES), or a TOML file in the same words:
//!
//! ```toml
//! base = "head"            # optional: the recipe whose rules come first
//! rules = [
//!     "kind:bn & from:layer4 -> stats=batch, update=ema(0.95), affine=both",
//!     "head -> lr=10",
//! ]
//! [[stages]]               # optional: rules that are added later in the run
//! from = 0.8               # the share of its optimiser steps before them
//! rules = ["kind:bn -> stats=running, update=off"]
//! ```
//!
//! A stage is a new plan, with an optimiser that starts anew.

mod axes;
mod recipes;
mod resolve;
mod selector;

pub use axes::{Assignment, describe};
pub use recipes::{RECIPES, Recipe};
pub use resolve::{FEW_VALUES, Resolved, Warning, resolve, resolve_stages};

use crate::files::read_text;
use crate::graph::{Graph, Layer, LayerId, LayerKind, Stats};
use crate::nearest::suggestion;
use crate::text::{message, printable};
use selector::Selector;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The longest policy file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The longest rule or selector, in bytes. Patterns have a limit of their own.
const MAX_TEXT: usize = 4096;

/// Rules of a policy, those of its stages apart, and of each stage.
pub const MAX_RULES: usize = 1000;

/// Stages of a policy. Each is a plan of its own.
pub const MAX_STAGES: usize = 64;

/// `SELECTOR -> axis=value, axis=value`
#[derive(Clone, Debug)]
pub struct Rule {
    selector: Selector,
    assignments: Vec<Assignment>,
}

/// Ordered rules with a name.
///
/// # Example
/// ```
/// use thawline::{models, policy};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let policy = policy::Policy::recipe("head")?.with_rules(&["from:layer4 -> weights=train, affine=both"])?;
/// let resolved = policy::resolve(&policy, models::build("resnet18", 8, (64, 64), 10)?)?;
/// let trains = resolved.graph.layers().iter().filter(|l| l.setting.weights).count();
/// assert_eq!(trains, 6);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    /// The recipe's name, or the file's without its ending.
    pub name: String,
    pub rules: Vec<Rule>,
    /// What changes in the course of a run, in order.
    pub stages: Vec<Stage>,
}

/// Rules that are added to a policy's in the course of a run.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The share of the run's optimiser steps before it, more than 0 and less than 1.
    pub from: f64,
    pub rules: Vec<Rule>,
}

/// A policy that cannot be read, or does not suit the network.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "unknown policy `{}`{}; it is one of {}, or a file whose name ends in .toml",
        printable(name),
        suggestion(name, names()),
        names().collect::<Vec<_>>().join(", ")
    )]
    UnknownRecipe { name: String },
    #[error("rule `{}`: {}", printable(rule), message(reason))]
    Rule { rule: String, reason: String },
    #[error("selector `{}`: {}", printable(selector), message(reason))]
    Selector { selector: String, reason: String },
    #[error("{file}: {}", message(reason))]
    File { file: String, reason: String },
    #[error("a policy has at most {MAX_RULES} rules, and as many in each stage; this one has {count}")]
    TooManyRules { count: usize },
    #[error("a policy has at most {MAX_STAGES} stages")]
    TooManyStages,
    #[error("{reason}; a stage has `from`, the share of the steps before it, between 0 and 1 and above the last one's")]
    Stage { reason: String },
    #[error("from {from} of the steps on: {source}")]
    InStage { from: f64, source: Box<PolicyError> },
    #[error(
        "{layers}: stats={stats} with update=off would train against each batch's own statistics but run on running \
         statistics that never follow; set update=ema(0.9) to let them follow, or stats=running to train on them"
    )]
    StaleStatistics { layers: String, stats: Stats },
    #[error(
        "{layers}: domain=ghost({samples}) cuts a batch into runs of {samples} samples, but this one has {batch}; \
         choose a batch that is a multiple of {samples}, or another k for domain=ghost(k)"
    )]
    UnevenGhosts { layers: String, samples: usize, batch: usize },
    #[error(
        "{layers}: the statistics of a batch would be taken over a single value a channel, whose variance is nothing; \
         raise the batch (k under domain=ghost(k)) or the image size, or set stats=running, update=off there"
    )]
    SingleValue { layers: String },
    #[error(
        "policy `{policy}` freezes the whole network: nothing trains and no statistics move; try `head`, or a rule \
         such as `head -> weights=train`"
    )]
    AllFrozen { policy: String },
}

fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.name)
}

/// The layers of `kind` that a selector selects, in graph order: at least one.
///
/// # Errors
/// The text is no selector, or it matches no such layer.
pub fn select(selector: &str, kind: LayerKind, graph: &Graph) -> Result<Vec<LayerId>, PolicyError> {
    let fail = |reason| PolicyError::Selector { selector: printable(selector.trim()), reason };
    check_length("selector", selector).map_err(fail)?;
    let selected = Selector::parse(selector.trim()).and_then(|s| s.select(graph)).map_err(fail)?;
    let layers = (0..).map(LayerId).zip(graph.layers()).zip(selected);
    let of_kind = |((_, layer), selected): &((LayerId, &Layer), bool)| *selected && layer.kind.is(kind);
    let layers: Vec<LayerId> = layers.filter(of_kind).map(|((id, _), _)| id).collect();
    match layers.is_empty() {
        true => Err(fail(format!("none of the layers that it selects is of kind {}", kind.name()))),
        false => Ok(layers),
    }
}

impl Rule {
    pub fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// The layers that the rule is about, in graph order: at least one, unless the selector says `kind:…?`.
    ///
    /// # Errors
    /// The selector matches nothing.
    pub fn select(&self, graph: &Graph) -> Result<Vec<LayerId>, PolicyError> {
        let selected = self.selector.select(graph).map_err(|reason| self.error(reason))?;
        Ok((0..).map(LayerId).zip(selected).filter(|(_, selected)| *selected).map(|(id, _)| id).collect())
    }

    fn error(&self, reason: String) -> PolicyError {
        PolicyError::Rule { rule: self.to_string(), reason }
    }
}

impl FromStr for Rule {
    type Err = PolicyError;

    /// # Errors
    /// The text is no rule. The message quotes what is wrong and says what is accepted.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let parse = || {
            check_length("rule", text)?;
            let Some((selector, assignments)) = text.split_once("->") else {
                return Err("there is no `->`; write SELECTOR -> axis=value, axis=value".to_owned());
            };
            let selector = Selector::parse(selector.trim())?;
            let assignments: Vec<Assignment> = split_commas(assignments)
                .map(|assignment| Assignment::parse(assignment.trim()))
                .collect::<Result<_, _>>()?;
            for (i, assignment) in assignments.iter().enumerate() {
                if assignments[..i].iter().any(|earlier| earlier.axis() == assignment.axis()) {
                    return Err(format!("`{assignment}` sets {} a second time", assignment.axis()));
                }
            }
            Ok(Self { selector, assignments })
        };
        parse().map_err(|reason| PolicyError::Rule { rule: printable(text.trim()), reason })
    }
}

/// # Errors
/// The text is longer than any that makes sense.
fn check_length(what: &str, text: &str) -> Result<(), String> {
    match text.len() > MAX_TEXT {
        true => Err(format!("a {what} has at most {MAX_TEXT} bytes; this one has {}", text.len())),
        false => Ok(()),
    }
}

fn check_count(count: usize) -> Result<(), PolicyError> {
    if count > MAX_RULES { Err(PolicyError::TooManyRules { count }) } else { Ok(()) }
}

/// Splits at the commas that stand outside parentheses.
fn split_commas(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.selector, axes::join(&self.assignments))
    }
}

/// A policy file. See the [module](self).
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: Option<String>,
    #[serde(default)]
    rules: Vec<String>,
    #[serde(default)]
    stages: Vec<FileStage>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStage {
    from: f64,
    rules: Vec<String>,
}

impl Policy {
    /// The recipe called `name`.
    ///
    /// # Errors
    /// There is none; the message lists those that there are.
    pub fn recipe(name: &str) -> Result<Self, PolicyError> {
        let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) else {
            return Err(PolicyError::UnknownRecipe { name: name.into() });
        };
        let policy = Self::new(name).with_rules(recipe.rules)?;
        recipe.stages.iter().try_fold(policy, |policy, (from, rules)| policy.with_stage(*from, rules))
    }

    /// A policy without rules: everything is frozen.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), rules: Vec::new(), stages: Vec::new() }
    }

    /// The recipe of that name, or the policy file at that path if it ends in `.toml`.
    ///
    /// # Errors
    /// There is no such recipe, or [`read`](Self::read) fails.
    pub fn load(name_or_path: &str) -> Result<Self, PolicyError> {
        match name_or_path.ends_with(".toml") {
            true => Self::read(Path::new(name_or_path)),
            false => Self::recipe(name_or_path),
        }
    }

    /// The policy file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or what it says is wrong as [`from_toml`](Self::from_toml) tells.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let fail = |reason: String| PolicyError::File { file: path.display().to_string(), reason };
        let text = read_text(path, MAX_FILE).map_err(|error| fail(format!("cannot be read: {error}")))?;
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        Self::parse(&name, &text).map_err(fail)
    }

    /// A policy called `name` from the text of a policy file; see the [module](self) for the form.
    ///
    /// # Errors
    /// The text is not TOML of that form, its base is no recipe, a rule is malformed, or there are no rules.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, PolicyError> {
        Self::parse(name, text).map_err(|reason| PolicyError::File { file: name.into(), reason })
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|&b| b == b'\n').count();
            format!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        if file.base.is_none() && file.rules.is_empty() && file.stages.is_empty() {
            return Err(
                "there are no rules; write rules = [\"SELECTOR -> axis=value\"], base = \"RECIPE\", or both".into()
            );
        }
        let policy = match file.base {
            Some(base) => Self { name: name.into(), ..Self::recipe(&base).map_err(|error| error.to_string())? },
            None => Self::new(name),
        };
        let policy = policy.with_rules(&file.rules);
        let with_stage = |policy: Self, FileStage { from, rules }| policy.with_stage(from, &rules);
        let policy = policy.and_then(|policy| file.stages.into_iter().try_fold(policy, with_stage));
        policy.map_err(|error| error.to_string())
    }

    /// The same with more rules after its own.
    ///
    /// # Errors
    /// The first rule that is malformed; more than [`MAX_RULES`].
    pub fn with_rules(mut self, rules: &[impl AsRef<str>]) -> Result<Self, PolicyError> {
        check_count(self.rules.len() + rules.len())?;
        for rule in rules {
            self.rules.push(rule.as_ref().parse()?);
        }
        Ok(self)
    }

    /// The same with more rules behind those of every stage, so that they have the last word throughout.
    ///
    /// # Errors
    /// The first rule that is malformed.
    pub fn with_last_rules(self, rules: &[impl AsRef<str>]) -> Result<Self, PolicyError> {
        let mut policy = self.with_rules(rules)?;
        let first = policy.rules.len() - rules.len();
        let last = policy.rules[first..].to_vec();
        for stage in &mut policy.stages {
            stage.rules.extend(last.iter().cloned());
        }
        Ok(policy)
    }

    /// The same with rules that are added after the share `from` of a run's optimiser steps.
    ///
    /// # Errors
    /// The stage is not after the others, or a rule is malformed; more than [`MAX_STAGES`], or more than [`MAX_RULES`].
    pub fn with_stage(mut self, from: f64, rules: &[impl AsRef<str>]) -> Result<Self, PolicyError> {
        if self.stages.len() == MAX_STAGES {
            return Err(PolicyError::TooManyStages);
        }
        check_count(rules.len())?;
        let after = self.stages.last().map_or(0.0, |stage| stage.from);
        if !(from > after && from < 1.0) {
            return Err(PolicyError::Stage { reason: format!("a stage begins at {from}, after one at {after}") });
        }
        if rules.is_empty() {
            return Err(PolicyError::Stage { reason: format!("the stage at {from} has no rules") });
        }
        let rules = rules.iter().map(|rule| rule.as_ref().parse()).collect::<Result<_, _>>()?;
        self.stages.push(Stage { from, rules });
        Ok(self)
    }
}
