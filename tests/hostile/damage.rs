//! Damaged files: the loader refuses or runs them, and never panics.

use crate::{Random, rounds, tiny};
use fovea::executor::{Executor, LoadOptions, Network, onnx};
use fovea::retinanet::Manifest;

/// One to four small damages: bytes changed, cut out, doubled, or moved.
pub(crate) fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let len = 1 + random.below(16).min(bytes.len() - at - 1);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let to = random.below(bytes.len());
                bytes.swap(at, to);
            }
        }
    }
}

/// Loads and, where that works, runs.
fn try_out(bytes: &[u8], manifest: &Manifest, allow_float: bool) -> bool {
    let options = LoadOptions { allow_float, ..LoadOptions::default() };
    if let Ok(mut executor) = Executor::load(bytes, manifest, &options) {
        let shape = executor.network().input_shape();
        return executor.run(&vec![77; shape.len()]).is_ok();
    }
    // Without a manifest more files load; outputs of any shape are fine then.
    if let Ok(mut network) = Network::load(bytes, &options) {
        let len = network.input_shape().len();
        if len < 1 << 20 {
            return network.run_f32(&vec![0.5; len]).is_ok();
        }
    }
    false
}

#[test]
fn damaged_networks_never_panic() {
    let manifest = Manifest::parse(tiny::MANIFEST).expect("a manifest");
    let whole = tiny::network_bytes();
    let mut random = Random(0x51AB_33D1_0F00_0D1E);
    let (mut n_run, mut n_refused) = (0, 0);
    for _ in 0..4000 * rounds() {
        let mut bytes = whole.clone();
        damage(&mut bytes, &mut random);
        if try_out(&bytes, &manifest, false) {
            n_run += 1;
        } else {
            n_refused += 1;
        }
    }
    eprintln!("{n_run} damaged networks ran, {n_refused} were refused");
    assert!(n_run > 100 && n_refused > 100, "{n_run} ran, {n_refused} were refused: the damage is too small or too great");
}

#[test]
fn every_prefix_of_a_network_is_refused_or_runs() {
    let manifest = Manifest::parse(tiny::MANIFEST).expect("a manifest");
    let whole = tiny::network_bytes();
    for len in (0..whole.len()).step_by(7) {
        assert!(!try_out(&whole[..len], &manifest, false), "{len} of {} bytes are not a network", whole.len());
    }
}

/// Values of the structure, not of its bytes: shapes, names, attributes, types.
#[test]
fn absurd_networks_never_panic() {
    let manifest = Manifest::parse(tiny::MANIFEST).expect("a manifest");
    let mut random = Random(0x0DDB_A11C_0FFE_E000);
    let absurd = [0_i64, -1, 1, 2, 3, 7, 64, 4097, i64::from(i32::MAX), i64::MAX, i64::MIN];
    let mut n_run = 0;
    for round in 0..3000 * rounds() {
        let mut model = tiny::network(true);
        let graph = model.graph.as_mut().expect("a graph");
        for _ in 0..=random.below(2) {
            let (n_nodes, n_tensors) = (graph.node.len(), graph.initializer.len());
            match random.below(9) {
                0 => {
                    let node = &mut graph.node[random.below(n_nodes)];
                    if let Some(attribute) = node.attribute.first_mut() {
                        attribute.i = absurd[random.below(absurd.len())];
                        for value in &mut attribute.ints {
                            *value = absurd[random.below(absurd.len())];
                        }
                    }
                }
                1 => {
                    let tensor = &mut graph.initializer[random.below(n_tensors)];
                    tensor.dims = (0..random.below(6)).map(|_| absurd[random.below(absurd.len())]).collect();
                }
                2 => graph.initializer[random.below(n_tensors)].data_type = i32::try_from(random.below(18)).expect("small"),
                3 => graph.initializer[random.below(n_tensors)].raw_data.truncate(random.below(8)),
                4 => {
                    let name = graph.node[random.below(n_nodes)].output.first().cloned().unwrap_or_default();
                    let node = &mut graph.node[random.below(n_nodes)];
                    if !node.input.is_empty() {
                        let input = random.below(node.input.len());
                        node.input[input] = name;
                    }
                }
                5 => drop(graph.node.remove(random.below(n_nodes))),
                6 => {
                    let ops = [
                        "Add",
                        "Concat",
                        "MaxPool",
                        "Split",
                        "Reshape",
                        "Transpose",
                        "Resize",
                        "Clip",
                        "Relu",
                        "Nonsense",
                        "Sigmoid",
                    ];
                    graph.node[random.below(n_nodes)].op_type = ops[random.below(ops.len())].into();
                }
                7 => {
                    let node = &mut graph.node[random.below(n_nodes)];
                    node.input.truncate(random.below(3));
                }
                _ => {
                    let node = &mut graph.node[random.below(n_nodes)];
                    node.output.truncate(random.below(2));
                }
            }
            if graph.node.is_empty() {
                break;
            }
        }
        let bytes = onnx::encode(&model);
        n_run += usize::from(try_out(&bytes, &manifest, false));
        if round % 10 == 0 {
            try_out(&bytes, &manifest, true);
        }
    }
    eprintln!("{n_run} absurd networks ran");
}

#[test]
fn damaged_manifests_never_panic() {
    let whole = tiny::MANIFEST.as_bytes();
    let mut random = Random(0xFEED_5EED_0000_0001);
    let mut n_good = 0;
    for _ in 0..20_000 * rounds() {
        let mut bytes = whole.to_vec();
        damage(&mut bytes, &mut random);
        let text = String::from_utf8_lossy(&bytes);
        match Manifest::parse(&text) {
            Ok(manifest) => {
                n_good += 1;
                assert!(Manifest::parse(&manifest.to_toml()).is_ok_and(|again| again == manifest), "{text}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    eprintln!("{n_good} damaged manifests are still good");
}
