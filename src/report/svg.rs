//! Plots as inline SVG. Colours are the page's: each mark has a class, and the style sheet says what it looks like. What a
//! reader may want to know of a mark stands in its `<title>`, which browsers show on hover.

use super::spread::Spread;
use super::units::{nats, percent};
use minijinja::HtmlEscape;

/// An axis of shares, from one round number to another.
pub(super) struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// Holds all finite values, with about five ticks; from 0 to 1 if there are none.
    pub fn around(values: impl IntoIterator<Item = f64>) -> Self {
        let Some(Spread { least, most, .. }) = Spread::of(values) else {
            return Self { low: 0.0, high: 1.0, step: 0.2 };
        };
        let rough = ((most - least) / 5.0).max(0.002);
        let power = 10_f64.powf(rough.log10().floor());
        // Rounding must not make 0.2 out of 0.1.
        let step = [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= 0.999 * rough);
        let step = step.unwrap_or(10.0 * power);
        let low = (least / step + 1e-9).floor() * step;
        let high = (most / step - 1e-9).ceil() * step;
        // All values may be the same.
        let low = if high - low < 0.5 * step { (low - step).max(0.0) } else { low };
        Self { low, high: high.max(low + step), step }
    }

    pub fn begins_at_0(&self) -> bool {
        self.low < 1e-9
    }

    /// Where a value is, from 0 to 1.
    pub fn at(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Values and labels, in per cent.
    fn ticks(&self) -> Vec<(f64, String)> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        let values = (0..=count).map(|tick| self.low + tick as f64 * self.step);
        values.map(|value| (value, percent(value).trim_end_matches(" %").trim_end_matches(".0").to_owned())).collect()
    }

    /// Where a value is in a row that takes whatever width it gets. Dots at the ends would be cut.
    fn across(&self, value: f64) -> String {
        format!("{:.2}%", 1.5 + 97.0 * self.at(value))
    }
}

/// A dot for each of several named values, their mean, and a band of a standard deviation to either side.
pub(super) fn dots(scale: &Scale, values: &[(String, f64)]) -> String {
    let line = |class, value, from, to| {
        let x = scale.across(value);
        format!("<line class=\"{class}\" x1=\"{x}\" x2=\"{x}\" y1=\"{from}\" y2=\"{to}\"/>")
    };
    let mut svg = String::new();
    for (tick, _) in scale.ticks() {
        svg += &line("grid", tick, "0", "100%");
    }
    if let Some(Spread { mean, deviation, n, .. }) = Spread::of(values.iter().map(|(_, value)| *value)) {
        if n > 1 {
            let title = format!("mean {}, standard deviation {:.1} points", percent(mean), 100.0 * deviation);
            let (x, end) = (scale.at(mean - deviation), scale.at(mean + deviation));
            svg += &format!(
                "<rect class=\"band\" x=\"{}\" y=\"25%\" width=\"{:.2}%\" height=\"50%\"><title>{title}</title></rect>",
                scale.across(mean - deviation),
                97.0 * (end - x)
            );
        }
        svg += &line("mean", mean, "15%", "85%");
    }
    for (name, value) in values.iter().filter(|(_, value)| value.is_finite()) {
        let title = format!("{name}: {}", percent(*value));
        let (x, title) = (scale.across(*value), HtmlEscape(&title));
        svg += &format!("<circle class=\"dot\" cx=\"{x}\" cy=\"50%\" r=\"4\"><title>{title}</title></circle>");
    }
    format!("<svg class=\"dots\" aria-hidden=\"true\">{svg}</svg>")
}

/// The labels of the ticks in rows of [`dots`].
pub(super) fn axis(scale: &Scale) -> String {
    let label = |(tick, label)| format!("<text x=\"{}\" y=\"12\">{label}</text>", scale.across(tick));
    let labels: String = scale.ticks().into_iter().map(label).collect();
    format!("<svg class=\"axis\" aria-hidden=\"true\">{labels}</svg>")
}

/// An accuracy by epoch, over several runs; none where nothing is known.
pub(super) type Curve = Vec<Option<Spread>>;

