//! Calls that handle many tensors at once: the tensors lie in the same buffers, and a table tells where. A workgroup takes one
//! tile of one tensor.

use super::{LINEAR, linear_groups};

/// Quads that a workgroup handles: `shaders/lib/segments.wgsl` has the same.
const TILE: usize = LINEAR as usize * 8;

/// Words of an entry: its first tile, its quads, and what the kernel declares.
pub const ENTRY: usize = 8;

/// The table of a call.
#[derive(Clone, Debug, Default)]
pub struct Table {
    words: Vec<u32>,
    tiles: usize,
}

impl Table {
    /// Adds a tensor of `quads` × 4 values.
    pub fn push(&mut self, quads: usize, fields: [u32; ENTRY - 2]) {
        self.words.extend([self.tiles as u32, quads as u32]);
        self.words.extend(fields);
        self.tiles += quads.div_ceil(TILE);
    }

    /// How many tensors it has.
    pub fn count(&self) -> u32 {
        (self.words.len() / ENTRY) as u32
    }

    /// A workgroup for each tile.
    pub(super) fn workgroups(&self) -> [u32; 3] {
        linear_groups(self.tiles * LINEAR as usize)
    }

    /// What the buffer `segments` holds.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// The quads and the fields of each entry, from the words of the buffer.
pub(super) fn entries(segments: &[f32], count: u32) -> impl Iterator<Item = (usize, [u32; ENTRY - 2])> {
    segments.chunks_exact(ENTRY).take(count as usize).map(|entry| {
        let word = |i: usize| entry[i].to_bits();
        (word(1) as usize, std::array::from_fn(|i| word(i + 2)))
    })
}

/// A parameter in an optimiser's step, or some of its rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// The words of the parameter that change; both ends are multiples of four.
    pub words: std::ops::Range<usize>,
    /// The words of the buffers at which the parameter, its gradient, and its first and second moment begin: multiples of four.
    pub at: [usize; 4],
    /// Multiplies the step's learning rate.
    pub lr: f32,
    pub weight_decay: f32,
}

/// The table of an optimiser's step.
pub(super) fn of_parts(parts: &[Part]) -> Table {
    let mut table = Table::default();
    for part in parts {
        let [param, grad, first, second] = part.at.map(|at| ((at + part.words.start) / 4) as u32);
        table.push(part.words.len() / 4, [param, grad, first, second, part.lr.to_bits(), part.weight_decay.to_bits()]);
    }
    table
}
