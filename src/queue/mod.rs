//! The queue between a source and the inference thread: bounded, lock-free, with an overflow policy and a close protocol.
//!
//! In: frames from any thread of the source. Out: the same frames to one consumer, oldest first, or back to the producer
//! when they were displaced or refused: none is lost, none comes out twice. The ring is crossbeam's `ArrayQueue`; a side
//! that has to wait sleeps on a crossbeam `Parker`. Under [`Overflow::DropOldest`] a push never waits for the consumer; waking one
//! that sleeps takes its parker's lock for a moment.
//!
//! # Close protocol
//! `state` holds the closed bit and the number of pushes in progress, in one word, so that all changes of both are in
//! one order. A push enters (`+ 2`), is refused if the bit was set, else works on the ring, and leaves (`- 2`).
//! [`Receiver::pop`] says `None` only when it read *closed and nobody inside* and found the ring empty after that read.
//! Every push that entered before the bit was set has left by then, so its item was seen; every later push is refused.
//! `None` is therefore final, whoever closed.
//!
//! # Wake protocol
//! A parker holds one token. A push gives the consumer its token *after* working on the ring (and after leaving); the
//! consumer looks at the ring *before* it sleeps. If it looked too early, the token is there and the sleep ends at once.
//! The same the other way round for a producer that waits for room: a pop gives the token after taking an item. At most
//! one producer sleeps (it holds the lock of the parker); others that find the ring full wait for that lock and look at
//! the closed bit and the ring again before they sleep.
//!
//! Every `Ordering` has its argument beside it; `loom` checks the protocol and the counters (`tests/loom`).

mod sync;

use std::fmt;
use std::sync::{Arc, PoisonError};
use sync::{AtomicU64, AtomicUsize, Mutex, Ordering, Parker, Ring, Unparker};

const CLOSED: usize = 1;
const PUSHING: usize = 2;

/// What a push does when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Waits until there is room.
    Block,
    /// Takes the place of the oldest item.
    DropOldest,
}

/// What became of a push.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an item that came back has to be accounted for"]
pub enum Pushed<T> {
    /// The item waits in the queue.
    Queued,
    /// The item waits in the queue; this one, the oldest, had to go.
    Displaced(T),
    /// The queue is closed: the item comes back.
    Refused(T),
}

/// What has gone through a queue so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Pushes that were begun.
    pub offered: u64,
    /// Items that gave way to a newer one.
    pub displaced: u64,
    /// Pushes that were turned away because the queue was closed.
    pub refused: u64,
    /// Items that the consumer took.
    pub taken: u64,
}

impl Counts {
    /// Items that wait, or are being pushed or taken at this moment; `None` if the counts contradict each other.
    #[must_use]
    pub const fn pending(&self) -> Option<u64> {
        self.offered.checked_sub(self.displaced + self.refused + self.taken)
    }
}

struct Shared<T> {
    ring: Ring<T>,
    overflow: Overflow,
    /// [`CLOSED`] and [`PUSHING`] times the pushes in progress.
    state: AtomicUsize,
    /// Wakes the consumer.
    filled: Unparker,
    /// Wakes the producer that sleeps.
    freed: Unparker,
    /// Where a producer sleeps while the ring is full.
    room: Mutex<Parker>,
    offered: AtomicU64,
    displaced: AtomicU64,
    refused: AtomicU64,
    taken: AtomicU64,
}

impl<T> Shared<T> {
    fn close(&self) {
        // Release: what the closer did before is visible to whoever acts on the bit. The bit takes its place in the one
        // order of `state`; nothing else is needed of it.
        self.state.fetch_or(CLOSED, Ordering::Release);
        self.filled.unpark();
        self.freed.unpark();
    }

    fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release of `close`.
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    fn counts(&self) -> Counts {
        // Acquire: pairs with the Release of the counters in `push` and `try_pop`. Each step of the first three comes after
        // the `offered` step of the same item, so `offered`, read last, is never behind them.
        let displaced = self.displaced.load(Ordering::Acquire);
        let refused = self.refused.load(Ordering::Acquire);
        let taken = self.taken.load(Ordering::Acquire);
        // Acquire: whoever counts items before they are pushed is never seen behind.
        let offered = self.offered.load(Ordering::Acquire);
        Counts { offered, displaced, refused, taken }
    }

    fn push(&self, item: T) -> Pushed<T> {
        // Release: what the caller counted before is visible to whoever reads this step. It is ordered before the other
        // counters by the ring (push before pop of the same item), by program order (refused), or by the ring again
        // (displaced).
        self.offered.fetch_add(1, Ordering::Release);
        // Acquire: if the bit is set, what the closer did before is visible. The ring is only touched after this step
        // has returned with the bit clear.
        let outcome = if self.state.fetch_add(PUSHING, Ordering::Acquire) & CLOSED != 0 {
            Pushed::Refused(item)
        } else {
            match self.overflow {
                Overflow::Block => self.push_waiting(item),
                Overflow::DropOldest => self.ring.force_push(item).map_or(Pushed::Queued, Pushed::Displaced),
            }
        };
        match outcome {
            Pushed::Queued => {}
            // Release: carries the `offered` step of the item, see `counts`.
            Pushed::Displaced(_) => drop(self.displaced.fetch_add(1, Ordering::Release)),
            Pushed::Refused(_) => drop(self.refused.fetch_add(1, Ordering::Release)),
        }
        // Release: the consumer that reads "closed and nobody inside" sees what this push did to the ring. Steps of
        // other pushes in between are read-modify-writes and keep the release sequence going.
        self.state.fetch_sub(PUSHING, Ordering::Release);
        // After the ring and after leaving: a consumer that found either unfinished finds the token.
        self.filled.unpark();
        outcome
    }

    fn push_waiting(&self, item: T) -> Pushed<T> {
        let Err(mut item) = self.ring.push(item) else { return Pushed::Queued };
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_closed() {
                return Pushed::Refused(item);
            }
            match self.ring.push(item) {
                Ok(()) => return Pushed::Queued,
                Err(back) => item = back,
            }
            room.park();
        }
    }

    fn try_pop(&self) -> Option<T> {
        let item = self.ring.pop()?;
        // Release: carries the `offered` step of the item, see `counts`.
        self.taken.fetch_add(1, Ordering::Release);
        if self.overflow == Overflow::Block {
            self.freed.unpark();
        }
        Some(item)
    }
}

/// The side of the source: any number of clones, on any threads.
pub struct Sender<T>(Arc<Shared<T>>);

/// The side of the consumer: one thread. Closes the queue when dropped.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    parker: Parker,
}

/// A queue for `capacity` items, at least 1.
#[must_use]
pub fn bounded<T>(capacity: usize, overflow: Overflow) -> (Sender<T>, Receiver<T>) {
    let (consumer, producer) = (Parker::new(), Parker::new());
    let shared = Arc::new(Shared {
        ring: Ring::new(capacity.max(1)),
        overflow,
        state: AtomicUsize::new(0),
        filled: consumer.unparker().clone(),
        freed: producer.unparker().clone(),
        room: Mutex::new(producer),
        offered: AtomicU64::new(0),
        displaced: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        taken: AtomicU64::new(0),
    });
    (Sender(Arc::clone(&shared)), Receiver { shared, parker: consumer })
}

impl<T> Sender<T> {
    /// Hands an item over.
    pub fn push(&self, item: T) -> Pushed<T> {
        self.0.push(item)
    }

    /// No more items: pushes are refused from now on, what is queued can still be taken. Wakes whoever waits.
    pub fn close(&self) {
        self.0.close();
    }

