//! Batch norm folded into the convolution in front of it: what is exported and quantised.

use crate::graph::Graph;
use crate::spec::Norm;
use crate::weights::{Array, Weights};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// Added to the variance by batch norm, while training and when it is folded.
pub(crate) const NORM_EPS: f32 = 1e-5;

/// Weights `[O, I / groups, k, k]` and biases of one convolution.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FoldedConv {
    /// Row-major weights.
    pub(crate) weights: Vec<f32>,
    /// One a channel.
    pub(crate) bias: Vec<f32>,
}

impl FoldedConv {
    /// The weights of each output channel.
    pub(crate) fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.weights.chunks_exact((self.weights.len() / self.bias.len()).max(1))
    }
}

/// By name of the convolution.
pub(crate) type Folded = BTreeMap<String, FoldedConv>;

/// Folds every convolution of a network.
///
/// # Errors
/// A missing array or one of another length; a group norm.
pub(crate) fn fold(graph: &Graph, weights: &Weights) -> Result<Folded> {
    graph.convs().map(|conv| Ok((conv.name.clone(), fold_conv(conv, weights)?))).collect()
}

fn fold_conv(conv: &crate::graph::Conv, weights: &Weights) -> Result<FoldedConv> {
    let len = conv.c_out * conv.c_in / conv.groups * conv.kernel * conv.kernel;
    let get = |suffix: &str, len: usize| -> Result<&Array> {
        let name = format!("{}.{suffix}", conv.name);
        let array = weights.get(&name).with_context(|| format!("the weights have no `{name}`"))?;
        if array.data.len() != len {
            bail!("`{name}` has {} values, the network needs {len}", array.data.len());
        }
        Ok(array)
    };
    let mut folded = FoldedConv { weights: get("weight", len)?.data.clone(), bias: vec![0.0; conv.c_out] };
    match conv.norm {
        Norm::None => {
            folded.bias.clone_from(&get("bias", conv.c_out)?.data);
            return Ok(folded);
        }
        Norm::Batch => {}
        Norm::Group => bail!(
            "`{}` has a group norm, whose statistics are those of the picture at hand, so that it cannot become part of the \
             convolution; train with head_norm = \"batch\" to export",
            conv.name
        ),
    }
    let [gamma, beta, mean, var] =
        ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"].map(|suffix| get(suffix, conv.c_out));
    let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
    folded.bias = fold_norm(&mut folded.weights, [&gamma.data, &beta.data, &mean.data, &var.data], NORM_EPS);
    Ok(folded)
}

/// Folds a batch norm (weight, bias, running mean and variance) into the weights before it; gives their biases.
pub(crate) fn fold_norm(weights: &mut [f32], [gamma, beta, mean, var]: [&[f32]; 4], eps: f32) -> Vec<f32> {
    let taps = weights.len() / gamma.len();
    let fold = |(o, taps): (usize, &mut [f32])| {
        let scale = gamma[o] / (var[o] + eps).sqrt();
        taps.iter_mut().for_each(|tap| *tap *= scale);
        beta[o] - mean[o] * scale
    };
    weights.chunks_exact_mut(taps).enumerate().map(fold).collect()
}
