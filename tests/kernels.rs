//! Kernels of every instruction set against references written here from the definitions of ONNX, in 64-bit integers.
//!
//! Each check runs on every instruction set that this CPU has and says which it skipped; `FOVEA_REQUIRE_ISA=a,b` makes a skip of
//! those a failure. Buffers are exactly as long as their layouts, with pages around them that must not be touched, and what lies
//! between the values is noise.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "pages that must not be touched: see the safety comments"))]

#[cfg(target_os = "linux")]
mod guarded;

use fovea::kernels::{
    AddTerm, ConvSpec, Halo, Isa, Kernels, Layout, OpSpec, PackCache, Place, PlacedKernel, Pool, Region, Requantization, Shape,
    Window,
};
use fovea::quant::{QuantParams, requantize, requantize_add};
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

#[test]
fn instruction_sets_that_are_skipped_are_named() {
    for &isa in Isa::ALL {
        match Kernels::new(isa) {
            Some(kernels) => eprintln!("checked: {}", kernels.isa().name()),
            None => eprintln!("skipped: {}: this CPU or this build does not have it", isa.name()),
        }
    }
    for_each_isa(|kernels| assert!(Isa::available().contains(&kernels.isa())));
}

#[test]
fn layouts_that_contradict_the_operator_are_refused() {
    let layout = |h, w, c| Layout::padded(Shape { h, w, c }, Halo::default());
    let term = AddTerm { zero_point: 0, ratio: 1.0, is_doubled: false };
    let sum = OpSpec::Add { terms: [term, AddTerm { is_doubled: true, ..term }], zero_point: 0, lo: 0, hi: 255 };
    let window = Window { kernel: (2, 2), stride: (2, 2), dilation: (1, 1), pads: [0; 4] };
    let requant = Requantization { multipliers: vec![1.0; 16], zero_point: 0, lo: 0, hi: 255 };
    let weights = vec![1; 16 * 8 * 4].into();
    let conv = OpSpec::Conv(ConvSpec { window, groups: 1, weights, bias: vec![0; 16], input_zero_point: 0, requant });
    let small = layout(4, 6, 16);
    let cases: [(&OpSpec, &[Layout], Layout, bool); 10] = [
        (&sum, &[small, layout(2, 3, 16)], small, true),
        (&sum, &[small, small], small, false),
        (&sum, &[small, layout(2, 3, 16)], layout(100, 100, 16), false),
        (&conv, &[layout(8, 12, 8)], small, true),
        (&conv, &[layout(6, 12, 8)], small, false),
        (&conv, &[layout(8, 12, 4)], small, false),
        (&OpSpec::Slice { first: 8 }, &[small], layout(4, 6, 8), true),
        (&OpSpec::Slice { first: 9 }, &[small], layout(4, 6, 8), false),
        (&OpSpec::MaxPool(window), &[layout(8, 12, 16)], layout(5, 6, 16), false),
        (&OpSpec::Concat(vec![None, None]), &[small], small, false),
    ];
    for (op, inputs, output, want) in cases {
        assert_eq!(op.fits(inputs, output), want, "{} of {inputs:?} into {output:?}", op.name());
    }
    let result = std::panic::catch_unwind(|| {
        let _ = Kernels::best().prepare(&sum, &[small, small], layout(100, 100, 16), &mut PackCache::default());
    });
    assert!(result.is_err());
}

/// Bytes that depend on `seed` and place only.
fn noise(seed: u32, i: usize) -> u8 {
    let i = u32::try_from(i).expect("small");
    let mixed = (seed ^ i.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B);
    (mixed ^ (mixed >> 15)).wrapping_mul(0xC2B2_AE35).to_le_bytes()[3]
}

/// An activation in a buffer: values, and noise between them; the halo holds the zero point.
fn buffer(layout: &Layout, zero_point: u8, seed: u32, value: impl Fn(usize, usize, usize) -> u8) -> Box<[u8]> {
    let mut bytes: Box<[u8]> = (0..layout.len()).map(|i| noise(seed ^ 0xA5A5, i)).collect();
    layout.fill_ends(&mut bytes, zero_point);
    layout.fill_sides(&mut bytes[layout.body()], zero_point);
    for y in 0..layout.shape.h {
        for x in 0..layout.shape.w {
            for c in 0..layout.shape.c {
                bytes[layout.offset(y, x) + c] = value(y, x, c);
            }
        }
    }
    bytes
}

