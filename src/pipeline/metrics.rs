//! How long the stages take: a histogram of fixed size for each, nothing allocated per frame.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a frame goes through. The times of the stages before `Total` add up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From leaving the decoder until the frame is handed over: conversion to an accepted format, mapping.
    Decode,
    /// Until its turn comes.
    Queue,
    /// Colour conversion and letterbox.
    Preprocess,
    /// The network.
    Infer,
    /// Threshold, decode, non-maximum suppression.
    Postprocess,
    /// Writing the detections.
    Write,
    /// Drawing.
    Overlay,
    /// Copying the picture, waiting for the encoder or the display.
    Sink,
    /// From leaving the decoder until the annotated frame was passed on.
    Total,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 9] = [
        Self::Decode,
        Self::Queue,
        Self::Preprocess,
        Self::Infer,
        Self::Postprocess,
        Self::Write,
        Self::Overlay,
        Self::Sink,
        Self::Total,
    ];

    /// Name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Queue => "queue",
            Self::Preprocess => "preprocess",
            Self::Infer => "infer",
            Self::Postprocess => "postprocess",
            Self::Write => "write",
            Self::Overlay => "overlay",
            Self::Sink => "sink",
            Self::Total => "total",
        }
    }
}

/// Steps of a histogram within each power of two: quantiles are exact to 1/64.
const STEPS: usize = 64;

/// Powers of two of microseconds above [`STEPS`]: up to 2^36 µs, 19 hours.
const OCTAVES: usize = 30;

/// Times in logarithmic steps.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u32]>,
    n: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; STEPS * (OCTAVES + 1)].into_boxed_slice(), n: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        let micros = usize::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(usize::MAX);
        let step = step_of(micros).min(self.counts.len() - 1);
        self.counts[step] = self.counts[step].saturating_add(1);
        self.n += 1;
        self.max = self.max.max(time);
    }

    /// Number of times.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.n
    }

    /// Whether no time was recorded.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The time that `permille` of 1000 are not above (nearest rank, rounded up to the step, at most the longest).
    #[must_use]
    pub fn quantile(&self, permille: u64) -> Duration {
        let rank = (self.n * permille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (step, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Duration::from_micros(u64::try_from(end_of(step)).unwrap_or(u64::MAX)).min(self.max);
            }
        }
        self.max
    }

    /// Quantiles in milliseconds.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        Quantiles { p50: ms(self.quantile(500)), p90: ms(self.quantile(900)), p99: ms(self.quantile(990)), max: ms(self.max) }
    }
}

/// Step that a number of microseconds falls in: itself below [`STEPS`], then 64 steps to each doubling.
const fn step_of(micros: usize) -> usize {
    if micros < STEPS {
        return micros;
    }
    let octave = (micros.ilog2() - STEPS.ilog2()) as usize;
    STEPS * octave + (micros >> octave)
}

/// Last number of microseconds of a step.
const fn end_of(step: usize) -> usize {
    if step < STEPS {
        return step;
    }
    let octave = step / STEPS - 1;
    ((step - STEPS * octave + 1) << octave) - 1
}

/// Quantiles of a stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90 of 100 frames are not above.
    pub p90: f64,
    /// 99 of 100 frames are not above.
    pub p99: f64,
    /// The slowest frame.
    pub max: f64,
}

/// One histogram for each stage.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    stages: [Histogram; Stage::ALL.len()],
}

impl Metrics {
    /// Adds the time that a frame took in a stage.
    pub fn record(&mut self, stage: Stage, time: Duration) {
        self.stages[stage as usize].record(time);
    }

    /// The times of a stage.
    #[must_use]
    pub const fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_contiguous_and_narrow() {
        for step in 0..STEPS * (OCTAVES + 1) {
            let start = if step == 0 { 0 } else { end_of(step - 1) + 1 };
            assert_eq!((step_of(start), step_of(end_of(step))), (step, step));
            assert!((end_of(step) - start) * STEPS <= start, "step {step}: {start} to {}", end_of(step));
        }
    }

    #[test]
    fn quantiles_of_known_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        (1..=1000).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let quantiles = histogram.quantiles();
        for (found, exact) in [(quantiles.p50, 500.0), (quantiles.p90, 900.0), (quantiles.p99, 990.0)] {
            assert!((0.0..=exact / 64.0).contains(&(found - exact)), "{found}, exactly {exact}");
        }
        assert!((quantiles.max - 1000.0).abs() < 1e-9);
        // Rounded up to a microsecond, but not beyond the longest.
        let mut short = Histogram::default();
        [100, 900, 1900].map(Duration::from_nanos).into_iter().for_each(|time| short.record(time));
        let Quantiles { p50, max, .. } = short.quantiles();
        assert!((p50 - 0.001).abs() < 1e-9 && (max - 0.002).abs() < 1e-9, "{p50} {max}");
        histogram.record(Duration::from_secs(u64::MAX));
        assert_eq!(histogram.len(), 1001);
    }
}
