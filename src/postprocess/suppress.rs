//! Non-maximum suppression: greedy, or soft (Bodla et al., "Soft-NMS", arXiv 1704.04503).

use super::rank::{self, Rank};
use super::rules::{Method, Rules};
use crate::detection::{BBox, Detection};
use crate::kernels::Kernels;
use crate::kernels::postprocess::{BoxLists, IouLimit};

/// A candidate that soft suppression has not taken yet.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    rank: Rank,
    bbox: BBox,
    class: usize,
}

/// Buffers of suppression.
#[derive(Debug, Clone)]
pub(super) struct Suppression {
    kernels: Kernels,
    /// Detections so far: a list for each class, or one for all.
    kept: BoxLists,
    waiting: Vec<Waiting>,
}

impl Suppression {
    pub(super) fn new(rules: &Rules, n_classes: usize, n_candidates: usize, kernels: Kernels) -> Self {
        let is_soft = !matches!(rules.method, Method::Greedy(_));
        Self {
            kernels,
            kept: BoxLists::new(n_classes, if is_soft { 0 } else { rules.max_detections.min(n_candidates) }),
            waiting: Vec::with_capacity(if is_soft { n_candidates } else { 0 }),
        }
    }

    /// Appends what is left of the candidates to `out`, best first. `decode` gives a candidate's detection and its class, or
    /// `None` where there is no such box.
    pub(super) fn run(
        &mut self,
        rules: &Rules,
        candidates: &mut [Rank],
        decode: impl Fn(Rank) -> Option<(Detection, usize)>,
        out: &mut Vec<Detection>,
    ) {
        match rules.method {
            Method::Greedy(limit) => self.greedy(rules, limit, candidates, decode, out),
            Method::SoftLinear { iou_threshold } => {
                let factor = |iou: f32| if iou > iou_threshold { 1.0 - iou } else { 1.0 };
                self.soft(rules, candidates, decode, factor, out);
            }
            Method::SoftGaussian { sigma } => {
                let sigma = f64::from(sigma);
                let factor = |iou: f32| if iou > 0.0 { narrow(libm::exp(-f64::from(iou) * f64::from(iou) / sigma)) } else { 1.0 };
                self.soft(rules, candidates, decode, factor, out);
            }
        }
    }

    /// A candidate is a detection unless a better one of its class overlaps it by more than the limit.
    fn greedy(
        &mut self,
        rules: &Rules,
        limit: IouLimit,
        candidates: &mut [Rank],
        decode: impl Fn(Rank) -> Option<(Detection, usize)>,
        out: &mut Vec<Detection>,
    ) {
        self.kept.clear();
        rank::in_order(candidates, |candidate| {
            let Some((detection, class)) = decode(candidate) else { return true };
            let list = if rules.is_class_agnostic { 0 } else { class };
            if !self.kernels.overlaps(&self.kept, list, &detection.bbox, limit) {
                self.kept.push(list, &detection.bbox);
                out.push(detection);
            }
            out.len() < rules.max_detections
        });
    }

    /// The best candidate is a detection; it lowers the scores of the others of its class by a factor of their `IoU`, and
    /// those that are not above the threshold any more are gone.
    fn soft(
        &mut self,
        rules: &Rules,
        candidates: &[Rank],
        decode: impl Fn(Rank) -> Option<(Detection, usize)>,
        factor: impl Fn(f32) -> f32,
        out: &mut Vec<Detection>,
    ) {
        self.waiting.clear();
        for &rank in candidates {
            if let Some((Detection { bbox, .. }, class)) = decode(rank) {
                self.waiting.push(Waiting { rank, bbox, class });
            }
        }
        while out.len() < rules.max_detections
            && let Some((best_idx, _)) = self.waiting.iter().enumerate().max_by_key(|(_, waiting)| waiting.rank)
        {
            let best = self.waiting.swap_remove(best_idx);
            let Some((detection, _)) = decode(best.rank) else { continue };
            out.push(detection);
            self.waiting.retain_mut(|other| {
                if !rules.is_class_agnostic && other.class != best.class {
                    return true;
                }
                let score = other.rank.score() * factor(best.bbox.iou(&other.bbox));
                let is_above = score > rules.thresholds[other.class];
                if is_above {
                    other.rank = other.rank.with_score(score);
                }
                is_above
            });
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn narrow(x: f64) -> f32 {
    x as f32
}
