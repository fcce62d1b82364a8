//! The pipeline's clock: monotonic time, read only at this layer and above.

use std::time::{Duration, Instant};

/// Measures consecutive stages of one frame.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
}

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { last: Instant::now() }
    }

    /// Time since the start or the previous lap.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.last;
        self.last = now;
        lap
    }
}
