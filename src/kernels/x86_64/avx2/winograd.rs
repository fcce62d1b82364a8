//! 3x3 convolution after Winograd: see [`winograd`](crate::kernels::winograd).
//!
//! `vpmaddwd` sums the products over the channels.

use super::requantize::store_tile;
use crate::kernels::pack::{PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::Tile;
use crate::kernels::winograd::{POSITIONS, SIDE, Steps, Winograd};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Transforms the input under four output rows from `y` on: `[tile][position][channel]`.
///
/// # Safety
/// As [`TransformFn`](crate::kernels::winograd::TransformFn).
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn transform_rows(conv: &PackedConv, input: *const u8, y: usize, to: *mut i16) {
    let (layout, n_words) = (&conv.input, conv.input.pixel_stride);
    let origin = layout.offset(0, 0) - conv.lead;
    // Rows and columns that only pixels beyond the output would need are read from the last one that is there.
    let (last_row, last_column) = (conv.output.shape.h + 1, conv.output.shape.w + 1);
    let rows = [0, 1, 2, 3, 4, 5].map(|dy| origin + (y + dy).min(last_row) * layout.row_stride());
    for group in (0..n_words).step_by(16) {
        // A column of six rows, transformed.
        let column = |x: usize| {
            let at = x.min(last_column) * layout.pixel_stride + group;
            // SAFETY: 16 channels of a pixel of the input or its halo.
            let value = |row: usize| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(input.add(row + at).cast())) };
            transform(rows.map(value))
        };
        let (mut a, mut b) = (column(0), column(1));
        for x in (0..conv.output.shape.w).step_by(SIDE) {
            let (c, d, e, f) = (column(x + 2), column(x + 3), column(x + 4), column(x + 5));
            for row in 0..6 {
                let values = transform([a[row], b[row], c[row], d[row], e[row], f[row]]);
                for (col, value) in values.into_iter().enumerate() {
                    let at = (x / SIDE * POSITIONS + 6 * row + col) * n_words + group;
                    // SAFETY: the caller vouches for the room.
                    unsafe { _mm256_storeu_si256(to.add(at).cast(), value) };
                }
            }
            (a, b) = (e, f);
        }
    }
}

/// `B^T d` of six values:
///
/// ```text
/// 4  0 -5  0  1  0
/// 0 -4 -4  1  1  0
/// 0  4 -4 -1  1  0
/// 0 -2 -1  2  1  0
/// 0  2 -1 -2  1  0
/// 0  4  0 -5  0  1
/// ```
#[inline]
#[target_feature(enable = "avx2")]
fn transform([a, b, c, d, e, f]: [__m256i; 6]) -> [__m256i; 6] {
    let (ec, db) = (_mm256_sub_epi16(e, c), _mm256_sub_epi16(d, b));
    let db2 = _mm256_add_epi16(db, db);
    let ec4 = _mm256_sub_epi16(e, _mm256_slli_epi16::<2>(c));
    let db4 = _mm256_sub_epi16(d, _mm256_slli_epi16::<2>(b));
    [
        _mm256_add_epi16(_mm256_slli_epi16::<2>(_mm256_sub_epi16(a, c)), ec),
        _mm256_add_epi16(ec4, db4),
        _mm256_sub_epi16(ec4, db4),
        _mm256_add_epi16(ec, db2),
        _mm256_sub_epi16(ec, db2),
        _mm256_sub_epi16(_mm256_sub_epi16(f, d), _mm256_add_epi16(db2, db2)),
    ]
}

const SCHEME: Scheme = Scheme { lanes: 8, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Transformed };

