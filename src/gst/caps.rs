//! Caps of GStreamer as the words of `frame`, and back.

use crate::frame::{ColorInfo, ColorMatrix, ColorRange, PixelFormat};
use gstreamer as gst;
use gstreamer_video as gst_video;
use gstreamer_video::{VideoColorMatrix, VideoColorPrimaries, VideoColorRange, VideoFormat, VideoTransferFunction};

/// From this height up, a picture without colour information is taken for BT.709.
const HD_HEIGHT: u32 = 720;

/// Formats that are taken without conversion. RGBx and BGRA have the bytes of RGBA and BGRx in the same places.
const ACCEPTED: [(VideoFormat, PixelFormat); 9] = [
    (VideoFormat::Nv12, PixelFormat::Nv12),
    (VideoFormat::I420, PixelFormat::I420),
    (VideoFormat::Yuy2, PixelFormat::Yuy2),
    (VideoFormat::Rgb, PixelFormat::Rgb),
    (VideoFormat::Rgba, PixelFormat::Rgba),
    (VideoFormat::Rgbx, PixelFormat::Rgba),
    (VideoFormat::Bgrx, PixelFormat::Bgrx),
    (VideoFormat::Bgra, PixelFormat::Bgrx),
    (VideoFormat::Gray8, PixelFormat::Gray8),
];

/// Caps of what the pipeline takes: system memory, one of the accepted formats.
pub(super) fn accepted() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(ACCEPTED.map(|(format, _)| format)).build()
}

/// The format in our words, if it is accepted.
pub(super) fn pixel_format(format: VideoFormat) -> Option<PixelFormat> {
    ACCEPTED.iter().find(|(accepted, _)| *accepted == format).map(|(_, format)| *format)
}

/// The format in GStreamer's words.
pub(super) const fn video_format(format: PixelFormat) -> VideoFormat {
    match format {
        PixelFormat::Nv12 => VideoFormat::Nv12,
        PixelFormat::I420 => VideoFormat::I420,
        PixelFormat::Yuy2 => VideoFormat::Yuy2,
        PixelFormat::Rgb => VideoFormat::Rgb,
        PixelFormat::Rgba => VideoFormat::Rgba,
        PixelFormat::Bgrx => VideoFormat::Bgrx,
        PixelFormat::Gray8 => VideoFormat::Gray8,
    }
}

/// What caps say of a picture.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// For mapping buffers.
    pub(super) info: gst_video::VideoInfo,
    /// Layout of the samples.
    pub(super) format: PixelFormat,
    /// Width and height in pixels.
    pub(super) size: (usize, usize),
    /// Colour information.
    pub(super) color: ColorInfo,
    /// Frames per second; `None` where the rate varies or is unknown.
    pub(super) frame_rate: Option<(u32, u32)>,
}

impl Layout {
    /// Reads caps of raw video in an accepted format.
    pub(super) fn from_caps(caps: &gst::CapsRef) -> Option<Self> {
        let info = gst_video::VideoInfo::from_caps(caps).ok()?;
        let format = pixel_format(info.format())?;
        // `VideoInfo` makes up a colorimetry where the caps have none, by a rule of its own.
        let stated = caps.structure(0).is_some_and(|structure| structure.has_field("colorimetry"));
        let color = color_info(stated.then(|| info.colorimetry()).as_ref(), info.height());
        let size = (usize::try_from(info.width()).ok()?, usize::try_from(info.height()).ok()?);
        let frame_rate = frame_rate(info.fps());
        Some(Self { info, format, size, color, frame_rate })
    }
}

fn frame_rate(fps: gst::Fraction) -> Option<(u32, u32)> {
    let (numerator, denominator) = (u32::try_from(fps.numer()).ok()?, u32::try_from(fps.denom()).ok()?);
    // Containers that know no rate state their clock instead, such as 90000/1.
    let is_rate = numerator > 0 && denominator > 0 && numerator / denominator <= 1000;
    is_rate.then_some((numerator, denominator))
}

