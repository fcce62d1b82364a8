//! Convolution, direct: up to 6 pixels times up to 32 output channels in registers.
//!
//! As on [`avx512vnni`](crate::kernels::x86_64::avx512vnni), with registers of 8 lanes. 32 channels x 3 pixels take 12 accumulators, a weight and
//! three spread pixels: all 16 registers, and 7 loads for 12 dot products.

use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};

const SCHEME: Scheme = Scheme { lanes: 8, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Quads };

/// Pixels of a tile for blocks of so many registers.
const fn max_pixels(registers: usize) -> usize {
    match registers {
        1 => 6,
        2 => 4,
        _ => 3,
    }
}

/// Any convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Conv(PackedConv);

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        PackedConv::new(spec, input, output, SCHEME, cache).map(Self)
    }

    /// # Safety
    /// The CPU has what the tiles need.
    pub(super) unsafe fn rows_with(
        &self,
        tile_fn: impl Fn(&Block, usize) -> TileFn,
        inputs: &[&[u8]],
        first: usize,
        out: &mut [u8],
    ) {
        let n_rows = check_buffers([(inputs[0], &self.0.input)], first, out, &self.0.output);
        // SAFETY: the caller vouches for the CPU; the buffers were checked above.
        unsafe { conv_rows(&self.0, max_pixels, tile_fn, (inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr())) };
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        // SAFETY: `Kernels` vouches for the CPU.
        unsafe { self.rows_with(vex::tile_fn, inputs, first, out) };
    }

    fn label(&self) -> String {
        // The first block is the widest.
        let registers = self.0.weights.blocks.first().map_or(0, |block| block.registers);
        format!("avxvnni {}x{}", max_pixels(registers), 8 * registers)
    }
}

/// `tile_fn` for one of the two encodings of the dot product.
macro_rules! tiles {
    ($encoding:ident, $features:literal, $dot:ident) => {
        pub(super) mod $encoding {
            use crate::kernels::pack::Block;
            use crate::kernels::tiles::{Tile, TileFn};
            use crate::kernels::x86_64::avx2::requantize::store_tile;
            use std::arch::x86_64::*;

            /// The kernel for tiles of so many pixels.
            pub(in super::super) fn tile_fn(block: &Block, pixels: usize) -> TileFn {
                match (block.registers, pixels) {
                    (1, 1) => tile::<1, 1>,
                    (1, 2) => tile::<2, 1>,
                    (1, 3) => tile::<3, 1>,
                    (1, 4) => tile::<4, 1>,
                    (1, 5) => tile::<5, 1>,
                    (1, 6) => tile::<6, 1>,
                    (2, 1) => tile::<1, 2>,
                    (2, 2) => tile::<2, 2>,
                    (2, 3) => tile::<3, 2>,
                    (2, 4) => tile::<4, 2>,
                    (3, 1) => tile::<1, 3>,
                    (3, 2) => tile::<2, 3>,
                    (3, 3) => tile::<3, 3>,
                    (4, 1) => tile::<1, 4>,
                    (4, 2) => tile::<2, 4>,
                    (4, 3) => tile::<3, 4>,
                    _ => unreachable!("a tile of {pixels} pixels for {block:?}"),
                }
            }

            /// # Safety
            /// As [`TileFn`].
            #[target_feature(enable = $features)]
            unsafe fn tile<const P: usize, const N: usize>(tile: &Tile<'_>) {
                // SAFETY: the walk over tiles vouches for every offset, for `n_quads` weights of the block under each tap, and for
                // the lanes of the bias.
                unsafe {
                    let mut acc = [[_mm256_setzero_si256(); N]; P];
                    for n in 0..N {
                        let bias = _mm256_loadu_si256(tile.bias.add(8 * n).cast());
                        for acc in &mut acc {
                            acc[n] = bias;
                        }
                    }
                    let mut weights = tile.weights;
                    for &tap in tile.taps {
                        let mut pixels = [tile.input; P];
                        for p in 0..P {
                            pixels[p] = tile.input.add(tile.in_offsets[p] + tap);
                        }
                        for quad in 0..tile.n_quads {
                            let mut x = [_mm256_setzero_si256(); P];
                            for p in 0..P {
                                x[p] = _mm256_set1_epi32(pixels[p].add(4 * quad).cast::<i32>().read_unaligned());
                            }
                            for n in 0..N {
                                let w = _mm256_load_si256(weights.add(32 * n).cast());
                                for p in 0..P {
                                    acc[p][n] = $dot(acc[p][n], x[p], w);
                                }
                            }
                            weights = weights.add(32 * N);
                        }
                    }
                    store_tile(tile, &acc);
                }
            }
        }
    };
}

tiles!(vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
#[cfg(test)]
tiles!(evex, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
