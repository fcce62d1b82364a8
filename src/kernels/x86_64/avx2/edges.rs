//! Real values to pixels and back, 8 pixels at a time.

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

/// All bits of the first `n` of 8 lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn first_lanes(n: usize) -> __m256i {
    let n = _mm256_set1_epi32(i32::try_from(n).unwrap_or(8));
    _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn quantize_row(planes: [&[f32]; 3], params: QuantParams, out: &mut [u8]) {
    let columns = planes[0].len();
    assert!(planes.iter().all(|plane| plane.len() == columns) && out.len() == 3 * columns, "one pixel for each column");
    let (scale, zero_point) = (_mm256_set1_ps(params.scale), _mm256_set1_epi32(i32::from(params.zero_point)));
    let (lo, hi) = (f32::from(params.zero_point), 255.0 - f32::from(params.zero_point));
    let (lo, hi) = (_mm256_set1_ps(-lo), _mm256_set1_ps(hi));
    let three_of_four = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let groups = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    for first in (0..columns).step_by(8) {
        let mask = first_lanes(columns - first);
        let mut pixels = _mm256_setzero_si256();
        for (c, plane) in planes.iter().enumerate() {
            // SAFETY: the mask keeps the load within the plane's row.
            let real = unsafe { _mm256_maskload_ps(plane.as_ptr().add(first), mask) };
            // The second operand wins where the first is NaN.
            let steps = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(real, scale), lo), hi);
            let q = _mm256_add_epi32(_mm256_cvtps_epi32(steps), zero_point);
            let shift = _mm_cvtsi32_si128(8 * i32::try_from(c).unwrap_or(0));
            pixels = _mm256_or_si256(pixels, _mm256_sll_epi32(q, shift));
        }
        // The fourth byte of every pixel goes: 12 bytes of each half, then 24 side by side.
        let packed = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pixels, three_of_four), groups);
        let mut bytes = [0; 32];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), packed) };
        let n = 3 * (columns - first).min(8);
        out[3 * first..][..n].copy_from_slice(&bytes[..n]);
    }
}

/// As `Kernels::dequantize_planes`, for pixels of a multiple of 16 bytes.
pub(in crate::kernels) fn dequantize_planes(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    assert!(values.len() >= layout.len() && planes.len() == layout.shape.len(), "pixels and planes of one map");
    assert!(layout.pixel_stride.is_multiple_of(16), "pixels of a multiple of 16 bytes");
    // SAFETY: only called through `Kernels`, which vouches for the CPU; the sizes were checked.
    unsafe { dequantize(values, params, layout, planes) };
}

/// # Safety
/// The CPU has AVX2; the buffers have the sizes of the layout, whose pixels take a multiple of 16 bytes.
#[target_feature(enable = "avx2")]
unsafe fn dequantize(values: &[u8], params: QuantParams, layout: &Layout, planes: &mut [f32]) {
    let (columns, cells, channels) = (layout.shape.w, layout.shape.h * layout.shape.w, layout.shape.c);
    let (scale, zero_point) = (_mm256_set1_ps(params.scale), _mm256_set1_epi32(i32::from(params.zero_point)));
    for y in 0..layout.shape.h {
        for x in (0..columns).step_by(8) {
            let n = (columns - x).min(8);
            let mask = first_lanes(n);
            for first in (0..channels).step_by(16) {
                let mut rows = [_mm_setzero_si128(); 8];
                for (dx, row) in rows.iter_mut().enumerate().take(n) {
                    // SAFETY: 16 bytes of a pixel inside the map.
                    *row = unsafe { _mm_loadu_si128(values.as_ptr().add(layout.offset(y, x + dx) + first).cast()) };
                }
                let pairs = transpose(rows);
                for c in 0..(channels - first).min(16) {
                    let column = if c % 2 == 0 { pairs[c / 2] } else { _mm_srli_si128::<8>(pairs[c / 2]) };
                    let steps = _mm256_sub_epi32(_mm256_cvtepu8_epi32(column), zero_point);
                    let real = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(steps));
                    let at = (first + c) * cells + y * columns + x;
                    // SAFETY: the mask keeps the store within the plane's row.
                    unsafe { _mm256_maskstore_ps(planes.as_mut_ptr().add(at), mask, real) };
                }
            }
        }
    }
}

/// 8 rows of 16 bytes to columns of 8: two neighbours in each register.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m128i; 8]) -> [__m128i; 8] {
    // Three rounds of perfect shuffles of rows i and i + 4 move the row's number behind the column's.
    let mut from = rows;
    for _ in 0..3 {
        let mut to = from;
        for i in 0..4 {
            to[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 4]);
            to[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 4]);
        }
        from = to;
    }
    from
}
