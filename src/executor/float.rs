//! A network in float, by plain tract: for comparison with its quantised form.

use super::onnx::GraphProto;
use super::{Census, LoadError, OpCount, OutputInfo, RunError, value_dims};
use crate::kernels::{Reals, Shape};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::konst::Const;

/// A runnable float network.
pub(super) struct FloatPlan {
    state: TypedSimpleState,
    input_name: String,
    input_shape: Shape,
    outputs: Vec<OutputInfo>,
    /// Values of the last run in `[H, W, C]`.
    results: Vec<Vec<f32>>,
    /// Values of the last run of [`Self::run_planes`] in `[C, H, W]`.
    planes: Vec<Reals>,
    census: Census,
}

impl std::fmt::Debug for FloatPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FloatPlan").field("input", &self.input_name).field("outputs", &self.outputs.len()).finish_non_exhaustive()
    }
}

impl FloatPlan {
    pub(super) fn new(bytes: &[u8], graph: &GraphProto) -> Result<Self, LoadError> {
        let initializers: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let input = graph.input.iter().find(|input| !initializers.contains(&input.name.as_str()));
        let input = input.ok_or_else(|| LoadError::Contract("the network has no input".into()))?;
        let dims = value_dims(input);
        let [_, Some(c), Some(h), Some(w)] = dims[..] else {
            return Err(LoadError::Contract(format!(
                "the input `{}` has shape {dims:?}, expected [1, C, H, W] with fixed sizes",
                input.name
            )));
        };
        let input_shape = Shape { h, w, c };
        check_outputs(graph)?;
        let engine = |error: TractError| LoadError::Engine(format!("{error:#}"));
        let build = || -> TractResult<(TypedSimpleState, Vec<OutputInfo>, Census)> {
            let model = onnx().model_for_read(&mut &*bytes)?.with_input_fact(0, f32::fact([1, c, h, w]).into())?;
            let names: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
            let typed = model.into_typed()?;
            let mut census = census(graph, &typed)?;
            let typed = typed.into_optimized()?;
            census.activation_bytes = activation_bytes(&typed);
            let mut outputs = Vec::with_capacity(names.len());
            for (name, outlet) in names.into_iter().zip(typed.output_outlets()?) {
                let fact = typed.outlet_fact(*outlet)?;
                let dims = fact.shape.as_concrete().ok_or_else(|| TractError::msg("outputs have fixed sizes"))?;
                let &[1, c, h, w] = dims else { bail_shape(&name, dims)? };
                outputs.push(OutputInfo { name, shape: Shape { h, w, c }, params: None, layer: None });
            }
            Ok((typed.into_runnable()?.spawn()?, outputs, census))
        };
        // The engine's importer trusts its files in places; a damaged one must not end the program.
        let built = catch_unwind(AssertUnwindSafe(build));
        let built =
            built.map_err(|_| LoadError::Engine("it gave up on a damaged or unusual graph; export the network again".into()))?;
        let (state, outputs, census) = built.map_err(engine)?;
        let results = outputs.iter().map(|output| vec![0.0; output.shape.len()]).collect();
        Ok(Self { state, input_name: input.name.clone(), input_shape, outputs, results, planes: Vec::new(), census })
    }

    pub(super) fn input_name(&self) -> &str {
        &self.input_name
    }

    pub(super) const fn input_shape(&self) -> Shape {
        self.input_shape
    }

    pub(super) fn outputs(&self) -> &[OutputInfo] {
        &self.outputs
    }

    pub(super) fn census(&self) -> Census {
        self.census.clone()
    }

    /// Runs the network; `fill` writes its input `[C, H, W]`.
    pub(super) fn run(&mut self, fill: impl FnOnce(&mut [f32])) -> Result<(), RunError> {
        self.try_run(fill).map_err(|error| RunError(format!("{error:#}")))
    }

