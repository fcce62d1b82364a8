//! From quantised ONNX to integer operators.
//!
//! A quantised network in QDQ form says `DequantizeLinear -> operator in float -> QuantizeLinear` for every step; one in
//! QOperator form is brought into that form first ([`qoperator`]). This module reads each such step as one integer
//! operator and gives back a list in execution order. The patterns it knows are
//! the table of `docs/executor.md`; anything else is refused with the node's name, never run in float.

mod functions;
mod moves;
mod qoperator;

use super::limits::{MAX_ACTIVATION_LEN, MAX_NODES, MAX_WEIGHT_BYTES};
use super::onnx::{self, Attributes, Constant, GraphProto, NodeProto, TensorValues};
use crate::kernels::{AddTerm, ConvSpec, MAX_INPUTS, OpSpec, Requantization, Shape, Window};
use crate::quant::{self, QuantParams};
use functions::{FUNCTIONS, Samples};
use moves::{MAX_PAD, MOVES, View};
use std::collections::HashMap;
use std::sync::Arc;

/// A value of the graph: an activation in `[H, W, C]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Activation {
    pub shape: Shape,
    pub params: QuantParams,
}

/// Largest ratio of the scales of an addition: products stay finite in f32, so their sum is never NaN.
const MAX_RATIO: f32 = 1e30;

/// Index into [`IntGraph::values`].
pub(super) type ValueId = usize;

/// One step: operator, what it reads, what it makes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub name: String,
    pub operator: OpSpec,
    pub inputs: Vec<ValueId>,
    pub output: ValueId,
}

/// A network of integer operators, in execution order. Value 0 is the input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IntGraph {
    pub input_name: String,
    pub values: Vec<Activation>,
    pub steps: Vec<Step>,
    /// Name and value of each output.
    pub outputs: Vec<(String, ValueId)>,
}

/// Why a node cannot become an integer operator.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("node `{node}` ({op}): {reason}")]
pub struct LowerError {
    /// Name of the node, or of its first output where it has none.
    pub node: String,
    /// Operator type.
    pub op: String,
    /// What is not supported, and what is.
    pub reason: String,
}

/// A quantised value under its ONNX name.
#[derive(Debug, Clone, Copy)]
struct Quantized {
    id: ValueId,
    view: View,
    /// Rows and columns of zeros around it, that whoever reads it must add: top, left, bottom, right.
    pads: [usize; 4],
}

/// A value in float that has an integer meaning although no `QuantizeLinear` makes it.
#[derive(Debug, Clone)]
enum Real {
    /// Behind a `DequantizeLinear`, as it is or moved about.
    Value(Quantized),
    /// A function of one activation.
    Function(ValueId, Samples),
}

/// Weights of a convolution: `[O][I / groups][kh][kw]`, with one scale for each output channel.
struct ConvWeights {
    weights: Arc<[i8]>,
    dims: [usize; 4],
    scales: Vec<f32>,
}

struct Lowering<'a> {
    graph: &'a GraphProto,
    constants: HashMap<&'a str, Constant>,
    /// Node that makes a value.
    producers: HashMap<&'a str, &'a NodeProto>,
    /// Values behind `QuantizeLinear`, by its output name.
    quantized: HashMap<&'a str, Quantized>,
    /// What is known of values in float, by name; where something is wrong, whoever reads them says so.
    reals: HashMap<&'a str, Lowered<Real>>,
    /// Weights of convolutions by the names of their constant and its zero point: several convolutions may share them.
    weights: HashMap<(&'a str, &'a str), Arc<[i8]>>,
    /// Bytes of weights, biases and multipliers so far.
    weight_bytes: usize,
    out: IntGraph,
}

type Lowered<T> = Result<T, LowerError>;

/// Reads a quantised graph as integer operators.
///
/// # Errors
/// [`LowerError`] naming the first node that does not fit the patterns of `docs/executor.md`.
pub(super) fn lower(graph: &GraphProto) -> Lowered<IntGraph> {
    let mut constants = HashMap::new();
    for tensor in &graph.initializer {
        let constant = Constant::read(tensor).map_err(|error| graph_error(error.to_string()))?;
        constants.insert(tensor.name.as_str(), constant);
    }
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        if let (Some(tensor), Some(name)) = (node.attribute.iter().find_map(|a| a.t.as_ref()), node.output.first()) {
            let constant = Constant::read(tensor).map_err(|error| unsupported(node, error.reason))?;
            constants.insert(name, constant);
        }
    }
    if let Some(node) = graph.node.iter().find(|node| node.output.len() > MAX_NODES) {
        return Err(unsupported(node, format!("{} outputs; at most {MAX_NODES} are supported", node.output.len())));
    }
    let nodes = qoperator::as_qdq(&sorted(graph)?, &constants)?;
    let producers = nodes.iter().flat_map(|node| node.output.iter().map(move |output| (output.as_str(), node))).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|input| !constants.contains_key(input.name.as_str())).collect();
    let [input] = inputs[..] else {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(graph_error(format!("the network has {} inputs {names:?}, expected one", names.len())));
    };
    let shape = input_shape(input)?;
    let placeholder = QuantParams { scale: 1.0, zero_point: 0 };
    let out = IntGraph {
        input_name: input.name.clone(),
        values: vec![Activation { shape, params: placeholder }],
        steps: Vec::new(),
        outputs: Vec::new(),
    };
    let (quantized, reals, weights) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut lowering = Lowering { graph, constants, producers, quantized, reals, weights, weight_bytes: 0, out };
    for node in &nodes {
        lowering.read(node)?;
    }
    lowering.outputs()?;
    Ok(lowering.out)
}

