//! Networks of `tests/corpus`, changed where it hurts: nodes, names, shapes, attributes, scales, and bytes of the file.

use crate::damage::damage;
use crate::{Random, most_bytes, rounds};
use fovea::executor::onnx::{
    self, AttributeProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation,
    tensor_shape_proto::dimension, type_proto,
};
use fovea::executor::{LoadError, LoadOptions, Network};
use fovea::kernels::{Isa, Kernels};
use fovea::retinanet::HeadData;
use std::path::Path;

/// Files of each kind made of each network of the corpus.
const N_STRUCTURED: usize = 800;
const N_BYTES: usize = 400;

/// Multiplications that a test may spend on running one network.
const MAX_MACS: usize = 20_000_000;

/// Bytes that loading takes beside what the file asks for: tables, names, messages, a few packed weights.
const OVERHEAD: usize = 8 << 20;

const INTS: [i64; 16] = [0, 1, -1, 2, 3, 5, 8, 64, 65, 4096, 4097, 1 << 31, 1 << 40, i64::MAX, i64::MIN, -3];
const FLOATS: [f32; 12] = [0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, -1e38, 1e-38, 1e-45, 3.4e-5];
const OPS: [&str; 35] = [
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Nonsense",
    "PRelu",
    "Pad",
    "QLinearAdd",
    "QLinearConcat",
    "QLinearConv",
    "QLinearSigmoid",
    "QuantizeLinear",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];
const ATTRIBUTES: [&str; 14] = [
    "axis",
    "axes",
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "perm",
    "split",
    "alpha",
    "mode",
    "auto_pad",
    "ceil_mode",
    "value",
];

/// Any name of the graph, or one that it does not have.
fn any_name(graph: &GraphProto, random: &mut Random) -> String {
    match random.below(4) {
        0 if !graph.initializer.is_empty() => graph.initializer[random.below(graph.initializer.len())].name.clone(),
        1 => graph.input.first().map(|input| input.name.clone()).unwrap_or_default(),
        2 => random.pick(&["", "none"]).into(),
        _ if graph.node.is_empty() => String::new(),
        _ => graph.node[random.below(graph.node.len())].output.first().cloned().unwrap_or_default(),
    }
}

fn mutate_tensor(tensor: &mut TensorProto, random: &mut Random) {
    match random.below(7) {
        0 => tensor.dims = (0..random.below(6)).map(|_| random.pick(&INTS)).collect(),
        1 => tensor.raw_data.truncate(random.below(tensor.raw_data.len() + 1)),
        2 => tensor.data_type = i32::try_from(random.below(24)).expect("small"),
        3 => {
            let path = random.pick(&["../../../../etc/passwd", "/etc/passwd", "weights.bin", ""]);
            let entry = StringStringEntryProto { key: "location".into(), value: path.into() };
            tensor.external_data = vec![entry];
            if random.below(2) == 0 {
                tensor.data_location = Some(DataLocation::External.into());
            }
        }
        // As many values as before, but others: scales, sizes, zero points, weights.
        _ => {
            let width = [1, 4, 8][random.below(3)];
            if tensor.raw_data.len() >= width {
                let at = random.below(tensor.raw_data.len() / width) * width;
                let bytes = match width {
                    1 => vec![random.pick(&[0, 1, 0x7F, 0x80, 0xFF])],
                    4 => random.pick(&FLOATS).to_le_bytes().to_vec(),
                    _ => random.pick(&INTS).to_le_bytes().to_vec(),
                };
                tensor.raw_data[at..at + width].copy_from_slice(&bytes);
            }
        }
    }
}

fn mutate_attribute(attribute: &mut AttributeProto, random: &mut Random) {
    match random.below(5) {
        0 => attribute.i = random.pick(&INTS),
        1 => attribute.f = random.pick(&FLOATS),
        2 => attribute.ints = (0..random.below(10)).map(|_| random.pick(&INTS)).collect(),
        3 => attribute.name = random.pick(&ATTRIBUTES).into(),
        _ => {
            if !attribute.ints.is_empty() {
                let at = random.below(attribute.ints.len());
                attribute.ints[at] = random.pick(&INTS);
            }
        }
    }
}

