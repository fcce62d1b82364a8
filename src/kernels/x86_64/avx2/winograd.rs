//! 3x3 convolution after Winograd (Lavin and Gray 2016, arXiv 1509.09308): 2 x 2 pixels with 16 products for each pair of
//! channels instead of 36, exact for every input.
//!
//! The input under 2 x 2 pixels, 4 x 4 values of a channel, becomes 16 sums of at most four of them: words. The weights become 16
//! words, of which four times the true values are integers. Products are summed over the channels with `vpmaddwd`, and sums
//! of these 16 are four times the accumulators of the four pixels. All of it is exact modulo 2^32, and so is the division
//! by four where four times every accumulator fits into 32 bits, which is checked when the weights are packed.
//!
//! Rows are computed in pairs: their input is transformed into a buffer, then each block of output channels takes [`CHUNK`] tiles
//! of 2 x 2 pixels through all 16 positions.

use super::requantize::store_tile;
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{MAX_PIXELS, Tile};
use crate::kernels::{ConvSpec, Layout, RowKernel, Shape};
use std::arch::x86_64::*;
use std::cell::RefCell;

const SCHEME: Scheme = Scheme { lanes: 8, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Transformed };

/// Tiles whose sums are held at a time.
const CHUNK: usize = 16;

/// Tiles whose input is transformed at a time, unless a pair of rows has more.
const MIN_TILES: usize = 32;

/// Fewer channels than this, in or out, are not worth the transforms.
const MIN_CHANNELS: usize = 16;

thread_local! {
    /// Transformed input and sums of a chunk; kept, so that a row allocates nothing once they have grown.
    static BUFFERS: RefCell<Buffers> = const { RefCell::new(Buffers { input: Vec::new(), sums: Vec::new() }) };
}

#[derive(Debug)]
struct Buffers {
    /// `[tile][position][16 channels]`.
    input: Vec<__m256i>,
    /// `[tile][position][register]`.
    sums: Vec<__m256i>,
}

/// A 3x3 convolution of stride 1.
#[derive(Debug)]
pub(super) struct Conv {
    conv: PackedConv,
    /// Pairs of channels.
    n_pairs: usize,
}

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        let window = &spec.window;
        let is_plain = window.kernel == (3, 3) && window.stride == (1, 1) && window.dilation == (1, 1) && spec.groups == 1;
        let has_channels = spec.in_per_group() >= MIN_CHANNELS && spec.out_channels() >= MIN_CHANNELS;
        // Tiles that reach over the last row or column are computed whole.
        let Shape { h, w, .. } = output.shape;
        let is_filled = 2 * h.next_multiple_of(2) * w.next_multiple_of(2) <= 3 * h * w;
        let suits = is_plain && has_channels && is_filled && input.pixel_stride.is_multiple_of(16) && quadruples_fit(spec);
        let conv = suits.then(|| PackedConv::new(spec, input, output, SCHEME, cache))??;
        Some(Self { conv, n_pairs: 2 * spec.in_per_group().div_ceil(4) })
    }
}

/// Whether four times `accumulator - bias` fits into 32 bits whatever the input.
fn quadruples_fit(spec: &ConvSpec) -> bool {
    let per_channel = spec.in_per_group() * spec.window.n_taps();
    let reach = |weights: &[i8]| 4 * 255 * weights.iter().map(|&w| i64::from(w).abs()).sum::<i64>();
    spec.weights.chunks_exact(per_channel).all(|weights| reach(weights) <= i64::from(i32::MAX))
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let conv = &self.conv;
        let n_rows = check_buffers([(inputs[0], &conv.input)], first, out, &conv.output);
        BUFFERS.with_borrow_mut(|buffers| {
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
            unsafe { rows_of(self, inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr(), buffers) };
        });
    }

    fn label(&self) -> String {
        // The first block is the widest.
        let registers = self.conv.weights.blocks.first().map_or(0, |block| block.registers);
        format!("avx2 winograd {}", 8 * registers)
    }
}

