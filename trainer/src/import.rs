//! Networks of other programs under the names of this one.
//!
//! Every [`Format`] is a table: what of theirs is what of ours. A file is recognised by a name that only its format has;
//! which backbone it holds follows from which fits. What is missing, has another shape or is left over is an error that
//! lists it, so that nothing is taken for something else.

use crate::fold::{NORM_EPS, fold_norm};
use crate::graph::{Conv, Graph};
use crate::spec::{Backbone, ModelSpec, Norm, Pixels, Pyramid};
use crate::weights::{Array, Weights};
use anyhow::{Context, Result, bail};
use fovea::retinanet::{AnchorConfig, AnchorStride};
use std::collections::BTreeSet;

const RESNETS: &[Backbone] = &[
    Backbone::ResNet18,
    Backbone::ResNet34,
    Backbone::ResNet50,
    Backbone::ResNet101,
    Backbone::ResNet152,
    Backbone::ResNeXt50,
    Backbone::ResNeXt101,
];

const SHUFFLENETS: &[Backbone] =
    &[Backbone::ShuffleNetV2X05, Backbone::ShuffleNetV2, Backbone::ShuffleNetV2X15, Backbone::ShuffleNetV2X20];

/// `mean` and `std` of torchvision's ImageNet weights, for RGB in 0..=255.
const IMAGENET: Pixels = Pixels { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };

/// Names of a convolution and of the norm behind it; `*` stands for a number.
struct Rule {
    ours: &'static str,
    conv: &'static str,
    norm: &'static str,
}

const fn rule(ours: &'static str, conv: &'static str, norm: &'static str) -> Rule {
    Rule { ours, conv, norm }
}

const TORCHVISION_RESNET: &[Rule] = &[
    rule("stem", "conv1", "bn1"),
    rule("layer*.*.conv*", "layer*.*.conv*", "layer*.*.bn*"),
    rule("layer*.*.downsample", "layer*.*.downsample.0", "layer*.*.downsample.1"),
];

const SHUFFLENET: &[Rule] = &[
    rule("stem", "conv1.0", "conv1.1"),
    rule("stage*.*.b1dw", "stage*.*.branch1.0", "stage*.*.branch1.1"),
    rule("stage*.*.b1pw", "stage*.*.branch1.2", "stage*.*.branch1.3"),
    rule("stage*.*.b2pw1", "stage*.*.branch2.0", "stage*.*.branch2.1"),
    rule("stage*.*.b2dw", "stage*.*.branch2.3", "stage*.*.branch2.4"),
    rule("stage*.*.b2pw2", "stage*.*.branch2.5", "stage*.*.branch2.6"),
];

/// The first block has no expansion.
const MOBILENET: &[Rule] = &[
    rule("stem", "features.0.0", "features.0.1"),
    rule("block1.dw", "features.1.conv.0.0", "features.1.conv.0.1"),
    rule("block1.project", "features.1.conv.1", "features.1.conv.2"),
    rule("block*.expand", "features.*.conv.0.0", "features.*.conv.0.1"),
    rule("block*.dw", "features.*.conv.1.0", "features.*.conv.1.1"),
    rule("block*.project", "features.*.conv.2", "features.*.conv.3"),
];

/// Newer names, `conv.N.0` with the norm in `conv.N.1`, and those of the first version's published weights.
const TORCHVISION_RETINANET: &[Rule] = &[
    rule("stem", "backbone.body.conv1", "backbone.body.bn1"),
    rule("layer*.*.conv*", "backbone.body.layer*.*.conv*", "backbone.body.layer*.*.bn*"),
    rule("layer*.*.downsample", "backbone.body.layer*.*.downsample.0", "backbone.body.layer*.*.downsample.1"),
    rule("fpn.lateral3", "backbone.fpn.inner_blocks.0.0", ""),
    rule("fpn.lateral4", "backbone.fpn.inner_blocks.1.0", ""),
    rule("fpn.lateral5", "backbone.fpn.inner_blocks.2.0", ""),
    rule("fpn.out3", "backbone.fpn.layer_blocks.0.0", ""),
    rule("fpn.out4", "backbone.fpn.layer_blocks.1.0", ""),
    rule("fpn.out5", "backbone.fpn.layer_blocks.2.0", ""),
    rule("fpn.p*", "backbone.fpn.extra_blocks.p*", ""),
    rule("head.cls.last", "head.classification_head.cls_logits", ""),
    rule("head.box.last", "head.regression_head.bbox_reg", ""),
    rule("head.cls.*", "head.classification_head.conv.*.0", "head.classification_head.conv.*.1"),
    rule("head.box.*", "head.regression_head.conv.*.0", "head.regression_head.conv.*.1"),
];

