//! Maximum over a window: 16 channels of one pixel at a time.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Window};
use std::arch::aarch64::*;

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
        "neon 1x16".into()
    }
}

/// # Safety
/// The CPU has the instruction set; `input` and `out` have the sizes of their layouts.
#[target_feature(enable = "neon")]
unsafe fn row_of(pool: &MaxPool, input: &[u8], y: usize, out: &mut [u8]) {
    let (window, shape, stride) = (&pool.window, pool.input.shape, pool.input.pixel_stride);
    // Taps that lie inside, of a first coordinate and a size: a range, as taps are in order.
    let inside = |at: usize, step: usize, dilation: usize, pad: usize, kernel: usize, size: usize| {
        let start = at * step;
        let first = pad.saturating_sub(start).div_ceil(dilation).min(kernel);
        let last = (size + pad).saturating_sub(start).div_ceil(dilation).min(kernel);
        first..last.max(first)
    };
    let [top, left, ..] = window.pads;
    let rows = inside(y, window.stride.0, window.dilation.0, top, window.kernel.0, shape.h);
    for x in 0..pool.output.shape.w {
        let cols = inside(x, window.stride.1, window.dilation.1, left, window.kernel.1, shape.w);
        let to = (pool.output.halo.left + x) * stride;
        for first in (0..stride).step_by(16) {
            let mut most = vdupq_n_u8(0);
            for ky in rows.clone() {
                for kx in cols.clone() {
                    let row = y * window.stride.0 + ky * window.dilation.0 - top;
                    let col = x * window.stride.1 + kx * window.dilation.1 - left;
                    // SAFETY: the tap lies inside the input, whose pixels take a multiple of 16 bytes.
                    let values = unsafe { vld1q_u8(input.as_ptr().add(pool.input.offset(row, col) + first)) };
                    most = vmaxq_u8(most, values);
                }
            }
            // SAFETY: the pixel lies inside the row and takes a multiple of 16 bytes.
            unsafe { vst1q_u8(out.as_mut_ptr().add(to + first), most) };
        }
    }
}
