//! What the pages have in common: how numbers are shown, the style sheet, and bars.

use super::units;
use minijinja::value::Value;
use minijinja::{Environment, HtmlEscape, UndefinedBehavior};

/// Files that templates include or import from.
const SHARED: [(&str, &str); 2] =
    [("style.css", include_str!("style.css")), ("macros.html", include_str!("macros.html"))];

/// Renders a template of this crate's own, which must fit its view: a page is one file that needs nothing else, neither
/// network nor scripts.
pub(super) fn render(name: &str, template: &str, view: Value) -> String {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("bytes", units::bytes);
    environment.add_filter("flops", units::flops);
    environment.add_filter("count", units::count);
    environment.add_filter("ms", |ms: f64| if ms > 0.0 { units::ms(ms) } else { "–".to_owned() });
    environment.add_filter("seconds", |seconds: Option<f64>| number(seconds, 1).replace('-', "−"));
    environment.add_filter("percent", |share: Option<f64>| number(share.map(|share| 100.0 * share), 1));
    environment.add_filter("nats", |drift: Option<f64>| drift.map_or("–".to_owned(), units::nats));
    environment.add_filter("times", |ratio: Option<f64>| ratio.map_or("–".to_owned(), units::times));
    environment.add_filter("number", number);
    environment.add_filter("code", code);
    let shared = SHARED.iter().try_for_each(|(name, text)| environment.add_template(name, text));
    let rendered = shared.and_then(|()| environment.render_named_str(name, template, view));
    let page = rendered.expect("templates fit their views, which have the same form for whatever they show");
    // Imports leave lines behind.
    page.trim_start().to_owned()
}

/// A dash for what is not known.
fn number(value: Option<f64>, digits: usize) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.digits$}"),
        _ => "–".to_owned(),
    }
}

/// Text whose names in backticks are marked as code, and whose signs stay with their numbers.
fn code(text: &str) -> Value {
    let parts = text.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => HtmlEscape(&part.replace(" %", "\u{a0}%").replace(" ± ", " ±\u{a0}")).to_string(),
        _ => format!("<code>{}</code>", HtmlEscape(part)),
    });
    Value::from_safe_string(parts.collect())
}
