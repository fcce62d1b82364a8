//! A folder of pictures as a stream: sorted by name, stamped with a fixed rate.

use super::intake::STOP_TICK;
use crate::frame::{Frame, FrameId, OwnedPlanes, PixelFormat, Stamps};
use crate::images;
use crate::pipeline::ports::{DropCause, FrameSource, Inlet, SourceError, StreamInfo};
use crate::pipeline::probe;
use crate::pipeline::spec::FrameRate;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The pictures of a folder. A picture that cannot be read is counted as a decode error and named in the log.
#[derive(Debug)]
pub(super) struct ImageFolder {
    folder: PathBuf,
    paths: Arc<Vec<PathBuf>>,
    frame_rate: FrameRate,
    is_paced: bool,
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// Ends the thread, also while it waits for the time of a picture.
#[derive(Debug, Default)]
struct Stop {
    is_set: AtomicBool,
    lock: Mutex<()>,
    woken: Condvar,
}

impl Stop {
    fn set(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_set.store(true, Ordering::Release);
        self.woken.notify_all();
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    fn wait(&self, limit: Duration) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _unused = self.woken.wait_timeout_while(guard, limit, |()| !self.is_set());
    }
}

impl ImageFolder {
    /// Lists the pictures of `folder`.
    pub(super) fn open(folder: &Path, frame_rate: FrameRate, is_paced: bool) -> Result<Self, SourceError> {
        let paths = probe::pictures(folder)?;
        Ok(Self { folder: folder.to_owned(), paths: Arc::new(paths), frame_rate, is_paced, reader: None })
    }

    /// Time of frame `idx`, exact over any length.
    fn time_of(frame_rate: FrameRate, idx: usize) -> Duration {
        let nanos = 1_000_000_000 * u128::from(frame_rate.denominator) * u128::try_from(idx).unwrap_or(u128::MAX >> 64)
            / u128::from(frame_rate.numerator);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl FrameSource for ImageFolder {
    fn start(&mut self, inlet: Arc<dyn Inlet>) -> Result<StreamInfo, SourceError> {
        self.stop();
        let (first_size, size) = sync_channel(1);
        let stop = Arc::new(Stop::default());
        let job = Job {
            paths: Arc::clone(&self.paths),
            frame_rate: self.frame_rate,
            is_paced: self.is_paced,
            inlet: Arc::clone(&inlet),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("pictures".into()).spawn(move || job.run(&first_size));
        let thread = thread.map_err(|error| SourceError::Stream(format!("{}: no thread ({error})", self.folder.display())))?;
        self.reader = Some(Reader { stop, thread });
        // The sender goes when the thread ends without a picture.
        let size = loop {
            match size.recv_timeout(STOP_TICK) {
                Err(RecvTimeoutError::Timeout) if !inlet.is_stopped() => {}
                size => break size,
            }
        };
        let Ok((width, height)) = size else {
            self.stop();
            return Err(SourceError::Request(format!(
                "{}: none of {} pictures can be read; the log names each",
                self.folder.display(),
                self.paths.len()
            )));
        };
        Ok(StreamInfo {
            format: PixelFormat::Rgb,
            width,
            height,
            color: crate::frame::ColorInfo::default(),
            frame_rate: Some((self.frame_rate.numerator, self.frame_rate.denominator)),
            duration: Some(Self::time_of(self.frame_rate, self.paths.len())),
            is_live: false,
        })
    }

    fn stop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        reader.stop.set();
        if reader.thread.join().is_err() {
            tracing::error!(folder = %self.folder.display(), "the thread that reads pictures panicked");
        }
    }

    fn name(&self) -> String {
        self.folder.display().to_string()
    }
}

impl Drop for ImageFolder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the thread works on.
struct Job {
    paths: Arc<Vec<PathBuf>>,
    frame_rate: FrameRate,
    is_paced: bool,
    inlet: Arc<dyn Inlet>,
    stop: Arc<Stop>,
}

impl Job {
    /// Reads every picture; sends the size of the first good one.
    fn run(self, first_size: &SyncSender<(usize, usize)>) {
        let began = self.inlet.now();
        let mut n_good = 0_usize;
        for (idx, path) in self.paths.iter().enumerate() {
            let pts = ImageFolder::time_of(self.frame_rate, idx);
            if self.is_paced {
                self.stop.wait((began + pts).saturating_sub(self.inlet.now()));
            }
            if self.stop.is_set() {
                return;
            }
            self.inlet.captured();
            let captured_at = self.inlet.now();
            // A reader that panics must not leave the stream without an end.
            let picture = catch_unwind(AssertUnwindSafe(|| images::open(path).map_err(|error| error.to_string())));
            let picture = picture.unwrap_or_else(|_| Err("its reader panicked".to_owned()));
            let frame = picture.and_then(|picture| {
                let duration = ImageFolder::time_of(self.frame_rate, idx + 1) - pts;
                let id = FrameId(u64::try_from(idx).unwrap_or(u64::MAX));
                let stamps = Stamps { id, pts: Some(pts), duration: Some(duration), captured_at };
                let size = (picture.width, picture.height);
                let planes = OwnedPlanes::new(vec![(picture.data, 3 * picture.width)]);
                Frame::new(Box::new(planes), PixelFormat::Rgb, size, Default::default(), stamps)
                    .map_err(|error| error.to_string())
            });
            match frame {
                Ok(frame) => {
                    if n_good == 0 {
                        // `start` waits for it; the channel holds it.
                        let _ = first_size.try_send((frame.width, frame.height));
                    }
                    n_good += 1;
                    if !self.inlet.deliver(frame) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "a picture was left out");
                    self.inlet.drop_frame(DropCause::DecodeError);
                }
            }
        }
        if n_good > 0 && !self.stop.is_set() {
            self.inlet.finish(Ok(()));
        }
    }
}
