//! Quantisation-aware training: the network in libtorch with the arithmetic of the integer kernels.
//!
//! Activations are steps `q - zero_point`, weights and biases whole numbers, all as f32, so that a convolution gives the exact
//! accumulator (as long as the magnitudes of its terms add up to less than 2^24) and the requantisation rule of `fovea::quant`
//! follows in the same order of operations: what comes out is what the executor computes, bit for bit. Backwards, rounding passes
//! gradients through (the straight-through estimator) and a clamp stops them. Scales stay as calibration found them on the
//! float run; batch norm is folded first.

use crate::calibrate::{Method, calibration_pictures, observe_all};
use crate::data::Folder;
use crate::fold::fold;
use crate::graph::{Activation, Conv, Graph, Node, Op, ValueId};
use crate::model::{LevelOutput, Model, input, value};
use crate::quantize::{ACTIVATIONS, quantize_convs};
use crate::run_dir::RunDir;
use crate::spec::{ModelSpec, Pixels};
use crate::weights::{self, Array};
use anyhow::{Context, Result};
use fovea::quant::QuantParams;
use std::path::Path;
use tch::{Kind, Tensor};

/// Pictures that scales are taken from.
const N_PICTURES: usize = 512;

/// Up to here f32 has every whole number.
const EXACT: i64 = 1 << 24;

/// Starts a network of `spec` (which says `quantized`) from the averaged weights of a float run: folds batch norm, calibrates
/// on `data`, and sets weights, biases and scales.
pub(crate) fn start(model: &mut Model, spec: &ModelSpec, run: &Path, data: &Folder, seed: u64) -> Result<()> {
    let run = RunDir(run.to_owned());
    let float_spec = ModelSpec { quantized: false, ..spec.clone() };
    let float = Graph::new(&float_spec);
    let folded = fold(&float, &weights::read(&run.weights())?.weights).with_context(|| run.weights().display().to_string())?;
    let pictures = calibration_pictures(data, spec, N_PICTURES, seed)?;
    let observed = observe_all(&float, &float_spec, &folded, &pictures)?;
    let activations = observed.activations(|_| Method::Mse)?;
    let convs = quantize_convs(&float, &folded);
    let names = float.convs().map(|conv| &*conv.name);
    let beyond: Vec<&str> = names.filter(|name| convs[*name].largest_sum() >= EXACT).collect();
    if !beyond.is_empty() {
        say!(
            "warning: sums of {} may leave the whole numbers that f32 has (2^24): there a step may differ from what the executor computes",
            beyond.join(", ")
        );
    }
    let mut arrays = weights::Weights::new();
    for conv in float.convs() {
        let (folded, scales) = (&folded[&conv.name], convs[&conv.name].scales.clone());
        let shape = vec![conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel];
        arrays.insert(format!("{}.weight", conv.name), Array { shape, data: folded.weights.clone() });
        arrays.insert(format!("{}.bias", conv.name), Array { shape: vec![conv.c_out], data: folded.bias.clone() });
        arrays.insert(format!("{}.scale", conv.name), Array { shape: vec![conv.c_out], data: scales });
    }
    let flat = activations.iter().flat_map(|params| [params.scale, f32::from(params.zero_point)]).collect();
    arrays.insert(ACTIVATIONS.into(), Array { shape: vec![activations.len(), 2], data: flat });
    model.load(&arrays)
}

impl Model {
    /// Heads as the integer network has them, and the activations `taps`.
    pub(crate) fn forward_quantized(&self, images: &Tensor, taps: &[ValueId]) -> (Vec<LevelOutput>, Vec<Tensor>) {
        let activations = &self.activations[..];
        let mut steps: Vec<Option<Tensor>> = (0..self.graph.values.len()).map(|_| None).collect();
        let pixels = images.permute([0, 3, 1, 2]);
        steps[0] = Some(if self.graph.pixels == Pixels::default() {
            pixels.to_kind(Kind::Float)
        } else {
            let reals = input(&pixels, self.graph.pixels, Kind::Float);
            requantized(&(reals / scalar(activations[0].scale, &pixels)), activations[0], Activation::None)
        });
        let last_use = self.last_uses(taps);
        for (step, node) in self.graph.nodes.iter().enumerate() {
            let inputs: Vec<Tensor> = node.inputs.iter().map(|&id| value(&steps, id).shallow_clone()).collect();
            for &id in &node.inputs {
                if last_use[id] == step {
                    steps[id] = None;
                }
            }
            match &node.op {
                Op::Conv(conv) => {
                    for ((input, &from), &to) in inputs.iter().zip(&node.inputs).zip(&node.outputs) {
                        steps[to] = Some(self.quantized_conv(conv, input, activations[from], activations[to]));
                    }
                }
                op => steps[node.outputs[0]] = Some(quantized_simple(op, &inputs, node, activations)),
            }
        }
        let real = |id: ValueId| value(&steps, id) * f64::from(activations[id].scale);
        let heads = |id: ValueId| real(id).permute([0, 2, 3, 1]);
        let levels = self.graph.levels.iter().map(|&(cls, bbox)| LevelOutput { cls: heads(cls), bbox: heads(bbox) }).collect();
        (levels, taps.iter().map(|&id| real(id)).collect())
    }

