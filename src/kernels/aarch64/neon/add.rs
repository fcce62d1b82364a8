//! Sum of two activations: [`crate::quant::requantize_add`] on 16 channels of one pixel at a time.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::{AddTerm, Layout, RowKernel};
use std::arch::aarch64::*;

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
        "neon 1x16".into()
    }
}

/// One side, in every lane.
#[derive(Clone, Copy)]
struct Side {
    zero_point: uint8x8_t,
    ratio: float32x4_t,
}

impl Side {
    #[target_feature(enable = "neon")]
    fn new(term: AddTerm) -> Self {
        Self { zero_point: vdup_n_u8(term.zero_point), ratio: vdupq_n_f32(term.ratio) }
    }

    /// `f32(q - zero point) x ratio` of 16 values.
    #[inline]
    #[target_feature(enable = "neon")]
    fn real(self, values: uint8x16_t) -> [float32x4_t; 4] {
        let low = vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(values), self.zero_point));
        let high = vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(values), self.zero_point));
        let steps = [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
        let mut real = [self.ratio; 4];
        for i in 0..4 {
            real[i] = vmulq_f32(vcvtq_f32_s32(steps[i]), self.ratio);
        }
        real
    }
}

/// # Safety
/// The CPU has the instruction set; inputs and `out` have the sizes of their layouts.
#[target_feature(enable = "neon")]
unsafe fn row_of(add: &Add, a: Option<&[u8]>, b: &[u8], y: usize, out: &mut [u8]) {
    let (stride, range) = (add.output.pixel_stride, Range::new(add.range));
    let sides = [Side::new(add.terms[0]), Side::new(add.terms[1])];
    let step = |idx: usize| if add.terms[idx].is_doubled { 2 } else { 1 };
    for x in 0..add.output.shape.w {
        let from = |idx: usize| add.inputs[idx].offset(y / step(idx), x / step(idx));
        let to = (add.output.halo.left + x) * stride;
        for first in (0..stride).step_by(16) {
            // SAFETY: 16 channels of a pixel inside each buffer, whose pixels take a multiple of 16 bytes.
            unsafe {
                let a = a.map_or(out.as_ptr().add(to), |a| a.as_ptr().add(from(0)));
                let a = sides[0].real(vld1q_u8(a.add(first)));
                let b = sides[1].real(vld1q_u8(b.as_ptr().add(from(1) + first)));
                let mut sums = [vdupq_n_s32(0); 4];
                for i in 0..4 {
                    sums[i] = vcvtnq_s32_f32(vaddq_f32(a[i], b[i]));
                }
                vst1q_u8(out.as_mut_ptr().add(to + first), range.pack4(sums));
            }
        }
    }
}
