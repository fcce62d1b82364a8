//! The network in libtorch: parameters by name and the forward pass that interprets a [`Graph`].
//!
//! In: `[N, H, W, 3]` bytes. Out: for every level logits `[N, H, W, A x K]` and deltas `[N, H, W, A x 4]` in f32.
//! Activations are kept channels-last, which is what both oneDNN and cuDNN are fast with; masters are f32 whatever the
//! arithmetic is. A convolution that several levels share normalises over all of them at once.

use crate::fold::NORM_EPS;
use crate::graph::{Activation, Conv, Graph, Op, ValueId};
use crate::quantize::{ACTIVATIONS, activations_of};
use crate::spec::{ModelSpec, Norm, Pixels};
use crate::weights::{Array, Weights};
use anyhow::{Result, bail};
use fovea::quant::QuantParams;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Momentum of batch norm's running statistics.
const NORM_MOMENTUM: f64 = 0.03;

/// Which learning rate a parameter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Initial weights that are to be kept near.
    Backbone,
    /// Everything else.
    Head,
}

/// A parameter that is learnt.
#[derive(Debug)]
pub(crate) struct Param {
    /// The master, f32, a leaf of the autograd graph.
    pub(crate) tensor: Tensor,
    /// Its learning rate.
    pub(crate) group: Group,
    /// Whether weight decay pulls on it: weights yes, biases and batch norm no.
    pub(crate) decays: bool,
}

/// How a forward pass is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    /// Batch statistics, and running ones updated; else running statistics.
    pub(crate) training: bool,
    /// Slope of the activation below 0; 0 is `ReLU`.
    pub(crate) slope: f64,
    /// Type of the arithmetic: f32 or bf16.
    pub(crate) kind: Kind,
}

impl Mode {
    /// As the exported network computes.
    pub(crate) const EVAL: Self = Self { training: false, slope: 0.0, kind: Kind::Float };
}

/// Heads of one level.
#[derive(Debug)]
pub(crate) struct LevelOutput {
    /// `[N, H, W, A x K]`, f32.
    pub(crate) cls: Tensor,
    /// `[N, H, W, A x 4]`, f32.
    pub(crate) bbox: Tensor,
}

/// A network with its parameters.
#[derive(Debug)]
pub(crate) struct Model {
    /// The operators.
    pub(crate) graph: Graph,
    /// What is learnt, by name.
    pub(crate) params: BTreeMap<String, Param>,
    /// Running means and variances, by name.
    pub(crate) buffers: BTreeMap<String, Tensor>,
    /// Parameters of every value of a network that computes as the integer kernels do; empty for one in float.
    pub(crate) activations: Vec<QuantParams>,
    device: Device,
}

/// How many arrays of a file went into the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Arrays of the network that were set.
    pub(crate) set: usize,
    /// Arrays of the network that the file does not have.
    pub(crate) missing: usize,
    /// Arrays that have another shape in the file, such as the last layer for other classes: not taken.
    pub(crate) other_shape: usize,
}