fn mutate_node(graph: &mut GraphProto, random: &mut Random) {
    let name = any_name(graph, random);
    let (a, b) = (random.below(graph.node.len()), random.below(graph.node.len()));
    match random.below(13) {
        0 => drop(graph.node.remove(a)),
        1 => {
            let copy = graph.node[a].clone();
            graph.node.insert(b, copy);
        }
        2 => graph.node.swap(a, b),
        // The other node's output: a cycle, where that one comes later.
        3 | 4 => {
            let node = &mut graph.node[a];
            if !node.input.is_empty() {
                let at = random.below(node.input.len());
                node.input[at] = name;
            }
        }
        5 => {
            let node = &mut graph.node[a];
            if !node.input.is_empty() {
                let (at, to) = (random.below(node.input.len()), random.below(node.input.len()));
                node.input.swap(at, to);
            }
        }
        6 => graph.node[a].op_type = random.pick(&OPS).into(),
        7 => graph.node[a].domain = random.pick(&["", "ai.onnx", "com.microsoft", "nowhere"]).into(),
        8 => graph.node[a].input.truncate(random.below(4)),
        9 => graph.node[a].output = vec![name; random.below(4)],
        10 => graph.node[a].input.extend((0..random.below(3)).map(|_| name.clone())),
        11 => graph.node[a].attribute.clear(),
        _ => {
            let attribute = AttributeProto { name: random.pick(&ATTRIBUTES).into(), ..AttributeProto::default() };
            graph.node[a].attribute.push(attribute);
            let last = graph.node[a].attribute.len() - 1;
            mutate_attribute(&mut graph.node[a].attribute[last], random);
        }
    }
}

fn mutate(graph: &mut GraphProto, random: &mut Random) {
    match random.below(10) {
        0..=3 if !graph.node.is_empty() => mutate_node(graph, random),
        4 | 5 if !graph.initializer.is_empty() => {
            let at = random.below(graph.initializer.len());
            mutate_tensor(&mut graph.initializer[at], random);
        }
        6 | 7 => {
            let mut attributes: Vec<_> = graph.node.iter_mut().flat_map(|node| &mut node.attribute).collect();
            if !attributes.is_empty() {
                let at = random.below(attributes.len());
                mutate_attribute(attributes[at], random);
            }
        }
        8 => {
            let name = any_name(graph, random);
            let output = onnx::ValueInfoProto { name, ..graph.output.first().cloned().unwrap_or_default() };
            graph.output.push(output);
        }
        _ => {
            let shape = graph.input.first_mut().and_then(|input| input.r#type.as_mut()).and_then(|of| of.value.as_mut());
            if let Some(type_proto::Value::TensorType(tensor)) = shape
                && let Some(dims) = tensor.shape.as_mut().map(|shape| &mut shape.dim)
                && !dims.is_empty()
            {
                let at = random.below(dims.len());
                dims[at].value = Some(dimension::Value::DimValue(random.pick(&INTS)));
            }
        }
    }
}

/// Loads `bytes` on `kernels` and runs what loads; whether it ran.
fn try_out(bytes: &[u8], kernels: Kernels) -> bool {
    // By this thread alone: its memory is counted.
    let options = LoadOptions { kernels, ..LoadOptions::default() };
    let (loaded, most) = most_bytes(|| Network::load(bytes, &options));
    let mut network = match loaded {
        Ok(network) => network,
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 4000, "{} bytes of message: {}", message.len(), &message[..400]);
            assert!(most < OVERHEAD + 64 * bytes.len(), "{most} bytes for a refused file of {}: {message}", bytes.len());
            return false;
        }
    };
    let census = network.census();
    let outputs: usize = network.outputs().iter().map(|output| output.shape.len()).sum();
    let allowed = OVERHEAD + 64 * bytes.len() + census.activation_bytes + outputs;
    assert!(most < allowed, "{most} bytes to load a file of {}, {census:?}", bytes.len());
    let len = network.input_shape().len();
    if census.ops.iter().map(|count| count.macs).sum::<usize>() > MAX_MACS || census.activation_bytes > 8 << 20 {
        return false;
    }
    let input: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    let (run, most) = most_bytes(|| network.run_u8(&input, None));
    run.expect("what loads runs");
    assert!(most < allowed, "{most} bytes to run a file of {}, {census:?}", bytes.len());
    if bytes.len().is_multiple_of(4) {
        let mut shared = Network::load(bytes, &LoadOptions { threads: 3, ..options }).expect("it loads");
        shared.run_u8(&input, None).expect("what loads runs");
        for idx in 0..network.outputs().len() {
            let same = match (network.output(idx), shared.output(idx)) {
                (HeadData::Quantized(a, _), HeadData::Quantized(b, _)) => a == b,
                _ => false,
            };
            assert!(same, "output {idx} with three threads");
        }
    }
    true
}

