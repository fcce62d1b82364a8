//! From raw heads to detections: threshold, top-k per level, box decoding, non-maximum suppression.
//!
//! In: [`HeadOutputs`]. Out: [`Detection`]s in pixels of the network input, best first. The conventions are those of the
//! paper (section 4, "Inference") and of detectron2 `modeling/meta_arch/retinanet.py`: keep a candidate if its score is
//! above the threshold, at most k candidates a level, suppress the weaker of two boxes of a class if their `IoU` is
//! above the threshold, at most n detections. Boxes are not clipped here. Equal scores are ordered by level, anchor
//! and class, so that the result is the same on every machine. `docs/postprocess.md` has all of it.
//!
//! Quantised logits are compared with an integer: no sigmoid is computed, for any candidate; scores come from a table.
//! A candidate is one integer, its `Rank`; boxes are decoded in the order of ranks, and only until there are n detections.

mod rank;
mod rules;
mod suppress;

pub use rules::{OptionError, PostprocessOptions, Rules};

use crate::detection::{BBox, ClassId, Detection};
use crate::kernels::Kernels;
use crate::kernels::postprocess::{Limits, SCAN_BLOCK};
use crate::quant::{self, QuantParams};
use crate::retinanet::{Anchors, BBOX_XFORM_CLIP, BoxCoder, Deltas, HeadData, HeadOutputs, Manifest};
use rank::Rank;
use suppress::Suppression;

/// Places that a scan gives at a time.
const N_HITS: usize = 8 * SCAN_BLOCK;

/// A crowded level of at most so many logits is counted again and again until the k-th best is known: it lies in a near cache.
const MAX_COUNTED: usize = 1 << 17;

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
    /// The same in 8 bits: 255 for 256.
    limits: Vec<u8>,
    /// Whether there is no 256 among them: whatever reaches a limit is a candidate.
    is_exact: bool,
}

/// Where boxes come from: the anchors, the tables, and what does not change from frame to frame.
#[derive(Debug, Clone)]
struct Decoder {
    anchors: Anchors,
    n_classes: usize,
    tables: Vec<Option<Box<LevelTables>>>,
}

/// Decodes the heads of one model. Holds tables and buffers, so that a frame allocates nothing after the first.
#[derive(Debug, Clone)]
pub struct Postprocessor {
    kernels: Kernels,
    rules: Rules,
    decoder: Decoder,
    limits: Limits,
    /// Of real logits: no lower one can be above its class's threshold.
    floors: Vec<f32>,
    hits: Box<[u32]>,
    /// Candidates of one level.
    of_level: Vec<Rank>,
    /// The best of every level.
    candidates: Vec<Rank>,
    suppression: Suppression,
}

