//! What the pipeline asks of its neighbours: something that finds objects in a picture.

use crate::detection::Detection;
use crate::frame::PictureRef;
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
#[error("the network failed: {0}")]
pub struct DetectError(pub String);

/// Finds objects in pictures.
pub trait Detect: Send {
    /// Detections in pixels of `picture`, best first, into `out` (cleared before).
    ///
    /// # Errors
    /// [`DetectError`] if the network fails.
    fn detect(&mut self, picture: &PictureRef<'_>, out: &mut Vec<Detection>) -> Result<StageTimes, DetectError>;

    /// Class names by class id.
    fn labels(&self) -> &[String];
}
