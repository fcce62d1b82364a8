//! Postprocessing against a plain one written here: every candidate in a list, all lists sorted, every overlap divided. The
//! results are the same bit for bit, on every instruction set, for likely heads and for hostile ones.

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
mod counting;
#[path = "counting/by_thread.rs"]
mod counting_by_thread;

use counting_by_thread::N_ALLOCATIONS;
use fovea::detection::{BBox, ClassId, Detection};
use fovea::kernels::postprocess::{BoxLists, IouLimit, Limits, SCAN_BLOCK};
use fovea::kernels::{Isa, Kernels};
use fovea::postprocess::{PostprocessOptions, Postprocessor, Rules};
use fovea::quant::{self, QuantParams};
use fovea::retinanet::{
    AnchorConfig, Anchors, BBOX_XFORM_CLIP, BoxCoder, Deltas, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest,
    NetworkSpec, NmsMethod, PostprocessSpec,
};
use proptest::prelude::*;

/// The kernels of every instruction set that is there.
fn all_kernels() -> Vec<Kernels> {
    Isa::available().into_iter().filter_map(Kernels::new).collect()
}

#[test]
fn instruction_sets_that_are_skipped_are_named() {
    #[expect(clippy::disallowed_methods, reason = "a knob of this test")]
    let required = std::env::var("FOVEA_REQUIRE_ISA").unwrap_or_default();
    for &isa in Isa::ALL {
        match Kernels::new(isa) {
            Some(_) => eprintln!("checked: {}", isa.name()),
            None if required.split(',').any(|name| name == isa.name()) => panic!("{} is required and not there", isa.name()),
            None => eprintln!("skipped: {}: this CPU or this build does not have it", isa.name()),
        }
    }
    assert!(!all_kernels().is_empty());
}

/// Numbers that depend on `seed` and place only.
fn noise(seed: usize, i: usize) -> usize {
    let mixed = (seed.wrapping_mul(0x9E37_79B9) ^ i).wrapping_mul(0xFF51_AFD7_ED55_8CCD_usize);
    (mixed ^ (mixed >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53_usize) >> 40
}

fn byte(n: usize) -> u8 {
    n.to_le_bytes()[0]
}

/// How heads are filled.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    /// Mostly background, some candidates.
    Likely,
    /// Two values above the threshold, two below.
    Ties,
    /// Everything above the threshold.
    All,
    /// Everything above the threshold and equal.
    Equal,
    /// Later logits are never lower: whoever keeps the best so far drops all of it again and again.
    Rising,
    /// Everything above the threshold, most of it so far that the scores are 1.
    Saturated,
    /// Nothing.
    Nothing,
    /// Likely logits, deltas at both ends.
    Extreme,
    /// Likely logits, deltas of 0: the boxes of a cell are its anchors.
    Anchors,
}

const CLS: QuantParams = QuantParams { scale: 0.07, zero_point: 180 };

/// Heads of every level.
struct Heads {
    grids: Vec<(usize, usize)>,
    cls: Vec<Vec<u8>>,
    bbox: Vec<Vec<u8>>,
    /// The same in real numbers.
    real: Vec<(Vec<f32>, Vec<f32>)>,
    cls_params: QuantParams,
    bbox_params: QuantParams,
}

