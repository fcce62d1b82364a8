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
    let ends = sample.regions.iter().map(|region| (region.area.x2, region.area.y2));
    let (right, bottom) = ends.fold((0.0_f32, 0.0_f32), |(right, bottom), (x2, y2)| (right.max(x2), bottom.max(y2)));
    for (anchor, row) in anchors.iter().zip(classes.chunks_exact_mut(n_classes)) {
        let (cx, cy) = anchor.center();
        // Cells at the right and at the bottom may reach beyond the input: they are its border's.
        let (cx, cy) = (cx.clamp(0.0, (right - 0.5).max(0.0)), cy.clamp(0.0, (bottom - 0.5).max(0.0)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Region;
    use crate::data::Label;

    const PARAMS: MatchParams = MatchParams { foreground: 0.5, background: 0.4, low_quality: 0.15 };

    fn sample(labels: Vec<Label>, is_known: Vec<bool>) -> Sample {
        let area = BBox::new(0.0, 0.0, 100.0, 100.0);
        Sample { pixels: Vec::new(), labels, regions: vec![Region { area, is_known }] }
    }

    fn object(x1: f32, y1: f32, x2: f32, y2: f32, class: usize) -> Label {
        Label { bbox: BBox::new(x1, y1, x2, y2), class, kind: LabelKind::Object }
    }

    #[test]
    fn thresholds_of_the_matcher() {
        // IoU with the object [0, 0, 20, 20]: 1, 0.5, 0.45, 0.39, 0.
        let anchors = [
            BBox::new(0.0, 0.0, 20.0, 20.0),
            BBox::new(0.0, 0.0, 20.0, 10.0),
            BBox::new(0.0, 0.0, 20.0, 9.0),
            BBox::new(0.0, 0.0, 20.0, 7.8),
            BBox::new(50.0, 50.0, 70.0, 70.0),
        ];
        let targets = assign(&sample(vec![object(0.0, 0.0, 20.0, 20.0, 1)], vec![true, true]), &anchors, 2, &PARAMS);
        let want = [BACKGROUND, OBJECT, BACKGROUND, OBJECT, IGNORED, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND];
        assert_eq!(targets.classes, want);
        let on: Vec<usize> = targets.positives.iter().map(|positive| positive.0).collect();
        assert_eq!(on, [0, 1]);
    }

    /// The lower right quarter of a mosaic does not know class 0; neither do the anchors whose centres lie beyond it.
    #[test]
    fn anchors_beyond_the_input_know_what_its_border_knows() {
        let quarter = |x: f32, y: f32, known: bool| Region { area: BBox::new(x, y, x + 50.0, y + 50.0), is_known: vec![known] };
        let regions =
            vec![quarter(0.0, 0.0, true), quarter(50.0, 0.0, true), quarter(0.0, 50.0, true), quarter(50.0, 50.0, false)];
        let sample = Sample { pixels: Vec::new(), labels: Vec::new(), regions };
        let at = |x: f32, y: f32| BBox::new(x - 8.0, y - 8.0, x + 8.0, y + 8.0);
        let anchors = [at(20.0, 20.0), at(80.0, 110.0), at(120.0, 80.0), at(110.0, 110.0), at(20.0, 110.0)];
        let want = [BACKGROUND, IGNORED, IGNORED, IGNORED, BACKGROUND];
        assert_eq!(assign(&sample, &anchors, 1, &PARAMS).classes, want);
    }

    #[test]
    fn the_best_anchor_of_an_object_counts_from_a_lower_overlap() {
        // IoU 0.25 and 0.2: neither is foreground.
        let anchors = [BBox::new(0.0, 0.0, 20.0, 5.0), BBox::new(0.0, 0.0, 20.0, 4.0)];
        let labels = vec![object(0.0, 0.0, 20.0, 20.0, 0)];
        let rescued = assign(&sample(labels.clone(), vec![true]), &anchors, 1, &PARAMS);
        assert_eq!((rescued.classes, rescued.positives.len()), (vec![OBJECT, BACKGROUND], 1));
        let paper = MatchParams { low_quality: 2.0, ..PARAMS };
        assert!(assign(&sample(labels, vec![true]), &anchors, 1, &paper).positives.is_empty());
    }

    #[test]
    fn what_is_not_known_is_not_background() {
        let anchors = [BBox::new(0.0, 0.0, 20.0, 20.0), BBox::new(40.0, 40.0, 60.0, 60.0)];
        let mut doubtful = object(40.0, 40.0, 60.0, 60.0, 0);
        doubtful.kind = LabelKind::Ignore;
        let targets = assign(&sample(vec![doubtful], vec![true, false]), &anchors, 2, &PARAMS);
        assert_eq!(targets.classes, [BACKGROUND, IGNORED, IGNORED, IGNORED]);
        assert!(targets.positives.is_empty());
    }

    #[test]
    fn an_anchor_is_on_the_object_it_overlaps_most() {
        let anchors = [BBox::new(0.0, 0.0, 20.0, 20.0)];
        let labels = vec![object(0.0, 0.0, 20.0, 12.0, 0), object(0.0, 0.0, 20.0, 18.0, 1)];
        let targets = assign(&sample(labels, vec![true, true]), &anchors, 2, &PARAMS);
        assert_eq!(targets.classes, [BACKGROUND, OBJECT]);
        assert!((targets.positives[0].1.y2 - 18.0).abs() < 1e-6);
    }
}
