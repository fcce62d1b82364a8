//! `manifest.toml` beside a network: everything that decides what its numbers mean.
//!
//! None of it is a constant of the program. [`Manifest::parse`] reads a text and checks that it is consistent in
//! itself; the executor checks it against the network. Every key is described in `docs/manifest.md`.

use super::AnchorConfig;
use serde::{Deserialize, Serialize};

/// Version of the manifest's own layout.
pub const MANIFEST_SCHEMA: u32 = 1;

/// Version of the preprocessing specification that this program implements.
pub const PREPROCESS_VERSION: u32 = 1;

/// Logits of one level at most.
const MAX_LOGITS: usize = 1 << 31;

/// A model's contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's layout: [`MANIFEST_SCHEMA`].
    pub schema: u32,
    /// Short name, for reports.
    pub name: String,
    /// The network file.
    pub network: NetworkSpec,
    /// The network's input.
    pub input: InputSpec,
    /// Reference boxes.
    pub anchors: AnchorConfig,
    /// Feature maps from the finest.
    pub levels: Vec<LevelSpec>,
    /// Thresholds.
    pub postprocess: PostprocessSpec,
    /// Class names in the order of the network's outputs, as in `labels.txt`.
    pub classes: Vec<String>,
}

/// The network file and what it must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// File name, in the manifest's folder.
    pub file: String,
    /// SHA-256 of the file in hexadecimal; not checked if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The network's input tensor and how pixels become its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Name of the ONNX input.
    pub name: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Version of the preprocessing specification: [`PREPROCESS_VERSION`].
    pub preprocess: u32,
    /// Subtracted from a pixel's value (0..=255), per channel R, G, B.
    #[serde(default)]
    pub mean: [f32; 3],
    /// What the difference is divided by, per channel R, G, B; 255 gives `q / 255`.
    #[serde(default = "plain_std")]
    pub std: [f32; 3],
}

const fn plain_std() -> [f32; 3] {
    [255.0; 3]
}

/// One feature map: stride and the names of its two outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSpec {
    /// Pixels of the input for one cell.
    pub stride: usize,
    /// Output `[1, A x K, H, W]`, logits, channel `a x K + k`.
    pub cls: String,
    /// Output `[1, A x 4, H, W]`, deltas, channel `a x 4 + {dx, dy, dw, dh}`.
    pub bbox: String,
}

/// Thresholds of decoding and non-maximum suppression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostprocessSpec {
    /// Keep a candidate if its score is above; used by `eval`.
    pub score_threshold: f32,
    /// Best candidates kept per level before suppression.
    pub topk_candidates_per_level: usize,
    /// Suppress the weaker of two boxes of a class if their `IoU` is above.
    pub nms_iou_threshold: f32,
    /// Detections kept per picture.
    pub max_detections: usize,
    /// What `run` and `detect` show, one per class; `score_threshold` if empty.
    #[serde(default)]
    pub display_threshold: Vec<f32>,
    /// Names of the only classes that are looked for; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// What is done about boxes that overlap.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nms: NmsMethod,
    /// Width of the Gaussian; only with [`NmsMethod::SoftGaussian`]; [`DEFAULT_SIGMA`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_nms_sigma: Option<f32>,
    /// Whether boxes of different classes suppress each other.
    #[serde(default, skip_serializing_if = "is_default")]
    pub class_agnostic_nms: bool,
    /// Smallest width and height of a box, in pixels of the network input.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_box_size: f32,
}

/// What is done about boxes that overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NmsMethod {
    /// The weaker of two whose `IoU` is above the threshold is dropped.
    #[default]
    Greedy,
    /// Its score is multiplied by `1 - IoU` (Bodla et al., arXiv 1704.04503, equation 2).
    SoftLinear,
    /// Every other score is multiplied by `exp(-IoU^2 / sigma)` (equation 3).
    SoftGaussian,
}

