//! Pipeline files: TOML as the user wrote it, read into a [`Draft`] that the command line may override, then a
//! [`PipelineSpec`].
//!
//! Unknown keys are refused and the nearest known one is suggested. Paths are relative to the file's folder.
//! `docs/pipeline.md` lists every key.

use super::detections::Output;
use super::detector::DetectorOptions;
use super::secret::hide_credentials;
use super::spec::{self, CameraMode, FrameRate, Pace, RtspTransport, SinkSpec, SourceKind, SourceSpec, SpecError};
use crate::frame::{RoiError, Rotation, View};
use crate::postprocess::{OptionError, PostprocessOptions};
use crate::retinanet::NmsMethod;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A pipeline file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// Name of the stream in reports and detections; default: the name of the file or device.
    pub name: Option<String>,
    /// `"max"`: every frame, the source waits; `"live"`: the newest frame wins. Default: `"live"` for cameras and
    /// network streams but http (also in `launch`), else `"max"`.
    pub pace: Option<Pace>,
    /// Where frames come from; required here or on the command line.
    pub source: Option<SourceConfig>,
    /// What of a picture is looked at.
    pub view: ViewConfig,
    /// The model.
    pub model: ModelConfig,
    /// Between the source and the network.
    pub queue: QueueConfig,
    /// Where annotated frames go.
    pub sink: SinkConfig,
    /// What is drawn.
    pub overlay: OverlayConfig,
    /// Result files.
    pub output: OutputConfig,
    /// When to stop.
    pub limits: LimitsConfig,
}

/// `[source]`: one of `uri` and `launch`, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [source], and in it uri = \"…\"")]
pub struct SourceConfig {
    /// A video file, a folder of pictures, `rtsp://…`, `http://…`, `v4l2:///dev/video0`, `libcamera://`, `csi://0`,
    /// `test://`.
    pub uri: Option<String>,
    /// GStreamer elements as text, up to raw video.
    pub launch: Option<String>,
    /// Width in pixels, for cameras and the test source.
    pub width: Option<u32>,
    /// Height in pixels, for cameras and the test source.
    pub height: Option<u32>,
    /// Frames per second (`30`, `29.97` or `"30000/1001"`), for cameras, the test source and folders.
    pub fps: Option<Rate>,
    /// Number of frames of the test source; default: endless.
    pub frames: Option<u64>,
    /// Pattern of the test source; default `"ball"`.
    pub pattern: Option<String>,
    /// Milliseconds that a network source buffers against jitter, 0 to 60000; default 200.
    pub latency_ms: Option<u64>,
    /// `"tcp"` or `"udp"`, for RTSP; default `"tcp"`.
    pub rtsp_transport: Option<Transport>,
    /// Seconds to wait for the first frame, and for the next one of a live source, 1 to 600; default 15.
    pub timeout_s: Option<u64>,
    /// Seconds for which a live source that was lost is tried again, 0 to 86400; default 60 for network streams but http, else 0. Where it
    /// is given, a network stream that does not answer at the start is waited for as well.
    pub reconnect_s: Option<u64>,
}

/// A rate as TOML writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Rate {
    /// `30`
    Whole(u32),
    /// `29.97`
    Decimal(f64),
    /// `"30000/1001"`
    Text(String),
}

/// How RTSP carries the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Interleaved in the TCP connection.
    Tcp,
    /// UDP.
    Udp,
}

/// `[view]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [view], and in it roi or rotate")]
pub struct ViewConfig {
    /// Region of interest, `"x,y,width,height"` in pixels of the frame, or with a decimal point in parts of it, 0 to 1; default:
    /// the whole frame.
    pub roi: Option<String>,
    /// Degrees by which the region is turned clockwise before the network sees it: 0, 90, 180 or 270; default 0.
    pub rotate: Option<u32>,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [model], and in it dir = \"…\"")]
