//! What a pipeline is made of, checked: sources and sinks as the command line and pipeline files name them.
//!
//! [`SourceSpec::parse`] and [`SinkSpec::parse`] read the URIs of the command line; `config` builds the same types from
//! a pipeline file. Adapters take these types and need not check them again.

use super::secret::{SecretUrl, percent_decoded};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Frames per second as a fraction, both parts above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    /// Frames …
    pub numerator: u32,
    /// … in so many seconds.
    pub denominator: u32,
}

impl FrameRate {
    /// A whole number of frames per second.
    ///
    /// # Panics
    /// If it is 0.
    #[must_use]
    pub const fn whole(fps: u32) -> Self {
        assert!(fps > 0, "a rate is above 0");
        Self { numerator: fps, denominator: 1 }
    }

    /// Reads `30`, `29.97` or `30000/1001`; at most 1000 frames per second.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rate = match text.split_once('/') {
            Some((numerator, denominator)) => {
                Self { numerator: numerator.trim().parse().ok()?, denominator: denominator.trim().parse().ok()? }
            }
            None => match text.split_once('.') {
                Some((whole, decimals)) if (1..=3).contains(&decimals.len()) => {
                    let denominator = 10_u32.pow(u32::try_from(decimals.len()).ok()?);
                    let numerator = whole.parse::<u32>().ok()?.checked_mul(denominator)?.checked_add(decimals.parse().ok()?)?;
                    Self { numerator, denominator }
                }
                _ => Self { numerator: text.parse().ok()?, denominator: 1 },
            },
        };
        let fits =
            rate.numerator > 0 && rate.denominator > 0 && f64::from(rate.numerator) <= 1000.0 * f64::from(rate.denominator);
        fits.then_some(rate)
    }
}

impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

/// Size and rate asked of a camera; what is `None` is left to the camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CameraMode {
    /// Width in pixels.
    pub width: Option<u32>,
    /// Height in pixels.
    pub height: Option<u32>,
    /// Frames per second.
    pub frame_rate: Option<FrameRate>,
}

/// How RTSP carries the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RtspTransport {
    /// Interleaved in the TCP connection: nothing is lost, passes every firewall.
    #[default]
    Tcp,
    /// UDP: lower latency, may lose packets.
    Udp,
}

/// Whether a frame may be dropped for a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// The source waits: every frame is inferred, as fast as it goes.
    Max,
    /// Frames come at their own pace and the newest wins.
    Live,
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A video file.
    File(PathBuf),
    /// A stream on the network: rtsp, rtsps, http, https, rtmp, udp, srt.
    Url(SecretUrl),
    /// A camera of Video4Linux: USB cameras.
    V4l2 {
        /// Device file, such as `/dev/video0`.
        device: PathBuf,
        /// Size and rate.
        mode: CameraMode,
    },
    /// A camera of libcamera: CSI cameras of a Raspberry Pi.
    Libcamera {
        /// Camera name as libcamera lists it; the first camera if `None`.
        camera: Option<String>,
        /// Size and rate.
        mode: CameraMode,
    },
    /// A CSI camera of a Jetson (`nvarguscamerasrc`).
    Csi {
        /// Number of the sensor.
        sensor_id: u32,
        /// Size and rate.
        mode: CameraMode,
    },
    /// The built-in test picture.
    Test {
        /// Pattern name of `videotestsrc`: letters, digits and hyphens.
        pattern: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Frames per second.
        frame_rate: FrameRate,
        /// Number of frames; endless if `None`.
        n_frames: Option<u64>,
    },
    /// The pictures of a folder in the order of their names.
    Images {
        /// The folder.
        folder: PathBuf,
        /// Frames per second that they are stamped with.
        frame_rate: FrameRate,
    },
    /// GStreamer elements as text, up to the raw video that the pipeline takes over.
    Launch(String),
}

