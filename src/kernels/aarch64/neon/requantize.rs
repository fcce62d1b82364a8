//! From accumulators to bytes: [`crate::quant::requantize`] on 4 lanes.
//!
//! The rule clamps before it rounds. Both limits are integers and `fcvtns` saturates, so clamping after rounding gives the same. No
//! product is NaN: accumulators are finite, and so are multipliers.

use std::arch::aarch64::*;

/// Zero point and range of an output, in every lane.
#[derive(Clone, Copy)]
pub(in crate::kernels::aarch64) struct Range {
    zero_point: int16x8_t,
    lo: uint8x16_t,
    hi: uint8x16_t,
}

impl Range {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels::aarch64) fn new((zero_point, lo, hi): (u8, u8, u8)) -> Self {
        Self { zero_point: vdupq_n_s16(i16::from(zero_point)), lo: vdupq_n_u8(lo), hi: vdupq_n_u8(hi) }
    }

    /// `acc x m`, rounded to integers, halves to even.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels::aarch64) fn scale(self, acc: int32x4_t, m: float32x4_t) -> int32x4_t {
        vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(acc), m))
    }

    /// Eight rounded values to bytes in the lower half.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels::aarch64) fn pack2(self, a: int32x4_t, b: int32x4_t) -> uint8x8_t {
        let words = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), self.zero_point);
        vmin_u8(vmax_u8(vqmovun_s16(words), vget_low_u8(self.lo)), vget_low_u8(self.hi))
    }

    /// Sixteen rounded values to bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels::aarch64) fn pack4(self, values: [int32x4_t; 4]) -> uint8x16_t {
        let [a, b, c, d] = values;
        let ab = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), self.zero_point);
        let cd = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(c), d), self.zero_point);
        vminq_u8(vmaxq_u8(vqmovun_high_s16(vqmovun_s16(ab), cd), self.lo), self.hi)
    }

    /// Writes the `4 N` channels of one pixel.
    ///
    /// # Safety
    /// `out` is valid for writes of `4 N` bytes; `N` is at most 4.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::kernels::aarch64) unsafe fn store<const N: usize>(
        self,
        acc: [int32x4_t; N],
        m: [float32x4_t; N],
        out: *mut u8,
    ) {
        let mut q = [vdupq_n_s32(0); 4];
        for n in 0..N {
            q[n] = self.scale(acc[n], m[n]);
        }
        // SAFETY: 4, 8, 12 or 16 bytes, which the caller vouches for.
        unsafe {
            match N {
                // The words are not aligned.
                1 => out.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(self.pack2(q[0], q[0])))),
                2 => vst1_u8(out, self.pack2(q[0], q[1])),
                3 => {
                    let bytes = self.pack4([q[0], q[1], q[2], q[2]]);
                    vst1_u8(out, vget_low_u8(bytes));
                    out.add(8).cast::<u32>().write_unaligned(vgetq_lane_u32::<2>(vreinterpretq_u32_u8(bytes)));
                }
                _ => vst1q_u8(out, self.pack4(q)),
            }
        }
    }
}

/// Loads `4 quads` bytes, at most 12; the others are 0.
///
/// # Safety
/// `from` is valid for reads of so many bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::kernels::aarch64) unsafe fn load_quads(from: *const u8, quads: usize) -> uint8x16_t {
    // SAFETY: exactly the bytes that the caller vouches for.
    unsafe {
        let (zero, words) = (vdupq_n_u32(0), from.cast::<u32>());
        let bytes = match quads {
            // The words are not aligned.
            1 => vsetq_lane_u32::<0>(words.read_unaligned(), zero),
            2 => vreinterpretq_u32_u8(vcombine_u8(vld1_u8(from), vdup_n_u8(0))),
            _ => {
                let first = vreinterpretq_u32_u8(vcombine_u8(vld1_u8(from), vdup_n_u8(0)));
                vsetq_lane_u32::<2>(words.add(2).read_unaligned(), first)
            }
        };
        vreinterpretq_u8_u32(bytes)
    }
}
