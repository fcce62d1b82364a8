//! Files that ask for too much: each limit is met, named, and no memory is taken.

use crate::most_bytes;
use crate::tiny;
use fovea::executor::onnx::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};
use fovea::executor::{LoadError, LoadOptions, MAX_NODES, Network};

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints.into(), ints: ints.to_vec(), ..AttributeProto::default() }
}

fn sizes(name: &str, values: &[i64]) -> TensorProto {
    let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims = vec![i64::try_from(values.len()).expect("small")];
    TensorProto { name: name.into(), dims, data_type: DataType::Int64.into(), raw_data, ..TensorProto::default() }
}

/// A row of upsamplings of the output `head`, each twice the size.
fn upsamplings(graph: &mut GraphProto, head: &str, n: usize) {
    let raw_data = [1.0_f32, 1.0, 2.0, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims = vec![4];
    graph.initializer.push(TensorProto {
        name: "by2".into(),
        dims,
        data_type: DataType::Float.into(),
        raw_data,
        ..TensorProto::default()
    });
    for step in 0..n {
        let from = if step == 0 { head.to_owned() } else { format!("{head}{}", step - 1) };
        graph.node.push(tiny::node("Resize", &[&from, "", "by2"], &format!("{head}{step}"), vec![]));
    }
    let output = graph.output.iter_mut().find(|output| output.name == head).expect("the head is there");
    output.name = format!("{head}{}", n - 1);
}

/// `node` with its output quantised at `scale`, in place of the head "cls".
fn then_quantised(graph: &mut GraphProto, node: NodeProto, scale: f32) {
    let raw_data = scale.to_le_bytes().to_vec();
    graph.initializer.push(TensorProto {
        name: "then_s".into(),
        data_type: DataType::Float.into(),
        raw_data,
        ..TensorProto::default()
    });
    let output = node.output[0].clone();
    graph.node.push(node);
    graph.node.push(tiny::node("QuantizeLinear", &[&output, "then_s", "cls_z"], "then_q", vec![]));
    graph.node.push(tiny::node("DequantizeLinear", &["then_q", "then_s", "cls_z"], "then", vec![]));
    graph.output[0].name = "then".into();
}

/// The network's input quantised once more with another scale, for the head "box"; before or after the first time.
fn quantised_twice(graph: &mut GraphProto, before: bool) {
    let nodes = [
        tiny::node("QuantizeLinear", &["images", "box_s", "box_z"], "images_q2", vec![]),
        tiny::node("DequantizeLinear", &["images_q2", "box_s", "box_z"], "x2", vec![]),
    ];
    let at = if before { 0 } else { 2 };
    graph.node.splice(at..at, nodes);
    let conv = graph.node.iter_mut().find(|node| node.output == ["box_f"]).expect("the head is there");
    conv.input[0] = "x2".into();
}

type Edit = fn(&mut GraphProto);

/// What is asked for, and what the refusal names.
const CASES: [(&str, Edit, &str); 14] = [
    ("many nodes", |g| g.node.extend(vec![NodeProto { op_type: "Relu".into(), ..NodeProto::default() }; MAX_NODES]), "nodes"),
    ("very many outputs of a node", |g| g.node[0].output.extend(vec![String::new(); 20_000]), "20001 outputs"),
    ("a huge activation", |g| upsamplings(g, "cls", 24), "too large"),
    (
        "two large activations",
        |g| {
            upsamplings(g, "cls", 10);
            upsamplings(g, "box", 10);
        },
        "bytes of activations",
    ),
    (
        "one large output, very often",
        |g| {
            upsamplings(g, "cls", 9);
            let output: ValueInfoProto = g.output[0].clone();
            g.output.extend(vec![output; 200]);
        },
        "bytes of activations",
    ),
    (
        "a split into very many parts",
        |g| {
            let parts: Vec<String> = (0..MAX_NODES).map(|part| format!("part{part}")).collect();
            let axis = AttributeProto { name: "axis".into(), i: 1, ..AttributeProto::default() };
            let mut split = tiny::node("Split", &["cls"], "", vec![axis, ints("split", &[1, 1])]);
            split.output = parts;
            g.node.push(split);
            g.output[0].name = "part0".into();
        },
        "channels out of 4",
    ),
    (
        "a long list of sizes that many nodes read",
        |g| {
            g.initializer.push(sizes("long", &vec![7; 1 << 17]));
            for node in 0..2000 {
                g.node.push(tiny::node("Reshape", &["cls", "long"], &format!("reshaped{node}"), vec![]));
            }
            g.output[0].name = "reshaped7".into();
        },
        "more than 65536 values",
    ),
    (
        "a long name that many nodes read",
        |g| {
            let mut long = tiny::node("Nonsense", &["x"], "nonsense", vec![]);
            long.name = "n".repeat(1 << 20);
            g.node.push(long);
            for node in 0..2000 {
                g.node.push(tiny::node("Relu", &["nonsense"], &format!("relu{node}"), vec![]));
            }
            g.output[0].name = "relu7".into();
        },
        "nnn",
    ),
    (
        "a concatenation of nine",
        |g| {
            let axis = AttributeProto { name: "axis".into(), i: 1, ..AttributeProto::default() };
            then_quantised(g, tiny::node("Concat", &["cls"; 9], "joined", vec![axis]), 0.05);
        },
        "9 inputs; at most 8",
    ),
    (
        "a sum whose scale is a tiny part of its terms'",
        |g| then_quantised(g, tiny::node("Add", &["cls", "cls"], "sum", vec![]), 1.2e-38),
        "the ratios of its scales",
    ),
    (
        "a padding of quantised values with another than their zero point",
        |g| {
            g.initializer.push(sizes("by1", &[0, 0, 1, 1, 0, 0, 1, 1]));
            g.node.push(tiny::node("Pad", &["cls_q", "by1"], "padded", vec![]));
            g.node.push(tiny::node("DequantizeLinear", &["padded", "cls_s", "cls_z"], "then", vec![]));
            g.output[0].name = "then".into();
        },
        "with 0; it may with the zero point, 150",
    ),
    (
        "a type that only an attribute states",
        |g| {
            let int8 = AttributeProto { name: "output_dtype".into(), i: 3, ..AttributeProto::default() };
            g.node.push(tiny::node("QuantizeLinear", &["cls", "cls_s"], "then_q", vec![int8]));
            g.node.push(tiny::node("DequantizeLinear", &["then_q", "cls_s"], "then", vec![]));
            g.output[0].name = "then".into();
        },
        "output_dtype 3 without a zero point",
    ),
    ("an input that is quantised twice", |g| quantised_twice(g, false), "quantised twice, with different parameters"),
    ("the same, in the other order", |g| quantised_twice(g, true), "quantised twice, with different parameters"),
];

#[test]
fn what_is_too_large_is_refused_before_memory_is_taken() {
    for (what, edit, says) in CASES {
        let mut graph = tiny::network(true).graph.expect("a graph");
        edit(&mut graph);
        let bytes = onnx::encode(&ModelProto { graph: Some(graph), ..tiny::network(true) });
        let (loaded, most) = most_bytes(|| Network::load(&bytes, &LoadOptions::default()));
        let message = match loaded {
            Ok(_) => panic!("{what}: it loads"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(says) && message.len() < 4000, "{what}: {message:?} does not say {says:?}");
        assert!(most < (32 << 20) + 8 * bytes.len(), "{what}: {most} bytes for a file of {}", bytes.len());
    }
}

/// Groups of one output each: kernels make many outputs at once, with zeros where the inputs are of other groups.
#[test]
fn groups_do_not_multiply() {
    let mut graph = tiny::network(true).graph.expect("a graph");
    for (name, dims) in [("many", [4096, 3, 1, 1]), ("grouped", [64, 64, 31, 31])] {
        let len = dims.iter().product::<i64>().try_into().expect("small");
        let (dims, data_type) = (dims.to_vec(), DataType::Int8.into());
        graph.initializer.push(TensorProto {
            name: name.into(),
            dims,
            data_type,
            raw_data: vec![1; len],
            ..TensorProto::default()
        });
        graph.node.push(tiny::node("DequantizeLinear", &[name, "s"], &format!("{name}_w"), vec![]));
    }
    let group = AttributeProto { name: "group".into(), r#type: AttributeType::Int.into(), i: 64, ..AttributeProto::default() };
    let mut conv = |weights: &str, from: &str, to: &str, attributes: Vec<AttributeProto>| {
        let name = |what: &str| format!("{to}_{what}");
        graph.node.push(tiny::node("Conv", &[from, weights], &name("f"), attributes));
        graph.node.push(tiny::node("QuantizeLinear", &[&name("f"), "s", "z"], &name("q"), vec![]));
        graph.node.push(tiny::node("DequantizeLinear", &[&name("q"), "s", "z"], to, vec![]));
    };
    conv("many_w", "x", "many_x", vec![]);
    for to in ["one", "two"] {
        conv("grouped_w", "many_x", to, vec![group.clone(), ints("pads", &[15; 4])]);
    }
    let bytes = onnx::encode(&ModelProto { graph: Some(graph), ..tiny::network(true) });
    let (loaded, most) = most_bytes(|| Network::load(&bytes, &LoadOptions::default()));
    match loaded {
        Err(LoadError::Lower(error)) => assert!(error.to_string().contains("bytes of weights"), "{error}"),
        other => panic!("{:?}", other.map(|network| network.census())),
    }
    assert!(most < 100 << 20, "{most} bytes for a file of {}", bytes.len());
}

/// Two bytes of a file each, hundreds in memory.
#[test]
fn empty_messages_are_counted_before_they_are_decoded() {
    /// Field `number` of a message: tag, length, content.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        let mut len = content.len();
        while len > 0x7F {
            bytes.push(u8::try_from(len & 0x7F).expect("7 bits") | 0x80);
            len >>= 7;
        }
        bytes.push(u8::try_from(len).expect("7 bits"));
        bytes.extend_from_slice(content);
        bytes
    }
    let (graph, node, attribute) = (7, 1, 5);
    let attributes = field(graph, &field(node, &field(attribute, &[]).repeat(4 << 20)));
    for added in [field(graph, &field(node, &[]).repeat(4 << 20)), attributes] {
        let bytes = [tiny::network_bytes(), added].concat();
        let (loaded, most) = most_bytes(|| Network::load(&bytes, &LoadOptions::default()));
        let Err(LoadError::TooLarge(error)) = loaded else { panic!("{loaded:?}") };
        assert!(error.what.contains("decoded") && error.found > error.limit, "{error}");
        assert!(most < 1 << 20, "{most} bytes for a file of {}", bytes.len());
    }
}

/// Convolutions that share their weights: each has biases and multipliers of its own.
#[test]
fn shared_weights_do_not_multiply() {
    let mut graph = tiny::network(true).graph.expect("a graph");
    let channels = 1 << 17;
    let bytes = |len: usize| vec![1_u8; len];
    let dims = vec![i64::try_from(channels).expect("small"), 3, 1, 1];
    graph.initializer.push(TensorProto {
        name: "w".into(),
        dims,
        data_type: DataType::Int8.into(),
        raw_data: bytes(3 * channels),
        ..TensorProto::default()
    });
    graph.node.push(tiny::node("DequantizeLinear", &["w", "s"], "wf", vec![]));
    for conv in 0..2000 {
        let name = |what: &str| format!("{what}{conv}");
        graph.node.push(tiny::node("Conv", &["x", "wf"], &name("f"), vec![ints("strides", &[31, 31])]));
        graph.node.push(tiny::node("QuantizeLinear", &[&name("f"), "s", "z"], &name("q"), vec![]));
    }
    let bytes = onnx::encode(&ModelProto { graph: Some(graph), ..tiny::network(true) });
    let (loaded, most) = most_bytes(|| Network::load(&bytes, &LoadOptions::default()));
    match loaded {
        Err(LoadError::Lower(error)) => assert!(error.to_string().contains("bytes of weights"), "{error}"),
        other => panic!("{:?}", other.map(|network| network.census())),
    }
    assert!(most < 400 << 20, "{most} bytes for a file of {}", bytes.len());
}
