//! Sum of two activations: see [`crate::quant::requantize_add`].

use crate::kernels::op::check_buffers;
use crate::kernels::{AddTerm, Layout, RowKernel};
use crate::quant::requantize_add;

/// `out = requantize_add(a, b)`, value by value; an input of half the size stands for one of the full size. With one input,
/// `a` is what lies in the output.
#[derive(Debug)]
pub(super) struct Add {
    pub inputs: [Layout; 2],
    pub output: Layout,
    pub terms: [AddTerm; 2],
    pub zero_point: u8,
    pub lo: u8,
    pub hi: u8,
}

impl RowKernel for Add {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let first_input = 2 - inputs.len();
        check_buffers(inputs.iter().copied().zip(&self.inputs[first_input..]), first, out, &self.output);
        let [ta, tb] = self.terms;
        let step = |term: AddTerm| if term.is_doubled { 2 } else { 1 };
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for (x, pixel) in self.output.pixels_mut(row).enumerate() {
                if let [a, _] = inputs {
                    pixel.copy_from_slice(self.inputs[0].pixel(a, y / step(ta), x / step(ta)));
                }
                let other = self.inputs[1].pixel(inputs[inputs.len() - 1], y / step(tb), x / step(tb));
                for (out, &b) in pixel.iter_mut().zip(other) {
                    let (a, b) = ((*out, ta.zero_point, ta.ratio), (b, tb.zero_point, tb.ratio));
                    *out = requantize_add(a, b, self.zero_point, self.lo, self.hi);
                }
            }
        }
    }

    fn label(&self) -> String {
        "scalar".into()
    }
}
