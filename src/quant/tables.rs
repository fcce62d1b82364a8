//! Tables over the 256 values of a `u8`: what would be a transcendental function per value is a look-up.
//! Built with `libm` (pure Rust), so that every machine has the same entries.

use super::QuantParams;

/// `table[q] = sigmoid(dequantize(q))`, in `[0, 1]`.
#[must_use]
pub fn sigmoid_table(params: QuantParams) -> [f32; 256] {
    table(|q| {
        let logit = f64::from(params.dequantize(q));
        narrow(1.0 / (1.0 + libm::exp(-logit)))
    })
}

/// `table[q] = exp(min(dequantize(q), limit))`.
#[must_use]
pub fn exp_table(params: QuantParams, limit: f32) -> [f32; 256] {
    table(|q| narrow(libm::exp(f64::from(params.dequantize(q).min(limit)))))
}

/// `table[q]`: `q` of a tensor with parameters `from` as `q` of one with parameters `to`.
#[must_use]
pub fn rescale_table(from: QuantParams, to: QuantParams) -> [u8; 256] {
    table(|q| to.quantize(from.dequantize(q)))
}

fn table<T: Copy + Default>(entry: impl Fn(u8) -> T) -> [T; 256] {
    let mut table = [T::default(); 256];
    for (q, slot) in (0..=u8::MAX).zip(&mut table) {
        *slot = entry(q);
    }
    table
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_monotone_and_end_where_they_should() {
        let params = QuantParams::new(0.1, 128).expect("a scale");
        let sigmoid = sigmoid_table(params);
        assert!((sigmoid[128] - 0.5).abs() < f32::EPSILON);
        assert!(sigmoid.windows(2).all(|pair| pair[0] < pair[1]));
        let exp = exp_table(params, 4.135_166_6);
        assert!((exp[128] - 1.0).abs() < f32::EPSILON);
        assert!((exp[255] - 62.5).abs() < 1e-3, "clamped at ln(1000 / 16)");
    }

    #[test]
    fn rescaling_to_the_same_parameters_changes_nothing() {
        let params = QuantParams::new(0.037, 19).expect("a scale");
        assert!(rescale_table(params, params).iter().zip(0..=255_u8).all(|(&got, q)| got == q));
    }
}
