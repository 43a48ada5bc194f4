//! Where tensors lie in buffers that hold many of them.

use crate::graph::{Graph, MOST_WORDS, ParamId, Part};

/// Every adapter binds a buffer from multiples of so many words: 256 bytes.
const ALIGNMENT: usize = 64;

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
/// binds at once; what is larger lies in [parts](Part). It follows from the parameters alone, so all plans of a network share the
/// buffers.
#[derive(Clone, PartialEq, Debug)]
pub struct ParamLayout {
    /// Words of each buffer.
    buffers: Vec<usize>,
    /// Of each parameter of a compiled graph.
    places: Vec<Place>,
}

/// Where a parameter of a compiled graph lies: a whole one of the network, or a part.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place {
    pub buffer: usize,
    /// Its first word there.
    pub at: usize,
    /// Which channels of which parameter of the network it holds: as many as stored, padding included.
    pub part: Part,
    pub channels: usize,
}

impl ParamLayout {
    pub fn of(graph: &Graph) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let mut places = Vec::with_capacity(graph.params().len());
        for (index, param) in graph.params_in_parts(MOST_WORDS).iter().enumerate() {
            let words = param.shape.stored_len();
            if rows.last().is_none_or(|row| row.words + words > MOST_WORDS) {
                rows.push(Row::default());
            }
            let last = rows.len() - 1;
            let part = param.part.unwrap_or(Part { whole: ParamId::new(index), begin: 0 });
            places.push(Place { buffer: last, at: rows[last].push(words), part, channels: param.shape.stored_c() });
        }
        Self { buffers: rows.into_iter().map(|row| row.words).collect(), places }
    }

    /// Words of each buffer.
    pub fn buffers(&self) -> &[usize] {
        &self.buffers
    }

    /// Where a parameter of a compiled graph lies.
    pub fn place(&self, param: ParamId) -> Place {
        self.places[param.index()]
    }

    /// Where the parts of a network's parameter lie, or the whole.
    pub fn places(&self, param: ParamId) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(move |place| place.part.whole == param)
    }
}
