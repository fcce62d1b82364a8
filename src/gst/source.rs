//! Sources that GStreamer decodes: files, network streams, cameras, the test picture, pipeline texts.
//!
//! Every source is `head → [memory] → videoconvert → appsink`. The tap sits where the decoder's frames come out, before
//! anything converts them; `videoconvert` passes accepted formats through untouched. Nothing behind the decoder may
//! drop: appsink without drop and qos, no leaky queue, no videorate.

use super::caps::{self, Layout};
use super::elements;
use super::fault::{Report, Scrubber, missing_video, said, source_error};
use super::intake::{Intake, MEMORY_REMEDY, lock};
use super::{shut_down, whole};
use crate::pipeline::clock::Stopwatch;
use crate::pipeline::ports::{FrameSource, Inlet, SourceError, StreamInfo};
use crate::pipeline::probe;
use crate::pipeline::spec::{CameraMode, RtspTransport, SourceKind, SourceSpec};
use gstreamer as gst;
use gstreamer::glib;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use nix::libc::O_NONBLOCK;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Frames that wait in the appsink; its callback takes them at once.
const MAX_BUFFERS: u32 = 2;

/// Buffers that we hold beyond what the decoder needs for itself: the queue's and those at work.
const HELD_BUFFERS: u32 = 4;

/// How often the bus thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// How long no frame comes after an error until the stream counts as over: what was decoded before it still comes.
const PATIENCE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// How long an error waits for the first caps: a stream may break right behind its first frames.
const PATIENCE_BEFORE_CAPS: Duration = Duration::from_millis(300);

/// How long to wait before a source that was lost is tried again; twice as long each time, up to the limit.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a driver may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A source behind a GStreamer pipeline.
pub(super) struct PipelineSource {
    spec: SourceSpec,
    running: Option<Running>,
}

/// A pipeline under way.
struct Running {
    /// The one that runs now: a source that is lost gets another.
    current: Arc<Mutex<gst::Pipeline>>,
    intake: Arc<Intake>,
    watcher: JoinHandle<()>,
}

impl PipelineSource {
    /// Checks what can be checked without opening anything.
    pub(super) fn open(spec: &SourceSpec) -> Result<Self, SourceError> {
        probe::source(spec)?;
        let missing = elements_of(&spec.kind).iter().find(|name| !elements::is_installed(name));
        if let Some(name) = missing {
            return Err(SourceError::Request(format!("{spec}: {}", elements::missing(name))));
        }
        if let SourceKind::Test { pattern, .. } = &spec.kind {
            let set = elements::make("videotestsrc").and_then(|test| set_pattern(&test, pattern));
            set.map_err(|text| SourceError::Request(format!("{spec}: {text}")))?;
        }
        Ok(Self { spec: spec.clone(), running: None })
    }

    fn info(&self, pipeline: &gst::Pipeline, layout: &Layout) -> StreamInfo {
        let is_live = is_live(&self.spec, pipeline);
        let duration = pipeline.query_duration::<gst::ClockTime>().filter(|_| !is_live).map(Duration::from);
        let (width, height) = layout.size;
        StreamInfo {
            format: layout.format,
            width,
            height,
            color: layout.color,
            frame_rate: layout.frame_rate,
            duration: duration.or_else(|| self.test_duration()),
            is_live,
        }
    }

    /// `videotestsrc` does not tell how long it will be.
    fn test_duration(&self) -> Option<Duration> {
        let SourceKind::Test { frame_rate, n_frames: Some(n_frames), .. } = &self.spec.kind else { return None };
        let nanos = n_frames.checked_mul(1_000_000_000)?.checked_mul(frame_rate.denominator.into())?;
        Some(Duration::from_nanos(nanos / u64::from(frame_rate.numerator)))
    }
}

/// Elements that a source of this kind needs, as far as they are known before it starts.
const fn elements_of(kind: &SourceKind) -> &'static [&'static str] {
    match kind {
        SourceKind::File(_) | SourceKind::Url(_) => &["videoconvert", "uridecodebin"],
        SourceKind::V4l2 { .. } => &["videoconvert", "v4l2src"],
        SourceKind::Libcamera { .. } => &["videoconvert", "libcamerasrc"],
        SourceKind::Csi { .. } => &["videoconvert", "nvarguscamerasrc", "nvvidconv"],
        SourceKind::Test { .. } => &["videoconvert", "videotestsrc"],
        SourceKind::Launch(_) | SourceKind::Images { .. } => &["videoconvert"],
    }
}

