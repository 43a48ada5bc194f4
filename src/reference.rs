//! The oracle: runs a [`Plan`] on the host with the kernels' scalar references, slot by slot as the device would.
//!
//! It is slow and plain. Since it runs the very plan that the device runs, a wrong slot reuse shows here too.

use crate::graph::Phase;
use crate::kernels::{Access, Args};
use crate::plan::{Plan, Slot, SlotId, Storage};
use std::ops::Range;

/// A plan with its memory on the host.
pub struct Executor<'a> {
    plan: &'a Plan,
    memory: Vec<Vec<f32>>,
}

impl<'a> Executor<'a> {
    /// All slots zero, but for the plan's tables.
    pub fn new(plan: &'a Plan) -> Self {
        let memory = plan.slots.iter().map(|slot| match (slot.within, slot.storage) {
            (Some(_), _) => Vec::new(),
            (None, Storage::Table(index)) => {
                let mut words = vec![0.0; slot.words];
                words.iter_mut().zip(&plan.tables[index]).for_each(|(word, bits)| *word = f32::from_bits(*bits));
                words
            }
            (None, _) => vec![0.0; slot.words],
        });
        Self { plan, memory: memory.collect() }
    }

    /// A slot's words.
    pub fn slot(&self, slot: SlotId) -> &[f32] {
        let (whole, words) = self.place(slot);
        &self.memory[whole][words]
    }

    /// A slot's words, to be filled.
    pub fn slot_mut(&mut self, slot: SlotId) -> &mut [f32] {
        let (whole, words) = self.place(slot);
        &mut self.memory[whole][words]
    }

    /// The slot that has memory of its own, and the words in it.
    fn place(&self, slot: SlotId) -> (usize, Range<usize>) {
        let Slot { words, within, .. } = self.plan.slots[slot.index()];
        let (whole, at) = within.unwrap_or((slot, 0));
        (whole.index(), at..at + words)
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
        let mut buffers: Vec<Vec<f32>> = call.bindings.iter().map(|&slot| self.slot(slot).to_vec()).collect();
        let params = &self.plan.uniforms[call.uniform as usize..];
        let params = &params[..call.kernel.params_size()];
        (call.kernel.reference)(Args::new(params, buffers.iter_mut().map(Vec::as_mut_slice).collect()));
        for ((binding, &slot), words) in call.kernel.bindings.iter().zip(&call.bindings).zip(buffers) {
            if binding.access == Access::Write {
                self.slot_mut(slot).copy_from_slice(&words);
            }
        }
    }
}
