//! Loom models: every interleaving of a few threads around the wake and close protocol and the counters.

use super::*;
use loom::thread;

/// Runs a model over all interleavings with at most `preemptions` forced switches.
fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(check);
}

fn drain(mut receiver: Receiver<u32>) -> Vec<u32> {
    let mut taken = Vec::new();
    while let Some(item) = receiver.pop() {
        taken.push(item);
    }
    assert_eq!(receiver.try_pop(), None, "None is final");
    taken
}

#[test]
fn the_consumer_sees_every_item_and_the_close() {
    model(3, || {
        let (sender, receiver) = bounded(1, Overflow::Block);
        let producer = thread::spawn(move || {
            assert_eq!(sender.push(1), Pushed::Queued);
            assert_eq!(sender.push(2), Pushed::Queued);
            sender.close();
        });
        assert_eq!(drain(receiver), [1, 2]);
        producer.join().unwrap();
    });
}

#[test]
fn the_newest_item_survives() {
    model(3, || {
        let (sender, receiver) = bounded(1, Overflow::DropOldest);
        let producer = thread::spawn(move || {
            let mut displaced = Vec::new();
            for item in [1, 2] {
                match sender.push(item) {
                    Pushed::Queued => {}
                    Pushed::Displaced(item) => displaced.push(item),
                    Pushed::Refused(_) => panic!("nobody else closes"),
                }
            }
            sender.close();
            displaced
        });
        let taken = drain(receiver);
        let displaced = producer.join().unwrap();
        assert_eq!([displaced, taken].concat(), [1, 2]);
    });
}

#[test]
fn a_close_by_the_consumer_loses_nothing() {
    for overflow in [Overflow::Block, Overflow::DropOldest] {
        model(3, move || {
            let (sender, receiver) = bounded(1, overflow);
            let producer = thread::spawn(move || {
                let mut back = Vec::new();
                for item in [1, 2] {
                    match sender.push(item) {
                        Pushed::Queued => {}
                        Pushed::Displaced(item) | Pushed::Refused(item) => back.push(item),
                    }
                }
                (back, sender)
            });
            receiver.close();
            let taken = drain(receiver);
            let (back, sender) = producer.join().unwrap();
            let mut all = [back, taken].concat();
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
            assert_eq!(sender.counts().pending(), Some(0));
        });
    }
}

#[test]
fn two_producers_wait_for_room_in_turn() {
    model(2, || {
        let (sender, mut receiver) = bounded(1, Overflow::Block);
        assert_eq!(sender.push(0), Pushed::Queued);
        let producer = |item: u32| {
            let sender = sender.clone();
            thread::spawn(move || assert_eq!(sender.push(item), Pushed::Queued))
        };
        let producers = [producer(1), producer(2)];
        let mut taken = [receiver.pop(), receiver.pop(), receiver.pop()].map(Option::unwrap);
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2]);
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

#[test]
fn a_close_wakes_every_producer_that_waits() {
    model(2, || {
        let (sender, receiver) = bounded(1, Overflow::Block);
        assert_eq!(sender.push(0), Pushed::Queued);
        let producer = |item: u32| {
            let sender = sender.clone();
            thread::spawn(move || assert_eq!(sender.push(item), Pushed::Refused(item)))
        };
        let producers = [producer(1), producer(2)];
        receiver.close();
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!(drain(receiver), [0]);
    });
}

#[test]
fn counters_never_contradict_each_other() {
    model(3, || {
        let (sender, mut receiver) = bounded(1, Overflow::DropOldest);
        let observed = sender.clone();
        let producer = thread::spawn(move || {
            for item in [1, 2] {
                drop(sender.push(item));
            }
        });
        let observer = thread::spawn(move || {
            assert!(observed.counts().pending().is_some_and(|pending| pending <= 2), "{observed:?}");
        });
        let _ = receiver.try_pop();
        for thread in [producer, observer] {
            thread.join().unwrap();
        }
        let _ = receiver.try_pop();
        assert_eq!(receiver.counts().pending(), Some(0));
    });
}

/// The frame ledger counts a frame before it is pushed, and is compared with the queue's counters at any moment.
#[test]
fn what_was_counted_before_a_push_is_never_behind() {
    model(3, || {
        let (sender, mut receiver) = bounded(1, Overflow::DropOldest);
        let counted = loom::sync::Arc::new(AtomicU64::new(0));
        let producer = {
            let (sender, counted) = (sender.clone(), counted.clone());
            thread::spawn(move || {
                for item in [1, 2] {
                    counted.fetch_add(1, Ordering::Release);
                    drop(sender.push(item));
                }
            })
        };
        let offered = sender.counts().offered;
        assert!(offered <= counted.load(Ordering::Acquire));
        producer.join().unwrap();
        assert_eq!(receiver.try_pop(), Some(2));
    });
}
