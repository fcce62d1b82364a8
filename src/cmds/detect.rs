//! `fovea detect`: objects in picture files.

use super::Failure;
use super::annotated::Annotated;
use super::output::{Lines, ResultFile, keep_apart, model_files, write_stdout};
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

--json writes one line a picture, in the order given, to `-` as soon as it is there; boxes are [x1, y1, x2, y2] in pixels of \
the picture. A picture that cannot be read is reported and left out, and the exit code is 1 then.")]
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
        let is_stdout_json = json.as_ref().is_some_and(ResultFile::is_stdout);
        let mut outputs = Outputs {
            is_table_all: json.is_none() && annotated.is_none() && !self.digest,
            lines: json.map(ResultFile::into_lines).transpose()?,
            is_table_wanted: !is_stdout_json,
            unprinted: None,
        };
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
            let done = results.add(path, &picture, &mut detector, self.digest).and_then(|found| {
                bar.suspend(|| outputs.write(&found))?;
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
        let written = outputs.finish();
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

/// What was found in one picture.
#[derive(Debug)]
struct Found {
    /// A line of JSON.
    line: String,
    /// The same for people.
    table: String,
}

/// Where the results of single pictures go.
#[derive(Debug)]
struct Outputs {
    lines: Option<Lines>,
    is_table_wanted: bool,
    /// Nothing but the table is asked for.
    is_table_all: bool,
    /// Why the table is not printed any more.
    unprinted: Option<Failure>,
}

impl Outputs {
    /// A table that nobody reads any more costs no JSON.
    fn write(&mut self, found: &Found) -> Result<(), Failure> {
        if self.is_table_wanted && self.unprinted.is_none() {
            self.unprinted = write_stdout(&found.table).err();
        }
        if let Some(mut lines) = self.lines.take() {
            // If it fails, the file stays as the error says.
            lines.push(&found.line)?;
            self.lines = Some(lines);
        }
        self.unprinted.take_if(|_| self.is_table_all).map_or(Ok(()), Err)
    }

    fn finish(self) -> Result<(), Failure> {
        self.lines.map_or(Ok(()), Lines::finish).and(self.unprinted.map_or(Ok(()), Err))
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Results {
    heads_digest: Sha256,
    detections_digest: Sha256,
    /// Of the last picture.
    detections: Vec<Detection>,
}

impl Results {
    /// Detects in `picture`, which was read from `path`.
    fn add(&mut self, path: &Path, picture: &RgbPicture, detector: &mut Detector, is_digested: bool) -> Result<Found, Failure> {
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
        let table = describe(&line);
        Ok(Found { line: serde_json::to_string(&line).map_err(Failure::failed)? + "\n", table })
    }

    fn digests(&self) -> String {
        let of = |digest: &Sha256| hex(&digest.clone().finalize());
        format!("heads {}\ndetections {}\n", of(&self.heads_digest), of(&self.detections_digest))
    }
}

/// The line for people.
fn describe(line: &PictureLine<'_>) -> String {
    let Objects { detections, labels } = line.detections;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} ({}x{}): {} objects", line.file, line.width, line.height, detections.len());
    for Detection { bbox, class_id, score } in detections {
        let class = labels.get(class_id.index()).map_or("", String::as_str);
        let [x1, y1, x2, y2] = bbox.to_array();
        let _ = writeln!(text, "  {class:<12} {score:.2}  [{x1:.1}, {y1:.1}, {x2:.1}, {y2:.1}]");
    }
    text
}
