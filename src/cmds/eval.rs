//! `fovea eval`: COCO metrics of a model on a labelled data set.

use super::Failure;
use super::output::{ResultFile, keep_apart, model_files, write_report};
use super::postprocess_args::PostprocessArgs;
use super::view_args::ViewArgs;
use fovea::eval::{Counts, EvalReport};
use fovea::frame::View;
use fovea::images::{Degradation, ImageError};
use fovea::pipeline::clock::Stopwatch;
use fovea::pipeline::evaluate::{EvaluateError, EvaluateOptions, evaluate};
use fovea::pipeline::ports::DetectError;
use fovea::postprocess::PostprocessOptions;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `fovea eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  fovea eval --model models/default --data data/val --json eval.json

The data set is a folder with annotations.json (COCO format) and the folder images. Classes are matched by name; a class \
that is not in a picture's `exhaustive_category_ids` is skipped there. Scores are taken from the manifest's score_threshold \
on, unless an option says otherwise. What is labelled outside of --roi counts as missed. Found, missed and false are counted \
at IoU 0.5 above each class's display_threshold, as a user sees it.")]
pub(crate) struct Args {
    /// Model folder: manifest.toml and the network that it names.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Data set folder: annotations.json and images/.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Write the result as JSON (`-` = stdout).
    #[arg(long, value_name = "FILE", value_parser = super::output::output_path())]
    json: Option<PathBuf>,
    /// Only the first N pictures.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Pictures at a time; 0: as many as there are processors.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::run::threads)]
    threads: usize,
    /// Accept a network that runs in float.
    #[arg(long)]
    allow_float: bool,
    /// Make every picture worse first: night, blur, rain, jpeg30 or half (docs/training.md has the formulas).
    #[arg(long, value_name = "KIND", value_parser = degradation)]
    degrade: Option<Degradation>,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    postprocess: PostprocessArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut read = model_files(&self.model);
        read.push(self.data.join("annotations.json"));
        keep_apart(read.iter().map(PathBuf::as_path), self.json.as_deref()).map_err(Failure::request)?;
        let json = self.json.as_deref().map(ResultFile::open).transpose()?;
        let options = EvaluateOptions {
            threads: self.threads,
            limit: self.limit.map(|limit| limit as usize),
            allow_float: self.allow_float,
            degrade: self.degrade,
            view: self.view.over(View::default()),
            postprocess: self.postprocess.over(PostprocessOptions::default()),
        };
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left") {
            bar.set_style(style);
        }
        let mut stopwatch = Stopwatch::start();
        let progress = |n_done: usize, n_all: usize| {
            bar.set_length(u64::try_from(n_all).unwrap_or(u64::MAX));
            bar.set_position(u64::try_from(n_done).unwrap_or(u64::MAX));
        };
        let evaluation = evaluate(&self.model, &self.data, &options, &progress).map_err(failure)?;
        bar.finish_and_clear();
        for (classes, whose) in [(&evaluation.unknown_to_model, "data set"), (&evaluation.unknown_to_data, "model")] {
            if !classes.is_empty() {
                say!("left out, only the {whose} has them: {}", classes.join(", "));
            }
        }
        if !evaluation.not_looked_for.is_empty() {
            say!("left out, not looked for: {}", evaluation.not_looked_for.join(", "));
        }
        let metrics = evaluation.evaluator.summarize();
        let of_class = evaluation.evaluator.outcomes().into_iter().zip(&evaluation.display_thresholds);
        let counts = of_class.map(|(class, &threshold)| class.counts(threshold));
        let at_display = metrics.per_class.iter().map(|(name, _)| name.clone()).zip(counts).collect();
        let report = Report { metrics, at_display };
        say!("{} pictures in {:.1} s", report.metrics.images, stopwatch.lap().as_secs_f64());
        write_report(json, &report, &report.table())
    }
}

/// The result: average precision, and what a user sees.
#[derive(Debug, serde::Serialize)]
struct Report {
    #[serde(flatten)]
    metrics: EvalReport,
    /// By class, in the order of `metrics.per_class`.
    #[serde(serialize_with = "as_map")]
    at_display: Vec<(String, Counts)>,
}

fn as_map<S: serde::Serializer>(classes: &[(String, Counts)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(classes.iter().map(|(name, counts)| (name, counts)))
}

fn degradation(name: &str) -> Result<Degradation, String> {
    let names = Degradation::ALL.map(|(name, _)| name);
    let found = Degradation::ALL.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| kind).ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

/// What cannot be opened is a wrong request; what is damaged or breaks on the way is a failure.
fn failure(error: EvaluateError) -> Failure {
    match error {
        EvaluateError::Detect { source: DetectError::Region(_), .. } => Failure::request(error),
        EvaluateError::Image(ImageError::Decode { .. })
        | EvaluateError::Size { .. }
        | EvaluateError::Detect { .. }
        | EvaluateError::Eval(_) => Failure::failed(error),
        _ => Failure::request(error),
    }
}

impl Report {
    /// The result for people.
    fn table(&self) -> String {
        const ALL: &str = "all classes";
        let metrics = &self.metrics;
        let percent = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{:.2}", 100.0 * value));
        let width = self.at_display.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(ALL.len());
        let mut text = format!("{:width$}      AP    AP50   boxes   found  missed   false  shown above\n", "");
        let mut line = |name: &str, aps: [Option<f64>; 2], [boxes, found, missed, wrong]: [usize; 4], from: &str| {
            let [ap, ap50] = aps.map(percent);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:width$} {ap:>7} {ap50:>7} {boxes:>7} {found:>7} {missed:>7} {wrong:>7}  {from:>10}");
        };
        let mut sums = [0; 4];
        for ((name, class), (_, counts)) in metrics.per_class.iter().zip(&self.at_display) {
            let numbers = [class.boxes, counts.found, counts.missed, counts.false_positives];
            line(name, [class.ap, class.ap50], numbers, &format!("{:.3}", counts.score_threshold));
            sums = std::array::from_fn(|i| sums[i] + numbers[i]);
        }
        line(ALL, [metrics.ap, metrics.ap50], sums, "");
        let [ap75, small, medium, large] = [metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large].map(percent);
        text + &format!("AP75 {ap75}, small {small}, medium {medium}, large {large}\n")
    }
}
