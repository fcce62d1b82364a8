//! Accounts for every frame between a decoder's source pad and the pipeline's inlet.
//!
//! A tap (pad probe) on the decoder's pad numbers and stamps each buffer and reports it as captured; the appsink's
//! callback pairs what arrives with what was tapped and delivers it. What was tapped and never arrives is dropped by
//! name, so that the ledger adds up whatever elements lie between.

use super::caps::Layout;
use crate::frame::{Frame, FrameId, FrameMemory, MAX_SIDE, PictureError, PlaneRef, Stamps};
use crate::pipeline::ports::{DropCause, Inlet, SourceError};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video::{VideoFrame, prelude::*};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Frames that may lie between the tap and the appsink before the book is enlarged.
const USUAL_PENDING: usize = 16;

/// How often a source that connects looks whether it is still wanted.
pub(super) const STOP_TICK: Duration = Duration::from_millis(50);

/// What is said of memory that cannot be mapped.
pub(super) const MEMORY_REMEDY: &str = "bring the frames into system memory: end the pipeline text with `nvvidconv ! video/x-raw,format=NV12` on a Jetson, with \
     `vapostproc ! video/x-raw,format=NV12` on a PC";

/// A frame that was tapped and has not arrived yet.
#[derive(Debug, Clone, Copy)]
struct Pending {
    id: FrameId,
    pts: Option<gst::ClockTime>,
    captured_at: Duration,
}

/// The book of frames under way. Held while a frame is delivered: only the streaming thread asks for it until the end.
#[derive(Debug, Default)]
struct Flow {
    pending: VecDeque<Pending>,
    next_id: u64,
    layout: Option<(gst::Caps, Layout)>,
    stream_end: Option<gst::ClockTime>,
    /// When the first frame was captured.
    began_at: Option<Duration>,
    /// PTS of the last frame that arrived, and when it was captured.
    last: Option<(Duration, Duration)>,
    /// The pipeline is another one: its times begin anew.
    is_resumed: bool,
    /// What is added to the times of this pipeline, so that those of the stream go on.
    offset: Duration,
    /// A frame could not be mapped.
    is_unmapped: bool,
    is_finished: bool,
}

/// What `start` waits for.
#[derive(Debug, Default)]
struct News {
    layout: Option<Layout>,
    failure: Option<SourceError>,
}

/// Shared by the streaming thread, the bus thread and the owner of a source.
pub(super) struct Intake {
    inlet: Arc<dyn Inlet>,
    /// Frames wait in the appsink for their time: they count as captured when they leave it.
    is_paced: bool,
    /// A frame without a time has that of its arrival: cameras that send JPEG over HTTP state none.
    is_timed: bool,
    flow: Mutex<Flow>,
    news: Mutex<News>,
    has_news: Condvar,
    /// Set by the owner; no call of the inlet begins afterwards.
    is_closing: AtomicBool,
    /// A frame is being delivered.
    is_delivering: AtomicBool,
    n_captured: AtomicU64,
    n_delivered: AtomicU64,
}

impl Intake {
    /// An intake that hands over to `inlet`. `is_paced`, `is_timed`: frames wait for their time, and have one in any case.
    pub(super) fn new(inlet: Arc<dyn Inlet>, is_paced: bool, is_timed: bool) -> Self {
        Self {
            inlet,
            is_paced,
            is_timed,
            flow: Mutex::new(Flow { pending: VecDeque::with_capacity(USUAL_PENDING), ..Flow::default() }),
            news: Mutex::default(),
            has_news: Condvar::new(),
            is_closing: AtomicBool::new(false),
            is_delivering: AtomicBool::new(false),
            n_captured: AtomicU64::new(0),
            n_delivered: AtomicU64::new(0),
        }
    }

