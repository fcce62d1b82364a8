//! From a source of frames to detections: the parts that stages are plugged into, and what composes them.

pub mod clock;
pub mod detector;
pub mod ports;
pub mod secret;
pub mod spec;