/// Every instruction set of this CPU, best first.
fn all_kernels() -> Vec<Kernels> {
    Isa::available().into_iter().filter_map(Kernels::new).collect()
}

/// The networks of `tests/corpus`.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")).expect("tests/corpus");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read(path).expect("a network"))).collect()
}

#[test]
fn the_corpus_runs() {
    let corpus = corpus();
    assert!(corpus.len() > 15, "{} networks", corpus.len());
    for (name, bytes) in &corpus {
        Network::load(bytes, &LoadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for kernels in all_kernels() {
            assert!(try_out(bytes, kernels), "{name} on {}", kernels.isa().name());
        }
    }
}

#[test]
fn changed_networks_run_or_are_refused() {
    let mut random = Random(0x0BAD_F00D_0000_0007);
    let kernels = all_kernels();
    let (mut n_run, mut n_not) = (0, 0);
    for (_, bytes) in corpus() {
        let whole = onnx::decode(&bytes).expect("a network");
        for _ in 0..N_STRUCTURED * rounds() {
            let mut model: ModelProto = whole.clone();
            let graph = model.graph.as_mut().expect("a graph");
            for _ in 0..=random.below(3) {
                mutate(graph, &mut random);
            }
            if try_out(&onnx::encode(&model), random.pick(&kernels)) { n_run += 1 } else { n_not += 1 }
        }
    }
    eprintln!("{n_run} changed networks ran, {n_not} did not");
    assert!(n_run > 2000 && n_not > 2000, "{n_run} ran, {n_not} did not: the changes are too small or too great");
}

#[test]
fn damaged_bytes_run_or_are_refused() {
    let mut random = Random(0x0BAD_F00D_0000_0008);
    let kernels = all_kernels();
    let (mut n_run, mut n_not) = (0, 0);
    for (_, whole) in corpus() {
        for _ in 0..N_BYTES * rounds() {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut random);
            if try_out(&bytes, random.pick(&kernels)) { n_run += 1 } else { n_not += 1 }
        }
    }
    eprintln!("{n_run} damaged networks ran, {n_not} did not");
    assert!(n_run > 300 && n_not > 300, "{n_run} ran, {n_not} did not: the damage is too small or too great");
}

#[test]
fn data_outside_the_file_are_never_read() {
    for (name, bytes) in corpus() {
        for path in ["/etc/hostname", "../../../../etc/hostname", "README.md"] {
            for allow_float in [false, true] {
                let mut model = onnx::decode(&bytes).expect("a network");
                let tensor = &mut model.graph.as_mut().expect("a graph").initializer[0];
                tensor.raw_data.clear();
                tensor.data_location = Some(DataLocation::External.into());
                tensor.external_data = vec![StringStringEntryProto { key: "location".into(), value: path.into() }];
                let tensor = tensor.name.clone();
                let options = LoadOptions { allow_float, ..LoadOptions::default() };
                match Network::load(&onnx::encode(&model), &options) {
                    Err(LoadError::Decode(reason)) => assert!(reason.contains(&format!("`{tensor}`")), "{name}: {reason}"),
                    other => panic!("{name}, {path}: {other:?}"),
                }
            }
        }
    }
}