/// Theirs before torchvision 0.12 and after it.
const TORCHVISION_RENAMED: &[(&str, &str)] = &[
    ("backbone.fpn.inner_blocks.0.", "backbone.fpn.inner_blocks.0.0."),
    ("backbone.fpn.inner_blocks.1.", "backbone.fpn.inner_blocks.1.0."),
    ("backbone.fpn.inner_blocks.2.", "backbone.fpn.inner_blocks.2.0."),
    ("backbone.fpn.layer_blocks.0.", "backbone.fpn.layer_blocks.0.0."),
    ("backbone.fpn.layer_blocks.1.", "backbone.fpn.layer_blocks.1.0."),
    ("backbone.fpn.layer_blocks.2.", "backbone.fpn.layer_blocks.2.0."),
    ("head.classification_head.conv.0.", "head.classification_head.conv.0.0."),
    ("head.classification_head.conv.2.", "head.classification_head.conv.1.0."),
    ("head.classification_head.conv.4.", "head.classification_head.conv.2.0."),
    ("head.classification_head.conv.6.", "head.classification_head.conv.3.0."),
    ("head.regression_head.conv.0.", "head.regression_head.conv.0.0."),
    ("head.regression_head.conv.2.", "head.regression_head.conv.1.0."),
    ("head.regression_head.conv.4.", "head.regression_head.conv.2.0."),
    ("head.regression_head.conv.6.", "head.regression_head.conv.3.0."),
];

/// Theirs count the ReLU between the convolutions of a tower.
const DETECTRON2: &[Rule] = &[
    rule("stem", "backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm"),
    rule("layer1.*.conv*", "backbone.bottom_up.res2.*.conv*", "backbone.bottom_up.res2.*.conv*.norm"),
    rule("layer2.*.conv*", "backbone.bottom_up.res3.*.conv*", "backbone.bottom_up.res3.*.conv*.norm"),
    rule("layer3.*.conv*", "backbone.bottom_up.res4.*.conv*", "backbone.bottom_up.res4.*.conv*.norm"),
    rule("layer4.*.conv*", "backbone.bottom_up.res5.*.conv*", "backbone.bottom_up.res5.*.conv*.norm"),
    rule("layer1.*.downsample", "backbone.bottom_up.res2.*.shortcut", "backbone.bottom_up.res2.*.shortcut.norm"),
    rule("layer2.*.downsample", "backbone.bottom_up.res3.*.shortcut", "backbone.bottom_up.res3.*.shortcut.norm"),
    rule("layer3.*.downsample", "backbone.bottom_up.res4.*.shortcut", "backbone.bottom_up.res4.*.shortcut.norm"),
    rule("layer4.*.downsample", "backbone.bottom_up.res5.*.shortcut", "backbone.bottom_up.res5.*.shortcut.norm"),
    rule("fpn.lateral*", "backbone.fpn_lateral*", ""),
    rule("fpn.out*", "backbone.fpn_output*", ""),
    rule("fpn.p*", "backbone.top_block.p*", ""),
    rule("head.cls.last", "head.cls_score", ""),
    rule("head.box.last", "head.bbox_pred", ""),
    rule("head.cls.0", "head.cls_subnet.0", ""),
    rule("head.cls.1", "head.cls_subnet.2", ""),
    rule("head.cls.2", "head.cls_subnet.4", ""),
    rule("head.cls.3", "head.cls_subnet.6", ""),
    rule("head.box.0", "head.bbox_subnet.0", ""),
    rule("head.box.1", "head.bbox_subnet.2", ""),
    rule("head.box.2", "head.bbox_subnet.4", ""),
    rule("head.box.3", "head.bbox_subnet.6", ""),
];

/// Whose network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A backbone, with the prefix that its names have.
    Backbone(&'static str),
    TorchvisionRetinaNet,
    Detectron2RetinaNet,
}

/// How another program names a network.
struct Format {
    name: &'static str,
    /// A name that no other format has.
    signature: &'static str,
    origin: Origin,
    rules: &'static [Rule],
    backbones: &'static [Backbone],
    /// Beginnings of names that stand for other parts of the network, which are left out.
    other_parts: &'static [&'static str],
    /// Values of the input, in the order R, G, B whatever theirs is.
    pixels: Pixels,
    /// Whether their stem reads BGR.
    is_bgr: bool,
    /// What there is to say about weights of this kind.
    remark: &'static str,
}