    /// Counts each buffer that passes `pad`.
    pub(super) fn tap(self: &Arc<Self>, pad: &gst::Pad) {
        let intake = Arc::clone(self);
        let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
        pad.add_probe(mask, move |_, info| {
            if intake.is_closing() {
                return gst::PadProbeReturn::Drop;
            }
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => intake.capture(buffer.pts()),
                Some(gst::PadProbeData::BufferList(list)) => list.iter().for_each(|buffer| intake.capture(buffer.pts())),
                _ => {}
            }
            gst::PadProbeReturn::Ok
        });
    }

    fn capture(&self, pts: Option<gst::ClockTime>) {
        let mut flow = lock(&self.flow);
        if flow.is_finished {
            return;
        }
        let id = FrameId(flow.next_id);
        flow.next_id += 1;
        flow.pending.push_back(Pending { id, pts, captured_at: self.inlet.now() });
        self.n_captured.fetch_add(1, Ordering::Relaxed);
        self.inlet.captured();
    }

    /// New caps at the appsink: the first ones end the wait of `start`.
    pub(super) fn on_caps(&self, caps: &gst::CapsRef) {
        let Some(layout) = Layout::from_caps(caps) else { return };
        let mut news = lock(&self.news);
        if let Err(error) = check_size(layout.size) {
            news.failure.get_or_insert(SourceError::Request(error.to_string()));
            self.has_news.notify_all();
        } else if news.layout.is_none() {
            news.layout = Some(layout);
            self.has_news.notify_all();
        }
    }

    /// A frame reached the appsink. `NotSupported` if its memory cannot be mapped.
    pub(super) fn on_sample(&self, sample: &gst::Sample) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.is_closing() {
            return Err(gst::FlowError::Flushing);
        }
        let mut flow = lock(&self.flow);
        if flow.is_finished {
            return Err(gst::FlowError::Eos);
        }
        let (Some(buffer), Some(caps)) = (sample.buffer_owned(), sample.caps()) else { return Ok(gst::FlowSuccess::Ok) };
        let pending = flow.take(buffer.pts(), &*self.inlet);
        let segment = sample.segment().and_then(|segment| segment.downcast_ref::<gst::ClockTime>());
        let stream_time = buffer.pts().map(|pts| segment.and_then(|segment| segment.to_stream_time(pts)).unwrap_or(pts));
        // Unlike the time in the stream, it goes on where one part follows another.
        let running_time = buffer.pts().and_then(|pts| segment.and_then(|segment| segment.to_running_time(pts))).or(stream_time);
        flow.stream_end = stream_time.map(|pts| pts + buffer.duration().unwrap_or_default()).or(flow.stream_end);
        let captured_at = pending.filter(|_| !self.is_paced).map_or_else(|| self.inlet.now(), |pending| pending.captured_at);
        let since_first = captured_at.saturating_sub(*flow.began_at.get_or_insert(captured_at));
        let time = running_time.map(Duration::from).or_else(|| self.is_timed.then_some(since_first));
        let stamps = Stamps {
            id: pending.map_or(FrameId(flow.next_id), |pending| pending.id),
            pts: time.map(|time| flow.go_on(time, captured_at)),
            duration: buffer.duration().map(Duration::from),
            captured_at,
        };
        let Some(frame) = flow.layout_of(caps).and_then(|layout| frame_of(buffer, layout, stamps)) else {
            if !std::mem::replace(&mut flow.is_unmapped, true) {
                tracing::warn!(frame = stamps.id.0, "a frame could not be mapped; others that follow are counted, not named");
            }
            self.inlet.drop_frame(DropCause::DecodeError);
            // Memory that the processor cannot see fails on every frame: the first one tells.
            return if self.n_delivered() == 0 { Err(gst::FlowError::NotSupported) } else { Ok(gst::FlowSuccess::Ok) };
        };
        self.n_delivered.fetch_add(1, Ordering::Relaxed);
        self.is_delivering.store(true, Ordering::Relaxed);
        let goes_on = self.inlet.deliver(frame);
        self.is_delivering.store(false, Ordering::Relaxed);
        if goes_on {
            return Ok(gst::FlowSuccess::Ok);
        }
        flow.drop_pending(DropCause::Shutdown, &*self.inlet);
        self.is_closing.store(true, Ordering::Release);
        Err(gst::FlowError::Eos)
    }

    /// The stream is over: tells the inlet, once, after the frame that is being delivered.
    pub(super) fn finish(&self, end: Result<(), SourceError>) {
        let mut flow = lock(&self.flow);
        if flow.is_finished || self.is_closing() {
            return;
        }
        flow.is_finished = true;
        flow.drop_pending(DropCause::StreamReset, &*self.inlet);
        self.inlet.finish(end);
    }

    /// The pipeline is gone and another one will follow. After the streaming threads have ended.
    pub(super) fn resume(&self) {
        let mut flow = lock(&self.flow);
        flow.drop_pending(DropCause::StreamReset, &*self.inlet);
        flow.is_resumed = true;
    }

    /// Frames come from the other pipeline.
    pub(super) fn reconnected(&self) {
        self.inlet.reconnected();
    }

    /// The stream cannot start: ends the wait of `start`. The first failure counts.
    pub(super) fn fail(&self, error: SourceError) {
        lock(&self.news).failure.get_or_insert(error);
        self.has_news.notify_all();
    }

    /// Waits for the first caps; `None` after `limit`, or once the inlet wants no frames any more.
    pub(super) fn wait_for_layout(&self, limit: Duration) -> Option<Result<Layout, SourceError>> {
        let undecided = |news: &mut News| news.layout.is_none() && news.failure.is_none();
        let mut news = lock(&self.news);
        let mut left = limit;
        while undecided(&mut news) && !left.is_zero() && !self.inlet.is_stopped() {
            let slice = left.min(STOP_TICK);
            let waited = self.has_news.wait_timeout_while(news, slice, undecided);
            news = waited.unwrap_or_else(PoisonError::into_inner).0;
            left -= slice;
        }
        match (&news.layout, &news.failure) {
            (Some(layout), _) => Some(Ok(layout.clone())),
            (None, Some(failure)) => Some(Err(failure.clone())),
            (None, None) => None,
        }
    }

    /// Whether the first caps are known.
    pub(super) fn has_layout(&self) -> bool {
        lock(&self.news).layout.is_some()
    }

    /// From now on no call of the inlet begins.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Whether the owner closed the intake, or the inlet refused a frame.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Accounts for what was under way when the stream was stopped. After the streaming threads have ended.
    pub(super) fn settle(&self) {
        // A thread that hangs in a driver may hold the book; its frame is then not accounted for.
        if let Ok(mut flow) = self.flow.try_lock() {
            if !flow.is_finished {
                flow.drop_pending(DropCause::Shutdown, &*self.inlet);
            }
            flow.is_finished = true;
        }
    }

    /// Frames seen so far, and whether one is being delivered: whether the stream still moves.
    pub(super) fn progress(&self) -> (u64, bool) {
        (self.n_captured.load(Ordering::Relaxed), self.is_delivering.load(Ordering::Relaxed))
    }

    /// Frames handed over so far.
    pub(super) fn n_delivered(&self) -> u64 {
        self.n_delivered.load(Ordering::Relaxed)
    }

    /// End of the last frame that arrived.
    pub(super) fn stream_end(&self) -> Option<gst::ClockTime> {
        lock(&self.flow).stream_end
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("n_captured", &self.n_captured).finish_non_exhaustive()
    }
}

