//! Pictures: 64 samples down, 16 pixels across.
//!
//! Down: rows in pairs, interleaved byte by byte, for `vpmaddubsw` with the high and the low parts of their weights.
//! Across: `vpermi2w` picks two values for each of 16 outputs from 64 consecutive ones, `vpdpwssd` adds both products.

use crate::kernels::preprocess::{Grid, Loops, RowPair, Window, check_columns, check_rows, windows};
use crate::kernels::scalar::{COLOR_BITS, ColorCoefficients, MID_BITS, WEIGHT_BITS};
use std::arch::x86_64::*;

/// Output samples of a block.
const LANES: usize = 16;

/// Values of a window.
const WINDOW: usize = 64;

#[derive(Debug)]
pub(in crate::kernels) struct PictureLoops;

/// Fraction bits of a weighted sum.
const SHIFT: u32 = WEIGHT_BITS + MID_BITS;

/// Two values of a window for each output of a block.
#[derive(Debug, PartialEq, Eq)]
#[repr(align(64))]
struct Round {
    from: [u16; 2 * LANES],
    weights: [i16; 2 * LANES],
}

/// The same number of windows for every block and of rounds for every window: loops without surprises.
#[derive(Debug)]
pub(in crate::kernels) struct Columns {
    n_blocks: usize,
    n_windows: usize,
    n_rounds: usize,
    /// First value of each window.
    offsets: Vec<usize>,
    rounds: Vec<Round>,
    /// Whether the rounds of every block are those of the first: 16 outputs come from a whole number of samples.
    is_periodic: bool,
    /// Values that are read at most.
    reach: usize,
}

impl Loops for PictureLoops {
    type Columns = Columns;

    fn prepare(grid: &Grid) -> Columns {
        let firsts = (0..grid.columns.len()).step_by(LANES);
        let blocks: Vec<Vec<Window>> = firsts.map(|first| windows(grid, first..first + LANES, WINDOW, usize::MAX)).collect();
        let n_windows = blocks.iter().map(Vec::len).max().unwrap_or(0);
        let n_rounds = blocks.iter().flatten().map(|window| window.rounds.len()).max().unwrap_or(0);
        let n_blocks = blocks.len();
        let (offsets, rounds) = (Vec::new(), Vec::new());
        let mut columns = Columns { n_blocks, n_windows, n_rounds, offsets, rounds, is_periodic: false, reach: WINDOW };
        for block in &blocks {
            for nth in 0..n_windows {
                let offset = block.get(nth).map_or(0, |window| window.offset);
                columns.offsets.push(offset);
                columns.reach = columns.reach.max(offset + WINDOW);
                for round in 0..n_rounds {
                    let picks = block.get(nth).and_then(|window| window.rounds.get(round));
                    columns.rounds.push(Round::new(picks.map_or(&[], Vec::as_slice)));
                }
            }
        }
        let mut rounds = columns.rounds.chunks((n_windows * n_rounds).max(1));
        let first = rounds.next();
        columns.is_periodic = rounds.all(|rounds| Some(rounds) == first);
        columns
    }

    fn down(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
        check_rows(plane, stride, row_bytes, pairs, mid);
        // SAFETY: only called through `Kernels`, which vouches for the CPU; rows and `mid` were checked.
        unsafe {
            if pairs.iter().all(RowPair::is_coarse) {
                down_rows_coarse(plane, stride, row_bytes, pairs, mid);
            } else {
                down_rows(plane, stride, row_bytes, pairs, mid);
            }
        }
    }

    fn across(columns: &[Columns], mids: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
        let described = [&columns[0], &columns[columns.len() - 1]].map(|columns| (columns.reach, columns.n_blocks));
        check_columns(&described[..columns.len()], mids, rgb.len().div_ceil(3 * LANES));
        // SAFETY: only called through `Kernels`, which vouches for the CPU; `mids` were checked.
        unsafe {
            match columns {
                [luma, chroma] => {
                    let is_periodic = luma.is_periodic && chroma.is_periodic;
                    let across = match (luma.rounds_of_one(), chroma.rounds_of_one(), is_periodic) {
                        (1, 1, true) => across_yuv::<1, 1, true>,
                        (2, 1, true) => across_yuv::<2, 1, true>,
                        (2, 2, true) => across_yuv::<2, 2, true>,
                        (3, 2, true) => across_yuv::<3, 2, true>,
                        (1, 1, false) => across_yuv::<1, 1, false>,
                        (2, 1, false) => across_yuv::<2, 1, false>,
                        (2, 2, false) => across_yuv::<2, 2, false>,
                        (3, 2, false) => across_yuv::<3, 2, false>,
                        _ => across_yuv_any,
                    };
                    across(luma, chroma, mids, matrix, rgb);
                }
                _ if mids[1].is_empty() => across_gray(&columns[0], mids[0], rgb),
                _ => across_rgb(&columns[0], mids, rgb),
            }
        }
    }
}

