//! 3x3 convolution after Winograd: see [`avx2::winograd`](crate::kernels::x86_64::avx2::winograd), which transforms the input.
//!
//! `vpdpwssd` multiplies 32 pairs of words where `vpdpbusd` multiplies 64 of bytes, for a quarter of the products. 64 channels x 6
//! tiles take 24 accumulators, 4 weights and a broadcast.

use super::conv::store;
use crate::kernels::pack::{PackCache, Products, Scheme};
use crate::kernels::tiles::Tile;
use crate::kernels::winograd::{POSITIONS, SIDE, Steps, Winograd};
use crate::kernels::x86_64::avx2::winograd::transform_rows;
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

const SCHEME: Scheme = Scheme { lanes: 16, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Transformed };

/// See [`Winograd::new`].
const MAX_PERCENT: usize = 140;

/// Tiles that share the weights in registers.
const MAX_TILES: usize = 6;

/// [`Winograd`] with registers of 16 lanes.
#[derive(Debug)]
pub(super) struct Conv(Winograd);

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        Winograd::new(spec, input, output, SCHEME, MAX_PERCENT, cache).map(Self)
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let steps = |registers: usize| match registers {
            1 => Steps { multiply: multiply::<1>, finish: finish::<1> },
            2 => Steps { multiply: multiply::<2>, finish: finish::<2> },
            3 => Steps { multiply: multiply::<3>, finish: finish::<3> },
            _ => Steps { multiply: multiply::<4>, finish: finish::<4> },
        };
        // SAFETY: `Kernels` vouches for the CPU.
        unsafe { self.0.rows(transform_rows, steps, inputs, first, out) };
    }

    fn rows_together(&self) -> usize {
        SIDE
    }

    fn label(&self) -> String {
        format!("avx512vnni 4x4x{}", self.0.width())
    }
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply<const N: usize>(
    weights: *const i8,
    n_pairs: usize,
    (input, n_words): (*const i16, usize),
    n: usize,
    sums: *mut i32,
) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        for position in 0..POSITIONS {
            let weights = weights.add(position * n_pairs * 64 * N);
            let mut first = 0;
            while first < n {
                let input = input.add((first * POSITIONS + position) * n_words);
                let sums = sums.add((first * POSITIONS + position) * 16 * N);
                let input = (input, n_words);
                match n - first {
                    1 => multiply_tiles::<1, N>(weights, n_pairs, input, sums),
                    2 => multiply_tiles::<2, N>(weights, n_pairs, input, sums),
                    3 => multiply_tiles::<3, N>(weights, n_pairs, input, sums),
                    4 => multiply_tiles::<4, N>(weights, n_pairs, input, sums),
                    5 => multiply_tiles::<5, N>(weights, n_pairs, input, sums),
                    _ => multiply_tiles::<MAX_TILES, N>(weights, n_pairs, input, sums),
                }
                first += MAX_TILES;
            }
        }
    }
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn), for one position of `P` tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply_tiles<const P: usize, const N: usize>(
    weights: *const i8,
    n_pairs: usize,
    (input, n_words): (*const i16, usize),
    sums: *mut i32,
) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); N]; P];
        let mut inputs = [input.cast::<i32>(); P];
        for p in 0..P {
            inputs[p] = input.add(p * POSITIONS * n_words).cast();
        }
        let mut weights = weights;
        for pair in 0..n_pairs {
            let mut w = [_mm512_setzero_si512(); N];
            for n in 0..N {
                w[n] = _mm512_load_si512(weights.add(64 * n).cast());
            }
            for p in 0..P {
                let x = _mm512_set1_epi32(inputs[p].add(pair).read());
                for n in 0..N {
                    acc[p][n] = dot(acc[p][n], x, w[n]);
                }
            }
            weights = weights.add(64 * N);
        }
        for p in 0..P {
            for n in 0..N {
                _mm512_store_si512(sums.add((p * POSITIONS * N + n) * 16).cast(), acc[p][n]);
            }
        }
    }
}

/// `_mm512_dpwssd_epi32`, which LLVM 22 takes apart into a multiplication and an addition where sums are long chains: that is right
/// where latency counts and not where throughput does.
///
/// # Safety
/// The CPU has AVX-512 VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot(acc: __m512i, x: __m512i, w: __m512i) -> __m512i {
    let mut acc = acc;
    // SAFETY: the caller vouches for the CPU; nothing but registers is touched.
    unsafe {
        asm!(
            "vpdpwssd {acc}, {x}, {w}",
            acc = inout(zmm_reg) acc,
            x = in(zmm_reg) x,
            w = in(zmm_reg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// As `avx2::winograd::gather`.
#[inline]
#[target_feature(enable = "avx512f")]
fn gather([a, b, c, d, e, f]: [__m512i; 6]) -> [__m512i; SIDE] {
    let (b, c) = (_mm512_add_epi32(b, c), _mm512_sub_epi32(b, c));
    let (d, e) = (_mm512_add_epi32(d, e), _mm512_sub_epi32(d, e));
    [
        _mm512_add_epi32(_mm512_add_epi32(a, d), _mm512_slli_epi32::<2>(b)),
        _mm512_add_epi32(_mm512_add_epi32(c, c), e),
        _mm512_add_epi32(b, d),
        _mm512_add_epi32(_mm512_add_epi32(c, f), _mm512_add_epi32(e, e)),
    ]
}

/// # Safety
/// As [`FinishFn`](crate::kernels::winograd::FinishFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn finish<const N: usize>(
    tile: &mut Tile<'_>,
    sums: *const i32,
    (rows, columns): (usize, usize),
    (row_stride, pixel_stride): (usize, usize),
) {
    let shifts = [3, 2, 1, 1];
    let ninth = _mm512_set1_epi32(0x38E3_8E39);
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut gathered = [[[MaybeUninit::<__m512i>::uninit(); 6]; SIDE]; N];
        for n in 0..N {
            for x in 0..6 {
                let sum = |y: usize| _mm512_load_si512(sums.add(((6 * y + x) * N + n) * 16).cast());
                let column = gather([sum(0), sum(1), sum(2), sum(3), sum(4), sum(5)]);
                for y in 0..SIDE {
                    gathered[n][y][x].write(column[y]);
                }
            }
        }
        let first = tile.out_offsets[0];
        for y in 0..rows {
            let mut acc = [[_mm512_setzero_si512(); N]; SIDE];
            for n in 0..N {
                let bias = _mm512_loadu_si512(tile.bias.add(16 * n).cast());
                let row = gathered[n][y].map(|sum| sum.assume_init());
                for (x, sum) in gather(row).into_iter().enumerate() {
                    let shift = _mm512_set1_epi32(shifts[y] + shifts[x]);
                    let product = _mm512_srav_epi32(_mm512_mullo_epi32(sum, ninth), shift);
                    acc[x][n] = _mm512_add_epi32(product, bias);
                }
            }
            for x in 0..SIDE {
                tile.out_offsets[x] = first + y * row_stride + x * pixel_stride;
            }
            match (columns == SIDE, tile.is_plain) {
                (true, true) => store::<SIDE, N, false, true>(tile, &acc, &[_mm256_setzero_si256(); SIDE]),
                (true, false) => store::<SIDE, N, false, false>(tile, &acc, &[_mm256_setzero_si256(); SIDE]),
                (false, _) => {
                    for x in 0..columns {
                        tile.out_offsets[0] = first + y * row_stride + x * pixel_stride;
                        store::<1, N, false, false>(tile, &[acc[x]], &[_mm256_setzero_si256()]);
                    }
                }
            }
        }
        tile.out_offsets[0] = first;
    }
}
