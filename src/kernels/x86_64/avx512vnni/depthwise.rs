//! Depthwise convolution: 64, 32 or 16 channels of one or two pixels at a time.
//!
//! A dot product adds four neighbouring bytes, a depthwise sum adds taps: so four taps are interleaved byte by byte (eight
//! unpacking instructions for four registers of quads), and one `vpdpbusd` for each register adds all four. Where a 3x3
//! window moves by one column, the four columns of a quad serve two pixels, with weights `w0 w1 w2 0` and `0 w0 w1 w2`.
//!
//! Weights are `[block of channels][group of taps][register][lane][4]`. A group is four taps in a row of the flattened window, or, for
//! pairs of pixels, one row of the window in either position.

use crate::kernels::op::check_buffers;
use crate::kernels::pack::is_bounded;
use crate::kernels::{ConvSpec, Layout, RowKernel};
use std::arch::x86_64::*;
use std::ops::Range;

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    input: Layout,
    output: Layout,
    stride: (usize, usize),
    lead: usize,
    /// Offset of each tap from the first.
    taps: Vec<usize>,
    /// Whether pixels are made in pairs: 3x3, neighbouring columns.
    in_pairs: bool,
    blocks: Vec<Block>,
    zero_point: u8,
    lo: u8,
    hi: u8,
    is_plain: bool,
}

/// 64, 32 or 16 channels.
#[derive(Debug)]
struct Block {
    channels: Range<usize>,
    weights: Vec<i8>,
    bias: Vec<i32>,
    multipliers: Vec<f32>,
}

/// Channel that register `r`, lane `lane` holds after unpacking, counted from the block's first.
const fn channel(r: usize, lane: usize) -> usize {
    lane / 4 * 16 + 4 * r + lane % 4
}

impl Block {
    fn new(spec: &ConvSpec, channels: Range<usize>, groups: &[[Option<usize>; 4]]) -> Self {
        let n = spec.out_channels();
        let lanes = channels.len() / 4;
        let order = || (0..4).flat_map(move |r| (0..lanes).map(move |lane| channels.start + channel(r, lane)));
        let weight = |c: usize, tap: Option<usize>| tap.filter(|_| c < n).map_or(0, |tap| spec.weight(c, 0, tap));
        Self {
            weights: groups.iter().flat_map(|taps| order().flat_map(|c| taps.map(|tap| weight(c, tap)))).collect(),
            bias: order().map(|c| if c < n { spec.folded_bias(c) } else { 0 }).collect(),
            multipliers: order().map(|c| if c < n { spec.requant.multipliers[c] } else { 0.0 }).collect(),
            channels,
        }
    }
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let window = &spec.window;
        let is_padded = |layout: Layout| layout.pixel_stride >= layout.shape.c.next_multiple_of(16);
        if !is_padded(input) || !is_padded(output) || window.halo(input.shape).union(input.halo) != input.halo {
            return None;
        }
        let offset = |tap: usize| {
            let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
            ky * window.dilation.0 * input.row_stride() + kx * window.dilation.1 * input.pixel_stride
        };
        let n_taps = window.n_taps();
        let in_pairs = window.kernel == (3, 3) && window.stride.1 == 1 && window.dilation.1 == 1;
        let groups: Vec<[Option<usize>; 4]> = if in_pairs {
            let rows = (0..3).map(|row| [3 * row, 3 * row + 1, 3 * row + 2].map(Some));
            rows.flat_map(|[a, b, c]| [[a, b, c, None], [None, a, b, c]]).collect()
        } else {
            (0..n_taps).step_by(4).map(|first| [0, 1, 2, 3].map(|i| Some(first + i).filter(|&tap| tap < n_taps))).collect()
        };
        let channels = spec.out_channels().next_multiple_of(16);
        let (mut blocks, mut first) = (Vec::new(), 0);
        while first < channels {
            let n = [64, 32, 16].into_iter().find(|&n| n <= channels - first)?;
            blocks.push(Block::new(spec, first..first + n, &groups));
            first += n;
        }
        Some(Self {
            input,
            output,
            stride: window.stride,
            lead: window.pads[0] * input.row_stride() + window.pads[1] * input.pixel_stride,
            taps: (0..n_taps).map(offset).collect(),
            in_pairs,
            blocks,
            zero_point: spec.requant.zero_point,
            lo: spec.requant.lo,
            hi: spec.requant.hi,
            is_plain: (spec.requant.lo, spec.requant.hi) == (0, u8::MAX) && is_bounded(spec),
        })
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for block in &self.blocks {
                // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
                unsafe {
                    match (block.channels.len(), self.is_plain) {
                        (64, true) => wide::row_of::<true>(self, block, inputs[0], y, row),
                        (64, false) => wide::row_of::<false>(self, block, inputs[0], y, row),
                        (32, true) => half::row_of::<true>(self, block, inputs[0], y, row),
                        (32, false) => half::row_of::<false>(self, block, inputs[0], y, row),
                        (_, true) => quarter::row_of::<true>(self, block, inputs[0], y, row),
                        (_, false) => quarter::row_of::<false>(self, block, inputs[0], y, row),
                    }
                }
            }
        }
    }

    fn label(&self) -> String {
        let pixels = if self.in_pairs { 2 } else { 1 };
        format!("avx512vnni {pixels}x{}", self.blocks.first().map_or(0, |block| block.channels.len()))
    }
}

