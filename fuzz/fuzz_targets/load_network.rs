//! A file from anywhere: it loads and runs, or is refused.
#![no_main]

use fovea::executor::{LoadOptions, Network};
use libfuzzer_sys::fuzz_target;

/// Multiplications and bytes that one input may spend on running.
const MAX_MACS: usize = 5_000_000;
const MAX_BYTES: usize = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut network) = Network::load(bytes, &LoadOptions::default()) else { return };
    let census = network.census();
    if census.ops.iter().map(|count| count.macs).sum::<usize>() <= MAX_MACS && census.activation_bytes <= MAX_BYTES {
        let input: Vec<u8> = (0..=u8::MAX).cycle().take(network.input_shape().len()).collect();
        network.run_u8(&input, None).expect("what loads runs");
    }
});
