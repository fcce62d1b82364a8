//! The commands through the binary: results, and what they say when something is wrong.

use crate::tiny;
use fovea::images;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `fovea` in `folder`.
fn fovea(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fovea")).args(arguments).current_dir(folder).output().expect("fovea runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a run that must work printed on stdout.
fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = fovea(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {} {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// What a run that must fail with `code` said; every part of `says` must be in it.
fn fails(folder: &Path, arguments: &[&str], code: i32, says: &[&str]) {
    let output = fovea(folder, arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{arguments:?}: {message}");
    for part in says {
        assert!(message.contains(part), "{arguments:?} does not say {part:?}: {message}");
    }
}

/// A folder with the model `tiny`, a data set `data` of 5 pictures and two pictures `a.png`, `b.jpg`.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny::write_model(&folder.path().join("tiny"));
    tiny::write_data(&folder.path().join("data"), 5);
    for (name, seed) in [("a.png", 1), ("b.jpg", 2)] {
        images::save(&folder.path().join(name), &tiny::picture(60, 45, seed)).expect("a picture");
    }
    folder
}

/// Commands that write a result, without `--json`.
const REPORTERS: [&[&str]; 4] = [
    &["detect", "--model", "tiny", "a.png"],
    &["eval", "--model", "tiny", "--data", "data"],
    &["inspect", "tiny"],
    &["bench", "--model-only", "tiny", "--seconds", "0.01"],
];

#[test]
fn detect_writes_one_line_a_picture_and_the_same_digest_every_time() {
    let folder = workshop();
    let folder = folder.path();
    let lines = ok(folder, &["detect", "--model", "tiny", "b.jpg", "a.png", "--json", "-"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    for (line, name) in lines.iter().zip(["b.jpg", "a.png"]) {
        assert_eq!(line["file"], name, "in the order given");
        assert_eq!((&line["v"], &line["width"], &line["height"]), (&1.into(), &60.into(), &45.into()));
        let detections = line["detections"].as_array().expect("a list");
        assert!(!detections.is_empty(), "{line}");
        for detection in detections {
            let bbox: [f64; 4] = serde_json::from_value(detection["box"].clone()).expect("four numbers");
            assert!(0.0 <= bbox[0] && bbox[0] < bbox[2] && bbox[2] <= 60.0, "{detection}");
            assert!(0.0 <= bbox[1] && bbox[1] < bbox[3] && bbox[3] <= 45.0, "{detection}");
            let class = usize::try_from(detection["class_id"].as_u64().expect("a class")).expect("small");
            assert_eq!(detection["class"], ["person", "car"][class]);
            assert!(detection["score"].as_f64().is_some_and(|score| score > 0.05) && detection["track"].is_null());
        }
        let scores: Vec<f64> = detections.iter().filter_map(|detection| detection["score"].as_f64()).collect();
        assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "best first: {scores:?}");
    }
    let digest = |arguments: &[&str]| {
        let printed = ok(folder, &[&["detect", "--model", "tiny", "--digest", "--json", "x.jsonl"], arguments].concat());
        printed
            .lines()
            .filter(|line| line.starts_with("heads ") || line.starts_with("detections "))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let first = digest(&["a.png", "b.jpg", "--threads", "1"]);
    assert!(first.len() == 2 && first[0].len() == 70 && first[1].len() == 75, "{first:?}");
    assert_eq!(first, digest(&["a.png", "b.jpg", "--threads", "3"]), "threads change nothing");
    assert_ne!(first, digest(&["b.jpg", "a.png", "--threads", "1"]), "the order of pictures does");
    let strict = ok(folder, &["detect", "--model", "tiny", "a.png", "--json", "-", "--score-threshold", "0.999"]);
    let strict: Value = serde_json::from_str(strict.trim()).expect("JSON");
    assert_eq!(strict["detections"], Value::Array(vec![]), "a threshold that nothing passes");
    let classes = |options: &[&str]| {
        let line =
            ok(folder, &[&["detect", "--model", "tiny", "a.png", "--json", "-", "--score-threshold", "0"], options].concat());
        let line: Value = serde_json::from_str(line.trim()).expect("JSON");
        let detections = line["detections"].as_array().expect("a list").clone();
        detections.iter().map(|detection| detection["class"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let all = classes(&[]);
    assert!(all.iter().any(|class| class == "person") && all.iter().any(|class| class == "car"), "{all:?}");
    let cars = classes(&["--classes", "car"]);
    assert!(!cars.is_empty() && cars.iter().all(|class| class == "car"), "{cars:?}");
    assert_eq!(classes(&["--class-threshold", "person=1"]), cars, "no person scores above 1");
    assert_eq!(classes(&["--max-detections", "1"]), all[..1]);
    assert!(classes(&["--class-agnostic-nms", "--nms-iou-threshold", "0"]).len() < all.len(), "others are suppressed too");
    assert_eq!(classes(&["--min-box-size", "4096"]), [""; 0]);
}

/// A picture cut out and turned by hand looks the same to the network; its boxes are those of the whole picture elsewhere.
#[test]
fn a_region_and_a_turn_are_undone() {
    const N: usize = tiny::SIDE;
    let folder = workshop();
    let folder = folder.path();
    let whole = images::open(&folder.join("a.png")).expect("a picture");
    let (left, top) = (14, 6);
    let pixel = |x: usize, y: usize| whole.data[3 * (y * whole.width + x)..][..3].to_vec();
    let detect = |arguments: &[&str]| {
        let printed = ok(folder, &[&["detect", "--model", "tiny", "--digest", "--json", "x.jsonl"], arguments].concat());
        let heads = printed.lines().find(|line| line.starts_with("heads ")).expect("a digest").to_owned();
        let line = std::fs::read_to_string(folder.join("x.jsonl")).expect("a file");
        let line: Value = serde_json::from_str(line.trim()).expect("JSON");
        let of = |detection: &Value| -> (Value, [f64; 4]) {
            (detection["score"].clone(), serde_json::from_value(detection["box"].clone()).expect("four numbers"))
        };
        (heads, line["width"].clone(), line["detections"].as_array().expect("a list").iter().map(of).collect::<Vec<_>>())
    };
    for n_quarters in 0..4 {
        // Where a place of the turned picture was: a quarter back, again and again.
        let back = |x: f64, y: f64| (0..n_quarters).fold((x, y), |(x, y), _| (y, N as f64 - x));
        let pixel_back = |x, y| (0..n_quarters).fold((x, y), |(x, y), _| (y, N - 1 - x));
        let turned = (0..N).flat_map(|y| (0..N).map(move |x| pixel_back(x, y)));
        let data = turned.flat_map(|(x, y)| pixel(left + x, top + y)).collect();
        let cut = images::RgbPicture { width: N, height: N, data };
        images::save(&folder.join("cut.png"), &cut).expect("a picture");
        let degrees = (90 * n_quarters).to_string();
        let (heads, width, found) = detect(&["a.png", "--roi", "14,6,32,32", "--rotate", &degrees]);
        let (heads_cut, _, found_cut) = detect(&["cut.png"]);
        assert_eq!(heads, heads_cut, "{degrees} degrees");
        assert!(width == 60 && !found.is_empty() && found.len() == found_cut.len());
        for ((score, got), (score_cut, bbox)) in found.iter().zip(&found_cut) {
            let ((x1, y1), (x2, y2)) = (back(bbox[0], bbox[1]), back(bbox[2], bbox[3]));
            let want = [x1.min(x2) + 14.0, y1.min(y2) + 6.0, x1.max(x2) + 14.0, y1.max(y2) + 6.0];
            assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-4), "{degrees}: {got:?}, expected {want:?}");
            assert_eq!(score, score_cut);
        }
    }
    assert_eq!(detect(&["a.png", "--roi", "0,0,1.0,1"]), detect(&["a.png"]), "all of it");
    assert_eq!(detect(&["a.png", "--roi", "0.5,0,0.5,1"]), detect(&["a.png", "--roi", "30,0,30,45"]));
}

#[test]
fn detect_draws_into_a_folder() {
    let folder = workshop();
    let folder = folder.path();
    let arguments = ["detect", "--model", "tiny", "a.png", "b.jpg", "--out", "new/annotated"];
    if cfg!(not(feature = "opencv")) {
        return fails(folder, &arguments, 2, &["--out", "feature opencv"]);
    }
    ok(folder, &arguments);
    for name in ["a.png", "b.jpg"] {
        let plain = images::open(&folder.join(name)).expect("the picture");
        let drawn = images::open(&folder.join("new/annotated").join(name)).expect("an annotated picture");
        assert_eq!((drawn.width, drawn.height), (plain.width, plain.height));
        let n_changed = plain.data.iter().zip(&drawn.data).filter(|(a, b)| a.abs_diff(**b) > 60).count();
        assert!(n_changed > 100, "{name}: only {n_changed} values changed");
    }
    std::fs::write(folder.join("file"), "in the way").expect("a file");
    fails(folder, &["detect", "--model", "tiny", "a.png", "--out", "file/x"], 2, &["file/x", "choose a folder"]);
    fails(folder, &["detect", "--model", "tiny", "a.png", "--out", "."], 2, &["would overwrite a.png"]);
}

#[test]
fn eval_reports_what_cli_md_states_for_any_number_of_threads() {
    let folder = workshop();
    let folder = folder.path();
    let reports: Vec<Value> = ["1", "2", "7"]
        .iter()
        .map(|threads| ok(folder, &["eval", "--model", "tiny", "--data", "data", "--json", "-", "--threads", threads]))
        .map(|text| serde_json::from_str(&text).expect("JSON"))
        .collect();
    let report = &reports[0];
    for key in ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"] {
        assert!(report.get(key).is_some(), "no {key} in {report}");
    }
    assert_eq!(report["images"], 5);
    assert_eq!(report["per_class"]["person"]["boxes"], 5);
    let counts = &report["at_display"]["person"];
    assert_eq!(
        counts["found"].as_u64().zip(counts["missed"].as_u64()).map(|(found, missed)| found + missed),
        Some(5),
        "{counts}"
    );
    let strict = ["eval", "--model", "tiny", "--data", "data", "--json", "-", "--score-threshold", "1"];
    let strict: Value = serde_json::from_str(&ok(folder, &strict)).expect("JSON");
    let nothing = serde_json::json!({"score_threshold": 1.0, "found": 0, "missed": 5, "false_positives": 0});
    assert_eq!(strict["at_display"]["person"], nothing);
    assert!(report["per_class"].get("zebra").is_none(), "a class the model does not know is left out: {report}");
    assert!(reports.iter().all(|other| other == report), "{reports:?}");
    let all = ok(folder, &["eval", "--model", "tiny", "--data", "data", "--json", "-", "--roi", "0,0,1.0,1"]);
    assert_eq!(&serde_json::from_str::<Value>(&all).expect("JSON"), report, "a region that is all of it");
    let some = ok(folder, &["eval", "--model", "tiny", "--data", "data", "--json", "-", "--limit", "2"]);
    assert_eq!(serde_json::from_str::<Value>(&some).expect("JSON")["images"], 2);
    // A class that is not looked for is not one that is missed.
    tiny::write_data(&folder.join("both"), 3);
    let both = std::fs::read_to_string(folder.join("both/annotations.json")).expect("a file").replace("zebra", "car");
    std::fs::write(folder.join("both/annotations.json"), both).expect("a file");
    let one = fovea(folder, &["eval", "--model", "tiny", "--data", "both", "--json", "-", "--classes", "person"]);
    assert!(text(&one.stderr).contains("left out, not looked for: car"), "{}", text(&one.stderr));
    let one: Value = serde_json::from_slice(&one.stdout).expect("JSON");
    assert!(one["per_class"].get("car").is_none() && one["per_class"]["person"]["boxes"] == 3, "{one}");
    fails(folder, &["eval", "--model", "tiny", "--data", "data", "--classes", "car"], 2, &["none of the model's classes", "car"]);
    let table = ok(folder, &["eval", "--model", "tiny", "--data", "data", "--json", "eval.json"]);
    assert!(table.contains("all classes") && table.contains("person"), "{table}");
    assert_eq!(
        &serde_json::from_str::<Value>(&std::fs::read_to_string(folder.join("eval.json")).expect("a file")).expect("JSON"),
        report
    );
}

#[test]
fn inspect_counts_operators_and_tells_float_from_integer() {
    let folder = workshop();
    let folder = folder.path();
    for model in ["tiny", "tiny/model.onnx"] {
        let report: Value = serde_json::from_str(&ok(folder, &["inspect", model, "--json", "-"])).expect("JSON");
        assert_eq!(report["float_convs"], 0);
        assert_eq!(report["ops"][0]["op"], "QuantConv");
        assert_eq!(report["ops"][0]["dtype"], "u8");
        assert_eq!(report["ops"][0]["count"], 2);
        // 4 x 4 places, 12 channels, 3 x 8 x 8 taps.
        assert_eq!(report["ops"][0]["macs"], 4 * 4 * 12 * 3 * 8 * 8);
        // Pixels of three bytes in and what may be read behind them; two outputs whose channels are padded to 16.
        assert_eq!(report["activation_bytes"], (32_usize * 32 * 3 + 4).next_multiple_of(64) + 2 * 4 * 4 * 16);
        assert!(report["isa"].is_string());
    }
    let bytes = fovea::executor::onnx::encode(&tiny::network(false));
    std::fs::write(folder.join("float.onnx"), bytes).expect("a file");
    let report: Value = serde_json::from_str(&ok(folder, &["inspect", "float.onnx", "--json", "-"])).expect("JSON");
    assert_eq!(report["float_convs"], 2);
    let convs: Vec<&Value> = report["ops"].as_array().expect("a list").iter().filter(|count| count["op"] == "Conv").collect();
    let want = serde_json::json!({ "op": "Conv", "dtype": "f32", "count": 2, "macs": 4 * 4 * 12 * 3 * 8 * 8 });
    assert_eq!(convs, [&want], "one entry, with the same multiplications as in integers");
    assert!(ok(folder, &["inspect", "tiny"]).contains("convolutions in float: 0"));
}

#[test]
fn inspect_shows_the_layers_as_text_and_as_a_graph() {
    let folder = workshop();
    let folder = folder.path();
    let report: Value = serde_json::from_str(&ok(folder, &["inspect", "tiny", "--layers", "--json", "-"])).expect("JSON");
    let layers = report["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 2);
    for (layer, (node, output, channels)) in layers.iter().zip([("node_cls_f", "cls", 4), ("node_box_f", "box", 8)]) {
        assert_eq!((&layer["name"], &layer["op"]), (&node.into(), &"QuantConv".into()));
        assert_eq!(layer["output"], serde_json::json!([1, channels, 4, 4]));
        assert_eq!(layer["macs"], 4 * 4 * channels * 3 * 8 * 8);
        assert_eq!(layer["inputs"], serde_json::json!([null]), "it reads the network's input");
        assert_eq!(layer["outputs"], serde_json::json!([output]));
    }
    let table = ok(folder, &["inspect", "tiny", "--layers"]);
    let line = table.lines().find(|line| line.contains("node_box_f")).expect("a line for each layer");
    for part in ["1", "QuantConv", "8x4x4", "0.02", "input", "=> box"] {
        assert!(line.contains(part), "{line:?} does not say {part:?}");
    }
    let dot = ok(folder, &["inspect", "tiny", "--dot", "-"]);
    assert!(dot.starts_with("digraph \"tiny\" {\n") && dot.ends_with("}\n"), "{dot}");
    for part in ["input -> l0;", "input -> l1;", "l0 -> o0;", "l1 -> o1;", "node_cls_f\\nQuantConv", "label=\"box\""] {
        assert!(dot.contains(part), "{dot} has no {part:?}");
    }
    ok(folder, &["inspect", "tiny", "--dot", "tiny.dot"]);
    assert_eq!(std::fs::read_to_string(folder.join("tiny.dot")).expect("a file"), dot);
    let bytes = fovea::executor::onnx::encode(&tiny::network(false));
    std::fs::write(folder.join("float.onnx"), bytes).expect("a file");
    fails(folder, &["inspect", "float.onnx", "--layers"], 2, &["no layers in integers", "not quantised"]);
    fails(folder, &["inspect", "tiny", "--dot", "-", "--json", "-"], 2, &["--dot -", "stdout"]);
}

#[test]
fn a_forced_instruction_set_is_in_use_or_refused() {
    let folder = workshop();
    let run = |isa: &str| {
        let arguments = ["inspect", "tiny", "--json", "-"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_fovea"));
        command.args(arguments).current_dir(folder.path()).env("FOVEA_ISA", isa).output().expect("fovea runs")
    };
    let scalar = run("scalar");
    assert_eq!(serde_json::from_slice::<Value>(&scalar.stdout).expect("JSON")["isa"], "scalar");
    for isa in ["Scalar", "avx9000", " "] {
        let output = run(isa);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{isa}: {message}");
        assert!(message.contains(&format!("FOVEA_ISA={isa}")) && message.contains("scalar"), "{message}");
    }
}

#[test]
fn a_network_alone_is_measured() {
    let folder = workshop();
    let folder = folder.path();
    let bench = |rest: &[&str]| ok(folder, &[&["bench", "--model-only"], rest].concat());
    for arguments in [vec!["tiny"], vec!["tiny/model.onnx", "--native-io"], vec!["tiny", "--threads", "2"]] {
        let text = bench(&[&arguments[..], &["--seconds", "0.05", "--json", "-"]].concat());
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let wall = |key: &str| report["wall_ms"][key].as_f64().expect("a time");
        assert!(
            0.0 < wall("p50") && wall("p50") <= wall("p90") && wall("p90") <= wall("p99") && wall("p99") <= wall("max"),
            "{report}"
        );
        assert!(report["cpu_ms_min"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
        assert_eq!(report["macs"], 4 * 4 * 12 * 3 * 8 * 8);
        assert_eq!(report["threads"], if arguments.contains(&"2") { Value::from(2) } else { report["threads"].clone() });
        assert_eq!(report["ops"][0]["op"], "QuantConv");
    }
    let mut worker = Command::new(env!("CARGO_BIN_EXE_fovea"))
        .args(["bench", "--model-only", "tiny", "--worker", "--threads", "1"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("fovea runs");
    std::io::Write::write_all(&mut worker.stdin.take().expect("piped"), b"0.01\n0.02\n").expect("it listens");
    let output = worker.wait_with_output().expect("it ends");
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0], serde_json::json!({ "ready": 1 }));
    assert_eq!(lines.len(), 3);
    for line in &lines[1..] {
        assert!(line["wall"].as_f64() > Some(0.0) && line["cpu"].as_f64() > Some(0.0) && line["n"].as_u64() > Some(0), "{line}");
    }
    fails(folder, &["bench", "--model-only", "none.onnx"], 2, &["none.onnx"]);
    fails(folder, &["bench", "--native-io", "--source", "x"], 2, &["--model-only"]);
}

#[test]
fn a_float_network_runs_when_asked_and_finds_nearly_the_same() {
    let folder = workshop();
    let folder = folder.path();
    tiny::write_model(&folder.join("float"));
    std::fs::write(folder.join("float/model.onnx"), fovea::executor::onnx::encode(&tiny::network(false))).expect("a file");
    fails(folder, &["detect", "--model", "float", "a.png"], 2, &["not quantised", "--allow-float", "quantize"]);
    let detections = |model: &str| {
        let line = ok(folder, &["detect", "--model", model, "a.png", "--json", "-", "--allow-float"]);
        serde_json::from_str::<Value>(line.trim()).expect("JSON")["detections"].as_array().expect("a list").clone()
    };
    let (float, int) = (detections("float"), detections("tiny"));
    assert_eq!(float[0]["class"], int[0]["class"]);
    let score = |detection: &Value| detection["score"].as_f64().expect("a score");
    assert!((score(&float[0]) - score(&int[0])).abs() < 0.03, "{} {}", float[0], int[0]);
}

#[test]
fn every_command_shows_an_example() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in ["detect", "eval", "inspect"] {
        let help = ok(folder.path(), &[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("fovea {command} ")), "{help}");
    }
}

#[test]
fn wrong_requests_are_named() {
    let folder = workshop();
    let folder = folder.path();
    std::fs::write(folder.join("text.png"), "not a picture").expect("a file");
    std::fs::create_dir(folder.join("empty")).expect("a folder");
    std::fs::create_dir_all(folder.join("broken-data/images")).expect("a folder");
    std::fs::write(folder.join("broken-data/annotations.json"), "{\"images\": [").expect("a file");
    tiny::write_data(&folder.join("lost"), 2);
    std::fs::remove_file(folder.join("lost/images/2.png")).expect("it was there");
    tiny::write_data(&folder.join("animals"), 1);
    let animals = std::fs::read_to_string(folder.join("animals/annotations.json")).expect("a file").replace("person", "cow");
    std::fs::write(folder.join("animals/annotations.json"), animals).expect("a file");
    let detect = |rest: &[&'static str]| [&["detect", "--model", "tiny"], rest].concat();
    std::fs::hard_link(folder.join("a.png"), folder.join("same.png")).expect("a name");
    tiny::write_data(&folder.join("other-size"), 2);
    images::save(&folder.join("other-size/images/2.png"), &tiny::picture(84, 60, 2)).expect("a picture");
    let cases: [(Vec<&str>, i32, &[&str]); 31] = [
        (vec!["eval", "--model", "tiny", "--data", "other-size"], 1, &["2.png has 84x60 pixels", "labels are for 42x30"]),
        (vec!["eval", "--model", "tiny", "--data", "data", "--limit", "0"], 2, &["--limit"]),
        (detect(&["a.png", "--roi", "0,0,1,1"]), 2, &["--roi", "a single pixel", "0,0,1.0,1.0"]),
        (detect(&["a.png", "--json", "rtsp://me:canary@host/1"]), 2, &["--json", "a URL is neither"]),
        (detect(&["a.png", "--out", "drawn", "--json", "drawn/a.png"]), 2, &["drawn/a.png would be overwritten"]),
        (detect(&["a.png", "--json", "same.png"]), 2, &["same.png would be overwritten"]),
        (detect(&["a.png", "--roi", "0,1,60,45"]), 2, &["a.png", "60x45 at 0,1", "picture of 60x45", "name a region inside"]),
        (detect(&["a.png", "--roi", "1,2,3"]), 2, &["--roi", "'1,2,3'", "x,y,width,height"]),
        (detect(&["a.png", "--roi", "0.5,0,0.6,1"]), 2, &["--roi", "'0.5,0,0.6,1'", "0 to 1"]),
        (detect(&["a.png", "--rotate", "45"]), 2, &["--rotate", "'45'", "0, 90, 180 or 270"]),
        (vec!["eval", "--model", "tiny", "--data", "data", "--roi", "0,0,9999,1"], 2, &["1.png", "9999x1 at 0,0"]),
        (detect(&["none.png"]), 2, &["none.png"]),
        (detect(&["text.png"]), 1, &["text.png", "not a picture", "JPEG, PNG and WebP"]),
        (detect(&[]), 2, &["IMAGE"]),
        (detect(&["a.png", "--json", "/proc/no/x.json"]), 2, &["/proc/no/x.json", "choose a folder"]),
        (detect(&["a.png", "--score-threshold", "1.5"]), 2, &["--score-threshold", "1.5", "0 to 1"]),
        (detect(&["a.png", "--classes", "cow"]), 2, &["tiny/manifest.toml", "--classes", "`cow`", "person, car"]),
        (detect(&["a.png", "--class-threshold", "person"]), 2, &["--class-threshold", "person=0.5"]),
        (detect(&["a.png", "--classes", "car", "--class-threshold", "person=0.5"]), 2, &["0.5 for `person`", "only car"]),
        (detect(&["a.png", "--soft-nms-sigma", "0.5"]), 2, &["--soft-nms-sigma", "--nms soft-gaussian"]),
        (detect(&["a.png", "--nms", "hard"]), 2, &["--nms", "soft-linear"]),
        (vec!["detect", "--model", "none", "a.png"], 2, &["none/manifest.toml", "a model is a folder"]),
        (vec!["detect", "--model", "empty", "a.png"], 2, &["empty/manifest.toml"]),
        (vec!["eval", "--model", "tiny", "--data", "none"], 2, &["none/annotations.json", "COCO"]),
        (vec!["eval", "--model", "tiny", "--data", "broken-data"], 2, &["broken-data/annotations.json", "line 1"]),
        (vec!["eval", "--model", "tiny", "--data", "lost"], 2, &["lost/images/2.png"]),
        (vec!["eval", "--model", "tiny", "--data", "animals"], 2, &["none of the model's classes", "cow", "person"]),
        (vec!["eval", "--model", "tiny", "--data", "data", "--json", "/proc/no/x.json"], 2, &["/proc/no/x.json"]),
        (vec!["inspect", "none.onnx"], 2, &["none.onnx", "model folder"]),
        (vec!["inspect", "text.png"], 2, &["text.png", "not a readable ONNX model"]),
        (vec!["inspect", "tiny", "--json", "/proc/none/x"], 2, &["/proc/none/x"]),
    ];
    for (arguments, code, says) in cases {
        fails(folder, &arguments, code, says);
    }
    assert!(!folder.join("no").exists(), "nothing is made on the way");
}

#[test]
fn one_bad_picture_does_not_cost_the_others() {
    let folder = workshop();
    let folder = folder.path();
    let bytes = std::fs::read(folder.join("a.png")).expect("a picture");
    std::fs::write(folder.join("cut.png"), &bytes[..bytes.len() / 2]).expect("a file");
    // Its decoder would make the lower half of it grey.
    let bytes = std::fs::read(folder.join("b.jpg")).expect("a picture");
    std::fs::write(folder.join("cut.jpg"), &bytes[..bytes.len() * 2 / 3]).expect("a file");
    let arguments = ["detect", "--model", "tiny", "a.png", "cut.png", "b.jpg", "cut.jpg", "--json", "out.jsonl"];
    fails(folder, &arguments, 1, &["cut.png", "cut.jpg", "cut off", "2 of 4 pictures"]);
    let lines = std::fs::read_to_string(folder.join("out.jsonl")).expect("a file");
    let blanks = ok(folder, &["detect", "--model", "tiny", "a.png", "--classes", "person, car", "--json", "-"]);
    assert_eq!(lines.lines().next(), blanks.lines().next(), "blanks behind commas");
    let files: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["file"].clone()).collect();
    assert_eq!(files, ["a.png", "b.jpg"]);
}

#[test]
fn a_result_file_survives_a_failed_run() {
    let folder = workshop();
    let folder = folder.path();
    std::fs::write(folder.join("old.json"), "precious").expect("a file");
    fails(folder, &["eval", "--model", "none", "--data", "data", "--json", "old.json"], 2, &["none"]);
    assert_eq!(std::fs::read_to_string(folder.join("old.json")).expect("a file"), "precious");
    fails(folder, &["eval", "--model", "none", "--data", "data", "--json", "new.json"], 2, &["none"]);
    assert!(!folder.join("new.json").exists(), "no empty file is left behind");
}

#[test]
fn a_full_disk_is_a_failure_not_a_wrong_request() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: a full disk (this system has no /dev/full)");
        return;
    }
    let folder = workshop();
    let folder = folder.path();
    for command in REPORTERS {
        fails(folder, &[command, &["--json", "/dev/full"]].concat(), 1, &["cannot write /dev/full", "No space left"]);
    }
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_costs_no_old_result() {
    use std::os::unix::fs::PermissionsExt;
    let folder = workshop();
    let folder = folder.path();
    let names = || {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    std::fs::write(folder.join("old.json"), "precious").expect("a file");
    std::fs::set_permissions(folder.join("old.json"), PermissionsExt::from_mode(0o640)).expect("rights");
    let before = names();
    for (command, result) in REPORTERS.into_iter().flat_map(|command| [(command, "old.json"), (command, "new.json")]) {
        // No file may grow: as on a full disk, writing fails; making and emptying files does not.
        let limited = r#"trap '' XFSZ; ulimit -f 0; exec "$0" "$@""#;
        let shell = ["-c", limited, env!("CARGO_BIN_EXE_fovea")];
        let arguments = [&shell[..], command, &["--json", result]].concat();
        let output = Command::new("sh").args(arguments).current_dir(folder).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(&format!("cannot write {result}")), "{command:?}: {}", text(&output.stderr));
        assert!(output.stdout.len() > 40, "{command:?}: the table is printed all the same");
        assert_eq!(std::fs::read_to_string(folder.join("old.json")).expect("a file"), "precious", "{command:?}");
        assert_eq!(names(), before, "{command:?}: nothing is left behind");
    }
    // Room for some of the lines.
    let limited = r#"trap '' XFSZ; ulimit -f 1; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_fovea"), "detect", "--model", "tiny", "--max-detections", "1"]);
    command.args(["--json", "old.json"]).args(["a.png"; 20]);
    let output = command.current_dir(folder).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        ["cannot write old.json", "the lines until now are in", ".old.json.partial"].iter().all(|part| message.contains(part))
    );
    let partial = std::fs::read_to_string(folder.join(".old.json.partial")).expect("a file");
    assert!(partial.lines().count() > 1 && partial.ends_with("}\n"), "{partial}");
    assert_eq!(std::fs::read_to_string(folder.join("old.json")).expect("a file"), "precious");
    ok(folder, &["inspect", "tiny", "--json", "old.json"]);
    let new = std::fs::read_to_string(folder.join("old.json")).expect("a file");
    assert!(serde_json::from_str::<Value>(&new).is_ok(), "nothing but the new result: {new}");
    let mode = std::fs::metadata(folder.join("old.json")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "rights stay");
    assert_eq!(names(), before);
}

#[test]
fn a_closed_pipe_costs_no_json() {
    let folder = workshop();
    let folder = folder.path();
    for (idx, command) in REPORTERS.into_iter().enumerate() {
        let result = format!("{idx}.json");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut fovea = Command::new(env!("CARGO_BIN_EXE_fovea"));
        let output = fovea.args(command).args(["--json", &result]).current_dir(folder).stdout(writer).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(text(&output.stderr).contains("cannot write to stdout"), "{command:?}: {}", text(&output.stderr));
        let json = std::fs::read_to_string(folder.join(&result)).expect("the JSON is there");
        assert!(serde_json::from_str::<Value>(&json).is_ok(), "{command:?}: {json}");
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut fovea = Command::new(env!("CARGO_BIN_EXE_fovea"));
    fovea.args(["detect", "--model", "tiny", "a.png", "b.jpg", "a.png", "--json", "all.json"]).current_dir(folder);
    assert_eq!(fovea.stdout(writer).stderr(Stdio::null()).status().expect("it runs").code(), Some(1));
    let json = std::fs::read_to_string(folder.join("all.json")).expect("the JSON is there");
    assert_eq!(json.lines().count(), 3, "of every picture");
}

#[test]
fn what_is_done_is_written_when_a_picture_cannot_be_saved() {
    if cfg!(not(feature = "opencv")) {
        eprintln!("skipped: pictures that cannot be saved (built without the feature opencv)");
        return;
    }
    let folder = workshop();
    let folder = folder.path();
    images::save(&folder.join("c.png"), &tiny::picture(50, 40, 3)).expect("a picture");
    std::fs::create_dir_all(folder.join("out/b.jpg")).expect("a folder in the way");
    let arguments = ["detect", "--model", "tiny", "a.png", "b.jpg", "c.png", "--digest"];
    let output = fovea(folder, &[&arguments[..], &["--out", "out", "--json", "out.jsonl"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("out/b.jpg"), "{}", text(&output.stderr));
    assert!(folder.join("out/a.png").is_file());
    // b.jpg was looked at, only not saved; c.png was not.
    let want = ok(folder, &["detect", "--model", "tiny", "a.png", "b.jpg", "--json", "-"]);
    assert_eq!(std::fs::read_to_string(folder.join("out.jsonl")).expect("the JSON is there"), want);
    let want = ok(folder, &["detect", "--model", "tiny", "a.png", "b.jpg", "--digest"]);
    assert_eq!(text(&output.stdout), want, "table and digests of what is done");
}

#[test]
fn what_is_done_is_written_when_it_is_stopped() {
    let folder = workshop();
    let folder = folder.path();
    // So many pictures that a signal comes in time; started from a script's `&`, it would be ignored.
    let n_all = 20_000;
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_fovea"), "detect", "--model", "tiny", "--threads", "1"]);
    command.args(["--json", "out.jsonl"]).args(std::iter::repeat_n("a.png", n_all)).current_dir(folder);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let catches_it = || {
        let status = std::fs::read_to_string(&status).expect("it still runs");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask").trim().to_owned();
        u64::from_str_radix(&mask, 16).expect("a mask") >> 1 & 1 == 1
    };
    while !catches_it() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("it runs").success());
    let output = child.wait_with_output().expect("it ends");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let lines = std::fs::read_to_string(folder.join("out.jsonl")).expect("a file");
    let n_done = lines.lines().count();
    assert!(n_done < n_all && message.contains(&format!("stopped after {n_done} of {n_all} pictures")), "{n_done}: {message}");
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn digests_stay_out_of_json_on_stdout() {
    let folder = workshop();
    let folder = folder.path();
    let arguments = ["detect", "--model", "tiny", "a.png", "b.jpg", "--digest"];
    let plain = ok(folder, &arguments);
    let output = fovea(folder, &[&arguments[..], &["--json", "-"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let n_objects =
        stdout.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok_and(|value| value.is_object())).count();
    assert_eq!((n_objects, stdout.lines().count()), (2, 2), "{stdout}");
    let digests: Vec<&str> = plain.lines().filter(|line| line.starts_with("heads ") || line.starts_with("detections ")).collect();
    assert_eq!(digests.len(), 2, "{plain}");
    for digest in digests {
        assert!(text(&output.stderr).contains(digest), "{}", text(&output.stderr));
    }
}

#[test]
fn contradictions_of_a_model_are_named() {
    let folder = workshop();
    let folder = folder.path();
    let edits: [(&str, &str, &[&str]); 16] = [
        ("width = 32", "width = 64", &["`images` of 3x32x64", "`images` of 3x32x32"]),
        ("name = \"images\"", "name = \"picture\"", &["`picture`", "`images`"]),
        ("cls = \"cls\"", "cls = \"box\"", &["output `box`", "4x4x4", "8x4x4"]),
        ("\"car\"]", "\"car\", \"bus\"]", &["output `cls` of 6x4x4", "`cls` 4x4x4"]),
        ("aspect_ratios = [1.0, 2.0]", "aspect_ratios = [1.0]", &["output `cls`", "2x4x4"]),
        ("stride = 8", "stride = 16", &["output `cls` of 4x2x2"]),
        ("file = \"model.onnx\"", "file = \"other.onnx\"", &["other.onnx"]),
        ("file = \"model.onnx\"", "file = \"../model.onnx\"", &["network.file", "../model.onnx", "folder"]),
        ("file = \"model.onnx\"", "file = \"model.onnx\"\nsha256 = \"00ff\"", &["model.onnx", "SHA-256", "00ff"]),
        ("schema = 1", "schema = 2", &["schema", "2", "expected 1"]),
        ("preprocess = 1", "preprocess = 9", &["input.preprocess", "9"]),
        ("base_sizes = [16.0]", "base_sizes = [16.0, 32.0]", &["anchors.base_sizes", "2 values", "expected 1"]),
        ("nms_iou_threshold = 0.5", "nms_iou_threshold = 5", &["postprocess.nms_iou_threshold", "5", "0 to 1"]),
        ("nms_iou_threshold = 0.5", "nms_threshold = 0.5", &["nms_threshold", "nms_iou_threshold"]),
        ("max_detections = 100", "max_detections = \"all\"", &["max_detections", "all"]),
        ("height = 32", "height = 32\nstd = [255, 255, 0]", &["input.std"]),
    ];
    for (from, to, says) in edits {
        tiny::write_model(&folder.join("edited"));
        assert!(tiny::MANIFEST.contains(from), "{from}");
        std::fs::write(folder.join("edited/manifest.toml"), tiny::MANIFEST.replacen(from, to, 1)).expect("a file");
        fails(folder, &["detect", "--model", "edited", "a.png"], 2, says);
        fails(folder, &["inspect", "edited"], 2, says);
    }
    let mut no_output = tiny::network(true);
    no_output.graph.as_mut().expect("a graph").output.pop();
    let cut = tiny::network_bytes();
    for (bytes, says) in [
        (fovea::executor::onnx::encode(&no_output), "output `box`"),
        (cut[..cut.len() - 100].to_vec(), "not a readable ONNX model"),
        (Vec::new(), "no graph"),
        (b"<html>".repeat(100), "not a readable ONNX model"),
    ] {
        tiny::write_model(&folder.join("damaged"));
        std::fs::write(folder.join("damaged/model.onnx"), bytes).expect("a file");
        fails(folder, &["detect", "--model", "damaged", "a.png"], 2, &["damaged/model.onnx", says]);
    }
}

/// The second picture is a pipe that nobody writes into: the first one's results are out while it waits.
#[test]
fn results_come_picture_by_picture_and_a_kill_leaves_them() {
    use std::io::{BufRead, BufReader};
    let folder = workshop();
    let folder = folder.path();
    assert!(Command::new("mkfifo").arg(folder.join("pipe.png")).status().expect("it runs").success());
    std::fs::write(folder.join("out.jsonl"), "of before\n").expect("a file");
    for json in ["-", "out.jsonl", "new.jsonl"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fovea"));
        command.args(["detect", "--model", "tiny", "a.png", "pipe.png", "--json", json]).current_dir(folder);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut first).expect("text");
        let want = ok(folder, &["detect", "--model", "tiny", "a.png", "--json", "-"]);
        if json == "-" {
            assert_eq!(first, want);
        } else {
            assert!(first.starts_with("a.png (60x45): "), "{first}");
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        if json != "-" {
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
            if json == "new.jsonl" {
                assert!(!folder.join(json).exists(), "nothing that looks like a result");
                assert_eq!(read(".new.jsonl.partial"), want);
            } else {
                assert_eq!((read("out.jsonl").as_str(), read(".out.jsonl.partial")), ("of before\n", want));
            }
        }
    }
}

#[test]
fn negative_numbers_are_values() {
    let folder = workshop();
    fails(folder.path(), &["detect", "--model", "tiny", "a.png", "--threads", "-1"], 2, &["invalid value '-1'", "0 to "]);
    fails(folder.path(), &["bench", "--model-only", "tiny", "--seconds", "-1"], 2, &["invalid value '-1'", "above 0"]);
}
