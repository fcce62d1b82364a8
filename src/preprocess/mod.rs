//! From a picture to the network input: colour conversion and letterbox in integers.
//!
//! In: a [`PictureRef`] of any size and format. Out: `[height, width, 3]` bytes, red, green, blue. This is version 1 of
//! the specification (`docs/preprocess.md`), frozen by golden hashes: the trainer, the calibration, the evaluation and
//! the live pipeline all call it, and every machine writes the same bytes.

mod axis;

use crate::frame::{ColorInfo, ColorMatrix, ColorRange, Letterbox, PictureRef, PixelFormat};
use crate::kernels::scalar::{ColorCoefficients, add_weighted_row, round_row, weighted_mean};
use axis::Axis;

/// Value of the network input outside the picture.
pub const PAD_VALUE: u8 = 114;

/// One colour component within a plane.
#[derive(Debug, Clone, Copy)]
struct Component {
    plane_idx: usize,
    /// Bytes from the start of a row to the first sample.
    offset: usize,
    /// Bytes from one sample to the next.
    step: usize,
    /// Whether there are half as many samples as pixels across.
    halved: bool,
}

const fn component(plane_idx: usize, offset: usize, step: usize, halved: bool) -> Component {
    Component { plane_idx, offset, step, halved }
}

/// The components of a format: Y U V, or R G B, or luma alone.
const fn components(format: PixelFormat) -> &'static [Component] {
    match format {
        PixelFormat::Nv12 => const { &[component(0, 0, 1, false), component(1, 0, 2, true), component(1, 1, 2, true)] },
        PixelFormat::I420 => const { &[component(0, 0, 1, false), component(1, 0, 1, true), component(2, 0, 1, true)] },
        PixelFormat::Yuy2 => const { &[component(0, 0, 2, false), component(0, 1, 4, true), component(0, 3, 4, true)] },
        PixelFormat::Rgb => const { &[component(0, 0, 3, false), component(0, 1, 3, false), component(0, 2, 3, false)] },
        PixelFormat::Rgba => const { &[component(0, 0, 4, false), component(0, 1, 4, false), component(0, 2, 4, false)] },
        PixelFormat::Bgrx => const { &[component(0, 2, 4, false), component(0, 1, 4, false), component(0, 0, 4, false)] },
        PixelFormat::Gray8 => const { &[component(0, 0, 1, false)] },
    }
}

/// `1 << 13` times the matrices of ITU-R BT.601 and BT.709, rounded to nearest.
const fn coefficients(color: ColorInfo) -> ColorCoefficients {
    match (color.matrix, color.range) {
        (ColorMatrix::Bt601, ColorRange::Limited) => {
            ColorCoefficients { black: 16, y: 9539, rv: 13_075, gu: 3209, gv: 6660, bu: 16_525 }
        }
        (ColorMatrix::Bt601, ColorRange::Full) => {
            ColorCoefficients { black: 0, y: 8192, rv: 11_485, gu: 2819, gv: 5850, bu: 14_516 }
        }
        (ColorMatrix::Bt709, ColorRange::Limited) => {
            ColorCoefficients { black: 16, y: 9539, rv: 14_686, gu: 1747, gv: 4366, bu: 17_305 }
        }
        (ColorMatrix::Bt709, ColorRange::Full) => {
            ColorCoefficients { black: 0, y: 8192, rv: 12_901, gu: 1535, gv: 3835, bu: 15_201 }
        }
    }
}

/// What stays the same from frame to frame: format, sizes, and the weights for them.
#[derive(Debug, Clone)]
struct Geometry {
    format: PixelFormat,
    letterbox: Letterbox,
    /// Across, one per pixel and one per two pixels.
    columns: [Axis; 2],
    /// Down, for the planes with a row per picture row and those with one per two.
    rows: [Axis; 2],
    /// Weighted rows of each plane: sums, then values with fraction bits.
    sums: [Vec<u32>; 3],
    mids: [Vec<u16>; 3],
    /// Output samples of one row, one plane per component.
    samples: [Vec<u8>; 3],
}

