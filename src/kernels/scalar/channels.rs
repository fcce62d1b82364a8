//! What moves or maps values without arithmetic: tables, concatenation, slices and shuffles of channels.

/// `out[i] = table[input[i]]`.
///
/// # Panics
/// If the two differ in length.
pub fn qu8_table(input: &[u8], table: &[u8; 256], out: &mut [u8]) {
    assert_eq!(input.len(), out.len(), "a value for each value");
    for (out, &x) in out.iter_mut().zip(input) {
        *out = table[usize::from(x)];
    }
}

/// One part of a concatenation: `row` (`[W, c]`) into channels `first..first + c` of `out` (`[W, C]`), through `table`
/// where the part has other quantisation parameters than the whole.
///
/// # Panics
/// If the part does not fit.
pub fn qu8_concat_row(row: &[u8], c: usize, table: Option<&[u8; 256]>, first: usize, channels: usize, out: &mut [u8]) {
    for (pixel, out) in row.chunks_exact(c).zip(out.chunks_exact_mut(channels)) {
        let out = &mut out[first..][..c];
        match table {
            None => out.copy_from_slice(pixel),
            Some(table) => qu8_table(pixel, table, out),
        }
    }
}

/// Channels `first..` of `row` (`[W, C]`) into `out` (`[W, c]`).
///
/// # Panics
/// If the slice does not fit.
pub fn qu8_slice_row(row: &[u8], channels: usize, first: usize, c: usize, out: &mut [u8]) {
    for (pixel, out) in row.chunks_exact(channels).zip(out.chunks_exact_mut(c)) {
        out.copy_from_slice(&pixel[first..][..c]);
    }
}

/// Channel shuffle (ShuffleNet, arXiv 1707.01083, section 3.1): channel `g x (C / groups) + i` becomes `i x groups + g`.
///
/// # Panics
/// If `groups` does not divide `channels`.
pub fn qu8_shuffle_row(row: &[u8], channels: usize, groups: usize, out: &mut [u8]) {
    assert_eq!(channels % groups, 0, "{groups} groups of {channels} channels");
    let per_group = channels / groups;
    for (pixel, out) in row.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        for (group, part) in pixel.chunks_exact(per_group).enumerate() {
            for (i, &x) in part.iter().enumerate() {
                out[i * groups + group] = x;
            }
        }
    }
}
