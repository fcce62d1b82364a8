//! Training through the program: what a user types, on a made-up data set of coloured rectangles.
#![cfg(feature = "train")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

use fovea::executor::{LoadOptions, Network};
use fovea::images::{RgbPicture, save};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SIZE: (usize, usize) = (96, 64);

/// 24 pictures, each with one red (class `red`) or green (class `green`) rectangle on grey noise.
fn data_set(dir: &Path) -> PathBuf {
    let images = dir.join("images");
    std::fs::create_dir_all(&images).unwrap();
    let (mut image_list, mut annotations) = (Vec::new(), Vec::new());
    let mut state = 12_345_u32;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for id in 0..24 {
        let mut data: Vec<u8> = (0..SIZE.0 * SIZE.1 * 3).map(|_| 100 + random(40) as u8).collect();
        let (w, h) = (16 + random(32), 16 + random(24));
        let (x, y) = (random(SIZE.0 - w), random(SIZE.1 - h));
        let class = id % 2;
        for row in y..y + h {
            for column in x..x + w {
                data[(row * SIZE.0 + column) * 3..][..3].copy_from_slice(if class == 0 {
                    &[220, 30, 30]
                } else {
                    &[30, 200, 40]
                });
            }
        }
        save(&images.join(format!("{id}.png")), &RgbPicture { width: SIZE.0, height: SIZE.1, data }).unwrap();
        image_list.push(serde_json::json!({"id": id, "file_name": format!("{id}.png"), "width": SIZE.0, "height": SIZE.1}));
        annotations.push(serde_json::json!({"id": id, "image_id": id, "category_id": class + 1, "bbox": [x, y, w, h]}));
    }
    let categories = serde_json::json!([{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]);
    let coco = serde_json::json!({"images": image_list, "annotations": annotations, "categories": categories});
    std::fs::write(dir.join("annotations.json"), coco.to_string()).unwrap();
    dir.to_owned()
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fovea-train"))
}

/// `fit` of a network small enough for a test.
fn small_fit(data: &Path, out: &Path) -> Command {
    let mut command = program();
    command.args([
        "fit",
        "--backbone",
        "edgelite",
        "--width-channels",
        "16",
        "--head-depth",
        "1",
        "--width",
        "96",
        "--height",
        "64",
    ]);
    command.args(["--batch", "4", "--threads", "1", "--device", "cpu"]).arg("--data").arg(data).arg("--out").arg(out);
    command
}

fn fit(data: &Path, out: &Path, extra: &[&str]) -> Output {
    small_fit(data, out).args(["--checkpoint-every", "5", "--lr", "0.004"]).args(extra).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    let evaluated = ["--iterations", "12", "--eval-every", "4", "--val", data.to_str().unwrap()];
    assert_done(&fit(&data, &whole, &evaluated));
    assert_done(&fit(&data, &halves, &[&evaluated[..], &["--until", "7"]].concat()));
    assert_done(&resume(&halves).output().unwrap());
    assert_same(&whole, &halves, &["checkpoint.safetensors", "weights.safetensors", "best.safetensors", "eval.csv"]);
    // A run goes on in the arithmetic that it began in.
    let [whole, halves] = ["whole-bf16", "halves-bf16"].map(|name| dir.path().join(name));
    let rounded = ["--iterations", "4", "--precision", "bf16"];
    assert_done(&fit(&data, &whole, &rounded));
    assert_done(&fit(&data, &halves, &[&rounded[..], &["--until", "2"]].concat()));
    assert_done(&resume(&halves).output().unwrap());
    assert_same(&whole, &halves, &["checkpoint.safetensors", "weights.safetensors"]);
    let changed = fit(&data, &dir.path().join("changed"), &[&rounded[..], &["--until", "2"]].concat());
    assert_done(&changed);
    let changed = resume(&dir.path().join("changed")).args(["--precision", "f32"]).output().unwrap();
    assert!(stderr(&changed).contains("this run began in bf16, and goes on in f32"), "{}", stderr(&changed));
    let halves = dir.path().join("halves");
    // Other labels are not taken for the same data.
    let annotations = data.join("annotations.json");
    let text = std::fs::read_to_string(&annotations).unwrap().replacen("\"bbox\":[", "\"bbox\":[1", 1);
    std::fs::write(&annotations, text).unwrap();
    let refused = resume(&halves).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--other-data"), "{}", stderr(&refused));
    assert_done(&resume(&halves).arg("--other-data").output().unwrap());
}

fn resume(run: &Path) -> Command {
    let mut command = program();
    command.args(["fit", "--resume", "--threads", "1", "--device", "cpu", "--out"]).arg(run);
    command
}

fn assert_same(a: &Path, b: &Path, files: &[&str]) {
    for file in files {
        let (a, b) = (std::fs::read(a.join(file)).unwrap(), std::fs::read(b.join(file)).unwrap());
        assert!(a == b, "{file} differs between a run in one piece and one in several");
    }
}

/// Killed while it writes a checkpoint at every step, then on a disk that is full: what is left is always good, and in
/// the end it is the run that nothing happened to.
#[test]
fn a_run_survives_kills_and_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let settings = ["--iterations", "24", "--checkpoint-every", "1"];
    assert_done(&small_fit(&data, &whole).args(settings).output().unwrap());
    let checkpoint = cut.join("checkpoint.safetensors");
    let mut state = 7_u32;
    for round in 0..5 {
        let written = || std::fs::metadata(&checkpoint).and_then(|data| data.modified()).ok();
        let before = written();
        let mut command = if before.is_some() { resume(&cut) } else { small_fit(&data, &cut) };
        if before.is_none() {
            command.args(settings);
        }
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        while written() == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(std::time::Duration::from_micros(u64::from(state >> 17)));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success() || round > 0, "it ended before it was killed");
    }
    let before = std::fs::read(&checkpoint).unwrap();
    // 128 to 256 KB a file: the curve fits, the checkpoint does not. Without the trap the kernel would kill the process.
    let resumed = resume(&cut);
    let mut full = Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$@\"", "sh"]).arg(resumed.get_program()).args(resumed.get_args());
    let full = full.output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", stderr(&full));
    assert!(stderr(&full).contains("cannot write") && stderr(&full).contains("checkpoint.safetensors"), "{}", stderr(&full));
    assert!(before == std::fs::read(&checkpoint).unwrap() && !cut.join("checkpoint.partial").exists());
    assert_done(&resume(&cut).output().unwrap());
    assert_same(&whole, &cut, &["checkpoint.safetensors", "weights.safetensors"]);
    let iterations = |run: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(run.join("curve.csv")).unwrap();
        text.lines().map(|line| line.split(',').next().unwrap().to_owned()).collect()
    };
    assert_eq!(iterations(&whole), iterations(&cut));
}

