//! Where tensors lie in buffers that hold many of them.

use crate::graph::{Graph, ParamId};

/// Every adapter binds a buffer from multiples of so many words: 256 bytes.
const ALIGNMENT: usize = 64;

/// Words that every adapter binds at once: 128 MiB.
pub(super) const MOST_WORDS: usize = 1 << 25;

/// Tensors side by side in one buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub words: usize,
}

impl Row {
    /// Where the next tensor, of `words` words, begins.
    pub fn push(&mut self, words: usize) -> usize {
        let at = self.words;
        self.words += words.max(4).next_multiple_of(ALIGNMENT);
        at
    }
}

/// How a network's parameters lie in few buffers, so that one call reaches many: in order, as many in each as every adapter
/// binds at once. It follows from the parameters alone, so all plans of a network share the buffers.
#[derive(Clone, PartialEq, Debug)]
pub struct ParamLayout {
    /// Words of each buffer.
    buffers: Vec<usize>,
    /// Buffer and first word of each parameter.
    places: Vec<(usize, usize)>,
}

impl ParamLayout {
    pub fn of(graph: &Graph) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let mut places = Vec::with_capacity(graph.params().len());
        for param in graph.params() {
            let words = param.shape.stored_len();
            if rows.last().is_none_or(|row| row.words + words > MOST_WORDS) {
                rows.push(Row::default());
            }
            let last = rows.len() - 1;
            places.push((last, rows[last].push(words)));
        }
        Self { buffers: rows.into_iter().map(|row| row.words).collect(), places }
    }

    /// Words of each buffer.
    pub fn buffers(&self) -> &[usize] {
        &self.buffers
    }

    /// The buffer that holds a parameter, and the word at which it begins.
    pub fn place(&self, param: ParamId) -> (usize, usize) {
        self.places[param.index()]
    }
}