impl Heads {
    fn new(manifest: &Manifest, fill: Fill, seed: usize) -> Self {
        let (grids, per_cell) = (manifest.grids(), manifest.anchors.n_per_cell());
        let cls_params = if fill == Fill::Saturated { QuantParams { scale: 1.0, zero_point: 100 } } else { CLS };
        let bbox_params = QuantParams { scale: if fill == Fill::Extreme { 0.06 } else { 0.02 }, zero_point: 120 };
        let logits = |(level, n): (usize, usize)| {
            let logit = |i: usize| match fill {
                Fill::Likely | Fill::Extreme | Fill::Anchors if noise(seed + level, i).is_multiple_of(40) => {
                    120 + byte(noise(seed, i)) / 2
                }
                Fill::Likely | Fill::Extreme | Fill::Anchors => byte(noise(seed + 1, i)) % 100,
                Fill::Ties => [100, 138, 139, 200][noise(seed + level, i) % 4],
                Fill::All => 180 + byte(noise(seed + level, i)) % 76,
                Fill::Equal => 200,
                Fill::Rising => 140 + byte(i * 115 / n),
                Fill::Saturated => 110 + byte(noise(seed + level, i)) % 12,
                Fill::Nothing => byte(noise(seed, i)) % 20,
            };
            (0..n).map(logit).collect::<Vec<u8>>()
        };
        let deltas = |n: usize| {
            let delta = |i: usize| match fill {
                Fill::Extreme => [0, 255, byte(noise(seed + 2, i))][noise(seed + 3, i) % 3],
                Fill::Equal | Fill::Anchors => 120,
                _ => 90 + byte(noise(seed + 4, i)) % 60,
            };
            (0..n).map(delta).collect::<Vec<u8>>()
        };
        let cells = || grids.iter().map(|(w, h)| w * h * per_cell);
        let cls: Vec<Vec<u8>> = cells().map(|n| n * manifest.n_classes()).enumerate().map(logits).collect();
        let bbox: Vec<Vec<u8>> = cells().map(|n| deltas(4 * n)).collect();
        let reals = |values: &[u8], params: QuantParams| values.iter().map(|&q| params.dequantize(q)).collect();
        let real = cls.iter().zip(&bbox).map(|(cls, bbox)| (reals(cls, cls_params), reals(bbox, bbox_params))).collect();
        Self { grids, cls, bbox, real, cls_params, bbox_params }
    }

    fn outputs(&self, is_float: bool) -> HeadOutputs<'_> {
        let level = |(idx, &grid): (usize, &(usize, usize))| {
            let (cls_logits, bbox_deltas) = if is_float {
                (HeadData::Float(&self.real[idx].0), HeadData::Float(&self.real[idx].1))
            } else {
                (HeadData::Quantized(&self.cls[idx], self.cls_params), HeadData::Quantized(&self.bbox[idx], self.bbox_params))
            };
            LevelHeads { grid, cls_logits, bbox_deltas }
        };
        HeadOutputs { levels: self.grids.iter().enumerate().map(level).collect() }
    }
}

fn manifest(classes: usize, input: (usize, usize)) -> Manifest {
    let strides = [8, 16, 32];
    Manifest {
        schema: 1,
        name: "test".into(),
        network: NetworkSpec { file: "model.onnx".into(), sha256: None },
        input: InputSpec {
            name: "images".into(),
            width: input.0,
            height: input.1,
            preprocess: 1,
            mean: [0.0; 3],
            std: [255.0; 3],
        },
        anchors: AnchorConfig::octaves(2.0, &strides, 3),
        levels: strides.map(|stride| LevelSpec { stride, cls: format!("cls_{stride}"), bbox: format!("box_{stride}") }).to_vec(),
        postprocess: PostprocessSpec::default(),
        classes: (0..classes).map(|class| format!("class {class}")).collect(),
    }
}

/// A candidate of the plain postprocessing; the fields are in the order of ties.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    level: usize,
    anchor: usize,
    class: usize,
    bbox: BBox,
}

fn sort(candidates: &mut [Candidate]) {
    let place = |c: &Candidate| (c.level, c.anchor, c.class);
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(place(a).cmp(&place(b))));
}

/// What is asked, in numbers.
struct Asked {
    thresholds: Vec<f32>,
    spec: PostprocessSpec,
}

impl Asked {
    /// As the documentation says: options before the manifest, a class's threshold before that of all.
    fn new(manifest: &Manifest, options: &PostprocessOptions) -> Self {
        let mut spec = manifest.postprocess.clone();
        if !options.classes.is_empty() {
            spec.classes.clone_from(&options.classes);
        }
        let threshold = |(idx, class): (usize, &String)| {
            let own = options.class_thresholds.iter().find(|(name, _)| name == class).map(|(_, threshold)| *threshold);
            let shown = options.score_threshold.unwrap_or_else(|| manifest.display_threshold(idx));
            if spec.classes.is_empty() || spec.classes.contains(class) { own.unwrap_or(shown) } else { 2.0 }
        };
        let thresholds = manifest.classes.iter().enumerate().map(threshold).collect();
        spec.nms = options.nms.unwrap_or(spec.nms);
        spec.nms_iou_threshold = options.nms_iou_threshold.unwrap_or(spec.nms_iou_threshold);
        spec.soft_nms_sigma = options.soft_nms_sigma.or(spec.soft_nms_sigma);
        spec.class_agnostic_nms = options.class_agnostic_nms.unwrap_or(spec.class_agnostic_nms);
        spec.max_detections = options.max_detections.unwrap_or(spec.max_detections);
        spec.min_box_size = options.min_box_size.unwrap_or(spec.min_box_size);
        Self { thresholds, spec }
    }
}

