//! Kernels of x86-64, one folder for each instruction set, the same file names in each.
#![expect(unsafe_code, reason = "vector instructions: see the safety comments")]
#![expect(clippy::needless_range_loop, reason = "tiles of registers: an index counts registers of several arrays at once")]

pub(super) mod avx2;
pub(super) mod avx512vnni;
pub(super) mod avxvnni;

use super::RowKernel;

fn boxed<K: RowKernel + 'static>(kernel: Option<K>) -> Option<Box<dyn RowKernel>> {
    kernel.map(|kernel| Box::new(kernel) as Box<dyn RowKernel>)
}
