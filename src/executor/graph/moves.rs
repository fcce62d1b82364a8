//! Operators that only move values: they need no quantisation of their own, so they may stand in float between
//! `DequantizeLinear` and the operator that computes, or between `QuantizeLinear` and `DequantizeLinear`.
//!
//! Inside, maps are `[H, W, C]`. What ONNX does to the shape is followed as a [`View`]; only a channel shuffle is a step.

use super::{Activation, Attributes, Lowered, Lowering, Quantized, input_of, positive, unsupported};
use crate::executor::onnx::{NodeProto, TensorValues};
use crate::kernels::{OpSpec, Shape};

/// Operators that move values.
pub(super) const MOVES: [&str; 12] = [
    "MaxPool",
    "Resize",
    "Upsample",
    "Split",
    "Slice",
    "Gather",
    "Pad",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
];

/// Most rows and columns of padding on one side.
pub(super) const MAX_PAD: usize = 64;

/// Most values of a list of sizes or channels.
const MAX_LIST: usize = 1 << 16;

/// How ONNX sees a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// `[1, C, H, W]`.
    Plain,
    /// `[1, G, C / G, H, W]`.
    Grouped(usize),
    /// `[1, C / G, G, H, W]`: groups and their channels exchanged, values where they were.
    Shuffled(usize),
    /// `[1, H, W, C]`: the order that a map has inside.
    PixelFirst,
    /// Any other shape in that order, such as `[1, H · W · A, K]`.
    Rows,
}

impl View {
    /// Sizes that ONNX sees; none where they are not followed.
    fn dims(self, Shape { h, w, c }: Shape) -> Vec<usize> {
        match self {
            Self::Plain => vec![1, c, h, w],
            Self::Grouped(groups) => vec![1, groups, c / groups, h, w],
            Self::Shuffled(groups) => vec![1, c / groups, groups, h, w],
            Self::PixelFirst => vec![1, h, w, c],
            Self::Rows => Vec::new(),
        }
    }
}

impl<'a> Lowering<'a> {
    /// Output `part` of a node that moves values.
    pub(super) fn moved(&mut self, node: &'a NodeProto, part: usize) -> Lowered<Quantized> {
        match node.op_type.as_str() {
            "MaxPool" => self.max_pool(node),
            "Resize" | "Upsample" => self.resize(node),
            "Split" => self.split(node, part),
            "Slice" => self.slice(node),
            "Gather" => self.gather(node),
            "Pad" => self.pad(node),
            "Transpose" => self.transpose(node),
            _ => self.reshape(node),
        }
    }

    fn max_pool(&mut self, node: &'a NodeProto) -> Lowered<Quantized> {
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
        self.push(node, OpSpec::MaxPool(window), vec![input], Activation { shape, ..from })
    }

    fn resize(&mut self, node: &'a NodeProto) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        let attributes = Attributes(node);
        let mode = attributes.string("mode").unwrap_or_else(|| "nearest".into());
        let shape = Shape { h: 2 * from.shape.h, w: 2 * from.shape.w, c: from.shape.c };
        // Old forms have the scales as input 1, where newer ones have a region that nearest neighbours do not read.
        let by_scales = node.input.get(if node.input.len() == 2 { 1 } else { 2 });
        let by_scales = by_scales.and_then(|name| self.constants.get(name.as_str()));
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
        self.push(node, OpSpec::Upsample2, vec![input], Activation { shape, ..from })
    }

    /// Channels `first..first + len` of `input`.
    fn channels(&mut self, node: &NodeProto, input: usize, first: usize, len: usize) -> Lowered<Quantized> {
        let from = self.activation(input);
        if first == 0 && len == from.shape.c {
            return Ok(Quantized::plain(input));
        }
        let shape = Shape { c: len, ..from.shape };
        self.push(node, OpSpec::Slice { first }, vec![input], Activation { shape, ..from })
    }

