//! GStreamer sources and sinks: every frame accounted for, times, sizes and colours kept, faults explained.

#![cfg(feature = "gst")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rtsp;

use fovea::frame::{ColorInfo, ColorMatrix, ColorRange, Frame, FrameId, PictureRef, PixelFormat, PlaneRef, Stamps};
use fovea::gst::{open_sink, open_source};
use fovea::pipeline::clock::Stopwatch;
use fovea::pipeline::ports::{DropCause, FrameSink, Inlet, SinkError, SourceError, StreamInfo};
use fovea::pipeline::secret::SecretUrl;
use fovea::pipeline::spec::{FrameRate, SinkSpec, SourceKind, SourceSpec};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const FPS: u32 = 25;
const ENDS_WITHIN: Duration = Duration::from_secs(150);

/// Runs a test on a thread of its own and fails if it hangs.
fn within_limit(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(ENDS_WITHIN) {
        Ok(()) => thread.join().unwrap(),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
    }
}

/// What is remembered of a frame.
#[derive(Debug, Clone)]
struct Seen {
    stamps: Stamps,
    format: PixelFormat,
    size: (usize, usize),
    color: ColorInfo,
    stride_bytes: usize,
    /// Mean of luma, Cb, Cr in the left and in the right third (4:2:0 formats).
    patches: [[f64; 3]; 2],
}

#[derive(Debug, Default)]
struct Record {
    captured: usize,
    frames: Vec<Seen>,
    dropped: Vec<DropCause>,
    end: Option<Result<(), SourceError>>,
    is_closed: bool,
    reconnects: usize,
}

impl Record {
    fn is_balanced(&self) -> bool {
        self.captured == self.frames.len() + self.dropped.len()
    }
}

/// An inlet that writes down what it is given.
struct Recorder {
    clock: Mutex<(Stopwatch, Duration)>,
    record: Mutex<Record>,
    changed: Condvar,
    /// Frames that are taken before `deliver` blocks until `close`.
    takes: usize,
    /// Frames that are taken before `deliver` answers that the pipeline has stopped.
    refuses_after: usize,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Self::with(usize::MAX, usize::MAX)
    }

    fn with(takes: usize, refuses_after: usize) -> Arc<Self> {
        let clock = Mutex::new((Stopwatch::start(), Duration::ZERO));
        Arc::new(Self { clock, record: Mutex::default(), changed: Condvar::new(), takes, refuses_after })
    }

    /// Waits for the end of the stream.
    fn end(&self) -> Result<(), SourceError> {
        let record = self.record.lock().unwrap();
        let (record, timeout) =
            self.changed.wait_timeout_while(record, Duration::from_secs(40), |record| record.end.is_none()).unwrap();
        assert!(!timeout.timed_out(), "no end: {} captured, {} delivered", record.captured, record.frames.len());
        record.end.clone().unwrap()
    }

    fn wait_until(&self, condition: impl Fn(&Record) -> bool) {
        let record = self.record.lock().unwrap();
        let (record, timeout) =
            self.changed.wait_timeout_while(record, Duration::from_secs(20), |record| !condition(record)).unwrap();
        assert!(!timeout.timed_out(), "{} captured, {} delivered", record.captured, record.frames.len());
    }

    fn close(&self) {
        self.record.lock().unwrap().is_closed = true;
        self.changed.notify_all();
    }
}

impl Inlet for Recorder {
    fn captured(&self) {
        let mut record = self.record.lock().unwrap();
        assert!(record.end.is_none(), "captured after the end");
        record.captured += 1;
    }

    fn deliver(&self, frame: Frame) -> bool {
        let mut record = self.record.lock().unwrap();
        assert!(record.end.is_none(), "delivered after the end");
        record.frames.push(look_at(&frame));
        self.changed.notify_all();
        while record.frames.len() > self.takes && !record.is_closed {
            record = self.changed.wait(record).unwrap();
        }
        !record.is_closed && record.frames.len() < self.refuses_after
    }

    fn drop_frame(&self, cause: DropCause) {
        self.record.lock().unwrap().dropped.push(cause);
    }

    fn now(&self) -> Duration {
        let mut clock = self.clock.lock().unwrap();
        let lap = clock.0.lap();
        clock.1 += lap;
        clock.1
    }

    fn reconnected(&self) {
        self.record.lock().unwrap().reconnects += 1;
        self.changed.notify_all();
    }

    fn finish(&self, end: Result<(), SourceError>) {
        let mut record = self.record.lock().unwrap();
        assert!(record.end.is_none(), "finished twice");
        record.end = Some(end);
        self.changed.notify_all();
    }
}

fn look_at(frame: &Frame) -> Seen {
    let picture = frame.picture();
    let third = |side: usize, right: bool| if right { (2 * side / 3)..side } else { 0..side.div_ceil(3) };
    let mean = |plane_idx: usize, columns: std::ops::Range<usize>, step: usize, offset: usize| {
        let rows = picture.format.plane_size(plane_idx, picture.width, picture.height).unwrap().rows;
        let (mut sum, mut n) = (0.0, 0.0);
        for row in rows / 4..(3 * rows).div_ceil(4) {
            for column in columns.clone() {
                sum += f64::from(picture.row(plane_idx, row)[column * step + offset]);
                n += 1.0;
            }
        }
        sum / n
    };
    let (width, half) = (picture.width, picture.width.div_ceil(2));
    let patches = [false, true].map(|right| match picture.format {
        PixelFormat::Nv12 => {
            [mean(0, third(width, right), 1, 0), mean(1, third(half, right), 2, 0), mean(1, third(half, right), 2, 1)]
        }
        PixelFormat::I420 => {
            [mean(0, third(width, right), 1, 0), mean(1, third(half, right), 1, 0), mean(2, third(half, right), 1, 0)]
        }
        PixelFormat::Rgb => [0, 1, 2].map(|channel| mean(0, third(width, right), 3, channel)),
        _ => [mean(0, third(1, false), 1, 0); 3],
    });
    Seen {
        stamps: frame.stamps,
        format: frame.format,
        size: (frame.width, frame.height),
        color: frame.color,
        stride_bytes: picture.plane(0).stride_bytes,
        patches,
    }
}