impl FrameSource for PipelineSource {
    fn start(&mut self, inlet: Arc<dyn Inlet>) -> Result<StreamInfo, SourceError> {
        self.stop();
        let intake = Arc::new(Intake::new(inlet, self.spec.sync, self.spec.sync || self.spec.is_live()));
        let scrubber = Scrubber::new(&self.spec);
        let pipeline = build(&self.spec, &scrubber, &intake)?;
        let current = Arc::new(Mutex::new(pipeline.clone()));
        let watch = Watch {
            spec: self.spec.clone(),
            scrubber,
            pipeline,
            current: Arc::clone(&current),
            loss: None,
            intake: Arc::clone(&intake),
            missing: Vec::new(),
            is_closed_by_server: false,
            is_unauthorized: false,
            stated: None,
        };
        let watcher = std::thread::Builder::new().name("source-bus".into()).spawn(move || watch.run());
        let watcher = watcher.map_err(|error| SourceError::Stream(format!("{}: no thread ({error})", self.spec)))?;
        self.running = Some(Running { current: Arc::clone(&current), intake: Arc::clone(&intake), watcher });
        // Where the watcher tries again it gives up by itself, after its last try: this is for a driver that hangs.
        let tries = self.spec.start_limit().map(|limit| limit + self.spec.timeout + 3 * STOP_LIMIT);
        let limit = self.spec.timeout + tries.unwrap_or_default();
        match intake.wait_for_layout(limit) {
            Some(Ok(layout)) => {
                let pipeline = lock(&current).clone();
                Ok(self.info(&pipeline, &layout))
            }
            Some(Err(error)) => {
                self.stop();
                Err(error)
            }
            None => {
                self.stop();
                Err(SourceError::Stream(format!(
                    "{}: no frame within {} s; {}",
                    self.spec,
                    self.spec.timeout.as_secs_f32(),
                    timeout_remedy(&self.spec.kind)
                )))
            }
        }
    }

    fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.intake.close();
        // Closed before: no other pipeline takes its place any more.
        let pipeline = lock(&running.current).clone();
        let is_down = shut_down(&pipeline, STOP_LIMIT);
        if !is_down {
            tracing::warn!(source = %self.spec, "the source did not stop in time and is left behind");
        }
        running.intake.settle();
        // Where a driver hangs, the watcher may hang in it too.
        if (is_down || running.watcher.is_finished()) && running.watcher.join().is_err() {
            tracing::error!(source = %self.spec, "the thread that watches the source panicked");
        }
    }

    fn name(&self) -> String {
        self.spec.to_string()
    }
}

impl Drop for PipelineSource {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether frames are lost if nobody takes them: by its kind, or because its elements say so.
fn is_live(spec: &SourceSpec, pipeline: &gst::Pipeline) -> bool {
    let mut latency = gst::query::Latency::new();
    spec.is_live() || pipeline.query(&mut latency) && latency.result().0
}

const fn timeout_remedy(kind: &SourceKind) -> &'static str {
    match kind {
        SourceKind::Url(_) => "check that the device sends, that host and port are right, or allow more time with `timeout_s`",
        SourceKind::V4l2 { .. } | SourceKind::Libcamera { .. } | SourceKind::Csi { .. } => {
            "check that the camera is connected and not used by another program"
        }
        SourceKind::Launch(_) => "check the pipeline text: it must end in raw video",
        _ => "the file may be damaged",
    }
}

/// Builds the pipeline of a source, with tap and callbacks.
fn build(spec: &SourceSpec, scrubber: &Scrubber, intake: &Arc<Intake>) -> Result<gst::Pipeline, SourceError> {
    let request = |text: String| SourceError::Request(format!("{spec}: {}", scrubber.scrub(&text)));
    let convert = elements::make("videoconvert").map_err(request)?;
    let sink = appsink(intake, spec.sync);
    convert_to_nv12_only(&convert, &sink);
    if let SourceKind::Launch(text) = &spec.kind {
        return launch(text, &convert, &sink, intake).map_err(request);
    }
    let pipeline = gst::Pipeline::new();
    let tail = [&convert, sink.upcast_ref()];
    match &spec.kind {
        SourceKind::File(path) => {
            let pipe = Pipe::of(path).map_err(|error| request(error.to_string()))?;
            let absolute = std::path::absolute(path).map_err(|error| request(error.to_string()))?;
            let uri = glib::filename_to_uri(&absolute, None).map_err(|error| request(error.to_string()))?;
            let uri = pipe.as_ref().map_or_else(|| uri.to_string(), Pipe::uri);
            let decoder = uri_decoder(&uri, spec, intake).map_err(request)?;
            if let Some(pipe) = pipe {
                // Open as long as the decoder is there.
                decoder.connect_pad_removed(move |_, _| _ = &pipe);
            }
            assemble(&pipeline, &[&decoder], &tail).map_err(request)?;
            link_when_decoded(&decoder, &convert, intake);
        }
        SourceKind::Url(url) => {
            let decoder = uri_decoder(&url.without_credentials(), spec, intake).map_err(request)?;
            assemble(&pipeline, &[&decoder], &tail).map_err(request)?;
            link_when_decoded(&decoder, &convert, intake);
        }
        SourceKind::V4l2 { device, mode } => {
            let camera = elements::make("v4l2src").map_err(request)?;
            camera.set_property("device", device.display().to_string());
            decoded_camera(&pipeline, &camera, *mode, &tail, intake).map_err(request)?;
        }
        SourceKind::Libcamera { camera: name, mode } => {
            let camera = elements::make("libcamerasrc").map_err(request)?;
            if let Some(name) = name {
                camera.set_property("camera-name", name);
            }
            let filter = capsfilter(&camera_caps(*mode, false)).map_err(request)?;
            link_static(&pipeline, &[&camera, &filter], &tail, intake).map_err(request)?;
        }
        SourceKind::Csi { sensor_id, mode } => {
            let camera = elements::make("nvarguscamerasrc").map_err(request)?;
            camera.set_property("sensor-id", i32::try_from(*sensor_id).unwrap_or(i32::MAX));
            let nvmm = gst_video::VideoCapsBuilder::new().features(["memory:NVMM"]).format(gst_video::VideoFormat::Nv12);
            let filter = capsfilter(&with_mode(nvmm.build(), *mode)).map_err(request)?;
            let to_memory = elements::make("nvvidconv").map_err(request)?;
            let nv12 = capsfilter(&nv12_caps()).map_err(request)?;
            let tail = [&to_memory, &nv12, &convert, sink.upcast_ref()];
            link_static(&pipeline, &[&camera, &filter], &tail, intake).map_err(request)?;
        }
        SourceKind::Test { pattern, width, height, frame_rate, n_frames } => {
            let test = elements::make("videotestsrc").map_err(request)?;
            set_pattern(&test, pattern).map_err(request)?;
            if let Some(n_frames) = n_frames {
                test.set_property("num-buffers", i32::try_from(*n_frames).unwrap_or(i32::MAX));
            }
            let mode = CameraMode { width: Some(*width), height: Some(*height), frame_rate: Some(*frame_rate) };
            let filter = capsfilter(&with_mode(nv12_caps(), mode)).map_err(request)?;
            link_static(&pipeline, &[&test, &filter], &tail, intake).map_err(request)?;
        }
        SourceKind::Launch(_) | SourceKind::Images { .. } => return Err(request("not a source of this kind".into())),
    }
    Ok(pipeline)
}

