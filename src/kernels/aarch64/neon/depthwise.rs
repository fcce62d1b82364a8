//! Depthwise convolution: 16 channels of 2 pixels at a time.
//!
//! Two taps are taken together: `smull` and `smlal` add their products in 16 bits, `saddw` adds that to the 32-bit sums. Weights are
//! `[block of 16][pair][tap of the pair][channel]`; an odd number of taps is filled up with one of weight 0. The sum fits 16 bits
//! unless both weights are -128: where there is such a pair, every tap is paired with one of weight 0.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::aarch64::*;

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    input: Layout,
    output: Layout,
    stride: (usize, usize),
    lead: usize,
    /// Offset of each tap from the first, in pairs.
    taps: Vec<[usize; 2]>,
    weights: Vec<i8>,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    range: (u8, u8, u8),
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let (window, n) = (&spec.window, spec.out_channels());
        let is_padded = |layout: Layout| layout.pixel_stride >= layout.shape.c.next_multiple_of(16);
        if !is_padded(input) || !is_padded(output) || window.halo(input.shape).union(input.halo) != input.halo {
            return None;
        }
        let offset = |tap: usize| {
            let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
            ky * window.dilation.0 * input.row_stride() + kx * window.dilation.1 * input.pixel_stride
        };
        let (n_taps, padded) = (window.n_taps(), n.next_multiple_of(16));
        let leaves = |tap: usize| (0..n).any(|c| spec.weight(c, 0, tap) == i8::MIN && spec.weight(c, 0, tap + 1) == i8::MIN);
        let in_pair = if (0..n_taps - 1).step_by(2).any(leaves) { 1 } else { 2 };
        let pairs: Vec<_> = (0..n_taps).step_by(in_pair).map(|tap| [Some(tap), Some(tap + 1).filter(|_| in_pair == 2)]).collect();
        let pairs: Vec<_> = pairs.into_iter().map(|pair| pair.map(|tap| tap.filter(|&tap| tap < n_taps))).collect();
        let mut weights = Vec::new();
        for first in (0..n).step_by(16) {
            for tap in pairs.as_flattened() {
                weights.extend((first..first + 16).map(|c| tap.filter(|_| c < n).map_or(0, |tap| spec.weight(c, 0, tap))));
            }
        }
        Some(Self {
            input,
            output,
            stride: window.stride,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            taps: pairs.iter().map(|pair| pair.map(|tap| offset(tap.unwrap_or(0)))).collect(),
            weights,
            bias: (0..padded).map(|c| if c < n { spec.folded_bias_from(128, c) } else { 0 }).collect(),
            multipliers: (0..padded).map(|c| if c < n { spec.requant.multipliers[c] } else { 0.0 }).collect(),
            range: (spec.requant.zero_point, spec.requant.lo, spec.requant.hi),
        })
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            let mut x = 0;
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made; the pixels
            // lie in the row.
            unsafe {
                while x + 2 <= self.output.shape.w {
                    pixels::<2>(self, inputs[0], (y, x), row);
                    x += 2;
                }
                if x < self.output.shape.w {
                    pixels::<1>(self, inputs[0], (y, x), row);
                }
            }
        }
    }

    fn label(&self) -> String {
        "neon 2x16".into()
    }
}

/// # Safety
/// The CPU has the instruction set; `input` and `out` have the sizes of their layouts; `x + P` is at most the width.
#[target_feature(enable = "neon")]
unsafe fn pixels<const P: usize>(conv: &Depthwise, input: &[u8], (y, x): (usize, usize), out: &mut [u8]) {
    let (range, sign) = (Range::new(conv.range), vdupq_n_u8(0x80));
    let (step, out_step) = (conv.stride.1 * conv.input.pixel_stride, conv.output.pixel_stride);
    let origin = conv.input.offset(y * conv.stride.0, 0) + x * step - conv.lead;
    let to = (conv.output.halo.left + x) * out_step;
    let mut weights = conv.weights.as_ptr();
    for first in (0..conv.bias.len()).step_by(16) {
        // SAFETY: bias, multipliers and weights hold 16 lanes for each block. Every tap of every pixel lies in the input with its halo,
        // and pixels take a multiple of 16 bytes.
        unsafe {
            let from = input.as_ptr().add(origin + first);
            let load = |at: usize| vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from.add(at)), sign));
            let mut acc = [[vdupq_n_s32(0); 4]; P];
            for i in 0..4 {
                let bias = vld1q_s32(conv.bias.as_ptr().add(first + 4 * i));
                for acc in &mut acc {
                    acc[i] = bias;
                }
            }
            for &[a, b] in &conv.taps {
                let (wa, wb) = (vld1q_s8(weights), vld1q_s8(weights.add(16)));
                weights = weights.add(32);
                for p in 0..P {
                    let (a, b) = (load(a + p * step), load(b + p * step));
                    let low = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(wa)), vget_low_s8(b), vget_low_s8(wb));
                    let high = vmlal_high_s8(vmull_high_s8(a, wa), b, wb);
                    acc[p][0] = vaddw_s16(acc[p][0], vget_low_s16(low));
                    acc[p][1] = vaddw_high_s16(acc[p][1], low);
                    acc[p][2] = vaddw_s16(acc[p][2], vget_low_s16(high));
                    acc[p][3] = vaddw_high_s16(acc[p][3], high);
                }
            }
            let mut m = [vdupq_n_f32(0.0); 4];
            for i in 0..4 {
                m[i] = vld1q_f32(conv.multipliers.as_ptr().add(first + 4 * i));
            }
            for p in 0..P {
                range.store(acc[p], m, out.as_mut_ptr().add(to + p * out_step + first));
            }
        }
    }
}
