//! `fovea-train export`.

use crate::export::float_model;
use crate::files::write_atomic;
use crate::fold::fold;
use crate::graph::Graph;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use crate::weights;
use anyhow::{Context, Result};
use fovea::executor::{LoadOptions, Network, onnx};
use std::path::PathBuf;

/// Arguments of `fovea-train export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  fovea-train export --run runs/first --out models/first-float
  fovea eval --model models/first-float --data mydata/val --allow-float")]
pub(crate) struct Args {
    /// Folder of a run.
    #[arg(long)]
    run: PathBuf,
    /// Model folder to write: model.onnx (float), manifest.toml, labels.txt.
    #[arg(long)]
    out: PathBuf,
    /// Name of the model. [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
}

impl Args {
    /// Exports.
    pub(crate) fn run(self) -> Result<()> {
        let dir = RunDir(self.run);
        let spec = ModelSpec::read(&dir.model())?;
        let weights = weights::read(&dir.weights())?.weights;
        let graph = Graph::new(&spec);
        let folded = fold(&graph, &weights).with_context(|| dir.weights().display().to_string())?;
        let bytes = onnx::encode(&float_model(&graph, &spec, &folded, &[]));
        let mut network = Network::load(&bytes, &LoadOptions { allow_float: true, ..LoadOptions::default() })
            .context("the exported network does not load")?;
        let worst = compare(&spec, &weights, &mut network)?;
        if let Some(worst) = worst {
            say!("largest difference between libtorch and the exported network on one input: {worst:.2e}");
            anyhow::ensure!(
                worst < 1e-4,
                "the exported network gives other values than libtorch: by up to {worst} of the largest"
            );
        }
        let name = self.name.unwrap_or_else(|| crate::package::name_of(&self.out));
        let manifest = spec.manifest(&name, "model.onnx");
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        write_atomic(&self.out.join("model.onnx"), &bytes)?;
        write_atomic(&self.out.join("manifest.toml"), manifest.to_toml().as_bytes())?;
        write_atomic(&self.out.join("labels.txt"), crate::package::labels(&spec).as_bytes())?;
        say!("wrote {}", self.out.display());
        Ok(())
    }
}

/// Largest difference of head values between libtorch and the exported network, as a share of the output's largest value;
/// infinite where a value is not a number; `None` without libtorch.
#[cfg(feature = "train")]
pub(crate) fn compare(spec: &ModelSpec, weights: &weights::Weights, network: &mut Network) -> Result<Option<f32>> {
    use crate::model::{Mode, Model};
    let mut model = Model::new(spec, 0.01, 0, tch::Device::Cpu);
    model.load(weights)?;
    let pixels = crate::package::test_picture(spec.width, spec.height);
    let (h, w) = (spec.height as i64, spec.width as i64);
    let images = tch::Tensor::from_data_size(&pixels, &[1, h, w, 3], tch::Kind::Uint8);
    let heads = tch::no_grad(|| model.forward_float(&images, Mode::EVAL, &[]).0);
    let wanted = heads.iter().map(|level| &level.cls).chain(heads.iter().map(|level| &level.bbox));
    let outputs = network.run_f32(&crate::package::planar(&pixels, spec.pixels))?;
    let mut worst = 0.0_f32;
    for (got, wanted) in outputs.iter().zip(wanted) {
        let wanted = Vec::<f32>::try_from(&wanted.permute([0, 3, 1, 2]).contiguous().reshape([-1]))?;
        anyhow::ensure!(got.len() == wanted.len(), "an output has {} values, libtorch gives {}", got.len(), wanted.len());
        let largest = wanted.iter().fold(1e-6_f32, |largest, value| largest.max(value.abs()));
        let share = |(a, b): (&f32, &f32)| ((a - b) / largest).abs();
        let or_infinite = |worst: f32, share: f32| if share.is_nan() { f32::INFINITY } else { worst.max(share) };
        worst = got.iter().zip(&wanted).map(share).fold(worst, or_infinite);
    }
    Ok(Some(worst))
}

#[cfg(not(feature = "train"))]
pub(crate) fn compare(_: &ModelSpec, _: &weights::Weights, _: &mut Network) -> Result<Option<f32>> {
    Ok(None)
}
