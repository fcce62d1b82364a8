//! Runs one stream from its source to its sink.
//!
//! ```text
//! source's threads ──Inlet──► queue ──► inference thread: detect → write detections → sink (draws on its copy)
//!                              calling thread: progress, time limit, stop signal
//! ```
//!
//! However a run ends (end of stream, limit, signal, error), the source is stopped, the queue is drained, the sink is
//! finished, detections are flushed, the ledger is closed and the report says what happened.

use super::clock::{Clock, Stopwatch};
use super::detections::{DetectionsWriter, OutputError};
use super::ledger::{Balance, Ledger, LedgerError, Place};
use super::metrics::{Metrics, Stage};
use super::ports::{Detect, DetectError, DropCause, FrameSink, FrameSource, Inlet, SinkError, SourceError, StreamInfo};
use super::process::ProcessFigures;
use super::report::{Fps, Frames, Latencies, Report, StreamReport};
use super::spec::Pace;
use crate::detection::Detection;
use crate::frame::{Frame, PictureMut, PictureRef, Stamps};
use crate::queue::{self, Overflow, Pushed, Receiver, Sender};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Draws detections onto a picture.
pub trait Annotate: Send {
    /// Draws the detections of the frame with these stamps.
    fn annotate(&mut self, picture: &mut PictureMut<'_>, detections: &[Detection], labels: &[String], stamps: &Stamps);
}

/// Draws with [`Overlay`](crate::overlay::Overlay), with or without the number of the frame.
#[cfg(feature = "opencv")]
#[derive(Debug, Default)]
pub struct OverlayAnnotator {
    overlay: crate::overlay::Overlay,
    frame_counter: bool,
    has_failed: bool,
}

#[cfg(feature = "opencv")]
impl OverlayAnnotator {
    /// Draws the number of the frame if `frame_counter`.
    #[must_use]
    pub fn new(frame_counter: bool) -> Self {
        Self { frame_counter, ..Self::default() }
    }
}

#[cfg(feature = "opencv")]
impl Annotate for OverlayAnnotator {
    fn annotate(&mut self, picture: &mut PictureMut<'_>, detections: &[Detection], labels: &[String], stamps: &Stamps) {
        let frame_number = self.frame_counter.then_some(stamps.id.0);
        if let Err(error) = self.overlay.draw(picture, detections, labels, frame_number)
            && !self.has_failed
        {
            self.has_failed = true;
            tracing::warn!(frame = stamps.id.0, %error, "a frame is not annotated in full; the stream goes on");
        }
    }
}

/// Takes frames and forgets them: `--sink none`.
#[derive(Debug, Default)]
pub struct NoSink;

impl FrameSink for NoSink {
    fn start(&mut self, _: &StreamInfo) -> Result<(), SinkError> {
        Ok(())
    }

    fn push(&mut self, _: &PictureRef<'_>, _: &Stamps, _: &mut super::ports::Draw<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn name(&self) -> String {
        "none".to_owned()
    }
}

/// What a stream is made of.
pub struct Stream {
    /// Where frames come from.
    pub source: Box<dyn FrameSource>,
    /// What finds objects.
    pub detector: Box<dyn Detect>,
    /// What draws; `None` where the sink shows nothing.
    pub annotator: Option<Box<dyn Annotate>>,
    /// Where annotated frames go.
    pub sink: Box<dyn FrameSink>,
    /// Where detections are written.
    pub detections: Option<DetectionsWriter>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("source", &self.source.name())
            .field("sink", &self.sink.name())
            .field("detections", &self.detections)
            .finish_non_exhaustive()
    }
}

/// How a stream is run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// Name of the stream in reports and detections.
    pub name: String,
    /// Whether frames may be dropped for newer ones.
    pub pace: Pace,
    /// Frames that may wait.
    pub queue_capacity: usize,
    /// When a waiting frame is too old, at pace live.
    pub max_frame_age: Duration,
    /// Stop after so many inferred frames.
    pub max_frames: Option<u64>,
    /// Stop after so long, counted from the first frame's format being known.
    pub max_time: Option<Duration>,
}

/// Why a run ended before its stream did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The source could not start, or broke.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The sink could not start, or broke.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Detections could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Frames were lost or counted twice.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The network failed on every frame, or the region of interest lies outside of them.
    #[error("no frame could be looked at: {0}")]
    Detect(#[from] DetectError),
    /// A mistake in the program.
    #[error("the inference thread broke down; please report this with the message above")]
    Panicked,
}

