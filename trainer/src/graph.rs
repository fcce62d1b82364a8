//! The network as data: one list of operators that both the trainer and the ONNX exporter read, so that names and
//! shapes cannot drift apart.
//!
//! RetinaNet (Lin et al. 2017, section 4): a backbone, a feature pyramid P3 to P7, two towers shared over the levels.
//! A convolution over several inputs shares its weights and, while training, its batch statistics.

mod backbones;

use crate::spec::{ModelSpec, Norm, Pixels, Pyramid};

/// Index into [`Graph::values`].
pub(crate) type ValueId = usize;

/// A convolution: square kernel, padding k / 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conv {
    /// Parameters are `<name>.weight`, `<name>.bias`, and `<name>.norm.*`.
    pub(crate) name: String,
    /// Side of the kernel.
    pub(crate) kernel: usize,
    /// 1 or 2.
    pub(crate) stride: usize,
    /// Groups of channels.
    pub(crate) groups: usize,
    /// Channels in.
    pub(crate) c_in: usize,
    /// Channels out.
    pub(crate) c_out: usize,
    /// Norm behind it.
    pub(crate) norm: Norm,
    /// Activation behind that.
    pub(crate) activation: Activation,
}

/// What cuts the values of a convolution off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// The same convolution on every input.
    Conv(Conv),
    /// 3x3, stride 2, padding 1.
    MaxPool,
    /// Channels `first..first + len`.
    Slice { first: usize, len: usize },
    /// Channel shuffle with two groups.
    Shuffle,
    /// Channels one after the other.
    Concat,
    /// Sum of two, then `ReLU` where set.
    Add { relu: bool },
    /// Nearest, times 2.
    Upsample2,
    /// `max(x, 0)`.
    Relu,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// What is done.
    pub(crate) op: Op,
    /// With what.
    pub(crate) inputs: Vec<ValueId>,
    /// What comes out: one value, or one per input for a convolution.
    pub(crate) outputs: Vec<ValueId>,
}

/// An activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    /// ONNX name.
    pub(crate) name: String,
    /// Channels.
    pub(crate) channels: usize,
    /// Input pixels per cell.
    pub(crate) stride: usize,
}

/// A network; value 0 is the input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Graph {
    /// Activations.
    pub(crate) values: Vec<Value>,
    /// Steps in execution order.
    pub(crate) nodes: Vec<Node>,
    /// Logits and deltas of each level, from the finest.
    pub(crate) levels: Vec<(ValueId, ValueId)>,
    /// Values of the input.
    pub(crate) pixels: Pixels,
}