impl<'a> Lowering<'a> {
    fn is_constant(&self, name: &str) -> bool {
        self.constants.contains_key(name)
    }

    fn is_input(&self, name: &str) -> bool {
        self.out.input_name == name
    }

    /// The node that makes `name`.
    fn producer(&self, consumer: &NodeProto, name: &str) -> Lowered<&'a NodeProto> {
        self.producers.get(name).copied().ok_or_else(|| unsupported(consumer, format!("nothing makes its input `{name}`")))
    }

    fn read(&mut self, node: &'a NodeProto) -> Lowered<()> {
        let Some(input) = node.input.first() else { return Ok(()) };
        match (node.op_type.as_str(), self.is_constant(input)) {
            ("QuantizeLinear", true) => self.fold(node)?,
            ("QuantizeLinear", false) => self.quantize(node)?,
            ("DequantizeLinear", true) => {}
            ("DequantizeLinear", false) => {
                let real = self.dequantize(node).map(Real::Value);
                self.reals.insert(output_of(node)?, real);
            }
            ("Identity" | "Dropout", _) => {
                if let Some(real) = self.reals.get(input.as_str()).cloned() {
                    self.reals.insert(output_of(node)?, real);
                }
            }
            (op, false) if MOVES.contains(&op) => {
                for (part, output) in node.output.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
                    let real = self.moved(node, part).map(Real::Value);
                    self.reals.insert(output, real);
                }
            }
            (op, _) if FUNCTIONS.contains(&op) => {
                let real = self.function(node);
                self.reals.insert(output_of(node)?, real);
            }
            _ => {}
        }
        Ok(())
    }

    /// Quantises a constant, as some tools leave to whoever reads the file.
    fn fold(&mut self, q: &'a NodeProto) -> Lowered<()> {
        let name = input_of(q, 0)?;
        if optional(q, 2).is_empty() {
            unsigned_unless_stated(q)?;
        }
        let scales = self.floats(q, input_of(q, 1)?)?;
        let Some(Constant { dims, values: TensorValues::F32(reals) }) = self.constants.get(name) else {
            return Err(unsupported(q, format!("the constant `{name}` must be f32")));
        };
        let axis = usize::try_from(Attributes(q).int("axis").unwrap_or(1)).unwrap_or(usize::MAX);
        let in_channel = dims.get(axis.saturating_add(1)..).map_or(1, |dims| dims.iter().product::<usize>()).max(1);
        let points = zero_points(&self.constants, q)?;
        let n_points = match points {
            None => 1,
            Some(TensorValues::I8(points)) => points.len(),
            Some(TensorValues::U8(points)) => points.len(),
            Some(_) => return Err(unsupported(q, "its zero point must be i8 or u8".into())),
        };
        let n_channels = dims.get(axis).copied().unwrap_or(1);
        if [scales.len(), n_points].iter().any(|&len| len != 1 && len != n_channels) {
            return Err(unsupported(q, format!("{} scales, {n_points} zero points for shape {dims:?}", scales.len())));
        }
        let channel = |i: usize, len: usize| if len == 1 { 0 } else { i / in_channel % n_channels };
        let steps = |i: usize, real: f32| real / scales[channel(i, scales.len())];
        let reals = reals.iter().enumerate();
        let signed = |(i, &real): (usize, &f32), point: i8| saturate_i8(steps(i, real).round_ties_even() + f32::from(point));
        let unsigned = |(i, &real): (usize, &f32), point: u8| saturate_u8(steps(i, real).round_ties_even() + f32::from(point));
        let values = match points {
            Some(TensorValues::I8(points)) => {
                TensorValues::I8(reals.map(|real| signed(real, points[channel(real.0, n_points)])).collect())
            }
            Some(TensorValues::U8(points)) => {
                TensorValues::U8(reals.map(|real| unsigned(real, points[channel(real.0, n_points)])).collect())
            }
            _ => TensorValues::U8(reals.map(|real| unsigned(real, 0)).collect()),
        };
        let constant = Constant { dims: dims.clone(), values };
        self.constants.insert(output_of(q)?, constant);
        Ok(())
    }

    /// Lowers what stands before a `QuantizeLinear` and files the result under its output name.
    fn quantize(&mut self, q: &'a NodeProto) -> Lowered<()> {
        let params = self.activation_params(q)?;
        let float = input_of(q, 0)?;
        let output = output_of(q)?;
        let value = if self.is_input(float) {
            if self.quantized.values().any(|value| value.id == 0) && self.out.values[0].params != params {
                return Err(unsupported(q, "the network's input is quantised twice, with different parameters".into()));
            }
            self.out.values[0].params = params;
            Quantized::plain(0)
        } else {
            let node = self.producer(q, float)?;
            self.lower_node(node, float, params)?
        };
        self.quantized.insert(output, value);
        Ok(())
    }

    /// The integer form of `node`, whose output `float` is quantised with `params`.
    fn lower_node(&mut self, node: &'a NodeProto, float: &str, params: QuantParams) -> Lowered<Quantized> {
        let node_before = |node: &'a NodeProto| node.input.first().and_then(|name| self.producers.get(name.as_str()).copied());
        match (node.op_type.as_str(), node_before(node)) {
            ("Relu" | "Clip", Some(producer))
                if matches!(producer.op_type.as_str(), "Conv" | "Add") && !self.is_function(producer) =>
            {
                let (low, high) = self.clip_range(node)?;
                let range = (low.map_or(0, |real| params.quantize(real)), high.map_or(255, |real| params.quantize(real)));
                if producer.op_type == "Conv" { self.conv(producer, params, range) } else { self.add(producer, params, range) }
            }
            ("Conv", _) => self.conv(node, params, (0, 255)),
            ("Add", _) if !self.is_function(node) => self.add(node, params, (0, 255)),
            ("Mul", _) if !self.is_function(node) && node.input.iter().any(|name| self.constant_reals(name).is_some()) => {
                self.scale_channels(node, params)
            }
            ("Concat", _) => self.concat(node, params),
            ("AveragePool" | "GlobalAveragePool" | "ReduceMean", _) => {
                Err(unsupported(node, "averages have no integer form here; a strided convolution or a MaxPool has".into()))
            }
            _ => match self.reals.get(float) {
                Some(real) => {
                    let real = real.clone()?;
                    self.tabulated(node, &real, params)
                }
                None => Err(unsupported(node, "there is no integer form of this operator".into())),
            },
        }
    }

    /// Whether `node` depends on one activation only.
    fn is_function(&self, node: &NodeProto) -> bool {
        let real = node.output.first().and_then(|name| self.reals.get(name.as_str()));
        match (node.op_type.as_str(), real) {
            // The sum of an activation and a function of it that is quantised too is rounded as a sum.
            ("Add", Some(Ok(_))) => node
                .input
                .iter()
                .any(|name| self.scalar(name).is_some() || matches!(self.reals.get(name.as_str()), Some(Ok(Real::Function(..))))),
            (_, real) => matches!(real, Some(Ok(_))),
        }
    }

    /// The quantised value that a `DequantizeLinear` reads.
    fn dequantize(&self, dq: &NodeProto) -> Lowered<Quantized> {
        let q = input_of(dq, 0)?;
        let value =
            *self.quantized.get(q).ok_or_else(|| unsupported(dq, format!("its input `{q}` is not a quantised activation")))?;
        let (stated, made) = (self.activation_params(dq)?, self.out.values[value.id].params);
        if stated != made {
            return Err(unsupported(dq, format!("it reads `{q}` with {stated:?}, which was written with {made:?}")));
        }
        Ok(value)
    }

    /// The quantised value behind `name`.
    fn value(&self, consumer: &NodeProto, name: &str) -> Lowered<Quantized> {
        match self.reals.get(name) {
            Some(Ok(Real::Value(value))) => Ok(*value),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(Real::Function(..))) | None => {
                let made_by = self.producer(consumer, name)?;
                let (label, op) = (label(made_by), &made_by.op_type);
                let reason = format!("its input `{name}` comes in float from `{label}` ({op}), not from a DequantizeLinear");
                Err(unsupported(consumer, reason))
            }
        }
    }

    /// As [`Self::value`], for operators that work on `[1, C, H, W]` and add no padding.
    fn plain(&self, consumer: &NodeProto, name: &str) -> Lowered<ValueId> {
        match self.padded(consumer, name)? {
            (id, [0, 0, 0, 0]) => Ok(id),
            _ => Err(unsupported(consumer, format!("its input `{name}` is padded; only a convolution may read it"))),
        }
    }

    /// As [`Self::value`], for operators that work on `[1, C, H, W]`, with its padding.
    fn padded(&self, consumer: &NodeProto, name: &str) -> Lowered<(ValueId, [usize; 4])> {
        match self.value(consumer, name)? {
            Quantized { id, view: View::Plain, pads } => Ok((id, pads)),
            Quantized { view: View::PixelFirst | View::Rows, .. } => {
                let reason = format!(
                    "its input `{name}` is [1, H, W, C] or rows of it; only an output of the network may be, one for each level"
                );
                Err(unsupported(consumer, reason))
            }
            _ => Err(unsupported(consumer, format!("its input `{name}` is a reshaped value; only channel shuffles may reshape"))),
        }
    }

    fn push(&mut self, node: &NodeProto, operator: OpSpec, inputs: Vec<ValueId>, activation: Activation) -> Lowered<Quantized> {
        let Shape { h, w, c } = activation.shape;
        let len = h.checked_mul(w).and_then(|hw| hw.checked_mul(c));
        if len.is_none_or(|len| len == 0 || len > MAX_ACTIVATION_LEN) {
            let reason =
                format!("its output of {c}x{h}x{w} values is empty or too large; at most {MAX_ACTIVATION_LEN} are supported");
            return Err(unsupported(node, reason));
        }
        if self.out.steps.len() >= MAX_NODES {
            return Err(unsupported(node, format!("the network has more than {MAX_NODES} steps")));
        }
        if let OpSpec::Conv(spec) = &operator {
            self.weigh(node, 8 * spec.out_channels())?;
        }
        let output = self.out.values.len();
        self.out.values.push(activation);
        self.out.steps.push(Step { name: label(node), operator, inputs, output });
        Ok(Quantized::plain(output))
    }

    /// Counts what a convolution holds: many may share their weights, so that the file says nothing about it.
    fn weigh(&mut self, node: &NodeProto, bytes: usize) -> Lowered<()> {
        self.weight_bytes = self.weight_bytes.saturating_add(bytes);
        if self.weight_bytes > MAX_WEIGHT_BYTES {
            return Err(unsupported(node, format!("the network has more than {MAX_WEIGHT_BYTES} bytes of weights")));
        }
        Ok(())
    }

    fn activation(&self, id: ValueId) -> Activation {
        self.out.values[id]
    }

    fn conv(&mut self, node: &'a NodeProto, params: QuantParams, (lo, hi): (u8, u8)) -> Lowered<Quantized> {
        let (input, pads) = self.padded(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        let ConvWeights { weights, dims, scales: weight_scales } = self.conv_weights(node)?;
        let groups = positive(node, "group", Attributes(node).int("group").unwrap_or(1))?;
        let [out_channels, in_per_group, kh, kw] = dims;
        if in_per_group.checked_mul(groups) != Some(from.shape.c) || !out_channels.is_multiple_of(groups) {
            return Err(unsupported(
                node,
                format!("weights of {dims:?} in {groups} groups do not fit {} input channels", from.shape.c),
            ));
        }
        if in_per_group > 4096 {
            return Err(unsupported(node, format!("{in_per_group} input channels a group; at most 4096 are supported")));
        }
        // A kernel makes up to so many output channels at once, with zeros for the inputs of the other groups among them.
        const AT_ONCE: usize = 64;
        let groups_at_once = if in_per_group > 1 { groups.min(AT_ONCE * groups / out_channels) } else { 1 };
        self.weigh(node, weights.len().saturating_mul(groups_at_once.saturating_sub(1)))?;
        let mut window = self.window(node, (kh, kw))?;
        window.pads.iter_mut().zip(pads).for_each(|(own, before)| *own += before);
        if window.pads.iter().any(|&pad| pad > MAX_PAD) {
            return Err(unsupported(node, format!("pads {:?}, with those before it; at most {MAX_PAD}", window.pads)));
        }
        let (h, w) = window
            .output(from.shape.h, from.shape.w)
            .ok_or_else(|| unsupported(node, "its window is larger than its input".into()))?;
        let bias = self.conv_bias(node, from.params, &weight_scales, out_channels)?;
        let mut multipliers = Vec::with_capacity(out_channels);
        for (o, &weight_scale) in weight_scales.iter().enumerate() {
            let m = quant::multiplier(from.params.scale, weight_scale, params.scale)
                .map_err(|error| unsupported(node, format!("multiplier of output channel {o}: {error}")))?;
            multipliers.push(m);
        }
        let taps = in_per_group * kh * kw;
        for (o, &bias) in bias.iter().enumerate() {
            let reach: i64 = weights[o * taps..][..taps].iter().map(|&w| 255 * i64::from(w).abs()).sum();
            if reach + i64::from(bias).abs() > i64::from(i32::MAX) {
                return Err(unsupported(node, format!("the accumulator of output channel {o} can overflow 32 bits")));
            }
        }
        let requant = Requantization { multipliers, zero_point: params.zero_point, lo, hi };
        let spec = ConvSpec { window, groups, weights, bias, input_zero_point: from.params.zero_point, requant };
        let shape = Shape { h, w, c: out_channels };
        self.push(node, OpSpec::Conv(spec), vec![input], Activation { shape, params })
    }

    /// Weights, their dimensions and one scale for each output channel.
    fn conv_weights(&mut self, node: &'a NodeProto) -> Lowered<ConvWeights> {
        let name = input_of(node, 1)?;
        let float_weights = || {
            unsupported(node, "its weights are in float: it would run in float. Quantise the network (`fovea-train quantize`), or ask for the float path (--allow-float)".into())
        };
        let dq = *self.producers.get(name).ok_or_else(float_weights)?;
        if dq.op_type != "DequantizeLinear" {
            return Err(float_weights());
        }
        let (Some(constant), zero_point) = (self.constants.get(input_of(dq, 0)?), dq.input.get(2).map_or("", String::as_str))
        else {
            return Err(unsupported(dq, "the weights of a convolution must be constant".into()));
        };
        let dims: [usize; 4] = constant.dims[..]
            .try_into()
            .map_err(|_| unsupported(dq, format!("weights of shape {:?}, expected [O, I / groups, kh, kw]", constant.dims)))?;
        if constant.is_empty() {
            return Err(unsupported(dq, format!("weights of shape {dims:?} are empty")));
        }
        let key = (input_of(dq, 0)?, zero_point);
        let weights = match self.weights.get(&key) {
            Some(weights) => weights.clone(),
            None => {
                let points = zero_points(&self.constants, dq)?;
                symmetric(&constant.values, points, dims[0]).map_err(|reason| unsupported(dq, reason))?
            }
        };
        if self.weights.insert(key, weights.clone()).is_none() {
            self.weigh(node, weights.len())?;
        }
        let scales = self.floats(dq, input_of(dq, 1)?)?;
        let scales = match scales {
            [scale] => vec![*scale; dims[0]],
            scales if scales.len() == dims[0] && Attributes(dq).int("axis").unwrap_or(1) == 0 => scales.to_vec(),
            scales => {
                return Err(unsupported(
                    dq,
                    format!(
                        "{} weight scales for {} output channels on axis {:?}",
                        scales.len(),
                        dims[0],
                        Attributes(dq).int("axis")
                    ),
                ));
            }
        };
        if let Some(scale) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
            return Err(unsupported(dq, format!("weight scale {scale} must be finite and above 0")));
        }
        Ok(ConvWeights { weights, dims, scales })
    }

    /// Bias in steps of `input scale x weight scale`.
    fn conv_bias(
        &self,
        node: &'a NodeProto,
        input: QuantParams,
        weight_scales: &[f32],
        out_channels: usize,
    ) -> Lowered<Vec<i32>> {
        let Some(name) = node.input.get(2).filter(|name| !name.is_empty()) else { return Ok(vec![0; out_channels]) };
        let (reals, exact): (Vec<f64>, Option<Vec<i32>>) = match self.constants.get(name.as_str()) {
            Some(Constant { values: TensorValues::F32(reals), .. }) => {
                (reals.iter().map(|&real| f64::from(real)).collect(), None)
            }
            // The bias of a `QLinearConv`.
            Some(Constant { values: TensorValues::I32(steps), .. }) => {
                (steps.iter().map(|&step| f64::from(step)).collect(), Some(steps.clone()))
            }
            Some(_) => return Err(unsupported(node, "its bias must be f32, or i32 behind a DequantizeLinear".into())),
            None => {
                let dq = self.producer(node, name)?;
                let Some(Constant { values: TensorValues::I32(steps), .. }) = self.constants.get(input_of(dq, 0)?) else {
                    return Err(unsupported(dq, "the bias of a convolution must be constant i32".into()));
                };
                if let Some(points) = zero_points(&self.constants, dq)?
                    && !matches!(points, TensorValues::I32(points) if points.iter().all(|&point| point == 0))
                {
                    return Err(unsupported(dq, "the zero point of a bias must be 0".into()));
                }
                let scales = self.floats(dq, input_of(dq, 1)?)?;
                let scale = |o: usize| if scales.len() == 1 { scales[0] } else { scales.get(o).copied().unwrap_or(f32::NAN) };
                let ours = |o: usize| input.scale * weight_scales[o.min(weight_scales.len() - 1)];
                let same = (0..steps.len()).all(|o| (scale(o) - ours(o)).abs() <= 1e-5 * ours(o));
                (
                    steps.iter().enumerate().map(|(o, &step)| f64::from(step) * f64::from(scale(o))).collect(),
                    same.then(|| steps.clone()),
                )
            }
        };
        if reals.len() != out_channels {
            return Err(unsupported(node, format!("{} bias values for {out_channels} output channels", reals.len())));
        }
        if let Some(steps) = exact {
            return Ok(steps);
        }
        let step = |(o, real): (usize, &f64)| {
            let step = (real / f64::from(input.scale * weight_scales[o])).round_ties_even();
            if step.abs() <= f64::from(i32::MAX) {
                Ok(saturate_i32(step))
            } else {
                Err(unsupported(node, format!("bias {real} of output channel {o} is too large")))
            }
        };
        reals.iter().enumerate().map(step).collect()
    }

    fn window(&self, node: &NodeProto, kernel: (usize, usize)) -> Lowered<Window> {
        let attributes = Attributes(node);
        let pair = |name: &str| -> Lowered<(usize, usize)> {
            match attributes.ints(name) {
                None => Ok((1, 1)),
                Some([y, x]) => Ok((positive(node, name, *y)?, positive(node, name, *x)?)),
                Some(other) => Err(unsupported(node, format!("{name} {other:?}, expected two values"))),
            }
        };
        if let Some([kh, kw]) = attributes.ints("kernel_shape")
            && (usize::try_from(*kh), usize::try_from(*kw)) != (Ok(kernel.0), Ok(kernel.1))
        {
            return Err(unsupported(node, format!("kernel_shape [{kh}, {kw}] and weights of {kernel:?} differ")));
        }
        match attributes.string("auto_pad").as_deref() {
            None | Some("" | "NOTSET" | "VALID") => {}
            Some(other) => return Err(unsupported(node, format!("auto_pad {other}; write the padding out as `pads`"))),
        }
        if attributes.int("ceil_mode").unwrap_or(0) != 0 {
            return Err(unsupported(node, "ceil_mode 1".into()));
        }
        let mut pads = [0_usize; 4];
        if let Some(stated) = attributes.ints("pads") {
            let small = |pad: &i64| usize::try_from(*pad).ok().filter(|pad| *pad <= MAX_PAD);
            let read: Option<Vec<usize>> = stated.iter().map(small).collect();
            pads = read
                .and_then(|read| <[usize; 4]>::try_from(read).ok())
                .ok_or_else(|| unsupported(node, format!("pads {stated:?}, expected four values of 0 to {MAX_PAD}")))?;
        }
        Ok(Window { kernel, stride: pair("strides")?, dilation: pair("dilations")?, pads })
    }

    fn add(&mut self, node: &'a NodeProto, params: QuantParams, (lo, hi): (u8, u8)) -> Lowered<Quantized> {
        let inputs = [self.plain(node, input_of(node, 0)?)?, self.plain(node, input_of(node, 1)?)?];
        let [a, b] = inputs.map(|id| self.activation(id));
        if a.shape != b.shape {
            return Err(unsupported(node, format!("it adds {:?} and {:?}; shapes must be equal", a.shape, b.shape)));
        }
        let terms = [a, b].map(|side| AddTerm {
            zero_point: side.params.zero_point,
            ratio: side.params.scale / params.scale,
            is_doubled: false,
        });
        if terms.iter().any(|term| !(term.ratio > 0.0 && term.ratio <= MAX_RATIO)) {
            return Err(unsupported(node, format!("the ratios of its scales are {} and {}", terms[0].ratio, terms[1].ratio)));
        }
        self.push(
            node,
            OpSpec::Add { terms, zero_point: params.zero_point, lo, hi },
            inputs.to_vec(),
            Activation { shape: a.shape, params },
        )
    }

    fn concat(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let axis = Attributes(node).int("axis");
        if !matches!(axis, Some(1 | 2)) {
            return Err(unsupported(node, format!("axis {axis:?}; only channels (axis 1) can be joined")));
        }
        if node.input.len() > MAX_INPUTS {
            let reason = format!("{} inputs; at most {MAX_INPUTS} can be joined at once: join them in steps", node.input.len());
            return Err(unsupported(node, reason));
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        let mut tables = Vec::with_capacity(node.input.len());
        let mut shape: Option<Shape> = None;
        for name in &node.input {
            let id = if axis == Some(1) { self.plain(node, name)? } else { self.channels_apart(node, name)? };
            let part = self.activation(id);
            match &mut shape {
                None => shape = Some(part.shape),
                Some(whole) if (whole.h, whole.w) == (part.shape.h, part.shape.w) => whole.c += part.shape.c,
                Some(whole) => {
                    return Err(unsupported(
                        node,
                        format!("it joins maps of {}x{} and {}x{}", whole.w, whole.h, part.shape.w, part.shape.h),
                    ));
                }
            }
            tables.push((part.params != params).then(|| Box::new(quant::rescale_table(part.params, params))));
            inputs.push(id);
        }
        let shape = shape.ok_or_else(|| unsupported(node, "it joins nothing".into()))?;
        let groups = inputs.len();
        let are_equal = inputs.iter().all(|&id| self.activation(id).shape.c * groups == shape.c);
        if axis == Some(2) && !are_equal {
            return Err(unsupported(node, "axis 2; only maps of as many channels can be stacked".into()));
        }
        let joined = self.push(node, OpSpec::Concat(tables), inputs, Activation { shape, params })?;
        Ok(if axis == Some(1) { joined } else { Quantized { view: View::Shuffled(groups), ..joined } })
    }

    /// A map as `[1, C, 1, H, W]`: what is joined on axis 2 becomes `[1, C, G, H, W]`, a shuffle of `G` groups.
    fn channels_apart(&self, node: &NodeProto, name: &str) -> Lowered<ValueId> {
        let value = self.value(node, name)?;
        match value.view {
            View::Grouped(groups) if groups == self.activation(value.id).shape.c && value.pads == [0; 4] => Ok(value.id),
            _ => {
                Err(unsupported(node, "axis 2; only channels (axis 1) can be joined, or maps of [1, C, 1, H, W] stacked".into()))
            }
        }
    }

    /// A factor for each channel: a depthwise convolution of one tap.
    fn scale_channels(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let (a, b) = (input_of(node, 0)?, input_of(node, 1)?);
        let (map, factors) = if self.constant_reals(b).is_some() { (a, b) } else { (b, a) };
        let id = self.plain(node, map)?;
        let from = self.activation(id);
        let c = from.shape.c;
        let factors = match self.constant_reals(factors) {
            Some((&[1, n, 1, 1] | &[n, 1, 1], factors)) if n == c => factors,
            other => {
                let dims = other.map(|(dims, _)| dims);
                return Err(unsupported(
                    node,
                    format!("a constant of shape {dims:?}; one number, or one for each of {c} channels"),
                ));
            }
        };
        let mut multipliers = Vec::with_capacity(c);
        for &factor in &factors {
            let size = if factor == 0.0 { 1.0 } else { factor.abs() };
            let m = quant::multiplier(from.params.scale, size, params.scale);
            multipliers.push(m.map_err(|error| unsupported(node, format!("multiplier: {error}")))?);
        }
        let sign = |&factor: &f32| i8::from(factor > 0.0) - i8::from(factor < 0.0);
        let spec = ConvSpec {
            window: Window { kernel: (1, 1), stride: (1, 1), dilation: (1, 1), pads: [0; 4] },
            groups: c,
            weights: factors.iter().map(sign).collect(),
            bias: vec![0; c],
            input_zero_point: from.params.zero_point,
            requant: Requantization { multipliers, zero_point: params.zero_point, lo: 0, hi: 255 },
        };
        self.push(node, OpSpec::Conv(spec), vec![id], Activation { params, ..from })
    }

    /// Range of a `Relu` or `Clip`.
    fn clip_range(&self, node: &NodeProto) -> Lowered<(Option<f32>, Option<f32>)> {
        if node.op_type == "Relu" {
            return Ok((Some(0.0), None));
        }
        let limit = |input: usize, attribute: &str| -> Lowered<Option<f32>> {
            match node.input.get(input).filter(|name| !name.is_empty()) {
                Some(name) => Ok(self.floats(node, name)?.first().copied()),
                None => Ok(Attributes(node).float(attribute)),
            }
        };
        Ok((limit(1, "min")?, limit(2, "max")?))
    }

    fn floats(&self, node: &NodeProto, name: &str) -> Lowered<&[f32]> {
        match self.constants.get(name).map(|constant| &constant.values) {
            Some(TensorValues::F32(values)) => Ok(values),
            _ => Err(unsupported(node, format!("`{name}` must be a constant f32"))),
        }
    }

    /// Scale and zero point of a `QuantizeLinear` or `DequantizeLinear` on an activation; `i8` is moved to `u8`.
    fn activation_params(&self, node: &NodeProto) -> Lowered<QuantParams> {
        let [scale] = self.floats(node, input_of(node, 1)?)? else {
            return Err(unsupported(node, "activations have one scale for the whole tensor".into()));
        };
        let zero_point = match node.input.get(2).filter(|name| !name.is_empty()) {
            None if self.is_signed(node)? => 0x80,
            None => 0,
            Some(name) => match self.constants.get(name.as_str()).map(|constant| &constant.values) {
                Some(TensorValues::U8(point)) if point.len() == 1 => point[0],
                Some(TensorValues::I8(point)) if point.len() == 1 => point[0].cast_unsigned() ^ 0x80,
                _ => return Err(unsupported(node, format!("zero point `{name}` must be one constant u8 or i8"))),
            },
        };
        QuantParams::new(*scale, zero_point).map_err(|error| unsupported(node, error.to_string()))
    }

    /// Whether a `QuantizeLinear` or `DequantizeLinear` without a zero point is of `i8`: a constant that is, or an activation that
    /// was written so.
    fn is_signed(&self, node: &NodeProto) -> Lowered<bool> {
        unsigned_unless_stated(node)?;
        let of = |name: &String| self.constants.get(name.as_str()).map(|constant| matches!(constant.values, TensorValues::I8(_)));
        let Some(input) = node.input.first().filter(|_| node.op_type == "DequantizeLinear") else { return Ok(false) };
        let point_of_writer = || self.producers.get(input.as_str()).and_then(|writer| of(writer.input.get(2)?));
        Ok(of(input).or_else(point_of_writer).unwrap_or(false))
    }

    fn outputs(&mut self) -> Lowered<()> {
        for output in &self.graph.output {
            let name = output.name.as_str();
            if self.out.outputs.len() >= MAX_NODES {
                return Err(graph_error(format!("more than {MAX_NODES} outputs")));
            }
            let made_by = *self.producers.get(name).ok_or_else(|| graph_error(format!("nothing makes the output `{name}`")))?;
            let refused = |what: &str| Err(unsupported(made_by, format!("the output `{name}` {what}")));
            match self.reals.get(name) {
                Some(Ok(Real::Value(Quantized {
                    id,
                    view: View::Plain | View::PixelFirst | View::Rows,
                    pads: [0, 0, 0, 0],
                }))) => {
                    self.out.outputs.push((output.name.clone(), *id));
                }
                Some(Ok(Real::Value(_))) => return refused("is padded, or in the middle of a channel shuffle"),
                Some(Err(error)) => return Err(error.clone()),
                None if made_by.op_type == "QuantizeLinear" => return refused("is quantised; let a DequantizeLinear make it"),
                Some(Ok(Real::Function(..))) | None => {
                    return refused(
                        "is made in float; quantise it (QuantizeLinear, DequantizeLinear), and leave a sigmoid of the scores out",
                    );
                }
            }
        }
        Ok(())
    }
}

