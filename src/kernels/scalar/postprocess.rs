//! Loops of postprocessing (`docs/postprocess.md`): comparison with a limit, overlap with a division.

use crate::detection::BBox;
use crate::kernels::postprocess::{BoxLists, GROUP_LEN, IouLimit, Limits, SCAN_BLOCK, Scanned, count_last, hit};

/// As `Kernels::scan`.
pub(in crate::kernels) fn scan(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    let (mut n_hits, mut next) = (0, first);
    while next < values.len() && hits.len() - n_hits >= SCAN_BLOCK {
        let block = &values[next..(next + SCAN_BLOCK).min(values.len())];
        for ((place, value), limit) in (next..).zip(block).zip(limits.block(next % limits.n_classes())) {
            if value >= limit {
                hits[n_hits] = hit(place);
                n_hits += 1;
            }
        }
        next += block.len();
    }
    Scanned { n_hits, next }
}

/// As `Kernels::count`.
pub(in crate::kernels) fn count(values: &[u8], limits: &Limits) -> usize {
    let blocks = values.chunks(SCAN_BLOCK).enumerate();
    blocks.map(|(idx, block)| count_last(block, limits, idx * SCAN_BLOCK % limits.n_classes())).sum()
}

/// As `Kernels::overlaps`.
pub(in crate::kernels) fn overlaps(lists: &BoxLists, list: usize, bbox: &BBox, limit: IouLimit) -> bool {
    lists.groups(list).any(|group| {
        (0..GROUP_LEN).any(|i| {
            let shared = BBox::new(group.x1[i], group.y1[i], group.x2[i], group.y2[i]).intersection(bbox);
            let union = group.area[i] + bbox.area() - shared;
            union > 0.0 && shared / union > limit.threshold()
        })
    })
}
