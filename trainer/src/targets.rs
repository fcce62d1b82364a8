//! What each anchor should say: positive, background or ignored, for every class.
//!
//! Paper section 4.1: `IoU >= 0.5` foreground, `< 0.4` background, between ignored; each anchor at most one object.
//! Beyond it: the best anchor of an object counts from a lower `IoU` up (detectron2's `allow_low_quality_matches`),
//! unknown classes and doubtful boxes are ignored for their class only.

use crate::augment::Sample;
use crate::data::LabelKind;
use fovea::detection::BBox;

/// Target of one logit.
pub(crate) const BACKGROUND: u8 = 0;
/// The anchor is on an object of this class.
pub(crate) const OBJECT: u8 = 1;
/// No loss.
pub(crate) const IGNORED: u8 = 2;

/// Thresholds of the matcher.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MatchParams {
    /// From here an anchor is on the object.
    pub(crate) foreground: f32,
    /// Below this it is background.
    pub(crate) background: f32,
    /// From here the best anchor of an object is on it; above 1: never.
    pub(crate) low_quality: f32,
}

/// Targets of one sample.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    /// `[anchors, classes]` of [`BACKGROUND`], [`OBJECT`], [`IGNORED`].
    pub(crate) classes: Vec<u8>,
    /// Anchors on an object, and the object's box.
    pub(crate) positives: Vec<(usize, BBox)>,
}

/// Matches the labels of a sample with the anchors.
pub(crate) fn assign(sample: &Sample, anchors: &[BBox], n_classes: usize, params: &MatchParams) -> Targets {
    let mut classes = vec![BACKGROUND; anchors.len() * n_classes];
    let objects: Vec<_> = sample.labels.iter().filter(|label| label.kind == LabelKind::Object).collect();
    for (anchor, row) in anchors.iter().zip(classes.chunks_exact_mut(n_classes)) {
        let (cx, cy) = anchor.center();
        let region = sample.regions.iter().find(|r| cx >= r.area.x1 && cx < r.area.x2 && cy >= r.area.y1 && cy < r.area.y2);
        let Some(region) = region.or(sample.regions.first()) else { continue };
        for (target, &known) in row.iter_mut().zip(&region.is_known) {
            if !known {
                *target = IGNORED;
            }
        }
    }
    for label in sample.labels.iter().filter(|label| label.kind == LabelKind::Ignore) {
        for (anchor, row) in anchors.iter().zip(classes.chunks_exact_mut(n_classes)) {
            let shared = label.bbox.intersection(anchor);
            if shared > 0.0 && (shared >= 0.5 * anchor.area() || label.bbox.iou(anchor) >= params.background) {
                row[label.class] = IGNORED;
            }
        }
    }
    let mut best: Vec<(f32, usize)> = vec![(0.0, usize::MAX); anchors.len()];
    let mut rescued: Vec<(usize, usize)> = Vec::new();
    for (object, label) in objects.iter().enumerate() {
        let mut top = (params.low_quality, usize::MAX);
        for (idx, (anchor, best)) in anchors.iter().zip(&mut best).enumerate() {
            let iou = label.bbox.iou(anchor);
            if iou > best.0 {
                *best = (iou, object);
            }
            if iou > top.0 {
                top = (iou, idx);
            }
        }
        if top.1 != usize::MAX {
            rescued.push((top.1, object));
        }
    }
    for (idx, object) in rescued {
        if best[idx].0 < params.foreground {
            best[idx] = (params.foreground, object);
        }
    }
    let mut positives = Vec::new();
    for (idx, &(iou, object)) in best.iter().enumerate() {
        let row = &mut classes[idx * n_classes..][..n_classes];
        if iou >= params.foreground {
            row[objects[object].class] = OBJECT;
            positives.push((idx, objects[object].bbox));
        } else if iou >= params.background {
            row.fill(IGNORED);
        }
    }
    Targets { classes, positives }
}
