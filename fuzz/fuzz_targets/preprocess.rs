//! The body is `fuzz/bodies/preprocess.rs`, which the test suite runs on seeded inputs too.
#![no_main]

#[path = "../bodies/bytes.rs"]
#[expect(dead_code, reason = "each body takes what it needs")]
mod bytes;
#[path = "../bodies/preprocess.rs"]
mod preprocess;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    preprocess::look(bytes);
});
