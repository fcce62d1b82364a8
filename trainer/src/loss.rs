//! Losses: on the logits cross-entropy, focal loss, FL*, hinge and hard example mining; on the boxes `GIoU`, L1 or
//! smooth L1.
//!
//! A classification loss is a function `f` of `z = -x_t`, where `x_t` is the logit `x` on an object and `-x` elsewhere, so
//! `p_t = sigmoid(-z)`. Value and derivative are in closed form: no autograd graph over millions of logits. Every loss is
//! summed over anchors and classes; the training loop divides by the number of anchors on an object.

use fovea::detection::BBox;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Loss on the logits. On the command line `KIND` or `KIND:key=value,key=value`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum ClsLoss {
    /// `-log(p_t)`.
    CrossEntropy,
    /// `-alpha_t log(p_t)` (paper section 3.1).
    Balanced(Balanced),
    /// `-alpha_t (1 - p_t)^gamma log(p_t)` (paper section 3.2).
    Focal(Focal),
    /// `-alpha_t log(sigmoid(gamma x_t + beta)) / gamma` (paper appendix A).
    FocalStar(FocalStar),
    /// `max(0, margin - p_t)` (paper section 4.1).
    Hinge(Hinge),
    /// Cross-entropy of the hardest anchors only (paper section 5.1).
    Ohem(Ohem),
}

/// Parameters of the balanced cross-entropy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Balanced {
    /// Weight of objects; background has `1 - alpha`.
    pub(crate) alpha: f64,
}

impl Default for Balanced {
    fn default() -> Self {
        Self { alpha: 0.75 }
    }
}

/// Parameters of the focal loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Focal {
    /// Weight of objects; background has `1 - alpha`.
    pub(crate) alpha: f64,
    /// Focusing parameter; 0 is balanced cross-entropy.
    pub(crate) gamma: f64,
}

impl Default for Focal {
    fn default() -> Self {
        Self { alpha: 0.25, gamma: 2.0 }
    }
}

/// Parameters of FL*.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FocalStar {
    /// Weight of objects; background has `1 - alpha`.
    pub(crate) alpha: f64,
    /// Steepness.
    pub(crate) gamma: f64,
    /// Shift.
    pub(crate) beta: f64,
}

impl Default for FocalStar {
    fn default() -> Self {
        Self { alpha: 0.25, gamma: 2.0, beta: 1.0 }
    }
}

/// Parameters of the hinge loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hinge {
    /// `p_t` from which there is no loss.
    pub(crate) margin: f64,
}

impl Default for Hinge {
    fn default() -> Self {
        Self { margin: 0.5 }
    }
}

/// Parameters of online hard example mining.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ohem {
    /// Anchors of a picture that have a loss.
    pub(crate) batch: usize,
    /// An anchor is left out if its `IoU` with one of higher loss is above this.
    pub(crate) nms_threshold: f32,
    /// Background anchors for each anchor on an object; absent: the hardest, whatever they are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<usize>,
}

impl Default for Ohem {
    fn default() -> Self {
        Self { batch: 128, nms_threshold: 0.5, ratio: None }
    }
}

impl Default for ClsLoss {
    fn default() -> Self {
        Self::Focal(Focal::default())
    }
}

impl std::str::FromStr for ClsLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, parameters) = text.split_once(':').unwrap_or((text, ""));
        let loss: Self = toml::from_str(&format!("kind = {kind:?}\n{}", parameters.replace(',', "\n")))
            .map_err(|error| format!("{}; expected such as focal:gamma=2,alpha=0.25", error.message()))?;
        loss.check().map_err(|(key, found, expected)| format!("{key} is {found}, expected {expected}"))?;
        Ok(loss)
    }
}

