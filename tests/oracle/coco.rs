//! COCO metrics against pycocotools.

use crate::{Random, python, run_script};
use fovea::eval::{CocoDataset, CocoEvaluator};
use serde_json::{Value, json};

/// What a case is made of.
#[derive(Debug, Clone, Copy)]
struct Spec {
    name: &'static str,
    n_images: u64,
    /// Labelled boxes in a picture, at most.
    n_boxes: u64,
    /// False detections in a picture, at most.
    n_false: u64,
    /// Distinct scores; few make ties.
    n_scores: u64,
    /// One box of so many is a crowd; 0: none.
    crowd_every: u64,
    /// Whether pictures state which classes they label completely.
    partial: bool,
    /// Shortest and longest side of a box.
    sides: (f64, f64),
    /// Shift of a found box from its label, as a share of its size.
    jitter: f64,
}

const REALISTIC: Spec = Spec {
    name: "realistic",
    n_images: 60,
    n_boxes: 8,
    n_false: 10,
    n_scores: 1 << 20,
    crowd_every: 0,
    partial: false,
    sides: (6.0, 200.0),
    jitter: 0.15,
};

const CASES: [Spec; 9] = [
    REALISTIC,
    Spec { name: "partial labels", partial: true, crowd_every: 9, ..REALISTIC },
    Spec { name: "tied scores", n_scores: 4, ..REALISTIC },
    Spec { name: "one score", n_scores: 1, crowd_every: 7, ..REALISTIC },
    Spec { name: "crowds", crowd_every: 2, jitter: 0.3, ..REALISTIC },
    Spec { name: "empty pictures", n_boxes: 1, n_false: 1, ..REALISTIC },
    Spec { name: "over 100 detections", n_images: 6, n_boxes: 60, n_false: 500, crowd_every: 11, ..REALISTIC },
    Spec { name: "at the area limits", sides: (31.9, 32.1), jitter: 0.01, ..REALISTIC },
    Spec { name: "nothing to find", n_boxes: 0, ..REALISTIC },
];

const CATEGORIES: [u64; 4] = [1, 3, 17, 90];

fn make(spec: &Spec, random: &mut Random) -> Value {
    let (mut images, mut annotations, mut detections) = (Vec::new(), Vec::new(), Vec::new());
    let side = |random: &mut Random| {
        // Sides on a grid of eighths: areas and overlaps that are equal happen.
        let side = spec.sides.0 + (spec.sides.1 - spec.sides.0) * random.unit();
        if random.below(3) == 0 { (side * 8.0).round() / 8.0 } else { side }
    };
    for idx in 0..spec.n_images {
        // Ids in no order.
        let id = (idx * 37) % 1009 + 1;
        let mut image = json!({ "id": id, "file_name": format!("{id}.jpg"), "width": 640, "height": 480 });
        if spec.partial && random.below(4) > 0 {
            let some: Vec<u64> = CATEGORIES.into_iter().filter(|_| random.below(2) == 0).collect();
            image["exhaustive_category_ids"] = json!(some);
        }
        images.push(image);
        let score = |random: &mut Random| {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            {
                (random.below(spec.n_scores) + 1) as f64 / (spec.n_scores + 1) as f64
            }
        };
        for _ in 0..random.below(spec.n_boxes + 1) {
            let category = CATEGORIES[usize::try_from(random.below(4)).expect("small")];
            let bbox = [600.0 * random.unit(), 440.0 * random.unit(), side(random), side(random)];
            let is_crowd = spec.crowd_every > 0 && random.below(spec.crowd_every) == 0;
            // Areas of masks are smaller than those of boxes.
            let fill = if random.below(2) == 0 { 1.0 } else { 0.5 + 0.5 * random.unit() };
            annotations.push(json!({
                "id": annotations.len() + 1, "image_id": id, "category_id": category, "bbox": bbox,
                "area": bbox[2] * bbox[3] * fill, "iscrowd": u8::from(is_crowd),
            }));
            for _ in 0..random.below(3) {
                let mut shift = |size: f64| spec.jitter * size * (2.0 * random.unit() - 1.0);
                let [x, y, w, h] = bbox;
                let found = [x + shift(w), y + shift(h), w + shift(w), h + shift(h)];
                let category = if random.below(10) == 0 { 3 } else { category };
                detections.push(json!({ "image_id": id, "category_id": category, "bbox": found, "score": score(random) }));
            }
        }
        for _ in 0..random.below(spec.n_false + 1) {
            let category = CATEGORIES[usize::try_from(random.below(4)).expect("small")];
            let bbox = [600.0 * random.unit(), 440.0 * random.unit(), side(random), side(random)];
            detections.push(json!({ "image_id": id, "category_id": category, "bbox": bbox, "score": score(random) }));
        }
    }
    let categories: Vec<Value> = CATEGORIES.iter().map(|id| json!({ "id": id, "name": format!("class {id}") })).collect();
    json!({
        "dataset": { "images": images, "annotations": annotations, "categories": categories },
        "detections": detections,
    })
}

