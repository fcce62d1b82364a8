//! A convolution and a sum in one: the sum goes over rows that are still in the cache.

use super::{Layout, RowKernel};

/// Output bytes between the two: they should stay in the second-level cache, and the convolution should find its weights there.
const CHUNK_BYTES: usize = 64 << 10;

/// Rows of `first`, then `second` in place: `first` reads the first input, `second` the rest.
#[derive(Debug)]
pub(super) struct Then {
    pub first: Box<dyn RowKernel>,
    pub second: Box<dyn RowKernel>,
    pub output: Layout,
}

impl RowKernel for Then {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let row_stride = self.output.row_stride();
        let in_chunk = (CHUNK_BYTES / row_stride).max(1).next_multiple_of(self.first.rows_together());
        for (idx, rows) in out.chunks_mut(in_chunk * row_stride).enumerate() {
            self.first.rows(&inputs[..1], first + idx * in_chunk, rows);
            self.second.rows(&inputs[1..], first + idx * in_chunk, rows);
        }
    }

    fn rows_together(&self) -> usize {
        self.first.rows_together()
    }

    fn label(&self) -> String {
        self.first.label()
    }
}
