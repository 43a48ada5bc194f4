//! What was measured on one device, as a file that can be sent around and compared with.

use super::{Predictions, ReportError};
use crate::files::read_small;
use crate::plan::Roofline;
use crate::train::{Measurement, Quartiles};
use crate::weights::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The longest file that is read, in bytes. A thousand combinations take about one MiB.
const MAX_FILE: u64 = 16 << 20;

/// Policies × thaw depths × batch sizes of one network, on one device. What older files do not tell is empty.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Benchmark {
    /// The device's name.
    pub device: String,
    /// The driver's name and version.
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub backend: String,
    /// Discrete, integrated or virtual GPU, or a driver that computes on the CPU.
    #[serde(default)]
    pub kind: String,
    /// Processor architecture and operating system, such as `x86_64-linux`.
    #[serde(default)]
    pub host: String,
    /// The version of this crate.
    #[serde(default)]
    pub thawline: String,
    /// `release` or `debug`: how the host's part was compiled.
    #[serde(default)]
    pub build: String,
    /// `YYYY-MM-DD`, in UTC.
    #[serde(default)]
    pub date: String,
    /// Of the convolutions.
    #[serde(default)]
    pub variant: String,
    /// How many the network tells apart.
    #[serde(default)]
    pub classes: Option<usize>,
    /// Its name, and what of it makes a difference to what a step takes.
    #[serde(default)]
    pub optimizer: String,
    /// Rules that come after those of every policy.
    #[serde(default)]
    pub rules: Vec<String>,
    /// What the predictions were made with.
    #[serde(default)]
    pub roofline: Option<Roofline>,
    pub results: Vec<BenchResult>,
    /// The most memory that the process ever had, where the system tells.
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
}

/// One policy, thaw depth and batch size.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BenchResult {
    pub model: String,
    pub policy: String,
    /// The layer from which on all weights train; none if the policy alone says which do.
    #[serde(default)]
    pub thaw: Option<String>,
    /// Images.
    pub batch: usize,
    /// Height and width, in pixels.
    pub size: [usize; 2],
    /// None if it could not be measured.
    #[serde(flatten)]
    pub measured: Option<Measurement>,
    /// None where a policy refuses, and in older files.
    #[serde(default)]
    pub predicted: Option<Predictions>,
    /// The policy and thaw depth that come to the same, and whose numbers these are.
    #[serde(default)]
    pub same_as: Option<String>,
    /// Why it could not be measured.
    #[serde(default)]
    pub error: Option<String>,
}

/// A benchmark beside an earlier or another one.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Against {
    /// The other file.
    pub file: String,
    pub disagree: Vec<Disagreement>,
    /// What only one of them tells, so they may differ in it.
    pub untold: Vec<&'static str>,
    /// What both have measured, in the order of the one here.
    pub pairs: Vec<Pair>,
    /// Measured results that only one of them has.
    pub only_here: usize,
    pub only_there: usize,
}

/// Something else than the results in which two benchmarks differ.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Disagreement {
    pub what: &'static str,
    pub here: String,
    pub there: String,
}

/// A combination that two benchmarks have measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Pair {
    pub model: String,
    pub policy: String,
    pub thaw: Option<String>,
    pub batch: usize,
    pub size: [usize; 2],
    pub inference: Change,
    pub step: Change,
    /// Allocated device memory here, over that there; none where a file says nothing of use.
    pub allocated: Option<f64>,
}

/// A median here beside the one there, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Change {
    pub here_ms: f64,
    pub there_ms: f64,
    /// Here over there: less than 1 is faster.
    pub ratio: f64,
    /// Whether it is more than the noise within the runs of each explains; none if that is not known.
    pub clear: Option<bool>,
}