/// The plain postprocessing.
fn plain(manifest: &Manifest, asked: &Asked, heads: &Heads, is_float: bool) -> Vec<Detection> {
    let k = manifest.n_classes();
    let anchors =
        Anchors::new(&manifest.anchors, (manifest.input.width, manifest.input.height), &manifest.strides(), &manifest.grids());
    let (scores, exp) = (quant::sigmoid_table(heads.cls_params), quant::exp_table(heads.bbox_params, BBOX_XFORM_CLIP));
    let mut all = Vec::new();
    for (level, of_level) in anchors.levels.iter().enumerate() {
        let mut candidates = Vec::new();
        for (i, &q) in heads.cls[level].iter().enumerate() {
            let (anchor, class) = (i / k, i % k);
            if scores[usize::from(q)] <= asked.thresholds[class] {
                continue;
            }
            let n = of_level.cell_anchors.len();
            let (cell, a) = (anchor / n, anchor % n);
            let reference = of_level.bbox(cell % of_level.grid.0, cell / of_level.grid.0, a);
            let q = [0, 1, 2, 3].map(|i| heads.bbox[level][4 * anchor + i]);
            let [dx, dy, dw, dh] = q.map(|q| heads.bbox_params.dequantize(q));
            let bbox = if is_float {
                BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &reference)
            } else {
                BoxCoder::decode_scaled(dx, dy, exp[usize::from(q[2])], exp[usize::from(q[3])], &reference)
            };
            candidates.push(Candidate { score: scores[usize::from(heads.cls[level][i])], level, anchor, class, bbox });
        }
        sort(&mut candidates);
        candidates.truncate(asked.spec.topk_candidates_per_level);
        all.append(&mut candidates);
    }
    let size = asked.spec.min_box_size;
    all.retain(|c| size <= 0.0 || (c.bbox.width() >= size && c.bbox.height() >= size));
    let mut found = Vec::new();
    while found.len() < asked.spec.max_detections && !all.is_empty() {
        sort(&mut all);
        let best = all.remove(0);
        found.push(Detection {
            bbox: best.bbox,
            class_id: ClassId(u16::try_from(best.class).expect("small")),
            score: best.score,
        });
        let is_rival = |other: &Candidate| asked.spec.class_agnostic_nms || other.class == best.class;
        match asked.spec.nms {
            NmsMethod::Greedy => {
                all.retain(|other| !(is_rival(other) && best.bbox.iou(&other.bbox) > asked.spec.nms_iou_threshold));
            }
            soft => {
                for other in all.iter_mut().filter(|other| is_rival(other)) {
                    let iou = best.bbox.iou(&other.bbox);
                    if soft == NmsMethod::SoftGaussian {
                        #[expect(clippy::cast_possible_truncation, reason = "rounds")]
                        let factor =
                            libm::exp(-f64::from(iou).powi(2) / f64::from(asked.spec.soft_nms_sigma.unwrap_or(0.5))) as f32;
                        other.score *= factor;
                    } else if iou > asked.spec.nms_iou_threshold {
                        other.score *= 1.0 - iou;
                    }
                }
                all.retain(|other| other.score > asked.thresholds[other.class]);
            }
        }
    }
    found
}

fn bits(detections: &[Detection]) -> Vec<(u16, u32, [u32; 4])> {
    detections.iter().map(|d| (d.class_id.0, d.score.to_bits(), d.bbox.to_array().map(f32::to_bits))).collect()
}

