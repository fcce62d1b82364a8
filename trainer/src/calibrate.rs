//! Ranges of activations from real pictures, and the scales that follow from them.
//!
//! Two passes over the pictures: the first finds the extremes of every activation, the second counts values in
//! histograms between them. A range is then chosen for the least squared error, not by the extremes, which a single
//! outlier would set. Activations that only pass values on (slice, shuffle, concatenation, pooling, upsampling) share
//! one range with what they pass on, so that passing on costs nothing and loses nothing.

use crate::graph::{Graph, Op, ValueId};
use crate::package::planar;
use crate::spec::Pixels;
use anyhow::{Context, Result, bail};
use fovea::executor::{LoadOptions, Network};
use fovea::quant::QuantParams;
use indicatif::ProgressBar;
use rayon::prelude::*;

/// Buckets of a histogram.
const N_BUCKETS: usize = 4096;

/// Logits below this stand for scores of 0.001 and less: there is nothing to resolve there.
pub(crate) const LOWEST_LOGIT: f32 = -6.9;

/// Deltas are looked at where some score is above that of this logit: elsewhere nothing is decoded.
const DECODED_LOGIT: f32 = -3.0;

/// Values of one activation, or of several that share a range.
#[derive(Debug, Clone)]
struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

impl Histogram {
    fn new(low: f32, high: f32) -> Self {
        Self { low: low.min(0.0), high: high.max(0.0).max(low.min(0.0) + 1e-6), counts: vec![0; N_BUCKETS] }
    }

