//! Sinks that GStreamer encodes or shows: video files, RTSP servers and the screen.
//!
//! Every sink is `appsrc → videoconvert → …`. A frame is copied into a buffer of a bounded pool, drawn on there (never
//! in the decoder's own memory, which may be a reference frame) and pushed with the source's time, shifted to start at
//! 0. No element behind may drop, repeat or re-time frames.

use super::caps::{self, video_format};
use super::encoder::{FINISH_LIMIT, Recipe};
use super::fault::{Report, ends_stream, sink_error};
use super::{elements, shut_down};
use crate::frame::{ColorInfo, ColorMatrix, ColorRange, PictureMut, PictureRef, PixelFormat, PlaneMut, Stamps};
use crate::pipeline::ports::{Draw, FrameSink, SinkError, StreamInfo};
use crate::pipeline::secret::SecretUrl;
use crate::pipeline::spec::SinkSpec;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use gstreamer_video::prelude::*;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Frames that wait for the encoder; the next one waits outside.
const MAX_WAITING: u32 = 2;

/// Buffers of a pool: those that wait, those at work in the encoder or on the screen, and one to draw on.
const POOL_BUFFERS: u32 = 8;

/// How long nothing may move, beyond the time of the frames, until the sink counts as broken.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// How long an RTSP server may take to answer; below [`FINISH_LIMIT`], so that what is told is that it does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long an RTSP stream that has left may take to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// How long a sink may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Distance of frames where neither the frames nor the stream state one.
const DEFAULT_STEP: Duration = Duration::from_nanos(33_333_333);

/// What the samples of a grey picture mean.
const GREY: ColorInfo = ColorInfo { matrix: ColorMatrix::Bt601, range: ColorRange::Full };

/// What hands a stream to an RTSP server (RFC 2326, RECORD).
const PUBLISHER: &str = "rtspclientsink";

/// A sink behind a GStreamer pipeline.
pub(super) struct PipelineSink {
    spec: SinkSpec,
    /// Without credentials.
    name: String,
    /// How pictures are encoded; `None`: they are not.
    recipe: Option<Recipe>,
    open: Option<Open>,
}

/// A pipeline under way.
struct Open {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    status: Arc<Status>,
    frame_rate: Option<(u32, u32)>,
    pool: Option<Pool>,
    timing: Timing,
    n_pushed: u64,
    is_playing: bool,
    /// Frames leave at their times, not as soon as they can.
    is_timed: bool,
    /// The file was not there before.
    is_new: bool,
}

impl PipelineSink {
    /// Checks that the sink can work; writes nothing.
    pub(super) fn open(spec: &SinkSpec) -> Result<Self, SinkError> {
        let name = spec.to_string();
        let choose = |container| Recipe::choose(container).map_err(|text| SinkError::Request(format!("{name}: {text}")));
        let recipe = match spec {
            SinkSpec::File { path, container } => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                if !folder.is_dir() {
                    let folder = folder.display();
                    return Err(SinkError::Request(format!("{name}: there is no folder {folder}; make it: mkdir -p '{folder}'")));
                }
                Some(choose(Some(*container))?)
            }
            SinkSpec::Stream(_) if !elements::is_installed(PUBLISHER) => {
                return Err(SinkError::Request(format!("{name}: {}", elements::missing(PUBLISHER))));
            }
            SinkSpec::Stream(_) => Some(choose(None)?),
            SinkSpec::Display => None,
            SinkSpec::None => return Err(SinkError::Request("none: no element shows nothing; leave the sink out".into())),
        };
        Ok(Self { spec: spec.clone(), name, recipe, open: None })
    }

    /// Builds the elements behind the appsrc.
    fn chain(&self, info: &StreamInfo) -> Result<Vec<gst::Element>, String> {
        let mut chain = vec![elements::make("videoconvert")?];
        if let Some(recipe) = self.recipe {
            let size = encoded_size((info.width, info.height));
            let scale = elements::make("videoscale")?;
            scale.set_property("add-borders", true);
            let filter = elements::make("capsfilter")?;
            filter.set_property("caps", encoded_caps(info, size, recipe)?);
            chain.extend([scale, filter]);
            chain.extend(recipe.elements(info, size)?);
        }
        chain.extend(end(&self.spec, info)?);
        Ok(chain)
    }

    fn request(&self, text: impl std::fmt::Display) -> SinkError {
        SinkError::Request(format!("{}: {text}", self.name))
    }
}

