//! Quantised networks that have no integer form: each is refused, with the node and the reason.

use crate::tiny;
use fovea::executor::onnx::{
    self, AttributeProto, GraphProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use fovea::executor::{LoadOptions, Network};

fn tensor<'a>(graph: &'a mut GraphProto, name: &str) -> &'a mut TensorProto {
    graph.initializer.iter_mut().find(|tensor| tensor.name == name).expect("the tensor is there")
}

fn conv(graph: &mut GraphProto) -> &mut onnx::NodeProto {
    conv_of(graph, "Conv")
}

fn conv_of<'a>(graph: &'a mut GraphProto, op: &str) -> &'a mut onnx::NodeProto {
    graph.node.iter_mut().find(|node| node.op_type == op).expect("the node is there")
}

fn attribute(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints.into(), ints: ints.to_vec(), ..AttributeProto::default() }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

type Edit = fn(&mut GraphProto);

/// What is done to the network, and what the message must name.
const CASES: [(&str, Edit, &[&str]); 30] = [
    ("float weights", |g| conv(g).input[1] = "cls_w_float".into(), &["node_cls_f", "float", "--allow-float"]),
    ("asymmetric weights", |g| tensor(g, "cls_wz").raw_data[1] = 3, &["node_cls_wf", "symmetric"]),
    ("u8 weights", |g| tensor(g, "cls_w").data_type = DataType::Uint8.into(), &["node_cls_wf", "constant i8"]),
    (
        "weight scales on another axis",
        |g| g.node.iter_mut().find(|n| n.output[0] == "cls_wf").expect("it is there").attribute[0].i = 1,
        &["node_cls_wf", "axis"],
    ),
    (
        "as many scales as channels",
        |g| {
            tensor(g, "cls_ws").raw_data.truncate(12);
            tensor(g, "cls_ws").dims = vec![3];
        },
        &["3 weight scales for 4 output channels"],
    ),
    ("scale 0", |g| tensor(g, "cls_s").raw_data = floats(&[0.0]), &["scale 0"]),
    ("scale not a number", |g| tensor(g, "s").raw_data = floats(&[f32::NAN]), &["scale NaN"]),
    ("weight scale below 0", |g| tensor(g, "box_ws").raw_data[3] = 0xBF, &["weight scale", "above 0"]),
    (
        "multiplier 0",
        |g| {
            tensor(g, "cls_s").raw_data = floats(&[3e38]);
            tensor(g, "cls_ws").raw_data = floats(&[1e-30; 4]);
        },
        &["node_cls_f", "multiplier of output channel 0"],
    ),
    (
        "zero point of another type",
        |g| {
            tensor(g, "cls_z").data_type = DataType::Int32.into();
            tensor(g, "cls_z").raw_data = vec![0; 4];
        },
        &["zero point `cls_z`", "u8 or i8"],
    ),
    (
        "automatic padding",
        |g| {
            conv(g).attribute.push(AttributeProto {
                name: "auto_pad".into(),
                r#type: AttributeType::String.into(),
                s: b"SAME_UPPER".to_vec(),
                ..AttributeProto::default()
            });
        },
        &["auto_pad SAME_UPPER", "pads"],
    ),
    ("negative padding", |g| conv(g).attribute.push(attribute("pads", &[0, 0, -1, 0])), &["pads [0, 0, -1, 0]"]),
    ("stride 0", |g| conv(g).attribute[1] = attribute("strides", &[0, 8]), &["strides 0"]),
    ("kernel_shape of other weights", |g| conv(g).attribute[0] = attribute("kernel_shape", &[3, 3]), &["kernel_shape [3, 3]"]),
    ("window larger than the input", |g| conv(g).attribute.push(attribute("dilations", &[9, 9])), &["larger than its input"]),
    (
        "groups that do not fit",
        |g| {
            conv(g).attribute.push(AttributeProto {
                name: "group".into(),
                r#type: AttributeType::Int.into(),
                i: 2,
                ..AttributeProto::default()
            });
        },
        &["2 groups", "3 input channels"],
    ),
    ("an operator without integer form", |g| conv(g).op_type = "Softmax".into(), &["Softmax", "no integer form"]),
    ("an output in float", |g| g.output[0].name = "cls_f".into(), &["output `cls_f` is made in float"]),
    ("an operator of another domain", |g| conv(g).domain = "org.other".into(), &["node_cls_f", "domain `org.other`"]),
    (
        "a quantised operator without integer form",
        |g| {
            conv(g).op_type = "QLinearGlobalAveragePool".into();
            conv_of(g, "QLinearGlobalAveragePool").domain = "com.microsoft".into();
        },
        &["node_cls_f", "QLinearGlobalAveragePool", "com.microsoft"],
    ),
    ("an average", |g| conv(g).op_type = "GlobalAveragePool".into(), &["node_cls_f", "averages"]),
    ("dynamic quantisation", |g| conv(g).op_type = "ConvInteger".into(), &["node_cls_f", "statically"]),
    (
        "a product of two activations",
        |g| {
            g.node.push(tiny::node("Mul", &["x", "cls"], "product", vec![]));
            g.node.push(tiny::node("QuantizeLinear", &["product", "s", "z"], "product_q", vec![]));
        },
        &["node_product", "two different activations"],
    ),
    (
        "padding with other than zeros",
        |g| {
            let mode = AttributeProto { name: "mode".into(), s: b"reflect".to_vec(), ..AttributeProto::default() };
            let pads = attribute("pads", &[0, 0, 1, 1, 0, 0, 1, 1]);
            conv(g).input[0] = "padded".into();
            g.node.push(tiny::node("Pad", &["x"], "padded", vec![mode, pads]));
        },
        &["node_padded", "mode reflect"],
    ),
    (
        "padding that no convolution reads",
        |g| {
            g.node.push(tiny::node("Pad", &["cls"], "padded", vec![attribute("pads", &[0, 0, 1, 1, 0, 0, 1, 1])]));
            g.output[0].name = "padded".into();
        },
        &["node_padded", "is padded"],
    ),
    (
        "a sigmoid behind the scores",
        |g| {
            g.node.push(tiny::node("Sigmoid", &["cls"], "scores", vec![]));
            g.output[0].name = "scores".into();
        },
        &["node_scores", "leave a sigmoid"],
    ),
    (
        "rows of a head inside the network",
        |g| {
            g.node.push(tiny::node("Transpose", &["cls"], "turned", vec![attribute("perm", &[0, 2, 3, 1])]));
            g.node.push(tiny::node("MaxPool", &["turned"], "pooled", vec![attribute("kernel_shape", &[2, 2])]));
            g.output[0].name = "pooled".into();
        },
        &["node_pooled", "[1, H, W, C]"],
    ),
    (
        "a float convolution in QOperator form",
        |g| {
            g.node.retain(|node| !["cls_wf", "cls_f", "cls_q", "box_wf"].contains(&node.output[0].as_str()));
            let inputs = ["images_q", "s", "z", "cls_w", "cls_ws", "cls_wz", "cls_s", "cls_z"];
            g.node.push(tiny::node("QLinearConv", &inputs, "cls_q", vec![attribute("strides", &[8, 8])]));
        },
        &["node_box_f", "in float", "--allow-float"],
    ),
    (
        "weights whose zero point is nowhere",
        |g| {
            let node = g.node.iter_mut().find(|n| n.output[0] == "cls_wf").expect("it is there");
            node.input.resize(3, String::new());
            node.input[2] = "nowhere".into();
        },
        &["its zero point `nowhere` must be constant"],
    ),
    (
        "a value read with other parameters than written",
        |g| {
            let node = g.node.iter_mut().find(|n| n.output[0] == "x").expect("it is there");
            node.input[1] = "cls_s".into();
        },
        &["node_x", "images_q", "written with"],
    ),
];

