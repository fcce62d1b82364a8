//! Sum of two activations: [`crate::quant::requantize_add`] on 64 values at a time.

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
    /// The sum has no limits of its own and no conversion can overflow.
    is_plain: bool,
}

impl Add {
    pub(super) fn new(inputs: [Layout; 2], output: Layout, terms: [AddTerm; 2], range: (u8, u8, u8)) -> Option<Self> {
        let same = inputs.iter().all(|input| input.pixel_stride == output.pixel_stride) && output.pixel_stride.is_multiple_of(16);
        let is_plain = (range.1, range.2) == (0, u8::MAX) && terms.iter().all(|term| term.ratio < 1e6);
        same.then_some(Self { inputs, output, terms, range, is_plain })
    }

    /// Where row `y` of an input starts, and whether each of its pixels stands for two.
    fn row<'a>(&self, side: usize, values: &'a [u8], y: usize) -> (&'a [u8], bool) {
        let (layout, is_doubled) = (&self.inputs[side], self.terms[side].is_doubled);
        let y = if is_doubled { y / 2 } else { y };
        (&values[layout.offset(y, 0)..][..layout.shape.w * layout.pixel_stride], is_doubled)
    }
}

impl RowKernel for Add {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers(inputs.iter().copied().zip(&self.inputs[2 - inputs.len()..]), first, out, &self.output);
        let (stride, width) = (self.output.pixel_stride, self.output.shape.w);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            let row = &mut row[self.output.halo.left * stride..][..width * stride];
            let add = |a: Option<&[u8]>, b: &[u8], out: &mut [u8]| {
                // SAFETY: `Kernels` vouches for the CPU; all are equally long.
                unsafe {
                    if self.is_plain {
                        add_values::<true>(self, a, b, out);
                    } else {
                        add_values::<false>(self, a, b, out);
                    }
                }
            };
            let a = if let [a, _] = inputs { Some(self.row(0, a, y)) } else { None };
            let b = self.row(1, inputs[inputs.len() - 1], y);
            if !b.1 && a.is_none_or(|a| !a.1) {
                add(a.map(|a| a.0), b.0, row);
                continue;
            }
            for (x, out) in row.chunks_exact_mut(stride).enumerate() {
                let pixel = |(values, is_doubled): (&'_ [u8], bool)| -> std::ops::Range<usize> {
                    let first = if is_doubled { x / 2 } else { x } * stride;
                    debug_assert!(first + stride <= values.len());
                    first..first + stride
                };
                add(a.map(|a| &a.0[pixel(a)]), &b.0[pixel(b)], out);
            }
        }
    }

    fn label(&self) -> String {
        "avx512vnni 64".into()
    }
}

/// One side, in every lane.
#[derive(Clone, Copy)]
struct Side {
    zero_point: __m512i,
    ratio: __m512,
}

impl Side {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(term: AddTerm) -> Self {
        Self { zero_point: _mm512_set1_epi32(i32::from(term.zero_point)), ratio: _mm512_set1_ps(term.ratio) }
    }

    /// `f32(q - zero point) x ratio` of 16 values.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn real(self, values: __m128i) -> __m512 {
        let steps = _mm512_sub_epi32(_mm512_cvtepu8_epi32(values), self.zero_point);
        _mm512_mul_ps(_mm512_cvtepi32_ps(steps), self.ratio)
    }
}

/// # Safety
/// The CPU has the instruction set; all are equally long, a multiple of 16 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add_values<const PLAIN: bool>(add: &Add, a: Option<&[u8]>, b: &[u8], out: &mut [u8]) {
    let range = Range::<PLAIN>::new(add.range);
    let (left, right) = (Side::new(add.terms[0]), Side::new(add.terms[1]));
    // Packing leaves four values of each register in each 128-bit group.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (at, (b, out)) in b.chunks(64).zip(out.chunks_mut(64)).enumerate() {
        let a = a.map_or(out.as_ptr(), |a| a[64 * at..].as_ptr());
        // SAFETY: 16 values at a multiple of 16 below the length of each; the mask keeps the store within `out`.
        unsafe {
            let mut q = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                if 16 * i < out.len() {
                    let a = left.real(_mm_loadu_si128(a.add(16 * i).cast()));
                    let b = right.real(_mm_loadu_si128(b.as_ptr().add(16 * i).cast()));
                    q[i] = range.round(_mm512_add_ps(a, b));
                }
            }
            let bytes = _mm512_permutexvar_epi32(order, range.pack4(q[0], q[1], q[2], q[3]));
            if out.len() == 64 {
                _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes);
            } else {
                _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), (1 << out.len()) - 1, bytes);
            }
        }
    }
}
