//! Preprocessing on every instruction set against a reference written here from `docs/preprocess.md`, and what it promises
//! beside bytes: nothing outside of the planes is read, and weights are computed once for each geometry.
#![expect(unsafe_code, reason = "pages that must not be read, a counting allocator: see the safety comments")]

mod counting;
#[path = "counting/by_thread.rs"]
mod counting_by_thread;
#[cfg(target_os = "linux")]
mod guarded;

use counting_by_thread::N_ALLOCATIONS;
use fovea::frame::{
    ColorInfo, ColorMatrix, ColorRange, Letterbox, PictureError, PictureRef, PixelFormat, PlaneRef, Region, Rotation,
};
use fovea::kernels::{Isa, Kernels, Pool};
use fovea::preprocess::Preprocessor;
use proptest::prelude::*;
use std::sync::Arc;

/// Calls `check` for the kernels of every instruction set that is there.
fn for_each_isa(mut check: impl FnMut(Kernels)) {
    #[expect(clippy::disallowed_methods, reason = "a knob of this test")]
    let required = std::env::var("FOVEA_REQUIRE_ISA").unwrap_or_default();
    for &isa in Isa::ALL {
        match Kernels::new(isa) {
            Some(kernels) => check(kernels),
            None if required.split(',').any(|name| name == isa.name()) => panic!("{} is required and not there", isa.name()),
            None => {}
        }
    }
}

/// A picture's planes, each with its stride.
type Planes = Vec<(Vec<u8>, usize)>;

/// What samples are like.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// Any byte.
    Noise(u32),
    /// 0 and 255 only: the sums reach their bounds.
    Extremes(u32),
}

fn planes(format: PixelFormat, (width, height): (usize, usize), padding: usize, content: Content) -> Planes {
    let sizes = (0..format.n_planes()).filter_map(|plane_idx| format.plane_size(plane_idx, width, height));
    let mut state = match content {
        Content::Noise(seed) | Content::Extremes(seed) => seed,
    };
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let byte = state.to_le_bytes()[3];
        if matches!(content, Content::Extremes(_)) { if byte < 40 { 0 } else { 255 } } else { byte }
    };
    sizes
        .map(|size| {
            let stride = size.row_bytes + padding;
            ((0..stride * (size.rows - 1) + size.row_bytes).map(|_| next()).collect(), stride)
        })
        .collect()
}

fn run(picture: &PictureRef<'_>, dst: (usize, usize), kernels: Kernels) -> Vec<u8> {
    let mut out = vec![7; dst.0 * dst.1 * 3];
    Preprocessor::with_kernels(dst, kernels).run(picture, &mut out);
    out
}

fn picture(format: PixelFormat, size: (usize, usize), color: ColorInfo, planes: &Planes) -> PictureRef<'_> {
    let mut refs = [PlaneRef::default(); 3];
    for (plane, (data, stride_bytes)) in refs.iter_mut().zip(planes) {
        *plane = PlaneRef { data, stride_bytes: *stride_bytes };
    }
    PictureRef::new(format, size.0, size.1, color, refs).expect("a picture")
}

/// Section 3: first sample and weights of output sample `i`.
fn taps(s: i64, p: i64, d: i64, i: i64) -> (i64, Vec<i64>) {
    let (u, n) = (d * p, (s + p - 1) / p);
    if s >= u {
        let first = i * s / u;
        let last = ((i + 1) * s + u - 1) / u;
        let until = |j: i64| (((j * u).clamp(i * s, (i + 1) * s) - i * s) * (1 << 15) + s) / (2 * s);
        return (first, (first..last).map(|j| until(j + 1) - until(j)).collect());
    }
    let position = (2 * i + 1) * s - u;
    if position < 0 {
        return (0, vec![1 << 14]);
    }
    let (j, rest) = (position / (2 * u), position % (2 * u));
    let second = (rest * (1 << 14) + u) / (2 * u);
    if j + 1 >= n || second == 0 { (j.min(n - 1), vec![1 << 14]) } else { (j, vec![(1 << 14) - second, second]) }
}

