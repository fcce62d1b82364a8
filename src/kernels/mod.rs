//! The inner loops of the network: integer operators on `u8` activations in `[H, W, C]`, channels innermost.
//!
//! [`scalar`] is the specification: plain loops whose results every other instruction set must reproduce bit for bit.
//! Kernels are named `<in>_<weights>_<op>`: `qu8` is a `u8` activation with one scale and zero point for the tensor,
//! `qc8w` an `i8` weight with one scale for each output channel. They write whole rows, so that a caller can hand
//! rows to threads; which rows a call computes never changes a bit.

pub mod scalar;

/// An instruction set with kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// Plain loops: every CPU.
    Scalar,
}

impl Isa {
    /// Those in this build that this CPU has, the best last.
    #[must_use]
    pub const fn available() -> &'static [Self] {
        &[Self::Scalar]
    }

    /// Name in reports and in `FOVEA_ISA`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
        }
    }
}

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

    /// Values in one row.
    #[must_use]
    pub const fn row_len(&self) -> usize {
        self.w * self.c
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

/// How accumulators become `u8`: see [`crate::quant::requantize`].
#[derive(Debug, Clone, PartialEq)]
pub struct Requantization {
    /// `(s_x x s_w[c]) / s_y`, one for each output channel.
    pub multipliers: Vec<f32>,
    /// Zero point of the output.
    pub zero_point: u8,
    /// Lowest output value; the zero point where a `ReLU` is fused.
    pub lo: u8,
    /// Highest output value.
    pub hi: u8,
}
