//! The integer operators as tract operators. The value that flows from one to the next is the arena of all activations:
//! each operator reads and writes its places in it.

use super::arena::Place;
use super::graph::Step;
use crate::kernels::{Kernels, Layout, OpSpec, PackCache, RowKernel};
use rayon::prelude::*;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{LaneId, StaticName};
use tract_onnx::tract_core::ops::{EvalOp, Op, OpState, TypedOp};
use tract_onnx::tract_core::plan::EvalContext;
use tract_onnx::tract_core::{as_op, not_out_of_plan, op_as_typed_op};

/// Below so much work a step is not worth waking threads for: multiplications, or bytes moved.
const MIN_PARALLEL_WORK: usize = 200_000;

/// Pieces for each thread, so that one that is held up does not hold up the others.
const PIECES_PER_THREAD: usize = 3;

/// The threads that share the rows of a step; `None` runs on the caller's thread alone.
#[derive(Clone)]
pub(super) struct Workers(pub Option<Arc<rayon::ThreadPool>>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Workers").field(&self.n_threads()).finish()
    }
}

impl Workers {
    /// Threads that work on a step.
    pub(super) fn n_threads(&self) -> usize {
        self.0.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Calls `rows(first, out)` until every row of `out` is done, over threads where `work` makes it worth while.
    fn rows(&self, out: &mut [u8], row_stride: usize, work: usize, rows: impl Fn(usize, &mut [u8]) + Sync) {
        let n_rows = out.len() / row_stride;
        match &self.0 {
            Some(pool) if work >= MIN_PARALLEL_WORK && n_rows > 1 => {
                let in_piece = n_rows.div_ceil(PIECES_PER_THREAD * self.n_threads());
                pool.install(|| {
                    let pieces = out.par_chunks_mut(in_piece * row_stride).enumerate();
                    pieces.for_each(|(idx, piece)| rows(idx * in_piece, piece));
                });
            }
            _ => rows(0, out),
        }
    }
}

/// One step of an integer network as a tract operator.
#[derive(Debug, Clone)]
pub(super) struct QuantOp {
    name: &'static str,
    kernel: Arc<dyn RowKernel>,
    inputs: Vec<Place>,
    output: Place,
    arena_len: usize,
    work: usize,
    workers: Workers,
}

impl PartialEq for QuantOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel) && self.inputs == other.inputs && self.output == other.output
    }
}

impl Eq for QuantOp {}

impl QuantOp {
    /// The operator of `step`; `places` are those of the graph's values.
    pub(super) fn new(
        step: &Step,
        (places, arena_len): (&[Place], usize),
        kernels: Kernels,
        workers: &Workers,
        cache: &mut PackCache,
    ) -> Self {
        let inputs: Vec<Place> = step.inputs.iter().map(|&id| places[id].clone()).collect();
        let output = places[step.output].clone();
        let layouts: Vec<Layout> = inputs.iter().map(|place| place.layout).collect();
        let kernel = kernels.prepare(&step.operator, &layouts, output.layout, cache).into();
        let work = macs(&step.operator, output.layout).max(output.bytes.len());
        Self { name: step.operator.name(), kernel, inputs, output, arena_len, work, workers: workers.clone() }
    }

    /// Which kernel computes it.
    pub(super) fn kernel(&self) -> String {
        self.kernel.label()
    }

    fn compute(&self, arena: &mut [u8]) {
        let Place { bytes, layout, zero_point } = &self.output;
        let (before, rest) = arena.split_at_mut(bytes.start);
        let (out, after) = rest.split_at_mut(bytes.len());
        let mut inputs: TVec<&[u8]> = tvec!();
        for place in &self.inputs {
            let Place { bytes: from, .. } = place;
            inputs.push(match from.start.checked_sub(bytes.end) {
                Some(start) => &after[start..][..from.len()],
                None => &before[from.clone()],
            });
        }
        let inputs = &inputs[..];
        self.workers.rows(&mut out[layout.body()], layout.row_stride(), self.work, |first, rows| {
            self.kernel.rows(inputs, first, rows);
            layout.fill_sides(rows, *zero_point);
        });
        layout.fill_ends(out, *zero_point);
    }
}

/// Multiplications of an operator.
pub(super) fn macs(operator: &OpSpec, output: Layout) -> usize {
    match operator {
        OpSpec::Conv(spec) => output.shape.h * output.shape.w * spec.weights.len(),
        _ => 0,
    }
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
        Ok(Some(Box::new(InPlace)))
    }
}

impl TypedOp for QuantOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(u8::fact([self.arena_len])))
    }
    as_op!();
}

/// Computes in the arena that comes in and passes it on.
#[derive(Debug, Clone)]
struct InPlace;

impl OpState for InPlace {
    fn eval(&mut self, _: &EvalContext<'_>, op: &dyn Op, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let op = op.downcast_ref::<QuantOp>().ok_or_else(|| TractError::msg("an integer operator"))?;
        let arena = inputs.pop().ok_or_else(|| TractError::msg("the arena comes in"))?;
        let mut arena = arena.into_arc_tensor();
        let tensor = Arc::get_mut(&mut arena).ok_or_else(|| TractError::msg("nobody else holds the arena"))?;
        op.compute(tensor.try_as_plain_ram_mut()?.as_slice_mut::<u8>()?);
        Ok(tvec!(arena.into_tvalue()))
    }

    fn reset_lanes(&mut self, _: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}
