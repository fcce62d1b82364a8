//! Rows of pixels to columns of pixels, for pictures that are turned by a quarter.

#[cfg(target_arch = "aarch64")]
use super::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use super::x86_64::avx2;
use super::{Isa, Kernels, scalar};

/// Pixels of three bytes: some rows of one length, and the picture that they become columns of.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) out: &'a mut [u8],
    pub(super) out_stride: usize,
}

impl Columns<'_> {
    pub(super) const fn n_rows(&self) -> usize {
        self.rows.len() / self.row_bytes
    }

    /// Pixels `from_x..` of rows `from_y..until_y`, one by one.
    pub(super) fn one_by_one(&mut self, from_x: usize, from_y: usize, until_y: usize) {
        for y in from_y..until_y {
            let row = self.rows[y * self.row_bytes..][..self.row_bytes].as_chunks::<3>().0;
            for (x, pixel) in row.iter().enumerate().skip(from_x) {
                self.out[x * self.out_stride + 3 * y..][..3].copy_from_slice(pixel);
            }
        }
    }
}

impl Kernels {
    /// Makes columns of rows of pixels, three bytes each: pixel `x` of row `y` becomes pixel `y` of row `x` of `out`, whose rows
    /// are `out_stride` bytes apart.
    ///
    /// # Panics
    /// If `rows` are not whole rows of pixels, or `out` has no room.
    pub fn rows_to_columns(self, rows: &[u8], row_bytes: usize, out: &mut [u8], out_stride: usize) {
        assert!(row_bytes > 0 && row_bytes.is_multiple_of(3) && rows.len().is_multiple_of(row_bytes), "whole rows of pixels");
        let width = rows.len() / row_bytes * 3;
        let end = (row_bytes / 3 - 1).checked_mul(out_stride).and_then(|start| start.checked_add(width));
        assert!(width <= out_stride && end.is_some_and(|end| end <= out.len()), "room for all columns");
        let columns = Columns { rows, row_bytes, out, out_stride };
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => avx2::rows_to_columns(columns),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::Dotprod | Isa::I8mm => neon::rows_to_columns(columns),
            _ => scalar::rows_to_columns(columns),
        }
    }
}
