//! Advanced SIMD as every 64-bit Arm has it (Cortex-A53, A57, A72: Raspberry Pi 3 and 4, Jetson Nano).
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where the CPU has the instruction
//! set: that is what each safe function here rests on when it enters a `target_feature` function.

mod add;
mod channels;
mod conv;
mod depthwise;
mod edges;
mod maxpool;
mod preprocess;
pub(super) mod requantize;
mod winograd;

pub(in crate::kernels) use edges::{dequantize_planes, quantize_rgb_planes};
pub(in crate::kernels) use preprocess::PictureLoops;

use super::boxed;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::is_aarch64_feature_detected;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    is_aarch64_feature_detected!("neon")
}

/// The kernel for an operator, where this instruction set has one.
pub(in crate::kernels) fn prepare(
    op: &OpSpec,
    inputs: &[Layout],
    output: Layout,
    cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    let input = inputs[0];
    match op {
        OpSpec::Conv(spec) if spec.is_depthwise() => boxed(depthwise::Depthwise::new(spec, input, output)),
        OpSpec::Conv(spec) => {
            boxed(winograd::Conv::new(spec, input, output, cache)).or_else(|| boxed(conv::Conv::new(spec, input, output, cache)))
        }
        OpSpec::MaxPool(window) => boxed(maxpool::MaxPool::new(*window, input, output)),
        OpSpec::Add { terms, zero_point, lo, hi } => {
            boxed(add::Add::new([input, inputs[1]], output, *terms, (*zero_point, *lo, *hi)))
        }
        OpSpec::AddTo { terms, zero_point, lo, hi } => {
            boxed(add::Add::new([output, input], output, *terms, (*zero_point, *lo, *hi)))
        }
        OpSpec::Interleave { first, tables } => {
            boxed(channels::Interleave::new([input, inputs[1]], output, *first, tables.clone()))
        }
        OpSpec::Table(table) => boxed(channels::TableLookup::new(input, output, table)),
        _ => None,
    }
}
