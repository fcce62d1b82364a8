//! Two corrections of Nagel et al. 2019 ("Data-free quantization through weight equalization and bias correction"), with
//! what the calibration pictures showed in place of batch norm's statistics.
//!
//! Both work on folded weights and leave the float network as it is: equalisation exactly, bias correction by being
//! applied to the quantised network only.

use crate::calibrate::{Channel, Observed};
use crate::fold::Folded;
use crate::graph::{Activation, Conv, Graph, Node, Op};
use crate::quantize::rounded;

/// Smallest share of a tensor's range that a channel's range counts as.
const LEAST_SHARE: f32 = 1e-3;

/// Moves scale between convolutions that follow each other (section 4.1): `ReLU` is positively homogeneous, so channel `c` of
/// the first may be divided by `s[c]` if the second multiplies it back. Weights of the first have a scale for each
/// channel anyway; what is equalised is the activation between them, which has one scale, against the weights of the
/// second: `s[c] = sqrt(range of the activation / range of the second's weights on it)`. A depthwise second has a
/// scale for each channel too, so there the activation is equalised entirely. Returns how many pairs there were.
pub(crate) fn equalize(graph: &Graph, folded: &mut Folded, observed: &Observed) -> usize {
    let pairs = pairs(graph);
    for (first, second, node) in &pairs {
        let of_channels = |c: usize| {
            let largest = |&id: &usize| observed.channels[id].get(c).map_or(0.0, |channel: &Channel| channel.largest);
            node.outputs.iter().map(largest).fold(0.0, f32::max)
        };
        let factors = factors(second, folded, &(0..first.c_out).map(of_channels).collect::<Vec<f32>>());
        if let Some(conv) = folded.get_mut(&first.name) {
            let taps = conv.weights.len() / first.c_out;
            for (c, factor) in factors.iter().enumerate() {
                conv.weights[c * taps..][..taps].iter_mut().for_each(|w| *w /= factor);
                conv.bias[c] /= factor;
            }
        }
        if let Some(conv) = folded.get_mut(&second.name) {
            let area = second.kernel * second.kernel;
            for (place, taps) in conv.weights.chunks_exact_mut(area).enumerate() {
                let factor = factors[input_of(second, place)];
                taps.iter_mut().for_each(|w| *w *= factor);
            }
        }
    }
    pairs.len()
}

/// The input channel that the `place`-th kernel of a convolution reads.
const fn input_of(conv: &Conv, place: usize) -> usize {
    let per_group = conv.c_in / conv.groups;
    let row = place / per_group;
    row / (conv.c_out / conv.groups) * per_group + place % per_group
}

/// Convolutions whose outputs one other convolution reads, and nobody else.
fn pairs(graph: &Graph) -> Vec<(&Conv, &Conv, &Node)> {
    let is_head = |id: &usize| graph.levels.iter().any(|(cls, bbox)| id == cls || id == bbox);
    let second_of = |node: &Node| {
        let readers: Vec<&Node> =
            graph.nodes.iter().filter(|reader| reader.inputs.iter().any(|id| node.outputs.contains(id))).collect();
        let [reader] = readers[..] else { return None };
        let reads_all = reader.inputs == node.outputs && !node.outputs.iter().any(is_head);
        if let (Op::Conv(second), true) = (&reader.op, reads_all) { Some(second) } else { None }
    };
    // ReLU6 is not homogeneous.
    let firsts = graph
        .nodes
        .iter()
        .filter_map(|node| if let Op::Conv(conv) = &node.op { Some((conv, node)) } else { None })
        .filter(|(conv, _)| conv.activation != Activation::Relu6);
    firsts.filter_map(|(first, node)| Some((first, second_of(node)?, node))).collect()
}

/// What each channel between two convolutions is divided by; at most 1.
fn factors(second: &Conv, folded: &Folded, activation: &[f32]) -> Vec<f32> {
    let largest = activation.iter().copied().fold(1e-12, f32::max);
    let share = |range: f32| (range / largest).max(LEAST_SHARE);
    let is_depthwise = second.groups == second.c_in;
    let mut factors: Vec<f32> = activation.iter().map(|&range| if range == 0.0 { 1.0 } else { share(range) }).collect();
    if !is_depthwise {
        // The weights on each input channel, as shares of their row's largest.
        let mut on_channel = vec![LEAST_SHARE; second.c_in];
        let per_group = second.c_in / second.groups;
        for (row, weights) in folded[&second.name].rows().enumerate() {
            let magnitude = |taps: &[f32]| taps.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            let of_row = magnitude(weights).max(1e-12);
            for (k, taps) in weights.chunks_exact(second.kernel * second.kernel).enumerate() {
                let channel = &mut on_channel[input_of(second, row * per_group + k)];
                *channel = channel.max(magnitude(taps) / of_row);
            }
        }
        factors.iter_mut().zip(&on_channel).for_each(|(factor, weights)| *factor = (*factor / weights).sqrt());
    }
    let most = factors.iter().copied().fold(1e-12, f32::max);
    factors.iter().map(|factor| factor / most).collect()
}

/// Takes the mean error that rounded weights make on mean inputs off the biases (section 4.2): these biases belong to the
/// quantised network.
pub(crate) fn correct_biases(graph: &Graph, folded: &mut Folded, observed: &Observed) {
    for node in &graph.nodes {
        let Op::Conv(conv) = &node.op else { continue };
        let Some(of_conv) = folded.get_mut(&conv.name) else { continue };
        let mean = |c: usize| {
            let means = node.inputs.iter().map(|&id| observed.channels[id][c].mean);
            means.sum::<f64>() / node.inputs.len() as f64
        };
        let means: Vec<f64> = (0..conv.c_in).map(mean).collect();
        let (area, per_group) = (conv.kernel * conv.kernel, conv.c_in / conv.groups);
        let rounded = rounded(of_conv);
        for (place, (rounded, exact)) in rounded.chunks_exact(area).zip(of_conv.weights.chunks_exact(area)).enumerate() {
            let error: f64 = rounded.iter().zip(exact).map(|(rounded, exact)| f64::from(*rounded) - f64::from(*exact)).sum();
            of_conv.bias[place / per_group] -= (error * means[input_of(conv, place)]) as f32;
        }
    }
}
