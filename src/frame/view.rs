//! What of a picture is looked at: a region, turned by quarters; and the way of boxes back to the whole picture.

use super::{MAX_SIDE, PictureError, Region};
use crate::detection::BBox;
use std::fmt;
use std::str::FromStr;

/// A region of interest and a turn: first the region is cut out, then it is turned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct View {
    /// `None`: the whole picture.
    pub roi: Option<Roi>,
    /// How the region is turned.
    pub rotation: Rotation,
}

impl View {
    /// The region of a picture of `width` x `height`, in its pixels.
    ///
    /// # Errors
    /// [`PictureError::RegionOutside`] where the region reaches out of the picture.
    pub fn region(&self, (width, height): (usize, usize)) -> Result<Region, PictureError> {
        self.roi.map_or(Ok(Region { x: 0, y: 0, width, height }), |roi| roi.region((width, height)))
    }

    /// A box of the turned `region` in pixels of the whole picture.
    #[must_use]
    pub fn frame_from_view(&self, bbox_view: &BBox, region: Region) -> BBox {
        let BBox { x1, y1, x2, y2 } = self.rotation.undo(bbox_view, (region.width, region.height));
        let (x, y) = (to_f32(region.x), to_f32(region.y));
        BBox::new(x1 + x, y1 + y, x2 + x, y2 + y)
    }
}

/// A region of interest as it is written: `x,y,width,height` in pixels, or in parts of the picture's sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Roi {
    /// Whole numbers.
    Pixels(Region),
    /// Numbers of which at least one has a decimal point: `[x, y, width, height]`, 0 to 1.
    Parts([f64; 4]),
}

/// Why a text is no region of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoiError {
    /// Not four numbers.
    #[error(
        "it must be x,y,width,height in pixels (`0,120,640,360`), or with a decimal point in parts of the picture (`0,0.25,1.0,0.5`)"
    )]
    Syntax,
    /// Nothing is in it.
    #[error("width and height must be above 0")]
    Empty,
    /// Parts beyond 1.
    #[error("parts of the picture must lie in 0 to 1, x + width and y + height too")]
    Parts,
    /// What was meant are parts.
    #[error("that is a single pixel; parts of the picture are written with a decimal point, all of it is 0,0,1.0,1.0")]
    Pixel,
    /// Larger than any picture.
    #[error("no picture has sides of more than {MAX_SIDE} pixels")]
    Pixels,
}

impl Roi {
    /// The region in a picture of `width` x `height`. It begins at an even pixel, so that it is the same in every format: where a
    /// written one does not, it has one column to the left or one row above more. Edges between pixels go to the nearest.
    ///
    /// # Errors
    /// [`PictureError::RegionOutside`] where it reaches out of the picture.
    pub fn region(&self, (width, height): (usize, usize)) -> Result<Region, PictureError> {
        let written = match *self {
            Self::Pixels(region) => region,
            Self::Parts([x, y, w, h]) => {
                let ((x, width), (y, height)) = (pixels(x, w, width), pixels(y, h, height));
                Region { x, y, width, height }
            }
        };
        if written.x + written.width > width || written.y + written.height > height {
            return Err(PictureError::RegionOutside { region: written, width, height });
        }
        let Region { x, y, .. } = written;
        let (before_x, before_y) = (x % 2, y % 2);
        Ok(Region { x: x - before_x, y: y - before_y, width: written.width + before_x, height: written.height + before_y })
    }
}

/// First pixel and length of a part of a side, at least one pixel.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 16,384")]
fn pixels(from: f64, part: f64, side: usize) -> (usize, usize) {
    let all = f64::from(to_f32(side));
    let first = ((from * all).round() as usize).min(side - 1);
    let end = (((from + part) * all).round() as usize).clamp(first + 1, side);
    (first, end - first)
}

impl FromStr for Roi {
    type Err = RoiError;

    fn from_str(text: &str) -> Result<Self, RoiError> {
        fn four<T: FromStr + Copy>(text: &str) -> Option<[T; 4]> {
            let numbers: Result<Vec<T>, _> = text.split(',').map(|number| number.trim().parse()).collect();
            numbers.ok()?.try_into().ok()
        }
        if text.contains('.') {
            let parts = four::<f64>(text).ok_or(RoiError::Syntax)?;
            let [x, y, w, h] = parts;
            // Decimal fractions that add up to 1 may be a little off.
            let is_inside = |from: f64, part: f64| from >= 0.0 && part <= 1.0 && from + part <= 1.0 + 1e-9;
            if w <= 0.0 || h <= 0.0 {
                return Err(RoiError::Empty);
            }
            return if is_inside(x, w) && is_inside(y, h) { Ok(Self::Parts(parts)) } else { Err(RoiError::Parts) };
        }
        let [x, y, width, height] = four::<usize>(text).ok_or(RoiError::Syntax)?;
        match [x, y, width, height].into_iter().max() {
            _ if width == 0 || height == 0 => Err(RoiError::Empty),
            Some(..=1) => Err(RoiError::Pixel),
            Some(..=MAX_SIDE) => Ok(Self::Pixels(Region { x, y, width, height })),
            _ => Err(RoiError::Pixels),
        }
    }
}

impl fmt::Display for Roi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pixels(Region { x, y, width, height }) => write!(f, "{x},{y},{width},{height}"),
            Self::Parts([x, y, w, h]) => write!(f, "{x:?},{y:?},{w:?},{h:?}"),
        }
    }
}

/// By how much a picture is turned clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rotation {
    /// Not at all.
    #[default]
    None,
    /// 90 degrees: the left column becomes the top row.
    Quarter,
    /// 180 degrees.
    Half,
    /// 270 degrees: the right column becomes the top row.
    ThreeQuarters,
}

