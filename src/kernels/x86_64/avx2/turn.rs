//! Rows of pixels to columns of pixels: eight rows of four pixels at a time, four rows in each half of a register.

use crate::kernels::turn::Columns;
use std::arch::x86_64::*;

/// As `Kernels::rows_to_columns`.
pub(in crate::kernels) fn rows_to_columns(mut columns: Columns<'_>) {
    let n_rows = columns.n_rows();
    let whole = n_rows - n_rows % 8;
    // A load takes 16 bytes, four more than it needs.
    let n_loads = columns.row_bytes.saturating_sub(4) / 12;
    for y in (0..whole).step_by(8) {
        for x in (0..4 * n_loads).step_by(4) {
            // SAFETY: only called through `Kernels`, which vouches for the CPU; four pixels and four bytes more lie in each of
            // eight rows, and `Kernels` has checked that there is room for all columns.
            unsafe {
                let from = columns.rows.as_ptr().add(y * columns.row_bytes + 3 * x);
                let to = columns.out.as_mut_ptr().add(x * columns.out_stride + 3 * y);
                block(from, columns.row_bytes, to, columns.out_stride);
            }
        }
    }
    columns.one_by_one(4 * n_loads, 0, whole);
    columns.one_by_one(0, whole, n_rows);
}

/// # Safety
/// The CPU has AVX2. 16 bytes can be read from each of eight rows from `from` on, and 24 written to each of four from `to` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn block(from: *const u8, row_bytes: usize, to: *mut u8, stride: usize) {
    // A pixel in 32 bits, and back.
    let apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
    let dense = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let joined = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 3);
    let [a, b, c, d] = [0, 1, 2, 3].map(|y| {
        // SAFETY: as for this function.
        let (upper, lower) = unsafe {
            let row = |y: usize| _mm_loadu_si128(from.add(y * row_bytes).cast());
            (row(y), row(y + 4))
        };
        _mm256_shuffle_epi8(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(upper), lower), apart)
    });
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_later, cd_later) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    let turned = [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_later, cd_later),
        _mm256_unpackhi_epi64(ab_later, cd_later),
    ];
    for (x, pixels) in turned.into_iter().enumerate() {
        let pixels = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pixels, dense), joined);
        // SAFETY: 16 and 8 bytes.
        unsafe {
            _mm_storeu_si128(to.add(x * stride).cast(), _mm256_castsi256_si128(pixels));
            _mm_storel_epi64(to.add(x * stride + 16).cast(), _mm256_extracti128_si256::<1>(pixels));
        }
    }
}
