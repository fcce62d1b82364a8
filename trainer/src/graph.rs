//! The network as data: one list of operators that both the trainer and the ONNX exporter read, so that names and
//! shapes cannot drift apart.
//!
//! RetinaNet (Lin et al. 2017, section 4): a backbone, a feature pyramid P3 to P7, two towers shared over the levels.
//! A convolution over several inputs shares its weights and, while training, its batch statistics.

use crate::spec::{Backbone, ModelSpec};

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
    /// Batch norm behind it.
    pub(crate) norm: bool,
    /// `ReLU` behind it.
    pub(crate) relu: bool,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    /// Activations.
    pub(crate) values: Vec<Value>,
    /// Steps in execution order.
    pub(crate) nodes: Vec<Node>,
    /// Logits and deltas of each level, from the finest.
    pub(crate) levels: Vec<(ValueId, ValueId)>,
}

impl Graph {
    /// The network of a model.
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let input = Value { name: "images".into(), channels: 3, stride: 1 };
        let mut graph = Self { values: vec![input], nodes: Vec::new(), levels: Vec::new() };
        let features = match spec.backbone {
            Backbone::ShuffleNetV2 => graph.shufflenet_v2(spec.backbone_norm),
            Backbone::ResNet18 => graph.resnet(&[64, 64, 128, 256, 512], &[2, 2, 2, 2], 7, spec.backbone_norm),
            Backbone::EdgeRes => graph.resnet(&[16, 32, 64, 128, 256], &[1, 2, 2, 2], 3, spec.backbone_norm),
            Backbone::EdgeLite => graph.edge_lite(spec.backbone_norm),
        };
        let pyramid = graph.pyramid(features, spec.fpn_width);
        let per_cell = spec.anchors.n_per_cell();
        let cls = graph.tower("cls", &pyramid, spec, per_cell * spec.classes.len());
        let bbox = graph.tower("box", &pyramid, spec, per_cell * 4);
        for (p, values) in (3..).zip(cls.iter().zip(&bbox)) {
            graph.values[*values.0].name = format!("cls_p{p}");
            graph.values[*values.1].name = format!("box_p{p}");
            graph.levels.push((*values.0, *values.1));
        }
        graph
    }

    /// Every convolution, once.
    pub(crate) fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.nodes.iter().filter_map(|node| if let Op::Conv(conv) = &node.op { Some(conv) } else { None })
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
        (norm, relu): (bool, bool),
    ) -> ValueId {
        let Value { channels: c_in, stride: at, .. } = self.values[input];
        let conv = Conv { name: name.into(), kernel, stride, groups, c_in, c_out, norm, relu };
        self.one(Op::Conv(conv), vec![input], format!("{name}.out"), c_out, at * stride)
    }

    fn max_pool(&mut self, input: ValueId) -> ValueId {
        let Value { channels, stride, .. } = self.values[input];
        self.one(Op::MaxPool, vec![input], "pool.out".into(), channels, stride * 2)
    }

    fn shufflenet_v2(&mut self, norm: bool) -> [ValueId; 3] {
        let stem = self.conv(0, "stem", (3, 2, 1), 24, (norm, true));
        let mut x = self.max_pool(stem);
        let mut features = [0; 3];
        for (stage, (n_blocks, width)) in [(4, 116), (8, 232), (4, 464)].into_iter().enumerate() {
            for block in 0..n_blocks {
                let half = width / 2;
                let c_in = self.values[x].channels;
                let name = |part: &str| format!("stage{}.{block}.{part}", stage + 2);
                let (left, right_in, stride) = if block == 0 {
                    let dw = self.conv(x, &name("b1dw"), (3, 2, c_in), c_in, (norm, false));
                    (self.conv(dw, &name("b1pw"), (1, 1, 1), half, (norm, true)), x, 2)
                } else {
                    let at = self.values[x].stride;
                    let left = self.one(Op::Slice { first: 0, len: half }, vec![x], name("left"), half, at);
                    (left, self.one(Op::Slice { first: half, len: half }, vec![x], name("right"), half, at), 1)
                };
                let right = self.conv(right_in, &name("b2pw1"), (1, 1, 1), half, (norm, true));
                let right = self.conv(right, &name("b2dw"), (3, stride, half), half, (norm, false));
                let right = self.conv(right, &name("b2pw2"), (1, 1, 1), half, (norm, true));
                let at = self.values[right].stride;
                let both = self.one(Op::Concat, vec![left, right], name("both"), width, at);
                x = self.one(Op::Shuffle, vec![both], name("out"), width, at);
            }
            features[stage] = x;
        }
        features
    }

    fn resnet(&mut self, widths: &[usize; 5], depths: &[usize; 4], stem_kernel: usize, norm: bool) -> [ValueId; 3] {
        let stem = self.conv(0, "stem", (stem_kernel, 2, 1), widths[0], (norm, true));
        let mut x = self.max_pool(stem);
        let mut features = Vec::new();
        for (layer, (&n_blocks, &width)) in (1..).zip(depths.iter().zip(&widths[1..])) {
            for block in 0..n_blocks {
                let name = |part: &str| format!("layer{layer}.{block}.{part}");
                let stride = if layer > 1 && block == 0 { 2 } else { 1 };
                let inner = self.conv(x, &name("conv1"), (3, stride, 1), width, (norm, true));
                let inner = self.conv(inner, &name("conv2"), (3, 1, 1), width, (norm, false));
                let skip = if stride != 1 || self.values[x].channels != width {
                    self.conv(x, &name("downsample"), (1, stride, 1), width, (norm, false))
                } else {
                    x
                };
                let at = self.values[inner].stride;
                x = self.one(Op::Add { relu: true }, vec![inner, skip], name("out"), width, at);
            }
            features.push(x);
        }
        [features[1], features[2], features[3]]
    }

    fn edge_lite(&mut self, norm: bool) -> [ValueId; 3] {
        let mut x = self.conv(0, "stem", (3, 2, 1), 16, (norm, true));
        let mut features = Vec::new();
        for (stage, (n_convs, width)) in (1..).zip([(1, 24), (2, 48), (3, 96), (3, 160)]) {
            for idx in 0..n_convs {
                x = self.conv(x, &format!("stage{stage}.{idx}"), (3, if idx == 0 { 2 } else { 1 }, 1), width, (norm, true));
            }
            features.push(x);
        }
        [features[1], features[2], features[3]]
    }

    /// P3 to P7: lateral 1x1, nearest upsampling, 3x3; P6 from C5, P7 from ReLU(P6).
    fn pyramid(&mut self, [c3, c4, c5]: [ValueId; 3], width: usize) -> Vec<ValueId> {
        let mut top: Option<ValueId> = None;
        let mut merged = Vec::new();
        for (level, feature) in [(5, c5), (4, c4), (3, c3)] {
            let lateral = self.conv(feature, &format!("fpn.lateral{level}"), (1, 1, 1), width, (true, false));
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
            .map(|(level, x)| self.conv(x, &format!("fpn.out{level}"), (3, 1, 1), width, (true, false)))
            .collect();
        let p6 = self.conv(c5, "fpn.p6", (3, 2, 1), width, (true, false));
        let at = self.values[p6].stride;
        let relu = self.one(Op::Relu, vec![p6], "fpn.p6relu".into(), width, at);
        let p7 = self.conv(relu, "fpn.p7", (3, 2, 1), width, (true, false));
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
            let outputs = (3..)
                .zip(&levels)
                .map(|(p, &level)| Value { name: format!("{name}.p{p}"), channels: c_out, stride: self.values[level].stride })
                .collect();
            let conv = Conv { name, kernel: 3, stride: 1, groups: 1, c_in, c_out, norm: !is_last, relu: !is_last };
            levels = self.push(Op::Conv(conv), levels, outputs);
        }
        levels
    }
}
