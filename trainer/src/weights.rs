//! Named arrays in safetensors files, read and written without libtorch.

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// An array: sizes and values in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    /// Sizes.
    pub(crate) shape: Vec<usize>,
    /// Values.
    pub(crate) data: Vec<f32>,
}

/// Arrays by name.
pub(crate) type Weights = BTreeMap<String, Array>;

/// A file's arrays and its texts.
pub(crate) struct WeightsFile {
    /// Arrays by name.
    pub(crate) weights: Weights,
    /// Metadata.
    pub(crate) texts: HashMap<String, String>,
}

/// Reads a safetensors file with f32, f16 or bf16 arrays.
pub(crate) fn read(path: &Path) -> Result<WeightsFile> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read weights {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("{} is not a safetensors file", path.display()))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
    let mut weights = Weights::new();
    for (name, view) in file.tensors() {
        let raw = view.data();
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => raw.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => raw.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => bail!("{}: `{name}` has type {other:?}; F32, F16 and BF16 can be read", path.display()),
        };
        weights.insert(name.clone(), Array { shape: view.shape().to_vec(), data });
    }
    Ok(WeightsFile { weights, texts: metadata.metadata().clone().unwrap_or_default() })
}

/// Writes a safetensors file of f32 arrays: first beside it, then in its place, so that a cut never leaves half a file.
pub(crate) fn write(path: &Path, weights: &Weights, texts: HashMap<String, String>) -> Result<()> {
    let bytes: Vec<(&String, &Array, Vec<u8>)> =
        weights.iter().map(|(name, array)| (name, array, array.data.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let mut views = Vec::with_capacity(bytes.len());
    for (name, array, raw) in &bytes {
        views.push((name.as_str(), TensorView::new(Dtype::F32, array.shape.clone(), raw)?));
    }
    crate::files::write_atomic(path, &safetensors::serialize(views, Some(texts))?)
}

/// Writes a safetensors file of f16 arrays: half the size, for weights to start from.
pub(crate) fn write_f16(path: &Path, weights: &Weights) -> Result<()> {
    let half = |array: &Array| array.data.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
    let bytes: Vec<(&String, &Array, Vec<u8>)> = weights.iter().map(|(name, array)| (name, array, half(array))).collect();
    let mut views = Vec::with_capacity(bytes.len());
    for (name, array, raw) in &bytes {
        views.push((name.as_str(), TensorView::new(Dtype::F16, array.shape.clone(), raw)?));
    }
    crate::files::write_atomic(path, &safetensors::serialize(views, None)?)
}

/// How a foreign stem sees its input, from the `.json` beside its weights.
#[derive(Debug, serde::Deserialize)]
struct Sidecar {
    input: SidecarInput,
}

#[derive(Debug, serde::Deserialize)]
struct SidecarInput {
    order: String,
    mean: [f32; 3],
    scale: [f32; 3],
}

/// Initial weights: as [`read`]; where a `.json` beside the file states another input than RGB / 255, the stem is
/// rescaled to ours, with what is subtracted in its bias or in the mean of its batch norm. Exact except at the padded
/// border, which fine-tuning mends.
pub(crate) fn read_initial(path: &Path) -> Result<Weights> {
    let mut weights = read(path)?.weights;
    let json = path.with_extension("json");
    if !json.exists() {
        return Ok(weights);
    }
    let text = std::fs::read_to_string(&json).with_context(|| format!("cannot read {}", json.display()))?;
    let Sidecar { input } = serde_json::from_str(&text).with_context(|| format!("{}: no `input`", json.display()))?;
    let is_bgr = match input.order.as_str() {
        "BGR" => true,
        "RGB" => false,
        other => bail!("{}: input.order {other:?}, expected RGB or BGR", json.display()),
    };
    let Some(mut stem) = weights.remove("stem.weight") else { return Ok(weights) };
    if !matches!(stem.shape[..], [_, 3, _, _]) {
        bail!("{}: `stem.weight` is of {:?}, expected [channels, 3, height, width]", path.display(), stem.shape);
    }
    let none = Array { shape: vec![stem.shape[0]], data: vec![0.0; stem.shape[0]] };
    let mut bias = weights.remove("stem.bias").unwrap_or(none);
    if bias.data.len() != stem.shape[0] {
        bail!("{}: `stem.bias` has {} values for {} channels", path.display(), bias.data.len(), stem.shape[0]);
    }
    let area = stem.shape[2] * stem.shape[3];
    let foreign = stem.data.clone();
    for (out, shift) in bias.data.iter_mut().enumerate() {
        for channel in 0..3 {
            let from = if is_bgr { 2 - channel } else { channel };
            let taps = &foreign[(out * 3 + from) * area..][..area];
            *shift -= taps.iter().sum::<f32>() * input.mean[from] * input.scale[from];
            for (slot, tap) in stem.data[(out * 3 + channel) * area..][..area].iter_mut().zip(taps) {
                *slot = tap * input.scale[from] * 255.0;
            }
        }
    }
    weights.insert("stem.weight".into(), stem);
    match weights.get_mut("stem.norm.running_mean") {
        Some(mean) => mean.data.iter_mut().zip(&bias.data).for_each(|(mean, shift)| *mean -= shift),
        None => drop(weights.insert("stem.bias".into(), bias)),
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stem_of_another_shape_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stem.safetensors");
        let input = serde_json::json!({"input": {"order": "BGR", "mean": [1.0, 2.0, 3.0], "scale": [1.0, 1.0, 1.0]}});
        std::fs::write(path.with_extension("json"), input.to_string()).unwrap();
        for shape in [vec![24, 1, 3, 3], vec![24, 9]] {
            let data = vec![0.5; shape.iter().product()];
            write(&path, &Weights::from([("stem.weight".to_owned(), Array { shape, data })]), HashMap::new()).unwrap();
            let error = read_initial(&path).unwrap_err().to_string();
            assert!(error.contains("`stem.weight`") && error.contains("[channels, 3, height, width]"), "{error}");
        }
    }

    #[test]
    fn a_foreign_stem_sees_the_same_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stem.safetensors");
        let value = |i: usize| (i * 37 % 23) as f32 / 23.0 - 0.4;
        let stem = Array { shape: vec![2, 3, 3, 3], data: (0..54).map(value).collect() };
        let bias = Array { shape: vec![2], data: vec![0.3, -0.2] };
        let (mean, scale) = ([103.5_f32, 116.3, 123.7], [0.0174_f32, 0.0175, 0.0171]);
        let json = serde_json::json!({"input": {"order": "BGR", "mean": mean, "scale": scale}});
        std::fs::write(dir.path().join("stem.json"), json.to_string()).unwrap();
        let mut weights = Weights::from([("stem.weight".into(), stem.clone()), ("stem.bias".into(), bias.clone())]);
        write(&path, &weights, HashMap::new()).unwrap();
        let ours = read_initial(&path).unwrap();
        // With batch norm there is no bias; what is subtracted goes into its mean.
        weights.remove("stem.bias");
        weights.insert("stem.norm.running_mean".into(), Array { data: bias.data.iter().map(|b| -b).collect(), ..bias.clone() });
        write(&path, &weights, HashMap::new()).unwrap();
        let normed = read_initial(&path).unwrap();
        assert!(!normed.contains_key("stem.bias") && normed["stem.weight"] == ours["stem.weight"]);
        for (mean, bias) in normed["stem.norm.running_mean"].data.iter().zip(&ours["stem.bias"].data) {
            assert!((mean + bias).abs() < 1e-4, "mean {mean}, bias {bias}");
        }
        // One 3x3 patch of bytes, RGB: the convolution of the normalised BGR patch equals that of RGB / 255.
        let pixel = |channel: usize, tap: usize| ((channel * 91 + tap * 53) % 256) as f32;
        for out in 0..2 {
            let sum = |of: &dyn Fn(usize, usize) -> f32| {
                (0..3).flat_map(|c| (0..9).map(move |t| (c, t))).map(|(c, t)| of(c, t)).sum::<f32>()
            };
            let theirs = bias.data[out] + sum(&|c, t| stem.data[(out * 3 + c) * 9 + t] * (pixel(2 - c, t) - mean[c]) * scale[c]);
            let got =
                ours["stem.bias"].data[out] + sum(&|c, t| ours["stem.weight"].data[(out * 3 + c) * 9 + t] * pixel(c, t) / 255.0);
            assert!((theirs - got).abs() < 1e-3, "channel {out}: {theirs} and {got}");
        }
    }
}
