//! Scan of logits, 128 in a round; overlap of a box with 8 others at a time, without a division.

use crate::detection::BBox;
use crate::kernels::postprocess::{BoxGroup, BoxLists, GROUP_LEN, IouLimit, Limits, SCAN_BLOCK, Scanned, count_last, hit};
use std::arch::x86_64::*;

/// As `Kernels::scan`.
pub(in crate::kernels) fn scan(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    unsafe { scan_blocks(values, limits, first, hits) }
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn scan_blocks(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    const ROUND: usize = SCAN_BLOCK / 2;
    let n_classes = limits.n_classes();
    let (step, mut class) = (ROUND % n_classes, first % n_classes);
    let (mut n_hits, mut next) = (0, first);
    while next < values.len() && hits.len() - n_hits >= SCAN_BLOCK {
        let limit = limits.block(class);
        let Some(block) = values[next..].first_chunk::<ROUND>() else {
            // The end of the values: less than a round.
            for ((place, value), limit) in (next..).zip(&values[next..]).zip(limit) {
                if value >= limit {
                    hits[n_hits] = hit(place);
                    n_hits += 1;
                }
            }
            return Scanned { n_hits, next: values.len() };
        };
        let mut found = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            // SAFETY: block and limits have 4 x 32 bytes.
            let (values, limits) = unsafe {
                (_mm256_loadu_si256(block.as_ptr().add(32 * i).cast()), _mm256_loadu_si256(limit.as_ptr().add(32 * i).cast()))
            };
            found[i] = _mm256_cmpeq_epi8(_mm256_max_epu8(values, limits), values);
        }
        let any = _mm256_or_si256(_mm256_or_si256(found[0], found[1]), _mm256_or_si256(found[2], found[3]));
        if _mm256_testz_si256(any, any) == 0 {
            for i in 0..4 {
                let mut bits = _mm256_movemask_epi8(found[i]).cast_unsigned();
                while bits != 0 {
                    hits[n_hits] = hit(next + 32 * i) + bits.trailing_zeros();
                    n_hits += 1;
                    bits &= bits - 1;
                }
            }
        }
        next += ROUND;
        class += step;
        class -= if class >= n_classes { n_classes } else { 0 };
    }
    Scanned { n_hits, next }
}

/// As `Kernels::count`.
pub(in crate::kernels) fn count(values: &[u8], limits: &Limits) -> usize {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    unsafe { count_blocks(values, limits) }
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn count_blocks(values: &[u8], limits: &Limits) -> usize {
    let n_classes = limits.n_classes();
    let (step, mut class) = (SCAN_BLOCK % n_classes, 0);
    let (blocks, rest) = values.as_chunks::<SCAN_BLOCK>();
    let mut n = _mm256_setzero_si256();
    for block in blocks {
        let limit = limits.block(class);
        let mut missed = _mm256_setzero_si256();
        for i in (0..SCAN_BLOCK).step_by(32) {
            // SAFETY: block and limits have 256 bytes.
            let (values, limits) =
                unsafe { (_mm256_loadu_si256(block.as_ptr().add(i).cast()), _mm256_loadu_si256(limit.as_ptr().add(i).cast())) };
            // Each that reaches its limit takes one away.
            missed = _mm256_add_epi8(missed, _mm256_cmpeq_epi8(_mm256_max_epu8(values, limits), values));
        }
        let found = _mm256_sub_epi8(_mm256_setzero_si256(), missed);
        n = _mm256_add_epi64(n, _mm256_sad_epu8(found, _mm256_setzero_si256()));
        class += step;
        class -= if class >= n_classes { n_classes } else { 0 };
    }
    let halves = _mm_add_epi64(_mm256_castsi256_si128(n), _mm256_extracti128_si256::<1>(n));
    let n = _mm_cvtsi128_si64(_mm_add_epi64(halves, _mm_unpackhi_epi64(halves, halves)));
    usize::try_from(n).unwrap_or(0) + count_last(rest, limits, class)
}

/// As `Kernels::overlaps`.
pub(in crate::kernels) fn overlaps(lists: &BoxLists, list: usize, bbox: &BBox, limit: IouLimit) -> bool {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    lists.groups(list).any(|group| unsafe { overlaps_group(group, bbox, limit) })
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn overlaps_group(group: &BoxGroup, bbox: &BBox, limit: IouLimit) -> bool {
    let zero = _mm256_setzero_ps();
    let middle = _mm256_set1_pd(limit.middle());
    let mut any = _mm256_setzero_pd();
    for first in (0..GROUP_LEN).step_by(8) {
        // SAFETY: each array has 16 values.
        let [x1, y1, x2, y2, area] = [&group.x1, &group.y1, &group.x2, &group.y2, &group.area]
            .map(|values| unsafe { _mm256_loadu_ps(values.as_ptr().add(first)) });
        let width = _mm256_sub_ps(_mm256_min_ps(x2, _mm256_set1_ps(bbox.x2)), _mm256_max_ps(x1, _mm256_set1_ps(bbox.x1)));
        let height = _mm256_sub_ps(_mm256_min_ps(y2, _mm256_set1_ps(bbox.y2)), _mm256_max_ps(y1, _mm256_set1_ps(bbox.y1)));
        let shared = _mm256_mul_ps(_mm256_max_ps(width, zero), _mm256_max_ps(height, zero));
        if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(shared, zero)) == 0 {
            continue;
        }
        let union = _mm256_sub_ps(_mm256_add_ps(area, _mm256_set1_ps(bbox.area())), shared);
        // Where nothing is shared, 0 > middle x union is false as well: the middle is above 0 and no union is below.
        for (shared, union) in [
            (_mm256_castps256_ps128(shared), _mm256_castps256_ps128(union)),
            (_mm256_extractf128_ps::<1>(shared), _mm256_extractf128_ps::<1>(union)),
        ] {
            let least = _mm256_mul_pd(middle, _mm256_cvtps_pd(union));
            any = _mm256_or_pd(any, _mm256_cmp_pd::<_CMP_GT_OQ>(_mm256_cvtps_pd(shared), least));
        }
    }
    _mm256_movemask_pd(any) != 0
}