/// Reads a source to its end.
fn read(spec: &SourceSpec) -> (StreamInfo, Record, Result<(), SourceError>) {
    let recorder = Recorder::new();
    let mut source = open_source(spec).unwrap();
    let info = source.start(recorder.clone()).unwrap();
    let end = recorder.end();
    source.stop();
    source.stop();
    let record = std::mem::take(&mut *recorder.record.lock().unwrap());
    (info, record, end)
}

fn start_error(spec: &SourceSpec) -> SourceError {
    match open_source(spec) {
        Err(error) => error,
        Ok(mut source) => {
            let recorder = Recorder::new();
            let error = source.start(recorder.clone()).unwrap_err();
            let record = recorder.record.lock().unwrap();
            assert!(record.end.is_none() && record.frames.is_empty(), "{record:?}");
            error
        }
    }
}

fn source(uri: &str) -> SourceSpec {
    SourceSpec::parse(uri, Path::new("")).unwrap()
}

fn file(path: &Path) -> SourceSpec {
    SourceSpec::new(SourceKind::File(path.to_owned()))
}

/// A two-coloured picture whose right half changes from frame to frame.
struct Painting {
    format: PixelFormat,
    size: (usize, usize),
    color: ColorInfo,
    planes: Vec<(Vec<u8>, usize)>,
}

const LEFT: [u8; 3] = [81, 90, 200];

fn right(idx: usize) -> [u8; 3] {
    [u8::try_from(40 + 5 * idx).unwrap(), 160, 110]
}

impl Painting {
    fn new(format: PixelFormat, size: (usize, usize), color: ColorInfo) -> Self {
        let planes = (0..format.n_planes())
            .map(|idx| {
                let plane = format.plane_size(idx, size.0, size.1).unwrap();
                let stride_bytes = plane.row_bytes + 13;
                (vec![0; stride_bytes * plane.rows], stride_bytes)
            })
            .collect();
        Self { format, size, color, planes }
    }

    fn paint(&mut self, idx: usize) -> PictureRef<'_> {
        let (width, height) = self.size;
        for (plane_idx, (data, stride_bytes)) in self.planes.iter_mut().enumerate() {
            let plane = self.format.plane_size(plane_idx, width, height).unwrap();
            for row in data.chunks_mut(*stride_bytes).take(plane.rows) {
                let row_bytes = plane.row_bytes;
                for (at, byte) in row[..row_bytes].iter_mut().enumerate() {
                    let colour = if 2 * at < row_bytes { LEFT } else { right(idx) };
                    *byte = match (self.format, plane_idx) {
                        (PixelFormat::Nv12, 1) => colour[1 + at % 2],
                        (PixelFormat::Rgb, _) => colour[at % 3],
                        (PixelFormat::Rgba | PixelFormat::Bgrx, _) => [colour, colour].concat()[at % 4],
                        (PixelFormat::Yuy2, _) => [colour[0], colour[1], colour[0], colour[2]][at % 4],
                        (_, plane_idx) => colour[plane_idx],
                    };
                }
            }
        }
        let plane = |idx: usize| {
            self.planes.get(idx).map(|(data, stride_bytes)| PlaneRef { data, stride_bytes: *stride_bytes }).unwrap_or_default()
        };
        PictureRef::new(self.format, width, height, self.color, [plane(0), plane(1), plane(2)]).unwrap()
    }

    fn info(&self) -> StreamInfo {
        StreamInfo {
            format: self.format,
            width: self.size.0,
            height: self.size.1,
            color: self.color,
            frame_rate: Some((FPS, 1)),
            duration: None,
            is_live: false,
        }
    }
}

fn stamps(idx: usize) -> Stamps {
    let step = Duration::from_millis(u64::from(1000 / FPS));
    let count = u32::try_from(idx).unwrap();
    // A source may start anywhere; the file starts at 0.
    Stamps {
        id: FrameId(count.into()),
        pts: Some(Duration::from_millis(700) + step * count),
        duration: Some(step),
        ..Stamps::default()
    }
}

fn sink(path: &Path) -> Box<dyn FrameSink> {
    open_sink(&SinkSpec::parse(path.to_str().unwrap(), Path::new("")).unwrap()).unwrap()
}

/// Writes `n` frames.
fn write(path: &Path, painting: &mut Painting, n: usize) {
    let mut sink = sink(path);
    sink.start(&painting.info()).unwrap();
    for idx in 0..n {
        sink.push(&painting.paint(idx), &stamps(idx), &mut |_| {}).unwrap();
    }
    sink.finish().unwrap();
    sink.finish().unwrap();
}

fn close(found: f64, want: f64, tolerance: f64) -> bool {
    (found - want).abs() <= tolerance
}

const SD: ColorInfo = ColorInfo { matrix: ColorMatrix::Bt601, range: ColorRange::Limited };
const HD: ColorInfo = ColorInfo { matrix: ColorMatrix::Bt709, range: ColorRange::Limited };
const FULL: ColorInfo = ColorInfo { matrix: ColorMatrix::Bt601, range: ColorRange::Full };

