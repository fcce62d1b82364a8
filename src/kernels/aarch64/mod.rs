//! Kernels of 64-bit Arm, one folder for each instruction set, the same file names in each.
//!
//! Activations are `u8` in memory as on every CPU. An instruction that takes signed bytes gets `x ^ 0x80`, which is `x - 128`; the
//! bias makes up for it ([`ConvSpec::folded_bias_from`](crate::kernels::ConvSpec::folded_bias_from)).
#![expect(unsafe_code, reason = "vector instructions: see the safety comments")]
#![expect(clippy::needless_range_loop, reason = "tiles of registers: an index counts registers of several arrays at once")]

pub(super) mod dotprod;
pub(super) mod i8mm;
pub(super) mod neon;

use super::RowKernel;

fn boxed<K: RowKernel + 'static>(kernel: Option<K>) -> Option<Box<dyn RowKernel>> {
    kernel.map(|kernel| Box::new(kernel) as Box<dyn RowKernel>)
}
