//! Distillation: a stronger network's outputs on the same batch are targets beside the labels.
//!
//! In: the batch and what the student made of it. Out: losses on scores, boxes and pyramid. The teacher computes as it
//! would be exported (running statistics, no gradients), so it has no state: a resumed run needs its folder and no more.
//! Only the adapters between pyramids of different width are learnt; they are in the checkpoint, not in the result.

use crate::loss::{decode, giou};
use crate::model::{Group, LevelOutput, Mode, Model, Param, normal};
use crate::request::Request;
use crate::run_dir::RunDir;
use crate::spec::ModelSpec;
use crate::weights;
use anyhow::{Context, Result};
use fovea::retinanet::Anchors;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Parameters that serve distillation only have names that start with this.
pub(crate) const PREFIX: &str = "distill.";

/// From this score on an anchor of the teacher says something about boxes.
const SURE: f64 = 0.1;

/// How a teacher is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Distill {
    /// Folder of a run or of a model with the student's anchors and at least its classes.
    pub(crate) teacher: PathBuf,
    /// Weight of the loss on the scores.
    pub(crate) logits: f64,
    /// Weight of the loss on the boxes.
    pub(crate) boxes: f64,
    /// Weight of the loss on the pyramid; 0: the pyramids may differ in everything but their strides.
    pub(crate) features: f64,
    /// Both networks' logits are divided by this before the loss on the scores.
    pub(crate) temperature: f64,
}

impl Distill {
    /// The defaults of `--teacher`.
    pub(crate) const fn new(teacher: PathBuf) -> Self {
        Self { teacher, logits: 1.0, boxes: 1.0, features: 1.0, temperature: 1.0 }
    }
}

/// A network to learn from.
#[derive(Debug)]
pub(crate) struct Teacher {
    model: Model,
    kind: Kind,
    settings: Distill,
    /// For each class of the student the teacher's.
    classes: Tensor,
    n_classes: i64,
    /// `[A, 4]`.
    anchors: Tensor,
}

/// What teacher and student disagree on, summed over the batch.
#[derive(Debug)]
pub(crate) struct Disagreement {
    /// Scores of the anchors that the teacher is sure of, summed: what the losses on scores and boxes are divided by.
    pub(crate) sure: f64,
    /// Loss on the scores.
    pub(crate) logits: f64,
    /// Its gradient with respect to the student's logits.
    pub(crate) gradient: Tensor,
    /// Loss on the boxes, `1 - GIoU` weighted with the teacher's scores.
    pub(crate) boxes: Tensor,
    /// Loss on the pyramid, 0 to 2 a level.
    pub(crate) features: Tensor,
}

impl Teacher {
    /// Reads the network in a folder, to be run on the student's inputs.
    ///
    /// # Errors
    /// No network there, or one that says nothing about the student's classes at the student's anchors.
    pub(crate) fn open(settings: &Distill, student: &ModelSpec, device: Device, kind: Kind) -> Result<Self> {
        let dir = RunDir(settings.teacher.clone());
        let mut spec = dir.spec()?;
        let refuse = |what: String| Request(format!("teacher {}: {what}", dir.0.display()));
        if (&spec.anchors, spec.strides()) != (&student.anchors, student.strides()) {
            return Err(refuse("its anchors are not the student's, so its outputs mean other boxes".into()).into());
        }
        let place = |class: &String| {
            let place = spec.classes.iter().position(|other| other == class);
            place.map(|place| place as i64).ok_or_else(|| refuse(format!("it does not know the class {class:?}")))
        };
        let classes: Vec<i64> = student.classes.iter().map(place).collect::<Result<_, _>>()?;
        (spec.width, spec.height) = (student.width, student.height);
        let mut model = Model::new(&spec, 0.01, 0, device);
        model.load(&weights::read(&dir.weights())?.weights).with_context(|| dir.weights().display().to_string())?;
        for param in model.params.values_mut() {
            param.tensor = param.tensor.set_requires_grad(false);
        }
        let manifest = spec.manifest("", "");
        let anchors = Anchors::new(&spec.anchors, (spec.width, spec.height), &manifest.strides(), &manifest.grids());
        let anchors: Vec<f32> = anchors.iter().flat_map(|anchor| anchor.to_array()).collect();
        Ok(Self {
            kind,
            settings: settings.clone(),
            classes: Tensor::from_slice(&classes).to_device(device),
            n_classes: spec.classes.len() as i64,
            anchors: Tensor::from_slice(&anchors).reshape([-1, 4]).to_device(device),
            model,
        })
    }