impl FrameSink for PipelineSink {
    fn start(&mut self, info: &StreamInfo) -> Result<(), SinkError> {
        self.finish()?;
        let pipeline = gst::Pipeline::new();
        let source = gst_app::AppSrc::builder().format(gst::Format::Time).stream_type(gst_app::AppStreamType::Stream).build();
        let chain = self.chain(info).map_err(|text| self.request(text))?;
        let all: Vec<&gst::Element> = std::iter::once(source.upcast_ref()).chain(&chain).collect();
        pipeline.add_many(&all).map_err(|error| self.request(error))?;
        gst::Element::link_many(&all).map_err(|error| self.request(error))?;
        let status = Arc::new(Status::default());
        status.count_departures(&source);
        status.listen(&pipeline, self.spec.clone());
        let step = info.frame_rate.map(|(numerator, denominator)| {
            Duration::from_nanos(u64::from(denominator) * 1_000_000_000 / u64::from(numerator.max(1)))
        });
        let timing = Timing { step, ..Timing::default() };
        let mut open = Open {
            pipeline,
            source,
            status,
            frame_rate: info.frame_rate,
            pool: None,
            timing,
            n_pushed: 0,
            is_playing: false,
            is_timed: !matches!(self.spec, SinkSpec::File { .. }),
            is_new: false,
        };
        match &self.spec {
            // A video that is there stays until a frame takes its place.
            SinkSpec::File { path, .. } => open.is_new = probe(path)?,
            _ => open.play(&self.name)?,
        }
        self.open = Some(open);
        Ok(())
    }

    fn push(&mut self, picture: &PictureRef<'_>, stamps: &Stamps, draw: &mut Draw<'_>) -> Result<(), SinkError> {
        let pads_to_even = self.recipe.is_some();
        let Some(open) = &mut self.open else { return Err(SinkError::Write(format!("{}: it is closed", self.name))) };
        open.push(picture, stamps, draw, pads_to_even, &self.name)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let end = open.end(&self.name);
        let is_stopped = shut_down(&open.pipeline, STOP_LIMIT);
        if open.n_pushed == 0
            && open.is_new
            && let SinkSpec::File { path, .. } = &self.spec
        {
            // A file without a frame is none; it was made by `start`, so it may go.
            let _ = std::fs::remove_file(path);
        }
        if end.is_ok() && !is_stopped {
            return Err(SinkError::Write(format!("{}: it did not close in time; its last second may be missing", self.name)));
        }
        end
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Drop for PipelineSink {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "a sink was dropped and could not be finalised");
        }
    }
}