    /// What has gone through so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Receiver<T> {
    /// The oldest item; sleeps while there is none. `None` once the queue is closed and everything in it was taken:
    /// nothing comes after that.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            // Acquire, and before the look at the ring: pairs with the Release of the pushes that have left.
            let state = self.shared.state.load(Ordering::Acquire);
            if let Some(item) = self.shared.try_pop() {
                return Some(item);
            }
            if state == CLOSED {
                return None;
            }
            self.parker.park();
        }
    }

    /// The oldest item, if one waits.
    pub fn try_pop(&mut self) -> Option<T> {
        self.shared.try_pop()
    }

    /// As [`Sender::close`].
    pub fn close(&self) {
        self.shared.close();
    }

    /// What has gone through so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn keeps_the_order_and_says_when_it_is_full() {
        let (sender, mut receiver) = bounded(2, Overflow::DropOldest);
        assert_eq!(sender.push(1), Pushed::Queued);
        assert_eq!(sender.push(2), Pushed::Queued);
        assert_eq!(sender.push(3), Pushed::Displaced(1));
        assert_eq!(receiver.counts().pending(), Some(2));
        assert_eq!((receiver.pop(), receiver.try_pop(), receiver.try_pop()), (Some(2), Some(3), None));
        assert_eq!(receiver.counts(), Counts { offered: 3, displaced: 1, refused: 0, taken: 2 });
    }

    #[test]
    fn what_is_queued_survives_closing() {
        for by_sender in [true, false] {
            let (sender, mut receiver) = bounded(4, Overflow::Block);
            assert_eq!(sender.push(1), Pushed::Queued);
            if by_sender {
                sender.close();
            } else {
                receiver.close();
            }
            assert_eq!(sender.push(2), Pushed::Refused(2));
            assert_eq!((receiver.pop(), receiver.pop(), receiver.pop()), (Some(1), None, None));
            assert_eq!(receiver.counts(), Counts { offered: 2, displaced: 0, refused: 1, taken: 1 });
        }
    }

    #[test]
    fn a_dropped_receiver_turns_a_waiting_producer_away() {
        let (sender, receiver) = bounded(1, Overflow::Block);
        assert_eq!(sender.push(1), Pushed::Queued);
        let waiting = thread::spawn(move || sender.push(2));
        // Time to find the ring full and to fall asleep; a push that comes too late is turned away as well.
        while receiver.counts().offered < 2 {
            thread::yield_now();
        }
        thread::sleep(std::time::Duration::from_millis(50));
        drop(receiver);
        assert_eq!(waiting.join().unwrap(), Pushed::Refused(2));
    }

    /// The real ring and parkers under load: every item comes out once, one way or the other.
    #[test]
    fn nothing_is_lost_between_threads() {
        const PER_PRODUCER: u64 = 2000;
        for overflow in [Overflow::Block, Overflow::DropOldest] {
            let (sender, mut receiver) = bounded(3, overflow);
            let producer = |first: u64| {
                let sender = sender.clone();
                thread::spawn(move || {
                    let mut back = Vec::new();
                    for item in first..first + PER_PRODUCER {
                        match sender.push(item) {
                            Pushed::Queued => {}
                            Pushed::Displaced(item) | Pushed::Refused(item) => back.push(item),
                        }
                    }
                    back
                })
            };
            let producers = [producer(0), producer(PER_PRODUCER)];
            let consumer = thread::spawn(move || {
                let mut taken = Vec::new();
                while let Some(item) = receiver.pop() {
                    taken.push(item);
                }
                taken
            });
            let back: Vec<u64> = producers.into_iter().flat_map(|producer| producer.join().unwrap()).collect();
            sender.close();
            let taken = consumer.join().unwrap();
            if overflow == Overflow::Block {
                assert!(back.is_empty());
            }
            let mut all: Vec<u64> = taken.into_iter().chain(back).collect();
            all.sort_unstable();
            assert_eq!(all, (0..2 * PER_PRODUCER).collect::<Vec<_>>(), "{overflow:?}");
            assert_eq!(sender.counts().pending(), Some(0));
        }
    }
}
