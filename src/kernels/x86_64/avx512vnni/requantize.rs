//! From accumulators to bytes: [`crate::quant::requantize`] on 16 lanes.
//!
//! The rule clamps before it rounds. Both limits are integers, so clamping after rounding gives the same; the only
//! clamp that is left before the conversion is one that keeps it from overflowing upwards (downwards it gives the
//! least integer, which saturates to the right side).

use std::arch::x86_64::*;

/// Zero point and range of an output, in every lane. `PLAIN`: no conversion can overflow and the range is 0 to 255.
#[derive(Clone, Copy)]
pub(super) struct Range<const PLAIN: bool> {
    zero_point: __m512i,
    lo: __m512i,
    hi: __m512i,
    ceiling: __m512,
}

impl<const PLAIN: bool> Range<PLAIN> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new((zero_point, lo, hi): (u8, u8, u8)) -> Self {
        Self {
            zero_point: _mm512_set1_epi16(i16::from(zero_point)),
            lo: _mm512_set1_epi8(lo.cast_signed()),
            hi: _mm512_set1_epi8(hi.cast_signed()),
            ceiling: _mm512_set1_ps(1e9),
        }
    }

    /// Rounds 16 scaled accumulators to integers, halves to even.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn round(self, scaled: __m512) -> __m512i {
        _mm512_cvtps_epi32(if PLAIN { scaled } else { _mm512_min_ps(scaled, self.ceiling) })
    }

    /// `acc x m`, rounded.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn scale(self, acc: __m512i, m: __m512) -> __m512i {
        self.round(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), m))
    }

    /// Four registers of rounded values to bytes: within each 128-bit group four lanes of `a`, four of `b`, of `c`, of `d`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn pack4(self, a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        let ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_point);
        let cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_point);
        let bytes = _mm512_packus_epi16(ab, cd);
        if PLAIN { bytes } else { _mm512_min_epu8(_mm512_max_epu8(bytes, self.lo), self.hi) }
    }
}
