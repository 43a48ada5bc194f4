//! Every kernel on a device against its scalar reference, over odd shapes and random values.
//!
//! Each case runs on the device twice, compiled with bounds checks and without, which must give the same bits, and again
//! with its workgroups folded into two rows. Every buffer ends in a few NaNs that a kernel must neither read nor write, and
//! a buffer that a flag switches off holds nothing else. Each kernel also gets NaNs in one input after the other, which must
//! reach the results.
//!
//! ```no_run
//! use thawline::check::Checker;
//! use thawline::gpu::DeviceOptions;
//!
//! let results = Checker::open(&DeviceOptions::default())?.run(|_| true, |_| ());
//! for kernel in results.iter().filter(|kernel| kernel.is_wrong()) {
//!     println!("{}: {}", kernel.kernel, kernel.failure.as_deref().unwrap_or_default());
//! }
//! # Ok::<(), thawline::gpu::GpuError>(())
//! ```

mod batch_norm;
mod case;
mod channels;
mod convolution;
mod elementwise;
mod nan;
mod pooling;
#[cfg(test)]
mod tests;
mod training;
mod values;

use crate::gpu::{Device, DeviceInfo, DeviceOptions, GpuError};
use crate::kernels::{KERNELS, Kernel, SUBGROUP};
use case::{Case, Outcome};
use rayon::prelude::*;
use serde::Serialize;

/// Kernels that are checked together.
pub struct Family {
    pub name: &'static str,
    cases: fn() -> Vec<Case>,
}

impl Family {
    /// The family of that name.
    pub fn of_name(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }
}

/// All kernels: each has cases in at least one family.
pub static FAMILIES: &[Family] = &[
    Family { name: "elementwise", cases: elementwise::elementwise },
    Family { name: "batch norm", cases: batch_norm::batch_norm },
    Family { name: "folded batch norm", cases: batch_norm::folding },
    Family { name: "sums", cases: training::sums },
    Family { name: "pooling", cases: pooling::pooling },
    Family { name: "channels", cases: channels::channels },
    Family { name: "padding", cases: channels::padding },
    Family { name: "layer norm", cases: channels::layer_norm },
    Family { name: "group norm", cases: channels::group_norm },
    Family { name: "loss", cases: training::loss },
    Family { name: "optimisers", cases: training::optimisers },
    Family { name: "input", cases: training::input },
    Family { name: "convolution", cases: convolution::convolution },
    Family { name: "depthwise convolution", cases: convolution::depthwise },
    Family { name: "large depthwise convolution", cases: convolution::large_depthwise },
    Family { name: "grouped convolution", cases: convolution::grouped },
    Family { name: nan::NAME, cases: nan::nan },
];

/// How one kernel did on a device.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct KernelResult {
    pub kernel: &'static str,
    /// Cases that there are.
    pub cases: usize,
    pub passed: usize,
    /// Cases that were not tried: the device does not support the kernel, or not its large workgroups, which no plan for it has
    /// then; or it reported an error before them.
    pub skipped: usize,
    /// The largest difference from the reference, relative to the larger of the value and the root mean square of its
    /// buffer; of finite values.
    pub worst_error: f64,
    /// The largest difference as a part of what its case allows: above 1 is wrong.
    pub worst_of_allowed: f64,
    /// The first case that is wrong, and in what, or the device's error.
    pub failure: Option<String>,
    /// Why the device does not run the kernel; it is never chosen there.
    pub unsupported: Option<String>,
}

impl KernelResult {
    fn new(kernel: &Kernel, unsupported: Option<String>) -> Self {
        Self {
            kernel: kernel.name,
            cases: 0,
            passed: 0,
            skipped: 0,
            worst_error: 0.0,
            worst_of_allowed: 0.0,
            failure: None,
            unsupported,
        }
    }

    /// Whether a case failed, or could not run although the device supports the kernel.
    pub fn is_wrong(&self) -> bool {
        self.failure.is_some()
    }

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Right(apart) => {
                self.passed += 1;
                self.differ(apart);
            }
            Outcome::Wrong(apart, what) => {
                self.failure.get_or_insert(what);
                self.differ(apart);
            }
            Outcome::Refused(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }

    fn differ(&mut self, apart: case::Apart) {
        self.worst_error = self.worst_error.max(apart.error);
        self.worst_of_allowed = self.worst_of_allowed.max(apart.of_allowed);
    }
}

