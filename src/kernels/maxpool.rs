//! What vector max-pools share: where the taps of an output pixel lie. An instruction set brings the loop of a row.

use super::op::check_buffers;
use super::{Layout, RowKernel, Window};
use std::ops::Range;

/// A max-pool; reads no halo, as padding never wins.
#[derive(Debug)]
pub(super) struct MaxPool {
    window: Window,
    input: Layout,
    output: Layout,
    /// Taps of each output column that lie inside the input: bytes from the start of a row to the first, and how many.
    columns: Vec<(usize, usize)>,
    row_of: RowOf,
    label: &'static str,
}

/// Computes row `y` of the output from the whole input.
///
/// # Safety
/// The CPU has the instruction set; input and row have the sizes of their layouts, whose pixels take the same multiple of 16 bytes.
pub(super) type RowOf = unsafe fn(pool: &MaxPool, y: usize, input: &[u8], row: &mut [u8]);

/// The taps of one output pixel; the maximum of none is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taps {
    /// First byte of the first tap in the input.
    pub(super) from: usize,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    /// Bytes from a tap to the one below it, and to the one beside it.
    pub(super) row_step: usize,
    pub(super) col_step: usize,
    /// First byte of the pixel in its row.
    pub(super) to: usize,
}

impl MaxPool {
    pub(super) fn new(window: Window, input: Layout, output: Layout, row_of: RowOf, label: &'static str) -> Option<Self> {
        let same = input.pixel_stride == output.pixel_stride && input.pixel_stride.is_multiple_of(16);
        let column = |x: usize| {
            let left = window.pads[1];
            let taps = inside(x, (window.stride.1, window.dilation.1, window.kernel.1), left, input.shape.w);
            let first = (x * window.stride.1 + taps.start * window.dilation.1).saturating_sub(left);
            (first * input.pixel_stride, taps.len())
        };
        same.then(|| Self { window, input, output, columns: (0..output.shape.w).map(column).collect(), row_of, label })
    }

    /// Bytes of a pixel.
    pub(super) const fn pixel_bytes(&self) -> usize {
        self.input.pixel_stride
    }

    /// The taps of every pixel of output row `y`.
    #[inline]
    pub(super) fn taps(&self, y: usize) -> impl Iterator<Item = Taps> {
        let (window, stride, top) = (&self.window, self.input.pixel_stride, self.window.pads[0]);
        let rows = inside(y, (window.stride.0, window.dilation.0, window.kernel.0), top, self.input.shape.h);
        let n_rows = rows.len();
        let first_row =
            if n_rows == 0 { 0 } else { self.input.offset(y * window.stride.0 + rows.start * window.dilation.0 - top, 0) };
        let (row_step, col_step) = (window.dilation.0 * self.input.row_stride(), window.dilation.1 * stride);
        let left = self.output.halo.left * stride;
        self.columns.iter().enumerate().map(move |(x, &(column, n_cols))| {
            let from = if n_rows == 0 || n_cols == 0 { 0 } else { first_row + column };
            Taps { from, n_rows, n_cols, row_step, col_step, to: left + x * stride }
        })
    }
}

impl RowKernel for MaxPool {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU; `new` compared the pixels, the buffers were checked above.
            unsafe { (self.row_of)(self, y, inputs[0], row) };
        }
    }

    fn label(&self) -> String {
        self.label.into()
    }
}

/// Taps of output coordinate `at` that lie inside an input of `size`: a range, as taps are in order.
fn inside(at: usize, (step, dilation, kernel): (usize, usize, usize), pad: usize, size: usize) -> Range<usize> {
    let start = at * step;
    let first = pad.saturating_sub(start).div_ceil(dilation).min(kernel);
    let last = (size + pad).saturating_sub(start).div_ceil(dilation).min(kernel);
    first..last.max(first)
}
