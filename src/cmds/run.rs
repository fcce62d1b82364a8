//! `fovea run`: a stream from its source through the network to an annotated video.

use super::Failure;
use super::output::{ResultFile, keep_apart, model_files};
use super::postprocess_args::PostprocessArgs;
use super::view_args::ViewArgs;
use anyhow::anyhow;
use fovea::pipeline::config::{ConfigError, Draft, MAX_THREADS, PipelineSpec, read_seconds};
use fovea::pipeline::detections::{DetectionsWriter, Output, probe_writable};
use fovea::pipeline::detector::{Detector, DetectorOptions};
use fovea::pipeline::interrupt::on_interrupt;
use fovea::pipeline::metrics::Stage;
use fovea::pipeline::ports::FrameSink;
use fovea::pipeline::probe;
use fovea::pipeline::report::Report;
use fovea::pipeline::runner::{self, Annotate, NoSink, Outcome, Progress, RunOptions, StopSignal, Stream};
use fovea::pipeline::spec::{Pace, SinkSpec, SourceKind, SourceSpec};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  fovea run --source street.mp4 --sink annotated.mp4 --detections boxes.jsonl
  fovea run pipelines/usb-camera.toml --sink display
  fovea run --source rtsp://user:password@10.0.0.7/stream1 --detections -
  fovea run --source v4l2:///dev/video0 --sink display --roi 0,0.5,1.0,0.5 --rotate 180

The command line overrides the pipeline file. Paths in a pipeline file are relative to its folder. \
Ctrl-C finalises the video, the detections and the report; a second Ctrl-C leaves at once.";

/// The model that is used when none is named.
const DEFAULT_MODEL: &str = "models/default";

/// Arguments of `fovea run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Pipeline file; `pipelines/` holds one for each use.
    pipeline: Option<PathBuf>,
    /// Video file, folder of pictures, `rtsp://…`, `rtmp://…`, `http://…`, `udp://…`, `srt://…`, `v4l2:///dev/video0`,
    /// `libcamera://`, `csi://0`, `test://`, `launch:ELEMENTS`.
    #[arg(long, value_name = "URI")]
    source: Option<String>,
    /// File ending in .mp4 or .mkv, `rtsp://…` of a server that takes streams, `display`, or `none`.
    #[arg(long, value_name = "URI")]
    sink: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// `max`: every frame, the source waits (default for files); `live`: the newest frame wins (default for cameras and network streams but http).
    #[arg(long)]
    pace: Option<PaceArg>,
    /// For how long a live source that was lost is tried again, 0: not at all [default: 60 for network streams but http, else 0].
    /// Where it is given, a network stream that does not answer, or a USB camera that is not there, is waited for at the start too.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    reconnect: Option<u64>,
    /// Stop after so many frames went through the network.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_frames: Option<u64>,
    /// Stop after so many seconds, counted from the start of the stream.
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Write detections as JSON lines, one a frame; `-` is standard output.
    #[arg(long, value_name = "F.jsonl", value_parser = super::output::output_path())]
    detections: Option<PathBuf>,
    /// Write the report as JSON; `-` is standard output.
    #[arg(long, value_name = "F.json", value_parser = super::output::output_path())]
    report: Option<PathBuf>,
}

/// The model and how it is opened.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ModelArgs {
    /// Model folder [default: models/default].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Threads of the network; 0: as many as there are processors [default: 0].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(super) threads: Option<usize>,
    /// Accept a network that runs in float.
    #[arg(long)]
    pub(super) allow_float: bool,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    postprocess: PostprocessArgs,
}

impl ModelArgs {
    /// Overrides what a pipeline file says.
    pub(super) fn apply(self, draft: &mut Draft) {
        let DetectorOptions { threads, view, postprocess, allow_float } = std::mem::take(&mut draft.detector);
        draft.detector = DetectorOptions {
            threads: self.threads.unwrap_or(threads),
            view: self.view.over(view),
            postprocess: self.postprocess.over(postprocess),
            allow_float: self.allow_float || allow_float,
        };
        draft.model_dir = self.model.or(draft.model_dir.take());
    }
}

