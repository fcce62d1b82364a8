//! QOperator nodes as the QDQ nodes that mean the same, so that one lowering reads both forms.
//!
//! `QLinearConv(x, …, y_scale, y_zero_point)` computes what `DequantizeLinear → Conv → QuantizeLinear` says, and an
//! operator that only moves values (`MaxPool`, `Reshape`, …) may stand between quantised values directly. Each is written
//! out here as `DequantizeLinear` of what it reads, the operator in float, `QuantizeLinear` of what it makes. The values
//! that others read keep their names.

use super::moves::MOVES;
use super::{Lowered, input_of, label, optional, unsupported};
use crate::executor::onnx::{AttributeProto, Constant, NodeProto, TensorValues, attribute_proto::AttributeType};
use std::collections::HashMap;

/// Nodes of QDQ form for `nodes`, which come in execution order; `Constant` nodes are left out, and what reads the output
/// of an `Identity` reads its input instead.
pub(super) fn as_qdq(nodes: &[&NodeProto], constants: &HashMap<&str, Constant>) -> Lowered<Vec<NodeProto>> {
    let mut sources: HashMap<&str, String> = HashMap::new();
    let mut direct = Vec::with_capacity(nodes.len());
    for &original in nodes.iter().filter(|node| node.op_type != "Constant") {
        let mut node = original.clone();
        for input in &mut node.input {
            if let Some(source) = sources.get(input.as_str()) {
                input.clone_from(source);
            }
        }
        if let ("Identity" | "Dropout", [input, ..], [output, ..]) =
            (node.op_type.as_str(), &node.input[..], &original.output[..])
        {
            sources.insert(output, input.clone());
        }
        direct.push(node);
    }
    let mut writer = Writer { nodes: Vec::with_capacity(direct.len()), params: HashMap::new(), constants };
    for node in &direct {
        writer.add(node)?;
    }
    Ok(writer.nodes)
}

/// Names of a scale and a zero point; the latter may be empty.
type ParamNames<'a> = [&'a str; 2];

struct Writer<'a> {
    nodes: Vec<NodeProto>,
    constants: &'a HashMap<&'a str, Constant>,
    /// How each quantised activation was written.
    params: HashMap<&'a str, ParamNames<'a>>,
}

impl<'a> Writer<'a> {
    fn add(&mut self, node: &'a NodeProto) -> Lowered<()> {
        let is_standard = matches!(node.domain.as_str(), "" | "ai.onnx");
        match (node.op_type.as_str(), is_standard) {
            ("Identity" | "Dropout", true) if node.input.first().is_some_and(|x| self.params.contains_key(x.as_str())) => {}
            ("QuantizeLinear", _) if is_standard || node.domain == "com.microsoft" => {
                if let Some(output) = node.output.first() {
                    self.params.insert(output, [input_of(node, 1)?, optional(node, 2)]);
                }
                self.nodes.push(node.clone());
            }
            ("DequantizeLinear", _) if is_standard || node.domain == "com.microsoft" => self.nodes.push(node.clone()),
            ("QLinearConv", true) => {
                let x = self.real(node, 0, [input_of(node, 1)?, optional(node, 2)]);
                let w = self.real(node, 3, [input_of(node, 4)?, optional(node, 5)]);
                let mut inputs = vec![x?, w?];
                inputs.extend(node.input.get(8).cloned());
                self.operator(node, "Conv", inputs, [input_of(node, 6)?, optional(node, 7)])?;
            }
            ("QLinearAdd", false) if node.domain == "com.microsoft" => {
                let a = self.real(node, 0, [input_of(node, 1)?, optional(node, 2)])?;
                let b = self.real(node, 3, [input_of(node, 4)?, optional(node, 5)])?;
                self.operator(node, "Add", vec![a, b], [input_of(node, 6)?, optional(node, 7)])?;
            }
            ("QLinearConcat", false) if node.domain == "com.microsoft" => {
                let mut parts = Vec::new();
                for first in (2..node.input.len()).step_by(3) {
                    parts.push(self.real(node, first, [input_of(node, first + 1)?, optional(node, first + 2)])?);
                }
                self.operator(node, "Concat", parts, [input_of(node, 0)?, optional(node, 1)])?;
            }
            (op @ ("QLinearSigmoid" | "QLinearLeakyRelu"), false) if node.domain == "com.microsoft" => {
                let x = self.real(node, 0, [input_of(node, 1)?, optional(node, 2)])?;
                self.operator(node, &op["QLinear".len()..], vec![x], [input_of(node, 3)?, optional(node, 4)])?;
            }
            ("DynamicQuantizeLinear" | "ConvInteger" | "MatMulInteger", _) => {
                return Err(unsupported(node, "its scales are found while it runs; quantise the network statically".into()));
            }
            (op, true) if MOVES.contains(&op) && node.input.first().is_some_and(|x| self.params.contains_key(x.as_str())) => {
                self.moved(node)?;
            }
            (op, true) if !op.starts_with("QLinear") => {
                if let Some(x) = node.input.iter().find(|x| self.params.contains_key(x.as_str())) {
                    let reason = format!("there is no integer form of this operator on the quantised value `{x}`");
                    return Err(unsupported(node, reason));
                }
                self.nodes.push(node.clone());
            }
            _ => {
                let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
                return Err(unsupported(node, format!("there is no integer form of this operator of domain `{domain}`")));
            }
        }
        Ok(())
    }

