//! Which elements make a video file or a stream: the encoder that is there, its settings, the muxer.

use super::elements;
use crate::pipeline::ports::StreamInfo;
use crate::pipeline::spec::Container;
use gstreamer as gst;
use gstreamer::prelude::*;
use std::time::Duration;

/// Encoders in order of preference.
const H264_ENCODERS: [&str; 4] = ["x264enc", "openh264enc", "v4l2h264enc", "nvv4l2h264enc"];

/// Instead of H.264 in Matroska and in streams, where no H.264 encoder is installed.
const VP8_ENCODER: &str = "vp8enc";

/// Length of a fragment of an MP4 file: what a killed process may lose.
const FRAGMENT_MS: u32 = 1000;

/// Seconds from one key frame to the next.
const KEY_FRAME_SECONDS: u32 = 2;

/// Ticks per second of an MP4 track whose frame rate is not constant.
const VARIABLE_RATE_TIMESCALE: u32 = 90_000;

/// The elements between raw video and a file, or a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recipe {
    encoder: &'static str,
    /// `None`: a stream, which has none.
    container: Option<Container>,
}

impl Recipe {
    /// Chooses an encoder for a file of `container`, or for a stream.
    ///
    /// # Errors
    /// A message with the packages that would help.
    pub(super) fn choose(container: Option<Container>) -> Result<Self, String> {
        Self::choose_from(container, elements::is_installed)
    }

    fn choose_from(container: Option<Container>, is_installed: impl Fn(&str) -> bool) -> Result<Self, String> {
        if let Some(muxer) = container.map(muxer_name).filter(|&muxer| !is_installed(muxer)) {
            return Err(elements::missing(muxer));
        }
        if let Some(encoder) = H264_ENCODERS.into_iter().find(|name| is_installed(name)) {
            return Ok(Self { encoder, container });
        }
        match (container, is_installed(VP8_ENCODER)) {
            (Some(Container::Mkv) | None, true) => Ok(Self { encoder: VP8_ENCODER, container }),
            (_, has_vp8) => Err(format!(
                "no H.264 encoder is installed ({}); install one: sudo apt install gstreamer1.0-plugins-ugly{}",
                H264_ENCODERS.join(", "),
                if has_vp8 { ", or write a file ending in .mkv, which VP8 can fill" } else { "" }
            )),
        }
    }

    /// Formats that the encoder takes, best first.
    pub(super) const fn takes_nv12(self) -> bool {
        matches!(self.encoder.as_bytes(), b"x264enc" | b"v4l2h264enc")
    }

    /// Encoder, parser where needed, muxer of a file: to be linked in this order.
    ///
    /// # Errors
    /// A message naming an element that cannot be made.
    pub(super) fn elements(self, info: &StreamInfo, size: (usize, usize)) -> Result<Vec<gst::Element>, String> {
        let rate = info.frame_rate.map_or(30.0, |(numerator, denominator)| f64::from(numerator) / f64::from(denominator));
        let mut chain = match self.encoder {
            "x264enc" => vec![x264(rate, size)?],
            "openh264enc" => vec![openh264(rate, size)?],
            "v4l2h264enc" => v4l2(rate)?,
            "nvv4l2h264enc" => vec![elements::make("nvvidconv")?, elements::make("nvv4l2h264enc")?],
            _ => vec![vp8(rate, size)?],
        };
        if self.encoder != VP8_ENCODER && (self.encoder != "x264enc" || elements::is_installed("h264parse")) {
            let parser = elements::make("h264parse")?;
            if self.container.is_none() {
                // Before every key frame what a decoder must know, for those who begin to watch in the middle.
                parser.set_property("config-interval", -1_i32);
            }
            chain.push(parser);
        }
        chain.extend(self.container.map(|container| muxer(container, info)).transpose()?);
        Ok(chain)
    }
}

fn muxer(container: Container, info: &StreamInfo) -> Result<gst::Element, String> {
    let muxer = elements::make(muxer_name(container))?;
    if container == Container::Mp4 {
        // An ordinary MP4 has its index at the end, and a process that is killed before leaves a file that nothing
        // can play. Fragments of a second each carry their own index; at the end the file is rewritten into an
        // ordinary one, in place.
        muxer.set_property("fragment-duration", FRAGMENT_MS);
        muxer.set_property_from_str("fragment-mode", "first-moov-then-finalise");
        if info.frame_rate.is_none() {
            muxer.set_property("trak-timescale", VARIABLE_RATE_TIMESCALE);
        }
    }
    Ok(muxer)
}

const fn muxer_name(container: Container) -> &'static str {
    match container {
        Container::Mp4 => "mp4mux",
        Container::Mkv => "matroskamux",
    }
}