/// `--pace`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum PaceArg {
    /// Every frame is inferred; the source waits.
    Max,
    /// Frames come at their own pace and the newest wins.
    Live,
}

impl From<PaceArg> for Pace {
    fn from(pace: PaceArg) -> Self {
        match pace {
            PaceArg::Max => Self::Max,
            PaceArg::Live => Self::Live,
        }
    }
}

/// A number of threads, as `model.threads` of a pipeline file.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&threads| threads <= MAX_THREADS).ok_or_else(|| format!("0 to {MAX_THREADS}"))
}

/// A number of seconds above 0.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().ok().and_then(read_seconds).ok_or_else(|| "a number of seconds above 0".to_owned())
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(path) = self.pipeline.as_deref().filter(|path| is_video(path)) {
            let path = path.display();
            return Err(Failure::request(anyhow!("{path} is no pipeline file; a video goes behind --source: --source {path}")));
        }
        let mut draft = self.pipeline.as_deref().map(Draft::read).transpose().map_err(Failure::request)?.unwrap_or_default();
        let here = Path::new("");
        if let Some(uri) = &self.source {
            draft.replace_source(SourceSpec::parse(uri, here).map_err(Failure::request)?);
        }
        if let Some(uri) = &self.sink {
            draft.sink = Some(SinkSpec::parse(uri, here).map_err(Failure::request)?);
        }
        if let (Some(seconds), Some(source)) = (self.reconnect, &mut draft.source) {
            source.reconnect = Some(Duration::from_secs(seconds));
        }
        self.model.apply(&mut draft);
        draft.pace = self.pace.map(Pace::from).or(draft.pace);
        draft.max_frames = self.max_frames.or(draft.max_frames);
        draft.max_time = self.seconds.or(draft.max_time);
        draft.detections = self.detections.map(Output::new).or(draft.detections);
        draft.report = self.report.map(Output::new).or(draft.report);
        let spec = draft.finish().map_err(Failure::request)?;
        keep_apart(self.pipeline.as_deref(), output_files(&spec)).map_err(Failure::request)?;

        let report_file = spec.report.clone();
        let outcome = execute(&spec)?;
        let written = report_file.map_or(Ok(()), |output| write_report(&outcome.report, &output));
        summarise(&outcome);
        name_files(&spec, &outcome, written.is_ok());
        first_failure(result_of(outcome), written)
    }
}

/// Runs a pipeline with progress on stderr and Ctrl-C handled.
pub(super) fn execute(spec: &PipelineSpec) -> Result<Outcome, Failure> {
    wait_for_camera(&spec.source)?;
    probe::source(&spec.source).map_err(Failure::request)?;
    keep_files_apart(spec).map_err(Failure::request)?;
    if spec.source.reconnect.is_some_and(|limit| !limit.is_zero()) && !spec.source.may_be_live() {
        say!(
            "{}: only live sources are tried again: cameras, and network streams but http; `reconnect` does nothing here",
            spec.source
        );
    }
    let model_dir = model_dir(spec.model_dir.as_deref())?;
    let detector = Detector::open(&model_dir, &spec.detector).map_err(Failure::request)?;
    for path in output_files(spec) {
        probe_output(path).map_err(Failure::request)?;
    }
    let source = super::media::open_source(&spec.source)?;
    let (sink, annotator) = open_sink(spec)?;
    let mut detections = spec.detections.clone().map(DetectionsWriter::new);
    if let (Some(writer), Some(output)) = (&mut detections, spec.detections.as_ref().filter(|output| output.is_pipe())) {
        // Before signals are caught: nothing is open yet, and one ends the program as usual.
        say!("{output} is a pipe: waiting until somebody reads it");
        writer.start().map_err(Failure::request)?;
    }
    let stream = Stream { source, detector: Box::new(detector), annotator, sink, detections };
    let options = RunOptions {
        name: spec.name.clone(),
        pace: spec.pace,
        queue_capacity: spec.queue_capacity,
        max_frame_age: spec.max_frame_age,
        max_frames: spec.max_frames,
        max_time: spec.max_time,
    };
    let stop = StopSignal::default();
    handle_signals(&stop)?;
    let mut reporter = Reporter::new(spec);
    let outcome = runner::run(stream, &options, &stop, &mut |progress| reporter.show(progress));
    reporter.finish();
    Ok(outcome)
}

