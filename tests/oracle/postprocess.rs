//! Decoding and non-maximum suppression against a NumPy reference with torchvision's semantics.

use crate::{Random, python, run_script};
use fovea::executor::{Executor, LoadOptions};
use fovea::images;
use fovea::postprocess::Postprocessor;
use fovea::preprocess::Preprocessor;
use fovea::quant::QuantParams;
use fovea::retinanet::{
    AnchorConfig, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, PostprocessSpec,
};
use serde_json::{Value, json};
use std::path::Path;

/// Values of one head.
enum Values {
    Quantized(Vec<u8>, QuantParams),
    Float(Vec<f32>),
}

impl Values {
    fn data(&self) -> HeadData<'_> {
        match self {
            Self::Quantized(values, params) => HeadData::Quantized(values, *params),
            Self::Float(values) => HeadData::Float(values),
        }
    }

    fn save(&self, path: &Path) -> Value {
        match self {
            Self::Quantized(values, params) => {
                std::fs::write(path, values).expect("a file");
                json!({ "scale": params.scale, "zero_point": params.zero_point })
            }
            Self::Float(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                std::fs::write(path, bytes).expect("a file");
                Value::Null
            }
        }
    }
}

/// How heads are filled.
#[derive(Debug, Clone, Copy)]
enum Fill {
    /// Mostly background, groups of high logits, small deltas: as a network makes them.
    Likely,
    /// Every logit from a handful of values: ties everywhere.
    Ties,
    /// Everything is a candidate.
    All,
    /// Nothing is.
    Nothing,
    /// Deltas at the ends of their range: clamped growth, boxes far outside.
    Extreme,
}

struct Case {
    name: String,
    manifest: Manifest,
    heads: Vec<(Values, Values)>,
}

fn manifest(classes: usize, spec: PostprocessSpec, center_offset: f32) -> Manifest {
    let strides = [8, 16, 32, 64, 128];
    Manifest {
        schema: 1,
        name: "test".into(),
        network: NetworkSpec { file: "model.onnx".into(), sha256: None },
        input: InputSpec { name: "images".into(), width: 208, height: 136, preprocess: 1, mean: [0.0; 3], std: [255.0; 3] },
        anchors: AnchorConfig { center_offset, ..AnchorConfig::octaves(2.0, &strides, 3) },
        levels: strides.map(|stride| LevelSpec { stride, cls: format!("cls_{stride}"), bbox: format!("box_{stride}") }).to_vec(),
        postprocess: spec,
        classes: (0..classes).map(|class| format!("class {class}")).collect(),
    }
}

fn fill(manifest: &Manifest, fill: Fill, is_float: bool, random: &mut Random) -> Vec<(Values, Values)> {
    let per_cell = manifest.anchors.n_per_cell();
    let n_classes = manifest.n_classes();
    manifest
        .grids()
        .into_iter()
        .map(|(w, h)| {
            let cls = QuantParams { scale: 0.07, zero_point: 180 };
            let bbox = QuantParams { scale: if matches!(fill, Fill::Extreme) { 0.06 } else { 0.02 }, zero_point: 120 };
            let logit = |random: &mut Random| match fill {
                Fill::Likely if random.below(40) > 0 => random.byte() % 100,
                Fill::Likely | Fill::Extreme => 120 + random.byte() % 120,
                Fill::Ties => [100, 138, 139, 180, 200][usize::try_from(random.below(5)).expect("small")],
                Fill::All => 180 + random.byte() % 76,
                Fill::Nothing => random.byte() % 20,
            };
            let cls_values: Vec<u8> = (0..w * h * per_cell * n_classes).map(|_| logit(random)).collect();
            let bbox_values: Vec<u8> = (0..w * h * per_cell * 4)
                .map(|_| match fill {
                    Fill::Extreme => [0, 255, random.byte()][usize::try_from(random.below(3)).expect("small")],
                    _ => 90 + random.byte() % 60,
                })
                .collect();
            if is_float {
                let real = |values: &[u8], params: QuantParams| values.iter().map(|&q| params.dequantize(q)).collect();
                (Values::Float(real(&cls_values, cls)), Values::Float(real(&bbox_values, bbox)))
            } else {
                (Values::Quantized(cls_values, cls), Values::Quantized(bbox_values, bbox))
            }
        })
        .collect()
}