impl Postprocessor {
    /// For a model, with its `score_threshold` for every class.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        Self::with_rules(manifest, Rules::new(manifest), Kernels::default())
    }

    /// For a model, by these rules, with these kernels. No kernel changes a result.
    ///
    /// # Panics
    /// If the rules were made for another number of classes.
    #[must_use]
    pub fn with_rules(manifest: &Manifest, rules: Rules, kernels: Kernels) -> Self {
        let n_classes = manifest.n_classes();
        assert_eq!(rules.thresholds.len(), n_classes, "one threshold a class");
        let input = (manifest.input.width, manifest.input.height);
        let anchors = Anchors::new(&manifest.anchors, input, &manifest.strides(), &manifest.grids());
        let sizes = anchors.levels.iter().map(|level| level.len() * n_classes);
        let n_candidates = sizes.clone().map(|size| size.min(rules.topk_candidates_per_level)).sum();
        let n_of_level = sizes.map(|size| size.min(most_of_level(&rules) + N_HITS)).max().unwrap_or(0);
        Self {
            kernels,
            decoder: Decoder { tables: vec![None; anchors.levels.len()], n_classes, anchors },
            limits: Limits::new(&vec![0; n_classes]),
            floors: rules.thresholds.iter().map(|&threshold| floor(threshold)).collect(),
            hits: vec![0; N_HITS].into_boxed_slice(),
            of_level: Vec::with_capacity(n_of_level),
            candidates: Vec::with_capacity(n_candidates),
            suppression: Suppression::new(&rules, n_classes, n_candidates, kernels),
            rules,
        }
    }

    /// Fills `out` with the detections of `heads`, best first, in pixels of the network input.
    ///
    /// # Panics
    /// If the levels of `heads` are not those of the manifest.
    pub fn run(&mut self, heads: &HeadOutputs<'_>, out: &mut Vec<Detection>) {
        let grids = self.decoder.anchors.levels.iter().map(|level| level.grid);
        assert!(heads.levels.iter().map(|level| level.grid).eq(grids), "the heads are those of another network");
        out.clear();
        out.reserve(self.rules.max_detections.min(self.candidates.capacity()));
        self.candidates.clear();
        let top_k = self.rules.topk_candidates_per_level;
        for (level_idx, level) in heads.levels.iter().enumerate() {
            self.of_level.clear();
            match (level.cls_logits, level.bbox_deltas) {
                (HeadData::Quantized(logits, cls), HeadData::Quantized(_, bbox)) => {
                    self.scan_quantised(level_idx, logits, cls, bbox);
                }
                (HeadData::Float(logits), _) => self.scan_float(level_idx, logits),
                // No executor gives quantised logits and real deltas.
                (HeadData::Quantized(..), HeadData::Float(_)) => {}
            }
            rank::keep_best(&mut self.of_level, top_k);
            self.candidates.append(&mut self.of_level);
        }
        let Self { decoder, rules, candidates, suppression, .. } = self;
        let decode = |candidate: Rank| {
            let (detection, class) = decoder.decode(candidate, heads);
            let BBox { x1, y1, x2, y2 } = detection.bbox;
            let is_finite = [x1, y1, x2, y2].into_iter().all(f32::is_finite);
            let is_large = detection.bbox.width() >= rules.min_box_size && detection.bbox.height() >= rules.min_box_size;
            (is_finite && (is_large || rules.min_box_size <= 0.0)).then_some((detection, class))
        };
        suppression.run(rules, candidates, decode, out);
    }

    /// Collects the candidates of one level: at least its best k, at most [`most_of_level`] and a few.
    fn scan_quantised(&mut self, level_idx: usize, logits: &[u8], cls: QuantParams, bbox: QuantParams) {
        let n_classes = self.decoder.n_classes;
        let tables = tables_for(&mut self.decoder.tables[level_idx], cls, bbox, &self.rules.thresholds);
        self.limits.set(&tables.limits);
        let mut first = 0;
        while first < logits.len() {
            let scanned = self.kernels.scan(logits, &self.limits, first, &mut self.hits);
            if first == 0 && scanned.next < logits.len() && logits.len() <= MAX_COUNTED && tables.is_exact {
                return self.scan_crowd(level_idx, logits);
            }
            for place in self.hits[..scanned.n_hits].iter().map(|&place| place as usize) {
                let logit = logits[place];
                if tables.is_exact || u16::from(logit) >= tables.lowest[place % n_classes] {
                    self.of_level.push(Rank::new(tables.scores[usize::from(logit)], level_idx, place));
                }
            }
            first = scanned.next;
            if self.of_level.len() > most_of_level(&self.rules)
                && let Some(last) = rank::keep_best(&mut self.of_level, self.rules.topk_candidates_per_level)
            {
                // What comes behind k candidates has to be better than the last of them: on a tie, the first wins.
                match (0..=u8::MAX).find(|&q| tables.scores[usize::from(q)] > last.score()) {
                    Some(lowest) => self.limits.raise(lowest),
                    None => return,
                }
            }
        }
    }

    /// As [`Self::scan_quantised`], of a level with more candidates than a scan gives at a time: exactly its best k, by counting
    /// instead of ordering.
    fn scan_crowd(&mut self, level_idx: usize, logits: &[u8]) {
        let Some(tables) = &self.decoder.tables[level_idx] else { return };
        let (kernels, limits, scores) = (self.kernels, &mut self.limits, &tables.scores);
        let mut n_from = |q: usize| {
            limits.set(&tables.limits);
            limits.raise(u8::try_from(q).unwrap_or(u8::MAX));
            kernels.count(logits, limits)
        };
        let k = self.rules.topk_candidates_per_level;
        // From logit `last` on there are k candidates, or all if there are fewer; from `over` on there are fewer.
        let (mut last, mut over) = (usize::from(tables.limits.iter().copied().min().unwrap_or(0)), 256);
        while over - last > 1 {
            let middle = usize::midpoint(last, over);
            if n_from(middle) >= k { last = middle } else { over = middle }
        }
        // Far up, logits have equal scores: then the place decides, as among equal logits.
        let score = scores[last];
        let lowest = scores.iter().position(|&other| other.to_bits() == score.to_bits()).unwrap_or(last);
        let above = scores.iter().rposition(|&other| other.to_bits() == score.to_bits()).unwrap_or(last) + 1;
        let mut n_equal = k - if above < 256 { n_from(above) } else { 0 };
        n_from(lowest);
        let mut first = 0;
        while first < logits.len() {
            let scanned = kernels.scan(logits, &self.limits, first, &mut self.hits);
            for place in self.hits[..scanned.n_hits].iter().map(|&place| place as usize) {
                let logit = usize::from(logits[place]);
                if logit < above {
                    if n_equal == 0 {
                        continue;
                    }
                    n_equal -= 1;
                }
                self.of_level.push(Rank::new(scores[logit], level_idx, place));
            }
            first = scanned.next;
        }
    }

    /// As [`Self::scan_quantised`], of real values.
    fn scan_float(&mut self, level_idx: usize, logits: &[f32]) {
        let mut place = 0;
        let most = most_of_level(&self.rules);
        for cell in logits.chunks_exact(self.decoder.n_classes) {
            for ((&logit, &threshold), &floor) in cell.iter().zip(&self.rules.thresholds).zip(&self.floors) {
                if logit > floor {
                    let score = sigmoid(logit);
                    if score > threshold {
                        self.of_level.push(Rank::new(score, level_idx, place));
                    }
                }
                place += 1;
            }
            if self.of_level.len() > most {
                rank::keep_best(&mut self.of_level, self.rules.topk_candidates_per_level);
            }
        }
    }
}

