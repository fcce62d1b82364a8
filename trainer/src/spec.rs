//! What a model is, in words a person writes: backbone, widths, input size, anchors, classes.

use anyhow::{Context, Result, bail};
use fovea::retinanet::{AnchorConfig, InputSpec, LevelSpec, Manifest, NetworkSpec, PostprocessSpec};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Strides of P3 to P7.
pub(crate) const STRIDES: [usize; 5] = [8, 16, 32, 64, 128];

/// The part of the network that makes C3, C4, C5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub(crate) enum Backbone {
    /// `ShuffleNetV2` 1.0x (Ma et al. 2018, table 5).
    ShuffleNetV2,
    /// Plain 3x3 convolutions, narrow: 24-48-96-160 channels.
    EdgeLite,
    /// Residual 3x3 blocks: 32-64-128-256 channels.
    EdgeRes,
    /// `ResNet-18` (He et al. 2016, table 1).
    ResNet18,
}

/// A network, without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSpec {
    /// Makes C3 to C5.
    pub(crate) backbone: Backbone,
    /// Batch norm in the backbone: yes from scratch, no for weights whose batch norm is folded.
    pub(crate) backbone_norm: bool,
    /// Channels of P3 to P7.
    pub(crate) fpn_width: usize,
    /// Channels of the towers.
    pub(crate) head_width: usize,
    /// 3x3 convolutions in each tower, before the last.
    pub(crate) head_depth: usize,
    /// Width of the input in pixels, a multiple of 32.
    pub(crate) width: usize,
    /// Height of the input in pixels, a multiple of 32.
    pub(crate) height: usize,
    /// Class names, in the order of the outputs.
    pub(crate) classes: Vec<String>,
    /// Anchors.
    pub(crate) anchors: AnchorConfig,
}

impl ModelSpec {
    /// Anchors of the edge presets: 2 x stride, three scales, three ratios, centred in the cell.
    pub(crate) fn edge_anchors() -> AnchorConfig {
        AnchorConfig { center_offset: 0.5, ..AnchorConfig::octaves(2.0, &STRIDES, 3) }
    }

    /// Anchors of the paper (section 4): 32 to 512 pixels, 4 x stride, at the corner of the cell as detectron2 has it.
    pub(crate) fn paper_anchors() -> AnchorConfig {
        AnchorConfig::octaves(4.0, &STRIDES, 3)
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
        Ok(())
    }

    /// The manifest of this model, with a network in `file`.
    pub(crate) fn manifest(&self, name: &str, file: &str) -> Manifest {
        let level = |(&stride, p): (&usize, usize)| LevelSpec { stride, cls: format!("cls_p{p}"), bbox: format!("box_p{p}") };
        Manifest {
            schema: fovea::retinanet::MANIFEST_SCHEMA,
            name: name.into(),
            network: NetworkSpec { file: file.into(), sha256: None },
            input: InputSpec {
                name: "images".into(),
                width: self.width,
                height: self.height,
                preprocess: fovea::retinanet::PREPROCESS_VERSION,
                mean: [0.0; 3],
                std: [255.0; 3],
            },
            anchors: self.anchors.clone(),
            levels: STRIDES.iter().zip(3..).map(level).collect(),
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
        crate::package::write_atomic(path, toml::to_string(self)?.as_bytes())
    }
}
