//! A picture from anywhere: it is refused, or every instruction set makes the bytes of it that the plain loops make.

use super::bytes::Bytes;
use fovea::frame::{ColorInfo, ColorMatrix, ColorRange, PictureRef, PixelFormat, PlaneRef, Region, Roi, Rotation, View};
use fovea::kernels::{Isa, Kernels};
use fovea::preprocess::Preprocessor;

/// Whether there was a picture to look at.
pub(crate) fn look(bytes: &[u8]) -> bool {
    let mut bytes = Bytes(bytes);
    let format = bytes.pick(&PixelFormat::ALL);
    let matrix = bytes.pick(&[ColorMatrix::Bt601, ColorMatrix::Bt709]);
    let color = ColorInfo { matrix, range: bytes.pick(&[ColorRange::Limited, ColorRange::Full]) };
    let (width, height) = (bytes.two() % 400, bytes.two() % 200);
    let dst = (1 + bytes.number(), 1 + bytes.number() / 2);
    let rotation = bytes.pick(&Rotation::ALL);
    let roi = match bytes.below(4) {
        0 | 1 => None,
        2 => Some(Roi::Pixels(Region { x: bytes.number(), y: bytes.number(), width: bytes.number(), height: bytes.number() })),
        _ => Some(Roi::Parts([(); 4].map(|()| f64::from(bytes.byte()) / 256.0))),
    };
    // Strides and lengths that fit, and some that do not.
    let mut planes = Vec::new();
    for plane_idx in 0..format.n_planes() {
        let Some(size) = format.plane_size(plane_idx, width, height) else { continue };
        let stride = match bytes.below(16) {
            0 => bytes.two(),
            1 => usize::MAX / bytes.number().max(1),
            padding => size.row_bytes + padding - 2,
        };
        let needed = stride.saturating_mul(size.rows.saturating_sub(1)).saturating_add(size.row_bytes).min(1 << 20);
        let len = if bytes.below(16) == 0 { needed.saturating_sub(bytes.number()) } else { needed };
        planes.push((bytes.fill(len), stride));
    }
    let mut refs = [PlaneRef::default(); 3];
    for (plane, (data, stride_bytes)) in refs.iter_mut().zip(&planes) {
        *plane = PlaneRef { data, stride_bytes: *stride_bytes };
    }
    let view = View { roi, rotation };
    let Ok(whole) = PictureRef::new(format, width, height, color, refs) else { return false };
    let Ok(region) = view.region((width, height)) else { return false };
    let Ok(picture) = whole.region(region) else { return false };
    let mut want: Option<Vec<u8>> = None;
    for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::new(isa)) {
        let mut out = vec![7; dst.0 * dst.1 * 3];
        Preprocessor::with_kernels(dst, kernels).turned(rotation).run(&picture, &mut out);
        let want = want.get_or_insert_with(|| out.clone());
        assert!(*want == out, "{}: {format} {width}x{height}, {region}, {rotation:?}, to {dst:?}", kernels.isa().name());
    }
    true
}