/// A pipe that is read: opened once, as `filesrc` opens a file twice, and between the two who writes to it is left alone.
enum Pipe {
    /// One that this process was given.
    Inherited(RawFd),
    /// One with a name. Who reads waits until somebody writes.
    Named(File),
}

impl Pipe {
    /// `None` where `path` is no pipe.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        if !std::fs::metadata(path)?.file_type().is_fifo() {
            return Ok(None);
        }
        let given = ["/dev/fd", "/proc/self/fd"].iter().find_map(|folder| path.strip_prefix(folder).ok()?.to_str()?.parse().ok());
        let given = if path == Path::new("/dev/stdin") { Some(0) } else { given };
        if let Some(fd) = given {
            return Ok(Some(Self::Inherited(fd)));
        }
        let open = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
        Ok(Some(Self::Named(open)))
    }

    fn uri(&self) -> String {
        match self {
            Self::Inherited(fd) => format!("fd://{fd}"),
            Self::Named(file) => format!("fd://{}", file.as_raw_fd()),
        }
    }
}

/// The end of every pipeline. With `sync`, frames leave it at the pace of their PTS.
fn appsink(intake: &Arc<Intake>, sync: bool) -> gst_app::AppSink {
    let sink = gst_app::AppSink::builder()
        .caps(&caps::accepted())
        .max_buffers(MAX_BUFFERS)
        .drop(false)
        .sync(sync)
        .qos(false)
        .enable_last_sample(false)
        .build();
    let callback_intake = Arc::clone(intake);
    let on_sample = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let flow = callback_intake.on_sample(&sample);
        if flow == Err(gst::FlowError::NotSupported) {
            gst::element_error!(sink, gst::StreamError::Format, ["the memory of the frames cannot be mapped; {}", MEMORY_REMEDY]);
        }
        flow
    };
    sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(on_sample).build());
    if let Some(pad) = sink.static_pad("sink") {
        let intake = Arc::clone(intake);
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) {
                intake.on_caps(caps.caps());
            }
            gst::PadProbeReturn::Ok
        });
        pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, answer_allocation);
    }
    sink
}

/// Left to itself, `videoconvert` turns 4:4:4 into RGB, which is larger and would be converted again for the encoder.
fn convert_to_nv12_only(convert: &gst::Element, sink: &gst_app::AppSink) {
    let Some(pad) = convert.static_pad("sink") else { return };
    let sink = sink.downgrade();
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let (Some(gst::EventView::Caps(caps)), Some(sink)) = (info.event().map(|event| event.view()), sink.upgrade()) {
            let passes = Layout::from_caps(caps.caps()).is_some();
            sink.set_caps(Some(&if passes { caps::accepted() } else { nv12_caps() }));
        }
        gst::PadProbeReturn::Ok
    });
}

/// Tells the decoder that we read its strides (else it would copy each frame into packed rows) and that we hold a few
/// of its buffers.
fn answer_allocation(_: &gst::Pad, info: &mut gst::PadProbeInfo<'_>) -> gst::PadProbeReturn {
    let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
    let gst::QueryViewMut::Allocation(allocation) = query.view_mut() else { return gst::PadProbeReturn::Ok };
    let size = allocation.get().0.and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok()).map(|info| info.size());
    allocation.add_allocation_meta::<gst_video::VideoMeta>(None);
    if let Some(size) = size.and_then(|size| u32::try_from(size).ok()) {
        allocation.add_allocation_pool(gst::BufferPool::NONE, size, HELD_BUFFERS, 0);
    }
    gst::PadProbeReturn::Handled
}

