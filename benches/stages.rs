//! Speed of the inner loops and of the stages around the network: ids `op/shape/isa`. Each answer is checked first.
//!
//! `cargo bench --bench stages -- conv` measures what has `conv` in its name.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fovea::frame::{ColorInfo, PictureRef, PixelFormat, PlaneRef, Rotation};
use fovea::kernels::{ConvSpec, Halo, Isa, Kernels, Layout, OpSpec, PackCache, Requantization, Shape, Window};
use fovea::postprocess::{Postprocessor, Rules};
use fovea::preprocess::Preprocessor;
use fovea::quant::QuantParams;
use fovea::retinanet::{
    AnchorConfig, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, PostprocessSpec,
};

fn noise(i: usize) -> u8 {
    let i = u32::try_from(i % (1 << 31)).expect("31 bits");
    i.wrapping_mul(0x9E37_79B9).wrapping_add(i >> 7).wrapping_mul(0x85EB_CA6B).to_le_bytes()[3]
}

/// A convolution of a network that ships or that others are measured on.
struct ConvCase {
    name: &'static str,
    /// Rows, columns, channels.
    input: [usize; 3],
    out_channels: usize,
    /// Side of the window.
    side: usize,
    stride: usize,
    is_depthwise: bool,
}

const fn conv(name: &'static str, input: [usize; 3], out_channels: usize, side: usize, stride: usize) -> ConvCase {
    ConvCase { name, input, out_channels, side, stride, is_depthwise: false }
}

const CONVS: [ConvCase; 12] = [
    conv("256x416x3-24k3s2", [256, 416, 3], 24, 3, 2),
    conv("32x52x58-58k1", [32, 52, 58], 58, 1, 1),
    conv("40x40x64-64k1", [40, 40, 64], 64, 1, 1),
    conv("40x40x256-256k1", [40, 40, 256], 256, 1, 1),
    conv("80x80x32-32k3", [80, 80, 32], 32, 3, 1),
    conv("32x52x64-64k3", [32, 52, 64], 64, 3, 1),
    conv("20x20x128-128k3", [20, 20, 128], 128, 3, 1),
    conv("16x16x256-256k3", [16, 16, 256], 256, 3, 1),
    conv("32x52x64-27k3", [32, 52, 64], 27, 3, 1),
    conv("8x13x464-64k1", [8, 13, 464], 64, 1, 1),
    ConvCase { is_depthwise: true, ..conv("32x52x58-58dw3", [32, 52, 58], 58, 3, 1) },
    ConvCase { is_depthwise: true, ..conv("64x104x24-24dw3s2", [64, 104, 24], 24, 3, 2) },
];

/// Every convolution on every instruction set that is there; throughput is in multiplications.
fn convolutions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for case in CONVS {
        let mut want: Option<Vec<u8>> = None;
        for kernels in Isa::available().into_iter().filter_map(Kernels::new) {
            let ConvCase { name, input: [h, w, c], out_channels, side, stride, is_depthwise } = case;
            let window = Window { kernel: (side, side), stride: (stride, stride), dilation: (1, 1), pads: [side / 2; 4] };
            let per_in = if is_depthwise { 1 } else { c };
            let weights: std::sync::Arc<[i8]> =
                (0..out_channels * per_in * side * side).map(|i| noise(i + 99).cast_signed().max(-127)).collect();
            let spec = ConvSpec {
                window,
                groups: if is_depthwise { c } else { 1 },
                weights,
                bias: (0..out_channels).map(|o| i32::from(noise(o)) * 16).collect(),
                input_zero_point: 3,
                requant: Requantization { multipliers: vec![1e-4; out_channels], zero_point: 128, lo: 0, hi: 255 },
            };
            let shape = Shape { h, w, c };
            let halo = window.halo(shape);
            let input = if c == 3 { Layout::picture(shape, halo) } else { Layout::padded(shape, halo) };
            let (rows, columns) = window.output(h, w).expect("it fits");
            let output = Layout::padded(Shape { h: rows, w: columns, c: out_channels }, Halo::default());
            let mut values: Vec<u8> = (0..input.len()).map(noise).collect();
            input.fill_ends(&mut values, 3);
            input.fill_sides(&mut values[input.body()], 3);
            let macs = rows * columns * spec.weights.len();
            let kernel = kernels.prepare(&OpSpec::Conv(spec), &[input], output, &mut PackCache::default());
            let mut out = vec![0; output.len()];
            kernel.rows(&[&values], 0, &mut out);
            let dense: Vec<u8> =
                (0..rows * columns).flat_map(|i| output.pixel(&out, i / columns, i % columns).to_vec()).collect();
            assert!(want.get_or_insert(dense.clone()) == &dense, "{name}: {} differs from the scalar kernels", kernel.label());
            group.throughput(Throughput::Elements(macs.try_into().expect("64 bits")));
            group.bench_function(BenchmarkId::new(name, kernels.isa().name()), |bencher| {
                bencher.iter(|| kernel.rows(&[&values], 0, &mut out));
            });
        }
    }
    group.finish();
}