/// A curve in front of all others: its mean, and a band from the least to the most.
pub(super) fn panel(scale: &Scale, curve: &Curve, others: &[Curve]) -> String {
    let [left, top, right, bottom] = [30.0, 8.0, 232.0, 114.0];
    let epochs = others.iter().map(Vec::len).max().unwrap_or(0).max(2) - 1;
    let x = |epoch: usize| left + (right - left) * epoch as f64 / epochs as f64;
    let y = |value: f64| bottom - (bottom - top) * scale.at(value);
    let points = |points: &mut dyn Iterator<Item = (usize, f64)>| {
        points.map(|(epoch, value)| format!("{:.1},{:.1}", x(epoch), y(value))).collect::<Vec<_>>().join(" ")
    };
    // Unbroken stretches of it.
    let stretches = |curve: &Curve| -> Vec<Vec<(usize, Spread)>> {
        let known: Vec<_> = curve.iter().enumerate().filter_map(|(epoch, point)| Some((epoch, (*point)?))).collect();
        known.chunk_by(|a, b| a.0 + 1 == b.0).map(<[_]>::to_vec).collect()
    };
    let line = |class, curve| -> String {
        let lines = stretches(curve).into_iter().map(|stretch| {
            let points = points(&mut stretch.iter().map(|(epoch, point)| (*epoch, point.mean)));
            format!("<polyline class=\"{class}\" points=\"{points}\"/>")
        });
        lines.collect()
    };

    let mut svg = String::new();
    for (tick, label) in scale.ticks() {
        let y = y(tick);
        svg += &format!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 5.0, y + 3.0);
    }
    let y_label = bottom + 13.0;
    svg += &format!("<text x=\"{left}\" y=\"{y_label}\">epoch 0</text>");
    svg += &format!("<text x=\"{right}\" y=\"{y_label}\" text-anchor=\"end\">{epochs}</text>");
    svg.extend(others.iter().map(|other| line("other", other)));
    for stretch in stretches(curve) {
        let most = stretch.iter().map(|(epoch, point)| (*epoch, point.most));
        let least = stretch.iter().rev().map(|(epoch, point)| (*epoch, point.least));
        svg += &format!("<polygon class=\"band\" points=\"{}\"/>", points(&mut most.chain(least)));
    }
    svg += &line("line", curve);
    for (epoch, Spread { mean, least, most, .. }) in stretches(curve).concat() {
        let title = format!("epoch {epoch}: {} ({} to {})", percent(mean), percent(least), percent(most));
        let (x, y) = (x(epoch), y(mean));
        svg += &format!("<circle class=\"hover\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{title}</title></circle>");
    }
    format!("<svg class=\"panel\" viewBox=\"0 0 240 132\" aria-hidden=\"true\">{svg}</svg>")
}

/// Room for the plot within its picture, in the picture's own units: left, top, right, bottom.
const PLOT: [f64; 4] = [52.0, 14.0, 600.0, 236.0];

/// Round numbers from 0 to one that is at least `most`, about five of them.
fn ticks_from_0(most: f64) -> Vec<f64> {
    let rough = (most / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= 0.999 * rough);
    let step = step.unwrap_or(10.0 * power);
    (0..=(most / step - 1e-9).ceil().max(1.0) as usize).map(|tick| tick as f64 * step).collect()
}

/// A policy in a plot of accuracy against cost.
pub(super) struct Choice<'a> {
    pub name: &'a str,
    pub cost: f64,
    pub accuracy: Spread,
    /// Whether it is the one that is advised.
    pub is_advised: bool,
}