/// Decodes whatever a URI names; only video is decoded.
fn uri_decoder(uri: &str, spec: &SourceSpec, intake: &Arc<Intake>) -> Result<gst::Element, String> {
    let decoder = elements::make("uridecodebin")?;
    decoder.set_property("uri", uri);
    decoder.set_property("caps", gst::Caps::builder("video/x-raw").any_features().build());
    decoder.set_property("expose-all-streams", false);
    let (spec, intake) = (spec.clone(), Arc::clone(intake));
    decoder.connect("source-setup", false, move |values| {
        if let Some(source) = values.get(1).and_then(|value| value.get::<gst::Element>().ok())
            && let Err(error) = set_up_source(&source, &spec)
        {
            intake.fail(error);
        }
        None
    });
    Ok(decoder)
}

/// Credentials, latency and limits of a network source; its properties differ by protocol.
fn set_up_source(source: &gst::Element, spec: &SourceSpec) -> Result<(), SourceError> {
    let has = |(user, password): &(&str, &str)| [user, password].iter().all(|name| source.find_property(name).is_some());
    if let SourceKind::Url(url) = &spec.kind
        && let Some((user, password)) = url.plain_credentials()
    {
        let Some(names) = [("user-id", "user-pw"), ("username", "password")].into_iter().find(has) else {
            return Err(SourceError::Request(format!(
                "{spec}: this kind of stream takes no user and password from its URL; leave them out, or write the whole \
                 pipeline as launch:…"
            )));
        };
        source.set_property(names.0, user);
        source.set_property(names.1, password);
    }
    let is_rtsp = source.factory().is_some_and(|factory| factory.name() == "rtspsrc");
    if is_rtsp {
        source.set_property("latency", u32::try_from(spec.latency.as_millis()).unwrap_or(u32::MAX));
        source.set_property("tcp-timeout", u64::try_from(spec.timeout.as_micros()).unwrap_or(u64::MAX));
        let transport = match spec.rtsp_transport {
            RtspTransport::Tcp => "tcp",
            RtspTransport::Udp => "udp",
        };
        source.set_property_from_str("protocols", transport);
    }
    Ok(())
}

fn capsfilter(caps: &gst::Caps) -> Result<gst::Element, String> {
    let filter = elements::make("capsfilter")?;
    filter.set_property("caps", caps);
    Ok(filter)
}

fn nv12_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Nv12).build()
}

/// `caps` with the size and rate that were asked for.
fn with_mode(mut caps: gst::Caps, mode: CameraMode) -> gst::Caps {
    let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    for structure in caps.make_mut().iter_mut() {
        if let Some(width) = mode.width {
            structure.set("width", int(width));
        }
        if let Some(height) = mode.height {
            structure.set("height", int(height));
        }
        if let Some(rate) = mode.frame_rate {
            structure.set("framerate", gst::Fraction::new(int(rate.numerator), int(rate.denominator)));
        }
    }
    caps
}

/// What is asked of a camera, best first: formats that need no conversion, then what has to be decoded.
fn camera_caps(mode: CameraMode, encoded_too: bool) -> gst::Caps {
    let mut wanted = caps::accepted();
    let all = wanted.make_mut();
    if encoded_too {
        all.append(gst::Caps::new_empty_simple("image/jpeg"));
        all.append(gst::Caps::new_empty_simple("video/x-h264"));
    }
    all.append(gst::Caps::new_empty_simple("video/x-raw"));
    with_mode(wanted, mode)
}

fn set_pattern(test: &gst::Element, pattern: &str) -> Result<(), String> {
    let class = test.find_property("pattern").and_then(|property| glib::EnumClass::with_type(property.value_type()));
    let Some(class) = class else { return Err("videotestsrc has no patterns".into()) };
    if class.value_by_nick(pattern).is_none() {
        let known: Vec<&str> = class.values().iter().map(glib::EnumValue::nick).collect();
        return Err(format!("`{pattern}` is no test pattern; there are {}", known.join(", ")));
    }
    test.set_property_from_str("pattern", pattern);
    Ok(())
}

/// Adds all elements, links those of the tail.
fn assemble(pipeline: &gst::Pipeline, head: &[&gst::Element], tail: &[&gst::Element]) -> Result<(), String> {
    pipeline.add_many(head.iter().chain(tail)).map_err(|error| error.to_string())?;
    gst::Element::link_many(tail).map_err(|error| error.to_string())
}

/// Adds and links head and tail; the tap sits where the head ends.
fn link_static(
    pipeline: &gst::Pipeline,
    head: &[&gst::Element],
    tail: &[&gst::Element],
    intake: &Arc<Intake>,
) -> Result<(), String> {
    assemble(pipeline, head, tail)?;
    let to_tail = head.iter().chain(tail.first()).copied();
    gst::Element::link_many(to_tail).map_err(|error| error.to_string())?;
    let pad = head.last().and_then(|last| last.static_pad("src")).ok_or("the source has no output")?;
    intake.tap(&pad);
    Ok(())
}

