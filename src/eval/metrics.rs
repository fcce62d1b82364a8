//! COCO average precision, in the order of operations of pycocotools' `COCOeval`.
//!
//! Input: labelled pictures and, per picture, scored boxes. Output: an [`EvalReport`]. Equal scores keep the order in
//! which they were added; pictures are taken in the order of their ids. Two rules go beyond pycocotools: a class that
//! is not completely labelled in a picture is skipped there, boxes and detections both, and an `area` of 0 means the
//! area of the box.

use super::CocoDataset;
use serde::{Deserialize, Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// Detections of one class in one picture that are looked at, best first.
pub const MAX_DETECTIONS: usize = 100;

const N_THRESHOLDS: usize = 10;
const N_RECALLS: usize = 101;
const AREA_LIMIT: f64 = 1e5 * 1e5;
const SMALL_LIMIT: f64 = 32.0 * 32.0;
const MEDIUM_LIMIT: f64 = 96.0 * 96.0;

/// Which objects count, by area in square pixels, both ends included.
#[derive(Debug, Clone, Copy)]
struct AreaRange {
    min: f64,
    max: f64,
}

const ALL: AreaRange = AreaRange { min: 0.0, max: AREA_LIMIT };
const SMALL: AreaRange = AreaRange { min: 0.0, max: SMALL_LIMIT };
const MEDIUM: AreaRange = AreaRange { min: SMALL_LIMIT, max: MEDIUM_LIMIT };
const LARGE: AreaRange = AreaRange { min: MEDIUM_LIMIT, max: AREA_LIMIT };

impl AreaRange {
    fn excludes(self, area: f64) -> bool {
        area < self.min || area > self.max
    }
}

/// Why detections cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Detections of a picture that is not in the data set.
    #[error("detections name image {0}, which is not in the data set")]
    UnknownImage(u64),
}

/// Average precision of one class.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ClassReport {
    /// AP over IoU 0.50 to 0.95, in `[0, 1]`; absent where there is nothing to find.
    pub ap: Option<f64>,
    /// AP at IoU 0.5.
    pub ap50: Option<f64>,
    /// Labelled boxes that count: in pictures where the class is completely labelled, no crowds.
    pub boxes: usize,
}

/// Average precision of a detector over a data set. Means are over the classes that have something to find.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct EvalReport {
    /// AP over IoU 0.50 to 0.95, in `[0, 1]`; absent where there is nothing to find.
    pub ap: Option<f64>,
    /// AP at IoU 0.5.
    pub ap50: Option<f64>,
    /// AP at IoU 0.75.
    pub ap75: Option<f64>,
    /// AP of objects up to 32 x 32 pixels.
    pub ap_small: Option<f64>,
    /// AP of objects from 32 x 32 to 96 x 96 pixels.
    pub ap_medium: Option<f64>,
    /// AP of objects from 96 x 96 pixels.
    pub ap_large: Option<f64>,
    /// Pictures of the data set, with or without detections.
    pub images: usize,
    /// By class, in the order of the data set's categories.
    #[serde(serialize_with = "serialize_as_map")]
    pub per_class: Vec<(String, ClassReport)>,
}

fn serialize_as_map<S: Serializer>(classes: &[(String, ClassReport)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(classes.iter().map(|(name, report)| (name, report)))
}

/// A score threshold for one class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct F1Threshold {
    /// Class, as the data set numbers it.
    pub category_id: u32,
    /// Keep a detection if its score is above; half way between the last score kept and the first one dropped,
    /// or the lowest that was looked at.
    pub score_threshold: f64,
    /// F1 at IoU 0.5 with this threshold.
    pub f1: f64,
    /// True detections among those kept.
    pub precision: f64,
    /// Labelled boxes found.
    pub recall: f64,
}

/// What became of the detections of one class at IoU 0.5.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassOutcomes {
    /// Score, and whether the detection is true, best first. Detections of what is to be ignored are left out.
    pub detections: Vec<(f64, bool)>,
    /// Labelled boxes that count.
    pub boxes: usize,
}

