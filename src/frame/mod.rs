//! Pictures in memory: planes with strides, colour information, stamps, and the letterbox geometry.
//!
//! Nothing here copies or converts pixels; `preprocess` reads a [`PictureRef`], `overlay` draws on a
//! [`PictureMut`]. A [`Frame`] owns whatever keeps its planes alive behind [`FrameMemory`].

mod letterbox;
mod view;

pub use letterbox::Letterbox;
pub use view::{Roi, RoiError, Rotation, RotationError, View};

use std::fmt;
use std::time::Duration;

/// Layout of the samples of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Luma plane, then interleaved `CbCr` at half size in both directions.
    Nv12,
    /// Luma plane, `Cb` plane, `Cr` plane, chroma at half size in both directions.
    I420,
    /// `Y0 Cb Y1 Cr`, chroma at half width.
    Yuy2,
    /// Three bytes a pixel: red, green, blue.
    Rgb,
    /// Four bytes a pixel: red, green, blue, alpha (ignored).
    Rgba,
    /// Four bytes a pixel: blue, green, red, padding.
    Bgrx,
    /// One byte a pixel, full range luma.
    Gray8,
}

impl PixelFormat {
    /// Every format, for tests and caps.
    pub const ALL: [Self; 7] = [Self::Nv12, Self::I420, Self::Yuy2, Self::Rgb, Self::Rgba, Self::Bgrx, Self::Gray8];

    /// Size of plane `plane_idx` of a `width` x `height` picture: bytes a row without padding, and rows.
    /// `None` where the format has no such plane. Odd sizes round the chroma planes up.
    #[must_use]
    pub fn plane_size(self, plane_idx: usize, width: usize, height: usize) -> Option<PlaneSize> {
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        let (row_bytes, rows) = match (self, plane_idx) {
            (Self::Nv12 | Self::I420 | Self::Gray8, 0) => (width, height),
            (Self::Nv12, 1) => (2 * half_width, half_height),
            (Self::I420, 1 | 2) => (half_width, half_height),
            (Self::Yuy2, 0) => (4 * half_width, height),
            (Self::Rgb, 0) => (3 * width, height),
            (Self::Rgba | Self::Bgrx, 0) => (4 * width, height),
            _ => return None,
        };
        Some(PlaneSize { row_bytes, rows })
    }

    /// Number of planes: 1 to 3.
    #[must_use]
    pub const fn n_planes(self) -> usize {
        match self {
            Self::I420 => 3,
            Self::Nv12 => 2,
            _ => 1,
        }
    }

    /// Whether the samples are luma and chroma, so that [`ColorInfo`] matters.
    #[must_use]
    pub const fn is_yuv(self) -> bool {
        matches!(self, Self::Nv12 | Self::I420 | Self::Yuy2)
    }
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nv12 => "NV12",
            Self::I420 => "I420",
            Self::Yuy2 => "YUY2",
            Self::Rgb => "RGB",
            Self::Rgba => "RGBA",
            Self::Bgrx => "BGRx",
            Self::Gray8 => "GRAY8",
        })
    }
}

/// Bytes a row (without padding) and number of rows of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneSize {
    /// Bytes of picture in one row.
    pub row_bytes: usize,
    /// Number of rows.
    pub rows: usize,
}

/// How luma and chroma relate to red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorMatrix {
    /// ITU-R BT.601: standard definition, most USB cameras.
    #[default]
    Bt601,
    /// ITU-R BT.709: high definition.
    Bt709,
}

/// Which code values black and white have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorRange {
    /// Luma 16..=235, chroma 16..=240.
    #[default]
    Limited,
    /// 0..=255.
    Full,
}

/// Colour information of a picture with luma and chroma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ColorInfo {
    /// Conversion matrix.
    pub matrix: ColorMatrix,
    /// Code range.
    pub range: ColorRange,
}

/// One plane: bytes and the distance between rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlaneRef<'a> {
    /// From the first byte of the first row to at least the last byte of the last row.
    pub data: &'a [u8],
    /// Bytes from one row to the next, at least the bytes of a row.
    pub stride_bytes: usize,
}

/// A picture that is borrowed: up to three planes.
#[derive(Debug, Clone, Copy)]
pub struct PictureRef<'a> {
    /// Layout of the samples.
    pub format: PixelFormat,
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
    /// How to read luma and chroma; ignored for RGB formats and GRAY8.
    pub color: ColorInfo,
    planes: [PlaneRef<'a>; 3],
}

