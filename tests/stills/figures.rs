//! Anchors and box offsets against torchvision and detectron2 (`tests/fixtures/anchors.json`).

use fovea::detection::BBox;
use fovea::retinanet::{AnchorConfig, Anchors, BoxCoder, Deltas};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Fixture {
    anchors: Vec<AnchorCase>,
    offsets: Offsets,
}

#[derive(Debug, Deserialize)]
struct AnchorCase {
    origin: String,
    width: usize,
    height: usize,
    grids: Vec<(usize, usize)>,
    config: serde_json::Map<String, serde_json::Value>,
    n: usize,
    sum: f64,
    at: Vec<usize>,
    boxes: Vec<[f32; 4]>,
}

#[derive(Debug, Deserialize)]
struct Offsets {
    anchors: Vec<[f32; 4]>,
    boxes: Vec<[f32; 4]>,
    encoded: Vec<[f32; 4]>,
    deltas: Vec<[f32; 4]>,
    decoded: Vec<[f32; 4]>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../fixtures/anchors.json")).expect("the fixture is JSON")
}

const STRIDES: [usize; 5] = [8, 16, 32, 64, 128];

#[test]
fn anchors_are_those_of_torchvision_and_detectron2() {
    for case in fixture().anchors {
        let mut config = case.config.clone();
        config.insert("scales".into(), serde_json::json!(AnchorConfig::octaves(2.0, &STRIDES, 3).scales));
        config.insert("aspect_ratios".into(), serde_json::json!([0.5, 1.0, 2.0]));
        let config: AnchorConfig = serde_json::from_value(config.into()).expect("an anchor configuration");
        let anchors = Anchors::new(&config, (case.width, case.height), &STRIDES, &case.grids);
        assert_eq!(anchors.len(), case.n, "{}", case.origin);
        let all: Vec<BBox> = anchors.iter().collect();
        for (&at, want) in case.at.iter().zip(&case.boxes) {
            for (got, want) in all[at].to_array().into_iter().zip(want) {
                // Two roundings of f32 at coordinates of up to 1000.
                assert!((got - want).abs() <= 1e-4, "{} anchor {at}: {:?}, expected {want:?}", case.origin, all[at]);
            }
        }
        let sum: f64 = all.iter().flat_map(|bbox| bbox.to_array()).map(f64::from).sum();
        assert!((sum - case.sum).abs() <= 1e-7 * case.sum.abs().max(1e5), "{}: sum {sum}, expected {}", case.origin, case.sum);
    }
}

fn bbox([x1, y1, x2, y2]: [f32; 4]) -> BBox {
    BBox::new(x1, y1, x2, y2)
}

fn close(what: &str, got: [f32; 4], want: [f32; 4]) {
    for (got_value, want_value) in got.into_iter().zip(want) {
        let bound = 2e-6 * want_value.abs().max(100.0);
        assert!((got_value - want_value).abs() <= bound, "{what}: {got:?}, expected {want:?}");
    }
}

#[test]
fn offsets_are_those_of_torchvision() {
    let Offsets { anchors, boxes, encoded, deltas, decoded } = fixture().offsets;
    assert!(anchors.len() >= 40 && anchors.len() == decoded.len() && boxes.len() == encoded.len());
    for (idx, &anchor) in anchors.iter().enumerate() {
        let Deltas { dx, dy, dw, dh } = BoxCoder::encode(&bbox(boxes[idx]), &bbox(anchor));
        for (got, want) in [dx, dy, dw, dh].into_iter().zip(encoded[idx]) {
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "encode {idx}: {got}, expected {want}");
        }
        let [dx, dy, dw, dh] = deltas[idx];
        let got = BoxCoder::decode(&Deltas { dx, dy, dw, dh }, &bbox(anchor));
        close(&format!("decode {idx}"), got.to_array(), decoded[idx]);
    }
}
