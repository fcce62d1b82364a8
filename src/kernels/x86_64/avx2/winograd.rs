//! 3x3 convolution after Winograd (Lavin and Gray 2016, arXiv 1509.09308): 4 x 4 pixels with 36 products for each pair of
//! channels instead of 144, exact for every input.
//!
//! * The input under 4 x 4 pixels, 6 x 6 values of a channel, becomes `B^T d B`: 36 words, within -8160 and 17340.
//! * The weights have become 36 words when they were packed, times factors that make them integers.
//! * `vpmaddwd` sums the products over the channels.
//! * `A^T m A` of these 36 sums is, for pixel `(a, b)` of the tile, `9 x 2^(s(a) + s(b))` times the accumulator, `s` being 3, 2, 1, 1.
//!
//! All of it is exact modulo 2^32. There 9 has an inverse, and the shift gives the accumulator where `2^6` times every
//! accumulator fits into 32 bits, which is checked when the kernel is made.
//!
//! A few rows of tiles have their input transformed into a buffer; then each block of output channels takes [`CHUNK`] tiles
//! through all 36 positions.

use super::requantize::store_tile;
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{PackCache, PackedConv, Products, Scheme};
use crate::kernels::tiles::{MAX_PIXELS, Tile};
use crate::kernels::{ConvSpec, Layout, RowKernel, Shape};
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Side of a tile of the output.
pub(in crate::kernels::x86_64) const SIDE: usize = 4;

/// Positions of a transformed tile.
pub(in crate::kernels::x86_64) const POSITIONS: usize = 36;

/// Tiles whose sums are held at a time.
const CHUNK: usize = 12;

/// Tiles whose input is transformed at a time, unless a row has more.
const MIN_TILES: usize = 24;

/// Fewer channels than this, in or out, are not worth the transforms.
const MIN_CHANNELS: usize = 16;

/// A cache line, as a buffer's unit.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

#[derive(Debug)]
struct Buffers {
    /// `[tile][position][channel]`, words.
    input: Vec<Line>,
    /// `[tile][position][lane]`.
    sums: Vec<Line>,
}

/// Bytes that the largest kernel of the process needs of each buffer: a thread that allocates, allocates once.
static NEEDED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

thread_local! {
    /// Kept, so that a thread's first row allocates and no other.
    static BUFFERS: RefCell<Buffers> = const { RefCell::new(Buffers { input: Vec::new(), sums: Vec::new() }) };
}

/// Makes `buffer` at least so many bytes long, and as long as any kernel needs it if it has to grow.
fn grow(buffer: &mut Vec<Line>, n_bytes: usize, needed: &AtomicUsize) -> *mut u8 {
    if buffer.len() * 64 < n_bytes {
        // The sizes order nothing else.
        buffer.resize(n_bytes.max(needed.load(Ordering::Relaxed)).div_ceil(64), Line([0; 64]));
    }
    buffer.as_mut_ptr().cast()
}

/// What an instruction set does between the transform of the input and the output, for one number of registers.
pub(in crate::kernels::x86_64) struct Steps {
    /// Sums products over the channels.
    pub multiply: MultiplyFn,
    /// Makes pixels of sums.
    pub finish: FinishFn,
}

/// Sums over the pairs of channels of `n` tiles at all positions, for the weights of a block: `[tile][position][register]`.
/// Of the input comes how many words a position has.
///
/// # Safety
/// The CPU has the instruction set; the weights are those of a block of as many registers as the function is for, and so many
/// pairs of channels; input and sums hold `n` tiles.
pub(in crate::kernels::x86_64) type MultiplyFn =
    unsafe fn(weights: *const i8, n_pairs: usize, input: (*const i16, usize), n: usize, sums: *mut i32);