/// Why planes do not make a picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// Width or height is 0 or above [`MAX_SIDE`].
    #[error("a picture of {width}x{height} cannot be used: each side must be 1 to {MAX_SIDE} pixels")]
    Size {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// A plane has fewer bytes than its size and stride ask for.
    #[error(
        "plane {plane_idx} of a {width}x{height} {format} picture needs {expected} bytes at stride {stride_bytes}, found {found}"
    )]
    PlaneTooShort {
        /// Which plane.
        plane_idx: usize,
        /// Layout of the samples.
        format: PixelFormat,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Bytes from one row to the next.
        stride_bytes: usize,
        /// Bytes that are needed.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The stride is shorter than a row.
    #[error("plane {plane_idx} of a {format} picture has rows of {row_bytes} bytes but a stride of {stride_bytes}")]
    StrideTooShort {
        /// Which plane.
        plane_idx: usize,
        /// Layout of the samples.
        format: PixelFormat,
        /// Bytes of one row.
        row_bytes: usize,
        /// Bytes from one row to the next.
        stride_bytes: usize,
    },
    /// A region reaches out of its picture.
    #[error("the region {region} does not lie in a picture of {width}x{height}")]
    RegionOutside {
        /// Which region.
        region: Region,
        /// Width of the picture in pixels.
        width: usize,
        /// Height of the picture in pixels.
        height: usize,
    },
    /// A region begins between two samples of chroma.
    #[error("the region {region} of a {format} picture must begin at an even pixel: chroma has half as many samples")]
    RegionOdd {
        /// Which region.
        region: Region,
        /// Layout of the samples.
        format: PixelFormat,
    },
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} at {},{}", self.width, self.height, self.x, self.y)
    }
}

/// Longest side of a picture that is accepted, in pixels.
pub const MAX_SIDE: usize = 16_384;

impl<'a> PictureRef<'a> {
    /// A picture over `planes` (those the format does not have are ignored).
    ///
    /// # Errors
    /// [`PictureError`] when a side is 0 or too long, or a plane is shorter than its size and stride ask for.
    pub fn new(
        format: PixelFormat,
        width: usize,
        height: usize,
        color: ColorInfo,
        planes: [PlaneRef<'a>; 3],
    ) -> Result<Self, PictureError> {
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Err(PictureError::Size { width, height });
        }
        for (plane_idx, plane) in planes.iter().enumerate().take(format.n_planes()) {
            let Some(size) = format.plane_size(plane_idx, width, height) else { continue };
            let stride_bytes = plane.stride_bytes;
            if stride_bytes < size.row_bytes {
                return Err(PictureError::StrideTooShort { plane_idx, format, row_bytes: size.row_bytes, stride_bytes });
            }
            let expected = stride_bytes.saturating_mul(size.rows - 1).saturating_add(size.row_bytes);
            if plane.data.len() < expected {
                let found = plane.data.len();
                return Err(PictureError::PlaneTooShort { plane_idx, format, width, height, stride_bytes, expected, found });
            }
        }
        Ok(Self { format, width, height, color, planes })
    }

    /// A tightly packed RGB picture.
    ///
    /// # Errors
    /// [`PictureError`] as [`Self::new`].
    pub fn rgb(data: &'a [u8], width: usize, height: usize) -> Result<Self, PictureError> {
        let plane = PlaneRef { data, stride_bytes: 3 * width };
        Self::new(PixelFormat::Rgb, width, height, ColorInfo::default(), [plane, PlaneRef::default(), PlaneRef::default()])
    }

