//! Where every frame of a stream went: captured = inferred + dropped + in flight, at every moment.
//!
//! `captured` is counted by the source where frames leave the decoder; the other counters step where a frame moves on:
//! handed over, taken, inferred, dropped (in the source, at the queue, in the hand of the inference thread). The queue
//! counts for itself. [`Ledger::check`] holds these against each other after every frame, [`Ledger::close`] demands that
//! nothing is left. A frame that is lost or counted twice shows up as one of the differences.

use super::ports::DropCause;
use crate::queue;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a frame was when it was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Between the decoder and the queue.
    Source,
    /// At the queue: displaced or refused.
    Queue,
    /// Taken by the inference thread.
    Hand,
}

const N_CAUSES: usize = DropCause::ALL.len();

/// Counters of one stream. Steps are made by the thread that moves the frame; anyone may read.
#[derive(Debug, Default)]
pub struct Ledger {
    captured: AtomicU64,
    delivered: AtomicU64,
    taken: AtomicU64,
    inferred: AtomicU64,
    emitted: AtomicU64,
    dropped: [[AtomicU64; N_CAUSES]; 3],
}

/// Frames dropped, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped([u64; N_CAUSES]);

impl Dropped {
    /// Frames dropped for `cause`.
    #[must_use]
    pub const fn of(&self, cause: DropCause) -> u64 {
        self.0[cause as usize]
    }

    /// Frames dropped for any cause.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Causes that occurred, with their counts.
    pub fn occurred(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.into_iter().map(|cause| (cause, self.of(cause))).filter(|&(_, n)| n > 0)
    }
}

impl Serialize for Dropped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(N_CAUSES))?;
        for cause in DropCause::ALL {
            map.serialize_entry(cause.name(), &self.of(cause))?;
        }
        map.end()
    }
}

/// The ledger at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Frames that left the decoder.
    pub captured: u64,
    /// Frames that went through the network.
    pub inferred: u64,
    /// Frames that were passed to the sink.
    pub emitted: u64,
    /// Frames that went another way.
    pub dropped: Dropped,
    /// Frames between the decoder and the queue.
    pub in_source: u64,
    /// Frames that wait in the queue.
    pub queued: u64,
    /// Frames that the inference thread holds: 0 or 1.
    pub in_hand: u64,
}

impl Balance {
    /// Frames that are neither inferred nor dropped yet.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.in_source + self.queued + self.in_hand
    }
}

/// A ledger that does not add up: a mistake in the program, or in an adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the frame ledger does not add up: {rule} ({ledger}); please report this")]
pub struct LedgerError {
    /// What should hold.
    rule: &'static str,
    /// All counters.
    ledger: String,
}

impl Ledger {
    // Release on every step, Acquire on every read, and reads go from late counters to early ones: a frame steps
    // through them in order, each step after the one before (through the source's own hand-over and the queue), so a
    // late counter that was read is never ahead of an early one that is read after it.