impl Model {
    /// A network with random weights: normal with standard deviation `sqrt(2 / fan_out)` (He et al. 2015), 0.01 for the
    /// last convolutions, biases 0, and the prior of the paper (section 4.1) for the classification bias.
    pub(crate) fn new(spec: &ModelSpec, prior: f64, seed: u64, device: Device) -> Self {
        let graph = Graph::new(spec);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut params = BTreeMap::new();
        let mut buffers = BTreeMap::new();
        for conv in graph.convs() {
            let group =
                if conv.name.starts_with("fpn.") || conv.name.starts_with("head.") { Group::Head } else { Group::Backbone };
            let is_last = conv.name.ends_with(".last");
            let fan_out = conv.kernel * conv.kernel * conv.c_out / conv.groups;
            // The paper, section 4.1: the subnets, which have no norm there, begin with a deviation of 0.01.
            let is_plain_head = conv.name.starts_with("head.") && spec.head_norm == Norm::None;
            let std = if is_last || is_plain_head { 0.01 } else { (2.0 / fan_out as f64).sqrt() };
            let shape = weight_shape(conv);
            let n: i64 = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|_| (normal(&mut rng) * std) as f32).collect();
            let mut add = |name: String, tensor: Tensor, decays: bool| {
                let tensor = tensor.to_device(device).set_requires_grad(true);
                params.insert(name, Param { tensor, group, decays });
            };
            add(format!("{}.weight", conv.name), Tensor::from_slice(&values).reshape(shape), true);
            let channels = conv.c_out as i64;
            if conv.norm != Norm::None {
                add(format!("{}.norm.weight", conv.name), Tensor::ones([channels], (Kind::Float, Device::Cpu)), false);
                add(format!("{}.norm.bias", conv.name), Tensor::zeros([channels], (Kind::Float, Device::Cpu)), false);
            }
            if conv.norm == Norm::Batch {
                buffers.insert(format!("{}.norm.running_mean", conv.name), Tensor::zeros([channels], (Kind::Float, device)));
                buffers.insert(format!("{}.norm.running_var", conv.name), Tensor::ones([channels], (Kind::Float, device)));
            }
            if conv.norm == Norm::None {
                let bias = if conv.name == "head.cls.last" { -((1.0 - prior) / prior).ln() } else { 0.0 };
                add(format!("{}.bias", conv.name), Tensor::full([channels], bias, (Kind::Float, Device::Cpu)), false);
            }
        }
        let mut activations = Vec::new();
        if spec.quantized {
            // Until scales are loaded.
            let n = graph.values.len();
            activations = vec![QuantParams { scale: 1.0, zero_point: 0 }; n];
            buffers.insert(ACTIVATIONS.into(), Tensor::ones([n as i64, 2], (Kind::Float, device)));
            for conv in graph.convs() {
                buffers.insert(format!("{}.scale", conv.name), Tensor::ones([conv.c_out as i64], (Kind::Float, device)));
            }
        }
        Self { graph, params, buffers, activations, device }
    }

    /// Where the parameters are.
    pub(crate) const fn device(&self) -> Device {
        self.device
    }

    /// Sets every parameter and running statistic by name.
    ///
    /// # Errors
    /// An array that is missing or has another shape.
    pub(crate) fn load(&mut self, weights: &Weights) -> Result<()> {
        let loaded = self.load_matching(weights)?;
        if loaded.missing + loaded.other_shape > 0 {
            bail!(
                "{} arrays of the network are missing and {} have another shape: these are weights of another network",
                loaded.missing,
                loaded.other_shape
            );
        }
        if let Some(scales) = weights.get(ACTIVATIONS).filter(|_| !self.activations.is_empty()) {
            self.activations = activations_of(scales, &self.graph)?;
        }
        Ok(())
    }

    /// Sets what has the name and the shape of a parameter or running statistic: initial weights.
    ///
    /// # Errors
    /// If nothing fits.
    pub(crate) fn load_matching(&mut self, weights: &Weights) -> Result<Loaded> {
        let mut loaded = Loaded { set: 0, missing: 0, other_shape: 0 };
        let tensors = self.params.iter_mut().map(|(name, p)| (name, &mut p.tensor)).chain(self.buffers.iter_mut());
        for (name, tensor) in tensors {
            let Some(array) = weights.get(name) else {
                loaded.missing += 1;
                continue;
            };
            let shape: Vec<i64> = array.shape.iter().map(|&n| n as i64).collect();
            if tensor.size() != shape {
                loaded.other_shape += 1;
                continue;
            }
            let values = Tensor::from_slice(&array.data).reshape(&shape);
            tch::no_grad(|| tensor.copy_(&values));
            loaded.set += 1;
        }
        if loaded.set == 0 {
            bail!("none of its {} arrays has the name and shape of a parameter of the network", weights.len());
        }
        Ok(loaded)
    }

    /// Every parameter and running statistic.
    pub(crate) fn weights(&self) -> Result<Weights> {
        let tensors = self.params.iter().map(|(name, p)| (name, &p.tensor)).chain(&self.buffers);
        tensors.map(|(name, tensor)| Ok((name.clone(), array(tensor)?))).collect()
    }

    /// Heads of every level for a batch of pictures, `[N, H, W, 3]` bytes, RGB.
    pub(crate) fn forward(&self, images: &Tensor, mode: Mode) -> Vec<LevelOutput> {
        self.forward_tapped(images, mode, &[]).0
    }

    /// As [`Self::forward`], with the activations `taps` beside the heads.
    pub(crate) fn forward_tapped(&self, images: &Tensor, mode: Mode, taps: &[ValueId]) -> (Vec<LevelOutput>, Vec<Tensor>) {
        if self.activations.is_empty() { self.forward_float(images, mode, taps) } else { self.forward_quantized(images, taps) }
    }

    /// The same in float, of a network trained with quantisation as well.
    pub(crate) fn forward_float(&self, images: &Tensor, mode: Mode, taps: &[ValueId]) -> (Vec<LevelOutput>, Vec<Tensor>) {
        let mut values: Vec<Option<Tensor>> = (0..self.graph.values.len()).map(|_| None).collect();
        // A permuted view of NHWC bytes is an NCHW tensor in channels-last order; the conversion keeps that order.
        values[0] = Some(input(&images.permute([0, 3, 1, 2]), self.graph.pixels, mode.kind));
        let last_use = self.last_uses(taps);
        for (step, node) in self.graph.nodes.iter().enumerate() {
            let inputs: Vec<Tensor> = node.inputs.iter().map(|&id| value(&values, id).shallow_clone()).collect();
            for &id in &node.inputs {
                if last_use[id] == step {
                    values[id] = None;
                }
            }
            match &node.op {
                Op::Conv(conv) => {
                    for (&id, output) in node.outputs.iter().zip(self.conv(conv, &inputs, mode)) {
                        values[id] = Some(output);
                    }
                }
                op => values[node.outputs[0]] = Some(simple(op, &inputs, mode)),
            }
        }
        let heads = |id: ValueId| value(&values, id).permute([0, 2, 3, 1]).to_kind(Kind::Float);
        let levels = self.graph.levels.iter().map(|&(cls, bbox)| LevelOutput { cls: heads(cls), bbox: heads(bbox) }).collect();
        (levels, taps.iter().map(|&id| value(&values, id).shallow_clone()).collect())
    }

    /// For each value the last step that reads it; the heads and `taps` are never done with.
    pub(crate) fn last_uses(&self, taps: &[ValueId]) -> Vec<usize> {
        let mut last = vec![usize::MAX; self.graph.values.len()];
        for (step, node) in self.graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&id| last[id] = step);
        }
        for &(cls, bbox) in &self.graph.levels {
            (last[cls], last[bbox]) = (usize::MAX, usize::MAX);
        }
        taps.iter().for_each(|&id| last[id] = usize::MAX);
        last
    }

    fn conv(&self, conv: &Conv, inputs: &[Tensor], mode: Mode) -> Vec<Tensor> {
        let param = |suffix: &str| &self.params[&format!("{}.{suffix}", conv.name)].tensor;
        let weight = param("weight").to_kind(mode.kind);
        let bias = (conv.norm == Norm::None).then(|| param("bias").to_kind(mode.kind));
        let (stride, pad) = ([conv.stride as i64; 2], [(conv.kernel / 2) as i64; 2]);
        let outputs: Vec<Tensor> =
            inputs.iter().map(|x| x.conv2d(&weight, bias.as_ref(), stride, pad, [1, 1], conv.groups as i64)).collect();
        match conv.norm {
            Norm::None => outputs.iter().map(|x| activate(x, conv.activation, mode)).collect(),
            Norm::Group => {
                let [weight, bias] = ["norm.weight", "norm.bias"].map(|suffix| param(suffix).to_kind(mode.kind));
                let normed =
                    |x: &Tensor| x.group_norm(norm_groups(conv.c_out), Some(&weight), Some(&bias), f64::from(NORM_EPS), true);
                outputs.iter().map(|x| activate(&normed(x), conv.activation, mode)).collect()
            }
            Norm::Batch => {
                let (x, sizes) = join(&outputs);
                let buffer = |suffix: &str| &self.buffers[&format!("{}.norm.{suffix}", conv.name)];
                let x = x.batch_norm(
                    Some(param("norm.weight")),
                    Some(param("norm.bias")),
                    Some(buffer("running_mean")),
                    Some(buffer("running_var")),
                    mode.training,
                    NORM_MOMENTUM,
                    f64::from(NORM_EPS),
                    true,
                );
                split(&activate(&x, conv.activation, mode), &sizes)
            }
        }
    }
}