/// Means of a column of `curve.csv`, in its order.
fn column(run: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("curve.csv")).unwrap();
    let place = text.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(place).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_student_comes_nearer_to_its_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let [teacher, whole, halves] = ["teacher", "whole", "halves"].map(|name| dir.path().join(name));
    assert_done(&small_fit(&data, &teacher).args(["--iterations", "100", "--mosaic", "0", "--lr", "0.02"]).output().unwrap());
    // Another width: adapters between the pyramids.
    let student = |out: &Path, extra: &[&str]| {
        let mut command = program();
        command.args(["fit", "--backbone", "edgelite", "--width-channels", "8", "--head-depth", "1"]);
        command.args(["--width", "96", "--height", "64", "--batch", "4", "--threads", "1", "--device", "cpu"]);
        command.args(["--lr", "0.02", "--iterations", "40", "--mosaic", "0"]).arg("--data").arg(&data).arg("--out").arg(out);
        command.arg("--teacher").arg(&teacher).args(extra).output().unwrap()
    };
    assert_done(&student(&whole, &[]));
    for part in ["distill_logits", "distill_boxes", "distill_features"] {
        let losses = column(&whole, part);
        assert!(losses.len() == 2 && losses[0] > 0.0 && losses[1] < 0.95 * losses[0], "{part}: {losses:?}");
    }
    assert_done(&student(&halves, &["--until", "22"]));
    assert_done(&resume(&halves).output().unwrap());
    assert_same(&whole, &halves, &["checkpoint.safetensors", "weights.safetensors"]);
    // What serves distillation only is not in the result.
    let has_adapters = |file: &str| {
        let bytes = std::fs::read(whole.join(file)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().iter().any(|name| name.starts_with("distill."))
    };
    assert!(has_adapters("checkpoint.safetensors") && !has_adapters("weights.safetensors"));
    let strange =
        fit(&data, &dir.path().join("strange"), &["--iterations", "1", "--classes", "red", "--teacher", "/nonexistent"]);
    assert_eq!(strange.status.code(), Some(2), "{}", stderr(&strange));
}

#[test]
fn initial_weights_bring_their_network() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    assert_done(&fit(&data, &first, &["--iterations", "1", "--scales", "2", "--pyramid", "fpn-p5", "--pyramid-norm", "false"]));
    let mut command = program();
    command.args(["fit", "--batch", "4", "--threads", "1", "--device", "cpu"]);
    command.args(["--iterations", "1", "--data"]).arg(&data).arg("--out").arg(&second);
    let output = command.arg("--init").arg(first.join("weights.safetensors")).output().unwrap();
    assert_done(&output);
    let taken = "0 of the network are not in it and 0 have another shape";
    assert!(stderr(&output).contains(taken), "{}", stderr(&output));
    assert_same(&first, &second, &["model.toml"]);

    // A network that takes other pixels keeps them, unless a file beside its weights says so: then its first layer is turned to ours.
    let text = std::fs::read_to_string(first.join("model.toml")).unwrap();
    std::fs::write(first.join("model.toml"), text.replace("mean = [0.0, 0.0, 0.0]", "mean = [1.0, 2.0, 3.0]")).unwrap();
    let third = dir.path().join("third");
    let mut command = program();
    command.args(["fit", "--batch", "4", "--threads", "1", "--device", "cpu", "--ratios", "1", "--iterations", "1", "--data"]);
    command.arg(&data).arg("--out").arg(&third).arg("--init").arg(first.join("weights.safetensors"));
    assert_done(&command.output().unwrap());
    let square = std::fs::read_to_string(third.join("model.toml")).unwrap();
    assert!(square.contains("mean = [1.0, 2.0, 3.0]") && square.contains("aspect_ratios = [1.0]"), "{square}");
    assert!(square.contains("scales = [1.0, 1.4142135]"), "{square}");

    let input = serde_json::json!({"input": {"order": "RGB", "mean": [1, 2, 3], "scale": [0.01, 0.01, 0.01]}});
    std::fs::write(first.join("weights.json"), input.to_string()).unwrap();
    let fourth = dir.path().join("fourth");
    let mut command = program();
    command.args(["fit", "--batch", "4", "--threads", "1", "--device", "cpu", "--iterations", "1", "--data"]);
    command.arg(&data).arg("--out").arg(&fourth).arg("--init").arg(first.join("weights.safetensors"));
    assert_done(&command.output().unwrap());
    let turned = std::fs::read_to_string(fourth.join("model.toml")).unwrap();
    assert!(turned.contains("mean = [0.0, 0.0, 0.0]"), "{turned}");

    // Weights that are not a run of this program's are not written over.
    std::fs::remove_file(first.join("checkpoint.safetensors")).unwrap();
    let refused = fit(&data, &first, &["--iterations", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("would be replaced"), "{}", stderr(&refused));
}