pub struct ModelConfig {
    /// The model's folder; default: `models/default` in the working folder, or beside the program.
    pub dir: Option<PathBuf>,
    /// Threads of the network, 0 to 256; 0, the default: as many as there are processors.
    pub threads: usize,
    /// Accept a network that runs in float; default false.
    pub allow_float: bool,
    /// Score from which objects are shown, 0 to 1, for every class; default: the model's `display_threshold`.
    pub score_threshold: Option<f32>,
    /// The same for single classes, by name, 0 to 1; default: none.
    pub class_thresholds: BTreeMap<String, f32>,
    /// Names of the only classes that are looked for; default: the model's `postprocess.classes`.
    pub classes: Vec<String>,
    /// `"greedy"`, `"soft_linear"` or `"soft_gaussian"`; default: the model's `postprocess.nms`.
    pub nms: Option<NmsMethod>,
    /// `IoU` above which two boxes are one object, 0 to 1; default: the model's `postprocess.nms_iou_threshold`.
    pub nms_iou_threshold: Option<f32>,
    /// Width of the Gaussian, above 0, at most 100, with `nms = "soft_gaussian"`; default: the model's, else 0.5.
    pub soft_nms_sigma: Option<f32>,
    /// Whether boxes of different classes suppress each other; default: the model's `postprocess.class_agnostic_nms`.
    pub class_agnostic_nms: Option<bool>,
    /// Detections kept of a picture, 1 to 100000; default: the model's `postprocess.max_detections`.
    pub max_detections: Option<usize>,
    /// Smallest width and height of a box in pixels of the network input, 0 to 4096; default: the model's
    /// `postprocess.min_box_size`.
    pub min_box_size: Option<f32>,
}

/// `[queue]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [queue]")]
pub struct QueueConfig {
    /// Frames that may wait, 1 or 2; default 1. Two more buffers of the source are held: one in work, one that is being
    /// handed over. Cameras of small computers have few.
    pub capacity: Option<usize>,
    /// Milliseconds after which a waiting frame is too old to be looked at, at pace live, 1 to 60000; default 1000.
    pub max_frame_age_ms: Option<u64>,
}

/// `[sink]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [sink], and in it uri = \"…\"")]
pub struct SinkConfig {
    /// A file ending in .mp4 or .mkv, `rtsp://…` of a server, `"display"` or `"none"`; default `"none"`.
    pub uri: Option<String>,
}

/// `[overlay]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [overlay]")]
pub struct OverlayConfig {
    /// Whether the number of the frame is drawn; default true.
    pub frame_counter: Option<bool>,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [output], and in it detections or report")]
pub struct OutputConfig {
    /// JSON lines, one a frame; `"-"` is standard output; default: none.
    pub detections: Option<PathBuf>,
    /// The report as JSON; `"-"` is standard output; default: none.
    pub report: Option<PathBuf>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [limits], and in it max_frames or seconds")]
pub struct LimitsConfig {
    /// Stop after so many frames went through the network, at least 1; default: never.
    pub max_frames: Option<u64>,
    /// Stop after so many seconds, above 0; default: never.
    pub seconds: Option<f64>,
}

/// Why there is no pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; `pipelines/` holds examples, and --source names a video, a URL or a camera")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("{path}, line {line}{table}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// `, in [table]`, or nothing.
        table: String,
        /// What is wrong, and the nearest thing that would be right.
        reason: String,
    },
    /// A value out of its range, or a key where it has no meaning.
    #[error("{path}: `{key}` is {found}; {expected}")]
    Value {
        /// The file, or `command line`.
        path: String,
        /// Dotted path of the key.
        key: &'static str,
        /// What it says.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A source or sink that cannot be.
    #[error("{path}: {source}")]
    Spec {
        /// The file, or `command line`.
        path: String,
        /// What is wrong with it.
        source: SpecError,
    },
    /// Options of the model that cannot be, or contradict each other.
    #[error("{path}: {source}")]
    Options {
        /// The file.
        path: String,
        /// What is wrong with them.
        source: OptionError,
    },
    /// Nothing says where frames come from.
    #[error("no source: name one with --source, or in a pipeline file under [source]; `fovea run --help` shows both")]
    NoSource,
}

/// A pipeline that is not complete yet: the command line fills in and overrides.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draft {
    /// Name of the stream.
    pub name: Option<String>,
    /// Pace; by the source if `None`.
    pub pace: Option<Pace>,
    /// Where frames come from.
    pub source: Option<SourceSpec>,
    /// The model's folder.
    pub model_dir: Option<PathBuf>,
    /// How it is opened.
    pub detector: DetectorOptions,
    /// Frames that may wait.
    pub queue_capacity: Option<usize>,
    /// When a waiting frame is too old.
    pub max_frame_age: Option<Duration>,
    /// Where annotated frames go.
    pub sink: Option<SinkSpec>,
    /// Whether the number of the frame is drawn.
    pub frame_counter: Option<bool>,
    /// Detections file.
    pub detections: Option<Output>,
    /// Report file.
    pub report: Option<Output>,
    /// Stop after so many inferred frames.
    pub max_frames: Option<u64>,
    /// Stop after so long.
    pub max_time: Option<Duration>,
}