/// How often a device is looked for that is not there yet.
const DEVICE_TICK: Duration = Duration::from_millis(500);

/// Waits for the device of a camera that is to be waited for: at boot it may come after this program. Nothing is open yet, so a
/// signal ends the program as usual.
fn wait_for_camera(spec: &SourceSpec) -> Result<(), Failure> {
    let Some((device, limit)) = spec.awaited_device().filter(|(device, _)| !device.exists()) else { return Ok(()) };
    say!("{}: not there yet; waiting for it for {} s", device.display(), limit.as_secs());
    let mut waited = Duration::ZERO;
    while waited < limit && !device.exists() {
        std::thread::sleep(DEVICE_TICK);
        waited += DEVICE_TICK;
    }
    if !device.exists() {
        // No wrong request: who starts the program may try again.
        let (device, limit) = (device.display(), limit.as_secs());
        return Err(Failure::failed(anyhow!(
            "{device}: not there after {limit} s; plug it in, and `ls /dev/video*` shows its name"
        )));
    }
    // Its group and rights are set a moment after it appears.
    std::thread::sleep(DEVICE_TICK);
    Ok(())
}

/// The first signal finalises files, the second leaves at once.
pub(super) fn handle_signals(stop: &StopSignal) -> Result<(), Failure> {
    let stop = stop.clone();
    let handler = move || {
        if stop.is_stopped() {
            std::process::exit(130);
        }
        stop.stop();
    };
    on_interrupt(handler).map_err(Failure::failed)
}

/// The folder of the model: the one that was named, or the default one.
pub(super) fn model_dir(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let dir = named.unwrap_or(Path::new(DEFAULT_MODEL));
    if dir.is_dir() {
        return Ok(dir.to_owned());
    }
    // Started from elsewhere: the program lies in target/release of the project, or one folder deeper.
    let program = if named.is_none() { std::env::current_exe().ok() } else { None };
    let above = program.iter().flat_map(|program| program.ancestors().skip(1).take(4));
    if let Some(dir) = above.map(|folder| folder.join(DEFAULT_MODEL)).find(|dir| dir.is_dir()) {
        return Ok(dir);
    }
    let shown = dir.display();
    Err(Failure::request(match named {
        Some(_) => anyhow!("{shown} is not a folder; a model is a folder with manifest.toml and the network that it names"),
        None => anyhow!("no model: {shown} is neither here nor beside the program; name a model folder with --model"),
    }))
}

/// Files that a pipeline writes.
pub(super) fn output_files(spec: &PipelineSpec) -> Vec<&Path> {
    let results = [&spec.detections, &spec.report].into_iter().flatten();
    let files = results.filter_map(|output| if let Output::File(path) = output { Some(path.as_path()) } else { None });
    let video = if let SinkSpec::File { path, .. } = &spec.sink { Some(path.as_path()) } else { None };
    video.into_iter().chain(files).collect()
}

/// Makes the folder of an output file if it is not there, and checks that the file can be written.
pub(super) fn probe_output(path: &Path) -> anyhow::Result<()> {
    let remedy = "name a file in a folder that you may write to";
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| anyhow!("cannot make the folder {}: {error}; {remedy}", folder.display()))?;
    }
    probe_writable(path).map_err(|error| anyhow!("cannot write {}: {error}; {remedy}", path.display()))
}