/// # Safety
/// The CPU has AVX2; `input` is valid for reads of the input's layout and `out` for writes of `n_rows` rows of the output.
#[target_feature(enable = "avx2")]
unsafe fn rows_of(kernel: &Conv, input: *const u8, first: usize, n_rows: usize, out: *mut u8, buffers: &mut Buffers) {
    let conv = &kernel.conv;
    let (width, n_groups) = (conv.output.shape.w, conv.input.pixel_stride / 16);
    let tiles_in_row = width.div_ceil(2);
    let row_pairs = MIN_TILES.div_ceil(tiles_in_row);
    let zero = _mm256_setzero_si256();
    grow(&mut buffers.input, row_pairs * tiles_in_row * 16 * n_groups, zero);
    grow(&mut buffers.sums, CHUNK * 16 * SCHEME.max_registers, zero);
    let transformed: *mut __m256i = buffers.input.as_mut_ptr();
    let sums: *mut __m256i = buffers.sums.as_mut_ptr();
    for y in (0..n_rows).step_by(2 * row_pairs) {
        let n_pairs = (n_rows - y).div_ceil(2).min(row_pairs);
        for pair in 0..n_pairs {
            // SAFETY: the buffer has room for so many pairs of rows.
            unsafe { transform_rows(conv, input, first + y + 2 * pair, transformed.add(pair * tiles_in_row * 16 * n_groups)) };
        }
        let n_tiles = n_pairs * tiles_in_row;
        let mut lane = 0;
        for block in &conv.weights.blocks {
            let (multiply, finish) = match block.registers {
                1 => (multiply::<1> as MultiplyFn, finish::<1> as FinishFn),
                2 => (multiply::<2> as MultiplyFn, finish::<2> as FinishFn),
                3 => (multiply::<3> as MultiplyFn, finish::<3> as FinishFn),
                _ => (multiply::<4> as MultiplyFn, finish::<4> as FinishFn),
            };
            let mut tile = Tile {
                input,
                in_offsets: [0; MAX_PIXELS],
                taps: &[],
                n_quads: 0,
                n_bytes: 0,
                weights: conv.weights.bytes.as_ptr().wrapping_add(block.weights),
                bias: conv.bias[lane..].as_ptr(),
                multipliers: conv.multipliers[lane..].as_ptr(),
                range: (conv.zero_point, conv.lo, conv.hi),
                is_plain: conv.is_plain,
                out,
                out_offsets: [0; MAX_PIXELS],
            };
            for start in (0..n_tiles).step_by(CHUNK) {
                let n = CHUNK.min(n_tiles - start);
                // SAFETY: the weights are those of the block; the tiles were transformed above; the sums have room for a chunk; every
                // pixel that is written lies inside the rows.
                unsafe {
                    multiply(tile.weights, kernel.n_pairs, (transformed.add(start * 16 * n_groups), n_groups), n, sums);
                    for idx in 0..n {
                        let (pair, column) = ((start + idx) / tiles_in_row, 2 * ((start + idx) % tiles_in_row));
                        for row in (y + 2 * pair..n_rows.min(y + 2 * pair + 2)).map(|row| row - y - 2 * pair) {
                            let at = (y + 2 * pair + row) * conv.output.row_stride()
                                + (conv.output.halo.left + column) * conv.output.pixel_stride
                                + block.first;
                            tile.out_offsets[0] = at;
                            tile.out_offsets[1] = at + conv.output.pixel_stride;
                            finish(&tile, sums.add(idx * 16 * block.registers), row, column + 1 < width);
                        }
                    }
                }
            }
            lane += 8 * block.registers;
        }
    }
}

/// Makes `buffer` at least `len` long.
fn grow(buffer: &mut Vec<__m256i>, len: usize, zero: __m256i) {
    if buffer.len() < len {
        buffer.resize(len, zero);
    }
}

