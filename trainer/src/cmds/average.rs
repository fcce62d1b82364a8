//! `fovea-train average`.

use crate::request::Request;
use crate::run_dir::RunDir;
use crate::weights::{self, Weights};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Arguments of `fovea-train average`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  fovea-train average runs/a runs/b runs/c --out runs/mean
  fovea-train average runs/a/best.safetensors --out runs/a-best

The mean is worth something where the runs began with the same weights. --out is a folder as eval, export and quantize take it.")]
pub(crate) struct Args {
    /// Folders of runs (their weights.safetensors), or weights files in such folders.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder to write: model.toml, weights.safetensors.
    #[arg(long)]
    out: PathBuf,
}

impl Args {
    /// Averages.
    pub(crate) fn run(self) -> Result<()> {
        let mut network = None;
        let mut all = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let is_file = run.is_file();
            let dir = RunDir(if is_file { run.parent().unwrap_or(Path::new("")).to_owned() } else { run.clone() });
            let spec = dir.spec()?;
            if spec.quantized {
                let run = run.display();
                return Err(Request(format!("{run} was trained with quantisation: each such run has scales of its own")).into());
            }
            let first = network.get_or_insert_with(|| spec.clone());
            if *first != spec {
                return Err(Request(format!("{} is another network than {}", run.display(), self.runs[0].display())).into());
            }
            let path = if is_file { run.clone() } else { dir.weights() };
            all.push(weights::read(&path)?.weights);
        }
        let averaged = mean(&all).map_err(|name| Request(format!("`{name}` is not of the same size in all of them")))?;
        let out = RunDir(self.out);
        out.refuse_run()?;
        std::fs::create_dir_all(&out.0).with_context(|| format!("cannot make the folder {}", out.0.display()))?;
        if let Some(spec) = network {
            spec.write(&out.model())?;
        }
        let names: Vec<String> = self.runs.iter().map(|run| run.display().to_string()).collect();
        weights::write(&out.weights(), &averaged, HashMap::from([("average_of".to_owned(), names.join(" "))]))?;
        say!("wrote the mean of {} to {}", all.len(), out.weights().display());
        Ok(())
    }
}

/// Mean of every array, summed in f64; or the name of one that does not fit.
fn mean(all: &[Weights]) -> Result<Weights, String> {
    let mut averaged = all[0].clone();
    for (name, array) in &mut averaged {
        let others: Option<Vec<_>> = all.iter().map(|weights| weights.get(name)).collect();
        let others = others.filter(|others| others.iter().all(|other| other.shape == array.shape)).ok_or_else(|| name.clone())?;
        for (idx, value) in array.data.iter_mut().enumerate() {
            let sum: f64 = others.iter().map(|other| f64::from(other.data[idx])).sum();
            *value = (sum / all.len() as f64) as f32;
        }
    }
    Ok(averaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Array;

    #[test]
    fn the_mean_of_arrays_that_fit() {
        let weights = |data: Vec<f32>| Weights::from([("a".to_owned(), Array { shape: vec![data.len()], data })]);
        let averaged = mean(&[weights(vec![1.0, 5.0]), weights(vec![2.0, -1.0]), weights(vec![6.0, -1.0])]).unwrap();
        assert_eq!(averaged, weights(vec![3.0, 1.0]));
        assert_eq!(mean(&[weights(vec![1.0]), weights(vec![1.0, 2.0])]), Err("a".to_owned()));
    }
}