#[test]
fn every_frame_of_the_test_source_arrives() {
    within_limit(|| {
        for (n, width, height) in [(1, 64, 48), (30, 321, 241), (3, 1, 1)] {
            let uri = format!("test://?frames={n}&width={width}&height={height}&fps=25&pattern=smpte");
            let (info, record, end) = read(&source(&uri));
            assert_eq!(end, Ok(()));
            assert_eq!((record.captured, record.frames.len(), record.dropped.len()), (n, n, 0), "{uri}");
            assert_eq!((info.width, info.height, info.frame_rate, info.is_live), (width, height, Some((25, 1)), false));
            assert_eq!(info.duration, Some(Duration::from_millis(40 * n as u64)));
            for (idx, frame) in record.frames.iter().enumerate() {
                assert_eq!(frame.stamps.id, FrameId(idx as u64));
                assert_eq!(frame.stamps.pts, Some(Duration::from_millis(40 * idx as u64)));
                assert_eq!(frame.stamps.duration, Some(Duration::from_millis(40)));
                assert_eq!(frame.size, (width, height));
            }
        }
    });
}

#[test]
fn paced_frames_take_their_time() {
    within_limit(|| {
        let mut spec = source("test://?frames=11&width=64&height=48&fps=20");
        spec.sync = true;
        let (_, record, _) = read(&spec);
        let arrived = |idx: usize| record.frames[idx].stamps.captured_at;
        assert!(arrived(10) - arrived(0) > Duration::from_millis(450), "{:?}", arrived(10) - arrived(0));
    });
}

#[test]
fn files_keep_count_times_sizes_and_colours() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut has_padding = false;
        let cases = [
            ("a.mp4", PixelFormat::Nv12, (320, 240), SD, 30),
            ("b.mkv", PixelFormat::I420, (320, 240), HD, 30),
            ("c.mp4", PixelFormat::I420, (1280, 720), HD, 5),
            ("d.mp4", PixelFormat::Yuy2, (321, 241), SD, 30),
            ("e.mkv", PixelFormat::Nv12, (321, 241), FULL, 30),
            ("f.mkv", PixelFormat::Nv12, (1, 1), SD, 4),
            ("g.mp4", PixelFormat::I420, (1, 1), HD, 4),
            ("h.mp4", PixelFormat::Nv12, (4096, 2160), HD, 3),
        ];
        for (name, format, size, color, n) in cases {
            let path = folder.path().join(name);
            write(&path, &mut Painting::new(format, size, color), n);
            let (info, record, end) = read(&file(&path));
            assert_eq!(end, Ok(()), "{name}");
            assert_eq!((record.captured, record.frames.len(), record.dropped.len()), (n, n, 0), "{name}");
            let even = (size.0.next_multiple_of(2).max(16), size.1.next_multiple_of(2).max(16));
            assert_eq!((info.width, info.height), even, "{name}");
            assert_eq!(info.color, color, "{name}");
            for (idx, frame) in record.frames.iter().enumerate() {
                let pts = frame.stamps.pts.unwrap();
                assert!(pts.abs_diff(Duration::from_millis(40 * idx as u64)) < Duration::from_millis(1), "{name} {idx}: {pts:?}");
                assert_eq!((frame.size, frame.color), (even, color), "{name}");
                has_padding |= frame.stride_bytes > even.0;
                if size == (1, 1) {
                    continue;
                }
                for (patch, want) in frame.patches.iter().zip([LEFT, right(idx)]) {
                    for (channel, want) in want.into_iter().enumerate() {
                        assert!(close(patch[channel], want.into(), 2.0), "{name} frame {idx}: {:?}, want {want}", frame.patches);
                    }
                }
            }
        }
        assert!(has_padding, "no decoder handed out padded rows: the stride is not tested");
    });
}

#[test]
fn rgb_and_grey_are_written_with_the_matrix_of_their_size() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        // Luma of LEFT = (81, 90, 200) by definition of each matrix, limited range.
        let luma = |[kr, kg, kb]: [f64; 3]| 16.0 + 219.0 / 255.0 * (kr * 81.0 + kg * 90.0 + kb * 200.0);
        let (sd, hd) = (luma([0.299, 0.587, 0.114]), luma([0.2126, 0.7152, 0.0722]));
        assert!(sd - hd > 3.0);
        for (name, format, size, want, color) in [
            ("a.mp4", PixelFormat::Rgb, (96, 64), sd, SD),
            ("b.mp4", PixelFormat::Rgb, (1280, 720), hd, HD),
            ("c.mkv", PixelFormat::Gray8, (97, 65), 81.0, FULL),
        ] {
            let path = folder.path().join(name);
            write(&path, &mut Painting::new(format, size, ColorInfo::default()), 3);
            let (info, record, _) = read(&file(&path));
            assert_eq!((record.frames.len(), info.color), (3, color), "{name}");
            assert!(close(record.frames[1].patches[0][0], want, 1.5), "{name}: {:?}, want {want}", record.frames[1].patches);
        }
        for (name, format) in [("d.mkv", PixelFormat::Rgba), ("e.mp4", PixelFormat::Bgrx)] {
            let path = folder.path().join(name);
            write(&path, &mut Painting::new(format, (33, 17), ColorInfo::default()), 3);
            assert_eq!(read(&file(&path)).1.frames.len(), 3, "{name}");
        }
    });
}

#[test]
fn what_is_drawn_is_in_the_file_and_not_in_the_source() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drawn.mp4");
        let mut painting = Painting::new(PixelFormat::Nv12, (96, 64), SD);
        let mut sink = sink(&path);
        sink.start(&painting.info()).unwrap();
        for idx in 0..5 {
            sink.push(&painting.paint(idx), &stamps(idx), &mut |picture| {
                assert_eq!((picture.width, picture.height), (96, 64));
                picture.plane_mut(0).data.fill(235);
            })
            .unwrap();
            assert_eq!(painting.paint(idx).row(0, 0)[0], LEFT[0]);
        }
        sink.finish().unwrap();
        let (_, record, _) = read(&file(&path));
        assert_eq!(record.frames.len(), 5);
        assert!(record.frames.iter().all(|frame| close(frame.patches[0][0], 235.0, 1.0)));
    });
}

