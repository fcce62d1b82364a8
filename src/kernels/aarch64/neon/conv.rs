//! Convolution, direct: up to 4 pixels times 4 output channels in registers, without a dot-product instruction.
//!
//! A register holds the partial sums of one pixel and one channel over 16 input channels: `smull` makes eight 16-bit products of the
//! lower halves, `smlal2` adds those of the upper halves, `sadalp` adds neighbours to four 32-bit sums. Three instructions for 16
//! products, and 8 loads and 4 `eor` for 48 of them; 3 pixels x 8 channels would need fewer loads, but more registers than there
//! are. The four sums are added at the end.
//!
//! Exact: each product is at most 128 x 128, and two fit 16 bits unless both are that large. That takes a weight of -128 in both
//! halves at the same place. A convolution that has such a pair adds each product on its own (`SPLIT`): 4 instructions.

use super::requantize::{Range, load_quads};
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{Tile, TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::aarch64::*;

const SCHEME: Scheme = Scheme { lanes: 4, max_registers: 1, pack_lanes: 4, halves: false, products: Products::SignedSixteens };

/// Pixels of a tile.
const MAX_PIXELS: usize = 4;

/// Any convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Conv {
    conv: PackedConv,
    /// Whether two products may leave 16 bits.
    is_split: bool,
}

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        let conv = PackedConv::new(spec, input, output, SCHEME, cache)?;
        let leaves = |w: &[i8; 16]| (0..8).any(|i| w[i] == i8::MIN && w[i + 8] == i8::MIN);
        let is_split = conv.weights.bytes.lines().any(|line| line.as_chunks::<16>().0.iter().any(leaves));
        Some(Self { conv, is_split })
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let n_rows = check_buffers([(inputs[0], &self.conv.input)], first, out, &self.conv.output);
        let tile = if self.is_split { tile_fn::<true> } else { tile_fn::<false> };
        // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above.
        unsafe { conv_rows(&self.conv, |_| MAX_PIXELS, tile, (inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr())) };
    }

    fn label(&self) -> String {
        "neon 4x4".into()
    }
}

/// The kernel for tiles of so many pixels.
fn tile_fn<const SPLIT: bool>(block: &Block, pixels: usize) -> TileFn {
    match pixels {
        1 => tile::<1, SPLIT>,
        2 => tile::<2, SPLIT>,
        3 => tile::<3, SPLIT>,
        MAX_PIXELS => tile::<MAX_PIXELS, SPLIT>,
        _ => unreachable!("a tile of {pixels} pixels for {block:?}"),
    }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "neon")]
unsafe fn tile<const P: usize, const SPLIT: bool>(tile: &Tile<'_>) {
    // SAFETY: the walk over tiles vouches for every offset, for the weights of the block under each run of taps, and for the lanes of
    // bias and multipliers.
    unsafe {
        let sign = vdupq_n_u8(0x80);
        let signed = |bytes| vreinterpretq_s8_u8(veorq_u8(bytes, sign));
        let mut sums = [[vdupq_n_s32(0); 4]; P];
        let mut weights = tile.weights;
        let (n_full, rest) = (tile.n_quads / 4, tile.n_quads % 4);
        for &tap in tile.taps {
            let mut pixels = [tile.input; P];
            for p in 0..P {
                pixels[p] = tile.input.add(tile.in_offsets[p] + tap);
            }
            for group in 0..n_full {
                let mut x = [vdupq_n_s8(0); P];
                for p in 0..P {
                    x[p] = signed(vld1q_u8(pixels[p].add(16 * group)));
                }
                add_products::<P, SPLIT>(&mut sums, &x, weights);
                weights = weights.add(64);
            }
            if rest > 0 {
                let mut x = [vdupq_n_s8(0); P];
                for p in 0..P {
                    x[p] = signed(load_quads(pixels[p].add(16 * n_full), rest));
                }
                // The weights of bytes that are not there are 0.
                add_products::<P, SPLIT>(&mut sums, &x, weights);
                weights = weights.add(64);
            }
        }
        let (range, bias, m) = (Range::new(tile.range), vld1q_s32(tile.bias), vld1q_f32(tile.multipliers));
        for p in 0..P {
            let [a, b, c, d] = sums[p];
            let acc = vaddq_s32(bias, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)));
            range.store([acc], [m], tile.out.add(tile.out_offsets[p]));
        }
    }
}

/// Adds the products of 16 bytes of every pixel with those of four channels to their sums.
///
/// # Safety
/// `weights` is valid for reads of 64 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_products<const P: usize, const SPLIT: bool>(
    sums: &mut [[int32x4_t; 4]; P],
    x: &[int8x16_t; P],
    weights: *const i8,
) {
    for c in 0..4 {
        // SAFETY: the caller vouches for it.
        let w = unsafe { vld1q_s8(weights.add(16 * c)) };
        for p in 0..P {
            let lower = vmull_s8(vget_low_s8(x[p]), vget_low_s8(w));
            sums[p][c] = if SPLIT {
                vpadalq_s16(vpadalq_s16(sums[p][c], lower), vmull_high_s8(x[p], w))
            } else {
                vpadalq_s16(sums[p][c], vmlal_high_s8(lower, x[p], w))
            };
        }
    }
}
