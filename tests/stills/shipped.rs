//! The models that ship with the project: complete, in integers, and giving on this CPU what their golden file states.

use fovea::frame::PictureRef;
use fovea::pipeline::detections::digest_detections;
use fovea::pipeline::detector::{Detector, DetectorOptions, hex};
use fovea::postprocess::PostprocessOptions;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// `golden.json` of a model folder.
#[derive(Debug, Deserialize)]
struct Golden {
    picture: String,
    network_sha256: String,
    heads_sha256: String,
    detections_sha256: String,
}

/// Largest network that ships.
const MAX_BYTES: usize = 8_000_000;

fn folders() -> BTreeSet<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let entries = std::fs::read_dir(models).into_iter().flatten().flatten();
    // `models/default` is a link to one of the others.
    entries.filter_map(|entry| entry.path().canonicalize().ok()).filter(|path| path.join("manifest.toml").is_file()).collect()
}

fn test_picture(width: usize, height: usize) -> Vec<u8> {
    let low_byte = |value: usize| value.to_le_bytes()[0];
    let pixel = |x: usize, y: usize| [low_byte(x * x / 7 + 3 * y), low_byte(y * y / 5 + x), low_byte(x * y / 11)];
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
}

#[test]
fn shipped_models_are_complete_and_give_their_golden_values() {
    let folders = folders();
    assert!(!folders.is_empty(), "there is no model in models/");
    for folder in folders {
        let name = folder.display();
        let read =
            |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
        let golden: Golden = serde_json::from_str(&read("golden.json")).expect("a golden file");
        for threads in [1, 2, 3] {
            let postprocess = PostprocessOptions { score_threshold: Some(0.0), ..PostprocessOptions::default() };
            let options = DetectorOptions { threads, postprocess, ..DetectorOptions::default() };
            let mut detector = Detector::open(&folder, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            let manifest = detector.manifest().clone();
            assert_eq!(detector.executor().network().census().float_convs, 0, "{name}: convolutions in float");
            let network = std::fs::read(folder.join(&manifest.network.file)).expect("the network");
            assert!(network.len() <= MAX_BYTES, "{name}: {} bytes", network.len());
            assert_eq!(hex(&Sha256::digest(&network)), golden.network_sha256, "{name}: another network");
            assert!(manifest.network.sha256.is_some(), "{name}: the manifest states no digest");
            assert_eq!(read("labels.txt").lines().collect::<Vec<_>>(), manifest.classes, "{name}: labels.txt");
            assert_eq!(manifest.postprocess.display_threshold.len(), manifest.n_classes(), "{name}: thresholds to show");
            assert!(read("README.md").len() > 500, "{name}: its card says nothing");
            let (width, height) = (manifest.input.width, manifest.input.height);
            let formula = format!("RGB {width}x{height}: r = x*x/7 + 3*y, g = y*y/5 + x, b = x*y/11, modulo 256");
            assert_eq!(golden.picture, formula, "{name}: a picture that this test cannot make");
            let pixels = test_picture(width, height);
            let picture = PictureRef::rgb(&pixels, width, height).expect("a picture");
            let (mut heads, mut all, mut detections) = (Sha256::new(), Sha256::new(), Vec::new());
            detector.detect_with_digest(&picture, &mut detections, Some(&mut heads)).expect("it runs");
            assert!(detections.len() > 20, "{name}: only {} detections to compare", detections.len());
            digest_detections(&detections, &mut all);
            let found = [heads, all].map(|digest| hex(&digest.finalize()));
            let wanted = [golden.heads_sha256.clone(), golden.detections_sha256.clone()];
            assert_eq!(found, wanted, "{name} with {threads} threads: another result than its golden file");
        }
        eprintln!("{name}: complete, golden values found");
    }
}
