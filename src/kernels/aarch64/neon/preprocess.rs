//! Pictures: 16 samples down, 8 pixels across.
//!
//! Down: bytes are multiplied by the high and by the low seven bits of their weights (`umlal`). Across: `tbl` picks two values
//! for each of four outputs from eight consecutive ones.

use crate::kernels::preprocess::{Grid, Halves, Loops, RowPair, check_columns, check_rows};
use crate::kernels::scalar::{COLOR_BITS, ColorCoefficients, MID_BITS, WEIGHT_BITS};
use std::arch::aarch64::*;

#[derive(Debug)]
pub(in crate::kernels) struct PictureLoops;

impl Loops for PictureLoops {
    type Columns = Halves;

    fn prepare(grid: &Grid) -> Halves {
        Halves::new(grid, |output, nth| 4 * nth + output)
    }

    fn down(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
        check_rows(plane, stride, row_bytes, pairs, mid);
        // SAFETY: only called through `Kernels`, which vouches for the CPU; rows and `mid` were checked.
        unsafe { down_rows(plane, stride, row_bytes, pairs, mid) };
    }

    fn across(columns: &[Halves], mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
        let described = [&columns[0], &columns[columns.len() - 1]].map(|columns| (columns.reach, columns.ends.len()));
        check_columns(&described[..columns.len()], mids, rgb.len().div_ceil(3 * Halves::LANES));
        // SAFETY: only called through `Kernels`, which vouches for the CPU; `mids` were checked.
        unsafe {
            match columns {
                [luma, chroma] => across_yuv(luma, chroma, mids, matrix, rgb),
                _ if mids[1].is_empty() => across_gray(&columns[0], mids[0], rgb),
                _ => across_rgb(&columns[0], mids, rgb),
            }
        }
    }
}

/// # Safety
/// The CPU has NEON; the rows lie in `plane`; `mid` has 128 values beyond `row_bytes`.
#[target_feature(enable = "neon")]
unsafe fn down_rows(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
    if row_bytes < 16 {
        let row = |row_idx: usize| {
            let mut bytes = [0_u8; 16];
            bytes[..row_bytes].copy_from_slice(&plane[row_idx * stride..][..row_bytes]);
            // SAFETY: 16 bytes.
            unsafe { vld1q_u8(bytes.as_ptr()) }
        };
        // SAFETY: 16 values fit.
        return unsafe { down_block(pairs, row, mid.as_mut_ptr()) };
    }
    for first in (0..row_bytes).step_by(16) {
        // The last bytes come with some before them, which give the same values once more.
        let first = first.min(row_bytes - 16);
        // SAFETY: 16 bytes of a row.
        let row = |row_idx: usize| unsafe { vld1q_u8(plane.as_ptr().add(row_idx * stride + first)) };
        // SAFETY: 16 values fit.
        unsafe { down_block(pairs, row, mid.as_mut_ptr().add(first)) };
    }
}

/// # Safety
/// The CPU has NEON; `mid` has room for 16 values.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn down_block(pairs: &[RowPair], row: impl Fn(usize) -> uint8x16_t, mid: *mut u16) {
    const FRACTION: u16 = (1 << MID_BITS) - 1;
    let mut high = [vdupq_n_u16(0); 2];
    let mut low = [vdupq_n_u16(1 << (MID_BITS - 1)); 2];
    for (i, pair) in pairs.iter().enumerate() {
        if i > 0 {
            // Two low parts more would not fit: 127 + 2 x 127 x 255 do.
            high = [0, 1].map(|half| vsraq_n_u16::<7>(high[half], low[half]));
            low = low.map(|low| vandq_u16(low, vdupq_n_u16(FRACTION)));
        }
        for (row_idx, weight) in pair.rows.into_iter().zip(pair.weights) {
            let samples = row(row_idx);
            // A weight in a pair is below 1 << 14.
            let [high_weight, low_weight] = [weight >> MID_BITS, weight & FRACTION].map(|part| vdupq_n_u8(part.to_le_bytes()[0]));
            high[0] = vmlal_u8(high[0], vget_low_u8(samples), vget_low_u8(high_weight));
            high[1] = vmlal_high_u8(high[1], samples, high_weight);
            low[0] = vmlal_u8(low[0], vget_low_u8(samples), vget_low_u8(low_weight));
            low[1] = vmlal_high_u8(low[1], samples, low_weight);
        }
    }
    for half in 0..2 {
        // SAFETY: eight values each.
        unsafe { vst1q_u16(mid.add(8 * half), vsraq_n_u16::<7>(high[half], low[half])) };
    }
}

