//! Nearest-neighbour upsampling by two.

/// Two output columns for every input column: `row` (`[W, C]`) into `out` (`[2 W, C]`).
///
/// # Panics
/// If `out` is not twice as long as `row`.
pub fn qu8_upsample2_row(row: &[u8], channels: usize, out: &mut [u8]) {
    assert_eq!(out.len(), 2 * row.len(), "two columns for one");
    for (pixel, out) in row.chunks_exact(channels).zip(out.chunks_exact_mut(2 * channels)) {
        let (left, right) = out.split_at_mut(channels);
        left.copy_from_slice(pixel);
        right.copy_from_slice(pixel);
    }
}