/// The whole document, pixel by pixel.
fn reference(picture: &PictureRef<'_>, dst: (usize, usize)) -> Vec<u8> {
    let int = |n: usize| i64::try_from(n).expect("small");
    let letterbox = Letterbox::new((picture.width, picture.height), dst);
    // Plane, offset, step, pixels in a sample across and down: section 2.
    let components: [(usize, usize, usize, i64, i64); 3] = match picture.format {
        PixelFormat::Nv12 => [(0, 0, 1, 1, 1), (1, 0, 2, 2, 2), (1, 1, 2, 2, 2)],
        PixelFormat::I420 => [(0, 0, 1, 1, 1), (1, 0, 1, 2, 2), (2, 0, 1, 2, 2)],
        PixelFormat::Yuy2 => [(0, 0, 2, 1, 1), (0, 1, 4, 2, 1), (0, 3, 4, 2, 1)],
        PixelFormat::Rgb => [(0, 0, 3, 1, 1), (0, 1, 3, 1, 1), (0, 2, 3, 1, 1)],
        PixelFormat::Rgba => [(0, 0, 4, 1, 1), (0, 1, 4, 1, 1), (0, 2, 4, 1, 1)],
        PixelFormat::Bgrx => [(0, 2, 4, 1, 1), (0, 1, 4, 1, 1), (0, 0, 4, 1, 1)],
        PixelFormat::Gray8 => [(0, 0, 1, 1, 1); 3],
    };
    let sample = |(plane_idx, offset, step, px, py): (usize, usize, usize, i64, i64), x: usize, y: usize| {
        let (first_row, row_weights) = taps(int(picture.height), py, int(letterbox.resized.1), int(y));
        let (first_column, column_weights) = taps(int(picture.width), px, int(letterbox.resized.0), int(x));
        let mut sum = 1 << 20;
        for (column, weight) in (usize::try_from(first_column).expect("not negative")..).zip(column_weights) {
            let rows = (usize::try_from(first_row).expect("not negative")..).zip(&row_weights);
            let down: i64 = rows.map(|(row, w)| w * i64::from(picture.row(plane_idx, row)[offset + column * step])).sum();
            sum += weight * ((down + 64) >> 7);
        }
        sum >> 21
    };
    let (black, gain, rv, gu, gv, bu) = match (picture.color.matrix, picture.color.range) {
        (ColorMatrix::Bt601, ColorRange::Limited) => (16, 9539, 13_075, 3209, 6660, 16_525),
        (ColorMatrix::Bt601, ColorRange::Full) => (0, 8192, 11_485, 2819, 5850, 14_516),
        (ColorMatrix::Bt709, ColorRange::Limited) => (16, 9539, 14_686, 1747, 4366, 17_305),
        (ColorMatrix::Bt709, ColorRange::Full) => (0, 8192, 12_901, 1535, 3835, 15_201),
    };
    let mut out = vec![114; dst.0 * dst.1 * 3];
    for y in 0..letterbox.resized.1 {
        for x in 0..letterbox.resized.0 {
            let [a, b, c] = components.map(|component| sample(component, x, y));
            let rgb = if picture.format.is_yuv() {
                let (luma, u, v) = (gain * (a - black) + (1 << 12), b - 128, c - 128);
                [luma + rv * v, luma - gu * u - gv * v, luma + bu * u].map(|value| (value >> 13).clamp(0, 255))
            } else {
                [a, b, c]
            };
            let at = 3 * ((letterbox.pad.1 + y) * dst.0 + letterbox.pad.0 + x);
            out[at..at + 3].copy_from_slice(&rgb.map(|value| u8::try_from(value).expect("a byte")));
        }
    }
    out
}

