//! A model over a labelled data set: every picture through the detector, its detections into the COCO metrics.
//!
//! Pictures go over threads, each with a detector of its own that runs on that thread alone: a layer of a small network
//! is too short to share. The result does not depend on the number of threads.

use super::detector::{Detector, DetectorOptions, OpenError, read_manifest};
use super::ports::{Detect, DetectError};
use crate::detection::Detection;
use crate::eval::{CocoCategory, CocoDataset, CocoError, CocoEvaluator, CocoImage, EvalError};
use crate::frame::View;
use crate::images::{self, Degradation, ImageError, RgbPicture};
use crate::postprocess::PostprocessOptions;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How to evaluate a model.
#[derive(Debug, Clone, Default)]
pub struct EvaluateOptions {
    /// Pictures at a time; 0 means as many as there are processors.
    pub threads: usize,
    /// Only the first pictures of the data set.
    pub limit: Option<usize>,
    /// Accept a network that runs in float.
    pub allow_float: bool,
    /// What is done to every picture first.
    pub degrade: Option<Degradation>,
    /// What of a picture is looked at; labels outside of it count as missed.
    pub view: View,
    /// What is asked of postprocessing instead of what the manifest says; its `score_threshold` holds if none is asked for.
    pub postprocess: PostprocessOptions,
}

/// What an evaluation found.
#[derive(Debug)]
pub struct Evaluation {
    /// All detections and labels: ask it for the metrics.
    pub evaluator: CocoEvaluator,
    /// Scores above which a detection is shown to people, by class in the order of the metrics: the manifest's
    /// `display_threshold`, or what the options ask for.
    pub display_thresholds: Vec<f32>,
    /// Classes of the data set that the model does not know: left out.
    pub unknown_to_model: Vec<String>,
    /// Classes of the model that the data set does not have: their detections are left out.
    pub unknown_to_data: Vec<String>,
    /// Classes of both that are not looked for: left out.
    pub not_looked_for: Vec<String>,
}

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The model cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file of the data set that cannot be read.
    #[error(
        "cannot read {path}: {source}; a data set is a folder with annotations.json (COCO format) and the folder images; \
         `fovea-train data convert` makes one of other formats"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Annotations that cannot be used.
    #[error("{path}: {source}")]
    Dataset {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CocoError,
    },
    /// Model and data set have no class in common.
    #[error("{path} has none of the model's classes: it has {dataset:?}, the model {model:?}; names must be equal")]
    Classes {
        /// The annotations.
        path: PathBuf,
        /// Classes of the data set.
        dataset: Vec<String>,
        /// Classes of the model.
        model: Vec<String>,
    },
    /// A picture that cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A picture that is not the one that was labelled.
    #[error(
        "{path} has {}x{} pixels, its labels are for {}x{}; label it anew, or bring back the picture (`fovea-train data check` \
         lists all of them)",
        .found.0, .found.1, .labelled.0, .labelled.1
    )]
    Size {
        /// The picture.
        path: PathBuf,
        /// Width and height.
        found: (usize, usize),
        /// Width and height in the annotations.
        labelled: (usize, usize),
    },
    /// The network failed on a picture.
    #[error("{path}: {source}")]
    Detect {
        /// The picture.
        path: PathBuf,
        /// What happened.
        source: DetectError,
    },
    /// Detections that do not belong to the data set.
    #[error(transparent)]
    Eval(#[from] EvalError),
}

/// Detections of one picture as [`CocoEvaluator::add`] takes them.
type Scored = Vec<(u32, f64, [f64; 4])>;

