//! Pictures: 32 samples down, 8 pixels across.
//!
//! Down: rows in pairs, interleaved byte by byte, for `vpmaddubsw` with the high and the low parts of their weights.
//! Across: `vpshufb` picks two values for each of four outputs from eight consecutive ones, in each half of a register from
//! a place of its own; `vpmaddwd` adds both products.

use crate::kernels::preprocess::{Grid, Halves, Loops, RowPair, check_columns, check_rows};
use crate::kernels::scalar::{COLOR_BITS, ColorCoefficients, MID_BITS, WEIGHT_BITS};
use std::arch::x86_64::*;

/// Fraction bits of a weighted sum.
const SHIFT: u32 = WEIGHT_BITS + MID_BITS;

#[derive(Debug)]
pub(in crate::kernels) struct PictureLoops;

impl Loops for PictureLoops {
    type Columns = Halves;

    fn prepare(grid: &Grid) -> Halves {
        Halves::new(grid, |output, nth| 2 * output + nth)
    }

    fn down(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
        check_rows(plane, stride, row_bytes, pairs, mid);
        // SAFETY: only called through `Kernels`, which vouches for the CPU; rows and `mid` were checked.
        unsafe {
            if pairs.iter().all(RowPair::is_coarse) {
                down_rows::<true>(plane, stride, row_bytes, pairs, mid);
            } else {
                down_rows::<false>(plane, stride, row_bytes, pairs, mid);
            }
        }
    }

    fn across(columns: &[Halves], mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
        let described = [&columns[0], &columns[columns.len() - 1]].map(|columns| (columns.reach, columns.ends.len()));
        check_columns(&described[..columns.len()], mids, rgb.len().div_ceil(3 * Halves::LANES));
        // SAFETY: only called through `Kernels`, which vouches for the CPU; `mids` were checked.
        unsafe {
            match columns {
                [luma, chroma] => across_yuv(luma, chroma, mids, matrix, rgb),
                _ if mids[1].is_empty() => across_gray(&columns[0], mids[0], rgb),
                _ => across_rgb(&columns[0], mids, rgb),
            }
        }
    }
}

/// Without low parts if all are 0.
///
/// # Safety
/// The CPU has AVX2; the rows lie in `plane`; `mid` has 128 values beyond `row_bytes`.
#[target_feature(enable = "avx2")]
unsafe fn down_rows<const IS_COARSE: bool>(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
    if row_bytes < 32 {
        let row = |row_idx: usize| {
            let mut bytes = [0_u8; 32];
            bytes[..row_bytes].copy_from_slice(&plane[row_idx * stride..][..row_bytes]);
            // SAFETY: 32 bytes.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        };
        // SAFETY: 32 values fit.
        return unsafe { down_block::<IS_COARSE>(pairs, row, mid.as_mut_ptr()) };
    }
    for first in (0..row_bytes).step_by(32) {
        // The last bytes come with some before them, which give the same values once more.
        let first = first.min(row_bytes - 32);
        // SAFETY: 32 bytes of a row.
        let row = |row_idx: usize| unsafe { _mm256_loadu_si256(plane.as_ptr().add(row_idx * stride + first).cast()) };
        // SAFETY: 32 values fit.
        unsafe { down_block::<IS_COARSE>(pairs, row, mid.as_mut_ptr().add(first)) };
    }
}

/// # Safety
/// The CPU has AVX2; `mid` has room for 32 values.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn down_block<const IS_COARSE: bool>(pairs: &[RowPair], row: impl Fn(usize) -> __m256i, mid: *mut u16) {
    let mut high = [_mm256_setzero_si256(); 2];
    let mut low = [_mm256_set1_epi16(1 << (MID_BITS - 1)); 2];
    for (i, pair) in pairs.iter().enumerate() {
        let (a, b) = (row(pair.rows[0]), row(pair.rows[1]));
        let samples = [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
        let high_weights = _mm256_set1_epi32(i32::from_ne_bytes(pair.high.map(i8::cast_unsigned)));
        let low_weights = _mm256_set1_epi32(i32::from_ne_bytes(pair.low.map(i8::cast_unsigned)));
        for half in 0..2 {
            high[half] = _mm256_add_epi16(high[half], _mm256_maddubs_epi16(samples[half], high_weights));
            if IS_COARSE {
                continue;
            }
            if i > 0 {
                high[half] = _mm256_add_epi16(high[half], _mm256_srai_epi16::<7>(low[half]));
                low[half] = _mm256_and_si256(low[half], _mm256_set1_epi16((1 << MID_BITS) - 1));
            }
            low[half] = _mm256_add_epi16(low[half], _mm256_maddubs_epi16(samples[half], low_weights));
        }
    }
    let [a, b] =
        [0, 1].map(|half| if IS_COARSE { high[half] } else { _mm256_add_epi16(high[half], _mm256_srai_epi16::<7>(low[half])) });
    // SAFETY: 32 values.
    unsafe {
        _mm256_storeu_si256(mid.cast(), _mm256_permute2x128_si256::<0x20>(a, b));
        _mm256_storeu_si256(mid.add(16).cast(), _mm256_permute2x128_si256::<0x31>(a, b));
    }
}

/// Weighted sums of one block for components of one grid, in 32 bits each, the byte in the upper 11; `at` is where its rounds
/// begin and then where they end.
///
/// # Safety
/// The CPU has AVX2; each of `mids` has the values that the columns reach.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weigh<const N: usize>(columns: &Halves, block: usize, at: &mut usize, mids: [&[u16]; N]) -> [__m256i; N] {
    let mut sums = [_mm256_set1_epi32(1 << (SHIFT - 1)); N];
    let end = columns.ends[block];
    for round in &columns.rounds[*at..end] {
        // SAFETY: 32 bytes each.
        let (from, weights) =
            unsafe { (_mm256_load_si256(round.from.as_ptr().cast()), _mm256_load_si256(round.weights.as_ptr().cast())) };
        for i in 0..N {
            // SAFETY: windows, and `mid` has all that are reached.
            let values = unsafe {
                let mid = mids[i].as_ptr();
                let lower = _mm_loadu_si128(mid.add(round.offsets[0]).cast());
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(lower), _mm_loadu_si128(mid.add(round.offsets[1]).cast()))
            };
            let products = _mm256_madd_epi16(_mm256_shuffle_epi8(values, from), weights);
            sums[i] = _mm256_add_epi32(sums[i], products);
        }
    }
    *at = end;
    sums
}