impl Benchmark {
    /// # Errors
    /// The file cannot be read, or is no benchmark.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let fail = |reason: String| ReportError::Read { path: path.into(), reason };
        let bytes = read_small(path, MAX_FILE).map_err(|error| fail(error.to_string()))?;
        let expected = "expected what `thawline bench --out` writes";
        let read: Self = serde_json::from_slice(&bytes).map_err(|error| fail(format!("{error}; {expected}")))?;
        match read.flaw() {
            None => Ok(read),
            Some(flaw) => Err(fail(format!("{flaw}; {expected}"))),
        }
    }

    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let written = write_atomically(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        });
        written.map_err(|source| ReportError::Write { path: path.into(), source })
    }

    /// What a file of someone else's may have that would not do on a terminal, or in arithmetic.
    fn flaw(&self) -> Option<String> {
        if self.results.is_empty() {
            return Some("it has no results".into());
        }
        let Self { device, driver, backend, kind, host, thawline, build, date, variant, optimizer, .. } = self;
        let mut texts = vec![device, driver, backend, kind, host, thawline, build, date, variant, optimizer];
        texts.extend(&self.rules);
        for (index, result) in self.results.iter().enumerate() {
            texts.extend([&result.model, &result.policy]);
            texts.extend([&result.thaw, &result.same_as, &result.error].into_iter().flatten());
            match &result.measured {
                None if result.error.is_none() => {
                    return Some(format!("result {index} has neither a whole measurement nor an error"));
                }
                Some(measured) if !(measured.step_ms > 0.0 && measured.inference_ms > 0.0) => {
                    return Some(format!("result {index} has a time that is not above 0"));
                }
                measured => {
                    let kernels = measured.iter().flat_map(|m| m.kernels.iter().chain(&m.inference_kernels));
                    texts.extend(kernels.map(|kernel| &kernel.kernel));
                }
            }
        }
        let odd = texts.into_iter().find(|text| text.contains(char::is_control))?;
        Some(format!("it has control characters in {odd:?}"))
    }

    /// Compares with `other`, which was read from `file`. Results belong together by model, policy, thaw depth, batch and
    /// size; nothing else has to be the same.
    pub fn against(&self, file: &str, other: &Self) -> Against {
        let measured = |results: &[BenchResult]| results.iter().filter(|result| result.measured.is_some()).count();
        let mut disagree = Vec::new();
        let mut untold = Vec::new();
        for ((what, here), (_, there)) in self.circumstances().into_iter().zip(other.circumstances()) {
            if here == there {
                continue;
            }
            match here.is_empty() || there.is_empty() {
                true => untold.push(what),
                false => disagree.push(Disagreement { what, here, there }),
            }
        }
        let pairs: Vec<Pair> = self.results.iter().filter_map(|here| here.beside(&other.results)).collect();
        Against {
            file: file.into(),
            disagree,
            untold,
            only_here: measured(&self.results) - pairs.len(),
            only_there: measured(&other.results).saturating_sub(pairs.len()),
            pairs,
        }
    }

    /// What a benchmark tells of how it came about; empty where it does not.
    fn circumstances(&self) -> [(&'static str, String); 10] {
        let rules = match self.rules.is_empty() {
            true if self.thawline.is_empty() => String::new(),
            true => "none".into(),
            false => self.rules.join("; "),
        };
        [
            ("device", self.device.clone()),
            ("driver", self.driver.clone()),
            ("backend", self.backend.clone()),
            ("convolutions", self.variant.clone()),
            ("host", self.host.clone()),
            ("thawline", self.thawline.clone()),
            ("build", self.build.clone()),
            ("classes", self.classes.map(|count| count.to_string()).unwrap_or_default()),
            ("optimiser", self.optimizer.clone()),
            ("added rules", rules),
        ]
    }
}

impl BenchResult {
    /// The policy and the thaw depth, for people.
    pub fn label(&self) -> String {
        label(&self.policy, self.thaw.as_deref())
    }

    /// Measured over predicted times of inference and of the step, and allocated over planned memory.
    pub fn ratios(&self) -> Option<[f64; 3]> {
        let (measured, predicted) = (self.measured.as_ref()?, self.predicted.as_ref()?);
        Some([
            measured.inference_ms / predicted.inference.ms,
            measured.step_ms / predicted.step.ms,
            measured.allocated_bytes as f64 / measured.planned_bytes as f64,
        ])
    }

