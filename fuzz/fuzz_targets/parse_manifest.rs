//! A manifest from anywhere: it is refused, or says the same when it is written and read again.
#![no_main]

use fovea::retinanet::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(manifest) = Manifest::parse(&text) {
        assert!(Manifest::parse(&manifest.to_toml()).is_ok_and(|again| again == manifest), "{text}");
    }
});
