//! The integer operators as tract operators: they own packed weights and reuse their output buffers.

use super::graph::{Activation, Conv, Operator, Step};
use crate::kernels::scalar::{self, AddTerm, PackedConv, PackedDepthwise};
use crate::kernels::{Requantization, Shape, Window};
use rayon::prelude::*;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{LaneId, StaticName};
use tract_onnx::tract_core::ops::{EvalOp, Op, OpState, TypedOp};
use tract_onnx::tract_core::plan::EvalContext;
use tract_onnx::tract_core::{as_op, not_out_of_plan, op_as_typed_op};

/// Below this many multiplications a layer is not worth waking threads for.
const MIN_PARALLEL_MACS: usize = 200_000;

/// The threads that share the rows of a layer; `None` runs on the caller's thread alone.
#[derive(Clone)]
pub(super) struct Workers(pub Option<Arc<rayon::ThreadPool>>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Workers").field(&self.n_threads()).finish()
    }
}

impl Workers {
    /// Threads that work on a layer.
    pub(super) fn n_threads(&self) -> usize {
        self.0.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Calls `row(y, out_row)` for every row of `out`, over threads where `macs` make it worth while.
    fn rows(&self, out: &mut [u8], row_len: usize, macs: usize, row: impl Fn(usize, &mut [u8]) + Sync) {
        match &self.0 {
            Some(pool) if macs >= MIN_PARALLEL_MACS => {
                pool.install(|| out.par_chunks_exact_mut(row_len).enumerate().for_each(|(y, out)| row(y, out)));
            }
            _ => out.chunks_exact_mut(row_len).enumerate().for_each(|(y, out)| row(y, out)),
        }
    }
}

/// An operator with everything prepared.
#[derive(Debug, Clone, PartialEq)]
enum Kernel {
    Conv { window: Window, packed: PackedConv, requant: Requantization, macs: usize },
    Depthwise { window: Window, packed: PackedDepthwise, requant: Requantization, macs: usize },
    MaxPool(Window),
    Add { terms: [AddTerm; 2], range: (u8, u8, u8) },
    Concat(Vec<Option<Box<[u8; 256]>>>),
    Upsample2,
    Slice { first: usize },
    Shuffle { groups: usize },
    Table(Box<[u8; 256]>),
}

/// One step of an integer network as a tract operator.
#[derive(Debug, Clone)]
pub(super) struct QuantOp {
    name: &'static str,
    kernel: Arc<Kernel>,
    inputs: Vec<Activation>,
    output: Activation,
    workers: Workers,
}

impl PartialEq for QuantOp {
    fn eq(&self, other: &Self) -> bool {
        self.kernel == other.kernel && self.inputs == other.inputs && self.output == other.output
    }
}

impl Eq for QuantOp {}

impl QuantOp {
    /// The operator of `step`; `values` are the activations of the graph.
    pub(super) fn new(step: &Step, values: &[Activation], workers: &Workers) -> Self {
        let inputs: Vec<Activation> = step.inputs.iter().map(|&id| values[id]).collect();
        let output = values[step.output];
        let kernel = match &step.operator {
            Operator::Conv(conv) => Self::conv(conv, inputs[0].shape, output),
            Operator::MaxPool(window) => Kernel::MaxPool(*window),
            Operator::Add { terms, lo, hi } => Kernel::Add { terms: *terms, range: (output.params.zero_point, *lo, *hi) },
            Operator::Concat(tables) => Kernel::Concat(tables.clone()),
            Operator::Upsample2 => Kernel::Upsample2,
            Operator::Slice { first } => Kernel::Slice { first: *first },
            Operator::Shuffle { groups } => Kernel::Shuffle { groups: *groups },
            Operator::Table(table) => Kernel::Table(table.clone()),
        };
        Self { name: step.operator.name(), kernel: Arc::new(kernel), inputs, output, workers: workers.clone() }
    }

    fn conv(conv: &Conv, input: Shape, output: Activation) -> Kernel {
        let requant = Requantization {
            multipliers: conv.multipliers.clone(),
            zero_point: output.params.zero_point,
            lo: conv.lo,
            hi: conv.hi,
        };
        let (window, macs) = (conv.window, macs(conv, output.shape));
        let taps = window.kernel.0 * window.kernel.1;
        if conv.groups == input.c && conv.bias.len() == input.c {
            let packed = PackedDepthwise::new(&conv.weights, &conv.bias, taps);
            Kernel::Depthwise { window, packed, requant, macs }
        } else {
            let packed = PackedConv::new(&conv.weights, &conv.bias, conv.groups, input.c, taps);
            Kernel::Conv { window, packed, requant, macs }
        }
    }

