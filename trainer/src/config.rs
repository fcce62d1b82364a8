//! Everything that decides a training run. Written to `fit.toml` of the run, read again by `fit --resume`.

use crate::augment::Augmentation;
use crate::data::ScoreBands;
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::spec::{ModelSpec, Norm};
use crate::targets::MatchParams;
use anyhow::{Context, Result, bail};
use fovea::eval::{IGNORE_FROM, OBJECT_FROM};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[cfg(feature = "train")]
pub(crate) use crate::{
    distill::Distill,
    loss::{BoxLoss, ClsLoss},
    optim::{Rule, Schedule},
};

/// A training run.
#[cfg(feature = "train")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FitConfig {
    /// Training data: a folder with `annotations.json` and `images/`.
    pub(crate) data: PathBuf,
    /// Scored annotations that complete the classes a picture's own labels leave out.
    pub(crate) pseudo: Option<PathBuf>,
    /// Validation data.
    pub(crate) val: Option<PathBuf>,
    /// Initial weights (safetensors); arrays are taken by name.
    pub(crate) init: Option<PathBuf>,
    /// The float run that training with quantisation starts from.
    pub(crate) qat: Option<PathBuf>,
    /// Pictures a step.
    pub(crate) batch: usize,
    /// Steps.
    pub(crate) iterations: usize,
    /// Rule that changes the weights.
    pub(crate) rule: Rule,
    /// Learning rate over time.
    pub(crate) schedule: Schedule,
    /// Highest learning rate.
    pub(crate) lr: f64,
    /// Factor on it for the backbone.
    pub(crate) backbone_lr: f64,
    /// Weight decay.
    pub(crate) weight_decay: f64,
    /// Steps of linear warm-up.
    pub(crate) warmup: usize,
    /// Largest norm of the gradients.
    pub(crate) clip: f64,
    /// Share of the moving average that is kept at each step.
    pub(crate) ema: f64,
    /// Probability that the classifier gives everything at the start.
    pub(crate) prior: f64,
    /// Classification loss.
    pub(crate) loss: ClsLoss,
    /// Box loss.
    pub(crate) box_loss: BoxLoss,
    /// Weight of the box loss.
    pub(crate) box_weight: f64,
    /// Matcher.
    pub(crate) matching: MatchParams,
    /// Use of scored labels.
    pub(crate) bands: ScoreBands,
    /// Pictures with a class in fewer than this share of pictures come more often; 0: each comes once an epoch.
    pub(crate) repeat_below: f64,
    /// Augmentation.
    pub(crate) augment: Augmentation,
    /// Last part of the run, as a share, without mosaic.
    pub(crate) mosaic_off: f64,
    /// First part of the run, as a share, in which the slope of the activation below 0 falls from `leak` to 0.
    pub(crate) leak_share: f64,
    /// Slope at the start.
    pub(crate) leak: f64,
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Steps between checkpoints.
    pub(crate) checkpoint_every: usize,
    /// Steps between evaluations; 0: at the end only.
    pub(crate) eval_every: usize,
    /// A stronger network to learn from beside the labels.
    pub(crate) distill: Option<Distill>,
    /// The network.
    pub(crate) model: ModelSpec,
}

#[cfg(feature = "train")]
impl FitConfig {
    /// The edge preset: what `docs/training.md` recommends for small data and initial weights.
    pub(crate) fn edge(data: PathBuf, model: ModelSpec) -> Self {
        Self {
            data,
            pseudo: None,
            val: None,
            init: None,
            qat: None,
            batch: 16,
            iterations: 6000,
            rule: Rule::AdamW,
            schedule: Schedule::Cosine,
            lr: 1.5e-3,
            backbone_lr: 0.2,
            weight_decay: 0.05,
            warmup: 250,
            clip: 10.0,
            ema: 0.9985,
            prior: 0.01,
            loss: ClsLoss::default(),
            box_loss: BoxLoss::Giou,
            box_weight: 2.0,
            matching: MatchParams { foreground: 0.5, background: 0.4, low_quality: 0.15 },
            bands: ScoreBands { positive: OBJECT_FROM, ignore: IGNORE_FROM },
            repeat_below: 0.1,
            augment: Augmentation::default(),
            mosaic_off: 0.12,
            leak_share: 0.0,
            leak: 0.1,
            seed: 1,
            checkpoint_every: 500,
            eval_every: 0,
            distill: None,
            model,
        }
    }