fn check(format: PixelFormat, size: (usize, usize), dst: (usize, usize), color: ColorInfo, padding: usize, content: Content) {
    let planes = planes(format, size, padding, content);
    let picture = picture(format, size, color, &planes);
    let want = reference(&picture, dst);
    for_each_isa(|kernels| {
        let got = run(&picture, dst, kernels);
        let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
        assert!(
            wrong.is_none(),
            "{}: {format} {size:?} to {dst:?}: byte {wrong:?} is {:?}, expected {:?}",
            kernels.isa().name(),
            wrong.map(|at| got[at]),
            wrong.map(|at| want[at])
        );
    });
}

#[test]
fn skipped_instruction_sets_are_named() {
    for isa in Isa::ALL.iter().filter(|&&isa| Kernels::new(isa).is_none()) {
        eprintln!("skipped: {}: this CPU or this build does not have it", isa.name());
    }
}

/// Sizes around the widths of registers, whole ratios, one pixel, and both ends of the range.
#[test]
fn every_format_and_the_sizes_that_matter() {
    for format in PixelFormat::ALL {
        for (size, dst) in [
            ((1, 1), (3, 2)),
            ((1, 1), (40, 33)),
            ((2, 3), (17, 16)),
            ((31, 5), (31, 5)),
            ((32, 32), (8, 8)),
            ((33, 17), (16, 9)),
            ((63, 64), (15, 31)),
            ((65, 40), (7, 4)),
            ((128, 8), (20, 20)),
            ((129, 130), (50, 64)),
            ((97, 61), (113, 70)),
            ((24, 24), (192, 192)),
            ((720, 90), (45, 32)),
            ((64, 640), (40, 40)),
        ] {
            check(format, size, dst, ColorInfo::default(), 3, Content::Noise(1));
            check(format, size, dst, ColorInfo::default(), 0, Content::Extremes(2));
        }
    }
}

fn color() -> impl Strategy<Value = ColorInfo> {
    (
        prop_oneof![Just(ColorMatrix::Bt601), Just(ColorMatrix::Bt709)],
        prop_oneof![Just(ColorRange::Limited), Just(ColorRange::Full)],
    )
        .prop_map(|(matrix, range)| ColorInfo { matrix, range })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_size_and_scale_from_a_sixteenth_to_eight(
        format in proptest::sample::select(&PixelFormat::ALL[..]), color in color(), padding in 0_usize..40,
        dst in (1_usize..70, 1_usize..50), scale in (1_usize..=128, 1_usize..=128), seed in any::<u32>(), is_extreme in any::<bool>(),
    ) {
        let size = ((dst.0 * scale.0).div_ceil(8).min(600), (dst.1 * scale.1).div_ceil(8).min(400));
        let content = if is_extreme { Content::Extremes(seed) } else { Content::Noise(seed) };
        check(format, size, dst, color, padding, content);
    }
}

/// A region looks like a picture that was cut out byte by byte.
#[test]
fn a_region_is_a_picture() {
    let (size, dst) = ((61, 47), (40, 33));
    for format in PixelFormat::ALL {
        let planes = planes(format, size, 5, Content::Noise(4));
        let whole = picture(format, size, ColorInfo::default(), &planes);
        for region in [
            Region { x: 0, y: 0, width: 61, height: 47 },
            Region { x: 6, y: 4, width: 33, height: 20 },
            Region { x: 60, y: 46, width: 1, height: 1 },
            Region { x: 12, y: 30, width: 49, height: 17 },
        ] {
            let cut: Planes = (0..format.n_planes())
                .map(|plane_idx| {
                    let skipped = format.plane_size(plane_idx, region.x, region.y).expect("a plane");
                    let kept = format.plane_size(plane_idx, region.width, region.height).expect("a plane");
                    let rows = skipped.rows..skipped.rows + kept.rows;
                    (
                        rows.flat_map(|y| whole.row(plane_idx, y)[skipped.row_bytes..][..kept.row_bytes].to_vec()).collect(),
                        kept.row_bytes,
                    )
                })
                .collect();
            let want = reference(&picture(format, (region.width, region.height), ColorInfo::default(), &cut), dst);
            let part = whole.region(region).expect("inside");
            for_each_isa(|kernels| assert!(run(&part, dst, kernels) == want, "{}: {format} {region}", kernels.isa().name()));
        }
        for (x, y, width, height) in [(0, 0, 62, 1), (0, 40, 1, 8), (usize::MAX, 0, 2, 1)] {
            let error = whole.region(Region { x, y, width, height }).expect_err("outside");
            assert!(matches!(error, PictureError::RegionOutside { .. }), "{error}");
        }
        assert!(matches!(whole.region(Region { x: 0, y: 0, width: 0, height: 4 }), Err(PictureError::Size { .. })));
        let odd = |x, y| matches!(whole.region(Region { x, y, width: 4, height: 4 }), Err(PictureError::RegionOdd { .. }));
        assert_eq!(odd(3, 2), format.is_yuv(), "{format}: an odd column");
        assert_eq!(odd(2, 3), matches!(format, PixelFormat::Nv12 | PixelFormat::I420), "{format}: an odd row");
    }
}

