//! Hostile files: damaged networks and manifests are refused or run; nothing panics, and nothing takes memory that the file
//! and the stated limits (`src/executor/limits.rs`) do not account for.
//!
//! Seeded: the same files on every machine. `FOVEA_FUZZ_ROUNDS=N` multiplies their number.

#[path = "../counting/mod.rs"]
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
mod counting;
mod damage;
mod limits;
mod mutate;
mod stages;
#[path = "../stills/tiny.rs"]
#[expect(dead_code, reason = "written for the tests of the commands too")]
mod tiny;

use counting::Counting;
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has now, and had at most: each thread on its own, tests run side by side.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn took(bytes: usize) {
    // A thread that ends has no counters any more.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.saturating_add(bytes);
        held.set((now, most.max(now)));
    });
}

fn gave(bytes: usize) {
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now.saturating_sub(bytes), most));
    });
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { took, gave };

/// What `work` gives, and how many bytes this thread took for it at most.
fn most_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let result = work();
    (result, HELD.with(Cell::get).1 - before)
}

/// How many times the usual number of files.
fn rounds() -> usize {
    #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
    std::env::var("FOVEA_FUZZ_ROUNDS").ok().map_or(1, |rounds| rounds.parse().expect("FOVEA_FUZZ_ROUNDS is a number"))
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16;
        usize::try_from(value).expect("48 bits") % n
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}