/// Candidates of a level from which on only the best k are kept.
fn most_of_level(rules: &Rules) -> usize {
    (2 * rules.topk_candidates_per_level).max(N_HITS)
}

impl Decoder {
    /// A candidate as a detection with a box in pixels of the network input, and its class.
    fn decode(&self, candidate: Rank, heads: &HeadOutputs<'_>) -> (Detection, usize) {
        let (level_idx, place) = (candidate.level(), candidate.place());
        let (anchor_idx, class) = (place / self.n_classes, place % self.n_classes);
        let level = &self.anchors.levels[level_idx];
        let per_cell = level.cell_anchors.len();
        let (cell, a) = (anchor_idx / per_cell, anchor_idx % per_cell);
        let anchor = level.bbox(cell % level.grid.0, cell / level.grid.0, a);
        let bbox = match (heads.levels[level_idx].bbox_deltas, &self.tables[level_idx]) {
            (HeadData::Quantized(deltas, params), Some(tables)) if tables.bbox == params => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| deltas[4 * anchor_idx + i]);
                let (exp_dw, exp_dh) = (tables.exp[usize::from(dw)], tables.exp[usize::from(dh)]);
                BoxCoder::decode_scaled(params.dequantize(dx), params.dequantize(dy), exp_dw, exp_dh, &anchor)
            }
            (HeadData::Quantized(deltas, params), _) => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| params.dequantize(deltas[4 * anchor_idx + i]));
                BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &anchor)
            }
            (HeadData::Float(deltas), _) => {
                let [dx, dy, dw, dh] = [0, 1, 2, 3].map(|i| deltas[4 * anchor_idx + i]);
                BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &anchor)
            }
        };
        let class_id = ClassId(u16::try_from(class).unwrap_or(u16::MAX));
        (Detection { bbox, class_id, score: candidate.score() }, class)
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
        let lowest: Vec<u16> = thresholds.iter().map(lowest).collect();
        let limits = lowest.iter().map(|&lowest| u8::try_from(lowest).unwrap_or(u8::MAX)).collect();
        let is_exact = lowest.iter().all(|&lowest| lowest <= 255);
        Box::new(LevelTables { cls, bbox, scores, exp: quant::exp_table(bbox, BBOX_XFORM_CLIP), lowest, limits, is_exact })
    })
}

/// A little less than the logit of a score: whose sigmoid is certainly not above it. Scores below 2e-9 are below every
/// threshold worth having, 0 included.
#[expect(clippy::cast_possible_truncation, reason = "the margin is a thousand times the rounding")]
fn floor(threshold: f32) -> f32 {
    let t = f64::from(threshold);
    match t {
        0.0 => -20.0,
        1.0.. => f32::INFINITY,
        _ => (libm::log(t / (1.0 - t)) - 1e-3).max(-20.0) as f32,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(-f64::from(logit)))) as f32
}
