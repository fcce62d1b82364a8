//! Real values to pixels and back, 16 pixels at a time.

use crate::kernels::Layout;
use crate::quant::QuantParams;
use std::arch::x86_64::*;

/// As `Kernels::quantize_planes`, for three planes and pixels of three bytes.
pub(in crate::kernels) fn quantize_rgb_planes(planes: &[f32], params: QuantParams, layout: &Layout, out: &mut [u8]) {
    let (columns, cells) = (layout.shape.w, layout.shape.h * layout.shape.w);
    assert!(planes.len() == 3 * cells && layout.pixel_stride == 3, "three planes, three bytes a pixel");
    for (y, row) in out[layout.body()].chunks_exact_mut(layout.row_stride()).enumerate() {
        let plane = |c: usize| &planes[c * cells + y * columns..][..columns];
        let row = &mut row[3 * layout.halo.left..][..3 * columns];
        // SAFETY: only called through `Kernels`, which vouches for the CPU.
        unsafe { quantize_row([plane(0), plane(1), plane(2)], params, row) };
    }
}

/// # Safety
/// The CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantize_row(planes: [&[f32]; 3], params: QuantParams, out: &mut [u8]) {
    let columns = planes[0].len();
    assert!(planes.iter().all(|plane| plane.len() == columns) && out.len() == 3 * columns, "one pixel for each column");
    let (scale, zero_point) = (_mm512_set1_ps(params.scale), _mm512_set1_epi32(i32::from(params.zero_point)));
    let (lo, hi) = (f32::from(params.zero_point), 255.0 - f32::from(params.zero_point));
    let (lo, hi) = (_mm512_set1_ps(-lo), _mm512_set1_ps(hi));
    let three_of_four = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let groups = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    for first in (0..columns).step_by(16) {
        let left = columns - first;
        let mask = if left >= 16 { u16::MAX } else { (1 << left) - 1 };
        let mut pixels = _mm512_setzero_si512();
        for (c, plane) in planes.iter().enumerate() {
            // SAFETY: the mask keeps the load within the plane's row.
            let real = unsafe { _mm512_maskz_loadu_ps(mask, plane.as_ptr().add(first)) };
            // The second operand wins where the first is NaN.
            let steps = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(real, scale), lo), hi);
            let q = _mm512_add_epi32(_mm512_cvtps_epi32(steps), zero_point);
            let shift = _mm_cvtsi32_si128(8 * i32::try_from(c).unwrap_or(0));
            pixels = _mm512_or_si512(pixels, _mm512_sll_epi32(q, shift));
        }
        // The fourth byte of every pixel goes: 12 bytes of each 128-bit group, then 48 side by side.
        let packed = _mm512_permutexvar_epi32(groups, _mm512_shuffle_epi8(pixels, three_of_four));
        let bytes = if left >= 16 { (1_u64 << 48) - 1 } else { (1 << (3 * left)) - 1 };
        // SAFETY: the mask keeps the store within the row.
        unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().add(3 * first).cast(), bytes, packed) };
    }
}

/// From so many values on, planes are written past the caches: they would not stay in them anyway.
const MIN_STREAMED: usize = 1 << 19;

/// As `Kernels::dequantize_planes`, for pixels of a multiple of 16 bytes.
pub(in crate::kernels) fn dequantize_planes(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    assert!(values.len() >= layout.len() && planes.len() == layout.shape.len(), "pixels and planes of one map");
    // Whole cache lines of every plane, pixels without a gap between rows.
    let is_aligned = planes.as_ptr().addr().is_multiple_of(64) && (layout.shape.h * layout.shape.w).is_multiple_of(16);
    let is_streamed = is_aligned && layout.halo.is_empty() && planes.len() >= MIN_STREAMED;
    // SAFETY: only called through `Kernels`, which vouches for the CPU; sizes and, for streams, alignment were checked.
    unsafe {
        if is_streamed {
            dequantize::<true>(values, params, layout, planes);
        } else {
            dequantize::<false>(values, params, layout, planes);
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F and BW; the buffers have the sizes of the layout, whose pixels take a multiple of 16 bytes. `STREAM`:
/// there is no halo, the planes start at a cache line and have whole ones.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn dequantize<const STREAM: bool>(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    let (cells, channels) = (layout.shape.h * layout.shape.w, layout.shape.c);
    // Without a halo all rows are one.
    let (n_rows, columns) = if layout.halo.is_empty() { (1, cells) } else { (layout.shape.h, layout.shape.w) };
    let (scale, zero_point) = (_mm512_set1_ps(params.scale), _mm512_set1_epi32(i32::from(params.zero_point)));
    // Planes outside, pixels inside: sixteen streams are written, each from its first value to its last.
    for first in (0..channels).step_by(16) {
        for y in 0..n_rows {
            for x in (0..columns).step_by(16) {
                let n = (columns - x).min(16);
                let mask = if n == 16 { u16::MAX } else { (1 << n) - 1 };
                let mut rows = [_mm_setzero_si128(); 16];
                for (dx, row) in rows.iter_mut().enumerate().take(n) {
                    // SAFETY: 16 bytes of a pixel inside the map.
                    *row = unsafe { _mm_loadu_si128(values.as_ptr().add(layout.offset(y, x + dx) + first).cast()) };
                }
                let columns_of = transpose(rows);
                for (c, &column) in columns_of.iter().enumerate().take(channels - first) {
                    let steps = _mm512_sub_epi32(_mm512_cvtepu8_epi32(column), zero_point);
                    let real = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(steps));
                    let at = (first + c) * cells + y * columns + x;
                    // SAFETY: the mask keeps the store within the plane's row; streams go to whole lines.
                    unsafe {
                        if STREAM {
                            _mm512_stream_ps(planes.as_mut_ptr().add(at), real);
                        } else {
                            _mm512_mask_storeu_ps(planes.as_mut_ptr().add(at), mask, real);
                        }
                    }
                }
            }
        }
    }
    if STREAM {
        // Streamed stores are ordered with what follows.
        _mm_sfence();
    }
}

/// 16 x 16 bytes, rows to columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: [__m128i; 16]) -> [__m128i; 16] {
    // Four rounds of perfect shuffles of rows i and i + 8 turn the index around.
    let mut from = rows;
    for _ in 0..4 {
        let mut to = from;
        for i in 0..8 {
            to[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
            to[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
        }
        from = to;
    }
    from
}
