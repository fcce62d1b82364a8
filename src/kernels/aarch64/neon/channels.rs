//! Interleaving of two inputs, and tables.
//!
//! `tbl` looks up 16 values in four registers, which are 64 entries, and gives 0 for an index behind them; `tbx` leaves the value
//! as it is. Four of them, the index lowered by 64 each time, look up 16 values in 256 entries.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Table};
use std::arch::aarch64::*;

/// Channels `first..` of `a0 b0 a1 b1 …`.
#[derive(Debug)]
pub(super) struct Interleave {
    inputs: [Layout; 2],
    output: Layout,
    /// First channel of each input.
    first: usize,
    tables: [Option<Box<Table>>; 2],
}

impl Interleave {
    pub(super) fn new(inputs: [Layout; 2], output: Layout, first: usize, tables: [Option<Box<Table>>; 2]) -> Option<Self> {
        let layouts = [inputs[0], inputs[1], output];
        let fits = first.is_multiple_of(2) && layouts.iter().all(|layout| layout.pixel_stride.is_multiple_of(16));
        fits.then_some(Self { inputs, output, first: first / 2, tables })
    }
}

impl RowKernel for Interleave {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.inputs[0]), (inputs[1], &self.inputs[1])], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU; the buffers were checked above.
            unsafe { interleave_row(self, [inputs[0], inputs[1]], y, row) };
        }
    }

    fn label(&self) -> String {
        "neon 1x16".into()
    }
}

/// # Safety
/// The CPU has the instruction set; inputs and `out` have the sizes of their layouts.
#[target_feature(enable = "neon")]
unsafe fn interleave_row(op: &Interleave, inputs: [&[u8]; 2], y: usize, out: &mut [u8]) {
    let stride = op.output.pixel_stride;
    for x in 0..op.output.shape.w {
        let (a, b) = (op.inputs[0].offset(y, x), op.inputs[1].offset(y, x));
        let to = (op.output.halo.left + x) * stride;
        for at in (0..stride).step_by(16) {
            let from = op.first + at / 2;
            // SAFETY: 16 bytes of a pixel of the output; the loads stay within a pixel of each input.
            unsafe {
                let half = |idx: usize, pixel: usize| {
                    let left = op.inputs[idx].pixel_stride.saturating_sub(from);
                    let values = load_half(inputs[idx].as_ptr().add(pixel), from, left);
                    match &op.tables[idx] {
                        None => values,
                        Some(table) => vget_low_u8(look_up(table, vcombine_u8(values, values))),
                    }
                };
                let (a, b) = (half(0, a), half(1, b));
                vst1q_u8(out.as_mut_ptr().add(to + at), vcombine_u8(vzip1_u8(a, b), vzip2_u8(a, b)));
            }
        }
    }
}

/// Eight bytes of a pixel from its byte `from` on, of which `left` are there; the others are 0.
///
/// # Safety
/// `pixel` is valid for reads of `from + left` bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_half(pixel: *const u8, from: usize, left: usize) -> uint8x8_t {
    if left >= 8 {
        // SAFETY: eight bytes are there.
        return unsafe { vld1_u8(pixel.add(from)) };
    }
    let mut bytes = [0; 8];
    for (i, byte) in bytes.iter_mut().enumerate().take(left) {
        // SAFETY: fewer than `left`.
        *byte = unsafe { pixel.add(from + i).read() };
    }
    // SAFETY: eight bytes.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// `table[value]` of 16 values.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(table: &Table, values: uint8x16_t) -> uint8x16_t {
    let step = vdupq_n_u8(64);
    // SAFETY: 64 bytes each.
    let quarters = unsafe { [0, 64, 128, 192].map(|first| vld1q_u8_x4(table[first..first + 64].as_ptr())) };
    let mut index = values;
    let mut out = vqtbl4q_u8(quarters[0], index);
    for quarter in &quarters[1..] {
        index = vsubq_u8(index, step);
        out = vqtbx4q_u8(out, *quarter, index);
    }
    out
}

/// `out[i] = table[input[i]]`.
#[derive(Debug)]
pub(super) struct TableLookup {
    input: Layout,
    output: Layout,
    table: Box<Table>,
}

impl TableLookup {
    pub(super) fn new(input: Layout, output: Layout, table: &Table) -> Option<Self> {
        let fits = input.pixel_stride == output.pixel_stride && input.pixel_stride.is_multiple_of(16);
        fits.then(|| Self { input, output, table: Box::new(*table) })
    }
}

impl RowKernel for TableLookup {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.input)], first, out, &self.output);
        let row_len = self.input.shape.w * self.input.pixel_stride;
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            let from = &inputs[0][self.input.offset(y, 0)..][..row_len];
            let to = &mut row[self.output.halo.left * self.output.pixel_stride..][..row_len];
            // SAFETY: `Kernels` vouches for the CPU.
            unsafe { look_up_row(&self.table, from, to) };
        }
    }

    fn label(&self) -> String {
        "neon 16".into()
    }
}

/// # Safety
/// The CPU has the instruction set.
#[target_feature(enable = "neon")]
unsafe fn look_up_row(table: &Table, from: &[u8], to: &mut [u8]) {
    for (from, to) in from.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<16>().0) {
        // SAFETY: 16 bytes each.
        unsafe { vst1q_u8(to.as_mut_ptr(), look_up(table, vld1q_u8(from.as_ptr()))) };
    }
}
