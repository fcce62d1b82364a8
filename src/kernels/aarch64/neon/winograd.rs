//! 3x3 convolution after Winograd: see [`winograd`](crate::kernels::winograd).
//!
//! A word of the input times a register of weights, for four output channels, is one `smlal` by element: 4 products, a quarter as many
//! as in the direct way, which takes 3 instructions for 16. 4 tiles x 16 channels take 16 accumulators; 64 `smlal` go with 12 loads.

use super::requantize::Range;
use crate::kernels::pack::{PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::Tile;
use crate::kernels::winograd::{POSITIONS, SIDE, Steps, Winograd};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::aarch64::*;

const SCHEME: Scheme =
    Scheme { lanes: 4, max_registers: 4, pack_lanes: 4, halves: false, products: Products::TransformedSingles };

/// See [`Winograd::new`].
const MAX_PERCENT: usize = 140;

/// Tiles that share the weights in registers.
const MAX_TILES: usize = 4;

/// [`Winograd`] with registers of 4 lanes.
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
        format!("neon 4x4x{}", self.0.width())
    }
}

/// # Safety
/// As [`TransformFn`](crate::kernels::winograd::TransformFn).
#[target_feature(enable = "neon")]
unsafe fn transform_rows(conv: &PackedConv, input: *const u8, y: usize, to: *mut i16) {
    let (layout, n_words) = (&conv.input, conv.input.pixel_stride);
    let origin = layout.offset(0, 0) - conv.lead;
    // Rows and columns that only pixels beyond the output would need are read from the last one that is there.
    let (last_row, last_column) = (conv.output.shape.h + 1, conv.output.shape.w + 1);
    let rows = [0, 1, 2, 3, 4, 5].map(|dy| origin + (y + dy).min(last_row) * layout.row_stride());
    for group in (0..n_words).step_by(8) {
        // A column of six rows, transformed.
        let column = |x: usize| {
            let at = x.min(last_column) * layout.pixel_stride + group;
            // SAFETY: 8 channels of a pixel of the input or its halo.
            let value = |row: usize| vreinterpretq_s16_u16(vmovl_u8(unsafe { vld1_u8(input.add(row + at)) }));
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
                    unsafe { vst1q_s16(to.add(at), value) };
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
#[target_feature(enable = "neon")]
fn transform([a, b, c, d, e, f]: [int16x8_t; 6]) -> [int16x8_t; 6] {
    let (ec, db) = (vsubq_s16(e, c), vsubq_s16(d, b));
    let db2 = vaddq_s16(db, db);
    let ec4 = vsubq_s16(e, vshlq_n_s16::<2>(c));
    let db4 = vsubq_s16(d, vshlq_n_s16::<2>(b));
    [
        vaddq_s16(vshlq_n_s16::<2>(vsubq_s16(a, c)), ec),
        vaddq_s16(ec4, db4),
        vsubq_s16(ec4, db4),
        vaddq_s16(ec, db2),
        vsubq_s16(ec, db2),
        vsubq_s16(vsubq_s16(f, d), vaddq_s16(db2, db2)),
    ]
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn).
#[target_feature(enable = "neon")]
unsafe fn multiply<const N: usize>(
    weights: *const i8,
    n_pairs: usize,
    (input, n_words): (*const i16, usize),
    n: usize,
    sums: *mut i32,
) {
    // Channels come in whole quads.
    let n_quads = n_pairs / 2;
    // SAFETY: the caller vouches for all of it.
    unsafe {
        for position in 0..POSITIONS {
            let weights = weights.cast::<i16>().add(position * n_quads * 16 * N);
            let at = |tile: usize| {
                let at = tile * POSITIONS + position;
                (input.add(at * n_words), sums.add(at * 4 * N))
            };
            let mut tile = 0;
            while tile + MAX_TILES <= n {
                multiply_tiles::<MAX_TILES, N>(weights, n_quads, [at(tile), at(tile + 1), at(tile + 2), at(tile + 3)]);
                tile += MAX_TILES;
            }
            while tile < n {
                multiply_tiles::<1, N>(weights, n_quads, [at(tile)]);
                tile += 1;
            }
        }
    }
}

/// # Safety
/// As [`MultiplyFn`](crate::kernels::winograd::MultiplyFn), for one position of `P` tiles.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn multiply_tiles<const P: usize, const N: usize>(
    weights: *const i16,
    n_quads: usize,
    tiles: [(*const i16, *mut i32); P],
) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); N]; P];
        for quad in 0..n_quads {
            let mut x = [vdup_n_s16(0); P];
            for p in 0..P {
                x[p] = vld1_s16(tiles[p].0.add(4 * quad));
            }
            let weights = weights.add(16 * N * quad);
            add_channel::<0, P, N>(&mut acc, &x, weights);
            add_channel::<1, P, N>(&mut acc, &x, weights.add(4 * N));
            add_channel::<2, P, N>(&mut acc, &x, weights.add(8 * N));
            add_channel::<3, P, N>(&mut acc, &x, weights.add(12 * N));
        }
        for p in 0..P {
            for n in 0..N {
                vst1q_s32(tiles[p].1.add(4 * n), acc[p][n]);
            }
        }
    }
}

