//! Real values that start at a cache line.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A list of real values whose first lies at a multiple of 64 bytes, so that whole lines can be written past the caches.
#[derive(Debug, Clone, PartialEq)]
pub struct Reals {
    lines: Vec<Line>,
    len: usize,
}

impl Reals {
    /// So many zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }
}

impl Deref for Reals {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the lines are 16 values each without gaps (`repr(C)`, 64 bytes of 64), and `len` is at most their number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Reals {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl FromIterator<f32> for Reals {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        let values: Vec<f32> = values.into_iter().collect();
        let mut reals = Self::zeros(values.len());
        reals.copy_from_slice(&values);
        reals
    }
}
