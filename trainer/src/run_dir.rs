//! The files of a training run.

use std::path::PathBuf;

/// The files of a run.
#[derive(Debug, Clone)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// Settings of the run.
    pub fn config(&self) -> PathBuf {
        self.0.join("fit.toml")
    }

    /// The network's description, for `eval`, `export` and `quantize`.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.toml")
    }

    /// State to go on from.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// Averaged weights: what is evaluated and exported.
    pub fn weights(&self) -> PathBuf {
        self.0.join("weights.safetensors")
    }

    /// Losses over the iterations.
    pub fn curve(&self) -> PathBuf {
        self.0.join("curve.csv")
    }

    /// The same as a picture.
    pub fn plot(&self) -> PathBuf {
        self.0.join("curve.png")
    }
}