impl ClsLoss {
    /// Checks the parameters: key, value found, values expected.
    pub(crate) fn check(&self) -> Result<(), (&'static str, f64, &'static str)> {
        let alpha = |alpha: f64| ("alpha", alpha, (0.0..=1.0).contains(&alpha), "0 to 1");
        let rules = match *self {
            Self::CrossEntropy => vec![],
            Self::Balanced(l) => vec![alpha(l.alpha)],
            Self::Focal(l) => vec![alpha(l.alpha), ("gamma", l.gamma, (0.0..=10.0).contains(&l.gamma), "0 to 10")],
            Self::FocalStar(l) => vec![
                alpha(l.alpha),
                ("gamma", l.gamma, l.gamma > 0.0 && l.gamma <= 10.0, "above 0, up to 10"),
                ("beta", l.beta, l.beta.abs() <= 10.0, "-10 to 10"),
            ],
            Self::Hinge(l) => vec![("margin", l.margin, l.margin > 0.0 && l.margin <= 1.0, "above 0, up to 1")],
            Self::Ohem(l) => vec![
                ("batch", l.batch as f64, l.batch > 0, "at least 1"),
                ("nms_threshold", f64::from(l.nms_threshold), (0.0..=1.0).contains(&l.nms_threshold), "0 to 1"),
                ("ratio", l.ratio.unwrap_or(1) as f64, l.ratio != Some(0), "at least 1"),
            ],
        };
        rules.into_iter().find(|rule| !rule.2).map_or(Ok(()), |(key, found, _, expected)| Err((key, found, expected)))
    }

    /// Its name with the parameters that shape it.
    pub(crate) fn name(&self) -> String {
        match *self {
            Self::CrossEntropy => "cross-entropy".into(),
            Self::Balanced(Balanced { alpha }) => format!("balanced, alpha {alpha}"),
            Self::Focal(Focal { gamma, .. }) => format!("focal, gamma {gamma}"),
            Self::FocalStar(FocalStar { gamma, beta, .. }) => format!("FL*, gamma {gamma}, beta {beta}"),
            Self::Hinge(Hinge { margin }) => format!("hinge, margin {margin}"),
            Self::Ohem(Ohem { batch, .. }) => format!("hardest {batch}"),
        }
    }

    /// Summed loss and its gradient with respect to the logits.
    ///
    /// `x`: logits, `[N, anchors, classes]`; `target`: 1 on an object, 0 background; `weight`: 0 where there is no loss,
    /// else 1; `anchors`: the boxes of the second dimension.
    pub(crate) fn with_gradient(&self, x: &Tensor, target: &Tensor, weight: &Tensor, anchors: &[BBox]) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let s = target * -2.0 + 1.0;
            let (value, slope) = self.curve(&(&s * x.detach()));
            let weight = match *self {
                Self::CrossEntropy | Self::Hinge(_) => weight.shallow_clone(),
                Self::Balanced(Balanced { alpha })
                | Self::Focal(Focal { alpha, .. })
                | Self::FocalStar(FocalStar { alpha, .. }) => (target * (2.0 * alpha - 1.0) + (1.0 - alpha)) * weight,
                Self::Ohem(how) => mined(&(&value * weight), target, weight, anchors, &how) * weight,
            };
            ((value * &weight).sum(x.kind()), slope * s * weight)
        })
    }

    /// `f(z)` and `f'(z)`, element by element, without the weight of the class.
    pub(crate) fn curve(&self, z: &Tensor) -> (Tensor, Tensor) {
        // 1 - p_t.
        let miss = || z.sigmoid();
        match *self {
            Self::CrossEntropy | Self::Balanced(_) | Self::Ohem(_) => (z.softplus(), miss()),
            Self::Focal(Focal { gamma, .. }) => {
                let (u, ce) = (miss(), z.softplus());
                #[expect(clippy::float_cmp, reason = "the common case, exactly")]
                let focus = if gamma == 2.0 { u.square() } else { u.pow_tensor_scalar(gamma) };
                let slope = ((u.neg() + 1.0) * &ce * gamma + u) * &focus;
                (focus * ce, slope)
            }
            Self::FocalStar(FocalStar { gamma, beta, .. }) => {
                let inner = z * gamma - beta;
                (inner.softplus() / gamma, inner.sigmoid())
            }
            Self::Hinge(Hinge { margin }) => {
                let u = miss();
                let value = (&u + (margin - 1.0)).relu();
                let slope = (u.neg() + 1.0) * &u * value.gt(0.0);
                (value, slope)
            }
        }
    }
}

