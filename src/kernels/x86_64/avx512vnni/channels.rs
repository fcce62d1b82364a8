//! Interleaving of two inputs, and tables.
//!
//! A table of 256 bytes lies in four registers. `vpermi2b` (VBMI) looks up 128 entries, so two of them and a choice by the highest
//! bit look up 64 values. Where the CPU has no VBMI the plain loops do it.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Table};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

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
        let has_tables = tables.iter().any(Option::is_some);
        let fits = first.is_multiple_of(2)
            && output.pixel_stride.is_multiple_of(16)
            && (!has_tables || is_x86_feature_detected!("avx512vbmi"));
        fits.then_some(Self { inputs, output, first: first / 2, tables })
    }
}

impl RowKernel for Interleave {
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]) {
        check_buffers([(inputs[0], &self.inputs[0]), (inputs[1], &self.inputs[1])], first, out, &self.output);
        for (y, row) in (first..).zip(out.chunks_exact_mut(self.output.row_stride())) {
            // SAFETY: `Kernels` vouches for the CPU, `new` for VBMI where there are tables; the buffers were checked above.
            unsafe {
                if self.tables.iter().any(Option::is_some) {
                    interleave_through_tables(self, [inputs[0], inputs[1]], y, row);
                } else {
                    interleave_row(self, [inputs[0], inputs[1]], y, row);
                }
            }
        }
    }

    fn label(&self) -> String {
        "avx512vnni 1x64".into()
    }
}

/// Calls `pair(a, b)` for every 32 channels of each input and stores what it makes.
macro_rules! interleave_pixels {
    ($op:expr, $inputs:expr, $y:expr, $out:expr, $pair:expr) => {{
        let (op, stride) = ($op, $op.output.pixel_stride);
        for x in 0..op.output.shape.w {
            let (a, b) = (op.inputs[0].offset($y, x), op.inputs[1].offset($y, x));
            let to = (op.output.halo.left + x) * stride;
            for at in (0..stride).step_by(64) {
                let from = op.first + at / 2;
                let mask = |layout: &Layout| {
                    let left = layout.pixel_stride.saturating_sub(from);
                    if left >= 32 { u32::MAX } else { (1 << left) - 1 }
                };
                let left = stride - at;
                let store = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
                // SAFETY: the masks keep loads and the store within one pixel of each buffer.
                unsafe {
                    let a = _mm256_maskz_loadu_epi8(mask(&op.inputs[0]), $inputs[0].as_ptr().add(a + from).cast());
                    let b = _mm256_maskz_loadu_epi8(mask(&op.inputs[1]), $inputs[1].as_ptr().add(b + from).cast());
                    let (a, b) = $pair(a, b);
                    let bytes = _mm512_or_si512(_mm512_cvtepu8_epi16(a), _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(b)));
                    _mm512_mask_storeu_epi8($out.as_mut_ptr().add(to + at).cast(), store, bytes);
                }
            }
        }
    }};
}

/// # Safety
/// The CPU has the instruction set; inputs and `out` have the sizes of their layouts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn interleave_row(op: &Interleave, inputs: [&[u8]; 2], y: usize, out: &mut [u8]) {
    interleave_pixels!(op, inputs, y, out, |a, b| (a, b));
}

/// # Safety
/// The CPU has the instruction set and VBMI; inputs and `out` have the sizes of their layouts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn interleave_through_tables(op: &Interleave, inputs: [&[u8]; 2], y: usize, out: &mut [u8]) {
    let mut identity = [0_u8; 256];
    for (q, slot) in (0..=u8::MAX).zip(&mut identity) {
        *slot = q;
    }
    let registers = |table: &Option<Box<Table>>| Registers::load(table.as_deref().unwrap_or(&identity));
    let [a, b] = [registers(&op.tables[0]), registers(&op.tables[1])];
    let half = |values: __m512i| _mm512_castsi512_si256(values);
    interleave_pixels!(op, inputs, y, out, |x, y| (
        half(a.look_up(_mm512_castsi256_si512(x))),
        half(b.look_up(_mm512_castsi256_si512(y)))
    ));
}

/// A table in four registers.
#[derive(Clone, Copy)]
struct Registers([__m512i; 4]);

impl Registers {
    #[target_feature(enable = "avx512f")]
    fn load(table: &Table) -> Self {
        let mut registers = [_mm512_setzero_si512(); 4];
        for (register, bytes) in registers.iter_mut().zip(table.as_chunks::<64>().0) {
            // SAFETY: 64 bytes.
            *register = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        }
        Self(registers)
    }

    /// `table[value]` of 64 values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(self, values: __m512i) -> __m512i {
        let [a, b, c, d] = self.0;
        let (low, high) = (_mm512_permutex2var_epi8(a, values, b), _mm512_permutex2var_epi8(c, values, d));
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(values), low, high)
    }
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
        let fits = input.pixel_stride == output.pixel_stride && is_x86_feature_detected!("avx512vbmi");
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
            // SAFETY: `Kernels` vouches for the CPU, `new` for VBMI.
            unsafe { look_up_row(&self.table, from, to) };
        }
    }

    fn label(&self) -> String {
        "avx512vnni 64".into()
    }
}

/// # Safety
/// The CPU has the instruction set and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn look_up_row(table: &Table, from: &[u8], to: &mut [u8]) {
    let registers = Registers::load(table);
    for (from, to) in from.chunks(64).zip(to.chunks_mut(64)) {
        let mask = if from.len() == 64 { u64::MAX } else { (1 << from.len()) - 1 };
        // SAFETY: the mask keeps load and store within the two chunks, which are equally long.
        unsafe {
            let values = _mm512_maskz_loadu_epi8(mask, from.as_ptr().cast());
            _mm512_mask_storeu_epi8(to.as_mut_ptr().cast(), mask, registers.look_up(values));
        }
    }
}
