//! Loops of preprocessing version 1 (`docs/preprocess.md`): weighted rows, weighted columns, colour matrix.

use crate::frame::PlaneRef;
use crate::kernels::{PictureKernel, PictureSpec};

/// Weights of one output sample add up to `1 << WEIGHT_BITS`.
pub const WEIGHT_BITS: u32 = 14;

/// Fraction bits that are kept between the vertical and the horizontal pass: 15-bit values.
pub const MID_BITS: u32 = 7;

/// Fraction bits of a [`ColorCoefficients`].
pub(in crate::kernels) const COLOR_BITS: u32 = 13;

/// Adds `weight` times a row of samples to the sums.
///
/// # Panics
/// If the lengths differ.
pub fn add_weighted_row(row: &[u8], weight: u16, sums: &mut [u32]) {
    assert_eq!(row.len(), sums.len(), "one sum a sample");
    for (sum, &sample) in sums.iter_mut().zip(row) {
        *sum += u32::from(weight) * u32::from(sample);
    }
}

/// Rounds sums of weighted rows to [`MID_BITS`] fraction bits and clears them.
///
/// # Panics
/// If the lengths differ.
pub fn round_row(sums: &mut [u32], mid: &mut [u16]) {
    const SHIFT: u32 = WEIGHT_BITS - MID_BITS;
    assert_eq!(sums.len(), mid.len(), "one value a sum");
    for (sum, mid) in sums.iter_mut().zip(mid) {
        #[expect(clippy::cast_possible_truncation, reason = "at most 255 << 7")]
        {
            *mid = ((*sum + (1 << (SHIFT - 1))) >> SHIFT) as u16;
        }
        *sum = 0;
    }
}

/// The samples that one output sample is made of: `weights` from sample `start` on.
#[derive(Debug, Clone, Copy)]
pub struct Taps<'a> {
    /// First sample.
    pub start: usize,
    /// Weights, adding up to `1 << WEIGHT_BITS`.
    pub weights: &'a [u16],
}

/// The weighted mean of samples that lie `step` apart in `mid`, rounded to a byte.
#[must_use]
pub fn weighted_mean(mid: &[u16], step: usize, taps: Taps<'_>) -> u8 {
    const SHIFT: u32 = WEIGHT_BITS + MID_BITS;
    let samples = mid[taps.start * step..].iter().step_by(step);
    let sum: u32 = samples.zip(taps.weights).map(|(&sample, &weight)| u32::from(sample) * u32::from(weight)).sum();
    #[expect(clippy::cast_possible_truncation, reason = "at most 255")]
    {
        ((sum + (1 << (SHIFT - 1))) >> SHIFT) as u8
    }
}

/// Luma and chroma to red, green and blue, in units of `1 << -COLOR_BITS`:
/// `R = y (Y - black) + rv (V - 128)`, `G = y (Y - black) - gu (U - 128) - gv (V - 128)`, `B = y (Y - black) + bu (U - 128)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColorCoefficients {
    /// Code of black.
    pub black: i32,
    /// Gain of luma.
    pub y: i32,
    /// Share of V in red.
    pub rv: i32,
    /// Share of U in green, subtracted.
    pub gu: i32,
    /// Share of V in green, subtracted.
    pub gv: i32,
    /// Share of U in blue.
    pub bu: i32,
}

impl ColorCoefficients {
    /// Red, green and blue of one sample, rounded half up and clamped to a byte.
    #[must_use]
    pub fn rgb(&self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let luma = self.y * (i32::from(y) - self.black) + (1 << (COLOR_BITS - 1));
        [luma + self.rv * v, luma - self.gu * u - self.gv * v, luma + self.bu * u].map(|value| {
            #[expect(clippy::cast_sign_loss, reason = "clamped to a byte")]
            {
                (value >> COLOR_BITS).clamp(0, 255) as u8
            }
        })
    }
}

/// A picture of one format and size, component by component.
#[derive(Debug)]
pub(in crate::kernels) struct Picture {
    spec: PictureSpec,
    /// Weighted rows of each plane: sums, then values with fraction bits.
    sums: [Vec<u32>; 3],
    mids: [Vec<u16>; 3],
    /// Output samples of one row, one list for each component.
    samples: [Vec<u8>; 3],
}

impl Picture {
    pub(in crate::kernels) fn new(spec: &PictureSpec) -> Self {
        let row_bytes = [0, 1, 2].map(|plane_idx| spec.planes.get(plane_idx).map_or(0, |plane| plane.row_bytes));
        let n_columns = spec.grids[0].columns.len();
        Self {
            spec: spec.clone(),
            sums: row_bytes.map(|len| vec![0; len]),
            mids: row_bytes.map(|len| vec![0; len]),
            samples: [(); 3].map(|()| vec![0; n_columns]),
        }
    }
}

impl PictureKernel for Picture {
    fn row(&mut self, y: usize, planes: [PlaneRef<'_>; 3], matrix: &ColorCoefficients, rgb: &mut [u8]) {
        assert_eq!(rgb.len(), 3 * self.samples[0].len(), "three bytes a pixel");
        for (((spec, plane), sums), mids) in self.spec.planes.iter().zip(planes).zip(&mut self.sums).zip(&mut self.mids) {
            let taps = spec.rows.taps(y);
            for (row_idx, &weight) in (taps.start..).zip(taps.weights) {
                let row = &plane.data[row_idx * plane.stride_bytes..][..spec.row_bytes];
                add_weighted_row(row, weight, sums);
            }
            round_row(sums, mids);
        }
        let components = self.spec.grids.iter().flat_map(|grid| grid.components.iter().map(move |component| (grid, component)));
        for ((grid, component), samples) in components.zip(&mut self.samples) {
            let mid = &self.mids[component.plane_idx][component.offset..];
            for (x, sample) in samples.iter_mut().enumerate() {
                *sample = weighted_mean(mid, grid.step, grid.columns.taps(x));
            }
        }
        let [a, b, c] = &self.samples;
        let samples = a.iter().zip(b).zip(c).zip(rgb.as_chunks_mut::<3>().0);
        match self.spec.grids[..] {
            [_, _] => samples.for_each(|(((&y, &u), &v), rgb)| *rgb = matrix.rgb(y, u, v)),
            _ if self.spec.grids[0].components.len() == 1 => samples.for_each(|(((&luma, _), _), rgb)| *rgb = [luma; 3]),
            _ => samples.for_each(|(((&r, &g), &b), rgb)| *rgb = [r, g, b]),
        }
    }
}
