//! Interleaving of two inputs, and tables.
//!
//! `vpshufb` looks up 16 entries, and gives 0 where the index has its highest bit set: 16 of them, each with the indices moved
//! so that only its own entries lie below 16, or-ed together look up 32 values.

use crate::kernels::op::check_buffers;
use crate::kernels::{Layout, RowKernel, Table};
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
        let fits = first.is_multiple_of(2) && output.pixel_stride.is_multiple_of(16);
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
        "avx2 1x32".into()
    }
}

/// # Safety
/// The CPU has AVX2; inputs and `out` have the sizes of their layouts.
#[target_feature(enable = "avx2")]
unsafe fn interleave_row(op: &Interleave, inputs: [&[u8]; 2], y: usize, out: &mut [u8]) {
    let stride = op.output.pixel_stride;
    let side = |idx: usize, x: usize, from: usize| {
        let bytes = first_16(&inputs[idx][op.inputs[idx].offset(y, x)..][..op.inputs[idx].pixel_stride], from);
        match &op.tables[idx] {
            None => bytes,
            Some(table) => _mm256_castsi256_si128(look_up(table, _mm256_castsi128_si256(bytes))),
        }
    };
    for x in 0..op.output.shape.w {
        let to = (op.output.halo.left + x) * stride;
        for at in (0..stride).step_by(32) {
            let (a, b) = (side(0, x, op.first + at / 2), side(1, x, op.first + at / 2));
            // SAFETY: a pixel takes a multiple of 16 bytes, so 16 or 32 are left of it in the row.
            unsafe {
                let out = out.as_mut_ptr().add(to + at);
                _mm_storeu_si128(out.cast(), _mm_unpacklo_epi8(a, b));
                if stride - at > 16 {
                    _mm_storeu_si128(out.add(16).cast(), _mm_unpackhi_epi8(a, b));
                }
            }
        }
    }
}

/// 16 bytes of a pixel, zeros where it ends.
#[inline]
#[target_feature(enable = "avx2")]
fn first_16(pixel: &[u8], from: usize) -> __m128i {
    let mut bytes = [0; 16];
    if let Some(whole) = pixel.get(from..from + 16) {
        bytes.copy_from_slice(whole);
    } else if let Some(rest) = pixel.get(from..) {
        bytes[..rest.len()].copy_from_slice(rest);
    }
    // SAFETY: 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// `table[value]` of 32 values.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(table: &Table, values: __m256i) -> __m256i {
    let mut found = _mm256_setzero_si256();
    // The high half of an index becomes 0 in its own round; all others get the highest bit from the saturating sum.
    let (mut moved, beyond) = (values, _mm256_set1_epi8(0x70));
    for entries in table.as_chunks::<16>().0 {
        // SAFETY: 16 bytes.
        let entries = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(entries.as_ptr().cast())) };
        found = _mm256_or_si256(found, _mm256_shuffle_epi8(entries, _mm256_adds_epu8(moved, beyond)));
        moved = _mm256_sub_epi8(moved, _mm256_set1_epi8(0x10));
    }
    found
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
        "avx2 32".into()
    }
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn look_up_row(table: &Table, from: &[u8], to: &mut [u8]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(16), "whole groups of 16");
    for (from, to) in from.chunks(32).zip(to.chunks_mut(32)) {
        // SAFETY: a chunk has 32 bytes or, where it is the last, 16.
        unsafe {
            if from.len() == 32 {
                let values = _mm256_loadu_si256(from.as_ptr().cast());
                _mm256_storeu_si256(to.as_mut_ptr().cast(), look_up(table, values));
            } else {
                let values = _mm256_castsi128_si256(_mm_loadu_si128(from.as_ptr().cast()));
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(look_up(table, values)));
            }
        }
    }
}
