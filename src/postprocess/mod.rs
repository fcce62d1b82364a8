//! From raw heads to detections: threshold, top-k per level, box decoding, class-wise non-maximum suppression.
//!
//! In: [`HeadOutputs`]. Out: [`Detection`]s in pixels of the network input, best first. The conventions are those of the
//! paper (section 4, "Inference") and of detectron2 `modeling/meta_arch/retinanet.py`: keep a candidate if its score is
//! above the threshold, at most k candidates a level, suppress the weaker of two boxes of a class if their `IoU` is
//! above the threshold, at most n detections. Boxes are not clipped here. Equal scores are ordered by level, anchor
//! and class, so that the result is the same on every machine.
//!
//! Quantised logits are compared with an integer: no sigmoid is computed, for any candidate; scores come from a table.

mod nms;

use crate::detection::{BBox, ClassId, Detection};
use crate::quant::{self, QuantParams};
use crate::retinanet::{
    Anchors, BBOX_XFORM_CLIP, BoxCoder, Deltas, HeadData, HeadOutputs, LevelHeads, Manifest, PostprocessSpec,
};
use std::cmp::Ordering;

/// A place in the heads whose score is above the threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    score: f32,
    level: u16,
    class: u16,
    /// Row-major cell x anchors of a cell + anchor, within the level.
    anchor: u32,
}

impl Candidate {
    /// Best first: score, then level, anchor, class.
    fn rank(&self, other: &Self) -> Ordering {
        let place = |c: &Self| (c.level, c.anchor, c.class);
        other.score.total_cmp(&self.score).then_with(|| place(self).cmp(&place(other)))
    }
}

/// Tables of one level, for the parameters its heads have.
#[derive(Debug, Clone)]
struct LevelTables {
    cls: QuantParams,
    bbox: QuantParams,
    /// Score of a quantised logit.
    scores: [f32; 256],
    /// `exp(delta)`, clamped, of a quantised delta.
    exp: [f32; 256],
    /// Lowest quantised logit above the threshold, one a class; 256 where no value is.
    lowest: Vec<u16>,
}

/// Decodes the heads of one model. Holds tables and buffers, so that a frame allocates nothing once they have grown.
#[derive(Debug, Clone)]
pub struct Postprocessor {
    anchors: Anchors,
    spec: PostprocessSpec,
    /// Score threshold of each class.
    thresholds: Vec<f32>,
    tables: Vec<Option<Box<LevelTables>>>,
    candidates: Vec<Candidate>,
    kept: Vec<Candidate>,
    boxes: Vec<BBox>,
    suppressed: Vec<bool>,
}

