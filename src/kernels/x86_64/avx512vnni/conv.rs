//! Convolution, direct: up to 8 pixels times up to 64 output channels in registers.
//!
//! For each quad of input channels under each tap: a register of weights for each 16 output channels, then for each pixel a
//! broadcast of its four bytes and one `vpdpbusd` for each register of weights. 64 channels x 6 pixels take 24 accumulators, 4
//! weights and a broadcast: 29 of the 32 registers, and 10 loads for 24 dot products. `vpdpbusd` takes unsigned bytes from its
//! second operand and signed ones from its third, and only the third may be a broadcast from memory: hence weights in registers
//! and explicit broadcasts of pixels. Where the last register would be at most half full, 256-bit instructions take its place: they cost
//! half as much on cores that split 512-bit ones, and no more on others.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{Block, PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{Tile, TileFn, conv_rows};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;

const SCHEME: Scheme = Scheme { lanes: 16, max_registers: 4, pack_lanes: 4, halves: true, products: Products::Quads };

/// Pixels of a tile for blocks of so many registers.
const fn max_pixels(registers: usize) -> usize {
    match registers {
        4 => 6,
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
        // The first block is the widest.
        self.0.weights.blocks.first().map_or_else(String::new, |block| {
            let channels = 16 * block.registers - if block.has_half { 8 } else { 0 };
            format!("avx512vnni {}x{channels}", max_pixels(block.registers))
        })
    }
}

/// The kernel for tiles of so many pixels.
fn tile_fn(block: &Block, pixels: usize) -> TileFn {
    let (full, half) = (block.registers - usize::from(block.has_half), block.has_half);
    macro_rules! table {
        ($($n:literal $h:literal: $($p:literal)*;)*) => {
            match (full, half, pixels) {
                $($(($n, $h, $p) => tile::<$p, $n, $h> as TileFn,)*)*
                _ => unreachable!("a tile of {pixels} pixels for {block:?}"),
            }
        };
    }
    table! {
        0 true: 1 2 3 4 5 6 7 8;
        1 false: 1 2 3 4 5 6 7 8;
        1 true: 1 2 3 4 5 6 7 8;
        2 false: 1 2 3 4 5 6 7 8;
        2 true: 1 2 3 4 5 6 7 8;
        3 false: 1 2 3 4 5 6 7 8;
        3 true: 1 2 3 4 5 6;
        4 false: 1 2 3 4 5 6;
    }
}

/// `N` full registers of output channels and, with `H`, a half one.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const P: usize, const N: usize, const H: bool>(tile: &Tile<'_>) {
    let bytes_of_quad = 64 * (N + usize::from(H));
    // SAFETY: the walk over tiles vouches for every offset, for `n_quads` weights of the block under each tap, and for the lanes of
    // bias and multipliers.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); N]; P];
        let mut half = [_mm256_setzero_si256(); P];
        for n in 0..N {
            let bias = _mm512_loadu_si512(tile.bias.add(16 * n).cast());
            for acc in &mut acc {
                acc[n] = bias;
            }
        }
        if H {
            half = [_mm256_loadu_si256(tile.bias.add(16 * N).cast()); P];
        }
        let mut weights = tile.weights;
        for &tap in tile.taps {
            let mut pixels = [tile.input; P];
            for p in 0..P {
                pixels[p] = tile.input.add(tile.in_offsets[p] + tap);
            }
            for quad in 0..tile.n_quads {
                let mut w = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    w[n] = _mm512_load_si512(weights.add(64 * n).cast());
                }
                let mut w_half = _mm256_setzero_si256();
                if H {
                    w_half = _mm256_load_si256(weights.add(64 * N).cast());
                }
                for p in 0..P {
                    let x = _mm512_set1_epi32(pixels[p].add(4 * quad).cast::<i32>().read_unaligned());
                    for n in 0..N {
                        acc[p][n] = _mm512_dpbusd_epi32(acc[p][n], x, w[n]);
                    }
                    if H {
                        half[p] = _mm256_dpbusd_epi32(half[p], _mm512_castsi512_si256(x), w_half);
                    }
                }
                weights = weights.add(bytes_of_quad);
            }
        }
        if tile.is_plain {
            store::<P, N, H, true>(tile, &acc, &half);
        } else {
            store::<P, N, H, false>(tile, &acc, &half);
        }
    }
}

