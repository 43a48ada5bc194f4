//! What range tests found, as a plot for a terminal and as a page.

use super::template;
use crate::train::{LrEnd, LrPoint, RangeTest};
use minijinja::context;
use minijinja::value::{Serde, Value};
use serde::Serialize;

/// The range tests of several policies on the same images.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LrFind {
    /// The version of this crate.
    pub thawline: String,
    pub model: String,
    /// The file that the weights came from; none if they were random.
    pub weights: Option<String>,
    pub data: String,
    pub device: String,
    /// `YYYY-MM-DD`, in UTC.
    pub date: String,
    /// Images a step.
    pub images_per_step: usize,
    pub optimizer: String,
    /// The first rate and the last one.
    pub range: [f64; 2],
    /// Optimiser steps between them.
    pub steps: usize,
    pub findings: Vec<LrFinding>,
}

/// What a policy's range test found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LrFinding {
    pub policy: String,
    pub test: RangeTest,
}

impl LrFinding {
    /// What follows from the test, in a sentence or two.
    pub fn in_words(&self) -> String {
        let RangeTest { points, suggested, end } = &self.test;
        let found = match suggested {
            Some(lr) => format!("{lr} is in the middle of the longest descent of the smoothed loss"),
            None => "no rate lowers the smoothed loss, so none is suggested".to_owned(),
        };
        let last = points.last().map_or(f64::NAN, |point| point.lr);
        let end = match end {
            LrEnd::Complete => "the loss did not rise to four times its least up to the last rate".to_owned(),
            LrEnd::Rose => format!("at {last:.2} it had risen to four times its least, and the test ended"),
            LrEnd::NotFinite => format!("after {last:.2} it was no longer finite, and the test ended"),
        };
        format!("{found}; {end}")
    }
}

/// Losses above this multiple of the range from the least to the first are cut, so that the descent can be seen.
const HEADROOM: f64 = 1.3;

/// The smoothed losses that a plot shows, from the lowest to the highest.
fn bounds(points: &[LrPoint]) -> Option<(f64, f64)> {
    let first = points.first()?.smoothed;
    let least = points.iter().map(|point| point.smoothed).fold(first, f64::min);
    let most = points.iter().map(|point| point.smoothed).fold(first, f64::max);
    let top = least + HEADROOM * (first - least).max(0.1 * first.abs()).max(1e-9);
    Some((least, most.min(top).max(least + 1e-9)))
}

/// The smoothed loss over the learning rate, on a logarithmic scale, in lines of at most `width` characters; braille
/// patterns have two dots across and four down. Empty without points.
pub fn lr_plot(test: &RangeTest, width: usize, height: usize) -> String {
    const LABEL: usize = 7;
    let (columns, rows) = (width.saturating_sub(LABEL + 1).max(10), height.max(3));
    let (Some((low, high)), [first, .., last]) = (bounds(&test.points), &test.points[..]) else { return String::new() };
    let decades = (last.lr / first.lr).log10().max(1e-9);
    let across = |lr: f64| (lr / first.lr).log10() / decades;
    let mut cells = vec![vec![0_u8; columns]; rows];
    let dots = (2 * columns - 1, 4 * rows - 1);
    let mut set = |x: usize, y: usize| {
        // The order of the dots of a pattern: Unicode, chapter 21.1.
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        cells[y / 4][x / 2] |= BITS[y % 4][x % 2];
    };
    let place = |point: &LrPoint| {
        let down = (high - point.smoothed) / (high - low);
        (across(point.lr) * dots.0 as f64, down.clamp(0.0, 1.0) * dots.1 as f64)
    };
    for pair in test.points.windows(2) {
        let ((x0, y0), (x1, y1)) = (place(&pair[0]), place(&pair[1]));
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).ceil().max(1.0);
        for step in 0..=steps as usize {
            let share = step as f64 / steps;
            set((x0 + share * (x1 - x0)).round() as usize, (y0 + share * (y1 - y0)).round() as usize);
        }
    }
    let mut plot = String::new();
    for (row, cells) in cells.iter().enumerate() {
        let label = match row {
            0 => format!("{high:.3}"),
            row if row + 1 == rows => format!("{low:.3}"),
            _ => String::new(),
        };
        let line: String = cells.iter().filter_map(|bits| char::from_u32(0x2800 + u32::from(*bits))).collect();
        plot += &format!("{label:>LABEL$} {line}\n");
    }
    // Marks below: the suggestion, and the powers of ten that have room.
    let at = |lr: f64| LABEL + 1 + (across(lr) * (columns - 1) as f64).round() as usize;
    if let Some(lr) = test.suggested {
        plot += &format!("{:>1$}\n", "▲", at(lr) + 1);
    }
    let mut labels = String::new();
    for power in first.lr.log10().ceil() as i32..=last.lr.log10().floor() as i32 {
        let text = format!("1e{power}");
        let begin = at(10_f64.powi(power));
        if begin >= labels.len() + usize::from(!labels.is_empty()) && begin + text.len() <= LABEL + 1 + columns {
            labels += &format!("{:1$}{text}", "", begin - labels.len());
        }
    }
    plot + &labels + "\n"
}

