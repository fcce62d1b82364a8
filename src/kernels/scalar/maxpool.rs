//! Maximum over a window; the padding never wins.

use crate::kernels::{Shape, Window};

/// One row of a max-pool: output row `y` into `out` (`[W_out, C]`). Order is kept by quantisation, so the maximum of
/// the quantised values is the quantised maximum.
///
/// # Panics
/// If `input` or `out` are shorter than their shapes say.
pub fn qu8_maxpool_row(input: &[u8], shape: Shape, window: &Window, y: usize, out: &mut [u8]) {
    out.fill(0);
    for ky in 0..window.kernel.0 {
        let Some(row) = window.input_row(y, ky, shape.h) else { continue };
        for (x, out) in out.chunks_exact_mut(shape.c).enumerate() {
            for kx in 0..window.kernel.1 {
                let Some(col) = window.input_col(x, kx, shape.w) else { continue };
                let pixel = &input[(row * shape.w + col) * shape.c..][..shape.c];
                for (out, &x) in out.iter_mut().zip(pixel) {
                    *out = (*out).max(x);
                }
            }
        }
    }
}