fn cases(random: &mut Random) -> Vec<Case> {
    let paper = PostprocessSpec::default;
    let mut cases = Vec::new();
    for (name, classes, spec, kind) in [
        ("likely", 10, paper(), Fill::Likely),
        ("one class", 1, paper(), Fill::Likely),
        ("high threshold", 10, PostprocessSpec { score_threshold: 0.5, ..paper() }, Fill::Likely),
        ("threshold 0", 3, PostprocessSpec { score_threshold: 0.0, topk_candidates_per_level: 50, ..paper() }, Fill::All),
        ("ties", 4, PostprocessSpec { topk_candidates_per_level: 60, ..paper() }, Fill::Ties),
        ("few kept", 4, PostprocessSpec { max_detections: 7, nms_iou_threshold: 0.3, ..paper() }, Fill::All),
        ("many kept", 4, PostprocessSpec { max_detections: 2000, nms_iou_threshold: 0.7, ..paper() }, Fill::Likely),
        ("overlap allowed", 2, PostprocessSpec { nms_iou_threshold: 1.0, topk_candidates_per_level: 20, ..paper() }, Fill::All),
        ("no overlap", 2, PostprocessSpec { nms_iou_threshold: 0.0, ..paper() }, Fill::Likely),
        ("nothing", 10, paper(), Fill::Nothing),
        ("extreme", 3, PostprocessSpec { topk_candidates_per_level: 300, ..paper() }, Fill::Extreme),
    ] {
        for is_float in [false, true] {
            let manifest = manifest(classes, spec.clone(), if is_float { 0.0 } else { 0.5 });
            let heads = fill(&manifest, kind, is_float, random);
            cases.push(Case { name: format!("{name}, {}", if is_float { "float" } else { "quantised" }), manifest, heads });
        }
    }
    cases
}

/// Heads of a shipped model on a real picture where there is one, else on blocks of noise: the real distribution of values.
fn shipped(random: &mut Random) -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    let manifest = std::fs::read_to_string(folder.join("manifest.toml")).expect("models/default is there");
    let manifest = Manifest::parse(&manifest).expect("a manifest");
    let bytes = std::fs::read(folder.join(&manifest.network.file)).expect("the network");
    let mut executor = Executor::load(&bytes, &manifest, &LoadOptions::default()).expect("it loads");
    let (w, h) = (manifest.input.width, manifest.input.height);
    let street = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/street.png");
    let (name, pixels) = if street.exists() {
        let picture = images::open(&street).expect("a picture");
        let mut pixels = vec![0; w * h * 3];
        Preprocessor::new((w, h)).run(&picture.as_picture(), &mut pixels);
        ("shipped model, street", pixels)
    } else {
        let blocks: Vec<u8> = (0..64 * 64 * 3).map(|_| random.byte()).collect();
        let pixel = |i: usize| blocks[((i / 3 / w / 16) % 64 * 64 + (i / 3 % w / 16) % 64) * 3 + i % 3];
        ("shipped model, noise", (0..w * h * 3).map(pixel).collect())
    };
    let heads = executor.run(&pixels).expect("it runs");
    let own = |data: HeadData<'_>| match data {
        HeadData::Quantized(values, params) => Values::Quantized(values.to_vec(), params),
        HeadData::Float(values) => Values::Float(values.to_vec()),
    };
    let heads = heads.levels.iter().map(|level| (own(level.cls_logits), own(level.bbox_deltas))).collect();
    // Low enough that there is much to suppress.
    let postprocess = PostprocessSpec { score_threshold: 0.005, ..manifest.postprocess.clone() };
    Case { name: name.into(), manifest: Manifest { postprocess, ..manifest }, heads }
}