/// `[N, 3, H, W]` bytes as the network's input.
pub(crate) fn input(bytes: &Tensor, pixels: Pixels, kind: Kind) -> Tensor {
    if pixels == Pixels::default() {
        return bytes.to_kind(kind) / 255.0;
    }
    let by_channel = |values: [f32; 3]| Tensor::from_slice(&values).reshape([1, 3, 1, 1]).to_device(bytes.device());
    ((bytes.to_kind(Kind::Float) - by_channel(pixels.mean)) / by_channel(pixels.std)).to_kind(kind)
}

/// Groups of a group norm: 32 as the paper has it, or the largest power of two below that divides the channels.
fn norm_groups(channels: usize) -> i64 {
    (1 << channels.trailing_zeros().min(5)) as i64
}

pub(crate) fn value(values: &[Option<Tensor>], id: ValueId) -> &Tensor {
    values[id].as_ref().expect("nodes are in execution order")
}

/// Several channels-last activations as one, `[1, C, cells of all, 1]`, so that they are normalised together.
fn join(xs: &[Tensor]) -> (Tensor, Vec<Vec<i64>>) {
    let sizes: Vec<Vec<i64>> = xs.iter().map(Tensor::size).collect();
    if let [x] = xs {
        return (x.shallow_clone(), sizes);
    }
    let flat: Vec<Tensor> = xs.iter().map(|x| x.permute([0, 2, 3, 1]).reshape([-1, x.size()[1]])).collect();
    (Tensor::cat(&flat, 0).unsqueeze(0).unsqueeze(2).permute([0, 3, 1, 2]), sizes)
}