/// The same command twice, as `torchrun` would start it.
fn two_processes(make: impl Fn() -> Command) -> [std::process::Child; 2] {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port() - 1;
    ["0", "1"].map(|rank| {
        let variables = [("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank), ("MASTER_ADDR", "127.0.0.1")];
        make().envs(variables).env("MASTER_PORT", port.to_string()).stderr(Stdio::piped()).spawn().unwrap()
    })
}

/// Without batch norm, whose statistics are those of each process's share.
#[test]
fn two_processes_are_one_with_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let [settings, one, two, lost] = ["settings", "one", "two", "lost"].map(|name| dir.path().join(name));
    // All of it within the warm-up: large steps would make much of small differences.
    let plain = ["--backbone-norm", "false", "--head-norm", "group", "--rule", "sgd", "--warmup", "250"];
    assert_done(&fit(&data, &settings, &[&["--iterations", "8", "--until", "0"][..], &plain].concat()));
    let text = std::fs::read_to_string(settings.join("fit.toml")).unwrap();
    assert!(text.contains("pyramid_norm = true"), "{text}");
    let config = dir.path().join("plain.toml");
    std::fs::write(&config, text.replace("pyramid_norm = true", "pyramid_norm = false")).unwrap();
    let start = |out: &Path| {
        let mut command = program();
        command.args(["fit", "--threads", "1", "--device", "cpu", "--config"]).arg(&config).arg("--out").arg(out);
        command
    };
    assert_done(&start(&one).output().unwrap());
    for child in two_processes(|| start(&two)) {
        assert_done(&child.wait_with_output().unwrap());
    }
    let read = |run: &Path| std::fs::read(run.join("weights.safetensors")).unwrap();
    let (a, b) = (read(&one), read(&two));
    let [a, b] = [&a, &b].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    let floats = |tensors: &safetensors::SafeTensors<'_>, name: &str| -> Vec<f32> {
        tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    for name in a.names() {
        let (a, b) = (floats(&a, name), floats(&b, name));
        let largest = a.iter().fold(1e-3_f32, |largest, value| largest.max(value.abs()));
        let apart = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest;
        assert!(apart <= 1e-4, "{name}: apart by {apart}");
    }
    let losses = |run: &Path| column(run, "cls_loss");
    assert!((losses(&one)[0] - losses(&two)[0]).abs() < 1e-4 * losses(&one)[0], "{:?} {:?}", losses(&one), losses(&two));

    // A process that is killed is named by the other.
    let [mut zero, mut other] = two_processes(|| {
        let mut command = small_fit(&data, &lost);
        command.args(["--iterations", "1000000", "--checkpoint-every", "5"]);
        command
    });
    while !lost.join("checkpoint.safetensors").exists() && zero.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    other.kill().unwrap();
    other.wait().unwrap();
    let zero = zero.wait_with_output().unwrap();
    assert_eq!(zero.status.code(), Some(1));
    assert!(stderr(&zero).contains("lost rank 1 of 2") && stderr(&zero).contains("--resume"), "{}", stderr(&zero));
}

/// Train, evaluate, export, quantise: the whole way, to a model that finds rectangles.
#[test]
fn from_pictures_to_an_integer_model() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let run = dir.path().join("run");
    assert_done(&fit(&data, &run, &["--iterations", "300", "--mosaic", "0"]));
    assert!(run.join("curve.png").exists() && column(&run, "memory_mb").iter().all(|&megabytes| megabytes > 1.0));
    let files: Vec<String> =
        std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let events = files.iter().find(|name| name.starts_with("events.out.tfevents.")).unwrap();
    let events = String::from_utf8_lossy(&std::fs::read(run.join(events)).unwrap()).into_owned();
    assert!(events.contains("loss/cls") && events.contains("speed/memory_mb"), "{} bytes of events", events.len());
    let origin: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(run.join("origin.json")).unwrap()).unwrap();
    assert!(
        ["version", "revision", "data_sha256"].iter().all(|key| origin[key].as_str().is_some_and(|text| !text.is_empty())),
        "{origin}"
    );
    let json = dir.path().join("eval.json");
    assert_done(
        &program()
            .args(["eval", "--device", "cpu", "--run"])
            .arg(&run)
            .arg("--data")
            .arg(&data)
            .arg("--json")
            .arg(&json)
            .output()
            .unwrap(),
    );
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let ap50 = report["ap50"].as_f64().unwrap();
    assert!(ap50 > 0.8, "AP50 {ap50} on the training pictures after 300 steps");

    let float = dir.path().join("float");
    let exported = program().arg("export").arg("--run").arg(&run).arg("--out").arg(&float).output().unwrap();
    assert_done(&exported);
    assert!(stderr(&exported).contains("largest difference between libtorch"), "{}", stderr(&exported));

    let int8 = dir.path().join("int8");
    let quantize = |run: &Path, out: &Path, extra: &[&str]| {
        let mut quantize = program();
        quantize.arg("quantize").arg("--run").arg(run).arg("--out").arg(out).args(extra);
        quantize.arg("--data").arg(&data).arg("--val").arg(&data).output().unwrap()
    };
    let refused = quantize(&run, &int8, &["--max-loss=-50"]);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("mean ") && stderr(&refused).contains("--accept-loss"), "{}", stderr(&refused));
    assert!(!int8.exists(), "a refused model was written");
    let accepted = [
        "--max-loss=-50",
        "--accept-loss",
        "--with-weights",
        "--calibration",
        "auto",
        "--equalize",
        "--correct-biases",
        "--sensitivity",
    ];
    let accepted = quantize(&run, &int8, &accepted);
    assert_done(&accepted);
    let printed = String::from_utf8_lossy(&accepted.stdout);
    assert!(printed.contains("| layer quantised alone | noise (dB) |") && printed.contains("\n| head."), "{printed}");
    assert!(stderr(&accepted).contains("accepted: int8 loses"), "{}", stderr(&accepted));

    let written = std::fs::read(run.join("weights.safetensors")).unwrap();
    for out in [&run, &float.join("../run")] {
        let refused = quantize(&run, out, &["--accept-loss"]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("which would be lost"), "{}", stderr(&refused));
    }
    assert!(std::fs::read(run.join("weights.safetensors")).unwrap() == written, "the run's weights are not what they were");
    let mut label = program();
    label.arg("pseudo-label").arg("--teacher").arg(&int8).arg("--images").arg(data.join("images"));
    let refused = label.arg("--out").arg(data.join("annotations.json")).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("was not made by this command"), "{}", stderr(&refused));

    labels_of_a_teacher(&int8, &data, &dir.path().join("labelled"));

    // The figures again, from the folder alone.
    let card = program().arg("card").arg("--robustness").arg("--data").arg(&data).arg(&int8).output().unwrap();
    assert_done(&card);
    let (table, figures) = (String::from_utf8(accepted.stdout).unwrap(), String::from_utf8(card.stdout).unwrap());
    let row = |text: &str| text.lines().find(|line| line.starts_with("| red |")).unwrap().split('|').nth(4).unwrap().to_owned();
    assert_eq!(row(&table), row(&figures), "AP of int8 in\n{table}\n{figures}");
    assert!(figures.contains("| half |"), "{figures}");

    // Training with quantisation goes on from the run; its integers are what the executor computes.
    let qat = dir.path().join("qat");
    let mut fit = program();
    fit.arg("fit").arg("--qat").arg(&run).arg("--out").arg(&qat).args([
        "--iterations",
        "20",
        "--warmup",
        "50",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]);
    assert_done(&fit.arg("--val").arg(&data).output().unwrap());
    let from_qat = dir.path().join("from-qat");
    let quantized = quantize(&qat, &from_qat, &["--max-loss", "5", "--max-class-loss", "8"]);
    assert_done(&quantized);
    assert!(stderr(&quantized).contains("float is "), "{}", stderr(&quantized));
    let by_trainer: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(qat.join("eval.json")).unwrap()).unwrap();
    let red = format!(" {:.1} ", 100.0 * by_trainer["per_class"]["red"]["ap"].as_f64().unwrap());
    assert_eq!(row(&String::from_utf8(quantized.stdout).unwrap()), red, "the executor and the trainer find the same");
    for file in ["model.onnx", "manifest.toml", "labels.txt", "golden.json", "README.md"] {
        assert!(int8.join(file).exists(), "{file}");
    }
    let manifest = std::fs::read_to_string(int8.join("manifest.toml")).unwrap();
    let manifest = fovea::retinanet::Manifest::parse(&manifest).unwrap();
    assert_eq!(manifest.classes, ["red", "green"]);
    assert_eq!(manifest.postprocess.display_threshold.len(), 2);
    agrees_with_onnx_runtime(&dir.path().join("oracle"), &[float.join("model.onnx"), int8.join("model.onnx")]);
}