/// A pipeline that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineSpec {
    /// Name of the stream in reports and detections.
    pub name: String,
    /// Whether frames may be dropped for newer ones.
    pub pace: Pace,
    /// Where frames come from.
    pub source: SourceSpec,
    /// The model's folder; `None`: the default one.
    pub model_dir: Option<PathBuf>,
    /// How it is opened.
    pub detector: DetectorOptions,
    /// Frames that may wait.
    pub queue_capacity: usize,
    /// When a waiting frame is too old, at pace live.
    pub max_frame_age: Duration,
    /// Where annotated frames go.
    pub sink: SinkSpec,
    /// Whether the number of the frame is drawn.
    pub frame_counter: bool,
    /// Detections file.
    pub detections: Option<Output>,
    /// Report file.
    pub report: Option<Output>,
    /// Stop after so many inferred frames.
    pub max_frames: Option<u64>,
    /// Stop after so long.
    pub max_time: Option<Duration>,
}

/// Default of `queue.capacity`: with the frame in work and the one that is being handed over, 3 buffers of the source are
/// held.
pub const DEFAULT_QUEUE_CAPACITY: usize = 1;

/// Limit of `queue.capacity`.
pub const MAX_QUEUE_CAPACITY: usize = 2;

/// Threads that a network may have.
pub const MAX_THREADS: usize = 256;

/// Default of `queue.max_frame_age_ms`.
pub const DEFAULT_MAX_FRAME_AGE: Duration = Duration::from_secs(1);

impl Draft {
    /// Reads a pipeline file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a pipeline file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: PipelineConfig = toml::from_str(text).map_err(|error| syntax_error(&error, text, path))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let file = path.display().to_string();
        let value = |key, found: &dyn std::fmt::Display, expected: &str| ConfigError::Value {
            path: file.clone(),
            key,
            found: found.to_string(),
            expected: format!("it must be {expected}"),
        };
        let spec = |source| ConfigError::Spec { path: file.clone(), source };