impl Columns {
    /// Rounds of a block, where one window holds all that it takes; else 0.
    const fn rounds_of_one(&self) -> usize {
        if self.n_windows == 1 { self.n_rounds } else { 0 }
    }
}

impl Round {
    fn new(picks: &[[(usize, u16); 2]]) -> Self {
        let mut round = Self { from: [0; 2 * LANES], weights: [0; 2 * LANES] };
        for (i, &(from, weight)) in picks.iter().flatten().enumerate() {
            round.from[i] = u16::try_from(from).expect("within a window");
            round.weights[i] = i16::try_from(weight).expect("at most 1 << 14");
        }
        round
    }
}

/// # Safety
/// The CPU has AVX-512 F and BW; the rows lie in `plane`; `mid` has 128 values beyond `row_bytes`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn down_rows(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
    for first in (0..row_bytes).step_by(64) {
        let mut high = [_mm512_setzero_si512(); 2];
        let mut low = [_mm512_set1_epi16(1 << (MID_BITS - 1)); 2];
        for (i, pair) in pairs.iter().enumerate() {
            // SAFETY: as for this function.
            let samples = unsafe { interleaved(plane, stride, row_bytes, pair, first) };
            let (high_weights, low_weights) = (weights(pair.high), weights(pair.low));
            for half in 0..2 {
                high[half] = _mm512_add_epi16(high[half], _mm512_maddubs_epi16(samples[half], high_weights));
                if i > 0 {
                    high[half] = _mm512_add_epi16(high[half], _mm512_srai_epi16::<MID_BITS>(low[half]));
                    low[half] = _mm512_and_si512(low[half], _mm512_set1_epi16((1 << MID_BITS) - 1));
                }
                low[half] = _mm512_add_epi16(low[half], _mm512_maddubs_epi16(samples[half], low_weights));
            }
        }
        let values = [0, 1].map(|half| _mm512_add_epi16(high[half], _mm512_srai_epi16::<MID_BITS>(low[half])));
        // SAFETY: `first < row_bytes`, and 64 values fit into what `mid` has beyond.
        unsafe { store(values, mid.as_mut_ptr().add(first)) };
    }
}

/// Where no weight has a low part.
///
/// # Safety
/// As [`down_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn down_rows_coarse(plane: &[u8], stride: usize, row_bytes: usize, pairs: &[RowPair], mid: &mut [u16]) {
    for first in (0..row_bytes).step_by(64) {
        let products = |pair: &RowPair| {
            // SAFETY: as for this function.
            let samples = unsafe { interleaved(plane, stride, row_bytes, pair, first) };
            samples.map(|samples| _mm512_maddubs_epi16(samples, weights(pair.high)))
        };
        let mut values = products(&pairs[0]);
        for pair in &pairs[1..] {
            let more = products(pair);
            values = [0, 1].map(|half| _mm512_add_epi16(values[half], more[half]));
        }
        // SAFETY: `first < row_bytes`, and 64 values fit into what `mid` has beyond.
        unsafe { store(values, mid.as_mut_ptr().add(first)) };
    }
}

/// Weights of two rows, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn weights(parts: [i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_ne_bytes(parts.map(i8::cast_unsigned)))
}

/// 64 bytes of two rows, byte by byte, zeros where the rows end.
///
/// # Safety
/// The CPU has AVX-512 F and BW; the rows lie in `plane`; `first < row_bytes`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleaved(plane: &[u8], stride: usize, row_bytes: usize, pair: &RowPair, first: usize) -> [__m512i; 2] {
    let left = row_bytes - first;
    let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
    let [a, b] = pair.rows.map(|row_idx| {
        // SAFETY: the mask keeps the load within the row.
        unsafe { _mm512_maskz_loadu_epi8(mask, plane.as_ptr().add(row_idx * stride + first).cast()) }
    });
    [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)]
}

