//! Preprocessing against a letterbox in floating point.

use crate::{Random, python, read_f32, run_script};
use fovea::frame::{ColorInfo, ColorMatrix, ColorRange, PictureRef, PixelFormat, PlaneRef};
use fovea::preprocess::Preprocessor;
use serde_json::{Value, json};

/// Grey levels between the two pictures. Luma and chroma are rounded once before the colour matrix, whose gains are at most
/// 1.17 and 2.12: 0.5 x (1.17 + 2.12) = 1.65 before the last rounding, so at most 2 after it; without a matrix at most 1.
const fn tolerance(format: PixelFormat) -> u8 {
    if format.is_yuv() { 2 } else { 1 }
}

struct Case {
    name: String,
    format: PixelFormat,
    color: ColorInfo,
    size: (usize, usize),
    dst: (usize, usize),
    planes: Vec<(Vec<u8>, usize)>,
}

impl Case {
    fn new(format: PixelFormat, color: ColorInfo, size: (usize, usize), dst: (usize, usize), random: &mut Random) -> Self {
        let mut planes = Vec::new();
        let phase = [random.unit(), random.unit(), random.unit()];
        while let Some(plane) = format.plane_size(planes.len(), size.0, size.1) {
            let mut data = Vec::with_capacity(plane.row_bytes * plane.rows);
            for y in 0..plane.rows {
                for x in 0..plane.row_bytes {
                    // Waves of several lengths and noise; the whole range of codes.
                    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                    let (x, y) = (x as f64, y as f64);
                    let wave =
                        (x / 9.0 + 7.0 * phase[0]).sin() + (y / 5.0 + 7.0 * phase[1]).sin() + ((x + y) / 31.0 + phase[2]).cos();
                    let value = (127.5 + 50.0 * wave + 60.0 * (random.unit() - 0.5)).round().clamp(0.0, 255.0);
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
                    data.push(value as u8);
                }
            }
            planes.push((data, plane.row_bytes));
        }
        let name = format!("{format}_{:?}_{:?}_{}x{}_{}x{}", color.matrix, color.range, size.0, size.1, dst.0, dst.1);
        Self { name, format, color, size, dst, planes }
    }

    fn run(&self) -> Vec<u8> {
        let mut planes = [PlaneRef::default(); 3];
        for (plane, (data, stride_bytes)) in planes.iter_mut().zip(&self.planes) {
            *plane = PlaneRef { data, stride_bytes: *stride_bytes };
        }
        let picture = PictureRef::new(self.format, self.size.0, self.size.1, self.color, planes).expect("a picture");
        let mut out = vec![0; self.dst.0 * self.dst.1 * 3];
        Preprocessor::new(self.dst).run(&picture, &mut out);
        out
    }
}

#[test]
fn pixels_agree_with_a_float_letterbox() {
    let Some(python) = python("preprocessing against NumPy and Pillow") else { return };
    let mut random = Random(0xA076_1D64_78BD_642F);
    let (limited, full) = (ColorRange::Limited, ColorRange::Full);
    let color = |matrix, range| ColorInfo { matrix, range };
    let mut cases = Vec::new();
    for format in PixelFormat::ALL {
        for size in [(321, 241), (640, 480), (100, 60), (1, 1), (1279, 719), (97, 333), (1248, 768)] {
            cases.push(Case::new(format, ColorInfo::default(), size, (416, 256), &mut random));
        }
        if format.is_yuv() {
            for color in [color(ColorMatrix::Bt601, full), color(ColorMatrix::Bt709, limited), color(ColorMatrix::Bt709, full)] {
                cases.push(Case::new(format, color, (322, 242), (320, 192), &mut random));
            }
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let described: Vec<Value> = cases
        .iter()
        .map(|case| {
            let raw: Vec<u8> = case.planes.iter().flat_map(|(data, _)| data.iter().copied()).collect();
            std::fs::write(folder.path().join(format!("{}.raw", case.name)), raw).expect("a file");
            json!({
                "name": case.name, "format": case.format.to_string(), "width": case.size.0, "height": case.size.1, "dst": case.dst,
                "matrix": format!("{:?}", case.color.matrix).to_lowercase(), "range": format!("{:?}", case.color.range).to_lowercase(),
            })
        })
        .collect();
    std::fs::write(folder.path().join("cases.json"), Value::from(described).to_string()).expect("a file");
    run_script(&python, "preprocess.py", &[folder.path()], "");
    let mut largest = 0;
    for case in &cases {
        let got = case.run();
        let want = read_f32(&folder.path().join(format!("{}.f32", case.name)));
        assert_eq!(got.len(), want.len(), "{}", case.name);
        let written_down = std::fs::read(folder.path().join(format!("{}.u8", case.name))).expect("an answer");
        let n_differ = got.iter().zip(&written_down).filter(|(a, b)| a != b).count();
        assert!(
            n_differ == 0 && got.len() == written_down.len(),
            "{}: {n_differ} bytes differ from docs/preprocess.md",
            case.name
        );
        for (at, (&got, &want)) in got.iter().zip(&want).enumerate() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the reference is clipped to 0..=255")]
            let difference = got.abs_diff(want.round() as u8);
            largest = largest.max(difference);
            let (pixel, channel) = (at / 3, at % 3);
            assert!(
                difference <= tolerance(case.format),
                "{} at ({}, {}) channel {channel}: {got}, in floating point {want}",
                case.name,
                pixel % case.dst.0,
                pixel / case.dst.0
            );
        }
    }
    eprintln!("{} pictures within {largest} grey levels of the float letterbox", cases.len());
}
