//! Real-time object detection on video, on small computers.
//!
//! A source feeds frames through a lock-free queue to an executor that runs a quantised RetinaNet in integers, then
//! to decoding and non-maximum suppression, then to an overlay sink. `ARCHITECTURE.md` has the map.

pub mod detection;
pub mod eval;
pub mod executor;
pub mod frame;
#[cfg(feature = "gst")]
pub mod gst;
pub mod images;
pub mod kernels;
#[cfg(feature = "opencv")]
pub mod overlay;
pub mod pipeline;
pub mod postprocess;
pub mod preprocess;
pub mod quant;
pub mod queue;
pub mod retinanet;