/// Runs an operator in pieces of rows, and gives its values without gaps. The halo of the output has to stay as it was.
fn run(kernels: Kernels, op: &OpSpec, inputs: &[(&[u8], Layout)], output: Layout) -> Vec<u8> {
    let layouts: Vec<Layout> = inputs.iter().map(|(_, layout)| *layout).collect();
    let kernel = kernels.prepare(op, &layouts, output, &mut PackCache::default());
    let ee = vec![0xEE; output.len()];
    #[cfg(target_os = "linux")]
    let mut rooms: Vec<guarded::Guarded> = inputs.iter().map(|(bytes, _)| guarded::Guarded::new(bytes.len())).collect();
    #[cfg(target_os = "linux")]
    let buffers: Vec<&[u8]> = rooms.iter_mut().zip(inputs).map(|(room, (bytes, _))| &*room.place(bytes, true)).collect();
    #[cfg(target_os = "linux")]
    let mut out_room = guarded::Guarded::new(ee.len());
    #[cfg(target_os = "linux")]
    let out = out_room.place(&ee, true);
    #[cfg(not(target_os = "linux"))]
    let (buffers, mut ee): (Vec<&[u8]>, _) = (inputs.iter().map(|(bytes, _)| *bytes).collect(), ee);
    #[cfg(not(target_os = "linux"))]
    let out = &mut *ee;
    let body = &mut out[output.body()];
    let (first, second) = body.split_at_mut(output.shape.h / 3 * output.row_stride());
    kernel.rows(&buffers, output.shape.h / 3, second);
    kernel.rows(&buffers, 0, first);
    let mut dense = Vec::new();
    for y in 0..output.shape.h {
        for x in 0..output.shape.w {
            dense.extend_from_slice(output.pixel(out, y, x));
        }
    }
    for y in 0..output.shape.h {
        let row = &out[output.row_offset(y)..][..output.row_stride()];
        let (left, right) = (output.halo.left * output.pixel_stride, output.halo.right * output.pixel_stride);
        let sides = row[..left].iter().chain(&row[row.len() - right..]);
        assert!(sides.copied().all(|byte| byte == 0xEE), "{} writes into the halo", kernel.label());
    }
    dense
}

/// A convolution, its input's shape and where noise comes from.
#[derive(Debug, Clone)]
struct Layer {
    shape: Shape,
    spec: ConvSpec,
    seed: u32,
    out_halo: Halo,
    is_picture: bool,
}

impl Layer {
    fn value(&self, y: usize, x: usize, c: usize) -> u8 {
        let n = (y * self.shape.w + x) * self.shape.c + c;
        match noise(self.seed, n) % 8 {
            0 => 0,
            1 => 255,
            _ => noise(self.seed ^ 0x77, n),
        }
    }

    fn rows_and_columns(&self) -> (usize, usize) {
        self.spec.window.output(self.shape.h, self.shape.w).expect("the window fits")
    }
}

/// `sum (x - zp) w` over the window, padding being zero, in 64 bits.
fn conv_reference(layer: &Layer) -> Vec<u8> {
    let Layer { shape, spec, .. } = layer;
    let (window, requant) = (&spec.window, &spec.requant);
    let (rows, columns) = layer.rows_and_columns();
    let (per_in, per_out) = (spec.in_per_group(), spec.out_channels() / spec.groups);
    let signed = |n: usize| i64::try_from(n).expect("small");
    let mut out = Vec::new();
    for y in 0..rows {
        for x in 0..columns {
            for o in 0..spec.out_channels() {
                let mut sum = i64::from(spec.bias[o]);
                for (ky, kx) in (0..window.kernel.0).flat_map(|ky| (0..window.kernel.1).map(move |kx| (ky, kx))) {
                    let row = signed(y * window.stride.0 + ky * window.dilation.0) - signed(window.pads[0]);
                    let column = signed(x * window.stride.1 + kx * window.dilation.1) - signed(window.pads[1]);
                    if row < 0 || row >= signed(shape.h) || column < 0 || column >= signed(shape.w) {
                        continue;
                    }
                    let (row, column) = (usize::try_from(row).expect("inside"), usize::try_from(column).expect("inside"));
                    for i in 0..per_in {
                        let value = layer.value(row, column, o / per_out * per_in + i);
                        let weight = spec.weights[((o * per_in + i) * window.kernel.0 + ky) * window.kernel.1 + kx];
                        sum += (i64::from(value) - i64::from(spec.input_zero_point)) * i64::from(weight);
                    }
                }
                let acc = i32::try_from(sum).expect("the loader refuses sums beyond 32 bits");
                out.push(requantize(acc, requant.multipliers[o], requant.zero_point, requant.lo, requant.hi));
            }
        }
    }
    out
}

fn conv_on(kernels: Kernels, layer: &Layer) -> Vec<u8> {
    let Layer { shape, spec, seed, out_halo, is_picture } = layer;
    let (h, w) = layer.rows_and_columns();
    // As in an arena, where others may read the same values with larger windows.
    let wider = |salt: usize| usize::from(noise(*seed, salt)) % 3;
    let need = spec.window.halo(*shape);
    let halo =
        Halo { top: need.top + wider(21), left: need.left + wider(22), bottom: need.bottom, right: need.right + wider(23) };
    let input = if *is_picture { Layout::picture(*shape, halo) } else { Layout::padded(*shape, halo) };
    let output = Layout::padded(Shape { h, w, c: spec.out_channels() }, *out_halo);
    let bytes = buffer(&input, spec.input_zero_point, *seed, |y, x, c| layer.value(y, x, c));
    run(kernels, &OpSpec::Conv(spec.clone()), &[(&bytes, input)], output)
}

fn conv_agrees(layer: &Layer) {
    let want = conv_reference(layer);
    for_each_isa(|kernels| {
        let got = conv_on(kernels, layer);
        let differ = got.iter().zip(&want).filter(|(got, want)| got != want).count();
        assert!(got.len() == want.len() && differ == 0, "{}: {differ} of {} differ: {layer:?}", kernels.isa().name(), want.len());
    });
}

