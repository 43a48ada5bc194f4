//! The page that shows an evaluation.

use super::classes::{ClassesView, class_name};
use super::template;
use crate::data::decode::decode_file;
use crate::data::{DecodeOptions, Sample, thumbnail};
use crate::train::{Evaluation, imbalance};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minijinja::context;
use minijinja::value::Serde;
use serde::Serialize;
use std::path::Path;

/// Pixels per side: twice what the page shows, for fine screens.
const THUMBNAIL: u32 = 224;

/// What was evaluated, and how.
pub struct Evaluated<'a> {
    pub model: &'a str,
    /// None if they were random.
    pub weights: Option<&'a Path>,
    /// The folder of the images.
    pub data: &'a Path,
    /// Which of them, in the words of `--split`.
    pub split: &'a str,
    /// Height and width, in pixels.
    pub size: [usize; 2],
    pub device: &'a str,
    /// Names by label; numbers stand for those that are missing.
    pub classes: &'a [String],
    pub evaluation: &'a Evaluation,
    /// Those that [`Mistake::sample`](crate::train::Mistake::sample) counts by.
    pub samples: &'a [Sample],
    pub decode: &'a DecodeOptions,
}

#[derive(Serialize)]
struct MistakeView {
    /// Below the folder of the images.
    file: String,
    truth: String,
    predicted: String,
    confidence: f64,
    /// A `data:` URI; none if the image could not be read again.
    picture: Option<String>,
}

/// Renders an evaluation as a page with figures, a table of the classes, their confusion matrix, and pictures of the
/// mistakes that the evaluation kept: one file that needs nothing else. Reads these images once more.
pub fn evaluation_page(evaluated: &Evaluated<'_>) -> String {
    let Evaluated { model, weights, data, split, size, device, classes, evaluation, samples, decode } = *evaluated;
    let Evaluation { totals, ref confusion, skipped, ref mistakes, .. } = *evaluation;
    let view = |mistake: &crate::train::Mistake| {
        let path = samples.get(mistake.sample).map_or(Path::new(""), |sample| sample.path.as_path());
        let jpeg = decode_file(path, decode).ok().and_then(|image| thumbnail(&image, THUMBNAIL));
        MistakeView {
            file: path.strip_prefix(data).unwrap_or(path).display().to_string(),
            truth: class_name(classes, mistake.truth),
            predicted: class_name(classes, mistake.predicted),
            confidence: mistake.confidence,
            picture: jpeg.map(|jpeg| format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg))),
        }
    };
    let mistakes: Vec<MistakeView> = mistakes.iter().map(view).collect();
    let support = confusion.support();
    let folder = data.file_name().map_or_else(|| data.display().to_string(), |name| name.display().to_string());
    let view = context! {
        thawline => env!("CARGO_PKG_VERSION"),
        date => super::today(),
        model,
        weights => weights.map(|path| path.display().to_string()),
        data => data.display().to_string(),
        folder,
        split,
        size,
        device,
        images => totals.samples,
        wrong => totals.samples - totals.top1,
        skipped,
        // Classes with images.
        present => support.iter().filter(|&&count| count > 0).count(),
        known => confusion.classes(),
        imbalance => imbalance(support),
        loss => totals.mean_loss(),
        top1 => totals.accuracy(),
        top5 => totals.top5_accuracy(),
        balanced => confusion.balanced_accuracy(),
        view => Serde(ClassesView::new(confusion, classes)),
        mistakes => Serde(mistakes),
    };
    template::render("evaluation.html", include_str!("evaluation.html"), view)
}
