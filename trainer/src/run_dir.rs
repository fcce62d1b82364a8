//! The files of a training run, and what it came from.

use crate::data::{Example, LabelKind};
use crate::request::Request;
use crate::spec::ModelSpec;
use anyhow::{Context, Result};
use fovea::pipeline::detector::hex;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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

    /// The network in the folder of a run (`model.toml`) or of a model (`fit.toml`).
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        #[derive(Deserialize)]
        struct Settings {
            model: ModelSpec,
        }
        if self.model().exists() {
            return ModelSpec::read(&self.model());
        }
        let path = self.config();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: neither model.toml nor fit.toml describes a network", self.0.display()))?;
        let settings: Settings = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(settings.model)
    }

    /// What the run came from: [`Origin`].
    pub(crate) fn origin(&self) -> PathBuf {
        self.0.join("origin.json")
    }

    /// State to go on from.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// The checkpoint before, until a step from the newest one has shown that that one is good.
    pub(crate) fn checkpoint_before(&self) -> PathBuf {
        self.0.join("checkpoint.before.safetensors")
    }

    /// Averaged weights: what is evaluated and exported.
    pub(crate) fn weights(&self) -> PathBuf {
        self.0.join("weights.safetensors")
    }

    /// Averaged weights of the best evaluation.
    pub(crate) fn best(&self) -> PathBuf {
        self.0.join("best.safetensors")
    }

    /// Refuses to write weights into the folder of a run, which has its own.
    pub(crate) fn refuse_run(&self) -> Result<()> {
        if self.config().exists() || self.checkpoint().exists() {
            let dir = self.0.display();
            return Err(Request(format!("{dir} is the folder of a training run; choose another --out")).into());
        }
        Ok(())
    }

    /// Losses over the iterations.
    pub(crate) fn curve(&self) -> PathBuf {
        self.0.join("curve.csv")
    }

    /// The same as a picture.
    pub(crate) fn plot(&self) -> PathBuf {
        self.0.join("curve.png")
    }

    /// Evaluations over the iterations.
    pub(crate) fn evals(&self) -> PathBuf {
        self.0.join("eval.csv")
    }
}

/// What a run came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Version of the trainer.
    version: String,
    /// Its git revision.
    revision: String,
    /// Training pictures.
    pictures: usize,
    /// SHA-256 of all of them with their labels, in order.
    data_sha256: String,
    /// Arithmetic, `f32` or `bf16`; empty: not known, from an older version.
    #[serde(default)]
    precision: String,
}

impl Origin {
    /// This program, these pictures, this arithmetic.
    pub(crate) fn of(examples: &[Example], precision: &str) -> Self {
        let parts: Vec<_> = examples.par_iter().map(digest).collect();
        let mut all = Sha256::new();
        parts.iter().for_each(|part| all.update(part));
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: env!("FOVEA_REVISION").into(),
            pictures: examples.len(),
            data_sha256: hex(&all.finalize()),
            precision: precision.into(),
        }
    }

    /// The arithmetic that the run in `dir` began with, where it is known.
    pub(crate) fn precision(dir: &RunDir) -> Option<String> {
        let text = std::fs::read_to_string(dir.origin()).ok()?;
        let origin: Self = serde_json::from_str(&text).ok()?;
        Some(origin.precision).filter(|precision| !precision.is_empty())
    }

    /// Refuses to go on with other pictures or labels than the run in `dir` began with, unless told to; says if the
    /// program is another.
    pub(crate) fn check(&self, dir: &RunDir, allow_other_data: bool) -> Result<()> {
        // Runs of older versions have no such file.
        let Ok(text) = std::fs::read_to_string(dir.origin()) else { return Ok(()) };
        let old: Self = serde_json::from_str(&text).with_context(|| dir.origin().display().to_string())?;
        if old.data_sha256 != self.data_sha256 && !allow_other_data {
            return Err(Request(format!(
                "{} began with {} pictures of digest {:.12}, now there are {} of digest {:.12}: pictures, labels or the way they are \
                 read have changed. Put them back, or go on with them: --other-data",
                dir.0.display(),
                old.pictures,
                old.data_sha256,
                self.pictures,
                self.data_sha256
            ))
            .into());
        }
        if !old.precision.is_empty() && old.precision != self.precision {
            say!(
                "warning: this run began in {}, and goes on in {}: it is not the run that it would have been",
                old.precision,
                self.precision
            );
        }
        if (&old.version, &old.revision) != (&self.version, &self.revision) {
            say!(
                "warning: this run began with version {} ({}), this is {} ({}): it may go on differently",
                old.version,
                old.revision,
                self.version,
                self.revision
            );
        }
        Ok(())
    }

    /// Writes it into the folder of the run.
    pub(crate) fn write(&self, dir: &RunDir) -> Result<()> {
        crate::files::write_atomic(&dir.origin(), serde_json::to_string_pretty(self)?.as_bytes())
    }

    /// Digest of the data alone.
    pub(crate) fn data(&self) -> &str {
        &self.data_sha256
    }
}

fn digest(example: &Example) -> [u8; 32] {
    let mut digest = Sha256::new();
    for side in [example.picture.width, example.picture.height] {
        digest.update((side as u64).to_le_bytes());
    }
    digest.update(&example.picture.data);
    for label in &example.labels {
        label.bbox.to_array().iter().for_each(|side| digest.update(side.to_le_bytes()));
        digest.update([label.class as u8, u8::from(label.kind == LabelKind::Object)]);
    }
    digest.update(example.is_known.iter().map(|&known| u8::from(known)).collect::<Vec<u8>>());
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_others_are_not_written_into_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir(folder.path().to_owned());
        dir.refuse_run().unwrap();
        // A folder of weights alone may be written anew.
        std::fs::write(dir.weights(), "").unwrap();
        dir.refuse_run().unwrap();
        for path in [dir.config(), dir.checkpoint()] {
            std::fs::write(&path, "").unwrap();
            let error = dir.refuse_run().unwrap_err();
            assert!(error.is::<Request>() && error.to_string().contains("choose another --out"), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