/// A model completes labels that leave a class out, and a network is trained on them; it labels pictures that have none.
fn labels_of_a_teacher(model: &Path, data: &Path, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let coco = |path: &Path| -> serde_json::Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let images = data.join("images");
    let label = |annotations: Option<&Path>, out: &Path| {
        let mut command = program();
        command
            .args(["pseudo-label", "--threads", "1", "--teacher"])
            .arg(model)
            .arg("--images")
            .arg(&images)
            .arg("--out")
            .arg(out);
        command.args(annotations.map(|path| ["--annotations".as_ref(), path.as_os_str()]).into_iter().flatten()).output().unwrap()
    };
    // Green rectangles are labelled, and no red one.
    let mut own = coco(&data.join("annotations.json"));
    let all: Vec<serde_json::Value> = own["annotations"].as_array().unwrap().clone();
    let is_green = |annotation: &serde_json::Value| annotation["category_id"] == 2;
    own["annotations"] = all.iter().filter(|annotation| is_green(annotation)).cloned().collect();
    own["categories"] = serde_json::json!([{"id": 2, "name": "green"}]);
    let partly = dir.join("partly");
    std::fs::create_dir_all(&partly).unwrap();
    std::os::unix::fs::symlink(&images, partly.join("images")).unwrap();
    std::fs::write(partly.join("annotations.json"), own.to_string()).unwrap();
    let scored = dir.join("scored.json");
    assert_done(&label(Some(&partly.join("annotations.json")), &scored));
    // Where none of the pictures is, nothing is written: a file without pictures would say that nothing is there.
    let nowhere = dir.join("nowhere");
    std::fs::create_dir_all(&nowhere).unwrap();
    let lost = dir.join("lost.json");
    let mut command = program();
    command.args(["pseudo-label", "--threads", "1", "--teacher"]).arg(model).arg("--images").arg(&nowhere);
    let refused = command.arg("--out").arg(&lost).arg("--annotations").arg(partly.join("annotations.json")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("pictures can be read") && !lost.exists(), "{}", stderr(&refused));
    let completed = coco(&scored);
    let teacher = &completed["info"]["teachers"][0];
    assert!(teacher["sha256"].as_str().is_some_and(|digest| digest.len() == 64), "{teacher}");
    let id_of = |name: &str| {
        let categories = completed["categories"].as_array().unwrap();
        categories.iter().find(|category| category["name"] == name).unwrap()["id"].clone()
    };
    let boxes = completed["annotations"].as_array().unwrap();
    assert!(boxes.iter().all(|found| found["category_id"] == id_of("red") && found["score"].as_f64().unwrap() >= 0.2));
    // The red ones that a person would have drawn.
    let is_found = |drawn: &serde_json::Value| {
        let near = |found: &serde_json::Value| (0..4).all(|i| (f(&found["bbox"][i]) - f(&drawn["bbox"][i])).abs() < 8.0);
        boxes.iter().any(|found| found["image_id"] == drawn["image_id"] && near(found))
    };
    let red: Vec<_> = all.iter().filter(|annotation| !is_green(annotation)).collect();
    let n_found = red.iter().filter(|drawn| is_found(drawn)).count();
    assert!(2 * n_found > red.len(), "{n_found} of {}", red.len());
    let trained = dir.join("trained");
    let with_scored = ["--iterations", "2", "--pseudo", scored.to_str().unwrap()];
    let without_red = fit(&partly, &trained, &with_scored);
    assert_done(&without_red);
    assert!(stderr(&without_red).contains("not used are its boxes of red"), "{}", stderr(&without_red));
    std::fs::remove_dir_all(&trained).unwrap();
    assert_done(&fit(&partly, &trained, &[&with_scored[..], &["--classes", "red,green"]].concat()));
    let spec = std::fs::read_to_string(trained.join("model.toml")).unwrap();
    assert!(spec.contains("\"green\"") && spec.contains("\"red\""), "{spec}");
    // Pictures that nobody labelled.
    let labels = dir.join("annotations.json");
    assert_done(&label(None, &labels));
    let labelled = coco(&labels);
    assert_eq!(labelled["images"].as_array().unwrap().len(), 24);
    assert!(labelled["annotations"].as_array().unwrap().len() >= boxes.len(), "{labelled}");
}

fn f(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap()
}

/// A file as other programs write it, read into a network that is trained on.
#[test]
fn a_backbone_from_elsewhere_is_where_training_begins() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/imports.json");
    let recorded: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let name = "shufflenet_v2_x0_5";
    let origin = recorded.as_array().unwrap().iter().find(|origin| origin["name"] == name).unwrap();
    // A safetensors file: length of the header, header, values.
    let (mut header, mut values) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, shape) in origin["arrays"].as_object().unwrap() {
        let n: u64 = shape.as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product();
        let begin = values.len();
        (0..n).for_each(|i| values.extend((0.01 + 0.001 * (i % 7) as f32).to_le_bytes()));
        header.insert(name.clone(), serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, values.len()]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = dir.path().join("origin.safetensors");
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()).unwrap();
    let import = |out: &Path| program().arg("import").arg(&file).arg("--out").arg(out).output().unwrap();
    let refused = import(&dir.path().join("folder"));
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains(".safetensors file"), "{}", stderr(&refused));
    let backbone = dir.path().join("backbone.safetensors");
    let imported = import(&backbone);
    assert_done(&imported);
    assert!(backbone.with_extension("json").exists());
    // As it says itself.
    let said = stderr(&imported);
    let label = said.split_once("--backbone ").unwrap().1.split_whitespace().next().unwrap();
    let run = dir.path().join("run");
    let mut command = program();
    command.args(["fit", "--backbone", label, "--width-channels", "16", "--head-depth", "1", "--width", "96", "--height", "64"]);
    command.args(["--batch", "2", "--threads", "1", "--device", "cpu", "--iterations", "1", "--init"]).arg(&backbone);
    let trained = command.arg("--data").arg(&data).arg("--out").arg(&run).output().unwrap();
    assert_done(&trained);
    assert!(stderr(&trained).contains("arrays taken") && run.join("weights.safetensors").exists(), "{}", stderr(&trained));
}

/// The options of a network reach the files: MobileNetV2 without a pyramid, one square anchor to the octave.
#[test]
fn another_network_agrees_with_onnx_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let (run, float, int8) = (dir.path().join("run"), dir.path().join("float"), dir.path().join("int8"));
    let options = ["--backbone", "mobilenetv2", "--pyramid", "c5", "--scales", "1", "--ratios", "1", "--head-norm", "none"];
    let fitted = program()
        .args([
            "fit",
            "--width",
            "96",
            "--height",
            "64",
            "--iterations",
            "2",
            "--batch",
            "2",
            "--threads",
            "1",
            "--device",
            "cpu",
        ])
        .args(["--width-channels", "16", "--head-depth", "1"])
        .args(options)
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(&run)
        .output()
        .unwrap();
    assert_done(&fitted);
    assert_done(&program().arg("export").arg("--run").arg(&run).arg("--out").arg(&float).output().unwrap());
    let mut quantize = program();
    quantize.arg("quantize").arg("--run").arg(&run).arg("--out").arg(&int8).arg("--accept-loss");
    assert_done(&quantize.arg("--data").arg(&data).arg("--val").arg(&data).output().unwrap());
    let manifest = std::fs::read_to_string(int8.join("manifest.toml")).unwrap();
    let manifest = fovea::retinanet::Manifest::parse(&manifest).unwrap();
    // All sizes of five levels on one.
    assert_eq!((manifest.levels.len(), manifest.anchors.n_per_cell(), manifest.anchors.base_sizes[0]), (1, 5, 16.0));
    agrees_with_onnx_runtime(&dir.path().join("oracle"), &[float.join("model.onnx"), int8.join("model.onnx")]);
}

