//! Losses: focal loss on the logits, `GIoU`, L1 or smooth L1 on the boxes.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Parameters of the focal loss, `FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)` (paper section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// Value and gradient of the summed focal loss, in closed form: no autograd graph over millions of logits.
///
/// `x`: logits; `target`: 1 on an object, 0 background; `weight`: 0 where there is no loss, else 1; all of one shape.
/// With `p = sigmoid(x)`, `s = 1 - 2 target` and `u = 1 - p_t`:
/// `loss = a_t u^gamma ce` and `d loss / d x = a_t s u^gamma (gamma (1 - u) ce + u)`.
pub(crate) fn focal_with_gradient(x: &Tensor, target: &Tensor, weight: &Tensor, focal: Focal) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let x = x.detach();
        let s = target * -2.0 + 1.0;
        // u = sigmoid(s x) = 1 - p_t, and ce = -log(p_t) = softplus(s x).
        let sx = &s * &x;
        let u = sx.sigmoid();
        let ce = sx.softplus();
        #[expect(clippy::float_cmp, reason = "the common case, exactly")]
        let focus = if focal.gamma == 2.0 { u.square() } else { u.pow_tensor_scalar(focal.gamma) };
        let alpha = target * (2.0 * focal.alpha - 1.0) + (1.0 - focal.alpha);
        let scaled = focus * alpha * weight;
        let loss = (&scaled * &ce).sum(Kind::Float);
        let inner = (u.neg() + 1.0) * ce * focal.gamma + u;
        (loss, scaled * s * inner)
    })
}

/// A scalar whose gradient with respect to `x` is `gradient`, and which shows no value of its own.
pub(crate) fn with_gradient(x: &Tensor, gradient: &Tensor) -> Tensor {
    (x * gradient).sum(Kind::Float)
}

/// Summed box loss. `deltas`: `[P, 4]`; `anchors` and `boxes`: `[P, 4]`, xyxy in pixels of the network input.
pub(crate) fn box_loss(deltas: &Tensor, anchors: &Tensor, boxes: &Tensor, kind: BoxLoss) -> Tensor {
    let (anchor_center, anchor_size) = center_and_size(anchors);
    match kind {
        BoxLoss::Giou => {
            let center = deltas.narrow(1, 0, 2) * &anchor_size + &anchor_center;
            let clip = f64::from(fovea::retinanet::BBOX_XFORM_CLIP);
            let half = deltas.narrow(1, 2, 2).clamp_max(clip).exp() * &anchor_size * 0.5;
            let decoded = Tensor::cat(&[&center - &half, &center + &half], 1);
            (giou(&decoded, boxes).neg() + 1.0).sum(Kind::Float)
        }
        BoxLoss::L1 | BoxLoss::SmoothL1 => {
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

fn center_and_size(boxes: &Tensor) -> (Tensor, Tensor) {
    let (low, high) = (boxes.narrow(1, 0, 2), boxes.narrow(1, 2, 2));
    ((&low + &high) * 0.5, high - low)
}

/// Generalised `IoU` of pairs of boxes, `[P]`, in `[-1, 1]`.
fn giou(a: &Tensor, b: &Tensor) -> Tensor {
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
    use tch::Device;

    #[test]
    fn gradient_is_the_derivative() {
        let x = Tensor::from_slice(&[-30.0_f64, -8.0, -3.0, -0.5, 0.0, 0.7, 2.0, 9.0, 25.0]).set_requires_grad(true);
        for (target, alpha, gamma) in [(0.0, 0.25, 2.0), (1.0, 0.25, 2.0), (1.0, 0.75, 0.0), (0.0, 0.5, 0.5), (1.0, 0.3, 5.0)] {
            let t = Tensor::full([9], target, (Kind::Double, Device::Cpu));
            let weight = Tensor::from_slice(&[1.0_f64, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
            let (value, gradient) = focal_with_gradient(&x, &t, &weight, Focal { alpha, gamma });
            // The definition, through autograd.
            let p = x.sigmoid();
            let miss = (&p - &t).abs();
            let ce = x.clamp_min(0.0) - &x * &t + (x.abs().neg().exp() + 1.0).log();
            let alpha_t = &t * (2.0 * alpha - 1.0) + (1.0 - alpha);
            let want = (alpha_t * miss.pow_tensor_scalar(gamma) * ce * &weight).sum(Kind::Double);
            let want_gradient = Tensor::run_backward(&[&want], &[&x], false, false).remove(0);
            assert!((f64::try_from(&value).unwrap() - f64::try_from(&want).unwrap()).abs() < 1e-4, "{target} {alpha} {gamma}");
            let worst = f64::try_from((gradient - want_gradient).abs().max()).unwrap();
            assert!(worst < 1e-7, "{target} {alpha} {gamma}: {worst}");
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
