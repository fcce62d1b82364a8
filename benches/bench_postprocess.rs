//! Measures postprocessing on heads from files, beside other programs: `benches/postprocess_peers.py` runs it.
//!
//! usage: `bench_postprocess FOLDER CASE [ISA]`. The folder is as `tests/oracle/postprocess.py` describes it. Prints
//! `{"ready":1,"found":n}`, then for every line `<seconds>` on stdin `{"wall":ms,"cpu":ms,"n":count}`: the least of each.

mod worker;

use fovea::postprocess::{Postprocessor, Rules};
use fovea::quant::QuantParams;
use fovea::retinanet::{
    AnchorConfig, AnchorStride, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, PostprocessSpec,
};
use serde::Deserialize;
use std::error::Error;
use std::path::Path;

/// Scale and zero point of a file.
#[derive(Debug, Deserialize)]
struct Params {
    scale: f32,
    zero_point: u8,
}

#[derive(Debug, Deserialize)]
struct Level {
    grid: (usize, usize),
    stride: usize,
    base_size: f32,
    cls: Params,
    #[serde(rename = "box")]
    bbox: Params,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    input: (usize, usize),
    levels: Vec<Level>,
    scales: Vec<f32>,
    ratios: Vec<f32>,
    offset: f32,
    n_classes: usize,
    thresholds: Vec<f32>,
    topk: usize,
    iou: f32,
    max: usize,
}

fn manifest(case: &Case) -> Manifest {
    let level = |level: &Level| LevelSpec { stride: level.stride, cls: String::new(), bbox: String::new() };
    Manifest {
        schema: 1,
        name: case.name.clone(),
        network: NetworkSpec { file: "-".into(), sha256: None },
        input: InputSpec {
            name: String::new(),
            width: case.input.0,
            height: case.input.1,
            preprocess: 1,
            mean: [0.0; 3],
            std: [255.0; 3],
        },
        anchors: AnchorConfig {
            base_sizes: case.levels.iter().map(|level| level.base_size).collect(),
            scales: case.scales.clone(),
            aspect_ratios: case.ratios.clone(),
            center_offset: case.offset,
            round: false,
            truncate_sizes: false,
            stride: AnchorStride::Nominal,
        },
        levels: case.levels.iter().map(level).collect(),
        postprocess: PostprocessSpec {
            score_threshold: 0.0,
            topk_candidates_per_level: case.topk,
            nms_iou_threshold: case.iou,
            max_detections: case.max,
            display_threshold: case.thresholds.clone(),
            ..PostprocessSpec::default()
        },
        classes: (0..case.n_classes).map(|class| class.to_string()).collect(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, name, isa @ ..] = arguments.as_slice() else {
        return Err("usage: bench_postprocess FOLDER CASE [ISA]".into());
    };
    let kernels = worker::kernels(isa.first())?;
    let folder = Path::new(folder);
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json"))?)?;
    let case = cases.into_iter().find(|case| case.name == *name).ok_or("no such case")?;
    let mut values = Vec::new();
    for idx in 0..case.levels.len() {
        let read = |kind: &str| std::fs::read(folder.join(format!("{name}.{idx}.{kind}")));
        values.push((read("cls")?, read("box")?));
    }
    let params = |params: &Params| QuantParams { scale: params.scale, zero_point: params.zero_point };
    let levels = values.iter().zip(&case.levels).map(|((cls, bbox), level)| LevelHeads {
        grid: level.grid,
        cls_logits: HeadData::Quantized(cls, params(&level.cls)),
        bbox_deltas: HeadData::Quantized(bbox, params(&level.bbox)),
    });
    let heads = HeadOutputs { levels: levels.collect() };
    let manifest = manifest(&case);
    let rules = Rules::with_options(&manifest, &fovea::postprocess::PostprocessOptions::default())?;
    let mut postprocessor = Postprocessor::with_rules(&manifest, rules, kernels);
    let mut found = Vec::new();
    postprocessor.run(&heads, &mut found);
    let ready = serde_json::json!({ "ready": 1, "found": found.len(), "isa": kernels.isa().name() });
    worker::serve(&ready, || {
        postprocessor.run(&heads, &mut found);
    })
}