/// Runs heads on every instruction set, quantised and real; gives the number of detections.
fn check(what: &str, manifest: &Manifest, options: &PostprocessOptions, fill: Fill) -> usize {
    manifest.check().unwrap_or_else(|error| panic!("{what}: {error}"));
    let heads = Heads::new(manifest, fill, what.len());
    let mut n = 0;
    for is_float in [false, true] {
        let want = bits(&plain(manifest, &Asked::new(manifest, options), &heads, is_float));
        for kernels in all_kernels() {
            let rules = Rules::with_options(manifest, options).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut postprocessor = Postprocessor::with_rules(manifest, rules, kernels);
            let mut found = Vec::new();
            // Twice: buffers of the first picture must not show in the second.
            for _ in 0..2 {
                postprocessor.run(&heads.outputs(is_float), &mut found);
                let got = bits(&found);
                let differ = got.iter().zip(&want).position(|(got, want)| got != want);
                let isa = kernels.isa().name();
                assert_eq!((differ, got.len()), (None, want.len()), "{what}, {fill:?}, float {is_float}, {isa}");
            }
        }
        n += want.len();
    }
    n
}

#[test]
fn the_result_is_that_of_the_plain_loops_bit_for_bit() {
    let none = PostprocessOptions::default();
    let edit = |edit: &dyn Fn(&mut PostprocessSpec)| {
        let mut manifest = manifest(3, (104, 72));
        edit(&mut manifest.postprocess);
        manifest
    };
    let mut n = 0;
    for fill in [Fill::Likely, Fill::Ties, Fill::All, Fill::Equal, Fill::Rising, Fill::Nothing, Fill::Extreme, Fill::Anchors] {
        n += check("the paper's thresholds", &edit(&|_| ()), &none, fill);
        n += check("few candidates", &edit(&|spec| spec.topk_candidates_per_level = 7), &none, fill);
        n += check("one detection", &edit(&|spec| spec.max_detections = 1), &none, fill);
        n += check("threshold 0", &edit(&|spec| (spec.score_threshold, spec.max_detections) = (0.0, 700)), &none, fill);
        n += check("every overlap counts", &edit(&|spec| spec.nms_iou_threshold = 0.0), &none, fill);
        n += check("no overlap counts", &edit(&|spec| spec.nms_iou_threshold = 1.0), &none, fill);
        n += check("one class", &manifest(1, (104, 72)), &none, fill);
        n += check("365 classes", &manifest(365, (64, 40)), &none, fill);
    }
    assert!(n > 3000, "only {n} detections to compare");
}

#[test]
fn more_candidates_than_a_scan_gives_at_a_time() {
    // 4 x the hits of a scan on one level, and less than k of them kept.
    let mut manifest = manifest(10, (160, 96));
    manifest.postprocess.topk_candidates_per_level = 3000;
    manifest.postprocess.max_detections = 400;
    for fill in [Fill::All, Fill::Equal, Fill::Rising, Fill::Ties, Fill::Saturated] {
        assert!(check("3000 of 21600", &manifest, &PostprocessOptions::default(), fill) > 100);
        // Classes of which no logit is a candidate, and others with thresholds of their own.
        let classes = PostprocessOptions { classes: vec!["class 3".into(), "class 5".into()], ..PostprocessOptions::default() };
        check("two classes", &manifest, &classes, fill);
        let thresholds = vec![("class 2".into(), 0.9), ("class 7".into(), 0.3), ("class 8".into(), 0.99)];
        check(
            "thresholds",
            &manifest,
            &PostprocessOptions { class_thresholds: thresholds, ..PostprocessOptions::default() },
            fill,
        );
    }
}

#[test]
fn boxes_without_an_area_are_kept_and_suppress_nothing() {
    let mut manifest = manifest(3, (104, 72));
    manifest.anchors.base_sizes = vec![0.25; 3];
    manifest.anchors.round = true;
    let none = PostprocessOptions::default();
    assert_eq!(check("zero area", &manifest, &none, Fill::All), 200, "nothing overlaps a box without an area");
    check("zero area", &manifest, &none, Fill::Likely);
    let large = PostprocessOptions { min_box_size: Some(0.5), ..none };
    assert_eq!(check("zero area", &manifest, &large, Fill::All), 0, "none of them is half a pixel wide");
}

