//! Sum of two activations: [`crate::quant::requantize_add`] on 16 channels of one pixel at a time.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::{AddTerm, Layout, RowKernel};
use std::arch::x86_64::*;

/// A sum; either side may have half the size. With one input, the first side is what lies in the output.
#[derive(Debug)]
pub(super) struct Add {
    inputs: [Layout; 2],
    output: Layout,
    terms: [AddTerm; 2],
    range: (u8, u8, u8),
}

impl Add {
    pub(super) fn new(inputs: [Layout; 2], output: Layout, terms: [AddTerm; 2], range: (u8, u8, u8)) -> Option<Self> {
        let same = inputs.iter().all(|input| input.pixel_stride == output.pixel_stride) && output.pixel_stride.is_multiple_of(16);
        same.then_some(Self { inputs, output, terms, range })
    }
}

impl RowKernel for Add {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers(inputs.iter().copied().zip(&self.inputs[2 - inputs.len()..]), first, out, &self.output);
        let (a, b) = if let [a, b] = inputs { (Some(*a), *b) } else { (None, inputs[0]) };
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above.
            unsafe { row_of(self, a, b, y, row) };
        }
    }

    fn label(&self) -> String {
        "avx2 1x16".into()
    }
}

/// One side, in every lane.
#[derive(Clone, Copy)]
struct Side {
    zero_point: __m256i,
    ratio: __m256,
}

impl Side {
    #[target_feature(enable = "avx2")]
    fn new(term: AddTerm) -> Self {
        Self { zero_point: _mm256_set1_epi32(i32::from(term.zero_point)), ratio: _mm256_set1_ps(term.ratio) }
    }

    /// `f32(q - zero point) x ratio` of the first 8 values.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn real(self, values: __m128i) -> __m256 {
        let steps = _mm256_sub_epi32(_mm256_cvtepu8_epi32(values), self.zero_point);
        _mm256_mul_ps(_mm256_cvtepi32_ps(steps), self.ratio)
    }
}

/// # Safety
/// The CPU has AVX2; inputs and `out` have the sizes of their layouts, whose pixels take a multiple of 16 bytes.
#[target_feature(enable = "avx2")]
unsafe fn row_of(add: &Add, a: Option<&[u8]>, b: &[u8], y: usize, out: &mut [u8]) {
    let (stride, range) = (add.output.pixel_stride, Range::<false>::new(add.range));
    let sides = [Side::new(add.terms[0]), Side::new(add.terms[1])];
    let step = |idx: usize| if add.terms[idx].is_doubled { 2 } else { 1 };
    // Packing leaves lanes 0..4 of both sums in the lower half and lanes 4..8 in the upper.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    for x in 0..add.output.shape.w {
        let from = |idx: usize| add.inputs[idx].offset(y / step(idx), x / step(idx));
        let to = (add.output.halo.left + x) * stride;
        for first in (0..stride).step_by(16) {
            // SAFETY: 16 channels of a pixel inside each buffer.
            unsafe {
                let a = a.map_or(out.as_ptr().add(to), |a| a.as_ptr().add(from(0)));
                let a = _mm_loadu_si128(a.add(first).cast());
                let b = _mm_loadu_si128(b.as_ptr().add(from(1) + first).cast());
                let sum = |a, b| range.round(_mm256_add_ps(sides[0].real(a), sides[1].real(b)));
                let (low, high) = (sum(a, b), sum(_mm_srli_si128::<8>(a), _mm_srli_si128::<8>(b)));
                let bytes = _mm256_permutevar8x32_epi32(range.pack4(low, high, low, high), order);
                _mm_storeu_si128(out.as_mut_ptr().add(to + first).cast(), _mm256_castsi256_si128(bytes));
            }
        }
    }
}
