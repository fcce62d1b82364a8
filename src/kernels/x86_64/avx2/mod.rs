//! AVX2 (Haswell and later, Zen and later), where there is no dot product of bytes.
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where [`is_available`] holds:
//! that is what each safe function here rests on when it enters a `target_feature` function.

mod add;
mod channels;
mod conv;
pub(super) mod depthwise;
mod edges;
mod maxpool;
mod postprocess;
mod preprocess;
pub(super) mod requantize;
mod turn;
pub(super) mod winograd;

pub(in crate::kernels) use edges::{dequantize_planes, quantize_rgb_planes};
pub(in crate::kernels) use postprocess::{count, overlaps, scan};
pub(in crate::kernels) use preprocess::PictureLoops;
pub(in crate::kernels) use turn::rows_to_columns;

use super::boxed;
use crate::kernels::maxpool::MaxPool;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
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
        OpSpec::MaxPool(window) => boxed(MaxPool::new(*window, input, output, maxpool::row_of, "avx2 32")),
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

/// As `Kernels::saturate`, with the faster of the two ways to multiply, that of bytes.
pub(in crate::kernels) fn saturate() -> usize {
    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn rounds(n: usize) -> __m256i {
        // Each sum multiplies itself, lest products be computed once; there are enough to hide the latency.
        let mut sums = [_mm256_set1_epi8(1); 12];
        let (w, ones) = (black_box(_mm256_set1_epi8(5)), black_box(_mm256_set1_epi16(1)));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, w), ones));
            }
        }
        sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_add_epi32(all, sum))
    }
    const ROUNDS: usize = 2000;
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    black_box(unsafe { rounds(black_box(ROUNDS)) });
    ROUNDS * 12 * 32
}
