//! Batches made ahead of the trainer, on threads of their own, always the same ones in the same order.
//!
//! Sample `i` is drawn from a generator with stream `i`; the order of pictures in an epoch from one with the epoch's
//! number. So batch `t` is a function of the seed and of `t` alone, and a resumed run sees what the run would have seen.

use crate::augment::{self, Augmentation};
use crate::data::{Example, LabelKind};
use crate::targets::{self, MatchParams};
use fovea::detection::BBox;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// One step's samples.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N, H, W, 3]`.
    pub(crate) pixels: Vec<u8>,
    /// `[N, anchors, classes]`: see [`targets`].
    pub(crate) classes: Vec<u8>,
    /// `sample x anchors + anchor` of anchors on an object.
    pub(crate) positives: Vec<i64>,
    /// `[P, 4]`: the anchors themselves.
    pub(crate) positive_anchors: Vec<f32>,
    /// `[P, 4]`: the boxes they are on.
    pub(crate) positive_boxes: Vec<f32>,
}

/// What batches are made of.
pub(crate) struct Recipe {
    /// Labelled pictures.
    pub(crate) examples: Arc<Vec<Example>>,
    /// Indices into `examples` that make an epoch; rare classes come more than once.
    pub(crate) epoch: Vec<u32>,
    /// Samples a batch.
    pub(crate) batch: usize,
    /// Those of them that are made here; the rest belongs to other processes.
    pub(crate) share: Range<usize>,
    /// Width and height of the network input.
    pub(crate) size: (usize, usize),
    /// All anchors, in order.
    pub(crate) anchors: Vec<BBox>,
    /// Classes of the model.
    pub(crate) n_classes: usize,
    /// Matcher.
    pub(crate) matching: MatchParams,
    /// Seed of order and augmentation.
    pub(crate) seed: u64,
    /// Augmentation at an iteration.
    pub(crate) augment: Box<dyn Fn(usize) -> Augmentation + Send + Sync>,
}

impl Recipe {
    /// Batch number `iteration`.
    pub(crate) fn make(&self, iteration: usize) -> Batch {
        let (width, height) = self.size;
        let mut batch = Batch {
            pixels: Vec::with_capacity(self.share.len() * width * height * 3),
            classes: Vec::with_capacity(self.share.len() * self.anchors.len() * self.n_classes),
            positives: Vec::new(),
            positive_anchors: Vec::new(),
            positive_boxes: Vec::new(),
        };
        let how = (self.augment)(iteration);
        let mut order: (u64, Vec<u32>) = (u64::MAX, Vec::new());
        for (n, place_in_batch) in self.share.clone().enumerate() {
            let number = (iteration * self.batch + place_in_batch) as u64;
            let (epoch, place) = (number / self.epoch.len() as u64, (number % self.epoch.len() as u64) as usize);
            if order.0 != epoch {
                order = (epoch, self.order(epoch));
            }
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(number + 1);
            let sample = augment::sample(&self.examples, order.1[place] as usize, self.size, &how, &mut rng);
            let targets = targets::assign(&sample, &self.anchors, self.n_classes, &self.matching);
            batch.pixels.extend_from_slice(&sample.pixels);
            batch.classes.extend_from_slice(&targets.classes);
            for (anchor, bbox) in targets.positives {
                batch.positives.push((n * self.anchors.len() + anchor) as i64);
                batch.positive_anchors.extend(self.anchors[anchor].to_array());
                batch.positive_boxes.extend(bbox.to_array());
            }
        }
        batch
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order = self.epoch.clone();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ (epoch + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        order
    }
}

/// Indices of an epoch with repeat factors (Gupta et al. 2019, LVIS, section 5.2): a picture comes `max(1, sqrt(t / f))`
/// times, where `f` is the share of pictures that its rarest class is in; parts of a time are drawn once, by `seed`.
pub(crate) fn repeated(examples: &[Example], n_classes: usize, threshold: f64, seed: u64) -> Vec<u32> {
    let mut pictures = vec![0_usize; n_classes];
    let classes_of = |example: &Example| {
        let mut seen: Vec<usize> = example.labels.iter().filter(|l| l.kind == LabelKind::Object).map(|l| l.class).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    for class in examples.iter().flat_map(classes_of) {
        pictures[class] += 1;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut epoch = Vec::with_capacity(examples.len());
    for (idx, example) in (0..).zip(examples) {
        let factor = |class: usize| (threshold * examples.len() as f64 / pictures[class] as f64).sqrt();
        let factor = classes_of(example).into_iter().map(factor).fold(1.0, f64::max);
        let times = factor as usize + usize::from(rng.random_range(0.0..1.0) < factor.fract());
        epoch.extend(std::iter::repeat_n(idx, times));
    }
    epoch
}

/// Batches `first..end`, in order, made by `n_threads` threads.
pub(crate) struct Batches {
    lanes: Vec<Receiver<Batch>>,
    next: usize,
}

impl Batches {
    /// Starts the threads. They end with the last batch or when this is dropped.
    pub(crate) fn start(recipe: &Arc<Recipe>, first: usize, end: usize, n_threads: usize) -> Self {
        let lanes = (0..n_threads.max(1))
            .map(|lane| {
                let (send, receive) = sync_channel(2);
                let recipe = Arc::clone(recipe);
                let step = n_threads.max(1);
                std::thread::spawn(move || {
                    for iteration in (first + lane..end).step_by(step) {
                        if send.send(recipe.make(iteration)).is_err() {
                            return;
                        }
                    }
                });
                receive
            })
            .collect();
        Self { lanes, next: 0 }
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let batch = self.lanes[self.next % self.lanes.len()].recv().ok();
        self.next += 1;
        batch
    }
}