/// Bits per second that look good at this size and rate: a ceiling for constant quality, a target elsewhere.
fn bit_rate((width, height): (usize, usize), rate: f64) -> u32 {
    const BITS_PER_PIXEL: f64 = 0.15;
    let pixels = u32::try_from(width.saturating_mul(height)).unwrap_or(u32::MAX);
    let bits = (f64::from(pixels) * rate.clamp(1.0, 60.0) * BITS_PER_PIXEL).clamp(1e6, 60e6);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1e6..=60e6")]
    let bits = bits as u32;
    bits
}

fn key_frame_distance(rate: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=120")]
    let rate = rate.round().clamp(1.0, 120.0) as u32;
    rate * KEY_FRAME_SECONDS
}

/// Constant quality without reordering or look-ahead: memory stays bounded, time stamps stay as they are, and what was
/// pushed is in the file.
fn x264(rate: f64, size: (usize, usize)) -> Result<gst::Element, String> {
    let encoder = elements::make("x264enc")?;
    encoder.set_property_from_str("tune", "zerolatency");
    encoder.set_property_from_str("speed-preset", "superfast");
    encoder.set_property_from_str("pass", "qual");
    encoder.set_property("quantizer", 21_u32);
    encoder.set_property("bitrate", bit_rate(size, rate) / 1000);
    encoder.set_property("key-int-max", key_frame_distance(rate));
    Ok(encoder)
}

fn openh264(rate: f64, size: (usize, usize)) -> Result<gst::Element, String> {
    let encoder = elements::make("openh264enc")?;
    encoder.set_property("bitrate", bit_rate(size, rate));
    encoder.set_property("gop-size", key_frame_distance(rate));
    encoder.set_property_from_str("complexity", "low");
    encoder.set_property_from_str("rate-control", "quality");
    Ok(encoder)
}

/// The encoder of a Raspberry Pi up to 4; it asks for a level in its output caps.
fn v4l2(rate: f64) -> Result<Vec<gst::Element>, String> {
    let encoder = elements::make("v4l2h264enc")?;
    let controls = gst::Structure::builder("controls")
        .field("video_bitrate", 8_000_000_i32)
        .field("h264_i_frame_period", i32::try_from(key_frame_distance(rate)).unwrap_or(60))
        .build();
    encoder.set_property("extra-controls", controls);
    let filter = elements::make("capsfilter")?;
    filter.set_property("caps", gst::Caps::builder("video/x-h264").field("level", "4").build());
    Ok(vec![encoder, filter])
}

fn vp8(rate: f64, size: (usize, usize)) -> Result<gst::Element, String> {
    let encoder = elements::make(VP8_ENCODER)?;
    encoder.set_property("deadline", 1_i64);
    encoder.set_property("cpu-used", 8_i32);
    encoder.set_property("target-bitrate", i32::try_from(bit_rate(size, rate)).unwrap_or(i32::MAX));
    encoder.set_property("keyframe-max-dist", i32::try_from(key_frame_distance(rate)).unwrap_or(60));
    Ok(encoder)
}

/// How long `finish` waits without progress: the slowest encoder and the slowest card need less.
pub(super) const FINISH_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_of_the_encoder() {
        let choose = |container, installed: &[&str]| Recipe::choose_from(container, |name| installed.contains(&name));
        let (mp4, mkv) = (Some(Container::Mp4), Some(Container::Mkv));
        let name = |recipe: Result<Recipe, String>| recipe.map(|recipe| recipe.encoder);
        assert_eq!(name(choose(mp4, &["mp4mux", "openh264enc", "x264enc"])), Ok("x264enc"));
        assert_eq!(name(choose(mp4, &["mp4mux", "nvv4l2h264enc", "openh264enc"])), Ok("openh264enc"));
        assert_eq!(name(choose(mkv, &["matroskamux", "vp8enc"])), Ok("vp8enc"));
        let error = name(choose(mp4, &["mp4mux", "vp8enc"])).unwrap_err();
        assert!(error.contains("gstreamer1.0-plugins-ugly") && error.contains(".mkv"), "{error}");
        assert!(name(choose(mkv, &["x264enc"])).unwrap_err().contains("matroskamux"));
        assert_eq!(name(choose(None, &["x264enc"])), Ok("x264enc"));
        assert_eq!(name(choose(None, &["vp8enc"])), Ok("vp8enc"));
    }

    #[test]
    fn rates_of_bits_and_key_frames() {
        assert_eq!(bit_rate((1, 1), 30.0), 1_000_000);
        assert_eq!(bit_rate((1920, 1080), 30.0), 9_331_200);
        assert_eq!(bit_rate((16_384, 16_384), 1000.0), 60_000_000);
        assert_eq!([0.5, 29.97, 1000.0].map(key_frame_distance), [2, 60, 240]);
    }
}