#[test]
fn extreme_growth_is_clamped() {
    let manifest = manifest(1, (104, 72));
    let heads = Heads::new(&manifest, Fill::Extreme, 0);
    let mut found = Vec::new();
    Postprocessor::new(&manifest).run(&heads.outputs(false), &mut found);
    let widest = found.iter().map(|d| d.bbox.width().max(d.bbox.height())).fold(0.0, f32::max);
    let largest_anchor = 2.0 * 32.0 * 1.587_401 * std::f32::consts::SQRT_2;
    assert!(widest > 50.0 * largest_anchor && widest < 62.6 * largest_anchor, "{widest}");
}

#[test]
fn boxes_that_are_not_finite_are_left_out() {
    let manifest = manifest(2, (64, 64));
    let mut heads = Heads::new(&manifest, Fill::All, 1);
    for (i, delta) in heads.real.iter_mut().flat_map(|(_, deltas)| deltas.iter_mut()).enumerate() {
        // One of the four at a time.
        *delta = if i / 20 % 4 == i % 4 { [f32::NAN, f32::INFINITY, -f32::INFINITY, 3e38, 0.1][i / 4 % 5] } else { 0.1 };
    }
    heads.real[0].0[3] = f32::NAN;
    for kernels in all_kernels() {
        for nms in [NmsMethod::Greedy, NmsMethod::SoftGaussian] {
            let options = PostprocessOptions { nms: Some(nms), ..PostprocessOptions::default() };
            let rules = Rules::with_options(&manifest, &options).expect("rules");
            let mut found = Vec::new();
            Postprocessor::with_rules(&manifest, rules, kernels).run(&heads.outputs(true), &mut found);
            assert!(!found.is_empty() && found.iter().all(|d| d.bbox.to_array().into_iter().all(f32::is_finite)), "{found:?}");
        }
    }
}

#[test]
fn options_change_what_they_say() {
    let base = manifest(4, (104, 72));
    let name = |class: usize| base.classes[class].clone();
    let none = PostprocessOptions::default;
    let soft = |nms: NmsMethod| PostprocessOptions { nms: Some(nms), score_threshold: Some(0.1), ..none() };
    let all = [
        ("score threshold", PostprocessOptions { score_threshold: Some(0.3), ..none() }),
        ("class thresholds", PostprocessOptions { class_thresholds: vec![(name(2), 0.9), (name(0), 0.0)], ..none() }),
        ("classes", PostprocessOptions { classes: vec![name(1), name(3)], ..none() }),
        ("one class", PostprocessOptions { classes: vec![name(2)], class_thresholds: vec![(name(2), 0.5)], ..none() }),
        ("class-agnostic", PostprocessOptions { class_agnostic_nms: Some(true), ..none() }),
        ("overlap", PostprocessOptions { nms_iou_threshold: Some(0.2), ..none() }),
        ("most", PostprocessOptions { max_detections: Some(11), ..none() }),
        ("size", PostprocessOptions { min_box_size: Some(30.0), ..none() }),
        ("linear", soft(NmsMethod::SoftLinear)),
        (
            "linear, low",
            PostprocessOptions { nms_iou_threshold: Some(0.1), max_detections: Some(900), ..soft(NmsMethod::SoftLinear) },
        ),
        ("gaussian", soft(NmsMethod::SoftGaussian)),
        ("gaussian, wide", PostprocessOptions { soft_nms_sigma: Some(2.0), ..soft(NmsMethod::SoftGaussian) }),
        ("gaussian for all", PostprocessOptions { class_agnostic_nms: Some(true), ..soft(NmsMethod::SoftGaussian) }),
    ];
    let paper = plain(&base, &Asked::new(&base, &none()), &Heads::new(&base, Fill::Likely, 0), false);
    for (what, options) in all {
        for fill in [Fill::Likely, Fill::Ties, Fill::Extreme, Fill::Equal] {
            assert!(check(what, &base, &options, fill) > 0, "{what}: nothing is left");
        }
        let changed = plain(&base, &Asked::new(&base, &options), &Heads::new(&base, Fill::Likely, 0), false);
        assert_ne!(bits(&paper), bits(&changed), "{what} changes nothing");
        // What a manifest says is what an option says.
        if options.score_threshold.is_none() && options.class_thresholds.is_empty() {
            let mut said = base.clone();
            said.postprocess = Asked::new(&base, &options).spec;
            check(what, &said, &none(), Fill::Likely);
        }
    }
}