/// A turn that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be 0, 90, 180 or 270 degrees clockwise")]
pub struct RotationError;

impl Rotation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Quarter, Self::Half, Self::ThreeQuarters];

    /// From degrees clockwise.
    ///
    /// # Errors
    /// [`RotationError`] unless it is 0, 90, 180 or 270.
    pub const fn new(degrees: u32) -> Result<Self, RotationError> {
        match degrees {
            0 => Ok(Self::None),
            90 => Ok(Self::Quarter),
            180 => Ok(Self::Half),
            270 => Ok(Self::ThreeQuarters),
            _ => Err(RotationError),
        }
    }

    /// Degrees clockwise.
    #[must_use]
    pub const fn degrees(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Quarter => 90,
            Self::Half => 180,
            Self::ThreeQuarters => 270,
        }
    }

    /// Whether rows become columns.
    #[must_use]
    pub const fn swaps_sides(self) -> bool {
        matches!(self, Self::Quarter | Self::ThreeQuarters)
    }

    /// Width and height once turned; or before, of a turned picture.
    #[must_use]
    pub const fn turned(self, (width, height): (usize, usize)) -> (usize, usize) {
        if self.swaps_sides() { (height, width) } else { (width, height) }
    }

    /// A box of the turned picture in pixels of the picture, `width` x `height` before it was turned.
    #[must_use]
    pub const fn undo(self, bbox_turned: &BBox, (width, height): (usize, usize)) -> BBox {
        let (w, h) = (to_f32(width), to_f32(height));
        let BBox { x1, y1, x2, y2 } = *bbox_turned;
        match self {
            Self::None => *bbox_turned,
            Self::Quarter => BBox::new(y1, h - x2, y2, h - x1),
            Self::Half => BBox::new(w - x2, h - y2, w - x1, h - y1),
            Self::ThreeQuarters => BBox::new(w - y2, x1, w - y1, x2),
        }
    }
}

impl FromStr for Rotation {
    type Err = RotationError;

    fn from_str(text: &str) -> Result<Self, RotationError> {
        text.parse().map_err(|_| RotationError).and_then(Self::new)
    }
}

/// Exact below 2^24, and sides are at most 2^14.
#[expect(clippy::cast_precision_loss, reason = "sides are at most 16,384 pixels")]
const fn to_f32(side: usize) -> f32 {
    side as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(text: &str, size: (usize, usize)) -> Result<[usize; 4], String> {
        let roi: Roi = text.parse().map_err(|error: RoiError| error.to_string())?;
        let Region { x, y, width, height } = roi.region(size).map_err(|error| error.to_string())?;
        Ok([x, y, width, height])
    }

    #[test]
    fn regions_in_pixels_and_in_parts() {
        for (text, want) in [
            ("0,0,640,480", [0, 0, 640, 480]),
            ("10, 20, 30, 40", [10, 20, 30, 40]),
            ("11,21,30,40", [10, 20, 31, 41]),
            ("639,479,1,1", [638, 478, 2, 2]),
            ("0.0,0,1,1", [0, 0, 640, 480]),
            ("0.5,0.25,0.5,0.75", [320, 120, 320, 360]),
            ("0.7,0.1,0.3,0.9", [448, 48, 192, 432]),
            ("0.9999,0.9999,0.0001,0.0001", [638, 478, 2, 2]),
        ] {
            assert_eq!(region(text, (640, 480)), Ok(want), "{text}");
        }
        assert_eq!(region("0.25,0.25,0.5,0.5", (1, 1)), Ok([0, 0, 1, 1]));
        for (text, named) in [
            ("", "x,y,width,height"),
            ("1,2,3", "x,y,width,height"),
            ("1,2,3,4,5", "x,y,width,height"),
            ("-1,0,3,4", "x,y,width,height"),
            ("0,0,0,4", "above 0"),
            ("0.5,0,0.0,1", "above 0"),
            ("0.5,0,0.6,1", "0 to 1"),
            ("nan,0.5,0.5,0.5", "0 to 1"),
            ("0.5,-0.1,0.5,1", "0 to 1"),
            ("1.0,0,0.0001,1", "0 to 1"),
            ("0,0,16385,1", "16384"),
            ("0,0,18446744073709551615,1", "16384"),
            ("600,0,41,480", "41x480 at 600,0 does not lie in a picture of 640x480"),
            ("0,1,640,480", "640x480 at 0,1"),
        ] {
            let error = region(text, (640, 480)).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        for text in ["1,2,3,4", "0.5,0.25,0.5,0.75", "0.0,0.0,1.0,1.0"] {
            assert_eq!(text.parse::<Roi>().unwrap().to_string(), text);
        }
    }

    /// A pixel of the turned picture, as a box, is where its pixel was.
    #[test]
    fn boxes_come_back() {
        let size = (5, 3);
        let region = Region { x: 10, y: 20, width: size.0, height: size.1 };
        for rotation in Rotation::ALL {
            assert_eq!(rotation.degrees().to_string().parse(), Ok(rotation));
            for (x, y) in (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y))) {
                // Where a pixel goes when the picture is turned by hand, a quarter at a time.
                let (mut at, mut now) = ((x, y), size);
                for _ in 0..rotation.degrees() / 90 {
                    (at, now) = ((now.1 - 1 - at.1, at.0), (now.1, now.0));
                }
                assert_eq!(now, rotation.turned(size));
                let pixel = |(x, y): (usize, usize)| BBox::new(to_f32(x), to_f32(y), to_f32(x + 1), to_f32(y + 1));
                let view = View { roi: None, rotation };
                assert_eq!(view.frame_from_view(&pixel(at), region), pixel((x + 10, y + 20)), "{rotation:?} {x},{y}");
            }
        }
        assert_eq!("45".parse::<Rotation>(), Err(RotationError));
    }
}