/// A layer from its sizes; weights, biases and multipliers from `seed`. `extreme`: every weight 127 or -127.
fn layer(shape: Shape, window: Window, (groups, out_channels): (usize, usize), seed: u32, extreme: bool) -> Layer {
    let per_in = shape.c / groups;
    let n = out_channels * per_in * window.n_taps();
    // Of the whole range, of half of it, of a quarter: few, most and all pairs of products of bytes stay within 16 bits.
    let divisor = [1, 2, 4][usize::from(noise(seed, 11)) % 3];
    let weight = |i: usize| match noise(seed ^ 0x1234, i).cast_signed() {
        w if extreme => {
            if w < 0 {
                -127
            } else {
                127
            }
        }
        w => w.max(-127) / divisor,
    };
    let weights: Arc<[i8]> = (0..n).map(weight).collect();
    let byte = |salt: u32| noise(seed ^ salt, 7);
    let input_zero_point = [0, 255, 128, byte(1), 0][usize::from(byte(2)) % 5];
    // Accumulators of about 1000 steps become some tens of steps of the output.
    let reach = 40.0 * (per_in as f32 * window.n_taps() as f32).sqrt();
    let (lo, hi) = [(0, 255), (0, 255), (40, 200)][usize::from(byte(3)) % 3];
    let requant = Requantization {
        multipliers: (0..out_channels).map(|o| (0.1 + f32::from(noise(seed ^ 5, o)) / 100.0) / reach).collect(),
        zero_point: [0, 255, byte(4)][usize::from(byte(5)) % 3],
        lo,
        hi,
    };
    // Now and then so large that they decide all.
    let unit = if noise(seed, 12).is_multiple_of(8) { 5_000_000 } else { 97 };
    let bias = (0..out_channels).map(|o| (i32::from(noise(seed ^ 6, o)) - 128) * unit).collect();
    let spec = ConvSpec { window, groups, weights, bias, input_zero_point, requant };
    let out_halo = Halo { top: 1, left: usize::from(byte(8)) % 3, bottom: 0, right: usize::from(byte(9)) % 2 };
    Layer { shape, spec, seed, out_halo, is_picture: shape.c <= 4 && byte(10) % 2 == 0 }
}

fn window(side: (usize, usize), stride: (usize, usize), dilation: (usize, usize), pads: [usize; 4]) -> Window {
    Window { kernel: side, stride, dilation, pads }
}

const fn shape(h: usize, w: usize, c: usize) -> Shape {
    Shape { h, w, c }
}

/// Sizes on both sides of every block of a kernel: channels, quads, pixels of a tile.
#[test]
fn convolutions_at_the_edges_of_tiles() {
    let k3 = window((3, 3), (1, 1), (1, 1), [1; 4]);
    let k1 = window((1, 1), (1, 1), (1, 1), [0; 4]);
    for (idx, c) in [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 257].into_iter().enumerate() {
        let seed = u32::try_from(idx).expect("small");
        conv_agrees(&layer(shape(3, 5, c), k1, (1, c), seed, false));
        conv_agrees(&layer(shape(2, 3, 8), k1, (1, c), seed + 100, false));
        conv_agrees(&layer(shape(4, 7, c.min(65)), k3, (1, 17), seed + 200, true));
        conv_agrees(&layer(shape(5, 9, c), k3, (c, c), seed + 300, true));
    }
    for w in 1..=20 {
        conv_agrees(&layer(shape(2, w, 7), k3, (1, 64), u32::try_from(w).expect("small"), false));
        conv_agrees(&layer(shape(3, w, 40), k3, (40, 40), u32::try_from(w).expect("small"), false));
        conv_agrees(&layer(shape(1 + w % 7, w, 18), k3, (1, 33), u32::try_from(w).expect("small"), w % 2 == 0));
    }
    conv_agrees(&layer(shape(67, 66, 3), window((3, 3), (2, 2), (1, 1), [1; 4]), (1, 24), 9, true));
    conv_agrees(&layer(shape(13, 67, 64), window((3, 3), (2, 2), (1, 1), [0, 0, 1, 1]), (1, 80), 10, true));
    conv_agrees(&layer(shape(9, 9, 12), window((7, 7), (2, 2), (1, 1), [3; 4]), (1, 64), 11, true));
    conv_agrees(&layer(shape(11, 12, 96), window((5, 5), (1, 1), (1, 1), [2; 4]), (96, 96), 12, true));
    conv_agrees(&layer(shape(11, 12, 128), k3, (32, 128), 13, true));
    conv_agrees(&layer(shape(6, 5, 130), k3, (2, 66), 14, false));
}