/// Links the first video that `decoder` exposes to `convert`, through what brings its memory into reach.
fn link_when_decoded(decoder: &gst::Element, convert: &gst::Element, intake: &Arc<Intake>) {
    let convert_added = convert.downgrade();
    let intake = Arc::clone(intake);
    decoder.connect_pad_added(move |decoder, pad| {
        let Some(convert) = convert_added.upgrade() else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let is_video = caps.structure(0).is_some_and(|structure| structure.name() == "video/x-raw");
        let is_taken = convert.static_pad("sink").is_none_or(|pad| pad.is_linked());
        if !is_video || is_taken {
            return;
        }
        intake.tap(pad);
        if let Err(text) = link_memory(decoder, pad, &caps, &convert) {
            gst::element_error!(decoder, gst::StreamError::Format, ["{}", text]);
        }
    });
    let convert = convert.downgrade();
    decoder.connect_no_more_pads(move |decoder| {
        let Some(convert) = convert.upgrade() else { return };
        if convert.static_pad("sink").is_some_and(|pad| !pad.is_linked()) {
            gst::element_error!(decoder, gst::StreamError::WrongType, ["it holds no video"]);
        }
    });
}

/// A camera that may deliver raw video, which passes decodebin as it is, or JPEG or H.264, which get their decoder.
fn decoded_camera(
    pipeline: &gst::Pipeline,
    camera: &gst::Element,
    mode: CameraMode,
    tail: &[&gst::Element],
    intake: &Arc<Intake>,
) -> Result<(), String> {
    let filter = capsfilter(&camera_caps(mode, true))?;
    let decoder = elements::make("decodebin")?;
    let first = tail.first().ok_or("no end")?;
    assemble(pipeline, &[camera, &filter, &decoder], tail)?;
    gst::Element::link_many([camera, &filter, &decoder]).map_err(|error| error.to_string())?;
    link_when_decoded(&decoder, first, intake);
    Ok(())
}

/// Elements that bring frames into system memory, by caps feature.
const TO_SYSTEM_MEMORY: [(&str, &[&str]); 5] = [
    ("memory:NVMM", &["nvvidconv", "nvvideoconvert"]),
    ("memory:VAMemory", &["vapostproc"]),
    ("memory:VASurface", &["vaapipostproc"]),
    ("memory:GLMemory", &["gldownload"]),
    ("memory:CUDAMemory", &["cudadownload"]),
];

fn link_memory(decoder: &gst::Element, pad: &gst::Pad, caps: &gst::Caps, convert: &gst::Element) -> Result<(), String> {
    let to = |element: &gst::Element| element.static_pad("sink").ok_or("no pad");
    let features = caps.features(0).filter(|features| !features.is_any());
    let foreign = features.and_then(|features| features.iter().find(|feature| feature.starts_with("memory:")));
    let Some(foreign) = foreign.filter(|feature| *feature != "memory:SystemMemory") else {
        pad.link(&to(convert)?).map_err(|error| error.to_string())?;
        return Ok(());
    };
    let known = TO_SYSTEM_MEMORY.iter().find(|(feature, _)| *feature == foreign).map_or(&[][..], |(_, elements)| elements);
    let Some(download) = known.iter().find(|name| elements::is_installed(name)) else {
        return Err(format!("frames come in {foreign}, which the processor cannot read; {MEMORY_REMEDY}"));
    };
    let download = elements::make(download)?;
    let bin = decoder.parent().and_downcast::<gst::Bin>().ok_or("no pipeline")?;
    bin.add(&download).map_err(|error| error.to_string())?;
    download.link(convert).map_err(|error| error.to_string())?;
    download.sync_state_with_parent().map_err(|error| error.to_string())?;
    pad.link(&to(&download)?).map_err(|error| error.to_string())?;
    Ok(())
}

/// A pipeline text with our end behind it. Its last element is what counts as the decoder.
fn launch(text: &str, convert: &gst::Element, sink: &gst_app::AppSink, intake: &Arc<Intake>) -> Result<gst::Pipeline, String> {
    const NAME: &str = "fovea-end";
    // A text copied from elsewhere may end in an appsink of its own.
    let text = match text.rsplit_once('!') {
        Some((before, last)) if last.trim_start().starts_with("appsink") => before,
        _ => text,
    };
    let whole = format!("{text} ! identity silent=true name={NAME}");
    let mut context = gst::ParseContext::new();
    let parsed = gst::parse::launch_full(&whole, Some(&mut context), gst::ParseFlags::FATAL_ERRORS).map_err(|error| {
        let missing = context.missing_elements().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match missing.as_str() {
            "" => format!("the pipeline text is wrong ({}); `gst-launch-1.0 TEXT ! fakesink` must accept it", error.message()),
            missing => format!("the pipeline text names elements that are not installed: {missing}; `gst-inspect-1.0` lists all"),
        }
    })?;
    let pipeline = parsed.downcast::<gst::Pipeline>().map_err(|_| "the pipeline text makes no pipeline")?;
    let end = pipeline.by_name(NAME).ok_or("the pipeline text has no end")?;
    pipeline.add_many([convert, sink.upcast_ref()]).map_err(|error| error.to_string())?;
    gst::Element::link_many([&end, convert, sink.upcast_ref()]).map_err(|error| error.to_string())?;
    let pad = end.static_pad("src").ok_or("no pad")?;
    refuse_foreign_memory(&pad);
    intake.tap(&pad);
    Ok(pipeline)
}

