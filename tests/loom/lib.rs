//! `src/queue` by itself; its models are the tests of this package.

#[path = "../../src/queue/mod.rs"]
pub mod queue;