/// Where pixel `(x, y)` of a picture of `size` comes to lie when it is turned.
fn turned((x, y): (usize, usize), size: (usize, usize), rotation: Rotation) -> (usize, usize) {
    match rotation {
        Rotation::None => (x, y),
        Rotation::Quarter => (size.1 - 1 - y, x),
        Rotation::Half => (size.0 - 1 - x, size.1 - 1 - y),
        Rotation::ThreeQuarters => (y, size.0 - 1 - x),
    }
}

/// The document's turn: the resized picture, turned pixel by pixel, in the letterbox of the turned picture.
fn reference_turned(picture: &PictureRef<'_>, dst: (usize, usize), rotation: Rotation) -> Vec<u8> {
    let dst_before = rotation.turned(dst);
    let before = reference(picture, dst_before);
    let letterbox_before = Letterbox::new((picture.width, picture.height), dst_before);
    let letterbox = Letterbox::new(rotation.turned((picture.width, picture.height)), dst);
    let size = letterbox_before.resized;
    assert_eq!(letterbox.resized, rotation.turned(size));
    let mut out = vec![114; dst.0 * dst.1 * 3];
    for (x, y) in (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y))) {
        let (to_x, to_y) = turned((x, y), size, rotation);
        let from = 3 * ((letterbox_before.pad.1 + y) * dst_before.0 + letterbox_before.pad.0 + x);
        let to = 3 * ((letterbox.pad.1 + to_y) * dst.0 + letterbox.pad.0 + to_x);
        out[to..to + 3].copy_from_slice(&before[from..from + 3]);
    }
    out
}

fn run_turned(picture: &PictureRef<'_>, dst: (usize, usize), rotation: Rotation, kernels: Kernels) -> Vec<u8> {
    let mut out = vec![7; dst.0 * dst.1 * 3];
    let letterbox = Preprocessor::with_kernels(dst, kernels).turned(rotation).run(picture, &mut out);
    assert_eq!(letterbox, Letterbox::new(rotation.turned((picture.width, picture.height)), dst));
    out
}

/// The picture, sample by sample, as a picture that was turned before. Its sides are even where chroma is halved.
fn turned_copy(picture: &PictureRef<'_>, rotation: Rotation) -> Planes {
    let size = rotation.turned((picture.width, picture.height));
    (0..picture.format.n_planes())
        .map(|plane_idx| {
            let of = |size: (usize, usize)| picture.format.plane_size(plane_idx, size.0, size.1).expect("a plane");
            let (from, to) = (of((picture.width, picture.height)), of(size));
            // Bytes of a sample: all that belongs to one place.
            let bytes = match (picture.format, plane_idx) {
                (PixelFormat::Nv12, 1) => 2,
                (PixelFormat::Rgb, _) => 3,
                (PixelFormat::Rgba | PixelFormat::Bgrx, _) => 4,
                _ => 1,
            };
            let grid = (from.row_bytes / bytes, from.rows);
            let mut data = vec![0; to.row_bytes * to.rows];
            for (x, y) in (0..grid.1).flat_map(|y| (0..grid.0).map(move |x| (x, y))) {
                let (to_x, to_y) = turned((x, y), grid, rotation);
                data[to_y * to.row_bytes + bytes * to_x..][..bytes]
                    .copy_from_slice(&picture.row(plane_idx, y)[bytes * x..][..bytes]);
            }
            (data, to.row_bytes)
        })
        .collect()
}

