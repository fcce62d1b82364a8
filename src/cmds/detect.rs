//! `fovea detect`: objects in picture files.

use super::Failure;
use super::annotated::Annotated;
use super::output::{ResultFile, keep_apart, model_files, write_results, write_stdout};
use super::postprocess_args::PostprocessArgs;
use super::view_args::ViewArgs;
use fovea::detection::Detection;
use fovea::frame::View;
use fovea::images::{self, RgbPicture};
use fovea::pipeline::detections::{Objects, digest_detections};
use fovea::pipeline::detector::{Detector, DetectorOptions, hex};
use fovea::pipeline::ports::DetectError;
use fovea::pipeline::runner::StopSignal;
use fovea::postprocess::PostprocessOptions;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `fovea detect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fovea detect --model models/default street.jpg --out annotated
  fovea detect --model models/default street.jpg --json -
  fovea detect --model models/default *.jpg --digest
  fovea detect --model models/default street.jpg --classes person,car --class-threshold car=0.5

--json writes one line a picture, in the order given; boxes are [x1, y1, x2, y2] in pixels of the picture. A picture that \
cannot be read is reported and left out, and the exit code is 1 then.")]
pub(crate) struct Args {
    /// Model folder: manifest.toml and the network that it names.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Pictures: JPEG, PNG or WebP.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Write the pictures with boxes, class names and scores drawn on them into this folder, under their own names, WebP as PNG.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the detections as JSON lines (`-` = stdout).
    #[arg(long, value_name = "FILE", value_parser = super::output::output_path())]
    json: Option<PathBuf>,
    /// Print SHA-256 of all head tensors and of all detections: the same on every CPU. To stderr if the JSON goes to stdout.
    #[arg(long)]
    digest: bool,
    /// Threads that share the rows of a layer; 0: as many as there are processors.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::run::threads)]
    threads: usize,
    /// Accept a network that runs in float.
    #[arg(long)]
    allow_float: bool,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    postprocess: PostprocessArgs,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct PictureLine<'a> {
    v: u32,
    file: &'a str,
    width: usize,
    height: usize,
    detections: Objects<'a>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(wrong) = self.images.iter().find(|path| !path.exists() || path.is_dir()) {
            let path = wrong.display();
            return Err(Failure::request(if wrong.is_dir() {
                anyhow::anyhow!(
                    "{path} is a folder; name its pictures ({path}/*.jpg), or take it as a stream: fovea run --source {path}"
                )
            } else {
                anyhow::anyhow!("there is no file {path}; name pictures (JPEG, PNG, WebP)")
            }));
        }
        let read = [self.images.as_slice(), &model_files(&self.model)].concat();
        let drawn: Vec<PathBuf> =
            self.out.iter().flat_map(|folder| self.images.iter().map(|path| Annotated::path(folder, path))).collect();
        let read_or_drawn = read.iter().chain(&drawn).map(PathBuf::as_path);
        keep_apart(read_or_drawn, self.json.as_deref()).map_err(Failure::request)?;
        let json = self.json.as_deref().map(ResultFile::open).transpose()?;
        let mut annotated = self.out.map(|folder| Annotated::open(folder, &self.images)).transpose()?;
        let postprocess = self.postprocess.over(PostprocessOptions::default());
        let view = self.view.over(View::default());
        let options = DetectorOptions { threads: self.threads, view, postprocess, allow_float: self.allow_float };
        let mut detector = Detector::open(&self.model, &options).map_err(Failure::request)?;
        let mut results = Results::default();
        let (mut n_unread, mut failure) = (0, None);
        let stop = StopSignal::default();
        super::run::handle_signals(&stop)?;
        let bar = ProgressBar::new(u64::try_from(self.images.len()).unwrap_or(u64::MAX));
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {per_sec}, {eta} left") {
            bar.set_style(style);
        }
        for (n_done, path) in self.images.iter().enumerate() {
            bar.set_position(u64::try_from(n_done).unwrap_or(u64::MAX));
            if stop.is_stopped() {
                let n_all = self.images.len();
                failure = Some(Failure::failed(anyhow::anyhow!("stopped after {n_done} of {n_all} pictures; those are written")));
                break;
            }
            let mut picture = match images::open(path) {
                Ok(picture) => picture,
                Err(error) => {
                    bar.suspend(|| say!("error: {error}"));
                    n_unread += 1;
                    continue;
                }
            };
            let done = results.add(path, &picture, &mut detector, self.digest).and_then(|()| {
                let objects = Objects { detections: &results.detections, labels: &detector.manifest().classes };
                annotated.as_mut().map_or(Ok(()), |annotated| annotated.write(path, &mut picture, objects))
            });
            if let Err(error) = done {
                // What is done is written all the same.
                failure = Some(error);
                break;
            }
        }
        bar.finish_and_clear();
        let is_stdout_json = json.as_ref().is_some_and(ResultFile::is_stdout);
        let written = write_results(json, &results.lines, &results.table);
        let digests_written = match self.digest {
            // Lines of JSON are not to be mixed with others.
            true if is_stdout_json => {
                say!("{}", results.digests().trim_end());
                Ok(())
            }
            true => write_stdout(&results.digests()),
            false => Ok(()),
        };
        failure.map_or(Ok(()), Err).and(written).and(digests_written)?;
        match n_unread {
            0 => Ok(()),
            n => Err(Failure::failed(anyhow::anyhow!("{n} of {} pictures could not be read", self.images.len()))),
        }
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Results {
    /// A line of JSON a picture.
    lines: String,
    /// The same for people.
    table: String,
    heads_digest: Sha256,
    detections_digest: Sha256,
    /// Of the last picture.
    detections: Vec<Detection>,
}

impl Results {
    /// Detects in `picture`, which was read from `path`.
    fn add(&mut self, path: &Path, picture: &RgbPicture, detector: &mut Detector, is_digested: bool) -> Result<(), Failure> {
        let digest = is_digested.then_some(&mut self.heads_digest);
        detector.detect_with_digest(&picture.as_picture(), &mut self.detections, digest).map_err(|error| {
            let code = if matches!(error, DetectError::Region(_)) { Failure::request } else { Failure::failed };
            code(anyhow::Error::from(error).context(path.display().to_string()))
        })?;
        digest_detections(&self.detections, &mut self.detections_digest);
        let line = PictureLine {
            v: 1,
            file: &path.to_string_lossy(),
            width: picture.width,
            height: picture.height,
            detections: Objects { detections: &self.detections, labels: &detector.manifest().classes },
        };
        self.lines.push_str(&serde_json::to_string(&line).map_err(Failure::failed)?);
        self.lines.push('\n');
        describe(&line, &mut self.table);
        Ok(())
    }

    fn digests(&self) -> String {
        let of = |digest: &Sha256| hex(&digest.clone().finalize());
        format!("heads {}\ndetections {}\n", of(&self.heads_digest), of(&self.detections_digest))
    }
}

/// The line for people.
fn describe(line: &PictureLine<'_>, text: &mut String) {
    let Objects { detections, labels } = line.detections;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} ({}x{}): {} objects", line.file, line.width, line.height, detections.len());
    for Detection { bbox, class_id, score } in detections {
        let class = labels.get(class_id.index()).map_or("", String::as_str);
        let [x1, y1, x2, y2] = bbox.to_array();
        let _ = writeln!(text, "  {class:<12} {score:.2}  [{x1:.1}, {y1:.1}, {x2:.1}, {y2:.1}]");
    }
}
