//! Preprocessing version 1, frozen: hashes of its output for patterns of every format, colour and size.
//!
//! `UPDATE_GOLDEN=1` writes `tests/golden/preprocess.json` anew. A change of it is a new version of the specification.

use fovea::frame::{ColorInfo, ColorMatrix, ColorRange, PictureRef, PixelFormat, PlaneRef};
use fovea::kernels::{Isa, Kernels};
use fovea::pipeline::detector::hex;
use fovea::preprocess::Preprocessor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const SIZES: [(usize, usize); 6] = [(1, 1), (3, 2), (321, 241), (640, 480), (416, 256), (4096, 2160)];
const INPUTS: [(usize, usize); 2] = [(416, 256), (320, 320)];

/// Planes with rows `padding` bytes longer than the picture's; the padding holds other values than the picture.
fn planes(format: PixelFormat, (width, height): (usize, usize), padding: usize) -> Vec<(Vec<u8>, usize)> {
    let mut planes = Vec::new();
    while let Some(size) = format.plane_size(planes.len(), width, height) {
        let stride_bytes = size.row_bytes + padding;
        let mut data = vec![0xA5; stride_bytes * (size.rows - 1) + size.row_bytes];
        // A linear congruential generator (Numerical Recipes), one per row: the padding takes no number from it.
        for (y, row) in data.chunks_mut(stride_bytes).enumerate() {
            let mut state = u32::try_from(y * 7919 + planes.len() * 104_729 + 1).expect("small");
            for (x, sample) in row[..size.row_bytes].iter_mut().enumerate() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Blocks with noise: sums over many samples do not average to grey.
                let block = (x / 24 + y / 16) * 37 % 192;
                *sample = u8::try_from(block + usize::from(state.to_le_bytes()[3] / 4)).expect("at most 254");
            }
        }
        planes.push((data, stride_bytes));
    }
    planes
}

fn letterboxed(
    format: PixelFormat,
    color: ColorInfo,
    size: (usize, usize),
    dst: (usize, usize),
    planes: &[(Vec<u8>, usize)],
    preprocessor: &mut Preprocessor,
) -> Vec<u8> {
    let mut refs = [PlaneRef::default(); 3];
    for (plane, (data, stride_bytes)) in refs.iter_mut().zip(planes) {
        *plane = PlaneRef { data, stride_bytes: *stride_bytes };
    }
    let picture = PictureRef::new(format, size.0, size.1, color, refs).expect("a picture");
    let mut out = vec![7; dst.0 * dst.1 * 3];
    preprocessor.run(&picture, &mut out);
    out
}

fn colors(format: PixelFormat) -> Vec<(&'static str, ColorInfo)> {
    let color = |matrix, range| ColorInfo { matrix, range };
    let mut colors = vec![("bt601-limited", color(ColorMatrix::Bt601, ColorRange::Limited))];
    if format.is_yuv() {
        colors.push(("bt601-full", color(ColorMatrix::Bt601, ColorRange::Full)));
        colors.push(("bt709-limited", color(ColorMatrix::Bt709, ColorRange::Limited)));
        colors.push(("bt709-full", color(ColorMatrix::Bt709, ColorRange::Full)));
    }
    colors
}

#[test]
fn every_format_gives_the_frozen_bytes_whatever_the_stride() {
    let mut hashes: BTreeMap<String, String> = BTreeMap::new();
    for (kernels, dst) in
        Isa::available().into_iter().filter_map(Kernels::new).flat_map(|kernels| INPUTS.map(|dst| (kernels, dst)))
    {
        // One preprocessor for all: what it keeps from one picture must not show in the next.
        let mut preprocessor = Preprocessor::with_kernels(dst, kernels);
        for format in PixelFormat::ALL {
            for size in SIZES {
                let (tight, padded) = (planes(format, size, 0), planes(format, size, 29));
                for (color_name, color) in colors(format) {
                    let name = format!("{format} {color_name} {}x{} to {}x{}", size.0, size.1, dst.0, dst.1);
                    let out = letterboxed(format, color, size, dst, &tight, &mut preprocessor);
                    if color == ColorInfo::default() {
                        let other = letterboxed(format, color, size, dst, &padded, &mut preprocessor);
                        assert!(out == other, "{name}: padding between rows changes the result");
                    }
                    let hash = hex(&Sha256::digest(&out));
                    let first = hashes.entry(name.clone()).or_insert_with(|| hash.clone());
                    assert_eq!(first, &hash, "{name}: {} differs from the plain loops", kernels.isa().name());
                }
            }
        }
    }
    let distinct: std::collections::BTreeSet<&String> = hashes.values().collect();
    assert!(distinct.len() > hashes.len() * 9 / 10, "{} hashes for {} cases", distinct.len(), hashes.len());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/preprocess.json");
    #[expect(clippy::disallowed_methods, reason = "a test is the top: it reads its own knobs")]
    if std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(&hashes).expect("JSON");
        std::fs::write(&path, text + "\n").expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file; UPDATE_GOLDEN=1 makes it");
    let golden: BTreeMap<String, String> = serde_json::from_str(&golden).expect("the golden file is a map");
    for (name, hash) in &hashes {
        assert_eq!(golden.get(name), Some(hash), "{name}: preprocessing version 1 is frozen");
    }
    assert_eq!(golden.len(), hashes.len(), "cases of the golden file");
}

/// White, black and the primaries have known codes; whatever the filter, a flat picture stays flat.
#[test]
fn flat_colours_are_exact() {
    let limited = |matrix| ColorInfo { matrix, range: ColorRange::Limited };
    let full = |matrix| ColorInfo { matrix, range: ColorRange::Full };
    let (bt601, bt709) = (ColorMatrix::Bt601, ColorMatrix::Bt709);
    for (color, [y, u, v], want) in [
        (limited(bt601), [235, 128, 128], [255, 255, 255]),
        (limited(bt709), [16, 128, 128], [0, 0, 0]),
        (limited(bt601), [126, 128, 128], [128, 128, 128]),
        (full(bt601), [255, 128, 128], [255, 255, 255]),
        (full(bt709), [0, 128, 128], [0, 0, 0]),
        // Pure red, green, blue in codes of the standards, to the nearest code.
        (limited(bt601), [81, 90, 240], [254, 0, 0]),
        (limited(bt709), [63, 102, 240], [255, 1, 0]),
        (full(bt601), [76, 85, 255], [254, 0, 0]),
        // Beyond what RGB can show: clamped.
        (full(bt709), [255, 255, 255], [255, 172, 255]),
    ] {
        let planes = vec![(vec![y; 50 * 40], 50), ([u, v].repeat(25 * 20), 50)];
        let out = letterboxed(PixelFormat::Nv12, color, (50, 40), (50, 40), &planes, &mut Preprocessor::new((50, 40)));
        for pixel in out.as_chunks::<3>().0 {
            for (got, want) in pixel.iter().zip(want) {
                assert!(got.abs_diff(want) <= 1, "{color:?} {y} {u} {v}: {pixel:?}, expected {want:?}");
            }
        }
    }
}
