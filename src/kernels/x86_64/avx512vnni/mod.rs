//! AVX-512 with the byte dot product `vpdpbusd`: F, BW, VL, DQ, VNNI (Ice Lake and later, Zen 4 and later).
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where [`is_available`] holds:
//! that is what each safe function here rests on when it enters a `target_feature` function.

mod add;
mod channels;
mod conv;
mod depthwise;
mod edges;
mod maxpool;
mod postprocess;
mod preprocess;
mod requantize;
mod winograd;

pub(in crate::kernels) use edges::{dequantize_planes, quantize_rgb_planes};
pub(in crate::kernels) use postprocess::{count, overlaps, scan};
pub(in crate::kernels) use preprocess::PictureLoops;

use super::boxed;
use crate::kernels::maxpool::MaxPool;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    super::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
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
        OpSpec::MaxPool(window) => boxed(MaxPool::new(*window, input, output, maxpool::row_of, "avx512vnni 64")),
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
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn rounds(n: usize) -> __m512i {
        // Enough sums to hide the latency of each.
        let mut sums = [_mm512_set1_epi8(1); 16];
        let (x, w) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, w);
            }
        }
        let mut all = sums[0];
        for sum in sums {
            all = _mm512_add_epi32(all, sum);
        }
        all
    }
    const ROUNDS: usize = 2000;
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    black_box(unsafe { rounds(black_box(ROUNDS)) });
    ROUNDS * 16 * 64
}