impl Open {
    /// Starts the elements; a file is emptied by it.
    fn play(&mut self, name: &str) -> Result<(), SinkError> {
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            let silent = || SinkError::Request(format!("{name}: GStreamer refuses to start it and does not say why"));
            let error = self.status.error().unwrap_or_else(silent);
            shut_down(&self.pipeline, STOP_LIMIT);
            return Err(error);
        }
        self.is_playing = true;
        Ok(())
    }

    fn push(
        &mut self,
        picture: &PictureRef<'_>,
        stamps: &Stamps,
        draw: &mut Draw<'_>,
        pads_to_even: bool,
        name: &str,
    ) -> Result<(), SinkError> {
        if !self.is_playing {
            self.play(name)?;
        }
        let limit = STALL_LIMIT + self.ahead();
        self.status.wait_for_room(limit, name)?;
        let failed = |what: &str| SinkError::Write(format!("{name}: {what}"));
        if self.pool.as_ref().is_none_or(|pool| !pool.fits(picture)) {
            let pool = Pool::new(picture, pads_to_even, self.frame_rate).map_err(|text| failed(&text))?;
            // Queued in order with the buffers.
            self.source.set_caps(Some(&pool.caps));
            self.pool = Some(pool);
        }
        let Some(pool) = &self.pool else { return Err(failed("no memory")) };
        let mut buffer = self.status.wait_for_buffer(pool, limit, name)?;
        let writable = buffer.get_mut().ok_or_else(|| failed("a buffer of the pool is shared"))?;
        let time = self.timing.shift(stamps);
        writable.set_pts(gst::ClockTime::try_from(time).ok());
        let duration = stamps.duration.or(self.timing.step);
        writable.set_duration(duration.and_then(|duration| gst::ClockTime::try_from(duration).ok()));
        pool.paint(writable, picture, draw).map_err(|text| failed(&text))?;
        self.status.lock().n_waiting += 1;
        if self.source.push_buffer(buffer).is_err() {
            return Err(self.status.wait_for_error().unwrap_or_else(|| failed("it takes no more frames")));
        }
        self.n_pushed += 1;
        Ok(())
    }

    /// How long until the last frame is due, where frames leave at their times.
    fn ahead(&self) -> Duration {
        let now = self.pipeline.current_running_time().map_or(Duration::ZERO, Duration::from);
        match self.is_timed {
            true => self.timing.last.unwrap_or_default().saturating_sub(now),
            false => Duration::ZERO,
        }
    }

    /// Sends the end of the stream and waits until it has passed everything.
    fn end(&self, name: &str) -> Result<(), SinkError> {
        if self.n_pushed == 0 || self.status.lock().is_reported {
            return Ok(());
        }
        let limit = FINISH_LIMIT + self.ahead();
        if self.source.end_of_stream().is_ok() {
            self.status.wait_for_end(limit);
        }
        let status = self.status.lock();
        match &status.error {
            Some(error) => Err(error.clone()),
            None if status.is_at_end || status.is_published => Ok(()),
            None => Err(SinkError::Write(format!(
                "{name}: it could not be finalised within {} s; what was written so far stays",
                limit.as_secs()
            ))),
        }
    }
}

/// What the threads of the pipeline tell.
#[derive(Debug, Default)]
struct Status {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Frames pushed that the elements have not taken yet.
    n_waiting: u32,
    is_at_end: bool,
    /// The pictures have left for the server, see [`publisher`].
    is_published: bool,
    error: Option<SinkError>,
    /// The caller knows the error.
    is_reported: bool,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Duration,
        goes_on: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_timeout_while(state, limit, goes_on).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Watches frames leave the appsrc. Its own blocking mode would wait for ever once an element has failed.
    fn count_departures(self: &Arc<Self>, source: &gst_app::AppSrc) {
        let status = Arc::clone(self);
        if let Some(pad) = source.static_pad("src") {
            pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                status.change(|state| state.n_waiting = state.n_waiting.saturating_sub(1));
                gst::PadProbeReturn::Ok
            });
        }
    }

    /// Takes errors and the end from the bus, in the thread that posts them.
    fn listen(self: &Arc<Self>, pipeline: &gst::Pipeline, spec: SinkSpec) {
        let status = Arc::clone(self);
        let Some(bus) = pipeline.bus() else { return };
        bus.set_sync_handler(move |_, message| {
            match message.view() {
                gst::MessageView::Error(error) => {
                    let element = error.src().map(|source| source.name().to_string()).unwrap_or_default();
                    let report = Report { error: error.error(), debug: error.debug(), element, missing: &[] };
                    let error = sink_error(&spec, &report);
                    status.change(|state| _ = state.error.get_or_insert(error));
                }
                gst::MessageView::Warning(warning) => {
                    let element = warning.src().map(|source| source.name().to_string()).unwrap_or_default();
                    let report = Report { error: warning.error(), debug: warning.debug(), element, missing: &[] };
                    if ends_stream(&spec, &report) {
                        let error = sink_error(&spec, &report);
                        status.change(|state| _ = state.error.get_or_insert(error));
                    }
                }
                gst::MessageView::Eos(_) => status.change(|state| state.is_at_end = true),
                gst::MessageView::Element(element) if element.structure().is_some_and(tells_end) => {
                    status.change(|state| state.is_published = true);
                }
                _ => {}
            }
            gst::BusSyncReply::Drop
        });
    }

    /// The error, which the caller is going to report.
    fn error(&self) -> Option<SinkError> {
        let mut state = self.lock();
        state.is_reported = state.error.is_some();
        state.error.clone()
    }

    fn wait_for_error(&self) -> Option<SinkError> {
        drop(self.wait(self.lock(), Duration::from_secs(1), |state| state.error.is_none()));
        self.error()
    }

    /// Waits until a frame may be pushed.
    fn wait_for_room(&self, limit: Duration, name: &str) -> Result<(), SinkError> {
        let state = self.wait(self.lock(), limit, |state| state.error.is_none() && state.n_waiting >= MAX_WAITING);
        let has_room = state.n_waiting < MAX_WAITING;
        self.fail_if_failed(state)?;
        if has_room { Ok(()) } else { Err(stalled(limit, name)) }
    }

    fn fail_if_failed(&self, state: MutexGuard<'_, State>) -> Result<(), SinkError> {
        let is_failed = state.error.is_some();
        drop(state);
        is_failed.then(|| self.error()).flatten().map_or(Ok(()), Err)
    }

    /// A buffer of the pool; waits while all are in use.
    fn wait_for_buffer(&self, pool: &Pool, limit: Duration, name: &str) -> Result<gst::Buffer, SinkError> {
        const STEP: Duration = Duration::from_millis(5);
        let params = gst::BufferPoolAcquireParams::with_flags(gst::BufferPoolAcquireFlags::DONTWAIT);
        let mut waited = Duration::ZERO;
        loop {
            match pool.pool.acquire_buffer(Some(&params)) {
                Ok(buffer) => return Ok(buffer),
                Err(gst::FlowError::Eos) if waited < limit => {
                    // Buffers come back without a word.
                    let state = self.wait(self.lock(), STEP, |state| state.error.is_none());
                    self.fail_if_failed(state)?;
                    waited += STEP;
                }
                Err(gst::FlowError::Eos) => return Err(stalled(limit, name)),
                Err(error) => return Err(SinkError::Write(format!("{name}: no memory for a frame ({error})"))),
            }
        }
    }

    fn wait_for_end(&self, limit: Duration) {
        let is_open = |state: &mut State| state.error.is_none() && !state.is_at_end;
        let state = self.wait(self.lock(), limit, |state| is_open(state) && !state.is_published);
        drop(self.wait(state, GOODBYE_LIMIT, is_open));
    }
}

