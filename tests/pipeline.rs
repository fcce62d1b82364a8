//! The runner with a source, a network and a sink made of a few lines each: however a run ends, every frame is
//! accounted for and everything written is finalised. Then pipeline files through the binary.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
mod counting;

use counting::Counting;
use fovea::detection::{BBox, ClassId, Detection};
use fovea::frame::{
    ColorInfo, Frame, FrameId, FrameMemory, OwnedPlanes, PictureError, PictureMut, PictureRef, PixelFormat, PlaneMut, PlaneRef,
    Region, Stamps,
};
use fovea::pipeline::config::DEFAULT_QUEUE_CAPACITY;
use fovea::pipeline::detections::{DetectionsWriter, Output};
use fovea::pipeline::ports::{
    Detect, DetectError, Draw, DropCause, FrameSink, FrameSource, Inlet, SinkError, SourceError, StageTimes, StreamInfo,
};
use fovea::pipeline::runner::{self, Annotate, Ended, NoSink, Outcome, Progress, RunError, RunOptions, StopSignal, Stream};
use fovea::pipeline::spec::Pace;
use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output as ProcessOutput, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

thread_local! {
    /// Whether allocations of this thread count.
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
}

static N_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count(_: usize) {
    if IS_COUNTING.try_with(Cell::get).unwrap_or(false) {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { took: count, gave: |_| () };

fn counting<T>(work: impl FnOnce() -> T) -> T {
    IS_COUNTING.set(true);
    let result = work();
    IS_COUNTING.set(false);
    result
}

/// A source with a thread of its own.
struct FakeSource {
    plan: Plan,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Plan {
    n_frames: u64,
    /// Time from frame to frame.
    interval: Duration,
    /// Size of a frame.
    size: fn(u64) -> (usize, usize),
    /// Frames that are captured but cannot be mapped.
    is_broken: fn(u64) -> bool,
    /// Frames that are captured and then forgotten: a mistake.
    is_forgotten: fn(u64) -> bool,
    end: Result<(), SourceError>,
    fails_to_start: bool,
    /// Allocations of the hand-over are counted.
    is_counted: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            n_frames: 40,
            interval: Duration::ZERO,
            size: |_| (32, 24),
            is_broken: |_| false,
            is_forgotten: |_| false,
            end: Ok(()),
            fails_to_start: false,
            is_counted: false,
        }
    }
}

impl FakeSource {
    fn new(plan: Plan) -> Self {
        Self { plan, stopped: Arc::default(), thread: None }
    }
}

/// Planes that know how many frames are alive.
struct Held {
    planes: OwnedPlanes,
    n_alive: Arc<AtomicUsize>,
}

impl FrameMemory for Held {
    fn plane(&self, plane_idx: usize) -> PlaneRef<'_> {
        self.planes.plane(plane_idx)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.n_alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is to be seen in a frame, and its number in what is found there: results must not be those of another frame.
const fn shade(id: u64) -> u8 {
    id.to_le_bytes()[0]
}

/// How many buffers of a source may be in use at a time.
const MAX_HELD: usize = 3;

fn frame(id: u64, (width, height): (usize, usize), captured_at: Duration, n_alive: &Arc<AtomicUsize>) -> Frame {
    let planes = OwnedPlanes::new(vec![(vec![shade(id); width * height], width)]);
    let held = n_alive.fetch_add(1, Ordering::SeqCst) + 1;
    assert!(held <= MAX_HELD, "{held} buffers are held");
    let memory = Held { planes, n_alive: Arc::clone(n_alive) };
    let pts = Some(Duration::from_millis(40 * id));
    let stamps = Stamps { id: FrameId(id), pts, duration: None, captured_at };
    Frame::new(Box::new(memory), PixelFormat::Gray8, (width, height), ColorInfo::default(), stamps).unwrap()
}

impl FrameSource for FakeSource {
    fn start(&mut self, inlet: Arc<dyn Inlet>) -> Result<StreamInfo, SourceError> {
        if self.plan.fails_to_start {
            return Err(SourceError::Request("there is no such camera".into()));
        }
        let (plan, stopped) = (self.plan.clone(), Arc::clone(&self.stopped));
        let (width, height) = (plan.size)(0);
        self.thread = Some(thread::spawn(move || {
            let n_alive = Arc::new(AtomicUsize::new(0));
            for id in 0..plan.n_frames {
                thread::sleep(plan.interval);
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let now = inlet.now();
                inlet.captured();
                if (plan.is_broken)(id) {
                    inlet.drop_frame(DropCause::DecodeError);
                } else if !(plan.is_forgotten)(id) {
                    let frame = frame(id, (plan.size)(id), now, &n_alive);
                    let deliver = || inlet.deliver(frame);
                    let goes_on = if plan.is_counted { counting(deliver) } else { deliver() };
                    if !goes_on {
                        return;
                    }
                }
            }
            inlet.finish(plan.end);
        }));
        let color = ColorInfo::default();
        let format = PixelFormat::Gray8;
        Ok(StreamInfo { format, width, height, color, frame_rate: Some((25, 1)), duration: None, is_live: false })
    }

    fn stop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn name(&self) -> String {
        "fake".into()
    }
}

/// A network that finds one object in every frame: where, is what the frame shows.
struct FakeDetector {
    /// Pictures of the stream do not hold the region of interest.
    lacks_region: bool,
    delay: Duration,
    fails_on: fn(u64) -> bool,
    panics_on: Option<u64>,
    labels: Vec<String>,
    seen: u64,
    /// Allocations of this thread are counted from one frame to another.
    counted: std::ops::Range<u64>,
    sizes: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Default for FakeDetector {
    fn default() -> Self {
        Self {
            lacks_region: false,
            delay: Duration::ZERO,
            fails_on: |_| false,
            panics_on: None,
            labels: vec!["person".into()],
            seen: 0,
            counted: 0..0,
            sizes: Arc::default(),
        }
    }
}

impl Detect for FakeDetector {
    fn check(&self, (width, height): (usize, usize)) -> Result<(), DetectError> {
        let region = Region { x: 0, y: 0, width: width + 1, height };
        if self.lacks_region { Err(PictureError::RegionOutside { region, width, height }.into()) } else { Ok(()) }
    }

    fn detect(&mut self, picture: &PictureRef<'_>, out: &mut Vec<Detection>) -> Result<StageTimes, DetectError> {
        let id = self.seen;
        self.seen += 1;
        if !self.counted.is_empty() {
            IS_COUNTING.set(self.counted.contains(&id));
        } else {
            self.sizes.lock().unwrap().push((picture.width, picture.height));
        }
        assert!(self.panics_on != Some(id), "a mistake in the network");
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        out.clear();
        if (self.fails_on)(id) {
            return Err(DetectError::Network("no memory".into()));
        }
        let x = f32::from(picture.row(0, 0)[0]);
        out.push(Detection { bbox: BBox::new(x, 2.0, x + 3.0, 4.0), class_id: ClassId(0), score: 0.5 });
        Ok(StageTimes::default())
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }
}

/// A sink that keeps what it was given.
#[derive(Default)]
struct FakeSink {
    kept: Arc<Mutex<Vec<Stamps>>>,
    finished: Arc<AtomicUsize>,
    fails_on: Option<u64>,
    fails_to_start: bool,
    fails_to_finish: bool,
}

impl FrameSink for FakeSink {
    fn start(&mut self, _: &StreamInfo) -> Result<(), SinkError> {
        if self.fails_to_start { Err(SinkError::Request("no such folder".into())) } else { Ok(()) }
    }

    fn push(&mut self, picture: &PictureRef<'_>, stamps: &Stamps, draw: &mut Draw<'_>) -> Result<(), SinkError> {
        if self.fails_on == Some(stamps.id.0) {
            return Err(SinkError::Write("the disk is full".into()));
        }
        let mut copy = vec![0; picture.width * picture.height];
        let plane = PlaneMut { data: &mut copy, stride_bytes: picture.width };
        let planes = [plane, PlaneMut::default(), PlaneMut::default()];
        let mut copy = PictureMut::new(picture.format, picture.width, picture.height, picture.color, planes).unwrap();
        copy.copy_from(picture);
        assert_eq!(copy.plane_mut(0).data[0], shade(stamps.id.0), "the stamps are those of another frame");
        draw(&mut copy);
        self.kept.lock().unwrap().push(*stamps);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.finished.fetch_add(1, Ordering::SeqCst);
        if self.fails_to_finish { Err(SinkError::Write("the file could not be closed".into())) } else { Ok(()) }
    }

    fn name(&self) -> String {
        "fake".into()
    }
}

#[derive(Default)]
struct FakeAnnotator(Arc<AtomicUsize>);

impl Annotate for FakeAnnotator {
    fn annotate(&mut self, _: &mut PictureMut<'_>, detections: &[Detection], labels: &[String], stamps: &Stamps) {
        assert_eq!((detections.len(), labels), (1, &["person".to_owned()][..]));
        assert_eq!(detections[0].bbox.x1, f32::from(shade(stamps.id.0)), "drawn on another frame");
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn options(pace: Pace) -> RunOptions {
    RunOptions {
        name: "gate".into(),
        pace,
        queue_capacity: DEFAULT_QUEUE_CAPACITY,
        max_frame_age: Duration::from_secs(10),
        max_frames: None,
        max_time: None,
    }
}

/// What a run left behind.
struct Ran {
    outcome: Outcome,
    kept: Vec<Stamps>,
    lines: Vec<serde_json::Value>,
}

/// Runs and checks what holds for every run.
fn run(plan: Plan, detector: FakeDetector, sink: FakeSink, options: &RunOptions, stop: &StopSignal) -> Ran {
    run_watched(plan, detector, sink, options, stop, &mut |_| {})
}

fn run_watched(
    plan: Plan,
    detector: FakeDetector,
    sink: FakeSink,
    options: &RunOptions,
    stop: &StopSignal,
    progress: &mut dyn FnMut(&Progress),
) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("d.jsonl");
    let (kept, finished) = (Arc::clone(&sink.kept), Arc::clone(&sink.finished));
    let drawn = Arc::new(AtomicUsize::new(0));
    let stream = Stream {
        source: Box::new(FakeSource::new(plan)),
        detector: Box::new(detector),
        annotator: Some(Box::new(FakeAnnotator(Arc::clone(&drawn)))),
        sink: Box::new(sink),
        detections: Some(DetectionsWriter::new(Output::File(file.clone()))),
    };
    let outcome = runner::run(stream, options, stop, progress);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept = kept.lock().unwrap().clone();
    let frames = outcome.report.streams[0].frames;
    if !matches!(outcome.error, Some(RunError::Ledger(_))) {
        assert_eq!(frames.captured, frames.inferred + frames.dropped.total(), "{frames:?}");
        assert_eq!(frames.in_flight, 0, "{frames:?}");
    }
    assert_eq!(u64::try_from(lines.len()).unwrap(), frames.inferred, "one line for each inferred frame");
    for line in &lines {
        let shown = f64::from(shade(line["frame"].as_u64().unwrap()));
        assert_eq!(line["detections"][0]["box"][0].as_f64(), Some(shown), "found in another frame: {line}");
    }
    assert_eq!(drawn.load(Ordering::SeqCst), kept.len());
    assert!(finished.load(Ordering::SeqCst) > 0, "the sink was not finished");
    assert!(kept.is_sorted_by_key(|stamps| stamps.id) && kept.iter().all(|s| s.pts == Some(Duration::from_millis(40 * s.id.0))));
    Ran { outcome, kept, lines }
}

#[test]
fn at_pace_max_every_frame_arrives_in_order() {
    let detector = FakeDetector { delay: Duration::from_millis(1), ..FakeDetector::default() };
    let ran = run(Plan::default(), detector, FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    assert!(ran.outcome.error.is_none(), "{:?}", ran.outcome.error);
    assert_eq!(ran.outcome.ended, Ended::EndOfStream);
    let frames = ran.outcome.report.streams[0].frames;
    assert_eq!((frames.captured, frames.inferred, frames.dropped.total()), (40, 40, 0));
    assert_eq!(ran.kept.iter().map(|stamps| stamps.id.0).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    let line = &ran.lines[7];
    assert_eq!((&line["stream"], &line["frame"], &line["pts_ns"]), (&"gate".into(), &7.into(), &280_000_000.into()));
    assert_eq!(line["detections"][0]["box"], serde_json::json!([7.0, 2.0, 10.0, 4.0]));
}

#[test]
fn at_pace_live_the_newest_frame_wins() {
    let plan = Plan { interval: Duration::from_millis(2), ..Plan::default() };
    let detector = FakeDetector { delay: Duration::from_millis(11), ..FakeDetector::default() };
    let ran = run(plan, detector, FakeSink::default(), &options(Pace::Live), &StopSignal::default());
    let frames = ran.outcome.report.streams[0].frames;
    assert_eq!(frames.captured, 40);
    let lost = frames.dropped.of(DropCause::QueueFull);
    assert!(lost >= 5 && frames.dropped.total() == lost, "{frames:?}");
    // The last frame is the newest of all: it is never displaced.
    assert_eq!(ran.kept.last().unwrap().id, FrameId(39));
}

#[test]
fn a_frame_that_waited_too_long_is_stale() {
    let plan = Plan { n_frames: 3, interval: Duration::from_millis(40), ..Plan::default() };
    let detector = FakeDetector { delay: Duration::from_millis(300), ..FakeDetector::default() };
    let options = RunOptions { max_frame_age: Duration::from_millis(60), ..options(Pace::Live) };
    let ran = run(plan, detector, FakeSink::default(), &options, &StopSignal::default());
    let frames = ran.outcome.report.streams[0].frames;
    assert!(frames.dropped.of(DropCause::Stale) >= 1, "{frames:?}");
}

#[test]
fn frames_that_cannot_be_read_are_counted_and_the_stream_goes_on() {
    let plan = Plan { is_broken: |id| id % 10 == 3, ..Plan::default() };
    let ran = run(plan, FakeDetector::default(), FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    let frames = ran.outcome.report.streams[0].frames;
    assert!(ran.outcome.error.is_none());
    assert_eq!((frames.inferred, frames.dropped.of(DropCause::DecodeError)), (36, 4));
}

#[test]
fn a_network_that_fails_now_and_then_does_not_end_the_stream() {
    let fails = |fails_on| {
        let detector = FakeDetector { fails_on, ..FakeDetector::default() };
        run(Plan::default(), detector, FakeSink::default(), &options(Pace::Max), &StopSignal::default()).outcome
    };
    let outcome = fails(|id| id % 4 == 0);
    assert!(outcome.error.is_none());
    assert_eq!(outcome.report.streams[0].frames.dropped.of(DropCause::InferError), 10);
    let outcome = fails(|_| true);
    let error = RunError::Detect(DetectError::Network("no memory".into())).to_string();
    assert_eq!(outcome.error.as_ref().map(ToString::to_string), Some(error));
    assert_eq!(outcome.report.ended, "error");
}

#[test]
fn a_full_disk_ends_the_run_and_what_was_written_stays() {
    let sink = FakeSink { fails_on: Some(10), ..FakeSink::default() };
    let ran = run(Plan::default(), FakeDetector::default(), sink, &options(Pace::Max), &StopSignal::default());
    let error = ran.outcome.error.unwrap();
    assert!(matches!(&error, RunError::Sink(_)) && !error.is_request(), "{error}");
    assert_eq!((ran.kept.len(), ran.lines.len()), (10, 11));
    assert_eq!(ran.outcome.report.error.as_deref(), Some("the disk is full"));
    assert!(ran.outcome.report.streams[0].frames.dropped.of(DropCause::Shutdown) >= 1);
}

#[test]
fn sinks_that_cannot_start_or_finish() {
    let sink = FakeSink { fails_to_start: true, ..FakeSink::default() };
    let ran = run(Plan::default(), FakeDetector::default(), sink, &options(Pace::Max), &StopSignal::default());
    assert!(ran.outcome.error.unwrap().is_request() && ran.lines.is_empty());
    let sink = FakeSink { fails_to_finish: true, ..FakeSink::default() };
    let ran = run(Plan::default(), FakeDetector::default(), sink, &options(Pace::Max), &StopSignal::default());
    assert!(matches!(ran.outcome.error, Some(RunError::Sink(_))));
    assert_eq!(ran.lines.len(), 40);
}

/// Before anything is written.
#[test]
fn a_region_outside_of_the_frames_is_a_wrong_request() {
    let detector = FakeDetector { lacks_region: true, ..FakeDetector::default() };
    let ran = run(Plan::default(), detector, FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    let error = ran.outcome.error.unwrap();
    assert!(error.is_request() && error.to_string().contains("at 0,0 does not lie in a picture of"), "{error}");
    assert!(ran.kept.is_empty() && ran.lines.is_empty());
}

#[test]
fn detections_that_cannot_be_written_end_the_run() {
    let finished = Arc::new(AtomicUsize::new(0));
    let stream = Stream {
        source: Box::new(FakeSource::new(Plan::default())),
        detector: Box::new(FakeDetector::default()),
        annotator: None,
        sink: Box::new(FakeSink { finished: Arc::clone(&finished), ..FakeSink::default() }),
        detections: Some(DetectionsWriter::new(Output::File("/dev/full".into()))),
    };
    let outcome = runner::run(stream, &options(Pace::Max), &StopSignal::default(), &mut |_| {});
    let error = outcome.error.unwrap().to_string();
    assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    assert_eq!(finished.load(Ordering::SeqCst), 1);
    let frames = outcome.report.streams[0].frames;
    assert_eq!(frames.captured, frames.inferred + frames.dropped.total());
}

#[test]
fn a_source_that_breaks_delivers_what_it_had() {
    let plan = Plan { n_frames: 12, end: Err(SourceError::Stream("the file is truncated".into())), ..Plan::default() };
    let ran = run(plan, FakeDetector::default(), FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    assert_eq!((ran.kept.len(), ran.lines.len()), (12, 12));
    let error = ran.outcome.error.unwrap();
    assert!(!error.is_request() && error.to_string() == "the file is truncated", "{error}");
}

#[test]
fn a_source_that_cannot_start_is_a_wrong_request() {
    let plan = Plan { fails_to_start: true, ..Plan::default() };
    let ran = run(plan, FakeDetector::default(), FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    assert!(ran.outcome.info.is_none() && ran.outcome.error.unwrap().is_request());
}

#[test]
fn limits_and_signals_end_a_run_while_frames_wait() {
    let endless = || Plan { n_frames: u64::MAX, ..Plan::default() };
    let slow = || FakeDetector { delay: Duration::from_millis(2), ..FakeDetector::default() };
    for pace in [Pace::Max, Pace::Live] {
        let max_frames = RunOptions { max_frames: Some(9), ..options(pace) };
        let ran = run(endless(), slow(), FakeSink::default(), &max_frames, &StopSignal::default());
        assert_eq!((ran.outcome.ended, ran.kept.len()), (Ended::MaxFrames, 9), "{pace:?}");
        let max_time = RunOptions { max_time: Some(Duration::from_millis(120)), ..options(pace) };
        let ran = run(endless(), slow(), FakeSink::default(), &max_time, &StopSignal::default());
        assert_eq!(ran.outcome.ended, Ended::MaxTime);
        let (stop, from_progress) = (StopSignal::default(), StopSignal::default());
        let asked = from_progress.clone();
        let mut n_calls = 0;
        let mut progress = |progress: &Progress| {
            n_calls += 1;
            let balance = progress.balance;
            assert_eq!(balance.captured, balance.inferred + balance.dropped.total() + balance.in_flight());
            if balance.inferred > 5 {
                asked.stop();
            }
        };
        let ran = run_watched(endless(), slow(), FakeSink::default(), &options(pace), &from_progress, &mut progress);
        assert!(ran.outcome.ended == Ended::Stopped && ran.outcome.error.is_none() && ran.lines.len() > 5 && n_calls > 0);
        // At pace max the source fills the queue before the run stops; at pace live the one that waits may be taken.
        if pace == Pace::Max {
            assert!(ran.outcome.report.streams[0].frames.dropped.of(DropCause::Shutdown) >= 1);
        }
        assert!(!stop.is_stopped());
    }
}

#[test]
fn the_size_may_change_in_mid_stream() {
    let plan = Plan { size: |id| if id < 20 { (32, 24) } else { (321, 241) }, ..Plan::default() };
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let detector = FakeDetector { sizes: Arc::clone(&sizes), ..FakeDetector::default() };
    let ran = run(plan, detector, FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    assert!(ran.outcome.error.is_none());
    let sizes = sizes.lock().unwrap();
    assert_eq!((sizes[19], sizes[20], sizes.len()), ((32, 24), (321, 241), 40));
    assert_eq!(
        (&ran.lines[19]["width"], &ran.lines[20]["width"], &ran.lines[20]["height"]),
        (&32.into(), &321.into(), &241.into())
    );
}

#[test]
fn a_frame_that_gets_lost_fails_the_run() {
    let plan = Plan { is_forgotten: |id| id == 17, ..Plan::default() };
    let ran = run(plan, FakeDetector::default(), FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    let error = ran.outcome.error.unwrap();
    assert!(matches!(&error, RunError::Ledger(_)), "{error}");
    assert!(error.to_string().contains("captured 40, delivered 39"), "{error}");
    assert_eq!(ran.outcome.report.streams[0].frames.in_flight, 1);
}

#[test]
fn a_panic_in_the_inference_thread_is_an_error_and_files_are_finalised() {
    let detector = FakeDetector { panics_on: Some(5), ..FakeDetector::default() };
    let ran = run(Plan::default(), detector, FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    assert!(matches!(ran.outcome.error, Some(RunError::Panicked)));
    assert_eq!(ran.lines.len(), 5);
}

struct BrokenAnnotator;

impl Annotate for BrokenAnnotator {
    fn annotate(&mut self, _: &mut PictureMut<'_>, _: &[Detection], _: &[String], stamps: &Stamps) {
        assert!(stamps.id != FrameId(5), "a mistake in the overlay");
    }
}

#[test]
fn a_panic_after_inference_is_no_fault_of_the_ledger() {
    let (kept, finished) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    let stream = Stream {
        source: Box::new(FakeSource::new(Plan::default())),
        detector: Box::new(FakeDetector::default()),
        annotator: Some(Box::new(BrokenAnnotator)),
        sink: Box::new(FakeSink { kept: Arc::clone(&kept), finished: Arc::clone(&finished), ..FakeSink::default() }),
        detections: None,
    };
    let outcome = runner::run(stream, &options(Pace::Max), &StopSignal::default(), &mut |_| {});
    assert!(matches!(outcome.error, Some(RunError::Panicked)), "{:?}", outcome.error);
    let frames = outcome.report.streams[0].frames;
    assert_eq!((frames.inferred, kept.lock().unwrap().len(), finished.load(Ordering::SeqCst)), (6, 5, 1));
    assert_eq!((frames.dropped.of(DropCause::InferError), frames.in_flight), (0, 0));
    assert_eq!(frames.captured, frames.inferred + frames.dropped.total());
}

/// After a warm-up of 50 frames the queue, the ledger, the metrics, the detections file and the loop around them
/// allocate nothing, neither on the source's thread (every hand-over is counted) nor on the inference thread. The
/// source, the network, the overlay and the sink are not part of it.
#[test]
fn our_own_stages_do_not_allocate_per_frame() {
    for pace in [Pace::Max, Pace::Live] {
        let before = N_ALLOCATIONS.load(Ordering::Relaxed);
        let plan = Plan { n_frames: u64::MAX, interval: Duration::from_micros(20), is_counted: true, ..Plan::default() };
        let stream = Stream {
            source: Box::new(FakeSource::new(plan)),
            detector: Box::new(FakeDetector { counted: 50..150, ..FakeDetector::default() }),
            annotator: None,
            sink: Box::new(NoSink),
            detections: Some(DetectionsWriter::new(Output::File("/dev/null".into()))),
        };
        let options = RunOptions { max_frames: Some(200), ..options(pace) };
        let outcome = runner::run(stream, &options, &StopSignal::default(), &mut |_| {});
        assert!(outcome.error.is_none() && outcome.report.streams[0].frames.inferred >= 150, "{outcome:?}");
        let allocated = N_ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert!(allocated <= WARM_UP, "{pace:?}: {allocated} allocations");
    }
    let before = N_ALLOCATIONS.load(Ordering::Relaxed);
    counting(|| drop(Vec::<u8>::with_capacity(std::hint::black_box(9))));
    assert!(N_ALLOCATIONS.load(Ordering::Relaxed) > before, "the counter counts");
}

/// Allocations that a thread makes once: when it first waits.
const WARM_UP: u64 = 8;

#[test]
fn the_report_is_the_one_of_the_contract() {
    let ran = run(Plan::default(), FakeDetector::default(), FakeSink::default(), &options(Pace::Max), &StopSignal::default());
    let report: serde_json::Value = serde_json::from_str(&ran.outcome.report.to_json()).unwrap();
    assert_eq!(report["pace"], "max");
    let stream = &report["streams"][0];
    assert_eq!(
        (&stream["name"], &stream["frames"]["captured"], &stream["frames"]["in_flight"]),
        (&"gate".into(), &40.into(), &0.into())
    );
    for cause in DropCause::ALL {
        assert_eq!(stream["frames"]["dropped"][cause.name()], 0);
    }
    for rate in ["captured", "inferred", "emitted"] {
        assert!(stream["fps"][rate].as_f64().unwrap() > 0.0);
    }
    for stage in ["decode", "preprocess", "infer", "postprocess", "overlay", "total"] {
        for quantile in ["p50", "p90", "p99", "max"] {
            assert!(stream["latency_ms"][stage][quantile].is_f64(), "{stage} {quantile}");
        }
    }
    for figure in ["cpu_seconds", "cpu_ms_per_frame", "rss_bytes"] {
        assert!(report[figure].is_number(), "{figure}");
    }
}

fn fovea(arguments: &[&str]) -> ProcessOutput {
    Command::new(env!("CARGO_BIN_EXE_fovea")).args(arguments).output().unwrap()
}

/// Runs the binary, expects an exit code and words in what it says.
fn expect(arguments: &[&str], code: i32, words: &[&str]) {
    let output = fovea(arguments);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// The shipped model; without it the tests that need one say so.
fn model() -> Option<String> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/default");
    if cfg!(not(all(feature = "gst", feature = "opencv"))) || !dir.is_dir() {
        eprintln!("skipped: needs GStreamer, OpenCV and {}", dir.display());
        return None;
    }
    dir.to_str().map(str::to_owned)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Waits until a few frames are through.
fn wait_for_lines(detections: &str) {
    for _ in 0..600 {
        thread::sleep(Duration::from_millis(50));
        if std::fs::read_to_string(detections).is_ok_and(|text| text.lines().count() >= 3) {
            return;
        }
    }
}

/// Runs one stream through the binary; gives the exit code, the report, the lines of detections.
fn stream(folder: &Path, model: &str, arguments: &[&str], interrupt: bool) -> (i32, serde_json::Value, usize) {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (lines, report) = (file("d.jsonl"), file("new/r.json"));
    // Started from a script's `&`, a test has this signal ignored, and so would the program.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_fovea")]);
    command.args(["run", "--model", model, "--threads", "1", "--detections", &lines, "--report", &report]).args(arguments);
    let mut child = command.spawn().unwrap();
    if interrupt {
        wait_for_lines(&lines);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    }
    let code = child.wait().unwrap().code().unwrap();
    let text = std::fs::read_to_string(&lines).unwrap();
    for line in text.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    (code, json(Path::new(&report)), text.lines().count())
}

#[test]
fn a_run_from_the_test_source_to_a_video_and_back() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("deep/er/a.mkv");
    let (code, report, lines) = stream(
        folder.path(),
        &model,
        &["--source", "test://?width=321&height=241&frames=12", "--sink", video.to_str().unwrap()],
        false,
    );
    let frames = &report["streams"][0]["frames"];
    assert_eq!(
        (code, &report["pace"], &frames["captured"], &frames["inferred"], lines),
        (0, &"max".into(), &12.into(), &12.into(), 12)
    );
    let (code, report, lines) = stream(folder.path(), &model, &["--source", video.to_str().unwrap()], false);
    assert_eq!((code, &report["streams"][0]["frames"]["inferred"], lines), (0, &12.into(), 12));
}

#[test]
fn a_truncated_video_is_used_and_reported_as_an_error() {
    let Some(model) = model() else { return };
    for name in ["a.mkv", "a.mp4"] {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join(name);
        let video = video.to_str().unwrap();
        // An MP4 file as cameras and editors write it has its index in front.
        let muxer = if name == "a.mp4" { "mp4mux faststart=true" } else { "matroskamux" };
        let source = format!(
            "launch:videotestsrc num-buffers=12 pattern=snow ! video/x-raw,format=I420,width=320,height=240,framerate=25/1 ! tee \
             name=t t. ! queue ! x264enc tune=zerolatency ! {muxer} ! filesink async=false location={video} t. ! queue"
        );
        assert_eq!(stream(folder.path(), &model, &["--source", &source], false).0, 0);
        let bytes = std::fs::read(video).unwrap();
        std::fs::write(video, &bytes[..bytes.len() * 7 / 10]).unwrap();
        let (code, report, lines) = stream(folder.path(), &model, &["--source", video], false);
        let frames = &report["streams"][0]["frames"];
        assert_eq!((code, &report["ended"]), (1, &"error".into()), "{name}: {report}");
        assert_eq!((&frames["captured"], &frames["inferred"]), (&lines.into(), &lines.into()), "{name}: {report}");
        assert!(report["error"].as_str().unwrap().contains("cut off"), "{name}: {report}");
        assert!((1..12).contains(&lines), "{name}: {report}");
    }
}

#[test]
fn an_interrupt_finalises_everything() {
    let Some(model) = model() else { return };
    for (pace, container) in [("max", "mp4"), ("live", "mkv")] {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a").with_extension(container);
        let video = video.to_str().unwrap();
        let (code, report, lines) =
            stream(folder.path(), &model, &["--source", "test://?width=64&height=48", "--pace", pace, "--sink", video], true);
        let frames = &report["streams"][0]["frames"];
        assert_eq!((code, &report["ended"], &frames["in_flight"]), (0, &"stopped".into(), &0.into()));
        assert_eq!(frames["inferred"].as_u64().unwrap(), u64::try_from(lines).unwrap());
        // The file is complete: as many frames come out again.
        let again = tempfile::tempdir().unwrap();
        let (code, report, _) = stream(again.path(), &model, &["--source", video], false);
        assert_eq!((code, report["streams"][0]["frames"]["inferred"].as_u64()), (0, Some(u64::try_from(lines).unwrap())));
    }
}

/// An X server without a screen, whose picture lies in a file (X11's XWDFile.h): what a program shows is there.
struct Screen {
    server: Child,
    name: String,
    folder: tempfile::TempDir,
}

impl Screen {
    /// `None` after saying that the test is skipped.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("Xvfb");
        command
            .args(["-displayfd", "1", "-screen", "0", "640x480x24", "-noreset", "-nolisten", "tcp", "-fbdir"])
            .arg(folder.path());
        let Ok(mut server) = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn() else {
            eprintln!("skipped: the screen (there is no Xvfb; `scripts/setup --test` installs it)");
            return None;
        };
        let mut number = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Some(Self { server, name: format!(":{}", number.trim()), folder })
    }

    /// Pixels of a colour that is near to this one.
    fn count(&self, wanted: [u8; 3]) -> usize {
        let bytes = std::fs::read(self.folder.path().join("Xvfb_screen0")).unwrap();
        let number = |idx: usize| u32::from_be_bytes(bytes[4 * idx..4 * idx + 4].try_into().unwrap()) as usize;
        let (header, n_colors) = (number(0), number(19));
        let pixels = bytes[header + 12 * n_colors..].as_chunks::<4>().0.iter();
        let is_near = |pixel: &&[u8; 4]| (0..3).all(|i| pixel[2 - i].abs_diff(wanted[i]) < 24);
        pixels.filter(is_near).count()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn pictures_are_shown_on_a_screen() {
    let (Some(model), Some(screen)) = (model(), Screen::start()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (lines, report) = (file("d.jsonl"), file("r.json"));
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "--unset=WAYLAND_DISPLAY", &format!("DISPLAY={}", screen.name)]);
    command.args([env!("CARGO_BIN_EXE_fovea"), "run", "--model", &model, "--threads", "1", "--sink", "display"]);
    command.args(["--source", "test://?width=320&height=240&pattern=smpte", "--detections", &lines, "--report", &report]);
    let mut child = command.spawn().unwrap();
    wait_for_lines(&lines);
    // Bars of full yellow and blue: a seventh of the width, two thirds of the height.
    let bar = 320 / 7 * 160;
    let is_there = || [[252, 252, 0], [0, 0, 252]].into_iter().all(|color| screen.count(color) > bar * 3 / 4);
    let is_shown = (0..200).any(|_| {
        thread::sleep(Duration::from_millis(50));
        is_there()
    });
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(is_shown, "yellow {}, blue {} pixels", screen.count([252, 252, 0]), screen.count([0, 0, 252]));
    let report = json(Path::new(&report));
    assert_eq!((&report["ended"], report["streams"][0]["frames"]["in_flight"].as_u64()), (&"stopped".into(), Some(0)));
}

/// Whoever means it gets out, whatever the program waits for: here, for somebody who reads a pipe.
#[test]
fn a_second_interrupt_leaves_at_once() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let person = Path::new(&model).with_file_name("person");
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_fovea"), "run", "--threads", "1", "--model"]).arg(person);
    command.args(["--source", "test://?width=64&height=48", "--detections"]).arg(&pipe);
    let mut child = command.spawn().unwrap();
    let reader = std::fs::File::open(&pipe).unwrap();
    // It stands still once the pipe is full: neither user nor system time passes.
    let stat = format!("/proc/{}/stat", child.id());
    let ticks = || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        let behind_name = stat.rsplit_once(')').unwrap().1.to_owned();
        behind_name.split_whitespace().skip(11).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut before = ticks();
    loop {
        thread::sleep(Duration::from_millis(1500));
        let now = ticks();
        if now == before && now[0] != "0" {
            break;
        }
        before = now;
    }
    let interrupt = || assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    interrupt();
    thread::sleep(Duration::from_millis(300));
    interrupt();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(reader);
}

/// `nohup` ignores the signal of a closed terminal before it starts the program.
#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (lines, report) = (file("d.jsonl"), file("r.json"));
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' HUP; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_fovea"),
        "run",
        "--model",
        &model,
        "--threads",
        "1",
    ]);
    command.args(["--source", "test://?width=64&height=48", "--pace", "live", "--seconds", "2"]);
    let mut child = command.args(["--detections", &lines, "--report", &report]).spawn().unwrap();
    wait_for_lines(&lines);
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(json(Path::new(&report))["ended"], "max_time");
}

/// A terminal that is gone, a `head` that has seen enough.
#[test]
fn nobody_listens_to_stderr_and_nothing_is_lost() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("r.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fovea"));
    command.args(["run", "--model", &model, "--source", "test://?width=64&height=48&frames=9", "--report"]).arg(&report);
    let mut child = command.env("FOVEA_LOG", "trace").stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(json(&report)["streams"][0]["frames"]["inferred"], 9);
}

/// Whoever reads a pipe sees its end once, and all lines before it.
#[test]
fn detections_go_into_a_named_pipe() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    let source = "test://?width=64&height=48&frames=5";
    expect(
        &["run", "--model", &model, "--source", source, "--detections", pipe.to_str().unwrap()],
        0,
        &["is a pipe", "5 inferred"],
    );
    assert_eq!(reader.join().unwrap().lines().count(), 5);
}

/// Ten times the frames take no more memory.
#[test]
fn memory_does_not_grow_with_the_number_of_frames() {
    let Some(model) = model() else { return };
    let person = Path::new(&model).with_file_name("person");
    let peak = |n_frames: u32| {
        let folder = tempfile::tempdir().unwrap();
        let (source, video) = (format!("test://?width=320&height=240&frames={n_frames}"), folder.path().join("a.mkv"));
        let arguments = ["--source", &source, "--sink", video.to_str().unwrap()];
        let (code, report, _) = stream(folder.path(), person.to_str().unwrap(), &arguments, false);
        assert_eq!(code, 0);
        report["peak_rss_bytes"].as_u64().unwrap()
    };
    let (few, many) = (peak(200), peak(2000));
    assert!(many < few + 8_000_000, "{few} bytes for 200 frames, {many} for 2,000");
}

#[test]
fn a_full_disk_is_an_error_and_the_report_is_written() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("r.json");
    let arguments = ["run", "--model", &model, "--source", "test://?frames=9", "--detections", "/dev/full", "--report"];
    expect(&[&arguments[..], &[report.to_str().unwrap()]].concat(), 1, &["/dev/full", "No space left"]);
    let report = json(&report);
    assert_eq!(report["ended"], "error");
    assert!(report["error"].as_str().unwrap().contains("/dev/full"));
}

/// Who reads the file reads whole lines.
#[test]
fn a_line_that_finds_no_room_is_taken_back() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("d.jsonl");
    // A file may have 512 or 1,024 bytes, as the shell counts: a few lines, and a part of one.
    let limited = r#"trap '' XFSZ; ulimit -f 1; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_fovea"), "run", "--model", &model, "--threads", "1", "--detections"]);
    command.arg(&lines).args(["--source", "test://?width=64&height=48&frames=50", "--report", "-"]);
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("d.jsonl") && message.contains("what was written before is kept"), "{message}");
    let text = std::fs::read_to_string(&lines).unwrap();
    assert!(text.ends_with('\n') && (256..1024).contains(&text.len()), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
}

/// Failures of the real world: exit code, words, and that a password stays unsaid.
#[test]
fn what_breaks_a_run_decides_its_exit_code() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let report = file("r.json");
    let run = |arguments: &[&str], code: i32, words: &[&str]| {
        expect(&[&["run", "--model", &model, "--threads", "1", "--report", &report], arguments].concat(), code, words);
    };
    // Port 9 of this machine refuses.
    for url in ["rtsp://admin:canary@127.0.0.1:9/ch1", "rtsp://admin:canary#1@127.0.0.1:9/ch1", "http://127.0.0.1:9/a.mp4"] {
        run(&["--source", url], 1, &["127.0.0.1:9", "error:"]);
        let report = std::fs::read_to_string(&report).unwrap();
        assert!(report.contains("127.0.0.1:9") && !report.contains("canary"), "{report}");
        let said = fovea(&["run", "--model", &model, "--source", url]);
        assert!(!String::from_utf8_lossy(&said.stderr).contains("canary"));
    }
    run(&["--source", &file("missing.mp4")], 2, &["cannot read", "missing.mp4"]);
    run(&["--source", "test://?frames=2", "--sink", "/proc/x/y.mp4"], 2, &["/proc/x", "may write"]);
    written(folder.path(), "no.png", "not a picture");
    run(&["--source", folder.path().to_str().unwrap()], 2, &["none of 1 pictures can be read"]);
    run(&["--source", "test://?frames=2"], 0, &["wrote", "r.json"]);
    expect(&["run", "--model", &model, "--source", "test://?frames=2"], 0, &["nothing was asked for", "--sink"]);
    let page =
        written(folder.path(), "login.html", "<!DOCTYPE html>\n<html><head><title>Login</title></head><body></body></html>");
    run(&["--source", &page], 2, &["login.html", "this is no video"]);
    run(&["--source", "test://?frames=2", "--detections", "/dev/null"], 0, &["2 inferred"]);
}

/// The video finds no room; detections and report are written all the same.
#[test]
fn a_full_disk_under_the_video_keeps_detections_and_report() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("full.mkv");
    std::os::unix::fs::symlink("/dev/full", &video).unwrap();
    let source = ["--source", "test://?width=640&height=480&frames=60&pattern=snow", "--sink", video.to_str().unwrap()];
    let (code, report, lines) = stream(folder.path(), &model, &source, false);
    assert_eq!((code, &report["ended"]), (1, &"error".into()));
    assert!(report["error"].as_str().unwrap().contains("full.mkv"), "{report}");
    assert_eq!(report["streams"][0]["frames"]["inferred"].as_u64(), Some(u64::try_from(lines).unwrap()));
    assert!(video.is_symlink() && lines > 0);
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn wrong_requests_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| written(folder.path(), name, text);
    for command in ["run", "check"] {
        expect(&[command, &file("a.toml", "[model]\ntreads = 2")], 2, &["a.toml, line 2", "`treads`", "did you mean `threads`?"]);
        expect(&[command, &file("b.toml", "[model]\nthreads = 'two'")], 2, &["b.toml, line 2", "`threads`", "invalid type"]);
        expect(&[command, "missing.toml"], 2, &["cannot read missing.toml", "pipelines/"]);
        expect(&[command, &file("c.toml", "")], 2, &["no source", "--source"]);
    }
    expect(&["run"], 2, &["no source"]);
    expect(&["run", "--source", "missing.mp4"], 2, &["cannot read missing.mp4", "--source"]);
    expect(&["run", "--source", "ftp://me:canary@host/x"], 2, &["`ftp`", "a source is"]);
    expect(&["run", "--source", "test://", "--model", "nowhere"], 2, &["nowhere is not a folder", "manifest.toml"]);
    expect(&["run", "--source", "test://", "--max-frames", "0"], 2, &["--max-frames"]);
    expect(&["run", "--source", "rtsp://h:99999/1"], 2, &["`99999` is no port"]);
    expect(&["run", "rtsp://me:canary@h/1"], 2, &["no pipeline file", "--source"]);
    let video = file("a.mp4", "\0\0\0\x18ftypmp42");
    expect(&["run", &video], 2, &["no pipeline file", "--source", "a.mp4"]);
    let said = fovea(&["run", "--source", "test://", "--report", "rtsp://me:canary@h/1"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("a URL is neither") && !said.contains("canary"), "{said}");
    expect(&["run", "--source", "test://", "--sink", "x.gif"], 2, &[".gif", ".mkv"]);
    expect(&["bench", "--source", "v4l2:///dev/video99"], 2, &["/dev/video99 does not exist", "plugged in"]);
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    expect(&["run", "--source", empty.to_str().unwrap()], 2, &["holds no pictures"]);
    expect(&["run", "--source", "test://", "--threads", "257"], 2, &["--threads", "0 to 256"]);
    let picture = file("a.jpg", "a picture");
    expect(&["detect", "--model", "m", "--json", &picture, &picture], 2, &["a.jpg would be overwritten"]);
    expect(&["inspect", "m", "--json", &format!("{picture}.x"), "--dot", &format!("{picture}.x")], 2, &["would be overwritten"]);
    let video = file("video.mp4", "the only copy");
    let same = folder.path().join("empty/../video.mp4");
    expect(&["run", "--source", &video, "--sink", same.to_str().unwrap()], 2, &["would be overwritten"]);
    assert_eq!(std::fs::read_to_string(&video).unwrap(), "the only copy");
    let twice = folder.path().join("out.json");
    let twice = twice.to_str().unwrap();
    expect(&["run", "--source", &video, "--report", twice, "--detections", twice], 2, &["out.json would be overwritten"]);
    let (one, other) = (folder.path().join("new/out.json"), folder.path().join("./new/../new/./out.json"));
    let outputs = ["--report", one.to_str().unwrap(), "--detections", other.to_str().unwrap()];
    expect(&[&["run", "--source", &video], &outputs[..]].concat(), 2, &["out.json would be overwritten"]);
    expect(&["run", "--source", &video, "--report", "-", "--detections", "-"], 2, &["mixed on standard output"]);
    let own = file("own.toml", "[source]\nuri = 'test://'");
    expect(&["run", &own, "--detections", &own], 2, &["own.toml would be overwritten"]);
    let (data, labels) = (folder.path().to_str().unwrap(), file("annotations.json", "{}"));
    expect(&["eval", "--model", "m", "--data", data, "--json", &labels], 2, &["annotations.json would be overwritten"]);
    let network = file("net.onnx", "a network");
    expect(&["bench", "--model-only", &network, "--json", &network], 2, &["net.onnx would be overwritten"]);
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let manifest = written(&model, "manifest.toml", "schema = 1");
    let model = model.to_str().unwrap();
    for arguments in [
        &["inspect", model, "--json", &manifest][..],
        &["bench", "--model-only", model, "--json", &manifest],
        &["eval", "--model", model, "--data", data, "--json", &manifest],
        &["detect", "--model", model, "--json", &manifest, &picture],
        &["run", "--source", "test://", "--model", model, "--report", &manifest],
    ] {
        expect(arguments, 2, &["manifest.toml would be overwritten"]);
    }
    let launch = format!("launch:filesrc location={video} ! decodebin");
    expect(&["run", "--source", &launch, "--sink", &video], 2, &["video.mp4 would be overwritten"]);
    let of_itself = file("itself.toml", "[source]\nuri = 'test://'\n[output]\nreport = 'itself.toml'");
    expect(&["run", &of_itself], 2, &["itself.toml would be overwritten"]);
    expect(&["check", &of_itself], 2, &["itself.toml would be overwritten"]);
    assert!(std::fs::read_to_string(&own).unwrap().contains("test://"), "what is read stays as it is");
    expect(
        &["run", "--source", "v4l2:///dev/video99", "--reconnect", "1"],
        1,
        &["/dev/video99: not there yet; waiting for it for 1 s", "/dev/video99: not there after 1 s"],
    );
    for url in [
        "ftp://me:canary@host/x",
        "ftp://me:canary#1@host/x",
        "ftp://me:can/canary#1@host/x",
        "rtsp//me:canary@host/x",
        "rtsp:/me:canary@host/x",
        "me:canary@host/x",
        "rtsp://me:canary@host/x",
        "rtsp://me:'ry canary@host/x",
        "me:'ry \"canary@host/x",
        "file://me:canary@host/x",
    ] {
        // In its place, and where somebody puts it by mistake.
        for arguments in [&["run", "--source", url][..], &["run", url], &["check", url], &["run", "a.toml", url]] {
            if url.starts_with("rtsp://") && arguments.contains(&"--source") {
                continue;
            }
            let output = fovea(arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(2) && !said.contains("canary"), "{arguments:?}: {said}");
        }
        for arguments in [&["run", "--source", "test://", "--model", url][..], &["detect", "--model", "m", url]] {
            let said = fovea(arguments).stderr;
            assert!(!String::from_utf8_lossy(&said).contains("canary"), "{arguments:?}");
        }
    }
    expect(&["run", "video.avi"], 2, &["cannot read video.avi", "--source names a video"]);
    expect(&["detect", "--model", "m", empty.to_str().unwrap()], 2, &["is a folder", "fovea run --source"]);
    for command in ["run", "bench", "check"] {
        expect(&[command, "--help"], 0, &["Example", &format!("fovea {command} ")]);
    }
}

#[test]
fn check_explains_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[source]\nuri = 'missing.mp4'\n[model]\ndir = 'm'\n[sink]\nuri = '/proc/x/y.mp4'\n[output]\nreport = 'r.json'";
    let file = written(folder.path(), "a.toml", text);
    expect(
        &["check", &file],
        2,
        &["ok    file", "FAIL  source", "missing.mp4", "FAIL  model", "FAIL  sink", "ok    report", "lines above say FAIL"],
    );
    // Causes are told once.
    let said = String::from_utf8_lossy(&fovea(&["check", &file]).stdout).into_owned();
    for line in said.lines() {
        for part in line.split([':', ';']).map(str::trim).filter(|part| part.len() > 12) {
            assert_eq!(line.matches(part).count(), 1, "{part:?} in {line}");
        }
    }
    assert!(!folder.path().join("r.json").exists(), "check leaves nothing behind");
    for (text, words) in [
        ("[output]\nreport = 'x.json'\ndetections = 'x.json'", "x.json would be overwritten"),
        ("[output]\nreport = '-'\ndetections = '-'", "mixed on standard output"),
    ] {
        let file = written(folder.path(), "b.toml", &format!("[source]\nuri = 'test://'\n{text}"));
        expect(&["check", &file], 2, &["FAIL  files", words]);
    }
    let file = written(folder.path(), "c.toml", "[source]\nuri = 'test://'\n[model]\ndir = 'm'\n[sink]\nuri = 'v.mp4'");
    if cfg!(all(feature = "gst", feature = "opencv")) {
        expect(&["check", &file], 2, &["ok    sink", "v.mp4: can be written"]);
    } else {
        expect(&["check", &file], 2, &["FAIL  sink", "this build of fovea"]);
    }
    assert!(!folder.path().join("v.mp4").exists(), "check leaves nothing behind");
    for (text, finding, words) in [
        ("uri = 'test://?width=320'\n[view]\nroi = '200,0,200,100'", "FAIL  view", "200x100 at 200,0"),
        ("uri = 'test://?width=400'\n[view]\nroi = '200,0,200,100'", "ok    view", "of 400x360"),
    ] {
        let file = written(folder.path(), "f.toml", &format!("[model]\ndir = 'm'\n[source]\n{text}"));
        expect(&["check", &file], 2, &[finding, words]);
    }
    if cfg!(feature = "gst") {
        let file = written(folder.path(), "g.toml", "[source]\nuri = 'test://?pattern=bal'");
        expect(&["check", &file], 2, &["FAIL  source", "`bal` is no test pattern"]);
    }
    for uri in ["me:canary@host/1", "rtsp//me:canary@host/1", "file://me:canary@host/1"] {
        let file = written(folder.path(), "e.toml", &format!("[source]\nuri = '{uri}'"));
        let said = fovea(&["check", &file]);
        let said = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(!said.contains("canary") && said.contains("host/1"), "{uri}: {said}");
    }
    // An element that is there on a Jetson only.
    if cfg!(feature = "gst") && !Path::new("/etc/nv_tegra_release").exists() {
        let file = written(folder.path(), "d.toml", "[source]\nuri = 'csi://0'");
        expect(&["check", &file], 2, &["FAIL  source", "nvarguscamerasrc is not installed"]);
    }
}

#[test]
fn every_pipeline_file_of_the_project_is_right() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let draft = fovea::pipeline::config::Draft::read(&path).unwrap_or_else(|error| panic!("{error}"));
        draft.finish().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        names.push(path.file_stem().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    let want = ["csi-jetson", "csi-raspberry-pi", "file-replay", "headless-bench", "rtsp", "test-pattern", "usb-camera"];
    assert_eq!(names, want);
}
