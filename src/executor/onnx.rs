//! ONNX files as data: the generated types, and what reads a tensor out of them safely.
//!
//! Files come from anywhere, so every length is checked before it is used: shapes that overflow, data that is too
//! short and data outside the file are refused with the tensor's name.

pub use tract_onnx::pb::*;

use prost::Message;

/// Most values that one tensor of a file may have.
const MAX_TENSOR_LEN: usize = 1 << 28;

/// Most dimensions.
const MAX_RANK: usize = 8;

/// Why a tensor of a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor `{name}`: {reason}")]
pub struct TensorError {
    /// Name of the tensor.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Decodes a model.
///
/// # Errors
/// The decoder's message where `bytes` are not an ONNX model.
pub fn decode(bytes: &[u8]) -> Result<ModelProto, prost::DecodeError> {
    ModelProto::decode(bytes)
}

/// Encodes a model.
#[must_use]
pub fn encode(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// The first tensor of a graph whose data lie in another file. None is ever opened.
#[must_use]
pub fn external_tensor(graph: &GraphProto) -> Option<&str> {
    let of_nodes = graph.node.iter().flat_map(|node| &node.attribute).filter_map(|attribute| attribute.t.as_ref());
    let is_external = |tensor: &&TensorProto| {
        tensor.data_location() == tensor_proto::DataLocation::External || !tensor.external_data.is_empty()
    };
    graph.initializer.iter().chain(of_nodes).find(is_external).map(|tensor| tensor.name.as_str())
}

/// Values of a constant tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorValues {
    /// `FLOAT`.
    F32(Vec<f32>),
    /// `INT8`.
    I8(Vec<i8>),
    /// `UINT8`.
    U8(Vec<u8>),
    /// `INT32`.
    I32(Vec<i32>),
    /// `INT64`.
    I64(Vec<i64>),
}

/// A constant tensor: shape and values, of matching length.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant {
    /// Sizes; empty for a scalar.
    pub dims: Vec<usize>,
    /// Values in row-major order.
    pub values: TensorValues,
}

impl Constant {
    /// Reads a tensor of a file.
    ///
    /// # Errors
    /// [`TensorError`] for other types than the five of [`TensorValues`], for external data, and for lengths that do
    /// not fit the shape.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "int32_data holds one small value in each i32")]
    pub fn read(tensor: &TensorProto) -> Result<Self, TensorError> {
        use tensor_proto::DataType;
        let fail = |reason: String| TensorError { name: tensor.name.clone(), reason };
        if tensor.dims.len() > MAX_RANK {
            return Err(fail(format!("{} dimensions; at most {MAX_RANK} are supported", tensor.dims.len())));
        }
        let mut len = 1_usize;
        let mut dims = Vec::with_capacity(tensor.dims.len());
        for &dim in &tensor.dims {
            let dim = usize::try_from(dim).map_err(|_| fail(format!("size {dim} in shape {:?}", tensor.dims)))?;
            len = len
                .checked_mul(dim)
                .filter(|&len| len <= MAX_TENSOR_LEN)
                .ok_or_else(|| fail(format!("shape {:?} is too large", tensor.dims)))?;
            dims.push(dim);
        }
        let raw = &tensor.raw_data;
        let values = match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float) if raw.is_empty() => TensorValues::F32(tensor.float_data.clone()),
            Ok(DataType::Float) => TensorValues::F32(raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Ok(DataType::Int8) if raw.is_empty() => TensorValues::I8(tensor.int32_data.iter().map(|&v| v as i8).collect()),
            Ok(DataType::Int8) => TensorValues::I8(raw.iter().map(|&b| i8::from_le_bytes([b])).collect()),
            Ok(DataType::Uint8) if raw.is_empty() => TensorValues::U8(tensor.int32_data.iter().map(|&v| v as u8).collect()),
            Ok(DataType::Uint8) => TensorValues::U8(raw.clone()),
            Ok(DataType::Int32) if raw.is_empty() => TensorValues::I32(tensor.int32_data.clone()),
            Ok(DataType::Int32) => TensorValues::I32(raw.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
            Ok(DataType::Int64) if raw.is_empty() => TensorValues::I64(tensor.int64_data.clone()),
            Ok(DataType::Int64) => TensorValues::I64(raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            other => return Err(fail(format!("data type {other:?} is not supported"))),
        };
        let constant = Self { dims, values };
        if constant.len() != len {
            return Err(fail(format!("shape {:?} asks for {len} values, the file has {}", tensor.dims, constant.len())));
        }
        Ok(constant)
    }

    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        match &self.values {
            TensorValues::F32(v) => v.len(),
            TensorValues::I8(v) => v.len(),
            TensorValues::U8(v) => v.len(),
            TensorValues::I32(v) => v.len(),
            TensorValues::I64(v) => v.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The attributes of a node, by name.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a NodeProto);

impl<'a> Attributes<'a> {
    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// A list of integers.
    #[must_use]
    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// An integer.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        self.get(name).map(|attribute| attribute.i)
    }

    /// A number.
    #[must_use]
    pub fn float(&self, name: &str) -> Option<f32> {
        self.get(name).map(|attribute| attribute.f)
    }

    /// A text.
    #[must_use]
    pub fn string(&self, name: &str) -> Option<String> {
        self.get(name).map(|attribute| String::from_utf8_lossy(&attribute.s).into_owned())
    }
}
