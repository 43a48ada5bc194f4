//! What a policy costs, to be printed, shown in a notebook, or computed with.

use crate::array::from_json;
use crate::error::Error;
use pyo3::prelude::*;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use thawline::compile::Options;
use thawline::graph::Graph;
use thawline::plan::Input;
use thawline::policy::{self, Policy};
use thawline::report::units::{bytes, flops};
use thawline::report::{LayerPrice, Phases, Price, Total, price};
use thawline::text::quantity;

/// What a training step costs under a policy, computed without a device.
///
/// `print(plan)` shows the totals; in a notebook a plan shows a row a layer, too. FLOP are those of products (two a
/// multiply-add), moved bytes are reads and writes of every kernel, kept bytes are results of the forward pass that wait
/// for the backward pass. Images are counted as pixels, as the command line reads them.
#[pyclass(frozen, module = "thawline")]
pub struct Plan {
    model: String,
    stages: Vec<Stage>,
}

/// A policy in a part of a run; most have one.
struct Stage {
    /// The share of the run's steps before.
    from: f64,
    price: Price,
    warnings: Vec<String>,
}

impl Plan {
    pub fn new(model: &str, policy: &Policy, network: &Graph, options: &Options, input: Input) -> Result<Self, Error> {
        let stages = policy::resolve_stages(policy, network)?.into_iter().map(|(from, resolved)| {
            let (price, _) = price(&resolved, options, input)?;
            Ok(Stage { from, price, warnings: resolved.warnings.iter().map(ToString::to_string).collect() })
        });
        Ok(Self { model: model.to_owned(), stages: stages.collect::<Result<_, Error>>()? })
    }

    fn title(&self, price: &Price) -> String {
        let [height, width] = price.size;
        format!(
            "{} under {}, {} of {height}×{width}, {}",
            self.model,
            price.policy,
            quantity(price.batch, "image"),
            quantity(price.classes, "class")
        )
    }

    fn first(&self) -> &Price {
        // There is a stage from the beginning on.
        &self.stages[0].price
    }
}

#[pymethods]
impl Plan {
    /// Device memory of a training step, in bytes, parameters and optimiser state included.
    #[getter]
    fn memory(&self) -> u64 {
        self.first().step.planned_bytes
    }

    /// Floating-point operations of a training step.
    #[getter]
    fn flops(&self) -> u64 {
        self.first().step.amount.flops
    }

    /// What the policy may well mean, but more often does not, a sentence each.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.stages.iter().flat_map(|stage| stage.warnings.iter().cloned()).collect()
    }

    /// All numbers, under the names of `thawline plan --json`: `layers`, `rest`, `step`, `inference`, `full`, and `stages`
    /// of a policy that changes in the course of a run.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stage = |stage: &Stage| -> Map<String, Value> {
            let mut all = Map::new();
            all.insert("model".into(), json!(self.model));
            all.insert("from".into(), json!(stage.from));
            if let Ok(Value::Object(price)) = serde_json::to_value(&stage.price) {
                all.extend(price);
            }
            all
        };
        let mut stages = self.stages.iter().map(stage);
        let mut first = stages.next().unwrap_or_default();
        first.insert("stages".into(), stages.collect());
        from_json(py, &Value::Object(first))
    }

    fn __str__(&self) -> String {
        let mut text = String::new();
        for stage in &self.stages {
            if stage.from > 0.0 {
                let _ = write!(text, "\n\nfrom {:.0} % of the steps on\n", 100.0 * stage.from);
            }
            let _ = write!(text, "{}\n{}", self.title(&stage.price), table(&totals(&stage.price)));
        }
        text
    }

    fn __repr__(&self) -> String {
        format!("<thawline.Plan of {}: {} a step>", self.title(self.first()), bytes(self.memory()))
    }

    fn _repr_html_(&self) -> String {
        let mut html = String::new();
        for stage in &self.stages {
            if stage.from > 0.0 {
                let _ = write!(html, "<p>from {:.0} % of the steps on</p>", 100.0 * stage.from);
            }
            let _ = write!(html, "<p><b>{}</b></p>", escaped(&self.title(&stage.price)));
            html.push_str(&html_table(&totals(&stage.price), 1));
            html.push_str(&html_table(&layers(&stage.price), 3));
        }
        html
    }
}

/// A row of titles, and one a plan, as the command line has them.
fn totals(price: &Price) -> Vec<Vec<String>> {
    let row = |what: &str, total: &Total| {
        vec![
            what.to_owned(),
            flops(total.amount.flops),
            bytes(total.amount.moved_bytes),
            bytes(total.kept_bytes),
            bytes(total.planned_bytes),
            total.calls.to_string(),
        ]
    };
    let ratio = |what: &str, other: &Total| {
        let times = |a: u64, b: u64| if b == 0 { "–".into() } else { format!("{:.2}×", a as f64 / b as f64) };
        let step = &price.step;
        vec![
            what.to_owned(),
            times(step.amount.flops, other.amount.flops),
            times(step.amount.moved_bytes, other.amount.moved_bytes),
            times(step.kept_bytes, other.kept_bytes),
            times(step.planned_bytes, other.planned_bytes),
            times(step.calls as u64, other.calls as u64),
        ]
    };
    let mut rows = vec![["total", "arithmetic", "moved", "kept", "memory", "calls"].map(String::from).to_vec()];
    rows.extend([row("this step", &price.step), row("inference", &price.inference)]);
    rows.extend(price.full.as_ref().map(|full| row("full fine-tuning", full)));
    rows.push(ratio("step / inference", &price.inference));
    rows.extend(price.full.as_ref().map(|full| ratio("step / full", full)));
    rows
}

/// A row of titles, and one a layer that has something to set or runs something.
fn layers(price: &Price) -> Vec<Vec<String>> {
    let row = |number: &str, name: &str, mode: String, phases: &Phases| {
        let Phases { forward, backward, update, kept_bytes, .. } = phases;
        let moved = forward.moved_bytes + backward.moved_bytes + update.moved_bytes;
        let amounts = [flops(forward.flops), flops(backward.flops), bytes(moved), bytes(*kept_bytes)];
        [vec![number.to_owned(), name.to_owned(), mode], amounts.to_vec()].concat()
    };
    let shown = |layer: &&LayerPrice| !layer.axes.is_empty() || !layer.phases.kernels.is_empty();
    let titles = ["#", "layer", "mode", "forward", "backward", "moved", "kept"].map(String::from).to_vec();
    let rows = price.layers.iter().filter(shown);
    let rows = rows.map(|layer| row(&layer.number, &layer.name, layer.mode(), &layer.phases));
    let rest = row("", "input and loss", String::new(), &price.rest);
    std::iter::once(titles).chain(rows).chain([rest]).collect()
}

/// Columns side by side, all but the first to the right, with a line under the titles.
fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!(" {} ", cells.collect::<Vec<_>>().join("   "))
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.insert(1, "─".repeat(lines[0].chars().count()));
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// The same as HTML; the first `words` columns are words.
fn html_table(rows: &[Vec<String>], words: usize) -> String {
    let row = |tag: &str, row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let side = if column < words { "left" } else { "right" };
            format!("<{tag} style=\"text-align:{side}\">{}</{tag}>", escaped(cell))
        });
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    let body: String = rows[1..].iter().map(|cells| row("td", cells)).collect();
    format!("<table><thead>{}</thead><tbody>{body}</tbody></table>", row("th", &rows[0]))
}

/// Text that HTML shows as it is: names come from files.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
        html
    })
}