fn check_turned(picture: &PictureRef<'_>, dst: (usize, usize)) {
    for rotation in Rotation::ALL {
        let want = reference_turned(picture, dst, rotation);
        for_each_isa(|kernels| {
            let got = run_turned(picture, dst, rotation, kernels);
            let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
            let (isa, format, size) = (kernels.isa().name(), picture.format, (picture.width, picture.height));
            assert!(wrong.is_none(), "{isa}: {format} {size:?} to {dst:?}, {rotation:?}: byte {wrong:?}");
        });
    }
}

#[test]
fn a_turned_picture_is_the_picture_turned() {
    for format in PixelFormat::ALL {
        for (size, dst) in [
            ((1, 1), (3, 2)),
            ((31, 5), (5, 31)),
            ((33, 17), (16, 9)),
            ((64, 48), (48, 64)),
            ((97, 61), (113, 70)),
            ((120, 40), (24, 72)),
            ((65, 40), (9, 25)),
        ] {
            let planes = planes(format, size, 3, Content::Noise(5));
            check_turned(&picture(format, size, ColorInfo::default(), &planes), dst);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// A region of a picture, turned.
    #[test]
    fn any_region_turned(
        format in proptest::sample::select(&PixelFormat::ALL[..]), color in color(), size in (2_usize..200, 2_usize..150),
        corner in (0_usize..100, 0_usize..75), dst in (1_usize..90, 1_usize..70), seed in any::<u32>(),
    ) {
        let planes = planes(format, size, 1, Content::Noise(seed));
        let (x, y) = (2 * (corner.0 % size.0.div_ceil(2)), 2 * (corner.1 % size.1.div_ceil(2)));
        let region = Region { x, y, width: size.0 - x, height: size.1 - y };
        check_turned(&picture(format, size, color, &planes).region(region).expect("inside"), dst);
    }

    /// Another way to turn: first the samples, then the plain pass. Weights are rounded elsewhere, so a component may be one off;
    /// the colour matrix makes up to 1.17 + 2.12 of that.
    #[test]
    fn turned_before_or_on_the_way_is_nearly_the_same(
        format in proptest::sample::select(&PixelFormat::ALL[..]), half in (1_usize..100, 1_usize..80), dst in (1_usize..90, 1_usize..70),
        seed in any::<u32>(),
    ) {
        // Turned YUY2 is no YUY2.
        let format = if format == PixelFormat::Yuy2 { PixelFormat::Gray8 } else { format };
        let size = (2 * half.0, 2 * half.1);
        let planes = planes(format, size, 0, Content::Noise(seed));
        let before = picture(format, size, ColorInfo::default(), &planes);
        for rotation in Rotation::ALL {
            let copy = turned_copy(&before, rotation);
            let plain = run(&picture(format, rotation.turned(size), ColorInfo::default(), &copy), dst, Kernels::default());
            let got = run_turned(&before, dst, rotation, Kernels::default());
            let most = got.iter().zip(&plain).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
            prop_assert!(most <= if format.is_yuv() { 4 } else { 1 }, "{format} {size:?} to {dst:?}, {rotation:?}: {most}");
        }
    }
}

/// Large pictures, whose rows are shared; fewer rows than threads among them.
#[test]
fn threads_change_nothing() {
    let size = (1200, 900);
    for format in [PixelFormat::Nv12, PixelFormat::Rgb] {
        let size = if format == PixelFormat::Rgb { size } else { (2 * size.0, size.1) };
        let planes = planes(format, size, 0, Content::Noise(8));
        let picture = picture(format, size, ColorInfo::default(), &planes);
        for (dst, threads) in [((96, 71), 2), ((50, 90), 3), ((40, 3), 5), ((64, 64), 1)] {
            let pool = Pool::shared(threads).expect("threads");
            for rotation in [Rotation::None, Rotation::Quarter, Rotation::Half] {
                let want = run_turned(&picture, dst, rotation, Kernels::default());
                let mut shared = Preprocessor::new(dst).turned(rotation).shared(Arc::clone(&pool));
                for _ in 0..3 {
                    let mut out = vec![7; dst.0 * dst.1 * 3];
                    shared.run(&picture, &mut out);
                    assert!(out == want, "{format} to {dst:?}, {rotation:?}, {threads} threads");
                }
                assert_eq!(shared.n_rebuilds(), 1);
            }
        }
    }
}

#[test]
fn weights_are_computed_once_for_each_change_of_geometry() {
    let mut preprocessor = Preprocessor::new((64, 48));
    let mut out = vec![0; 64 * 48 * 3];
    let mut look = |format, size| {
        let planes = planes(format, size, 0, Content::Noise(3));
        preprocessor.run(&picture(format, size, ColorInfo::default(), &planes), &mut out);
        preprocessor.n_rebuilds()
    };
    let (small, large) = ((80, 60), (160, 120));
    assert_eq!(look(PixelFormat::Nv12, small), 1);
    assert_eq!(look(PixelFormat::Nv12, small), 1);
    assert_eq!(look(PixelFormat::Nv12, large), 2);
    assert_eq!(look(PixelFormat::I420, large), 3);
    assert_eq!(look(PixelFormat::I420, large), 3);
}

/// A frame like the one before takes no memory, on every instruction set.
#[test]
fn nothing_is_allocated_after_the_first_frame() {
    let (size, dst) = ((322, 242), (96, 80));
    for format in PixelFormat::ALL {
        let planes = planes(format, size, 0, Content::Noise(6));
        let picture = picture(format, size, ColorInfo::default(), &planes);
        for_each_isa(|kernels| {
            for rotation in Rotation::ALL {
                let mut preprocessor = Preprocessor::with_kernels(dst, kernels).turned(rotation);
                let mut out = vec![0; dst.0 * dst.1 * 3];
                preprocessor.run(&picture, &mut out);
                let before = N_ALLOCATIONS.get();
                for _ in 0..20 {
                    preprocessor.run(&picture, &mut out);
                }
                assert_eq!(N_ALLOCATIONS.get() - before, 0, "{}: {format}, {rotation:?}", kernels.isa().name());
            }
        });
    }
}

/// The page behind the last byte of every plane, and the one before the first, cannot be read.
#[test]
#[cfg(target_os = "linux")]
fn nothing_outside_of_the_planes_is_read() {
    for format in PixelFormat::ALL {
        for (size, dst) in [((33, 9), (16, 16)), ((641, 35), (96, 64)), ((5, 3), (32, 32)), ((127, 66), (127, 66))] {
            let planes = planes(format, size, 0, Content::Noise(9));
            let mut rooms: Vec<guarded::Guarded> = planes.iter().map(|(data, _)| guarded::Guarded::new(data.len())).collect();
            for is_at_end in [true, false] {
                let mut refs = [PlaneRef::default(); 3];
                for ((plane, room), (data, stride_bytes)) in refs.iter_mut().zip(&mut rooms).zip(&planes) {
                    *plane = PlaneRef { data: room.place(data, is_at_end), stride_bytes: *stride_bytes };
                }
                let guarded = PictureRef::new(format, size.0, size.1, ColorInfo::default(), refs).expect("a picture");
                let plain = picture(format, size, ColorInfo::default(), &planes);
                for_each_isa(|kernels| assert!(run(&guarded, dst, kernels) == run(&plain, dst, kernels), "{format} {size:?}"));
            }
        }
    }
}