impl SourceKind {
    /// What it leaves open taken from `other`, if that is of the same kind.
    pub(super) fn completed(mut self, other: &Self) -> Self {
        if self == Self::test_picture() && matches!(other, Self::Test { .. }) {
            return other.clone();
        }
        match (&mut self, other) {
            (Self::V4l2 { mode, .. }, Self::V4l2 { mode: other, .. })
            | (Self::Libcamera { mode, .. }, Self::Libcamera { mode: other, .. })
            | (Self::Csi { mode, .. }, Self::Csi { mode: other, .. }) => {
                *mode = CameraMode {
                    width: mode.width.or(other.width),
                    height: mode.height.or(other.height),
                    frame_rate: mode.frame_rate.or(other.frame_rate),
                };
            }
            (Self::Images { frame_rate, .. }, Self::Images { frame_rate: other, .. }) => *frame_rate = *other,
            _ => {}
        }
        self
    }

    /// The test picture, unless something else is asked for.
    fn test_picture() -> Self {
        Self::Test {
            pattern: DEFAULT_PATTERN.to_owned(),
            width: 640,
            height: 360,
            frame_rate: FrameRate::whole(30),
            n_frames: None,
        }
    }
}

/// A source and how it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// Where frames come from.
    pub kind: SourceKind,
    /// How much a network source buffers against jitter.
    pub latency: Duration,
    /// How RTSP carries the stream.
    pub rtsp_transport: RtspTransport,
    /// How long to wait for the first frame, and for an answer of the network.
    pub timeout: Duration,
    /// For how long a live source that was lost, or a network stream that is not there at the start, is tried again; zero: it
    /// is over. `None`: [`DEFAULT_RECONNECT`] for network streams that were lost, zero for others and at the start.
    pub reconnect: Option<Duration>,
    /// Hand frames over at the pace of their PTS, where the source itself has no pace (files, test pictures): as if the
    /// stream were live. Set by the pipeline for `--pace live`.
    pub sync: bool,
}

/// Default of [`SourceSpec::latency`].
pub const DEFAULT_LATENCY: Duration = Duration::from_millis(200);

/// Default of [`SourceSpec::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// Default of [`SourceSpec::reconnect`] for live network streams.
pub const DEFAULT_RECONNECT: Duration = Duration::from_secs(60);

/// A source or sink that cannot be: what was asked for, and what can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}; {remedy}")]
pub struct SpecError {
    /// What was asked for, without credentials.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
    /// What can be written instead.
    pub remedy: String,
}

impl SpecError {
    fn new(what: impl fmt::Display, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.to_string(), reason: reason.into(), remedy: remedy.into() }
    }
}

const SOURCES: &str = "a source is a video file, a folder of pictures, rtsp://…, http://…, v4l2:///dev/video0, libcamera://, \
                       csi://0, test:// or launch:ELEMENTS";
const SINKS: &str = "a sink is a file ending in .mp4 or .mkv, rtsp://… of a server, `display` or `none`";

impl SourceSpec {
    /// A source with default latency and timeout.
    #[must_use]
    pub const fn new(kind: SourceKind) -> Self {
        Self {
            kind,
            latency: DEFAULT_LATENCY,
            rtsp_transport: RtspTransport::Tcp,
            timeout: DEFAULT_TIMEOUT,
            reconnect: None,
            sync: false,
        }
    }