/// Kernels that add pairs of products in 16 bits may do so only where no input saturates: pairs of weights on both sides of that.
#[test]
fn convolutions_with_pairs_of_weights_at_the_limit_of_16_bits() {
    let pairs: [[i8; 2]; 13] = [
        [-64, -64],
        [127, 1],
        [-127, -1],
        [1, -1],
        [127, -127],
        [0, 0],
        [3, -128],
        [64, 64],
        [-65, -64],
        [64, 65],
        [-64, -64],
        [127, 127],
        [-128, -128],
    ];
    let k3 = window((3, 3), (1, 1), (1, 1), [1; 4]);
    // Only pairs that fit, all of them, those that leave the range by the least: below, on both sides, above.
    for (n, range) in [0..8, 0..13, 7..9, 8..10, 9..11].into_iter().enumerate() {
        for (groups, out) in [(1, 9), (1, 40), (8, 8), (40, 40)] {
            let seed = u32::try_from(n).expect("small");
            let channels = if groups > 8 { 40 } else { 8 };
            let mut layer = layer(shape(4, 7, channels), k3, (groups, out), seed, false);
            let taps = k3.n_taps();
            let per_channel = channels / groups * taps;
            // Neighbours are channels, or taps where each channel is a group of its own.
            let weight = |i: usize| {
                let (o, channel, tap) = (i / per_channel, i % per_channel / taps, i % taps);
                let (pair, side) = if groups == 1 { (tap * 64 + channel / 2, channel % 2) } else { (tap / 2, tap % 2) };
                pairs[range.start + usize::from(noise(seed, o * 1024 + pair)) % range.len()][side]
            };
            layer.spec.weights = (0..layer.spec.weights.len()).map(weight).collect();
            layer.spec.input_zero_point = 0;
            conv_agrees(&layer);
        }
    }
}

/// The largest sums that the loader lets pass: 4096 channels under nine taps.
#[test]
fn convolutions_near_the_limit_of_their_accumulators() {
    for sign in [127_i8, -127] {
        let mut layer = layer(shape(3, 3, 4096), window((3, 3), (1, 1), (1, 1), [1; 4]), (1, 5), 3, false);
        layer.spec.weights = vec![sign; layer.spec.weights.len()].into();
        layer.spec.input_zero_point = 0;
        layer.spec.requant.multipliers = vec![1e-7, 1e-6, 1e-5, 1.0, f32::MAX];
        conv_agrees(&layer);
        // Below and above what leaves room for 64 times the sum.
        for channels in [112, 120, 230, 1024] {
            let mut layer = self::layer(shape(4, 4, channels), window((3, 3), (1, 1), (1, 1), [1; 4]), (1, 16), 3, false);
            layer.spec.weights = vec![sign; layer.spec.weights.len()].into();
            layer.spec.input_zero_point = 255;
            layer.spec.requant.multipliers = (0..16).map(|o| 1e-7 * f32::from(1_u16 << o)).collect();
            conv_agrees(&layer);
        }
    }
}

/// -128 is not what quantisers write, but it is a weight, and twice its product with -128 does not fit 16 bits.
#[test]
fn convolutions_with_the_lowest_weight() {
    let (k1, k3) = (window((1, 1), (1, 1), (1, 1), [0; 4]), window((3, 3), (1, 1), (1, 1), [1; 4]));
    for (window, groups, seed) in [(k1, 1, 1), (k3, 1, 2), (k3, 40, 3), (k1, 1, 4)] {
        let mut layer = layer(shape(4, 8, 40), window, (groups, 40), seed, true);
        let lowest = |w: i8| if w < 0 || seed < 4 { i8::MIN } else { 127 };
        layer.spec.weights = layer.spec.weights.iter().map(|&w| lowest(w)).collect();
        conv_agrees(&layer);
    }
}

/// Sizes first, then all the rest from a seed.
fn layers(depthwise: bool) -> impl Strategy<Value = Layer> {
    let channels = prop_oneof![3 => 1_usize..24, 1 => 24_usize..140];
    let groups = prop_oneof![4 => Just(1_usize), 1 => 2_usize..4];
    let sizes = (
        (1_usize..9, 1_usize..20),
        (channels, groups, 1_usize..70),
        (1_usize..6, 1_usize..6),
        (1_usize..4, 1_usize..4),
        (1_usize..3, 1_usize..3),
        [0_usize..4, 0..4, 0..4, 0..4],
        (any::<u32>(), any::<bool>()),
    );
    sizes.prop_filter_map(
        "the window fits",
        move |((h, w), (c, groups, per_out), kernel, stride, dilation, pads, (seed, extreme))| {
            let window = window(kernel, stride, dilation, pads);
            window.output(h, w)?;
            let (c, groups, out) = if depthwise { (c + 1, c + 1, c + 1) } else { (c * groups, groups, per_out * groups) };
            Some(layer(shape(h, w, c), window, (groups, out), seed, extreme))
        },
    )
}