/// Colour information of a picture that is `height` lines high.
fn color_info(stated: Option<&gst_video::VideoColorimetry>, height: u32) -> ColorInfo {
    let matrix = match stated.map(gst_video::VideoColorimetry::matrix) {
        Some(VideoColorMatrix::Bt601 | VideoColorMatrix::Fcc) => ColorMatrix::Bt601,
        // The wide-gamut matrices have no specification here; BT.709 is the nearest.
        Some(VideoColorMatrix::Bt709 | VideoColorMatrix::Bt2020 | VideoColorMatrix::Smpte240m) => ColorMatrix::Bt709,
        _ => default_matrix(height),
    };
    let range = match stated.map(gst_video::VideoColorimetry::range) {
        Some(VideoColorRange::Range0_255) => ColorRange::Full,
        _ => ColorRange::Limited,
    };
    ColorInfo { matrix, range }
}

/// The matrix of a picture that states none.
pub(super) const fn default_matrix(height: u32) -> ColorMatrix {
    if height < HD_HEIGHT { ColorMatrix::Bt601 } else { ColorMatrix::Bt709 }
}

/// Colour information in GStreamer's words.
pub(super) fn colorimetry(color: ColorInfo) -> gst_video::VideoColorimetry {
    let range = match color.range {
        ColorRange::Limited => VideoColorRange::Range16_235,
        ColorRange::Full => VideoColorRange::Range0_255,
    };
    let (matrix, transfer, primaries) = match color.matrix {
        ColorMatrix::Bt601 => (VideoColorMatrix::Bt601, VideoTransferFunction::Bt601, VideoColorPrimaries::Smpte170m),
        ColorMatrix::Bt709 => (VideoColorMatrix::Bt709, VideoTransferFunction::Bt709, VideoColorPrimaries::Bt709),
    };
    gst_video::VideoColorimetry::new(range, matrix, transfer, primaries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_of_caps() {
        gst::init().unwrap();
        let limited = |matrix| ColorInfo { matrix, range: ColorRange::Limited };
        let full = |matrix| ColorInfo { matrix, range: ColorRange::Full };
        for (height, colorimetry, want) in [
            (480, None, limited(ColorMatrix::Bt601)),
            (719, None, limited(ColorMatrix::Bt601)),
            (720, None, limited(ColorMatrix::Bt709)),
            (480, Some("bt709"), limited(ColorMatrix::Bt709)),
            (1080, Some("bt601"), limited(ColorMatrix::Bt601)),
            (1080, Some("1:4:0:0"), full(ColorMatrix::Bt601)),
            (480, Some("0:0:0:0"), limited(ColorMatrix::Bt601)),
            (1080, Some("0:0:0:0"), limited(ColorMatrix::Bt709)),
            (2160, Some("bt2020"), limited(ColorMatrix::Bt709)),
        ] {
            let mut caps = gst_video::VideoCapsBuilder::new().format(VideoFormat::Nv12).width(640).height(height);
            caps = caps.framerate(gst::Fraction::new(30, 1)).field_if_some("colorimetry", colorimetry);
            assert_eq!(Layout::from_caps(&caps.build()).unwrap().color, want, "{height} {colorimetry:?}");
        }
    }

    #[test]
    fn colour_information_survives_the_round_trip() {
        gst::init().unwrap();
        for matrix in [ColorMatrix::Bt601, ColorMatrix::Bt709] {
            for range in [ColorRange::Limited, ColorRange::Full] {
                let color = ColorInfo { matrix, range };
                assert_eq!(color_info(Some(&colorimetry(color)), 480), color);
            }
        }
    }

    #[test]
    fn rates() {
        for (fps, want) in [((30, 1), Some((30, 1))), ((0, 1), None), ((30_000, 1001), Some((30_000, 1001))), ((90_000, 1), None)]
        {
            assert_eq!(frame_rate(gst::Fraction::new(fps.0, fps.1)), want);
        }
    }
}
