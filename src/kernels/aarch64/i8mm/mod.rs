//! Advanced SIMD with the byte matrix product `usmmla` (Armv8.6: Neoverse V1 and N2, Cortex-A510, A710, X2; Jetson Thor, Graviton 3).
//!
//! As in `dotprod`: `asm!`, one instruction each, until there are stable intrinsics; and [`Kernels`](crate::kernels::Kernels)
//! vouches for the instruction set.

mod conv;

use super::boxed;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    super::dotprod::is_available() && is_aarch64_feature_detected!("i8mm")
}

/// The kernel for an operator, where this instruction set has one better than that of `dotprod`.
pub(in crate::kernels) fn prepare(
    op: &OpSpec,
    inputs: &[Layout],
    output: Layout,
    cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    match op {
        OpSpec::Conv(spec) if !spec.is_depthwise() => boxed(conv::Conv::new(spec, inputs[0], output, cache)),
        _ => None,
    }
}

/// As `Kernels::saturate`.
pub(in crate::kernels) fn saturate() -> usize {
    /// # Safety
    /// The CPU has the instruction set.
    #[target_feature(enable = "neon,i8mm")]
    unsafe fn rounds(n: usize) -> int32x4_t {
        // Enough sums to hide the latency of each.
        let mut sums = [vdupq_n_s32(1); 16];
        let (x, w) = (black_box(vdupq_n_u8(3)), black_box(vdupq_n_s8(5)));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = usmmla(*sum, x, w);
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
    ROUNDS * 16 * 32
}

/// `acc[2 i + j] + sum over k of x[8 i + k] x w[8 j + k]`: two rows of unsigned bytes times two columns of signed ones.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usmmla(acc: int32x4_t, x: uint8x16_t, w: int8x16_t) -> int32x4_t {
    let mut out = acc;
    // SAFETY: registers only; the CPU has the instruction.
    unsafe {
        asm!("usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) out, in(vreg) x, in(vreg) w,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}
