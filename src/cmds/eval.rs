//! `fovea eval`: COCO metrics of a model on a labelled data set.

use super::Failure;
use super::output::{ResultFile, write_report};
use super::postprocess_args::PostprocessArgs;
use super::view_args::ViewArgs;
use fovea::eval::EvalReport;
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

The data set is a folder with annotations.json (COCO format) and the folder images. Classes are matched by name; a class
that is not in a picture's `exhaustive_category_ids` is skipped there. Scores are taken from the manifest's score_threshold
on, unless an option says otherwise. What is labelled outside of --roi counts as missed.")]
pub(crate) struct Args {
    /// Model folder: manifest.toml and the network that it names.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Data set folder: annotations.json and images/.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Write the result as JSON (`-` = stdout).
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only the first N pictures.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Pictures at a time; 0: as many as there are processors.
    #[arg(long, value_name = "N", default_value_t = 0)]
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
        let json = self.json.as_deref().map(ResultFile::open).transpose()?;
        let options = EvaluateOptions {
            threads: self.threads,
            limit: self.limit,
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
                eprintln!("left out, only the {whose} has them: {}", classes.join(", "));
            }
        }
        let report = evaluation.evaluator.summarize();
        eprintln!("{} pictures in {:.1} s", report.images, stopwatch.lap().as_secs_f64());
        write_report(json, &report, &table(&report))
    }
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
        EvaluateError::Image(ImageError::Decode { .. }) | EvaluateError::Detect { .. } | EvaluateError::Eval(_) => {
            Failure::failed(error)
        }
        _ => Failure::request(error),
    }
}

/// The result for people.
fn table(report: &EvalReport) -> String {
    let percent = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{:.2}", 100.0 * value));
    let width = report.per_class.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("all classes".len());
    let mut text = String::new();
    let mut line = |name: &str, ap: Option<f64>, ap50: Option<f64>, boxes: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$} {:>7} {:>7} {boxes:>7}", percent(ap), percent(ap50));
    };
    for (name, class) in &report.per_class {
        line(name, class.ap, class.ap50, class.boxes.to_string());
    }
    line("all classes", report.ap, report.ap50, report.per_class.iter().map(|(_, class)| class.boxes).sum::<usize>().to_string());
    let head = format!("{:width$} {:>7} {:>7} {:>7}\n", "", "AP", "AP50", "boxes");
    let tail = format!(
        "AP75 {}, small {}, medium {}, large {}\n",
        percent(report.ap75),
        percent(report.ap_small),
        percent(report.ap_medium),
        percent(report.ap_large)
    );
    head + &text + &tail
}