    fn quantized_conv(&self, conv: &Conv, input: &Tensor, from: QuantParams, to: QuantParams) -> Tensor {
        let scale = &self.buffers[&format!("{}.scale", conv.name)];
        let param = |suffix: &str| &self.params[&format!("{}.{suffix}", conv.name)].tensor;
        let weight = rounded(&(param("weight") / scale.reshape([-1, 1, 1, 1]))).clamp(-127.0, 127.0);
        // In the order of operations of the exporter and of `quant::multiplier`.
        let of_steps = scale * f64::from(from.scale);
        let bias = rounded(&(param("bias").to_kind(Kind::Double) / of_steps.to_kind(Kind::Double))).to_kind(Kind::Float);
        let (stride, pad) = ([conv.stride as i64; 2], [(conv.kernel / 2) as i64; 2]);
        let sums = input.conv2d(&weight, Some(bias), stride, pad, [1, 1], conv.groups as i64);
        let multiplier = (of_steps / scalar(to.scale, input)).reshape([1, -1, 1, 1]);
        requantized(&(sums * multiplier), to, conv.activation)
    }
}

/// The nearest whole number, halves to even; gradients pass. The sum is exact: `x` and its nearest whole number differ by
/// a number that f32 has.
fn rounded(x: &Tensor) -> Tensor {
    x + (x.round() - x).detach()
}

/// `round(clamp(x, lo - zp, hi - zp))`; an activation narrows `lo..=hi`.
fn requantized(x: &Tensor, to: QuantParams, activation: Activation) -> Tensor {
    let step = |q: u8| f64::from(q) - f64::from(to.zero_point);
    let (low, high) = match activation {
        Activation::None => (step(0), step(255)),
        Activation::Relu => (0.0, step(255)),
        Activation::Relu6 => (0.0, step(to.quantize(6.0))),
    };
    rounded(&x.clamp(low, high))
}

/// A divisor: libtorch may multiply by the reciprocal of a number, not of a tensor.
fn scalar(value: f32, like: &Tensor) -> Tensor {
    Tensor::from_slice(&[value]).to_device(like.device())
}

/// Steps under other parameters, as a table of 256 entries has them.
fn rescaled(x: &Tensor, from: QuantParams, to: QuantParams) -> Tensor {
    if from == to {
        return x.shallow_clone();
    }
    requantized(&(x * f64::from(from.scale) / scalar(to.scale, x)), to, Activation::None)
}

