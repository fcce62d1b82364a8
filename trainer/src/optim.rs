//! Optimisers on one flat vector of all parameters: SGD with momentum (the paper's) and `AdamW`, with global-norm clipping
//! and an exponential moving average. All state is in named vectors, so that a checkpoint can hold every bit of it.

use crate::model::{Group, Model};
use crate::peers::Peers;
use crate::weights::{Array, Weights};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which rule changes the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub(crate) enum Rule {
    /// Momentum 0.9 (paper section 4.1).
    Sgd,
    /// Loshchilov and Hutter 2019; betas 0.9 and 0.999.
    #[default]
    AdamW,
}

/// Learning rate over the iterations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Schedule {
    /// Half a cosine down to a hundredth.
    #[default]
    Cosine,
    /// Divided by 10 at two thirds and at eight ninths (the paper's 60k and 80k of 90k).
    Steps,
}

impl Schedule {
    /// Factor on the learning rate at `iteration` of `total`, with a linear warm-up.
    pub(crate) fn factor(self, iteration: usize, total: usize, warmup: usize) -> f64 {
        let warm = if iteration < warmup { (iteration + 1) as f64 / warmup as f64 } else { 1.0 };
        let part = iteration as f64 / total.max(1) as f64;
        warm * match self {
            Self::Cosine => 0.01 + 0.99 * 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos()),
            Self::Steps => [2.0 / 3.0, 8.0 / 9.0].iter().filter(|&&at| part >= at).fold(1.0, |factor, _| factor * 0.1),
        }
    }
}

/// One step's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Learning rate of the head.
    pub(crate) lr: f64,
    /// Factor on it for the backbone.
    pub(crate) backbone: f64,
    /// Weight decay: coupled for SGD, decoupled for `AdamW`.
    pub(crate) weight_decay: f64,
    /// Largest norm of all gradients together.
    pub(crate) clip: f64,
    /// How much of the average is kept; ramps up from 0 over the first steps.
    pub(crate) ema: f64,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;

/// The state of an optimiser.
#[derive(Debug)]
pub(crate) struct Optimizer {
    rule: Rule,
    /// First moment (SGD: velocity), second moment (`AdamW` only), averages of parameters and running statistics.
    first: Tensor,
    second: Tensor,
    ema: Tensor,
    ema_buffers: Tensor,
    /// 1 where the learning rate of the backbone holds.
    is_backbone: Tensor,
    /// 1 where weight decay pulls.
    decays: Tensor,
    n_steps: usize,
}

impl Optimizer {
    /// A fresh optimiser for a model; the averages start at its weights.
    pub(crate) fn new(model: &Model, rule: Rule) -> Self {
        let mask = |holds: &dyn Fn(&crate::model::Param) -> bool| {
            let parts: Vec<Tensor> = model
                .params
                .values()
                .map(|p| Tensor::full([p.tensor.numel() as i64], f64::from(u8::from(holds(p))), (Kind::Float, model.device())))
                .collect();
            Tensor::cat(&parts, 0)
        };
        tch::no_grad(|| {
            let ema = flat_params(model);
            Self {
                rule,
                first: ema.zeros_like(),
                second: ema.zeros_like(),
                ema_buffers: flat_buffers(model),
                is_backbone: mask(&|p| p.group == Group::Backbone),
                decays: mask(&|p| p.decays),
                ema,
                n_steps: 0,
            }
        })
    }