/// Both files, value by value: float within 1e-4 of the largest value, int8 within one step.
fn agrees_with_onnx_runtime(folder: &Path, models: &[PathBuf]) {
    #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
    let Ok(python) = std::env::var("FOVEA_PYTHON") else {
        #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
        let is_required = std::env::var("FOVEA_REQUIRE_ORACLE").is_ok_and(|value| value == "1");
        assert!(!is_required, "FOVEA_REQUIRE_ORACLE=1 but FOVEA_PYTHON names no interpreter; run `make test`");
        eprintln!("skipped: exported networks against ONNX Runtime (FOVEA_PYTHON is not set; `make test` sets it)");
        return;
    };
    std::fs::create_dir_all(folder).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/executor.py");
    let output = Command::new(python).arg(script).arg(folder).args(models).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let floats = |name: String| -> Vec<f32> {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    for (idx, path) in models.iter().enumerate() {
        let options = LoadOptions { allow_float: idx == 0, ..LoadOptions::default() };
        let mut network = Network::load(&std::fs::read(path).unwrap(), &options).unwrap();
        let got = network.run_f32(&floats(format!("model{idx}.in"))).unwrap().to_vec();
        let wanted = floats(format!("model{idx}.out"));
        assert_eq!(got.iter().map(|values| values.len()).sum::<usize>(), wanted.len());
        let mut wanted = &wanted[..];
        for (info, got) in network.outputs().iter().zip(&got) {
            let (here, rest) = wanted.split_at(got.len());
            wanted = rest;
            let largest = here.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
            let tolerance = info.params.map_or(1e-4 * largest, |params| 1.5 * params.scale);
            let worst = got.iter().zip(here).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance, "{} {}: off by {worst}, at most {tolerance}", path.display(), info.name);
        }
    }
}

#[test]
fn going_on_beyond_the_end_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let run = dir.path().join("run");
    assert_done(&fit(&data, &run, &["--iterations", "12", "--until", "7"]));
    let before = std::fs::read(run.join("checkpoint.safetensors")).unwrap();
    let curve = std::fs::read(run.join("curve.csv")).unwrap();
    let again = program().args(["fit", "--resume", "--until", "5", "--device", "cpu", "--out"]).arg(&run).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(stderr(&again).contains("at iteration 7 already"), "{}", stderr(&again));
    assert!(
        before == std::fs::read(run.join("checkpoint.safetensors")).unwrap()
            && curve == std::fs::read(run.join("curve.csv")).unwrap()
    );
    // A flag that --resume would ignore is refused.
    let ignored = program().args(["fit", "--resume", "--lr", "0.1", "--out"]).arg(&run).output().unwrap();
    assert_eq!(ignored.status.code(), Some(2), "{}", stderr(&ignored));
}

#[test]
fn divergence_names_the_step_and_keeps_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let run = dir.path().join("run");
    // Ends at a checkpoint; then a learning rate that no network survives.
    assert_done(&fit(&data, &run, &["--iterations", "400", "--until", "5"]));
    let settings = std::fs::read_to_string(run.join("fit.toml")).unwrap();
    let settings: String =
        settings.lines().map(|line| if line.starts_with("lr = ") { "lr = 1e38\n".into() } else { format!("{line}\n") }).collect();
    std::fs::write(run.join("fit.toml"), settings).unwrap();
    let before = std::fs::read(run.join("checkpoint.safetensors")).unwrap();
    let output = program().args(["fit", "--resume", "--threads", "1", "--device", "cpu", "--out"]).arg(&run).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("training diverged at iteration"), "{}", stderr(&output));
    assert!(stderr(&output).contains("the last good checkpoint is"), "{}", stderr(&output));
    assert!(before == std::fs::read(run.join("checkpoint.safetensors")).unwrap(), "the last good checkpoint was overwritten");
    // The ruinous step is one that ends at a checkpoint: only the next one shows it.
    let settings =
        std::fs::read_to_string(run.join("fit.toml")).unwrap().replace("checkpoint_every = 5\n", "checkpoint_every = 1\n");
    assert!(settings.contains("checkpoint_every = 1\n"), "{settings}");
    std::fs::write(run.join("fit.toml"), settings).unwrap();
    let averaged = std::fs::read(run.join("weights.safetensors")).unwrap();
    let output = program().args(["fit", "--resume", "--threads", "1", "--device", "cpu", "--out"]).arg(&run).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    for (name, kept) in [("checkpoint.safetensors", before), ("weights.safetensors", averaged)] {
        assert!(kept == std::fs::read(run.join(name)).unwrap(), "{name} is not that of the last good checkpoint");
    }
    assert!(!run.join("checkpoint.before.safetensors").exists());
    // Nothing good was written yet.
    let fresh = dir.path().join("fresh");
    let ruinous = ["--iterations", "400", "--lr", "1e38", "--checkpoint-every", "1"];
    let output = small_fit(&data, &fresh).args(ruinous).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("no checkpoint gives a sound step"), "{}", stderr(&output));
}

#[test]
fn an_interrupt_writes_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let run = dir.path().join("run");
    // Started from a script's `&`, a test has this signal ignored, and so would the program.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_fovea-train")]).args(small_fit(&data, &run).get_args());
    let child = command.args(["--iterations", "1000000"]).stderr(Stdio::piped()).spawn().unwrap();
    let curve = run.join("curve.csv");
    let is_under_way = || std::fs::read_to_string(&curve).is_ok_and(|text| text.lines().count() > 2);
    for _ in 0..600 {
        if is_under_way() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // Nobody else trains into this folder meanwhile.
    let second = small_fit(&data, &run).output().unwrap();
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    assert!(stderr(&second).contains("another process trains into"), "{}", stderr(&second));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"), "{}", stderr(&output));
    assert!(run.join("checkpoint.safetensors").exists());
    // A folder of weights alone (a shipped model) is not written over.
    std::fs::remove_file(run.join("checkpoint.safetensors")).unwrap();
    let before = std::fs::read(run.join("weights.safetensors")).unwrap();
    let refused = small_fit(&data, &run).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("would be replaced"), "{}", stderr(&refused));
    assert!(before == std::fs::read(run.join("weights.safetensors")).unwrap());
}

