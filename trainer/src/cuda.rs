//! Makes CUDA available to a binary that was linked without it.
//!
//! A binary linked against libtorch alone names only the CPU library. Opening `libtorch_cuda.so` before the first call
//! into libtorch registers the CUDA hooks, so that one binary serves machines with and without a GPU.

use std::ffi::{c_char, c_int, c_void};

const RTLD_NOW: c_int = 0x2;
const RTLD_GLOBAL: c_int = 0x100;

#[expect(unsafe_code, reason = "the declaration of dlopen")]
unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
}

/// Whether libtorch's CUDA library is there and was opened. Must come before any other use of libtorch.
#[expect(unsafe_code, reason = "one call into the dynamic linker")]
pub(crate) fn load_backend() -> bool {
    // SAFETY: the name is a NUL-terminated literal; the library's initialisers are libtorch's own, written to be loaded
    // this way; the handle is never closed.
    let handle = unsafe { dlopen(c"libtorch_cuda.so".as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    !handle.is_null()
}
