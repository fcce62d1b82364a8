//! Decoding and non-maximum suppression against a NumPy reference with torchvision's semantics.

use crate::{Random, python, run_script};
use fovea::detection::Detection;
use fovea::executor::{Executor, LoadOptions};
use fovea::images;
use fovea::kernels::Kernels;
use fovea::pipeline::detector::read_network;
use fovea::postprocess::{PostprocessOptions, Postprocessor, Rules};
use fovea::preprocess::Preprocessor;
use fovea::quant::QuantParams;
use fovea::retinanet::{
    AnchorConfig, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, NmsMethod, PostprocessSpec,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

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
        ("thresholds of classes", 3, PostprocessSpec { display_threshold: vec![0.6, 0.05, 0.3], ..paper() }, Fill::Likely),
        ("some classes", 4, PostprocessSpec { classes: vec!["class 1".into(), "class 3".into()], ..paper() }, Fill::Likely),
        ("class-agnostic", 4, PostprocessSpec { class_agnostic_nms: true, ..paper() }, Fill::Likely),
        ("large boxes", 4, PostprocessSpec { min_box_size: 25.0, ..paper() }, Fill::Likely),
        ("linear", 4, PostprocessSpec { nms: NmsMethod::SoftLinear, nms_iou_threshold: 0.3, ..paper() }, Fill::Likely),
        ("gaussian", 4, PostprocessSpec { nms: NmsMethod::SoftGaussian, ..paper() }, Fill::Likely),
        (
            "gaussian, narrow, class-agnostic",
            4,
            PostprocessSpec {
                nms: NmsMethod::SoftGaussian,
                soft_nms_sigma: Some(0.1),
                class_agnostic_nms: true,
                score_threshold: 0.2,
                max_detections: 300,
                ..paper()
            },
            Fill::Likely,
        ),
    ] {
        for is_float in [false, true] {
            let manifest = manifest(classes, spec.clone(), if is_float { 0.0 } else { 0.5 });
            let heads = fill(&manifest, kind, is_float, random);
            cases.push(Case { name: format!("{name}, {}", if is_float { "float" } else { "quantised" }), manifest, heads });
        }
    }
    cases
}

/// The shipped model.
fn default_model() -> (Manifest, Executor) {
    let (manifest, _, bytes) =
        read_network(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")).expect("models/default is there");
    let executor = Executor::load(&bytes, &manifest, &LoadOptions::default()).expect("it loads");
    (manifest, executor)
}

/// A copy of heads.
fn own(heads: &HeadOutputs<'_>) -> Vec<(Values, Values)> {
    let own = |data: HeadData<'_>| match data {
        HeadData::Quantized(values, params) => Values::Quantized(values.to_vec(), params),
        HeadData::Float(values) => Values::Float(values.to_vec()),
    };
    heads.levels.iter().map(|level| (own(level.cls_logits), own(level.bbox_deltas))).collect()
}

/// Heads of a shipped model on a real picture where there is one, else on blocks of noise: the real distribution of values.
fn shipped(random: &mut Random) -> Case {
    let (manifest, mut executor) = default_model();
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
    let heads = own(&executor.run(&pixels).expect("it runs"));
    // Low enough that there is much to suppress.
    let postprocess = PostprocessSpec { score_threshold: 0.005, display_threshold: Vec::new(), ..manifest.postprocess.clone() };
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
    let classes = &case.manifest.classes;
    // 2: a class that is not looked for.
    let is_kept = |class: &String| postprocess.classes.is_empty() || postprocess.classes.contains(class);
    let threshold = |(idx, class)| if is_kept(class) { case.manifest.display_threshold(idx) } else { 2.0 };
    let thresholds: Vec<f32> = classes.iter().enumerate().map(threshold).collect();
    let levels =
        case.heads.iter().map(|(cls, bbox)| (cls, bbox)).zip(case.manifest.grids().into_iter().zip(&case.manifest.levels));
    json!({
        "name": case.name, "input": [input.width, input.height], "levels": levels.enumerate().map(level).collect::<Vec<_>>(),
        "scales": anchors.scales, "ratios": anchors.aspect_ratios, "offset": anchors.center_offset,
        "n_classes": case.manifest.n_classes(), "thresholds": thresholds,
        "topk": postprocess.topk_candidates_per_level, "nms": postprocess.nms, "iou": postprocess.nms_iou_threshold,
        "sigma": postprocess.soft_nms_sigma.unwrap_or(0.5), "agnostic": postprocess.class_agnostic_nms,
        "min_size": postprocess.min_box_size, "max": postprocess.max_detections,
    })
}

