//! The integer operators as tract operators. The value that flows from one to the next is the arena of all activations:
//! each operator reads and writes its places in it.

use crate::kernels::{Layout, OpSpec, Pool, Region};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{LaneId, StaticName};
use tract_onnx::tract_core::ops::{EvalOp, Op, OpState, TypedOp};
use tract_onnx::tract_core::plan::EvalContext;
use tract_onnx::tract_core::{as_op, not_out_of_plan, op_as_typed_op};

/// Steps of an integer network that do not depend on each other, as one tract operator.
#[derive(Debug, Clone)]
pub(super) struct QuantRegion {
    /// What is computed.
    pub region: Arc<Region>,
    /// Who computes it.
    pub pool: Arc<Pool>,
    /// Bytes of the arena.
    pub arena_len: usize,
}

impl PartialEq for QuantRegion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.region, &other.region)
    }
}

impl Eq for QuantRegion {}

/// Multiplications of an operator.
pub(super) fn macs(operator: &OpSpec, output: Layout) -> usize {
    operator.conv().map_or(0, |spec| output.shape.h * output.shape.w * spec.weights.len())
}

/// How long an operator takes, in multiplications of a dense convolution.
pub(super) fn work(operator: &OpSpec, output: Layout) -> usize {
    match operator {
        // Each tap of a depthwise convolution costs as much as some multiplications of a dense one.
        OpSpec::Conv(spec) if spec.is_depthwise() => 4 * macs(operator, output),
        OpSpec::Conv(_) => macs(operator, output),
        OpSpec::ConvAdd { .. } => macs(operator, output) + 40 * output.len(),
        OpSpec::MaxPool(window) => 4 * output.len() * window.n_taps(),
        OpSpec::Add { .. } => 40 * output.len(),
        _ => 10 * output.len(),
    }
}

impl Op for QuantRegion {
    fn name(&self) -> StaticName {
        "QuantRegion".into()
    }
    op_as_typed_op!();
}

impl EvalOp for QuantRegion {
    not_out_of_plan!();

    fn state(&self, _: &EvalContext<'_>) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(InPlace)))
    }
}

impl TypedOp for QuantRegion {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(u8::fact([self.arena_len])))
    }
    as_op!();
}

/// Computes in the arena that comes in and passes it on.
#[derive(Debug, Clone)]
struct InPlace;

impl OpState for InPlace {
    fn eval(&mut self, _: &EvalContext<'_>, op: &dyn Op, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let op = op.downcast_ref::<QuantRegion>().ok_or_else(|| TractError::msg("an integer operator"))?;
        in_arena(inputs, |arena| op.region.run(&op.pool, arena))
    }

    fn reset_lanes(&mut self, _: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}

/// Calls `compute` on the arena that comes in, which nobody else may hold, and passes it on.
pub(super) fn in_arena(mut inputs: TVec<TValue>, compute: impl FnOnce(&mut [u8])) -> TractResult<TVec<TValue>> {
    let arena = inputs.pop().ok_or_else(|| TractError::msg("the arena comes in"))?;
    let mut arena = arena.into_arc_tensor();
    let tensor = Arc::get_mut(&mut arena).ok_or_else(|| TractError::msg("nobody else holds the arena"))?;
    compute(tensor.try_as_plain_ram_mut()?.as_slice_mut::<u8>()?);
    Ok(tvec!(arena.into_tvalue()))
}