/// Bodla et al., equations 2 and 3, by hand: two boxes of `IoU` 1/3 and a third that is elsewhere.
#[test]
fn soft_suppression_lowers_scores_as_the_paper_says() {
    let mut manifest = manifest(1, (32, 32));
    manifest.anchors.scales = vec![1.0];
    manifest.anchors.aspect_ratios = vec![1.0];
    manifest.levels.truncate(1);
    // Anchors of 16 pixels, 8 apart: neighbours in a row share half of each.
    manifest.anchors.base_sizes = vec![16.0];
    let mut heads = Heads::new(&manifest, Fill::Nothing, 0);
    heads.bbox[0].fill(heads.bbox_params.zero_point);
    (heads.cls[0][0], heads.cls[0][1], heads.cls[0][15]) = (220, 210, 200);
    let score = |q: u8| 1.0 / (1.0 + (-0.07 * (f64::from(q) - 180.0)).exp());
    let gaussian = (-(1.0_f64 / 9.0) / 0.5).exp();
    for (nms, threshold, want) in [
        (NmsMethod::Greedy, Some(0.3), vec![score(220), score(200)]),
        (NmsMethod::Greedy, Some(0.4), vec![score(220), score(210), score(200)]),
        (NmsMethod::SoftLinear, Some(0.3), vec![score(220), score(200), score(210) * 2.0 / 3.0]),
        (NmsMethod::SoftLinear, Some(0.4), vec![score(220), score(210), score(200)]),
        (NmsMethod::SoftGaussian, None, vec![score(220), score(200), score(210) * gaussian]),
    ] {
        let options = PostprocessOptions { nms: Some(nms), nms_iou_threshold: threshold, ..PostprocessOptions::default() };
        let rules = Rules::with_options(&manifest, &options).expect("rules");
        let mut found = Vec::new();
        Postprocessor::with_rules(&manifest, rules, Kernels::default()).run(&heads.outputs(false), &mut found);
        let got: Vec<f64> = found.iter().map(|d| f64::from(d.score)).collect();
        let is_close = got.len() == want.len() && got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-6);
        assert!(is_close, "{nms:?} {threshold:?}: {got:?}, expected {want:?}");
    }
}

type Edit = fn(&mut Manifest);

