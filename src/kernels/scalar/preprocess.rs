//! Loops of preprocessing version 1 (`docs/preprocess.md`): weighted rows, weighted columns, colour matrix.

/// Weights of one output sample add up to `1 << WEIGHT_BITS`.
pub const WEIGHT_BITS: u32 = 14;

/// Fraction bits that are kept between the vertical and the horizontal pass: 15-bit values.
pub const MID_BITS: u32 = 7;

/// Fraction bits of a [`ColorCoefficients`].
pub(super) const COLOR_BITS: u32 = 13;

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
