//! The order of candidates: score, then level, anchor, class.

use std::cmp::Reverse;

/// Bits of a place: where in its level's logits a candidate lies, `anchor x K + class`.
const PLACE_BITS: u32 = 31;

/// Bits of a level.
const LEVEL_BITS: u32 = 3;

/// The largest place.
const LAST_PLACE: u64 = (1 << PLACE_BITS) - 1;

/// The last level.
const LAST_LEVEL: u64 = (1 << LEVEL_BITS) - 1;

/// A candidate. The greater comes first: bits of the score, then level and place counted down.
///
/// Scores are in (0, 1], so their bits are in order and fit in 30; a manifest has at most 8 levels and 2^31 logits on a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

impl Rank {
    pub(super) fn new(score: f32, level_idx: usize, place: usize) -> Self {
        debug_assert!(score > 0.0 && score <= 1.0, "a score is the sigmoid of a logit");
        let behind = (LAST_LEVEL - level_idx as u64) << PLACE_BITS | (LAST_PLACE - place as u64);
        Self(u64::from(score.to_bits()) << (PLACE_BITS + LEVEL_BITS) | behind)
    }

    /// The same candidate with another score.
    pub(super) fn with_score(self, score: f32) -> Self {
        Self::new(score, self.level(), self.place())
    }

    pub(super) const fn score(self) -> f32 {
        f32::from_bits((self.0 >> (PLACE_BITS + LEVEL_BITS)) as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "3 bits are left")]
    pub(super) const fn level(self) -> usize {
        (LAST_LEVEL - (self.0 >> PLACE_BITS & LAST_LEVEL)) as usize
    }

    #[expect(clippy::cast_possible_truncation, reason = "31 bits are left")]
    pub(super) const fn place(self) -> usize {
        (LAST_PLACE - (self.0 & LAST_PLACE)) as usize
    }
}

/// Keeps the best `n`, in any order; if some were dropped, gives the last that was kept.
pub(super) fn keep_best(ranks: &mut Vec<Rank>, n: usize) -> Option<Rank> {
    if ranks.len() <= n {
        return None;
    }
    let (_, &mut last, _) = ranks.select_nth_unstable_by_key(n.checked_sub(1)?, |&rank| Reverse(rank));
    ranks.truncate(n);
    Some(last)
}

/// First batch that [`in_order`] sorts.
const FIRST_BATCH: usize = 256;

/// Visits ranks best first until `visit` says that it is enough: sorts a batch, and another of twice the size if need be.
pub(super) fn in_order(ranks: &mut [Rank], mut visit: impl FnMut(Rank) -> bool) {
    let (mut rest, mut batch) = (ranks, FIRST_BATCH);
    while !rest.is_empty() {
        let n = batch.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by_key(n - 1, |&rank| Reverse(rank));
        }
        let (now, later) = rest.split_at_mut(n);
        now.sort_unstable_by_key(|&rank| Reverse(rank));
        if !now.iter().all(|&rank| visit(rank)) {
            return;
        }
        (rest, batch) = (later, 2 * batch);
    }
}