/// Weights as `i8` without a zero point, one point for all or for each of `n_channels`.
fn symmetric(weights: &TensorValues, points: Option<&TensorValues>, n_channels: usize) -> Result<Arc<[i8]>, String> {
    let (weights, points): (Vec<i16>, Vec<i16>) = match (weights, points) {
        (TensorValues::I8(weights), None) => return Ok(weights.as_slice().into()),
        (TensorValues::I8(weights), Some(TensorValues::I8(points))) if points.iter().all(|&point| point == 0) => {
            return Ok(weights.as_slice().into());
        }
        (TensorValues::I8(weights), Some(TensorValues::I8(points))) => {
            (weights.iter().map(|&w| w.into()).collect(), points.iter().map(|&p| p.into()).collect())
        }
        (TensorValues::U8(weights), Some(TensorValues::U8(points))) => {
            (weights.iter().map(|&w| w.into()).collect(), points.iter().map(|&p| p.into()).collect())
        }
        (TensorValues::U8(weights), None) => (weights.iter().map(|&w| w.into()).collect(), vec![0]),
        _ => return Err("the weights of a convolution and their zero point must be constant i8, or u8".into()),
    };
    if points.len() != 1 && points.len() != n_channels {
        return Err(format!("{} zero points of weights for {n_channels} output channels", points.len()));
    }
    let per_channel = weights.len() / n_channels;
    let moved = weights.iter().enumerate().map(|(i, &w)| {
        let point = if points.len() == 1 { points[0] } else { points[i / per_channel] };
        i8::try_from(w - point)
    });
    moved.collect::<Result<_, _>>().map_err(|_| {
        "the weights of a convolution must be symmetric: i8 with zero point 0, or values that lie within -128 to 127 of \
         their zero point; quantise them symmetrically"
            .into()
    })
}