    /// Reads a URI; paths are relative to `base`. Whether a path is a folder is looked up, nothing else is.
    ///
    /// # Errors
    /// [`SpecError`] when no source is written like this.
    pub fn parse(uri: &str, base: &Path) -> Result<Self, SpecError> {
        if uri.is_empty() {
            return Err(SpecError::new("``", "empty", SOURCES));
        }
        if let Some(elements) = uri.strip_prefix("launch:") {
            return Ok(Self::new(SourceKind::Launch(elements.trim().to_owned())));
        }
        let uri = &lower_scheme(uri);
        let Some((scheme, rest)) = uri.split_once("://") else {
            refuse_half_url(uri)?;
            return Ok(Self::new(path_source(&base.join(uri))));
        };
        let kind = match scheme {
            "file" => path_source(&file_path(uri, rest)?),
            "rtsp" | "rtsps" | "http" | "https" | "rtmp" | "udp" | "srt" => {
                SourceKind::Url(network_url(uri, matches!(scheme, "udp" | "srt"))?)
            }
            "v4l2" => {
                let query = Query::parse(uri, rest, &["width", "height", "fps"])?;
                if !query.path.starts_with('/') {
                    return Err(SpecError::new(uri, "no device", "write it as v4l2:///dev/video0, with three slashes"));
                }
                SourceKind::V4l2 { device: PathBuf::from(query.path), mode: query.camera_mode()? }
            }
            "libcamera" => {
                let query = Query::parse(uri, rest, &["width", "height", "fps"])?;
                let camera = (!query.path.is_empty()).then(|| query.path.to_owned());
                SourceKind::Libcamera { camera, mode: query.camera_mode()? }
            }
            "csi" => {
                let query = Query::parse(uri, rest, &["width", "height", "fps"])?;
                let sensor_id = match query.path {
                    "" => 0,
                    path => path.parse().map_err(|_| SpecError::new(uri, "the sensor is no number", "write it as csi://0"))?,
                };
                SourceKind::Csi { sensor_id, mode: query.camera_mode()? }
            }
            "test" => {
                let query = Query::parse(uri, rest, &["width", "height", "fps", "frames", "pattern"])?;
                query.test_source()?
            }
            _ => return Err(SpecError::new(SecretUrl::new(uri.to_owned()), format!("`{scheme}` is no kind of source"), SOURCES)),
        };
        Ok(Self::new(kind))
    }

    /// For how long it is tried again if it is lost.
    #[must_use]
    pub fn reconnect_limit(&self) -> Duration {
        let is_stream = matches!(self.kind, SourceKind::Url(_)) && self.is_live();
        self.reconnect.unwrap_or(if is_stream { DEFAULT_RECONNECT } else { Duration::ZERO })
    }

    /// For how long a network stream is tried again that is not there at the start; `None`: it is not, so that a wrong URL is
    /// found at once.
    #[must_use]
    pub fn start_limit(&self) -> Option<Duration> {
        let is_stream = matches!(self.kind, SourceKind::Url(_)) && self.is_live();
        self.reconnect.filter(|limit| is_stream && !limit.is_zero())
    }

    /// The file of a camera that is waited for where it is not there at the start, and for how long; `None`: it is not.
    #[must_use]
    pub fn awaited_device(&self) -> Option<(&Path, Duration)> {
        let SourceKind::V4l2 { device, .. } = &self.kind else { return None };
        self.reconnect.filter(|limit| !limit.is_zero()).map(|limit| (device.as_path(), limit))
    }

    /// Whether it is live, or its elements may say so once they run.
    #[must_use]
    pub fn may_be_live(&self) -> bool {
        self.is_live() || matches!(self.kind, SourceKind::Launch(_))
    }

    /// Frames arrive at their own pace and are lost if nobody takes them.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match &self.kind {
            SourceKind::File(_) | SourceKind::Test { .. } | SourceKind::Images { .. } => false,
            SourceKind::Launch(elements) => elements.split_ascii_whitespace().any(|word| LIVE_WORDS.contains(&word)),
            SourceKind::V4l2 { .. } | SourceKind::Libcamera { .. } | SourceKind::Csi { .. } => true,
            SourceKind::Url(url) => !url.expose().starts_with("http"),
        }
    }
}

/// Elements, and a property, that make a pipeline text live.
const LIVE_WORDS: [&str; 10] = [
    "v4l2src",
    "libcamerasrc",
    "nvarguscamerasrc",
    "nvv4l2camerasrc",
    "rtspsrc",
    "udpsrc",
    "srtsrc",
    "pipewiresrc",
    "ximagesrc",
    "is-live=true",
];

/// Name for reports and messages: the URI, without credentials.
impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SourceKind::File(path) => write!(f, "{}", path.display()),
            SourceKind::Url(url) => write!(f, "{url}"),
            SourceKind::V4l2 { device, .. } => write!(f, "v4l2://{}", device.display()),
            SourceKind::Libcamera { camera, .. } => write!(f, "libcamera://{}", camera.as_deref().unwrap_or_default()),
            SourceKind::Csi { sensor_id, .. } => write!(f, "csi://{sensor_id}"),
            SourceKind::Test { pattern, width, height, .. } => {
                write!(f, "test://?pattern={pattern}&width={width}&height={height}")
            }
            SourceKind::Images { folder, .. } => write!(f, "{}", folder.display()),
            SourceKind::Launch(_) => f.write_str("launch"),
        }
    }
}