/// Every instruction set that is there; throughput is in bytes of the picture.
fn preprocessing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("preprocess");
    for (format, width, height, dst) in [
        (PixelFormat::I420, 768, 576, (576, 352)),
        (PixelFormat::Nv12, 1280, 720, (320, 320)),
        (PixelFormat::Nv12, 1920, 1080, (320, 320)),
        (PixelFormat::Nv12, 1280, 720, (576, 352)),
        (PixelFormat::Nv12, 1920, 1080, (576, 352)),
        (PixelFormat::Yuy2, 640, 480, (416, 256)),
        (PixelFormat::Rgb, 1920, 1080, (416, 256)),
    ] {
        let planes: Vec<(Vec<u8>, usize)> = (0..format.n_planes())
            .filter_map(|idx| format.plane_size(idx, width, height))
            .map(|size| ((0..size.row_bytes * size.rows).map(|i| 96 + noise(i) / 4).collect(), size.row_bytes))
            .collect();
        let mut refs = [PlaneRef::default(); 3];
        for (plane, (data, stride_bytes)) in refs.iter_mut().zip(&planes) {
            *plane = PlaneRef { data, stride_bytes: *stride_bytes };
        }
        let picture = PictureRef::new(format, width, height, ColorInfo::default(), refs).expect("a picture");
        let bytes: usize = planes.iter().map(|(data, _)| data.len()).sum();
        group.throughput(Throughput::Bytes(bytes.try_into().expect("64 bits")));
        let mut want: Option<Vec<u8>> = None;
        for kernels in Isa::available().into_iter().filter_map(Kernels::new) {
            let isa = kernels.isa().name();
            let mut preprocessor = Preprocessor::with_kernels(dst, kernels);
            let mut out = vec![0; dst.0 * dst.1 * 3];
            preprocessor.run(&picture, &mut out);
            assert!(want.get_or_insert(out.clone()) == &out, "{format} {width}x{height}: {isa} differs from the plain loops");
            let mean = out.iter().map(|&value| usize::from(value)).sum::<usize>() / out.len();
            assert!((100..160).contains(&mean), "{format}: a grey picture has mean {mean}");
            let name = format!("{format}-{width}x{height}-{}x{}", dst.0, dst.1);
            group.bench_function(BenchmarkId::new(&name, isa), |bencher| {
                bencher.iter(|| preprocessor.run(&picture, &mut out));
            });
            // The same pixels, since sides are exchanged: what a quarter turn costs.
            let mut turned = Preprocessor::with_kernels((dst.1, dst.0), kernels).turned(Rotation::Quarter);
            group.bench_function(BenchmarkId::new(format!("{name}-turned"), isa), |bencher| {
                bencher.iter(|| turned.run(&picture, &mut out));
            });
        }
    }
    group.finish();
}

