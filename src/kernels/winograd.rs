//! The walk of a 3x3 convolution after Winograd (Lavin and Gray 2016, arXiv 1509.09308): 4 x 4 pixels with 36 products for each pair
//! of channels instead of 144, exact for every input.
//!
//! * The input under 4 x 4 pixels, 6 x 6 values of a channel, becomes `B^T d B`: 36 words, within -12750 and 17340.
//! * The weights have become 36 words when they were packed, times factors that make them integers.
//! * Products are summed over the channels.
//! * `A^T m A` of these 36 sums is, for pixel `(a, b)` of the tile, `9 x 2^(s(a) + s(b))` times the accumulator, `s` being 3, 2, 1, 1.
//!
//! All of it is exact modulo 2^32. There 9 has an inverse, and the shift gives the accumulator where `2^6` times every
//! accumulator fits into 32 bits, which is checked when the kernel is made.
//!
//! A few rows of tiles have their input transformed into a buffer; then each block of output channels takes [`CHUNK`] tiles
//! through all 36 positions. What an instruction set does in each step is its own ([`Steps`]).

use super::op::check_buffers;
use super::pack::{PackCache, PackedConv, Scheme};
use super::tiles::{MAX_PIXELS, Tile};
use super::{ConvSpec, Layout, Shape};
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Side of a tile of the output.
pub(super) const SIDE: usize = 4;

/// Positions of a transformed tile.
pub(super) const POSITIONS: usize = 36;

/// Tiles whose sums are held at a time.
const CHUNK: usize = 12;

/// Tiles whose input is transformed at a time, unless a row has more.
const MIN_TILES: usize = 24;

/// A thread keeps its buffers: where a row of tiles takes more, the direct way is taken, which has the same bits.
const MAX_BUFFER_BYTES: usize = 8 << 20;

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

/// Transforms the input under four output rows from `y` on: `[tile][position][channel]`. `conv` has its layouts.
///
/// # Safety
/// The CPU has the instruction set; `input` is valid for reads of the input's layout, whose halo is that of the window; `to` has
/// room for a row of tiles.
pub(super) type TransformFn = unsafe fn(conv: &PackedConv, input: *const u8, y: usize, to: *mut i16);

/// What an instruction set does after the transform of the input, for one number of registers.
pub(super) struct Steps {
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
pub(super) type MultiplyFn = unsafe fn(weights: *const i8, n_pairs: usize, input: (*const i16, usize), n: usize, sums: *mut i32);

/// `rows` x `columns` pixels of a tile from its sums. `out_offsets[0]` of the tile is the first.
///
/// # Safety
/// The CPU has the instruction set; the sums are those of a tile for a block of as many registers as the function is for; the
/// pixels can be written.
pub(super) type FinishFn = unsafe fn(tile: &mut Tile<'_>, sums: *const i32, size: (usize, usize), strides: (usize, usize));

/// A 3x3 convolution of stride 1, for registers of any size.
#[derive(Debug)]
pub(super) struct Winograd {
    conv: PackedConv,
    /// Pairs of channels.
    n_pairs: usize,
}

impl Winograd {
    /// `None` where the convolution is another one, or where the direct way is faster: few channels, or a small map whose tiles of
    /// 4 x 4 have more than `max_percent` of its pixels.
    pub(super) fn new(
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
        if kernel.buffer_bytes().iter().any(|&n_bytes| n_bytes > MAX_BUFFER_BYTES) {
            return None;
        }
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
    pub(super) fn width(&self) -> usize {
        // The first block is the widest.
        self.conv.weights.blocks.first().map_or(0, |block| block.registers * self.conv.lanes)
    }

    /// As [`RowKernel::rows`].
    ///
    /// # Safety
    /// The CPU has what the transform and the steps need.
    pub(super) unsafe fn rows(
        &self,
        transform: TransformFn,
        steps: impl Fn(usize) -> Steps,
        inputs: &[&[u8]],
        first: usize,
        out: &mut [u8],
    ) {
        let n_rows = check_buffers([(inputs[0], &self.conv.input)], first, out, &self.conv.output);
        BUFFERS.with_borrow_mut(|buffers| {
            // SAFETY: the caller vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
            unsafe { self.rows_with((transform, steps), (inputs[0].as_ptr(), first, n_rows, out.as_mut_ptr()), buffers) };
        });
    }

    /// # Safety
    /// As [`Winograd::rows`]; `input` is valid for reads of the input's layout and `out` for writes of `n_rows` rows of the output.
    unsafe fn rows_with(
        &self,
        (transform, steps): (TransformFn, impl Fn(usize) -> Steps),
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
                unsafe { transform(conv, input, first + y + SIDE * row, transformed.add(row * words_of_row)) };
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