/// Labels and detections of real pictures (`tests/fixtures/real_boxes.json` says of which).
fn real_boxes() -> Value {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/real_boxes.json")).expect("a fixture");
    let rows = |key: &str| -> Vec<Vec<f64>> { serde_json::from_value(fixture[key].clone()).expect("rows of numbers") };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ids: small whole numbers")]
    let id = |value: f64| value as u64;
    let annotation = |(idx, row): (usize, Vec<f64>)| {
        let [image, category, is_crowd, area, x, y, w, h] = row[..] else { panic!("a row of {} numbers", row.len()) };
        json!({
            "id": idx + 1, "image_id": id(image), "category_id": id(category), "bbox": [x, y, w, h], "area": area,
            "iscrowd": id(is_crowd),
        })
    };
    let detection = |row: Vec<f64>| {
        let [image, category, score, x, y, w, h] = row[..] else { panic!("a row of {} numbers", row.len()) };
        json!({ "image_id": id(image), "category_id": id(category), "bbox": [x, y, w, h], "score": score })
    };
    let annotations: Vec<Value> = rows("annotations").into_iter().enumerate().map(annotation).collect();
    let detections: Vec<Value> = rows("detections").into_iter().map(detection).collect();
    json!({
        "dataset": { "images": fixture["images"], "annotations": annotations, "categories": fixture["categories"] },
        "detections": detections,
    })
}

fn ours(case: &Value) -> Value {
    let dataset = CocoDataset::parse(&case["dataset"].to_string()).expect("a data set");
    let mut evaluator = CocoEvaluator::new(&dataset);
    for found in case["detections"].as_array().expect("a list") {
        let bbox: [f64; 4] = serde_json::from_value(found["bbox"].clone()).expect("four numbers");
        let category = u32::try_from(found["category_id"].as_u64().expect("an id")).expect("a small id");
        let image = found["image_id"].as_u64().expect("an id");
        evaluator.add(image, &[(category, found["score"].as_f64().expect("a score"), bbox)]).expect("a known picture");
    }
    serde_json::to_value(evaluator.summarize()).expect("a report")
}

fn compare(name: &str, what: &str, got: &Value, want: &Value) -> usize {
    match (got.as_f64(), want.as_f64()) {
        (None, None) => 0,
        (Some(got), Some(want)) if (got - want).abs() <= 1e-6 => 1,
        _ => panic!("{name}: {what} is {got}, pycocotools says {want}"),
    }
}

#[test]
fn metrics_agree_with_pycocotools() {
    let Some(python) = python("COCO metrics against pycocotools") else { return };
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    // Three data sets of each kind.
    let specs: Vec<Spec> = CASES.into_iter().flat_map(|spec| [spec; 3]).collect();
    let mut cases: Vec<(&str, Value)> = specs.iter().map(|spec| (spec.name, make(spec, &mut random))).collect();
    cases.push(("real boxes", real_boxes()));
    let input: Vec<&Value> = cases.iter().map(|(_, case)| case).collect();
    let answers = run_script(&python, "coco.py", &[], &json!(input).to_string());
    let answers: Vec<Value> = serde_json::from_str(&answers).expect("a list of answers");
    assert_eq!(answers.len(), cases.len());
    let mut n_values = 0;
    for ((name, case), want) in cases.iter().zip(&answers) {
        let got = ours(case);
        for key in ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"] {
            n_values += compare(name, key, &got[key], &want[key]);
        }
        for (class, want) in want["per_class"].as_object().expect("a map") {
            for key in ["ap", "ap50"] {
                n_values += compare(name, &format!("{class} {key}"), &got["per_class"][class][key], &want[key]);
            }
        }
    }
    eprintln!("{n_values} metrics of {} data sets agree with pycocotools to 1e-6", cases.len());
    assert!(n_values > 200, "only {n_values} values to compare");
    let real = answers.last().expect("the real boxes are last");
    let is_telling = |key: &str| real[key].as_f64().is_some_and(|value| 0.05 < value && value < 0.95);
    assert!(["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"].into_iter().all(is_telling), "{real}");
}
