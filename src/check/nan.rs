//! Calls in which an input holds NaNs. A NaN has to reach the loss, which then stops the run; a driver that assumes that there
//! is none may lose it in a comparison.

use super::FAMILIES;
use super::case::Case;
use super::values::Random;
use std::collections::BTreeMap;

/// The name of this family.
pub const NAME: &str = "not a number";

/// The smallest cases of the other families, with NaNs in one input after the other.
pub fn nan() -> Vec<Case> {
    /// Of each kernel, with different constants; a pipeline takes longer to compile than to run.
    const PIPELINES: usize = 4;
    const CASES: usize = 3;
    let families = FAMILIES.iter().filter(|family| family.name != NAME);
    let mut smallest_first: Vec<Case> = families.flat_map(|family| (family.cases)()).collect();
    smallest_first.sort_by_key(Case::words);
    let mut taken: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    let rng = &mut Random::new(11);
    let mut cases = vec![];
    for case in smallest_first {
        let pipelines = taken.entry(case.kernel().name).or_default();
        let constants = format!("{:?}", case.constants());
        if pipelines.len() == PIPELINES && !pipelines.contains_key(&constants) {
            continue;
        }
        let count = pipelines.entry(constants).or_default();
        if *count < CASES {
            *count += 1;
            cases.extend(case.poisoned(rng));
        }
    }
    cases
}