/// Runs the model in `model_dir` over the data set in `data_dir`, with the manifest's `score_threshold`. `progress` is
/// called after every picture with the number of pictures done and their total.
///
/// # Errors
/// [`EvaluateError`] naming the file and what is wrong with it.
pub fn evaluate(
    model_dir: &Path,
    data_dir: &Path,
    options: &EvaluateOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Evaluation, EvaluateError> {
    let path = data_dir.join("annotations.json");
    let text = std::fs::read_to_string(&path).map_err(|source| EvaluateError::Read { path: path.clone(), source })?;
    let dataset = CocoDataset::parse(&text).map_err(|source| EvaluateError::Dataset { path: path.clone(), source })?;
    drop(text);
    evaluate_dataset(model_dir, dataset, (&path, &data_dir.join("images")), options, progress)
}

/// As [`evaluate`], of a data set that is read already: `paths` are those of its labels, for errors, and of its pictures.
///
/// # Errors
/// [`EvaluateError`] naming the file and what is wrong with it.
pub fn evaluate_dataset(
    model_dir: &Path,
    mut dataset: CocoDataset,
    paths: (&Path, &Path),
    options: &EvaluateOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Evaluation, EvaluateError> {
    let manifest = read_manifest(model_dir)?;
    let (path, images_dir) = paths;
    if let Some(limit) = options.limit {
        keep_first(&mut dataset, limit);
    }
    let category_of = |label: &String| dataset.categories.iter().find(|category| category.name == *label).map(|c| c.id);
    let categories: Vec<Option<u32>> = manifest.classes.iter().map(category_of).collect();
    if categories.iter().all(Option::is_none) {
        let names = dataset.categories.iter().map(|category| category.name.clone()).collect();
        return Err(EvaluateError::Classes { path: path.to_owned(), dataset: names, model: manifest.classes });
    }
    let (known, unknown_to_model) =
        std::mem::take(&mut dataset.categories).into_iter().partition(|category| manifest.classes.contains(&category.name));
    let looked_for = match options.postprocess.classes.as_slice() {
        [] => manifest.postprocess.classes.as_slice(),
        asked => asked,
    };
    let is_looked_for = |category: &CocoCategory| looked_for.is_empty() || looked_for.contains(&category.name);
    let (looked_for, not_looked_for): (_, Vec<CocoCategory>) = Vec::into_iter(known).partition(is_looked_for);
    dataset.categories = looked_for;
    if dataset.categories.is_empty() {
        let dataset = Vec::into_iter(not_looked_for).map(|category| category.name).collect();
        let asked = &options.postprocess.classes;
        let model = if asked.is_empty() { manifest.postprocess.classes } else { asked.clone() };
        return Err(EvaluateError::Classes { path: path.to_owned(), dataset, model });
    }
    let unknown_to_data = manifest.classes.iter().zip(&categories).filter(|(_, id)| id.is_none()).map(|(name, _)| name.clone());

    let shown_from = |category: &CocoCategory| {
        let (asked, class) = (&options.postprocess, &category.name);
        let of_class = asked.class_thresholds.iter().find(|(name, _)| name == class).map(|(_, threshold)| *threshold);
        let class_idx = manifest.classes.iter().position(|known| known == class).unwrap_or_default();
        of_class.or(asked.score_threshold).unwrap_or_else(|| manifest.display_threshold(class_idx))
    };
    let display_thresholds = dataset.categories.iter().map(shown_from).collect();

    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let threads = threads.clamp(1, dataset.images.len().max(1));
    let detector_options = DetectorOptions {
        threads: 1,
        view: options.view,
        postprocess: PostprocessOptions {
            score_threshold: options.postprocess.score_threshold.or(Some(manifest.postprocess.score_threshold)),
            ..options.postprocess.clone()
        },
        allow_float: options.allow_float,
    };
    let mut detectors = Vec::with_capacity(threads);
    for _ in 0..threads {
        detectors.push(Detector::open(model_dir, &detector_options)?);
    }
    let mut evaluator = CocoEvaluator::new(&dataset);
    for (image_idx, scored) in detect_all(detectors, &dataset.images, images_dir, options.degrade, &categories, progress)? {
        evaluator.add(dataset.images[image_idx].id, &scored)?;
    }
    Ok(Evaluation {
        evaluator,
        display_thresholds,
        unknown_to_model: unknown_to_model.into_iter().map(|category| category.name).collect(),
        unknown_to_data: unknown_to_data.collect(),
        not_looked_for: not_looked_for.into_iter().map(|category| category.name).collect(),
    })
}

/// Detections of every picture, in the order of the data set. An error ends the work of all threads; that of the first picture
/// is told.
fn detect_all(
    detectors: Vec<Detector>,
    images: &[CocoImage],
    images_dir: &Path,
    degrade: Option<Degradation>,
    categories: &[Option<u32>],
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<(usize, Scored)>, EvaluateError> {
    let (next, n_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Relaxed: the counters hand out numbers and nothing else; results travel through the threads' joins.
    let work = |mut detector: Detector| -> Result<Vec<(usize, Scored)>, (usize, EvaluateError)> {
        let mut results = Vec::new();
        let mut detections: Vec<Detection> = Vec::new();
        loop {
            let image_idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(image) = images.get(image_idx) else { break };
            let path = images_dir.join(&image.file_name);
            let found = open(&path, image, degrade).and_then(|picture| {
                let found = detector.detect(&picture.as_picture(), &mut detections);
                found.map_err(|source| EvaluateError::Detect { path, source })
            });
            if let Err(error) = found {
                next.store(images.len(), Ordering::Relaxed);
                return Err((image_idx, error));
            }
            results.push((image_idx, scored(&detections, categories)));
            progress(n_done.fetch_add(1, Ordering::Relaxed) + 1, images.len());
        }
        Ok(results)
    };
    let work = &work;
    let finished: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = detectors.into_iter().map(|detector| scope.spawn(move || work(detector))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = Vec::with_capacity(images.len());
    let mut errors = Vec::new();
    for results in finished {
        match results {
            Ok(mut results) => all.append(&mut results),
            Err(error) => errors.push(error),
        }
    }
    if let Some((_, error)) = errors.into_iter().min_by_key(|(image_idx, _)| *image_idx) {
        return Err(error);
    }
    all.sort_unstable_by_key(|(image_idx, _)| *image_idx);
    Ok(all)
}

fn open(path: &Path, image: &CocoImage, degrade: Option<Degradation>) -> Result<RgbPicture, EvaluateError> {
    let picture = images::open(path)?;
    let (found, labelled) = ((picture.width, picture.height), (image.width as usize, image.height as usize));
    if labelled != (0, 0) && found != labelled {
        return Err(EvaluateError::Size { path: path.to_owned(), found, labelled });
    }
    let Some(degradation) = degrade else { return Ok(picture) };
    Ok(degradation.apply(&picture).map_err(|reason| ImageError::Decode { path: path.to_owned(), reason })?)
}

fn scored(detections: &[Detection], categories: &[Option<u32>]) -> Scored {
    let one = |detection: &Detection| {
        let category = categories.get(detection.class_id.index()).copied().flatten()?;
        let [x1, y1, x2, y2] = detection.bbox.to_array().map(f64::from);
        Some((category, f64::from(detection.score), [x1, y1, x2 - x1, y2 - y1]))
    };
    detections.iter().filter_map(one).collect()
}

/// The first `limit` pictures and what is labelled in them.
fn keep_first(dataset: &mut CocoDataset, limit: usize) {
    dataset.images.truncate(limit);
    let kept: std::collections::HashSet<u64> = dataset.images.iter().map(|image| image.id).collect();
    dataset.annotations.retain(|annotation| kept.contains(&annotation.image_id));
}
