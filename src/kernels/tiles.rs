//! Walks over a convolution tile by tile: some output pixels times one block of output channels.
//!
//! What a tile computes is the kernel's business; this module says where its pixels lie. Tiles go on from one row to
//! the next, so that narrow maps fill them as well as wide ones.

use super::pack::{Block, PackedConv};

/// Most pixels of one tile.
pub(super) const MAX_PIXELS: usize = 8;

/// Input bytes that one pass over the output channels may touch: they should still be in the second-level cache for the next
/// block of channels.
const PASS_BYTES: usize = 256 << 10;

/// One tile. All offsets were checked against the buffers behind `input` and `out`.
#[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "only x86-64 chooses by `n_bytes` and `is_plain`"))]
#[derive(Debug)]
pub(super) struct Tile<'a> {
    /// The input's buffer.
    pub input: *const u8,
    /// Bytes from `input` to the first quad under each pixel's first tap.
    pub in_offsets: [usize; MAX_PIXELS],
    /// Bytes from there to each run of quads.
    pub taps: &'a [usize],
    /// Quads of a run.
    pub n_quads: usize,
    /// Where runs are single quads, some of bytes and some of words: how many are bytes.
    pub n_bytes: usize,
    /// Weights of the block: `[tap][quad][register][lane][4]`.
    pub weights: *const i8,
    /// Of the block, in the order of lanes.
    pub bias: *const i32,
    /// Of the block, in the order of lanes.
    pub multipliers: *const f32,
    /// Zero point of the output, lowest and highest value.
    pub range: (u8, u8, u8),
    /// Whether saturation is all the clamping there is.
    pub is_plain: bool,
    /// The first output row's buffer.
    pub out: *mut u8,
    /// Bytes from `out` to each pixel's first channel of the block.
    pub out_offsets: [usize; MAX_PIXELS],
}

/// Computes one tile.
///
/// # Safety
/// The CPU has the kernel's instruction set; the tile comes from [`conv_rows`].
pub(super) type TileFn = unsafe fn(&Tile<'_>);

/// Computes output rows `first..first + n_rows` with tiles of at most `max_pixels(registers)` pixels; `tile(block, pixels)` is the
/// kernel for a tile of that size.
///
/// # Safety
/// The CPU has the instruction set of the tiles. `input` is valid for reads of `conv.input.len()` bytes and `out` for
/// writes of `n_rows` rows of `conv.output`; they do not overlap.
pub(super) unsafe fn conv_rows(
    conv: &PackedConv,
    max_pixels: impl Fn(usize) -> usize,
    tile: impl Fn(&Block, usize) -> TileFn,
    (input, first, n_rows, out): (*const u8, usize, usize, *mut u8),
) {
    let (width, in_row) = (conv.output.shape.w, conv.input.row_stride());
    let (row_step, col_step) = (conv.stride.0 * in_row, conv.stride.1 * conv.input.pixel_stride);
    let rows_in_pass = (PASS_BYTES / row_step.max(1)).max(1);
    let origin = conv.input.offset(0, 0) - conv.lead;
    let mut done = 0;
    while done < n_rows {
        let rows = rows_in_pass.min(n_rows - done);
        let mut lane = 0;
        for (block, taps) in conv.weights.blocks.iter().zip(&conv.taps_of_block) {
            let (most, n_pixels) = (max_pixels(block.registers), rows * width);
            let full = tile(block, most);
            let mut walk = Tile {
                input,
                in_offsets: [0; MAX_PIXELS],
                taps: &conv.taps[taps.clone()],
                n_quads: conv.quads_in_run.unwrap_or(block.quads.len()),
                n_bytes: block.n_bytes,
                // SAFETY: the block's first weight and the lanes of the block are inside the packed weights and vectors.
                weights: unsafe { conv.weights.bytes.as_ptr().add(block.weights) },
                bias: conv.bias[lane..].as_ptr(),
                multipliers: conv.multipliers[lane..].as_ptr(),
                range: (conv.zero_point, conv.lo, conv.hi),
                is_plain: conv.is_plain,
                out,
                out_offsets: [0; MAX_PIXELS],
            };
            let (mut y, mut x) = (done, 0);
            let mut in_offset = origin + 4 * block.quads.start + (first + y) * row_step;
            let mut out_offset = y * conv.output.row_stride() + conv.output.halo.left * conv.output.pixel_stride + block.first;
            let mut left = n_pixels;
            while left > 0 {
                let n = most.min(left);
                for p in 0..n {
                    walk.in_offsets[p] = in_offset;
                    walk.out_offsets[p] = out_offset;
                    x += 1;
                    if x == width {
                        (x, y) = (0, y + 1);
                        in_offset = origin + 4 * block.quads.start + (first + y) * row_step;
                        out_offset =
                            y * conv.output.row_stride() + conv.output.halo.left * conv.output.pixel_stride + block.first;
                    } else {
                        in_offset += col_step;
                        out_offset += conv.output.pixel_stride;
                    }
                }
                let run = if n == most { full } else { tile(block, n) };
                // SAFETY: the caller vouches for the CPU and the buffers; the offsets are those of pixels inside them, and
                // the window of each lies inside the input with its halo (checked when the weights were packed).
                unsafe { run(&walk) };
                left -= n;
            }
            lane += block.registers * conv.lanes;
        }
        done += rows;
    }
}