/// Nodes so that each comes after what it reads (Kahn's algorithm; the order of the file where it is free).
fn sorted(graph: &GraphProto) -> Lowered<Vec<&NodeProto>> {
    let producer: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(idx, node)| node.output.iter().map(move |output| (output.as_str(), idx)))
        .collect();
    let mut waiting = vec![0_usize; graph.node.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (idx, node) in graph.node.iter().enumerate() {
        for input in &node.input {
            if let Some(&from) = producer.get(input.as_str()) {
                readers[from].push(idx);
                waiting[idx] += 1;
            }
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..waiting.len()).filter(|&idx| waiting[idx] == 0).collect();
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(idx) = ready.pop_first() {
        order.push(&graph.node[idx]);
        for &reader in &readers[idx] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    match waiting.iter().position(|&n| n > 0) {
        None => Ok(order),
        Some(idx) => Err(unsupported(&graph.node[idx], "it takes part in a cycle".into())),
    }
}

/// Input `idx`, or an empty name.
fn optional(node: &NodeProto, idx: usize) -> &str {
    node.input.get(idx).map_or("", String::as_str)
}

/// Zero points of a constant that is dequantised; `None` where none are stated.
fn zero_points<'s>(constants: &'s HashMap<&str, Constant>, dq: &NodeProto) -> Lowered<Option<&'s TensorValues>> {
    match optional(dq, 2) {
        "" => Ok(None),
        name => match constants.get(name) {
            Some(constant) => Ok(Some(&constant.values)),
            None => Err(unsupported(dq, format!("its zero point `{name}` must be constant"))),
        },
    }
}