/// Schemes are the same in any case (RFC 3986, section 3.1).
fn lower_scheme(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => uri.to_owned(),
    }
}

/// A slash that was forgotten makes a path of a URL, which would be shown with its password.
fn refuse_half_url(uri: &str) -> Result<(), SpecError> {
    match uri.split_once(':') {
        Some((scheme @ ("rtsp" | "rtsps" | "http" | "https" | "rtmp" | "srt"), _)) => Err(SpecError::new(
            format!("{scheme}:"),
            "two slashes must follow",
            format!("write it as {scheme}://HOST[:PORT]/PATH"),
        )),
        _ => Ok(()),
    }
}

/// A URL with a host; `may_listen`: one without receives on this machine.
fn network_url(uri: &str, may_listen: bool) -> Result<SecretUrl, SpecError> {
    let url = SecretUrl::new(uri.to_owned());
    let bare = url.without_credentials();
    let host = bare.split_once("://").map_or("", |(_, rest)| rest);
    if host.is_empty() || host.starts_with(['/', '?', ':']) && !may_listen {
        return Err(SpecError::new(&url, "no host in the URL", "write it as rtsp://HOST[:PORT]/PATH"));
    }
    let authority = host.split(['/', '?', '#']).next().unwrap_or_default();
    // What follows the address; that of IPv6 has colons, in brackets.
    let behind = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    if let Some((_, port)) = behind.split_once(':')
        && port.parse::<u16>().is_err()
    {
        return Err(SpecError::new(&url, format!("`{port}` is no port"), "a port is a number from 1 to 65535"));
    }
    Ok(url)
}

/// The path of a `file://` URL (RFC 8089): of this machine, with percent-encoded bytes.
fn file_path(uri: &str, rest: &str) -> Result<PathBuf, SpecError> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(SpecError::new(uri, "not a file of this machine", "write it as file:///FOLDER/FILE, or as a path alone"));
    }
    Ok(PathBuf::from(percent_decoded(path)))
}

fn path_source(path: &Path) -> SourceKind {
    if path.is_dir() {
        SourceKind::Images { folder: path.to_owned(), frame_rate: FrameRate::whole(1) }
    } else {
        SourceKind::File(path.to_owned())
    }
}

/// `path?key=value&…` of a URI.
struct Query<'a> {
    uri: &'a str,
    path: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    fn parse(uri: &'a str, rest: &'a str, keys: &[&str]) -> Result<Self, SpecError> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !keys.contains(&key) {
                return Err(SpecError::new(uri, format!("`{key}` is unknown here"), format!("known: {}", keys.join(", "))));
            }
            pairs.push((key, value));
        }
        Ok(Self { uri, path, pairs })
    }

    fn get<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>, expected: &str) -> Result<Option<T>, SpecError> {
        let Some((_, value)) = self.pairs.iter().rev().find(|(name, _)| *name == key) else { return Ok(None) };
        let wrong = || SpecError::new(self.uri, format!("`{key}` is `{value}`"), format!("it must be {expected}"));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn side(&self, key: &str) -> Result<Option<u32>, SpecError> {
        let read = |value: &str| value.parse().ok().filter(|&side| is_side(side));
        self.get(key, read, "1 to 16384 pixels")
    }

    fn frame_rate(&self) -> Result<Option<FrameRate>, SpecError> {
        self.get("fps", FrameRate::parse, "frames per second, such as 30, 29.97 or 30000/1001")
    }

    fn camera_mode(&self) -> Result<CameraMode, SpecError> {
        Ok(CameraMode { width: self.side("width")?, height: self.side("height")?, frame_rate: self.frame_rate()? })
    }

    fn test_source(&self) -> Result<SourceKind, SpecError> {
        let pattern = self.get("pattern", read_pattern, "a pattern of videotestsrc, such as smpte or ball")?;
        Ok(SourceKind::Test {
            pattern: pattern.unwrap_or_else(|| DEFAULT_PATTERN.to_owned()),
            width: self.side("width")?.unwrap_or(640),
            height: self.side("height")?.unwrap_or(360),
            frame_rate: self.frame_rate()?.unwrap_or(FrameRate::whole(30)),
            n_frames: self.get("frames", |value| value.parse().ok(), "a number of frames")?,
        })
    }
}

