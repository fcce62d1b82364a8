//! Maximum over a window; the padding never wins.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Window};

/// Order is kept by quantisation, so the maximum of the quantised values is the quantised maximum.
#[derive(Debug)]
pub(super) struct MaxPool {
    pub window: Window,
    pub input: Layout,
    pub output: Layout,
}

impl RowKernel for MaxPool {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        let (input, window, shape) = (inputs[0], &self.window, self.input.shape);
        check_buffers([(input, &self.input)], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            for (x, out) in self.output.pixels_mut(row).enumerate() {
                out.fill(0);
                let rows = (0..window.kernel.0).filter_map(|ky| window.input_row(y, ky, shape.h));
                for row in rows {
                    for col in (0..window.kernel.1).filter_map(|kx| window.input_col(x, kx, shape.w)) {
                        for (out, &x) in out.iter_mut().zip(self.input.pixel(input, row, col)) {
                            *out = (*out).max(x);
                        }
                    }
                }
            }
        }
    }

    fn label(&self) -> String {
        "scalar".into()
    }
}
