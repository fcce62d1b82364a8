//! What a model's manifest and the user say about postprocessing, put together and checked once.

use crate::kernels::postprocess::IouLimit;
use crate::retinanet::{Manifest, NmsMethod};
use std::fmt;

/// What a user may ask for instead of what the manifest says. Keys of `[model]` in a pipeline file and options of the commands
/// have the same names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PostprocessOptions {
    /// Score threshold for every class, instead of the manifest's `display_threshold`.
    pub score_threshold: Option<f32>,
    /// Score thresholds of single classes, by name.
    pub class_thresholds: Vec<(String, f32)>,
    /// Names of the only classes that are looked for; the manifest's if empty.
    pub classes: Vec<String>,
    /// What is done about boxes that overlap.
    pub nms: Option<NmsMethod>,
    /// `IoU` above which two boxes are one object.
    pub nms_iou_threshold: Option<f32>,
    /// Width of the Gaussian of [`NmsMethod::SoftGaussian`].
    pub soft_nms_sigma: Option<f32>,
    /// Whether boxes of different classes suppress each other.
    pub class_agnostic_nms: Option<bool>,
    /// Detections kept per picture.
    pub max_detections: Option<usize>,
    /// Smallest width and height of a box, in pixels of the network input.
    pub min_box_size: Option<f32>,
}

/// An option as it is called: on the command line and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionName(&'static str);

impl fmt::Display for OptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = if self.0 == "class_thresholds" { "class-threshold".to_owned() } else { self.0.replace('_', "-") };
        write!(f, "--{flag} (model.{} in a pipeline file)", self.0)
    }
}

/// Options that do not fit the model or each other.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// A class that the model does not have.
    #[error("{option} names `{name}`, which is not a class of the model; name some of: {}", known.join(", "))]
    UnknownClass {
        /// The option.
        option: OptionName,
        /// What it names.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A value out of range.
    #[error("{option} is {found}, expected {expected}")]
    Value {
        /// The option.
        option: OptionName,
        /// What it says.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Options that contradict each other.
    #[error("{option} is {found}, but {but}; {remedy}")]
    Contradiction {
        /// The option.
        option: OptionName,
        /// What it says.
        found: String,
        /// What else is said.
        but: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// How boxes that overlap are dealt with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Method {
    Greedy(IouLimit),
    SoftLinear { iou_threshold: f32 },
    SoftGaussian { sigma: f32 },
}

/// The rules of one model: complete, and consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Score threshold of each class; infinite for a class that is not looked for.
    pub(super) thresholds: Vec<f32>,
    pub(super) topk_candidates_per_level: usize,
    pub(super) max_detections: usize,
    pub(super) method: Method,
    pub(super) is_class_agnostic: bool,
    pub(super) min_box_size: f32,
}

impl Rules {
    /// As the manifest says, with its `score_threshold` for every class.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        let spec = &manifest.postprocess;
        let is_kept = |class: &String| spec.classes.is_empty() || spec.classes.contains(class);
        let threshold = |class| if is_kept(class) { spec.score_threshold } else { f32::INFINITY };
        Self {
            thresholds: manifest.classes.iter().map(threshold).collect(),
            topk_candidates_per_level: spec.topk_candidates_per_level,
            max_detections: spec.max_detections,
            method: method(spec.nms, spec.nms_iou_threshold, spec.sigma()),
            is_class_agnostic: spec.class_agnostic_nms,
            min_box_size: spec.min_box_size,
        }
    }

    /// As the manifest says, with its `display_threshold`, except for what the options say.
    ///
    /// # Errors
    /// [`OptionError`] naming the option, what it says and what to do.
    pub fn with_options(manifest: &Manifest, options: &PostprocessOptions) -> Result<Self, OptionError> {
        options.check()?;
        let spec = &manifest.postprocess;
        let unknown = |option: &'static str, name: &String| OptionError::UnknownClass {
            option: OptionName(option),
            name: name.clone(),
            known: manifest.classes.clone(),
        };
        if let Some(name) = options.classes.iter().find(|name| !manifest.classes.contains(name)) {
            return Err(unknown("classes", name));
        }
        let kept = if options.classes.is_empty() { &spec.classes } else { &options.classes };
        let is_kept = |class: &String| kept.is_empty() || kept.contains(class);
        let shown = |idx: usize| options.score_threshold.unwrap_or_else(|| manifest.display_threshold(idx));
        let mut thresholds: Vec<f32> = (0..manifest.n_classes()).map(shown).collect();
        for (name, threshold) in &options.class_thresholds {
            if !manifest.classes.contains(name) {
                return Err(unknown("class_thresholds", name));
            }
            // Several outputs may have one name.
            let is_named = |(_, class): &(&mut f32, &String)| *class == name;
            thresholds.iter_mut().zip(&manifest.classes).filter(is_named).for_each(|(shown, _)| *shown = *threshold);
            if !is_kept(name) {
                return Err(OptionError::Contradiction {
                    option: OptionName("class_thresholds"),
                    found: format!("{threshold} for `{name}`"),
                    but: format!("only {} are looked for", kept.join(", ")),
                    remedy: "add the class to --classes, or leave its threshold out",
                });
            }
        }
        for (threshold, class) in thresholds.iter_mut().zip(&manifest.classes) {
            if !is_kept(class) {
                *threshold = f32::INFINITY;
            }
        }
        let nms = options.nms.unwrap_or(spec.nms);
        let contradiction = |option, found: f32, but: &str, remedy| {
            let (option, found, but) = (OptionName(option), found.to_string(), but.to_owned());
            Err(OptionError::Contradiction { option, found, but, remedy })
        };
        if let Some(sigma) = options.soft_nms_sigma
            && nms != NmsMethod::SoftGaussian
        {
            let remedy = "take --nms soft-gaussian, or leave the width out";
            return contradiction("soft_nms_sigma", sigma, "only soft-gaussian suppression has a width", remedy);
        }
        if let Some(threshold) = options.nms_iou_threshold
            && nms == NmsMethod::SoftGaussian
        {
            let remedy = "set --soft-nms-sigma, or leave the threshold out";
            return contradiction("nms_iou_threshold", threshold, "soft-gaussian suppression has no threshold", remedy);
        }
        let iou_threshold = options.nms_iou_threshold.unwrap_or(spec.nms_iou_threshold);
        Ok(Self {
            thresholds,
            topk_candidates_per_level: spec.topk_candidates_per_level,
            max_detections: options.max_detections.unwrap_or(spec.max_detections),
            method: method(nms, iou_threshold, options.soft_nms_sigma.unwrap_or_else(|| spec.sigma())),
            is_class_agnostic: options.class_agnostic_nms.unwrap_or(spec.class_agnostic_nms),
            min_box_size: options.min_box_size.unwrap_or(spec.min_box_size),
        })
    }
}

