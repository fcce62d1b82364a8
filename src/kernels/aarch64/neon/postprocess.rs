//! Scan of logits, 64 in a round; overlap of a box with 4 others at a time, without a division.

use crate::detection::BBox;
use crate::kernels::postprocess::{BoxGroup, BoxLists, GROUP_LEN, IouLimit, Limits, SCAN_BLOCK, Scanned, count_last, hit};
use std::arch::aarch64::*;

/// As `Kernels::scan`.
pub(in crate::kernels) fn scan(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    unsafe { scan_blocks(values, limits, first, hits) }
}

/// # Safety
/// The CPU has the instruction set.
#[target_feature(enable = "neon")]
unsafe fn scan_blocks(values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
    const ROUND: usize = SCAN_BLOCK / 4;
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
        let mut found = [vdupq_n_u8(0); 4];
        for i in 0..4 {
            // SAFETY: block and limits have 4 x 16 bytes.
            let (values, limits) = unsafe { (vld1q_u8(block.as_ptr().add(16 * i)), vld1q_u8(limit.as_ptr().add(16 * i))) };
            found[i] = vcgeq_u8(values, limits);
        }
        let any = vorrq_u8(vorrq_u8(found[0], found[1]), vorrq_u8(found[2], found[3]));
        if vmaxvq_u8(any) != 0 {
            for i in 0..4 {
                // Four bits a value.
                let nibbles = vshrn_n_u16::<4>(vreinterpretq_u16_u8(found[i]));
                let mut bits = vget_lane_u64::<0>(vreinterpret_u64_u8(nibbles)) & 0x1111_1111_1111_1111;
                while bits != 0 {
                    hits[n_hits] = hit(next + 16 * i) + bits.trailing_zeros() / 4;
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
/// The CPU has the instruction set.
#[target_feature(enable = "neon")]
unsafe fn count_blocks(values: &[u8], limits: &Limits) -> usize {
    let n_classes = limits.n_classes();
    let (step, mut class) = (SCAN_BLOCK % n_classes, 0);
    let (blocks, rest) = values.as_chunks::<SCAN_BLOCK>();
    let mut n = 0;
    for block in blocks {
        let limit = limits.block(class);
        let mut found = vdupq_n_u8(0);
        for i in (0..SCAN_BLOCK).step_by(16) {
            // SAFETY: block and limits have 256 bytes.
            let (values, limits) = unsafe { (vld1q_u8(block.as_ptr().add(i)), vld1q_u8(limit.as_ptr().add(i))) };
            // Each that reaches its limit adds one: all ones are -1.
            found = vsubq_u8(found, vcgeq_u8(values, limits));
        }
        n += usize::from(vaddlvq_u8(found));
        class += step;
        class -= if class >= n_classes { n_classes } else { 0 };
    }
    n + count_last(rest, limits, class)
}

/// As `Kernels::overlaps`.
pub(in crate::kernels) fn overlaps(lists: &BoxLists, list: usize, bbox: &BBox, limit: IouLimit) -> bool {
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    lists.groups(list).any(|group| unsafe { overlaps_group(group, bbox, limit) })
}

/// # Safety
/// The CPU has the instruction set.
#[target_feature(enable = "neon")]
unsafe fn overlaps_group(group: &BoxGroup, bbox: &BBox, limit: IouLimit) -> bool {
    let (zero, middle) = (vdupq_n_f32(0.0), vdupq_n_f64(limit.middle()));
    let mut any = vdupq_n_u64(0);
    for first in (0..GROUP_LEN).step_by(4) {
        // SAFETY: each array has 16 values.
        let [x1, y1, x2, y2, area] = [&group.x1, &group.y1, &group.x2, &group.y2, &group.area]
            .map(|values| unsafe { vld1q_f32(values.as_ptr().add(first)) });
        let width = vsubq_f32(vminq_f32(x2, vdupq_n_f32(bbox.x2)), vmaxq_f32(x1, vdupq_n_f32(bbox.x1)));
        let height = vsubq_f32(vminq_f32(y2, vdupq_n_f32(bbox.y2)), vmaxq_f32(y1, vdupq_n_f32(bbox.y1)));
        let shared = vmulq_f32(vmaxq_f32(width, zero), vmaxq_f32(height, zero));
        let union = vsubq_f32(vaddq_f32(area, vdupq_n_f32(bbox.area())), shared);
        // Where nothing is shared, 0 > middle x union is false: the middle is above 0 and no union is below.
        let low = vcgtq_f64(vcvt_f64_f32(vget_low_f32(shared)), vmulq_f64(middle, vcvt_f64_f32(vget_low_f32(union))));
        let high = vcgtq_f64(vcvt_high_f64_f32(shared), vmulq_f64(middle, vcvt_high_f64_f32(union)));
        any = vorrq_u64(any, vorrq_u64(low, high));
    }
    vmaxvq_u32(vreinterpretq_u32_u64(any)) != 0
}