    /// A part of the picture as a picture of its own; nothing is copied. Where chroma has half as many samples as pixels across or
    /// down, the part begins at an even column or row; its size may be odd.
    ///
    /// # Errors
    /// [`PictureError`] when the region reaches out of the picture, is empty, or begins between samples.
    pub fn region(&self, region: Region) -> Result<Self, PictureError> {
        let Region { x, y, width, height } = region;
        let is_inside = |from: usize, len: usize, side: usize| from.checked_add(len).is_some_and(|end| end <= side);
        if !is_inside(x, width, self.width) || !is_inside(y, height, self.height) {
            return Err(PictureError::RegionOutside { region, width: self.width, height: self.height });
        }
        let (halves_columns, halves_rows) = (self.format.is_yuv(), self.format.n_planes() > 1);
        if halves_columns && !x.is_multiple_of(2) || halves_rows && !y.is_multiple_of(2) {
            return Err(PictureError::RegionOdd { region, format: self.format });
        }
        let mut planes = self.planes;
        for (plane_idx, plane) in planes.iter_mut().enumerate() {
            // What lies to the left and above has whole samples.
            let Some(skipped) = self.format.plane_size(plane_idx, x, y) else { continue };
            plane.data = plane.data.get(skipped.rows * plane.stride_bytes + skipped.row_bytes..).unwrap_or(&[]);
        }
        Self::new(self.format, width, height, self.color, planes)
    }

    /// Plane `plane_idx`; an empty one where the format has none.
    #[must_use]
    pub fn plane(&self, plane_idx: usize) -> PlaneRef<'a> {
        self.planes.get(plane_idx).copied().unwrap_or_default()
    }

    /// Row `row` of plane `plane_idx`, without padding.
    ///
    /// # Panics
    /// If the format has no such plane or the plane no such row.
    #[must_use]
    pub fn row(&self, plane_idx: usize, row: usize) -> &'a [u8] {
        let plane = self.planes[plane_idx];
        let size = self.format.plane_size(plane_idx, self.width, self.height).expect("the format has this plane");
        assert!(row < size.rows, "row {row} of {}", size.rows);
        &plane.data[row * plane.stride_bytes..][..size.row_bytes]
    }
}

/// A picture that can be drawn on: up to three planes.
#[derive(Debug)]
pub struct PictureMut<'a> {
    /// Layout of the samples.
    pub format: PixelFormat,
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
    /// How to read luma and chroma; ignored for RGB formats and GRAY8.
    pub color: ColorInfo,
    planes: [PlaneMut<'a>; 3],
}

/// One plane that can be written: bytes and the distance between rows.
#[derive(Debug, Default)]
pub struct PlaneMut<'a> {
    /// From the first byte of the first row to at least the last byte of the last row.
    pub data: &'a mut [u8],
    /// Bytes from one row to the next, at least the bytes of a row.
    pub stride_bytes: usize,
}

impl<'a> PictureMut<'a> {
    /// A picture over `planes` (those the format does not have are ignored).
    ///
    /// # Errors
    /// [`PictureError`] as [`PictureRef::new`].
    pub fn new(
        format: PixelFormat,
        width: usize,
        height: usize,
        color: ColorInfo,
        planes: [PlaneMut<'a>; 3],
    ) -> Result<Self, PictureError> {
        let picture = Self { format, width, height, color, planes };
        let plane = |idx: usize| PlaneRef { data: picture.planes[idx].data, stride_bytes: picture.planes[idx].stride_bytes };
        PictureRef::new(format, width, height, color, [plane(0), plane(1), plane(2)])?;
        Ok(picture)
    }

    /// Plane `plane_idx`.
    ///
    /// # Panics
    /// If `plane_idx` is above 2.
    pub fn plane_mut(&mut self, plane_idx: usize) -> &mut PlaneMut<'a> {
        &mut self.planes[plane_idx]
    }

    /// Copies the pixels of a picture of the same format and size, row by row; strides may differ.
    ///
    /// # Panics
    /// If formats or sizes differ.
    pub fn copy_from(&mut self, picture: &PictureRef<'_>) {
        assert!(
            self.format == picture.format && self.width == picture.width && self.height == picture.height,
            "pictures of one format and size"
        );
        for (plane_idx, plane) in self.planes.iter_mut().enumerate().take(self.format.n_planes()) {
            let Some(size) = self.format.plane_size(plane_idx, self.width, self.height) else { continue };
            for (row, out) in plane.data.chunks_mut(plane.stride_bytes).enumerate().take(size.rows) {
                out[..size.row_bytes].copy_from_slice(picture.row(plane_idx, row));
            }
        }
    }
}

/// What keeps the planes of a frame alive: a mapped GStreamer buffer, a vector, a test pattern.
pub trait FrameMemory: Send {
    /// Plane `plane_idx`, or an empty one where there is none.
    fn plane(&self, plane_idx: usize) -> PlaneRef<'_>;
}

