//! From quantised ONNX to integer operators.
//!
//! A quantised network in QDQ form says `DequantizeLinear -> operator in float -> QuantizeLinear` for every step; one in
//! QOperator form is brought into that form first ([`qoperator`]). This module reads each such step as one integer
//! operator and gives back a list in execution order. The patterns it knows are
//! the table of `docs/executor.md`; anything else is refused with the node's name, never run in float.

mod qoperator;

use super::onnx::{self, Attributes, Constant, GraphProto, NodeProto, TensorValues};
use crate::kernels::{AddTerm, ConvSpec, OpSpec, Requantization, Shape, Window};
use crate::quant::{self, QuantParams};
use std::collections::HashMap;
use std::sync::Arc;

/// Most values that one activation may have.
const MAX_ACTIVATION_LEN: usize = 1 << 27;

/// A value of the graph: an activation in `[H, W, C]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Activation {
    pub shape: Shape,
    pub params: QuantParams,
}

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

/// How the channels of a quantised value are seen between the reshapes of a channel shuffle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// `[1, C, H, W]`.
    Plain,
    /// `[1, G, C / G, H, W]`.
    Grouped(usize),
    /// `[1, C / G, G, H, W]`.
    Shuffled(usize),
}

/// A quantised value under its ONNX name.
#[derive(Debug, Clone, Copy)]
struct Quantized {
    id: ValueId,
    view: View,
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
    /// Weights of convolutions by the name of their constant: several convolutions may share them.
    weights: HashMap<&'a str, Arc<[i8]>>,
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
    let nodes = qoperator::as_qdq(&sorted(graph)?)?;
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
    let mut lowering = Lowering { graph, constants, producers, quantized: HashMap::new(), weights: HashMap::new(), out };
    for node in &nodes {
        if node.op_type == "QuantizeLinear" && !lowering.is_constant(input_of(node, 0)?) {
            lowering.quantize(node)?;
        }
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

    /// Lowers what stands before a `QuantizeLinear` and files the result under its output name.
    fn quantize(&mut self, q: &'a NodeProto) -> Lowered<()> {
        let params = self.activation_params(q)?;
        let float = input_of(q, 0)?;
        let output = output_of(q)?;
        let value = if self.is_input(float) {
            if self.out.steps.iter().any(|step| step.inputs.contains(&0)) && self.out.values[0].params != params {
                return Err(unsupported(q, "the network's input is quantised twice, with different parameters".into()));
            }
            self.out.values[0].params = params;
            Quantized { id: 0, view: View::Plain }
        } else {
            let node = self.producer(q, float)?;
            self.lower_node(node, float, params)?
        };
        self.quantized.insert(output, value);
        Ok(())
    }

    /// The integer form of `node`, whose output `float` is quantised with `params`.
    fn lower_node(&mut self, node: &'a NodeProto, float: &str, params: QuantParams) -> Lowered<Quantized> {
        match node.op_type.as_str() {
            "Relu" | "Clip" => {
                let before = input_of(node, 0)?;
                let producer = self.producer(node, before)?;
                let (low, high) = self.clip_range(node)?;
                let range = (low.map_or(0, |real| params.quantize(real)), high.map_or(255, |real| params.quantize(real)));
                match producer.op_type.as_str() {
                    "Conv" => self.conv(producer, params, range),
                    "Add" => self.add(producer, params, range),
                    _ => self.unary(node, params, |real| real.max(low.unwrap_or(f32::MIN)).min(high.unwrap_or(f32::MAX))),
                }
            }
            "Conv" => self.conv(node, params, (0, 255)),
            "Add" => self.add(node, params, (0, 255)),
            "MaxPool" => self.max_pool(node, params),
            "Concat" => self.concat(node, params),
            "Resize" | "Upsample" => self.resize(node, params),
            "Split" => self.split(node, float, params),
            "Reshape" => self.reshape(node, params),
            "Transpose" => self.transpose(node, params),
            "DequantizeLinear" => self.unary(node, params, |real| real),
            "Sigmoid" => self.unary(node, params, |x| narrow(1.0 / (1.0 + libm::exp(-f64::from(x))))),
            "LeakyRelu" => {
                let alpha = Attributes(node).float("alpha").unwrap_or(0.01);
                self.unary(node, params, |x| if x < 0.0 { alpha * x } else { x })
            }
            "HardSigmoid" => {
                let (alpha, beta) =
                    (Attributes(node).float("alpha").unwrap_or(0.2), Attributes(node).float("beta").unwrap_or(0.5));
                self.unary(node, params, |x| (alpha * x + beta).clamp(0.0, 1.0))
            }
            "HardSwish" => self.unary(node, params, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
            _ => Err(unsupported(node, "there is no integer form of this operator".into())),
        }
    }

    /// A quantised value behind the `DequantizeLinear` that makes `name`.
    fn dequantized(&self, consumer: &NodeProto, name: &str) -> Lowered<Quantized> {
        let dq = self.producer(consumer, name)?;
        if dq.op_type != "DequantizeLinear" {
            return Err(unsupported(
                consumer,
                format!("its input `{name}` comes in float from `{}` ({}), not from a DequantizeLinear", label(dq), dq.op_type),
            ));
        }
        let q = input_of(dq, 0)?;
        let value =
            *self.quantized.get(q).ok_or_else(|| unsupported(dq, format!("its input `{q}` is not a quantised activation")))?;
        let (stated, made) = (self.activation_params(dq)?, self.out.values[value.id].params);
        if stated != made {
            return Err(unsupported(dq, format!("it reads `{q}` with {stated:?}, which was written with {made:?}")));
        }
        Ok(value)
    }

    /// As [`Self::dequantized`], for operators that work on `[1, C, H, W]`.
    fn plain(&self, consumer: &NodeProto, name: &str) -> Lowered<ValueId> {
        let value = self.dequantized(consumer, name)?;
        if value.view == View::Plain {
            Ok(value.id)
        } else {
            Err(unsupported(consumer, format!("its input `{name}` is a reshaped value; only channel shuffles may reshape")))
        }
    }

    fn push(&mut self, node: &NodeProto, operator: OpSpec, inputs: Vec<ValueId>, activation: Activation) -> Lowered<Quantized> {
        let Shape { h, w, c } = activation.shape;
        let len = h.checked_mul(w).and_then(|hw| hw.checked_mul(c));
        if len.is_none_or(|len| len == 0 || len > MAX_ACTIVATION_LEN) {
            return Err(unsupported(node, format!("its output of {c}x{h}x{w} values is empty or too large")));
        }
        let output = self.out.values.len();
        self.out.values.push(activation);
        self.out.steps.push(Step { name: label(node), operator, inputs, output });
        Ok(Quantized { id: output, view: View::Plain })
    }

    fn activation(&self, id: ValueId) -> Activation {
        self.out.values[id]
    }

    /// `value` with other quantisation parameters: itself, or a table.
    fn rescaled(&mut self, node: &NodeProto, value: Quantized, params: QuantParams) -> Lowered<Quantized> {
        let from = self.activation(value.id);
        if from.params == params {
            return Ok(value);
        }
        let table = Box::new(quant::rescale_table(from.params, params));
        let made = self.push(node, OpSpec::Table(table), vec![value.id], Activation { params, ..from })?;
        Ok(Quantized { view: value.view, ..made })
    }

    fn unary(&mut self, node: &'a NodeProto, params: QuantParams, map: impl Fn(f32) -> f32) -> Lowered<Quantized> {
        let id = if node.op_type == "DequantizeLinear" {
            self.plain(node, output_of(node)?)?
        } else {
            self.plain(node, input_of(node, 0)?)?
        };
        let from = self.activation(id);
        let mut table = Box::new([0_u8; 256]);
        for (q, slot) in (0..=u8::MAX).zip(table.iter_mut()) {
            *slot = params.quantize(map(from.params.dequantize(q)));
        }
        if from.params == params && (0..=u8::MAX).zip(table.iter()).all(|(q, &to)| q == to) {
            return Ok(Quantized { id, view: View::Plain });
        }
        self.push(node, OpSpec::Table(table), vec![id], Activation { params, ..from })
    }

    fn conv(&mut self, node: &'a NodeProto, params: QuantParams, (lo, hi): (u8, u8)) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
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
        let window = self.window(node, (kh, kw))?;
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
        let Some(Constant { dims, values: TensorValues::I8(weights) }) = self.constants.get(input_of(dq, 0)?) else {
            return Err(unsupported(dq, "the weights of a convolution must be constant i8".into()));
        };
        let dims: [usize; 4] = dims[..]
            .try_into()
            .map_err(|_| unsupported(dq, format!("weights of shape {dims:?}, expected [O, I / groups, kh, kw]")))?;
        if weights.is_empty() {
            return Err(unsupported(dq, format!("weights of shape {dims:?} are empty")));
        }
        let scales = self.floats(dq, input_of(dq, 1)?)?;
        if let Some(zero_point) = dq.input.get(2).filter(|name| !name.is_empty()) {
            let zero = match self.constants.get(zero_point.as_str()).map(|constant| &constant.values) {
                Some(TensorValues::I8(points)) => points.iter().all(|&point| point == 0),
                _ => false,
            };
            if !zero {
                return Err(unsupported(dq, "the weights of a convolution must be symmetric: i8 with zero point 0".into()));
            }
        }
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
        let weights = self.weights.entry(input_of(dq, 0)?).or_insert_with(|| weights.as_slice().into()).clone();
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
            let small = |pad: &i64| usize::try_from(*pad).ok().filter(|pad| *pad <= 64);
            let read: Option<Vec<usize>> = stated.iter().map(small).collect();
            pads = read
                .and_then(|read| <[usize; 4]>::try_from(read).ok())
                .ok_or_else(|| unsupported(node, format!("pads {stated:?}, expected four values of 0 to 64")))?;
        }
        Ok(Window { kernel, stride: pair("strides")?, dilation: pair("dilations")?, pads })
    }

    fn max_pool(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        let kernel = match Attributes(node).ints("kernel_shape") {
            Some([kh, kw]) => (positive(node, "kernel_shape", *kh)?, positive(node, "kernel_shape", *kw)?),
            other => return Err(unsupported(node, format!("kernel_shape {other:?}, expected two values"))),
        };
        let window = self.window(node, kernel)?;
        let (h, w) = window
            .output(from.shape.h, from.shape.w)
            .ok_or_else(|| unsupported(node, "its window is larger than its input".into()))?;
        let shape = Shape { h, w, c: from.shape.c };
        let pooled = self.push(node, OpSpec::MaxPool(window), vec![input], Activation { shape, ..from })?;
        self.rescaled(node, pooled, params)
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
        if terms.iter().any(|term| !(term.ratio.is_finite() && term.ratio > 0.0)) {
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
        if Attributes(node).int("axis") != Some(1) {
            return Err(unsupported(
                node,
                format!("axis {:?}; only channels (axis 1) can be joined", Attributes(node).int("axis")),
            ));
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        let mut tables = Vec::with_capacity(node.input.len());
        let mut shape: Option<Shape> = None;
        for name in &node.input {
            let id = self.plain(node, name)?;
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
        self.push(node, OpSpec::Concat(tables), inputs, Activation { shape, params })
    }

    fn resize(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        let attributes = Attributes(node);
        let mode = attributes.string("mode").unwrap_or_else(|| "nearest".into());
        let shape = Shape { h: 2 * from.shape.h, w: 2 * from.shape.w, c: from.shape.c };
        let by_scales = node.input.get(2).and_then(|name| self.constants.get(name.as_str()));
        let by_sizes = node.input.get(3).and_then(|name| self.constants.get(name.as_str()));
        let scales_are_2 = matches!(by_scales.map(|c| &c.values), Some(TensorValues::F32(s)) if s[..] == [1.0, 1.0, 2.0, 2.0]);
        let sizes_are_2 = matches!(by_sizes.map(|c| &c.values), Some(TensorValues::I64(s)) if s.len() == 4
            && usize::try_from(s[2]) == Ok(shape.h) && usize::try_from(s[3]) == Ok(shape.w));
        // At exactly twice the size these three pick the same source pixel, floor(x / 2), when they round down.
        let transform = attributes.string("coordinate_transformation_mode").unwrap_or_else(|| "half_pixel".into());
        let nearest = attributes.string("nearest_mode").unwrap_or_else(|| "round_prefer_floor".into());
        let known = matches!(
            (transform.as_str(), nearest.as_str()),
            ("asymmetric", "floor") | ("half_pixel" | "pytorch_half_pixel", "round_prefer_floor" | "round_prefer_ceil")
        );
        if mode != "nearest" || !(scales_are_2 || sizes_are_2) || !known {
            return Err(unsupported(
                node,
                format!("mode {mode}, {transform}, {nearest}; only nearest upsampling by exactly 2 is supported"),
            ));
        }
        let doubled = self.push(node, OpSpec::Upsample2, vec![input], Activation { shape, ..from })?;
        self.rescaled(node, doubled, params)
    }

    fn split(&mut self, node: &'a NodeProto, float: &str, params: QuantParams) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        if Attributes(node).int("axis") != Some(1) {
            return Err(unsupported(
                node,
                format!("axis {:?}; only channels (axis 1) can be split", Attributes(node).int("axis")),
            ));
        }
        let stated = match node.input.get(1).filter(|name| !name.is_empty()) {
            Some(name) => Some(self.sizes(node, name)?),
            None => {
                Attributes(node).ints("split").map(|sizes| sizes.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect())
            }
        };
        let n_parts = node.output.len();
        let sizes = stated.unwrap_or_else(|| vec![from.shape.c / n_parts.max(1); n_parts]);
        if sizes.len() != n_parts || sizes.iter().sum::<usize>() != from.shape.c || sizes.contains(&0) {
            return Err(unsupported(node, format!("parts of {sizes:?} channels out of {}", from.shape.c)));
        }
        let part = node.output.iter().position(|output| output == float).unwrap_or(0);
        let shape = Shape { c: sizes[part], ..from.shape };
        let slice = OpSpec::Slice { first: sizes[..part].iter().sum() };
        let sliced = self.push(node, slice, vec![input], Activation { shape, ..from })?;
        self.rescaled(node, sliced, params)
    }

    fn reshape(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let value = self.dequantized(node, input_of(node, 0)?)?;
        let from = self.activation(value.id);
        let Shape { h, w, c } = from.shape;
        let target = self.reshape_target(node, value)?;
        let reshaped = match (value.view, &target[..]) {
            (View::Plain, &[1, groups, per_group, th, tw]) if groups * per_group == c && (th, tw) == (h, w) => {
                Quantized { view: View::Grouped(groups), ..value }
            }
            (View::Shuffled(groups), &[1, tc, th, tw]) if (tc, th, tw) == (c, h, w) => {
                self.push(node, OpSpec::Shuffle { groups }, vec![value.id], from)?
            }
            (View::Grouped(_), &[1, tc, th, tw]) if (tc, th, tw) == (c, h, w) => Quantized { view: View::Plain, ..value },
            (view, target) => {
                return Err(unsupported(
                    node,
                    format!("from {c}x{h}x{w} ({view:?}) to {target:?}; only the reshapes of a channel shuffle are supported"),
                ));
            }
        };
        self.rescaled(node, reshaped, params)
    }

    /// The shape a `Reshape` asks for, with 0 and -1 resolved.
    fn reshape_target(&self, node: &NodeProto, value: Quantized) -> Lowered<Vec<usize>> {
        let Shape { h, w, c } = self.activation(value.id).shape;
        let current = match value.view {
            View::Plain => vec![1, c, h, w],
            View::Grouped(groups) => vec![1, groups, c / groups, h, w],
            View::Shuffled(groups) => vec![1, c / groups, groups, h, w],
        };
        let Some(TensorValues::I64(asked)) = self.constants.get(input_of(node, 1)?).map(|constant| &constant.values) else {
            return Err(unsupported(node, "its shape must be a constant".into()));
        };
        let mut target = Vec::with_capacity(asked.len());
        let mut open = None;
        for (axis, &size) in asked.iter().enumerate() {
            target.push(match size {
                -1 if open.is_none() => {
                    open = Some(axis);
                    1
                }
                0 => current.get(axis).copied().unwrap_or(0),
                size => usize::try_from(size).map_err(|_| unsupported(node, format!("shape {asked:?}")))?,
            });
        }
        if let Some(axis) = open {
            let known = target.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)).unwrap_or(0);
            target[axis] = (c * h * w).checked_div(known).unwrap_or(0);
        }
        Ok(target)
    }

    fn transpose(&mut self, node: &'a NodeProto, params: QuantParams) -> Lowered<Quantized> {
        let value = self.dequantized(node, input_of(node, 0)?)?;
        match (value.view, Attributes(node).ints("perm")) {
            (View::Grouped(groups), Some([0, 2, 1, 3, 4])) => {
                self.rescaled(node, Quantized { view: View::Shuffled(groups), ..value }, params)
            }
            (_, perm) => Err(unsupported(node, format!("perm {perm:?}; only the transpose of a channel shuffle is supported"))),
        }
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

    fn sizes(&self, node: &NodeProto, name: &str) -> Lowered<Vec<usize>> {
        match self.constants.get(name).map(|constant| &constant.values) {
            Some(TensorValues::I64(sizes)) => Ok(sizes.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()),
            _ => Err(unsupported(node, format!("`{name}` must be a constant i64"))),
        }
    }

    /// Scale and zero point of a `QuantizeLinear` or `DequantizeLinear` on an activation; `i8` is moved to `u8`.
    fn activation_params(&self, node: &NodeProto) -> Lowered<QuantParams> {
        let [scale] = self.floats(node, input_of(node, 1)?)? else {
            return Err(unsupported(node, "activations have one scale for the whole tensor".into()));
        };
        let zero_point = match node.input.get(2).filter(|name| !name.is_empty()) {
            None => 0,
            Some(name) => match self.constants.get(name.as_str()).map(|constant| &constant.values) {
                Some(TensorValues::U8(point)) if point.len() == 1 => point[0],
                Some(TensorValues::I8(point)) if point.len() == 1 => point[0].cast_unsigned() ^ 0x80,
                _ => return Err(unsupported(node, format!("zero point `{name}` must be one constant u8 or i8"))),
            },
        };
        QuantParams::new(*scale, zero_point).map_err(|error| unsupported(node, error.to_string()))
    }

    fn outputs(&mut self) -> Lowered<()> {
        for output in &self.graph.output {
            let dq = *self
                .producers
                .get(output.name.as_str())
                .ok_or_else(|| graph_error(format!("nothing makes the output `{}`", output.name)))?;
            if dq.op_type == "QuantizeLinear" {
                let reason = format!("the output `{}` is quantised; let a DequantizeLinear make it", output.name);
                return Err(unsupported(dq, reason));
            }
            if dq.op_type != "DequantizeLinear" {
                return Err(unsupported(
                    dq,
                    format!("the output `{}` is made in float; quantise it (QuantizeLinear, DequantizeLinear)", output.name),
                ));
            }
            let id = self.plain(dq, &output.name)?;
            self.out.outputs.push((output.name.clone(), id));
        }
        Ok(())
    }
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
    if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() }
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

#[expect(clippy::cast_possible_truncation, reason = "f64 to f32 rounds to nearest even")]
const fn narrow(x: f64) -> f32 {
    x as f32
}
