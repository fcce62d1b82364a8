//! Kernels against a naive reference in 64-bit integers, written here from the definition of ONNX `Conv` and `MaxPool`.

use fovea::kernels::scalar::{
    AddTerm, PackedConv, PackedDepthwise, qu8_add, qu8_concat_row, qu8_maxpool_row, qu8_qc8w_conv_row, qu8_qc8w_depthwise_row,
    qu8_shuffle_row, qu8_slice_row, qu8_table, qu8_upsample2_row,
};
use fovea::kernels::{Requantization, Shape, Window};
use fovea::quant::requantize;
use proptest::prelude::*;

/// A convolution and its input.
#[derive(Debug, Clone)]
struct Layer {
    shape: Shape,
    window: Window,
    groups: usize,
    out_channels: usize,
    input: Vec<u8>,
    zero_point: u8,
    weights: Vec<i8>,
    bias: Vec<i32>,
    requant: Requantization,
}

/// `sum (x - zp) w` over the window, padding being zero, in 64 bits.
fn reference(layer: &Layer) -> Vec<u8> {
    let Layer { shape, window, groups, out_channels, requant, .. } = layer;
    let (rows, columns) = window.output(shape.h, shape.w).expect("the window fits");
    let (per_in, per_out) = (shape.c / groups, out_channels / groups);
    let mut out = Vec::new();
    for y in 0..rows {
        for x in 0..columns {
            for o in 0..*out_channels {
                let mut sum = i64::from(layer.bias[o]);
                for ky in 0..window.kernel.0 {
                    for kx in 0..window.kernel.1 {
                        let signed = |n: usize| i64::try_from(n).expect("small");
                        let row = signed(y * window.stride.0 + ky * window.dilation.0) - signed(window.pads[0]);
                        let column = signed(x * window.stride.1 + kx * window.dilation.1) - signed(window.pads[1]);
                        if row < 0 || row >= signed(shape.h) || column < 0 || column >= signed(shape.w) {
                            continue;
                        }
                        let (row, column) = (usize::try_from(row).expect("inside"), usize::try_from(column).expect("inside"));
                        for i in 0..per_in {
                            let channel = o / per_out * per_in + i;
                            let value = layer.input[(row * shape.w + column) * shape.c + channel];
                            let weight = layer.weights[((o * per_in + i) * window.kernel.0 + ky) * window.kernel.1 + kx];
                            sum += (i64::from(value) - i64::from(layer.zero_point)) * i64::from(weight);
                        }
                    }
                }
                let acc = i32::try_from(sum).expect("the loader refuses sums beyond 32 bits");
                out.push(requantize(acc, requant.multipliers[o], requant.zero_point, requant.lo, requant.hi));
            }
        }
    }
    out
}

fn kernel(layer: &Layer) -> Vec<u8> {
    let Layer { shape, window, requant, zero_point, .. } = layer;
    let (rows, columns) = window.output(shape.h, shape.w).expect("the window fits");
    let taps = window.kernel.0 * window.kernel.1;
    // Exact lengths, and a value that no kernel may leave behind by accident.
    let mut out = vec![0xEE; rows * columns * layer.out_channels];
    let row_len = columns * layer.out_channels;
    if layer.groups == shape.c && layer.out_channels == shape.c && layer.groups > 1 {
        let packed = PackedDepthwise::new(&layer.weights, &layer.bias, taps);
        for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
            qu8_qc8w_depthwise_row(&layer.input, *shape, *zero_point, window, &packed, requant, y, out);
        }
    } else {
        let packed = PackedConv::new(&layer.weights, &layer.bias, layer.groups, shape.c, taps);
        for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
            qu8_qc8w_conv_row(&layer.input, *shape, *zero_point, window, &packed, requant, y, out);
        }
    }
    out
}

