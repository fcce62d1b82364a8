//! The JSON report of a run: the contract that scripts rely on.

use super::ledger::{Balance, Dropped};
use super::metrics::{Metrics, Quantiles, Stage};
use super::process::ProcessFigures;
use super::spec::Pace;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::time::Duration;

/// What a run did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether frames were dropped for newer ones.
    pub pace: Pace,
    /// One entry for each stream.
    pub streams: Vec<StreamReport>,
    /// From the first frame until everything was written.
    pub wall_seconds: f64,
    /// Processor time of all threads during the run.
    pub cpu_seconds: Option<f64>,
    /// Processor time for each inferred frame.
    pub cpu_ms_per_frame: Option<f64>,
    /// Memory in use at the end.
    pub rss_bytes: Option<u64>,
    /// The most memory that was in use.
    pub peak_rss_bytes: Option<u64>,
    /// Why the run ended.
    pub ended: String,
    /// What went wrong, if the run failed.
    pub error: Option<String>,
}

/// What became of one stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamReport {
    /// Name of the stream.
    pub name: String,
    /// Name of the source, without credentials.
    pub source: String,
    /// How often the stream was lost and came again.
    pub reconnects: u64,
    /// The ledger.
    pub frames: Frames,
    /// Frames per second over the whole run.
    pub fps: Fps,
    /// Latency by stage.
    pub latency_ms: Latencies,
}

/// The ledger: captured = inferred + dropped + in flight.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Frames {
    /// Frames that left the decoder.
    pub captured: u64,
    /// Frames that went through the network.
    pub inferred: u64,
    /// Frames that are neither; 0 at the end.
    pub in_flight: u64,
    /// Frames that went another way, by cause.
    pub dropped: Dropped,
}

impl From<&Balance> for Frames {
    fn from(balance: &Balance) -> Self {
        let Balance { captured, inferred, dropped, .. } = *balance;
        Self { captured, inferred, in_flight: balance.in_flight(), dropped }
    }
}

/// Frames per second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Fps {
    /// Out of the decoder.
    pub captured: f64,
    /// Through the network.
    pub inferred: f64,
    /// To the sink.
    pub emitted: f64,
}

impl Fps {
    /// Rates of a run that took `wall`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "frame counts are far below 2^53")]
    pub fn new(balance: &Balance, wall: Duration) -> Self {
        let seconds = wall.as_secs_f64().max(1e-9);
        let rate = |n: u64| (n as f64 / seconds * 1e3).round() / 1e3;
        Self { captured: rate(balance.captured), inferred: rate(balance.inferred), emitted: rate(balance.emitted) }
    }
}

/// Latency by stage; stages that no frame went through are left out.
#[derive(Debug, Clone)]
pub struct Latencies(pub Vec<(Stage, Quantiles)>);

impl Latencies {
    /// The stages that frames went through.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let stages = Stage::ALL.into_iter().filter(|&stage| !metrics.stage(stage).is_empty());
        Self(stages.map(|stage| (stage, metrics.stage(stage).quantiles())).collect())
    }

    /// Quantiles of a stage.
    #[must_use]
    pub fn of(&self, stage: Stage) -> Option<Quantiles> {
        self.0.iter().find(|(found, _)| *found == stage).map(|&(_, quantiles)| quantiles)
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (stage, quantiles) in &self.0 {
            map.serialize_entry(stage.name(), quantiles)?;
        }
        map.end()
    }
}

impl Report {
    /// Fills in what the process used since `before`.
    pub fn set_process(&mut self, before: &ProcessFigures, now: &ProcessFigures) {
        let rounded = |x: f64| (x * 1e3).round() / 1e3;
        self.cpu_seconds = now.cpu_seconds.map(|now| rounded(now - before.cpu_seconds.unwrap_or(0.0)));
        let inferred: u64 = self.streams.iter().map(|stream| stream.frames.inferred).sum();
        #[expect(clippy::cast_precision_loss, reason = "frame counts are far below 2^53")]
        let per_frame = |seconds: f64| (inferred > 0).then(|| rounded(seconds * 1e3 / inferred as f64));
        self.cpu_ms_per_frame = self.cpu_seconds.and_then(per_frame);
        self.rss_bytes = now.rss_bytes;
        self.peak_rss_bytes = now.peak_rss_bytes;
    }

    /// The report as JSON.
    ///
    /// # Panics
    /// Never: every report can be written.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data")
    }
}