/// Of the scales of an addition's input and output; few are far from 1.
fn ratio() -> impl Strategy<Value = f32> {
    prop_oneof![8 => 0.01_f32..3.0, 1 => (-30.0_f32..30.0).prop_map(|exponent| 10.0_f32.powf(exponent))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn convolution_is_the_naive_sum(layer in layers(false)) {
        conv_agrees(&layer);
    }

    #[test]
    fn depthwise_convolution_is_the_naive_sum(layer in layers(true)) {
        conv_agrees(&layer);
    }

    #[test]
    fn a_convolution_with_a_sum_is_one_after_the_other(
        layer in prop_oneof![layers(false), layers(true)], is_doubled in any::<bool>(), other_zero_point in any::<u8>(), zero_point in any::<u8>(),
        ratios in [ratio(), ratio()], range in prop_oneof![Just((0_u8, 255_u8)), Just((40, 200))],
    ) {
        let (spec, seed) = (&layer.spec, layer.seed);
        let (h, w) = layer.rows_and_columns();
        let c = spec.out_channels();
        let step = if is_doubled { 2 } else { 1 };
        let input = Layout::padded(layer.shape, spec.window.halo(layer.shape));
        let other = Layout::padded(shape(h.div_ceil(step), w.div_ceil(step), c), Halo { left: 1, ..Halo::default() });
        let other_value = |y: usize, x: usize, channel: usize| noise(seed ^ 0xBEEF, (y * 64 + x) * 512 + channel);
        let bytes = buffer(&input, spec.input_zero_point, seed, |y, x, channel| layer.value(y, x, channel));
        let other_bytes = buffer(&other, other_zero_point, seed, other_value);
        let output = Layout::padded(shape(h, w, c), layer.out_halo);
        let terms = [
            AddTerm { zero_point: spec.requant.zero_point, ratio: ratios[0], is_doubled: false },
            AddTerm { zero_point: other_zero_point, ratio: ratios[1], is_doubled },
        ];
        let op = OpSpec::ConvAdd { conv: spec.clone(), terms, zero_point, lo: range.0, hi: range.1 };
        let convolved = conv_reference(&layer);
        for_each_isa(|kernels| {
            let got = run(kernels, &op, &[(&bytes, input), (&other_bytes, other)], output);
            for (idx, (&got, &conv)) in got.iter().zip(&convolved).enumerate() {
                let (y, x, channel) = (idx / c / w, idx / c % w, idx % c);
                let side = (other_value(y / step, x / step, channel), other_zero_point, ratios[1]);
                let want = requantize_add((conv, spec.requant.zero_point, ratios[0]), side, zero_point, range.0, range.1);
                assert_eq!(got, want, "{} at {y} {x} {channel}", kernels.isa().name());
            }
        });
    }

    #[test]
    fn maxpool_is_the_naive_maximum(
        (h, w, c) in (1_usize..9, 1_usize..9, 1_usize..140), side in 1_usize..4, stride in 1_usize..4, pad in 0_usize..2,
        dilation in 1_usize..3, seed in any::<u32>(),
    ) {
        let window = window((side, side), (stride, stride), (dilation, dilation), [pad.min(side - 1); 4]);
        prop_assume!(window.output(h, w).is_some());
        let (rows, columns) = window.output(h, w).expect("it fits");
        // A halo that would win if it were read.
        let input = Layout::padded(shape(h, w, c), Halo { top: 1, left: 1, bottom: 1, right: 1 });
        let value = |y: usize, x: usize, channel: usize| noise(seed, (y * w + x) * c + channel);
        let bytes = buffer(&input, 255, seed, value);
        let output = Layout::padded(shape(rows, columns, c), Halo { left: 1, ..Halo::default() });
        for_each_isa(|kernels| {
            let got = run(kernels, &OpSpec::MaxPool(window), &[(&bytes, input)], output);
            for (idx, &got) in got.iter().enumerate() {
                let (y, x, channel) = (idx / c / columns, idx / c % columns, idx % c);
                let taps = (0..side).flat_map(|ky| (0..side).map(move |kx| (ky, kx)));
                let inside = taps.filter_map(|(ky, kx)| Some((window.input_row(y, ky, h)?, window.input_col(x, kx, w)?)));
                let want = inside.map(|(row, col)| value(row, col, channel)).max().unwrap_or(0);
                assert_eq!(got, want, "{} at {y} {x} {channel}", kernels.isa().name());
            }
        });
    }

    #[test]
    fn sums_are_the_rule(
        (h, w, c) in (1_usize..6, 1_usize..9, 1_usize..140), doubled in any::<[bool; 2]>(), zero_points in any::<[u8; 3]>(),
        ratios in [0.01_f32..3.0, 0.01_f32..3.0], range in prop_oneof![Just((0_u8, 255_u8)), Just((40, 200))], seed in any::<u32>(),
    ) {
        let [za, zb, zero_point] = zero_points;
        let terms = [(za, ratios[0], doubled[0]), (zb, ratios[1], doubled[1])]
            .map(|(zero_point, ratio, is_doubled)| AddTerm { zero_point, ratio, is_doubled });
        let size = |is_doubled: bool| if is_doubled { shape(h.div_ceil(2), w.div_ceil(2), c) } else { shape(h, w, c) };
        let layouts = doubled.map(|is_doubled| Layout::padded(size(is_doubled), Halo { top: 1, right: 1, ..Halo::default() }));
        let value = |side: u32, y: usize, x: usize, channel: usize| noise(seed ^ side, (y * 16 + x) * 256 + channel);
        let a = buffer(&layouts[0], za, seed, |y, x, channel| value(0, y, x, channel));
        let b = buffer(&layouts[1], zb, seed, |y, x, channel| value(1, y, x, channel));
        let output = Layout::padded(shape(h, w, c), Halo { left: 1, ..Halo::default() });
        let op = OpSpec::Add { terms, zero_point, lo: range.0, hi: range.1 };
        for_each_isa(|kernels| {
            let got = run(kernels, &op, &[(&a, layouts[0]), (&b, layouts[1])], output);
            for (idx, &got) in got.iter().enumerate() {
                let (y, x, channel) = (idx / c / w, idx / c % w, idx % c);
                let at = |side: usize| {
                    let step = if doubled[side] { 2 } else { 1 };
                    value(u32::try_from(side).expect("small"), y / step, x / step, channel)
                };
                let want = requantize_add((at(0), za, ratios[0]), (at(1), zb, ratios[1]), zero_point, range.0, range.1);
                assert_eq!(got, want, "{} at {y} {x} {channel}", kernels.isa().name());
            }
        });
    }

    #[test]
    fn moving_values_moves_every_one(
        (h, w) in (1_usize..4, 1_usize..7), groups in 1_usize..5, per_group in 1_usize..150, seed in any::<u32>(), with_table in any::<bool>(),
    ) {
        let c = groups * per_group;
        let mut table = Box::new([0_u8; 256]);
        for (x, slot) in (0..=u8::MAX).zip(table.iter_mut()) {
            *slot = x.wrapping_mul(7).wrapping_add(3);
        }
        let mapped = |value: u8| if with_table { table[usize::from(value)] } else { value };
        let tables = || with_table.then(|| table.clone());
        let value = |side: u32, y: usize, x: usize, channel: usize| noise(seed ^ side, (y * 16 + x) * 1024 + channel);
        let input = Layout::padded(shape(h, w, c), Halo { left: 1, ..Halo::default() });
        let a = buffer(&input, 0, seed, |y, x, channel| value(0, y, x, channel));
        let b = buffer(&input, 0, seed, |y, x, channel| value(1, y, x, channel));
        for_each_isa(|kernels| {
            let check = |op: OpSpec, n_inputs: usize, (rows, columns, channels): (usize, usize, usize), want: &dyn Fn(usize, usize, usize) -> u8| {
                let inputs = [(&*a, input), (&*b, input)];
                let output = Layout::padded(shape(rows, columns, channels), Halo { right: 2, ..Halo::default() });
                let got = run(kernels, &op, &inputs[..n_inputs], output);
                for (idx, &got) in got.iter().enumerate() {
                    let (y, x, channel) = (idx / channels / columns, idx / channels % columns, idx % channels);
                    assert_eq!(got, want(y, x, channel), "{} {}: at {y} {x} {channel}", kernels.isa().name(), op.name());
                }
            };
            check(OpSpec::Table(table.clone()), 1, (h, w, c), &|y, x, channel| table[usize::from(value(0, y, x, channel))]);
            check(OpSpec::Upsample2, 1, (2 * h, 2 * w, c), &|y, x, channel| value(0, y / 2, x / 2, channel));
            check(OpSpec::Slice { first: per_group - 1 }, 1, (h, w, c - per_group + 1), &|y, x, channel| value(0, y, x, channel + per_group - 1));
            check(OpSpec::Shuffle { groups }, 1, (h, w, c), &|y, x, channel| value(0, y, x, channel % groups * per_group + channel / groups));
            check(OpSpec::Concat(vec![tables(), None]), 2, (h, w, 2 * c), &|y, x, channel| match channel.checked_sub(c) {
                None => mapped(value(0, y, x, channel)),
                Some(channel) => value(1, y, x, channel),
            });
            for (first, n) in [(0, 2 * c), (c / 2 * 2, c), (2 * (c - 1), 1)] {
                let n = n.min(2 * c - first);
                let op = OpSpec::Interleave { first, tables: [tables(), None] };
                check(op, 2, (h, w, n), &|y, x, channel| match (first + channel) % 2 {
                    0 => mapped(value(0, y, x, (first + channel) / 2)),
                    _ => value(1, y, x, (first + channel) / 2),
                });
            }
        });
    }

    #[test]
    fn real_values_become_pixels_and_maps_become_real_values(
        (h, w, c) in (1_usize..4, 1_usize..40, prop_oneof![Just(3_usize), 1_usize..70]), scale in 0.001_f32..0.1, zero_point in any::<u8>(), seed in any::<u32>(),
    ) {
        let params = QuantParams { scale, zero_point };
        let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, 1e30, -1e30, 0.5 * scale, 1.5 * scale, 2.5 * scale];
        let real = |i: usize| special.get(i % 23).copied().unwrap_or_else(|| (f32::from(noise(seed, i)) - 100.0) * scale * 1.37);
        let planes: Box<[f32]> = (0..h * w * c).map(real).collect();
        let halo = Halo { top: 1, left: 1, bottom: 1, right: 1 };
        let picture = Layout::picture(shape(h, w, c), halo);
        let dense: Box<[u8]> = (0..h * w * c).map(|i| noise(seed, i)).collect();
        let map = Layout::padded(shape(h, w, c), halo);
        let bytes = buffer(&map, 0, seed, |y, x, channel| dense[(y * w + x) * c + channel]);
        for_each_isa(|kernels| {
            let mut out = vec![0xEE; picture.len()].into_boxed_slice();
            kernels.quantize_planes(&planes, params, &picture, &mut out);
            let mut spread = vec![0xEE; picture.len()].into_boxed_slice();
            kernels.spread_pixels(&dense, None, &picture, &mut spread);
            let mut gathered = vec![0xEE; dense.len()].into_boxed_slice();
            kernels.gather_pixels(&bytes, &map, &mut gathered);
            assert_eq!(gathered, dense);
            let mut reals = vec![0.0; planes.len()].into_boxed_slice();
            kernels.dequantize_planes(&bytes, params, &map, &mut reals);
            for (y, x, channel) in (0..h).flat_map(|y| (0..w).flat_map(move |x| (0..c).map(move |channel| (y, x, channel)))) {
                let (plane, pixel) = ((channel * h + y) * w + x, (y * w + x) * c + channel);
                assert_eq!(picture.pixel(&out, y, x)[channel], params.quantize(planes[plane]), "{}: {}", kernels.isa().name(), planes[plane]);
                assert_eq!(picture.pixel(&spread, y, x)[channel], dense[pixel], "{}", kernels.isa().name());
                assert_eq!(reals[plane].to_bits(), params.dequantize(dense[pixel]).to_bits(), "{}", kernels.isa().name());
            }
            assert!(out[..picture.row_offset(0)].iter().chain(&spread[..picture.row_offset(0)]).all(|&byte| byte == 0xEE));
        });
    }
}