/// Adds the products of channel `LANE` of every tile with its weights.
///
/// # Safety
/// `weights` is valid for reads of `4 N` words.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_channel<const LANE: i32, const P: usize, const N: usize>(
    acc: &mut [[int32x4_t; N]; P],
    x: &[int16x4_t; P],
    weights: *const i16,
) {
    for n in 0..N {
        // SAFETY: the caller vouches for it.
        let w = unsafe { vld1_s16(weights.add(4 * n)) };
        for p in 0..P {
            acc[p][n] = vmlal_lane_s16::<LANE>(acc[p][n], w, x[p]);
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
#[target_feature(enable = "neon")]
fn gather([a, b, c, d, e, f]: [int32x4_t; 6]) -> [int32x4_t; 4] {
    let (b, c) = (vaddq_s32(b, c), vsubq_s32(b, c));
    let (d, e) = (vaddq_s32(d, e), vsubq_s32(d, e));
    [
        vaddq_s32(vaddq_s32(a, d), vshlq_n_s32::<2>(b)),
        vaddq_s32(vaddq_s32(c, c), e),
        vaddq_s32(b, d),
        vaddq_s32(vaddq_s32(c, f), vaddq_s32(e, e)),
    ]
}

/// # Safety
/// As [`FinishFn`](crate::kernels::winograd::FinishFn).
#[target_feature(enable = "neon")]
unsafe fn finish<const N: usize>(
    tile: &mut Tile<'_>,
    sums: *const i32,
    (rows, columns): (usize, usize),
    (row_stride, pixel_stride): (usize, usize),
) {
    let shifts = [3, 2, 1, 1];
    let (range, ninth) = (Range::new(tile.range), vdupq_n_s32(0x38E3_8E39));
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut gathered = [[[vdupq_n_s32(0); 6]; SIDE]; N];
        let mut m = [vdupq_n_f32(0.0); N];
        for n in 0..N {
            m[n] = vld1q_f32(tile.multipliers.add(4 * n));
            for x in 0..6 {
                let sum = |y: usize| vld1q_s32(sums.add(((6 * y + x) * N + n) * 4));
                let column = gather([sum(0), sum(1), sum(2), sum(3), sum(4), sum(5)]);
                for y in 0..SIDE {
                    gathered[n][y][x] = column[y];
                }
            }
        }
        for y in 0..rows {
            let mut acc = [[vdupq_n_s32(0); N]; SIDE];
            for n in 0..N {
                let bias = vld1q_s32(tile.bias.add(4 * n));
                for (x, sum) in gather(gathered[n][y]).into_iter().enumerate() {
                    let product = vshlq_s32(vmulq_s32(sum, ninth), vdupq_n_s32(-(shifts[y] + shifts[x])));
                    acc[x][n] = vaddq_s32(product, bias);
                }
            }
            for x in 0..columns {
                range.store(acc[x], m, tile.out.add(tile.out_offsets[0] + y * row_stride + x * pixel_stride));
            }
        }
    }
}