/// No output may overwrite the source or another output, or run into it.
pub(super) fn keep_files_apart(spec: &PipelineSpec) -> anyhow::Result<()> {
    if let (Some(Output::Stdout), Some(Output::Stdout)) = (&spec.detections, &spec.report) {
        return Err(anyhow!("detections and report would be mixed on standard output: write one of them to a file"));
    }
    if let (SourceKind::Url(source), SinkSpec::Stream(sink)) = (&spec.source.kind, &spec.sink)
        && source.without_credentials() == sink.without_credentials()
    {
        return Err(anyhow!("{sink} would take the place of the stream that is read: publish under another path"));
    }
    let mut read = match &spec.source.kind {
        SourceKind::File(path) => vec![path.clone()],
        // Of a text, what looks like a file that is read or written there.
        SourceKind::Launch(text) => {
            text.split_whitespace().filter_map(|word| word.strip_prefix("location=")).map(unquoted).collect()
        }
        _ => Vec::new(),
    };
    read.extend(model_dir(spec.model_dir.as_deref()).map(|dir| model_files(&dir)).unwrap_or_default());
    keep_apart(read.iter().map(PathBuf::as_path), output_files(spec))
}

fn unquoted(word: &str) -> PathBuf {
    PathBuf::from(word.trim_matches(['"', '\'']))
}

/// A sink, and what draws on its pictures.
pub(super) type Shown = (Box<dyn FrameSink>, Option<Box<dyn Annotate>>);

pub(super) fn open_sink(spec: &PipelineSpec) -> Result<Shown, Failure> {
    if spec.sink == SinkSpec::None {
        return Ok((Box::new(NoSink), None));
    }
    #[cfg(feature = "opencv")]
    {
        let annotator = runner::OverlayAnnotator::new(spec.frame_counter);
        Ok((super::media::open_sink(&spec.sink)?, Some(Box::new(annotator))))
    }
    #[cfg(not(feature = "opencv"))]
    {
        let sink = &spec.sink;
        Err(Failure::request(anyhow!(
            "this build of fovea cannot draw, so there is nothing to show on {sink}: use --sink none, or build with the feature `opencv`"
        )))
    }
}

/// Whether somebody took a video, a folder of pictures or a URL for a pipeline file.
fn is_video(path: &Path) -> bool {
    let is_url = path.to_str().is_some_and(|path| path.contains("://"));
    is_url || path.is_dir() || path.extension().is_some_and(|extension| extension != "toml") && path.is_file() && is_binary(path)
}

fn is_binary(path: &Path) -> bool {
    let mut head = [0; 64];
    std::fs::File::open(path).and_then(|mut file| file.read(&mut head)).is_ok_and(|len| head[..len].contains(&0))
}

/// What a run's outcome means for the command.
pub(super) fn result_of(outcome: Outcome) -> Result<(), Failure> {
    match outcome.error {
        None => Ok(()),
        Some(error) if error.is_request() => Err(Failure::request(error)),
        Some(error) => Err(Failure::failed(error)),
    }
}

/// What failed first; what failed after it is said at once.
pub(super) fn first_failure(run: Result<(), Failure>, written: Result<(), Failure>) -> Result<(), Failure> {
    if let (Err(_), Err(report)) = (&run, &written) {
        say!("error: {:#}", report.error);
    }
    run.and(written)
}

/// Writes a report; a folder was made and checked before.
pub(super) fn write_report(report: &Report, output: &Output) -> Result<(), Failure> {
    let path = if let Output::File(path) = output { path } else { Path::new("-") };
    ResultFile::open(path)?.write(&(report.to_json() + "\n"))
}

/// What happened, for people.
pub(super) fn summarise(outcome: &Outcome) {
    let Some(stream) = outcome.report.streams.first() else { return };
    if outcome.info.is_none() {
        return;
    }
    let frames = &stream.frames;
    let dropped: Vec<String> = frames.dropped.occurred().map(|(cause, n)| format!("{n} {}", cause.name())).collect();
    let dropped = if dropped.is_empty() { "none dropped".to_owned() } else { format!("dropped: {}", dropped.join(", ")) };
    say!(
        "{}: {} frames captured, {} inferred, {dropped}; {:.1} fps over {:.1} s ({})",
        stream.name,
        frames.captured,
        frames.inferred,
        stream.fps.inferred,
        outcome.report.wall_seconds,
        outcome.ended.name().replace('_', " ")
    );
    if let Some(total) = stream.latency_ms.of(Stage::Total) {
        let stages = stream.latency_ms.0.iter().filter(|(stage, _)| *stage != Stage::Total);
        let medians: Vec<String> = stages.map(|(stage, times)| format!("{} {:.1}", stage.name(), times.p50)).collect();
        say!(
            "latency p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.1} ms; median of the stages in ms: {}",
            total.p50,
            total.p90,
            total.p99,
            total.max,
            medians.join(", ")
        );
    }
}