/// What mining looks at in an anchor.
#[derive(Debug, Clone, Copy)]
struct Example {
    loss: f64,
    is_object: bool,
    /// It is neither object nor background for any class.
    is_ignored: bool,
}

/// 1 for the anchors that hard example mining takes, 0 for the others, `[N, anchors, 1]`; the rest as `target`.
fn mined(loss: &Tensor, target: &Tensor, weight: &Tensor, anchors: &[BBox], how: &Ohem) -> Tensor {
    let flat = |x: Tensor| -> Vec<f64> {
        let x = x.to_device(tch::Device::Cpu).to_kind(Kind::Double).contiguous().reshape([-1]);
        Vec::try_from(&x).expect("a flat tensor of f64 is a vector")
    };
    let losses = flat(loss.sum_dim_intlist(2, false, loss.kind()));
    let examples: Vec<Example> = losses
        .into_iter()
        .zip(flat(target.amax(2, false)))
        .zip(flat(weight.amax(2, false)))
        .map(|((loss, target), weight)| Example { loss, is_object: target > 0.0, is_ignored: weight == 0.0 })
        .collect();
    let mut mask = vec![0.0_f32; examples.len()];
    for (examples, mask) in examples.chunks_exact(anchors.len()).zip(mask.chunks_exact_mut(anchors.len())) {
        hardest(examples, anchors, how).into_iter().for_each(|idx| mask[idx] = 1.0);
    }
    Tensor::from_slice(&mask).reshape([-1, anchors.len() as i64, 1]).to_device(loss.device()).to_kind(loss.kind())
}

/// Anchors of one picture by falling loss, without those that overlap one of higher loss, as many as the batch takes.
fn hardest(examples: &[Example], anchors: &[BBox], how: &Ohem) -> Vec<usize> {
    let mut order: Vec<usize> = (0..anchors.len()).filter(|&idx| !examples[idx].is_ignored).collect();
    order.sort_by(|&a, &b| examples[b].loss.total_cmp(&examples[a].loss).then(a.cmp(&b)));
    let is_object = |idx: usize| examples[idx].is_object;
    let mut objects_left = order.iter().filter(|&&idx| is_object(idx)).count();
    let most = how.ratio.map_or((how.batch, how.batch), |ratio| {
        let objects = (how.batch / (1 + ratio)).max(1);
        (objects, how.batch.saturating_sub(objects))
    });
    let (mut objects, mut background) = (Vec::new(), Vec::new());
    let mut kept: Vec<usize> = Vec::new();
    for idx in order {
        let is_full = match how.ratio {
            None => kept.len() >= how.batch,
            Some(_) => (objects_left == 0 || objects.len() >= most.0) && background.len() >= most.1,
        };
        if is_full {
            break;
        }
        objects_left -= usize::from(is_object(idx));
        if kept.iter().any(|&other| anchors[other].iou(&anchors[idx]) > how.nms_threshold) {
            continue;
        }
        kept.push(idx);
        if is_object(idx) { objects.push(idx) } else { background.push(idx) }
    }
    let Some(ratio) = how.ratio else { return kept };
    objects.truncate(most.0);
    // A picture without objects gives the background of one.
    background.truncate((ratio * objects.len().max(1)).min(most.1));
    objects.extend(background);
    objects
}

/// Loss on the boxes of anchors that are on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BoxLoss {
    /// `1 - GIoU` of the decoded boxes (Rezatofighi et al. 2019).
    #[default]
    Giou,
    /// L1 on the deltas (detectron2's configuration, torchvision).
    L1,
    /// Smooth L1 on the deltas with beta 0.11 (odtk).
    SmoothL1,
}