/// Accuracy against cost: a dot a policy, a line from its least accurate seed to its most accurate one, and steps along
/// the policies that no other beats in both. `show` writes a cost.
pub(super) fn choices(choices: &[Choice<'_>], show: impl Fn(f64) -> String) -> String {
    let [left, top, right, bottom] = PLOT;
    let costs = ticks_from_0(choices.iter().map(|choice| choice.cost).fold(0.0, f64::max));
    let scale = Scale::around(choices.iter().flat_map(|choice| [choice.accuracy.least, choice.accuracy.most]));
    let most = costs.last().copied().unwrap_or(1.0);
    let x = |cost: f64| left + (right - left) * cost / most;
    let y = |accuracy: f64| bottom - (bottom - top) * scale.at(accuracy);
    let mut svg = String::new();
    for (tick, label) in scale.ticks() {
        let y = y(tick);
        svg += &format!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 6.0, y + 3.5);
    }
    for &tick in &costs {
        let x = x(tick);
        svg += &format!("<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>");
        let label = if tick == 0.0 { "0".to_owned() } else { show(tick) };
        svg += &format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 16.0);
    }
    // The policies that no other beats in both, by rising cost.
    let mut sorted: Vec<&Choice> = choices.iter().collect();
    sorted.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(b.accuracy.mean.total_cmp(&a.accuracy.mean)));
    let mut front: Vec<&Choice> = Vec::new();
    for choice in sorted {
        if front.last().is_none_or(|last| choice.accuracy.mean > last.accuracy.mean) {
            front.push(choice);
        }
    }
    let mut steps: Vec<String> = Vec::new();
    for (index, choice) in front.iter().enumerate() {
        if let Some(before) = index.checked_sub(1).map(|before| front[before]) {
            steps.push(format!("{:.1},{:.1}", x(choice.cost), y(before.accuracy.mean)));
        }
        steps.push(format!("{:.1},{:.1}", x(choice.cost), y(choice.accuracy.mean)));
    }
    svg += &format!("<polyline class=\"front\" points=\"{}\"/>", steps.join(" "));
    // Labels from the top down, so that none lies on another.
    let mut labelled: Vec<&Choice> = choices.iter().collect();
    labelled.sort_by(|a, b| b.accuracy.mean.total_cmp(&a.accuracy.mean));
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for Choice { name, cost, accuracy, is_advised } in labelled {
        const LETTER: f64 = 6.2;
        const LINE: f64 = 13.0;
        let (at, middle) = (x(*cost), y(accuracy.mean));
        let width = LETTER * name.chars().count() as f64;
        let (anchor, beside, from) = match at + 10.0 + width > right + 36.0 {
            true => ("end", at - 9.0, at - 9.0 - width),
            false => ("start", at + 9.0, at + 9.0),
        };
        let mut line = middle + 4.0;
        while taken.iter().any(|(from_x, to_x, y)| from < *to_x && from + width > *from_x && (line - y).abs() < LINE) {
            line += 1.0;
        }
        taken.push((from, from + width, line));
        let (class, title) = (
            if *is_advised { "choice advised" } else { "choice" },
            format!(
                "{name}: {} at {} ({} to {})",
                percent(accuracy.mean),
                show(*cost),
                percent(accuracy.least),
                percent(accuracy.most)
            ),
        );
        let (high, low) = (y(accuracy.most), y(accuracy.least));
        svg += &format!("<line class=\"range\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{high:.1}\" y2=\"{low:.1}\"/>");
        svg += &format!(
            "<circle class=\"{class}\" cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"5\"><title>{}</title></circle>",
            HtmlEscape(&title)
        );
        let class = if *is_advised { "label advised" } else { "label" };
        svg += &format!(
            "<text class=\"{class}\" x=\"{beside:.1}\" y=\"{line:.1}\" text-anchor=\"{anchor}\">{}</text>",
            HtmlEscape(name)
        );
    }
    format!("<svg class=\"wide\" viewBox=\"0 0 640 262\" aria-hidden=\"true\">{svg}</svg>")
}

/// A line of a plot: a name, and a value at each of the places along the axis; none where it was not measured.
pub(super) struct Line<'a> {
    pub name: &'a str,
    pub values: Vec<Option<f64>>,
}

