//! What the queue is built from: crossbeam and std, or loom's look-alikes when the protocol is model-checked.

#[cfg(not(loom))]
mod real {
    pub(in crate::queue) use crossbeam::queue::ArrayQueue as Ring;
    pub(in crate::queue) use crossbeam::sync::{Parker, Unparker};
    pub(in crate::queue) use std::sync::Mutex;
    pub(in crate::queue) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

/// A ring under a lock stands in for crossbeam's: its own steps are taken for granted, ours around it are checked.
/// `Notify` has the parker's one token.
#[cfg(loom)]
mod model {
    pub(in crate::queue) use loom::sync::Mutex;
    pub(in crate::queue) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use loom::sync::{Arc, Notify};
    use std::collections::VecDeque;

    pub(in crate::queue) struct Ring<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> Ring<T> {
        pub(in crate::queue) fn new(capacity: usize) -> Self {
            Self { items: Mutex::new(VecDeque::with_capacity(capacity)), capacity }
        }

        pub(in crate::queue) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().unwrap();
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(in crate::queue) fn force_push(&self, item: T) -> Option<T> {
            let mut items = self.items.lock().unwrap();
            let oldest = if items.len() == self.capacity { items.pop_front() } else { None };
            items.push_back(item);
            oldest
        }

        pub(in crate::queue) fn pop(&self) -> Option<T> {
            self.items.lock().unwrap().pop_front()
        }
    }

    #[derive(Clone)]
    pub(in crate::queue) struct Unparker(Arc<Notify>);

    impl Unparker {
        pub(in crate::queue) fn unpark(&self) {
            self.0.notify();
        }
    }

    pub(in crate::queue) struct Parker(Unparker);

    impl Parker {
        pub(in crate::queue) fn new() -> Self {
            Self(Unparker(Arc::new(Notify::new())))
        }

        pub(in crate::queue) fn unparker(&self) -> &Unparker {
            &self.0
        }

        pub(in crate::queue) fn park(&self) {
            self.0.0.wait();
        }
    }
}

#[cfg(loom)]
pub(in crate::queue) use model::*;
#[cfg(not(loom))]
pub(in crate::queue) use real::*;