/// Bytes of one block for components of one grid, in 16 bits each; `at` is where its rounds begin and then where they end.
///
/// # Safety
/// The CPU has NEON; each of `mids` has the values that the columns reach.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn weigh<const N: usize>(columns: &Halves, block: usize, at: &mut usize, mids: [&[u16]; N]) -> [int16x8_t; N] {
    const SHIFT: u32 = WEIGHT_BITS + MID_BITS;
    let mut sums = [[vdupq_n_u32(1 << (SHIFT - 1)); 2]; N];
    let end = columns.ends[block];
    for round in &columns.rounds[*at..end] {
        for half in 0..2 {
            // SAFETY: 16 bytes and eight values.
            let (from, weights) =
                unsafe { (vld1q_u8(round.from.as_ptr().add(16 * half)), vld1q_u16(round.weights.as_ptr().add(8 * half))) };
            for i in 0..N {
                // SAFETY: a window, and `mid` has all that are reached.
                let values = unsafe { vld1q_u8(mids[i].as_ptr().add(round.offsets[half]).cast()) };
                let picked = vreinterpretq_u16_u8(vqtbl1q_u8(values, from));
                let sum = vmlal_u16(sums[i][half], vget_low_u16(picked), vget_low_u16(weights));
                sums[i][half] = vmlal_high_u16(sum, picked, weights);
            }
        }
    }
    *at = end;
    sums.map(|[a, b]| {
        // The upper 16 bits, then the rest of the shift.
        let upper = vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
        vreinterpretq_s16_u16(vshrq_n_u16::<5>(upper))
    })
}

/// # Safety
/// As [`weigh`], for luma and chroma.
#[target_feature(enable = "neon")]
unsafe fn across_yuv(luma: &Halves, chroma: &Halves, mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
    let narrow = |value: i32| i16::try_from(value).expect("coefficients have 16 bits");
    let (black, gain) = (narrow(matrix.black), narrow(matrix.y));
    let (rv, gu, gv, bu) = (narrow(matrix.rv), narrow(-matrix.gu), narrow(-matrix.gv), narrow(matrix.bu));
    let (mut luma_at, mut chroma_at) = (0, 0);
    for (block, pixels) in rgb.chunks_mut(3 * Halves::LANES).enumerate() {
        // SAFETY: as for this function.
        let ([y], [u, v]) =
            unsafe { (weigh(luma, block, &mut luma_at, [mids[0]]), weigh(chroma, block, &mut chroma_at, [mids[1], mids[2]])) };
        let y = vsubq_s16(y, vdupq_n_s16(black));
        let [u, v] = [u, v].map(|c| vsubq_s16(c, vdupq_n_s16(128)));
        let half = vdupq_n_s32(1 << (COLOR_BITS - 1));
        let luma = [vmlal_n_s16(half, vget_low_s16(y), gain), vmlal_high_n_s16(half, y, gain)];
        let plus = |sums: [int32x4_t; 2], c: int16x8_t, share: i16| {
            [vmlal_n_s16(sums[0], vget_low_s16(c), share), vmlal_high_n_s16(sums[1], c, share)]
        };
        let rgb = [plus(luma, v, rv), plus(plus(luma, u, gu), v, gv), plus(luma, u, bu)];
        // Clamped at 0, then at 255.
        let bytes = rgb.map(|[a, b]| vqmovn_u16(vcombine_u16(vqshrun_n_s32::<13>(a), vqshrun_n_s32::<13>(b))));
        write(pixels, bytes);
    }
}

/// # Safety
/// As [`weigh`], for three components.
#[target_feature(enable = "neon")]
unsafe fn across_rgb(columns: &Halves, mids: [&[u16]; 3], rgb: &mut [u8]) {
    let mut at = 0;
    for (block, pixels) in rgb.chunks_mut(3 * Halves::LANES).enumerate() {
        // SAFETY: as for this function.
        let values = unsafe { weigh(columns, block, &mut at, mids) };
        write(pixels, values.map(|value| vqmovun_s16(value)));
    }
}

/// # Safety
/// As [`weigh`], for one component.
#[target_feature(enable = "neon")]
unsafe fn across_gray(columns: &Halves, mid: &[u16], rgb: &mut [u8]) {
    let mut at = 0;
    for (block, pixels) in rgb.chunks_mut(3 * Halves::LANES).enumerate() {
        // SAFETY: as for this function.
        let [luma] = unsafe { weigh(columns, block, &mut at, [mid]) };
        write(pixels, [vqmovun_s16(luma); 3]);
    }
}

/// Up to eight pixels: red, green and blue.
#[inline]
#[target_feature(enable = "neon")]
fn write(pixels: &mut [u8], [r, g, b]: [uint8x8_t; 3]) {
    let mut bytes = [0; 3 * Halves::LANES];
    let is_whole = pixels.len() == bytes.len();
    let out = if is_whole { pixels.as_mut_ptr() } else { bytes.as_mut_ptr() };
    // SAFETY: 24 bytes.
    unsafe { vst3_u8(out, uint8x8x3_t(r, g, b)) };
    if !is_whole {
        pixels.copy_from_slice(&bytes[..pixels.len()]);
    }
}