    /// A name inside `node` that the file does not use.
    fn inner(node: &NodeProto, what: &str) -> String {
        format!("{}#{what}", node.output.first().map_or("", String::as_str))
    }

    /// `DequantizeLinear` of input `idx`; gives its output.
    fn real(&mut self, node: &NodeProto, idx: usize, params: ParamNames<'_>) -> Lowered<String> {
        let name = Self::inner(node, &idx.to_string());
        let [scale, zero_point] = params.map(ToOwned::to_owned);
        // Scales of weights go with the output channels.
        let axis = AttributeProto { name: "axis".into(), r#type: AttributeType::Int.into(), i: 0, ..AttributeProto::default() };
        self.nodes.push(NodeProto {
            op_type: "DequantizeLinear".into(),
            name: label(node),
            input: vec![input_of(node, idx)?.into(), scale, zero_point],
            output: vec![name.clone()],
            attribute: vec![axis],
            ..NodeProto::default()
        });
        Ok(name)
    }

    /// `QuantizeLinear` of `real` to `output`.
    fn quantized(&mut self, node: &NodeProto, real: String, output: &'a str, params: ParamNames<'a>) {
        self.params.insert(output, params);
        let [scale, zero_point] = params.map(ToOwned::to_owned);
        self.nodes.push(NodeProto {
            op_type: "QuantizeLinear".into(),
            name: label(node),
            input: vec![real, scale, zero_point],
            output: vec![output.into()],
            ..NodeProto::default()
        });
    }

    /// `op` in float with the attributes of `node`, and its output quantised.
    fn operator(&mut self, node: &'a NodeProto, op: &str, inputs: Vec<String>, params: ParamNames<'a>) -> Lowered<()> {
        let real = Self::inner(node, "real");
        self.nodes.push(NodeProto {
            op_type: op.into(),
            name: label(node),
            input: inputs,
            output: vec![real.clone()],
            attribute: node.attribute.clone(),
            ..NodeProto::default()
        });
        self.quantized(node, real, super::output_of(node)?, params);
        Ok(())
    }

    /// A `Pad` of quantised values must add zero points, which are zeros in float: without a value it adds `q` = 0.
    fn check_padding(&self, node: &NodeProto, [_, zero_point]: ParamNames<'_>) -> Lowered<()> {
        let q = |name: &str| match self.constants.get(name).map(|constant| &constant.values) {
            Some(TensorValues::U8(values)) => values.first().map(|&q| i16::from(q)),
            Some(TensorValues::I8(values)) => values.first().map(|&q| i16::from(q)),
            _ => name.is_empty().then_some(0),
        };
        let (fill, zero_point) = (q(optional(node, 2)), q(zero_point));
        if !optional(node, 3).is_empty() || fill.is_none() || fill != zero_point {
            let shown = |q: Option<i16>| q.map_or_else(|| "?".to_owned(), |q| q.to_string());
            let (fill, zero_point) = (shown(fill), shown(zero_point));
            return Err(unsupported(node, format!("it pads all axes or with {fill}; it may with the zero point, {zero_point}")));
        }
        Ok(())
    }

    /// A node that moves quantised values: the same in float, each output with the parameters of the input.
    fn moved(&mut self, node: &'a NodeProto) -> Lowered<()> {
        let params = self.params[input_of(node, 0)?];
        let mut operator = node.clone();
        operator.input[0] = self.real(node, 0, params)?;
        if node.op_type == "Pad" {
            self.check_padding(node, params)?;
            operator.input.truncate(2);
        }
        operator.output = (0..node.output.len()).map(|idx| Self::inner(node, &format!("real{idx}"))).collect();
        let reals = operator.output.clone();
        self.nodes.push(operator);
        for (real, output) in reals.into_iter().zip(&node.output) {
            self.quantized(node, real, output, params);
        }
        Ok(())
    }
}