const FORMATS: &[Format] = &[
    Format {
        name: "torchvision RetinaNet",
        signature: "backbone.body.layer1.0.conv1.weight",
        origin: Origin::TorchvisionRetinaNet,
        rules: TORCHVISION_RETINANET,
        backbones: RESNETS,
        other_parts: &["anchor_generator."],
        pixels: IMAGENET,
        is_bgr: false,
        remark: "read as of the published weights, with epsilon 0 in the frozen batch norms; for weights that torchvision trained here: --norm-eps 1e-5",
    },
    Format {
        name: "detectron2 RetinaNet",
        signature: "backbone.bottom_up.res2.0.conv1.weight",
        origin: Origin::Detectron2RetinaNet,
        rules: DETECTRON2,
        backbones: RESNETS,
        other_parts: &["anchor_generator.", "pixel_mean", "pixel_std"],
        pixels: Pixels { mean: [123.675, 116.28, 103.53], std: [1.0; 3] },
        is_bgr: true,
        remark: "read as of its model zoo: stride in the first 1x1 convolution (`stride_in_1x1` in model.toml)",
    },
    Format {
        name: "torchvision ResNet",
        signature: "layer1.0.conv1.weight",
        origin: Origin::Backbone(""),
        rules: TORCHVISION_RESNET,
        backbones: RESNETS,
        other_parts: &["fc."],
        pixels: IMAGENET,
        is_bgr: false,
        remark: "",
    },
    Format {
        name: "torchvision MobileNetV2",
        signature: "features.1.conv.1.weight",
        origin: Origin::Backbone(""),
        rules: MOBILENET,
        backbones: &[Backbone::MobileNetV2],
        other_parts: &["features.18.", "classifier."],
        pixels: IMAGENET,
        is_bgr: false,
        remark: "",
    },
    Format {
        name: "torchvision ShuffleNetV2",
        signature: "stage2.0.branch1.0.weight",
        origin: Origin::Backbone(""),
        rules: SHUFFLENET,
        backbones: SHUFFLENETS,
        other_parts: &["conv5.", "fc."],
        pixels: IMAGENET,
        is_bgr: false,
        remark: "",
    },
    Format {
        name: "NanoDet's ShuffleNetV2",
        signature: "backbone.stage2.0.branch1.0.weight",
        origin: Origin::Backbone("backbone."),
        rules: SHUFFLENET,
        backbones: SHUFFLENETS,
        other_parts: &["fpn.", "head.", "aux_fpn.", "aux_head.", "backbone.stage4.conv5."],
        pixels: IMAGENET,
        is_bgr: true,
        remark: "trained with LeakyReLU 0.1: fit with --leak-share 0.12 lets it become ReLU",
    },
];

/// A network of another program under our names.
#[derive(Debug)]
pub(crate) struct Imported {
    /// What it was recognised as.
    pub(crate) format: &'static str,
    /// The network; of a backbone alone, that part counts.
    pub(crate) spec: ModelSpec,
    /// Whether it is a backbone alone.
    pub(crate) is_backbone: bool,
    /// Its arrays.
    pub(crate) weights: Weights,
    /// How many arrays of the file belong to parts that have no place here.
    pub(crate) n_left_out: usize,
    /// What there is to say about it.
    pub(crate) remark: &'static str,
}

/// What the one who imports decides.
#[derive(Debug)]
pub(crate) struct Wishes {
    /// Width and height of the input of a whole network.
    pub(crate) size: (usize, usize),
    /// Class names of a whole network; empty for COCO's.
    pub(crate) classes: Vec<String>,
    /// Fold the batch norm of a backbone into its convolutions.
    pub(crate) fold_norm: bool,
    /// Epsilon of the batch norms that are folded, instead of that of the format.
    pub(crate) norm_eps: Option<f32>,
}

/// Brings the arrays of another program under our names.
///
/// # Errors
/// An unknown format; arrays that are missing, have another shape or are left over, by name.
pub(crate) fn import(arrays: Weights, wishes: &Wishes) -> Result<Imported> {
    let arrays = without_wrappers(arrays);
    let Some(format) = FORMATS.iter().find(|format| arrays.contains_key(format.signature)) else {
        let known: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        let first: Vec<&String> = arrays.keys().take(5).collect();
        bail!("its names ({}, …) are none of those known: {}", list(&first), known.join(", "));
    };
    let arrays = if format.origin == Origin::TorchvisionRetinaNet { renamed(arrays) } else { arrays };
    // The backbone that fits is the one with the fewest faults; where none fits, its faults are the most telling.
    let mut best: Option<(ModelSpec, Mapping)> = None;
    for &backbone in format.backbones {
        let spec = spec_of(format, backbone, &arrays, wishes)?;
        let mapping = map(format, &spec, &arrays, wishes.norm_eps)?;
        if best.as_ref().is_none_or(|(_, best)| mapping.n_faults() < best.n_faults()) {
            best = Some((spec, mapping));
        }
    }
    let (mut spec, mut mapping) = best.context("a format has backbones")?;
    mapping.check(format.name, spec.backbone)?;
    let is_backbone = matches!(format.origin, Origin::Backbone(_));
    if format.is_bgr {
        bgr_to_rgb(&mut mapping.weights);
    }
    if !is_backbone {
        finish_heads(format, &mut spec, &mut mapping.weights, wishes)?;
        spec.check()?;
    }
    let Mapping { weights, n_left_out, .. } = mapping;
    // torchvision's second version leaves nothing open.
    let remark = if spec.head_norm == Norm::Group { "" } else { format.remark };
    Ok(Imported { format: format.name, spec, is_backbone, weights, n_left_out, remark })
}

