//! Ranges of activations from real pictures, and the scales that follow from them.
//!
//! Two passes over the pictures: the first finds the extremes of every activation, the second counts values in
//! histograms between them. A [`Method`] then makes a range of each histogram. Activations that only pass values on
//! (slice, shuffle, concatenation, pooling, upsampling) share one range with what they pass on, so that passing on costs
//! nothing and loses nothing. The heads keep their extremes whatever the method: their largest values are the detections.

use crate::data::{Folder, progress};
use crate::export::float_model;
use crate::fold::Folded;
use crate::graph::{Graph, Op, ValueId};
use crate::package::planar;
use crate::request::Request;
use crate::spec::{ModelSpec, Pixels};
use anyhow::{Context, Result, bail};
use fovea::executor::{LoadOptions, Network, onnx};
use fovea::images;
use fovea::preprocess::Preprocessor;
use fovea::quant::QuantParams;
use indicatif::ProgressBar;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Buckets of a histogram.
const N_BUCKETS: usize = 4096;

/// Deltas that a level has to show for a range of its own: four for each box.
const FEW_DELTAS: usize = 400;

/// Logits below this stand for scores of 0.001 and less: there is nothing to resolve there.
pub(crate) const LOWEST_LOGIT: f32 = -6.9;

/// Deltas are looked at where some score is above that of this logit: elsewhere nothing is decoded.
pub(crate) const DECODED_LOGIT: f32 = -3.0;

/// Share of the values beyond each end of a range by percentile.
const BEYOND: f64 = 1e-4;

/// How a range is made of the values seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Method {
    /// From the smallest to the largest.
    Minmax,
    /// Without the outermost ten-thousandth at each end.
    Percentile,
    /// Least squared error.
    Mse,
    /// Least divergence (Kullback-Leibler) of the distribution.
    Entropy,
}

impl Method {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Minmax, Self::Percentile, Self::Mse, Self::Entropy];
}

/// Values of one activation, or of several that share a range. Exact zeros, which every range represents, are left out.
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
        if value != 0.0 {
            let place = (value - self.low) / (self.high - self.low) * N_BUCKETS as f32;
            self.counts[(place.max(0.0) as usize).min(N_BUCKETS - 1)] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
    }

    fn range(&self, method: Method) -> (f32, f32) {
        match method {
            Method::Minmax => (self.low, self.high),
            Method::Percentile => self.percentiles(),
            Method::Mse => self.best_range(error),
            Method::Entropy => self.best_range(divergence),
        }
    }

    fn width(&self) -> f64 {
        (f64::from(self.high) - f64::from(self.low)) / N_BUCKETS as f64
    }

    /// Middle of each bucket that is not empty, and its count.
    fn filled(&self) -> Vec<(f64, f64)> {
        let middle = |bucket: usize| f64::from(self.low) + (bucket as f64 + 0.5) * self.width();
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, &count)| (middle(bucket), count as f64)).collect()
    }

    fn percentiles(&self) -> (f32, f32) {
        let allowed = self.counts.iter().sum::<u64>() as f64 * BEYOND;
        let beyond = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut sum = 0.0;
            counts
                .take_while(|&&count| {
                    sum += count as f64;
                    sum <= allowed
                })
                .count()
        };
        let (below, above) = (beyond(&mut self.counts.iter()), beyond(&mut self.counts.iter().rev()));
        let cut = |buckets: usize| (buckets as f64 * self.width()) as f32;
        ((self.low + cut(below)).min(0.0), (self.high - cut(above)).max(0.0))
    }

    /// The range of least cost among shares of the extremes: first the upper end, then the lower, then both again.
    fn best_range(&self, cost: fn(&[(f64, f64)], f32, f32) -> f64) -> (f32, f32) {
        let values = self.filled();
        let cost = |low, high| cost(&values, low, high);
        let shares: Vec<f32> = (6..=64_u8).rev().map(|i| f32::from(i) / 64.0).collect();
        let (mut low, mut high) = (self.low, self.high);
        let least = |of: &dyn Fn(f32) -> f64| shares.iter().copied().min_by(|&a, &b| of(a).total_cmp(&of(b))).unwrap_or(1.0);
        for _ in 0..2 {
            high = self.high * least(&|share| cost(low, self.high * share));
            if self.low < 0.0 {
                low = self.low * least(&|share| cost(self.low * share, high));
            }
        }
        (low, high)
    }
}