/// Detections of one class above a score, at IoU 0.5.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Counts {
    /// That score; a detection counts above it.
    pub score_threshold: f32,
    /// Labelled boxes that a detection matches.
    pub found: usize,
    /// Labelled boxes that none matches.
    pub missed: usize,
    /// Detections that match no box.
    pub false_positives: usize,
}

#[derive(Debug, Clone, Copy)]
struct Truth {
    bbox: [f64; 4],
    area: f64,
    /// A region to ignore.
    is_crowd: bool,
}

#[derive(Debug, Clone, Copy)]
struct Scored {
    bbox: [f64; 4],
    score: f64,
}

/// One class in one picture.
#[derive(Debug, Default)]
struct Cell {
    truths: Vec<Truth>,
    detections: Vec<Scored>,
}

/// Collects detections picture by picture, then measures them.
#[derive(Debug)]
pub struct CocoEvaluator {
    categories: Vec<(u32, String)>,
    category_idx: HashMap<u32, usize>,
    /// Position of a picture among all, in the order of ids.
    image_idx: HashMap<u64, usize>,
    /// `[category][image]`; `None` where the class is not completely labelled in the picture.
    cells: Vec<Vec<Option<Cell>>>,
}

impl CocoEvaluator {
    /// An evaluator for the pictures, boxes and classes of a data set.
    #[must_use]
    pub fn new(dataset: &CocoDataset) -> Self {
        let mut seen = HashSet::new();
        let categories: Vec<(u32, String)> = dataset
            .categories
            .iter()
            .filter(|category| seen.insert(category.id))
            .map(|category| (category.id, category.name.clone()))
            .collect();
        let category_idx: HashMap<u32, usize> = categories.iter().enumerate().map(|(idx, (id, _))| (*id, idx)).collect();
        let mut images: Vec<_> = dataset.images.iter().collect();
        images.sort_by_key(|image| image.id);
        images.dedup_by_key(|image| image.id);
        let image_idx = images.iter().enumerate().map(|(idx, image)| (image.id, idx)).collect();
        let cells = categories
            .iter()
            .map(|(id, _)| images.iter().map(|image| image.is_exhaustive(*id).then(Cell::default)).collect())
            .collect();
        let mut evaluator = Self { categories, category_idx, image_idx, cells };
        for annotation in &dataset.annotations {
            let Some(is_crowd) = annotation.is_ignored() else { continue };
            let [_, _, width, height] = annotation.bbox;
            // 0 is what an absent area reads as.
            let area = if annotation.area == 0.0 { width * height } else { annotation.area };
            let truth = Truth { bbox: annotation.bbox, area, is_crowd };
            if let Some(&image) = evaluator.image_idx.get(&annotation.image_id)
                && let Some(cell) = evaluator.cell_mut(image, annotation.category_id)
            {
                cell.truths.push(truth);
            }
        }
        evaluator
    }

    fn cell_mut(&mut self, image_idx: usize, category_id: u32) -> Option<&mut Cell> {
        let category_idx = *self.category_idx.get(&category_id)?;
        self.cells[category_idx][image_idx].as_mut()
    }

    /// Adds detections of one picture: `(category_id, score, [x, y, width, height])`. Classes that the data set does
    /// not have are left out.
    ///
    /// # Errors
    /// [`EvalError::UnknownImage`].
    pub fn add(&mut self, image_id: u64, detections: &[(u32, f64, [f64; 4])]) -> Result<(), EvalError> {
        let image = *self.image_idx.get(&image_id).ok_or(EvalError::UnknownImage(image_id))?;
        for &(category_id, score, bbox) in detections {
            if let Some(cell) = self.cell_mut(image, category_id) {
                cell.detections.push(Scored { bbox, score });
            }
        }
        Ok(())
    }