impl Imported {
    /// What stands beside the weights: the input that they were made for, which `fit --init` turns into ours.
    pub(crate) fn sidecar(&self) -> String {
        let Pixels { mean, std } = self.spec.pixels;
        let input = serde_json::json!({ "order": "RGB", "mean": mean, "scale": std.map(|std| 1.0 / std) });
        format!("{:#}\n", serde_json::json!({ "imported_from": self.format, "input": input }))
    }
}

/// Averaged weights where there are some, and no `module.` or `model.` that a trainer puts before all names.
fn without_wrappers(arrays: Weights) -> Weights {
    let arrays: Weights = arrays.into_iter().map(|(name, array)| (stripped(name, "module."), array)).collect();
    let mut bare = Weights::new();
    let (averaged, others): (Weights, Weights) = arrays.into_iter().partition(|(name, _)| name.starts_with("avg_model."));
    bare.extend(others.into_iter().map(|(name, array)| (stripped(name, "model."), array)));
    bare.extend(averaged.into_iter().map(|(name, array)| (stripped(name, "avg_model."), array)));
    bare
}

fn stripped(name: String, prefix: &str) -> String {
    name.strip_prefix(prefix).map_or_else(|| name.clone(), str::to_owned)
}

/// Old names of torchvision's RetinaNet as new ones.
fn renamed(arrays: Weights) -> Weights {
    if arrays.contains_key("backbone.fpn.inner_blocks.0.0.weight") {
        return arrays;
    }
    let rename = |name: String| {
        let old = TORCHVISION_RENAMED.iter().find(|(old, _)| name.starts_with(old));
        old.map_or_else(|| name.clone(), |(old, new)| format!("{new}{}", &name[old.len()..]))
    };
    arrays.into_iter().map(|(name, array)| (rename(name), array)).collect()
}

/// The network that the arrays are of, if its backbone is `backbone`.
fn spec_of(format: &Format, backbone: Backbone, arrays: &Weights, wishes: &Wishes) -> Result<ModelSpec> {
    let edge = ModelSpec::edge(backbone, 64, 0, wishes.size, vec!["object".into()]);
    let rows = |name: &str| -> Result<usize> {
        arrays.get(name).and_then(|array| array.shape.first().copied()).with_context(|| format!("it has no `{name}`"))
    };
    let (width, last, tower) = match format.origin {
        Origin::Backbone(_) => {
            return Ok(ModelSpec { backbone_norm: !wishes.fold_norm, pixels: format.pixels, ..edge });
        }
        Origin::TorchvisionRetinaNet => (
            "backbone.fpn.inner_blocks.0.0.weight",
            "head.classification_head.cls_logits.weight",
            "head.classification_head.conv.",
        ),
        Origin::Detectron2RetinaNet => ("backbone.fpn_lateral3.weight", "head.cls_score.weight", "head.cls_subnet."),
    };
    let head_depth = arrays.iter().filter(|(name, array)| name.starts_with(tower) && array.shape.len() == 4).count();
    let n_per_cell = ModelSpec::paper_anchors().n_per_cell();
    let logits = rows(last)?;
    if !logits.is_multiple_of(n_per_cell) {
        bail!("`{last}` has {logits} rows, which are not those of {n_per_cell} anchors a cell");
    }
    let is_torchvision = format.origin == Origin::TorchvisionRetinaNet;
    let has_group_norm = arrays.contains_key("head.classification_head.conv.0.1.weight");
    let anchors = ModelSpec::paper_anchors();
    Ok(ModelSpec {
        backbone_norm: false,
        stride_in_1x1: !is_torchvision,
        pyramid: if is_torchvision && !has_group_norm { Pyramid::FpnP5 } else { Pyramid::Fpn },
        pyramid_norm: false,
        fpn_width: rows(width)?,
        head_width: rows(width)?,
        head_depth,
        head_norm: if has_group_norm { Norm::Group } else { Norm::None },
        classes: vec![String::new(); logits / n_per_cell],
        pixels: Pixels {
            mean: stated("pixel_mean", arrays).unwrap_or(format.pixels.mean),
            std: stated("pixel_std", arrays).unwrap_or(format.pixels.std),
        },
        anchors: if is_torchvision {
            AnchorConfig { round: true, truncate_sizes: true, stride: AnchorStride::FromGrid, ..anchors }
        } else {
            anchors
        },
        ..edge
    })
}