/// Sizes first, then values that fit them. `depthwise`: one input channel for each output channel.
fn layers(depthwise: bool) -> impl Strategy<Value = Layer> {
    let sizes = (
        1_usize..9,
        1_usize..9,
        if depthwise { (1_usize..2, 2_usize..70, 1_usize..2).boxed() } else { (1_usize..24, 1_usize..4, 1_usize..20).boxed() },
        (1_usize..6, 1_usize..6),
        (1_usize..4, 1_usize..4),
        (1_usize..3, 1_usize..3),
        [0_usize..4, 0..4, 0..4, 0..4],
    );
    sizes
        .prop_map(|(h, w, (per_in, groups, per_out), kernel, stride, dilation, pads)| {
            let window = Window { kernel, stride, dilation, pads };
            (Shape { h, w, c: per_in * groups }, window, groups, per_out * groups)
        })
        .prop_filter("the window fits", |(shape, window, _, _)| window.output(shape.h, shape.w).is_some())
        .prop_flat_map(|(shape, window, groups, out_channels)| {
            let n_weights = out_channels * (shape.c / groups) * window.kernel.0 * window.kernel.1;
            let extreme = prop_oneof![4 => any::<u8>(), 1 => Just(0_u8), 1 => Just(255_u8)];
            let weight = prop_oneof![4 => -127_i8..=127, 1 => Just(127_i8), 1 => Just(-127_i8)];
            (
                prop::collection::vec(extreme, shape.len()),
                prop_oneof![any::<u8>(), Just(0_u8), Just(255_u8)],
                prop::collection::vec(weight, n_weights),
                prop::collection::vec(-100_000_i32..100_000, out_channels),
                prop::collection::vec(1e-4_f32..0.05, out_channels),
                any::<u8>(),
                prop_oneof![Just((0_u8, 255_u8)), Just((40_u8, 200_u8))],
            )
                .prop_map(move |(input, zero_point, weights, bias, multipliers, out_zero, (lo, hi))| Layer {
                    shape,
                    window,
                    groups,
                    out_channels,
                    input,
                    zero_point,
                    weights,
                    bias,
                    requant: Requantization { multipliers, zero_point: out_zero, lo, hi },
                })
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn convolution_is_the_naive_sum(layer in layers(false)) {
        prop_assert_eq!(kernel(&layer), reference(&layer));
    }

    #[test]
    fn depthwise_convolution_is_the_naive_sum(layer in layers(true)) {
        prop_assert_eq!(kernel(&layer), reference(&layer));
    }

    #[test]
    fn maxpool_is_the_naive_maximum(
        (h, w, c) in (1_usize..9, 1_usize..9, 1_usize..20), side in 1_usize..4, stride in 1_usize..4, pad in 0_usize..2,
        seed in any::<u32>(),
    ) {
        let window = Window { kernel: (side, side), stride: (stride, stride), dilation: (1, 1), pads: [pad.min(side - 1); 4] };
        prop_assume!(window.output(h, w).is_some());
        let shape = Shape { h, w, c };
        let input: Vec<u8> = (0..shape.len()).map(|i| noise(seed, i)).collect();
        let (rows, columns) = window.output(h, w).expect("it fits");
        let mut out = vec![0xEE; rows * columns * c];
        for (y, out) in out.chunks_exact_mut(columns * c).enumerate() {
            qu8_maxpool_row(&input, shape, &window, y, out);
        }
        for (idx, &got) in out.iter().enumerate() {
            let (y, x, channel) = (idx / c / columns, idx / c % columns, idx % c);
            let inside = |at: usize, size: usize| at.checked_sub(window.pads[0]).filter(|&at| at < size);
            let values = (0..side).flat_map(|ky| (0..side).map(move |kx| (ky, kx))).filter_map(|(ky, kx)| {
                Some(input[(inside(y * stride + ky, h)? * w + inside(x * stride + kx, w)?) * c + channel])
            });
            prop_assert_eq!(Some(got), values.max(), "at {} {} {}", y, x, channel);
        }
    }

    #[test]
    fn moving_values_moves_every_one(w in 1_usize..7, groups in 1_usize..5, per_group in 1_usize..9, seed in any::<u32>()) {
        let c = groups * per_group;
        let row: Vec<u8> = (0..w * c).map(|i| noise(seed, i)).collect();
        let mut shuffled = vec![0xEE; w * c];
        qu8_shuffle_row(&row, c, groups, &mut shuffled);
        let mut doubled = vec![0xEE; 2 * w * c];
        qu8_upsample2_row(&row, c, &mut doubled);
        let mut joined = vec![0xEE; w * (c + 3)];
        let mut table = [0_u8; 256];
        for (x, slot) in (0..=u8::MAX).zip(&mut table) {
            *slot = x.wrapping_mul(7);
        }
        qu8_concat_row(&row, c, Some(&table), 2, c + 3, &mut joined);
        let mut back = vec![0xEE; w * c];
        qu8_slice_row(&joined, c + 3, 2, c, &mut back);
        let mut mapped = vec![0xEE; w * c];
        qu8_table(&row, &table, &mut mapped);
        prop_assert_eq!(&back, &mapped, "a slice undoes a concatenation");
        for x in 0..w {
            for channel in 0..c {
                let value = row[x * c + channel];
                prop_assert_eq!(shuffled[x * c + channel % per_group * groups + channel / per_group], value);
                prop_assert_eq!(doubled[2 * x * c + channel], value);
                prop_assert_eq!(doubled[(2 * x + 1) * c + channel], value);
                prop_assert_eq!(mapped[x * c + channel], value.wrapping_mul(7));
            }
        }
    }
}

fn noise(seed: u32, i: usize) -> u8 {
    let i = u32::try_from(i).expect("small");
    (seed ^ i.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B).to_le_bytes()[3]
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

#[test]
fn sums_follow_the_rule_in_64_bits() {
    let values: Vec<u8> = (0..=255).collect();
    for (za, ra, zb, rb, zo) in [(0, 0.5, 0, 0.5, 0), (128, 0.25, 3, 2.0, 100), (255, 1.0, 0, 1.0, 255), (7, 4.0, 9, 0.125, 31)] {
        for b in [0_u8, 1, 2, 50, 127, 128, 254, 255] {
            let mut out = vec![0; 256];
            let (left, right) = (AddTerm { zero_point: za, ratio: ra }, AddTerm { zero_point: zb, ratio: rb });
            qu8_add((&values, left), (&[b; 256], right), (zo, 0, 255), &mut out);
            for (a, got) in values.iter().zip(out) {
                // Ratios that are powers of two: exact in f32 and f64 alike.
                let sum = (f64::from(*a) - f64::from(za)) * f64::from(ra) + (f64::from(b) - f64::from(zb)) * f64::from(rb);
                let want = (sum.round_ties_even() + f64::from(zo)).clamp(0.0, 255.0);
                assert!((f64::from(got) - want).abs() < 0.5, "{a} + {b}: {got}, expected {want}");
            }
        }
    }
}