    /// The metrics of everything added so far.
    #[must_use]
    pub fn summarize(&self) -> EvalReport {
        let measures: Vec<ClassMeasure> = self.cells.iter().map(|cells| ClassMeasure::of(cells)).collect();
        let mean = |of: &dyn Fn(&ClassMeasure) -> Option<f64>| mean_of(measures.iter().filter_map(of));
        let overall = |ap: &Option<[f64; N_THRESHOLDS]>| ap.and_then(|by_iou| mean_of(by_iou.into_iter()));
        EvalReport {
            ap: mean(&|class| overall(&class.all)),
            ap50: mean(&|class| class.all.map(|by_iou| by_iou[0])),
            ap75: mean(&|class| class.all.map(|by_iou| by_iou[5])),
            ap_small: mean(&|class| overall(&class.small)),
            ap_medium: mean(&|class| overall(&class.medium)),
            ap_large: mean(&|class| overall(&class.large)),
            images: self.image_idx.len(),
            per_class: self
                .categories
                .iter()
                .zip(&measures)
                .map(|((_, name), class)| {
                    let ap50 = class.all.map(|by_iou| by_iou[0]);
                    (name.clone(), ClassReport { ap: overall(&class.all), ap50, boxes: class.n_boxes })
                })
                .collect(),
        }
    }

    /// The detections as they were matched, for metrics of resampled pictures.
    #[must_use]
    pub fn resampling(&self) -> Resampling {
        let thresholds = iou_thresholds();
        let class = |cells: &Vec<Option<Cell>>| {
            let (images, overlaps): (Vec<usize>, Vec<ImageOverlaps<'_>>) =
                cells.iter().enumerate().filter_map(|(idx, cell)| Some((idx, ImageOverlaps::of(cell.as_ref()?)?))).unzip();
            let matches = Matches::of(&overlaps, ALL, &thresholds);
            let n_boxes = |image: &ImageOverlaps<'_>| image.truths.iter().filter(|truth| !truth.is_crowd).count();
            ResampledClass { n_boxes: images.iter().copied().zip(overlaps.iter().map(n_boxes)).collect(), images, matches }
        };
        Resampling { classes: self.cells.iter().map(class).collect() }
    }

    /// Id and name of every class, in the order of the data set.
    #[must_use]
    pub fn categories(&self) -> &[(u32, String)] {
        &self.categories
    }

    /// For each class the score threshold with the best F1 at IoU 0.5; classes without a true detection are left out.
    /// `lowest`: scores up to there were not looked at.
    #[must_use]
    pub fn best_f1_thresholds(&self, lowest: f64) -> Vec<F1Threshold> {
        let classes = self.categories.iter().zip(&self.cells);
        classes.filter_map(|((id, _), cells)| best_f1(*id, &ClassOutcomes::of(cells), lowest)).collect()
    }

    /// True and false detections of every class at IoU 0.5, in the order of the data set.
    #[must_use]
    pub fn outcomes(&self) -> Vec<ClassOutcomes> {
        self.cells.iter().map(|cells| ClassOutcomes::of(cells)).collect()
    }
}

/// AP of pictures drawn with replacement: how far the metrics of a data set of this size can be trusted. Matching is within a
/// picture, so it is done once.
#[derive(Debug)]
pub struct Resampling {
    classes: Vec<ResampledClass>,
}

#[derive(Debug)]
struct ResampledClass {
    /// Pictures in the order of `Matches::image_of`.
    images: Vec<usize>,
    /// Picture and its boxes that count.
    n_boxes: Vec<(usize, usize)>,
    matches: Matches,
}

impl Resampling {
    /// AP over IoU 0.50 to 0.95 of every class, in the order of the data set, where picture `i` (in the order of ids) is
    /// there `n_times[i]` times.
    ///
    /// # Panics
    /// If `n_times` is shorter than the data set.
    #[must_use]
    pub fn ap(&self, n_times: &[usize]) -> Vec<Option<f64>> {
        let of_class = |class: &ResampledClass| {
            let n_positives = class.n_boxes.iter().map(|&(image, boxes)| n_times[image] * boxes).sum::<usize>();
            let times: Vec<usize> = class.matches.image_of.iter().map(|&place| n_times[class.images[place]]).collect();
            let by_iou = class.matches.outcomes.iter().map(|outcomes| interpolated_precision(outcomes, &times, n_positives));
            (n_positives > 0).then(|| mean_of(by_iou)).flatten()
        };
        self.classes.iter().map(of_class).collect()
    }
}

/// AP of one class by IoU threshold, for each range of areas; `None` where there is nothing to find.
#[derive(Debug)]
struct ClassMeasure {
    all: Option<[f64; N_THRESHOLDS]>,
    small: Option<[f64; N_THRESHOLDS]>,
    medium: Option<[f64; N_THRESHOLDS]>,
    large: Option<[f64; N_THRESHOLDS]>,
    n_boxes: usize,
}

impl ClassMeasure {
    fn of(cells: &[Option<Cell>]) -> Self {
        let images: Vec<ImageOverlaps<'_>> = cells.iter().flatten().filter_map(ImageOverlaps::of).collect();
        let thresholds = iou_thresholds();
        let measure = |range| Matches::of(&images, range, &thresholds).average_precision();
        let n_boxes = images.iter().flat_map(|image| image.truths).filter(|truth| !truth.is_crowd).count();
        Self { all: measure(ALL), small: measure(SMALL), medium: measure(MEDIUM), large: measure(LARGE), n_boxes }
    }
}

/// The detections that count in one picture, best first, and how they overlap its boxes.
struct ImageOverlaps<'a> {
    truths: &'a [Truth],
    detections: Vec<Scored>,
    /// `[detection][truth]`.
    ious: Vec<f64>,
}