/// Undoes [`join`].
fn split(x: &Tensor, sizes: &[Vec<i64>]) -> Vec<Tensor> {
    if sizes.len() == 1 {
        return vec![x.shallow_clone()];
    }
    let channels = x.size()[1];
    let flat = x.permute([0, 2, 3, 1]).reshape([-1, channels]);
    let mut first = 0;
    let part = |size: &Vec<i64>| {
        let cells = size[0] * size[2] * size[3];
        let part = flat.narrow(0, first, cells).reshape([size[0], size[2], size[3], channels]).permute([0, 3, 1, 2]);
        first += cells;
        part
    };
    sizes.iter().map(part).collect()
}

fn activate(x: &Tensor, activation: Activation, mode: Mode) -> Tensor {
    match activation {
        Activation::None => x.shallow_clone(),
        // (1 - slope) relu(x) + slope x: two vectorised passes, where libtorch's PReLU is a scalar loop.
        Activation::Relu if mode.slope > 0.0 => x.relu().lerp(x, mode.slope),
        Activation::Relu => x.relu(),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}

pub(crate) fn simple(op: &Op, inputs: &[Tensor], mode: Mode) -> Tensor {
    let x = &inputs[0];
    match op {
        Op::Conv(_) => unreachable!("done by the model"),
        Op::MaxPool => x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false),
        Op::Slice { first, len } => x.narrow(1, *first as i64, *len as i64),
        Op::Shuffle => {
            let [n, c, h, w] = sizes(x);
            let cells = x.permute([0, 2, 3, 1]).reshape([n, h, w, 2, c / 2]).transpose(3, 4);
            cells.reshape([n, h, w, c]).permute([0, 3, 1, 2])
        }
        Op::Concat => Tensor::cat(inputs, 1),
        Op::Add { relu } => {
            let sum = x + &inputs[1];
            if *relu { activate(&sum, Activation::Relu, mode) } else { sum }
        }
        Op::Upsample2 => {
            let [_, _, h, w] = sizes(x);
            x.upsample_nearest2d([2 * h, 2 * w], None, None)
        }
        Op::Relu => activate(x, Activation::Relu, mode),
    }
}

fn sizes(x: &Tensor) -> [i64; 4] {
    x.size().try_into().expect("activations have four dimensions")
}

fn weight_shape(conv: &Conv) -> [i64; 4] {
    [conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel].map(|n| n as i64)
}

/// Box-Muller.
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
    let v: f64 = rng.random_range(0.0..std::f64::consts::TAU);
    (-2.0 * u.ln()).sqrt() * v.cos()
}

/// A tensor's values.
pub(crate) fn array(tensor: &Tensor) -> Result<Array> {
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().reshape([-1]);
    Ok(Array { shape, data: Vec::<f32>::try_from(&flat)? })
}
