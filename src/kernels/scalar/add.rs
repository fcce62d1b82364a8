//! Sum of two activations: see [`crate::quant::requantize_add`].

use crate::quant::requantize_add;

/// One side of a sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddTerm {
    /// Zero point of this input.
    pub zero_point: u8,
    /// `scale of this input / scale of the output`.
    pub ratio: f32,
}

/// `out = requantize_add(a, b)`, value by value.
///
/// # Panics
/// If the three differ in length.
pub fn qu8_add((a, term_a): (&[u8], AddTerm), (b, term_b): (&[u8], AddTerm), (zero_point, lo, hi): (u8, u8, u8), out: &mut [u8]) {
    assert!(a.len() == out.len() && b.len() == out.len(), "sums of equal length");
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = requantize_add((a, term_a.zero_point, term_a.ratio), (b, term_b.zero_point, term_b.ratio), zero_point, lo, hi);
    }
}