/// Whether a message that a bin has passed on says that a sink in it has seen the end.
fn tells_end(structure: &gst::StructureRef) -> bool {
    structure.name() == "GstBinForwarded"
        && structure.get::<gst::Message>("message").is_ok_and(|message| message.type_() == gst::MessageType::Eos)
}

fn stalled(limit: Duration, name: &str) -> SinkError {
    SinkError::Write(format!("{name}: nothing moved for {} s; the disk, the server or the encoder hangs", limit.as_secs()))
}

/// Time of a frame in the output.
#[derive(Debug, Default)]
struct Timing {
    /// PTS of the first frame.
    first: Option<Duration>,
    /// Time of the previous frame in the output.
    last: Option<Duration>,
    /// Distance of frames, if the rate is constant.
    step: Option<Duration>,
}

impl Timing {
    /// The frame's PTS, shifted so that the first one is 0, and above the previous one: muxers refuse to go back.
    fn shift(&mut self, stamps: &Stamps) -> Duration {
        let step = stamps.duration.or(self.step).unwrap_or(DEFAULT_STEP);
        let shifted = match (stamps.pts, self.last) {
            (Some(pts), None) => {
                self.first = Some(pts);
                Duration::ZERO
            }
            (Some(pts), Some(last)) => pts.saturating_sub(*self.first.get_or_insert_with(|| pts.saturating_sub(last + step))),
            (None, last) => last.map_or(Duration::ZERO, |last| last + step),
        };
        let time = match self.last {
            Some(last) if shifted <= last => last + step.min(Duration::from_millis(1)),
            _ => shifted,
        };
        self.last = Some(time);
        time
    }
}

/// Buffers of one format and size.
struct Pool {
    pool: gst::BufferPool,
    caps: gst::Caps,
    info: gst_video::VideoInfo,
    format: PixelFormat,
    size: (usize, usize),
    color: ColorInfo,
}

