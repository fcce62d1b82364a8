//! Functions of one value: whatever stands between `DequantizeLinear` and `QuantizeLinear` and depends on one quantised
//! value only is one table of 256 entries, however many nodes it has (`x · sigmoid(x)`, `x · hard_sigmoid(x)`, `2x + 1`, …).

use super::{Activation, Attributes, Lowered, Lowering, Quantized, Real, ValueId, View, input_of, narrow, unsupported};
use crate::executor::onnx::{Constant, NodeProto, TensorValues};
use crate::kernels::{OpSpec, Table};
use crate::quant::QuantParams;

/// Operators that are read as functions of one value where they can be.
pub(super) const FUNCTIONS: [&str; 12] =
    ["Relu", "Clip", "Sigmoid", "LeakyRelu", "PRelu", "HardSigmoid", "HardSwish", "Tanh", "Mul", "Div", "Add", "Sub"];

/// What a function makes of each of the 256 values of an activation.
pub(super) type Samples = Box<[f32; 256]>;

impl<'a> Lowering<'a> {
    /// The function that `node` computes.
    pub(super) fn function(&self, node: &'a NodeProto) -> Lowered<Real> {
        let attributes = Attributes(node);
        let alpha = |default| attributes.float("alpha").unwrap_or(default);
        match node.op_type.as_str() {
            "Relu" | "Clip" => {
                let (low, high) = self.clip_range(node)?;
                self.unary(node, |x| x.max(low.unwrap_or(f32::MIN)).min(high.unwrap_or(f32::MAX)))
            }
            "Sigmoid" => self.unary(node, |x| narrow(1.0 / (1.0 + libm::exp(-f64::from(x))))),
            "Tanh" => self.unary(node, |x| narrow(libm::tanh(f64::from(x)))),
            "LeakyRelu" => {
                let alpha = alpha(0.01);
                self.unary(node, |x| if x < 0.0 { alpha * x } else { x })
            }
            "PRelu" => {
                let one_slope = || unsupported(node, "its slope must be one constant for all channels".into());
                let slope = self.scalar(input_of(node, 1)?).ok_or_else(one_slope)?;
                self.unary(node, |x| if x < 0.0 { slope * x } else { x })
            }
            "HardSigmoid" => {
                let (alpha, beta) = (alpha(0.2), attributes.float("beta").unwrap_or(0.5));
                self.unary(node, |x| (alpha * x + beta).clamp(0.0, 1.0))
            }
            "HardSwish" => self.unary(node, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
            "Mul" => self.binary(node, |a, b| a * b),
            "Div" => self.binary(node, |a, b| a / b),
            "Add" => self.binary(node, |a, b| a + b),
            _ => self.binary(node, |a, b| a - b),
        }
    }

    fn unary(&self, node: &'a NodeProto, map: impl Fn(f32) -> f32) -> Lowered<Real> {
        let (root, mut samples) = self.samples(node, input_of(node, 0)?)?;
        samples.iter_mut().for_each(|x| *x = map(*x));
        Ok(Real::Function(root, samples))
    }

    /// A function of two numbers, of which one is a constant or both come from the same value.
    fn binary(&self, node: &'a NodeProto, map: impl Fn(f32, f32) -> f32) -> Lowered<Real> {
        let (a, b) = (input_of(node, 0)?, input_of(node, 1)?);
        let (root, samples) = match (self.scalar(a), self.scalar(b)) {
            (Some(a), _) => {
                let (root, mut samples) = self.samples(node, b)?;
                samples.iter_mut().for_each(|x| *x = map(a, *x));
                (root, samples)
            }
            (_, Some(b)) => {
                let (root, mut samples) = self.samples(node, a)?;
                samples.iter_mut().for_each(|x| *x = map(*x, b));
                (root, samples)
            }
            _ if self.is_constant(a) || self.is_constant(b) => {
                return Err(unsupported(
                    node,
                    "its constant must be one number; fold others into a convolution beside it".into(),
                ));
            }
            _ => {
                let ((root_a, mut samples), (root_b, others)) = (self.samples(node, a)?, self.samples(node, b)?);
                if root_a != root_b {
                    let reason = "it joins two different activations; that is supported for Add and Concat only (no squeeze-and-excitation, no attention)";
                    return Err(unsupported(node, reason.into()));
                }
                samples.iter_mut().zip(others.iter()).for_each(|(x, &y)| *x = map(*x, y));
                (root_a, samples)
            }
        };
        Ok(Real::Function(root, samples))
    }

    /// `name` as a function of the activation that it comes from.
    fn samples(&self, node: &NodeProto, name: &str) -> Lowered<(ValueId, Samples)> {
        match self.reals.get(name) {
            Some(Ok(Real::Function(root, samples))) => Ok((*root, samples.clone())),
            _ => {
                let id = self.plain(node, name)?;
                let (root, table) = self.root(id);
                let params = self.activation(id).params;
                let mut samples = Box::new([0.0; 256]);
                samples.iter_mut().zip(&*table).for_each(|(x, &q)| *x = params.dequantize(q));
                Ok((root, samples))
            }
        }
    }

    /// The activation that a table makes `id` from, and that table; `id` itself where there is none.
    fn root(&self, id: ValueId) -> (ValueId, Box<Table>) {
        // Every step makes one value, so value `id` is made by step `id - 1`.
        match id.checked_sub(1).map(|idx| &self.out.steps[idx]) {
            Some(step) if let OpSpec::Table(table) = &step.operator => (step.inputs[0], table.clone()),
            _ => (id, Box::new(std::array::from_fn(|q| u8::try_from(q).unwrap_or(u8::MAX)))),
        }
    }

    /// A value quantised with `params`: as it is where it has them, else through a table.
    pub(super) fn tabulated(&mut self, node: &NodeProto, real: &Real, params: QuantParams) -> Lowered<Quantized> {
        match real {
            Real::Value(value) => self.rescaled(node, *value, params),
            Real::Function(root, samples) => {
                let mut table: Box<Table> = Box::new([0; 256]);
                table.iter_mut().zip(samples.iter()).for_each(|(q, &x)| *q = params.quantize(x));
                let from = self.activation(*root);
                if from.params == params && (0..=u8::MAX).zip(table.iter()).all(|(q, &to)| q == to) {
                    return Ok(Quantized::plain(*root));
                }
                self.push(node, OpSpec::Table(table), vec![*root], Activation { params, ..from })
            }
        }
    }

    /// `value` with other quantisation parameters: itself, or a table.
    pub(super) fn rescaled(&mut self, node: &NodeProto, value: Quantized, params: QuantParams) -> Lowered<Quantized> {
        let from = self.activation(value.id);
        if from.params == params {
            return Ok(value);
        }
        let (root, first) = self.root(value.id);
        let then = crate::quant::rescale_table(from.params, params);
        let table = Box::new(first.map(|q| then[usize::from(q)]));
        let made = self.push(node, OpSpec::Table(table), vec![root], Activation { params, ..from })?;
        Ok(Quantized { id: made.id, ..value })
    }

    /// A constant of one number, in float or behind a `DequantizeLinear`.
    pub(super) fn scalar(&self, name: &str) -> Option<f32> {
        match self.constant_reals(name)?.1[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// Shape and values of a constant, in float or behind a `DequantizeLinear` with one scale.
    pub(super) fn constant_reals(&self, name: &str) -> Option<(&[usize], Vec<f32>)> {
        /// More are not a scale or an offset for channels.
        const MAX_LEN: usize = 1 << 16;
        let short = |constant: &&Constant| constant.len() <= MAX_LEN;
        if let Some(constant) = self.constants.get(name).filter(short) {
            let TensorValues::F32(values) = &constant.values else { return None };
            return Some((&constant.dims, values.clone()));
        }
        let dq = self.producers.get(name).filter(|node| node.op_type == "DequantizeLinear")?;
        let constant = self.constants.get(dq.input.first()?.as_str()).filter(short)?;
        let params = self.activation_params(dq).ok()?;
        let values = match &constant.values {
            TensorValues::U8(values) => values.iter().map(|&q| params.dequantize(q)).collect(),
            TensorValues::I8(values) => values.iter().map(|&q| params.dequantize(q.cast_unsigned() ^ 0x80)).collect(),
            _ => return None,
        };
        Some((&constant.dims, values))
    }
}

impl Quantized {
    /// `id` as it is.
    pub(super) const fn plain(id: ValueId) -> Self {
        Self { id, view: View::Plain, pads: [0; 4] }
    }
}
