//! Reads the PyTorch and Keras parity goldens, and computes the values that both sides start from.
//!
//! `tests/golden/README.md` gives the formulas, and `tests/golden/common.py` is the other side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use globset::Glob;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What a result may be away from f64, as a multiple of the framework's own f32, and the floors under that.
pub const ALLOWED: f64 = 5.0;
pub const STATE_FLOOR: f64 = 2e-5;
pub const GRAD_FLOOR: f64 = 5e-5;

/// The goldens of one model: one file.
#[derive(Deserialize)]
pub struct Golden {
    pub model: String,
    pub cases: Vec<Case>,
}

/// One training run: how to repeat it, and what the framework got.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub classes: usize,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub policy: String,
    pub sets: Vec<String>,
    pub values: Values,
    pub optimizer: Optimizer,
    /// Optimiser steps, each on the same batch.
    pub steps: usize,
    /// Equal micro-batches that the batch is cut into, in order; one optimiser step for all of them.
    pub accumulate: usize,
    pub label_smoothing: f32,
    /// The stream that the images are drawn from.
    pub images: String,
    /// The images are bytes, and the network normalises them.
    #[serde(default)]
    pub bytes: bool,
    pub loss: Losses,
    pub logits_before: Logits,
    pub logits_after: Logits,
    /// Gradients of the last step, before weight decay: every trainable parameter, or those of some layers where the file
    /// has `part`.
    pub grads: BTreeMap<String, Summary>,
    /// The same parameters after the last step.
    pub params: BTreeMap<String, Summary>,
    /// Running means and variances that move, after the last step; their layers' `num_batches_tracked` is `steps`.
    pub stats: BTreeMap<String, Summary>,
    /// Everything else in the file, or what some layers have of it: must not have changed by a bit.
    pub frozen: Vec<String>,
}

/// Initial values that differ from those of [`initial`]: a pattern of names, and the offset and scale of the tensors that it
/// is the first to match.
pub type Values = Vec<(String, f64, f64)>;

/// Networks of which only the logits are compared: one file a framework.
#[derive(Deserialize)]
pub struct Inferences {
    pub cases: Vec<Inference>,
}

/// The logits of a network in its initial state, in inference mode.
#[derive(Deserialize)]
pub struct Inference {
    pub model: String,
    pub classes: usize,
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub values: Values,
    /// The stream that the images are drawn from.
    pub images: String,
    pub logits: Logits,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Optimizer {
    Sgd { lr: f32, momentum: f32, nesterov: bool, weight_decay: f32 },
    AdamW { lr: f32, beta1: f64, beta2: f64, eps: f32, weight_decay: f32 },
}

/// The loss of every step.
#[derive(Deserialize)]
pub struct Losses {
    pub f64: Vec<f64>,
    pub f32: Vec<f64>,
}

/// Inference-mode logits `[n][classes]`, in full.
#[derive(Deserialize)]
pub struct Logits {
    pub f64: Vec<f64>,
    pub err32: f64,
}

/// A tensor in f64, by its projections, and how far the framework's f32 is from it, relative to `norm`.
#[derive(Deserialize)]
pub struct Summary {
    pub shape: Vec<usize>,
    /// The tensor's, or that of its layer's weight's gradient if it is a gradient that vanishes.
    pub norm: f64,
    pub proj: Vec<f64>,
    pub err32: f64,
}

impl Summary {
    /// The estimated distance ‖ours − f64‖ / norm; `ours` in the file's own layout.
    pub fn distance(&self, ours: &[f32]) -> f64 {
        assert_eq!(ours.len(), self.shape.iter().product::<usize>(), "a tensor of shape {:?}", self.shape);
        let squares: f64 = self.proj.iter().enumerate().map(|(k, p)| (project(k, ours) - p).powi(2)).sum();
        (squares / self.proj.len() as f64 * ours.len() as f64).sqrt() / self.norm
    }

