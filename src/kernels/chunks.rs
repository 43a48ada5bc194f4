//! How a reduction over rows is cut and dispatched: a function of variant and shape alone, so that sums come out the same
//! everywhere.

use super::conv2d::Variant;
use super::{Dispatch, Kernel, TILE, linear_groups, rows_of_groups};
use std::ops::Range;

/// Quads and lanes of a workgroup on a GPU: the constants of `shaders/lib/reduce.wgsl`.
const ACROSS: usize = 16;
const LANES: usize = 16;

/// Workgroups that keep a GPU's memory busy.
const BUSY: usize = 256;

/// The fewest rows that are worth an invocation of their own.
const MIN_ROWS: usize = 32;

/// The most chunks that the second pass should have to merge.
const MAX_COUNT: usize = 256;

pub(super) struct Chunks {
    /// Rows of each chunk, a multiple of [`TILE`]. The last has fewer.
    pub rows: usize,
    pub count: usize,
}

impl Chunks {
    pub(super) fn of(total: usize) -> Self {
        let rows = total.div_ceil(MAX_COUNT).max(MIN_ROWS).next_multiple_of(TILE);
        Self { rows, count: total.div_ceil(rows) }
    }

    /// Of each of `domains` of `total` rows of so many quads.
    pub(super) fn for_variant(variant: Variant, total: usize, domains: usize, quads: usize) -> Self {
        if variant != Variant::Workgroup {
            return Self::of(total);
        }
        let wanted = BUSY.div_ceil(domains * quads.div_ceil(ACROSS));
        // A word of a mask for each lane, at least.
        let rows = total.div_ceil(wanted).max(LANES * TILE).next_multiple_of(TILE);
        Self { rows, count: total.div_ceil(rows) }
    }
}

/// A call that reduces `parts` parts of so many quads: on a GPU by workgroups whose lanes share a part.
pub(super) fn reduction<P: bytemuck::NoUninit>(
    variant: Variant,
    kernel: &'static Kernel,
    params: P,
    parts: usize,
    quads: usize,
) -> Dispatch {
    if variant != Variant::Workgroup {
        return Dispatch::new(kernel, params, linear_groups(parts * quads));
    }
    let mut dispatch = Dispatch::new(kernel, params, rows_of_groups(parts * quads.div_ceil(ACROSS)));
    dispatch.workgroup = [(ACROSS * LANES) as u32, 1, 1];
    dispatch.constants.extend([("across", ACROSS as f64), ("lanes", LANES as f64)]);
    dispatch
}

/// A call whose workgroups each reduce rows of all their quads: on a GPU sixteen rows by sixteen lanes.
pub(super) fn rows<P: bytemuck::NoUninit>(
    variant: Variant,
    kernel: &'static Kernel,
    params: P,
    rows: usize,
) -> Dispatch {
    // What is cut into workgroups are rows here, where it is quads there.
    reduction(variant, kernel, params, 1, rows)
}

/// The rows of a partial result where a reduction has several domains of `total` rows: partials are the first chunk of
/// every domain, then the second of every domain, and so on.
pub(super) fn of_domain(partial: usize, rows: u32, total: u32, domains: u32) -> Range<usize> {
    let (chunk, domain) = (partial / domains as usize, partial % domains as usize);
    let chunk = range(chunk, rows, total);
    let start = domain * total as usize;
    start + chunk.start..start + chunk.end
}

/// The rows of a chunk.
pub(super) fn range(chunk: usize, rows: u32, total: u32) -> Range<usize> {
    let (rows, total) = (rows as usize, total as usize);
    chunk * rows..((chunk + 1) * rows).min(total)
}
