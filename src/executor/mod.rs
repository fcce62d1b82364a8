//! Runs a network: tract is the graph engine, quantised patterns are our integer operators.
//!
//! In: the bytes of an ONNX file and a manifest. Out: [`HeadOutputs`] for every picture. A quantised network (QDQ or QOperator)
//! runs in integers from the first to the last operator or is refused, naming the node; a float network runs in plain tract
//! and only when asked for ([`LoadOptions::allow_float`]). [`Network`] knows files without a manifest,
//! [`Executor`] adds what the manifest says: which output is which level, and how pixels become input values.

mod arena;
mod float;
mod fuse;
mod graph;
mod limits;
pub mod onnx;
mod ops;
mod plan;

pub use graph::LowerError;
pub use limits::{
    MAX_ACTIVATION_BYTES, MAX_ACTIVATION_LEN, MAX_DECODED_LEN, MAX_FILE_LEN, MAX_NODES, MAX_WEIGHT_BYTES, TooLarge,
};

use crate::kernels::{Kernels, Reals, Shape, Table};
use crate::quant::QuantParams;
use crate::retinanet::{HeadData, HeadOutputs, LevelHeads, Manifest};
use float::FloatPlan;
use plan::IntPlan;
use serde::Serialize;

/// How to load a network.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Threads that share the rows of a layer; 0 and 1 mean the caller's thread alone.
    pub threads: usize,
    /// Run a network, or a quantised one that has no integer form, in float.
    pub allow_float: bool,
    /// Run even a quantised network in float, by the graph engine's own operators: for comparison.
    pub force_float: bool,
    /// Who computes; the best that this CPU has unless said otherwise.
    pub kernels: Kernels,
}

/// Why a network cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Not an ONNX file, or cut short.
    #[error("not a readable ONNX model ({0}); export it again")]
    Decode(String),
    /// More than is supported of something.
    #[error("the network is too large: {0}")]
    TooLarge(#[from] TooLarge),
    /// A quantised network with a node that has no integer form.
    #[error("the network cannot run in integers: {0}")]
    Lower(#[from] LowerError),
    /// A network that is not quantised.
    #[error(
        "the network is not quantised: {n_convs} convolutions would run in float (the first is `{first}`); \
         quantise it with `fovea-train quantize`, or run it in float with --allow-float"
    )]
    Float {
        /// Convolutions without quantised weights.
        n_convs: usize,
        /// Name of the first.
        first: String,
    },
    /// tract refuses it.
    #[error("the graph engine cannot run the network: {0}")]
    Engine(String),
    /// Manifest and network contradict each other.
    #[error("manifest and network do not fit together: {0}")]
    Contract(String),
}

/// A failure while a network runs.
#[derive(Debug, thiserror::Error)]
#[error("the network failed: {0}")]
pub struct RunError(String);

/// One kind of operator in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpCount {
    /// Operator.
    pub op: String,
    /// Type of its values.
    pub dtype: &'static str,
    /// How many there are.
    pub count: usize,
    /// Multiplications for one picture.
    pub macs: usize,
}

/// What a network consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Operators by kind and type.
    pub ops: Vec<OpCount>,
    /// Convolutions that run in float.
    pub float_convs: usize,
    /// Bytes of all activation buffers.
    pub activation_bytes: usize,
    /// Bytes of the activations that are alive together at least; 0 where the engine does not say.
    pub live_bytes: usize,
}

/// One operator of an integer network, in execution order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Name of its node in the file.
    pub name: String,
    /// Operator.
    pub op: &'static str,
    /// Instruction set and tile of its kernel.
    pub kernel: String,
    /// Rows, columns, channels of its output.
    pub output: Shape,
    /// Multiplications.
    pub macs: usize,
    /// Layers whose outputs it reads; `None` is the network's input.
    pub inputs: Vec<Option<usize>>,
}

/// An output of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputInfo {
    /// ONNX name.
    pub name: String,
    /// Rows, columns, channels.
    pub shape: Shape,
    /// Quantisation; `None` in float.
    pub params: Option<QuantParams>,
    /// The layer of [`Network::layers`] that makes it; `None` in float, and where it is the input itself.
    pub layer: Option<usize>,
}