/// Names the files that a run left, once they are all written.
pub(super) fn name_files(spec: &PipelineSpec, outcome: &Outcome, has_report: bool) {
    if spec.sink == SinkSpec::None && spec.detections.is_none() && spec.report.is_none() && outcome.info.is_some() {
        say!("nothing was asked for: --sink out.mp4 draws the objects on a video, --detections - prints them");
    }
    for path in output_files(spec) {
        let is_report = matches!(&spec.report, Some(Output::File(report)) if report == path);
        // What an earlier run left is not of this one.
        let is_video = matches!(&spec.sink, SinkSpec::File { path: video, .. } if video == path);
        let has_frames = outcome.report.streams.first().is_some_and(|stream| stream.frames.inferred > 0);
        let is_ours = if is_report { has_report } else { outcome.info.is_some() && (has_frames || !is_video) };
        if is_ours && path.exists() {
            say!("wrote {}", path.display());
        }
    }
}

/// When the first line is printed where stderr is no terminal; each later one after twice the time, up to the longest wait.
const FIRST_LINE: Duration = Duration::from_secs(2);
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// Progress on stderr: a bar on a terminal, a line now and then otherwise.
struct Reporter {
    name: String,
    max_frames: Option<u64>,
    is_terminal: bool,
    bar: Option<ProgressBar>,
    next_line: Duration,
}

impl Reporter {
    fn new(spec: &PipelineSpec) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { name: spec.name.clone(), max_frames: spec.max_frames, is_terminal, bar: None, next_line: FIRST_LINE }
    }

    fn show(&mut self, progress: &Progress) {
        let balance = &progress.balance;
        let dropped = balance.dropped.total();
        let fps = per_second(balance.inferred, progress.elapsed);
        if self.is_terminal {
            let (name, total) = (&self.name, self.total(progress));
            let bar = self.bar.get_or_insert_with(|| new_bar(name, total));
            bar.set_position(balance.inferred + dropped);
            bar.set_message(if dropped > 0 { format!("{fps:.1} fps, {dropped} dropped") } else { format!("{fps:.1} fps") });
        } else if progress.elapsed >= self.next_line {
            self.next_line = progress.elapsed + progress.elapsed.min(LONGEST_SILENCE);
            let of_total = self.total(progress).map_or(String::new(), |total| format!(" of about {total}"));
            say!(
                "{}: {:.0} s, {} frames{of_total}, {fps:.1} fps, {dropped} dropped",
                self.name,
                progress.elapsed.as_secs_f64(),
                balance.inferred
            );
        }
    }

    /// Frames to come altogether, as far as the stream says.
    fn total(&self, progress: &Progress) -> Option<u64> {
        let in_stream = match (progress.info.duration, progress.info.frame_rate) {
            (Some(duration), Some((numerator, denominator))) => {
                let per_second = 1000 * u128::from(denominator.max(1));
                let frames = (duration.as_millis() * u128::from(numerator) + per_second / 2) / per_second;
                u64::try_from(frames).ok().filter(|&frames| frames > 0)
            }
            _ => None,
        };
        [in_stream, self.max_frames].into_iter().flatten().min()
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(name: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{prefix} [{bar:30}] {pos}/{len} frames, {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{prefix} {spinner} {pos} frames, {msg}, {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(name.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "frame counts are far below 2^53")]
fn per_second(n: u64, elapsed: Duration) -> f64 {
    n as f64 / elapsed.as_secs_f64().max(1e-3)
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::request(error)
    }
}
