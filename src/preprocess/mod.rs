//! From a picture to the network input: colour conversion and letterbox in integers.
//!
//! In: a [`PictureRef`] of any size and format. Out: `[height, width, 3]` bytes, red, green, blue. This is version 1 of
//! the specification (`docs/preprocess.md`), frozen by golden hashes: the trainer, the calibration, the evaluation and
//! the live pipeline all call it, and every machine writes the same bytes. A picture may be turned by quarters on the way.

mod axis;

use crate::frame::{ColorInfo, ColorMatrix, ColorRange, Letterbox, PictureRef, PixelFormat, Rotation};
use crate::kernels::scalar::ColorCoefficients;
use crate::kernels::{Component, Grid, Kernels, PictureKernel, PictureSpec, PlaneSpec, Pool, TapTable};
use axis::axis;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Rows and columns of a format's planes, weighted for the letterbox of the turned picture. What a turn by 180 degrees does,
/// and what is left of the others when rows become columns, is their order.
fn spec(format: PixelFormat, letterbox: Letterbox, rotation: Rotation) -> PictureSpec {
    let (src, resized) = (rotation.turned(letterbox.src), rotation.turned(letterbox.resized));
    let ordered = |taps: TapTable, is_reversed: bool| if is_reversed { taps.reversed() } else { taps };
    let reverses_rows = matches!(rotation, Rotation::Quarter | Rotation::Half);
    let reverses_columns = matches!(rotation, Rotation::Half | Rotation::ThreeQuarters);
    let plane = |plane_idx: usize| {
        let size = format.plane_size(plane_idx, src.0, src.1)?;
        let per_row = if plane_idx == 0 { 1 } else { 2 };
        Some(PlaneSpec { row_bytes: size.row_bytes, rows: ordered(axis(src.1, per_row, resized.1), reverses_rows) })
    };
    let grid = |layout: GridLayout| Grid {
        step: layout.step,
        columns: ordered(axis(src.0, if layout.halved { 2 } else { 1 }, resized.0), reverses_columns),
        components: layout.components,
    };
    PictureSpec { planes: (0..3).filter_map(plane).collect(), grids: grids(format).into_iter().map(grid).collect() }
}

/// What stays the same from frame to frame: format, sizes, and what was prepared for them.
#[derive(Debug)]
struct Geometry {
    format: PixelFormat,
    letterbox: Letterbox,
    /// One for each piece of the rows: any thread may do a piece, and each has buffers of its own.
    pieces: Vec<Mutex<Box<dyn PictureKernel>>>,
    /// Rows that wait until there are enough to become columns; none where rows stay rows.
    band: Vec<u8>,
}

/// Rows of a band.
const BAND_ROWS: usize = 16;

/// Bytes from which on the rows of a picture are shared by threads: below, waking them takes as long.
const MIN_SHARED_BYTES: usize = 2 << 20;

/// Pieces of a picture at most, two for each thread.
const MAX_PIECES: usize = 8;

/// Bytes of a picture, without padding.
fn n_bytes(picture: &PictureRef<'_>) -> usize {
    let sizes = (0..3).filter_map(|plane_idx| picture.format.plane_size(plane_idx, picture.width, picture.height));
    sizes.map(|size| size.row_bytes * size.rows).sum()
}