    /// Runs the network on real values `[C, H, W]` and gives the outputs as `[C, H, W]`.
    pub(super) fn run_planes(&mut self, input: &[f32]) -> Result<&[Reals], RunError> {
        self.run(|values| values.copy_from_slice(input))?;
        let planes = self.results.iter().zip(&self.outputs).map(|(values, output)| {
            let channels = output.shape.c;
            (0..channels).flat_map(|c| values.chunks_exact(channels).map(move |pixel| pixel[c])).collect()
        });
        self.planes = planes.collect();
        Ok(&self.planes)
    }

    fn try_run(&mut self, fill: impl FnOnce(&mut [f32])) -> TractResult<()> {
        let Shape { h, w, c } = self.input_shape;
        let mut input = Tensor::zero::<f32>(&[1, c, h, w])?;
        fill(input.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        let outputs = self.state.run(tvec!(input.into_tvalue()))?;
        for ((output, info), result) in outputs.iter().zip(&self.outputs).zip(&mut self.results) {
            let values = output.try_as_plain_ram()?.as_slice::<f32>()?;
            let (channels, cells) = (info.shape.c, info.shape.h * info.shape.w);
            for (i, value) in result.iter_mut().enumerate() {
                *value = values[(i % channels) * cells + i / channels];
            }
        }
        Ok(())
    }

    /// Output `idx` of the last run: values in `[H, W, C]`.
    pub(super) fn output(&self, idx: usize) -> (&[f32], Shape) {
        (&self.results[idx], self.outputs[idx].shape)
    }
}

/// Every output must be made by something: the engine's importer takes that for granted.
fn check_outputs(graph: &GraphProto) -> Result<(), LoadError> {
    let is_made = |name: &str| {
        graph.node.iter().any(|node| node.output.iter().any(|output| output == name))
            || graph.initializer.iter().any(|tensor| tensor.name == name)
            || graph.input.iter().any(|input| input.name == name)
    };
    match graph.output.iter().find(|output| !is_made(&output.name)) {
        Some(output) => Err(LoadError::Contract(format!("nothing makes the output `{}`", output.name))),
        None => Ok(()),
    }
}

fn bail_shape<T>(name: &str, dims: &[usize]) -> TractResult<T> {
    Err(TractError::msg(format!("the output `{name}` has shape {dims:?}, expected [1, C, H, W]")))
}

/// Operators of the graph before it is optimised: there each convolution is still one operator, whose facts give its
/// multiplications.
fn census(graph: &GraphProto, typed: &TypedModel) -> TractResult<Census> {
    let mut census = Census { float_convs: graph.node.iter().filter(|node| node.op_type == "Conv").count(), ..Census::default() };
    for node in typed.nodes().iter().filter(|node| !node.op_is::<Const>()) {
        let macs = match node.op_as::<Conv>() {
            Some(conv) => macs(conv, typed, node)?,
            None => 0,
        };
        let op = node.op.name().to_string();
        match census.ops.iter_mut().find(|count| count.op == op) {
            Some(count) => {
                count.count += 1;
                count.macs += macs;
            }
            None => census.ops.push(OpCount { op, dtype: "f32", count: 1, macs }),
        }
    }
    Ok(census)
}

/// Multiplications of a convolution: every weight once for each place of the output.
fn macs(conv: &Conv, typed: &TypedModel, node: &TypedNode) -> TractResult<usize> {
    let n_weights: usize = concrete(typed.outlet_fact(node.inputs[1])?)?.iter().product();
    let output = conv.pool_spec.data_format.shape(concrete(&node.outputs[0].fact)?)?;
    Ok(n_weights * output.hw_dims().iter().product::<usize>())
}

fn concrete(fact: &TypedFact) -> TractResult<&[usize]> {
    fact.shape.as_concrete().ok_or_else(|| TractError::msg("a convolution has fixed sizes"))
}

/// Bytes of what the operators of the optimised graph write.
fn activation_bytes(typed: &TypedModel) -> usize {
    let facts = typed.nodes().iter().flat_map(|node| &node.outputs).map(|output| &output.fact);
    let len = |fact: &TypedFact| fact.shape.as_concrete().map_or(0, |dims| dims.iter().product::<usize>());
    facts.map(|fact| len(fact) * fact.datum_type.size_of()).sum()
}
