//! The network as an ONNX file (opset 13), in float or in QDQ form: the same operators under the same names.
//!
//! In QDQ form every activation is followed by `QuantizeLinear` and `DequantizeLinear` (u8, one scale and zero point),
//! weights are i8 with one scale for each output channel, biases i32 in steps of `input scale x weight scale`. What ONNX
//! takes for granted is not written: the zero points of weights and biases, which are 0, and names of quantisers, which
//! their tensors tell. In a small network that is a twentieth of the file.

use crate::fold::Folded;
use crate::graph::{Activation, Conv, Graph, Node, Op, ValueId};
use crate::spec::ModelSpec;
use fovea::executor::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};
use fovea::quant::QuantParams;
use std::collections::BTreeMap;

/// Quantised weights of a convolution.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuantConv {
    /// `[O, I / groups, k, k]`, in `-127..=127`.
    pub(crate) weights: Vec<i8>,
    /// One a channel.
    pub(crate) scales: Vec<f32>,
}

/// Everything that makes a float network an integer one.
#[derive(Debug, Clone)]
pub(crate) struct Quantization {
    /// By value of the graph.
    pub(crate) activations: Vec<QuantParams>,
    /// By name of the convolution.
    pub(crate) convs: BTreeMap<String, QuantConv>,
    /// Real biases by name of the convolution.
    pub(crate) biases: BTreeMap<String, Vec<f32>>,
}

/// Parameters of activations that are quantised in a network that computes in float.
pub(crate) type Fake = BTreeMap<ValueId, QuantParams>;

/// The network in float. `taps` are given as outputs besides the heads.
pub(crate) fn float_model(graph: &Graph, spec: &ModelSpec, folded: &Folded, taps: &[ValueId]) -> ModelProto {
    let mut writer = Writer::new(graph, spec, folded, None);
    writer.nodes();
    writer.finish(taps)
}

/// The network in float, with the activations of `fake` quantised and dequantised where they are made: what these alone
/// cost. It is for the graph engine's float operators.
pub(crate) fn fake_model(graph: &Graph, spec: &ModelSpec, folded: &Folded, fake: &Fake) -> ModelProto {
    let mut writer = Writer { fake: Some(fake), ..Writer::new(graph, spec, folded, None) };
    writer.nodes();
    writer.finish(&[])
}

/// The network in QDQ form.
pub(crate) fn quantized_model(graph: &Graph, spec: &ModelSpec, quantization: &Quantization) -> ModelProto {
    let folded = Folded::new();
    let mut writer = Writer::new(graph, spec, &folded, Some(quantization));
    writer.nodes();
    writer.finish(&[])
}

