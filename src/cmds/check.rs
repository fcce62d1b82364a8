//! `fovea check`: a pipeline file and what it names, looked at without running it.

use super::output::keep_apart;
use super::{Failure, run};
use anyhow::anyhow;
use fovea::frame::{Roi, Rotation, View};
use fovea::pipeline::config::{Draft, PipelineSpec};
use fovea::pipeline::detector::Detector;
use fovea::pipeline::probe;
use fovea::pipeline::secret::hide_credentials;
use fovea::pipeline::spec::{Pace, SinkSpec, SourceKind, SourceSpec};
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Example:
  fovea check pipelines/rtsp.toml

Every line says what was looked at: `ok`, `FAIL` with the remedy, or `--` for what only a run can show. \
Exit code 2 if a line says FAIL.";

/// Arguments of `fovea check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Pipeline file.
    pipeline: PathBuf,
}

/// What a probe found.
enum Finding {
    Good(String),
    Bad(anyhow::Error),
    Unknown(String),
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let spec = Draft::read(&self.pipeline)?.finish()?;
        let mut findings = vec![("file", Finding::Good(format!("{}: keys and values are right", self.pipeline.display())))];
        findings.push(("source", source(&spec.source)));
        findings.push(("pace", Finding::Good(pace(&spec))));
        findings.push(("view", view(&spec)));
        findings.push(("model", model(&spec)));
        findings.push(("sink", sink(&spec)));
        for (name, output) in [("detections", &spec.detections), ("report", &spec.report)] {
            findings.push((
                name,
                match output {
                    None => Finding::Good("not written".to_owned()),
                    Some(output) => match output.probe() {
                        Ok(()) => Finding::Good(format!("{output}: can be written")),
                        Err(error) => match missing_folder(output) {
                            Some(folder) => Finding::Good(format!("{output}: a run makes the folder {folder}")),
                            None => Finding::Bad(error.into()),
                        },
                    },
                },
            ));
        }
        let apart = run::keep_files_apart(&spec).and_then(|()| keep_apart([self.pipeline.as_path()], run::output_files(&spec)));
        if let Err(error) = apart {
            findings.push(("files", Finding::Bad(error)));
        }
        let mut out = std::io::stdout().lock();
        let mut n_bad = 0;
        for (name, finding) in &findings {
            let written = match finding {
                Finding::Good(what) => writeln!(out, "ok    {name:<11} {what}"),
                Finding::Unknown(what) => writeln!(out, "--    {name:<11} {what}"),
                Finding::Bad(error) => {
                    n_bad += 1;
                    writeln!(out, "FAIL  {name:<11} {}", hide_credentials(&super::explain(error)))
                }
            };
            written.map_err(Failure::failed)?;
        }
        match n_bad {
            0 => Ok(()),
            1 => Err(Failure::request(anyhow!("{}: one line above says FAIL", self.pipeline.display()))),
            n => Err(Failure::request(anyhow!("{}: {n} lines above say FAIL", self.pipeline.display()))),
        }
    }
}

fn source(source: &SourceSpec) -> Finding {
    if let Err(error) = probe::source(source) {
        return Finding::Bad(error.into());
    }
    // Makes sure of its elements, and starts nothing.
    if let Err(failure) = super::media::open_source(source) {
        return Finding::Bad(failure.error);
    }
    match &source.kind {
        SourceKind::File(path) => Finding::Good(format!("{}: a file that can be read", path.display())),
        SourceKind::Images { folder, .. } => Finding::Good(format!("{}: a folder with pictures", folder.display())),
        SourceKind::V4l2 { device, .. } => Finding::Good(format!("{}: the device is there", device.display())),
        SourceKind::Test { .. } => Finding::Good(format!("{source}: built in")),
        SourceKind::Url(url) => Finding::Unknown(format!("{url}: well formed; whether it answers shows when it runs")),
        SourceKind::Libcamera { .. } | SourceKind::Csi { .. } => {
            Finding::Unknown(format!("{source}: whether the camera is there shows when it runs"))
        }
        SourceKind::Launch(_) => Finding::Unknown("GStreamer elements: whether they fit shows when they run".to_owned()),
    }
}

