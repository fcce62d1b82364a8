//! Weighted boxes fusion: what several views of one picture show becomes one set of boxes.
//!
//! Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models"
//! (arXiv 1910.13302, section 3), all views with the same weight.

use fovea::detection::BBox;

/// `IoU` from which on two boxes of a class are one object, as in the paper.
const SAME_OBJECT: f32 = 0.55;

/// A box that some view shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    /// Class.
    pub(crate) class: usize,
    /// Score in `[0, 1]`.
    pub(crate) score: f32,
    /// Where.
    pub(crate) bbox: BBox,
}

/// Boxes that are one object, and their mean, weighted by score.
struct Cluster {
    members: usize,
    score_sum: f32,
    weighted: [f32; 4],
    mean: BBox,
}

/// Fuses the boxes of all views, in place and best first. `n_views` gives the number of views that could have shown a class.
///
/// The score of an object is the mean of its boxes' scores, times the share of the views that show it.
pub(crate) fn fuse(found: &mut Vec<Found>, n_views: impl Fn(usize) -> usize) {
    found.sort_by(|a, b| a.class.cmp(&b.class).then(b.score.total_cmp(&a.score)));
    let mut fused = Vec::new();
    for of_class in found.chunk_by(|a, b| a.class == b.class) {
        let mut clusters: Vec<Cluster> = Vec::new();
        for one in of_class {
            let mut best = (SAME_OBJECT, None);
            for (idx, cluster) in clusters.iter().enumerate() {
                let iou = cluster.mean.iou(&one.bbox);
                if iou > best.0 {
                    best = (iou, Some(idx));
                }
            }
            let at = best.1.unwrap_or_else(|| {
                clusters.push(Cluster { members: 0, score_sum: 0.0, weighted: [0.0; 4], mean: one.bbox });
                clusters.len() - 1
            });
            clusters[at].add(one);
        }
        let n_views = n_views(of_class[0].class).max(1) as f32;
        fused.extend(clusters.iter().map(|cluster| {
            let n = cluster.members as f32;
            Found { class: of_class[0].class, score: cluster.score_sum / n * n.min(n_views) / n_views, bbox: cluster.mean }
        }));
    }
    fused.sort_by(|a: &Found, b| b.score.total_cmp(&a.score));
    *found = fused;
}

impl Cluster {
    fn add(&mut self, one: &Found) {
        self.members += 1;
        self.score_sum += one.score;
        for (sum, edge) in self.weighted.iter_mut().zip(one.bbox.to_array()) {
            *sum += one.score * edge;
        }
        let [x1, y1, x2, y2] = self.weighted.map(|sum| sum / self.score_sum.max(f32::MIN_POSITIVE));
        self.mean = BBox::new(x1, y1, x2, y2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(boxes: &[(usize, f32, [f32; 4])]) -> Vec<Found> {
        let found =
            |&(class, score, [x1, y1, x2, y2]): &(usize, f32, [f32; 4])| Found { class, score, bbox: BBox::new(x1, y1, x2, y2) };
        boxes.iter().map(found).collect()
    }

    /// Three views of four objects; wanted is what `weighted_boxes_fusion` of the package ensemble-boxes 1.0.9 (by the
    /// paper's authors) gives for them.
    #[test]
    fn fuses_as_the_authors_do() {
        let mut found = list(&[
            (0, 0.93, [31.7, 16.6, 82.7, 81.8]),
            (1, 0.46, [49.5, 42.2, 92.6, 72.9]),
            (0, 0.69, [6.1, 11.1, 56.4, 83.7]),
            (0, 0.92, [32.3, 17.9, 82.4, 74.6]),
            (1, 0.41, [51.9, 39.3, 95.2, 73.5]),
            (1, 0.37, [2.3, 5.4, 20.2, 31.1]),
            (0, 0.21, [70.0, 2.0, 90.0, 20.0]),
            (0, 0.72, [9.2, 13.0, 62.1, 77.4]),
            (0, 0.63, [31.5, 13.0, 85.4, 79.0]),
            (1, 0.71, [2.5, 5.0, 17.5, 33.3]),
            (0, 0.35, [11.5, 14.0, 58.0, 77.0]),
        ]);
        let wanted = list(&[
            (0, 0.82667, [31.872, 16.168, 83.275, 78.418]),
            (0, 0.58667, [8.442, 12.454, 59.05, 79.79]),
            (1, 0.36000, [2.431, 5.137, 18.425, 32.546]),
            (1, 0.29000, [50.631, 40.833, 93.825, 73.183]),
            (0, 0.07000, [70.0, 2.0, 90.0, 20.0]),
        ]);
        fuse(&mut found, |_| 3);
        assert_eq!(found.len(), wanted.len());
        for (got, want) in found.iter().zip(&wanted) {
            let edges = got.bbox.to_array().into_iter().zip(want.bbox.to_array());
            let is_near = edges.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 2e-3;
            assert!(got.class == want.class && (got.score - want.score).abs() < 1e-4 && is_near, "{got:?}, expected {want:?}");
        }
    }

    #[test]
    fn only_views_that_know_a_class_count() {
        let mut found = list(&[(0, 0.8, [0.0, 0.0, 9.0, 9.0]), (1, 0.8, [0.0, 0.0, 9.0, 9.0])]);
        fuse(&mut found, |class| if class == 0 { 2 } else { 1 });
        assert_eq!(found.iter().map(|f| (f.class, f.score)).collect::<Vec<_>>(), [(1, 0.8), (0, 0.4)]);
    }
}