impl PostprocessOptions {
    /// Checks what does not depend on a model.
    ///
    /// # Errors
    /// [`OptionError`] naming the option, what it says and what it must be.
    pub fn check(&self) -> Result<(), OptionError> {
        let value = |option, found: String, expected| Err(OptionError::Value { option: OptionName(option), found, expected });
        for (option, threshold) in [("score_threshold", self.score_threshold), ("nms_iou_threshold", self.nms_iou_threshold)] {
            if let Some(threshold) = threshold.filter(|threshold| !(0.0..=1.0).contains(threshold)) {
                return value(option, threshold.to_string(), "0 to 1");
            }
        }
        for (idx, (name, threshold)) in self.class_thresholds.iter().enumerate() {
            if !(0.0..=1.0).contains(threshold) {
                return value("class_thresholds", format!("{threshold} for `{name}`"), "0 to 1");
            }
            if self.class_thresholds[..idx].iter().any(|(other, _)| other == name) {
                return value("class_thresholds", format!("given twice for `{name}`"), "one value for a class");
            }
        }
        if let Some(sigma) = self.soft_nms_sigma.filter(|sigma| !(*sigma > 0.0 && *sigma <= 100.0)) {
            return value("soft_nms_sigma", sigma.to_string(), "above 0, at most 100");
        }
        if let Some(n) = self.max_detections.filter(|n| !(1..=100_000).contains(n)) {
            return value("max_detections", n.to_string(), "1 to 100000");
        }
        if let Some(size) = self.min_box_size.filter(|size| !(0.0..=4096.0).contains(size)) {
            return value("min_box_size", size.to_string(), "0 to 4096 pixels");
        }
        Ok(())
    }
}

fn method(nms: NmsMethod, iou_threshold: f32, sigma: f32) -> Method {
    match nms {
        NmsMethod::Greedy => Method::Greedy(IouLimit::new(iou_threshold)),
        NmsMethod::SoftLinear => Method::SoftLinear { iou_threshold },
        NmsMethod::SoftGaussian => Method::SoftGaussian { sigma },
    }
}
