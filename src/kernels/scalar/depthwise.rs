//! Depthwise convolution: as `conv` with one input channel for each output channel.

use crate::kernels::{Requantization, Shape, Window};
use crate::quant::requantize;

/// Channels that are computed together.
const C_TILE: usize = 32;

/// Weights of a depthwise convolution: `[tap][channel]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedDepthwise {
    weights: Vec<i16>,
    bias: Vec<i32>,
    taps: usize,
}

impl PackedDepthwise {
    /// Packs weights in ONNX order `[C][1][kh][kw]`.
    ///
    /// # Panics
    /// If the lengths do not fit together; the loader checks them.
    #[must_use]
    pub fn new(weights: &[i8], bias: &[i32], taps: usize) -> Self {
        let channels = bias.len();
        assert_eq!(weights.len(), channels * taps, "weights are [C][1][taps]");
        let packed = (0..taps).flat_map(|tap| (0..channels).map(move |c| i16::from(weights[c * taps + tap]))).collect();
        Self { weights: packed, bias: bias.to_vec(), taps }
    }
}

/// One row of a depthwise convolution: output row `y` into `out` (`[W_out, C]`).
///
/// # Panics
/// If `input` or `out` are shorter than their shapes say.
pub fn qu8_qc8w_depthwise_row(
    input: &[u8],
    shape: Shape,
    zero_point: u8,
    window: &Window,
    packed: &PackedDepthwise,
    requant: &Requantization,
    y: usize,
    out: &mut [u8],
) {
    let zp = i16::from(zero_point);
    for (x, out) in out.chunks_exact_mut(shape.c).enumerate() {
        for first in (0..shape.c).step_by(C_TILE) {
            let n = C_TILE.min(shape.c - first);
            let mut acc = [0_i32; C_TILE];
            acc[..n].copy_from_slice(&packed.bias[first..][..n]);
            for tap in 0..packed.taps {
                let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
                let (Some(row), Some(col)) = (window.input_row(y, ky, shape.h), window.input_col(x, kx, shape.w)) else {
                    continue;
                };
                let pixel = &input[(row * shape.w + col) * shape.c + first..][..n];
                let weights = &packed.weights[tap * shape.c + first..][..n];
                for ((acc, &x), &w) in acc.iter_mut().zip(pixel).zip(weights) {
                    *acc = acc.wrapping_add(i32::from(i16::from(x) - zp) * i32::from(w));
                }
            }
            for ((out, &acc), &m) in out[first..][..n].iter_mut().zip(&acc).zip(&requant.multipliers[first..]) {
                *out = requantize(acc, m, requant.zero_point, requant.lo, requant.hi);
            }
        }
    }
}