#[test]
fn accepted_formats_pass_and_others_become_nv12() {
    within_limit(|| {
        for (text, format) in [
            ("NV12", PixelFormat::Nv12),
            ("I420", PixelFormat::I420),
            ("YUY2", PixelFormat::Yuy2),
            ("RGB", PixelFormat::Rgb),
            ("RGBA", PixelFormat::Rgba),
            ("RGBx", PixelFormat::Rgba),
            ("BGRx", PixelFormat::Bgrx),
            ("BGRA", PixelFormat::Bgrx),
            ("GRAY8", PixelFormat::Gray8),
            ("Y444", PixelFormat::Nv12),
            ("I420_10LE", PixelFormat::Nv12),
            ("BGR", PixelFormat::Nv12),
            ("UYVY", PixelFormat::Nv12),
        ] {
            let elements = format!("videotestsrc num-buffers=3 ! video/x-raw,format={text},width=63,height=47,framerate=25/1");
            let (info, record, end) = read(&SourceSpec::new(SourceKind::Launch(elements)));
            assert_eq!((info.format, record.frames.len(), end), (format, 3, Ok(())), "{text}");
            assert!(record.frames.iter().all(|frame| frame.format == format && frame.size == (63, 47)), "{text}");
        }
    });
}

#[test]
fn a_change_of_size_goes_with_the_frames() {
    within_limit(|| {
        let part = |n: u32, width: u32, height: u32| {
            format!("videotestsrc num-buffers={n} ! video/x-raw,format=I420,width={width},height={height},framerate=25/1")
        };
        let text = format!("concat name=c {} ! c. {} ! c. c.", part(6, 64, 48), part(7, 322, 240));
        let (info, record, end) = read(&SourceSpec::new(SourceKind::Launch(text)));
        assert_eq!(end, Ok(()));
        assert_eq!((info.width, info.height), (64, 48));
        assert_eq!((record.captured, record.frames.len()), (13, 13));
        let sizes: Vec<_> = record.frames.iter().map(|frame| frame.size).collect();
        assert_eq!(sizes, [vec![(64, 48); 6], vec![(322, 240); 7]].concat());
        // The second part starts where the first one ends.
        let times: Vec<_> = record.frames.iter().map(|frame| frame.stamps.pts.unwrap().as_millis()).collect();
        assert_eq!(times, (0..13).map(|idx| 40 * idx).collect::<Vec<u128>>());

        // Into a file: the second size is scaled into the first.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sizes.mp4");
        let mut sink = sink(&path);
        let (mut first, mut second) =
            (Painting::new(PixelFormat::Nv12, (96, 64), SD), Painting::new(PixelFormat::I420, (300, 100), HD));
        sink.start(&first.info()).unwrap();
        for idx in 0..20 {
            let painting = if idx < 10 { &mut first } else { &mut second };
            sink.push(&painting.paint(idx), &stamps(idx), &mut |_| {}).unwrap();
        }
        sink.finish().unwrap();
        let (_, record, end) = read(&file(&path));
        assert_eq!((record.frames.len(), end), (20, Ok(())));
        assert!(record.frames.iter().all(|frame| frame.size == (96, 64)));
        assert_eq!(record.frames[19].stamps.pts, Some(Duration::from_millis(760)));
    });
}

#[test]
fn a_stopped_source_accounts_for_every_frame() {
    within_limit(|| {
        for uri in ["test://?width=64&height=48", "launch:videotestsrc ! video/x-raw,width=64,height=48 ! x264enc ! avdec_h264"] {
            // The queue is full and nobody takes frames; then the pipeline closes it and stops the source.
            let recorder = Recorder::with(3, usize::MAX);
            let mut source = open_source(&source(uri)).unwrap();
            source.start(recorder.clone()).unwrap();
            recorder.wait_until(|record| record.frames.len() == 4);
            recorder.close();
            source.stop();
            let record = recorder.record.lock().unwrap();
            assert!(record.is_balanced() && record.frames.len() == 4, "{uri}: {record:?}");
            assert!(record.dropped.iter().all(|cause| *cause == DropCause::Shutdown));
        }
        // The pipeline has enough: nothing follows.
        let recorder = Recorder::with(usize::MAX, 5);
        let mut source = open_source(&source("test://?width=64&height=48")).unwrap();
        source.start(recorder.clone()).unwrap();
        recorder.wait_until(|record| record.frames.len() == 5);
        source.stop();
        let record = recorder.record.lock().unwrap();
        assert!(record.is_balanced() && record.frames.len() == 5, "{record:?}");
    });
}

/// Takes its time for what cannot be read, and has been asked to stop.
struct Stopped(Arc<Recorder>);

impl Inlet for Stopped {
    fn captured(&self) {
        self.0.captured();
    }

    fn deliver(&self, frame: Frame) -> bool {
        self.0.deliver(frame)
    }

    fn drop_frame(&self, cause: DropCause) {
        self.0.drop_frame(cause);
        std::thread::sleep(Duration::from_millis(20));
    }

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn is_stopped(&self) -> bool {
        true
    }

    fn finish(&self, end: Result<(), SourceError>) {
        self.0.finish(end);
    }
}

#[test]
fn a_stop_does_not_wait_for_a_good_picture() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        // For 40 s.
        for idx in 0..2000 {
            std::fs::write(folder.path().join(format!("{idx}.jpg")), "not a picture").unwrap();
        }
        let recorder = Recorder::new();
        let error = open_source(&source(folder.path().to_str().unwrap())).unwrap().start(Arc::new(Stopped(recorder.clone())));
        let record = recorder.record.lock().unwrap();
        assert!(error.is_err() && record.is_balanced() && record.captured < 1000, "{error:?}, {} captured", record.captured);
    });
}