/// Losses of one step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Losses {
    /// Classification loss, per anchor on an object.
    pub(crate) cls: f64,
    /// Box loss, per anchor on an object, weighted.
    pub(crate) bbox: f64,
    /// Norm of all gradients together, before clipping.
    pub(crate) norm: f64,
    /// Weighted losses against a teacher: scores, boxes, pyramid.
    pub(crate) distill: [f64; 3],
}

impl Losses {
    /// Whether training can go on.
    pub(crate) fn is_finite(&self) -> bool {
        [self.cls, self.bbox, self.norm].iter().chain(&self.distill).all(|loss| loss.is_finite())
    }
}

/// A scalar whose gradient with respect to `x` is `gradient`, and which shows no value of its own.
pub(crate) fn with_gradient(x: &Tensor, gradient: &Tensor) -> Tensor {
    (x * gradient).sum(Kind::Float)
}

/// Summed box loss. `deltas`: `[P, 4]`; `anchors` and `boxes`: `[P, 4]`, xyxy in pixels of the network input.
pub(crate) fn box_loss(deltas: &Tensor, anchors: &Tensor, boxes: &Tensor, kind: BoxLoss) -> Tensor {
    match kind {
        BoxLoss::Giou => (giou(&decode(deltas, anchors), boxes).neg() + 1.0).sum(Kind::Float),
        BoxLoss::L1 | BoxLoss::SmoothL1 => {
            let (anchor_center, anchor_size) = center_and_size(anchors);
            let (center, size) = center_and_size(boxes);
            let shift = (center - anchor_center) / &anchor_size;
            let target = Tensor::cat(&[shift, (size / anchor_size).log()], 1);
            let difference = (deltas - target).abs();
            if kind == BoxLoss::L1 {
                return difference.sum(Kind::Float);
            }
            const BETA: f64 = 0.11;
            let near = difference.square() * (0.5 / BETA);
            let far = &difference - 0.5 * BETA;
            near.where_self(&difference.lt(BETA), &far).sum(Kind::Float)
        }
    }
}

/// Boxes of deltas, both `[P, 4]`.
pub(crate) fn decode(deltas: &Tensor, anchors: &Tensor) -> Tensor {
    let (anchor_center, anchor_size) = center_and_size(anchors);
    let center = deltas.narrow(1, 0, 2) * &anchor_size + anchor_center;
    let clip = f64::from(fovea::retinanet::BBOX_XFORM_CLIP);
    let half = deltas.narrow(1, 2, 2).clamp_max(clip).exp() * anchor_size * 0.5;
    Tensor::cat(&[&center - &half, center + half], 1)
}

fn center_and_size(boxes: &Tensor) -> (Tensor, Tensor) {
    let (low, high) = (boxes.narrow(1, 0, 2), boxes.narrow(1, 2, 2));
    ((&low + &high) * 0.5, high - low)
}