impl RunError {
    /// The request was wrong, rather than the work.
    #[must_use]
    pub const fn is_request(&self) -> bool {
        matches!(
            self,
            Self::Source(SourceError::Request(_))
                | Self::Sink(SinkError::Request(_))
                | Self::Output(OutputError::Create { .. })
                | Self::Detect(DetectError::Region(_))
        )
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The stream was over.
    EndOfStream,
    /// As many frames as were asked for.
    MaxFrames,
    /// As long as was asked for.
    MaxTime,
    /// Ctrl-C, or whoever holds the [`StopSignal`].
    Stopped,
    /// An error.
    Error,
}

impl Ended {
    /// Name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndOfStream => "end_of_stream",
            Self::MaxFrames => "max_frames",
            Self::MaxTime => "max_time",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }
}

/// Asks a run to stop; may be set from a signal handler's thread.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Asks.
    pub fn stop(&self) {
        // Relaxed: a flag that carries nothing.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What is known of the stream.
    pub info: StreamInfo,
    /// The ledger at this moment.
    pub balance: Balance,
    /// Time since the run started.
    pub elapsed: Duration,
}

/// What a run leaves behind, however it ended.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub report: Report,
    /// The stream; `None` if it did not start.
    pub info: Option<StreamInfo>,
    /// Why it ended.
    pub ended: Ended,
    /// What went wrong first.
    pub error: Option<RunError>,
}

/// How often the calling thread looks up.
const TICK: Duration = Duration::from_millis(50);

/// What the source's threads share with the others.
struct Shared {
    ledger: Ledger,
    clock: Clock,
    /// No frame is looked at any more: those that wait are dropped.
    stopping: AtomicBool,
    n_reconnects: AtomicU64,
    /// How the stream ended, if it has.
    end: Mutex<Option<Result<(), SourceError>>>,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        // Relaxed: a frame more or less does not matter; the queue's own protocol ends the loop.
        self.stopping.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn take_end(&self) -> Option<Result<(), SourceError>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A frame that waits, and since when.
struct Waiting {
    frame: Frame,
    since: Duration,
}

struct StreamInlet {
    shared: Arc<Shared>,
    sender: Sender<Waiting>,
    stop: StopSignal,
}

impl Inlet for StreamInlet {
    fn captured(&self) {
        self.shared.ledger.captured();
    }

    fn deliver(&self, frame: Frame) -> bool {
        let ledger = &self.shared.ledger;
        ledger.delivered();
        let since = self.shared.clock.now();
        match self.sender.push(Waiting { frame, since }) {
            Pushed::Queued => true,
            Pushed::Displaced(_) => {
                ledger.dropped(Place::Queue, DropCause::QueueFull);
                true
            }
            Pushed::Refused(_) => {
                ledger.dropped(Place::Queue, DropCause::Shutdown);
                false
            }
        }
    }

    fn drop_frame(&self, cause: DropCause) {
        self.shared.ledger.dropped(Place::Source, cause);
    }

    fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    fn reconnected(&self) {
        self.shared.n_reconnects.fetch_add(1, Ordering::Relaxed);
    }