/// # Safety
/// As [`weigh`], for luma and chroma.
#[target_feature(enable = "avx2")]
unsafe fn across_yuv(luma: &Halves, chroma: &Halves, mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
    // Two coefficients of 16 bits each: the lower one for luma, the upper one for chroma.
    let pair = |low: i32, high: i32| _mm256_set1_epi32((low & 0xFFFF) | (high << 16));
    let (red, blue) = (pair(matrix.y, matrix.rv), pair(matrix.y, matrix.bu));
    let (green_u, green_v) = (pair(matrix.y, -matrix.gu), pair(0, -matrix.gv));
    // What black and the middle of chroma take away, and half a unit.
    let rest = |chroma: i32| _mm256_set1_epi32((1 << (COLOR_BITS - 1)) - matrix.y * matrix.black - 128 * chroma);
    let rests = [rest(matrix.rv), rest(-matrix.gu - matrix.gv), rest(matrix.bu)];
    let (mut luma_at, mut chroma_at) = (0, 0);
    for (block, pixels) in Pixels::of(rgb).enumerate() {
        // SAFETY: as for this function.
        let ([y], [u, v]) =
            unsafe { (weigh(luma, block, &mut luma_at, [mids[0]]), weigh(chroma, block, &mut chroma_at, [mids[1], mids[2]])) };
        // Luma below, chroma in the upper 16 bits above a fraction that is not looked at.
        let y = _mm256_srli_epi32::<21>(y);
        let [u, v] = [u, v].map(|c| _mm256_srli_epi32::<5>(c));
        let [yu, yv] = [u, v].map(|c| _mm256_blend_epi16::<0xAA>(y, c));
        let g = _mm256_add_epi32(_mm256_madd_epi16(yu, green_u), _mm256_madd_epi16(v, green_v));
        let rgb = [_mm256_madd_epi16(yv, red), g, _mm256_madd_epi16(yu, blue)];
        pixels.write([0, 1, 2].map(|i| _mm256_srai_epi32::<13>(_mm256_add_epi32(rgb[i], rests[i]))));
    }
}

/// # Safety
/// As [`weigh`], for three components.
#[target_feature(enable = "avx2")]
unsafe fn across_rgb(columns: &Halves, mids: [&[u16]; 3], rgb: &mut [u8]) {
    let mut at = 0;
    for (block, pixels) in Pixels::of(rgb).enumerate() {
        // SAFETY: as for this function.
        let sums = unsafe { weigh(columns, block, &mut at, mids) };
        pixels.write(sums.map(|sum| _mm256_srli_epi32::<21>(sum)));
    }
}

/// # Safety
/// As [`weigh`], for one component.
#[target_feature(enable = "avx2")]
unsafe fn across_gray(columns: &Halves, mid: &[u16], rgb: &mut [u8]) {
    let mut at = 0;
    for (block, pixels) in Pixels::of(rgb).enumerate() {
        // SAFETY: as for this function.
        let [luma] = unsafe { weigh(columns, block, &mut at, [mid]) };
        pixels.write([_mm256_srli_epi32::<21>(luma); 3]);
    }
}

/// Up to eight pixels of a row.
struct Pixels<'a>(&'a mut [u8]);

impl<'a> Pixels<'a> {
    fn of(rgb: &'a mut [u8]) -> impl Iterator<Item = Self> {
        rgb.chunks_mut(3 * Halves::LANES).map(Self)
    }

    /// Red, green and blue, clamped to bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn write(self, [r, g, b]: [__m256i; 3]) {
        let bytes = _mm256_packus_epi16(_mm256_packs_epi32(r, g), _mm256_packs_epi32(b, b));
        // Four pixels in each half: to 12 bytes, and those of both halves together.
        let mixed = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1));
        let dense = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 3);
        let pixels = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, mixed), dense);
        let (first, last) = (_mm256_castsi256_si128(pixels), _mm256_extracti128_si256::<1>(pixels));
        if self.0.len() == 3 * Halves::LANES {
            // SAFETY: 16 and 8 bytes.
            unsafe {
                _mm_storeu_si128(self.0.as_mut_ptr().cast(), first);
                _mm_storel_epi64(self.0.as_mut_ptr().add(16).cast(), last);
            }
        } else {
            let mut bytes = [0; 32];
            // SAFETY: 32 bytes.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), pixels) };
            self.0.copy_from_slice(&bytes[..self.0.len()]);
        }
    }
}