/// Posts an error when frames in memory that the processor cannot read come by.
fn refuse_foreign_memory(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |pad, info| {
        let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else { return gst::PadProbeReturn::Ok };
        let features = caps.caps().features(0);
        let foreign = features.and_then(|features| {
            features.iter().find(|feature| feature.starts_with("memory:") && *feature != "memory:SystemMemory")
        });
        if let (Some(foreign), Some(element)) = (foreign, pad.parent_element()) {
            gst::element_error!(
                element,
                gst::StreamError::Format,
                ["frames come in {}, which the processor cannot read; {}", foreign, MEMORY_REMEDY]
            );
        }
        gst::PadProbeReturn::Ok
    });
}

/// Between three and five quarters of a wait: what failed together is not to come back together.
fn jittered(wait: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish();
    wait * (96 + u32::try_from(random % 64).unwrap_or_default()) / 128
}

/// A live stream that was lost, or is not there yet.
struct Loss {
    error: SourceError,
    /// Frames before it.
    n_delivered: u64,
    watch: Stopwatch,
    lasts: Duration,
    wait: Duration,
}

/// The thread that starts a pipeline and listens to its bus until the stream is over.
struct Watch {
    spec: SourceSpec,
    scrubber: Scrubber,
    pipeline: gst::Pipeline,
    /// The same, for whoever stops it.
    current: Arc<Mutex<gst::Pipeline>>,
    /// Until frames come again.
    loss: Option<Loss>,
    intake: Arc<Intake>,
    missing: Vec<(String, String)>,
    is_closed_by_server: bool,
    /// User or password were refused.
    is_unauthorized: bool,
    /// How long a file says it is, asked once its first frame is on its way.
    stated: Option<gst::ClockTime>,
}

impl Watch {
    fn run(mut self) {
        while let Some(failure) = self.listen() {
            // Another try that gave no frames, however it ended.
            match failure.or_else(|| self.loss.as_ref().map(|loss| loss.error.clone())) {
                Some(error) if self.can_reconnect(&error) => {
                    if let Err(end) = self.reconnect(error) {
                        return self.end(end);
                    }
                }
                failure => return self.end(failure),
            }
        }
    }

    /// Plays the pipeline until the stream is over; gives why, or `None` if the owner wants no more of it.
    fn listen(&mut self) -> Option<Option<SourceError>> {
        let bus = self.pipeline.bus()?;
        let is_refused = self.pipeline.set_state(gst::State::Playing).is_err();
        let mut failure: Option<SourceError> = None;
        let (mut watch, mut idle, mut seen) = (Stopwatch::start(), Duration::ZERO, self.intake.progress().0);
        while !self.intake.is_closing() {
            let message = bus.timed_pop(gst::ClockTime::from_mseconds(TICK.as_millis().try_into().unwrap_or(100)));
            let has_message = message.is_some();
            if let Some(message) = message {
                match message.view() {
                    gst::MessageView::Error(error) => {
                        let error = self.diagnose(error);
                        tracing::debug!(source = %self.spec, %error, "GStreamer error");
                        failure.get_or_insert(error);
                    }
                    gst::MessageView::Eos(_) => return Some(failure.or_else(|| self.lost_connection())),
                    gst::MessageView::Element(element) => self.note_missing(element),
                    gst::MessageView::Warning(warning) => {
                        let text = self.scrubber.scrub(&said(&warning.error(), warning.debug().as_deref()));
                        tracing::info!(source = %self.spec, text, "GStreamer warning");
                        self.is_closed_by_server |= text.contains("closed the connection");
                    }
                    // A decoder that appears while the pipeline runs may ask for the latency to be computed anew.
                    gst::MessageView::Latency(_) => {
                        let _ = self.pipeline.recalculate_latency();
                    }
                    _ => {}
                }
                if self.intake.has_layout() {
                    // What could not be decoded is no part of the picture: data beside it, sound.
                    self.missing.clear();
                }
                if self.stated.is_none() && matches!(self.spec.kind, SourceKind::File(_)) && self.intake.has_layout() {
                    self.stated = self.pipeline.query_duration();
                }
            }
            // Whatever is said meanwhile: a camera may warn of each frame that it cannot give.
            let (n_captured, is_delivering) = self.intake.progress();
            let passed = watch.lap();
            idle = if is_delivering || n_captured != seen { Duration::ZERO } else { idle + passed };
            seen = n_captured;
            self.note_return();
            if failure.is_none() && is_refused && !has_message {
                failure = Some(SourceError::Stream(format!("{}: GStreamer refuses to start it and does not say why", self.spec)));
            }
            if failure.is_none() {
                failure = self.stalled(idle);
                continue;
            }
            // Frames that were decoded before the error are still on their way.
            let patience = if self.intake.has_layout() { PATIENCE_AFTER_ERROR } else { PATIENCE_BEFORE_CAPS };
            if idle >= patience {
                return Some(failure);
            }
        }
        // It may have been set to play after the owner stopped it.
        let _ = self.pipeline.set_state(gst::State::Null);
        None
    }

