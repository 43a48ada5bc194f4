//! One call of a kernel: running it, and comparing the results.

use super::values::{Random, UNTOUCHED, untouched};
use crate::gpu::{Device, GpuError};
use crate::kernels::{Access, Args, Binding, Dispatch, Kernel};
use crate::tensor::Shape;

/// Words behind every buffer that nobody may touch.
const GUARD: usize = 8;

/// What must hold of the buffers after a call, beside their agreement with the reference, or what is wrong with them.
type Claim = Box<dyn Fn(&[Vec<f32>]) -> Result<(), String> + Send>;

/// One call with its buffers. Buffers that are only written start untouched.
pub(super) struct Case {
    what: String,
    dispatch: Dispatch,
    buffers: Vec<Vec<f32>>,
    /// How far device and reference may be apart, relative to the larger of the value and the buffer's root mean square;
    /// 0 asks for the same bits.
    tolerance: f32,
    /// The shapes of the written buffers that have channel padding, by name.
    padded: Vec<(&'static str, Shape)>,
    claim: Option<Claim>,
    /// The input that holds NaNs. Then nothing is compared but where the reference has NaNs: the device must have them there,
    /// and may have more, where it multiplies by zero what the reference skips.
    poisoned: Option<&'static str>,
}

/// How far results are from the reference.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Apart {
    /// Relative to the larger of the value and the buffer's root mean square.
    pub error: f64,
    /// The same as a part of the tolerance.
    pub of_allowed: f64,
}

/// What came of a case.
pub(super) enum Outcome {
    Right(Apart),
    /// With the first thing that is wrong.
    Wrong(Apart, String),
    /// The device's error.
    Refused(String),
}

impl Case {
    pub fn new(what: impl ToString, dispatch: Dispatch, buffers: Vec<Vec<f32>>, tolerance: f32) -> Self {
        let what = what.to_string();
        Self { what, dispatch, buffers, tolerance, padded: vec![], claim: None, poisoned: None }
    }

    /// Has the padding of a result checked.
    pub fn padded(mut self, name: &'static str, shape: Shape) -> Self {
        self.padded.push((name, shape));
        self
    }

    /// Has a claim about the buffers checked, too.
    pub fn claims(mut self, claim: impl Fn(&[Vec<f32>]) -> Result<(), String> + Send + 'static) -> Self {
        self.claim = Some(Box::new(claim));
        self
    }

