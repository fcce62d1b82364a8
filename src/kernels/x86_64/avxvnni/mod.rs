//! AVX-VNNI: the byte dot product `vpdpbusd` on AVX2's registers (Alder Lake and later, Zen 5 and later). What has no dot
//! product is left to [`avx2`](super::avx2).
//!
//! The instruction has two encodings, that of AVX-VNNI (VEX) and that of AVX-512 VNNI (EVEX). Every kernel is written over
//! the intrinsic and compiled for both; the tests run the second where the CPU lacks the first.
//!
//! Every `prepare` is called through [`Kernels`](crate::kernels::Kernels), which exists only where [`is_available`] holds:
//! that is what each safe function here rests on when it enters a `target_feature` function.

mod conv;
mod depthwise;
mod winograd;

use super::boxed;
use crate::kernels::{Layout, OpSpec, PackCache, RowKernel};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Whether this CPU has all that the kernels of this folder use.
pub(in crate::kernels) fn is_available() -> bool {
    super::avx2::is_available() && is_x86_feature_detected!("avxvnni")
}

/// The kernel for an operator, where this instruction set has one.
pub(in crate::kernels) fn prepare(
    op: &OpSpec,
    inputs: &[Layout],
    output: Layout,
    cache: &mut PackCache,
) -> Option<Box<dyn RowKernel>> {
    match op {
        OpSpec::Conv(spec) if spec.is_depthwise() => boxed(depthwise::Depthwise::new(spec, inputs[0], output)),
        OpSpec::Conv(spec) => boxed(winograd::Conv::new(spec, inputs[0], output, cache))
            .or_else(|| boxed(conv::Conv::new(spec, inputs[0], output, cache))),
        _ => None,
    }
}

/// As `Kernels::saturate`.
pub(in crate::kernels) fn saturate() -> usize {
    /// # Safety
    /// The CPU has the instruction set.
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn rounds(n: usize) -> __m256i {
        // Enough sums to hide the latency of each.
        let mut sums = [_mm256_set1_epi8(1); 12];
        let (x, w) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, x, w);
            }
        }
        sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_add_epi32(all, sum))
    }
    const ROUNDS: usize = 2000;
    // SAFETY: only called through `Kernels`, which vouches for the CPU.
    black_box(unsafe { rounds(black_box(ROUNDS)) });
    ROUNDS * 12 * 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{ConvSpec, Halo, Requantization, Shape, Window, scalar};

    fn noise(i: usize) -> u8 {
        let i = u32::try_from(i).expect("small");
        (i ^ (i << 9)).wrapping_mul(0x9E37_79B9).rotate_left(11).wrapping_mul(0x85EB_CA6B).to_le_bytes()[3]
    }

    fn spec(channels: (usize, usize), groups: usize, side: usize, stride: usize, (lo, hi): (u8, u8)) -> ConvSpec {
        let n = channels.1 * (channels.0 / groups) * side * side;
        ConvSpec {
            window: Window { kernel: (side, side), stride: (stride, stride), dilation: (1, 1), pads: [side / 2; 4] },
            groups,
            weights: (0..n).map(|i| noise(i).cast_signed().max(-127)).collect(),
            bias: (0..channels.1).map(|o| i32::from(noise(o)) * 64).collect(),
            input_zero_point: 3,
            requant: Requantization {
                multipliers: (0..channels.1).map(|o| (1.0 + f32::from(noise(o + 9))) * 1e-5).collect(),
                zero_point: 120,
                lo,
                hi,
            },
        }
    }

    /// The EVEX encoding against the plain loops.
    #[test]
    fn the_other_encoding_computes_the_same() {
        let has_evex = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        if !has_evex || !super::super::avx2::is_available() {
            eprintln!("skipped: this CPU has no AVX-512 VNNI to run the kernels of AVX-VNNI with");
            return;
        }
        let mut n_transformed = 0;
        let every_block = [1, 8, 9, 17, 27, 32, 40, 64, 70].map(|out| ((12, out), 1, 3, 1));
        let others = [((3, 24), 1, 3, 2), ((64, 33), 1, 1, 1), ((32, 64), 4, 3, 1), ((20, 16), 1, 3, 1), ((16, 70), 1, 3, 1)];
        let depthwise = [1, 16, 24, 32, 33, 58, 96].map(|c| ((c, c), c, 3, 1));
        let strided = [((40, 40), 40, 5, 2), ((16, 16), 16, 1, 1)];
        for (channels, groups, side, stride) in every_block.into_iter().chain(others).chain(depthwise).chain(strided) {
            for (width, range) in [(1, (0, 255)), (8, (0, 255)), (13, (40, 200))] {
                let spec = spec(channels, groups, side, stride, range);
                let shape = Shape { h: 7, w: width, c: channels.0 };
                let halo = spec.window.halo(shape);
                let input = if channels.0 == 3 { Layout::picture(shape, halo) } else { Layout::padded(shape, halo) };
                let (h, w) = spec.window.output(shape.h, shape.w).expect("the window fits");
                let output = Layout::padded(Shape { h, w, c: channels.1 }, Halo::default());
                let mut values: Box<[u8]> = (0..input.len()).map(|i| noise(i + 77)).collect();
                input.fill_ends(&mut values, spec.input_zero_point);
                input.fill_sides(&mut values[input.body()], spec.input_zero_point);
                let (mut got, mut want) = (vec![0; output.len()], vec![0; output.len()]);
                // SAFETY: the instruction set is there.
                unsafe {
                    if spec.is_depthwise() {
                        let conv = depthwise::Depthwise::new(&spec, input, output).expect("it suits");
                        conv.rows_with(depthwise::evex::block_fn, &[&values], 0, &mut got);
                    } else {
                        let conv = conv::Conv::new(&spec, input, output, &mut PackCache::default()).expect("it suits");
                        conv.rows_with(conv::evex::tile_fn, &[&values], 0, &mut got);
                    }
                    if let Some(conv) = winograd::Conv::new(&spec, input, output, &mut PackCache::default()) {
                        n_transformed += 1;
                        let mut same = vec![0; output.len()];
                        conv.rows_with(winograd::evex::steps, &[&values], 0, &mut same);
                        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                            assert_eq!(output.pixel(&same, y, x), output.pixel(&got, y, x), "{channels:?}, at {y} {x} of {w}");
                        }
                    }
                }
                scalar::prepare(&OpSpec::Conv(spec), &[input], output).rows(&[&values], 0, &mut want);
                for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                    let (got, want) = (output.pixel(&got, y, x), output.pixel(&want, y, x));
                    assert_eq!(got, want, "{channels:?} in {groups} groups, {side}x{side}, step {stride}, at {y} {x} of {w}");
                }
            }
        }
        assert!(n_transformed > 0, "no convolution is transformed");
    }
}
