//! Maximum over a window: 16 channels of one pixel at a time.

use crate::kernels::maxpool::MaxPool;
use std::arch::aarch64::*;

/// As [`RowOf`](crate::kernels::maxpool::RowOf).
///
/// # Safety
/// As there.
#[target_feature(enable = "neon")]
pub(super) unsafe fn row_of(pool: &MaxPool, y: usize, input: &[u8], row: &mut [u8]) {
    let n_bytes = pool.pixel_bytes();
    for taps in pool.taps(y) {
        let mut at = 0;
        // SAFETY: the taps lie inside the input, the pixel inside the row, and `at` plus the width inside a pixel.
        unsafe {
            let (from, to) = (input.as_ptr().add(taps.from), row.as_mut_ptr().add(taps.to));
            while at < n_bytes {
                let mut most = vdupq_n_u8(0);
                for row in 0..taps.n_rows {
                    for col in 0..taps.n_cols {
                        let tap = from.add(at + row * taps.row_step + col * taps.col_step);
                        most = vmaxq_u8(most, vld1q_u8(tap));
                    }
                }
                vst1q_u8(to.add(at), most);
                at += 16;
            }
        }
    }
}