    fn beside(&self, others: &[Self]) -> Option<Pair> {
        let key = |r: &Self| (r.model.clone(), r.policy.clone(), r.thaw.clone(), r.batch, r.size);
        let here = self.measured.as_ref()?;
        let there = others.iter().filter(|other| key(other) == key(self)).find_map(|other| other.measured.as_ref())?;
        let change = |ms: fn(&Measurement) -> (f64, Option<Quartiles>)| Change::between(ms(here), ms(there));
        let both = here.allocated_bytes > 0 && there.allocated_bytes > 0;
        Some(Pair {
            model: self.model.clone(),
            policy: self.policy.clone(),
            thaw: self.thaw.clone(),
            batch: self.batch,
            size: self.size,
            inference: change(|m| (m.inference_ms, m.inference_runs_ms)),
            step: change(|m| (m.step_ms, m.step_runs_ms)),
            allocated: both.then(|| here.allocated_bytes as f64 / there.allocated_bytes as f64),
        })
    }
}

pub(crate) fn label(policy: &str, thaw: Option<&str>) -> String {
    match thaw {
        Some(layer) => format!("{policy}, thawed from {layer}"),
        None => policy.to_owned(),
    }
}

impl Change {
    /// Of two medians, and what they are the medians of.
    ///
    /// Medians are clearly apart if their notches are: 1.57 times the distance between the quartiles, over the root of how
    /// many values there are, to either side (McGill, Tukey and Larsen 1978, for about 95 %). That is the noise within each
    /// benchmark; a machine that was busier during the whole of one is beyond it.
    fn between(here: (f64, Option<Quartiles>), there: (f64, Option<Quartiles>)) -> Self {
        // Quartiles of two values are the values.
        const ENOUGH: usize = 3;
        let notch = |runs: Option<Quartiles>| {
            let runs = runs.filter(|runs| runs.count >= ENOUGH)?;
            Some(1.57 * (runs.upper - runs.lower) / (runs.count as f64).sqrt())
        };
        let noise = notch(here.1).zip(notch(there.1)).map(|(here, there)| here + there);
        Self {
            here_ms: here.0,
            there_ms: there.0,
            ratio: here.0 / there.0,
            clear: noise.map(|noise| (here.0 - there.0).abs() > noise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As `bench --json` wrote it before it knew of thaw depths, predictions and drivers.
    const OLD: &str = r#"{"device": "a GPU", "results": [{"model": "resnet18", "policy": "full", "batch": 8,
        "size": [64, 64], "inference_ms": 150.0, "step_ms": 655.0, "first_step_ms": 1479.0, "images_per_s": 12.2,
        "planned_bytes": 100, "kept_bytes": 10, "allocated_bytes": 110, "kernels": [{"kernel": "add", "calls": 3,
        "ms": null}], "inference_kernels": []}], "peak_rss_bytes": 1000}"#;

    fn old() -> Benchmark {
        serde_json::from_str(OLD).unwrap()
    }

    /// The same with other results: policy, thaw depth, batch and time of a step.
    fn with(results: &[(&str, Option<&str>, usize, f64)]) -> Benchmark {
        let mut benchmark = old();
        let template = benchmark.results.remove(0);
        benchmark.results.extend(results.iter().map(|&(policy, thaw, batch, step_ms)| BenchResult {
            policy: policy.into(),
            thaw: thaw.map(str::to_owned),
            batch,
            measured: template.measured.clone().map(|measured| Measurement { step_ms, ..measured }),
            ..template.clone()
        }));
        benchmark
    }

