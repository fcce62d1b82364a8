//! Preprocessing, network and postprocessing as one step: a picture in, detections in its pixels out.

use super::clock::Stopwatch;
use super::ports::{Detect, DetectError, StageTimes};
use crate::detection::Detection;
use crate::executor::{Executor, LoadError, LoadOptions, MAX_FILE_LEN};
use crate::frame::{Letterbox, PictureRef, View};
use crate::kernels::{Kernels, Pool};
use crate::postprocess::{OptionError, PostprocessOptions, Postprocessor, Rules};
use crate::preprocess::Preprocessor;
use crate::retinanet::{Manifest, ManifestError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How to open a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DetectorOptions {
    /// Threads that share the rows of a layer; 0 means as many as there are processors.
    pub threads: usize,
    /// What of a picture is looked at.
    pub view: View,
    /// What is asked of postprocessing instead of what the manifest says.
    pub postprocess: PostprocessOptions,
    /// Accept a network that runs in float.
    pub allow_float: bool,
}

/// Why a model cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}; a model is a folder with manifest.toml and the network that it names")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A manifest that cannot be used.
    #[error("{path}: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A network file that is not the one the manifest was written for.
    #[error("{path} is not the file that its manifest was written for: SHA-256 {found}, expected {expected}")]
    Digest {
        /// The file.
        path: PathBuf,
        /// What the manifest states.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// Options that do not fit the model or each other.
    #[error("{path}: {source}")]
    Options {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with them.
        source: OptionError,
    },
    /// A network that cannot be loaded.
    #[error("{path}: {source}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
}

/// Reads `manifest.toml` of a model folder.
///
/// # Errors
/// [`OpenError`] naming the file.
pub fn read_manifest(model_dir: &Path) -> Result<Manifest, OpenError> {
    let path = model_dir.join("manifest.toml");
    let text = std::fs::read_to_string(&path).map_err(|source| OpenError::Read { path: path.clone(), source })?;
    Manifest::parse(&text).map_err(|source| OpenError::Manifest { path, source })
}

/// Reads manifest and network file of a model folder, with the file's path; checks the digest that the manifest states.
///
/// # Errors
/// [`OpenError`] naming the file.
pub fn read_network(model_dir: &Path) -> Result<(Manifest, PathBuf, Vec<u8>), OpenError> {
    let manifest = read_manifest(model_dir)?;
    let path = model_dir.join(&manifest.network.file);
    let bytes = read_network_file(&path).map_err(|source| OpenError::Read { path: path.clone(), source })?;
    if let Some(expected) = &manifest.network.sha256 {
        let found = hex(&Sha256::digest(&bytes));
        if !found.eq_ignore_ascii_case(expected) {
            return Err(OpenError::Digest { path, expected: expected.clone(), found });
        }
    }
    Ok((manifest, path, bytes))
}

/// Reads a network file; of one that is larger than a network may be, only as much as shows it.
///
/// # Errors
/// What the system says.
pub fn read_network_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_FILE_LEN).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A model, ready to look at pictures.
#[derive(Debug)]
pub struct Detector {
    manifest: Manifest,
    preprocessor: Preprocessor,
    executor: Executor,
    postprocessor: Postprocessor,
    view: View,
    pixels: Vec<u8>,
}

impl Detector {
    /// Opens the model in `model_dir`.
    ///
    /// # Errors
    /// [`OpenError`] naming the file and what is wrong with it.
    pub fn open(model_dir: &Path, options: &DetectorOptions) -> Result<Self, OpenError> {
        let (manifest, path, bytes) = read_network(model_dir)?;
        let rules = Rules::with_options(&manifest, &options.postprocess)
            .map_err(|source| OpenError::Options { path: model_dir.join("manifest.toml"), source })?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let load = LoadOptions { threads, allow_float: options.allow_float, ..LoadOptions::default() };
        let executor = Executor::load(&bytes, &manifest, &load).map_err(|source| OpenError::Load { path, source })?;
        let (width, height) = (manifest.input.width, manifest.input.height);
        let mut preprocessor = Preprocessor::new((width, height)).turned(options.view.rotation);
        // The network's threads; where there are none, one thread does it all.
        if let Ok(pool) = Pool::shared(threads) {
            preprocessor = preprocessor.shared(pool);
        }
        Ok(Self {
            preprocessor,
            executor,
            postprocessor: Postprocessor::with_rules(&manifest, rules, Kernels::default()),
            view: options.view,
            pixels: vec![0; width * height * 3],
            manifest,
        })
    }

    /// The model's manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's network.
    #[must_use]
    pub const fn executor(&self) -> &Executor {
        &self.executor
    }

    /// As [`Detect::detect`], and feeds every head tensor to `digest`, level by level, logits before deltas: the same
    /// picture gives the same digest on every CPU.
    ///
    /// # Errors
    /// [`DetectError`] if the region of interest is not in the picture, or the network fails.
    pub fn detect_with_digest(
        &mut self,
        picture: &PictureRef<'_>,
        out: &mut Vec<Detection>,
        digest: Option<&mut Sha256>,
    ) -> Result<StageTimes, DetectError> {
        let mut stopwatch = Stopwatch::start();
        let region = self.view.region((picture.width, picture.height))?;
        let letterbox = self.preprocessor.run(&picture.region(region)?, &mut self.pixels);
        let preprocess = stopwatch.lap();
        let heads = self.executor.run(&self.pixels).map_err(|error| DetectError::Network(error.to_string()))?;
        let infer = stopwatch.lap();
        self.postprocessor.run(&heads, out);
        to_frame(&letterbox, out);
        if self.view != View::default() {
            for detection in out.iter_mut() {
                detection.bbox = self.view.frame_from_view(&detection.bbox, region);
            }
        }
        let postprocess = stopwatch.lap();
        if let Some(digest) = digest {
            for data in heads.levels.iter().flat_map(|level| [level.cls_logits, level.bbox_deltas]) {
                digest_head(data, digest);
            }
        }
        Ok(StageTimes { preprocess, infer, postprocess })
    }
}

impl Detect for Detector {
    fn check(&self, size: (usize, usize)) -> Result<(), DetectError> {
        Ok(self.view.region(size).map(drop)?)
    }

    fn detect(&mut self, picture: &PictureRef<'_>, out: &mut Vec<Detection>) -> Result<StageTimes, DetectError> {
        self.detect_with_digest(picture, out, None)
    }

    fn labels(&self) -> &[String] {
        &self.manifest.classes
    }
}

fn digest_head(data: crate::retinanet::HeadData<'_>, digest: &mut Sha256) {
    match data {
        crate::retinanet::HeadData::Quantized(values, _) => digest.update(values),
        crate::retinanet::HeadData::Float(values) => values.iter().for_each(|value| digest.update(value.to_le_bytes())),
    }
}

/// Turns boxes of the network input into boxes of the picture, clipped to it; detections that lie outside are removed.
///
/// The last step from heads to detections, for whoever composes the stages as [`Detector`] does.
pub fn to_frame(letterbox: &Letterbox, detections: &mut Vec<Detection>) {
    #[expect(clippy::cast_precision_loss, reason = "sides are at most 16,384 pixels")]
    let (width, height) = (letterbox.src.0 as f32, letterbox.src.1 as f32);
    for detection in detections.iter_mut() {
        detection.bbox = letterbox.frame_from_net(&detection.bbox).clip(width, height);
    }
    detections.retain(|detection| detection.bbox.area() > 0.0);
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