/// `round_half_even(clamp(acc x m)) + zp` in exact rational arithmetic: powers of two as multipliers make f32 exact.
#[test]
fn requantisation_rounds_halves_to_even_and_clamps() {
    let mut n_ties = 0;
    for shift in 0..12_u32 {
        let multiplier = 1.0 / f32::from(1_u16 << shift);
        for zero_point in [0_u8, 1, 127, 128, 255] {
            for (lo, hi) in [(0_u8, 255_u8), (zero_point, 255), (0, zero_point), (100, 150)] {
                for acc in (-70_000_i64..70_000).step_by(211).chain(-9000..9000) {
                    let unit = 1_i64 << shift;
                    let (floor, rest) = (acc.div_euclid(unit), acc.rem_euclid(unit));
                    let is_tie = 2 * rest == unit;
                    n_ties += usize::from(is_tie);
                    let up = if is_tie { floor.rem_euclid(2) } else { i64::from(2 * rest > unit) };
                    let want = (floor + up + i64::from(zero_point)).clamp(i64::from(lo), i64::from(hi));
                    let got = requantize(i32::try_from(acc).expect("small"), multiplier, zero_point, lo, hi);
                    assert_eq!(i64::from(got), want, "{acc} / {unit}, zero point {zero_point} in {lo}..={hi}");
                }
            }
        }
    }
    assert!(n_ties > 10_000, "only {n_ties} ties");
    for acc in [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX] {
        for multiplier in [f32::MIN_POSITIVE, 1e-10, 1.0, 1e10, f32::MAX] {
            let got = requantize(acc, multiplier, 9, 0, 255);
            let want = (f64::from(acc) * f64::from(multiplier)).clamp(-9.0, 246.0).round_ties_even() + 9.0;
            assert!((f64::from(got) - want).abs() < 0.5, "{acc} x {multiplier}: {got}, expected {want}");
        }
    }
}

