//! Executors, and which batch fits where the device refuses one.

use super::TrainError;
use crate::gpu::{Device, Executor, Fits, Parameters};
use crate::graph::Graph;
use crate::plan::{Input, Plan};

/// Puts the plan of a compiled graph on a device. If the device's limits refuse it, the error says the largest batch that
/// they allow; `with_batch` compiles the same for another one than `batch`.
pub(super) fn executor(
    device: &Device,
    graph: Graph,
    input: Input,
    params: &Parameters,
    batch: usize,
    with_batch: impl Fn(usize) -> Result<Graph, TrainError>,
) -> Result<Executor, TrainError> {
    let variant = device.variant()?;
    let plan = |graph| Plan::new(graph, input, variant);
    Executor::new(device, plan(graph), params).map_err(|error| {
        if !error.is_limit_of_plan() {
            return error.into();
        }
        let allowed = |n| Some(Executor::check(device, &plan(with_batch(n).ok()?)).is_ok());
        error.with_fits(largest(batch, allowed).map_or(Fits::Nothing, Fits::Batch)).into()
    })
}

/// The largest batch below `refused` that is allowed. The larger a batch, the less it is; of those that make no sense, as
/// for a policy that cuts them into parts, nobody knows.
fn largest(refused: usize, allowed: impl Fn(usize) -> Option<bool>) -> Option<usize> {
    let (mut low, mut high) = (0, refused);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match allowed(middle) {
            Some(false) => high = middle,
            _ => low = middle,
        }
    }
    (1..=low).rev().find(|&n| allowed(n) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_batch_is_found() {
        for limit in [0, 1, 2, 7, 8, 63] {
            assert_eq!(largest(64, |n| Some(n <= limit)), (1..64).rfind(|n| *n <= limit), "{limit}");
            // Only multiples of 8 make sense.
            let eights = |n: usize| n.is_multiple_of(8).then_some(n <= limit);
            assert_eq!(largest(64, eights), (1..64).rfind(|n| *n <= limit && n % 8 == 0), "{limit}");
        }
        assert_eq!(largest(1, |_| Some(true)), None);
    }
}
