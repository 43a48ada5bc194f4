//! The oracle: runs a [`Plan`] on the host with the kernels' scalar references, slot by slot as the device would.
//!
//! It is slow and plain. Since it runs the very plan that the device runs, a wrong slot reuse shows here too.

use crate::graph::Phase;
use crate::kernels::Args;
use crate::plan::{Plan, SlotId};
use std::collections::HashMap;

/// A plan with its memory on the host.
pub struct Executor<'a> {
    plan: &'a Plan,
    memory: Vec<Vec<f32>>,
}

impl<'a> Executor<'a> {
    /// All slots zero.
    pub fn new(plan: &'a Plan) -> Self {
        Self { plan, memory: plan.slots.iter().map(|slot| vec![0.0; slot.words]).collect() }
    }

    /// A slot's words.
    pub fn slot(&self, slot: SlotId) -> &[f32] {
        &self.memory[slot.index()]
    }

    /// A slot's words, to be filled.
    pub fn slot_mut(&mut self, slot: SlotId) -> &mut [f32] {
        &mut self.memory[slot.index()]
    }

    /// Runs the calls of the given phases, in order.
    pub fn run(&mut self, phases: &[Phase]) {
        for (index, call) in self.plan.calls.iter().enumerate() {
            if phases.contains(&call.phase) {
                self.run_call(index);
            }
        }
    }

    /// Runs one call.
    ///
    /// # Panics
    /// `index` is not one of the plan's calls.
    pub fn run_call(&mut self, index: usize) {
        let call = &self.plan.calls[index];
        // A slot bound twice is only read; the second binding gets a copy.
        let mut taken: Vec<Vec<f32>> = Vec::with_capacity(call.bindings.len());
        let mut first: HashMap<SlotId, usize> = HashMap::new();
        for (position, &slot) in call.bindings.iter().enumerate() {
            let words = match first.get(&slot) {
                Some(&earlier) => taken[earlier].clone(),
                None => std::mem::take(&mut self.memory[slot.index()]),
            };
            first.entry(slot).or_insert(position);
            taken.push(words);
        }
        let params = &self.plan.uniforms[call.uniform as usize..];
        let params = &params[..call.kernel.params_size()];
        (call.kernel.reference)(Args::new(params, taken.iter_mut().map(Vec::as_mut_slice).collect()));
        for (slot, position) in first {
            self.memory[slot.index()] = std::mem::take(&mut taken[position]);
        }
    }
}
