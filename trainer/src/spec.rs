//! What a model is, in words a person writes: backbone, widths, input size, anchors, classes.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use fovea::retinanet::{AnchorConfig, InputSpec, LevelSpec, Manifest, NetworkSpec, PostprocessSpec};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Strides of P3 to P7.
pub(crate) const STRIDES: [usize; 5] = [8, 16, 32, 64, 128];

/// The part of the network that makes C3, C4, C5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub(crate) enum Backbone {
    /// `ShuffleNetV2` 1.0x (Ma et al. 2018, table 5).
    ShuffleNetV2,
    /// `ShuffleNetV2` 0.5x.
    #[serde(rename = "shufflenetv2-x0.5")]
    #[value(name = "shufflenetv2-x0.5")]
    ShuffleNetV2X05,
    /// `ShuffleNetV2` 1.5x.
    #[serde(rename = "shufflenetv2-x1.5")]
    #[value(name = "shufflenetv2-x1.5")]
    ShuffleNetV2X15,
    /// `ShuffleNetV2` 2.0x.
    #[serde(rename = "shufflenetv2-x2.0")]
    #[value(name = "shufflenetv2-x2.0")]
    ShuffleNetV2X20,
    /// `MobileNetV2` 1.0 (Sandler et al. 2018, table 2); C5 is its last block of 320 channels.
    MobileNetV2,
    /// Plain 3x3 convolutions, narrow: 24-48-96-160 channels.
    EdgeLite,
    /// Residual 3x3 blocks: 32-64-128-256 channels.
    EdgeRes,
    /// `ResNet-18` (He et al. 2016, table 1).
    ResNet18,
    /// `ResNet-34`.
    ResNet34,
    /// `ResNet-50`.
    ResNet50,
    /// `ResNet-101`.
    ResNet101,
    /// `ResNet-152`.
    ResNet152,
    /// `ResNeXt-50` 32x4d (Xie et al. 2017, table 1).
    ResNeXt50,
    /// `ResNeXt-101` 32x8d.
    ResNeXt101,
}

impl Backbone {
    /// Its name in `model.toml` and on the command line.
    pub(crate) fn label(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    const fn is_shufflenet(self) -> bool {
        matches!(self, Self::ShuffleNetV2 | Self::ShuffleNetV2X05 | Self::ShuffleNetV2X15 | Self::ShuffleNetV2X20)
    }
}

/// How the levels come from C3, C4, C5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pyramid {
    /// P3 to P7, P6 from C5 (the paper; detectron2, torchvision's second version).
    #[default]
    Fpn,
    /// P3 to P7, P6 from P5 (torchvision's first version).
    FpnP5,
    /// C5 alone, all sizes of anchors on it: the paper's comparison without a pyramid.
    C5,
}

/// What stands between a convolution and its activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Norm {
    /// A bias.
    None,
    /// Batch norm, over all levels at once where they share the convolution; folded on export.
    #[default]
    Batch,
    /// Group norm (Wu & He 2018), each level by itself; cannot be folded, so such a network is not exported.
    Group,
}

/// How a pixel becomes a value of the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pixels {
    /// Subtracted, for R, G, B.
    pub(crate) mean: [f32; 3],
    /// What the difference is divided by.
    pub(crate) std: [f32; 3],
}

impl Default for Pixels {
    fn default() -> Self {
        Self { mean: [0.0; 3], std: [255.0; 3] }
    }
}

impl Pixels {
    /// Value of a pixel's channel in the network's input.
    pub(crate) fn real(&self, channel: usize, pixel: u8) -> f32 {
        (f32::from(pixel) - self.mean[channel]) / self.std[channel]
    }

    /// Smallest and largest value.
    pub(crate) fn range(&self) -> (f32, f32) {
        let ends = |pixel: u8| (0..3).map(move |channel| self.real(channel, pixel));
        (ends(0).fold(f32::INFINITY, f32::min), ends(255).fold(f32::NEG_INFINITY, f32::max))
    }
}

/// A network, without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSpec {
    /// Makes C3 to C5.
    pub(crate) backbone: Backbone,
    /// Batch norm in the backbone: yes from scratch, no for weights whose batch norm is folded.
    pub(crate) backbone_norm: bool,
    /// Stride 2 of a bottleneck in its first 1x1 convolution (Caffe, detectron2) instead of its 3x3 (torchvision).
    #[serde(default)]
    pub(crate) stride_in_1x1: bool,
    /// Blocks of the stages that make C3, C4 and C5; other than (4, 8, 4) for a `ShuffleNetV2` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blocks: Option<[usize; 3]>,
    /// How the levels come from the backbone.
    #[serde(default)]
    pub(crate) pyramid: Pyramid,
    /// Batch norm in the pyramid; else biases, as the paper has it.
    #[serde(default = "yes")]
    pub(crate) pyramid_norm: bool,
    /// Channels of P3 to P7.
    pub(crate) fpn_width: usize,
    /// Channels of the towers.
    pub(crate) head_width: usize,
    /// 3x3 convolutions in each tower, before the last.
    pub(crate) head_depth: usize,
    /// Norm in the towers.
    #[serde(default)]
    pub(crate) head_norm: Norm,
    /// Width of the input in pixels, a multiple of 32.
    pub(crate) width: usize,
    /// Height of the input in pixels, a multiple of 32.
    pub(crate) height: usize,
    /// Class names, in the order of the outputs.
    pub(crate) classes: Vec<String>,
    /// Values of the input; other than pixel / 255 for imported networks.
    #[serde(default)]
    pub(crate) pixels: Pixels,
    /// Trained with quantisation: batch norm is folded, the weights file holds scales.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) quantized: bool,
    /// Anchors.
    pub(crate) anchors: AnchorConfig,
}

