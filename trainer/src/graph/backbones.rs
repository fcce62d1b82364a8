//! The parts that make C3, C4, C5: strides 8, 16, 32.

use super::{Activation, Graph, Op, ValueId};
use crate::spec::{Backbone, ModelSpec, Norm};

/// A residual network: a stem, a max-pool, four stages.
struct ResNet {
    stem: (usize, usize),
    depths: [usize; 4],
    widths: [usize; 4],
    block: Block,
}

#[derive(Clone, Copy)]
enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 of `inner` times the stage's width in groups, 1x1 to four times that width.
    Bottleneck { inner: usize, groups: usize },
}

impl ResNet {
    const fn new(depths: [usize; 4], block: Block) -> Self {
        Self { stem: (7, 64), depths, widths: [64, 128, 256, 512], block }
    }
}

/// ReLU behind everything, or nothing, behind the norm that a backbone has.
struct Style {
    relu: (Norm, Activation),
    relu6: (Norm, Activation),
    plain: (Norm, Activation),
}

impl Graph {
    /// C3, C4, C5 of a model.
    pub(super) fn backbone(&mut self, spec: &ModelSpec) -> [ValueId; 3] {
        let norm = if spec.backbone_norm { Norm::Batch } else { Norm::None };
        let style = Style { relu: (norm, Activation::Relu), relu6: (norm, Activation::Relu6), plain: (norm, Activation::None) };
        let bottleneck = Block::Bottleneck { inner: 1, groups: 1 };
        let blocks = spec.blocks.unwrap_or([4, 8, 4]);
        let net = match spec.backbone {
            Backbone::ShuffleNetV2X05 => return self.shufflenet_v2([48, 96, 192], blocks, &style),
            Backbone::ShuffleNetV2 => return self.shufflenet_v2([116, 232, 464], blocks, &style),
            Backbone::ShuffleNetV2X15 => return self.shufflenet_v2([176, 352, 704], blocks, &style),
            Backbone::ShuffleNetV2X20 => return self.shufflenet_v2([244, 488, 976], blocks, &style),
            Backbone::MobileNetV2 => return self.mobilenet_v2(&style),
            Backbone::EdgeLite => return self.edge_lite(&style),
            Backbone::EdgeRes => ResNet { stem: (3, 16), depths: [1, 2, 2, 2], widths: [32, 64, 128, 256], block: Block::Basic },
            Backbone::ResNet18 => ResNet::new([2, 2, 2, 2], Block::Basic),
            Backbone::ResNet34 => ResNet::new([3, 4, 6, 3], Block::Basic),
            Backbone::ResNet50 => ResNet::new([3, 4, 6, 3], bottleneck),
            Backbone::ResNet101 => ResNet::new([3, 4, 23, 3], bottleneck),
            Backbone::ResNet152 => ResNet::new([3, 8, 36, 3], bottleneck),
            Backbone::ResNeXt50 => ResNet::new([3, 4, 6, 3], Block::Bottleneck { inner: 2, groups: 32 }),
            Backbone::ResNeXt101 => ResNet::new([3, 4, 23, 3], Block::Bottleneck { inner: 4, groups: 32 }),
        };
        self.resnet(&net, spec.stride_in_1x1, &style)
    }

    fn shufflenet_v2(&mut self, widths: [usize; 3], blocks: [usize; 3], style: &Style) -> [ValueId; 3] {
        let stem = self.conv(0, "stem", (3, 2, 1), 24, style.relu);
        let mut x = self.max_pool(stem);
        let mut features = [0; 3];
        for (stage, (n_blocks, width)) in blocks.into_iter().zip(widths).enumerate() {
            for block in 0..n_blocks {
                let half = width / 2;
                let c_in = self.values[x].channels;
                let name = |part: &str| format!("stage{}.{block}.{part}", stage + 2);
                let (left, right_in, stride) = if block == 0 {
                    let dw = self.conv(x, &name("b1dw"), (3, 2, c_in), c_in, style.plain);
                    (self.conv(dw, &name("b1pw"), (1, 1, 1), half, style.relu), x, 2)
                } else {
                    let at = self.values[x].stride;
                    let left = self.one(Op::Slice { first: 0, len: half }, vec![x], name("left"), half, at);
                    (left, self.one(Op::Slice { first: half, len: half }, vec![x], name("right"), half, at), 1)
                };
                let right = self.conv(right_in, &name("b2pw1"), (1, 1, 1), half, style.relu);
                let right = self.conv(right, &name("b2dw"), (3, stride, half), half, style.plain);
                let right = self.conv(right, &name("b2pw2"), (1, 1, 1), half, style.relu);
                let at = self.values[right].stride;
                let both = self.one(Op::Concat, vec![left, right], name("both"), width, at);
                x = self.one(Op::Shuffle, vec![both], name("out"), width, at);
            }
            features[stage] = x;
        }
        features
    }