    fn step(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Release);
    }

    fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Acquire)
    }

    /// A frame left the decoder.
    pub fn captured(&self) {
        Self::step(&self.captured);
    }

    /// A frame is handed to the queue.
    pub fn delivered(&self) {
        Self::step(&self.delivered);
    }

    /// The inference thread took a frame.
    pub fn taken(&self) {
        Self::step(&self.taken);
    }

    /// The frame in hand went through the network.
    pub fn inferred(&self) {
        Self::step(&self.inferred);
    }

    /// An inferred frame was passed to the sink.
    pub fn emitted(&self) {
        Self::step(&self.emitted);
    }

    /// A frame was dropped at `place`.
    pub fn dropped(&self, place: Place, cause: DropCause) {
        Self::step(&self.dropped[place as usize][cause as usize]);
    }

    fn dropped_at(&self, place: Place) -> [u64; N_CAUSES] {
        let counters = &self.dropped[place as usize];
        std::array::from_fn(|cause| Self::read(&counters[cause]))
    }

    /// The ledger at this moment: what is in flight is what the counters of each place leave, so captured = inferred + dropped +
    /// in flight. What can go wrong is that one of them is less than nothing, here, or that something is left where nothing can be,
    /// in [`Self::check`] and [`Self::close`].
    ///
    /// # Errors
    /// [`LedgerError`] when counters contradict each other.
    pub fn balance(&self) -> Result<Balance, LedgerError> {
        let emitted = Self::read(&self.emitted);
        let inferred = Self::read(&self.inferred);
        let [in_hand_lost, in_queue_lost] = [Place::Hand, Place::Queue].map(|place| self.dropped_at(place));
        let taken = Self::read(&self.taken);
        let delivered = Self::read(&self.delivered);
        let in_source_lost = self.dropped_at(Place::Source);
        let captured = Self::read(&self.captured);
        let sum = |lost: &[u64; N_CAUSES]| lost.iter().sum::<u64>();
        let difference = |total: u64, parts: u64, rule: &'static str| total.checked_sub(parts).ok_or_else(|| self.error(rule));
        let in_hand = difference(taken, inferred + sum(&in_hand_lost), "inferred + dropped in hand <= taken")?;
        let queued = difference(delivered, taken + sum(&in_queue_lost), "taken + dropped at the queue <= delivered")?;
        let in_source = difference(captured, delivered + sum(&in_source_lost), "delivered + dropped in the source <= captured")?;
        if emitted > inferred {
            return Err(self.error("emitted <= inferred"));
        }
        let dropped = Dropped(std::array::from_fn(|i| in_source_lost[i] + in_queue_lost[i] + in_hand_lost[i]));
        Ok(Balance { captured, inferred, emitted, dropped, in_source, queued, in_hand })
    }

    /// Checks the ledger between two frames, on the inference thread: nothing is in its hand, and the queue has counted
    /// the same frames.
    ///
    /// # Errors
    /// [`LedgerError`] naming the rule that does not hold, with all counters.
    pub fn check(&self, queue: &queue::Counts) -> Result<Balance, LedgerError> {
        let balance = self.balance()?;
        if balance.in_hand != 0 {
            return Err(self.error("taken = inferred + dropped in hand between two frames"));
        }
        if queue.taken != Self::read(&self.taken) {
            return Err(self.error("taken from the queue = taken by the inference thread"));
        }
        if queue.pending().is_none() || queue.offered > Self::read(&self.delivered) {
            return Err(self.error("offered to the queue <= delivered"));
        }
        Ok(balance)
    }

    /// Checks the ledger once the source has stopped and the queue was drained: every frame is accounted for.
    ///
    /// # Errors
    /// [`LedgerError`] naming the rule that does not hold, with all counters.
    pub fn close(&self, queue: &queue::Counts) -> Result<Balance, LedgerError> {
        let balance = self.check(queue)?;
        if balance.queued != 0 || queue.pending() != Some(0) {
            return Err(self.error("no frame waits in the queue at the end"));
        }
        if queue.displaced + queue.refused != self.dropped_at(Place::Queue).iter().sum::<u64>() {
            return Err(self.error("displaced and refused by the queue = dropped at the queue"));
        }
        if queue.offered != Self::read(&self.delivered) {
            return Err(self.error("offered to the queue = delivered at the end"));
        }
        if balance.in_source != 0 {
            return Err(self.error("every captured frame was delivered or given up by the source at the end"));
        }
        Ok(balance)
    }

    fn error(&self, rule: &'static str) -> LedgerError {
        let mut ledger = format!(
            "captured {}, delivered {}, taken {}, inferred {}, emitted {}",
            Self::read(&self.captured),
            Self::read(&self.delivered),
            Self::read(&self.taken),
            Self::read(&self.inferred),
            Self::read(&self.emitted)
        );
        for (place, name) in [(Place::Source, "in the source"), (Place::Queue, "at the queue"), (Place::Hand, "in hand")] {
            for (cause, n) in Dropped(self.dropped_at(place)).occurred() {
                ledger += &format!(", {} {n} {name}", cause.name());
            }
        }
        LedgerError { rule, ledger }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(offered: u64, displaced: u64, taken: u64) -> queue::Counts {
        queue::Counts { offered, displaced, refused: 0, taken }
    }

    /// Six frames: one lost in the source, five delivered, one displaced, three taken (one stale), one waiting.
    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        (0..6).for_each(|_| ledger.captured());
        ledger.dropped(Place::Source, DropCause::DecodeError);
        (0..5).for_each(|_| ledger.delivered());
        ledger.dropped(Place::Queue, DropCause::QueueFull);
        (0..3).for_each(|_| ledger.taken());
        (0..2).for_each(|_| ledger.inferred());
        ledger.dropped(Place::Hand, DropCause::Stale);
        ledger
    }

    #[test]
    fn adds_up() {
        let balance = ledger().check(&counts(5, 1, 3)).unwrap();
        assert_eq!((balance.captured, balance.inferred, balance.in_flight()), (6, 2, 1));
        assert_eq!(balance.dropped.total(), 3);
        assert_eq!(balance.dropped.occurred().count(), 3);
        assert_eq!(
            serde_json::to_string(&balance.dropped).unwrap(),
            r#"{"queue_full":1,"stale":1,"decode_error":1,"stream_reset":0,"pool_exhausted":0,"infer_error":0,"shutdown":0}"#
        );
        assert!(ledger().close(&counts(5, 1, 3)).unwrap_err().to_string().contains("no frame waits"));
        let ledger = ledger();
        ledger.taken();
        ledger.inferred();
        assert!(ledger.close(&counts(5, 1, 4)).is_ok());
    }

    #[test]
    fn every_kind_of_mistake_is_found() {
        type Mistake = fn(&Ledger);
        let mistakes: [(Mistake, &str); 7] = [
            (|l| l.inferred(), "inferred + dropped in hand <= taken"),
            (|l| l.dropped(Place::Hand, DropCause::InferError), "inferred + dropped in hand <= taken"),
            (|l| l.taken(), "between two frames"),
            (|l| (0..2).for_each(|_| l.dropped(Place::Queue, DropCause::QueueFull)), "taken + dropped at the queue <= delivered"),
            (|l| l.delivered(), "<= captured"),
            (|l| l.dropped(Place::Source, DropCause::Shutdown), "<= captured"),
            (|l| (0..3).for_each(|_| l.emitted()), "emitted <= inferred"),
        ];
        for (mistake, rule) in mistakes {
            let ledger = ledger();
            mistake(&ledger);
            let error = ledger.check(&counts(5, 1, 3)).unwrap_err().to_string();
            assert!(error.contains(rule) && error.contains("captured 6"), "{error}");
        }
        for (queue, rule) in [(counts(5, 1, 2), "taken from the queue"), (counts(6, 1, 3), "offered to the queue")] {
            assert!(ledger().check(&queue).unwrap_err().to_string().contains(rule));
        }
        let lost_in_source = ledger();
        lost_in_source.captured();
        lost_in_source.taken();
        lost_in_source.inferred();
        assert!(lost_in_source.close(&counts(5, 1, 4)).unwrap_err().to_string().contains("given up by the source"));
    }
}
