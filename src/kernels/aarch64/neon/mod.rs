//! Advanced SIMD as every 64-bit Arm has it (Cortex-A53, A57, A72: Raspberry Pi 3 and 4, Jetson Nano).
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where the CPU has the instruction
//! set: that is what each safe function here rests on when it enters a `target_feature` function.

mod add;
mod channels;
mod conv;
mod depthwise;
mod edges;
mod maxpool;
mod postprocess;
mod preprocess;
pub(super) mod requantize;
mod turn;
mod winograd;

pub(in crate::kernels) use edges::{dequantize_planes, quantize_rgb_planes};
pub(in crate::kernels) use postprocess::{count, overlaps, scan};
pub(in crate::kernels) use preprocess::PictureLoops;
pub(in crate::kernels) use turn::rows_to_columns;

use super::boxed;
use crate::kernels::maxpool::MaxPool;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    is_aarch64_feature_detected!("neon")
}

/// The kernel for an operator, where this instruction set has one.
pub(in crate::kernels) fn prepare(
    op: &OpSpec,
    inputs: &[Layout],
    output: Layout,
    cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    let input = inputs[0];
    match op {
        OpSpec::Conv(spec) if spec.is_depthwise() => boxed(depthwise::Depthwise::new(spec, input, output)),
        OpSpec::Conv(spec) => {
            boxed(winograd::Conv::new(spec, input, output, cache)).or_else(|| boxed(conv::Conv::new(spec, input, output, cache)))
        }
        OpSpec::MaxPool(window) => boxed(MaxPool::new(*window, input, output, maxpool::row_of, "neon 1x16")),
        OpSpec::Add { terms, zero_point, lo, hi } => {
            boxed(add::Add::new([input, inputs[1]], output, *terms, (*zero_point, *lo, *hi)))
        }
        OpSpec::AddTo { terms, zero_point, lo, hi } => {
            boxed(add::Add::new([output, input], output, *terms, (*zero_point, *lo, *hi)))
        }
        OpSpec::Interleave { first, tables } => {
            boxed(channels::Interleave::new([input, inputs[1]], output, *first, tables.clone()))
        }
        OpSpec::Table(table) => boxed(channels::TableLookup::new(input, output, table)),
        _ => None,
    }
}

/// As `Kernels::saturate`.
pub(in crate::kernels) fn saturate() -> usize {
    /// # Safety
    /// The CPU has the instruction set.
    #[target_feature(enable = "neon")]
    unsafe fn rounds(n: usize) -> int32x4_t {
        // Enough sums to hide the latency of each.
        let mut sums = [vdupq_n_s32(1); 16];
        let (x, w) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
        for _ in 0..n {
            for sum in &mut sums {
                // SAFETY: registers only. Not `pure`, lest the products are made once for all rounds.
                unsafe {
                    asm!(
                        "smull {t:v}.8h, {x:v}.8b, {w:v}.8b",
                        "smlal2 {t:v}.8h, {x:v}.16b, {w:v}.16b",
                        "sadalp {sum:v}.4s, {t:v}.8h",
                        sum = inout(vreg) *sum, t = out(vreg) _, x = in(vreg) x, w = in(vreg) w,
                        options(nomem, nostack, preserves_flags),
                    );
                }
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
