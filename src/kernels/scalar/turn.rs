//! Rows of pixels to columns of pixels.

use crate::kernels::turn::Columns;

/// As `Kernels::rows_to_columns`.
pub(in crate::kernels) fn rows_to_columns(mut columns: Columns<'_>) {
    columns.one_by_one(0, 0, columns.n_rows());
}