/// Mean squared error of quantising values (and how often each is there) to `low..=high`.
fn error(values: &[(f64, f64)], low: f32, high: f32) -> f64 {
    let step = f64::from(high - low) / 255.0;
    let (mut sum, mut n) = (0.0, 0.0);
    for &(value, count) in values {
        let beyond = (f64::from(low) - value).max(value - f64::from(high)).max(0.0);
        let error = if beyond > 0.0 { beyond * beyond } else { step * step / 12.0 };
        sum += error * count;
        n += count;
    }
    sum / f64::max(n, 1.0)
}

/// Divergence of the quantised distribution from that of the values, both within `low..=high`: what lies beyond is
/// at the ends of the one and missing in the other; each step spreads its values evenly over its buckets.
fn divergence(values: &[(f64, f64)], low: f32, high: f32) -> f64 {
    const N_STEPS: usize = 256;
    let step = f64::from(high - low) / (N_STEPS - 1) as f64;
    let place = |value: f64| (((value - f64::from(low)) / step).round_ties_even().max(0.0) as usize).min(N_STEPS - 1);
    let is_inside = |value: f64| (f64::from(low)..=f64::from(high)).contains(&value);
    let (mut inside, mut n_buckets, mut beyond) = ([0.0; N_STEPS], [0.0; N_STEPS], [0.0; 2]);
    for &(value, count) in values {
        if is_inside(value) {
            inside[place(value)] += count;
            n_buckets[place(value)] += 1.0;
        } else {
            beyond[usize::from(value > 0.0)] += count;
        }
    }
    let n_inside: f64 = inside.iter().sum();
    let n_all = n_inside + beyond[0] + beyond[1];
    let mut sum = 0.0;
    let mut add = |count: f64, quantized: f64| {
        let (p, q) = (count / n_all, (quantized / n_inside.max(1.0)).max(1e-9));
        sum += p * (p / q).ln();
    };
    let is_in = |&&(value, _): &&(f64, f64)| is_inside(value);
    let ends = [values.iter().find(is_in), values.iter().rfind(is_in)];
    for &(value, count) in values.iter().filter(is_in) {
        let is_end = |end: usize| ends[end].is_some_and(|(at, _)| *at == value);
        let outside = if is_end(0) { beyond[0] } else { 0.0 } + if is_end(1) { beyond[1] } else { 0.0 };
        add(count + outside, inside[place(value)] / n_buckets[place(value)]);
    }
    if n_inside > 0.0 { sum } else { f64::INFINITY }
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

/// What the pictures showed of a network's activations.
#[derive(Debug)]
pub(crate) struct Observed {
    pixels: Pixels,
    /// The root of each value's group.
    pub(crate) root: Vec<ValueId>,
    extremes: Extremes,
    /// By root; `None` for the input and the heads.
    histograms: Vec<Option<Histogram>>,
    /// By value: mean and largest magnitude of each channel.
    pub(crate) channels: Vec<Vec<Channel>>,
}

/// One channel of an activation over all pictures.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Channel {
    /// Mean value.
    pub(crate) mean: f64,
    /// Largest magnitude.
    pub(crate) largest: f32,
}

impl Observed {
    /// Parameters of value `id` by `method`.
    pub(crate) fn params(&self, id: ValueId, method: Method) -> Result<QuantParams> {
        if id == 0 {
            // A pixel's value is its quantised value, unless mean and deviation come between.
            return if self.pixels == Pixels::default() {
                Ok(QuantParams::new(1.0 / 255.0, 0)?)
            } else {
                let (low, high) = self.pixels.range();
                params_for(low, high)
            };
        }
        let root = self.root[id];
        let (low, high) = self.histograms[root].as_ref().map_or(self.extremes[root], |values| values.range(method));
        params_for(low, high)
    }