/// Refuses a `QuantizeLinear` whose type is stated by `output_dtype` alone, unless it is `u8`, which it is without.
fn unsigned_unless_stated(node: &NodeProto) -> Lowered<()> {
    const UNDEFINED: i64 = 0;
    const UINT8: i64 = 2;
    match Attributes(node).int("output_dtype").filter(|_| node.op_type == "QuantizeLinear") {
        None | Some(UNDEFINED | UINT8) => Ok(()),
        Some(other) => Err(unsupported(node, format!("output_dtype {other} without a zero point; state one of u8 or i8"))),
    }
}

/// Rows, columns and channels of the network's input `[1, C, H, W]`.
fn input_shape(input: &onnx::ValueInfoProto) -> Lowered<Shape> {
    let dims = super::value_dims(input);
    match dims[..] {
        [None | Some(1), Some(c), Some(h), Some(w)]
            if (1..=16).contains(&c) && (1..=8192).contains(&h) && (1..=8192).contains(&w) =>
        {
            Ok(Shape { h, w, c })
        }
        _ => Err(graph_error(format!("the input `{}` has shape {dims:?}, expected [1, C, H, W] with fixed sizes", input.name))),
    }
}

fn positive(node: &NodeProto, name: &str, value: i64) -> Lowered<usize> {
    usize::try_from(value)
        .ok()
        .filter(|value| (1..=4096).contains(value))
        .ok_or_else(|| unsupported(node, format!("{name} {value}, expected 1 to 4096")))
}

