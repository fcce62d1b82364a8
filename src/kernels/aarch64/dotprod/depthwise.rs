//! Depthwise convolution: 16 channels of 1, 2 or 4 neighbouring pixels at a time.
//!
//! A dot product adds four neighbouring bytes, a depthwise sum adds taps: so four columns of one input row are interleaved byte by
//! byte (eight `zip` for 16 channels), and one `sdot` for each four channels adds all of them. What is interleaved serves every pixel
//! of the tile, each with weights of its own, 0 for columns outside its window: 2 pixels under a 3x3 window see 4 columns, 4 pixels
//! under a 5x5 window see 8. Weights are `[block of 16][row][four columns][pixel][register][lane][4]`.

use super::sdot;
use crate::kernels::aarch64::neon::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::{ConvSpec, Layout, RowKernel, Window};
use std::arch::aarch64::*;

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    input: Layout,
    output: Layout,
    stride: (usize, usize),
    lead: usize,
    /// Neighbouring pixels of a tile.
    pixels: usize,
    /// For each row of the window, four columns at a time: offsets from the first tap of the tile's first pixel.
    columns: Vec<[usize; 4]>,
    weights: Vec<i8>,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
    range: (u8, u8, u8),
}

/// Input columns under the windows of so many neighbouring pixels.
const fn reach(window: &Window, pixels: usize) -> usize {
    (pixels - 1) * window.stride.1 + (window.kernel.1 - 1) * window.dilation.1 + 1
}

/// Pixels of a tile that take the fewest instructions for each: 12 to load and interleave four columns, 4 for each pixel's products.
fn best_pixels(window: &Window, width: usize) -> usize {
    let cost = |pixels: usize| reach(window, pixels).div_ceil(4) * (12 + 4 * pixels) * (4 / pixels);
    [1, 2, 4].into_iter().filter(|&pixels| pixels <= width).min_by_key(|&pixels| cost(pixels)).unwrap_or(1)
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let (window, n) = (&spec.window, spec.out_channels());
        let is_padded = |layout: Layout| layout.pixel_stride >= layout.shape.c.next_multiple_of(16);
        if !is_padded(input) || !is_padded(output) || window.halo(input.shape).union(input.halo) != input.halo {
            return None;
        }
        let pixels = best_pixels(window, output.shape.w);
        let (reach, padded) = (reach(window, pixels), n.next_multiple_of(16));
        let fours = (0..window.kernel.0).flat_map(|ky| (0..reach).step_by(4).map(move |column| (ky, column)));
        let offset =
            |ky: usize, column: usize| ky * window.dilation.0 * input.row_stride() + column.min(reach - 1) * input.pixel_stride;
        let weight = |c: usize, ky: usize, column: usize, pixel: usize| {
            let from = column.checked_sub(pixel * window.stride.1).filter(|from| from.is_multiple_of(window.dilation.1))?;
            let kx = Some(from / window.dilation.1).filter(|&kx| kx < window.kernel.1 && c < n)?;
            Some(spec.weight(c, 0, ky * window.kernel.1 + kx))
        };
        let mut weights = Vec::new();
        for first in (0..n).step_by(16) {
            for (ky, column) in fours.clone() {
                for (pixel, c) in (0..pixels).flat_map(|pixel| (first..first + 16).map(move |c| (pixel, c))) {
                    weights.extend((column..column + 4).map(|column| weight(c, ky, column, pixel).unwrap_or(0)));
                }
            }
        }
        Some(Self {
            input,
            output,
            stride: window.stride,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            pixels,
            columns: fours.map(|(ky, first)| [0, 1, 2, 3].map(|i| offset(ky, first + i))).collect(),
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
        let tile = match self.pixels {
            4 => tile::<4>,
            2 => tile::<2>,
            _ => tile::<1>,
        };
        let last = self.output.shape.w - self.pixels;
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // The last tile may overlap the one before.
            for x in (0..=last).step_by(self.pixels).chain((!last.is_multiple_of(self.pixels)).then_some(last)) {
                // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made; the
                // pixels lie in the row.
                unsafe { tile(self, inputs[0], (y, x), row) };
            }
        }
    }

    fn label(&self) -> String {
        format!("dotprod {}x16", self.pixels)
    }
}

/// # Safety
/// The CPU has the instruction set; `input` and `out` have the sizes of their layouts; `x + P` is at most the width.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const P: usize>(conv: &Depthwise, input: &[u8], (y, x): (usize, usize), out: &mut [u8]) {
    let (range, sign) = (Range::new(conv.range), vdupq_n_u8(0x80));
    let out_step = conv.output.pixel_stride;
    let origin = conv.input.offset(y * conv.stride.0, 0) + x * conv.stride.1 * conv.input.pixel_stride - conv.lead;
    let to = (conv.output.halo.left + x) * out_step;
    let mut weights = conv.weights.as_ptr();
    for first in (0..conv.bias.len()).step_by(16) {
        // SAFETY: bias, multipliers and weights hold 16 lanes for each block. Every tap of every pixel lies in the input with its halo,
        // and pixels take a multiple of 16 bytes.
        unsafe {
            let from = input.as_ptr().add(origin + first);
            let load = |at: usize| veorq_u8(vld1q_u8(from.add(at)), sign);
            let mut acc = [[vdupq_n_s32(0); 4]; P];
            for i in 0..4 {
                let bias = vld1q_s32(conv.bias.as_ptr().add(first + 4 * i));
                for acc in &mut acc {
                    acc[i] = bias;
                }
            }
            for &columns in &conv.columns {
                let quads = interleave(columns.map(load));
                for p in 0..P {
                    for i in 0..4 {
                        acc[p][i] = sdot(acc[p][i], vld1q_s8(weights.add(64 * p + 16 * i)), quads[i]);
                    }
                }
                weights = weights.add(64 * P);
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

/// Four columns of 16 channels to 16 groups of four bytes, one group for each channel.
#[inline]
#[target_feature(enable = "neon")]
fn interleave([a, b, c, d]: [uint8x16_t; 4]) -> [int8x16_t; 4] {
    let words = |bytes| vreinterpretq_u16_u8(bytes);
    let (ab_lo, ab_hi) = (words(vzip1q_u8(a, b)), words(vzip2q_u8(a, b)));
    let (cd_lo, cd_hi) = (words(vzip1q_u8(c, d)), words(vzip2q_u8(c, d)));
    [vzip1q_u16(ab_lo, cd_lo), vzip2q_u16(ab_lo, cd_lo), vzip1q_u16(ab_hi, cd_hi), vzip2q_u16(ab_hi, cd_hi)]
        .map(|quads| vreinterpretq_s8_u16(quads))
}