#[test]
fn wrong_requests_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let (run, missing) = (dir.path().join("run"), dir.path().join("missing"));
    let with_names = |name: &str, pictures: [&str; 2], class: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(folder.join("images")).unwrap();
        let image = |id: usize| serde_json::json!({"id": id, "file_name": pictures[id], "width": 9, "height": 9});
        let coco =
            serde_json::json!({"images": [image(0), image(1)], "categories": [{"id": 1, "name": class}], "annotations": []});
        std::fs::write(folder.join("annotations.json"), coco.to_string()).unwrap();
        folder
    };
    let strange = with_names("strange", ["a.png", "b.png"], "zebra");
    let outside = with_names("outside", ["a.png", "../../b.png"], "red");
    let twice = with_names("twice", ["a.png", "a.jpg"], "red");
    // Hard links to its own pictures are left as they are.
    let linked = dir.path().join("linked");
    std::fs::create_dir_all(linked.join("images")).unwrap();
    std::fs::hard_link(data.join("images/0.png"), linked.join("images/0.png")).unwrap();
    let size = std::fs::metadata(data.join("images/0.png")).unwrap().len();
    let convert = program().args(["data", "convert", "--to", "yolo", "--data"]).arg(&data).arg("--out").arg(&linked).output();
    assert_done(&convert.unwrap());
    assert_eq!(std::fs::metadata(data.join("images/0.png")).unwrap().len(), size);
    let labelled = dir.path().join("labelled");
    std::fs::create_dir_all(labelled.join("labels")).unwrap();
    std::fs::create_dir_all(labelled.join("images")).unwrap();
    std::fs::write(labelled.join("labels/a.txt"), "0 0.5 0.5 0.1 0.1\n").unwrap();
    let pictured = dir.path().join("pictured");
    std::fs::create_dir_all(pictured.join("images")).unwrap();
    std::fs::write(pictured.join("images/0.png"), "another").unwrap();
    let sizeless = data_set(&dir.path().join("sizeless"));
    let text = std::fs::read_to_string(sizeless.join("annotations.json")).unwrap();
    std::fs::write(sizeless.join("annotations.json"), text.replacen("\"width\":96", "\"width\":0", 1)).unwrap();
    let faults = program().args(["data", "check", "--data"]).arg(&sizeless).output().unwrap();
    assert!(faults.status.code() == Some(1) && stderr(&faults).contains("of 0x64 pixels"), "{}", stderr(&faults));
    let stats =
        program().args(["data", "stats", "--out"]).arg(dir.path().join("new/s.png")).arg("--data").arg(&sizeless).output();
    assert_done(&stats.unwrap());
    let made = small_fit(&data, &run).args(["--until", "0"]).output().unwrap();
    assert_done(&made);
    let text = std::fs::read_to_string(run.join("fit.toml")).unwrap();
    let scales = text.lines().find(|line| line.starts_with("scales = ")).unwrap();
    let no_anchors = dir.path().join("no-anchors.toml");
    std::fs::write(&no_anchors, text.replace(scales, "scales = []")).unwrap();
    // Other anchors in a run's own file.
    std::fs::write(run.join("fit.toml"), text.replace(scales, "scales = [1.0, 1.3]")).unwrap();
    let edited = program().args(["fit", "--resume", "--out"]).arg(&run).output().unwrap();
    assert!(edited.status.code() == Some(2) && stderr(&edited).contains("has another [model]"), "{}", stderr(&edited));
    std::fs::remove_dir_all(&run).unwrap();
    for (args, part) in [
        (vec!["fit", "--data", missing.to_str().unwrap(), "--out", run.to_str().unwrap()], "annotations.json"),
        (vec!["fit", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap(), "--width", "100"], "multiple of 32"),
        (vec!["fit", "--resume", "--out", run.to_str().unwrap()], "--resume: there is no"),
        (vec!["fit", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap(), "--blocks", "4,8"], "expected three"),
        (
            vec![
                "fit",
                "--data",
                data.to_str().unwrap(),
                "--out",
                run.to_str().unwrap(),
                "--blocks",
                "4,8,3",
                "--backbone",
                "edgeres",
            ],
            "only a shufflenetv2",
        ),
        (vec!["fit", "--qat", "a", "--width", "64", "--out", run.to_str().unwrap()], "cannot be used with"),
        (
            vec!["fit", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap(), "--val", strange.to_str().unwrap()],
            "none of the model's classes",
        ),
        (vec!["data", "convert", "--data", outside.to_str().unwrap(), "--to", "yolo", "--out", "/x"], "is outside of"),
        (vec!["data", "convert", "--data", twice.to_str().unwrap(), "--to", "yolo", "--out", "/x"], "share one file of labels"),
        (
            vec!["data", "convert", "--data", data.to_str().unwrap(), "--to", "yolo", "--out", labelled.to_str().unwrap()],
            "which would be replaced",
        ),
        (
            vec!["data", "convert", "--data", data.to_str().unwrap(), "--to", "yolo", "--out", pictured.to_str().unwrap()],
            "is another picture",
        ),
        (vec!["data", "convert", "--data", sizeless.to_str().unwrap(), "--to", "yolo", "--out", "/x"], "0.png has 0x64 pixels"),
        (vec!["data", "stats", "--data", data.to_str().unwrap(), "--out", "/x.png", "--width", "0"], "1 to 4096 pixels"),
        (
            vec![
                "fit",
                "--config",
                no_anchors.to_str().unwrap(),
                "--data",
                data.to_str().unwrap(),
                "--out",
                run.to_str().unwrap(),
            ],
            "anchors.scales",
        ),
        (vec!["fit", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap(), "--device", "tpu"], "auto, cpu or cuda"),
        (
            vec!["fit", "--data", data.to_str().unwrap(), "--out", run.to_str().unwrap(), "--init", "/nonexistent.safetensors"],
            "there is no file /nonexistent.safetensors",
        ),
        (vec!["data", "check", "--data", data.to_str().unwrap(), "--init", "/proc"], "no file /proc/weights.safetensors"),
        (vec!["data", "sheet", "--data", data.to_str().unwrap(), "--out", "sheet.gif"], "written as .png or .jpg"),
    ] {
        let output = program().args(&args).output().unwrap();
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        std::fs::remove_dir_all(&run).ok();
    }
}

#[test]
fn faults_of_a_data_set_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let check = |data: &Path| program().args(["data", "check", "--data"]).arg(data).output().unwrap();
    let good = check(&data);
    assert_done(&good);
    let table = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(table.contains("24 pictures, 24 boxes") && table.contains("green"), "{table}");
    assert!(stderr(&good).contains("12 boxes of green; a class is learned from hundreds"), "{}", stderr(&good));
    assert!(table.contains("have none at IoU 0.5"), "{table}");
    let jpeg = |size: usize| {
        let picture = RgbPicture { width: size, height: size, data: vec![90; size * size * 3] };
        let path = dir.path().join("a.jpg");
        save(&path, &picture).unwrap();
        std::fs::read(path).unwrap()
    };
    let whole = jpeg(64);
    std::fs::write(data.join("images/3.png"), &whole[..whole.len() - 9]).unwrap();
    let text = std::fs::read_to_string(data.join("annotations.json")).unwrap();
    let mut coco: serde_json::Value = serde_json::from_str(&text).unwrap();
    coco["annotations"][5]["bbox"] = serde_json::json!([90, 0, 60, 20]);
    coco["annotations"][6]["bbox"] = serde_json::json!([1, 1, 0, 20]);
    std::fs::write(data.join("annotations.json"), coco.to_string()).unwrap();
    let bad = check(&data);
    assert_eq!(bad.status.code(), Some(1));
    for part in ["3.png", "cut off", "leaves the picture", "is empty", "3 faults"] {
        assert!(stderr(&bad).contains(part), "{part}: {}", stderr(&bad));
    }
}

