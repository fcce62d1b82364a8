//! Bytes as a source of small decisions: none is left out, and when they end everything is 0.

/// What is left.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// 0 to 255.
    pub(crate) fn number(&mut self) -> usize {
        usize::from(self.byte())
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.number() % n
    }

    pub(crate) fn two(&mut self) -> usize {
        self.number() << 8 | self.number()
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// 0 to 1.
    pub(crate) fn part(&mut self) -> f32 {
        f32::from(self.byte()) / 255.0
    }

    pub(crate) fn real(&mut self) -> f32 {
        f32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// `n` bytes: what is left over and over, each time a little different.
    pub(crate) fn fill(&self, n: usize) -> Vec<u8> {
        let left = if self.0.is_empty() { &[0][..] } else { self.0 };
        (0..n).map(|i| left[i % left.len()] ^ (i / left.len()).wrapping_mul(0x9D).to_le_bytes()[0]).collect()
    }
}