#[derive(Debug)]
enum Plan {
    Int(IntPlan),
    Float(FloatPlan),
}

/// A network without a manifest.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
}

impl Network {
    /// Loads an ONNX file.
    ///
    /// # Errors
    /// [`LoadError`]; see there.
    pub fn load(bytes: &[u8], options: &LoadOptions) -> Result<Self, LoadError> {
        limits::check("bytes", bytes.len(), MAX_FILE_LEN)?;
        let decoded_len = limits::decoded_len(bytes).ok_or_else(|| LoadError::Decode("not protobuf, or cut short".into()))?;
        limits::check("bytes when it is decoded", decoded_len, MAX_DECODED_LEN)?;
        let model = onnx::decode(bytes).map_err(|error| LoadError::Decode(error.to_string()))?;
        let graph = model.graph.as_ref().ok_or_else(|| LoadError::Decode("it has no graph".into()))?;
        limits::check("nodes", graph.node.len(), MAX_NODES)?;
        if let Some(tensor) = onnx::external_tensor(graph) {
            return Err(LoadError::Decode(format!("the data of its tensor `{tensor}` lie outside the file")));
        }
        if graph.node.is_empty() {
            return Err(LoadError::Decode("its graph is empty".into()));
        }
        let is_quantized = graph.node.iter().any(|node| node.op_type == "QuantizeLinear" || node.op_type.starts_with("QLinear"));
        if !is_quantized && !options.allow_float && !options.force_float {
            let mut convs = graph.node.iter().filter(|node| node.op_type == "Conv");
            let first = convs.next().map_or_else(|| "none".into(), |node| node.name.clone());
            return Err(LoadError::Float { n_convs: graph.node.iter().filter(|node| node.op_type == "Conv").count(), first });
        }
        let plan = if is_quantized && !options.force_float {
            match graph::lower(graph) {
                Ok(lowered) => Plan::Int(IntPlan::new(lowered, options)?),
                Err(_) if options.allow_float => Plan::Float(FloatPlan::new(bytes, graph)?),
                Err(error) => return Err(error.into()),
            }
        } else {
            Plan::Float(FloatPlan::new(bytes, graph)?)
        };
        Ok(Self { plan })
    }

    /// Name of the input.
    #[must_use]
    pub fn input_name(&self) -> &str {
        match &self.plan {
            Plan::Int(plan) => plan.input_name(),
            Plan::Float(plan) => plan.input_name(),
        }
    }

    /// Rows, columns, channels of the input.
    #[must_use]
    pub const fn input_shape(&self) -> Shape {
        match &self.plan {
            Plan::Int(plan) => plan.input_shape(),
            Plan::Float(plan) => plan.input_shape(),
        }
    }

    /// Quantisation of the input; `None` in float.
    #[must_use]
    pub fn input_params(&self) -> Option<QuantParams> {
        match &self.plan {
            Plan::Int(plan) => Some(plan.input_params()),
            Plan::Float(_) => None,
        }
    }

    /// Outputs in the order of the file.
    #[must_use]
    pub fn outputs(&self) -> &[OutputInfo] {
        match &self.plan {
            Plan::Int(plan) => plan.outputs(),
            Plan::Float(plan) => plan.outputs(),
        }
    }

    /// What the network consists of.
    #[must_use]
    pub fn census(&self) -> Census {
        match &self.plan {
            Plan::Int(plan) => plan.census(),
            Plan::Float(plan) => plan.census(),
        }
    }

    /// The operators of an integer network, in execution order; empty in float.
    #[must_use]
    pub fn layers(&self) -> &[LayerInfo] {
        match &self.plan {
            Plan::Int(plan) => plan.layers(),
            Plan::Float(_) => &[],
        }
    }