        let source = config.source.as_ref().map(|source| read_source(source, base, &file)).transpose()?;
        let ModelConfig { dir, threads, allow_float, .. } = config.model;
        if threads > MAX_THREADS {
            return Err(value("model.threads", &threads, &format!("0 to {MAX_THREADS}")));
        }
        let wrong = |key, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| ConfigError::Value {
            path: file.clone(),
            key,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        let ViewConfig { roi, rotate } = &config.view;
        let roi = roi.as_ref().map(|roi| roi.parse().map_err(|error: RoiError| wrong("view.roi", roi, &error))).transpose()?;
        let rotation = Rotation::new(rotate.unwrap_or(0)).map_err(|error| wrong("view.rotate", &rotate.unwrap_or(0), &error))?;
        let postprocess = PostprocessOptions {
            score_threshold: config.model.score_threshold,
            class_thresholds: config.model.class_thresholds.into_iter().collect(),
            classes: config.model.classes,
            nms: config.model.nms,
            nms_iou_threshold: config.model.nms_iou_threshold,
            soft_nms_sigma: config.model.soft_nms_sigma,
            class_agnostic_nms: config.model.class_agnostic_nms,
            max_detections: config.model.max_detections,
            min_box_size: config.model.min_box_size,
        };
        postprocess.check().map_err(|source| ConfigError::Options { path: file.clone(), source })?;
        if let Some(capacity) = config.queue.capacity.filter(|capacity| !(1..=MAX_QUEUE_CAPACITY).contains(capacity)) {
            return Err(value("queue.capacity", &capacity, "1 or 2 frames"));
        }
        if let Some(age) = config.queue.max_frame_age_ms.filter(|age| !(1..=60_000).contains(age)) {
            return Err(value("queue.max_frame_age_ms", &age, "1 to 60000 milliseconds"));
        }
        if config.limits.max_frames == Some(0) {
            return Err(value("limits.max_frames", &0, "1 or more"));
        }
        let max_time = match config.limits.seconds {
            None => None,
            Some(seconds) => {
                Some(read_seconds(seconds).ok_or_else(|| value("limits.seconds", &seconds, "above 0, at most 1e9"))?)
            }
        };
        let output = |key, path: Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            let shown = hide_credentials(&path.to_string_lossy());
            match Output::named(path).map_err(|error| wrong(key, &shown, &error))? {
                Output::File(path) => Ok(Some(Output::File(base.join(path)))),
                Output::Stdout => Ok(Some(Output::Stdout)),
            }
        };
        Ok(Self {
            name: config.name,
            pace: config.pace,
            source,
            model_dir: dir.map(|dir| base.join(dir)),
            detector: DetectorOptions { threads, view: View { roi, rotation }, postprocess, allow_float },
            queue_capacity: config.queue.capacity,
            max_frame_age: config.queue.max_frame_age_ms.map(Duration::from_millis),
            sink: config.sink.uri.map(|uri| SinkSpec::parse(&uri, base)).transpose().map_err(spec)?,
            frame_counter: config.overlay.frame_counter,
            detections: output("output.detections", config.output.detections)?,
            report: output("output.report", config.output.report)?,
            max_frames: config.limits.max_frames,
            max_time,
        })
    }

    /// Takes frames from another source. How patient the pipeline is with its source stays as it was; so does, between sources
    /// of one kind, what the new one leaves open: size and rate of a camera, the rate of pictures, all of the test picture.
    pub fn replace_source(&mut self, mut source: SourceSpec) {
        if let Some(before) = &self.source {
            source.kind = source.kind.completed(&before.kind);
            source.latency = before.latency;
            source.rtsp_transport = before.rtsp_transport;
            source.timeout = before.timeout;
            source.reconnect = before.reconnect;
        }
        self.source = Some(source);
    }

    /// Fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`].
    pub fn finish(self) -> Result<PipelineSpec, ConfigError> {
        let mut source = self.source.ok_or(ConfigError::NoSource)?;
        let pace = self.pace.unwrap_or(if source.is_live() { Pace::Live } else { Pace::Max });
        // A camera has a pace of its own: its frames must not wait for their presentation time.
        source.sync = pace == Pace::Live && !source.is_live();
        Ok(PipelineSpec {
            name: self.name.unwrap_or_else(|| stream_name(&source)),
            pace,
            source,
            model_dir: self.model_dir,
            detector: self.detector,
            queue_capacity: self.queue_capacity.unwrap_or(DEFAULT_QUEUE_CAPACITY),
            max_frame_age: self.max_frame_age.unwrap_or(DEFAULT_MAX_FRAME_AGE),
            sink: self.sink.unwrap_or(SinkSpec::None),
            frame_counter: self.frame_counter.unwrap_or(true),
            detections: self.detections,
            report: self.report,
            max_frames: self.max_frames,
            max_time: self.max_time,
        })
    }
}

/// A number of seconds above 0 as a duration.
#[must_use]
pub fn read_seconds(seconds: f64) -> Option<Duration> {
    (seconds > 0.0 && seconds <= 1e9).then(|| Duration::from_secs_f64(seconds))
}

/// Name of a stream that was given none: the last part of a path, else the source's own name.
fn stream_name(source: &SourceSpec) -> String {
    let path = match &source.kind {
        SourceKind::File(path) | SourceKind::Images { folder: path, .. } | SourceKind::V4l2 { device: path, .. } => path,
        SourceKind::Test { .. } => return "test".to_owned(),
        _ => return source.to_string(),
    };
    path.file_name().map_or_else(|| source.to_string(), |name| name.to_string_lossy().into_owned())
}