#[test]
fn pictures_of_a_folder() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open_source(&source(folder.path().to_str().unwrap())), Err(SourceError::Request(_))));
        for (name, width) in [("b.png", 20), ("a.jpg", 10), ("d.png", 30)] {
            let picture = fovea::images::RgbPicture { width, height: 8, data: vec![128; width * 8 * 3] };
            fovea::images::save(&folder.path().join(name), &picture).unwrap();
        }
        let whole = std::fs::read(folder.path().join("a.jpg")).unwrap();
        std::fs::write(folder.path().join("c.jpg"), &whole[..whole.len() - 2]).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "ignored").unwrap();
        let (info, record, end) = read(&source(folder.path().to_str().unwrap()));
        assert_eq!(end, Ok(()));
        assert_eq!((info.width, info.height, info.duration), (10, 8, Some(Duration::from_secs(4))));
        assert_eq!((record.captured, record.dropped.as_slice()), (4, &[DropCause::DecodeError][..]));
        let found = record.frames.iter().map(|frame| (frame.stamps.id.0, frame.size.0, frame.stamps.pts.unwrap().as_secs()));
        assert_eq!(found.collect::<Vec<_>>(), [(0, 10, 0), (1, 20, 1), (3, 30, 3)]);
        assert!(record.frames.iter().all(|frame| frame.format == PixelFormat::Rgb));

        let none = tempfile::tempdir().unwrap();
        std::fs::write(none.path().join("x.png"), "no").unwrap();
        let error =
            start_error(&SourceSpec::new(SourceKind::Images { folder: none.path().to_owned(), frame_rate: FrameRate::whole(1) }));
        assert!(error.to_string().contains("none of 1 pictures"), "{error}");
    });
}

#[test]
fn a_file_cut_short_gives_what_it_holds_and_says_so() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.mkv");
        let mut painting = Painting::new(PixelFormat::I420, (320, 240), SD);
        let mut sink = sink(&whole);
        sink.start(&painting.info()).unwrap();
        for idx in 0..60 {
            let noise = &mut |picture: &mut fovea::frame::PictureMut<'_>| {
                let mut state = u32::try_from(idx).unwrap() + 1;
                for byte in picture.plane_mut(0).data.iter_mut() {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = u8::try_from(state >> 24).unwrap();
                }
            };
            sink.push(&painting.paint(idx % 20), &stamps(idx), noise).unwrap();
        }
        sink.finish().unwrap();
        let bytes = std::fs::read(&whole).unwrap();
        let cut = folder.path().join("cut.mkv");
        std::fs::write(&cut, &bytes[..bytes.len() * 6 / 10]).unwrap();
        let (_, record, end) = read(&file(&cut));
        assert!((20..60).contains(&record.frames.len()), "{} frames", record.frames.len());
        assert!(record.is_balanced(), "{record:?}");
        assert!(matches!(&end, Err(SourceError::Stream(text)) if text.contains("cut.mkv: the video is cut off")), "{end:?}");

        // The demuxer believes the shorter length.
        let (whole, cut) = (folder.path().join("whole.avi"), folder.path().join("cut.avi"));
        let size = "video/x-raw,format=I420,width=64,height=48,framerate=25/1";
        let text = format!(
            "videotestsrc num-buffers=60 ! {size} ! tee name=t t. ! queue ! jpegenc ! avimux ! filesink async=false location={} t. ! queue",
            whole.display()
        );
        assert_eq!(read(&SourceSpec::new(SourceKind::Launch(text))).2, Ok(()));
        let (_, record, end) = read(&file(&whole));
        assert_eq!((record.frames.len(), end), (60, Ok(())));
        let bytes = std::fs::read(&whole).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        let (_, record, end) = read(&file(&cut));
        assert!((20..40).contains(&record.frames.len()) && record.is_balanced(), "{record:?}");
        assert!(matches!(&end, Err(SourceError::Stream(text)) if text.contains("cut.avi: the video is cut off")), "{end:?}");

        // An MP4 whose index is gone says so.
        let (mp4, cut) = (folder.path().join("whole.mp4"), folder.path().join("cut.mp4"));
        write(&mp4, &mut painting, 30);
        let bytes = std::fs::read(&mp4).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        let recorder = Recorder::new();
        let mut source = open_source(&file(&cut)).unwrap();
        let error = source.start(recorder.clone()).and_then(|_| recorder.end()).unwrap_err();
        assert!(error.to_string().contains("cut.mp4") && error.to_string().len() > 60, "{error}");
    });
}

/// What a process that is killed leaves: the file as it is on disk before `finish`.
/// Its end is the end of the stream: whoever asked how long the pipe is would wait for another writer.
#[test]
fn a_named_pipe_comes_to_its_end() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let (video, pipe) = (folder.path().join("a.mkv"), folder.path().join("pipe"));
        write(&video, &mut Painting::new(PixelFormat::I420, (64, 48), SD), 12);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut writer = std::fs::File::options().write(true).open(pipe).unwrap();
                // Who reads has opened it for good.
                std::thread::sleep(Duration::from_millis(300));
                writer.write_all(&std::fs::read(video).unwrap()).unwrap();
            }
        });
        let (_, record, end) = read(&file(&pipe));
        assert_eq!((record.frames.len(), end), (12, Ok(())));
        writer.join().unwrap();
    });
}