fn quantized_simple(op: &Op, inputs: &[Tensor], node: &Node, activations: &[QuantParams]) -> Tensor {
    let to = activations[node.outputs[0]];
    let from = |n: usize| activations[node.inputs[n]];
    let x = &inputs[0];
    match op {
        Op::Add { relu } => {
            let term = |n: usize| &inputs[n] * f64::from(from(n).scale / to.scale);
            requantized(&(term(0) + term(1)), to, if *relu { Activation::Relu } else { Activation::None })
        }
        Op::Relu => rescaled(&x.relu(), from(0), to),
        Op::Concat => {
            let parts: Vec<Tensor> = inputs.iter().enumerate().map(|(n, x)| rescaled(x, from(n), to)).collect();
            Tensor::cat(&parts, 1)
        }
        op => rescaled(&crate::model::simple(op, inputs, crate::model::Mode::EVAL), from(0), to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::quantized_model;
    use crate::package::{planar, test_picture};
    use crate::quantize::stored;
    use crate::spec::{Backbone, Pixels};
    use fovea::executor::{LoadOptions, Network, onnx};
    use fovea::images::{RgbPicture, save};

    /// A folder of pictures and a float run with weights: those of the shipped model, or random ones.
    fn float_run(dir: &Path, spec: &ModelSpec, shipped: bool) -> RunDir {
        std::fs::create_dir_all(dir.join("images")).unwrap();
        let image = |id: usize| {
            let data = test_picture(spec.width, spec.height).iter().map(|v| v.wrapping_mul(2 * id as u8 + 1)).collect();
            let picture = RgbPicture { width: spec.width, height: spec.height, data };
            save(&dir.join(format!("images/{id}.png")), &picture).unwrap();
            serde_json::json!({"id": id, "file_name": format!("{id}.png"), "width": spec.width, "height": spec.height})
        };
        let coco = serde_json::json!({"images": [image(0), image(1)], "annotations": [], "categories": []});
        std::fs::write(dir.join("annotations.json"), coco.to_string()).unwrap();
        let run = RunDir(dir.to_owned());
        let weights = if shipped {
            weights::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/street/weights.safetensors")).unwrap().weights
        } else {
            Model::new(spec, 0.2, 7, tch::Device::Cpu).weights().unwrap()
        };
        weights::write(&run.weights(), &weights, std::collections::HashMap::new()).unwrap();
        run
    }

    fn check(spec: &ModelSpec, shipped: bool) {
        let dir = tempfile::tempdir().unwrap();
        let run = float_run(dir.path(), spec, shipped);
        let spec = ModelSpec { quantized: true, ..spec.clone() };
        let mut model = Model::new(&spec, 0.2, 1, tch::Device::Cpu);
        start(&mut model, &spec, &run.0, &Folder::open(dir.path()).unwrap(), 1).unwrap();
        let weights = model.weights().unwrap();
        let quantization = stored(&model.graph, &fold(&model.graph, &weights).unwrap(), &weights).unwrap();
        let bytes = onnx::encode(&quantized_model(&model.graph, &spec, &quantization));
        let mut network = Network::load(&bytes, &LoadOptions::default()).unwrap();
        let (mut n_values, mut distinct) = (0, std::collections::BTreeSet::new());
        for factor in [1_u8, 5] {
            let pixels: Vec<u8> = test_picture(spec.width, spec.height).iter().map(|v| v.wrapping_mul(factor)).collect();
            let images = Tensor::from_data_size(&pixels, &[1, spec.height as i64, spec.width as i64, 3], Kind::Uint8);
            let heads = tch::no_grad(|| model.forward(&images, crate::model::Mode::EVAL));
            let wanted = heads.iter().map(|level| &level.cls).chain(heads.iter().map(|level| &level.bbox));
            let got = network.run_f32(&planar(&pixels, spec.pixels)).unwrap();
            for (idx, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let wanted = Vec::<f32>::try_from(wanted.permute([0, 3, 1, 2]).contiguous().reshape([-1])).unwrap();
                let differ = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
                assert!(
                    got.len() == wanted.len() && differ == 0,
                    "{:?} output {idx}: {differ} of {} differ",
                    spec.backbone,
                    got.len()
                );
                n_values += got.len();
                distinct.extend(got.iter().map(|v| v.to_bits()));
            }
        }
        assert!(distinct.len() > 20, "{n_values} values, only {} of them distinct: nothing was compared", distinct.len());
    }

    fn small(backbone: Backbone) -> ModelSpec {
        ModelSpec::edge(backbone, 16, 1, (96, 64), vec!["a".into(), "b".into()])
    }

    #[test]
    fn trainer_and_executor_agree_bit_for_bit() {
        for backbone in [Backbone::EdgeRes, Backbone::ShuffleNetV2] {
            check(&small(backbone), false);
        }
        // ReLU6, and an input whose steps are no pixels.
        let pixels = Pixels { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
        check(&ModelSpec { pixels, ..small(Backbone::MobileNetV2) }, false);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/street/model.toml");
        check(&ModelSpec { width: 192, height: 128, ..ModelSpec::read(&path).unwrap() }, true);
    }

    /// Rounding passes gradients through: they point where those of the float network do.
    #[test]
    fn gradients_are_those_of_float_nearly() {
        let dir = tempfile::tempdir().unwrap();
        let spec = small(Backbone::EdgeLite);
        let run = float_run(dir.path(), &spec, false);
        let spec = ModelSpec { quantized: true, ..spec };
        let mut model = Model::new(&spec, 0.2, 1, tch::Device::Cpu);
        start(&mut model, &spec, &run.0, &Folder::open(dir.path()).unwrap(), 1).unwrap();
        let images = Tensor::from_data_size(&test_picture(96, 64), &[1, 64, 96, 3], Kind::Uint8);
        let gradient = |model: &mut Model, heads: &[LevelOutput]| {
            heads.iter().map(|level| level.bbox.square().sum(Kind::Float)).sum::<Tensor>().backward();
            let gradient = model.params["fpn.lateral4.weight"].tensor.grad().copy().reshape([-1]);
            model.params.values_mut().for_each(|param| param.tensor.zero_grad());
            gradient
        };
        let heads = model.forward(&images, crate::model::Mode::EVAL);
        let quantized = gradient(&mut model, &heads);
        let heads = model.forward_float(&images, crate::model::Mode::EVAL, &[]).0;
        let float = gradient(&mut model, &heads);
        let cosine = f64::try_from(quantized.dot(&float) / (quantized.norm() * float.norm())).unwrap();
        assert!(cosine > 0.8, "cosine {cosine}");
    }
}