impl Pool {
    fn new(picture: &PictureRef<'_>, pads_to_even: bool, frame_rate: Option<(u32, u32)>) -> Result<Self, String> {
        let size = (picture.width, picture.height);
        let buffer_size = if pads_to_even { encoded_size(size) } else { size };
        let side = |side: usize| u32::try_from(side).map_err(|error| error.to_string());
        let colorimetry = match picture.format {
            PixelFormat::Gray8 => Some(GREY),
            format => format.is_yuv().then_some(picture.color),
        };
        let colorimetry = colorimetry.map(caps::colorimetry);
        let info = gst_video::VideoInfo::builder(video_format(picture.format), side(buffer_size.0)?, side(buffer_size.1)?)
            .fps(fraction(frame_rate))
            .colorimetry_if_some(colorimetry.as_ref())
            .build()
            .map_err(|error| error.to_string())?;
        let caps = info.to_caps().map_err(|error| error.to_string())?;
        let pool: gst::BufferPool = gst_video::VideoBufferPool::new().upcast();
        let mut config = pool.config();
        let n_bytes = u32::try_from(info.size()).map_err(|_| "the picture is too large".to_owned())?;
        config.set_params(Some(&caps), n_bytes, 1, POOL_BUFFERS);
        pool.set_config(config).and_then(|()| pool.set_active(true)).map_err(|error| error.to_string())?;
        Ok(Self { pool, caps, info, format: picture.format, size, color: picture.color })
    }

    fn fits(&self, picture: &PictureRef<'_>) -> bool {
        self.format == picture.format && self.size == (picture.width, picture.height) && self.color == picture.color
    }

    /// Copies the picture into the buffer, lets `draw` draw on it, and fills the margin that makes its sides even.
    fn paint(&self, buffer: &mut gst::BufferRef, picture: &PictureRef<'_>, draw: &mut Draw<'_>) -> Result<(), String> {
        let mut mapped = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| "a buffer of the pool cannot be mapped".to_owned())?;
        let (width, height) = self.size;
        let strides =
            [0, 1, 2].map(|idx| mapped.plane_stride().get(idx).map_or(0, |&stride| usize::try_from(stride).unwrap_or(0)));
        let [luma, second, third, _] = mapped.planes_data_mut();
        let plane = |data, stride_bytes| PlaneMut { data, stride_bytes };
        let planes = [plane(luma, strides[0]), plane(second, strides[1]), plane(third, strides[2])];
        let mut copy = PictureMut::new(self.format, width, height, self.color, planes).map_err(|error| error.to_string())?;
        copy.copy_from(picture);
        draw(&mut copy);
        extend_to(encoded_size(self.size), &mut copy);
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Buffers that are still under way keep what they need.
        let _ = self.pool.set_active(false);
    }
}

/// Repeats the last column and row of a picture in the margin up to `size`, where its planes have one: encoders work
/// on pairs of rows and columns, and a repeated edge costs no bits.
fn extend_to(size: (usize, usize), picture: &mut PictureMut<'_>) {
    let (format, width, height) = (picture.format, picture.width, picture.height);
    for plane_idx in 0..format.n_planes() {
        let (Some(old), Some(new)) = (format.plane_size(plane_idx, width, height), format.plane_size(plane_idx, size.0, size.1))
        else {
            continue;
        };
        let plane = picture.plane_mut(plane_idx);
        let stride = plane.stride_bytes;
        if new.row_bytes > stride || plane.data.len() < stride * (new.rows - 1) + new.row_bytes {
            continue;
        }
        let unit_bytes = match (format, plane_idx) {
            (PixelFormat::Rgb, _) => 3,
            (PixelFormat::Rgba | PixelFormat::Bgrx | PixelFormat::Yuy2, _) => 4,
            (PixelFormat::Nv12, 1) => 2,
            _ => 1,
        };
        for row in plane.data.chunks_mut(stride).take(old.rows) {
            if format == PixelFormat::Yuy2 && width % 2 == 1 {
                // Y0 Cb Y1 Cr: the pair is there already, its second luma is not.
                row[old.row_bytes - 2] = row[old.row_bytes - 4];
            }
            for at in old.row_bytes..new.row_bytes {
                row[at] = row[at - unit_bytes];
            }
        }
        for row in old.rows..new.rows {
            plane.data.copy_within((row - 1) * stride..(row - 1) * stride + new.row_bytes, row * stride);
        }
    }
}