    /// Gives the student 1x1 convolutions from its pyramid to the teacher's where these differ in width.
    pub(crate) fn add_adapters(&self, student: &mut Model, seed: u64) {
        if self.settings.features == 0.0 {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xD157_111E);
        let widths = |model: &Model| -> Vec<usize> {
            model.graph.pyramid_values().iter().map(|&id| model.graph.values[id].channels).collect()
        };
        for (level, (from, to)) in (3..).zip(widths(student).into_iter().zip(widths(&self.model))) {
            if from != to {
                let std = (1.0 / from as f64).sqrt();
                let values: Vec<f32> = (0..from * to).map(|_| (normal(&mut rng) * std) as f32).collect();
                let tensor = Tensor::from_slice(&values).reshape([to as i64, from as i64, 1, 1]).to_device(student.device());
                let param = Param { tensor: tensor.set_requires_grad(true), group: Group::Head, decays: true };
                student.params.insert(format!("{PREFIX}p{level}.weight"), param);
            }
        }
    }

    /// Compares the student's outputs on `images` with the teacher's. `logits`: `[N, A, K]`; `deltas`: `[N, A, 4]`;
    /// `pyramid`: the student's P3 to P7.
    pub(crate) fn compare(
        &self,
        images: &Tensor,
        student: &Model,
        logits: &Tensor,
        deltas: &Tensor,
        pyramid: &[Tensor],
    ) -> Result<Disagreement> {
        let (soft_logits, soft_deltas, soft_pyramid) = tch::no_grad(|| {
            let mode = Mode { training: false, slope: 0.0, kind: self.kind };
            let (heads, pyramid) = self.model.forward_tapped(images, mode, self.model.graph.pyramid_values());
            let (logits, deltas) = joined(&heads, self.n_classes);
            (logits.index_select(2, &self.classes), deltas, pyramid)
        });
        let (loss, gradient) = soft_focal_with_gradient(logits, &soft_logits, self.settings.temperature);
        let score = soft_logits.sigmoid().amax(2, false).reshape([-1]);
        let places = score.ge(SURE).nonzero().squeeze_dim(1);
        let score = score.index_select(0, &places);
        let boxes = |deltas: &Tensor| {
            let anchors = self.anchors.index_select(0, &places.remainder(self.anchors.size()[0]));
            decode(&deltas.reshape([-1, 4]).index_select(0, &places), &anchors)
        };
        let boxes = ((giou(&boxes(deltas), &boxes(&soft_deltas)).neg() + 1.0) * &score).sum(Kind::Float);
        let mut features = Tensor::zeros([], (Kind::Float, images.device()));
        if self.settings.features > 0.0 {
            for (level, (mine, theirs)) in (3..).zip(pyramid.iter().zip(&soft_pyramid)) {
                let mine = mine.to_kind(Kind::Float);
                let adapter = student.params.get(&format!("{PREFIX}p{level}.weight"));
                let mine =
                    adapter.map_or(mine.shallow_clone(), |adapter| mine.conv2d::<Tensor>(&adapter.tensor, None, 1, 0, 1, 1));
                features += uncorrelated(&mine, &theirs.to_kind(Kind::Float));
            }
        }
        Ok(Disagreement { sure: f64::try_from(score.sum(Kind::Float))?, logits: f64::try_from(loss)?, gradient, boxes, features })
    }
}

/// Heads of all levels in the order of the anchors: `[N, A, K]` and `[N, A, 4]`.
pub(crate) fn joined(heads: &[LevelOutput], n_classes: i64) -> (Tensor, Tensor) {
    let join = |of: &dyn Fn(&LevelOutput) -> &Tensor, width: i64| {
        let levels: Vec<Tensor> = heads.iter().map(|level| of(level).reshape([of(level).size()[0], -1, width])).collect();
        Tensor::cat(&levels, 1)
    };
    (join(&|level| &level.cls, n_classes), join(&|level| &level.bbox, 4))
}

