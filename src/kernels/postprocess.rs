//! The inner loops of postprocessing: which quantised logits reach a limit and how many, whether a box overlaps one of many.

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use super::x86_64::{avx2, avx512vnni};
use super::{Isa, Kernels, scalar};
use crate::detection::BBox;

/// Values that a scan looks at before it asks whether there is room for as many hits.
pub const SCAN_BLOCK: usize = 256;

/// Boxes in a `BoxGroup`.
pub const GROUP_LEN: usize = 16;

/// The lowest quantised logit of each class that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    n_classes: usize,
    /// The limits over and over: a block may begin at any class.
    pattern: Vec<u8>,
}

impl Limits {
    /// From one limit for each class.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn new(lowest: &[u8]) -> Self {
        assert!(!lowest.is_empty(), "one limit a class");
        let pattern = lowest.iter().copied().cycle().take(lowest.len() - 1 + SCAN_BLOCK).collect();
        Self { n_classes: lowest.len(), pattern }
    }

    /// Other limits for the same classes.
    ///
    /// # Panics
    /// If there are not as many limits as classes.
    pub fn set(&mut self, lowest: &[u8]) {
        assert_eq!(lowest.len(), self.n_classes, "one limit a class");
        for (slot, &limit) in self.pattern.iter_mut().zip(lowest.iter().cycle()) {
            *slot = limit;
        }
    }

    /// No class below `lowest`.
    pub fn raise(&mut self, lowest: u8) {
        for limit in &mut self.pattern {
            *limit = (*limit).max(lowest);
        }
    }

    /// Number of classes.
    #[must_use]
    pub const fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// Limits of [`SCAN_BLOCK`] values, the first of which belongs to class `class`.
    pub(super) fn block(&self, class: usize) -> &[u8] {
        &self.pattern[class..class + SCAN_BLOCK]
    }
}

/// How far a scan came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Hits written.
    pub n_hits: usize,
    /// Place of the first value that was not looked at.
    pub next: usize,
}

/// An upper limit for an `IoU`, for loops without a division.
///
/// `shared / union`, rounded to `f32`, is above the limit exactly if the exact quotient is above the middle between the limit
/// and the next `f32`. A quotient of two `f32` is never that middle: it would need a 25-bit numerator. The middle has 25
/// significant bits, so `middle x union` is exact in `f64`, and the comparison with `shared` decides as the division does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IouLimit {
    threshold: f32,
    middle: f64,
}

impl IouLimit {
    /// For a threshold of 0 to 1.
    #[must_use]
    pub fn new(threshold: f32) -> Self {
        let middle = f64::midpoint(f64::from(threshold), f64::from(threshold.next_up()));
        Self { threshold, middle }
    }

    /// The threshold.
    #[must_use]
    pub const fn threshold(self) -> f32 {
        self.threshold
    }

    pub(super) const fn middle(self) -> f64 {
        self.middle
    }
}

/// Edges and areas of [`GROUP_LEN`] boxes; free places hold a box that overlaps nothing.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct BoxGroup {
    pub(super) x1: [f32; GROUP_LEN],
    pub(super) y1: [f32; GROUP_LEN],
    pub(super) x2: [f32; GROUP_LEN],
    pub(super) y2: [f32; GROUP_LEN],
    pub(super) area: [f32; GROUP_LEN],
    len: usize,
    /// The group before it in the list.
    next: Option<usize>,
}

impl BoxGroup {
    const EMPTY: Self = Self {
        x1: [f32::MAX; GROUP_LEN],
        y1: [f32::MAX; GROUP_LEN],
        x2: [f32::MIN; GROUP_LEN],
        y2: [f32::MIN; GROUP_LEN],
        area: [0.0; GROUP_LEN],
        len: 0,
        next: None,
    };
}

/// Lists of boxes, one for each class, in groups that vectors can be loaded from.
#[derive(Debug, Clone)]
pub struct BoxLists {
    groups: Vec<BoxGroup>,
    /// The last group of each list.
    last: Vec<Option<usize>>,
}

