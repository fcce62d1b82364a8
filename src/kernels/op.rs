//! What an operator computes, independent of who computes it.

use super::{Layout, Shape, Window};
use std::fmt::Debug;
use std::sync::Arc;

/// Maps a quantised value to another.
pub type Table = [u8; 256];

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

/// A convolution. The loader has checked that no accumulator can overflow 32 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvSpec {
    /// How the window slides.
    pub window: Window,
    /// Groups of channels that do not see each other; as many as input and output channels: depthwise.
    pub groups: usize,
    /// ONNX order `[O][I / groups][kh][kw]`; shared by the convolutions that share their weights.
    pub weights: Arc<[i8]>,
    /// One for each output channel, in steps of `input scale x weight scale`.
    pub bias: Vec<i32>,
    /// Zero point of the input.
    pub input_zero_point: u8,
    /// From accumulators to values.
    pub requant: Requantization,
}

impl ConvSpec {
    /// Output channels.
    #[must_use]
    pub const fn out_channels(&self) -> usize {
        self.bias.len()
    }

    /// Input channels of one group.
    #[must_use]
    pub fn in_per_group(&self) -> usize {
        self.weights.len() / (self.out_channels() * self.window.n_taps())
    }

    /// Whether each channel is a group of its own.
    #[must_use]
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.out_channels() && self.in_per_group() == 1
    }

    /// Whether an input of one shape gives an output of the other, and there are as many weights as that takes.
    fn fits(&self, input: Shape, output: Shape) -> bool {
        let n = self.out_channels();
        self.window.output(input.h, input.w) == Some((output.h, output.w))
            && output.c == n
            && self.groups > 0
            && n.is_multiple_of(self.groups)
            && input.c.is_multiple_of(self.groups)
            && self.requant.multipliers.len() == n
            && self.weights.len() == n * (input.c / self.groups) * self.window.n_taps()
    }

    /// Weight of output channel `o` for input channel `i` of its group under tap `tap`.
    #[must_use]
    pub fn weight(&self, o: usize, i: usize, tap: usize) -> i8 {
        self.weights[(o * self.in_per_group() + i) * self.window.n_taps() + tap]
    }

    /// Bias of output channel `o` for a kernel that multiplies `x` instead of `x - zero point`: `bias - zp x sum of weights`.
    #[must_use]
    pub fn folded_bias(&self, o: usize) -> i32 {
        self.folded_bias_from(0, o)
    }

    /// The same for a kernel that multiplies `x - origin`: `bias - (zp - origin) x sum of weights`.
    #[must_use]
    pub fn folded_bias_from(&self, origin: u8, o: usize) -> i32 {
        let per_channel = self.in_per_group() * self.window.n_taps();
        let sum: i32 = self.weights[o * per_channel..][..per_channel].iter().map(|&w| i32::from(w)).sum();
        self.bias[o].wrapping_sub(sum.wrapping_mul(i32::from(self.input_zero_point) - i32::from(origin)))
    }
}

/// One side of a sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddTerm {
    /// Zero point of this input.
    pub zero_point: u8,
    /// `scale of this input / scale of the output`.
    pub ratio: f32,
    /// Whether this input has half the size and each of its pixels stands for four.
    pub is_doubled: bool,
}

/// An operator on activations.
#[derive(Debug, Clone, PartialEq)]
pub enum OpSpec {
    /// Convolution and requantisation.
    Conv(ConvSpec),
    /// Maximum over a window; padding never wins.
    MaxPool(Window),
    /// Sum of two activations ([`crate::quant::requantize_add`]).
    Add {
        /// The two sides.
        terms: [AddTerm; 2],
        /// Zero point of the sum.
        zero_point: u8,
        /// Lowest value.
        lo: u8,
        /// Highest value.
        hi: u8,
    },
    /// The one input is added to what lies in the output, rows by rows: the first of `terms` is the output's own.
    AddTo {
        /// The two sides.
        terms: [AddTerm; 2],
        /// Zero point of the sum.
        zero_point: u8,
        /// Lowest value.
        lo: u8,
        /// Highest value.
        hi: u8,
    },
    /// Convolution of the first input, requantised, then the sum with the second.
    ConvAdd {
        /// The convolution; what it makes is the first of `terms`.
        conv: ConvSpec,
        /// The two sides.
        terms: [AddTerm; 2],
        /// Zero point of the sum.
        zero_point: u8,
        /// Lowest value.
        lo: u8,
        /// Highest value.
        hi: u8,
    },
    /// Channels of several inputs side by side; a table for each part whose parameters differ from the whole.
    Concat(Vec<Option<Box<Table>>>),
    /// Channels `first..` of the interleaving `a0 b0 a1 b1 …` of two inputs: concatenation, channel shuffle in two groups
    /// (ShuffleNet, arXiv 1707.01083, section 3.1) and split in one.
    Interleave {
        /// First channel; even.
        first: usize,
        /// A table for each input whose parameters differ from the output.
        tables: [Option<Box<Table>>; 2],
    },
    /// Every pixel as two by two.
    Upsample2,
    /// Channels `first..`.
    Slice {
        /// First channel.
        first: usize,
    },
    /// Channel `g x (C / groups) + i` becomes `i x groups + g`.
    Shuffle {
        /// Number of groups.
        groups: usize,
    },
    /// A function of one value.
    Table(Box<Table>),
}