/// The paper's settings on a small network, its speed, and the mean of two runs.
#[test]
fn the_papers_preset_is_run_timed_and_averaged() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let run = |name: &str| dir.path().join(name);
    for (name, seed) in [("a", "1"), ("b", "2")] {
        let mut command = program();
        command.args(["fit", "--preset", "paper", "--width-channels", "16", "--width", "96", "--height", "64", "--batch", "2"]);
        command.args(["--iterations", "2", "--threads", "1", "--device", "cpu", "--seed", seed]);
        assert_done(&command.arg("--data").arg(&data).arg("--out").arg(run(name)).output().unwrap());
    }
    let settings: toml::Table = std::fs::read_to_string(run("a").join("fit.toml")).unwrap().parse().unwrap();
    assert_eq!((settings["rule"].as_str(), settings["lr"].as_float()), (Some("sgd"), Some(0.01)), "{settings}");
    let mut bench = program();
    bench.args(["bench", "--threads", "1", "--device", "cpu", "--config"]).arg(run("a").join("fit.toml"));
    let timed = bench.output().unwrap();
    assert_done(&timed);
    assert!(String::from_utf8_lossy(&timed.stdout).contains("pictures a second"), "{}", stderr(&timed));
    assert_done(&program().arg("average").arg(run("a")).arg(run("b")).arg("--out").arg(run("mean")).output().unwrap());
    assert!(run("mean").join("weights.safetensors").exists());
    // Training with quantisation takes such a mean for a run, once it is told the data.
    let qat = |extra: &[&str]| {
        let mut fit = program();
        fit.args(["fit", "--iterations", "1", "--batch", "2", "--threads", "1", "--device", "cpu"]).args(extra);
        fit.arg("--qat").arg(run("mean")).arg("--out").arg(run("qat")).output().unwrap()
    };
    let refused = qat(&[]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--data is needed"), "{}", stderr(&refused));
    assert_done(&qat(&["--data", data.to_str().unwrap()]));
}

/// What a person reads first, of every command and of what it is made of.
#[test]
fn every_command_has_help_with_an_example() {
    let help = |path: &[String]| {
        let output = program().args(path).arg("--help").output().unwrap();
        assert_done(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    let mut paths = vec![Vec::new()];
    let mut n_commands = 0;
    while let Some(path) = paths.pop() {
        let text = help(&path);
        n_commands += 1;
        assert!(path.is_empty() || text.contains("Example"), "{path:?}:\n{text}");
        let commands = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split_once("\n\n").unwrap().0);
        for name in commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()))
        {
            if name != "help" {
                paths.push([&path[..], &[name.to_owned()]].concat());
            }
        }
    }
    assert!(n_commands > 15, "{n_commands} commands");
}

/// Variants of a table: one that trains, one with hard example mining, one that diverges; then again, with nothing to do.
#[test]
fn a_table_of_variants_is_run_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let (out, table) = (dir.path().join("out"), dir.path().join("small.toml"));
    let text = "title = 'Small'\ncolumns = ['loss']\nbase = { augment = { mosaic = 0.0 } }\n\
        [[variants]]\nname = 'focal'\ncells = ['focal']\n\
        [[variants]]\nname = 'ohem'\ncells = ['OHEM']\nset = { loss = { kind = 'ohem', batch = 16, ratio = 3 } }\n\
        [[variants]]\nname = 'high'\ncells = ['high rate']\nset = { lr = 1e38 }\n";
    std::fs::write(&table, text).unwrap();
    let ablate = |val_every: &str, more: &[&str]| {
        let mut command = program();
        command.args(["ablate", "--seeds", "1", "--iterations", "8", "--batch", "4", "--threads", "1", "--val-every", val_every]);
        command.args(["--device", "cpu", "--backbone", "edgelite", "--width-channels", "16", "--head-depth", "1"]);
        command.args(["--width", "96", "--height", "64"]).arg("--table").arg(&table).arg("--out").arg(&out);
        command.arg("--data").arg(&data).arg("--val").arg(&data).args(more).output().unwrap()
    };
    assert_done(&ablate("4", &[]));
    let markdown = std::fs::read_to_string(out.join("small.md")).unwrap();
    assert!(
        markdown.contains("| high rate | - | - | - | **diverged** at step ") && markdown.contains("6 pictures"),
        "{markdown}"
    );
    assert!(out.join("small.png").exists() && out.join("ohem-s1/weights.safetensors").exists());
    let written = std::fs::metadata(out.join("focal-s1/weights.safetensors")).unwrap().modified().unwrap();
    let again = ablate("4", &[]);
    assert_done(&again);
    assert!(!stderr(&again).contains("focal-s1"), "a run that is done was started again: {}", stderr(&again));
    assert_eq!(std::fs::metadata(out.join("focal-s1/weights.safetensors")).unwrap().modified().unwrap(), written);
    figures_of_a_run(&out.join("focal-s1"), &data, dir.path());
    // Other validation pictures: the same weights, measured anew.
    let on_others = ablate("3", &[]);
    assert_done(&on_others);
    assert!(stderr(&on_others).contains("focal-s1: measured anew"), "{}", stderr(&on_others));
    assert!(std::fs::read_to_string(out.join("small.md")).unwrap().contains("8 pictures"));
    assert_eq!(std::fs::metadata(out.join("focal-s1/weights.safetensors")).unwrap().modified().unwrap(), written);
    let other = ablate("3", &["--lr", "0.01"]);
    assert_eq!(other.status.code(), Some(2), "{}", stderr(&other));
    assert!(stderr(&other).contains("other settings"), "{}", stderr(&other));
    // Nobody else works in this folder meanwhile.
    let lock = std::fs::File::open(&out).unwrap();
    lock.lock().unwrap();
    let second = ablate("3", &[]);
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    assert!(stderr(&second).contains("another process"), "{}", stderr(&second));
}

/// The small data set in YOLO format, as the README lays it out: `mydata/{images,labels}/{train,val}`, `mydata/data.yaml`.
fn yolo_data(dir: &Path) {
    let coco = data_set(&dir.join("coco"));
    for split in ["train", "val"] {
        let out = dir.join(split);
        let convert = program().args(["data", "convert", "--to", "yolo", "--data"]).arg(&coco).arg("--out").arg(&out).output();
        assert_done(&convert.unwrap());
        for kind in ["images", "labels"] {
            std::fs::create_dir_all(dir.join("mydata").join(kind)).unwrap();
            std::fs::rename(out.join(kind), dir.join("mydata").join(kind).join(split)).unwrap();
        }
        std::fs::rename(out.join("data.yaml"), dir.join("mydata/data.yaml")).unwrap();
    }
}

/// Commands of the first block under a heading of the README, as words.
fn readme_commands(heading: &str) -> Vec<Vec<String>> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let block = readme.split_once(heading).unwrap().1.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    let words = |line: &str| line.split(" #").next().unwrap().split_whitespace().map(str::to_owned).collect();
    block.replace("\\\n", " ").lines().map(words).collect()
}