    /// Moves the parameters along the sum of all processes' gradients and clears these; running statistics become the mean
    /// over the processes. Returns the norm of the gradients before clipping;
    /// where it is not finite nothing was moved.
    pub(crate) fn step(&mut self, model: &mut Model, step: &Step, peers: &mut Peers) -> Result<f64> {
        tch::no_grad(|| {
            let gradients: Vec<Tensor> = model
                .params
                .values()
                .map(|p| {
                    let grad = p.tensor.grad();
                    if grad.defined() { grad.reshape([-1]) } else { p.tensor.zeros_like().reshape([-1]) }
                })
                .collect();
            let mut grad = Tensor::cat(&gradients, 0);
            if peers.world > 1 {
                let len = grad.numel() as i64;
                let all = peers.sum_tensor(Tensor::cat(&[grad, flat_buffers(model)], 0))?;
                grad = all.narrow(0, 0, len).copy();
                let buffers = all.narrow(0, len, all.numel() as i64 - len) / peers.world as f64;
                scatter(model.buffers.values_mut(), &buffers);
            }
            let norm = f64::try_from(grad.norm())?;
            if !norm.is_finite() {
                return Ok(norm);
            }
            if norm > step.clip {
                let _ = grad.g_mul_scalar_(step.clip / norm);
            }
            let mut params = flat_params(model);
            let lr = (&self.is_backbone * (step.backbone - 1.0) + 1.0) * step.lr;
            self.n_steps += 1;
            match self.rule {
                Rule::Sgd => {
                    let _ = grad.g_add_(&(&params * &self.decays * step.weight_decay));
                    let _ = self.first.g_mul_scalar_(0.9).g_add_(&grad);
                    let _ = params.g_sub_(&(lr * &self.first));
                }
                Rule::AdamW => {
                    let _ = params.g_sub_(&(&params * &self.decays * &lr * step.weight_decay));
                    let _ = self.first.lerp_(&grad, 1.0 - BETA1);
                    let _ = self.second.lerp_(&grad.square(), 1.0 - BETA2);
                    let exponent = i32::try_from(self.n_steps).unwrap_or(i32::MAX);
                    let (c1, c2) = (1.0 - BETA1.powi(exponent), 1.0 - BETA2.powi(exponent));
                    let denominator = (&self.second / c2).sqrt() + 1e-8;
                    let _ = params.g_sub_(&(lr * (&self.first / c1) / denominator));
                }
            }
            let keep = step.ema.min((1.0 + self.n_steps as f64) / (10.0 + self.n_steps as f64));
            let _ = self.ema.lerp_(&params, 1.0 - keep);
            let _ = self.ema_buffers.lerp_(&flat_buffers(model), 1.0 - keep);
            scatter(model.params.values_mut().map(|p| &mut p.tensor), &params);
            for param in model.params.values_mut() {
                param.tensor.zero_grad();
            }
            Ok(norm)
        })
    }

    /// Puts the averages in place of the model's weights, or back: a second call undoes the first.
    pub(crate) fn swap_average(&mut self, model: &mut Model) {
        tch::no_grad(|| {
            let (params, buffers) = (flat_params(model), flat_buffers(model));
            scatter(model.params.values_mut().map(|p| &mut p.tensor), &self.ema);
            scatter(model.buffers.values_mut(), &self.ema_buffers);
            (self.ema, self.ema_buffers) = (params, buffers);
        });
    }

    /// The whole state by name.
    pub(crate) fn state(&self) -> Result<Weights> {
        let mut state = Weights::new();
        for (name, tensor) in
            [("first", &self.first), ("second", &self.second), ("ema", &self.ema), ("ema_buffers", &self.ema_buffers)]
        {
            state.insert(format!("optimizer.{name}"), crate::model::array(tensor)?);
        }
        Ok(state)
    }

    /// Restores what [`Self::state`] gave, at step `n_steps`.
    pub(crate) fn restore(&mut self, state: &Weights, n_steps: usize) -> Result<()> {
        let vectors = [
            ("first", &mut self.first),
            ("second", &mut self.second),
            ("ema", &mut self.ema),
            ("ema_buffers", &mut self.ema_buffers),
        ];
        for (name, tensor) in vectors {
            let name = format!("optimizer.{name}");
            let Some(Array { data, .. }) = state.get(&name) else { bail!("`{name}` is missing") };
            if data.len() != tensor.numel() {
                bail!("`{name}` has {} values, expected {}", data.len(), tensor.numel());
            }
            let values = Tensor::from_slice(data);
            tch::no_grad(|| tensor.copy_(&values));
        }
        self.n_steps = n_steps;
        Ok(())
    }
}

fn flat_params(model: &Model) -> Tensor {
    let parts: Vec<Tensor> = model.params.values().map(|p| p.tensor.detach().reshape([-1])).collect();
    Tensor::cat(&parts, 0)
}

fn flat_buffers(model: &Model) -> Tensor {
    let parts: Vec<Tensor> = model.buffers.values().map(|b| b.reshape([-1])).collect();
    if parts.is_empty() { Tensor::zeros([0], (Kind::Float, model.device())) } else { Tensor::cat(&parts, 0) }
}

fn scatter<'a>(tensors: impl Iterator<Item = &'a mut Tensor>, flat: &Tensor) {
    let mut first = 0;
    for tensor in tensors {
        let len = tensor.numel() as i64;
        let size = tensor.size();
        tensor.copy_(&flat.narrow(0, first, len).reshape(size));
        first += len;
    }
}
