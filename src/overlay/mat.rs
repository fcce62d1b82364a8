//! The one place with `unsafe`: an OpenCV matrix over a plane with a stride.
#![expect(unsafe_code, reason = "OpenCV takes a pointer and a step; nothing safe offers both")]

use crate::frame::PlaneMut;
use opencv::boxed_ref::BoxedRefMut;
use opencv::core::{CV_MAKETYPE, Mat};
use std::ffi::c_void;

/// `rows` x `cols` samples of `channels` bytes over `plane`, sharing its memory.
///
/// # Panics
/// If the plane is shorter than that.
pub(super) fn over_plane<'a>(
    plane: &'a mut PlaneMut<'_>,
    rows: usize,
    cols: usize,
    channels: i32,
) -> opencv::Result<BoxedRefMut<'a, Mat>> {
    let row_bytes = cols * usize::try_from(channels).expect("1 to 4 channels");
    assert!(rows >= 1 && cols >= 1 && plane.stride_bytes >= row_bytes, "a row fits in its stride");
    assert!(plane.data.len() >= plane.stride_bytes * (rows - 1) + row_bytes, "the plane has all rows");
    let side = |n: usize| i32::try_from(n).expect("sides are at most MAX_SIDE");
    // SAFETY:
    // - all bytes that the matrix reaches are inside `plane.data`: rows x stride + the last row, asserted above;
    // - they are borrowed mutably for 'a, and so is the matrix: nothing else reads or writes them meanwhile;
    // - OpenCV does not free or reallocate memory that it was given.
    let mat = unsafe {
        Mat::new_rows_cols_with_data_unsafe(
            side(rows),
            side(cols),
            CV_MAKETYPE(0, channels),
            plane.data.as_mut_ptr().cast::<c_void>(),
            plane.stride_bytes,
        )?
    };
    Ok(BoxedRefMut::from(mat))
}