/// Cameras that send JPEG over HTTP say nothing of time: at their own pace, frames have the time at which they came.
#[test]
fn frames_without_a_time_have_that_of_their_arrival() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("parts");
        let size = "video/x-raw,format=I420,width=64,height=48,framerate=25/1";
        let text = format!(
            "videotestsrc num-buffers=6 ! {size} ! tee name=t t. ! queue ! jpegenc ! multipartmux ! filesink async=false \
             location={} t. ! queue",
            path.display()
        );
        assert_eq!(read(&SourceSpec::new(SourceKind::Launch(text))).2, Ok(()));
        let mut spec = SourceSpec::new(SourceKind::Launch(format!(
            "filesrc location={} ! multipartdemux ! image/jpeg ! jpegdec",
            path.display()
        )));
        for is_paced in [false, true] {
            spec.sync = is_paced;
            let (_, record, end) = read(&spec);
            assert_eq!((record.frames.len(), end), (6, Ok(())));
            let times: Vec<_> = record.frames.iter().map(|frame| frame.stamps.pts).collect();
            assert_eq!(times.iter().all(Option::is_some), is_paced, "{times:?}");
            assert!(times.is_sorted(), "{times:?}");
        }
    });
}

#[test]
fn a_picture_that_is_too_large_is_named() {
    within_limit(|| {
        let text = "videotestsrc num-buffers=2 ! video/x-raw,format=I420,width=20000,height=16";
        let error = start_error(&SourceSpec::new(SourceKind::Launch(text.into())));
        assert!(matches!(&error, SourceError::Request(text) if text.contains("20000x16") && text.contains("16384")), "{error:?}");
    });
}

#[test]
fn an_unfinished_file_can_be_played() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["killed.mp4", "killed.mkv"] {
            let (path, copy) = (folder.path().join(format!("whole-{name}")), folder.path().join(name));
            let mut painting = Painting::new(PixelFormat::I420, (640, 480), SD);
            let mut sink = sink(&path);
            sink.start(&painting.info()).unwrap();
            for idx in 0..200 {
                let noise = &mut |picture: &mut fovea::frame::PictureMut<'_>| {
                    let mut state = u32::try_from(idx).unwrap() + 1;
                    for byte in picture.plane_mut(0).data.iter_mut() {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        *byte = 100 + u8::try_from(state >> 27).unwrap();
                    }
                };
                sink.push(&painting.paint(idx % 20), &stamps(idx), noise).unwrap();
            }
            std::fs::copy(&path, &copy).unwrap();
            sink.finish().unwrap();
            let (_, record, end) = read(&file(&copy));
            assert!(record.frames.len() > 100, "{name}: {} frames, {end:?}", record.frames.len());
            let (_, record, _) = read(&file(&path));
            assert_eq!(record.frames.len(), 200, "{name}");
        }
    });
}

#[test]
fn sources_that_cannot_be_say_why() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("text.mp4"), "this is a text file and not a video\n".repeat(50)).unwrap();
        std::fs::write(path("zeros.mp4"), vec![0; 5000]).unwrap();
        std::fs::write(path("empty.mp4"), "").unwrap();
        std::fs::write(path("sound.wav"), silence()).unwrap();
        let at = |name: &str| path(name).display().to_string();
        let cases: [(String, &str); 10] = [
            (at("missing.mp4"), "No such file"),
            (at("text.mp4"), "not a video"),
            (at("zeros.mp4"), "not a video"),
            (at("empty.mp4"), "empty"),
            (at("sound.wav"), "video"),
            ("v4l2:///dev/video77".into(), "/dev/video77"),
            ("test://?pattern=nosuch&frames=1".into(), "smpte"),
            ("test://?frames=0".into(), "no frames"),
            ("launch:no-such-element ! videoconvert".into(), "no-such-element"),
            ("launch:videotestsrc !".into(), "pipeline text"),
        ];
        for (uri, word) in cases {
            let error = start_error(&source(&uri));
            let text = error.to_string();
            assert!(matches!(error, SourceError::Request(_)), "{error:?}");
            assert!(text.contains(word) && !text.contains('\n') && text.len() < 700, "{uri}: {text}");
        }
    });
}

/// A WAV file: a tenth of a second of silence.
fn silence() -> Vec<u8> {
    let mut wav = b"RIFF\x64\x06\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x40\x06\0\0".to_vec();
    wav.resize(44 + 1600, 0);
    wav
}

#[test]
fn refused_connections_keep_the_password_secret() {
    within_limit(|| {
        for scheme in ["rtsp", "http"] {
            // A port that was free a moment ago: nothing listens there.
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let spec = source(&format!("{scheme}://watcher:canary%2F7@127.0.0.1:{port}/live?token=tweety"));
            let error = start_error(&spec);
            let text = format!("{error} {error:?} {}", open_source(&spec).unwrap().name());
            assert!(matches!(error, SourceError::Stream(_)), "{text}");
            assert!(text.contains("127.0.0.1") && text.contains("firewall"), "{text}");
            assert!(!["canary", "watcher", "tweety"].iter().any(|secret| text.contains(secret)), "{text}");
        }
    });
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    within_limit(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut spec = source(&format!("rtsp://me:canary@{}/live", listener.local_addr().unwrap()));
        spec.timeout = Duration::from_secs(1);
        let error = start_error(&spec).to_string();
        assert!(error.contains("127.0.0.1") && !error.contains("canary"), "{error}");
        spec.reconnect = Some(Duration::from_secs(1));
        let error = start_error(&spec).to_string();
        assert!(error.contains("127.0.0.1") && error.contains("tried again for 1 s"), "{error}");
        // Somebody who waits for it has enough.
        spec.reconnect = Some(Duration::from_secs(3600));
        let mut camera = open_source(&spec).unwrap();
        assert!(camera.start(Arc::new(Stopped(Recorder::new()))).is_err());
    });
}