/// A key whose value cannot be: what was found, what it must be.
type Wrong = (&'static str, String, String);

fn read_source(config: &SourceConfig, base: &Path, file: &str) -> Result<SourceSpec, ConfigError> {
    let in_file = |(key, found, expected): Wrong| ConfigError::Value { path: file.to_owned(), key, found, expected };
    let mut source = match (&config.uri, &config.launch) {
        (Some(uri), None) => {
            SourceSpec::parse(uri, base).map_err(|source| ConfigError::Spec { path: file.to_owned(), source })?
        }
        (None, Some(elements)) => SourceSpec::new(SourceKind::Launch(elements.clone())),
        (Some(_), Some(_)) => {
            return Err(in_file(("source.launch", "given beside `uri`".into(), "write one of them".into())));
        }
        (None, None) => {
            let expected = "name a file, a URL, a camera, or give `launch`";
            return Err(in_file(("source.uri", "missing".into(), expected.into())));
        }
    };
    let used = set_picture(config, &mut source.kind).map_err(in_file)?;
    refuse_unused(config, used, &source).map_err(in_file)?;
    set_times(config, &mut source).map_err(in_file)?;
    match config.rtsp_transport {
        Some(Transport::Tcp) => source.rtsp_transport = RtspTransport::Tcp,
        Some(Transport::Udp) => source.rtsp_transport = RtspTransport::Udp,
        None => {}
    }
    Ok(source)
}

/// Size, rate and pattern of the frames; returns the keys that say something about this kind of source.
fn set_picture(config: &SourceConfig, kind: &mut SourceKind) -> Result<&'static [&'static str], Wrong> {
    let rate = config.fps.as_ref().map(|rate| {
        let text = match rate {
            Rate::Whole(fps) => fps.to_string(),
            Rate::Decimal(fps) => fps.to_string(),
            Rate::Text(text) => text.clone(),
        };
        let expected = "it must be frames per second: 30, 29.97 or \"30000/1001\", at most 1000";
        FrameRate::parse(&text).ok_or_else(|| ("source.fps", text, expected.into()))
    });
    let rate = rate.transpose()?;
    for (key, side) in [("source.width", config.width), ("source.height", config.height)] {
        if let Some(side) = side.filter(|&side| !spec::is_side(side)) {
            return Err((key, side.to_string(), "it must be 1 to 16384 pixels".into()));
        }
    }
    Ok(match kind {
        SourceKind::V4l2 { mode, .. } | SourceKind::Libcamera { mode, .. } | SourceKind::Csi { mode, .. } => {
            let CameraMode { width, height, frame_rate } = *mode;
            *mode =
                CameraMode { width: config.width.or(width), height: config.height.or(height), frame_rate: rate.or(frame_rate) };
            &["source.width", "source.height", "source.fps"]
        }
        SourceKind::Test { pattern, width, height, frame_rate, n_frames } => {
            (*width, *height) = (config.width.unwrap_or(*width), config.height.unwrap_or(*height));
            *frame_rate = rate.unwrap_or(*frame_rate);
            *n_frames = config.frames.or(*n_frames);
            if let Some(name) = &config.pattern {
                let expected = "it must be a pattern of videotestsrc, such as \"smpte\" or \"ball\"";
                *pattern = spec::read_pattern(name).ok_or_else(|| ("source.pattern", name.clone(), expected.into()))?;
            }
            &["source.width", "source.height", "source.fps", "source.frames", "source.pattern"]
        }
        SourceKind::Images { frame_rate, .. } => {
            *frame_rate = rate.unwrap_or(*frame_rate);
            &["source.fps"]
        }
        SourceKind::Url(url) if url.expose().starts_with("rtsp") => &["source.latency_ms", "source.rtsp_transport"],
        SourceKind::Url(_) | SourceKind::File(_) | SourceKind::Launch(_) => &[],
    })
}

/// Keys that say nothing about this kind of source are refused rather than ignored.
fn refuse_unused(config: &SourceConfig, used: &[&str], source: &SourceSpec) -> Result<(), Wrong> {
    let given = [
        ("source.width", config.width.is_some()),
        ("source.height", config.height.is_some()),
        ("source.fps", config.fps.is_some()),
        ("source.frames", config.frames.is_some()),
        ("source.pattern", config.pattern.is_some()),
        ("source.latency_ms", config.latency_ms.is_some()),
        ("source.rtsp_transport", config.rtsp_transport.is_some()),
    ];
    match given.into_iter().find(|(key, given)| *given && !used.contains(key)) {
        Some((key, _)) => Err((key, "given".into(), format!("it says nothing about {source}: remove it"))),
        None => Ok(()),
    }
}

/// How long to buffer, to wait and to try again.
fn set_times(config: &SourceConfig, source: &mut SourceSpec) -> Result<(), Wrong> {
    if let Some(latency_ms) = config.latency_ms {
        if latency_ms > 60_000 {
            return Err(("source.latency_ms", latency_ms.to_string(), "it must be 0 to 60000 milliseconds".into()));
        }
        source.latency = Duration::from_millis(latency_ms);
    }
    if let Some(timeout_s) = config.timeout_s {
        if !(1..=600).contains(&timeout_s) {
            return Err(("source.timeout_s", timeout_s.to_string(), "it must be 1 to 600 seconds".into()));
        }
        source.timeout = Duration::from_secs(timeout_s);
    }
    if let Some(reconnect_s) = config.reconnect_s {
        if reconnect_s > 86_400 {
            return Err(("source.reconnect_s", reconnect_s.to_string(), "it must be 0 to 86400 seconds".into()));
        }
        source.reconnect = Some(Duration::from_secs(reconnect_s));
    }
    Ok(())
}