/// Values of interleaved bytes in the order of the columns.
///
/// # Safety
/// The CPU has AVX-512 F; `mid` has room for 64 values.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store([a, b]: [__m512i; 2], mid: *mut u16) {
    let (lower, upper) = (_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15));
    // SAFETY: 32 values each.
    unsafe {
        _mm512_storeu_si512(mid.cast(), _mm512_permutex2var_epi64(a, lower, b));
        _mm512_storeu_si512(mid.add(32).cast(), _mm512_permutex2var_epi64(a, upper, b));
    }
}

/// What weighs the outputs of a block in one round, in registers: where values come from, and their weights.
type Weighing = (__m512i, __m512i);

impl Round {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self) -> Weighing {
        // SAFETY: 32 values of 16 bits each.
        unsafe { (_mm512_load_si512(self.from.as_ptr().cast()), _mm512_load_si512(self.weights.as_ptr().cast())) }
    }
}

impl Columns {
    /// The rounds of a block that has one window.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load<const ROUNDS: usize>(&self, block: usize) -> [Weighing; ROUNDS] {
        let rounds = &self.rounds[block * ROUNDS..][..ROUNDS];
        std::array::from_fn(|i| rounds[i].load())
    }
}

/// Half a unit of a weighted sum, from which it begins.
#[inline]
#[target_feature(enable = "avx512f")]
fn half<const N: usize>() -> [__m512i; N] {
    [_mm512_set1_epi32(1 << (SHIFT - 1)); N]
}

/// The values of a window for each component.
///
/// # Safety
/// The CPU has AVX-512 F; each of `mids` has a window from `offset` on.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn window<const N: usize>(offset: usize, mids: [&[u16]; N]) -> [(__m512i, __m512i); N] {
    mids.map(|mid| {
        // SAFETY: 32 values each.
        unsafe {
            let window = mid.as_ptr().add(offset);
            (_mm512_loadu_si512(window.cast()), _mm512_loadu_si512(window.add(32).cast()))
        }
    })
}

/// Adds what a round picks from a window.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add<const N: usize>(sums: &mut [__m512i; N], window: &[(__m512i, __m512i); N], (from, weights): Weighing) {
    for (sum, values) in sums.iter_mut().zip(window) {
        *sum = _mm512_dpwssd_epi32(*sum, _mm512_permutex2var_epi16(values.0, from, values.1), weights);
    }
}

/// Weighted sums of one block for components of one grid, in 32 bits each: the byte is in the upper 11.
///
/// # Safety
/// The CPU has AVX-512 F, BW and VNNI; each of `mids` has the values that the columns reach.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn weigh<const N: usize>(columns: &Columns, block: usize, mids: [&[u16]; N]) -> [__m512i; N] {
    let mut sums = half();
    let (n_windows, n_rounds) = (columns.n_windows, columns.n_rounds);
    let mut rounds = columns.rounds[block * n_windows * n_rounds..][..n_windows * n_rounds].iter();
    for &offset in &columns.offsets[block * n_windows..][..n_windows] {
        // SAFETY: as for this function.
        let window = unsafe { window(offset, mids) };
        for round in rounds.by_ref().take(n_rounds) {
            add(&mut sums, &window, round.load());
        }
    }
    sums
}

/// The same where each block has one window and `ROUNDS` rounds, `weighings`.
///
/// # Safety
/// As [`weigh`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn weigh_one<const N: usize, const ROUNDS: usize>(
    columns: &Columns,
    block: usize,
    weighings: [Weighing; ROUNDS],
    mids: [&[u16]; N],
) -> [__m512i; N] {
    let mut sums = half();
    // SAFETY: as for this function.
    let window = unsafe { window(columns.offsets[block], mids) };
    for weighing in weighings {
        add(&mut sums, &window, weighing);
    }
    sums
}

/// Luma and chroma, both with one window a block, and what weighs them in registers from the first block to the last where
/// it `IS_PERIODIC`.
///
/// # Safety
/// As [`weigh`], for luma and chroma.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn across_yuv<const LUMA: usize, const CHROMA: usize, const IS_PERIODIC: bool>(
    luma: &Columns,
    chroma: &Columns,
    [y, u, v]: [&[u16]; 3],
    matrix: &ColorCoefficients,
    rgb: &mut [u8],
) {
    let first = (luma.load::<LUMA>(0), chroma.load::<CHROMA>(0));
    let weighed = |block: usize| {
        let (of_luma, of_chroma) = if IS_PERIODIC { first } else { (luma.load(block), chroma.load(block)) };
        // SAFETY: as for this function.
        unsafe { (weigh_one(luma, block, of_luma, [y]), weigh_one(chroma, block, of_chroma, [u, v])) }
    };
    color(weighed, matrix, rgb);
}

