//! Boxes, classes and detections: the words every stage shares.
//!
//! Boxes are `xyxy`, `f32`, in pixels, half-open: a box that covers the whole of a `w` x `h` picture is
//! `[0, 0, w, h]`. A variable says in its name which space a box lives in (`bbox_net`, `bbox_frame`).

use serde::{Deserialize, Serialize};

/// An axis-aligned box, `x1 <= x2`, `y1 <= y2`, in pixels of the space its variable names.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct BBox {
    /// Left edge.
    pub x1: f32,
    /// Top edge.
    pub y1: f32,
    /// Right edge (exclusive).
    pub x2: f32,
    /// Bottom edge (exclusive).
    pub y2: f32,
}

impl BBox {
    /// A box from its four edges.
    #[must_use]
    pub const fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// Width in pixels; negative for a box that is turned inside out.
    #[must_use]
    pub fn width(&self) -> f32 {
        self.x2 - self.x1
    }

    /// Height in pixels; negative for a box that is turned inside out.
    #[must_use]
    pub fn height(&self) -> f32 {
        self.y2 - self.y1
    }

    /// Area in square pixels, 0 for an empty box.
    #[must_use]
    pub fn area(&self) -> f32 {
        self.width().max(0.0) * self.height().max(0.0)
    }

    /// Centre `(cx, cy)`.
    #[must_use]
    pub fn center(&self) -> (f32, f32) {
        (self.x1 + 0.5 * self.width(), self.y1 + 0.5 * self.height())
    }

    /// Area shared with `other`.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        width * height
    }

    /// Intersection over union in `[0, 1]`; 0 where both boxes are empty.
    #[must_use]
    pub fn iou(&self, other: &Self) -> f32 {
        let shared = self.intersection(other);
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }

    /// The part of the box inside a `width` x `height` picture.
    #[must_use]
    pub fn clip(&self, width: f32, height: f32) -> Self {
        Self {
            x1: self.x1.clamp(0.0, width),
            y1: self.y1.clamp(0.0, height),
            x2: self.x2.clamp(0.0, width),
            y2: self.y2.clamp(0.0, height),
        }
    }

    /// `[x1, y1, x2, y2]`.
    #[must_use]
    pub const fn to_array(self) -> [f32; 4] {
        [self.x1, self.y1, self.x2, self.y2]
    }
}

/// 0-based index of a class; there is no background class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassId(pub u16);

impl ClassId {
    /// The class as an index into a list of labels.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One object found in a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Where it is.
    pub bbox: BBox,
    /// What it is.
    pub class_id: ClassId,
    /// `sigmoid(logit)`, lowered by soft suppression; in `[0, 1]`.
    pub score: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_of_known_pairs() {
        let unit = BBox::new(0.0, 0.0, 2.0, 2.0);
        for (other, want) in [
            (unit, 1.0),
            (BBox::new(1.0, 0.0, 3.0, 2.0), 1.0 / 3.0),
            (BBox::new(2.0, 0.0, 4.0, 2.0), 0.0),
            (BBox::new(0.5, 0.5, 1.5, 1.5), 0.25),
            (BBox::new(1.0, 1.0, 1.0, 1.0), 0.0),
        ] {
            assert!((unit.iou(&other) - want).abs() < 1e-6, "{other:?}");
            assert!((other.iou(&unit) - want).abs() < 1e-6, "{other:?} swapped");
        }
        let empty = BBox::default();
        assert!(empty.iou(&empty).abs() < f32::EPSILON);
    }
}
