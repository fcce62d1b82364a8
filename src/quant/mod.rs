//! Quantised numbers: `real = scale x (q - zero_point)`, and the one rule that makes them.
//!
//! Every kernel, the scalar specification, the trainer's fake quantisation and the tests use [`requantize`]. The
//! order of operations is part of the contract: IEEE 754 makes each step the same on every CPU, so the same network
//! gives the same bytes everywhere. No fused multiply-add, no multiplication by a reciprocal.

mod tables;

pub use tables::{exp_table, rescale_table, sigmoid_table};

/// Scale and zero point of a tensor of `u8` activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    /// Real value of one step; finite and above 0.
    pub scale: f32,
    /// The `q` that stands for real 0.
    pub zero_point: u8,
}

/// A scale that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("scale {0:e} must be finite and at least 1.2e-38, the smallest normal number")]
pub struct BadScale(pub f32);

impl QuantParams {
    /// Checked parameters.
    ///
    /// # Errors
    /// [`BadScale`] unless `scale` is finite, above 0 and not subnormal.
    pub fn new(scale: f32, zero_point: u8) -> Result<Self, BadScale> {
        if scale.is_normal() && scale > 0.0 { Ok(Self { scale, zero_point }) } else { Err(BadScale(scale)) }
    }

    /// Real value of `q`.
    #[must_use]
    pub fn dequantize(&self, q: u8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero_point))
    }

    /// Nearest `q` of a real value: divides (never multiplies by the reciprocal), clamps, rounds halves to even.
    /// NaN gives 0, as no sample may be undefined.
    #[must_use]
    pub fn quantize(&self, real: f32) -> u8 {
        round_clamped(real / self.scale, self.zero_point, 0, 255)
    }
}

/// `multiplier[c] = (s_x x s_w[c]) / s_y`, in `f32`, in that order.
///
/// # Errors
/// [`BadScale`] unless the result is finite and above 0.
pub fn multiplier(input_scale: f32, weight_scale: f32, output_scale: f32) -> Result<f32, BadScale> {
    let m = (input_scale * weight_scale) / output_scale;
    if m.is_finite() && m > 0.0 { Ok(m) } else { Err(BadScale(m)) }
}

/// **The requantisation rule**: `round_half_even(clamp(f32(acc) x m, lo - zp, hi - zp)) + zp`.
///
/// The clamp comes before the conversion, since x86 and Arm disagree on what an overflowing conversion gives.
/// `lo..=hi` is the range of `q` that an activation leaves: `zero_point..=255` for a fused `ReLU`, else `0..=255`.
#[must_use]
#[inline]
#[expect(clippy::cast_precision_loss, reason = "the conversion of the accumulator rounds to nearest even on every CPU")]
pub fn requantize(acc: i32, multiplier: f32, zero_point: u8, lo: u8, hi: u8) -> u8 {
    round_clamped(acc as f32 * multiplier, zero_point, lo, hi)
}

/// `f32(a - za) x (sa / sy) + f32(b - zb) x (sb / sy)`, then as [`requantize`]: the sum of two tensors.
#[must_use]
#[inline]
pub fn requantize_add(a: (u8, u8, f32), b: (u8, u8, f32), zero_point: u8, lo: u8, hi: u8) -> u8 {
    let left = (f32::from(a.0) - f32::from(a.1)) * a.2;
    let right = (f32::from(b.0) - f32::from(b.1)) * b.2;
    round_clamped(left + right, zero_point, lo, hi)
}

/// `1.5 x 2^23`: the sum with a value of at most 2^22 has no fraction bits left, so the addition rounds it, halves to even.
const ROUNDER: f32 = 12_582_912.0;

/// An addition instead of `round_ties_even`, which is a function call where the instruction set has no rounding.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the value was clamped to lo - zp ..= hi - zp, so the sum is in 0..=255; `max` drops a NaN"
)]
fn round_clamped(steps: f32, zero_point: u8, lo: u8, hi: u8) -> u8 {
    let zp = f32::from(zero_point);
    let clamped = steps.max(f32::from(lo) - zp).min(f32::from(hi) - zp);
    let rounded = (clamped + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits());
    rounded.wrapping_add(u32::from(zero_point)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_even_and_overflow_clamps() {
        for (acc, m, zp, lo, hi, want) in [
            (1, 0.5, 0, 0, 255, 0),
            (3, 0.5, 0, 0, 255, 2),
            (5, 0.5, 0, 0, 255, 2),
            (-1, 0.5, 128, 0, 255, 128),
            (-3, 0.5, 128, 0, 255, 126),
            (i32::MAX, 1e30, 7, 0, 255, 255),
            (i32::MIN, 1e30, 7, 0, 255, 0),
            (i32::MIN, 1.0, 7, 7, 255, 7),
            (100, 1.0, 0, 0, 60, 60),
        ] {
            assert_eq!(requantize(acc, m, zp, lo, hi), want, "{acc} x {m} zp {zp} in {lo}..={hi}");
        }
    }

    #[test]
    fn the_addition_rounds_as_round_ties_even() {
        for steps in (-255 * 64..=255 * 64).map(|steps: i16| f32::from(steps) / 64.0) {
            for nudge in [0, 1, -1] {
                let steps = f32::from_bits(steps.to_bits().wrapping_add_signed(nudge));
                if steps.is_finite() && steps.abs() <= 255.0 {
                    let zero_point = if steps < 0.0 { 255 } else { 0 };
                    let want = steps.round_ties_even() + f32::from(zero_point);
                    assert!((f32::from(round_clamped(steps, zero_point, 0, 255)) - want).abs() < 0.5, "{steps}");
                }
            }
        }
    }

    #[test]
    fn quantize_divides() {
        let params = QuantParams::new(0.1, 3).expect("a scale");
        assert_eq!(params.quantize(0.25), 5, "0.25 / 0.1 is 2.5 in f32, halves to even");
        assert_eq!(params.quantize(f32::NAN), 0, "NaN is the low end");
        assert_eq!(params.quantize(f32::INFINITY), 255);
        for q in 0..=255 {
            assert_eq!(params.quantize(params.dequantize(q)), q);
        }
    }

    #[test]
    fn bad_scales_are_refused() {
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
            assert!(QuantParams::new(scale, 0).is_err(), "{scale}");
        }
        assert!(multiplier(1e-30, 1e-30, 1.0).is_err());
        assert!(multiplier(1.0, 1.0, 0.0).is_err());
    }
}