#[test]
fn options_that_cannot_be_are_refused() {
    let manifest = manifest(3, (64, 64));
    let class = |name: &str| name.to_owned();
    let none = PostprocessOptions::default;
    let cases: [(PostprocessOptions, &[&str]); 10] = [
        (
            PostprocessOptions { classes: vec![class("cow")], ..none() },
            &["--classes", "model.classes", "`cow`", "class 0, class 1"],
        ),
        (
            PostprocessOptions { class_thresholds: vec![(class("cow"), 0.5)], ..none() },
            &["--class-threshold", "`cow`", "class 2"],
        ),
        (
            PostprocessOptions { classes: vec![class("class 1")], class_thresholds: vec![(class("class 0"), 0.5)], ..none() },
            &["0.5 for `class 0`", "only class 1", "add the class to --classes"],
        ),
        (
            PostprocessOptions { class_thresholds: vec![(class("class 0"), 0.5), (class("class 0"), 0.6)], ..none() },
            &["--class-threshold", "twice for `class 0`"],
        ),
        (PostprocessOptions { class_thresholds: vec![(class("class 0"), 1.5)], ..none() }, &["1.5 for `class 0`", "0 to 1"]),
        (PostprocessOptions { soft_nms_sigma: Some(0.5), ..none() }, &["--soft-nms-sigma", "0.5", "--nms soft-gaussian"]),
        (
            PostprocessOptions { nms: Some(NmsMethod::SoftGaussian), nms_iou_threshold: Some(0.25), ..none() },
            &["--nms-iou-threshold", "0.25", "has no threshold"],
        ),
        (
            PostprocessOptions { nms: Some(NmsMethod::SoftGaussian), soft_nms_sigma: Some(0.0), ..none() },
            &["--soft-nms-sigma", "above 0"],
        ),
        (PostprocessOptions { max_detections: Some(0), ..none() }, &["--max-detections", "is 0", "1 to 100000"]),
        (PostprocessOptions { min_box_size: Some(f32::NAN), ..none() }, &["--min-box-size", "NaN", "0 to 4096"]),
    ];
    for (options, says) in cases {
        let message = Rules::with_options(&manifest, &options).expect_err("it is refused").to_string();
        for part in says {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
    let edits: [(Edit, &str, &str); 6] = [
        (|m| m.postprocess.classes = vec!["cow".into()], "`postprocess.classes`", "class 0"),
        (|m| m.postprocess.soft_nms_sigma = Some(0.5), "`postprocess.soft_nms_sigma`", "soft_gaussian"),
        (
            |m| (m.postprocess.nms, m.postprocess.soft_nms_sigma) = (NmsMethod::SoftGaussian, Some(f32::NAN)),
            "`postprocess.soft_nms_sigma`",
            "above 0",
        ),
        (|m| m.postprocess.min_box_size = -1.0, "`postprocess.min_box_size`", "0 to 4096"),
        (|m| m.postprocess.max_detections = 0, "`postprocess.max_detections`", "1 to 100000"),
        (
            |m| {
                (m.input.width, m.input.height, m.levels[0].stride) = (4096, 4096, 1);
                m.classes = (0..1000).map(|class| format!("class {class}")).collect();
            },
            "`levels`",
            "2147483648",
        ),
    ];
    for (edit, key, says) in edits {
        let mut manifest = manifest.clone();
        edit(&mut manifest);
        let message = manifest.check().expect_err("it is refused").to_string();
        assert!(message.contains(key) && message.contains(says), "{message}");
    }
}

#[test]
fn a_manifest_that_asks_for_nothing_special_is_written_as_before() {
    let manifest = manifest(2, (64, 64));
    let text = manifest.to_toml();
    for key in ["nms =", "soft_nms_sigma", "class_agnostic_nms", "min_box_size", "postprocess.classes"] {
        assert!(!text.contains(key), "{key} in {text}");
    }
    assert_eq!(Manifest::parse(&text).expect("it is read again"), manifest);
    let mut asks = manifest;
    asks.postprocess.classes = vec!["class 1".into()];
    asks.postprocess.nms = NmsMethod::SoftGaussian;
    asks.postprocess.soft_nms_sigma = Some(0.25);
    asks.postprocess.class_agnostic_nms = true;
    asks.postprocess.min_box_size = 3.5;
    assert_eq!(Manifest::parse(&asks.to_toml()).expect("it is read again"), asks);
}

#[test]
fn nothing_is_allocated_after_the_first_frame() {
    let mut manifest = manifest(10, (160, 96));
    for nms in [NmsMethod::Greedy, NmsMethod::SoftLinear] {
        manifest.postprocess.nms = nms;
        // The first frame is the quietest.
        let frames: Vec<Heads> = [Fill::Nothing, Fill::Likely, Fill::All, Fill::Rising, Fill::Extreme]
            .map(|fill| Heads::new(&manifest, fill, 5))
            .into();
        let quantised: Vec<HeadOutputs<'_>> = frames.iter().map(|heads| heads.outputs(false)).collect();
        let real: Vec<HeadOutputs<'_>> = frames.iter().map(|heads| heads.outputs(true)).collect();
        for kernels in all_kernels() {
            let mut postprocessor = Postprocessor::with_rules(&manifest, Rules::new(&manifest), kernels);
            let mut found = Vec::new();
            postprocessor.run(&quantised[0], &mut found);
            // Frames with other parameters have other tables.
            let same = |heads: &&HeadOutputs<'_>| match (&heads.levels[0].bbox_deltas, &quantised[0].levels[0].bbox_deltas) {
                (HeadData::Quantized(_, a), HeadData::Quantized(_, b)) => a == b,
                _ => true,
            };
            for heads in quantised.iter().chain(&real).filter(same) {
                let before = N_ALLOCATIONS.get();
                postprocessor.run(heads, &mut found);
                assert_eq!(N_ALLOCATIONS.get() - before, 0, "{nms:?} on {}", kernels.isa().name());
            }
        }
    }
}

#[test]
fn a_scan_finds_what_reaches_its_limit() {
    for n_classes in [1, 2, 3, 5, 31, 64, 80, 127, 255, 256, 257, 365] {
        for n in [0, 1, 31, 32, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1000, 4097] {
            for (seed, rare) in [(1, true), (2, false)] {
                let limit = |class: usize| if rare { 250 } else { [0, 255, byte(noise(seed, class))][class % 3] };
                let lowest: Vec<u8> = (0..n_classes).map(limit).collect();
                let values: Box<[u8]> = (0..n).map(|i| byte(noise(seed + 7, i))).collect();
                let want: Vec<usize> = (0..n).filter(|i| values[*i] >= lowest[i % n_classes]).collect();
                for kernels in all_kernels() {
                    let mut limits = Limits::new(&vec![7; n_classes]);
                    limits.set(&lowest);
                    // Room for two blocks: it has to go on where it ended.
                    let mut hits = vec![0; 2 * SCAN_BLOCK - 1].into_boxed_slice();
                    let (mut got, mut first) = (Vec::new(), 0);
                    while first < n {
                        let scanned = kernels.scan(&values, &limits, first, &mut hits);
                        assert!(scanned.next > first && scanned.next <= n, "it moves on");
                        got.extend(hits[..scanned.n_hits].iter().map(|&place| usize::try_from(place).expect("small")));
                        first = scanned.next;
                    }
                    assert_eq!(got, want, "{}: {n} values, {n_classes} classes", kernels.isa().name());
                    assert_eq!(kernels.count(&values, &limits), want.len(), "{}: counted", kernels.isa().name());
                    limits.raise(200);
                    let raised = kernels.scan(&values, &limits, 0, &mut hits);
                    let is_above = |&&i: &&usize| i < raised.next && values[i] >= 200;
                    assert_eq!(raised.n_hits, want.iter().filter(is_above).count(), "{}: raised", kernels.isa().name());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Small whole coordinates: quotients that are the threshold exactly, and boxes without an area.
    #[test]
    fn an_overlap_is_decided_as_by_the_division(
        boxes in proptest::collection::vec([0_u8..12, 0..12, 0..12, 0..12], 0..40), of in [0_u8..12, 0..12, 0..12, 0..12],
        scale in prop_oneof![Just(1.0_f32), 0.01_f32..50.0], list in 0_usize..3,
        threshold in prop_oneof![
            (0_u8..=20, 1_u8..=20).prop_map(|(a, b)| (f32::from(a) / f32::from(b)).min(1.0)), 0.0_f32..1.0, Just(f32::MIN_POSITIVE),
        ],
    ) {
        let bbox = |[x, y, w, h]: [u8; 4]| {
            let [x, y, w, h] = [x, y, w, h].map(|value| f32::from(value) * scale);
            BBox::new(x, y, x + w, y + h)
        };
        let of = bbox(of);
        let mut lists = BoxLists::new(3, 4);
        lists.push(list, &of);
        lists.clear();
        for (i, &other) in boxes.iter().enumerate() {
            lists.push(if i % 5 == 4 { (list + 1) % 3 } else { list }, &bbox(other));
        }
        let mine = boxes.iter().enumerate().filter(|(i, _)| i % 5 != 4).map(|(_, &other)| bbox(other));
        let want = mine.clone().any(|other| other.iou(&of) > threshold);
        // At the threshold, and one step below it.
        let quotients: Vec<f32> = mine.map(|other| other.iou(&of)).collect();
        for kernels in all_kernels() {
            prop_assert_eq!(kernels.overlaps(&lists, list, &of, IouLimit::new(threshold)), want, "{}", kernels.isa().name());
            for &limit in quotients.iter().take(3) {
                for limit in [limit, limit.next_down().max(0.0)] {
                    let want = quotients.iter().any(|&iou| iou > limit);
                    prop_assert_eq!(kernels.overlaps(&lists, list, &of, IouLimit::new(limit)), want, "{}", limit);
                }
            }
        }
    }
}