    fn finish(&self, end: Result<(), SourceError>) {
        self.shared.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.sender.close();
    }
}

/// Runs `stream` until it ends, a limit is reached, `stop` asks, or something breaks. `progress` is called a few times a
/// second.
pub fn run(stream: Stream, options: &RunOptions, stop: &StopSignal, progress: &mut dyn FnMut(&Progress)) -> Outcome {
    let Stream { mut source, detector, annotator, sink, detections } = stream;
    let before = ProcessFigures::now();
    let shared = Arc::new(Shared {
        ledger: Ledger::default(),
        clock: Clock::start(),
        stopping: AtomicBool::new(false),
        n_reconnects: AtomicU64::new(0),
        end: Mutex::new(None),
    });
    let overflow = match options.pace {
        Pace::Max => Overflow::Block,
        Pace::Live => Overflow::DropOldest,
    };
    let (sender, receiver) = queue::bounded(options.queue_capacity, overflow);
    let mut worker = Worker {
        shared: Arc::clone(&shared),
        receiver,
        options: options.clone(),
        detector,
        annotator,
        sink,
        detections,
        metrics: Metrics::default(),
        found: Vec::new(),
        inferred: 0,
        detect_error: None,
        ended: None,
    };

    let inlet = StreamInlet { shared: Arc::clone(&shared), sender: sender.clone(), stop: stop.clone() };
    let started = source.start(Arc::new(inlet));
    let started_at = shared.clock.now();
    let mut error: Option<RunError> = None;
    // A source that gave up because it was told to is no error.
    let is_given_up = started.is_err() && stop.is_stopped();
    let mut ended = is_given_up.then_some(Ended::Stopped);
    let started = started.map_err(RunError::from).and_then(|info| worker.start(&info).map(|()| info));
    let info = match started {
        Ok(info) => Some(info),
        Err(start_error) => {
            error = (!is_given_up).then_some(start_error);
            None
        }
    };
    if info.is_some_and(|info| info.is_live) && options.pace == Pace::Max {
        tracing::warn!(
            stream = options.name,
            "a live source at pace max: frames wait, and what is drawn lags; pace live takes the newest"
        );
    }
    if let Some(info) = info {
        let watch = Watch { shared: &shared, sender: &sender, options, stop, info, started_at };
        let result;
        (result, ended) = watch.until_end(&mut worker, progress);
        error = result.err();
    }

    // However it ended: no more frames, everything that waits is accounted for, files are finalised.
    shared.stop();
    sender.close();
    source.stop();
    worker.drain();
    let finished = worker.finish();
    if let Err(finish_error) = finished {
        error.get_or_insert(finish_error);
    }
    if let Some(Err(source_error)) = shared.take_end() {
        // A source that is stopped may complain about it.
        if ended.is_none() && worker.ended.is_none() {
            error.get_or_insert(source_error.into());
        }
    }
    let wall = shared.clock.now().saturating_sub(started_at);
    let closed = shared.ledger.close(&worker.receiver.counts());
    let balance = closed.as_ref().copied().or_else(|_| shared.ledger.balance()).unwrap_or_default();
    if let (Err(ledger_error), true) = (closed, info.is_some()) {
        // It outranks whatever else went wrong: figures cannot be trusted.
        error = Some(ledger_error.into());
    }
    let nothing_inferred = balance.inferred == 0 && worker.detect_error.is_some();
    if let (true, Some(detect_error)) = (nothing_inferred, worker.detect_error.take()) {
        error.get_or_insert(RunError::Detect(detect_error));
    }
    let ended = match &error {
        Some(_) => Ended::Error,
        None => ended.or(worker.ended).unwrap_or(Ended::EndOfStream),
    };
    let mut report = Report {
        pace: options.pace,
        streams: vec![StreamReport {
            name: options.name.clone(),
            source: source.name(),
            reconnects: shared.n_reconnects.load(Ordering::Relaxed),
            frames: Frames::from(&balance),
            fps: Fps::new(&balance, wall),
            latency_ms: Latencies::new(&worker.metrics),
        }],
        wall_seconds: (wall.as_secs_f64() * 1e3).round() / 1e3,
        cpu_seconds: None,
        cpu_ms_per_frame: None,
        rss_bytes: None,
        peak_rss_bytes: None,
        ended: ended.name().to_owned(),
        error: error.as_ref().map(ToString::to_string),
    };
    report.set_process(&before, &ProcessFigures::now());
    Outcome { report, info, ended, error }
}

/// The calling thread, while the inference thread works.
struct Watch<'a> {
    shared: &'a Shared,
    sender: &'a Sender<Waiting>,
    options: &'a RunOptions,
    stop: &'a StopSignal,
    info: StreamInfo,
    started_at: Duration,
}

impl Watch<'_> {
    /// Lets `worker` work on a thread of its own until the stream is over, a limit is reached or somebody asks to stop; gives what
    /// went wrong there, and what ended it here.
    fn until_end(&self, worker: &mut Worker, progress: &mut dyn FnMut(&Progress)) -> (Result<(), RunError>, Option<Ended>) {
        let mut ended = None;
        let caller = thread::current();
        let result = thread::scope(|scope| {
            let body = || {
                let result = panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
                caller.unpark();
                result
            };
            let Ok(thread) = thread::Builder::new().name("inference".to_owned()).spawn_scoped(scope, body) else {
                return Err(RunError::Panicked);
            };
            while !thread.is_finished() {
                thread::park_timeout(TICK);
                let elapsed = self.shared.clock.now().saturating_sub(self.started_at);
                if let (Some(limit), None) = (self.limit(elapsed), ended) {
                    ended = Some(limit);
                    self.shared.stop();
                    self.sender.close();
                }
                if let Ok(balance) = self.shared.ledger.balance() {
                    progress(&Progress { info: self.info, balance, elapsed });
                }
            }
            thread.join().and_then(|result| result).unwrap_or_else(|_| {
                // The frame that it broke down on, unless it was counted before.
                if self.shared.ledger.balance().is_ok_and(|balance| balance.in_hand > 0) {
                    self.shared.ledger.dropped(Place::Hand, DropCause::InferError);
                }
                Err(RunError::Panicked)
            })
        });
        (result, ended)
    }

    fn limit(&self, elapsed: Duration) -> Option<Ended> {
        if self.stop.is_stopped() {
            Some(Ended::Stopped)
        } else if self.options.max_time.is_some_and(|max_time| elapsed >= max_time) {
            Some(Ended::MaxTime)
        } else {
            None
        }
    }
}