impl OpSpec {
    /// The convolution, where there is one.
    #[must_use]
    pub const fn conv(&self) -> Option<&ConvSpec> {
        match self {
            Self::Conv(conv) | Self::ConvAdd { conv, .. } => Some(conv),
            _ => None,
        }
    }

    /// Whether these layouts are those of an input each and of the output of this operator. Kernels reckon with it where they
    /// read and write by pointer.
    #[must_use]
    pub fn fits(&self, inputs: &[Layout], output: Layout) -> bool {
        let out = output.shape;
        let same = |input: &Layout| input.shape == out;
        let same_size = |input: &Layout| (input.shape.h, input.shape.w) == (out.h, out.w);
        let doubled =
            |input: &Layout| (input.shape.h, input.shape.w, input.shape.c) == (out.h.div_ceil(2), out.w.div_ceil(2), out.c);
        let is_term = |input: &Layout, term: &AddTerm| if term.is_doubled { doubled(input) } else { same(input) };
        let layouts_hold = inputs.iter().chain([&output]).all(|layout| layout.pixel_stride >= layout.shape.c);
        layouts_hold
            && match (self, inputs) {
                (Self::Conv(conv), [input]) => conv.fits(input.shape, out),
                (Self::MaxPool(window), [input]) => {
                    window.output(input.shape.h, input.shape.w) == Some((out.h, out.w)) && input.shape.c == out.c
                }
                (Self::Add { terms, .. }, [a, b]) => is_term(a, &terms[0]) && is_term(b, &terms[1]),
                (Self::AddTo { terms, .. }, [input]) => !terms[0].is_doubled && is_term(input, &terms[1]),
                (Self::ConvAdd { conv, terms, .. }, [input, other]) => {
                    conv.fits(input.shape, out) && !terms[0].is_doubled && is_term(other, &terms[1])
                }
                (Self::Concat(tables), parts) => {
                    let n_channels: usize = parts.iter().map(|part| part.shape.c).sum();
                    tables.len() == parts.len() && n_channels == out.c && parts.iter().all(same_size)
                }
                (Self::Interleave { first, .. }, [a, b]) => {
                    a.shape == b.shape && same_size(a) && first.is_multiple_of(2) && first + out.c <= 2 * a.shape.c
                }
                (Self::Upsample2, [input]) => doubled(input),
                (Self::Slice { first }, [input]) => same_size(input) && first + out.c <= input.shape.c,
                (Self::Shuffle { groups }, [input]) => same(input) && *groups > 0 && out.c.is_multiple_of(*groups),
                (Self::Table(_), [input]) => same(input),
                _ => false,
            }
    }

    /// Name in reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Conv(_) => "QuantConv",
            Self::MaxPool(_) => "QuantMaxPool",
            Self::Add { .. } | Self::AddTo { .. } => "QuantAdd",
            Self::ConvAdd { .. } => "QuantConvAdd",
            Self::Concat(_) => "QuantConcat",
            Self::Interleave { .. } => "QuantInterleave",
            Self::Upsample2 => "QuantUpsample2",
            Self::Slice { .. } => "QuantSlice",
            Self::Shuffle { .. } => "QuantShuffle",
            Self::Table(_) => "QuantTable",
        }
    }
}

/// An operator prepared for one instruction set and for the layouts of its inputs and output.
///
/// Rows do not depend on each other: any rows may be computed at any time, in any order, by any thread.
pub trait RowKernel: Debug + Send + Sync {
    /// Computes output rows `first..` into `out`, which is a whole number of rows, each with its halo; the halo is
    /// left as it is. `inputs` are whole buffers of the layouts that the kernel was prepared for.
    ///
    /// # Panics
    /// If a buffer is shorter than its layout.
    fn rows(&self, inputs: &[&[u8]], first: usize, out: &mut [u8]);

    /// Rows that cost as much together as any one of them: pieces should begin at multiples of it.
    fn rows_together(&self) -> usize {
        1
    }

    /// Which kernel this is, for tables: `avx512vnni 6x64`.
    fn label(&self) -> String;
}

/// What all kernels check before they trust their pointers.
pub(super) fn check_buffers<'a>(
    inputs: impl IntoIterator<Item = (&'a [u8], &'a Layout)>,
    first: usize,
    out: &[u8],
    output: &Layout,
) -> usize {
    for (buffer, layout) in inputs {
        assert!(buffer.len() >= layout.len(), "an input of {} bytes for {layout:?}", buffer.len());
    }
    let n_rows = out.len() / output.row_stride();
    assert!(out.len() == n_rows * output.row_stride() && first + n_rows <= output.shape.h, "whole rows of the output");
    n_rows
}
