//! Depthwise convolution: 64 channels of one pixel at a time.
//!
//! A dot product adds four neighbouring bytes, a depthwise sum adds taps: so four taps are interleaved byte by byte (eight
//! unpacking instructions for 64 channels), and one `vpdpbusd` for each 16 channels adds all four. Weights are
//! `[block of 64][group of 4 taps][register][lane][4]`; missing taps have weight 0.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    input: Layout,
    output: Layout,
    stride: (usize, usize),
    lead: usize,
    /// Offset of each tap from the first, a multiple of four of them.
    taps: Vec<usize>,
    weights: Vec<i8>,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    range: (u8, u8, u8),
}

/// Channel within a block of 64 that register `r`, lane `lane` holds after unpacking.
const fn channel(r: usize, lane: usize) -> usize {
    lane / 4 * 16 + 4 * r + lane % 4
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
        let n_taps = window.n_taps();
        let (mut weights, mut bias, mut multipliers) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..n).step_by(64) {
            for group in (0..n_taps).step_by(4) {
                for (r, lane) in (0..4).flat_map(|r| (0..16).map(move |lane| (r, lane))) {
                    let c = first + channel(r, lane);
                    weights.extend((group..group + 4).map(|tap| if c < n && tap < n_taps { spec.weight(c, 0, tap) } else { 0 }));
                }
            }
            for c in (0..4).flat_map(|r| (0..16).map(move |lane| first + channel(r, lane))) {
                bias.push(if c < n { spec.folded_bias(c) } else { 0 });
                multipliers.push(if c < n { spec.requant.multipliers[c] } else { 0.0 });
            }
        }
        Some(Self {
            input,
            output,
            stride: window.stride,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            taps: (0..n_taps.next_multiple_of(4)).map(|tap| offset(tap.min(n_taps - 1))).collect(),
            weights,
            bias,
            multipliers,
            range: (spec.requant.zero_point, spec.requant.lo, spec.requant.hi),
        })
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
            unsafe { row_of(self, inputs[0], y, row) };
        }
    }

    fn label(&self) -> String {
        "avx512vnni 1x64".into()
    }
}

/// # Safety
/// The CPU has the instruction set; `input` and `out` have the sizes of their layouts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn row_of(conv: &Depthwise, input: &[u8], y: usize, out: &mut [u8]) {
    let channels = conv.output.shape.c.next_multiple_of(16);
    let n_groups = conv.taps.len() / 4;
    let range = Range::<false>::new(conv.range);
    for (block, first) in (0..channels).step_by(64).enumerate() {
        let left = channels - first;
        let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        let mut from = conv.input.offset(y * conv.stride.0, 0) - conv.lead + first;
        let mut to = conv.output.halo.left * conv.output.pixel_stride + first;
        // SAFETY: bias, multipliers and weights hold 64 lanes for each block. Every tap of every pixel lies in the input with its halo,
        // and the mask keeps loads and stores within the channels of a pixel, padded to 16.
        unsafe {
            let lanes = |r: usize| 64 * block + 16 * r;
            let mut bias = [_mm512_setzero_si512(); 4];
            let mut m = [_mm512_setzero_ps(); 4];
            for r in 0..4 {
                bias[r] = _mm512_loadu_si512(conv.bias.as_ptr().add(lanes(r)).cast());
                m[r] = _mm512_loadu_ps(conv.multipliers.as_ptr().add(lanes(r)));
            }
            for _ in 0..conv.output.shape.w {
                let mut acc = bias;
                let mut weights = conv.weights.as_ptr().add(256 * n_groups * block);
                for taps in conv.taps.chunks_exact(4) {
                    let load = |i: usize| _mm512_maskz_loadu_epi8(mask, input.as_ptr().add(from + taps[i]).cast());
                    let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                    let (ab_lo, ab_hi) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
                    let (cd_lo, cd_hi) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
                    let quads = [
                        _mm512_unpacklo_epi16(ab_lo, cd_lo),
                        _mm512_unpackhi_epi16(ab_lo, cd_lo),
                        _mm512_unpacklo_epi16(ab_hi, cd_hi),
                        _mm512_unpackhi_epi16(ab_hi, cd_hi),
                    ];
                    for r in 0..4 {
                        let w = _mm512_loadu_si512(weights.add(64 * r).cast());
                        acc[r] = _mm512_dpbusd_epi32(acc[r], quads[r], w);
                    }
                    weights = weights.add(256);
                }
                let bytes = range.pack4(
                    range.scale(acc[0], m[0]),
                    range.scale(acc[1], m[1]),
                    range.scale(acc[2], m[2]),
                    range.scale(acc[3], m[3]),
                );
                _mm512_mask_storeu_epi8(out.as_mut_ptr().add(to).cast(), mask, bytes);
                from += conv.stride.1 * conv.input.pixel_stride;
                to += conv.output.pixel_stride;
            }
        }
    }
}