/// Generalised `IoU` of pairs of boxes, `[P]`, in `[-1, 1]`.
pub(crate) fn giou(a: &Tensor, b: &Tensor) -> Tensor {
    let (a_low, a_high) = (a.narrow(1, 0, 2), a.narrow(1, 2, 2));
    let (b_low, b_high) = (b.narrow(1, 0, 2), b.narrow(1, 2, 2));
    let area = |sides: Tensor| sides.select(1, 0) * sides.select(1, 1);
    let shared = area((a_high.minimum(&b_high) - a_low.maximum(&b_low)).clamp_min(0.0));
    let union = area(&a_high - &a_low) + area(&b_high - &b_low) - &shared;
    let hull = area(a_high.maximum(&b_high) - a_low.minimum(&b_low)).clamp_min(1e-6);
    let union = union.clamp_min(1e-6);
    shared / &union - (&hull - &union) / &hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use tch::Device;

    const ALL: [&str; 14] = [
        "cross_entropy",
        "balanced",
        "balanced:alpha=0.25",
        "focal",
        "focal:gamma=0,alpha=0.75",
        "focal:gamma=0.5,alpha=0.5",
        "focal:gamma=5,alpha=0.3",
        "focal_star",
        "focal_star:gamma=4,beta=0",
        "hinge",
        "hinge:margin=0.9",
        "ohem:batch=7,nms_threshold=0.3",
        "ohem:batch=8,nms_threshold=0.6,ratio=3",
        "ohem:batch=300,nms_threshold=1",
    ];

    /// The runtime's box coder and the one on tensors are the same.
    #[test]
    fn boxes_are_those_of_the_runtime() {
        use fovea::retinanet::{BoxCoder, Deltas};
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut random_box = || {
            let [x, y] = [0, 1].map(|_| rng.random_range(-50.0_f32..500.0));
            BBox::new(x, y, x + rng.random_range(2.0..300.0), y + rng.random_range(2.0..300.0))
        };
        let pairs: Vec<(BBox, BBox)> = (0..200).map(|_| (random_box(), random_box())).collect();
        let rows = |values: Vec<[f32; 4]>| Tensor::from_slice(&values.concat()).view([-1, 4]);
        let deltas: Vec<Deltas> = pairs.iter().map(|(bbox, anchor)| BoxCoder::encode(bbox, anchor)).collect();
        let as_row = |d: &Deltas| [d.dx, d.dy, d.dw, d.dh];
        let anchors = rows(pairs.iter().map(|pair| pair.1.to_array()).collect());
        let boxes = rows(pairs.iter().map(|pair| pair.0.to_array()).collect());
        let encoded = rows(deltas.iter().map(as_row).collect());
        for kind in [BoxLoss::L1, BoxLoss::SmoothL1] {
            let loss = box_loss(&encoded, &anchors, &boxes, kind).double_value(&[]);
            assert!(loss < 2e-3, "{kind:?}: {loss} over 800 offsets");
        }
        // Growth beyond the limit, too.
        let grown: Vec<Deltas> = deltas.iter().map(|d| Deltas { dw: d.dw + 4.0, dh: d.dh - 1.0, ..*d }).collect();
        let decoded = decode(&rows(grown.iter().map(as_row).collect()), &anchors);
        let wanted: Vec<[f32; 4]> = grown.iter().zip(&pairs).map(|(d, pair)| BoxCoder::decode(d, &pair.1).to_array()).collect();
        let difference = ((decoded - rows(wanted)).abs() / (anchors.abs().max() * 62.5)).max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
    }

    /// Squares of 8 pixels, each shifted by 2 pixels against the one before.
    fn row_of_anchors(n: usize) -> Vec<BBox> {
        (0..n).map(|idx| 2.0 * idx as f32).map(|x| BBox::new(x, 0.0, x + 8.0, 8.0)).collect()
    }

    /// The loss as it is written in the paper, of `p_t`, in tensor operations of PyTorch and with its autograd.
    fn textbook(loss: &ClsLoss, x: &Tensor, t: &Tensor, weight: &Tensor, anchors: &[BBox]) -> Tensor {
        // log(p_t) and log(1 - p_t).
        let x_t = x * (t * 2.0 - 1.0);
        let (log_p, log_q) = (x_t.log_sigmoid(), x_t.neg().log_sigmoid());
        let alpha_t = |alpha: f64| t * alpha + (t.neg() + 1.0) * (1.0 - alpha);
        let each = match *loss {
            ClsLoss::CrossEntropy => x.binary_cross_entropy_with_logits::<Tensor>(t, None, None, tch::Reduction::None),
            ClsLoss::Balanced(Balanced { alpha }) => -(alpha_t(alpha) * log_p),
            ClsLoss::Focal(Focal { alpha, gamma }) => -(alpha_t(alpha) * (log_q * gamma).exp() * log_p),
            ClsLoss::FocalStar(FocalStar { alpha, gamma, beta }) => {
                -(alpha_t(alpha) * (x_t * gamma + beta).log_sigmoid() / gamma)
            }
            ClsLoss::Hinge(Hinge { margin }) => (log_p.exp().neg() + margin).clamp_min(0.0),
            ClsLoss::Ohem(how) => {
                let ce = x.binary_cross_entropy_with_logits::<Tensor>(t, None, None, tch::Reduction::None);
                let taken = mined_slowly(&(&ce * weight), t, weight, anchors, how);
                ce * taken
            }
        };
        (each * weight).sum(Kind::Double)
    }

    /// Suppression of everything first, the choice afterwards.
    fn mined_slowly(loss: &Tensor, t: &Tensor, weight: &Tensor, anchors: &[BBox], how: Ohem) -> Tensor {
        let (n, a) = (loss.size()[0], loss.size()[1]);
        let mask = Tensor::zeros([n, a, 1], (loss.kind(), Device::Cpu));
        for picture in 0..n {
            let of_anchor = loss.get(picture).detach().sum_dim_intlist(1, false, Kind::Double);
            let order = Vec::<i64>::try_from(of_anchor.argsort_stable(true, 0, true)).unwrap();
            let mut kept: Vec<i64> = Vec::new();
            for idx in order.into_iter().filter(|&idx| weight.get(picture).get(idx).max().double_value(&[]) > 0.0) {
                let bbox = anchors[idx as usize];
                if kept.iter().all(|&other| anchors[other as usize].iou(&bbox) <= how.nms_threshold) {
                    kept.push(idx);
                }
            }
            if let Some(ratio) = how.ratio {
                let is_object = |idx: &i64| t.get(picture).get(*idx).max().double_value(&[]) > 0.0;
                let (mut objects, mut rest): (Vec<i64>, Vec<i64>) = kept.into_iter().partition(is_object);
                objects.truncate(how.batch / (1 + ratio));
                rest.truncate(ratio * objects.len().max(1));
                kept = [objects, rest].concat();
            } else {
                kept.truncate(how.batch);
            }
            for idx in kept {
                let _ = mask.get(picture).get(idx).fill_(1.0);
            }
        }
        mask
    }

    #[test]
    fn value_and_gradient_are_those_of_pytorch() {
        tch::manual_seed(7);
        let (n, a, k) = (3_i64, 40_i64, 2_i64);
        let anchors = row_of_anchors(a as usize);
        let options = (Kind::Double, Device::Cpu);
        // Random logits around the prior, and logits as extreme as they can be.
        let random = Tensor::randn([n, a, k], options) * 4.0 - 2.0;
        let extreme = Tensor::randn([n, a, k], options) * 300.0;
        let target = Tensor::rand([n, a, k], options).lt(0.1).to_kind(Kind::Double);
        let weight = Tensor::rand([n, a, k], options).gt(0.2).to_kind(Kind::Double);
        for (logits, name) in [(random, "random"), (extreme, "extreme")] {
            for text in ALL {
                let loss: ClsLoss = text.parse().unwrap();
                let x = logits.detach().copy().set_requires_grad(true);
                let want = textbook(&loss, &x, &target, &weight, &anchors);
                let want_gradient = Tensor::run_backward(&[&want], &[&x], false, false).remove(0);
                let (value, gradient) = loss.with_gradient(&x, &target, &weight, &anchors);
                let (got, want) = (value.double_value(&[]), want.double_value(&[]));
                assert!((got - want).abs() <= 1e-8 * want.abs().max(1.0), "{text} {name}: {got}, PyTorch {want}");
                let worst = (gradient - &want_gradient).abs().max().double_value(&[]);
                assert!(worst < 1e-8, "{text} {name}: gradient off by {worst}");
                // Which anchors mining takes of those whose loss is 0 to the precision of f32 is arbitrary.
                if matches!(loss, ClsLoss::Ohem(_)) && name == "extreme" {
                    continue;
                }
                // In f32, as trained: nothing that is not finite, and the same to its precision.
                let f32s = |x: &Tensor| x.detach().to_kind(Kind::Float);
                let (value, gradient) = loss.with_gradient(&f32s(&x), &f32s(&target), &f32s(&weight), &anchors);
                let got = value.double_value(&[]);
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{text} {name}: f32 {got}, PyTorch {want}");
                let worst = (gradient.to_kind(Kind::Double) - &want_gradient).abs().max().double_value(&[]);
                assert!(worst < 1e-5, "{text} {name}: f32 gradient off by {worst}");
            }
        }
    }

    #[test]
    fn mining_takes_the_hardest_and_keeps_the_ratio() {
        let anchors = row_of_anchors(8);
        let losses = [0.1, 0.9, 0.8, 0.0, 0.3, 0.2, 0.7, 0.05];
        let example = |(idx, loss)| Example { loss, is_object: idx == 0, is_ignored: idx == 3 };
        let examples: Vec<Example> = losses.into_iter().enumerate().map(example).collect();
        // Neighbours overlap by 0.6, the next but one by a third.
        for (text, want) in [
            ("ohem:batch=3,nms_threshold=0.5", vec![1, 6, 4]),
            ("ohem:batch=3,nms_threshold=1", vec![1, 2, 6]),
            ("ohem:batch=8,nms_threshold=0.7", vec![1, 2, 6, 4, 5, 0, 7]),
            ("ohem:batch=8,nms_threshold=0.7,ratio=3", vec![0, 1, 2, 6]),
            // The object overlaps a harder anchor: background of one object.
            ("ohem:batch=8,nms_threshold=0.5,ratio=2", vec![1, 6]),
        ] {
            let Ok(ClsLoss::Ohem(how)) = text.parse() else { panic!("{text}") };
            assert_eq!(hardest(&examples, &anchors, &how), want, "{text}");
        }
    }

    #[test]
    fn losses_by_name() {
        assert_eq!("focal:gamma=1".parse(), Ok(ClsLoss::Focal(Focal { gamma: 1.0, alpha: 0.25 })));
        for (text, part) in [
            ("focus", "unknown variant `focus`"),
            ("focal:beta=1", "unknown field `beta`"),
            ("focal:gamma=11", "gamma is 11, expected 0 to 10"),
            ("hinge:margin=0", "margin is 0"),
            ("ohem:batch=0", "batch is 0"),
        ] {
            let error = text.parse::<ClsLoss>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in ALL {
            let loss: ClsLoss = text.parse().unwrap();
            assert_eq!(toml::from_str::<ClsLoss>(&toml::to_string(&loss).unwrap()).unwrap(), loss);
        }
    }

    #[test]
    fn giou_of_known_pairs() {
        let a = Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0]).reshape([2, 4]);
        let b = Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0, 2.0, 0.0, 3.0, 1.0]).reshape([2, 4]);
        let got = Vec::<f32>::try_from(giou(&a, &b)).unwrap();
        assert!((got[0] - 1.0).abs() < 1e-6 && (got[1] + 1.0 / 3.0).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn a_box_on_its_target_has_no_loss() {
        let anchors = Tensor::from_slice(&[10.0_f32, 20.0, 42.0, 52.0]).reshape([1, 4]);
        let boxes = Tensor::from_slice(&[12.0_f32, 18.0, 60.0, 50.0]).reshape([1, 4]);
        let deltas = Tensor::from_slice(&[10.0_f32 / 32.0, -2.0 / 32.0, (48.0_f32 / 32.0).ln(), 0.0]).reshape([1, 4]);
        for kind in [BoxLoss::Giou, BoxLoss::L1, BoxLoss::SmoothL1] {
            assert!(f64::try_from(box_loss(&deltas, &anchors, &boxes, kind)).unwrap().abs() < 1e-5, "{kind:?}");
            assert!(f64::try_from(box_loss(&(&deltas + 0.3), &anchors, &boxes, kind)).unwrap() > 0.1, "{kind:?}");
        }
    }
}
