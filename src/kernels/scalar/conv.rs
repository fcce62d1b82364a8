//! Convolution: `acc[o] = bias[o] + sum over taps and channels of (x - zp_x) x w[o]`, then the requantisation rule.
//!
//! Padding stands for real 0, so a tap outside the input adds nothing. Accumulators are `i32` and wrap, as the
//! vector instructions of every CPU do; a network whose accumulators could overflow is refused at load.

use crate::kernels::{Requantization, Shape, Window};
use crate::quant::requantize;

/// Output channels that are computed together.
const OC_TILE: usize = 8;
/// Output columns that are computed together.
const X_TILE: usize = 4;

/// Weights of a convolution, laid out for [`qu8_qc8w_conv_row`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackedConv {
    /// `[group][output channel / OC_TILE][tap][input channel][OC_TILE]`, padded with 0.
    weights: Vec<i16>,
    /// One for each output channel, padded with 0 within each group.
    bias: Vec<i32>,
    groups: usize,
    in_per_group: usize,
    out_per_group: usize,
    taps: usize,
}

impl PackedConv {
    /// Packs weights in ONNX order `[O][I / groups][kh][kw]`.
    ///
    /// # Panics
    /// If the lengths do not fit together; the loader checks them.
    #[must_use]
    pub fn new(weights: &[i8], bias: &[i32], groups: usize, in_channels: usize, taps: usize) -> Self {
        let (in_per_group, out_per_group) = (in_channels / groups, bias.len() / groups);
        assert_eq!(weights.len(), bias.len() * in_per_group * taps, "weights are [O][I / groups][taps]");
        let tiles = out_per_group.div_ceil(OC_TILE);
        let mut packed = Self {
            weights: vec![0; groups * tiles * taps * in_per_group * OC_TILE],
            bias: vec![0; groups * tiles * OC_TILE],
            groups,
            in_per_group,
            out_per_group,
            taps,
        };
        for (o, &bias) in bias.iter().enumerate() {
            let (group, within) = (o / out_per_group, o % out_per_group);
            let tile = group * tiles + within / OC_TILE;
            packed.bias[tile * OC_TILE + within % OC_TILE] = bias;
            for i in 0..in_per_group {
                for tap in 0..taps {
                    let at = ((tile * taps + tap) * in_per_group + i) * OC_TILE + within % OC_TILE;
                    packed.weights[at] = i16::from(weights[(o * in_per_group + i) * taps + tap]);
                }
            }
        }
        packed
    }

    /// Bytes of packed weights and biases.
    #[must_use]
    pub const fn n_bytes(&self) -> usize {
        self.weights.len() * size_of::<i16>() + self.bias.len() * size_of::<i32>()
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
    let out_channels = packed.groups * packed.out_per_group;
    let out_width = out.len() / out_channels;
    let tiles = packed.out_per_group.div_ceil(OC_TILE);
    let outside = &[zero_point; 4096][..];
    assert!(packed.in_per_group <= outside.len(), "at most 4096 channels a group");
    for x0 in (0..out_width).step_by(X_TILE) {
        let n_cols = X_TILE.min(out_width - x0);
        for tile_idx in 0..packed.groups * tiles {
            let (group, tile) = (tile_idx / tiles, tile_idx % tiles);
            let bias = &packed.bias[tile_idx * OC_TILE..][..OC_TILE];
            let mut acc = [[0_i32; OC_TILE]; X_TILE];
            for column in &mut acc {
                column.copy_from_slice(bias);
            }
            for tap in 0..packed.taps {
                let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
                let Some(row) = window.input_row(y, ky, shape.h) else { continue };
                let pixel = |dx: usize| {
                    let col = window.input_col(x0 + dx, kx, shape.w);
                    col.map_or(&outside[..packed.in_per_group], |col| {
                        &input[(row * shape.w + col) * shape.c + group * packed.in_per_group..][..packed.in_per_group]
                    })
                };
                let weights = &packed.weights[(tile_idx * packed.taps + tap) * packed.in_per_group * OC_TILE..]
                    [..packed.in_per_group * OC_TILE];
                accumulate([pixel(0), pixel(1), pixel(2), pixel(3)], zero_point, weights, &mut acc);
            }
            let first = group * packed.out_per_group + tile * OC_TILE;
            let n_out = OC_TILE.min(packed.out_per_group - tile * OC_TILE);
            for (dx, column) in acc.iter().enumerate().take(n_cols) {
                let out = &mut out[(x0 + dx) * out_channels + first..][..n_out];
                for ((out, &acc), &m) in out.iter_mut().zip(column).zip(&requant.multipliers[first..]) {
                    *out = requantize(acc, m, requant.zero_point, requant.lo, requant.hi);
                }
            }
        }
    }
}

/// `acc[column][o] += sum over channels of (pixel[column][i] - zp) x weights[i][o]`.
#[inline]
fn accumulate(pixels: [&[u8]; X_TILE], zero_point: u8, weights: &[i16], acc: &mut [[i32; OC_TILE]; X_TILE]) {
    let zp = i16::from(zero_point);
    let weights = weights.as_chunks::<OC_TILE>().0;
    for (column, pixel) in acc.iter_mut().zip(pixels) {
        let mut sums = *column;
        for (&x, weights) in pixel.iter().zip(weights) {
            let x = i16::from(x) - zp;
            for o in 0..OC_TILE {
                sums[o] = sums[o].wrapping_add(i32::from(x) * i32::from(weights[o]));
            }
        }
        *column = sums;
    }
}