    #[test]
    fn files_of_older_versions_are_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/2026-11-23-llvmpipe.json");
        let read = Benchmark::read(&file).unwrap();
        assert_eq!(read.results.len(), 5);
        assert!(read.results.iter().all(|result| result.measured.is_some() && result.predicted.is_none()));
        assert!(read.driver.is_empty() && read.roofline.is_none());
        assert_eq!(old().flaw(), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let mut benchmark = with(&[("full", None, 8, 1.5), ("head", Some("layer4"), 1, 2.5)]);
        benchmark.results[1].measured = None;
        benchmark.results[1].error = Some("too large".into());
        benchmark.write(&file).unwrap();
        assert_eq!(Benchmark::read(&file).unwrap(), benchmark);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("odd.json");
        let refused = |text: &str| {
            fs::write(&file, text).unwrap();
            Benchmark::read(&file).unwrap_err().to_string()
        };
        assert!(refused("[]").contains("expected what `thawline bench --out` writes"));
        assert!(refused(r#"{"device": "a", "results": []}"#).contains("no results"));
        assert!(refused(&OLD.replace("655.0", "\"fast\"")).contains("result 0 has neither"));
        assert!(refused(&OLD.replace("655.0", "-1.0")).contains("not above 0"));
        let hostile = refused(&OLD.replace("a GPU", "\\u001b[2J"));
        assert!(hostile.contains("control characters") && !hostile.contains('\u{1b}'), "{hostile}");
        let missing = Benchmark::read(Path::new("missing.json")).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read missing.json"), "{missing}");
    }

    #[test]
    fn results_are_matched_by_what_was_measured() {
        let here = with(&[
            ("full", None, 8, 300.0),
            ("head", None, 8, 100.0),
            ("head", Some("layer4"), 8, 150.0),
            ("head", None, 1, 10.0),
        ]);
        let there =
            with(&[("head", Some("layer3"), 8, 1.0), ("head", Some("layer4"), 8, 100.0), ("head", None, 8, 200.0)]);
        let against = here.against("there.json", &there);
        let ratios: Vec<_> = against.pairs.iter().map(|p| (p.thaw.as_deref(), p.batch, p.step.ratio)).collect();
        assert_eq!(ratios, [(None, 8, 0.5), (Some("layer4"), 8, 1.5)]);
        assert_eq!((against.only_here, against.only_there), (2, 1));
        assert_eq!(against.pairs[0].allocated, Some(1.0));
        assert_eq!(against.pairs[0].step.clear, None, "older files do not tell how far runs are apart");

        let mut elsewhere = there.clone();
        elsewhere.results.iter_mut().for_each(|result| result.size = [32, 32]);
        assert!(here.against("there.json", &elsewhere).pairs.is_empty());
    }

    #[test]
    fn files_say_what_they_disagree_in() {
        let told = Benchmark { driver: "one 1.0".into(), thawline: "0.1.0".into(), ..old() };
        let other = Benchmark { device: "another GPU".into(), driver: "one 1.1".into(), ..told.clone() };
        let what = |against: Against| against.disagree.iter().map(|d| d.what).collect::<Vec<_>>();
        assert_eq!(what(told.against("f", &other)), ["device", "driver"]);
        assert_eq!(what(told.against("f", &told)), [""; 0]);
        let ruled = Benchmark { rules: vec!["kind:bn -> affine=none".into()], ..told.clone() };
        assert_eq!(what(told.against("f", &ruled)), ["added rules"]);
        let older = told.against("f", &old());
        assert_eq!(older.untold, ["driver", "thawline", "added rules"]);
        assert_eq!(what(older), [""; 0]);
    }

    #[test]
    fn a_change_is_clear_if_notches_are_apart() {
        let runs = |count, lower, upper| Some(Quartiles { count, least: lower, lower, upper, most: upper });
        let clear = |here, there| Change::between(here, there).clear;
        // Notches of 1.57 · 2 / √4 to either side of each.
        assert_eq!(clear((10.0, runs(4, 9.0, 11.0)), (13.0, runs(4, 12.0, 14.0))), Some(false));
        assert_eq!(clear((10.0, runs(4, 9.0, 11.0)), (13.2, runs(4, 12.2, 14.2))), Some(true));
        assert_eq!(clear((13.2, runs(4, 12.2, 14.2)), (10.0, runs(4, 9.0, 11.0))), Some(true));
        assert_eq!(clear((10.0, runs(2, 9.0, 11.0)), (99.0, runs(9, 99.0, 99.0))), None);
        assert_eq!(clear((10.0, None), (99.0, runs(9, 99.0, 99.0))), None);
        assert_eq!(Change::between((10.0, None), (20.0, None)).ratio, 0.5);
    }
}