/// A camera on the network of this machine: where it sends to, and a pipeline that receives it.
fn network_camera() -> (u16, String) {
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let caps = "application/x-rtp,media=video,clock-rate=90000,encoding-name=RAW,sampling=YCbCr-4:2:0,depth=(string)8,\
                width=(string)64,height=(string)48,payload=96";
    (port, format!("udpsrc port={port} caps=\"{caps}\" ! rtpvrawdepay"))
}

/// Sends a few frames from a thread of its own.
fn send_frames(port: u16) -> std::thread::JoinHandle<()> {
    use gstreamer::prelude::*;
    gstreamer::init().unwrap();
    let text = format!(
        "videotestsrc is-live=true num-buffers=10 ! video/x-raw,format=I420,width=64,height=48,framerate=25/1 ! rtpvrawpay ! \
         udpsink host=127.0.0.1 port={port}"
    );
    std::thread::spawn(move || {
        let pipeline = gstreamer::parse::launch(&text).unwrap();
        pipeline.set_state(gstreamer::State::Playing).unwrap();
        let bus = pipeline.bus().unwrap();
        bus.timed_pop_filtered(gstreamer::ClockTime::from_seconds(20), &[gstreamer::MessageType::Eos]).unwrap();
        pipeline.set_state(gstreamer::State::Null).unwrap();
    })
}

#[test]
fn a_live_source_that_was_lost_goes_on() {
    within_limit(|| {
        let (port, text) = network_camera();
        let mut spec = SourceSpec::new(SourceKind::Launch(text));
        (spec.timeout, spec.reconnect) = (Duration::from_secs(1), Some(Duration::from_secs(30)));
        let recorder = Recorder::new();
        let mut source = open_source(&spec).unwrap();
        let first = send_frames(port);
        source.start(recorder.clone()).unwrap();
        first.join().unwrap();
        // Longer than it waits for the next frame.
        std::thread::sleep(Duration::from_secs(4));
        let before = recorder.record.lock().unwrap().frames.len();
        // Between two tries nobody receives.
        let is_back = || recorder.record.lock().unwrap().frames.len() > before + 5;
        for _ in 0..60 {
            if is_back() {
                break;
            }
            send_frames(port).join().unwrap();
        }
        recorder.wait_until(|record| record.reconnects > 0 && record.frames.len() > before + 5);
        source.stop();
        let record = recorder.record.lock().unwrap();
        assert!(before > 0 && record.is_balanced() && record.end.is_none(), "{record:?}");
        let pts: Vec<_> = record.frames.iter().map(|frame| frame.stamps.pts.unwrap()).collect();
        assert!(pts.is_sorted() && pts[before] > pts[before - 1] + Duration::from_secs(2), "{pts:?}");
        assert!(record.frames.is_sorted_by_key(|frame| frame.stamps.id));
    });
}

#[test]
fn a_live_source_that_stays_lost_is_given_up() {
    within_limit(|| {
        let (port, text) = network_camera();
        let mut spec = SourceSpec::new(SourceKind::Launch(text));
        (spec.timeout, spec.reconnect) = (Duration::from_millis(500), Some(Duration::from_secs(2)));
        let recorder = Recorder::new();
        let mut source = open_source(&spec).unwrap();
        let sender = send_frames(port);
        source.start(recorder.clone()).unwrap();
        let error = recorder.end().unwrap_err();
        assert!(matches!(&error, SourceError::Stream(text) if text.contains("tried again for 2 s")), "{error:?}");
        assert!(recorder.record.lock().unwrap().is_balanced());
        sender.join().unwrap();
        // A stop while it waits for another try.
        let recorder = Recorder::new();
        spec.reconnect = Some(Duration::from_secs(3600));
        let mut source = open_source(&spec).unwrap();
        let sender = send_frames(port);
        source.start(recorder.clone()).unwrap();
        sender.join().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        source.stop();
        let record = recorder.record.lock().unwrap();
        assert!(record.is_balanced() && record.end.is_none() && !record.frames.is_empty(), "{record:?}");
    });
}

/// Frames come over the network and then no more, while another element keeps talking.
#[test]
fn a_live_source_that_falls_silent_is_an_error() {
    within_limit(|| {
        let (port, receiver) = network_camera();
        let talker = "audiotestsrc is-live=true ! level interval=20000000 ! fakesink";
        let mut spec = SourceSpec::new(SourceKind::Launch(format!("{talker} {receiver}")));
        spec.timeout = Duration::from_secs(1);
        let sender = send_frames(port);
        let recorder = Recorder::new();
        let mut source = open_source(&spec).unwrap();
        source.start(recorder.clone()).unwrap();
        let mut watch = Stopwatch::start();
        let error = recorder.end().unwrap_err();
        assert!(matches!(&error, SourceError::Stream(text) if text.contains("no more frames for 1 s")), "{error:?}");
        assert!(watch.lap() < Duration::from_secs(10));
        let record = recorder.record.lock().unwrap();
        assert!(record.is_balanced() && (1..=10).contains(&record.frames.len()), "{record:?}");
        sender.join().unwrap();
    });
}

/// A driver that hangs: nobody writes to the pipe, and opening it waits for ever.
#[test]
fn a_source_that_hangs_is_left_behind() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut spec = SourceSpec::new(SourceKind::Launch(format!("filesrc location={} ! decodebin", pipe.display())));
        spec.timeout = Duration::from_millis(300);
        let mut watch = Stopwatch::start();
        let error = start_error(&spec).to_string();
        let took = watch.lap();
        assert!(error.contains("no frame within") && took < Duration::from_secs(60), "{error} after {took:?}");
    });
}

