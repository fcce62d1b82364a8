//! From a picture to the network input: colour conversion and letterbox in integers.
//!
//! In: a [`PictureRef`] of any size and format. Out: `[height, width, 3]` bytes, red, green, blue. This is version 1 of
//! the specification (`docs/preprocess.md`), frozen by golden hashes: the trainer, the calibration, the evaluation and
//! the live pipeline all call it, and every machine writes the same bytes.

mod axis;

use crate::frame::{ColorInfo, ColorMatrix, ColorRange, Letterbox, PictureRef, PixelFormat};
use crate::kernels::scalar::ColorCoefficients;
use crate::kernels::{Component, Grid, Kernels, PictureKernel, PictureSpec, PlaneSpec};
use axis::axis;

/// Value of the network input outside the picture.
pub const PAD_VALUE: u8 = 114;

/// Components of a format whose samples lie alike.
struct GridLayout {
    /// Whether there are half as many samples as pixels across.
    halved: bool,
    /// Bytes from one sample to the next.
    step: usize,
    components: Vec<Component>,
}

/// The components of a format: Y and U V, or R G B, or luma alone.
fn grids(format: PixelFormat) -> Vec<GridLayout> {
    let grid = |halved, step, components: &[(usize, usize)]| GridLayout {
        halved,
        step,
        components: components.iter().map(|&(plane_idx, offset)| Component { plane_idx, offset }).collect(),
    };
    match format {
        PixelFormat::Nv12 => vec![grid(false, 1, &[(0, 0)]), grid(true, 2, &[(1, 0), (1, 1)])],
        PixelFormat::I420 => vec![grid(false, 1, &[(0, 0)]), grid(true, 1, &[(1, 0), (2, 0)])],
        PixelFormat::Yuy2 => vec![grid(false, 2, &[(0, 0)]), grid(true, 4, &[(0, 1), (0, 3)])],
        PixelFormat::Rgb => vec![grid(false, 3, &[(0, 0), (0, 1), (0, 2)])],
        PixelFormat::Rgba => vec![grid(false, 4, &[(0, 0), (0, 1), (0, 2)])],
        PixelFormat::Bgrx => vec![grid(false, 4, &[(0, 2), (0, 1), (0, 0)])],
        PixelFormat::Gray8 => vec![grid(false, 1, &[(0, 0)])],
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

/// Rows and columns of a format's planes, weighted for a letterbox.
fn spec(format: PixelFormat, letterbox: Letterbox) -> PictureSpec {
    let (src, resized) = (letterbox.src, letterbox.resized);
    let plane = |plane_idx: usize| {
        let size = format.plane_size(plane_idx, src.0, src.1)?;
        let per_row = if plane_idx == 0 { 1 } else { 2 };
        Some(PlaneSpec { row_bytes: size.row_bytes, rows: axis(src.1, per_row, resized.1) })
    };
    let grid = |layout: GridLayout| Grid {
        step: layout.step,
        columns: axis(src.0, if layout.halved { 2 } else { 1 }, resized.0),
        components: layout.components,
    };
    PictureSpec { planes: (0..3).filter_map(plane).collect(), grids: grids(format).into_iter().map(grid).collect() }
}

/// What stays the same from frame to frame: format, sizes, and what was prepared for them.
#[derive(Debug)]
struct Geometry {
    format: PixelFormat,
    letterbox: Letterbox,
    kernel: Box<dyn PictureKernel>,
}

/// Fills the network input of one model. Weights and buffers are kept, so that a frame of the same size and format as
/// the one before allocates nothing.
#[derive(Debug)]
pub struct Preprocessor {
    dst: (usize, usize),
    kernels: Kernels,
    geometry: Option<Geometry>,
    n_rebuilds: u64,
}

impl Preprocessor {
    /// For a network input of `dst` pixels, width and height, by the kernels of the process.
    #[must_use]
    pub fn new(dst: (usize, usize)) -> Self {
        Self::with_kernels(dst, Kernels::default())
    }

    /// For a network input of `dst` pixels, by these kernels. All give the same bytes.
    #[must_use]
    pub const fn with_kernels(dst: (usize, usize), kernels: Kernels) -> Self {
        Self { dst, kernels, geometry: None, n_rebuilds: 0 }
    }

    /// How often weights were computed: once for every change of size or format, the first picture included.
    #[must_use]
    pub const fn n_rebuilds(&self) -> u64 {
        self.n_rebuilds
    }

    /// Writes `picture` into `out`, `[height, width, 3]` bytes; says where it sits in it.
    ///
    /// # Panics
    /// If `out` has not the size of the network input.
    pub fn run(&mut self, picture: &PictureRef<'_>, out: &mut [u8]) -> Letterbox {
        assert_eq!(out.len(), self.dst.0 * self.dst.1 * 3, "the network input is {}x{}x3", self.dst.0, self.dst.1);
        let (format, letterbox) = (picture.format, Letterbox::new((picture.width, picture.height), self.dst));
        if self.geometry.as_ref().is_some_and(|g| g.format != format || g.letterbox != letterbox) {
            self.geometry = None;
        }
        let (kernels, n_rebuilds) = (self.kernels, &mut self.n_rebuilds);
        let geometry = self.geometry.get_or_insert_with(|| {
            *n_rebuilds += 1;
            Geometry { format, letterbox, kernel: kernels.prepare_picture(&spec(format, letterbox)) }
        });
        let planes = [picture.plane(0), picture.plane(1), picture.plane(2)];
        let matrix = coefficients(picture.color);
        let (left, inside) = (3 * letterbox.pad.0, 3 * letterbox.resized.0);
        for (y, row) in out.chunks_exact_mut(3 * self.dst.0).enumerate() {
            let Some(row_idx) = y.checked_sub(letterbox.pad.1).filter(|&row_idx| row_idx < letterbox.resized.1) else {
                row.fill(PAD_VALUE);
                continue;
            };
            row[..left].fill(PAD_VALUE);
            row[left + inside..].fill(PAD_VALUE);
            geometry.kernel.row(row_idx, planes, &matrix, &mut row[left..left + inside]);
        }
        letterbox
    }
}