/// Fills the network input of one model. Weights and buffers are kept, so that a frame of the same size and format as
/// the one before allocates nothing.
#[derive(Debug)]
pub struct Preprocessor {
    dst: (usize, usize),
    rotation: Rotation,
    kernels: Kernels,
    /// Threads that share the rows of large pictures.
    pool: Option<Arc<Pool>>,
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
        Self { dst, rotation: Rotation::None, kernels, pool: None, geometry: None, n_rebuilds: 0 }
    }

    /// The same for pictures that are turned first.
    #[must_use]
    pub fn turned(self, rotation: Rotation) -> Self {
        Self { rotation, geometry: None, ..self }
    }

    /// The same, with the rows of large pictures shared by the threads of a pool.
    #[must_use]
    pub fn shared(self, pool: Arc<Pool>) -> Self {
        Self { pool: Some(pool), geometry: None, ..self }
    }

    /// How often weights were computed: once for every change of size or format, the first picture included.
    #[must_use]
    pub const fn n_rebuilds(&self) -> u64 {
        self.n_rebuilds
    }

    /// Writes `picture`, turned, into `out`, `[height, width, 3]` bytes; says where the turned picture sits in it.
    ///
    /// # Panics
    /// If `out` has not the size of the network input.
    pub fn run(&mut self, picture: &PictureRef<'_>, out: &mut [u8]) -> Letterbox {
        assert_eq!(out.len(), self.dst.0 * self.dst.1 * 3, "the network input is {}x{}x3", self.dst.0, self.dst.1);
        let (format, rotation) = (picture.format, self.rotation);
        let letterbox = Letterbox::new(rotation.turned((picture.width, picture.height)), self.dst);
        if self.geometry.as_ref().is_some_and(|g| g.format != format || g.letterbox != letterbox) {
            self.geometry = None;
        }
        let (kernels, n_rebuilds) = (self.kernels, &mut self.n_rebuilds);
        let is_large = n_bytes(picture) >= MIN_SHARED_BYTES;
        let pool = self.pool.as_deref().filter(|pool| is_large && pool.threads() > 1 && !rotation.swaps_sides());
        let geometry = self.geometry.get_or_insert_with(|| {
            *n_rebuilds += 1;
            let spec = spec(format, letterbox, rotation);
            let n_pieces = pool.map_or(1, |pool| (2 * pool.threads()).min(MAX_PIECES));
            let pieces = (0..n_pieces).map(|_| Mutex::new(kernels.prepare_picture(&spec))).collect();
            let band = if rotation.swaps_sides() { vec![0; BAND_ROWS * 3 * letterbox.resized.1] } else { Vec::new() };
            Geometry { format, letterbox, pieces, band }
        });
        pad(&letterbox, out);
        let Geometry { pieces, band, .. } = geometry;
        let planes = [picture.plane(0), picture.plane(1), picture.plane(2)];
        let matrix = coefficients(picture.color);
        let ((left, top), (width, height)) = (letterbox.pad, letterbox.resized);
        let stride = 3 * self.dst.0;
        let inside = &mut out[top * stride + 3 * left..];
        if rotation.swaps_sides() {
            let kernel = pieces[0].get_mut().unwrap_or_else(PoisonError::into_inner);
            let row_bytes = 3 * height;
            for first in (0..width).step_by(BAND_ROWS) {
                let band = &mut band[..row_bytes * BAND_ROWS.min(width - first)];
                for (y, row) in (first..).zip(band.chunks_exact_mut(row_bytes)) {
                    kernel.row(y, planes, &matrix, row);
                }
                kernels.rows_to_columns(band, row_bytes, &mut inside[3 * first..], stride);
            }
            return letterbox;
        }
        let n_rows = height.div_ceil(pieces.len());
        let mut rest = inside;
        let parts: [Mutex<&mut [u8]>; MAX_PIECES] = std::array::from_fn(|_| {
            let whole = std::mem::take(&mut rest);
            let (part, later) = whole.split_at_mut((n_rows * stride).min(whole.len()));
            rest = later;
            Mutex::new(part)
        });
        // Nobody waits: a piece is done once, by one thread.
        let do_piece = |idx: usize| {
            let mut kernel = pieces[idx].lock().unwrap_or_else(PoisonError::into_inner);
            let mut part = parts[idx].lock().unwrap_or_else(PoisonError::into_inner);
            for (y, row) in (idx * n_rows..height).zip(part.chunks_mut(stride)) {
                kernel.row(y, planes, &matrix, &mut row[..3 * width]);
            }
        };
        match pool {
            Some(pool) => pool.run(pieces.len(), &do_piece),
            None => do_piece(0),
        }
        letterbox
    }
}

/// Fills what the picture does not.
fn pad(letterbox: &Letterbox, out: &mut [u8]) {
    let stride = 3 * letterbox.dst.0;
    let (above, rest) = out.split_at_mut(stride * letterbox.pad.1);
    let (beside, below) = rest.split_at_mut(stride * letterbox.resized.1);
    above.fill(PAD_VALUE);
    below.fill(PAD_VALUE);
    let columns = 3 * letterbox.pad.0..3 * (letterbox.pad.0 + letterbox.resized.0);
    if columns == (0..stride) {
        return;
    }
    for row in beside.chunks_exact_mut(stride) {
        row[..columns.start].fill(PAD_VALUE);
        row[columns.end..].fill(PAD_VALUE);
    }
}