impl BoxLists {
    /// `n_lists` empty lists, with room for `n_boxes` boxes in whatever lists.
    #[must_use]
    pub fn new(n_lists: usize, n_boxes: usize) -> Self {
        Self { groups: Vec::with_capacity(n_boxes / GROUP_LEN + n_lists.min(n_boxes)), last: vec![None; n_lists] }
    }

    /// Removes all boxes.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.last.fill(None);
    }

    /// Adds a box to a list. Its edges must be finite.
    ///
    /// # Panics
    /// If there is no such list.
    pub fn push(&mut self, list: usize, bbox: &BBox) {
        let group_idx = match self.last[list] {
            Some(idx) if self.groups[idx].len < GROUP_LEN => idx,
            next => {
                self.groups.push(BoxGroup { next, ..BoxGroup::EMPTY });
                let idx = self.groups.len() - 1;
                self.last[list] = Some(idx);
                idx
            }
        };
        let group = &mut self.groups[group_idx];
        let place = group.len;
        (group.x1[place], group.y1[place], group.x2[place], group.y2[place]) = (bbox.x1, bbox.y1, bbox.x2, bbox.y2);
        group.area[place] = bbox.area();
        group.len += 1;
    }

    /// The groups of a list, the newest first.
    pub(super) fn groups(&self, list: usize) -> impl Iterator<Item = &BoxGroup> {
        std::iter::successors(self.last[list].map(|idx| &self.groups[idx]), |group| group.next.map(|idx| &self.groups[idx]))
    }
}

/// The loops of an instruction set.
struct Loops {
    scan: fn(&[u8], &Limits, usize, &mut [u32]) -> Scanned,
    count: fn(&[u8], &Limits) -> usize,
    overlaps: fn(&BoxLists, usize, &BBox, IouLimit) -> bool,
}

impl Isa {
    const fn postprocess_loops(self) -> Loops {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => Loops { scan: avx2::scan, count: avx2::count, overlaps: avx2::overlaps },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Loops { scan: avx512vnni::scan, count: avx512vnni::count, overlaps: avx512vnni::overlaps },
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::Dotprod | Self::I8mm => Loops { scan: neon::scan, count: neon::count, overlaps: neon::overlaps },
            _ => Loops { scan: scalar::scan, count: scalar::count, overlaps: scalar::overlaps },
        }
    }
}

impl Kernels {
    /// Writes the places, from `first` on, of values that reach the limit of their class; the class of place `i` is
    /// `i % n_classes`. Ends where `hits` has no room for [`SCAN_BLOCK`] more.
    ///
    /// # Panics
    /// If `hits` has less room than that, or there are more values than a `u32` can count.
    #[must_use]
    pub fn scan(self, values: &[u8], limits: &Limits, first: usize, hits: &mut [u32]) -> Scanned {
        assert!(hits.len() >= SCAN_BLOCK && u32::try_from(values.len()).is_ok(), "room for a block; places are u32");
        (self.isa.postprocess_loops().scan)(values, limits, first, hits)
    }

    /// How many values reach the limit of their class.
    #[must_use]
    pub fn count(self, values: &[u8], limits: &Limits) -> usize {
        (self.isa.postprocess_loops().count)(values, limits)
    }

    /// Whether the `IoU` of `bbox`, whose edges must be finite, with a box of a list is above the limit.
    ///
    /// # Panics
    /// If there is no such list.
    #[must_use]
    pub fn overlaps(self, lists: &BoxLists, list: usize, bbox: &BBox, limit: IouLimit) -> bool {
        (self.isa.postprocess_loops().overlaps)(lists, list, bbox, limit)
    }
}

/// As `Kernels::count`, of at most a block of values, the first of them of class `class`.
pub(super) fn count_last(values: &[u8], limits: &Limits, class: usize) -> usize {
    // In 16 bits, for as many at a time as there can be.
    usize::from(values.iter().zip(limits.block(class)).map(|(value, limit)| u16::from(value >= limit)).sum::<u16>())
}

/// A place as hits hold it.
#[expect(clippy::cast_possible_truncation, reason = "`Kernels::scan` checks that places fit")]
pub(super) const fn hit(place: usize) -> u32 {
    place as u32
}
