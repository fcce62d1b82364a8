//! Sources and sinks, where this build has GStreamer.

use super::Failure;
use fovea::pipeline::ports::FrameSource;
use fovea::pipeline::spec::SourceSpec;

#[cfg(all(feature = "gst", feature = "opencv"))]
use fovea::pipeline::ports::{FrameSink, SinkError};
#[cfg(all(feature = "gst", feature = "opencv"))]
use fovea::pipeline::spec::SinkSpec;

/// Opens a source.
#[cfg(feature = "gst")]
pub(super) fn open_source(spec: &SourceSpec) -> Result<Box<dyn FrameSource>, Failure> {
    use fovea::pipeline::ports::SourceError;
    fovea::gst::open_source(spec).map_err(|error| match error {
        SourceError::Request(_) => Failure::request(error),
        _ => Failure::failed(error),
    })
}

/// Opens a source.
#[cfg(not(feature = "gst"))]
pub(super) fn open_source(spec: &SourceSpec) -> Result<Box<dyn FrameSource>, Failure> {
    Err(no_gstreamer(spec))
}

/// Opens a sink.
#[cfg(all(feature = "gst", feature = "opencv"))]
pub(super) fn open_sink(spec: &SinkSpec) -> Result<Box<dyn FrameSink>, Failure> {
    fovea::gst::open_sink(spec).map_err(|error| match error {
        SinkError::Request(_) => Failure::request(error),
        _ => Failure::failed(error),
    })
}

/// Opens a sink.
#[cfg(all(not(feature = "gst"), feature = "opencv"))]
pub(super) fn open_sink(spec: &fovea::pipeline::spec::SinkSpec) -> Result<Box<dyn fovea::pipeline::ports::FrameSink>, Failure> {
    Err(no_gstreamer(spec))
}

#[cfg(not(feature = "gst"))]
fn no_gstreamer(what: &dyn std::fmt::Display) -> Failure {
    Failure::request(anyhow::anyhow!(
        "this build of fovea has no GStreamer, so it cannot open {what}: build with the feature `gst`; `fovea detect` reads pictures without it"
    ))
}
