//! How much a network may ask for. Files come from anywhere: what is larger is refused before memory is taken for it.
//!
//! A file is looked through before it is decoded ([`decoded_len`]): a few bytes of protobuf can stand for hundreds in
//! memory. What the loader builds is counted while it is built, and the activations before they are allocated.

/// Bytes of a file.
pub const MAX_FILE_LEN: usize = 512 << 20;

/// Bytes that a decoded file may take.
pub const MAX_DECODED_LEN: usize = 2 << 30;

/// Nodes of a graph, steps of an integer network, and outputs of one node.
pub const MAX_NODES: usize = 10_000;

/// Values that one activation may have.
pub const MAX_ACTIVATION_LEN: usize = 1 << 27;

/// Bytes of all activations and outputs of a network together.
pub const MAX_ACTIVATION_BYTES: usize = 512 << 20;

/// Bytes of weights, biases and multipliers of an integer network.
pub const MAX_WEIGHT_BYTES: usize = 256 << 20;

/// More than a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has {found} {what}; at most {limit} are supported")]
pub struct TooLarge {
    /// What there is too much of.
    pub what: &'static str,
    /// How much there is, as far as it was counted.
    pub found: usize,
    /// How much there may be.
    pub limit: usize,
}

/// `Ok` where `found` is within `limit`.
pub(super) const fn check(what: &'static str, found: usize, limit: usize) -> Result<(), TooLarge> {
    if found <= limit { Ok(()) } else { Err(TooLarge { what, found, limit }) }
}

/// Bytes of the largest message of a list while the list grows, when old and new lie side by side.
const MESSAGE_LEN: usize = 3 * 1536;

/// As [`MESSAGE_LEN`], of a text or a number.
const ENTRY_LEN: usize = 3 * 24;

/// The messages of an ONNX file that are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

/// What a field of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Inner(Message),
    /// A text or numbers, and how many bytes one byte of it becomes at most.
    Data(usize),
    /// Anything else: it may be made of empty messages, two bytes each.
    Other,
}

impl Message {
    /// Field numbers of `onnx.proto`.
    const fn field(self, number: u64) -> Field {
        match (self, number) {
            (Self::Model, 7) => Field::Inner(Self::Graph),
            (Self::Graph, 1) => Field::Inner(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5) => Field::Inner(Self::Tensor),
            (Self::Node, 5) => Field::Inner(Self::Attribute),
            // Texts.
            (Self::Model, 2..=4 | 6)
            | (Self::Graph, 2 | 10)
            | (Self::Node, 1..=4 | 6 | 7)
            | (Self::Attribute, 1 | 4 | 13 | 21)
            | (Self::Tensor, 8 | 12) => Field::Data(1),
            // raw_data; f32 and f64; integers of one byte in the file and four or eight in memory.
            (Self::Tensor, 9) => Field::Data(1),
            (Self::Tensor, 4 | 10) | (Self::Attribute, 7) => Field::Data(3),
            (Self::Tensor, 5) => Field::Data(3 * 4),
            (Self::Tensor, 1 | 7 | 11) | (Self::Attribute, 8) => Field::Data(3 * 8),
            _ => Field::Other,
        }
    }
}

/// Bytes that the ONNX file `bytes` takes at most when it is decoded; `None` if it is not protobuf.
pub(super) fn decoded_len(bytes: &[u8]) -> Option<usize> {
    message_len(Message::Model, bytes)
}

fn message_len(message: Message, mut bytes: &[u8]) -> Option<usize> {
    let mut len = 0_usize;
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let inner = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                None
            }
            1 => take(&mut bytes, 8).map(|_| None)?,
            2 => {
                let length = varint(&mut bytes)?;
                Some(take(&mut bytes, usize::try_from(length).ok()?)?)
            }
            5 => take(&mut bytes, 4).map(|_| None)?,
            // Groups are not used by ONNX.
            _ => return None,
        };
        let here = match (inner, message.field(tag >> 3)) {
            (None, _) => ENTRY_LEN,
            (Some(inner), Field::Inner(message)) => message_len(message, inner)?.saturating_add(MESSAGE_LEN),
            (Some(inner), Field::Data(factor)) => inner.len().saturating_mul(factor).saturating_add(ENTRY_LEN),
            (Some(inner), Field::Other) => (inner.len() / 2 + 1).saturating_mul(MESSAGE_LEN),
        };
        len = len.saturating_add(here);
    }
    Some(len)
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, encode};
    use super::*;

    #[test]
    fn messages_are_no_larger_than_was_counted() {
        for size in [
            size_of::<AttributeProto>(),
            size_of::<NodeProto>(),
            size_of::<TensorProto>(),
            size_of::<ValueInfoProto>(),
            size_of::<TypeProto>(),
            size_of::<GraphProto>(),
        ] {
            assert!(3 * size <= MESSAGE_LEN, "{size}");
        }
    }

    #[test]
    fn weights_count_little_and_empty_messages_much() {
        let tensor = TensorProto { raw_data: vec![1; 100_000], ..TensorProto::default() };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        let model = encode(&ModelProto { graph: Some(graph), ..ModelProto::default() });
        assert!((100_000..115_000).contains(&decoded_len(&model).expect("protobuf")), "{:?}", decoded_len(&model));
        let graph = GraphProto { node: vec![NodeProto::default(); 1000], ..GraphProto::default() };
        let model = encode(&ModelProto { graph: Some(graph), ..ModelProto::default() });
        assert!(decoded_len(&model).expect("protobuf") > 3000 * size_of::<NodeProto>());
        assert_eq!(decoded_len(&model[..model.len() - 1]), None, "cut short");
        assert_eq!(decoded_len(&[0xFF; 20]), None, "an endless number");
    }
}
