//! Speed of the inner loops and of the stages around the network: ids `op/shape/isa`. Each answer is checked first.
//!
//! `cargo bench --bench stages -- conv` measures what has `conv` in its name.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fovea::frame::{ColorInfo, PictureRef, PixelFormat, PlaneRef};
use fovea::kernels::scalar::{PackedConv, PackedDepthwise, qu8_qc8w_conv_row, qu8_qc8w_depthwise_row};
use fovea::kernels::{Requantization, Shape, Window};
use fovea::postprocess::Postprocessor;
use fovea::preprocess::Preprocessor;
use fovea::quant::{QuantParams, requantize};
use fovea::retinanet::{
    AnchorConfig, HeadData, HeadOutputs, InputSpec, LevelHeads, LevelSpec, Manifest, NetworkSpec, PostprocessSpec,
};

const ISA: &str = "scalar";

fn noise(i: usize) -> u8 {
    let i = u32::try_from(i % (1 << 31)).expect("31 bits");
    i.wrapping_mul(0x9E37_79B9).wrapping_add(i >> 7).wrapping_mul(0x85EB_CA6B).to_le_bytes()[3]
}

/// A convolution of a network for 416x256.
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

const CONVS: [ConvCase; 6] = [
    conv("256x416x3-24k3s2", [256, 416, 3], 24, 3, 2),
    conv("32x52x58-58k1", [32, 52, 58], 58, 1, 1),
    conv("32x52x64-64k3", [32, 52, 64], 64, 3, 1),
    conv("8x13x464-64k1", [8, 13, 464], 64, 1, 1),
    ConvCase { is_depthwise: true, ..conv("32x52x58-58dw3", [32, 52, 58], 58, 3, 1) },
    ConvCase { is_depthwise: true, ..conv("64x104x24-24dw3s2", [64, 104, 24], 24, 3, 2) },
];

fn convolutions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for ConvCase { name, input: [h, w, c], out_channels, side, stride, is_depthwise } in CONVS {
        let shape = Shape { h, w, c };
        let window = Window { kernel: (side, side), stride: (stride, stride), dilation: (1, 1), pads: [side / 2; 4] };
        let per_in = if is_depthwise { 1 } else { c };
        let input: Vec<u8> = (0..shape.len()).map(noise).collect();
        let weights: Vec<i8> = (0..out_channels * per_in * side * side).map(|i| noise(i + 99).cast_signed().max(-127)).collect();
        let bias: Vec<i32> = (0..out_channels).map(|o| i32::from(noise(o)) * 16).collect();
        let requant = Requantization { multipliers: vec![1e-4; out_channels], zero_point: 128, lo: 0, hi: 255 };
        let (rows, columns) = window.output(h, w).expect("it fits");
        let mut out = vec![0; rows * columns * out_channels];
        let row_len = columns * out_channels;
        let dense = (!is_depthwise).then(|| PackedConv::new(&weights, &bias, 1, c, side * side));
        let depthwise = is_depthwise.then(|| PackedDepthwise::new(&weights, &bias, side * side));
        let run = |out: &mut [u8]| {
            for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
                match (&dense, &depthwise) {
                    (Some(packed), _) => qu8_qc8w_conv_row(&input, shape, 3, &window, packed, &requant, y, out),
                    (_, Some(packed)) => qu8_qc8w_depthwise_row(&input, shape, 3, &window, packed, &requant, y, out),
                    _ => {}
                }
            }
        };
        run(&mut out);
        let (y, x, o) = (rows / 2, columns / 3, out_channels - 1);
        let taps = (0..side).flat_map(|ky| (0..side).map(move |kx| (ky, kx)));
        let inside = taps.filter_map(|(ky, kx)| Some((ky, kx, window.input_row(y, ky, h)?, window.input_col(x, kx, w)?)));
        let sum: i32 = inside
            .flat_map(|(ky, kx, row, column)| (0..per_in).map(move |i| (ky, kx, row, column, i)))
            .map(|(ky, kx, row, column, i)| {
                let channel = if is_depthwise { o } else { i };
                let value = i32::from(input[(row * w + column) * c + channel]) - 3;
                value * i32::from(weights[((o * per_in + i) * side + ky) * side + kx])
            })
            .sum();
        assert_eq!(out[(y * columns + x) * out_channels + o], requantize(sum + bias[o], 1e-4, 128, 0, 255), "{name}");
        let macs = rows * columns * weights.len();
        group.throughput(Throughput::Elements(macs.try_into().expect("64 bits")));
        group.bench_function(BenchmarkId::new(name, ISA), |bencher| bencher.iter(|| run(&mut out)));
    }
    group.finish();
}

