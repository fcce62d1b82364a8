//! `fovea bench`: the speed of the whole pipeline without a sink, or of a network alone.

use super::{Failure, run};
use fovea::pipeline::config::Draft;
use fovea::pipeline::detections::Output;
use fovea::pipeline::report::Report;
use fovea::pipeline::spec::{Pace, SourceSpec};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  fovea bench --source street.mp4 --model models/default
  fovea bench --source test://?frames=200 --seconds 20 --json -
  fovea bench --source rtsp://10.0.0.7/stream1 --pace live --seconds 60";

/// Arguments of `fovea bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where frames come from, as for `fovea run`.
    #[arg(long, value_name = "URI", required = true)]
    source: Option<String>,
    #[command(flatten)]
    model: run::ModelArgs,
    /// `max`: every frame, as fast as it goes; `live`: frames come at their own pace and the newest wins.
    #[arg(long, default_value = "max")]
    pace: run::PaceArg,
    /// Stop after so many seconds; default: at the end of the stream.
    #[arg(long, value_name = "N", value_parser = run::seconds)]
    seconds: Option<Duration>,
    /// Stop after so many frames went through the network.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_frames: Option<u64>,
    /// Write the report as JSON; `-` is standard output.
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let source = self.source.as_deref().unwrap_or_default();
        let mut draft = Draft {
            source: Some(SourceSpec::parse(source, Path::new("")).map_err(Failure::request)?),
            pace: Some(Pace::from(self.pace)),
            max_time: self.seconds,
            max_frames: self.max_frames,
            report: self.json.map(Output::new),
            ..Draft::default()
        };
        self.model.apply(&mut draft);
        let spec = draft.finish()?;
        let outcome = run::execute(&spec)?;
        run::summarise(&spec, &outcome);
        let written = match &spec.report {
            Some(output) => run::write_report(&outcome.report, output),
            None => print_table(&outcome.report).map_err(Failure::failed),
        };
        run::result_of(outcome)?;
        written
    }
}

/// The report for people.
fn print_table(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for stream in &report.streams {
        writeln!(out, "{:<12} {:>9} {:>9} {:>9} {:>9}", "ms", "p50", "p90", "p99", "max")?;
        for (stage, times) in &stream.latency_ms.0 {
            let name = stage.name();
            writeln!(out, "{name:<12} {:>9.2} {:>9.2} {:>9.2} {:>9.2}", times.p50, times.p90, times.p99, times.max)?;
        }
        writeln!(out, "{:<12} {:>9.2}", "fps", stream.fps.inferred)?;
    }
    if let (Some(per_frame), Some(rss)) = (report.cpu_ms_per_frame, report.peak_rss_bytes) {
        writeln!(out, "{:<12} {per_frame:>9.2} ms a frame; memory at most {} MB", "processor", rss / 1_000_000)?;
    }
    Ok(())
}
