//! Shapes and host-side tensors, in the device's layout.
//!
//! Every tensor has four dimensions. Activations are NHWC, convolution weights `[KH][KW][Cin][Cout]`, and a
//! per-channel vector is `[1][1][rows][C]`. In memory the last dimension is padded with zeros to a multiple of
//! four, so that every kernel loads whole `vec4<f32>`s.

use std::borrow::Cow;
use std::fmt;

/// Rounds up to a multiple of four: the stored length of a channel dimension.
pub const fn pad4(channels: usize) -> usize {
    channels.div_ceil(4) * 4
}

/// The logical dimensions of a tensor; see the [module](self) for their order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape(pub [usize; 4]);

impl Shape {
    /// An activation of `n` images, `h` rows, `w` columns and `c` channels.
    pub const fn nhwc(n: usize, h: usize, w: usize, c: usize) -> Self {
        Self([n, h, w, c])
    }

    /// Per-channel vectors: `rows` of them, one below the other.
    pub const fn rows(rows: usize, c: usize) -> Self {
        Self([1, 1, rows, c])
    }

    pub const fn n(self) -> usize {
        self.0[0]
    }

    pub const fn h(self) -> usize {
        self.0[1]
    }

    pub const fn w(self) -> usize {
        self.0[2]
    }

    pub const fn c(self) -> usize {
        self.0[3]
    }

    /// Rows of the tensor seen as a matrix `[pixels][channels]`: everything but the last dimension.
    pub const fn pixels(self) -> usize {
        self.0[0] * self.0[1] * self.0[2]
    }

    /// The last dimension as stored.
    pub const fn stored_c(self) -> usize {
        pad4(self.0[3])
    }

    /// Groups of four channels, the last one padded.
    pub const fn quads(self) -> usize {
        self.stored_c() / 4
    }

    /// 32-bit words in memory, padding included.
    pub const fn stored_len(self) -> usize {
        self.pixels() * self.stored_c()
    }

    /// Bytes in memory, padding included.
    pub const fn bytes(self) -> u64 {
        self.stored_len() as u64 * 4
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "[{a}, {b}, {c}, {d}]")
    }
}

/// A tensor on the host, stored as the device stores it.
#[derive(Clone, PartialEq, Debug)]
pub struct HostTensor {
    pub shape: Shape,
    /// `shape.stored_len()` values, channel padding included and zero.
    pub data: Vec<f32>,
}

impl HostTensor {
    pub fn zeros(shape: Shape) -> Self {
        Self { shape, data: vec![0.0; shape.stored_len()] }
    }

    /// The values of `count` stored channels from `begin` on.
    pub(crate) fn channels(&self, begin: usize, count: usize) -> Cow<'_, [f32]> {
        if count == self.shape.stored_c() {
            return Cow::Borrowed(&self.data);
        }
        self.data.chunks(self.shape.stored_c()).flat_map(|row| &row[begin..][..count]).copied().collect()
    }

    /// Overwrites these channels.
    pub(crate) fn set_channels(&mut self, begin: usize, count: usize, values: &[f32]) {
        for (row, values) in self.data.chunks_mut(self.shape.stored_c()).zip(values.chunks(count)) {
            row[begin..][..count].copy_from_slice(values);
        }
    }
}
