//! Heads from anywhere: the options are refused, or every instruction set finds what the plain loops find, and it is in order.

use super::bytes::Bytes;
use fovea::detection::Detection;
use fovea::kernels::{Isa, Kernels};
use fovea::postprocess::{PostprocessOptions, Postprocessor, Rules};
use fovea::quant::QuantParams;
use fovea::retinanet::{
    AnchorConfig, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, NmsMethod, PostprocessSpec,
};

const STRIDES: [usize; 5] = [8, 16, 32, 64, 128];

fn manifest(bytes: &mut Bytes<'_>) -> Manifest {
    let strides = &STRIDES[..1 + bytes.below(STRIDES.len())];
    let n_classes = [1, 2, 3, 10, 80, 365][bytes.below(6)];
    let side = |bytes: &mut Bytes<'_>| 8 * (1 + bytes.below(if n_classes > 10 { 6 } else { 16 }));
    Manifest {
        schema: 1,
        name: "heads".into(),
        network: NetworkSpec { file: "-".into(), sha256: None },
        input: InputSpec {
            name: String::new(),
            width: side(bytes),
            height: side(bytes),
            preprocess: 1,
            mean: [0.0; 3],
            std: [255.0; 3],
        },
        anchors: AnchorConfig::octaves(4.0, strides, bytes.pick(&[1, 2, 3])),
        levels: strides.iter().map(|&stride| LevelSpec { stride, cls: String::new(), bbox: String::new() }).collect(),
        postprocess: PostprocessSpec {
            score_threshold: bytes.part(),
            topk_candidates_per_level: 1 + bytes.number(),
            max_detections: 1 + bytes.number(),
            ..PostprocessSpec::default()
        },
        classes: (0..n_classes).map(|class| class.to_string()).collect(),
    }
}

fn options(bytes: &mut Bytes<'_>) -> PostprocessOptions {
    // Now and then any number at all.
    let part = |bytes: &mut Bytes<'_>| match bytes.below(4) {
        0 => Some(bytes.part()),
        1 if bytes.below(8) == 0 => Some(bytes.real()),
        _ => None,
    };
    PostprocessOptions {
        score_threshold: part(bytes),
        class_thresholds: part(bytes).map(|threshold| ("0".to_owned(), threshold)).into_iter().collect(),
        classes: if bytes.below(4) == 0 { vec![bytes.below(4).to_string(), "0".into()] } else { Vec::new() },
        nms: bytes.pick(&[None, None, Some(NmsMethod::Greedy), Some(NmsMethod::SoftLinear), Some(NmsMethod::SoftGaussian)]),
        nms_iou_threshold: part(bytes),
        soft_nms_sigma: part(bytes),
        class_agnostic_nms: bytes.pick(&[None, Some(true)]),
        max_detections: (bytes.below(4) == 0).then(|| bytes.number()),
        min_box_size: part(bytes).map(|part| 64.0 * part),
    }
}

/// As many reals as are asked for, infinities and NaN among them.
fn reals(bytes: &Bytes<'_>, n: usize) -> Vec<f32> {
    bytes.fill(4 * n).as_chunks::<4>().0.iter().map(|&bits| f32::from_le_bytes(bits)).collect()
}

/// Whether there was something to look at.
pub(crate) fn look(bytes: &[u8]) -> bool {
    let mut bytes = Bytes(bytes);
    let (manifest, options) = (manifest(&mut bytes), options(&mut bytes));
    let Ok(rules) = Rules::with_options(&manifest, &options) else { return false };
    let params = |bytes: &mut Bytes<'_>| {
        let usual = [0.02, 0.06, 0.2, 1.0][bytes.below(4)];
        let scale = if bytes.below(8) == 0 { bytes.real().abs() } else { usual };
        let zero_point = bytes.byte();
        QuantParams { scale: if scale.is_normal() { scale } else { 0.1 }, zero_point }
    };
    let (cls, bbox, is_real) = (params(&mut bytes), params(&mut bytes), bytes.below(4) == 0);
    let per_cell = manifest.anchors.scales.len() * manifest.anchors.aspect_ratios.len();
    let n_logits = |(w, h): (usize, usize)| w * h * per_cell * manifest.n_classes();
    let n_deltas = |(w, h): (usize, usize)| w * h * per_cell * 4;
    let grids = manifest.grids();
    let quantised: Vec<_> = grids.iter().map(|&grid| (bytes.fill(n_logits(grid)), bytes.fill(n_deltas(grid)))).collect();
    let real: Vec<_> = if is_real {
        grids.iter().map(|&grid| (reals(&bytes, n_logits(grid)), reals(&bytes, n_deltas(grid)))).collect()
    } else {
        Vec::new()
    };
    let level = |(idx, &grid): (usize, &(usize, usize))| match real.get(idx) {
        Some((logits, deltas)) => LevelHeads { grid, cls_logits: HeadData::Float(logits), bbox_deltas: HeadData::Float(deltas) },
        None => LevelHeads {
            grid,
            cls_logits: HeadData::Quantized(&quantised[idx].0, cls),
            bbox_deltas: HeadData::Quantized(&quantised[idx].1, bbox),
        },
    };
    let heads = HeadOutputs { levels: grids.iter().enumerate().map(level).collect() };
    let most = options.max_detections.unwrap_or(manifest.postprocess.max_detections);
    let mut want: Option<Vec<Detection>> = None;
    for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::new(isa)) {
        let mut found = Vec::new();
        let mut postprocessor = Postprocessor::with_rules(&manifest, rules.clone(), kernels);
        // A second time on the same buffers, which hold what the first left.
        for _ in 0..2 {
            postprocessor.run(&heads, &mut found);
            assert!(found.len() <= most, "{} of {most}", found.len());
            let is_sound = |d: &Detection| d.bbox.to_array().iter().all(|x| x.is_finite()) && (0.0..=1.0).contains(&d.score);
            assert!(found.iter().all(is_sound), "{found:?}");
            assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "best first: {found:?}");
            let want = want.get_or_insert_with(|| found.clone());
            assert!(*want == found, "{}: {found:?}, expected {want:?}", kernels.isa().name());
        }
    }
    true
}
