//! An integer network as a tract plan, with its arena.

use super::arena::{ArenaPlan, regions};
use super::fuse::fuse;
use super::graph::IntGraph;
use super::limits;
use super::ops::{QuantRegion, in_arena, macs, work};
use super::{Census, LayerInfo, LoadError, LoadOptions, OpCount, OutputInfo, RunError};
use crate::kernels::{Kernels, Layout, PackCache, Place, PlacedKernel, Pool, Reals, Region, Shape, Table};
use crate::quant::QuantParams;
use std::ops::Range;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::eval;

/// A runnable integer network.
pub(super) struct IntPlan {
    state: TypedSimpleState,
    kernels: Kernels,
    pool: Arc<Pool>,
    /// Travels through the plan while it runs; missing after a run that failed.
    arena: Option<Arc<Tensor>>,
    arena_len: usize,
    input_name: String,
    input: Place,
    input_params: QuantParams,
    outputs: Vec<OutputInfo>,
    output_places: Vec<Place>,
    /// Outputs of the last run as `[H, W, C]`; empty where they lie so in the arena.
    dense: Vec<Vec<u8>>,
    /// Outputs of the last run as real values `[C, H, W]`; empty until they are asked for.
    reals: Vec<Reals>,
    layers: Vec<LayerInfo>,
    census: Census,
}

impl std::fmt::Debug for IntPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntPlan").field("input", &self.input_name).field("outputs", &self.outputs.len()).finish_non_exhaustive()
    }
}

impl IntPlan {
    pub(super) fn new(mut graph: IntGraph, options: &LoadOptions) -> Result<Self, LoadError> {
        let pool = Pool::shared(options.threads).map_err(|error| LoadError::Engine(format!("no threads: {error}")))?;
        fuse(&mut graph);
        let regions = regions(&graph, pool.threads());
        let plan = ArenaPlan::new(&graph, &regions);
        let output_bytes = graph.outputs.iter().map(|(_, id)| graph.values[*id].shape.len());
        let activation_bytes = output_bytes.fold(plan.len, usize::saturating_add);
        limits::check("bytes of activations", activation_bytes, limits::MAX_ACTIVATION_BYTES)?;
        let engine = |error: TractError| LoadError::Engine(format!("{error:#}"));
        let mut layers = Vec::with_capacity(graph.steps.len());
        let state = Self::state(&graph, &plan, &regions, options.kernels, &pool, &mut layers).map_err(engine)?;
        let output = |(name, id): &(String, usize)| OutputInfo {
            name: name.clone(),
            shape: graph.values[*id].shape,
            params: Some(graph.values[*id].params),
            layer: layer_of(&graph, *id),
        };
        let outputs: Vec<OutputInfo> = graph.outputs.iter().map(output).collect();
        Ok(Self {
            state,
            kernels: options.kernels,
            pool,
            arena: None,
            arena_len: plan.len,
            input_name: graph.input_name.clone(),
            input: plan.places[0].clone(),
            input_params: graph.values[0].params,
            output_places: graph.outputs.iter().map(|(_, id)| plan.places[*id].clone()).collect(),
            dense: vec![Vec::new(); outputs.len()],
            reals: Vec::new(),
            outputs,
            census: census(&graph, &plan),
            layers,
        })
    }

    /// The chain of operators. Steps go in the order of the graph: the arena was planned for it.
    fn state(
        graph: &IntGraph,
        plan: &ArenaPlan,
        regions: &[Range<usize>],
        kernels: Kernels,
        pool: &Arc<Pool>,
        layers: &mut Vec<LayerInfo>,
    ) -> TractResult<TypedSimpleState> {
        let mut model = TypedModel::default();
        let mut cache = PackCache::default();
        let mut arena = model.add_source(&graph.input_name, u8::fact([plan.len]))?;
        for steps in regions {
            let mut placed = Vec::with_capacity(steps.len());
            for step in &graph.steps[steps.clone()] {
                let inputs: Vec<Place> = step.inputs.iter().map(|&id| plan.places[id].clone()).collect();
                let layouts: Vec<Layout> = inputs.iter().map(|place| place.layout).collect();
                let output = plan.places[step.output].clone();
                let kernel = kernels.prepare(&step.operator, &layouts, output.layout, &mut cache);
                layers.push(LayerInfo {
                    name: step.name.clone(),
                    op: step.operator.name(),
                    kernel: kernel.label(),
                    output: output.layout.shape,
                    macs: macs(&step.operator, output.layout),
                    inputs: step.inputs.iter().map(|&id| layer_of(graph, id)).collect(),
                });
                let work = work(&step.operator, output.layout);
                placed.push(PlacedKernel { kernel, inputs, output, work });
            }
            let region = Region::new(placed, plan.len, pool.threads()).map_err(|error| TractError::msg(error.to_string()))?;
            let op = QuantRegion { region: Arc::new(region), pool: pool.clone(), arena_len: plan.len };
            let first = &graph.steps[steps.start];
            // One step, one value: the value's number tells parts of a split node apart.
            arena = model.wire_node(format!("{}#{}", first.name, first.output), op, &[arena])?[0];
        }
        model.select_output_outlets(&[arena])?;
        model.into_runnable()?.spawn()
    }

    pub(super) fn input_name(&self) -> &str {
        &self.input_name
    }

    pub(super) const fn input_shape(&self) -> Shape {
        self.input.layout.shape
    }