    /// Runs the network on real values in `[C, H, W]`, as ONNX states its input, and returns every output in `[C, H, W]`.
    /// For comparison with other runtimes; a pipeline uses [`Executor`].
    ///
    /// # Errors
    /// [`RunError`] if `input` is not as long as the input or the engine fails.
    pub fn run_f32(&mut self, input: &[f32]) -> Result<&[Reals], RunError> {
        let shape = self.input_shape();
        if input.len() != shape.len() {
            let Shape { h, w, c } = shape;
            return Err(RunError(format!("the input has {} values, expected {c} x {h} x {w}", input.len())));
        }
        match &mut self.plan {
            Plan::Int(plan) => plan.run_reals(input),
            Plan::Float(plan) => plan.run_planes(input),
        }
    }

    /// Runs a quantised network on its own input values, `[H, W, C]`; results are read with [`Self::output`]. `observe`
    /// is called after every operator with its index in [`Self::layers`].
    ///
    /// # Errors
    /// [`RunError`] if the network is in float, `input` is not as long as the input, or the engine fails.
    pub fn run_u8(&mut self, input: &[u8], observe: Option<&mut dyn FnMut(usize)>) -> Result<(), RunError> {
        let len = self.input_shape().len();
        match (&mut self.plan, observe) {
            (Plan::Float(_), _) => Err(RunError("it runs in float; it has no input of bytes".into())),
            (Plan::Int(_), _) if input.len() != len => {
                Err(RunError(format!("the input has {} values, expected {len}", input.len())))
            }
            (Plan::Int(plan), None) => plan.run_pixels(input, None),
            (Plan::Int(plan), Some(observe)) => plan.run_observed(input, observe),
        }
    }

    /// Output `idx` of the last run of [`Self::run_u8`] or [`Executor::run`], `[H, W, C]`; empty before the first.
    #[must_use]
    pub fn output(&self, idx: usize) -> HeadData<'_> {
        match &self.plan {
            Plan::Int(plan) => {
                let (values, params) = plan.output(idx);
                HeadData::Quantized(values, params)
            }
            Plan::Float(plan) => HeadData::Float(plan.output(idx).0),
        }
    }
}

/// How a pixel's value becomes an input value.
#[derive(Debug)]
enum InputMap {
    /// Quantised: a table for each channel; `None` where it is the identity.
    Tables(Option<Box<[Table; 3]>>),
    /// Real: a table for each channel.
    Reals(Box<[[f32; 256]; 3]>),
}

/// A network under a manifest: pixels in, heads of every level out.
#[derive(Debug)]
pub struct Executor {
    network: Network,
    input: InputMap,
    /// Output indices of logits and deltas, by level.
    levels: Vec<(usize, usize)>,
}

impl Executor {
    /// Loads a network and checks it against its manifest.
    ///
    /// # Errors
    /// [`LoadError`]; a contradiction names both sides.
    pub fn load(bytes: &[u8], manifest: &Manifest, options: &LoadOptions) -> Result<Self, LoadError> {
        let network = Network::load(bytes, options)?;
        let spec = &manifest.input;
        let want = Shape { h: spec.height, w: spec.width, c: 3 };
        if network.input_name() != spec.name || network.input_shape() != want {
            return Err(LoadError::Contract(format!(
                "the manifest states the input `{}` of 3x{}x{}, the network has `{}` of {}",
                spec.name,
                spec.height,
                spec.width,
                network.input_name(),
                chw(network.input_shape())
            )));
        }
        let levels = match_levels(manifest, network.outputs())?;
        let input = input_map(manifest, network.input_params());
        Ok(Self { network, input, levels })
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The network, without its manifest.
    #[must_use]
    pub fn into_network(self) -> Network {
        self.network
    }

    /// Runs the network on a letterboxed picture: `pixels` are RGB `[H, W, 3]`, as `preprocess` makes them.
    ///
    /// # Errors
    /// [`RunError`] if `pixels` has another length than the input or the engine fails.
    pub fn run(&mut self, pixels: &[u8]) -> Result<HeadOutputs<'_>, RunError> {
        let shape = self.network.input_shape();
        if pixels.len() != shape.len() {
            return Err(RunError(format!("the picture has {} bytes, expected {}", pixels.len(), shape.len())));
        }
        let input = &self.input;
        match &mut self.network.plan {
            Plan::Int(plan) => {
                let tables = if let InputMap::Tables(Some(tables)) = input { Some(&**tables) } else { None };
                plan.run_pixels(pixels, tables)?;
            }
            Plan::Float(plan) => plan.run(|values| {
                let InputMap::Reals(tables) = input else { return };
                let cells = shape.h * shape.w;
                for (cell, pixel) in pixels.as_chunks::<3>().0.iter().enumerate() {
                    for (channel, &p) in pixel.iter().enumerate() {
                        values[channel * cells + cell] = tables[channel][usize::from(p)];
                    }
                }
            })?,
        }
        Ok(self.heads())
    }