fn describe(case: &Case, folder: &Path) -> Value {
    let Manifest { input, anchors, postprocess, .. } = &case.manifest;
    let level = |(idx, ((cls, bbox), (grid, spec)))| {
        let _: usize = idx;
        let (cls, bbox): (&Values, &Values) = (cls, bbox);
        let (grid, spec): ((usize, usize), &LevelSpec) = (grid, spec);
        json!({
            "grid": grid, "stride": spec.stride, "base_size": anchors.base_sizes[idx],
            "cls": cls.save(&folder.join(format!("{}.{idx}.cls", case.name))),
            "box": bbox.save(&folder.join(format!("{}.{idx}.box", case.name))),
        })
    };
    let levels =
        case.heads.iter().map(|(cls, bbox)| (cls, bbox)).zip(case.manifest.grids().into_iter().zip(&case.manifest.levels));
    json!({
        "name": case.name, "input": [input.width, input.height], "levels": levels.enumerate().map(level).collect::<Vec<_>>(),
        "scales": anchors.scales, "ratios": anchors.aspect_ratios, "offset": anchors.center_offset,
        "n_classes": case.manifest.n_classes(), "threshold": postprocess.score_threshold,
        "topk": postprocess.topk_candidates_per_level, "iou": postprocess.nms_iou_threshold, "max": postprocess.max_detections,
    })
}

/// A detection as the reference writes it: class, score, box.
type Found = (u16, f64, [f64; 4]);

#[test]
fn detections_agree_with_torchvisions_semantics() {
    let Some(python) = python("postprocessing against NumPy") else { return };
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut cases = cases(&mut random);
    cases.push(shipped(&mut random));
    let folder = tempfile::tempdir().expect("a folder");
    let described: Vec<Value> = cases.iter().map(|case| describe(case, folder.path())).collect();
    std::fs::write(folder.path().join("cases.json"), Value::from(described).to_string()).expect("a file");
    run_script(&python, "postprocess.py", &[folder.path()], "");
    let mut n_found = 0;
    for case in &cases {
        let text = std::fs::read_to_string(folder.path().join(format!("{}.found.json", case.name))).expect("an answer");
        let want: Vec<(u16, f64, f64, f64, f64, f64)> = serde_json::from_str(&text).expect("a list of detections");
        let want: Vec<Found> = want.into_iter().map(|(class, score, x1, y1, x2, y2)| (class, score, [x1, y1, x2, y2])).collect();
        let grids = case.manifest.grids();
        let levels = case.heads.iter().zip(grids).map(|((cls, bbox), grid)| LevelHeads {
            grid,
            cls_logits: cls.data(),
            bbox_deltas: bbox.data(),
        });
        let heads = HeadOutputs { levels: levels.collect() };
        let mut postprocessor = Postprocessor::new(&case.manifest);
        let mut found = Vec::new();
        // Twice: buffers of the first picture must not show in the second.
        postprocessor.run(&heads, &mut found);
        postprocessor.run(&heads, &mut found);
        assert_eq!(found.len(), want.len(), "{}: number of detections", case.name);
        for (idx, (got, (class, score, bbox))) in found.iter().zip(&want).enumerate() {
            let is_same = got.class_id.0 == *class
                && (f64::from(got.score) - score).abs() < 1e-6
                && got.bbox.to_array().into_iter().zip(bbox).all(|(got, want)| {
                    // f32 against f64: a few parts in 10^6 of the coordinate.
                    (f64::from(got) - want).abs() <= 1e-5 * want.abs().max(100.0)
                });
            assert!(is_same, "{}, detection {idx}: {got:?}, reference class {class} score {score} {bbox:?}", case.name);
        }
        n_found += found.len();
        eprintln!("{}: {} detections agree", case.name, found.len());
    }
    assert!(n_found > 1000, "only {n_found} detections to compare");
}