/// The inference thread and what it works with.
struct Worker {
    shared: Arc<Shared>,
    receiver: Receiver<Waiting>,
    options: RunOptions,
    detector: Box<dyn Detect>,
    annotator: Option<Box<dyn Annotate>>,
    sink: Box<dyn FrameSink>,
    detections: Option<DetectionsWriter>,
    metrics: Metrics,
    /// Detections of the frame in hand.
    found: Vec<Detection>,
    inferred: u64,
    /// The first failure of the network.
    detect_error: Option<DetectError>,
    ended: Option<Ended>,
}

impl Worker {
    /// Opens what is written to, once the source is known to give frames.
    fn start(&mut self, info: &StreamInfo) -> Result<(), RunError> {
        self.detector.check((info.width, info.height))?;
        self.sink.start(info)?;
        self.detections.as_mut().map_or(Ok(()), DetectionsWriter::start)?;
        Ok(())
    }

    fn run(&mut self) -> Result<(), RunError> {
        while let Some(waiting) = self.receiver.pop() {
            self.shared.ledger.taken();
            self.look_at(&waiting)?;
            // The source gets its buffer back before anything else is asked of it.
            drop(waiting);
            self.shared.ledger.check(&self.receiver.counts())?;
            if self.options.max_frames.is_some_and(|max_frames| self.inferred >= max_frames) {
                self.ended = Some(Ended::MaxFrames);
                return Ok(());
            }
        }
        Ok(())
    }

    /// One frame, from the queue to the sink.
    fn look_at(&mut self, waiting: &Waiting) -> Result<(), RunError> {
        let Self { shared, options, detector, annotator, sink, detections, metrics, found, .. } = self;
        let (ledger, clock) = (&shared.ledger, &shared.clock);
        let (frame, stamps) = (&waiting.frame, &waiting.frame.stamps);
        let taken_at = clock.now();
        if shared.is_stopping() {
            ledger.dropped(Place::Hand, DropCause::Shutdown);
            return Ok(());
        }
        if options.pace == Pace::Live && taken_at.saturating_sub(stamps.captured_at) > options.max_frame_age {
            ledger.dropped(Place::Hand, DropCause::Stale);
            return Ok(());
        }
        let picture = frame.picture();
        let times = match detector.detect(&picture, found) {
            Ok(times) => times,
            Err(error) => {
                ledger.dropped(Place::Hand, DropCause::InferError);
                if self.detect_error.is_none() {
                    tracing::warn!(frame = stamps.id.0, %error, "the network failed on a frame; the stream goes on");
                    self.detect_error = Some(error);
                }
                return Ok(());
            }
        };
        ledger.inferred();
        self.inferred += 1;
        let labels = detector.labels();
        if let Some(detections) = detections {
            let mut stopwatch = Stopwatch::start();
            detections.write(&options.name, stamps, (frame.width, frame.height), found, labels)?;
            metrics.record(Stage::Write, stopwatch.lap());
        }
        let mut drawing = Duration::ZERO;
        let mut draw = |picture: &mut PictureMut<'_>| {
            if let Some(annotator) = annotator {
                let mut stopwatch = Stopwatch::start();
                annotator.annotate(picture, found, labels, stamps);
                drawing += stopwatch.lap();
            }
        };
        let mut stopwatch = Stopwatch::start();
        sink.push(&picture, stamps, &mut draw)?;
        let pushing = stopwatch.lap();
        ledger.emitted();
        let done_at = clock.now();
        metrics.record(Stage::Decode, waiting.since.saturating_sub(stamps.captured_at));
        metrics.record(Stage::Queue, taken_at.saturating_sub(waiting.since));
        metrics.record(Stage::Preprocess, times.preprocess);
        metrics.record(Stage::Infer, times.infer);
        metrics.record(Stage::Postprocess, times.postprocess);
        if annotator.is_some() {
            metrics.record(Stage::Overlay, drawing);
        }
        metrics.record(Stage::Sink, pushing.saturating_sub(drawing));
        metrics.record(Stage::Total, done_at.saturating_sub(stamps.captured_at));
        Ok(())
    }

    /// Drops what still waits.
    fn drain(&mut self) {
        while self.receiver.try_pop().is_some() {
            self.shared.ledger.taken();
            self.shared.ledger.dropped(Place::Hand, DropCause::Shutdown);
        }
    }

    /// Finalises what was written; both are tried whatever becomes of the other.
    fn finish(&mut self) -> Result<(), RunError> {
        let sink = self.sink.finish().map_err(RunError::from);
        let detections = self.detections.as_mut().map_or(Ok(()), |detections| detections.finish().map_err(RunError::from));
        sink.and(detections)
    }
}