/// What a stranger types, as the README has it, with a smaller network and fewer steps: from YOLO labels to a running model.
#[test]
fn the_readme_leads_from_labels_to_a_running_model() {
    let dir = tempfile::tempdir().unwrap();
    yolo_data(dir.path());
    let commands = readme_commands("\n## Train your own\n");
    assert_eq!(commands.len(), 5, "{commands:?}");
    let small = "--backbone edgelite --width-channels 16 --head-depth 1 --width 96 --height 64 --batch 4 --threads 1 --device cpu \
                 --iterations 200 --lr 0.004 --mosaic 0";
    for words in &commands {
        let runs_fovea = words[0].ends_with("/fovea");
        let fovea = Path::new(env!("CARGO_BIN_EXE_fovea-train")).with_file_name("fovea");
        if runs_fovea && !fovea.exists() {
            eprintln!("skipped: fovea run ({} is not built)", fovea.display());
            continue;
        }
        let mut command = if runs_fovea { Command::new(&fovea) } else { program() };
        command.current_dir(dir.path());
        let is_check = words[1] == "data";
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                // Weights for another network, and the number of steps for another size.
                "--init" | "--iterations" => drop(words.next()),
                "fit" => drop(command.arg("fit").args(small.split_whitespace())),
                "eval" => drop(command.args(["eval", "--device", "cpu"])),
                "quantize" => drop(command.args(["quantize", "--accept-loss"])),
                "street.mp4" => drop(command.arg("mydata/images/val")),
                "annotated.mp4" => drop(command.args(["none", "--detections", "found.jsonl"])),
                word => drop(command.arg(word)),
            }
        }
        let output = command.output().unwrap();
        if runs_fovea && stderr(&output).contains("has no GStreamer") {
            eprintln!("skipped: fovea run ({} is built without it)", fovea.display());
            continue;
        }
        assert_done(&output);
        if is_check {
            // Both splits of this data are the same pictures.
            assert!(stderr(&output).contains("look the same"), "{}", stderr(&output));
        }
        if runs_fovea {
            let found = std::fs::read_to_string(dir.path().join("found.jsonl")).unwrap();
            assert!(found.contains("\"red\"") && found.contains("\"green\""), "{found}");
        }
    }
    let labels = std::fs::read_to_string(dir.path().join("models/mine/labels.txt")).unwrap();
    assert_eq!(labels, "red\ngreen\n");
    // What it does wrong on a sheet, and what there is in numbers.
    for args in [
        ["sheet", "--data", "mydata/images/val", "--worst", "models/mine", "--out", "sheet.png"].as_slice(),
        &["stats", "--data", "mydata/images/train", "--out", "stats.png"],
    ] {
        assert_done(&program().current_dir(dir.path()).arg("data").args(args).output().unwrap());
        assert!(fovea::images::open(&dir.path().join(args[args.len() - 1])).unwrap().width > 500, "{args:?}");
    }
}

/// The first commands of the README again, now with the weights that they name, at a size and a number of steps for a test: two
/// new classes on the shipped network.
#[test]
fn the_shipped_weights_start_a_network_of_other_classes() {
    let dir = tempfile::tempdir().unwrap();
    yolo_data(dir.path());
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let few = "--width 96 --height 64 --batch 2 --threads 1 --device cpu --iterations 2";
    for words in readme_commands("\n## Train your own\n").iter().take(2) {
        let mut command = program();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--init" => {
                    let weights = words.next().unwrap().strip_prefix("models/").unwrap();
                    command.arg("--init").arg(models.join(weights));
                }
                "--iterations" => drop(words.next()),
                "fit" => drop(command.arg("fit").args(few.split_whitespace())),
                word => drop(command.arg(word)),
            }
        }
        let output = command.current_dir(dir.path()).output().unwrap();
        assert_done(&output);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        assert!(said.contains("anchors at ") || said.contains("arrays taken"), "{said}");
    }
    let model = std::fs::read_to_string(dir.path().join("runs/mine/model.toml")).unwrap();
    assert!(model.contains("[\"red\", \"green\"]") && model.contains("shufflenetv2-x1.5"), "{model}");
}

#[test]
fn tuning_halves_its_trials_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_set(&dir.path().join("data"));
    let out = dir.path().join("tuned");
    let tune = || {
        let mut command = program();
        command.args(["tune", "--trials", "3", "--iterations", "30", "--sizes", "128x64", "--out"]).arg(&out).arg("--");
        // The options of `fit`, without its name and without --out.
        let fit = small_fit(&data, &dir.path().join("unused"));
        let options: Vec<_> = fit.get_args().skip(1).collect();
        command.args(&options[..options.len() - 2]).arg("--val").arg(&data).output().unwrap()
    };
    assert_done(&tune());
    let table = std::fs::read_to_string(out.join("tune.md")).unwrap();
    let steps: Vec<&str> = table.lines().skip(6).filter_map(|line| line.split('|').nth(2)).map(str::trim).collect();
    assert_eq!(steps, ["30", "10", "10"], "{table}");
    // The last measurement is taken back: it is made again, and nothing else.
    let state = out.join("tune.json");
    let mut known: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
    for trial in known["trials"].as_array_mut().unwrap().iter_mut().filter(|trial| trial["steps"] == 30) {
        trial["rounds"].as_array_mut().unwrap().pop();
    }
    std::fs::write(&state, known.to_string()).unwrap();
    let again = tune();
    assert_done(&again);
    let rounds: Vec<String> = stderr(&again).lines().filter(|line| line.starts_with("round ")).map(str::to_owned).collect();
    assert!(rounds.len() == 1 && rounds[0].starts_with("round 2 of 2"), "{rounds:?}");
    assert_eq!(std::fs::read_to_string(out.join("tune.md")).unwrap(), table);
    // A trial whose learning rate no network survives is left out, and the others are compared.
    let mut known: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
    (known["trials"][2]["steps"], known["trials"][2]["rounds"]) = (0.into(), serde_json::json!([]));
    std::fs::write(&state, known.to_string()).unwrap();
    std::fs::remove_dir_all(out.join("3")).unwrap();
    let settings = std::fs::read_to_string(out.join("3.toml")).unwrap();
    let lr = settings.lines().find(|line| line.starts_with("lr = ")).unwrap();
    std::fs::write(out.join("3.toml"), settings.replace(lr, "lr = 1e38")).unwrap();
    let fallen = tune();
    assert_done(&fallen);
    assert!(stderr(&fallen).contains("trial 3 diverged"), "{}", stderr(&fallen));
    let table = std::fs::read_to_string(out.join("tune.md")).unwrap();
    assert!(table.contains("| 3 | 10 | diverged | – |"), "{table}");
}

/// Every figure of `plot`; `run` has an `eval.json`.
fn figures_of_a_run(run: &Path, data: &Path, dir: &Path) {
    let bench = dir.join("bench.json");
    std::fs::write(&bench, r#"{"cpu_ms_min": 4.5}"#).unwrap();
    let point = format!("small:{}:{}", bench.display(), run.join("eval.json").display());
    let (run, data, out) = (run.to_str().unwrap(), data.to_str().unwrap(), dir.join("figures"));
    let plot = |args: &[&str], out: &Path| program().arg("plot").args(args).arg("--out").arg(out).output().unwrap();
    let of_run = ["--run", run, "--data", data, "--device", "cpu", "--threads", "1"];
    assert_done(&plot(&[&["detections"][..], &of_run, &["--score", "0.06"]].concat(), &out));
    let distribution = plot(&[&["distribution"][..], &of_run].concat(), &out.join("distribution.png"));
    assert_done(&distribution);
    let table = String::from_utf8_lossy(&distribution.stdout).into_owned();
    assert!(table.contains("| 2 | ") && table.contains("on background."), "{table}");
    assert_done(&plot(&["losses", "--loss", "hinge", "--loss", "focal_star"], &out.join("losses.png")));
    assert_done(&plot(&["speed", "--point", &point], &out.join("speed.png")));
    for name in ["precision", "scores", "sizes", "confusion", "distribution", "losses", "speed"] {
        let bytes = std::fs::read(out.join(format!("{name}.png"))).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 2000, "{name}.png: {} bytes", bytes.len());
    }
    let wrong = plot(&["speed", "--point", "small"], &out.join("no.png"));
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
}