    /// A stream from outside that gave frames, or one that is waited for. What this machine cannot decode is
    /// wrong at the start. A password that is refused ends it at any time: tries with a wrong one may lock a camera.
    fn can_reconnect(&self, error: &SourceError) -> bool {
        let can_decode = missing_video(&self.missing).is_none();
        let is_silent = !self.intake.has_layout() && can_decode && matches!(error, SourceError::Stream(_));
        let is_waited_for = || self.spec.start_limit().is_some() && is_silent;
        let limit = self.spec.reconnect_limit();
        !limit.is_zero()
            && !self.is_unauthorized
            && (self.has_started() || is_waited_for())
            && is_live(&self.spec, &self.pipeline)
    }

    fn has_started(&self) -> bool {
        self.intake.n_delivered() > 0
    }

    fn note_return(&mut self) {
        let Some(mut loss) = self.loss.take_if(|loss| self.intake.n_delivered() > loss.n_delivered) else { return };
        let lasted = loss.lasts + loss.watch.lap();
        tracing::warn!(source = %self.spec, "frames come after {:.1} s", lasted.as_secs_f32());
        if loss.n_delivered > 0 {
            self.intake.reconnected();
        }
    }

    /// Puts a new pipeline in the place of the one that lost its stream, after a wait. `Err`: why not.
    fn reconnect(&mut self, error: SourceError) -> Result<(), Option<SourceError>> {
        let limit = self.spec.reconnect_limit();
        if self.loss.is_none() {
            let what = if self.has_started() { "was lost" } else { "is not there yet" };
            tracing::warn!(source = %self.spec, %error, "the stream {what}; trying again for {} s", limit.as_secs());
            let (watch, n_delivered) = (Stopwatch::start(), self.intake.n_delivered());
            self.loss = Some(Loss { error: error.clone(), n_delivered, watch, lasts: Duration::ZERO, wait: FIRST_WAIT });
        }
        if !shut_down(&self.pipeline, STOP_LIMIT) {
            return Err(Some(error));
        }
        self.intake.resume();
        loop {
            let loss = self.loss.as_mut().ok_or(None)?;
            loss.lasts += loss.watch.lap();
            if loss.lasts >= limit {
                let text = format!("{}; it was tried again for {} s", loss.error, limit.as_secs());
                return Err(Some(SourceError::Stream(text)));
            }
            let mut wait = jittered(loss.wait).min(limit - loss.lasts);
            loss.wait = (2 * loss.wait).min(LONGEST_WAIT);
            while !wait.is_zero() && !self.intake.is_closing() {
                let slice = wait.min(TICK);
                std::thread::sleep(slice);
                wait -= slice;
            }
            let Ok(pipeline) = build(&self.spec, &self.scrubber, &self.intake) else { continue };
            let mut current = lock(&self.current);
            if self.intake.is_closing() {
                return Err(None);
            }
            *current = pipeline.clone();
            self.pipeline = pipeline;
            self.is_closed_by_server = false;
            self.missing.clear();
            return Ok(());
        }
    }

    /// A live source from which nothing comes any more, and that does not say so: a cable pulled far away.
    fn stalled(&self, idle: Duration) -> Option<SourceError> {
        let is_expected = self.intake.has_layout() || self.spec.start_limit().is_some();
        let is_stalled = idle > self.spec.timeout && is_expected && is_live(&self.spec, &self.pipeline);
        let seconds = self.spec.timeout.as_secs_f32();
        let remedy = timeout_remedy(&self.spec.kind);
        let what = if self.has_started() { "no more frames for" } else { "no frame within" };
        is_stalled.then(|| SourceError::Stream(format!("{}: {what} {seconds} s; {remedy}", self.spec)))
    }

    /// rtspsrc reports a connection that the server closed as an ordinary end, after a warning.
    fn lost_connection(&self) -> Option<SourceError> {
        let text = "the server closed the connection; check that the device is on and allows one more viewer";
        self.is_closed_by_server.then(|| SourceError::Stream(format!("{}: {text}", self.spec)))
    }

    /// Reports the end: to `start`, if it still waits, else to the inlet.
    fn end(&self, failure: Option<SourceError>) {
        if self.intake.is_closing() {
            return;
        }
        if !self.intake.has_layout() {
            let nothing =
                || SourceError::Stream(format!("{}: it ended before its first frame; check that it is whole", self.spec));
            return self.intake.fail(failure.unwrap_or_else(nothing));
        }
        let empty = || SourceError::Stream(format!("{}: it ended without a single frame; check that it is whole", self.spec));
        let is_empty = self.intake.progress().0 == 0;
        let failure = failure.or_else(|| if is_empty { Some(empty()) } else { self.cut_off() });
        // What broke off after its first frame is a stream that broke, whatever GStreamer calls it.
        self.intake.finish(failure.map_or(Ok(()), |error| Err(SourceError::Stream(error.to_string()))));
    }