    pub fn kernel(&self) -> &'static Kernel {
        self.dispatch.kernel
    }

    /// Invocations of a workgroup.
    pub fn invocations(&self) -> u32 {
        self.dispatch.workgroup.iter().product()
    }

    /// The constants that the call's pipeline is compiled with.
    pub fn constants(&self) -> &[(&'static str, f64)] {
        &self.dispatch.constants
    }

    /// Words of all buffers.
    pub fn words(&self) -> usize {
        self.buffers.iter().map(Vec::len).sum()
    }

    /// The same call with NaNs in one input, everywhere or in one place, for each input that holds numbers.
    pub fn poisoned(&self, rng: &mut Random) -> Vec<Self> {
        let mut cases = vec![];
        for (i, binding) in self.kernel().bindings.iter().enumerate() {
            let is_input = self.buffers[i].iter().any(|value| value.to_bits() != UNTOUCHED);
            if !is_input || !holds_numbers(binding.name) {
                continue;
            }
            for everywhere in [true, false] {
                let mut buffers = self.buffers.clone();
                if everywhere {
                    buffers[i].fill(f32::NAN);
                } else {
                    let at = rng.below(buffers[i].len());
                    buffers[i][at] = f32::NAN;
                }
                let what = format!("{}, a NaN in {}", self.what, binding.name);
                let case = Self::new(what, self.dispatch.clone(), buffers, self.tolerance);
                cases.push(Self { poisoned: Some(binding.name), ..case });
            }
        }
        cases
    }

    /// The input that holds NaNs, and whether one of them reaches a result of the reference.
    #[cfg(test)]
    pub fn reaches(&self) -> (Option<&'static str>, bool) {
        let expected = on_host(&self.dispatch, self.buffers.clone());
        let results = self.kernel().bindings.iter().zip(&expected).filter(|(binding, _)| is_number_result(binding));
        (self.poisoned, results.into_iter().any(|(_, values)| values.iter().any(is_computed_nan)))
    }

    /// Runs the case on a device with bounds checks and on one without.
    pub fn run(mut self, checked: &Device, trusted: &Device) -> Outcome {
        for (buffer, binding) in self.buffers.iter_mut().zip(self.dispatch.kernel.bindings) {
            buffer.extend(match binding.access {
                Access::Read | Access::Texture => vec![f32::NAN; GUARD],
                Access::Write => untouched(GUARD),
            });
        }
        let mut apart = Apart::default();
        match self.compare(checked, trusted, &mut apart) {
            Err(error) => Outcome::Refused(format!("{}: {error}", self.what)),
            Ok(Err(wrong)) => Outcome::Wrong(apart, format!("{}: {wrong}", self.what)),
            Ok(Ok(())) => Outcome::Right(apart),
        }
    }

    fn compare(&self, checked: &Device, trusted: &Device, apart: &mut Apart) -> Result<Result<(), String>, GpuError> {
        let dispatch = &self.dispatch;
        let expected = on_host(dispatch, self.buffers.clone());
        let found = self.on(trusted, dispatch)?;
        if self.poisoned.is_some() {
            return Ok(self.hands_nan_on(&found, &expected));
        }
        let with_checks = self.on(checked, dispatch)?;
        let folded = self.folded().map(|folded| self.on(trusted, &folded)).transpose()?;
        // The difference from the reference is measured even where something else is wrong.
        let near = self.near(&found, &expected, apart);
        let same = |what, other: &[Vec<f32>]| {
            self.each(&found, other).try_for_each(|(name, a, b)| {
                same_bits(a, b).map_err(|at| format!("{name}{at} without bounds checks {what}"))
            })
        };
        Ok(near
            .and_then(|()| same("and not with them", &with_checks))
            .and_then(|()| same("and not in two rows of workgroups", folded.as_deref().unwrap_or(&found)))
            .and_then(|()| self.padding(&found))
            .and_then(|()| self.claim.as_ref().map_or(Ok(()), |claim| claim(&found))))
    }

    fn on(&self, device: &Device, dispatch: &Dispatch) -> Result<Vec<Vec<f32>>, GpuError> {
        let mut buffers = self.buffers.clone();
        device.run(dispatch, &mut buffers)?;
        Ok(buffers)
    }

    /// The same call in two rows of workgroups, if the kernel can do that: it asks for their number then.
    fn folded(&self) -> Option<Dispatch> {
        match self.dispatch.workgroups {
            [groups, 1, 1] if groups > 1 && self.kernel().source.contains("num_workgroups") => {
                Some(self.dispatch.clone().folded_into([groups.div_ceil(2), 2, 1]))
            }
            _ => None,
        }
    }

    /// Two sets of buffers by binding.
    fn each<'a>(
        &self,
        a: &'a [Vec<f32>],
        b: &'a [Vec<f32>],
    ) -> impl Iterator<Item = (&'static str, &'a [f32], &'a [f32])> {
        self.kernel().bindings.iter().zip(a.iter().zip(b)).map(|(binding, (a, b))| (binding.name, &a[..], &b[..]))
    }

    fn near(&self, found: &[Vec<f32>], expected: &[Vec<f32>], apart: &mut Apart) -> Result<(), String> {
        let mut result = Ok(());
        for ((name, found, expected), binding) in self.each(found, expected).zip(self.kernel().bindings) {
            let bits = self.tolerance == 0.0 || ["mask", "argmax"].contains(&name);
            let compared = match binding.access != Access::Write || bits {
                true => same_bits(found, expected).map_err(|at| format!("{at} by the reference")),
                false => near(found, expected, self.tolerance, apart),
            };
            result = result.and(compared.map_err(|at| format!("{name}{at}")));
        }
        result
    }

    fn hands_nan_on(&self, found: &[Vec<f32>], expected: &[Vec<f32>]) -> Result<(), String> {
        for ((name, found, expected), binding) in self.each(found, expected).zip(self.kernel().bindings) {
            if !is_number_result(binding) {
                continue;
            }
            let lost = |(found, expected): (&f32, &f32)| is_computed_nan(expected) && !found.is_nan();
            if let Some(at) = found.iter().zip(expected).position(lost) {
                return Err(format!("{name}[{at}] is {}, NaN by the reference", found[at]));
            }
        }
        Ok(())
    }

    fn padding(&self, found: &[Vec<f32>]) -> Result<(), String> {
        for (name, shape) in &self.padded {
            let buffer = self.kernel().bindings.iter().zip(found).find(|(binding, _)| binding.name == *name);
            let Some((_, buffer)) = buffer else { return Err(format!("the kernel has no {name} whose padding is 0")) };
            let mut rows = buffer[..shape.stored_len()].chunks(shape.stored_c());
            if rows.any(|row| row[shape.c()..].iter().any(|value| *value != 0.0)) {
                return Err(format!("{name}: the padding of {shape} is not 0"));
            }
        }
        Ok(())
    }
}

