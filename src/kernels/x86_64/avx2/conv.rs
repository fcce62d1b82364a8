//! Convolution, direct: a few pixels times up to 32 output channels in registers, exact for every input.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds neighbours in 16 bits, where they saturate; `vpmaddwd` multiplies
//! words and adds neighbours in 32 bits, where they fit. Where no pair of weights of a quad of input channels can saturate
//! for any input (proved when the weights are packed), a register takes `vpmaddubsw`, a `vpmaddwd` with ones and an
//! addition; else the pixel's even and odd bytes are words of their own and a register takes two `vpmaddwd` and two
//! additions. Both need two multiplications for 32 products, so bytes save additions and loads.
//!
//! An addition takes one cycle, so few accumulators hide it; what counts is that weights and spread pixels are used often.
//! 32 channels x 2 pixels take 8 accumulators, 4 registers of even and odd bytes and a weight.
//!
//! Most 3x3 convolutions of stride 1 go to [`winograd`](super::winograd) instead.

use super::requantize::store_tile;
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{Tile, TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;

const SCHEME: Scheme = Scheme { lanes: 8, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Pairs };

/// Pixels of a tile for blocks of so many registers.
const fn max_pixels(registers: usize) -> usize {
    match registers {
        1 => 4,
        2 => 3,
        _ => 2,
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
        // The first block is the widest.
        let registers = self.0.weights.blocks.first().map_or(0, |block| block.registers);
        format!("avx2 {}x{}", max_pixels(registers), 8 * registers)
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
    table! { 1: 1 2 3 4; 2: 1 2 3; 3: 1 2; 4: 1 2; }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2")]
unsafe fn tile<const P: usize, const N: usize>(tile: &Tile<'_>) {
    // SAFETY: the walk over tiles vouches for every offset, for a quad of weights of the block under each, bytes first, and for the
    // lanes of the bias.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); N]; P];
        for n in 0..N {
            let bias = _mm256_loadu_si256(tile.bias.add(8 * n).cast());
            for acc in &mut acc {
                acc[n] = bias;
            }
        }
        let mut pixels = [tile.input; P];
        for p in 0..P {
            pixels[p] = tile.input.add(tile.in_offsets[p]);
        }
        let (bytes, words) = tile.taps.split_at(tile.n_bytes);
        let mut weights = tile.weights;
        let ones = _mm256_set1_epi16(1);
        for &tap in bytes {
            let mut x = [_mm256_setzero_si256(); P];
            for p in 0..P {
                x[p] = _mm256_set1_epi32(pixels[p].add(tap).cast::<i32>().read_unaligned());
            }
            for n in 0..N {
                let w = _mm256_load_si256(weights.add(32 * n).cast());
                for p in 0..P {
                    let pairs = _mm256_maddubs_epi16(x[p], w);
                    acc[p][n] = _mm256_add_epi32(acc[p][n], _mm256_madd_epi16(pairs, ones));
                }
            }
            weights = weights.add(32 * N);
        }
        let low = _mm256_set1_epi16(0xFF);
        for &tap in words {
            let (mut even, mut odd) = ([_mm256_setzero_si256(); P], [_mm256_setzero_si256(); P]);
            for p in 0..P {
                let x = _mm256_set1_epi32(pixels[p].add(tap).cast::<i32>().read_unaligned());
                (even[p], odd[p]) = (_mm256_and_si256(x, low), _mm256_srli_epi16::<8>(x));
            }
            for n in 0..N {
                let w = _mm256_load_si256(weights.add(32 * n).cast());
                for p in 0..P {
                    acc[p][n] = _mm256_add_epi32(acc[p][n], _mm256_madd_epi16(even[p], w));
                }
            }
            for n in 0..N {
                let w = _mm256_load_si256(weights.add(32 * (N + n)).cast());
                for p in 0..P {
                    acc[p][n] = _mm256_add_epi32(acc[p][n], _mm256_madd_epi16(odd[p], w));
                }
            }
            weights = weights.add(64 * N);
        }
        store_tile(tile, &acc);
    }
}