const fn yes() -> bool {
    true
}

impl ModelSpec {
    /// A network of the edge recipe: batch norm everywhere, edge anchors.
    pub(crate) fn edge(
        backbone: Backbone,
        channels: usize,
        head_depth: usize,
        size: (usize, usize),
        classes: Vec<String>,
    ) -> Self {
        Self {
            backbone,
            backbone_norm: true,
            stride_in_1x1: false,
            blocks: None,
            pyramid: Pyramid::Fpn,
            pyramid_norm: true,
            fpn_width: channels,
            head_width: channels,
            head_depth,
            head_norm: Norm::Batch,
            width: size.0,
            height: size.1,
            classes,
            pixels: Pixels::default(),
            quantized: false,
            anchors: Self::edge_anchors(),
        }
    }

    /// Anchors of the edge presets: 2 x stride, three scales, three ratios, centred in the cell.
    pub(crate) fn edge_anchors() -> AnchorConfig {
        AnchorConfig { center_offset: 0.5, ..AnchorConfig::octaves(2.0, &STRIDES, 3) }
    }

    /// Anchors of the paper (section 4): 32 to 512 pixels, 4 x stride, at the corner of the cell as detectron2 has it.
    pub(crate) fn paper_anchors() -> AnchorConfig {
        AnchorConfig::octaves(4.0, &STRIDES, 3)
    }

    /// `anchors` with `n_scales` scales to the octave, the square or the paper's three ratios, and, for a single level,
    /// the sizes of all five on it.
    pub(crate) fn arranged(anchors: AnchorConfig, n_scales: u8, is_square: bool, pyramid: Pyramid) -> AnchorConfig {
        let base = anchors.base_sizes[0];
        let mut arranged = AnchorConfig::octaves(base / STRIDES[0] as f32, &STRIDES, n_scales);
        if pyramid == Pyramid::C5 {
            let octave = arranged.scales;
            arranged.scales = (0..STRIDES.len()).flat_map(|k| octave.iter().map(move |scale| scale * (1 << k) as f32)).collect();
            arranged.base_sizes.truncate(1);
        }
        let aspect_ratios = if is_square { vec![1.0] } else { anchors.aspect_ratios.clone() };
        AnchorConfig { base_sizes: arranged.base_sizes, scales: arranged.scales, aspect_ratios, ..anchors }
    }

    /// Strides of the levels, from the finest.
    pub(crate) fn strides(&self) -> &'static [usize] {
        if self.pyramid == Pyramid::C5 { &STRIDES[2..3] } else { &STRIDES }
    }

    /// Checks sizes and names.
    pub(crate) fn check(&self) -> Result<()> {
        for (key, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || side % 32 != 0 || side > 4096 {
                bail!("input {key} {side}: must be a multiple of 32 up to 4096, as the pyramid is upsampled by 2");
            }
        }
        if self.classes.is_empty() {
            bail!("the model has no classes");
        }
        if let Some(blocks) = self.blocks {
            if !self.backbone.is_shufflenet() {
                bail!(
                    "blocks {blocks:?}: the backbone {} has its own; only a shufflenetv2 can have others",
                    self.backbone.label()
                );
            }
            if blocks.iter().any(|n| !(1..=64).contains(n)) {
                bail!("blocks {blocks:?}: a stage has 1 to 64 of them");
            }
        }
        let (levels, sizes) = (self.strides().len(), self.anchors.base_sizes.len());
        if levels != sizes {
            bail!("anchors.base_sizes has {sizes} values, the pyramid {:?} has {levels} levels", self.pyramid);
        }
        for (key, channels) in [("fpn_width", self.fpn_width), ("head_width", self.head_width)] {
            if !(1..=4096).contains(&channels) {
                bail!("{key} {channels}: must be 1 to 4096 channels");
            }
        }
        // Its own rules on classes and anchors, before hours of training.
        Ok(self.manifest("model", "model.onnx").check()?)
    }

    /// The manifest of this model, with a network in `file`.
    pub(crate) fn manifest(&self, name: &str, file: &str) -> Manifest {
        let level = |&stride: &usize| {
            let p = stride.ilog2();
            LevelSpec { stride, cls: format!("cls_p{p}"), bbox: format!("box_p{p}") }
        };
        Manifest {
            schema: fovea::retinanet::MANIFEST_SCHEMA,
            name: name.into(),
            network: NetworkSpec { file: file.into(), sha256: None },
            input: InputSpec {
                name: "images".into(),
                width: self.width,
                height: self.height,
                preprocess: fovea::retinanet::PREPROCESS_VERSION,
                mean: self.pixels.mean,
                std: self.pixels.std,
            },
            anchors: self.anchors.clone(),
            levels: self.strides().iter().map(level).collect(),
            postprocess: PostprocessSpec::default(),
            classes: self.classes.clone(),
        }
    }

    /// Reads `model.toml` of a run.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let spec: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        spec.check().with_context(|| path.display().to_string())?;
        Ok(spec)
    }

    /// Writes `model.toml` of a run.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        crate::files::write_atomic(path, toml::to_string(self)?.as_bytes())
    }
}