/// An error of the TOML reader with line, table and the nearest known key. Lines are not quoted and URLs are redacted:
/// they may hold credentials.
fn syntax_error(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let this_line = text.lines().nth(line - 1).unwrap_or_default();
    let mut headers = before.lines().chain(std::iter::once(this_line)).map(str::trim);
    let table = headers.rfind(|line| line.starts_with('[')).map(|header| format!(", in {header}"));
    let message = in_words(&hide_credentials(error.message().trim()));
    let reason = match message.strip_prefix("unknown field ") {
        Some(rest) => unknown_key(rest),
        None => match this_line.split_once('=') {
            Some((key, _)) => format!("`{}`: {message}", key.trim()),
            None => message.clone(),
        },
    };
    ConfigError::Syntax { path: path.to_owned(), line, table: table.unwrap_or_default(), reason }
}

/// Types of this program as the user writes them.
fn in_words(message: &str) -> String {
    const WORDS: [(&[&str], &str); 4] = [
        (&["usize", "u16", "u32", "u64"], "a whole number, 0 or more"),
        (&["f32", "f64"], "a number"),
        (&["a sequence"], "a list: [\"person\", \"car\"]"),
        (&["a map"], "a table: { person = 0.5 }"),
    ];
    let Some((before, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let known = WORDS.iter().find(|(types, _)| types.contains(&expected));
    known.map_or_else(|| message.to_owned(), |(_, words)| format!("{before}, expected {words}"))
}

/// From serde's "`key`, expected one of `a`, `b`".
fn unknown_key(rest: &str) -> String {
    let mut names = rest.split('`').skip(1).step_by(2);
    let key = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    let nearest = known.iter().map(|name| (strsim::damerau_levenshtein(key, name), *name)).min();
    let suggestion = match nearest {
        Some((distance, name)) if distance <= key.chars().count().div_ceil(2) => format!("did you mean `{name}`? "),
        _ => String::new(),
    };
    format!("unknown key `{key}`; {suggestion}known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Roi;

    fn read(text: &str) -> Result<Draft, String> {
        Draft::parse(text, Path::new("/cfg/street.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_arrives() {
        let draft = read(
            r#"
            name = "gate"
            pace = "max"
            [source]
            uri = "test://?frames=3"
            width = 320
            fps = 29.97
            pattern = "smpte"
            timeout_s = 3
            reconnect_s = 7
            [view]
            roi = "0.5,0,0.5,1.0"
            rotate = 270
            [model]
            dir = "../models/m"
            threads = 3
            score_threshold = 0.5
            class_thresholds = { car = 0.75, "a bus" = 0.25 }
            classes = ["car", "a bus"]
            nms = "soft_gaussian"
            nms_iou_threshold = 0.625
            soft_nms_sigma = 0.3
            class_agnostic_nms = true
            max_detections = 7
            min_box_size = 4.5
            allow_float = true
            [queue]
            capacity = 2
            max_frame_age_ms = 250
            [sink]
            uri = "out/a.mkv"
            [overlay]
            frame_counter = false
            [output]
            detections = "d.jsonl"
            report = "-"
            [limits]
            max_frames = 9
            seconds = 1.5
            "#,
        )
        .unwrap();
        let spec = draft.finish().unwrap();
        assert_eq!((spec.name.as_str(), spec.pace), ("gate", Pace::Max));
        let SourceKind::Test { ref pattern, width, height, frame_rate, n_frames } = spec.source.kind else { panic!("test") };
        assert_eq!((pattern.as_str(), width, height, n_frames), ("smpte", 320, 360, Some(3)));
        assert_eq!(frame_rate, FrameRate { numerator: 2997, denominator: 100 });
        assert_eq!((spec.source.timeout, spec.source.reconnect_limit()), (Duration::from_secs(3), Duration::from_secs(7)));
        assert_eq!(spec.model_dir, Some("/cfg/../models/m".into()));
        let postprocess = PostprocessOptions {
            score_threshold: Some(0.5),
            class_thresholds: vec![("a bus".into(), 0.25), ("car".into(), 0.75)],
            classes: vec!["car".into(), "a bus".into()],
            nms: Some(NmsMethod::SoftGaussian),
            nms_iou_threshold: Some(0.625),
            soft_nms_sigma: Some(0.3),
            class_agnostic_nms: Some(true),
            max_detections: Some(7),
            min_box_size: Some(4.5),
        };
        let view = View { roi: Some(Roi::Parts([0.5, 0.0, 0.5, 1.0])), rotation: Rotation::ThreeQuarters };
        let options = DetectorOptions { threads: 3, view, postprocess, allow_float: true };
        assert_eq!(spec.detector, options);
        assert_eq!((spec.queue_capacity, spec.max_frame_age), (2, Duration::from_millis(250)));
        assert_eq!(spec.sink, SinkSpec::parse("/cfg/out/a.mkv", Path::new("")).unwrap());
        assert!(!spec.frame_counter);
        assert_eq!(spec.detections, Some(Output::File("/cfg/d.jsonl".into())));
        assert_eq!(spec.report, Some(Output::Stdout));
        assert_eq!((spec.max_frames, spec.max_time), (Some(9), Some(Duration::from_millis(1500))));
    }

    #[test]
    fn another_source_is_read_like_the_one_in_the_file() {
        let text = "[source]\nuri = 'rtsp://h/1'\nlatency_ms = 50\nrtsp_transport = 'udp'\ntimeout_s = 3";
        let mut draft = read(text).unwrap();
        draft.replace_source(SourceSpec::parse("rtsp://other/2", Path::new("")).unwrap());
        let source = draft.source.unwrap();
        assert_eq!((source.to_string().as_str(), source.rtsp_transport), ("rtsp://other/2", RtspTransport::Udp));
        assert_eq!((source.latency, source.timeout), (Duration::from_millis(50), Duration::from_secs(3)));
        for (before, uri, after) in [
            ("v4l2:///dev/video0?width=1280&fps=25", "v4l2:///dev/video2?fps=5", "v4l2:///dev/video2?width=1280&fps=5"),
            ("v4l2:///dev/video0?width=1280", "rtsp://h/1", "rtsp://h/1"),
            ("test://?frames=9&width=64", "test://", "test://?frames=9&width=64"),
            ("test://?frames=9&width=64", "test://?fps=5", "test://?fps=5"),
        ] {
            let mut draft = read(&format!("[source]\nuri = {before:?}")).unwrap();
            draft.replace_source(SourceSpec::parse(uri, Path::new("")).unwrap());
            assert_eq!(draft.source, Some(SourceSpec::parse(after, Path::new("")).unwrap()), "{before}, {uri}");
        }
        let mut empty = Draft::default();
        empty.replace_source(SourceSpec::parse("rtsp://other/2", Path::new("")).unwrap());
        assert_eq!(empty.source.unwrap().timeout, spec::DEFAULT_TIMEOUT);
    }

    #[test]
    fn the_pace_follows_the_source() {
        for (uri, pace) in [("a.mp4", Pace::Max), ("rtsp://h/1", Pace::Live), ("v4l2:///dev/video0", Pace::Live)] {
            let spec = read(&format!("[source]\nuri = {uri:?}")).unwrap().finish().unwrap();
            assert_eq!((spec.pace, spec.source.sync), (pace, false), "{uri}");
            // At pace live, only what has no pace of its own is held back to its presentation time.
            let spec = read(&format!("pace = 'live'\n[source]\nuri = {uri:?}")).unwrap().finish().unwrap();
            assert_eq!((spec.pace, spec.source.sync), (Pace::Live, pace == Pace::Max), "{uri}");
        }
        for (elements, pace) in [("v4l2src ! videoconvert", Pace::Live), ("filesrc location=a ! decodebin", Pace::Max)] {
            let spec = read(&format!("[source]\nlaunch = {elements:?}")).unwrap().finish().unwrap();
            assert_eq!(spec.pace, pace, "{elements}");
        }
        assert!(matches!(read("").unwrap().finish(), Err(ConfigError::NoSource)));
    }

    #[test]
    fn errors_name_file_line_key_and_remedy() {
        for (text, named) in [
            ("[model]\ntreads = 2", &["line 2, in [model]", "unknown key `treads`", "did you mean `threads`?"][..]),
            ("\n[modle]\ndir = 'x'", &["line 2", "unknown key `modle`", "did you mean `model`?"]),
            ("[source]\nuri = 'a.mp4'\nzzzzzzzz = 1", &["line 3", "unknown key `zzzzzzzz`; known here: uri, launch"]),
            ("[model]\n\nthreads = 'two'", &["line 3, in [model]", "`threads`", "invalid type: string"]),
            ("pace = 'fast'", &["line 1", "`pace`", "`max`", "`live`"]),
            ("[source\n", &["line 1"]),
            ("source = 'rtsp://me:secret@h/1'", &["line 1", "expected a table: [source], and in it uri"]),
            ("[model]\nthreads = -1", &["`threads`", "a whole number, 0 or more"]),
            ("[model]\nclasses = 'person'", &["`classes`", "a list: [\"person\", \"car\"]"]),
            ("[view]\nroi = '1,2,3'", &["`view.roi` is 1,2,3;", "x,y,width,height"]),
            ("[view]\nroi = '0.5,0,0.6,1'", &["`view.roi` is 0.5,0,0.6,1;", "0 to 1"]),
            ("[view]\nrotate = 45", &["`view.rotate` is 45;", "0, 90, 180 or 270"]),
            ("[model]\nthreads = 257", &["`model.threads` is 257", "0 to 256"]),
            ("[model]\nscore_threshold = 1.5", &["/cfg/street.toml", "model.score_threshold", "1.5", "0 to 1"]),
            ("[model]\nclass_thresholds = { car = -1 }", &["model.class_thresholds", "-1 for `car`", "0 to 1"]),
            ("[model]\nnms = 'soft'", &["line 2, in [model]", "`nms`", "`soft_linear`"]),
            ("[model]\nsoft_nms_sigma = 0", &["model.soft_nms_sigma", "is 0,", "above 0"]),
            ("[model]\nmax_detections = 0", &["model.max_detections", "1 to 100000"]),
            ("[model]\nmin_box_size = nan", &["model.min_box_size", "0 to 4096"]),
            ("[queue]\ncapacity = 3", &["queue.capacity", "1 or 2"]),
            ("[queue]\nmax_frame_age_ms = 0", &["queue.max_frame_age_ms", "1 to 60000"]),
            ("[limits]\nseconds = -1", &["limits.seconds", "above 0"]),
            ("[limits]\nseconds = nan", &["limits.seconds", "above 0"]),
            ("[limits]\nmax_frames = 0", &["limits.max_frames"]),
            ("[output]\nreport = 'http://me:secret@h/x'", &["`output.report`", "a file, or to standard output"]),
            ("[source]\n", &["source.uri", "missing"]),
            ("[source]\nuri = 'a.mp4'\nlaunch = 'x'", &["source.launch", "one of them"]),
            ("[source]\nuri = 'a.mp4'\nwidth = 3", &["`source.width`", "/cfg/a.mp4", "remove it"]),
            ("[source]\nuri = 'srt://h:1'\nlatency_ms = 3", &["`source.latency_ms`", "srt://h:1", "remove it"]),
            ("[source]\nuri = 'http://h/1'\nrtsp_transport = 'tcp'", &["`source.rtsp_transport`", "remove it"]),
            ("[source]\nuri = 'test://'\nfps = 0", &["source.fps", "frames per second"]),
            ("[source]\nuri = 'test://'\nwidth = 0", &["source.width", "1 to 16384"]),
            ("[source]\nuri = 'ftp://h'", &["`ftp`", "a source is"]),
            ("[sink]\nuri = 'a.gif'", &[".gif", ".mp4"]),
        ] {
            let error = read(text).unwrap_err();
            for part in named.iter().chain(&["/cfg/street.toml"]) {
                assert!(error.contains(part), "{text:?}: {error:?} does not say {part:?}");
            }
        }
    }

    #[test]
    fn a_password_is_never_quoted() {
        for text in [
            "[source]\nuri = 'rtsp://me:canary@h/1'\npattern = 'x'",
            "[source]\nuri = 'rtsp://me:canary@h/1",
            "[source]\nuri = 'ftp://me:canary@h/1'",
            "[source]\nuri = 'rtsp:/me:canary@h/1'",
            "[sink]\nuri = 'rtmp://me:canary@h/1'",
            "[sink]\nuri = 'rtsp://me:canary@/1'",
            "[sink]\nurl = 'rtsp://me:canary@h/1'",
            "[source]\nurl = 'rtsp://me:canary@h/1'",
            "[source]\nwidth = 'rtsp://me:canary@h/1'",
            "[source]\nwidth = 'rtsp://me:canary#1@h/1'",
            "[source]\nuri = 'ftp://me:canary?1@h/1'",
            "[source]\nuri = 'rtsp://me:can/canary#1@h/1'\nwidth = 3",
        ] {
            let error = Draft::parse(text, Path::new("x.toml")).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{text:?}: {error}");
        }
    }
}