/// Lines over named places, from 0 up. `show` writes a value.
pub(super) fn lines(places: &[String], lines: &[Line<'_>], show: impl Fn(f64) -> String) -> String {
    let [left, top, right, bottom] = PLOT;
    let right = right - 110.0;
    let values = ticks_from_0(lines.iter().flat_map(|line| &line.values).flatten().copied().fold(0.0, f64::max));
    let most = values.last().copied().unwrap_or(1.0);
    let x = |place: usize| left + (right - left) * (place as f64 + 0.5) / places.len().max(1) as f64;
    let y = |value: f64| bottom - (bottom - top) * value / most;
    let mut svg = String::new();
    for &tick in &values {
        let at = y(tick);
        svg += &format!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", left - 6.0, at + 3.5, show(tick));
    }
    for (place, name) in places.iter().enumerate() {
        let (x, name) = (x(place), HtmlEscape(name));
        svg += &format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", bottom + 16.0);
    }
    let mut taken: Vec<f64> = Vec::new();
    for (index, Line { name, values }) in lines.iter().enumerate() {
        let known: Vec<(usize, f64)> =
            values.iter().enumerate().filter_map(|(at, value)| Some((at, (*value)?))).collect();
        let points: Vec<String> = known.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        let kind = format!("series s{}", index % SERIES);
        svg += &format!("<polyline class=\"{kind}\" points=\"{}\"/>", points.join(" "));
        for (at, value) in &known {
            let title = format!("{name}, {}: {}", places.get(*at).map_or("", String::as_str), show(*value));
            svg += &format!(
                "<circle class=\"{kind} mark\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}</title></circle>",
                x(*at),
                y(*value),
                HtmlEscape(&title)
            );
        }
        if let Some((at, value)) = known.last() {
            let mut line = y(*value) + 4.0;
            while taken.iter().any(|other| (line - other).abs() < 13.0) {
                line -= 1.0;
            }
            taken.push(line);
            svg += &format!(
                "<text class=\"label {kind}\" x=\"{:.1}\" y=\"{line:.1}\">{}</text>",
                x(*at) + 9.0,
                HtmlEscape(name)
            );
        }
    }
    format!("<svg class=\"wide\" viewBox=\"0 0 640 262\" aria-hidden=\"true\">{svg}</svg>")
}

/// Kinds of lines that the style sheet tells apart, by colour and dashes.
const SERIES: usize = 6;

/// A logarithmic scale of whole decades, as a depth of colour.
pub(super) struct Heat {
    /// Decimal logarithms.
    low: f64,
    high: f64,
}

impl Heat {
    /// Holds all finite values above 0, but for those that are less than a ten-thousandth: they are all the same.
    pub fn around(values: impl IntoIterator<Item = f64>) -> Self {
        let logarithms = values.into_iter().map(f64::log10).filter(|log| *log > -4.0);
        let Some(spread) = Spread::of(logarithms) else { return Self { low: -1.0, high: 0.0 } };
        let low = spread.least.floor();
        Self { low, high: spread.most.ceil().max(low + 1.0) }
    }

    /// From faint to full.
    fn depth(&self, value: f64) -> f64 {
        0.06 + 0.94 * ((value.max(0.0).log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// A cell for each of several named values. What is not finite is crossed out.
    pub fn strip<'a>(&self, values: impl ExactSizeIterator<Item = (&'a String, &'a f64)>) -> String {
        let width = 100.0 / values.len().max(1) as f64;
        let cell = |(index, (name, &value)): (usize, (&String, &f64))| {
            let (class, depth, shown) = match value.is_finite() {
                true => ("heat", self.depth(value), format!("{name}: {} nats", nats(value))),
                false => ("unknown", 1.0, format!("{name}: not finite")),
            };
            format!(
                "<rect class=\"{class}\" x=\"{:.3}%\" width=\"{width:.3}%\" height=\"100%\" fill-opacity=\"{depth:.3}\">\
                 <title>{}</title></rect>",
                width * index as f64,
                HtmlEscape(&shown)
            )
        };
        let cells: String = values.enumerate().map(cell).collect();
        format!("<svg class=\"strip\" aria-hidden=\"true\">{cells}</svg>")
    }

    /// What depth means what: the decades.
    pub fn legend(&self) -> Vec<(String, f64)> {
        let decades = (self.low as i32..=self.high as i32).map(|power| (power, 10_f64.powi(power)));
        let digits = |power: i32| usize::try_from(-power).unwrap_or(0);
        decades.map(|(power, decade)| (format!("{decade:.*}", digits(power)), self.depth(decade))).collect()
    }
}