impl<'a> ImageOverlaps<'a> {
    fn of(cell: &'a Cell) -> Option<Self> {
        if cell.truths.is_empty() && cell.detections.is_empty() {
            return None;
        }
        let mut detections = cell.detections.clone();
        detections.sort_by(|a, b| best_first(a.score, b.score));
        detections.truncate(MAX_DETECTIONS);
        let ious = detections
            .iter()
            .flat_map(|detection| cell.truths.iter().map(|truth| overlap(&detection.bbox, &truth.bbox, truth.is_crowd)))
            .collect();
        Some(Self { truths: &cell.truths, detections, ious })
    }
}

/// What became of a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    True,
    False,
    Ignored,
}

/// All detections of one class, best first, with their outcome by IoU threshold.
#[derive(Debug)]
struct Matches {
    scores: Vec<f64>,
    /// `[detection]`: place of its picture.
    image_of: Vec<usize>,
    /// `[threshold][detection]`.
    outcomes: Vec<Vec<Outcome>>,
    n_positives: usize,
}

impl Matches {
    fn of(images: &[ImageOverlaps<'_>], range: AreaRange, thresholds: &[f64]) -> Self {
        let (mut scores, mut image_of) = (Vec::new(), Vec::new());
        let mut outcomes = vec![Vec::new(); thresholds.len()];
        let mut n_positives = 0;
        for (place, image) in images.iter().enumerate() {
            let is_ignored: Vec<bool> = image.truths.iter().map(|truth| truth.is_crowd || range.excludes(truth.area)).collect();
            // Boxes that count come first.
            let mut order: Vec<usize> = (0..image.truths.len()).collect();
            order.sort_by_key(|&truth| is_ignored[truth]);
            n_positives += is_ignored.iter().filter(|&&ignored| !ignored).count();
            scores.extend(image.detections.iter().map(|detection| detection.score));
            image_of.resize(scores.len(), place);
            for (outcomes, &threshold) in outcomes.iter_mut().zip(thresholds) {
                match_image(image, &order, &is_ignored, range, threshold, outcomes);
            }
        }
        let mut rank: Vec<usize> = (0..scores.len()).collect();
        rank.sort_by(|&a, &b| best_first(scores[a], scores[b]));
        let outcomes = outcomes.into_iter().map(|by_image| rank.iter().map(|&idx| by_image[idx]).collect()).collect();
        let image_of = rank.iter().map(|&idx| image_of[idx]).collect();
        Self { scores: rank.iter().map(|&idx| scores[idx]).collect(), image_of, outcomes, n_positives }
    }

    fn average_precision(&self) -> Option<[f64; N_THRESHOLDS]> {
        if self.n_positives == 0 {
            return None;
        }
        let mut by_iou = [0.0; N_THRESHOLDS];
        let once = vec![1; self.scores.len()];
        for (ap, outcomes) in by_iou.iter_mut().zip(&self.outcomes) {
            *ap = interpolated_precision(outcomes, &once, self.n_positives);
        }
        Some(by_iou)
    }
}

impl ClassOutcomes {
    fn of(cells: &[Option<Cell>]) -> Self {
        let images: Vec<ImageOverlaps<'_>> = cells.iter().flatten().filter_map(ImageOverlaps::of).collect();
        let matches = Matches::of(&images, ALL, &[0.5]);
        let all = matches.scores.iter().zip(&matches.outcomes[0]);
        let counted = all.filter(|(_, outcome)| **outcome != Outcome::Ignored);
        Self {
            detections: counted.map(|(score, outcome)| (*score, *outcome == Outcome::True)).collect(),
            boxes: matches.n_positives,
        }
    }

