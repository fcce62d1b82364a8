//! Colours of classes, and what they are in the samples of a picture.

use crate::frame::{ColorInfo, ColorMatrix, ColorRange};

/// Red, green, blue, 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rgb(pub(super) [u8; 3]);

pub(super) const BLACK: Rgb = Rgb([0; 3]);
pub(super) const WHITE: Rgb = Rgb([255; 3]);

/// Colours that keep apart on a street: the first ones are used most.
const PALETTE: [Rgb; 12] = [
    Rgb([255, 179, 0]),
    Rgb([0, 214, 255]),
    Rgb([255, 77, 109]),
    Rgb([110, 255, 66]),
    Rgb([196, 112, 255]),
    Rgb([255, 255, 77]),
    Rgb([66, 135, 255]),
    Rgb([255, 128, 237]),
    Rgb([0, 230, 153]),
    Rgb([255, 112, 51]),
    Rgb([179, 217, 255]),
    Rgb([191, 179, 77]),
];

impl Rgb {
    /// The colour of a class.
    pub(super) const fn of_class(class_idx: usize) -> Self {
        PALETTE[class_idx % PALETTE.len()]
    }

    /// Black or white, whichever reads better on this colour.
    pub(super) fn ink(self) -> Self {
        if self.luma(ColorMatrix::Bt601) > 127.5 { BLACK } else { WHITE }
    }

    fn luma(self, matrix: ColorMatrix) -> f32 {
        let [r, g, b] = self.0.map(f32::from);
        let (kr, kb) = weights(matrix);
        kr * r + (1.0 - kr - kb) * g + kb * b
    }

    /// Luma and chroma codes.
    pub(super) fn yuv(self, color: ColorInfo) -> [u8; 3] {
        let [r, _, b] = self.0.map(f32::from);
        let (kr, kb) = weights(color.matrix);
        let luma = self.luma(color.matrix);
        let (cb, cr) = ((b - luma) / (2.0 * (1.0 - kb)), (r - luma) / (2.0 * (1.0 - kr)));
        let codes = match color.range {
            ColorRange::Full => [luma, 128.0 + cb, 128.0 + cr],
            ColorRange::Limited => [16.0 + luma * 219.0 / 255.0, 128.0 + cb * 224.0 / 255.0, 128.0 + cr * 224.0 / 255.0],
        };
        codes.map(saturate_u8)
    }

    /// Full range luma, for GRAY8.
    pub(super) fn gray(self) -> u8 {
        saturate_u8(self.luma(ColorMatrix::Bt601))
    }
}

const fn weights(matrix: ColorMatrix) -> (f32, f32) {
    match matrix {
        ColorMatrix::Bt601 => (0.299, 0.114),
        ColorMatrix::Bt709 => (0.2126, 0.0722),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
fn saturate_u8(x: f32) -> u8 {
    x.round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes() {
        let color = |matrix, range| ColorInfo { matrix, range };
        let red = Rgb([255, 0, 0]);
        assert_eq!(red.yuv(color(ColorMatrix::Bt601, ColorRange::Limited)), [81, 90, 240]);
        assert_eq!(red.yuv(color(ColorMatrix::Bt709, ColorRange::Limited)), [63, 102, 240]);
        assert_eq!(WHITE.yuv(color(ColorMatrix::Bt709, ColorRange::Limited)), [235, 128, 128]);
        assert_eq!(BLACK.yuv(color(ColorMatrix::Bt601, ColorRange::Full)), [0, 128, 128]);
        assert_eq!(WHITE.gray(), 255);
        assert_eq!((Rgb::of_class(5).ink(), Rgb([0, 0, 200]).ink()), (BLACK, WHITE));
    }
}
