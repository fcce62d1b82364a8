//! Depthwise convolution: 32 channels of one pixel at a time, exact for every input.
//!
//! Multiplications add neighbouring products, a depthwise sum adds taps: so four taps are interleaved byte by byte (eight
//! unpacking instructions for 32 channels). Then, as in [`conv`](super::conv): where no pair of weights of the four taps can
//! saturate, `vpmaddubsw` and a `vpmaddwd` with ones for each 8 channels, else two `vpmaddwd` of words.

use super::requantize::Range;
use crate::kernels::op::check_buffers;
use crate::kernels::pack::{is_bounded, pairs_fit, words};
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    taps: Taps,
    blocks: Vec<Block>,
    /// `[group of 4 taps]`, of bytes `[register][lane][4]`, else of words `[taps 0 and 2, taps 1 and 3][register][lane][2]`.
    weights: Vec<i8>,
}

/// 32 channels.
#[derive(Debug)]
struct Block {
    /// First byte of its weights.
    weights: usize,
    /// Whether those of each group of taps are bytes.
    are_bytes: Vec<bool>,
}

/// What depthwise kernels of 32 channels have in common: where their taps lie, and what becomes of their sums.
#[derive(Debug)]
pub(in crate::kernels::x86_64) struct Taps {
    pub input: Layout,
    pub output: Layout,
    pub stride: (usize, usize),
    /// Offset of the first tap from the pixel under it, in bytes before it.
    pub lead: usize,
    /// Offset of each tap from the first, a multiple of four of them.
    pub offsets: Vec<usize>,
    /// `[block of 32][register][lane]`.
    pub bias: Vec<i32>,
    /// In the same order.
    pub multipliers: Vec<f32>,
    pub range: (u8, u8, u8),
    /// See [`PackedConv::is_plain`](crate::kernels::pack::PackedConv).
    pub is_plain: bool,
}

/// Channel within a block of 32 that register `r`, lane `lane` holds after unpacking.
const fn channel(r: usize, lane: usize) -> usize {
    lane / 4 * 16 + 4 * r + lane % 4
}

/// Channels of a block in the order of lanes.
pub(in crate::kernels::x86_64) fn channels() -> impl Iterator<Item = usize> {
    (0..4).flat_map(|r| (0..8).map(move |lane| channel(r, lane)))
}

impl Taps {
    /// `None` where the layouts do not suit.
    pub(in crate::kernels::x86_64) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let (window, n) = (&spec.window, spec.out_channels());
        let is_padded = |layout: Layout| layout.pixel_stride >= layout.shape.c.next_multiple_of(16);
        if !is_padded(input) || !is_padded(output) || window.halo(input.shape).union(input.halo) != input.halo {
            return None;
        }
        let offset = |tap: usize| {
            let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
            ky * window.dilation.0 * input.row_stride() + kx * window.dilation.1 * input.pixel_stride
        };
        let lanes = || (0..n).step_by(32).flat_map(|first| channels().map(move |c| first + c));
        Some(Self {
            input,
            output,
            stride: window.stride,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            offsets: (0..window.n_taps().next_multiple_of(4)).map(|tap| offset(tap.min(window.n_taps() - 1))).collect(),
            bias: lanes().map(|c| if c < n { spec.folded_bias(c) } else { 0 }).collect(),
            multipliers: lanes().map(|c| spec.requant.multipliers.get(c).copied().unwrap_or(0.0)).collect(),
            range: (spec.requant.zero_point, spec.requant.lo, spec.requant.hi),
            is_plain: spec.requant.lo == 0 && spec.requant.hi == u8::MAX && is_bounded(spec),
        })
    }

    /// Weights of four taps from `tap` on for 32 channels from `first` on, in the order of lanes; 0 where there is no tap or channel.
    pub(in crate::kernels::x86_64) fn weights(spec: &ConvSpec, first: usize, tap: usize) -> Vec<[i8; 4]> {
        let weight = |c: usize, tap: usize| {
            let is_there = c < spec.out_channels() && tap < spec.window.n_taps();
            if is_there { spec.weight(c, 0, tap) } else { 0 }
        };
        channels().map(|c| [0, 1, 2, 3].map(|i| weight(first + c, tap + i))).collect()
    }

    /// Calls `block(idx, is_whole, from, to)` for each block of channels: its number, whether 32 channels can be read and written
    /// or 16, and the offsets of the first pixel of row `y` in the input and in a row of the output.
    #[inline]
    pub(in crate::kernels::x86_64) fn blocks(&self, y: usize, mut block: impl FnMut(usize, bool, usize, usize)) {
        let channels = self.output.shape.c.next_multiple_of(16);
        for (idx, first) in (0..channels).step_by(32).enumerate() {
            let from = self.input.offset(y * self.stride.0, 0) - self.lead + first;
            let to = self.output.halo.left * self.output.pixel_stride + first;
            block(idx, channels - first >= 32, from, to);
        }
    }
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let taps = Taps::new(spec, input, output)?;
        let (mut weights, mut blocks) = (Vec::new(), Vec::new());
        for first in (0..spec.out_channels()).step_by(32) {
            let mut block = Block { weights: weights.len(), are_bytes: Vec::new() };
            for tap in (0..taps.offsets.len()).step_by(4) {
                let quads = Taps::weights(spec, first, tap);
                let are_bytes = pairs_fit(&quads);
                if are_bytes {
                    weights.extend(quads.as_flattened());
                } else {
                    weights.extend(words(&quads));
                }
                block.are_bytes.push(are_bytes);
            }
            blocks.push(block);
        }
        Some(Self { taps, blocks, weights })
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let taps = &self.taps;
        check_buffers([(inputs[0], &taps.input)], first, out, &taps.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(taps.output.row_stride())) {
            taps.blocks(y, |idx, is_whole, from, to| {
                let run = match (is_whole, taps.is_plain) {
                    (true, true) => block_of_row::<true, true>,
                    (true, false) => block_of_row::<true, false>,
                    (false, true) => block_of_row::<false, true>,
                    (false, false) => block_of_row::<false, false>,
                };
                // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
                unsafe { run(self, idx, inputs[0].as_ptr().add(from), row.as_mut_ptr().add(to)) };
            });
        }
    }

    fn label(&self) -> String {
        "avx2 1x32".into()
    }
}