    /// What is found, missed and wrong among detections above this score. Matching is greedy from the best on: those
    /// below do not change what became of those above.
    #[must_use]
    pub fn counts(&self, score_threshold: f32) -> Counts {
        let kept = &self.detections[..self.detections.partition_point(|&(score, _)| score > f64::from(score_threshold))];
        let found = kept.iter().filter(|&&(_, is_true)| is_true).count();
        Counts { score_threshold, found, missed: self.boxes - found, false_positives: kept.len() - found }
    }
}

/// Greedy matching, best detection first. A detection takes the free box it overlaps most (of equals the last); a
/// box to be ignored only if no other fits; a crowd can be taken any number of times.
fn match_image(
    image: &ImageOverlaps<'_>,
    order: &[usize],
    is_ignored: &[bool],
    range: AreaRange,
    threshold: f64,
    outcomes: &mut Vec<Outcome>,
) {
    let n_truths = image.truths.len();
    let mut is_taken = vec![false; n_truths];
    for (detection_idx, detection) in image.detections.iter().enumerate() {
        let ious = &image.ious[detection_idx * n_truths..][..n_truths];
        let mut best_iou = threshold.min(1.0 - 1e-10);
        let mut best: Option<usize> = None;
        for &truth in order {
            if is_taken[truth] && !image.truths[truth].is_crowd {
                continue;
            }
            if is_ignored[truth] && best.is_some_and(|best| !is_ignored[best]) {
                break;
            }
            if ious[truth] < best_iou {
                continue;
            }
            best_iou = ious[truth];
            best = Some(truth);
        }
        outcomes.push(match best {
            Some(truth) => {
                is_taken[truth] = true;
                if is_ignored[truth] { Outcome::Ignored } else { Outcome::True }
            }
            None if range.excludes(detection.bbox[2] * detection.bbox[3]) => Outcome::Ignored,
            None => Outcome::False,
        });
    }
}

/// Mean over 101 recalls of the best precision at that recall or beyond; a detection counts `n_times` times.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn interpolated_precision(outcomes: &[Outcome], n_times: &[usize], n_positives: usize) -> f64 {
    let (mut n_true, mut n_false) = (0usize, 0usize);
    let mut recalls = Vec::with_capacity(outcomes.len());
    let mut precisions = Vec::with_capacity(outcomes.len());
    for (outcome, n_times) in outcomes.iter().zip(n_times) {
        match outcome {
            Outcome::True => n_true += n_times,
            Outcome::False => n_false += n_times,
            Outcome::Ignored => {}
        }
        recalls.push(n_true as f64 / n_positives as f64);
        precisions.push(n_true as f64 / (n_false as f64 + n_true as f64 + f64::EPSILON));
    }
    for idx in (1..precisions.len()).rev() {
        if precisions[idx] > precisions[idx - 1] {
            precisions[idx - 1] = precisions[idx];
        }
    }
    let sum: f64 = recall_thresholds()
        .map(|wanted| precisions.get(recalls.partition_point(|&recall| recall < wanted)).copied().unwrap_or(0.0))
        .sum();
    sum / N_RECALLS as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn best_f1(category_id: u32, outcomes: &ClassOutcomes, lowest: f64) -> Option<F1Threshold> {
    let counted = &outcomes.detections;
    let mut best: Option<F1Threshold> = None;
    let mut n_true = 0usize;
    for (idx, &(score, is_true)) in counted.iter().enumerate() {
        n_true += usize::from(is_true);
        let next_score = counted.get(idx + 1).map_or(lowest, |next| next.0);
        // Equal scores are kept or dropped together.
        if next_score >= score || n_true == 0 {
            continue;
        }
        let n_kept = idx + 1;
        let f1 = 2.0 * n_true as f64 / (n_kept + outcomes.boxes) as f64;
        if best.is_none_or(|best| f1 > best.f1) {
            best = Some(F1Threshold {
                category_id,
                score_threshold: f64::midpoint(score, next_score),
                f1,
                precision: n_true as f64 / n_kept as f64,
                recall: n_true as f64 / outcomes.boxes as f64,
            });
        }
    }
    best
}

/// IoU of two `[x, y, width, height]`; for a crowd the share of the detection inside it.
fn overlap(detection: &[f64; 4], truth: &[f64; 4], is_crowd: bool) -> f64 {
    let width = (detection[2] + detection[0]).min(truth[2] + truth[0]) - detection[0].max(truth[0]);
    let height = (detection[3] + detection[1]).min(truth[3] + truth[1]) - detection[1].max(truth[1]);
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let shared = width * height;
    let detection_area = detection[2] * detection[3];
    let whole = if is_crowd { detection_area } else { detection_area + truth[2] * truth[3] - shared };
    shared / whole
}

/// Descending; what is not a number last.
fn best_first(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// 0.50, 0.55 … 0.95, to the last bit as `numpy.linspace` has them.
fn iou_thresholds() -> [f64; N_THRESHOLDS] {
    let step = (0.95 - 0.5) / 9.0;
    let mut thresholds = [0.0; N_THRESHOLDS];
    for (threshold, idx) in thresholds.iter_mut().zip(0u8..) {
        *threshold = f64::from(idx) * step + 0.5;
    }
    thresholds[N_THRESHOLDS - 1] = 0.95;
    thresholds
}

/// 0, 0.01 … 1.
fn recall_thresholds() -> impl Iterator<Item = f64> {
    (0..=100u8).map(|idx| if idx == 100 { 1.0 } else { f64::from(idx) * 0.01 })
}

#[expect(clippy::cast_precision_loss, reason = "a handful of values")]
fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_end_at_the_threshold() {
        let class =
            ClassOutcomes { detections: vec![(0.9, true), (0.5, false), (0.5, true), (0.2, true), (0.1, false)], boxes: 4 };
        let counts = |threshold| {
            let Counts { found, missed, false_positives, .. } = class.counts(threshold);
            [found, missed, false_positives]
        };
        assert_eq!([0.0, 0.2, 0.5, 0.6, 1.0].map(counts), [[3, 1, 2], [2, 2, 1], [1, 3, 0], [1, 3, 0], [0, 4, 0]]);
    }

    #[test]
    fn the_best_threshold_is_one_that_was_measured() {
        let class = |scores: &[(f64, bool)]| ClassOutcomes { detections: scores.to_vec(), boxes: 2 };
        let best = |scores: &[(f64, bool)]| best_f1(1, &class(scores), 0.05).map(|best| best.score_threshold);
        assert_eq!(best(&[(0.75, true), (0.25, false)]), Some(0.5));
        assert!(best(&[(0.9, true), (0.06, true)]).is_some_and(|threshold| (threshold - 0.055).abs() < 1e-12));
        assert_eq!(best(&[(0.9, false)]), None);
    }

    /// A sure label of a model counts as a drawn one, a doubtful one neither for nor against, a weak one not at all.
    #[test]
    fn scored_labels_count_as_far_as_they_are_sure() {
        let with_score = |score: Option<f64>, has_it: bool| {
            let bbox = |x: f64| [x, 5.0, 20.0, 20.0];
            let annotation = |x, score| super::super::CocoAnnotation {
                image_id: 1,
                category_id: 1,
                bbox: bbox(x),
                score,
                ..Default::default()
            };
            let mut evaluator = CocoEvaluator::new(&CocoDataset {
                images: vec![super::super::CocoImage { id: 1, ..Default::default() }],
                annotations: vec![annotation(5.0, None), annotation(50.0, score)],
                categories: vec![super::super::CocoCategory { id: 1, name: "a".into() }],
            });
            let found = [(1, 0.9, bbox(50.0)), (1, 0.8, bbox(5.0))];
            evaluator.add(1, if has_it { &found } else { &found[1..] }).expect("a known picture");
            evaluator.summarize().ap50.expect("there are boxes")
        };
        // AP50 with the second box detected, and without.
        let half = 51.0 / 101.0;
        for (score, wanted) in [(None, [1.0, half]), (Some(0.45), [1.0, half]), (Some(0.3), [1.0, 1.0]), (Some(0.1), [0.5, 1.0])]
        {
            let got = [true, false].map(|has_it| with_score(score, has_it));
            assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-9), "{score:?}: {got:?}, {wanted:?}");
        }
    }

    /// Resampled AP is that of a data set in which the drawn pictures stand as often as they were drawn.
    #[test]
    fn a_picture_drawn_twice_counts_as_two() {
        // Picture, class, score, shift: some detections are exact, some off, some of nothing.
        let found =
            [(0, 1, 0.9, 0.0), (0, 1, 0.3, 50.0), (1, 1, 0.8, 2.0), (1, 2, 0.7, 0.0), (2, 2, 0.6, 4.0), (3, 1, 0.95, 60.0)];
        let evaluator = |n_times: &[usize]| {
            let copies =
                || n_times.iter().zip(0_u64..).flat_map(|(&n, image)| (0..n as u64).map(move |copy| (image, 10 * image + copy)));
            let mut dataset = CocoDataset::default();
            for id in [1, 2] {
                dataset.categories.push(super::super::CocoCategory { id, name: id.to_string() });
            }
            for (image, id) in copies() {
                dataset.images.push(super::super::CocoImage { id, ..Default::default() });
                for category_id in [1, 2].into_iter().filter(|class| image > 0 || *class == 1) {
                    let bbox = [5.0, 5.0, 20.0, 20.0];
                    dataset.annotations.push(super::super::CocoAnnotation {
                        image_id: id,
                        category_id,
                        bbox,
                        ..Default::default()
                    });
                }
            }
            let mut evaluator = CocoEvaluator::new(&dataset);
            for (image, id) in copies() {
                for (_, class, score, shift) in found.iter().filter(|found| found.0 == image) {
                    evaluator.add(id, &[(*class, *score, [5.0 + shift, 5.0, 20.0, 20.0])]).expect("a known picture");
                }
            }
            evaluator
        };
        let resampling = evaluator(&[1; 5]).resampling();
        for n_times in [[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [0, 3, 0, 2, 0], [1, 0, 0, 0, 4], [5, 0, 0, 0, 0]] {
            let report = evaluator(&n_times).summarize();
            let got = resampling.ap(&n_times);
            for ((name, class), got) in report.per_class.iter().zip(got) {
                let difference = class.ap.zip(got).map_or(0.0, |(wanted, got)| (wanted - got).abs());
                assert!(class.ap.is_some() == got.is_some() && difference < 1e-12, "{n_times:?} class {name}: {class:?} {got:?}");
            }
        }
    }
}