    /// The largest distance that counts as parity.
    pub fn allowed(&self, floor: f64) -> f64 {
        (ALLOWED * self.err32).max(floor)
    }
}

impl Logits {
    /// The distance ‖ours − f64‖ / ‖f64‖, and the largest one that counts as parity.
    pub fn distance(&self, ours: &[f32]) -> (f64, f64) {
        assert_eq!(ours.len(), self.f64.len());
        let apart: f64 = self.f64.iter().zip(ours).map(|(t, &o)| (f64::from(o) - t).powi(2)).sum();
        let norm: f64 = self.f64.iter().map(|t| t * t).sum();
        ((apart / norm).sqrt(), (ALLOWED * self.err32).max(STATE_FLOOR))
    }
}

impl Losses {
    /// The relative distance of step `step`'s loss from f64, and the largest one that counts as parity.
    pub fn distance(&self, step: usize, ours: f32) -> (f64, f64) {
        let truth = self.f64[step];
        let relative = |loss: f64| ((loss - truth) / truth).abs();
        (relative(f64::from(ours)), (ALLOWED * relative(self.f32[step])).max(STATE_FLOOR))
    }
}

/// Reads `<name>.json` in `tests/golden`, or in the folder that `THAWLINE_GOLDEN` names: the test may run where the
/// repository is not.
pub fn load<T: DeserializeOwned>(name: &str) -> T {
    let folder = std::env::var_os("THAWLINE_GOLDEN").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
    let path = folder.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The statistics that PyTorch estimates: `tests/golden/statistics.json`.
#[derive(Deserialize)]
pub struct Statistics {
    pub model: String,
    pub classes: usize,
    pub h: usize,
    pub w: usize,
    /// Images of each batch.
    pub batches: Vec<usize>,
    /// By method, then by layer.
    pub methods: BTreeMap<String, BTreeMap<String, Estimate>>,
}

/// A batch norm's mean and unbiased variance.
#[derive(Deserialize)]
pub struct Estimate {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
}

/// SplitMix64, seeded with the FNV-1a hash of the stream's name.
fn stream(name: &str) -> impl Iterator<Item = u64> + use<> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (1u64..).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Multiples of 2^-23 in [-1, 1).
fn uniform(name: &str) -> impl Iterator<Item = f64> + use<> {
    stream(name).map(|bits| (bits >> 40) as f64 / f64::from(1 << 23) - 1.0)
}

/// The initial values of the tensor `name`, in the file's layout (OIHW). `batch_norm` says whether its layer is one.
pub fn initial(name: &str, shape: &[usize], batch_norm: bool, values: &Values) -> Vec<f32> {
    let (layer, role) = name.rsplit_once('.').expect("a tensor is named layer.role");
    let matches = |pattern: &str| Glob::new(pattern).expect("a pattern").compile_matcher().is_match(name);
    let value: Box<dyn Fn(f64) -> f64> = match (values.iter().find(|(pattern, ..)| matches(pattern)), shape, role) {
        (Some(&(_, offset, scale)), ..) => Box::new(move |u| offset + scale * u),
        (None, &[_, i, kh, kw], "weight") => {
            let bound = (6.0 / (i * kh * kw) as f64).sqrt();
            Box::new(move |u| u * bound)
        }
        (None, &[_, i], "weight") => {
            let root = (i as f64).sqrt();
            Box::new(move |u| u / root)
        }
        (None, &[_], "bias") if !batch_norm => Box::new(|u| 0.1 * u),
        (None, &[_], "weight") if layer.ends_with(".bn3") => Box::new(|u| 0.1 + 0.05 * u),
        (None, &[_], "weight") => Box::new(|u| 0.7 + 0.2 * u),
        (None, &[_], "bias") => Box::new(|u| 0.2 * u),
        (None, &[_], "running_mean") => Box::new(|u| 0.1 * u),
        (None, &[_], "running_var") => Box::new(|u| 1.0 + 0.5 * u),
        _ => panic!("no initial value for {name} of shape {shape:?}"),
    };
    uniform(name).take(shape.iter().product()).map(|u| value(u) as f32).collect()
}

/// Images as values, `[n][3][h][w]`.
pub fn images(stream: &str, [n, h, w]: [usize; 3]) -> Vec<f32> {
    uniform(stream).take(n * 3 * h * w).map(|u| (2.0 * u) as f32).collect()
}

/// Images as bytes, `[n][3][h][w]`.
pub fn pixels(stream: &str, [n, h, w]: [usize; 3]) -> Vec<u8> {
    self::stream(stream).take(n * 3 * h * w).map(|bits| (bits >> 56) as u8).collect()
}

/// A case's labels, `[n]`.
pub fn labels(case: &Case) -> Vec<u32> {
    stream("labels").take(case.n).map(|bits| ((bits >> 33) % case.classes as u64) as u32).collect()
}

/// The sum of the values under the signs of stream `k`, over the root of their count.
fn project(k: usize, values: &[f32]) -> f64 {
    let signed = stream(&format!("proj:{k}")).zip(values).map(|(bits, &v)| {
        let v = f64::from(v);
        if bits >> 63 == 0 { v } else { -v }
    });
    signed.sum::<f64>() / (values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected values were printed by the scripts' own functions.

    #[test]
    fn streams_are_the_scripts() {
        let first: Vec<u64> = stream("conv1.weight").take(3).collect();
        assert_eq!(first, [0x8b8a_08a8_5128_a1b0, 0xbec2_eba8_2f6f_054f, 0x05de_32ee_ed3c_84ab]);
    }

    #[test]
    fn initial_values_are_the_scripts_to_the_bit() {
        let values: Values = vec![("*.1.bias".into(), 2.5, 1.0), ("features.?.[1-9]*.weight".into(), 0.3, 0.1)];
        for (name, shape, first) in [
            (
                "layer1.0.conv1.weight",
                &[2, 3, 3, 3][..],
                [0.32191571593284607, 0.0690237283706665, 0.33052879571914673],
            ),
            ("fc.weight", &[10, 64], [-0.00383855402469635, 0.09306740760803223, 0.06088124215602875]),
            ("fc.bias", &[10], [-0.004469740204513073, -0.0038536428473889828, -0.043987393379211426]),
            ("bn1.weight", &[4], [0.6440815925598145, 0.829763650894165, 0.7276751399040222]),
            ("bn1.bias", &[4], [-0.13112151622772217, -0.1839381754398346, 0.1487988531589508]),
            ("bn1.running_mean", &[4], [0.046889983117580414, 0.020123731344938278, 0.008419489488005638]),
            ("bn1.running_var", &[4], [1.1423075199127197, 1.2867534160614014, 1.4707788228988647]),
            ("layer1.0.bn3.weight", &[4], [0.06314092129468918, 0.14881916344165802, 0.14581942558288574]),
            ("features.0.1.bias", &[4], [1.5249830484390259, 2.9034547805786133, 3.1333744525909424]),
            ("features.2.1.block.3.1.weight", &[4], [0.22278240323066711, 0.214187353849411, 0.33864501118659973]),
            ("features.2.0.block.2.fc1.bias", &[4], [0.08336649090051651, 0.08479020744562149, -0.07576928287744522]),
        ] {
            let batch_norm = !name.starts_with("fc") && !name.ends_with("fc1.bias");
            let values = initial(name, shape, batch_norm, &values);
            assert_eq!(values.len(), shape.iter().product::<usize>());
            assert_eq!(values[..3], first.map(|v| v as f32), "{name}");
        }
    }

    #[test]
    fn images_and_labels_are_the_scripts() {
        let images = images("images:3", [6, 2, 2]);
        assert_eq!(images[..3], [-1.869864, 1.1272578, -0.5445223]);
        assert_eq!(images.len(), 72);
        assert_eq!(pixels("pixels", [6, 2, 2])[..3], [82, 215, 64]);
        let mut case = load::<Golden>("resnet_tiny").cases.swap_remove(0);
        (case.n, case.classes) = (6, 10);
        assert_eq!(labels(&case), [9, 4, 9, 9, 4, 2]);
    }

    #[test]
    fn distance_is_estimated_as_the_script_estimates_it() {
        let truth = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.5];
        let proj: Vec<f64> = (0..4).map(|k| project(k, &truth)).collect();
        for (ours, script) in
            proj.iter().zip([-10.429825022501575, 0.17677669529663687, 1.9445436482630056, -9.015611460128481])
        {
            assert!((ours - script).abs() < 1e-12, "{ours} {script}");
        }
        let norm = truth.iter().map(|&t| f64::from(t * t)).sum::<f64>().sqrt();
        let summary = Summary { shape: vec![2, 4], norm, proj, err32: 1e-5 };
        assert_eq!(summary.distance(&truth), 0.0);
        let moved = summary.distance(&[1.1, 2.0, 3.0, 3.8, 5.0, 6.0, 7.0, 9.75]);
        assert!((moved - 0.01892897995450436).abs() < 1e-7, "{moved}");
        assert_eq!((summary.allowed(2e-5), summary.allowed(6e-5)), (5e-5, 6e-5));
    }

    #[test]
    fn files_hold_whole_cases() {
        for model in [
            "resnet_tiny",
            "resnet18",
            "resnet50",
            "wide_resnet50_2",
            "efficientnet_b0",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "mobilenet_v3_small",
            "densenet121",
            "regnet_y_400mf",
            "shufflenet_v2_x1_0",
            "inception_v3",
            "convnext_tiny",
            "keras_efficientnet_b0",
        ] {
            let golden: Golden = load(model);
            assert_eq!(golden.model, model);
            assert!(!golden.cases.is_empty());
            for case in &golden.cases {
                assert_eq!((case.loss.f64.len(), case.loss.f32.len()), (case.steps, case.steps), "{}", case.name);
                assert_eq!(case.logits_before.f64.len(), case.n * case.classes, "{}", case.name);
                assert!(case.grads.keys().eq(case.params.keys()), "{}", case.name);
                for name in &case.frozen {
                    assert!(!case.params.contains_key(name) && !case.stats.contains_key(name), "{} {name}", case.name);
                }
            }
        }
    }
}
