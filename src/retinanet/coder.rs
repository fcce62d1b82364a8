//! Boxes as offsets from an anchor and back.
//!
//! `dx = (cx - cx_a) / w_a`, `dw = ln(w / w_a)`, likewise in y: the R-CNN parametrisation with weights 1, as detectron2
//! `modeling/box_regression.py` and torchvision `models/detection/_utils.py`; `dw`, `dh` clamped on decoding.

use crate::detection::BBox;

/// Largest `dw`, `dh` that is decoded: `ln(1000 / 16)`.
pub const BBOX_XFORM_CLIP: f32 = 4.135_166_6;

/// Offsets of a box from its anchor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Deltas {
    /// Shift of the centre in x, in anchor widths.
    pub dx: f32,
    /// Shift of the centre in y, in anchor heights.
    pub dy: f32,
    /// Logarithm of the ratio of widths.
    pub dw: f32,
    /// Logarithm of the ratio of heights.
    pub dh: f32,
}

/// The box coder; it has no parameters, since the weights are all 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct BoxCoder;

impl BoxCoder {
    /// Offsets of `bbox` from `anchor`; both must have an area above 0.
    #[must_use]
    pub fn encode(bbox: &BBox, anchor: &BBox) -> Deltas {
        let (width, height) = (anchor.width(), anchor.height());
        let ((cx, cy), (ax, ay)) = (bbox.center(), anchor.center());
        Deltas {
            dx: (cx - ax) / width,
            dy: (cy - ay) / height,
            dw: libm::logf(bbox.width() / width),
            dh: libm::logf(bbox.height() / height),
        }
    }

    /// The box at `deltas` from `anchor`.
    #[must_use]
    pub fn decode(deltas: &Deltas, anchor: &BBox) -> BBox {
        Self::decode_scaled(deltas.dx, deltas.dy, exp_clipped(deltas.dw), exp_clipped(deltas.dh), anchor)
    }

    /// As [`Self::decode`] with `exp(dw)` and `exp(dh)` already looked up, clamped, in a table.
    #[must_use]
    pub fn decode_scaled(dx: f32, dy: f32, exp_dw: f32, exp_dh: f32, anchor: &BBox) -> BBox {
        let (width, height) = (anchor.width(), anchor.height());
        let (ax, ay) = anchor.center();
        let (cx, cy) = (ax + dx * width, ay + dy * height);
        let (half_w, half_h) = (0.5 * (exp_dw * width), 0.5 * (exp_dh * height));
        BBox::new(cx - half_w, cy - half_h, cx + half_w, cy + half_h)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn exp_clipped(d: f32) -> f32 {
    // `min` would make a number of what is none.
    let clipped = if d > BBOX_XFORM_CLIP { BBOX_XFORM_CLIP } else { d };
    libm::exp(f64::from(clipped)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_undoes_encode(
            ax in -50.0_f32..500.0, ay in -50.0_f32..500.0, aw in 4.0_f32..300.0, ah in 4.0_f32..300.0,
            bx in -50.0_f32..500.0, by in -50.0_f32..500.0, bw in 4.0_f32..300.0, bh in 4.0_f32..300.0,
        ) {
            // Beyond exp(BBOX_XFORM_CLIP) = 62.5 growth is clipped.
            prop_assume!(bw / aw < 62.0 && bh / ah < 62.0);
            let anchor = BBox::new(ax, ay, ax + aw, ay + ah);
            let bbox = BBox::new(bx, by, bx + bw, by + bh);
            let back = BoxCoder::decode(&BoxCoder::encode(&bbox, &anchor), &anchor);
            for (got, want) in back.to_array().into_iter().zip(bbox.to_array()) {
                prop_assert!((got - want).abs() < 0.01, "{bbox:?} -> {back:?}");
            }
        }
    }

    #[test]
    fn growth_is_clipped() {
        let anchor = BBox::new(0.0, 0.0, 16.0, 16.0);
        let bbox = BoxCoder::decode(&Deltas { dw: 100.0, dh: f32::INFINITY, ..Deltas::default() }, &anchor);
        assert!((bbox.width() - 1000.0).abs() < 0.01 && (bbox.height() - 1000.0).abs() < 0.01, "{bbox:?}");
        let none = BoxCoder::decode(&Deltas { dw: f32::NAN, ..Deltas::default() }, &anchor);
        assert!(none.width().is_nan(), "{none:?}");
    }
}
