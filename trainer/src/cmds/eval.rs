//! `fovea-train eval`.

use super::DeviceArgs;
use crate::data::Folder;
use crate::evaluate::{evaluate, summary};
use crate::model::Model;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use crate::weights;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Arguments of `fovea-train eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train eval --run runs/first --data mydata/val --json eval.json")]
pub(crate) struct Args {
    /// Folder of a run.
    #[arg(long)]
    run: PathBuf,
    /// Labelled data: a data set in COCO, YOLO, Pascal VOC, Open Images or CVAT format.
    #[arg(long)]
    data: PathBuf,
    /// Input size instead of the run's, as WIDTHxHEIGHT, multiples of 32.
    #[arg(long, value_parser = size)]
    size: Option<(usize, usize)>,
    /// Only the first pictures.
    #[arg(long)]
    limit: Option<usize>,
    /// Write the metrics as JSON; - is stdout.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn size(text: &str) -> Result<(usize, usize), String> {
    let parse = || text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    parse().ok_or_else(|| format!("{text:?}: expected WIDTHxHEIGHT, such as 512x288"))
}

impl Args {
    /// Measures.
    pub(crate) fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let dir = RunDir(self.run);
        let mut spec = ModelSpec::read(&dir.model())?;
        if let Some((width, height)) = self.size {
            (spec.width, spec.height) = (width, height);
            spec.check().map_err(|error| crate::request::Request(format!("--size: {error:#}")))?;
        }
        let mut model = Model::new(&spec, 0.01, 0, device);
        model.load(&weights::read(&dir.weights())?.weights).with_context(|| dir.weights().display().to_string())?;
        let measured = evaluate(&model, &spec, &Folder::open(&self.data)?, self.limit)?;
        say!("{}", summary(&measured));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&measured)?;
            if path.as_os_str() == "-" {
                println!("{text}");
            } else {
                std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}