    /// The paper's recipe (section 4.1): SGD 0.01 for a batch of 16, 90k steps with drops at 60k and 80k, weight decay
    /// 1e-4, horizontal flip only, no clipping, no averaging, no rescue of objects without a good anchor, smooth L1 on the
    /// boxes. The warm-up is that of detectron2.
    pub(crate) fn paper(data: PathBuf, model: ModelSpec) -> Self {
        Self {
            iterations: 90_000,
            rule: Rule::Sgd,
            schedule: Schedule::Steps,
            lr: 0.01,
            backbone_lr: 1.0,
            weight_decay: 1e-4,
            warmup: 1000,
            clip: f64::INFINITY,
            ema: 0.0,
            box_loss: BoxLoss::SmoothL1,
            box_weight: 1.0,
            matching: MatchParams { foreground: 0.5, background: 0.4, low_quality: 2.0 },
            repeat_below: 0.0,
            augment: Augmentation::FLIP_ONLY,
            mosaic_off: 0.0,
            ..Self::edge(data, model)
        }
    }

    /// Another number of steps, of which the warm-up takes a tenth at most.
    pub(crate) fn set_iterations(&mut self, iterations: usize) {
        self.iterations = iterations;
        self.warmup = self.warmup.min(iterations / 10);
    }

    /// Training with quantisation, from the settings of the float `run`: short, at a twentieth of its learning rate. A mean of
    /// runs and an imported network have no settings: they take those of the edge preset, on `data`.
    pub(crate) fn quantized(run: &RunDir, data: Option<&Path>) -> Result<Self> {
        let model = ModelSpec::read(&run.model())?;
        let float = match data {
            Some(data) if !run.config().exists() => Self::edge(data.to_owned(), model.clone()),
            None if !run.config().exists() => {
                bail!(Request(format!(
                    "{} has no fit.toml that says which data it was trained on: --data is needed",
                    run.0.display()
                )))
            }
            _ => Self::read(&run.config())?,
        };
        if model.quantized {
            bail!("{} was trained with quantisation already; go on with it, or name its float run", run.0.display());
        }
        Ok(Self {
            qat: Some(run.0.clone()),
            init: None,
            iterations: 500,
            lr: float.lr / 20.0,
            warmup: 50,
            leak_share: 0.0,
            ema: 0.99,
            model: ModelSpec { quantized: true, ..model },
            ..float
        })
    }