impl Flow {
    /// The tapped frame that arrived with `pts`; those before it are lost.
    fn take(&mut self, pts: Option<gst::ClockTime>, inlet: &dyn Inlet) -> Option<Pending> {
        let n_lost = self.pending.iter().position(|pending| pending.pts == pts).unwrap_or(0);
        for _ in self.pending.drain(..n_lost) {
            inlet.drop_frame(DropCause::StreamReset);
        }
        self.pending.pop_front()
    }

    /// The stream's time of a frame with this time in its pipeline: a gap is as long as it lasted.
    fn go_on(&mut self, time: Duration, captured_at: Duration) -> Duration {
        if let (true, Some((last_pts, last_captured_at))) = (std::mem::take(&mut self.is_resumed), self.last) {
            let gap = captured_at.saturating_sub(last_captured_at).max(Duration::from_millis(1));
            self.offset = (last_pts + gap).saturating_sub(time);
        }
        let pts = time + self.offset;
        self.last = Some((pts, captured_at));
        pts
    }

    fn drop_pending(&mut self, cause: DropCause, inlet: &dyn Inlet) {
        for _ in self.pending.drain(..) {
            inlet.drop_frame(cause);
        }
    }

    /// The layout of `caps`; read anew only when they change.
    fn layout_of(&mut self, caps: &gst::CapsRef) -> Option<&Layout> {
        if self.layout.as_ref().is_none_or(|(known, _)| known.as_ref() != caps) {
            self.layout = Some((caps.to_owned(), Layout::from_caps(caps)?));
        }
        self.layout.as_ref().map(|(_, layout)| layout)
    }
}

/// A buffer, mapped for reading; offsets and strides are those of its `GstVideoMeta` if it has one.
struct MappedFrame(VideoFrame<gstreamer_video::video_frame::Readable>);

impl FrameMemory for MappedFrame {
    fn plane(&self, plane_idx: usize) -> PlaneRef<'_> {
        let plane = u32::try_from(plane_idx).ok().and_then(|idx| self.0.plane_data(idx).ok());
        let stride = self.0.plane_stride().get(plane_idx).and_then(|&stride| usize::try_from(stride).ok());
        match (plane, stride) {
            (Some(data), Some(stride_bytes)) => PlaneRef { data, stride_bytes },
            _ => PlaneRef::default(),
        }
    }
}

fn frame_of(buffer: gst::Buffer, layout: &Layout, stamps: Stamps) -> Option<Frame> {
    let mapped = VideoFrame::from_buffer_readable(buffer, &layout.info).ok()?;
    Frame::new(Box::new(MappedFrame(mapped)), layout.format, layout.size, layout.color, stamps).ok()
}

fn check_size((width, height): (usize, usize)) -> Result<(), PictureError> {
    let fits = |side| (1..=MAX_SIDE).contains(&side);
    if fits(width) && fits(height) { Ok(()) } else { Err(PictureError::Size { width, height }) }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
