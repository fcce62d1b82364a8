//! Greedy non-maximum suppression.

use crate::detection::BBox;

/// Visits the boxes that survive, at most `max`, in the order given (best first). A box is suppressed by a better one
/// of its class if their `IoU` is above `threshold`. `suppressed` has one `false` for each box.
pub(super) fn class_wise(
    boxes: &[BBox],
    class: impl Fn(usize) -> u16,
    threshold: f32,
    max: usize,
    suppressed: &mut [bool],
    mut keep: impl FnMut(usize),
) {
    let mut n_kept = 0;
    for idx in 0..boxes.len() {
        if suppressed[idx] {
            continue;
        }
        keep(idx);
        n_kept += 1;
        if n_kept == max {
            return;
        }
        for other in idx + 1..boxes.len() {
            if !suppressed[other] && class(other) == class(idx) && boxes[idx].iou(&boxes[other]) > threshold {
                suppressed[other] = true;
            }
        }
    }
}
