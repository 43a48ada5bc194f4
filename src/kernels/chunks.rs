//! How a reduction over rows is cut: a function of the number of rows alone, so that sums come out the same everywhere.

use super::TILE;
use std::ops::Range;

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
