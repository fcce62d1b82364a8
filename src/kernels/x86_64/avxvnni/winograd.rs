//! 3x3 convolution after Winograd: see [`avx2::winograd`](crate::kernels::x86_64::avx2::winograd), of which all but the
//! multiplications are used.
//!
//! `vpdpwssd` takes the place of a `vpmaddwd` and an addition. 32 channels x 3 tiles take 12 accumulators, a weight and three
//! spread pairs of words.

use crate::kernels::pack::{PackCache, Products, Scheme};
use crate::kernels::winograd::{SIDE, Steps, Winograd};
use crate::kernels::x86_64::avx2::winograd::transform_rows;
use crate::kernels::{ConvSpec, Layout, RowKernel};

const SCHEME: Scheme = Scheme { lanes: 8, max_registers: 4, pack_lanes: 4, halves: false, products: Products::Transformed };

/// See [`Winograd::new`].
const MAX_PERCENT: usize = 140;

/// [`Winograd`] with a dot product of words.
#[derive(Debug)]
pub(super) struct Conv(Winograd);

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout, cache: &mut PackCache) -> Option<Self> {
        Winograd::new(spec, input, output, SCHEME, MAX_PERCENT, cache).map(Self)
    }

    /// # Safety
    /// The CPU has what the steps need.
    pub(super) unsafe fn rows_with(&self, steps: impl Fn(usize) -> Steps, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { self.0.rows(transform_rows, steps, inputs, first, out) };
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        // SAFETY: `Kernels` vouches for the CPU.
        unsafe { self.rows_with(vex::steps, inputs, first, out) };
    }

    fn rows_together(&self) -> usize {
        SIDE
    }

    fn label(&self) -> String {
        format!("avxvnni 4x4x{}", self.0.width())
    }
}

/// `steps` for one of the two encodings of the dot product.
macro_rules! steps {
    ($encoding:ident, $features:literal, $dot:literal) => {
        pub(super) mod $encoding {
            use crate::kernels::winograd::{POSITIONS, Steps};
            use crate::kernels::x86_64::avx2::winograd::finish;
            use std::arch::asm;
            use std::arch::x86_64::*;

            /// The steps for blocks of so many registers.
            pub(in super::super) fn steps(registers: usize) -> Steps {
                match registers {
                    1 => Steps { multiply: multiply::<1>, finish: finish::<1> },
                    2 => Steps { multiply: multiply::<2>, finish: finish::<2> },
                    3 => Steps { multiply: multiply::<3>, finish: finish::<3> },
                    _ => Steps { multiply: multiply::<4>, finish: finish::<4> },
                }
            }

            /// # Safety
            /// As `MultiplyFn`.
            #[target_feature(enable = $features)]
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
                        while tile + 3 <= n {
                            multiply_tiles::<3, N>(weights, n_pairs, [at(tile), at(tile + 1), at(tile + 2)]);
                            tile += 3;
                        }
                        while tile < n {
                            multiply_tiles::<1, N>(weights, n_pairs, [at(tile)]);
                            tile += 1;
                        }
                    }
                }
            }

            /// # Safety
            /// As `MultiplyFn`, for one position of `P` tiles.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn multiply_tiles<const P: usize, const N: usize>(
                weights: *const i8,
                n_pairs: usize,
                tiles: [(*const i32, *mut i32); P],
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
                                acc[p][n] = dot(acc[p][n], x[p], w);
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

            /// No intrinsic: see `avx512vnni::winograd::dot`.
            ///
            /// # Safety
            /// The CPU has the instruction.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn dot(acc: __m256i, x: __m256i, w: __m256i) -> __m256i {
                let mut acc = acc;
                // SAFETY: the caller vouches for the CPU; nothing but registers is touched.
                unsafe {
                    asm!(
                        $dot,
                        acc = inout(ymm_reg) acc,
                        x = in(ymm_reg) x,
                        w = in(ymm_reg) w,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
                acc
            }
        }
    };
}

steps!(vex, "avx2,avxvnni", "{{vex}} vpdpwssd {acc}, {x}, {w}");
#[cfg(test)]
steps!(evex, "avx2,avx512vl,avx512vnni", "{{evex}} vpdpwssd {acc}, {x}, {w}");
