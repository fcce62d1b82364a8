//! The raw outputs of a network, as postprocessing reads them.

use crate::quant::QuantParams;
use smallvec::SmallVec;

/// Values of one output: `[H, W, C]`, channels innermost.
#[derive(Debug, Clone, Copy)]
pub enum HeadData<'a> {
    /// Quantised values and what they stand for: the integer executor.
    Quantized(&'a [u8], QuantParams),
    /// Real values: a float network.
    Float(&'a [f32]),
}

impl HeadData<'_> {
    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Quantized(values, _) => values.len(),
            Self::Float(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Both outputs of one level.
#[derive(Debug, Clone, Copy)]
pub struct LevelHeads<'a> {
    /// Columns and rows.
    pub grid: (usize, usize),
    /// Logits, channel `a x K + k`.
    pub cls_logits: HeadData<'a>,
    /// Deltas, channel `a x 4 + {dx, dy, dw, dh}`.
    pub bbox_deltas: HeadData<'a>,
}

/// Outputs of all levels, from the finest.
#[derive(Debug, Clone)]
pub struct HeadOutputs<'a> {
    /// One entry per level; up to eight need no allocation.
    pub levels: SmallVec<[LevelHeads<'a>; 8]>,
}
