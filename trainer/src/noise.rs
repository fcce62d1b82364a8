//! What quantising a part of the network costs: the noise that it makes at the heads.
//!
//! Noise is the energy of the differences from the float network over the energy of its signal, in logits (above the
//! lowest that is resolved) plus in deltas, both at the anchors that the float network decodes. It needs no labels.

use crate::calibrate::{LOWEST_LOGIT, Method, Observed, Output, decoded_anchors};
use crate::export::{Fake, fake_model};
use crate::fold::Folded;
use crate::graph::{Graph, Op, ValueId};
use crate::package::planar;
use crate::quantize::rounded;
use crate::spec::ModelSpec;
use anyhow::{Context, Result};
use fovea::executor::{LoadOptions, Network, onnx};
use indicatif::ProgressBar;
use rayon::prelude::*;

/// A float network on a few pictures, against which changed ones are held.
pub(crate) struct Probe<'a> {
    graph: &'a Graph,
    spec: &'a ModelSpec,
    folded: &'a Folded,
    pictures: &'a [Vec<u8>],
    /// By picture: the outputs of the float network.
    outputs: Vec<Vec<Output>>,
    /// By picture and level: anchors that are compared.
    anchors: Vec<Vec<Vec<(usize, usize)>>>,
}

/// Energy of differences and of the signal.
#[derive(Debug, Clone, Copy, Default)]
struct Energy {
    noise: f64,
    signal: f64,
}

impl Energy {
    fn add(&mut self, wanted: f32, got: f32) {
        self.noise += f64::from(wanted - got).powi(2);
        self.signal += f64::from(wanted).powi(2);
    }

    fn share(self) -> f64 {
        self.noise / self.signal.max(1e-12)
    }
}

impl<'a> Probe<'a> {
    /// Runs the float network.
    pub(crate) fn new(graph: &'a Graph, spec: &'a ModelSpec, folded: &'a Folded, pictures: &'a [Vec<u8>]) -> Result<Self> {
        let outputs = run(&onnx::encode(&fake_model(graph, spec, folded, &Fake::new())), spec, pictures)?;
        let n_levels = graph.levels.len();
        let anchors_above = |logit: f32| -> Vec<Vec<Vec<(usize, usize)>>> {
            let of = |outputs: &Vec<Output>| {
                (0..n_levels).map(|level| decoded_anchors(&outputs[level], &outputs[n_levels + level], logit)).collect()
            };
            outputs.iter().map(of).collect()
        };
        let mut anchors = anchors_above(crate::calibrate::DECODED_LOGIT);
        if anchors.iter().flatten().all(Vec::is_empty) {
            anchors = anchors_above(f32::MIN);
        }
        Ok(Self { graph, spec, folded, pictures, outputs, anchors })
    }

    /// Noise of the network with the activations of `fake` quantised, and of the weights `folded` where given.
    pub(crate) fn noise(&self, folded: Option<&Folded>, fake: &Fake) -> Result<f64> {
        self.of_network(&onnx::encode(&fake_model(self.graph, self.spec, folded.unwrap_or(self.folded), fake)))
    }

    /// Noise of a network with the same heads; one in QDQ form runs in integers.
    pub(crate) fn of_network(&self, model: &[u8]) -> Result<f64> {
        let n_levels = self.graph.levels.len();
        let (mut logits, mut deltas) = (Energy::default(), Energy::default());
        for ((got, wanted), anchors) in run(model, self.spec, self.pictures)?.iter().zip(&self.outputs).zip(&self.anchors) {
            for (level, anchors) in anchors.iter().enumerate() {
                let compare = |output: usize, per_anchor: usize, energy: &mut Energy, seen: fn(f32) -> f32| {
                    let (wanted, got) = (&wanted[output], &got[output]);
                    let places = |&(anchor, cell): &(usize, usize)| {
                        (0..per_anchor).map(move |k| (anchor * per_anchor + k) * wanted.n_cells + cell)
                    };
                    anchors.iter().flat_map(places).for_each(|at| energy.add(seen(wanted.values[at]), seen(got.values[at])));
                };
                compare(level, self.spec.classes.len(), &mut logits, |logit| (logit - LOWEST_LOGIT).max(0.0));
                compare(n_levels + level, 4, &mut deltas, |delta| delta);
            }
        }
        Ok(logits.share() + deltas.share())
    }
}

