//! `fovea bench`: the speed of the whole pipeline without a sink, or of a network alone.

use super::output::write_stdout;
use super::{Failure, bench_model, run};
use fovea::pipeline::config::Draft;
use fovea::pipeline::detections::Output;
use fovea::pipeline::metrics::Stage;
use fovea::pipeline::report::Report;
use fovea::pipeline::spec::{Pace, SourceSpec};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  fovea bench --source street.mp4 --model models/default
  fovea bench --source test://?frames=200 --seconds 20 --json -
  fovea bench --source rtsp://10.0.0.7/stream1 --pace live --seconds 60
  fovea bench --model-only models/default --threads 1 --seconds 5
  fovea bench --model-only network.onnx --native-io --json -

--model-only measures a network without pictures around it: on real values in and out ([C, H, W], as other runtimes take \
them), or on its own bytes with --native-io.";

/// How long a network alone is measured.
const DEFAULT_MODEL_TIME: Duration = Duration::from_secs(3);

/// Arguments of `fovea bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where frames come from, as for `fovea run`.
    #[arg(long, value_name = "URI", required_unless_present = "model_only")]
    source: Option<String>,
    /// Measure a network alone: a model folder, or a bare .onnx file.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["source", "pace", "max_frames", "model", "ViewArgs", "PostprocessArgs"])]
    model_only: Option<PathBuf>,
    /// With --model-only: bytes [H, W, C] in and quantised values out.
    #[arg(long)]
    native_io: bool,
    /// With --model-only: print {"ready":1}, then for every line `<seconds>` on stdin {"wall":ms,"cpu":ms,"n":count}.
    #[arg(long, conflicts_with_all = ["json", "seconds"])]
    worker: bool,
    /// With --model-only: print every layer instead of the slowest (--json always has all).
    #[arg(long)]
    layers: bool,
    /// With --model-only: run even a quantised network by the graph engine's own operators, for comparison.
    #[arg(long, conflicts_with = "native_io")]
    plain_engine: bool,
    #[command(flatten)]
    model: run::ModelArgs,
    /// `max`: every frame, as fast as it goes; `live`: frames come at their own pace and the newest wins.
    #[arg(long, default_value = "max")]
    pace: run::PaceArg,
    /// Stop after so many seconds; default: at the end of the stream, with --model-only 3.
    #[arg(long, value_name = "N", value_parser = run::seconds)]
    seconds: Option<Duration>,
    /// Stop after so many frames went through the network.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_frames: Option<u64>,
    /// Write the report as JSON; `-` is standard output.
    #[arg(long, value_name = "F", value_parser = super::output::output_path())]
    json: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(model) = self.model_only {
            return bench_model::run(&bench_model::ModelArgs {
                model,
                threads: self.model.threads.unwrap_or(0),
                seconds: self.seconds.unwrap_or(DEFAULT_MODEL_TIME),
                json: self.json,
                native_io: self.native_io,
                worker: self.worker,
                allow_float: self.model.allow_float,
                all_layers: self.layers,
                force_float: self.plain_engine,
            });
        }
        if self.native_io || self.worker || self.layers || self.plain_engine {
            return Err(Failure::request(anyhow::anyhow!(
                "--native-io, --worker, --layers and --plain-engine are about a network alone: name it with --model-only"
            )));
        }
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
        run::summarise(&outcome);
        let written = match &spec.report {
            Some(output) => run::write_report(&outcome.report, output),
            None => write_stdout(&table(&outcome.report, spec.detector.threads == 1)),
        };
        run::name_files(&spec, &outcome, written.is_ok());
        run::first_failure(run::result_of(outcome), written)
    }
}

/// The report for people.
fn table(report: &Report, is_one_thread: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for stream in &report.streams {
        let _ = writeln!(text, "{:<12} {:>9} {:>9} {:>9} {:>9} {:>6}", "ms", "p50", "p90", "p99", "max", "% CPU");
        for (stage, times) in &stream.latency_ms.0 {
            let name = stage.name();
            let _ = write!(text, "{name:<12} {:>9.2} {:>9.2} {:>9.2} {:>9.2}", times.p50, times.p90, times.p99, times.max);
            // Of what one thread does without waiting: the time that it takes is the processor's. Threads share the rows of
            // large pictures.
            let is_busy = matches!(stage, Stage::Postprocess | Stage::Overlay) || *stage == Stage::Preprocess && is_one_thread;
            let _ = match report.cpu_ms_per_frame.filter(|per_frame| is_busy && *per_frame > 0.0) {
                Some(per_frame) => writeln!(text, " {:>6.1}", 100.0 * times.p50 / per_frame),
                None => writeln!(text),
            };
        }
        let _ = writeln!(text, "{:<12} {:>9.2}", "fps", stream.fps.inferred);
    }
    if let (Some(per_frame), Some(rss)) = (report.cpu_ms_per_frame, report.peak_rss_bytes) {
        let _ = writeln!(text, "{:<12} {per_frame:>9.2} ms a frame; memory at most {} MB", "processor", rss / 1_000_000);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea::pipeline::ledger::Balance;
    use fovea::pipeline::metrics::Metrics;
    use fovea::pipeline::report::{Fps, Frames, Latencies, StreamReport};

    #[test]
    fn shares_are_of_the_processor_time_of_a_frame() {
        let mut metrics = Metrics::default();
        for (stage, micros) in [(Stage::Preprocess, 500), (Stage::Infer, 9000), (Stage::Postprocess, 40), (Stage::Sink, 7000)] {
            metrics.record(stage, Duration::from_micros(micros));
        }
        let balance = Balance::default();
        let report = Report {
            pace: Pace::Max,
            streams: vec![StreamReport {
                name: "street".into(),
                source: "street.mp4".into(),
                reconnects: 0,
                frames: Frames::from(&balance),
                fps: Fps::new(&balance, Duration::from_secs(1)),
                latency_ms: Latencies::new(&metrics),
            }],
            wall_seconds: 1.0,
            cpu_seconds: Some(1.0),
            cpu_ms_per_frame: Some(10.0),
            rss_bytes: None,
            peak_rss_bytes: Some(70_000_000),
            ended: "end_of_stream".into(),
            error: None,
        };
        let text = table(&report, true);
        let last = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().skip(5).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((last("preprocess"), last("postprocess")), (vec!["5.0".to_owned()], vec!["0.4".to_owned()]), "{text}");
        assert!(last("infer").is_empty() && last("sink").is_empty(), "{text}");
        assert!(text.contains("10.00 ms a frame; memory at most 70 MB"), "{text}");
    }
}
