//! How well anchors suit the boxes of a data set, and anchors that suit them better.
//!
//! As the dimension clusters of YOLOv2 (Redmon, Farhadi, arXiv 1612.08242, section 2) the measure is the best `IoU` of a box
//! with any anchor around the same centre. The anchors of a RetinaNet are sizes x ratios on every level, not free clusters,
//! so the search goes over what they are made of: the size relative to the stride, and the ratios.

use crate::spec::STRIDES;
use fovea::retinanet::AnchorConfig;

/// `IoU` from which on an anchor learns a box.
pub(crate) const GOOD_IOU: f32 = 0.5;
/// Boxes that the search looks at, at most.
const N_SEARCHED: usize = 2000;

/// Widths and heights of all anchors.
pub(crate) fn sizes(config: &AnchorConfig) -> Vec<(f32, f32)> {
    let mut sizes = Vec::new();
    for &base in &config.base_sizes {
        for &ratio in &config.aspect_ratios {
            sizes.extend(config.scales.iter().map(|scale| (base * scale / ratio.sqrt(), base * scale * ratio.sqrt())));
        }
    }
    sizes
}

/// Best `IoU` of a box with any anchor around the same centre.
pub(crate) fn best_iou(anchors: &[(f32, f32)], (w, h): (f32, f32)) -> f32 {
    let iou = |&(aw, ah): &(f32, f32)| {
        let shared = w.min(aw) * h.min(ah);
        shared / (w * h + aw * ah - shared)
    };
    anchors.iter().map(iou).fold(0.0, f32::max)
}

/// How anchors suit boxes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit {
    /// Share of boxes without a good anchor.
    pub(crate) missed: f32,
    /// Mean over the boxes of the best `IoU`.
    pub(crate) mean_iou: f32,
}

/// Measures anchors on boxes.
pub(crate) fn fit(config: &AnchorConfig, boxes: &[(f32, f32)]) -> Fit {
    let anchors = sizes(config);
    let (mut missed, mut sum) = (0_usize, 0.0_f64);
    for &size in boxes {
        let best = best_iou(&anchors, size);
        missed += usize::from(best < GOOD_IOU);
        sum += f64::from(best);
    }
    let n = boxes.len().max(1) as f64;
    Fit { missed: (missed as f64 / n) as f32, mean_iou: (sum / n) as f32 }
}

/// The anchors that suit the boxes best, of as many as `config` has: those with the fewest boxes without a good anchor and,
/// among equals, the highest mean. Those of a single level (a network without a pyramid) stay as they are: its scales stand for
/// the sizes of all levels.
pub(crate) fn propose(config: &AnchorConfig, boxes: &[(f32, f32)]) -> (AnchorConfig, Fit) {
    if config.base_sizes.len() != STRIDES.len() {
        return (config.clone(), fit(config, boxes));
    }
    let n_ratios = config.aspect_ratios.len();
    let step = boxes.len().div_ceil(N_SEARCHED).max(1);
    let searched: Vec<(f32, f32)> = boxes.iter().copied().step_by(step).collect();
    let mut best = (config.clone(), fit(config, &searched));
    for sixths in 0..=12_u8 {
        // From the stride itself to 4 x the stride.
        let base = (f32::from(sixths) / 6.0).exp2();
        for spread in [1.4_f32, 1.7, 2.0, 2.4, 2.8] {
            for center in [0.5_f32, 0.7, 1.0, 1.4, 2.0, 2.8] {
                // In even steps around the middle one.
                let ratio = |n: usize| rounded(center * f32::powf(spread, n as f32 - (n_ratios as f32 - 1.0) / 2.0));
                let candidate = AnchorConfig {
                    base_sizes: STRIDES.iter().map(|&stride| rounded(base * stride as f32)).collect(),
                    aspect_ratios: (0..n_ratios).map(ratio).collect(),
                    ..config.clone()
                };
                let found = fit(&candidate, &searched);
                if (-found.missed, found.mean_iou) > (-best.1.missed, best.1.mean_iou) {
                    best = (candidate, found);
                }
            }
        }
    }
    let found = fit(&best.0, boxes);
    (best.0, found)
}

/// Two digits are enough for a size or a ratio.
fn rounded(value: f32) -> f32 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ModelSpec;
    use fovea::retinanet::Anchors;

    #[test]
    fn sizes_are_those_of_the_library() {
        let config = ModelSpec::edge_anchors();
        let library = Anchors::new(&config, (512, 288), &STRIDES, &[(1, 1); 5]);
        for ((w, h), anchor) in sizes(&config).into_iter().zip(library.iter()) {
            assert!((w - anchor.width()).abs() < 1e-3 && (h - anchor.height()).abs() < 1e-3, "{w}x{h}, {anchor:?}");
        }
        assert_eq!(sizes(&config).len(), library.len());
    }

    #[test]
    fn best_iou_of_known_shapes() {
        let anchors = [(10.0, 10.0), (20.0, 5.0)];
        for (size, wanted) in [((10.0, 10.0), 1.0), ((10.0, 5.0), 0.5), ((40.0, 5.0), 0.5), ((20.0, 20.0), 0.25)] {
            assert!((best_iou(&anchors, size) - wanted).abs() < 1e-6, "{size:?}");
        }
    }

    #[test]
    fn tall_boxes_get_tall_anchors() {
        let config = ModelSpec::edge_anchors();
        let boxes: Vec<(f32, f32)> = (0..200).map(|n| (10.0 + n as f32 * 0.4, 6.0 * (10.0 + n as f32 * 0.4))).collect();
        let before = fit(&config, &boxes);
        let (proposed, after) = propose(&config, &boxes);
        assert!(before.missed > 0.2 && after.missed < 0.02, "{before:?}, {after:?}");
        assert!(proposed.aspect_ratios[2] > 3.0, "{proposed:?}");
        assert_eq!(proposed.n_per_cell(), config.n_per_cell());
        let one = AnchorConfig { aspect_ratios: vec![1.0], ..config.clone() };
        let (proposed, after) = propose(&one, &boxes);
        assert!(proposed.aspect_ratios[..] == [2.8] && after.missed < fit(&one, &boxes).missed, "{proposed:?}, {after:?}");
        let single = AnchorConfig { base_sizes: vec![32.0], ..config };
        assert_eq!(propose(&single, &boxes).0, single);
    }
}