/// Sides as encoders of 4:2:0 and the MP4 muxer take them: even, and not below [`MIN_SIDE`].
fn encoded_size((width, height): (usize, usize)) -> (usize, usize) {
    (width.next_multiple_of(2).max(MIN_SIDE), height.next_multiple_of(2).max(MIN_SIDE))
}

/// Shortest side of a picture in an MP4 file.
const MIN_SIDE: usize = 16;

fn fraction(frame_rate: Option<(u32, u32)>) -> gst::Fraction {
    let int = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    frame_rate.map_or(gst::Fraction::new(0, 1), |(numerator, denominator)| gst::Fraction::new(int(numerator), int(denominator)))
}

/// What the encoder gets, from the first frame to the last: a change in mid-stream is scaled into it with borders.
fn encoded_caps(info: &StreamInfo, (width, height): (usize, usize), recipe: Recipe) -> Result<gst::Caps, String> {
    let side = |side: usize| i32::try_from(side).map_err(|error| error.to_string());
    let keeps_nv12 = info.format == PixelFormat::Nv12 && recipe.takes_nv12();
    let color = match info.format {
        // videoconvert copies grey into luma as it is: full range.
        PixelFormat::Gray8 => GREY,
        format if format.is_yuv() => info.color,
        _ => {
            ColorInfo { matrix: caps::default_matrix(u32::try_from(info.height).unwrap_or(u32::MAX)), range: ColorRange::Limited }
        }
    };
    let caps = gst_video::VideoCapsBuilder::new()
        .format(if keeps_nv12 { gst_video::VideoFormat::Nv12 } else { gst_video::VideoFormat::I420 })
        .width(side(width)?)
        .height(side(height)?)
        .pixel_aspect_ratio(gst::Fraction::new(1, 1))
        .field("colorimetry", caps::colorimetry(color).to_string());
    Ok(caps.build())
}

/// Elements that show pictures, best first. autovideosink is not among them: it tries whatever is installed, and some
/// of that crashes on a machine without a screen.
const SCREENS: [&str; 7] = ["waylandsink", "xvimagesink", "glimagesink", "ximagesink", "nv3dsink", "nvdrmvideosink", "kmssink"];

/// The element at the end of a chain.
fn end(spec: &SinkSpec, info: &StreamInfo) -> Result<Option<gst::Element>, String> {
    let element = match spec {
        SinkSpec::File { path, .. } => {
            let file = elements::make("filesink")?;
            file.set_property("location", path.to_str().ok_or("the path is not UTF-8; rename it")?);
            file
        }
        SinkSpec::Stream(url) => publisher(url)?,
        SinkSpec::Display => {
            let screen = screen()?;
            // A live picture is shown when it comes, a file at its own pace.
            screen.set_property("sync", !info.is_live);
            // Every frame here has been worked for: a late one is shown late.
            screen.set_property("max-lateness", -1_i64);
            screen
        }
        SinkSpec::None => return Ok(None),
    };
    Ok(Some(element))
}

/// The element that hands the stream to an RTSP server.
///
/// It is a bin of bins with two sinks, for pictures (RTP) and for reports on them (RTCP). The latter sees the end only if
/// the report that says goodbye leaves after the end has passed the pictures' pad (`gst_rtp_session_send_rtcp` in rtpmanager's
/// `gstrtpsession.c`): a race, lost now and then, and the whole then never tells its end. So the inner bin passes on what its
/// sinks say one by one; the pictures' sink comes first.
fn publisher(url: &SecretUrl) -> Result<gst::Element, String> {
    let server = elements::make(PUBLISHER)?;
    server.set_property("location", url.without_credentials());
    if let Some((user, password)) = url.plain_credentials() {
        server.set_property("user-id", user);
        server.set_property("user-pw", password);
    }
    server.set_property_from_str("protocols", "tcp");
    server.set_property("tcp-timeout", u64::try_from(ANSWER_LIMIT.as_micros()).unwrap_or(u64::MAX));
    // The connection alone would come back, over TCP as well, and frames would go to a server that expects none.
    server.set_property("udp-reconnect", false);
    if let Some(bin) = server.downcast_ref::<gst::Bin>() {
        for inner in bin.children() {
            if inner.has_property("message-forward") {
                inner.set_property("message-forward", true);
            }
        }
    }
    Ok(server)
}

