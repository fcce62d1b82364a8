//! Sum of two activations: see [`crate::quant::requantize_add`].

use crate::kernels::op::check_buffers;
use crate::kernels::{AddTerm, Layout, RowKernel};
use crate::quant::requantize_add;

/// `out = requantize_add(a, b)`, value by value; an input of half the size stands for one of the full size.
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
        let [a, b] = [inputs[0], inputs[1]];
        check_buffers([(a, &self.inputs[0]), (b, &self.inputs[1])], first, out, &self.output);
        let [ta, tb] = self.terms;
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for (x, pixel) in self.output.pixels_mut(row).enumerate() {
                let side = |values, layout: &Layout, term: AddTerm| {
                    let step = if term.is_doubled { 2 } else { 1 };
                    layout.pixel(values, y / step, x / step)
                };
                let values = side(a, &self.inputs[0], ta).iter().zip(side(b, &self.inputs[1], tb));
                for (out, (&a, &b)) in pixel.iter_mut().zip(values) {
                    let (a, b) = ((a, ta.zero_point, ta.ratio), (b, tb.zero_point, tb.ratio));
                    *out = requantize_add(a, b, self.zero_point, self.lo, self.hi);
                }
            }
        }
    }

    fn label(&self) -> String {
        "scalar".into()
    }
}
