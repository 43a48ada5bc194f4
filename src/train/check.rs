//! Comparing a device with the oracle, call by call.

use super::TrainError;
use crate::gpu::Executor;
use crate::kernels::Access;
use crate::plan::SlotId;
use crate::reference;

/// How far what a call writes may be from the oracle's, as a share of its norm. Device and oracle add in different
/// orders; on the same inputs that is good for some 1e-6, and a wrong index for 1e-2 and more.
pub const TOLERANCE: f64 = 1e-4;

/// How many elements of a mask or of a pooling's choices may differ: those where rounding turned a sign or a tie.
const FLIPPED: f64 = 1e-3;

/// The first call after which device and oracle disagree.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error(
    "call {call}, {label}: `{binding}` differs from the reference by {found:.1e}, and {allowed:.0e} is allowed; word \
     {word} is {device:e} on the device and {reference:e} in the reference"
)]
pub struct Divergence {
    /// Index into the plan's calls.
    pub call: usize,
    /// Kernel, layer and node.
    pub label: String,
    /// The kernel's binding.
    pub binding: &'static str,
    /// Norm of the difference over norm of the reference's; for masks, the share of bits.
    pub found: f64,
    pub allowed: f64,
    /// Where they differ most, and the values there.
    pub word: usize,
    pub device: f32,
    pub reference: f32,
}

/// Runs every call of a plan on the device and on the [oracle](reference::Executor), from what the device's memory
/// holds, and compares what it wrote. Both start each call from the same memory, so that rounding does not add up and
/// the call that is named is the one at fault. The device's memory is afterwards what it was before.
///
/// # Errors
/// [`TrainError::Diverges`] tells of the first call that differs; or the device failed.
pub fn check(executor: &Executor) -> Result<(), TrainError> {
    let plan = executor.plan();
    let slots = || (0..plan.slots.len() as u32).map(SlotId);
    let mut oracle = reference::Executor::new(plan);
    let mut before = Vec::with_capacity(plan.slots.len());
    for slot in slots() {
        let words = executor.read(slot)?;
        oracle.slot_mut(slot).copy_from_slice(&words);
        before.push(words);
    }
    let mut outcome = Ok(());
    for call in 0..plan.calls.len() {
        outcome = check_call(executor, &mut oracle, call);
        if outcome.is_err() {
            break;
        }
    }
    for (slot, words) in slots().zip(&before) {
        executor.write(slot, bytemuck::cast_slice(words))?;
    }
    outcome
}

fn check_call(executor: &Executor, oracle: &mut reference::Executor<'_>, index: usize) -> Result<(), TrainError> {
    let plan = executor.plan();
    let call = &plan.calls[index];
    executor.run_call(index)?;
    oracle.run_call(index);
    for ((binding, &slot), &words) in call.kernel.bindings.iter().zip(&call.bindings).zip(&call.words) {
        if binding.access != Access::Write || words == 0 {
            continue;
        }
        let device = executor.read(slot)?;
        let (found, allowed) = match binding.name {
            "mask" | "argmax" => (flipped(&device[..words], &oracle.slot(slot)[..words]), FLIPPED),
            _ => (distance(&device[..words], &oracle.slot(slot)[..words]), TOLERANCE),
        };
        // A NaN that only one of them has is no distance at all.
        if found.is_nan() || found > allowed {
            let (word, device, reference) = worst(&device[..words], &oracle.slot(slot)[..words]);
            let label = plan.label(call);
            let binding = binding.name;
            return Err(Divergence { call: index, label, binding, found, allowed, word, device, reference }.into());
        }
        oracle.slot_mut(slot).copy_from_slice(&device);
    }
    Ok(())
}

/// `‖found − expected‖ / ‖expected‖`; values that are the same, infinite or NaN, have no distance.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in found.iter().zip(expected) {
        if a == b || a.is_nan() && b.is_nan() {
            norm += if b.is_finite() { f64::from(b).powi(2) } else { 0.0 };
            continue;
        }
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// The share of bits that differ, in words that hold no numbers.
fn flipped(found: &[f32], expected: &[f32]) -> f64 {
    let bits: u32 = found.iter().zip(expected).map(|(a, b)| (a.to_bits() ^ b.to_bits()).count_ones()).sum();
    // One is always allowed: a small mask has few bits to take a share of.
    f64::from(bits.saturating_sub(1)) / (found.len() * 32) as f64
}