/// Whether a binding of that name holds numbers, which may be NaN, rather than bits.
fn holds_numbers(name: &str) -> bool {
    !["mask", "argmax", "labels", "pixels", "segments", "step"].contains(&name)
}

fn is_number_result(binding: &Binding) -> bool {
    binding.access == Access::Write && holds_numbers(binding.name)
}

/// Whether a value is a NaN that was not there before the call.
fn is_computed_nan(value: &f32) -> bool {
    value.is_nan() && value.to_bits() != UNTOUCHED
}

/// The buffers after a call of the kernel's reference.
pub(super) fn on_host(dispatch: &Dispatch, mut buffers: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let slices = buffers.iter_mut().map(|b| b.as_mut_slice()).collect();
    (dispatch.kernel.reference)(Args::new(&dispatch.params, slices));
    buffers
}

/// Whether values are the same to the bit; where they are not, the first place.
pub(super) fn same_bits(found: &[f32], expected: &[f32]) -> Result<(), String> {
    let differs = |(a, b): (&f32, &f32)| {
        // NaNs that were computed may differ in payload, and WGSL leaves the sign of a zero open.
        let computed = a.is_nan() && b.is_nan() && ![a.to_bits(), b.to_bits()].contains(&UNTOUCHED);
        a.to_bits() != b.to_bits() && !computed && !(*a == 0.0 && *b == 0.0)
    };
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(i) => {
            let [a, b] = [found[i], expected[i]].map(|value| format!("{value} ({:#x})", value.to_bits()));
            Err(format!("[{i}] of {} is {a}, {b}", found.len()))
        }
    }
}

fn near(found: &[f32], expected: &[f32], tolerance: f32, apart: &mut Apart) -> Result<(), String> {
    let finite = expected.iter().filter(|v| v.is_finite());
    let rms = (finite.clone().map(|v| v * v).sum::<f32>() / finite.count().max(1) as f32).sqrt();
    let mut first = None;
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let untouched = [a.to_bits(), b.to_bits()].contains(&UNTOUCHED);
        let error = (a - b).abs() / b.abs().max(rms);
        let near = match untouched {
            true => a.to_bits() == b.to_bits(),
            false => a == b || a.is_nan() && b.is_nan() || error <= tolerance,
        };
        if error.is_finite() && !untouched {
            apart.error = apart.error.max(error.into());
            apart.of_allowed = apart.of_allowed.max(f64::from(error) / f64::from(tolerance));
        }
        if !near {
            first.get_or_insert(i);
        }
    }
    first.map_or(Ok(()), |i| {
        Err(format!("[{i}] of {} is {}, {} by the reference (rms {rms})", found.len(), found[i], expected[i]))
    })
}