    /// Groups for which there is a choice of method: their roots.
    pub(crate) fn choices(&self) -> impl Iterator<Item = ValueId> {
        self.histograms.iter().enumerate().filter(|(_, values)| values.is_some()).map(|(root, _)| root)
    }

    /// Parameters of every value, with the method that `of` gives for its group.
    pub(crate) fn activations(&self, of: impl Fn(ValueId) -> Method + Sync) -> Result<Vec<QuantParams>> {
        let by_root: Result<Vec<QuantParams>> = (0..self.root.len())
            .into_par_iter()
            .map(|id| self.params(id, if self.root[id] == id { of(id) } else { Method::Minmax }))
            .collect();
        let by_root = by_root?;
        Ok(self.root.iter().map(|&root| by_root[root]).collect())
    }
}

/// Letterboxed pictures of a data set, chosen at random, the same ones for the same seed.
pub(crate) fn calibration_pictures(folder: &Folder, spec: &ModelSpec, n: usize, seed: u64) -> Result<Vec<Vec<u8>>> {
    let mut names: Vec<&String> = folder.coco.images.iter().map(|image| &image.file_name).collect();
    names.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    names.truncate(n);
    if names.len() < 256 {
        say!("warning: only {} pictures to calibrate on; ranges are better with 256 and more", names.len());
    }
    if names.is_empty() {
        return Err(Request(format!("{}: no pictures to calibrate on", folder.dir.display())).into());
    }
    let size = (spec.width, spec.height);
    names
        .par_iter()
        .map(|name| {
            let picture = images::open(&folder.image_path(name))?;
            let mut pixels = vec![0; size.0 * size.1 * 3];
            Preprocessor::new(size).run(&picture.as_picture(), &mut pixels);
            Ok(pixels)
        })
        .collect()
}

/// Every activation of the float network over `pictures`.
pub(crate) fn observe_all(graph: &Graph, spec: &ModelSpec, folded: &Folded, pictures: &[Vec<u8>]) -> Result<Observed> {
    let is_head = |id: &usize| graph.levels.iter().any(|(cls, bbox)| id == cls || id == bbox);
    let taps: Vec<usize> = (1..graph.values.len()).filter(|id| !is_head(id)).collect();
    let bar = progress(2 * pictures.len(), "calibrating");
    let observed = observe(graph, &onnx::encode(&float_model(graph, spec, folded, &taps)), &taps, pictures, &bar);
    bar.finish_and_clear();
    observed
}