    fn heads(&self) -> HeadOutputs<'_> {
        let data = |idx: usize| self.network.output(idx);
        let level = |&(cls, bbox): &(usize, usize)| {
            let Shape { h, w, .. } = self.network.outputs()[cls].shape;
            LevelHeads { grid: (w, h), cls_logits: data(cls), bbox_deltas: data(bbox) }
        };
        HeadOutputs { levels: self.levels.iter().map(level).collect() }
    }
}

/// Finds the outputs of every level: by the manifest's names, else by shape.
fn match_levels(manifest: &Manifest, outputs: &[OutputInfo]) -> Result<Vec<(usize, usize)>, LoadError> {
    let (per_cell, n_classes) = (manifest.anchors.n_per_cell(), manifest.n_classes());
    let mut levels = Vec::with_capacity(manifest.levels.len());
    for (level, (w, h)) in manifest.levels.iter().zip(manifest.grids()) {
        let find = |name: &str, channels: usize| {
            let want = Shape { h, w, c: channels };
            let mut same_shape = outputs.iter().enumerate().filter(|(_, output)| output.shape == want);
            let found = match outputs.iter().position(|output| output.name == name) {
                Some(idx) => (outputs[idx].shape == want).then_some(idx),
                None => same_shape.next().map(|(idx, _)| idx).filter(|_| same_shape.next().is_none()),
            };
            found.ok_or_else(|| {
                let there: Vec<String> =
                    outputs.iter().map(|output| format!("`{}` {}", output.name, chw(output.shape))).collect();
                LoadError::Contract(format!(
                    "the manifest states an output `{name}` of {}, the network has {}",
                    chw(want),
                    there.join(", ")
                ))
            })
        };
        levels.push((find(&level.cls, per_cell * n_classes)?, find(&level.bbox, per_cell * 4)?));
    }
    Ok(levels)
}

/// Tables from a pixel's value to an input value: `(value - mean) / std`, quantised where the network is.
fn input_map(manifest: &Manifest, params: Option<QuantParams>) -> InputMap {
    let mut reals = Box::new([[0.0_f32; 256]; 3]);
    for (channel, table) in reals.iter_mut().enumerate() {
        for (value, slot) in (0..=u8::MAX).zip(table.iter_mut()) {
            *slot = (f32::from(value) - manifest.input.mean[channel]) / manifest.input.std[channel];
        }
    }
    let Some(params) = params else { return InputMap::Reals(reals) };
    let tables = Box::new(reals.map(|table| table.map(|real| params.quantize(real))));
    let is_identity = tables.iter().all(|table| (0..=u8::MAX).zip(table).all(|(from, &to)| from == to));
    InputMap::Tables((!is_identity).then_some(tables))
}

fn chw(shape: Shape) -> String {
    format!("{}x{}x{}", shape.c, shape.h, shape.w)
}

/// Sizes of an input or output as a file states them; `None` for a symbolic one.
fn value_dims(value: &onnx::ValueInfoProto) -> Vec<Option<usize>> {
    use onnx::{tensor_shape_proto::dimension, type_proto};
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Vec::new();
    };
    let size = |dim: &onnx::tensor_shape_proto::Dimension| match dim.value {
        Some(dimension::Value::DimValue(size)) => usize::try_from(size).ok().filter(|&size| size > 0),
        _ => None,
    };
    tensor.shape.as_ref().map(|shape| shape.dim.iter().map(size).collect()).unwrap_or_default()
}