#[test]
fn a_source_without_frames_is_an_error() {
    within_limit(|| {
        let text = "videotestsrc num-buffers=4 ! video/x-raw,width=64,height=48 ! identity drop-probability=1";
        let spec = SourceSpec::new(SourceKind::Launch(text.into()));
        let recorder = Recorder::new();
        let mut source = open_source(&spec).unwrap();
        let error = source.start(recorder.clone()).and_then(|_| recorder.end()).unwrap_err();
        assert!(matches!(&error, SourceError::Stream(text) if text.contains("frame")), "{error:?}");
    });
}

#[test]
fn credentials_that_cannot_be_handed_over_are_refused() {
    within_limit(|| {
        let error = start_error(&SourceSpec::new(SourceKind::Url(SecretUrl::new("udp://watcher:canary@127.0.0.1:5999".into()))));
        let text = error.to_string();
        assert!(matches!(error, SourceError::Request(_)) && text.contains("leave them out"), "{text}");
        assert!(!text.contains("canary") && !text.contains("watcher"), "{text}");
    });
}

#[test]
fn credentials_that_are_refused_are_named() {
    within_limit(|| {
        use std::io::{BufRead, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mut answers, reader) = (stream.try_clone().unwrap(), std::io::BufReader::new(stream));
                let mut sequence = String::from("0");
                for line in reader.lines().map_while(Result::ok) {
                    if let Some(number) = line.strip_prefix("CSeq: ") {
                        sequence = number.to_owned();
                    }
                    if line.is_empty() {
                        let answer = format!(
                            "RTSP/1.0 401 Unauthorized\r\nCSeq: {sequence}\r\nWWW-Authenticate: Basic realm=\"camera\"\r\n\r\n"
                        );
                        if answers.write_all(answer.as_bytes()).is_err() {
                            break;
                        }
                    }
                }
            }
        });
        let error = start_error(&source(&format!("rtsp://watcher:canary@{address}/live")));
        assert!(matches!(error, SourceError::Request(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("password") && !text.contains("canary") && !text.contains("watcher"), "{text}");
    });
}

#[test]
fn sinks_that_cannot_be_say_why() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let info = Painting::new(PixelFormat::Nv12, (64, 48), SD).info();
        std::fs::create_dir(folder.path().join("folder.mp4")).unwrap();
        for path in [folder.path().join("nowhere/out.mp4"), folder.path().join("folder.mp4"), PathBuf::from("/proc/out.mp4")] {
            let spec = SinkSpec::parse(path.to_str().unwrap(), Path::new("")).unwrap();
            let error = open_sink(&spec).and_then(|mut sink| sink.start(&info)).unwrap_err();
            assert!(matches!(error, SinkError::Request(_)), "{error:?}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    });
}

#[test]
fn nothing_is_left_of_a_video_without_frames() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.mp4");
        let mut sink = sink(&path);
        sink.start(&Painting::new(PixelFormat::Nv12, (64, 48), SD).info()).unwrap();
        sink.finish().unwrap();
        assert!(!path.exists());

        // A video that was there before stays as it is.
        std::fs::write(&path, "precious").unwrap();
        sink.start(&Painting::new(PixelFormat::Nv12, (64, 48), SD).info()).unwrap();
        sink.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    });
}

/// Pushes noise until the sink complains.
fn fill(path: &Path) -> (SinkError, usize) {
    let mut painting = Painting::new(PixelFormat::I420, (640, 480), SD);
    let mut sink = sink(path);
    sink.start(&painting.info()).unwrap();
    for idx in 0..2000 {
        let noise = &mut |picture: &mut fovea::frame::PictureMut<'_>| {
            let mut state = u32::try_from(idx).unwrap() + 1;
            for byte in picture.plane_mut(0).data.iter_mut() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = u8::try_from(state >> 24).unwrap();
            }
        };
        if let Err(error) = sink.push(&painting.paint(idx % 20), &stamps(idx), noise) {
            let _ = sink.finish();
            return (error, idx);
        }
    }
    panic!("the disk never fills");
}

#[test]
fn a_full_disk_is_reported() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["full.mkv", "full.mp4"] {
            let path = folder.path().join(name);
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            let (error, _) = fill(&path);
            assert!(matches!(error, SinkError::Write(_)) && error.to_string().contains("disk is full"), "{error:?}");
        }
    });
}

#[test]
fn a_disk_that_fills_up_leaves_a_file_that_plays() {
    within_limit(|| {
        let folder = tempfile::tempdir().unwrap();
        let mount =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "fovea-test"]).arg(folder.path()).output();
        if !mount.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: a file system cannot be mounted here ({mount:?})");
            return;
        }
        let outcome = std::panic::catch_unwind(|| {
            for name in ["full.mkv", "full.mp4"] {
                let path = folder.path().join(name);
                let (error, n_pushed) = fill(&path);
                assert!(error.to_string().contains("disk is full"), "{error:?}");
                let (_, record, end) = read(&file(&path));
                assert!(!record.frames.is_empty() && record.frames.len() <= n_pushed, "{name}: {end:?}");
                std::fs::remove_file(&path).unwrap();
            }
        });
        let _ = std::process::Command::new("umount").arg(folder.path()).status();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_screen_that_is_not_there_is_reported() {
    within_limit(|| {
        let mut painting = Painting::new(PixelFormat::Nv12, (64, 48), SD);
        let mut sink = open_sink(&SinkSpec::Display).unwrap();
        let outcome = sink.start(&painting.info()).and_then(|()| {
            (0..20).try_for_each(|idx| sink.push(&painting.paint(idx), &stamps(idx), &mut |_| {}))?;
            sink.finish()
        });
        match outcome {
            Ok(()) => eprintln!("skipped: this machine has a screen"),
            Err(error) => assert!(error.to_string().contains("--sink out.mp4"), "{error}"),
        }
    });
}
