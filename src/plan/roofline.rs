//! How long a plan should take on a device of which four numbers are known.

use super::{Call, PhaseCost, Plan};
use crate::graph::Phase;
use serde::{Deserialize, Serialize};

/// What a device can do, as it was measured on it.
///
/// A run of a plan is predicted to take
///
/// ```text
/// run_ms + Σ over its calls of ( call_ms + max(flops / flops_per_s, bytes / bytes_per_s) )
/// ```
///
/// The maximum is the roofline of Williams, Waterman and Patterson (2009): a call is bound by its arithmetic or by memory,
/// whichever takes longer. Nothing is assumed of any kernel, so what takes longer than predicted is a kernel that is worse
/// than a large convolution or a plain addition, or a grid too small to fill the device; what takes less finds its operands
/// in a cache.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Roofline {
    /// Floating-point operations a second, in a large convolution.
    pub flops_per_s: f64,
    /// Bytes read and written a second, in an addition of large tensors.
    pub bytes_per_s: f64,
    /// What a call takes that has next to nothing to do, one of many, in milliseconds.
    pub call_ms: f64,
    /// Handing calls over to the device and waiting for it, in milliseconds.
    pub run_ms: f64,
}

impl Roofline {
    /// What one call should take, in milliseconds.
    pub fn call(&self, cost: PhaseCost) -> f64 {
        let arithmetic = cost.flops as f64 / self.flops_per_s;
        let memory = cost.bytes as f64 / self.bytes_per_s;
        self.call_ms + 1e3 * arithmetic.max(memory)
    }

    /// What a run of all calls should take, in milliseconds, but for those that run once.
    pub fn plan(&self, plan: &Plan) -> f64 {
        let each = |call: &Call| call.phase != Phase::Once;
        self.run_ms + plan.calls.iter().filter(|call| each(call)).map(|call| self.call(call.cost)).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile;
    use crate::kernels::conv2d::Variant;
    use crate::models;
    use crate::plan::Input;

    const DEVICE: Roofline = Roofline { flops_per_s: 1e9, bytes_per_s: 1e8, call_ms: 0.5, run_ms: 2.0 };

    #[test]
    fn a_call_is_bound_by_arithmetic_or_by_memory() {
        assert_eq!(DEVICE.call(PhaseCost { flops: 0, bytes: 0 }), 0.5);
        assert_eq!(DEVICE.call(PhaseCost { flops: 3_000_000, bytes: 200_000 }), 3.5);
        assert_eq!(DEVICE.call(PhaseCost { flops: 1_000_000, bytes: 200_000 }), 2.5);
    }

    #[test]
    fn a_plan_takes_the_sum_of_its_calls() {
        let plan = |batch| {
            let network = models::build("resnet_tiny", batch, (16, 16), 10).unwrap();
            Plan::new(compile::inference(network, true).unwrap(), Input::Values, Variant::default())
        };
        let (small, large) = (plan(1), plan(8));
        // The folds run once.
        let calls = small.calls.iter().filter(|call| call.phase != Phase::Once).count();
        assert!(calls > 10 && calls < small.calls.len());
        let idle = Roofline { flops_per_s: f64::INFINITY, bytes_per_s: f64::INFINITY, ..DEVICE };
        assert_eq!(idle.plan(&small), 2.0 + 0.5 * calls as f64);
        assert!(DEVICE.plan(&small) > idle.plan(&small) && DEVICE.plan(&large) > DEVICE.plan(&small));
        // Whichever binds a call, all of them together take no less than either alone, and no less than both at once.
        let cost = large.cost.step();
        let own = DEVICE.plan(&large) - idle.plan(&large);
        let (arithmetic, memory) = (cost.flops as f64 / 1e9 * 1e3, cost.bytes as f64 / 1e8 * 1e3);
        assert!(own >= arithmetic.max(memory) && own <= arithmetic + memory, "{own} {arithmetic} {memory}");
    }
}
