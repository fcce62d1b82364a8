//! From accumulators to bytes: [`crate::quant::requantize`] on 8 lanes.
//!
//! The rule clamps before it rounds. Both limits are integers, so clamping after rounding gives the same; the only
//! clamp that is left before the conversion is one that keeps it from overflowing upwards (downwards it gives the
//! least integer, which saturates to the right side).

use crate::kernels::tiles::Tile;
use std::arch::x86_64::*;

/// Zero point and range of an output, in every lane. `PLAIN`: no conversion can overflow and the range is 0 to 255.
#[derive(Clone, Copy)]
pub(in crate::kernels::x86_64) struct Range<const PLAIN: bool> {
    zero_point: __m256i,
    lo: __m256i,
    hi: __m256i,
    ceiling: __m256,
}

impl<const PLAIN: bool> Range<PLAIN> {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels::x86_64) fn new((zero_point, lo, hi): (u8, u8, u8)) -> Self {
        Self {
            zero_point: _mm256_set1_epi16(i16::from(zero_point)),
            lo: _mm256_set1_epi8(lo.cast_signed()),
            hi: _mm256_set1_epi8(hi.cast_signed()),
            ceiling: _mm256_set1_ps(1e9),
        }
    }

    /// Rounds 8 scaled accumulators to integers, halves to even.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels::x86_64) fn round(self, scaled: __m256) -> __m256i {
        _mm256_cvtps_epi32(if PLAIN { scaled } else { _mm256_min_ps(scaled, self.ceiling) })
    }

    /// `acc x m`, rounded.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels::x86_64) fn scale(self, acc: __m256i, m: __m256) -> __m256i {
        self.round(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), m))
    }

    /// Four registers of rounded values to bytes: within each 128-bit half four lanes of `a`, four of `b`, of `c`, of `d`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels::x86_64) fn pack4(self, a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        let ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), self.zero_point);
        let cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), self.zero_point);
        let bytes = _mm256_packus_epi16(ab, cd);
        if PLAIN { bytes } else { _mm256_min_epu8(_mm256_max_epu8(bytes, self.lo), self.hi) }
    }
}

/// Requantises a tile of `P` pixels x `N` registers and writes it. `PLAIN`: see [`PackedConv::is_plain`](crate::kernels::pack::PackedConv).
///
/// # Safety
/// As [`TileFn`](crate::kernels::tiles::TileFn).
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const P: usize, const N: usize, const PLAIN: bool>(tile: &Tile<'_>, acc: &[[__m256i; N]; P]) {
    let range = Range::<PLAIN>::new(tile.range);
    // SAFETY: multipliers have a lane for each lane of the block; pixels of the output have room for each of its channels.
    unsafe {
        let mut m = [_mm256_setzero_ps(); N];
        for n in 0..N {
            m[n] = _mm256_loadu_ps(tile.multipliers.add(8 * n));
        }
        for p in 0..P {
            let mut q = [_mm256_setzero_si256(); 4];
            for n in 0..N {
                q[n] = range.scale(acc[p][n], m[n]);
            }
            let out = tile.out.add(tile.out_offsets[p]);
            match N {
                1 => {
                    let bytes = lanes(range.pack4(q[0], q[0], q[0], q[0]), [0, 4, 0, 0, 0, 0, 0, 0]);
                    _mm_storel_epi64(out.cast(), _mm256_castsi256_si128(bytes));
                }
                2 => {
                    let bytes = lanes(range.pack4(q[0], q[1], q[0], q[1]), [0, 1, 4, 5, 0, 0, 0, 0]);
                    _mm_storeu_si128(out.cast(), _mm256_castsi256_si128(bytes));
                }
                3 => {
                    let bytes = lanes(range.pack4(q[0], q[1], q[2], q[2]), [0, 1, 2, 4, 5, 6, 0, 0]);
                    _mm_storeu_si128(out.cast(), _mm256_castsi256_si128(bytes));
                    _mm_storel_epi64(out.add(16).cast(), _mm256_extracti128_si256::<1>(bytes));
                }
                _ => _mm256_storeu_si256(out.cast(), range.pack4(q[0], q[1], q[2], q[3])),
            }
        }
    }
}

/// Groups of four bytes in this order.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(bytes: __m256i, order: [i32; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = order;
    _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(a, b, c, d, e, f, g, h))
}

/// As [`store`], whichever the tile asks for.
///
/// # Safety
/// As [`TileFn`](crate::kernels::tiles::TileFn).
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn store_tile<const P: usize, const N: usize>(tile: &Tile<'_>, acc: &[[__m256i; N]; P]) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        if tile.is_plain {
            store::<P, N, true>(tile, acc);
        } else {
            store::<P, N, false>(tile, acc);
        }
    }
}
