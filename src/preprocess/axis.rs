//! Weights of one axis: which samples an output sample is made of.

use crate::kernels::TapTable;
use crate::kernels::scalar::WEIGHT_BITS;

/// Weights of every output sample along one axis: from `src` picture pixels, with one sample every `per_sample` pixels, to `dst`
/// output samples. Exact rational arithmetic, rounded once.
pub(super) fn axis(src: usize, per_sample: usize, dst: usize) -> TapTable {
    let mut taps = TapTable::default();
    for idx in 0..dst {
        if src >= dst * per_sample {
            push_area(&mut taps, idx, src, dst * per_sample);
        } else {
            push_linear(&mut taps, idx, src, per_sample, dst);
        }
    }
    taps
}

fn push(taps: &mut TapTable, start: usize, weights: impl Iterator<Item = usize>) {
    taps.push(start, weights.map(|weight| u16::try_from(weight).expect("a weight is at most 1 << 14")));
}

/// The output sample covers `idx x src .. (idx + 1) x src`, a sample of the picture `j x unit .. (j + 1) x unit`;
/// the weight is the share of the overlap, rounded so that the weights add up exactly.
fn push_area(taps: &mut TapTable, idx: usize, src: usize, unit: usize) {
    let (begin, end) = (idx * src, (idx + 1) * src);
    let (start, stop) = (begin / unit, end.div_ceil(unit));
    let until = |j: usize| {
        let covered = (j * unit).clamp(begin, end) - begin;
        ((covered << (WEIGHT_BITS + 1)) + src) / (2 * src)
    };
    push(taps, start, (start..stop).map(|j| until(j + 1) - until(j)));
}

/// Between the two nearest sample centres; at the border the nearest sample.
fn push_linear(taps: &mut TapTable, idx: usize, src: usize, per_sample: usize, dst: usize) {
    let unit = dst * per_sample;
    let n_samples = src.div_ceil(per_sample);
    // The centre, in samples, is (2 idx + 1) src / (2 unit) - 1/2.
    let Some(position) = ((2 * idx + 1) * src).checked_sub(unit) else {
        return push(taps, 0, std::iter::once(1 << WEIGHT_BITS));
    };
    let (start, rest) = (position / (2 * unit), position % (2 * unit));
    let second = ((rest << WEIGHT_BITS) + unit) / (2 * unit);
    if start + 1 >= n_samples || second == 0 {
        push(taps, start.min(n_samples - 1), std::iter::once(1 << WEIGHT_BITS));
    } else {
        push(taps, start, [(1 << WEIGHT_BITS) - second, second].into_iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taps(src: usize, per_sample: usize, dst: usize) -> Vec<(usize, Vec<u16>)> {
        let axis = axis(src, per_sample, dst);
        (0..dst).map(|idx| (axis.taps(idx).start, axis.taps(idx).weights.to_vec())).collect()
    }

    #[test]
    fn known_weights() {
        assert_eq!(taps(2, 1, 2), [(0, vec![16_384]), (1, vec![16_384])]);
        assert_eq!(taps(4, 1, 2), [(0, vec![8192, 8192]), (2, vec![8192, 8192])]);
        assert_eq!(taps(3, 1, 2), [(0, vec![10_923, 5461]), (1, vec![5461, 10_923])]);
        // Twice as large: centres at a quarter and three quarters between samples.
        assert_eq!(taps(2, 1, 4), [(0, vec![16_384]), (0, vec![12_288, 4096]), (0, vec![4096, 12_288]), (1, vec![16_384])]);
        // Chroma of a 4-pixel row at full size lies halfway between pixels.
        assert_eq!(taps(4, 2, 4), taps(2, 1, 4));
    }

    proptest! {
        #[test]
        fn weights_add_up_and_stay_inside(src in 1_usize..5000, per_sample in 1_usize..=2, dst in 1_usize..2000) {
            let axis = axis(src, per_sample, dst);
            for idx in 0..dst {
                let taps = axis.taps(idx);
                prop_assert_eq!(taps.weights.iter().map(|&w| usize::from(w)).sum::<usize>(), 1 << WEIGHT_BITS);
                prop_assert!(taps.start + taps.weights.len() <= src.div_ceil(per_sample));
            }
        }
    }
}