/// # Safety
/// As [`weigh`], for luma and chroma.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn across_yuv_any(luma: &Columns, chroma: &Columns, [y, u, v]: [&[u16]; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
    // SAFETY: as for this function.
    color(|block| unsafe { (weigh(luma, block, [y]), weigh(chroma, block, [u, v])) }, matrix, rgb);
}

/// Red, green and blue of a row from the weighted sums of its blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn color(weighed: impl Fn(usize) -> ([__m512i; 1], [__m512i; 2]), matrix: &ColorCoefficients, rgb: &mut [u8]) {
    // Two coefficients of 16 bits each: the lower one for luma, the upper one for chroma.
    let pair = |low: i32, high: i32| _mm512_set1_epi32((low & 0xFFFF) | (high << 16));
    let (red, blue) = (pair(matrix.y, matrix.rv), pair(matrix.y, matrix.bu));
    let (green_u, green_v) = (pair(matrix.y, -matrix.gu), pair(0, -matrix.gv));
    // What black and the middle of chroma take away, and half a unit.
    let rest = |chroma: i32| _mm512_set1_epi32((1 << (COLOR_BITS - 1)) - matrix.y * matrix.black - 128 * chroma);
    let (red_rest, green_rest, blue_rest) = (rest(matrix.rv), rest(-matrix.gu - matrix.gv), rest(matrix.bu));
    for block in 0..rgb.len().div_ceil(3 * LANES) {
        let ([y], [u, v]) = weighed(block);
        // Luma below, chroma in the upper 16 bits above a fraction that is not looked at.
        let y = _mm512_srli_epi32::<SHIFT>(y);
        let [u, v] = [u, v].map(|c| _mm512_srli_epi32::<{ SHIFT - 16 }>(c));
        let [yu, yv] = [u, v].map(|c| _mm512_mask_blend_epi16(0xAAAA_AAAA, y, c));
        let r = _mm512_dpwssd_epi32(red_rest, yv, red);
        let g = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(green_rest, yu, green_u), v, green_v);
        let b = _mm512_dpwssd_epi32(blue_rest, yu, blue);
        write(&mut rgb[3 * LANES * block..], [r, g, b].map(|value| _mm512_srai_epi32::<COLOR_BITS>(value)));
    }
}

/// # Safety
/// As [`weigh`], for three components.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn across_rgb(columns: &Columns, mids: [&[u16]; 3], rgb: &mut [u8]) {
    for block in 0..rgb.len().div_ceil(3 * LANES) {
        // SAFETY: as for this function.
        let sums = unsafe { weigh(columns, block, mids) };
        write(&mut rgb[3 * LANES * block..], sums.map(|sum| _mm512_srli_epi32::<SHIFT>(sum)));
    }
}

/// # Safety
/// As [`weigh`], for one component.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn across_gray(columns: &Columns, mid: &[u16], rgb: &mut [u8]) {
    for block in 0..rgb.len().div_ceil(3 * LANES) {
        // SAFETY: as for this function.
        let [luma] = unsafe { weigh(columns, block, [mid]) };
        write(&mut rgb[3 * LANES * block..], [_mm512_srli_epi32::<SHIFT>(luma); 3]);
    }
}

/// Red, green and blue of a block, clamped to bytes, to where a row goes on; what lies behind them in the row is overwritten.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn write(rgb: &mut [u8], [r, g, b]: [__m512i; 3]) {
    let bytes = _mm512_packus_epi16(_mm512_packs_epi32(r, g), _mm512_packs_epi32(b, b));
    // Four pixels in each lane: to 12 bytes, and the 12 bytes of all lanes together.
    let mixed = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1));
    let dense = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 3, 3, 3);
    let pixels = _mm512_permutexvar_epi32(dense, _mm512_shuffle_epi8(bytes, mixed));
    if rgb.len() >= 64 {
        // SAFETY: 64 bytes. A store with a mask is slower.
        unsafe { _mm512_storeu_si512(rgb.as_mut_ptr().cast(), pixels) };
    } else {
        let mask = (1_u64 << rgb.len().min(3 * LANES)) - 1;
        // SAFETY: the mask keeps the store within the slice.
        unsafe { _mm512_mask_storeu_epi8(rgb.as_mut_ptr().cast(), mask, pixels) };
    }
}
