//! Elements of GStreamer by name, and the packages that hold them.

use gstreamer as gst;

/// Packages of Debian, Ubuntu and Raspberry Pi OS (the last: of the Jetson's own system) by element.
const PACKAGES: [(&str, &[&str]); 8] = [
    (
        "gstreamer1.0-plugins-base",
        &["uridecodebin", "decodebin", "videoconvert", "videoscale", "videotestsrc", "appsrc", "appsink"],
    ),
    ("gstreamer1.0-plugins-good", &["v4l2src", "v4l2h264enc", "rtspsrc", "souphttpsrc", "mp4mux", "matroskamux", "vp8enc"]),
    ("gstreamer1.0-plugins-bad", &["h264parse", "openh264enc", "vapostproc", "waylandsink"]),
    ("gstreamer1.0-plugins-ugly", &["x264enc"]),
    ("gstreamer1.0-rtsp", &["rtspclientsink"]),
    ("gstreamer1.0-libcamera", &["libcamerasrc"]),
    ("gstreamer1.0-libav", &["avdec_h264"]),
    ("nvidia-l4t-gstreamer", &["nvarguscamerasrc", "nvvidconv", "nvv4l2h264enc"]),
];

/// Makes an element.
///
/// # Errors
/// A message with the package to install.
pub(super) fn make(name: &str) -> Result<gst::Element, String> {
    gst::ElementFactory::make(name).build().map_err(|_| missing(name))
}

/// That an element is missing, and the package to install.
pub(super) fn missing(name: &str) -> String {
    let package = PACKAGES.iter().find(|(_, elements)| elements.contains(&name)).map(|(package, _)| *package);
    let remedy = match package {
        Some("nvidia-l4t-gstreamer") => "it comes with the Jetson's system as package nvidia-l4t-gstreamer".to_owned(),
        Some(package) => format!("install it: sudo apt install {package}"),
        None => format!("`gst-inspect-1.0 {name}` tells more"),
    };
    format!("the GStreamer element {name} is not installed; {remedy}")
}

/// Whether an element can be made.
pub(super) fn is_installed(name: &str) -> bool {
    gst::ElementFactory::find(name).is_some()
}

/// Package that decodes what GStreamer calls `description` (such as "H.264 (High Profile) decoder") and `detail` (its
/// caps).
pub(super) fn package_for_codec(description: &str, detail: &str) -> &'static str {
    let text = format!("{description} {detail}").to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["vp8", "vp9", "jpeg", "quicktime", "matroska", "avi ", "x-msvideo", "application/x-rtp", "rtsp", "http"]) {
        "gstreamer1.0-plugins-good"
    } else if has(&["av1", "mpeg-ts", "mpegts", "hls", "rtmp", "srt", "dash"]) {
        "gstreamer1.0-plugins-bad"
    } else {
        "gstreamer1.0-libav"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_elements_name_their_package() {
        gst::init().unwrap();
        assert!(make("videotestsrc").is_ok());
        let error = make("no-such-element").unwrap_err();
        assert!(error.contains("no-such-element"), "{error}");
        if !is_installed("nvarguscamerasrc") {
            assert!(make("nvarguscamerasrc").unwrap_err().contains("nvidia-l4t-gstreamer"));
        }
        assert_eq!(package_for_codec("H.264 (High Profile) decoder", "video/x-h264"), "gstreamer1.0-libav");
        assert_eq!(package_for_codec("VP9 decoder", "video/x-vp9"), "gstreamer1.0-plugins-good");
        assert_eq!(package_for_codec("AV1 decoder", "video/x-av1"), "gstreamer1.0-plugins-bad");
    }
}