/// [`Winograd`] with AVX2 alone.
#[derive(Debug)]
pub(super) struct Conv(Winograd);

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        Winograd::new(spec, input, output, SCHEME, 300, cache).map(Self)
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
        format!("avx2 4x4x{}", self.0.width())
    }
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn).
#[target_feature(enable = "avx2")]
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
            let weights = weights.add(position * n_pairs * 32 * N);
            let at = |tile: usize| {
                let at = tile * POSITIONS + position;
                (input.add(at * n_words).cast(), sums.add(at * 8 * N))
            };
            let mut tile = 0;
            while tile + 2 <= n {
                multiply_tiles::<2, N>(weights, n_pairs, [at(tile), at(tile + 1)]);
                tile += 2;
            }
            if tile < n {
                multiply_tiles::<1, N>(weights, n_pairs, [at(tile)]);
            }
        }
    }
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn), for one position of `P` tiles.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply_tiles<const P: usize, const N: usize>(weights: *const i8, n_pairs: usize, tiles: [(*const i32, *mut i32); P]) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); N]; P];
        let mut weights = weights;
        for pair in 0..n_pairs {
            let mut x = [_mm256_setzero_si256(); P];
            for p in 0..P {
                x[p] = _mm256_set1_epi32(tiles[p].0.add(pair).read());
            }
            for n in 0..N {
                let w = _mm256_load_si256(weights.add(32 * n).cast());
                for p in 0..P {
                    acc[p][n] = _mm256_add_epi32(acc[p][n], _mm256_madd_epi16(x[p], w));
                }
            }
            weights = weights.add(32 * N);
        }
        for p in 0..P {
            for n in 0..N {
                _mm256_store_si256(tiles[p].1.add(8 * n).cast(), acc[p][n]);
            }
        }
    }
}

/// `A^T m` of six sums, each row without the power of two that its values have in common:
///
/// ```text
/// 1 4  4 1  1 0
/// 0 2 -2 1 -1 0   x 2
/// 0 1  1 1  1 0   x 4
/// 0 1 -1 2 -2 1   x 4
/// ```
#[inline]
#[target_feature(enable = "avx2")]
fn gather([a, b, c, d, e, f]: [__m256i; 6]) -> [__m256i; 4] {
    let (b, c) = (_mm256_add_epi32(b, c), _mm256_sub_epi32(b, c));
    let (d, e) = (_mm256_add_epi32(d, e), _mm256_sub_epi32(d, e));
    [
        _mm256_add_epi32(_mm256_add_epi32(a, d), _mm256_slli_epi32::<2>(b)),
        _mm256_add_epi32(_mm256_add_epi32(c, c), e),
        _mm256_add_epi32(b, d),
        _mm256_add_epi32(_mm256_add_epi32(c, f), _mm256_add_epi32(e, e)),
    ]
}

/// # Safety
/// As [`FinishFn`](crate::kernels::winograd::FinishFn).
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn finish<const N: usize>(
    tile: &mut Tile<'_>,
    sums: *const i32,
    (rows, columns): (usize, usize),
    (row_stride, pixel_stride): (usize, usize),
) {
    let shifts = [3, 2, 1, 1];
    let ninth = _mm256_set1_epi32(0x38E3_8E39);
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut gathered = [[[MaybeUninit::<__m256i>::uninit(); 6]; SIDE]; N];
        for n in 0..N {
            for x in 0..6 {
                let sum = |y: usize| _mm256_load_si256(sums.add(((6 * y + x) * N + n) * 8).cast());
                let column = gather([sum(0), sum(1), sum(2), sum(3), sum(4), sum(5)]);
                for y in 0..SIDE {
                    gathered[n][y][x].write(column[y]);
                }
            }
        }
        let first = tile.out_offsets[0];
        for y in 0..rows {
            let mut acc = [[_mm256_setzero_si256(); N]; SIDE];
            for n in 0..N {
                let bias = _mm256_loadu_si256(tile.bias.add(8 * n).cast());
                let row = gathered[n][y].map(|sum| sum.assume_init());
                for (x, sum) in gather(row).into_iter().enumerate() {
                    let shift = _mm256_set1_epi32(shifts[y] + shifts[x]);
                    let product = _mm256_srav_epi32(_mm256_mullo_epi32(sum, ninth), shift);
                    acc[x][n] = _mm256_add_epi32(product, bias);
                }
            }
            for x in 0..SIDE {
                tile.out_offsets[x] = first + y * row_stride + x * pixel_stride;
            }
            if columns == SIDE {
                store_tile(tile, &acc);
            } else {
                for x in 0..columns {
                    tile.out_offsets[0] = first + y * row_stride + x * pixel_stride;
                    store_tile(tile, &[acc[x]]);
                }
            }
        }
        tile.out_offsets[0] = first;
    }
}