/// A detection as the reference writes it: class, score, box.
type Found = (u16, f64, [f64; 4]);

/// What the reference found in a case.
fn read_found(case: &Case, folder: &Path) -> Vec<Found> {
    let text = std::fs::read_to_string(folder.join(format!("{}.found.json", case.name))).expect("an answer");
    let found: Vec<(u16, f64, f64, f64, f64, f64)> = serde_json::from_str(&text).expect("a list of detections");
    found.into_iter().map(|(class, score, x1, y1, x2, y2)| (class, score, [x1, y1, x2, y2])).collect()
}

fn is_same(got: &Detection, (class, score, bbox): &Found, score_tolerance: f64) -> bool {
    got.class_id.0 == *class
        && (f64::from(got.score) - score).abs() < score_tolerance
        && got.bbox.to_array().into_iter().zip(bbox).all(|(got, want)| {
            // f32 against f64: a few parts in 10^6 of the coordinate.
            (f64::from(got) - want).abs() <= 1e-5 * want.abs().max(100.0)
        })
}

fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |r: [f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let shared = side(0) * side(1);
    shared / (area(a) + area(b) - shared)
}

/// Compares detections best first. Where the overlap with a better one is the threshold but for what f32 rounds, one side may
/// have a box that the other drops.
fn compare_in_order(case: &Case, found: &[Detection], want: &[Found]) {
    let (mut n_got, mut n_want, mut n_undecided) = (0, 0, 0);
    let rules = &case.manifest.postprocess;
    let is_undecided = |bbox: [f64; 4], class: u16| {
        let rivals = found.iter().filter(|other| rules.class_agnostic_nms || other.class_id.0 == class);
        let mut overlaps = rivals.map(|other| iou(other.bbox.to_array().map(f64::from), bbox));
        overlaps.any(|overlap| (overlap - f64::from(rules.nms_iou_threshold)).abs() < 1e-5)
    };
    while let (Some(got), Some(want)) = (found.get(n_got), want.get(n_want)) {
        if is_same(got, want, 1e-6) {
            (n_got, n_want) = (n_got + 1, n_want + 1);
        } else if is_undecided(want.2, want.0) {
            (n_want, n_undecided) = (n_want + 1, n_undecided + 1);
        } else if is_undecided(got.bbox.to_array().map(f64::from), got.class_id.0) {
            (n_got, n_undecided) = (n_got + 1, n_undecided + 1);
        } else {
            panic!("{}, detection {n_got}: {got:?}, reference {want:?}", case.name);
        }
    }
    let n_left = found.len() - n_got + want.len() - n_want;
    assert!(n_left <= n_undecided && n_undecided <= 2, "{}: {n_left} too many, {n_undecided} undecided", case.name);
}

/// What this program finds in a case.
fn find(case: &Case) -> Vec<Detection> {
    let levels = case.heads.iter().zip(case.manifest.grids()).map(|((cls, bbox), grid)| LevelHeads {
        grid,
        cls_logits: cls.data(),
        bbox_deltas: bbox.data(),
    });
    let heads = HeadOutputs { levels: levels.collect() };
    let rules = Rules::with_options(&case.manifest, &PostprocessOptions::default()).expect("rules");
    let mut postprocessor = Postprocessor::with_rules(&case.manifest, rules, Kernels::default());
    let mut found = Vec::new();
    // Twice: buffers of the first picture must not show in the second.
    postprocessor.run(&heads, &mut found);
    postprocessor.run(&heads, &mut found);
    found
}