fn preprocessing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("preprocess");
    let dst = (416, 256);
    for (format, width, height) in [
        (PixelFormat::Nv12, 1920, 1080),
        (PixelFormat::I420, 1280, 720),
        (PixelFormat::I420, 768, 576),
        (PixelFormat::Yuy2, 640, 480),
        (PixelFormat::Rgb, 1920, 1080),
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
        let mut preprocessor = Preprocessor::new(dst);
        let mut out = vec![0; dst.0 * dst.1 * 3];
        let letterbox = preprocessor.run(&picture, &mut out);
        let corner = out[..3].iter().all(|&value| value == 114);
        assert_eq!(corner, letterbox.pad.0 > 0 || letterbox.pad.1 > 0, "padding where there is room");
        let mean = out.iter().map(|&value| usize::from(value)).sum::<usize>() / out.len();
        assert!((100..160).contains(&mean), "{format}: a grey picture has mean {mean}");
        group.bench_function(BenchmarkId::new(format!("{format}-{width}x{height}"), ISA), |bencher| {
            bencher.iter(|| preprocessor.run(&picture, &mut out));
        });
    }
    group.finish();
}

fn postprocessing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("postprocess");
    let strides = [8, 16, 32, 64, 128];
    let manifest = Manifest {
        schema: 1,
        name: "bench".into(),
        network: NetworkSpec { file: "model.onnx".into(), sha256: None },
        input: InputSpec { name: "images".into(), width: 416, height: 256, preprocess: 1, mean: [0.0; 3], std: [255.0; 3] },
        anchors: AnchorConfig::octaves(2.0, &strides, 3),
        levels: strides.map(|stride| LevelSpec { stride, cls: format!("cls_{stride}"), bbox: format!("box_{stride}") }).to_vec(),
        postprocess: PostprocessSpec::default(),
        classes: (0..10).map(|class| format!("class {class}")).collect(),
    };
    let (cls, bbox) = (QuantParams { scale: 0.06, zero_point: 200 }, QuantParams { scale: 0.02, zero_point: 128 });
    // One candidate in so many values: a quiet street, a crowd.
    for (name, every) in [("quiet", 20_000), ("crowd", 400)] {
        let values: Vec<(Vec<u8>, Vec<u8>)> = manifest
            .grids()
            .iter()
            .map(|(w, h)| {
                let logit = |i: usize| if i % every == every / 2 { 190 + noise(i) / 8 } else { noise(i) / 2 };
                ((0..w * h * 90).map(logit).collect(), (0..w * h * 36).map(|i| 108 + noise(i) / 6).collect())
            })
            .collect();
        let levels = values.iter().zip(manifest.grids()).map(|((logits, deltas), grid)| LevelHeads {
            grid,
            cls_logits: HeadData::Quantized(logits, cls),
            bbox_deltas: HeadData::Quantized(deltas, bbox),
        });
        let heads = HeadOutputs { levels: levels.collect() };
        let mut postprocessor = Postprocessor::new(&manifest);
        let mut found = Vec::new();
        postprocessor.run(&heads, &mut found);
        let n_planted: usize = values.iter().map(|(logits, _)| logits.len() / every).sum();
        assert!(!found.is_empty() && found.len() <= n_planted.min(100) + 5, "{} found, {n_planted} planted", found.len());
        assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "best first");
        group.bench_function(BenchmarkId::new(format!("416x256-{name}"), ISA), |bencher| {
            bencher.iter(|| postprocessor.run(&heads, &mut found));
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions, preprocessing, postprocessing);
criterion_main!(benches);
