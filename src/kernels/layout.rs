//! Where the values of an activation lie: rows of pixels, channels innermost, with a halo around them.

/// Rows, columns and channels of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Pixels around an activation that hold its zero point, so that a window may reach over the edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Halo {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Halo {
    /// A halo that is enough for both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        const fn max(a: usize, b: usize) -> usize {
            if a > b { a } else { b }
        }
        Self {
            top: max(self.top, other.top),
            left: max(self.left, other.left),
            bottom: max(self.bottom, other.bottom),
            right: max(self.right, other.right),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.top == 0 && self.left == 0 && self.bottom == 0 && self.right == 0
    }
}

/// An activation in a buffer. `pixel_stride` is at least the number of channels; what lies between is never a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows, columns, channels.
    pub shape: Shape,
    /// Pixels around them.
    pub halo: Halo,
    /// Bytes from one pixel to the next.
    pub pixel_stride: usize,
}

impl Layout {
    /// Values without gaps: `[H, W, C]`.
    #[must_use]
    pub const fn dense(shape: Shape) -> Self {
        Self { shape, halo: Halo { top: 0, left: 0, bottom: 0, right: 0 }, pixel_stride: shape.c }
    }

    /// Pixels that take a multiple of 16 bytes, as vector kernels want them.
    #[must_use]
    pub const fn padded(shape: Shape, halo: Halo) -> Self {
        Self { shape, halo, pixel_stride: shape.c.next_multiple_of(16) }
    }

    /// A picture: up to four channels lie without gaps, so that a row under a window is one run of bytes.
    #[must_use]
    pub const fn picture(shape: Shape, halo: Halo) -> Self {
        let pixel_stride = if shape.c <= 4 { shape.c } else { shape.c.next_multiple_of(16) };
        Self { shape, halo, pixel_stride }
    }

    /// Whether the buffer holds the values alone, `[H, W, C]`.
    #[must_use]
    pub const fn is_dense(&self) -> bool {
        self.halo.is_empty() && self.pixel_stride == self.shape.c && self.len() == self.shape.len()
    }

    /// Bytes from one row to the next, halo included.
    #[must_use]
    pub const fn row_stride(&self) -> usize {
        (self.halo.left + self.shape.w + self.halo.right) * self.pixel_stride
    }

    /// Bytes of the whole buffer: its rows, and what kernels may read behind the last value, as they read four bytes at a time.
    #[must_use]
    pub const fn len(&self) -> usize {
        let slack = if self.pixel_stride.is_multiple_of(4) { 0 } else { 4 };
        (self.halo.top + self.shape.h + self.halo.bottom) * self.row_stride() + slack
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First byte of a pixel. Rows and columns count from the first that is not halo.
    #[must_use]
    pub const fn offset(&self, y: usize, x: usize) -> usize {
        (self.halo.top + y) * self.row_stride() + (self.halo.left + x) * self.pixel_stride
    }

    /// First byte of row `y`, its halo included.
    #[must_use]
    pub const fn row_offset(&self, y: usize) -> usize {
        (self.halo.top + y) * self.row_stride()
    }

    /// The channels of one pixel.
    #[must_use]
    #[inline]
    pub fn pixel<'a>(&self, values: &'a [u8], y: usize, x: usize) -> &'a [u8] {
        &values[self.offset(y, x)..][..self.shape.c]
    }

    /// Channels of the pixels of a row that lies in `row` from its left halo on.
    pub fn pixels_mut<'a>(&self, row: &'a mut [u8]) -> impl Iterator<Item = &'a mut [u8]> {
        let (first, n, channels) = (self.halo.left * self.pixel_stride, self.shape.w * self.pixel_stride, self.shape.c);
        row[first..first + n].chunks_exact_mut(self.pixel_stride).map(move |pixel| &mut pixel[..channels])
    }

    /// Writes `zero_point` into the halo of whole rows, left and right.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn fill_sides(&self, rows: &mut [u8], zero_point: u8) {
        if self.halo.left == 0 && self.halo.right == 0 {
            return;
        }
        let (row_stride, right) = (self.row_stride(), (self.halo.left + self.shape.w) * self.pixel_stride);
        assert_eq!(rows.len() % row_stride, 0, "whole rows");
        for row in rows.chunks_exact_mut(row_stride) {
            row[..self.halo.left * self.pixel_stride].fill(zero_point);
            row[right..].fill(zero_point);
        }
    }

    /// Writes `zero_point` into the halo above and below.
    ///
    /// # Panics
    /// If `values` is shorter than the layout.
    pub fn fill_ends(&self, values: &mut [u8], zero_point: u8) {
        values[..self.row_offset(0)].fill(zero_point);
        values[self.row_offset(self.shape.h)..self.len()].fill(zero_point);
    }

    /// The bytes of the rows themselves, without halo above and below.
    #[must_use]
    pub const fn body(&self) -> std::ops::Range<usize> {
        self.row_offset(0)..self.row_offset(self.shape.h)
    }
}

/// How a window slides over an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Rows and columns of the window.
    pub kernel: (usize, usize),
    /// Step in y and x.
    pub stride: (usize, usize),
    /// Distance of neighbouring taps in y and x.
    pub dilation: (usize, usize),
    /// Padding above, left, below, right.
    pub pads: [usize; 4],
}

impl Window {
    /// Number of taps.
    #[must_use]
    pub const fn n_taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Rows and columns of the output for an input of `h` x `w`; `None` where the window does not fit.
    #[must_use]
    pub fn output(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        let side = |size: usize, before: usize, after: usize, kernel: usize, dilation: usize, stride: usize| {
            let reach = dilation.checked_mul(kernel.checked_sub(1)?)?.checked_add(1)?;
            let padded = size.checked_add(before)?.checked_add(after)?;
            Some(padded.checked_sub(reach)?.checked_div(stride)? + 1)
        };
        let [top, left, bottom, right] = self.pads;
        Some((
            side(h, top, bottom, self.kernel.0, self.dilation.0, self.stride.0)?,
            side(w, left, right, self.kernel.1, self.dilation.1, self.stride.1)?,
        ))
    }

    /// The halo that an input of `shape` needs so that no tap leaves it.
    #[must_use]
    pub fn halo(&self, shape: Shape) -> Halo {
        let (rows, columns) = self.output(shape.h, shape.w).unwrap_or((1, 1));
        let after = |n_out: usize, stride: usize, kernel: usize, dilation: usize, before: usize, size: usize| {
            ((n_out - 1) * stride + (kernel - 1) * dilation + 1).saturating_sub(before + size)
        };
        let [top, left, ..] = self.pads;
        Halo {
            top,
            left,
            bottom: after(rows, self.stride.0, self.kernel.0, self.dilation.0, top, shape.h),
            right: after(columns, self.stride.1, self.kernel.1, self.dilation.1, left, shape.w),
        }
    }

    /// Row of the input under tap `ky` of output row `y`; `None` in the padding.
    #[must_use]
    #[inline]
    pub const fn input_row(&self, y: usize, ky: usize, h: usize) -> Option<usize> {
        tap(y * self.stride.0 + ky * self.dilation.0, self.pads[0], h)
    }

    /// Column of the input under tap `kx` of output column `x`; `None` in the padding.
    #[must_use]
    #[inline]
    pub const fn input_col(&self, x: usize, kx: usize, w: usize) -> Option<usize> {
        tap(x * self.stride.1 + kx * self.dilation.1, self.pads[1], w)
    }
}

const fn tap(padded: usize, pad: usize, size: usize) -> Option<usize> {
    if padded >= pad && padded - pad < size { Some(padded - pad) } else { None }
}
