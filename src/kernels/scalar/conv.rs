//! Convolution: `acc[o] = bias[o] + sum over taps and channels of (x - zp_x) x w[o]`, then the requantisation rule.
//!
//! Padding stands for real 0, so a tap outside the input adds nothing. Accumulators are `i32` and wrap, as the
//! vector instructions of every CPU do; a network whose accumulators could overflow is refused at load.
//!
//! The values under the window are gathered once for each output column; each output channel is then one dot product of
//! `i16`. Sums of 32 products at a time are what compilers turn into multiply-add instructions on every CPU.

use crate::kernels::op::check_buffers;
use crate::kernels::{ConvSpec, Layout, Requantization, RowKernel, Window};
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

/// A convolution. Weights are `[output channel][tap][input channel of the group]`, each output channel padded with 0 to `patch_len`.
#[derive(Debug)]
pub(super) struct Conv {
    window: Window,
    input: Layout,
    output: Layout,
    zero_point: i16,
    groups: usize,
    in_per_group: usize,
    patch_len: usize,
    weights: Vec<i16>,
    bias: Vec<i32>,
    requant: Requantization,
}

impl Conv {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Self {
        let (in_per_group, n_taps) = (spec.in_per_group(), spec.window.n_taps());
        let patch_len = (in_per_group * n_taps).next_multiple_of(CHUNK);
        let mut weights = vec![0; spec.out_channels() * patch_len];
        for (o, patch) in weights.chunks_exact_mut(patch_len).enumerate() {
            for (tap, values) in patch.chunks_exact_mut(in_per_group).take(n_taps).enumerate() {
                for (i, value) in values.iter_mut().enumerate() {
                    *value = i16::from(spec.weight(o, i, tap));
                }
            }
        }
        Self {
            window: spec.window,
            input,
            output,
            zero_point: i16::from(spec.input_zero_point),
            groups: spec.groups,
            in_per_group,
            patch_len,
            weights,
            bias: spec.bias.clone(),
            requant: spec.requant.clone(),
        }
    }

    /// `x - zp` of channels `first..` of the group under every tap of output column `x`, row `y`; 0 in the padding.
    fn gather(&self, input: &[u8], y: usize, x: usize, first: usize, patch: &mut [i16]) {
        let (n, (_, kw)) = (self.in_per_group, self.window.kernel);
        for (tap, patch) in patch.chunks_exact_mut(n).enumerate().take(self.window.n_taps()) {
            let row = self.window.input_row(y, tap / kw, self.input.shape.h);
            let col = self.window.input_col(x, tap % kw, self.input.shape.w);
            let (Some(row), Some(col)) = (row, col) else {
                patch.fill(0);
                continue;
            };
            for (value, &x) in patch.iter_mut().zip(&self.input.pixel(input, row, col)[first..][..n]) {
                *value = i16::from(x) - self.zero_point;
            }
        }
    }

    /// Output channels `first..first + n` of neighbouring columns.
    fn tile(&self, patches: &[i16], first: usize, n: usize, columns: &mut [&mut [u8]]) {
        let requant = &self.requant;
        let mut acc = [[0_i32; OC_TILE]; X_TILE];
        let weights = self.weights[first * self.patch_len..][..n * self.patch_len].chunks_exact(self.patch_len);
        for (o, weights) in weights.enumerate() {
            for (patch, acc) in patches.chunks_exact(self.patch_len).zip(&mut acc).take(columns.len()) {
                acc[o] = self.bias[first + o].wrapping_add(dot(patch, weights));
            }
        }
        for (out, acc) in columns.iter_mut().zip(&acc) {
            for ((out, &acc), &m) in out[first..][..n].iter_mut().zip(acc).zip(&requant.multipliers[first..]) {
                *out = requantize(acc, m, requant.zero_point, requant.lo, requant.hi);
            }
        }
    }

    /// Neighbouring columns of output row `y`, from column `x` on.
    fn columns(&self, input: &[u8], y: usize, x: usize, patches: &mut [i16], columns: &mut [&mut [u8]]) {
        let out_per_group = self.bias.len() / self.groups;
        for group in 0..self.groups {
            for (dx, patch) in patches.chunks_exact_mut(self.patch_len).enumerate().take(columns.len()) {
                self.gather(input, y, x + dx, group * self.in_per_group, patch);
            }
            for first in (group * out_per_group..(group + 1) * out_per_group).step_by(OC_TILE) {
                let n = OC_TILE.min((group + 1) * out_per_group - first);
                self.tile(patches, first, n, columns);
            }
        }
    }
}

impl RowKernel for Conv {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        PATCHES.with_borrow_mut(|patches| {
            patches.clear();
            patches.resize(X_TILE * self.patch_len, 0);
            for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
                let mut pixels = self.output.pixels_mut(row);
                let mut x = 0;
                while let Some(pixel) = pixels.next() {
                    let mut columns = [pixel, &mut [], &mut [], &mut []];
                    let more = columns[1..].iter_mut().zip(&mut pixels).map(|(column, pixel)| *column = pixel).count();
                    self.columns(inputs[0], y, x, patches, &mut columns[..=more]);
                    x += X_TILE;
                }
            }
        });
    }

    fn label(&self) -> String {
        "scalar".into()
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
