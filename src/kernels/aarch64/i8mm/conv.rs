//! Convolution, direct: up to 8 pixels times up to 16 output channels in registers, in blocks of 2 x 2.
//!
//! `usmmla` multiplies 8 input channels of two pixels with those of two output channels: 32 products, twice as many as `sdot`, and
//! it takes unsigned activations. Two loads bring 16 channels of two pixels; `zip1` and `zip2` make of them the lower and the upper
//! eight of both. 4 pixels x 16 channels take 16 accumulators and 4 registers of pixels, which leaves registers for weights that are
//! loaded ahead. 32 `usmmla` go with 20 loads and 4 `zip`, each of which takes the place of a `usmmla`.

use super::usmmla;
use crate::kernels::aarch64::neon::requantize::{Range, load_quads};
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{Tile, TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::aarch64::*;

const SCHEME: Scheme = Scheme { lanes: 4, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Octets };

/// Pixels of a tile for blocks of so many times four channels.
const fn max_pixels(registers: usize) -> usize {
    match registers {
        4 => 4,
        3 => 6,
        _ => 8,
    }
}

/// Any convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Conv(PackedConv);

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        PackedConv::new(spec, input, output, SCHEME, cache).map(Self)
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let n_rows = check_buffers([(inputs[0], &self.0.input)], first, out, &self.0.output);
        // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above.
        unsafe { conv_rows(&self.0, max_pixels, tile_fn, (inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr())) };
    }

    fn label(&self) -> String {
        let widest = self.0.weights.blocks.iter().map(|block| block.registers).max().unwrap_or(0);
        format!("i8mm {}x{}", max_pixels(widest), 4 * widest)
    }
}

/// The kernel for tiles of so many pixels. An odd pixel is computed twice.
fn tile_fn(block: &Block, pixels: usize) -> TileFn {
    macro_rules! table {
        ($($n:literal: $($p:literal $pairs:literal)*;)*) => {
            match (block.registers, pixels) {
                $($(($n, $p) => tile::<$p, $pairs, $n> as TileFn,)*)*
                _ => unreachable!("a tile of {pixels} pixels for {block:?}"),
            }
        };
    }
    table! {
        1: 1 1 2 1 3 2 4 2 5 3 6 3 7 4 8 4;
        2: 1 1 2 1 3 2 4 2 5 3 6 3 7 4 8 4;
        3: 1 1 2 1 3 2 4 2 5 3 6 3;
        4: 1 1 2 1 3 2 4 2;
    }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "neon,i8mm")]
unsafe fn tile<const P: usize, const PAIRS: usize, const N: usize>(tile: &Tile<'_>) {
    // SAFETY: the walk over tiles vouches for every offset, for the weights of the block under each run of taps, and for the lanes of
    // bias and multipliers.
    unsafe {
        // Of each pair and each four channels: channels 0 and 1 of both pixels, channels 2 and 3 of both pixels.
        let mut acc = [[[vdupq_n_s32(0); 2]; N]; PAIRS];
        for n in 0..N {
            let bias = vreinterpretq_s64_s32(vld1q_s32(tile.bias.add(4 * n)));
            let (low, high) = (vzip1q_s64(bias, bias), vzip2q_s64(bias, bias));
            for acc in &mut acc {
                acc[n] = [vreinterpretq_s32_s64(low), vreinterpretq_s32_s64(high)];
            }
        }
        let mut weights = tile.weights;
        let (n_full, rest) = (tile.n_quads / 4, tile.n_quads % 4);
        for &tap in tile.taps {
            let mut pixels = [[tile.input; 2]; PAIRS];
            for i in 0..PAIRS {
                let offset = |p: usize| tile.in_offsets[if p < P { p } else { P - 1 }] + tap;
                pixels[i] = [tile.input.add(offset(2 * i)), tile.input.add(offset(2 * i + 1))];
            }
            for group in 0..n_full {
                let mut x = [[vdupq_n_u8(0); 2]; PAIRS];
                for i in 0..PAIRS {
                    x[i] = halves(vld1q_u8(pixels[i][0].add(16 * group)), vld1q_u8(pixels[i][1].add(16 * group)));
                }
                for half in 0..2 {
                    weights = add_products(&mut acc, x.map(|x| x[half]), weights);
                }
            }
            if rest > 0 {
                let mut x = [[vdupq_n_u8(0); 2]; PAIRS];
                for i in 0..PAIRS {
                    let [a, b] = pixels[i].map(|pixel| pixel.add(16 * n_full));
                    x[i] = halves(load_quads(a, rest), load_quads(b, rest));
                }
                weights = add_products(&mut acc, x.map(|x| x[0]), weights);
                if rest > 2 {
                    weights = add_products(&mut acc, x.map(|x| x[1]), weights);
                }
            }
        }
        let range = Range::new(tile.range);
        let mut m = [vdupq_n_f32(0.0); N];
        for n in 0..N {
            m[n] = vld1q_f32(tile.multipliers.add(4 * n));
        }
        for p in 0..P {
            let mut sums = [vdupq_n_s32(0); N];
            for n in 0..N {
                let [low, high] = acc[p / 2][n].map(|acc| vreinterpretq_s64_s32(acc));
                sums[n] = vreinterpretq_s32_s64(if p % 2 == 0 { vzip1q_s64(low, high) } else { vzip2q_s64(low, high) });
            }
            range.store(sums, m, tile.out.add(tile.out_offsets[p]));
        }
    }
}

/// The lower eight bytes of both, and the upper eight of both.
#[inline]
#[target_feature(enable = "neon")]
fn halves(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
    let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
    [vreinterpretq_u8_u64(vzip1q_u64(a, b)), vreinterpretq_u8_u64(vzip2q_u64(a, b))]
}

/// Adds the products of eight channels of every pair with their weights; gives the weights that follow.
///
/// # Safety
/// `weights` is valid for reads of `32 N` bytes.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn add_products<const PAIRS: usize, const N: usize>(
    acc: &mut [[[int32x4_t; 2]; N]; PAIRS],
    x: [uint8x16_t; PAIRS],
    weights: *const i8,
) -> *const i8 {
    for n in 0..N {
        for two in 0..2 {
            // SAFETY: the caller vouches for it.
            let w = unsafe { vld1q_s8(weights.add(32 * n + 16 * two)) };
            for i in 0..PAIRS {
                acc[i][n][two] = usmmla(acc[i][n][two], x[i], w);
            }
        }
    }
    // SAFETY: as above.
    unsafe { weights.add(32 * N) }
}