/// Renders range tests as a page.
pub fn lr_find_page(found: &LrFind) -> String {
    template::render("lr_find.html", include_str!("lr_find.html"), view(found))
}

fn view(found: &LrFind) -> Value {
    #[derive(Serialize)]
    struct View<'a> {
        policy: &'a str,
        suggested: Option<f64>,
        words: String,
        figure: String,
    }
    let views = found.findings.iter().map(|finding| View {
        policy: &finding.policy,
        suggested: finding.test.suggested,
        words: finding.in_words(),
        figure: figure(&finding.test),
    });
    context! { found => Serde(found), views => Serde(views.collect::<Vec<_>>()) }
}

/// The losses of a test as inline SVG: each step's as a dot, the smoothed ones as a line, and the suggestion.
fn figure(test: &RangeTest) -> String {
    let [left, top, right, bottom] = [44.0, 10.0, 620.0, 210.0];
    let (Some((low, high)), [first, .., last]) = (bounds(&test.points), &test.points[..]) else { return String::new() };
    let decades = (last.lr / first.lr).log10().max(1e-9);
    let x = |lr: f64| left + (right - left) * (lr / first.lr).log10() / decades;
    let y = |loss: f64| bottom - (bottom - top) * ((loss - low) / (high - low)).clamp(-0.04, 1.04);
    let mut svg = String::new();
    for power in first.lr.log10().ceil() as i32..=last.lr.log10().floor() as i32 {
        let at = x(10_f64.powi(power));
        svg += &format!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>");
        svg += &format!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">1e{power}</text>", bottom + 14.0);
    }
    for loss in [low, (low + high) / 2.0, high] {
        let at = y(loss);
        svg += &format!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>", left - 6.0, at + 3.0);
    }
    for point in &test.points {
        let (x, y) = (x(point.lr), y(point.loss));
        svg += &format!(
            "<circle class=\"raw\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"><title>{:.2e}: loss {:.3}, smoothed {:.3}</title></circle>",
            point.lr, point.loss, point.smoothed
        );
    }
    let points: Vec<String> =
        test.points.iter().map(|point| format!("{:.1},{:.1}", x(point.lr), y(point.smoothed))).collect();
    svg += &format!("<polyline class=\"line\" points=\"{}\"/>", points.join(" "));
    if let Some(lr) = test.suggested {
        let at = x(lr);
        svg += &format!("<line class=\"chosen\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>");
        let (anchor, beside) = if at > 520.0 { ("end", at - 6.0) } else { ("start", at + 6.0) };
        svg += &format!("<text class=\"chosen\" x=\"{beside:.1}\" y=\"22\" text-anchor=\"{anchor}\">{lr}</text>");
    }
    format!(
        "<svg class=\"wide\" viewBox=\"0 0 640 232\" role=\"img\" aria-label=\"Loss over learning rate\">{svg}</svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(end: LrEnd) -> RangeTest {
        let points = (0..100).map(|i| {
            let lr = 1e-6 * 10_f64.powf(7.0 * f64::from(i) / 99.0);
            let smoothed = if i < 80 { 2.3 - 0.02 * f64::from(i) } else { 0.7 + 0.4 * f64::from(i - 80) };
            LrPoint { lr, loss: smoothed + 0.05, smoothed }
        });
        RangeTest { points: points.collect(), suggested: Some(0.0021), end }
    }

    #[test]
    fn a_plot_fits_its_width_and_marks_the_suggestion() {
        for width in [40, 60, 80] {
            let plot = lr_plot(&test(LrEnd::Rose), width, 8);
            let lines: Vec<&str> = plot.lines().collect();
            assert_eq!(lines.len(), 10, "{plot}");
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{plot}");
            assert!(lines[8].trim_start() == "▲" && lines[9].contains("1e-6") && lines[9].contains("1e"), "{plot}");
            assert!(lines[0].trim_start().starts_with("2.7") && lines[7].trim_start().starts_with("0.7"), "{plot}");
        }
        let nothing = RangeTest { points: Vec::new(), suggested: None, end: LrEnd::NotFinite };
        assert_eq!(lr_plot(&nothing, 80, 8), "");
        assert!(figure(&nothing).is_empty());
    }

    #[test]
    fn a_page_escapes_names_and_holds_each_policy() {
        let findings = ["head", "a<b>"].map(|name| LrFinding { policy: name.into(), test: test(LrEnd::Complete) });
        let found = LrFind {
            thawline: "0.0.0".into(),
            model: "resnet_tiny".into(),
            weights: None,
            data: "a&b".into(),
            device: "d".into(),
            date: "2026-11-29".into(),
            images_per_step: 32,
            optimizer: "sgd".into(),
            range: [1e-6, 10.0],
            steps: 100,
            findings: findings.to_vec(),
        };
        let page = lr_find_page(&found);
        assert!(page.contains("a&lt;b&gt;") && page.contains("a&amp;b") && !page.contains("a<b>"), "{page}");
        assert_eq!(page.matches("<polyline").count(), 2);
    }
}