/// Without a halo large maps are written past the caches.
#[test]
fn large_maps_become_real_values() {
    for (h, w, c) in [(128, 128, 40), (128, 128, 33), (600, 1, 1000)] {
        let params = QuantParams { scale: 0.037, zero_point: 131 };
        let map = Layout::padded(shape(h, w, c), Halo::default());
        let bytes = buffer(&map, 0, 5, |y, x, channel| noise(3, (y * w + x) * c + channel));
        for_each_isa(|kernels| {
            let mut reals = vec![0.0_f32; h * w * c].into_boxed_slice();
            kernels.dequantize_planes(&bytes, params, &map, &mut reals);
            for (idx, real) in reals.iter().enumerate() {
                let (channel, pixel) = (idx / (h * w), idx % (h * w));
                let want = params.dequantize(noise(3, pixel * c + channel));
                assert_eq!(real.to_bits(), want.to_bits(), "{} {h}x{w}x{c}, {idx}", kernels.isa().name());
            }
        });
    }
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let refuses = |what: &str, call: &mut dyn FnMut()| {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err(), "{what}");
    };
    for_each_isa(|kernels| {
        let narrow = Layout { shape: shape(1, 1, 64), halo: Halo::default(), pixel_stride: 16 };
        let mut planes = vec![0.0; 64];
        refuses("pixels that do not hold their channels", &mut || {
            kernels.dequantize_planes(&[0; 16], QuantParams { scale: 1.0, zero_point: 0 }, &narrow, &mut planes);
        });
        let (rows, mut out) = (vec![0; 6 * 18], vec![0; 256]);
        refuses("columns beyond all memory", &mut || kernels.rows_to_columns(&rows, 18, &mut out, usize::MAX / 5 + 20));
    });
}