/// Every activation over `pictures`: network inputs `[H, W, 3]`, RGB.
///
/// `model` is the network in float with every value of `taps` among its outputs, in that order, behind the heads.
fn observe(graph: &Graph, model: &[u8], taps: &[ValueId], pictures: &[Vec<u8>], bar: &ProgressBar) -> Result<Observed> {
    let root = groups(graph);
    let n_levels = graph.levels.len();
    let mut order: Vec<ValueId> =
        graph.levels.iter().map(|level| level.0).chain(graph.levels.iter().map(|level| level.1)).collect();
    order.extend(taps);

    let none = || -> (Extremes, Vec<Vec<Channel>>, Vec<usize>) {
        let channels = graph.values.iter().map(|value| vec![Channel::default(); value.channels]).collect();
        (vec![(0.0, 0.0); graph.values.len()], channels, vec![0; n_levels])
    };
    let by_thread = over_pictures(model, graph.pixels, pictures, bar, none, |(seen, channels, n_decoded), picture, outputs| {
        for (place, (output, &id)) in outputs.iter().zip(&order).enumerate() {
            let (low, high) = &mut seen[root[id]];
            // `min` and `max` would pass over what is not a number.
            let mut add = |value: f32| {
                (*low, *high) = if value.is_nan() { (*low, f32::INFINITY) } else { (low.min(value), high.max(value)) };
            };
            if (n_levels..2 * n_levels).contains(&place) {
                for value in decoded(&outputs[place - n_levels], output) {
                    n_decoded[place - n_levels] += 1;
                    add(value);
                }
            } else {
                output.values.iter().copied().for_each(&mut add);
            }
            for (channel, values) in channels[id].iter_mut().zip(output.values.chunks_exact(output.n_cells)) {
                let (sum, largest) =
                    values.iter().fold((0.0, 0.0_f32), |(sum, largest), &v| (sum + f64::from(v), largest.max(v.abs())));
                channel.mean += sum / output.n_cells as f64 / pictures.len() as f64;
                channel.largest = channel.largest.max(largest);
            }
        }
        for (k, channel) in channels[0].iter_mut().enumerate() {
            let sum: f64 = picture.iter().skip(k).step_by(3).map(|&value| f64::from(graph.pixels.real(k, value))).sum();
            channel.mean += sum / (picture.len() / 3) as f64 / pictures.len() as f64;
        }
    })?;
    let (mut range, mut channels, mut n_decoded) = none();
    for (seen, of_channels, of_levels) in &by_thread {
        n_decoded.iter_mut().zip(of_levels).for_each(|(all, seen)| *all += seen);
        for (range, seen) in range.iter_mut().zip(seen) {
            *range = (range.0.min(seen.0), range.1.max(seen.1));
        }
        for (all, seen) in channels.iter_mut().flatten().zip(of_channels.iter().flatten()) {
            *all = Channel { mean: all.mean + seen.mean, largest: all.largest.max(seen.largest) };
        }
    }
    if range.iter().any(|(low, high)| !(low.is_finite() && high.is_finite())) {
        bail!("an activation is not finite on some calibration picture: the weights are broken");
    }
    for &(cls, _) in &graph.levels {
        range[cls].0 = range[cls].0.max(LOWEST_LOGIT);
    }
    let boxes: Vec<ValueId> = graph.levels.iter().map(|&(_, bbox)| bbox).collect();
    let highest = graph.levels.iter().map(|&(cls, _)| range[cls].1).fold(0.0, f32::max);
    for level in share_ranges(&mut range, &boxes, &n_decoded) {
        // What it does find one day may have any score.
        range[graph.levels[level].0].1 = highest;
        say!(
            "level {level} of the pyramid found next to nothing on these pictures: scores and boxes have the range of all levels there"
        );
    }

    let empty = || -> Vec<Option<Histogram>> { vec![None; graph.values.len()] };
    let by_thread = over_pictures(model, graph.pixels, pictures, bar, empty, |histograms, _, outputs| {
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
    Ok(Observed { root, pixels: graph.pixels, extremes: range, histograms, channels })
}

/// Gives levels that decoded too few deltas to tell their range that of all levels, as the towers are the same for all of them;
/// which these are. `boxes` has the box output of each level.
fn share_ranges(range: &mut [(f32, f32)], boxes: &[ValueId], n_decoded: &[usize]) -> Vec<usize> {
    let all = boxes.iter().fold((0.0_f32, 0.0_f32), |all, &id| (all.0.min(range[id].0), all.1.max(range[id].1)));
    let few: Vec<usize> = (0..boxes.len()).filter(|&level| n_decoded[level] < FEW_DELTAS).collect();
    for &level in &few {
        range[boxes[level]] = all;
    }
    few
}

/// One output of the network for one picture: values `[C, cells]`.
pub(crate) struct Output {
    /// Row-major.
    pub(crate) values: Vec<f32>,
    /// Cells of one channel.
    pub(crate) n_cells: usize,
}

/// Deltas `[A x 4, cells]` of the anchors that have a score worth decoding, given logits `[A x K, cells]`.
fn decoded<'a>(logits: &'a Output, deltas: &'a Output) -> impl Iterator<Item = f32> + 'a {
    decoded_anchors(logits, deltas, DECODED_LOGIT)
        .into_iter()
        .flat_map(move |(anchor, cell)| (0..4).map(move |k| deltas.values[(anchor * 4 + k) * deltas.n_cells + cell]))
}

/// Anchors `(of the cell, cell)` that have a logit above `worth`.
pub(crate) fn decoded_anchors(logits: &Output, deltas: &Output, worth: f32) -> Vec<(usize, usize)> {
    let n_cells = deltas.n_cells;
    let n_anchors = deltas.values.len() / (4 * n_cells);
    let n_classes = logits.values.len() / (n_anchors * n_cells);
    let is_worth = |&(anchor, cell): &(usize, usize)| {
        (0..n_classes).any(|class| logits.values[(anchor * n_classes + class) * n_cells + cell] > worth)
    };
    (0..n_anchors).flat_map(|anchor| (0..n_cells).map(move |cell| (anchor, cell))).filter(is_worth).collect()
}

/// Runs the network over all pictures, on every processor, each with an accumulator of its own.
fn over_pictures<T: Send>(
    model: &[u8],
    pixels: Pixels,
    pictures: &[Vec<u8>],
    bar: &ProgressBar,
    start: impl Fn() -> T + Sync,
    visit: impl Fn(&mut T, &[u8], &[Output]) + Sync,
) -> Result<Vec<T>> {
    let per_thread = pictures.len().div_ceil(rayon::current_num_threads()).max(1);
    let run = |pictures: &[Vec<u8>]| -> Result<T> {
        let mut network =
            Network::load(model, &LoadOptions { force_float: true, ..LoadOptions::default() }).context("calibration")?;
        let cells: Vec<usize> = network.outputs().iter().map(|output| output.shape.h * output.shape.w).collect();
        let mut accumulated = start();
        for picture in pictures {
            let outputs = network.run_f32(&planar(picture, pixels)).context("calibration")?;
            let output = |(values, &n_cells): (&fovea::kernels::Reals, &usize)| Output { values: values.to_vec(), n_cells };
            let outputs: Vec<Output> = outputs.iter().zip(&cells).map(output).collect();
            visit(&mut accumulated, picture, &outputs);
            bar.inc(1);
        }
        Ok(accumulated)
    };
    pictures.par_chunks(per_thread).map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_sets_the_range_of_minmax_only() {
        // 0 to 1, more of them near 1, and one value in a hundred thousand at 20; below 0 nothing, or the same. The least
        // squared error is where (20 - x) / 1e5 = x / (12 x 255²): at 17.7.
        for sign in [1.0, -1.0] {
            let mut values = Histogram::new(if sign < 0.0 { -1.0 } else { 0.0 }, 20.0);
            (0..100_000).for_each(|i| values.add((i as f32 / 1e5).sqrt() * if i % 2 == 0 { 1.0 } else { sign }));
            values.add(20.0);
            for (method, least, most) in [
                (Method::Minmax, 20.0, 20.0),
                (Method::Percentile, 0.98, 1.02),
                (Method::Mse, 17.2, 18.2),
                (Method::Entropy, 0.9, 8.0),
            ] {
                let (low, high) = values.range(method);
                assert!((least..=most).contains(&high), "{method:?}: {low} to {high}");
                assert!(if sign < 0.0 { (-1.0..=-0.7).contains(&low) } else { low == 0.0 }, "{method:?}: {low} to {high}");
            }
        }
    }

    #[test]
    fn nothing_is_cut_off_an_even_distribution() {
        let mut values = Histogram::new(-2.0, 3.0);
        (0..50_000).for_each(|i| values.add(i as f32 / 1e4 - 2.0));
        for method in Method::ALL {
            let (low, high) = values.range(method);
            assert!(low < -1.9 && high > 2.9, "{method:?}: {low} to {high}");
        }
    }

    #[test]
    fn a_level_without_boxes_has_the_range_of_all() {
        let mut range = vec![(-9.0, 9.0), (-1.0, 2.0), (-3.0, 0.5), (0.0, 0.0)];
        let few = share_ranges(&mut range, &[1, 2, 3], &[FEW_DELTAS, 5000, 0]);
        assert_eq!((few.as_slice(), range[3]), ([2].as_slice(), (-3.0, 2.0)));
        assert_eq!(range[..3], [(-9.0, 9.0), (-1.0, 2.0), (-3.0, 0.5)]);
    }
}