/// The reference's answers to `cases`, in their order.
fn ask(python: &Path, cases: &[Case]) -> Vec<Vec<Found>> {
    let folder = tempfile::tempdir().expect("a folder");
    let described: Vec<Value> = cases.iter().map(|case| describe(case, folder.path())).collect();
    std::fs::write(folder.path().join("cases.json"), Value::from(described).to_string()).expect("a file");
    run_script(python, "postprocess.py", &[folder.path()], "");
    cases.iter().map(|case| read_found(case, folder.path())).collect()
}

#[test]
fn detections_agree_with_torchvisions_semantics() {
    let Some(python) = python("postprocessing against NumPy") else { return };
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut cases = cases(&mut random);
    cases.push(shipped(&mut random));
    let mut n_found = 0;
    for (case, want) in cases.iter().zip(ask(&python, &cases)) {
        let found = find(case);
        if case.manifest.postprocess.nms == NmsMethod::Greedy {
            compare_in_order(case, &found, &want);
        } else {
            // A narrow Gaussian makes much of the last bits of an IoU, and scores that were lowered may be so near to each other
            // that f32 and f64 order them differently.
            assert_eq!(found.len(), want.len(), "{}: number of detections", case.name);
            let mut left = want;
            for got in &found {
                let same = left.iter().position(|want| is_same(got, want, 1e-4));
                left.swap_remove(same.unwrap_or_else(|| panic!("{}: the reference has no {got:?}", case.name)));
            }
            assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "{}: best first", case.name);
        }
        n_found += found.len();
        eprintln!("{}: {} detections agree", case.name, found.len());
    }
    assert!(n_found > 1000, "only {n_found} detections to compare");
}

/// The shipped model on pictures of a folder that `FOVEA_PICTURES` names, at the thresholds of its manifest for `eval`.
#[test]
#[ignore = "needs a folder with pictures: FOVEA_PICTURES=FOLDER cargo test --release --test oracle pictures -- --ignored --nocapture"]
fn detections_of_pictures_agree() {
    const N_PICTURES: usize = 1000;
    #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
    let folder = std::env::var("FOVEA_PICTURES").expect("FOVEA_PICTURES names a folder with pictures");
    let Some(python) = python("postprocessing of pictures against NumPy") else { return };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.truncate(N_PICTURES);
    let (manifest, mut executor) = default_model();
    let (w, h) = (manifest.input.width, manifest.input.height);
    let mut preprocessor = Preprocessor::new((w, h));
    let mut pixels = vec![0; w * h * 3];
    let (mut n_found, mut n_different, mut n_pictures) = (0, 0, 0);
    for paths in paths.chunks(100) {
        let mut cases = Vec::new();
        for (idx, path) in paths.iter().enumerate() {
            let picture = images::open(path).expect("a picture");
            preprocessor.run(&picture.as_picture(), &mut pixels);
            let heads = own(&executor.run(&pixels).expect("it runs"));
            let postprocess = PostprocessSpec { display_threshold: Vec::new(), ..manifest.postprocess.clone() };
            cases.push(Case { name: idx.to_string(), manifest: Manifest { postprocess, ..manifest.clone() }, heads });
        }
        for ((case, want), path) in cases.iter().zip(ask(&python, &cases)).zip(paths) {
            let found = find(case);
            let n_same = found.iter().zip(&want).filter(|(got, want)| is_same(got, want, 1e-6)).count();
            let differ = found.len().max(want.len()) - n_same;
            if differ > 0 {
                eprintln!("{}: {differ} of {} differ", path.display(), want.len());
            }
            (n_found, n_different, n_pictures) = (n_found + found.len(), n_different + differ, n_pictures + 1);
        }
    }
    eprintln!("{n_pictures} pictures, {n_found} detections, {n_different} differ from the reference");
    assert!(n_different == 0 && n_found > n_pictures, "{n_different} of {n_found} detections differ");
}
