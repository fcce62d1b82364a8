//! Maximum over a window: 32 or 16 channels of one pixel at a time.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Window};
use std::arch::x86_64::*;
use std::ops::Range;

/// A max-pool; reads no halo, as padding never wins.
#[derive(Debug)]
pub(super) struct MaxPool {
    window: Window,
    input: Layout,
    output: Layout,
    /// Taps of each output column that lie inside the input: bytes from the start of a row to the first, and how many.
    columns: Vec<(usize, usize)>,
}

impl MaxPool {
    pub(super) fn new(window: Window, input: Layout, output: Layout) -> Option<Self> {
        let same = input.pixel_stride == output.pixel_stride && input.pixel_stride.is_multiple_of(16);
        let column = |x: usize| {
            let left = window.pads[1];
            let taps = inside(x, (window.stride.1, window.dilation.1, window.kernel.1), left, input.shape.w);
            let first = (x * window.stride.1 + taps.start * window.dilation.1).saturating_sub(left);
            (first * input.pixel_stride, taps.len())
        };
        same.then(|| Self { window, input, output, columns: (0..output.shape.w).map(column).collect() })
    }
}

impl RowKernel for MaxPool {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above.
            unsafe { row_of(self, inputs[0], y, row) };
        }
    }

    fn label(&self) -> String {
        "avx2 32".into()
    }
}

/// Taps of output coordinate `at` that lie inside an input of `size`: a range, as taps are in order.
fn inside(at: usize, (step, dilation, kernel): (usize, usize, usize), pad: usize, size: usize) -> Range<usize> {
    let start = at * step;
    let first = pad.saturating_sub(start).div_ceil(dilation).min(kernel);
    let last = (size + pad).saturating_sub(start).div_ceil(dilation).min(kernel);
    first..last.max(first)
}

/// # Safety
/// The CPU has the instruction set; `input` and `out` have the sizes of their layouts, whose pixels take the same multiple of
/// 16 bytes.
#[target_feature(enable = "avx2")]
unsafe fn row_of(pool: &MaxPool, input: &[u8], y: usize, out: &mut [u8]) {
    let (window, shape, stride) = (&pool.window, pool.input.shape, pool.input.pixel_stride);
    let top = window.pads[0];
    let (row_step, col_step) = (window.dilation.0 * pool.input.row_stride(), window.dilation.1 * stride);
    let rows = inside(y, (window.stride.0, window.dilation.0, window.kernel.0), top, shape.h);
    if rows.is_empty() {
        out[pool.output.halo.left * stride..][..pool.output.shape.w * stride].fill(0);
        return;
    }
    let first_row = pool.input.offset(y * window.stride.0 + rows.start * window.dilation.0 - top, 0);
    for (x, &(column, n_cols)) in pool.columns.iter().enumerate() {
        let to = (pool.output.halo.left + x) * stride;
        if n_cols == 0 {
            out[to..to + stride].fill(0);
            continue;
        }
        let corner = first_row + column;
        let mut at = 0;
        // SAFETY: the taps lie inside the input, the pixel inside the row, and `at` plus the width inside a pixel.
        unsafe {
            let (from, to) = (input.as_ptr().add(corner), out.as_mut_ptr().add(to));
            while at + 32 <= stride {
                let mut most = _mm256_setzero_si256();
                for row in 0..rows.len() {
                    for col in 0..n_cols {
                        let tap = from.add(at + row * row_step + col * col_step);
                        most = _mm256_max_epu8(most, _mm256_loadu_si256(tap.cast()));
                    }
                }
                _mm256_storeu_si256(to.add(at).cast(), most);
                at += 32;
            }
            if at < stride {
                let mut most = _mm_setzero_si128();
                for row in 0..rows.len() {
                    for col in 0..n_cols {
                        let tap = from.add(at + row * row_step + col * col_step);
                        most = _mm_max_epu8(most, _mm_loadu_si128(tap.cast()));
                    }
                }
                _mm_storeu_si128(to.add(at).cast(), most);
            }
        }
    }
}
