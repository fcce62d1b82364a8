//! What the pipeline asks of its neighbours: a source of frames, something that finds objects, a sink that shows them.
//!
//! Frames enter through an [`Inlet`], which the pipeline gives to a [`FrameSource`]; they leave through a [`FrameSink`].
//! Adapters (`gst`) implement these traits; tests implement them with a few lines.

use crate::detection::Detection;
use crate::frame::{ColorInfo, Frame, PictureError, PictureMut, PictureRef, PixelFormat, Stamps};
use std::time::Duration;

/// Time that each stage took for one picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Colour conversion and letterbox.
    pub preprocess: Duration,
    /// The network.
    pub infer: Duration,
    /// Threshold, decode, non-maximum suppression.
    pub postprocess: Duration,
}

/// A picture that could not be looked at; the stream goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// The network failed.
    #[error("the network failed: {0}")]
    Network(String),
    /// The region of interest is not in the picture.
    #[error("{0}; name a region inside, or parts of the picture such as 0,0.25,1.0,0.5")]
    Region(#[from] PictureError),
}

/// Finds objects in pictures.
pub trait Detect: Send {
    /// Whether pictures of `width` x `height` can be looked at: asked once, before the first.
    ///
    /// # Errors
    /// [`DetectError`] saying what they lack.
    fn check(&self, size: (usize, usize)) -> Result<(), DetectError> {
        let _ = size;
        Ok(())
    }

    /// Detections in pixels of `picture`, best first, into `out` (cleared before).
    ///
    /// # Errors
    /// [`DetectError`] if the network fails.
    fn detect(&mut self, picture: &PictureRef<'_>, out: &mut Vec<Detection>) -> Result<StageTimes, DetectError>;

    /// Class names by class id.
    fn labels(&self) -> &[String];
}

/// What is known of a stream once its first frame is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamInfo {
    /// Layout of the samples.
    pub format: PixelFormat,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Colour information.
    pub color: ColorInfo,
    /// Frames per second as a fraction; `None` where the rate varies or is unknown.
    pub frame_rate: Option<(u32, u32)>,
    /// Length of the stream; `None` for live sources and where the container does not say.
    pub duration: Option<Duration>,
    /// Frames arrive at their own pace and are lost if nobody takes them.
    pub is_live: bool,
}

/// Why a frame that was captured did not reach the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropCause {
    /// A newer frame took its place in the queue.
    QueueFull,
    /// Older than the allowed age when its turn came.
    Stale,
    /// The decoder or the mapping of its memory failed.
    DecodeError,
    /// Lost between the decoder and the queue when the stream was flushed or restarted.
    StreamReset,
    /// All frame memory was in use. Reserved: no source of today reports it.
    PoolExhausted,
    /// The network failed on it.
    InferError,
    /// Still waiting when the pipeline was stopped.
    Shutdown,
}

impl DropCause {
    /// Every cause, in the order of the variants.
    pub const ALL: [Self; 7] = [
        Self::QueueFull,
        Self::Stale,
        Self::DecodeError,
        Self::StreamReset,
        Self::PoolExhausted,
        Self::InferError,
        Self::Shutdown,
    ];

    /// Name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Stale => "stale",
            Self::DecodeError => "decode_error",
            Self::StreamReset => "stream_reset",
            Self::PoolExhausted => "pool_exhausted",
            Self::InferError => "infer_error",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Why a source cannot start or cannot go on. The message says what, where and what to do about it; it holds no
/// credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The request is wrong: no such file, no such camera, a URL that is none. Exit code 2.
    #[error("{0}")]
    Request(String),
    /// The stream broke: a truncated file, a lost connection. Exit code 1.
    #[error("{0}")]
    Stream(String),
}

/// Where a source hands over its frames. Implemented by the pipeline; callable from any thread of the source.
pub trait Inlet: Send + Sync {
    /// One frame left the decoder. Counted by the source independently of the queue (a pad probe), once for every
    /// frame, whatever becomes of it.
    fn captured(&self);

    /// Hands over a frame that was captured. Blocks while the queue is full if the pipeline does not drop; otherwise
    /// the oldest waiting frame goes. Returns false once the pipeline has stopped: the source should stop as well.
    fn deliver(&self, frame: Frame) -> bool;

    /// A captured frame will not be delivered.
    fn drop_frame(&self, cause: DropCause);

    /// Time since the pipeline's clock started, for [`Stamps::captured_at`].
    fn now(&self) -> Duration;

    /// Whether the pipeline was asked to stop: a source that still connects gives up.
    fn is_stopped(&self) -> bool {
        false
    }

    /// A stream that was lost goes on: frames come again.
    fn reconnected(&self) {}

    /// The stream is over: at its end, or with an error. Called once; nothing follows.
    fn finish(&self, end: Result<(), SourceError>);
}

/// A stream of frames.
pub trait FrameSource: Send {
    /// Opens the stream and starts it; frames go to `inlet` from the source's own threads. Returns when the first
    /// frame's format is known.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot start; `inlet` is not called any more then.
    fn start(&mut self, inlet: std::sync::Arc<dyn Inlet>) -> Result<StreamInfo, SourceError>;

    /// Stops the stream and waits until no thread of the source calls the inlet any more. May be called twice.
    fn stop(&mut self);

    /// Name for reports and messages, without credentials.
    fn name(&self) -> String;
}

/// Why a sink cannot go on. The message says what, where and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The request is wrong: a folder that cannot be written, a file type that is not known. Exit code 2.
    #[error("{0}")]
    Request(String),
    /// Writing failed: the disk is full, the window was closed. Exit code 1.
    #[error("{0}")]
    Write(String),
}

/// Draws on a picture.
pub type Draw<'a> = dyn FnMut(&mut PictureMut<'_>) + 'a;

/// Takes annotated frames.
pub trait FrameSink: Send {
    /// Prepares for frames like `info`; called once, before the first frame.
    ///
    /// # Errors
    /// [`SinkError`] when it cannot start.
    fn start(&mut self, info: &StreamInfo) -> Result<(), SinkError>;

    /// Copies `picture` into memory of its own, lets `draw` draw on the copy, and passes it on with the stamps of the
    /// frame. Blocks while the sink is busy.
    ///
    /// # Errors
    /// [`SinkError`] when writing failed.
    fn push(&mut self, picture: &PictureRef<'_>, stamps: &Stamps, draw: &mut Draw<'_>) -> Result<(), SinkError>;

    /// Finalises what was written and waits for it. May be called twice.
    ///
    /// # Errors
    /// [`SinkError`] when the file could not be finalised.
    fn finish(&mut self) -> Result<(), SinkError>;

    /// Name for reports and messages.
    fn name(&self) -> String;
}