/// Three numbers that detectron2's older files state for B, G, R, in our order.
fn stated(name: &str, arrays: &Weights) -> Option<[f32; 3]> {
    let [b, g, r] = arrays.get(name)?.data[..] else { return None };
    Some([r, g, b])
}

/// What became of a file's arrays.
#[derive(Default)]
struct Mapping {
    weights: Weights,
    missing: Vec<String>,
    other_shape: Vec<String>,
    left_over: Vec<String>,
    n_left_out: usize,
}

impl Mapping {
    fn n_faults(&self) -> usize {
        self.missing.len() + self.other_shape.len() + self.left_over.len()
    }

    fn check(&self, format: &str, backbone: Backbone) -> Result<()> {
        if self.n_faults() == 0 {
            return Ok(());
        }
        let part = |what: &str, names: &[String]| {
            let names: Vec<&String> = names.iter().collect();
            if names.is_empty() { String::new() } else { format!("; {} {what}: {}", names.len(), list(&names)) }
        };
        bail!(
            "read as {format} with the backbone {backbone:?}, the nearest of those known, its arrays do not fit{}{}{}",
            part("missing", &self.missing),
            part("of another shape", &self.other_shape),
            part("left over", &self.left_over)
        );
    }
}

/// Names for a message: the first few.
fn list(names: &[&String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    format!("{}{}", shown.join(", "), if names.len() > SHOWN { ", …" } else { "" })
}

fn map(format: &Format, spec: &ModelSpec, arrays: &Weights, norm_eps: Option<f32>) -> Result<Mapping> {
    let (prefix, is_backbone) = match format.origin {
        Origin::Backbone(prefix) => (prefix, true),
        _ => ("", false),
    };
    // torchvision sets the epsilon of its first version's frozen batch norms to 0.
    let is_first = format.origin == Origin::TorchvisionRetinaNet && spec.head_norm == Norm::None;
    let eps = norm_eps.unwrap_or(if is_first { 0.0 } else { NORM_EPS });
    let mut mapping = Mapping::default();
    let mut used = BTreeSet::new();
    let graph = Graph::new(spec);
    let is_part = |conv: &&Conv| !is_backbone || !(conv.name.starts_with("fpn.") || conv.name.starts_with("head."));
    for conv in graph.convs().filter(is_part) {
        let found = format.rules.iter().find_map(|rule| Some((rule, numbers(rule.ours, &conv.name)?)));
        let (rule, numbers) = found.with_context(|| format!("no rule of {} names `{}`", format.name, conv.name))?;
        let theirs = format!("{prefix}{}", filled(rule.conv, &numbers));
        let norm = format!("{prefix}{}", filled(rule.norm, &numbers));
        let mut take = |name: String, shape: &[usize]| -> Option<Array> {
            match arrays.get(&name) {
                None => mapping.missing.push(name),
                Some(array) if array.shape != shape => {
                    mapping.other_shape.push(format!("{name} {:?} for {shape:?}", array.shape));
                    used.insert(name);
                }
                Some(array) => {
                    used.insert(name);
                    return Some(array.clone());
                }
            }
            None
        };
        let weight = take(format!("{theirs}.weight"), &[conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel]);
        let has_norm = !rule.norm.is_empty() && (conv.norm != Norm::None || arrays.contains_key(&format!("{norm}.weight")));
        let channels = [conv.c_out];
        let mut made: Vec<(&str, Array)> = Vec::new();
        if !has_norm {
            made.extend(take(format!("{theirs}.bias"), &channels).map(|bias| ("bias", bias)));
            made.extend(weight.map(|weight| ("weight", weight)));
        } else if conv.norm == Norm::Group {
            made.extend(take(format!("{norm}.weight"), &channels).map(|array| ("norm.weight", array)));
            made.extend(take(format!("{norm}.bias"), &channels).map(|array| ("norm.bias", array)));
            made.extend(weight.map(|weight| ("weight", weight)));
        } else {
            let parts = ["weight", "bias", "running_mean", "running_var"].map(|part| take(format!("{norm}.{part}"), &channels));
            let (Some(mut weight), [Some(gamma), Some(beta), Some(mean), Some(var)]) = (weight, parts) else { continue };
            if conv.norm == Norm::Batch {
                let names = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"];
                made.extend(names.into_iter().zip([gamma, beta, mean, var]));
            } else {
                let data = fold_norm(&mut weight.data, [&gamma.data, &beta.data, &mean.data, &var.data], eps);
                made.push(("bias", Array { shape: channels.to_vec(), data }));
            }
            made.push(("weight", weight));
        }
        mapping.weights.extend(made.into_iter().map(|(part, array)| (format!("{}.{part}", conv.name), array)));
    }
    for name in arrays.keys().filter(|name| !used.contains(*name) && !name.ends_with(".num_batches_tracked")) {
        if format.other_parts.iter().any(|part| name.starts_with(part)) {
            mapping.n_left_out += 1;
        } else {
            mapping.left_over.push(name.clone());
        }
    }
    Ok(mapping)
}

/// What stands for each `*` of `pattern` in `name`.
fn numbers<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = pattern.split('*');
    let mut rest = name.strip_prefix(parts.next()?)?;
    let mut numbers = Vec::new();
    for part in parts {
        let len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(len);
        if number.is_empty() {
            return None;
        }
        numbers.push(number);
        rest = after.strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

/// `pattern` with each `*` replaced.
fn filled(pattern: &str, numbers: &[&str]) -> String {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.zip(numbers).fold(first, |name, (part, number)| name + number + part)
}

/// Class names; of COCO's 91 rows the 80 that stand for a class; anchors in our order.
fn finish_heads(format: &Format, spec: &mut ModelSpec, weights: &mut Weights, wishes: &Wishes) -> Result<()> {
    let n_rows = spec.classes.len();
    let (kept, names): (Vec<usize>, Vec<String>) = if !wishes.classes.is_empty() {
        if wishes.classes.len() != n_rows {
            bail!("--classes names {} classes, the network has {n_rows}", wishes.classes.len());
        }
        ((0..n_rows).collect(), wishes.classes.clone())
    } else if n_rows == 91 {
        COCO.iter().map(|&(id, name)| (id, name.to_owned())).unzip()
    } else if n_rows == COCO.len() {
        COCO.iter().map(|&(_, name)| name.to_owned()).enumerate().unzip()
    } else {
        bail!("the network has {n_rows} classes; name them in their order with --classes");
    };
    spec.classes = names;
    let n_scales = spec.anchors.scales.len();
    let n_ratios = spec.anchors.aspect_ratios.len();
    // detectron2 has the ratios of a scale side by side, here the scales of a ratio are.
    let theirs = |anchor: usize| match format.origin {
        Origin::Detectron2RetinaNet => anchor % n_scales * n_ratios + anchor / n_scales,
        _ => anchor,
    };
    let anchors = 0..n_scales * n_ratios;
    let classes: Vec<usize> =
        anchors.clone().flat_map(|anchor| kept.iter().map(move |class| theirs(anchor) * n_rows + class)).collect();
    let boxes: Vec<usize> = anchors.flat_map(|anchor| (0..4).map(move |k| theirs(anchor) * 4 + k)).collect();
    for (name, rows) in [("head.cls.last", classes), ("head.box.last", boxes)] {
        for part in ["weight", "bias"] {
            if let Some(array) = weights.get_mut(&format!("{name}.{part}")) {
                let len = array.data.len() / array.shape[0];
                array.data = rows.iter().flat_map(|&row| array.data[row * len..][..len].iter().copied()).collect();
                array.shape[0] = rows.len();
            }
        }
    }
    Ok(())
}

fn bgr_to_rgb(weights: &mut Weights) {
    if let Some(stem) = weights.get_mut("stem.weight") {
        let area = stem.shape[2] * stem.shape[3];
        for filter in stem.data.chunks_exact_mut(3 * area) {
            let (first, rest) = filter.split_at_mut(area);
            first.swap_with_slice(&mut rest[area..]);
        }
    }
}

/// COCO's classes with their numbers, which torchvision's rows have.
#[rustfmt::skip]
const COCO: [(usize, &str); 80] = [
    (1, "person"), (2, "bicycle"), (3, "car"), (4, "motorcycle"), (5, "airplane"), (6, "bus"), (7, "train"), (8, "truck"),
    (9, "boat"), (10, "traffic light"), (11, "fire hydrant"), (13, "stop sign"), (14, "parking meter"), (15, "bench"),
    (16, "bird"), (17, "cat"), (18, "dog"), (19, "horse"), (20, "sheep"), (21, "cow"), (22, "elephant"), (23, "bear"),
    (24, "zebra"), (25, "giraffe"), (27, "backpack"), (28, "umbrella"), (31, "handbag"), (32, "tie"), (33, "suitcase"),
    (34, "frisbee"), (35, "skis"), (36, "snowboard"), (37, "sports ball"), (38, "kite"), (39, "baseball bat"),
    (40, "baseball glove"), (41, "skateboard"), (42, "surfboard"), (43, "tennis racket"), (44, "bottle"),
    (46, "wine glass"), (47, "cup"), (48, "fork"), (49, "knife"), (50, "spoon"), (51, "bowl"), (52, "banana"),
    (53, "apple"), (54, "sandwich"), (55, "orange"), (56, "broccoli"), (57, "carrot"), (58, "hot dog"), (59, "pizza"),
    (60, "donut"), (61, "cake"), (62, "chair"), (63, "couch"), (64, "potted plant"), (65, "bed"), (67, "dining table"),
    (70, "toilet"), (72, "tv"), (73, "laptop"), (74, "mouse"), (75, "remote"), (76, "keyboard"), (77, "cell phone"),
    (78, "microwave"), (79, "oven"), (80, "toaster"), (81, "sink"), (82, "refrigerator"), (84, "book"), (85, "clock"),
    (86, "vase"), (87, "scissors"), (88, "teddy bear"), (89, "hair drier"), (90, "toothbrush"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    /// A network of `tests/fixtures/imports.json`: its arrays' shapes and what it gives for the test picture.
    #[derive(Deserialize)]
    struct Recorded {
        name: String,
        arrays: BTreeMap<String, Vec<usize>>,
        outputs: Vec<Output>,
        /// Names that the values of an array follow, where not its own.
        #[serde(default)]
        valued_as: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    struct Output {
        shape: Vec<usize>,
        largest: f64,
        /// Value `i` is that at place `i x 7919`, modulo the length.
        values: Vec<f64>,
    }

    fn recorded() -> Vec<Recorded> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/imports.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Numbers in 0..1 from a name: FNV-1a, then splitmix64.
    fn uniform(name: &str, n: usize) -> impl Iterator<Item = f64> {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        (0..n as u64).map(move |i| {
            let z = hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f64 / 16_777_216.0
        })
    }

    /// `value_of` of `make_imports.py`.
    fn arrays(recorded: &Recorded) -> Weights {
        let array = |(name, shape): (&String, &Vec<usize>)| {
            let valued = recorded.valued_as.get(name).unwrap_or(name);
            let (owner, part) = name.rsplit_once('.').unwrap();
            let has_variance = recorded.arrays.contains_key(&format!("{owner}.running_var"));
            let fan_in: usize = shape[1..].iter().product();
            let value = |u: f64| match part {
                _ if shape.len() == 4 => (2.0 * u - 1.0) * (6.0 / fan_in as f64).sqrt(),
                "running_var" => 0.001 * (0.5 + u),
                "weight" => (0.5 + 0.5 * u) * if has_variance { 0.03 } else { 1.0 },
                _ => 0.2 * (u - 0.5),
            };
            let data = uniform(valued, shape.iter().product()).map(|u| value(u) as f32).collect();
            (name.clone(), Array { shape: shape.clone(), data })
        };
        recorded.arrays.iter().map(array).collect()
    }

    fn wishes(classes: &[&str]) -> Wishes {
        Wishes { size: (64, 64), classes: classes.iter().map(|&class| class.into()).collect(), fold_norm: false, norm_eps: None }
    }

    #[cfg(feature = "train")]
    #[test]
    fn imported_networks_give_what_their_origin_gives() {
        for recorded in recorded() {
            let classes: &[&str] = match recorded.name.as_str() {
                "torchvision_retinanet_v2" => &["a", "b", "c"],
                "detectron2_retinanet" => &["a", "b", "c", "d", "e"],
                _ => &[],
            };
            let imported = import(arrays(&recorded), &wishes(classes)).unwrap_or_else(|e| panic!("{}: {e:#}", recorded.name));
            let outputs = outputs(&imported);
            assert_eq!(outputs.len(), recorded.outputs.len(), "{}", recorded.name);
            for (idx, (got, wanted)) in outputs.iter().zip(&recorded.outputs).enumerate() {
                assert_eq!(got.shape, wanted.shape, "{} output {idx}", recorded.name);
                let largest = got.data.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                let pairs = wanted.values.iter().enumerate();
                let worst = pairs
                    .map(|(i, value)| (f64::from(got.data[i * 7919 % got.data.len()]) - value).abs())
                    .fold((f64::from(largest) - wanted.largest).abs(), f64::max);
                assert!(worst <= 1e-4 * wanted.largest, "{} output {idx}: off by {worst} of {}", recorded.name, wanted.largest);
            }
        }
    }

    /// What a network gives for the test picture, `[C, H, W]`: heads, logits first; of a backbone C3 to C5.
    #[cfg(feature = "train")]
    fn outputs(imported: &Imported) -> Vec<Array> {
        use crate::model::{Mode, Model, array};
        let mut model = Model::new(&imported.spec, 0.01, 0, tch::Device::Cpu);
        if imported.is_backbone {
            model.load_matching(&imported.weights).unwrap();
            let source = |name: &str| {
                let reads = |node: &&crate::graph::Node| matches!(&node.op, crate::graph::Op::Conv(conv) if conv.name == name);
                model.graph.nodes.iter().find(reads).unwrap().inputs[0]
            };
            let [c3, c4, c5] = ["fpn.lateral3", "fpn.lateral4", "fpn.lateral5"].map(source);
            model.graph.levels = vec![(c3, c5), (c4, c5)];
        } else {
            model.load(&imported.weights).unwrap();
        }
        let (width, height) = (imported.spec.width, imported.spec.height);
        let bytes = crate::package::test_picture(width, height);
        let images = tch::Tensor::from_data_size(&bytes, &[1, height as i64, width as i64, 3], tch::Kind::Uint8);
        let levels = tch::no_grad(|| model.forward(&images, Mode::EVAL));
        let (logits, deltas) = (levels.iter().map(|level| &level.cls), levels.iter().map(|level| &level.bbox));
        let n_outputs = if imported.is_backbone { 3 } else { 2 * levels.len() };
        logits.chain(deltas).take(n_outputs).map(|output| array(&output.permute([0, 3, 1, 2]).squeeze_dim(0)).unwrap()).collect()
    }

    #[test]
    fn the_epsilon_of_frozen_norms_can_be_named() {
        let recorded = recorded().into_iter().find(|recorded| recorded.name == "torchvision_retinanet_v1").unwrap();
        let with = |norm_eps| import(arrays(&recorded), &Wishes { norm_eps, ..wishes(&[]) }).unwrap().weights;
        assert!(with(None) == with(Some(0.0)) && with(None) != with(Some(1e-3)));
    }

    #[test]
    fn what_does_not_fit_is_listed() {
        let small = recorded().into_iter().find(|recorded| recorded.name == "shufflenet_v2_x0_5").unwrap();
        let whole = arrays(&small);
        let changed = |change: &dyn Fn(&mut Weights)| {
            let mut arrays = whole.clone();
            change(&mut arrays);
            import(arrays, &wishes(&[])).map(|imported| imported.n_left_out)
        };
        // conv5 with its norm, fc.
        assert_eq!(changed(&|_| {}).unwrap(), 7);
        let none = Array { shape: vec![1], data: vec![0.0] };
        let insert = |name: &str| changed(&|arrays| drop(arrays.insert(name.into(), none.clone())));
        let remove = |name: &str| changed(&|arrays| drop(arrays.remove(name)));
        for (result, part) in [
            (remove("stage3.2.branch2.3.weight"), "1 missing: `stage3.2.branch2.3.weight`"),
            (insert("stage3.2.extra"), "1 left over: `stage3.2.extra`"),
            (insert("conv1.1.bias"), "of another shape: `conv1.1.bias [1] for [24]`"),
            (remove("stage2.0.branch1.0.weight"), "are none of those known"),
        ] {
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn what_a_file_states_of_its_pixels_counts() {
        let mut arrays = Weights::new();
        assert_eq!(stated("pixel_std", &arrays), None);
        arrays.insert("pixel_std".into(), Array { shape: vec![3, 1, 1], data: vec![57.375, 57.12, 58.395] });
        assert_eq!(stated("pixel_std", &arrays), Some(IMAGENET.std));
    }

    #[test]
    fn a_folded_backbone_has_biases() {
        let small = recorded().into_iter().find(|recorded| recorded.name == "shufflenet_v2_x0_5").unwrap();
        let kept = import(arrays(&small), &wishes(&[])).unwrap();
        let folded = import(arrays(&small), &Wishes { fold_norm: true, ..wishes(&[]) }).unwrap();
        assert!(!folded.spec.backbone_norm && folded.weights.keys().all(|name| !name.contains("norm")));
        // The same network: folding ours later gives theirs.
        let graph = Graph::new(&kept.spec);
        for conv in graph.convs().filter(|conv| kept.weights.contains_key(&format!("{}.weight", conv.name))) {
            let norm = ["weight", "bias", "running_mean", "running_var"]
                .map(|part| &kept.weights[&format!("{}.norm.{part}", conv.name)].data[..]);
            let mut weights = kept.weights[&format!("{}.weight", conv.name)].data.clone();
            let bias = fold_norm(&mut weights, norm, NORM_EPS);
            assert_eq!(weights, folded.weights[&format!("{}.weight", conv.name)].data, "{}", conv.name);
            assert_eq!(bias, folded.weights[&format!("{}.bias", conv.name)].data, "{}", conv.name);
        }
    }
}