impl Postprocessor {
    /// For a model, with its `score_threshold` for every class.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        Self::with_thresholds(manifest, vec![manifest.postprocess.score_threshold; manifest.n_classes()])
    }

    /// For a model, with one threshold for each class.
    ///
    /// # Panics
    /// If there are not as many thresholds as classes.
    #[must_use]
    pub fn with_thresholds(manifest: &Manifest, thresholds: Vec<f32>) -> Self {
        assert_eq!(thresholds.len(), manifest.n_classes(), "one threshold a class");
        let input = (manifest.input.width, manifest.input.height);
        Self {
            anchors: Anchors::new(&manifest.anchors, input, &manifest.strides(), &manifest.grids()),
            spec: manifest.postprocess.clone(),
            thresholds,
            tables: vec![None; manifest.levels.len()],
            candidates: Vec::new(),
            kept: Vec::new(),
            boxes: Vec::new(),
            suppressed: Vec::new(),
        }
    }

    /// Fills `out` with the detections of `heads`, best first, in pixels of the network input.
    pub fn run(&mut self, heads: &HeadOutputs<'_>, out: &mut Vec<Detection>) {
        out.clear();
        self.kept.clear();
        for (level_idx, level) in heads.levels.iter().enumerate().take(self.anchors.levels.len()) {
            self.scan(level_idx, level);
            let k = self.spec.topk_candidates_per_level;
            if self.candidates.len() > k {
                self.candidates.select_nth_unstable_by(k - 1, Candidate::rank);
                self.candidates.truncate(k);
            }
            self.kept.append(&mut self.candidates);
        }
        self.kept.sort_unstable_by(Candidate::rank);
        self.boxes.clear();
        for candidate in &self.kept {
            self.boxes.push(self.decode(candidate, heads));
        }
        self.suppressed.clear();
        self.suppressed.resize(self.kept.len(), false);
        let classes = |idx: usize| self.kept[idx].class;
        nms::class_wise(
            &self.boxes,
            classes,
            self.spec.nms_iou_threshold,
            self.spec.max_detections,
            &mut self.suppressed,
            |idx| {
                let Candidate { score, class, .. } = self.kept[idx];
                out.push(Detection { bbox: self.boxes[idx], class_id: ClassId(class), score });
            },
        );
    }

    /// Collects the candidates of one level.
    fn scan(&mut self, level_idx: usize, level: &LevelHeads<'_>) {
        let (n_classes, level_no) = (self.thresholds.len(), saturate_u16(level_idx));
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut push = |place: usize, class: usize, score: f32| {
            candidates.push(Candidate { score, level: level_no, class: saturate_u16(class), anchor: saturate_u32(place) });
        };
        match level.cls_logits {
            HeadData::Quantized(logits, cls) => {
                let HeadData::Quantized(_, bbox) = level.bbox_deltas else { return };
                let tables = tables_for(&mut self.tables[level_idx], cls, bbox, &self.thresholds);
                for (place, logits) in logits.chunks_exact(n_classes).enumerate() {
                    for (class, (&logit, &lowest)) in logits.iter().zip(&tables.lowest).enumerate() {
                        if u16::from(logit) >= lowest {
                            push(place, class, tables.scores[usize::from(logit)]);
                        }
                    }
                }
            }
            HeadData::Float(logits) => {
                for (place, logits) in logits.chunks_exact(n_classes).enumerate() {
                    for (class, (&logit, &threshold)) in logits.iter().zip(&self.thresholds).enumerate() {
                        // Scores below 2e-9 are below every threshold worth having, 0 included.
                        if logit > -20.0 {
                            let score = sigmoid(logit);
                            if score > threshold {
                                push(place, class, score);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The box of a candidate in pixels of the network input.
    fn decode(&self, candidate: &Candidate, heads: &HeadOutputs<'_>) -> BBox {
        let level_idx = usize::from(candidate.level);
        let level = &self.anchors.levels[level_idx];
        let per_cell = level.cell_anchors.len();
        let place = candidate.anchor as usize;
        let (cell, a) = (place / per_cell, place % per_cell);
        let anchor = level.bbox(cell % level.grid.0, cell / level.grid.0, a);
        match (heads.levels[level_idx].bbox_deltas, &self.tables[level_idx]) {
            (HeadData::Quantized(deltas, params), Some(tables)) => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| deltas[4 * place + i]);
                let (exp_dw, exp_dh) = (tables.exp[usize::from(dw)], tables.exp[usize::from(dh)]);
                BoxCoder::decode_scaled(params.dequantize(dx), params.dequantize(dy), exp_dw, exp_dh, &anchor)
            }
            (HeadData::Quantized(deltas, params), None) => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| params.dequantize(deltas[4 * place + i]));
                BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &anchor)
            }
            (HeadData::Float(deltas), _) => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| deltas[4 * place + i]);
                BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &anchor)
            }
        }
    }
}

/// The tables for these parameters: the ones that are there, or new ones.
fn tables_for<'a>(
    slot: &'a mut Option<Box<LevelTables>>,
    cls: QuantParams,
    bbox: QuantParams,
    thresholds: &[f32],
) -> &'a LevelTables {
    if slot.as_ref().is_some_and(|tables| tables.cls != cls || tables.bbox != bbox) {
        *slot = None;
    }
    slot.get_or_insert_with(|| {
        let scores = quant::sigmoid_table(cls);
        let lowest = |&threshold: &f32| (0..=255_u16).find(|&q| scores[usize::from(q)] > threshold).unwrap_or(256);
        let lowest = thresholds.iter().map(lowest).collect();
        Box::new(LevelTables { cls, bbox, scores, exp: quant::exp_table(bbox, BBOX_XFORM_CLIP), lowest })
    })
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(-f64::from(logit)))) as f32
}

fn saturate_u16(x: usize) -> u16 {
    u16::try_from(x).unwrap_or(u16::MAX)
}

fn saturate_u32(x: usize) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}
