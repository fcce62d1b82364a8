//! Scan of logits, 256 in a round; overlap of a box with 16 others at a time, without a division.

use crate::detection::BBox;
use crate::kernels::postprocess::{BoxGroup, BoxLists, IouLimit, Limits, SCAN_BLOCK, Scanned, count_last, hit};
use std::arch::x86_64::*;

/// As `Kernels::scan`.
pub(in crate::kernels) fn scan(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    unsafe { scan_blocks(values, limits, first, hits) }
}

/// # Safety
/// The CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn scan_blocks(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    let n_classes = limits.n_classes();
    let (step, mut class) = (SCAN_BLOCK % n_classes, first % n_classes);
    let (mut n_hits, mut next) = (0, first);
    while next < values.len() && hits.len() - n_hits >= SCAN_BLOCK {
        let limit = limits.block(class).as_ptr();
        let mut found = [0_u64; 4];
        let left = values.len() - next;
        for i in 0..4 {
            // SAFETY: limits of a block are 4 x 64 bytes; of the values, the mask keeps the load within those that are left.
            unsafe {
                let limits = _mm512_loadu_si512(limit.add(64 * i).cast());
                let values = values.as_ptr().add(next + if left > 64 * i { 64 * i } else { 0 });
                found[i] = if left >= SCAN_BLOCK {
                    _mm512_cmpge_epu8_mask(_mm512_loadu_si512(values.cast()), limits)
                } else {
                    let mask = first_bits(left.saturating_sub(64 * i));
                    _mm512_mask_cmpge_epu8_mask(mask, _mm512_maskz_loadu_epi8(mask, values.cast()), limits)
                };
            }
        }
        if found[0] | found[1] | found[2] | found[3] != 0 {
            for i in 0..4 {
                let mut bits = found[i];
                while bits != 0 {
                    hits[n_hits] = hit(next + 64 * i) + bits.trailing_zeros();
                    n_hits += 1;
                    bits &= bits - 1;
                }
            }
        }
        next += left.min(SCAN_BLOCK);
        class += step;
        class -= if class >= n_classes { n_classes } else { 0 };
    }
    Scanned { n_hits, next }
}

/// The first `n` bits, all from 64 on.
const fn first_bits(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// As `Kernels::count`.
pub(in crate::kernels) fn count(values: &[u8], limits: &Limits) -> usize {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    unsafe { count_blocks(values, limits) }
}

/// # Safety
/// The CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn count_blocks(values: &[u8], limits: &Limits) -> usize {
    let n_classes = limits.n_classes();
    let (step, mut class) = (SCAN_BLOCK % n_classes, 0);
    let (blocks, rest) = values.as_chunks::<SCAN_BLOCK>();
    let (mut n, one) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
    for block in blocks {
        let limit = limits.block(class);
        let mut found = _mm512_setzero_si512();
        for i in (0..SCAN_BLOCK).step_by(64) {
            // SAFETY: block and limits have 256 bytes.
            let (values, limits) =
                unsafe { (_mm512_loadu_si512(block.as_ptr().add(i).cast()), _mm512_loadu_si512(limit.as_ptr().add(i).cast())) };
            found = _mm512_mask_add_epi8(found, _mm512_cmpge_epu8_mask(values, limits), found, one);
        }
        n = _mm512_add_epi64(n, _mm512_sad_epu8(found, _mm512_setzero_si512()));
        class += step;
        class -= if class >= n_classes { n_classes } else { 0 };
    }
    usize::try_from(_mm512_reduce_add_epi64(n)).unwrap_or(0) + count_last(rest, limits, class)
}

/// As `Kernels::overlaps`.
pub(in crate::kernels) fn overlaps(lists: &BoxLists, list: usize, bbox: &BBox, limit: IouLimit) -> bool {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    lists.groups(list).any(|group| unsafe { overlaps_group(group, bbox, limit) })
}

/// # Safety
/// The CPU has AVX-512 F and DQ.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn overlaps_group(group: &BoxGroup, bbox: &BBox, limit: IouLimit) -> bool {
    let zero = _mm512_setzero_ps();
    // SAFETY: each array has 16 values.
    let [x1, y1, x2, y2, area] =
        [&group.x1, &group.y1, &group.x2, &group.y2, &group.area].map(|values| unsafe { _mm512_loadu_ps(values.as_ptr()) });
    let width = _mm512_sub_ps(_mm512_min_ps(x2, _mm512_set1_ps(bbox.x2)), _mm512_max_ps(x1, _mm512_set1_ps(bbox.x1)));
    let height = _mm512_sub_ps(_mm512_min_ps(y2, _mm512_set1_ps(bbox.y2)), _mm512_max_ps(y1, _mm512_set1_ps(bbox.y1)));
    let shared = _mm512_mul_ps(_mm512_max_ps(width, zero), _mm512_max_ps(height, zero));
    if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(shared, zero) == 0 {
        return false;
    }
    let union = _mm512_sub_ps(_mm512_add_ps(area, _mm512_set1_ps(bbox.area())), shared);
    let middle = _mm512_set1_pd(limit.middle());
    // Where nothing is shared, 0 > middle x union is false as well: the middle is above 0 and no union is below.
    let is_above = |shared: __m256, union: __m256| {
        _mm512_cmp_pd_mask::<_CMP_GT_OQ>(_mm512_cvtps_pd(shared), _mm512_mul_pd(middle, _mm512_cvtps_pd(union)))
    };
    let low = is_above(_mm512_castps512_ps256(shared), _mm512_castps512_ps256(union));
    low | is_above(_mm512_extractf32x8_ps::<1>(shared), _mm512_extractf32x8_ps::<1>(union)) != 0
}