/// `rows` x `columns` pixels of a tile from its sums. `out_offsets[0]` of the tile is the first.
///
/// # Safety
/// The CPU has the instruction set; the sums are those of a tile for a block of as many registers as the function is for; the
/// pixels can be written.
pub(in crate::kernels::x86_64) type FinishFn =
    unsafe fn(tile: &mut Tile<'_>, sums: *const i32, size: (usize, usize), strides: (usize, usize));

/// A 3x3 convolution of stride 1, for registers of any size.
#[derive(Debug)]
pub(in crate::kernels::x86_64) struct Winograd {
    conv: PackedConv,
    /// Pairs of channels.
    n_pairs: usize,
}

impl Winograd {
    /// `None` where the convolution is another one, or where the direct way is faster: few channels, or a small map whose tiles of
    /// 4 x 4 have more than `max_percent` of its pixels.
    pub(in crate::kernels::x86_64) fn new(
        spec: &ConvSpec,
        input: Layout,
        output: Layout,
        scheme: Scheme,
        max_percent: usize,
        cache: &mut PackCache,
    ) -> Option<Self> {
        let window = &spec.window;
        let is_plain = window.kernel == (3, 3) && window.stride == (1, 1) && window.dilation == (1, 1) && spec.groups == 1;
        let has_channels = spec.in_per_group() >= MIN_CHANNELS && spec.out_channels() >= MIN_CHANNELS;
        let Shape { h, w, .. } = output.shape;
        let is_filled = 100 * h.next_multiple_of(SIDE) * w.next_multiple_of(SIDE) <= max_percent * h * w;
        let suits = is_plain && has_channels && is_filled && input.pixel_stride.is_multiple_of(16) && are_small(spec);
        let conv = suits.then(|| PackedConv::new(spec, input, output, scheme, cache))??;
        let kernel = Self { conv, n_pairs: 2 * spec.in_per_group().div_ceil(4) };
        for (needed, n_bytes) in NEEDED.iter().zip(kernel.buffer_bytes()) {
            needed.fetch_max(n_bytes, Ordering::Relaxed);
        }
        Some(kernel)
    }

    /// Tiles in a row, and rows of tiles whose input is transformed at a time.
    const fn tiles(&self) -> (usize, usize) {
        let in_row = self.conv.output.shape.w.div_ceil(SIDE);
        (in_row, MIN_TILES.div_ceil(in_row))
    }

    /// Bytes of both buffers.
    fn buffer_bytes(&self) -> [usize; 2] {
        let (in_row, rows) = self.tiles();
        [2 * rows * in_row * POSITIONS * self.conv.input.pixel_stride, 4 * CHUNK * POSITIONS * self.width()]
    }

    /// Channels of the widest block.
    pub(in crate::kernels::x86_64) fn width(&self) -> usize {
        // The first block is the widest.
        self.conv.weights.blocks.first().map_or(0, |block| block.registers * self.conv.lanes)
    }

    /// As [`RowKernel::rows`].
    ///
    /// # Safety
    /// The CPU has AVX2 and what the steps need.
    pub(in crate::kernels::x86_64) unsafe fn rows(
        &self,
        steps: impl Fn(usize) -> Steps,
        inputs: &[&[u8]],
        first: usize,
        out: &mut [u8],
    ) {
        let n_rows = check_buffers([(inputs[0], &self.conv.input)], first, out, &self.conv.output);
        BUFFERS.with_borrow_mut(|buffers| {
            // SAFETY: the caller vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
            unsafe { self.rows_with(steps, (inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr()), buffers) };
        });
    }

    /// # Safety
    /// As [`Winograd::rows`]; `input` is valid for reads of the input's layout and `out` for writes of `n_rows` rows of the output.
    unsafe fn rows_with(
        &self,
        steps: impl Fn(usize) -> Steps,
        (input, first, n_rows, out): (*const u8, usize, usize, *mut u8),
        buffers: &mut Buffers,
    ) {
        let conv = &self.conv;
        let (width, n_words) = (conv.output.shape.w, conv.input.pixel_stride);
        let strides = (conv.output.row_stride(), conv.output.pixel_stride);
        let (tiles_in_row, rows_at_a_time) = self.tiles();
        let words_of_row = tiles_in_row * POSITIONS * n_words;
        let [input_bytes, sums_bytes] = self.buffer_bytes();
        let transformed: *mut i16 = grow(&mut buffers.input, input_bytes, &NEEDED[0]).cast();
        let sums: *mut i32 = grow(&mut buffers.sums, sums_bytes, &NEEDED[1]).cast();
        for y in (0..n_rows).step_by(SIDE * rows_at_a_time) {
            let tile_rows = (n_rows - y).div_ceil(SIDE).min(rows_at_a_time);
            for row in 0..tile_rows {
                // SAFETY: the buffer has room for so many rows of tiles.
                unsafe { transform_rows(conv, input, first + y + SIDE * row, transformed.add(row * words_of_row)) };
            }
            let n_tiles = tile_rows * tiles_in_row;
            let mut lane = 0;
            for block in &conv.weights.blocks {
                let steps = steps(block.registers);
                let lanes = block.registers * conv.lanes;
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
                    // SAFETY: the weights are those of the block; the tiles were transformed above; the sums have room for a chunk;
                    // every pixel that is written lies inside the rows.
                    unsafe {
                        let input = transformed.add(start * POSITIONS * n_words);
                        (steps.multiply)(tile.weights, self.n_pairs, (input, n_words), n, sums);
                        for idx in 0..n {
                            let row = y + SIDE * ((start + idx) / tiles_in_row);
                            let column = SIDE * ((start + idx) % tiles_in_row);
                            let size = (SIDE.min(n_rows - row), SIDE.min(width - column));
                            tile.out_offsets[0] = row * strides.0 + (conv.output.halo.left + column) * strides.1 + block.first;
                            (steps.finish)(&mut tile, sums.add(idx * POSITIONS * lanes), size, strides);
                        }
                    }
                }
                lane += lanes;
            }
        }
    }
}

/// Whether `2^6` times `accumulator - bias` fits into 32 bits whatever the input.
fn are_small(spec: &ConvSpec) -> bool {
    let per_channel = spec.in_per_group() * spec.window.n_taps();
    let reach = |weights: &[i8], of: fn(i64) -> i64| 255 * weights.iter().map(|&w| of(i64::from(w))).sum::<i64>();
    let fits = |weights: &[i8]| reach(weights, |w| w.max(0)).max(reach(weights, |w| (-w).max(0))) < 1 << 25;
    spec.weights.chunks_exact(per_channel).all(fits)
}

/// Transforms the input under four output rows from `y` on: `[tile][position][channel]`.
///
/// # Safety
/// As [`Winograd::rows_with`]; `to` has room for a row of tiles.
#[target_feature(enable = "avx2")]
unsafe fn transform_rows(conv: &PackedConv, input: *const u8, y: usize, to: *mut i16) {
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
        unsafe { self.0.rows(steps, inputs, first, out) };
    }

    fn rows_together(&self) -> usize {
        SIDE
    }

    fn label(&self) -> String {
        format!("avx2 4x4x{}", self.0.width())
    }
}

/// # Safety
/// As [`MultiplyFn`].
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
/// As [`MultiplyFn`], for one position of `P` tiles.
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
/// As [`FinishFn`].
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