struct Writer<'a> {
    graph: &'a Graph,
    spec: &'a ModelSpec,
    folded: &'a Folded,
    quantization: Option<&'a Quantization>,
    fake: Option<&'a Fake>,
    out: GraphProto,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph, spec: &'a ModelSpec, folded: &'a Folded, quantization: Option<&'a Quantization>) -> Self {
        let out = GraphProto { name: "retinanet".into(), ..GraphProto::default() };
        Self { graph, spec, folded, quantization, fake: None, out }
    }

    fn finish(mut self, taps: &[ValueId]) -> ModelProto {
        self.out.input = vec![self.value_info(0)];
        let heads = self.graph.levels.iter().map(|level| level.0).chain(self.graph.levels.iter().map(|level| level.1));
        self.out.output = heads.chain(taps.iter().copied()).map(|id| self.value_info(id)).collect();
        ModelProto {
            ir_version: 8,
            producer_name: "fovea-train".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 13 }],
            graph: Some(self.out),
            ..ModelProto::default()
        }
    }

    /// Columns and rows of a value.
    fn grid(&self, id: ValueId) -> (usize, usize) {
        let stride = self.graph.values[id].stride;
        (self.spec.width.div_ceil(stride), self.spec.height.div_ceil(stride))
    }

    fn value_info(&self, id: ValueId) -> ValueInfoProto {
        let value = &self.graph.values[id];
        let (w, h) = self.grid(id);
        let dim = |n: usize| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(n as i64)),
            ..Default::default()
        };
        let shape = TensorShapeProto { dim: [1, value.channels, h, w].map(dim).to_vec() };
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
        let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: value.name.clone(), r#type: Some(kind), ..Default::default() }
    }

    fn node(&mut self, op: &str, inputs: Vec<String>, outputs: Vec<String>, attribute: Vec<AttributeProto>) {
        let is_quantiser = matches!(op, "QuantizeLinear" | "DequantizeLinear");
        let name = if is_quantiser { String::new() } else { format!("{}/{op}", outputs[0]) };
        self.out.node.push(NodeProto {
            op_type: op.into(),
            name,
            input: inputs,
            output: outputs,
            attribute,
            ..Default::default()
        });
    }

    fn tensor(&mut self, name: String, dims: &[usize], kind: DataType, raw_data: Vec<u8>) -> String {
        let dims = dims.iter().map(|&n| n as i64).collect();
        self.out.initializer.push(TensorProto {
            name: name.clone(),
            dims,
            data_type: kind as i32,
            raw_data,
            ..Default::default()
        });
        name
    }

    fn floats(&mut self, name: String, dims: &[usize], values: &[f32]) -> String {
        self.tensor(name, dims, DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn sizes(&mut self, name: String, values: &[usize]) -> String {
        self.tensor(name, &[values.len()], DataType::Int64, values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect())
    }

    fn nodes(&mut self) {
        self.quantize_value(0, "images", None);
        let graph = self.graph;
        for node in &graph.nodes {
            match &node.op {
                Op::Conv(conv) => self.conv(conv, node),
                op => self.simple(op, node),
            }
        }
    }

    /// Name under which a node reads a value.
    fn read(&self, id: ValueId) -> String {
        let name = &self.graph.values[id].name;
        if self.quantization.is_none() { name.clone() } else { format!("{name}.dq") }
    }

    /// Name under which a node writes a value: with quantisation the value itself comes behind it.
    fn write(&self, id: ValueId) -> String {
        let name = &self.graph.values[id].name;
        let is_quantized = self.quantization.is_some() || self.fake.is_some_and(|fake| fake.contains_key(&id));
        if is_quantized { format!("{name}.f") } else { name.clone() }
    }

    /// `QuantizeLinear` and `DequantizeLinear` behind `float`, which holds value `id`. Heads keep their name for what
    /// comes out of the network.
    fn quantize_value(&mut self, id: ValueId, float: &str, suffix: Option<&str>) {
        let of_fake = self.fake.filter(|_| suffix.is_none()).and_then(|fake| fake.get(&id));
        let Some(params) = self.quantization.map(|of| of.activations[id]).or(of_fake.copied()) else { return };
        let name = format!("{}{}", self.graph.values[id].name, suffix.unwrap_or(""));
        let scale = self.floats(format!("{name}.scale"), &[], &[params.scale]);
        let zero_point = self.tensor(format!("{name}.zp"), &[], DataType::Uint8, vec![params.zero_point]);
        let is_head = suffix.is_none() && self.graph.levels.iter().any(|&(cls, bbox)| id == cls || id == bbox);
        let keeps_name = is_head || self.fake.is_some();
        let (q, dq) = (format!("{name}.q"), if keeps_name { name } else { format!("{name}.dq") });
        self.node("QuantizeLinear", vec![float.into(), scale.clone(), zero_point.clone()], vec![q.clone()], Vec::new());
        self.node("DequantizeLinear", vec![q, scale, zero_point], vec![dq], Vec::new());
    }

    fn conv(&mut self, conv: &Conv, node: &Node) {
        let weight = self.conv_weight(conv);
        let float_bias = self.quantization.is_none().then(|| {
            let bias = &self.folded[&conv.name].bias;
            self.floats(format!("{}.bias", conv.name), &[bias.len()], bias)
        });
        let pad = conv.kernel / 2;
        for (&input, &output) in node.inputs.iter().zip(&node.outputs) {
            let bias = float_bias.clone().unwrap_or_else(|| self.quantized_bias(conv, input, output));
            let attributes = vec![
                ints("kernel_shape", &[conv.kernel; 2]),
                ints("strides", &[conv.stride; 2]),
                ints("pads", &[pad; 4]),
                int("group", conv.groups),
            ];
            let written = self.write(output);
            let is_last = conv.activation == Activation::None;
            let made = if is_last { written.clone() } else { format!("{}.pre", self.graph.values[output].name) };
            self.node("Conv", vec![self.read(input), weight.clone(), bias], vec![made.clone()], attributes);
            match conv.activation {
                Activation::None => {}
                Activation::Relu => self.node("Relu", vec![made], vec![written.clone()], Vec::new()),
                Activation::Relu6 => {
                    let name = &self.graph.values[output].name;
                    let bounds = [("low", 0.0), ("high", 6.0)].map(|(end, value)| (format!("{name}.{end}"), value));
                    let [low, high] = bounds.map(|(name, value)| self.floats(name, &[], &[value]));
                    self.node("Clip", vec![made, low, high], vec![written.clone()], Vec::new());
                }
            }
            self.quantize_value(output, &written, None);
        }
    }

    fn conv_weight(&mut self, conv: &Conv) -> String {
        let dims = [conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel];
        let name = format!("{}.weight", conv.name);
        let Some(quantization) = self.quantization else { return self.floats(name, &dims, &self.folded[&conv.name].weights) };
        let QuantConv { weights, scales } = &quantization.convs[&conv.name];
        let raw = weights.iter().map(|w| w.to_le_bytes()[0]).collect();
        let q = self.tensor(format!("{name}.q"), &dims, DataType::Int8, raw);
        let scale = self.floats(format!("{name}.scale"), &[scales.len()], scales);
        self.node("DequantizeLinear", vec![q, scale], vec![name.clone()], vec![int("axis", 0)]);
        name
    }

    /// Bias in steps of `input scale x weight scale`, behind a `DequantizeLinear`; its own for every input.
    fn quantized_bias(&mut self, conv: &Conv, input: ValueId, output: ValueId) -> String {
        let Some(quantization) = self.quantization else { return String::new() };
        let input_scale = quantization.activations[input].scale;
        let scales: Vec<f32> = quantization.convs[&conv.name].scales.iter().map(|scale| input_scale * scale).collect();
        let steps = quantization.biases[&conv.name].iter().zip(&scales);
        let raw = steps
            .flat_map(|(bias, scale)| ((f64::from(*bias) / f64::from(*scale)).round_ties_even() as i32).to_le_bytes())
            .collect();
        let name = format!("{}.bias", self.graph.values[output].name);
        let q = self.tensor(format!("{name}.q"), &[scales.len()], DataType::Int32, raw);
        let scale = self.floats(format!("{name}.scale"), &[scales.len()], &scales);
        self.node("DequantizeLinear", vec![q, scale], vec![name.clone()], vec![int("axis", 0)]);
        name
    }

    fn simple(&mut self, op: &Op, node: &Node) {
        let (input, output) = (node.inputs[0], node.outputs[0]);
        let (read, written) = (self.read(input), self.write(output));
        let name = self.graph.values[output].name.clone();
        let outputs = vec![written.clone()];
        match op {
            Op::Conv(_) => {}
            Op::MaxPool => {
                let attributes = vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1; 4])];
                self.node("MaxPool", vec![read], outputs, attributes);
            }
            Op::Slice { first, len } => {
                // A Split with both halves; the half that is not wanted is written beside it.
                let channels = self.graph.values[input].channels;
                let rest = format!("{name}.rest");
                let (sizes, outputs) = if *first == 0 {
                    ([*len, channels - len], vec![written.clone(), rest])
                } else {
                    ([*first, *len], vec![rest, written.clone()])
                };
                let sizes = self.sizes(format!("{name}.split"), &sizes);
                self.node("Split", vec![read, sizes], outputs, vec![int("axis", 1)]);
            }
            Op::Shuffle => self.shuffle(input, output),
            Op::Concat => {
                let inputs = node.inputs.iter().map(|&id| self.read(id)).collect();
                self.node("Concat", inputs, outputs, vec![int("axis", 1)]);
            }
            Op::Add { relu } => {
                let made = if *relu { format!("{name}.pre") } else { written.clone() };
                self.node("Add", vec![read, self.read(node.inputs[1])], vec![made.clone()], Vec::new());
                if *relu {
                    self.node("Relu", vec![made], outputs, Vec::new());
                }
            }
            Op::Upsample2 => {
                let scales = self.floats(format!("{name}.scales"), &[4], &[1.0, 1.0, 2.0, 2.0]);
                let attributes = vec![
                    string("mode", "nearest"),
                    string("coordinate_transformation_mode", "asymmetric"),
                    string("nearest_mode", "floor"),
                ];
                self.node("Resize", vec![read, String::new(), scales], outputs, attributes);
            }
            Op::Relu => self.node("Relu", vec![read], outputs, Vec::new()),
        }
        self.quantize_value(output, &written, None);
    }

    /// `[1, C, H, W]` to `[1, 2, C / 2, H, W]`, transposed, and back.
    fn shuffle(&mut self, input: ValueId, output: ValueId) {
        let name = self.graph.values[output].name.clone();
        let channels = self.graph.values[output].channels;
        let (w, h) = self.grid(output);
        let grouped = self.sizes(format!("{name}.grouped"), &[1, 2, channels / 2, h, w]);
        let plain = self.sizes(format!("{name}.plain"), &[1, channels, h, w]);
        let between = |writer: &mut Self, suffix: &str| {
            let float = format!("{name}{suffix}.f");
            writer.quantize_value(output, &float, Some(suffix));
            if writer.quantization.is_some() { format!("{name}{suffix}.dq") } else { float }
        };
        self.node("Reshape", vec![self.read(input), grouped], vec![format!("{name}.a.f")], Vec::new());
        let a = between(self, ".a");
        self.node("Transpose", vec![a], vec![format!("{name}.b.f")], vec![ints("perm", &[0, 2, 1, 3, 4])]);
        let b = between(self, ".b");
        self.node("Reshape", vec![b, plain], vec![self.write(output)], Vec::new());
    }
}

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&v| v as i64).collect();
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints, ..Default::default() }
}

fn int(name: &str, value: usize) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: value as i64, ..Default::default() }
}

fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::String as i32, s: value.as_bytes().to_vec(), ..Default::default() }
}