/// Pattern of the test source unless it names one.
pub const DEFAULT_PATTERN: &str = "ball";

/// Whether a picture may have a side of so many pixels.
#[must_use]
pub fn is_side(side: u32) -> bool {
    usize::try_from(side).is_ok_and(|side| (1..=crate::frame::MAX_SIDE).contains(&side))
}

/// A pattern name of `videotestsrc`, if it can be one.
#[must_use]
pub fn read_pattern(name: &str) -> Option<String> {
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    fits.then(|| name.to_owned())
}

/// File formats that videos are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// MPEG-4.
    Mp4,
    /// Matroska.
    Mkv,
}

/// Where annotated frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkSpec {
    /// Nowhere.
    None,
    /// Into a video file.
    File {
        /// The file.
        path: PathBuf,
        /// Its format.
        container: Container,
    },
    /// To an RTSP server, which hands them on to those who watch: rtsp, rtsps.
    Stream(SecretUrl),
    /// Onto the screen.
    Display,
}

impl SinkSpec {
    /// Reads a sink; paths are relative to `base`.
    ///
    /// # Errors
    /// [`SpecError`] when no sink is written like this.
    pub fn parse(uri: &str, base: &Path) -> Result<Self, SpecError> {
        match uri {
            "none" => return Ok(Self::None),
            "display" => return Ok(Self::Display),
            "" => return Err(SpecError::new("``", "empty", SINKS)),
            _ => {}
        }
        let uri = &lower_scheme(uri);
        let path = match uri.split_once("://") {
            Some(("file", rest)) => file_path(uri, rest)?,
            Some(("rtsp" | "rtsps", _)) => return Ok(Self::Stream(network_url(uri, false)?)),
            Some((scheme, _)) => {
                let url = SecretUrl::new(uri.to_owned());
                return Err(SpecError::new(url, format!("`{scheme}` is no kind of sink"), SINKS));
            }
            None => {
                refuse_half_url(uri)?;
                base.join(uri)
            }
        };
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let container = match extension.as_deref() {
            Some("mp4" | "m4v") => Container::Mp4,
            Some("mkv") => Container::Mkv,
            Some(other) => {
                return Err(SpecError::new(path.display(), format!("no video is written as .{other}"), SINKS));
            }
            None => return Err(SpecError::new(path.display(), "the file type is not named", SINKS)),
        };
        Ok(Self::File { path, container })
    }
}