/// Transforms the input under output rows `y` and `y + 1`: `[tile][position][16 channels]`.
///
/// # Safety
/// As [`rows_of`]; `to` has room for the tiles of two rows.
#[target_feature(enable = "avx2")]
unsafe fn transform_rows(conv: &PackedConv, input: *const u8, y: usize, to: *mut __m256i) {
    let (layout, n_groups) = (&conv.input, conv.input.pixel_stride / 16);
    let origin = layout.offset(0, 0) - conv.lead;
    // Rows and columns that only pixels beyond the output would need are read from the last one that is there.
    let (last_row, last_column) = (conv.output.shape.h + 1, conv.output.shape.w + 1);
    let rows = [0, 1, 2, 3].map(|dy| origin + (y + dy).min(last_row) * layout.row_stride());
    for group in 0..n_groups {
        // A column of four rows, transformed.
        let column = |x: usize| {
            let at = x.min(last_column) * layout.pixel_stride + 16 * group;
            // SAFETY: 16 channels of a pixel of the input or its halo.
            let value = |row: usize| unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(input.add(row + at).cast())) };
            transform(rows.map(value))
        };
        let (mut a, mut b) = (column(0), column(1));
        for tile in 0..conv.output.shape.w.div_ceil(2) {
            let (c, d) = (column(2 * tile + 2), column(2 * tile + 3));
            for row in 0..4 {
                for (col, value) in transform([a[row], b[row], c[row], d[row]]).into_iter().enumerate() {
                    // SAFETY: the caller vouches for the room.
                    unsafe { to.add((tile * 16 + 4 * row + col) * n_groups + group).write(value) };
                }
            }
            (a, b) = (c, d);
        }
    }
}

/// `B^T d` of four values.
#[inline]
#[target_feature(enable = "avx2")]
fn transform([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    [_mm256_sub_epi16(a, c), _mm256_add_epi16(b, c), _mm256_sub_epi16(c, b), _mm256_sub_epi16(b, d)]
}

/// [`multiply`] for one number of registers.
type MultiplyFn = unsafe fn(*const i8, usize, (*const __m256i, usize), usize, *mut __m256i);

/// Sums over the channels of `n` tiles at all 16 positions: `[tile][position][register]`. `input` comes with its groups of 16 channels.
///
/// # Safety
/// The CPU has AVX2; the weights are those of a block of `N` registers and `n_pairs` pairs of channels; input and sums hold `n` tiles.
#[target_feature(enable = "avx2")]
unsafe fn multiply<const N: usize>(
    weights: *const i8,
    n_pairs: usize,
    (input, n_groups): (*const __m256i, usize),
    n: usize,
    sums: *mut __m256i,
) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        for position in 0..16 {
            let weights = weights.add(position * n_pairs * 32 * N);
            let at = |tile: usize| (input.add((tile * 16 + position) * n_groups).cast(), sums.add((tile * 16 + position) * N));
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
/// As [`multiply`], for one position of `P` tiles.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn multiply_tiles<const P: usize, const N: usize>(
    weights: *const i8,
    n_pairs: usize,
    tiles: [(*const i32, *mut __m256i); P],
) {
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
                tiles[p].1.add(n).write(acc[p][n]);
            }
        }
    }
}

/// [`finish`] for one number of registers.
type FinishFn = unsafe fn(&Tile<'_>, *const __m256i, usize, bool);

/// Row `row` of a tile of 2 x 2 pixels from its sums: `A^T m A / 4 + bias`, requantised. `both`: the second pixel is there.
///
/// # Safety
/// The CPU has AVX2; the sums are those of a tile and a block of `N` registers; the pixels can be written.
#[target_feature(enable = "avx2")]
unsafe fn finish<const N: usize>(tile: &Tile<'_>, sums: *const __m256i, row: usize, both: bool) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); N]; 2];
        for n in 0..N {
            let m = |y: usize, x: usize| sums.add((4 * y + x) * N + n).read();
            // A row of `A^T`: 1 1 1 0 or 0 1 -1 -1.
            let combine = |a: __m256i, b: __m256i, c: __m256i, d: __m256i, row: usize| {
                if row == 0 { _mm256_add_epi32(_mm256_add_epi32(a, b), c) } else { _mm256_sub_epi32(_mm256_sub_epi32(b, c), d) }
            };
            let column = |x: usize| combine(m(0, x), m(1, x), m(2, x), m(3, x), row);
            let (a, b, c, d) = (column(0), column(1), column(2), column(3));
            let bias = _mm256_loadu_si256(tile.bias.add(8 * n).cast());
            for x in 0..2 {
                acc[x][n] = _mm256_add_epi32(_mm256_srai_epi32::<2>(combine(a, b, c, d, x)), bias);
            }
        }
        if both {
            store_tile(tile, &acc);
        } else {
            store_tile(tile, &[acc[0]]);
        }
    }
}
