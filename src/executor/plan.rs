//! An integer network as a tract plan, with its session state.

use super::graph::{Activation, IntGraph, Operator};
use super::ops::{self, QuantOp, Workers, nhwc};
use super::{Census, LoadError, OpCount, OutputInfo, RunError};
use crate::kernels::Shape;
use crate::quant::QuantParams;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::eval;

/// A runnable integer network.
pub(super) struct IntPlan {
    state: TypedSimpleState,
    input: Arc<Tensor>,
    input_name: String,
    input_activation: Activation,
    outputs: Vec<OutputInfo>,
    output_params: Vec<QuantParams>,
    results: TVec<TValue>,
    census: Census,
}

impl std::fmt::Debug for IntPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntPlan").field("input", &self.input_name).field("outputs", &self.outputs.len()).finish_non_exhaustive()
    }
}

impl IntPlan {
    pub(super) fn new(graph: IntGraph, threads: usize) -> Result<Self, LoadError> {
        let workers = match threads {
            0 | 1 => Workers(None),
            n => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n).thread_name(|idx| format!("infer-{idx}")).build();
                Workers(Some(Arc::new(pool.map_err(|error| LoadError::Engine(error.to_string()))?)))
            }
        };
        let state = Self::state(&graph, &workers).map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        let input_activation = graph.values[0];
        let input = Tensor::zero::<u8>(&nhwc(input_activation.shape)).map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        let output = |(name, id): &(String, usize)| OutputInfo {
            name: name.clone(),
            shape: graph.values[*id].shape,
            params: Some(graph.values[*id].params),
        };
        Ok(Self {
            state,
            input: Arc::new(input),
            input_name: graph.input_name.clone(),
            input_activation,
            outputs: graph.outputs.iter().map(output).collect(),
            output_params: graph.outputs.iter().map(|(_, id)| graph.values[*id].params).collect(),
            results: tvec!(),
            census: census(&graph),
        })
    }

    fn state(graph: &IntGraph, workers: &Workers) -> TractResult<TypedSimpleState> {
        let mut model = TypedModel::default();
        let mut outlets = vec![model.add_source(&graph.input_name, u8::fact(nhwc(graph.values[0].shape)))?];
        for step in &graph.steps {
            let inputs: TVec<OutletId> = step.inputs.iter().map(|&id| outlets[id]).collect();
            let op = QuantOp::new(step, &graph.values, workers);
            // One step, one value: value ids count on with the steps.
            outlets.extend(model.wire_node(format!("{}#{}", step.name, step.output), op, &inputs)?);
        }
        let outputs: TVec<OutletId> = graph.outputs.iter().map(|(_, id)| outlets[*id]).collect();
        model.select_output_outlets(&outputs)?;
        model.into_runnable()?.spawn()
    }

    pub(super) fn input_name(&self) -> &str {
        &self.input_name
    }

    pub(super) const fn input_shape(&self) -> Shape {
        self.input_activation.shape
    }

    pub(super) const fn input_params(&self) -> QuantParams {
        self.input_activation.params
    }

    pub(super) fn outputs(&self) -> &[OutputInfo] {
        &self.outputs
    }

    pub(super) fn census(&self) -> Census {
        self.census.clone()
    }

    /// Runs the network; `fill` writes its input `[H, W, C]`.
    pub(super) fn run(&mut self, fill: impl FnOnce(&mut [u8])) -> Result<(), RunError> {
        self.finish_run(|plan| {
            let input = plan.filled_input(fill)?;
            plan.state.run(tvec!(input))
        })
    }

    /// As [`Self::run`]; `observe` is called after every operator with the name of its node and its kind.
    pub(super) fn run_observed(
        &mut self,
        fill: impl FnOnce(&mut [u8]),
        observe: &mut dyn FnMut(&str, &str),
    ) -> Result<(), RunError> {
        self.finish_run(|plan| {
            let input = plan.filled_input(fill)?;
            plan.state.run_plan_with_eval(tvec!(input), |context, state, node, inputs| {
                let outputs = eval(context, state, node, inputs)?;
                if node.op.is::<QuantOp>() {
                    observe(&node.name, &node.op.name());
                }
                Ok::<_, TractError>(outputs)
            })
        })
    }

    fn finish_run(&mut self, run: impl FnOnce(&mut Self) -> TractResult<TVec<TValue>>) -> Result<(), RunError> {
        // Results of the last run go first, so that their buffers can be used again.
        self.results.clear();
        self.results = run(self).map_err(|error| RunError(format!("{error:#}")))?;
        Ok(())
    }

    fn filled_input(&mut self, fill: impl FnOnce(&mut [u8])) -> TractResult<TValue> {
        if Arc::get_mut(&mut self.input).is_none() {
            self.input = Arc::new(Tensor::zero::<u8>(&nhwc(self.input_activation.shape))?);
        }
        let input = Arc::get_mut(&mut self.input).ok_or_else(|| TractError::msg("the input is not shared"))?;
        fill(input.try_as_plain_ram_mut()?.as_slice_mut::<u8>()?);
        Ok(self.input.clone().into_tvalue())
    }

    /// Output `idx` of the last run: values in `[H, W, C]`.
    pub(super) fn output(&self, idx: usize) -> (&[u8], QuantParams, Shape) {
        let values =
            self.results.get(idx).and_then(|value| value.try_as_plain_ram().ok()).and_then(|plain| plain.as_slice::<u8>().ok());
        (values.unwrap_or_default(), self.output_params[idx], self.outputs[idx].shape)
    }
}

fn census(graph: &IntGraph) -> Census {
    let mut census = Census { activation_bytes: graph.values.iter().map(|value| value.shape.len()).sum(), ..Census::default() };
    for step in &graph.steps {
        let macs = match &step.operator {
            Operator::Conv(conv) => ops::macs(conv, graph.values[step.output].shape),
            _ => 0,
        };
        let op = step.operator.name();
        match census.ops.iter_mut().find(|count| count.op == op) {
            Some(count) => {
                count.count += 1;
                count.macs += macs;
            }
            None => census.ops.push(OpCount { op: op.into(), dtype: "u8", count: 1, macs }),
        }
    }
    census
}