    pub(super) const fn input_params(&self) -> QuantParams {
        self.input_params
    }

    pub(super) fn outputs(&self) -> &[OutputInfo] {
        &self.outputs
    }

    pub(super) fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    pub(super) fn census(&self) -> Census {
        self.census.clone()
    }

    /// Runs the network on dense pixels `[H, W, C]`, mapped through a table for each channel where there are some.
    pub(super) fn run_pixels(&mut self, pixels: &[u8], tables: Option<&[Table; 3]>) -> Result<(), RunError> {
        let (kernels, layout) = (self.kernels, self.input.layout);
        self.run(|input| kernels.spread_pixels(pixels, tables, &layout, input), None)?;
        self.gather()
    }

    /// As [`Self::run_pixels`]; `observe` is called after every operator with its number.
    pub(super) fn run_observed(&mut self, pixels: &[u8], observe: &mut dyn FnMut(usize)) -> Result<(), RunError> {
        let (kernels, layout) = (self.kernels, self.input.layout);
        self.run(|input| kernels.spread_pixels(pixels, None, &layout, input), Some(observe))?;
        self.gather()
    }

    /// Runs the network on real values `[C, H, W]` and gives the outputs as real values `[C, H, W]`.
    pub(super) fn run_reals(&mut self, planes: &[f32]) -> Result<&[Reals], RunError> {
        let (kernels, layout, params) = (self.kernels, self.input.layout, self.input_params);
        self.run(|input| kernels.quantize_planes(planes, params, &layout, input), None)?;
        if self.reals.is_empty() {
            self.reals = self.outputs.iter().map(|output| Reals::zeros(output.shape.len())).collect();
        }
        let arena = bytes(self.arena.as_deref())?;
        for ((place, output), reals) in self.output_places.iter().zip(&self.outputs).zip(&mut self.reals) {
            let params = output.params.unwrap_or(params);
            self.kernels.dequantize_planes(&arena[place.bytes.clone()], params, &place.layout, reals);
        }
        Ok(&self.reals)
    }

    fn run(&mut self, fill: impl FnOnce(&mut [u8]), observe: Option<&mut dyn FnMut(usize)>) -> Result<(), RunError> {
        self.pool.wake();
        let failed = |error: TractError| RunError(format!("{error:#}"));
        let arena = match self.arena.take() {
            Some(arena) => arena,
            None => Arc::new(Tensor::zero::<u8>(&[self.arena_len]).map_err(failed)?),
        };
        let Place { bytes, layout, zero_point } = &self.input;
        let arena = in_arena(tvec!(arena.into_tvalue()), |arena| {
            let input = &mut arena[bytes.clone()];
            fill(input);
            layout.fill_sides(&mut input[layout.body()], *zero_point);
            layout.fill_ends(input, *zero_point);
        });
        let arena = arena.map_err(failed)?;
        let results = match observe {
            None => self.state.run(arena),
            Some(observe) => {
                let mut idx = 0;
                self.state.run_plan_with_eval(arena, |context, state, node, inputs| {
                    let Some(op) = node.op.downcast_ref::<QuantRegion>() else {
                        return eval(context, state, node, inputs);
                    };
                    in_arena(inputs, |arena| {
                        for kernel in 0..op.region.kernels().len() {
                            op.region.run_one(kernel, &op.pool, arena);
                            observe(idx);
                            idx += 1;
                        }
                    })
                })
            }
        };
        let result = results.and_then(|mut results| results.pop().ok_or_else(|| TractError::msg("the arena comes back")));
        self.arena = Some(result.map_err(failed)?.into_arc_tensor());
        Ok(())
    }

    /// Copies the outputs out of the arena.
    fn gather(&mut self) -> Result<(), RunError> {
        let arena = bytes(self.arena.as_deref())?;
        let outputs = self.output_places.iter().zip(&mut self.dense);
        for (place, dense) in outputs.filter(|(place, _)| !place.layout.is_dense()) {
            dense.resize(place.layout.shape.len(), 0);
            self.kernels.gather_pixels(&arena[place.bytes.clone()], &place.layout, dense);
        }
        Ok(())
    }

    /// Output `idx` of the last run on pixels: values in `[H, W, C]`.
    pub(super) fn output(&self, idx: usize) -> (&[u8], QuantParams) {
        let place = &self.output_places[idx];
        let values = if place.layout.is_dense() {
            bytes(self.arena.as_deref()).map_or(&[][..], |arena| &arena[place.bytes.clone()])
        } else {
            &self.dense[idx]
        };
        (values, self.outputs[idx].params.unwrap_or(self.input_params))
    }
}

fn bytes(arena: Option<&Tensor>) -> Result<&[u8], RunError> {
    let failed = |error: TractError| RunError(format!("{error:#}"));
    arena.ok_or_else(|| RunError("there was no run".into()))?.try_as_plain_ram().map_err(failed)?.as_slice::<u8>().map_err(failed)
}

/// The step that makes value `id`.
fn layer_of(graph: &IntGraph, id: usize) -> Option<usize> {
    graph.steps.iter().position(|step| step.output == id)
}

fn census(graph: &IntGraph, plan: &ArenaPlan) -> Census {
    let mut census = Census { activation_bytes: plan.len, live_bytes: plan.live_min, ..Census::default() };
    for step in &graph.steps {
        let macs = macs(&step.operator, plan.places[step.output].layout);
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