    /// Inverted residuals; the block numbers are those of torchvision's `features`.
    fn mobilenet_v2(&mut self, style: &Style) -> [ValueId; 3] {
        /// Expansion, channels, blocks, stride of the first.
        const STAGES: [(usize, usize, usize, usize); 7] =
            [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
        let mut x = self.conv(0, "stem", (3, 2, 1), 32, style.relu6);
        let mut block = 0;
        let mut ends = Vec::new();
        for (expansion, width, n_blocks, first_stride) in STAGES {
            for idx in 0..n_blocks {
                block += 1;
                let name = |part: &str| format!("block{block}.{part}");
                let stride = if idx == 0 { first_stride } else { 1 };
                let c_in = self.values[x].channels;
                let wide = c_in * expansion;
                let expanded = if expansion == 1 { x } else { self.conv(x, &name("expand"), (1, 1, 1), wide, style.relu6) };
                let inner = self.conv(expanded, &name("dw"), (3, stride, wide), wide, style.relu6);
                let inner = self.conv(inner, &name("project"), (1, 1, 1), width, style.plain);
                let at = self.values[inner].stride;
                x = if stride == 1 && c_in == width {
                    self.one(Op::Add { relu: false }, vec![inner, x], name("out"), width, at)
                } else {
                    inner
                };
            }
            ends.push(x);
        }
        [ends[2], ends[4], ends[6]]
    }

    fn resnet(&mut self, net: &ResNet, stride_in_1x1: bool, style: &Style) -> [ValueId; 3] {
        let stem = self.conv(0, "stem", (net.stem.0, 2, 1), net.stem.1, style.relu);
        let mut x = self.max_pool(stem);
        let mut features = Vec::new();
        for (layer, (n_blocks, width)) in (1..).zip(net.depths.into_iter().zip(net.widths)) {
            for block in 0..n_blocks {
                let name = |part: &str| format!("layer{layer}.{block}.{part}");
                let stride = if layer > 1 && block == 0 { 2 } else { 1 };
                let (inner, c_out) = match net.block {
                    Block::Basic => {
                        let inner = self.conv(x, &name("conv1"), (3, stride, 1), width, style.relu);
                        (self.conv(inner, &name("conv2"), (3, 1, 1), width, style.plain), width)
                    }
                    Block::Bottleneck { inner, groups } => {
                        let (first, second) = if stride_in_1x1 { (stride, 1) } else { (1, stride) };
                        let narrow = self.conv(x, &name("conv1"), (1, first, 1), width * inner, style.relu);
                        let narrow = self.conv(narrow, &name("conv2"), (3, second, groups), width * inner, style.relu);
                        (self.conv(narrow, &name("conv3"), (1, 1, 1), width * 4, style.plain), width * 4)
                    }
                };
                let skip = if stride != 1 || self.values[x].channels != c_out {
                    self.conv(x, &name("downsample"), (1, stride, 1), c_out, style.plain)
                } else {
                    x
                };
                let at = self.values[inner].stride;
                x = self.one(Op::Add { relu: true }, vec![inner, skip], name("out"), c_out, at);
            }
            features.push(x);
        }
        [features[1], features[2], features[3]]
    }

    fn edge_lite(&mut self, style: &Style) -> [ValueId; 3] {
        let mut x = self.conv(0, "stem", (3, 2, 1), 16, style.relu);
        let mut features = Vec::new();
        for (stage, (n_convs, width)) in (1..).zip([(1, 24), (2, 48), (3, 96), (3, 160)]) {
            for idx in 0..n_convs {
                x = self.conv(x, &format!("stage{stage}.{idx}"), (3, if idx == 0 { 2 } else { 1 }, 1), width, style.relu);
            }
            features.push(x);
        }
        [features[1], features[2], features[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights, biases and affine parameters of norms, as torchvision 0.26 counts them in the same layers.
    #[test]
    fn backbones_have_the_parameters_of_their_papers() {
        for (backbone, wanted) in [
            (Backbone::ShuffleNetV2X05, 143_136),
            (Backbone::ShuffleNetV2, 776_420),
            (Backbone::ShuffleNetV2X15, 1_755_680),
            (Backbone::ShuffleNetV2X20, 3_342_052),
            (Backbone::MobileNetV2, 1_811_712),
            (Backbone::ResNet18, 11_176_512),
            (Backbone::ResNet34, 21_284_672),
            (Backbone::ResNet50, 23_508_032),
            (Backbone::ResNet101, 42_500_160),
            (Backbone::ResNet152, 58_143_808),
            (Backbone::ResNeXt50, 22_979_904),
            (Backbone::ResNeXt101, 86_742_336),
        ] {
            let spec = ModelSpec::edge(backbone, 16, 1, (64, 64), vec!["a".into()]);
            let mut graph = Graph::input(spec.pixels);
            let features = graph.backbone(&spec);
            let params: usize =
                graph.convs().map(|conv| (conv.c_in / conv.groups * conv.kernel * conv.kernel + 2) * conv.c_out).sum();
            assert_eq!(params, wanted, "{backbone:?}");
            assert_eq!(features.map(|id| graph.values[id].stride), [8, 16, 32], "{backbone:?}");
        }
    }
}
