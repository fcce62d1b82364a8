//! From a source of frames to detections: the parts that stages are plugged into, and what composes them.

pub mod ports;

pub mod config;
pub mod detections;
pub mod secret;
pub mod spec;

pub mod clock;
pub mod detector;
pub mod evaluate;
pub mod interrupt;
pub mod ledger;
pub mod metrics;
pub mod probe;
pub mod process;
pub mod report;
pub mod runner;