    fn add(&mut self, value: f32) {
        let place = (value - self.low) / (self.high - self.low) * N_BUCKETS as f32;
        self.counts[(place.max(0.0) as usize).min(N_BUCKETS - 1)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
    }

    /// Mean squared error of quantising the values to `low..=high`.
    fn error(&self, low: f32, high: f32) -> f64 {
        let step = f64::from(high - low) / 255.0;
        let width = (f64::from(self.high) - f64::from(self.low)) / N_BUCKETS as f64;
        let mut sum = 0.0;
        let mut n = 0.0;
        for (bucket, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let value = f64::from(self.low) + (bucket as f64 + 0.5) * width;
            let beyond = (f64::from(low) - value).max(value - f64::from(high)).max(0.0);
            let error = if beyond > 0.0 { beyond * beyond } else { step * step / 12.0 };
            sum += error * count as f64;
            n += count as f64;
        }
        sum / f64::max(n, 1.0)
    }

    /// The range with the least error among shares of the extremes.
    fn best_range(&self) -> (f32, f32) {
        let shares: Vec<f32> = (6..=40_u8).map(|i| f32::from(i) / 40.0).collect();
        let mut best = (self.low, self.high);
        let mut least = self.error(best.0, best.1);
        for &high in &shares {
            for &low in if self.low < 0.0 { &shares[..] } else { &shares[..1] } {
                let range = (self.low * low, self.high * high);
                let error = self.error(range.0, range.1);
                if error < least {
                    (best, least) = (range, error);
                }
            }
        }
        best
    }
}

/// `u8` parameters for real values from `low` to `high`; 0 is always exact.
pub(crate) fn params_for(low: f32, high: f32) -> Result<QuantParams> {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = ((high - low) / 255.0).max(1e-6);
    let zero_point = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
    Ok(QuantParams::new(scale, zero_point)?)
}

/// Values that have one range: the root of each value's group.
pub(crate) fn groups(graph: &Graph) -> Vec<ValueId> {
    let mut root: Vec<ValueId> = (0..graph.values.len()).collect();
    fn find(root: &[ValueId], mut id: ValueId) -> ValueId {
        while root[id] != id {
            id = root[id];
        }
        id
    }
    for node in &graph.nodes {
        if matches!(node.op, Op::Slice { .. } | Op::Shuffle | Op::Concat | Op::MaxPool | Op::Upsample2) {
            for &id in node.inputs.iter().chain(&node.outputs) {
                let (a, b) = (find(&root, id), find(&root, node.outputs[0]));
                // The input keeps parameters of its own.
                if a != 0 && b != 0 {
                    root[a.max(b)] = a.min(b);
                }
            }
        }
    }
    (0..root.len()).map(|id| find(&root, id)).collect()
}

/// Smallest and largest value of every group.
type Extremes = Vec<(f32, f32)>;

/// Parameters of every activation, from `pictures`: network inputs `[H, W, 3]`, RGB.
///
/// `model` is the network in float with every value of `taps` among its outputs, in that order, behind the heads.
pub(crate) fn calibrate(
    graph: &Graph,
    model: &[u8],
    taps: &[ValueId],
    pictures: &[Vec<u8>],
    bar: &ProgressBar,
) -> Result<Vec<QuantParams>> {
    let root = groups(graph);
    let n_levels = graph.levels.len();
    let mut order: Vec<ValueId> =
        graph.levels.iter().map(|level| level.0).chain(graph.levels.iter().map(|level| level.1)).collect();
    order.extend(taps);

    let none = || -> Extremes { vec![(0.0, 0.0); graph.values.len()] };
    let by_thread = over_pictures(model, graph.pixels, pictures, bar, none, |seen, outputs| {
        for (place, (output, &id)) in outputs.iter().zip(&order).enumerate() {
            let (low, high) = &mut seen[root[id]];
            let mut add = |value: f32| (*low, *high) = (low.min(value), high.max(value));
            if (n_levels..2 * n_levels).contains(&place) {
                decoded(&outputs[place - n_levels], output).for_each(&mut add);
            } else {
                output.values.iter().copied().for_each(&mut add);
            }
        }
    })?;
    let mut range = none();
    for seen in &by_thread {
        for (range, seen) in range.iter_mut().zip(seen) {
            *range = (range.0.min(seen.0), range.1.max(seen.1));
        }
    }
    if range.iter().any(|(low, high)| !(low.is_finite() && high.is_finite())) {
        bail!("an activation is not finite on some calibration picture: the weights are broken");
    }
    for &(cls, _) in &graph.levels {
        range[cls].0 = range[cls].0.max(LOWEST_LOGIT);
    }

    let empty = || -> Vec<Option<Histogram>> { vec![None; graph.values.len()] };
    let by_thread = over_pictures(model, graph.pixels, pictures, bar, empty, |histograms, outputs| {
        for (output, &id) in outputs.iter().zip(&order).skip(2 * n_levels) {
            let (low, high) = range[root[id]];
            let histogram = histograms[root[id]].get_or_insert_with(|| Histogram::new(low, high));
            output.values.iter().for_each(|&value| histogram.add(value));
        }
    })?;
    let mut histograms = empty();
    for seen in by_thread {
        for (all, seen) in histograms.iter_mut().zip(seen) {
            match (all.as_mut(), seen) {
                (Some(all), Some(seen)) => all.merge(&seen),
                (None, seen) => *all = seen,
                (Some(_), None) => {}
            }
        }
    }
    (0..graph.values.len())
        .map(|id| {
            if id == 0 {
                // A pixel's value is its quantised value, unless mean and deviation come between.
                return if graph.pixels == Pixels::default() {
                    Ok(QuantParams::new(1.0 / 255.0, 0)?)
                } else {
                    let (low, high) = graph.pixels.range();
                    params_for(low, high)
                };
            }
            let (low, high) = histograms[root[id]].as_ref().map_or(range[root[id]], Histogram::best_range);
            params_for(low, high)
        })
        .collect()
}

/// One output of the network for one picture: values `[C, cells]`.
struct Output {
    values: Vec<f32>,
    n_cells: usize,
}

/// Deltas `[A x 4, cells]` of the anchors that have a score worth decoding, given logits `[A x K, cells]`.
fn decoded<'a>(logits: &'a Output, deltas: &'a Output) -> impl Iterator<Item = f32> + 'a {
    let n_cells = deltas.n_cells;
    let n_anchors = deltas.values.len() / (4 * n_cells);
    let n_classes = logits.values.len() / (n_anchors * n_cells);
    let is_worth = move |anchor: usize, cell: usize| {
        (0..n_classes).any(|class| logits.values[(anchor * n_classes + class) * n_cells + cell] > DECODED_LOGIT)
    };
    (0..n_anchors)
        .flat_map(move |anchor| (0..n_cells).map(move |cell| (anchor, cell)))
        .filter(move |&(anchor, cell)| is_worth(anchor, cell))
        .flat_map(move |(anchor, cell)| (0..4).map(move |k| deltas.values[(anchor * 4 + k) * n_cells + cell]))
}

/// Runs the network over all pictures, on every processor, each with an accumulator of its own.
fn over_pictures<T: Send>(
    model: &[u8],
    pixels: Pixels,
    pictures: &[Vec<u8>],
    bar: &ProgressBar,
    start: impl Fn() -> T + Sync,
    visit: impl Fn(&mut T, &[Output]) + Sync,
) -> Result<Vec<T>> {
    let per_thread = pictures.len().div_ceil(rayon::current_num_threads()).max(1);
    let run = |pictures: &[Vec<u8>]| -> Result<T> {
        let mut network =
            Network::load(model, &LoadOptions { allow_float: true, ..LoadOptions::default() }).context("calibration")?;
        let cells: Vec<usize> = network.outputs().iter().map(|output| output.shape.h * output.shape.w).collect();
        let mut accumulated = start();
        for picture in pictures {
            let outputs = network.run_f32(&planar(picture, pixels)).context("calibration")?;
            let output = |(values, &n_cells): (&fovea::kernels::Reals, &usize)| Output { values: values.to_vec(), n_cells };
            let outputs: Vec<Output> = outputs.iter().zip(&cells).map(output).collect();
            visit(&mut accumulated, &outputs);
            bar.inc(1);
        }
        Ok(accumulated)
    };
    pictures.par_chunks(per_thread).map(run).collect()
}