    /// What a truncated file is told by. Most demuxers report its end as an ordinary one.
    fn cut_off(&self) -> Option<SourceError> {
        let SourceKind::File(path) = &self.spec.kind else { return None };
        let end = self.intake.stream_end().unwrap_or_default();
        let error = |after: String| {
            let remedy = "the frames up to there were used; copy or record it again";
            SourceError::Stream(format!("{}: the video is cut off after {after}; {remedy}", self.spec))
        };
        let length = whole::length(path);
        if let Some(whole::Length { found, stated }) = length.filter(|length| length.found < length.stated) {
            let seconds = Duration::from(end).as_secs_f64();
            return Some(error(format!("{seconds:.1} s (the file has {found} of {stated} bytes)")));
        }
        let at_end = self.pipeline.query_duration::<gst::ClockTime>();
        if let (Some(first), Some(last)) = (self.stated, at_end)
            && first.nseconds().abs_diff(last.nseconds()) > first.nseconds() / 100
        {
            // Guessed from the bytes so far, as for a stream without a container.
            return None;
        }
        let stated = at_end.or(self.stated)?;
        let is_short = end.nseconds() < stated.nseconds() / 10 * 9 && stated - end > gst::ClockTime::SECOND;
        if is_short && length.is_some() {
            // The file is whole: it may hold sound that is longer than the picture.
            tracing::warn!(source = %self.spec, %end, %stated, "the picture ends before the file does");
            return None;
        }
        let (seconds, stated) = (Duration::from(end).as_secs_f64(), Duration::from(stated).as_secs_f64());
        is_short.then(|| error(format!("{seconds:.1} of {stated:.1} s")))
    }

    fn diagnose(&mut self, error: &gst::message::Error) -> SourceError {
        let element = error.src().map(|source| source.name().to_string()).unwrap_or_default();
        let report = Report { error: error.error(), debug: error.debug(), element, missing: &self.missing };
        self.is_unauthorized |= report.is_unauthorized(&self.scrubber);
        source_error(&self.spec, &self.scrubber, &report)
    }

    /// decodebin says which decoder it has not found in a message of its own, before the error.
    fn note_missing(&mut self, message: &gst::message::Element) {
        let Some(structure) = message.structure().filter(|structure| structure.name() == "missing-plugin") else { return };
        let description = structure.get::<String>("name").unwrap_or_default();
        let detail = structure.value("detail").map(|detail| format!("{detail:?}")).unwrap_or_default();
        self.missing.push((description, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, PixelFormat};
    use crate::pipeline::ports::DropCause;
    use crate::pipeline::spec::FrameRate;
    use std::sync::Mutex;

    /// Format, width and height of a frame.
    type Shape = (PixelFormat, usize, usize);

    /// Counts what is captured, notes what is delivered.
    #[derive(Default)]
    struct Counter(Mutex<(usize, Vec<Shape>)>);

    impl Inlet for Counter {
        fn captured(&self) {
            self.0.lock().unwrap().0 += 1;
        }

        fn deliver(&self, frame: Frame) -> bool {
            self.0.lock().unwrap().1.push((frame.format, frame.width, frame.height));
            true
        }

        fn drop_frame(&self, cause: DropCause) {
            panic!("dropped: {cause:?}");
        }

        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn finish(&self, _: Result<(), SourceError>) {}
    }

    #[test]
    fn cameras_may_be_raw_or_encoded() {
        gst::init().unwrap();
        let mode = CameraMode { width: Some(64), height: Some(48), frame_rate: Some(FrameRate::whole(15)) };
        for (description, format) in [
            ("videotestsrc num-buffers=9 is-live=true ! capsfilter caps=video/x-raw,format=YUY2", PixelFormat::Yuy2),
            ("videotestsrc num-buffers=9 ! capsfilter caps=video/x-raw,format=UYVY", PixelFormat::Nv12),
            ("videotestsrc num-buffers=9 ! video/x-raw,format=I420 ! jpegenc", PixelFormat::I420),
            ("videotestsrc num-buffers=9 ! video/x-raw,format=I420 ! x264enc tune=zerolatency ! h264parse", PixelFormat::I420),
        ] {
            let camera = gst::parse::bin_from_description(description, true).unwrap().upcast::<gst::Element>();
            let counter = Arc::new(Counter::default());
            let intake = Arc::new(Intake::new(counter.clone(), false, false));
            let (pipeline, convert, sink) =
                (gst::Pipeline::new(), elements::make("videoconvert").unwrap(), appsink(&intake, false));
            convert_to_nv12_only(&convert, &sink);
            decoded_camera(&pipeline, &camera, mode, &[&convert, sink.upcast_ref()], &intake).unwrap();
            pipeline.set_state(gst::State::Playing).unwrap();
            let ends = [gst::MessageType::Eos, gst::MessageType::Error];
            let message = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends).unwrap();
            assert_eq!(message.type_(), gst::MessageType::Eos, "{description}: {message:?}");
            assert!(shut_down(&pipeline, STOP_LIMIT));
            let counted = counter.0.lock().unwrap();
            assert_eq!(*counted, (9, vec![(format, 64, 48); 9]), "{description}");
        }
    }
}