fn worst(found: &[f32], expected: &[f32]) -> (usize, f32, f32) {
    let distance = |(a, b): (f32, f32)| match (a - b).abs() {
        d if d.is_nan() => {
            if a.to_bits() == b.to_bits() {
                0.0
            } else {
                f32::INFINITY
            }
        }
        d => d,
    };
    let pairs = found.iter().copied().zip(expected.iter().copied()).enumerate();
    let worst = pairs.max_by(|(_, a), (_, b)| distance(*a).total_cmp(&distance(*b)));
    worst.map_or((0, 0.0, 0.0), |(word, (a, b))| (word, a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Device, DeviceOptions, Parameters};
    use crate::graph::{LayerId, Phase};
    use crate::kernels::{Args, Kernel};
    use crate::plan::{Input, Plan, Storage};
    use crate::{compile, models, weights};

    #[test]
    fn distances() {
        assert_eq!(distance(&[1.0, f32::NAN, f32::INFINITY], &[1.0, f32::NAN, f32::INFINITY]), 0.0);
        assert_eq!(distance(&[3.0, 0.0], &[3.0, 4.0]), 0.8);
        assert_eq!(distance(&[1.0], &[0.0]), f64::INFINITY);
        assert!(distance(&[f32::NAN, 1.0], &[2.0, 1.0]).is_nan());
        assert_eq!(distance(&[0.0, 0.0], &[0.0, -0.0]), 0.0);
    }

    #[test]
    fn masks_count_bits() {
        let words = |bits: u32| vec![f32::from_bits(bits); 100];
        assert_eq!(flipped(&words(5), &words(5)), 0.0);
        assert!(flipped(&words(5), &words(4)) > FLIPPED);
        let mut one = words(5);
        one[7] = f32::from_bits(7);
        assert_eq!(flipped(&one, &words(5)), 0.0);
    }

    #[test]
    fn the_worst_word_is_named() {
        assert_eq!(worst(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.1]), (1, 2.0, 2.5));
        assert_eq!(worst(&[1.0, 9.0], &[f32::NAN, 2.0]).0, 0);
    }

    #[test]
    fn the_call_at_fault_is_named_and_memory_stays() {
        let network = models::build("resnet_tiny", 2, (8, 8), 4).unwrap();
        let tensors = weights::initialise(&network, 1);
        let device = Device::open(&DeviceOptions::default()).unwrap();
        let params = Parameters::upload(&device, &network, &tensors).unwrap();
        let graph = compile::inference(network, true).unwrap();
        let plan = Plan::new(graph, Input::Values, device.variant().unwrap());
        let images: Vec<f32> = (0..2 * 8 * 8 * 4).map(|i| (i % 7) as f32 - 3.0).collect();
        let checked = |plan: Plan| {
            let executor = Executor::new(&device, plan, &params).unwrap();
            let slot = executor.plan().slot(Storage::Images).unwrap();
            executor.write(slot, bytemuck::cast_slice(&images)).unwrap();
            let outcome = check(&executor);
            assert_eq!(executor.read(slot).unwrap()[..images.len()], images);
            outcome
        };
        checked(plan.clone()).unwrap();

        let mut wrong = plan;
        let call = wrong.calls.iter().position(|c| c.phase == Phase::Forward && c.layer == Some(LayerId(6))).unwrap();
        let reference = |_: Args<'_>| {};
        wrong.calls[call].kernel = Box::leak(Box::new(Kernel { reference, ..*wrong.calls[call].kernel }));
        match checked(wrong) {
            Err(TrainError::Diverges(found)) => {
                assert_eq!((found.call, found.binding), (call, "z"));
                assert!(found.to_string().contains("layer1.0.conv2"), "{found}");
            }
            other => panic!("{other:?}"),
        }
    }
}
