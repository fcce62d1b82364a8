//! Rows of pixels to columns of pixels: eight rows of eight pixels at a time, each component on its own.

use crate::kernels::turn::Columns;
use std::arch::aarch64::*;

/// As `Kernels::rows_to_columns`.
pub(in crate::kernels) fn rows_to_columns(mut columns: Columns<'_>) {
    let (n_rows, n_pixels) = (columns.n_rows(), columns.row_bytes / 3);
    let (whole_rows, whole_pixels) = (n_rows - n_rows % 8, n_pixels - n_pixels % 8);
    for y in (0..whole_rows).step_by(8) {
        for x in (0..whole_pixels).step_by(8) {
            // SAFETY: only called through `Kernels`, which vouches for the CPU; eight pixels lie in each of eight rows, and
            // `Kernels` has checked that there is room for all columns.
            unsafe {
                let from = columns.rows.as_ptr().add(y * columns.row_bytes + 3 * x);
                let to = columns.out.as_mut_ptr().add(x * columns.out_stride + 3 * y);
                block(from, columns.row_bytes, to, columns.out_stride);
            }
        }
    }
    columns.one_by_one(whole_pixels, 0, whole_rows);
    columns.one_by_one(0, whole_rows, n_rows);
}

/// # Safety
/// The CPU has NEON. 24 bytes can be read from each of eight rows from `from` on, and written to each of eight from `to` on.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn block(from: *const u8, row_bytes: usize, to: *mut u8, stride: usize) {
    // SAFETY: as for this function.
    let rows = [0, 1, 2, 3, 4, 5, 6, 7].map(|y| unsafe { vld3_u8(from.add(y * row_bytes)) });
    let red = turned(rows.map(|row| row.0));
    let green = turned(rows.map(|row| row.1));
    let blue = turned(rows.map(|row| row.2));
    for x in 0..8 {
        // SAFETY: as for this function.
        unsafe { vst3_u8(to.add(x * stride), uint8x8x3_t(red[x], green[x], blue[x])) };
    }
}

/// Rows to columns: pairs of bytes, of two bytes, of four bytes change places.
#[inline]
#[target_feature(enable = "neon")]
fn turned(rows: [uint8x8_t; 8]) -> [uint8x8_t; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let bytes = [vtrn_u8(a, b), vtrn_u8(c, d), vtrn_u8(e, f), vtrn_u8(g, h)];
    let [ab, cd, ef, gh] = bytes.map(|uint8x8x2_t(even, odd)| (vreinterpret_u16_u8(even), vreinterpret_u16_u8(odd)));
    let wide = |uint16x4x2_t(even, odd): uint16x4x2_t| (vreinterpret_u32_u16(even), vreinterpret_u32_u16(odd));
    // Columns 0 and 4, 2 and 6 of the upper and the lower four rows; then 1 and 5, 3 and 7.
    let (even_upper, even_lower) = (wide(vtrn_u16(ab.0, cd.0)), wide(vtrn_u16(ef.0, gh.0)));
    let (odd_upper, odd_lower) = (wide(vtrn_u16(ab.1, cd.1)), wide(vtrn_u16(ef.1, gh.1)));
    let pair = |upper, lower| {
        let uint32x2x2_t(first, fifth) = vtrn_u32(upper, lower);
        [vreinterpret_u8_u32(first), vreinterpret_u8_u32(fifth)]
    };
    let ([c0, c4], [c2, c6]) = (pair(even_upper.0, even_lower.0), pair(even_upper.1, even_lower.1));
    let ([c1, c5], [c3, c7]) = (pair(odd_upper.0, odd_lower.0), pair(odd_upper.1, odd_lower.1));
    [c0, c1, c2, c3, c4, c5, c6, c7]
}
