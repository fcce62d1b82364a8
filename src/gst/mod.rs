//! GStreamer behind the pipeline's ports: sources that decode, sinks that encode or show.
//!
//! Input is a checked [`SourceSpec`] or [`SinkSpec`], output an implementation of
//! [`FrameSource`] or [`FrameSink`]. Invariants:
//! no frame is lost or converted behind the pipeline's back (`intake` accounts for every buffer that left the decoder),
//! no message holds credentials (`fault` scrubs what GStreamer says), nothing waits for ever.

mod caps;
mod elements;
mod encoder;
mod fault;
mod images;
mod intake;
mod sink;
mod source;
mod whole;

use crate::pipeline::ports::{FrameSink, FrameSource, SinkError, SourceError};
use crate::pipeline::spec::{SinkSpec, SourceKind, SourceSpec};
use gstreamer::glib;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Opens a source: checks what can be checked without starting it.
///
/// # Errors
/// [`SourceError`] when what the spec names is not there.
pub fn open_source(spec: &SourceSpec) -> Result<Box<dyn FrameSource>, SourceError> {
    if let SourceKind::Images { folder, frame_rate } = &spec.kind {
        return Ok(Box::new(images::ImageFolder::open(folder, *frame_rate, spec.sync)?));
    }
    init().map_err(SourceError::Request)?;
    Ok(Box::new(source::PipelineSource::open(spec)?))
}

/// Opens a sink: checks that its elements are installed and that its folder is there. Nothing is written yet.
///
/// # Errors
/// [`SinkError`] when it cannot work.
pub fn open_sink(spec: &SinkSpec) -> Result<Box<dyn FrameSink>, SinkError> {
    init().map_err(SinkError::Request)?;
    Ok(Box::new(sink::PipelineSink::open(spec)?))
}

/// Starts GStreamer once. What its libraries would print to stderr goes to the log; `GST_DEBUG` still works.
fn init() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            glib::log_set_default_handler(|domain, level, text| {
                let domain = domain.unwrap_or_default();
                tracing::debug!(domain, ?level, text = fault::without_user_info(text), "GLib");
            });
            gstreamer::init().map_err(|error| format!("GStreamer cannot start: {error}; reinstall the package libgstreamer1.0-0"))
        })
        .clone()
}

/// Sets a pipeline to NULL, which ends its threads. Gives up after `limit`: a driver that hangs must not take the
/// program with it. Returns whether it worked.
fn shut_down(pipeline: &gstreamer::Pipeline, limit: Duration) -> bool {
    use gstreamer::prelude::ElementExt;
    let (done, wait) = sync_channel(1);
    let pipeline = pipeline.clone();
    std::thread::spawn(move || {
        // A failure to reach NULL cannot be helped; the elements are gone either way.
        let _ = pipeline.set_state(gstreamer::State::Null);
        let _ = done.send(());
    });
    wait.recv_timeout(limit).is_ok()
}
