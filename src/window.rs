//! What graphs and kernels call a window.

/// The sliding window of a convolution or a pooling.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    /// Height and width, in pixels.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step, in pixels.
    pub stride: [usize; 2],
    /// Zero pixels added at the top, left, bottom and right.
    pub padding: [usize; 4],
}

impl Window {
    /// A square window with the same stride and padding in both directions.
    pub const fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 4] }
    }

    /// TensorFlow's "SAME" padding for an image of so many pixels: as little as gives `⌈size / stride⌉` outputs, the odd
    /// pixel at the bottom and right. The stride is positive.
    pub fn same(kernel: [usize; 2], stride: [usize; 2], size: [usize; 2]) -> Self {
        let [rows, columns] = [0, 1].map(|i| {
            let covered = size[i].div_ceil(stride[i]).saturating_sub(1) * stride[i] + kernel[i];
            let added = covered.saturating_sub(size[i]);
            [added / 2, added.div_ceil(2)]
        });
        Self { kernel, stride, padding: [rows[0], columns[0], rows[1], columns[1]] }
    }

    /// The padding of the same window where a last one counts that begins in the image, or in the padding before it, but does
    /// not end there: PyTorch's `ceil_mode`. The stride is positive.
    pub fn ceil(mut self, size: [usize; 2]) -> Self {
        for (i, size) in size.into_iter().enumerate() {
            let [before, after] = [self.padding[i], self.padding[i + 2]];
            let padded = size + before + after;
            let last = padded.saturating_sub(self.kernel[i]).div_ceil(self.stride[i]) * self.stride[i];
            // One that begins in the padding behind the image does not count.
            if last < size + before {
                self.padding[i + 2] += (last + self.kernel[i]).saturating_sub(padded);
            }
        }
        self
    }

    /// Whether each window covers a pixel of the image, or one of the `counted` border.
    pub(crate) fn divides(&self, counted: [usize; 4], size: [usize; 2]) -> Result<(), String> {
        let [oh, ow] = self.output(size[0], size[1])?;
        let empty = |i: usize, outputs: usize| {
            let first = self.kernel[i] + counted[i] <= self.padding[i];
            let last = (outputs - 1) * self.stride[i] >= size[i] + self.padding[i] + counted[i + 2];
            first || last
        };
        match (empty(0, oh) || empty(1, ow)) || (0..4).any(|side| counted[side] > self.padding[side]) {
            true => Err(format!(
                "padding {:?} is too large for a {}×{} window",
                self.padding, self.kernel[0], self.kernel[1]
            )),
            false => Ok(()),
        }
    }

    /// Output height and width for an input of `h` × `w` pixels.
    pub(crate) fn output(&self, h: usize, w: usize) -> Result<[usize; 2], String> {
        let [top, left, bottom, right] = self.padding;
        let side = |size: usize, before, after, kernel, stride| {
            let padded: usize = size + before + after;
            (kernel > 0 && stride > 0 && padded >= kernel).then(|| (padded - kernel) / stride + 1)
        };
        match (
            side(h, top, bottom, self.kernel[0], self.stride[0]),
            side(w, left, right, self.kernel[1], self.stride[1]),
        ) {
            (Some(oh), Some(ow)) => Ok([oh, ow]),
            _ => Err(format!(
                "a {}×{} window with stride {:?} and padding {:?} does not fit a {h}×{w} image",
                self.kernel[0], self.kernel[1], self.stride, self.padding
            )),
        }
    }
}