impl Geometry {
    fn new(picture: &PictureRef<'_>, letterbox: Letterbox) -> Self {
        let format = picture.format;
        let (src, resized) = (letterbox.src, letterbox.resized);
        let row_bytes =
            |plane_idx: usize| format.plane_size(plane_idx, picture.width, picture.height).map_or(0, |size| size.row_bytes);
        let row_bytes = [row_bytes(0), row_bytes(1), row_bytes(2)];
        Self {
            format,
            letterbox,
            columns: [Axis::new(src.0, 1, resized.0), Axis::new(src.0, 2, resized.0)],
            rows: [Axis::new(src.1, 1, resized.1), Axis::new(src.1, 2, resized.1)],
            sums: row_bytes.map(|len| vec![0; len]),
            mids: row_bytes.map(|len| vec![0; len]),
            samples: [(); 3].map(|()| vec![0; resized.0]),
        }
    }
}

/// Fills the network input of one model. Weights and buffers are kept, so that a frame of the same size and format as
/// the one before allocates nothing.
#[derive(Debug, Clone)]
pub struct Preprocessor {
    dst: (usize, usize),
    geometry: Option<Box<Geometry>>,
}

impl Preprocessor {
    /// For a network input of `dst` pixels, width and height.
    #[must_use]
    pub const fn new(dst: (usize, usize)) -> Self {
        Self { dst, geometry: None }
    }

    /// Writes `picture` into `out`, `[height, width, 3]` bytes; says where it sits in it.
    ///
    /// # Panics
    /// If `out` has not the size of the network input.
    pub fn run(&mut self, picture: &PictureRef<'_>, out: &mut [u8]) -> Letterbox {
        assert_eq!(out.len(), self.dst.0 * self.dst.1 * 3, "the network input is {}x{}x3", self.dst.0, self.dst.1);
        let letterbox = Letterbox::new((picture.width, picture.height), self.dst);
        if self.geometry.as_ref().is_some_and(|g| g.format != picture.format || g.letterbox != letterbox) {
            self.geometry = None;
        }
        let geometry = self.geometry.get_or_insert_with(|| Box::new(Geometry::new(picture, letterbox)));
        let row_len = 3 * self.dst.0;
        let left = 3 * letterbox.pad.0;
        let inside = 3 * letterbox.resized.0;
        for (y, row) in out.chunks_exact_mut(row_len).enumerate() {
            let Some(row_idx) = y.checked_sub(letterbox.pad.1).filter(|&row_idx| row_idx < letterbox.resized.1) else {
                row.fill(PAD_VALUE);
                continue;
            };
            row[..left].fill(PAD_VALUE);
            row[left + inside..].fill(PAD_VALUE);
            resize_row(geometry, picture, row_idx);
            write_row(geometry, picture.color, &mut row[left..left + inside]);
        }
        letterbox
    }
}

/// Output row `row_idx` of every component into `samples`.
fn resize_row(geometry: &mut Geometry, picture: &PictureRef<'_>, row_idx: usize) {
    let Geometry { format, columns, rows, sums, mids, samples, .. } = geometry;
    for plane_idx in 0..format.n_planes() {
        let halved = plane_idx > 0;
        let taps = rows[usize::from(halved)].taps(row_idx);
        for (k, &weight) in taps.weights.iter().enumerate() {
            add_weighted_row(picture.row(plane_idx, taps.start + k), weight, &mut sums[plane_idx]);
        }
        round_row(&mut sums[plane_idx], &mut mids[plane_idx]);
    }
    for (component, samples) in components(*format).iter().zip(samples) {
        let mid = &mids[component.plane_idx][component.offset..];
        let columns = &columns[usize::from(component.halved)];
        for (x, sample) in samples.iter_mut().enumerate() {
            *sample = weighted_mean(mid, component.step, columns.taps(x));
        }
    }
}

/// The samples of one row as red, green, blue.
fn write_row(geometry: &Geometry, color: ColorInfo, out: &mut [u8]) {
    let [a, b, c] = &geometry.samples;
    let samples = a.iter().zip(b).zip(c);
    if geometry.format.is_yuv() {
        let coefficients = coefficients(color);
        for (((&y, &u), &v), rgb) in samples.zip(out.chunks_exact_mut(3)) {
            rgb.copy_from_slice(&coefficients.rgb(y, u, v));
        }
    } else if geometry.format == PixelFormat::Gray8 {
        for (&luma, rgb) in a.iter().zip(out.chunks_exact_mut(3)) {
            rgb.fill(luma);
        }
    } else {
        for (((&r, &g), &b), rgb) in samples.zip(out.chunks_exact_mut(3)) {
            rgb.copy_from_slice(&[r, g, b]);
        }
    }
}
