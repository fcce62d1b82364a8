//! Maximum over a window: 32 channels of one pixel at a time, the last 16 on their own.

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
}

impl MaxPool {
    pub(super) fn new(window: Window, input: Layout, output: Layout) -> Option<Self> {
        let fits = input.pixel_stride == output.pixel_stride && input.pixel_stride.is_multiple_of(16);
        fits.then_some(Self { window, input, output })
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
        "avx2 1x32".into()
    }
}

/// Taps of a window that lie inside an input of `size`, where the window starts at `start - pad`: a range, as taps are in order.
fn inside(start: usize, pad: usize, (kernel, dilation): (usize, usize), size: usize) -> Range<usize> {
    let first = pad.saturating_sub(start).div_ceil(dilation).min(kernel);
    let last = (size + pad).saturating_sub(start).div_ceil(dilation).min(kernel);
    first..last.max(first)
}

/// # Safety
/// The CPU has AVX2; `input` and `out` have the sizes of their layouts, whose pixels take a multiple of 16 bytes.
#[target_feature(enable = "avx2")]
unsafe fn row_of(pool: &MaxPool, input: &[u8], y: usize, out: &mut [u8]) {
    let (window, shape, stride) = (&pool.window, pool.input.shape, pool.input.pixel_stride);
    let [top, left, ..] = window.pads;
    let (row, (row_step, col_step)) = (y * window.stride.0, window.dilation);
    let rows = inside(row, top, (window.kernel.0, row_step), shape.h);
    for x in 0..pool.output.shape.w {
        let col = x * window.stride.1;
        let cols = inside(col, left, (window.kernel.1, col_step), shape.w);
        let taps = rows.clone().flat_map(|ky| cols.clone().map(move |kx| (ky, kx)));
        let taps = taps.map(|(ky, kx)| pool.input.offset(row + ky * row_step - top, col + kx * col_step - left));
        let to = (pool.output.halo.left + x) * stride;
        for first in (0..stride).step_by(32) {
            // SAFETY: the taps lie inside the input and the pixel inside the row; 32 or 16 bytes are left in each.
            unsafe {
                let out = out.as_mut_ptr().add(to + first);
                if stride - first >= 32 {
                    let most = taps.clone().fold(_mm256_setzero_si256(), |most, tap| {
                        _mm256_max_epu8(most, _mm256_loadu_si256(input.as_ptr().add(tap + first).cast()))
                    });
                    _mm256_storeu_si256(out.cast(), most);
                } else {
                    let most = taps.clone().fold(_mm_setzero_si128(), |most, tap| {
                        _mm_max_epu8(most, _mm_loadu_si128(input.as_ptr().add(tap + first).cast()))
                    });
                    _mm_storeu_si128(out.cast(), most);
                }
            }
        }
    }
}
