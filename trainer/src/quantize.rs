//! Weights as `i8`, one scale for each output channel.

use crate::export::QuantConv;
use crate::fold::Folded;
use crate::graph::Graph;
use std::collections::BTreeMap;

/// Quantises every convolution: symmetric, `w / scale` rounded half to even, in `-127..=127`, with the scale of least
/// squared error among shares of the largest weight.
pub(crate) fn quantize_convs(graph: &Graph, folded: &Folded) -> BTreeMap<String, QuantConv> {
    graph
        .convs()
        .map(|conv| {
            let taps = conv.c_in / conv.groups * conv.kernel * conv.kernel;
            let mut quantized = QuantConv { weights: Vec::new(), scales: Vec::with_capacity(conv.c_out) };
            for row in folded[&conv.name].weights.chunks_exact(taps) {
                let scale = best_scale(row);
                quantized.weights.extend(row.iter().map(|&w| quantize(w, scale)));
                quantized.scales.push(scale);
            }
            (conv.name.clone(), quantized)
        })
        .collect()
}

fn quantize(weight: f32, scale: f32) -> i8 {
    (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

fn best_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0.0_f32, |largest, w| largest.max(w.abs())).max(1e-8);
    let error = |scale: f32| -> f64 { row.iter().map(|&w| f64::from(w - f32::from(quantize(w, scale)) * scale).powi(2)).sum() };
    let shares = (70..=100_u8).rev().map(|percent| largest * f32::from(percent) / (100.0 * 127.0));
    shares.map(|scale| (scale, error(scale))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(largest / 127.0, |best| best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_come_back_within_half_a_step() {
        let row: Vec<f32> = (0..64_u8).map(|i| (f32::from(i) - 31.5) / 100.0).collect();
        let scale = best_scale(&row);
        for &w in &row {
            assert!((w - f32::from(quantize(w, scale)) * scale).abs() <= 0.51 * scale, "{w} at {scale}");
        }
        assert!(best_scale(&[0.0; 9]) > 0.0);
    }
}
