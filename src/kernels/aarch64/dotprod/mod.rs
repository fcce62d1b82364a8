//! Advanced SIMD with the byte dot product `sdot` (Cortex-A55, A76, A78AE: Raspberry Pi 5, RK3588, Jetson Orin).
//!
//! Rust has no stable intrinsic for it yet: `asm!`, one instruction each, so that the compiler still allocates registers and orders
//! instructions. Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where the CPU has the
//! instruction set: that is what each safe function here rests on when it enters a `target_feature` function.

mod conv;
mod depthwise;

use super::boxed;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    super::neon::is_available() && is_aarch64_feature_detected!("dotprod")
}

/// The kernel for an operator, where this instruction set has one better than NEON's.
pub(in crate::kernels) fn prepare(
    op: &OpSpec,
    inputs: &[Layout],
    output: Layout,
    cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    match op {
        OpSpec::Conv(spec) if spec.is_depthwise() => boxed(depthwise::Depthwise::new(spec, inputs[0], output)),
        OpSpec::Conv(spec) => boxed(conv::Conv::new(spec, inputs[0], output, cache)),
        _ => None,
    }
}

/// As `Kernels::saturate`.
pub(in crate::kernels) fn saturate() -> usize {
    /// # Safety
    /// The CPU has the instruction set.
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn rounds(n: usize) -> int32x4_t {
        // Enough sums to hide the latency of each.
        let mut sums = [vdupq_n_s32(1); 16];
        let (x, w) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = sdot(*sum, w, x);
            }
        }
        let mut all = sums[0];
        for sum in sums {
            all = vaddq_s32(all, sum);
        }
        all
    }
    const ROUNDS: usize = 2000;
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    black_box(unsafe { rounds(black_box(ROUNDS)) });
    ROUNDS * 16 * 16
}

/// `acc[i] + sum over j of w[4 i + j] x x[4 i + j]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = acc;
    // SAFETY: registers only; the CPU has the instruction.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) out, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// `acc[i] + sum over j of w[4 i + j] x x[4 LANE + j]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_lane<const LANE: usize>(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = acc;
    // SAFETY: registers only; the CPU has the instruction.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]", inout(vreg) out, in(vreg) w, in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}
