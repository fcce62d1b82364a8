//! Weights as `i8`, one scale for each output channel; scales that training with quantisation keeps in the weights file.

use crate::export::{QuantConv, Quantization};
use crate::fold::{Folded, FoldedConv};
use crate::graph::Graph;
use crate::weights::{Array, Weights};
use anyhow::{Context, Result, bail};
use fovea::quant::QuantParams;
use std::collections::BTreeMap;

/// Name of the array `[values, 2]` of scales and zero points; `<conv>.scale` are the scales of weights.
pub(crate) const ACTIVATIONS: &str = "activations";

impl QuantConv {
    /// The largest magnitude that a sum of products can come to, whatever the input is.
    #[cfg(feature = "train")]
    pub(crate) fn largest_sum(&self) -> i64 {
        let n_taps = self.weights.len() / self.scales.len();
        let sum = |row: &[i8]| row.iter().map(|weight| 255 * i64::from(weight.unsigned_abs())).sum();
        self.weights.chunks(n_taps.max(1)).map(sum).max().unwrap_or(0)
    }
}

/// The quantisation that a network was trained with.
///
/// # Errors
/// A missing array, one of another length, or a scale that is none.
pub(crate) fn stored(graph: &Graph, folded: &Folded, weights: &Weights) -> Result<Quantization> {
    let get = |name: &str| weights.get(name).with_context(|| format!("the weights have no `{name}`"));
    let activations = activations_of(get(ACTIVATIONS)?, graph)?;
    let mut convs = BTreeMap::new();
    for conv in graph.convs() {
        let name = format!("{}.scale", conv.name);
        let scales = get(&name)?.data.clone();
        if scales.len() != conv.c_out || scales.iter().any(|scale| !(scale.is_normal() && *scale > 0.0)) {
            bail!("`{name}` does not hold {} scales above 0", conv.c_out);
        }
        let rows = folded[&conv.name].rows().zip(&scales);
        let weights = rows.flat_map(|(row, &scale)| row.iter().map(move |&w| quantize(w, scale))).collect();
        convs.insert(conv.name.clone(), QuantConv { weights, scales });
    }
    let biases = folded.iter().map(|(name, conv)| (name.clone(), conv.bias.clone())).collect();
    Ok(Quantization { activations, convs, biases })
}

/// Parameters of every value from the array [`ACTIVATIONS`].
pub(crate) fn activations_of(array: &Array, graph: &Graph) -> Result<Vec<QuantParams>> {
    if array.data.len() != 2 * graph.values.len() {
        bail!("`{ACTIVATIONS}` has {} values, the network needs {}", array.data.len(), 2 * graph.values.len());
    }
    let params = array.data.as_chunks::<2>().0.iter().map(|&[scale, zero_point]| {
        let is_byte = zero_point.fract() == 0.0 && (0.0..=255.0).contains(&zero_point);
        anyhow::ensure!(is_byte, "`{ACTIVATIONS}` has a zero point of {zero_point}");
        Ok(QuantParams::new(scale, zero_point as u8)?)
    });
    params.collect()
}

/// Quantises every convolution: symmetric, `w / scale` rounded half to even, in `-127..=127`, with the scale of least
/// squared error among shares of the largest weight.
pub(crate) fn quantize_convs(graph: &Graph, folded: &Folded) -> BTreeMap<String, QuantConv> {
    graph
        .convs()
        .map(|conv| {
            let folded = &folded[&conv.name];
            let least = least_of(folded);
            let scales: Vec<f32> = folded.rows().map(|row| best_scale(row, least)).collect();
            let rows = folded.rows().zip(&scales);
            let weights = rows.flat_map(|(row, &scale)| row.iter().map(move |&w| quantize(w, scale))).collect();
            (conv.name.clone(), QuantConv { weights, scales })
        })
        .collect()
}

/// The weights of a convolution as they are once quantised.
pub(crate) fn rounded(conv: &FoldedConv) -> Vec<f32> {
    let least = least_of(conv);
    let of_row = |row: &[f32]| {
        let scale = best_scale(row, least);
        row.iter().map(|&w| f32::from(quantize(w, scale)) * scale).collect::<Vec<f32>>()
    };
    conv.rows().flat_map(of_row).collect()
}

fn quantize(weight: f32, scale: f32) -> i8 {
    (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

fn largest_of(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |largest, w| largest.max(w.abs()))
}

/// What the largest weight of a row counts as at least: next to the others the weights of a nearly dead filter are nothing,
/// but its bias, in steps of their scale, has to fit 32 bits.
fn least_of(conv: &FoldedConv) -> f32 {
    (largest_of(&conv.weights) / 16384.0).max(1e-8)
}

fn best_scale(row: &[f32], least: f32) -> f32 {
    let largest = largest_of(row);
    if largest == 0.0 {
        // Any scale is right for the weights; the bias counts in steps of it and has to fit 32 bits.
        return 1.0 / 128.0;
    }
    let largest = largest.max(least);
    let error = |scale: f32| -> f64 { row.iter().map(|&w| f64::from(w - f32::from(quantize(w, scale)) * scale).powi(2)).sum() };
    let shares = (70..=100_u8).rev().map(|percent| largest * f32::from(percent) / (100.0 * 127.0));
    shares.map(|scale| (scale, error(scale))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(largest / 127.0, |best| best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter that is nearly dead has a bias all the same, in steps of its scale.
    #[test]
    fn biases_of_nearly_dead_filters_fit_32_bits() {
        for largest in [0.0, 1e-38, 1e-12, 1e-7, 1e-4] {
            let weights = [[0.5_f32; 9], [largest; 9]].concat();
            let conv = FoldedConv { weights, bias: vec![0.3; 2] };
            let steps = conv.rows().map(|row| 0.3 / (0.02 * best_scale(row, least_of(&conv))));
            assert!(steps.into_iter().all(|steps| steps < 1e9), "{largest}");
            assert!(rounded(&conv).iter().zip(&conv.weights).all(|(a, b)| (a - b).abs() < 0.5 / 127.0), "{largest}");
        }
    }

    #[test]
    fn weights_come_back_within_half_a_step() {
        let row: Vec<f32> = (0..64_u8).map(|i| (f32::from(i) - 31.5) / 100.0).collect();
        let scale = best_scale(&row, 1e-8);
        for &w in &row {
            assert!((w - f32::from(quantize(w, scale)) * scale).abs() <= 0.51 * scale, "{w} at {scale}");
        }
        assert!(
            best_scale(&[0.0; 9], 1e-8) > 1e-3,
            "a bias of a dead filter, in steps of this times the input's scale, fits 32 bits"
        );
    }
}