/// Value and gradient of the summed quality focal loss (Li et al. 2020, equation 2, beta 2) between sigmoids:
/// `L = T^2 (p - q)^2 ce(p, q)` with `p = sigmoid(x / T)` and `q = sigmoid(soft / T)`. It vanishes where both agree, so
/// the background, which is most of it, does not drown the rest. Closed form, as for the labels.
fn soft_focal_with_gradient(x: &Tensor, soft: &Tensor, temperature: f64) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let x = x.detach() / temperature;
        let (p, q) = (x.sigmoid(), (soft / temperature).sigmoid());
        let ce = x.softplus() - &q * &x;
        let gap = &p - &q;
        let square = gap.square();
        let loss = (&square * &ce).sum(Kind::Float) * (temperature * temperature);
        let slope: Tensor = &p * (p.neg() + 1.0) * ce * 2.0 + square;
        (loss, gap * slope * temperature)
    })
}

/// One minus the correlation of two activations over pictures and cells, mean over the channels: the squared distance of
/// features of mean 0 and variance 1 (PKD, Cao et al. 2022, equation 5). Neither scale nor shift of a channel counts.
fn uncorrelated(a: &Tensor, b: &Tensor) -> Tensor {
    let normalised = |x: &Tensor| {
        let x = x.permute([0, 2, 3, 1]).reshape([-1, x.size()[1]]);
        let centred = &x - x.mean_dim(0, true, Kind::Float);
        let variance = centred.square().mean_dim(0, true, Kind::Float);
        centred * (variance + 1e-6).rsqrt()
    };
    (normalised(a) - normalised(b)).square().mean(Kind::Float) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_on_scores_is_the_derivative_and_vanishes_where_both_agree() {
        let x = Tensor::from_slice(&[-12.0_f64, -4.0, -0.5, 0.0, 0.7, 3.0, 9.0]).set_requires_grad(true);
        let soft = Tensor::from_slice(&[-4.0_f64, -4.0, 2.0, -1.0, 0.7, -6.0, 5.0]);
        for temperature in [1.0, 2.0] {
            let (value, gradient) = soft_focal_with_gradient(&x, &soft, temperature);
            let (p, q) = ((&x / temperature).sigmoid(), (&soft / temperature).sigmoid());
            let ce = -(&q * p.log() + (q.neg() + 1.0) * (p.neg() + 1.0).log());
            let want = ((&p - &q).square() * ce).sum(Kind::Double) * (temperature * temperature);
            let want_gradient = Tensor::run_backward(&[&want], &[&x], false, false).remove(0);
            assert!((f64::try_from(&value).unwrap() - f64::try_from(&want).unwrap()).abs() < 1e-5);
            assert!(f64::try_from((&gradient - want_gradient).abs().max()).unwrap() < 1e-7);
            for same in [1, 4] {
                assert!(gradient.double_value(&[same]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn features_are_compared_up_to_scale_and_shift() {
        tch::manual_seed(3);
        let a = Tensor::randn([2, 3, 4, 5], (Kind::Float, Device::Cpu));
        let scale = Tensor::from_slice(&[3.0_f32, 0.1, 20.0]).reshape([1, 3, 1, 1]);
        let value = |b: &Tensor| f64::try_from(uncorrelated(&a, b)).unwrap();
        assert!(value(&(&a * &scale + 7.0)).abs() < 1e-3);
        assert!((value(&a.neg()) - 2.0).abs() < 1e-3);
        let other = Tensor::randn([2, 3, 4, 5], (Kind::Float, Device::Cpu));
        assert!((0.6..1.4).contains(&value(&other)), "{}", value(&other));
        // A channel that is the same everywhere has no direction to be pulled in, rather than an infinite one.
        let flat = Tensor::zeros([2, 3, 4, 5], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        uncorrelated(&flat, &a).backward();
        assert!(f64::try_from(flat.grad().abs().max()).unwrap().is_finite());
    }
}