/// Planes in vectors: pictures from files, tests.
#[derive(Debug, Clone, Default)]
pub struct OwnedPlanes {
    planes: Vec<(Vec<u8>, usize)>,
}

impl OwnedPlanes {
    /// Planes as `(data, stride_bytes)`.
    #[must_use]
    pub const fn new(planes: Vec<(Vec<u8>, usize)>) -> Self {
        Self { planes }
    }
}

impl FrameMemory for OwnedPlanes {
    fn plane(&self, plane_idx: usize) -> PlaneRef<'_> {
        self.planes.get(plane_idx).map(|(data, stride_bytes)| PlaneRef { data, stride_bytes: *stride_bytes }).unwrap_or_default()
    }
}

/// Number of a frame within its stream, from 0, counted where frames leave the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameId(pub u64);

/// When a frame was made and when it reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamps {
    /// Number within the stream.
    pub id: FrameId,
    /// Presentation time within the stream; `None` where the source gives none.
    pub pts: Option<Duration>,
    /// How long the frame is shown; `None` where the source does not say.
    pub duration: Option<Duration>,
    /// Monotonic time at which the frame left the decoder, since the pipeline's clock started.
    pub captured_at: Duration,
}

/// A picture with its stamps, alive as long as its memory.
pub struct Frame {
    memory: Box<dyn FrameMemory>,
    /// Layout of the samples.
    pub format: PixelFormat,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Colour information.
    pub color: ColorInfo,
    /// Number and times.
    pub stamps: Stamps,
}

impl Frame {
    /// A frame over `memory`; its planes are checked here, once.
    ///
    /// # Errors
    /// [`PictureError`] when the planes do not make a picture of this size.
    pub fn new(
        memory: Box<dyn FrameMemory>,
        format: PixelFormat,
        (width, height): (usize, usize),
        color: ColorInfo,
        stamps: Stamps,
    ) -> Result<Self, PictureError> {
        let frame = Self { memory, format, width, height, color, stamps };
        frame.try_picture()?;
        Ok(frame)
    }

    /// The picture.
    ///
    /// # Panics
    /// If the memory changed its planes since [`Self::new`], which [`FrameMemory`] must not.
    #[must_use]
    pub fn picture(&self) -> PictureRef<'_> {
        self.try_picture().expect("planes were checked when the frame was made")
    }

    fn try_picture(&self) -> Result<PictureRef<'_>, PictureError> {
        let planes = [self.memory.plane(0), self.memory.plane(1), self.memory.plane(2)];
        PictureRef::new(self.format, self.width, self.height, self.color, planes)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("format", &self.format)
            .field("width", &self.width)
            .field("height", &self.height)
            .field("stamps", &self.stamps)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_checked() {
        let data = vec![0_u8; 321 * 241 * 2];
        let luma = PlaneRef { data: &data[..321 * 241], stride_bytes: 321 };
        let chroma = PlaneRef { data: &data[..322 * 121], stride_bytes: 322 };
        let none = PlaneRef::default();
        let color = ColorInfo::default();
        assert!(PictureRef::new(PixelFormat::Nv12, 321, 241, color, [luma, chroma, none]).is_ok());
        let short = PlaneRef { data: &data[..322 * 121 - 1], stride_bytes: 322 };
        assert!(matches!(
            PictureRef::new(PixelFormat::Nv12, 321, 241, color, [luma, short, none]),
            Err(PictureError::PlaneTooShort { plane_idx: 1, .. })
        ));
        // A stride whose product with the rows does not fit.
        let far = PlaneRef { data: &data, stride_bytes: usize::MAX / 2 + 1 };
        assert!(matches!(
            PictureRef::new(PixelFormat::Gray8, 321, 3, color, [far, none, none]),
            Err(PictureError::PlaneTooShort { plane_idx: 0, expected: usize::MAX, .. })
        ));
        let narrow = PlaneRef { data: &data, stride_bytes: 321 };
        assert!(matches!(
            PictureRef::new(PixelFormat::Nv12, 321, 241, color, [luma, narrow, none]),
            Err(PictureError::StrideTooShort { plane_idx: 1, .. })
        ));
        assert!(matches!(PictureRef::rgb(&data, 0, 4), Err(PictureError::Size { .. })));
    }
}