fn input_of(node: &NodeProto, idx: usize) -> Lowered<&str> {
    node.input
        .get(idx)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| unsupported(node, format!("input {idx} is missing")))
}

fn output_of(node: &NodeProto) -> Lowered<&str> {
    node.output.first().map(String::as_str).ok_or_else(|| unsupported(node, "it has no output".into()))
}

fn label(node: &NodeProto) -> String {
    let name = if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name };
    // Enough to find it.
    name.chars().take(200).collect()
}

fn unsupported(node: &NodeProto, reason: String) -> LowerError {
    LowerError { node: label(node), op: node.op_type.clone(), reason }
}

fn graph_error(reason: String) -> LowerError {
    LowerError { node: "graph".into(), op: "model".into(), reason }
}

#[expect(clippy::cast_possible_truncation, reason = "the caller checked the range")]
const fn saturate_i32(x: f64) -> i32 {
    x as i32
}

#[expect(clippy::cast_possible_truncation, reason = "the conversion saturates, and makes 0 of NaN")]
const fn saturate_i8(x: f32) -> i8 {
    x as i8
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the conversion saturates, and makes 0 of NaN")]
const fn saturate_u8(x: f32) -> u8 {
    x as u8
}

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
const fn narrow(x: f64) -> f32 {
    x as f32
}
