//! A tiny quantised RetinaNet of one level, and pictures and labels for it.

use fovea::executor::onnx::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};
use fovea::images::{self, RgbPicture};
use std::path::Path;

/// Side of the input; one level of stride 8, two anchors, two classes.
pub(crate) const SIDE: usize = 32;

pub(crate) const MANIFEST: &str = r#"
schema = 1
name = "tiny"
classes = ["person", "car"]

[network]
file = "model.onnx"

[input]
name = "images"
width = 32
height = 32
preprocess = 1

[anchors]
base_sizes = [16.0]
scales = [1.0]
aspect_ratios = [1.0, 2.0]

[[levels]]
stride = 8
cls = "cls"
bbox = "box"

[postprocess]
score_threshold = 0.05
topk_candidates_per_level = 100
nms_iou_threshold = 0.5
max_detections = 100
"#;

fn tensor(name: &str, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) -> TensorProto {
    let dims = dims.iter().map(|&dim| i64::try_from(dim).expect("small")).collect();
    TensorProto { name: name.into(), dims, data_type: data_type.into(), raw_data, ..TensorProto::default() }
}

pub(crate) fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("node_{output}"),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints.into(), ints: ints.to_vec(), ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int.into(), i, ..AttributeProto::default() }
}

fn value(name: &str, dims: &[usize]) -> ValueInfoProto {
    let dim = |&size: &usize| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(i64::try_from(size).expect("small"))),
        ..tensor_shape_proto::Dimension::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

/// The network: an 8x8 convolution of stride 8 for each head; `quantized` or with the same weights in float.
pub(crate) fn network(quantized: bool) -> ModelProto {
    let mut graph =
        GraphProto { name: "tiny".into(), input: vec![value("images", &[1, 3, SIDE, SIDE])], ..GraphProto::default() };
    let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    if quantized {
        graph.initializer.push(tensor("s", &[], DataType::Float, f32s(&[1.0 / 255.0])));
        graph.initializer.push(tensor("z", &[], DataType::Uint8, vec![0]));
        graph.node.push(node("QuantizeLinear", &["images", "s", "z"], "images_q", vec![]));
        graph.node.push(node("DequantizeLinear", &["images_q", "s", "z"], "x", vec![]));
    }
    for (head, channels, scale, zero_point) in [("cls", 4_usize, 0.05_f32, 150_u8), ("box", 8, 0.01, 128)] {
        let dims = [channels, 3, 8, 8];
        let spread = |i: usize| i16::try_from((i * 7919 + i / 64 * 31) % 255).expect("small") - 127;
        let weights: Vec<i8> =
            (0..dims.iter().product::<usize>()).map(|i| i8::try_from(spread(i)).expect("127 at most")).collect();
        let conv = vec![ints("kernel_shape", &[8, 8]), ints("strides", &[8, 8])];
        let name = |what: &str| format!("{head}_{what}");
        if quantized {
            let bytes = weights.iter().map(|w| w.to_le_bytes()[0]).collect();
            graph.initializer.push(tensor(&name("w"), &dims, DataType::Int8, bytes));
            graph.initializer.push(tensor(&name("ws"), &[channels], DataType::Float, f32s(&vec![0.001; channels])));
            graph.initializer.push(tensor(&name("wz"), &[channels], DataType::Int8, vec![0; channels]));
            graph.initializer.push(tensor(&name("s"), &[], DataType::Float, f32s(&[scale])));
            graph.initializer.push(tensor(&name("z"), &[], DataType::Uint8, vec![zero_point]));
            let inputs = [name("w"), name("ws"), name("wz")];
            let inputs = [inputs[0].as_str(), &inputs[1], &inputs[2]];
            graph.node.push(node("DequantizeLinear", &inputs, &name("wf"), vec![int("axis", 0)]));
            graph.node.push(node("Conv", &["x", &name("wf")], &name("f"), conv));
            graph.node.push(node("QuantizeLinear", &[&name("f"), &name("s"), &name("z")], &name("q"), vec![]));
            graph.node.push(node("DequantizeLinear", &[&name("q"), &name("s"), &name("z")], head, vec![]));
        } else {
            let reals: Vec<f32> = weights.iter().map(|&w| f32::from(w) * 0.001).collect();
            graph.initializer.push(tensor(&name("w"), &dims, DataType::Float, f32s(&reals)));
            graph.node.push(node("Conv", &["images", &name("w")], head, conv));
        }
        graph.output.push(value(head, &[1, channels, SIDE / 8, SIDE / 8]));
    }
    let opset = OperatorSetIdProto { domain: String::new(), version: 13 };
    ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() }
}

/// The network as a file.
pub(crate) fn network_bytes() -> Vec<u8> {
    onnx::encode(&network(true))
}

/// A model folder.
pub(crate) fn write_model(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("manifest.toml"), MANIFEST).expect("a manifest");
    std::fs::write(folder.join("model.onnx"), network_bytes()).expect("a network");
}

/// A picture with gradients and a block that depends on `seed`.
pub(crate) fn picture(width: usize, height: usize, seed: usize) -> RgbPicture {
    let pixel = |i: usize| {
        let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
        let block = if (x / 8 + y / 8 + seed) % 3 == c { 120 } else { 0 };
        u8::try_from((x * 3 + y * 5 + seed * 11) % 128 + block).expect("at most 247")
    };
    RgbPicture { width, height, data: (0..width * height * 3).map(pixel).collect() }
}

/// A data set of `n` pictures in which the labels are made up.
pub(crate) fn write_data(folder: &Path, n: usize) {
    std::fs::create_dir_all(folder.join("images")).expect("a folder");
    let (mut pictures, mut annotations) = (Vec::new(), Vec::new());
    for id in 1..=n {
        let file_name = format!("{id}.png");
        images::save(&folder.join("images").join(&file_name), &picture(40 + id, 30, id)).expect("a picture");
        pictures.push(serde_json::json!({ "id": id, "file_name": file_name, "width": 40 + id, "height": 30 }));
        annotations.push(serde_json::json!({ "id": id, "image_id": id, "category_id": 7, "bbox": [3, 4, 20, 18], "area": 360 }));
    }
    let dataset = serde_json::json!({
        "images": pictures, "annotations": annotations,
        "categories": [{ "id": 7, "name": "person" }, { "id": 9, "name": "zebra" }],
    });
    std::fs::write(folder.join("annotations.json"), dataset.to_string()).expect("annotations");
}