fn run(model: &[u8], spec: &ModelSpec, pictures: &[Vec<u8>]) -> Result<Vec<Vec<Output>>> {
    let options = LoadOptions { allow_float: true, ..LoadOptions::default() };
    let mut network = Network::load(model, &options).context("a network to compare with")?;
    let cells: Vec<usize> = network.outputs().iter().map(|output| output.shape.h * output.shape.w).collect();
    let mut run = |picture: &Vec<u8>| -> Result<Vec<Output>> {
        let outputs = network.run_f32(&planar(picture, spec.pixels))?;
        Ok(outputs.iter().zip(&cells).map(|(values, &n_cells)| Output { values: values.to_vec(), n_cells }).collect())
    };
    pictures.iter().map(&mut run).collect()
}

/// For each group the method whose range makes the least noise when this group alone is quantised; ranges that hardly
/// differ are not tried twice.
pub(crate) fn choose_methods(probe: &Probe<'_>, observed: &Observed, bar: &ProgressBar) -> Result<Vec<(ValueId, Method)>> {
    let roots: Vec<ValueId> = observed.choices().collect();
    bar.set_length(roots.len() as u64);
    let choose = |&root: &ValueId| -> Result<(ValueId, Method)> {
        let mut tried: Vec<(f32, f64, Method)> = Vec::new();
        for method in Method::ALL {
            let params = observed.params(root, method)?;
            if tried.iter().all(|(scale, ..)| (params.scale / scale - 1.0).abs() > 0.02) {
                let fake = made(probe.graph, &observed.root, root).map(|id| (id, params)).collect();
                tried.push((params.scale, probe.noise(None, &fake)?, method));
            }
        }
        bar.inc(1);
        let best = tried.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        Ok((root, best.map_or(Method::Mse, |best| best.2)))
    };
    roots.par_iter().map(choose).collect()
}

/// Noise of one layer when it alone is quantised.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct LayerNoise {
    /// Name of the convolution, or of the value that another operator makes.
    pub(crate) layer: String,
    /// Of its weights.
    pub(crate) weights: f64,
    /// Of what comes out of it.
    pub(crate) activations: f64,
}

/// Every layer quantised alone, the noisiest first.
pub(crate) fn sensitivity(
    probe: &Probe<'_>,
    activations: &[fovea::quant::QuantParams],
    bar: &ProgressBar,
) -> Result<Vec<LayerNoise>> {
    let computes: Vec<_> =
        probe.graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv(_) | Op::Add { .. } | Op::Relu)).collect();
    bar.set_length(computes.len() as u64);
    let measure = |node: &&crate::graph::Node| -> Result<LayerNoise> {
        let fake: Fake = node.outputs.iter().map(|&id| (id, activations[id])).collect();
        let (layer, weights) = match &node.op {
            Op::Conv(conv) => {
                let mut folded = probe.folded.clone();
                if let Some(conv) = folded.get_mut(&conv.name) {
                    conv.weights = rounded(conv);
                }
                (conv.name.clone(), probe.noise(Some(&folded), &Fake::new())?)
            }
            _ => (probe.graph.values[node.outputs[0]].name.clone(), 0.0),
        };
        let activations = probe.noise(None, &fake)?;
        bar.inc(1);
        Ok(LayerNoise { layer, weights, activations })
    };
    let mut layers: Vec<LayerNoise> = computes.par_iter().map(measure).collect::<Result<_>>()?;
    let total = |layer: &LayerNoise| layer.weights + layer.activations;
    layers.sort_by(|a, b| total(b).total_cmp(&total(a)));
    Ok(layers)
}

/// Values of a group that an operator computes, as opposed to passes on.
fn made(graph: &Graph, root: &[ValueId], of: ValueId) -> impl Iterator<Item = ValueId> {
    let computes = graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv(_) | Op::Add { .. } | Op::Relu));
    computes.flat_map(|node| node.outputs.iter().copied()).filter(move |&id| root[id] == of)
}