/// Requantises a tile and writes it. `PLAIN`: see [`PackedConv::is_plain`].
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn store<const P: usize, const N: usize, const H: bool, const PLAIN: bool>(
    tile: &Tile<'_>,
    acc: &[[__m512i; N]; P],
    half: &[__m256i; P],
) {
    let range = Range::<PLAIN>::new(tile.range);
    // SAFETY: multipliers have a lane for each lane of the block; pixels of the output have room for each of its channels.
    unsafe {
        let mut m = [_mm512_setzero_ps(); N];
        for n in 0..N {
            m[n] = _mm512_loadu_ps(tile.multipliers.add(16 * n));
        }
        // One packing instruction takes four registers: the channels of one pixel, or of two or four that have fewer.
        let in_pack = match N {
            1 => 4,
            2 => 2,
            _ => 1,
        };
        if N > 0 {
            for first in (0..P).step_by(in_pack) {
                let mut q = [_mm512_setzero_si512(); 4];
                for i in 0..in_pack {
                    for n in 0..N {
                        if first + i < P {
                            q[i * N + n] = range.scale(acc[first + i][n], m[n]);
                        }
                    }
                }
                let bytes = range.pack4(q[0], q[1], q[2], q[3]);
                let out = |i: usize| tile.out.add(tile.out_offsets[first + i]);
                match N {
                    1 => {
                        let bytes = quarters(bytes);
                        _mm_storeu_si128(out(0).cast(), _mm512_castsi512_si128(bytes));
                        if first + 1 < P {
                            _mm_storeu_si128(out(1).cast(), _mm512_extracti32x4_epi32::<1>(bytes));
                        }
                        if first + 2 < P {
                            _mm_storeu_si128(out(2).cast(), _mm512_extracti32x4_epi32::<2>(bytes));
                        }
                        if first + 3 < P {
                            _mm_storeu_si128(out(3).cast(), _mm512_extracti32x4_epi32::<3>(bytes));
                        }
                    }
                    2 => {
                        let bytes = halves(bytes);
                        _mm256_storeu_si256(out(0).cast(), _mm512_castsi512_si256(bytes));
                        if first + 1 < P {
                            _mm256_storeu_si256(out(1).cast(), _mm512_extracti64x4_epi64::<1>(bytes));
                        }
                    }
                    3 => {
                        let bytes = three_quarters(bytes);
                        _mm256_storeu_si256(out(0).cast(), _mm512_castsi512_si256(bytes));
                        _mm_storeu_si128(out(0).add(32).cast(), _mm512_extracti32x4_epi32::<2>(bytes));
                    }
                    _ => _mm512_storeu_si512(out(0).cast(), bytes),
                }
            }
        }
        if H {
            // Half registers of eight pixels are four whole ones.
            let m = _mm512_broadcast_f32x8(_mm256_loadu_ps(tile.multipliers.add(16 * N)));
            let mut q = [_mm512_setzero_si512(); 4];
            for i in 0..P.div_ceil(2) {
                let pair = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half[2 * i]), half[(2 * i + 1).min(P - 1)]);
                q[i] = range.scale(pair, m);
            }
            // Within each 128-bit group: four channels of pixels 0, 2, 4, 6 or 1, 3, 5, 7.
            let bytes = quarters(range.pack4(q[0], q[1], q[2], q[3]));
            let pairs = [
                _mm512_castsi512_si128(bytes),
                _mm512_extracti32x4_epi32::<1>(bytes),
                _mm512_extracti32x4_epi32::<2>(bytes),
                _mm512_extracti32x4_epi32::<3>(bytes),
            ];
            for p in 0..P {
                let out = tile.out.add(tile.out_offsets[p] + 16 * N);
                let eight = if p % 2 == 0 { pairs[p / 2] } else { _mm_unpackhi_epi64(pairs[p / 2], pairs[p / 2]) };
                _mm_storel_epi64(out.cast(), eight);
            }
        }
    }
}

/// Four bytes of each 128-bit group side by side: quarter `i` of the result is what register `i` was packed to.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(bytes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// The same for pairs of registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: __m512i) -> __m512i {
    _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), bytes)
}

/// The first twelve bytes of each 128-bit group.
#[inline]
#[target_feature(enable = "avx512f")]
fn three_quarters(bytes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0);
    _mm512_permutexvar_epi32(order, bytes)
}