/// Width of the Gaussian in the paper's experiments (arXiv 1704.04503, section 5).
pub const DEFAULT_SIGMA: f32 = 0.5;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl PostprocessSpec {
    /// Width of the Gaussian.
    #[must_use]
    pub fn sigma(&self) -> f32 {
        self.soft_nms_sigma.unwrap_or(DEFAULT_SIGMA)
    }
}

impl Default for PostprocessSpec {
    /// The paper's values (section 4, "Inference"), 100 detections as COCO counts them.
    fn default() -> Self {
        Self {
            score_threshold: 0.05,
            topk_candidates_per_level: 1000,
            nms_iou_threshold: 0.5,
            max_detections: 100,
            display_threshold: Vec::new(),
            classes: Vec::new(),
            nms: NmsMethod::Greedy,
            soft_nms_sigma: None,
            class_agnostic_nms: false,
            min_box_size: 0.0,
        }
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not TOML, or not of this layout; the message names line and key.
    #[error("{0}")]
    Syntax(String),
    /// A key with a value that cannot be.
    #[error("key `{key}` is {found}, expected {expected}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// What it says.
        found: String,
        /// What it must be.
        expected: String,
    },
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] naming the key, its value and what is expected.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as TOML.
    ///
    /// # Panics
    /// Never: every manifest can be written.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a manifest is plain data")
    }

    /// Number of classes K.
    #[must_use]
    pub const fn n_classes(&self) -> usize {
        self.classes.len()
    }

    /// Strides of the levels, from the finest.
    #[must_use]
    pub fn strides(&self) -> Vec<usize> {
        self.levels.iter().map(|level| level.stride).collect()
    }

    /// Columns and rows of each feature map: input size over stride, rounded up (3x3 stride-2 layers with padding 1).
    #[must_use]
    pub fn grids(&self) -> Vec<(usize, usize)> {
        let grid = |level: &LevelSpec| (self.input.width.div_ceil(level.stride), self.input.height.div_ceil(level.stride));
        self.levels.iter().map(grid).collect()
    }

    /// Threshold of class `class_idx` for what is shown.
    #[must_use]
    pub fn display_threshold(&self, class_idx: usize) -> f32 {
        self.postprocess.display_threshold.get(class_idx).copied().unwrap_or(self.postprocess.score_threshold)
    }

    /// Checks the manifest against itself.
    ///
    /// # Errors
    /// [`ManifestError::Value`] for the first key that cannot be.
    pub fn check(&self) -> Result<(), ManifestError> {
        let value = |key: &str, found: String, expected: &str| -> Result<(), ManifestError> {
            Err(ManifestError::Value { key: key.into(), found, expected: expected.into() })
        };
        if self.schema != MANIFEST_SCHEMA {
            return value("schema", self.schema.to_string(), "1");
        }
        if self.input.preprocess != PREPROCESS_VERSION {
            return value("input.preprocess", self.input.preprocess.to_string(), "1, the version this program implements");
        }
        for (key, side) in [("input.width", self.input.width), ("input.height", self.input.height)] {
            if !(32..=4096).contains(&side) {
                return value(key, side.to_string(), "32 to 4096 pixels");
            }
        }
        if self.input.std.iter().any(|std| !(std.is_finite() && *std > 0.0))
            || self.input.mean.iter().any(|mean| !mean.is_finite())
        {
            return value("input.std", format!("{:?}, mean {:?}", self.input.std, self.input.mean), "finite, std above 0");
        }
        if self.network.file.is_empty() || self.network.file.contains(['/', '\\']) {
            return value("network.file", format!("{:?}", self.network.file), "a file name in the manifest's folder");
        }
        if self.levels.is_empty() || self.levels.len() > 8 {
            return value("levels", format!("{} entries", self.levels.len()), "1 to 8 entries");
        }
        if self.levels.iter().any(|level| level.stride == 0 || level.stride > 1024) {
            return value("levels.stride", format!("{:?}", self.strides()), "1 to 1024 pixels");
        }
        self.check_anchors()?;
        if self.classes.is_empty() || self.classes.len() > 1000 {
            return value("classes", format!("{} names", self.classes.len()), "1 to 1000 names");
        }
        let per_cell = self.anchors.n_per_cell() * self.n_classes();
        if let Some((w, h)) = self.grids().into_iter().find(|(w, h)| w * h * per_cell > MAX_LOGITS) {
            let found = format!("a level of {w}x{h} cells, {per_cell} logits a cell");
            return value("levels", found, "at most 2147483648 logits on a level");
        }
        self.check_postprocess()?;
        Ok(())
    }

    fn check_postprocess(&self) -> Result<(), ManifestError> {
        let value = |key: &str, found: String, expected: &str| -> Result<(), ManifestError> {
            Err(ManifestError::Value { key: key.into(), found, expected: expected.into() })
        };
        let post = &self.postprocess;
        for (key, threshold) in [("score_threshold", post.score_threshold), ("nms_iou_threshold", post.nms_iou_threshold)] {
            if !(0.0..=1.0).contains(&threshold) {
                return value(&format!("postprocess.{key}"), threshold.to_string(), "0 to 1");
            }
        }
        if post.topk_candidates_per_level == 0 || post.topk_candidates_per_level > 100_000 {
            return value("postprocess.topk_candidates_per_level", post.topk_candidates_per_level.to_string(), "1 to 100000");
        }
        if post.max_detections == 0 || post.max_detections > 100_000 {
            return value("postprocess.max_detections", post.max_detections.to_string(), "1 to 100000");
        }
        let shown = &post.display_threshold;
        // What is shown is some of what is evaluated.
        let is_shown = |threshold: &f32| (post.score_threshold..=1.0).contains(threshold);
        if !(shown.is_empty() || shown.len() == self.classes.len()) || !shown.iter().all(is_shown) {
            let expected = "one value from score_threshold to 1 for each class, or none";
            return value("postprocess.display_threshold", format!("{shown:?}"), expected);
        }
        if let Some(name) = post.classes.iter().find(|name| !self.classes.contains(name)) {
            return value("postprocess.classes", format!("{name:?}"), &format!("some of {:?}", self.classes));
        }
        if let Some(sigma) = post.soft_nms_sigma {
            if post.nms != NmsMethod::SoftGaussian {
                return value("postprocess.soft_nms_sigma", sigma.to_string(), "nothing unless nms is \"soft_gaussian\"");
            }
            if !(sigma > 0.0 && sigma <= 100.0) {
                return value("postprocess.soft_nms_sigma", sigma.to_string(), "above 0, at most 100");
            }
        }
        if !(0.0..=4096.0).contains(&post.min_box_size) {
            return value("postprocess.min_box_size", post.min_box_size.to_string(), "0 to 4096 pixels");
        }
        Ok(())
    }

    fn check_anchors(&self) -> Result<(), ManifestError> {
        let anchors = &self.anchors;
        let value =
            |key: &str, found: String, expected: String| ManifestError::Value { key: format!("anchors.{key}"), found, expected };
        if anchors.base_sizes.len() != self.levels.len() {
            return Err(value(
                "base_sizes",
                format!("{} values", anchors.base_sizes.len()),
                format!("{}, one a level", self.levels.len()),
            ));
        }
        for (key, values) in
            [("base_sizes", &anchors.base_sizes), ("scales", &anchors.scales), ("aspect_ratios", &anchors.aspect_ratios)]
        {
            if values.is_empty() || values.len() > 32 || values.iter().any(|v| !(v.is_finite() && *v > 0.0 && *v < 1e6)) {
                return Err(value(key, format!("{values:?}"), "1 to 32 values above 0 and below 1000000".into()));
            }
        }
        if !(0.0..=1.0).contains(&anchors.center_offset) {
            return Err(value("center_offset", anchors.center_offset.to_string(), "0 to 1 strides".into()));
        }
        Ok(())
    }
}
