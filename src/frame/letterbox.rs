//! The geometry of the letterbox: which rectangle of the network input a picture fills, and the way back.
//!
//! Part of preprocessing version 1: the aspect ratio is kept, the side that limits fills the input exactly, the other
//! is rounded to the nearest pixel (halves up), the offsets are centred and rounded down to an even number. All of it
//! is integer arithmetic, so every machine fills the same pixels.

use crate::detection::BBox;

/// Where a picture of `src` pixels sits in a network input of `dst` pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Letterbox {
    /// Width and height of the picture.
    pub src: (usize, usize),
    /// Width and height of the network input.
    pub dst: (usize, usize),
    /// Width and height of the picture once resized.
    pub resized: (usize, usize),
    /// Columns to the left of, and rows above, the resized picture; even.
    pub pad: (usize, usize),
}

impl Letterbox {
    /// The letterbox of a picture in a network input; all sides are at least 1.
    ///
    /// # Panics
    /// If a side is 0.
    #[must_use]
    pub fn new(src: (usize, usize), dst: (usize, usize)) -> Self {
        assert!(src.0 > 0 && src.1 > 0 && dst.0 > 0 && dst.1 > 0, "letterbox of {src:?} in {dst:?}");
        let rounded =
            |side: usize, numerator: usize, denominator: usize| ((2 * side * numerator + denominator) / (2 * denominator)).max(1);
        // The smaller scale limits: dst.0 / src.0 <= dst.1 / src.1, compared without division.
        let resized = if dst.0 * src.1 <= dst.1 * src.0 {
            (dst.0, rounded(src.1, dst.0, src.0).min(dst.1))
        } else {
            (rounded(src.0, dst.1, src.1).min(dst.0), dst.1)
        };
        let even_half = |space: usize| (space / 2) & !1;
        let pad = (even_half(dst.0 - resized.0), even_half(dst.1 - resized.1));
        Self { src, dst, resized, pad }
    }

    /// A box of the network input in pixels of the picture, not clipped.
    #[must_use]
    pub fn frame_from_net(&self, bbox_net: &BBox) -> BBox {
        let (sx, sy) = self.frame_per_net();
        let (px, py) = (to_f32(self.pad.0), to_f32(self.pad.1));
        BBox::new((bbox_net.x1 - px) * sx, (bbox_net.y1 - py) * sy, (bbox_net.x2 - px) * sx, (bbox_net.y2 - py) * sy)
    }

    /// A box of the picture in pixels of the network input.
    #[must_use]
    pub fn net_from_frame(&self, bbox_frame: &BBox) -> BBox {
        let sx = to_f32(self.resized.0) / to_f32(self.src.0);
        let sy = to_f32(self.resized.1) / to_f32(self.src.1);
        let (px, py) = (to_f32(self.pad.0), to_f32(self.pad.1));
        BBox::new(bbox_frame.x1 * sx + px, bbox_frame.y1 * sy + py, bbox_frame.x2 * sx + px, bbox_frame.y2 * sy + py)
    }

    /// Pixels of the picture for one pixel of the network input, in x and y.
    #[must_use]
    pub fn frame_per_net(&self) -> (f32, f32) {
        (to_f32(self.src.0) / to_f32(self.resized.0), to_f32(self.src.1) / to_f32(self.resized.1))
    }
}

/// Exact below 2^24, and sides are at most 2^14.
#[expect(clippy::cast_precision_loss, reason = "sides are at most 16,384 pixels")]
const fn to_f32(side: usize) -> f32 {
    side as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_geometries() {
        for (src, dst, resized, pad) in [
            ((768, 576), (416, 256), (341, 256), (36, 0)),
            ((1920, 1080), (512, 288), (512, 288), (0, 0)),
            ((1280, 720), (320, 320), (320, 180), (0, 70)),
            ((352, 352), (416, 256), (256, 256), (80, 0)),
            ((1, 1), (416, 256), (256, 256), (80, 0)),
            ((4096, 1), (416, 256), (416, 1), (0, 126)),
        ] {
            let got = Letterbox::new(src, dst);
            assert_eq!((got.resized, got.pad), (resized, pad), "{src:?} in {dst:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_way_back_undoes_the_way_there(
            src in (1_usize..=4096, 1_usize..=4096), dst in (32_usize..=1344, 32_usize..=800),
            edges in proptest::array::uniform4(0.0_f32..1.0),
        ) {
            let letterbox = Letterbox::new(src, dst);
            prop_assert!(letterbox.resized.0 + letterbox.pad.0 <= dst.0 && letterbox.resized.1 + letterbox.pad.1 <= dst.1);
            prop_assert!(letterbox.resized.0 == dst.0 || letterbox.resized.1 == dst.1);
            prop_assert!(letterbox.pad.0.is_multiple_of(2) && letterbox.pad.1.is_multiple_of(2));
            let (w, h) = (to_f32(src.0), to_f32(src.1));
            let bbox = BBox::new(edges[0] * w, edges[1] * h, edges[2] * w, edges[3] * h);
            let back = letterbox.frame_from_net(&letterbox.net_from_frame(&bbox));
            let (px, py) = letterbox.frame_per_net();
            for (got, want, per_net) in [(back.x1, bbox.x1, px), (back.y1, bbox.y1, py), (back.x2, bbox.x2, px), (back.y2, bbox.y2, py)] {
                // One part in 2^20 of the input, in pixels of the picture.
                prop_assert!((got - want).abs() <= 1e-3 * per_net.max(1.0), "{bbox:?} -> {back:?}");
            }
        }
    }
}