    /// Checks the values that cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        self.model.check()?;
        if let Err((key, found, expected)) = self.loss.check() {
            bail!("`loss.{key}` is {found}, expected {expected}");
        }
        for (key, holds, found, expected) in [
            ("batch", (1..=4096).contains(&self.batch), self.batch.to_string(), "1 to 4096"),
            ("iterations", self.iterations > 0, self.iterations.to_string(), "at least 1"),
            ("lr", self.lr > 0.0 && self.lr.is_finite(), self.lr.to_string(), "above 0"),
            ("clip", self.clip > 0.0, self.clip.to_string(), "above 0"),
            ("ema", (0.0..1.0).contains(&self.ema), self.ema.to_string(), "0 up to, not including, 1"),
            ("prior", self.prior > 0.0 && self.prior < 1.0, self.prior.to_string(), "between 0 and 1"),
            ("checkpoint_every", self.checkpoint_every > 0, self.checkpoint_every.to_string(), "at least 1"),
            ("leak_share", (0.0..=1.0).contains(&self.leak_share), self.leak_share.to_string(), "0 to 1"),
            ("mosaic_off", (0.0..=1.0).contains(&self.mosaic_off), self.mosaic_off.to_string(), "0 to 1"),
            ("repeat_below", (0.0..=1.0).contains(&self.repeat_below), self.repeat_below.to_string(), "0 to 1"),
            ("bands", self.bands.ignore <= self.bands.positive, format!("{:?}", self.bands), "ignore not above positive"),
            (
                "matching",
                self.matching.background <= self.matching.foreground,
                format!("{:?}", self.matching),
                "background not above foreground",
            ),
            (
                "augment",
                self.augment.is_possible(),
                format!("{:?}", self.augment),
                "probabilities of 0 to 1, 0 < scale, aspect 0 to 2",
            ),
        ] {
            if !holds {
                bail!("`{key}` is {found}, expected {expected}");
            }
        }
        let stride = if self.model.pyramid_norm { self.model.strides().last().copied().unwrap_or(1) } else { 32 };
        let is_normed = self.model.pyramid_norm || self.model.backbone_norm || self.model.head_norm == Norm::Batch;
        let n_values = self.batch * self.model.width.div_ceil(stride) * self.model.height.div_ceil(stride);
        if is_normed && !self.model.quantized && n_values < 2 {
            let (width, height) = (self.model.width, self.model.height);
            bail!(
                "`batch` is 1 at an input of {width}x{height}: batch norm would see a single value; take 2 pictures or a larger input"
            );
        }
        if let Some(Distill { logits, boxes, features, temperature, .. }) = self.distill {
            if ![logits, boxes, features].iter().all(|weight| (0.0..1e6).contains(weight)) {
                bail!("`distill.logits`, `.boxes`, `.features` are {logits}, {boxes}, {features}, expected 0 or more");
            }
            if !(0.1..=100.0).contains(&temperature) {
                bail!("`distill.temperature` is {temperature}, expected 0.1 to 100");
            }
        }
        Ok(())
    }

    /// Reads `fit.toml`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Writes `fit.toml`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        crate::files::write_atomic(path, toml::to_string(self)?.as_bytes())
    }

    /// Slope of the activation below 0 at `iteration`.
    pub(crate) fn slope(&self, iteration: usize) -> f64 {
        let until = self.leak_share * self.iterations as f64;
        (self.leak * (1.0 - iteration as f64 / until.max(1.0))).max(0.0) * f64::from(u8::from(until > 0.0))
    }

    /// Augmentation at `iteration`.
    pub(crate) fn augment(&self, iteration: usize) -> Augmentation {
        let is_late = iteration as f64 >= (1.0 - self.mosaic_off) * self.iterations as f64;
        Augmentation { mosaic: if is_late { 0.0 } else { self.augment.mosaic }, ..self.augment }
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::spec::Backbone;

    fn model() -> ModelSpec {
        ModelSpec {
            anchors: ModelSpec::paper_anchors(),
            ..ModelSpec::edge(Backbone::ResNet18, 256, 4, (96, 64), vec!["a".into()])
        }
    }

    #[test]
    fn the_paper_preset_is_the_paper() {
        let config = FitConfig::paper("data".into(), model());
        config.check().unwrap();
        assert_eq!((config.batch, config.iterations, config.rule), (16, 90_000, Rule::Sgd));
        assert_eq!((config.lr, config.weight_decay, config.prior, config.loss), (0.01, 1e-4, 0.01, ClsLoss::default()));
        assert_eq!(config.augment(0), Augmentation::FLIP_ONLY);
        for (iteration, want) in [(1000, 1.0), (59_999, 1.0), (60_000, 0.1), (79_999, 0.1), (80_000, 0.01), (89_999, 0.01)] {
            let factor = config.schedule.factor(iteration, config.iterations, config.warmup);
            assert!((factor - want).abs() < 1e-12, "{iteration}: {factor}");
        }
    }

    #[test]
    fn a_short_run_has_a_short_warm_up() {
        for (steps, warmup) in [(200, 20), (900, 90), (90_000, 1000)] {
            let mut config = FitConfig::paper("data".into(), model());
            config.set_iterations(steps);
            assert_eq!((config.iterations, config.warmup), (steps, warmup));
        }
    }

    #[test]
    fn a_mean_over_one_value_is_refused() {
        let config = |batch: usize, size: (usize, usize), norm: bool| {
            let mut model = ModelSpec { pyramid_norm: norm, width: size.0, height: size.1, ..model() };
            model.quantized = false;
            FitConfig { batch, ..FitConfig::edge("data".into(), model) }
        };
        for (batch, size, norm, is_possible) in [
            (1, (128, 128), true, false),
            (2, (128, 128), true, true),
            (1, (160, 128), true, true),
            (1, (128, 128), false, true),
            (1, (32, 32), false, false),
        ] {
            assert_eq!(config(batch, size, norm).check().is_ok(), is_possible, "{batch} {size:?} {norm}");
        }
    }

    #[test]
    fn settings_survive_their_file() {
        for config in [FitConfig::paper("data".into(), model()), FitConfig::edge("data".into(), model())] {
            assert_eq!(toml::from_str::<FitConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
    }
}
