//! Memory by lifetimes: values that are never alive at the same time share a slot.

use super::lower::Lowered;
use super::{Slot, SlotId, Storage};
use crate::graph::Graph;
use crate::kernels::Access;
use std::ops::Range;

pub(super) struct Memory {
    pub slots: Vec<Slot>,
    /// The slots that each call binds.
    pub bindings: Vec<Vec<SlotId>>,
    pub slots_of_values: Vec<SlotId>,
}

pub(super) fn assign(graph: &Graph, lowered: &Lowered) -> Memory {
    let name = |value: usize| graph.label(lowered.values[value].node);
    let mut slots: Vec<Slot> = Vec::new();
    let mut slots_of_values = vec![SlotId(u32::MAX); lowered.values.len()];
    let whole = || lowered.values.iter().enumerate().filter(|(_, value)| value.within.is_none());
    for (value, of) in whole() {
        if let Some(storage) = of.storage {
            slots_of_values[value] = SlotId(slots.len() as u32);
            slots.push(Slot { storage, words: of.words.max(4), name: name(value), within: None });
        }
    }
    let scratch: Vec<usize> = whole().filter(|(_, value)| value.storage.is_none()).map(|(value, _)| value).collect();
    let lifetimes = lifetimes(lowered);
    let intervals: Vec<Interval> =
        scratch.iter().map(|&v| Interval { alive: lifetimes[v].clone(), words: lowered.values[v].words }).collect();
    let (shared, places) = pack(&intervals);
    let first = slots.len();
    for (place, words) in shared.iter().enumerate() {
        let largest = (0..scratch.len()).filter(|&i| places[i] == place).max_by_key(|&i| intervals[i].words);
        let name = largest.map_or_else(String::new, |i| name(scratch[i]));
        slots.push(Slot { storage: Storage::Scratch, words: (*words).max(4), name, within: None });
    }
    for (i, &value) in scratch.iter().enumerate() {
        slots_of_values[value] = SlotId((first + places[i]) as u32);
    }
    for (value, of) in lowered.values.iter().enumerate() {
        if let Some(place) = of.within {
            slots_of_values[value] = SlotId(slots.len() as u32);
            let within = Some((slots_of_values[place.value], place.at));
            let storage = of.storage.unwrap_or(Storage::Scratch);
            slots.push(Slot { storage, words: of.words.max(4), name: name(value), within });
        }
    }
    let dummy = SlotId(slots.len() as u32);
    slots.push(Slot { storage: Storage::Dummy, words: 4, name: "unused binding".into(), within: None });
    let bindings = lowered
        .calls
        .iter()
        .map(|call| {
            let reads = call.dispatch.kernel.bindings.iter().zip(&call.bindings);
            let some_read = reads.clone().find_map(|(b, v)| v.filter(|_| b.access != Access::Write));
            reads
                .map(|(binding, value)| match (value, binding.access) {
                    (Some(value), _) => slots_of_values[*value],
                    // wgpu refuses a buffer that a call both reads and writes, but not one that it reads twice.
                    (None, Access::Read | Access::Texture) => some_read.map_or(dummy, |v| slots_of_values[v]),
                    (None, Access::Write) => dummy,
                })
                .collect()
        })
        .collect();
    Memory { slots, bindings, slots_of_values }
}

/// For each value the calls from the first that binds it, or a part of it, to the last.
pub(super) fn lifetimes(lowered: &Lowered) -> Vec<Range<usize>> {
    let mut alive: Vec<Option<Range<usize>>> = vec![None; lowered.values.len()];
    for (index, call) in lowered.calls.iter().enumerate() {
        for &value in call.bindings.iter().flatten() {
            let whole = lowered.values[value].within.map_or(value, |place| place.value);
            alive[whole].get_or_insert(index..index).end = index + 1;
        }
    }
    // A value that no call binds needs no memory of its own.
    alive.into_iter().map(Option::unwrap_or_default).collect()
}

/// A value to be placed: the calls during which it is alive, and its size.
#[derive(Clone, Debug)]
struct Interval {
    alive: Range<usize>,
    words: usize,
}

/// Places intervals into as little memory as a greedy choice finds: the largest first, each into the first slot where
/// nothing is alive at the same time. Returns the slots' sizes and each interval's slot.
fn pack(intervals: &[Interval]) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(intervals[i].words), i));
    let mut sizes: Vec<usize> = Vec::new();
    let mut tenants: Vec<Vec<Range<usize>>> = Vec::new();
    let mut places = vec![0; intervals.len()];
    for i in order {
        let Interval { alive, words } = &intervals[i];
        let free = |slot: &Vec<Range<usize>>| slot.iter().all(|t| t.end <= alive.start || alive.end <= t.start);
        let place = tenants.iter().position(free).unwrap_or_else(|| {
            sizes.push(*words);
            tenants.push(Vec::new());
            sizes.len() - 1
        });
        tenants[place].push(alive.clone());
        places[i] = place;
    }
    (sizes, places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_never_overlaps_and_always_fits(
            spans in prop::collection::vec((0usize..40, 1usize..10, 1usize..1000), 0..60),
        ) {
            let intervals: Vec<Interval> = spans
                .iter()
                .map(|&(start, len, words)| Interval { alive: start..start + len, words })
                .collect();
            let (sizes, places) = pack(&intervals);
            for (i, a) in intervals.iter().enumerate() {
                prop_assert!(a.words <= sizes[places[i]]);
                for (j, b) in intervals.iter().enumerate().skip(i + 1) {
                    let together = a.alive.start < b.alive.end && b.alive.start < a.alive.end;
                    prop_assert!(!(together && places[i] == places[j]), "{a:?} and {b:?} share slot {}", places[i]);
                }
            }
            // Never more than everything side by side, never less than the busiest moment.
            let total: usize = sizes.iter().sum();
            prop_assert!(total <= intervals.iter().map(|i| i.words).sum());
            let busiest = (0..50)
                .map(|t| intervals.iter().filter(|i| i.alive.contains(&t)).map(|i| i.words).sum::<usize>())
                .max()
                .unwrap_or(0);
            prop_assert!(total >= busiest);
        }
    }

    #[test]
    fn a_chain_needs_two_slots() {
        let chain: Vec<Interval> = (0..10).map(|i| Interval { alive: i..i + 2, words: 100 }).collect();
        assert_eq!(pack(&chain).0, [100, 100]);
    }
}
