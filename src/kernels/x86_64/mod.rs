//! Kernels of x86-64, one folder for each instruction set, the same file names in each.
#![expect(unsafe_code, reason = "vector instructions: see the safety comments")]
#![expect(clippy::needless_range_loop, reason = "tiles of registers: an index counts registers of several arrays at once")]

pub(super) mod avx512vnni;
