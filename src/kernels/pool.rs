//! Threads that share the rows of a layer.
//!
//! A layer takes tens of microseconds, so handing it out must take less than one: the caller publishes a job in one atomic
//! word, works on it itself, and waits only for the threads that joined in. Threads look for the next job for a while
//! before they sleep; one that comes late finds the job closed and does not hold up the caller. Nothing is
//! allocated and no lock is taken.
//!
//! # The word
//! `state` holds the job's number (upper 32 bits), whether it is open (bit 31) and how many threads work on it (lower 31 bits).
//! - The caller writes the job, then opens it with a store (`Release`). A thread joins with a compare-exchange (`Acquire`)
//!   that only succeeds on an open job with the number that it saw, and so sees the job that was written for it.
//! - The caller closes the job (nobody can join any more), then waits until the number of threads is 0 (`Acquire`); each
//!   thread leaves with `Release`. So when [`Pool::run`] returns nobody holds the job, and all that was written is seen.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle, Thread};

/// Pauses before a thread without a job sleeps: longer than the gap between two layers, much shorter than a frame.
const PAUSES_BEFORE_SLEEP: u32 = 3000;

/// Pauses before the caller lets others run while it waits.
const PAUSES_BEFORE_YIELD: u32 = 200;

const OPEN: u64 = 1 << 31;
const THREADS: u64 = OPEN - 1;

/// What is to be done: a function of a piece's number, borrowed from the caller of [`Pool::run`], who waits until nobody
/// uses it.
#[derive(Clone, Copy)]
struct Job {
    function: *const (),
    /// Calls `function`, whose type it knows.
    call: unsafe fn(*const (), usize),
    n_pieces: usize,
}

impl Job {
    fn new<F: Fn(usize) + Sync>(function: &F, n_pieces: usize) -> Self {
        /// # Safety
        /// `function` points to an `F` that is alive.
        unsafe fn call<F: Fn(usize)>(function: *const (), idx: usize) {
            // SAFETY: the caller vouches for it.
            unsafe { (*function.cast::<F>())(idx) };
        }
        Self { function: std::ptr::from_ref(function).cast(), call: call::<F>, n_pieces }
    }
}

/// A counter in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Job>,
    /// How many pieces of each thread's share are taken; the caller's comes first.
    taken: Box<[Counter]>,
    is_busy: AtomicBool,
    is_stopping: AtomicBool,
    /// A panic of a piece, for the caller. Only touched when one happens.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the caller that holds `is_busy`, while the job is closed and no thread works on it; threads read it
// only while they are counted in `state`. See the module's documentation.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while its owner waits, and what it points to is `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes pieces until there are none: first those of thread `me`'s own share, the same part of every job, whose data are in
    /// its cache from the job before; then what others have left.
    ///
    /// # Safety
    /// The function of the job is alive.
    unsafe fn work(&self, me: usize, job: Job) {
        let n_threads = self.taken.len();
        for share in (me..n_threads).chain(0..me) {
            let (start, end) = (job.n_pieces * share / n_threads, job.n_pieces * (share + 1) / n_threads);
            loop {
                // Relaxed: a piece needs to be taken once; what it reads was published with the job.
                let idx = start + self.taken[share].0.fetch_add(1, Ordering::Relaxed);
                if idx >= end {
                    break;
                }
                // SAFETY: the caller vouches for it.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.function, idx) })) {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
        }
    }

    /// The life of thread `me`.
    fn serve(&self, me: usize, is_asleep: &AtomicBool) {
        let mut seen = 0;
        let mut pauses = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            let number = state >> 32;
            if state & OPEN != 0 && number != seen {
                let joined = self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed);
                if joined.is_ok() {
                    // SAFETY: this thread is counted, so the caller waits for it and neither the job nor its function goes away.
                    unsafe { self.work(me, *self.job.get()) };
                    self.state.fetch_sub(1, Ordering::Release);
                    seen = number;
                    pauses = 0;
                }
                continue;
            }
            if self.is_stopping.load(Ordering::Relaxed) {
                return;
            }
            if pauses < PAUSES_BEFORE_SLEEP {
                pauses += 1;
                std::hint::spin_loop();
                continue;
            }
            // SeqCst here and in `run`: either this thread sees the new job, or the caller sees that it sleeps.
            is_asleep.store(true, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            if (state & OPEN == 0 || state >> 32 == seen) && !self.is_stopping.load(Ordering::SeqCst) {
                thread::park();
            }
            is_asleep.store(false, Ordering::SeqCst);
            pauses = 0;
        }
    }
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
    is_asleep: Arc<AtomicBool>,
}