impl Graph {
    /// The network of a model.
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let mut graph = Self::input(spec.pixels);
        let features = graph.backbone(spec);
        let norm = if spec.pyramid_norm { Norm::Batch } else { Norm::None };
        let pyramid = match spec.pyramid {
            Pyramid::Fpn => graph.pyramid(features, spec.fpn_width, norm, false),
            Pyramid::FpnP5 => graph.pyramid(features, spec.fpn_width, norm, true),
            Pyramid::C5 => vec![graph.conv(features[2], "fpn.lateral5", (1, 1, 1), spec.fpn_width, (norm, Activation::None))],
        };
        let per_cell = spec.anchors.n_per_cell();
        let cls = graph.tower("cls", &pyramid, spec, per_cell * spec.classes.len());
        let bbox = graph.tower("box", &pyramid, spec, per_cell * 4);
        for (&cls, &bbox) in cls.iter().zip(&bbox) {
            let p = graph.values[cls].stride.ilog2();
            graph.values[cls].name = format!("cls_p{p}");
            graph.values[bbox].name = format!("box_p{p}");
            graph.levels.push((cls, bbox));
        }
        if spec.quantized {
            for node in &mut graph.nodes {
                if let Op::Conv(conv) = &mut node.op {
                    conv.norm = Norm::None;
                }
            }
        }
        graph
    }

    /// No operators yet.
    fn input(pixels: Pixels) -> Self {
        let input = Value { name: "images".into(), channels: 3, stride: 1 };
        Self { values: vec![input], nodes: Vec::new(), levels: Vec::new(), pixels }
    }

    /// Every convolution, once.
    pub(crate) fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.nodes.iter().filter_map(|node| if let Op::Conv(conv) = &node.op { Some(conv) } else { None })
    }

    /// P3 to P7: what the towers read.
    pub(crate) fn pyramid_values(&self) -> &[ValueId] {
        let is_head = |node: &&Node| matches!(&node.op, Op::Conv(conv) if conv.name.starts_with("head."));
        self.nodes.iter().find(is_head).map_or(&[], |node| &node.inputs)
    }

    fn push(&mut self, op: Op, inputs: Vec<ValueId>, outputs: Vec<Value>) -> Vec<ValueId> {
        let first = self.values.len();
        self.values.extend(outputs);
        let outputs: Vec<ValueId> = (first..self.values.len()).collect();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone() });
        outputs
    }

    fn one(&mut self, op: Op, inputs: Vec<ValueId>, name: String, channels: usize, stride: usize) -> ValueId {
        self.push(op, inputs, vec![Value { name, channels, stride }])[0]
    }

    fn conv(
        &mut self,
        input: ValueId,
        name: &str,
        (kernel, stride, groups): (usize, usize, usize),
        c_out: usize,
        (norm, activation): (Norm, Activation),
    ) -> ValueId {
        let Value { channels: c_in, stride: at, .. } = self.values[input];
        let conv = Conv { name: name.into(), kernel, stride, groups, c_in, c_out, norm, activation };
        self.one(Op::Conv(conv), vec![input], format!("{name}.out"), c_out, at * stride)
    }

    fn max_pool(&mut self, input: ValueId) -> ValueId {
        let Value { channels, stride, .. } = self.values[input];
        self.one(Op::MaxPool, vec![input], "pool.out".into(), channels, stride * 2)
    }

    /// P3 to P7: lateral 1x1, nearest upsampling, 3x3; P6 from C5 or P5, P7 from ReLU(P6).
    fn pyramid(&mut self, [c3, c4, c5]: [ValueId; 3], width: usize, norm: Norm, from_p5: bool) -> Vec<ValueId> {
        let plain = (norm, Activation::None);
        let mut top: Option<ValueId> = None;
        let mut merged = Vec::new();
        for (level, feature) in [(5, c5), (4, c4), (3, c3)] {
            let lateral = self.conv(feature, &format!("fpn.lateral{level}"), (1, 1, 1), width, plain);
            let x = match top {
                None => lateral,
                Some(coarse) => {
                    let at = self.values[lateral].stride;
                    let up = self.one(Op::Upsample2, vec![coarse], format!("fpn.up{level}"), width, at);
                    self.one(Op::Add { relu: false }, vec![lateral, up], format!("fpn.sum{level}"), width, at)
                }
            };
            top = Some(x);
            merged.push((level, x));
        }
        let mut pyramid: Vec<ValueId> = merged
            .into_iter()
            .rev()
            .map(|(level, x)| self.conv(x, &format!("fpn.out{level}"), (3, 1, 1), width, plain))
            .collect();
        let p6 = self.conv(if from_p5 { pyramid[2] } else { c5 }, "fpn.p6", (3, 2, 1), width, plain);
        let at = self.values[p6].stride;
        let relu = self.one(Op::Relu, vec![p6], "fpn.p6relu".into(), width, at);
        let p7 = self.conv(relu, "fpn.p7", (3, 2, 1), width, plain);
        pyramid.extend([p6, p7]);
        pyramid
    }

    fn tower(&mut self, kind: &str, pyramid: &[ValueId], spec: &ModelSpec, c_out: usize) -> Vec<ValueId> {
        let mut levels = pyramid.to_vec();
        for idx in 0..=spec.head_depth {
            let is_last = idx == spec.head_depth;
            let name = if is_last { format!("head.{kind}.last") } else { format!("head.{kind}.{idx}") };
            let c_in = self.values[levels[0]].channels;
            let c_out = if is_last { c_out } else { spec.head_width };
            let output = |&level: &ValueId| {
                let stride = self.values[level].stride;
                Value { name: format!("{name}.p{}", stride.ilog2()), channels: c_out, stride }
            };
            let outputs = levels.iter().map(output).collect();
            let (norm, activation) = if is_last { (Norm::None, Activation::None) } else { (spec.head_norm, Activation::Relu) };
            let conv = Conv { name, kernel: 3, stride: 1, groups: 1, c_in, c_out, norm, activation };
            levels = self.push(Op::Conv(conv), levels, outputs);
        }
        levels
    }
}
