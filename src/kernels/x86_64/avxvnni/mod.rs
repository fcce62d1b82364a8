//! AVX-VNNI: the byte dot product `vpdpbusd` on AVX2's registers (Alder Lake and later, Zen 5 and later). What has no dot
//! product is left to [`avx2`](super::avx2).
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where [`is_available`] holds:
//! that is what each safe function here rests on when it enters a `target_feature` function.

use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::is_x86_feature_detected;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    super::avx2::is_available() && is_x86_feature_detected!("avxvnni")
}

/// The kernel for an operator, where this instruction set has one.
pub(in crate::kernels) fn prepare(
    _op: &OpSpec,
    _inputs: &[Layout],
    _output: Layout,
    _cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    None
}
