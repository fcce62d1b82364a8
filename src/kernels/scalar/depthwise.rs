//! Depthwise convolution: as `conv` with one input channel for each output channel.

use crate::kernels::op::check_buffers;
use crate::kernels::{ConvSpec, Layout, Requantization, RowKernel, Window};
use crate::quant::requantize;

/// Channels that are computed together.
const C_TILE: usize = 32;

/// A depthwise convolution; weights are `[tap][channel]`.
#[derive(Debug)]
pub(super) struct Depthwise {
    window: Window,
    input: Layout,
    output: Layout,
    zero_point: i16,
    weights: Vec<i16>,
    bias: Vec<i32>,
    requant: Requantization,
}

impl Depthwise {
    pub(super) fn new(spec: &ConvSpec, input: Layout, output: Layout) -> Self {
        let taps = 0..spec.window.n_taps();
        Self {
            window: spec.window,
            input,
            output,
            zero_point: i16::from(spec.input_zero_point),
            weights: taps.flat_map(|tap| (0..spec.out_channels()).map(move |c| i16::from(spec.weight(c, 0, tap)))).collect(),
            bias: spec.bias.clone(),
            requant: spec.requant.clone(),
        }
    }

    fn pixel(&self, input: &[u8], y: usize, x: usize, out: &mut [u8]) {
        let (window, shape, requant) = (&self.window, self.input.shape, &self.requant);
        for first in (0..shape.c).step_by(C_TILE) {
            let n = C_TILE.min(shape.c - first);
            let mut acc = [0_i32; C_TILE];
            acc[..n].copy_from_slice(&self.bias[first..][..n]);
            for tap in 0..window.n_taps() {
                let (ky, kx) = (tap / window.kernel.1, tap % window.kernel.1);
                let (Some(row), Some(col)) = (window.input_row(y, ky, shape.h), window.input_col(x, kx, shape.w)) else {
                    continue;
                };
                let values = &self.input.pixel(input, row, col)[first..][..n];
                let weights = &self.weights[tap * shape.c + first..][..n];
                for ((acc, &x), &w) in acc.iter_mut().zip(values).zip(weights) {
                    *acc = acc.wrapping_add(i32::from(i16::from(x) - self.zero_point) * i32::from(w));
                }
            }
            for ((out, &acc), &m) in out[first..][..n].iter_mut().zip(&acc).zip(&requant.multipliers[first..]) {
                *out = requantize(acc, m, requant.zero_point, requant.lo, requant.hi);
            }
        }
    }
}

impl RowKernel for Depthwise {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for (x, pixel) in self.output.pixels_mut(row).enumerate() {
                self.pixel(inputs[0], y, x, pixel);
            }
        }
    }

    fn label(&self) -> String {
        "scalar".into()
    }
}