    fn compute(&self, inputs: &[&[u8]], out: &mut [u8]) {
        let (shape, zero_point) = (self.inputs[0].shape, self.inputs[0].params.zero_point);
        let row_len = self.output.shape.row_len();
        let channels = self.output.shape.c;
        let input = inputs[0];
        let input_row = |y: usize| &input[y * shape.row_len()..][..shape.row_len()];
        match &*self.kernel {
            Kernel::Conv { window, packed, requant, macs } => self.workers.rows(out, row_len, *macs, |y, out| {
                scalar::qu8_qc8w_conv_row(input, shape, zero_point, window, packed, requant, y, out);
            }),
            Kernel::Depthwise { window, packed, requant, macs } => self.workers.rows(out, row_len, *macs, |y, out| {
                scalar::qu8_qc8w_depthwise_row(input, shape, zero_point, window, packed, requant, y, out);
            }),
            Kernel::MaxPool(window) => {
                for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
                    scalar::qu8_maxpool_row(input, shape, window, y, out);
                }
            }
            Kernel::Add { terms, range } => scalar::qu8_add((input, terms[0]), (inputs[1], terms[1]), *range, out),
            Kernel::Concat(tables) => {
                let mut first = 0;
                for ((part, table), input) in self.inputs.iter().zip(tables).zip(inputs) {
                    let rows = input.chunks_exact(part.shape.row_len()).zip(out.chunks_exact_mut(row_len));
                    for (row, out) in rows {
                        scalar::qu8_concat_row(row, part.shape.c, table.as_deref(), first, channels, out);
                    }
                    first += part.shape.c;
                }
            }
            Kernel::Upsample2 => {
                for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
                    scalar::qu8_upsample2_row(input_row(y / 2), channels, out);
                }
            }
            Kernel::Slice { first } => {
                for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
                    scalar::qu8_slice_row(input_row(y), shape.c, *first, channels, out);
                }
            }
            Kernel::Shuffle { groups } => {
                for (y, out) in out.chunks_exact_mut(row_len).enumerate() {
                    scalar::qu8_shuffle_row(input_row(y), channels, *groups, out);
                }
            }
            Kernel::Table(table) => scalar::qu8_table(input, table, out),
        }
    }
}

/// Multiplications of a convolution.
pub(super) fn macs(conv: &Conv, output: Shape) -> usize {
    output.h * output.w * conv.weights.len()
}

impl Op for QuantOp {
    fn name(&self) -> StaticName {
        self.name.into()
    }
    op_as_typed_op!();
}

impl EvalOp for QuantOp {
    not_out_of_plan!();

    fn state(&self, _: &EvalContext<'_>) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(Buffers(Vec::new()))))
    }
}

impl TypedOp for QuantOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(u8::fact(nhwc(self.output.shape))))
    }
    as_op!();
}

/// `[1, H, W, C]`.
pub(super) const fn nhwc(shape: Shape) -> [usize; 4] {
    [1, shape.h, shape.w, shape.c]
}

/// Output buffers of one operator in one session: one that nobody reads any more is used again.
#[derive(Debug, Clone)]
struct Buffers(Vec<Arc<Tensor>>);

impl OpState for Buffers {
    fn eval(&mut self, _: &EvalContext<'_>, op: &dyn Op, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let op = op.downcast_ref::<QuantOp>().ok_or_else(|| TractError::msg("an integer operator"))?;
        let mut buffer = match self.0.iter().position(|buffer| Arc::strong_count(buffer) == 1) {
            Some(idx) => self.0.swap_remove(idx),
            None => Arc::new(Tensor::zero::<u8>(&nhwc(op.output.shape))?),
        };
        let out = Arc::get_mut(&mut buffer).ok_or_else(|| TractError::msg("a buffer that nobody reads"))?;
        let mut views: TVec<&[u8]> = tvec!();
        for input in &inputs {
            views.push(input.try_as_plain_ram()?.as_slice::<u8>()?);
        }
        op.compute(&views, out.try_as_plain_ram_mut()?.as_slice_mut::<u8>()?);
        self.0.push(buffer.clone());
        Ok(tvec!(buffer.into_tvalue()))
    }

    fn reset_lanes(&mut self, _: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}
