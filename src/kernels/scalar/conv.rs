//! Convolution: `acc[o] = bias[o] + sum over taps and channels of (x - zp_x) x w[o]`, then the requantisation rule.
//!
//! Padding stands for real 0, so a tap outside the input adds nothing. Accumulators are `i32` and wrap, as the
//! vector instructions of every CPU do; a network whose accumulators could overflow is refused at load.
//!
//! The values under the window are gathered once for each output column; each output channel is then one dot product of
//! `i16`. Sums of 32 products at a time are what compilers turn into multiply-add instructions on every CPU.

use crate::kernels::{Requantization, Shape, Window};
use crate::quant::requantize;
use std::cell::RefCell;

/// Products that are summed at a time; patches and weights are padded with 0 to a multiple.
const CHUNK: usize = 32;
/// Output channels whose sums are requantised together.
const OC_TILE: usize = 16;
/// Output columns that share the weights while they are near.
const X_TILE: usize = 4;

thread_local! {
    /// The gathered values of [`X_TILE`] columns; kept, so that a row allocates nothing once it has grown.
    static PATCHES: RefCell<Vec<i16>> = const { RefCell::new(Vec::new()) };
}

/// Weights of a convolution, laid out for [`qu8_qc8w_conv_row`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackedConv {
    /// `[output channel][tap][input channel of the group]`, each output channel padded with 0 to `patch_len`.
    weights: Vec<i16>,
    bias: Vec<i32>,
    groups: usize,
    in_per_group: usize,
    patch_len: usize,
}

impl PackedConv {
    /// Packs weights in ONNX order `[O][I / groups][kh][kw]`.
    ///
    /// # Panics
    /// If the lengths do not fit together; the loader checks them.
    #[must_use]
    pub fn new(weights: &[i8], bias: &[i32], groups: usize, in_channels: usize, taps: usize) -> Self {
        let in_per_group = in_channels / groups;
        assert_eq!(weights.len(), bias.len() * in_per_group * taps, "weights are [O][I / groups][taps]");
        let patch_len = (in_per_group * taps).next_multiple_of(CHUNK);
        let mut packed = vec![0; bias.len() * patch_len];
        for (o, packed) in packed.chunks_exact_mut(patch_len).enumerate() {
            for tap in 0..taps {
                for i in 0..in_per_group {
                    packed[tap * in_per_group + i] = i16::from(weights[(o * in_per_group + i) * taps + tap]);
                }
            }
        }
        Self { weights: packed, bias: bias.to_vec(), groups, in_per_group, patch_len }
    }
}

/// One row of a convolution: output row `y` into `out` (`[W_out, O]`).
///
/// # Panics
/// If `input` or `out` are shorter than their shapes say.
pub fn qu8_qc8w_conv_row(
    input: &[u8],
    shape: Shape,
    zero_point: u8,
    window: &Window,
    packed: &PackedConv,
    requant: &Requantization,
    y: usize,
    out: &mut [u8],
) {
    let out_channels = packed.bias.len();
    let out_per_group = out_channels / packed.groups;
    let source = Source { input, shape, zero_point, window };
    PATCHES.with_borrow_mut(|patches| {
        patches.clear();
        patches.resize(X_TILE * packed.patch_len, 0);
        for (tile_idx, out) in out.chunks_mut(X_TILE * out_channels).enumerate() {
            for group in 0..packed.groups {
                let n_cols = out.len() / out_channels;
                for (dx, patch) in patches.chunks_exact_mut(packed.patch_len).enumerate().take(n_cols) {
                    source.gather(y, tile_idx * X_TILE + dx, group * packed.in_per_group, packed.in_per_group, patch);
                }
                for first in (group * out_per_group..(group + 1) * out_per_group).step_by(OC_TILE) {
                    let n = OC_TILE.min((group + 1) * out_per_group - first);
                    tile(patches, packed, requant, first, n, out);
                }
            }
        }
    });
}

/// Output channels `first..first + n` of the columns in `out`.
fn tile(patches: &[i16], packed: &PackedConv, requant: &Requantization, first: usize, n: usize, out: &mut [u8]) {
    let out_channels = packed.bias.len();
    let mut acc = [[0_i32; OC_TILE]; X_TILE];
    let weights = packed.weights[first * packed.patch_len..][..n * packed.patch_len].chunks_exact(packed.patch_len);
    for (o, weights) in weights.enumerate() {
        for (patch, (acc, _)) in patches.chunks_exact(packed.patch_len).zip(acc.iter_mut().zip(out.chunks(out_channels))) {
            acc[o] = packed.bias[first + o].wrapping_add(dot(patch, weights));
        }
    }
    let multipliers = &requant.multipliers[first..][..n];
    for (out, acc) in out.chunks_exact_mut(out_channels).zip(&acc) {
        for ((out, &acc), &m) in out[first..][..n].iter_mut().zip(acc).zip(multipliers) {
            *out = requantize(acc, m, requant.zero_point, requant.lo, requant.hi);
        }
    }
}

/// What a window slides over.
struct Source<'a> {
    input: &'a [u8],
    shape: Shape,
    zero_point: u8,
    window: &'a Window,
}

impl Source<'_> {
    /// `x - zp` of channels `first..first + n` under every tap of output column `x`, row `y`; 0 in the padding.
    fn gather(&self, y: usize, x: usize, first: usize, n: usize, patch: &mut [i16]) {
        let zp = i16::from(self.zero_point);
        let (kh, kw) = self.window.kernel;
        for (tap, patch) in patch.chunks_exact_mut(n).enumerate().take(kh * kw) {
            let row = self.window.input_row(y, tap / kw, self.shape.h);
            let col = self.window.input_col(x, tap % kw, self.shape.w);
            let (Some(row), Some(col)) = (row, col) else {
                patch.fill(0);
                continue;
            };
            let pixel = &self.input[(row * self.shape.w + col) * self.shape.c + first..][..n];
            for (value, &x) in patch.iter_mut().zip(pixel) {
                *value = i16::from(x) - zp;
            }
        }
    }
}

/// Sum of products; both are a whole number of chunks long.
#[inline]
fn dot(patch: &[i16], weights: &[i16]) -> i32 {
    let mut sum = 0_i32;
    for (patch, weights) in patch.as_chunks::<CHUNK>().0.iter().zip(weights.as_chunks::<CHUNK>().0) {
        let mut part = 0_i32;
        for k in 0..CHUNK {
            part = part.wrapping_add(i32::from(patch[k]) * i32::from(weights[k]));
        }
        sum = sum.wrapping_add(part);
    }
    sum
}