/// How far a check has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub family: &'static str,
    /// Families before this one, and all.
    pub families: [usize; 2],
    /// Cases of the family that are done, and all of them.
    pub cases: [usize; 2],
}

/// Runs the cases on a device.
pub struct Checker {
    checked: Device,
    trusted: Device,
}

impl Checker {
    /// Opens the device that `options` select, once with bounds checks in the shaders and once without.
    ///
    /// # Errors
    /// There is no driver, no device matches, or the device refuses.
    pub fn open(options: &DeviceOptions) -> Result<Self, GpuError> {
        let open = |checked| Device::open(&DeviceOptions { checked, ..options.clone() });
        Ok(Self { checked: open(true)?, trusted: open(false)? })
    }

    pub fn info(&self) -> &DeviceInfo {
        self.trusted.info()
    }

    /// Checks the kernels that are `wanted` and tells `observe` how far it is. The results are in the order of
    /// [`KERNELS`]. A kernel that is wrong does not stop the others; after an error of the device the kernel's other cases
    /// are skipped.
    pub fn run(&self, wanted: impl Fn(&Kernel) -> bool, mut observe: impl FnMut(Progress)) -> Vec<KernelResult> {
        let mut results = Vec::new();
        for (index, family) in FAMILIES.iter().enumerate() {
            let mut cases = (family.cases)();
            cases.retain(|case| wanted(case.kernel()));
            self.add(&mut results, family, cases, |cases| {
                observe(Progress { family: family.name, families: [index, FAMILIES.len()], cases });
            });
        }
        results.sort_by_key(|result: &KernelResult| KERNELS.iter().position(|kernel| kernel.name == result.kernel));
        results
    }

    /// Checks one family.
    pub fn run_family(&self, family: &Family) -> Vec<KernelResult> {
        let mut results = Vec::new();
        self.add(&mut results, family, (family.cases)(), |_| ());
        results
    }

    fn add(
        &self,
        results: &mut Vec<KernelResult>,
        family: &Family,
        mut cases: Vec<Case>,
        mut observe: impl FnMut([usize; 2]),
    ) {
        /// Cases on all cores at a time: most of the time goes to the driver's compiler.
        const TOGETHER: usize = 64;
        log::debug!("{}: {} cases", family.name, cases.len());
        let count = cases.len();
        // A device that failed once with a kernel may take long to fail again.
        let mut refused: Vec<&str> = Vec::new();
        while !cases.is_empty() {
            observe([count - cases.len(), count]);
            let together: Vec<Case> = cases.drain(..TOGETHER.min(cases.len())).collect();
            let most = self.info().limits.max_compute_invocations_per_workgroup;
            let run = |case: Case| {
                let kernel = case.kernel();
                let runs =
                    !refused.contains(&kernel.name) && self.unsupported(kernel).is_none() && case.invocations() <= most;
                (kernel, runs.then(|| case.run(&self.checked, &self.trusted)))
            };
            let outcomes: Vec<(&Kernel, Option<Outcome>)> = together.into_par_iter().map(run).collect();
            for (kernel, outcome) in outcomes {
                let at = results.iter().position(|result| result.kernel == kernel.name).unwrap_or_else(|| {
                    results.push(KernelResult::new(kernel, self.unsupported(kernel)));
                    results.len() - 1
                });
                let result = &mut results[at];
                result.cases += 1;
                // As if one had run after the other.
                let Some(outcome) = outcome.filter(|_| !refused.contains(&kernel.name)) else {
                    result.skipped += 1;
                    continue;
                };
                if matches!(outcome, Outcome::Refused(_)) {
                    refused.push(kernel.name);
                }
                result.add(outcome);
            }
        }
    }

    /// Why the device does not run a kernel.
    fn unsupported(&self, kernel: &Kernel) -> Option<String> {
        if [&self.checked, &self.trusted].iter().all(|device| device.supports(kernel)) {
            return None;
        }
        let limits = &self.info().limits;
        if let Some((limit, found, needed)) = limits.lacks(kernel) {
            return Some(format!("needs a {limit} of {needed}; this device allows {found}"));
        }
        let [least, most] = limits.subgroup_sizes;
        Some(match [least, most] == [SUBGROUP; 2] {
            true => "needs subgroup operations, which this driver does not offer to shaders".into(),
            false => format!("needs subgroups of exactly {SUBGROUP} invocations; this device has {least} to {most}"),
        })
    }
}
