//! How far a run is and how fast it goes: the line on the screen and the rows of the curve.

use crate::config::FitConfig;
use crate::curve::{Row, resident_mb};
use crate::data;
use crate::loss::Losses;
use fovea::pipeline::clock::Stopwatch;
use indicatif::ProgressBar;
use std::time::Duration;

/// Mean losses and speed since the last line of the curve, and the line on the screen.
pub(crate) struct Progress<'a> {
    config: &'a FitConfig,
    /// The bar; hidden where there is no terminal.
    pub(crate) bar: ProgressBar,
    is_shown: bool,
    clock: Stopwatch,
    n: usize,
    sum: Losses,
    /// Time since the last line, and the part of it that went by waiting for batches.
    spent: Duration,
    waited: Duration,
    /// Steps and their time since the start.
    total: (usize, Duration),
}

impl<'a> Progress<'a> {
    /// At iteration `first`; `is_shown`: on the screen.
    pub(crate) fn start(config: &'a FitConfig, first: usize, is_shown: bool) -> Self {
        let bar = if is_shown { data::progress(config.iterations, "training") } else { ProgressBar::hidden() };
        bar.set_position(first as u64);
        Self {
            config,
            bar,
            is_shown,
            clock: Stopwatch::start(),
            n: 0,
            sum: Losses::default(),
            spent: Duration::ZERO,
            waited: Duration::ZERO,
            total: (0, Duration::ZERO),
        }
    }

    /// A batch is asked for.
    pub(crate) fn before_wait(&mut self) {
        self.spent += self.clock.lap();
    }

    /// It is there.
    pub(crate) fn after_wait(&mut self) {
        let lap = self.clock.lap();
        self.spent += lap;
        self.waited += lap;
    }

    /// What was just done is no part of a step.
    pub(crate) fn forget_time(&mut self) {
        self.clock.lap();
    }

    /// A step is done.
    pub(crate) fn add(&mut self, losses: Losses) {
        self.spent += self.clock.lap();
        self.n += 1;
        self.sum.cls += losses.cls;
        self.sum.bbox += losses.bbox;
        self.sum.norm += losses.norm;
        self.sum.distill.iter_mut().zip(losses.distill).for_each(|(sum, loss)| *sum += loss);
        self.bar.inc(1);
    }

    /// Shows where the run is, and starts the next line.
    pub(crate) fn row(&mut self, done: usize, lr: f64) -> Row {
        let n = self.n.max(1) as f64;
        let mean = |sum: f64| sum / n;
        let losses = Losses {
            cls: mean(self.sum.cls),
            bbox: mean(self.sum.bbox),
            norm: mean(self.sum.norm),
            distill: self.sum.distill.map(mean),
        };
        let spent = self.spent.as_secs_f64().max(1e-9);
        let row = Row {
            lr,
            losses,
            images_per_s: (self.n * self.config.batch) as f64 / spent,
            wait_share: self.waited.as_secs_f64() / spent,
        };
        self.total = (self.total.0 + self.n, self.total.1 + self.spent);
        let left = self.total.1.as_secs_f64() / self.total.0.max(1) as f64 * (self.config.iterations - done) as f64;
        let mut text = format!("cls {:.3} box {:.3} norm {:.2}", losses.cls, losses.bbox, losses.norm);
        if self.config.distill.is_some() {
            let [logits, boxes, features] = losses.distill;
            text += &format!(" teacher {logits:.3} {boxes:.3} {features:.3}");
        }
        text += &format!(", {:.1} img/s, {:.0} % waiting", row.images_per_s, 100.0 * row.wait_share);
        if let Some(memory) = resident_mb() {
            text += &format!(", {memory:.0} MB");
        }
        if self.is_shown && self.bar.is_hidden() && done.is_multiple_of(100) {
            let minutes = (left / 60.0).ceil() as usize;
            say!("{done}/{} {text}, {} h {:02} min left", self.config.iterations, minutes / 60, minutes % 60);
        }
        self.bar.set_message(text);
        (self.n, self.sum, self.spent, self.waited) = (0, Losses::default(), Duration::ZERO, Duration::ZERO);
        row
    }
}
