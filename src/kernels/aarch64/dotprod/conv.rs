//! Convolution, direct: up to 8 pixels times up to 16 output channels in registers.
//!
//! A load brings 16 input channels of a pixel, four quads; one `eor` makes them signed. For each quad: a register of weights for
//! each four output channels, and for each pixel one `sdot` by element for each register of weights. 5 pixels x 16 channels take 20
//! accumulators and 5 pixels, which leaves registers for weights that are loaded ahead. 80 `sdot` go with 21 loads and 5 `eor`, each
//! of which takes the place of a `sdot`.

use super::sdot_lane;
use crate::kernels::aarch64::neon::requantize::{Range, load_quads};
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{Tile, TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::aarch64::*;

const SCHEME: Scheme = Scheme { lanes: 4, max_registers: 4, pack_lanes: 4, halves: false, products: Products::SignedQuads };

/// Pixels of a tile for blocks of so many times four channels.
const fn max_pixels(registers: usize) -> usize {
    match registers {
        4 => 5,
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
        format!("dotprod {}x{}", max_pixels(widest), 4 * widest)
    }
}

/// The kernel for tiles of so many pixels.
fn tile_fn(block: &Block, pixels: usize) -> TileFn {
    macro_rules! table {
        ($($n:literal: $($p:literal)*;)*) => {
            match (block.registers, pixels) {
                $($(($n, $p) => tile::<$p, $n> as TileFn,)*)*
                _ => unreachable!("a tile of {pixels} pixels for {block:?}"),
            }
        };
    }
    table! { 1: 1 2 3 4 5 6 7 8; 2: 1 2 3 4 5 6 7 8; 3: 1 2 3 4 5 6; 4: 1 2 3 4 5; }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const P: usize, const N: usize>(tile: &Tile<'_>) {
    // SAFETY: the walk over tiles vouches for every offset, for `n_quads` weights of the block under each run of taps, and for the
    // lanes of bias and multipliers.
    unsafe {
        let sign = vdupq_n_u8(0x80);
        let signed = |bytes| vreinterpretq_s8_u8(veorq_u8(bytes, sign));
        let mut acc = [[vdupq_n_s32(0); N]; P];
        for n in 0..N {
            let bias = vld1q_s32(tile.bias.add(4 * n));
            for acc in &mut acc {
                acc[n] = bias;
            }
        }
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
                add_quad::<0, P, N>(&mut acc, &x, weights);
                add_quad::<1, P, N>(&mut acc, &x, weights.add(16 * N));
                add_quad::<2, P, N>(&mut acc, &x, weights.add(32 * N));
                add_quad::<3, P, N>(&mut acc, &x, weights.add(48 * N));
                weights = weights.add(64 * N);
            }
            if rest > 0 {
                let mut x = [vdupq_n_s8(0); P];
                for p in 0..P {
                    x[p] = signed(load_quads(pixels[p].add(16 * n_full), rest));
                }
                add_quad::<0, P, N>(&mut acc, &x, weights);
                if rest > 1 {
                    add_quad::<1, P, N>(&mut acc, &x, weights.add(16 * N));
                }
                if rest > 2 {
                    add_quad::<2, P, N>(&mut acc, &x, weights.add(32 * N));
                }
                weights = weights.add(16 * N * rest);
            }
        }
        let range = Range::new(tile.range);
        let mut m = [vdupq_n_f32(0.0); N];
        for n in 0..N {
            m[n] = vld1q_f32(tile.multipliers.add(4 * n));
        }
        for p in 0..P {
            range.store(acc[p], m, tile.out.add(tile.out_offsets[p]));
        }
    }
}

/// Adds the products of quad `LANE` of every pixel with its weights.
///
/// # Safety
/// `weights` is valid for reads of `16 N` bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_quad<const LANE: usize, const P: usize, const N: usize>(
    acc: &mut [[int32x4_t; N]; P],
    x: &[int8x16_t; P],
    weights: *const i8,
) {
    for n in 0..N {
        // SAFETY: the caller vouches for it.
        let w = unsafe { vld1q_s8(weights.add(16 * n)) };
        for p in 0..P {
            acc[p][n] = sdot_lane::<LANE>(acc[p][n], w, x[p]);
        }
    }
}
