//! Policies.

use crate::error::Error;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::path::PathBuf;
use thawline::policy;

/// What trains, what moves and what stays: a recipe's rules, and more after them.
///
/// Args:
///     recipe: A name of `recipes()`, or a policy file whose name ends in .toml.
///     sets: Rules such as "from:layer4 -> weights=train" that have the last word, as the command line's --set.
///
/// Example:
///     >>> Policy("head", sets=["kind:bn -> stats=batch, update=ema, affine=both"])
#[pyclass(frozen, module = "thawline")]
pub struct Policy {
    inner: policy::Policy,
}

#[pymethods]
impl Policy {
    #[new]
    #[pyo3(signature = (recipe, sets=Vec::new()))]
    fn new(recipe: &str, sets: Vec<String>) -> Result<Self, Error> {
        Ok(Self { inner: policy::Policy::load(recipe)?.with_last_rules(&sets)? })
    }

    /// The policy file at `path`, with more rules behind its own.
    #[staticmethod]
    #[pyo3(signature = (path, sets=Vec::new()))]
    fn from_file(path: PathBuf, sets: Vec<String>) -> Result<Self, Error> {
        Ok(Self { inner: policy::Policy::read(&path)?.with_last_rules(&sets)? })
    }

    /// The recipe's name, or the file's without its ending.
    #[getter]
    fn name(&self) -> &str {
        &self.inner.name
    }

    /// The rules in the order in which they apply; the last one that speaks of an axis of a layer wins.
    #[getter]
    fn rules(&self) -> Vec<String> {
        texts(&self.inner.rules)
    }

    /// What changes in the course of a run: pairs of the share of its steps before, and the rules that are added then.
    #[getter]
    fn stages(&self) -> Vec<(f64, Vec<String>)> {
        self.inner.stages.iter().map(|stage| (stage.from, texts(&stage.rules))).collect()
    }

    fn __repr__(&self) -> String {
        format!("<thawline.Policy {}: {}>", self.inner.name, self.rules().join("; "))
    }
}

fn texts(rules: &[policy::Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

/// What calls take as `policy`.
#[derive(FromPyObject)]
pub enum PolicyArgument {
    Policy(Py<Policy>),
    Name(String),
}

impl PolicyArgument {
    pub fn load(&self) -> Result<policy::Policy, Error> {
        match self {
            Self::Policy(policy) => Ok(policy.get().inner.clone()),
            Self::Name(name) => Ok(policy::Policy::load(name)?),
        }
    }
}

/// The policies that have a name, a dict each: `name`, `summary`, `rules`, and `stages` as pairs of a share of the run's
/// steps and rules.
#[pyfunction]
pub fn recipes(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let found = PyList::empty(py);
    for recipe in policy::RECIPES {
        let dict = PyDict::new(py);
        dict.set_item("name", recipe.name)?;
        dict.set_item("summary", recipe.summary)?;
        dict.set_item("rules", recipe.rules)?;
        dict.set_item("stages", recipe.stages.iter().map(|(from, rules)| (from, rules.to_vec())).collect::<Vec<_>>())?;
        found.append(dict)?;
    }
    Ok(found)
}
