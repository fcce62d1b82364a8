//! `fovea-train import`.

use crate::files::write_atomic;
use crate::import::{Imported, Wishes, import};
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::{torch_file, weights};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// Arguments of `fovea-train import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train import nanodet-plus-m-1.5x_416.pth --out shufflenetv2-x1.5.safetensors --fold-norm
  fovea-train import resnet50.pth --out resnet50.safetensors
  fovea-train import retinanet_resnet50_fpn.pth --out runs/torchvision
  fovea-train import model_final.pkl --out runs/detectron2 --width 1088 --height 800

Reads .pth, .pt, .ckpt (torch.save), .pkl (numpy arrays) and .safetensors; pickles are never executed. Which network it is \
follows from the names of its arrays. A backbone becomes a file for fit --init; a whole RetinaNet becomes the folder of a \
run, which eval, export and quantize read.")]
pub(crate) struct Args {
    /// File with the weights.
    file: PathBuf,
    /// A backbone: .safetensors file to write, with a .json beside it. A whole RetinaNet: folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Fold the batch norm of a backbone into its convolutions, where it stays as it is: for small batches.
    #[arg(long)]
    fold_norm: bool,
    /// Epsilon of the batch norms that are folded. [default: 1e-5; torchvision's first RetinaNet: 0, as in the published weights]
    #[arg(long)]
    norm_eps: Option<f32>,
    /// Input width of a whole network in pixels, a multiple of 32.
    #[arg(long, default_value_t = 1088)]
    width: usize,
    /// Input height of a whole network in pixels, a multiple of 32.
    #[arg(long, default_value_t = 800)]
    height: usize,
    /// Class names of a whole network in the order of its outputs. [default: COCO's]
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
}

impl Args {
    /// Imports.
    pub(crate) fn run(self) -> Result<()> {
        let arrays = torch_file::read(&self.file)?;
        let wishes = Wishes {
            size: (self.width, self.height),
            classes: self.classes.clone(),
            fold_norm: self.fold_norm,
            norm_eps: self.norm_eps,
        };
        let imported = import(arrays, &wishes).with_context(|| self.file.display().to_string())?;
        let Imported { format, spec, weights, n_left_out, .. } = &imported;
        let is_file = self.out.extension().is_some_and(|extension| extension == "safetensors");
        let texts = HashMap::from([("imported_from".to_owned(), (*format).to_owned())]);
        let sidecar = |path: PathBuf| write_atomic(&path.with_extension("json"), imported.sidecar().as_bytes());
        match (imported.is_backbone, is_file) {
            (true, false) => {
                return Err(Request(format!("--out {}: a backbone becomes a .safetensors file", self.out.display())).into());
            }
            (false, true) => {
                return Err(Request(format!("--out {}: a whole network becomes a folder", self.out.display())).into());
            }
            (true, true) => {
                weights::write(&self.out, weights, texts)?;
                sidecar(self.out.clone())?;
                say!("use it with: fovea-train fit --backbone {} --init {}", spec.backbone.label(), self.out.display());
            }
            (false, false) => {
                let dir = RunDir(self.out.clone());
                dir.refuse_run()?;
                std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
                weights::write(&dir.weights(), weights, texts)?;
                sidecar(dir.weights())?;
                spec.write(&dir.model())?;
            }
        }
        say!(
            "{format}, {}: {} arrays in, {n_left_out} of other parts left out, wrote {}",
            spec.backbone.label(),
            weights.len(),
            self.out.display()
        );
        if !imported.remark.is_empty() {
            say!("{}", imported.remark);
        }
        Ok(())
    }
}
