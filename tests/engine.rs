//! The integer engine as a whole, on the models that ship: the same values on every instruction set and number of threads, no
//! allocation in a frame, activations in little more memory than they need.

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
mod counting;

use counting::Counting;
use fovea::executor::{Executor, LoadOptions};
use fovea::kernels::{Isa, Kernels};
use fovea::pipeline::detector::{hex, read_network};
use fovea::retinanet::{HeadData, HeadOutputs, Manifest};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Allocations of every thread.
static N_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting { took: count, gave: |_| () };

thread_local! {
    /// Allocations of this thread.
    static N_OWN: Cell<u64> = const { Cell::new(0) };
}

fn count(_: usize) {
    N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    // A thread that ends has none.
    let _ = N_OWN.try_with(|n| n.set(n.get() + 1));
}

/// Allocations so far: with helper threads those of the process, else those of this thread, as the harness has one that speaks
/// up after a minute.
fn allocations(threads: usize) -> u64 {
    if threads == 1 { N_OWN.get() } else { N_ALLOCATIONS.load(Ordering::Relaxed) }
}

/// Frames before it: a thread's first rows allocate the buffers that it keeps.
const WARM_UP: usize = 10;

/// Allocations of a helper thread that is too late for the warm-up: its buffers, each once, or a few times while it grows.
const LATE: u64 = 40;

/// Frames of the allocation test: with the best kernels of this CPU, and with each of the others.
const N_FRAMES: (u64, u64) = (1000, 20);

/// Manifest and network of every model in `models/`.
fn shipped() -> Vec<(Manifest, Vec<u8>)> {
    let models = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/models")).expect("models/");
    // `models/default` is a link to one of the others.
    let mut folders: Vec<PathBuf> = models.flatten().filter_map(|entry| entry.path().canonicalize().ok()).collect();
    folders.retain(|folder| folder.join("manifest.toml").is_file());
    folders.sort();
    folders.dedup();
    assert!(!folders.is_empty(), "there is no model in models/");
    let read = |folder: &PathBuf| read_network(folder).unwrap_or_else(|error| panic!("{error}"));
    folders.iter().map(read).map(|(manifest, _, bytes)| (manifest, bytes)).collect()
}

fn executor((manifest, bytes): &(Manifest, Vec<u8>), kernels: Kernels, threads: usize) -> Executor {
    let options = LoadOptions { threads, kernels, ..LoadOptions::default() };
    Executor::load(bytes, manifest, &options).unwrap_or_else(|error| panic!("{}: {error}", manifest.name))
}

fn picture(manifest: &Manifest, seed: usize) -> Vec<u8> {
    let low_byte = |value: usize| value.to_le_bytes()[0];
    let (width, height) = (manifest.input.width, manifest.input.height);
    let pixel = |x: usize, y: usize| [low_byte(x * x / 7 + seed * y), low_byte(y * y / 5 + x), low_byte(x * y / (11 + seed))];
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
}

fn digest(heads: &HeadOutputs<'_>) -> String {
    let mut digest = Sha256::new();
    for level in &heads.levels {
        for data in [&level.cls_logits, &level.bbox_deltas] {
            match data {
                HeadData::Quantized(values, _) => digest.update(values),
                HeadData::Float(_) => panic!("a shipped model runs in integers"),
            }
        }
    }
    hex(&digest.finalize())
}

/// One test, as the allocator counts for the whole process.
#[test]
fn shipped_models_give_the_same_values_everywhere_and_allocate_nothing() {
    for model in &shipped() {
        let (manifest, _) = model;
        let name = &manifest.name;
        let pictures = [picture(manifest, 3), picture(manifest, 8)];
        let mut want: Option<[String; 2]> = None;
        for &isa in Isa::ALL {
            let Some(kernels) = Kernels::new(isa) else {
                eprintln!("skipped: {} ({name}): this CPU or this build does not have it", isa.name());
                continue;
            };
            for threads in [1, 2, 3] {
                let mut executor = executor(model, kernels, threads);
                let got = [0, 1].map(|idx: usize| digest(&executor.run(&pictures[idx]).expect("it runs")));
                assert_ne!(got[0], got[1], "{name}: two pictures, one result");
                let want = want.get_or_insert_with(|| got.clone());
                assert_eq!(&got, want, "{name}: {threads} threads on {} give something else", isa.name());
                // Every thread has seen every layer once.
                for _ in 0..WARM_UP {
                    executor.run(&pictures[0]).expect("it runs");
                }
                let n_frames = match threads {
                    1 if kernels == Kernels::best() => N_FRAMES.0,
                    _ if kernels == Kernels::best() => N_FRAMES.0 / 4,
                    _ => N_FRAMES.1,
                };
                let before = allocations(threads);
                for _ in 0..n_frames {
                    executor.run(&pictures[0]).expect("it runs");
                }
                let n = allocations(threads) - before;
                let late: u64 = if threads == 1 { 0 } else { LATE };
                assert!(n <= late, "{name}: {n} allocations in {n_frames} frames, {threads} threads on {}", isa.name());
            }
        }
        let census = executor(model, Kernels::default(), 1).network().census();
        assert_eq!(census.float_convs, 0, "{name}: a convolution in float");
        assert!(
            2 * census.activation_bytes <= 3 * census.live_bytes,
            "{name}: {} bytes of activations, {} alive together",
            census.activation_bytes,
            census.live_bytes
        );
    }
}