/// The kernel for one width of register.
macro_rules! kernel {
    ($name:ident, $bytes:literal, $int:ident, $real:ident, $set1_8:ident, $set1_16:ident, $set1_ps:ident, $zero:ident,
     $load:ident, $load_ps:ident, $store:ident, $lo8:ident, $hi8:ident, $lo16:ident, $hi16:ident, $dot:ident,
     $to_ps:ident, $mul:ident, $min_ps:ident, $to_int:ident, $pack32:ident, $add16:ident, $pack16:ident, $max8:ident, $min8:ident) => {
        mod $name {
            use super::*;

            /// Sums of four registers.
            type Sums = [$int; 4];

            /// Zero point, range, and the ceiling that keeps conversions from overflowing: see `requantize`.
            struct Finish {
                zero_point: $int,
                lo: $int,
                hi: $int,
                ceiling: $real,
                m: [$real; 4],
            }

            impl Finish {
                /// # Safety
                /// The block has a multiplier for each lane.
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
                unsafe fn new(conv: &Depthwise, block: &Block) -> Self {
                    let mut m = [$set1_ps(0.0); 4];
                    for r in 0..4 {
                        // SAFETY: four registers of lanes.
                        m[r] = unsafe { $load_ps(block.multipliers.as_ptr().add($bytes / 4 * r)) };
                    }
                    Self {
                        zero_point: $set1_16(i16::from(conv.zero_point)),
                        lo: $set1_8(conv.lo.cast_signed()),
                        hi: $set1_8(conv.hi.cast_signed()),
                        ceiling: $set1_ps(1e9),
                        m,
                    }
                }

                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
                fn bytes<const PLAIN: bool>(&self, sums: Sums) -> $int {
                    let mut q = sums;
                    for r in 0..4 {
                        let scaled = $mul($to_ps(sums[r]), self.m[r]);
                        q[r] = $to_int(if PLAIN { scaled } else { $min_ps(scaled, self.ceiling) });
                    }
                    let low = $add16($pack32(q[0], q[1]), self.zero_point);
                    let high = $add16($pack32(q[2], q[3]), self.zero_point);
                    let bytes = $pack16(low, high);
                    if PLAIN { bytes } else { $min8($max8(bytes, self.lo), self.hi) }
                }
            }

            /// Four taps, byte by byte.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn quads(a: $int, b: $int, c: $int, d: $int) -> Sums {
                let (ab_lo, ab_hi) = ($lo8(a, b), $hi8(a, b));
                let (cd_lo, cd_hi) = ($lo8(c, d), $hi8(c, d));
                [$lo16(ab_lo, cd_lo), $hi16(ab_lo, cd_lo), $lo16(ab_hi, cd_hi), $hi16(ab_hi, cd_hi)]
            }

            /// Adds a group of taps.
            ///
            /// # Safety
            /// `weights` are those of the group.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn dot(sums: &mut Sums, quads: Sums, weights: *const i8) {
                for r in 0..4 {
                    // SAFETY: four registers of weights.
                    let w = unsafe { $load(weights.add($bytes * r).cast()) };
                    sums[r] = $dot(sums[r], quads[r], w);
                }
            }

            /// Row `y` of the output, for the channels of `block`.
            ///
            /// # Safety
            /// The CPU has the instruction set; `input` and `out` have the sizes of their layouts.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            pub(super) unsafe fn row_of<const PLAIN: bool>(
                conv: &Depthwise,
                block: &Block,
                input: &[u8],
                y: usize,
                out: &mut [u8],
            ) {
                let first = block.channels.start;
                let step = conv.stride.1 * conv.input.pixel_stride;
                let (width, to_step) = (conv.output.shape.w, conv.output.pixel_stride);
                // SAFETY: every tap of every pixel lies in the input with its halo, whose pixels have room for the block's channels,
                // as those of the output have; weights, bias and multipliers have a value for each lane.
                unsafe {
                    let finish = Finish::new(conv, block);
                    let mut bias = [$zero(); 4];
                    for r in 0..4 {
                        bias[r] = $load(block.bias.as_ptr().add($bytes / 4 * r).cast());
                    }
                    let mut from = input.as_ptr().add(conv.input.offset(y * conv.stride.0, 0) - conv.lead + first);
                    let mut to = out.as_mut_ptr().add(conv.output.halo.left * to_step + first);
                    let weights = block.weights.as_ptr();
                    if conv.in_pairs {
                        for x in (0..width).step_by(2) {
                            let (mut left, mut right) = (bias, bias);
                            for row in 0..3 {
                                let at = from.add(conv.taps[3 * row]);
                                let (a, b, c) = ($load(at.cast()), $load(at.add(step).cast()), $load(at.add(2 * step).cast()));
                                let d = if x + 1 < width { $load(at.add(3 * step).cast()) } else { $zero() };
                                let quads = quads(a, b, c, d);
                                dot(&mut left, quads, weights.add(8 * $bytes * row));
                                dot(&mut right, quads, weights.add(8 * $bytes * row + 4 * $bytes));
                            }
                            $store(to.cast(), finish.bytes::<PLAIN>(left));
                            if x + 1 < width {
                                $store(to.add(to_step).cast(), finish.bytes::<PLAIN>(right));
                            }
                            from = from.add(2 * step);
                            to = to.add(2 * to_step);
                        }
                        return;
                    }
                    for _ in 0..width {
                        let mut sums = bias;
                        let mut group = weights;
                        for taps in conv.taps.chunks(4) {
                            let load = |i: usize| taps.get(i).map_or($zero(), |&tap| $load(from.add(tap).cast()));
                            dot(&mut sums, quads(load(0), load(1), load(2), load(3)), group);
                            group = group.add(4 * $bytes);
                        }
                        $store(to.cast(), finish.bytes::<PLAIN>(sums));
                        from = from.add(step);
                        to = to.add(to_step);
                    }
                }
            }
        }
    };
}

