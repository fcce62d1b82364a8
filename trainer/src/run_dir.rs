//! The files of a training run.

use std::path::PathBuf;

/// The files of a run.
#[derive(Debug, Clone)]
pub(crate) struct RunDir(pub(crate) PathBuf);

impl RunDir {
    /// Settings of the run.
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("fit.toml")
    }

    /// The network's description, for `eval`, `export` and `quantize`.
    pub(crate) fn model(&self) -> PathBuf {
        self.0.join("model.toml")
    }

    /// State to go on from.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// Averaged weights: what is evaluated and exported.
    pub(crate) fn weights(&self) -> PathBuf {
        self.0.join("weights.safetensors")
    }

    /// Losses over the iterations.
    pub(crate) fn curve(&self) -> PathBuf {
        self.0.join("curve.csv")
    }

    /// The same as a picture.
    pub(crate) fn plot(&self) -> PathBuf {
        self.0.join("curve.png")
    }
}