/// Heads of one size, and how many candidates there are.
struct PostCase {
    name: &'static str,
    input: (usize, usize),
    n_classes: usize,
    /// One candidate in so many logits.
    every: usize,
}

const fn post(name: &'static str, side: usize, n_classes: usize, every: usize) -> PostCase {
    PostCase { name, input: (side, side), n_classes, every }
}

/// A quiet street, a crowd; many classes with the usual number of candidates (2000), and with thousands on every level.
const POSTS: [PostCase; 6] = [
    PostCase { name: "416x256k10-quiet", input: (416, 256), n_classes: 10, every: 20_000 },
    PostCase { name: "416x256k10-crowd", input: (416, 256), n_classes: 10, every: 400 },
    post("320k3", 320, 3, 192),
    post("320k3-dense", 320, 3, 4),
    post("640k80", 640, 80, 3069),
    post("640k80-dense", 640, 80, 250),
];

/// Threshold, decoding and suppression on every instruction set that is there.
fn postprocessing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("postprocess");
    let strides = [8, 16, 32, 64, 128];
    for PostCase { name, input: (width, height), n_classes, every } in POSTS {
        let manifest = Manifest {
            schema: 1,
            name: "bench".into(),
            network: NetworkSpec { file: "model.onnx".into(), sha256: None },
            input: InputSpec { name: "images".into(), width, height, preprocess: 1, mean: [0.0; 3], std: [255.0; 3] },
            anchors: AnchorConfig::octaves(2.0, &strides, 3),
            levels: strides
                .map(|stride| LevelSpec { stride, cls: format!("cls_{stride}"), bbox: format!("box_{stride}") })
                .to_vec(),
            postprocess: PostprocessSpec::default(),
            classes: (0..n_classes).map(|class| format!("class {class}")).collect(),
        };
        let (cls, bbox) = (QuantParams { scale: 0.06, zero_point: 200 }, QuantParams { scale: 0.02, zero_point: 128 });
        let of_grid = |(w, h): &(usize, usize)| -> (Vec<u8>, Vec<u8>) {
            let logit = |i: usize| if i % every == every / 2 { 190 + noise(i) / 8 } else { noise(i) / 2 };
            ((0..w * h * 9 * n_classes).map(logit).collect(), (0..w * h * 36).map(|i| 108 + noise(i) / 6).collect())
        };
        let values: Vec<(Vec<u8>, Vec<u8>)> = manifest.grids().iter().map(of_grid).collect();
        let levels = values.iter().zip(manifest.grids()).map(|((logits, deltas), grid)| LevelHeads {
            grid,
            cls_logits: HeadData::Quantized(logits, cls),
            bbox_deltas: HeadData::Quantized(deltas, bbox),
        });
        let heads = HeadOutputs { levels: levels.collect() };
        let n_planted: usize = values.iter().map(|(logits, _)| logits.len() / every).sum();
        group.throughput(Throughput::Bytes(
            values.iter().map(|(logits, _)| logits.len()).sum::<usize>().try_into().expect("64 bits"),
        ));
        let mut want = None;
        for kernels in Isa::available().into_iter().filter_map(Kernels::new) {
            let mut postprocessor = Postprocessor::with_rules(&manifest, Rules::new(&manifest), kernels);
            let mut found = Vec::new();
            postprocessor.run(&heads, &mut found);
            assert!(!found.is_empty() && found.len() <= n_planted.min(100) + 5, "{} found, {n_planted} planted", found.len());
            assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "best first");
            assert!(*want.get_or_insert_with(|| found.clone()) == found, "{name}: {} differs", kernels.isa().name());
            group.bench_function(BenchmarkId::new(name, kernels.isa().name()), |bencher| {
                bencher.iter(|| postprocessor.run(&heads, &mut found));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, convolutions, preprocessing, postprocessing);
criterion_main!(benches);
