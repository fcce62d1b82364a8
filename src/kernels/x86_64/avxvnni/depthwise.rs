//! Depthwise convolution: 32 channels of one pixel at a time.
//!
//! A dot product adds four neighbouring bytes, a depthwise sum adds taps: so four taps are interleaved byte by byte (eight
//! unpacking instructions for 32 channels), and one `vpdpbusd` for each 8 channels adds all four.

use crate::kernels::op::check_buffers;
use crate::kernels::x86_64::avx2::depthwise::Taps;
use crate::kernels::{ConvSpec, Layout, RowKernel};

/// A depthwise convolution whose input has enough halo.
#[derive(Debug)]
pub(super) struct Depthwise {
    taps: Taps,
    /// `[block of 32][group of 4 taps][register][lane][4]`.
    weights: Vec<i8>,
}

/// Computes a row of a block: `(conv, block, from, out)`.
type BlockFn = unsafe fn(&Depthwise, usize, *const u8, *mut u8);

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Option<Self> {
        let taps = Taps::new(spec, input, output)?;
        let groups = (0..spec.out_channels())
            .step_by(32)
            .flat_map(|first| (0..taps.offsets.len()).step_by(4).map(move |tap| (first, tap)));
        let weights = groups.flat_map(|(first, tap)| Taps::weights(spec, first, tap)).flatten().collect();
        Some(Self { taps, weights })
    }

    /// # Safety
    /// The CPU has what `block_fn` needs.
    pub(super) unsafe fn rows_with(
        &self,
        block_fn: impl Fn(bool, bool) -> BlockFn,
        inputs: &[&[u8]],
        first: usize,
        out: &mut [u8],
    ) {
        let taps = &self.taps;
        check_buffers([(inputs[0], &taps.input)], first, out, &taps.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(taps.output.row_stride())) {
            taps.blocks(y, |idx, is_whole, from, to| {
                let run = block_fn(is_whole, taps.is_plain);
                // SAFETY: the caller vouches for the CPU; the buffers were checked above, the halo when the kernel was made.
                unsafe { run(self, idx, inputs[0].as_ptr().add(from), row.as_mut_ptr().add(to)) };
            });
        }
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        // SAFETY: `Kernels` vouches for the CPU.
        unsafe { self.rows_with(vex::block_fn, inputs, first, out) };
    }

    fn label(&self) -> String {
        "avxvnni 1x32".into()
    }
}

/// `block_fn` for one of the two encodings of the dot product.
macro_rules! blocks {
    ($encoding:ident, $features:literal, $dot:ident) => {
        pub(super) mod $encoding {
            use super::{BlockFn, Depthwise};
            use crate::kernels::x86_64::avx2::depthwise::{lanes_of, quads, store};
            use crate::kernels::x86_64::avx2::requantize::Range;
            use std::arch::x86_64::*;

            /// The kernel for 32 or 16 channels, with or without a clamp.
            pub(in super::super) fn block_fn(is_whole: bool, is_plain: bool) -> BlockFn {
                match (is_whole, is_plain) {
                    (true, true) => block_of_row::<true, true>,
                    (true, false) => block_of_row::<true, false>,
                    (false, true) => block_of_row::<false, true>,
                    (false, false) => block_of_row::<false, false>,
                }
            }

            /// # Safety
            /// The CPU has these instructions; `from` and `out` are what `Taps::blocks` says.
            #[target_feature(enable = $features)]
            unsafe fn block_of_row<const WHOLE: bool, const PLAIN: bool>(
                conv: &Depthwise,
                block: usize,
                from: *const u8,
                out: *mut u8,
            ) {
                let (taps, range) = (&conv.taps, Range::<PLAIN>::new(conv.taps.range));
                let (mut from, mut out) = (from, out);
                // SAFETY: every tap of every pixel lies in the input with its halo; each block has 32 weights for each tap.
                unsafe {
                    let (bias, m) = lanes_of(taps, block);
                    for _ in 0..taps.output.shape.w {
                        let mut acc = bias;
                        let mut weights = conv.weights.as_ptr().add(32 * taps.offsets.len() * block);
                        for offsets in taps.offsets.as_chunks::<4>().0 {
                            let x = quads::<WHOLE>(from, offsets);
                            for r in 0..4 {
                                acc[r] = $dot(acc[r], x[r], _mm256_loadu_si256(weights.add(32 * r).cast()));
                            }
                            weights = weights.add(128);
                        }
                        store::<WHOLE, PLAIN>(range, acc, m, out);
                        from = from.add(taps.stride.1 * taps.input.pixel_stride);
                        out = out.add(taps.output.pixel_stride);
                    }
                }
            }
        }
    };
}

blocks!(vex, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
#[cfg(test)]
blocks!(evex, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