fn pace(spec: &PipelineSpec) -> String {
    match spec.pace {
        Pace::Max => "max: every frame is inferred, the source waits".to_owned(),
        Pace::Live => {
            let age = spec.max_frame_age.as_millis();
            format!("live: the newest frame wins; one that waited more than {age} ms is dropped")
        }
    }
}

fn view(spec: &PipelineSpec) -> Finding {
    let View { roi, rotation } = spec.detector.view;
    let turned = match rotation {
        Rotation::None => String::new(),
        turned => format!(", turned by {} degrees", turned.degrees()),
    };
    if let (Some(roi), &SourceKind::Test { width, height, .. }) = (roi, &spec.source.kind) {
        let side = |side: u32| usize::try_from(side).unwrap_or(usize::MAX);
        return match roi.region((side(width), side(height))) {
            Ok(_) => Finding::Good(format!("{roi} of {width}x{height}{turned}")),
            Err(error) => Finding::Bad(anyhow!("view.roi: {error}")),
        };
    }
    match roi {
        Some(roi @ Roi::Pixels(_)) => Finding::Unknown(format!("{roi}{turned}: whether it lies in the frame shows when it runs")),
        Some(roi) => Finding::Good(format!("{roi} of the frame{turned}")),
        None => Finding::Good(format!("the whole frame{turned}")),
    }
}

fn model(spec: &PipelineSpec) -> Finding {
    let opened = run::model_dir(spec.model_dir.as_deref()).map_err(|failure| failure.error);
    let opened = opened.and_then(|dir| Ok((Detector::open(&dir, &spec.detector)?, dir)));
    match opened {
        Ok((detector, dir)) => {
            let manifest = detector.manifest();
            let (width, height) = (manifest.input.width, manifest.input.height);
            let classes = manifest.classes.join(", ");
            Finding::Good(format!("{}: {} opens, {width}x{height}, finds {classes}", dir.display(), manifest.name))
        }
        Err(error) => Finding::Bad(error),
    }
}

fn sink(spec: &PipelineSpec) -> Finding {
    if let SinkSpec::File { path, .. } = &spec.sink {
        let output = fovea::pipeline::detections::Output::File(path.clone());
        match (output.probe(), missing_folder(&output)) {
            (Ok(()), _) => {}
            // The sink itself cannot be opened before.
            (Err(_), Some(folder)) => return Finding::Good(format!("{}: a run makes the folder {folder}", path.display())),
            (Err(error), None) => return Finding::Bad(error.into()),
        }
    }
    // This makes sure of the encoder, and writes nothing.
    if let Err(failure) = run::open_sink(spec) {
        return Finding::Bad(failure.error);
    }
    match &spec.sink {
        SinkSpec::None => Finding::Good("none: nothing is drawn".to_owned()),
        SinkSpec::File { path, .. } => Finding::Good(format!("{}: can be written", path.display())),
        SinkSpec::Stream(url) => Finding::Unknown(format!("{url}: well formed; whether the server takes it shows when it runs")),
        SinkSpec::Display if ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().all(|name| std::env::var_os(name).is_none()) => {
            Finding::Unknown("display: no X11 or Wayland session here; a run needs one, or a screen without a desktop".to_owned())
        }
        SinkSpec::Display => Finding::Good("display: there is a desktop session".to_owned()),
    }
}

/// The folder of an output, if it is missing and could be made.
fn missing_folder(output: &fovea::pipeline::detections::Output) -> Option<String> {
    let fovea::pipeline::detections::Output::File(path) = output else { return None };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())?;
    let above = folder.ancestors().skip(1).find(|folder| folder.as_os_str().is_empty() || folder.exists())?;
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let probe = above.join(format!(".fovea-probe-{}", std::process::id()));
    fovea::pipeline::detections::probe_writable(&probe).ok().map(|()| folder.display().to_string())
}