/// The caller's thread and some helpers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// Pools in use, one for each number of threads.
static POOLS: Mutex<Vec<Weak<Pool>>> = Mutex::new(Vec::new());

impl Pool {
    /// The process's pool of so many threads, the caller's included; 0 and 1 give a pool that is the caller alone.
    ///
    /// # Errors
    /// The system's reason for not starting a thread.
    pub fn shared(threads: usize) -> std::io::Result<Arc<Self>> {
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        if let Some(pool) = pools.iter().filter_map(Weak::upgrade).find(|pool| pool.threads() == threads.max(1)) {
            return Ok(pool);
        }
        let pool = Arc::new(Self::new(threads)?);
        pools.push(Arc::downgrade(&pool));
        Ok(pool)
    }

    fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job::new(&|_| {}, 0)),
            taken: (0..threads.max(1)).map(|_| Counter::default()).collect(),
            is_busy: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for idx in 1..threads.max(1) {
            let (shared, is_asleep) = (pool.shared.clone(), Arc::new(AtomicBool::new(false)));
            let flag = is_asleep.clone();
            let handle = thread::Builder::new().name(format!("infer-{idx}")).spawn(move || shared.serve(idx, &flag))?;
            pool.workers.push(Worker { thread: handle.thread().clone(), handle: Some(handle), is_asleep });
        }
        Ok(pool)
    }

    /// Threads that work on a job, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Wakes the threads, so that they look for a job by the time there is one.
    pub fn wake(&self) {
        for worker in self.workers.iter().filter(|worker| worker.is_asleep.load(Ordering::SeqCst)) {
            worker.thread.unpark();
        }
    }

    /// Calls `piece(i)` once for every `i` below `n_pieces`, on any thread, and returns when all are done. While
    /// another caller uses the pool the pieces are done on this thread alone.
    ///
    /// # Panics
    /// As a piece does.
    pub fn run<F: Fn(usize) + Sync>(&self, n_pieces: usize, piece: &F) {
        let shared = &*self.shared;
        let is_alone = self.workers.is_empty() || n_pieces < 2;
        if is_alone || shared.is_busy.swap(true, Ordering::Acquire) {
            (0..n_pieces).for_each(piece);
            return;
        }
        let job = Job::new(piece, n_pieces);
        // SAFETY: `is_busy` is ours, the last job is closed and nobody works on it.
        unsafe { *shared.job.get() = job };
        for counter in &shared.taken {
            counter.0.store(0, Ordering::Relaxed);
        }
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xFFFF_FFFF;
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        self.wake();
        // SAFETY: `piece` is borrowed until this function returns.
        unsafe { shared.work(0, job) };
        // Nobody joins from here on.
        let mut state = shared.state.fetch_and(!OPEN, Ordering::Relaxed) & !OPEN;
        let mut pauses = 0;
        while state & THREADS != 0 {
            if pauses < PAUSES_BEFORE_YIELD {
                pauses += 1;
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
            state = shared.state.load(Ordering::Relaxed);
        }
        std::sync::atomic::fence(Ordering::Acquire);
        let panic = shared.panic.try_lock().ok().and_then(|mut panic| panic.take());
        shared.is_busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A thread that panicked outside a piece has nothing left to say.
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::shared(threads).expect("threads");
            assert_eq!(pool.threads(), threads);
            for round in 0..2000_usize {
                let n_pieces = round % 23;
                let counts: Vec<AtomicUsize> = (0..n_pieces).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_pieces, &|idx| {
                    counts[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, round {round}");
                if round % 500 == 0 {
                    // Long enough for the threads to sleep.
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn several_callers_do_not_wait_for_each_other() {
        let pool = Pool::shared(3).expect("threads");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, &|idx| {
                            sum.fetch_add(idx, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::shared(2).expect("threads");
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|idx| assert_ne!(idx, 5, "piece five"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|idx| {
            sum.fetch_add(idx, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
