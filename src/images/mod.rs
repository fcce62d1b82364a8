//! Picture files: PNG, JPEG and WebP as RGB, decoded by one library so that every machine sees the same bits.

mod degrade;

pub use degrade::Degradation;

use crate::frame::{MAX_SIDE, PictureRef};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Extensions of the files that [`open`] reads, lower case.
pub const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbPicture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Red, green, blue, row by row without padding.
    pub data: Vec<u8>,
}

impl RgbPicture {
    /// The picture, borrowed.
    ///
    /// # Panics
    /// If `data` is shorter than the sizes say.
    #[must_use]
    pub fn as_picture(&self) -> PictureRef<'_> {
        PictureRef::rgb(&self.data, self.width, self.height).expect("data has width x height x 3 bytes")
    }
}

/// Why a file gives no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no picture, is damaged, or is too large.
    #[error("{path} is not a picture that can be read ({reason}); JPEG, PNG and WebP up to {MAX_SIDE} pixels a side can")]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// Reads a picture. The orientation that a camera noted is applied; the kind of file is told by its content.
///
/// # Errors
/// [`ImageError`] naming the file.
pub fn open(path: &Path) -> Result<RgbPicture, ImageError> {
    let bytes = std::fs::read(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    decode(&bytes).map_err(|reason| ImageError::Decode { path: path.to_owned(), reason })
}

/// Width and height of the picture that [`open`] would give, from the head of the file.
///
/// # Errors
/// [`ImageError`] naming the file.
pub fn size(path: &Path) -> Result<(usize, usize), ImageError> {
    let file = File::open(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    let size = || -> Result<(u32, u32), String> {
        let mut decoder = decoder(io::BufReader::new(file))?;
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().map_err(|error| error.to_string())?;
        let is_turned = matches!(
            orientation,
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
        );
        Ok(if is_turned { (height, width) } else { (width, height) })
    };
    let (width, height) = size().map_err(|reason| ImageError::Decode { path: path.to_owned(), reason })?;
    Ok((width as usize, height as usize))
}

/// Reads the head of a picture file.
fn decoder<'a>(source: impl io::BufRead + io::Seek + 'a) -> Result<impl ImageDecoder + 'a, String> {
    let mut reader = ImageReader::new(source).with_guessed_format().map_err(|error| error.to_string())?;
    let side = u32::try_from(MAX_SIDE).unwrap_or(u32::MAX);
    let mut limits = Limits::default();
    limits.max_image_width = Some(side);
    limits.max_image_height = Some(side);
    reader.limits(limits);
    reader.into_decoder().map_err(|error| error.to_string())
}

/// Bytes that a picture may take as its file has it: the largest with 8 bits a colour, but not with 16.
const MAX_DECODED: u64 = 1 << 30;

/// Decodes the content of a picture file.
///
/// # Errors
/// What the decoder says.
pub fn decode(bytes: &[u8]) -> Result<RgbPicture, String> {
    if is_cut_off(bytes) {
        return Err("the file is cut off: a JPEG without its end".to_owned());
    }
    let mut decoder = decoder(io::Cursor::new(bytes))?;
    let (n_bytes, (width, height)) = (decoder.total_bytes(), decoder.dimensions());
    if n_bytes > MAX_DECODED {
        return Err(format!("{width}x{height} pixels are {n_bytes} bytes; at most {MAX_DECODED} are decoded"));
    }
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok(RgbPicture { width, height, data: rgb.into_raw() })
}

/// Whether the bytes are those of a JPEG file (ISO 10918-1, annex B) that ends before its picture does. Its decoder makes the
/// rest grey.
fn is_cut_off(bytes: &[u8]) -> bool {
    const START: [u8; 2] = [0xff, 0xd8];
    let Some(mut rest) = bytes.strip_prefix(&START) else { return false };
    loop {
        match *rest {
            // The end; thumbnails have theirs inside of a segment.
            [0xff, 0xd9, ..] => return false,
            // Samples: a byte that is stuffed, restarts, fill; then, markers without a segment.
            [0xff, 0 | 0x01 | 0xd0..=0xd8, ref after @ ..] => rest = after,
            [0xff, 0xff, ..] => rest = &rest[1..],
            // A segment, its length first.
            [0xff, _, high, low, ..] => match rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..) {
                Some(after) => rest = after,
                None => return true,
            },
            [0xff, ..] | [] => return true,
            [_, ref after @ ..] => rest = &after[after.iter().position(|&byte| byte == 0xff).unwrap_or(after.len())..],
        }
    }
}

/// Writes a picture as PNG or JPEG, by the extension of `path`.
///
/// # Errors
/// [`ImageError::Write`] naming the file.
pub fn save(path: &Path, picture: &RgbPicture) -> Result<(), ImageError> {
    let failed = |reason: String| ImageError::Write { path: path.to_owned(), reason };
    let side = |side: usize| u32::try_from(side).map_err(|error| failed(error.to_string()));
    let (width, height) = (side(picture.width)?, side(picture.height)?);
    image::save_buffer(path, &picture.data, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|error| failed(error.to_string()))
}