/// One cache, weights that are read as two different convolutions, and weights that come and go.
#[test]
fn packed_weights_are_those_of_the_convolution() {
    let of = |weights: Arc<[i8]>, side: (usize, usize), n_out: usize| ConvSpec {
        window: window(side, (1, 1), (1, 1), [0; 4]),
        groups: 1,
        weights,
        bias: vec![0; n_out],
        input_zero_point: 0,
        requant: Requantization { multipliers: vec![0.001; n_out], zero_point: 0, lo: 0, hi: 255 },
    };
    for_each_isa(|kernels| {
        let mut cache = PackCache::default();
        let shared: Arc<[i8]> = (0..16 * 32 * 9).map(|i| noise(8, i).cast_signed().max(-127)).collect();
        for n in 0..6 {
            let spec = match n {
                0 => of(Arc::clone(&shared), (1, 3), 48),
                1 => of(Arc::clone(&shared), (3, 3), 16),
                // Freed each time, so that the next ones may lie at the same place.
                _ => of((0..16 * 32 * 9).map(|i| noise(n, i).cast_signed().max(-127)).collect(), (3, 3), 16),
            };
            let (input, (h, w)) = (shape(6, 7, 32), spec.window.output(6, 7).expect("it fits"));
            let layouts = [Layout::padded(input, spec.window.halo(input))];
            let output = Layout::padded(shape(h, w, spec.out_channels()), Halo::default());
            let bytes = buffer(&layouts[0], 0, 4, |y, x, c| noise(2, (y * 7 + x) * 32 + c));
            let op = OpSpec::Conv(spec);
            let kernel = kernels.prepare(&op, &layouts, output, &mut cache);
            let mut got = vec![0; output.len()];
            kernel.rows(&[&bytes], 0, &mut got[output.body()]);
            let want = run(kernels, &op, &[(&bytes, layouts[0])], output);
            let dense: Vec<u8> =
                (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).flat_map(|(y, x)| output.pixel(&got, y, x).to_vec()).collect();
            assert!(dense == want, "{}, convolution {n}", kernels.isa().name());
        }
    });
}

/// Additions side by side in one arena: refused where they touch, and of the same bytes however many threads share the rows.
#[test]
fn regions_keep_operators_apart() {
    let layout = Layout::padded(shape(5, 40, 64), Halo { top: 1, bottom: 2, left: 1, right: 0 });
    let len = layout.len();
    let term = AddTerm { zero_point: 3, ratio: 0.7, is_doubled: false };
    let op = OpSpec::Add { terms: [term, AddTerm { ratio: 0.4, ..term }], zero_point: 9, lo: 0, hi: 255 };
    let place = |start: usize| Place { bytes: start..start + len, layout, zero_point: 7 };
    for_each_isa(|kernels| {
        let step = |inputs: [usize; 2], output: usize| PlacedKernel {
            kernel: kernels.prepare(&op, &[layout, layout], layout, &mut PackCache::default()),
            inputs: inputs.map(place).to_vec(),
            output: place(output),
            work: 2_000_000,
        };
        for (what, steps, arena) in [
            ("an output over an input", vec![step([0, len], len + 1)], 4 * len),
            ("an output over another's input", vec![step([0, len], 2 * len), step([2 * len + 1, 0], 4 * len)], 6 * len),
            ("two outputs", vec![step([0, len], 2 * len), step([0, len], 3 * len - 1)], 6 * len),
            ("beyond the arena", vec![step([0, len], 2 * len)], 3 * len - 1),
        ] {
            assert!(Region::new(steps, arena, 3).is_err(), "{what}");
        }
        let bytes: Vec<u8> = (0..2 * len).map(|i| noise(6, i)).collect();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for threads in [1, 3, 16] {
            let region = Region::new(vec![step([0, len], 2 * len), step([len, 0], 3 * len)], 4 * len, threads).expect("apart");
            let pool = Pool::shared(threads).expect("threads");
            let mut arena = [bytes.as_slice(), &vec![0xEE; 2 * len]].concat();
            region.run(&pool, &mut arena);
            assert_eq!(arena[..2 * len], bytes, "what is read stays");
            all.push(arena.clone());
            for idx in 0..2 {
                arena[(2 + idx) * len..][..len].fill(0xEE);
                region.run_one(idx, &pool, &mut arena);
            }
            all.push(arena);
        }
        assert!(all.iter().all(|arena| *arena == all[0]), "{}", kernels.isa().name());
        // Its halo is filled, whoever has the first and the last rows.
        assert!(all[0][2 * len..][..layout.row_offset(0)].iter().all(|&byte| byte == 7), "{}", kernels.isa().name());
    });
}

/// Threads keep what a row of tiles takes: a map as wide as this is computed directly.
#[test]
fn scratch_memory_has_a_limit() {
    let k3 = window((3, 3), (1, 1), (1, 1), [1; 4]);
    let labels = |w: usize| {
        let spec = layer(shape(4, w, 64), k3, (1, 64), 1, false).spec;
        let layouts = [Layout::padded(shape(4, w, 64), k3.halo(shape(4, w, 64)))];
        let output = Layout::padded(shape(4, w, 64), Halo::default());
        let mut labels = Vec::new();
        for_each_isa(|kernels| {
            labels.push(kernels.prepare(&OpSpec::Conv(spec.clone()), &layouts, output, &mut PackCache::default()).label());
        });
        labels
    };
    let is_winograd = |label: &String| label.contains(" 4x4x");
    let (narrow, wide) = (labels(16), labels(8192));
    assert!(!wide.iter().any(is_winograd), "{wide:?}");
    if cfg!(target_arch = "x86_64") && wide.len() > 1 {
        assert!(narrow.iter().any(is_winograd), "{narrow:?}");
    }
}