#[test]
fn what_has_no_integer_form_is_refused_by_name() {
    let load = |graph: GraphProto| {
        let model = onnx::ModelProto { graph: Some(graph), ..tiny::network(true) };
        Network::load(&onnx::encode(&model), &LoadOptions::default())
    };
    let whole = tiny::network(true).graph.expect("a graph");
    assert!(load(whole.clone()).is_ok(), "the network itself loads");
    for (what, edit, says) in CASES {
        let mut graph = whole.clone();
        edit(&mut graph);
        let message = match load(graph) {
            Ok(_) => panic!("{what}: it loads"),
            Err(error) => error.to_string(),
        };
        for part in says {
            assert!(message.contains(part), "{what}: {message:?} does not say {part:?}");
        }
    }
}

#[test]
fn sums_that_could_overflow_are_refused() {
    let mut model = tiny::network(true);
    let graph = model.graph.as_mut().expect("a graph");
    let bias = TensorProto {
        name: "bias".into(),
        dims: vec![4],
        data_type: DataType::Float.into(),
        raw_data: floats(&[0.0, 8420.0, 0.0, 0.0]),
        ..TensorProto::default()
    };
    graph.initializer.push(bias);
    conv(graph).input.push("bias".into());
    // 8420 / (0.001 / 255) is just below 2^31, the weights take it beyond.
    let error = Network::load(&onnx::encode(&model), &LoadOptions::default()).expect_err("it can overflow").to_string();
    assert!(error.contains("output channel 1 can overflow"), "{error}");
}