impl fmt::Display for SinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File { path, .. } => write!(f, "{}", path.display()),
            Self::Stream(url) => write!(f, "{url}"),
            Self::Display => f.write_str("display"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(uri: &str) -> SourceKind {
        SourceSpec::parse(uri, Path::new("/base")).unwrap_or_else(|error| panic!("{uri}: {error}")).kind
    }

    #[test]
    fn uris_of_sources() {
        assert_eq!(kind("street.avi"), SourceKind::File("/base/street.avi".into()));
        assert_eq!(kind("/x/street.avi"), SourceKind::File("/x/street.avi".into()));
        assert_eq!(kind("file:///x/street.avi"), SourceKind::File("/x/street.avi".into()));
        assert_eq!(kind("file://localhost/x/a%20b.avi"), SourceKind::File("/x/a b.avi".into()));
        assert!(SourceSpec::parse("file://server/x.avi", Path::new("")).unwrap_err().to_string().contains("file:///"));
        assert_eq!(kind("launch: videotestsrc"), SourceKind::Launch("videotestsrc".into()));
        for uri in ["rtsp://u:p@cam/A", "RTSP://u:p@cam/A"] {
            assert_eq!(kind(uri), SourceKind::Url(SecretUrl::new("rtsp://u:p@cam/A".into())));
        }
        let mode = CameraMode { width: Some(640), height: Some(480), frame_rate: FrameRate::parse("29.97") };
        assert_eq!(
            kind("v4l2:///dev/video2?width=640&height=480&fps=29.97"),
            SourceKind::V4l2 { device: "/dev/video2".into(), mode }
        );
        assert_eq!(kind("csi://1"), SourceKind::Csi { sensor_id: 1, mode: CameraMode::default() });
        assert_eq!(kind("libcamera://"), SourceKind::Libcamera { camera: None, mode: CameraMode::default() });
        assert_eq!(
            kind("test://?width=321&height=241&fps=5&frames=7&pattern=smpte"),
            SourceKind::Test {
                pattern: "smpte".into(),
                width: 321,
                height: 241,
                frame_rate: FrameRate::whole(5),
                n_frames: Some(7)
            }
        );
        let folder = tempfile::tempdir().unwrap();
        let SourceKind::Images { folder: found, .. } = kind(folder.path().to_str().unwrap()) else { panic!("a folder") };
        assert_eq!(found, folder.path());
    }

    #[test]
    fn wrong_sources_name_what_is_wrong() {
        for (uri, named) in [
            ("", "empty"),
            ("ftp://host/x", "`ftp`"),
            ("rtsp://", "no host"),
            ("rtsp:///path", "no host"),
            ("rtsp://cam:99999/s", "`99999` is no port"),
            ("rtsp://u:p@cam:554:554/x", "`554:554` is no port"),
            ("http://[::1]:x/s", "`x` is no port"),
            ("v4l2://dev/video0", "three slashes"),
            ("v4l2:///dev/video0?size=3", "`size`"),
            ("test://?width=0", "`width` is `0`"),
            ("test://?width=99999", "1 to 16384"),
            ("test://?fps=0", "`fps`"),
            ("test://?pattern=ball%20!", "`pattern`"),
            ("csi://left", "csi://0"),
            ("http:/host/a.mp4", "http://HOST"),
        ] {
            let error = SourceSpec::parse(uri, Path::new("")).map(|spec| spec.to_string()).unwrap_err().to_string();
            assert!(error.contains(named), "{uri}: {error}");
        }
        let error = SourceSpec::parse("ftp://me:canary@host/x", Path::new("")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }

    #[test]
    fn sinks() {
        let parse = |uri: &str| SinkSpec::parse(uri, Path::new("/base"));
        assert_eq!(parse("none"), Ok(SinkSpec::None));
        assert_eq!(parse("display"), Ok(SinkSpec::Display));
        assert_eq!(parse("out/a.MP4"), Ok(SinkSpec::File { path: "/base/out/a.MP4".into(), container: Container::Mp4 }));
        assert_eq!(parse("a.mkv"), Ok(SinkSpec::File { path: "/base/a.mkv".into(), container: Container::Mkv }));
        let url = "rtsp://me:canary@host:8554/x?token=canary2";
        assert_eq!(parse(url), Ok(SinkSpec::Stream(SecretUrl::new(url.into()))));
        let shown = format!("{} {:?}", parse(url).unwrap(), parse(url));
        assert!(shown.contains("rtsp://***@host:8554/x") && !shown.contains("canary"), "{shown}");
        for (uri, named) in [("", "empty"), ("a.avi", ".avi"), ("a", "not named"), ("rtmp://host/x", "`rtmp`")] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(".mkv"), "{uri}: {error}");
        }
        assert!(parse("rtsp:///x").unwrap_err().to_string().contains("no host"));
        let error = parse("rtsp:/me:canary@host/x").unwrap_err().to_string();
        assert!(error.contains("two slashes") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn frame_rates() {
        for (text, want) in [("30", (30, 1)), ("29.97", (2997, 100)), ("30000/1001", (30_000, 1001)), ("0.5", (5, 10))] {
            let rate = FrameRate::parse(text).unwrap();
            assert_eq!((rate.numerator, rate.denominator), want, "{text}");
        }
        for text in ["0", "-1", "", "a", "1/0", "0/1", "1001", "1.", "1.2345", "99999999999"] {
            assert_eq!(FrameRate::parse(text), None, "{text}");
        }
    }
}
