//! Maximum over a window: 64, 32 or 16 channels of one pixel at a time.

use crate::kernels::maxpool::MaxPool;
use std::arch::x86_64::*;

/// As [`RowOf`](crate::kernels::maxpool::RowOf).
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn row_of(pool: &MaxPool, y: usize, input: &[u8], row: &mut [u8]) {
    let n_bytes = pool.pixel_bytes();
    for taps in pool.taps(y) {
        let mut at = 0;
        // SAFETY: the taps lie inside the input, the pixel inside the row, and `at` plus the width inside a pixel.
        unsafe {
            let (from, to) = (input.as_ptr().add(taps.from), row.as_mut_ptr().add(taps.to));
            while at + 64 <= n_bytes {
                let mut most = _mm512_setzero_si512();
                for row in 0..taps.n_rows {
                    for col in 0..taps.n_cols {
                        let tap = from.add(at + row * taps.row_step + col * taps.col_step);
                        most = _mm512_max_epu8(most, _mm512_loadu_si512(tap.cast()));
                    }
                }
                _mm512_storeu_si512(to.add(at).cast(), most);
                at += 64;
            }
            if at + 32 <= n_bytes {
                let mut most = _mm256_setzero_si256();
                for row in 0..taps.n_rows {
                    for col in 0..taps.n_cols {
                        let tap = from.add(at + row * taps.row_step + col * taps.col_step);
                        most = _mm256_max_epu8(most, _mm256_loadu_si256(tap.cast()));
                    }
                }
                _mm256_storeu_si256(to.add(at).cast(), most);
                at += 32;
            }
            if at < n_bytes {
                let mut most = _mm_setzero_si128();
                for row in 0..taps.n_rows {
                    for col in 0..taps.n_cols {
                        let tap = from.add(at + row * taps.row_step + col * taps.col_step);
                        most = _mm_max_epu8(most, _mm_loadu_si128(tap.cast()));
                    }
                }
                _mm_storeu_si128(to.add(at).cast(), most);
            }
        }
    }
}