kernel!(
    wide,
    64,
    __m512i,
    __m512,
    _mm512_set1_epi8,
    _mm512_set1_epi16,
    _mm512_set1_ps,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_loadu_ps,
    _mm512_storeu_si512,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_dpbusd_epi32,
    _mm512_cvtepi32_ps,
    _mm512_mul_ps,
    _mm512_min_ps,
    _mm512_cvtps_epi32,
    _mm512_packs_epi32,
    _mm512_adds_epi16,
    _mm512_packus_epi16,
    _mm512_max_epu8,
    _mm512_min_epu8
);
kernel!(
    half,
    32,
    __m256i,
    __m256,
    _mm256_set1_epi8,
    _mm256_set1_epi16,
    _mm256_set1_ps,
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_loadu_ps,
    _mm256_storeu_si256,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_dpbusd_epi32,
    _mm256_cvtepi32_ps,
    _mm256_mul_ps,
    _mm256_min_ps,
    _mm256_cvtps_epi32,
    _mm256_packs_epi32,
    _mm256_adds_epi16,
    _mm256_packus_epi16,
    _mm256_max_epu8,
    _mm256_min_epu8
);
kernel!(
    quarter,
    16,
    __m128i,
    __m128,
    _mm_set1_epi8,
    _mm_set1_epi16,
    _mm_set1_ps,
    _mm_setzero_si128,
    _mm_loadu_si128,
    _mm_loadu_ps,
    _mm_storeu_si128,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    _mm_unpacklo_epi16,
    _mm_unpackhi_epi16,
    _mm_dpbusd_epi32,
    _mm_cvtepi32_ps,
    _mm_mul_ps,
    _mm_min_ps,
    _mm_cvtps_epi32,
    _mm_packs_epi32,
    _mm_adds_epi16,
    _mm_packus_epi16,
    _mm_max_epu8,
    _mm_min_epu8
);
