//! A model folder: network, manifest, labels, golden digest, card.

use crate::spec::{ModelSpec, Pixels};
use anyhow::Result;
use fovea::frame::PictureRef;
use fovea::pipeline::detections::digest_detections;
use fovea::pipeline::detector::{Detector, DetectorOptions, hex};
use fovea::postprocess::PostprocessOptions;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Name of the model in a folder.
pub(crate) fn name_of(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// `labels.txt`: one class a line.
pub(crate) fn labels(spec: &ModelSpec) -> String {
    spec.classes.iter().map(|class| format!("{class}\n")).collect()
}

/// A picture that every machine makes the same: waves of three frequencies, `[H, W, 3]`.
pub(crate) fn test_picture(width: usize, height: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            // Integer arithmetic only, so that no library's sine decides about a golden value.
            pixels.push((x * x / 7 + 3 * y) as u8);
            pixels.push((y * y / 5 + x) as u8);
            pixels.push((x * y / 11) as u8);
        }
    }
    pixels
}

/// `[H, W, 3]` bytes as the network's float input, `[3, H, W]`.
pub(crate) fn planar(picture: &[u8], pixels: Pixels) -> Vec<f32> {
    (0..3).flat_map(|channel| picture.iter().skip(channel).step_by(3).map(move |&value| pixels.real(channel, value))).collect()
}

/// What the model must give for [`test_picture`], on every CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Golden {
    /// How the picture is made.
    pub(crate) picture: String,
    /// SHA-256 of the network file.
    pub(crate) network_sha256: String,
    /// SHA-256 of all head tensors.
    pub(crate) heads_sha256: String,
    /// SHA-256 of the detections with scores above 0, as `fovea detect --digest --score-threshold 0` prints it.
    pub(crate) detections_sha256: String,
}

/// Runs the model on the test picture.
pub(crate) fn golden(model_dir: &Path, spec: &ModelSpec, network: &[u8]) -> Result<Golden> {
    let postprocess = PostprocessOptions { score_threshold: Some(0.0), ..PostprocessOptions::default() };
    let mut detector = Detector::open(model_dir, &DetectorOptions { threads: 1, postprocess, ..DetectorOptions::default() })?;
    let pixels = test_picture(spec.width, spec.height);
    let (mut heads, mut all, mut detections) = (Sha256::new(), Sha256::new(), Vec::new());
    detector.detect_with_digest(&PictureRef::rgb(&pixels, spec.width, spec.height)?, &mut detections, Some(&mut heads))?;
    digest_detections(&detections, &mut all);
    Ok(Golden {
        picture: format!("RGB {}x{}: r = x*x/7 + 3*y, g = y*y/5 + x, b = x*y/11, modulo 256", spec.width, spec.height),
        network_sha256: hex(&Sha256::digest(network)),
        heads_sha256: hex(&heads.finalize()),
        detections_sha256: hex(&all.finalize()),
    })
}
