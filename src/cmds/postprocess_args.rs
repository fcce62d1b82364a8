//! Which objects are reported: options that `run`, `detect`, `bench` and `eval` share.

use fovea::postprocess::PostprocessOptions;
use fovea::retinanet::NmsMethod;

/// Where `--help` lists these options.
const HEADING: &str = "Which objects [default: as the model's manifest says]";

/// What is asked of postprocessing instead of what the model's manifest says.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct PostprocessArgs {
    /// Score above which objects are reported, for every class.
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = score)]
    score_threshold: Option<f32>,
    /// The same for single classes: `person=0.5,car=0.3`.
    #[arg(long, help_heading = HEADING, value_name = "NAME=X", value_parser = class_threshold, value_delimiter = ',')]
    class_threshold: Vec<(String, f32)>,
    /// Report these classes only: `person,car`.
    #[arg(long, help_heading = HEADING, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,
    /// What is done about boxes that overlap: drop the weaker one, or lower its score (Soft-NMS).
    #[arg(long, help_heading = HEADING, value_name = "METHOD")]
    nms: Option<NmsArg>,
    /// Overlap (intersection over union) above which two boxes count as one object.
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = score)]
    nms_iou_threshold: Option<f32>,
    /// Width of the Gaussian of --nms soft-gaussian.
    #[arg(long, help_heading = HEADING, value_name = "X")]
    soft_nms_sigma: Option<f32>,
    /// Let boxes of different classes suppress each other.
    #[arg(long, help_heading = HEADING)]
    class_agnostic_nms: bool,
    /// Objects of a picture at most: the best ones.
    #[arg(long, help_heading = HEADING, value_name = "N")]
    max_detections: Option<usize>,
    /// Leave out boxes that are narrower or lower, in pixels of the network's input.
    #[arg(long, help_heading = HEADING, value_name = "PIXELS")]
    min_box_size: Option<f32>,
}

/// `--nms`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NmsArg {
    /// The weaker of two is dropped.
    Greedy,
    /// Its score is multiplied by 1 - overlap.
    SoftLinear,
    /// Its score is multiplied by a Gaussian of the overlap.
    SoftGaussian,
}

impl PostprocessArgs {
    /// The options: these where they say something, else those of `file`.
    pub(super) fn over(self, file: PostprocessOptions) -> PostprocessOptions {
        PostprocessOptions {
            score_threshold: self.score_threshold.or(file.score_threshold),
            class_thresholds: if self.class_threshold.is_empty() { file.class_thresholds } else { self.class_threshold },
            classes: if self.classes.is_empty() { file.classes } else { names(&self.classes) },
            nms: self.nms.map(NmsMethod::from).or(file.nms),
            nms_iou_threshold: self.nms_iou_threshold.or(file.nms_iou_threshold),
            soft_nms_sigma: self.soft_nms_sigma.or(file.soft_nms_sigma),
            class_agnostic_nms: self.class_agnostic_nms.then_some(true).or(file.class_agnostic_nms),
            max_detections: self.max_detections.or(file.max_detections),
            min_box_size: self.min_box_size.or(file.min_box_size),
        }
    }
}

impl From<NmsArg> for NmsMethod {
    fn from(arg: NmsArg) -> Self {
        match arg {
            NmsArg::Greedy => Self::Greedy,
            NmsArg::SoftLinear => Self::SoftLinear,
            NmsArg::SoftGaussian => Self::SoftGaussian,
        }
    }
}

/// As they are written behind commas.
fn names(written: &[String]) -> Vec<String> {
    written.iter().map(|name| name.trim().to_owned()).collect()
}

fn score(text: &str) -> Result<f32, String> {
    let score = text.parse::<f32>().ok().filter(|score| (0.0..=1.0).contains(score));
    score.ok_or_else(|| "expected 0 to 1".to_owned())
}

fn class_threshold(text: &str) -> Result<(String, f32), String> {
    let (name, threshold) = text.rsplit_once('=').ok_or("expected a class and a score: person=0.5")?;
    Ok((name.trim().to_owned(), score(threshold.trim())?))
}
