//! From accumulators to bytes: [`crate::quant::requantize`] on 8 lanes.
//!
//! The rule clamps before it rounds. Both limits are integers, so clamping after rounding gives the same; the only
//! clamp that is left before the conversion is one that keeps it from overflowing upwards (downwards it gives the
//! least integer, which saturates to the right side).

use std::arch::x86_64::*;

/// Zero point and range of an output, in every lane.
#[derive(Clone, Copy)]
pub(in crate::kernels::x86_64) struct Range {
    zero_point: __m256i,
    lo: __m256i,
    hi: __m256i,
    ceiling: __m256,
}

impl Range {
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
        _mm256_cvtps_epi32(_mm256_min_ps(scaled, self.ceiling))
    }

    /// Four registers of rounded values to bytes: within each 128-bit half four lanes of `a`, four of `b`, of `c`, of `d`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels::x86_64) fn pack4(self, a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        let ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), self.zero_point);
        let cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), self.zero_point);
        _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(ab, cd), self.lo), self.hi)
    }
}