    fn split(&mut self, node: &'a NodeProto, part: usize) -> Lowered<Quantized> {
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
        let sum = sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size));
        if sizes.len() != n_parts || sum != Some(from.shape.c) || sizes.contains(&0) {
            let sizes = &sizes[..sizes.len().min(8)];
            return Err(unsupported(node, format!("parts of {sizes:?} channels out of {}", from.shape.c)));
        }
        self.channels(node, input, sizes[..part].iter().sum(), sizes[part])
    }

    fn slice(&mut self, node: &'a NodeProto) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let c = self.activation(input).shape.c;
        let list = |idx: usize, attribute: &str| match node.input.get(idx).filter(|name| !name.is_empty()) {
            Some(name) => self.ints(node, name).map(Some),
            None => Ok(Attributes(node).ints(attribute)),
        };
        let ends = (list(1, "starts")?, list(2, "ends")?, list(3, "axes")?, list(4, "steps")?);
        let (Some(&[start]), Some(&[end]), Some([1 | -3]), None | Some([1])) = ends else {
            return Err(unsupported(node, format!("starts, ends, axes, steps {ends:?}; only a range of channels (axis 1)")));
        };
        // Counted from the end where negative, and cut to what is there.
        let place = |at: i64| {
            let len = i64::try_from(c).unwrap_or(i64::MAX);
            usize::try_from(if at < 0 { at.saturating_add(len) } else { at }.clamp(0, len)).unwrap_or(0)
        };
        let (first, end) = (place(start), place(end));
        if first >= end {
            return Err(unsupported(node, format!("channels {start} to {end} of {c}")));
        }
        self.channels(node, input, first, end - first)
    }

    /// Channels picked by a constant list: a range, or a channel shuffle.
    fn gather(&mut self, node: &'a NodeProto) -> Lowered<Quantized> {
        let input = self.plain(node, input_of(node, 0)?)?;
        let from = self.activation(input);
        let c = from.shape.c;
        let axis = Attributes(node).int("axis").unwrap_or(0);
        let picks = self.sizes(node, input_of(node, 1)?)?;
        let is_range = picks.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        let (first, last) = (picks.first().copied().unwrap_or(0), picks.last().copied().unwrap_or(c));
        if axis == 1 && is_range && last < c {
            return self.channels(node, input, first, picks.len());
        }
        // Place `i x groups + g` takes channel `g x (c / groups) + i`, so place 1 tells the channels of a group.
        let per_group = picks.get(1).copied().unwrap_or(0);
        let groups = c.checked_div(per_group).unwrap_or(0);
        let is_shuffle = groups > 1
            && groups * per_group == c
            && picks.len() == c
            && picks.iter().enumerate().all(|(at, &pick)| pick == at % groups * per_group + at / groups);
        if axis != 1 || !is_shuffle {
            let reason = format!("axis {axis}; only a range or a shuffle of the {c} channels (axis 1) can be picked");
            return Err(unsupported(node, reason));
        }
        self.push(node, OpSpec::Shuffle { groups }, vec![input], from)
    }

    /// Padding with zeros is left to the convolution that reads the map.
    fn pad(&self, node: &'a NodeProto) -> Lowered<Quantized> {
        let value = self.value(node, input_of(node, 0)?)?;
        let params = self.activation(value.id).params;
        let mode = Attributes(node).string("mode").unwrap_or_else(|| "constant".into());
        let fill = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => self.scalar(name),
            None => Some(Attributes(node).float("value").unwrap_or(0.0)),
        };
        let stated = match node.input.get(1) {
            Some(name) => self.ints(node, name)?,
            None => Attributes(node).ints("pads").unwrap_or(&[]),
        };
        let pads: Option<Vec<usize>> =
            stated.iter().map(|&pad| usize::try_from(pad).ok().filter(|&pad| pad <= MAX_PAD)).collect();
        let has_axes = node.input.get(3).is_some_and(|name| !name.is_empty());
        match (mode.as_str(), pads.as_deref(), fill) {
            ("constant", Some(&[0, 0, top, left, 0, 0, bottom, right]), Some(fill))
                if !has_axes && value.view == View::Plain && params.quantize(fill) == params.zero_point =>
            {
                let [t, l, b, r] = value.pads;
                Ok(Quantized { pads: [t + top, l + left, b + bottom, r + right], ..value })
            }
            _ => Err(unsupported(
                node,
                format!("mode {mode}, pads {stated:?}, value {fill:?}; only zeros, 0 to {MAX_PAD} rows and columns on each side"),
            )),
        }
    }

    fn transpose(&self, node: &'a NodeProto) -> Lowered<Quantized> {
        let value = self.value(node, input_of(node, 0)?)?;
        let view = match (value.view, Attributes(node).ints("perm")) {
            (View::Grouped(groups), Some([0, 2, 1, 3, 4])) => View::Shuffled(groups),
            (View::Shuffled(groups), Some([0, 2, 1, 3, 4])) => View::Grouped(groups),
            (View::Plain, Some([0, 2, 3, 1])) => View::PixelFirst,
            (View::PixelFirst, Some([0, 3, 1, 2])) => View::Plain,
            (View::Grouped(_), Some([0, 3, 4, 1, 2])) => View::Rows,
            (view, perm) => {
                let reason = format!("perm {perm:?} of {view:?}; only those of a channel shuffle, and to and from [1, H, W, C]");
                return Err(unsupported(node, reason));
            }
        };
        Ok(Quantized { view, ..value })
    }

    /// `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`.
    fn reshape(&mut self, node: &'a NodeProto) -> Lowered<Quantized> {
        let value = self.value(node, input_of(node, 0)?)?;
        let from = self.activation(value.id);
        let Shape { h, w, c } = from.shape;
        let target = self.target(node, value)?;
        let view = match (value.view, &target[..]) {
            (view, target) if target == view.dims(from.shape) => view,
            (View::Plain, &[1, groups, per_group, th, tw]) if groups.checked_mul(per_group) == Some(c) && (th, tw) == (h, w) => {
                View::Grouped(groups)
            }
            (View::Grouped(_), &[1, tc, th, tw]) if (tc, th, tw) == (c, h, w) => View::Plain,
            (View::Shuffled(groups), &[1, tc, th, tw]) if (tc, th, tw) == (c, h, w) && value.pads == [0; 4] => {
                return self.push(node, OpSpec::Shuffle { groups }, vec![value.id], from);
            }
            (View::PixelFirst | View::Rows, target) if product(target) == Some(from.shape.len()) => View::Rows,
            (view, target) => {
                return Err(unsupported(
                    node,
                    format!(
                        "from {c}x{h}x{w} ({view:?}) to {target:?}; only the reshapes of a channel shuffle, and of an output in [1, H, W, C]"
                    ),
                ));
            }
        };
        Ok(Quantized { view, ..value })
    }

    /// The shape that a node asks for, with 0 and -1 resolved.
    fn target(&self, node: &NodeProto, value: Quantized) -> Lowered<Vec<usize>> {
        let shape = self.activation(value.id).shape;
        let current = value.view.dims(shape);
        let attributes = Attributes(node);
        let asked = match node.input.get(1).filter(|name| !name.is_empty()) {
            Some(name) => Some(self.ints(node, name)?),
            None => attributes.ints("axes"),
        };
        if let "Squeeze" | "Unsqueeze" = node.op_type.as_str() {
            let mut dims = current;
            let axis = match asked {
                Some(&[axis]) => usize::try_from(axis).ok(),
                _ => None,
            };
            match (node.op_type.as_str(), axis) {
                ("Squeeze", Some(axis)) if dims.get(axis) == Some(&1) => drop(dims.remove(axis)),
                ("Unsqueeze", Some(axis)) if axis <= dims.len() => dims.insert(axis, 1),
                _ => return Err(unsupported(node, format!("axes {asked:?} of {dims:?}"))),
            }
            return Ok(dims);
        }
        if node.op_type == "Flatten" {
            let axis = usize::try_from(attributes.int("axis").unwrap_or(1)).unwrap_or(usize::MAX);
            // Where the sizes are not followed, two numbers with the right product will do.
            let first = current.get(..axis).map_or(1, |dims| dims.iter().product());
            return Ok(vec![first, shape.len() / first]);
        }
        let Some(asked) = asked.filter(|asked| asked.len() <= 8) else {
            return Err(unsupported(node, "its shape must be a constant of at most 8 sizes".into()));
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
            target[axis] = shape.len().checked_div(product(&target).unwrap_or(0)).unwrap_or(0);
        }
        Ok(target)
    }

    /// Values of a constant list of integers.
    fn ints(&self, node: &NodeProto, name: &str) -> Lowered<&[i64]> {
        match self.constants.get(name).map(|constant| &constant.values) {
            Some(TensorValues::I64(values)) if values.len() <= MAX_LIST => Ok(values),
            Some(TensorValues::I64(_)) => Err(unsupported(node, format!("`{name}` has more than {MAX_LIST} values"))),
            _ => Err(unsupported(node, format!("`{name}` must be a constant i64"))),
        }
    }

    fn sizes(&self, node: &NodeProto, name: &str) -> Lowered<Vec<usize>> {
        // A size that is below 0 fits nothing, as usize::MAX does.
        Ok(self.ints(node, name)?.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect())
    }
}

fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}