/// The first element that finds a screen.
fn screen() -> Result<gst::Element, String> {
    for name in SCREENS.into_iter().filter(|name| elements::is_installed(name)) {
        let screen = elements::make(name)?;
        let is_there = screen.set_state(gst::State::Ready).is_ok();
        // What comes back from READY is of no interest; the pipeline starts it anew.
        let _ = screen.set_state(gst::State::Null);
        if is_there {
            return Ok(screen);
        }
    }
    Err("no screen is there (neither Wayland nor X11 nor a free console, or GStreamer's part for it is missing: sudo apt install \
         gstreamer1.0-x); run it within a desktop session, or write a file with \
         --sink out.mp4"
        .into())
}

/// Opens a file for writing, so that a folder that cannot be written shows before the first frame. Returns whether it is new.
fn probe(path: &Path) -> Result<bool, SinkError> {
    let is_new = std::fs::File::create_new(path).is_ok();
    let Err(error) = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path) else { return Ok(is_new) };
    let path = path.display();
    Err(match error.kind() {
        ErrorKind::StorageFull => SinkError::Write(format!("{path}: the disk is full ({error}); make room or write elsewhere")),
        _ => SinkError::Request(format!("{path}: the file cannot be written ({error}); check folder and permissions")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameId;

    #[test]
    fn times_start_at_zero_and_rise() {
        let ms = Duration::from_millis;
        let run = |step: Option<u64>, pts: &[Option<u64>]| -> Vec<u128> {
            let mut timing = Timing { step: step.map(ms), ..Timing::default() };
            let stamps = |pts: &Option<u64>| Stamps { id: FrameId(0), pts: pts.map(ms), ..Stamps::default() };
            pts.iter().map(|pts| timing.shift(&stamps(pts)).as_millis()).collect()
        };
        assert_eq!(run(Some(40), &[Some(1000), Some(1040), Some(1200)]), [0, 40, 200]);
        assert_eq!(run(Some(40), &[None, None, None]), [0, 40, 80]);
        assert_eq!(run(Some(40), &[Some(5), None, Some(85)]), [0, 40, 80]);
        assert_eq!(run(Some(40), &[Some(5), Some(5), Some(3), Some(45)]), [0, 1, 2, 40]);
        assert_eq!(run(Some(40), &[None, Some(700), Some(740)]), [0, 40, 80]);
    }

    #[test]
    fn margins_repeat_the_edge() {
        for (format, (width, height), margin) in PixelFormat::ALL
            .into_iter()
            .flat_map(|format| [(format, (3, 3), (4, 4)), (format, (1, 1), (16, 16)), (format, (7, 2), (16, 4))])
        {
            let mut planes = [0, 1, 2].map(|idx| {
                let size = format.plane_size(idx, margin.0, margin.1);
                size.map(|size| vec![0_u8; size.row_bytes * size.rows]).unwrap_or_default()
            });
            let strides = [0, 1, 2].map(|idx| format.plane_size(idx, margin.0, margin.1).map_or(0, |size| size.row_bytes));
            let [a, b, c] = &mut planes;
            let plane = |data, stride_bytes| PlaneMut { data, stride_bytes };
            let planes_mut = [plane(a, strides[0]), plane(b, strides[1]), plane(c, strides[2])];
            let mut picture = PictureMut::new(format, width, height, ColorInfo::default(), planes_mut).unwrap();
            // The picture is one colour throughout; the margin must be so too.
            for (idx, stride) in strides.into_iter().enumerate().take(format.n_planes()) {
                let size = format.plane_size(idx, width, height).unwrap();
                for row in picture.plane_mut(idx).data.chunks_mut(stride).take(size.rows) {
                    let n_written = if format == PixelFormat::Yuy2 { size.row_bytes - 2 } else { size.row_bytes };
                    row[..n_written].fill(7);
                    if format == PixelFormat::Yuy2 {
                        row[size.row_bytes - 1] = 7;
                    }
                }
            }
            extend_to(margin, &mut picture);
            for (idx, plane) in planes.iter().enumerate() {
                assert!(plane.iter().all(|&byte| byte == 7), "{format} {width}x{height} plane {idx}: {plane:?}");
            }
        }
    }
}