/// 32 channels of four taps, interleaved: four registers of `[lane][tap]`. Without `WHOLE` only 16 are read.
///
/// # Safety
/// The CPU has AVX2; so many bytes can be read at each tap.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn quads<const WHOLE: bool>(from: *const u8, taps: &[usize; 4]) -> [__m256i; 4] {
    let load = |tap: usize| {
        // SAFETY: the caller vouches for the bytes.
        unsafe {
            let from = from.add(tap);
            if WHOLE { _mm256_loadu_si256(from.cast()) } else { _mm256_castsi128_si256(_mm_loadu_si128(from.cast())) }
        }
    };
    let (a, b, c, d) = (load(taps[0]), load(taps[1]), load(taps[2]), load(taps[3]));
    let (ab_lo, ab_hi) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let (cd_lo, cd_hi) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
    [
        _mm256_unpacklo_epi16(ab_lo, cd_lo),
        _mm256_unpackhi_epi16(ab_lo, cd_lo),
        _mm256_unpacklo_epi16(ab_hi, cd_hi),
        _mm256_unpackhi_epi16(ab_hi, cd_hi),
    ]
}

/// Bias and multipliers of a block.
///
/// # Safety
/// The CPU has AVX2; there are so many blocks.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn lanes_of(taps: &Taps, block: usize) -> ([__m256i; 4], [__m256; 4]) {
    let (mut bias, mut m) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_ps(); 4]);
    for r in 0..4 {
        // SAFETY: 32 lanes for each block.
        unsafe {
            bias[r] = _mm256_loadu_si256(taps.bias.as_ptr().add(32 * block + 8 * r).cast());
            m[r] = _mm256_loadu_ps(taps.multipliers.as_ptr().add(32 * block + 8 * r));
        }
    }
    (bias, m)
}

/// Requantises the sums of a block and writes them. Without `WHOLE` only 16 are written.
///
/// # Safety
/// The CPU has AVX2; so many bytes can be written.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86_64) unsafe fn store<const WHOLE: bool, const PLAIN: bool>(
    range: Range<PLAIN>,
    acc: [__m256i; 4],
    m: [__m256; 4],
    out: *mut u8,
) {
    let q = |r: usize| range.scale(acc[r], m[r]);
    let bytes = range.pack4(q(0), q(1), q(2), q(3));
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        if WHOLE {
            _mm256_storeu_si256(out.cast(), bytes);
        } else {
            _mm_storeu_si128(out.cast(), _mm256_castsi256_si128(bytes));
        }
    }
}

/// # Safety
/// The CPU has AVX2; `from` and `out` are what [`Taps::blocks`] says.
#[target_feature(enable = "avx2")]
unsafe fn block_of_row<const WHOLE: bool, const PLAIN: bool>(conv: &Depthwise, idx: usize, from: *const u8, out: *mut u8) {
    let (taps, block) = (&conv.taps, &conv.blocks[idx]);
    let (range, low, ones) = (Range::<PLAIN>::new(taps.range), _mm256_set1_epi16(0xFF), _mm256_set1_epi16(1));
    let (mut from, mut out) = (from, out);
    // SAFETY: every tap of every pixel lies in the input with its halo; weights were packed for this block, group by group of taps.
    unsafe {
        let (bias, m) = lanes_of(taps, idx);
        for _ in 0..taps.output.shape.w {
            let mut acc = bias;
            let mut weights = conv.weights.as_ptr().add(block.weights);
            for (offsets, &are_bytes) in taps.offsets.as_chunks::<4>().0.iter().zip(&block.are_bytes) {
                let x = quads::<WHOLE>(from, offsets);
                let w = |idx: usize| _mm256_loadu_si256(weights.add(32 * idx).cast());
                for r in 0..4 {
                    if are_bytes {
                        let sum = _mm256_madd_epi16(_mm256_maddubs_epi16(x[r], w(r)), ones);
                        acc[r] = _mm256_add_epi32(acc[r], sum);
                    } else {
                        let even = _mm256_madd_epi16(_mm256_and_si256(x[r], low), w(r));
                        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(x[r]), w(4 + r));
                        acc[r] = _mm256_add_epi32(acc[r], _mm256_add_epi32(even, odd));
                    }
                }
                weights = weights.add(if are_bytes { 128 } else { 256 });
            }
            store::<WHOLE, PLAIN>(range, acc, m, out);
            from = from.add(taps.stride.1 * taps.input.pixel_stride);
            out = out.add(taps.output.pixel_stride);
        }
    }
}
